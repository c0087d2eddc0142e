//! Tests the whole server over real sockets: slow readers, floods, resets, running out of file descriptors, and
//! signals. Options shorten the server's timeouts, but no result depends on timing: the tests wait for conditions.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::handshake;
use support::table::{each_row, hex};
use support::watched::WitnessedServer;
use support::{DEADLINE, Frame, RawClient, Server, masked, upgrade_request, wait_until};

const ECHO: &str = "/echo?token=dev-token";

/// Joins the room `general`, and reads the `welcome`.
fn member(server: &Server, name: &str) -> RawClient {
    let mut client = server.upgrade(&member_path(name));
    client.read_event("welcome");
    client
}

fn member_path(name: &str) -> String {
    format!("/?token=dev-token&username={name}&room=general")
}

/// Like [`member`], but with a small receive window: the server's writes soon block when the member stops reading.
fn member_with_a_small_window(server: &Server, name: &str) -> RawClient {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    let mut client = RawClient::new(socket.into());
    client.send(upgrade_request(&member_path(name)).as_bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.read_event("welcome");
    client
}

fn send_message(client: &mut RawClient, text: &str) {
    client.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
}

/// Reads events up to the message with this text. Returns the events before that message.
fn receive_until(client: &mut RawClient, text: &str) -> Vec<Value> {
    let mut before = Vec::new();
    loop {
        let frame = client.read_frame();
        if frame.opcode() == 9 {
            continue;
        }
        let event: Value = serde_json::from_str(frame.text()).expect("JSON");
        if event["event"] == "message" && event["data"]["text"] == text {
            return before;
        }
        before.push(event);
    }
}

/// Reads frames up to the Close. Returns the frames before the Close, and the Close's code and reason.
fn read_to_close(client: &mut RawClient) -> (Vec<Frame>, (u16, String)) {
    let mut frames = Vec::new();
    loop {
        let frame = client.read_frame();
        if frame.opcode() == 8 {
            return (frames, frame.close());
        }
        frames.push(frame);
    }
}

/// Sends `frame` repeatedly until the server has dropped the connection.
fn send_until_dropped(client: &mut RawClient, frame: &[u8]) {
    wait_until("the connection is dropped", || client.stream.write_all(frame).is_err());
}

// ---------------------------------------------------------------------------------------------------- slow readers

/// Options for texts of 16,000 characters. There is no history, because a backlog of such texts could almost fill an
/// outbox.
const BIG_TEXT_OPTIONS: [&str; 6] = ["--max-outbox", "65536", "--max-text", "20000", "--history", "0"];

/// Options for a short close timeout, and a handshake timeout that does not expire during a test.
const SHORT_CLOSE: [&str; 4] = ["--close-timeout", "0.3", "--handshake-timeout", "600"];

/// Two members of a room: `sender` sends texts of 16,000 characters, and `receiver` reads them. The texts fill the
/// outboxes of members that do not read.
struct Chatter {
    sender: RawClient,
    receiver: RawClient,
    /// The ids of the messages that `receiver` has read.
    ids: Vec<u64>,
    /// The usernames from the `left` events that `receiver` has read.
    left: Vec<String>,
    /// How many messages `receiver` had read by the last `left` event. These were sent before that member left.
    messages_before_left: usize,
}

impl Chatter {
    fn start(server: &Server) -> Chatter {
        let sender = member(server, "sender");
        Chatter {
            sender,
            receiver: member(server, "receiver"),
            ids: Vec::new(),
            left: Vec::new(),
            messages_before_left: 0,
        }
    }

    /// Sends eight texts, and waits until the sender and the receiver have received them all. The other members, which
    /// do not read, must not delay these two.
    fn run_round(&mut self) {
        let text = "x".repeat(16_000);
        (0..8).for_each(|_| send_message(&mut self.sender, &text));
        (0..8).for_each(|_| drop(self.sender.read_event("message")));
        let before = self.ids.len();
        while self.ids.len() < before + 8 {
            let event = self.receiver.read_json();
            let data = &event["data"];
            match event["event"].as_str() {
                Some("message") => self.ids.push(data["id"].as_u64().expect("an id")),
                Some("left") => {
                    self.left.push(data["username"].as_str().expect("a name").to_owned());
                    self.messages_before_left = self.ids.len();
                }
                _ => {}
            }
        }
    }

    /// Sends texts until `count` members have left. Asserts that the receiver has received every message.
    fn run_until_left(&mut self, count: usize) {
        let end = Instant::now() + DEADLINE;
        while self.left.len() < count {
            assert!(Instant::now() < end, "{} of {count} were closed", self.left.len());
            self.run_round();
        }
        assert!(self.ids.iter().copied().eq(1..=self.ids.len() as u64), "every message, once, in order");
    }
}

/// If a member does not read, the server completes the partly sent frame, drops the rest of the member's outbox, and
/// sends a Close. A member that reads again receives that Close.
#[test]
fn a_reader_that_stops_receives_a_close() {
    let mut server = WitnessedServer::start(&[&BIG_TEXT_OPTIONS[..], &["--close-timeout", "25"]].concat());
    let mut slow = member_with_a_small_window(&server, "slow");
    let mut chatter = Chatter::start(&server);
    chatter.run_until_left(1);
    assert_eq!(chatter.left, ["slow"]);
    server.check_chat();

    let (frames, close) = read_to_close(&mut slow);
    assert_eq!(close, (1008, "too slow to read".to_owned()));
    let events = frames.iter().map(|frame| serde_json::from_str::<Value>(frame.text()).expect("complete events"));
    let ids: Vec<u64> = events.filter_map(|event| event["data"]["id"].as_u64()).collect();
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "the received messages have no gap");
    // Four texts of 16,000 characters fit into an outbox of 64 KiB, so the outbox that overflowed held at least five.
    // The server completes the text that was partly sent and drops the rest.
    assert!(
        ids.len() + 3 <= chatter.messages_before_left,
        "the rest was dropped: {} of {}",
        ids.len(),
        chatter.messages_before_left
    );
    slow.send(&masked(0x88, &1008u16.to_be_bytes()));
    assert_eq!(slow.read_to_clean_end(), b"");
    chatter.run_round();
    assert_eq!(chatter.left, ["slow"], "one `left`");
    server.finish(&[]);
}

