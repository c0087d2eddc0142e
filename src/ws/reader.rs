//! §5.2 again, as it arrives: a stream that is cut anywhere becomes frames, and their payload in pieces, unmasked.
//!
//! [`FrameReader`] keeps its place in the stream. It does not know what a frame is good for; the rules that depend on
//! that are asked of the caller as soon as a header can be judged.
//!
//! A masked "Hello" and an empty Ping, in four reads:
//!
//! ```text
//!   a read           kept of a header   handed on
//!   81 85 37         81 85 37
//!   fa 21 3d 7f 9f                      Text "He", first
//!   4d 51 58 89 80   89 80              Text "llo", last
//!   01 02 03 04                         Ping "", whole
//! ```
//!
//! The subtle thing: only an unfinished header is ever copied and kept. Payload is handed on as it lies in the caller's
//! buffer, however little of it there is, so nothing here grows with what a peer announces.

use super::close::ProtocolError;
use super::frame::{FrameHeader, MAX_HEADER, Opcode};
use super::mask;

/// The place in a stream of frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The bytes of a header of which not everything has come.
    header: [u8; MAX_HEADER],
    header_len: u8,
    frame: Option<OpenFrame>,
}

/// A frame whose payload is being received.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    fin: bool,
    opcode: Opcode,
    key: [u8; 4],
    received: u64,
    remaining: u64,
}

/// A piece of the payload of a frame: all of it, if it is the first and the last.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Of the frame: it is the last of its message.
    pub fin: bool,
    /// Of the frame.
    pub opcode: Opcode,
    /// The bytes, unmasked.
    pub payload: &'a [u8],
    /// The frame begins with it.
    pub is_first: bool,
    /// The frame ends with it.
    pub is_last: bool,
    /// How many bytes of the frame were still to come, these included.
    pub expected: u64,
}

impl FrameReader {
    /// Whether no frame has begun that is not read to its end.
    pub fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.header_len == 0
    }

    /// Reads the next piece of payload off the front of `input`. `None`: all of it was read, and nothing more came of
    /// it. `judge` is asked about every header before a byte of its payload is accepted; a frame that it refuses is
    /// read on all the same if it is asked for, so that it can be skipped.
    ///
    /// # Errors
    /// A rule that the header broke by itself, after which no frame can be found any more; or what `judge` said.
    ///
    /// ```
    /// use wirechat::ws::reader::FrameReader;
    /// let mut bytes = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"; // §5.7, a masked "Hello"
    /// let (mut reader, mut input) = (FrameReader::default(), &mut bytes[..8]); // not all of it has come
    /// let piece = reader.next(&mut input, |_| Ok(())).unwrap().unwrap();
    /// assert_eq!((piece.payload, piece.is_first, piece.is_last), (&b"He"[..], true, false));
    /// ```
    pub fn next<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        judge: impl FnOnce(&FrameHeader) -> Result<(), ProtocolError>,
    ) -> Result<Option<Piece<'a>>, ProtocolError> {
        if self.frame.is_none() && !input.is_empty() {
            self.read_header(input, judge)?;
        }
        let Some(mut frame) = self.frame else { return Ok(None) };
        if input.is_empty() && frame.remaining > 0 {
            return Ok(None);
        }
        let here = usize::try_from(frame.remaining).unwrap_or(usize::MAX).min(input.len());
        let payload = advance(input, here);
        mask::apply(payload, frame.key, (frame.received % 4) as usize);
        let (is_first, expected) = (frame.received == 0, frame.remaining);
        frame.received += here as u64;
        frame.remaining -= here as u64;
        self.frame = (frame.remaining > 0).then_some(frame);
        let OpenFrame { fin, opcode, .. } = frame;
        Ok(Some(Piece { fin, opcode, payload, is_first, is_last: frame.remaining == 0, expected }))
    }

    fn read_header(
        &mut self,
        input: &mut &mut [u8],
        judge: impl FnOnce(&FrameHeader) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        let kept = usize::from(self.header_len);
        let fresh = input.len().min(MAX_HEADER - kept);
        self.header[kept..kept + fresh].copy_from_slice(&input[..fresh]);
        let header = FrameHeader::parse(&self.header[..kept + fresh])?;
        let verdict = header.as_ref().map_or(Ok(()), judge);
        match header {
            Some(FrameHeader { fin, opcode, payload_len, masking_key: Some(key), size }) => {
                advance(input, size - kept);
                self.header_len = 0;
                self.frame = Some(OpenFrame { fin, opcode, key, received: 0, remaining: payload_len });
            }
            _ => {
                advance(input, fresh);
                self.header_len += fresh as u8;
            }
        }
        verdict
    }
}

