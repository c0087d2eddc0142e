//! The server as a whole: several sockets at once, slow and stubborn peers, silence, and signals.
//!
//! Waits are made short by flags, and nothing here depends on how fast anything is: a test waits for its condition.

mod support;

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::{Response, handshake};
use support::people::chat;
use support::table::{each_row, hex};
use support::watched::Watched;
use support::{DEADLINE, Frame, RawClient, Server, masked, upgrade_request, wait_until, whole_frames};

const ECHO: &str = "/echo?token=dev-token";
const PING: &str = r#"{"event":"ping"}"#;

/// Somebody in the room `general`.
fn member(server: &Server, name: &str) -> RawClient {
    let mut client = server.upgrade(&member_path(name));
    client.read_event("welcome");
    client
}

fn member_path(name: &str) -> String {
    format!("/?token=dev-token&username={name}&room=general")
}

/// The same, with a receive window so small that it is felt soon when they stop reading.
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

fn say(client: &mut RawClient, text: &str) {
    client.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
}

/// Reads until this text has come, and returns the events before it.
fn hear(client: &mut RawClient, text: &str) -> Vec<Value> {
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

/// The frames up to a close, and the close.
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

/// Speaks until the server has cut the connection.
fn speak_until_cut(client: &mut RawClient, frame: &[u8]) {
    wait_until("the connection is cut", || client.stream.write_all(frame).is_err());
}

// ------------------------------------------------------------------------------------------------ slow readers, L, P

/// No history: one of such texts would be more than an outbox holds, and a newcomer be closed for it.
const BIG_TEXTS: [&str; 6] = ["--max-outbox", "65536", "--max-text", "20000", "--history", "0"];

/// A close has to be answered soon, and no other deadline comes before the test is over.
const CUT_SOON: [&str; 4] = ["--close-timeout", "0.3", "--handshake-timeout", "600"];

/// Two people who talk in texts of 16,000 letters while others in the room have stopped reading.
struct Talk {
    talker: RawClient,
    listener: RawClient,
    /// The ids and the departures that the listener heard of.
    ids: Vec<u64>,
    left: Vec<String>,
    /// How many messages the listener had heard when the last one left.
    heard_before_left: usize,
}

impl Talk {
    fn start(server: &Server) -> Talk {
        let talker = member(server, "talker");
        Talk { talker, listener: member(server, "listener"), ids: Vec::new(), left: Vec::new(), heard_before_left: 0 }
    }

    /// Eight texts, heard by both: nobody waits for those who do not read.
    fn round(&mut self) {
        let text = "x".repeat(16_000);
        (0..8).for_each(|_| say(&mut self.talker, &text));
        (0..8).for_each(|_| drop(self.talker.read_event("message")));
        let before = self.ids.len();
        while self.ids.len() < before + 8 {
            let event = self.listener.read_json();
            let data = &event["data"];
            match event["event"].as_str() {
                Some("message") => self.ids.push(data["id"].as_u64().expect("an id")),
                Some("left") => {
                    self.left.push(data["username"].as_str().expect("a name").to_owned());
                    self.heard_before_left = self.ids.len();
                }
                _ => {}
            }
        }
    }

    /// Talks until so many have been closed, and checks that the listener missed nothing.
    fn until_left(&mut self, count: usize) {
        let end = Instant::now() + DEADLINE;
        while self.left.len() < count {
            assert!(Instant::now() < end, "{} of {count} were closed", self.left.len());
            self.round();
        }
        assert!(self.ids.iter().copied().eq(1..=self.ids.len() as u64), "every message, once, in order");
    }
}

/// L01, L03: the frame half sent is finished, the rest is dropped, and the close can be read.
#[test]
fn a_reader_that_stops_is_closed_and_told_why() {
    let mut server = Watched::start(&[&BIG_TEXTS[..], &["--close-timeout", "25"]].concat());
    let mut slow = member_with_a_small_window(&server, "slow");
    let mut talk = Talk::start(&server);
    talk.until_left(1);
    assert_eq!(talk.left, ["slow"]);
    server.still_chats();

    let (frames, close) = read_to_close(&mut slow);
    assert_eq!(close, (1008, "too slow to read".to_owned()));
    let events = frames.iter().map(|frame| serde_json::from_str::<Value>(frame.text()).expect("whole events"));
    let ids: Vec<u64> = events.filter_map(|event| event["data"]["id"].as_u64()).collect();
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "what came is whole and in order");
    // More than four texts of 16,000 letters waited when the bound of 64 KiB was crossed.
    assert!(
        ids.len() + 3 <= talk.heard_before_left,
        "the rest was dropped: {} of {}",
        ids.len(),
        talk.heard_before_left
    );
    slow.send(&masked(0x88, &1008u16.to_be_bytes()));
    assert_eq!(slow.read_to_clean_end(), b"");
    talk.round();
    assert_eq!(talk.left, ["slow"], "told once");
    server.finish(&[]);
}

