//! Tests the server with in-memory sockets and a virtual clock: timeouts, limits, the end of connections, and event
//! loop turns. The tests are deterministic and never sleep.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/delayed_broker.rs"]
mod delayed_broker;
#[path = "support/delayed_world.rs"]
mod delayed_world;
#[path = "support/memory.rs"]
mod memory;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use memory::{Client, End, MAX_LINGERING, NO_EDGE, World, log_lines};
use mio::Token;
use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::table::{each_row, hex};
use support::users::{DIALECTS, Dialect, path};
use support::{Frame, masked, upgrade_request};
use wirechat::server::Readiness;

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token";
const PING: &str = r#"{"event":"ping"}"#;
const CLOSE_TIMEOUT: Duration = seconds(5);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Options that keep pings and the rate limit from interfering with a test.
const CALM: [&str; 6] = ["--ping-interval", "600", "--idle-timeout", "1200", "--rate-limit", "0"];

fn quiet_world(args: &[&str]) -> World {
    World::new(&[args, &CALM].concat())
}

/// Joins a room. The returned client has read its first event: the `welcome`, or the event for its own join.
fn join(world: &mut World, dialect: Dialect, name: &str, room: &str) -> Client {
    let client = world.upgrade(&path(dialect, name, room));
    client.read_json();
    client
}

fn member(world: &mut World, name: &str) -> Client {
    join(world, Dialect::Events, name, "general")
}

fn message(dialect: Dialect, name: &str, text: &str) -> String {
    match dialect {
        Dialect::Events => json!({"event": "message", "data": {"text": text}}).to_string(),
        Dialect::Rooms => json!({"username": name, "text": text}).to_string(),
        Dialect::Presence => text.to_owned(),
    }
}

fn error(dialect: Dialect, message: &str) -> Value {
    match dialect {
        Dialect::Events => json!({"event": "error", "data": {"message": message}}),
        Dialect::Rooms => json!({"type": "error", "message": message}),
        Dialect::Presence => json!({"error": message}),
    }
}

fn send_message(client: &Client, text: &str) {
    client.send_text(&message(Dialect::Events, "", text));
}

fn close_frame(code: u16) -> Vec<u8> {
    masked(0x88, &code.to_be_bytes())
}

fn json_of(frame: &Frame) -> Value {
    serde_json::from_str(frame.text()).expect("JSON")
}

/// Two members of a separate room. Their chat shows that the server still serves other clients.
struct Witnesses([Client; 2], u32);

impl Witnesses {
    fn join(world: &mut World) -> Witnesses {
        let clients = ["first", "second"].map(|name| join(world, Dialect::Events, name, "witnesses"));
        clients[0].read_event("joined");
        Witnesses(clients, 0)
    }

    fn chat(&mut self, world: &mut World) {
        self.1 += 1;
        let text = format!("message {}", self.1);
        send_message(&self.0[0], &text);
        world.settle();
        self.0.iter().for_each(|client| assert_eq!(client.read_event("message")["text"], text));
    }
}

// ------------------------------------------------------------------------------------------------- handshake timeout

