//! Runs a script with the server, its sockets and its clients in one thread and on a virtual clock. The clock advances
//! only while neither the server nor a client has anything to do. After every turn of the event loop, each client
//! checks the bytes that it has received against the model.

macro_rules! note {
    ($run:expr, $($arg:tt)*) => {
        trace::note($run.world.now(), || format!($($arg)*))
    };
}

mod actions;
mod checks;
#[cfg(feature = "sqlite")]
mod crash;
mod receiving;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use mio::Token;
use serde_json::{Value, json};
use wirechat::broker::BrokerError;
use wirechat::tools::poke::case::Opening;
use wirechat::tools::poke::catalogue;
use wirechat::tools::poke::request;
use wirechat::tools::url::Url;

use crate::broker::{Decisions, Events};
use crate::delayed_broker::DelayedBroker;
#[cfg(feature = "sqlite")]
use crate::durable::DiskControl;
use crate::late::DelayedEvents;
use crate::memory::link::Faults;
use crate::memory::{Client, End, Stderr, World, take_log_lines};
use crate::model::{ACKNOWLEDGEMENT, BOUNDS, FRAMES, LIVENESS, LOG, MEMBERS, Model, ORDER, Violation};
use crate::script::{Action, Actor, ROOMS, Script, TimedAction};
use crate::support::users::{self, Dialect, encode};
use crate::support::{KEY, masked, upgrade_request};
use crate::{FNV_OFFSET, fnv1a, trace};
use flate2::{Decompress, FlushDecompress};

use receiving::parse_frame;

/// Maximum number of event-loop turns at the same virtual time. A run that exceeds it fails: the server is probably in
/// an endless loop.
const MAX_TURNS: usize = 50_000;
/// Maximum number of consecutive turns per connection in which no byte passes and nothing else happens. A run that
/// exceeds it fails: the server wakes up for nothing. A client that does not read causes 20 such turns: with
/// `--ping-interval 3`, the server queues a Ping every 3 seconds, and drops the client after a minute.
const MAX_IDLE_TURNS: usize = 25;
/// The username of rude clients. They run the test cases of `wirechat poke`, so they may violate the protocol.
const RUDE_USERNAME: &str = "rude";
const SECOND: Duration = Duration::from_secs(1);

pub struct Outcome {
    pub violation: Option<Violation>,
    /// Number of actions executed before the end of the script or the first violation.
    pub step: usize,
    /// The last events. Empty if the run was not traced.
    pub trace: VecDeque<String>,
    pub hash: u64,
    /// For each actor, the frames that it has received on all of its connections. `strip_rude_clients` has removed what
    /// depends on rude clients. The lists are empty unless the script also runs without its rude client.
    pub received: BTreeMap<usize, Vec<String>>,
    pub time: Duration,
    pub messages: u64,
    pub counters: BTreeMap<&'static str, u64>,
}

enum Output {
    Bytes(Vec<u8>),
    End,
}

struct Conn {
    client: Client,
    actor: usize,
    /// A seed for this connection's random choices, which combines the actor's index and the number of its earlier
    /// connections. So the choices do not depend on the actions of other actors.
    number: u64,
    /// The dialect of a chat connection. `None`: a connection to `/echo`.
    dialect: Option<Dialect>,
    is_polite: bool,
    token: Option<Token>,
    input: Vec<u8>,
    status: Option<u16>,
    outgoing: VecDeque<(Duration, Output)>,
    last_send_at: Duration,
    /// Bytes on their way from the server, each with the time of its arrival.
    incoming: VecDeque<(Duration, Vec<u8>)>,
    hash: u64,
    /// The received frames, after `strip_rude_clients` has removed everything that depends on rude clients. A test
    /// compares them in a run with a rude client and a run without one.
    frames: Vec<String>,
    received_close: Option<(u16, String)>,
    sent_close: Option<u16>,
    has_ended: bool,
    is_reset: bool,
    is_silent: bool,
    /// Whether the client may miss events or lose its connection without a violation: it has stopped reading, or a
    /// clock jump came while bytes were in flight.
    may_lose_events: bool,
    /// Nonces for which no acknowledgement or error has arrived yet.
    nonces: Vec<String>,
    /// Number of errors that the client has received.
    errors: usize,
    /// Number of texts sent that exceed `--max-text` and for which no error has arrived yet.
    long_texts: usize,
    /// How many errors without a nonce may still arrive: at most one for each command sent without a nonce.
    allowed_errors: usize,
    pings: usize,
    ping_frames: VecDeque<Vec<u8>>,
    sent: VecDeque<Rc<str>>,
    is_over: bool,
    /// Whether the server has restarted since the client connected. The restart ended the connection.
    is_from_earlier_run: bool,
    /// The `since` parameter of the client's request, if the client asked to resume.
    since: Option<u64>,
    /// Inflates received messages, if compression was negotiated.
    inflater: Option<Inflater>,
}

