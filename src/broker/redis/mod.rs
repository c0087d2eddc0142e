//! A broker that shares rooms with other instances of the server, through Redis. A script on the Redis server executes
//! the requests of all instances in one order, and puts the events of each request into the inbox of every instance
//! whose clients receive them. An instance applies its inbox in order, so all instances agree:
//!
//! ```text
//!   instance 1                   Redis                    instance 2
//!   submit ─▶ Requests ─ call ─▶ script.lua: one order
//!                                   │       └─ inbox 2 ─▶ Mirror ─▶ next_event
//!   next_event ◀─ Mirror ◀─ inbox 1 ┘
//! ```
//!
//! A request takes effect on an instance when the request's event arrives in the instance's inbox, not earlier. Three
//! cases need care:
//!
//! - *A call has no reply.* Redis may have executed it or not. After a reconnect, Redis reports the last request that
//!   it executed, and from then on rejects calls of earlier connections. So every request is executed exactly once.
//! - *The instance was silent.* Other instances have removed its clients from the rooms. The instance reads the rest of
//!   its inbox, makes its clients members again (`rejoin`) and requests the missed events of each room (`sync`).
//! - *Redis has lost data*, or another Redis server has taken over. A new generation begins, in which every room has a
//!   new epoch. If an instance has seen events that Redis has lost, the instance proceeds like a silent instance.

mod heartbeats;
pub mod inbox;
pub mod link;
mod mirror;
pub mod requests;
mod rooms;
mod submit;

use std::{collections::BTreeSet, time::Duration};

use mio::Token;

use super::memory::BrokerLimits;
use super::{Broker, BrokerError, Join, NameRules, Random, RoomEvent};
use heartbeats::Heartbeats;
use inbox::InboxEvent;
use link::{Link, LinkEvent, Threads};
use mirror::Mirror;
use requests::{Kind, QueuedRequest, Requests, format_flag};

pub const SCRIPT: &str = include_str!("script.lua");
const PROTOCOL_VERSION: &str = "1"; // instances with different versions of the script or its keys must not share data

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
const REGISTRATION_RETRY_DELAY: Duration = Duration::from_millis(200);
const INSTANCE_TTL: Duration = Duration::from_secs(600); // Redis forgets an instance that has been silent for this long

#[derive(Debug, Clone)]
pub struct Settings {
    pub prefix: String,       // of all keys in Redis
    pub timeout: Duration,    // a request expires if Redis does not confirm it within this time
    pub limits: BrokerLimits, // the broker ignores `max_bytes`: Redis has its own memory limit
}

pub struct RedisBroker {
    link: Box<dyn Link>,
    settings: Settings,
    names: NameRules,
    random: Random,
    inbox: Inbox,
    stage: Stage,
    requests: Requests,
    beats: Heartbeats,
    mirror: Mirror,
    now: Duration,
}

/// This instance's stream of events in Redis.
struct Inbox {
    instance: u32, // this instance's id, a random number
    generation: String,
    lineage: String,
    connection: String, // the number that Redis assigned to this instance's connection
    last_read: u64,     // id of the last entry that the instance has read
    has_gap: bool,      // entries are missing: the inbox was full, so Redis trimmed it
}

enum Stage {
    Lost,
    /// The connection is open, but the instance is not registered. After Redis has rejected a call, the broker tries to
    /// register the instance again at `open_at`.
    Connected {
        open_at: Option<Duration>,
    },
    /// Other instances have declared this instance dead. Before its clients rejoin their rooms, the instance reads the
    /// rest of its inbox, up to the entry `until`.
    CatchingUp {
        until: u64,
    },
    Registered,
}

impl RedisBroker {
    /// Connects to the Redis server at `url`. If the server does not respond, the broker keeps trying. Returns an error
    /// message if `url` is invalid or a thread cannot start.
    pub fn open(
        url: &str,
        settings: Settings,
        random: Random,
        names: NameRules,
        wake: impl Fn() + Clone + Send + 'static,
    ) -> Result<RedisBroker, String> {
        // Do not quote the error of the `redis` crate: the error may contain the password.
        let error = "--redis is not a URL of the form redis://[USER:PASSWORD@]HOST:PORT";
        let client = redis::Client::open(url).map_err(|_| error)?;
        let link = Threads::start(client, SCRIPT, settings.timeout, wake)?;
        Ok(RedisBroker::new(Box::new(link), settings, random, names))
    }