/// L01, L03: who does not even read that is cut, and what arrived until then has no close inside a frame.
#[test]
fn a_reader_that_never_comes_back_is_cut() {
    let mut server = Watched::start(&[&BIG_TEXTS[..], &CUT_SOON].concat());
    let mut slow = member_with_a_small_window(&server, "slow");
    let mut talk = Talk::start(&server);
    talk.until_left(1);
    speak_until_cut(&mut slow, &masked(0x8a, b""));
    let all = slow.read_to_end();
    let (mut frames, cut) = whole_frames(&all);
    if frames.last().is_some_and(|frame| frame.opcode() == 8) {
        assert_eq!(frames.pop().unwrap().close().0, 1008);
        assert_eq!(cut, b"", "nothing follows the close");
    }
    for frame in frames {
        serde_json::from_str::<Value>(frame.text()).expect("whole events, and no close inside one");
    }
    let payload = cut.get(4..).unwrap_or_default();
    assert!(cut.is_empty() || cut[0] == 0x81 && payload.iter().all(|byte| (0x20..0x7f).contains(byte)));
    server.still_chats();
    server.finish(&[]);
}

/// L04: each is closed at its own bound, and all of them together cost the server little.
#[test]
fn a_hundred_readers_that_stop() {
    let mut server = Watched::start(&[&BIG_TEXTS[..], &CUT_SOON].concat());
    let mut talk = Talk::start(&server);
    talk.round();
    let before = resident_kib(&server);
    let _slow: Vec<RawClient> = (0..100).map(|i| member_with_a_small_window(&server, &format!("slow{i}"))).collect();
    talk.until_left(100);
    // A hundred bounds of 64 KiB, and 10 MiB for what is counted nowhere.
    let grown = resident_kib(&server).saturating_sub(before);
    assert!(grown < 100 * 64 + 10 * 1024, "the server grew by {grown} KiB");
    let mut left = std::mem::take(&mut talk.left);
    left.sort();
    left.dedup();
    assert_eq!(left.len(), 100, "each left once");
    server.still_chats();
    server.finish(&[]);
}

/// Within its bound a reader may be as late as it likes. The poll tells when it reads again: nothing more is said to it.
#[test]
fn a_reader_that_comes_back_gets_what_waited() {
    let mut server = Watched::start(&ROOMY);
    let (mut late, said) = member_who_is_behind(&server);
    for id in 1..=said {
        assert_eq!(late.read_event("message")["id"], id);
    }
    server.still_chats();
    server.finish(&[]);
}

/// And one that ends its side instead has the time of a close to read it.
#[test]
fn a_reader_that_is_behind_and_hangs_up_is_cut() {
    let server = Watched::start(&[&ROOMY[..], &CUT_SOON, &["-v"]].concat());
    let (late, _) = member_who_is_behind(&server);
    late.stream.shutdown(Shutdown::Write).unwrap();
    server.wait_for_log("LEAVE room=general user=late");
    server.wait_for_log("the close was not answered");
    server.finish(&[]);
}

