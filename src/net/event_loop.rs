//! Drives the server with mio: one poll loop for the listeners, the signals and every connection.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant, SystemTime};
use std::{os::fd::AsRawFd, sync::Arc, sync::atomic::AtomicBool};

use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook_mio::v1_0::Signals;
use socket2::{SockAddr, Socket};

use super::listener::{self, Listener, raise_descriptor_limit};
use super::{PollFlags, is_ready, log_writer::LogWriter, metrics::ADMIN_TOKEN, metrics::AdminListener, tls};
use crate::config::{self, Config};
use crate::server::{Readiness, Server};
use crate::{broker::Random, chat::Now, http::access::AccessControl, server::limits::ConnectionLimits, systemd};
use crate::{inspect::cases::BoxedPlayer, operator::OperatorState};

const SIGNALS_TOKEN: Token = Token(usize::MAX);
const WAKER_TOKEN: Token = Token(usize::MAX - 1); // lets other threads wake the poll
const FIRST_LISTENER_TOKEN: usize = usize::MAX / 2; // the tokens of further listeners count up from here

const EXIT_INTERRUPTED: i32 = 130; // exit code after a second signal: 128 + SIGINT, the shell convention
// Maximum number of readiness events per turn. If many clients disconnect at once, the server should learn of all of
// them in one turn. Otherwise, it sends events to clients that have already disconnected.
const MAX_EVENTS_PER_TURN: usize = 65536;
const MAX_ACCEPTS_PER_TURN: usize = 64; // limit per listener, so that many new clients do not delay connected ones

pub struct EventLoop {
    poll: Poll,
    listeners: Vec<Listener>, // a shutdown closes and removes all listeners, so that no client can connect
    signals: Signals,
    log: LogWriter,
    config: Config,
    server: Server<tls::Transport>,
    tls: tls::Acceptor,
    started: Instant,
    pub admin: Option<AdminListener>, // listener of `--admin`: metrics and operator commands (feature `metrics`)
    pub addresses: Vec<SockAddr>,     // the listeners' addresses, with the port that the kernel chose for port 0
    pub max_connections: usize,
}

impl EventLoop {
    /// `config` must have passed `Config::validate`. `inherited`: sockets from systemd, which replace those of
    /// `--listen`. `Err` is an error message for the operator.
    pub fn bind(
        config: Config,
        inherited: Vec<Socket>,
        access: AccessControl,
        log: LogWriter,
        player: BoxedPlayer,
        tls: tls::Acceptor,
    ) -> Result<EventLoop, String> {
        let (max_connections, max_lingering) = raise_descriptor_limit(&config)?;
        let error = |error| format!("The system cannot poll: {error}.");
        let listeners = if inherited.is_empty() {
            config.listen.iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?
        } else {
            inherited.into_iter().map(Listener::new).collect::<Result<_, _>>().map_err(error)?
        };
        let poll = Poll::new().map_err(error)?;
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(error)?;
        for (token, listener) in (FIRST_LISTENER_TOKEN..).map(Token).zip(&listeners) {
            let mut source = SourceFd(&listener.socket.as_raw_fd());
            poll.registry().register(&mut source, token, Interest::READABLE).map_err(error)?;
        }
        poll.registry().register(&mut signals, SIGNALS_TOKEN, Interest::READABLE).map_err(error)?;
        let addresses: Vec<_> = listeners.iter().filter_map(|listener| listener.socket.local_addr().ok()).collect();
        // Do not start without a source of random bytes: a server with predictable secrets must not run.
        getrandom::fill(&mut [0; 16]).map_err(|error| format!("The system has no random bytes: {error}."))?;
        let mut random: Random = Box::new(|bytes| getrandom::fill(bytes).unwrap_or_else(|error| panic!("{error}")));
        let waker = Arc::new(Waker::new(poll.registry(), WAKER_TOKEN).map_err(error)?);
        let mut observers = super::new_observers(&config, &log, &mut random)?;
        let wake = move || _ = waker.wake();
        let local = addresses.iter().find_map(config::local_address);
        if let Some(address) = local.filter(|_| !config.proxy_protocol) {
            observers = observers.with_player(tls.exempt_player_from_tls(player), address, wake.clone());
        }
        let now = Now { time: SystemTime::now(), monotonic: Duration::ZERO };
        let limits = ConnectionLimits::new(&config, max_connections, max_lingering);
        let mut operator = OperatorState::default();
        let broker = super::new_broker(&config, random, &mut operator, wake)?;
        let mut server = Server::new(config.clone(), access, limits, Box::new(observers), broker, now);
        server.chat.operator = operator;
        let (started, admin) = (Instant::now(), AdminListener::open(&config, poll.registry())?);
        Ok(EventLoop { poll, listeners, signals, log, config, server, tls, started, admin, addresses, max_connections })
    }

