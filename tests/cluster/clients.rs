//! Simulates hundreds of chat clients on one thread. They use the `events` dialect, and follow PROTOCOL.md when they
//! lose a connection: a client reconnects to any server of the cluster with `epoch`, `since` and `session`, and resends
//! every message for which it received no event.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use crate::cluster::since;
use crate::record::{Record, Text};
use crate::support::users::events_path;
use crate::support::{masked, upgrade_request, whole_frames};

const MAX_UNANSWERED: usize = 3;
/// A client that missed at most this many messages must be able to resume, because one `welcome` can hold them all.
const RESUMABLE_MESSAGES: u64 = 500;
/// A newer epoch of a room can continue the history of an older one. If a client resumes in a newer epoch, the test
/// adds the messages that the client has kept (at most the `2 * MIN_KEPT` newest) to the test's record of that epoch.
const MIN_KEPT: usize = 200;
/// How long a client waits for its `welcome` before it reconnects. Half of the clients also wait only this long for the
/// reply to a message.
const SHORT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the other half of the clients wait for the reply to a message before they reconnect.
const LONG_TIMEOUT: Duration = Duration::from_secs(15);

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    has_response: bool,
    has_joined: bool,
    opened: Instant,
    /// For each message that the client has resent on this connection, by nonce: how many duplicate replies may still
    /// arrive. Each resend can cause one.
    resent: HashMap<String, usize>,
}

impl Connection {
    /// Counts a duplicate reply to the resent message with this nonce. Returns `false` if no duplicate was expected.
    fn take_repeated_reply(&mut self, nonce: &str) -> bool {
        let replies = self.resent.get_mut(nonce).filter(|replies| **replies > 0);
        replies.map(|replies| *replies -= 1).is_some()
    }
}

struct PendingMessage {
    nonce: String,
    text: String,
    sent: Instant,
    /// How many times the client has sent the message.
    count: u32,
    is_rejected: bool,
}

pub struct Client {
    pub name: String,
    pub room: String,
    pub epoch: String,
    pub last_id: u64,
    /// After a restart of Redis, the id of the last message that is known to belong to `epoch`. The restart may have
    /// begun a newer epoch, and later messages then belong to the newer one.
    last_id_of_epoch: Option<u64>,
    session: String,
    kept_messages: Vec<(Rc<Value>, Text)>,
    members: BTreeMap<String, usize>,
    pending: Vec<PendingMessage>,
    switching_to: Option<String>,
    /// The target room of a switch that failed with an error. Redis may still execute the switch later.
    failed_switch: Option<String>,
    connection: Option<Connection>,
    away_until: Instant,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub sent: usize,
    pub acknowledged: usize,
    pub rejected: usize,
    pub joins: usize,
    pub resumes: usize,
    pub rejected_joins: usize,
    pub forced_switches: usize,
    pub closes: BTreeMap<String, usize>,
    pub slowest: Duration,
}

pub struct Pool {
    poll: Poll,
    events: Events,
    pub clients: Vec<Client>,
    pub record: Record,
    pub counts: Counts,
    random: Rng,
    keeps_data: bool,
    rooms: usize,
    redis_restarted_at: Option<Instant>,
    /// Whether the clients only send messages: they neither switch rooms nor drop their connections.
    pub only_sends: bool,
}

impl Pool {
    pub fn new(count: usize, rooms: usize, random: Rng, keeps_data: bool) -> Pool {
        let client = |number: usize| Client {
            name: format!("user-{number}"),
            room: format!("room-{}", number % rooms),
            epoch: String::new(),
            last_id: 0,
            last_id_of_epoch: None,
            session: String::new(),
            kept_messages: Vec::new(),
            members: BTreeMap::new(),
            pending: Vec::new(),
            switching_to: None,
            failed_switch: None,
            connection: None,
            away_until: Instant::now(),
        };
        let (poll, events) = (Poll::new().expect("a poll"), Events::with_capacity(1024));
        let clients = (0..count).map(client).collect();
        let (record, counts) = (Record::new(keeps_data), Counts::default());
        Pool {
            poll,
            events,
            clients,
            record,
            counts,
            random,
            keeps_data,
            rooms,
            redis_restarted_at: None,
            only_sends: false,
        }
    }

