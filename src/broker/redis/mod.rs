//! A broker that shares rooms with other instances of the server, through Redis. A script on the Redis server executes
//! the requests of all instances in one order, and puts the events of each request into the inbox of every instance
//! whose clients receive them. An instance applies its inbox in order, so all instances agree:
//!
//! ```text
//!   instance 1                     Redis                       instance 2
//!   submit ─▶ Requests ─ call ─▶ script.lua: one order
//!                                  │        └─ inbox 2 ─▶ Rooms ─▶ next_event
//!   next_event ◀─ Rooms ◀─ inbox 1 ┘
//! ```
//!
//! Nothing takes effect before its event arrives in the inbox. Three cases need care:
//!
//! - *A call has no reply.* Redis may have executed it or not. After the next connect, Redis says which request it
//!   executed last, and executes no other request of an earlier connection. So every request is executed once.
//! - *The instance was silent.* The others have removed its clients from the rooms. It reads the rest of its inbox, makes
//!   its clients members again (`rejoin`) and asks what it missed in each room (`sync`).
//! - *Redis has lost data*, or another Redis server has taken over. A new generation begins, in which every room has a
//!   new epoch. An instance that has seen more than Redis still has does the same as a silent one.

pub mod inbox;
pub mod link;
pub mod requests;
mod rooms;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use mio::Token;

use super::memory::MemoryConfig;
use super::{Backlog, Broker, BrokerError, CredentialId, Join, MemberId, Message, NameRules, Page};
use super::{PrivateMessage, Random, RoomEvent, Session, User};
use crate::maps::TokenMap;
use inbox::{InboxEvent, Payload, PrivatePayload};
use link::{Link, LinkEvent, Threads};
use requests::{Kind, Request, Requests};
use rooms::Rooms;

pub const SCRIPT: &str = include_str!("script.lua");
const PROTOCOL: &str = "1"; // instances with another version of the script or of its keys must not share them

const BEAT: Duration = Duration::from_millis(500);
// The others declare an instance dead after this many of their own beats without one of its own: after 3.5 to 4.5 s.
const SILENT_BEATS: u32 = 7;
const MAX_WAIT: Duration = Duration::from_secs(2); // Redis counts as unavailable once a call has waited this long
const RETRY: Duration = Duration::from_millis(200);
const EXPIRY: Duration = Duration::from_secs(600); // until Redis forgets an instance that does not come back

#[derive(Debug, Clone)]
pub struct Settings {
    pub prefix: String,       // of all keys
    pub timeout: Duration,    // how long a request waits for Redis
    pub limits: MemoryConfig, // `bytes` does not apply: Redis has its own limit of memory
}

pub struct RedisBroker {
    link: Box<dyn Link>,
    settings: Settings,
    names: NameRules,
    random: Random,
    inbox: Inbox,
    stage: Stage,
    requests: Requests,
    beats: Beats,
    clients: TokenMap<Box<Client>>,
    client_ids: HashMap<Rc<str>, Token>,
    rooms: Rooms,
    opened: HashMap<Rc<str>, (User, usize)>, // per room: the user who opened it, and the number of clients in it or on their way
    events: VecDeque<RoomEvent>,
    now: Duration,
}

/// This instance's stream of events.
struct Inbox {
    instance: u32, // a random number
    generation: String,
    lineage: String,
    connection: String, // number of the connection, from Redis
    read: u64,          // id of the last entry that was read
}

enum Stage {
    Lost,
    /// `open_at`: when to register, if Redis has rejected the first try.
    Connected {
        open_at: Option<Duration>,
    },
    /// The instance was declared dead, and reads the events from before.
    CatchingUp {
        until: u64,
    },
    Registered,
}

#[derive(Default)]
struct Beats {
    next_at: Duration,
    is_calling: bool,                       // a call has no reply yet
    calls: VecDeque<(u64, Duration)>,       // last request and time of each call whose events have not arrived
    rejection: Option<String>,              // why Redis rejects calls
    others: HashMap<String, (String, u32)>, // per instance: its newest beat, and our beats since
    was_available: Option<bool>,
}

