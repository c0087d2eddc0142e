//! Simulates several server instances that share their rooms through Redis. Each instance is a complete server, and
//! Redis is a model. Users connect to any instance. Faults affect instances, Redis, and the connections between them.

mod network;
mod plan;
mod record;
mod users;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use fastrand::Rng;
use wirechat::broker::redis::{RedisBroker, Settings};
use wirechat::config::Config;
use wirechat::server::broker_limits;

use crate::memory::{World, take_log_lines};
use crate::model::{ACKNOWLEDGEMENT, BOUNDS, DETERMINISM, LIVENESS, MEMBERS, NO_PANIC, ORDER, Violation};
use crate::support::users::Dialect;
use crate::{FNV_OFFSET, fnv1a, trace};
use network::{Data, NEVER, Network};
pub use plan::Plan;
use plan::{Fault, ROOMS, Step};
use record::Record;
use users::{PrivateMessages, ReceiveOutcome, User};

const SECOND: Duration = Duration::from_secs(1);
/// Maximum number of turns at one instant of simulated time. More turns mean that an instance loops endlessly.
const MAX_TURNS: usize = 20_000;
const PREFIX: &str = "p";

pub struct Outcome {
    pub violation: Option<Violation>,
    pub trace: VecDeque<String>,
    pub hash: u64,
    pub time: Duration,
    pub messages: u64,
    pub counters: BTreeMap<&'static str, u64>,
}

struct Instance {
    world: Option<World>,
    link: usize,
    /// The instance is suspended or not running until this time.
    until: Duration,
    /// After a shutdown, how long the instance waits before it starts again.
    pause: Duration,
    /// The other instances may have declared this instance dead, so private messages to its clients may be lost.
    may_be_declared_dead: bool,
}

struct Cluster<'a> {
    plan: &'a Plan,
    now: Duration,
    network: Rc<RefCell<Network>>,
    instances: Vec<Instance>,
    users: Vec<User>,
    record: Record,
    private_messages: PrivateMessages,
    random: Rng,
    connections: u64,
    restarts_at: Option<(Duration, Data)>,
    redis_full_until: Duration,
    /// The messages sent by the last [`Step::Probe`]: the user, the number of the user's connection, and the text.
    probe_messages: Vec<(usize, u64, String)>,
    hash: u64,
    turns: (Duration, usize),
    counters: BTreeMap<&'static str, u64>,
}

/// Runs the plan that `seed` determines. For some seeds, runs the plan twice and compares the two runs. If a rule is
/// broken, prints a report and returns `None`.
pub fn check(seed: u64, shrinks: bool) -> Option<Outcome> {
    let plan = Plan::new(seed);
    let outcome = run_safely(&plan, false);
    let Some(violation) = outcome.violation else {
        let again = seed.is_multiple_of(5 * crate::INSTANCES_EVERY).then(|| run_safely(&plan, true));
        if again.is_some_and(|again| again.hash != outcome.hash || !trace::has_records(&again.trace)) {
            println!("seed {seed} breaks a rule with several instances.\n  rule     {DETERMINISM}");
            return None;
        }
        return Some(Outcome { violation: None, ..outcome });
    };
    let Violation { rule, text } = violation;
    let (done, all) = (trace::step_count(), plan.steps.len());
    println!("seed {seed} breaks a rule with several instances after {done} of {all} steps.");
    println!("  rule     {rule}\n  found    {text}");
    let breaks = |steps| {
        let smaller = Plan { steps, ..plan.clone() };
        run_safely(&smaller, false).violation.is_some_and(|violation| violation.rule == rule)
    };
    let steps = if shrinks { crate::shrink(&plan.steps, breaks) } else { plan.steps.clone() };
    let shrunk = Plan { steps, ..plan.clone() };
    let traced = run_safely(&shrunk, true);
    println!("{} of {} steps are enough: {shrunk:#?}\nThe last events:", shrunk.steps.len(), plan.steps.len());
    traced.trace.iter().for_each(|line| println!("  {line}"));
    traced.violation.iter().for_each(|Violation { rule, text }| println!("  {rule}: {text}"));
    println!("Again: cargo test --release --features full --test simulation -- --instances {seed}");
    None
}

