//! Drives the server with mio: one poll loop for the listener, the signals and every connection.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant, SystemTime};
use std::{net::SocketAddr, sync::Arc, sync::atomic::AtomicBool};

use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook_mio::v1_0::Signals;

use super::listener::{Listener, raise_descriptor_limit};
use super::{PollFlags, is_ready, log_writer::LogWriter, tls};
use crate::inspect::cases::BoxedPlayer;
use crate::server::{Readiness, Server};
use crate::{broker::Random, chat::Now, config::Config, http::access::Access, server::limits::ConnectionLimits};

const LISTENER: Token = Token(usize::MAX);
const SIGNALS: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2); // poll token of the waker, which lets other threads wake the poll

const EXIT_INTERRUPTED: i32 = 130; // exit code after a second signal: 128 + SIGINT, the shell convention
// Maximum readiness events per turn. One turn should handle a mass disconnect, to avoid sends to disconnected peers.
const MAX_EVENTS: usize = 65536;
const MAX_ACCEPTS: usize = 64; // maximum accepts per turn, so that a flood of new clients does not delay the others

pub struct EventLoop {
    poll: Poll,
    listener: Option<Listener>, // `None` once a shutdown has closed the listener, so that no client can connect
    signals: Signals,
    log: LogWriter,
    config: Config,
    server: Server<tls::Transport>,
    tls: tls::Acceptor,
    started: Instant,
    pub address: SocketAddr, // the listening address, with the kernel's choice of port if the configured port is 0
    pub max_connections: usize,
}

impl EventLoop {
    /// `config` must have passed `Config::validate`. `Err` is an error message for the operator.
    pub fn bind(
        config: Config,
        access: Access,
        log: LogWriter,
        player: BoxedPlayer,
        tls: tls::Acceptor,
    ) -> Result<EventLoop, String> {
        let (max_connections, max_lingering) = raise_descriptor_limit(&config)?;
        let mut listener = Listener::bind(config.listen)?;
        let error = |error| format!("The system cannot poll: {error}.");
        let poll = Poll::new().map_err(error)?;
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(error)?;
        poll.registry().register(&mut listener.socket, LISTENER, Interest::READABLE).map_err(error)?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE).map_err(error)?;
        let address = listener.socket.local_addr().unwrap_or(config.listen);
        // Fail at start if the system has no random bytes: a server with predictable secrets must not run.
        getrandom::fill(&mut [0; 16]).map_err(|error| format!("The system has no random bytes: {error}."))?;
        let mut random: Random = Box::new(|bytes| getrandom::fill(bytes).unwrap_or_else(|error| panic!("{error}")));
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(error)?);
        let observers = super::new_observers(&config, &log, &mut random)?;
        let wake = move || _ = waker.wake();
        let observers = Box::new(observers.with_player(tls.admit_player(player), address, wake.clone()));
        let now = Now { time: SystemTime::now(), monotonic: Duration::ZERO };
        let limits = ConnectionLimits::new(&config, max_connections, max_lingering);
        let broker = super::new_broker(&config, random, wake)?;
        let server = Server::new(config.clone(), access, limits, observers, broker, now);
        let (started, listener) = (Instant::now(), Some(listener));
        Ok(EventLoop { poll, listener, signals, log, config, server, tls, started, address, max_connections })
    }

    /// Runs until a signal or a storage failure stops the server. Returns `Ok(false)` after a storage failure.
    pub fn run(mut self) -> io::Result<bool> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        loop {
            let accept = self.listener.as_ref().filter(|_| self.server.may_accept()).and_then(|socket| socket.next_at);
            let next = [self.server.next_turn_at(), accept, self.log.lines().deadline(), self.tls.next_check_at()];
            let next = next.into_iter().flatten().min();
            let polled = self.poll.poll(&mut events, next.map(|at| at.saturating_sub(self.started.elapsed())));
            polled.or_else(|error| if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) })?;
            let now = Now { time: SystemTime::now(), monotonic: self.started.elapsed() };
            let is_idle = events.is_empty() && self.server.next_turn_at().is_none_or(|at| at > now.monotonic);
            self.log.lines().begin_turn(now, is_idle);
            self.server.begin_turn(now);
            self.tls.begin_turn(now.monotonic);
            let mut has_signal = false;
            for event in &events {
                match event.token() {
                    LISTENER => self.listener.iter_mut().for_each(|socket| _ = socket.next_at.get_or_insert_default()),
                    SIGNALS => has_signal = true,
                    token => {
                        let (read_closed, error) = (event.is_read_closed(), event.is_error());
                        let (readable, writable) = (event.is_readable(), event.is_writable());
                        self.server.set_ready(token, Readiness { readable, writable, read_closed, error });
                    }
                }
            }
            // Handle signals after readiness events, so that the chat publishes messages that arrived before a signal.
            if has_signal && !self.handle_signals() {
                self.server.stop_observers();
                self.log.lines().flush();
                std::process::exit(EXIT_INTERRUPTED); // exit at once: dropping the broker may block on a hung disk
            }
            self.accept(now.monotonic);
            let count = self.server.connection_count();
            self.server.finish_turn();
            if let Some(listener) = self.listener.as_mut().filter(|_| self.server.connection_count() < count) {
                listener.next_at = listener.next_at.min(Some(now.monotonic));
            }
            if self.server.is_stopped() {
                self.server.stop_observers();
                return Ok(!self.server.storage_failed);
            }
        }
    }

    fn accept(&mut self, now: Duration) {
        for _ in 0..MAX_ACCEPTS {
            let Some(listener) = self.listener.as_mut().filter(|_| self.server.may_accept()) else { return };
            let client = listener.accept(now, mio::net::TcpListener::accept, |socket| is_ready(socket, PollFlags::IN));
            let Some((mut stream, peer)) = client else { return };
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registered = self.poll.registry().register(&mut stream, self.server.next_token(), interest);
            match registered.and_then(|()| self.tls.accept(stream, peer)) {
                Ok(transport) => self.server.accept(transport, peer),
                Err(error) => log::warn!("REJECT {peer} {error}"),
            }
        }
    }

    /// Reloads tokens, JWT keys and the certificate (SIGHUP), or shuts down. Returns `false` if a second signal demands
    /// an immediate stop.
    fn handle_signals(&mut self) -> bool {
        let (reloads, stops): (Vec<i32>, Vec<i32>) = self.signals.pending().partition(|signal| *signal == SIGHUP);
        if !reloads.is_empty() {
            self.server.reload_tokens(self.config.read_token_file(), crate::http::jwt::read_key_files(&self.config));
            self.tls.reload();
        }
        self.listener.take_if(|_| !stops.is_empty());
        stops.is_empty() || (self.server.shut_down() && stops.len() == 1)
    }
}

impl Drop for EventLoop {
    /// Flushes the log even on a panic, because the last lines may show the cause.
    fn drop(&mut self) {
        self.log.lines().flush();
        // Dropping `server` comes next and waits for the disk, which may hang. So a signal now ends the process.
        for signal in [SIGINT, SIGTERM] {
            let _ = register_conditional_shutdown(signal, EXIT_INTERRUPTED, Arc::new(AtomicBool::new(true)));
        }
    }
}
