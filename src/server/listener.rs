//! The listening socket, and when it may accept.
//!
//! It hands out sockets and knows nothing of what becomes of them.
//!
//! The subtle thing: the edge that says "somebody is waiting" comes once. When descriptors run out, or the server is
//! full, those in the backlog stay there without another edge, so the listener remembers them, and accepts again when
//! a connection has ended or a short wait is over: neither a spin nor deafness.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::Server;
use super::connection::Connection;
use crate::config::{Config, RESERVED_DESCRIPTORS};

/// How many may wait to be accepted. The kernel caps it at `somaxconn`, which is 4096 today.
const BACKLOG: i32 = 4096;
/// How many are accepted in a turn: more wait for the next.
const ACCEPTS: usize = 64;
/// How long to wait after the system was out of descriptors or memory, if no connection ends before.
const RETRY: Duration = Duration::from_millis(250);
/// How often at most that is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// Somebody may be waiting.
    is_ready: bool,
    /// Do not try before this.
    retry_at: Option<Instant>,
    logged_at: Option<Instant>,
}

impl Listener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// One line that names the address.
    pub fn bind(address: SocketAddr) -> Result<Listener, String> {
        let bound = || -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // A restart must not wait for the old connections to fade away.
            socket.set_reuse_address(true)?;
            // Accepted sockets inherit it. A turn's frames go out in one write, so there is nothing to wait for.
            socket.set_tcp_nodelay(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from_std(socket.into()))
        };
        let socket = bound().map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => format!("cannot listen on {address}: another program is using that port"),
            io::ErrorKind::PermissionDenied => format!("cannot listen on {address}: that port needs more rights"),
            _ => format!("cannot listen on {address}: {error}"),
        })?;
        Ok(Listener { socket, is_ready: true, retry_at: None, logged_at: None })
    }

    /// The address it listens on, with the port that was taken for port 0.
    ///
    /// # Errors
    /// What the socket says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The socket, to be registered.
    pub fn source(&mut self) -> &mut TcpListener {
        &mut self.socket
    }

    /// Remembers an edge.
    pub fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// A connection has ended, and its descriptor is free.
    pub fn connection_ended(&mut self) {
        self.retry_at = None;
    }

    /// Whether somebody may be waiting who can be tried now.
    pub fn may_accept(&self, now: Instant) -> bool {
        self.is_ready && self.retry_at.is_none_or(|at| at <= now)
    }

    /// When to try again, if it has to be waited for.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.is_ready)
    }

    /// The next client, if one is waiting and a descriptor is left.
    pub fn accept(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        while self.may_accept(now) {
            match self.socket.accept() {
                Ok(accepted) => {
                    self.is_ready = has_waiting(&self.socket);
                    return Some(accepted);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_ready = false,
                // It was waiting, and hung up.
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => self.pause(now, &error),
            }
        }
        None
    }

    fn pause(&mut self, now: Instant, error: &io::Error) {
        self.retry_at = Some(now + RETRY);
        if self.logged_at.is_none_or(|at| now - at >= LOG_INTERVAL) {
            self.logged_at = Some(now);
            log::warn!("REFUSED nobody can be accepted for now: {error}");
        }
    }
}

impl Server {
    /// A few more sockets than clients, so that those who are too many can be told.
    pub(super) fn has_room(&self) -> bool {
        self.connections.len() < self.max_connections + RESERVED_DESCRIPTORS / 2
    }

    /// Accepts those who are waiting.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if !self.has_room() {
                return;
            }
            let Some((stream, peer)) = self.listener.as_mut().and_then(|listener| listener.accept(self.now)) else {
                return;
            };
            // An IPv4 client of an IPv6 listener is the same client.
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            let token = Token(self.next_token);
            self.next_token += 1;
            let mut connection = Box::new(Connection::new(stream, peer, self.now));
            connection.watch = self.watchers.watch(token);
            if let Err(error) = self.poll.registry().register(connection.source(), token, Interest::READABLE) {
                log::warn!("REFUSED {peer}: {error}");
                continue;
            }
            self.deadlines.set(token, &mut connection.deadline, self.now + self.config.handshake_timeout);
            self.connections.insert(token, connection);
            self.addresses.connected(peer.ip());
        }
    }
}

/// Whether somebody waits to be accepted. Asking takes a tenth of the time of an `accept` that finds nobody, since that
/// makes a socket first.
fn has_waiting(socket: &TcpListener) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    // An error counts as a yes: `accept` itself will tell.
    poll(&mut asked, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
}

/// How many connections there may be. Descriptors are raised to what the system allows first.
///
/// # Errors
/// A line that says what is too low or too high.
pub fn max_connections(config: &Config) -> Result<usize, String> {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).map_err(|error| format!("descriptor limit: {error}"))?;
    let most = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(RESERVED_DESCRIPTORS);
    // A recording takes a descriptor as well, also of those few who are too many.
    let most = if config.record.is_some() { most.saturating_sub(RESERVED_DESCRIPTORS / 2) / 2 } else { most };
    match config.max_connections {
        _ if most == 0 => Err(format!("a descriptor limit of {descriptors} is too low: see ulimit -n")),
        Some(wanted) if wanted > most => Err(format!(
            "--max-connections {wanted}: the descriptor limit of {descriptors} allows {most} (see ulimit -n)"
        )),
        Some(wanted) => Ok(wanted),
        None => Ok(most),
    }
}

/// Errors of `accept` that are about the client it would have returned (accept(2)), not about this process.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | Interrupted | NetworkUnreachable | TimedOut
    )
}
