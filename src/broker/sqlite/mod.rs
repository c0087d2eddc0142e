//! A broker that keeps every message in a SQLite file. An event leaves the broker only after the messages before it are
//! committed, so nobody ever receives a message that a crash could lose.
//!
//! The [`MemoryBroker`](super::memory::MemoryBroker) decides who is a member where, at once and without a history of its
//! own. Its events wait here in a queue. A [`Disk`] stores their messages, and reads the history that they need:
//!
//! ```text
//!   submit ─▶ MemoryBroker ─▶ queue: Published, Left, Joined … ─▶ next_event
//!                               │                        ▲
//!                               └─▶ Disk: one commit ────┘ outcomes, in the same order
//! ```
//!
//! A join, a leave or a switch that follows a pending message takes effect after it. If nothing is pending, nothing waits.
//!
//! The epoch is the random name of a *run*, the time between two starts. Each stored message has the number of its run.
//! A client that knows epoch E and message S resumes if run E is not older than the message S of this file. In the
//! example, a backup from the middle of run 1 is restored: its messages 3 and 4 are others than those that clients saw.
//!
//! ```text
//!   message      1  2  3  4
//!   the file     a  a  a  b   runs a = 1, b = 2; clients know (a, 1 … 3) and (b, 4)
//!   restored     a  a  c  c   runs a = 1, c = 2
//!   (a, 2)       complete: the message 2 is of run 1
//!   (a, 3)       not resumed: the message 3 is of run 2, so the client saw another one
//!   (b, 4)       not resumed: no run of this file is named b
//! ```

pub mod database;
pub mod writer;

use std::collections::VecDeque;
use std::mem;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use mio::Token;

use super::log::{RoomLog, memory_bytes};
use super::{Backlog, Broker, BrokerError, Join, Message, Random, Request, Resume, RoomEvent, RoomId, RoomMap};
use database::{Batch, Database, DatabaseOptions, Deletion, Operation, Outcome, StoredMessage};
use writer::WriterThread;

/// Executes operations in the order of their submission.
pub trait Disk {
    fn submit(&mut self, operation: Operation);
    /// Returns the outcomes of the next operations. After an `Err`, the disk can no longer be used.
    fn next_batch(&mut self) -> Option<Result<Batch, String>>;
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub messages: usize, // maximum number of messages that a client receives when it joins or switches to a room
    pub backlog: usize,  // maximum bytes of these messages
    pub bytes: usize,    // maximum memory for the newest messages of all rooms with members
}

pub struct SqliteBroker {
    decisions: Box<dyn Broker>,
    disk: Box<dyn Disk>,
    epoch: Rc<str>, // the name of the current run
    limits: Limits,
    rooms: RoomMap<Room>,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    outcomes: VecDeque<Outcome>,
    deletions: Vec<Deletion>, // take effect after `outcomes`
    bytes: usize,             // memory of the rooms' logs
    has_failed: bool,
}

/// A room with members.
struct Room {
    name: Rc<str>,
    log: RoomLog, // the newest messages
    members: usize,
    openings: usize, // queued `Opened` events: a client that replaces the only member opens the room again
}

struct Queued {
    event: RoomEvent,
    needs_outcome: bool,
    limit: usize, // of a page
    bytes: usize,
}

impl SqliteBroker {
    /// Opens the file and starts its thread. `memory` makes the broker that decides. `Err` is a line for the operator.
    pub fn open<B: Broker + 'static>(
        path: &Path,
        options: DatabaseOptions,
        mut limits: Limits,
        mut random: Random,
        memory: impl FnOnce(Random) -> Box<B>,
        wake: impl Fn() + Send + 'static,
    ) -> Result<SqliteBroker, String> {
        let mut run = [0; 8];
        random(&mut run);
        let run = format!("{:016x}", u64::from_be_bytes(run));
        if options.keep > 0 {
            limits.messages = limits.messages.min(usize::try_from(options.keep).unwrap_or(usize::MAX));
        }
        let database = Database::open(path, options, &run, SystemTime::now())?;
        let writer = WriterThread::start(database, wake)?;
        Ok(SqliteBroker::new(memory(random), Box::new(writer), &run, limits))
    }

    /// `decisions` decides at once and keeps no messages. `epoch` is the name of the run that the disk has begun.
    pub fn new(decisions: Box<dyn Broker>, disk: Box<dyn Disk>, epoch: &str, limits: Limits) -> SqliteBroker {
        SqliteBroker {
            decisions,
            disk,
            epoch: epoch.into(),
            limits,
            rooms: RoomMap::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            outcomes: VecDeque::new(),
            deletions: Vec::new(),
            bytes: 0,
            has_failed: false,
        }
    }
}