struct Client {
    room: Option<Rc<str>>, // `None` until its join takes effect
    target: Rc<str>,       // the room it will be in once all its requests have taken effect
    join: Join,
    session: Session,
    username: Rc<str>, // from the client's last message, or from its join
    is_leaving: bool,
    is_hidden: bool, // its join took too long, and the chat has forgotten it
}

impl RedisBroker {
    /// Connects to the Redis server at `url`. If the server does not answer, the broker waits for it. `Err` is an error text.
    pub fn open(
        url: &str,
        settings: Settings,
        random: Random,
        names: NameRules,
        wake: impl Fn() + Clone + Send + 'static,
    ) -> Result<RedisBroker, String> {
        // Do not quote the error of the crate: it may contain the password.
        let error = "--redis is not a URL of the form redis://[USER:PASSWORD@]HOST:PORT";
        let client = redis::Client::open(url).map_err(|_| error)?;
        let link = Threads::start(client, SCRIPT, settings.timeout, wake)?;
        Ok(RedisBroker::new(Box::new(link), settings, random, names))
    }

    pub fn new(link: Box<dyn Link>, settings: Settings, mut random: Random, names: NameRules) -> RedisBroker {
        let mut bytes = [0; 4];
        random(&mut bytes);
        let (instance, none) = (u32::from_be_bytes(bytes).max(1), String::new);
        let inbox = Inbox { instance, generation: none(), lineage: none(), connection: none(), read: 0 };
        RedisBroker {
            link,
            settings,
            names,
            random,
            inbox,
            stage: Stage::Lost,
            requests: Requests::default(),
            beats: Beats::default(),
            clients: TokenMap::default(),
            client_ids: HashMap::new(),
            rooms: Rooms::default(),
            opened: HashMap::new(),
            events: VecDeque::new(),
            now: Duration::ZERO,
        }
    }

    // ---- Requests ----

    fn push(&mut self, client: Token, kind: Kind, name: &'static str, arguments: Vec<String>) {
        let client_argument = std::iter::once(client.0.to_string());
        let arguments = client_argument.chain(arguments).collect();
        self.requests.push(Request::new(client, kind, name, arguments, self.now));
        self.flush();
    }

    /// Rejects a request after all earlier ones, as Redis would.
    fn push_rejection(&mut self, client: Token, nonce: Option<&Rc<str>>) {
        let kind = Kind::Message { nonce: nonce.cloned() };
        self.push(client, kind, "reject", vec!["rooms".into(), json(&nonce)]);
    }

    fn claim_arguments(&self, username: &Rc<str>) -> [String; 3] {
        let may_share = (self.names.may_share)(username);
        [username.to_string(), (self.names.key)(username).to_string(), flag(may_share)]
    }

    fn join(&mut self, client: Token, join: Join) {
        if !self.may_open(&join.room, &join.user) {
            let error = BrokerError::TooManyRooms;
            return self.events.push_back(RoomEvent::JoinRejected { client, error });
        }
        let mut session = [0; 16];
        (self.random)(&mut session);
        let session = join.session.unwrap_or(Session(session));
        let arguments = self.join_arguments(&join, session);
        self.count_in(&join.room, &join.user);
        let (room, username) = (Rc::clone(&join.room), Rc::clone(&join.username));
        self.client_ids.extend(join.client_id.iter().map(|id| (Rc::clone(id), client)));
        let record = Client { room: None, target: room, join, session, username, is_leaving: false, is_hidden: false };
        self.clients.insert(client, Box::new(record));
        self.push(client, Kind::Join, "join", arguments);
    }

    fn join_arguments(&self, join: &Join, session: Session) -> Vec<String> {
        let [username, key, share] = self.claim_arguments(&join.username);
        let client_id = join.client_id.as_deref().unwrap_or_default().to_owned();
        let given = join.session.map(format_session).unwrap_or_default();
        let (epoch, since) =
            join.resume.as_ref().map(|resume| (resume.epoch.clone(), resume.since)).unwrap_or_default();
        let credential = format_credential(join.credential);
        let room = join.room.to_string();
        let (bound, new_session, since) = (flag(join.is_bound), format_session(session), since.to_string());
        vec![room, username, key, share, bound, client_id, credential, given, new_session, epoch, since]
    }

