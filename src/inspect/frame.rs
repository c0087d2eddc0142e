//! One frame as it passed: every bit of its header, however wrong, and its payload as it was on the wire.
//!
//! [`FrameHeader`](crate::ws::frame::FrameHeader) is what a server needs to know of a sound frame. A [`Header`] is for
//! the eye: it also reads what is broken, and what has not come whole.

use super::MAX_SHOWN;
use super::visible::{hex, quoted, start_of};
use crate::ws::close::CloseFrame;
use crate::ws::frame::{MAX_HEADER, Opcode, Role};
use crate::ws::mask;

/// How many reads or writes a record lists; their number is exact all the same.
pub const MAX_PARTS: usize = 16;
/// How much of a payload is its excerpt: characters of text, or bytes.
const EXCERPT: usize = 60;
const EXCERPT_BYTES: usize = 16;

/// The reads (of what the client sent) or writes (of what the server sent) that something came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// How many there were.
    pub count: u64,
    /// The first [`MAX_PARTS`] of them: the number of the read or write on its connection, from 1, and how many of its
    /// bytes belong to this.
    pub listed: Vec<(u64, u64)>,
}

/// A frame, or as much of it as came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Who sent it.
    pub sender: Role,
    /// Which frame of its sender this is, from 1.
    pub number: u64,
    /// The bytes of its header, as far as they came.
    pub header: Header,
    /// How long the payload is to be; 0 if the header does not tell.
    pub payload_len: u64,
    /// The first bytes of the payload as they were on the wire: masked, if there is a key.
    pub wire: Vec<u8>,
    /// How many bytes of the payload came.
    pub received: u64,
    /// Where it stands in its message; `None` for a control frame, and for what is no frame at all.
    pub place: Option<Place>,
    /// What it came in.
    pub parts: Parts,
}

/// Where a data frame stands in its message (§5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which message of its sender this is, from 1.
    pub message: u64,
    /// Which fragment of the message this is, from 1.
    pub fragment: u64,
    /// Whether it is the last.
    pub is_last: bool,
}

/// The bytes of a frame header, of which not all need to have come (§5.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: u8,
}

/// How the length of a payload is written (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthForm {
    /// In the seven bits of the second byte.
    Bits7,
    /// In two bytes behind a 126.
    Bits16,
    /// In eight bytes behind a 127.
    Bits64,
}

impl Header {
    /// Takes the next bytes of a header. More than the longest header has are not taken.
    pub fn push(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        let taken = bytes.len().min(MAX_HEADER - len);
        self.bytes[len..len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken as u8;
    }

    /// How many bytes it has in all, as far as its own bits tell: two, a longer length, a masking key.
    pub fn size(&self) -> usize {
        2 + self.length_form().size() + if self.is_masked() { 4 } else { 0 }
    }

    /// Gives up the bytes behind its own end.
    pub fn cut_to_size(&mut self) {
        let len = usize::from(self.len).min(self.size());
        self.bytes[len..].fill(0);
        self.len = len as u8;
    }

    /// The length of the payload, as its bits have it; `None` if not all of them came.
    pub fn payload_len(&self) -> Option<u64> {
        let long = self.long_length();
        match self.length_form() {
            LengthForm::Bits7 => self.bytes().get(1).map(|_| u64::from(self.short_length())),
            form => (long.len() == form.size()).then(|| long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte))),
        }
    }

    /// The bytes that came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn byte(&self, index: usize) -> u8 {
        self.bytes().get(index).copied().unwrap_or_default()
    }

    /// FIN: this is the last fragment of its message.
    pub fn fin(&self) -> bool {
        self.byte(0) & 0x80 != 0
    }

    /// The three reserved bits, RSV1 the highest of them.
    pub fn rsv(&self) -> u8 {
        self.byte(0) >> 4 & 0x7
    }

    /// The four opcode bits, whatever they say.
    pub fn opcode(&self) -> u8 {
        self.byte(0) & 0xf
    }

    /// The name of the opcode, in capitals; `RESERVED` for one that has none.
    pub fn name(&self) -> &'static str {
        match Opcode::from_bits(self.opcode()) {
            Ok(opcode) => opcode.name(),
            Err(_) => "RESERVED",
        }
    }

    /// The mask bit.
    pub fn is_masked(&self) -> bool {
        self.byte(1) & 0x80 != 0
    }

    /// The seven length bits: a length up to 125, or 126 or 127 for a longer form.
    pub fn short_length(&self) -> u8 {
        self.byte(1) & 0x7f
    }

    /// How the length is written.
    pub fn length_form(&self) -> LengthForm {
        match self.short_length() {
            126 => LengthForm::Bits16,
            127 => LengthForm::Bits64,
            _ => LengthForm::Bits7,
        }
    }

    /// The bytes of the longer form of the length, as far as they came; empty without one.
    pub fn long_length(&self) -> &[u8] {
        let bytes = self.bytes().get(2..).unwrap_or_default();
        &bytes[..bytes.len().min(self.length_form().size())]
    }

    /// The masking key, if there is one and all of it came.
    pub fn masking_key(&self) -> Option<[u8; 4]> {
        let at = 2 + self.length_form().size();
        self.is_masked().then(|| self.bytes().get(at..)?.first_chunk().copied()).flatten()
    }
}

