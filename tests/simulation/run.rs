//! Runs a script: the server, its sockets and its clients in one thread, on a virtual clock. Time moves only when nothing
//! is ready. After every turn, each client checks what it has received against the model.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use mio::Token;
use serde_json::{Value, json};
use wirechat::broker::BrokerError;
use wirechat::tools::poke::case::Opening;
use wirechat::tools::poke::catalogue;
use wirechat::tools::poke::request::{self, Url};

use crate::broker::{Decisions, Events};
use crate::delayed_broker::{Control, DelayedBroker};
use crate::memory::link::Faults;
use crate::memory::{Client, End, World, take_log_lines};
use crate::model::{ACKNOWLEDGEMENT, BOUNDS, FRAMES, LIVENESS, MEMBERS, Model, ORDER, Violation};
use crate::script::{Action, Actor, ROOMS, Script, Timed};
use crate::support::users::{self, Dialect, encode};
use crate::support::{KEY, masked, upgrade_request};

/// A server that has this many turns at one time spins.
const MAX_TURNS: usize = 50_000;
const TRACE_LEN: usize = 50;
const SECOND: Duration = Duration::from_secs(1);

thread_local! {
    /// Outlives a panic of the server.
    static TRACE: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// The last events of the last traced run.
pub fn last_trace() -> VecDeque<String> {
    TRACE.take()
}

pub struct Outcome {
    pub violation: Option<Violation>,
    /// The number of actions before the violation, or all.
    pub step: usize,
    /// The last events in plain words, if the run was traced.
    pub trace: VecDeque<String>,
    pub hash: u64,
    /// A hash of what the clients of each actor have received.
    pub received: BTreeMap<usize, u64>,
    pub time: Duration,
    pub messages: u64,
    pub counters: BTreeMap<&'static str, u64>,
}

enum Out {
    Bytes(Vec<u8>),
    End,
}

struct Conn {
    client: Client,
    actor: usize,
    /// Does not depend on what other actors do.
    number: u64,
    /// `None`: `/echo`, or a request that may be malformed.
    dialect: Option<Dialect>,
    is_polite: bool,
    token: Option<Token>,
    input: Vec<u8>,
    status: Option<u16>,
    outgoing: VecDeque<(Duration, Out)>,
    last_out: Duration,
    hash: u64,
    received_close: Option<(u16, String)>,
    sent_close: Option<u16>,
    has_ended: bool,
    is_reset: bool,
    is_silent: bool,
    has_paused: bool,
    /// The nonces that are not answered.
    nonces: Vec<String>,
    /// Commands without a nonce, each of which may cause an error.
    plain: usize,
    pings: usize,
    ping_frames: VecDeque<Vec<u8>>,
    sent: VecDeque<Rc<str>>,
    is_over: bool,
    /// The id after which it resumes.
    since: Option<u64>,
}

/// What a client knows when it reconnects.
#[derive(Default, Clone)]
struct Knowledge {
    room: String,
    epoch: String,
    last_id: u64,
    session: String,
    unanswered: Vec<(String, String)>,
    texts: usize,
}

pub struct Run<'a> {
    script: &'a Script,
    world: World,
    model: Rc<RefCell<Model>>,
    control: Option<Control>,
    random: Rng,
    conns: Vec<Conn>,
    by_token: HashMap<Token, usize>,
    /// The connections that still matter.
    active: Vec<usize>,
    current: Vec<Option<usize>>,
    knowledge: Vec<Knowledge>,
    release_at: Duration,
    accepts_at: Duration,
    is_calm: bool,
    has_jumped: bool,
    is_tracing: bool,
    turns: (Duration, usize),
    messages: u64,
}

macro_rules! note {
    ($run:expr, $($arg:tt)*) => {
        if $run.is_tracing {
            let line = format!("{:>12.3} s  {}", $run.world.now().as_secs_f64(), format!($($arg)*));
            TRACE.with_borrow_mut(|trace| {
                if trace.len() == TRACE_LEN {
                    trace.pop_front();
                }
                trace.push_back(line);
            });
        }
    };
}

fn mix(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Frame {
    first: u8,
    payload: Vec<u8>,
    len: usize,
}

/// The first frame, if it is complete; an error if it breaks a rule for servers.
fn parse_frame(bytes: &[u8]) -> Result<Option<Frame>, String> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    let (len, head, min) = match second {
        126 if bytes.len() >= 4 => (u64::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4, 126),
        127 if bytes.len() >= 10 => {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[2..10]);
            (u64::from_be_bytes(long), 10, 65536)
        }
        126 | 127 => return Ok(None),
        short => (u64::from(short), 2, 0),
    };
    if second & 0x80 != 0 || !matches!(first, 0x81 | 0x82 | 0x88 | 0x89 | 0x8a) || len < min || len > 20 << 20 {
        return Err(format!("a frame that starts with {first:#04x} {second:#04x} and has {len} bytes"));
    }
    if first >= 0x88 && len > 125 {
        return Err("a control frame of more than 125 bytes".to_owned());
    }
    let len = head + len as usize;
    Ok((bytes.len() >= len).then(|| Frame { first, payload: bytes[head..len].to_vec(), len }))
}

pub fn run(script: &Script, is_tracing: bool) -> Outcome {
    let _ = take_log_lines();
    let mut run = Run::new(script, is_tracing);
    let mut step = 0;
    for timed in &script.actions {
        run.run_until(timed.at);
        if run.has_failed() {
            break;
        }
        step += 1;
        run.act(timed);
    }
    run.run_until(script.end);
    if !run.has_failed() {
        run.rest();
    }
    if !run.has_failed() {
        if script.ends_with_shutdown { run.shut_down() } else { run.everyone_leaves() }
    }
    run.outcome(step)
}

