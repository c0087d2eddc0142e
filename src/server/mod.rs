//! The server connects sockets, the protocol and the chat. A driver supplies sockets, time, randomness and readiness:
//! `net::event_loop` uses mio, and tests use in-memory sockets and a fake clock.
//!
//! ```text
//!   begin_turn ─▶ set_ready, accept … ─▶ finish_turn: read ─▶ check_timers ─▶ write_and_remove
//! ```
//!
//! Each turn reads a bounded number of bytes from connections with input, and writes most output at the end. Only the
//! last step removes connections, so no other step finds a half-removed connection. The server runs in one thread.

pub mod connection;
pub mod fanout;
mod lifecycle;
pub mod limits;
pub mod observer;
pub mod outbox;
mod shutdown;
pub mod timers;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use mio::Token;

use crate::broker::{Broker, RoomId};
use crate::chat::event::{Effect, Event};
use crate::chat::{Chat, Now, dialect::Dialect};
use crate::http::{access::AccessControl, proxy::is_trusted_proxy, service_unavailable};
pub use crate::ws::close::CloseCode;
use crate::ws::deflate::broadcast::{DEFAULT_MIN_PAYLOAD_LEN, Variant};
use crate::ws::frame::Opcode;
use crate::ws::protocol::{Event as ProtocolEvent, State};
use crate::{config::Config, ws::message::Message};
use connection::{Connection, Connections, Service, Socket, Stage, Work};
use fanout::{Batch, Fanout, Format, append_frame};
use limits::ConnectionLimits;
pub use limits::{broker_limits, new_memory_broker};
use observer::{Action, Observers};
use outbox::Broadcast;
use shutdown::Shutdown;
use timers::Timers;

const HANDSHAKES_PER_TURN: usize = 16; // low, because a handshake that joins a large room costs as much as 100 messages
const CLOSES_PER_TURN: usize = 512; // closing sockets is slow: thousands of closes in one turn would delay all clients
const READS_PER_TURN: usize = 2048; // each read delays the turn's writes by a few microseconds

pub struct Server<S> {
    config: Config,
    access: AccessControl,
    pub chat: Chat,
    pub connections: Connections<S>,
    removed: VecDeque<Connection<S>>, // removed connections whose sockets are still open
    timers: Timers,
    fanout: Fanout,
    pub limits: ConnectionLimits,
    observers: Box<dyn Observers>,
    to_observe: Vec<Token>, // connections to which an observer will be attached when they are between two messages
    now: Now,
    scratch: Vec<u8>, // read buffer that all connections share
    shutdown: Option<Shutdown>,
    pub storage_failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    pub is_readable: bool,
    pub is_writable: bool,
    pub is_read_closed: bool, // the peer has shut down its write side
    pub has_error: bool,
}

impl<S: Socket> Server<S> {
    pub fn new(
        config: Config,
        access: AccessControl,
        limits: ConnectionLimits,
        observers: Box<dyn Observers>,
        broker: Box<dyn Broker>,
        now: Now,
    ) -> Server<S> {
        let mut chat = Chat::new(&config, broker);
        chat.set_reserved_usernames(access.reserved_usernames());
        let fanout = Fanout::new(config.features.deflate_min.unwrap_or(DEFAULT_MIN_PAYLOAD_LEN));
        Server {
            chat,
            limits,
            scratch: vec![0; config.max_read],
            config,
            access,
            connections: Connections::new(Token(1)), // the event loop's own poll tokens count down from `usize::MAX`
            removed: VecDeque::new(),
            timers: Timers::default(),
            fanout,
            observers,
            to_observe: Vec::new(),
            now,
            shutdown: None,
            storage_failed: false,
        }
    }

    pub fn begin_turn(&mut self, now: Now) {
        self.now = now;
        self.observers.begin_turn(now.time);
        self.fanout.begin_turn(now.monotonic);
        self.chat.broker.begin_turn(now.monotonic);
    }

