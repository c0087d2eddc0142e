//! What was said in a room and can be told again: the [`History`] of all rooms, and the ring that keeps it in memory.
//!
//! A room's history has a life of its own, longer than the room's: it is named by an *epoch*, and its messages are
//! numbered from 1. A client that knows both can ask for what it missed. This file knows no clients.
//!
//! What is told after five messages, of which three are kept:
//!
//! ```text
//!   said, --history 3   1 2 3 4 5
//!   a newcomer              3 4 5   not resumed
//!   since 4                     5   resumed: nothing is missing
//!   since 2                 3 4 5   resumed: nothing is missing
//!   since 1                 3 4 5   not resumed
//! ```
//!
//! The subtle thing: the loop must never wait for a disk, so every method answers from memory and at once. A durable
//! history fits in here by loading what it may keep when it is made, and by handing what is appended to a thread that
//! writes it.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::rc::Rc;
use std::time::Duration;

use super::timestamp::Timestamp;
use super::{RoomId, RoomMap};
use crate::config::Config;

/// A message as the room heard it.
#[derive(Debug, PartialEq, Eq)]
pub struct Posted {
    /// From 1, one more with each message of the room.
    pub id: u64,
    /// Who said it.
    pub username: Rc<str>,
    /// What was said, trimmed.
    pub text: String,
    /// When.
    pub time: Timestamp,
    /// What the sender called it.
    pub nonce: Option<String>,
}

/// What is told of a room's past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The name of the history's life.
    pub epoch: Rc<str>,
    /// The id of its newest message; 0: none yet.
    pub last_id: u64,
    /// Messages, oldest first.
    pub messages: Vec<Rc<Posted>>,
    /// They are all that was said since the client was last here.
    pub resumed: bool,
}

/// Where a client was when it was last here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The history that it knows.
    pub epoch: String,
    /// The last message that it has seen.
    pub since: u64,
}

/// The histories of all rooms.
pub trait History: std::fmt::Debug {
    /// A room has got its first member. `now` is the server's steady clock, here as everywhere.
    fn open(&mut self, room: RoomId, name: &str, now: Duration);
    /// A room has lost its last member.
    fn close(&mut self, room: RoomId, now: Duration);
    /// Adds a message to an open room and numbers it.
    fn append(&mut self, room: RoomId, message: Draft) -> Rc<Posted>;
    /// The message of this username and nonce, if it is still there.
    fn find(&self, room: RoomId, username: &str, nonce: &str) -> Option<Rc<Posted>>;
    /// What to tell somebody who comes into an open room.
    fn recall(&self, room: RoomId, resume: Option<&Resume>) -> Past;
}

/// A message that has no number yet.
#[derive(Debug)]
pub struct Draft {
    /// Who says it.
    pub username: Rc<str>,
    /// What is said, trimmed.
    pub text: String,
    /// When.
    pub time: Timestamp,
    /// What the sender calls it.
    pub nonce: Option<String>,
}

/// The last messages of each room, in memory, within a bound on all rooms together. A room that has emptied is kept
/// for a while; of those the one that emptied first is given up first.
#[derive(Debug)]
pub struct Ring {
    open: RoomMap<(Rc<str>, Log)>,
    kept: HashMap<Rc<str>, Kept>,
    /// The kept ones in the order in which they are given up: those where nothing was said, then the others, each in the
    /// order in which they were closed, with the time of that. So nobody can drive out what others said by walking
    /// through rooms and saying nothing.
    closed: [BTreeMap<u64, (Rc<str>, Duration)>; 2],
    bytes: usize,
    limits: Limits,
    /// Names epochs: seeded by the system, so that a restart never gives a name again.
    random: RandomState,
    opened: u64,
    closings: u64,
}

/// What the ring may keep.
#[derive(Debug, Clone, Copy)]
struct Limits {
    messages: usize,
    bytes: usize,
    rooms: usize,
    ttl: Duration,
}

#[derive(Debug)]
struct Log {
    epoch: Rc<str>,
    last_id: u64,
    messages: VecDeque<Rc<Posted>>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    log: Log,
    /// Its number in `closed`.
    closing: u64,
}

