//! Tests failures of instances and of Redis (PROTOCOL.md, "Several instances"): which events the clients receive, and
//! whether their messages are published.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/redis_server.rs"]
mod redis_server;
mod support;

use std::io::Write;
#[cfg(feature = "metrics")]
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use cluster::{Cluster, instance, is_ready, join, kill, launch, names, next, publish, send_with_nonce, since, welcome};
use proxy::Proxy;
use redis_server::{Persistence, RedisServer};
use serde_json::{Value, json};
#[cfg(feature = "metrics")]
use support::RawClient;
use support::http::{get, handshake, response};
use support::users::{DIALECTS, Dialect, User};
use support::{Frame, Server, masked, wait_until};

/// An instance must be silent for longer than this before the other instances may declare it dead.
const MIN_SILENCE: Duration = Duration::from_secs(3);
const NOT_STORED: &str = "Message not stored";

fn event(event: &str, name: &str) -> Value {
    json!({"event": event, "data": {"username": name}})
}

/// How the server responds to a client's message: with an event, with an error, or by closing the connection.
enum Outcome {
    /// The server stored the message and sent its `message` event. The value is that event's `data`.
    Published(Value),
    NotStored,
    /// The server closed the connection with 1013: the client must send the message again, with the same nonce.
    Unknown,
}

/// Waits for the outcome of the message that the user sent with `nonce`. Adds events that arrive in the meantime to
/// `others`.
fn wait_for_outcome(user: &mut User, nonce: &str, others: &mut Vec<Value>) -> Outcome {
    loop {
        let frame = user.frame();
        if frame.opcode() == 8 {
            assert_eq!(frame.close().0, 1013, "{:?}", frame.close());
            return Outcome::Unknown;
        }
        let mut event = json_of(&frame);
        match event["event"].as_str() {
            _ if event["data"]["nonce"] != nonce => others.push(event),
            Some("message") => return Outcome::Published(event["data"].take()),
            Some("error") => {
                assert_eq!(event["data"]["message"], NOT_STORED);
                return Outcome::NotStored;
            }
            _ => panic!("not an answer to {nonce}: {event}"),
        }
    }
}

fn json_of(frame: &Frame) -> Value {
    serde_json::from_str(frame.text()).expect("JSON")
}

/// Joins `room` as a guest. Returns all members except guests, because earlier guests may not have left yet.
fn members(server: &Server, room: &str) -> Vec<String> {
    let mut members = names(&welcome(server, room, "")["members"]);
    members.retain(|name| name != "guest");
    members
}

