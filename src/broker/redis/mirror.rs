//! The state of the rooms and of this instance's clients, as of the last entry read from the instance's inbox.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use mio::Token;

use super::super::memory::BrokerLimits;
use super::super::{Backlog, BrokerError, Join, MemberId, Message, Page, PrivateMessage, RoomEvent, Session, User};
use super::inbox::{InboxEvent, MessageWithoutId};
use super::rooms::Rooms;
use crate::maps::TokenMap;

pub struct Mirror {
    instance: u32,
    limits: BrokerLimits,
    pub clients: TokenMap<Box<Client>>,
    client_ids: HashMap<Rc<str>, Token>,
    pub rooms: Rooms,
    opened: HashMap<Rc<str>, (User, usize)>, // per room: who opened it, and the number of clients in it or joining it
    pub events: VecDeque<RoomEvent>,
}

/// A client connected to this instance. For clients of other instances, the mirror stores only an id and a username.
pub struct Client {
    pub room: Option<Rc<str>>, // `None` until the client's join takes effect
    pub target: Rc<str>,       // the client's room once all its requests have taken effect
    pub join: Join,
    pub session: Session,
    pub username: Rc<str>, // the username in the client's last message; before the first message, the one in its join
    pub is_leaving: bool,
    pub is_hidden: bool, // the join timed out and was rejected, but Redis may still execute it
}

impl Mirror {
    pub fn new(instance: u32, limits: BrokerLimits) -> Mirror {
        let (clients, client_ids, opened) = (TokenMap::default(), HashMap::new(), HashMap::new());
        Mirror { instance, limits, clients, client_ids, rooms: Rooms::default(), opened, events: VecDeque::new() }
    }

    /// Adds a client before Redis has executed the client's join request.
    pub fn add(&mut self, client: Token, join: Join, session: Session) {
        self.increment_client_count(&join.room, &join.user);
        self.client_ids.extend(join.client_id.iter().map(|id| (Rc::clone(id), client)));
        let (room, username) = (Rc::clone(&join.room), Rc::clone(&join.username));
        let record = Client { room: None, target: room, join, session, username, is_leaving: false, is_hidden: false };
        self.clients.insert(client, Box::new(record));
    }

    /// The clients that are members of a room, oldest first.
    pub fn members(&self) -> Vec<Token> {
        let members = self.clients.iter().filter(|(_, record)| record.room.is_some());
        let mut members: Vec<Token> = members.map(|(client, _)| *client).collect();
        members.sort_unstable();
        members
    }

    /// Removes members that are leaving, or whose join was rejected after a timeout. Redis may still list them as
    /// members, because it has not executed their leave requests. Without this step, a rejoin would keep them.
    pub fn remove_leaving(&mut self) {
        for client in self.members() {
            if self.clients.get(&client).is_some_and(|record| record.is_leaving || record.is_hidden) {
                self.remove_local(client);
            }
        }
    }

    /// Whether another user's client already uses the client id in `join`.
    pub fn is_client_id_in_use(&self, join: &Join) -> bool {
        let older = join.client_id.as_ref().and_then(|id| self.clients.get(self.client_ids.get(id)?));
        older.is_some_and(|older| {
            older.join.credential != join.credential || (join.is_bound && older.username != join.username)
        })
    }

    /// Whether the client is alone in a room, other than the default room, that its user opened. A switch to another
    /// room then closes this room, so the client may open a new room even if a room limit has been reached.
    pub fn switch_frees_room(&self, record: &Client) -> bool {
        let opened = self.opened.get(&record.target);
        opened.is_some_and(|(opener, count)| *count == 1 && *opener == record.join.user)
            && *record.target != *self.limits.default_room
    }