/// When the handshake timeout expires, the server closes the connection. It first sends a 408 if it has received any
/// bytes.
#[test]
fn requests_that_never_end() {
    let rows: [(&str, &[u8], &str); 5] = [
        ("nothing", b"", ""),
        ("one byte", b"G", "HTTP/1.1 408 "),
        ("a blank line", b"\r\n", "HTTP/1.1 408 "),
        ("half a request", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", "HTTP/1.1 408 "),
        ("all but the last byte", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r", "HTTP/1.1 408 "),
    ];
    let mut world = quiet_world(&[]);
    let mut witnesses = Witnesses::join(&mut world);
    let clients = rows.map(|(_, sent, _)| {
        let client = world.connect();
        client.send(sent);
        client
    });
    world.advance(millis(9_999));
    clients.iter().for_each(Client::expect_nothing);
    world.advance(millis(1));
    for ((name, _, expected), client) in rows.iter().zip(&clients) {
        let response = String::from_utf8(client.read()).unwrap();
        assert!(response.starts_with(expected) && response.is_empty() == expected.is_empty(), "{name}: {response:?}");
        client.expect_end();
        witnesses.chat(&mut world);
    }
}

/// One byte per second does not extend the handshake timeout.
#[test]
fn a_request_that_trickles() {
    let mut world = quiet_world(&[]);
    let mut witnesses = Witnesses::join(&mut world);
    let client = world.connect();
    let request = handshake().padded_to(8192).bytes();
    for byte in request.chunks(1).take(10) {
        client.expect_nothing();
        client.send(byte);
        world.advance(seconds(1));
    }
    let response = Response::parse(&client.read());
    assert_eq!((response.status, response.header("Connection")), (408, "close"));
    assert!(response.body.contains("§15.5.9"), "{response:?}");
    client.expect_end();
    witnesses.chat(&mut world);
}

/// The server accepts a request that arrives before the handshake timeout, even if it reads the request after the
/// timeout.
#[test]
fn a_request_that_waits_for_its_turn_is_not_late() {
    let mut world = quiet_world(&[]);
    let clients: Vec<Client> = (0..60).map(|_| world.connect()).collect();
    world.advance(millis(9_900));
    clients.iter().for_each(|client| client.send(upgrade_request(ECHO).as_bytes()));
    world.jump(millis(200));
    let turns = world.settle();
    assert!(turns >= 4, "60 handshakes take at least four turns, not {turns}");
    clients.iter().for_each(|client| assert!(client.read_head().starts_with("HTTP/1.1 101 ")));
    // After the upgrade, only the idle timeout (1,200 seconds) applies.
    world.advance(seconds(1201));
    assert_eq!(world.connection_count(), 0);
}

// ---------------------------------------------------------------------------------------------------- pings, silence

/// Advances the clock by `time` seconds. Returns the times, in seconds since the start, at which the client received
/// pings.
fn pings_within(world: &mut World, client: &Client, time: u64) -> Vec<u64> {
    let mut pings = Vec::new();
    for _ in 0..time {
        world.advance(seconds(1));
        pings.extend(client.read_frames().iter().map(|frame| {
            assert_eq!((frame.first, &frame.payload[..]), (0x89, &b""[..]));
            world.now().as_secs()
        }));
    }
    pings
}

/// PROTOCOL.md, "Limits and timeouts": the server sends a ping after every `--ping-interval` in which it received no
/// byte.
#[test]
fn a_ping_after_every_interval_of_silence() {
    let mut world = World::new(&["--ping-interval", "10", "--idle-timeout", "60"]);
    let client = world.upgrade(ECHO);
    assert_eq!(pings_within(&mut world, &client, 45), [10, 20, 30, 40], "repeatedly");
    client.send(&masked(0x8a, b""));
    assert_eq!(pings_within(&mut world, &client, 30), [55, 65, 75], "after a Pong that arrived at second 45");
    // The server sends no pings while the peer keeps sending frames.
    for _ in 0..100 {
        client.send(&masked(0x8a, b""));
        assert_eq!(pings_within(&mut world, &client, 9), [0; 0]);
    }
    let last = world.now().as_secs() - 9;
    let expected: Vec<u64> = (1..=5).map(|i| last + 10 * i).collect();
    assert_eq!(pings_within(&mut world, &client, 50), expected);
    world.advance(seconds(1));
    client.expect_end();
}

/// The server pings a silent peer, and after `--idle-timeout` ends the connection, even in the middle of a header or a
/// message. The room receives `left`.
#[test]
fn silent_peers() {
    let rows = [
        ("silent", vec![]),
        ("in the middle of a header", hex("81 ff 00 00")),
        ("in the middle of a frame", hex("81 85 M0 'He'")),
        ("in the middle of a message", hex("01 82 M0 'He'")),
    ];
    let mut world = World::observed(&["--ping-interval", "10", "--idle-timeout", "60"]);
    let (listener, sleeper) = (member(&mut world, "listener"), member(&mut world, "sleeper"));
    listener.read_event("joined");
    let clients = rows.each_ref().map(|(_, sent)| {
        let client = world.upgrade(ECHO);
        client.send(sent);
        client
    });
    world.advance(seconds(50));
    listener.send(&masked(0x8a, b""));
    world.advance(seconds(10));
    for ((name, _), client) in rows.iter().zip(clients.iter().chain([&sleeper])) {
        let pings = client.read_frames();
        assert!(pings.len() == 5 && pings.iter().all(|frame| frame.first == 0x89), "{name}: {pings:?}");
        client.expect_end();
        assert_eq!(world.reason(client), "the peer was silent for 60 seconds", "{name}");
    }
    let frames = listener.read_frames();
    let events: Vec<Value> = frames.iter().filter(|frame| frame.first == 0x81).map(json_of).collect();
    assert_eq!(events, [json!({"event": "left", "data": {"username": "sleeper"}})]);
    assert_eq!(world.reason(&sleeper), "the peer was silent for 60 seconds");
}

#[test]
fn a_peer_that_replies_to_pings_stays() {
    let mut world = World::new(&["--ping-interval", "10", "--idle-timeout", "15"]);
    let client = world.upgrade(ECHO);
    for _ in 0..7 {
        world.advance(seconds(10));
        let ping = client.read_frame();
        assert_eq!(ping.first, 0x89);
        client.send(&masked(0x8a, &ping.payload));
    }
    client.send_text("still here");
    world.settle();
    assert_eq!(client.read_frame().text(), "still here");
}

/// A client that receives messages but sends nothing counts as silent. The server ends its connection, and the room
/// receives `left` once.
#[test]
fn a_silent_peer_in_a_busy_room() {
    let mut world = World::new(&["--rate-limit", "0"]);
    let (talker, sleeper) = (member(&mut world, "talker"), member(&mut world, "sleeper"));
    talker.read_event("joined");
    for _ in 0..59 {
        send_message(&talker, "are you there?");
        world.advance(seconds(1));
        assert_eq!(talker.read_event("message")["text"], "are you there?");
    }
    world.advance(seconds(1));
    assert_eq!(talker.read_event("left"), json!({"username": "sleeper"}));
    send_message(&talker, "and now?");
    world.settle();
    talker.read_event("message");
    talker.expect_nothing();
    let frames = sleeper.read_frames();
    assert_eq!(frames.iter().filter(|frame| frame.first == 0x89).count(), 1, "a ping at second 30");
    assert_eq!(frames.iter().filter(|frame| frame.first == 0x81).count(), 59, "all messages");
    sleeper.expect_end();
}

/// The time during which the process is suspended does not count as silence. The server pings the peer, and keeps the
/// connection if the peer replies.
#[test]
fn a_suspended_process_does_not_disconnect_its_peers() {
    let mut world = World::new(&[]);
    let client = world.upgrade(ECHO);
    world.jump(seconds(3600));
    world.settle();
    assert_eq!(client.read_frame().first, 0x89);
    client.send(&masked(0x8a, b""));
    world.advance(seconds(29));
    client.expect_nothing();
}

/// The process is suspended, and resumes an hour after the server's next check for silence was due. The server counts
/// only the 10 seconds of silence up to the time when the check was due. The Ping therefore follows 20 seconds later,
/// after 30 counted seconds (the default `--ping-interval`).
#[test]
fn a_suspended_process_does_not_ping_its_peers_early() {
    let mut world = World::new(&[]);
    let client = world.upgrade(ECHO);
    world.advance(seconds(20));
    client.send(&masked(0x8a, b""));
    world.settle();
    world.jump(seconds(3600));
    world.settle();
    client.expect_nothing();
    world.advance(seconds(20));
    assert_eq!(client.read_frame().first, 0x89, "30 seconds of silence, not counting the suspension");
    world.advance(seconds(30));
    client.expect_end();
}

/// One turn of the event loop performs at most 2,048 reads. If a connection has to wait for the next turn because of
/// this limit, the server does not count it as silent.
#[test]
fn a_peer_with_unread_bytes_is_not_silent() {
    let mut world = World::new(&["--max-connections", "3000"]);
    let clients: Vec<Client> = (0..2100).map(|_| world.upgrade(ECHO)).collect();
    world.advance(seconds(30));
    clients.iter().for_each(|client| assert_eq!(client.read_frame().first, 0x89));
    world.jump(seconds(3600));
    clients.iter().for_each(|client| client.send(&masked(0x8a, b"")));
    world.settle();
    assert_eq!(world.connection_count(), clients.len());
}

/// PROTOCOL.md, "Limits and timeouts": received bytes postpone the next ping. A readiness event without bytes does not.
#[test]
fn spurious_edges_do_not_postpone_pings() {
    for spurious in [NO_EDGE, Readiness { is_readable: true, is_writable: true, ..NO_EDGE }] {
        let mut world = World::observed(&["--ping-interval", "10", "--idle-timeout", "60"]);
        world.spurious = spurious;
        let client = world.upgrade(ECHO);
        for _ in 0..60 {
            world.advance(seconds(1));
            if !client.is_closed_by_server() {
                world.turn();
            }
        }
        assert_eq!(client.read_frames().len(), 5, "{spurious:?}");
        assert_eq!(world.reason(&client), "the peer was silent for 60 seconds");
    }
}

// ------------------------------------------------------------------------------------------------ end of a connection

/// If the peer does not reply to a Close, the server cuts the connection after `--close-timeout`, even if the peer
/// keeps sending other bytes.
#[test]
fn peers_that_do_not_reply_to_a_close() {
    let binary = || hex("82 81 M0 'x'");
    let rows = [
        ("silent after 1003", CHAT, binary(), 1003, vec![]),
        ("silent after 1002", ECHO, hex("81 7f"), 1002, vec![]),
        ("silent after 1007", ECHO, hex("81 81 M0 ff"), 1007, vec![]),
        ("texts after 1003", CHAT, binary(), 1003, masked(0x81, PING.as_bytes())),
        ("pings after 1003", CHAT, binary(), 1003, masked(0x89, b"")),
        ("half a frame after 1003", CHAT, binary(), 1003, hex("82 fe ff ff M0")),
        ("noise after 1002", ECHO, hex("81 7f"), 1002, vec![0xff; 1000]),
        ("noise after 1009", ECHO, hex("82 ff 7f ff ff ff ff ff ff ff"), 1009, vec![0; 1000]),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, at, sent, code, then)| {
            let mut world = quiet_world(&[]);
            let mut witnesses = Witnesses::join(&mut world);
            let client = world.upgrade(at);
            client.send(sent);
            world.settle();
            assert_eq!(client.read_frames().last().expect("a Close").close().0, *code);
            let end = world.now() + CLOSE_TIMEOUT;
            while world.now() + millis(100) < end {
                client.send(then);
                world.advance(millis(100));
                assert!(!client.is_closed_by_server(), "at {:?}", world.now());
            }
            world.advance(millis(100));
            assert!(client.is_closed_by_server());
            client.expect_end();
            witnesses.chat(&mut world);
        },
    );
}

/// After a rejection, the server keeps the connection open, so that the peer can read the response. If the peer does
/// not close the connection, the server cuts it after `--close-timeout`.
#[test]
fn a_rejected_peer_that_stays_is_disconnected() {
    let mut world = quiet_world(&[]);
    let client = world.connect();
    client.send(&handshake().target("/").bytes());
    world.settle();
    assert_eq!(Response::parse(&client.read()).status, 401);
    for _ in 0..5 {
        assert!(!client.is_closed_by_server());
        client.send(b"and another thing");
        world.advance(seconds(1));
    }
    assert!(client.is_closed_by_server());
    client.expect_end();
}

/// The client's Close arrives one turn before the signal to stop, in the same turn, or one turn later. In each case,
/// the server sends exactly one Close.
#[test]
fn both_close_at_once() {
    for (turn, codes) in [(-1, &[1000][..]), (0, &[1000, 1001]), (1, &[1001])] {
        let mut world = quiet_world(&[]);
        let client = world.upgrade(ECHO);
        if turn <= 0 {
            client.send(&close_frame(1000));
        }
        if turn < 0 {
            world.turn();
        }
        world.shut_down();
        if turn > 0 {
            client.send(&close_frame(1000));
        }
        world.settle();
        let closes: Vec<u16> = client.read_frames().iter().map(|frame| frame.close().0).collect();
        assert!(closes.len() == 1 && codes.contains(&closes[0]), "one Close of {codes:?}, not {closes:?}");
        client.expect_end();
        assert!(world.is_stopped);
    }
}

/// PROTOCOL.md, "Limits and timeouts": before the server sends a Close to a client, it publishes and acknowledges the
/// messages that it has received from the client.
#[test]
fn a_message_that_arrives_with_the_signal_is_acknowledged() {
    let mut world = quiet_world(&[]);
    let mut witnesses = Witnesses::join(&mut world);
    witnesses.chat(&mut world);
    send_message(&witnesses.0[0], "last words");
    world.shut_down();
    for client in &witnesses.0 {
        assert_eq!(client.read_event("message")["text"], "last words");
        assert_eq!(client.read_frame().close().0, 1001);
    }
}

/// Server options for tests that send messages of 16,000 letters. `--history 0` turns off the history, because a
/// backlog of such messages would exceed `--max-outbox`.
const BIG_TEXT_OPTIONS: [&str; 6] = ["--max-outbox", "65536", "--max-text", "20000", "--history", "0"];

/// Sends messages of 16,000 letters until the server disconnects a slow consumer. Returns that client's username.
fn send_until_left_event(world: &mut World, talker: &Client) -> Value {
    let text = "x".repeat(16_000);
    for _ in 0..100 {
        send_message(talker, &text);
        world.settle();
        assert_eq!(talker.read_event("message")["text"], text);
        if let Some(frame) = talker.next_frame() {
            talker.expect_nothing();
            let event = json_of(&frame);
            assert_eq!(event["event"], "left");
            return event["data"]["username"].clone();
        }
    }
    panic!("the server closed no slow consumer during 100 messages");
}

/// If a slow consumer never reads again, the server cuts the connection after `--close-timeout`. The server does not
/// put a Close into the middle of a half-sent frame.
#[test]
fn a_slow_consumer_that_never_reads_again_is_disconnected() {
    let mut world = quiet_world(&BIG_TEXT_OPTIONS);
    let mut witnesses = Witnesses::join(&mut world);
    let talker = member(&mut world, "talker");
    for capacity in [1, 100, 4096, 16_000, 16_100, 40_000] {
        world.capacity = capacity;
        let slow = member(&mut world, "slow");
        talker.read_event("joined");
        slow.set_reading(false);
        assert_eq!(send_until_left_event(&mut world, &talker), "slow");
        for _ in 0..5 {
            assert!(!slow.is_closed_by_server());
            slow.send(&masked(0x8a, b""));
            world.advance(seconds(1));
        }
        assert!(slow.is_closed_by_server());
        slow.set_reading(true);
        for frame in slow.read_frames() {
            json_of(&frame);
        }
        let rest = slow.read();
        let payload = rest.get(4..).unwrap_or_default();
        assert!(rest.is_empty() || rest[0] == 0x81 && payload.iter().all(|byte| (0x20..0x7f).contains(byte)));
        assert_eq!(slow.server_end(), End::Ended);
        witnesses.chat(&mut world);
    }
}

/// The broker accepts a join after the server has sent the client a Close. The client must receive no room events.
#[test]
fn a_client_that_is_closed_before_its_join_receives_nothing_more() {
    let (mut world, control) = delayed_world::start(&CALM);
    let talker = world.upgrade(CHAT);
    delayed_world::release(&mut world, &control);
    send_message(&talker, "hi");
    world.settle();
    let late = world.upgrade(CHAT);
    (0..65).for_each(|_| late.send_text(PING));
    world.settle();
    assert_eq!(late.read_frame().close(), (1008, "flooding".to_owned()));
    delayed_world::release(&mut world, &control);
    late.expect_nothing();
}

/// The server has already sent the start of a frame to a slow consumer. It must send the rest before the Close, even if
/// the rest exceeds `--max-outbox`. Otherwise, the client would read the Close as part of the unfinished frame.
#[test]
fn a_slow_consumer_gets_the_rest_of_a_frame_that_is_over_the_bound() {
    let mut world = quiet_world(&["--max-outbox", "1024", "--max-text", "20000"]);
    world.capacity = 1000;
    let slow = member(&mut world, "slow");
    let talker = member(&mut world, "talker");
    slow.read_event("joined");
    slow.set_reading(false);
    let texts = [1, 2].map(|_| "x".repeat(5000));
    texts.iter().for_each(|text| send_message(&talker, text));
    world.settle();
    slow.set_reading(true);
    world.settle();
    assert_eq!(slow.read_event("message")["text"], texts[0]);
    assert_eq!(slow.read_frame().close(), (1008, "too slow to read".to_owned()));
}

/// When `--max-buffered` is exceeded, the server closes a slow client's connection and drops the queued messages. The
/// client must not receive a later message of the room. Otherwise, it would resume after that message, and never
/// receive the dropped ones.
#[test]
fn a_client_that_is_closed_receives_no_message_after_a_gap() {
    let mut world = quiet_world(&["--max-buffered", "65536", "--max-echo", "1000"]);
    let talker = member(&mut world, "talker");
    world.capacity = 1000;
    let slow = member(&mut world, "slow");
    slow.set_reading(false);
    for _ in 0..80 {
        send_message(&talker, &"x".repeat(500));
        world.settle();
    }
    let unfinished = masked(0x81, &[b'x'; 40_000]);
    talker
        .send(&[masked(0x81, message(Dialect::Events, "", "last").as_bytes()), unfinished[..30_000].to_vec()].concat());
    world.settle();
    slow.set_reading(true);
    world.settle();
    let mut frames = slow.read_frames();
    assert_eq!(frames.pop().unwrap().close().0, 1013);
    assert!(frames.iter().all(|frame| json_of(frame)["data"]["text"] != "last"));
}

/// When a slow consumer resumes reading, it receives the rest of the half-sent frame, followed by a Close frame.
#[test]
fn a_slow_consumer_gets_the_rest_of_a_frame_and_a_close() {
    for capacity in [1, 100, 4096, 16_000, 16_100, 40_000] {
        let mut world = quiet_world(&BIG_TEXT_OPTIONS);
        world.capacity = capacity;
        let slow = member(&mut world, "slow");
        let talker = member(&mut world, "talker");
        slow.read_event("joined");
        slow.set_reading(false);
        assert_eq!(send_until_left_event(&mut world, &talker), "slow");
        slow.set_reading(true);
        world.settle();
        let mut frames = slow.read_frames();
        assert_eq!(frames.pop().unwrap().close(), (1008, "too slow to read".to_owned()));
        assert!(frames.len() <= 1 + capacity / 16_000, "the rest was dropped: {}", frames.len());
        let ids: Vec<Value> = frames.iter().map(|frame| json_of(frame)["data"]["id"].clone()).collect();
        assert!(ids.iter().zip(1..).all(|(id, expected)| *id == expected), "whole and in order: {ids:?}");
        slow.send(&close_frame(1008));
        world.settle();
        slow.expect_end();
    }
}

/// A client requests history pages without reading them. The server limits each page to half of `--max-outbox`, so the
/// client does not become a slow consumer.
#[test]
fn a_client_that_requests_pages_without_reading() {
    let mut world = quiet_world(&["--max-outbox", "16384", "--history", "100"]);
    world.capacity = 100;
    let reader = member(&mut world, "reader");
    for id in 1..=100 {
        send_message(&reader, &"x".repeat(400));
        world.settle();
        assert_eq!(reader.read_event("message")["id"], id);
    }
    reader.set_reading(false);
    for number in 0..1000 {
        let is_page = number % 250 == 249; // 249 `pong` events before each history page use up part of the outbox
        let history = r#"{"event":"history","data":{"before":101,"limit":100}}"#;
        reader.send_text(if is_page { history } else { r#"{"event":"ping"}"# });
        world.settle();
    }
    reader.set_reading(true);
    world.settle();
    let events: Vec<Value> = reader.read_frames().iter().map(json_of).collect();
    assert_eq!(events.len(), 1000);
    let pages: Vec<&Value> = events.iter().filter(|event| event["event"] == "history").collect();
    assert_eq!(pages.len(), 4);
    for page in pages.iter().map(|page| &page["data"]) {
        let messages = page["messages"].as_array().unwrap();
        assert!(messages.len() >= 10 && messages.last().unwrap()["id"] == 100 && page["more"] == true, "{page}");
    }
}

/// After a client half-closes its connection, it has `--close-timeout` to read the events in its outbox.
#[test]
fn a_slow_client_that_half_closes() {
    for returns in [false, true] {
        let args = ["--max-outbox", "67108864", "--max-text", "20000", "--history", "0"];
        let mut world = World::observed(&[&args[..], &CALM].concat());
        world.capacity = 4096;
        let (late, talker) = (member(&mut world, "late"), member(&mut world, "talker"));
        late.read_event("joined");
        late.set_reading(false);
        for _ in 0..20 {
            send_message(&talker, &"x".repeat(16_000));
            world.settle();
            talker.read_event("message");
        }
        late.end();
        world.settle();
        assert_eq!(talker.read_event("left"), json!({"username": "late"}), "at once");
        world.advance(millis(4_900));
        assert!(!late.is_closed_by_server());
        if returns {
            late.set_reading(true);
            world.settle();
            assert_eq!(late.read_frames().len(), 20);
            late.expect_end();
            assert_eq!(world.reason(&late), "the peer ended the stream without a Close");
        } else {
            world.advance(millis(100));
            assert!(late.is_closed_by_server());
            assert_eq!(world.reason(&late), "the peer did not read the last bytes in time");
        }
    }
}

fn upgrade_and_send(world: &mut World, at: &str, sent: &[u8]) -> Client {
    let client = world.upgrade(at);
    client.send(sent);
    world.settle();
    client
}

fn connect_and_send(world: &mut World, sent: &[u8]) -> Client {
    let client = world.connect();
    client.send(sent);
    world.settle();
    client
}

#[derive(Debug)]
enum Peer {
    Waits,
    Replies,
    Ends,
    Resets,
}

use Peer::{Ends, Replies, Resets, Waits};

impl Peer {
    fn act(&self, client: &Client) {
        match self {
            Waits => {}
            Replies => client.send(&close_frame(1000)),
            Ends => client.end(),
            Resets => client.reset(),
        }
    }
}

const CLEAN_CLOSE: &str = "both Closes passed; the server ended TCP (§7.1.1)";
const NO_REPLY: &str = "the peer did not reply to the Close in time";
const NO_EOF: &str = "the peer did not end the stream in time";
const NO_CLOSE: &str = "the peer ended the stream without a Close";
const RESET: &str = "connection reset";

#[test]
#[rustfmt::skip]
fn every_closed_connection_has_its_reason() {
    let page = get("/health").bytes();
    let nowhere = get("/nowhere").bytes();
    let half = b"GET / HTTP/1.1\r\n".to_vec();
    let close_and_more = [close_frame(1000), vec![0; 9]].concat();
    // Columns: path ("": no upgrade), bytes that the client sends, the client's next action, seconds until the server
    // removes the connection, expected reason.
    let rows = [
        (ECHO, close_frame(1000), Waits, 0, CLEAN_CLOSE),
        (ECHO, masked(0x88, b""), Waits, 0, CLEAN_CLOSE),
        (ECHO, close_and_more, Ends, 0, CLEAN_CLOSE),
        (CHAT, hex("82 81 M0 'x'"), Replies, 0, CLEAN_CLOSE),
        (CHAT, hex("82 81 M0 'x'"), Ends, 0, NO_CLOSE),
        (CHAT, hex("82 81 M0 'x'"), Waits, 5, NO_REPLY),
        (CHAT, hex("82 81 M0 'x'"), Resets, 0, RESET),
        (ECHO, hex("81 7f"), Ends, 0, "the peer ended the stream after the server's Close"),
        (ECHO, hex("81 7f"), Replies, 5, NO_EOF),
        (ECHO, vec![], Waits, 60, "the peer was silent for 60 seconds"),
        (ECHO, vec![], Ends, 0, NO_CLOSE),
        (ECHO, vec![], Resets, 0, RESET),
        ("", page.clone(), Ends, 0, "the response was sent"),
        ("", page, Waits, 5, NO_EOF),
        ("", nowhere.clone(), Ends, 0, "the request was rejected"),
        ("", nowhere.clone(), Waits, 5, NO_EOF),
        ("", nowhere, Resets, 0, RESET),
        ("", vec![], Waits, 10, "no request arrived in time"),
        ("", half.clone(), Ends, 0, "the peer ended the stream before its request was complete"),
        ("", half.clone(), Resets, 0, RESET),
        ("", half, Waits, 15, NO_EOF),
    ];
    each_row(
        &rows,
        |(at, sent, peer, ..)| format!("{at:?} {:?} {peer:?}", String::from_utf8_lossy(sent)),
        |(at, sent, peer, time, reason)| {
            let mut world = World::observed(&[]);
            let client = if at.is_empty() { connect_and_send(&mut world, sent) } else { upgrade_and_send(&mut world, at, sent) };
            peer.act(&client);
            world.settle();
            let limit = seconds(*time);
            if !limit.is_zero() {
                world.advance(limit - millis(1));
                assert_eq!(world.connection_count(), 1, "the connection has not ended early");
                world.advance(millis(1));
            }
            assert_eq!(world.reason(&client), *reason);
            assert_eq!(world.connection_count(), 0);
        },
    );
}

#[test]
fn every_connection_closed_in_a_shutdown_has_its_reason() {
    let rows = [
        (ECHO, Replies, 0, CLEAN_CLOSE),
        (CHAT, Replies, 0, CLEAN_CLOSE),
        (ECHO, Ends, 0, NO_CLOSE),
        (ECHO, Resets, 0, RESET),
        (ECHO, Waits, 2, "the server stopped"),
        ("", Waits, 0, "the server is shutting down"),
    ];
    for (at, peer, time, reason) in rows {
        let mut world = World::observed(&[]);
        let client = if at.is_empty() { connect_and_send(&mut world, b"GET") } else { world.upgrade(at) };
        world.shut_down();
        peer.act(&client);
        world.advance(seconds(time));
        assert!(world.is_stopped, "{at:?} {peer:?}");
        assert_eq!(world.reason(&client), reason);
    }
}

#[test]
fn every_closed_slow_consumer_has_its_reason() {
    for (peer, time, reason) in
        [(Waits, 5, NO_REPLY), (Replies, 0, CLEAN_CLOSE), (Ends, 0, NO_CLOSE), (Resets, 0, RESET)]
    {
        let mut world = World::observed(&[&BIG_TEXT_OPTIONS[..], &CALM].concat());
        let (slow, talker) = (member(&mut world, "slow"), member(&mut world, "talker"));
        slow.set_reading(false);
        send_until_left_event(&mut world, &talker);
        peer.act(&slow);
        if time == 0 {
            slow.set_reading(true);
        }
        world.advance(seconds(time));
        assert_eq!(world.reason(&slow), reason, "{peer:?}");
    }
}

// ----------------------------------------------------------------------------------------------- limits on connections

fn status(client: &Client) -> u16 {
    client.read_head().split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

/// Requests an upgrade. Returns the client, whose connection stays open, and the status of the response.
fn request_upgrade(world: &mut World) -> (Client, u16) {
    let client = connect_and_send(world, upgrade_request(ECHO).as_bytes());
    let status = status(&client);
    (client, status)
}

/// A rejected connection that lingers does not count towards `--max-connections`.
#[test]
fn a_rejected_connection_is_not_counted() {
    let mut world = quiet_world(&["--max-connections", "8"]);
    let mut members: Vec<Client> = (0..8).map(|_| world.upgrade(ECHO)).collect();
    let (rejected, code) = request_upgrade(&mut world);
    assert_eq!(code, 503);
    for _ in 0..5 {
        members.pop().unwrap().send(&close_frame(1000));
        world.settle();
        let (next, code) = request_upgrade(&mut world);
        assert_eq!(code, 101, "the server accepts the next client at once");
        members.push(next);
        assert_eq!(request_upgrade(&mut world).1, 503, "the server accepts only one client");
    }
    assert!(!rejected.is_closed_by_server(), "the rejected connection still lingers");
}

#[test]
fn rejected_connections_are_bounded_in_number_and_time() {
    let mut world = World::observed(&[&["--max-connections", "8"], &CALM[..]].concat());
    let members: Vec<Client> = (0..8).map(|_| world.upgrade(ECHO)).collect();
    let rejected: Vec<Client> = (0..50)
        .map(|_| {
            let (client, code) = request_upgrade(&mut world);
            assert_eq!(code, 503, "the server responds to each client, however many linger");
            assert!(world.connection_count() <= 8 + MAX_LINGERING, "{}", world.connection_count());
            client
        })
        .collect();
    let (cut, lingering) = rejected.split_at(50 - (MAX_LINGERING - 1));
    assert!(cut.iter().all(|client| world.reason(client) == "too many rejected connections linger"));
    assert!(lingering.iter().all(|client| !client.is_closed_by_server()));
    world.advance(CLOSE_TIMEOUT);
    assert!(lingering.iter().all(|client| world.reason(client) == "the peer did not end the stream in time"));
    assert_eq!(world.connection_count(), 8);
    members.iter().for_each(Client::expect_nothing);
}

/// At `--max-connections`, the server rejects a new client until another one leaves with a Close, a half-close or a
/// reset.
#[test]
fn connection_limit() {
    let leave: [fn(&Client); 3] = [|client| client.send(&close_frame(1000)), Client::end, Client::reset];
    for leave in leave {
        let mut world = quiet_world(&["--max-connections", "2"]);
        let (first, _second) = (world.upgrade(CHAT), world.upgrade(ECHO));
        assert_eq!(request_upgrade(&mut world).1, 503);
        assert_eq!(status(&connect_and_send(&mut world, &get("/health").bytes())), 200);
        leave(&first);
        world.settle();
        // The `/health` client stays connected. Its connection counts towards the limit until the close timeout.
        world.advance(CLOSE_TIMEOUT);
        assert_eq!(request_upgrade(&mut world).1, 101);
    }
}

/// Each address except loopback may have at most `--max-per-address` connections.
#[test]
fn each_address_has_its_share() {
    let mut world = quiet_world(&["--max-per-address", "2"]);
    let mut from = |address: &str| {
        let client = world.connect_from(address.parse().unwrap());
        client.send(upgrade_request(ECHO).as_bytes());
        world.settle();
        status(&client)
    };
    assert_eq!([from("192.0.2.1"), from("192.0.2.1"), from("192.0.2.1")], [101, 101, 503]);
    assert_eq!([from("192.0.2.2"), from("127.0.0.1"), from("127.0.0.1"), from("127.0.0.1")], [101; 4]);
    // IPv6 addresses with the same first 64 bits share one limit.
    assert_eq!([from("2001:db8::1"), from("2001:db8::2"), from("2001:db8::3")], [101, 101, 503]);
    assert_eq!(from("2001:db8:0:1::1"), 101);
}

/// A rejected connection that lingers does not count towards `--max-per-address`.
#[test]
fn a_rejected_connection_is_not_counted_for_its_address() {
    let mut world = quiet_world(&["--max-per-address", "2"]);
    let from = |world: &mut World| {
        let client = world.connect_from("192.0.2.1".parse().unwrap());
        client.send(upgrade_request(ECHO).as_bytes());
        world.settle();
        let status = status(&client);
        (client, status)
    };
    let (first, _second, rejected) = (from(&mut world), from(&mut world), from(&mut world));
    assert_eq!((first.1, rejected.1), (101, 503));
    first.0.send(&close_frame(1000));
    world.settle();
    assert_eq!(from(&mut world).1, 101, "the server accepts the next client at once");
    assert!(!rejected.0.is_closed_by_server());
    world.advance(CLOSE_TIMEOUT);
    assert_eq!(from(&mut world).1, 503, "the end of the lingering connection frees no second place");
}

/// The server logs only five rejections per address per minute. At the end of the minute, it logs how many more there
/// were.
#[test]
fn repeated_rejections_are_summarised() {
    let mut world = quiet_world(&["--connect-rate", "0"]);
    let rejected_from = |world: &mut World, address: &str| {
        let client = world.connect_from(address.parse().unwrap());
        client.send(&get("/nope").bytes());
        world.settle();
        assert_eq!(status(&client), 404);
    };
    (0..317).for_each(|_| rejected_from(&mut world, "192.0.2.1"));
    (0..5).for_each(|_| rejected_from(&mut world, "192.0.2.2"));
    let summaries = || log_lines().into_iter().filter(|line| line.contains(" more ")).collect::<Vec<_>>();
    assert_eq!(log_lines().iter().filter(|line| line.starts_with("REJECT 192.0.2.1:1 404 ")).count(), 5);
    world.advance(seconds(59));
    assert_eq!(summaries(), [""; 0]);
    world.advance(seconds(1));
    assert_eq!(summaries(), ["REJECT 192.0.2.1 312 more in the last minute"]);
    rejected_from(&mut world, "192.0.2.1");
    world.advance(seconds(120));
    assert_eq!(
        log_lines().iter().filter(|line| line.starts_with("REJECT 192.0.2.1:1 404 ")).count(),
        6,
        "a new minute"
    );
    assert_eq!(summaries().len(), 1, "one rejection needs no summary");
}

// -------------------------------------------------------------------------------------------------- limits on messages

/// How the server responds to the bytes that a client sends after the upgrade.
enum Outcome {
    /// The server sends an echo or an event that contains this text.
    Sends(&'static str),
    Closes(u16, &'static str),
}

use Outcome::{Closes, Sends};

/// The name of the row, server arguments, the endpoint, the bytes to send, and the expected outcome.
type Limit<'a> = (&'a str, &'a [&'a str], &'a str, Vec<u8>, Outcome);

/// Tests each limit with input exactly at the limit and just over it.
#[test]
fn message_limits() {
    let fragments = |count: usize| [hex("01 80 M0"), hex("00 80 M0").repeat(count - 1)].concat();
    let whole = |count: usize| [fragments(count - 1), hex("80 83 M0 'end'")].concat();
    let ping = |len: usize| masked(0x81, format!("{PING:len$}").as_bytes());
    let text = |text: &str| masked(0x81, message(Dialect::Events, "", text).as_bytes());
    let limit = ["--max-message", "300", "--max-text", "10"];
    let parts = ["--max-fragments", "4"];
    let rows: Vec<Limit> = vec![
        ("--max-message at", &limit, CHAT, ping(300), Sends("pong")),
        ("--max-message over", &limit, CHAT, ping(301), Closes(1009, "")),
        ("--max-message does not bind /echo", &limit, ECHO, masked(0x81, &[b'x'; 301]), Sends("xxx")),
        ("--max-echo at", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1000]), Sends("xxx")),
        ("--max-echo over", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1001]), Closes(1009, "")),
        ("--max-echo does not bind the chat", &["--max-echo", "1000"], CHAT, ping(1001), Sends("pong")),
        ("--max-text at", &["--max-text", "10"], CHAT, text("ääääääääää"), Sends("ääääääääää")),
        ("--max-text over", &["--max-text", "10"], CHAT, text("äääääääääää"), Sends("Message too long")),
        ("--max-fragments at", &parts, ECHO, whole(4), Sends("end")),
        ("--max-fragments over", &parts, ECHO, whole(5), Closes(1008, "fragments")),
        ("--max-fragments over, no end", &parts, ECHO, fragments(5), Closes(1008, "fragments")),
        ("--max-fragments counts each message", &parts, ECHO, whole(4).repeat(3), Sends("end")),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, args, at, sent, outcome)| {
            let mut world = quiet_world(args);
            let client = world.upgrade(at);
            if *at == CHAT {
                client.read_event("welcome");
            }
            client.send(sent);
            world.settle();
            let frame = client.read_frame();
            match outcome {
                Sends(what) => assert!(String::from_utf8_lossy(&frame.payload).contains(what), "{frame:?}"),
                Closes(code, word) => {
                    let (got, reason) = frame.close();
                    assert!(got == *code && reason.contains(word), "{got} {reason:?}");
                }
            }
            Witnesses::join(&mut world).chat(&mut world);
        },
    );
}

