//! Every limit at n and at n + 1, and what they mean to those who did not cross them.

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::http::{Request, get, handshake};
use support::people::{DIALECTS, Dialect, End, Person, chat, path};
use support::table::{each_row, hex};
use support::watched::Watched;
use support::{Frame, RawClient, Server, masked, upgrade_request, wait_until};

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token";

/// What becomes of some bytes behind an upgrade.
enum Outcome {
    /// An echo, or an event, with this in it.
    Says(&'static str),
    Closes(u16, &'static str),
}

use Outcome::{Closes, Says};

/// A name, flags, an endpoint, what is sent there, and what becomes of it.
type Limit<'a> = (&'a str, &'a [&'a str], &'a str, Vec<u8>, Outcome);

/// Each limit at n and at n + 1.
#[test]
fn limits_of_messages() {
    let fragments = |count: usize| [hex("01 80 M0"), hex("00 80 M0").repeat(count - 1)].concat();
    let whole = |count: usize| [fragments(count - 1), hex("80 83 M0 'end'")].concat();
    let ping = |len: usize| masked(0x81, format!("{:len$}", r#"{"event":"ping"}"#).as_bytes());
    let text = |text: &str| masked(0x81, json!({"event": "message", "data": {"text": text}}).to_string().as_bytes());
    let message = ["--max-message", "300", "--max-text", "10"];
    let parts = ["--max-fragments", "4"];
    let rows: Vec<Limit> = vec![
        ("--max-message at", &message, CHAT, ping(300), Says("pong")),
        ("--max-message over", &message, CHAT, ping(301), Closes(1009, "")),
        ("--max-message does not bind /echo", &message, ECHO, masked(0x81, &[b'x'; 301]), Says("xxx")),
        ("--max-echo at", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1000]), Says("xxx")),
        ("--max-echo over", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1001]), Closes(1009, "")),
        ("--max-echo does not bind the chat", &["--max-echo", "1000"], CHAT, ping(1001), Says("pong")),
        ("--max-text at", &["--max-text", "10"], CHAT, text("ääääääääää"), Says("ääääääääää")),
        ("--max-text over", &["--max-text", "10"], CHAT, text("äääääääääää"), Says("Message too long")),
        ("--max-fragments at", &parts, ECHO, whole(4), Says("end")),
        ("--max-fragments over", &parts, ECHO, whole(5), Closes(1008, "fragments")),
        ("--max-fragments over, no end", &parts, ECHO, fragments(5), Closes(1008, "fragments")),
        ("--max-fragments for each message anew", &parts, ECHO, whole(4).repeat(3), Says("end")),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, args, at, sent, outcome)| {
            let mut server = Watched::start(args);
            let mut client = server.upgrade(at);
            client.send(sent);
            let mut frame = client.read_frame();
            if frame.payload.windows(9).any(|bytes| bytes == b"\"welcome\"") {
                frame = client.read_frame();
            }
            match outcome {
                Says(what) => assert!(String::from_utf8_lossy(&frame.payload).contains(what), "{frame:?}"),
                Closes(code, word) => {
                    let (got, reason) = frame.close();
                    assert!(got == *code && reason.contains(word), "{got} {reason:?}");
                }
            }
            server.still_chats();
        },
    );
}

#[test]
fn limits_of_heads() {
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
        |(_, args, request, status)| {
            assert_eq!(Server::start(args).status(request), *status);
        },
    );
}

/// F13: the largest echo there is by default.
#[test]
fn an_echo_of_16_mib() {
    let server = Watched::start(&[]);
    let mut client = server.upgrade(ECHO);
    let mut writer = RawClient::new(client.stream.try_clone().unwrap());
    let payload: Vec<u8> = (0..=255).cycle().take(16 << 20).collect();
    let frame = masked(0x82, &payload);
    let writing = std::thread::spawn(move || writer.send(&frame));
    assert!(client.read_frame() == Frame { first: 0x82, payload }, "the same comes back");
    writing.join().unwrap();
    server.finish(&[]);
}

/// `--max-connections`: the one too many is refused, and there is room again when another has gone.
#[test]
fn limit_of_connections() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, _second) = (server.upgrade(CHAT), server.upgrade(ECHO));
    assert_eq!(server.status(&handshake()), 503);
    assert_eq!(server.status(&get("/health")), 200);
    drop(first);
    wait_until("there is room again", || server.status(&handshake()) == 101);
}

