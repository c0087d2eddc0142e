//! Splits one direction of a connection into an HTTP head and frames. The frame scanner stores only the start of the
//! current frame, still masked. [`FrameHeader::parse`] validates headers; [`checker`] validates the order of frames.
//!
//! [`checker`]: super::checker
//!
//! ```text
//!   Header ──all of it──▶ Payload ──last byte──▶ Header …
//!       └───a rule of §5.2 broken───▶ lost
//! ```

use super::inflated::{InflatedPayload, MessageInflater};
use super::{Frame, Head, Header, MAX_SHOWN_BYTES, Parts, Position};
use crate::ws::close::ProtocolError;
use crate::ws::deflate::context::ContextInflater;
use crate::ws::frame::{FrameHeader, MAX_HEADER_SIZE, Opcode, Role};
use crate::ws::mask;
use crate::ws::protocol::Limits;

/// Maximum number of bytes of an HTTP head to store: the largest value that `--max-head` accepts.
const MAX_STORED_HEAD_LEN: usize = 1024 * 1024;

impl Head {
    /// Stores the bytes that belong to the HTTP head and returns the rest. `part` is the sequence number of the read or
    /// write that carried `bytes`.
    pub fn read<'b>(&mut self, bytes: &'b [u8], part: u64) -> &'b [u8] {
        const HEAD_END: &[u8] = b"\r\n\r\n";
        if self.is_complete {
            return bytes;
        }
        let before = self.bytes.len();
        let kept = bytes.len().min(MAX_STORED_HEAD_LEN - before);
        self.bytes.extend_from_slice(&bytes[..kept]);
        // RFC 9112 §2.2: a server ignores blank lines before the request line, so those do not terminate the head.
        if self.leading_blank_len == before {
            self.leading_blank_len += bytes[..kept].iter().take_while(|byte| b"\r\n".contains(byte)).count();
        }
        // To take linear time, search only the new bytes and the three before them: two reads may split `HEAD_END`.
        let from = before.saturating_sub(HEAD_END.len() - 1).max(self.leading_blank_len);
        let found = self.bytes[from..].windows(HEAD_END.len()).position(|end| end == HEAD_END);
        let end = found.map_or(self.bytes.len(), |at| from + at + HEAD_END.len());
        self.bytes.truncate(end);
        self.is_complete = found.is_some();
        self.parts.add(part, end - before);
        // Bytes beyond `MAX_STORED_HEAD_LEN` still belong to the head, so do not return them.
        if self.is_complete { &bytes[end - before..] } else { &[] }
    }

    /// The request line or status line, without its line ending.
    pub fn first_line(&self) -> String {
        let mut lines = self.bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        String::from_utf8_lossy(lines.find(|line| !line.is_empty()).unwrap_or_default()).into_owned()
    }

    /// The status code of a response; 0 if the status line contains none.
    pub fn status(&self) -> u16 {
        self.first_line().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The value of the first header with the given name; later headers with the same name are ignored.
    pub fn header(&self, name: &str) -> Option<String> {
        self.bytes.split(|byte| *byte == b'\n').find_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let matches = line[..colon].eq_ignore_ascii_case(name.as_bytes());
            matches.then(|| String::from_utf8_lossy(line[colon + 1..].trim_ascii()).into_owned())
        })
    }
}

/// The parsing state of one direction of a connection.
#[derive(Debug)]
pub struct DirectionState {
    /// Number of reads (from the client) or writes (to the client) so far.
    pub parts: u64,
    pub head: Head,
    pub frames: FrameScanner,
    /// Whether the tap has already reported the current frame: it may report an invalid frame before the frame ends.
    pub is_reported: bool,
    /// Whether to stop parsing this direction's bytes as frames, for example after an invalid header.
    pub is_out_of_sync: bool,
}

impl DirectionState {
    pub fn new(from: Role) -> DirectionState {
        DirectionState {
            parts: 0,
            head: Head::default(),
            frames: FrameScanner::new(from),
            is_reported: false,
            is_out_of_sync: false,
        }
    }
}

#[derive(Debug)]
pub struct FrameScanner {
    from: Role,
    current: Option<Frame>,
    in_payload: bool,
    // `frames` and `messages` include an incomplete last frame or message. If a tap is attached to an open connection,
    // `frames` includes all earlier frames, but `messages` starts at 0.
    frames: u64,
    messages: u64,
    /// Number of fragments of the current message so far, including an incomplete fragment; 0 between messages.
    fragments: u64,
    /// The maximum size of an inflated message in bytes, if the endpoints negotiated compression.
    deflates: Option<usize>,
    /// Whether each compressed message starts with an empty window.
    resets_context: bool,
    /// `None` until the first compressed message.
    inflater: Option<Box<MessageInflater>>,
    is_compressed: bool, // whether the current message is compressed
}