impl Conn {
    /// The time at which the client sends its next bytes or ends its stream. `None`: it has nothing to send, or its
    /// queue to the server is full.
    fn sends_at(&self) -> Option<Duration> {
        let (at, out) = self.outgoing.front()?;
        let is_blocked = matches!(out, Output::Bytes(_)) && self.client.is_open() && self.client.space() == 0;
        (!is_blocked).then_some(*at)
    }

    fn receives_at(&self) -> Option<Duration> {
        self.incoming.front().map(|(at, _)| *at)
    }

    /// When the client next sends or receives something.
    fn acts_at(&self) -> Option<Duration> {
        self.sends_at().into_iter().chain(self.receives_at()).min()
    }

    /// The bytes that the server has written and the client has not processed.
    fn unread(&self) -> Vec<u8> {
        let incoming = self.incoming.iter().flat_map(|(_, bytes)| bytes);
        self.input.iter().chain(incoming).copied().chain(self.client.unread()).collect()
    }
}

struct Inflater {
    stream: Decompress,
    takes_over: bool,
}

/// The state that a client keeps across connections.
#[derive(Default, Clone)]
struct ActorState {
    room: String,
    epoch: String,
    last_id: u64,
    session: String,
    unacknowledged: Vec<(String, String)>,
    texts: usize,
}

pub struct Run<'a> {
    script: &'a Script,
    world: World,
    model: Rc<RefCell<Model>>,
    late: Option<DelayedEvents>,
    args: Vec<String>,
    random: Rng,
    conns: Vec<Conn>,
    conn_by_token: HashMap<Token, usize>,
    /// Indices into `conns`: the connections that are open or not yet accepted.
    active: Vec<usize>,
    current: Vec<Option<usize>>,
    actor_states: Vec<ActorState>,
    release_at: Duration,
    accepts_at: Duration,
    stderr: Arc<Mutex<Stderr>>,
    /// The virtual time at which a stalled stderr accepts bytes again.
    stderr_ready_at: Duration,
    /// The server's log lines, if stderr is simulated.
    logged: Vec<String>,
    has_stalled: bool,
    is_calm: bool,
    is_stopping: bool,
    has_jumped: bool,
    turns: (Duration, usize),
    messages: u64,
}

pub fn run(script: &Script, is_tracing: bool) -> Outcome {
    trace::start(is_tracing);
    let mut run = Run::new(script);
    for timed in &script.actions {
        run.run_until(timed.at);
        if run.has_failed() {
            break;
        }
        trace::count_step();
        run.act(timed);
    }
    run.run_until(script.end);
    if !run.has_failed() {
        run.stop_faults_and_check();
    }
    if !run.has_failed() {
        if script.ends_with_shutdown { run.shut_down() } else { run.disconnect_all() }
    }
    run.outcome()
}

