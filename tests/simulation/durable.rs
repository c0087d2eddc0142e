//! Simulates the disk of the SQLite broker: commits take virtual time, fail, or are lost in a crash. The database is
//! a real SQLite database in memory, which survives a crash of the simulated server.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use mio::Token;
use rusqlite::Connection;
use wirechat::broker::memory::MemoryBroker;
use wirechat::broker::sqlite::database::{Database, DatabaseOptions, Operation, Outcome};
use wirechat::broker::sqlite::{LogLimits, SqliteBroker};
use wirechat::broker::{Broker, BrokerError, Join, Message, Request, RoomEvent};

use crate::manual_disk::ManualDisk;
use crate::model::{Model, Submission};
use crate::script::ROOMS;

/// Controls the simulated disk from the test.
#[derive(Clone)]
pub struct DiskControl {
    disk: ManualDisk,
    state: Rc<RefCell<State>>,
}

struct State {
    database: Option<Database>,
    options: DatabaseOptions,
    fails: bool,
    runs: usize,
}

fn new_database() -> Connection {
    Connection::open_in_memory().expect("a database")
}

impl DiskControl {
    pub fn new(keep: u64) -> DiskControl {
        let options = DatabaseOptions { survives_power_failure: true, max_messages_per_room: keep, max_age_days: 0 };
        let state = State { database: None, options, fails: false, runs: 0 };
        DiskControl { disk: ManualDisk::default(), state: Rc::new(RefCell::new(state)) }
    }

    pub fn is_pending(&self) -> bool {
        self.disk.waiting_count() > 0
    }

    /// Executes all waiting operations in one transaction. Returns `false` if there are none.
    pub fn execute(&self) -> bool {
        if !self.is_pending() {
            return false;
        }
        let State { database, fails, .. } = &mut *self.state.borrow_mut();
        self.disk.execute(|operations| {
            let batch = database.as_mut().expect("a database").execute(operations).expect("a sound file");
            if *fails { Err("a simulated I/O error".to_owned()) } else { Ok(batch) }
        });
        true
    }

    /// Makes the disk report an I/O error for every transaction until the next crash.
    pub fn fail(&self) {
        self.state.borrow_mut().fails = true;
    }

    /// If `is_full` is true, stops the database from growing beyond its current size, as a full disk would. Otherwise,
    /// removes that limit.
    pub fn set_full(&self, is_full: bool) {
        let state = self.state.borrow();
        let connection = &state.database.as_ref().expect("a database").connection;
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
        let max = if is_full { pages } else { 1 << 30 };
        connection.query_row(&format!("PRAGMA max_page_count = {max}"), [], |_| Ok(())).expect("a pragma");
    }

    /// Simulates a crash. Waiting operations are lost. Executed operations stay in the database, even if the broker
    /// has not received their results.
    pub fn crash(&self) {
        self.disk.crash();
        self.state.borrow_mut().fails = false;
    }

    /// Opens the database for the next run of the server. Returns the name of the run.
    pub fn begin_run(&self) -> String {
        let mut state = self.state.borrow_mut();
        state.runs += 1;
        let name = format!("run{}", state.runs);
        let connection = match state.database.take() {
            Some(mut database) => std::mem::replace(&mut database.connection, new_database()),
            None => new_database(),
        };
        let database = Database::begin_run(connection, state.options.clone(), &name, SystemTime::UNIX_EPOCH);
        state.database = Some(database.expect("a sound file"));
        name
    }

    /// Returns the last id and all stored messages of each room.
    pub fn messages(&self) -> BTreeMap<&'static str, (u64, Vec<Message>)> {
        let mut state = self.state.borrow_mut();
        let load = |room: &&str| Operation::Load { room: (*room).into(), limit: 1 << 30, max_bytes: 1 << 30 };
        let operations: Vec<Operation> = ROOMS.iter().map(load).collect();
        let batch = state.database.as_mut().expect("a database").execute(&operations).expect("a sound file");
        let messages = |outcome: Outcome| match outcome {
            Outcome::Messages { last_id, messages } => (last_id, messages.into_iter().map(Message::from).collect()),
            other => panic!("{other:?}"),
        };
        ROOMS.into_iter().zip(batch.outcomes.into_iter().map(messages)).collect()
    }
}

/// Creates the SQLite broker for the next run of the server. The SQLite broker stores the messages, and `inner`
/// tracks the members of each room. `inner` must be configured to keep no messages.
pub fn broker(
    disk: &DiskControl,
    inner: MemoryBroker,
    limits: LogLimits,
    model: &Rc<RefCell<Model>>,
) -> Box<dyn Broker> {
    let run = disk.begin_run();
    model.borrow_mut().begin_run(&run);
    let counts = Rc::new(RefCell::new(0));
    let inner = Counted { broker: inner, events: VecDeque::new(), count: Rc::clone(&counts) };
    let broker = SqliteBroker::new(Box::new(inner), Box::new(disk.disk.clone()), &run, limits);
    let (submitted, released) = (VecDeque::new(), Vec::new());
    Box::new(CheckedBroker { broker, model: Rc::clone(model), counts, submitted, released })
}

/// Wraps an in-memory broker, and stores in `count` the number of events that the last request caused.
struct Counted {
    broker: MemoryBroker,
    events: VecDeque<RoomEvent>,
    count: Rc<RefCell<usize>>,
}

impl Broker for Counted {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.broker.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        self.broker.submit(client, request, now);
        self.events.extend(std::iter::from_fn(|| self.broker.next_event()));
        *self.count.borrow_mut() = self.events.len();
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        self.events.pop_front()
    }
}

/// Wraps the SQLite broker. Once the SQLite broker has returned all events of a request, passes the request and these
/// events to the model.
struct CheckedBroker {
    broker: SqliteBroker,
    model: Rc<RefCell<Model>>,
    counts: Rc<RefCell<usize>>,
    submitted: VecDeque<(Token, Submission, usize)>,
    released: Vec<RoomEvent>,
}

impl CheckedBroker {
    fn check(&mut self) {
        while self.submitted.front().is_some_and(|(.., count)| *count == self.released.len()) {
            let Some((client, submitted, _)) = self.submitted.pop_front() else { return };
            self.model.borrow_mut().check_group(client, &submitted, &self.released);
            self.released.clear();
        }
    }
}

impl Broker for CheckedBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.broker.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        let submitted = Model::simplify(&request);
        *self.counts.borrow_mut() = 0;
        self.broker.submit(client, request, now);
        self.submitted.push_back((client, submitted, *self.counts.borrow()));
        self.check();
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        let event = self.broker.next_event()?;
        if matches!(event, RoomEvent::StorageFailed { .. }) {
            self.submitted.clear();
            return Some(event);
        }
        self.released.push(event.clone());
        self.check();
        Some(event)
    }

    fn queued_bytes(&self) -> usize {
        self.broker.queued_bytes()
    }
}
