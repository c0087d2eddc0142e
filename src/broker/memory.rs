//! An in-memory broker for a single server. [`submit`](Broker::submit) executes each request immediately. The broker
//! keeps the history of an empty room for a while, so that the room's last member can resume after a lost connection.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::{rc::Rc, time::Duration};

use mio::Token;

use super::log::{RoomLog, memory_bytes};
use super::{Backlog, Broker, BrokerError, CredentialId, Join, MemberId, Message, NameRules, Page};
use super::{PrivateMessage, Random, Request, Resume, RoomEvent, RoomId, RoomMap, Session, User};
use crate::maps::TokenMap;

#[derive(Debug, Clone, Copy)]
pub struct BrokerLimits {
    pub max_messages: usize,       // in the history of one room
    pub max_bytes: usize,          // memory for the histories of all rooms
    pub max_backlog: usize,        // size in bytes of the backlog for a client that joins a room or switches rooms
    pub max_rooms: usize,          // rooms with members; users can always join the default room
    pub max_rooms_per_user: usize, // non-empty rooms that one user opened
    pub max_empty_rooms: usize,    // empty rooms whose history the broker keeps
    pub ttl: Duration,             // time until the history of an empty room expires
    pub default_room: &'static str,
}

pub struct MemoryBroker {
    members: TokenMap<Box<Member>>, // boxed, to keep unused slots of the hash table small
    rooms: Rooms,
    /// One entry per client: its username key, whether other clients may share the username, and its token. Because the
    /// token is part of the entry, removing a client takes O(log n), even if many clients share its username.
    by_username: BTreeSet<(Rc<str>, bool, Token)>,
    client_ids: HashMap<Rc<str>, Token>,
    names: NameRules,
    events: VecDeque<RoomEvent>,
}

struct Member {
    room: RoomId,
    username: Rc<str>, // the username of the client's last accepted message or, initially, of its join request
    user: User,
    client_id: Option<Rc<str>>,
    credential: Option<CredentialId>,
    session: Session,
}

