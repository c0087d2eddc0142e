//! A broker that stores the messages of all rooms in a SQLite file. An event leaves the broker only after all earlier
//! messages are committed, so no client receives a message that a crash of the server could lose.
//!
//! A [`MemoryBroker`](super::memory::MemoryBroker) decides immediately who is a member of which room, and keeps no
//! messages. Events wait in a queue until a [`Disk`] has stored the messages and read the history that the events need:
//!
//! ```text
//!   submit ─▶ MemoryBroker ─▶ queue: Published, Left, Joined … ─▶ next_event
//!                               │                        ▲
//!                               └─▶ Disk: one commit ────┘ outcomes, in the same order
//! ```
//!
//! All events keep their order: a leave, for example, waits until all earlier messages are stored. An event that needs
//! no database operation leaves the broker at once if the queue is empty.
//!
//! Each start of the server begins a *run* with a random name, which is the epoch. The file records which run stored
//! each message. A client that knows epoch E and message S resumes if the file contains a run named E, if run E or an
//! earlier run stored message S, and if the file still contains every later message. In this example, run `a` stores
//! messages 1 to 3, and run `b` stores message 4. Then a backup, made after message 2, replaces the file, and run `c`
//! stores different messages 3 and 4:
//!
//! ```text
//!   a client knows     a 1    a 3    b 3    b 4    c 4
//!   before             yes    yes    yes    yes     no
//!   after              yes     no     no     no    yes
//! ```

pub mod bans;
pub mod database;
pub mod file;
mod queries;
pub mod reader;
pub mod writer;

use std::collections::VecDeque;
use std::mem;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use mio::Token;

use super::log::{RoomLog, memory_bytes};
use super::{Backlog, Broker, BrokerError, Join, Message, Random, Request, Resume, RoomEvent, RoomId, RoomMap};
use bans::{BanList, StoreBan};
use database::{Batch, Database, DatabaseOptions, Deletion, Operation, Outcome, StoredMessage};
use writer::{MAX_IDLE, WriterThread};

/// Executes database operations in submission order.
pub trait Disk {
    fn submit(&mut self, operation: Operation);
    /// Returns the next batch of outcomes, or `None` if none is ready. After an `Err`, do not use this `Disk` again.
    fn next_batch(&mut self) -> Option<Result<Batch, String>>;
}

#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    pub messages: usize, // maximum number of messages per room in memory; a resuming client may get more from disk
    pub backlog: usize,  // maximum total JSON size, in bytes, of the messages sent on a join or switch
    pub bytes: usize,    // maximum memory for the logs of all rooms with members, in bytes
}

/// The operator's bans from the database file, each with its end time, and a function that stores changes to them.
pub struct StoredBans {
    pub bans: BanList,
    pub submit: StoreBan,
}

pub struct SqliteBroker {
    inner: Box<dyn Broker>,
    disk: Box<dyn Disk>,
    epoch: Rc<str>, // random name, new at each start of the server; every room has this epoch
    limits: LogLimits,
    rooms: RoomMap<Room>,
    queue: VecDeque<QueuedEvent>,
    queued_bytes: usize,
    outcomes: VecDeque<Outcome>,
    deletions: Vec<Deletion>, // messages deleted from the file, but not yet from the rooms' logs
    bytes: usize,             // total memory use of the rooms' logs, in bytes
    has_failed: bool,
}

/// An open room, or one whose `Opened` event is still queued.
struct Room {
    name: Rc<str>,
    log: RoomLog, // only the room's newest messages; the database file may contain older ones
    members: usize,
    openings: usize, // number of queued `Opened` events; replacing a room's only member adds another
}

struct QueuedEvent {
    event: RoomEvent,
    needs_outcome: bool,
    limit: usize, // for `History` events: the maximum number of messages in the page
    bytes: usize,
}