impl LengthForm {
    /// How many bytes it takes beside the second byte of the header.
    pub fn size(self) -> usize {
        match self {
            LengthForm::Bits7 => 0,
            LengthForm::Bits16 => 2,
            LengthForm::Bits64 => 8,
        }
    }

    /// In how many bits the length stands.
    pub fn bits(self) -> u8 {
        match self {
            LengthForm::Bits7 => 7,
            LengthForm::Bits16 => 16,
            LengthForm::Bits64 => 64,
        }
    }
}

impl Frame {
    /// The shown bytes of the payload as they were meant (§5.3).
    pub fn unmasked(&self) -> Vec<u8> {
        let mut payload = self.wire.clone();
        if let Some(key) = self.header.masking_key() {
            mask::apply(&mut payload, key, 0);
        }
        payload
    }

    /// The beginning of a payload, as what it is: a code and a reason, text, or bytes.
    pub fn excerpt(&self) -> String {
        let payload = self.unmasked();
        if payload.is_empty() {
            return String::new();
        }
        if self.header.opcode() == Opcode::Close as u8
            && let Ok(CloseFrame { code: Some(code), reason }) = CloseFrame::parse(&payload)
        {
            let reason = if reason.is_empty() { String::new() } else { format!(" {}", quoted(reason)) };
            return format!("{}{reason}", code.get());
        }
        let is_cut = self.payload_len > payload.len() as u64;
        match self.text(&payload) {
            Some(text) => {
                let shown = start_of(text, EXCERPT);
                let dots = if is_cut || shown.len() < text.len() { "…" } else { "" };
                format!("{}{dots}", quoted(shown))
            }
            None => {
                let shown = &payload[..payload.len().min(EXCERPT_BYTES)];
                let dots = if is_cut || shown.len() < payload.len() { " …" } else { "" };
                format!("{}{dots}", hex(shown))
            }
        }
    }

    /// The payload as text, if it may be text and is. A character that the end of what is shown cuts is left out.
    pub fn text<'p>(&self, payload: &'p [u8]) -> Option<&'p str> {
        let is_shown_whole = self.received as usize <= MAX_SHOWN && self.is_complete() && self.header.fin();
        if [Opcode::Binary, Opcode::Close].map(|opcode| opcode as u8).contains(&self.header.opcode()) {
            return None;
        }
        match std::str::from_utf8(payload) {
            Ok(text) => Some(text),
            Err(error) if error.error_len().is_none() && !is_shown_whole => {
                std::str::from_utf8(&payload[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        }
    }

    /// Whether all of it came.
    pub fn is_complete(&self) -> bool {
        self.received == self.payload_len && self.header.bytes().len() >= 2
    }

    /// The sections of RFC 6455 that say how to read it.
    pub fn sections(&self) -> Vec<&'static str> {
        let mut sections = vec!["5.2"];
        if self.header.is_masked() {
            sections.push("5.3");
        }
        if self.place.is_some_and(|place| place.fragment > 1 || !place.is_last) {
            sections.push("5.4");
        }
        sections.extend(match Opcode::from_bits(self.header.opcode()) {
            Ok(Opcode::Close) => Some("5.5.1"),
            Ok(Opcode::Ping) => Some("5.5.2"),
            Ok(Opcode::Pong) => Some("5.5.3"),
            _ => None,
        });
        sections
    }
}

impl Parts {
    /// Counts `len` bytes of the read or write `number`.
    pub fn add(&mut self, number: u64, len: usize) {
        match self.listed.last_mut() {
            Some((last, bytes)) if *last == number => *bytes += len as u64,
            _ => {
                self.count += 1;
                if self.listed.len() < MAX_PARTS {
                    self.listed.push((number, len as u64));
                }
            }
        }
    }
}