impl MemoryBroker {
    pub fn new(config: BrokerLimits, random: Random, names: NameRules) -> MemoryBroker {
        let (rooms, ids, empty, opened) = (RoomMap::default(), HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let rooms = Rooms { rooms, ids, empty, opened, last_id: 0, bytes: 0, config, random };
        let (members, by_username, client_ids) = (TokenMap::default(), BTreeSet::new(), HashMap::new());
        MemoryBroker { members, rooms, by_username, client_ids, names, events: VecDeque::new() }
    }

    fn join(&mut self, client: Token, join: Join, now: Duration) -> Option<RoomEvent> {
        debug_assert!(!self.members.contains_key(&client), "a client joins once");
        let checked = self.check_join(&join);
        let Join { username, is_bound, session, room, user, client_id, credential, resume } = join;
        let older = client_id.as_ref().and_then(|id| self.client_ids.get(id).copied());
        let holder = self.find_holder(&username);
        // A client may replace its own old connection: the server may not yet know that the old connection is dead.
        let is_owner = |holder| is_bound || older == Some(holder) || session == Some(self.members[&holder].session);
        let is_taken = holder.is_some_and(|holder| !is_owner(holder));
        if let Some(error) = checked.err().or(is_taken.then_some(BrokerError::NameInUse)) {
            return Some(RoomEvent::JoinRejected { client, error });
        }
        // Keep the session that the client sent: the connection may fail before `welcome` delivers a new session.
        let mut new_session = [0; 16];
        (self.rooms.random)(&mut new_session);
        let session = session.unwrap_or(Session(new_session));
        // Add the new member before the older connection leaves: an empty room could lose its history.
        let (to, backlog) = self.add_member(&room, user.clone(), resume, now);
        // If `older` and `holder` are the same connection, the second `Leave` has no effect.
        [older, holder].into_iter().flatten().for_each(|replaced| self.submit(replaced, Request::Leave, now));
        self.announce_room(to);
        self.by_username.insert(self.username_entry(&username, client));
        self.client_ids.extend(client_id.iter().map(|id| (Rc::clone(id), client)));
        self.members.insert(client, Box::new(Member { room: to, username, user, client_id, credential, session }));
        Some(RoomEvent::Joined { client, session, from: None, to, backlog })
    }

    fn leave(&mut self, client: Token, now: Duration) -> Option<RoomEvent> {
        let Member { room, username, client_id, .. } = *self.members.remove(&client)?;
        self.by_username.remove(&self.username_entry(&username, client));
        client_id.and_then(|id| self.client_ids.remove(&id));
        self.rooms.remove_member(room, now);
        Some(RoomEvent::Left { room, member: MemberId::Local(client) })
    }

    fn switch(&mut self, client: Token, name: &Rc<str>, now: Duration) -> Option<RoomEvent> {
        let member = self.members.get(&client).filter(|member| self.rooms.find(name) != Some(member.room))?;
        let (from, session, user) = (member.room, member.session, member.user.clone());
        // At a limit, still allow a switch that empties a non-default room of this user: the new room replaces it.
        let Room { name: old, user: opener, members, .. } = &self.rooms.rooms[&from];
        let replaces = *members == 1 && *opener == user && **old != *self.rooms.config.default_room;
        if !self.rooms.can_join(name, &user) && !replaces {
            return Some(RoomEvent::Rejected { client, error: BrokerError::TooManyRooms, nonce: None });
        }
        // Join the new room before leaving the old one: emptying the old room could evict the new room's history.
        let (to, backlog) = self.add_member(name, user, None, now);
        self.announce_room(to);
        self.rooms.remove_member(from, now);
        self.members.get_mut(&client)?.room = to;
        Some(RoomEvent::Joined { client, session, from: Some(from), to, backlog })
    }

    fn add_member(&mut self, name: &Rc<str>, by: User, resume: Option<Resume>, now: Duration) -> (RoomId, Backlog) {
        let id = self.rooms.find(name).unwrap_or_else(|| self.rooms.open(name, by, now));
        let (max_bytes, room) = (self.rooms.config.max_backlog, self.rooms.get_mut(id));
        room.members += 1;
        (id, room.log.backlog(resume.as_ref(), max_bytes))
    }

    /// Queues `Opened` if the new member is the only one in the room: the chat forgets a room when its last member
    /// leaves.
    fn announce_room(&mut self, room: RoomId) {
        let Room { name, members, .. } = &self.rooms.rooms[&room];
        let opened = RoomEvent::Opened { room, name: Rc::clone(name), members: Vec::new() };
        self.events.extend((*members == 1).then_some(opened));
    }

    fn publish(&mut self, client: Token, message: Message) -> Option<RoomEvent> {
        let room = self.authorize(client, &message.username, message.nonce.as_ref())?;
        if let Some(message) = self.rooms.rooms[&room].log.find_duplicate(&message) {
            return Some(RoomEvent::Duplicate { client, message: Rc::clone(message) });
        }
        self.set_username(client, &message.username);
        Some(RoomEvent::Published { room, client: Some(client), message: self.rooms.append(room, message) })
    }

    /// Publishes a message from the operator, who is a member of the room only during this call.
    fn announce(&mut self, client: Token, name: &Rc<str>, message: Message, now: Duration) -> Option<RoomEvent> {
        let user = User::Connection(Token(0)); // no client has token 0: connection tokens start at 1
        if !self.rooms.can_join(name, &user) {
            return Some(RoomEvent::Rejected { client, error: BrokerError::TooManyRooms, nonce: message.nonce });
        }
        let (room, _) = self.add_member(name, user.clone(), None, now);
        self.announce_room(room);
        let (username, session) = (Rc::clone(&message.username), Session([0; 16]));
        let member = Member { room, username, user, client_id: None, credential: None, session };
        self.members.insert(client, Box::new(member));
        let event = self.publish(client, message);
        self.events.extend(event);
        self.members.remove(&client);
        self.rooms.remove_member(room, now);
        self.rooms.find(name).is_none().then_some(RoomEvent::Closed { room })
    }

    fn send_private_message(&mut self, client: Token, message: PrivateMessage) -> Option<RoomEvent> {
        self.authorize(client, &message.from, message.nonce.as_ref())?;
        let key = (self.names.key)(&message.to);
        let all = (Rc::clone(&key), false, Token(0))..=(key, true, Token(usize::MAX));
        let mut recipients: Vec<Token> = self.by_username.range(all).map(|(.., token)| *token).collect();
        if recipients.is_empty() {
            let error = BrokerError::NoSuchUser(message.to);
            return Some(RoomEvent::Rejected { client, error, nonce: message.nonce });
        }
        // Deliver the private message to the sender too, but only once if the sender is also the recipient.
        recipients.retain(|recipient| *recipient != client);
        recipients.push(client);
        self.set_username(client, &message.from);
        Some(RoomEvent::Private { recipients, message: Rc::new(message) })
    }

    fn read_history(&self, client: Token, before: u64, limit: usize) -> Option<RoomEvent> {
        let Room { name, log, .. } = &self.rooms.rooms[&self.members.get(&client)?.room];
        // A command runs only while at least half of the client's outbox is free. Limit a history page to that half.
        let (messages, more) = log.page(before, limit, self.rooms.config.max_backlog / 2);
        Some(RoomEvent::History { client, page: Page { room: Rc::clone(name), before, messages, more } })
    }

    /// Returns the client's room, if any. If another client holds the username, queues a `Rejected` and returns `None`.
    fn authorize(&mut self, client: Token, username: &Rc<str>, nonce: Option<&Rc<str>>) -> Option<RoomId> {
        let member = self.members.get(&client)?;
        // Test the cheap condition first: nearly every message has the username that the client already holds.
        if member.username == *username || self.find_holder(username).is_none_or(|holder| holder == client) {
            return Some(member.room);
        }
        self.events.push_back(RoomEvent::Rejected { client, error: BrokerError::NameInUse, nonce: nonce.cloned() });
        None
    }

    fn set_username(&mut self, client: Token, username: &Rc<str>) {
        let Some(member) = self.members.get_mut(&client).filter(|member| member.username != *username) else { return };
        let before = std::mem::replace(&mut member.username, Rc::clone(username));
        self.by_username.remove(&self.username_entry(&before, client));
        self.by_username.insert(self.username_entry(username, client));
    }

    fn username_entry(&self, username: &Rc<str>, client: Token) -> (Rc<str>, bool, Token) {
        ((self.names.key)(username), (self.names.may_share)(username), client)
    }

    /// Returns the client that holds the username. `None` if no client holds it, or if clients may share it.
    fn find_holder(&self, username: &Rc<str>) -> Option<Token> {
        let [first, last] = [0, usize::MAX].map(|number| self.username_entry(username, Token(number)));
        let (_, may_share, client) = self.by_username.range(first..=last).next()?;
        (!may_share).then_some(*client)
    }
}

impl Broker for MemoryBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        let older = join.client_id.as_ref().and_then(|id| self.client_ids.get(id)).map(|older| &self.members[older]);
        let is_other_user = |older: &Member| join.is_bound && older.username != join.username;
        if older.is_some_and(|older| older.credential != join.credential || is_other_user(older)) {
            return Err(BrokerError::ClientIdInUse);
        }
        self.rooms.can_join(&join.room, &join.user).then_some(()).ok_or(BrokerError::TooManyRooms)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        let event = match request {
            Request::Join(join) => self.join(client, join, now),
            Request::Leave => self.leave(client, now),
            Request::Switch { room } => self.switch(client, &room, now),
            Request::Publish(message) => self.publish(client, message),
            Request::Announce { room, message } => self.announce(client, &room, message, now),
            Request::Private(message) => self.send_private_message(client, message),
            Request::History { before, limit } => self.read_history(client, before, limit),
            // Do not call `set_username`: a client's username changes when it sends a message, not while it types.
            Request::Typing { username } => {
                let room = self.authorize(client, &username, None);
                room.map(|room| RoomEvent::Typing { room, client: Some(client), username })
            }
        };
        self.events.extend(event);
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        self.events.pop_front()
    }
}

