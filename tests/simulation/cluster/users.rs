//! Simulated users: they send messages, keep their state across connections, and check everything that they receive.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Value, json};

use super::record::{Fingerprints, Record, fingerprint};
use crate::fnv1a;
use crate::memory::{Client, End};
use crate::model::{ACKNOWLEDGEMENT, FRAMES, MEMBERS, ORDER, RESUME};
use crate::support::users::{Dialect, encode};
use crate::support::{masked, upgrade_request};

pub struct User {
    pub name: String,
    pub dialect: Dialect,
    pub conn: Option<Conn>,
    pub room: String,
    epoch: String,
    last_id: u64,
    session: String,
    seen: Fingerprints,
    /// Nonce and text of each message that has no reply yet, oldest first.
    pending: VecDeque<(String, String)>,
    /// Texts of the messages that the user has sent more than once.
    resent: Vec<String>,
    /// When the user next connects; `None` while the user is connected, or offline with no plan to reconnect.
    pub connects_at: Option<Duration>,
    pub connections: u64,
    /// Whether the server closed the last connection with 1013. Before such a Close, the server sends an error for each
    /// rejected message.
    has_all_rejections: bool,
}

pub struct Conn {
    pub client: Client,
    pub instance: usize,
    id: String,
    head: Vec<u8>,
    pub is_upgraded: bool,
    pub is_joined: bool,
    pub joined_at: Duration,
    /// The epoch and the message id from which the user asked to resume.
    resume: Option<(String, u64)>,
    /// The id of the last message that this connection has received, in a history or as an event.
    pub last_id: u64,
    seen: Fingerprints,
    numbers: u64,
    members: BTreeMap<String, i64>,
    /// Commands that still wait for a reply, oldest first. An entry is the target room of a switch, or `None` for a
    /// `history` command.
    commands: VecDeque<Option<String>>,
    /// Target rooms of switches that failed with an error. Redis may still execute such a switch later.
    abandoned: Vec<String>,
    /// The user's room, as confirmed by the server.
    pub room: String,
    pub hash: u64,
}

#[derive(Default)]
pub struct PrivateMessage {
    pub to: String,
    pub sent_at: Duration,
    pub is_acknowledged: bool,
    pub is_rejected: bool,
    /// Maps a user's number to how many times that user has received the message.
    pub received: BTreeMap<usize, u64>,
}

/// Whether a user's connection has ended. If it has, the caller schedules a reconnect.
pub enum ReceiveOutcome {
    Nothing,
    End,
}

impl User {
    pub fn new(number: usize, dialect: Dialect, room: &str) -> User {
        let text = String::new;
        User {
            name: format!("user{number}"),
            dialect,
            conn: None,
            room: room.to_owned(),
            epoch: text(),
            last_id: 0,
            session: text(),
            seen: Fingerprints::new(),
            pending: VecDeque::new(),
            resent: Vec::new(),
            connects_at: None,
            connections: 0,
            has_all_rejections: false,
        }
    }

    /// The user's name in member lists.
    pub fn listed_name(&self) -> String {
        if self.dialect == Dialect::Rooms { "Anonymous".to_owned() } else { self.name.clone() }
    }

    fn path(&self) -> String {
        let (name, room) = (encode(&self.name), encode(&self.room));
        match self.dialect {
            Dialect::Rooms => format!("/ws/{room}?token=dev-token"),
            Dialect::Presence => format!("/ws?token=dev-token&username={name}&client_id={name}&room={room}"),
            Dialect::Events => {
                let mut path = format!("/?token=dev-token&username={name}&room={room}");
                if !self.session.is_empty() {
                    path += &format!("&session={}", self.session);
                }
                if !self.epoch.is_empty() {
                    path += &format!("&epoch={}&since={}", encode(&self.epoch), self.last_id);
                }
                path
            }
        }
    }

    pub fn connect(&mut self, client: Client, instance: usize, number: u64) {
        client.send(upgrade_request(&self.path()).as_bytes());
        self.connections += 1;
        self.connects_at = None;
        let resume = (!self.epoch.is_empty()).then(|| (self.epoch.clone(), self.last_id));
        self.conn = Some(Conn {
            client,
            instance,
            id: format!("c{number}"),
            head: Vec::new(),
            is_upgraded: false,
            is_joined: false,
            joined_at: Duration::ZERO,
            resume,
            last_id: 0,
            seen: Fingerprints::new(),
            numbers: 0,
            members: BTreeMap::new(),
            commands: VecDeque::new(),
            abandoned: Vec::new(),
            room: self.room.clone(),
            hash: 0,
        });
    }

