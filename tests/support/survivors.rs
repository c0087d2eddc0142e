//! Clients that use the `events` dialect and reconnect after their server has exited. A client keeps each text until
//! the server acknowledges the message, and resends unacknowledged messages to the next server. A checker compares the
//! events that each client receives with PROTOCOL.md, sections 5 and 5.1.
#![allow(dead_code)] // each test binary uses only part of this module

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::crowd::Crowd;
use crate::history_file::Rows;
use crate::support::users::events_path;
use crate::support::{Frame, Server, masked, upgrade_request};

const LIMIT: Duration = Duration::from_secs(120);
const MAX_UNANSWERED: usize = 3;
/// A client that missed at most this many messages must resume, because they always fit into one `welcome` event.
const RESUMABLE_MESSAGES: u64 = 500;

/// A client's state, derived only from what the client has sent and received.
pub struct Client {
    pub name: String,
    pub room: String,
    /// Index of the client's connection in [`Crowd::members`].
    connection: Option<usize>,
    epoch: String,
    session: String,
    last_id: u64,
    /// Nonce and text of each message that the client has sent but not yet received back as an event.
    unanswered: Vec<(String, String)>,
    /// Nonces of the messages that the client has resent on this connection.
    resent: Vec<String>,
    has_response: bool,
    has_joined: bool,
    /// Whether the client resends unanswered messages right after its handshake request, before it receives `welcome`.
    resends_early: bool,
}

pub struct Survivors {
    pub clients: Vec<Client>,
    /// Every message that any client has received, by room and id. The server must not lose any of these messages.
    pub messages: BTreeMap<(String, u64), Value>,
    pub acknowledged: usize,
    pub resumed: usize,
    sent: usize,
    random: Rng,
}

impl Survivors {
    pub fn new(count: usize, rooms: usize, seed: u64) -> Survivors {
        let client = |number: usize| Client {
            name: format!("user-{number}"),
            room: format!("room-{}", number % rooms),
            connection: None,
            epoch: String::new(),
            session: String::new(),
            last_id: 0,
            unanswered: Vec::new(),
            resent: Vec::new(),
            has_response: false,
            has_joined: false,
            resends_early: false,
        };
        let clients = (0..count).map(client).collect();
        let (messages, random) = (BTreeMap::new(), Rng::with_seed(seed));
        Survivors { clients, messages, acknowledged: 0, resumed: 0, sent: 0, random }
    }

    /// Connects the clients with these numbers, without waiting for their `welcome` events.
    pub fn connect(&mut self, crowd: &mut Crowd, server: &Server, numbers: impl IntoIterator<Item = usize>) {
        for number in numbers {
            let client = &mut self.clients[number];
            let mut path = events_path(&client.name, &client.room);
            if !client.epoch.is_empty() {
                let Client { epoch, last_id, session, .. } = client;
                path += &format!("&epoch={epoch}&since={last_id}&session={session}");
            }
            let connection = crowd.connect(server, &upgrade_request(&path), true);
            client.connection = Some(connection);
            client.resent.clear();
            (client.has_response, client.has_joined, client.resends_early) = (false, false, self.random.bool());
            if client.resends_early {
                client.resend(crowd);
            }
        }
    }

    /// Picks a random client, which sends one or more messages if it has joined and has fewer than `MAX_UNANSWERED`
    /// unanswered messages.
    pub fn talk(&mut self, crowd: &mut Crowd) {
        let number = self.random.usize(..self.clients.len());
        let client = &mut self.clients[number];
        let Some(connection) = client.connection.filter(|_| client.has_joined) else { return };
        while client.unanswered.len() < MAX_UNANSWERED {
            self.sent += 1;
            let (nonce, text) = (format!("n{}", self.sent), format!("{} of {}", self.sent, client.name));
            crowd.send(connection, &message(&nonce, &text));
            client.unanswered.push((nonce, text));
            if self.random.bool() {
                break;
            }
        }
    }

    /// Processes all bytes that have arrived, even if the server that sent them has exited.
    pub fn read(&mut self, crowd: &mut Crowd) {
        for number in 0..self.clients.len() {
            let Some(connection) = self.clients[number].connection else { continue };
            if !self.clients[number].has_response {
                let Some(head) = crowd.take_head(connection) else { continue };
                assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
                self.clients[number].has_response = true;
            }
            for frame in crowd.take_frames(connection) {
                self.receive(crowd, number, connection, &frame);
            }
        }
    }

    pub fn read_until(&mut self, crowd: &mut Crowd, what: &str, condition: impl Fn(&Survivors) -> bool) {
        let end = Instant::now() + LIMIT;
        self.read(crowd);
        while !condition(self) {
            assert!(Instant::now() < end, "never happened: {what}");
            crowd.turn();
            self.read(crowd);
        }
    }

    /// Lets the clients talk until `goal` messages are acknowledged. At the end, sends a few more messages without
    /// waiting for their events.
    pub fn talk_until(&mut self, crowd: &mut Crowd, goal: usize) {
        let end = Instant::now() + LIMIT;
        while self.acknowledged < goal {
            assert!(Instant::now() < end, "only {} of {goal} messages are acknowledged", self.acknowledged);
            (0..8).for_each(|_| self.talk(crowd));
            crowd.turn();
            self.read(crowd);
        }
        (0..8).for_each(|_| self.talk(crowd));
    }

    /// Reads the last bytes from a killed server, until all connections have ended.
    pub fn read_to_end(&mut self, crowd: &mut Crowd) {
        let connections: Vec<usize> = self.clients.iter().filter_map(|client| client.connection).collect();
        crowd.turn_until("all connections end", |crowd| connections.iter().all(|id| crowd.members[*id].has_ended));
        self.read(crowd);
        self.clients.iter_mut().for_each(|client| client.connection = None);
    }

