//! Drives the server with sockets made of memory and a clock that moves only when a test moves it. A test decides what
//! happens in which turn, so a timeout of a minute takes microseconds and every race has one outcome.
#![allow(dead_code)] // each test binary uses its own part

pub mod link;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use mio::Token;
use wirechat::broker::Broker;
use wirechat::broker::memory::MemoryBroker;
use wirechat::chat::Now;
use wirechat::config::Config;
use wirechat::http::access::Access;
use wirechat::server::limits::ConnectionLimits;
use wirechat::server::observer::{Observer, Observers, Stage};
use wirechat::server::{Readiness, Server, memory_broker};
use wirechat::ws::frame::Role;

use crate::support::upgrade_request;
use crate::support::watched::DEMO_TOKENS;
pub use link::{Client, End};
use link::{MemorySocket, SharedLink};

/// As in the event loop.
const ACCEPTS_PER_TURN: usize = 64;
/// The number for which the event loop of a small server reserves descriptors.
pub const MAX_LINGERING: usize = 8;
/// A server that is not idle after this many turns spins.
const MAX_TURNS: usize = 200_000;
pub const NO_EDGE: Readiness = Readiness { readable: false, writable: false, read_closed: false, error: false };

/// A server, its clock, and its end of every connection.
pub struct World {
    server: Server<MemorySocket>,
    now: Now,
    /// Clients that are not accepted yet.
    backlog: VecDeque<(SharedLink, SocketAddr)>,
    links: BTreeMap<Token, SharedLink>,
    reasons: Reasons,
    pub is_stopped: bool,
    /// Of new connections: see `Client::new`.
    pub capacity: usize,
    /// While `false`, clients wait in the backlog, as if the process had no descriptor left.
    pub accepts: bool,
    /// Reported in every turn for every socket, besides its own edges.
    pub spurious: Readiness,
}

impl World {
    pub fn new(args: &[&str]) -> World {
        World::build(args, 1, false)
    }

    pub fn observed(args: &[&str]) -> World {
        World::build(args, 1, true)
    }

    /// The seed decides the server's random bytes. If `is_observed`, the reason of each connection's end is recorded.
    pub fn build(args: &[&str], seed: u64, is_observed: bool) -> World {
        World::with_broker(args, seed, is_observed, |broker| Box::new(broker))
    }