    pub fn new(link: Box<dyn Link>, settings: Settings, mut random: Random, names: NameRules) -> RedisBroker {
        let mut bytes = [0; 4];
        random(&mut bytes);
        let (instance, none) = (u32::from_be_bytes(bytes).max(1), String::new);
        let mirror = Mirror::new(instance, settings.limits);
        let inbox =
            Inbox { instance, generation: none(), lineage: none(), connection: none(), last_read: 0, has_gap: false };
        RedisBroker {
            link,
            settings,
            names,
            random,
            inbox,
            stage: Stage::Lost,
            requests: Requests::default(),
            beats: Heartbeats::default(),
            mirror,
            now: Duration::ZERO,
        }
    }

    /// Sends the next batch of queued requests to Redis in one call. If an earlier call is pending, sends nothing, and
    /// the requests wait for the next call. While this instance is catching up on its inbox, its calls are heartbeats
    /// without requests, because only a call detects a lost connection.
    fn flush(&mut self) {
        let is_registered = matches!(self.stage, Stage::Registered);
        if self.beats.is_calling || !(is_registered || matches!(self.stage, Stage::CatchingUp { .. })) {
            return;
        }
        if self.inbox.has_gap {
            return self.register();
        }
        let is_beat = self.now >= self.beats.next_heartbeat_at;
        let is_due = if is_registered { self.requests.has_unsent() } else { is_beat };
        if !is_due {
            return;
        }
        if is_beat {
            self.beats.next_heartbeat_at = self.now + HEARTBEAT_INTERVAL;
        }
        let Inbox { generation, connection, last_read, .. } = &self.inbox;
        let BrokerLimits { max_messages, max_backlog, max_empty_rooms, ttl, .. } = self.settings.limits;
        let mut arguments = self.first_arguments("call");
        arguments.extend([generation.clone(), connection.clone(), last_read.to_string(), format_flag(is_beat)]);
        arguments.push(self.requests.last_sent.to_string());
        arguments.extend([max_messages, max_backlog, max_empty_rooms].map(|limit| limit.to_string()));
        arguments.extend([ttl, INSTANCE_TTL].map(|time| time.as_millis().max(1).to_string()));
        let (requests, last) = if is_registered { self.requests.take_batch() } else { Default::default() };
        arguments.extend(requests);
        self.beats.is_calling = true;
        self.beats.calls.push_back((last, self.now));
        self.link.call(arguments);
    }

    fn first_arguments(&self, mode: &str) -> Vec<String> {
        vec![mode.to_owned(), self.settings.prefix.clone(), self.inbox.instance.to_string()]
    }

    // ---- Time ----

    /// Gives up on requests that Redis has not confirmed in time.
    fn expire_requests(&mut self) {
        while let Some(request) = self.requests.pop_expired(self.now, self.settings.timeout) {
            let QueuedRequest { client, kind, is_sent, .. } = request;
            let error = BrokerError::Unavailable;
            match kind {
                Kind::Join => self.abandon_join(client, is_sent),
                Kind::Message { .. } if is_sent => {
                    self.mirror.events.push_back(RoomEvent::FateUnknown { client });
                    self.requests.drop_requests(client); // the client's later messages must not overtake this one
                }
                Kind::Message { nonce } => {
                    let error = BrokerError::NotStored;
                    self.mirror.events.push_back(RoomEvent::Rejected { client, error, nonce });
                }
                Kind::Query => {
                    self.mirror.events.push_back(RoomEvent::Rejected { client, error, nonce: None });
                    let Some(record) = self.mirror.clients.get(&client) else { continue };
                    if let Some(room) = record.room.clone()
                        && !self.requests.contains(client, "switch")
                    {
                        self.mirror.set_target(client, &room);
                    }
                }
                Kind::Typing | Kind::Internal => {}
            }
        }
    }

