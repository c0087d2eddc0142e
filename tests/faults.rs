//! Injects faults on a real kernel: TCP resets, stopped clients, no free file descriptors, little memory, a broken
//! stderr, a suspended server, and jumps of the system clock. Meanwhile, up to 1,000 clients chat. The tests check that
//! ids have no gaps, that all clients in a room receive the same messages and member list, that a sender receives
//! its own messages, and that a resume misses no message.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/crowd.rs"]
mod crowd;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crowd::Crowd;
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::users::events_path;
use support::{Frame, Server, masked, require_tool, upgrade_request, wait_until, whole_frames};

/// The tests use fewer clients in a debug build, because a debug build is about ten times slower and `cargo test` runs
/// other tests at the same time.
const CLIENTS: usize = if cfg!(debug_assertions) { 100 } else { 1000 };
const ROOM_SIZE: usize = 50;
const CONNECT_BATCH: usize = 200;
const LIMIT: Duration = Duration::from_secs(120);

/// Lets only one test of this file run at a time, because each test needs many file descriptors and all processors.
fn lock_exclusively() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client, and the state of its room according to the events that the client has received.
struct Client {
    /// The connection's index in `Crowd::members`; `None` while the client is disconnected.
    connection: Option<usize>,
    name: String,
    room: usize,
    epoch: String,
    session: String,
    last_id: u64,
    members: BTreeMap<String, usize>,
    /// Nonce and text of each message that the client has sent but not yet received back.
    unanswered: Vec<(String, String)>,
    /// Nonces of the messages that the client sent again after a reconnect.
    resent: Vec<String>,
    has_response: bool,
    has_joined: bool,
}

/// Clients of the `events` dialect. They send messages to their rooms, and check every event that they receive.
struct Clients<'s> {
    server: &'s Server,
    crowd: Crowd,
    clients: Vec<Client>,
    /// Every message that any client has received, by room and id.
    messages: HashMap<(usize, u64), Value>,
    last_ids: HashMap<usize, u64>,
    random: Rng,
    sent: usize,
}

