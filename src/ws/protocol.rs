//! §5 and §7: the state machine of one open connection. Bytes in, one event out at a time, replies queued.
//!
//! ```text
//!            close(), a broken rule, framing intact            peer's Close
//!   Open ──────────────────────────────────▶ Closing(Intact) ──────────────▶ Closed
//!    │ │                                          │                            ▲
//!    │ └── a broken rule, framing lost ──▶ Closing(Lost) ◀── a bad header      │
//!    │                                                                         │
//!    └──────────── peer's Close, answered (§5.5.1) ────────────────────────────┘
//! ```
//!
//! In `Open` everything is read. In `Closing(Intact)` our Close is out and frames are skipped until the peer's comes;
//! in `Closing(Lost)` there is nothing to find any more; in `Closed` both Closes have passed, and whatever follows is
//! no frame (§5.5.1). In none of the last three is anything but our one Close ever sent.
//!
//! This file does not know sockets, time or what a message means. Whoever owns it feeds [`Protocol::receive`], sends
//! what [`Protocol::take_replies`] gives, and ends the connection when [`Protocol::state`] says so.
//!
//! The subtle thing: the input is unmasked where it lies. A message that came whole is handed out as a slice of the
//! caller's own buffer; only what a cut went through is copied, and between messages nothing is held.

use std::borrow::Cow;

use super::close::{CloseCode, CloseFrame, ProtocolError};
use super::frame::{self, FrameHeader, MAX_HEADER, Opcode};
use super::mask;
use super::message::{self, Assembler, Message, MessageKind};

/// §10.4: what one peer may make this side hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message, whatever its frames.
    pub message: usize,
    /// Frames of one message, empty ones counted: a message in a million pieces costs time, if not memory.
    pub fragments: u32,
    /// Whether binary messages are taken.
    pub binary: bool,
}

/// Where the connection stands (§7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Both sides may send data.
    Open,
    /// Our Close is out, the peer's has not come.
    Closing(Framing),
    /// Both Closes have passed. §7.1.1: the server ends the TCP connection.
    Closed,
}

/// Whether the next frame can still be found in what the peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Frames can be skipped until the peer's Close.
    Intact,
    /// A header made no sense, or its payload is over the limit: nothing more can be read.
    Lost,
}

