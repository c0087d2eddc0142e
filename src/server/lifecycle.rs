//! Handles a connection from accept to removal. [`connection`](super::connection) lists what can end a connection.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::{borrow::Cow, collections::BTreeSet, rc::Rc, sync::Once, time::Duration};

use mio::Token;

use super::connection::{ColdFields, Connection, Service, Socket, Stage, Work};
use super::shutdown::{CloseSchedule, Shutdown};
use super::{READS_PER_TURN, Server, observer::ObservedStage, outbox::Outbox, timers::plan_check};
use crate::http::proxy::{find_client_address, is_trusted_proxy};
use crate::http::{self, Outcome, Route, jwt::proof::Proof, tokens::AccessTokens};
use crate::ws::request::{Rejection, Request, bad_request};
use crate::ws::{close::CloseCode, deflate::Agreement, protocol::Limits};
use crate::{broker::BrokerError, chat::Identity, chat::JoinError, chat::dialect::Dialect, chat::event::describe};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2); // how long a shutdown waits for the peers' Close frames
const SHUTDOWN_REASON: &str = "the server is shutting down";
const HANDSHAKE_GRACE: Duration = Duration::from_secs(1); // extra time if the server is late to read the request

impl<S: Socket> Server<S> {
    pub fn may_accept(&self) -> bool {
        self.accepts_clients() && self.limits.may_accept(self.connection_count() + self.removed.len())
    }

    /// Whether the server still accepts clients. Once it does not, the event loop closes the listeners.
    pub fn accepts_clients(&self) -> bool {
        matches!(self.shutdown, None | Some(Shutdown::Announced { .. }))
    }

    /// Whether a shutdown has begun. If so, a load balancer should send new clients to other servers.
    pub fn is_draining(&self) -> bool {
        self.shutdown.is_some()
    }

    /// Returns the poll token with which the event loop must register the next accepted socket.
    pub fn next_token(&self) -> Token {
        self.connections.next_token
    }

    /// `peer` is `None` on a Unix socket. The server trusts every peer on a Unix socket as a proxy.
    pub fn accept(&mut self, socket: S, peer: Option<SocketAddr>) {
        let (is_local, peer) = (peer.is_none(), peer.unwrap_or((Ipv4Addr::LOCALHOST, 0).into()));
        // An IPv6 listener reports IPv4 clients as `::ffff:192.0.2.1`. Count both forms as one address.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let (token, now) = (self.connections.next_token, self.now.monotonic);
        self.connections.next_token.0 += 1;
        let mut connection = Connection::new(socket, peer, self.observers.create_observer(token, peer), now);
        let is_proxy = is_local || is_trusted_proxy(peer.ip(), &self.config.trusted_proxy);
        connection.cold.expects_proxy_header = is_proxy && self.config.proxy_protocol;
        self.chat.operator.counters.accepted_connections += 1;
        self.connections.table.insert(token, connection);
        self.set_timer(token, self.config.handshake_timeout);
        self.set_peer(token, peer, is_proxy);
    }

    pub(super) fn set_timer(&mut self, token: Token, wait: Duration) {
        if let Some(connection) = self.connections.get_mut(token) {
            self.timers.set(token, &mut connection.cold.deadline, Some(self.now.monotonic + wait));
        }
    }