    /// Returns the user's connection if it is still open and the user has joined a room on it.
    pub fn joined(&mut self) -> Option<&mut Conn> {
        self.conn.as_mut().filter(|conn| conn.is_joined && conn.client.is_open() && !conn.client.is_closed_by_server())
    }

    pub fn send(&mut self, has_nonce: bool) {
        let (dialect, name) = (self.dialect, self.name.clone());
        let Some(conn) = self.joined() else { return };
        conn.numbers += 1;
        let text = format!("{}.{}", conn.id, conn.numbers);
        let nonce = format!("n{text}");
        match dialect {
            Dialect::Events if has_nonce => {
                conn.send(&json!({"event": "message", "data": {"text": text, "nonce": nonce}}));
                self.pending.push_back((nonce, text));
            }
            Dialect::Events => conn.send(&json!({"event": "message", "data": {"text": text}})),
            Dialect::Rooms => conn.send(&json!({"username": name, "text": text})),
            Dialect::Presence => conn.client.send(&masked(0x81, text.as_bytes())),
        }
    }

    fn resend(&mut self) {
        let pending: Vec<_> = self.pending.iter().cloned().collect();
        for (nonce, text) in pending {
            let Some(conn) = self.joined() else { return };
            conn.send(&json!({"event": "message", "data": {"text": text, "nonce": nonce}}));
            self.resent.push(text);
        }
    }

    pub fn send_private(&mut self, to: &str, now: Duration) -> Option<(String, PrivateMessage)> {
        let is_events = self.dialect == Dialect::Events;
        let conn = self.joined().filter(|_| is_events)?;
        conn.numbers += 1;
        let text = format!("private {}.{}", conn.id, conn.numbers);
        let nonce = format!("n{text}");
        conn.send(&json!({"event": "private", "data": {"to": to, "text": text, "nonce": nonce}}));
        Some((text, PrivateMessage { to: to.to_owned(), sent_at: now, ..PrivateMessage::default() }))
    }

    /// Switches to another room, unless the server has yet to confirm one of the user's messages. The user might resend
    /// that message in the new room, and then both rooms could contain it, because a nonce prevents duplicates only
    /// within a room.
    pub fn switch(&mut self, room: &str) {
        if self.dialect != Dialect::Events || !self.pending.is_empty() || self.room == room {
            return;
        }
        let Some(conn) = self.joined() else { return };
        conn.send(&json!({"event": "switch_room", "data": {"room": room}}));
        conn.commands.push_back(Some(room.to_owned()));
        room.clone_into(&mut self.room);
        self.epoch.clear();
    }

    pub fn type_text(&mut self) {
        let is_events = self.dialect == Dialect::Events;
        let conn = self.joined().filter(|_| is_events);
        conn.into_iter().for_each(|conn| conn.send(&json!({"event": "typing"})));
    }

    pub fn request_history(&mut self, before: u64, limit: u64) {
        let is_events = self.dialect == Dialect::Events;
        let Some(conn) = self.joined().filter(|_| is_events) else { return };
        conn.send(&json!({"event": "history", "data": {"before": before, "limit": limit}}));
        conn.commands.push_back(None);
    }

    /// Disconnects the user: with a TCP reset if `is_reset` is set, otherwise with a Close and a half-close.
    pub fn leave(&mut self, is_reset: bool, record: &mut Record) {
        if !std::mem::take(&mut self.has_all_rejections) {
            record.unordered.extend(self.pending.iter().map(|(_, text)| text.clone()));
        }
        let Some(conn) = &self.conn else { return };
        if conn.client.is_open() && !conn.client.is_closed_by_server() {
            if is_reset {
                conn.client.reset();
            } else {
                conn.client.send(&masked(0x88, &1000_u16.to_be_bytes()));
                conn.client.end();
            }
        }
        self.conn = None;
    }