    /// Runs until a signal or a storage failure stops the server. Returns `Ok(false)` after a storage failure.
    pub fn run(mut self) -> io::Result<bool> {
        let mut events = Events::with_capacity(MAX_EVENTS_PER_TURN);
        systemd::report_ready();
        loop {
            let listeners = self.listeners.iter().filter(|_| self.server.may_accept());
            let accept = listeners.filter_map(|listener| listener.next_accept_at).min();
            let (admin, log) = (self.admin.as_ref().and_then(AdminListener::next_turn_at), self.log.lines().deadline());
            let next = [self.server.next_turn_at(), accept, admin, log, self.tls.next_check_at()];
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
                    SIGNALS_TOKEN => has_signal = true,
                    ADMIN_TOKEN => self.admin.iter_mut().for_each(AdminListener::set_ready),
                    Token(token @ FIRST_LISTENER_TOKEN..) => {
                        let listener = self.listeners.get_mut(token - FIRST_LISTENER_TOKEN);
                        listener.into_iter().for_each(|listener| _ = listener.next_accept_at.get_or_insert_default());
                    }
                    token => {
                        let (is_read_closed, has_error) = (event.is_read_closed(), event.is_error());
                        let (is_readable, is_writable) = (event.is_readable(), event.is_writable());
                        self.server.set_ready(token, Readiness { is_readable, is_writable, is_read_closed, has_error });
                    }
                }
            }
            // Handle signals after readiness events, so that the chat publishes messages that arrived before a signal.
            if has_signal && !self.handle_signals() {
                self.server.stop_observers();
                self.log.lines().flush();
                self.listeners.clear(); // removes the files of Unix sockets
                std::process::exit(EXIT_INTERRUPTED); // exit at once: dropping the broker may block on a hung disk
            }
            self.accept(now.monotonic);
            self.admin.iter_mut().for_each(|admin| admin.begin_turn(&mut self.server, &self.listeners, now));
            let count = self.server.connection_count();
            self.server.finish_turn();
            for listener in self.listeners.iter_mut().filter(|_| self.server.connection_count() < count) {
                listener.next_accept_at = listener.next_accept_at.min(Some(now.monotonic));
            }
            self.admin.iter_mut().for_each(|admin| admin.finish_turn(&self.server, self.started, now.monotonic));
            if !self.server.accepts_clients() {
                self.listeners.clear();
            }
            if self.server.is_stopped() {
                self.server.stop_observers();
                return Ok(!self.server.storage_failed);
            }
        }
    }

    fn accept(&mut self, now: Duration) {
        let interest = Interest::READABLE | Interest::WRITABLE;
        for listener in &mut self.listeners {
            for _ in 0..MAX_ACCEPTS_PER_TURN {
                if !self.server.may_accept() {
                    return;
                }
                let client = listener.accept(now, listener::accept, |socket| is_ready(socket, PollFlags::IN));
                let Some((socket, peer)) = client else { break };
                let descriptor = socket.as_raw_fd();
                let registered =
                    self.poll.registry().register(&mut SourceFd(&descriptor), self.server.next_token(), interest);
                match registered.and_then(|()| self.tls.accept(socket, peer)) {
                    Ok(transport) => self.server.accept(transport, peer),
                    Err(error) => log::warn!("REJECT {peer:?} {error}"),
                }
            }
        }
    }

    /// Reloads tokens, JWT keys and the certificate (SIGHUP), or shuts down. Returns `false` if a second signal demands
    /// an immediate stop.
    fn handle_signals(&mut self) -> bool {
        let (reloads, stops): (Vec<i32>, Vec<i32>) = self.signals.pending().partition(|signal| *signal == SIGHUP);
        if !reloads.is_empty() {
            systemd::report_reloading();
            self.server.reload_tokens(self.config.read_token_file(), crate::http::jwt::read_key_files(&self.config));
            self.tls.reload();
            systemd::report_ready();
        }
        let Some(signal) = stops.first() else { return true };
        systemd::report_stopping(self.config.drain_delay + self.config.drain);
        self.server.shut_down(*signal == SIGTERM) && stops.len() == 1
    }
}

impl Drop for EventLoop {
    /// Flushes the log even on a panic, because the last lines may show the cause.
    fn drop(&mut self) {
        self.log.lines().flush();
        // Rust drops `self.server` next, which may block if the disk hangs. So from now on, let SIGINT and SIGTERM end
        // the process.
        for signal in [SIGINT, SIGTERM] {
            let _ = register_conditional_shutdown(signal, EXIT_INTERRUPTED, Arc::new(AtomicBool::new(true)));
        }
    }
}
