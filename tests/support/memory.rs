//! Drives the server with in-memory sockets and a clock that only the test moves. Each test decides what the server
//! receives in each turn of its event loop, so timeouts need no waiting, and every race has a fixed outcome.
#![allow(dead_code, unused_imports)] // each test binary uses only part of this module

pub mod link;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use clap::Parser;
use mio::Token;
use wirechat::broker::Broker;
use wirechat::broker::memory::MemoryBroker;
use wirechat::chat::Now;
use wirechat::config::Config;
use wirechat::http::{access::AccessControl, jwt::read_key_files};
use wirechat::net::listener::Listener;
use wirechat::net::log_writer::LogWriter;
use wirechat::server::limits::ConnectionLimits;
use wirechat::server::observer::{Action, ObservedStage, Observer, Observers, QueuedBytes};
use wirechat::server::{Readiness, Server, new_memory_broker};
use wirechat::ws::frame::Role;
use wirechat::ws::protocol::Limits;
use wirechat::ws::request::Rejection;

use crate::support::upgrade_request;
use crate::support::watched::DEMO_TOKENS;
pub use link::{Client, End};
use link::{MemorySocket, SharedLink, Trace, WriteRecord};

/// A copy of the private constant `MAX_ACCEPTS_PER_TURN` in `net/event_loop.rs`, so that a turn accepts as many
/// connections here as in the real event loop.
const ACCEPTS_PER_TURN: usize = 64;
/// Maximum number of rejected connections that linger.
pub const MAX_LINGERING: usize = 8;
/// Maximum number of turns until the server is idle. A server that takes more is in an endless loop.
const MAX_TURNS: usize = 200_000;
/// The error code of accept(2) when the process has run out of file descriptors.
const EMFILE: i32 = 24;
pub const NO_EDGE: Readiness =
    Readiness { is_readable: false, is_writable: false, is_read_closed: false, has_error: false };

/// A server, its clock, and the in-memory link of every connection.
pub struct World {
    server: Server<MemorySocket>,
    now: Now,
    listener: Listener<Backlog>,
    links: BTreeMap<Token, SharedLink>,
    reasons: Reasons,
    pub is_stopped: bool,
    /// The buffer size of new connections, in bytes per direction. See [`Client::new`].
    pub capacity: usize,
    log: Option<LogWriter>,
    /// Simulates spurious readiness events: in every turn, each socket also reports these flags.
    pub spurious: Readiness,
    /// Number of turns since a turn in which something happened: bytes were read or written, or a connection was
    /// accepted or removed, or a fault occurred.
    pub idle_turns: usize,
    /// Traces each new connection, if set.
    pub trace: Option<WriteRecord>,
}

impl World {
    pub fn new(args: &[&str]) -> World {
        World::build(args, 1, false)
    }

    pub fn observed(args: &[&str]) -> World {
        World::build(args, 1, true)
    }

    /// `seed` determines the server's random bytes. If `is_observed`, the world records why each connection ends.
    pub fn build(args: &[&str], seed: u64, is_observed: bool) -> World {
        World::with_broker(args, seed, is_observed, |broker| Box::new(broker))
    }

