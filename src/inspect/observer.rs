//! Implements the server's [`Observers`]: decides which connections to observe, and passes their bytes to a [`Tap`]
//! (`--trace`, inspectors), a [`Recorder`] (`--record`) and a [`HandshakeCapture`]. Writes trace lines immediately, but
//! queues records for inspectors: the server cannot send to an inspector while processing another connection.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use mio::Token;

use super::cases::{BoxedPlayer, PlayOptions, RunningCases};
use super::filter::Filter;
use super::inspection::{HandshakeCapture, Inspection, InspectorLink, RecordQueue};
use super::recorder::{Recorder, Recorders};
use super::reframe;
use super::text::{self, Style};
use super::{Record, Records, Tap};
use crate::server::observer::{Action, ObservedStage, Observer, Observers, QueuedBytes};
use crate::ws::frame::{self, Role};
use crate::ws::protocol::Limits;
use crate::ws::request::Rejection;

pub struct InspectOptions {
    pub trace: Option<Trace>,
    /// The values of `--record` and `--record-limit` (in bytes).
    pub record: Option<(PathBuf, u64)>,
    /// Whether a client may inspect its own connection (`--inspect`, or a local server without `--no-inspect`).
    pub enables_inspection: bool,
    /// Maximum outbox size per connection, in bytes.
    pub max_outbox: usize,
}

pub struct Trace {
    pub style: Style,
    pub filter: Filter,
    /// Outputs the text of one record. The text has one or more lines, and each line ends with a newline.
    pub write: Box<dyn Fn(&str)>,
}

impl Trace {
    fn write(&self, record: &Record) {
        if self.filter.matches(record) {
            let mut text = String::new();
            text::write(record, self.style, &mut text);
            (self.write)(&text);
        }
    }
}

/// Creates an observer for each connection that needs one, and serves the inspectors.
pub struct InspectObservers {
    context: Rc<Context>,
    recordings: Option<Recorders>,
    inspection: Option<Inspection>,
}

struct Context {
    // The current time, set once per event-loop turn, to avoid reading the clock for every read and write.
    now: Cell<SystemTime>,
    trace: Option<Trace>,
    queue: Rc<RecordQueue>,
}

impl InspectObservers {
    /// Creates the parts that `options` enables: trace, recordings and inspection. `random` fills a buffer with
    /// cryptographically secure random bytes. They become the secret key that protects the inspectors' tickets.
    ///
    /// # Errors
    /// Fails if the recordings directory cannot be created or is not writable.
    pub fn new(options: InspectOptions, random: &mut dyn FnMut(&mut [u8])) -> Result<InspectObservers, String> {
        // Report an unusable recordings directory at startup rather than at the first connection.
        let recordings = options.record.map(|(dir, limit)| Recorders::new(&dir, limit)).transpose()?;
        let queue = Rc::<RecordQueue>::default();
        // Each connection can have only one observer, and a recorded connection has one from the start. An inspector
        // that attaches later cannot add a second observer, so the first one must already contain a tap, the part that
        // decodes frames for the inspector.
        let taps_all = options.trace.is_some() || recordings.is_some();
        let inspection = options
            .enables_inspection
            .then(|| Inspection::new(options.max_outbox, taps_all, Rc::clone(&queue), random));
        let context = Context { now: Cell::new(SystemTime::UNIX_EPOCH), trace: options.trace, queue };
        Ok(InspectObservers { context: Rc::new(context), recordings, inspection })
    }

    /// Lets inspectors run test cases against this server, which listens on the address `server`. When a test case is
    /// over, its helper thread calls `wake` to start another turn of the event loop.
    pub fn with_player(
        mut self,
        player: BoxedPlayer,
        server: SocketAddr,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> InspectObservers {
        let options = PlayOptions { player, server, wake: Arc::new(wake) };
        if let Some(inspection) = &mut self.inspection {
            inspection.running_cases = RunningCases::new(Some(options));
        }
        self
    }
}

impl Observers for InspectObservers {
    fn begin_turn(&mut self, time: SystemTime) {
        self.context.now.set(time);
    }

