//! A frame as observed on the wire (§5.2). The server's [`FrameHeader`](crate::ws::frame::FrameHeader) represents only
//! valid headers. A [`Header`] is for debugging, so it may also be invalid or incomplete.

use super::MAX_SHOWN_BYTES;
use super::escape::{first_chars, quote, spaced_hex};
use super::inflated::InflatedPayload;
use crate::ws::close::CloseFrame;
use crate::ws::frame::{MAX_HEADER_SIZE, Opcode, Role};
use crate::ws::mask;

/// Maximum number of reads or writes listed per record: a frame sent byte by byte must not make its record huge.
pub const MAX_PARTS: usize = 16;
/// Maximum number of characters in an excerpt of a text payload.
const MAX_TEXT_EXCERPT: usize = 60;
const MAX_HEX_EXCERPT: usize = 16;

/// Lists the reads (for a client's bytes) or writes (for the server's bytes) that carried a frame or an HTTP head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    pub count: u64,
    /// For each of the first [`MAX_PARTS`] reads or writes: its number, and how many bytes of the frame or HTTP head it
    /// carried. A connection's first read has number 1, and so does its first write.
    pub listed: Vec<(u64, u64)>,
}

/// A frame, possibly incomplete: the tap may report a frame before its last byte has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub from: Role,
    /// The frame's number among all frames from the same endpoint, starting at 1.
    pub number: u64,
    pub header: Header,
    /// The payload length in the header; 0 if the length field is incomplete.
    pub payload_len: u64,
    /// The first [`MAX_SHOWN_BYTES`] payload bytes, still masked if the frame is masked. The tap redacts any secrets in
    /// these bytes before it reports the frame.
    pub wire: Vec<u8>,
    /// Number of payload bytes that the tap has observed; less than `payload_len` in an incomplete frame.
    pub received: u64,
    /// The frame's position in its message. `None` for a control frame, a continuation frame outside a fragmented
    /// message, and a frame whose header is invalid or incomplete.
    pub position: Option<Position>,
    pub parts: Parts,
    /// The inflated payload, if the frame belongs to a compressed message.
    pub inflated: Option<InflatedPayload>,
}

/// The position of a data frame within its message. Control frames between fragments do not count (§5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The message's number among those that the tap observed from the same endpoint, starting at 1.
    pub message: u64,
    /// The fragment's number within its message, starting at 1.
    pub fragment: u64,
    pub is_last: bool,
}

/// The bytes of a frame header (§5.2), possibly incomplete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    // An array avoids a heap allocation per frame.
    bytes: [u8; MAX_HEADER_SIZE],
    len: u8,
}

/// How the payload length is encoded (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LengthForm {
    /// A length of 0 to 125, in the low seven bits of the header's second byte.
    Bits7,
    /// A 16-bit length after the second byte, whose low seven bits are 126.
    Bits16,
    /// A 64-bit length after the second byte, whose low seven bits are 127.
    Bits64,
}

impl Header {
    pub fn push(&mut self, bytes: &[u8]) {
        let len = usize::from(self.len);
        // No header is longer than `MAX_HEADER_SIZE` bytes, so ignore further bytes: they cannot be part of the header.
        let appended = bytes.len().min(MAX_HEADER_SIZE - len);
        self.bytes[len..len + appended].copy_from_slice(&bytes[..appended]);
        self.len += appended as u8;
    }

    /// The size of the complete header, according to its first two bytes.
    pub fn size(&self) -> usize {
        2 + self.length_form().size() + if self.is_masked() { 4 } else { 0 }
    }

    pub fn truncate_to_size(&mut self) {
        let len = usize::from(self.len).min(self.size());
        self.bytes[len..].fill(0);
        self.len = len as u8;
    }

    /// The payload length, even if not minimally encoded; `None` if the length field is incomplete.
    pub fn payload_len(&self) -> Option<u64> {
        let extended = self.extended_length();
        match self.length_form() {
            LengthForm::Bits7 => self.bytes().get(1).map(|_| u64::from(self.length_7())),
            // §5.2: lengths are "in network byte order", so the first byte is the most significant.
            form => (extended.len() == form.size())
                .then(|| extended.iter().fold(0, |len, byte| len << 8 | u64::from(*byte))),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn byte(&self, index: usize) -> u8 {
        // Treat a header byte that has not arrived yet as 0, so that the frame shows no FIN, no mask and no length.
        self.bytes().get(index).copied().unwrap_or_default()
    }

    pub fn fin(&self) -> bool {
        self.byte(0) & 0x80 != 0
    }

    /// The three reserved bits as a number from 0 to 7; RSV1 is the highest bit.
    pub fn rsv(&self) -> u8 {
        self.byte(0) >> 4 & 0x7
    }

    pub fn rsv_names(&self) -> impl Iterator<Item = &'static str> {
        let rsv = self.rsv();
        [(4, "RSV1"), (2, "RSV2"), (1, "RSV3")].into_iter().filter(move |(bit, _)| rsv & bit != 0).map(|(_, name)| name)
    }

    /// The opcode, which may be one that the RFC reserves (§5.2).
    pub fn opcode(&self) -> u8 {
        self.byte(0) & 0xf
    }

    /// The opcode's name in capitals, such as `TEXT`; `RESERVED` for an opcode that the RFC reserves.
    pub fn name(&self) -> &'static str {
        Opcode::from_bits(self.opcode()).map_or("RESERVED", opcode_name)
    }