#[derive(Debug, PartialEq)]
pub enum ScanResult {
    /// The scanner consumed all input without reaching the end of a frame.
    More,
    Complete(Frame),
    /// The frame header is invalid, so the scanner cannot find the next frame.
    Lost(Frame, ProtocolError),
}

impl FrameScanner {
    pub fn new(from: Role) -> FrameScanner {
        FrameScanner {
            from,
            current: None,
            in_payload: false,
            frames: 0,
            messages: 0,
            fragments: 0,
            deflates: None,
            resets_context: from == Role::Client, // this server demands `client_no_context_takeover`
            inflater: None,
            is_compressed: false,
        }
    }

    /// Prepares the scanner for compressed messages if `limits.deflates` is true. Call `set_limits` before the first
    /// frame.
    pub fn set_limits(&mut self, limits: Limits) {
        self.deflates = limits.deflates.then_some(limits.message);
    }

    /// Permits compressed messages to refer to earlier ones (context takeover).
    pub fn keep_context(&mut self) {
        self.resets_context = false;
    }

    /// The inflater's memory in bytes; 0 before the first compressed message.
    pub fn buffered_bytes(&self) -> usize {
        if self.inflater.is_some() { ContextInflater::SIZE } else { 0 }
    }

    /// Continues the numbering after `frames` earlier frames: the next frame gets the number `frames + 1`.
    pub fn start_after(&mut self, frames: u64) {
        self.frames = frames;
    }

    /// Number of frames scanned, including an incomplete one, plus the number of earlier frames set by `start_after`.
    pub fn frame_count(&self) -> u64 {
        self.frames
    }

    pub fn partial_frame(&self) -> Option<&Frame> {
        self.current.as_ref()
    }

    /// Consumes `input` up to the end of the current frame. `part` is the sequence number of the read or write that
    /// carried `input`.
    pub fn next(&mut self, input: &mut &[u8], part: u64) -> ScanResult {
        if input.is_empty() {
            return ScanResult::More;
        }
        if self.current.is_none() {
            self.frames += 1;
        }
        let mut frame = self.current.take().unwrap_or_else(|| self.new_frame());
        if !self.in_payload
            && let Err(error) = self.read_header(&mut frame, input, part)
        {
            // Show the payload length of the invalid frame: the length hints at what the peer meant to send.
            frame.header.truncate_to_size();
            frame.payload_len = frame.header.payload_len().unwrap_or_default();
            self.read_payload(&mut frame, input, part);
            return ScanResult::Lost(frame, error);
        }
        if self.in_payload {
            self.read_payload(&mut frame, input, part);
            if frame.received == frame.payload_len {
                self.in_payload = false;
                self.end_message(&mut frame);
                return ScanResult::Complete(frame);
            }
        }
        self.current = Some(frame);
        ScanResult::More
    }

    fn new_frame(&self) -> Frame {
        Frame {
            from: self.from,
            number: self.frames,
            header: Header::default(),
            payload_len: 0,
            wire: Vec::new(),
            received: 0,
            position: None,
            parts: Parts::default(),
            inflated: None,
        }
    }

    fn read_header(&mut self, frame: &mut Frame, input: &mut &[u8], part: u64) -> Result<(), ProtocolError> {
        let before = frame.header.bytes().len();
        frame.header.push(&input[..input.len().min(MAX_HEADER_SIZE)]);
        let parsed = FrameHeader::parse_with_deflate(self.from, self.deflates.is_some(), frame.header.bytes());
        frame.header.truncate_to_size();
        let consumed = frame.header.bytes().len() - before;
        frame.parts.add(part, consumed);
        *input = &input[consumed..];
        if let Some(header) = parsed? {
            frame.payload_len = header.payload_len;
            // `FrameHeader::parse` does not wait for the masking key, so check that the whole header has arrived.
            if header.size == frame.header.bytes().len() {
                self.in_payload = true;
                frame.position = self.next_position(&header);
                self.start_inflating(&header, frame);
            }
        }
        Ok(())
    }