const ROOMY: [&str; 6] = ["--max-outbox", "67108864", "--max-text", "20000", "--history", "0"];

/// Somebody for whom more waits than a kernel keeps, and less than makes the server stop reading from them; and how many
/// messages were said.
fn member_who_is_behind(server: &Server) -> (RawClient, u64) {
    let late = member_with_a_small_window(server, "late");
    let mut talk = Talk::start(server);
    (0..200).for_each(|_| talk.round());
    (late, talk.ids.len() as u64)
}

/// What the server holds in memory, where the system says so.
fn resident_kib(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}

/// Pings of a peer that reads none of the pongs: it is not read any more, and when it reads again, every pong is there.
#[test]
fn pings_of_a_peer_that_does_not_read() {
    let mut server = Watched::start(&["--max-outbox", "65536"]);
    let mut client = member_with_a_small_window(&server, "pinger");
    let before = resident_kib(&server);
    let ping = |i: u32| masked(0x89, &[i.to_be_bytes().as_slice(), &[b'p'; 121]].concat());
    let (mut sent, mut pending) = (0, ping(0));
    // Nothing more fits when the socket has taken nothing in twenty turns of the loop.
    let mut refused = 0;
    client.stream.set_nonblocking(true).unwrap();
    while refused < 20 {
        match client.stream.write(&pending) {
            Ok(n) => {
                refused = 0;
                pending.drain(..n);
                if pending.is_empty() {
                    sent += 1;
                    pending = ping(sent);
                }
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock, "the connection stays: {}", server.log());
                refused += 1;
                server.still_chats();
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

/// `/echo` is not read while its echo is unsent: no bound closes it, and nothing is lost.
#[test]
fn an_echo_that_is_read_late() {
    let mut server = Watched::start(&["--max-outbox", "65536"]);
    let mut client = server.upgrade(ECHO);
    let mut writer = RawClient::new(client.stream.try_clone().unwrap());
    let message = |i: u8| vec![i; 1 << 20];
    let writing = std::thread::spawn(move || (0..40).for_each(|i| writer.send(&masked(0x82, &message(i)))));
    (0..50).for_each(|_| server.still_chats());
    for i in 0..40 {
        assert!(client.read_frame() == Frame { first: 0x82, payload: message(i) }, "message {i}");
    }
    writing.join().unwrap();
    server.finish(&[]);
}

/// F20: a thousand frames in one write.
#[test]
fn a_thousand_frames_in_one_write() {
    let mut server = Watched::start(&[]);
    let mut client = server.upgrade(ECHO);
    client.send(&hex("81 81 M0 'x'").repeat(1000));
    server.still_chats();
    assert_eq!(client.read_exact(3000), hex("81 01 'x'").repeat(1000));
    server.finish(&[]);
}

/// Ends a flood however its test ends: its threads would be waited for, and its writer would never stop.
struct EndOfFlood<'a>(&'a AtomicBool, TcpStream);

impl Drop for EndOfFlood<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
        let _ = self.1.shutdown(Shutdown::Both);
    }
}

/// L15, P07: who sends as fast as it can, and reads as fast, gets its share and no more.
#[test]
fn a_flood_from_one_and_others_are_served() {
    let floods = [("texts", "81 81 M0 'x'", "81 01 'x'"), ("pings", "89 81 M0 'x'", "8a 01 'x'")];
    let mut server = Watched::start(&[]);
    each_row(
        &floods,
        |row| row.0.to_owned(),
        |(_, frame, answer)| {
            let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
            let mut writer = server.upgrade(ECHO);
            let mut reader = BufReader::new(writer.stream.try_clone().unwrap());
            let burst = hex(frame).repeat(1000);
            let answer = hex(answer);
            let end = EndOfFlood(&stop, writer.stream.try_clone().unwrap());
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
                        assert_eq!(frame, answer.as_slice());
                        frames += 1;
                        answered.store(frames, SeqCst);
                    }
                    frames
                });
                wait_until("the flood runs", || answered.load(SeqCst) > 1000);
                (0..10).for_each(|_| server.still_chats());
                let midway = answered.load(SeqCst);
                wait_until("the flood has run on", || answered.load(SeqCst) > midway);
                stop.store(true, SeqCst);
                assert_eq!(writing.join().unwrap() * 1000, reading.join().unwrap(), "nothing was lost");
            });
        },
    );
    server.finish(&[]);
}

