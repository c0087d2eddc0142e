//! Simulates the connections between the instances and Redis. Calls, replies and inbox entries arrive after a delay.
//! A connection may break before or after Redis executes a call. Redis may execute a call even after the instance
//! has given up on the connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use wirechat::broker::redis::SCRIPT;
use wirechat::broker::redis::link::{DONE, Link, LinkEvent};

use crate::redis::Redis;
use crate::redis::store::{Store, Value};

/// Maximum number of inbox entries per read, the same as in the broker.
const MAX_ENTRIES: usize = 256;
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_millis(400);
const START: u64 = 2_000_000_000_000; // Redis's clock at the start of a run, in milliseconds since 1970
pub const NEVER: Duration = Duration::MAX;

pub struct Network {
    pub now: Duration,
    pub redis: Redis,
    pub is_down: bool,
    /// Redis hangs until this time. Calls that arrive earlier must wait.
    pub stalled_until: Duration,
    /// Redis rejects all calls because its memory is full.
    pub is_full: bool,
    pub max_delay: Duration,
    pub timeout: Duration,
    /// The number of the current Redis process. Each start of Redis increments the number.
    process: u32,
    snapshot: Store,
    links: Vec<LinkState>,
    /// Calls that Redis may still execute although their connection is lost. Each entry has the call's arrival time,
    /// the number of the Redis process that it was sent to, and its arguments.
    delayed_calls: Vec<(Duration, u32, Vec<String>)>,
    random: Rng,
    pub error: Option<String>,
    pub calls: u64,
}

/// The two connections between an instance and Redis: one for calls, one for reading the inbox.
#[derive(Default)]
struct LinkState {
    queue: VecDeque<(u64, Vec<String>)>,
    events: VecDeque<(u64, LinkEvent)>,
    session: u64,
    caller: Caller,
    backoff: Duration,
    read: Option<InboxRead>,
    reader: Reader,
    /// A network partition separates the instance from Redis until this time.
    cut_until: Duration,
    /// The instance does nothing until this time.
    suspended_until: Duration,
    /// A simulated fault delays inbox entries: none reaches the instance before this time.
    lags_until: Duration,
    is_dead: bool,
}

enum Caller {
    Waiting { until: Duration },
    Connecting { at: Duration, deadline: Duration, process: u32 },
    Connected { process: u32 },
    Calling { process: u32, call: Vec<String>, at: Duration, deadline: Duration },
    Receiving { process: u32, reply: Option<Result<Vec<String>, String>>, at: Duration, deadline: Duration },
}

impl Default for Caller {
    fn default() -> Caller {
        Caller::Waiting { until: Duration::ZERO }
    }
}

struct InboxRead {
    number: u64,
    key: String,
    after: u64,
    lineage: String,
}

enum Reader {
    Waiting { until: Duration },
    Connected { process: u32, arriving: Option<(Duration, Vec<(u64, String)>)> },
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::Waiting { until: Duration::ZERO }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    All,
    /// The data that Redis had at the last snapshot.
    Snapshot,
    Nothing,
}

/// What happens to a call in flight when the connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    BeforeTheCall,
    AfterTheCall,
    /// Redis executes the call after the instance has lost the connection.
    Late,
}

impl Network {
    pub fn new(seed: u64, max_delay: Duration, timeout: Duration) -> Network {
        Network {
            now: Duration::ZERO,
            redis: Redis::new(SCRIPT),
            is_down: false,
            stalled_until: Duration::ZERO,
            is_full: false,
            max_delay,
            timeout,
            process: 1,
            snapshot: Store::default(),
            links: Vec::new(),
            delayed_calls: Vec::new(),
            random: Rng::with_seed(seed ^ 0x4e7),
            error: None,
            calls: 0,
        }
    }

    pub fn add_link(this: &Rc<RefCell<Network>>) -> SimulatedLink {
        let links = &mut this.borrow_mut().links;
        links.push(LinkState { backoff: MIN_BACKOFF, ..LinkState::default() });
        SimulatedLink { network: Rc::clone(this), at: links.len() - 1, session: 0, reading: 0 }
    }

    fn lineage(&self) -> String {
        format!("process {}", self.process)
    }

    fn delay(&mut self) -> Duration {
        self.max_delay.mul_f64(self.random.f64())
    }

    /// Returns the arrival time of data that is sent now over `links[at]`, in either direction. The delay is random.
    fn arrival(&mut self, at: usize) -> Duration {
        let delay = self.delay();
        self.now.max(self.links[at].cut_until) + delay
    }

    // ---- Faults ----

    pub fn suspend(&mut self, at: usize, until: Duration) {
        self.links[at].suspended_until = until;
    }

