//! The chat: commands in, effects out. [`Chat`] turns a client's text into a [`Request`] to the broker, updates its
//! tables for each [`RoomEvent`] from the broker, and queues [`Effect`]s for the server. The chat knows clients, rooms,
//! names and JSON, but not frames, sockets or clocks: a client is a `mio::Token`, and the time is a parameter.
//!
//! ```text
//!   bob                 who receives what, in this order
//!   joins general       bob: welcome; general but bob: joined
//!   sends a message     general: message
//!   writes to alice     alice: private; bob: private
//!   switches to rust    general: left; bob: switched; rust but bob: joined
//!   types               rust but bob: typing
//!   sends no JSON       bob: error
//!   leaves              rust: left
//! ```
#![doc = "\n"]
#![doc = include_str!("PROTOCOL.md")]

pub mod command;
pub mod dialect;
pub mod event;
pub mod names;
pub mod rate_limiter;
pub mod room;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use mio::Token;

pub use crate::broker::Resume;
use crate::broker::{Backlog, Broker, BrokerError, Join, MemberId, Message, PrivateMessage};
use crate::broker::{Request, RoomEvent, RoomId, RoomMap};
use crate::config::Config;
use crate::token_map::TokenMap;
use command::Command;
use dialect::{Dialect, excerpt};
use event::{CloseReason, Effect, ErrorText, Event};
use rate_limiter::{Decision, RateLimiter};
use room::Room;

pub const DEFAULT_ROOM: &str = "general";
const TYPING_INTERVAL: Duration = Duration::from_secs(1);
const MAX_HELD: usize = 64; // maximum number of errors and pongs held until a client's welcome

#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub time: SystemTime,
    pub monotonic: Duration, // time since the server's start; unlike `time`, never goes back
}

#[derive(Debug, Clone)]
pub struct JoinRequest {
    pub dialect: Dialect,
    pub username: Rc<str>,
    pub room: Rc<str>,
    pub identity: Identity,
    pub client_id: Option<Rc<str>>,
    pub resume: Option<Resume>,
    pub extra: Option<(&'static str, String)>, // name and value of an extra field in the welcome
}

/// What an access token proves about a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub credential: Option<u32>,   // index of the client's token; `None`: no token is required
    pub username: Option<Rc<str>>, // the only username that the token allows; `None`: any username
}

pub struct Chat {
    clients: TokenMap<Box<Client>>, // boxed to keep empty hash-table slots small
    rooms: RoomMap<Room>,
    broker: Box<dyn Broker>,
    effects: VecDeque<Effect>,
    formatted_time: Option<(SystemTime, Rc<str>)>, // cache: all messages of an event loop turn have the same time
    config: Config,
}

struct Client {
    dialect: Dialect,
    stage: Stage,
    username: Rc<str>, // the username given on join, shown in `joined`, `left` and `members`
    identity: Identity,
    rate_limiter: RateLimiter,
    typed_at: Option<Duration>, // time of the last accepted `typing` command
}

