//! Turns the raw bytes of both directions of one connection into [`Record`](super::Record)s. A
//! [`RuleChecker`] checks the client's frames, so that the tap can report a failure after the frame that caused it.
//!
//! ```text
//!   Handshake ──101──▶ Frames
//!       └──any other response──▶ Ended
//! ```
//!
//! A client may send bytes right after its request, before the response. Only the response shows whether those bytes
//! are frames, so the tap buffers them until the response is complete.

use std::rc::Rc;
use std::time::SystemTime;

use super::checker::RuleChecker;
use super::lifecycle::Lifecycle;
use super::scan::{DirectionState, ScanResult};
use super::secret::{TokenRedactor, WelcomeRedactor};
use super::{AcceptSteps, Frame, Head, MAX_SHOWN_BYTES, RecordKind, Records, Reporter, Response, State};
use super::{failure, secret};
use crate::ws::frame::{Opcode, Role};
use crate::ws::protocol::Limits;

/// Maximum number of client bytes buffered until the response is complete. The tap buffers the first read even if it
/// is larger, because the server's `--max-read` bounds a single read.
const MAX_EARLY_BYTES: usize = 64 * 1024;

/// Maximum inflated size of a client message, in bytes, when a tool decodes it. The server applies its own limit.
const MAX_INFLATED_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug)]
pub struct Tap {
    reporter: Reporter,
    stage: TapStage,
    client: DirectionState,
    server: DirectionState,
    /// Bytes that the client sent after its request but before the response: one (read number, bytes) pair per read.
    early_reads: Vec<(u64, Vec<u8>)>,
    /// Whether the tap dropped client bytes that arrived before the response, because of [`MAX_EARLY_BYTES`].
    has_early_gap: bool,
    checker: RuleChecker,
    lifecycle: Lifecycle,
    /// Redacts the secrets in the `welcome` event, the server's first text frame. `None` if there is nothing to redact.
    welcome: Option<WelcomeRedactor>,
    /// Redacts JWTs in the client's `token` commands (`events` dialect). `None` if there is nothing to redact.
    tokens: Option<TokenRedactor>,
    /// Whether to omit frames and report only the handshake and the close.
    is_private: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum TapStage {
    Handshake,
    Frames,
    /// The tap ignores all further bytes: the response status was not 101, or the client is an inspector.
    Ended,
}

impl Tap {
    /// Creates a tap for a new connection. The tap expects the opening handshake first.
    pub fn new(connection: usize, records: Records) -> Tap {
        Tap {
            reporter: Reporter::new(connection, records),
            stage: TapStage::Handshake,
            client: DirectionState::new(Role::Client),
            server: DirectionState::new(Role::Server),
            early_reads: Vec::new(),
            has_early_gap: false,
            checker: RuleChecker::default(),
            lifecycle: Lifecycle::new(State::Connecting),
            welcome: None,
            tokens: None,
            is_private: false,
        }
    }

    /// Creates a tap for an open connection. Both directions must be between messages, because the tap parses the next
    /// bytes as a frame header.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use wirechat::inspect::{Records, Tap, RecordKind};
    /// use wirechat::ws::frame::Role;
    /// let records = Records::default();
    /// let mut tap = Tap::open(1, records.clone());
    /// tap.observe(Role::Client, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", SystemTime::now()); // §5.7
    /// let [record] = &records.take()[..] else { panic!() };
    /// let RecordKind::Frame(frame) = &record.kind else { panic!() };
    /// assert_eq!((frame.header.name(), frame.unmasked_payload()), ("TEXT", b"Hello".to_vec()));
    /// ```
    pub fn open(connection: usize, records: Records) -> Tap {
        let (lifecycle, tokens) = (Lifecycle::new(State::Open), Some(TokenRedactor::default()));
        Tap { stage: TapStage::Frames, lifecycle, tokens, ..Tap::new(connection, records) }
    }