impl<'a> Run<'a> {
    fn new(script: &'a Script) -> Run<'a> {
        let model = Rc::new(RefCell::new(Model::new(script.rules())));
        let mut args: Vec<String> = Vec::new();
        for (name, value) in &script.options {
            // Skip these two options if the SQLite broker keeps the history. `start_on` then sets both to 0, so that
            // the memory broker inside the SQLite broker keeps no history.
            if script.history_keep.is_some() && matches!(*name, "--history" | "--max-empty-rooms") {
                continue;
            }
            args.push((*name).to_owned());
            if value != "true" {
                args.push(value.clone());
            }
        }
        let (late, mut world) = Run::start(script, &args, &model);
        let stderr = Arc::new(Mutex::new(Stderr { space: usize::MAX, ..Stderr::default() }));
        if script.logs_to_stderr {
            world.log_to(&stderr);
        }
        let _ = take_log_lines();
        let count = script.actors.len();
        let mut run = Run {
            script,
            world,
            model,
            late,
            args,
            random: Rng::with_seed(script.seed ^ 0x5eed),
            conns: Vec::new(),
            conn_by_token: HashMap::new(),
            active: Vec::new(),
            current: vec![None; count],
            actor_states: vec![ActorState::default(); count],
            release_at: Duration::ZERO,
            accepts_at: Duration::ZERO,
            stderr,
            stderr_ready_at: Duration::ZERO,
            logged: Vec::new(),
            has_stalled: false,
            is_calm: false,
            is_stopping: false,
            has_jumped: false,
            turns: (Duration::ZERO, 0),
            messages: 0,
        };
        run.inject_faults();
        run
    }

    /// Starts a server with the broker that the script asks for.
    fn start(script: &Script, args: &[String], model: &Rc<RefCell<Model>>) -> (Option<DelayedEvents>, World) {
        #[cfg(feature = "sqlite")]
        if let Some(keep) = script.history_keep {
            let disk = DiskControl::new(keep as u64);
            let world = Run::start_on(&disk, script, args, model, Duration::ZERO);
            return (Some(DelayedEvents::Disk(disk)), world);
        }
        let mut late = None;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut world = World::with_broker(&args, script.seed, script.is_observed, |broker| {
            let (broker, events) = (Box::new(broker), VecDeque::new());
            let inner = Box::new(Decisions { broker, model: Rc::clone(model), events });
            let broker: Box<dyn wirechat::broker::Broker> = match script.delay {
                None => inner,
                Some(_) => {
                    let (broker, control) = DelayedBroker::new(inner, script.seed);
                    late = Some(DelayedEvents::Broker(control));
                    Box::new(broker)
                }
            };
            Box::new(Events { broker, model: Rc::clone(model) })
        });
        world.trace = trace::writer(String::new());
        (late, world)
    }

    fn has_failed(&self) -> bool {
        self.model.borrow().violation.is_some()
    }

    fn fail(&self, rule: &'static str, text: impl Into<String>) {
        self.model.borrow_mut().fail(rule, text);
    }

    fn count(&self, what: &'static str) {
        self.model.borrow_mut().count(what);
    }

    fn outcome(self) -> Outcome {
        let model = self.model.borrow();
        let mut received = BTreeMap::<usize, Vec<String>>::new();
        let mut hash = fnv1a(FNV_OFFSET, &self.world.now().as_nanos().to_le_bytes());
        for conn in &self.conns {
            received.entry(conn.actor).or_default().extend_from_slice(&conn.frames);
            hash = fnv1a(hash, &conn.hash.to_le_bytes());
        }
        Outcome {
            violation: model.violation.clone(),
            step: trace::step_count(),
            trace: trace::take(),
            hash,
            received,
            time: self.world.now(),
            messages: self.messages,
            counters: model.counters.clone(),
        }
    }

    /// Runs turns of the event loop until the virtual clock reaches `end`. The turn at `end` itself does not run,
    /// because the caller first executes the next action.
    fn run_until(&mut self, end: Duration) {
        while self.world.now() < end && !self.has_failed() && !self.world.is_stopped {
            if self.is_ready() {
                self.turn();
                continue;
            }
            let now = self.world.now();
            let clients = self.active.iter().filter_map(|at| self.conns[*at].acts_at()).min();
            let release = self.has_pending_events().then_some(self.release_at);
            let times = [clients, release, self.world.next_turn_at()];
            let next = times.into_iter().flatten().min().unwrap_or(end).max(now);
            if next >= end {
                self.world.jump(end.saturating_sub(now));
                return;
            }
            self.world.jump(next - now);
        }
    }

    /// Whether the simulated broker has events to release, or the simulated disk has operations to execute.
    fn has_pending_events(&self) -> bool {
        self.late.as_ref().is_some_and(DelayedEvents::is_pending)
    }

    fn is_ready(&self) -> bool {
        let now = self.world.now();
        let is_due = || {
            self.active.iter().any(|at| self.conns[*at].acts_at().is_some_and(|at| at <= now))
                || self.has_pending_events() && self.release_at <= now
        };
        self.world.has_work() || is_due()
    }

    fn turn(&mut self) {
        let now = self.world.now();
        trace::set_time(now);
        self.turns = if self.turns.0 == now { (now, self.turns.1 + 1) } else { (now, 1) };
        if self.turns.1 > MAX_TURNS {
            return self.fail(LIVENESS, "the server spins");
        }
        if self.accepts_at <= now && self.world.backlog().is_out_of_descriptors.take() && self.world.backlog().len() > 0
        {
            self.count("clients that waited for a descriptor");
        }
        if self.stderr_ready_at <= now {
            self.stderr.lock().expect("no panic").space = usize::MAX;
        }
        let mut has_sent = false;
        for at in self.active.clone() {
            let conn = &mut self.conns[at];
            while conn.sends_at().is_some_and(|at| at <= now)
                && let Some((at, out)) = conn.outgoing.pop_front()
            {
                has_sent = true;
                if !conn.client.is_open() {
                    continue;
                }
                match out {
                    Output::Bytes(mut bytes) => {
                        let rest = bytes.split_off(bytes.len().min(conn.client.space()));
                        conn.client.send(&bytes);
                        if !rest.is_empty() {
                            conn.outgoing.push_front((at, Output::Bytes(rest)));
                        }
                    }
                    Output::End => {
                        conn.client.end();
                        conn.has_ended = true;
                    }
                }
            }
        }
        let mut releases = 0;
        if self.has_pending_events() && self.release_at <= now {
            releases = if self.is_calm { usize::MAX } else { self.random.usize(1..4) };
            let delay = if self.is_calm { Duration::ZERO } else { self.script.delay.unwrap_or_default() };
            self.release_at = now + delay.mul_f64(self.random.f64());
        }
        let late = self.late.clone();
        let leave_count = self.model.borrow().leave_count;
        self.world.turn_with(|server| {
            for _ in 0..releases {
                if !late.as_ref().is_some_and(DelayedEvents::release_one) {
                    break;
                }
                server.apply_effects();
            }
        });
        if self.model.borrow().leave_count > leave_count + 128 {
            self.count("a hold of broadcasts");
        }
        let has_received = self.active.iter().any(|at| self.conns[*at].receives_at().is_some_and(|at| at <= now));
        if self.read_log() || has_sent || has_received || releases > 0 || self.stderr_ready_at > now {
            self.world.idle_turns = 0;
        }
        // During a drain, the server runs a turn every 100 ms, even if no client is to be closed.
        if self.world.idle_turns > MAX_IDLE_TURNS * (1 + self.active.len()) && !self.is_stopping {
            let text = format!("nothing has happened in {} turns", self.world.idle_turns);
            return self.fail(LIVENESS, text);
        }
        self.register_accepted_clients();
        for at in self.active.clone() {
            self.receive(at);
        }
        if self.script.delay.is_none() && !self.script.has_crowd {
            self.check_outbox_bound();
        }
        self.check_buffers();
        #[cfg(feature = "sqlite")]
        if self.world.is_stopped && !self.is_stopping {
            return self.restart();
        }
        self.active.retain(|at| !self.conns[*at].is_over || self.conns[*at].token.is_none());
    }

    fn register_accepted_clients(&mut self) {
        for at in &self.active {
            let conn = &mut self.conns[*at];
            if conn.token.is_none()
                && let Some(token) = conn.client.accepted_as()
            {
                conn.token = Some(token);
                self.conn_by_token.insert(token, *at);
                if let Some(dialect) = conn.dialect {
                    let sent = std::mem::take(&mut conn.sent);
                    self.model.borrow_mut().add_member(token, dialect, conn.is_polite, sent);
                }
            }
        }
    }

    /// Reads the new log lines and counts their events. Returns whether the server has logged anything since the last
    /// call.
    fn read_log(&mut self) -> bool {
        let lines = take_log_lines();
        for line in &lines {
            if self.script.logs_to_stderr {
                self.logged.push(line.clone());
            }
            note!(self, "the server logs: {line}");
            let reasons = [
                ("too slow to read", "a slow consumer"),
                ("flooding", "a flood"),
                ("replaced by", "a client that is replaced"),
                ("buffers are full", "the buffers of the server are full"),
                ("was silent for", "a silent peer"),
                ("did not reply to the Close", "a Close without a reply"),
                ("did not read the last bytes", "a peer that does not read the last bytes"),
                ("did not end the stream", "a peer that does not end the stream"),
                ("ended the stream without a Close", "a stream that ends without a Close"),
                ("Broken pipe", "a failed write"),
                ("FAIL ", "a protocol error"),
                ("too many rejected connections", "a rejected connection that makes room"),
                (" 503 ", "a full server"),
                (" 429 ", "too many joins"),
                (" 408 ", "a request that is never complete"),
            ];
            for (text, counter) in reasons {
                if line.contains(text) {
                    self.count(counter);
                }
            }
            let slow = line.starts_with("LEAVE") && line.contains("too slow to read");
            if let Some(at) = slow.then(|| self.connection_of(line)).flatten() {
                let conn = &self.conns[at];
                let is_half = conn.status == Some(101) && {
                    let unread = conn.unread();
                    let mut rest = &unread[..];
                    while let Ok(Some(frame)) = parse_frame(rest, conn.inflater.is_some()) {
                        rest = &rest[frame.len..];
                    }
                    !rest.is_empty()
                };
                if is_half {
                    self.count("a slow consumer with half a frame");
                }
                if self.model.borrow().open_room_count() == 0 {
                    self.count("a slow consumer alone in its room");
                }
            }
        }
        !lines.is_empty()
    }

    fn connection_of(&self, line: &str) -> Option<usize> {
        let number = line.split(" connection=").nth(1)?.split(' ').next()?.parse().ok()?;
        self.conn_by_token.get(&Token(number)).copied()
    }
}
