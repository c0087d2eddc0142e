//! The rooms with members on this instance, as of the last event that the instance read from its inbox in Redis.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::{MemberId, RoomEvent, RoomId};

pub struct Room {
    pub id: RoomId, // used only within this instance; each `RoomEvent::Opened` has a new id
    pub epoch: Rc<str>,
    pub last_id: u64,
    pub is_synced: bool, // false while a `sync` request is pending: this instance may have missed events
    remote: BTreeMap<MemberId, Rc<str>>,
    visible: usize, // number of this instance's clients in the room, not counting the `hidden` ones
    hidden: usize,  // number of clients whose joins expired before Redis executed them; they will leave
}

#[derive(Default)]
pub struct Rooms {
    pub by_name: HashMap<Rc<str>, Room>,
    last_id: u64,
}

impl Rooms {
    /// Creates a room for the join that follows, unless the room exists.
    pub fn open(&mut self, name: Rc<str>, remote: BTreeMap<MemberId, Rc<str>>) {
        let (id, epoch) = (RoomId(0), "".into());
        let room = Room { id, epoch, last_id: 0, is_synced: true, remote, visible: 0, hidden: 0 };
        self.by_name.entry(name).or_insert(room);
    }

    /// Adds one of this instance's clients to the room `name`. If the client is the instance's first visible one in the
    /// room, returns an `Opened` event, which tells the chat about the room.
    pub fn join(&mut self, name: &Rc<str>, is_visible: bool) -> Option<RoomEvent> {
        let room = self.by_name.get_mut(name)?;
        if !is_visible {
            room.hidden += 1;
            return None;
        }
        room.visible += 1;
        let opened = room.visible == 1;
        opened.then(|| {
            self.last_id += 1;
            room.id = RoomId(self.last_id);
            RoomEvent::Opened { room: room.id, name: Rc::clone(name), members: room.remote_members() }
        })
    }

    pub fn leave(&mut self, name: &str, is_visible: bool) {
        let Some(room) = self.by_name.get_mut(name) else { return };
        *(if is_visible { &mut room.visible } else { &mut room.hidden }) -= 1;
        if room.visible + room.hidden == 0 {
            self.by_name.remove(name);
        }
    }

    /// Returns the room, or `None` if the room is unknown or this instance may have missed some of its events.
    pub fn synced_room_mut(&mut self, name: &str) -> Option<&mut Room> {
        self.by_name.get_mut(name).filter(|room| room.is_synced)
    }

    /// Marks all rooms as not synced. Returns the name, the epoch and the last message id of each room.
    pub fn start_sync(&mut self) -> Vec<(Rc<str>, Rc<str>, u64)> {
        self.by_name.values_mut().for_each(|room| room.is_synced = false);
        let rooms = self.by_name.iter();
        let rooms = rooms.map(|(name, room)| (Rc::clone(name), Rc::clone(&room.epoch), room.last_id));
        let mut rooms: Vec<_> = rooms.collect();
        rooms.sort_unstable(); // a hash map has a random order, but simulations must be reproducible
        rooms
    }

    pub fn next_id(&mut self) -> RoomId {
        self.last_id += 1;
        RoomId(self.last_id)
    }
}

impl Room {
    pub fn is_visible(&self) -> bool {
        self.visible > 0
    }

    pub fn remote_members(&self) -> Vec<(MemberId, Rc<str>)> {
        self.remote.iter().map(|(member, username)| (*member, Rc::clone(username))).collect()
    }

    /// Adds a member on another instance. Returns an event if the member is new and the chat knows the room.
    pub fn add_remote_member(&mut self, member: MemberId, username: Rc<str>) -> Option<RoomEvent> {
        let is_new = self.remote.insert(member, Rc::clone(&username)).is_none();
        (is_new && self.is_visible()).then_some(RoomEvent::RemoteJoined { room: self.id, member, username })
    }

    pub fn remove_remote_member(&mut self, member: MemberId) -> Option<RoomEvent> {
        let was_member = self.remote.remove(&member).is_some();
        (was_member && self.is_visible()).then_some(RoomEvent::Left { room: self.id, member })
    }

    /// Replaces the list of the room's members on other instances. Returns an event for each added or removed member,
    /// or no events if this instance has no visible client in the room.
    pub fn replace_remote_members(&mut self, members: BTreeMap<MemberId, Rc<str>>) -> Vec<RoomEvent> {
        let gone: Vec<MemberId> = self.remote.keys().filter(|member| !members.contains_key(member)).copied().collect();
        let left: Vec<_> = gone.into_iter().filter_map(|member| self.remove_remote_member(member)).collect();
        let joined = members.into_iter().filter_map(|(member, username)| self.add_remote_member(member, username));
        left.into_iter().chain(joined.collect::<Vec<_>>()).collect()
    }
}