#[test]
fn request_head_limits() {
    let with = |count| (0..count).fold(handshake(), |request, i| request.add(format!("X-{i}: y")));
    let head = ["--max-head", "512"];
    let headers = ["--max-headers", "8"];
    let rows: Vec<(&str, &[&str], Request, u16)> = vec![
        ("--max-head at", &head, handshake().padded_to(512), 101),
        ("--max-head over", &head, handshake().padded_to(513), 431),
        ("--max-headers at", &headers, with(3), 101),
        ("--max-headers over", &headers, with(4), 431),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, args, sent, expected)| {
            let mut world = quiet_world(args);
            assert_eq!(status(&connect_and_send(&mut world, &sent.bytes())), *expected);
        },
    );
}

const BUFFER_OPTIONS: [&str; 4] = ["--max-buffered", "200000", "--max-echo", "200000"];

/// `--max-buffered` limits the bytes that the server buffers for all clients together, such as unfinished messages.
/// Above the limit, it closes the connection with the most buffered bytes, or the newest one if several tie.
#[test]
fn buffered_bytes_limit() {
    let mut world = quiet_world(&BUFFER_OPTIONS);
    let mut witnesses = Witnesses::join(&mut world);
    let half = masked(0x02, &[b'x'; 60_000]);
    for _ in 0..2 {
        let clients: Vec<Client> = (0..3).map(|_| upgrade_and_send(&mut world, ECHO, &half)).collect();
        let last = upgrade_and_send(&mut world, ECHO, &half);
        let (code, reason) = last.read_frame().close();
        assert_eq!(code, 1013);
        assert!(reason.contains("buffer"), "{reason}");
        last.send(&close_frame(code));
        world.settle();
        last.expect_end();
        for client in &clients {
            client.send(&masked(0x80, b"end"));
            world.settle();
            assert_eq!(client.read_frame().payload.len(), 60_003, "the server keeps the other clients");
            client.reset();
        }
        witnesses.chat(&mut world);
    }
}