/// Sends messages until one is published, and waits until `to` has received that message. Every attempt has a new
/// nonce, so that a late error for one attempt is not taken for the result of the next.
fn wait_for_delivery(from: &mut User, to: &mut User) -> Value {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let mut delivered = Value::Null;
    wait_until("messages are delivered again", || {
        let text = format!("again {}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        send_with_nonce(from, &text);
        match wait_for_outcome(from, &text, &mut Vec::new()) {
            Outcome::Published(message) => delivered = message,
            Outcome::NotStored => {}
            Outcome::Unknown => panic!("the outcome of {text:?} is unknown, and Redis is available"),
        }
        delivered != Value::Null
    });
    loop {
        if next(to, "message")["text"] == delivered["text"] {
            return delivered;
        }
    }
}

/// Checks that the server replies to a Ping, and that every event before the Pong is about a user named `guest`.
fn check_only_guest_events(user: &mut User) {
    user.client.send(&support::masked(0x89, b"only guests?"));
    loop {
        let frame = user.frame();
        if frame.first == 0x8a {
            assert_eq!(frame.payload, b"only guests?");
            return;
        }
        let event = json_of(&frame);
        assert_eq!(event["data"]["username"], "guest", "{event}");
    }
}

// --------------------------------------------------------------------------------------------------- instance failures

#[test]
fn a_graceful_stop_sends_left_promptly() {
    // After a crash, the other instances take at least 3 s to send `left`. After a graceful stop, they must be faster.
    // Because a busy machine may delay a graceful stop, try up to three times: one fast stop is enough.
    let is_prompt = (0..3).any(|_| {
        let Some(mut cluster) = Cluster::start(2, &[]) else { return true };
        let mut ann = User::events(cluster.at(0), "ann", "general");
        let mut users = DIALECTS.map(|dialect| User::join(cluster.at(1), dialect, "bob", "general"));
        for user in &mut users {
            user.receive();
            ann.receive();
        }
        let start = Instant::now();
        cluster.at(1).signal("TERM");
        let mut left: Vec<Value> = (0..3).map(|_| next(&mut ann, "left")["username"].clone()).collect();
        let elapsed = start.elapsed();
        left.sort_by_key(ToString::to_string);
        assert_eq!(left, ["Anonymous", "bob", "bob"]);
        drop(users);
        assert!(cluster.servers[1].wait().success());
        assert_eq!(members(cluster.at(0), "general"), ["ann"]);
        elapsed < MIN_SILENCE
    });
    assert!(is_prompt, "the others notice a stop before they would notice a crash");
}

/// A drain closes connections in steps, and each step first waits until no message is pending. If Redis does not
/// respond, the drain must skip this wait, which would otherwise last until the messages expire.
#[test]
fn a_drain_without_redis() {
    let Some(mut cluster) = Cluster::start(1, &["--drain", "2"]) else { return };
    let mut users: Vec<User> = (0..10).map(|i| User::events(cluster.at(0), &format!("user-{i}"), "general")).collect();
    cluster.redis.stop();
    cluster.at(0).signal("TERM");
    let message = masked(0x81, br#"{"event":"message","data":{"text":"Hi","nonce":"n"}}"#);
    wait_until("the server exits", || {
        for user in &mut users {
            let _ = user.client.stream.write(&message); // fails if the server has already closed this connection
        }
        !cluster.servers[0].is_running()
    });
    cluster.redis.resume();
}

/// Users on other instances receive `left` once for each client of a killed instance. Those clients' usernames are then
/// available again.
#[test]
fn a_killed_instance() {
    let Some(mut cluster) = Cluster::start(3, &["--unique-names"]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "general");
    let mut eve = User::events(cluster.at(1), "eve", "general");
    let (mut bob, _) = join(cluster.at(2), "bob", "general", "");
    let _elsewhere = User::events(cluster.at(2), "carol", "elsewhere");
    publish(&mut bob, "last words");
    let start = Instant::now();
    kill(&mut cluster.servers[2]);
    for user in [&mut ann, &mut eve] {
        assert_eq!(next(user, "message")["text"], "last words");
        user.expect_message(event("left", "bob"));
        let elapsed = start.elapsed();
        assert!(elapsed >= MIN_SILENCE, "silence under 3 s does not count: {elapsed:?}");
        println!("bob left after {:.1} s", elapsed.as_secs_f64());
    }
    assert_eq!(members(cluster.at(0), "general"), ["ann", "eve"]);
    wait_until("carol is gone", || members(cluster.at(1), "elsewhere").is_empty());
    User::events(cluster.at(1), "carol", "elsewhere").leave();
    let mut bob = User::events(cluster.at(0), "bob", "general");
    publish(&mut bob, "back");
    // No user receives `left` for bob a second time.
    for user in [&mut ann, &mut eve] {
        loop {
            let received = user.receive();
            if received["data"]["text"] == "back" {
                break;
            }
            let is_guest = ["guest", "carol"].iter().any(|name| received["data"]["username"] == *name);
            assert!(is_guest || received == event("joined", "bob"), "{received}");
        }
    }
}

/// If an instance is suspended for less than 3 s, no user receives `left` for its clients, and no message is lost.
#[test]
fn an_instance_that_is_suspended_briefly() {
    loop {
        let Some(cluster) = Cluster::start(2, &[]) else { return };
        let mut ann = User::events(cluster.at(0), "ann", "general");
        let mut bob = User::events(cluster.at(1), "bob", "general");
        ann.expect_message(event("joined", "bob"));
        let start = Instant::now();
        cluster.at(1).signal("STOP");
        let sent: Vec<Value> = (0..5).map(|text| publish(&mut ann, &text.to_string())).collect();
        std::thread::sleep(Duration::from_millis(2300));
        cluster.at(1).signal("CONT");
        for message in sent {
            bob.expect_event("message", message);
        }
        if start.elapsed() > Duration::from_millis(2800) {
            continue; // the machine is busy and the suspension lasted too long: try again
        }
        // If the instance were declared dead, `left` would arrive within 5 s of its suspension, so check for 8 s.
        while start.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(500));
            let text = format!("{:?}", start.elapsed());
            publish(&mut bob, &text);
            ann.expect_event("message", json!({"text": text}));
        }
        break;
    }
}