    fn create_observer(&mut self, connection: Token, peer: SocketAddr) -> Option<Box<dyn Observer>> {
        let played = self.inspection.as_mut().and_then(|inspection| inspection.running_cases.accept(connection, peer));
        let is_played = played.is_some();
        let (number, now) = (connection.0, self.context.now.get());
        let recorder = self.recordings.as_mut().and_then(|recordings| recordings.start(number, now)).map(Box::new);
        let has_tap = self.context.trace.is_some() || (self.recordings.is_some() && self.inspection.is_some());
        let active_tap = (has_tap || is_played).then(|| {
            let own = || self.inspection.as_mut().map_or_else(Rc::default, |inspection| inspection.link(connection));
            let link = played.unwrap_or_else(own);
            let records = Records::default();
            let tap = Tap::new(number, records.clone()).hold_failures();
            Box::new(ActiveTap { tap, records, link, is_temporary: !has_tap })
        });
        // Capture the handshake, to show it if an inspector attaches later. A connection that runs a test case needs no
        // capture: its inspector is attached from the start.
        let inspection = self.inspection.as_ref().filter(|_| !is_played);
        let capture = inspection.map(|inspection| inspection.capture_handshake(connection));
        let observer = ConnectionObserver { context: Rc::clone(&self.context), active_tap, recorder, capture };
        if observer.is_done() { None } else { Some(Box::new(observer)) }
    }

    fn attach(&mut self, connection: Token, limits: Limits, received: u64, sent: u64) -> Option<Box<dyn Observer>> {
        let link = self.inspection.as_mut().map_or_else(Rc::default, |inspection| inspection.link(connection));
        let records = Records::default();
        let mut tap = Tap::open(connection.0, records.clone()).hold_failures();
        // This tap need not redact the secrets in `welcome`: the server has already sent that event.
        tap.set_limits(limits);
        tap.report_earlier_frames(received, sent, self.context.now.get());
        let active_tap = ActiveTap { tap, records, link, is_temporary: true };
        active_tap.deliver_records(&self.context);
        let context = Rc::clone(&self.context);
        let active_tap = Some(Box::new(active_tap));
        Some(Box::new(ConnectionObserver { context, active_tap, recorder: None, capture: None }))
    }

    fn needs_token(&self, connection: Token) -> bool {
        // A test case's connection needs no access token, because its inspector was already admitted with a ticket.
        !self.inspection.as_ref().is_some_and(|inspection| inspection.running_cases.contains(connection))
    }

    fn forget(&mut self, connection: Token) {
        self.inspection.iter_mut().for_each(|inspection| inspection.remove(connection));
    }

    fn welcome_field(&mut self, connection: Token) -> Option<(&'static str, String)> {
        self.inspection.as_ref().map(|inspection| ("ticket", inspection.ticket(connection)))
    }

    fn admit_inspector(&mut self, client: Token, ticket: &str, queued_bytes: QueuedBytes<'_>) -> Result<(), Rejection> {
        match &mut self.inspection {
            Some(inspection) => inspection.admit(client, ticket, queued_bytes, self.context.now.get()),
            None => Err(Rejection::new(403, "Inspection is not enabled on this server. Start it with --inspect.")),
        }
    }

    fn receive(&mut self, client: Token, text: &str, queued_bytes: QueuedBytes<'_>) {
        self.inspection.iter_mut().for_each(|inspection| inspection.receive_command(client, text, queued_bytes));
    }

