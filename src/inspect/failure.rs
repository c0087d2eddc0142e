//! Explains a protocol error to a person who is debugging: what is wrong and, where possible, which rule the frame
//! breaks and which bytes prove it. The peer receives only the short text of the [`ProtocolError`], as the close
//! reason. Other modules detect the errors.

use super::escape::{quote, spaced_hex};
use super::{Failure, Frame};
use crate::ws::close::ProtocolError;
use crate::ws::protocol::Limits;

/// Explains the protocol error that `frame` caused. The frame may be incomplete. `limits` are the server's limits.
pub fn explain(error: ProtocolError, frame: &Frame, limits: &Limits) -> Failure {
    let reason = match describe_http_or_tls(frame) {
        Some(what) => format!("{what} in place of a frame; {}", describe(error, frame, limits)),
        None => describe(error, frame, limits),
    };
    Failure { by: frame.from, frame_number: frame.number, code: error.code().get(), section: error.section(), reason }
}

/// Explains why a masked frame from the server is an error. [`ProtocolError`] has no variant for it, because it covers
/// only errors that a client can make.
pub fn explain_masked_server_frame(frame: &Frame) -> Failure {
    let reason = format!(
        "this frame is masked; a server must not mask any frame; the second byte was {}, its top bit is 1",
        format_byte(frame, 1)
    );
    Failure { by: frame.from, frame_number: frame.number, code: 1002, section: "5.1", reason }
}

fn format_byte(frame: &Frame, index: usize) -> String {
    format!("{:02x}", frame.header.bytes().get(index).copied().unwrap_or_default())
}

const NO_EXTENSION: &str = "the reserved bits must be 0 unless an extension was negotiated, and none was";
const RSV1_RULE: &str = "with permessage-deflate, only RSV1 may be set, in the first frame of a message (RFC 7692 §6)";
const NOT_DEFLATE: &str =
    "the compressed message is not DEFLATE data that ends with an empty block (RFC 7692 §7.2.2, RFC 1951)";

fn describe(error: ProtocolError, frame: &Frame, limits: &Limits) -> String {
    let (name, first, second) = (frame.header.name(), format_byte(frame, 0), format_byte(frame, 1));
    match error {
        ProtocolError::ReservedBits => describe_rsv(frame, NO_EXTENSION),
        ProtocolError::ReservedOpcode(opcode) => format!(
            "opcode {opcode:x} has no meaning; only 0, 1, 2, 8, 9 and a are defined; the first byte was {first}, its \
             last four bits are {opcode:x}"
        ),
        ProtocolError::FragmentedControl => format!(
            "this {name} has no FIN; a control frame must not be fragmented; the first byte was {first}, its top bit is 0"
        ),
        ProtocolError::ControlTooLong => format!(
            "this {name} is longer than 125 bytes, the limit for a control frame; the second byte was {second}, its \
             length bits are {}",
            frame.header.length_7()
        ),
        ProtocolError::Unmasked => format!(
            "this frame is not masked; a client must mask every frame; the second byte was {second}, its top bit is 0"
        ),
        ProtocolError::LengthNotMinimal => describe_non_minimal_length(frame),
        // §5.2: in a 64-bit length, "the most significant bit MUST be 0".
        ProtocolError::LengthTopBit => format!(
            "the top bit of the 64-bit length is 1; it must be 0; the length began with {}",
            spaced_hex(&frame.header.extended_length()[..1])
        ),
        ProtocolError::UnexpectedContinuation => format!(
            "this frame continues a message, and none is open; a message begins with TEXT or BINARY; the first byte was \
             {first}, its opcode is 0"
        ),
        ProtocolError::ExpectedContinuation => format!(
            "this {name} begins a message while another is unfinished; only CONT may follow until a FIN ends that \
             message; the first byte was {first}, its opcode is {}",
            frame.header.opcode()
        ),
        ProtocolError::UnsupportedData => format!(
            "this message is binary; this endpoint accepts only text; the first byte was {first}, its opcode is 2"
        ),
        // The RFC leaves limits to the implementation (§10.4), so the explanation states the server's limit.
        ProtocolError::MessageTooBig => {
            format!("{}; the limit of this server is {} bytes", describe_size(frame), limits.message)
        }
        ProtocolError::TooManyFragments => {
            format!("this message has too many fragments; the limit of this server is {}", limits.fragments)
        }
        ProtocolError::TextNotUtf8 => format!("the text is not UTF-8; {}", describe_invalid_utf8(frame, 0)),
        // §5.5.1: if a Close has a body, "the first two bytes of the body MUST be a 2-byte unsigned integer".
        ProtocolError::ClosePayloadOfOneByte => format!(
            "this CLOSE has a payload of one byte, {}; it must be empty or begin with a code of two bytes",
            spaced_hex(&frame.unmasked_payload())
        ),
        ProtocolError::InvalidCloseCode(code) => format!(
            "close code {code} must not be sent; 1000–1003, 1007–1014 and 3000–4999 may be; the payload began with {}",
            spaced_hex(&code.to_be_bytes())
        ),
        ProtocolError::CloseReasonNotUtf8 => format!("the reason is not UTF-8; {}", describe_invalid_utf8(frame, 2)),
        ProtocolError::MisplacedRsv1 => describe_rsv(frame, RSV1_RULE),
        ProtocolError::InvalidDeflate => NOT_DEFLATE.into(),
    }
}