struct Rooms {
    rooms: RoomMap<Room>,
    ids: HashMap<Rc<str>, RoomId>,
    // Empty rooms, sorted by whether they ever had a message, then by when they became empty, then by id.
    empty: BTreeSet<(bool, Duration, RoomId)>,
    opened: BTreeSet<(User, RoomId)>, // every room, sorted by the user who opened it
    last_id: u64,
    bytes: usize,
    config: BrokerLimits,
    random: Random,
}

struct Room {
    name: Rc<str>,
    user: User, // the user who opened the room, for the per-user room limit
    log: RoomLog,
    members: usize,
    emptied_at: Duration,
}

impl Rooms {
    fn find(&self, name: &str) -> Option<RoomId> {
        self.ids.get(name).copied().filter(|id| self.rooms[id].members > 0)
    }

    fn can_join(&self, name: &str, user: &User) -> bool {
        let is_open = |room: &RoomId| self.rooms[room].members > 0;
        let has_place = || {
            self.rooms.len() - self.empty.len() < self.config.max_rooms
                && self.rooms_created_by(user).filter(is_open).count() < self.config.max_rooms_per_user
        };
        // The limits do not apply to the default room, so that no user can lock other users out of the chat.
        name == self.config.default_room || self.find(name).is_some() || has_place()
    }