    /// Sets the limits for checking and inflating, and resets the rule checker. Must be called before the first frame.
    pub fn set_limits(&mut self, limits: Limits) {
        self.checker.set_limits(limits);
        self.client.frames.set_limits(limits);
        // `limits.message` bounds only messages from the client. The server's own messages may be longer.
        self.server.frames.set_limits(Limits { message: usize::MAX, ..limits });
    }

    /// Delays the report of a client's protocol error until the server sends a Close or the TCP connection closes. If
    /// the Close has a different code or reason than the error, drops the report: the server never processed the
    /// invalid frame.
    pub fn hold_failures(mut self) -> Tap {
        self.checker.awaits_close = true;
        self
    }

    /// Sets how many frames passed before the tap was attached: `received` from the client and `sent` from the server.
    /// Later frames are numbered accordingly. Reports the total as [`RecordKind::Earlier`], unless it is 0.
    pub fn report_earlier_frames(&mut self, received: u64, sent: u64, time: SystemTime) {
        self.client.frames.start_after(received);
        self.server.frames.start_after(sent);
        self.reporter.time = time;
        if self.frame_count() > 0 {
            self.reporter.report(RecordKind::Earlier(self.frame_count()));
        }
    }

    /// Tells the tap that the server has accepted the upgrade request. `secrets` is the number of secrets to redact in
    /// the `welcome` event.
    pub fn upgrade(&mut self, limits: Limits, user: Option<Rc<str>>, secrets: usize) {
        self.set_limits(limits);
        self.reporter.user = user;
        self.welcome = (secrets > 0).then(|| WelcomeRedactor::new(secrets));
        self.tokens = (secrets > 0).then(TokenRedactor::default);
    }

    /// Makes the tap omit the frames of this connection. Must be called before the tap observes the response.
    pub fn set_private(&mut self) {
        self.is_private = true;
    }

    pub fn frame_count(&self) -> u64 {
        self.client.frames.frame_count() + self.server.frames.frame_count()
    }

