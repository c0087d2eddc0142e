//! An in-memory broker for a single server. [`submit`](Broker::submit) executes a request at once and queues the
//! resulting events. The broker keeps an empty room's history for a while, so that even the last member to lose its
//! connection can resume.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use mio::Token;

use super::log::{RoomLog, size};
use super::{Backlog, Broker, BrokerError, Join, MemberId, Message, PrivateMessage};
use super::{Random, Request, Resume, RoomEvent, RoomId, RoomMap, UniqueKey};
use crate::token_map::TokenMap;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub messages: usize,    // maximum number of messages kept per room
    pub bytes: usize,       // maximum memory for all histories together
    pub rooms: usize,       // maximum number of rooms with members
    pub empty_rooms: usize, // maximum number of empty rooms whose history is kept
    pub ttl: Duration,      // how long to keep the history of an empty room
}

pub struct MemoryBroker {
    members: TokenMap<Box<Member>>, // boxed to keep empty hash-table slots small
    rooms: Rooms,
    /// Members by username. A set, because removal from a list of 100,000 `anonymous` members would be slow.
    present: BTreeSet<(Rc<str>, Token)>,
    claims: HashMap<Claim, Token>,
    unique_key: UniqueKey,
    events: VecDeque<RoomEvent>,
}

struct Member {
    room: RoomId,
    username: Rc<str>,          // initially from the join, later from the last accepted message
    claims: [Option<Claim>; 2], // the member's unique username and client id, if any
    credential: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Claim {
    Username(Rc<str>),
    ClientId(Rc<str>),
}

impl MemoryBroker {
    pub fn new(limits: Limits, random: Random, unique_key: UniqueKey) -> MemoryBroker {
        let (rooms, ids, empty) = (RoomMap::default(), HashMap::new(), BTreeSet::new());
        let rooms = Rooms { rooms, ids, empty, last_id: 0, bytes: 0, limits, random };
        let (present, claims, events) = (BTreeSet::new(), HashMap::new(), VecDeque::new());
        MemoryBroker { members: TokenMap::default(), rooms, present, claims, unique_key, events }
    }

    fn join(&mut self, client: Token, join: Join, now: Duration) -> Option<RoomEvent> {
        debug_assert!(!self.members.contains_key(&client), "a client joins once");
        let Join { username, room, client_id, credential, resume } = join;
        let claims = [(self.unique_key)(&username).map(Claim::Username), client_id.map(Claim::ClientId)];
        let holders = claims.each_ref().map(|claim| self.claims.get(claim.as_ref()?).copied());
        // A client may reconnect before the server notices that the old connection is dead. Any client can send `since`
        // and `epoch`, so a resuming client may take over a username only with the holder's credential.
        let may_replace = |holder: &Token| {
            let same_credential = credential.is_some() && self.members[holder].credential == credential;
            holders[1] == Some(*holder) || (resume.is_some() && same_credential)
        };
        if !self.rooms.has_place_for(&room) {
            return Some(RoomEvent::JoinRejected { client, error: BrokerError::TooManyRooms });
        }
        if holders[0].is_some_and(|holder| !may_replace(&holder)) {
            return Some(RoomEvent::JoinRejected { client, error: BrokerError::NameInUse });
        }
        // If one connection holds both the username and the client id, the second `leave` is a no-op.
        for holder in holders.into_iter().rev().flatten() {
            let left = self.leave(holder, now);
            self.events.extend(left);
        }
        let (to, backlog) = self.enter(&room, resume.as_ref(), now);
        self.present.insert((Rc::clone(&username), client));
        self.claims.extend(claims.iter().flatten().map(|claim| (claim.clone(), client)));
        self.members.insert(client, Box::new(Member { room: to, username, claims, credential }));
        Some(RoomEvent::Entered { client, from: None, to, backlog })
    }

    fn leave(&mut self, client: Token, now: Duration) -> Option<RoomEvent> {
        let Member { room, username, claims, .. } = *self.members.remove(&client)?;
        self.present.remove(&(username, client));
        claims.iter().flatten().for_each(|claim| _ = self.claims.remove(claim));
        self.rooms.remove_member(room, now);
        Some(RoomEvent::Left { room, member: MemberId::Local(client) })
    }

    fn switch(&mut self, client: Token, name: &Rc<str>, now: Duration) -> Option<RoomEvent> {
        let from = self.members.get(&client)?.room;
        if self.rooms.find(name) == Some(from) {
            return None;
        }
        // At the limit, only a room's last member may switch to a new room, because the old room then closes.
        if !self.rooms.has_place_for(name) && self.rooms.get(from).members > 1 {
            return Some(RoomEvent::Rejected { client, error: BrokerError::TooManyRooms, nonce: None });
        }
        // Join the new room before leaving the old one. Emptying the old room can evict the new room's saved history.
        let (to, backlog) = self.enter(name, None, now);
        self.rooms.remove_member(from, now);
        self.members.get_mut(&client)?.room = to;
        Some(RoomEvent::Entered { client, from: Some(from), to, backlog })
    }