/// What the peer did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// §5.5.2. The Pong is already among the replies.
    Ping(Cow<'a, [u8]>),
    /// §5.5.3. Nothing is to be done.
    Pong(Cow<'a, [u8]>),
    /// The peer's Close: its code, and its reason. If it is the first, the answer is already among the replies.
    Close(Option<CloseCode>, String),
    /// §7.1.7: a rule was broken. The Close that says so is already among the replies.
    Failed(ProtocolError),
}

/// The server's side of one connection after the upgrade.
#[derive(Debug)]
pub struct Protocol {
    limits: Limits,
    state: State,
    header: PartialHeader,
    frame: Option<OpenFrame>,
    message: Assembler,
    /// The payload of a control frame of which not everything has come.
    control: Vec<u8>,
    replies: Vec<u8>,
}

/// The bytes of a header of which not everything has come: the only input that is carried from read to read.
#[derive(Debug, Default)]
struct PartialHeader {
    bytes: [u8; MAX_HEADER],
    len: u8,
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

impl Protocol {
    /// A connection that has just been upgraded.
    pub fn new(limits: Limits) -> Protocol {
        Protocol {
            limits,
            state: State::Open,
            header: PartialHeader::default(),
            frame: None,
            message: Assembler::default(),
            control: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Where the connection stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How much memory an unfinished message holds, in bytes.
    pub fn buffered(&self) -> usize {
        self.message.capacity()
    }

    /// The frames that are to be sent in answer to what was received so far, in order.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.replies)
    }

    /// Begins the closing handshake (§7.1.2), if it has not begun. A reason is cut at 123 bytes.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        if self.state == State::Open {
            self.send_close(CloseFrame { code: Some(code), reason });
            self.state = State::Closing(Framing::Intact);
        }
    }

    /// Sends a Ping with an empty payload, if data may still be sent.
    pub fn ping(&mut self) {
        if self.state == State::Open {
            frame::append(&mut self.replies, Opcode::Ping, b"");
        }
    }

    /// Reads from the front of `input` up to the next event, and leaves what is behind it in `input`. `None`: all of
    /// it was read and nothing more happened. The bytes are unmasked in place.
    ///
    /// ```
    /// use wirechat::ws::protocol::{Event, Limits, Protocol};
    /// use wirechat::ws::message::Message;
    /// let mut protocol = Protocol::new(Limits { message: 100, fragments: 10, binary: false });
    /// let mut bytes = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"; // §5.7, a masked "Hello"
    /// let mut input = &mut bytes[..];
    /// assert_eq!(protocol.receive(&mut input), Some(Event::Message(Message::Text("Hello".into()))));
    /// assert_eq!(protocol.receive(&mut input), None);
    /// ```
    pub fn receive<'a>(&mut self, input: &mut &'a mut [u8]) -> Option<Event<'a>> {
        while !input.is_empty() || self.frame.is_some_and(|frame| frame.remaining == 0) {
            if matches!(self.state, State::Closing(Framing::Lost) | State::Closed) {
                *input = &mut [];
                return None;
            }
            let step = match self.frame {
                None => self.read_header(input).map(|()| None),
                Some(frame) => self.read_payload(frame, input),
            };
            match step {
                Ok(None) => {}
                Ok(event) => return event,
                Err(error) => {
                    if let Some(event) = self.fail(error) {
                        return Some(event);
                    }
                }
            }
        }
        None
    }

    /// Reads a header, or as much of it as there is, and judges it before a byte of payload is accepted.
    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<(), ProtocolError> {
        let carried = usize::from(self.header.len);
        let fresh = input.len().min(MAX_HEADER - carried);
        self.header.bytes[carried..carried + fresh].copy_from_slice(&input[..fresh]);
        let Some(header) = FrameHeader::parse(&self.header.bytes[..carried + fresh])? else {
            advance(input, fresh);
            self.header.len += fresh as u8;
            return Ok(());
        };
        let verdict = self.judge(&header);
        match header.masking_key {
            None => {
                advance(input, fresh);
                self.header.len += fresh as u8;
            }
            Some(key) => {
                advance(input, header.size - carried);
                self.header.len = 0;
                let FrameHeader { fin, opcode, payload_len, .. } = header;
                self.frame = Some(OpenFrame { fin, opcode, key, received: 0, remaining: payload_len });
            }
        }
        verdict
    }

    /// The rules that depend on what came before, in the order in which they speak: fragment order, message type,
    /// size, number of fragments.
    fn judge(&self, header: &FrameHeader) -> Result<(), ProtocolError> {
        if header.opcode.is_control() || self.state != State::Open {
            return Ok(());
        }
        // §5.4: "the fragments of one message MUST NOT be interleaved between the fragments of another message"
        match (header.opcode, self.message.is_open()) {
            (Opcode::Continuation, false) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, true) => {
                return Err(ProtocolError::ExpectedContinuation);
            }
            (Opcode::Binary, false) if !self.limits.binary => {
                return Err(ProtocolError::BinaryRefused);
            }
            _ => {}
        }
        let room = self.limits.message - self.message.received();
        if header.payload_len > room as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        if self.message.fragments() == self.limits.fragments {
            return Err(ProtocolError::TooManyFragments);
        }
        Ok(())
    }

    /// Takes what there is of a frame's payload.
    fn read_payload<'a>(
        &mut self,
        mut frame: OpenFrame,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        let here = usize::try_from(frame.remaining).unwrap_or(usize::MAX).min(input.len());
        let payload = advance(input, here);
        let is_whole = frame.received == 0 && frame.remaining == here as u64;
        let is_first_piece = frame.received == 0;
        let expected = frame.remaining;
        mask::apply(payload, frame.key, (frame.received % 4) as usize);
        frame.received += here as u64;
        frame.remaining -= here as u64;
        self.frame = (frame.remaining > 0).then_some(frame);
        match (frame.opcode, self.state) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => self.read_control(frame, payload, is_whole),
            (_, State::Open) => {
                let kind = match frame.opcode {
                    Opcode::Text => Some(MessageKind::Text),
                    Opcode::Binary => Some(MessageKind::Binary),
                    _ => None,
                };
                if let (Some(kind), true, true) = (kind, frame.fin, is_whole) {
                    return message::whole(kind, payload).map(|message| Some(Event::Message(message)));
                }
                if is_first_piece {
                    self.message.begin_frame(kind);
                }
                self.message.push(payload, expected as usize)?;
                let is_last = frame.fin && frame.remaining == 0;
                is_last.then(|| self.message.finish().map(Event::Message)).transpose()
            }
            _ => Ok(None), // skipped, on the way to the peer's Close
        }
    }

    /// Takes a piece of a control frame, and acts when the frame is complete.
    fn read_control<'a>(
        &mut self,
        frame: OpenFrame,
        piece: &'a [u8],
        is_whole: bool,
    ) -> Result<Option<Event<'a>>, ProtocolError> {
        if !is_whole {
            self.control.extend_from_slice(piece);
            if frame.remaining > 0 {
                return Ok(None);
            }
        }
        let payload = if is_whole { Cow::Borrowed(piece) } else { Cow::Owned(std::mem::take(&mut self.control)) };
        match (frame.opcode, self.state) {
            (Opcode::Close, _) => self.receive_close(&payload).map(Some),
            (Opcode::Ping, State::Open) => {
                // §5.5.3: "MUST have identical 'Application data' as found in the message body of the Ping frame"
                frame::append(&mut self.replies, Opcode::Pong, &payload);
                Ok(Some(Event::Ping(payload)))
            }
            (Opcode::Pong, State::Open) => Ok(Some(Event::Pong(payload))),
            _ => Ok(None), // no Pong after our Close
        }
    }

    fn receive_close<'a>(&mut self, payload: &[u8]) -> Result<Event<'a>, ProtocolError> {
        let close = match CloseFrame::parse(payload) {
            // Ours is out already: whatever the peer's says, there is nothing more to answer.
            Err(_) if self.state != State::Open => CloseFrame { code: None, reason: "" },
            parsed => parsed?,
        };
        if self.state == State::Open {
            // §5.5.1: "the endpoint typically echos the status code it received", and no more than that.
            self.send_close(CloseFrame { code: close.code, reason: "" });
        }
        self.state = State::Closed;
        Ok(Event::Close(close.code, close.reason.to_owned()))
    }

    /// §7.1.7, _Fail the WebSocket Connection_.
    fn fail<'a>(&mut self, error: ProtocolError) -> Option<Event<'a>> {
        let was_open = self.state == State::Open;
        if was_open {
            self.send_close(CloseFrame { code: Some(error.code()), reason: &error.to_string() });
        }
        self.state = match error {
            // The peer's Close has come, even if there is something wrong with it.
            ProtocolError::CloseReasonNotUtf8 => State::Closed,
            _ if error.loses_framing() => State::Closing(Framing::Lost),
            _ => State::Closing(Framing::Intact),
        };
        was_open.then_some(Event::Failed(error))
    }

    fn send_close(&mut self, close: CloseFrame) {
        debug_assert_eq!(self.state, State::Open, "one Close a connection");
        frame::append(&mut self.replies, Opcode::Close, &close.encode());
        self.message.clear();
    }
}

/// Takes `len` bytes off the front of `input`.
fn advance<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(len);
    *input = rest;
    front
}