    /// Total bytes buffered: an incomplete message, the HTTP heads, and client bytes that arrived before the response.
    pub fn buffered_bytes(&self) -> usize {
        let heads = self.client.head.bytes.capacity() + self.server.head.bytes.capacity();
        let inflaters = self.client.frames.buffered_bytes() + self.server.frames.buffered_bytes();
        self.checker.buffered_bytes()
            + heads
            + inflaters
            + self.early_reads.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Processes one read from the client or one write to the client.
    pub fn observe(&mut self, from: Role, bytes: &[u8], time: SystemTime) {
        self.reporter.time = time;
        let direction = self.direction(from);
        direction.parts += 1;
        let part = direction.parts;
        match (&self.stage, from) {
            (TapStage::Ended, _) => {}
            (TapStage::Frames, _) => self.read_frames(from, bytes, part),
            (TapStage::Handshake, Role::Client) => self.read_request(bytes, part),
            (TapStage::Handshake, Role::Server) => self.read_response(bytes, part),
        }
    }

    /// Must be called when the server starts the closing handshake. From then on, the server ignores the client's data
    /// frames, so the tap must not check them. The tap sees the Close only later, when the server writes it out.
    pub fn set_closing(&mut self) {
        self.checker.set_closing();
    }

    /// Reports any incomplete request or frames, and then the close of the TCP connection and its `cause`.
    pub fn finish(&mut self, cause: &str, time: SystemTime) {
        self.reporter.time = time;
        if self.stage == TapStage::Handshake {
            self.report_incomplete_request();
        }
        // Report incomplete frames too: they show where the connection broke.
        for from in [Role::Client, Role::Server] {
            let direction = self.direction(from);
            if let Some(frame) = direction.frames.partial_frame().filter(|_| !direction.is_reported).cloned() {
                self.report_frame(frame);
            }
        }
        self.reporter.report_failure(self.checker.release_failure(None));
        let (change, end) = self.lifecycle.close_tcp(cause);
        self.reporter.report_change(change);
        self.reporter.report(RecordKind::End(end));
    }

    fn direction(&mut self, from: Role) -> &mut DirectionState {
        match from {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    fn read_request(&mut self, bytes: &[u8], part: u64) {
        let was_complete = self.client.head.is_complete;
        let rest = self.client.head.read(bytes, part);
        if self.client.head.is_complete && !was_complete {
            self.report_request();
        }
        let held: usize = self.early_reads.iter().map(|(_, bytes)| bytes.len()).sum();
        let exceeds = held > 0 && held + rest.len() > MAX_EARLY_BYTES;
        self.has_early_gap |= exceeds;
        if !self.has_early_gap && !rest.is_empty() {
            self.early_reads.push((part, rest.to_vec()));
        }
    }

    /// Reports a request whose head is still incomplete when the server responds or the connection closes.
    fn report_incomplete_request(&mut self) {
        if !self.client.head.is_complete && !self.client.head.bytes.is_empty() {
            self.report_request();
        }
    }

    fn report_request(&mut self) {
        let head = Head { bytes: secret::redact_head(&self.client.head.bytes), ..self.client.head.clone() };
        self.reporter.report(RecordKind::Request(head));
    }

    fn read_response(&mut self, bytes: &[u8], part: u64) {
        if self.server.head.bytes.is_empty() {
            self.report_incomplete_request();
        }
        let rest = self.server.head.read(bytes, part);
        if !self.server.head.is_complete {
            return;
        }
        let head = self.server.head.clone();
        let status = head.status();
        // §4.1: "If the status code received from the server is not 101, the client handles the response per HTTP".
        if status != 101 {
            let body = rest[..rest.len().min(MAX_SHOWN_BYTES)].to_vec();
            self.stage = TapStage::Ended;
            self.early_reads = Vec::new();
            return self.reporter.report(RecordKind::Response(Response { head, status, body, accept: None }));
        }
        let accept = AcceptSteps::from_handshake(&self.client.head, &head);
        let extensions = head.header("Sec-WebSocket-Extensions").unwrap_or_default();
        self.reporter.report(RecordKind::Response(Response { head, status, body: Vec::new(), accept }));
        // Do not report an inspector's frames: most of them only carry the records of other connections.
        self.stage = if self.is_private { TapStage::Ended } else { TapStage::Frames };
        self.reporter.report_change(self.lifecycle.open());
        self.read_extensions(&extensions);
        // Free the memory of the HTTP heads, because a connection may stay open for days.
        (self.client.head, self.server.head) = (Head::default(), Head::default());
        // Report these client frames before the server's frames, because they arrived before the response.
        for (part, bytes) in std::mem::take(&mut self.early_reads) {
            self.read_frames(Role::Client, &bytes, part);
        }
        if self.has_early_gap {
            // The client sent too many bytes before the response, and the tap dropped some of them. So the tap does not
            // know where the client's next frame starts.
            self.client.is_out_of_sync = true;
            self.reporter.report(RecordKind::Missed(1));
        }
        self.read_frames(Role::Server, rest, part);
    }

    /// Makes the tap inflate messages if the response accepts permessage-deflate. Only the tap of a command-line tool
    /// needs this: in the server, `upgrade` has already configured the tap.
    fn read_extensions(&mut self, chosen: &str) {
        let limits = self.checker.limits;
        if limits.deflates || !cfg!(feature = "deflate") || !chosen.contains("permessage-deflate") {
            return;
        }
        self.set_limits(Limits { message: limits.message.min(MAX_INFLATED_BYTES), deflates: true, ..limits });
        if !chosen.contains("client_no_context_takeover") {
            self.client.frames.keep_context();
            // Stop checking messages: with context takeover, a compressed message may depend on the data of earlier
            // messages, but `Protocol` inflates each message on its own.
            self.checker.set_closing();
        }
    }

    fn read_frames(&mut self, from: Role, mut bytes: &[u8], part: u64) {
        while !bytes.is_empty() && !self.direction(from).is_out_of_sync && self.stage == TapStage::Frames {
            let before = bytes;
            let result = self.direction(from).frames.next(&mut bytes, part);
            let passed = &before[..before.len() - bytes.len()];
            match from {
                Role::Client => self.check_client(passed, &result),
                Role::Server => self.check_server_frames(&result),
            }
            match result {
                ScanResult::More => {}
                ScanResult::Lost(..) => self.direction(from).is_out_of_sync = true,
                ScanResult::Complete(frame) => self.process_frame(frame),
            }
        }
    }

    fn process_frame(&mut self, frame: Frame) {
        let from = frame.from;
        let close = (frame.header.opcode() == Opcode::Close as u8).then(|| frame.unmasked_payload());
        if let (Role::Server, Some(payload)) = (from, &close) {
            self.reporter.report_failure(self.checker.release_failure(Some(payload)));
            // After sending its Close frame (§5.5.1), the server discards everything but the client's Close frame.
            self.checker.set_closing();
        }
        if !std::mem::take(&mut self.direction(from).is_reported) {
            self.report_frame(frame);
        }
        if let Some(payload) = close {
            self.reporter.report_change(self.lifecycle.record_close(from, &payload));
        }
    }

    fn check_client(&mut self, passed: &[u8], result: &ScanResult) {
        if let Some(error) = self.checker.check(passed)
            && let Some(frame) = self.report_invalid_frame(Role::Client, result)
        {
            let failure = failure::explain(error, &frame, &self.checker.limits);
            self.reporter.report_failure(self.checker.hold_failure(error, failure));
        }
        // §7.1.7: "An endpoint MUST NOT continue to attempt to process data" after it has failed the connection.
        self.client.is_out_of_sync |= self.checker.is_finished();
    }

    /// Checks only the header of a server frame. The remaining rules are implemented in `Protocol`, which cannot be
    /// used here because it accepts only client frames.
    fn check_server_frames(&mut self, result: &ScanResult) {
        let broken = match result {
            ScanResult::Lost(_, error) => Some(*error),
            ScanResult::Complete(frame) if frame.header.is_masked() => None,
            _ => return,
        };
        if let Some(frame) = self.report_invalid_frame(Role::Server, result) {
            let explained = broken.map(|error| failure::explain(error, &frame, &self.checker.limits));
            self.reporter
                .report(RecordKind::Failure(explained.unwrap_or_else(|| failure::explain_masked_server_frame(&frame))));
        }
    }

    /// Reports the frame that broke a rule, even if the frame is incomplete. Returns a copy of the frame.
    fn report_invalid_frame(&mut self, from: Role, result: &ScanResult) -> Option<Frame> {
        let frame = match result {
            ScanResult::Complete(frame) | ScanResult::Lost(frame, _) => frame.clone(),
            // The frame is incomplete, but the bytes that have arrived already break a rule.
            ScanResult::More => self.direction(from).frames.partial_frame()?.clone(),
        };
        self.direction(from).is_reported = true;
        self.report_frame(frame.clone());
        Some(frame)
    }

    fn report_frame(&mut self, mut frame: Frame) {
        let is_text = frame.header.opcode() == Opcode::Text as u8;
        match frame.from {
            // Only the server's first text frame can be the `welcome` event, which contains secrets to redact.
            Role::Server if is_text => {
                self.welcome.take().iter_mut().for_each(|welcome| welcome.redact(&mut frame.wire))
            }
            Role::Server => {}
            // §5.2: the MASK bit makes the second byte of the frame non-ASCII, so the frame is not an HTTP request.
            Role::Client if frame.header.is_masked() => {
                let is_complete = frame.is_complete();
                if let (Some(_), Some(inflated)) = (&self.tokens, &mut frame.inflated) {
                    // The position of a token in the compressed payload is unknown, so redact the whole payload.
                    if inflated.has_token || inflated.is_broken || !is_complete {
                        secret::redact_compressed(&frame.header, frame.payload_len, 0, &mut frame.wire);
                        inflated.prefix.fill(b'*');
                    }
                } else if let Some(tokens) = &mut self.tokens {
                    tokens.redact(&frame.header, 0, &mut frame.wire);
                    if frame.received > frame.wire.len() as u64 {
                        tokens.skip();
                    }
                }
            }
            // An unmasked frame may be the start of an HTTP request with an access token, so redact secrets.
            Role::Client => {
                let header = frame.header.bytes();
                frame.wire = secret::redact_head(&[header, &frame.wire].concat()).split_off(header.len());
            }
        }
        self.reporter.report(RecordKind::Frame(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_matches_the_code() {
        let stage_after = |response: &[u8]| {
            let mut tap = Tap::new(1, Records::default());
            tap.observe(Role::Client, b"GET / HTTP/1.1\r\n\r\n", SystemTime::UNIX_EPOCH);
            tap.observe(Role::Server, response, SystemTime::UNIX_EPOCH);
            tap.stage
        };
        let [before, upgraded, plain] =
            [&b""[..], b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"].map(stage_after);
        let picture = format!("  {before:?} ──101──▶ {upgraded:?}\n      └──any other response──▶ {plain:?}");
        crate::pictures::assert_in_module_doc(include_str!("tap.rs"), &picture);
    }

    /// After the server queues a Close, it ignores the client's data frames, so the tap must not report errors in them.
    /// The tap cannot see a Close that is not on the wire yet, so the server calls `set_closing`.
    #[test]
    fn frames_after_a_queued_close_are_not_checked() {
        let is_broken = |is_closing: bool| {
            let records = Records::default();
            let mut tap = Tap::open(1, records.clone());
            if is_closing {
                tap.set_closing();
            }
            tap.observe(Role::Client, b"\x81\x81\0\0\0\0\xff", SystemTime::UNIX_EPOCH);
            records.take().iter().any(|record| matches!(record.kind, RecordKind::Failure(_)))
        };
        assert!(is_broken(false) && !is_broken(true));
    }

    /// `limits.message` bounds the inflated length of a message from the client, but not of a message from the server.
    #[cfg(feature = "deflate")]
    #[test]
    fn a_message_of_exactly_the_limit_inflates() {
        let is_broken = |from: Role, message: usize| {
            let records = Records::default();
            let mut tap = Tap::open(1, records.clone());
            tap.set_limits(Limits { message, fragments: 9, accepts_binary: false, deflates: true });
            let header = if from == Role::Client { &b"\xc1\x87\0\0\0\0"[..] } else { b"\xc1\x07" };
            // "Hello", compressed (RFC 7692 §7.2.3.1)
            tap.observe(from, &[header, b"\xf2\x48\xcd\xc9\xc9\x07\x00"].concat(), SystemTime::UNIX_EPOCH);
            let inflated = records.take().into_iter().find_map(|record| match record.kind {
                RecordKind::Frame(frame) => frame.inflated,
                _ => None,
            });
            inflated.expect("a compressed frame").is_broken
        };
        let broken =
            [(Role::Client, 5), (Role::Client, 4), (Role::Server, 4)].map(|(from, limit)| is_broken(from, limit));
        assert_eq!(broken, [false, true, false]);
    }

    /// A tool's tap learns from the response whether compressed messages may refer to earlier ones (RFC 7692 §7.1.1).
    #[cfg(feature = "deflate")]
    #[test]
    fn a_tool_learns_from_the_response_what_was_negotiated() {
        let trace = |parameters: &str| {
            let records = Records::default();
            let mut tap = Tap::new(1, records.clone());
            let response = format!(
                "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Extensions: permessage-deflate{parameters}\r\n\r\n"
            );
            tap.observe(Role::Client, b"GET / HTTP/1.1\r\n\r\n", SystemTime::UNIX_EPOCH);
            tap.observe(Role::Server, response.as_bytes(), SystemTime::UNIX_EPOCH);
            let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00"; // "Hello", compressed (RFC 7692 §7.2.3.1)
            let reference = b"\xf2\x00\x11\x00\x00"; // a back-reference to the first "Hello" (RFC 7692 §7.2.3.2)
            let server = [&b"\xc1\x07"[..], hello, b"\xc1\x05", reference].concat();
            let client = [&b"\xc1\x87\0\0\0\0"[..], hello, b"\xc1\x85\0\0\0\0", reference].concat();
            tap.observe(Role::Server, &server, SystemTime::UNIX_EPOCH);
            tap.observe(Role::Client, &client, SystemTime::UNIX_EPOCH);
            let kinds = records.take().into_iter().map(|record| record.kind);
            let text = |kind| match kind {
                RecordKind::Frame(frame) => {
                    let inflated = frame.inflated.filter(|inflated| !inflated.is_broken);
                    Some(inflated.map_or("broken".into(), |inflated| String::from_utf8(inflated.prefix).unwrap()))
                }
                RecordKind::Failure(failure) => Some(failure.code.to_string()),
                _ => None,
            };
            kinds.filter_map(text).collect::<Vec<_>>()
        };
        assert_eq!(trace(""), ["Hello"; 4]);
        let alone = trace("; client_no_context_takeover");
        assert_eq!(alone, ["Hello", "Hello", "Hello", "broken", "1007"]);
    }

    #[test]
    fn buffered_bytes_include_the_heads_until_the_upgrade() {
        let mut tap = Tap::new(1, Records::default());
        tap.observe(Role::Client, &[b'x'; 5000], SystemTime::UNIX_EPOCH);
        assert!(tap.buffered_bytes() >= 5000);
        tap.observe(Role::Client, b"\r\n\r\n", SystemTime::UNIX_EPOCH);
        tap.observe(Role::Server, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", SystemTime::UNIX_EPOCH);
        assert_eq!(tap.buffered_bytes(), 0);
    }

    #[test]
    fn frames_before_a_gap_in_the_early_bytes_are_reported() {
        let records = Records::default();
        let mut tap = Tap::new(1, records.clone());
        tap.observe(Role::Client, b"GET / HTTP/1.1\r\n\r\n\x89\x80\0\0\0\0", SystemTime::UNIX_EPOCH);
        for bytes in [&[b'x'; MAX_EARLY_BYTES][..], b"\x8a\x80\0\0\0\0"] {
            tap.observe(Role::Client, bytes, SystemTime::UNIX_EPOCH);
        }
        tap.observe(Role::Server, b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x8a\0", SystemTime::UNIX_EPOCH);
        let kinds: Vec<_> = records.take().into_iter().map(|record| record.kind).skip(3).collect();
        let [RecordKind::Frame(ping), RecordKind::Missed(1), RecordKind::Frame(pong)] = &kinds[..] else {
            panic!("{kinds:?}")
        };
        assert_eq!((ping.from, pong.from), (Role::Client, Role::Server));
    }

    #[test]
    fn numbers_continue_after_the_frames_that_passed_before() {
        let records = Records::default();
        let mut tap = Tap::open(1, records.clone());
        tap.report_earlier_frames(5, 7, SystemTime::UNIX_EPOCH);
        tap.observe(Role::Client, b"\x89\x80\0\0\0\0", SystemTime::UNIX_EPOCH);
        tap.observe(Role::Server, b"\x8a\0", SystemTime::UNIX_EPOCH);
        let numbers: Vec<_> = records.take().into_iter().map(|record| record.kind).collect();
        let [RecordKind::Earlier(12), RecordKind::Frame(ping), RecordKind::Frame(pong)] = &numbers[..] else {
            panic!("{numbers:?}")
        };
        assert_eq!((ping.number, pong.number, tap.frame_count()), (6, 8, 14));
    }
}