/// Runs a plan. A panic counts as a violation.
fn run_safely(plan: &Plan, is_tracing: bool) -> Outcome {
    panic::catch_unwind(AssertUnwindSafe(|| run(plan, is_tracing))).unwrap_or_else(|_| Outcome {
        violation: Some(Violation { rule: NO_PANIC, text: crate::LAST_PANIC.take() }),
        trace: trace::take(),
        hash: 0,
        time: Duration::ZERO,
        messages: 0,
        counters: BTreeMap::new(),
    })
}

fn run(plan: &Plan, is_tracing: bool) -> Outcome {
    trace::start(is_tracing);
    let mut cluster = Cluster::new(plan);
    for (at, step) in &plan.steps {
        cluster.run_until(*at);
        if cluster.has_failed() {
            break;
        }
        trace::count_step();
        cluster.note(|| format!("{step:?}"));
        cluster.act(*step);
    }
    cluster.run_until(plan.end);
    if !cluster.has_failed() {
        cluster.finish();
    }
    let _ = take_log_lines();
    let Cluster { record, hash, now, counters, .. } = cluster;
    let messages = record.messages;
    Outcome { violation: record.violation, trace: trace::take(), hash, time: now, messages, counters }
}

impl<'a> Cluster<'a> {
    fn new(plan: &'a Plan) -> Cluster<'a> {
        let network = Rc::new(RefCell::new(Network::new(plan.seed, plan.max_delay, plan.timeout)));
        network.borrow().redis.store.borrow_mut().max_stream_len = plan.max_inbox;
        let random = Rng::with_seed(plan.seed ^ 0xc1u64);
        let users = plan.users.iter().enumerate();
        let users = users.map(|(number, dialect)| User::new(number, *dialect, ROOMS[number % 7 / 3])).collect();
        let mut cluster = Cluster {
            plan,
            now: Duration::ZERO,
            network,
            instances: Vec::new(),
            users,
            record: Record::new(plan.history),
            private_messages: PrivateMessages::default(),
            random,
            connections: 0,
            restarts_at: None,
            redis_full_until: Duration::ZERO,
            probe_messages: Vec::new(),
            hash: FNV_OFFSET,
            turns: (Duration::ZERO, 0),
            counters: BTreeMap::new(),
        };
        for at in 0..plan.instances {
            let (link, world) = cluster.start(at);
            let (until, pause, may_be_declared_dead) = (Duration::ZERO, Duration::ZERO, false);
            cluster.instances.push(Instance { world: Some(world), link, until, pause, may_be_declared_dead });
        }
        cluster
    }

    fn note(&self, line: impl FnOnce() -> String) {
        trace::note(self.now, line);
    }

    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    fn has_failed(&self) -> bool {
        self.record.violation.is_some()
    }

    /// Starts the instance `number`. Returns the index of its link to Redis, and the [`World`] that runs the server.
    fn start(&mut self, number: usize) -> (usize, World) {
        let link = Network::add_link(&self.network);
        let at = link.at;
        let mut args = vec!["wirechat"];
        for (name, value) in &self.plan.options {
            args.extend([*name, value.as_str()].into_iter().filter(|word| !word.is_empty()));
        }
        let config = Config::try_parse_from(&args).expect("arguments");
        let (limits, names) = broker_limits(&config);
        let settings = Settings { prefix: PREFIX.to_owned(), timeout: self.plan.timeout, limits };
        let mut random = Rng::with_seed(self.plan.seed * 1000 + at as u64);
        let random = Box::new(move |bytes: &mut [u8]| random.fill(bytes));
        let broker = Box::new(RedisBroker::new(Box::new(link), settings, random, names));
        let seed = self.plan.seed * 7 + at as u64;
        let mut world = World::with_broker(&args[1..], seed, false, |_| broker);
        world.trace = trace::writer(format!("instance {number} "));
        world.jump(self.now);
        (at, world)
    }

    // ---- Time ----

    fn run_until(&mut self, end: Duration) {
        while !self.has_failed() {
            self.settle();
            let next = self.next_work_at().max(self.now);
            if next >= end {
                self.now = self.now.max(end);
                return;
            }
            self.now = next;
        }
    }

    fn next_work_at(&self) -> Duration {
        let network = self.network.borrow();
        let instances = self.instances.iter().map(|instance| match &instance.world {
            Some(world) if instance.until <= self.now => world.next_turn_at().unwrap_or(NEVER),
            _ => instance.until.max(self.now + Duration::from_nanos(1)),
        });
        let users = self.users.iter().filter_map(|user| user.connects_at);
        let restart = self.restarts_at.map(|(at, _)| at);
        let full = network.is_full.then_some(self.redis_full_until);
        instances.chain(users).chain(restart).chain(full).chain([network.next_work_at()]).min().unwrap_or(NEVER)
    }

    /// Runs Redis, the instances and the users until nothing more is due at the current time.
    fn settle(&mut self) {
        loop {
            self.apply_due_changes();
            self.network.borrow_mut().run(self.now);
            self.read_redis();
            let mut is_idle = true;
            for at in 0..self.instances.len() {
                is_idle &= !self.turn(at);
            }
            for user in 0..self.users.len() {
                self.receive(user);
            }
            self.turns = if self.turns.0 == self.now { (self.now, self.turns.1 + 1) } else { (self.now, 0) };
            if self.turns.1 > MAX_TURNS {
                return self.record.fail(LIVENESS, "an instance spins");
            }
            let is_due = self.network.borrow().next_work_at() <= self.now;
            if is_idle && !is_due || self.has_failed() {
                return;
            }
        }
    }

    /// Does what is due now: restarts Redis, lets a full Redis store data again, restarts instances, connects users.
    fn apply_due_changes(&mut self) {
        let now = self.now;
        if let Some((at, data)) = self.restarts_at
            && at <= now
        {
            self.restarts_at = None;
            self.network.borrow_mut().now = now;
            self.network.borrow_mut().start_redis(data);
            if data != Data::All {
                let network = self.network.borrow();
                let store = network.redis.store.borrow();
                self.record.rewind(|room| store.number(&format!("{PREFIX}:room:{room}"), "last_id"));
            }
            self.note(|| "Redis is back".to_owned());
        }
        if self.redis_full_until <= now {
            self.network.borrow_mut().is_full = false;
        }
        for at in 0..self.instances.len() {
            if self.instances[at].until > now {
                continue;
            }
            if self.instances[at].world.is_none() {
                let (link, world) = self.start(at);
                (self.instances[at].link, self.instances[at].world) = (link, Some(world));
            }
        }
        for user in 0..self.users.len() {
            if self.users[user].connects_at.is_some_and(|at| at <= now) {
                self.connect(user);
            }
        }
    }

    fn turn(&mut self, at: usize) -> bool {
        let instance = &mut self.instances[at];
        let Some(world) = instance.world.as_mut().filter(|_| instance.until <= self.now) else { return false };
        world.jump(self.now - world.now());
        trace::set_time(self.now);
        if !world.is_stopped && !world.has_work() && !self.network.borrow().has_events(instance.link) {
            return false;
        }
        if !world.is_stopped {
            world.turn();
        }
        let is_stopped = world.is_stopped;
        for line in take_log_lines() {
            if line.starts_with("REDIS a request failed") || line.starts_with("REDIS an event is invalid") {
                self.record.fail(ORDER, format!("instance {at} logs: {line}"));
            }
            self.note(|| format!("instance {at} logs: {line}"));
        }
        if is_stopped {
            self.instances[at].world = None;
            self.instances[at].until = self.now + self.instances[at].pause;
        }
        true
    }

    /// Records the messages that Redis has appended to the rooms' logs. Fails if the broker's Lua script failed.
    fn read_redis(&mut self) {
        let network = self.network.borrow();
        let appended = std::mem::take(&mut network.redis.store.borrow_mut().appended);
        for (key, id, fields) in appended {
            if let Some(room) = key.strip_prefix(&format!("{PREFIX}:log:")) {
                self.record.append(room, id, &fields);
            }
        }
        if let Some(error) = &network.error {
            self.record.fail(ORDER, format!("the script fails: {error}"));
        }
    }

    // ---- Users ----

    fn connect(&mut self, user: usize) {
        let may_be_suspended = self.random.u8(..10) == 0;
        let is_there = |at: &usize| {
            let instance = &self.instances[*at];
            instance.world.as_ref().is_some_and(|world| !world.is_draining() && !world.is_stopped)
                && (may_be_suspended || instance.until <= self.now)
        };
        let there: Vec<usize> = (0..self.instances.len()).filter(is_there).collect();
        let Some(at) = (!there.is_empty()).then(|| there[self.random.usize(..there.len())]) else {
            self.users[user].connects_at = Some(self.now + Duration::from_millis(100));
            return;
        };
        let Some(world) = &mut self.instances[at].world else { return };
        let client = world.connect();
        self.connections += 1;
        self.users[user].connect(client, at, self.connections);
        self.note(|| format!("user{user} connects to instance {at}"));
    }

    fn receive(&mut self, user: usize) {
        let before = self.users[user].conn.as_ref().map_or(0, |conn| conn.hash);
        let outcome = self.users[user].receive(self.now, user, &mut self.record, &mut self.private_messages);
        let after = self.users[user].conn.as_ref().map_or(0, |conn| conn.hash);
        if before != after {
            self.hash = fnv1a(self.hash, &after.to_le_bytes());
        }
        if matches!(outcome, ReceiveOutcome::End) {
            self.note(|| format!("user{user} has lost its connection"));
            self.count("a lost connection");
            self.users[user].leave(true, &mut self.record);
            self.users[user].connects_at = Some(self.now + SECOND.mul_f64(self.random.f64() * 0.6));
        }
    }

    fn act(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Connect(user) if self.users[user].conn.is_none() => self.users[user].connects_at = Some(now),
            Step::Connect(_) => {}
            Step::Send(user, has_nonce) => self.users[user].send(has_nonce),
            Step::Burst(user, count) => (0..count).for_each(|_| self.users[user].send(true)),
            Step::Private(user, to) => {
                let to = self.users[to].name.clone();
                self.private_messages.by_text.extend(self.users[user].send_private(&to, now));
            }
            Step::Switch(user, room) => self.users[user].switch(ROOMS[room]),
            Step::Typing(user) => self.users[user].type_text(),
            Step::History(user, before) => self.users[user].request_history(before, 5),
            Step::Close(user) => self.users[user].leave(false, &mut self.record),
            Step::Reset(user) => {
                self.users[user].leave(true, &mut self.record);
                self.users[user].connects_at = Some(now + SECOND.mul_f64(self.random.f64()));
            }
            Step::Fault(fault) => self.inject(fault),
            Step::Probe => {
                self.probe_messages.clear();
                for (at, user) in self.users.iter_mut().enumerate() {
                    if user.dialect == Dialect::Events && user.joined().is_some() {
                        user.send(true);
                        self.probe_messages.push((at, user.connections, user.last_pending().unwrap_or_default()));
                    }
                }
            }
            Step::CheckProbe => {
                for (at, connection, text) in self.probe_messages.clone() {
                    self.count("a message right after an outage");
                    let user = &self.users[at];
                    if user.connections == connection && user.conn.is_some() && user.is_pending(&text) {
                        let text = format!("{} waits for an event, and Redis has been back for a second", user.name);
                        self.record.fail(LIVENESS, text);
                    }
                }
            }
        }
    }

