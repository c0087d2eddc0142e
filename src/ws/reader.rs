//! Reads frames (§5.2) from a byte stream that TCP may split anywhere, unmasks payload in place and returns the payload
//! in chunks. The reader stores header bytes but no payload, so an announced length costs no memory.
//! Example: a masked "Hello" (§5.7) and an empty Ping arrive in four reads.
//!
//! ```text
//!   read             kept header bytes  returned
//!   81 85 37         81 85 37
//!   fa 21 3d 7f 9f                      Text "He", first
//!   4d 51 58 89 80   89 80              Text "llo", last
//!   01 02 03 04                         Ping "", whole
//! ```

use super::close::ProtocolError;
use super::frame::{FrameHeader, MAX_HEADER_SIZE, Role};
use super::mask;

#[derive(Debug, Default)]
pub struct FrameReader {
    header: [u8; MAX_HEADER_SIZE],
    header_len: u8,             // number of bytes in `header` while a header is incomplete, otherwise 0
    deflates: bool,             // whether the peer may set RSV1
    frame: Option<FrameHeader>, // the current frame, once its masking key is complete
    received: u64,              // number of payload bytes received of the current frame
    pub frames_received: u64,   // number of frames whose first byte has arrived, including control and invalid frames
}

pub struct Chunk<'a> {
    pub header: FrameHeader,
    pub payload: &'a [u8],
    pub is_first: bool,
    pub is_last: bool,
    pub remaining: u64, // payload bytes from the start of this chunk to the end of the frame
}

impl FrameReader {
    pub fn new(deflates: bool) -> FrameReader {
        FrameReader { deflates, ..FrameReader::default() }
    }

    pub fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.header_len == 0
    }

    /// Takes the next chunk of the current frame from `input`. After `validate` has rejected a frame, the caller can
    /// skip that frame: call `next` again with a `validate` that accepts the frame, and discard the chunks.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        validate: impl FnOnce(&FrameHeader) -> Result<(), ProtocolError>,
    ) -> Result<Option<Chunk<'a>>, ProtocolError> {
        if self.frame.is_none() && !input.is_empty() {
            // Validate before the masking key arrives, to fail early. `validate` may see the same header several times.
            self.read_header(input)?.as_ref().map_or(Ok(()), validate)?;
        }
        // If the payload is empty, the frame needs no input after its header.
        let frame = self.frame.filter(|header| !input.is_empty() || header.payload_len == 0);
        let Some(header @ FrameHeader { masking_key: Some(key), .. }) = frame else { return Ok(None) };
        let (received, remaining) = (self.received, header.payload_len - self.received);
        let len = remaining.min(input.len() as u64) as usize;
        let payload = input.split_off_mut(..len).unwrap_or_default();
        mask::apply(payload, key, (received % 4) as usize);
        let is_last = len as u64 == remaining;
        self.received += len as u64;
        self.frame.take_if(|_| is_last);
        Ok(Some(Chunk { header, payload, is_first: received == 0, is_last, remaining }))
    }

    /// Returns the header once everything except the masking key has arrived. Advances `input` past the header.
    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        let kept = usize::from(self.header_len);
        self.frames_received += u64::from(kept == 0);
        let added = input.len().min(MAX_HEADER_SIZE - kept);
        self.header[kept..kept + added].copy_from_slice(&input[..added]);
        let header = FrameHeader::parse_with_deflate(Role::Client, self.deflates, &self.header[..kept + added])?;
        self.frame = header.filter(|header| header.masking_key.is_some());
        self.received = 0;
        let size = self.frame.map_or(kept + added, |header| header.size);
        *input = &mut std::mem::take(input)[size - kept..];
        self.header_len = if self.frame.is_some() { 0 } else { size as u8 };
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Opcode;
    use super::*;
    use crate::pictures::{assert_in_module_doc, format_hex};

    /// §5.7: a masked "Hello", followed by an empty Ping.
    const STREAM: [u8; 17] = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x89\x80\x01\x02\x03\x04";

    #[test]
    fn rfc_5_2_payload_is_unmasked_wherever_the_stream_is_cut() {
        for cut in 0..=STREAM.len() {
            let mut bytes = STREAM;
            let (left, right) = bytes.split_at_mut(cut);
            let (mut reader, mut text, mut frames) = (FrameReader::default(), Vec::new(), Vec::new());
            for mut input in [left, right] {
                while let Some(chunk) = reader.next(&mut input, |_| Ok(())).unwrap() {
                    if chunk.header.opcode == Opcode::Text {
                        text.extend_from_slice(chunk.payload);
                    }
                    frames.extend(chunk.is_last.then_some(chunk.header.opcode));
                }
            }
            assert_eq!((&text[..], &frames[..]), (&b"Hello"[..], &[Opcode::Text, Opcode::Ping][..]), "cut at {cut}");
        }
    }

    #[test]
    fn picture_matches_the_code() {
        let mut picture = format!("  {:17}{:19}returned", "read", "kept header bytes");
        let (mut bytes, mut reader) = (STREAM, FrameReader::default());
        for mut input in bytes.split_inclusive_mut(|byte| [0x37, 0x9f, 0x80].contains(byte)) {
            let (read, mut chunks) = (format_hex(input), Vec::new());
            while let Some(chunk) = reader.next(&mut input, |_| Ok(())).unwrap() {
                let position = match (chunk.is_first, chunk.is_last) {
                    (true, true) => "whole",
                    (true, false) => "first",
                    (false, true) => "last",
                    (false, false) => "between",
                };
                chunks.push(format!(
                    "{:?} {:?}, {position}",
                    chunk.header.opcode,
                    String::from_utf8_lossy(chunk.payload)
                ));
            }
            let kept = format_hex(&reader.header[..usize::from(reader.header_len)]);
            picture += &format!("\n  {read:17}{kept:19}{}", chunks.join("; "));
        }
        assert_in_module_doc(include_str!("reader.rs"), &picture);
    }

    #[test]
    fn a_rejected_frame_can_be_skipped() {
        for cut in 0..=STREAM.len() {
            let mut bytes = STREAM;
            let (left, right) = bytes.split_at_mut(cut);
            let mut reader = FrameReader::default();
            let mut rejected = 0;
            let mut last = None;
            for mut input in [left, right] {
                while !input.is_empty() {
                    let validate = |header: &FrameHeader| match header.opcode {
                        Opcode::Text if rejected == 0 => Err(ProtocolError::UnsupportedData),
                        _ => Ok(()),
                    };
                    match reader.next(&mut input, validate) {
                        Err(_) => rejected += 1,
                        Ok(chunk) => last = chunk.map(|chunk| (chunk.header.opcode, chunk.is_last)).or(last),
                    }
                }
                if let Ok(Some(chunk)) = reader.next(&mut input, |_| Ok(())) {
                    last = Some((chunk.header.opcode, chunk.is_last));
                }
            }
            assert_eq!((rejected, last), (1, Some((Opcode::Ping, true))), "cut at {cut}");
        }
    }
}
