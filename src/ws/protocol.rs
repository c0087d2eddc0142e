//! §5, §7: the state machine of a connection after the handshake. Bytes go in, events come out one by one, and outgoing
//! control frames are buffered. Uncompressed messages are copied only if they are fragmented or span several reads.
//!
//! ```text
//!   Open ──▶ Closing ──▶ Closed       the server sends the first Close, the peer replies
//!   Open ──────────────▶ Closed       the peer sends the first Close, the server replies (§5.5.1)
//!   Open ──▶ OutOfSync ◀── Closing    after an error such as an invalid header, the server parses no more frames
//! ```
//!
//! Each cell lists the event, the frame sent and the next state. An empty cell means no effect. 1000 repeats the peer's
//! code; `close` sends any given code, here 1001. A fragment after the first [`Limits::fragments`] is over the limit.
//!
//! | | `Open` | `Closing` | `OutOfSync` | `Closed` |
//! |---|---|---|---|---|
//! | a message | `Message` |  |  |  |
//! | a Ping | `Ping`, sends Pong |  |  |  |
//! | a Pong | `Pong` |  |  |  |
//! | a Close | `Close`, sends Close 1000, → `Closed` | `Close`, → `Closed` |  |  |
//! | a Close with a reserved code | `Failed`, sends Close 1002, → `OutOfSync` | `Close`, → `Closed` |  |  |
//! | a Close whose reason is not UTF-8 | `Failed`, sends Close 1007, → `Closed` | `Close`, → `Closed` |  |  |
//! | text that is not UTF-8 | `Failed`, sends Close 1007, → `Closing` |  |  |  |
//! | one fragment over the limit | `Failed`, sends Close 1008, → `Closing` |  |  |  |
//! | a message over the size limit | `Failed`, sends Close 1009, → `OutOfSync` |  |  |  |
//! | an invalid header | `Failed`, sends Close 1002, → `OutOfSync` | → `OutOfSync` |  |  |
//! | a call to `close` | sends Close 1001, → `Closing` |  |  |  |
//! | a call to `ping` | sends Ping |  |  |  |

use std::borrow::Cow;

use super::close::{CloseCode, CloseFrame, ProtocolError};
use super::deflate::inflating::InflaterPool;
use super::frame::{self, FrameHeader, Opcode};
use super::message::{Assembler, Message};
use super::reader::{Chunk, FrameReader};

/// Limits on one incoming message (§10.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub message: usize, // maximum size of a message in bytes, over all its frames
    pub fragments: u32, // maximum number of frames per message; `message` alone would allow endless empty frames
    pub accepts_binary: bool,
    pub deflates: bool, // whether permessage-deflate was negotiated, so that messages may be compressed (RFC 7692)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    Closing,   // the server has sent a Close and is waiting for the peer's Close (§7.1.3)
    OutOfSync, // the server has sent a Close and discards all input, for example because frame boundaries are lost
    Closed,    // both endpoints have sent a Close; the server closes TCP next (§7.1.1, §7.1.4)
}

