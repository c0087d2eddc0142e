//! §5.4 fragmentation, §5.6 data frames, §8.1 UTF-8: assembles frame payloads into a [`Message`]. An [`Assembler`]
//! validates text as it arrives: an invalid byte fails the connection at once, and no second pass is needed.
//!
//! ```text
//!   frame                 payload   valid   incomplete
//!   Text                  48 c3     "H"     c3
//!   Continuation          a9 e2 82  "Hé"    e2 82
//!   Continuation, FIN     ac 21     "Hé€!"
//! ```

use std::borrow::Cow;

use super::close::ProtocolError;
use super::deflate::inflating::InflatingMessage;
use super::frame::Opcode;

/// A data message (§5.6), borrowed from the read buffer if the message arrived as one frame in one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Text(Cow<'a, str>),
    Binary(Cow<'a, [u8]>),
}

impl<'a> Message<'a> {
    pub fn from_payload(opcode: Opcode, payload: &'a [u8]) -> Result<Message<'a>, ProtocolError> {
        match opcode {
            // §8.1: an endpoint that receives invalid UTF-8 in a text message "MUST _Fail the WebSocket Connection_".
            Opcode::Text => Ok(Message::Text(str::from_utf8(payload).or(Err(ProtocolError::TextNotUtf8))?.into())),
            _ => Ok(Message::Binary(payload.into())),
        }
    }
}

#[derive(Debug)]
pub enum Assembler {
    Text { valid: String, incomplete: Vec<u8> }, // `incomplete`: at most three bytes of an unfinished character
    Binary(Vec<u8>),
    Deflated(Box<InflatingMessage>),
}

impl Assembler {
    pub fn new(opcode: Opcode) -> Assembler {
        match opcode {
            Opcode::Text => Assembler::Text { valid: String::new(), incomplete: Vec::new() },
            _ => Assembler::Binary(Vec::new()),
        }
    }

    pub fn len_and_capacity(&self) -> (usize, usize) {
        match self {
            Assembler::Text { valid, incomplete } => (valid.len() + incomplete.len(), valid.capacity()),
            Assembler::Binary(bytes) => (bytes.len(), bytes.capacity()),
            Assembler::Deflated(message) => message.len_and_capacity(),
        }
    }

    /// Appends `payload`. Fails on text that is not UTF-8. `remaining`: bytes left in the frame, including `payload`.
    pub fn push(&mut self, payload: &[u8], remaining: usize) -> Result<(), ProtocolError> {
        debug_assert!(payload.len() <= remaining);
        let (received, capacity) = self.len_and_capacity();
        // §10.4: limit the capacity to twice the *received* size, so that an announced length alone costs no memory.
        let growth = if received + payload.len() <= capacity { 0 } else { payload.len().max(received.min(remaining)) };
        match self {
            Assembler::Text { valid, incomplete } => {
                valid.reserve_exact(incomplete.len() + growth);
                let missing = incomplete.first().map_or(0, |first| first.leading_ones() as usize - incomplete.len());
                let (end_of_char, rest) = payload.split_at(missing.min(payload.len()));
                *incomplete = push_whole_chars(valid, &[incomplete, end_of_char].concat())?.to_vec();
                incomplete.extend_from_slice(push_whole_chars(valid, rest)?);
            }
            Assembler::Binary(bytes) => {
                bytes.reserve_exact(growth);
                bytes.extend_from_slice(payload);
            }
            Assembler::Deflated(message) => message.push(payload)?,
        }
        Ok(())
    }