    pub fn cut(&mut self, at: usize, until: Duration) {
        let jitter = self.delay();
        let link = &mut self.links[at];
        link.cut_until = until;
        // Data in flight arrives after the partition ends.
        match &mut link.caller {
            Caller::Connecting { at, .. } | Caller::Calling { at, .. } | Caller::Receiving { at, .. } => {
                *at = (*at).max(until + jitter);
            }
            Caller::Waiting { .. } | Caller::Connected { .. } => {}
        }
        if let Reader::Connected { arriving: Some((at, _)), .. } = &mut link.reader {
            *at = (*at).max(until + jitter);
        }
    }

    pub fn lag(&mut self, at: usize, until: Duration) {
        self.links[at].lags_until = until;
        if let Reader::Connected { arriving: Some((at, _)), .. } = &mut self.links[at].reader {
            *at = (*at).max(until);
        }
    }

    /// Removes an instance whose process has ended. Its last call may still be on its way and reach Redis later.
    pub fn forget(&mut self, at: usize) {
        self.break_calls(at, Break::Late);
        self.links[at] = LinkState { is_dead: true, ..LinkState::default() };
    }

    /// Breaks the instance's connection for calls. `how` decides whether and when Redis executes a call in flight.
    pub fn break_calls(&mut self, at: usize, how: Break) {
        let delay = self.delay();
        if let Caller::Calling { process, call, .. } = &self.links[at].caller {
            let (process, call) = (*process, call.clone());
            match how {
                Break::BeforeTheCall => {}
                Break::AfterTheCall => self.delayed_calls.push((self.now, process, call)),
                Break::Late => {
                    let lateness = self.timeout.mul_f64(self.random.f64() * 1.5);
                    self.delayed_calls.push((
                        self.now + if self.random.bool() { 3 * delay } else { lateness },
                        process,
                        call,
                    ));
                }
            }
        }
        if !matches!(self.links[at].caller, Caller::Waiting { .. }) {
            self.lose(at, "the connection was reset");
        }
    }

    pub fn break_reads(&mut self, at: usize) {
        self.links[at].reader = Reader::Waiting { until: self.now + MIN_BACKOFF };
    }

    pub fn take_snapshot(&mut self) {
        self.snapshot = self.redis.store.borrow().clone();
    }

    /// Kills the Redis process. A partitioned instance gets no reset: it notices when a call times out, or after the
    /// partition ends.
    pub fn kill_redis(&mut self) {
        self.is_down = true;
        for at in 0..self.links.len() {
            if self.links[at].cut_until <= self.now {
                let how = [Break::BeforeTheCall, Break::AfterTheCall][self.random.usize(..2)];
                if how == Break::AfterTheCall
                    && let Caller::Calling { call, .. } = &self.links[at].caller
                    && self.stalled_until <= self.now
                {
                    let call = call.clone();
                    _ = self.execute(&call);
                }
                self.break_calls(at, Break::BeforeTheCall);
                self.break_reads(at);
            }
        }
    }

    /// Erases the data, as `FLUSHALL` does.
    pub fn flush(&mut self) {
        self.redis.store.borrow_mut().keys.clear();
        self.snapshot = Store::default(); // a later restart must not restore the erased data
    }

    pub fn start_redis(&mut self, data: Data) {
        self.is_down = false;
        self.stalled_until = Duration::ZERO;
        self.process += 1;
        let max_stream_len = self.redis.store.borrow().max_stream_len;
        let kept = match data {
            Data::All => None,
            Data::Snapshot => Some(self.snapshot.clone()),
            Data::Nothing => Some(Store::default()),
        };
        if data == Data::Nothing {
            self.snapshot = Store::default(); // a later restart must not restore the erased data
        }
        kept.into_iter().for_each(|kept| *self.redis.store.borrow_mut() = kept);
        let store = &mut *self.redis.store.borrow_mut();
        store.max_stream_len = max_stream_len;
        store.appended.clear();
        store.set_time(START + self.now.as_millis() as u64);
    }

    // ---- Time ----

    /// The next time at which [`Network::run`] has work; `NEVER` if it has none until an instance does something.
    pub fn next_work_at(&self) -> Duration {
        let delayed_calls = self.delayed_calls.iter().map(|(at, ..)| (*at).max(self.stalled_until));
        let links = self.links.iter().filter(|link| !link.is_dead).flat_map(|link| {
            let awake = link.suspended_until;
            let caller = match &link.caller {
                Caller::Waiting { until } => (*until).max(awake),
                Caller::Connecting { at, deadline, .. } => (*at).max(self.stalled_until).min(*deadline).max(awake),
                Caller::Connected { .. } if link.queue.is_empty() => NEVER,
                Caller::Connected { .. } => self.now.max(awake),
                Caller::Calling { at, deadline, .. } => (*at).max(self.stalled_until).min((*deadline).max(awake)),
                Caller::Receiving { at, deadline, .. } => (*at).min(*deadline).max(awake),
            };
            let reader = match &link.reader {
                _ if link.read.is_none() => NEVER,
                Reader::Waiting { until } => (*until).max(awake).max(link.cut_until),
                Reader::Connected { arriving: Some((at, _)), .. } => (*at).max(awake),
                Reader::Connected { arriving: None, .. } if self.has_entries(link) => {
                    self.now.max(self.stalled_until).max(link.cut_until).max(awake)
                }
                Reader::Connected { arriving: None, .. } => NEVER,
            };
            [caller, reader]
        });
        delayed_calls.chain(links).min().unwrap_or(NEVER)
    }

