//! One direction of a connection as frames, for whoever watches: nothing is unmasked, and nothing is held but the frame
//! that is passing.
//!
//! ```text
//!   Header ──all of it──▶ Payload ──last byte──▶ Header …
//!       └───a rule of §5.2 broken───▶ lost
//! ```
//!
//! The headers are judged by [`FrameHeader::parse_from`] alone. What depends on the frames before is not asked here.
//!
//! The subtle thing: a header that is wrong still says something. It is shown as its own bits have it, with the bytes
//! behind it as the payload that it claims, since the reader wants to see what the sender meant.

use super::{Frame, Head, Header, MAX_SHOWN, Parts, Place};
use crate::ws::close::ProtocolError;
use crate::ws::frame::{FrameHeader, MAX_HEADER, Opcode, Role};

/// One direction of a connection: a head, then frames.
#[derive(Debug)]
pub struct Side {
    /// Reads or writes so far.
    pub parts: u64,
    /// Its head.
    pub head: Head,
    /// What is behind the head.
    pub frames: FrameScanner,
    /// A rule was broken in the frame that is passing, which is told already.
    pub is_told: bool,
    /// No more frames can be found.
    pub is_lost: bool,
}

impl Side {
    /// Nothing has passed yet.
    pub fn new(sender: Role) -> Side {
        Side { parts: 0, head: Head::default(), frames: FrameScanner::new(sender), is_told: false, is_lost: false }
    }
}

/// The place in a stream of frames.
#[derive(Debug)]
pub struct FrameScanner {
    sender: Role,
    /// The frame that is passing.
    frame: Option<Frame>,
    /// Its header is complete.
    in_payload: bool,
    /// How many frames have begun.
    frames: u64,
    /// How many messages have begun.
    messages: u64,
    /// How many fragments of the last of them have begun, if it is not complete.
    fragments: u64,
}

/// How far a step came.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The input is used up.
    More,
    /// The end of a frame was reached.
    Complete(Frame),
    /// The header broke a rule: no frame can be found behind it.
    Lost(Frame, ProtocolError),
}

impl FrameScanner {
    /// The start of the frames of one side.
    pub fn new(sender: Role) -> FrameScanner {
        FrameScanner { sender, frame: None, in_payload: false, frames: 0, messages: 0, fragments: 0 }
    }

    /// The frame that is passing, as far as it came.
    pub fn current(&self) -> Option<&Frame> {
        self.frame.as_ref()
    }

    /// Reads off the front of `input`, which is (the rest of) the read or write `part`, to the end of a frame.
    pub fn next(&mut self, input: &mut &[u8], part: u64) -> Step {
        if input.is_empty() {
            return Step::More;
        }
        if self.frame.is_none() {
            self.frames += 1;
        }
        let mut frame = self.frame.take().unwrap_or_else(|| self.begin());
        if !self.in_payload
            && let Err(error) = self.read_header(&mut frame, input, part)
        {
            frame.header.cut_to_size();
            frame.payload_len = frame.header.payload_len().unwrap_or_default();
            read_payload(&mut frame, input, part);
            return Step::Lost(frame, error);
        }
        if self.in_payload {
            read_payload(&mut frame, input, part);
            if frame.received == frame.payload_len {
                self.in_payload = false;
                return Step::Complete(frame);
            }
        }
        self.frame = Some(frame);
        Step::More
    }

    fn begin(&self) -> Frame {
        Frame {
            sender: self.sender,
            number: self.frames,
            header: Header::default(),
            payload_len: 0,
            wire: Vec::new(),
            received: 0,
            place: None,
            parts: Parts::default(),
        }
    }

    /// Reads the header, or what came of it.
    fn read_header(&mut self, frame: &mut Frame, input: &mut &[u8], part: u64) -> Result<(), ProtocolError> {
        let before = frame.header.bytes().len();
        frame.header.push(&input[..input.len().min(MAX_HEADER)]);
        let parsed = FrameHeader::parse_from(self.sender, frame.header.bytes());
        frame.header.cut_to_size();
        let taken = frame.header.bytes().len() - before;
        frame.parts.add(part, taken);
        *input = &input[taken..];
        if let Some(header) = parsed? {
            frame.payload_len = header.payload_len;
            if header.size == frame.header.bytes().len() {
                self.in_payload = true;
                frame.place = self.place(&header);
            }
        }
        Ok(())
    }

    /// Where a frame stands in its message (§5.4).
    fn place(&mut self, header: &FrameHeader) -> Option<Place> {
        match header.opcode {
            opcode if opcode.is_control() => return None,
            Opcode::Continuation if self.fragments == 0 => return None, // of nothing
            Opcode::Continuation => self.fragments += 1,
            _ => {
                self.messages += 1;
                self.fragments = 1;
            }
        }
        let place = Place { message: self.messages, fragment: self.fragments, is_last: header.fin };
        if header.fin {
            self.fragments = 0;
        }
        Some(place)
    }
}

fn read_payload(frame: &mut Frame, input: &mut &[u8], part: u64) {
    let remaining = frame.payload_len - frame.received;
    let (payload, rest) = input.split_at(usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len()));
    let room = MAX_SHOWN - frame.wire.len();
    frame.wire.extend_from_slice(&payload[..payload.len().min(room)]);
    frame.received += payload.len() as u64;
    if !payload.is_empty() {
        frame.parts.add(part, payload.len());
    }
    *input = rest;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_true() {
        let mut scanner = FrameScanner::new(Role::Client);
        let mut place = |mut bytes: &[u8]| match scanner.next(&mut bytes, 1) {
            Step::Lost(..) => "lost",
            Step::More | Step::Complete(_) if scanner.in_payload => "Payload",
            Step::More | Step::Complete(_) => "Header",
        };
        let [start, header_read, payload_read, broken] =
            [b"\x81".as_slice(), b"\x82\0\0\0\0h", b"i", b"\x81\x05"].map(&mut place);
        let picture = format!(
            "  {start} ──all of it──▶ {header_read} ──last byte──▶ {payload_read} …\n\
             \x20     └───a rule of §5.2 broken───▶ {broken}"
        );
        crate::pictures::assert_drawn(include_str!("scan.rs"), &picture);
    }
}