    fn rooms_created_by(&self, user: &User) -> impl DoubleEndedIterator<Item = RoomId> {
        let [first, last] = [0, u64::MAX].map(|id| (user.clone(), RoomId(id)));
        self.opened.range(first..=last).map(|(_, id)| *id)
    }

    /// Opens a room that has no members. Restores the room's previous history unless the history has expired.
    fn open(&mut self, name: &Rc<str>, user: User, now: Duration) -> RoomId {
        let kept = self.ids.get(name).copied().and_then(|kept| self.remove(kept));
        // Expiry needs no timer: reopening a room drops its expired history, and `max_bytes` bounds memory until then.
        let kept = kept.filter(|room| now.saturating_sub(room.emptied_at) <= self.config.ttl);
        let (log, user) = kept.map(|room| (room.log, room.user)).unwrap_or_else(|| {
            // The epoch is random: if a restarted server reused one, a client could resume from the wrong history.
            let mut epoch = [0; 8];
            (self.random)(&mut epoch);
            (RoomLog::new(format!("{:016x}", u64::from_be_bytes(epoch)).into()), user)
        });
        while self.rooms_created_by(&user).count() >= self.config.max_rooms_per_user && self.evict_newest_room(&user) {}
        self.last_id += 1;
        let id = RoomId(self.last_id);
        self.bytes += log.bytes;
        self.ids.insert(Rc::clone(name), id);
        self.opened.insert((user.clone(), id));
        self.rooms.insert(id, Room { name: Rc::clone(name), user, log, members: 0, emptied_at: now });
        id
    }

    fn get_mut(&mut self, id: RoomId) -> &mut Room {
        let Some(room) = self.rooms.get_mut(&id) else { unreachable!("a room with a member is open") };
        room
    }

    fn remove_member(&mut self, id: RoomId, now: Duration) {
        let room = self.get_mut(id);
        room.members -= 1;
        if room.members == 0 {
            room.emptied_at = now;
            let (user, has_messages) = (room.user.clone(), room.log.last_id > 0);
            self.empty.insert((has_messages, now, id));
            while self.empty.len() > self.config.max_empty_rooms && self.evict_room(&user) {}
        }
    }

    fn append(&mut self, id: RoomId, message: Message) -> Rc<Message> {
        let (max_messages, room) = (self.config.max_messages, self.get_mut(id));
        let (user, message) = (room.user.clone(), room.log.append(message));
        let freed = if room.log.messages.len() > max_messages { room.log.drop_oldest() } else { 0 };
        self.bytes = self.bytes + memory_bytes(&message) - freed;
        // First evict empty rooms. Then shrink the largest history: a busy room must not cost a quiet room its history.
        while self.bytes > self.config.max_bytes && self.evict_room(&user) {}
        while self.bytes > self.config.max_bytes {
            let Some(largest) = self.rooms.values_mut().max_by_key(|room| room.log.bytes) else { break };
            self.bytes -= largest.log.drop_oldest();
        }
        message
    }

    /// Evicts one empty room: preferably a room that never had a message, otherwise the newest of `user`'s empty rooms
    /// if there are at least two, otherwise the room that has been empty longest.
    fn evict_room(&mut self, user: &User) -> bool {
        let Some((has_messages, _, oldest)) = self.empty.first().copied() else { return false };
        has_messages && self.evict_newest_room(user) || self.remove(oldest).is_some()
    }