    /// Whether the instance has an unread event that wakes its event loop. Every event does, except a reply that
    /// contains only the status `done`.
    pub fn has_events(&self, at: usize) -> bool {
        let says_nothing = |reply: &[String]| matches!(reply, [done] if done == DONE);
        let wakes = |event: &LinkEvent| !matches!(event, LinkEvent::Reply(Ok(reply)) if says_nothing(reply));
        self.links[at].events.iter().any(|(_, event)| wakes(event))
    }

    pub fn run(&mut self, now: Duration) {
        self.now = now;
        self.redis.store.borrow_mut().set_time(START + now.as_millis() as u64);
        while self.next_work_at() <= now && self.error.is_none() {
            self.execute_delayed_calls();
            for at in 0..self.links.len() {
                if !self.links[at].is_dead {
                    self.run_caller(at);
                    self.run_reader(at);
                }
            }
        }
    }

    fn execute_delayed_calls(&mut self) {
        if self.stalled_until > self.now {
            return;
        }
        let now = self.now;
        while let Some(at) = self.delayed_calls.iter().position(|(at, ..)| *at <= now) {
            let (_, process, call) = self.delayed_calls.remove(at);
            if process == self.process && !self.is_down {
                _ = self.execute(&call);
            }
        }
    }

    fn execute(&mut self, call: &[String]) -> Result<Vec<String>, String> {
        if self.is_full {
            return Err("OOM command not allowed when used memory > 'maxmemory'".to_owned());
        }
        self.calls += 1;
        let reply = self.redis.call(call);
        if let Err(error) = &reply {
            self.error.get_or_insert(format!("{error} in the call {call:?}"));
        }
        reply
    }

    fn lose(&mut self, at: usize, reason: &str) {
        let link = &mut self.links[at];
        link.events.push_back((link.session, LinkEvent::Lost { reason: reason.to_owned() }));
        let jitter = link.backoff.mul_f64(0.5 + self.random.f64());
        link.backoff = (link.backoff * 2).min(MAX_BACKOFF);
        link.queue.clear();
        link.caller = Caller::Waiting { until: self.now + jitter };
    }

    fn run_caller(&mut self, at: usize) {
        let (now, is_down, current, timeout) = (self.now, self.is_down, self.process, self.timeout);
        let is_stalled = self.stalled_until > now;
        let is_awake = self.links[at].suspended_until <= now;
        match &mut self.links[at].caller {
            Caller::Waiting { until } if *until <= now && is_awake => {
                if is_down && self.links[at].cut_until <= now {
                    return self.lose(at, "connection refused");
                }
                let arrival = self.arrival(at);
                self.links[at].caller = Caller::Connecting { at: arrival, deadline: now + timeout, process: current };
            }
            Caller::Connecting { at: arrival, process, .. } if *arrival <= now && !is_stalled && is_awake => {
                if is_down || *process != current {
                    return self.lose(at, "connection refused");
                }
                let lineage = self.lineage();
                let link = &mut self.links[at];
                link.session += 1;
                link.events.push_back((link.session, LinkEvent::Connected { lineage, warning: None }));
                link.caller = Caller::Connected { process: current };
            }
            Caller::Connected { process } if is_awake => {
                let process = *process;
                let arrival = self.arrival(at);
                let link = &mut self.links[at];
                let Some((session, call)) = link.queue.pop_front() else { return };
                if session == link.session {
                    link.caller = Caller::Calling { process, call, at: arrival, deadline: now + timeout };
                }
            }
            Caller::Calling { process, call, at: arrival, deadline } if *arrival <= now && !is_stalled => {
                let (process, call, deadline) = (*process, std::mem::take(call), *deadline);
                let reply = (!is_down && process == current).then(|| self.execute(&call));
                let arrival = self.arrival(at);
                self.links[at].caller = Caller::Receiving { process, reply, at: arrival, deadline };
            }
            Caller::Receiving { process, reply, at: arrival, .. } if *arrival <= now && is_awake => {
                let (process, reply) = (*process, reply.take());
                let Some(reply) = reply else { return self.lose(at, "the connection was reset") };
                let link = &mut self.links[at];
                if reply.is_ok() {
                    link.backoff = MIN_BACKOFF;
                }
                link.events.push_back((link.session, LinkEvent::Reply(reply)));
                link.caller = Caller::Connected { process };
            }
            Caller::Connecting { deadline, .. }
            | Caller::Calling { deadline, .. }
            | Caller::Receiving { deadline, .. }
                if *deadline <= now && is_awake =>
            {
                if let Caller::Calling { process, call, at: arrival, .. } = &self.links[at].caller
                    && self.random.bool()
                {
                    self.delayed_calls.push((*arrival, *process, call.clone()));
                }
                self.lose(at, "timed out");
            }
            _ => {}
        }
    }

