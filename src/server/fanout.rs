//! Fan-out: collects a room's events from one turn of the event loop in a batch of frames. Each event is rendered once
//! per dialect, and all members share the result. For members that negotiated compression,
//! [`deflate`](crate::ws::deflate) adds up to two variants of each rendering. A member usually receives the batch in
//! one write at the end of the turn, so many messages cost one system call.
//!
//! A *cursor* is the number of bytes of a room's batch that a member has received or skipped. Before the server sends
//! an event to one member alone, it queues the unsent part of the batch for that member, to keep the events in order.
//! In this example, the batch contains two frames, "one" and "two", and alice alone receives an event between them.
//! Before that event, the server queues frame "one" for alice. The frame is 46 bytes long, so her cursor moves to 46.
//! At the end of the turn, the server queues frame "two" for alice, and both frames for bob, whose cursor is still 0:
//!
//! ```text
//!   cursor      before   at the end of the turn
//!   alice  46   one      two
//!   bob    0             one, two
//! ```

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use mio::Token;

use crate::broker::{RoomId, RoomMap};
use crate::ws::deflate::broadcast::{Deflater, Recipients, Variant};
use crate::ws::frame::{self, Opcode};
use crate::{chat::dialect::Dialect, chat::event::Event, maps::TokenMap};

/// The server sends a room's batch as soon as it has this many bytes, except during a mass disconnect.
const FULL_BATCH_LEN: usize = 64 * 1024;
/// If more members than this leave in one turn, the server holds all batches back, to send fewer and larger ones later.
const MASS_DISCONNECT_THRESHOLD: usize = 128;
const MAX_HOLD: Duration = Duration::from_millis(250); // maximum time for which the server holds batches
const MAX_HELD_LEN: usize = 4 * 1024 * 1024; // a delayed batch is sent once it has this many bytes in any one format

pub type Format = (Dialect, Variant); // members with the same format share a rendering

#[derive(Debug, Default)]
pub struct Fanout {
    pub deflater: Deflater<(RoomId, Dialect)>,
    rooms: RoomMap<Batch>,
    /// Rooms in the order in which their batches began. If a full batch is sent before the end of the turn, the room
    /// stays in the list, so `take_next_batch` skips rooms that no longer have a batch.
    order: VecDeque<RoomId>,
    pub rooms_with_full_batch: HashSet<RoomId>,
    now: Duration,                    // monotonic time of the current turn
    left_events: usize,               // number of `left` events in the current turn
    pub held_since: Option<Duration>, // monotonic time at which a hold began; it may be over already, see `is_held`
}

/// One room's frames since its last batch, rendered in every dialect that its members use.
#[derive(Debug, Default)]
pub struct Batch {
    pub frames: [[Vec<u8>; Variant::COUNT]; Dialect::ALL.len()],
    pub cursors: TokenMap<usize>, // a member without an entry has received none of the batch
}

impl Fanout {
    pub fn new(deflate_min: usize) -> Fanout {
        Fanout { deflater: Deflater::new(deflate_min), ..Fanout::default() }
    }

    pub fn begin_turn(&mut self, now: Duration) {
        (self.now, self.left_events) = (now, 0);
        self.rooms_with_full_batch.clear();
    }

    /// Whether all rooms' batches are delayed to a later turn, which avoids n² writes when n members leave at once.
    pub fn is_held(&self) -> bool {
        self.held_since.is_some_and(|since| self.now - since < MAX_HOLD)
    }

    pub fn expire_hold(&mut self) {
        self.held_since = self.held_since.filter(|_| self.left_events > MASS_DISCONNECT_THRESHOLD);
    }

    /// Appends an event to the room's batch. Returns `true` if the batch is full and the server must send it now.
    pub fn append(
        &mut self,
        room: RoomId,
        dialects: impl Iterator<Item = Dialect>,
        except: Option<Format>, // format of the one member to exclude from this broadcast; `None` to exclude nobody
        event: &Event,
    ) -> bool {
        self.left_events += usize::from(matches!(event, Event::Left { .. }));
        if self.left_events > MASS_DISCONNECT_THRESHOLD {
            self.held_since.get_or_insert(self.now);
        }
        let max_len = if self.is_held() { MAX_HELD_LEN } else { FULL_BATCH_LEN };
        let batch = self.rooms.entry(room).or_insert_with(|| {
            self.order.push_back(room);
            Batch::default()
        });
        for dialect in dialects {
            let frames = &mut batch.frames[dialect as usize];
            let start = frames[Variant::Plain as usize].len();
            append_frame(dialect, event, &mut frames[Variant::Plain as usize]);
            // In a dialect without `welcome`, the server also sends a new member its own join event, but separately
            // from the room's batch.
            let is_join = matches!(event, Event::Joined { .. }) && dialect != Dialect::Events;
            let except = except.map(|(of, variant)| if of == dialect { variant } else { Variant::Plain });
            let recipients = Recipients::new(except, is_join);
            self.deflater.append((room, dialect), recipients, start, frames);
        }
        batch.frames.iter().flatten().any(|frames| frames.len() > max_len)
    }

    /// Moves a member's cursor to the end of the batch and returns the frames between the old and the new cursor.
    pub fn advance_cursor(&mut self, room: RoomId, member: Token, (dialect, variant): Format) -> &[u8] {
        let Some(batch) = self.rooms.get_mut(&room) else { return &[] };
        let frames = &batch.frames[dialect as usize][variant as usize];
        let start = batch.cursors.insert(member, frames.len()).unwrap_or_default();
        &frames[start..]
    }

    /// Removes and returns a room's full batch. The server reads nothing more from the room's members in this turn.
    pub fn take_full_batch(&mut self, room: RoomId) -> Option<Batch> {
        self.rooms_with_full_batch.insert(room);
        self.rooms.remove(&room)
    }