/// In any stage, the broker's `Left` or `JoinRejected` removes the client.
enum Stage {
    // `held`: errors and pongs to send after the welcome, which must be the client's first event.
    Joining { extra: Option<Box<(&'static str, String)>>, held: Vec<Event> },
    Member(RoomId),
    Leaving(Box<str>), // the reason, for the log; a leaving client receives no more events
}

impl Chat {
    pub fn new(config: &Config, broker: Box<dyn Broker>) -> Chat {
        let (clients, rooms, effects) = (TokenMap::default(), RoomMap::default(), VecDeque::new());
        Chat { clients, rooms, broker, effects, formatted_time: None, config: config.clone() }
    }

    /// Lets the server reject the handshake. The broker's own check comes too late for that.
    pub fn has_place_for(&self, room: &str) -> bool {
        self.rooms.len() < self.config.max_rooms || self.rooms.values().any(|open| *open.name == *room)
    }

    pub fn join(&mut self, client: Token, request: JoinRequest, now: Now) {
        let JoinRequest { dialect, username, room, identity, client_id, resume, extra } = request;
        let join = Join { username: Rc::clone(&username), room, client_id, credential: identity.credential, resume };
        let stage = Stage::Joining { extra: extra.map(Box::new), held: Vec::new() };
        let rate_limiter = RateLimiter::new(self.config.rate_limit, now.monotonic);
        let record = Client { dialect, stage, username, identity, rate_limiter, typed_at: None };
        let before = self.clients.insert(client, Box::new(record));
        debug_assert!(before.is_none(), "a client joins once");
        self.broker.submit(client, Request::Join(join), now.monotonic);
    }

    /// A no-op if the client is unknown or already leaving. `reason` is for the log.
    pub fn leave(&mut self, client: Token, reason: &str, now: Now) {
        let Some(record) = self.active_client(client) else { return };
        if let Stage::Member(room) = std::mem::replace(&mut record.stage, Stage::Leaving(reason.into())) {
            self.room_mut(room).remove_recipient(client);
        }
        self.broker.submit(client, Request::Leave, now.monotonic);
    }

    /// Sends no events, because the server is stopping.
    pub fn disband(&mut self) {
        self.clients.clear();
        self.rooms.clear();
        self.effects.clear();
    }

    pub fn receive(&mut self, client: Token, text: &str, now: Now) {
        let rate = self.config.rate_limit;
        let Some(record) = self.active_client(client) else { return };
        let (parsed, nonce) = record.dialect.parse(text);
        // The rate limit also counts malformed texts, because parsing them takes as much time as parsing commands.
        let is_typing = matches!(parsed, Ok(Command::Typing { .. }));
        let decision = if is_typing { Decision::Pass } else { record.rate_limiter.check(rate, now.monotonic) };
        let result = match decision {
            Decision::Pass => parsed.and_then(|command| self.submit(client, command, nonce.clone(), now)),
            Decision::SlowDown => Err("Slow down".into()),
            Decision::Flood => return self.close(client, CloseReason::Flooding),
        };
        if let Err(message) = result {
            self.send(client, Event::Error { message, nonce });
        }
    }

    /// After `join`, `leave` or `receive`, and when the broker has new events, call this until it returns `None`.
    pub fn next_effect(&mut self) -> Option<Effect> {
        // Return all effects of an event before applying the next event, which may change a room's recipients.
        while self.effects.is_empty() {
            let event = self.broker.next_event()?;
            self.apply(event);
        }
        self.effects.pop_front()
    }

    pub fn room_of(&self, client: Token) -> Option<RoomId> {
        if let Stage::Member(room) = self.clients.get(&client)?.stage { Some(room) } else { None }
    }

    pub fn dialect_of(&self, client: Token) -> Option<Dialect> {
        self.clients.get(&client).map(|client| client.dialect)
    }

    /// Returns a room's local recipients in token order.
    pub fn members(&self, room: RoomId) -> impl Iterator<Item = (Token, Dialect)> {
        let recipients = self.rooms.get(&room).into_iter().flat_map(|room| &room.recipients);
        recipients.map(|(client, dialect)| (*client, *dialect))
    }

    pub fn member_count(&self, room: RoomId) -> usize {
        self.rooms.get(&room).map_or(0, |room| room.recipients.len())
    }

    pub fn dialects(&self, room: RoomId) -> impl Iterator<Item = Dialect> + use<'_> {
        self.rooms.get(&room).into_iter().flat_map(Room::dialects)
    }

    fn submit(&mut self, client: Token, command: Command, nonce: Option<Rc<str>>, now: Now) -> Result<(), ErrorText> {
        let request = match command {
            Command::Message { text, .. } if text.trim().is_empty() => return Ok(()),
            Command::Message { username, to, text } => {
                let text = text.trim();
                let username = self.sender(client, username.as_deref())?;
                let private = to.as_deref().map(|to| (to, text)).or_else(|| command::split_private(text));
                let (to, text) = private.map_or((None, text), |(to, text)| (Some(to.trim()), text));
                if text.is_empty() {
                    return Ok(());
                }
                // No text has more characters than bytes, so count characters only if the bytes exceed the limit.
                if text.len() > self.config.max_text && text.chars().count() > self.config.max_text {
                    return Err("Message too long".into());
                }
                let (text, time) = (text.into(), self.format_time(now.time));
                if let Some(to) = to {
                    // No client can have an invalid name, so report an invalid recipient as an unknown user.
                    let to = names::username(to).map_err(|_| format!("No such user: {}", excerpt(to)))?.into();
                    Request::Private(PrivateMessage { from: username, to, text, time, nonce })
                } else {
                    Request::Publish(Message { username, text, id: 0, time, nonce })
                }
            }
            Command::SwitchRoom { room } => Request::Switch { room: names::room_name(&room)?.into() },
            Command::Typing { username } => {
                let Some(record) = self.active_client(client) else { return Ok(()) };
                // The only rate limit for `typing`. Check it before the username, so that it also counts invalid names.
                if record.typed_at.is_some_and(|at| now.monotonic.saturating_sub(at) < TYPING_INTERVAL) {
                    return Ok(());
                }
                record.typed_at = Some(now.monotonic);
                Request::Typing { username: self.sender(client, username.as_deref())? }
            }
            Command::Ping => {
                self.send(client, Event::Pong {});
                return Ok(());
            }
        };
        self.broker.submit(client, request, now.monotonic);
        Ok(())
    }

    /// Returns the validated `username`, or the username from the join if `username` is `None`.
    fn sender(&self, client: Token, username: Option<&str>) -> Result<Rc<str>, ErrorText> {
        let record = &self.clients[&client];
        let Some(username) = username else { return Ok(Rc::clone(&record.username)) };
        let username = names::username(username)?;
        if record.identity.username.as_deref().is_some_and(|bound| bound != username) {
            return Err("This token may be used with another username only".into());
        }
        Ok(username.into())
    }

    fn format_time(&mut self, time: SystemTime) -> Rc<str> {
        let formatted = self.formatted_time.take().filter(|(last, _)| *last == time);
        let format = || (time, humantime::format_rfc3339_millis(time).to_string().into());
        Rc::clone(&self.formatted_time.insert(formatted.unwrap_or_else(format)).1)
    }

    fn apply(&mut self, event: RoomEvent) {
        match event {
            RoomEvent::Opened { room, name, members } => {
                let before = self.rooms.insert(room, Room::new(name, members));
                debug_assert!(before.is_none(), "a room number is used once");
            }
            RoomEvent::Entered { client, from, to, backlog } => self.entered(client, from, to, backlog),
            RoomEvent::RemoteJoined { room, member, username } => {
                self.room_mut(room).add_member(member, Rc::clone(&username), None);
                self.send_room(room, None, Event::Joined { username, members: self.active_users(room) });
            }
            RoomEvent::Left { room, member } => {
                if let MemberId::Local(client) = member {
                    debug_assert!(self.clients.contains_key(&client), "a client leaves once");
                    let Some(record) = self.clients.remove(&client) else { return };
                    let mut reason = CloseReason::Replaced.text();
                    match &record.stage {
                        Stage::Leaving(given) => reason = given,
                        _ => self.close(client, CloseReason::Replaced),
                    }
                    let name = logged(&self.rooms[&room].name);
                    log::info!("LEAVE room={name} user={} reason={reason:?}", logged(&record.username));
                }
                self.remove_member(room, member);
            }
            RoomEvent::Published { room, message } => {
                let name = || logged(&self.rooms[&room].name); // a closure, which runs only if debug lines are logged
                log::debug!("MSG room={} user={} {:?}", name(), logged(&message.username), excerpt(&message.text));
                self.send_room(room, None, Event::Message(message));
            }
            RoomEvent::Duplicate { client, message } => self.send(client, Event::Message(message)),
            RoomEvent::Private { recipients, message } => {
                // Never log the text of a private message.
                log::debug!("PRIVATE user={} to={}", logged(&message.from), logged(&message.to));
                recipients.iter().for_each(|client| self.send(*client, Event::Private(Rc::clone(&message))));
            }
            RoomEvent::Typing { room, client, username } => self.send_room(room, client, Event::Typing { username }),
            RoomEvent::JoinRejected { client, error } => {
                let is_name = error == BrokerError::NameInUse;
                if let Some(Stage::Joining { .. }) = self.clients.remove(&client).map(|record| record.stage) {
                    self.close(client, if is_name { CloseReason::NameInUse } else { CloseReason::TooManyRooms });
                }
            }
            RoomEvent::Rejected { client, error, nonce } => {
                let message = match error {
                    BrokerError::NameInUse => CloseReason::NameInUse.text().into(),
                    BrokerError::TooManyRooms => "There are too many rooms".into(),
                    BrokerError::NoSuchUser(name) => format!("No such user: {name}").into(),
                    BrokerError::NotStored => "Message not stored".into(),
                };
                self.send(client, Event::Error { message, nonce });
            }
        }
    }

    /// Announces the client even if it is already leaving, because `left` will follow.
    fn entered(&mut self, client: Token, from: Option<RoomId>, to: RoomId, backlog: Backlog) {
        let member = MemberId::Local(client);
        let Client { dialect, ref username, .. } = *self.clients[&client];
        let username = Rc::clone(username);
        let before = self.active_client(client).map(|record| std::mem::replace(&mut record.stage, Stage::Member(to)));
        let new = self.room_mut(to);
        let (room, mut members) = (Rc::clone(&new.name), new.usernames());
        new.add_member(member, Rc::clone(&username), before.as_ref().map(|_| dialect));
        match from.map(|from| logged(&self.rooms[&from].name)) {
            Some(old) => log::info!("SWITCH from={old} to={} user={}", logged(&room), logged(&username)),
            None => log::info!("JOIN room={} user={}", logged(&room), logged(&username)),
        }
        self.effects.extend(before.as_ref().map(|_| Effect::Moved { client, from, to }));
        if let Some(from) = from {
            self.remove_member(from, member);
        }
        if let Some(Stage::Joining { extra, held }) = before {
            let username = Rc::clone(&username);
            if dialect == Dialect::Events {
                let message = format!("Welcome to #{room}, {username}!");
                let extra = extra.into_iter().map(|field| *field).collect();
                self.send(client, Event::Welcome { message, members, room, username, backlog, extra });
            } else {
                // In dialects without a welcome, the client receives its own `joined`, then the history as messages.
                members.push(Rc::clone(&username));
                self.send(client, Event::Joined { username, members });
                backlog.messages.into_iter().for_each(|message| self.send(client, Event::Message(message)));
            }
            held.into_iter().for_each(|event| self.send(client, event));
        } else {
            let Backlog { epoch, last_id, messages: history, .. } = backlog;
            self.send(client, Event::Switched { room, members, epoch, last_id, history });
        }
        self.send_room(to, Some(client), Event::Joined { username, members: self.active_users(to) });
    }

    fn remove_member(&mut self, room: RoomId, member: MemberId) {
        let username = self.room_mut(room).remove_member(member);
        if self.room_mut(room).is_closed() {
            self.rooms.remove(&room);
        } else {
            self.send_room(room, None, Event::Left { username, members: self.active_users(room) });
        }
    }

    /// Holds the event until the client's welcome, or drops the event if the client is leaving.
    fn send(&mut self, client: Token, event: Event) {
        match self.clients.get_mut(&client).map(|record| &mut record.stage) {
            Some(Stage::Member(_)) => self.effects.push_back(Effect::Send { client, event }),
            Some(Stage::Joining { held, .. }) if held.len() < MAX_HELD => held.push(event),
            Some(Stage::Joining { .. }) => self.close(client, CloseReason::Flooding),
            Some(Stage::Leaving(_)) | None => {}
        }
    }

    fn send_room(&mut self, room: RoomId, but: Option<Token>, event: Event) {
        if self.members(room).any(|(member, _)| Some(member) != but) {
            self.effects.push_back(Effect::Broadcast { room, but, event });
        }
    }

    fn close(&mut self, client: Token, reason: CloseReason) {
        self.effects.push_back(Effect::Close { client, reason });
    }

    /// Empty unless a recipient's dialect has member lists: building a list is O(n).
    fn active_users(&self, room: RoomId) -> Vec<Rc<str>> {
        let room = &self.rooms[&room];
        if room.dialects().any(|dialect| dialect == Dialect::Presence) { room.usernames() } else { Vec::new() }
    }

    fn room_mut(&mut self, room: RoomId) -> &mut Room {
        let Some(room) = self.rooms.get_mut(&room) else { unreachable!("`Opened` precedes all events of a room") };
        room
    }

    /// `None` if the client is unknown or leaving.
    fn active_client(&mut self, client: Token) -> Option<&mut Client> {
        let record = self.clients.get_mut(&client)?;
        (!matches!(record.stage, Stage::Leaving(_))).then_some(record)
    }
}

/// Quotes and escapes a name unless it is plain, so that no name can forge a log line.
pub fn logged(name: &str) -> Cow<'_, str> {
    let is_plain = name.chars().all(|character| character.is_alphanumeric() || matches!(character, '-' | '_' | '.'));
    if is_plain { name.into() } else { format!("{name:?}").into() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::broker::memory::{Limits, MemoryBroker};

    #[test]
    fn the_picture_is_true() {
        let limits = Limits { messages: 50, bytes: 1 << 20, rooms: 10, empty_rooms: 10, ttl: Duration::ZERO };
        let broker = MemoryBroker::new(limits, Box::new(|bytes: &mut [u8]| bytes.fill(7)), |_| None);
        let mut chat = Chat::new(&Config::parse_from(["wirechat"]), Box::new(broker));
        let now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };
        let (alice, bob, carol) = (Token(1), Token(2), Token(3));
        let join = |username: &str, room: &str| JoinRequest {
            dialect: Dialect::Events,
            username: username.into(),
            room: room.into(),
            identity: Identity::default(),
            client_id: None,
            resume: None,
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
                    Effect::Broadcast { room: id, but, event } => {
                        Some(format!("{}{}: {}", room(*id), but.map_or("", |_| " but bob"), json(event)))
                    }
                    Effect::Moved { .. } | Effect::Close { .. } => None,
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
            ("sends no JSON", "hi"),
        ] {
            chat.receive(bob, text, now);
            picture += &row(action, &mut chat);
        }
        chat.leave(bob, "", now);
        picture += &row("leaves", &mut chat);
        crate::pictures::assert_drawn(include_str!("mod.rs"), &picture);
    }

    #[test]
    fn names_in_the_log_cannot_forge_a_line() {
        assert_eq!(logged("alice"), "alice");
        assert_eq!(logged("a b\n\u{1b}[2J"), r#""a b\n\u{1b}[2J""#);
    }
}