/// A hundred members stop reading from their sockets. The server closes the connection of each member when that
/// member's outbox exceeds `--max-outbox`, so the server's memory grows only a little.
#[test]
fn a_hundred_readers_that_stop() {
    let mut server = WitnessedServer::start(&[&BIG_TEXT_OPTIONS[..], &SHORT_CLOSE].concat());
    let mut chatter = Chatter::start(&server);
    chatter.run_round();
    let before = resident_kib(&server);
    let _slow: Vec<RawClient> = (0..100).map(|i| member_with_a_small_window(&server, &format!("slow{i}"))).collect();
    chatter.run_until_left(100);
    // The server's memory may grow by 64 KiB for each of the 100 outboxes, and by 10 MiB for everything else.
    let grown = resident_kib(&server).saturating_sub(before);
    assert!(grown < 100 * 64 + 10 * 1024, "the server grew by {grown} KiB");
    let mut left = std::mem::take(&mut chatter.left);
    left.sort();
    left.dedup();
    assert_eq!(left.len(), 100, "each left once");
    server.check_chat();
    server.finish(&[]);
}

/// The server keeps a slow reader whose outbox stays below `--max-outbox`. When the client reads again, it must receive
/// every message, although no client sends anything that would wake the server: write readiness alone must be enough.
#[test]
fn a_slow_reader_receives_everything_later() {
    let mut server = WitnessedServer::start(&LARGE_OUTBOX);
    let (mut late, sent) = slow_member(&server);
    for id in 1..=sent {
        assert_eq!(late.read_event("message")["id"], id);
    }
    server.check_chat();
    server.finish(&[]);
}

const LARGE_OUTBOX: [&str; 6] = ["--max-outbox", "67108864", "--max-text", "20000", "--history", "0"];

/// Joins a member that does not read, and sends messages to the room. The member's outbox holds more than the kernel
/// can buffer, but less than half of `--max-outbox`. Returns the member and the number of messages.
fn slow_member(server: &Server) -> (RawClient, u64) {
    let late = member_with_a_small_window(server, "late");
    let mut chatter = Chatter::start(server);
    (0..200).for_each(|_| chatter.run_round());
    (late, chatter.ids.len() as u64)
}

/// Returns the server's resident memory in KiB, or 0 on systems without `/proc`.
fn resident_kib(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}