/// If an instance is suspended for a long time, users on other instances see its clients leave and then join again. The
/// instance's own clients receive every message, but no `left` or `joined` events.
#[test]
fn an_instance_that_is_suspended_for_long() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "general");
    let mut bob = User::events(cluster.at(1), "bob", "general");
    let mut ron = User::rooms(cluster.at(1), "ron", "general");
    for name in ["bob", "Anonymous"] {
        ann.expect_message(event("joined", name));
    }
    bob.expect_message(event("joined", "Anonymous"));
    cluster.at(1).signal("STOP");
    let mut sent = vec![publish(&mut ann, "one")];
    let mut gone: Vec<Value> = (0..2).map(|_| ann.expect_event("left", json!({}))["username"].clone()).collect();
    gone.sort_by_key(ToString::to_string);
    assert_eq!(gone, ["Anonymous", "bob"]);
    assert_eq!(members(cluster.at(0), "general"), ["ann"]);
    sent.extend(["two", "three"].map(|text| publish(&mut ann, text)));
    cluster.at(1).signal("CONT");
    let mut back: Vec<Value> = (0..2).map(|_| next(&mut ann, "joined")["username"].clone()).collect();
    back.sort_by_key(ToString::to_string);
    assert_eq!(back, ["Anonymous", "bob"]);
    for message in sent {
        let message = loop {
            let received = bob.receive();
            if received["data"]["username"] != "guest" {
                break (received, message);
            }
        };
        assert_eq!(message.0, json!({"event": "message", "data": message.1}));
    }
    for text in ["one", "two", "three"] {
        while ron.receive() != ron.room_message("ann", text, 0) {}
    }
    wait_until("the members are complete", || members(cluster.at(0), "general") == ["Anonymous", "ann", "bob"]);
    publish(&mut bob, "still here");
    assert_eq!(next(&mut ann, "message")["text"], "still here");
    for user in [&mut ann, &mut bob] {
        check_only_guest_events(user);
    }
}

/// Starts two instances. The first instance connects to Redis through a proxy, which can cut the connection.
fn start_with_proxy(redis: &RedisServer, args: &[&str]) -> (Server, Proxy, Server) {
    let proxy = Proxy::to(redis.addr());
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], proxy.port()));
    (instance(&redis.url_via(addr), args), proxy, instance(&redis.url(), args))
}

/// An instance that cannot reach Redis rejects new clients and messages. After the instance has reconnected, its
/// clients receive the messages that they missed.
#[test]
fn an_instance_that_is_cut_off() {
    let Some(redis) = RedisServer::start(Persistence::Always) else { return };
    let (lonely, proxy, other) = start_with_proxy(&redis, &[]);
    let mut bob = User::events(&lonely, "bob", "general");
    let mut ann = User::events(&other, "ann", "general");
    bob.expect_message(event("joined", "ann"));
    proxy.cut();
    wait_until("no new client is accepted", || !is_ready(&lonely));
    send_with_nonce(&mut bob, "lost");
    assert!(
        matches!(wait_for_outcome(&mut bob, "lost", &mut Vec::new()), Outcome::NotStored),
        "Redis never received the message"
    );
    ann.expect_message(event("left", "bob"));
    assert!(is_ready(&other));
    let sent: Vec<Value> = (0..10).map(|text| publish(&mut ann, &text.to_string())).collect();
    bob.expect_nothing();
    proxy.restore();
    for message in sent {
        bob.expect_event("message", message);
    }
    ann.expect_message(event("joined", "bob"));
    wait_until("new clients are accepted", || is_ready(&lonely));
    assert_eq!(members(&lonely, "general"), ["ann", "bob"]);
    let message = wait_for_delivery(&mut bob, &mut ann);
    assert_eq!(message["id"], 11, "the rejected message never appears");
}

/// While an instance is cut off from Redis, a room receives more messages than its history keeps. Afterwards, the
/// instance's clients must receive each message or, in place of the missing ones, a `switched` event with the room's
/// current history. The room's epoch must not change.
#[test]
fn an_instance_that_missed_too_much() {
    const COUNT: u64 = 3000;
    let Some(redis) = RedisServer::start(Persistence::Off) else { return };
    let (lonely, proxy, other) = start_with_proxy(&redis, &["--history", "5"]);
    let (mut bob, first) = join(&lonely, "bob", "general", "");
    let mut ann = User::events(&other, "ann", "general");
    bob.expect_message(event("joined", "ann"));
    publish(&mut ann, "one");
    bob.expect_event("message", json!({"id": 1}));
    proxy.cut();
    wait_until("the instance notices the cut", || !is_ready(&lonely));
    (2..=COUNT).for_each(|text| ann.send_message(&text.to_string()));
    while next(&mut ann, "message")["id"] != COUNT {}
    proxy.restore();
    let mut last = 1;
    while last < COUNT {
        let event = bob.receive();
        let data = &event["data"];
        match event["event"].as_str().unwrap() {
            "message" => assert_eq!(data["id"], last + 1, "a silent gap: {event}"),
            "switched" => {
                assert_eq!((&data["epoch"], &data["room"]), (&first["epoch"], &json!("general")), "{event}");
                assert_eq!(names(&data["members"]), ["ann"], "{event}");
                let history = data["history"].as_array().unwrap();
                let (first, end) = (history[0]["id"].as_u64().unwrap(), data["last_id"].as_u64().unwrap());
                assert!(first > last + 1 && history.len() == 5 && end == first + 4, "{event}");
                last = end;
                continue;
            }
            "joined" | "left" => continue,
            _ => panic!("{event}"),
        }
        last = data["id"].as_u64().unwrap();
    }
    let message = wait_for_delivery(&mut ann, &mut bob);
    assert_eq!(message["id"], COUNT + 1);
}