impl Broker for SqliteBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.decisions.check_join(join)
    }

    fn submit(&mut self, client: Token, mut request: Request, now: Duration) {
        if self.has_failed {
            return;
        }
        let mut resume = if let Request::Join(join) = &mut request { join.resume.take() } else { None };
        let limit = if let Request::History { limit, .. } = request { limit } else { 0 };
        self.decisions.submit(client, request, now);
        while let Some(event) = self.decisions.next_event() {
            let resume = resume.take_if(|_| matches!(event, RoomEvent::Joined { .. }));
            self.enqueue(event, resume, limit);
        }
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        if self.queue.front()?.needs_outcome && self.outcomes.is_empty() {
            match self.disk.next_batch()? {
                Ok(batch) => {
                    self.outcomes.extend(batch.outcomes);
                    self.deletions = batch.deletions;
                }
                Err(reason) => {
                    self.has_failed = true;
                    self.queue.clear();
                    self.queued_bytes = 0;
                    return Some(RoomEvent::StorageFailed { reason });
                }
            }
        }
        let Queued { event, needs_outcome, limit, bytes } = self.queue.pop_front()?;
        self.queued_bytes -= bytes;
        let outcome = if needs_outcome { self.outcomes.pop_front() } else { None };
        let event = self.release(event, outcome, limit);
        if self.outcomes.is_empty() {
            mem::take(&mut self.deletions).into_iter().for_each(|deletion| self.forget(&deletion));
        }
        Some(event)
    }

    fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }
}

impl SqliteBroker {
    fn enqueue(&mut self, event: RoomEvent, resume: Option<Resume>, limit: usize) {
        let max_bytes = self.limits.backlog;
        let operation = match &event {
            RoomEvent::Opened { room, name, .. } => {
                let (name, log) = (Rc::clone(name), RoomLog::new(Rc::clone(&self.epoch)));
                let load = Operation::Load { room: (&*name).into(), limit: self.limits.messages };
                let closed = Room { name, log, members: 0, openings: 0 };
                self.rooms.entry(*room).or_insert(closed).openings += 1;
                Some(load)
            }
            RoomEvent::Published { room, message, .. } => {
                Some(Operation::Store { room: (&*self.rooms[room].name).into(), message: message.as_ref().into() })
            }
            RoomEvent::Joined { to, .. } => resume.map(|Resume { epoch, since }| Operation::Resume {
                room: (&*self.rooms[to].name).into(),
                epoch,
                since,
                max_bytes,
            }),
            // One message more than the page can have shows whether there are older ones.
            RoomEvent::History { page, .. } => {
                Some(Operation::Page { room: (&*page.room).into(), before: page.before, limit: limit + 1 })
            }
            _ => None,
        };
        let text = if let RoomEvent::Published { message, .. } = &event { memory_bytes(message) } else { 0 };
        let bytes = mem::size_of::<Queued>() + text;
        self.queue.push_back(Queued { event, needs_outcome: operation.is_some(), limit, bytes });
        self.queued_bytes += bytes;
        operation.into_iter().for_each(|operation| self.disk.submit(operation));
    }

    /// Drops messages from memory that the file no longer has.
    fn forget(&mut self, deletion: &Deletion) {
        for room in self.rooms.values_mut().filter(|room| *room.name == *deletion.room) {
            while room.log.messages.front().is_some_and(|oldest| oldest.id <= deletion.id) {
                self.bytes -= room.log.drop_oldest();
            }
        }
    }