/// If a peer sends Pings but reads no Pongs, the server stops reading from the peer. When the peer reads again, it
/// receives a Pong for every Ping.
#[test]
fn pings_of_a_peer_that_does_not_read() {
    let mut server = WitnessedServer::start(&["--max-outbox", "65536"]);
    let mut client = member_with_a_small_window(&server, "pinger");
    let before = resident_kib(&server);
    let ping = |i: u32| masked(0x89, &[i.to_be_bytes().as_slice(), &[b'p'; 121]].concat());
    let (mut sent, mut pending) = (0, ping(0));
    // Assume that all buffers are full after 20 consecutive `WouldBlock` errors.
    let mut blocked = 0;
    client.stream.set_nonblocking(true).unwrap();
    while blocked < 20 {
        match client.stream.write(&pending) {
            Ok(n) => {
                blocked = 0;
                pending.drain(..n);
                if pending.is_empty() {
                    sent += 1;
                    pending = ping(sent);
                }
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock, "the connection stays open: {}", server.log());
                blocked += 1;
                server.check_chat();
            }
        }
    }
    client.stream.set_nonblocking(false).unwrap();
    let grown = resident_kib(&server).saturating_sub(before);
    assert!(grown < 10 * 1024, "the server grew by {grown} KiB");
    let mut writer = client.stream.try_clone().unwrap();
    let rest = std::thread::spawn(move || writer.write_all(&pending).unwrap());
    for i in 0..=sent {
        let pong = client.read_frame();
        assert!(pong.first == 0x8a && pong.payload[..4] == i.to_be_bytes(), "pong {i}, not {pong:?}");
    }
    rest.join().unwrap();
    server.finish(&[]);
}

/// The server stops reading from an `/echo` client until the pending echo has been sent. A client that reads late must
/// still receive every echo.
#[test]
fn an_echo_that_is_read_late() {
    let mut server = WitnessedServer::start(&["--max-outbox", "65536"]);
    let mut client = server.upgrade(ECHO);
    let mut writer = RawClient::new(client.stream.try_clone().unwrap());
    let message = |i: u8| vec![i; 1 << 20];
    let writing = std::thread::spawn(move || (0..40).for_each(|i| writer.send(&masked(0x82, &message(i)))));
    (0..50).for_each(|_| server.check_chat());
    for i in 0..40 {
        assert!(client.read_frame() == Frame { first: 0x82, payload: message(i) }, "message {i}");
    }
    writing.join().unwrap();
    server.finish(&[]);
}

#[test]
fn a_thousand_frames_in_one_write() {
    let mut server = WitnessedServer::start(&[]);
    let mut client = server.upgrade(ECHO);
    client.send(&hex("81 81 M0 'x'").repeat(1000));
    server.check_chat();
    assert_eq!(client.read_exact(3000), hex("81 01 'x'").repeat(1000));
    server.finish(&[]);
}

/// Ends the flood when dropped, even if the test panics. Otherwise, the thread scope would wait for the writer forever.
struct FloodGuard<'a>(&'a AtomicBool, TcpStream);

impl Drop for FloodGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
        let _ = self.1.shutdown(Shutdown::Both);
    }
}

/// While one client sends and reads as fast as possible, the server keeps serving that client and all others.
#[test]
fn a_flood_does_not_delay_others() {
    let floods = [("texts", "81 81 M0 'x'", "81 01 'x'"), ("pings", "89 81 M0 'x'", "8a 01 'x'")];
    let mut server = WitnessedServer::start(&[]);
    each_row(
        &floods,
        |row| row.0.to_owned(),
        |(_, frame, reply)| {
            let (stop, replies) = (AtomicBool::new(false), AtomicUsize::new(0));
            let mut writer = server.upgrade(ECHO);
            let mut reader = BufReader::new(writer.stream.try_clone().unwrap());
            let burst = hex(frame).repeat(1000);
            let reply = hex(reply);
            let end = FloodGuard(&stop, writer.stream.try_clone().unwrap());
            std::thread::scope(|scope| {
                let _end = end;
                let writing = scope.spawn(|| {
                    let mut bursts = 0;
                    while !stop.load(SeqCst) {
                        writer.send(&burst);
                        bursts += 1;
                    }
                    writer.send(&masked(0x88, b""));
                    bursts
                });
                let reading = scope.spawn(|| {
                    let (mut frames, mut frame) = (0, [0; 3]);
                    while reader.read_exact(&mut frame[..2]).is_ok() && frame[0] != 0x88 {
                        reader.read_exact(&mut frame[2..]).unwrap();
                        assert_eq!(frame, reply.as_slice());
                        frames += 1;
                        replies.store(frames, SeqCst);
                    }
                    frames
                });
                wait_until("the flood runs", || replies.load(SeqCst) > 1000);
                (0..10).for_each(|_| server.check_chat());
                let count = replies.load(SeqCst);
                wait_until("the flood goes on", || replies.load(SeqCst) > count);
                stop.store(true, SeqCst);
                assert_eq!(writing.join().unwrap() * 1000, reading.join().unwrap(), "nothing was lost");
            });
        },
    );
    server.finish(&[]);
}

