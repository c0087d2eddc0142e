//! A model of the chat that shares no code with the server. The model reads the chat's requests to the broker, the
//! broker's decisions, and the events that the chat receives. The model checks the decisions: ids, nonces, resumes,
//! pages, recipients. From the events, the model derives the exact frames that each client must receive.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use mio::Token;
use serde_json::to_string;
use wirechat::broker::{Backlog, BrokerError, MemberId, Message, Page, Request, Resume, RoomEvent, RoomId};

use crate::support::users::Dialect;

pub const ORDER: &str = "1: every message once, in one order, to every member";
pub const ACKNOWLEDGEMENT: &str = "2: an echo means that the room has the message, and a nonce is stored once";
pub const MEMBERS: &str = "3: members + joined - left is a state of the room";
pub const RESUME: &str = "4: a resume returns exactly what was missed, or `resumed` is false";
pub const FRAMES: &str = "5: well-formed frames, and at most one Close, which is the last";
pub const BOUNDS: &str = "6: buffers stay within their bounds, and nothing is left behind";
pub const LIVENESS: &str = "7: everything pending is delivered, and no turn is without progress";
pub const ISOLATION: &str = "8: a rude client changes nothing for the others";
pub const LOG: &str = "every line of the log is written, or counted as dropped";
pub const NO_PANIC: &str = "the server does not panic";
pub const DETERMINISM: &str = "two runs of one seed are the same";

#[derive(Debug, Clone)]
pub struct Violation {
    pub rule: &'static str,
    pub text: String,
}

/// The server options that affect the model.
#[derive(Debug, Clone)]
pub struct Rules {
    pub history: usize,
    pub history_ttl: Duration,
    pub max_outbox: usize,
    pub max_text: usize,
    pub max_message: usize,
    pub max_listed: usize,
    pub max_presence: usize,
    pub rate_limit: f64,
    pub unique_names: bool,
    /// The number of messages that the history file keeps per room; 0 means all. `None` without a history file.
    pub history_keep: Option<usize>,
    /// Whether the limits on rooms and on total history are so high that no run reaches them.
    pub has_high_limits: bool,
}

/// A text frame that a client must receive.
#[derive(Debug, Clone)]
pub struct Expected {
    pub text: Rc<str>,
    /// The nonce of the client's command that this event acknowledges or rejects.
    pub in_reply_to: Option<Rc<str>>,
    /// The id of a room message; `None` for other events.
    pub id: Option<u64>,
}

#[derive(Debug)]
pub struct Member {
    pub dialect: Dialect,
    pub expected: VecDeque<Expected>,
    /// The total size of the frames in `expected`, in bytes.
    pub expected_bytes: usize,
    /// Texts that the client has sent but the chat has not yet submitted to the broker.
    pub sent: VecDeque<Rc<str>>,
    /// Number of texts that the chat dropped instead of submitting. The client must receive an error for each of them.
    pub skipped: usize,
    pub is_polite: bool,
    pub has_joined: bool,
    username: Rc<str>,
}

/// A request to the broker, reduced to the fields that the model checks.
pub enum Submission {
    Join { username: Rc<str>, room: Rc<str>, client_id: Option<Rc<str>>, resume: Option<Resume>, may_replace: bool },
    Leave,
    Switch(Rc<str>),
    Publish { username: Rc<str>, text: Box<str>, nonce: Option<Rc<str>> },
    Private { from: Rc<str>, to: Rc<str>, text: Box<str> },
    History { before: u64, limit: usize },
    Typing { username: Rc<str> },
}

/// The state that the broker must be in, according to the events that it has returned so far.
#[derive(Default)]
struct BrokerState {
    rooms: HashMap<RoomId, BrokerRoom>,
    members: BTreeMap<Token, BrokerMember>,
    /// All messages of each history. With a history file, each room has one history, and the key is the room name.
    /// Otherwise, a room can start a new history with a new epoch, and the key is the epoch.
    logs: HashMap<Rc<str>, Vec<Rc<Message>>>,
    /// The epoch of every server run that has used the history file, oldest first.
    runs: Vec<Rc<str>>,
    /// For each message in `logs`, the index in `runs` of the server run that stored the message.
    stored_in_run: HashMap<Rc<str>, Vec<usize>>,
    /// Messages submitted to the broker since the server started. Kept only if there is a history file to check.
    pending: Vec<PendingMessage>,
    /// For each room that has become empty, by name: the epoch of its history, and the time when it last became empty.
    emptied_rooms: HashMap<Rc<str>, (Rc<str>, Duration)>,
    now: Duration,
}

type PendingMessage = (Rc<str>, Box<str>, Option<Rc<str>>);

struct BrokerRoom {
    name: Rc<str>,
    epoch: Option<Rc<str>>,
    members: usize,
}

struct BrokerMember {
    room: RoomId,
    username: Rc<str>,
    client_id: Option<Rc<str>>,
}

/// A room with its members, derived from the events that the chat has received.
struct Room {
    name: Rc<str>,
    members: BTreeMap<Token, Rc<str>>,
}

pub struct Model {
    rules: Rules,
    broker: BrokerState,
    rooms: HashMap<RoomId, Room>,
    pub members: HashMap<Token, Member>,
    pub violation: Option<Violation>,
    pub counters: BTreeMap<&'static str, u64>,
    pub leave_count: usize,
    largest_frame: usize,
}

fn key(name: &str) -> String {
    name.to_lowercase()
}

fn is_default(name: &str) -> bool {
    key(name) == "anonymous"
}

/// The size in bytes of a server frame with the payload `text`.
fn frame_len(text: &str) -> usize {
    text.len()
        + if text.len() < 126 {
            2
        } else if text.len() < 65536 {
            4
        } else {
            10
        }
}