    /// `wrap` returns the server's broker: the memory broker itself, or a broker that wraps it.
    pub fn with_broker(
        args: &[&str],
        seed: u64,
        is_observed: bool,
        wrap: impl FnOnce(MemoryBroker) -> Box<dyn Broker>,
    ) -> World {
        // Only the first call in a process succeeds. All tests of the process share the logger.
        let _ = log::set_logger(&TestLogger);
        log::set_max_level(log::LevelFilter::Debug);
        let config = Config::try_parse_from([&["wirechat"], args].concat()).expect("arguments");
        config.validate().expect("a valid configuration");
        let mut access = AccessControl::new(&config, None).expect("the demo tokens");
        assert_eq!(access.jwt_keys.load(&config, read_key_files(&config)).0, Vec::<String>::new());
        let limits = ConnectionLimits::new(&config, config.max_connections.unwrap_or(1000), MAX_LINGERING);
        let mut random = fastrand::Rng::with_seed(seed);
        let random = Box::new(move |bytes: &mut [u8]| random.fill(bytes));
        let reasons = Reasons { is_observed, ..Reasons::default() };
        let observers = Box::new(reasons.clone());
        let now = Now { time: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31), monotonic: Duration::ZERO };
        let broker = wrap(new_memory_broker(&config, random));
        let server = Server::new(config, access, limits, observers, broker, now);
        let listener = Listener { socket: Backlog::default(), next_accept_at: None, logged_at: None, file: None };
        let (links, capacity, is_stopped, spurious, log) = (BTreeMap::new(), 64 * 1024, false, NO_EDGE, None);
        LOG_WRITER.set(None);
        let (idle_turns, trace) = (0, None);
        World { server, now, listener, links, reasons, is_stopped, capacity, log, spurious, idle_turns, trace }
    }

    /// Connects a client from loopback. The server accepts the client in a later turn.
    pub fn connect(&mut self) -> Client {
        self.connect_from(Ipv4Addr::LOCALHOST.into())
    }

    pub fn connect_from(&mut self, address: IpAddr) -> Client {
        let client = Client::new(self.capacity);
        self.listener.socket.clients.borrow_mut().push_back((Rc::clone(&client.0), SocketAddr::new(address, 1)));
        self.listener.socket.has_edge.set(true);
        client
    }

    /// Connects a client and upgrades its connection, with `path` as the request target. Reads no frames.
    pub fn upgrade(&mut self, path: &str) -> Client {
        let client = self.connect();
        client.send(upgrade_request(path).as_bytes());
        self.settle();
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        client
    }

    /// Returns the reason why a client's connection ended.
    pub fn reason(&self, client: &Client) -> String {
        self.reasons.by_token.borrow()[&client.token()].clone()
    }

    /// Runs one turn of the event loop at the current time.
    pub fn turn(&mut self) {
        self.turn_with(|_| {});
    }

    /// Runs one turn of the event loop. Calls `event` after the sockets have reported their readiness.
    pub fn turn_with(&mut self, event: impl FnOnce(&mut Server<MemorySocket>)) {
        assert!(!self.is_stopped, "the server has stopped");
        if let Some(log) = &self.log {
            let is_due = self.server.next_turn_at().is_some_and(|at| at <= self.now.monotonic);
            log.lines().begin_turn(self.now, !is_due && !self.has_edge());
        }
        self.server.begin_turn(self.now);
        if self.listener.socket.has_edge.take() {
            self.listener.next_accept_at.get_or_insert_default();
        }
        for (token, link) in &self.links {
            let edge = link.borrow_mut().take_edge(self.spurious);
            edge.into_iter().for_each(|edge| self.server.set_ready(*token, edge));
        }
        event(&mut self.server);
        let accept_calls = self.listener.socket.accept_calls.get();
        let mut accepts = 0..ACCEPTS_PER_TURN;
        while accepts.next().is_some()
            && self.server.may_accept()
            && let Some((link, peer)) = self.listener.accept(self.now.monotonic, Backlog::accept, Backlog::has_client)
        {
            let token = self.server.next_token();
            link.borrow_mut().token = Some(token);
            link.borrow_mut().trace = self.trace.clone().map(|write| Trace::new(token, write));
            self.server.accept(MemorySocket(Rc::clone(&link)), Some(peer));
            self.links.insert(token, link);
        }
        let count = self.server.connection_count();
        self.server.finish_turn();
        let has_removed = self.server.connection_count() < count;
        if has_removed {
            self.listener.next_accept_at = self.listener.next_accept_at.min(Some(self.now.monotonic));
        }
        let has_accepted = self.listener.socket.accept_calls.get() > accept_calls;
        let is_active = self.links.values().any(|link| link.borrow().is_active);
        self.idle_turns = if has_removed || has_accepted || is_active { 0 } else { self.idle_turns + 1 };
        self.links.values().for_each(|link| link.borrow_mut().deliver());
        self.links.retain(|_, link| !link.borrow().is_dropped);
        if self.server.is_stopped() {
            self.is_stopped = true;
            self.server.stop_observers();
        }
    }

    /// Runs turns until the server has nothing to do at the current time. Returns the number of turns.
    pub fn settle(&mut self) -> usize {
        let mut turns = 0;
        while self.has_work() {
            turns += 1;
            assert!(turns < MAX_TURNS, "the server spins");
            self.turn();
        }
        turns
    }

    /// Whether the event loop must run a turn now: a socket has become ready, or a deadline has been reached.
    pub fn has_work(&self) -> bool {
        let is_due = || self.next_turn_at().is_some_and(|at| at <= self.now.monotonic);
        !self.is_stopped && (self.has_edge() || is_due())
    }

    fn has_edge(&self) -> bool {
        self.listener.socket.has_edge.get() || self.links.values().any(|link| link.borrow().has_edge)
    }

    /// Advances the clock by `time`, and runs the event loop at each deadline on the way.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        self.settle();
        while !self.is_stopped
            && let Some(at) = self.next_turn_at().filter(|at| *at <= end)
        {
            self.jump(at.saturating_sub(self.now.monotonic));
            self.settle();
        }
        self.jump(end - self.now.monotonic);
        self.settle();
    }

    /// Advances the clock by `time` without running a turn, as if the server process had been suspended (SIGSTOP).
    pub fn jump(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.time += time;
    }

    /// Sets the wall clock to `time` since the Unix epoch. The monotonic clock does not change.
    pub fn set_clock(&mut self, time: Duration) {
        self.now.time = SystemTime::UNIX_EPOCH + time;
    }

    /// Runs a turn in which SIGINT arrives: the server shuts down without draining.
    pub fn shut_down(&mut self) {
        self.turn_with(|server| _ = server.shut_down(false));
    }

    /// Runs a turn in which SIGTERM arrives: the server drains, and then shuts down.
    pub fn drain(&mut self) {
        self.turn_with(|server| _ = server.shut_down(true));
    }

    pub fn is_draining(&self) -> bool {
        self.server.is_draining()
    }

    pub fn storage_failed(&self) -> bool {
        self.server.storage_failed
    }

    pub fn now(&self) -> Duration {
        self.now.monotonic
    }

    pub fn connection_count(&self) -> usize {
        self.server.connection_count()
    }

    /// Returns the number of connections, upgraded connections, chat clients and open rooms that the server holds.
    pub fn entry_counts(&self) -> [usize; 4] {
        let Server { chat, limits, .. } = &self.server;
        [self.connection_count(), limits.client_count, chat.clients.len(), chat.rooms.len()]
    }

    pub fn buffered_bytes(&self) -> usize {
        self.server.limits.buffered + self.server.limits.shared_bytes.get()
    }

    /// Returns the number of bytes in the outbox of an open connection, and 0 for any other connection.
    pub fn queued_bytes(&self, connection: Token) -> usize {
        self.server.connections.queued_bytes(connection).unwrap_or_default()
    }

    /// The time by which the event loop must run again: the earliest deadline of the server, the listener and the log.
    pub fn next_turn_at(&self) -> Option<Duration> {
        let accept = self.listener.next_accept_at.filter(|_| self.server.may_accept());
        let flush = self.log.as_ref().and_then(|log| log.lines().deadline());
        [self.server.next_turn_at(), accept, flush].into_iter().flatten().min()
    }

    /// The time at which the server logs the next summary of rejections, even if no connection is left.
    pub fn next_summary_at(&self) -> Option<Duration> {
        self.server.limits.next_summary_at()
    }

    pub fn backlog(&self) -> &Backlog {
        &self.listener.socket
    }

    /// From now on, also writes log lines to an in-memory stderr.
    pub fn log_to(&mut self, stderr: &Arc<Mutex<Stderr>>) {
        let pipe = Arc::clone(stderr);
        let writer = LogWriter::new(Box::new(move |bytes| pipe.lock().expect("no panic").write(bytes)));
        LOG_WRITER.set(Some(writer.clone()));
        self.log = Some(writer);
    }

    /// Flushes the log twice, because the first flush may add a line about dropped lines.
    pub fn flush_log(&self) {
        (0..2).for_each(|_| self.log.iter().for_each(|log| log.lines().flush()));
    }
}