/// Incomplete request heads count towards `--max-buffered`.
#[test]
fn request_heads_fill_the_buffers() {
    let mut world = World::observed(&[&["--max-head", "8192"], &BUFFER_OPTIONS[..], &CALM].concat());
    let mut witnesses = Witnesses::join(&mut world);
    let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(8000));
    let clients: Vec<Client> = (0..30).map(|_| connect_and_send(&mut world, head.as_bytes())).collect();
    let cut: Vec<&Client> = clients.iter().filter(|client| client.is_closed_by_server()).collect();
    assert_eq!(cut.len(), 30 - 200_000 / head.len());
    assert!(cut.iter().all(|client| world.reason(client) == "the server's buffers are full"));
    witnesses.chat(&mut world);
}

/// A queued `welcome` with a long history counts towards `--max-buffered` until the client reads it.
#[test]
fn long_welcomes_fill_the_buffers() {
    let mut world = quiet_world(&[&["--max-outbox", "100000", "--max-text", "20000"], &BUFFER_OPTIONS[..]].concat());
    let mut witnesses = Witnesses::join(&mut world);
    let talker = member(&mut world, "talker");
    for _ in 0..10 {
        send_message(&talker, &"x".repeat(16_000));
        world.settle();
        talker.read_event("message");
    }
    world.capacity = 100;
    let crowd: Vec<Client> = (0..5).map(|_| world.connect()).collect();
    for client in &crowd {
        client.set_reading(false);
        client.send(upgrade_request(CHAT).as_bytes());
    }
    world.settle();
    let events = count_events(&talker);
    // Each `welcome` fits within its client's `--max-outbox`, but `--max-buffered` has room for only two of them.
    assert_eq!((events["joined"], events["left"]), (5, 3));
    crowd.iter().for_each(|client| client.set_reading(true));
    world.settle();
    witnesses.chat(&mut world);
}