/// `--max-buffered`: unfinished messages of all connections together. The one that crosses it is closed, the others go on.
#[test]
fn limit_of_what_is_buffered() {
    let mut server = Watched::start(&["--max-buffered", "200000"]);
    let half = masked(0x02, &[b'x'; 60_000]);
    for _ in 0..2 {
        let mut clients: Vec<RawClient> = (0..3).map(|_| server.upgrade(ECHO)).collect();
        for client in &mut clients {
            client.send(&half);
            server.barrier();
        }
        let mut last = server.upgrade(ECHO);
        last.send(&half);
        let (code, reason) = last.read_frame().close();
        assert_eq!(code, 1013);
        assert!(reason.contains("buffer"), "{reason}");
        last.send(&masked(0x88, &code.to_be_bytes()));
        last.expect_end();
        for client in &mut clients {
            client.send(&masked(0x80, b"end"));
            assert_eq!(client.read_frame().payload.len(), 60_003, "the others go on");
        }
        server.still_chats();
    }
    server.finish(&[]);
}

/// Whoever brings too much behind its request is upgraded all the same, and then told.
#[test]
fn too_much_behind_the_request() {
    let server = Server::start(&["--max-buffered", "2000"]);
    let mut client = server.connect();
    client.send(&[upgrade_request(ECHO).as_bytes(), &masked(0x02, &[b'x'; 3000])].concat());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.read_frame().close().0, 1013);
}

/// Who holds many times as much as another pays for the lack of room, and not the other's half of a short message.
#[test]
fn a_hog_and_a_last_straw() {
    let mut server = Watched::start(&["--max-buffered", "200000"]);
    let mut hog = server.upgrade(ECHO);
    // Half of a message; it is counted as it is received, so that is waited for.
    hog.send(&masked(0x02, &[b'x'; 190_000]));
    hog.send(&masked(0x89, b"here?"));
    assert_eq!(hog.read_frame().first, 0x8a);
    let mut other = server.upgrade(ECHO);
    other.send(&masked(0x02, &[b'y'; 20_000]));
    let (code, reason) = hog.read_frame().close();
    assert_eq!(code, 1013);
    assert!(reason.contains("buffer"), "{reason}");
    other.send(&masked(0x80, b"end"));
    assert_eq!(other.read_frame().payload.len(), 20_003);
    server.still_chats();
}

// ------------------------------------------------------------------------------------------------- how fast, and floods

/// A rate at which a second message is too many for ten seconds: its burst is one. And nobody is told what was said
/// before they came.
const SLOW: [&str; 4] = ["--rate-limit", "0.1", "--history", "0"];

/// Frames of these texts, in one write: no time passes between them.
fn send_at_once(person: &mut Person, texts: &[&str]) {
    let frames: Vec<u8> = texts.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
    person.client.send(&frames);
}

/// A person on a dialect who has read what is said on arrival.
fn member(server: &Server, dialect: Dialect, name: &str, room: &str) -> Person {
    let mut person = Person::joins(server, dialect, name, room);
    person.hear();
    person
}

/// L10: the first is heard, the second is not, on each dialect; and who was too fast is told so alone.
#[test]
fn a_message_too_many() {
    let server = Server::start(&SLOW);
    for dialect in DIALECTS {
        let room = format!("{dialect:?}");
        let mut listener = member(&server, Dialect::Events, "listener", &room);
        let mut bot = member(&server, dialect, "bot", &room);
        listener.hears_at_least("joined", json!({}));
        let [first, second] = ["first", "second"].map(|text| bot.message(text));
        send_at_once(&mut bot, &[&first, &second]);
        bot.hears(bot.told("bot", "first", 1));
        bot.hears(bot.error("Slow down"));
        listener.hears(listener.told("bot", "first", 1));
        bot.hears_nothing();
        // What one may say is no affair of another.
        listener.says("I may");
        listener.hears(listener.told("listener", "I may", 2));
    }
}

/// Whatever a text message holds, it counts.
#[test]
fn what_draws_from_the_rate() {
    let server = Server::start(&SLOW);
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
        |(dialect, sent, is_answered)| {
            let mut bot = member(&server, *dialect, "bot", "general");
            let next = bot.message("too many");
            send_at_once(&mut bot, &[sent, &next]);
            if *is_answered {
                let answer = bot.hear().to_string();
                assert!(!answer.contains("Slow down"), "the first may be said: {answer}");
            }
            bot.hears(bot.error("Slow down"));
            bot.hears_nothing();
            bot.leaves();
        },
    );
    // A ping of the protocol below is no message, and an echo is no chat.
    let mut bot = member(&server, Dialect::Events, "bot", "elsewhere");
    bot.client.send(&masked(0x89, b"").repeat(100));
    (0..100).for_each(|_| assert_eq!(bot.frame().first, 0x8a));
    send_at_once(&mut bot, &[message]);
    bot.hears_at_least("message", json!({}));
    let mut echo = server.upgrade(ECHO);
    echo.send(&masked(0x81, b"x").repeat(100));
    (0..100).for_each(|_| assert_eq!(echo.read_text(), "x"));
}