// ------------------------------------------------------------------------------------------------------- Redis outages

#[test]
fn redis_is_absent_at_start() {
    let Some(mut redis) = RedisServer::prepare(Persistence::Always, None, &[]) else { return };
    let server = launch(&redis.url(), &[]);
    wait_until("one log line", || server.log().to_lowercase().contains("redis"));
    check_cut_off(&server);
    assert_eq!(
        server.log().lines().filter(|line| line.to_lowercase().contains("redis")).count(),
        1,
        "{}",
        server.log()
    );
    redis.launch();
    wait_until("the instance is ready", || is_ready(&server));
    let mut ann = User::events(&server, "ann", "general");
    publish(&mut ann, "hello");
}

/// Checks an instance that cannot reach Redis: the instance rejects chat handshakes, and everything else works.
fn check_cut_off(server: &Server) {
    for target in ["/?token=dev-token", "/ws/general?token=dev-token", "/ws?token=dev-token&username=p&client_id=1"] {
        let rejection = response(server, &handshake().target(target));
        assert_eq!(rejection.status, 503, "{target}: {rejection:?}");
        assert!(rejection.header("Retry-After").parse::<u64>().is_ok_and(|seconds| seconds > 0), "{rejection:?}");
    }
    assert_eq!(server.status(&handshake().target("/?token=wrong")), 401, "the token is checked first");
    for target in ["/", "/health"] {
        assert_eq!(server.status(&get(target)), 200, "{target}");
    }
    let mut echo = server.upgrade("/echo?token=dev-token");
    echo.send_text("hello?");
    assert_eq!(echo.read_text(), "hello?");
}

#[cfg(feature = "metrics")]
#[test]
fn readiness() {
    let Some(mut cluster) = Cluster::start(1, &["--admin", "127.0.0.1:0"]) else { return };
    let mut admin: Option<SocketAddr> = None;
    wait_until("the banner shows the admin address", || {
        let printed = cluster.at(0).printed();
        let address = printed.split_once("admin:").and_then(|(_, rest)| rest.split_once("http://"));
        admin = address.and_then(|(_, rest)| rest.split_once("/\n")?.0.parse().ok());
        admin.is_some()
    });
    let admin = admin.unwrap();
    let status = |path: &str| {
        let mut client = RawClient::new(TcpStream::connect(admin).unwrap());
        client.send(&get(path).bytes());
        let response = client.read_response();
        (response.status, response.body)
    };
    wait_until("ready", || status("/ready").0 == 200);
    cluster.redis.kill();
    wait_until("not ready", || {
        let (code, body) = status("/ready");
        assert_eq!(status("/live").0, 200);
        code == 503 && body.to_lowercase().contains("redis")
    });
    cluster.redis.launch();
    wait_until("ready again", || status("/ready").0 == 200);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Outage {
    /// Redis is not running: the kernel refuses connections.
    Killed,
    /// Redis is suspended: connections stay open, but Redis does not reply.
    Stopped,
    /// Redis replies to every write with an error.
    RejectsWrites,
}

impl Outage {
    fn begin(self, redis: &mut RedisServer) {
        match self {
            Outage::Killed => redis.kill(),
            Outage::Stopped => redis.stop(),
            Outage::RejectsWrites => drop(redis.run(&["CONFIG", "SET", "min-replicas-to-write", "1"])),
        }
    }

    fn end(self, redis: &mut RedisServer) {
        match self {
            Outage::Killed => redis.launch(),
            Outage::Stopped => redis.resume(),
            Outage::RejectsWrites => drop(redis.run(&["CONFIG", "SET", "min-replicas-to-write", "0"])),
        }
    }
}

/// Checks that a server that has noticed the outage replies with an error to every command but `typing`.
fn check_commands_are_rejected(ann: &mut User, ron: &mut User, pat: &mut User) {
    ann.send_event("typing", json!({}));
    send_with_nonce(ann, "lost");
    ann.send_event("private", json!({"to": "bob", "text": "lost", "nonce": "private"}));
    ann.send_event("switch_room", json!({"room": "elsewhere"}));
    ann.send_event("history", json!({"before": 10}));
    ron.send_message("lost");
    pat.send_message("lost");
    for nonce in [Some("lost"), Some("private"), None, None] {
        let data = ann.expect_event("error", json!({}));
        assert_eq!(data.get("nonce").and_then(Value::as_str), nonce, "{data}");
        if nonce.is_some() {
            assert_eq!(data["message"], NOT_STORED);
        }
    }
    for user in [ron, pat] {
        assert_eq!(user.expect_error(), NOT_STORED);
    }
}

/// Checks everything that PROTOCOL.md says about a Redis outage. The clients of both instances stay connected.
fn check_outage(kind: Outage) {
    let Some(mut cluster) = Cluster::start(2, &[]) else { return };
    let (mut ann, first) = join(cluster.at(0), "ann", "general", "");
    let mut bob = User::events(cluster.at(1), "bob", "general");
    let mut ron = User::rooms(cluster.at(1), "ron", "general");
    let mut pat = User::presence(cluster.at(0), "pat", "general");
    publish(&mut ann, "before");
    assert_eq!(next(&mut bob, "message")["text"], "before");
    while ron.receive() != ron.room_message("ann", "before", 0) {}
    while pat.receive()["type"] != "chat_message" {}
    bob.expect_nothing();

    kind.begin(&mut cluster.redis);
    wait_until("new clients are rejected", || cluster.servers.iter().all(|server| !is_ready(server)));
    cluster.servers.iter().for_each(check_cut_off);
    let start = Instant::now();
    check_commands_are_rejected(&mut ann, &mut ron, &mut pat);
    println!("{kind:?}: rejected within {:?}", start.elapsed());
    for user in [&mut ann, &mut bob, &mut ron, &mut pat] {
        user.expect_nothing();
    }

    // Wait long enough that the instances would be declared dead if the outage counted as silence.
    while start.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(100));
    }
    kind.end(&mut cluster.redis);
    let start = Instant::now();
    let message = wait_for_delivery(&mut ann, &mut bob);
    println!("{kind:?}: delivered {:?} after the end", start.elapsed());
    assert_eq!(message["id"], 2, "the rejected messages never appear");
    ron.expect_message(ron.room_message("ann", message["text"].as_str().unwrap(), 2));
    pat.expect_message(pat.room_message("ann", message["text"].as_str().unwrap(), 2));
    wait_for_delivery(&mut bob, &mut ann);
    // No user has left, joined or switched rooms, not even ann, whose `switch_room` was rejected.
    for server in &cluster.servers {
        wait_until("new clients are accepted", || is_ready(server));
        assert_eq!(members(server, "general"), ["Anonymous", "ann", "bob", "pat"]);
        assert!(members(server, "elsewhere").is_empty());
    }
    for user in [&mut ann, &mut bob] {
        check_only_guest_events(user);
    }
    for server in &cluster.servers {
        let back = welcome(server, "general", &since(&first["epoch"], 1));
        assert_eq!(back["resumed"], true, "the epoch from before the outage is valid: {back}");
        assert_eq!(back["history"][0], message);
    }
    // A client may reuse the nonce of a rejected message.
    send_with_nonce(&mut ann, "lost");
    assert_eq!(next(&mut ann, "message")["id"], 4);
}