    /// Runs one turn of the event loop: connects, writes and reads. `target` chooses the instance for a connection.
    pub fn turn(&mut self, mut target: impl FnMut(&mut Rng) -> SocketAddr) {
        let now = Instant::now();
        for number in 0..self.clients.len() {
            if self.clients[number].connection.is_none() {
                if now >= self.clients[number].away_until {
                    let addr = target(&mut self.random);
                    self.connect(number, addr);
                }
            } else if self.clients[number].has_timed_out(now) {
                self.lose(number, "timeout");
            } else {
                self.flush(number);
            }
        }
        self.poll.poll(&mut self.events, Some(Duration::from_millis(5))).expect("a poll");
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        ready.into_iter().for_each(|number| self.read(number));
    }

    /// Lets a random client send messages, switch rooms, or drop its connection.
    pub fn act(&mut self) {
        let number = self.random.usize(..self.clients.len());
        let client = &mut self.clients[number];
        if client.switching_to.is_some() || !client.has_joined() {
            return;
        }
        match self.random.u16(..1000) {
            0..4 if !self.only_sends => return self.lose(number, "own"),
            4..10 if !self.only_sends && client.pending.is_empty() => {
                let room = format!("room-{}", self.random.usize(..self.rooms));
                if room != client.room {
                    client.send(&json!({"event": "switch_room", "data": {"room": room}}));
                    client.switching_to = Some(room);
                }
            }
            _ => {
                client.resend(|pending| pending.is_rejected);
                let count = self.random.usize(1..=MAX_UNANSWERED);
                while client.pending.len() < count {
                    self.counts.sent += 1;
                    let (nonce, text) = (format!("n{}", self.counts.sent), format!("text {}", self.counts.sent));
                    client.send_new(nonce, text);
                }
            }
        }
        self.flush(number);
    }

    /// Records a restart of Redis, which may start a new epoch in every room.
    pub fn note_restart(&mut self) {
        self.redis_restarted_at = Some(Instant::now());
        for client in &mut self.clients {
            client.last_id_of_epoch.get_or_insert(client.last_id);
        }
    }

    /// Resends all rejected messages, because they stay pending and the test cannot end while a message is pending.
    pub fn resend_rejected(&mut self) {
        for number in 0..self.clients.len() {
            if self.clients[number].has_joined() {
                self.clients[number].resend(|pending| pending.is_rejected);
                self.flush(number);
            }
        }
    }