/// If the server reads an upgrade request together with frames that exceed `--max-buffered`, it sends a 101 and then a
/// Close.
#[test]
fn too_much_after_the_request() {
    let mut world = quiet_world(&["--max-buffered", "2000", "--max-echo", "2000", "--max-message", "2000"]);
    let half = masked(0x02, &[b'x'; 1500]);
    let first = upgrade_and_send(&mut world, ECHO, &half);
    let client = connect_and_send(&mut world, &[upgrade_request(ECHO).as_bytes(), &half].concat());
    assert_eq!(status(&client), 101);
    assert_eq!(client.read_frame().close().0, 1013);
    first.expect_nothing();
}

/// When `--max-buffered` is exceeded, the server closes the connection that holds the most bytes, not the newest one.
#[test]
fn the_largest_holder_is_closed_when_buffers_are_full() {
    let mut world = quiet_world(&BUFFER_OPTIONS);
    let mut witnesses = Witnesses::join(&mut world);
    let largest = upgrade_and_send(&mut world, ECHO, &masked(0x02, &[b'x'; 190_000]));
    largest.expect_nothing();
    let other = upgrade_and_send(&mut world, ECHO, &masked(0x02, &[b'y'; 20_000]));
    let (code, reason) = largest.read_frame().close();
    assert_eq!(code, 1013);
    assert!(reason.contains("buffer"), "{reason}");
    other.send(&masked(0x80, b"end"));
    world.settle();
    assert_eq!(other.read_frame().payload.len(), 20_003);
    witnesses.chat(&mut world);
}