impl SqliteBroker {
    /// Opens the database and starts the writer thread. The thread calls `wake` after each batch of operations, and
    /// `on_commit` with the duration of each commit. `create_inner` creates the `MemoryBroker` that decides who is a
    /// member of which room. On failure, returns an error text for the operator.
    pub fn open<B: Broker + 'static>(
        path: &Path,
        options: DatabaseOptions,
        mut limits: LogLimits,
        mut random: Random,
        create_inner: impl FnOnce(Random) -> Box<B>,
        wake: impl Fn() + Send + 'static,
        on_commit: impl Fn(Duration) + Send + 'static,
    ) -> Result<(SqliteBroker, StoredBans), String> {
        let mut run = [0; 8];
        random(&mut run);
        let run = format!("{:016x}", u64::from_be_bytes(run));
        if options.max_messages_per_room > 0 {
            limits.messages = limits.messages.min(usize::try_from(options.max_messages_per_room).unwrap_or(usize::MAX));
        }
        let (mut database, bans) = Database::open_with_bans(path, options, &run)?;
        let execute = move |operations: &[Operation]| database.execute_timed(operations, &on_commit);
        let writer = WriterThread::start(execute, wake, MAX_IDLE)?;
        let store = writer.ban_submitter();
        let submit = move |subject, until, now| store.submit(subject, until, now);
        let bans = StoredBans { bans, submit: Box::new(submit) };
        Ok((SqliteBroker::new(create_inner(random), Box::new(writer), &run, limits), bans))
    }

    /// Creates a broker that passes each request to `inner` and stores the published messages on `disk`.
    /// `inner` must return its events at once and keep no messages. `epoch` is the name of this run of the server.
    pub fn new(inner: Box<dyn Broker>, disk: Box<dyn Disk>, epoch: &str, limits: LogLimits) -> SqliteBroker {
        SqliteBroker {
            inner,
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
        self.inner.check_join(join)
    }

    fn submit(&mut self, client: Token, mut request: Request, now: Duration) {
        if self.has_failed {
            return;
        }
        let mut resume = if let Request::Join(join) = &mut request { join.resume.take() } else { None };
        let limit = if let Request::History { limit, .. } = request { limit } else { 0 };
        self.inner.submit(client, request, now);
        while let Some(event) = self.inner.next_event() {
            let resume = resume.take_if(|_| matches!(event, RoomEvent::Joined { .. }));
            self.enqueue(event, resume, limit);
        }
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        while self.outcomes.is_empty()
            && !self.has_failed
            && let Some(batch) = self.disk.next_batch()
        {
            match batch {
                Ok(batch) => {
                    self.outcomes.extend(batch.outcomes);
                    self.deletions.extend(batch.deletions);
                    self.apply_deletions();
                }
                Err(reason) => {
                    self.has_failed = true;
                    self.queue.clear();
                    self.queued_bytes = 0;
                    return Some(RoomEvent::StorageFailed { reason });
                }
            }
        }
        if self.queue.front()?.needs_outcome && self.outcomes.is_empty() {
            return None;
        }
        let QueuedEvent { event, needs_outcome, limit, bytes } = self.queue.pop_front()?;
        self.queued_bytes -= bytes;
        let outcome = if needs_outcome { self.outcomes.pop_front() } else { None };
        let event = self.release(event, outcome, limit);
        self.apply_deletions();
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
                let load = Operation::Load { room: (&*name).into(), limit: self.limits.messages, max_bytes };
                let closed = Room { name, log, members: 0, openings: 0 };
                self.rooms.entry(*room).or_insert(closed).openings += 1;
                Some(load)
            }
            RoomEvent::Published { room, message, .. } => {
                Some(Operation::Store { room: (&*self.rooms[room].name).into(), message: message.as_ref().into() })
            }
            RoomEvent::Joined { to, .. } => match resume {
                Some(Resume { epoch, since }) => {
                    Some(Operation::Resume { room: (&*self.rooms[to].name).into(), epoch, since, max_bytes })
                }
                None => (!self.queue.is_empty()).then_some(Operation::Wait),
            },
            // Read one message more than the history page may contain, to learn whether older messages exist.
            RoomEvent::History { page, .. } => Some(Operation::Page {
                room: (&*page.room).into(),
                before: page.before,
                limit: limit + 1,
                max_bytes: max_bytes / 2,
            }),
            _ => None,
        };
        let text = match &event {
            // Count the memory of the message twice, because the queued disk operation holds a copy of the message.
            RoomEvent::Published { message, .. } => 2 * memory_bytes(message),
            RoomEvent::Private { recipients, message } => size_of_val(&**recipients) + message.text.len(),
            _ => 0,
        };
        let bytes = size_of::<QueuedEvent>() + text;
        self.queue.push_back(QueuedEvent { event, needs_outcome: operation.is_some(), limit, bytes });
        self.queued_bytes += bytes;
        operation.into_iter().for_each(|operation| self.disk.submit(operation));
    }

    /// Drops deleted messages from the logs in memory, once all outcomes before the deletion have been applied.
    fn apply_deletions(&mut self) {
        let deletions = if self.outcomes.is_empty() { mem::take(&mut self.deletions) } else { Vec::new() };
        for deletion in deletions {
            for room in self.rooms.values_mut().filter(|room| *room.name == *deletion.room) {
                while room.log.messages.front().is_some_and(|oldest| oldest.id <= deletion.id) {
                    self.bytes -= room.log.drop_oldest();
                }
            }
        }
    }

    /// Completes a queued event with the result of its database operation, for example with the id of a stored message.
    /// Also updates the affected room.
    fn release(&mut self, event: RoomEvent, outcome: Option<Outcome>, limit: usize) -> RoomEvent {
        match (event, outcome) {
            (RoomEvent::Published { room, client, mut message }, Some(Outcome::Stored(id))) => {
                debug_assert_eq!(Rc::strong_count(&message), 1, "the broker `inner` keeps no messages");
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
            (RoomEvent::Closed { room }, _) => {
                self.close_if_empty(room);
                RoomEvent::Closed { room }
            }
            (RoomEvent::History { client, mut page }, Some(Outcome::Messages { last_id, messages })) => {
                let newest = messages.last().map_or(last_id, |newest| newest.id);
                // Commands run only while half of the client's outbox is free, so a history page must fit in that half.
                let log = self.log_of(newest, messages);
                (page.messages, page.more) = log.page(page.before, limit, self.limits.backlog / 2);
                RoomEvent::History { client, page }
            }
            (event, _) => event,
        }
    }

    /// Returns the missed messages if `outcome` contains them and they fit in a backlog; otherwise the newest messages.
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

    /// Drops messages from the largest log until all logs fit in `limits.bytes`. A busy room does not shorten the log
    /// of a quiet room.
    fn enforce_memory_limit(&mut self) {
        while self.bytes > self.limits.bytes {
            let Some(largest) = self.rooms.values_mut().max_by_key(|room| room.log.bytes) else { return };
            self.bytes -= largest.log.drop_oldest();
        }
    }

    fn remove_member(&mut self, id: RoomId) {
        self.room_mut(id).members -= 1;
        self.close_if_empty(id);
    }

    fn close_if_empty(&mut self, id: RoomId) {
        let room = self.room_mut(id);
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use super::super::memory::{BrokerLimits, MemoryBroker};
    use super::super::{NameRules, User};
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const OPTIONS: DatabaseOptions =
        DatabaseOptions { survives_power_failure: true, max_messages_per_room: 0, max_age_days: 0 };

    /// A directory that is removed at the end of the test.
    struct TempDir(PathBuf);

    impl TempDir {
        fn new(name: &str) -> TempDir {
            let path = std::env::temp_dir().join(format!("wirechat-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            TempDir(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn open(path: &Path, run: &str) -> Database {
        Database::open(path, OPTIONS, run, NOW).unwrap()
    }

    fn stored_message(text: &str, nonce: Option<&str>) -> StoredMessage {
        let (time, nonce) = ("2026-01-31T12:00:00.000Z".into(), nonce.map(str::to_owned));
        StoredMessage { id: 0, time, username: "ann".into(), text: text.into(), nonce }
    }

    fn store(database: &mut Database, text: &str, nonce: Option<&str>) -> Outcome {
        let store = Operation::Store { room: "tea".into(), message: stored_message(text, nonce) };
        database.execute(&[store]).unwrap().outcomes.remove(0)
    }

    fn is_resumed(database: &mut Database, epoch: &str, since: u64) -> bool {
        let resume = Operation::Resume { room: "tea".into(), epoch: epoch.into(), since, max_bytes: 10_000 };
        matches!(database.execute(&[resume]).unwrap().outcomes[..], [Outcome::Messages { .. }])
    }

    #[test]
    fn picture_matches_the_code() {
        let directory = TempDir::new("picture");
        let (file, backup) = (directory.path("file"), directory.path("backup"));
        let known = [("a", 1), ("a", 3), ("b", 3), ("b", 4), ("c", 4)];
        let row = |name: &str, database: &mut Database| {
            let resumed = known.map(|(epoch, since)| if is_resumed(database, epoch, since) { "yes" } else { "no" });
            format!("\n  {name:15}{}", resumed.map(|resumed| format!("{resumed:>7}")).concat())
        };
        let copy = |from: &Path, to: &Path| {
            for end in ["", "-wal"] {
                let name = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
                fs::copy(name(from), name(to)).unwrap();
            }
        };
        let mut database = open(&file, "a");
        store(&mut database, "1", None);
        store(&mut database, "2", None);
        copy(&file, &backup);
        store(&mut database, "3", None);
        drop(database);
        let mut database = open(&file, "b");
        store(&mut database, "4", None);
        let mut picture = "  a client knows ".to_owned();
        picture += &known.map(|(epoch, since)| format!("{:>7}", format!("{epoch} {since}"))).concat();
        picture += &row("before", &mut database);
        drop(database);
        copy(&backup, &file);
        let mut database = open(&file, "c");
        store(&mut database, "other 3", None);
        store(&mut database, "other 4", None);
        picture += &row("after", &mut database);
        let picture = picture.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        crate::pictures::assert_in_module_doc(include_str!("mod.rs"), &picture);
    }

    /// A disk that executes the submitted operations only when the test calls `execute`.
    #[derive(Clone)]
    struct ManualDisk(Rc<RefCell<ManualDiskState>>);

    struct ManualDiskState {
        database: Database,
        waiting: Vec<Operation>,
        executed: VecDeque<Result<Batch, String>>,
    }

    impl ManualDisk {
        fn new() -> ManualDisk {
            let connection = rusqlite::Connection::open_in_memory().unwrap();
            let database = Database::begin_run(connection, OPTIONS, "run", NOW).unwrap();
            let (waiting, executed) = (Vec::new(), VecDeque::new());
            ManualDisk(Rc::new(RefCell::new(ManualDiskState { database, waiting, executed })))
        }

        fn execute(&self) {
            let ManualDiskState { database, waiting, executed } = &mut *self.0.borrow_mut();
            executed.push_back(database.execute(&mem::take(waiting)));
        }
    }

    impl Disk for ManualDisk {
        fn submit(&mut self, operation: Operation) {
            self.0.borrow_mut().waiting.push(operation);
        }

        fn next_batch(&mut self) -> Option<Result<Batch, String>> {
            self.0.borrow_mut().executed.pop_front()
        }
    }

    fn broker(disk: &ManualDisk, limits: LogLimits) -> SqliteBroker {
        let config = BrokerLimits {
            max_messages: 0,
            max_bytes: usize::MAX,
            max_backlog: 0,
            max_rooms: 100,
            max_rooms_per_user: 100,
            max_empty_rooms: 0,
            ttl: Duration::ZERO,
            default_room: "general",
        };
        let names = NameRules { key: Rc::clone, may_share: |_| true };
        let inner = MemoryBroker::new(config, Box::new(|bytes| bytes.fill(7)), names);
        SqliteBroker::new(Box::new(inner), Box::new(disk.clone()), "run", limits)
    }

    const LIMITS: LogLimits = LogLimits { messages: 50, backlog: 100_000, bytes: 1 << 20 };

    fn submit(broker: &mut SqliteBroker, client: usize, request: Request) {
        broker.submit(Token(client), request, Duration::ZERO);
    }

    fn join(client: usize) -> Request {
        Request::Join(Join::new("ann", "tea", User::Connection(Token(client))))
    }

    fn publish(text: &str, nonce: Option<&str>) -> Request {
        Request::Publish(stored_message(text, nonce).into())
    }

    /// Takes all pending events from the broker, and returns a description of each. "one is 2" is a message with the
    /// text "one" and the id 2. "joined after 2" is a join with a backlog whose last message id is 2.
    fn events(broker: &mut SqliteBroker) -> Vec<String> {
        let name = |event| match event {
            RoomEvent::Opened { .. } => "opened".to_owned(),
            RoomEvent::Joined { backlog, .. } => format!("joined after {}", backlog.last_id),
            RoomEvent::Published { message, .. } => format!("{} is {}", message.text, message.id),
            RoomEvent::Duplicate { message, .. } => format!("{} was {}", message.text, message.id),
            RoomEvent::Rejected { error: BrokerError::NotStored, .. } => "not stored".to_owned(),
            RoomEvent::Left { .. } => "left".to_owned(),
            other => format!("{other:?}"),
        };
        std::iter::from_fn(|| broker.next_event()).map(name).collect()
    }

    #[test]
    fn events_wait_for_the_messages_before_them_and_for_nothing_else() {
        let disk = ManualDisk::new();
        let mut broker = broker(&disk, LIMITS);
        submit(&mut broker, 1, join(1));
        assert_eq!(events(&mut broker), Vec::<String>::new(), "the room is loaded first");
        disk.execute();
        assert_eq!(events(&mut broker), ["opened", "joined after 0"]);
        submit(&mut broker, 2, join(2));
        assert_eq!(events(&mut broker), ["joined after 0"], "nothing is pending");
        submit(&mut broker, 1, publish("one", Some("n")));
        submit(&mut broker, 3, join(3));
        submit(&mut broker, 1, Request::Leave);
        assert!(events(&mut broker).is_empty() && broker.queued_bytes() > 0);
        disk.execute();
        submit(&mut broker, 2, publish("two", Some("n")));
        assert_eq!(events(&mut broker), ["one is 1", "joined after 1", "left"]);
        disk.execute();
        assert_eq!(events(&mut broker), ["one was 1"], "a message with the same username and nonce is a duplicate");
        assert_eq!(broker.queued_bytes(), 0);
    }

    #[test]
    fn a_full_disk_stores_nothing_and_loses_nothing() {
        let disk = ManualDisk::new();
        let mut broker = broker(&disk, LIMITS);
        submit(&mut broker, 1, join(1));
        submit(&mut broker, 1, publish("one", Some("n1")));
        disk.execute();
        assert_eq!(events(&mut broker), ["opened", "joined after 0", "one is 1"]);
        let set_pages = |max: &str| {
            let sql = format!("PRAGMA max_page_count = {max}");
            disk.0.borrow().database.connection.query_row(&sql, [], |_| Ok(())).unwrap();
        };
        set_pages("1"); // simulates a full disk: SQLite keeps its existing pages, but cannot add any
        submit(&mut broker, 1, publish(&"long".repeat(3000), Some("n2")));
        submit(&mut broker, 1, publish("one again", Some("n1")));
        submit(&mut broker, 2, join(2));
        disk.execute();
        assert_eq!(events(&mut broker), ["not stored", "one was 1", "joined after 1"]);
        set_pages("1000000");
        submit(&mut broker, 1, publish("two", Some("n2")));
        disk.execute();
        assert_eq!(events(&mut broker), ["two is 2"], "the rejected message used no id and no nonce");
    }

    #[test]
    fn bans_are_stored_with_the_batch() {
        let directory = TempDir::new("bans");
        let path = directory.path("file");
        let mut database = open(&path, "a");
        let at = |seconds| NOW + Duration::from_millis(1000 * seconds);
        let mut results = Vec::new();
        let mut change = |subject: &str, until: Option<u64>, now: u64| {
            let (result_sender, result) = std::sync::mpsc::channel();
            results.push(result);
            Operation::Ban(bans::BanChange {
                subject: subject.into(),
                until: until.map(at),
                now: at(now),
                result_sender,
            })
        };
        let store = |text: &str| Operation::Store { room: "tea".into(), message: stored_message(text, None) };
        let batch = [store("one"), change("username ann", Some(9), 1), Operation::Wait, store("two")];
        let outcomes = database.execute(&batch).unwrap().outcomes;
        assert!(matches!(outcomes[..], [Outcome::Stored(1), Outcome::Waited, Outcome::Stored(2)]), "{outcomes:?}");
        let batch = [change("address ::", Some(5), 1), change("address ::", Some(20), 2), change("a", Some(30), 2)];
        assert!(database.execute(&batch).unwrap().outcomes.is_empty());
        database.execute(&[change("a", None, 2)]).unwrap();
        let all = [("address ::".to_owned(), at(20)), ("username ann".to_owned(), at(9))];
        assert_eq!(bans::load(&database.connection, at(2)).unwrap(), all);
        database.connection.query_row("PRAGMA max_page_count = 1", [], |_| Ok(())).unwrap();
        let batch = [change(&"x".repeat(9000), Some(30), 2), Operation::Wait];
        assert!(matches!(database.execute(&batch).unwrap().outcomes[..], [Outcome::Waited]));
        let results: Vec<bool> = results.iter().map(|result| result.try_recv().unwrap()).collect();
        assert_eq!(results, [true, true, true, true, true, false]);
        drop(database);
        let database = open(&path, "b");
        assert_eq!(bans::load(&database.connection, at(9)).unwrap(), all[..1], "a ban no longer applies at its end");
        let insert = "INSERT INTO bans VALUES ('b', 9223372036854775807), ('c', -1)";
        database.connection.execute(insert, []).unwrap();
        assert_eq!(bans::load(&database.connection, at(9)).unwrap(), all[..1], "impossible times are ignored");
    }

    #[test]
    fn a_failed_disk_stops_the_broker() {
        let disk = ManualDisk::new();
        let mut broker = broker(&disk, LIMITS);
        submit(&mut broker, 1, join(1));
        disk.execute();
        events(&mut broker);
        submit(&mut broker, 1, publish("one", None));
        submit(&mut broker, 1, Request::Leave);
        disk.0.borrow_mut().executed.push_back(Err("broken".into()));
        let [event] = &events(&mut broker)[..] else { panic!("one event") };
        assert!(event.contains("StorageFailed") && event.contains("broken"));
        submit(&mut broker, 2, join(2));
        assert!(events(&mut broker).is_empty() && broker.queued_bytes() == 0);
    }

    #[test]
    fn the_logs_in_memory_stay_within_their_bound() {
        let disk = ManualDisk::new();
        let bytes = memory_bytes(&stored_message("1", None).into()) * 5;
        let mut broker = broker(&disk, LogLimits { bytes, ..LIMITS });
        submit(&mut broker, 1, join(1));
        (1..20).for_each(|number| submit(&mut broker, 1, publish(&(number % 10).to_string(), None)));
        disk.execute();
        assert_eq!(events(&mut broker).len(), 21);
        let room = broker.rooms.values().next().unwrap();
        assert_eq!((room.log.messages.len(), room.log.last_id, broker.bytes), (5, 19, bytes));
        submit(&mut broker, 1, Request::Leave);
        events(&mut broker);
        assert_eq!((broker.bytes, broker.rooms.len()), (0, 0));
    }

    fn read(database: &mut Database, before: u64, limit: usize, max_bytes: usize) -> (u64, Vec<u64>) {
        let page = Operation::Page { room: "tea".into(), before, limit, max_bytes };
        match &database.execute(&[page]).unwrap().outcomes[..] {
            [Outcome::Messages { last_id, messages }] => {
                (*last_id, messages.iter().map(|message| message.id).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    fn page(database: &mut Database, before: u64, limit: usize, max_bytes: usize) -> Vec<u64> {
        read(database, before, limit, max_bytes).1
    }

    #[test]
    fn reads_are_bounded_and_stop_at_a_gap() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let mut database = Database::begin_run(connection, OPTIONS, "run", NOW).unwrap();
        (1..=9).for_each(|_| _ = store(&mut database, &"x".repeat(880), None)); // each message takes about 1,000 bytes
        assert_eq!(page(&mut database, u64::MAX, 100, 100_000).len(), 9);
        assert_eq!(page(&mut database, 6, 2, 100_000), [4, 5]);
        assert_eq!(page(&mut database, 6, 100, 2500), [3, 4, 5], "one message more than fits in 2,500 bytes");
        assert_eq!(page(&mut database, 6, 100, 0), [4, 5]);
        assert!(is_resumed(&mut database, "run", 0) && is_resumed(&mut database, "run", 9));
        database.connection.execute("DELETE FROM messages WHERE id = 4", []).unwrap();
        assert_eq!(page(&mut database, u64::MAX, 100, 100_000), [5, 6, 7, 8, 9]);
        assert_eq!(page(&mut database, 5, 100, 100_000), [0; 0]);
        assert!(!is_resumed(&mut database, "run", 3) && !is_resumed(&mut database, "run", 4));
        assert!(is_resumed(&mut database, "run", 5));
        (10..=12).for_each(|_| _ = store(&mut database, &"x".repeat(2000), None));
        assert!(!is_resumed(&mut database, "run", 5), "more than 10,000 bytes");
    }

    #[test]
    fn free_pages_return_to_the_file_system_and_the_wal_stays_small() {
        let directory = TempDir::new("vacuum");
        let path = directory.path("file");
        let mut database = Database::open(&path, OPTIONS, "a", NOW).unwrap();
        let nonce = |number: usize| format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15_usize));
        for batch in 0..20_usize {
            let store = |number| {
                let message = stored_message(&"x".repeat(400), Some(&nonce(batch * 500 + number)));
                Operation::Store { room: format!("room {}", number % 50).into(), message }
            };
            database.execute(&(0..500_usize).map(store).collect::<Vec<_>>()).unwrap();
        }
        drop(database);
        let before = fs::metadata(&path).unwrap().len();
        let (options, now) = (DatabaseOptions { max_age_days: 1, ..OPTIONS }, NOW + Duration::from_secs(1 << 31));
        let mut database = Database::open(&path, options, "b", now).unwrap();
        assert_eq!(page(&mut database, u64::MAX, 100, 100_000), [0; 0]);
        let wal = fs::metadata(directory.path("file-wal")).unwrap().len();
        assert!(wal < before, "the WAL has {wal} bytes, the file had {before}");
        drop(database);
        (0..3).for_each(|run| drop(open(&path, &run.to_string()))); // each start frees up to 1,000 database pages
        let after = fs::metadata(&path).unwrap().len();
        assert!(after < before / 4, "{after} of {before} bytes are left");
    }

    #[test]
    fn a_wal_of_another_copy_is_rejected() {
        let directory = TempDir::new("wal");
        let (path, copy) = (directory.path("file"), directory.path("copy"));
        drop(open(&path, "a"));
        let mut reader = reader::HistoryReader::open(&path).unwrap();
        reader.copy_to(&copy).unwrap();
        drop(reader);
        let mut database = open(&path, "b");
        store(&mut database, "one", None);
        let wal = fs::read(directory.path("file-wal")).unwrap();
        drop(database);
        fs::copy(&copy, &path).unwrap();
        fs::write(directory.path("file-wal"), wal).unwrap();
        for error in [Database::open(&path, OPTIONS, "c", NOW).err(), reader::HistoryReader::open(&path).err()] {
            assert!(
                error.as_ref().is_some_and(|error| error.contains("file-wal belongs to another copy")),
                "{error:?}"
            );
        }
        fs::remove_file(directory.path("file-wal")).unwrap();
        open(&path, "c");
    }

    #[test]
    fn retention_deletes_the_oldest_messages() {
        let database = |options| {
            let connection = rusqlite::Connection::open_in_memory().unwrap();
            Database::begin_run(connection, options, "run", NOW).unwrap()
        };
        let ids = |database: &mut Database| read(database, 1000, 1000, 100_000);
        let mut counted = database(DatabaseOptions { max_messages_per_room: 3, ..OPTIONS });
        (1..=5).for_each(|number| _ = store(&mut counted, "text", Some(&format!("n{number}"))));
        assert_eq!(ids(&mut counted), (5, vec![3, 4, 5]));
        assert!(is_resumed(&mut counted, "run", 2) && !is_resumed(&mut counted, "run", 1));
        assert!(matches!(store(&mut counted, "text", Some("n2")), Outcome::Stored(6)), "a deleted nonce is free");

        let mut aged = database(DatabaseOptions { max_age_days: 1, ..OPTIONS });
        let mut at = |time: &str| {
            let message = StoredMessage { time: time.into(), ..stored_message("text", None) };
            aged.execute(&[Operation::Store { room: "tea".into(), message }]).unwrap().deletions.len()
        };
        assert_eq!([at("2026-01-01T00:00:00.000Z"), at("2026-01-01T12:00:00.000Z")], [0, 0]);
        assert_eq!(at("2026-01-02T06:00:00.000Z"), 1, "message 1 is older than a day");
        assert_eq!(at("2026-01-02T06:00:30.000Z"), 0, "the expiry sweep runs only once a minute");
        assert_eq!(ids(&mut aged), (4, vec![2, 3, 4]));
        let idle = aged.execute(&[]).unwrap();
        assert_eq!((idle.outcomes.len(), idle.deletions.len()), (0, 1), "messages expire although nobody sends any");
        assert_eq!(ids(&mut aged), (4, vec![]));
    }
}