    fn connect(&mut self, number: usize, addr: SocketAddr) {
        let client = &mut self.clients[number];
        client.failed_switch = None;
        if let Some(room) = client.switching_to.take()
            && self.random.bool()
        {
            // The connection was lost during a switch, so the client may join its old room or its new room.
            client.room = room;
            (client.epoch, client.last_id) = (String::new(), 0);
            client.kept_messages.clear();
        }
        let mut path = events_path(&client.name, &client.room);
        if !client.epoch.is_empty() {
            path += &since(&json!(client.epoch), client.last_id);
        }
        if !client.session.is_empty() {
            path += &format!("&session={}", client.session);
        }
        let Ok(mut stream) = TcpStream::connect(addr) else { return };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(number), interest).expect("a socket to poll");
        let (received, unsent) = (Vec::new(), upgrade_request(&path).into_bytes());
        let (opened, resent) = (Instant::now(), HashMap::new());
        client.connection =
            Some(Connection { stream, received, unsent, has_response: false, has_joined: false, opened, resent });
    }

    fn lose(&mut self, number: usize, why: &str) {
        let client = &mut self.clients[number];
        client.connection = None;
        client.away_until = Instant::now() + Duration::from_millis(self.random.u64(20..800));
        *self.counts.closes.entry(why.to_owned()).or_default() += 1;
    }

    fn flush(&mut self, number: usize) {
        let Some(connection) = &mut self.clients[number].connection else { return };
        while !connection.unsent.is_empty() {
            match connection.stream.write(&connection.unsent) {
                Ok(n) => drop(connection.unsent.drain(..n)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                // The connection is closed, but the socket may still contain unread bytes, so let `read` handle it.
                Err(_) => return,
            }
        }
    }

    fn read(&mut self, number: usize) {
        self.flush(number);
        let mut chunk = [0; 16 * 1024];
        loop {
            let Some(connection) = &mut self.clients[number].connection else { return };
            match connection.stream.read(&mut chunk) {
                Ok(0) => return self.lose(number, "end of the stream"),
                Ok(n) => {
                    connection.received.extend_from_slice(&chunk[..n]);
                    self.process_received(number);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                Err(error) => return self.lose(number, &format!("{:?}", error.kind())),
            }
        }
    }

    fn process_received(&mut self, number: usize) {
        let Some(connection) = &mut self.clients[number].connection else { return };
        if !connection.has_response {
            let Some(end) = connection.received.windows(4).position(|end| end == b"\r\n\r\n") else { return };
            let head: Vec<u8> = connection.received.drain(..end + 4).collect();
            connection.has_response = true;
            if !head.starts_with(b"HTTP/1.1 101 ") {
                if !head.starts_with(b"HTTP/1.1 503 ") {
                    self.record.report(format!("a rejection: {}", String::from_utf8_lossy(&head)));
                }
                self.counts.rejected_joins += 1;
                return self.lose(number, "503");
            }
        }
        let bytes = std::mem::take(&mut connection.received);
        let (frames, rest) = whole_frames(&bytes);
        connection.received = rest.to_vec();
        for frame in frames {
            match frame.first {
                0x89 => {
                    if let Some(connection) = &mut self.clients[number].connection {
                        connection.unsent.extend(masked(0x8a, &frame.payload));
                    }
                }
                0x88 => return self.receive_close(number, frame.close()),
                _ => {
                    let event: Value = serde_json::from_str(frame.text()).expect("JSON");
                    self.receive(number, event);
                }
            }
        }
        self.flush(number);
    }

    fn receive_close(&mut self, number: usize, (code, reason): (u16, String)) {
        let is_allowed = matches!(
            (code, &*reason),
            (1001 | 1013, _) | (1008, "replaced by a newer connection" | "username already in use")
        );
        if !is_allowed {
            self.record.report(format!("{} is closed with {code} {reason}", self.clients[number].name));
        }
        self.lose(number, &format!("{code} {reason}"));
    }

    fn receive(&mut self, number: usize, mut event: Value) {
        let data = event["data"].take();
        match event["event"].as_str().unwrap_or_default() {
            "welcome" => self.receive_welcome(number, &data),
            "switched" => self.receive_switched(number, &data),
            "message" => self.receive_message(number, data),
            "joined" => *self.clients[number].members.entry(string(&data["username"])).or_default() += 1,
            "left" => self.receive_left(number, &data),
            "error" => self.receive_error(number, &data),
            other => self.record.report(format!("{} receives {other} {data}", self.clients[number].name)),
        }
    }

    fn receive_left(&mut self, number: usize, data: &Value) {
        let (client, name) = (&mut self.clients[number], string(&data["username"]));
        match client.members.get_mut(&name) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => drop(client.members.remove(&name)),
            None => {
                let (own, room) = (client.name.clone(), client.room.clone());
                self.record.report(format!("{own}: {name} leaves #{room} and was no member"));
            }
        }
    }

    fn receive_error(&mut self, number: usize, data: &Value) {
        let client = &mut self.clients[number];
        let Some(nonce) = data["nonce"].as_str() else {
            client.failed_switch = client.switching_to.take();
            if client.failed_switch.is_none() {
                self.record.report(format!("{} receives the error {data}", client.name));
            }
            return;
        };
        let at = client.pending.iter().position(|pending| pending.nonce == nonce);
        if at.is_none() && client.connection.as_mut().is_some_and(|connection| connection.take_repeated_reply(nonce)) {
            return; // the message was published earlier, so an error for a resent copy does not matter
        }
        let (Some(at), "Message not stored") = (at, data["message"].as_str().unwrap_or_default()) else {
            return self.record.report(format!("{} receives the error {data}", client.name));
        };
        self.counts.rejected += 1;
        self.counts.slowest = self.counts.slowest.max(client.pending[at].sent.elapsed());
        // After a first rejection, the client may give up on the message. The message must then never appear.
        if client.pending[at].count == 1 && self.random.bool() {
            client.pending.remove(at);
            let name = client.name.clone();
            self.record.reject(&name, nonce);
        } else {
            client.pending[at].is_rejected = true;
        }
    }

    fn receive_welcome(&mut self, number: usize, data: &Value) {
        self.counts.joins += 1;
        let client = &mut self.clients[number];
        let last_id = data["last_id"].as_u64().expect("an id");
        let is_new = client.epoch.is_empty();
        let mut violation = None;
        if data["resumed"] == true {
            self.counts.resumes += 1;
            if is_new {
                violation = Some("a new client resumes".to_owned());
            }
            client.epoch = string(&data["epoch"]);
            client.last_id_of_epoch = None;
            let (room, epoch, kept_messages) =
                (client.room.clone(), client.epoch.clone(), client.kept_messages.clone());
            if !self.keeps_data {
                kept_messages.iter().for_each(|(message, text)| self.record.insert(&room, &epoch, message, text));
            }
        } else {
            let missed = last_id.wrapping_sub(client.last_id);
            if !is_new && self.keeps_data && !client.has_outlived_epoch() && missed <= RESUMABLE_MESSAGES {
                violation = Some(format!("no resume, since {} of {}: {data}", client.last_id, client.epoch));
            }
            if !is_new && self.keeps_data && client.last_id > last_id {
                violation = Some(format!("knows {} and is told that the last id is {last_id}", client.last_id));
            }
            client.start_epoch(data);
        }
        let client = &mut self.clients[number];
        client.session = string(&data["session"]);
        if data["room"] != *client.room {
            violation = Some(format!("joins {} and not {}", data["room"], client.room));
        }
        client.read_members(data);
        client.connection.as_mut().expect("a connection").has_joined = true;
        self.finish_join(number, data, violation);
        self.clients[number].resend(|_| true);
    }

    fn receive_switched(&mut self, number: usize, data: &Value) {
        let client = &mut self.clients[number];
        let (room, last_id) = (string(&data["room"]), data["last_id"].as_u64().expect("an id"));
        let mut violation = None;
        let is_own = [&client.switching_to, &client.failed_switch].contains(&&Some(room.clone()));
        if is_own {
            client.room = room;
            (client.switching_to, client.failed_switch) = (None, None);
        } else {
            self.counts.forced_switches += 1;
            if room != client.room {
                violation = Some(format!("is switched to {room}"));
            } else if self.keeps_data && last_id.saturating_sub(client.last_id) <= RESUMABLE_MESSAGES {
                violation =
                    Some(format!("is switched at {} of {}, without need: {data}", client.last_id, client.epoch));
            }
        }
        client.start_epoch(data);
        client.read_members(data);
        self.finish_join(number, data, violation);
        if !is_own {
            self.clients[number].resend(|_| true);
        }
    }

    /// Receives the backlog of a `welcome` or `switched`, and checks that the backlog and the member list are complete.
    fn finish_join(&mut self, number: usize, data: &Value, violation: Option<String>) {
        // Soon after a restart of Redis, a client may still receive a backlog from before the restart.
        if self.redis_restarted_at.is_some_and(|redis_restarted_at| redis_restarted_at.elapsed() < LONG_TIMEOUT) {
            self.clients[number].last_id_of_epoch = data["last_id"].as_u64();
        }
        for message in data["history"].as_array().expect("a history") {
            self.receive_message(number, message.clone());
        }
        let client = &self.clients[number];
        let backlog =
            (client.last_id != data["last_id"]).then(|| format!("the backlog ends at {}: {data}", client.last_id));
        let listed: usize = client.members.values().sum();
        let members = (data["member_count"] != listed).then(|| format!("{listed} members are listed: {data}"));
        for violation in violation.into_iter().chain(backlog).chain(members) {
            self.record.report(format!("{}: {violation}", self.clients[number].name));
        }
    }

    fn receive_message(&mut self, number: usize, message: Value) {
        let client = &mut self.clients[number];
        let (id, text): (u64, Text) = (message["id"].as_u64().expect("an id"), message.to_string().into());
        let nonce = message["nonce"].as_str().unwrap_or_default();
        if message["username"] == *client.name
            && let Some(at) = client.pending.iter().position(|pending| pending.nonce == nonce)
        {
            let pending = client.pending.remove(at);
            self.counts.acknowledged += 1;
            self.counts.slowest = self.counts.slowest.max(pending.sent.elapsed());
        }
        let violation = if id == client.last_id + 1 {
            client.last_id = id;
            None
        } else if id > client.last_id {
            Some(format!("misses messages after {}: {message}", client.last_id))
        } else if message["username"] != *client.name
            || !client.connection.as_mut().is_some_and(|connection| connection.take_repeated_reply(nonce))
        {
            Some(format!("at {} receives again {message}", client.last_id))
        } else {
            None
        };
        client.last_id = client.last_id.max(id);
        let (room, epoch, message) = (client.room.clone(), client.epoch.clone(), Rc::new(message));
        if !self.keeps_data {
            if client.kept_messages.len() >= 2 * MIN_KEPT {
                client.kept_messages.drain(..MIN_KEPT);
            }
            client.kept_messages.push((Rc::clone(&message), Rc::clone(&text)));
        }
        if let Some(violation) = violation {
            self.record.report(format!("{} in #{room}, epoch {epoch}: {violation}", self.clients[number].name));
        }
        self.record.insert(&room, &epoch, &message, &text);
    }

    /// Returns the reason for each client that is not up to date yet. At the end of a run, the list must be empty.
    pub fn disagreements(&self) -> Vec<String> {
        let mut rooms: HashMap<&str, (BTreeMap<&str, usize>, u64)> = HashMap::new();
        for client in &self.clients {
            let room = rooms.entry(&client.room).or_default();
            *room.0.entry(&client.name).or_default() += 1;
            room.1 = room.1.max(client.last_id);
        }
        let disagreement = |client: &Client| {
            let (members, last_id) = &rooms[&*client.room];
            let last_id = if self.keeps_data { self.record.last_id(&client.room, "") } else { *last_id };
            let known = client.members.iter().map(|(name, count)| (&**name, *count));
            let others = members.iter().filter(|(name, _)| **name != client.name).map(|(name, count)| (*name, *count));
            let Client { name, room, .. } = client;
            if !client.has_joined() {
                Some(format!("{name} has not joined"))
            } else if !client.pending.is_empty() || client.switching_to.is_some() {
                Some(format!("{name} waits for an answer"))
            } else if client.last_id != last_id {
                Some(format!("{name} knows {} of {last_id} messages of #{room}", client.last_id))
            } else if !known.clone().eq(others.clone()) {
                let (known, others): (BTreeMap<_, _>, BTreeMap<_, _>) = (known.collect(), others.collect());
                let missing = others.iter().filter(|(name, count)| known.get(*name) != Some(*count));
                let ghosts = known.iter().filter(|(name, count)| others.get(*name) != Some(*count));
                let (missing, ghosts): (Vec<_>, Vec<_>) = (missing.collect(), ghosts.collect());
                Some(format!("{name} in #{room}: missing members {missing:?}, ghosts {ghosts:?}"))
            } else {
                None
            }
        };
        self.clients.iter().filter_map(disagreement).collect()
    }
}