    /// Counts a data frame and returns its message and fragment numbers (§5.4). Returns `None` for a control frame, and
    /// for a continuation frame outside a fragmented message.
    fn next_position(&mut self, header: &FrameHeader) -> Option<Position> {
        match header.opcode {
            // §5.4: control frames "MAY be injected in the middle of a fragmented message", so they are not part of it.
            opcode if opcode.is_control() => return None,
            Opcode::Continuation if self.fragments == 0 => return None,
            Opcode::Continuation => self.fragments += 1,
            _ => {
                self.messages += 1;
                self.fragments = 1;
            }
        }
        let position = Position { message: self.messages, fragment: self.fragments, is_last: header.fin };
        if header.fin {
            self.fragments = 0;
        }
        Some(position)
    }

    fn start_inflating(&mut self, header: &FrameHeader, frame: &mut Frame) {
        // Control frames and unexpected continuation frames have no position, because they belong to no message.
        let Some(position) = frame.position else { return };
        if position.fragment == 1 {
            self.is_compressed = header.is_compressed;
        }
        if self.is_compressed {
            let inflater = self.inflater.get_or_insert_with(|| Box::new(MessageInflater::new(self.resets_context)));
            if header.is_compressed {
                inflater.start_message(self.deflates.unwrap_or_default());
            }
            frame.inflated = Some(InflatedPayload::default());
        }
    }

    fn end_message(&mut self, frame: &mut Frame) {
        if let (Some(inflater), Some(inflated)) = (&mut self.inflater, &mut frame.inflated)
            && frame.header.fin()
        {
            inflater.end_message(inflated);
        }
    }

    fn read_payload(&mut self, frame: &mut Frame, input: &mut &[u8], part: u64) {
        let remaining = frame.payload_len - frame.received;
        let (payload, rest) = input.split_at(usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len()));
        if let (Some(inflater), Some(inflated)) = (&mut self.inflater, &mut frame.inflated) {
            let mut payload = payload.to_vec();
            mask::apply(&mut payload, frame.header.masking_key().unwrap_or_default(), (frame.received % 4) as usize);
            inflater.inflate(&payload, inflated);
        }
        // Keep only the start of the payload: a 16 MiB message must not become a 16 MiB record.
        let room = MAX_SHOWN_BYTES - frame.wire.len();
        frame.wire.extend_from_slice(&payload[..payload.len().min(room)]);
        frame.received += payload.len() as u64;
        if !payload.is_empty() {
            frame.parts.add(part, payload.len());
        }
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_matches_the_code() {
        let mut scanner = FrameScanner::new(Role::Client);
        let mut state = |mut bytes: &[u8]| match scanner.next(&mut bytes, 1) {
            ScanResult::Lost(..) => "lost",
            ScanResult::More | ScanResult::Complete(_) if scanner.in_payload => "Payload",
            ScanResult::More | ScanResult::Complete(_) => "Header",
        };
        let [start, header_read, payload_read, broken] =
            [b"\x81".as_slice(), b"\x82\0\0\0\0h", b"i", b"\x81\x05"].map(&mut state);
        let picture = format!(
            "  {start} ──all of it──▶ {header_read} ──last byte──▶ {payload_read} …\n\
             \x20     └───a rule of §5.2 broken───▶ {broken}"
        );
        crate::pictures::assert_in_module_doc(include_str!("scan.rs"), &picture);
    }

    #[test]
    fn a_frame_is_complete_at_its_last_byte() {
        let masked_126 = [b"\x82\xfe\x00\x7e\0\0\0\0".as_slice(), &[0; 126]].concat();
        for frame in [b"\x89\x80\0\0\0\0".as_slice(), b"\x82\x81\0\0\0\0h", &masked_126] {
            for len in 1..=frame.len() {
                let mut scanner = FrameScanner::new(Role::Client);
                let is_complete = match scanner.next(&mut &frame[..len], 1) {
                    ScanResult::Complete(frame) => frame.is_complete(),
                    ScanResult::More | ScanResult::Lost(..) => scanner.partial_frame().is_some_and(Frame::is_complete),
                };
                assert_eq!(is_complete, len == frame.len(), "{len} bytes of {:02x?}", &frame[..2]);
            }
        }
    }

    #[test]
    fn bytes_beyond_the_limit_still_belong_to_the_head() {
        let (mut head, piece) = (Head::default(), vec![b'x'; MAX_STORED_HEAD_LEN / 2 + 1]);
        assert_eq!(head.read(&piece, 1), b"");
        assert_eq!(head.read(&piece, 2), b"");
        assert_eq!((head.bytes.len(), head.is_complete), (MAX_STORED_HEAD_LEN, false));
        assert_eq!(head.read(b"\r\n\r\n", 3), b"");
    }
}
