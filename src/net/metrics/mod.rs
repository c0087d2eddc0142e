//! The admin listener: a second port, for the operator only (PROTOCOL.md, "Administration"). It shares the poll loop
//! with the chat clients. `connection` reads one HTTP request per connection, `api` responds to it, and `text` writes
//! the metrics.
//!
//! Everything is bounded: the number of connections, the size of a request, and the lifetime of a connection. A
//! connection that the listener cannot serve waits in the kernel's accept queue and does not delay the clients.

mod api;
mod connection;
mod text;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::SockAddr;

use super::listener::{self, Listener};
use super::{PollFlags, is_ready, tls::Transport};
use crate::{chat::Now, config::Config, http::format_rejection, server::Server};
use api::{AdminApi, Reply};
use connection::{AdminConnection, Progress};

pub const ADMIN_TOKEN: Token = Token(usize::MAX - 3); // poll token of the admin listener and all of its connections
const MAX_CONNECTIONS: usize = 24; // enough connections for a few terminals, a monitoring system and a load balancer
/// The file descriptors reserved for the admin listener: one for itself, and one for each connection.
pub const MAX_ADMIN_DESCRIPTORS: usize = 1 + MAX_CONNECTIONS;

pub struct AdminListener {
    pub address: SocketAddr,
    listener: Listener,
    registry: Registry,
    connections: Vec<AdminConnection>, // oldest first
    is_ready: bool,                    // whether a connection may have input, or room for output
    api: AdminApi,
}

impl AdminListener {
    /// Listens on `--admin`, if given. `Err` is an error message for the operator.
    pub fn open(config: &Config, registry: &Registry) -> Result<Option<AdminListener>, String> {
        let Some(address) = config.features.admin else { return Ok(None) };
        if address.port() != 0 && config.listen.contains(&SockAddr::from(address)) {
            return Err(format!("--admin and --listen are both {address}. Pass another --admin."));
        }
        let listener = Listener::bind(&address.into()).map_err(|error| error.replace("--listen", "--admin"))?;
        let error = |error| format!("The system cannot poll: {error}.");
        let fd = listener.socket.as_raw_fd();
        registry.register(&mut SourceFd(&fd), ADMIN_TOKEN, Interest::READABLE).map_err(error)?;
        let (registry, api) = (registry.try_clone().map_err(error)?, AdminApi::new(config, address)?);
        let address = listener.socket.local_addr().ok().and_then(|address| address.as_socket()).unwrap_or(address);
        Ok(Some(AdminListener { address, listener, registry, connections: Vec::new(), is_ready: false, api }))
    }

    /// Records a poll event of the admin listener or its connections. They share a token, so any of them may be ready.
    pub fn set_ready(&mut self) {
        self.listener.next_accept_at.get_or_insert_default();
        self.is_ready = true;
    }

    pub fn next_turn_at(&self) -> Option<Duration> {
        let accept = self.listener.next_accept_at.filter(|_| self.can_accept());
        let deadlines = self.connections.iter().map(|connection| connection.deadline);
        deadlines.chain(accept).chain(self.is_ready.then_some(Duration::ZERO)).min()
    }

    /// Serves the operator's requests. `clients` are the listeners for chat clients; there are none during a shutdown.
    pub fn begin_turn(&mut self, server: &mut Server<Transport>, clients: &[Listener], now: Now) {
        self.accept(now.monotonic);
        let is_waiting = |connection: &AdminConnection| connection.announcement().is_some();
        if self.connections.iter().any(is_waiting) {
            server.apply_effects(); // collects the broker's replies, which may arrive at any time
        } else if !self.is_ready && self.connections.iter().all(|connection| connection.deadline > now.monotonic) {
            return;
        }
        self.is_ready = false;
        for mut connection in std::mem::take(&mut self.connections) {
            let is_served = self.serve(&mut connection, server, clients, now);
            if is_served {
                self.connections.push(connection);
            } else if let Some(announcement) = connection.announcement() {
                self.api.forget(announcement, server);
            }
        }
    }

    /// Records how long a turn of the event loop took. `started` is the start of the server, and `now` is the time from
    /// `started` to the beginning of the turn.
    pub fn finish_turn(&mut self, server: &Server<Transport>, started: Instant, now: Duration) {
        self.api.turn_durations.add(started.elapsed().saturating_sub(now));
        self.api.storage.observe(server, now);
    }

    fn accept(&mut self, now: Duration) {
        for _ in 0..MAX_CONNECTIONS {
            if !self.can_accept() {
                return;
            }
            let accepted = self.listener.accept(now, listener::accept, |socket| is_ready(socket, PollFlags::IN));
            let Some((socket, Some(peer))) = accepted else { return };
            if self.connections.len() == MAX_CONNECTIONS {
                // Drop the oldest connection that has sent no complete request: silent peers must not lock out others.
                let oldest = self.connections.iter().position(AdminConnection::is_reading);
                oldest.into_iter().for_each(|oldest| drop(self.connections.remove(oldest)));
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            if self.registry.register(&mut SourceFd(&socket.as_raw_fd()), ADMIN_TOKEN, interest).is_ok() {
                self.connections.push(AdminConnection::new(socket, peer, now));
                self.is_ready = true;
            }
        }
    }

    fn can_accept(&self) -> bool {
        self.connections.len() < MAX_CONNECTIONS || self.connections.iter().any(AdminConnection::is_reading)
    }

    /// Reads from and writes to a connection. Returns `false` once the connection has ended.
    fn serve(
        &mut self,
        connection: &mut AdminConnection,
        server: &mut Server<Transport>,
        clients: &[Listener],
        now: Now,
    ) -> bool {
        let reply = match connection.announcement() {
            Some(announcement) => {
                let has_timed_out = connection.deadline <= now.monotonic;
                self.api.take_outcome(announcement, has_timed_out, server, now)
            }
            None if connection.deadline <= now.monotonic => return false,
            None => match connection.receive() {
                Progress::Ended => return false,
                Progress::Rejected(rejection) => Some(Err((rejection, false))),
                Progress::Request { head, body } => {
                    Some(self.api.respond(&head, &body, server, clients, connection.peer, now))
                }
                Progress::Waits => None,
            },
        };
        match reply {
            Some(Ok(Reply::Response(bytes))) => connection.respond(bytes, now.monotonic),
            Some(Ok(Reply::Announcing(announcement))) => {
                connection.wait_for(announcement);
                self.is_ready = true; // run another turn at once, because the broker may already have replied
            }
            Some(Err((rejection, is_head))) => {
                connection.respond(format_rejection(&rejection, is_head, now.time), now.monotonic);
            }
            None => {}
        }
        let (is_open, has_more) = connection.send();
        self.is_ready |= has_more;
        is_open
    }
}
