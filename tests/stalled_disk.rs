//! Tests which events wait for the disk. The SQLite broker writes to a simulated disk, which executes operations only
//! when the test calls [`StalledServer::execute`]. The sockets are in memory, and the clock is virtual.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/manual_disk.rs"]
mod manual_disk;
#[path = "support/memory.rs"]
mod memory;
mod support;

use std::time::{Duration, SystemTime};

use manual_disk::ManualDisk;
use memory::{Client, World};
use rusqlite::Connection;
use serde_json::json;
use support::masked;
use support::users::events_path;
use wirechat::broker::sqlite::database::{Database, DatabaseOptions};
use wirechat::broker::sqlite::{LogLimits, SqliteBroker};

/// Makes Pings rare, turns off the rate limit, and keeps no history in memory.
const CALM: [&str; 10] = [
    "--ping-interval",
    "600",
    "--idle-timeout",
    "1200",
    "--rate-limit",
    "0",
    "--history",
    "0",
    "--max-empty-rooms",
    "0",
];
const STALL: Duration = Duration::from_secs(10);

/// A server whose disk operations stay queued until the test calls [`StalledServer::execute`].
struct StalledServer {
    world: World,
    disk: ManualDisk,
    database: Database,
}

impl StalledServer {
    fn new(args: &[&str]) -> StalledServer {
        let options = DatabaseOptions { survives_power_failure: true, max_messages_per_room: 0, max_age_days: 0 };
        let connection = Connection::open_in_memory().unwrap();
        let database = Database::begin_run(connection, options, "run", SystemTime::UNIX_EPOCH).unwrap();
        let disk = ManualDisk::default();
        let limits = LogLimits { messages: 50, backlog: 256 * 1024, bytes: 1 << 20 };
        let world = World::with_broker(&[&CALM, args].concat(), 1, false, |inner| {
            Box::new(SqliteBroker::new(Box::new(inner), Box::new(disk.clone()), "run", limits))
        });
        StalledServer { world, disk, database }
    }

    /// Lets the disk execute all waiting operations, and then lets the server process the results.
    fn execute(&mut self) {
        self.disk.execute(|operations| self.database.execute(operations));
        self.wake();
    }

    /// Runs the event loop turn that follows a wake-up from the disk's writer thread.
    fn wake(&mut self) {
        self.world.turn_with(|server| server.apply_effects());
        self.world.settle();
    }

    fn join(&mut self, name: &str, room: &str) -> Client {
        let client = self.world.upgrade(&events_path(name, room));
        if self.disk.waiting_count() > 0 {
            self.execute();
        }
        client.read_event("welcome");
        client
    }
}

fn send_message(client: &Client, text: &str) {
    client.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
}