impl Client {
    fn has_joined(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.has_joined)
    }

    /// Whether some of the client's messages may belong to a newer epoch than `epoch`. If so, the client may fail to
    /// resume, because it sends the old epoch with the id of a message from the newer one.
    pub fn has_outlived_epoch(&self) -> bool {
        self.last_id_of_epoch.is_some_and(|last_id| self.last_id > last_id)
    }

    fn has_timed_out(&self, now: Instant) -> bool {
        let Some(connection) = &self.connection else { return false };
        if !connection.has_joined {
            return now > connection.opened + SHORT_TIMEOUT;
        }
        let timeout = if self.name.ends_with(['0', '1', '2', '3', '4']) { SHORT_TIMEOUT } else { LONG_TIMEOUT };
        self.pending.iter().any(|pending| !pending.is_rejected && now > pending.sent + timeout)
    }

    fn send(&mut self, event: &Value) {
        let connection = self.connection.as_mut().expect("a connection");
        connection.unsent.extend(masked(0x81, event.to_string().as_bytes()));
    }

    fn send_new(&mut self, nonce: String, text: String) {
        self.send(&json!({"event": "message", "data": {"text": text, "nonce": nonce}}));
        self.pending.push(PendingMessage { nonce, text, sent: Instant::now(), count: 1, is_rejected: false });
    }

    fn resend(&mut self, which: impl Fn(&PendingMessage) -> bool) {
        let mut pending = std::mem::take(&mut self.pending);
        for pending in pending.iter_mut().filter(|pending| which(pending)) {
            self.send(&json!({"event": "message", "data": {"text": pending.text, "nonce": pending.nonce}}));
            (pending.sent, pending.count, pending.is_rejected) = (Instant::now(), pending.count + 1, false);
            *self.connection.as_mut().expect("a connection").resent.entry(pending.nonce.clone()).or_default() += 1;
        }
        self.pending = pending;
    }

    /// Starts over with the epoch in `data`: the next message must be the first one of the backlog in `data`.
    fn start_epoch(&mut self, data: &Value) {
        let history = data["history"].as_array().expect("a history").len() as u64;
        self.last_id = data["last_id"].as_u64().expect("an id").saturating_sub(history);
        self.epoch = string(&data["epoch"]);
        self.last_id_of_epoch = None;
        self.kept_messages.clear();
    }

    fn read_members(&mut self, data: &Value) {
        self.members.clear();
        for name in data["members"].as_array().expect("a list of names") {
            *self.members.entry(string(name)).or_default() += 1;
        }
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
