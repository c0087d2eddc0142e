//! One observed frame (§5.2): every header bit, valid or not, and the payload as it was on the wire. The server's
//! [`FrameHeader`](crate::ws::frame::FrameHeader) represents only valid headers. A [`Header`] is for debugging, so it
//! can also be invalid or incomplete.

use super::MAX_SHOWN;
use super::escape::{hex, quoted, start_of};
use crate::ws::close::CloseFrame;
use crate::ws::frame::{MAX_HEADER, Opcode, Role};
use crate::ws::mask;

/// The most reads or writes that a record lists. A frame sent byte by byte must not grow its record without bound.
pub const MAX_PARTS: usize = 16;
/// The most characters in a text excerpt. A binary excerpt has at most `EXCERPT_BYTES` bytes.
const EXCERPT: usize = 60;
const EXCERPT_BYTES: usize = 16;

/// The reads (client bytes) or writes (server bytes) that carried a frame or an HTTP head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    pub count: u64,
    /// The first [`MAX_PARTS`] parts: the number of the read or write, counted per connection from 1, and how many
    /// bytes of this frame or head it carried.
    pub listed: Vec<(u64, u64)>,
}

/// A frame, possibly incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub from: Role,
    /// The frame's number among all frames from the same endpoint, from 1.
    pub number: u64,
    pub header: Header,
    /// The payload length in the header; 0 if the length field is incomplete.
    pub payload_len: u64,
    /// The first [`MAX_SHOWN`] bytes of the payload as they were on the wire: still masked if the frame is masked.
    pub wire: Vec<u8>,
    /// Number of payload bytes observed so far.
    pub received: u64,
    /// `None` for a control frame, a stray continuation, or an invalid or incomplete header.
    pub place: Option<Place>,
    pub parts: Parts,
}

/// The position of a data frame within its message (§5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The message's number among all messages from the same endpoint, from 1.
    pub message: u64,
    /// The fragment's number within the message, from 1.
    pub fragment: u64,
    pub is_last: bool,
}

/// The bytes of a frame header (§5.2), possibly incomplete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    // Stored inline to avoid a heap allocation per frame.
    bytes: [u8; MAX_HEADER],
    len: u8,
}

/// How the payload length is encoded (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthForm {
    /// The low seven bits of the second byte are the length.
    Bits7,
    /// The seven length bits are 126, and the next two bytes are the length.
    Bits16,
    /// The seven length bits are 127, and the next eight bytes are the length.
    Bits64,
}

impl Header {
    /// Appends bytes, up to the maximum header length.
    pub fn push(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        // Bytes that do not fit belong to the payload.
        let appended = bytes.len().min(MAX_HEADER - len);
        self.bytes[len..len + appended].copy_from_slice(&bytes[..appended]);
        self.len += appended as u8;
    }

    /// The size of the complete header: two bytes, plus the extended length and masking key that those bytes call for.
    pub fn size(&self) -> usize {
        2 + self.length_form().size() + if self.is_masked() { 4 } else { 0 }
    }

    /// Drops any bytes that follow the header.
    pub fn cut_to_size(&mut self) {
        let len = usize::from(self.len).min(self.size());
        self.bytes[len..].fill(0);
        self.len = len as u8;
    }