impl<'s> Clients<'s> {
    fn join(server: &'s Server, count: usize) -> Clients<'s> {
        let crowd = Crowd::new(Instant::now() + LIMIT);
        let random = Rng::with_seed(11);
        let (messages, last_ids) = (HashMap::new(), HashMap::new());
        let mut clients = Clients { server, crowd, clients: Vec::new(), messages, last_ids, random, sent: 0 };
        for number in 0..count {
            clients.clients.push(Client {
                connection: None,
                name: format!("user-{number}"),
                room: number / ROOM_SIZE,
                epoch: String::new(),
                session: String::new(),
                last_id: 0,
                members: BTreeMap::new(),
                unanswered: Vec::new(),
                resent: Vec::new(),
                has_response: false,
                has_joined: false,
            });
        }
        clients.connect(&(0..count).collect::<Vec<_>>());
        clients.settle();
        clients
    }

    /// Connects clients and waits until each has received `welcome`. Clients that reconnect resume their sessions.
    fn connect(&mut self, numbers: &[usize]) {
        for group in numbers.chunks(CONNECT_BATCH) {
            for number in group {
                let client = &mut self.clients[*number];
                let mut path = events_path(&client.name, &format!("room-{}", client.room));
                if !client.epoch.is_empty() {
                    let Client { epoch, last_id, session, .. } = client;
                    path += &format!("&epoch={epoch}&since={last_id}&session={session}");
                }
                (client.has_response, client.has_joined) = (false, false);
                let connection = self.crowd.connect(self.server, &upgrade_request(&path), true);
                client.connection = Some(connection);
                for (nonce, text) in &client.unanswered {
                    self.crowd.send(connection, &message(nonce, text));
                    client.resent.push(nonce.clone());
                }
            }
            self.read_until("all of this group have joined", |clients| {
                group.iter().all(|number| clients.clients[*number].has_joined)
            });
        }
    }

    fn read_until(&mut self, what: &str, condition: impl Fn(&Clients) -> bool) {
        let end = Instant::now() + LIMIT;
        self.read();
        while !condition(self) {
            assert!(Instant::now() < end, "never happened: {what}");
            self.crowd.turn();
            self.read();
        }
    }

    fn read(&mut self) {
        for number in 0..self.clients.len() {
            let Some(connection) = self.clients[number].connection else { continue };
            assert!(!self.crowd.members[connection].has_ended, "{} is disconnected", self.clients[number].name);
            if !self.clients[number].has_response {
                let Some(head) = self.crowd.take_head(connection) else { continue };
                assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
                self.clients[number].has_response = true;
            }
            for frame in self.crowd.take_frames(connection) {
                self.receive(number, connection, &frame);
            }
        }
    }

    fn receive(&mut self, number: usize, connection: usize, frame: &Frame) {
        let client = &mut self.clients[number];
        match frame.first {
            0x89 => self.crowd.send(connection, &masked(0x8a, &frame.payload)),
            0x88 => panic!("{} receives the Close {:?}", client.name, frame.close()),
            _ => {
                let mut event: Value = serde_json::from_str(frame.text()).expect("JSON");
                let data = event["data"].take();
                match event["event"].as_str().unwrap_or_default() {
                    "welcome" => self.receive_welcome(number, &data),
                    "message" => self.receive_message(number, &data),
                    "joined" => *client.members.entry(string(&data["username"])).or_default() += 1,
                    "left" => {
                        let count = client.members.get_mut(data["username"].as_str().unwrap()).expect("a member");
                        *count = count.checked_sub(1).expect("a member leaves once");
                    }
                    other => panic!("{} receives {other} {data}", client.name),
                }
            }
        }
    }

    fn receive_welcome(&mut self, number: usize, data: &Value) {
        let client = &mut self.clients[number];
        if !client.epoch.is_empty() {
            assert_eq!(data["resumed"], true, "{} resumes after {}: {data}", client.name, client.last_id);
        } else {
            client.last_id = data["last_id"].as_u64().unwrap() - data["history"].as_array().unwrap().len() as u64;
        }
        client.has_joined = true;
        (client.epoch, client.session) = (string(&data["epoch"]), string(&data["session"]));
        client.members.clear();
        for name in data["members"].as_array().unwrap() {
            *client.members.entry(string(name)).or_default() += 1;
        }
        for message in data["history"].as_array().unwrap().clone() {
            self.receive_message(number, &message);
        }
        assert_eq!(data["last_id"].as_u64(), Some(self.clients[number].last_id), "the backlog ends at the last id");
    }

    fn receive_message(&mut self, number: usize, message: &Value) {
        let client = &mut self.clients[number];
        let id = message["id"].as_u64().unwrap();
        client.unanswered.retain(|(nonce, _)| message["nonce"] != **nonce || message["username"] != *client.name);
        if id <= client.last_id {
            // The client has resent a message that the room already had. The server replies with the original event.
            let resent =
                client.resent.iter().position(|nonce| message["nonce"] == **nonce).expect("a nonce sent twice");
            client.resent.remove(resent);
            assert_eq!(self.messages.get(&(client.room, id)), Some(message));
            return;
        }
        assert_eq!(id, client.last_id + 1, "{} misses no message", client.name);
        client.last_id = id;
        let first = self.messages.entry((client.room, id)).or_insert_with(|| message.clone());
        assert_eq!(first, message, "all clients receive the same message");
        let last = self.last_ids.entry(client.room).or_default();
        *last = id.max(*last);
    }

    /// Sends `count` messages, each from a random client.
    fn talk(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.random.usize(..self.clients.len());
            self.sent += 1;
            let (nonce, text) = (format!("n{}", self.sent), format!("message {} of {number}", self.sent));
            let client = &mut self.clients[number];
            self.crowd.send(client.connection.expect("a connection"), &message(&nonce, &text));
            client.unanswered.push((nonce, text));
        }
    }