/// T01, T05: peers that reset their connections while they are being written to. The others hear everything, and of each
/// departure once.
#[test]
fn resets_in_the_middle_of_a_broadcast() {
    let mut server = Watched::start(&BIG_TEXTS);
    let (mut talker, mut listener) = (member(&server, "talker"), member(&server, "listener"));
    let victims: Vec<RawClient> = (0..20).map(|i| member(&server, &format!("victim{i}"))).collect();
    let text = "x".repeat(16_000);
    let mut left = Vec::new();
    for victim in victims {
        say(&mut talker, &text);
        socket2::SockRef::from(&victim.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(victim);
        say(&mut talker, "and on");
        left.extend(hear(&mut listener, "and on"));
        hear(&mut talker, "and on");
    }
    let texts = left.iter().filter(|event| event["data"]["text"] == text).count();
    assert_eq!(texts, 20, "the others hear everything");
    left.retain(|event| event["event"] == "left");
    while left.len() < 20 {
        left.push(json!({"data": listener.read_event("left")}));
    }
    let mut names: Vec<&str> = left.iter().filter_map(|event| event["data"]["username"].as_str()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 20, "each leaves once: {names:?}");
    say(&mut talker, "the end");
    assert_eq!(hear(&mut listener, "the end"), [] as [Value; 0]);
    server.still_chats();
    server.finish(&[]);
}

/// L06: with 64 descriptors and 200 clients, the ones that are in are served, and each that goes makes room for others.
#[test]
fn out_of_descriptors() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_wirechat")]);
    command.args(["--listen", "127.0.0.1:0", "--rate-limit", "0"]);
    let mut server = Watched::new(Server::launch(&mut command), "dev-token");
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        let mut client = TcpStream::connect_timeout(&server.addr(), DEADLINE).expect("the system takes a connection");
        client.write_all(upgrade_request(ECHO).as_bytes()).unwrap();
        client.set_nonblocking(true).unwrap();
        clients.push(client);
    }
    let let_in = |client: &&TcpStream| client.peek(&mut [0]).is_ok_and(|n| n > 0);
    let waits = |client: &TcpStream| client.peek(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
    wait_until("as many as can be are answered", || clients.iter().filter(let_in).count() >= 40);
    (0..20).for_each(|_| server.still_chats());
    wait_until("everybody is answered in turn", || {
        clients.retain(waits);
        clients.is_empty()
    });
    wait_until("there is room again", || server.status(&handshake()) == 101);
    let lines = server.log().lines().count();
    assert!(lines < 1000, "refusals are not logged by the turn: {lines} lines");
    server.finish(&[]);
}

// ---------------------------------------------------------------------------------------------------- closing, C

/// A peer that does not take part in a closing handshake: how it makes the server close, and what it then goes on to say.
struct Stubborn {
    id: &'static str,
    at: &'static str,
    sent: Vec<u8>,
    code: u16,
    then: Vec<u8>,
}