    pub fn apply(&mut self, event: InboxEvent) {
        match event {
            InboxEvent::Executed(_) => {} // this event only confirms a request, and changes neither rooms nor clients
            InboxEvent::Failed(error) => log::error!("REDIS a request failed: {error}"),
            InboxEvent::Renewed(name, epoch) => {
                self.rooms.synced_room_mut(&name).into_iter().for_each(|room| room.epoch = Rc::clone(&epoch));
            }
            InboxEvent::Opened(name, members) => {
                let members = self.remote_members(members);
                self.rooms.open(name, members);
            }
            InboxEvent::Joined(client, from, to, epoch, last_id, resumed, messages) => {
                let backlog = Backlog { epoch, last_id, resumed, messages: with_ids(messages) };
                self.apply_join(token(client), from, &to, backlog);
            }
            InboxEvent::JoinRejected(client) => self.reject_join(token(client)),
            InboxEvent::Arrived(name, instance, connection, username) => {
                let (room, member) = (self.rooms.synced_room_mut(&name), MemberId::Remote { instance, connection });
                self.events.extend(room.and_then(|room| room.add_remote_member(member, username)));
            }
            InboxEvent::Left(_, instance, client) if instance == self.instance => self.remove_local(token(client)),
            InboxEvent::Left(name, instance, connection) => {
                let (room, member) = (self.rooms.synced_room_mut(&name), MemberId::Remote { instance, connection });
                self.events.extend(room.and_then(|room| room.remove_remote_member(member)));
            }
            InboxEvent::Message(name, instance, client, id, payload) => {
                let client = (instance == self.instance).then_some(token(client));
                self.apply_message(&name, client, payload.with_id(id));
            }
            InboxEvent::Announced(name, _, client, id, payload) => {
                self.apply_announcement(&name, token(client), payload.with_id(id));
            }
            InboxEvent::Duplicate(client, id, payload) => {
                let message = Rc::new(payload.with_id(id));
                self.events.push_back(RoomEvent::Duplicate { client: token(client), message });
            }
            InboxEvent::Private(recipients, message, sender) => self.apply_private_message(recipients, message, sender),
            InboxEvent::Page(client, room, before, more, messages) => {
                let page = Page { room, before, messages: with_ids(messages), more };
                self.events.push_back(RoomEvent::History { client: token(client), page });
            }
            InboxEvent::Typing(name, instance, client, username) => {
                let client = (instance == self.instance).then_some(token(client));
                let room = self.rooms.synced_room_mut(&name).filter(|room| room.is_visible());
                self.events.extend(room.map(|room| RoomEvent::Typing { room: room.id, client, username }));
            }
            InboxEvent::Rejected(client, reason, detail, nonce) => {
                let error = parse_error(&reason, detail);
                self.events.push_back(RoomEvent::Rejected { client: token(client), error, nonce });
            }
            InboxEvent::Synced(name, epoch, last_id, resumed, messages, members) => {
                let backlog = Backlog { epoch, last_id, resumed, messages: with_ids(messages) };
                let members = self.remote_members(members);
                self.apply_sync(&name, backlog, members);
            }
        }
    }

    fn reject_join(&mut self, client: Token) {
        debug_assert!(self.clients.get(&client).is_none_or(|record| record.room.is_none()), "a member gets `left`");
        if self.forget(client) {
            self.events.push_back(RoomEvent::JoinRejected { client, error: BrokerError::NameInUse });
        }
    }