    fn switch(&mut self, client: Token, room: Rc<str>) {
        let Some(record) = self.clients.get(&client).filter(|record| record.target != room) else { return };
        let (from, user, joined_as) = (&record.target, record.join.user.clone(), record.join.username.to_string());
        // At a room limit, a client may still switch if the switch empties a room that the client's user opened.
        let replaces = self.opened.get(from).is_some_and(|(opener, count)| *count == 1 && *opener == user)
            && **from != *self.settings.limits.default_room;
        if !self.may_open(&room, &user) && !replaces {
            return self.push_rejection(client, None);
        }
        self.set_target(client, &room);
        self.push(client, Kind::Query, "switch", vec![room.to_string(), joined_as]);
    }

    fn publish(&mut self, client: Token, message: Message) {
        let nonce = message.nonce.clone();
        let mut arguments = self.claim_arguments(&message.username).to_vec();
        arguments.extend([json(&nonce), nonce_key(&message), json(&Payload::new(message))]);
        self.push(client, Kind::Message { nonce }, "publish", arguments);
    }

    fn announce(&mut self, client: Token, room: &Rc<str>, message: Message) {
        let nonce = message.nonce.clone();
        if !self.may_open(room, &User::Connection(Token(0))) {
            return self.push_rejection(client, nonce.as_ref());
        }
        let arguments = vec![room.to_string(), nonce_key(&message), json(&Payload::new(message))];
        self.push(client, Kind::Message { nonce }, "announce", arguments);
    }

    fn send_private(&mut self, client: Token, message: &PrivateMessage) {
        let mut arguments = self.claim_arguments(&message.from).to_vec();
        let key = (self.names.key)(&message.to).to_string();
        arguments.extend([json(&message.nonce), key, message.to.to_string(), json(message)]);
        self.push(client, Kind::Message { nonce: message.nonce.clone() }, "private", arguments);
    }

    /// Sends the next call, if Redis has answered the one before.
    fn flush(&mut self) {
        if !matches!(self.stage, Stage::Registered) || self.beats.is_calling || !self.requests.has_unsent() {
            return;
        }
        let is_beat = self.now >= self.beats.next_at;
        if is_beat {
            self.beats.next_at = self.now + BEAT;
        }
        let Inbox { generation, connection, read, .. } = &self.inbox;
        let MemoryConfig { messages, backlog, empty_rooms, ttl, .. } = self.settings.limits;
        let mut arguments = self.first_arguments("call");
        arguments.extend([generation.clone(), connection.clone(), read.to_string(), flag(is_beat)]);
        arguments.extend([messages, backlog, empty_rooms].map(|limit| limit.to_string()));
        arguments.extend([ttl, EXPIRY].map(|time| time.as_millis().max(1).to_string()));
        let (requests, last) = self.requests.take_batch();
        arguments.extend(requests);
        self.beats.is_calling = true;
        self.beats.calls.push_back((last, self.now));
        self.link.call(arguments);
    }

    fn first_arguments(&self, mode: &str) -> Vec<String> {
        vec![mode.to_owned(), self.settings.prefix.clone(), self.inbox.instance.to_string()]
    }

    // ---- Time ----

    /// Ends requests that have waited too long.
    fn expire_requests(&mut self) {
        while let Some(request) = self.requests.pop_expired(self.now, self.settings.timeout) {
            let Request { client, kind, is_sent, .. } = request;
            let error = BrokerError::Unavailable;
            match kind {
                Kind::Join => self.give_up_join(client, is_sent),
                Kind::Message { .. } if is_sent => self.events.push_back(RoomEvent::FateUnknown { client }),
                Kind::Message { nonce } => {
                    let error = BrokerError::NotStored;
                    self.events.push_back(RoomEvent::Rejected { client, error, nonce });
                }
                Kind::Query => {
                    self.events.push_back(RoomEvent::Rejected { client, error, nonce: None });
                    let Some(record) = self.clients.get(&client) else { continue };
                    if let Some(room) = record.room.clone()
                        && !self.requests.contains(client, "switch")
                    {
                        self.set_target(client, &room);
                    }
                }
                Kind::Typing | Kind::Internal => {}
            }
        }
    }