    /// `wrap` returns the server's broker, which may be another one around the memory broker.
    pub fn with_broker(
        args: &[&str],
        seed: u64,
        is_observed: bool,
        wrap: impl FnOnce(MemoryBroker) -> Box<dyn Broker>,
    ) -> World {
        // Fails after the first time, since the tests of a process share the logger.
        let _ = log::set_logger(&LogCheck);
        log::set_max_level(log::LevelFilter::Debug);
        let config = Config::try_parse_from([&["wirechat"], args].concat()).expect("arguments");
        config.validate().expect("a valid configuration");
        let access = Access::new(&config, None).expect("the demo tokens");
        let limits = ConnectionLimits::new(&config, config.max_connections.unwrap_or(1000), MAX_LINGERING);
        let mut random = fastrand::Rng::with_seed(seed);
        let random = Box::new(move |bytes: &mut [u8]| random.fill(bytes));
        let reasons = Reasons::default();
        let observers: Box<dyn Observers> = if is_observed { Box::new(reasons.clone()) } else { Box::new(()) };
        let now = Now { time: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31), monotonic: Duration::ZERO };
        let broker = wrap(memory_broker(&config, random));
        let server = Server::new(config, access, limits, observers, broker, now);
        let (backlog, links, capacity) = (VecDeque::new(), BTreeMap::new(), 64 * 1024);
        let (is_stopped, accepts, spurious) = (false, true, NO_EDGE);
        World { server, now, backlog, links, reasons, is_stopped, capacity, accepts, spurious }
    }

    /// A client on loopback that has sent nothing. The server accepts it in one of the next turns.
    pub fn connect(&mut self) -> Client {
        self.connect_from(Ipv4Addr::LOCALHOST.into())
    }

    pub fn connect_from(&mut self, address: IpAddr) -> Client {
        let client = Client::new(self.capacity);
        self.backlog.push_back((Rc::clone(&client.0), SocketAddr::new(address, 1)));
        client
    }

    /// A client whose upgrade request was accepted. Its frames are unread.
    pub fn upgrade(&mut self, path: &str) -> Client {
        let client = self.connect();
        client.send(upgrade_request(path).as_bytes());
        self.settle();
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        client
    }

    /// The reason of the end of a client's connection.
    pub fn reason(&self, client: &Client) -> String {
        self.reasons.0.borrow()[&client.token()].clone()
    }

    /// One turn of the loop at the current time.
    pub fn turn(&mut self) {
        self.turn_with(|_| {});
    }

    /// One turn of the loop, in which `event` comes after the edges.
    pub fn turn_with(&mut self, event: impl FnOnce(&mut Server<MemorySocket>)) {
        assert!(!self.is_stopped, "the server has stopped");
        self.server.begin_turn(self.now);
        for (token, link) in &self.links {
            let edge = link.borrow_mut().take_edge(self.spurious);
            edge.into_iter().for_each(|edge| self.server.set_ready(*token, edge));
        }
        event(&mut self.server);
        let mut accepts = 0..ACCEPTS_PER_TURN;
        while self.accepts
            && accepts.next().is_some()
            && self.server.may_accept()
            && let Some((link, peer)) = self.backlog.pop_front()
        {
            let token = self.server.next_token();
            link.borrow_mut().token = Some(token);
            self.server.accept(MemorySocket(Rc::clone(&link)), peer);
            self.links.insert(token, link);
        }
        self.server.finish_turn();
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

    /// Whether the server has something to do at the current time.
    pub fn has_work(&self) -> bool {
        let has_edge = || self.links.values().any(|link| link.borrow().has_edge);
        let has_client = || self.accepts && !self.backlog.is_empty() && self.server.may_accept();
        let is_due = || self.server.next_turn_at().is_some_and(|at| at <= self.now.monotonic);
        !self.is_stopped && (has_edge() || has_client() || is_due())
    }

    /// Lets time pass. The server has a turn whenever it has asked for one.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        self.settle();
        while !self.is_stopped
            && let Some(at) = self.server.next_turn_at().filter(|at| *at <= end)
        {
            self.jump(at - self.now.monotonic);
            self.settle();
        }
        self.jump(end - self.now.monotonic);
        self.settle();
    }

    /// Moves the clock without a turn, as if the machine had been suspended.
    pub fn jump(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.time += time;
    }

    /// A turn in which the signal to stop arrives.
    pub fn shut_down(&mut self) {
        self.turn_with(|server| _ = server.shut_down());
    }

    pub fn now(&self) -> Duration {
        self.now.monotonic
    }

    pub fn connection_count(&self) -> usize {
        self.server.connection_count()
    }

    pub fn buffered_bytes(&self) -> usize {
        self.server.limits.buffered + self.server.limits.buffered_shared.get()
    }

    pub fn next_turn_at(&self) -> Option<Duration> {
        self.server.next_turn_at()
    }

    /// When the next summary of rejections is due, which no connection causes.
    pub fn next_summary(&self) -> Option<Duration> {
        self.server.limits.next_summary_at()
    }

    pub fn backlog_len(&self) -> usize {
        self.backlog.len()
    }
}

/// The reason of each connection's end.
#[derive(Clone, Default)]
struct Reasons(Rc<RefCell<BTreeMap<Token, String>>>);

impl Observers for Reasons {
    fn create_observer(&mut self, connection: Token, _: SocketAddr) -> Option<Box<dyn Observer>> {
        Some(Box::new(ReasonObserver(connection, self.clone())))
    }
}

struct ReasonObserver(Token, Reasons);

impl Observer for ReasonObserver {
    fn observe(&mut self, _: Role, _: &[u8]) {}

    fn set_stage(&mut self, _: Stage<'_>) {}

    fn finish(&mut self, reason: &str) {
        let before = self.1.0.borrow_mut().insert(self.0, reason.to_owned());
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
}

/// The lines that servers of this thread, and so of one test, have logged.
pub fn log_lines() -> Vec<String> {
    LOG_LINES.with_borrow(Vec::clone)
}

/// The same lines, which are then forgotten.
pub fn take_log_lines() -> Vec<String> {
    LOG_LINES.take()
}

/// No line of the log may contain a token or a control character.
struct LogCheck;

impl log::Log for LogCheck {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        assert!(!DEMO_TOKENS.iter().any(|token| line.contains(token)), "a token in the log: {line}");
        assert!(!line.contains(char::is_control), "a control character in the log: {line:?}");
        LOG_LINES.with_borrow_mut(|lines| lines.push(line));
    }

    fn flush(&self) {}
}