impl<'a> Run<'a> {
    fn new(script: &'a Script, is_tracing: bool) -> Run<'a> {
        let model = Rc::new(RefCell::new(Model::new(script.rules())));
        let mut args: Vec<&str> = Vec::new();
        for (name, value) in &script.options {
            args.push(name);
            if value != "true" {
                args.push(value);
            }
        }
        let mut control = None;
        let world = World::with_broker(&args, script.seed, script.is_observed, |broker| {
            let (broker, events) = (Box::new(broker), VecDeque::new());
            let decisions = Box::new(Decisions { broker, model: Rc::clone(&model), events });
            let broker: Box<dyn wirechat::broker::Broker> = match script.delay {
                None => decisions,
                Some(_) => {
                    let (broker, its_control) = DelayedBroker::new(decisions, script.seed);
                    control = Some(its_control);
                    Box::new(broker)
                }
            };
            Box::new(Events { broker, model: Rc::clone(&model) })
        });
        let count = script.actors.len();
        Run {
            script,
            world,
            model,
            control,
            random: Rng::with_seed(script.seed ^ 0x5eed),
            conns: Vec::new(),
            by_token: HashMap::new(),
            active: Vec::new(),
            current: vec![None; count],
            knowledge: vec![Knowledge::default(); count],
            release_at: Duration::ZERO,
            accepts_at: Duration::ZERO,
            is_calm: false,
            has_jumped: false,
            is_tracing,
            turns: (Duration::ZERO, 0),
            messages: 0,
        }
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

    fn outcome(self, step: usize) -> Outcome {
        let model = self.model.borrow();
        let mut received = BTreeMap::new();
        let mut hash = mix(0xcbf2_9ce4_8422_2325, &self.world.now().as_nanos().to_le_bytes());
        for conn in &self.conns {
            let entry = received.entry(conn.actor).or_insert(0xcbf2_9ce4_8422_2325_u64);
            *entry = mix(*entry, &conn.hash.to_le_bytes());
            hash = mix(hash, &conn.hash.to_le_bytes());
        }
        Outcome {
            violation: model.violation.clone(),
            step,
            trace: last_trace(),
            hash,
            received,
            time: self.world.now(),
            messages: self.messages,
            counters: model.counters.clone(),
        }
    }

    // ----------------------------------------------------------------------------------------------------------- time

    /// Lets time pass. The server has a turn whenever something is ready or due, but none at `end`: more may happen then.
    fn run_until(&mut self, end: Duration) {
        while self.world.now() < end && !self.has_failed() && !self.world.is_stopped {
            if self.is_ready() {
                self.turn();
                continue;
            }
            let now = self.world.now();
            let outgoing =
                self.active.iter().filter_map(|at| self.conns[*at].outgoing.front().map(|(at, _)| *at)).min();
            let release = self.control.as_ref().filter(|control| control.pending() > 0).map(|_| self.release_at);
            let accepts = (self.accepts_at > now).then_some(self.accepts_at);
            let times = [outgoing, release, accepts, self.world.next_turn_at()];
            let next = times.into_iter().flatten().min().unwrap_or(end).max(now);
            if next >= end {
                self.world.jump(end.saturating_sub(now));
                return;
            }
            self.world.jump(next - now);
        }
    }

    fn is_ready(&self) -> bool {
        let now = self.world.now();
        let is_due = || {
            self.active.iter().any(|at| self.conns[*at].outgoing.front().is_some_and(|(at, _)| *at <= now))
                || self.control.as_ref().is_some_and(|control| control.pending() > 0) && self.release_at <= now
                || !self.world.accepts && self.accepts_at <= now
        };
        self.world.has_work() || is_due()
    }

    fn turn(&mut self) {
        let now = self.world.now();
        self.turns = if self.turns.0 == now { (now, self.turns.1 + 1) } else { (now, 1) };
        if self.turns.1 > MAX_TURNS {
            return self.fail(LIVENESS, "the server spins");
        }
        if !self.world.accepts && self.accepts_at <= now {
            self.world.accepts = true;
            if self.world.backlog_len() > 0 {
                self.count("clients that waited for a pause of accepting");
            }
        }
        for at in self.active.clone() {
            while let Some((_, out)) = self.conns[at].outgoing.pop_front_if(|(at, _)| *at <= now) {
                let conn = &mut self.conns[at];
                if !conn.client.is_open() {
                    continue;
                }
                match out {
                    Out::Bytes(bytes) => conn.client.send(&bytes),
                    Out::End => {
                        conn.client.end();
                        conn.has_ended = true;
                    }
                }
            }
        }
        let mut releases = 0;
        if let Some(control) = self.control.as_ref().filter(|control| control.pending() > 0)
            && self.release_at <= now
        {
            releases = if self.is_calm { usize::MAX } else { self.random.usize(1..4) };
            let delay = if self.is_calm { Duration::ZERO } else { self.script.delay.unwrap_or_default() };
            self.release_at = now + delay.mul_f64(self.random.f64());
            let _ = control;
        }
        let control = self.control.clone();
        let lefts = self.model.borrow().lefts;
        self.world.turn_with(|server| {
            for _ in 0..releases {
                if !control.as_ref().is_some_and(Control::release_one) {
                    break;
                }
                server.apply_effects();
            }
        });
        if self.model.borrow().lefts > lefts + 128 {
            self.count("a hold of broadcasts");
        }
        self.read_log();
        self.greet_accepted();
        for at in self.active.clone() {
            self.receive(at);
        }
        if self.script.delay.is_none() && !self.script.is_crowd {
            self.check_owed();
        }
        self.check_buffers();
        self.active.retain(|at| !self.conns[*at].is_over || self.conns[*at].token.is_none());
    }

    fn greet_accepted(&mut self) {
        for at in &self.active {
            let conn = &mut self.conns[*at];
            if conn.token.is_none()
                && let Some(token) = conn.client.accepted_as()
            {
                conn.token = Some(token);
                self.by_token.insert(token, *at);
                if let Some(dialect) = conn.dialect {
                    let sent = std::mem::take(&mut conn.sent);
                    self.model.borrow_mut().add_member(token, dialect, conn.is_polite, sent);
                }
            }
        }
    }

    fn read_log(&mut self) {
        for line in take_log_lines() {
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
            if let Some(at) = slow.then(|| self.connection_of(&line)).flatten() {
                let conn = &self.conns[at];
                let mut unread = conn.input.clone();
                let is_half = conn.status == Some(101) && {
                    unread.extend(conn.client.unread());
                    let mut rest = &unread[..];
                    while let Ok(Some(frame)) = parse_frame(rest) {
                        rest = &rest[frame.len..];
                    }
                    !rest.is_empty()
                };
                if is_half {
                    self.count("a slow consumer with half a frame");
                }
                if self.model.borrow().rooms_with_members() == 0 {
                    self.count("a slow consumer alone in its room");
                }
            }
        }
    }

    fn connection_of(&self, line: &str) -> Option<usize> {
        let number = line.split(" connection=").nth(1)?.split(' ').next()?.parse().ok()?;
        self.by_token.get(&Token(number)).copied()
    }

    // ------------------------------------------------------------------------------------------------------ receiving

    fn receive(&mut self, at: usize) {
        let bytes = self.conns[at].client.read();
        if !bytes.is_empty() {
            let conn = &mut self.conns[at];
            conn.hash = mix(conn.hash, &bytes);
            conn.input.extend(bytes);
            self.read_input(at);
        }
        let end = self.conns[at].client.server_end();
        if end != End::Open || self.conns[at].is_reset {
            self.handle_end(at, end);
        }
    }

    fn read_input(&mut self, at: usize) {
        let mut input = std::mem::take(&mut self.conns[at].input);
        let mut start = 0;
        if self.conns[at].status.is_none() {
            let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                self.conns[at].input = input;
                return;
            };
            let head = String::from_utf8_lossy(&input[..end]).into_owned();
            self.read_head(at, &head);
            start = end + 4;
        }
        if self.conns[at].status == Some(101) {
            loop {
                match parse_frame(&input[start..]) {
                    Ok(Some(frame)) => {
                        start += frame.len;
                        self.read_frame(at, &frame);
                    }
                    Ok(None) => break,
                    Err(what) => {
                        let name = self.name(at);
                        return self.fail(FRAMES, format!("{name} receives {what}"));
                    }
                }
            }
            self.conns[at].input = input.split_off(start);
        }
    }

    fn name(&self, at: usize) -> String {
        let conn = &self.conns[at];
        format!("{} (connection {})", self.script.actors[conn.actor].name, conn.token.map_or(0, |token| token.0))
    }

    fn read_head(&mut self, at: usize, head: &str) {
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let Some(status) = status else { return self.fail(FRAMES, format!("no HTTP response: {head:?}")) };
        note!(self, "{} receives {status}", self.name(at));
        let script = self.script;
        let has_jumped = self.has_jumped;
        let conn = &mut self.conns[at];
        conn.status = Some(status);
        let is_limited = script.max_connections().is_some()
            || script.is_public
            || script.option("--max-rooms").is_some()
            || script.option("--max-empty-rooms").is_some();
        let is_right = match status {
            101 => true,
            503 => is_limited,
            429 => script.is_public,
            408 => has_jumped || conn.is_silent,
            403 => script.is_public,
            _ => false,
        };
        if conn.is_polite && !is_right {
            let text = format!("{} is rejected with {status}", self.name(at));
            self.fail(MEMBERS, text);
        }
        if status == 101 && self.conns[at].is_polite && !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
            self.fail(FRAMES, "a wrong accept value");
        }
    }