fn describe_size(frame: &Frame) -> String {
    if frame.inflated.is_some() {
        return "the compressed message inflates to too many bytes, or has too many blocks without bytes".into();
    }
    format!("this frame is {} bytes long, which makes its message too long", frame.payload_len)
}

fn describe_non_minimal_length(frame: &Frame) -> String {
    let (form, extended) = (frame.header.length_form(), frame.header.extended_length());
    let shortest = |length| if length <= 125 { "7 bits" } else { "16 bits" };
    // The last two bytes of a 64-bit length may be missing: six zero bytes already prove that 16 bits are enough.
    let rule = match frame.header.payload_len() {
        Some(length) => format!("{length} fits into {}", shortest(length)),
        None => "a length up to 65535 fits into 16 bits".into(),
    };
    format!(
        "the length is not in its shortest form; {rule}; it was written in {} bits, as {}",
        form.bits(),
        spaced_hex(extended)
    )
}

/// Describes the invalid UTF-8 in a payload. `skip` is the number of payload bytes before the text: 2 in a Close.
fn describe_invalid_utf8(frame: &Frame, skip: usize) -> String {
    if frame.inflated.is_some() {
        return "it was compressed".into();
    }
    let payload = frame.unmasked_payload();
    let text = payload.get(skip..).unwrap_or_default();
    let is_start = frame.position.is_none_or(|position| position.fragment == 1);
    let is_cut = frame.received > frame.wire.len() as u64;
    match std::str::from_utf8(text) {
        // If `frame.wire` holds only the start of the payload, an incomplete last character is not an error.
        Err(error) if is_start && (error.error_len().is_some() || !is_cut) => {
            let at = skip + error.valid_up_to();
            let bad = &payload[at..payload.len().min(at + error.error_len().unwrap_or(3))];
            let what = if error.error_len().is_some() { "not a character" } else { "an incomplete character" };
            format!("at byte {} of the payload, {} is {what}", at + 1, spaced_hex(bad))
        }
        _ => {
            "a character is split between two fragments that do not fit together, or the error is further on than the \
              bytes shown"
                .into()
        }
    }
}

/// Returns a description of the bytes if the peer sent HTTP or TLS instead of a WebSocket frame.
fn describe_http_or_tls(frame: &Frame) -> Option<String> {
    let bytes = [frame.header.bytes(), &frame.wire].concat();
    // A proxy without WebSocket support, or a client that reuses the connection, may send HTTP in place of a frame.
    const METHODS: [&[u8]; 6] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT "];
    if bytes.starts_with(b"HTTP/1.") {
        Some("these bytes are an HTTP response".into())
    } else if METHODS.iter().any(|method| bytes.starts_with(method)) {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        // Redact the request line: the request target may contain an access token.
        let line = super::secret::redact_head(&line[..line.len().min(40)]);
        Some(format!("these bytes are an HTTP request, {},", quote(&String::from_utf8_lossy(&line))))
    } else if is_tls(&bytes) {
        Some("these bytes are TLS (wss://)".into())
    } else {
        None
    }
}

/// Whether the bytes begin like a TLS record (RFC 8446 §5.1): a type from 20 to 23, then a version from 03 00 to 03 04.
pub fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x14..=0x17, 3, 0..=4, ..])
}

fn describe_rsv(frame: &Frame, rule: &str) -> String {
    let names: Vec<_> = frame.header.rsv_names().collect();
    let (names, verb) = (names.join(" and "), if names.len() == 1 { "is" } else { "are" });
    format!(
        "{names} {verb} set; {rule}; the first byte was {}, {}",
        format_byte(frame, 0),
        format_bits(frame.header.bytes()[0])
    )
}

fn format_bits(byte: u8) -> String {
    format!("{:04b} {:04b}", byte >> 4, byte & 0xf)
}