    /// Waits until each client has received all messages of its room, and has received back every message it sent.
    pub fn settle(&mut self, crowd: &mut Crowd) {
        self.read_until(crowd, "all clients have received all messages", |survivors| {
            let last_ids = survivors.last_ids();
            survivors.clients.iter().all(|client| {
                let last = last_ids.get(&client.room).copied().unwrap_or_default();
                client.has_joined && client.unanswered.is_empty() && client.last_id == last
            })
        });
    }

    pub fn has_joined(&self) -> bool {
        self.clients.iter().all(|client| client.has_joined)
    }

    fn last_ids(&self) -> BTreeMap<String, u64> {
        // The keys are sorted by room and id, so the map keeps the highest id of each room.
        self.messages.keys().cloned().collect()
    }

    fn receive(&mut self, crowd: &mut Crowd, number: usize, connection: usize, frame: &Frame) {
        match frame.first {
            0x89 => crowd.try_send(connection, &masked(0x8a, &frame.payload)),
            0x88 => assert_eq!(frame.close().0, 1001, "{:?}", frame.close()),
            _ => {
                let mut event: Value = serde_json::from_str(frame.text()).expect("JSON");
                let data = event["data"].take();
                match event["event"].as_str().expect("an event") {
                    "welcome" => self.receive_welcome(crowd, number, &data),
                    "message" => self.receive_message(number, &data),
                    "joined" | "left" => {}
                    other => panic!("{} receives {other} {data}", self.clients[number].name),
                }
            }
        }
    }

    fn receive_welcome(&mut self, crowd: &mut Crowd, number: usize, data: &Value) {
        let last_id = data["last_id"].as_u64().expect("an id");
        let history = data["history"].as_array().expect("a history");
        let client = &mut self.clients[number];
        let is_new = client.epoch.is_empty();
        if data["resumed"] == true {
            assert!(!is_new, "a new client cannot resume");
            self.resumed += 1;
        } else {
            assert!(client.last_id <= last_id, "{} knows {} > {last_id}", client.name, client.last_id);
            assert!(is_new || last_id - client.last_id > RESUMABLE_MESSAGES, "{} does not resume", client.name);
            client.last_id = last_id - history.len() as u64;
        }
        (client.epoch, client.session) = (string(&data["epoch"]), string(&data["session"]));
        client.has_joined = true;
        // `receive_message` checks that each id follows the client's last id. This proves that a resume returns exactly
        // the missed messages.
        for message in history {
            self.receive_message(number, message);
        }
        let client = &mut self.clients[number];
        assert_eq!(client.last_id, last_id, "{}: the backlog ends at the last id", client.name);
        if !client.resends_early {
            client.resend(crowd);
        }
    }

    fn receive_message(&mut self, number: usize, message: &Value) {
        let client = &mut self.clients[number];
        let id = message["id"].as_u64().expect("an id");
        if message["username"] == *client.name {
            let nonce = message["nonce"].as_str().expect("each message has a nonce");
            if let Some(at) = client.unanswered.iter().position(|unanswered| unanswered.0 == nonce) {
                let (_, text) = client.unanswered.remove(at);
                assert_eq!(message["text"], *text);
            }
        }
        let key = (client.room.clone(), id);
        if id <= client.last_id {
            // The message was already stored when the client resent it, so the server sends the stored message again.
            let resent = client.resent.iter().position(|nonce| message["nonce"] == **nonce);
            client.resent.remove(resent.unwrap_or_else(|| panic!("{} receives {message} twice", client.name)));
            let known = self.messages.get(&key);
            assert!(known.is_none_or(|known| known == message), "{message}, not {known:?}");
            return;
        }
        assert_eq!(id, client.last_id + 1, "{} has missed a message before {message}", client.name);
        client.last_id = id;
        if let Some(known) = self.messages.get(&key) {
            assert_eq!(known, message, "two clients received different messages with the same id");
        } else {
            self.acknowledged += 1;
            self.messages.insert(key, message.clone());
        }
    }

    /// Compares a stopped server's history file with what the clients have received. No received message may be
    /// missing, and no message may be stored twice. If no client has received a stored message, its sender must still
    /// be waiting for the acknowledgment.
    pub fn check(&self, rows: &Rows) {
        rows.check();
        let lost: Vec<&Value> = self
            .messages
            .iter()
            .filter(|(key, _)| !rows.messages.contains_key(key))
            .map(|(_, message)| message)
            .collect();
        assert!(lost.is_empty(), "acknowledged messages are lost: {lost:?}");
        let clients: BTreeMap<&str, &Client> = self.clients.iter().map(|client| (&*client.name, client)).collect();
        for (key, stored) in &rows.messages {
            let Some(known) = self.messages.get(key) else {
                let client = clients[stored["username"].as_str().expect("a name")];
                let pending = client
                    .unanswered
                    .iter()
                    .any(|(nonce, text)| stored["nonce"] == **nonce && stored["text"] == **text);
                assert!(pending && client.room == key.0, "nobody has sent {stored}");
                continue;
            };
            assert_eq!(known, stored, "the stored message differs from the one that clients received");
        }
    }
}

impl Client {
    fn resend(&mut self, crowd: &mut Crowd) {
        let connection = self.connection.expect("a connection");
        for (nonce, text) in &self.unanswered {
            crowd.try_send(connection, &message(nonce, text)); // may fail: the server may have been killed
            self.resent.push(nonce.clone());
        }
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

pub fn message(nonce: &str, text: &str) -> Vec<u8> {
    let event = json!({"event": "message", "data": {"text": text, "nonce": nonce}});
    masked(0x81, event.to_string().as_bytes())
}