    /// The client's join failed. If Redis may execute the join nevertheless, the client leaves at once.
    fn give_up_join(&mut self, client: Token, is_sent: bool) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        record.is_hidden = true;
        self.events.push_back(RoomEvent::JoinRejected { client, error: BrokerError::Unavailable });
        if is_sent {
            self.push(client, Kind::Internal, "leave", Vec::new());
        } else {
            self.forget(client);
        }
    }

    fn log_availability(&mut self) {
        let is_available = self.is_available();
        if self.beats.was_available.is_none() && !is_available && self.beats.rejection.is_none() {
            return; // the first try to connect is not over
        }
        if self.beats.was_available.replace(is_available) != Some(is_available) {
            match is_available {
                true => log::info!("REDIS available, instance {}", self.inbox.instance),
                false => {
                    let reason = self.beats.rejection.as_deref().unwrap_or("it does not answer");
                    log::warn!("REDIS unavailable: {reason}");
                }
            }
        }
    }

    /// Counts our beats since the newest beat of each other instance, and removes those that have stopped.
    fn compare_beats(&mut self, beats: &[String]) {
        let before = std::mem::take(&mut self.beats.others);
        for pair in beats.as_chunks().0 {
            let [instance, beat] = pair;
            if *instance == self.inbox.instance.to_string() {
                continue;
            }
            let silent = match before.get(instance) {
                Some((last, silent)) if last == beat => silent + 1,
                _ => 0,
            };
            if silent >= SILENT_BEATS {
                log::info!("REDIS instance {instance} is silent");
                let arguments = vec![instance.clone(), beat.clone()];
                self.requests.push(Request::new(Token(0), Kind::Internal, "reap", arguments, self.now));
            }
            self.beats.others.insert(instance.clone(), (beat.clone(), silent));
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
                self.beats.is_calling = false;
                self.beats.rejection = Some(reason);
                self.beats.others.clear();
            }
            LinkEvent::Reply(Err(reason)) => {
                self.beats.is_calling = false;
                self.beats.rejection = Some(reason);
                self.stage = Stage::Connected { open_at: Some(self.now + RETRY) };
            }
            LinkEvent::Reply(Ok(reply)) => self.apply_reply(&reply),
            LinkEvent::Inbox(entries) => {
                for (id, events) in entries {
                    if id != self.inbox.read + 1 {
                        // Redis has deleted entries: the inbox was full.
                        self.inbox.read = id;
                        self.rejoin(true);
                        continue;
                    }
                    self.inbox.read = id;
                    for event in events.lines() {
                        match serde_json::from_str(event) {
                            Ok(event) => self.apply(event),
                            Err(error) => log::error!("REDIS an event is invalid: {error}"),
                        }
                    }
                }
                if matches!(self.stage, Stage::CatchingUp { until } if self.inbox.read >= until) {
                    self.rejoin(false);
                }
            }
        }
        self.flush();
    }

    /// Registers the instance, on a new connection or after Redis has removed it.
    fn register(&mut self) {
        let mut name = [0; 8];
        (self.random)(&mut name);
        let mut arguments = self.first_arguments("open");
        let Inbox { generation, lineage, read, .. } = &self.inbox;
        let new_generation = format!("{:016x}", u64::from_be_bytes(name));
        arguments.extend([PROTOCOL.into(), lineage.clone(), new_generation, generation.clone(), read.to_string()]);
        self.stage = Stage::Connected { open_at: None };
        self.beats.is_calling = true;
        self.link.call(arguments);
    }

    fn apply_reply(&mut self, reply: &[String]) {
        self.beats.is_calling = false;
        match reply.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["done", ..] => {
                self.beats.rejection = None;
                self.compare_beats(&reply[1..]);
            }
            ["stale"] => self.register(),
            ["protocol", protocol] => {
                let reason = format!("instances of another version (protocol {protocol}) use the prefix");
                self.beats.rejection = Some(reason);
                self.stage = Stage::Connected { open_at: Some(self.now + RETRY) };
            }
            [status, generation, connection, executed, last] => {
                let number = |text: &str| text.parse().unwrap_or(0);
                self.beats.rejection = None;
                self.beats.calls.clear();
                (self.inbox.generation, self.inbox.connection) = (generation.into(), connection.into());
                let key = format!("{}:inbox:{}", self.settings.prefix, self.inbox.instance);
                self.link.read_inbox(&key, self.inbox.read, &self.inbox.lineage);
                if status != "lost" {
                    self.requests.set_executed(number(executed));
                }
                match status {
                    "lost" => self.rejoin(true),
                    "dead" if self.inbox.read < number(last) => self.stage = Stage::CatchingUp { until: number(last) },
                    "dead" => self.rejoin(false),
                    _ => self.stage = Stage::Registered,
                }
            }
            _ => log::error!("REDIS the reply {reply:?} is invalid"),
        }
    }

    /// Makes all clients members of their rooms again, and asks what they missed. `is_lost`: Redis does not know which of
    /// the requests that were sent it has executed.
    fn rejoin(&mut self, is_lost: bool) {
        self.stage = Stage::Registered;
        let waiting = self.requests.take();
        let mut tokens: Vec<Token> = self.clients.keys().copied().collect();
        tokens.sort_unstable();
        let mut retained = Vec::new();
        for token in tokens {
            let Some(record) = self.clients.get(&token) else { continue };
            let Some(room) = record.room.clone() else { continue };
            if record.is_leaving || record.is_hidden {
                self.remove_local(token);
                continue;
            }
            retained.push(token.0.to_string());
            let [username, key, share] = self.claim_arguments(&record.username);
            let client_id = record.join.client_id.as_deref().unwrap_or_default().to_owned();
            let credential = format_credential(record.join.credential);
            let (room, joined_as) = (room.to_string(), record.join.username.to_string());
            let arguments = [room, joined_as, username, key, share, client_id, credential];
            let arguments =
                std::iter::once(token.0.to_string()).chain(arguments).chain([format_session(record.session)]);
            self.requests.push(Request::new(token, Kind::Internal, "rejoin", arguments.collect(), self.now));
        }
        retained.insert(0, retained.len().to_string());
        self.requests.push(Request::new(Token(0), Kind::Internal, "retain", retained, self.now));
        for (name, room) in &mut self.rooms.by_name {
            room.is_synced = false;
            let arguments = vec![name.to_string(), room.epoch.to_string(), room.last_id.to_string()];
            self.requests.push(Request::new(Token(0), Kind::Internal, "sync", arguments, self.now));
        }
        for request in waiting {
            match &request.kind {
                Kind::Message { .. } if is_lost && request.is_sent => {
                    self.events.push_back(RoomEvent::FateUnknown { client: request.client });
                }
                _ if request.is_obsolete() || !self.is_known(&request) => {}
                _ => self.requests.push(request),
            }
        }
        self.flush();
    }

    /// Whether the client of a request is still there. Requests of the operator and of the instance have no client.
    fn is_known(&self, request: &Request) -> bool {
        request.kind == Kind::Internal
            || matches!(request.kind, Kind::Message { .. })
            || self.clients.contains_key(&request.client)
    }

    // ---- Events ----

    fn apply(&mut self, event: InboxEvent) {
        match event {
            InboxEvent::Executed(number) => {
                self.requests.confirm(number);
                while self.beats.calls.front().is_some_and(|(last, _)| *last <= number) {
                    self.beats.calls.pop_front();
                }
            }
            InboxEvent::Renewed(name, epoch) => {
                self.rooms.synced(&name).into_iter().for_each(|room| room.epoch = Rc::clone(&epoch));
            }
            InboxEvent::Opened(name, members) => {
                let members = self.remote_members(members);
                self.rooms.open(name, members);
            }
            InboxEvent::Joined(client, from, to, epoch, last_id, resumed, messages) => {
                let backlog = Backlog { epoch, last_id, resumed, messages: with_ids(messages) };
                self.apply_join(token(client), from, &to, backlog);
            }
            InboxEvent::JoinRejected(client) => {
                if self.forget(token(client)) {
                    let error = BrokerError::NameInUse;
                    self.events.push_back(RoomEvent::JoinRejected { client: token(client), error });
                }
            }
            InboxEvent::Arrived(name, instance, connection, username) => {
                let room = self.rooms.synced(&name);
                let member = MemberId::Remote { instance, connection };
                self.events.extend(room.and_then(|room| room.add_remote(member, username)));
            }
            InboxEvent::Left(_, instance, client) if instance == self.inbox.instance => {
                self.remove_local(token(client))
            }
            InboxEvent::Left(name, instance, connection) => {
                let room = self.rooms.synced(&name);
                let member = MemberId::Remote { instance, connection };
                self.events.extend(room.and_then(|room| room.remove_remote(member)));
            }
            InboxEvent::Message(name, instance, client, id, payload) => {
                let client = (instance == self.inbox.instance).then_some(token(client));
                self.apply_message(&name, client, payload.with_id(id));
            }
            InboxEvent::Announced(name, _, client, id, payload) => {
                self.apply_announcement(&name, token(client), payload.with_id(id));
            }
            InboxEvent::Duplicate(client, id, payload) => {
                let message = Rc::new(payload.with_id(id));
                self.events.push_back(RoomEvent::Duplicate { client: token(client), message });
            }
            InboxEvent::Private(recipients, payload) => self.apply_private(recipients, payload),
            InboxEvent::Page(client, room, before, more, messages) => {
                let page = Page { room, before, messages: with_ids(messages), more };
                self.events.push_back(RoomEvent::History { client: token(client), page });
            }
            InboxEvent::Typing(name, instance, client, username) => {
                let client = (instance == self.inbox.instance).then_some(token(client));
                let room = self.rooms.synced(&name).filter(|room| room.is_visible()).map(|room| room.id);
                self.events.extend(room.map(|room| RoomEvent::Typing { room, client, username }));
            }
            InboxEvent::Rejected(client, reason, detail, nonce) => {
                let error = match &*reason {
                    "nobody" => BrokerError::NoSuchUser(detail),
                    "rooms" => BrokerError::TooManyRooms,
                    _ => BrokerError::NameInUse,
                };
                self.events.push_back(RoomEvent::Rejected { client: token(client), error, nonce });
            }
            InboxEvent::Synced(name, epoch, last_id, resumed, messages, members) => {
                let backlog = Backlog { epoch, last_id, resumed, messages: with_ids(messages) };
                let members = self.remote_members(members);
                self.apply_sync(&name, backlog, members);
            }
        }
    }

    fn apply_join(&mut self, client: Token, from: Option<Rc<str>>, to: &Rc<str>, backlog: Backlog) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        if record.room.is_some() && from.is_none() {
            return; // the reply to a request that was sent twice
        }
        let (is_visible, session) = (!record.is_hidden, record.session);
        record.room = Some(Rc::clone(to));
        let opened = self.rooms.enter(to, is_visible);
        let Some(room) = self.rooms.by_name.get_mut(to) else { return };
        (room.epoch, room.last_id) = (Rc::clone(&backlog.epoch), backlog.last_id);
        let id = room.id;
        self.events.extend(opened);
        let from_id = from.as_ref().and_then(|from| self.rooms.by_name.get(from)).map(|room| room.id);
        from.into_iter().for_each(|from| self.rooms.exit(&from, is_visible));
        if is_visible {
            self.events.push_back(RoomEvent::Joined { client, session, from: from_id, to: id, backlog });
        }
    }

    fn apply_message(&mut self, name: &str, client: Option<Token>, message: Message) {
        let sender = client.and_then(|client| self.clients.get_mut(&client));
        sender.into_iter().for_each(|record| record.username = Rc::clone(&message.username));
        let Some(room) = self.rooms.synced(name).filter(|room| message.id > room.last_id) else { return };
        debug_assert_eq!(message.id, room.last_id + 1, "ids are consecutive");
        room.last_id = message.id;
        if room.is_visible() {
            let published = RoomEvent::Published { room: room.id, client, message: Rc::new(message) };
            self.events.push_back(published);
        }
    }

    /// Replies to the operator, who is not a member of the room.
    fn apply_announcement(&mut self, name: &Rc<str>, client: Token, message: Message) {
        let message = Rc::new(message);
        if let Some(room) = self.rooms.by_name.get_mut(name) {
            room.last_id = room.last_id.max(message.id);
            if room.is_visible() {
                return self.events.push_back(RoomEvent::Published { room: room.id, client: Some(client), message });
            }
        }
        let (room, members) = (self.rooms.next_id(), Vec::new());
        self.events.extend([
            RoomEvent::Opened { room, name: Rc::clone(name), members },
            RoomEvent::Published { room, client: Some(client), message },
            RoomEvent::Closed { room },
        ]);
    }

    fn apply_private(&mut self, recipients: Vec<u64>, payload: PrivatePayload) {
        let is_member =
            |client: &Token| self.clients.get(client).is_some_and(|record| record.room.is_some() && !record.is_hidden);
        let recipients: Vec<Token> = recipients.into_iter().map(token).filter(is_member).collect();
        let PrivatePayload { from, to, text, time, nonce } = payload;
        let message = Rc::new(PrivateMessage { from, to, text, time, nonce });
        self.events.push_back(RoomEvent::Private { recipients, message });
    }

    /// Applies the state of a room whose events may be missing. The chat learns what the members missed.
    fn apply_sync(&mut self, name: &Rc<str>, backlog: Backlog, members: BTreeMap<MemberId, Rc<str>>) {
        let Some(room) = self.rooms.by_name.get_mut(name) else { return };
        (room.is_synced, room.epoch, room.last_id) = (true, Rc::clone(&backlog.epoch), backlog.last_id);
        let changes = room.replace_remote(members);
        if !room.is_visible() {
            return;
        }
        let id = room.id;
        if backlog.resumed {
            self.events.extend(changes);
            let published = |message| RoomEvent::Published { room: id, client: None, message };
            self.events.extend(backlog.messages.into_iter().map(published));
        } else {
            let members = room.remote_members();
            self.events.push_back(RoomEvent::Resynchronized { room: id, members, backlog });
        }
    }

    fn remote_members(&self, members: Vec<(u32, u64, Rc<str>)>) -> BTreeMap<MemberId, Rc<str>> {
        let remote = members.into_iter().filter(|(instance, ..)| *instance != self.inbox.instance);
        remote.map(|(instance, connection, username)| (MemberId::Remote { instance, connection }, username)).collect()
    }

    /// Removes a client of this instance that Redis has removed.
    fn remove_local(&mut self, client: Token) {
        let Some(record) = self.clients.get(&client) else { return };
        let (room, is_visible) = (record.room.clone(), !record.is_hidden);
        self.forget(client);
        let Some(name) = room else { return };
        let id = self.rooms.by_name.get(&name).map(|room| room.id);
        self.rooms.exit(&name, is_visible);
        if let Some(room) = id.filter(|_| is_visible) {
            self.events.push_back(RoomEvent::Left { room, member: MemberId::Local(client) });
        }
    }

    // ---- Limits ----

    fn may_open(&self, room: &Rc<str>, user: &User) -> bool {
        let is_open = || self.opened.contains_key(room);
        let by_user = || self.opened.values().filter(|(opener, _)| opener == user).count();
        **room == *self.settings.limits.default_room
            || is_open()
            || (self.opened.len() < self.settings.limits.rooms && by_user() < self.settings.limits.rooms_per_user)
    }

    fn count_in(&mut self, room: &Rc<str>, user: &User) {
        self.opened.entry(Rc::clone(room)).or_insert_with(|| (user.clone(), 0)).1 += 1;
    }

    fn count_out(&mut self, room: &Rc<str>) {
        if let Some((_, count)) = self.opened.get_mut(room) {
            *count -= 1;
            if *count == 0 {
                self.opened.remove(room);
            }
        }
    }

    fn set_target(&mut self, client: Token, room: &Rc<str>) {
        let Some(record) = self.clients.get_mut(&client) else { return };
        let (before, user) = (std::mem::replace(&mut record.target, Rc::clone(room)), record.join.user.clone());
        self.count_in(room, &user);
        self.count_out(&before);
    }

    /// Returns whether the chat knew the client.
    fn forget(&mut self, client: Token) -> bool {
        let Some(record) = self.clients.remove(&client) else { return false };
        self.count_out(&record.target);
        let client_id = record.join.client_id.filter(|id| self.client_ids.get(id) == Some(&client));
        client_id.and_then(|id| self.client_ids.remove(&id));
        !record.is_hidden
    }
}