/// `Slow down` says which message it answers, so that it can be sent again; and that is then not an old one.
#[test]
fn slow_down_carries_the_nonce() {
    let server = Server::start(&SLOW);
    let mut bot = member(&server, Dialect::Events, "bot", "general");
    let message = |event: &str, nonce: &str| {
        json!({"event": event, "data": {"text": "hello", "to": "bot", "nonce": nonce}}).to_string()
    };
    send_at_once(&mut bot, &[&message("message", "n1"), &message("message", "n2"), &message("private", "n3")]);
    bot.hears_at_least("message", json!({"id": 1, "nonce": "n1"}));
    for nonce in ["n2", "n3"] {
        bot.hears(json!({"event": "error", "data": {"message": "Slow down", "nonce": nonce}}));
    }
    let mut again = member(&server, Dialect::Events, "bot", "general");
    bot.hears_at_least("joined", json!({}));
    send_at_once(&mut again, &[&message("message", "n2")]);
    for person in [&mut bot, &mut again] {
        person.hears_at_least("message", json!({"id": 2, "nonce": "n2"}));
    }
}

/// A burst is twice the rate, and what is above it comes with time and not before.
#[test]
fn bursts() {
    let rows: [(&[&str], u64, f64); 4] =
        [(&[], 10, 5.0), (&["--rate-limit", "1"], 2, 1.0), (&["--rate-limit", "20"], 40, 20.0), (&SLOW, 1, 0.1)];
    each_row(
        &rows,
        |row| row.0.join(" "),
        |(args, burst, rate)| {
            let server = Server::start(args);
            let mut bot = member(&server, Dialect::Events, "bot", "general");
            let start = Instant::now();
            let message = bot.message("hello");
            let count = *burst as usize + 3;
            send_at_once(&mut bot, &vec![message.as_str(); count]);
            let heard: Vec<Value> = (0..count).map(|_| bot.hear()).collect();
            let most = *burst + (start.elapsed().as_secs_f64() * rate) as u64;
            let let_through = heard.iter().filter(|heard| heard["event"] == "message").count() as u64;
            assert!((*burst..=most).contains(&let_through), "{let_through} of at least {burst} and at most {most}");
            let first = heard.iter().take_while(|heard| heard["event"] == "message").count() as u64;
            assert!(first >= *burst, "a burst comes first: {first}");
            let slow_down = bot.error("Slow down");
            assert_eq!(heard.iter().filter(|heard| **heard == slow_down).count(), count - let_through as usize);
            // And it comes back with time.
            if *rate >= 1.0 {
                wait_until("there is something to draw again", || {
                    std::thread::sleep(std::time::Duration::from_secs_f64(2.0 / rate));
                    bot.says("again");
                    bot.hear()["event"] == "message"
                });
            }
        },
    );
}

/// A flood that goes on ends, after five bursts of `Slow down`; and the room is told once.
#[test]
fn a_flood_is_closed() {
    let server = Server::start(&SLOW);
    let mut listener = member(&server, Dialect::Events, "listener", "general");
    for dialect in DIALECTS {
        let mut bot = member(&server, dialect, "bot", "general");
        let data = listener.hears_at_least("joined", json!({}));
        let message = bot.message("hello");
        // One that may be said, and four that may not: it stays.
        send_at_once(&mut bot, &[message.as_str(); 5]);
        assert!(bot.hear().to_string().contains("hello"));
        (0..4).for_each(|_| drop(bot.hears(bot.error("Slow down"))));
        bot.hears_nothing();
        listener.hears_at_least("message", json!({"text": "hello"}));
        listener.hears_nothing();
        send_at_once(&mut bot, &[message.as_str(); 20]);
        bot.hears(bot.error("Slow down"));
        bot.sees_the_close(1008, "flooding");
        listener.hears(json!({"event": "left", "data": data}));
    }
    listener.hears_nothing();
}

/// The same with a burst of more than one.
#[test]
fn a_flood_of_five_bursts() {
    let server = Server::start(&["--rate-limit", "1"]);
    let mut bot = member(&server, Dialect::Events, "bot", "general");
    let (message, slow_down) = (bot.message("hello"), bot.error("Slow down"));
    send_at_once(&mut bot, &vec![message.as_str(); 200]);
    let mut slow_downs = 0;
    loop {
        let frame = bot.frame();
        if frame.opcode() == 8 {
            assert_eq!(frame.close(), (1008, "flooding".to_owned()));
            break;
        }
        let heard: Value = serde_json::from_str(frame.text()).unwrap();
        slow_downs += usize::from(heard == slow_down);
    }
    assert_eq!(slow_downs, 10, "five bursts of two");
}