    pub fn is_masked(&self) -> bool {
        self.byte(1) & 0x80 != 0
    }

    /// The low seven bits of the header's second byte: the payload length, or 126 or 127 before an extended length.
    pub fn length_7(&self) -> u8 {
        self.byte(1) & 0x7f
    }

    pub fn length_form(&self) -> LengthForm {
        match self.length_7() {
            126 => LengthForm::Bits16,
            127 => LengthForm::Bits64,
            _ => LengthForm::Bits7,
        }
    }

    /// The bytes of the extended payload length, possibly incomplete; empty for a 7-bit length.
    pub fn extended_length(&self) -> &[u8] {
        let bytes = self.bytes().get(2..).unwrap_or_default();
        &bytes[..bytes.len().min(self.length_form().size())]
    }

    /// The masking key; `None` if the frame is not masked or the key is incomplete.
    pub fn masking_key(&self) -> Option<[u8; 4]> {
        // §5.2: the masking key follows the extended length.
        let at = 2 + self.length_form().size();
        self.is_masked().then(|| self.bytes().get(at..)?.first_chunk().copied()).flatten()
    }
}

impl LengthForm {
    /// Size of the extended length: 0, 2 or 8 bytes.
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
    pub fn unmasked_payload(&self) -> Vec<u8> {
        let mut payload = self.wire.clone();
        if let Some(key) = self.header.masking_key() {
            // `wire` starts at the first payload byte, so unmasking starts at the first byte of the key (§5.3).
            mask::apply(&mut payload, key, 0);
        }
        payload
    }

    /// The start of the payload for display: a close code and reason, text, or hex bytes.
    pub fn excerpt(&self) -> String {
        let inflated = self.inflated.as_ref().filter(|inflated| !inflated.is_broken);
        let payload = inflated.map_or_else(|| self.unmasked_payload(), |inflated| inflated.prefix.clone());
        if payload.is_empty() {
            return String::new();
        }
        // §5.5.1: the body of a Close is a code and UTF-8 text. Show an invalid body as hex bytes.
        if self.header.opcode() == Opcode::Close as u8
            && let Ok(CloseFrame { code: Some(code), reason }) = CloseFrame::parse(&payload)
        {
            let reason = if reason.is_empty() { String::new() } else { format!(" {}", quote(reason)) };
            return format!("{}{reason}", code.get());
        }
        // Show an ellipsis if the record holds only the start of the payload.
        let is_cut = inflated.map_or(self.payload_len, |inflated| inflated.len) > payload.len() as u64;
        match self.text(&payload) {
            Some(text) => {
                let shown = first_chars(text, MAX_TEXT_EXCERPT);
                let dots = if is_cut || shown.len() < text.len() { "…" } else { "" };
                format!("{}{dots}", quote(shown))
            }
            None => {
                let shown = &payload[..payload.len().min(MAX_HEX_EXCERPT)];
                let dots = if is_cut || shown.len() < payload.len() { " …" } else { "" };
                format!("{}{dots}", spaced_hex(shown))
            }
        }
    }

    /// Returns the payload as text; `None` for a Binary or Close frame, and for a payload that is not UTF-8.
    pub fn text<'p>(&self, payload: &'p [u8]) -> Option<&'p str> {
        // §5.6: a fragment without FIN may end inside a character, which then continues in the next fragment.
        let len = self.inflated.as_ref().map_or(self.received, |inflated| inflated.len);
        let is_shown_whole = len as usize <= MAX_SHOWN_BYTES && self.is_complete() && self.header.fin();
        if self.inflated.as_ref().is_some_and(|inflated| inflated.is_broken) {
            return None;
        }
        if [Opcode::Binary, Opcode::Close].map(|opcode| opcode as u8).contains(&self.header.opcode()) {
            return None;
        }
        match std::str::from_utf8(payload) {
            Ok(text) => Some(text),
            // Omit an incomplete last character: it may continue beyond the end of the record or of the fragment.
            Err(error) if error.error_len().is_none() && !is_shown_whole => {
                std::str::from_utf8(&payload[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        }
    }

    pub fn is_complete(&self) -> bool {
        // While the header is incomplete, `payload_len` and `received` may both be 0, so check the header too.
        self.received == self.payload_len && self.header.bytes().len() == self.header.size()
    }

    pub fn sections(&self) -> Vec<&'static str> {
        let mut sections = vec!["5.2"];
        if self.header.is_masked() {
            sections.push("5.3");
        }
        // Cite §5.4 (fragmentation) only if the message consists of more than one frame.
        if self.position.is_some_and(|position| position.fragment > 1 || !position.is_last) {
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
    pub fn add(&mut self, number: u64, len: usize) {
        match self.listed.last_mut() {
            // The scanner calls `add` for a frame's header and again for its payload. If both came from the same read
            // or write, count their bytes in a single entry.
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

pub fn opcode_name(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::Continuation => "CONT",
        Opcode::Text => "TEXT",
        Opcode::Binary => "BINARY",
        Opcode::Close => "CLOSE",
        Opcode::Ping => "PING",
        Opcode::Pong => "PONG",
    }
}