    pub fn receive(
        &mut self,
        now: Duration,
        at: usize,
        record: &mut Record,
        private_messages: &mut PrivateMessages,
    ) -> ReceiveOutcome {
        let Some(conn) = &mut self.conn else { return ReceiveOutcome::Nothing };
        if !conn.is_upgraded {
            conn.head.extend(conn.client.received());
            if !conn.head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                conn.head.clear();
                return if conn.client.server_end() == End::Open {
                    ReceiveOutcome::Nothing
                } else {
                    ReceiveOutcome::End
                };
            }
            let head = conn.client.read_head();
            conn.is_upgraded = head.starts_with("HTTP/1.1 101 ");
            if !conn.is_upgraded {
                if !head.starts_with("HTTP/1.1 503 ") {
                    record.fail(FRAMES, format!("{} receives {head:?}", self.name));
                }
                return ReceiveOutcome::End;
            }
        }
        while let Some(frame) = self.conn.as_ref().and_then(|conn| conn.client.next_frame()) {
            match frame.first & 15 {
                1 => {
                    let text = frame.text().to_owned();
                    if let Some(conn) = &mut self.conn {
                        conn.hash = fnv1a(conn.hash, text.as_bytes());
                    }
                    self.handle_event(&text, now, at, record, private_messages);
                }
                8 => {
                    let code = frame.payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    self.has_all_rejections = code == 1013;
                    if !matches!(code, 1000 | 1001 | 1008 | 1013) {
                        let reason = String::from_utf8_lossy(frame.payload.get(2..).unwrap_or_default()).into_owned();
                        record.fail(FRAMES, format!("{} receives a Close with {code}: {reason}", self.name));
                    }
                    return ReceiveOutcome::End;
                }
                9 => {
                    if let Some(conn) = self.joined() {
                        conn.client.send(&masked(0x8a, &frame.payload));
                    }
                }
                _ => {}
            }
        }
        let is_over = self.conn.as_ref().is_some_and(|conn| conn.client.server_end() != End::Open);
        if is_over { ReceiveOutcome::End } else { ReceiveOutcome::Nothing }
    }

    fn handle_event(
        &mut self,
        text: &str,
        now: Duration,
        at: usize,
        record: &mut Record,
        private_messages: &mut PrivateMessages,
    ) {
        let event: Value = serde_json::from_str(text).expect("an event is JSON");
        if self.dialect != Dialect::Events {
            if let Some(conn) = &mut self.conn
                && !conn.is_joined
            {
                (conn.is_joined, conn.joined_at) = (true, now);
            }
            if matches!(event["type"].as_str(), Some("private" | "private_message")) {
                private_messages.receive(at, &event["text"], record);
            }
            return;
        }
        let data = &event["data"];
        match event["event"].as_str().unwrap_or_default() {
            "welcome" => self.handle_welcome(data, now, record),
            "switched" => self.handle_switched(data, record),
            "message" => self.handle_message(data, record),
            "private" => {
                private_messages.receive(at, &data["text"], record);
                if data["from"] == self.name.as_str() {
                    private_messages.acknowledge(&data["text"]);
                }
            }
            "joined" => self.count_member(data, 1, record),
            "left" => self.count_member(data, -1, record),
            "error" => self.handle_error(data, record, private_messages),
            "history" => self.handle_page(data, record),
            _ => {}
        }
    }

    fn count_member(&mut self, data: &Value, by: i64, record: &mut Record) {
        let Some(conn) = &mut self.conn else { return };
        let name = data["username"].as_str().unwrap_or_default().to_owned();
        let count = conn.members.entry(name.clone()).or_default();
        *count += by;
        if *count < 0 {
            record.fail(MEMBERS, format!("{} receives `left` for {name}, which was not a member", self.name));
        }
    }

    fn handle_welcome(&mut self, data: &Value, now: Duration, record: &mut Record) {
        data["session"].as_str().unwrap_or_default().clone_into(&mut self.session);
        let Some(conn) = &mut self.conn else { return };
        (conn.is_joined, conn.joined_at) = (true, now);
        let resumed = data["resumed"] == true;
        match &conn.resume {
            Some((epoch, since)) if resumed => {
                (conn.seen, conn.last_id) = (std::mem::take(&mut self.seen), *since);
                let missed = data["history"].as_array().map_or(&[][..], Vec::as_slice);
                let last_id = data["last_id"].as_u64().unwrap_or_default();
                if missed.len() as u64 != last_id.wrapping_sub(*since) {
                    let text = format!("{} resumes after {since} of {epoch}, up to {last_id}: {data}", self.name);
                    record.fail(RESUME, text);
                }
            }
            _ if resumed => record.fail(RESUME, format!("{} did not ask to resume: {data}", self.name)),
            _ => {}
        }
        // On every second connection, the user resends all unacknowledged messages before it looks for them in the
        // history of the `welcome` event. The server must ignore the resent messages that it has already published.
        let is_eager = self.connections.is_multiple_of(2);
        if is_eager {
            self.resend();
        }
        self.apply_state(data, resumed, record);
        if !is_eager {
            self.resend();
        }
    }

    fn handle_switched(&mut self, data: &Value, record: &mut Record) {
        let Some(conn) = &mut self.conn else { return };
        let room = data["room"].as_str().unwrap_or_default();
        if room != conn.room {
            let is_next = conn.commands.iter().flatten().next().is_some_and(|next| next == room);
            let was_abandoned = conn.abandoned.iter().any(|abandoned| abandoned == room);
            let at = conn.commands.iter().position(|command| command.as_deref() == Some(room));
            // Remove the command that this event replies to, and all earlier commands. Some of those may never get a
            // reply, because the server does not reply to a switch to the user's current room. If an abandoned command
            // has the same room, the event may reply to that command: Redis executes it before the commands that wait.
            if let Some(at) = at.filter(|_| is_next || !was_abandoned) {
                conn.commands.drain(..=at);
            } else if was_abandoned {
                if !conn.commands.iter().any(Option::is_some) {
                    room.clone_into(&mut self.room);
                }
            } else {
                record.fail(ORDER, format!("{} is switched to {room}, but asked for {:?}", self.name, conn.commands));
            }
            room.clone_into(&mut conn.room);
        }
        self.apply_state(data, false, record);
    }

    /// Checks the room state in a `welcome` or `switched` event, and stores it.
    fn apply_state(&mut self, data: &Value, resumed: bool, record: &mut Record) {
        let Some(conn) = &mut self.conn else { return };
        let (epoch, last_id) =
            (data["epoch"].as_str().unwrap_or_default(), data["last_id"].as_u64().unwrap_or_default());
        let messages = data["history"].as_array().map_or(&[][..], Vec::as_slice);
        if !resumed {
            conn.seen.clear();
            conn.last_id = last_id.saturating_sub(messages.len() as u64);
        }
        let mut given = Fingerprints::new();
        for message in messages {
            given.insert(message["id"].as_u64().unwrap_or_default(), fingerprint(message));
        }
        let ids: Vec<u64> = given.keys().copied().collect();
        if ids != (conn.last_id + 1..=last_id).collect::<Vec<_>>() || ids.len() != messages.len() {
            record.fail(ORDER, format!("the history that {} receives has gaps: {data}", self.name));
        }
        conn.members.clear();
        for member in data["members"].as_array().map_or(&[][..], Vec::as_slice) {
            *conn.members.entry(member.as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        conn.seen.extend(&given);
        conn.last_id = last_id;
        record.add_backlog(&conn.room, epoch, &given);
        if !record.contains_all(&conn.room, &conn.seen) {
            let rule = if resumed { RESUME } else { ORDER };
            record.fail(rule, format!("{} has messages of several histories of {}: {data}", self.name, conn.room));
        }
        if conn.room == self.room {
            epoch.clone_into(&mut self.epoch);
        }
        self.save_progress();
        for message in messages {
            self.acknowledge(message);
        }
    }

    fn save_progress(&mut self) {
        let Some(conn) = self.conn.as_ref().filter(|conn| conn.room == self.room) else { return };
        (self.last_id, self.seen) = (conn.last_id, conn.seen.clone());
    }

    fn acknowledge(&mut self, message: &Value) {
        if message["username"] == self.name.as_str() {
            self.pending.retain(|(nonce, _)| message["nonce"] != nonce.as_str());
        }
    }

    fn handle_message(&mut self, data: &Value, record: &mut Record) {
        let Some(conn) = &mut self.conn else { return };
        let id = data["id"].as_u64().unwrap_or_default();
        let is_own = data["username"] == self.name.as_str();
        let is_resent = self.resent.iter().any(|text| data["text"] == text.as_str());
        if id <= conn.last_id && is_own && is_resent {
            // The user has resent a message that was already published. The server replies with the original event.
            if conn.seen.get(&id).is_some_and(|seen| *seen != fingerprint(data)) {
                record.fail(ORDER, format!("{} receives another message {id}: {data}", self.name));
            }
        } else if id == conn.last_id + 1 {
            conn.last_id = id;
            conn.seen.insert(id, fingerprint(data));
            if !record.contains_all(&conn.room, &conn.seen) {
                record.fail(ORDER, format!("{} receives a wrong message {id} of {}: {data}", self.name, conn.room));
            }
        } else {
            let text = format!("{} receives message {id} of {} after {}: {data}", self.name, conn.room, conn.last_id);
            record.fail(ORDER, text);
        }
        self.acknowledge(data);
        self.save_progress();
    }

    fn handle_error(&mut self, data: &Value, record: &mut Record, private_messages: &mut PrivateMessages) {
        let message = data["message"].as_str().unwrap_or_default();
        if message != "Message not stored" && !message.starts_with("No such user") {
            if let Some(conn) = &mut self.conn
                && let Some(Some(room)) = conn.commands.pop_front()
            {
                if room == self.room {
                    conn.room.clone_into(&mut self.room);
                }
                conn.abandoned.push(room);
            }
            return;
        }
        let nonce = data["nonce"].as_str().unwrap_or_default();
        if let Some(at) = self.pending.iter().position(|(pending, _)| pending == nonce) {
            let Some((_, text)) = self.pending.remove(at) else { return };
            // A rejected message must not have been published. Skip resent messages: the server may have published an
            // earlier copy before it rejected this one.
            if !self.resent.contains(&text) {
                if record.was_published(&text) {
                    record.fail(ACKNOWLEDGEMENT, format!("{text:?} is rejected, but published"));
                }
                record.rejected.insert(text);
            }
        } else {
            private_messages.reject(nonce);
        }
    }

    fn handle_page(&mut self, data: &Value, record: &mut Record) {
        let Some(conn) = &mut self.conn else { return };
        conn.commands.pop_front_if(|command| command.is_none());
        let messages = data["messages"].as_array().map_or(&[][..], Vec::as_slice);
        let page: Fingerprints =
            messages.iter().map(|message| (message["id"].as_u64().unwrap_or_default(), fingerprint(message))).collect();
        let (first, last) = (page.keys().next().copied(), page.keys().next_back().copied());
        let is_whole = first.zip(last).is_none_or(|(first, last)| last - first + 1 == page.len() as u64);
        if !is_whole || !record.contains_all(data["room"].as_str().unwrap_or(&conn.room), &page) {
            record.fail(ORDER, format!("{} receives a page that is no part of a history: {data}", self.name));
        }
    }

    /// Returns the names of the other members, according to the events on this connection.
    pub fn members(&self) -> Vec<String> {
        let members = self.conn.iter().flat_map(|conn| &conn.members);
        members.flat_map(|(name, count)| vec![name.clone(); usize::try_from(*count).unwrap_or(0)]).collect()
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn last_pending(&self) -> Option<String> {
        self.pending.back().map(|(_, text)| text.clone())
    }

    pub fn is_pending(&self, text: &str) -> bool {
        self.pending.iter().any(|(_, pending)| pending == text)
    }
}

impl Conn {
    fn send(&self, event: &Value) {
        self.client.send(&masked(0x81, event.to_string().as_bytes()));
    }
}

#[derive(Default)]
pub struct PrivateMessages {
    pub by_text: BTreeMap<String, PrivateMessage>,
}

impl PrivateMessages {
    fn receive(&mut self, user: usize, text: &Value, record: &mut Record) {
        let text = text.as_str().unwrap_or_default();
        let Some(private) = self.by_text.get_mut(text) else {
            return record.fail(ACKNOWLEDGEMENT, format!("nobody has sent {text:?}"));
        };
        let count = private.received.entry(user).or_default();
        *count += 1;
        if *count > 1 || private.is_rejected {
            record.fail(ACKNOWLEDGEMENT, format!("{text:?} was rejected, or arrives twice"));
        }
    }

    fn acknowledge(&mut self, text: &Value) {
        let private = text.as_str().and_then(|text| self.by_text.get_mut(text));
        private.into_iter().for_each(|private| private.is_acknowledged = true);
    }

    fn reject(&mut self, nonce: &str) {
        let private = nonce.strip_prefix('n').and_then(|text| self.by_text.get_mut(text));
        private.into_iter().for_each(|private| private.is_rejected = true);
    }
}