/// C13, C14: the connection is cut at the close deadline, whatever the peer does.
#[test]
fn peers_that_do_not_answer_a_close() {
    let binary = || hex("82 81 M0 'x'");
    let row = |id, at, sent, code, then| Stubborn { id, at, sent, code, then };
    let chat = "/?token=dev-token";
    let rows = [
        row("C13 silent after 1003", chat, binary(), 1003, vec![]),
        row("C13 silent after 1002", ECHO, hex("81 7f"), 1002, vec![]),
        row("C13 silent after 1007", ECHO, hex("81 81 M0 ff"), 1007, vec![]),
        row("C14 texts after 1003", chat, binary(), 1003, masked(0x81, PING.as_bytes())),
        row("C14 pings after 1003", chat, binary(), 1003, masked(0x89, b"")),
        row("C14 half a frame after 1003", chat, binary(), 1003, hex("82 fe ff ff M0")),
        row("C14 noise after 1002", ECHO, hex("81 7f"), 1002, vec![0xff; 1000]),
        row("C14 noise after 1009", ECHO, hex("82 ff 7f ff ff ff ff ff ff ff"), 1009, vec![0; 1000]),
    ];
    let mut server = Watched::start(&CUT_SOON);
    each_row(
        &rows,
        |row| row.id.to_owned(),
        |row| {
            let mut client = server.upgrade(row.at);
            client.send(&row.sent);
            assert_eq!(read_to_close(&mut client).1.0, row.code);
            if !row.then.is_empty() {
                speak_until_cut(&mut client, &row.then);
            }
            client.expect_end();
            server.still_chats();
        },
    );
    server.finish(&[]);
}

/// A refused request lingers in the same way, so that its answer can be read, and not for longer than that.
#[test]
fn a_refused_peer_that_stays_is_cut() {
    let server = Watched::start(&CUT_SOON);
    let mut client = server.connect();
    client.send(&handshake().target("/").bytes());
    assert_eq!(client.read_response().status, 401);
    speak_until_cut(&mut client, b"and another thing");
    server.finish(&[]);
}

/// C17: everyone is told 1001, those who answer and those who do not; and the exit is a success.
#[test]
fn sigterm_with_a_hundred_clients() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&[]);
        let mut clients: Vec<RawClient> = (0..50).map(|i| member(&server, &format!("member{i}"))).collect();
        clients.extend((0..50).map(|_| server.upgrade(ECHO)));
        // One more is in the middle of its request, which nobody waits for.
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
        assert!(TcpStream::connect(server.addr()).is_err(), "nobody listens any more");
    }
}