impl Log {
    /// In which part of `Ring::closed` its room is when it is closed.
    fn rank(&self) -> usize {
        usize::from(self.last_id > 0)
    }

    /// Forgets the oldest message; returns how many bytes that was.
    fn forget_oldest(&mut self) -> usize {
        let forgotten = self.messages.pop_front().map_or(0, |oldest| oldest.size());
        self.bytes -= forgotten;
        forgotten
    }
}

impl Posted {
    /// What it takes in memory, in bytes: its words, and about what goes with every message.
    fn size(&self) -> usize {
        const OVERHEAD: usize = 160;
        OVERHEAD + self.username.len() + self.text.len() + self.nonce.as_ref().map_or(0, String::len)
    }
}

impl Ring {
    /// A ring without any room in it.
    pub fn new(config: &Config) -> Ring {
        Ring {
            open: RoomMap::default(),
            kept: HashMap::new(),
            closed: [BTreeMap::new(), BTreeMap::new()],
            bytes: 0,
            limits: Limits {
                messages: config.history,
                bytes: config.max_history,
                rooms: config.max_empty_rooms,
                ttl: config.history_ttl,
            },
            random: RandomState::new(),
            opened: 0,
            closings: 0,
        }
    }

    fn new_log(&mut self) -> Log {
        self.opened += 1;
        let epoch = format!("{:016x}", self.random.hash_one(self.opened));
        Log { epoch: epoch.into(), last_id: 0, messages: VecDeque::new(), bytes: 0 }
    }

    /// Gives up an empty room; `false`: there is none.
    fn give_up_one(&mut self) -> bool {
        let Some((_, (name, _))) = self.closed.iter_mut().find_map(BTreeMap::pop_first) else { return false };
        self.bytes -= self.kept.remove(&name).map_or(0, |kept| kept.log.bytes);
        debug_assert_eq!(self.kept.len(), self.closed.iter().map(BTreeMap::len).sum::<usize>());
        true
    }

    fn give_up_expired(&mut self, now: Duration) {
        for closed in &mut self.closed {
            let is_expired = |since: Duration| now.saturating_sub(since) > self.limits.ttl;
            while let Some(first) = closed.first_entry().filter(|first| is_expired(first.get().1)) {
                let (name, _) = first.remove();
                self.bytes -= self.kept.remove(&name).map_or(0, |kept| kept.log.bytes);
            }
        }
    }

    /// Forgets until all rooms together are within their bytes: empty rooms first, then the oldest messages of
    /// whichever room has most, so that a busy room cannot make a quiet one forget.
    fn keep_within_bytes(&mut self) {
        while self.bytes > self.limits.bytes {
            if self.give_up_one() {
                continue;
            }
            let Some((_, log)) = self.open.values_mut().max_by_key(|(_, log)| log.bytes) else { return };
            let forgotten = log.forget_oldest();
            if forgotten == 0 {
                return;
            }
            self.bytes -= forgotten;
        }
    }
}

impl History for Ring {
    fn open(&mut self, room: RoomId, name: &str, now: Duration) {
        self.give_up_expired(now);
        let entry = match self.kept.remove_entry(name) {
            Some((name, kept)) => {
                self.closed[kept.log.rank()].remove(&kept.closing);
                (name, kept.log)
            }
            None => (name.into(), self.new_log()),
        };
        self.open.insert(room, entry);
    }

    fn close(&mut self, room: RoomId, now: Duration) {
        self.give_up_expired(now);
        let Some((name, log)) = self.open.remove(&room) else { return };
        self.closings += 1;
        self.closed[log.rank()].insert(self.closings, (Rc::clone(&name), now));
        self.kept.insert(name, Kept { log, closing: self.closings });
        while self.kept.len() > self.limits.rooms {
            self.give_up_one();
        }
    }

    fn append(&mut self, room: RoomId, message: Draft) -> Rc<Posted> {
        let Draft { username, text, time, nonce } = message;
        let Some((_, log)) = self.open.get_mut(&room) else {
            return Rc::new(Posted { id: 0, username, text, time, nonce });
        };
        log.last_id += 1;
        let posted = Rc::new(Posted { id: log.last_id, username, text, time, nonce });
        log.bytes += posted.size();
        self.bytes += posted.size();
        log.messages.push_back(Rc::clone(&posted));
        if log.messages.len() > self.limits.messages {
            self.bytes -= log.forget_oldest();
        }
        self.keep_within_bytes();
        posted
    }

