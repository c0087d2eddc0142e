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
//! The same with everything that can happen: what the owner is told, what is sent, and where that leads. In an empty
//! cell it is passed over, and in all columns but the first nothing is sent any more: our one Close is out.
//!
//! | | `Open` | `Closing(Intact)` | `Closing(Lost)` | `Closed` |
//! |---|---|---|---|---|
//! | a message | `Message` |  |  |  |
//! | a Ping | `Ping`, sends Pong |  |  |  |
//! | a Pong | `Pong` |  |  |  |
//! | a Close | `Close`, sends Close 1000, → `Closed` | `Close`, → `Closed` |  |  |
//! | a Close with a reserved code | `Failed`, sends Close 1002, → `Closing(Lost)` | `Close`, → `Closed` |  |  |
//! | a Close, its reason not UTF-8 | `Failed`, sends Close 1007, → `Closed` | `Close`, → `Closed` |  |  |
//! | text that is not UTF-8 | `Failed`, sends Close 1007, → `Closing(Intact)` |  |  |  |
//! | a fragment too many | `Failed`, sends Close 1008, → `Closing(Intact)` |  |  |  |
//! | a message over the limit | `Failed`, sends Close 1009, → `Closing(Lost)` |  |  |  |
//! | a header that breaks a rule | `Failed`, sends Close 1002, → `Closing(Lost)` | → `Closing(Lost)` |  |  |
//! | we call `close` | sends Close 1001, → `Closing(Intact)` |  |  |  |
//! | we call `ping` | sends Ping |  |  |  |
//!
//! This file does not know sockets, time or what a message means. Whoever owns it feeds [`Protocol::receive`], sends
//! what [`Protocol::take_replies`] gives, and ends the connection when [`Protocol::state`] says so.
//!
//! The subtle thing: the input is unmasked where it lies. A message that came whole is handed out as a slice of the
//! caller's own buffer; only what a cut went through is copied, and between messages nothing is held.

use std::borrow::Cow;

use super::close::{CloseCode, CloseFrame, ProtocolError};
use super::frame::{self, FrameHeader, Opcode};
use super::message::{self, Assembler, Message, MessageKind};
use super::reader::{FrameReader, Piece};

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
    /// Our Close is out, the peer's has not come (§7.1.3).
    Closing(Framing),
    /// Both Closes have passed. §7.1.1: the server ends the TCP connection, and with it all is closed (§7.1.4).
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
    /// The peer's Close: its code (§7.1.5) and reason (§7.1.6). If it is the first, the answer is already among the replies.
    Close(Option<CloseCode>, String),
    /// §7.1.7: a rule was broken. The Close that says so is already among the replies.
    Failed(ProtocolError),
}

/// The server's side of one connection after the upgrade.
#[derive(Debug)]
pub struct Protocol {
    limits: Limits,
    state: State,
    frames: FrameReader,
    message: Assembler,
    /// The payload of a control frame of which not everything has come; §5.5 bounds it.
    control: Vec<u8>,
    replies: Vec<u8>,
}

impl Protocol {
    /// A connection that has just been upgraded.
    pub fn new(limits: Limits) -> Protocol {
        Protocol {
            limits,
            state: State::Open,
            frames: FrameReader::default(),
            message: Assembler::default(),
            control: Vec::new(),
            replies: Vec::new(),
        }
    }

    /// Where the connection stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether no frame and no message has begun that is not received to its end.
    pub fn is_between_messages(&self) -> bool {
        self.frames.is_between_frames() && !self.message.is_open()
    }

    /// How much memory an unfinished message holds, in bytes.
    pub fn buffered(&self) -> usize {
        self.message.capacity()
    }