#[test]
fn redis_is_killed() {
    check_outage(Outage::Killed);
}

#[test]
fn redis_is_stopped() {
    check_outage(Outage::Stopped);
}

#[test]
fn redis_rejects_writes() {
    check_outage(Outage::RejectsWrites);
}

/// A client that sends one message just before Redis fails and one just after. Each text begins with the client's name,
/// so that no two clients send the same text.
struct Sender {
    name: String,
    /// `None` once the server has closed this client's connection with 1013.
    user: Option<User>,
    welcome: Value,
    published: Vec<Value>,
    rejected: Vec<String>,
}

impl Sender {
    fn read_outcomes(&mut self) {
        for word in ["one", "two"] {
            let (nonce, user) = (format!("{} {word}", self.name), self.user.as_mut().expect("a connection"));
            match wait_for_outcome(user, &nonce, &mut Vec::new()) {
                Outcome::Published(message) => self.published.push(message),
                Outcome::NotStored => self.rejected.push(nonce),
                Outcome::Unknown => {
                    self.user = None;
                    break;
                }
            }
        }
    }

    /// The client has sent two messages. If the outcome of either is unknown, the client resumes its session on
    /// `server` and sends both again. Returns the texts of this client's messages that the room must now contain.
    fn resume_and_resend(&mut self, server: &Server) -> Vec<String> {
        let mut texts: Vec<String> = ["one", "two"].map(|word| format!("{} {word}", self.name)).into();
        if self.user.is_some() {
            texts.retain(|text| !self.rejected.contains(text));
            return texts;
        }
        let session = self.welcome["session"].as_str().unwrap();
        let resume = format!("{}&session={session}", since(&self.welcome["epoch"], 0));
        let (mut user, welcome) = join(server, &self.name, "general", &resume);
        assert_eq!(welcome["resumed"], true, "{welcome}");
        texts.iter().for_each(|text| drop(publish(&mut user, text)));
        self.user = Some(user);
        texts
    }
}

