//! People in the chat, each on one of the three dialects: how they get in, what they say, and exactly what they hear.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{DEADLINE, Frame, RawClient, Server, masked};

/// In an expected object: any time in the format of `time` and `timestamp`.
pub const TIME: &str = "<a time>";

/// The dialect that a [`Person`] speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Events,
    Rooms,
    Presence,
}

pub const DIALECTS: [Dialect; 3] = [Dialect::Events, Dialect::Rooms, Dialect::Presence];

/// A way to go. [`Person::hangs_up`] knows them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A close of 1000, answered by the server.
    Close,
    /// The end of the stream.
    Eof,
    /// A reset.
    Reset,
}

pub struct Person {
    pub client: RawClient,
    dialect: Dialect,
    /// The name that goes with each text on `rooms`; empty for none.
    pub name: String,
    /// How often this person asked whether there was nothing more.
    doubts: u32,
}

/// A server for people who talk a lot.
pub fn chat(args: &[&str]) -> Server {
    Server::start(&[args, &["--rate-limit", "0"]].concat())
}

/// Percent-encodes every byte, so that no character of a name means anything in a query or a path.
pub fn encode(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

pub fn events_path(name: &str, room: &str) -> String {
    format!("/?token=dev-token&username={}&room={}", encode(name), encode(room))
}

pub fn rooms_path(room: &str) -> String {
    format!("/ws/{}?token=dev-token", encode(room))
}

pub fn presence_path(name: &str, id: &str, room: &str) -> String {
    format!("/ws?token=dev-token&username={}&client_id={}&room={}", encode(name), encode(id), encode(room))
}

/// The path of a dialect, for somebody who wants nothing special. On `rooms` nobody has a name before they speak.
pub fn path(dialect: Dialect, name: &str, room: &str) -> String {
    match dialect {
        Dialect::Events => events_path(name, room),
        Dialect::Rooms => rooms_path(room),
        Dialect::Presence => presence_path(name, &format!("{name} in {room}"), room),
    }
}

impl Person {
    /// Somebody at `path`, who speaks `dialect` there under `name`; nothing is read past the upgrade.
    pub fn at(server: &Server, dialect: Dialect, path: &str, name: &str) -> Person {
        Person::new(server.upgrade(path), dialect, name)
    }

    /// Somebody with a connection of their own.
    pub fn new(client: RawClient, dialect: Dialect, name: &str) -> Person {
        Person { client, dialect, name: name.to_owned(), doubts: 0 }
    }

    pub fn joins(server: &Server, dialect: Dialect, name: &str, room: &str) -> Person {
        Person::at(server, dialect, &path(dialect, name, room), name)
    }

    /// On `events`, and the `welcome` has been read.
    pub fn events(server: &Server, name: &str, room: &str) -> Person {
        let mut person = Person::joins(server, Dialect::Events, name, room);
        person.hears_at_least("welcome", json!({"room": room.trim()}));
        person
    }

    /// On `rooms`, and the own join has been read.
    pub fn rooms(server: &Server, name: &str, room: &str) -> Person {
        let mut person = Person::joins(server, Dialect::Rooms, name, room);
        person.hears(json!({"type": "system", "message": "A user joined the chat"}));
        person
    }

    /// On `presence`, and the own join has been read.
    pub fn presence(server: &Server, name: &str, room: &str) -> Person {
        let mut person = Person::joins(server, Dialect::Presence, name, room);
        let heard = person.hear();
        assert_eq!((&heard["type"], &heard["username"]), (&json!("user_joined"), &json!(name)), "{heard}");
        person
    }

    pub fn send(&mut self, text: &str) {
        self.client.send_text(text);
    }

    /// An event with data, whatever the dialect.
    pub fn sends(&mut self, event: &str, data: Value) {
        self.send(&json!({"event": event, "data": data}).to_string());
    }

    /// The message that carries `text` in this person's dialect.
    pub fn message(&self, text: &str) -> String {
        match self.dialect {
            Dialect::Events => json!({"event": "message", "data": {"text": text}}).to_string(),
            Dialect::Rooms if self.name.is_empty() => json!({"text": text}).to_string(),
            Dialect::Rooms => json!({"username": self.name, "text": text}).to_string(),
            Dialect::Presence => text.to_owned(),
        }
    }

    pub fn says(&mut self, text: &str) {
        let message = self.message(text);
        self.send(&message);
    }

    /// What is wrong, in this person's dialect, where nothing was sent with a nonce.
    pub fn error(&self, message: &str) -> Value {
        match self.dialect {
            Dialect::Events => json!({"event": "error", "data": {"message": message}}),
            Dialect::Rooms => json!({"type": "error", "message": message}),
            Dialect::Presence => json!({"error": message}),
        }
    }

    /// A private message, in this person's dialect, without a nonce.
    pub fn private(&self, from: &str, to: &str, text: &str) -> Value {
        match self.dialect {
            Dialect::Events => {
                json!({"event": "private", "data": {"from": from, "to": to, "text": text, "time": TIME}})
            }
            Dialect::Rooms => json!({"type": "private", "from": from, "to": to, "text": text}),
            Dialect::Presence => {
                json!({"type": "private_message", "from": from, "to": to, "text": text, "timestamp": TIME})
            }
        }
    }

    /// A message to the room, in this person's dialect, without a nonce.
    pub fn told(&self, name: &str, text: &str, id: u64) -> Value {
        match self.dialect {
            Dialect::Events => {
                json!({"event": "message", "data": {"username": name, "text": text, "id": id, "time": TIME}})
            }
            Dialect::Rooms => json!({"type": "message", "username": name, "text": text}),
            Dialect::Presence => json!({"type": "chat_message", "username": name, "text": text, "timestamp": TIME}),
        }
    }

    /// The next frame that is not a ping of the server's. Pings are answered, and do not put off the deadline.
    pub fn frame(&mut self) -> Frame {
        let end = Instant::now() + DEADLINE;
        loop {
            let frame = self.client.read_frame();
            if frame.first != 0x89 {
                return frame;
            }
            assert!(Instant::now() < end, "the server says nothing but pings");
            self.client.send(&masked(0x8a, &frame.payload));
        }
    }

    /// The next thing that the server says, whatever it is.
    pub fn hear(&mut self) -> Value {
        serde_json::from_str(self.frame().text()).expect("JSON")
    }

    /// The next thing that the server says is exactly this, no field more or less, but for times and the order of names.
    pub fn hears(&mut self, expected: Value) -> Value {
        let heard = self.hear();
        assert!(same(&expected, &heard), "heard    {heard}\nexpected {expected}");
        heard
    }

    /// The next thing that the server says is this event, with at least these fields in its data. Returns the data.
    pub fn hears_at_least(&mut self, event: &str, data: Value) -> Value {
        let mut heard = self.hear();
        assert_eq!(heard["event"], event, "{heard}");
        for (name, value) in data.as_object().expect("fields") {
            assert!(same(value, &heard["data"][name]), "{name}, expected {value}: {heard}");
        }
        assert!(heard["data"].is_object(), "{heard}");
        heard["data"].take()
    }

    /// The next thing that the server says is an error, in the words of this dialect; returns its text.
    pub fn hears_an_error(&mut self) -> String {
        let heard = self.hear();
        let message = match self.dialect {
            Dialect::Events => &heard["data"]["message"],
            Dialect::Rooms => &heard["message"],
            Dialect::Presence => &heard["error"],
        };
        let message = message.as_str().unwrap_or_else(|| panic!("an error, not {heard}")).to_owned();
        assert!(same(&self.error(&message), &heard), "an error, not {heard}");
        message
    }

    /// Nothing has been said to this person but what was heard already. A ping draws nothing from the rate limit, and its
    /// pong comes behind everything that was sent before it.
    pub fn hears_nothing(&mut self) {
        self.doubts += 1;
        let ping = format!("nothing? {}", self.doubts);
        self.client.send(&masked(0x89, ping.as_bytes()));
        let frame = self.frame();
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(frame.first == 0x8a && text == ping, "something: {text}");
    }

    /// The next thing is a close with this code and this reason, and then the end.
    pub fn sees_the_close(mut self, code: u16, reason: &str) {
        assert_eq!(self.frame().close(), (code, reason.to_owned()));
        self.client.try_send(&masked(0x88, &code.to_be_bytes()));
        self.client.expect_end();
    }

    /// Goes. When this returns after a [`End::Close`], the server has seen it.
    pub fn hangs_up(mut self, how: End) {
        match how {
            End::Close => {
                self.client.send(&masked(0x88, &1000u16.to_be_bytes()));
                while self.frame().opcode() != 8 {}
                self.client.expect_end();
            }
            End::Eof => {
                let _ = self.client.stream.shutdown(Shutdown::Both);
            }
            End::Reset => {
                let socket = socket2::SockRef::from(&self.client.stream);
                socket.set_linger(Some(Duration::ZERO)).expect("a socket option");
            }
        }
    }

    pub fn leaves(self) {
        self.hangs_up(End::Close);
    }
}

/// Whether `heard` is what was expected: the same fields, [`TIME`] for any time, lists of names in any order.
pub fn same(expected: &Value, heard: &Value) -> bool {
    match (expected, heard) {
        (Value::String(word), Value::String(time)) if word == TIME => is_time(time),
        (Value::Object(expected), Value::Object(heard)) => {
            expected.len() == heard.len()
                && expected.iter().all(|(name, value)| heard.get(name).is_some_and(|heard| same(value, heard)))
        }
        (Value::Array(expected), Value::Array(heard)) if expected.iter().chain(heard).all(Value::is_string) => {
            let sorted = |list: &[Value]| {
                let mut names: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                names.sort();
                names
            };
            sorted(expected) == sorted(heard)
        }
        (Value::Array(expected), Value::Array(heard)) => {
            expected.len() == heard.len() && expected.iter().zip(heard).all(|(expected, heard)| same(expected, heard))
        }
        _ => expected == heard,
    }
}

/// RFC 3339, UTC, milliseconds.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z" && humantime::parse_rfc3339(text).is_ok()
}
