//! From a socket to what its bytes mean: a request is answered, frames go through the protocol, messages to the chat.
//!
//! This is the middle of the server: it decides nothing of RFC 6455 (that is `ws`), of HTTP (`routes`) or of rooms
//! (`chat`), and calls each in turn.
//!
//! The subtle thing: one read may hold a request, three messages and a Close. Each event is acted upon, and its replies
//! queued, before the next is looked for, so that everything leaves in the order of what caused it.

use mio::Token;

use super::Server;
use super::answer;
use super::inspection;
use super::phase::{Ending, Endpoint, Open, Phase};
use super::routes::{self, Answer, Entrance};
use crate::chat::dialect::Dialect;
use crate::chat::{Admission, NAME_IN_USE, Newcomer, REPLACED};
use crate::ws::close::CloseCode;
use crate::ws::frame::{self, Opcode};
use crate::ws::message::Message;
use crate::ws::protocol::{Event, Framing, Protocol, State};
use crate::ws::request::{Rejection, Request};

/// Who holds this many times as much as another is to blame for the lack of room.
const HOG: usize = 4;

impl Server {
    /// Takes what was read from a connection.
    pub(super) fn receive(&mut self, token: Token, input: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match &mut connection.phase {
            Phase::Draining(_) => {}
            Phase::Open(_) => self.receive_frames(token, input),
            Phase::Handshake(head) => match head.receive(input, self.config.max_head) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    self.answer(token);
                    // §4.1: what comes with the head is the first of the protocol's bytes.
                    self.receive_frames(token, &mut input[end..]);
                }
                Err(rejection) => self.refuse(token, &rejection, false),
            },
        }
    }

    /// Answers a request whose head is complete.
    fn answer(&mut self, token: Token) {
        let Some(connection) = self.connections.get(&token) else { return };
        let Phase::Handshake(head) = &connection.phase else { return };
        let peer = connection.peer.ip();
        let is_full = self.connections.len() > self.max_connections || self.addresses.is_over_share(peer);
        let to_head = head.head().starts_with(b"HEAD ");
        let request = Request::parse(head.head(), self.config.max_headers);
        match request.and_then(|request| routes::answer(&request, &self.access, is_full, self.time)) {
            Ok(Answer::Plain(bytes)) => self.say_last(token, bytes),
            Ok(Answer::Upgraded(head, Entrance::Inspect(ticket))) => match self.find_by_ticket(&ticket) {
                Ok(_) if is_full => self.refuse(token, &routes::full("The server is full"), to_head),
                Ok(inspected) => {
                    self.upgrade(token, head, Endpoint::Inspect(inspected), None);
                    self.begin_inspection(token, inspected);
                }
                Err(rejection) => self.refuse(token, &rejection, to_head),
            },
            Ok(Answer::Upgraded(_, Entrance::Chat(newcomer))) if !self.chat.has_room_for(&newcomer.room) => {
                self.refuse(token, &routes::full("There are too many rooms"), to_head);
            }
            Ok(Answer::Upgraded(head, Entrance::Chat(newcomer))) => {
                self.upgrade(token, head, Endpoint::Chat, Some(newcomer));
            }
            Ok(Answer::Upgraded(head, Entrance::Echo)) => self.upgrade(token, head, Endpoint::Echo, None),
            Err(rejection) if rejection.status == 401 && self.addresses.is_guessing(peer, self.steady()) => {
                self.refuse(token, &routes::too_many_wrong_tokens(), to_head);
            }
            Err(rejection) => self.refuse(token, &rejection, to_head),
        }
    }

    /// Refuses a request, with an answer that says why. `to_head`: to a `HEAD`.
    pub(super) fn refuse(&mut self, token: Token, rejection: &Rejection, to_head: bool) {
        if let Some(connection) = self.connections.get(&token) {
            log::info!("REFUSED {} {} {}", connection.peer, rejection.status, rejection.body);
        }
        self.say_last(token, answer::refusal(rejection, to_head, self.time));
    }

    /// Sends a plain answer, behind which the connection ends.
    fn say_last(&mut self, token: Token, bytes: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.outbox.push_answer(bytes);
        connection.phase = Phase::Draining(Ending::Linger);
        self.begin_closing(token);
    }

    fn upgrade(&mut self, token: Token, answer: Vec<u8>, endpoint: Endpoint, mut newcomer: Option<Newcomer>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if let Some(newcomer) = newcomer.as_mut().filter(|newcomer| newcomer.dialect == Dialect::Events)
            && let Phase::Handshake(head) = &connection.phase
            && let Some(secret) = self.watchers.inspection.secret()
        {
            self.watchers.inspection.keep(token, head.head(), &answer, self.time);
            newcomer.ticket = Some(inspection::ticket(token, &secret));
            connection.secret = Some(secret);
        }
        connection.outbox.push_answer(answer);
        let limits = endpoint.limits(&self.config);
        if let Some(watch) = &mut connection.watch {
            let user = newcomer.as_ref().map(|newcomer| &newcomer.username);
            if let Endpoint::Inspect(_) = endpoint {
                watch.set_private(); // who looks is not looked at
            }
            watch.upgraded(limits, user, connection.secret.is_some());
        }
        connection.phase = Phase::Open(Open { protocol: Protocol::new(limits), endpoint });
        self.queue_write(token);
        // As a rule the look at the deadline of its handshake comes first, and sets the next one.
        if self.config.ping_interval < self.config.handshake_timeout {
            self.set_deadline(token, self.now + self.config.ping_interval);
        }
        if let Some(newcomer) = newcomer {
            self.join(token, newcomer);
        }
    }

    /// Lets a newcomer into the chat, or closes it; whoever it replaces leaves first, as anybody leaves.
    fn join(&mut self, token: Token, newcomer: Newcomer) {
        match self.chat.admit(&newcomer) {
            Admission::Free => {}
            Admission::NameInUse => {
                return self.close(token, CloseCode::POLICY_VIOLATION, NAME_IN_USE);
            }
            Admission::Replaces(older) => {
                self.close(older, CloseCode::POLICY_VIOLATION, REPLACED);
                self.leave(older, REPLACED); // if it was ended in this turn, but has not been removed
            }
        }
        let deliveries = self.chat.join(token, newcomer, self.chat_now());
        if let Some(room) = self.chat.room_of(token) {
            self.skip(token, room);
        }
        self.deliver(deliveries);
    }

    fn receive_frames(&mut self, token: Token, mut input: &mut [u8]) {
        let mut has_ended = false;
        while !input.is_empty() {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            if connection.is_congested(self.config.max_outbox) {
                connection.unprocessed = input.to_vec();
                break;
            }
            let was_open = connection.is_open();
            let Phase::Open(Open { protocol, endpoint }) = &mut connection.phase else { break };
            let Some(event) = protocol.receive(&mut input) else {
                // Framing may be lost behind our own Close, which is no event.
                has_ended = matches!(protocol.state(), State::Closing(Framing::Lost) | State::Closed);
                break;
            };
            match (event, *endpoint) {
                (Event::Message(Message::Text(text)), Endpoint::Chat) => {
                    let deliveries = self.chat.receive(token, &text, self.chat_now());
                    self.deliver(deliveries);
                }
                (Event::Message(Message::Text(text)), Endpoint::Inspect(inspected)) => {
                    self.receive_command(token, inspected, &text);
                }
                (Event::Message(message), _) => {
                    let (opcode, payload) = match &message {
                        Message::Text(text) => (Opcode::Text, text.as_bytes()),
                        Message::Binary(bytes) => (Opcode::Binary, &bytes[..]),
                    };
                    connection.outbox.push_own(|out| frame::append(out, opcode, payload));
                    self.queue_write(token);
                }
                (Event::Ping(_), _) => self.follow_protocol(token, ""),
                (Event::Pong(_), _) => {}
                (Event::Close(code, reason), _) => {
                    let code = code.map_or("no code".into(), |code| code.get().to_string());
                    let reason = ["closed by the client:", &code, &reason].join(" ");
                    // An answer to our Close is not why it is closed.
                    self.follow_protocol(token, if was_open { reason.trim_end() } else { "" });
                }
                (Event::Failed(error), _) => {
                    self.follow_protocol(token, &format!("{} {error}", error.code().get()));
                }
            }
        }
        if has_ended {
            self.follow_protocol(token, "");
        }
        self.count_buffered(token);
    }

    /// Queues what the protocol replies. If that was a Close, the client leaves the chat, for this reason.
    fn follow_protocol(&mut self, token: Token, reason: &str) {
        self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.follow_protocol();
        let (is_open, peer) = (connection.is_open(), connection.peer);
        if is_open {
            self.queue_write(token);
        } else {
            if self.chat.room_of(token).is_none() && !reason.is_empty() {
                log::info!("CLOSED {peer} reason={reason:?}"); // who is in the chat has a line of its own
            }
            self.leave(token, reason);
            self.begin_closing(token);
        }
    }

    /// Closes a connection from this side (§7.1.2), if that has not begun.
    pub(super) fn close(&mut self, token: Token, code: CloseCode, reason: &str) {
        let Some(connection) = self.connections.get_mut(&token).filter(|connection| connection.is_open()) else {
            return;
        };
        connection.close(code, reason);
        self.follow_protocol(token, reason);
    }

    /// Sends a ping.
    pub(super) fn ping(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token).filter(|connection| connection.is_open()) else {
            return; // and its deadline stays where it is
        };
        if let Phase::Open(open) = &mut connection.phase {
            open.protocol.ping();
        }
        self.follow_protocol(token, "");
    }

    /// The peer has ended its side of the stream. What it may still want to read goes out.
    pub(super) fn end_of_input(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.phase {
            Phase::Handshake(_) => self.end(token, "hung up before a request was complete".into()),
            Phase::Draining(_) => self.queue_write(token),
            Phase::Open(_) => {
                self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
                self.leave(token, "hung up without a close");
                let Some(connection) = self.connections.get_mut(&token) else { return };
                connection.phase = Phase::Draining(Ending::Close);
                self.begin_closing(token);
            }
        }
    }

    /// Counts what a connection makes the server hold. If all together are over the bound, this one is closed; unless
    /// another holds many times as much, for then this one is but the last straw.
    pub(super) fn count_buffered(&mut self, token: Token) {
        let before = self.buffered;
        self.recount_buffered(token);
        if self.buffered <= before || self.buffered <= self.config.max_buffered {
            return;
        }
        let held = self.connections.get(&token).map_or(0, |connection| connection.buffered);
        let largest = self.connections.iter().max_by_key(|(_, connection)| connection.buffered);
        let hog = largest.filter(|(_, connection)| connection.buffered / HOG > held);
        let token = hog.map_or(token, |(hog, _)| *hog);
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.is_open() {
            return self.end(token, "the server's buffers are full".into());
        }
        // An answer to the handshake may be waiting still, and must not be dropped. That a socket has failed shows later.
        let _ = connection.flush();
        connection.outbox.drop_unsent();
        connection.unprocessed = Vec::new();
        self.close(token, CloseCode::TRY_AGAIN_LATER, "the server's buffers are full");
        self.recount_buffered(token);
    }

    fn recount_buffered(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let held = connection.buffered_now();
        self.buffered = self.buffered - connection.buffered + held;
        connection.buffered = held;
    }
}