#[test]
fn only_what_follows_a_message_waits_for_the_disk() {
    let mut stalled = StalledServer::new(&[]);
    let alice = stalled.join("alice", "tea");
    let bob = stalled.join("bob", "rust");
    send_message(&alice, "one");
    for _ in 0..3 {
        // All rooms share one event queue, so bob's private message waits until alice's earlier message is stored.
        bob.send_text(&json!({"event": "private", "data": {"to": "alice", "text": "psst"}}).to_string());
        for client in [&alice, &bob] {
            client.send_text(r#"{"event":"ping"}"#);
            client.send(&masked(0x89, b"frame"));
        }
        stalled.world.settle();
        for client in [&alice, &bob] {
            assert_eq!(client.read_json()["event"], "pong");
            assert_eq!(client.read_frame().first, 0x8a);
            client.expect_nothing();
        }
        stalled.world.advance(STALL);
    }
    stalled.execute();
    assert_eq!(alice.read_event("message")["id"], 1);
    for _ in 0..3 {
        assert_eq!(alice.read_event("private")["text"], "psst");
        assert_eq!(bob.read_event("private")["text"], "psst");
    }
}

#[test]
fn a_shutdown_waits_for_the_disk() {
    let mut stalled = StalledServer::new(&[]);
    let alice = stalled.join("alice", "tea");
    send_message(&alice, "last words");
    stalled.world.shut_down();
    send_message(&alice, "too late");
    stalled.world.advance(STALL);
    assert!(!stalled.world.is_stopped);
    alice.expect_nothing();
    stalled.execute();
    assert_eq!(alice.read_event("message")["text"], "last words");
    assert_eq!(alice.read_frame().close(), (1001, "the server is shutting down".into()));
    alice.send(&masked(0x88, &1001_u16.to_be_bytes()));
    stalled.world.settle();
    assert!(stalled.world.is_stopped);
}

/// When a step of a drain is due, the server pauses all reads until all earlier messages are stored. Only then does the
/// server close connections.
#[test]
fn a_drain_waits_for_the_disk() {
    let mut stalled = StalledServer::new(&["--drain", "2"]);
    let (alice, bob) = (stalled.join("alice", "tea"), stalled.join("bob", "tea"));
    stalled.world.advance(Duration::from_secs(1));
    send_message(&bob, "I am not quiet");
    stalled.world.settle();
    stalled.execute();
    stalled.world.drain();
    send_message(&alice, "last words");
    stalled.world.advance(STALL); // fails if the server busy-loops
    for _ in 0..20 {
        bob.send_text(r#"{"event":"ping"}"#); // starts a turn of the event loop
        stalled.world.advance(Duration::from_millis(100));
    }
    for client in [&alice, &bob] {
        let events: Vec<_> = client.read_frames().iter().map(|frame| frame.first).collect();
        assert!(!events.contains(&0x88), "no connection is closed before the message is stored");
    }
    stalled.execute();
    stalled.world.advance(Duration::from_millis(1100));
    assert_eq!(alice.read_event("message")["text"], "last words");
    stalled.execute();
    stalled.world.advance(Duration::from_millis(1100));
    assert_eq!(bob.read_event("message")["text"], "last words");
    for client in [&alice, &bob] {
        let frames = client.read_frames();
        assert_eq!(frames.last().unwrap().close(), (1001, "the server is shutting down".into()));
    }
}

#[test]
fn a_failed_disk_closes_every_connection() {
    let mut stalled = StalledServer::new(&[]);
    let alice = stalled.join("alice", "tea");
    let bob = stalled.join("bob", "rust");
    let echo = stalled.world.upgrade("/echo?token=dev-token");
    send_message(&alice, "of unknown fate");
    send_message(&bob, "of unknown fate");
    stalled.world.settle();
    stalled.disk.execute(|_| Err("disk I/O error".into()));
    stalled.wake();
    for client in [&alice, &bob, &echo] {
        assert_eq!(client.read_frame().close(), (1011, "storage failed".into()));
    }
    stalled.world.advance(STALL);
    assert!(stalled.world.is_stopped && stalled.world.storage_failed());
}

/// Messages that wait for the disk may use up to half of `--max-buffered`. Above that, the server pauses all reads.
#[test]
fn a_stalled_disk_does_not_fill_memory() {
    const MESSAGES: usize = 300;
    let limits = ["--max-echo", "1000", "--max-message", "20000", "--max-buffered", "40000", "--max-read", "1024"];
    let mut stalled = StalledServer::new(&limits);
    let alice = stalled.join("alice", "tea");
    for number in 0..MESSAGES {
        send_message(&alice, &format!("{number} {}", "x".repeat(200)));
    }
    stalled.world.advance(STALL); // fails if the server busy-loops
    assert!(stalled.disk.waiting_count() > 5, "{} messages wait for the disk", stalled.disk.waiting_count());
    let mut next = 0;
    while next < MESSAGES {
        assert!(stalled.disk.waiting_count() < 40, "{} messages wait for the disk", stalled.disk.waiting_count());
        assert!(stalled.disk.waiting_count() > 0, "the server reads on after {next} messages");
        stalled.execute();
        for frame in alice.read_frames() {
            let text = frame.text().to_owned();
            assert!(text.contains(&format!(r#""text":"{next} "#)), "message {next}, not {text}");
            next += 1;
        }
    }
}
