//! Chat users for tests. A user joins in one of three dialects, sends commands, and checks what the server sends.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{DEADLINE, Frame, RawClient, Server, masked};

/// A placeholder in expected JSON that matches any time in the format of `time` and `timestamp`.
pub const ANY_TIME: &str = "<a time>";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Events,
    Rooms,
    Presence,
}

pub const DIALECTS: [Dialect; 3] = [Dialect::Events, Dialect::Rooms, Dialect::Presence];

/// The ways in which [`User::disconnect`] can end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A Close frame with code 1000. The server replies with its own Close.
    Close,
    /// The end of the TCP stream, without a Close frame.
    Eof,
    /// A TCP reset (RST), without a Close frame.
    Reset,
}

pub struct User {
    pub client: RawClient,
    dialect: Dialect,
    /// The username in each message of the `rooms` dialect. If empty, messages contain no username.
    pub name: String,
    /// The number of Pings that [`User::expect_nothing`] has sent.
    pings: u32,
}

/// Starts a server without a rate limit.
pub fn chat(args: &[&str]) -> Server {
    Server::start(&[args, &["--rate-limit", "0"]].concat())
}

/// Percent-encodes every byte, so that no character of a name is special in a query or a path.
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

/// Returns the request target for a join in `dialect`. In the `rooms` dialect, it contains no username.
pub fn path(dialect: Dialect, name: &str, room: &str) -> String {
    match dialect {
        Dialect::Events => events_path(name, room),
        Dialect::Rooms => rooms_path(room),
        Dialect::Presence => presence_path(name, &format!("{name} in {room}"), room),
    }
}

impl User {
    /// Upgrades a new connection, with `path` as the request target. Reads no frames.
    pub fn at(server: &Server, dialect: Dialect, path: &str, name: &str) -> User {
        User::new(server.upgrade(path), dialect, name)
    }

    pub fn new(client: RawClient, dialect: Dialect, name: &str) -> User {
        User { client, dialect, name: name.to_owned(), pings: 0 }
    }

    pub fn join(server: &Server, dialect: Dialect, name: &str, room: &str) -> User {
        User::at(server, dialect, &path(dialect, name, room), name)
    }

    /// Joins in the `events` dialect and reads the `welcome` event.
    pub fn events(server: &Server, name: &str, room: &str) -> User {
        let mut user = User::join(server, Dialect::Events, name, room);
        user.expect_event("welcome", json!({"room": room.trim()}));
        user
    }

    /// Joins in the `rooms` dialect and reads the event about the user's own join.
    pub fn rooms(server: &Server, name: &str, room: &str) -> User {
        let mut user = User::join(server, Dialect::Rooms, name, room);
        user.expect_message(json!({"type": "system", "message": "A user joined the chat"}));
        user
    }

    /// Joins in the `presence` dialect and reads the event about the user's own join.
    pub fn presence(server: &Server, name: &str, room: &str) -> User {
        let mut user = User::join(server, Dialect::Presence, name, room);
        let received = user.receive();
        assert_eq!((&received["type"], &received["username"]), (&json!("user_joined"), &json!(name)), "{received}");
        user
    }

    pub fn send(&mut self, text: &str) {
        self.client.send_text(text);
    }

    /// Sends a command in the format of the `events` dialect, even if the user joined in another dialect.
    pub fn send_event(&mut self, event: &str, data: Value) {
        self.send(&json!({"event": event, "data": data}).to_string());
    }

    /// The command that sends `text` to the room, in the user's dialect.
    pub fn message(&self, text: &str) -> String {
        match self.dialect {
            Dialect::Events => json!({"event": "message", "data": {"text": text}}).to_string(),
            Dialect::Rooms if self.name.is_empty() => json!({"text": text}).to_string(),
            Dialect::Rooms => json!({"username": self.name, "text": text}).to_string(),
            Dialect::Presence => text.to_owned(),
        }
    }

    pub fn send_message(&mut self, text: &str) {
        let message = self.message(text);
        self.send(&message);
    }

    /// The event for an error without a nonce, in the user's dialect.
    pub fn error(&self, message: &str) -> Value {
        match self.dialect {
            Dialect::Events => json!({"event": "error", "data": {"message": message}}),
            Dialect::Rooms => json!({"type": "error", "message": message}),
            Dialect::Presence => json!({"error": message}),
        }
    }

    /// The event for a private message without a nonce, in the user's dialect.
    pub fn private_message(&self, from: &str, to: &str, text: &str) -> Value {
        match self.dialect {
            Dialect::Events => {
                json!({"event": "private", "data": {"from": from, "to": to, "text": text, "time": ANY_TIME}})
            }
            Dialect::Rooms => json!({"type": "private", "from": from, "to": to, "text": text}),
            Dialect::Presence => {
                json!({"type": "private_message", "from": from, "to": to, "text": text, "timestamp": ANY_TIME})
            }
        }
    }

