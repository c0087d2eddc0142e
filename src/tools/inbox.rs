//! What a server has sent, taken apart: the answer to the handshake, then messages, Pongs, a Close.
//!
//! A server can be wrong as well. What it does against the RFC is kept as its fault, and what follows is not read.
//!
//! The subtle thing: whatever a server sends, what is held is bounded. A payload longer than any case asks for is a
//! fault as soon as its header says so, and so are frames without end, be they empty.

use super::response::Response;
use crate::ws::close::{CloseFrame, ProtocolError};
use crate::ws::frame::{FrameHeader, Opcode, Role};

/// The longest head and the longest plain answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// The most that is read of frames: more than any case asks for.
const MAX_HELD: u64 = 4 << 20;
/// And the most frames: an empty one has no payload to be counted, and takes a place all the same.
const MAX_FRAMES: u32 = 50_000;

/// Something that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// A text message.
    Text(Vec<u8>),
    /// A binary message.
    Binary(Vec<u8>),
    /// A Pong.
    Pong(Vec<u8>),
}

/// A Close that came: its code (§7.1.5: 1005 if it had none) and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The code.
    pub code: u16,
    /// The reason.
    pub reason: String,
}

/// All that a server has sent so far.
#[derive(Debug, Default)]
pub struct Inbox {
    /// What has not been read yet: a part of the answer, or of a frame.
    unread: Vec<u8>,
    /// The request that was answered.
    request: String,
    /// The answer to the handshake.
    pub answer: Option<Response>,
    /// The message of which not all fragments have come.
    open: Option<(Opcode, Vec<u8>)>,
    held: u64,
    frames: u32,
    /// Messages and Pongs, in order.
    pub back: Vec<Came>,
    /// The Close.
    pub close: Option<Close>,
    /// What the server did against the RFC.
    pub fault: Option<String>,
}

impl Inbox {
    /// For the answer to this request, and what follows it.
    pub fn new(request: &[u8]) -> Inbox {
        Inbox { request: String::from_utf8_lossy(request).into_owned(), ..Inbox::default() }
    }

    /// For what comes on a connection that is open, from the start of a frame on.
    pub fn open() -> Inbox {
        Inbox { answer: Some(Response::upgraded()), ..Inbox::default() }
    }