    fn read_frame(&mut self, at: usize, frame: &Frame) {
        if let Some(close) = &self.conns[at].received_close {
            let payload = String::from_utf8_lossy(&frame.payload);
            let text = format!("{} receives {payload:?} after the Close {close:?}", self.name(at));
            return self.fail(FRAMES, text);
        }
        match frame.first {
            0x89 => {
                note!(self, "{} receives a Ping", self.name(at));
                if !self.conns[at].is_silent {
                    self.queue_bytes(at, masked(0x8a, &frame.payload));
                }
            }
            0x8a => {
                let conn = &mut self.conns[at];
                let expected = conn.ping_frames.pop_front();
                if conn.is_polite && expected.as_ref() != Some(&frame.payload) {
                    let text = format!("{} receives a Pong that it did not ask for", self.name(at));
                    self.fail(ORDER, text);
                }
            }
            0x88 => self.read_close(at, &frame.payload),
            _ => {
                let Ok(text) = std::str::from_utf8(&frame.payload) else {
                    if frame.first == 0x82 && !self.conns[at].is_polite {
                        return;
                    }
                    return self.fail(FRAMES, "a text that is not UTF-8");
                };
                if self.conns[at].dialect.is_some() {
                    self.read_text(at, text);
                }
            }
        }
    }