    /// Rejects a join that Redis has not confirmed in time. If Redis may still execute the join, also requests a leave.
    fn abandon_join(&mut self, client: Token, is_sent: bool) {
        let Some(record) = self.mirror.clients.get_mut(&client) else { return };
        record.is_hidden = true;
        self.mirror.events.push_back(RoomEvent::JoinRejected { client, error: BrokerError::Unavailable });
        if is_sent {
            self.push(client, Kind::Internal, "leave", Vec::new());
        } else {
            self.mirror.forget(client);
        }
    }

    // ---- Connections ----

    fn apply_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Connected { lineage, warning } => {
                warning.into_iter().for_each(|warning| log::warn!("REDIS {warning}"));
                self.inbox.lineage = lineage;
                self.register();
            }
            LinkEvent::Lost { reason } => {
                self.stage = Stage::Lost;
                self.beats.handle_lost_connection(reason);
            }
            LinkEvent::Reply(Err(reason)) => {
                self.beats.is_calling = false;
                self.beats.rejection = Some(reason);
                self.stage = Stage::Connected { open_at: Some(self.now + REGISTRATION_RETRY_DELAY) };
            }
            LinkEvent::Reply(Ok(reply)) => self.apply_reply(&reply),
            LinkEvent::Inbox(entries) => entries.into_iter().for_each(|(id, events)| self.read_entry(id, &events)),
        }
        self.flush();
    }

    fn read_entry(&mut self, id: u64, events: &str) {
        self.inbox.has_gap |= id != self.inbox.last_read + 1;
        self.inbox.last_read = id;
        if self.inbox.has_gap {
            return; // events were lost, so `flush` registers this instance again, which makes Redis empty the inbox
        }
        for event in events.lines() {
            match serde_json::from_str(event) {
                Ok(InboxEvent::Executed(number)) => {
                    self.requests.confirm(number);
                    // Allow the next script call now, because this event proves that Redis has executed the pending
                    // call. The reply `done` does not wake the event loop, so waiting for the reply would delay the
                    // next call.
                    self.beats.confirm(number);
                }
                Ok(event) => self.mirror.apply(event),
                Err(error) => log::error!("REDIS an event is invalid: {error}"),
            }
        }
        if matches!(self.stage, Stage::CatchingUp { until } if id >= until) {
            self.rejoin(false);
        }
    }

    /// Registers the instance with Redis: on each new connection, and again if Redis has removed the instance or the
    /// inbox has a gap. After a gap, the empty generation tells Redis that the instance has missed events.
    fn register(&mut self) {
        if self.inbox.has_gap {
            self.inbox.generation.clear();
        }
        let mut name = [0; 8];
        (self.random)(&mut name);
        let mut arguments = self.first_arguments("open");
        let Inbox { generation, lineage, last_read, .. } = &self.inbox;
        let (version, new_generation) = (PROTOCOL_VERSION.into(), format!("{:016x}", u64::from_be_bytes(name)));
        arguments.extend([version, lineage.clone(), new_generation, generation.clone(), last_read.to_string()]);
        arguments.push(INSTANCE_TTL.as_millis().to_string());
        self.beats.next_heartbeat_at = self.now; // start with a heartbeat, which makes Redis set the inbox's expiry
        self.stage = Stage::Connected { open_at: None };
        self.beats.is_calling = true;
        self.link.call(arguments);
    }

    fn apply_reply(&mut self, reply: &[String]) {
        let is_of_call = reply.first().is_some_and(|status| status == link::DONE || status == "stale");
        if is_of_call && matches!(self.stage, Stage::Connected { open_at: None }) {
            return; // a late reply to an earlier call: the reply to `open` is still to come
        }
        self.beats.is_calling = false;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [link::DONE, ..] => {
                self.beats.rejection = None;
                for (instance, beat) in self.beats.find_silent_instances(&reply[1..], self.inbox.instance) {
                    self.push_internal("reap", vec![instance, beat]);
                }
            }
            ["stale"] => self.register(),
            ["protocol", protocol] => {
                let reason = format!("instances of another version (protocol {protocol}) use the prefix");
                self.beats.rejection = Some(reason);
                self.stage = Stage::Connected { open_at: Some(self.now + REGISTRATION_RETRY_DELAY) };
            }
            [status, generation, connection, executed, last] => {
                let number = |text: &str| text.parse().unwrap_or(0);
                self.beats.rejection = None;
                self.beats.calls.clear();
                (self.inbox.generation, self.inbox.connection) = (generation.into(), connection.into());
                self.requests.last_sent = number(executed);
                if status == "lost" {
                    // Redis has emptied the inbox: new entries follow this id.
                    (self.inbox.last_read, self.inbox.has_gap) = (number(last), false);
                } else {
                    self.requests.mark_unsent_after(number(executed));
                }
                let key = format!("{}:inbox:{}", self.settings.prefix, self.inbox.instance);
                self.link.read_inbox(&key, self.inbox.last_read, &self.inbox.lineage);
                match status {
                    "lost" => self.rejoin(true),
                    "dead" if self.inbox.last_read < number(last) => {
                        self.stage = Stage::CatchingUp { until: number(last) }
                    }
                    "dead" => self.rejoin(false),
                    _ => self.stage = Stage::Registered,
                }
            }
            _ => log::error!("REDIS the reply {reply:?} is invalid"),
        }
    }

    /// Adds all clients to their rooms again, and requests the events that each room has missed. If `is_lost` is true,
    /// Redis has lost data or this instance has missed events, so the outcome of messages sent to Redis is unknown.
    fn rejoin(&mut self, is_lost: bool) {
        self.stage = Stage::Registered;
        let waiting = self.requests.take();
        self.mirror.remove_leaving();
        let members = self.mirror.members();
        for client in &members {
            self.push_rejoin(*client);
        }
        let retained = std::iter::once(members.len()).chain(members.iter().map(|client| client.0));
        self.push_internal("retain", retained.map(|number| number.to_string()).collect());
        for (name, epoch, last_id) in self.mirror.rooms.start_sync() {
            self.push_internal("sync", vec![name.to_string(), epoch.to_string(), last_id.to_string()]);
        }
        let mut unknown = BTreeSet::new();
        for request in waiting {
            if is_lost && request.is_sent && matches!(request.kind, Kind::Message { .. }) {
                unknown.insert(request.client);
            } else if !request.is_obsolete() {
                self.requests.push(request);
            }
        }
        for client in unknown {
            self.mirror.events.push_back(RoomEvent::FateUnknown { client });
            self.requests.drop_requests(client);
        }
        self.flush();
    }
}

