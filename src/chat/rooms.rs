//! The tables of who is in which room, and in how many dialects a room is to be told.
//!
//! ```text
//!   by name      by number    members by token    who speak
//!   general   ─▶ 1         ─▶ 2, 3                Events
//!   rust      ─▶ 2         ─▶ 4                   Rooms
//! ```
//!
//! A room is made by its first member and gone with its last. This file knows members as tokens; names and history are
//! kept elsewhere.
//!
//! The subtle thing: how many speak a dialect is counted as members come and go, because a message is written once for
//! each dialect that is spoken, and to find that out by asking every member would cost as much as telling them.

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
    pub fn open(&mut self, name: Rc<str>) -> RoomId {
        debug_assert!(self.find(&name).is_none());
        self.so_far += 1;
        let id = RoomId(self.so_far);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_true() {
        let mut rooms = Rooms::default();
        let (general, rust) = (rooms.open("general".into()), rooms.open("rust".into()));
        let members = [(general, 2, Dialect::Events), (general, 3, Dialect::Events), (rust, 4, Dialect::Rooms)];
        members.into_iter().for_each(|(room, token, dialect)| rooms.enter(room, Token(token), dialect));
        let mut picture = "  by name      by number    members by token    who speak".to_owned();
        for name in ["general", "rust"] {
            let id = rooms.find(name).unwrap();
            let room = rooms.get(id).unwrap();
            let mut tokens: Vec<_> = room.members().map(|(token, _)| token.0.to_string()).collect();
            tokens.sort();
            let dialects: Vec<_> = room.dialects().map(|dialect| format!("{dialect:?}")).collect();
            picture += &format!("\n  {name:9} ─▶ {:<9} ─▶ {:20}{}", id.0, tokens.join(", "), dialects.join(", "));
        }
        crate::pictures::assert_drawn(include_str!("rooms.rs"), &picture);
        assert!(rooms.exit(rust, Token(4)) && rooms.find("rust").is_none() && rooms.get(rust).is_none());
        assert!(!rooms.exit(general, Token(2)) && rooms.open("rust".into()) != rust, "a number is never used again");
    }
}