    /// Records the readiness that the poll reported. The server reads and writes later, in `finish_turn`.
    pub fn set_ready(&mut self, token: Token, readiness: Readiness) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        if readiness.is_readable || readiness.is_read_closed || readiness.has_error {
            connection.set_readable(readiness.is_read_closed || readiness.has_error);
        }
        let wants_read = connection.wants_read(self.config.max_outbox);
        if readiness.is_readable && !wants_read {
            // While reads are paused, a new readable event from the poll is the only sign that the peer is active.
            connection.cold.last_received = self.now.monotonic;
        }
        if readiness.is_writable && !connection.is_flushed() {
            self.connections.queue(Work::Write, token);
        }
        self.connections.queue_read(token, self.config.max_outbox);
        if readiness.has_error && !wants_read {
            self.abort(token, "the socket failed"); // while reads are paused, no read can report the socket's error
        }
    }

    pub fn finish_turn(&mut self) {
        self.read();
        self.continue_shutdown();
        self.check_timers();
        self.write_and_remove();
        self.removed.drain(..self.removed.len().min(CLOSES_PER_TURN));
    }

    /// The deadline for the next turn of the event loop if no socket is ready earlier; `None` if no work is scheduled.
    pub fn next_turn_at(&self) -> Option<Duration> {
        let has_input = self.connections.has_work([Work::ReadEnding, Work::Read, Work::Handshake]);
        let has_work = has_input && !self.pauses_reads() || !self.removed.is_empty() || !self.fanout.is_empty();
        let stop = match &self.shutdown {
            Some(Shutdown::Announced { until } | Shutdown::Closing { until }) => Some(*until),
            Some(Shutdown::Spreading(schedule)) if !schedule.is_postponed => Some(schedule.next_step_at),
            _ => None,
        };
        let now = has_work.then_some(self.now.monotonic);
        let (timer, summary, broker) =
            (self.timers.next_deadline(), self.limits.next_summary_at(), self.chat.broker.next_turn_at());
        [now, timer, summary, stop, broker].into_iter().flatten().min()
    }

    pub fn connection_count(&self) -> usize {
        self.connections.table.len()
    }

    fn read(&mut self) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for work in [Work::ReadEnding, Work::Read, Work::Handshake] {
            let limit = if work == Work::Handshake { HANDSHAKES_PER_TURN } else { READS_PER_TURN };
            for _ in 0..self.connections.queue_len(work).min(limit) {
                let next = if self.pauses_reads() { None } else { self.connections.dequeue(work) };
                let Some(token) = next else { break };
                // Once a room's batch is full, read no more from its members this turn, so that recipients keep up.
                if self.chat.room_of(token).is_some_and(|room| self.fanout.rooms_with_full_batch.contains(&room)) {
                    self.connections.queue(work, token);
                } else {
                    self.read_from(token, &mut scratch);
                }
            }
        }
        self.scratch = scratch;
        self.apply_effects();
    }

    /// Whether the server pauses all reads. Without the pause, messages that wait for a slow disk or for Redis could
    /// fill the memory, or postpone a step of the shutdown forever.
    pub fn pauses_reads(&self) -> bool {
        let is_waiting = match &self.shutdown {
            Some(Shutdown::Spreading(schedule)) => schedule.is_postponed,
            Some(stage) => matches!(stage, Shutdown::Publishing),
            None => false,
        };
        is_waiting || self.chat.broker.queued_bytes() > self.config.max_buffered / 2
    }

    /// Reads at most once from the socket, so that a busy connection does not delay other connections.
    fn read_from(&mut self, token: Token, scratch: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        if !connection.wants_read(self.config.max_outbox) {
            return;
        }
        let mut unprocessed = std::mem::take(&mut connection.cold.unprocessed);
        if connection.cold.expects_proxy_header {
            self.read_proxy_header(token);
        } else if !unprocessed.is_empty() {
            self.receive(token, &mut unprocessed);
        } else {
            match connection.read(scratch) {
                Ok(Some(0)) => self.handle_end_of_stream(token),
                Ok(Some(len)) => {
                    connection.cold.last_received = self.now.monotonic;
                    self.chat.operator.counters.bytes_received += len as u64;
                    self.receive(token, &mut scratch[..len]);
                }
                Ok(None) => self.enforce_buffer_limit(token), // count the buffered part of an incomplete TLS record
                Err(error) => self.handle_read_error(token, &error),
            }
        }
        self.connections.queue_read(token, self.config.max_outbox);
    }

    /// Reads the header in which a trusted proxy names the client.
    fn read_proxy_header(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        match connection.read_proxy_header() {
            Ok(Some(client)) => {
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                self.set_peer(token, client, is_trusted_proxy(client.ip(), &self.config.trusted_proxy));
            }
            Err(error) if !connection.cold.expects_proxy_header => self.handle_read_error(token, &error),
            Ok(None) | Err(_) => {} // the header names no client, or is incomplete
        }
    }

    /// Sets the peer's address and counts the connection toward that address's limits. If the peer is a proxy
    /// (`is_proxy`), the server counts the connection later, once a header gives the address of the client.
    fn set_peer(&mut self, token: Token, peer: SocketAddr, is_proxy: bool) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let cold = &mut *connection.cold;
        (cold.peer, cold.is_proxy, cold.is_counted) = (peer, is_proxy, !is_proxy);
        if !is_proxy && let Err(what) = self.limits.add_connection(peer.ip(), self.now.monotonic) {
            self.reject(token, &service_unavailable(what), false);
        }
    }

    fn receive(&mut self, token: Token, input: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        match &mut connection.cold.stage {
            Stage::Draining { .. } => {}
            Stage::Open(_) => self.receive_frames(token, input),
            Stage::Handshake(head) => match head.receive(input, self.config.max_head) {
                Ok(None) => self.enforce_buffer_limit(token),
                Ok(Some(end)) => {
                    self.respond(token);
                    // §4.1 forbids frames before the response, but accepting early frames does no harm.
                    self.receive_frames(token, &mut input[end..]);
                }
                Err(rejection) => self.reject(token, &rejection, false),
            },
        }
    }

    /// Handles each event before parsing the next frame, so that replies follow the order of the frames.
    fn receive_frames(&mut self, token: Token, mut input: &mut [u8]) {
        while !input.is_empty() {
            let Some(connection) = self.connections.get_mut(token) else { return };
            if connection.is_congested(self.config.max_outbox) {
                connection.cold.unprocessed = (&*input).into();
                break;
            }
            let (was_open, cold) = (connection.is_open(), &mut *connection.cold);
            let (Some(service), Stage::Open(protocol)) = (cold.service, &mut cold.stage) else { break };
            let Some(event) = protocol.receive(&mut input) else {
                // A protocol error after the server's Close yields no event, so check the protocol's state instead.
                if matches!(protocol.state(), State::OutOfSync | State::Closed) {
                    self.apply_protocol_state(token, "");
                }
                break;
            };
            match event {
                ProtocolEvent::Message(message) => self.receive_message(token, service, &message),
                ProtocolEvent::Ping(_) => self.apply_protocol_state(token, ""),
                ProtocolEvent::Pong(_) => {}
                ProtocolEvent::Close(code, reason) => {
                    cold.close_code.get_or_insert(code.map_or(1005, CloseCode::get)); // §7.1.5: 1005 means no code
                    let code = code.map_or("no code".into(), |code| code.get().to_string());
                    let reason = ["closed by the client:", &code, &reason].join(" ");
                    // If the server closed first, the client's Close is only a reply, not the reason for closing.
                    self.apply_protocol_state(token, if was_open { reason.trim_end() } else { "" });
                }
                ProtocolEvent::Failed(error) => {
                    let (peer, code) = (cold.peer, error.code().get());
                    log::info!("FAIL {peer} {code} §{} {error}", error.section());
                    cold.close_code.get_or_insert(code);
                    self.apply_protocol_state(token, &format!("{code} {error}"));
                }
            }
        }
        self.enforce_buffer_limit(token);
    }

    fn receive_message(&mut self, token: Token, service: Service, message: &Message) {
        let queued_bytes = |token| self.connections.queued_bytes(token);
        match (service, message) {
            (Service::Chat, Message::Text(text)) => {
                self.chat.receive(token, text, self.now);
                self.apply_effects();
            }
            (Service::Inspect, Message::Text(text)) => self.observers.receive(token, text, &queued_bytes),
            (Service::Echo, Message::Text(text)) => self.send_frame(token, Opcode::Text, text.as_bytes()),
            (Service::Echo, Message::Binary(bytes)) => self.send_frame(token, Opcode::Binary, bytes),
            (_, Message::Binary(_)) => debug_assert!(false, "the protocol has failed the connection with 1003"),
        }
    }

    fn send_frame(&mut self, token: Token, opcode: Opcode, payload: &[u8]) {
        let mut bytes = Vec::new();
        let agreement = self.connections.table.get(&token).and_then(|connection| connection.cold.deflate);
        self.fanout.deflater.append_standalone(agreement, opcode, payload, &mut bytes);
        self.connections.send(token, bytes);
    }

    /// Applies the chat's queued effects, including those of broker events that have arrived.
    pub fn apply_effects(&mut self) {
        while let Some(effect) = self.chat.next_effect() {
            match effect {
                Effect::SetRoom { client, from, to } => {
                    from.into_iter().for_each(|room| self.catch_up(client, room));
                    self.skip(client, to);
                    self.restart_compression(client, to);
                }
                Effect::Close { client, reason, may_retry } => {
                    let code = if may_retry { CloseCode::TRY_AGAIN_LATER } else { CloseCode::POLICY_VIOLATION };
                    self.close(client, code, reason);
                }
                Effect::Renew(client, token, nonce) => self.renew(client, &token, nonce),
                Effect::StorageFailed { reason } => {
                    log::error!("STORAGE failed: {reason}");
                    self.storage_failed = true;
                    self.close_all(CloseCode::INTERNAL_ERROR, "storage failed");
                }
                Effect::Send { client, event } => self.send(client, &event),
                Effect::Broadcast { room, except, event } => self.broadcast(room, except, &event),
            }
        }
    }

    /// Sends an event to one client. The client receives the event after all earlier events of its room.
    fn send(&mut self, client: Token, event: &Event) {
        self.chat.room_of(client).into_iter().for_each(|room| self.catch_up(client, room));
        let Some(dialect) = self.chat.dialect_of(client) else { return };
        let mut frames = Vec::new();
        append_frame(dialect, event, &mut frames);
        self.connections.send(client, frames);
    }

    fn broadcast(&mut self, room: RoomId, except: Option<Token>, event: &Event) {
        // A client that is in no room receives no room events, so there is nothing to exclude it from.
        let except = except.filter(|client| self.chat.room_of(*client).is_some());
        except.into_iter().for_each(|client| self.catch_up(client, room));
        let format = except.and_then(|client| self.format_of(client));
        let is_full = self.fanout.append(room, self.chat.dialects(room), format, event);
        // Move the cursor of `except` past this event first: `send_batch` sends all events after a member's cursor.
        except.into_iter().for_each(|client| self.skip(client, room));
        if is_full && let Some(batch) = self.fanout.take_full_batch(room) {
            self.send_batch(room, &batch);
        }
    }

    /// Queues a room's events that a client has not yet received, so that the events precede any later output.
    fn catch_up(&mut self, client: Token, room: RoomId) {
        // During a mass disconnect, do not send the batch of events to clients that are closing: the batch may be long,
        // and these clients rarely read.
        if self.fanout.is_held() && !self.connections.get_mut(client).is_some_and(|connection| connection.is_open()) {
            return;
        }
        let Some(format) = self.format_of(client) else { return };
        self.connections.send(client, self.fanout.advance_cursor(room, client, format));
    }

    /// Marks the events in the room's batch as sent to the client, so that the client receives only later events.
    fn skip(&mut self, client: Token, room: RoomId) {
        if let Some(format) = self.format_of(client) {
            self.fanout.advance_cursor(room, client, format);
        }
    }

    /// Resets a room's compression: later messages must not refer to messages that a new member or a new inspector has
    /// not received.
    fn restart_compression(&mut self, client: Token, room: RoomId) {
        if let Some((dialect, variant)) = self.format_of(client) {
            let exists = |(room, _): &_| self.chat.rooms.contains_key(room);
            self.fanout.deflater.add_member((room, dialect), variant, exists);
        }
    }

    fn format_of(&self, client: Token) -> Option<Format> {
        Some((self.chat.dialect_of(client)?, self.connections.table.get(&client)?.variant))
    }

    /// Removes closed connections and writes output until no work is queued. Writing reveals slow consumers and failed
    /// sockets, which cause another round: the server closes them, and their rooms receive `left`.
    fn write_and_remove(&mut self) {
        loop {
            // Remove all closed connections before sending any `left` event. Otherwise n closed members cost n² writes.
            while let Some(token) = self.connections.dequeue(Work::Remove) {
                self.remove(token);
            }
            self.apply_effects();
            self.fanout.expire_hold();
            // Write output for single clients before room batches: a Pong must not wait for thousands of recipients.
            while let Some(token) = self.connections.dequeue(Work::Write) {
                self.write_to(token);
            }
            while let Some((room, batch)) = self.fanout.take_next_batch() {
                self.send_batch(room, &batch);
            }
            while let Some(token) = self.connections.dequeue(Work::CloseSlow) {
                self.close_slow_consumer(token, CloseCode::POLICY_VIOLATION, "too slow to read");
            }
            self.apply_effects();
            self.serve_observers();
            let is_sent = self.fanout.is_empty() || self.fanout.is_held();
            if is_sent && !self.connections.has_work([Work::Write, Work::CloseSlow, Work::Remove]) {
                debug_assert_eq!(self.timers.count(), self.connection_count(), "every connection has a deadline");
                return;
            }
        }
    }

    fn send_batch(&mut self, room: RoomId, batch: &Batch) {
        let broadcast = |frames| Broadcast::new(frames, &self.limits.shared_bytes);
        let mut broadcasts = batch.frames.each_ref().map(|frames| frames.each_ref().map(|frames| broadcast(frames)));
        let (mut failed, mut formats) = (Vec::new(), [[false; Variant::COUNT]; Dialect::ALL.len()]);
        for (token, dialect) in self.chat.recipients(room) {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            let cursor = batch.cursors.get(&token).copied().unwrap_or_default();
            let variant = connection.variant as usize;
            formats[dialect as usize][variant] = true;
            let broadcast = &mut broadcasts[dialect as usize][variant];
            let was_empty = connection.outbox.is_empty();
            let sent = match cursor {
                _ if connection.is_queued(Work::Remove) => continue, // an aborted connection receives nothing
                // Nothing to send: the member has received or skipped the batch, or its dialect omits every event.
                _ if cursor == broadcast.frames.len() => continue,
                0 => connection.send_broadcast(broadcast),
                _ => {
                    connection.push_frames(&broadcast.frames[cursor..]);
                    connection.flush()
                }
            };
            match sent {
                // In the common case, the socket accepts all bytes, and no work remains.
                Ok(()) if was_empty && connection.outbox.is_empty() => {}
                Ok(()) => self.connections.queue(Work::Write, token),
                // Abort the connection after the loop, because `recipients` borrows the chat.
                Err(error) => failed.push((token, error)),
            }
        }
        self.fanout.deflater.update(Dialect::ALL.map(|dialect| ((room, dialect), formats[dialect as usize])));
        for (token, error) in failed {
            self.abort(token, error.to_string());
        }
    }

    fn write_to(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        match connection.flush() {
            Err(error) => return self.abort(token, error.to_string()),
            Ok(()) if connection.is_slow(self.config.max_outbox) => self.connections.queue(Work::CloseSlow, token),
            Ok(()) if connection.has_drained() => return self.connections.queue(Work::Remove, token),
            Ok(()) => {}
        }
        self.enforce_buffer_limit(token);
        self.connections.queue_read(token, self.config.max_outbox);
    }

    fn serve_observers(&mut self) {
        std::mem::take(&mut self.to_observe).into_iter().for_each(|token| self.attach_observer(token));
        while let Some(action) = self.observers.next_action(&|token| self.connections.queued_bytes(token)) {
            match action {
                Action::Send(client, text) => self.send_frame(client, Opcode::Text, text.as_bytes()),
                Action::Ping(token, payload) => self.ping(token, payload.as_bytes()),
                Action::Close(token, code, reason) => self.close(token, code, reason),
                Action::Attach(token) => self.attach_observer(token),
                Action::Detach(token) => drop(self.connections.get_mut(token).map(|peer| peer.observer.take())),
            }
        }
    }

    /// Attaches an observer once the connection is between two messages, so that the next bytes are a frame header.
    fn attach_observer(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let is_quiet = connection.cold.unprocessed.is_empty() && connection.is_flushed();
        let frames_sent = connection.frames_sent;
        let Some(protocol) = connection.protocol_if_open() else { return };
        if is_quiet && protocol.is_between_messages() {
            let (limits, frames_received) = (protocol.limits, protocol.frames_received());
            connection.observer = self.observers.attach(token, limits, frames_received, frames_sent);
            self.chat.room_of(token).into_iter().for_each(|room| self.restart_compression(token, room));
        } else {
            self.to_observe.push(token);
        }
    }
}