    /// The encoded payload length, even if the encoding is not minimal; `None` if length bytes are missing.
    pub fn payload_len(&self) -> Option<u64> {
        let long = self.long_length();
        match self.length_form() {
            LengthForm::Bits7 => self.bytes().get(1).map(|_| u64::from(self.short_length())),
            // §5.2: "in network byte order", so the first byte is the most significant.
            form => (long.len() == form.size()).then(|| long.iter().fold(0, |len, byte| len << 8 | u64::from(*byte))),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn byte(&self, index: usize) -> u8 {
        // A missing byte reads as 0, the neutral value: no FIN, no mask, zero length.
        self.bytes().get(index).copied().unwrap_or_default()
    }

    pub fn fin(&self) -> bool {
        self.byte(0) & 0x80 != 0
    }

    /// The three reserved bits, with RSV1 as the highest.
    pub fn rsv(&self) -> u8 {
        self.byte(0) >> 4 & 0x7
    }

    /// The four opcode bits, even if the opcode is undefined.
    pub fn opcode(&self) -> u8 {
        self.byte(0) & 0xf
    }

    /// The opcode's name in capitals; `RESERVED` for an undefined opcode.
    pub fn name(&self) -> &'static str {
        match Opcode::from_bits(self.opcode()) {
            Ok(opcode) => opcode.name(),
            Err(_) => "RESERVED",
        }
    }

    pub fn is_masked(&self) -> bool {
        self.byte(1) & 0x80 != 0
    }

    /// The seven length bits: a length up to 125, or 126 or 127 if an extended length follows.
    pub fn short_length(&self) -> u8 {
        self.byte(1) & 0x7f
    }

    pub fn length_form(&self) -> LengthForm {
        match self.short_length() {
            126 => LengthForm::Bits16,
            127 => LengthForm::Bits64,
            _ => LengthForm::Bits7,
        }
    }

    /// The bytes of the extended length received so far; empty for the 7-bit form.
    pub fn long_length(&self) -> &[u8] {
        let bytes = self.bytes().get(2..).unwrap_or_default();
        &bytes[..bytes.len().min(self.length_form().size())]
    }

    /// The masking key, if the frame is masked and the key is complete.
    pub fn masking_key(&self) -> Option<[u8; 4]> {
        // §5.2: the masking key follows the payload length, which extends 0, 2 or 8 bytes past the second byte.
        let at = 2 + self.length_form().size();
        self.is_masked().then(|| self.bytes().get(at..)?.first_chunk().copied()).flatten()
    }
}

impl LengthForm {
    /// Size of the extended length in bytes.
    pub fn size(self) -> usize {
        match self {
            LengthForm::Bits7 => 0,
            LengthForm::Bits16 => 2,
            LengthForm::Bits64 => 8,
        }
    }

    pub fn bits(self) -> u8 {
        match self {
            LengthForm::Bits7 => 7,
            LengthForm::Bits16 => 16,
            LengthForm::Bits64 => 64,
        }
    }
}

impl Frame {
    /// Returns the bytes of [`Frame::wire`] unmasked (§5.3).
    pub fn unmasked(&self) -> Vec<u8> {
        let mut payload = self.wire.clone();
        if let Some(key) = self.header.masking_key() {
            // `wire` starts at the first payload byte, so unmasking starts at the first byte of the key (§5.3).
            mask::apply(&mut payload, key, 0);
        }
        payload
    }

    /// A readable excerpt from the start of the payload: a close code and reason, text, or hex bytes.
    pub fn excerpt(&self) -> String {
        let payload = self.unmasked();
        if payload.is_empty() {
            return String::new();
        }
        // §5.5.1: the body of a Close is a code and UTF-8 text. An invalid body is shown as hex bytes.
        if self.header.opcode() == Opcode::Close as u8
            && let Ok(CloseFrame { code: Some(code), reason }) = CloseFrame::parse(&payload)
        {
            let reason = if reason.is_empty() { String::new() } else { format!(" {}", quoted(reason)) };
            return format!("{}{reason}", code.get());
        }
        // Add an ellipsis if the record holds fewer payload bytes than the header's length.
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

    /// The payload as text; `None` if the opcode rules out text or the payload is not valid UTF-8.
    pub fn text<'p>(&self, payload: &'p [u8]) -> Option<&'p str> {
        // Without FIN, a character may continue in the next fragment (§5.6).
        let is_shown_whole = self.received as usize <= MAX_SHOWN && self.is_complete() && self.header.fin();
        if [Opcode::Binary, Opcode::Close].map(|opcode| opcode as u8).contains(&self.header.opcode()) {
            return None;
        }
        match std::str::from_utf8(payload) {
            Ok(text) => Some(text),
            // A character cut off at the end of the record or fragment is not the sender's error.
            Err(error) if error.error_len().is_none() && !is_shown_whole => {
                std::str::from_utf8(&payload[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        }
    }

    pub fn is_complete(&self) -> bool {
        // Before the second byte arrives, `payload_len` is 0 only because the length is unknown.
        self.received == self.payload_len && self.header.bytes().len() >= 2
    }

    /// The sections of RFC 6455 that apply to this frame.
    pub fn sections(&self) -> Vec<&'static str> {
        let mut sections = vec!["5.2"];
        if self.header.is_masked() {
            sections.push("5.3");
        }
        // §5.4 (fragmentation) does not apply to a message sent in one frame.
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
    /// Adds `len` bytes that belong to the read or write with this number.
    pub fn add(&mut self, number: u64, len: usize) {
        match self.listed.last_mut() {
            // A frame's header and payload are added separately, often from the same read or write.
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