    pub fn take_next_batch(&mut self) -> Option<(RoomId, Batch)> {
        let (is_held, Fanout { rooms, order, .. }) = (self.is_held(), self);
        std::iter::from_fn(|| order.pop_front_if(|_| !is_held)).find_map(|room| Some((room, rooms.remove(&room)?)))
    }

    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

pub fn append_frame(dialect: Dialect, event: &Event, out: &mut Vec<u8>) {
    let mut json = Vec::with_capacity(256); // bytes; most events fit without a reallocation
    dialect.write(event, &mut json);
    if !json.is_empty() {
        frame::append(out, Opcode::Text, &json);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::event::ActiveUsers;

    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);
    const EVENTS: Dialect = Dialect::Events;
    const FORMAT: Format = (EVENTS, Variant::Plain);
    const ROOM: RoomId = RoomId(1);

    fn joined(username: &str) -> Event {
        Event::Joined { username: username.into(), active: ActiveUsers::default() }
    }

    fn append(fanout: &mut Fanout, room: RoomId, username: &str) {
        fanout.append(room, [EVENTS].into_iter(), None, &joined(username));
    }

    fn cursor(batch: &Batch, member: Token) -> usize {
        batch.cursors.get(&member).copied().unwrap_or_default()
    }

    fn joined_frame(username: &str) -> Vec<u8> {
        let json = format!(r#"{{"event":"joined","data":{{"username":"{username}"}}}}"#);
        [&[0x81, json.len() as u8], json.as_bytes()].concat()
    }

    #[test]
    fn picture_matches_the_code() {
        let mut fanout = Fanout::default();
        append(&mut fanout, ROOM, "one");
        let before = fanout.advance_cursor(ROOM, ALICE, FORMAT).to_vec();
        append(&mut fanout, ROOM, "two");
        let (_, batch) = fanout.take_next_batch().unwrap();
        let [all, ..] = &batch.frames[EVENTS as usize];
        let names = |frames: &[u8]| {
            let text = String::from_utf8_lossy(frames);
            ["one", "two"].into_iter().filter(|name| text.contains(name)).collect::<Vec<_>>().join(", ")
        };
        let mut picture = format!("  {:12}{:9}at the end of the turn", "cursor", "before");
        for (name, token, before) in [("alice", ALICE, &before[..]), ("bob", BOB, b"")] {
            let cursor = cursor(&batch, token);
            picture += &format!("\n  {name:7}{cursor:<5}{:9}{}", names(before), names(&all[cursor..]));
        }
        crate::pictures::assert_in_module_doc(include_str!("fanout.rs"), &picture);
    }

    #[test]
    fn a_cursor_skips_what_was_read() {
        let mut fanout = Fanout::default();
        append(&mut fanout, ROOM, "one");
        assert_eq!(fanout.advance_cursor(ROOM, ALICE, FORMAT), &joined_frame("one")[..]);
        assert_eq!(fanout.advance_cursor(ROOM, ALICE, FORMAT), b"");
        append(&mut fanout, ROOM, "two");
        append(&mut fanout, ROOM, "three");
        let (_, batch) = fanout.take_next_batch().unwrap();
        assert_eq!(
            batch.frames[EVENTS as usize][0],
            [joined_frame("one"), joined_frame("two"), joined_frame("three")].concat()
        );
        assert_eq!((cursor(&batch, ALICE), cursor(&batch, BOB)), (joined_frame("one").len(), 0));
        assert!(fanout.is_empty() && fanout.take_next_batch().is_none());
    }

    #[test]
    fn each_room_is_served_once_and_in_order() {
        let mut fanout = Fanout::default();
        let rooms = [1, 2, 3].map(RoomId);
        rooms.into_iter().chain(rooms).for_each(|room| append(&mut fanout, room, "x"));
        assert!(fanout.take_full_batch(rooms[1]).is_some() && fanout.rooms_with_full_batch.contains(&rooms[1]));
        append(&mut fanout, rooms[1], "x");
        let served: Vec<RoomId> = std::iter::from_fn(|| fanout.take_next_batch()).map(|(room, _)| room).collect();
        assert_eq!(served, rooms);
        assert!(fanout.is_empty());
    }

    #[test]
    fn a_held_batch_is_larger_but_bounded() {
        let mut fanout = Fanout::default();
        let mut append = |event: &Event| fanout.append(ROOM, [EVENTS].into_iter(), None, event);
        let left = Event::Left { username: "x".into(), active: ActiveUsers::default() };
        assert!((0..=MASS_DISCONNECT_THRESHOLD).all(|_| !append(&left)));
        let long = joined(&"x".repeat(FULL_BATCH_LEN));
        assert_eq!((1..1000).find(|_| append(&long)), Some(MAX_HELD_LEN / FULL_BATCH_LEN));
        assert!(fanout.is_held() && fanout.take_next_batch().is_none());
    }

    #[test]
    fn each_dialect_has_its_own_frames_or_none() {
        let mut fanout = Fanout::default();
        fanout.append(ROOM, Dialect::ALL.into_iter(), None, &Event::Typing { username: "a".into() });
        let (_, batch) = fanout.take_next_batch().unwrap();
        let rendered = |dialect| {
            let [frames, ..] = &batch.frames[dialect as usize];
            String::from_utf8_lossy(frames.get(2..).unwrap_or_default()).into_owned()
        };
        assert_eq!(rendered(Dialect::Events), r#"{"event":"typing","data":{"username":"a"}}"#);
        assert_eq!(rendered(Dialect::Rooms), r#"{"type":"typing","username":"a"}"#);
        assert_eq!(rendered(Dialect::Presence), "", "the `presence` dialect omits `typing`");
    }
}