fn quoted(text: &str) -> String {
    to_string(text).unwrap_or_default()
}

fn quoted_list(names: &[Rc<str>]) -> String {
    format!("[{}]", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(","))
}

fn message_fields(message: &Message) -> String {
    let Message { username, text, id, time, nonce } = message;
    let nonce = nonce.as_ref().map(|nonce| format!(r#","nonce":{}"#, quoted(nonce))).unwrap_or_default();
    format!(r#"{{"username":{},"text":{},"id":{id},"time":"{time}"{nonce}}}"#, quoted(username), quoted(text))
}

fn history(messages: &[Rc<Message>]) -> String {
    format!("[{}]", messages.iter().map(|message| message_fields(message)).collect::<Vec<_>>().join(","))
}

fn render_message(dialect: Dialect, message: &Message) -> String {
    let (username, text) = (quoted(&message.username), quoted(&message.text));
    match dialect {
        Dialect::Events => format!(r#"{{"event":"message","data":{}}}"#, message_fields(message)),
        Dialect::Rooms => format!(r#"{{"type":"message","username":{username},"text":{text}}}"#),
        Dialect::Presence => {
            let time = &message.time;
            format!(r#"{{"type":"chat_message","username":{username},"text":{text},"timestamp":"{time}"}}"#)
        }
    }
}

impl Rules {
    /// The number of messages that the broker keeps per room.
    fn keep_limit(&self) -> usize {
        match self.history_keep {
            None => self.history,
            Some(0) => usize::MAX,
            Some(keep) => keep,
        }
    }
}

impl Model {
    pub fn new(rules: Rules) -> Model {
        Model {
            rules,
            broker: BrokerState::default(),
            rooms: HashMap::new(),
            members: HashMap::new(),
            violation: None,
            counters: BTreeMap::new(),
            leave_count: 0,
            largest_frame: 0,
        }
    }

    pub fn fail(&mut self, rule: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.violation.get_or_insert(Violation { rule, text });
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    fn require(&mut self, rule: &'static str, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.fail(rule, text());
        }
    }

    // ------------------------------------------------------------------------------------------ requests from the chat

    /// Checks a request that the chat submits to the broker. A message's text must be one of the client's `sent` texts.
    /// If that text is not the first, the chat has dropped the texts before it, so they count as `skipped`.
    pub fn observe_request(&mut self, client: Token, request: &Request) {
        let (text, username) = match request {
            Request::Publish(message) => {
                if self.rules.history_keep.is_some() {
                    let Message { username, text, nonce, .. } = message;
                    self.broker.pending.push((Rc::clone(username), text.clone(), nonce.clone()));
                }
                (&message.text, &message.username)
            }
            Request::Private(message) => (&message.text, &message.from),
            Request::Join(join) => {
                if let Some(member) = self.members.get_mut(&client) {
                    member.username = Rc::clone(&join.username);
                }
                return;
            }
            Request::Switch { .. } => {
                if self.members.get(&client).is_some_and(|member| !member.has_joined) {
                    self.count("a switch during a pending join");
                }
                return;
            }
            _ => return,
        };
        let Some(member) = self.members.get_mut(&client).filter(|member| member.is_polite) else { return };
        let at = member.sent.iter().position(|sent| **sent == **text);
        if let Some(at) = at {
            member.sent.drain(..=at);
            member.skipped += at;
        } else {
            self.fail(ORDER, format!("{username} did not send {text:?}, or not in this order, or only once"));
        }
    }

    // ----------------------------------------------------------------------------------------- decisions of the broker

    pub fn simplify(request: &Request) -> Submission {
        match request {
            Request::Join(join) => Submission::Join {
                username: Rc::clone(&join.username),
                room: Rc::clone(&join.room),
                client_id: join.client_id.clone(),
                resume: join.resume.clone(),
                may_replace: join.is_bound || join.session.is_some() || join.client_id.is_some(),
            },
            Request::Leave => Submission::Leave,
            Request::Switch { room, .. } => Submission::Switch(Rc::clone(room)),
            Request::Publish(message) => Submission::Publish {
                username: Rc::clone(&message.username),
                text: message.text.clone(),
                nonce: message.nonce.clone(),
            },
            Request::Private(message) => Submission::Private {
                from: Rc::clone(&message.from),
                to: Rc::clone(&message.to),
                text: message.text.clone(),
            },
            Request::History { before, limit } => Submission::History { before: *before, limit: *limit },
            Request::Typing { username } => Submission::Typing { username: Rc::clone(username) },
            Request::Announce { .. } => unreachable!("the simulation has no operator"),
        }
    }

    /// Passes the request to the broker with `execute`. Checks and returns the resulting events.
    pub fn execute_and_check(
        this: &std::cell::RefCell<Model>,
        client: Token,
        request: Request,
        now: Duration,
        execute: impl FnOnce(Request) -> Vec<RoomEvent>,
    ) -> Vec<RoomEvent> {
        let submitted = Model::simplify(&request);
        let events = execute(request);
        let model = &mut *this.borrow_mut();
        model.broker.now = now;
        model.check_group(client, &submitted, &events);
        events
    }

    /// Checks all events that one request caused.
    pub fn check_group(&mut self, client: Token, submitted: &Submission, events: &[RoomEvent]) {
        self.check_request(client, submitted, events);
        for event in events {
            self.check_decision(client, submitted, event);
        }
    }

    // --------------------------------------------------------------------------------------------------- history files

    /// Records the start of a server run that uses a history file. Until the server crashes, every room has the epoch
    /// `name`.
    pub fn begin_run(&mut self, name: &str) {
        self.broker.runs.push(name.into());
    }

    /// Updates the model after a server crash, and checks the history file. The file may contain messages that no
    /// client has received, because the server may crash after it stores a message and before it sends the message.
    pub fn crash(&mut self, file: BTreeMap<&'static str, (u64, Vec<Message>)>) {
        self.check_file(&file);
        for (name, (last_id, messages)) in file {
            let name: Rc<str> = name.into();
            let run = self.broker.runs.len() - 1;
            let log = self.broker.logs.entry(Rc::clone(&name)).or_default();
            let first = last_id as usize - messages.len();
            // Add placeholders for messages that were stored and deleted before any client received them.
            for id in log.len() + 1..=first {
                let (username, text, time) = ("".into(), "".into(), "".into());
                log.push(Rc::new(Message { username, text, id: id as u64, time, nonce: None }));
                self.broker.stored_in_run.entry(Rc::clone(&name)).or_default().push(run);
            }
            for message in messages.into_iter().skip(log.len().saturating_sub(first)) {
                let is_pending = self.broker.pending.iter().any(|(username, text, nonce)| {
                    (username, text, nonce) == (&message.username, &message.text, &message.nonce)
                });
                if !is_pending {
                    let text = format!("the file has {message:?}, which nobody has sent");
                    self.violation.get_or_insert(Violation { rule: ACKNOWLEDGEMENT, text });
                }
                log.push(Rc::new(message));
                self.broker.stored_in_run.entry(Rc::clone(&name)).or_default().push(run);
                *self.counters.entry("a message that was stored and not acknowledged").or_default() += 1;
            }
        }
        (self.broker.rooms, self.broker.members) = (HashMap::new(), BTreeMap::new());
        self.broker.pending.clear();
        (self.rooms, self.members) = (HashMap::new(), HashMap::new());
    }

    /// Checks that the history file contains the newest messages of each room, with the ids that the clients have
    /// received.
    pub fn check_file(&mut self, file: &BTreeMap<&'static str, (u64, Vec<Message>)>) {
        for (name, (last_id, messages)) in file {
            let empty = Vec::new();
            let log = self.broker.logs.get(*name).unwrap_or(&empty);
            let first = *last_id as usize - messages.len();
            let keep = self.rules.history_keep.filter(|keep| *keep > 0).unwrap_or(usize::MAX);
            let is_complete = messages.len() == (*last_id as usize).min(keep);
            let is_same =
                |(at, message): (usize, &Message)| log.get(first + at).is_none_or(|known| **known == *message);
            let holds = *last_id as usize >= log.len() && is_complete && messages.iter().enumerate().all(is_same);
            self.require(ACKNOWLEDGEMENT, holds, || {
                format!("the file has messages {} to {last_id} of {name}, or others than those received", first + 1)
            });
        }
    }

    fn check_durable_backlog(&mut self, name: &Rc<str>, resume: Option<&Resume>, backlog: &Backlog) {
        let Backlog { epoch, last_id, resumed, messages } = backlog;
        let rules = self.rules.clone();
        let is_current = self.broker.runs.last() == Some(epoch);
        self.require(RESUME, is_current, || format!("the epoch of {name} is {epoch}, which is not the run"));
        let log = self.broker.logs.entry(Rc::clone(name)).or_default().clone();
        self.require(RESUME, *last_id == log.len() as u64, || {
            format!("last_id is {last_id}, after {} messages", log.len())
        });
        let len =
            |messages: &[Rc<Message>]| messages.iter().map(|message| message_fields(message).len() + 60).sum::<usize>();
        let missed = resume.filter(|resume| resume.since <= *last_id).and_then(|resume| {
            let run = self.broker.runs.iter().position(|run| **run == *resume.epoch)?;
            let since = resume.since as usize;
            let stored_in_run = since.checked_sub(1).map(|at| self.broker.stored_in_run[name][at]);
            (stored_in_run.is_none_or(|stored_in_run| stored_in_run <= run) && log.len() - since <= rules.keep_limit())
                .then_some(since)
        });
        if *resumed {
            let exact = missed.is_some_and(|since| log[since..] == messages[..]);
            self.require(RESUME, exact, || format!("{resume:?} of {} messages gets {}", log.len(), messages.len()));
            self.count("a resume");
            if !messages.is_empty() {
                self.count("a resume with missed messages");
            }
            if resume.is_some_and(|resume| *resume.epoch != **epoch) {
                self.count("a resume across a restart");
            }
        } else {
            let kept = rules.history.min(log.len()).min(rules.keep_limit());
            let is_suffix = log.ends_with(messages) && messages.len() <= kept;
            let fits = |count: usize| len(&log[log.len() - count..]) <= rules.max_outbox;
            let is_short = rules.has_high_limits && messages.len() < kept && fits(kept);
            self.require(RESUME, is_suffix && !is_short, || {
                format!("a new client gets {} of {} messages", messages.len(), log.len())
            });
            let could = missed.is_some_and(|since| fits(log.len() - since));
            self.require(RESUME, !could, || {
                format!("{resume:?} of {} messages is possible, but did not succeed", log.len())
            });
            if resume.is_some() {
                self.count("a resume that failed");
            }
        }
    }

    /// Checks that `events` fit the kind of request that caused them. Looks only at the number of events and at the
    /// last one; `check_decision` checks each event in detail.
    fn check_request(&mut self, client: Token, submitted: &Submission, events: &[RoomEvent]) {
        let member = self.broker.members.get(&client);
        let last = events.last();
        let (rule, holds) = match (submitted, last) {
            (Submission::Join { .. }, Some(RoomEvent::Joined { client: joined, from: None, .. })) => {
                (MEMBERS, *joined == client)
            }
            (Submission::Join { .. }, Some(RoomEvent::JoinRejected { client: rejected, .. })) => {
                (MEMBERS, *rejected == client && events.len() == 1)
            }
            (Submission::Join { .. }, _) => (MEMBERS, false),
            (_, None) if member.is_none() => (MEMBERS, true),
            (_, Some(_)) if member.is_none() => (MEMBERS, false),
            (Submission::Leave, Some(RoomEvent::Left { member, .. })) => {
                (MEMBERS, *member == MemberId::Local(client) && events.len() == 1)
            }
            (Submission::Switch(name), None) => {
                (MEMBERS, member.is_some_and(|member| self.broker.rooms[&member.room].name == *name))
            }
            (Submission::Switch(_), Some(RoomEvent::Joined { from, client: joined, .. })) => {
                (MEMBERS, *joined == client && *from == member.map(|member| member.room))
            }
            (Submission::Switch(_), Some(RoomEvent::Rejected { .. })) => (MEMBERS, events.len() == 1),
            (Submission::Publish { .. }, Some(RoomEvent::Published { client: by, .. })) => {
                (ORDER, *by == Some(client) && events.len() == 1)
            }
            (
                Submission::Publish { .. },
                Some(RoomEvent::Duplicate { client: by, .. } | RoomEvent::Rejected { client: by, .. }),
            ) => (ACKNOWLEDGEMENT, *by == client && events.len() == 1),
            (Submission::Private { .. }, Some(RoomEvent::Private { .. } | RoomEvent::Rejected { .. })) => {
                (ORDER, events.len() == 1)
            }
            (Submission::History { .. }, Some(RoomEvent::History { client: by, .. })) => {
                (ORDER, *by == client && events.len() == 1)
            }
            (Submission::Typing { .. }, Some(RoomEvent::Typing { .. } | RoomEvent::Rejected { .. })) => {
                (ORDER, events.len() == 1)
            }
            _ => (ORDER, false),
        };
        self.require(rule, holds, || format!("the broker's events for a request of {client:?} are {events:?}"));
    }

    fn holds_name(&self, name: &str, except: Token) -> bool {
        let mut members = self.broker.members.iter();
        members.any(|(token, member)| *token != except && key(&member.username) == key(name))
    }

    fn check_decision(&mut self, client: Token, submitted: &Submission, event: &RoomEvent) {
        match (event, submitted) {
            (RoomEvent::Opened { room, name, members }, Submission::Join { .. } | Submission::Switch(_)) => {
                let room_state = BrokerRoom { name: Rc::clone(name), epoch: None, members: 0 };
                let before = self.broker.rooms.insert(*room, room_state);
                let is_new = before.is_none() && members.is_empty();
                let names = self.broker.rooms.values().filter(|room_state| room_state.name == *name).count();
                self.require(MEMBERS, is_new && names == 1, || format!("{name} opens twice"));
            }
            (RoomEvent::Left { room, member: MemberId::Local(token) }, _) => {
                let is_replaced = match submitted {
                    Submission::Join { username, client_id, may_replace, .. } => {
                        self.broker.members.get(token).is_some_and(|member| {
                            *may_replace
                                && (key(&member.username) == key(username)
                                    || client_id.is_some() && member.client_id == *client_id)
                        })
                    }
                    _ => *token == client,
                };
                self.require(MEMBERS, is_replaced, || format!("{token:?} leaves without a reason"));
                if *token != client {
                    self.count("a takeover");
                }
                let was_there = self.broker.members.remove(token).is_some_and(|member| member.room == *room);
                self.require(MEMBERS, was_there, || format!("{token:?} leaves a room in which it is not"));
                self.vacate(*room);
            }
            (RoomEvent::Joined { client: token, from, to, backlog, .. }, _) => {
                let (username, client_id, name, resume) = match submitted {
                    Submission::Join { username, client_id, room, resume, .. } => {
                        (Rc::clone(username), client_id.clone(), room, resume.as_ref())
                    }
                    Submission::Switch(room) => {
                        let Some(member) = self.broker.members.remove(token) else {
                            return self.fail(MEMBERS, "a switch of nobody");
                        };
                        (member.username, member.client_id, room, None)
                    }
                    _ => return self.fail(MEMBERS, "a join without a request"),
                };
                if self.rules.unique_names && !is_default(&username) && self.holds_name(&username, *token) {
                    self.fail(MEMBERS, format!("two members are {username}"));
                }
                let Some(room_state) = self.broker.rooms.get_mut(to) else {
                    return self.fail(MEMBERS, "a join to a room that is not open");
                };
                room_state.members += 1;
                let is_named = room_state.name == *name;
                self.require(MEMBERS, is_named, || format!("a join to another room than {name}"));
                self.check_backlog(*to, resume, backlog);
                self.broker.members.insert(*token, BrokerMember { room: *to, username, client_id });
                from.iter().for_each(|room| self.vacate(*room));
            }
            (RoomEvent::JoinRejected { error, .. }, Submission::Join { username, .. }) => {
                let is_right = match error {
                    BrokerError::NameInUse => self.rules.unique_names && self.holds_name(username, client),
                    BrokerError::TooManyRooms => !self.rules.has_high_limits,
                    _ => false,
                };
                self.require(MEMBERS, is_right, || format!("the join of {username} is rejected: {error:?}"));
                self.count(if *error == BrokerError::NameInUse { "a name in use" } else { "too many rooms" });
            }
            (RoomEvent::Published { room, message, .. }, Submission::Publish { username, text, nonce }) => {
                let sent = (username, text, nonce);
                let is_sent = (&message.username, &message.text, &message.nonce) == sent;
                self.require(ORDER, is_sent, || format!("{message:?} is not what {username} sent"));
                let member = self.broker.members.get_mut(&client);
                let is_there = member.is_some_and(|member| {
                    member.username = Rc::clone(username);
                    member.room == *room
                });
                self.require(ORDER, is_there, || "a message in a room of others".to_owned());
                let Some(epoch) = self.broker.rooms.get(room).and_then(|room_state| room_state.epoch.clone()) else {
                    return self.fail(ORDER, "a message in a closed room");
                };
                let (kept, has_high_limits) =
                    (self.rules.keep_limit(), self.rules.has_high_limits || self.rules.history_keep.is_some());
                let stored_in_run = self.broker.stored_in_run.entry(Rc::clone(&epoch)).or_default();
                stored_in_run.push(self.broker.runs.len().saturating_sub(1));
                let log = self.broker.logs.entry(epoch).or_default();
                let next = log.len() as u64 + 1;
                let mut recent = log.iter().rev().take(kept);
                let is_again = has_high_limits
                    && nonce.is_some()
                    && recent.any(|old| old.nonce == *nonce && old.username == *username);
                log.push(Rc::clone(message));
                self.require(ORDER, message.id == next, || format!("the id {} follows {}", message.id, next - 1));
                self.require(ACKNOWLEDGEMENT, !is_again, || format!("{nonce:?} is stored twice"));
            }
            (RoomEvent::Duplicate { message, .. }, Submission::Publish { username, nonce, .. }) => {
                let log = self.log_of(client);
                let stored = log.and_then(|log| log.get(message.id as usize - 1));
                let is_stored = stored == Some(message)
                    && message.nonce == *nonce
                    && nonce.is_some()
                    && message.username == *username;
                self.require(ACKNOWLEDGEMENT, is_stored, || format!("{nonce:?} was never stored as {message:?}"));
                self.count("a duplicate nonce");
            }
            (RoomEvent::Private { recipients, message }, Submission::Private { from, to, text }) => {
                let is_sent = message.from == *from && message.to == *to && message.text == *text;
                let holders = self.broker.members.iter().filter(|(_, member)| key(&member.username) == key(to));
                let mut expected: Vec<Token> =
                    holders.map(|(token, _)| *token).filter(|token| *token != client).collect();
                expected.push(client);
                let mut sorted = recipients.clone();
                sorted.sort();
                expected.sort();
                let is_right = is_sent && sorted == expected && recipients.last() == Some(&client);
                self.require(ORDER, is_right, || format!("{message:?} goes to {recipients:?}, not to {expected:?}"));
                if let Some(member) = self.broker.members.get_mut(&client) {
                    member.username = Rc::clone(from);
                }
                self.count("a private message");
            }
            (RoomEvent::History { page, .. }, Submission::History { before, limit }) => {
                self.check_page(client, *before, *limit, page)
            }
            (RoomEvent::Rejected { error, .. }, _) => {
                let username = match submitted {
                    Submission::Publish { username, .. } | Submission::Private { from: username, .. } => Some(username),
                    _ => None,
                };
                let is_right = match error {
                    BrokerError::NameInUse => {
                        self.rules.unique_names && username.is_none_or(|name| self.holds_name(name, client))
                    }
                    BrokerError::TooManyRooms => {
                        self.count("too many rooms");
                        !self.rules.has_high_limits
                    }
                    BrokerError::NoSuchUser(name) => {
                        !self.broker.members.values().any(|member| key(&member.username) == key(name))
                    }
                    BrokerError::Unavailable => false,
                    BrokerError::NotStored => {
                        // A message with a new username renames the client as soon as the broker queues the message,
                        // even if the disk then fails to store the message.
                        let member = self.broker.members.get_mut(&client).zip(username);
                        member.into_iter().for_each(|(member, name)| member.username = Rc::clone(name));
                        self.rules.history_keep.is_some()
                    }
                    BrokerError::ClientIdInUse => false,
                };
                self.require(ACKNOWLEDGEMENT, is_right, || format!("{client:?} is rejected: {error:?}"));
            }
            (RoomEvent::Typing { room, client: by, username }, Submission::Typing { username: sent }) => {
                let is_there = self.broker.members.get(&client).is_some_and(|member| member.room == *room);
                let is_right = is_there && *by == Some(client) && username == sent;
                self.require(ORDER, is_right, || format!("{client:?} types as {sent}, but the event is {event:?}"));
            }
            _ => self.fail(ORDER, format!("{event:?} does not belong to the request")),
        }
    }

    fn vacate(&mut self, room: RoomId) {
        let now = self.broker.now;
        let Some(room_state) = self.broker.rooms.get_mut(&room) else {
            return self.fail(MEMBERS, "a closed room empties");
        };
        room_state.members -= 1;
        if room_state.members == 0
            && let Some(BrokerRoom { name, epoch: Some(epoch), .. }) = self.broker.rooms.remove(&room)
        {
            self.broker.emptied_rooms.insert(name, (epoch, now));
        }
    }

    fn log_of(&self, client: Token) -> Option<&Vec<Rc<Message>>> {
        let room = self.broker.members.get(&client)?.room;
        self.broker.logs.get(self.broker.rooms.get(&room)?.epoch.as_ref()?)
    }

    fn check_backlog(&mut self, room: RoomId, resume: Option<&Resume>, backlog: &Backlog) {
        let Backlog { epoch, last_id, resumed, messages } = backlog;
        let (rules, now) = (self.rules.clone(), self.broker.now);
        let Some(room_state) = self.broker.rooms.get_mut(&room) else { return };
        let name = Rc::clone(&room_state.name);
        if rules.history_keep.is_some() {
            // With a history file, a room keeps its log when a restart gives it a new epoch, so the model identifies
            // the log by the room's name instead of the epoch.
            room_state.epoch = Some(Rc::clone(&name));
            return self.check_durable_backlog(&name, resume, backlog);
        }
        let before = room_state.epoch.replace(Rc::clone(epoch));
        let is_known = self.broker.logs.contains_key(epoch);
        let is_right = match (before, self.broker.emptied_rooms.get(&name)) {
            (Some(before), _) => before == *epoch,
            (None, Some((kept, at))) if *kept == *epoch => now - *at <= rules.history_ttl,
            (None, Some((_, at))) => !is_known && (!rules.has_high_limits || now - *at > rules.history_ttl),
            (None, None) => !is_known,
        };
        self.require(RESUME, is_right, || format!("the epoch of {name} is {epoch}"));
        let log = self.broker.logs.entry(Rc::clone(epoch)).or_default().clone();
        self.require(RESUME, *last_id == log.len() as u64, || {
            format!("last_id is {last_id}, after {} messages", log.len())
        });
        let kept = rules.history.min(log.len());
        // Returns an upper bound on the number of bytes that `messages` take up in a `welcome` event.
        let len =
            |messages: &[Rc<Message>]| messages.iter().map(|message| message_fields(message).len() + 60).sum::<usize>();
        let missed = resume
            .filter(|resume| *resume.epoch == **epoch && resume.since <= *last_id)
            .map(|resume| resume.since as usize);
        let is_kept = missed.is_some_and(|since| log.len() - since <= kept);
        if *resumed {
            let exact = missed.is_some_and(|since| log[since..] == messages[..]);
            self.require(RESUME, exact && is_kept, || {
                format!("{resume:?} of {} messages returns {}", log.len(), messages.len())
            });
            self.count("a resume");
            if !messages.is_empty() {
                self.count("a resume with missed messages");
            }
        } else {
            let is_suffix = log.ends_with(messages) && messages.len() <= kept;
            let fits = |count: usize| rules.has_high_limits && len(&log[log.len() - count..]) <= rules.max_outbox;
            let is_short = messages.len() < kept && fits(kept);
            self.require(RESUME, is_suffix && !is_short, || {
                format!("a new client gets {} of {} messages", messages.len(), log.len())
            });
            let could = is_kept && missed.is_some_and(|since| fits(log.len() - since));
            self.require(RESUME, !could, || {
                format!("{resume:?} of {} messages is possible, but did not succeed", log.len())
            });
            if resume.is_some() {
                self.count("a resume that failed");
            }
        }
    }

    fn check_page(&mut self, client: Token, before: u64, limit: usize, page: &Page) {
        let rules = self.rules.clone();
        let Some(log) = self.log_of(client).cloned() else { return self.fail(ORDER, "a page for nobody") };
        let end = log.len().min(before.saturating_sub(1) as usize);
        let oldest = log.len().saturating_sub(rules.keep_limit());
        let is_part = log[..end].ends_with(&page.messages) && page.messages.len() <= limit;
        let start = end - page.messages.len().min(end);
        let len = log[..end].iter().rev().take(limit).map(|message| message_fields(message).len() + 60).sum::<usize>();
        let is_full = page.messages.len() == limit.min(end.saturating_sub(oldest));
        let is_right = !rules.has_high_limits && rules.history_keep.is_none()
            || ((is_full || len > rules.max_outbox / 2) && page.more == (start > oldest && end > oldest));
        let is_empty_right = page.messages.is_empty() && end <= oldest && (!page.more || !rules.has_high_limits);
        let is_named =
            self.broker.members.get(&client).is_some_and(|member| self.broker.rooms[&member.room].name == page.room);
        let is_named = is_named && page.before == before;
        self.require(ORDER, is_named && (is_part && is_right || is_empty_right), || {
            format!(
                "the page before {before}, limit {limit}, of {} messages has {} from {}, more: {}",
                log.len(),
                page.messages.len(),
                start + 1,
                page.more
            )
        });
        self.count("a page of the history");
    }

    // ----------------------------------------------------------------------------------- events that the chat receives

    fn expect(&mut self, client: Token, text: String, in_reply_to: Option<Rc<str>>, id: Option<u64>) {
        self.expect_shared(client, text.into(), in_reply_to, id);
    }

    fn expect_shared(&mut self, client: Token, text: Rc<str>, in_reply_to: Option<Rc<str>>, id: Option<u64>) {
        self.largest_frame = self.largest_frame.max(frame_len(&text));
        if let Some(member) = self.members.get_mut(&client) {
            member.expected_bytes += frame_len(&text);
            member.expected.push_back(Expected { text, in_reply_to, id });
        }
    }

    fn dialect(&self, client: Token) -> Option<Dialect> {
        self.members.get(&client).map(|member| member.dialect)
    }

    /// Adds an event to the expected frames of every member of the room but `except`. `render` returns the event in a
    /// dialect (JSON format), or `None` if the dialect has no such event.
    fn broadcast(
        &mut self,
        room: RoomId,
        except: Option<Token>,
        id: Option<u64>,
        in_reply_to: Option<(Token, Rc<str>)>,
        render: impl Fn(Dialect) -> Option<String>,
    ) {
        let Some(room_state) = self.rooms.get(&room) else { return self.fail(MEMBERS, "an event of a closed room") };
        let members: Vec<Token> = room_state.members.keys().copied().filter(|token| Some(*token) != except).collect();
        let mut texts: [Option<Rc<str>>; 3] = [None, None, None];
        for client in members {
            let Some(dialect) = self.dialect(client) else { continue };
            let slot = &mut texts[dialect as usize];
            if slot.is_none() {
                *slot = render(dialect).map(Rc::from);
            }
            let Some(text) = slot.clone() else { continue };
            let nonce = in_reply_to.as_ref().filter(|(token, _)| *token == client).map(|(_, nonce)| Rc::clone(nonce));
            self.expect_shared(client, text, nonce, id);
        }
    }

    /// Formats a `joined` or `left` event as JSON in the given dialect.
    fn render_membership_event(&self, room: RoomId, dialect: Dialect, username: &str, joined: bool) -> String {
        let verb = if joined { "joined" } else { "left" };
        match dialect {
            Dialect::Events => format!(r#"{{"event":"{verb}","data":{{"username":{}}}}}"#, quoted(username)),
            Dialect::Rooms => format!(r#"{{"type":"system","message":"A user {verb} the chat"}}"#),
            Dialect::Presence => {
                let names: Vec<Rc<str>> = self.rooms[&room].members.values().cloned().collect();
                let active = if names.len() > self.rules.max_presence {
                    format!(r#""active_users":[],"active_count":{}"#, names.len())
                } else {
                    format!(r#""active_users":{}"#, quoted_list(&names))
                };
                format!(r#"{{"type":"user_{verb}","username":{},{active}}}"#, quoted(username))
            }
        }
    }

    fn broadcast_membership_event(&mut self, room: RoomId, except: Option<Token>, username: &str, joined: bool) {
        let texts = [Dialect::Events, Dialect::Rooms, Dialect::Presence]
            .map(|dialect| self.render_membership_event(room, dialect, username, joined));
        self.broadcast(room, except, None, None, |dialect| Some(texts[dialect as usize].clone()));
    }

    fn remove_from(&mut self, room: RoomId, client: Token) {
        let Some(room_state) = self.rooms.get_mut(&room) else { return self.fail(MEMBERS, "a closed room is left") };
        let Some(username) = room_state.members.remove(&client) else {
            return self.fail(MEMBERS, format!("{client:?} leaves twice"));
        };
        self.leave_count += 1;
        if room_state.members.is_empty() {
            self.rooms.remove(&room);
        } else {
            self.broadcast_membership_event(room, None, &username, false);
        }
    }

    /// Works out which frames each client must receive after the broker has returned an event.
    pub fn observe_event(&mut self, event: &RoomEvent) {
        match event {
            RoomEvent::Closed { .. } => unreachable!("the simulation has no operator"),
            RoomEvent::Opened { room, name, .. } => {
                self.rooms.insert(*room, Room { name: Rc::clone(name), members: BTreeMap::new() });
            }
            RoomEvent::Joined { client, session, from, to, backlog } => {
                if let Some(from) = from {
                    self.remove_from(*from, *client);
                }
                let Some(member) = self.members.get_mut(client) else { return };
                let is_switch = std::mem::replace(&mut member.has_joined, true);
                let (username, dialect) = (Rc::clone(&member.username), member.dialect);
                let Some(room_state) = self.rooms.get_mut(to) else {
                    return self.fail(MEMBERS, "a join to a closed room");
                };
                let name = Rc::clone(&room_state.name);
                let names: Vec<Rc<str>> = room_state.members.values().take(self.rules.max_listed).cloned().collect();
                let count = room_state.members.len();
                room_state.members.insert(*client, Rc::clone(&username));
                let Backlog { epoch, last_id, resumed, messages } = backlog;
                let (room, members, past) = (quoted(&name), quoted_list(&names), history(messages));
                if is_switch {
                    let text = format!(
                        r#"{{"event":"switched","data":{{"room":{room},"members":{members},"member_count":{count},"epoch":"{epoch}","last_id":{last_id},"history":{past}}}}}"#
                    );
                    self.expect(*client, text, None, None);
                } else if dialect == Dialect::Events {
                    let Rules { max_text, max_message, rate_limit, .. } = self.rules;
                    let session: String = session.0.iter().map(|byte| format!("{byte:02x}")).collect();
                    let text = format!(
                        r#"{{"event":"welcome","data":{{"message":{},"members":{members},"room":{room},"username":{},"epoch":"{epoch}","last_id":{last_id},"resumed":{resumed},"history":{past},"session":"{session}","member_count":{count},"limits":{{"max_text":{max_text},"max_message":{max_message},"rate_limit":{rate_limit:?}}}}}}}"#,
                        quoted(&format!("Welcome to #{name}, {username}!")),
                        quoted(&username),
                    );
                    self.expect(*client, text, None, None);
                } else {
                    let text = self.render_membership_event(*to, dialect, &username, true);
                    self.expect(*client, text, None, None);
                    messages
                        .iter()
                        .for_each(|message| self.expect(*client, render_message(dialect, message), None, None));
                }
                self.broadcast_membership_event(*to, Some(*client), &username, true);
            }
            RoomEvent::Left { room, member: MemberId::Local(client) } => self.remove_from(*room, *client),
            RoomEvent::Published { room, client, message } => {
                let in_reply_to = client.zip(message.nonce.clone());
                self.broadcast(*room, None, Some(message.id), in_reply_to, |dialect| {
                    Some(render_message(dialect, message))
                });
            }
            RoomEvent::Duplicate { client, message } => {
                let Some(dialect) = self.dialect(*client) else { return };
                self.expect(*client, render_message(dialect, message), message.nonce.clone(), Some(message.id));
            }
            RoomEvent::Private { recipients, message } => {
                let (from, to, text) = (quoted(&message.from), quoted(&message.to), quoted(&message.text));
                let time = &message.time;
                for client in recipients {
                    let in_reply_to = message.nonce.clone().filter(|_| Some(client) == recipients.last());
                    let nonce = message
                        .nonce
                        .as_ref()
                        .map(|nonce| format!(r#","nonce":{}"#, quoted(nonce)))
                        .unwrap_or_default();
                    let Some(dialect) = self.dialect(*client) else { continue };
                    let text = match dialect {
                        Dialect::Events => format!(
                            r#"{{"event":"private","data":{{"from":{from},"to":{to},"text":{text},"time":"{time}"{nonce}}}}}"#
                        ),
                        Dialect::Rooms => format!(r#"{{"type":"private","from":{from},"to":{to},"text":{text}}}"#),
                        Dialect::Presence => format!(
                            r#"{{"type":"private_message","from":{from},"to":{to},"text":{text},"timestamp":"{time}"}}"#
                        ),
                    };
                    self.expect(*client, text, in_reply_to, None);
                }
            }
            RoomEvent::History { client, page } => {
                let Page { room, before, messages, more } = page;
                let text = format!(
                    r#"{{"event":"history","data":{{"room":{},"before":{before},"messages":{},"more":{more}}}}}"#,
                    quoted(room),
                    history(messages)
                );
                self.expect(*client, text, None, None);
            }
            RoomEvent::Typing { room, client, username } => {
                let username = quoted(username);
                self.broadcast(*room, *client, None, None, |dialect| match dialect {
                    Dialect::Events => Some(format!(r#"{{"event":"typing","data":{{"username":{username}}}}}"#)),
                    Dialect::Rooms => Some(format!(r#"{{"type":"typing","username":{username}}}"#)),
                    Dialect::Presence => None,
                });
            }
            RoomEvent::JoinRejected { .. } => {} // expect no event: the server closes the client's connection instead
            RoomEvent::Rejected { client, error, nonce } => {
                let message = match error {
                    BrokerError::NameInUse | BrokerError::ClientIdInUse => "username already in use".to_owned(),
                    BrokerError::TooManyRooms => "There are too many rooms".to_owned(),
                    BrokerError::NoSuchUser(name) => format!("No such user: {name}"),
                    BrokerError::Unavailable => unreachable!("only a broker on Redis is ever unavailable"),
                    BrokerError::NotStored => {
                        self.count("a message that is not stored");
                        "Message not stored".to_owned()
                    }
                };
                let (message, Some(dialect)) = (quoted(&message), self.dialect(*client)) else { return };
                let reply = nonce.as_ref().map(|nonce| format!(r#","nonce":{}"#, quoted(nonce))).unwrap_or_default();
                let text = match dialect {
                    Dialect::Events => format!(r#"{{"event":"error","data":{{"message":{message}{reply}}}}}"#),
                    Dialect::Rooms => format!(r#"{{"type":"error","message":{message}}}"#),
                    Dialect::Presence => format!(r#"{{"error":{message}}}"#),
                };
                self.expect(*client, text, nonce.clone(), None);
            }
            RoomEvent::StorageFailed { .. } => {} // no frame to expect: the server closes all connections
            RoomEvent::Resynchronized { .. } | RoomEvent::FateUnknown { .. } => {
                unreachable!("only a broker on Redis misses events or loses track of a message")
            }
            RoomEvent::RemoteJoined { .. } | RoomEvent::Left { .. } => {
                self.fail(MEMBERS, "a member on another instance")
            }
        }
    }

    // ---------------------------------------------------------------------------------------- what the clients receive

    pub fn add_member(&mut self, client: Token, dialect: Dialect, is_polite: bool, sent: VecDeque<Rc<str>>) {
        let member = Member {
            dialect,
            expected: VecDeque::new(),
            expected_bytes: 0,
            sent,
            skipped: 0,
            is_polite,
            has_joined: false,
            username: "".into(),
        };
        self.members.insert(client, member);
    }

    /// Removes and returns the next expected frame if its text equals `text`. Otherwise returns `None`, and the caller
    /// checks `text` as a reply to one of the client's commands.
    pub fn receive(&mut self, client: Token, text: &str) -> Option<Expected> {
        let member = self.members.get_mut(&client)?;
        let expected = member.expected.pop_front_if(|front| *front.text == *text)?;
        member.expected_bytes -= frame_len(&expected.text);
        Some(expected)
    }

    /// Checks that the frames that the server still has to send to a client fit in its outbox. Does not count the
    /// `in_flight` bytes, which are already in the socket.
    pub fn check_outbox_bound(&mut self, client: Token, in_flight: usize) {
        let Some(member) = self.members.get(&client) else { return };
        let unsent = member.expected_bytes.saturating_sub(in_flight);
        let bound = self.rules.max_outbox + 2 * self.largest_frame;
        self.require(BOUNDS, unsent <= bound, || format!("{unsent} bytes wait for {client:?}, which is still open"));
    }

    /// Checks the number of bytes that the server counts in a client's outbox. This check also covers clients whose
    /// messages are compressed.
    pub fn check_queued_bytes(&mut self, client: Token, queued: usize) {
        // One frame may exceed the bound.
        let is_bounded = queued <= self.rules.max_outbox + self.largest_frame;
        self.require(BOUNDS, is_bounded, || format!("{queued} bytes are queued for {client:?}, which is still open"));
    }

    pub fn message_count(&self) -> usize {
        self.broker.logs.values().map(Vec::len).sum()
    }

    pub fn open_room_count(&self) -> usize {
        self.rooms.len().max(self.broker.rooms.len())
    }

    pub fn is_member(&self, client: Token) -> bool {
        self.rooms.values().any(|room| room.members.contains_key(&client))
    }

    pub fn all_members(&self) -> Vec<Token> {
        self.rooms.values().flat_map(|room| room.members.keys().copied()).collect()
    }
}