/// An event caused by the peer's input. `Protocol` has already queued any reply: a Pong (§5.5.2) or a Close (§5.5.1).
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Message(Message<'a>),
    Ping(Cow<'a, [u8]>),
    Pong(Cow<'a, [u8]>),
    Close(Option<CloseCode>, String), // the peer's close code (§7.1.5) and reason (§7.1.6)
    Failed(ProtocolError),            // the rule that the peer broke (§7.1.7)
}

#[derive(Debug)]
pub struct Protocol {
    pub limits: Limits,
    state: State,
    frames: FrameReader,
    pub inflaters: InflaterPool,            // all connections of a server share the inflaters
    message: Option<Box<(Assembler, u32)>>, // an incomplete message, and the number of its frames so far
    control_payload: Vec<u8>, // payload bytes received so far of an incomplete control frame, at most 125 (§5.5)
    output: Vec<u8>,
}

impl Protocol {
    pub fn new(limits: Limits) -> Protocol {
        let (frames, state, inflaters) = (FrameReader::new(limits.deflates), State::Open, InflaterPool::default());
        Protocol { limits, state, frames, inflaters, message: None, control_payload: Vec::new(), output: Vec::new() }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn is_between_messages(&self) -> bool {
        self.frames.is_between_frames() && self.message.is_none()
    }

    pub fn frames_received(&self) -> u64 {
        self.frames.frames_received
    }

    pub fn buffered_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.0.len_and_capacity().1)
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Starts the closing handshake (§7.1.2, §7.3), unless a Close was already sent. Truncates `reason` to 123 bytes.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        if self.send_close(Some(code), reason) {
            self.state = State::Closing;
        }
    }

    pub fn ping(&mut self, payload: &[u8]) {
        if self.state == State::Open {
            frame::append(&mut self.output, Opcode::Ping, payload);
        }
    }

    /// Returns the next event and leaves unread bytes in `input` (§6.2). Returns `None` once `input` is empty.
    pub fn receive<'a>(&mut self, input: &mut &'a mut [u8]) -> Option<Event<'a>> {
        loop {
            // Discard input after a failure (§7.1.7: "MUST NOT continue to attempt to process data") or a Close (§1.4).
            if matches!(self.state, State::OutOfSync | State::Closed) {
                *input = &mut [];
                return None;
            }
            let Protocol { limits, state, message, .. } = self;
            let validate = |header: &FrameHeader| match state {
                // §5.4: control frames "MAY be injected in the middle of a fragmented message".
                State::Open if !header.opcode.is_control() => check_data(header, message.as_deref(), limits),
                _ => Ok(()), // control frames are always allowed, and a closing server discards data frames unchecked
            };
            let result = self.frames.next(input, validate).transpose()?.and_then(|chunk| match self.state {
                _ if chunk.header.opcode.is_control() => self.receive_control_chunk(&chunk),
                State::Open => self.receive_data_chunk(&chunk),
                _ => Ok(None), // the closing server skips data frames until the peer's Close
            });
            if let Some(event) = result.unwrap_or_else(|error| self.fail(error)) {
                return Some(event);
            }
        }
    }

    fn receive_data_chunk<'a>(&mut self, chunk: &Chunk<'a>) -> Result<Option<Event<'a>>, ProtocolError> {
        let FrameHeader { fin, opcode, is_compressed, .. } = chunk.header;
        let is_complete = fin && chunk.is_last;
        debug_assert_eq!(chunk.is_first && opcode != Opcode::Continuation, self.message.is_none(), "§5.4: order");
        if is_complete && self.message.is_none() && !is_compressed {
            return Ok(Some(Event::Message(Message::from_payload(opcode, chunk.payload)?)));
        }
        // Take the incomplete message out of `self`, so that an error in the new payload also drops the message.
        let begin = || self.inflaters.begin_message(&chunk.header, self.limits.message);
        let mut message = self.message.take().unwrap_or_else(|| Box::new((begin(), 0)));
        // The cast cannot truncate the length of an uncompressed frame: `check_data` rejects frames longer than
        // `limits.message`, a `usize`. The cast may truncate the length of a compressed frame, but the inflater ignores
        // that length.
        message.0.push(chunk.payload, chunk.remaining as usize)?;
        if is_complete {
            return Ok(Some(Event::Message(message.0.finish()?)));
        }
        message.1 += u32::from(chunk.is_first);
        self.message = Some(message);
        Ok(None)
    }

    fn receive_control_chunk<'a>(&mut self, chunk: &Chunk<'a>) -> Result<Option<Event<'a>>, ProtocolError> {
        let payload = if chunk.is_first && chunk.is_last {
            Cow::Borrowed(chunk.payload)
        } else {
            self.control_payload.extend_from_slice(chunk.payload);
            if !chunk.is_last {
                return Ok(None);
            }
            Cow::Owned(std::mem::take(&mut self.control_payload))
        };
        match (chunk.header.opcode, self.state) {
            (Opcode::Close, _) => self.receive_close(&payload).map(Some),
            (Opcode::Ping, State::Open) => {
                // §5.5.3: a Pong "must have identical "Application data" as found in the message body of the Ping".
                frame::append(&mut self.output, Opcode::Pong, &payload);
                Ok(Some(Event::Ping(payload)))
            }
            // §5.5.3: "A response to an unsolicited Pong frame is not expected."
            (Opcode::Pong, State::Open) => Ok(Some(Event::Pong(payload))),
            // §1.4: after sending a Close, "a peer does not send any further data", so the server sends no Pong.
            _ => Ok(None),
        }
    }

    fn receive_close<'a>(&mut self, payload: &[u8]) -> Result<Event<'a>, ProtocolError> {
        let CloseFrame { code, reason } = match CloseFrame::parse(payload) {
            // The server has sent its only Close and cannot report an error: treat the peer's invalid Close as empty.
            Err(_) if self.state != State::Open => CloseFrame { code: None, reason: "" },
            parsed => parsed?,
        };
        // §5.5.1: an endpoint "MUST send a Close frame in response", and "typically echos the status code it received".
        self.send_close(code, "");
        self.state = State::Closed;
        Ok(Event::Close(code, reason.to_owned()))
    }

    /// Fails the connection with "an appropriate status code" (§7.1.7). Returns `None` if a Close was already sent.
    fn fail<'a>(&mut self, error: ProtocolError) -> Option<Event<'a>> {
        let was_open = self.send_close(Some(error.code()), &error.to_string());
        self.state = match (error, error.code()) {
            // The invalid frame is the peer's Close, so both endpoints have now sent a Close.
            (ProtocolError::CloseReasonNotUtf8, _) => State::Closed,
            // Discard all input: after a 1002 error, frame boundaries may be lost; after a 1009, much data may follow.
            (_, CloseCode::PROTOCOL_ERROR | CloseCode::MESSAGE_TOO_BIG) => State::OutOfSync,
            // After an error in a well-formed frame, frame boundaries are known: skip frames until the Close (§7.1.3).
            _ => State::Closing,
        };
        was_open.then_some(Event::Failed(error))
    }

    /// Sends a Close. Returns `false` if the server has already sent a Close: §5.5.1 allows only one. The caller sets
    /// the next state.
    fn send_close(&mut self, code: Option<CloseCode>, reason: &str) -> bool {
        let is_open = self.state == State::Open;
        if is_open {
            frame::append(&mut self.output, Opcode::Close, &CloseFrame { code, reason }.encode());
            self.message = None; // drop the incomplete message: the server ignores data frames from now on
        }
        is_open
    }
}