/// An in-memory stderr. Writes accept `space` bytes, and then return `WouldBlock`.
#[derive(Default)]
pub struct Stderr {
    pub written: Vec<u8>,
    pub space: usize,
}

impl Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.space);
        self.space -= len;
        self.written.extend(&bytes[..len]);
        if len == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(len) }
    }
}

/// Simulates the kernel's queue of connections before accept(2). As in epoll, each new connection causes an edge.
#[derive(Default)]
pub struct Backlog {
    clients: RefCell<VecDeque<(SharedLink, SocketAddr)>>,
    has_edge: Cell<bool>,
    /// While true, every accept fails with EMFILE, even if no client is waiting.
    pub is_out_of_descriptors: Cell<bool>,
    /// Number of calls of accept(2) that found a client or failed.
    accept_calls: Cell<u64>,
    /// If set, each `accept` may fail. Contains the random number generator and the probability of a failure.
    pub faults: RefCell<Option<(fastrand::Rng, f64)>>,
}

impl Backlog {
    pub fn len(&self) -> usize {
        self.clients.borrow().len()
    }

    fn has_client(&self) -> bool {
        self.len() > 0
    }

    fn accept(&self) -> io::Result<(SharedLink, SocketAddr)> {
        let is_idle = self.clients.borrow().is_empty() && !self.is_out_of_descriptors.get();
        self.accept_calls.update(|calls| calls + u64::from(!is_idle));
        if self.is_out_of_descriptors.get() {
            return Err(io::Error::from_raw_os_error(EMFILE));
        }
        if let Some((random, probability)) = &mut *self.faults.borrow_mut()
            && random.f64() < *probability
        {
            let kinds = [ErrorKind::Interrupted, ErrorKind::ConnectionAborted, ErrorKind::TimedOut];
            return Err(kinds[random.usize(..kinds.len())].into());
        }
        self.clients.borrow_mut().pop_front().ok_or(ErrorKind::WouldBlock.into())
    }
}