    /// Waits until each client has received all messages of its room and knows the room's members.
    fn settle(&mut self) {
        let rests = |clients: &Clients, number: usize| {
            let client = &clients.clients[number];
            let last = clients.last_ids.get(&client.room).copied().unwrap_or_default();
            let others = clients.clients.iter().filter(|other| other.room == client.room && other.name != client.name);
            let members = others.map(|other| (other.name.as_str(), 1));
            let known = client.members.iter().filter(|(_, count)| **count > 0);
            let known = known.map(|(name, count)| (name.as_str(), *count));
            let are_known = members.collect::<BTreeMap<_, _>>() == known.collect();
            client.unanswered.is_empty() && client.last_id == last && are_known
        };
        self.read_until("all clients have received all messages", |clients| {
            (0..clients.clients.len()).all(|number| rests(clients, number))
        });
    }

    /// Resets the TCP connections of `count` clients while messages are in flight, and lets the clients resume.
    fn reset_and_resume(&mut self, count: usize) {
        self.talk(count);
        let mut numbers: Vec<usize> = (0..self.clients.len()).collect();
        self.random.shuffle(&mut numbers);
        numbers.truncate(count);
        for number in &numbers {
            self.crowd.reset(self.clients[*number].connection.take().expect("a connection"));
        }
        self.read();
        self.connect(&numbers);
        self.settle();
    }
}

fn string(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn message(nonce: &str, text: &str) -> Vec<u8> {
    let event = json!({"event": "message", "data": {"text": text, "nonce": nonce}});
    masked(0x81, event.to_string().as_bytes())
}

/// A temporary path that no other process uses.
fn temporary_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}-{name}", std::process::id()))
}

fn start(args: &[&str]) -> Server {
    Server::start(&[&["--rate-limit", "0"], args].concat())
}

#[test]
fn storms_of_resets() {
    let _guard = lock_exclusively();
    let server = start(&[]);
    let mut clients = Clients::join(&server, CLIENTS);
    for _ in 0..5 {
        clients.reset_and_resume(CLIENTS / 4);
    }
}

/// A client in a separate process, which a signal can stop. The process writes the received bytes to a file.
struct Process {
    child: Child,
    file: PathBuf,
}

impl Process {
    fn join(server: &Server, name: &str) -> Process {
        let file = temporary_path(name);
        let script =
            format!("exec 3<>/dev/tcp/127.0.0.1/{}; printf %s \"$1\" >&3; exec cat <&3 >\"$2\"", server.port());
        let request = upgrade_request(&events_path(name, "stopped"));
        let mut command = Command::new("bash");
        command.args(["-c", &script, "client", &request]).arg(&file);
        Process { child: command.spawn().expect("bash runs"), file }
    }