    fn inject(&mut self, fault: Fault) {
        let (now, network) = (self.now, Rc::clone(&self.network));
        network.borrow_mut().now = now;
        if let Fault::Suspend(at, _) | Fault::Partition(at, _) | Fault::Lag(at, _) = fault {
            self.instances[at].may_be_declared_dead = true;
        }
        match fault {
            Fault::Suspend(at, _) | Fault::Crash(at, _) | Fault::Stop(at, _) if !self.is_running(at) => {}
            Fault::Suspend(at, time) => {
                self.count("a suspended instance");
                self.instances[at].until = now + time;
                network.borrow_mut().suspend(self.instances[at].link, now + time);
                self.reconnect_some_users(at, time);
            }
            Fault::Crash(at, time) => {
                self.count("a crash of an instance");
                network.borrow_mut().forget(self.instances[at].link);
                self.instances[at].until = now + time;
                self.instances[at].world = None;
            }
            Fault::Stop(at, time) => {
                self.count("a stop of an instance");
                self.instances[at].pause = time;
                self.instances[at].world.iter_mut().for_each(World::shut_down);
            }
            Fault::Partition(at, time) => {
                self.count("a partition");
                network.borrow_mut().cut(self.instances[at].link, now + time);
            }
            Fault::BreakCalls(at, how) => network.borrow_mut().break_calls(self.instances[at].link, how),
            Fault::BreakReads(at) => network.borrow_mut().break_reads(self.instances[at].link),
            Fault::Lag(at, time) => network.borrow_mut().lag(self.instances[at].link, now + time),
            Fault::Stall(time) => {
                let until = &mut network.borrow_mut().stalled_until;
                *until = (*until).max(now + time);
            }
            Fault::Fill(time) => {
                self.count("a Redis that is full");
                network.borrow_mut().is_full = true;
                self.redis_full_until = self.redis_full_until.max(now + time);
            }
            Fault::Snapshot => network.borrow_mut().take_snapshot(),
            Fault::Restart(time, data) if self.restarts_at.is_none() => {
                self.count(match data {
                    Data::All => "a restart of Redis with its data",
                    Data::Snapshot => "a restart of Redis with older data",
                    Data::Nothing => "a restart of Redis without data",
                });
                network.borrow_mut().kill_redis();
                self.read_redis();
                self.restarts_at = Some((now + time, data));
            }
            Fault::Flush if self.restarts_at.is_none() => {
                self.read_redis();
                self.count("a Redis whose data is erased while it runs");
                network.borrow_mut().flush();
                self.record.rewind(|_| 0);
            }
            Fault::Restart(..) | Fault::Flush => {}
        }
    }

