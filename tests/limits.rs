//! Tests the limits of the server, at the largest allowed value and above it. A client that exceeds a limit must not
//! affect the other clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::http::handshake;
use support::table::each_row;
use support::users::{DIALECTS, Dialect, End, User, chat, path};
use support::watched::WitnessedServer;
use support::{Frame, RawClient, Server, masked, wait_until};

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token";

/// The server accepts and echoes a message of 16 MiB, which is the default limit of `--max-echo`.
#[test]
fn an_echo_of_16_mib() {
    let server = WitnessedServer::start(&[]);
    let mut client = server.upgrade(ECHO);
    let mut writer = RawClient::new(client.stream.try_clone().unwrap());
    let payload: Vec<u8> = (0..=255).cycle().take(16 << 20).collect();
    let frame = masked(0x82, &payload);
    let writing = std::thread::spawn(move || writer.send(&frame));
    assert!(client.read_frame() == Frame { first: 0x82, payload }, "the echo is the same");
    writing.join().unwrap();
    server.finish(&[]);
}

// ------------------------------------------------------------------------------------------- rate limit and floods

/// Allows each client one message every ten seconds, with a burst of one. Turns the history off, so that a
/// client receives no messages when it joins.
const SLOW_RATE_OPTIONS: [&str; 4] = ["--rate-limit", "0.1", "--history", "0"];

/// Sends all texts in one write, so that they reach the server at almost the same time.
fn send_in_one_write(user: &mut User, texts: &[&str]) {
    let frames: Vec<u8> = texts.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
    user.client.send(&frames);
}

/// Joins a room, and reads the event with which the server confirms the join.
fn member(server: &Server, dialect: Dialect, name: &str, room: &str) -> User {
    let mut user = User::join(server, dialect, name, room);
    user.receive();
    user
}

/// In each dialect, the server delivers the first message and rejects the second. Only the sender receives the
/// error.
#[test]
fn one_message_too_many() {
    let server = Server::start(&SLOW_RATE_OPTIONS);
    for dialect in DIALECTS {
        let room = format!("{dialect:?}");
        let mut witness = member(&server, Dialect::Events, "witness", &room);
        let mut bot = member(&server, dialect, "bot", &room);
        witness.expect_event("joined", json!({}));
        let [first, second] = ["first", "second"].map(|text| bot.message(text));
        send_in_one_write(&mut bot, &[&first, &second]);
        bot.expect_message(bot.room_message("bot", "first", 1));
        bot.expect_message(bot.error("Slow down"));
        witness.expect_message(witness.room_message("bot", "first", 1));
        bot.expect_nothing();
        // Each client has its own rate limit.
        witness.send_message("I may");
        witness.expect_message(witness.room_message("witness", "I may", 2));
    }
}

