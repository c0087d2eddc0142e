//! The tables of who is in which room, and in how many dialects a room is to be told.
//!
//! A room is made by its first member and gone with its last. This file knows members as tokens; names and history are
//! kept elsewhere.

use std::collections::HashMap;
use std::rc::Rc;

use mio::Token;

use super::dialect::Dialect;
use super::{RoomId, RoomMap, TokenMap};

/// All rooms that have members.
#[derive(Debug, Default)]
pub struct Rooms {
    rooms: RoomMap<Room>,
    ids: HashMap<Rc<str>, RoomId>,
    so_far: u64,
}

/// A room.
#[derive(Debug)]
pub struct Room {
    /// Its name.
    pub name: Rc<str>,
    members: TokenMap<Dialect>,
    /// How many members speak each dialect.
    speakers: [usize; Dialect::ALL.len()],
}

impl Rooms {
    /// How many rooms there are.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// The room of this name.
    pub fn find(&self, name: &str) -> Option<RoomId> {
        self.ids.get(name).copied()
    }

    /// A room.
    pub fn get(&self, id: RoomId) -> Option<&Room> {
        self.rooms.get(&id)
    }

    /// Makes a room of a name that no room has.
    pub fn open(&mut self, name: &str) -> RoomId {
        debug_assert!(self.find(name).is_none());
        self.so_far += 1;
        let (id, name) = (RoomId(self.so_far), Rc::from(name));
        self.ids.insert(Rc::clone(&name), id);
        self.rooms.insert(id, Room { name, members: TokenMap::default(), speakers: [0; Dialect::ALL.len()] });
        id
    }

    /// Puts a client into a room.
    pub fn enter(&mut self, id: RoomId, token: Token, dialect: Dialect) {
        let Some(room) = self.rooms.get_mut(&id) else { return };
        let was_there = room.members.insert(token, dialect);
        debug_assert_eq!(was_there, None, "a client is in a room once");
        room.speakers[dialect as usize] += 1;
    }

    /// Takes a client out of a room. `true`: it was the last, and the room is gone.
    pub fn exit(&mut self, id: RoomId, token: Token) -> bool {
        let Some(room) = self.rooms.get_mut(&id) else { return false };
        let was_there = room.members.remove(&token);
        debug_assert!(was_there.is_some(), "a client is a member of its room");
        if let Some(dialect) = was_there {
            room.speakers[dialect as usize] -= 1;
        }
        if !room.members.is_empty() {
            return false;
        }
        if let Some(room) = self.rooms.remove(&id) {
            self.ids.remove(&room.name);
        }
        debug_assert_eq!(self.rooms.len(), self.ids.len());
        true
    }
}

impl Room {
    /// Who is there, in no order.
    pub fn members(&self) -> impl Iterator<Item = (Token, Dialect)> {
        self.members.iter().map(|(token, dialect)| (*token, *dialect))
    }

    /// How many are there.
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// The dialects that are spoken there.
    pub fn dialects(&self) -> impl Iterator<Item = Dialect> {
        Dialect::ALL.into_iter().filter(|dialect| self.speakers[*dialect as usize] > 0)
    }
}