// -------------------------------------------------------------------------------------------------------- rate limit

/// Options for a rate limit of one message every ten seconds.
const SLOW_RATE_OPTIONS: [&str; 4] = ["--rate-limit", "0.1", "--history", "0"];

/// With `--rate-limit N`, a client may send a burst of 2 N messages, or one message if 2 N is less than one. After the
/// burst, the server accepts one message every 1 / N seconds.
#[test]
fn bursts() {
    let rows: [(&[&str], usize, f64); 4] = [
        (&[], 10, 5.0),
        (&["--rate-limit", "1"], 2, 1.0),
        (&["--rate-limit", "20"], 40, 20.0),
        (&SLOW_RATE_OPTIONS, 1, 0.1),
    ];
    each_row(
        &rows,
        |row| row.0.join(" "),
        |(args, burst, rate)| {
            let mut world = World::new(args);
            let bot = member(&mut world, "bot");
            (0..burst + 3).for_each(|_| send_message(&bot, "hello"));
            world.settle();
            (0..*burst).for_each(|_| drop(bot.read_event("message")));
            (0..3).for_each(|_| assert_eq!(bot.read_json(), error(Dialect::Events, "Slow down")));
            let interval = Duration::from_secs_f64(1.0 / rate);
            for _ in 0..3 {
                world.advance(interval - millis(10));
                send_message(&bot, "too early");
                world.settle();
                assert_eq!(bot.read_json(), error(Dialect::Events, "Slow down"));
                world.advance(millis(11));
                send_message(&bot, "again");
                world.settle();
                bot.read_event("message");
            }
            bot.expect_nothing();
        },
    );
}

/// After rejecting five bursts of messages, the server disconnects a flooding client. The room receives `left` once.
#[test]
fn a_flooding_client_is_disconnected() {
    let mut world = World::new(&SLOW_RATE_OPTIONS);
    let listener = member(&mut world, "listener");
    for dialect in DIALECTS {
        let bot = join(&mut world, dialect, "bot", "general");
        let data = listener.read_event("joined");
        let frame = masked(0x81, message(dialect, "bot", "hello").as_bytes());
        // The server accepts one message and rejects four, but does not close the connection yet.
        bot.send(&frame.repeat(5));
        world.settle();
        assert!(bot.read_json().to_string().contains("hello"));
        (0..4).for_each(|_| assert_eq!(bot.read_json(), error(dialect, "Slow down")));
        bot.expect_nothing();
        assert_eq!(listener.read_event("message")["text"], "hello");
        listener.expect_nothing();
        bot.send(&frame.repeat(20));
        world.settle();
        assert_eq!(bot.read_json(), error(dialect, "Slow down"));
        assert_eq!(bot.read_frame().close(), (1008, "flooding".to_owned()));
        bot.send(&close_frame(1008));
        world.settle();
        bot.expect_end();
        assert_eq!(listener.read_json(), json!({"event": "left", "data": data}));
    }
    listener.expect_nothing();
}

