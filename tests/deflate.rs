//! Tests compression from outside the server: the negotiation, the messages that the server accepts, and the messages
//! that it compresses for each client. Most tests inflate with a DEFLATE implementation that the server does not use.
//! Two tests use npm's `ws` and Python's `websockets` as clients, which join, leave and switch rooms at random. To
//! install these two libraries:
//!
//! - `npm install --prefix tests/npm --no-package-lock --no-audit --no-fund`
//! - `python3 -m venv target/websockets-venv && target/websockets-venv/bin/pip install -r tests/deflate/requirements.txt`

#![cfg(feature = "deflate")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use serde_json::{Value, json};
use support::table::each_row;
use support::users::{events_path, presence_path, rooms_path};
use support::{RawClient, Server, masked, upgrade_request};

const OFFER: &str = "permessage-deflate; client_max_window_bits"; // the offer that Chrome sends
const NO_TAKEOVER_OFFER: &str = "permessage-deflate; server_no_context_takeover; server_max_window_bits=9";
const ECHO: &str = "/echo?token=dev-token";
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

fn server(args: &[&str]) -> Server {
    Server::start(&[&["--deflate", "--rate-limit", "0"], args].concat())
}

/// A client that inflates compressed messages.
struct Client {
    raw: RawClient,
    /// The value of `Sec-WebSocket-Extensions` in the response.
    extensions: Option<String>,
    inflater: Decompress,
}

#[derive(Debug, PartialEq, Eq)]
struct ReceivedFrame {
    is_compressed: bool,
    /// The length of the payload on the wire, in bytes.
    len: usize,
    first: u8,
    payload: Vec<u8>,
}

impl ReceivedFrame {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).expect("JSON")
    }
}

impl Client {
    fn connect(server: &Server, path: &str, offer: &str) -> Client {
        let mut raw = server.connect();
        let head = upgrade_request(path);
        let header = if offer.is_empty() { String::new() } else { format!("Sec-WebSocket-Extensions: {offer}\r\n") };
        raw.send(format!("{}{header}\r\n", head.strip_suffix("\r\n").unwrap()).as_bytes());
        let head = raw.read_head();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let extensions = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        Client { raw, extensions: extensions.map(str::to_owned), inflater: Decompress::new(false) }
    }

    fn send_compressed(&mut self, first: u8, payload: &[u8]) {
        self.raw.send(&masked(first | 0x40, &compress(payload)));
    }

    fn read(&mut self) -> ReceivedFrame {
        let [first, second] = self.raw.read_exact(2)[..] else { unreachable!() };
        let len = match second {
            0..126 => second.into(),
            126 => u16::from_be_bytes(self.raw.read_exact(2).try_into().unwrap()).into(),
            127 => u64::from_be_bytes(self.raw.read_exact(8).try_into().unwrap()) as usize,
            _ => panic!("a server never masks"),
        };
        let payload = self.raw.read_exact(len);
        let is_compressed = first & 0x40 != 0;
        assert!(!is_compressed || matches!(first, 0xc1 | 0xc2), "RSV1 on {first:02x}");
        assert!(!is_compressed || self.extensions.is_some(), "compression was negotiated");
        let payload = if is_compressed { self.inflate(&payload) } else { payload };
        ReceivedFrame { is_compressed, len, first, payload }
    }

    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if self.extensions.as_ref().unwrap().contains("server_no_context_takeover") {
            self.inflater.reset(false);
        }
        let (input, before) = ([payload, &TAIL].concat(), self.inflater.total_in());
        let mut out = Vec::new();
        while self.inflater.total_in() - before < input.len() as u64 || out.len() == out.capacity() {
            out.reserve(1 << 16);
            let rest = &input[(self.inflater.total_in() - before) as usize..];
            self.inflater.decompress_vec(rest, &mut out, FlushDecompress::Sync).expect("DEFLATE");
        }
        out
    }

    /// Reads up to and including the next event with this name, in the `events` dialect.
    fn read_event(&mut self, event: &str) -> ReceivedFrame {
        loop {
            let received = self.read();
            if received.json()["event"] == event {
                return received;
            }
        }
    }

    /// Reads the next frame, which must be a Close, and returns its code.
    fn read_close(&mut self) -> u16 {
        let received = self.read();
        assert_eq!(received.first, 0x88, "a Close, not {received:?}");
        u16::from_be_bytes(received.payload[..2].try_into().unwrap())
    }
}

