//! Several instances of the server that share one Redis.
#![allow(dead_code)] // each test binary uses only part of this module

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::redis_server::{Persistence, RedisServer};
use crate::support::http::{get, response};
use crate::support::users::{Dialect, User, chat, encode, events_path};
use crate::support::{Server, wait_until};

pub struct Cluster {
    pub servers: Vec<Server>,
    pub redis: RedisServer,
}

impl Cluster {
    /// Starts Redis and `count` instances, and waits until the instances accept clients. Returns `None` on a machine
    /// without Redis.
    pub fn start(count: usize, args: &[&str]) -> Option<Cluster> {
        Cluster::with(RedisServer::start(Persistence::Always)?, count, args).into()
    }

    pub fn with(redis: RedisServer, count: usize, args: &[&str]) -> Cluster {
        let servers = (0..count).map(|_| instance(&redis.url(), args)).collect();
        Cluster { servers, redis }
    }

    pub fn at(&self, index: usize) -> &Server {
        &self.servers[index]
    }
}

/// Starts an instance, and waits until it accepts clients.
pub fn instance(url: &str, args: &[&str]) -> Server {
    let server = launch(url, args);
    wait_until_ready(&server);
    server
}

/// Starts an instance without waiting until it accepts clients.
pub fn launch(url: &str, args: &[&str]) -> Server {
    chat(&[&["--redis", url], args].concat())
}

pub fn wait_until_ready(server: &Server) {
    wait_until("the instance accepts clients", || is_ready(server));
}

/// Whether the instance accepts chat handshakes. While it does not, it rejects them with 503.
pub fn is_ready(server: &Server) -> bool {
    let tokens = ["dev-token", "secret-any"].map(|token| get(&format!("/check?token={token}")));
    tokens.iter().any(|request| response(server, request).body.contains(r#""status":101"#))
}

pub fn kill(server: &mut Server) {
    kill_process(Pid::from_raw(server.pid().cast_signed()).expect("a process"), Signal::KILL).expect("it runs");
    server.wait();
}

/// Joins a room. `resume` contains the resume parameters of the URL, if any. Returns the user and the data of the
/// `welcome` event.
pub fn join(server: &Server, name: &str, room: &str, resume: &str) -> (User, Value) {
    let path = format!("{}{resume}", events_path(name, room));
    let mut user = User::at(server, Dialect::Events, &path, name);
    let welcome = user.expect_event("welcome", json!({"room": room}));
    (user, welcome)
}

/// Joins as user `guest`, leaves again, and returns the data of the `welcome` event.
pub fn welcome(server: &Server, room: &str, resume: &str) -> Value {
    let (user, welcome) = join(server, "guest", room, resume);
    user.leave();
    welcome
}

/// Returns the URL parameters for resuming after message `id` of this epoch.
pub fn since(epoch: &Value, id: u64) -> String {
    format!("&epoch={}&since={id}", encode(epoch.as_str().expect("an epoch")))
}

/// Skips events until an event named `event` arrives. Returns the data of this event.
pub fn next(user: &mut User, event: &str) -> Value {
    loop {
        let mut received = user.receive();
        if received["event"] == event {
            return received["data"].take();
        }
    }
}

pub fn ids(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().unwrap_or_else(|| panic!("a list of messages: {messages}"));
    messages.iter().map(|message| message["id"].as_u64().expect("an id")).collect()
}

/// Returns the names of the members, sorted.
pub fn names(members: &Value) -> Vec<String> {
    let members = members.as_array().unwrap_or_else(|| panic!("a list of names: {members}"));
    let mut names: Vec<String> = members.iter().map(|name| name.as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

/// Sends a message with its text as its nonce.
pub fn send_with_nonce(user: &mut User, text: &str) {
    user.send_event("message", json!({"text": text, "nonce": text}));
}

/// Sends a message and receives its event, skipping all events before it. Returns the event's data.
pub fn publish(user: &mut User, text: &str) -> Value {
    send_with_nonce(user, text);
    loop {
        let message = next(user, "message");
        if message["text"] == text {
            return message;
        }
    }
}