/// Takes `len` bytes off the front of `input`.
fn advance<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(len);
    *input = rest;
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::{assert_drawn, hex};

    /// §5.7: a masked "Hello", then an empty ping.
    const STREAM: [u8; 17] = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x89\x80\x01\x02\x03\x04";

    #[test]
    fn rfc_5_2_payload_comes_unmasked_whatever_the_cut() {
        for cut in 0..=STREAM.len() {
            let mut bytes = STREAM;
            let (left, right) = bytes.split_at_mut(cut);
            let (mut reader, mut text, mut frames) = (FrameReader::default(), Vec::new(), Vec::new());
            for mut input in [left, right] {
                while let Some(piece) = reader.next(&mut input, |_| Ok(())).unwrap() {
                    if piece.opcode == Opcode::Text {
                        text.extend_from_slice(piece.payload);
                    }
                    frames.extend(piece.is_last.then_some(piece.opcode));
                }
            }
            assert_eq!((&text[..], &frames[..]), (&b"Hello"[..], &[Opcode::Text, Opcode::Ping][..]), "cut at {cut}");
        }
    }

    #[test]
    fn the_picture_is_true() {
        let mut picture = format!("  {:17}{:19}handed on", "a read", "kept of a header");
        let (mut bytes, mut reader) = (STREAM, FrameReader::default());
        for mut input in bytes.split_inclusive_mut(|byte| [0x37, 0x9f, 0x80].contains(byte)) {
            let (read, mut pieces) = (hex(input), Vec::new());
            while let Some(piece) = reader.next(&mut input, |_| Ok(())).unwrap() {
                let place = match (piece.is_first, piece.is_last) {
                    (true, true) => "whole",
                    (true, false) => "first",
                    (false, true) => "last",
                    (false, false) => "between",
                };
                pieces.push(format!("{:?} {:?}, {place}", piece.opcode, String::from_utf8_lossy(piece.payload)));
            }
            let kept = hex(&reader.header[..usize::from(reader.header_len)]);
            picture += &format!("\n  {read:17}{kept:19}{}", pieces.join("; "));
        }
        assert_drawn(include_str!("reader.rs"), &picture);
    }

    #[test]
    fn a_frame_that_was_refused_can_be_skipped() {
        for cut in 0..=STREAM.len() {
            let mut bytes = STREAM;
            let (left, right) = bytes.split_at_mut(cut);
            let mut reader = FrameReader::default();
            let mut refused = 0;
            let mut last = None;
            for mut input in [left, right] {
                while !input.is_empty() {
                    let judge = |header: &FrameHeader| match header.opcode {
                        Opcode::Text if refused == 0 => Err(ProtocolError::UnsupportedData),
                        _ => Ok(()),
                    };
                    match reader.next(&mut input, judge) {
                        Err(_) => refused += 1,
                        Ok(piece) => last = piece.map(|piece| (piece.opcode, piece.is_last)).or(last),
                    }
                }
                if let Ok(Some(piece)) = reader.next(&mut input, |_| Ok(())) {
                    last = Some((piece.opcode, piece.is_last));
                }
            }
            assert_eq!((refused, last), (1, Some((Opcode::Ping, true))), "cut at {cut}");
        }
    }
}
