//! What was said in each room during this turn of the loop, as frames, ready to be shared.
//!
//! A room has one growing batch, which is sent to every member at the end of the turn: many messages cost a member one
//! write. This file knows rooms and tokens as numbers, no sockets.
//!
//! When "one" was said, then a word to alice alone, then "two":
//!
//! ```text
//!   mark        before         at the end of the turn
//!   alice  46   one            two
//!   bob    0                   one, two
//! ```
//!
//! The subtle thing: not everyone is to read a batch from its start. A newcomer must not see what was said before it
//! came; a member that is sent a word of its own in the middle of a turn is first given the batch so far, and must not
//! get that again; and a `joined` is for the others only. All three are one thing: a *mark*, up to which a member has
//! read. Nobody has one in the common case.

use std::collections::VecDeque;

use mio::Token;

use crate::chat::command::Notice;
use crate::chat::dialect::Dialect;
use crate::chat::{RoomId, RoomMap, TokenMap};
use crate::ws::frame::{self, Opcode};

/// A batch that passes this many bytes is sent without waiting for the end of the turn, so that the outboxes it is
/// queued in meet the kernel before they meet their bound.
const FULL: usize = 64 * 1024;
/// How many buffers of past turns are kept for the next ones.
const SPARE: usize = 64;

/// The batches of this turn.
#[derive(Debug, Default)]
pub struct Batches {
    rooms: RoomMap<Batch>,
    /// The rooms in the order in which they were first told something. Whose batch was full may be gone.
    order: VecDeque<RoomId>,
    spare: Vec<Batch>,
    json: Vec<u8>,
}

/// What was said in one room, in each dialect that is spoken there.
#[derive(Debug, Default)]
pub struct Batch {
    frames: [Vec<u8>; Dialect::ALL.len()],
    marks: TokenMap<usize>,
}

impl Batch {
    /// All frames of a dialect.
    pub fn frames(&self, dialect: Dialect) -> &[u8] {
        &self.frames[dialect as usize]
    }

    /// How much of its dialect's frames a member has read already.
    pub fn mark(&self, member: Token) -> usize {
        // Nearly always nobody has a mark, and then nothing is looked up.
        if self.marks.is_empty() { 0 } else { self.marks.get(&member).copied().unwrap_or(0) }
    }
}

impl Batches {
    /// Appends a notice to what a room is told, in these dialects. `true`: the batch is full and should be sent now.
    pub fn append(&mut self, room: RoomId, dialects: impl Iterator<Item = Dialect>, notice: &Notice) -> bool {
        let Batches { rooms, order, spare, json } = self;
        let batch = rooms.entry(room).or_insert_with(|| {
            order.push_back(room);
            spare.pop().unwrap_or_default()
        });
        let mut is_full = false;
        for dialect in dialects {
            let frames = &mut batch.frames[dialect as usize];
            write_frame(dialect, notice, json, frames);
            is_full |= frames.len() > FULL;
        }
        is_full
    }

    /// Writes one notice as a frame to the end of `out`.
    pub fn write_frame(&mut self, dialect: Dialect, notice: &Notice, out: &mut Vec<u8>) {
        write_frame(dialect, notice, &mut self.json, out);
    }

    /// Brings a member up to date: returns what it has not read, and counts that as read.
    pub fn catch_up(&mut self, room: RoomId, member: Token, dialect: Dialect) -> &[u8] {
        let Some(batch) = self.rooms.get_mut(&room) else { return &[] };
        let frames = &batch.frames[dialect as usize];
        let start = batch.marks.insert(member, frames.len()).unwrap_or(0);
        &frames[start..]
    }

    /// Takes the batch of a room.
    pub fn take(&mut self, room: RoomId) -> Option<Batch> {
        self.rooms.remove(&room)
    }

    /// Takes the batch of a room, of those left the one that was first told something in this turn.
    pub fn take_next(&mut self) -> Option<(RoomId, Batch)> {
        let Batches { rooms, order, .. } = self;
        std::iter::from_fn(|| order.pop_front()).find_map(|room| Some((room, rooms.remove(&room)?)))
    }

    /// Whether no room has a batch.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Gives a batch back when it is sent, so that its buffer can be used again.
    pub fn recycle(&mut self, mut batch: Batch) {
        let size: usize = batch.frames.iter().map(Vec::capacity).sum();
        if self.spare.len() < SPARE && size <= 2 * FULL {
            batch.frames.iter_mut().for_each(Vec::clear);
            batch.marks = TokenMap::default();
            self.spare.push(batch);
        }
    }
}