    /// Evicts the newest empty room that the user opened, if there are at least two, to spare the rooms of other users.
    fn evict_newest_room(&mut self, user: &User) -> bool {
        let empty = self.rooms_created_by(user).rev().filter(|id| self.rooms[id].members == 0);
        let [last, _] = empty.take(2).collect::<Vec<_>>()[..] else { return false };
        self.remove(last).is_some()
    }

    fn remove(&mut self, id: RoomId) -> Option<Room> {
        let room = self.rooms.remove(&id)?;
        self.ids.remove(&room.name);
        self.empty.remove(&(room.log.last_id > 0, room.emptied_at, id));
        self.opened.remove(&(room.user.clone(), id));
        self.bytes -= room.log.bytes;
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: BrokerLimits = BrokerLimits {
        max_messages: 50,
        max_bytes: 1 << 24,
        max_backlog: 1 << 20,
        max_rooms: 1000,
        max_rooms_per_user: 1000,
        max_empty_rooms: 1000,
        ttl: HOUR,
        default_room: "general",
    };
    const SESSION: Option<Session> = Some(Session([0xff; 16]));

    fn broker(config: BrokerLimits) -> MemoryBroker {
        let mut number = 0_u8;
        let random = Box::new(move |bytes: &mut [u8]| {
            number += 1;
            bytes.fill(number);
        });
        let names = NameRules { key: |name| name.to_lowercase().into(), may_share: |name| name.starts_with("user") };
        MemoryBroker::new(config, random, names)
    }

    fn user(number: u8) -> User {
        User::Peer { credential: None, address: [192, 0, 2, number].into() }
    }

    fn join(client: usize, room: &str) -> Join {
        Join::new(&format!("user{client}"), room, user(client as u8))
    }

    fn credential(number: u64) -> Option<CredentialId> {
        CredentialId::new(number)
    }

    fn kept_rooms(broker: &MemoryBroker) -> Vec<String> {
        let mut kept: Vec<_> = broker.rooms.rooms.values().map(|room| room.name.to_string()).collect();
        kept.sort();
        kept
    }

    fn message(username: &str, text: &str) -> Message {
        Message { username: username.into(), text: text.into(), id: 0, time: "t".into(), nonce: None }
    }

    fn join_room(broker: &mut MemoryBroker, client: usize, room: &str, now: Duration) -> Backlog {
        broker.submit(Token(client), Request::Join(join(client, room)), now);
        let backlog = events(broker).into_iter().find_map(|event| match event {
            RoomEvent::Joined { backlog, .. } => Some(backlog),
            _ => None,
        });
        backlog.expect("joined")
    }

    fn leave(broker: &mut MemoryBroker, client: usize, now: Duration) {
        broker.submit(Token(client), Request::Leave, now);
        events(broker);
    }

    fn publish(broker: &mut MemoryBroker, client: usize, text: &str) -> u64 {
        broker.submit(Token(client), Request::Publish(message(&format!("user{client}"), text)), NOW);
        match &events(broker)[..] {
            [RoomEvent::Published { message, .. }] => message.id,
            other => panic!("{other:?}"),
        }
    }

    fn events(broker: &mut MemoryBroker) -> Vec<RoomEvent> {
        std::iter::from_fn(|| broker.next_event()).collect()
    }

    fn texts(backlog: &Backlog) -> Vec<&str> {
        backlog.messages.iter().map(|message| &*message.text).collect()
    }

    #[test]
    fn a_client_receives_only_the_newest_messages_that_fit() {
        let mut broker = broker(BrokerLimits { max_backlog: 300, ..LIMITS });
        join_room(&mut broker, 1, "a", NOW);
        for text in ["one", "two", "three", "four"] {
            publish(&mut broker, 1, text);
        }
        let joined = join_room(&mut broker, 2, "a", NOW);
        assert_eq!((texts(&joined), joined.resumed), (vec!["three", "four"], false));
        join_room(&mut broker, 3, "b", NOW);
        broker.submit(Token(3), Request::Switch { room: "a".into() }, NOW);
        let switched = events(&mut broker).into_iter().find_map(|event| match event {
            RoomEvent::Joined { backlog, .. } => Some(backlog),
            _ => None,
        });
        assert_eq!(texts(&switched.expect("switched")), ["three", "four"]);
    }

    #[test]
    fn the_operator_publishes_to_rooms_with_and_without_members() {
        // With `empty_rooms: 0`, the broker removes an empty room as soon as it has published the operator's message.
        for empty_rooms in [0, 1000] {
            let mut broker = broker(BrokerLimits { max_rooms: 1, max_empty_rooms: empty_rooms, ..LIMITS });
            let announce = |broker: &mut MemoryBroker, room: &str, nonce: &str| {
                let message = Message { nonce: Some(nonce.into()), ..message("host", "hi") };
                broker.submit(Token(99), Request::Announce { room: room.into(), message }, NOW);
                events(broker)
            };
            for id in [1, 2] {
                let events = announce(&mut broker, "a", &id.to_string());
                let [
                    RoomEvent::Opened { room: opened, .. },
                    RoomEvent::Published { room, client: Some(Token(99)), message },
                    RoomEvent::Closed { room: closed },
                ] = &events[..]
                else {
                    panic!("{events:?}");
                };
                assert_eq!((opened, closed), (room, room));
                assert_eq!(message.id, if empty_rooms == 0 { 1 } else { id });
            }
            assert_eq!(texts(&join_room(&mut broker, 1, "a", NOW)).len(), if empty_rooms == 0 { 0 } else { 2 });
            assert!(matches!(announce(&mut broker, "a", "3")[..], [RoomEvent::Published { .. }]));
            assert!(matches!(announce(&mut broker, "a", "3")[..], [RoomEvent::Duplicate { client: Token(99), .. }]));
            assert!(matches!(announce(&mut broker, "b", "4")[..], [RoomEvent::Rejected { client: Token(99), .. }]));
            leave(&mut broker, 1, NOW);
            assert!(broker.members.is_empty() && broker.by_username.is_empty());
        }
    }

    #[test]
    fn an_empty_room_keeps_its_history_for_a_while_and_then_starts_a_new_one() {
        for (absence, same) in [(HOUR, true), (HOUR + Duration::from_secs(1), false)] {
            let mut broker = broker(LIMITS);
            let before = join_room(&mut broker, 1, "r", NOW);
            publish(&mut broker, 1, "one");
            leave(&mut broker, 1, NOW);
            let after = join_room(&mut broker, 2, "r", absence);
            assert_eq!((after.epoch == before.epoch, after.last_id == 1), (same, same), "after {absence:?}");
        }
    }

    #[test]
    fn empty_rooms_are_bounded_and_the_oldest_is_evicted_first() {
        let mut broker = broker(BrokerLimits { max_empty_rooms: 2, ..LIMITS });
        for (number, is_used) in [(0, false), (1, true), (2, true), (3, false), (4, true)] {
            join_room(&mut broker, number, &number.to_string(), NOW);
            if is_used {
                publish(&mut broker, number, "x");
            }
            leave(&mut broker, number, NOW);
        }
        assert_eq!(kept_rooms(&broker), ["2", "4"], "rooms 0 and 3 never had a message, and room 1 is the oldest");
    }

    #[test]
    fn bytes_are_bounded_and_empty_rooms_are_evicted_first() {
        let mut broker = broker(BrokerLimits { max_messages: 1000, max_bytes: 10_000, ..LIMITS });
        join_room(&mut broker, 1, "empty", NOW);
        publish(&mut broker, 1, &"x".repeat(1000));
        leave(&mut broker, 1, NOW);
        join_room(&mut broker, 2, "busy", NOW);
        for _ in 0..100 {
            publish(&mut broker, 2, &"y".repeat(100));
            assert!(broker.rooms.bytes <= 10_000);
        }
        assert!(broker.rooms.empty.is_empty());
        assert!(join_room(&mut broker, 3, "busy", NOW).messages.len() > 20);
        join_room(&mut broker, 4, "quiet", NOW);
        publish(&mut broker, 4, "one");
        for _ in 0..100 {
            publish(&mut broker, 2, &"y".repeat(100));
        }
        assert_eq!(texts(&join_room(&mut broker, 5, "quiet", NOW)), ["one"], "only the largest history loses messages");
        (2..=5).for_each(|client| leave(&mut broker, client, NOW));
        while broker.rooms.evict_room(&user(9)) {}
        assert_eq!(broker.rooms.bytes, 0, "evicted bytes are subtracted");
    }

    #[test]
    fn ids_still_increase_without_history() {
        let mut broker = broker(BrokerLimits { max_messages: 0, ..LIMITS });
        let empty = join_room(&mut broker, 1, "r", NOW);
        assert_eq!((publish(&mut broker, 1, "one"), publish(&mut broker, 1, "two")), (1, 2));
        let resume = |client, since| {
            let resume = Some(Resume { epoch: empty.epoch.to_string(), since });
            Request::Join(Join { resume, ..join(client, "r") })
        };
        for (client, since, resumed) in [(2, 2, true), (3, 1, false)] {
            broker.submit(Token(client), resume(client, since), NOW);
            let [RoomEvent::Joined { backlog, .. }] = &events(&mut broker)[..] else { panic!() };
            assert_eq!((backlog.last_id, backlog.messages.len(), backlog.resumed), (2, 0, resumed));
        }
        assert_eq!(broker.rooms.bytes, 0);
    }

    #[test]
    fn everything_about_a_client_is_gone_when_it_has_left() {
        let mut broker = broker(LIMITS);
        let (username, client_id) = ("first".into(), Some("id".into()));
        broker.submit(Token(1), Request::Join(Join { username, client_id, ..join(1, "r") }), NOW);
        broker.submit(Token(1), Request::Publish(message("other", "x")), NOW);
        assert_eq!(broker.client_ids.len(), 1);
        assert_eq!(broker.by_username, [("other".into(), false, Token(1))].into(), "the old username is free");
        leave(&mut broker, 1, NOW);
        assert!(broker.members.is_empty() && broker.by_username.is_empty());
        assert_eq!(broker.rooms.rooms.len(), broker.rooms.empty.len());
        assert!(broker.client_ids.is_empty());
        leave(&mut broker, 1, NOW);
        broker.submit(Token(1), Request::Typing { username: "other".into() }, NOW);
        assert!(events(&mut broker).is_empty(), "requests of a client that has left are dropped");
    }

    #[test]
    fn a_newer_connection_replaces_the_holders_of_its_client_id_and_of_its_name() {
        let mut broker = broker(LIMITS);
        broker.submit(Token(1), Request::Join(Join { client_id: Some("id".into()), ..join(1, "a") }), NOW);
        let held = Join { username: "name".into(), ..join(2, "b") };
        broker.submit(Token(2), Request::Join(held.clone()), NOW);
        let Some(RoomEvent::Joined { session, .. }) = events(&mut broker).pop() else { panic!() };
        let newer = Join { client_id: Some("id".into()), username: "Name".into(), ..held.clone() };
        let resume = Some(Resume { epoch: "any".into(), since: 0 });
        for join in [newer.clone(), Join { session: SESSION, ..newer.clone() }, Join { resume, ..newer.clone() }] {
            broker.submit(Token(3), Request::Join(join), NOW);
            let [RoomEvent::JoinRejected { error: BrokerError::NameInUse, .. }] = &events(&mut broker)[..] else {
                panic!("only the older connection's session may take over its username");
            };
        }
        broker.submit(Token(3), Request::Join(Join { session: Some(session), ..newer }), NOW);
        let seen = events(&mut broker);
        let replaced = |event: &RoomEvent, client| matches!(event, RoomEvent::Left { member: MemberId::Local(Token(left)), .. } if *left == client);
        assert!(replaced(&seen[0], 1) && replaced(&seen[1], 2), "{seen:?}");
        assert!(matches!(seen.last(), Some(RoomEvent::Joined { .. })));
        broker.submit(Token(4), Request::Join(Join { is_bound: true, ..held }), NOW);
        assert!(replaced(&events(&mut broker)[0], 3), "a token bound to the username takes it over");
    }

    #[test]
    fn a_client_id_belongs_to_one_credential() {
        let mut broker = broker(LIMITS);
        let join =
            |client, number| Join { client_id: Some("id".into()), credential: credential(number), ..join(client, "a") };
        broker.submit(Token(1), Request::Join(join(1, 7)), NOW);
        events(&mut broker);
        assert_eq!(broker.check_join(&join(2, 8)), Err(BrokerError::ClientIdInUse));
        assert_eq!(broker.check_join(&join(2, 7)), Ok(()));
        broker.submit(Token(2), Request::Join(join(2, 8)), NOW);
        let rejected = events(&mut broker);
        assert!(matches!(rejected[..], [RoomEvent::JoinRejected { error: BrokerError::ClientIdInUse, .. }]));
    }

    #[test]
    fn private_messages_find_users_by_key() {
        let mut broker = broker(LIMITS);
        join_room(&mut broker, 1, "r", NOW);
        broker.submit(Token(2), Request::Join(Join { username: "Ann".into(), ..join(2, "r") }), NOW);
        events(&mut broker);
        let (from, to, text, time) = ("user1".into(), "ANN".into(), "hi".into(), "t".into());
        broker.submit(Token(1), Request::Private(PrivateMessage { from, to, text, time, nonce: None }), NOW);
        let [RoomEvent::Private { recipients, .. }] = &events(&mut broker)[..] else { panic!() };
        assert_eq!(recipients, &[Token(2), Token(1)]);
    }

    #[test]
    fn a_user_who_opens_many_rooms_evicts_its_own_histories_first() {
        let mut broker = broker(BrokerLimits { max_empty_rooms: 3, ..LIMITS });
        join_room(&mut broker, 1, "quiet", NOW);
        publish(&mut broker, 1, "x");
        leave(&mut broker, 1, NOW);
        for number in 0..10 {
            join_room(&mut broker, 2, &format!("new{number}"), NOW);
            publish(&mut broker, 2, "x");
            leave(&mut broker, 2, NOW);
        }
        assert_eq!(kept_rooms(&broker), ["new0", "new1", "quiet"], "the user's newest empty rooms are evicted first");
    }

    #[test]
    fn the_room_limit_per_user_exempts_the_default_room() {
        let mut broker = broker(BrokerLimits { max_rooms: 4, max_rooms_per_user: 2, ..LIMITS });
        let by = |client: usize, room: &str, number| Join { user: user(number), ..join(client, room) };
        for (client, room, number) in [(1, "a", 1), (2, "b", 1), (3, "c", 2), (4, "d", 3)] {
            broker.submit(Token(client), Request::Join(by(client, room, number)), NOW);
        }
        assert_eq!(broker.check_join(&by(5, "e", 9)), Err(BrokerError::TooManyRooms), "four rooms have members");
        leave(&mut broker, 4, NOW);
        assert_eq!(broker.check_join(&by(5, "e", 1)), Err(BrokerError::TooManyRooms), "user 1 has two rooms");
        for (room, number) in [("e", 9), ("a", 1), ("general", 1)] {
            assert_eq!(broker.check_join(&by(5, room, number)), Ok(()), "{room}");
        }
        broker.submit(Token(5), Request::Join(by(5, "general", 1)), NOW);
        leave(&mut broker, 1, NOW);
        leave(&mut broker, 2, NOW);
        join_room(&mut broker, 1, "new", NOW);
        assert!(broker.rooms.rooms_created_by(&user(1)).count() <= 3, "a new room evicts an empty room of the user");
    }

    #[test]
    fn a_client_that_replaces_itself_finds_the_history_of_its_room() {
        let mut broker = broker(BrokerLimits { max_empty_rooms: 0, ..LIMITS });
        let join = |client| Join { client_id: Some("id".into()), ..join(client, "a") };
        broker.submit(Token(1), Request::Join(join(1)), NOW);
        events(&mut broker);
        publish(&mut broker, 1, "one");
        broker.submit(Token(2), Request::Join(join(2)), NOW);
        let events = events(&mut broker);
        let [RoomEvent::Left { .. }, RoomEvent::Opened { .. }, RoomEvent::Joined { backlog, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(texts(backlog), ["one"]);
    }

    #[test]
    fn at_the_limit_a_user_replaces_only_its_own_rooms() {
        let mut broker = broker(BrokerLimits { max_rooms: 2, ..LIMITS });
        let own = |client, room| Join { user: user(1), ..join(client, room) };
        for (client, room) in [(1, "general"), (2, "own")] {
            broker.submit(Token(client), Request::Join(own(client, room)), NOW);
        }
        events(&mut broker);
        for (client, is_rejected) in [(1, true), (2, false)] {
            broker.submit(Token(client), Request::Switch { room: "new".into() }, NOW);
            let events = events(&mut broker);
            assert_eq!(matches!(events[0], RoomEvent::Rejected { .. }), is_rejected, "{client}: {events:?}");
        }
    }
}