fn compress(payload: &[u8]) -> Vec<u8> {
    let (mut compress, mut out) = (Compress::new(Compression::default(), false), Vec::new());
    loop {
        out.reserve(1 << 16);
        let rest = &payload[compress.total_in() as usize..];
        compress.compress_vec(rest, &mut out, FlushCompress::Sync).unwrap();
        if compress.total_in() == payload.len() as u64 && out.len() < out.capacity() {
            break;
        }
    }
    assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

fn text(text: &str) -> String {
    json!({ "event": "message", "data": { "text": text } }).to_string()
}

#[test]
fn every_endpoint_negotiates() {
    let accepted = "permessage-deflate; client_no_context_takeover";
    let on = server(&[]);
    let paths = [events_path("a", "r"), rooms_path("r"), presence_path("p", "1", "r"), ECHO.to_owned()];
    for path in &paths {
        assert_eq!(Client::connect(&on, path, OFFER).extensions.as_deref(), Some(accepted), "{path}");
        assert_eq!(Client::connect(&on, path, "").extensions, None, "{path}");
        let wrong = "permessage-deflate; server_max_window_bits=8, x-other";
        assert_eq!(Client::connect(&on, path, wrong).extensions, None, "{path}");
    }
    let extensions = Client::connect(&on, ECHO, NO_TAKEOVER_OFFER).extensions.unwrap();
    assert_eq!(extensions, format!("{accepted}; server_no_context_takeover; server_max_window_bits=9"));
    let mut user = Client::connect(&on, &events_path("b", "r"), OFFER);
    let ticket = user.read_event("welcome").json()["data"]["ticket"].as_str().unwrap().to_owned();
    let inspector = Client::connect(&on, &format!("/inspect?ticket={ticket}"), OFFER);
    assert_eq!(inspector.extensions.as_deref(), Some(accepted));

    let mut malformed = on.connect();
    let head = upgrade_request(ECHO);
    let head = head.strip_suffix("\r\n").unwrap();
    malformed.send(format!("{head}Sec-WebSocket-Extensions: permessage-deflate;;\r\n\r\n").as_bytes());
    assert!(malformed.read_head().starts_with("HTTP/1.1 400"));

    let off = Server::start(&[]);
    for path in &paths {
        assert_eq!(Client::connect(&off, path, OFFER).extensions, None, "{path}");
    }
    let mut echo = Client::connect(&off, ECHO, OFFER);
    echo.send_compressed(0x81, b"Hello");
    assert_eq!(echo.read_close(), 1002);
}

#[test]
fn echoes_are_compressed_independently() {
    let server = server(&["--deflate-min", "10"]);
    for offer in [OFFER, NO_TAKEOVER_OFFER, "permessage-deflate; server_max_window_bits=12"] {
        let mut client = Client::connect(&server, ECHO, offer);
        for (first, payload) in [(0x81, "x".repeat(9)), (0x81, "x".repeat(10)), (0x82, "ab".repeat(100_000))] {
            for is_compressed in [false, true] {
                if is_compressed {
                    client.send_compressed(first, payload.as_bytes());
                } else {
                    client.raw.send(&masked(first, payload.as_bytes()));
                }
                let received = client.read();
                assert_eq!(received.payload, payload.as_bytes());
                assert_eq!(received.first, if payload.len() < 10 { first } else { first | 0x40 });
                // Reset the client's inflater, because each echo must inflate without the earlier echoes.
                client.inflater.reset(false);
            }
        }
    }
    let mut plain = Client::connect(&server, ECHO, "");
    plain.raw.send_text(&"x".repeat(100));
    assert_eq!(plain.read(), ReceivedFrame { is_compressed: false, len: 100, first: 0x81, payload: vec![b'x'; 100] });
}

#[test]
fn broken_messages() {
    let server = server(&[]);
    let mebibyte = masked(0xc1, &compress(&vec![0; 1 << 20]));
    let hello = compress(b"Hello");
    let rows: Vec<(&str, &str, Vec<u8>, u16)> = vec![
        ("a bomb in the chat", "/", mebibyte, 1009),
        ("binary in the chat", "/", masked(0xc2, &hello), 1003),
        ("invalid UTF-8", "/", masked(0xc1, &compress(b"\xff")), 1007),
        ("garbage", "/", masked(0xc1, b"\xff\xff\xff"), 1007),
        ("truncated", ECHO, masked(0xc1, &hello[..4]), 1007),
        ("RSV1 on a Ping", ECHO, masked(0xc9, b""), 1002),
        ("RSV1 on a continuation", ECHO, [masked(0x41, &hello), masked(0xc0, b"")].concat(), 1002),
        ("RSV2", ECHO, masked(0xa1, b"Hello"), 1002),
        ("blocks without bytes", "/", masked(0xc1, &[0, 0, 0, 0xff, 0xff].repeat(20_000)), 1009),
        ("a bomb over 16 MiB", ECHO, masked(0xc2, &compress(&vec![0; (16 << 20) + 1])), 1009),
    ];
    each_row(
        &rows,
        |(name, ..)| (*name).to_owned(),
        |(_, path, bytes, code)| {
            let path = if *path == "/" { events_path("a", "r") } else { (*path).to_owned() };
            let mut client = Client::connect(&server, &path, OFFER);
            client.raw.try_send(bytes);
            let close = std::iter::from_fn(|| Some(client.read())).find(|received| received.first == 0x88).unwrap();
            assert_eq!(u16::from_be_bytes(close.payload[..2].try_into().unwrap()), *code);
        },
    );
    let mut client = Client::connect(&server, ECHO, OFFER);
    let largest = vec![0; 16 << 20];
    client.send_compressed(0x82, &largest);
    assert!(client.read().payload == largest, "the largest message is echoed");
}

/// Each of 50 clients sends a decompression bomb of 64 MiB. The server stops inflating at its limit of 100,000
/// bytes, so its peak memory stays below 60,000 KiB.
#[test]
fn memory_is_bounded() {
    let server = server(&["--max-echo", "100000"]);
    let bomb = compress(&vec![0; 64 << 20]);
    for _ in 0..50 {
        let mut client = Client::connect(&server, ECHO, OFFER);
        client.raw.try_send(&masked(0xc2, &bomb));
        assert_eq!(client.read_close(), 1009);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 60_000, "{peak} KiB");
}

#[test]
fn only_events_for_a_whole_room_are_compressed() {
    let server = server(&[]);
    let mut alice = Client::connect(&server, &events_path("alice", "r"), OFFER);
    let mut bob = Client::connect(&server, &rooms_path("r"), OFFER);
    let mut carol = Client::connect(&server, &presence_path("carol", "1", "r"), NO_TAKEOVER_OFFER);
    let mut dave = Client::connect(&server, &events_path("dave", "r"), "");
    let sees = |name: &str, client: &mut Client, is_compressed: bool, needle: &str| {
        let received = client.read();
        let text = String::from_utf8_lossy(&received.payload).into_owned();
        assert!(text.contains(needle), "{name} receives {text}, not {needle}");
        assert_eq!(received.is_compressed, is_compressed, "{name} receives {text}");
    };
    sees("alice", &mut alice, false, "welcome");
    sees("bob", &mut bob, false, "joined"); // the server sends Bob his own join separately
    sees("carol", &mut carol, false, "carol");
    sees("dave", &mut dave, false, "welcome");
    sees("alice", &mut alice, false, "joined");
    sees("alice", &mut alice, false, "carol");
    sees("alice", &mut alice, false, "dave");
    sees("bob", &mut bob, true, "joined");
    sees("bob", &mut bob, true, "joined");
    sees("carol", &mut carol, true, "dave");

    alice.raw.send_text(&text("a message of some length"));
    for (name, client, is_compressed) in
        [("alice", &mut alice, true), ("bob", &mut bob, true), ("carol", &mut carol, true), ("dave", &mut dave, false)]
    {
        sees(name, client, is_compressed, "a message of some length");
    }
    alice.send_compressed(0x81, text("/msg dave a secret").as_bytes());
    sees("alice", &mut alice, false, "a secret");
    sees("dave", &mut dave, false, "a secret");
    alice.send_compressed(0x81, br#"{"event":"typing"}"#);
    sees("bob", &mut bob, false, "typing");
    sees("dave", &mut dave, false, "typing");
    // The second message repeats the nonce of the first, so the server does not publish it. Instead, the server sends
    // the first message to Alice again, uncompressed like every event for a single client.
    for expected in [true, false] {
        let message = json!({ "event": "message", "data": { "text": "with a nonce", "nonce": "n" } }).to_string();
        alice.send_compressed(0x81, message.as_bytes());
        sees("alice", &mut alice, expected, "with a nonce");
    }
    alice.send_compressed(0x81, b"not JSON, but long enough to be compressed");
    sees("alice", &mut alice, false, "error");
    alice.send_compressed(0x81, br#"{"event":"history","data":{"before":99}}"#);
    sees("alice", &mut alice, false, "with a nonce");
    sees("bob", &mut bob, true, "with a nonce");
    sees("carol", &mut carol, true, "with a nonce");
    drop(dave);
    sees("alice", &mut alice, true, "left");
    sees("bob", &mut bob, true, "left");
    sees("carol", &mut carol, true, "dave");
}

/// The server closes the connection of a member that stops reading. All messages that the server sent before its Close
/// must inflate, in order and without a gap.
#[test]
fn a_slow_consumer() {
    let server = server(&["--max-outbox", "20000"]);
    let mut sender = Client::connect(&server, &events_path("sender", "r"), OFFER);
    let mut slow = Client::connect(&server, &events_path("slow", "r"), OFFER);
    let mut random = fastrand::Rng::with_seed(1);
    sender.read_event("joined");
    let mut sent = Vec::new();
    // Random text hardly compresses, so it fills the kernel's buffers.
    while !server.log().contains("too slow") {
        sent.push((0..500).map(|_| random.alphanumeric()).collect::<String>());
        sender.raw.send_text(&text(sent.last().unwrap()));
        let received = sender.read();
        if received.json()["event"] == "left" {
            break;
        }
        assert_eq!(received.json()["data"]["text"], *sent.last().unwrap());
    }
    let mut count = 0;
    slow.read_event("welcome");
    let close = loop {
        let received = slow.read();
        if received.first == 0x88 {
            break received;
        }
        assert_eq!(received.json()["data"]["text"], sent[count], "message {count}");
        count += 1;
    };
    assert_eq!(close.payload[..2], 1008_u16.to_be_bytes());
    assert!(0 < count && count < sent.len());
}

/// Compression shrinks the messages of a busy room to about a third. The texts are random excerpts of the README.
#[test]
fn compression_shrinks_the_messages_of_a_busy_room() {
    let server = server(&[]);
    let mut random = fastrand::Rng::with_seed(2);
    let words = include_str!("../README.md").split_whitespace().collect::<Vec<_>>();
    let mut members: Vec<Client> = Vec::new();
    let (mut sent, mut inflated) = (0, 0);
    for number in 0..400 {
        if number % 20 == 0 && members.len() < 10 {
            members.push(Client::connect(&server, &events_path(&format!("user {number}"), "r"), OFFER));
            members.last_mut().unwrap().read_event("welcome");
            let others = members.len() - 1;
            members[..others].iter_mut().for_each(|member| drop(member.read_event("joined")));
        }
        let start = random.usize(..words.len() - 12);
        let words = words[start..start + random.usize(3..12)].join(" ").replace('/', "");
        let sender = random.usize(..members.len());
        members[sender].raw.send_text(&text(&words));
        for member in &mut members {
            let received = member.read();
            assert_eq!((received.is_compressed, &received.json()["data"]["text"]), (true, &json!(words)));
            (sent, inflated) = (sent + received.len, inflated + received.payload.len());
        }
    }
    let ratio = sent as f64 / inflated as f64;
    eprintln!("{sent} of {inflated} bytes: {ratio:.3}");
    assert!(ratio <= 0.36, "{ratio}");
}

/// A child process that runs many WebSocket clients of another implementation: tests/deflate/peers.js or peers.py.
struct Peers {
    child: Child,
    stdin: ChildStdin,
    events: Receiver<Value>,
}

impl Peers {
    fn start(mut command: Command) -> Peers {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the peers start");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        Peers { child, stdin, events }
    }

    fn command(&mut self, command: &Value) {
        writeln!(self.stdin, "{command}").expect("the peers read a command");
    }

    fn next_event(&self) -> Value {
        self.events.recv_timeout(support::DEADLINE).expect("an event of the peers")
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Default)]
struct Peer {
    /// The index of the peer's room in `ROOMS`.
    room: usize,
    /// The highest message id that the peer has received from its room.
    last_id: usize,
    /// Whether the peer is in `room`: `false` while it joins, switches or closes, and once it has closed.
    is_in_room: bool,
    is_paused: bool,
    is_gone: bool,
}

const ROOMS: [&str; 2] = ["one", "two"];

/// A server, and peers in two rooms. The peers are clients that use another WebSocket implementation. Each room also
/// has an observer without compression, and the test compares the peers' messages with the observer's.
struct World {
    server: Server,
    peers: Peers,
    observers: [Client; 2],
    /// Per room: the texts of the messages that its observer has received.
    logs: [Vec<String>; 2],
    table: Vec<Peer>,
    received: u32,
}

impl World {
    fn new(command: Command) -> World {
        let server = server(&["--history", "0"]);
        let mut observers = ROOMS.map(|room| Client::connect(&server, &events_path("observer", room), ""));
        observers.iter_mut().for_each(|observer| drop(observer.read_event("welcome")));
        let peers = Peers::start(command);
        World { server, peers, observers, logs: Default::default(), table: Vec::new(), received: 0 }
    }

    fn open(&mut self, room: usize, options: &Value) {
        let id = self.table.len();
        let path = events_path(&format!("peer {id}"), ROOMS[room]);
        let url = format!("ws://127.0.0.1:{}{path}", self.server.port());
        self.peers.command(&json!({ "open": id, "url": url, "options": options }));
        self.table.push(Peer::default());
        self.settle(id);
    }

    fn switch(&mut self, id: usize) {
        self.table[id].is_in_room = false;
        let text = json!({ "event": "switch_room", "data": { "room": ROOMS[1 - self.table[id].room] } }).to_string();
        self.peers.command(&json!({ "send": id, "text": text }));
        self.settle(id);
    }

    /// Waits until a peer has joined or switched to the room that it requested.
    fn settle(&mut self, id: usize) {
        while !self.table[id].is_in_room {
            self.handle_event();
        }
    }

    fn handle_event(&mut self) {
        let event = self.peers.next_event();
        assert_eq!(event["error"], Value::Null, "{event}");
        let peer = &mut self.table[event["peer"].as_u64().unwrap() as usize];
        if let Some(extensions) = event["extensions"].as_str() {
            assert!(extensions.contains("permessage-deflate"), "{extensions}");
        }
        if event["closed"].is_number() {
            assert_eq!(event["closed"], 1000);
            (peer.is_gone, peer.is_in_room) = (true, false);
        }
        let Some(text) = event["text"].as_str() else { return };
        let message: Value = serde_json::from_str(text).expect("JSON");
        let data = &message["data"];
        match message["event"].as_str().unwrap() {
            "welcome" | "switched" => {
                peer.room = usize::from(data["room"] == ROOMS[1]);
                (peer.last_id, peer.is_in_room) = (data["last_id"].as_u64().unwrap() as usize, true);
            }
            "message" => {
                peer.last_id += 1;
                assert_eq!(data["id"], peer.last_id, "in order and once: {message}");
                let (room, last_id) = (peer.room, peer.last_id);
                self.read_log(room, last_id);
                assert_eq!(data["text"], self.logs[room][last_id - 1]);
                self.received += 1;
            }
            _ => {}
        }
    }

    /// Reads messages from a room's observer into the room's log, up to the message with the id `last_id`.
    fn read_log(&mut self, room: usize, last_id: usize) {
        while self.logs[room].len() < last_id {
            let message = self.observers[room].read_event("message").json();
            assert_eq!(message["data"]["id"], self.logs[room].len() + 1);
            self.logs[room].push(message["data"]["text"].as_str().unwrap().to_owned());
        }
    }

    fn finish(&mut self) {
        for id in 0..self.table.len() {
            self.peers.command(&json!({ "resume": id }));
        }
        for room in [0, 1] {
            self.observers[room].raw.send_text(&text("the end"));
            while self.logs[room].last().is_none_or(|text| text != "the end") {
                self.read_log(room, self.logs[room].len() + 1);
            }
        }
        while !self.table.iter().all(|peer| !peer.is_in_room || peer.last_id == self.logs[peer.room].len()) {
            self.handle_event();
        }
    }
}

/// Clients that use another WebSocket implementation join, leave, switch rooms, pause reading and send messages at
/// random. Each client must receive every message of its room exactly once and in order.
fn check_random_rooms(command: Command, options: &[Value]) {
    let (mut world, mut random, mut switches) = (World::new(command), fastrand::Rng::with_seed(3), 0);
    for step in 0..600 {
        let table = &world.table;
        let active: Vec<usize> = (0..table.len()).filter(|&at| table[at].is_in_room && !table[at].is_paused).collect();
        let chosen = (!active.is_empty()).then(|| active[random.usize(..active.len())]);
        match (random.u8(..20), chosen) {
            (0, _) | (_, None) if table.iter().filter(|peer| !peer.is_gone).count() < 12 => {
                world.open(random.usize(..2), &options[world.table.len() % options.len()]);
            }
            (1, Some(id)) if random.bool() => {
                world.table[id].is_in_room = false;
                world.peers.command(&json!({ "close": id }));
            }
            (2, Some(id)) => {
                world.switch(id);
                switches += 1;
            }
            (3, Some(id)) => {
                world.table[id].is_paused = true;
                world.peers.command(&json!({ "pause": id }));
            }
            (4, _) => {
                if let Some(id) = world.table.iter().position(|peer| peer.is_paused) {
                    world.table[id].is_paused = false;
                    world.peers.command(&json!({ "resume": id }));
                }
            }
            (_, Some(id)) => {
                let text = text(&format!("message {step} {}", "of some text ".repeat(random.usize(..20))));
                world.peers.command(&json!({ "send": id, "text": text }));
            }
            (_, None) => {}
        }
    }
    world.finish();
    let (received, count) = (world.received, world.table.len());
    assert!(received > 1000 && switches > 5 && count > 12, "{received} messages, {switches} switches, {count} peers");
}

#[test]
fn npm_ws_in_random_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(node) = support::require_tool("node", &[]) else { return };
    let ws = root.join("tests/npm/node_modules/ws");
    if support::require_tool("ws", &[ws.join("index.js")]).is_none() {
        return;
    }
    let mut command = Command::new(node);
    command.arg(root.join("tests/deflate/peers.js")).arg(ws);
    let options = [
        json!({}),
        json!({ "serverNoContextTakeover": true }),
        json!({ "clientNoContextTakeover": true }),
        json!({ "serverMaxWindowBits": 9 }),
    ];
    check_random_rooms(command, &options);
}

#[test]
fn python_websockets_in_random_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/websockets-venv/bin/python");
    let Some(python) = support::require_tool("websockets", &[python]) else { return };
    let mut command = Command::new(python);
    command.arg(root.join("tests/deflate/peers.py"));
    let options = [
        json!({}),
        json!({ "server_no_context_takeover": true }),
        json!({ "server_max_window_bits": 10 }),
        json!({ "client_no_context_takeover": true }),
    ];
    check_random_rooms(command, &options);
}

/// The trace shows RSV1, the inflated length and the inflated text. `wirechat replay` shows the inflated text of a
/// recording.
#[test]
fn traces_and_recordings_show_the_inflated_text() {
    let dir = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("deflate-{}", std::process::id()));
    let server = server(&["--trace", "--record", dir.to_str().unwrap()]);
    let mut alice = Client::connect(&server, &events_path("alice", "r"), OFFER);
    let mut bob = Client::connect(&server, &events_path("bob", "r"), OFFER);
    bob.read_event("welcome");
    let sent = [text("the first compressed message"), text("the second compressed message")];
    for text in &sent {
        alice.send_compressed(0x81, text.as_bytes());
        alice.read_event("message");
        bob.read_event("message");
    }
    // Send a command with a secret twice: first in one frame, then in two fragments.
    let secret = json!({ "event": "token", "data": { "token": "a-secret-token-a-secret-token" } }).to_string();
    alice.send_compressed(0x81, secret.as_bytes());
    alice.read_event("error");
    let compressed = compress(secret.as_bytes());
    let (start, end) = compressed.split_at(40);
    alice.raw.send(&[masked(0x41, start), masked(0x80, end)].concat());
    alice.read_event("error");
    alice.raw.send(&masked(0x88, b"\x03\xe8"));
    alice.raw.read_to_end();
    server.wait_for_log("both Closes passed");
    let log = server.log();
    let lines = |sign: char, text: &str| {
        let is_shown = |line: &&str| {
            line.contains(sign) && line.contains(" rsv1 ") && line.contains(" inflated=") && line.contains(text)
        };
        log.lines().filter(is_shown).count()
    };
    let counts = [lines('→', "the first"), lines('→', "the second"), lines('←', r#""username":"alice","#)];
    assert_eq!(counts, [1, 1, 4], "{log}");
    assert!(!log.contains("! 1"), "no failure: {log}");
    let inflated = |bytes: &[u8]| compressed.windows(bytes.len()).any(|part| part == bytes);
    let mut replayed = String::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let recording = std::fs::read_to_string(&path).unwrap();
        let hex: String = compressed[30..50].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(inflated(&compressed[30..50]) && !recording.contains(&hex), "a recording has no token");
        let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).arg("replay").arg(&path).output().unwrap();
        assert!(output.status.success(), "as recorded: {}", String::from_utf8_lossy(&output.stdout));
        replayed += &String::from_utf8(output.stdout).unwrap();
    }
    assert!(replayed.contains("the second compressed") && !replayed.contains("a-secret"), "{replayed}");
    assert!(!log.contains("a-secret"), "{log}");
    let _ = std::fs::remove_dir_all(&dir);
}