    fn read_text(&mut self, at: usize, text: &str) {
        let Some(token) = self.conns[at].token else { return };
        note!(self, "{} receives {}", self.name(at), text.chars().take(200).collect::<String>());
        let expected = self.model.borrow_mut().receive(token, text);
        let (actor, dialect) = (self.conns[at].actor, self.conns[at].dialect);
        let Some(expected) = expected else { return self.read_reply(at, text) };
        if let Some(nonce) = &expected.answers {
            self.answer(at, nonce);
        }
        if let Some(id) = expected.id {
            self.messages += 1;
            if self.current[actor] == Some(at) {
                self.knowledge[actor].last_id = id;
            }
        }
        if dialect == Some(Dialect::Events)
            && (text.starts_with(r#"{"event":"welcome""#) || text.starts_with(r#"{"event":"switched""#))
        {
            let Ok(json) = serde_json::from_str::<Value>(text) else { return self.fail(FRAMES, "no JSON") };
            let data = &json["data"];
            let since = self.conns[at].since;
            let known = &mut self.knowledge[actor];
            let is_resumed = data["resumed"] == true;
            known.room = data["room"].as_str().unwrap_or_default().to_owned();
            known.epoch = data["epoch"].as_str().unwrap_or_default().to_owned();
            let last_id = data["last_id"].as_u64().unwrap_or_default();
            let ids: Vec<u64> =
                data["history"].as_array().into_iter().flatten().filter_map(|message| message["id"].as_u64()).collect();
            // A client that sees `resumed` must not miss a message.
            let next = ids.first().copied().unwrap_or(last_id + 1);
            let has_gap = is_resumed && Some(next) != since.map(|since| since + 1);
            known.last_id = last_id;
            if let Some(session) = data["session"].as_str() {
                known.session = session.to_owned();
            }
            if has_gap {
                self.fail(crate::model::RESUME, "a resume with a gap");
            }
        }
    }

    fn answer(&mut self, at: usize, nonce: &str) {
        let conn = &mut self.conns[at];
        let actor = conn.actor;
        if let Some(found) = conn.nonces.iter().position(|sent| sent == nonce) {
            conn.nonces.remove(found);
        } else if conn.is_polite {
            return self.fail(ACKNOWLEDGEMENT, format!("an answer for {nonce}, which is answered or was not sent"));
        }
        self.knowledge[actor].unanswered.retain(|(sent, _)| sent != nonce);
    }

    /// A text that no event of the room explains: a pong or an error for a command of this client.
    fn read_reply(&mut self, at: usize, text: &str) {
        let (token, dialect) = (self.conns[at].token, self.conns[at].dialect);
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        let next = token.and_then(|token| {
            self.model
                .borrow()
                .members
                .get(&token)
                .and_then(|member| member.expected.front().map(|next| next.text.to_string()))
        });
        let wrong = format!("{} receives {text:?}, but next is {next:?}", self.name(at));
        if json["event"] == "pong" {
            let Some(left) = self.conns[at].pings.checked_sub(1) else { return self.fail(ORDER, wrong) };
            self.conns[at].pings = left;
            return;
        }
        let message = match dialect {
            Some(Dialect::Events) if json["event"] == "error" => &json["data"]["message"],
            Some(Dialect::Rooms) if json["type"] == "error" => &json["message"],
            Some(Dialect::Presence) if json["error"].is_string() => &json["error"],
            _ => return self.fail(ORDER, wrong),
        };
        let message = message.as_str().unwrap_or_default().to_owned();
        if !self.conns[at].is_polite {
            return;
        }
        let is_known = ["Slow down", "Message too long", "Nothing to send", "No such user: "]
            .iter()
            .any(|known| message.starts_with(known));
        if !is_known {
            return self.fail(ORDER, wrong);
        }
        if message == "Slow down" {
            self.count("a message over the rate");
        }
        match json["data"]["nonce"].as_str() {
            Some(nonce) => {
                let nonce = nonce.to_owned();
                let actor = self.conns[at].actor;
                let kept = self.knowledge[actor].unanswered.clone();
                self.answer(at, &nonce);
                if message == "Slow down" {
                    self.knowledge[actor].unanswered = kept;
                }
            }
            // A `ping` over the rate gets an error in place of its pong.
            None if self.conns[at].plain > 0 => self.conns[at].plain -= 1,
            None => self.fail(ORDER, wrong),
        }
    }

    fn read_close(&mut self, at: usize, payload: &[u8]) {
        let close = match payload {
            [] => (1005, String::new()),
            [high, low, reason @ ..] => {
                (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
            }
            [_] => return self.fail(FRAMES, "a Close with one byte"),
        };
        note!(self, "{} receives the Close {close:?}", self.name(at));
        let conn = &self.conns[at];
        let policy = ["username already in use", "replaced by a newer connection", "flooding", "too slow to read"];
        let script = self.script;
        let is_right = match close.0 {
            code if conn.sent_close == Some(code) && close.1.is_empty() => true,
            1001 => script.ends_with_shutdown && self.world_is_stopping(),
            1008 => policy.contains(&close.1.as_str()),
            1013 => script.is_buffer_tight() || !script.rules().is_roomy || script.delay.is_some(),
            code => {
                !conn.is_polite
                    && ([1000, 1002, 1003, 1005, 1007, 1008, 1009].contains(&code) || (3000..5000).contains(&code))
            }
        };
        let is_replied = conn.sent_close == Some(close.0) && close.1.is_empty();
        // What the client sent before its own Close is done, unless the broker may be late.
        let is_done = conn.nonces.is_empty() || script.delay.is_some() || script.is_crowd;
        if !is_right {
            let text = format!("{} receives the Close {close:?}", self.name(at));
            return self.fail(FRAMES, text);
        }
        if is_replied && !is_done && conn.is_polite {
            let text = format!("{} gets a Close, but no answer for {:?}", self.name(at), conn.nonces);
            return self.fail(ACKNOWLEDGEMENT, text);
        }
        let reply = conn.sent_close.is_none() && !conn.is_silent;
        let counter = match (close.0, close.1.as_str()) {
            (1008, "username already in use") if script.delay.is_some() => "a join that is rejected late",
            (1013, _) => "a Close with 1013",
            _ if is_replied => "a Close that is answered",
            _ => "a Close by the server",
        };
        self.count(counter);
        // Replies that wait for the join are sent together, and a socket with faults may take the rest before the Close.
        let is_exact = script.block == 0.0 && script.interrupt == 0.0 && script.delay.is_none();
        if close.1 == "too slow to read" && conn.is_polite && is_exact {
            let model = self.model.borrow();
            let owed = conn.token.and_then(|token| model.members.get(&token)).map_or(0, |member| member.owed);
            drop(model);
            // The server reads nothing that causes a reply while the outbox is more than half full.
            if owed + 300 <= script.rules().max_outbox / 2 {
                let text = format!("{} is too slow, but is owed only {owed} bytes", self.name(at));
                return self.fail(BOUNDS, text);
            }
        }
        if close.1 == "flooding" && script.option("--rate-limit") == Some("0") && script.delay.is_none() {
            return self.fail(FRAMES, "a flood without a rate limit");
        }
        self.conns[at].received_close = Some(close.clone());
        if reply {
            let payload = if close.0 == 1005 { Vec::new() } else { close.0.to_be_bytes().to_vec() };
            self.conns[at].sent_close = Some(close.0);
            self.queue_bytes(at, masked(0x88, &payload));
        }
    }

    fn world_is_stopping(&self) -> bool {
        self.is_calm
    }

    fn handle_end(&mut self, at: usize, end: End) {
        if self.conns[at].is_over {
            return;
        }
        note!(self, "{} sees the end of the stream: {end:?}", self.name(at));
        let is_tight =
            self.script.is_buffer_tight() || self.script.max_connections().is_some() || self.script.is_public;
        let conn = &mut self.conns[at];
        conn.is_over = conn.has_ended || conn.is_reset || end == End::Reset || conn.is_silent;
        if !conn.has_ended && !conn.is_reset && !conn.is_silent {
            if conn.outgoing.iter().all(|(_, out)| !matches!(out, Out::End)) {
                let at = conn.last_out.max(self.world.now());
                conn.outgoing.push_back((at, Out::End));
            }
            if !conn.client.is_open() || conn.client.is_cut() {
                conn.is_over = true;
            }
        }
        let is_explained = conn.received_close.is_some()
            || conn.sent_close.is_some()
            || conn.has_ended
            || conn.is_reset
            || conn.is_silent
            || conn.has_paused
            || conn.status != Some(101);
        let is_answered = conn.nonces.is_empty()
            || conn.is_reset
            || conn.received_close.is_some()
            || conn.has_paused
            || conn.is_silent;
        if conn.is_polite && !is_tight {
            if !is_explained {
                let text = format!("the server drops {}, which was neither slow nor silent", self.name(at));
                self.fail(LIVENESS, text);
            } else if !is_answered
                && end == End::Ended
                && conn.status == Some(101)
                && conn.sent_close.is_none()
                && self.script.delay.is_none()
                && !self.script.is_crowd
            {
                let text = format!("{} sees the end, but no answer for {:?}", self.name(at), self.conns[at].nonces);
                self.fail(ACKNOWLEDGEMENT, text);
            }
        }
    }

    // --------------------------------------------------------------------------------------------------------- checks

    fn is_alive(&self, at: usize) -> bool {
        let conn = &self.conns[at];
        let is_closing = conn.received_close.is_some() || conn.sent_close.is_some() || conn.has_ended || conn.is_reset;
        conn.status == Some(101)
            && conn.dialect.is_some()
            && !is_closing
            && !conn.is_over
            && !conn.is_silent
            && conn.client.server_end() == End::Open
    }

    fn check_owed(&mut self) {
        let mut model = self.model.borrow_mut();
        for at in &self.active {
            let conn = &self.conns[*at];
            // A reset loses the bytes on their way, and the server may not have read the reset yet.
            let is_checked = conn.is_polite && !conn.is_reset;
            if let Some(token) = conn.token.filter(|token| is_checked && model.is_member(*token)) {
                model.check_owed(token, conn.client.in_flight() + conn.input.len());
            }
        }
    }

    fn check_buffers(&mut self) {
        let max: usize = self.script.option("--max-buffered").and_then(|max| max.parse().ok()).unwrap_or(256 << 20);
        let buffered = self.world.buffered_bytes();
        if buffered > max {
            self.fail(BOUNDS, format!("{buffered} bytes are buffered"));
        }
    }

    /// Faults stop: everything that is pending must be delivered, and the members are those that are there.
    fn rest(&mut self) {
        note!(self, "faults stop");
        self.is_calm = true;
        self.world.accepts = true;
        for at in self.active.clone() {
            let conn = &self.conns[at];
            conn.client.0.borrow_mut().faults = None;
            if !conn.is_silent && !conn.client.is_reading() {
                conn.client.set_reading(true);
                self.receive(at);
            }
        }
        self.release_at = self.world.now();
        let seconds = 8;
        self.run_until(self.world.now() + seconds * SECOND);
        if self.has_failed() || self.world.is_stopped {
            return;
        }
        for at in 0..self.conns.len() {
            let conn = &self.conns[at];
            let Some(token) = conn.token else {
                if self.world.backlog_len() > 0 && self.script.max_connections().is_some() {
                    continue;
                }
                return self.fail(LIVENESS, format!("{} is not accepted", self.name(at)));
            };
            let (alive, name) = (self.is_alive(at), self.name(at));
            if conn.dialect.is_none() || conn.is_silent {
                continue;
            }
            let model = self.model.borrow();
            let Some(member) = model.members.get(&token) else { continue };
            let (is_there, pending, front) =
                (model.is_member(token), member.expected.len(), member.expected.front().cloned());
            drop(model);
            if is_there != alive && (is_there || conn.is_polite) {
                return self.fail(MEMBERS, format!("{name} is connected: {alive}, a member: {is_there}"));
            }
            if alive && conn.is_polite {
                if pending > 0 {
                    return self.fail(LIVENESS, format!("{name} waits for {pending} texts, the first is {front:?}"));
                }
                if !conn.nonces.is_empty() || !conn.ping_frames.is_empty() {
                    return self.fail(LIVENESS, format!("{name} waits for an answer for {:?}", conn.nonces));
                }
                if conn.pings > 0 && conn.plain + conn.pings > 0 && self.script.option("--rate-limit") == Some("0") {
                    return self.fail(LIVENESS, format!("{name} waits for a pong"));
                }
            }
        }
        for token in self.model.borrow().all_members() {
            if !self.by_token.contains_key(&token) {
                self.fail(MEMBERS, format!("{token:?} is a member, but nobody"));
            }
        }
        self.count("a rest");
    }

    fn restore_faults(&mut self) {
        self.is_calm = false;
        for at in self.active.clone() {
            let faults = self.faults(self.conns[at].number);
            self.conns[at].client.0.borrow_mut().faults = Some(faults);
        }
    }

    fn faults(&self, number: u64) -> Faults {
        let Script { short, block, interrupt, spurious, seed, .. } = *self.script;
        Faults { random: Rng::with_seed(seed ^ number << 10), short, block, interrupt, spurious }
    }

    fn everyone_leaves(&mut self) {
        for at in self.active.clone() {
            if self.conns[at].client.is_open() && !self.conns[at].is_silent {
                match Rng::with_seed(self.script.seed ^ self.conns[at].number << 30).u8(..4) {
                    0 => self.close(at, 1000),
                    1 => self.queue(at, Out::End),
                    2 => self.reset(at),
                    _ => self.conns[at].is_silent = true,
                }
            }
        }
        let waits = [("--idle-timeout", 60), ("--close-timeout", 5), ("--handshake-timeout", 10)];
        let wait: Duration = waits.iter().map(|(name, default)| self.script.seconds(name, *default)).sum();
        self.run_until(self.world.now() + 2 * wait + 70 * SECOND);
        if self.has_failed() {
            return;
        }
        let (count, bytes, rooms) =
            (self.world.connection_count(), self.world.buffered_bytes(), self.model.borrow().rooms_with_members());
        if count + bytes + rooms > 0 || self.world.next_turn_at().is_some() {
            let next = self.world.next_turn_at();
            return self.fail(BOUNDS, format!("everyone has left, but {count} connections, {bytes} bytes and {rooms} rooms remain; next turn at {next:?}"));
        }
        self.fill_the_server();
    }

    /// After everyone has left, as many clients as before find a place, and no more.
    fn fill_the_server(&mut self) {
        let per_address =
            self.script.option("--max-per-address").and_then(|max| max.parse::<usize>().ok()).filter(|max| *max > 0);
        let places = self.script.max_connections().into_iter().chain(per_address).min().unwrap_or(1);
        let is_limited = self.script.max_connections().is_some() || per_address.is_some();
        let address: IpAddr = if self.script.is_public { [192, 0, 2, 1].into() } else { Ipv4Addr::LOCALHOST.into() };
        self.world.capacity = 64 * 1024;
        let mut clients = Vec::new();
        for number in 0..places + usize::from(is_limited) {
            let client = self.world.connect_from(address);
            client.send(upgrade_request("/echo?token=dev-token").as_bytes());
            self.world.settle();
            let expected = if number < places { "HTTP/1.1 101 " } else { "HTTP/1.1 503 " };
            let head = String::from_utf8_lossy(&client.read()).into_owned();
            if !head.starts_with(expected) {
                return self.fail(BOUNDS, format!("place {number} of {places}: {head:?}"));
            }
            clients.push(client);
        }
        clients.iter().for_each(Client::reset);
        self.world.settle();
        let (count, next) = (self.world.connection_count(), self.world.next_turn_at());
        if count > 0 || next != self.world.next_summary() {
            self.fail(BOUNDS, format!("all have left again, but {count} connections remain; next turn at {next:?}"));
        }
    }

    fn shut_down(&mut self) {
        note!(self, "the server receives the signal to stop");
        let alive: Vec<usize> = self.active.iter().copied().filter(|at| self.is_alive(*at)).collect();
        self.world.shut_down();
        self.read_log();
        self.active.clone().into_iter().for_each(|at| self.receive(at));
        if !self.world.is_stopped {
            self.run_until(self.world.now() + 3 * SECOND);
        }
        self.active.clone().into_iter().for_each(|at| self.receive(at));
        if self.has_failed() {
            return;
        }
        if !self.world.is_stopped {
            return self.fail(LIVENESS, "the server does not stop");
        }
        for at in alive {
            let code = self.conns[at].received_close.as_ref().map(|(code, _)| *code);
            if code != Some(1001) {
                let text = format!("{} receives {code:?} at the stop", self.name(at));
                return self.fail(FRAMES, text);
            }
        }
        self.count("a stop of the server");
    }

    // -------------------------------------------------------------------------------------------------------- actions

    fn queue(&mut self, at: usize, out: Out) {
        let latency = self.script.latency;
        let number = self.conns[at].last_out.as_nanos() as u64 ^ self.conns[at].number << 20;
        let delay = latency.mul_f64(Rng::with_seed(number ^ self.script.seed).f64());
        let delay = if self.is_calm { delay / 10 } else { delay };
        let conn = &mut self.conns[at];
        let time = conn.last_out.max(self.world.now() + delay);
        conn.last_out = time;
        conn.outgoing.push_back((time, out));
        if !self.active.contains(&at) {
            self.active.push(at);
        }
    }

    fn queue_bytes(&mut self, at: usize, bytes: Vec<u8>) {
        self.queue(at, Out::Bytes(bytes));
    }

    /// Sends bytes in up to three pieces.
    fn queue_cut(&mut self, at: usize, mut bytes: Vec<u8>, random: &mut Rng) {
        while bytes.len() > 1 && random.u8(..4) == 0 {
            let rest = bytes.split_off(random.usize(1..bytes.len()));
            self.queue_bytes(at, std::mem::replace(&mut bytes, rest));
        }
        self.queue_bytes(at, bytes);
    }

    fn close(&mut self, at: usize, code: u16) {
        if self.conns[at].sent_close.is_none() && self.conns[at].client.is_open() {
            self.conns[at].sent_close = Some(code);
            self.queue_bytes(at, masked(0x88, &code.to_be_bytes()));
        }
    }

    fn reset(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        if !conn.is_over && conn.client.server_end() == End::Open {
            conn.client.reset();
            conn.is_reset = true;
            conn.outgoing.clear();
        }
    }

    fn connect(&mut self, actor: usize, request: Vec<u8>, dialect: Option<Dialect>, random: &mut Rng) -> usize {
        let Actor { capacity, address, is_rude, .. } = self.script.actors[actor];
        self.world.capacity = capacity;
        let address: IpAddr = if address == 0 { Ipv4Addr::LOCALHOST.into() } else { [192, 0, 2, address].into() };
        let client = self.world.connect_from(address);
        let number = (actor as u64) << 20 | self.conns.iter().filter(|conn| conn.actor == actor).count() as u64;
        client.0.borrow_mut().faults = (!self.is_calm).then(|| self.faults(number));
        let at = self.conns.len();
        self.conns.push(Conn {
            client,
            actor,
            number,
            dialect,
            is_polite: !is_rude,
            token: None,
            input: Vec::new(),
            status: None,
            outgoing: VecDeque::new(),
            last_out: Duration::ZERO,
            hash: 0xcbf2_9ce4_8422_2325,
            received_close: None,
            sent_close: None,
            has_ended: false,
            is_reset: false,
            is_silent: false,
            has_paused: false,
            nonces: Vec::new(),
            plain: 0,
            pings: 0,
            ping_frames: VecDeque::new(),
            sent: VecDeque::new(),
            is_over: false,
            since: None,
        });
        self.active.push(at);
        self.current[actor] = Some(at);
        self.queue_cut(at, request, random);
        at
    }

    fn join(&mut self, actor: usize, resumes: bool, random: &mut Rng) {
        let Actor { name, dialect, client_id, .. } = &self.script.actors[actor];
        let known = &self.knowledge[actor];
        let room = if resumes && !known.room.is_empty() {
            known.room.clone()
        } else {
            ROOMS[random.usize(..ROOMS.len())].to_owned()
        };
        let mut path = match dialect {
            Dialect::Events => users::events_path(name, &room),
            Dialect::Rooms => users::rooms_path(&room),
            Dialect::Presence => users::presence_path(name, client_id, &room),
        };
        let mut asked = None;
        let resends = resumes && *dialect == Dialect::Events;
        if resends && !known.epoch.is_empty() {
            let since = if random.u8(..8) == 0 { random.u64(..=known.last_id + 2) } else { known.last_id };
            if since > known.last_id {
                self.count("a resume from the future");
            }
            path += &format!("&epoch={}&since={since}&session={}", known.epoch, known.session);
            asked = Some(since);
        }
        note!(self, "{name} connects to {path}");
        let texts = known_unanswered(&self.knowledge[actor], &room, resends);
        let at = self.connect(actor, upgrade_request(&path).into_bytes(), Some(*dialect), random);
        self.conns[at].since = asked;
        for (nonce, text) in texts {
            self.send_message(at, &text, Some(nonce), random);
        }
    }

    /// The actor's connection, if it may still send.
    fn open_conn(&self, actor: usize) -> Option<usize> {
        let at = self.current[actor]?;
        let conn = &self.conns[at];
        let is_open =
            conn.client.is_open() && !conn.has_ended && conn.sent_close.is_none() && !conn.is_silent && !conn.is_over;
        let is_ending = conn.outgoing.iter().any(|(_, out)| matches!(out, Out::End));
        (is_open && !is_ending && conn.status.is_none_or(|status| status == 101)).then_some(at)
    }

    fn send_text(&mut self, at: usize, text: &str, random: &mut Rng) {
        note!(self, "{} sends {}", self.name(at), text.chars().take(200).collect::<String>());
        let bytes = if text.len() > 2 && random.u8(..12) == 0 {
            let cut = (1..text.len()).find(|cut| *cut >= text.len() / 2).unwrap_or(1);
            [masked(0x01, &text.as_bytes()[..cut]), masked(0x80, &text.as_bytes()[cut..])].concat()
        } else {
            masked(0x81, text.as_bytes())
        };
        self.queue_cut(at, bytes, random);
    }

    fn expect_submit(&mut self, at: usize, text: &str) {
        match self.conns[at].token {
            Some(token) => {
                if let Some(member) = self.model.borrow_mut().members.get_mut(&token) {
                    member.sent.push_back(text.into());
                }
            }
            None => self.conns[at].sent.push_back(text.into()),
        }
    }

    fn send_message(&mut self, at: usize, text: &str, nonce: Option<String>, random: &mut Rng) {
        let actor = self.conns[at].actor;
        let name = self.script.actors[actor].name.clone();
        let Some(dialect) = self.conns[at].dialect else { return };
        self.expect_submit(at, text);
        let nonce = nonce.filter(|_| dialect == Dialect::Events);
        let spaced = if random.u8(..10) == 0 { format!("  {text}\n") } else { text.to_owned() };
        let json = match (dialect, &nonce) {
            (Dialect::Events, Some(nonce)) => {
                json!({"event": "message", "data": {"text": spaced, "nonce": nonce}}).to_string()
            }
            (Dialect::Events, None) => json!({"event": "message", "data": {"text": spaced}}).to_string(),
            (Dialect::Rooms, _) => json!({"username": name, "text": spaced}).to_string(),
            (Dialect::Presence, _) => spaced,
        };
        match nonce {
            Some(nonce) => {
                self.conns[at].nonces.push(nonce.clone());
                let unanswered = &mut self.knowledge[actor].unanswered;
                if !unanswered.iter().any(|(sent, _)| *sent == nonce) {
                    unanswered.push((nonce, text.to_owned()));
                }
            }
            None => self.conns[at].plain += 1,
        }
        self.send_text(at, &json, random);
    }

    fn new_text(&mut self, actor: usize, len: usize, random: &mut Rng) -> String {
        self.knowledge[actor].texts += 1;
        let mut text = format!("m{actor}.{}", self.knowledge[actor].texts);
        let filler = [" x", "é", "\\", "\"", "z", "😀"][random.usize(..6)];
        let count = text.chars().count();
        let mut rest = len.saturating_sub(count + 1) / filler.chars().count();
        if rest > 0 {
            text.push(' ');
        }
        while rest > 0 {
            text.push_str(filler);
            rest -= 1;
        }
        text.trim_end().to_owned()
    }

    fn say(&mut self, actor: usize, len: usize, random: &mut Rng) {
        let Some(at) = self.open_conn(actor) else { return };
        let text = self.new_text(actor, len, random);
        let nonce = (random.u8(..3) > 0).then(|| format!("n{}", self.knowledge[actor].texts));
        self.send_message(at, &text, nonce, random);
    }

    fn command(&mut self, actor: usize, event: &str, data: Value, random: &mut Rng) {
        let Some(at) = self.open_conn(actor) else { return };
        if self.conns[at].dialect == Some(Dialect::Events) {
            self.conns[at].plain += 1;
            self.send_text(at, &json!({"event": event, "data": data}).to_string(), random);
        }
    }

    fn act(&mut self, timed: &Timed) {
        let Timed { actor, action, seed, .. } = *timed;
        let random = &mut Rng::with_seed(seed);
        let max_text = self.script.rules().max_text;
        let open = self.open_conn(actor);
        match action {
            Action::Connect if open.is_none() || random.u8(..3) == 0 => self.join(actor, false, random),
            Action::Connect => {}
            Action::Resume => self.join(actor, true, random),
            Action::Say => self.say(actor, 12, random),
            Action::SayLong => {
                let len = if random.u8(..4) == 0 { max_text + 3 } else { max_text };
                self.say(actor, len, random);
            }
            Action::SayAgain => {
                let Some(at) = open else { return };
                let known = &self.knowledge[actor];
                if let Some((nonce, text)) = random.choice(known.unanswered.clone()) {
                    self.send_message(at, &text, Some(nonce), random);
                } else if known.texts > 0 {
                    let number = known.texts;
                    let text = format!("m{actor}.{number} again");
                    self.send_message(at, &text, Some(format!("n{number}")), random);
                }
            }
            Action::Burst if open.is_some_and(|at| self.conns[at].has_paused) && random.bool() => {
                let Some(at) = open else { return };
                for number in 0..random.u8(20..100) {
                    self.conns[at].ping_frames.push_back(vec![number; 100]);
                    self.queue_bytes(at, masked(0x89, &[number; 100]));
                }
            }
            Action::Burst => {
                for _ in 0..random.usize(5..60) {
                    self.say(actor, random.usize(10..200).min(max_text), random);
                }
            }
            Action::Private => {
                let Some(at) = open else { return };
                let to = match random.u8(..6) {
                    0 => "nobody".to_owned(),
                    _ => self.script.actors[random.usize(..self.script.actors.len())].name.to_uppercase(),
                };
                let text = self.new_text(actor, 15, random);
                let name = &self.script.actors[actor].name;
                let words = format!("/msg {to} {text}");
                self.expect_submit(at, &text);
                let (json, nonce) = match self.conns[at].dialect {
                    Some(Dialect::Events) => {
                        let nonce = format!("n{}", self.knowledge[actor].texts);
                        (
                            json!({"event": "private", "data": {"to": to, "text": text, "nonce": nonce}}).to_string(),
                            Some(nonce),
                        )
                    }
                    Some(Dialect::Rooms) => (json!({"username": name, "text": words}).to_string(), None),
                    _ => (words, None),
                };
                match nonce {
                    Some(nonce) => self.conns[at].nonces.push(nonce),
                    None => self.conns[at].plain += 1,
                }
                self.send_text(at, &json, random);
            }
            Action::Switch => {
                let room = ROOMS[random.usize(..ROOMS.len())];
                self.command(actor, "switch_room", json!({"room": room}), random);
            }
            Action::Typing => {
                let Some(at) = open else { return };
                if self.conns[at].dialect == Some(Dialect::Rooms) {
                    let name = self.script.actors[actor].name.clone();
                    self.conns[at].plain += 1;
                    self.send_text(at, &json!({"type": "typing", "username": name}).to_string(), random);
                }
                self.command(actor, "typing", json!({}), random);
            }
            Action::Ping => {
                if let Some(at) = open.filter(|at| self.conns[*at].dialect == Some(Dialect::Events)) {
                    self.conns[at].pings += 1;
                    self.command(actor, "ping", json!({}), random);
                }
            }
            Action::PingFrame => {
                let Some(at) = open else { return };
                let payload = random.u64(..).to_le_bytes()[..random.usize(..9)].to_vec();
                self.conns[at].ping_frames.push_back(payload.clone());
                self.queue_bytes(at, masked(0x89, &payload));
            }
            Action::History => {
                let before = random.u64(..=self.knowledge[actor].last_id + 3);
                let limit = random.u64(1..=100);
                self.command(actor, "history", json!({"before": before, "limit": limit}), random);
            }
            Action::StopReading => {
                if let Some(at) = open {
                    self.conns[at].client.set_reading(false);
                    self.conns[at].has_paused = true;
                    note!(self, "{} stops reading", self.name(at));
                }
            }
            Action::ReadSome => {
                if let Some(at) = open {
                    self.conns[at].client.read_some(random.usize(1..3000));
                    self.receive(at);
                }
            }
            Action::ReadAll => {
                if let Some(at) = open {
                    note!(self, "{} reads", self.name(at));
                    self.conns[at].client.set_reading(true);
                    self.receive(at);
                }
            }
            Action::Close => {
                let code = [1000, 1000, 1001, 3000, 4999][random.usize(..5)];
                if let Some(at) = open {
                    note!(self, "{} sends a Close", self.name(at));
                    self.close(at, code);
                }
            }
            Action::HalfClose => {
                if let Some(at) = open {
                    note!(self, "{} ends its stream", self.name(at));
                    self.queue(at, Out::End);
                }
            }
            Action::Reset => {
                if let Some(at) = self.current[actor] {
                    note!(self, "{} resets", self.name(at));
                    self.reset(at);
                }
            }
            Action::FallSilent => {
                if let Some(at) = open {
                    note!(self, "{} falls silent", self.name(at));
                    self.conns[at].is_silent = true;
                    self.conns[at].client.set_reading(random.bool());
                    self.conns[at].outgoing.clear();
                }
            }
            Action::BreakHead | Action::BreakRule => self.be_rude(actor, action, random),
            Action::PauseAccept => {
                note!(self, "no descriptor is left for a while");
                self.world.accepts = false;
                self.accepts_at = self.world.now() + Duration::from_millis(random.u64(1..8000));
            }
            Action::JumpClock => {
                note!(self, "the clock jumps");
                self.has_jumped = true;
                self.count("a jump of the clock");
                for at in &self.active {
                    // A Pong may come too late after the jump.
                    let conn = &mut self.conns[*at];
                    conn.has_paused |= !conn.outgoing.is_empty();
                }
                self.world.jump(Duration::from_millis(random.u64(1..100_000)));
            }
            Action::FailPublish => self.control.iter().for_each(Control::fail_next_publish),
            Action::RejectJoin => {
                let error = if random.bool() { BrokerError::NameInUse } else { BrokerError::TooManyRooms };
                if let Some(control) = &self.control {
                    control.reject_next_join(error);
                }
            }
            Action::Rest => {
                self.rest();
                self.restore_faults();
            }
        }
    }

    /// Plays a case of `wirechat poke`.
    fn be_rude(&mut self, actor: usize, action: Action, random: &mut Rng) {
        let cases: Vec<_> = catalogue::all().collect();
        let case = cases[random.usize(..cases.len())];
        let chat = !self.script.is_independent && random.bool();
        let target = if chat {
            format!("/?token=dev-token&username=rude&room={}", encode(ROOMS[0]))
        } else {
            "/echo?token=dev-token".to_owned()
        };
        let Ok(url) = Url::parse(&format!("ws://127.0.0.1:3000{target}")) else { return };
        let edits = if let (Opening::Edited(edits), Action::BreakHead) = (case.opening, action) { edits } else { &[] };
        let mut request = request::build(&url, KEY, edits);
        if action == Action::BreakHead && random.u8(..5) == 0 {
            request.truncate(random.usize(1..request.len())); // the rest never comes
        }
        let mut keys = random.clone();
        let bytes = case.bytes(&mut || keys.u32(..).to_le_bytes()).unwrap_or_default();
        note!(self, "{} plays {}", self.script.actors[actor].name, case.name);
        let dialect = chat.then_some(Dialect::Events);
        let at = self.connect(actor, request, dialect, random);
        if bytes.len() <= 70_000 && action == Action::BreakRule {
            self.queue_cut(at, bytes, random);
        }
        if random.u8(..3) == 0 {
            self.queue(at, Out::End);
        }
    }
}

/// What the client resends under its nonces when it is back in the room.
fn known_unanswered(known: &Knowledge, room: &str, resends: bool) -> Vec<(String, String)> {
    if resends && known.room == room { known.unanswered.clone() } else { Vec::new() }
}