    fn next_action(&mut self, queued_bytes: QueuedBytes<'_>) -> Option<Action> {
        self.inspection.as_mut().and_then(|inspection| inspection.next_action(queued_bytes, self.context.now.get()))
    }
}

/// Observes one connection. The large fields are boxed, to save memory while the observer only captures the handshake.
struct ConnectionObserver {
    context: Rc<Context>,
    active_tap: Option<Box<ActiveTap>>,
    recorder: Option<Box<Recorder>>,
    capture: Option<HandshakeCapture>,
}

struct ActiveTap {
    tap: Tap,
    /// New records from the tap, until `deliver_records` drains them.
    records: Records,
    link: Rc<InspectorLink>,
    /// Whether the tap serves only an inspector and can be dropped when the inspector disconnects.
    is_temporary: bool,
}

impl ActiveTap {
    fn deliver_records(&self, context: &Context) {
        for record in self.records.take() {
            // Write immediately, to keep trace lines and log lines in chronological order.
            context.trace.iter().for_each(|trace| trace.write(&record));
            context.queue.push(&self.link, record);
        }
        self.link.frame_count.set(self.tap.frame_count());
    }
}

impl Observer for ConnectionObserver {
    fn observe(&mut self, from: Role, bytes: &[u8]) {
        let now = self.context.now.get();
        if let Some(active_tap) = &mut self.active_tap {
            active_tap.tap.observe(from, bytes, now);
            active_tap.deliver_records(&self.context);
        }
        self.recorder.iter_mut().for_each(|recorder| recorder.observe(from, bytes, now));
        self.capture.take_if(|capture| capture.observe(from, bytes, now));
    }

    fn set_stage(&mut self, stage: ObservedStage<'_>) {
        match stage {
            ObservedStage::Upgraded { limits, username, is_inspector, has_welcome, has_ticket } => {
                let secrets = usize::from(has_welcome) + usize::from(has_ticket);
                if let Some(active_tap) = &mut self.active_tap {
                    active_tap.tap.upgrade(limits, username.cloned(), secrets);
                    // Hide the frames of an inspector's own connection: most of them only carry the records of the
                    // connection that it inspects.
                    if is_inspector {
                        active_tap.tap.set_private();
                    }
                }
                if let Some(recorder) = &mut self.recorder {
                    if is_inspector {
                        recorder.set_private();
                    }
                    let user = username.map(AsRef::as_ref);
                    recorder.upgrade(limits, user, secrets, self.context.now.get());
                }
                self.capture.take_if(|capture| capture.upgrade(has_ticket));
            }
            ObservedStage::Closing => {
                self.active_tap.iter_mut().for_each(|active_tap| active_tap.tap.set_closing());
                self.recorder.iter_mut().for_each(|recorder| recorder.set_closing(self.context.now.get()));
            }
        }
    }

    fn finish(&mut self, reason: &str) {
        let now = self.context.now.get();
        // Ignore an unfinished `capture`: without a complete response, there is no handshake to show to an inspector.
        if let Some(active_tap) = &mut self.active_tap {
            active_tap.tap.finish(reason, now);
            active_tap.deliver_records(&self.context);
        }
        self.recorder.iter_mut().for_each(|recorder| recorder.finish(reason, now));
    }

    fn reframe(&mut self, frames: &[u8]) -> Option<Vec<u8>> {
        let active_tap = self.active_tap.as_ref()?;
        // §5.5: control frames "MUST NOT be fragmented", so leave `should_fragment_next` set for the next data frame.
        let is_data = frames.first().is_some_and(|first| first & 0x8 == 0);
        (is_data && active_tap.link.should_fragment_next.take()).then(|| {
            let mut fragments = Vec::with_capacity(frames.len() + 2 * frame::MAX_HEADER_SIZE);
            reframe::append_in_fragments(&mut fragments, frames);
            fragments
        })
    }

    fn buffered_bytes(&self) -> usize {
        // The tap, recorder and capture buffers grow with the peer's input, so they count towards `--max-buffered`.
        self.active_tap.as_ref().map_or(0, |active_tap| active_tap.tap.buffered_bytes())
            + self.recorder.as_ref().map_or(0, |recorder| recorder.buffered_bytes())
            + self.capture.as_ref().map_or(0, HandshakeCapture::buffered_bytes)
    }