    fn apply_join(&mut self, client: Token, from: Option<Rc<str>>, to: &Rc<str>, backlog: Backlog) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        if record.room.is_some() && from.is_none() {
            return; // a second reply to a join that was sent twice
        }
        let (is_visible, session) = (!record.is_hidden, record.session);
        record.room = Some(Rc::clone(to));
        let opened = self.rooms.join(to, is_visible);
        let Some(room) = self.rooms.by_name.get_mut(to) else { return };
        (room.epoch, room.last_id) = (Rc::clone(&backlog.epoch), backlog.last_id);
        let id = room.id;
        self.events.extend(opened);
        let from_id = from.as_ref().and_then(|from| self.rooms.by_name.get(from)).map(|room| room.id);
        from.into_iter().for_each(|from| self.rooms.leave(&from, is_visible));
        if is_visible {
            self.events.push_back(RoomEvent::Joined { client, session, from: from_id, to: id, backlog });
        }
    }

    fn apply_message(&mut self, name: &str, client: Option<Token>, message: Message) {
        let sender = client.and_then(|client| self.clients.get_mut(&client));
        sender.into_iter().for_each(|record| record.username = Rc::clone(&message.username));
        let Some(room) = self.rooms.synced_room_mut(name).filter(|room| message.id > room.last_id) else { return };
        debug_assert_eq!(message.id, room.last_id + 1, "ids are consecutive");
        room.last_id = message.id;
        if room.is_visible() {
            let published = RoomEvent::Published { room: room.id, client, message: Rc::new(message) };
            self.events.push_back(published);
        }
    }

    /// Queues the events for a message from the operator. If the chat does not know the room, opens the room just for
    /// this message, because the operator gets a reply only if the chat publishes the message.
    fn apply_announcement(&mut self, name: &Rc<str>, client: Token, message: Message) {
        let message = Rc::new(message);
        if let Some(room) = self.rooms.by_name.get_mut(name) {
            room.last_id = room.last_id.max(message.id);
            if room.is_visible() {
                return self.events.push_back(RoomEvent::Published { room: room.id, client: Some(client), message });
            }
        }
        let (room, members) = (self.rooms.next_id(), Vec::new());
        self.events.extend([
            RoomEvent::Opened { room, name: Rc::clone(name), members },
            RoomEvent::Published { room, client: Some(client), message },
            RoomEvent::Closed { room },
        ]);
    }

    fn apply_private_message(&mut self, recipients: Vec<u64>, message: PrivateMessage, sender: Option<u64>) {
        let sender = sender.and_then(|client| self.clients.get_mut(&token(client)));
        sender.into_iter().for_each(|record| record.username = Rc::clone(&message.from));
        let is_member =
            |client: &Token| self.clients.get(client).is_some_and(|record| record.room.is_some() && !record.is_hidden);
        let recipients: Vec<Token> = recipients.into_iter().map(token).filter(is_member).collect();
        self.events.push_back(RoomEvent::Private { recipients, message: Rc::new(message) });
    }

    /// Brings a room up to date after this instance may have missed events. Queues the missed events, or one
    /// `Resynchronized` event if Redis could not supply all missed messages.
    fn apply_sync(&mut self, name: &Rc<str>, backlog: Backlog, members: BTreeMap<MemberId, Rc<str>>) {
        let Some(room) = self.rooms.by_name.get_mut(name) else { return };
        (room.is_synced, room.epoch, room.last_id) = (true, Rc::clone(&backlog.epoch), backlog.last_id);
        let changes = room.replace_remote_members(members);
        if !room.is_visible() {
            return;
        }
        let id = room.id;
        if backlog.resumed {
            self.events.extend(changes);
            let published = |message| RoomEvent::Published { room: id, client: None, message };
            self.events.extend(backlog.messages.into_iter().map(published));
        } else {
            let members = room.remote_members();
            self.events.push_back(RoomEvent::Resynchronized { room: id, members, backlog });
        }
    }

    fn remote_members(&self, members: Vec<(u32, u64, Rc<str>)>) -> BTreeMap<MemberId, Rc<str>> {
        let remote = members.into_iter().filter(|(instance, ..)| *instance != self.instance);
        remote.map(|(instance, connection, username)| (MemberId::Remote { instance, connection }, username)).collect()
    }

    /// Removes a client of this instance from its room. Queues `Left` if the chat knew the client as a member. Does
    /// nothing if the client's join is pending: Redis has removed the client, but will execute the join again.
    pub fn remove_local(&mut self, client: Token) {
        let Some(record) = self.clients.get(&client) else { return };
        let (Some(name), is_visible) = (record.room.clone(), !record.is_hidden) else { return };
        self.forget(client);
        let id = self.rooms.by_name.get(&name).map(|room| room.id);
        self.rooms.leave(&name, is_visible);
        if let Some(room) = id.filter(|_| is_visible) {
            self.events.push_back(RoomEvent::Left { room, member: MemberId::Local(client) });
        }
    }

    pub fn may_open(&self, room: &Rc<str>, user: &User) -> bool {
        let is_open = || self.opened.contains_key(room);
        let by_user = || self.opened.values().filter(|(opener, _)| opener == user).count();
        **room == *self.limits.default_room
            || is_open()
            || (self.opened.len() < self.limits.max_rooms && by_user() < self.limits.max_rooms_per_user)
    }

    fn increment_client_count(&mut self, room: &Rc<str>, user: &User) {
        self.opened.entry(Rc::clone(room)).or_insert_with(|| (user.clone(), 0)).1 += 1;
    }

    fn decrement_client_count(&mut self, room: &Rc<str>) {
        if let Some((_, count)) = self.opened.get_mut(room) {
            *count -= 1;
            if *count == 0 {
                self.opened.remove(room);
            }
        }
    }

    pub fn set_target(&mut self, client: Token, room: &Rc<str>) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        let (before, user) = (std::mem::replace(&mut record.target, Rc::clone(room)), record.join.user.clone());
        self.increment_client_count(room, &user);
        self.decrement_client_count(&before);
    }

    /// Removes a client. Returns `false` if no such client exists, or if its join was rejected after a timeout.
    pub fn forget(&mut self, client: Token) -> bool {
        let Some(record) = self.clients.remove(&client) else { return false };
        self.decrement_client_count(&record.target);
        let client_id = record.join.client_id.filter(|id| self.client_ids.get(id) == Some(&client));
        client_id.and_then(|id| self.client_ids.remove(&id));
        !record.is_hidden
    }
}

fn parse_error(reason: &str, detail: Rc<str>) -> BrokerError {
    match reason {
        "nobody" => BrokerError::NoSuchUser(detail),
        "rooms" => BrokerError::TooManyRooms,
        _ => BrokerError::NameInUse,
    }
}

fn token(client: u64) -> Token {
    Token(usize::try_from(client).unwrap_or(usize::MAX))
}

fn with_ids(messages: Vec<(u64, MessageWithoutId)>) -> Vec<Rc<Message>> {
    messages.into_iter().map(|(id, payload)| Rc::new(payload.with_id(id))).collect()
}