#[test]
fn every_text_message_counts_toward_the_rate_limit() {
    let server = Server::start(&SLOW_RATE_OPTIONS);
    let message = r#"{"event":"message","data":{"text":"hello"}}"#;
    let rows = [
        (Dialect::Events, message, true),
        (Dialect::Events, r#"{"event":"ping"}"#, true),
        (Dialect::Events, r#"{"event":"switch_room","data":{"room":"elsewhere"}}"#, true),
        (Dialect::Events, r#"{"event":"private","data":{"to":"bot","text":"hello"}}"#, true),
        (Dialect::Events, r#"{"event":"message","data":{"text":"/msg bot hello"}}"#, true),
        (Dialect::Events, r#"{"event":"foo"}"#, true),
        (Dialect::Events, "hello", true),
        (Dialect::Events, "[]", true),
        (Dialect::Events, r#"{"event":"message"}"#, false),
        (Dialect::Events, r#"{"event":"message","data":{"text":""}}"#, false),
        (Dialect::Rooms, r#"{"text":"hello"}"#, true),
        (Dialect::Rooms, "hello", true),
        (Dialect::Rooms, r#"{"text":"/msg bob hello"}"#, true),
        (Dialect::Rooms, "{}", false),
        (Dialect::Presence, "hello", true),
        (Dialect::Presence, "/msg bob hello", true),
        (Dialect::Presence, "", false),
    ];
    each_row(
        &rows,
        |row| format!("{:?}: {}", row.0, row.1),
        |(dialect, sent, has_reply)| {
            let mut bot = member(&server, *dialect, "bot", "general");
            let next = bot.message("too many");
            send_in_one_write(&mut bot, &[sent, &next]);
            if *has_reply {
                let reply = bot.receive().to_string();
                assert!(!reply.contains("Slow down"), "the first is allowed: {reply}");
            }
            bot.expect_message(bot.error("Slow down"));
            bot.expect_nothing();
            bot.leave();
        },
    );
    // Ping frames and messages to `/echo` do not count towards the rate limit.
    let mut bot = member(&server, Dialect::Events, "bot", "elsewhere");
    bot.client.send(&masked(0x89, b"").repeat(100));
    (0..100).for_each(|_| assert_eq!(bot.frame().first, 0x8a));
    send_in_one_write(&mut bot, &[message]);
    bot.expect_event("message", json!({}));
    let mut echo = server.upgrade(ECHO);
    echo.send(&masked(0x81, b"x").repeat(100));
    (0..100).for_each(|_| assert_eq!(echo.read_text(), "x"));
}

/// The `Slow down` error carries the nonce of the rejected message. The client may resend the message with the same
/// nonce.
#[test]
fn slow_down_carries_the_nonce() {
    let server = Server::start(&SLOW_RATE_OPTIONS);
    let mut bot = member(&server, Dialect::Events, "bot", "general");
    let message = |event: &str, nonce: &str| {
        json!({"event": event, "data": {"text": "hello", "to": "bot", "nonce": nonce}}).to_string()
    };
    send_in_one_write(&mut bot, &[&message("message", "n1"), &message("message", "n2"), &message("private", "n3")]);
    bot.expect_event("message", json!({"id": 1, "nonce": "n1"}));
    for nonce in ["n2", "n3"] {
        bot.expect_message(json!({"event": "error", "data": {"message": "Slow down", "nonce": nonce}}));
    }
    let mut again = member(&server, Dialect::Events, "bot", "general");
    bot.expect_event("joined", json!({}));
    send_in_one_write(&mut again, &[&message("message", "n2")]);
    for user in [&mut bot, &mut again] {
        user.expect_event("message", json!({"id": 2, "nonce": "n2"}));
    }
}

/// `--rate-limit 0` turns the rate limit off.
#[test]
fn no_rate_limit() {
    let server = chat(&[]);
    for dialect in DIALECTS {
        let mut bot = member(&server, dialect, "bot", &format!("{dialect:?}"));
        let message = bot.message("hello");
        send_in_one_write(&mut bot, &vec![message.as_str(); 1000]);
        for id in 1..=1000 {
            bot.expect_message(bot.room_message("bot", "hello", id));
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- rooms

/// Once `--max-rooms` rooms have members, the server creates no more rooms. A client that tries to switch to a new room
/// receives an error, and a handshake for a new room fails with a 503.
#[test]
fn room_limit() {
    let server = chat(&["--max-rooms", "2"]);
    let mut first = member(&server, Dialect::Events, "first", "a");
    let mut switcher = member(&server, Dialect::Events, "switcher", "a");
    first.expect_event("joined", json!({"username": "switcher"}));
    let second = member(&server, Dialect::Rooms, "", "b");
    for dialect in DIALECTS {
        let mut client = server.connect();
        client.send(&handshake().target(path(dialect, "late", "c")).bytes());
        let rejection = client.read_response();
        assert_eq!(rejection.status, 503, "{dialect:?}");
        assert!(rejection.header("Retry-After").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{rejection:?}");
        for room in ["a", "b"] {
            let guest = member(&server, dialect, "guest", room);
            guest.leave();
            if room == "a" {
                for event in ["joined", "left"] {
                    first.expect_event(event, json!({}));
                    switcher.expect_event(event, json!({}));
                }
            }
        }
    }
    switcher.send_event("switch_room", json!({"room": "c"}));
    switcher.expect_error();
    first.expect_nothing();
    // After the error, the client `switcher` is still in its old room.
    switcher.send_message("still here");
    for user in [&mut first, &mut switcher] {
        let expected = user.room_message("switcher", "still here", 1);
        user.expect_message(expected);
    }
    // A client may switch to an existing room. Empty rooms do not count towards the limit, even if they have a history.
    switcher.send_event("switch_room", json!({"room": "b"}));
    switcher.expect_event("switched", json!({"room": "b", "members": ["Anonymous"]}));
    first.expect_event("left", json!({"username": "switcher"}));
    second.leave();
    switcher.expect_event("left", json!({}));
    first.leave();
    switcher.send_event("switch_room", json!({"room": "c"}));
    switcher.expect_event("switched", json!({"room": "c", "members": [], "last_id": 0, "history": []}));
    let mut back = User::join(&server, Dialect::Events, "first", "a");
    back.expect_event("welcome", json!({"members": [], "last_id": 1}));
}

/// A client switches rooms 300 times. The empty rooms that it leaves do not count towards `--max-rooms`, so every
/// switch succeeds. A member of the client's first room receives each of its `joined` and `left` events in order.
#[test]
fn many_room_switches() {
    let server = chat(&["--max-rooms", "3"]);
    let mut host = member(&server, Dialect::Events, "host", "home");
    let mut switcher = member(&server, Dialect::Events, "switcher", "home");
    host.expect_event("joined", json!({}));
    for i in 0..300 {
        let room = if i % 3 == 2 { "home".to_owned() } else { format!("room {i}") };
        switcher.send_event("switch_room", json!({"room": room}));
    }
    for i in 0..300 {
        let room = if i % 3 == 2 { "home".to_owned() } else { format!("room {i}") };
        let members = if i % 3 == 2 { json!(["host"]) } else { json!([]) };
        switcher.expect_event("switched", json!({"room": room, "members": members}));
        match i % 3 {
            0 => drop(host.expect_event("left", json!({"username": "switcher"}))),
            1 => {}
            _ => drop(host.expect_event("joined", json!({"username": "switcher"}))),
        }
    }
    host.expect_nothing();
    switcher.expect_nothing();
}

// --------------------------------------------------------------------------------------------------------- addresses

/// Connections from loopback do not count towards `--max-per-address`.
#[test]
fn connections_from_loopback_are_not_counted() {
    for args in [&[][..], &["--max-per-address", "1"]] {
        let server = Server::start(args);
        let clients: Vec<RawClient> = (0..40).map(|i| server.upgrade([CHAT, ECHO][i % 2])).collect();
        assert_eq!(server.status(&handshake()), 101);
        drop(clients);
    }
}

/// Wrong tokens from loopback do not count towards `--max-wrong-tokens`, so the server still accepts a valid token.
#[test]
fn wrong_tokens_from_loopback_are_not_counted() {
    for args in [&[][..], &["--max-wrong-tokens", "1"]] {
        let server = Server::start(args);
        for _ in 0..40 {
            let mut client = server.connect();
            client.send(&handshake().target("/?token=wrong").bytes());
            let response = client.read_response();
            assert_eq!((response.status, response.body.as_str()), (401, "Unauthorized"));
        }
        assert_eq!(server.status(&handshake()), 101);
    }
}

/// Per-address limits also exempt `::1`, the rest of 127.0.0.0/8, and loopback addresses in IPv4-mapped form.
#[test]
fn loopback_has_several_addresses() {
    for listen in ["[::1]:0", "[::ffff:127.0.0.1]:0", "127.0.0.2:0"] {
        let server = Server::start_at(listen, &["--max-per-address", "1", "--max-wrong-tokens", "1"]);
        let _clients: Vec<RawClient> = (0..5).map(|_| server.upgrade(ECHO)).collect();
        for _ in 0..5 {
            assert_eq!(server.status(&handshake().target("/?token=wrong")), 401, "{listen}");
        }
        assert_eq!(server.status(&handshake()), 101, "{listen}");
    }
}

/// A connection counts towards `--max-connections` only until it closes, whichever way it closes. A rejected
/// handshake does not count.
#[test]
fn connections_are_counted_while_they_last() {
    let server = Server::start(&["--max-connections", "3"]);
    let mut host = member(&server, Dialect::Events, "host", "general");
    for how in [End::Close, End::Eof, End::Reset] {
        for dialect in DIALECTS {
            let guest = member(&server, dialect, "guest", "general");
            host.expect_event("joined", json!({}));
            assert_eq!(server.status(&handshake().target("/?token=wrong")), 401);
            guest.disconnect(how);
            host.expect_event("left", json!({}));
        }
    }
    wait_until("the server accepts another connection", || server.status(&handshake()) == 101);
}
