//! What was said in each room during this turn of the loop, as frames, ready to be shared.
//!
//! A room has one growing batch. At the end of the turn it is frozen, and every member gets a pointer to the same
//! bytes: many messages cost a member one write. This file knows rooms and tokens as numbers, no sockets.
//!
//! The subtle thing: not everyone is to read a batch from its start. A newcomer must not see what was said before it
//! came; a member that is sent a word of its own in the middle of a turn is first given the batch so far, and must not
//! get that again; and a `joined` is for the others only. All three are one thing: a *mark*, up to which a member has
//! read. Nobody has one in the common case.

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
    spare: Vec<Batch>,
    json: Vec<u8>,
}

/// What was said in one room.
#[derive(Debug, Default)]
pub struct Batch {
    frames: Vec<u8>,
    marks: TokenMap<usize>,
}

impl Batch {
    /// All frames.
    pub fn frames(&self) -> &[u8] {
        &self.frames
    }

    /// The frames that a member has not read; `None`: all of them.
    pub fn unread_by(&self, member: Token) -> Option<&[u8]> {
        // Nearly always nobody has a mark, and then nothing is looked up.
        if self.marks.is_empty() {
            return None;
        }
        self.marks.get(&member).map(|&mark| &self.frames[mark..])
    }
}

impl Batches {
    /// Appends a notice to what a room is told. `true`: the batch is full and should be sent now.
    pub fn append(&mut self, room: RoomId, dialect: Dialect, notice: &Notice) -> bool {
        let Batches { rooms, spare, json } = self;
        let batch = rooms.entry(room).or_insert_with(|| spare.pop().unwrap_or_default());
        json.clear();
        dialect.write(notice, json);
        frame::append(&mut batch.frames, Opcode::Text, json);
        batch.frames.len() > FULL
    }

    /// Writes one notice as a frame to the end of `out`.
    pub fn write_frame(&mut self, dialect: Dialect, notice: &Notice, out: &mut Vec<u8>) {
        self.json.clear();
        dialect.write(notice, &mut self.json);
        frame::append(out, Opcode::Text, &self.json);
    }

    /// Brings a member up to date: returns what it has not read, and counts that as read.
    pub fn catch_up(&mut self, room: RoomId, member: Token) -> &[u8] {
        let Some(batch) = self.rooms.get_mut(&room) else { return &[] };
        let end = batch.frames.len();
        let start = batch.marks.insert(member, end).unwrap_or(0);
        &batch.frames[start..]
    }

    /// Lets a member read on only from here.
    pub fn skip(&mut self, room: RoomId, member: Token) {
        self.catch_up(room, member);
    }

    /// Takes the batch of a room.
    pub fn take(&mut self, room: RoomId) -> Option<Batch> {
        self.rooms.remove(&room)
    }

    /// A room that has a batch.
    pub fn next_room(&self) -> Option<RoomId> {
        self.rooms.keys().next().copied()
    }

    /// Gives a batch back when it is sent, so that its buffer can be used again.
    pub fn recycle(&mut self, mut batch: Batch) {
        if self.spare.len() < SPARE && batch.frames.capacity() <= 2 * FULL {
            batch.frames.clear();
            batch.marks.clear();
            self.spare.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Chat, Newcomer};

    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);

    fn room() -> RoomId {
        let mut chat = Chat::new(500);
        chat.join(ALICE, Newcomer { dialect: Dialect::Events, username: "a".into(), room: "r".into() });
        chat.room_of(ALICE).unwrap()
    }

    fn joined(username: &str) -> Notice<'static> {
        Notice::Joined { username: username.into() }
    }

    fn frame(username: &str) -> Vec<u8> {
        let json = format!(r#"{{"event":"joined","data":{{"username":"{username}"}}}}"#);
        [&[0x81, json.len() as u8], json.as_bytes()].concat()
    }

    #[test]
    fn everyone_reads_all_but_those_with_a_mark() {
        let (mut batches, room) = (Batches::default(), room());
        batches.append(room, Dialect::Events, &joined("one"));
        assert_eq!(batches.catch_up(room, ALICE), frame("one"));
        assert_eq!(batches.catch_up(room, ALICE), b"");
        batches.append(room, Dialect::Events, &joined("two"));
        let batch = batches.take(room).unwrap();
        assert_eq!(batch.frames(), [frame("one"), frame("two")].concat());
        assert_eq!(batch.unread_by(ALICE), Some(&frame("two")[..]));
        assert_eq!(batch.unread_by(BOB), None);
        assert_eq!(batches.next_room(), None);
    }

    #[test]
    fn a_buffer_is_used_again_without_what_was_in_it() {
        let (mut batches, room) = (Batches::default(), room());
        batches.append(room, Dialect::Events, &joined("one"));
        batches.skip(room, BOB);
        let batch = batches.take(room).unwrap();
        batches.recycle(batch);
        batches.append(room, Dialect::Events, &joined("two"));
        let batch = batches.take(room).unwrap();
        assert_eq!((batch.frames(), batch.unread_by(BOB)), (&frame("two")[..], None));
    }
}