/// `--rate-limit 0` turns it off.
#[test]
fn no_rate_limit() {
    let server = chat(&[]);
    for dialect in DIALECTS {
        let mut bot = member(&server, dialect, "bot", &format!("{dialect:?}"));
        let message = bot.message("hello");
        send_at_once(&mut bot, &vec![message.as_str(); 1000]);
        for id in 1..=1000 {
            bot.hears(bot.told("bot", "hello", id));
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- rooms

/// L13, `--max-rooms`: a room too many is an error to who moves, and a 503 to who comes; and it is not created.
#[test]
fn limit_of_rooms() {
    let server = chat(&["--max-rooms", "2"]);
    let mut first = member(&server, Dialect::Events, "first", "a");
    let mut mover = member(&server, Dialect::Events, "mover", "a");
    first.hears_at_least("joined", json!({"username": "mover"}));
    let second = member(&server, Dialect::Rooms, "", "b");
    for dialect in DIALECTS {
        let mut client = server.connect();
        client.send(&handshake().target(path(dialect, "late", "c")).bytes());
        let refusal = client.read_response();
        assert_eq!(refusal.status, 503, "{dialect:?}");
        assert!(refusal.header("Retry-After").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{refusal:?}");
        for room in ["a", "b"] {
            let guest = member(&server, dialect, "guest", room);
            guest.leaves();
            if room == "a" {
                for event in ["joined", "left"] {
                    first.hears_at_least(event, json!({}));
                    mover.hears_at_least(event, json!({}));
                }
            }
        }
    }
    mover.sends("switch_room", json!({"room": "c"}));
    mover.hears_an_error();
    first.hears_nothing();
    // The mover stayed where it was.
    mover.says("still here");
    for person in [&mut first, &mut mover] {
        let told = person.told("mover", "still here", 1);
        person.hears(told);
    }
    // A room that is there already is none too many; nor is one when another has emptied, history or not.
    mover.sends("switch_room", json!({"room": "b"}));
    mover.hears_at_least("switched", json!({"room": "b", "members": ["Anonymous"]}));
    first.hears_at_least("left", json!({"username": "mover"}));
    second.leaves();
    mover.hears_at_least("left", json!({}));
    first.leaves();
    mover.sends("switch_room", json!({"room": "c"}));
    mover.hears_at_least("switched", json!({"room": "c", "members": [], "last_id": 0, "history": []}));
    let mut back = Person::joins(&server, Dialect::Events, "first", "a");
    back.hears_at_least("welcome", json!({"members": [], "last_id": 1}));
}

/// L12: rooms that were entered and left again do not add up, and what the others hear is in order.
#[test]
fn switching_without_end() {
    let server = chat(&["--max-rooms", "3"]);
    let mut host = member(&server, Dialect::Events, "host", "home");
    let mut mover = member(&server, Dialect::Events, "mover", "home");
    host.hears_at_least("joined", json!({}));
    for i in 0..300 {
        let room = if i % 3 == 2 { "home".to_owned() } else { format!("room {i}") };
        mover.sends("switch_room", json!({"room": room}));
    }
    for i in 0..300 {
        let room = if i % 3 == 2 { "home".to_owned() } else { format!("room {i}") };
        let members = if i % 3 == 2 { json!(["host"]) } else { json!([]) };
        mover.hears_at_least("switched", json!({"room": room, "members": members}));
        match i % 3 {
            0 => drop(host.hears_at_least("left", json!({"username": "mover"}))),
            1 => {}
            _ => drop(host.hears_at_least("joined", json!({"username": "mover"}))),
        }
    }
    host.hears_nothing();
    mover.hears_nothing();
}

// --------------------------------------------------------------------------------------------------------- addresses

/// L08: what counts the connections of one address does not count those of this machine.
#[test]
fn connections_from_loopback_are_not_counted() {
    for args in [&[][..], &["--max-per-address", "1"]] {
        let server = Server::start(args);
        let clients: Vec<RawClient> = (0..40).map(|i| server.upgrade([CHAT, ECHO][i % 2])).collect();
        assert_eq!(server.status(&handshake()), 101);
        drop(clients);
    }
}

/// The same of wrong tokens, and a right one is let in at any time.
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

/// T10: the same where loopback is an address of IPv6, or one of IPv4 in the clothes of IPv6.
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

/// A connection that has ended makes room, however it ended; and a refused one takes none.
#[test]
fn connections_are_counted_while_they_last() {
    let server = Server::start(&["--max-connections", "3"]);
    let mut host = member(&server, Dialect::Events, "host", "general");
    for how in [End::Close, End::Eof, End::Reset] {
        for dialect in DIALECTS {
            let guest = member(&server, dialect, "guest", "general");
            host.hears_at_least("joined", json!({}));
            assert_eq!(server.status(&handshake().target("/?token=wrong")), 401);
            guest.hangs_up(how);
            host.hears_at_least("left", json!({}));
        }
    }
    wait_until("there is room again", || server.status(&handshake()) == 101);
}