/// An inspector that attaches to an open connection sees inflated messages. It needs no earlier message to inflate
/// them, because the server restarts the room's compression when the inspector attaches.
#[test]
fn an_inspector_sees_inflated_text() {
    let server = server(&[]);
    let mut alice = Client::connect(&server, &events_path("alice", "r"), OFFER);
    let ticket = alice.read_event("welcome").json()["data"]["ticket"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        alice.raw.send_text(&text("a message before the inspector"));
        alice.read_event("message");
    }
    let mut inspector = Client::connect(&server, &format!("/inspect?ticket={ticket}"), "");
    loop {
        alice.raw.send_text(&text("a message before the inspector, or after it"));
        assert!(alice.read_event("message").is_compressed);
        let record = inspector.read().json();
        if record["record"] == "frame" && record["from"] == "server" {
            let hex = record["inflated"]["payload"].as_str().expect("it is inflated").to_owned();
            let bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
            let json: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["data"]["text"], "a message before the inspector, or after it");
            assert_eq!(record["rsv"], 4);
            break;
        }
    }
    // The inspector sends a command that makes the server fragment a message. Only the first fragment may have RSV1 set
    // (RFC 7692 §6).
    inspector.raw.send_text(r#"{"do":"fragment"}"#);
    let mut firsts = Vec::new();
    while firsts.is_empty() {
        alice.raw.send_text(&text("in three fragments"));
        let first = alice.raw.read_exact(2);
        let mut payload = alice.raw.read_exact(first[1].into());
        if first[0] == 0x41 {
            firsts.push(first[0]);
            for _ in 0..2 {
                let next = alice.raw.read_exact(2);
                firsts.push(next[0]);
                payload.extend(alice.raw.read_exact(next[1].into()));
            }
        }
        let inflated = String::from_utf8(alice.inflate(&payload)).unwrap();
        assert!(inflated.contains("in three fragments"), "{inflated}");
    }
    assert_eq!(firsts, [0x41, 0x00, 0x80]);
}

#[test]
fn explain_inflates() {
    let explain = |bytes: &str, arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_wirechat");
        let output = Command::new(program).arg("explain").args(arguments).arg(bytes).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let alone = explain("c1 87 00 00 00 00 f2 48 cd c9 c9 07 00", &[]);
    assert!(alone.contains("the 7 bytes of frame 1 inflate to 5: \"Hello\""), "{alone}");
    let context = explain("c1 05 f2 00 11 00 00", &["--from-server"]);
    assert!(context.contains("refers to earlier messages"), "{context}");
}