    fn has_entries(&self, link: &LinkState) -> bool {
        let Some(read) = &link.read else { return false };
        let store = self.redis.store.borrow();
        let Some(Value::Stream(stream)) = store.keys.get(&read.key).map(|entry| &entry.value) else { return false };
        stream.entries.last_key_value().is_some_and(|((id, _), _)| *id > read.after)
    }

    fn run_reader(&mut self, at: usize) {
        let now = self.now;
        let link = &self.links[at];
        let Some(read) = &link.read else { return };
        if link.suspended_until > now {
            return;
        }
        match &link.reader {
            Reader::Waiting { until } if *until <= now && link.cut_until <= now => {
                let is_same = !self.is_down && self.stalled_until <= now && read.lineage == self.lineage();
                let until = now + MIN_BACKOFF.mul_f64(1.0 + 7.0 * self.random.f64());
                let process = self.process;
                self.links[at].reader = match is_same {
                    true => Reader::Connected { process, arriving: None },
                    false => Reader::Waiting { until },
                };
            }
            Reader::Connected { process, .. } if *process != self.process || self.is_down => self.break_reads(at),
            Reader::Connected { process, arriving: None } => {
                let process = *process;
                if self.stalled_until > now || link.cut_until > now || !self.has_entries(link) {
                    return;
                }
                let entries = self.entries(read);
                let arrival = self.arrival(at).max(self.links[at].lags_until);
                self.links[at].reader = Reader::Connected { process, arriving: Some((arrival, entries)) };
            }
            Reader::Connected { arriving: Some((arrival, _)), .. } if *arrival <= now => {
                let link = &mut self.links[at];
                let Reader::Connected { arriving, .. } = &mut link.reader else { return };
                let Some((_, entries)) = arriving.take() else { return };
                let Some(read) = &mut link.read else { return };
                read.after = entries.last().map_or(read.after, |(id, _)| *id);
                link.events.push_back((read.number, LinkEvent::Inbox(entries)));
            }
            _ => {}
        }
    }

    fn entries(&self, read: &InboxRead) -> Vec<(u64, String)> {
        let store = self.redis.store.borrow();
        let Some(Value::Stream(stream)) = store.keys.get(&read.key).map(|entry| &entry.value) else {
            return Vec::new();
        };
        let entries = stream.entries.range((read.after, u64::MAX)..).take(MAX_ENTRIES);
        entries.map(|((id, _), fields)| (*id, fields[1].clone())).collect()
    }
}

/// Connects a broker to the simulated network. Replaces the two threads that talk to a real Redis.
pub struct SimulatedLink {
    network: Rc<RefCell<Network>>,
    pub at: usize,
    session: u64,
    reading: u64,
}

impl Link for SimulatedLink {
    fn call(&mut self, arguments: Vec<String>) {
        // If a test panics while it borrows the network, unwinding calls this function from `RedisBroker::drop`. A
        // `borrow_mut` would then panic again, and abort the test process.
        let Ok(mut network) = self.network.try_borrow_mut() else { return };
        let link = &mut network.links[self.at];
        if !matches!(link.caller, Caller::Waiting { .. } | Caller::Connecting { .. }) && !link.is_dead {
            link.queue.push_back((self.session, arguments));
        }
    }

    fn read_inbox(&mut self, key: &str, after: u64, lineage: &str) {
        self.reading += 1;
        let (number, key, lineage) = (self.reading, key.to_owned(), lineage.to_owned());
        let network = &mut *self.network.borrow_mut();
        let now = network.now;
        let link = &mut network.links[self.at];
        link.read = Some(InboxRead { number, key, after, lineage });
        link.reader = Reader::Waiting { until: now + MIN_BACKOFF };
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        loop {
            let (number, event) = self.network.borrow_mut().links[self.at].events.pop_front()?;
            match event {
                LinkEvent::Connected { .. } => self.session = number,
                LinkEvent::Inbox(_) if number != self.reading => continue,
                _ => {}
            }
            return Some(event);
        }
    }
}