/// The reason why each connection ended. Recorded only if `is_observed`.
#[derive(Clone, Default)]
struct Reasons {
    by_token: Rc<RefCell<BTreeMap<Token, String>>>,
    is_observed: bool,
}

impl Observers for Reasons {
    fn begin_turn(&mut self, _: SystemTime) {}

    fn create_observer(&mut self, connection: Token, _: SocketAddr) -> Option<Box<dyn Observer>> {
        self.is_observed.then(|| Box::new(ReasonObserver(connection, self.clone())) as _)
    }

    fn needs_token(&self, _: Token) -> bool {
        true
    }

    fn attach(&mut self, _: Token, _: Limits, _: u64, _: u64) -> Option<Box<dyn Observer>> {
        None
    }

    fn forget(&mut self, _: Token) {}

    fn welcome_field(&mut self, _: Token) -> Option<(&'static str, String)> {
        None
    }

    fn admit_inspector(&mut self, _: Token, _: &str, _: QueuedBytes<'_>) -> Result<(), Rejection> {
        Err(Rejection::new(403, "Inspection is off on this server."))
    }

    fn receive(&mut self, _: Token, _: &str, _: QueuedBytes<'_>) {}

    fn next_action(&mut self, _: QueuedBytes<'_>) -> Option<Action> {
        None
    }
}

struct ReasonObserver(Token, Reasons);

impl Observer for ReasonObserver {
    fn observe(&mut self, _: Role, _: &[u8]) {}

    fn set_stage(&mut self, _: ObservedStage<'_>) {}

    fn finish(&mut self, reason: &str) {
        let before = self.1.by_token.borrow_mut().insert(self.0, reason.to_owned());
        assert_eq!(before, None, "a connection ends once");
    }

    fn reframe(&mut self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn buffered_bytes(&self) -> usize {
        0
    }

    fn is_done(&self) -> bool {
        false
    }
}

thread_local! {
    static LOG_LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static LOG_WRITER: RefCell<Option<LogWriter>> = const { RefCell::new(None) };
}

/// Returns what servers on this thread have logged. Each test runs on its own thread, so the lines are its own.
pub fn log_lines() -> Vec<String> {
    LOG_LINES.with_borrow(Vec::clone)
}

/// Returns and removes the lines that servers on this thread have logged.
pub fn take_log_lines() -> Vec<String> {
    LOG_LINES.take()
}

/// A logger that collects the lines, and panics if a line contains a token or a control character.
struct TestLogger;

impl log::Log for TestLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        assert!(!DEMO_TOKENS.iter().any(|token| line.contains(token)), "a token in the log: {line}");
        assert!(!line.contains(char::is_control), "a control character in the log: {line:?}");
        LOG_LINES.with_borrow_mut(|lines| lines.push(line));
        LOG_WRITER.with_borrow(|writer| writer.iter().for_each(|writer| writer.log(record)));
    }

    fn flush(&self) {}
}
