//! §5.4 fragmentation, §5.6 data frames, §8.1 UTF-8: the payload of frames becomes a [`Message`].
//!
//! The [`Assembler`] takes unmasked payload as it comes, in pieces of any size, and gives the message when its last
//! byte is in. It does not know headers: `protocol.rs` has judged order and limits before a byte gets here.
//!
//! ```text
//!   a frame               its payload  checked    cut
//!   Text                  48 c3        "H"        c3
//!   Continuation          a9 e2 82     "Hé"       e2 82
//!   Continuation, FIN     ac 21        "Hé€!"
//! ```
//!
//! The subtle thing: text is checked as it streams in, so that a bad byte is found at once and no byte is checked
//! twice. What is valid goes into a `String`, which needs no second look at the end; at most three bytes of a
//! character that a cut went through wait beside it. A message that lies whole in one read is never copied at all.

use std::borrow::Cow;

use super::close::ProtocolError;

/// Text or bytes: what a message is, fixed by the opcode of its first frame (§5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// Opcode 1: UTF-8.
    Text,
    /// Opcode 2: anything.
    Binary,
}

/// A whole message. Borrowed where it lay in one piece in the bytes that were received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Valid UTF-8.
    Text(Cow<'a, str>),
    /// Any bytes.
    Binary(Cow<'a, [u8]>),
}

/// What has come of an unfinished message. Holds no memory between messages.
///
/// ```
/// use wirechat::ws::message::{Assembler, Message, MessageKind};
/// let mut assembler = Assembler::default();
/// assembler.begin_frame(Some(MessageKind::Text));
/// assembler.push(b"h\xc3", 2).unwrap(); // half of an é
/// assembler.begin_frame(None); // a continuation
/// assembler.push(b"\xa9", 1).unwrap();
/// assert_eq!((assembler.fragments(), assembler.received()), (2, 3));
/// assert_eq!(assembler.finish(), Ok(Message::Text("hé".into())));
/// ```
#[derive(Debug, Default)]
pub struct Assembler {
    open: Option<Open>,
    fragments: u32,
}

#[derive(Debug)]
enum Open {
    Text { checked: String, cut: CutCharacter },
    Binary(Vec<u8>),
}

impl Assembler {
    /// Whether a message has begun and not ended, so that a continuation must come next (§5.4).
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// How many frames the open message has so far.
    pub fn fragments(&self) -> u32 {
        self.fragments
    }

    /// How many bytes the open message has so far.
    pub fn received(&self) -> usize {
        match &self.open {
            None => 0,
            Some(Open::Text { checked, cut }) => checked.len() + cut.len,
            Some(Open::Binary(bytes)) => bytes.len(),
        }
    }

    /// How much memory the open message holds, in bytes.
    pub fn capacity(&self) -> usize {
        match &self.open {
            None => 0,
            Some(Open::Text { checked, .. }) => checked.capacity(),
            Some(Open::Binary(bytes)) => bytes.capacity(),
        }
    }

    /// Counts one more frame; the first, with a kind, opens the message.
    pub fn begin_frame(&mut self, first: Option<MessageKind>) {
        debug_assert_eq!(first.is_none(), self.is_open(), "§5.4: judged before");
        self.open = match first {
            None => self.open.take(),
            Some(MessageKind::Text) => Some(Open::Text { checked: String::new(), cut: CutCharacter::default() }),
            Some(MessageKind::Binary) => Some(Open::Binary(Vec::new())),
        };
        self.fragments += 1;
    }

    /// Takes unmasked payload. `expected` is how many bytes of this frame are still to come, these included.
    ///
    /// # Errors
    /// [`ProtocolError::TextNotUtf8`] at the first byte that no valid text can have there.
    pub fn push(&mut self, payload: &[u8], expected: usize) -> Result<(), ProtocolError> {
        debug_assert!(payload.len() <= expected && self.is_open());
        match &mut self.open {
            Some(Open::Text { checked, cut }) => {
                let (len, spare) = (checked.len(), checked.capacity() - checked.len());
                checked.reserve_exact(growth(len, spare, payload.len() + cut.len, expected + cut.len));
                let rest = cut.complete(payload, checked)?;
                let (whole, tail) = split_cut_character(rest);
                checked.push_str(std::str::from_utf8(whole).map_err(|_| ProtocolError::TextNotUtf8)?);
                cut.begin(tail)
            }
            Some(Open::Binary(bytes)) => {
                let (len, spare) = (bytes.len(), bytes.capacity() - bytes.len());
                bytes.reserve_exact(growth(len, spare, payload.len(), expected));
                bytes.extend_from_slice(payload);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Ends the message after its last frame.
    ///
    /// # Errors
    /// [`ProtocolError::TextNotUtf8`] if text ends inside a character.
    pub fn finish<'a>(&mut self) -> Result<Message<'a>, ProtocolError> {
        self.fragments = 0;
        match self.open.take() {
            Some(Open::Text { cut, .. }) if cut.len > 0 => Err(ProtocolError::TextNotUtf8),
            Some(Open::Text { checked, .. }) => Ok(Message::Text(Cow::Owned(checked))),
            Some(Open::Binary(bytes)) => Ok(Message::Binary(Cow::Owned(bytes))),
            None => Ok(Message::Binary(Cow::Borrowed(&[]))),
        }
    }

    /// Gives up an open message and its memory.
    pub fn clear(&mut self) {
        *self = Assembler::default();
    }
}

/// A message that lies whole in one piece of `payload`: nothing to assemble, nothing copied.
///
/// # Errors
/// [`ProtocolError::TextNotUtf8`]
///
/// ```
/// use wirechat::ws::{close::ProtocolError, message::{self, MessageKind}};
/// assert!(message::whole(MessageKind::Binary, b"\xff").is_ok());
/// assert_eq!(message::whole(MessageKind::Text, b"\xff"), Err(ProtocolError::TextNotUtf8));
/// ```
pub fn whole(kind: MessageKind, payload: &[u8]) -> Result<Message<'_>, ProtocolError> {
    match kind {
        MessageKind::Text => match std::str::from_utf8(payload) {
            Ok(text) => Ok(Message::Text(Cow::Borrowed(text))),
            Err(_) => Err(ProtocolError::TextNotUtf8),
        },
        MessageKind::Binary => Ok(Message::Binary(Cow::Borrowed(payload))),
    }
}

/// How much memory to ask for. It grows with what has been *received*, at most to twice that, so that an announced
/// length costs nothing; and never past what the frame has announced, so that a message in one frame fits exactly.
fn growth(len: usize, spare: usize, needed: usize, expected: usize) -> usize {
    if spare >= needed { 0 } else { needed.max(len.min(expected)) }
}

/// Splits off, unchecked, a character at the end of `bytes` whose last bytes are missing.
fn split_cut_character(bytes: &[u8]) -> (&[u8], &[u8]) {
    // A first byte has as many leading ones as its character has bytes; a byte that continues one has a single one.
    let is_first = |back: &usize| bytes[bytes.len() - back].leading_ones() >= 2;
    match (1..=bytes.len().min(3)).find(is_first) {
        Some(back) if bytes[bytes.len() - back].leading_ones() as usize > back => bytes.split_at(bytes.len() - back),
        _ => (bytes, &[]),
    }
}

/// The first bytes of a character whose last ones have not come yet: at most three between calls.
#[derive(Debug, Default)]
struct CutCharacter {
    bytes: [u8; 4],
    len: usize,
}

impl CutCharacter {
    /// Keeps the start of a character.
    fn begin(&mut self, tail: &[u8]) -> Result<(), ProtocolError> {
        for &byte in tail {
            self.add(byte)?;
        }
        Ok(())
    }

    /// Completes the character from `payload` and appends it to `text`; returns what is left of `payload`.
    fn complete<'a>(&mut self, payload: &'a [u8], text: &mut String) -> Result<&'a [u8], ProtocolError> {
        let mut rest = payload;
        while self.len > 0 {
            let Some((&byte, after)) = rest.split_first() else {
                break;
            };
            rest = after;
            if let Some(character) = self.add(byte)? {
                text.push(character);
                self.len = 0;
            }
        }
        Ok(rest)
    }

    /// Adds a byte. The standard library tells "wrong" from "not complete yet": the latter has no `error_len`.
    fn add(&mut self, byte: u8) -> Result<Option<char>, ProtocolError> {
        // Never more than four: by then the character is complete, or wrong.
        self.bytes[self.len] = byte;
        self.len += 1;
        match std::str::from_utf8(&self.bytes[..self.len]) {
            Ok(text) => Ok(text.chars().next()),
            Err(error) if error.error_len().is_none() => Ok(None),
            Err(_) => Err(ProtocolError::TextNotUtf8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::{assert_drawn, hex};

    fn assemble(pieces: &[&[u8]]) -> Result<String, ProtocolError> {
        let mut assembler = Assembler::default();
        assembler.begin_frame(Some(MessageKind::Text));
        for piece in pieces {
            assembler.push(piece, piece.len())?;
        }
        match assembler.finish()? {
            Message::Text(text) => Ok(text.into_owned()),
            Message::Binary(_) => panic!("text was begun"),
        }
    }

    #[test]
    fn the_picture_is_true() {
        let mut picture = format!("  {:22}{:13}{:11}cut", "a frame", "its payload", "checked");
        let mut assembler = Assembler::default();
        for (header, kind, payload) in [
            ("Text", Some(MessageKind::Text), &b"H\xc3"[..]),
            ("Continuation", None, b"\xa9\xe2\x82"),
            ("Continuation, FIN", None, b"\xac!"),
        ] {
            assembler.begin_frame(kind);
            assembler.push(payload, payload.len()).unwrap();
            let Some(Open::Text { checked, cut }) = &assembler.open else { panic!("text is open") };
            let (checked, cut) = (format!("{checked:?}"), hex(&cut.bytes[..cut.len]));
            picture += &format!("\n  {header:22}{:13}{checked:11}{cut}", hex(payload));
        }
        assert_drawn(include_str!("message.rs"), &picture);
        assert_eq!(assembler.finish(), Ok(Message::Text("Hé€!".into())));
    }

    /// One character of each length, and the edges of what UTF-8 can say, noncharacters included.
    const VALID: &str = "a\u{7f}\u{80}é\u{7ff}\u{800}€\u{d7ff}\u{e000}\u{fffe}\u{ffff}\u{10000}😀\u{10ffff}";

    #[test]
    fn rfc_8_1_text_cut_at_any_two_places_is_the_same_text() {
        let bytes = VALID.as_bytes();
        for second in 0..=bytes.len() {
            for first in 0..=second {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(assemble(&pieces).as_deref(), Ok(VALID), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn rfc_8_1_a_wrong_byte_is_found_as_soon_as_it_comes() {
        // (bytes, how many of them can still begin valid text)
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
        for (bytes, good) in cases {
            let mut assembler = Assembler::default();
            assembler.begin_frame(Some(MessageKind::Text));
            for (at, byte) in bytes.iter().enumerate().take(good + 1) {
                let verdict = assembler.push(&[*byte], 1);
                assert_eq!(verdict.is_ok(), at < good, "{bytes:02x?} at {at}");
            }
            assert_eq!(assemble(&[bytes]), Err(ProtocolError::TextNotUtf8), "{bytes:02x?} in one piece");
            assert_eq!(whole(MessageKind::Text, bytes), Err(ProtocolError::TextNotUtf8), "{bytes:02x?} whole");
        }
    }

    #[test]
    fn rfc_8_1_text_must_not_end_inside_a_character() {
        for len in 1..4 {
            assert_eq!(assemble(&["😀".as_bytes().split_at(len).0]), Err(ProtocolError::TextNotUtf8));
        }
    }

    #[test]
    fn rfc_5_4_binary_is_joined_and_not_checked() {
        let mut assembler = Assembler::default();
        assembler.begin_frame(Some(MessageKind::Binary));
        assembler.push(b"\xff\xfe", 2).unwrap();
        assembler.begin_frame(None);
        assembler.push(b"", 0).unwrap();
        assembler.begin_frame(None);
        assembler.push(b"\xc0", 1).unwrap();
        assert_eq!((assembler.fragments(), assembler.received()), (3, 3));
        assert_eq!(assembler.finish(), Ok(Message::Binary(Cow::Owned(b"\xff\xfe\xc0".to_vec()))));
        assert_eq!((assembler.is_open(), assembler.fragments(), assembler.capacity()), (false, 0, 0));
    }

    #[test]
    fn memory_follows_what_is_received_and_ends_at_what_was_announced() {
        let mut assembler = Assembler::default();
        assembler.begin_frame(Some(MessageKind::Binary));
        let announced = 1000;
        for received in (10..=announced).step_by(10) {
            assembler.push(&[0; 10], announced - (received - 10)).unwrap();
            assert!(assembler.capacity() <= 2 * received && assembler.capacity() <= announced, "{received}");
        }
        assert_eq!(assembler.capacity(), announced);
    }
}