/// When Redis fails, a client receives an event or an error for each message in flight, or the server closes the
/// connection with 1013. After 1013, the client sends its messages again, with the same nonces.
#[test]
fn messages_of_unknown_fate() {
    for kind in [Outage::Stopped, Outage::Killed] {
        let Some(mut cluster) = Cluster::start(2, &[]) else { return };
        let mut witness = User::events(cluster.at(1), "witness", "general");
        let sender = |i| {
            let name = format!("user-{i}");
            let (user, welcome) = join(cluster.at(0), &name, "general", "");
            Sender { name, user: Some(user), welcome, published: Vec::new(), rejected: Vec::new() }
        };
        let mut senders: Vec<Sender> = (0..6).map(sender).collect();
        let send = |senders: &mut [Sender], word: &str| {
            for Sender { name, user, .. } in senders {
                send_with_nonce(user.as_mut().unwrap(), &format!("{name} {word}"));
            }
        };
        send(&mut senders, "one");
        kind.begin(&mut cluster.redis);
        send(&mut senders, "two");
        senders.iter_mut().for_each(Sender::read_outcomes);
        let unknown = senders.iter().filter(|sender| sender.user.is_none()).count();
        println!("{kind:?}: {unknown} clients do not know the outcome of a message");
        assert!(unknown > 0 || kind == Outage::Killed, "the last messages were sent to a Redis that did not reply");
        kind.end(&mut cluster.redis);
        wait_until("new clients are accepted", || cluster.servers.iter().all(is_ready));
        let mut expected: Vec<String> =
            senders.iter_mut().flat_map(|sender| sender.resume_and_resend(cluster.at(1))).collect();
        publish(&mut witness, "the end");
        let (_guest, welcome) = join(cluster.at(0), "reader", "general", "");
        let history = welcome["history"].as_array().unwrap();
        let mut texts: Vec<&str> = history.iter().map(|message| message["text"].as_str().unwrap()).collect();
        assert_eq!(texts.pop(), Some("the end"));
        texts.sort_unstable();
        expected.sort_unstable();
        assert_eq!(texts, expected, "each once, and none that was rejected");
        for message in senders.iter().flat_map(|sender| &sender.published) {
            assert!(history.contains(message), "acknowledged and lost: {message}");
        }
    }
}

