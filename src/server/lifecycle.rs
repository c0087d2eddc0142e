//! The life of a connection: accept, handshake, join, close, drain, remove, shutdown. The second table in
//! [`connection`](super::connection) shows what happens after each cause of closing.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mio::Token;

use super::Server;
use super::connection::{Cause, ColdFields, Connection, Endpoint, Sends, Socket, Stage};
use super::observer::Stage as ObservedStage;
use super::timers::{Silence, silence};
use crate::chat::dialect::Dialect;
use crate::http::{self, Outcome, Route};
use crate::ws::close::CloseCode;
use crate::ws::protocol::Protocol;
use crate::ws::request::{Rejection, Request};

/// When the buffers are full, the server closes the connection that filled them. If the largest connection holds over
/// `HOG` times as much, the server closes the largest instead.
const HOG: usize = 4;
/// How long a shutdown waits for clients to close.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// Extra time for a request that arrived in time but is still queued to be read.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

impl<S: Socket> Server<S> {
    pub fn may_accept(&self) -> bool {
        self.stop_at.is_none() && self.limits.may_accept(self.connection_count())
    }

    /// The token with which the driver must register the next accepted socket.
    pub fn next_token(&self) -> Token {
        self.connections.next_token
    }

    pub fn accepted(&mut self, socket: S, peer: SocketAddr) {
        // An IPv6 listener reports IPv4 clients as `::ffff:192.0.2.1`. Count both forms as one address.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let observer = self.observers.accepted(self.connections.next_token);
        let token = self.connections.insert(Connection::new(socket, peer, observer, self.now.monotonic));
        self.set_timer(token, self.config.handshake_timeout);
        self.limits.connected(peer.ip());
    }

    pub(super) fn set_timer(&mut self, token: Token, wait: Duration) {
        if let Some(connection) = self.connections.get_mut(token) {
            self.timers.set(token, &mut connection.cold.deadline, self.now.monotonic + wait);
        }
    }

    pub(super) fn respond(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let Stage::Handshake(head) = &connection.cold.stage else { return };
        let peer = connection.cold.peer.ip();
        let is_head = head.head().starts_with(b"HEAD ");
        let request = Request::parse(head.head(), self.config.max_headers);
        match request.and_then(|request| http::decide(&request, &self.access, self.now.time)) {
            Ok(Outcome::Response(bytes)) => self.send_response(token, bytes, "the response was sent"),
            Ok(Outcome::Upgrade { response, route }) => match self.check_capacity(token, peer, &route) {
                Ok(()) => self.upgrade(token, response, route),
                Err(rejection) => self.reject(token, &rejection, is_head),
            },
            Err(rejection) if rejection.status == 401 && self.limits.is_guessing(peer, self.now.monotonic) => {
                self.reject(token, &http::too_many_wrong_tokens(), is_head);
            }
            Err(rejection) => self.reject(token, &rejection, is_head),
        }
    }

    fn check_capacity(&mut self, token: Token, peer: IpAddr, route: &Route) -> Result<(), Rejection> {
        if self.limits.is_full(self.connection_count()) || self.limits.is_over_share(peer) {
            return Err(http::full("The server is full"));
        }
        match route {
            Route::Chat(join) if !self.chat.has_place_for(&join.room) => Err(http::full("There are too many rooms")),
            Route::Observe { secret } => {
                self.observers.admit(token, secret, &|token| self.connections.queued_bytes(token))
            }
            Route::Chat(_) | Route::Echo => Ok(()),
        }
    }

