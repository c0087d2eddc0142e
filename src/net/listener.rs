//! Listens for clients, and decides when to accept the next one.
//!
//! The poll is edge-triggered: it reports a waiting client once. If descriptors run out or the server is full, clients
//! stay in the backlog, and the poll does not report them again. So the listener remembers that clients are waiting,
//! and retries after a connection closes or after a short pause.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use rustix::event::PollFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Type};

use super::is_ready;
use crate::config::{Config, RESERVED_DESCRIPTORS};
use crate::server::connection::Socket;

const BACKLOG: i32 = 4096; // clients waiting to be accepted; the kernel's default cap, `somaxconn`, is the same
const RETRY_DELAY: Duration = Duration::from_millis(250); // pause before the next accept if descriptors or memory run out
const LOG_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Listener {
    pub socket: TcpListener,
    pub is_ready: bool, // whether a client may be waiting in the backlog
    /// Accept no client before this monotonic time. Reset when a connection closes and frees a descriptor.
    pub retry_at: Option<Duration>,
    logged_at: Option<Duration>,
}

impl Listener {
    /// `Err` is a message for the operator.
    pub fn bind(address: SocketAddr) -> Result<Listener, String> {
        let bound = || -> io::Result<TcpListener> {
            let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // A restart must not wait for old connections in TIME_WAIT.
            socket.set_reuse_address(true)?;
            // Accepted sockets inherit TCP_NODELAY. A turn's frames share one write: Nagle's algorithm only adds delay.
            socket.set_tcp_nodelay(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from_std(socket.into()))
        };
        let port = address.port();
        let socket = bound().map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => format!("Port {port} is already in use. Stop the other program or pass --listen."),
            ErrorKind::PermissionDenied => format!("Port {port} needs more privileges. Pass another --listen."),
            _ => format!("Cannot listen on {address}: {error}. Pass another --listen."),
        })?;
        Ok(Listener { socket, is_ready: true, retry_at: None, logged_at: None })
    }

    /// When to try the next accept. `None`: not before the next readiness edge.
    pub fn next_accept_at(&self) -> Option<Duration> {
        self.is_ready.then(|| self.retry_at.unwrap_or_default())
    }

    pub fn accept(&mut self, now: Duration) -> Option<(TcpStream, SocketAddr)> {
        while self.next_accept_at().is_some_and(|at| at <= now) {
            let accepted = self.socket.accept();
            let Err(error) = &accepted else {
                // This poll takes 80 ns. An `accept` that finds no client takes 900 ns, because it creates a socket first.
                // The difference is 8 % of a short connection's time.
                self.is_ready = is_ready(&self.socket, PollFlags::IN);
                return accepted.ok();
            };
            match error.kind() {
                ErrorKind::WouldBlock => self.is_ready = false,
                // accept(2): these errors concern only one pending connection, so try the next one.
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {}
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => {}
                _ => {
                    self.retry_at = Some(now + RETRY_DELAY);
                    if self.logged_at.is_none_or(|at| now - at >= LOG_INTERVAL) {
                        self.logged_at = Some(now);
                        log::warn!("REJECT all clients wait in the backlog: {error}");
                    }
                }
            }
        }
        None
    }
}

impl Socket for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Raises the soft descriptor limit to the hard limit. Returns two maximums: open connections, and
/// further connections that linger after a rejection.
pub fn places(config: &Config) -> Result<(usize, usize), String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = if raised.is_ok() { maximum } else { current }.map_or(usize::MAX, |limit| limit as usize);
    let spare = RESERVED_DESCRIPTORS / 2;
    let most = descriptors.saturating_sub(RESERVED_DESCRIPTORS);
    // Each recorded connection needs a second descriptor, for its file, even if the server then rejects the client.
    let most = if config.record.is_some() { most.saturating_sub(spare) / 2 } else { most };
    let max_connections = config.max_connections.unwrap_or(most);
    if most == 0 || max_connections > most {
        return Err(format!(
            "The limit of {descriptors} descriptors allows {most} connections. Raise it with ulimit -n, or lower \
             --max-connections."
        ));
    }
    // Descriptors that --max-connections leaves unused allow more connections to linger.
    let lingering = (max_connections / 8).clamp(spare, 256).min(most - max_connections + spare);
    Ok((max_connections, lingering))
}