/// Members reset their connections while the server broadcasts. The other members receive every message, and one `left`
/// event for each reset connection.
#[test]
fn resets_in_the_middle_of_a_broadcast() {
    let mut server = WitnessedServer::start(&BIG_TEXT_OPTIONS);
    let (mut sender, mut receiver) = (member(&server, "sender"), member(&server, "receiver"));
    let victims: Vec<RawClient> = (0..20).map(|i| member(&server, &format!("victim{i}"))).collect();
    let text = "x".repeat(16_000);
    let mut left = Vec::new();
    for victim in victims {
        send_message(&mut sender, &text);
        socket2::SockRef::from(&victim.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(victim);
        send_message(&mut sender, "and on");
        left.extend(receive_until(&mut receiver, "and on"));
        receive_until(&mut sender, "and on");
    }
    let texts = left.iter().filter(|event| event["data"]["text"] == text).count();
    assert_eq!(texts, 20, "the others receive every message");
    left.retain(|event| event["event"] == "left");
    while left.len() < 20 {
        left.push(json!({"data": receiver.read_event("left")}));
    }
    let mut names: Vec<&str> = left.iter().filter_map(|event| event["data"]["username"].as_str()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20, "each leaves once: {names:?}");
    send_message(&mut sender, "the end");
    assert_eq!(receive_until(&mut receiver, "the end"), [] as [Value; 0]);
    server.check_chat();
    server.finish(&[]);
}

/// With 64 file descriptors, the server cannot accept 200 clients at once. It serves the clients that it has
/// accepted, and accepts further clients as others leave.
#[test]
fn out_of_descriptors() {
    let server = Server::start_from_shell("ulimit -n 64", "", &["--rate-limit", "0"]);
    let mut server = WitnessedServer::new(server, "dev-token");
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        let mut client = TcpStream::connect_timeout(&server.addr(), DEADLINE).expect("the system accepts a connection");
        client.write_all(upgrade_request(ECHO).as_bytes()).unwrap();
        client.set_nonblocking(true).unwrap();
        clients.push(client);
    }
    let has_response = |client: &&TcpStream| client.peek(&mut [0]).is_ok_and(|n| n > 0);
    let waits = |client: &TcpStream| client.peek(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
    wait_until("as many clients as possible have a response", || clients.iter().filter(has_response).count() >= 40);
    (0..20).for_each(|_| server.check_chat());
    wait_until("every client has had a response", || {
        clients.retain(waits);
        clients.is_empty()
    });
    wait_until("there is a place again", || server.status(&handshake()) == 101);
    let lines = server.log().lines().count();
    assert!(lines < 1000, "the log has no line per turn: {lines} lines");
    server.finish(&[]);
}

// ----------------------------------------------------------------------------------------------------------- closing

/// After a rejection, the server keeps the connection open, so that the peer can read the response. A peer that keeps
/// sending is dropped after `--close-timeout`.
#[test]
fn a_rejected_peer_that_stays_is_dropped() {
    let server = WitnessedServer::start(&SHORT_CLOSE);
    let mut client = server.connect();
    client.send(&handshake().target("/").bytes());
    assert_eq!(client.read_response().status, 401);
    send_until_dropped(&mut client, b"and another thing");
    server.finish(&[]);
}

/// On SIGTERM and SIGINT, the server sends a Close with 1001 to every client. The server exits with status 0, even if
/// some clients do not reply.
#[test]
fn sigterm_with_a_hundred_clients() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut clients: Vec<RawClient> = (0..50).map(|i| member(&server, &format!("member{i}"))).collect();
        clients.extend((0..50).map(|_| server.upgrade(ECHO)));
        // Another client is in the middle of its request. The server does not wait for the rest of the request.
        let mut late = server.connect();
        late.send(b"GET / HTTP/1.1\r\n");
        server.signal(signal);
        for (i, client) in clients.iter_mut().enumerate() {
            let (_, (code, reason)) = read_to_close(client);
            assert_eq!(code, 1001);
            assert!(!reason.is_empty(), "a reason that a person can read");
            if i % 2 == 0 {
                client.send(&masked(0x88, &code.to_be_bytes()));
                client.expect_end();
            }
        }
        assert_eq!(server.wait().code(), Some(0));
        clients.iter_mut().skip(1).step_by(2).for_each(RawClient::expect_end);
        late.read_to_end();
        assert!(TcpStream::connect(server.addr()).is_err(), "the listener is closed");
    }
}

#[test]
fn sigterm_without_clients() {
    let mut server = Server::start(&[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "INT"), ("TERM", "INT")] {
        let mut server = Server::start(&[]);
        let mut client = server.upgrade(ECHO);
        server.signal(first);
        assert_eq!(read_to_close(&mut client).1.0, 1001);
        server.signal(second);
        assert_eq!(server.wait().code(), Some(130));
    }
}