impl Broker for RedisBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        if !self.is_available() {
            return Err(BrokerError::Unavailable);
        }
        if self.mirror.is_client_id_in_use(join) {
            return Err(BrokerError::ClientIdInUse);
        }
        self.mirror.may_open(&join.room, &join.user).then_some(()).ok_or(BrokerError::TooManyRooms)
    }

    fn submit(&mut self, client: Token, request: super::Request, now: Duration) {
        self.now = now;
        self.submit_request(client, request);
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        while self.mirror.events.is_empty()
            && let Some(event) = self.link.next_event()
        {
            self.apply_link_event(event);
        }
        self.mirror.events.pop_front()
    }

    fn queued_bytes(&self) -> usize {
        self.requests.bytes
    }

    fn begin_turn(&mut self, now: Duration) {
        self.now = now;
        self.expire_requests();
        if matches!(self.stage, Stage::Connected { open_at: Some(at) } if at <= now) {
            self.register();
        }
        if matches!(self.stage, Stage::Registered) && !self.beats.is_calling && now >= self.beats.next_heartbeat_at {
            self.push_internal("probe", Vec::new());
        }
        self.flush();
        let is_available = self.is_available();
        self.beats.log_availability(is_available, self.inbox.instance);
    }

    fn next_turn_at(&self) -> Option<Duration> {
        let beat = match self.stage {
            Stage::Connected { open_at } => open_at,
            Stage::Registered | Stage::CatchingUp { .. } if !self.beats.is_calling => {
                Some(self.beats.next_heartbeat_at)
            }
            _ => None,
        };
        let late = self.beats.unavailable_at().filter(|at| *at > self.now);
        [beat, late, self.requests.next_expiry(self.settings.timeout)].into_iter().flatten().min()
    }

    fn is_available(&self) -> bool {
        let is_late = self.beats.unavailable_at().is_some_and(|at| self.now >= at);
        matches!(self.stage, Stage::Registered) && !is_late && self.beats.rejection.is_none()
    }
}

