//! The glue: one poll loop that moves bytes between sockets, the protocol and the chat.
//!
//! ```text
//!   poll ─▶ journal.turn ─▶ note ─▶ accept ─▶ read ─▶ look_at_due ─▶ write_and_remove ─▶ poll ─▶ …
//! ```
//!
//! That is a turn. Each connection is read within its budget, and the rest is remembered; what is to be said to it is
//! written once, as a rule, at the end. Only then is a connection taken out of the tables, so nothing earlier in the turn can
//! meet one that is half gone.
//!
//! The subtle thing: everything here must be bounded by what is in the tables, because there is one thread. No loop
//! waits for a peer, and an error of a socket ends that connection, never the loop.

pub mod addresses;
pub mod answer;
pub mod batch;
pub mod connection;
pub mod deadline;
pub mod delivery;
pub mod dispatch;
pub mod inspection;
pub mod journal;
pub mod listener;
pub mod outbox;
pub mod phase;
pub mod query;
pub mod routes;
pub mod shutdown;
pub mod watch;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use mio::event::Event as Readiness;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::chat::access::Access;
use crate::chat::{Chat, Now, TokenMap};
pub use crate::config::Config;
use addresses::Addresses;
use batch::Batches;
use connection::{Connection, Received};
use deadline::Deadlines;
pub use journal::Journal;
use listener::{Listener, max_connections};
use watch::Watchers;

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
const FIRST_CLIENT: usize = 2;

/// How many readiness events one poll returns: more wait for the next.
const EVENTS: usize = 1024;

/// How the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Everyone was told, and had time to answer.
    Cleanly,
    /// A second signal came.
    AtOnce,
}

/// The server: all connections, the chat, and the loop.
pub struct Server {
    config: Config,
    access: Access,
    chat: Chat,
    poll: Poll,
    /// `None` once the server is stopping.
    listener: Option<Listener>,
    signals: Signals,
    journal: Journal,
    connections: TokenMap<Box<Connection>>,
    addresses: Addresses,
    max_connections: usize,
    next_token: usize,
    deadlines: Deadlines,
    batches: Batches,
    watchers: Watchers,
    /// Connections that have input which is wanted.
    unread: Vec<Token>,
    /// Connections that have something to write.
    unsent: VecDeque<Token>,
    /// Connections for which too much waits.
    too_slow: VecDeque<Token>,
    /// Connections that are to be removed at the end of the turn, and why.
    ended: VecDeque<(Token, Cow<'static, str>)>,
    /// A room was told so much in this turn that nothing more should be read before others could take it.
    is_busy: bool,
    /// What is read goes here first: one buffer for all.
    scratch: Vec<u8>,
    /// Bytes that all connections together hold against `--max-buffered`.
    buffered: usize,
    started: Instant,
    /// When this turn began, by both clocks.
    now: Instant,
    time: SystemTime,
    stop_at: Option<Instant>,
}

impl Server {
    /// Checks what the configuration alone cannot tell to make no sense.
    ///
    /// # Errors
    /// A line that names the option.
    pub fn check(config: &Config) -> Result<(), String> {
        watch::check(config)
    }

    /// Listens, and prepares everything else. The configuration must be valid.
    ///
    /// # Errors
    /// One line that says what is in the way.
    pub fn bind(config: Config, journal: Journal) -> Result<Server, String> {
        let access = Access::new(&config)?;
        let watchers = Watchers::new(&config)?;
        let max_connections = max_connections(&config)?;
        let mut listener = Listener::bind(config.listen)?;
        let mut prepared = || -> io::Result<(Poll, Signals)> {
            let poll = Poll::new()?;
            let mut signals = Signals::new([SIGINT, SIGTERM])?;
            poll.registry().register(listener.source(), LISTENER, Interest::READABLE)?;
            poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
            Ok((poll, signals))
        };
        let (poll, signals) = prepared().map_err(|error| format!("cannot poll: {error}"))?;
        Ok(Server {
            chat: Chat::new(&config),
            addresses: Addresses::new(&config),
            scratch: vec![0; config.max_read],
            config,
            access,
            poll,
            listener: Some(listener),
            signals,
            journal,
            connections: TokenMap::default(),
            max_connections,
            next_token: FIRST_CLIENT,
            deadlines: Deadlines::default(),
            batches: Batches::default(),
            watchers,
            unread: Vec::new(),
            unsent: VecDeque::new(),
            too_slow: VecDeque::new(),
            ended: VecDeque::new(),
            is_busy: false,
            buffered: 0,
            started: Instant::now(),
            now: Instant::now(),
            time: SystemTime::now(),
            stop_at: None,
        })
    }

