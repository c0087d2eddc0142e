//! Why a frame was wrong, told by its bytes: what is the matter, what the rule is, and which bits show it.
//!
//! A [`ProtocolError`] names the rule in the words that the peer reads in its Close. Here the same rule is explained to
//! somebody who looks at the frame. This file decides nothing.

use super::visible::{hex, quoted};
use super::{Failure, Frame};
use crate::ws::Limits;
use crate::ws::close::ProtocolError;

/// Explains a rule that `frame`, as far as it came, has broken. `limits`: what the server takes.
pub fn explain(error: ProtocolError, frame: &Frame, limits: &Limits) -> Failure {
    let because = match stranger(frame) {
        Some(what) => format!("{what} in place of a frame; {}", because(error, frame, limits)),
        None => because(error, frame, limits),
    };
    let (by, number) = (frame.sender, frame.number);
    Failure { by, frame: number, code: error.code().get(), section: error.section(), because }
}

/// A mask on a server's frame: the one rule that only a client can refuse.
pub fn masked_by_server(frame: &Frame) -> Failure {
    let because = format!(
        "this frame is masked; a server must not mask any frame; the second byte was {:02x}, its top bit is 1",
        frame.header.bytes().get(1).copied().unwrap_or_default()
    );
    Failure { by: frame.sender, frame: frame.number, code: 1002, section: "5.1", because }
}

fn because(error: ProtocolError, frame: &Frame, limits: &Limits) -> String {
    let name = frame.header.name();
    let byte = |index: usize| format!("{:02x}", frame.header.bytes().get(index).copied().unwrap_or_default());
    let (first, second) = (byte(0), byte(1));
    match error {
        ProtocolError::ReservedBits => format!(
            "{} set; the reserved bits must be 0 unless an extension was negotiated, and none was; the first byte was \
             {first}, {}",
            reserved_bits(frame.header.rsv()),
            bits(frame.header.bytes()[0])
        ),
        ProtocolError::ReservedOpcode(opcode) => format!(
            "opcode {opcode:x} has no meaning; only 0, 1, 2, 8, 9 and a have; the first byte was {first}, its last four \
             bits are {opcode:x}"
        ),
        ProtocolError::FragmentedControl => format!(
            "this {name} has no FIN; a control frame must not be fragmented; the first byte was {first}, its top bit is 0"
        ),
        ProtocolError::ControlTooLong => format!(
            "this {name} is longer than 125 bytes, and a control frame must not be; the second byte was {second}, its \
             length bits say {}",
            frame.header.short_length()
        ),
        ProtocolError::Unmasked => format!(
            "this frame is not masked; a client must mask every frame; the second byte was {second}, its top bit is 0"
        ),
        ProtocolError::LengthNotMinimal => length_not_minimal(frame),
        ProtocolError::LengthTopBit => format!(
            "the top bit of the 64-bit length is 1; it must be 0; the length began with {}",
            hex(&frame.header.long_length()[..1])
        ),
        ProtocolError::UnexpectedContinuation => format!(
            "this frame continues a message, and none is open; a message begins with TEXT or BINARY; the first byte was \
             {first}, its opcode is 0"
        ),
        ProtocolError::ExpectedContinuation => format!(
            "this {name} begins a message while another is unfinished; only CONT may go on with that one, up to its FIN; \
             the first byte was {first}, its opcode is {}",
            frame.header.opcode()
        ),
        ProtocolError::UnsupportedData => {
            format!("this message is binary; only text is taken here; the first byte was {first}, its opcode is 2")
        }
        ProtocolError::MessageTooBig => format!(
            "with the {} bytes of this frame its message is over the limit; this server takes {} bytes",
            frame.payload_len, limits.message
        ),
        ProtocolError::TooManyFragments => {
            format!("this message has too many fragments; this server takes {} of them", limits.fragments)
        }
        ProtocolError::TextNotUtf8 => format!("the text is not UTF-8, as it must be; {}", bad_text(frame, 0)),
        ProtocolError::ClosePayloadOfOneByte => {
            let payload = hex(&frame.unmasked());
            format!(
                "this CLOSE has a payload of one byte, {payload}; it must be empty or begin with a code of two bytes"
            )
        }
        ProtocolError::InvalidCloseCode(code) => format!(
            "close code {code} must not be sent; 1000–1003, 1007–1014 and 3000–4999 may be; the payload began with {}",
            hex(&code.to_be_bytes())
        ),
        ProtocolError::CloseReasonNotUtf8 => format!("the reason is not UTF-8, as it must be; {}", bad_text(frame, 2)),
    }
}

fn length_not_minimal(frame: &Frame) -> String {
    let (form, long) = (frame.header.length_form(), frame.header.long_length());
    let shortest = |length| if length <= 125 { "7 bits" } else { "16 bits" };
    // The verdict may fall before the last two bytes are there; they cannot change it.
    let rule = match frame.header.payload_len() {
        Some(length) => format!("the length {length} takes {}", shortest(length)),
        None => "a length up to 65535 takes 16 bits at most".into(),
    };
    format!("the length is not in its shortest form; {rule}; it was written in {} bits, as {}", form.bits(), hex(long))
}

/// Where the text of a frame, behind its first `skip` bytes, is wrong.
fn bad_text(frame: &Frame, skip: usize) -> String {
    let payload = frame.unmasked();
    let text = payload.get(skip..).unwrap_or_default();
    let is_start = frame.place.is_none_or(|place| place.fragment == 1);
    let is_cut = frame.received > frame.wire.len() as u64;
    match std::str::from_utf8(text) {
        // What is cut off where no more is shown is not what is wrong.
        Err(error) if is_start && (error.error_len().is_some() || !is_cut) => {
            let at = skip + error.valid_up_to();
            let bad = &payload[at..payload.len().min(at + error.error_len().unwrap_or(3))];
            let what = if error.error_len().is_some() { "no character" } else { "a character without its end" };
            format!("at byte {} of the payload stands {}, {what}", at + 1, hex(bad))
        }
        _ => "a character is cut between two fragments, and they do not fit, or it is further on than is shown".into(),
    }
}

/// What the bytes are, if they are the start of something else than a frame.
pub fn stranger(frame: &Frame) -> Option<String> {
    let bytes = [frame.header.bytes(), &frame.wire].concat();
    const METHODS: [&[u8]; 6] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT "];
    if bytes.starts_with(b"HTTP/1.") {
        Some("these bytes are an HTTP answer".into())
    } else if METHODS.iter().any(|method| bytes.starts_with(method)) {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = super::secret::masked(&line[..line.len().min(40)]);
        Some(format!("these bytes are an HTTP request, {},", quoted(&String::from_utf8_lossy(&line))))
    } else if matches!(bytes[..], [0x14..=0x17, 3, 0..=4, ..]) {
        Some("these bytes are TLS, as wss:// speaks it,".into())
    } else {
        None
    }
}

fn reserved_bits(rsv: u8) -> String {
    let names: Vec<_> = [(4, "RSV1"), (2, "RSV2"), (1, "RSV3")]
        .into_iter()
        .filter_map(|(bit, name)| (rsv & bit != 0).then_some(name))
        .collect();
    format!("{} {}", names.join(" and "), if names.len() == 1 { "is" } else { "are" })
}

/// A byte as two groups of four bits.
fn bits(byte: u8) -> String {
    format!("{:04b} {:04b}", byte >> 4, byte & 0xf)
}