    /// The frames that are to be sent in answer to what was received so far, in order.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.replies)
    }

    /// Begins the closing handshake (§7.1.2, §7.3), if it has not begun. A reason is cut at 123 bytes.
    ///
    /// ```
    /// use wirechat::ws::{close::CloseCode, protocol::{Limits, Protocol}};
    /// let mut protocol = Protocol::new(Limits { message: 100, fragments: 10, binary: false });
    /// protocol.close(CloseCode::GOING_AWAY, "bye");
    /// assert_eq!(protocol.take_replies(), b"\x88\x05\x03\xe9bye");
    /// ```
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

    /// §6.2: reads up to the next event, and leaves the rest in `input`. `None`: all was read. Unmasks in place.
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
        loop {
            if matches!(self.state, State::Closing(Framing::Lost) | State::Closed) {
                *input = &mut [];
                return None;
            }
            let Protocol { limits, state, message, .. } = self;
            let judge = |header: &FrameHeader| match state {
                State::Open => judge(header, message, limits),
                _ => Ok(()), // to be skipped
            };
            let step = match self.frames.next(input, judge) {
                Ok(None) => return None,
                Ok(Some(piece)) if piece.opcode.is_control() => self.receive_control(&piece),
                Ok(Some(piece)) if self.state == State::Open => self.receive_data(&piece),
                Ok(Some(_)) => Ok(None), // skipped, on the way to the peer's Close
                Err(error) => Err(error),
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
    }

    /// Takes a piece of a text, binary or continuation frame.
    fn receive_data<'a>(&mut self, piece: &Piece<'a>) -> Result<Option<Event<'a>>, ProtocolError> {
        let kind = match piece.opcode {
            Opcode::Text => Some(MessageKind::Text),
            Opcode::Binary => Some(MessageKind::Binary),
            _ => None,
        };
        let is_whole = piece.fin && piece.is_first && piece.is_last;
        if let (Some(kind), true) = (kind, is_whole) {
            return message::whole(kind, piece.payload).map(|message| Some(Event::Message(message)));
        }
        if piece.is_first {
            self.message.begin_frame(kind);
        }
        self.message.push(piece.payload, piece.expected as usize)?;
        match piece.fin && piece.is_last {
            true => self.message.finish().map(|message| Some(Event::Message(message))),
            false => Ok(None),
        }
    }

    /// Takes a piece of a control frame, and acts when the frame is complete.
    fn receive_control<'a>(&mut self, piece: &Piece<'a>) -> Result<Option<Event<'a>>, ProtocolError> {
        let payload = match (piece.is_first, piece.is_last) {
            (true, true) => Cow::Borrowed(piece.payload),
            (_, is_last) => {
                self.control.extend_from_slice(piece.payload);
                if !is_last {
                    return Ok(None);
                }
                Cow::Owned(std::mem::take(&mut self.control))
            }
        };
        match (piece.opcode, self.state) {
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

/// The rules that depend on what came before, in the order in which they speak: fragment order, message type, size,
/// number of fragments.
fn judge(header: &FrameHeader, message: &Assembler, limits: &Limits) -> Result<(), ProtocolError> {
    if header.opcode.is_control() {
        return Ok(()); // §5.4: they "MAY be injected in the middle of a fragmented message"
    }
    // §5.4: "the fragments of one message MUST NOT be interleaved between the fragments of another message"
    match (header.opcode, message.is_open()) {
        (Opcode::Continuation, false) => return Err(ProtocolError::UnexpectedContinuation),
        (Opcode::Text | Opcode::Binary, true) => return Err(ProtocolError::ExpectedContinuation),
        (Opcode::Binary, false) if !limits.binary => return Err(ProtocolError::UnsupportedData),
        _ => {}
    }
    let room = limits.message - message.received();
    if header.payload_len > room as u64 {
        return Err(ProtocolError::MessageTooBig);
    }
    if message.fragments() == limits.fragments {
        return Err(ProtocolError::TooManyFragments);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message: 200, fragments: 4, binary: true };

    /// A frame with the masking key 0, under which a payload reads as it is (§5.3). `first` is FIN, RSV and opcode.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len();
        let length = if len < 126 { vec![0x80 | len as u8] } else { vec![0xfe, (len >> 8) as u8, len as u8] };
        [&[first], &length[..], &[0; 4], payload].concat()
    }

    fn text(text: &str) -> Event<'static> {
        Event::Message(Message::Text(Cow::Owned(text.to_owned())))
    }

    /// Feeds `bytes` in pieces of `size`, and gives the events, the replies and the state.
    fn run(limits: Limits, bytes: &[u8], size: usize) -> (Vec<String>, Vec<u8>, State) {
        let mut protocol = Protocol::new(limits);
        let (mut events, mut replies) = (Vec::new(), Vec::new());
        for piece in bytes.to_vec().chunks_mut(size.max(1)) {
            let mut input = piece;
            while let Some(event) = protocol.receive(&mut input) {
                events.push(format!("{event:?}"));
                replies.extend(protocol.take_replies());
            }
            assert!(input.is_empty(), "everything is read");
        }
        (events, replies, protocol.state())
    }

    /// Asserts the events of a stream, whole and in pieces of every small size.
    fn expect(bytes: &[u8], events: &[Event], replies: &[u8], state: State) {
        let events: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
        for size in std::iter::once(bytes.len()).chain(1..20) {
            let got = run(LIMITS, bytes, size);
            assert_eq!(got, (events.clone(), replies.to_vec(), state), "{bytes:02x?} in pieces of {size}");
        }
    }

    fn close_reply(error: ProtocolError) -> Vec<u8> {
        let mut out = Vec::new();
        let close = CloseFrame { code: Some(error.code()), reason: &error.to_string() };
        frame::append(&mut out, Opcode::Close, &close.encode());
        out
    }

    fn expect_failure(bytes: &[u8], error: ProtocolError, framing: Framing) {
        expect(bytes, &[Event::Failed(error)], &close_reply(error), State::Closing(framing));
    }

    #[test]
    fn rfc_5_4_orders_of_frames() {
        let pong = b"\x8a\x01p".as_slice();
        let open = State::Open;
        expect(&[frame(0x01, b"He"), frame(0x80, b"llo")].concat(), &[text("Hello")], b"", open);
        expect(&[frame(0x01, b""), frame(0x00, b""), frame(0x80, b"")].concat(), &[text("")], b"", open);
        let ping = Event::Ping(b"p".into());
        let interleaved = [frame(0x01, b"He"), frame(0x89, b"p"), frame(0x80, b"llo")].concat();
        expect(&interleaved, &[ping, text("Hello")], pong, open);
        let two = [frame(0x81, b"a"), frame(0x01, b"b"), frame(0x80, b"c"), frame(0x81, b"d")].concat();
        expect(&two, &[text("a"), text("bc"), text("d")], b"", open);

        let (lost, early) = (Framing::Lost, ProtocolError::ExpectedContinuation);
        expect_failure(&frame(0x80, b"x"), ProtocolError::UnexpectedContinuation, lost);
        expect_failure(&frame(0x00, b"x"), ProtocolError::UnexpectedContinuation, lost);
        expect_failure(&[frame(0x01, b"a"), frame(0x81, b"b")].concat(), early, lost);
        expect_failure(&[frame(0x02, b"a"), frame(0x01, b"b")].concat(), early, lost);
        let after_the_end = [frame(0x81, b"a"), frame(0x80, b"b")].concat();
        let error = ProtocolError::UnexpectedContinuation;
        expect(&after_the_end, &[text("a"), Event::Failed(error)], &close_reply(error), State::Closing(lost));
    }

    #[test]
    fn rfc_5_5_2_a_ping_is_answered_with_its_payload() {
        let all: Vec<u8> = (0..125).collect();
        for payload in [&b""[..], b"ping", b"\xff\x00", &all] {
            let mut pong = Vec::new();
            frame::append(&mut pong, Opcode::Pong, payload);
            expect(&frame(0x89, payload), &[Event::Ping(payload.into())], &pong, State::Open);
        }
        expect(&frame(0x8a, b"unasked"), &[Event::Pong(b"unasked".into())], b"", State::Open);
    }

    #[test]
    fn rfc_8_1_bad_text_fails_in_the_middle_of_its_frame() {
        let whole = frame(0x81, b"ok \xff and a long tail that never has to come");
        let error = ProtocolError::TextNotUtf8;
        for cut in 10..whole.len() {
            let (events, replies, state) = run(LIMITS, &whole[..cut], 1);
            assert_eq!(events, [format!("{:?}", Event::Failed(error))], "cut at {cut}");
            assert_eq!((replies, state), (close_reply(error), State::Closing(Framing::Intact)));
        }
    }

    #[test]
    fn rfc_10_4_each_limit_at_n_and_n_plus_1() {
        let fits = frame(0x81, &[b'x'; 200]);
        expect(&fits, &[text(&"x".repeat(200))], b"", State::Open);
        expect_failure(&frame(0x81, &[b'x'; 201]), ProtocolError::MessageTooBig, Framing::Lost);
        let joined = [frame(0x01, &[b'x'; 150]), frame(0x80, &[b'x'; 50])].concat();
        expect(&joined, &[text(&"x".repeat(200))], b"", State::Open);
        let crossed = [frame(0x01, &[b'x'; 150]), frame(0x80, &[b'x'; 51])].concat();
        expect_failure(&crossed, ProtocolError::MessageTooBig, Framing::Lost);

        let empty = [frame(0x01, b""), frame(0x00, b""), frame(0x00, b"")].concat();
        expect(&[&empty[..], &frame(0x80, b"")].concat(), &[text("")], b"", State::Open);
        let fifth = [&empty[..], &frame(0x00, b""), &frame(0x80, b"")].concat();
        expect_failure(&fifth, ProtocolError::TooManyFragments, Framing::Intact);
    }

    #[test]
    fn a_header_over_the_limit_fails_before_its_masking_key_is_there() {
        let huge = [0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        expect_failure(&huge, ProtocolError::MessageTooBig, Framing::Lost);
    }

    /// The order in which rules speak where one header breaks several of them.
    #[test]
    fn the_first_broken_rule_speaks() {
        let order: [(&[u8], ProtocolError); 6] = [
            (&[0xf3, 0x7f], ProtocolError::ReservedBits),
            (&[0x03, 0x7f], ProtocolError::ReservedOpcode(3)),
            (&[0x09, 0x7f], ProtocolError::FragmentedControl),
            (&[0x89, 0x7f], ProtocolError::ControlTooLong),
            (&[0x80, 0x7e, 0, 1], ProtocolError::Unmasked),
            (&[0x80, 0xfe, 0, 1], ProtocolError::LengthNotMinimal),
        ];
        for (bytes, error) in order {
            expect_failure(bytes, error, Framing::Lost);
        }
        let no_binary = Limits { binary: false, ..LIMITS };
        let (events, _, state) = run(no_binary, &frame(0x82, &[0; 201]), 1000);
        assert_eq!(events, [format!("{:?}", Event::Failed(ProtocolError::UnsupportedData))], "before the size");
        assert_eq!(state, State::Closing(Framing::Intact));
    }

    /// §7.1: what each state makes of each thing that a peer can send.
    #[test]
    fn rfc_7_1_states_and_events() {
        let (intact, lost) = (State::Closing(Framing::Intact), State::Closing(Framing::Lost));
        let close = frame(0x88, b"\x03\xe8bye");
        let bad_close = frame(0x88, b"\x03");
        let not_utf8 = frame(0x88, b"\x03\xe8\xff");
        let unmasked = [0x81, 0x05];
        let normal = Some(CloseCode::NORMAL);
        let closed = |reason: &str| format!("{:?}", Event::Close(normal, reason.into()));
        let empty_close = format!("{:?}", Event::Close(None, String::new()));
        let failed = |error| format!("{:?}", Event::Failed(error));
        let message = format!("{:?}", text("x"));
        let ping = format!("{:?}", Event::Ping(b"".into()));
        /// State before, bytes, events, first bytes of the replies, state after.
        type Row<'a> = (State, &'a [u8], &'a [String], &'a [u8], State);
        let table: [Row; 22] = [
            (State::Open, &frame(0x81, b"x"), &[message], &[], State::Open),
            (State::Open, &frame(0x89, b""), &[ping], &[0x8a], State::Open),
            (State::Open, &close, &[closed("bye")], &[0x88], State::Closed),
            (State::Open, &frame(0x88, b""), std::slice::from_ref(&empty_close), &[0x88], State::Closed),
            (State::Open, &bad_close, &[failed(ProtocolError::ClosePayloadOfOneByte)], &[0x88], lost),
            (State::Open, &not_utf8, &[failed(ProtocolError::CloseReasonNotUtf8)], &[0x88], State::Closed),
            (State::Open, &unmasked, &[failed(ProtocolError::Unmasked)], &[0x88], lost),
            (State::Open, &frame(0x81, b"\xff"), &[failed(ProtocolError::TextNotUtf8)], &[0x88], intact),
            (intact, &frame(0x81, b"x"), &[], &[], intact),
            (intact, &frame(0x81, b"\xff"), &[], &[], intact),
            (intact, &frame(0x80, b"x"), &[], &[], intact),
            (intact, &frame(0x82, &[0; 250]), &[], &[], intact),
            (intact, &frame(0x89, b""), &[], &[], intact),
            (intact, &frame(0x8a, b""), &[], &[], intact),
            (intact, &close, &[closed("bye")], &[], State::Closed),
            (intact, &bad_close, std::slice::from_ref(&empty_close), &[], State::Closed),
            (intact, &[&frame(0x81, b"x")[..], &close, &close].concat(), &[closed("bye")], &[], State::Closed),
            (intact, &unmasked, &[], &[], lost),
            (lost, &close, &[], &[], lost),
            (lost, &frame(0x89, b""), &[], &[], lost),
            (State::Closed, &close, &[], &[], State::Closed),
            (State::Closed, &frame(0x89, b""), &[], &[], State::Closed),
        ];
        for (before, bytes, events, replies, after) in table {
            for size in [bytes.len(), 1] {
                let mut protocol = in_state(before);
                let (mut got_events, mut got_replies) = (Vec::new(), Vec::new());
                for piece in bytes.to_vec().chunks_mut(size) {
                    let mut input = piece;
                    while let Some(event) = protocol.receive(&mut input) {
                        got_events.push(format!("{event:?}"));
                    }
                    got_replies.extend(protocol.take_replies().first().copied());
                }
                assert_eq!(got_events, events, "{before:?} and {bytes:02x?}");
                assert_eq!(got_replies, replies, "{before:?} and {bytes:02x?}");
                assert_eq!(protocol.state(), after, "{before:?} and {bytes:02x?}");
                protocol.close(CloseCode::NORMAL, "");
                protocol.ping();
                let speaks = after == State::Open;
                assert_eq!(!protocol.take_replies().is_empty(), speaks, "only an open connection says more");
            }
        }
    }

    /// The table in the module doc is printed from here: each thing that can happen, in each state.
    #[test]
    fn rfc_7_1_the_picture_and_the_table_are_true() {
        let [intact, lost] = [Framing::Intact, Framing::Lost].map(State::Closing);
        let states = [State::Open, intact, lost, State::Closed];
        type Happening<'a> = (&'a str, &'a dyn Fn(&mut Protocol) -> Option<String>);
        let comes = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            move |protocol: &mut Protocol| {
                let event = format!("{:?}", protocol.receive(&mut &mut bytes.clone()[..])?);
                event.split('(').next().map(str::to_owned)
            }
        };
        let happenings: [Happening; 12] = [
            ("a message", &comes(&frame(0x81, b"x"))),
            ("a Ping", &comes(&frame(0x89, b"x"))),
            ("a Pong", &comes(&frame(0x8a, b"x"))),
            ("a Close", &comes(&frame(0x88, b"\x03\xe8bye"))),
            ("a Close with a reserved code", &comes(&frame(0x88, b"\x03\xed"))),
            ("a Close, its reason not UTF-8", &comes(&frame(0x88, b"\x03\xe8\xff"))),
            ("text that is not UTF-8", &comes(&frame(0x81, b"\xff"))),
            ("a fragment too many", &comes(&[frame(0x01, b""), frame(0x00, b"").repeat(4)].concat())),
            ("a message over the limit", &comes(&frame(0x82, &[0; 201]))),
            ("a header that breaks a rule", &comes(&[0x81, 0x05])),
            ("we call `close`", &|protocol| {
                protocol.close(CloseCode::GOING_AWAY, "");
                None
            }),
            ("we call `ping`", &|protocol| {
                protocol.ping();
                None
            }),
        ];
        let mut moves = std::collections::BTreeSet::new();
        let heads = states.map(|state| format!(" `{state:?}` |"));
        let mut table = format!("| |{}\n|---|---|---|---|---|", heads.concat());
        for (name, happens) in happenings {
            table += &format!("\n| {name} |");
            for before in states {
                let mut protocol = in_state(before);
                let told = happens(&mut protocol).map(|event| format!("`{event}`"));
                let (replies, after) = (protocol.take_replies(), protocol.state());
                let sent = replies.first().map(|first| match Opcode::from_bits(first & 0x0f).unwrap() {
                    Opcode::Close => format!("sends Close {}", u16::from_be_bytes([replies[2], replies[3]])),
                    opcode => format!("sends {opcode:?}"),
                });
                let leads = (after != before).then(|| format!("→ `{after:?}`"));
                moves.extend(leads.is_some().then(|| format!("{before:?} → {after:?}")));
                let cell = [told, sent, leads].into_iter().flatten().collect::<Vec<_>>().join(", ");
                table += &format!(" {cell} |");
            }
        }
        crate::pictures::assert_drawn(include_str!("protocol.rs"), &table);
        // And the arrows of the picture above it: one head a move, and none between two others.
        let doc = crate::pictures::module_doc(include_str!("protocol.rs"));
        let picture = doc.split("```").nth(1).unwrap();
        assert_eq!(picture.matches(['▶', '◀', '▲']).count(), moves.len(), "{moves:#?}");
        assert!(moves.iter().all(|a_move| !a_move.starts_with("Closed") && !a_move.ends_with("Open")), "{moves:#?}");
    }

    fn in_state(state: State) -> Protocol {
        let mut protocol = Protocol::new(LIMITS);
        let mut bytes = match state {
            State::Open => Vec::new(),
            State::Closing(Framing::Intact) => {
                protocol.close(CloseCode::GOING_AWAY, "");
                Vec::new()
            }
            State::Closing(Framing::Lost) => vec![0x81, 0x05],
            State::Closed => frame(0x88, b""),
        };
        let mut input = &mut bytes[..];
        while protocol.receive(&mut input).is_some() {}
        protocol.take_replies();
        assert_eq!(protocol.state(), state);
        protocol
    }

    /// Any stream, legal or not, has the same events wherever it is cut.
    #[test]
    fn random_streams_read_the_same_whatever_the_cuts() {
        let mut random = fastrand::Rng::with_seed(6455);
        for _ in 0..2000 {
            let mut stream = Vec::new();
            for _ in 0..random.usize(1..8) {
                let first = random.choice([0x81, 0x01, 0x80, 0x00, 0x82, 0x89, 0x8a, 0x88, 0x83]).unwrap_or(0x81);
                let payload: Vec<u8> = match random.u8(0..4) {
                    0 => "zß水🍌".bytes().take(random.usize(0..11)).collect(),
                    1 => (0..random.usize(0..140)).map(|_| random.u8(..)).collect(),
                    _ => "héllo".into(),
                };
                stream.extend(frame(first, &payload));
            }
            stream.truncate(random.usize(1..=stream.len()));
            let whole = run(LIMITS, &stream, stream.len());
            for _ in 0..4 {
                let size = random.usize(1..=stream.len());
                assert_eq!(run(LIMITS, &stream, size), whole, "{stream:02x?} in pieces of {size}");
            }
        }
    }
}