/// The server replies with an error to each message over the rate limit. Within ten seconds, it sends a client at most
/// 10 of these errors: five times the burst, and the burst is 2 here. Instead of the 11th error, the server sends a
/// Close.
#[test]
fn a_flood_of_five_bursts() {
    let mut world = World::new(&["--rate-limit", "1"]);
    let bot = member(&mut world, "bot");
    (0..200).for_each(|_| send_message(&bot, "hello"));
    world.settle();
    let mut frames = bot.read_frames();
    assert_eq!(frames.pop().unwrap().close(), (1008, "flooding".to_owned()));
    let slow_down = error(Dialect::Events, "Slow down");
    assert_eq!(frames.iter().filter(|frame| json_of(frame) == slow_down).count(), 10, "five bursts of two");

    let patient = member(&mut world, "patient");
    for _ in 0..10 {
        (0..9).for_each(|_| send_message(&patient, "hello"));
        world.advance(seconds(12));
    }
    assert!(patient.read_frames().iter().all(|frame| frame.first == 0x81), "the client is not closed");
}

// -------------------------------------------------------------------------------- event loop turns, readiness events

/// When the batch of a room is full, the server stops reading from the members of that room until the next turn of
/// the event loop. It keeps reading from the members of other rooms.
#[test]
fn a_full_batch_pauses_only_its_own_room() {
    let mut world = World::new(&[]);
    world.capacity = 1 << 20; // large enough that no write blocks
    let crowd: Vec<Client> = (0..8).map(|i| member(&mut world, &format!("member{i}"))).collect();
    let other = join(&mut world, Dialect::Events, "other", "elsewhere");
    let has_pong = |client: &Client| client.read_frames().iter().any(|frame| frame.first == 0x8a);
    crowd.iter().for_each(|client| drop(client.read_frames()));
    // Each member sends ten texts of 3 KB each (as escaped JSON), so the messages of three members fill the room's 64
    // KiB batch.
    let text = format!("a{}b", "\u{1}".repeat(498));
    for client in &crowd {
        (0..10).for_each(|_| send_message(client, &text));
        client.send(&masked(0x89, b""));
    }
    other.send(&masked(0x89, b""));
    world.turn();
    assert!(has_pong(&other), "the server serves another room in the same turn");
    let served = crowd.iter().filter(|client| has_pong(client)).count();
    assert_eq!(served, 3, "the room's other members wait");
    let turns = world.settle();
    assert_eq!(crowd.iter().filter(|client| has_pong(client)).count(), 8 - served);
    assert!(turns <= 2, "{turns}");
}

/// The server spreads a burst of handshakes over many turns, and serves other clients in each of those turns.
#[test]
fn a_burst_of_handshakes_does_not_delay_others() {
    let mut world = World::new(&[]);
    let other = join(&mut world, Dialect::Events, "other", "elsewhere");
    let crowd: Vec<Client> = (0..200).map(|_| world.connect()).collect();
    crowd.iter().enumerate().for_each(|(i, client)| {
        client.send(upgrade_request(&path(Dialect::Events, &format!("member{i}"), "general")).as_bytes());
    });
    let mut turns = 0;
    let mut joined = 0;
    while joined < crowd.len() {
        other.send(&masked(0x89, b""));
        world.turn();
        turns += 1;
        assert!(turns < 100, "{joined} of 200 have joined");
        assert_eq!(other.read_frame().first, 0x8a, "a Pong in every turn");
        let before = joined;
        joined = crowd.iter().filter(|client| !client.received().is_empty()).count();
        assert!(joined - before <= 16, "{} handshakes in one turn", joined - before);
    }
}

#[test]
fn a_turn_handles_a_bounded_number_of_handshakes() {
    let mut world = quiet_world(&[]);
    let visitors: Vec<Client> = (0..40)
        .map(|number| {
            let client = world.connect();
            client.send(upgrade_request(&path(Dialect::Events, &format!("user{number}"), "general")).as_bytes());
            client
        })
        .collect();
    world.turn(); // this turn only accepts the connections; the handshakes follow in later turns
    for joined in [16, 32, 40] {
        world.turn();
        assert_eq!(visitors.iter().filter(|client| !client.received().is_empty()).count(), joined);
    }
}

/// If many connections end in the same turn, the server first removes all their users from the room, and then
/// broadcasts the `left` events. It writes none of these events to the connections that have ended.
#[test]
fn members_that_drop_together_leave_before_any_broadcast() {
    for (has_presence, is_reset) in [(true, true), (false, false)] {
        let mut world = quiet_world(&["--max-presence", "10"]);
        let survivor = member(&mut world, "survivor");
        // Use long names, so that the `left` events fill more than one batch.
        let name = "\u{1f600}".repeat(28);
        let crowd: Vec<Client> = (0..430).map(|number| member(&mut world, &format!("{name}{number}"))).collect();
        let presence = has_presence.then(|| join(&mut world, Dialect::Presence, "presence", "general"));
        for _ in 0..3 {
            world.settle(); // the server sends the bytes that did not fit in the sockets' buffers
            [&survivor].into_iter().chain(&presence).chain(&crowd).for_each(|client| drop(client.read()));
        }
        crowd.iter().for_each(|client| if is_reset { client.reset() } else { client.end() });
        let turns = world.settle();
        assert!(turns < 5, "{turns} turns");
        let written: usize = crowd.iter().map(|client| client.received().len()).sum();
        assert_eq!(written, 0, "bytes written to connections that have ended");
        let events: Vec<String> =
            survivor.read_frames().iter().map(|frame| json_of(frame)["event"].to_string()).collect();
        assert_eq!(events.iter().filter(|event| *event == "\"left\"").count(), crowd.len(), "{:?}", &events[..3]);
        if let Some(presence) = presence {
            let last = json_of(presence.read_frames().last().unwrap());
            assert_eq!(last["active_users"], json!(["survivor", "presence"]));
        }
        assert_eq!(world.connection_count(), 1 + usize::from(has_presence));
    }
}