impl Drop for RedisBroker {
    /// Removes this instance from Redis, so that other instances see its clients leave at once.
    fn drop(&mut self) {
        if self.is_available() {
            self.beats.is_calling = false; // send `close` even if a call is pending: the link sends calls in order
            self.requests.take();
            self.push_internal("close", Vec::new());
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use super::*;
    use crate::broker::{Request, User};

    /// A fake link that records the broker's calls, and returns the events that a test has queued.
    #[derive(Default)]
    struct FakeLink {
        calls: Vec<Vec<String>>,
        read_positions: Vec<u64>,
        events: VecDeque<LinkEvent>,
    }

    impl Link for Rc<RefCell<FakeLink>> {
        fn call(&mut self, arguments: Vec<String>) {
            self.borrow_mut().calls.push(arguments);
        }

        fn read_inbox(&mut self, _: &str, after: u64, _: &str) {
            self.borrow_mut().read_positions.push(after);
        }

        fn next_event(&mut self) -> Option<LinkEvent> {
            self.borrow_mut().events.pop_front()
        }
    }

    fn reply(fields: &[&str]) -> LinkEvent {
        LinkEvent::Reply(Ok(fields.iter().map(|field| (*field).to_owned()).collect()))
    }

    fn entry(id: u64) -> LinkEvent {
        LinkEvent::Inbox(vec![(id, r#"{"executed":0}"#.to_owned())])
    }

    fn broker(link: &Rc<RefCell<FakeLink>>) -> RedisBroker {
        let limits = BrokerLimits {
            max_messages: 10,
            max_bytes: 1000,
            max_backlog: 1000,
            max_rooms: 10,
            max_rooms_per_user: 10,
            max_empty_rooms: 10,
            ttl: Duration::from_secs(60),
            default_room: "general",
        };
        let settings = Settings { prefix: "chat".into(), timeout: Duration::from_secs(5), limits };
        let names = NameRules { key: Rc::clone, may_share: |_| true };
        RedisBroker::new(Box::new(Rc::clone(link)), settings, Box::new(|bytes| bytes.fill(1)), names)
    }

    /// Lets the broker process `events`. Returns the first argument of each script call since the previous `run`.
    fn run(broker: &mut RedisBroker, link: &Rc<RefCell<FakeLink>>, events: Vec<LinkEvent>) -> Vec<String> {
        link.borrow_mut().events.extend(events);
        while broker.next_event().is_some() {}
        link.borrow_mut().calls.drain(..).map(|call| call[0].clone()).collect()
    }

    fn connected() -> LinkEvent {
        LinkEvent::Connected { lineage: "a".into(), warning: None }
    }

    /// Two calls are in flight when Redis loses its data, so the broker receives two `stale` replies. It must send only
    /// one `open`: a second `open` would empty the inbox again after the broker has begun to read it.
    #[test]
    fn a_broker_registers_once_and_reads_the_inbox_from_its_new_start() {
        let link = Rc::new(RefCell::new(FakeLink::default()));
        let broker = &mut broker(&link);
        assert_eq!(run(broker, &link, vec![connected(), reply(&["known", "1-a", "1", "0", "0"])]), ["open"]);
        let stale = vec![entry(1), entry(2), reply(&["stale"]), reply(&["stale"]), reply(&["done"])];
        assert_eq!(run(broker, &link, stale), ["open"], "one `open` for two replies `stale`");
        // Entry 3 of the old inbox arrives before the reply to `open`. The reply says that the new inbox starts after
        // entry 2, so the broker must read from there.
        run(broker, &link, vec![entry(3), reply(&["lost", "1-b", "1", "0", "2"])]);
        assert_eq!(link.borrow().read_positions, [0, 2]);
    }

    /// Other instances have declared this instance dead, so it reads the rest of its inbox before its clients rejoin.
    /// If an entry is missing, the instance registers again. It keeps sending heartbeats, so that it notices a restart
    /// of Redis.
    #[test]
    fn an_instance_that_reads_the_rest_of_its_inbox_does_not_wait_for_ever() {
        for is_missing in [false, true] {
            let link = Rc::new(RefCell::new(FakeLink::default()));
            let broker = &mut broker(&link);
            assert_eq!(run(broker, &link, vec![connected(), reply(&["dead", "1-a", "1", "0", "9"])]), ["open", "call"]);
            assert_eq!(run(broker, &link, vec![reply(&["done"]), entry(1)]), [""; 0]);
            if is_missing {
                assert_eq!(run(broker, &link, vec![entry(3)]), ["open"]);
            } else {
                let later = broker.next_turn_at().expect("a deadline");
                broker.begin_turn(later);
                assert_eq!(run(broker, &link, Vec::new()), ["call"]);
            }
        }
    }

    /// Redis has executed a join whose events are missing from the inbox. After the registration, Redis removes the
    /// client, and executes the join again.
    #[test]
    fn a_pending_join_takes_effect_after_a_registration() {
        let link = Rc::new(RefCell::new(FakeLink::default()));
        let broker = &mut broker(&link);
        run(broker, &link, vec![connected(), reply(&["known", "1-a", "1", "0", "0"]), reply(&["done"])]);
        let join = Join::new("ann", "room", User::Connection(Token(5)));
        broker.submit(Token(5), Request::Join(join), Duration::ZERO);
        assert_eq!(run(broker, &link, vec![reply(&["done"]), entry(2)]), ["call", "open"], "entry 1 is missing");
        run(broker, &link, vec![reply(&["lost", "1-a", "2", "0", "2"])]);
        let left = format!(r#"{{"left":["room",{},5]}}"#, broker.inbox.instance);
        let joined = "{\"opened\":[\"room\",[]]}\n{\"joined\":[5,null,\"room\",\"1-a-1\",0,false,[]]}";
        link.borrow_mut().events.push_back(LinkEvent::Inbox(vec![(3, left), (4, joined.into())]));
        assert!(matches!(broker.next_event(), Some(RoomEvent::Opened { .. })));
        assert!(matches!(broker.next_event(), Some(RoomEvent::Joined { client: Token(5), .. })));
    }

    /// The broker finds a gap while a call is pending, and then loses the connection. Or it finds the gap while it
    /// waits for the reply to `open`. In both cases, it must register without a generation.
    #[test]
    fn a_gap_is_not_forgotten_during_a_registration() {
        let known = || reply(&["known", "1-a", "1", "0", "0"]);
        for (events, expected) in [
            (vec![entry(2), LinkEvent::Lost { reason: "timed out".into() }, connected()], vec![""]),
            (vec![LinkEvent::Lost { reason: "timed out".into() }, connected(), entry(2), known()], vec!["1-a", ""]),
        ] {
            let link = Rc::new(RefCell::new(FakeLink::default()));
            let broker = &mut broker(&link);
            run(broker, &link, vec![connected(), known()]);
            broker.begin_turn(Duration::from_secs(1));
            link.borrow_mut().calls.clear(); // a call with a heartbeat is pending
            link.borrow_mut().events.extend(events);
            while broker.next_event().is_some() {}
            let opened: Vec<String> = link.borrow().calls.iter().map(|call| call[6].clone()).collect();
            assert_eq!(opened, expected, "the generation in each `open`");
        }
    }
}