    /// Adds a member to the room, and opens the room if this is its first member.
    fn enter(&mut self, name: &Rc<str>, resume: Option<&Resume>, now: Duration) -> (RoomId, Backlog) {
        let id = self.rooms.find(name).unwrap_or_else(|| {
            let room = self.rooms.open(name, now);
            self.events.push_back(RoomEvent::Opened { room, name: Rc::clone(name), members: Vec::new() });
            room
        });
        let room = self.rooms.get(id);
        room.members += 1;
        (id, room.log.backlog(resume))
    }

    fn publish(&mut self, client: Token, message: Message) -> Option<RoomEvent> {
        let room = self.authorize(client, &message.username, message.nonce.as_ref())?;
        if let Some(message) = self.rooms.get(room).log.find(&message) {
            return Some(RoomEvent::Duplicate { client, message: Rc::clone(message) });
        }
        self.rename(client, &message.username);
        Some(RoomEvent::Published { room, message: self.rooms.append(room, message) })
    }

    fn send_private(&mut self, client: Token, message: PrivateMessage) -> Option<RoomEvent> {
        self.authorize(client, &message.from, message.nonce.as_ref())?;
        let [first, last] = [0, usize::MAX].map(|number| (Rc::clone(&message.to), Token(number)));
        let mut recipients: Vec<Token> = self.present.range(first..=last).map(|(_, token)| *token).collect();
        if recipients.is_empty() {
            let error = BrokerError::NoSuchUser(message.to);
            return Some(RoomEvent::Rejected { client, error, nonce: message.nonce });
        }
        // The sender receives the message exactly once, even if the sender is also the recipient.
        recipients.retain(|recipient| *recipient != client);
        recipients.push(client);
        self.rename(client, &message.from);
        Some(RoomEvent::Private { recipients, message: Rc::new(message) })
    }

    /// Returns the client's room. `None` if the client has no room, or if another client holds the username.
    fn authorize(&mut self, client: Token, username: &str, nonce: Option<&Rc<str>>) -> Option<RoomId> {
        let member = self.members.get(&client)?;
        let holder = || (self.unique_key)(username).and_then(|key| self.claims.get(&Claim::Username(key)));
        // Test the cheap condition first: nearly every message has the username that the client already holds.
        if *member.username == *username || holder().is_none_or(|holder| *holder == client) {
            return Some(member.room);
        }
        self.events.push_back(RoomEvent::Rejected { client, error: BrokerError::NameInUse, nonce: nonce.cloned() });
        None
    }