/// While many members leave, the server holds broadcasts back for a few turns of the event loop, so that it does not
/// send them to members that are about to leave. A member has left when its Close frame arrives, even if its TCP
/// connection is still open.
#[test]
fn broadcasts_are_held_during_a_mass_disconnect() {
    const GROUPS: usize = 4;
    let leave: [fn(&Client); 3] = [|client| client.send(&close_frame(1000)), Client::end, Client::reset];
    for leave in leave {
        let mut world = quiet_world(&[]);
        let crowd = join_crowd(&mut world, GROUPS * 150);
        let (witness, other) = (&crowd[0], join(&mut world, Dialect::Events, "other", "elsewhere"));
        for group in crowd[1..].chunks(150) {
            group.iter().for_each(leave);
            send_message(witness, "still here");
            other.send(&masked(0x89, b""));
            world.turn();
            witness.expect_nothing();
            assert_eq!(other.read_frame().first, 0x8a, "a Pong is not held");
            world.jump(millis(249 / GROUPS as u64));
        }
        world.settle();
        let counts = count_events(witness);
        assert_eq!((counts["left"], counts["message"]), (GROUPS * 150, GROUPS));
        for client in &crowd[1..] {
            let received = String::from_utf8_lossy(&client.received()).into_owned();
            assert!(!received.contains(r#""left""#), "{received}");
        }
    }
}

/// The signal to stop arrives in the turn in which 300 members leave, or in the next turn. The server must still send a
/// Close to the member that stays.
#[test]
fn a_stop_during_a_mass_disconnect() {
    let leave: [fn(&Client); 3] = [|client| client.send(&close_frame(1000)), Client::end, Client::reset];
    for (leave, turns) in leave.into_iter().flat_map(|leave| [(leave, 0), (leave, 1)]) {
        let mut world = quiet_world(&[]);
        let crowd = join_crowd(&mut world, 300);
        crowd[1..].iter().for_each(leave);
        (0..turns).for_each(|_| world.turn());
        world.shut_down();
        world.advance(millis(10_000));
        assert!(world.is_stopped);
        assert_eq!(crowd[0].read_frames().last().map(|frame| frame.close().0), Some(1001));
    }
}

/// Even if many members leave in every turn, the server delays broadcasts by at most 250 ms.
#[test]
fn broadcasts_are_held_for_a_bounded_time() {
    let mut world = quiet_world(&[]);
    let crowd = join_crowd(&mut world, 5 * 150);
    let groups = crowd[1..].chunks(150).zip([0, 100, 149, 1, 50]);
    let held = groups.map(|(group, wait)| {
        world.jump(millis(wait));
        group.iter().for_each(|client| client.send(&close_frame(1000)));
        world.turn();
        crowd[0].received().is_empty()
    });
    assert_eq!(held.collect::<Vec<_>>(), [true, true, true, false, false]);
}

/// Makes `count` + 1 clients join a room, and discards the bytes that they receive. The first client is the witness.
fn join_crowd(world: &mut World, count: usize) -> Vec<Client> {
    let mut crowd = Vec::new();
    for first in (0..=count).step_by(50) {
        for number in first..=count.min(first + 49) {
            let client = world.connect();
            client.send(upgrade_request(&path(Dialect::Events, &format!("member{number}"), "general")).as_bytes());
            crowd.push(client);
        }
        world.settle();
        crowd.iter().for_each(|client| drop(client.read()));
    }
    crowd
}

/// Reads all events. Returns how many times the client received each event, by name.
fn count_events(client: &Client) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for frame in client.read_frames() {
        *counts.entry(json_of(&frame)["event"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

/// Hundreds of slow consumers exceed `--max-outbox` in the same turn. Each receives one Close, and nothing after it.
#[test]
fn many_slow_consumers_in_one_turn() {
    let mut world = quiet_world(&["--max-outbox", "4096"]);
    let talker = member(&mut world, "talker");
    world.capacity = 600;
    let crowd = join_crowd(&mut world, 299);
    talker.read_frames();
    crowd.iter().for_each(|client| client.set_reading(false));
    let messages = 20;
    for _ in 0..messages {
        send_message(&talker, &"x".repeat(400));
        world.settle();
    }
    crowd.iter().for_each(|client| client.set_reading(true));
    world.settle();
    let counts = count_events(&talker);
    assert_eq!((counts["left"], counts["message"]), (300, messages));
    for client in &crowd {
        let mut frames = client.read_frames();
        assert_eq!(frames.pop().unwrap().close(), (1008, "too slow to read".to_owned()));
        assert!(frames.iter().all(|frame| json_of(frame)["event"] == "message"));
    }
}

/// Runs a fixed conversation in every chat dialect and on `/echo`. Returns all bytes that each client received.
fn conversation(world: &mut World) -> Vec<Vec<u8>> {
    let paths = DIALECTS.map(|dialect| path(dialect, "member", "general"));
    let clients: Vec<Client> =
        paths.iter().map(|path| connect_and_send(world, upgrade_request(path).as_bytes())).collect();
    let echo = connect_and_send(world, upgrade_request(ECHO).as_bytes());
    let rejected = connect_and_send(world, upgrade_request("/?token=wrong").as_bytes());
    for (client, dialect) in clients.iter().zip(DIALECTS) {
        for text in ["hello", "/msg member a private message", &"long ".repeat(60)] {
            client.send_text(&message(dialect, "member", text));
            client.send(&masked(0x89, text.get(..9).unwrap_or(text).as_bytes()));
            world.settle();
        }
    }
    let switch = masked(0x81, br#"{"event":"switch_room","data":{"room":"elsewhere"}}"#);
    let echoed = [hex("01 82 M0 'He'"), masked(0x89, b"ping"), masked(0x80, &[b'l'; 400])].concat();
    for (client, sent) in
        [(&echo, echoed), (&clients[0], switch), (&clients[1], close_frame(1000)), (&clients[2], hex("81 7f"))]
    {
        client.send(&sent);
        world.settle();
    }
    echo.end();
    rejected.end();
    world.settle();
    clients.iter().chain([&echo, &rejected]).map(Client::received).collect()
}

/// Every client receives the same bytes, however few bytes the kernel accepts per write.
#[test]
fn partial_writes_at_every_size() {
    let expected = conversation(&mut World::new(&[]));
    assert!(expected.iter().all(|bytes| bytes.len() > 100));
    for capacity in (1..300).chain([500, 1000, 2000]) {
        let mut world = World::new(&[]);
        world.capacity = capacity;
        assert!(conversation(&mut world) == expected, "{capacity} bytes at once");
    }
}

/// Spurious readiness events do not change the bytes that the clients receive.
#[test]
fn spurious_edges() {
    let expected = conversation(&mut World::new(&[]));
    for (is_readable, is_writable) in [(true, false), (false, true), (true, true)] {
        for capacity in [7, 64 * 1024] {
            let mut world = World::new(&[]);
            world.capacity = capacity;
            world.spurious = Readiness { is_readable, is_writable, ..NO_EDGE };
            assert!(conversation(&mut world) == expected, "{:?}", world.spurious);
        }
    }
}

/// The server ignores readiness events for unknown tokens and for removed connections.
#[test]
fn edges_for_unknown_tokens() {
    let every_edge = Readiness { is_readable: true, is_writable: true, is_read_closed: true, has_error: true };
    let mut world = World::new(&[]);
    let client = member(&mut world, "member");
    let removed = world.upgrade(ECHO);
    removed.reset();
    world.settle();
    let tokens = [removed.token(), Token(0), Token(1), Token(1000), Token(usize::MAX)];
    world.turn_with(|server| tokens.into_iter().for_each(|token| server.set_ready(token, every_edge)));
    world.settle();
    assert_eq!(world.connection_count(), 1);
    client.expect_nothing();
}

// ------------------------------------------------------------------------------------------------------- determinism

/// Clients join, send messages, switch rooms, stop reading, leave, and reset their connections at random times. Returns
/// the bytes that each client received.
fn random_scenario(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Rng::with_seed(seed);
    let mut world = World::build(&["--max-outbox", "4096", "--rate-limit", "0", "--history", "5"], seed, false);
    let mut clients: Vec<(Dialect, Client)> = Vec::new();
    for step in 0..500 {
        if clients.len() < 8 || random.u8(0..8) == 0 {
            world.capacity = random.usize(1..2000);
            let dialect = random.choice(DIALECTS).unwrap();
            let room = random.choice(["a", "b"]).unwrap();
            let client = world.connect();
            client.send(upgrade_request(&path(dialect, &format!("user{step}"), room)).as_bytes());
            clients.push((dialect, client));
        }
        let (dialect, client) = &clients[random.usize(0..clients.len())];
        let text = format!("{step} {}", "x".repeat(random.usize(0..400)));
        match random.u8(0..16) {
            _ if !client.is_open() => {}
            0 => client.reset(),
            1 => client.end(),
            2 => client.send(&close_frame(1000)),
            3..=5 => client.set_reading(false),
            6 => client.set_reading(true),
            7 => client.send_text(r#"{"event":"switch_room","data":{"room":"b"}}"#),
            8 => client.send(&masked(0x89, b"ping")),
            _ => client.send_text(&message(*dialect, "member", &text)),
        }
        match random.u8(0..4) {
            0 => world.advance(millis(random.u64(0..5000))),
            1 | 2 => world.turn(),
            _ => {}
        }
    }
    world.shut_down();
    world.advance(seconds(2));
    assert!(world.is_stopped);
    clients.iter().map(|(_, client)| client.received()).collect()
}

/// In two runs with the same seed, the server sends the same bytes to every client.
#[test]
fn one_seed_has_one_outcome() {
    let mut outcomes = Vec::new();
    for seed in 0..20 {
        let first = random_scenario(seed);
        assert!(first == random_scenario(seed), "seed {seed}");
        assert!(!outcomes.contains(&first), "seed {seed} differs from the others");
        outcomes.push(first);
    }
}