    fn find(&self, room: RoomId, username: &str, nonce: &str) -> Option<Rc<Posted>> {
        let (_, log) = self.open.get(&room)?;
        let is_it = |posted: &&Rc<Posted>| posted.nonce.as_deref() == Some(nonce) && *posted.username == *username;
        log.messages.iter().find(is_it).map(Rc::clone)
    }

    fn recall(&self, room: RoomId, resume: Option<&Resume>) -> Past {
        let Some((_, Log { epoch, last_id, messages, .. })) = self.open.get(&room) else {
            return Past { epoch: "".into(), last_id: 0, messages: Vec::new(), resumed: false };
        };
        let forgotten = last_id - messages.len() as u64;
        let can_resume = |resume: &&Resume| resume.epoch == **epoch && (forgotten..=*last_id).contains(&resume.since);
        let resume = resume.filter(can_resume);
        let seen = resume.map_or(0, |resume| (resume.since - forgotten) as usize);
        Past {
            epoch: Rc::clone(epoch),
            last_id: *last_id,
            messages: messages.iter().skip(seen).map(Rc::clone).collect(),
            resumed: resume.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const HOUR: Duration = Duration::from_secs(3600);

    fn ring(args: &[&str]) -> Ring {
        Ring::new(&Config::try_parse_from(std::iter::once("wirechat").chain(args.iter().copied())).unwrap())
    }

    fn post(ring: &mut Ring, room: RoomId, text: &str) -> u64 {
        let time = std::time::SystemTime::UNIX_EPOCH.into();
        let draft = Draft { username: "a".into(), text: text.into(), time, nonce: Some(text.into()) };
        ring.append(room, draft).id
    }

    fn texts(past: &Past) -> Vec<&str> {
        past.messages.iter().map(|message| message.text.as_str()).collect()
    }

    fn resume(past: &Past, since: u64) -> Option<Resume> {
        Some(Resume { epoch: past.epoch.to_string(), since })
    }

    #[test]
    fn the_picture_is_true() {
        let (mut ring, room) = (ring(&["--history", "3"]), RoomId(1));
        ring.open(room, "r", NOW);
        let epoch = ring.recall(room, None);
        let said: Vec<_> = (1..=5).map(|id| post(&mut ring, room, &id.to_string()).to_string()).collect();
        let mut picture = format!("  said, --history 3   {}", said.join(" "));
        let ways = [("a newcomer", None), ("since 4", resume(&epoch, 4)), ("since 2", resume(&epoch, 2))];
        for (who, resume) in ways.into_iter().chain([("since 1", resume(&epoch, 1))]) {
            let past = ring.recall(room, resume.as_ref());
            let resumed = if past.resumed { "resumed: nothing is missing" } else { "not resumed" };
            picture += &format!("\n  {who:20}{:>9}   {resumed}", texts(&past).join(" "));
        }
        crate::pictures::assert_drawn(include_str!("history.rs"), &picture);
    }

    #[test]
    fn a_newcomer_hears_the_last_ones_and_one_who_was_here_what_it_missed() {
        let (mut ring, room) = (ring(&["--history", "3"]), RoomId(1));
        ring.open(room, "r", NOW);
        let empty = ring.recall(room, None);
        assert_eq!((empty.last_id, texts(&empty).len(), empty.resumed), (0, 0, false));
        assert!(ring.recall(room, resume(&empty, 0).as_ref()).resumed, "nothing missed, as nothing was said");
        for text in ["one", "two", "three", "four", "five"] {
            post(&mut ring, room, text);
        }
        let newcomer = ring.recall(room, None);
        assert_eq!((newcomer.last_id, texts(&newcomer)), (5, vec!["three", "four", "five"]));
        let cases: [(u64, bool, &[&str]); 7] = [
            (5, true, &[]),
            (4, true, &["five"]),
            (2, true, &["three", "four", "five"]),
            (1, false, &["three", "four", "five"]),
            (0, false, &["three", "four", "five"]),
            (6, false, &["three", "four", "five"]),
            (1 << 63, false, &["three", "four", "five"]),
        ];
        for (since, resumed, expected) in cases {
            let past = ring.recall(room, resume(&empty, since).as_ref());
            assert_eq!((past.resumed, &texts(&past)[..]), (resumed, expected), "since {since}");
        }
        let other = Some(Resume { epoch: "other".into(), since: 4 });
        assert!(!ring.recall(room, other.as_ref()).resumed);
    }

    #[test]
    fn a_nonce_is_found_as_long_as_its_message_is_kept() {
        let (mut ring, room) = (ring(&["--history", "2"]), RoomId(1));
        ring.open(room, "r", NOW);
        post(&mut ring, room, "one");
        assert_eq!(ring.find(room, "a", "one").map(|posted| posted.id), Some(1));
        assert_eq!(ring.find(room, "b", "one"), None);
        post(&mut ring, room, "two");
        post(&mut ring, room, "three");
        assert_eq!(ring.find(room, "a", "one"), None);
    }

    #[test]
    fn an_empty_room_is_kept_for_a_while_and_then_begins_anew() {
        let name = "r";
        for (away, same) in [(HOUR, true), (HOUR + Duration::from_secs(1), false)] {
            let mut ring = ring(&[]);
            ring.open(RoomId(1), name, NOW);
            post(&mut ring, RoomId(1), "one");
            let before = ring.recall(RoomId(1), None);
            ring.close(RoomId(1), NOW);
            ring.open(RoomId(2), name, away);
            let after = ring.recall(RoomId(2), None);
            assert_eq!((after.epoch == before.epoch, after.last_id == 1), (same, same), "after {away:?}");
        }
    }

    #[test]
    fn empty_rooms_are_bounded_and_the_oldest_goes_first() {
        let mut ring = ring(&["--max-empty-rooms", "2"]);
        for (number, said) in [(0, false), (1, true), (2, true), (3, false), (4, true)] {
            let room = RoomId(number);
            ring.open(room, &number.to_string(), NOW);
            if said {
                post(&mut ring, room, "x");
            }
            ring.close(room, NOW);
        }
        let mut kept: Vec<_> = ring.kept.keys().map(|name| name.to_string()).collect();
        kept.sort();
        assert_eq!(kept, ["2", "4"], "in 0 and 3 nothing was said, and 1 was the oldest");
    }

    #[test]
    fn bytes_are_bounded_and_empty_rooms_pay_first() {
        let mut ring = ring(&["--max-history", "10000", "--history", "1000"]);
        let (empty, busy) = (RoomId(1), RoomId(2));
        ring.open(empty, "empty", NOW);
        post(&mut ring, empty, &"x".repeat(1000));
        ring.close(empty, NOW);
        ring.open(busy, "busy", NOW);
        for _ in 0..100 {
            post(&mut ring, busy, &"y".repeat(100));
            assert!(ring.bytes <= 10_000);
        }
        assert!(ring.kept.is_empty() && ring.recall(busy, None).messages.len() > 20);
        let quiet = RoomId(3);
        ring.open(quiet, "quiet", NOW);
        post(&mut ring, quiet, "one");
        for _ in 0..100 {
            post(&mut ring, busy, &"y".repeat(100));
        }
        assert_eq!(texts(&ring.recall(quiet, None)), ["one"], "the room that has most forgets");
        ring.close(quiet, NOW);
        ring.close(busy, NOW);
        ring.give_up_expired(HOUR * 2);
        assert_eq!(ring.bytes, 0, "what is given up is counted back");
    }

    #[test]
    fn no_history_still_counts() {
        let (mut ring, room) = (ring(&["--history", "0"]), RoomId(1));
        ring.open(room, "r", NOW);
        assert_eq!((post(&mut ring, room, "one"), post(&mut ring, room, "two")), (1, 2));
        let past = ring.recall(room, None);
        assert_eq!((past.last_id, past.messages.len(), ring.bytes), (2, 0, 0));
        assert!(ring.recall(room, resume(&past, 2).as_ref()).resumed);
        assert!(!ring.recall(room, resume(&past, 1).as_ref()).resumed);
    }
}