    fn rename(&mut self, client: Token, username: &Rc<str>) {
        let Some(member) = self.members.get_mut(&client).filter(|member| member.username != *username) else { return };
        let before = std::mem::replace(&mut member.username, Rc::clone(username));
        self.present.remove(&(before, client));
        self.present.insert((Rc::clone(username), client));
        let claim = (self.unique_key)(username).map(Claim::Username);
        let before = std::mem::replace(&mut member.claims[0], claim.clone());
        before.and_then(|before| self.claims.remove(&before));
        self.claims.extend(claim.map(|claim| (claim, client)));
    }
}

impl Broker for MemoryBroker {
    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        let event = match request {
            Request::Join(join) => self.join(client, join, now),
            Request::Leave => self.leave(client, now),
            Request::Switch { room } => self.switch(client, &room, now),
            Request::Publish(message) => self.publish(client, message),
            Request::Private(message) => self.send_private(client, message),
            // Unlike a message, `typing` does not claim the username.
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

/// The rooms with members, and the empty rooms whose history is kept.
struct Rooms {
    rooms: RoomMap<Room>,
    ids: HashMap<Rc<str>, RoomId>,
    /// In eviction order: rooms without messages first, then the longest empty. A client that visits many new rooms
    /// and writes nothing must not evict the histories of other rooms.
    empty: BTreeSet<(bool, Duration, RoomId)>,
    last_id: u64,
    bytes: usize,
    limits: Limits,
    random: Random,
}

struct Room {
    name: Rc<str>,
    log: RoomLog,
    members: usize,
    emptied_at: Duration,
}

impl Rooms {
    fn find(&self, name: &str) -> Option<RoomId> {
        self.ids.get(name).copied().filter(|id| self.rooms[id].members > 0)
    }

    fn has_place_for(&self, name: &str) -> bool {
        self.rooms.len() - self.empty.len() < self.limits.rooms || self.find(name).is_some()
    }

    fn get(&mut self, room: RoomId) -> &mut Room {
        let Some(room) = self.rooms.get_mut(&room) else { unreachable!("a room with a member is open") };
        room
    }

    /// Restores the room's kept history, if any.
    fn open(&mut self, name: &Rc<str>, now: Duration) -> RoomId {
        let kept = self.ids.get(name).copied().and_then(|kept| self.remove(kept));
        // Drop an expired history here. No timer is needed, because `limits.bytes` already bounds the memory.
        let kept = kept.filter(|room| now.saturating_sub(room.emptied_at) <= self.limits.ttl);
        let log = kept.map(|room| room.log).unwrap_or_else(|| {
            // Random, to be unique across restarts: with a reused epoch, a client would resume in the wrong history.
            let mut epoch = [0; 8];
            (self.random)(&mut epoch);
            RoomLog::new(format!("{:016x}", u64::from_be_bytes(epoch)).into())
        });
        self.last_id += 1;
        let id = RoomId(self.last_id);
        self.bytes += log.bytes;
        self.ids.insert(Rc::clone(name), id);
        self.rooms.insert(id, Room { name: Rc::clone(name), log, members: 0, emptied_at: now });
        id
    }

    fn remove_member(&mut self, id: RoomId, now: Duration) {
        let room = self.get(id);
        room.members -= 1;
        if room.members == 0 {
            room.emptied_at = now;
            let has_messages = room.log.last_id > 0;
            self.empty.insert((has_messages, now, id));
        }
        while self.empty.len() > self.limits.empty_rooms {
            self.evict_first();
        }
    }

    fn append(&mut self, id: RoomId, message: Message) -> Rc<Message> {
        let (limit, added) = (self.limits.messages, size(&message));
        let log = &mut self.get(id).log;
        let message = log.append(message);
        let freed = if log.messages.len() > limit { log.drop_oldest() } else { 0 };
        self.bytes = self.bytes + added - freed;
        // Evict empty rooms first, then shrink the largest history: a busy room must not evict a quiet room's history.
        while self.bytes > self.limits.bytes && self.evict_first() {}
        while self.bytes > self.limits.bytes {
            let Some(Room { log, .. }) = self.rooms.values_mut().max_by_key(|room| room.log.bytes) else { break };
            self.bytes -= log.drop_oldest();
        }
        message
    }

    fn evict_first(&mut self) -> bool {
        self.empty.first().copied().and_then(|(.., id)| self.remove(id)).is_some()
    }

    fn remove(&mut self, id: RoomId) -> Option<Room> {
        let room = self.rooms.remove(&id)?;
        self.ids.remove(&room.name);
        self.empty.remove(&(room.log.last_id > 0, room.emptied_at, id));
        self.bytes -= room.log.bytes;
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: Limits = Limits { messages: 50, bytes: 1 << 24, rooms: 1000, empty_rooms: 1000, ttl: HOUR };

    fn broker(limits: Limits) -> MemoryBroker {
        let mut number = 0_u64;
        let random = Box::new(move |bytes: &mut [u8]| {
            number += 1;
            bytes.copy_from_slice(&number.to_be_bytes());
        });
        let unique_key = |username: &str| (!username.starts_with("user")).then(|| username.into());
        MemoryBroker::new(limits, random, unique_key)
    }

    fn join(client: usize, room: &str) -> Join {
        let username = format!("user{client}").into();
        Join { username, room: room.into(), client_id: None, credential: None, resume: None }
    }

    fn message(username: &str, text: &str) -> Message {
        Message { username: username.into(), text: text.into(), id: 0, time: "t".into(), nonce: None }
    }

    fn enter(broker: &mut MemoryBroker, client: usize, room: &str, now: Duration) -> Backlog {
        broker.submit(Token(client), Request::Join(join(client, room)), now);
        let backlog = events(broker).into_iter().find_map(|event| match event {
            RoomEvent::Entered { backlog, .. } => Some(backlog),
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
    fn an_empty_room_keeps_its_history_for_a_while_and_then_starts_a_new_one() {
        for (absence, same) in [(HOUR, true), (HOUR + Duration::from_secs(1), false)] {
            let mut broker = broker(LIMITS);
            let before = enter(&mut broker, 1, "r", NOW);
            publish(&mut broker, 1, "one");
            leave(&mut broker, 1, NOW);
            let after = enter(&mut broker, 2, "r", absence);
            assert_eq!((after.epoch == before.epoch, after.last_id == 1), (same, same), "after {absence:?}");
        }
    }

    #[test]
    fn empty_rooms_are_bounded_and_the_oldest_is_evicted_first() {
        let mut broker = broker(Limits { empty_rooms: 2, ..LIMITS });
        for (number, is_used) in [(0, false), (1, true), (2, true), (3, false), (4, true)] {
            enter(&mut broker, number, &number.to_string(), NOW);
            if is_used {
                publish(&mut broker, number, "x");
            }
            leave(&mut broker, number, NOW);
        }
        let mut kept: Vec<_> = broker.rooms.rooms.values().map(|room| room.name.to_string()).collect();
        kept.sort();
        assert_eq!(kept, ["2", "4"], "0 and 3 had no message, and 1 was the oldest");
    }

    #[test]
    fn bytes_are_bounded_and_empty_rooms_pay_first() {
        let mut broker = broker(Limits { messages: 1000, bytes: 10_000, ..LIMITS });
        enter(&mut broker, 1, "empty", NOW);
        publish(&mut broker, 1, &"x".repeat(1000));
        leave(&mut broker, 1, NOW);
        enter(&mut broker, 2, "busy", NOW);
        for _ in 0..100 {
            publish(&mut broker, 2, &"y".repeat(100));
            assert!(broker.rooms.bytes <= 10_000);
        }
        assert!(broker.rooms.empty.is_empty());
        assert!(enter(&mut broker, 3, "busy", NOW).messages.len() > 20);
        enter(&mut broker, 4, "quiet", NOW);
        publish(&mut broker, 4, "one");
        for _ in 0..100 {
            publish(&mut broker, 2, &"y".repeat(100));
        }
        assert_eq!(texts(&enter(&mut broker, 5, "quiet", NOW)), ["one"], "the room that holds most drops messages");
        (2..=5).for_each(|client| leave(&mut broker, client, NOW));
        while broker.rooms.evict_first() {}
        assert_eq!(broker.rooms.bytes, 0, "evicted bytes are subtracted");
    }

    #[test]
    fn without_history_ids_still_count() {
        let mut broker = broker(Limits { messages: 0, ..LIMITS });
        let empty = enter(&mut broker, 1, "r", NOW);
        assert_eq!((publish(&mut broker, 1, "one"), publish(&mut broker, 1, "two")), (1, 2));
        let resume = |client, since| {
            let resume = Some(Resume { epoch: empty.epoch.to_string(), since });
            Request::Join(Join { resume, ..join(client, "r") })
        };
        for (client, since, resumed) in [(2, 2, true), (3, 1, false)] {
            broker.submit(Token(client), resume(client, since), NOW);
            let [RoomEvent::Entered { backlog, .. }] = &events(&mut broker)[..] else { panic!() };
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
        assert_eq!(broker.claims.len(), 2, "a name and a client id");
        assert!(broker.claims.contains_key(&Claim::Username("other".into())), "the name before is free");
        leave(&mut broker, 1, NOW);
        assert!(broker.members.is_empty() && broker.present.is_empty());
        assert_eq!(broker.rooms.rooms.len(), broker.rooms.empty.len());
        assert!(broker.claims.is_empty());
        leave(&mut broker, 1, NOW);
        broker.submit(Token(1), Request::Typing { username: "other".into() }, NOW);
        assert!(events(&mut broker).is_empty(), "requests of a client that has left are dropped");
    }

    #[test]
    fn a_newer_connection_replaces_the_holders_of_its_client_id_and_of_its_name() {
        let mut broker = broker(LIMITS);
        broker.submit(Token(1), Request::Join(Join { client_id: Some("id".into()), ..join(1, "a") }), NOW);
        let held = Join { username: "name".into(), credential: Some(7), ..join(2, "b") };
        broker.submit(Token(2), Request::Join(held.clone()), NOW);
        events(&mut broker);
        let resume = Some(Resume { epoch: "any".into(), since: 0 });
        let newer = Join { client_id: Some("id".into()), resume, ..held.clone() };
        for join in [Join { resume: None, ..newer.clone() }, Join { credential: None, ..newer.clone() }] {
            broker.submit(Token(3), Request::Join(join), NOW);
            let [RoomEvent::JoinRejected { error: BrokerError::NameInUse, .. }] = &events(&mut broker)[..] else {
                panic!("only the same credential resumes under the same name");
            };
        }
        broker.submit(Token(3), Request::Join(newer), NOW);
        let events = events(&mut broker);
        let replaced = |event: &RoomEvent, client| matches!(event, RoomEvent::Left { member: MemberId::Local(Token(left)), .. } if *left == client);
        assert!(replaced(&events[0], 1) && replaced(&events[1], 2), "{events:?}");
        assert!(matches!(events.last(), Some(RoomEvent::Entered { .. })));
    }
}