    /// Takes what was read.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        self.unread.extend_from_slice(bytes);
        if self.answer.is_none() {
            self.read_answer();
        }
        match &mut self.answer {
            Some(answer) if answer.status == 101 => self.read_frames(),
            Some(answer) => {
                let room = MAX_ANSWER.saturating_sub(answer.body.len());
                answer.body.extend(self.unread.drain(..).take(room));
            }
            None => {}
        }
    }

    /// Whether the server has sent nothing at all.
    pub fn is_empty(&self) -> bool {
        self.answer.is_none() && self.unread.is_empty()
    }

    /// What has come of the answer or the frame that is not all there.
    pub fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Whether nothing more needs to be read: a Close, a fault, or a plain answer that is complete.
    pub fn is_final(&self) -> bool {
        self.close.is_some() || self.fault.is_some() || self.answer.as_ref().is_some_and(Response::is_complete)
    }

    fn read_answer(&mut self) {
        match Response::parse(&self.unread, &self.request) {
            Ok(Some((answer, len))) => {
                self.unread.drain(..len);
                self.fault = answer.fault.clone();
                self.answer = Some(answer);
            }
            Ok(None) if self.unread.len() > MAX_ANSWER => self.fault = Some("an HTTP head without an end".into()),
            Ok(None) => {}
            Err(fault) => self.fault = Some(fault),
        }
    }

    fn read_frames(&mut self) {
        let bytes = std::mem::take(&mut self.unread);
        let mut rest = bytes.as_slice();
        while self.fault.is_none() {
            match self.read_frame(rest) {
                Ok(Some(len)) => rest = &rest[len..],
                Ok(None) => break,
                Err(fault) => self.fault = Some(fault),
            }
        }
        self.unread = rest.to_vec();
    }

    /// Reads the frame at the start of `bytes`, and says how long it is; `None` if not all of it is there.
    fn read_frame(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        // The mask bit stands in the second byte, and is wrong before the key behind it has come.
        if bytes.get(1).is_some_and(|second| second & 0x80 != 0) {
            return Err("the server masked a frame (RFC 6455 §5.1)".into());
        }
        let broken = |error: ProtocolError| format!("the server broke a rule: {error}");
        let Some(header) = FrameHeader::parse_from(Role::Server, bytes).map_err(broken)? else { return Ok(None) };
        if self.close.is_some() {
            return Err("the server sent a frame after its Close (RFC 6455 §5.5.1)".into());
        }
        let held = self.held + header.size as u64 + header.payload_len;
        if held > MAX_HELD {
            return Err(format!("over {} MiB came back or were announced, far more than was sent", MAX_HELD >> 20));
        }
        if self.frames == MAX_FRAMES {
            return Err(format!("over {MAX_FRAMES} frames came back, far more than were sent"));
        }
        let len = header.size + header.payload_len as usize;
        let Some(payload) = bytes.get(header.size..len) else { return Ok(None) };
        (self.held, self.frames) = (held, self.frames + 1);
        self.take(&header, payload).map_err(broken)?;
        Ok(Some(len))
    }

    fn take(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), ProtocolError> {
        match (header.opcode, self.open.is_some()) {
            (Opcode::Ping, _) => return Ok(()),
            (Opcode::Pong, _) => self.back.push(Came::Pong(payload.to_vec())),
            (Opcode::Close, _) => {
                let close = CloseFrame::parse(payload)?;
                let code = close.code.map_or(1005, |code| code.get());
                self.close = Some(Close { code, reason: close.reason.to_owned() });
            }
            (Opcode::Continuation, false) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, true) => return Err(ProtocolError::ExpectedContinuation),
            (opcode, _) => {
                let (_, message) = self.open.get_or_insert((opcode, Vec::new()));
                message.extend_from_slice(payload);
            }
        }
        if header.fin && !header.opcode.is_control() {
            self.finish_message()?;
        }
        Ok(())
    }

    fn finish_message(&mut self) -> Result<(), ProtocolError> {
        match self.open.take() {
            Some((Opcode::Text, text)) if std::str::from_utf8(&text).is_err() => Err(ProtocolError::TextNotUtf8),
            Some((Opcode::Text, text)) => {
                self.back.push(Came::Text(text));
                Ok(())
            }
            Some((_, binary)) => {
                self.back.push(Came::Binary(binary));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// What comes of these bytes behind a good answer, whole and in pieces of every small size.
    fn inbox(frames: &[u8]) -> Inbox {
        let bytes = [ANSWER, frames].concat();
        let mut whole = Inbox::new(REQUEST);
        whole.receive(&bytes);
        for size in 1..9 {
            let mut cut = Inbox::new(REQUEST);
            bytes.chunks(size).for_each(|piece| cut.receive(piece));
            assert_eq!((&cut.back, &cut.close, &cut.fault), (&whole.back, &whole.close, &whole.fault), "{size}");
        }
        whole
    }

    #[test]
    fn frames_become_messages_wherever_they_are_cut() {
        let inbox = inbox(b"\x81\x02hi\x8a\x01?\x02\x01\xff\x89\x00\x80\x01\xfe\x88\x05\x03\xe8bye");
        let back = [Came::Text(b"hi".to_vec()), Came::Pong(b"?".to_vec()), Came::Binary(b"\xff\xfe".to_vec())];
        assert_eq!(inbox.back, back);
        assert_eq!(inbox.close, Some(Close { code: 1000, reason: "bye".into() }));
        assert_eq!(inbox.fault, None);
    }

    #[test]
    fn a_servers_faults_are_named() {
        let cases: [(&[u8], &str); 9] = [
            (b"\x81\x80\0\0\0\0", "§5.1"),
            (b"\xc1\x00", "§5.2"),
            (b"\x81\x7e\x00\x01a", "§5.2"),
            (b"\x80\x00", "§5.4"),
            (b"\x01\x00\x81\x00", "§5.4"),
            (b"\x81\x01\xff", "§8.1"),
            (b"\x88\x02\x03\xee", "§7.4"),
            (b"\x88\x00\x8a\x00", "§5.5.1"),
            (b"\x82\x7f\x00\x00\x00\x00\x10\x00\x00\x00", "MiB"),
        ];
        for (frames, words) in cases {
            let fault = inbox(frames).fault.unwrap();
            assert!(fault.contains(words), "{frames:02x?}: {fault}");
        }
    }
}