#[test]
fn sigterm_without_clients() {
    let mut server = Server::start(&[]);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

/// Who is in a hurry sends a second signal.
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

/// C15: both ends close at once. The server is stopped while the two closes come on their way.
#[test]
fn both_close_at_once() {
    let mut server = Server::start(&[]);
    let mut client = server.upgrade(ECHO);
    server.signal("STOP");
    client.send(&masked(0x88, &1000u16.to_be_bytes()));
    server.signal("TERM");
    server.signal("CONT");
    let (frames, (code, _)) = read_to_close(&mut client);
    assert!(frames.is_empty() && matches!(code, 1000 | 1001), "one close, {code}");
    client.expect_end();
    assert_eq!(server.wait().code(), Some(0));
}

// -------------------------------------------------------------------------------------------------------- waits, P, H

/// H36: who sends a byte now and then is told 408 at the deadline, which trickling does not move.
#[test]
fn a_request_that_trickles() {
    let server = Watched::start(&["--handshake-timeout", "1"]);
    let request = handshake().padded_to(8192).bytes();
    let mut client = server.connect();
    client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut bytes = request.iter();
    let mut answer = Vec::new();
    while answer.is_empty() {
        client.send(&[*bytes.next().expect("the deadline comes before 8,192 waits of 20 ms")]);
        match client.stream.read_to_end(&mut answer) {
            Ok(_) => break,
            Err(e) => assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{e}"),
        }
    }
    client.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    answer.extend(client.read_to_clean_end());
    let response = Response::parse(&answer);
    assert_eq!(response.status, 408);
    assert_eq!(response.header("Connection"), "close");
    assert!(response.body.contains("§15.5.9"), "{response:?}");
    server.finish(&[]);
}

/// H36, H37: at the deadline, 408 if anything had come, and else nothing.
#[test]
fn requests_that_never_end() {
    let rows: [(&str, &[u8], &str); 5] = [
        ("H37 nothing", b"", ""),
        ("H36 one byte", b"G", "HTTP/1.1 408 "),
        ("H36 a blank line", b"\r\n", "HTTP/1.1 408 "),
        ("H36 half a request", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", "HTTP/1.1 408 "),
        ("H36 all but its last byte", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r", "HTTP/1.1 408 "),
    ];
    let mut server = Watched::start(&["--handshake-timeout", "1"]);
    let rows = rows.map(|(id, sent, answer)| (id, begin(server.connect(), sent), answer));
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, stream, answer)| {
            let mut client = RawClient::new(stream.try_clone().unwrap());
            let got = String::from_utf8(client.read_to_clean_end()).unwrap();
            assert!(got.starts_with(answer) && got.is_empty() == answer.is_empty(), "{got:?}");
            server.still_chats();
        },
    );
    server.finish(&[]);
}

/// Sends a beginning, and leaves it at that.
fn begin(mut client: RawClient, sent: &[u8]) -> TcpStream {
    client.send(sent);
    client.stream
}

/// P08, F18, G12: a peer that says nothing is pinged, then cut, and the log says why; also in the middle of a header or of
/// a message.
#[test]
fn silent_peers() {
    let rows = [
        ("P08 silent", vec![]),
        ("F18 in the middle of a header", hex("81 ff 00 00")),
        ("F18 in the middle of a frame", hex("81 85 M0 'He'")),
        ("G12 in the middle of a message", hex("01 82 M0 'He'")),
    ];
    let server = Server::start(&["--ping-interval", "0.2", "--idle-timeout", "0.8"]);
    let mut sleeper = server.upgrade(&member_path("sleeper"));
    let rows = rows.map(|(id, sent)| (id, begin(server.upgrade(ECHO), &sent)));
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, stream)| {
            let all = RawClient::new(stream.try_clone().unwrap()).read_to_end();
            let (frames, rest) = whole_frames(&all);
            assert!(!frames.is_empty() && frames.iter().all(|frame| frame.first == 0x89), "pings, not {frames:?}");
            assert_eq!(rest, b"", "and then the end");
        },
    );
    sleeper.read_to_end();
    let gone = |line: &str| line.contains("LEAVE") && line.contains("sleeper");
    wait_until("the log says who went", || server.log().lines().any(gone));
    let log = server.log();
    let line = log.lines().find(|line| gone(line)).unwrap();
    assert!(["idle", "silent", "timeout", "timed out"].iter().any(|why| line.contains(why)), "and why: {line}");
}

/// P08: who answers pings stays, for longer than the idle timeout.
#[test]
fn a_peer_that_answers_pings_stays() {
    let server = Server::start(&["--ping-interval", "1", "--idle-timeout", "6"]);
    let mut client = server.upgrade(ECHO);
    for _ in 0..7 {
        let ping = client.read_frame();
        assert_eq!(ping.first, 0x89);
        client.send(&masked(0x8a, &ping.payload));
    }
    client.send_text("still here");
    while client.read_frame().opcode() != 1 {}
}

/// P09: only bytes received count. Somebody who is told a lot and says nothing is cut, and the room hears it once.
#[test]
fn a_silent_peer_in_a_busy_room() {
    let server = chat(&["--ping-interval", "1", "--idle-timeout", "6"]);
    let mut talker = member(&server, "talker");
    let mut sleeper = member(&server, "sleeper");
    talker.read_event("joined");
    let reading = std::thread::spawn(move || sleeper.read_to_end());
    let mut left = Vec::new();
    wait_until("the sleeper is cut", || {
        say(&mut talker, "are you there?");
        left.extend(hear(&mut talker, "are you there?"));
        !left.is_empty()
    });
    let names: Vec<&Value> = left.iter().map(|event| &event["data"]["username"]).collect();
    assert_eq!(names, ["sleeper"]);
    let heard = reading.join().unwrap();
    assert!(heard.windows(14).any(|bytes| bytes == b"are you there?"), "it was told a lot");
}