    /// `is_head`: the response to a `HEAD` request has no body.
    pub(super) fn reject(&mut self, token: Token, rejection: &Rejection, is_head: bool) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.cold.lingers = true;
        // A rejected connection does not count towards `--max-per-address`.
        self.limits.disconnected(connection.cold.peer.ip());
        log::info!("REJECT {} {} {}", connection.cold.peer, rejection.status, rejection.body);
        let response = http::rejection_response(rejection, is_head, self.now.time);
        self.send_response(token, response, "the request was rejected");
        if let Some(oldest) = self.limits.linger(token) {
            self.end(oldest, "too many rejected connections linger");
        }
    }

    /// Sends an HTTP response, then closes the connection.
    fn send_response(&mut self, token: Token, response: Vec<u8>, reason: &'static str) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.outbox.push_response(response);
        connection.drain(Cause::Response, reason);
        self.await_end(token);
    }

    /// Turns an HTTP connection into a WebSocket connection (§4.2.2).
    fn upgrade(&mut self, token: Token, response: Vec<u8>, route: Route) {
        let (endpoint, mut join) = match route {
            Route::Echo => (Endpoint::Echo, None),
            Route::Chat(join) => (Endpoint::Chat, Some(join)),
            Route::Observe { .. } => (Endpoint::Observers, None),
        };
        if let Some(join) = join.as_mut().filter(|join| join.dialect == Dialect::Events) {
            join.extra = self.observers.welcome_field(token);
        }
        let Some(connection) = self.connections.get_mut(token) else { return };
        let limits = endpoint.limits(&self.config);
        let upgraded = ObservedStage::Upgraded {
            limits,
            username: join.as_ref().map(|join| &join.username),
            watches: endpoint == Endpoint::Observers,
            has_welcome_field: join.as_ref().is_some_and(|join| join.extra.is_some()),
        };
        connection.observer.iter_mut().for_each(|observer| observer.stage(upgraded));
        connection.outbox.push_response(response);
        connection.cold.endpoint = Some(endpoint);
        connection.cold.stage = Stage::Open(Protocol::new(limits));
        self.connections.queue_write(token);
        self.set_timer(token, self.config.ping_interval);
        if let Some(join) = join {
            self.chat.join(token, join, self.now);
            self.apply_effects();
        }
    }

    pub(super) fn check_timers(&mut self) {
        while let Some((check, token)) = self.timers.pop_expired(self.now.monotonic) {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            connection.cold.deadline = None;
            match &connection.cold.stage {
                Stage::Handshake(_) if connection.is_queued_to_read => self.set_timer(token, HANDSHAKE_GRACE),
                Stage::Handshake(head) if head.is_empty() => self.end(token, "no request arrived in time"),
                Stage::Handshake(_) => {
                    let seconds = self.config.handshake_timeout.as_secs_f64();
                    let body = format!("The request was not complete after {seconds} seconds (RFC 9110 §15.5.9).");
                    self.reject(token, &Rejection::new(408, body), false);
                }
                Stage::Open(_) if connection.is_open() => self.check_silence(token, check),
                Stage::Open(_) => self.end(token, "the peer did not reply to the Close in time"),
                Stage::Draining { .. } if !connection.is_flushed() => {
                    self.end(token, "the peer did not read the last bytes in time");
                }
                Stage::Draining { .. } => self.end(token, "the peer did not end the stream in time"),
            }
        }
    }

    fn check_silence(&mut self, token: Token, check: Duration) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let silent = check.saturating_sub(connection.cold.last_received);
        match silence(silent, self.config.ping_interval, self.config.idle_timeout) {
            Silence::Short { wait } => self.set_timer(token, wait),
            Silence::Ping { wait } => {
                self.ping(token);
                self.set_timer(token, wait);
            }
            Silence::TooLong => self.end(token, format!("the peer was silent for {:.0} seconds", silent.as_secs_f64())),
        }
    }

    pub(super) fn ping(&mut self, token: Token) {
        let Some(protocol) = self.connections.get_mut(token).and_then(Connection::open_protocol) else { return };
        protocol.ping();
        self.apply_protocol_state(token, "");
    }

    /// Starts the closing handshake (§7.1.2), unless the connection is already closing.
    pub(super) fn close(&mut self, token: Token, cause: Cause, code: CloseCode, reason: &str) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let Some(protocol) = connection.open_protocol() else { return };
        protocol.close(code, reason);
        if cause.ending().0 == Sends::HalfFrameAndClose {
            connection.outbox.drop_unsent();
        }
        connection.observer.iter_mut().for_each(|observer| observer.stage(ObservedStage::Closing));
        self.apply_protocol_state(token, reason);
    }

    /// Queues the protocol's replies. If the connection is now closing, the client leaves the chat with `reason`.
    pub(super) fn apply_protocol_state(&mut self, token: Token, reason: &str) {
        // First queue the room's batch so far, so that the client receives events and replies in order.
        self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.apply_protocol_state();
        if connection.is_open() {
            self.connections.queue_write(token);
        } else {
            self.leave(token, reason);
            self.await_end(token);
        }
    }

    /// The peer may still read, so after the handshake the server sends the queued output before it closes.
    pub(super) fn end_of_stream(&mut self, token: Token) {
        const REASON: &str = "the peer ended the stream without a Close";
        let Some(connection) = self.connections.get_mut(token) else { return };
        match connection.cold.stage {
            Stage::Handshake(_) => self.end(token, "the peer ended the stream before its request was complete"),
            Stage::Draining { .. } => self.connections.queue_write(token),
            Stage::Open(_) => {
                connection.drain(Cause::PeerEndedStream, REASON);
                self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
                self.leave(token, REASON);
                self.await_end(token);
            }
        }
    }

    /// Cancels the timer. After the next write, the server removes the connection or starts the close timeout.
    fn await_end(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(token) {
            self.timers.cancel(token, &mut connection.cold.deadline);
            self.connections.queue_write(token);
        }
    }

    fn leave(&mut self, token: Token, reason: &str) {
        self.chat.leave(token, reason, self.now);
        self.apply_effects();
    }

    /// Removes a connection at the end of this turn, without sending the rest of its outbox.
    pub(super) fn end(&mut self, token: Token, reason: impl Into<Cow<'static, str>>) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.drain(Cause::TimeoutOrFailure, "");
        self.timers.cancel(token, &mut connection.cold.deadline);
        self.connections.ended.push_back((token, reason.into()));
    }

    /// Dropping the connection closes its socket.
    pub(super) fn remove(&mut self, token: Token, reason: &str) {
        self.leave(token, reason);
        let Some(mut connection) = self.connections.table.remove(&token) else { return };
        connection.observer.iter_mut().for_each(|observer| observer.closed(reason));
        self.observers.removed(token);
        self.timers.cancel(token, &mut connection.cold.deadline);
        if connection.cold.lingers {
            self.limits.stop_lingering(token);
        } else {
            self.limits.disconnected(connection.cold.peer.ip());
        }
        self.limits.buffered -= connection.cold.buffered;
        // A chat client has a LEAVE line in the log and a rejected client a REJECT line, so CLOSE is only a debug line.
        let has_line = matches!(connection.cold.endpoint, Some(Endpoint::Chat) | None);
        let level = if has_line { log::Level::Debug } else { log::Level::Info };
        log::log!(level, "CLOSE {} reason={reason:?}", connection.cold.peer);
    }

    /// If the total exceeds `--max-buffered`, closes this connection or one that holds far more.
    pub(super) fn count_buffered(&mut self, token: Token) {
        let before = self.limits.buffered;
        let buffered = self.recount_buffered(token);
        if self.limits.buffered <= before || self.limits.buffered <= self.config.max_buffered {
            return;
        }
        let largest = self.connections.table.iter().max_by_key(|(_, connection)| connection.cold.buffered);
        let hog = largest.filter(|(_, connection)| connection.cold.buffered / HOG > buffered);
        let token = hog.map_or(token, |(hog, _)| *hog);
        let Some(connection) = self.connections.get_mut(token) else { return };
        if !connection.is_open() {
            return self.end(token, "the server's buffers are full");
        }
        // Flush first, or `close` could drop a queued handshake response. A later write reports a failed socket.
        let _ = connection.flush();
        connection.cold.unprocessed = Box::default();
        self.close(token, Cause::SlowConsumer, CloseCode::TRY_AGAIN_LATER, "the server's buffers are full");
        self.recount_buffered(token);
    }

    fn recount_buffered(&mut self, token: Token) -> usize {
        let Some(connection) = self.connections.get_mut(token) else { return 0 };
        let buffered = connection.buffered();
        self.limits.buffered = self.limits.buffered - connection.cold.buffered + buffered;
        connection.cold.buffered = buffered;
        buffered
    }

    /// Returns `false` if the server is already shutting down.
    pub fn shut_down(&mut self) -> bool {
        if self.stop_at.is_some() {
            return false;
        }
        const REASON: &str = "the server is shutting down";
        log::info!("STOP connections to close: {}", self.connection_count());
        self.stop_at = Some(self.now.monotonic + SHUTDOWN);
        // First publish and acknowledge the messages that arrived before the shutdown.
        self.read();
        while let Some((room, batch)) = self.fanout.take_next() {
            self.send_batch(room, &batch);
        }
        // Send no `left` events: each of a room's `n` members would receive `n - 1` of them.
        self.chat.disband();
        let mut tokens: Vec<Token> = self.connections.table.keys().copied().collect();
        tokens.sort_unstable(); // a deterministic order
        for token in tokens {
            match self.connections.table.get(&token).map(|connection| &*connection.cold) {
                Some(ColdFields { stage: Stage::Handshake(_), .. }) => self.end(token, REASON),
                // An observing client stays open until it has seen the Close of the connection that it watches.
                Some(ColdFields { endpoint: Some(Endpoint::Observers), .. }) => {}
                _ => self.close(token, Cause::ServerCloses, CloseCode::GOING_AWAY, REASON),
            }
        }
        true
    }

    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.connections.table.is_empty() || at <= self.now.monotonic)
    }

    pub fn stop_observers(&mut self) {
        let observers = self.connections.table.values_mut().filter_map(|connection| connection.observer.as_mut());
        observers.for_each(|observer| observer.closed("the server stopped"));
        self.serve_observers();
    }
}