    /// The event for a room message without a nonce, in the user's dialect.
    pub fn room_message(&self, name: &str, text: &str, id: u64) -> Value {
        match self.dialect {
            Dialect::Events => {
                json!({"event": "message", "data": {"username": name, "text": text, "id": id, "time": ANY_TIME}})
            }
            Dialect::Rooms => json!({"type": "message", "username": name, "text": text}),
            Dialect::Presence => json!({"type": "chat_message", "username": name, "text": text, "timestamp": ANY_TIME}),
        }
    }

    /// Reads the next frame other than a Ping. Replies to Pings. Fails if only Pings arrive for [`DEADLINE`].
    pub fn frame(&mut self) -> Frame {
        let end = Instant::now() + DEADLINE;
        loop {
            let frame = self.client.read_frame();
            if frame.first != 0x89 {
                return frame;
            }
            assert!(Instant::now() < end, "the server sends nothing but Pings");
            self.client.send(&masked(0x8a, &frame.payload));
        }
    }

    /// Reads the next message and parses its JSON.
    pub fn receive(&mut self) -> Value {
        serde_json::from_str(self.frame().text()).expect("JSON")
    }

    /// Asserts that the next message equals `expected`, according to [`same`]. Returns the message.
    pub fn expect_message(&mut self, expected: Value) -> Value {
        let received = self.receive();
        assert!(same(&expected, &received), "received {received}\nexpected {expected}");
        received
    }

    /// Asserts that the next message is the event `event` with at least the fields of `data`. Returns its data.
    pub fn expect_event(&mut self, event: &str, data: Value) -> Value {
        let mut received = self.receive();
        assert_eq!(received["event"], event, "{received}");
        for (name, value) in data.as_object().expect("fields") {
            assert!(same(value, &received["data"][name]), "{name}, expected {value}: {received}");
        }
        assert!(received["data"].is_object(), "{received}");
        received["data"].take()
    }

    /// Asserts that the next message is an error event in the user's dialect. Returns the error text.
    pub fn expect_error(&mut self) -> String {
        let received = self.receive();
        let message = match self.dialect {
            Dialect::Events => &received["data"]["message"],
            Dialect::Rooms => &received["message"],
            Dialect::Presence => &received["error"],
        };
        let message = message.as_str().unwrap_or_else(|| panic!("an error, not {received}")).to_owned();
        assert!(same(&self.error(&message), &received), "an error, not {received}");
        message
    }

    /// Asserts that no unread message is left: sends a Ping, and expects the Pong as the next frame. Pings do not count
    /// towards the rate limit.
    pub fn expect_nothing(&mut self) {
        self.pings += 1;
        let ping = format!("nothing? {}", self.pings);
        self.client.send(&masked(0x89, ping.as_bytes()));
        let frame = self.frame();
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(frame.first == 0x8a && text == ping, "an unexpected message: {text}");
    }

    /// Asserts that the next frame is a Close with `code` and `reason`, and that the server then ends the stream.
    pub fn expect_close(mut self, code: u16, reason: &str) {
        assert_eq!(self.frame().close(), (code, reason.to_owned()));
        self.client.try_send(&masked(0x88, &code.to_be_bytes()));
        self.client.expect_end();
    }

    /// Ends the connection. With [`End::Close`], waits until the server has ended the TCP stream.
    pub fn disconnect(mut self, how: End) {
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

    pub fn leave(self) {
        self.disconnect(End::Close);
    }
}

/// Whether `received` equals `expected`, where [`ANY_TIME`] matches any time, and lists of strings match in any order.
pub fn same(expected: &Value, received: &Value) -> bool {
    match (expected, received) {
        (Value::String(word), Value::String(time)) if word == ANY_TIME => is_time(time),
        (Value::Object(expected), Value::Object(received)) => {
            expected.len() == received.len()
                && expected.iter().all(|(name, value)| received.get(name).is_some_and(|received| same(value, received)))
        }
        (Value::Array(expected), Value::Array(received)) if expected.iter().chain(received).all(Value::is_string) => {
            let sorted = |list: &[Value]| {
                let mut names: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
                names.sort();
                names
            };
            sorted(expected) == sorted(received)
        }
        (Value::Array(expected), Value::Array(received)) => {
            expected.len() == received.len()
                && expected.iter().zip(received).all(|(expected, received)| same(expected, received))
        }
        _ => expected == received,
    }
}

/// Whether `text` is an RFC 3339 time in UTC with milliseconds.
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z" && humantime::parse_rfc3339(text).is_ok()
}