/// `json` is a buffer to use: the length of a payload must be known before its frame can begin.
fn write_frame(dialect: Dialect, notice: &Notice, json: &mut Vec<u8>, out: &mut Vec<u8>) {
    json.clear();
    dialect.write(notice, json);
    if !json.is_empty() {
        frame::append(out, Opcode::Text, json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::rooms::Rooms;

    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);
    const EVENTS: Dialect = Dialect::Events;

    fn room() -> RoomId {
        Rooms::default().open("r".into())
    }

    fn joined(username: &str) -> Notice {
        Notice::Joined { username: username.into(), members: Vec::new() }
    }

    fn frame(username: &str) -> Vec<u8> {
        let json = format!(r#"{{"event":"joined","data":{{"username":"{username}"}}}}"#);
        [&[0x81, json.len() as u8], json.as_bytes()].concat()
    }

    #[test]
    fn the_picture_is_true() {
        let (mut batches, room) = (Batches::default(), room());
        batches.append(room, [EVENTS].into_iter(), &joined("one"));
        let said_before = batches.catch_up(room, ALICE, EVENTS).to_vec();
        batches.append(room, [EVENTS].into_iter(), &joined("two"));
        let batch = batches.take(room).unwrap();
        let all = batch.frames(EVENTS);
        let words = |frames: &[u8]| {
            let text = String::from_utf8_lossy(frames);
            ["one", "two"].into_iter().filter(|name| text.contains(name)).collect::<Vec<_>>().join(", ")
        };
        let mut picture = format!("  {:12}{:15}at the end of the turn", "mark", "before");
        for (name, token, before) in [("alice", ALICE, &said_before[..]), ("bob", BOB, b"")] {
            let mark = batch.mark(token);
            picture += &format!("\n  {name:7}{mark:<5}{:15}{}", words(before), words(&all[mark..]));
        }
        crate::pictures::assert_drawn(include_str!("batch.rs"), &picture);
    }

    #[test]
    fn everyone_reads_all_but_those_with_a_mark() {
        let (mut batches, room) = (Batches::default(), room());
        batches.append(room, [EVENTS].into_iter(), &joined("one"));
        assert_eq!(batches.catch_up(room, ALICE, EVENTS), frame("one"));
        assert_eq!(batches.catch_up(room, ALICE, EVENTS), b"");
        batches.append(room, [EVENTS].into_iter(), &joined("two"));
        let batch = batches.take(room).unwrap();
        assert_eq!(batch.frames(EVENTS), [frame("one"), frame("two")].concat());
        assert_eq!((batch.mark(ALICE), batch.mark(BOB)), (frame("one").len(), 0));
        assert!(batches.is_empty() && batches.take_next().is_none());
    }

    #[test]
    fn rooms_are_served_in_their_order_and_once() {
        let (mut batches, mut rooms) = (Batches::default(), Rooms::default());
        let rooms = ["a", "b", "c"].map(|name| rooms.open(name.into()));
        for room in rooms.into_iter().chain(rooms) {
            batches.append(room, [EVENTS].into_iter(), &joined("x"));
        }
        assert!(batches.take(rooms[1]).is_some(), "it was full");
        batches.append(rooms[1], [EVENTS].into_iter(), &joined("x"));
        let served: Vec<RoomId> = std::iter::from_fn(|| batches.take_next()).map(|(room, _)| room).collect();
        assert_eq!(served, rooms);
        assert!(batches.is_empty());
    }

    #[test]
    fn each_dialect_has_its_own_frames_or_none() {
        let (mut batches, room) = (Batches::default(), room());
        let typing = Notice::Typing { username: "a".into() };
        batches.append(room, Dialect::ALL.into_iter(), &typing);
        let batch = batches.take(room).unwrap();
        let json = |dialect| std::str::from_utf8(batch.frames(dialect).get(2..).unwrap_or_default()).unwrap();
        assert_eq!(json(Dialect::Events), r#"{"event":"typing","data":{"username":"a"}}"#);
        assert_eq!(json(Dialect::Rooms), r#"{"type":"typing","username":"a"}"#);
        assert_eq!(batch.frames(Dialect::Presence), b"", "it has no word for it");
    }

    #[test]
    fn a_buffer_is_used_again_without_what_was_in_it() {
        let (mut batches, room) = (Batches::default(), room());
        batches.append(room, [EVENTS].into_iter(), &joined("one"));
        batches.catch_up(room, BOB, EVENTS);
        let batch = batches.take(room).unwrap();
        batches.recycle(batch);
        batches.append(room, [EVENTS].into_iter(), &joined("two"));
        let batch = batches.take(room).unwrap();
        assert_eq!((batch.frames(EVENTS), batch.mark(BOB)), (&frame("two")[..], 0));
    }
}