    fn is_running(&self, at: usize) -> bool {
        let instance = &self.instances[at];
        let is_open = |world: &World| !world.is_stopped && !world.is_draining();
        instance.until <= self.now && instance.world.as_ref().is_some_and(is_open)
    }

    /// Makes about half of a suspended instance's users reconnect, usually to another instance.
    fn reconnect_some_users(&mut self, at: usize, time: Duration) {
        for user in 0..self.users.len() {
            let is_here = self.users[user].conn.as_ref().is_some_and(|conn| conn.instance == at);
            if is_here && self.random.bool() {
                self.users[user].leave(true, &mut self.record);
                self.users[user].connects_at = Some(self.now + time.mul_f64(self.random.f64()));
            }
        }
    }

    // ---- The final checks ----

    /// Continues the run without new faults. Checks that every message arrives, that all instances agree, and that no
    /// user data stays in Redis forever.
    fn finish(&mut self) {
        let start = self.now;
        // An instance notices within the timeout that a partition has broken its connection to Redis.
        self.run_until(start + self.plan.timeout + 2 * SECOND + 20 * self.plan.max_delay);
        for user in 0..self.users.len() {
            let is_joined = self.users[user].joined().is_some();
            let is_away = self.users[user].conn.is_none() && self.users[user].connects_at.is_none();
            // With `--unique-names`, a user whose instance has died cannot rejoin until the remaining instances notice
            // the death. Until then, they treat the username as in use.
            if !is_joined && !is_away && !self.has_unique_names() {
                return self.record.fail(LIVENESS, format!("user{user} has not joined"));
            }
        }
        self.run_until(start + self.plan.timeout + 9 * SECOND + 20 * self.plan.max_delay);
        for user in 0..self.users.len() {
            if self.users[user].conn.is_some() && self.users[user].joined().is_none() {
                return self.record.fail(LIVENESS, format!("user{user} has not joined"));
            }
            self.users[user].send(true);
        }
        self.run_until(self.now + SECOND + 20 * self.plan.max_delay);
        if !self.has_failed() {
            self.check_users();
            self.check_private_messages();
        }
        (0..self.users.len()).for_each(|user| {
            self.users[user].leave(user % 2 == 0, &mut self.record);
            self.users[user].connects_at = None;
        });
        self.run_until(self.now + SECOND + 20 * self.plan.max_delay);
        self.check_keys(false);
        for at in 0..self.instances.len() {
            self.instances[at].pause = 1000 * SECOND;
            self.instances[at].world.iter_mut().for_each(World::shut_down);
        }
        self.run_until(self.now + 4 * SECOND + 20 * self.plan.max_delay);
        self.check_keys(true);
    }