impl Broker for RedisBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        if !self.is_available() {
            return Err(BrokerError::Unavailable);
        }
        let older = join.client_id.as_ref().and_then(|id| self.client_ids.get(id));
        if let Some(older) = older.and_then(|older| self.clients.get(older))
            && (older.join.credential != join.credential || (join.is_bound && older.username != join.username))
        {
            return Err(BrokerError::ClientIdInUse);
        }
        self.may_open(&join.room, &join.user).then_some(()).ok_or(BrokerError::TooManyRooms)
    }

    fn submit(&mut self, client: Token, request: super::Request, now: Duration) {
        use super::Request;
        self.now = now;
        match request {
            Request::Join(join) => self.join(client, join),
            Request::Announce { room, message } => self.announce(client, &room, message),
            _ if self.clients.get(&client).is_none_or(|record| record.is_leaving || record.is_hidden) => {}
            Request::Leave => {
                self.clients.get_mut(&client).into_iter().for_each(|record| record.is_leaving = true);
                self.push(client, Kind::Internal, "leave", Vec::new());
            }
            Request::Switch { room } => self.switch(client, room),
            Request::Publish(message) => self.publish(client, message),
            Request::Private(message) => self.send_private(client, &message),
            Request::History { before, limit } => {
                self.push(client, Kind::Query, "page", vec![before.to_string(), limit.to_string()]);
            }
            Request::Typing { username } => {
                if self.is_available() {
                    let arguments = self.claim_arguments(&username).to_vec();
                    self.push(client, Kind::Typing, "typing", arguments);
                }
            }
        }
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        while self.events.is_empty()
            && let Some(event) = self.link.next_event()
        {
            self.apply_link_event(event);
        }
        self.events.pop_front()
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
        if matches!(self.stage, Stage::Registered) && !self.beats.is_calling && now >= self.beats.next_at {
            self.requests.push(Request::new(Token(0), Kind::Internal, "probe", Vec::new(), now));
        }
        self.flush();
        self.log_availability();
    }

    fn next_turn_at(&self) -> Option<Duration> {
        let beat = match self.stage {
            Stage::Connected { open_at } => open_at,
            Stage::Registered if !self.beats.is_calling => Some(self.beats.next_at),
            _ => None,
        };
        let late = self.beats.calls.front().map(|(_, at)| *at + MAX_WAIT).filter(|at| *at > self.now);
        [beat, late, self.requests.next_expiry(self.settings.timeout)].into_iter().flatten().min()
    }

    fn is_available(&self) -> bool {
        let is_late = self.beats.calls.front().is_some_and(|(_, at)| self.now >= *at + MAX_WAIT);
        matches!(self.stage, Stage::Registered) && !is_late && self.beats.rejection.is_none()
    }
}