fn check_data(header: &FrameHeader, message: Option<&(Assembler, u32)>, limits: &Limits) -> Result<(), ProtocolError> {
    let is_continuation = header.opcode == Opcode::Continuation;
    ProtocolError::UnexpectedContinuation.err_unless(!is_continuation || message.is_some())?;
    // §5.4: "the fragments of one message MUST NOT be interleaved between the fragments of another message"
    ProtocolError::ExpectedContinuation.err_unless(is_continuation || message.is_none())?;
    // §7.4.1: "an endpoint that understands only text data MAY send" 1003 on a binary message.
    ProtocolError::UnsupportedData.err_unless(header.opcode != Opcode::Binary || limits.accepts_binary)?;
    let (received, fragments) = message.map_or((0, 0), |(message, count)| (message.len_and_capacity().0, *count));
    debug_assert!(received <= limits.message, "earlier frames passed this check");
    // Check the length in the header, before the payload arrives. For a compressed message, this is the compressed
    // length; the inflater checks the decompressed length instead.
    let inflates = header.is_compressed || matches!(message, Some((Assembler::Deflated(_), _)));
    ProtocolError::MessageTooBig.err_unless(inflates || header.payload_len <= (limits.message - received) as u64)?;
    ProtocolError::TooManyFragments.err_unless(fragments < limits.fragments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message: 200, fragments: 4, accepts_binary: true, deflates: false };

    /// Builds a client frame with masking key 0, so the payload stays readable. `first` is the first header byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len();
        let length = if len < 126 { vec![0x80 | len as u8] } else { vec![0xfe, (len >> 8) as u8, len as u8] };
        [&[first], &length[..], &[0; 4], payload].concat()
    }

    fn text(text: &str) -> Event<'static> {
        Event::Message(Message::Text(Cow::Owned(text.to_owned())))
    }

    fn run(limits: Limits, bytes: &[u8], size: usize) -> (Vec<String>, Vec<u8>, State) {
        let mut protocol = Protocol::new(limits);
        let (mut events, mut output) = (Vec::new(), Vec::new());
        for piece in bytes.to_vec().chunks_mut(size.max(1)) {
            let mut input = piece;
            while let Some(event) = protocol.receive(&mut input) {
                events.push(format!("{event:?}"));
                output.extend(protocol.take_output());
            }
            assert!(input.is_empty(), "all input is consumed");
        }
        (events, output, protocol.state())
    }

    fn expect(bytes: &[u8], events: &[Event], output: &[u8], state: State) {
        let events: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
        for size in std::iter::once(bytes.len()).chain(1..20) {
            let got = run(LIMITS, bytes, size);
            assert_eq!(got, (events.clone(), output.to_vec(), state), "{bytes:02x?} in pieces of {size}");
        }
    }

    fn close_for(error: ProtocolError) -> Vec<u8> {
        let mut out = Vec::new();
        let close = CloseFrame { code: Some(error.code()), reason: &error.to_string() };
        frame::append(&mut out, Opcode::Close, &close.encode());
        out
    }

    fn expect_failure(bytes: &[u8], error: ProtocolError, state: State) {
        expect(bytes, &[Event::Failed(error)], &close_for(error), state);
    }

    #[test]
    fn rfc_5_4_frame_order() {
        let pong = b"\x8a\x01p".as_slice();
        let open = State::Open;
        expect(&[frame(0x01, b"He"), frame(0x80, b"llo")].concat(), &[text("Hello")], b"", open);
        expect(&[frame(0x01, b""), frame(0x00, b""), frame(0x80, b"")].concat(), &[text("")], b"", open);
        let ping = Event::Ping(b"p".into());
        let interleaved = [frame(0x01, b"He"), frame(0x89, b"p"), frame(0x80, b"llo")].concat();
        expect(&interleaved, &[ping, text("Hello")], pong, open);
        let two = [frame(0x81, b"a"), frame(0x01, b"b"), frame(0x80, b"c"), frame(0x81, b"d")].concat();
        expect(&two, &[text("a"), text("bc"), text("d")], b"", open);

        let (lost, early) = (State::OutOfSync, ProtocolError::ExpectedContinuation);
        expect_failure(&frame(0x80, b"x"), ProtocolError::UnexpectedContinuation, lost);
        expect_failure(&frame(0x00, b"x"), ProtocolError::UnexpectedContinuation, lost);
        expect_failure(&[frame(0x01, b"a"), frame(0x81, b"b")].concat(), early, lost);
        expect_failure(&[frame(0x02, b"a"), frame(0x01, b"b")].concat(), early, lost);
        let after_the_end = [frame(0x81, b"a"), frame(0x80, b"b")].concat();
        let error = ProtocolError::UnexpectedContinuation;
        expect(&after_the_end, &[text("a"), Event::Failed(error)], &close_for(error), lost);
    }

    #[test]
    fn rfc_5_5_2_pong_repeats_the_ping_payload() {
        let all: Vec<u8> = (0..125).collect();
        for payload in [&b""[..], b"ping", b"\xff\x00", &all] {
            let mut pong = Vec::new();
            frame::append(&mut pong, Opcode::Pong, payload);
            expect(&frame(0x89, payload), &[Event::Ping(payload.into())], &pong, State::Open);
        }
        expect(&frame(0x8a, b"unsolicited"), &[Event::Pong(b"unsolicited".into())], b"", State::Open);
    }

    #[test]
    fn rfc_8_1_invalid_text_fails_before_its_frame_is_complete() {
        let whole = frame(0x81, b"ok \xff and a long tail that need not arrive");
        let error = ProtocolError::TextNotUtf8;
        for cut in 10..whole.len() {
            let (events, output, state) = run(LIMITS, &whole[..cut], 1);
            assert_eq!(events, [format!("{:?}", Event::Failed(error))], "cut at {cut}");
            assert_eq!((output, state), (close_for(error), State::Closing));
        }
    }

    #[test]
    fn rfc_10_4_each_limit_at_n_and_n_plus_1() {
        let fits = frame(0x81, &[b'x'; 200]);
        expect(&fits, &[text(&"x".repeat(200))], b"", State::Open);
        expect_failure(&frame(0x81, &[b'x'; 201]), ProtocolError::MessageTooBig, State::OutOfSync);
        let joined = [frame(0x01, &[b'x'; 150]), frame(0x80, &[b'x'; 50])].concat();
        expect(&joined, &[text(&"x".repeat(200))], b"", State::Open);
        let crossed = [frame(0x01, &[b'x'; 150]), frame(0x80, &[b'x'; 51])].concat();
        expect_failure(&crossed, ProtocolError::MessageTooBig, State::OutOfSync);

        let empty = [frame(0x01, b""), frame(0x00, b""), frame(0x00, b"")].concat();
        expect(&[&empty[..], &frame(0x80, b"")].concat(), &[text("")], b"", State::Open);
        let fifth = [&empty[..], &frame(0x00, b""), &frame(0x80, b"")].concat();
        expect_failure(&fifth, ProtocolError::TooManyFragments, State::Closing);
    }

    #[test]
    fn a_length_over_the_limit_fails_before_its_masking_key_arrives() {
        let huge = [0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        expect_failure(&huge, ProtocolError::MessageTooBig, State::OutOfSync);
    }

    #[test]
    fn the_first_broken_rule_decides() {
        let order: [(&[u8], ProtocolError); 6] = [
            (&[0xf3, 0x7f], ProtocolError::ReservedBits),
            (&[0x03, 0x7f], ProtocolError::ReservedOpcode(3)),
            (&[0x09, 0x7f], ProtocolError::FragmentedControl),
            (&[0x89, 0x7f], ProtocolError::ControlTooLong),
            (&[0x80, 0x7e, 0, 1], ProtocolError::Unmasked),
            (&[0x80, 0xfe, 0, 1], ProtocolError::LengthNotMinimal),
        ];
        for (bytes, error) in order {
            expect_failure(bytes, error, State::OutOfSync);
        }
        let no_binary = Limits { accepts_binary: false, ..LIMITS };
        let (events, _, state) = run(no_binary, &frame(0x82, &[0; 201]), 1000);
        assert_eq!(events, [format!("{:?}", Event::Failed(ProtocolError::UnsupportedData))], "type before size");
        assert_eq!(state, State::Closing);
    }

    #[test]
    fn rfc_7_1_states_and_events() {
        let (intact, lost) = (State::Closing, State::OutOfSync);
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
        /// One test: (state before, input, expected events, first byte of each expected frame, state after).
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
        for (before, bytes, events, output, after) in table {
            for size in [bytes.len(), 1] {
                let mut protocol = in_state(before);
                let (mut got_events, mut got_output) = (Vec::new(), Vec::new());
                for piece in bytes.to_vec().chunks_mut(size) {
                    let mut input = piece;
                    while let Some(event) = protocol.receive(&mut input) {
                        got_events.push(format!("{event:?}"));
                    }
                    got_output.extend(protocol.take_output().first().copied());
                }
                assert_eq!(got_events, events, "{before:?} and {bytes:02x?}");
                assert_eq!(got_output, output, "{before:?} and {bytes:02x?}");
                assert_eq!(protocol.state(), after, "{before:?} and {bytes:02x?}");
                protocol.close(CloseCode::NORMAL, "");
                protocol.ping(b"");
                let is_open = after == State::Open;
                assert_eq!(!protocol.take_output().is_empty(), is_open, "only an open connection sends");
            }
        }
    }

    #[test]
    fn rfc_7_1_picture_and_table_match_the_code() {
        let [intact, lost] = [State::Closing, State::OutOfSync];
        let states = [State::Open, intact, lost, State::Closed];
        type Input<'a> = (&'a str, &'a dyn Fn(&mut Protocol) -> Option<String>);
        let receive = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            move |protocol: &mut Protocol| {
                let event = format!("{:?}", protocol.receive(&mut &mut bytes.clone()[..])?);
                event.split('(').next().map(str::to_owned)
            }
        };
        let inputs: [Input; 12] = [
            ("a message", &receive(&frame(0x81, b"x"))),
            ("a Ping", &receive(&frame(0x89, b"x"))),
            ("a Pong", &receive(&frame(0x8a, b"x"))),
            ("a Close", &receive(&frame(0x88, b"\x03\xe8bye"))),
            ("a Close with a reserved code", &receive(&frame(0x88, b"\x03\xed"))),
            ("a Close whose reason is not UTF-8", &receive(&frame(0x88, b"\x03\xe8\xff"))),
            ("text that is not UTF-8", &receive(&frame(0x81, b"\xff"))),
            ("one fragment over the limit", &receive(&[frame(0x01, b""), frame(0x00, b"").repeat(4)].concat())),
            ("a message over the size limit", &receive(&frame(0x82, &[0; 201]))),
            ("an invalid header", &receive(&[0x81, 0x05])),
            ("a call to `close`", &|protocol| {
                protocol.close(CloseCode::GOING_AWAY, "");
                None
            }),
            ("a call to `ping`", &|protocol| {
                protocol.ping(b"");
                None
            }),
        ];
        let mut transitions = std::collections::BTreeSet::new();
        let heads = states.map(|state| format!(" `{state:?}` |"));
        let mut table = format!("| |{}\n|---|---|---|---|---|", heads.concat());
        for (name, apply) in inputs {
            table += &format!("\n| {name} |");
            for before in states {
                let mut protocol = in_state(before);
                let event = apply(&mut protocol).map(|event| format!("`{event}`"));
                let (output, after) = (protocol.take_output(), protocol.state());
                let sent = output.first().map(|first| match Opcode::from_bits(first & 0x0f).unwrap() {
                    Opcode::Close => format!("sends Close {}", u16::from_be_bytes([output[2], output[3]])),
                    opcode => format!("sends {opcode:?}"),
                });
                let next = (after != before).then(|| format!("→ `{after:?}`"));
                transitions.extend(next.is_some().then(|| format!("{before:?} → {after:?}")));
                let cell = [event, sent, next].into_iter().flatten().collect::<Vec<_>>().join(", ");
                table += &format!(" {cell} |");
            }
        }
        crate::pictures::assert_in_module_doc(include_str!("protocol.rs"), &table);
        // The state diagram in the module doc must have one arrowhead per state transition in the table.
        let doc = crate::pictures::module_doc(include_str!("protocol.rs"));
        let picture = doc.split("```").nth(1).unwrap();
        assert_eq!(picture.matches(['▶', '◀', '▲']).count(), transitions.len(), "{transitions:#?}");
        let is_forward = |transition: &String| !transition.starts_with("Closed") && !transition.ends_with("Open");
        assert!(transitions.iter().all(is_forward), "{transitions:#?}");
    }

    fn in_state(state: State) -> Protocol {
        let mut protocol = Protocol::new(LIMITS);
        let mut bytes = match state {
            State::Open => Vec::new(),
            State::Closing => {
                protocol.close(CloseCode::GOING_AWAY, "");
                Vec::new()
            }
            State::OutOfSync => vec![0x81, 0x05],
            State::Closed => frame(0x88, b""),
        };
        let mut input = &mut bytes[..];
        while protocol.receive(&mut input).is_some() {}
        protocol.take_output();
        assert_eq!(protocol.state(), state);
        protocol
    }

    #[test]
    fn frames_are_counted_from_their_first_byte() {
        let mut protocol = Protocol::new(LIMITS);
        let mut bytes = [frame(0x01, b"a"), frame(0x89, b""), frame(0x80, b"b"), vec![0x81], vec![0x05]].concat();
        let last = bytes.len() - 1;
        let (mut whole, rest) = bytes.split_at_mut(last - 1);
        while protocol.receive(&mut whole).is_some() {}
        assert_eq!(protocol.frames_received(), 3);
        for byte in rest.chunks_mut(1) {
            protocol.receive(&mut &mut *byte);
            assert_eq!(protocol.frames_received(), 4, "an invalid frame counts too");
        }
    }

    #[test]
    fn random_streams_have_the_same_result_wherever_they_are_cut() {
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
