//! Compares the server's UTF-8 validation of text messages and close reasons with `std::str::from_utf8`. The server
//! must fail the connection at the first byte that makes the text invalid, before later bytes arrive (RFC 6455 §8.1).

use std::str::from_utf8;

use wirechat::tools::poke::case::encode_masked_frame;
use wirechat::ws::close::ProtocolError;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol, State};

use super::cuts;

const LIMITS: Limits = Limits { message: 1 << 20, fragments: u32::MAX, accepts_binary: true, deflates: false };

pub fn check(data: &[u8]) {
    let &[fragment_cuts, read_cuts, ref payload @ ..] = data else { return };
    check_fragments(payload, fragment_cuts, read_cuts);
    check_first_byte(&payload[..payload.len().min(125)]);
    check_reason(&payload[..payload.len().min(123)], read_cuts);
}

fn check_fragments(payload: &[u8], fragment_cuts: u8, read_cuts: u8) {
    let mut protocol = Protocol::new(LIMITS);
    let (mut end, lens) = (0, cuts(fragment_cuts, payload.len()));
    for (index, len) in lens.iter().enumerate() {
        let fin = index + 1 == lens.len();
        let first = u8::from(fin) << 7 | u8::from(index == 0);
        let bytes = encode_masked_frame(first, payload[end..end + len].to_vec(), [1, 2, 3, 4]);
        end += len;
        let (events, _) = receive(&mut protocol, &bytes, read_cuts);
        let expected = match from_utf8(&payload[..end]) {
            Ok(text) if fin => vec![format!("{:?}", Event::Message(Message::Text(text.into())))],
            Err(error) if error.error_len().is_some() || fin => {
                vec![format!("{:?}", Event::Failed(ProtocolError::TextNotUtf8))]
            }
            _ => vec![],
        };
        assert_eq!(events, expected, "fragment {index} of {payload:02x?}");
        if protocol.state() != State::Open {
            return;
        }
    }
}

/// Passes a text frame to the protocol byte by byte. The protocol must fail the connection at the first byte that makes
/// the text invalid.
fn check_first_byte(payload: &[u8]) {
    let mut protocol = Protocol::new(LIMITS);
    let mut bytes = encode_masked_frame(0x01, payload.to_vec(), [5, 6, 7, 8]);
    let header = bytes.len() - payload.len();
    let is_lost = |end: &usize| from_utf8(&payload[..*end]).is_err_and(|error| error.error_len().is_some());
    let expected = (1..=payload.len()).find(is_lost).map(|end| header + end);
    let failed = (1..=bytes.len()).find(|end| protocol.receive(&mut &mut bytes[end - 1..*end]).is_some());
    assert_eq!(failed, expected, "{payload:02x?}");
}

fn check_reason(reason: &[u8], read_cuts: u8) {
    let bytes = encode_masked_frame(0x88, [&[0x03, 0xe8], reason].concat(), [9, 8, 7, 6]);
    let (events, output) = receive(&mut Protocol::new(LIMITS), &bytes, read_cuts);
    match from_utf8(reason) {
        Ok(reason) => {
            assert!(
                events.len() == 1 && events[0].starts_with("Close(Some(") && events[0].contains(&format!("{reason:?}"))
            );
            assert_eq!(output, [0x88, 2, 0x03, 0xe8]);
        }
        Err(_) => assert_eq!(events, [format!("{:?}", Event::Failed(ProtocolError::CloseReasonNotUtf8))]),
    }
}

/// Passes bytes to the protocol in pieces. Returns the events (formatted with `Debug`) and the bytes that the
/// protocol sends in reply.
pub fn receive(protocol: &mut Protocol, bytes: &[u8], read_cuts: u8) -> (Vec<String>, Vec<u8>) {
    let (mut events, mut output, mut start) = (Vec::new(), Vec::new(), 0);
    for len in cuts(read_cuts, bytes.len()) {
        let mut piece = bytes[start..start + len].to_vec();
        start += len;
        let mut input = &mut piece[..];
        while let Some(event) = protocol.receive(&mut input) {
            events.push(format!("{event:?}"));
            output.extend(protocol.take_output());
        }
        output.extend(protocol.take_output());
        assert!(input.is_empty(), "the protocol consumes all input");
    }
    (events, output)
}