    fn has_unique_names(&self) -> bool {
        self.plan.options.iter().any(|(name, _)| *name == "--unique-names")
    }

    fn check_users(&mut self) {
        for user in 0..self.users.len() {
            let of = &self.users[user];
            let Some(conn) = of.conn.as_ref().filter(|_| of.dialect == Dialect::Events) else { continue };
            let last_id = self.record.last_id(&conn.room);
            if conn.last_id != last_id {
                let text =
                    format!("user{user} has message {} of {}, and the last is {last_id}", conn.last_id, conn.room);
                self.record.fail(LIVENESS, text);
            } else if of.has_pending() {
                self.record.fail(LIVENESS, format!("user{user} waits for the event of a message"));
            }
            let others =
                self.users.iter().enumerate().filter(|(at, other)| {
                    *at != user && other.conn.as_ref().is_some_and(|other| other.room == conn.room)
                });
            let mut expected: Vec<String> = others.map(|(_, other)| other.listed_name()).collect();
            expected.sort();
            let members = of.members();
            if members != expected {
                let text = format!("user{user} in {} knows the members {members:?}, not {expected:?}", conn.room);
                self.record.fail(MEMBERS, text);
            }
        }
    }

    /// Checks that each private message that the server has acknowledged to the sender has reached the recipient, if
    /// the recipient has stayed connected.
    fn check_private_messages(&mut self) {
        if self.record.has_lost_data || self.plan.max_inbox.is_some() {
            return;
        }
        for (text, private) in &self.private_messages.by_text {
            let to = self.users.iter().position(|user| user.name == private.to);
            let Some((at, conn)) = to.and_then(|at| Some((at, self.users[at].conn.as_ref()?))) else { continue };
            let stayed = conn.joined_at < private.sent_at && !self.instances[conn.instance].may_be_declared_dead;
            // A client of the `rooms` dialect joins as `Anonymous`. Until it sends a message under its own username, no
            // private message can reach it, so skip such clients.
            let joins_by_name = self.users[at].dialect != Dialect::Rooms;
            if private.is_acknowledged && stayed && joins_by_name && !private.received.contains_key(&at) {
                self.record.fail(ACKNOWLEDGEMENT, format!("{text:?} has not reached {}", private.to));
            }
        }
    }

    /// Checks that Redis holds no unexpected keys, and that the keys of rooms have an expiry time. If `is_end` is true,
    /// the keys of the instances must be gone or have an expiry time too.
    fn check_keys(&mut self, is_end: bool) {
        let network = self.network.borrow();
        let store = network.redis.store.borrow();
        for (key, entry) in &store.keys {
            let kind = key.split(':').nth(1).unwrap_or_default();
            let may_stay = match kind {
                "meta" | "seen" | "unproven" | "empty" => true,
                "instances" => !is_end,
                "instance" | "inbox" => !is_end || entry.expires_at.is_some(),
                "room" | "log" | "nonces" => entry.expires_at.is_some(),
                _ => false,
            };
            if !may_stay {
                self.record.fail(BOUNDS, format!("Redis keeps {key}: {entry:?}"));
            }
        }
    }
}