impl Drop for RedisBroker {
    /// Removes this instance from Redis, so that the others need not wait until it counts as dead.
    fn drop(&mut self) {
        if self.is_available() && !self.beats.is_calling {
            self.requests.take();
            self.requests.push(Request::new(Token(0), Kind::Internal, "close", Vec::new(), self.now));
            self.flush();
        }
    }
}

fn token(client: u64) -> Token {
    Token(usize::try_from(client).unwrap_or(usize::MAX))
}

fn with_ids(messages: Vec<(u64, Payload)>) -> Vec<Rc<Message>> {
    messages.into_iter().map(|(id, payload)| Rc::new(payload.with_id(id))).collect()
}

/// A JSON text. The values have no maps with keys that are not strings, so serialization cannot fail.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn flag(is_set: bool) -> String {
    if is_set { "1" } else { "0" }.into()
}

fn format_session(session: Session) -> String {
    format!("{:032x}", u128::from_be_bytes(session.0))
}

fn format_credential(credential: Option<CredentialId>) -> String {
    credential.map(|id| id.to_string()).unwrap_or_default()
}

/// The key of a message's nonce in the hash of its room. No username contains a line feed.
fn nonce_key(message: &Message) -> String {
    message.nonce.as_ref().map(|nonce| format!("{}\n{nonce}", message.username)).unwrap_or_default()
}