    pub fn finish<'a>(self) -> Result<Message<'a>, ProtocolError> {
        match self {
            // §5.6: a fragment may end inside a character, "however, the whole message MUST contain valid UTF-8".
            Assembler::Text { incomplete, .. } if !incomplete.is_empty() => Err(ProtocolError::TextNotUtf8),
            Assembler::Text { valid, .. } => Ok(Message::Text(valid.into())),
            Assembler::Binary(bytes) => Ok(Message::Binary(bytes.into())),
            Assembler::Deflated(message) => message.finish(),
        }
    }
}

/// Appends the whole characters of `bytes` to `text`, and returns the bytes of an incomplete last character.
fn push_whole_chars<'a>(text: &mut String, bytes: &'a [u8]) -> Result<&'a [u8], ProtocolError> {
    // Leading 1 bits: none in ASCII, one in a continuation byte, n in the first byte of an n-byte character (n ≥ 2).
    let first = (bytes.len().saturating_sub(3)..bytes.len()).rfind(|&at| bytes[at].leading_ones() >= 2);
    let is_incomplete = |&at: &usize| bytes[at].leading_ones() as usize > bytes.len() - at;
    let (whole, tail) = bytes.split_at(first.filter(is_incomplete).unwrap_or(bytes.len()));
    // `error_len` is `None` if further bytes could complete the character.
    let is_invalid = str::from_utf8(tail).is_err_and(|error| error.error_len().is_some());
    let valid = str::from_utf8(whole).ok().filter(|_| !is_invalid);
    text.push_str(valid.ok_or(ProtocolError::TextNotUtf8)?);
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::{assert_in_module_doc, format_hex};

    fn assemble(pieces: &[&[u8]]) -> Result<String, ProtocolError> {
        let mut message = Assembler::new(Opcode::Text);
        for piece in pieces {
            message.push(piece, piece.len())?;
        }
        match message.finish()? {
            Message::Text(text) => Ok(text.into_owned()),
            Message::Binary(_) => panic!("a text message"),
        }
    }

    #[test]
    fn picture_matches_the_code() {
        let mut picture = format!("  {:22}{:10}{:8}incomplete", "frame", "payload", "valid");
        let mut message = Assembler::new(Opcode::Text);
        for (header, payload) in
            [("Text", &b"H\xc3"[..]), ("Continuation", b"\xa9\xe2\x82"), ("Continuation, FIN", b"\xac!")]
        {
            message.push(payload, payload.len()).unwrap();
            let Assembler::Text { valid, incomplete } = &message else { panic!("a text message") };
            let (valid, incomplete) = (format!("{valid:?}"), format_hex(incomplete));
            picture += &format!("\n  {header:22}{:10}{valid:8}{incomplete}", format_hex(payload));
        }
        assert_in_module_doc(include_str!("message.rs"), &picture);
        assert_eq!(message.finish(), Ok(Message::Text("Hé€!".into())));
    }

    /// Ordinary characters, noncharacters, and the neighbors of every UTF-8 length limit and of the surrogate gap.
    const VALID_TEXT: &str = "a\u{7f}\u{80}é\u{7ff}\u{800}€\u{d7ff}\u{e000}\u{fffe}\u{ffff}\u{10000}😀\u{10ffff}";

    #[test]
    fn rfc_8_1_text_is_the_same_wherever_it_is_cut() {
        let bytes = VALID_TEXT.as_bytes();
        for second in 0..=bytes.len() {
            for first in 0..=second {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(assemble(&pieces).as_deref(), Ok(VALID_TEXT), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn rfc_8_1_an_invalid_byte_fails_at_once() {
        // Each row: invalid UTF-8, and the number of bytes that are valid before the first invalid byte.
        let cases: [(&[u8], usize); 12] = [
            (b"\x80", 0),
            (b"\xc0\xaf", 0),
            (b"\xc1\xbf", 0),
            (b"\xe0\x80\xaf", 1),
            (b"\xed\xa0\x80", 1),
            (b"\xf0\x80\x80\x80", 1),
            (b"\xf4\x90\x80\x80", 1),
            (b"\xf5\x80\x80\x80", 0),
            (b"\xf8\x88\x80\x80\x80", 0),
            (b"\xfe", 0),
            (b"\xff", 0),
            (b"\xce\xba\xe1\xbd\xce", 4),
        ];
        for (bytes, valid) in cases {
            let mut message = Assembler::new(Opcode::Text);
            for (at, byte) in bytes.iter().enumerate().take(valid + 1) {
                let result = message.push(&[*byte], 1);
                assert_eq!(result.is_ok(), at < valid, "{bytes:02x?} at {at}");
            }
            assert_eq!(assemble(&[bytes]), Err(ProtocolError::TextNotUtf8), "{bytes:02x?} in one piece");
            assert_eq!(
                Message::from_payload(Opcode::Text, bytes),
                Err(ProtocolError::TextNotUtf8),
                "{bytes:02x?} borrowed"
            );
        }
    }

    #[test]
    fn rfc_8_1_text_must_not_end_inside_a_character() {
        for len in 1..4 {
            assert_eq!(assemble(&["😀".as_bytes().split_at(len).0]), Err(ProtocolError::TextNotUtf8));
        }
    }

    #[test]
    fn rfc_5_4_binary_fragments_are_concatenated_and_not_validated() {
        let mut message = Assembler::new(Opcode::Binary);
        message.push(b"\xff\xfe", 2).unwrap();
        message.push(b"", 0).unwrap();
        message.push(b"\xc0", 1).unwrap();
        assert_eq!(message.len_and_capacity().0, 3);
        assert_eq!(message.finish(), Ok(Message::Binary(Cow::Owned(b"\xff\xfe\xc0".to_vec()))));
    }

    #[test]
    fn memory_grows_with_received_bytes_up_to_the_announced_length() {
        let mut message = Assembler::new(Opcode::Binary);
        let announced = 1000;
        for received in (10..=announced).step_by(10) {
            message.push(&[0; 10], announced - (received - 10)).unwrap();
            let (_, capacity) = message.len_and_capacity();
            assert!(capacity <= 2 * received && capacity <= announced, "{received}");
        }
        assert_eq!(message.len_and_capacity().1, announced);
    }
}