    pub(super) fn respond(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let is_proxied = connection.cold.is_proxy;
        let ColdFields { stage: Stage::Handshake(head), peer, is_counted, .. } = &mut *connection.cold else { return };
        let (is_head, needs_token) = (head.head().starts_with(b"HEAD "), self.observers.needs_token(token));
        let (now, proxies) = (self.now.monotonic, &self.config.trusted_proxy);
        let outcome = Request::parse(head.head(), self.config.max_headers).and_then(|request| {
            let has = |header| request.header_values(header).next().is_some();
            let (address, is_forwarded) = (peer.ip(), has("X-Forwarded-For"));
            if is_proxied && let Some(client) = find_client_address(&request, proxies) {
                peer.set_ip(client);
                *is_counted = true;
                self.limits.add_connection(client, now).map_err(http::service_unavailable)?;
            } else if is_forwarded && !is_proxied && proxies.is_empty() && address.is_loopback() {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| log::warn!("PROXY if a proxy adds X-Forwarded-For, pass --trusted-proxy {address}"));
            }
            let may_try_token = self.limits.may_try_token(peer.ip(), now);
            let client = http::Client { address: peer.ip(), is_proxied, may_try_token, needs_token };
            if has("Sec-WebSocket-Key") && !has("Upgrade") && self.limits.should_log_rejection(peer.ip(), now) {
                log::warn!("PROXY {peer} a handshake without Upgrade; a proxy must forward Upgrade and Connection");
            }
            let outcome = http::route_request(&request, &self.access, client, self.now);
            let (Err(error) | Ok(Outcome::Check { route: Err(error), .. })) = &outcome else { return outcome };
            if error.status == 401 && http::find_token(&request).is_some() {
                self.limits.count_wrong_token(peer.ip(), now);
            }
            outcome
        });
        match outcome {
            Ok(Outcome::Response(bytes)) => self.send_response(token, bytes, "the response was sent"),
            Ok(Outcome::Check { route, origin }) => {
                let checked = route.and_then(|route| self.admit(token, &route));
                let bytes = http::format_check(checked, origin.as_deref(), is_head, self.now.time);
                self.send_response(token, bytes, "the response was sent");
            }
            Ok(Outcome::Upgrade { response, deflate, route }) => match self.admit(token, &route) {
                Ok(()) => self.upgrade(token, response, deflate, route),
                Err(rejection) => self.reject(token, &rejection, is_head),
            },
            Err(rejection) => self.reject(token, &rejection, is_head),
        }
    }

    /// Runs the access checks that need server state. The checks must not change the chat: `/check` runs them too.
    fn admit(&mut self, token: Token, route: &Route) -> Result<(), Rejection> {
        use {BrokerError::ClientIdInUse, JoinError::*};
        let username = if let Route::Chat(request) = route { Some(&request.join.username) } else { None };
        let peer = self.connections.table.get(&token).map(|connection| connection.cold.peer);
        if peer.is_some_and(|peer| self.chat.is_banned(peer.ip(), username, self.now.time)) {
            return Err(http::forbidden("The operator has banned this address or username (RFC 9110 §15.5.4)."));
        }
        let checked = if let Route::Chat(request) = route { self.chat.check_join(request, self.now) } else { Ok(()) };
        Err(match (checked, route) {
            (Err(Reserved), _) => http::forbidden("This username is reserved for another token (RFC 6455 §10.5)."),
            (Err(Broker(ClientIdInUse)), _) => http::forbidden("Another token uses this client_id (RFC 6455 §10.5)."),
            (Err(Broker(error)), _) => http::service_unavailable(&describe(error)),
            _ if self.limits.is_full() => http::service_unavailable("The server is full"),
            (Err(TooManyJoins), _) => http::too_many_requests("Too many joins", &[("Retry-After", "1")]),
            (Ok(()), Route::Inspect { ticket }) => {
                return self.observers.admit_inspector(token, ticket, &|token| self.connections.queued_bytes(token));
            }
            (Ok(()), Route::Chat(_) | Route::Echo(_)) => return Ok(()),
        })
    }

    /// Sends an HTTP rejection. `is_head`: the request method is HEAD, so the response has no body.
    pub(super) fn reject(&mut self, token: Token, rejection: &Rejection, is_head: bool) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let ColdFields { peer, is_counted, .. } = &mut *connection.cold;
        if std::mem::take(is_counted) {
            self.limits.remove_connection(peer.ip());
        }
        if self.limits.should_log_rejection(peer.ip(), self.now.monotonic) {
            log::info!("REJECT {peer} {} {}", rejection.status, rejection.body);
        }
        *self.chat.operator.counters.rejections.entry(rejection.status).or_default() += 1;
        let response = http::format_rejection(rejection, is_head, self.now.time);
        self.send_response(token, response, "the request was rejected");
        if let Some(oldest) = self.limits.start_lingering(token) {
            self.write_to(oldest); // `abort` drops the outbox, so first try to send the queued response
            self.abort(oldest, "too many rejected connections linger");
        }
    }

    fn send_response(&mut self, token: Token, response: Vec<u8>, reason: &'static str) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.outbox.push_response(response);
        connection.drain(true, reason);
        self.set_timer(token, self.config.close_timeout);
        self.connections.queue(Work::Write, token);
    }

    /// Switches a connection to the WebSocket protocol (§4.2.2).
    fn upgrade(&mut self, token: Token, response: Vec<u8>, deflate: Option<Agreement>, route: Route) {
        let (service, identity, mut join) = match route {
            Route::Echo(identity) => (Service::Echo, identity, None),
            Route::Chat(request) => (Service::Chat, request.identity.clone(), Some(request)),
            Route::Inspect { .. } => (Service::Inspect, Identity::default(), None),
        };
        if let Some(request) = join.as_mut().filter(|request| request.dialect == Dialect::Events) {
            request.extra = self.observers.welcome_field(token);
        }
        self.limits.client_count += 1;
        self.chat.operator.counters.open_connections[service as usize] += 1;
        let Some(connection) = self.connections.get_mut(token) else { return };
        let limits = Limits { deflates: deflate.is_some(), ..service.limits(&self.config) };
        let upgraded = ObservedStage::Upgraded {
            limits,
            username: join.as_ref().map(|request| &request.join.username),
            is_inspector: service == Service::Inspect,
            has_welcome: join.as_ref().is_some_and(|request| request.dialect == Dialect::Events),
            has_ticket: join.as_ref().is_some_and(|request| request.extra.is_some()),
        };
        connection.observer.iter_mut().for_each(|observer| observer.set_stage(upgraded));
        connection.outbox.push_response(response);
        (connection.cold.service, connection.cold.proof) = (Some(service), Proof::new(&identity));
        (connection.cold.deflate, connection.variant) = (deflate.filter(|_| service == Service::Echo), deflate.into());
        connection.cold.stage = Stage::Open(self.fanout.deflater.new_protocol(limits));
        self.connections.queue(Work::Write, token);
        if let Some(request) = join {
            self.chat.join(token, *request, self.now);
            self.apply_effects();
        }
        self.check_jwt_expiry(token, self.config.ping_interval);
    }

    /// Closes the connection if its JWT has expired. Otherwise, sets its timer to fire within `wait`.
    fn check_jwt_expiry(&mut self, token: Token, wait: Duration) {
        let Some(connection) = self.connections.get_mut(token).filter(|connection| connection.is_open()) else {
            return;
        };
        let (next, event) = connection.cold.proof.check(self.now.time);
        let Some(next) = next else { return self.close(token, CloseCode::POLICY_VIOLATION, "token expired") };
        self.set_timer(token, wait.min(next));
        event.into_iter().for_each(|event| self.chat.send(token, event));
    }

    pub(super) fn renew(&mut self, token: Token, fresh: &str, nonce: Option<Rc<str>>) {
        let renewed = self.access.jwt_keys.renew(&mut self.chat, token, fresh, nonce, self.now.time);
        let (Some(connection), Some(identity)) = (self.connections.get_mut(token), renewed) else { return };
        connection.cold.proof = Proof::new(&identity);
        self.set_timer(token, Duration::ZERO); // recalculate the timer at once, because the new token has a new `exp`
    }

    pub(super) fn check_timers(&mut self) {
        for (address, count) in self.limits.take_rejection_summary(self.now.monotonic) {
            log::info!("REJECT {address} {count} more in the last minute");
        }
        while let Some((check, token)) = self.timers.pop_expired(self.now.monotonic) {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            connection.cold.deadline = None;
            match &connection.cold.stage {
                Stage::Handshake(_) if connection.is_queued(Work::Handshake) => self.set_timer(token, HANDSHAKE_GRACE),
                Stage::Handshake(head) if head.byte_count() == 0 => self.abort(token, "no request arrived in time"),
                Stage::Handshake(_) => {
                    let seconds = self.config.handshake_timeout.as_secs_f64();
                    let body = format!("The request was not complete after {seconds} seconds (RFC 9110 §15.5.9).");
                    self.reject(token, &Rejection::new(408, body), false);
                }
                Stage::Open(_) if connection.is_open() => self.check_silence(token, check),
                Stage::Open(_) => self.abort(token, "the peer did not reply to the Close in time"),
                Stage::Draining { .. } if !connection.is_flushed() => {
                    self.abort(token, "the peer did not read the last bytes in time");
                }
                Stage::Draining { .. } => self.abort(token, "the peer did not end the stream in time"),
            }
        }
    }

    fn check_silence(&mut self, token: Token, check: Duration) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let last_received = if connection.is_queued(Work::Read) { check } else { connection.cold.last_received };
        let silent = check.saturating_sub(last_received);
        connection.cold.last_received = self.now.monotonic - silent; // do not count a late timer's delay as silence
        let Some((pings, wait)) = plan_check(silent, self.config.ping_interval, self.config.idle_timeout) else {
            return self.abort(token, format!("the peer was silent for {:.0} seconds", silent.as_secs_f64()));
        };
        if pings {
            self.ping(token, b"");
        }
        self.check_jwt_expiry(token, wait);
    }

    pub(super) fn ping(&mut self, token: Token, payload: &[u8]) {
        let Some(protocol) = self.connections.get_mut(token).and_then(Connection::protocol_if_open) else { return };
        protocol.ping(payload);
        self.apply_protocol_state(token, "");
    }

    /// Starts the closing handshake (§7.1.2) if the connection is open.
    pub fn close(&mut self, token: Token, code: CloseCode, reason: &str) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let Some(protocol) = connection.protocol_if_open() else { return };
        protocol.close(code, reason);
        connection.cold.close_code.get_or_insert(code.get());
        connection.observer.iter_mut().for_each(|observer| observer.set_stage(ObservedStage::Closing));
        self.apply_protocol_state(token, reason);
    }

    /// Drops unsent room events and the outbox, except the rest of a half-sent frame. Then closes the connection.
    pub(super) fn close_slow_consumer(&mut self, token: Token, code: CloseCode, reason: &str) {
        if let Some(connection) = self.connections.get_mut(token).filter(|connection| connection.is_open()) {
            connection.outbox.drop_unsent();
            self.chat.operator.counters.slow_consumers += 1;
            self.chat.room_of(token).into_iter().for_each(|room| self.skip(token, room));
            self.close(token, code, reason);
        }
    }

    /// Queues the protocol's output. If the connection is no longer open, the client leaves the chat with `reason`.
    pub(super) fn apply_protocol_state(&mut self, token: Token, reason: &str) {
        // First queue the client's pending room events, so that they precede the protocol's output, such as a Close.
        self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.apply_protocol_state();
        if !connection.is_open() {
            self.chat.leave(token, reason, self.now);
            self.set_timer(token, self.config.close_timeout);
        }
        self.connections.queue(Work::Write, token);
    }

    /// Handles a failed read. `InvalidInput` means plain HTTP on a TLS port, and `InvalidData` a malformed PROXY header
    /// or a TLS error.
    pub(super) fn handle_read_error(&mut self, token: Token, error: &io::Error) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let (kind, is_handshake) = (error.kind(), matches!(connection.cold.stage, Stage::Handshake(_)));
        if is_handshake && matches!(kind, ErrorKind::InvalidInput | ErrorKind::InvalidData) {
            self.reject(token, &bad_request(error.to_string()), false);
        }
        if !is_handshake || kind != ErrorKind::InvalidInput {
            self.abort(token, error.to_string());
        }
    }

    /// Handles the end of the peer's stream. The peer may still read, so an open connection still sends its outbox.
    pub(super) fn handle_end_of_stream(&mut self, token: Token) {
        const REASON: &str = "the peer ended the stream without a Close";
        let Some(connection) = self.connections.get_mut(token) else { return };
        match connection.cold.stage {
            Stage::Handshake(_) => self.abort(token, "the peer ended the stream before its request was complete"),
            Stage::Draining { .. } => self.connections.queue(Work::Write, token),
            Stage::Open(_) => {
                connection.drain(false, REASON);
                self.apply_protocol_state(token, REASON);
            }
        }
    }

    /// Drops the outbox, and removes the connection at the end of the turn.
    pub(super) fn abort(&mut self, token: Token, reason: impl Into<Cow<'static, str>>) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        if !connection.is_queued(Work::Remove) {
            connection.drain(false, reason);
            (connection.outbox, connection.cold.unprocessed) = (Outbox::default(), Box::default());
            self.connections.queue(Work::Remove, token);
        }
    }

    /// Removes a connection from all tables. Its socket closes later: a turn closes at most `CLOSES_PER_TURN` sockets.
    pub(super) fn remove(&mut self, token: Token) {
        let Some(mut connection) = self.connections.table.remove(&token) else { return };
        let ColdFields { ref mut stage, peer, service, buffered, is_counted, close_code, .. } = *connection.cold;
        let Stage::Draining { reason, .. } = stage else { unreachable!("a connection drains before its removal") };
        let reason = std::mem::take(reason);
        self.chat.leave(token, &reason, self.now);
        connection.observer.iter_mut().for_each(|observer| observer.finish(&reason));
        self.observers.forget(token);
        self.timers.set(token, &mut connection.cold.deadline, None);
        if is_counted {
            self.limits.remove_connection(peer.ip());
        }
        match service {
            Some(_) => self.limits.client_count -= 1,
            None => self.limits.stop_lingering(token),
        }
        self.limits.buffered -= buffered;
        self.chat.operator.counters.count_close(service.map(|kind| kind as usize), close_code, connection.bytes_sent);
        // Log a chat client or a connection without an upgrade at debug level: many have a LEAVE or REJECT line.
        let level = if matches!(service, Some(Service::Chat) | None) { log::Level::Debug } else { log::Level::Info };
        log::log!(level, "CLOSE {peer} reason={reason:?}");
        self.removed.push_back(connection);
    }

    /// Recounts one connection's bytes. While the total exceeds `--max-buffered`, flushes or closes the largest one.
    pub(super) fn enforce_buffer_limit(&mut self, mut token: Token) {
        loop {
            if let Some(connection) = self.connections.get_mut(token) {
                let buffered = connection.buffered_bytes();
                self.limits.buffered += buffered;
                self.limits.buffered -= std::mem::replace(&mut connection.cold.buffered, buffered);
            }
            let buffered = self.limits.buffered + self.limits.shared_bytes.get() + self.chat.broker.queued_bytes();
            if buffered <= self.config.max_buffered {
                return;
            }
            let remaining = self.connections.table.iter().filter(|(_, connection)| !connection.is_queued(Work::Remove));
            let largest = remaining.max_by_key(|(token, connection)| (connection.memory_bytes(), **token));
            let Some((largest, _)) = largest.filter(|(_, connection)| connection.memory_bytes() > 0) else { return };
            token = *largest;
            self.free_memory(token);
        }
    }

    /// Flushes the outbox. If this frees no memory, closes the connection, or aborts it if it cannot send a Close.
    fn free_memory(&mut self, token: Token) {
        const REASON: &str = "the server's buffers are full";
        let Some(connection) = self.connections.get_mut(token) else { return };
        let before = connection.memory_bytes();
        let is_open = connection.flush().is_ok() && connection.is_open();
        if connection.memory_bytes() < before {
            self.connections.queue(Work::Write, token); // `write_to` removes the connection if it has drained
        } else if is_open {
            connection.cold.unprocessed = Box::default();
            self.close_slow_consumer(token, CloseCode::TRY_AGAIN_LATER, REASON);
        } else {
            self.abort(token, REASON);
        }
    }

    /// Replaces the access tokens and JWT keys. Closes each connection whose token or key is gone, or whose token is
    /// now bound to another username.
    pub fn reload_tokens(&mut self, file: Result<Option<String>, String>, keys: Vec<Result<Vec<u8>, String>>) {
        let before = self.access.tokens.as_ref().map(AccessTokens::ids).unwrap_or_default();
        let key_changes = self.access.jwt_keys.reload(&self.config, keys);
        let loaded = file.and_then(|text| self.access.load_tokens(&self.config, text.as_deref()));
        let loaded = loaded.inspect_err(|error| log::error!("RELOAD failed, the old tokens stay in force: {error}"));
        if loaded.is_err() && key_changes.is_empty() {
            return;
        }
        self.chat.set_reserved_usernames(self.access.reserved_usernames());
        let now = self.access.tokens.as_ref().map(AccessTokens::ids).unwrap_or_default();
        let is_revoked = |id| !now.contains(&id) && !self.access.jwt_keys.contains(id);
        let revoked =
            self.connections.table.iter().filter(|(_, peer)| peer.cold.proof.credential.is_some_and(is_revoked));
        let revoked: BTreeSet<Token> = revoked.map(|(token, _)| *token).collect(); // sorted: oldest connection first
        let (added, removed) = (now.difference(&before).count(), before.difference(&now).count());
        log::info!("RELOAD tokens added={added} removed={removed}{key_changes} connections_closed={}", revoked.len());
        for token in revoked {
            self.close(token, CloseCode::POLICY_VIOLATION, "token revoked");
        }
    }

    /// Starts a shutdown. `drains`: apply `--drain-delay` and `--drain`. Returns `false` if one has already begun.
    pub fn shut_down(&mut self, drains: bool) -> bool {
        if self.shutdown.is_some() {
            return false;
        }
        log::info!("STOP connections={}", self.connection_count());
        if !drains {
            (self.config.drain_delay, self.config.drain) = (Duration::ZERO, Duration::ZERO);
        }
        self.shutdown = Some(Shutdown::Announced { until: self.now.monotonic + self.config.drain_delay });
        self.continue_shutdown();
        true
    }

    /// Reads and publishes the messages that arrived before the shutdown, and then closes all connections.
    fn stop_reading(&mut self) {
        let queued = self.connections.queue_len(Work::ReadEnding).max(self.connections.queue_len(Work::Read));
        for _ in 0..=queued / READS_PER_TURN {
            self.fanout.rooms_with_full_batch.clear();
            self.read();
            self.send_batches();
        }
        if !matches!(self.shutdown, Some(Shutdown::Closing { .. })) {
            self.shutdown = Some(Shutdown::Publishing);
        }
        self.continue_shutdown();
    }

    /// Performs the next step of a shutdown if it is due. The server closes connections only after the broker has
    /// published all queued messages. The gradual closing of `--drain` does not wait for an unavailable broker.
    pub(super) fn continue_shutdown(&mut self) {
        let (now, is_published) = (self.now.monotonic, self.chat.broker.queued_bytes() == 0);
        let waits = !is_published && self.chat.broker.is_available();
        match &mut self.shutdown {
            Some(Shutdown::Announced { until }) if *until > now => {}
            Some(Shutdown::Announced { .. }) if self.config.drain.is_zero() => self.stop_reading(),
            Some(Shutdown::Announced { .. }) => {
                // Do not close an inspector before the connection that it observes.
                let table = self.connections.table.iter();
                let table = table.filter(|(_, connection)| connection.cold.service != Some(Service::Inspect));
                let connections = table.map(|(token, connection)| (connection.cold.last_received, *token)).collect();
                let schedule = CloseSchedule::new(connections, self.config.drain, now);
                self.shutdown = Some(Shutdown::Spreading(schedule));
            }
            Some(Shutdown::Spreading(schedule)) if schedule.next_step_at > now => {}
            Some(Shutdown::Spreading(schedule)) if waits => schedule.is_postponed = true,
            Some(Shutdown::Spreading(schedule)) => {
                schedule.waiting.retain(|token| self.connections.table.contains_key(token));
                let Some(tokens) = schedule.take_step(now) else { return self.stop_reading() };
                self.send_batches();
                tokens.into_iter().for_each(|token| self.close(token, CloseCode::GOING_AWAY, SHUTDOWN_REASON));
            }
            Some(Shutdown::Publishing) if is_published => self.close_all(CloseCode::GOING_AWAY, SHUTDOWN_REASON),
            _ => {}
        }
    }

    fn send_batches(&mut self) {
        self.fanout.held_since = None;
        while let Some((room, batch)) = self.fanout.take_next_batch() {
            self.send_batch(room, &batch);
        }
    }

    pub(super) fn close_all(&mut self, code: CloseCode, reason: &'static str) {
        self.send_batches();
        self.shutdown = Some(Shutdown::Closing { until: self.now.monotonic + SHUTDOWN_TIMEOUT });
        // Send no `left` events: at shutdown, each of n members would receive up to n - 1 of them.
        self.chat.clear();
        let tokens: BTreeSet<Token> = self.connections.table.keys().copied().collect();
        for token in tokens {
            match self.connections.table.get(&token).map(|connection| &*connection.cold) {
                Some(ColdFields { stage: Stage::Handshake(_), .. }) => self.abort(token, reason),
                // Do not close an inspector, so that it can receive the Close of the connection that it observes.
                Some(ColdFields { service: Some(Service::Inspect), .. }) => {}
                _ => self.close(token, code, reason),
            }
        }
    }

    pub fn is_stopped(&self) -> bool {
        let Some(Shutdown::Closing { until }) = self.shutdown else { return false };
        self.connections.table.is_empty() || until <= self.now.monotonic
    }

    pub fn stop_observers(&mut self) {
        let observers = self.connections.table.values_mut().filter_map(|connection| connection.observer.as_mut());
        observers.for_each(|observer| observer.finish("the server stopped"));
        self.serve_observers();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::io::{self, ErrorKind, Read, Write};
    use std::time::SystemTime;

    use clap::Parser;

    use super::*;
    use crate::chat::Now;
    use crate::config::Config;
    use crate::http::access::AccessControl;
    use crate::inspect::{InspectObservers, InspectOptions};
    use crate::server::limits::ConnectionLimits;
    use crate::server::{Readiness, Server};
    use crate::ws::frame::Opcode;

    const REQUEST: &str = "GET /echo?token=dev-token HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const WRITABLE: Readiness =
        Readiness { is_readable: false, is_writable: true, is_read_closed: false, has_error: false };
    const READABLE_AND_WRITABLE: Readiness = Readiness { is_readable: true, ..WRITABLE };

    /// A socket that accepts `space` bytes, then returns `WouldBlock`.
    #[derive(Default)]
    struct Pipe {
        input: VecDeque<u8>,
        space: Rc<Cell<usize>>,
        written: Rc<Cell<Vec<u8>>>,
    }

    impl Read for Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.input.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.input.read(buffer) }
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.space.get());
            self.space.set(self.space.get() - written);
            self.written.set([self.written.take(), bytes[..written].to_vec()].concat());
            if written == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(written) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Socket for Pipe {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Calls `cause` to end a connection, and returns the last three cells of its row in the `connection.rs` table.
    /// With `is_upgraded`, the connection is open before the call, and has one partly sent and one unsent frame.
    fn describe_ending(is_upgraded: bool, cause: impl FnOnce(&mut Server<Pipe>, Token)) -> String {
        let config = Config::try_parse_from(["wirechat"]).unwrap();
        let (access, limits) = (AccessControl::new(&config, None).unwrap(), ConnectionLimits::new(&config, 9, 9));
        let now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };
        let close_at = now.monotonic + config.close_timeout;
        let broker = Box::new(crate::server::new_memory_broker(&config, Box::new(|bytes| bytes.fill(7))));
        let options =
            InspectOptions { trace: None, record: None, enables_inspection: false, max_outbox: config.max_outbox };
        let observers = Box::new(InspectObservers::new(options, &mut |bytes| bytes.fill(7)).unwrap());
        let mut server = Server::new(config, access, limits, observers, broker, now);
        let socket = Pipe { input: REQUEST.bytes().collect(), ..Pipe::default() };
        let (token, space, written) = (server.next_token(), Rc::clone(&socket.space), Rc::clone(&socket.written));
        server.accept(socket, "127.0.0.1:1".parse().ok());
        let turn = |server: &mut Server<Pipe>, bytes| {
            space.set(bytes);
            server.set_ready(token, WRITABLE);
            server.finish_turn();
        };
        if is_upgraded {
            server.set_ready(token, READABLE_AND_WRITABLE);
            turn(&mut server, 1000);
            for text in ["first", "second"] {
                server.send_frame(token, Opcode::Text, text.as_bytes());
            }
            turn(&mut server, 3);
        }
        written.take();
        cause(&mut server, token);
        server.finish_turn();
        let cold = server.connections.get_mut(token).map(|connection| &connection.cold);
        let reads = match cold.map(|cold| &cold.stage) {
            Some(Stage::Open(_) | Stage::Handshake(_)) => "frames, until the peer's Close",
            Some(Stage::Draining { discards_input: true, .. }) => "discarded until the end of the stream",
            Some(Stage::Draining { discards_input: false, .. }) | None => "nothing",
        };
        let timer = cold.map_or("none", |cold| if cold.deadline == Some(close_at) { "close timeout" } else { "wrong" });
        turn(&mut server, 1000);
        let sent = String::from_utf8_lossy(&written.take()).into_owned();
        let has = |text| sent.contains(text);
        let sends = match (has("HTTP") || has("second"), has("rst"), has("\u{fffd}")) {
            _ if sent.is_empty() => "nothing",
            _ if has("HTTP") => "the outbox",
            (false, true, true) => "the frame that is half sent, a Close",
            (true, true, _) if sent.ends_with("second") => "the outbox",
            (true, true, true) => "the outbox, a Close",
            _ => "wrong",
        };
        format!("{sends} | {reads} | {timer}")
    }

    #[test]
    fn the_table_of_endings_matches_the_code() {
        let code = CloseCode::POLICY_VIOLATION;
        let close = || b"\x88\x80\0\0\0\0".to_vec();
        let rows = [
            (
                "an HTTP response",
                describe_ending(false, |server, token| server.reject(token, &http::forbidden("no"), false)),
            ),
            ("the server closes", describe_ending(true, |server, token| server.close(token, code, "no"))),
            (
                "the consumer is slow",
                describe_ending(true, |server, token| server.close_slow_consumer(token, code, "slow")),
            ),
            (
                "an error, framing intact",
                describe_ending(true, |server, token| {
                    server.receive_frames(token, &mut b"\x81\x81\0\0\0\0\xff".to_vec());
                }),
            ),
            (
                "an error, framing lost",
                describe_ending(true, |server, token| {
                    server.receive_frames(token, &mut b"\x81\x05".to_vec());
                }),
            ),
            ("the peer closes", describe_ending(true, |server, token| server.receive_frames(token, &mut close()))),
            (
                "the peer closes, input left",
                describe_ending(true, |server, token| {
                    server.set_ready(token, READABLE_AND_WRITABLE);
                    server.receive_frames(token, &mut close());
                }),
            ),
            ("the peer ended the stream", describe_ending(true, |server, token| server.handle_end_of_stream(token))),
            ("a timeout or a failed socket", describe_ending(true, |server, token| server.abort(token, "late"))),
        ];
        let rows = rows.map(|(name, row)| format!("\n| {name} | {row} |"));
        let table = "| cause | still sent | still read | timer |\n|---|---|---|---|".to_owned() + &rows.concat();
        crate::pictures::assert_in_module_doc(include_str!("connection.rs"), &table);
    }
}