    fn signal(&self, name: &str) {
        support::signal(self.child.id(), name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn clients_that_are_stopped() {
    let _guard = lock_exclusively();
    let limits = ["--max-outbox", "100000", "--max-text", "20000", "--max-message", "100000"];
    let server = start(&[&limits[..], &["--close-timeout", "10"]].concat());
    let mut talker = server.upgrade(&events_path("talker", "stopped"));
    talker.read_event("welcome");
    let mut processes: Vec<Process> =
        (0..10).map(|number| Process::join(&server, &format!("process-{number}"))).collect();
    for _ in &processes {
        talker.read_event("joined");
    }
    let mut last_id = 0;
    let mut left = 0;
    processes.iter().for_each(|process| process.signal("STOP"));
    // The kernel buffers several megabytes per client before the client's outbox in the server begins to fill.
    for number in 0..5000 {
        if left == processes.len() {
            break;
        }
        let text = format!("{number} {}", "x".repeat(19_000));
        talker.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
        loop {
            let event = talker.read_json();
            match event["event"].as_str() {
                Some("left") => left += 1,
                Some("message") => break last_id = event["data"]["id"].as_u64().unwrap(),
                _ => panic!("{event}"),
            }
        }
    }
    assert_eq!(left, processes.len(), "the server closes the connection of each stopped client");
    let is_logged = || server.log().matches("too slow to read").count() == processes.len();
    wait_until("the log has the reason for each Close", is_logged);
    processes.iter().for_each(|process| process.signal("CONT"));
    for process in &mut processes {
        // `cat` exits when the server closes the connection.
        wait_until("the client has read everything", || process.child.try_wait().expect("a status").is_some());
        let received = fs::read(&process.file).expect("a file");
        let head = received.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
        let (frames, rest) = whole_frames(&received[head..]);
        assert!(rest.is_empty(), "the received bytes end inside a frame");
        let (close, frames) = frames.split_last().expect("a Close");
        assert_eq!(close.close(), (1008, "too slow to read".to_owned()));
        let events = frames.iter().map(|frame| serde_json::from_str::<Value>(frame.text()).expect("JSON"));
        let ids: Vec<u64> = events.filter_map(|event| event["data"]["id"].as_u64()).collect();
        assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "no message is missing before the Close");
        assert!(!ids.is_empty() && ids.len() as u64 <= last_id);
    }
    talker.send_text(&json!({"event": "ping"}).to_string());
    talker.read_event("pong");
}

/// Changes a resource limit of a running server, for example `--nofile=64:` (the soft limit on open files).
fn set_limit(server: &Server, limit: &str) {
    let done = Command::new("prlimit").args(["--pid", &server.pid().to_string(), limit]).status();
    assert!(done.expect("prlimit runs").success());
}

#[test]
fn running_out_of_file_descriptors() {
    let _guard = lock_exclusively();
    let server = start(&[]);
    let mut clients = Clients::join(&server, CLIENTS / 2);
    let open: Vec<usize> = fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .expect("a process")
        .map(|entry| entry.expect("a descriptor").file_name().to_str().expect("digits").parse().expect("a number"))
        .collect();
    // Make `accept` fail by setting RLIMIT_NOFILE to the lowest free descriptor number. The next descriptor would get
    // this number, but the numbers of new descriptors must be below the limit.
    let free = (0..).find(|number| !open.contains(number)).expect("a free number");
    set_limit(&server, &format!("--nofile={free}:"));
    let mut crowd = Crowd::new(Instant::now() + LIMIT);
    let request = upgrade_request(&events_path("late", "late"));
    let waiting: Vec<usize> = (0..20).map(|_| crowd.connect(&server, &request, true)).collect();
    server.wait_for_log("ACCEPT failed");
    clients.talk(50);
    clients.settle();
    crowd.turn();
    assert!(waiting.iter().all(|id| !crowd.members[*id].has_response()), "the server does not reject waiting clients");
    set_limit(&server, &format!("--nofile={}:", free + 1000));
    crowd.turn_until("all are accepted", |crowd| waiting.iter().all(|id| crowd.members[*id].has_response()));
    assert!(waiting.iter().all(|id| crowd.members[*id].status() == "101"));
    clients.talk(50);
    clients.settle();
}

#[test]
fn low_memory() {
    let _guard = lock_exclusively();
    // Each attacker sends 256 KiB that the server would have to buffer. In a release build, all attackers together
    // send twice the memory limit.
    let max_buffered = (CLIENTS * 16 * 1024).to_string();
    let mut options = vec!["--rate-limit", "0", "--max-echo", "1048576", "--max-buffered", &max_buffered];
    options.extend(["--ping-interval", "600", "--idle-timeout", "1200"]); // no Ping, which would look like a Close below
    let server = Server::start_from_shell("ulimit -d 131072", "", &options);
    let mut clients = Clients::join(&server, CLIENTS / 10);
    let mut crowd = Crowd::new(Instant::now() + LIMIT);
    let attackers = crowd.join(&server, (0..CLIENTS).map(|_| "/echo?token=dev-token".to_owned()));
    // The header announces 1 MiB, but each attacker sends 256 KiB, so the server must buffer the incomplete payload.
    let header = &masked(0x81, &vec![0; 1024 * 1024])[..14];
    attackers.clone().for_each(|id| crowd.send(id, header));
    let received: usize = crowd.members.iter().map(|member| member.received).sum();
    for _ in 0..4 {
        attackers.clone().for_each(|id| crowd.try_send(id, &[b'x'; 64 * 1024]));
        crowd.turn();
        clients.talk(10);
        clients.settle();
    }
    // After the handshake, the server sends an attacker nothing except a Close frame, so any new bytes are that frame.
    crowd.turn_until("the server closes the connections with the largest buffers", |crowd| {
        crowd.members.iter().map(|member| member.received).sum::<usize>() > received
    });
    println!("The peak of the server's memory is {} KiB", crowd::peak_memory(&server));
    clients.settle();
}

#[test]
fn no_stderr() {
    let _guard = lock_exclusively();
    let fifo = temporary_path("fifo");
    // Three kinds of broken stderr: a closed descriptor, a file on a full disk, and a full pipe that no process reads.
    let fill = "dd if=/dev/zero of=/proc/self/fd/9 bs=64K count=1 oflag=nonblock status=none || true";
    let pipe = format!("mkfifo '{0}'; exec 9<>'{0}'; {fill}", fifo.display());
    for (setup, redirection) in [("", "2>&-"), ("", "2>/dev/full"), (&*pipe, &*format!("2>'{}'", fifo.display()))] {
        let mut server = Server::start_from_shell(setup, redirection, &["--rate-limit", "0"]);
        let mut clients = Clients::join(&server, CLIENTS / 2);
        for _ in 0..3 {
            clients.reset_and_resume(CLIENTS / 8);
        }
        drop(clients);
        // Send many signals, so that some interrupt the poll that checks whether stderr accepts more bytes.
        let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process");
        for _ in 0..20 {
            for _ in 0..2000 {
                kill_process(pid, Signal::HUP).expect("the server runs");
            }
            server.upgrade("/echo?token=dev-token");
        }
        server.signal("TERM");
        assert!(server.wait().success(), "{redirection}");
    }
}

#[test]
fn a_suspended_server() {
    let _guard = lock_exclusively();
    let server = start(&["--ping-interval", "0.5", "--idle-timeout", "2"]);
    let mut clients = Clients::join(&server, CLIENTS / 5);
    server.signal("STOP");
    // Suspend the server for twice its idle timeout. The suspension must not cause its clients to time out.
    std::thread::sleep(Duration::from_secs(4));
    server.signal("CONT");
    clients.talk(20);
    clients.settle();
}

#[test]
fn a_clock_that_is_moved() {
    let _guard = lock_exclusively();
    let candidates = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|arch| Path::new("/usr/lib").join(arch).join("faketime/libfaketime.so.1"));
    let Some(library) = require_tool("libfaketime", &candidates) else { return };
    let file = temporary_path("clock");
    // Replace the clock file atomically, because the server may read it at any time.
    let set_clock = |offset: &str| {
        fs::write(file.with_extension("new"), offset).expect("a file");
        fs::rename(file.with_extension("new"), &file).expect("a file");
    };
    set_clock("+0");
    let setup = format!(
        "export LD_PRELOAD='{}' FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1",
        library.display(),
        file.display()
    );
    let server = Server::start_from_shell(&setup, "", &["--rate-limit", "0"]);
    let mut clients = Clients::join(&server, CLIENTS / 5);
    let mut years = Vec::new();
    for offset in ["+400d", "-4000d", "+0"] {
        set_clock(offset);
        clients.reset_and_resume(CLIENTS / 20);
        let newest = clients.messages.iter().max_by_key(|((room, id), _)| (*room == 0, *id)).expect("a message").1;
        years.push(string(&newest["time"])[..4].parse::<i32>().expect("a year"));
    }
    assert!(years[0] > years[2] && years[1] < years[2], "the messages have the server's time: {years:?}");
}