    /// Completes an event once everything before it has taken effect.
    fn release(&mut self, event: RoomEvent, outcome: Option<Outcome>, limit: usize) -> RoomEvent {
        match (event, outcome) {
            (RoomEvent::Published { room, client, mut message }, Some(Outcome::Stored(id))) => {
                debug_assert_eq!(Rc::strong_count(&message), 1, "the decisions keep no messages");
                Rc::get_mut(&mut message).into_iter().for_each(|message| message.id = id);
                self.append(room, &message);
                RoomEvent::Published { room, client, message }
            }
            (RoomEvent::Published { client: Some(client), .. }, Some(Outcome::Duplicate(original))) => {
                RoomEvent::Duplicate { client, message: Rc::new(original.into()) }
            }
            (RoomEvent::Published { client: Some(client), message, .. }, _) => {
                RoomEvent::Rejected { client, error: BrokerError::NotStored, nonce: message.nonce.clone() }
            }
            (RoomEvent::Opened { room, name, members }, Some(Outcome::Messages { last_id, messages })) => {
                let log = self.log_of(last_id, messages);
                self.bytes += log.bytes;
                let opened = self.room_mut(room);
                opened.openings -= 1;
                let before = mem::replace(&mut opened.log, log);
                self.bytes -= before.bytes;
                self.enforce_memory_limit();
                RoomEvent::Opened { room, name, members }
            }
            (RoomEvent::Joined { client, session, from, to, .. }, outcome) => {
                self.room_mut(to).members += 1;
                from.into_iter().for_each(|from| self.remove_member(from));
                let backlog = self.backlog(to, outcome);
                RoomEvent::Joined { client, session, from, to, backlog }
            }
            (RoomEvent::Left { room, member }, _) => {
                self.remove_member(room);
                RoomEvent::Left { room, member }
            }
            (RoomEvent::History { client, mut page }, Some(Outcome::Messages { last_id, messages })) => {
                let newest = messages.last().map_or(last_id, |newest| newest.id);
                // As in memory, a page fits into the half of the outbox that is free when a command runs.
                let log = self.log_of(newest, messages);
                (page.messages, page.more) = log.page(page.before, limit, self.limits.backlog / 2);
                RoomEvent::History { client, page }
            }
            (event, _) => event,
        }
    }

    /// What a client missed, if the disk has read it, otherwise the newest messages.
    fn backlog(&self, room: RoomId, outcome: Option<Outcome>) -> Backlog {
        let missed = match outcome {
            Some(Outcome::Messages { last_id, messages }) => {
                let resume = Resume { epoch: self.epoch.to_string(), since: last_id - messages.len() as u64 };
                Some(self.log_of(last_id, messages).backlog(Some(&resume), self.limits.backlog))
            }
            _ => None,
        };
        let newest = || self.rooms[&room].log.backlog(None, self.limits.backlog);
        missed.filter(|missed| missed.resumed).unwrap_or_else(newest)
    }

    fn log_of(&self, last_id: u64, messages: Vec<StoredMessage>) -> RoomLog {
        let mut log = RoomLog::new(Rc::clone(&self.epoch));
        log.last_id = last_id - messages.len() as u64;
        messages.into_iter().for_each(|message| _ = log.append(message.into()));
        log
    }

    fn append(&mut self, room: RoomId, message: &Rc<Message>) {
        let max_messages = self.limits.messages;
        let log = &mut self.room_mut(room).log;
        log.push(Rc::clone(message));
        let freed = if log.messages.len() > max_messages { log.drop_oldest() } else { 0 };
        self.bytes = self.bytes + memory_bytes(message) - freed;
        self.enforce_memory_limit();
    }

    /// Shortens the longest log while all logs together are too long: a busy room must not shorten a quiet room's log.
    fn enforce_memory_limit(&mut self) {
        while self.bytes > self.limits.bytes {
            let Some(largest) = self.rooms.values_mut().max_by_key(|room| room.log.bytes) else { return };
            self.bytes -= largest.log.drop_oldest();
        }
    }

    fn remove_member(&mut self, id: RoomId) {
        let room = self.room_mut(id);
        room.members -= 1;
        if room.members == 0 && room.openings == 0 {
            self.bytes -= self.rooms.remove(&id).map_or(0, |room| room.log.bytes);
        }
    }

    fn room_mut(&mut self, room: RoomId) -> &mut Room {
        let Some(room) = self.rooms.get_mut(&room) else { unreachable!("a room is open while its events are queued") };
        room
    }
}

impl From<&Message> for StoredMessage {
    fn from(message: &Message) -> StoredMessage {
        let Message { username, text, id, time, nonce } = message;
        let nonce = nonce.as_deref().map(str::to_owned);
        StoredMessage { id: *id, time: time.to_string(), username: username.to_string(), text: text.to_string(), nonce }
    }
}

impl From<StoredMessage> for Message {
    fn from(message: StoredMessage) -> Message {
        let StoredMessage { id, time, username, text, nonce } = message;
        Message { username: username.into(), text: text.into(), id, time: time.into(), nonce: nonce.map(Rc::from) }
    }
}