    fn is_done(&self) -> bool {
        let is_unused = |active_tap: &ActiveTap| active_tap.is_temporary && active_tap.link.inspector.get().is_none();
        self.active_tap.as_deref().is_none_or(is_unused) && self.recorder.is_none() && self.capture.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use serde_json::Value;

    use super::*;
    use crate::inspect::text::Detail;
    use crate::ws::close::CloseCode;
    use crate::ws::protocol::Limits;

    const FIRST: Token = Token(1);
    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const MAX_OUTBOX: usize = 1000;
    const LIMITS: Limits = Limits { message: 1000, fragments: 9, accepts_binary: false, deflates: false };
    const REQUEST: &[u8] = b"GET /?token=secret HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    const PING: &[u8] = b"\x89\x80\0\0\0\0";

    /// A minimal fake server that calls the observers as the real server does.
    struct Server {
        inspect: InspectObservers,
        observers: HashMap<Token, Box<dyn Observer>>,
        queued_bytes: HashMap<Token, usize>,
        next: usize,
        trace: Rc<RefCell<String>>,
    }

    impl Server {
        fn new(has_trace: bool, record: Option<PathBuf>) -> Server {
            let trace = Rc::<RefCell<String>>::default();
            let written = Rc::clone(&trace);
            let options = InspectOptions {
                trace: has_trace.then(|| Trace {
                    style: Style { detail: Detail::Line, uses_colour: false },
                    filter: Filter::default(),
                    write: Box::new(move |text| written.borrow_mut().push_str(text)),
                }),
                record: record.map(|dir| (dir, 1 << 20)),
                enables_inspection: true,
                max_outbox: MAX_OUTBOX,
            };
            let inspect = InspectObservers::new(options, &mut |bytes| bytes.fill(7));
            let inspect = inspect.expect("a writable folder");
            Server { inspect, observers: HashMap::new(), queued_bytes: HashMap::new(), next: FIRST.0, trace }
        }

        fn accept(&mut self) -> Token {
            let token = Token(self.next);
            self.next += 1;
            self.observers.extend(self.inspect.create_observer(token, PEER).map(|observer| (token, observer)));
            token
        }

        fn observe(&mut self, connection: Token, from: Role, bytes: &[u8]) {
            let Some(observer) = self.observers.get_mut(&connection) else { return };
            observer.observe(from, bytes);
            if observer.is_done() {
                self.observers.remove(&connection);
            }
        }

        /// Connects a chat client, joins, and returns the connection's mio token and its inspection ticket.
        fn join(&mut self) -> (Token, String) {
            let connection = self.accept();
            self.observe(connection, Role::Client, REQUEST);
            let (name, ticket) = self.inspect.welcome_field(connection).expect("a ticket");
            assert_eq!(name, "ticket");
            self.upgrade(connection, true);
            let mut welcome = RESPONSE.to_vec();
            frame::append(&mut welcome, frame::Opcode::Text, format!("{{\"ticket\":\"{ticket}\"}}").as_bytes());
            self.observe(connection, Role::Server, &welcome);
            (connection, ticket)
        }

        fn upgrade(&mut self, connection: Token, is_chat: bool) {
            self.queued_bytes.insert(connection, 0);
            let stage = ObservedStage::Upgraded {
                limits: LIMITS,
                username: None,
                is_inspector: !is_chat,
                has_welcome: false,
                has_ticket: is_chat,
            };
            self.observers.entry(connection).and_modify(|observer| observer.set_stage(stage));
        }

        fn admit(&mut self, client: Token, ticket: &str) -> Result<(), Rejection> {
            let queued_bytes = &self.queued_bytes;
            self.inspect.admit_inspector(client, ticket, &|token| queued_bytes.get(&token).copied())
        }

        fn inspect(&mut self, ticket: &str) -> Token {
            let inspector = self.accept();
            self.admit(inspector, ticket).expect("a good ticket");
            self.upgrade(inspector, false);
            inspector
        }

        fn command(&mut self, inspector: Token, text: &str) {
            let queued_bytes = &self.queued_bytes;
            self.inspect.receive(inspector, text, &|token| queued_bytes.get(&token).copied());
        }

        fn next_action(&mut self) -> Option<Action> {
            let queued_bytes = &self.queued_bytes;
            self.inspect.next_action(&|token| queued_bytes.get(&token).copied())
        }

        /// Executes all pending actions. Returns the records sent to inspectors, as JSON.
        fn records(&mut self) -> Vec<Value> {
            let mut records = Vec::new();
            while let Some(action) = self.next_action() {
                match action {
                    Action::Send(_, text) => records.push(serde_json::from_str(&text).expect("JSON")),
                    Action::Attach(connection) => {
                        let observer = self.inspect.attach(connection, LIMITS, 2, 3).unwrap();
                        self.observers.insert(connection, observer);
                    }
                    Action::Detach(connection) => {
                        self.observers.remove(&connection);
                    }
                    other => panic!("{other:?}"),
                }
            }
            records
        }

        fn remove(&mut self, connection: Token, reason: &str) {
            self.queued_bytes.remove(&connection);
            if let Some(mut observer) = self.observers.remove(&connection) {
                observer.finish(reason);
            }
            self.inspect.forget(connection);
        }
    }

    fn kinds(records: &[Value]) -> Vec<&str> {
        records.iter().filter_map(|record| record["record"].as_str()).collect()
    }

    #[test]
    fn an_inspector_gets_the_handshake_the_number_of_earlier_frames_and_then_every_frame() {
        let mut server = Server::new(false, None);
        let (alice, ticket) = server.join();
        assert!(server.observers.is_empty(), "a connection without an inspector has no observer");
        server.inspect(&ticket);
        let records = server.records();
        assert_eq!(kinds(&records), ["request", "answer", "state", "missed"]);
        assert_eq!((&records[3]["count"], &records[3]["earlier"]), (&5.into(), &true.into()));
        assert!(!records[0]["head"].to_string().contains("secret"));
        server.observe(alice, Role::Client, PING);
        server.observe(alice, Role::Server, b"\x8a\0");
        let records = server.records();
        assert_eq!(
            (kinds(&records), &records[0]["number"], &records[1]["number"]),
            (vec!["frame", "frame"], &3.into(), &4.into())
        );
        server.remove(alice, "hung up");
        assert!(matches!(server.next_action(), Some(Action::Send(..))), "the change to CLOSED");
        let Some(Action::Send(_, text)) = server.next_action() else { panic!("the end") };
        assert!(text.contains("\"record\":\"end\"") && text.contains("hung up"), "{text}");
        let close = server.next_action();
        let Some(Action::Close(_, CloseCode::NORMAL, reason)) = close else { panic!("{close:?}") };
        assert_eq!(reason, "the inspected connection is over");
    }

    #[test]
    fn a_ticket_is_good_once_for_its_own_open_connection() {
        let mut server = Server::new(false, None);
        let ((alice, ticket), (bob, other)) = (server.join(), server.join());
        assert_ne!(ticket, other);
        let inspector = server.accept();
        for guess in ["", "x", &ticket[1..], &ticket.to_uppercase(), &format!("{}{}", &other[..12], &ticket[12..])] {
            assert_eq!(server.admit(inspector, guess).map_err(|rejection| rejection.status), Err(403), "{guess}");
        }
        assert!(server.admit(inspector, &ticket).is_ok());
        assert!(server.admit(inspector, &ticket).is_err(), "a used ticket");
        server.queued_bytes.remove(&bob);
        assert!(server.admit(inspector, &other).is_err(), "a closing connection");
        server.remove(alice, "");
        assert!(server.admit(inspector, &ticket).is_err(), "a removed connection");
    }

    #[test]
    fn a_slow_inspector_misses_records_but_never_the_end() {
        let mut server = Server::new(false, None);
        let (alice, ticket) = server.join();
        let inspector = server.inspect(&ticket);
        server.records();
        server.queued_bytes.insert(inspector, MAX_OUTBOX / 2 + 1);
        (0..3).for_each(|_| server.observe(alice, Role::Client, PING));
        assert_eq!(server.records(), [Value::Null; 0]);
        server.queued_bytes.insert(inspector, 0);
        server.observe(alice, Role::Client, PING);
        let records = server.records();
        assert_eq!((kinds(&records), &records[0]["count"]), (vec!["missed", "frame"], &3.into()));
        assert_eq!(records[0]["earlier"], Value::Null);
        server.queued_bytes.insert(inspector, MAX_OUTBOX);
        server.observe(alice, Role::Client, PING);
        server.remove(alice, "done");
        let mut sent = Vec::new();
        while let Some(Action::Send(_, text)) = server.next_action() {
            sent.push(serde_json::from_str::<Value>(&text).expect("JSON"));
        }
        assert_eq!((kinds(&sent), &sent[0]["count"]), (vec!["missed", "end"], &2.into()));
    }

    #[test]
    fn records_that_do_not_fit_into_the_queue_are_counted() {
        let mut server = Server::new(false, None);
        let (alice, ticket) = server.join();
        server.inspect(&ticket);
        server.records();
        (0..3).for_each(|_| server.observe(alice, Role::Client, &PING.repeat(10_000)));
        server.observe(alice, Role::Client, b"\x88\x80\0\0\0\0");
        let queued = server.records();
        server.observe(alice, Role::Server, b"\x88\0");
        let records = server.records();
        let missed = records[0]["count"].as_u64().expect("a count");
        assert_eq!(records[0]["record"], "missed");
        // Expect 30,002 records, queued or missed: one for each of the 30,000 Pings, one for the client's Close and one
        // for the change to CLOSING. The `missed` record comes before the record of the server's Close, so its count
        // excludes that record.
        assert_eq!(queued.len() as u64 + missed, 30_000 + 2);
    }

    #[test]
    fn commands() {
        let mut server = Server::new(false, None);
        let (alice, ticket) = server.join();
        let inspector = server.inspect(&ticket);
        server.records();
        server.command(inspector, r#"{"do":"ping"}"#);
        let action = server.next_action();
        assert!(
            matches!(action, Some(Action::Ping(connection, ref payload)) if connection == alice && payload == "ping 1")
        );
        for (code, is_valid) in [
            ("999", false),
            ("1000", true),
            ("1003", true),
            ("1004", false),
            ("1005", false),
            ("1006", false),
            ("1007", true),
            ("1011", true),
            ("1012", false),
            ("1014", false),
            ("1015", false),
            ("2999", false),
            ("3000", true),
            ("4999", true),
            ("5000", false),
            ("66536", false),
            ("-1000", false),
            ("1000.5", false),
            ("null", false),
            ("\"1000\"", false),
        ] {
            server.command(inspector, &format!("{{\"do\":\"close\",\"code\":{code}}}"));
            match server.next_action() {
                Some(Action::Close(connection, sent, _)) => {
                    assert!(is_valid && connection == alice && sent.get().to_string() == code, "{code}");
                }
                Some(Action::Send(_, text)) => assert!(!is_valid && text.contains("close code"), "{code}: {text}"),
                other => panic!("{code}: {other:?}"),
            }
        }

        let message = b"\x81\x03abc";
        let observer = server.observers.get_mut(&alice).expect("an observer");
        assert_eq!(observer.reframe(message), None);
        server.command(inspector, r#"{"do":"fragment"}"#);
        let observer = server.observers.get_mut(&alice).expect("an observer");
        assert_eq!(observer.reframe(b"\x89\0"), None, "§5.5: a control frame is not fragmented");
        assert_eq!(observer.reframe(message).as_deref(), Some(&b"\x01\x01a\x00\x01b\x80\x01c"[..]));
        assert_eq!(observer.reframe(message), None, "one message only");

        server.queued_bytes.insert(alice, 4097);
        for (text, error) in
            [(r#"{"do":"ping"}"#, "Too many bytes are queued"), (r#"{"do":"harm"}"#, "no command"), ("", "no command")]
        {
            server.command(inspector, text);
            let records = server.records();
            assert_eq!(kinds(&records), ["error"], "{text}");
            assert!(records[0]["message"].as_str().is_some_and(|message| message.contains(error)), "{records:?}");
        }
        server.queued_bytes.remove(&alice);
        server.command(inspector, r#"{"do":"fragment"}"#);
        assert_eq!(server.records()[0]["message"], "The connection is over.");
    }

    #[test]
    fn a_connection_is_left_alone_when_its_inspector_has_gone() {
        let mut server = Server::new(false, None);
        let (alice, ticket) = server.join();
        let inspector = server.inspect(&ticket);
        server.records();
        server.remove(inspector, "hung up");
        assert!(server.observers[&alice].is_done());
        assert_eq!(server.records(), [Value::Null; 0]);
        assert!(!server.observers.contains_key(&alice));
        assert!(server.admit(inspector, &ticket).is_err(), "the ticket stays used");
    }

    #[test]
    fn the_trace_is_written_at_once_and_goes_on_without_an_inspector() {
        let mut server = Server::new(true, None);
        let (alice, ticket) = server.join();
        let lines = |server: &Server| server.trace.borrow().lines().count();
        assert_eq!(lines(&server), 4, "request, response, state, welcome");
        assert!(!server.trace.borrow().contains(&ticket), "the ticket is redacted");
        let inspector = server.inspect(&ticket);
        let records = server.records();
        assert_eq!(kinds(&records), ["request", "answer", "state", "missed"]);
        assert_eq!(records[3]["count"], 1);
        server.observe(inspector, Role::Client, PING);
        server.observe(alice, Role::Client, PING);
        assert_eq!(lines(&server), 5, "an inspector's frames are not traced");
        assert_eq!(kinds(&server.records()), ["frame"]);
        server.remove(inspector, "hung up");
        server.observe(alice, Role::Client, PING);
        assert_eq!(server.records(), [Value::Null; 0]);
        assert!(server.trace.borrow().contains("#2 = over") && server.trace.borrow().ends_with("§5.2 §5.3 §5.5.2\n"));
    }

    #[test]
    fn a_recorded_connection_can_be_inspected() {
        let dir = std::env::temp_dir().join(format!("wirechat-recorded-{}", std::process::id()));
        let mut server = Server::new(false, Some(dir.clone()));
        let (alice, ticket) = server.join();
        server.inspect(&ticket);
        assert_eq!(kinds(&server.records()), ["request", "answer", "state", "missed"]);
        server.observe(alice, Role::Client, PING);
        assert_eq!(kinds(&server.records()), ["frame"]);
        server.remove(alice, "both Closes passed; the server ended TCP (§7.1.1)");
        let files = std::fs::read_dir(&dir).expect("the folder").map(|entry| entry.expect("an entry").path());
        let recorded: String = files.map(|path| std::fs::read_to_string(path).expect("a file")).collect();
        std::fs::remove_dir_all(&dir).expect("the folder can be removed");
        assert!(recorded.contains("\"end\":\"both Closes passed; the server ended TCP (§7.1.1)\""), "{recorded}");
        assert!(
            recorded.contains(&format!("\"client\":\"{}\"", crate::inspect::escape::plain_hex(PING))),
            "{recorded}"
        );
    }

    #[test]
    fn the_newest_handshakes_are_kept_unless_they_are_too_long() {
        const MAX_STORED_HANDSHAKES: usize = 256;
        let mut server = Server::new(false, None);
        let tickets: Vec<String> = (0..MAX_STORED_HANDSHAKES + 1).map(|_| server.join().1).collect();
        let long = server.accept();
        server.observe(long, Role::Client, &[&REQUEST[..REQUEST.len() - 2], &[b'x'; 8 * 1024]].concat());
        assert!(!server.observers.contains_key(&long), "the observer has given up");
        let mut handshake = |ticket: &str| {
            server.inspect(ticket);
            kinds(&server.records()).contains(&"request")
        };
        assert!(!handshake(&tickets[0]), "the oldest handshake is evicted");
        assert!(handshake(&tickets[1]) && handshake(&tickets[MAX_STORED_HANDSHAKES]));
    }

    #[test]
    fn without_trace_recordings_and_inspection_nothing_is_observed() {
        let options = InspectOptions { trace: None, record: None, enables_inspection: false, max_outbox: MAX_OUTBOX };
        let inspect = InspectObservers::new(options, &mut |_| panic!("no ticket, no randomness"));
        let mut inspect = inspect.expect("no folder is needed");
        assert!(inspect.create_observer(FIRST, PEER).is_none() && inspect.welcome_field(FIRST).is_none());
        assert_eq!(inspect.admit_inspector(Token(5), "", &|_| Some(0)).map_err(|rejection| rejection.status), Err(403));
    }
}