    /// Where the server listens.
    pub fn local_addr(&self) -> SocketAddr {
        let bound = self.listener.as_ref().and_then(|listener| listener.local_addr().ok());
        bound.unwrap_or(self.config.listen)
    }

    /// How many connections it takes.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Runs until a signal ends it.
    ///
    /// # Errors
    /// The poll itself failed.
    pub fn run(mut self) -> io::Result<Stopped> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.now = Instant::now();
            self.time = self.watchers.tell_time();
            self.journal.turn(self.time, events.is_empty() && self.unread.is_empty());
            for event in &events {
                if event.token() == SIGNALS && !self.handle_signals() {
                    return Ok(self.stopped(Stopped::AtOnce));
                }
                self.note(event);
            }
            self.accept();
            self.read();
            self.look_at_due();
            self.write_and_remove();
            if self.stop_at.is_some_and(|at| self.connections.is_empty() || at <= self.now) {
                return Ok(self.stopped(Stopped::Cleanly));
            }
        }
    }

    /// Notes what a socket is ready for; it is served later in the turn.
    fn note(&mut self, event: &Readiness) {
        let token = event.token();
        if token == LISTENER {
            self.listener.iter_mut().for_each(Listener::set_ready);
        }
        // A token is never used again, so an event that comes late finds nobody.
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            connection.set_readable(event.is_read_closed() || event.is_error());
            // Also where nothing is read for now: who cannot be heard is not silent.
            connection.last_received = self.now;
        }
        let wanted = connection.interest(self.config.max_outbox);
        if wanted.read && !connection.is_queued {
            connection.is_queued = true;
            self.unread.push(token);
        }
        if wanted.write && event.is_writable() {
            self.queue_write(token);
        }
        // A connection that is not read would not find out that its socket has failed.
        if event.is_error() && !wanted.read {
            self.end(token, "the connection failed".into());
        }
    }

    /// Remembers that a connection has input, if that is wanted.
    fn queue_read(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.is_queued && connection.interest(self.config.max_outbox).read {
            connection.is_queued = true;
            self.unread.push(token);
        }
    }

    /// Reads from every connection that has input, each within its budget.
    fn read(&mut self) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut waiting = std::mem::take(&mut self.unread);
        let mut served = 0;
        self.is_busy = false;
        // Not at line rate into a room: its readers get a look in between. Whoever was not served is first next time.
        while served < waiting.len() && !self.is_busy {
            self.read_from(waiting[served], &mut scratch);
            self.queue_read(waiting[served]);
            served += 1;
        }
        waiting.drain(..served);
        waiting.append(&mut self.unread);
        self.unread = waiting;
        self.scratch = scratch;
    }

    fn read_from(&mut self, token: Token, scratch: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.is_queued = false;
        if !connection.interest(self.config.max_outbox).read {
            return;
        }
        if !connection.unprocessed.is_empty() {
            let mut input = std::mem::take(&mut connection.unprocessed);
            return self.receive(token, &mut input);
        }
        match connection.read_some(scratch) {
            Ok(Received::Bytes(len)) => {
                connection.last_received = self.now;
                if connection.watch.is_some() {
                    self.report(); // what came, before what comes of it
                }
                self.receive(token, &mut scratch[..len]);
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) => self.end_of_input(token),
            Err(error) => self.end(token, error.to_string().into()),
        }
    }

    /// How long the server has been running.
    fn steady(&self) -> Duration {
        self.now - self.started
    }

    /// The time, for the chat.
    fn chat_now(&self) -> Now {
        Now { time: self.time, steady: self.steady() }
    }
}

impl Drop for Server {
    /// Also in a panic: what led to it is in the last lines.
    fn drop(&mut self) {
        self.journal.flush();
    }
}

#[cfg(test)]
mod tests {
    /// The calls in the body of `run` come in the order of the picture.
    #[test]
    fn the_picture_is_true() {
        let source = include_str!("mod.rs");
        let doc = crate::pictures::module_doc(source);
        let steps = doc.lines().find(|line| line.starts_with("  poll ─▶")).unwrap().trim().split(" ─▶ ");
        let steps: Vec<&str> = steps.filter(|step| !["…", "poll"].contains(step)).collect();
        let run = source.split_once("pub fn run(mut self)").unwrap().1.split_once("\n    }\n").unwrap().0;
        let calls = run.lines().filter_map(|line| line.trim().strip_prefix("self.")?.split_once('('));
        let calls: Vec<&str> = calls.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect();
        assert_eq!(calls, steps);
    }
}