/// If Redis does not execute a join in time, the server closes the connection with 1013, and the client never appears
/// as a member after the outage.
#[test]
fn a_join_on_its_way() {
    let Some(mut cluster) = Cluster::start(2, &["--unique-names"]) else { return };
    let mut witness = User::events(cluster.at(1), "witness", "general");
    Outage::Stopped.begin(&mut cluster.redis);
    let mut pending = 0;
    wait_until("new clients are rejected", || {
        let request = handshake().target(format!("/?token=dev-token&username=late-{pending}&room=general"));
        let mut client = cluster.at(0).connect();
        client.send(&request.bytes());
        let head = client.read_head();
        if head.starts_with("HTTP/1.1 503 ") {
            return true;
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        pending += 1;
        let frame = User::new(client, Dialect::Events, "late").frame();
        assert_eq!((frame.opcode(), frame.close().0), (8, 1013), "{frame:?}");
        false
    });
    assert!(pending > 0, "the first join is sent to a Redis that does not reply");
    Outage::Stopped.end(&mut cluster.redis);
    wait_until("new clients are accepted", || cluster.servers.iter().all(is_ready));
    for server in &cluster.servers {
        wait_until("no ghost is left", || members(server, "general") == ["witness"]);
    }
    // The usernames of the failed joins are available again.
    for number in 0..pending {
        let late = User::events(cluster.at(1), &format!("late-{number}"), "general");
        late.leave();
    }
    publish(&mut witness, "the end");
}

/// After a join has failed because Redis never executed it, the join no longer counts towards `--max-rooms`.
#[test]
fn a_join_that_was_lost() {
    let Some(mut cluster) = Cluster::start(1, &["--max-rooms", "1"]) else { return };
    Outage::Stopped.begin(&mut cluster.redis);
    let mut client = cluster.at(0).connect();
    client.send(&handshake().target("/?token=dev-token&username=late&room=lost").bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    cluster.redis.kill();
    let frame = User::new(client, Dialect::Events, "late").frame();
    assert_eq!((frame.opcode(), frame.close().0), (8, 1013), "{frame:?}");
    cluster.redis.launch();
    wait_until("there is a place for another room", || {
        response(cluster.at(0), &get("/check?token=dev-token&room=other")).body.contains(r#""status":101"#)
    });
}

/// If Redis stops during a switch, the client receives an error. After the outage, the client is in exactly one room:
/// the last room that the server has confirmed.
#[test]
fn a_room_switch_during_an_outage() {
    let Some(mut cluster) = Cluster::start(2, &[]) else { return };
    let mut old = User::events(cluster.at(1), "old", "old");
    let mut new = User::events(cluster.at(1), "new", "new");
    let mut ann = User::events(cluster.at(0), "ann", "old");
    old.expect_message(event("joined", "ann"));
    Outage::Stopped.begin(&mut cluster.redis);
    ann.send_event("switch_room", json!({"room": "new"}));
    ann.send_event("history", json!({"before": 10}));
    for _ in 0..2 {
        ann.expect_event("error", json!({}));
    }
    Outage::Stopped.end(&mut cluster.redis);
    wait_until("new clients are accepted", || cluster.servers.iter().all(is_ready));
    let mut others = Vec::new();
    let mut room = "old".to_owned();
    loop {
        send_with_nonce(&mut ann, "where am I?");
        match wait_for_outcome(&mut ann, "where am I?", &mut others) {
            Outcome::Published(_) => break,
            Outcome::NotStored => {}
            Outcome::Unknown => panic!("the outcome is unknown, and Redis is available"),
        }
    }
    for switched in others.iter().filter(|event| event["event"] == "switched") {
        room = switched["data"]["room"].as_str().unwrap().to_owned();
    }
    println!("ann is in {room}");
    let reader = if room == "old" { &mut old } else { &mut new };
    assert_eq!(next(reader, "message")["text"], "where am I?");
    for server in &cluster.servers {
        for name in ["old", "new"] {
            let expected = if name == room { vec!["ann", name] } else { vec![name] };
            wait_until("ann is in one room", || members(server, name) == expected);
        }
    }
}

/// If Redis pauses for one second, which is less than the server's timeouts for Redis, no message is lost or rejected.
#[test]
fn a_short_pause_of_redis() {
    for kind in ["STOP", "CLIENT PAUSE"] {
        let Some(mut cluster) = Cluster::start(2, &[]) else { return };
        let mut ann = User::events(cluster.at(0), "ann", "general");
        let mut bob = User::events(cluster.at(1), "bob", "general");
        ann.expect_message(event("joined", "bob"));
        if kind == "STOP" {
            Outage::Stopped.begin(&mut cluster.redis);
        } else {
            cluster.redis.run(&["CLIENT", "PAUSE", "1000", "ALL"]);
        }
        (0..20).for_each(|text| send_with_nonce(&mut ann, &text.to_string()));
        if kind == "STOP" {
            std::thread::sleep(Duration::from_secs(1));
            Outage::Stopped.end(&mut cluster.redis);
        }
        for user in [&mut ann, &mut bob] {
            for id in 1..=20 {
                user.expect_event("message", json!({"text": (id - 1).to_string(), "id": id}));
            }
        }
    }
}

/// If Redis repeatedly closes the connections of the instances, no published message is lost or repeated. The clients
/// receive no `left`, `joined` or `switched`.
#[test]
fn killed_connections() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "general");
    let mut bob = User::events(cluster.at(1), "bob", "general");
    ann.expect_message(event("joined", "bob"));
    let mut last = 0;
    for round in 0..6 {
        let kinds: &[&str] = [&["normal", "pubsub"][..], &["pubsub"], &["normal"]][round % 3];
        for kind in kinds {
            cluster.redis.run(&["CLIENT", "KILL", "TYPE", kind]);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let [from, to] = if (from, to) == (0, 1) { [&mut ann, &mut bob] } else { [&mut bob, &mut ann] };
            // The server may reject a message that was in flight. The client then sends the message again.
            let text = format!("{round} from {}", from.name);
            loop {
                send_with_nonce(from, &text);
                let mut others = Vec::new();
                match wait_for_outcome(from, &text, &mut others) {
                    Outcome::Published(message) => {
                        last += 1;
                        assert_eq!(message["id"], last, "{message}");
                        break;
                    }
                    Outcome::NotStored => std::thread::sleep(Duration::from_millis(20)),
                    Outcome::Unknown => panic!("an operation can be sent again when Redis is back at once"),
                }
                assert!(others.is_empty(), "{others:?}");
            }
            to.expect_event("message", json!({"text": text, "id": last}));
        }
    }
}

// ---------------------------------------------------------------------------------------- Redis restarts and data loss

/// If Redis restarts with its data, no client receives `switched`, and clients can resume with the earlier epoch.
#[test]
fn a_restart_with_the_data() {
    let Some(mut cluster) = Cluster::start(2, &[]) else { return };
    let (mut ann, first) = join(cluster.at(0), "ann", "general", "");
    let mut bob = User::events(cluster.at(1), "bob", "general");
    ann.expect_message(event("joined", "bob"));
    let mut sent = vec![publish(&mut ann, "before")];
    bob.expect_event("message", sent[0].clone());
    for _ in 0..3 {
        cluster.redis.restart();
        let message = wait_for_delivery(&mut ann, &mut bob);
        sent.push(message);
        let message = wait_for_delivery(&mut bob, &mut ann);
        sent.push(message);
        wait_until("new clients are accepted", || cluster.servers.iter().all(is_ready));
        for server in &cluster.servers {
            // Both instances have reconnected without losing data, so the epoch from before the restart is valid.
            for seen in 0..=sent.len() {
                let back = welcome(server, "general", &since(&first["epoch"], seen as u64));
                assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!(sent[seen..])), "{seen}");
            }
            assert_eq!(members(server, "general"), ["ann", "bob"]);
        }
    }
    let numbers: Vec<&Value> = sent.iter().map(|message| &message["id"]).collect();
    assert!(numbers.iter().enumerate().all(|(i, id)| **id == i + 1), "{numbers:?}");
    for user in [&mut ann, &mut bob] {
        check_only_guest_events(user);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Loss {
    Restart,
    Flush,
}

/// If Redis loses all data, every member receives `switched` with a new epoch, and no id appears twice in an epoch.
fn check_data_loss(kind: Loss) {
    let Some(redis) = RedisServer::start(Persistence::Off) else { return };
    let mut cluster = Cluster::with(redis, 2, &[]);
    let (mut ann, first) = join(cluster.at(0), "ann", "general", "");
    let mut bob = User::events(cluster.at(1), "bob", "general");
    let mut eve = User::events(cluster.at(1), "eve", "elsewhere");
    ann.expect_message(event("joined", "bob"));
    (0..3).for_each(|text| drop(publish(&mut ann, &text.to_string())));
    while next(&mut bob, "message")["id"] != 3 {}
    match kind {
        Loss::Restart => cluster.redis.restart(),
        Loss::Flush => drop(cluster.redis.run(&["FLUSHALL"])),
    }
    let mut epochs = Vec::new();
    for (user, room, others) in
        [(&mut ann, "general", &["bob"][..]), (&mut bob, "general", &["ann"]), (&mut eve, "elsewhere", &[])]
    {
        let data = user.expect_event("switched", json!({"room": room}));
        assert_ne!(data["epoch"], first["epoch"]);
        let listed = names(&data["members"]);
        assert!(listed.iter().all(|name| others.contains(&&**name)), "{data}");
        assert_eq!(data["member_count"], listed.len());
        let history = data["history"].as_array().unwrap();
        let last = data["last_id"].as_u64().unwrap();
        assert!(history.len() as u64 <= last && history.last().is_none_or(|message| message["id"] == last), "{data}");
        epochs.push((data["epoch"].clone(), last));
        // The list omits members that have not rejoined yet. Their `joined` events follow.
        for _ in listed.len()..others.len() {
            user.expect_event("joined", json!({}));
        }
    }
    assert_eq!(epochs[0], epochs[1], "the members of a room agree");
    let (epoch, last) = &epochs[0];
    let message = wait_for_delivery(&mut ann, &mut bob);
    assert_eq!(message["id"], last + 1);
    wait_until("new clients are accepted", || cluster.servers.iter().all(is_ready));
    for server in &cluster.servers {
        let back = welcome(server, "general", &since(&first["epoch"], 3));
        assert_eq!(back["resumed"], false, "the earlier history is gone: {back}");
        let back = welcome(server, "general", &since(epoch, *last));
        assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!([message])), "{back}");
        assert_eq!(members(server, "general"), ["ann", "bob"]);
        assert_eq!(members(server, "elsewhere"), ["eve"]);
    }
    for user in [&mut ann, &mut bob, &mut eve] {
        check_only_guest_events(user);
    }
}

#[test]
fn a_restart_without_the_data() {
    check_data_loss(Loss::Restart);
}

#[test]
fn data_that_is_flushed() {
    check_data_loss(Loss::Flush);
}

/// In the `rooms` dialect, a client sets its username with each message, even a private one. After Redis has lost its
/// data, the client must still receive private messages to that username.
#[test]
fn a_name_from_a_private_message_survives_data_loss() {
    let Some(redis) = RedisServer::start(Persistence::Off) else { return };
    let cluster = Cluster::with(redis, 2, &[]);
    let mut ann = User::events(cluster.at(0), "ann", "general");
    let mut ron = User::rooms(cluster.at(1), "rita", "elsewhere");
    ron.send_message("/msg ann psst");
    ann.expect_message(ann.private_message("rita", "ann", "psst"));
    ron.expect_message(ron.private_message("rita", "ann", "psst"));
    cluster.redis.run(&["FLUSHALL"]);
    ann.expect_event("switched", json!({}));
    wait_until("rita is found", || {
        ann.send_message("/msg rita hello");
        ann.receive()["event"] == "private"
    });
    ron.expect_message(ron.private_message("ann", "rita", "hello"));
}
