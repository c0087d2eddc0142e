//! Checks that the result of `Protocol` does not depend on where the stream of frames is cut into reads, and that
//! `tungstenite` reads the same messages. The fuzz input's first byte selects the limits, and whether the rest is a
//! raw stream or a description of mostly valid frames (see `describe`). The second byte selects the cuts.

use std::io::{self, Cursor, Read, Write};

use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message as Theirs, WebSocket};
use wirechat::tools::poke::case::encode_masked_frame;
use wirechat::ws::close::ProtocolError;
use wirechat::ws::frame::server_frame_len;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol, State};

use super::utf8::receive;

/// Builds a stream of masked frames from the fuzz input `data`. For each frame, `data` contains its first byte, its
/// payload length in two bytes, and its payload.
fn describe(mut data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let &[first, high, low, ref rest @ ..] = data {
        let len = (usize::from(high & 0x03) << 8 | usize::from(low)).min(rest.len());
        // Clear the RSV bits, to make the header valid. If the payload is too long for a control frame, also turn the
        // opcode into a data opcode.
        let first = if len > 125 { first & 0x87 } else { first & 0x8f };
        stream.extend(encode_masked_frame(first, rest[..len].to_vec(), [high, low, first, 0]));
        data = &rest[len..];
    }
    stream
}

pub fn check(data: &[u8]) {
    let &[choice, read_cuts, ref rest @ ..] = data else { return };
    let stream = if choice & 1 == 0 { rest.to_vec() } else { describe(rest) };
    let message = if choice & 2 == 0 { 100_000 } else { 300 };
    let fragments = if choice & 4 == 0 { 1000 } else { 3 };
    let limits = Limits { message, fragments, accepts_binary: choice & 8 == 0, deflates: false };
    let mut protocol = Protocol::new(limits);
    let (events, output) = receive(&mut protocol, &stream, 0);
    for cuts in [1, read_cuts] {
        let mut again = Protocol::new(limits);
        assert_eq!(receive(&mut again, &stream, cuts), (events.clone(), output.clone()), "cut by {cuts}");
        assert_eq!(again.state(), protocol.state());
        let is_open = protocol.state() == State::Open;
        assert!(!is_open || again.is_between_messages() == protocol.is_between_messages());
        assert!(again.buffered_bytes() <= 2 * limits.message, "an incomplete message is bounded");
    }
    check_output(&stream, limits, &output, protocol.state());
    compare(&stream, limits);
}

/// Checks that the protocol's output is one Pong for each Ping, in order, and then at most one Close.
fn check_output(stream: &[u8], limits: Limits, mut output: &[u8], state: State) {
    let mut stream = stream.to_vec();
    let (mut input, mut protocol) = (&mut stream[..], Protocol::new(limits));
    while let Some(event) = protocol.receive(&mut input) {
        if let Event::Ping(payload) = &event {
            let len = server_frame_len(output);
            assert_eq!(output[..len], [&[0x8a, payload.len() as u8], &payload[..]].concat());
            output = &output[len..];
        }
    }
    match state {
        State::Open => assert!(output.is_empty(), "nothing else is sent"),
        _ => assert!(output[0] == 0x88 && server_frame_len(output) == output.len(), "one Close, and nothing after it"),
    }
}

struct Stream(Cursor<Vec<u8>>);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compare(stream: &[u8], limits: Limits) {
    let mut bytes = stream.to_vec();
    let (mut input, mut protocol) = (&mut bytes[..], Protocol::new(limits));
    let (mut ours, mut failure) = (Vec::new(), None);
    while let Some(event) = protocol.receive(&mut input) {
        ours.push(match event {
            Event::Message(Message::Text(text)) => Theirs::text(text.to_string()),
            Event::Message(Message::Binary(bytes)) => Theirs::binary(bytes.to_vec()),
            Event::Ping(payload) => Theirs::Ping(payload.to_vec().into()),
            Event::Pong(payload) => Theirs::Pong(payload.to_vec().into()),
            // tungstenite rejects close code 1014, which IANA registered after RFC 6455, and reports 1002 instead.
            Event::Close(Some(code), _) if code.get() == 1014 => {
                Theirs::Close(Some(CloseFrame { code: 1002.into(), reason: "Protocol violation".into() }))
            }
            Event::Close(code, reason) => {
                Theirs::Close(code.map(|code| CloseFrame { code: code.get().into(), reason: reason.into() }))
            }
            Event::Failed(error) => {
                failure = Some(error);
                break;
            }
        });
    }
    let config = WebSocketConfig::default().max_message_size(Some(limits.message)).max_frame_size(Some(1 << 24));
    let mut socket = WebSocket::from_raw_socket(Stream(Cursor::new(stream.to_vec())), Role::Server, Some(config));
    let mut theirs = Vec::new();
    while let Ok(message) = socket.read() {
        theirs.push(message);
    }
    use ProtocolError::*;
    match failure {
        None | Some(ReservedBits | ReservedOpcode(_) | FragmentedControl | Unmasked) => {}
        Some(UnexpectedContinuation | ExpectedContinuation | TextNotUtf8 | ClosePayloadOfOneByte) => {}
        // tungstenite detects all other errors later than `Protocol`, or never. Ignore the messages that it reads after
        // `Protocol` has failed.
        _ => theirs.truncate(ours.len()),
    }
    assert_eq!(ours, theirs, "tungstenite reads other messages (our failure: {failure:?})");
}
