//! [`Chat`] turns commands into [`Request`]s to the broker, and the broker's [`RoomEvent`]s into [`Effect`]s. It uses
//! no socket or clock. In the table, "general but bob" means all members of the room general except bob.
//!
//! ```text
//!   bob                 who receives what, in this order
//!   joins general       bob: welcome; general but bob: joined
//!   sends a message     general: message
//!   writes to alice     alice: private; bob: private
//!   switches to rust    general: left; bob: switched; rust but bob: joined
//!   types               rust but bob: typing
//!   sends invalid JSON  bob: error
//!   leaves              rust: left
//! ```
#![doc = include_str!("PROTOCOL.md")]

pub mod command;
pub mod dialect;
pub mod event;
pub mod identity;
pub mod names;
pub mod rate_limiter;
pub mod room;

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};
use std::{borrow::Cow, mem, net::IpAddr, rc::Rc};

use mio::Token;

use crate::broker::{Backlog, Broker, BrokerError, MemberId, PrivateMessage, Request, RoomEvent, RoomMap};
pub use crate::broker::{CredentialId, Join, Message, Resume, RoomId, Session, User, network_of};
use crate::{config::Config, maps::TokenMap, operator::OperatorState};
use command::Command;
use dialect::{Dialect, excerpt};
use event::{ActiveUsers, ClientLimits, Effect, ErrorText, Event};
pub use identity::{Claims, Identity};
use rate_limiter::{Decision, RateLimiter};
use room::Room;

pub const DEFAULT_ROOM: &str = "general";
const MAX_HELD_EVENTS: usize = 64; // maximum number of events held for a client that is still joining

#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub time: SystemTime,
    pub monotonic: Duration, // time since the server's start; unlike `time`, never goes back
}

#[derive(Debug, Clone)]
pub struct JoinRequest {
    pub dialect: Dialect,
    pub identity: Identity,
    pub address: IpAddr,
    pub join: Join,
    pub extra: Option<(&'static str, String)>, // name and value of an extra field in the `welcome` event
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinError {
    Reserved, // the username is reserved for another access token
    Broker(BrokerError),
    TooManyJoins, // the user has reached the rate limit, which joins share with messages
}

pub struct Chat {
    pub clients: TokenMap<Box<Client>>, // boxed to keep empty hash-table slots small
    pub rooms: RoomMap<Room>,
    pub broker: Box<dyn Broker>,
    effects: VecDeque<Effect>,
    limiter: RateLimiter,
    reserved: HashSet<Rc<str>>, // the `username_key` of every username that an access token is bound to
    formatted_time: Option<(SystemTime, Rc<str>)>, // time of the last message, and its RFC 3339 form
    config: Config,
    pub operator: OperatorState<Event>,
    is_cleared: bool, // after `clear`, the chat ignores the broker's events
}

pub struct Client {
    pub dialect: Dialect,
    membership: Membership,
    pub username: Rc<str>, // the username from the join; a later command may carry another username
    pub last_username: Rc<str>, // the username of the last message; before the first message, the one from the join
    user: User,
    identity: Identity,
    address: IpAddr,
    pub since: SystemTime, // when the client asked to join
}

enum Membership {
    // `held`: errors and pongs to send after `welcome`, or after the backlog if the client's dialect omits `welcome`.
    Joining { extra: Option<Box<(&'static str, String)>>, held: Vec<Event>, asks_to_resume: bool },
    Member(RoomId),
    Leaving(Box<str>), // the reason, for the log; a leaving client receives no more events
}

impl Chat {
    pub fn new(config: &Config, broker: Box<dyn Broker>) -> Chat {
        let (clients, rooms, effects) = (TokenMap::default(), RoomMap::default(), VecDeque::new());
        let (limiter, reserved) = (RateLimiter::new(config.rate_limit), HashSet::new());
        let (config, operator, is_cleared) = (config.clone(), OperatorState::default(), false);
        Chat { clients, rooms, broker, effects, limiter, reserved, formatted_time: None, config, operator, is_cleared }
    }

    pub fn set_reserved_usernames(&mut self, usernames: impl Iterator<Item = Rc<str>>) {
        self.reserved = usernames.map(|username| names::username_key(&username)).collect();
    }

    /// Checks a join before the handshake succeeds. The broker may still reject the join later.
    pub fn check_join(&self, request: &JoinRequest, now: Now) -> Result<(), JoinError> {
        if self.is_reserved(&request.join.username, &request.identity) {
            return Err(JoinError::Reserved);
        }
        self.broker.check_join(&request.join).map_err(JoinError::Broker)?;
        let may_join = self.limiter.has_token(&request.join.user, now.monotonic);
        if may_join { Ok(()) } else { Err(JoinError::TooManyJoins) }
    }

    pub fn join(&mut self, client: Token, request: JoinRequest, now: Now) {
        let JoinRequest { dialect, identity, address, mut join, extra } = request;
        if self.config.is_local() {
            join.user = User::Connection(client); // every connection is a new user, so a limit per user has no effect
        } else {
            self.limiter.take_token(&join.user, now.monotonic);
        }
        let (extra, held, asks_to_resume) = (extra.map(Box::new), Vec::new(), join.resume.is_some());
        let membership = Membership::Joining { extra, held, asks_to_resume };
        let (username, last_username, user) = (Rc::clone(&join.username), Rc::clone(&join.username), join.user.clone());
        let record = Client { dialect, membership, username, last_username, user, identity, address, since: now.time };
        let before = self.clients.insert(client, Box::new(record));
        debug_assert!(before.is_none(), "a client joins once");
        self.broker.submit(client, Request::Join(join), now.monotonic);
    }

    /// Makes the client leave, unless the client is unknown or already leaving. `reason` is for the log.
    pub fn leave(&mut self, client: Token, reason: &str, now: Now) {
        let Some(record) = self.active_client(client) else { return };
        if let Membership::Member(room) = mem::replace(&mut record.membership, Membership::Leaving(reason.into())) {
            self.room_mut(room).remove_recipient(client);
        }
        self.broker.submit(client, Request::Leave, now.monotonic);
    }

    pub fn clear(&mut self) {
        self.is_cleared = true;
        self.clients.clear();
        self.rooms.clear();
        self.effects.clear();
    }

    /// Publishes the operator's validated message. The reply will be in `self.operator.announcements[&operator]`.
    pub fn announce(&mut self, operator: Token, room: Rc<str>, message: Message, now: Now) {
        self.operator.announcements.insert(operator, None);
        self.broker.submit(operator, Request::Announce { room, message }, now.monotonic);
    }

    pub fn is_banned(&self, address: IpAddr, username: Option<&Rc<str>>, time: SystemTime) -> bool {
        self.operator.bans.contains(network_of(address), || username.map(names::username_key), time)
    }

    pub fn receive(&mut self, client: Token, text: &str, now: Now) {
        let Some(record) = self.active_client(client) else { return };
        let (user, (parsed, nonce)) = (record.user.clone(), record.dialect.parse(text));
        // Invalid commands count towards the rate limit too: an invalid command takes as long to parse as a valid one.
        let decision = match parsed {
            Ok(Command::Typing { .. }) if !self.limiter.take_typing_token(&user, now.monotonic) => return,
            Ok(Command::Typing { .. }) => Decision::Pass,
            _ => self.limiter.check_message(&user, now.monotonic),
        };
        let result = match decision {
            Decision::Pass => parsed.and_then(|command| self.submit(client, command, nonce.clone(), now)),
            Decision::SlowDown => Err("Slow down".into()),
            Decision::Flood => return self.close(client, event::FLOODING),
        };
        if let Err(message) = result {
            self.send(client, Event::Error { message, nonce });
        }
    }

    /// Returns the next effect. The server must apply all effects after each `join`, `leave` and `receive`.
    pub fn next_effect(&mut self) -> Option<Effect> {
        // The next event may change a room's recipients, so return all effects of the previous event first.
        while self.effects.is_empty() {
            let event = self.broker.next_event().filter(|_| !self.is_cleared)?;
            self.apply(event);
        }
        self.effects.pop_front()
    }

    pub fn room_of(&self, client: Token) -> Option<RoomId> {
        if let Membership::Member(room) = self.clients.get(&client)?.membership { Some(room) } else { None }
    }

    pub fn dialect_of(&self, client: Token) -> Option<Dialect> {
        self.clients.get(&client).map(|client| client.dialect)
    }

    pub fn recipients(&self, room: RoomId) -> impl Iterator<Item = (Token, Dialect)> {
        let recipients = self.rooms.get(&room).into_iter().flat_map(|room| &room.recipients);
        recipients.map(|(client, dialect)| (*client, *dialect))
    }

    pub fn dialects(&self, room: RoomId) -> impl Iterator<Item = Dialect> + use<'_> {
        self.rooms.get(&room).into_iter().flat_map(Room::dialects)
    }

    fn submit(&mut self, client: Token, command: Command, nonce: Option<Rc<str>>, now: Now) -> Result<(), ErrorText> {
        let request = match command {
            Command::Message { username, to, text } => {
                let text = text.trim();
                let username = self.resolve_username(client, username, now)?;
                let private = to.as_deref().map(|to| (to, text)).or_else(|| command::split_private_message(text));
                let (to, text) = private.map_or((None, text), |(to, text)| (Some(to.trim()), text));
                if text.is_empty() {
                    return if to.is_some() || nonce.is_some() { Err("Nothing to send".into()) } else { Ok(()) };
                }
                if text.chars().count() > self.config.max_text {
                    return Err("Message too long".into());
                }
                self.active_client(client).into_iter().for_each(|record| record.last_username = Rc::clone(&username));
                let (text, time) = (text.into(), self.format_time(now.time));
                if let Some(to) = to {
                    let name = names::parse_username(to).ok().map(Rc::from);
                    // Reject a default username as the recipient: every client that shares it would get the message.
                    let name = name.filter(|name| !names::is_default_username(&names::username_key(name)));
                    let to = name.ok_or_else(|| format!("No such user: {}", excerpt(to)))?;
                    Request::Private(PrivateMessage { from: username, to, text, time, nonce })
                } else {
                    Request::Publish(Message { username, text, id: 0, time, nonce })
                }
            }
            Command::SwitchRoom { room } => {
                let is_allowed = |room: &Cow<'_, str>| self.clients[&client].identity.allows_room(room);
                let room = Some(names::parse_room_name(&room)?).filter(is_allowed).ok_or("Not allowed in this room")?;
                Request::Switch { room: room.into() }
            }
            Command::History { before, limit } => Request::History { before, limit },
            Command::Typing { username } => Request::Typing { username: self.resolve_username(client, username, now)? },
            Command::Ping => {
                self.send(client, Event::Pong {});
                return Ok(());
            }
            Command::Token(_) if self.config.features.jwt_key.is_empty() => return Err("Unknown event: token".into()),
            Command::Token(token) => {
                return token.map(|new| self.effects.push_back(Effect::Renew(client, new.into(), nonce)));
            }
        };
        self.broker.submit(client, request, now.monotonic);
        Ok(())
    }

    /// Returns the client's identity, and the name of its room (`None` until the broker has processed the join).
    pub fn identity_mut(&mut self, client: Token) -> Option<(&mut Identity, Option<Rc<str>>)> {
        let room = self.room_of(client).map(|room| Rc::clone(&self.rooms[&room].name));
        self.active_client(client).map(|record| (&mut record.identity, room))
    }

    fn resolve_username(&self, client: Token, given: Option<Cow<'_, str>>, now: Now) -> Result<Rc<str>, ErrorText> {
        let Client { identity, username: default, address, .. } = &*self.clients[&client];
        let given = given.as_deref().map(names::parse_username).transpose()?;
        let username = given.map_or_else(|| Rc::clone(default), Rc::from);
        if identity.username.as_ref().is_some_and(|bound| *bound != username) {
            return Err("This token may be used with another username only".into());
        }
        // Check the username of every command: the username may differ from the one in the join, and a reload of the
        // tokens or a ban may have made the username invalid.
        if self.is_reserved(&username, identity) {
            return Err(format!("The username {username} is reserved for another token").into());
        }
        if self.is_banned(*address, Some(&username), now.time) {
            return Err(format!("The username {username} is banned").into());
        }
        Ok(username)
    }

    fn is_reserved(&self, username: &Rc<str>, identity: &Identity) -> bool {
        let is_own = || identity.username.as_ref() == Some(username);
        !self.reserved.is_empty() && !is_own() && self.reserved.contains(&names::username_key(username))
    }

    fn format_time(&mut self, time: SystemTime) -> Rc<str> {
        let formatted = self.formatted_time.take().filter(|(last, _)| *last == time);
        let format = || (time, humantime::format_rfc3339_millis(time).to_string().into());
        Rc::clone(&self.formatted_time.insert(formatted.unwrap_or_else(format)).1)
    }

    fn apply(&mut self, event: RoomEvent) {
        match event {
            RoomEvent::Opened { room, name, members } => _ = self.rooms.insert(room, Room::new(name, members)),
            RoomEvent::Closed { room } => _ = self.rooms.remove(&room),
            RoomEvent::Joined { client, session, from, to, backlog } => {
                self.add_member(client, session, from, to, backlog)
            }
            RoomEvent::RemoteJoined { room, member, username } => {
                self.room_mut(room).add_member(member, Rc::clone(&username), None);
                self.broadcast(room, None, Event::Joined { username, active: self.active_users(room) });
            }
            RoomEvent::Left { room, member } => {
                if let MemberId::Local(client) = member {
                    debug_assert!(self.clients.contains_key(&client), "a client leaves once");
                    let Some(record) = self.remove_client(client) else { return };
                    let mut reason = event::REPLACED;
                    match &record.membership {
                        Membership::Leaving(given) => reason = given,
                        _ => self.close(client, event::REPLACED),
                    }
                    let name = quote_for_log(&self.rooms[&room].name);
                    log::info!("LEAVE room={name} {} reason={reason:?}", record.log_fields(client, &record.username));
                }
                self.remove_member(room, member);
            }
            RoomEvent::Published { room, client, message } => {
                self.count_message(room, client, &message);
                self.broadcast(room, None, Event::Message(message));
            }
            RoomEvent::History { client, page } => self.send(client, Event::History(page)),
            RoomEvent::Duplicate { client, message } => {
                self.operator.counters.duplicates += 1;
                self.send(client, Event::Message(message));
            }
            RoomEvent::Private { recipients, message } => {
                // Never log the text of a private message.
                log::debug!("PRIVATE user={} to={}", quote_for_log(&message.from), quote_for_log(&message.to));
                self.operator.counters.deliveries += recipients.len() as u64;
                recipients.iter().for_each(|client| self.send(*client, Event::Private(Rc::clone(&message))));
            }
            RoomEvent::Typing { room, client, username } => self.broadcast(room, client, Event::Typing { username }),
            RoomEvent::JoinRejected { client, error } => self.reject_join(client, &error),
            RoomEvent::Rejected { client, error, nonce } => {
                self.send(client, Event::Error { message: event::describe(error), nonce });
            }
            RoomEvent::Resynchronized { room, members, backlog } => self.resynchronize(room, members, backlog),
            RoomEvent::FateUnknown { client } if self.clients.contains_key(&client) => {
                self.effects.push_back(Effect::Close { client, reason: event::UNCONFIRMED, may_retry: true });
            }
            RoomEvent::FateUnknown { client } => {
                self.send(client, Event::Error { message: event::UNCONFIRMED.into(), nonce: None });
            }
            RoomEvent::StorageFailed { reason } => self.effects.push_back(Effect::StorageFailed { reason }),
        }
    }

    /// Counts and logs a published message. If the operator published the message, sends it back as the reply.
    fn count_message(&mut self, room: RoomId, client: Option<Token>, message: &Rc<Message>) {
        let (Room { name, recipients, .. }, counters) = (&self.rooms[&room], &mut self.operator.counters);
        counters.deliveries += recipients.len() as u64;
        let Some((client, record)) = client.map(|client| (client, self.clients.get(&client))) else { return };
        let Some(record) = record else { return self.send(client, Event::Message(Rc::clone(message))) };
        counters.messages[record.dialect as usize] += 1;
        if log::log_enabled!(log::Level::Debug) {
            let (name, fields) = (quote_for_log(name), record.log_fields(client, &message.username));
            log::debug!("MSG room={name} {fields} {:?}", excerpt(&message.text));
        }
    }

    /// Handles `RoomEvent::Joined`. Broadcasts `joined` even if the client is leaving, to match the later `left`.
    fn add_member(&mut self, client: Token, session: Session, from: Option<RoomId>, to: RoomId, backlog: Backlog) {
        let Config { max_listed, max_text, max_message, rate_limit, .. } = self.config;
        let record = &self.clients[&client];
        let (dialect, username) = (record.dialect, Rc::clone(&record.username));
        // `false` if the client has renewed its JWT since it requested the room, and the new JWT excludes the room.
        let is_allowed = record.identity.allows_room(&self.rooms[&to].name);
        let before = self.active_client(client).map(|this| mem::replace(&mut this.membership, Membership::Member(to)));
        let new = self.room_mut(to);
        let (room, member_count) = (Rc::clone(&new.name), new.usernames.len());
        let members = new.usernames.values().take(max_listed).cloned().collect();
        new.add_member(MemberId::Local(client), Rc::clone(&username), before.as_ref().map(|_| dialect));
        self.effects.extend(before.as_ref().map(|_| Effect::SetRoom { client, from, to }));
        if let Some(from) = from {
            let (old, record) = (quote_for_log(&self.rooms[&from].name), &self.clients[&client]);
            log::info!("SWITCH from={old} to={} {}", quote_for_log(&room), record.log_fields(client, &username));
            self.remove_member(from, MemberId::Local(client));
        } else {
            log::info!("JOIN room={} {}", quote_for_log(&room), self.clients[&client].log_fields(client, &username));
        }
        if let Some(Membership::Joining { extra, held, asks_to_resume }) = before {
            self.operator.counters.resumes[usize::from(backlog.resumed)] += u64::from(asks_to_resume);
            if dialect == Dialect::Events {
                let (message, username) = (format!("Welcome to #{room}, {username}!"), Rc::clone(&username));
                let extra = extra.into_iter().map(|field| *field).collect();
                let session = session.to_hex();
                let limits = ClientLimits { max_text, max_message, rate_limit };
                let welcome =
                    Event::Welcome { message, members, room, username, backlog, session, member_count, limits, extra };
                self.send(client, welcome);
            } else {
                self.send(client, Event::Joined { username: Rc::clone(&username), active: self.active_users(to) });
                backlog.messages.into_iter().for_each(|message| self.send(client, Event::Message(message)));
            }
            held.into_iter().for_each(|event| self.send(client, event));
        } else {
            let Backlog { epoch, last_id, messages: history, .. } = backlog;
            self.send(client, Event::Switched { room, members, member_count, epoch, last_id, history });
        }
        self.broadcast(to, Some(client), Event::Joined { username, active: self.active_users(to) });
        if !is_allowed {
            self.close(client, "Not allowed in this room");
        }
    }

    fn reject_join(&mut self, client: Token, error: &BrokerError) {
        let (reason, may_retry) = match error {
            BrokerError::TooManyRooms => (event::TOO_MANY_ROOMS, true),
            BrokerError::Unavailable => (event::UNAVAILABLE, true),
            _ => (event::NAME_IN_USE, false),
        };
        if self.remove_client(client).is_some_and(|old| matches!(old.membership, Membership::Joining { .. })) {
            self.effects.push_back(Effect::Close { client, reason, may_retry });
        }
    }

    /// Replaces a room's list of remote members (on other instances) and sends the new state to the local members.
    fn resynchronize(&mut self, id: RoomId, members: Vec<(MemberId, Rc<str>)>, backlog: Backlog) {
        let room = self.room_mut(id);
        room.usernames.retain(|member, _| matches!(member, MemberId::Local(_)));
        room.usernames.extend(members);
        for (client, dialect) in self.recipients(id).collect::<Vec<_>>() {
            if dialect == Dialect::Events {
                let Room { name: room, usernames, .. } = &self.rooms[&id];
                let others = usernames.iter().filter(|(member, _)| **member != MemberId::Local(client));
                let members = others.map(|(_, username)| Rc::clone(username)).take(self.config.max_listed).collect();
                let (room, member_count) = (Rc::clone(room), usernames.len() - 1);
                let Backlog { epoch, last_id, messages: history, .. } = backlog.clone();
                self.send(client, Event::Switched { room, members, member_count, epoch, last_id, history });
            } else {
                backlog.messages.iter().for_each(|message| self.send(client, Event::Message(Rc::clone(message))));
            }
        }
    }

    fn remove_member(&mut self, room: RoomId, member: MemberId) {
        let username = self.room_mut(room).remove_member(member);
        if self.room_mut(room).is_closed() {
            self.rooms.remove(&room);
        } else {
            self.broadcast(room, None, Event::Left { username, active: self.active_users(room) });
        }
    }

    pub fn send(&mut self, client: Token, event: Event) {
        match self.clients.get_mut(&client).map(|record| &mut record.membership) {
            Some(Membership::Member(_)) => self.effects.push_back(Effect::Send { client, event }),
            Some(Membership::Joining { held, .. }) if held.len() < MAX_HELD_EVENTS => held.push(event),
            Some(Membership::Joining { .. }) => self.close(client, event::FLOODING),
            Some(Membership::Leaving(_)) => {}
            None => _ = self.operator.announcements.get_mut(&client).map(|reply| *reply = Some(event)),
        }
    }

    fn broadcast(&mut self, room: RoomId, except: Option<Token>, event: Event) {
        if self.recipients(room).any(|(member, _)| Some(member) != except) {
            self.effects.push_back(Effect::Broadcast { room, except, event });
        }
    }

    fn remove_client(&mut self, client: Token) -> Option<Box<Client>> {
        self.limiter.forget(&User::Connection(client));
        self.clients.remove(&client)
    }

    fn close(&mut self, client: Token, reason: &'static str) {
        self.effects.push_back(Effect::Close { client, reason, may_retry: false });
    }

    /// Lists a room's users, or only counts them in a large room. Does neither if no member uses the `presence`
    /// dialect, the only dialect that sends the result.
    fn active_users(&self, room: RoomId) -> ActiveUsers {
        let room = &self.rooms[&room];
        let (count, max) = (room.usernames.len(), self.config.max_presence);
        match room.dialects().any(|dialect| dialect == Dialect::Presence) {
            true if count > max => ActiveUsers { active_users: Vec::new(), active_count: Some(count) },
            true => ActiveUsers { active_users: room.usernames.values().cloned().collect(), active_count: None },
            false => ActiveUsers::default(),
        }
    }

    fn room_mut(&mut self, room: RoomId) -> &mut Room {
        let Some(room) = self.rooms.get_mut(&room) else { unreachable!("`Opened` precedes all events of a room") };
        room
    }

    fn active_client(&mut self, client: Token) -> Option<&mut Client> {
        let record = self.clients.get_mut(&client)?;
        (!matches!(record.membership, Membership::Leaving(_))).then_some(record)
    }
}

impl Client {
    fn log_fields(&self, client: Token, username: &str) -> String {
        let token = self.identity.token_line.map(|line| format!(" token_line={line}")).unwrap_or_default();
        format!("user={} connection={} address={}{token}", quote_for_log(username), client.0, self.address)
    }
}

/// Quotes and escapes a name with special characters, so that no name can forge a log line.
pub fn quote_for_log(name: &str) -> Cow<'_, str> {
    let is_plain = name.chars().all(|character| character.is_alphanumeric() || matches!(character, '-' | '_' | '.'));
    if is_plain { name.into() } else { format!("{name:?}").into() }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use clap::Parser;

    use super::*;

    #[test]
    fn picture_matches_the_code() {
        let config = Config::parse_from(["wirechat"]);
        let broker = crate::server::new_memory_broker(&config, Box::new(|bytes| bytes.fill(7)));
        let mut chat = Chat::new(&config, Box::new(broker));
        let now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };
        let (alice, bob, carol) = (Token(1), Token(2), Token(3));
        let (identity, address) = (Identity::default(), Ipv4Addr::LOCALHOST.into());
        let join = |username: &str, room: &str| JoinRequest {
            dialect: Dialect::Events,
            identity: identity.clone(),
            address,
            join: Join::new(username, room, identity.user(address)),
            extra: None,
        };
        chat.join(alice, join("alice", "general"), now);
        chat.join(carol, join("carol", "rust"), now);
        while chat.next_effect().is_some() {}
        let general = chat.room_of(alice);
        let row = |action: &str, chat: &mut Chat| {
            let room = |id| if Some(id) == general { "general" } else { "rust" };
            let effects = std::iter::from_fn(|| chat.next_effect()).filter_map(|effect| {
                let json = |event| {
                    let mut json = Vec::new();
                    Dialect::Events.write(event, &mut json);
                    String::from_utf8(json).unwrap().split('"').nth(3).unwrap_or_default().to_owned()
                };
                match &effect {
                    Effect::Send { client, event } => {
                        Some(format!("{}: {}", if *client == alice { "alice" } else { "bob" }, json(event)))
                    }
                    Effect::Broadcast { room: id, except, event } => {
                        Some(format!("{}{}: {}", room(*id), except.map_or("", |_| " but bob"), json(event)))
                    }
                    Effect::SetRoom { .. } | Effect::Close { .. } => None,
                    Effect::Renew(..) | Effect::StorageFailed { .. } => None,
                }
            });
            format!("\n  {action:20}{}", effects.collect::<Vec<_>>().join("; "))
        };
        let mut picture = "  bob                 who receives what, in this order".to_owned();
        chat.join(bob, join("bob", "general"), now);
        picture += &row("joins general", &mut chat);
        for (action, text) in [
            ("sends a message", r#"{"event":"message","data":{"text":"hi"}}"#),
            ("writes to alice", r#"{"event":"message","data":{"text":"/msg alice hi"}}"#),
            ("switches to rust", r#"{"event":"switch_room","data":{"room":"rust"}}"#),
            ("types", r#"{"event":"typing"}"#),
            ("sends invalid JSON", "hi"),
        ] {
            chat.receive(bob, text, now);
            picture += &row(action, &mut chat);
        }
        chat.leave(bob, "", now);
        picture += &row("leaves", &mut chat);
        crate::pictures::assert_in_module_doc(include_str!("mod.rs"), &picture);
    }

    #[test]
    fn names_in_the_log_cannot_forge_a_line() {
        assert_eq!(quote_for_log("alice"), "alice");
        assert_eq!(quote_for_log("a b\n\u{1b}[2J"), r#""a b\n\u{1b}[2J""#);
    }
}
