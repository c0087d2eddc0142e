//! Tests the `events` dialect: the exact events that several users in several rooms receive.
//!
//! Some of the users connect with `tungstenite`, an independent WebSocket client. It exposes any misreading of the RFC
//! that the server and the tests' own client share.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::http::{Response, handshake};
use support::table::each_row;
use support::users::{chat, events_path};
use support::{DEADLINE, RawClient, Server, masked};
use tungstenite::WebSocket;
use tungstenite::stream::MaybeTlsStream;

enum User {
    Raw(RawClient),
    Independent(Box<WebSocket<MaybeTlsStream<TcpStream>>>),
}

/// Joins with a raw socket. Does not read the `welcome` event.
fn join(server: &Server, name: &str, room: &str) -> User {
    User::Raw(server.upgrade(&events_path(name, room)))
}

/// Joins with `tungstenite`. Does not read the `welcome` event.
fn join_with_tungstenite(server: &Server, name: &str, room: &str) -> User {
    let url = format!("ws://{}{}", server.addr(), events_path(name, room));
    let (socket, _) = tungstenite::connect(url).expect("the handshake satisfies tungstenite");
    if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    User::Independent(Box::new(socket))
}

impl User {
    fn send(&mut self, text: &str) {
        match self {
            User::Raw(client) => client.send_text(text),
            User::Independent(socket) => socket.send(text.into()).expect("the server accepts a message"),
        }
    }

    fn send_message(&mut self, text: &str) {
        self.send(&json!({"event": "message", "data": {"text": text}}).to_string());
    }

    fn switch_room(&mut self, room: &str) {
        self.send(&json!({"event": "switch_room", "data": {"room": room}}).to_string());
    }

    fn receive(&mut self) -> Value {
        match self {
            User::Raw(client) => client.read_json(),
            User::Independent(socket) => {
                let message = socket.read().expect("a message from the server");
                serde_json::from_str(message.to_text().expect("text")).expect("JSON")
            }
        }
    }

    /// Checks that the next event is `event` with at least the fields of `data`. Returns all fields of the event.
    fn expect_event(&mut self, event: &str, data: Value) -> Value {
        let mut received = self.receive();
        assert_eq!(received["event"], event, "{received}");
        for (name, value) in data.as_object().expect("fields") {
            assert_eq!(received["data"][name], *value, "{name} of {received}");
        }
        assert!(received["data"].is_object(), "{received}");
        received["data"].take()
    }

    fn expect_welcome(&mut self, name: &str, room: &str, members: &[&str]) {
        let message = format!("Welcome to #{room}, {name}!");
        let data = self.expect_event("welcome", json!({"message": message, "room": room, "username": name}));
        assert_eq!(names(&data), members);
    }

    /// Checks that the server has sent this user no further event: the next event must be the reply to a `ping`.
    fn expect_nothing(&mut self) {
        self.send(r#"{"event":"ping"}"#);
        self.expect_event("pong", json!({}));
    }
}

/// Returns the member names, sorted because the protocol does not specify their order.
fn names(data: &Value) -> Vec<&str> {
    let members = data["members"].as_array().expect("a list of members");
    let mut names: Vec<&str> = members.iter().map(|name| name.as_str().expect("a name")).collect();
    names.sort();
    names
}

#[test]
fn joining() {
    let server = chat(&[]);
    let mut alice = join(&server, "alice", "general");
    alice.expect_welcome("alice", "general", &[]);
    let mut bob = join_with_tungstenite(&server, "bob", "general");
    bob.expect_welcome("bob", "general", &["alice"]);
    alice.expect_event("joined", json!({"username": "bob"}));
    // The member list in `welcome` has one name per connection, and excludes the connection that joins.
    let mut other_alice = join(&server, "alice", "general");
    other_alice.expect_welcome("alice", "general", &["alice", "bob"]);
    let mut carol = join(&server, "carol", "general");
    carol.expect_welcome("carol", "general", &["alice", "alice", "bob"]);
    for user in [&mut alice, &mut bob] {
        user.expect_event("joined", json!({"username": "alice"}));
        user.expect_event("joined", json!({"username": "carol"}));
    }
    other_alice.expect_event("joined", json!({"username": "carol"}));
    let mut stranger = join(&server, "dave", "elsewhere");
    stranger.expect_welcome("dave", "elsewhere", &[]);
    for user in [&mut alice, &mut bob, &mut other_alice, &mut carol] {
        user.expect_nothing();
    }
}

#[test]
fn defaults() {
    let server = chat(&[]);
    let mut client = User::Raw(server.upgrade("/?token=dev-token"));
    client.expect_welcome("anonymous", "general", &[]);
    client.switch_room("elsewhere");
    client.expect_event("switched", json!({"room": "elsewhere"}));
    client.send(r#"{"event":"switch_room"}"#);
    client.expect_event("switched", json!({"room": "general", "members": []}));
    client.switch_room("elsewhere");
    client.expect_event("switched", json!({"room": "elsewhere"}));
    client.send(r#"{"event":"switch_room","data":{}}"#);
    client.expect_event("switched", json!({"room": "general", "members": []}));
}

#[test]
fn messages() {
    let server = chat(&[]);
    let mut alice = join(&server, "alice", "general");
    alice.expect_event("welcome", json!({}));
    let mut bob = join_with_tungstenite(&server, "bob", "general");
    bob.expect_event("welcome", json!({}));
    alice.expect_event("joined", json!({"username": "bob"}));
    let mut carol = join(&server, "carol", "elsewhere");
    carol.expect_event("welcome", json!({}));

    let before = SystemTime::now();
    alice.send_message("hello, bob");
    let received = alice.expect_event("message", json!({"username": "alice", "text": "hello, bob", "id": 1}));
    assert_eq!(bob.receive(), json!({"event": "message", "data": received}), "everyone receives the same");
    assert_time(&received["time"], before);

    bob.send_message("hello, alice \u{1f44b}");
    for user in [&mut alice, &mut bob] {
        user.expect_event("message", json!({"username": "bob", "text": "hello, alice \u{1f44b}", "id": 2}));
    }
    // Each room numbers its messages independently.
    carol.send_message("anybody here?");
    carol.expect_event("message", json!({"username": "carol", "text": "anybody here?", "id": 1}));
    bob.send_message("third");
    alice.expect_event("message", json!({"username": "bob", "id": 3}));
    bob.expect_event("message", json!({"username": "bob", "id": 3}));
    for user in [&mut alice, &mut bob, &mut carol] {
        user.expect_nothing();
    }
}

/// Checks that a time is in RFC 3339 format, in UTC with milliseconds, and between `before` and now.
fn assert_time(time: &Value, before: SystemTime) {
    let text = time.as_str().expect("a time is a string");
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    let time = humantime::parse_rfc3339(text).expect("RFC 3339");
    // The server truncates times to milliseconds.
    assert!(time + Duration::from_millis(1) >= before && time <= SystemTime::now(), "{text} is now");
}

/// A way to end a connection: its description, which is also the client's username, and a function that ends the
/// connection.
type Ending = (&'static str, fn(RawClient));

/// When a member's connection ends, in any way, the remaining members of the room receive `left` exactly once.
#[test]
fn leaving() {
    let server = chat(&[]);
    let mut alice = join(&server, "alice", "general");
    alice.expect_event("welcome", json!({}));
    let endings: [Ending; 4] = [
        ("a close", |mut client| client.send(&masked(0x88, &1000u16.to_be_bytes()))),
        ("a broken rule", |mut client| {
            client.send(b"\x81\x7f");
            assert_eq!(client.read_frame().close().0, 1002);
        }),
        ("the end of the stream", drop),
        ("a reset", |client| socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap()),
    ];
    for (how, end) in endings {
        let mut client = server.upgrade(&events_path(how, "general"));
        client.read_event("welcome");
        alice.expect_event("joined", json!({"username": how}));
        end(client);
        alice.expect_event("left", json!({"username": how}));
    }
    let mut bob = join_with_tungstenite(&server, "bob", "general");
    bob.expect_welcome("bob", "general", &["alice"]);
    alice.expect_event("joined", json!({"username": "bob"}));
    let User::Independent(mut socket) = bob else { unreachable!() };
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    alice.expect_event("left", json!({"username": "bob"}));
    alice.expect_nothing();
}

#[test]
fn switching_rooms() {
    let server = chat(&[]);
    let mut old = join(&server, "olga", "old");
    old.expect_event("welcome", json!({}));
    let mut new = join(&server, "nina", "new");
    new.expect_event("welcome", json!({}));
    let mut moritz = join_with_tungstenite(&server, "moritz", "old");
    moritz.expect_welcome("moritz", "old", &["olga"]);
    old.expect_event("joined", json!({"username": "moritz"}));

    moritz.switch_room("new");
    old.expect_event("left", json!({"username": "moritz"}));
    moritz.expect_event("switched", json!({"room": "new", "members": ["nina"]}));
    new.expect_event("joined", json!({"username": "moritz"}));

    moritz.send_message("here now");
    new.expect_event("message", json!({"username": "moritz", "text": "here now", "id": 1}));
    moritz.expect_event("message", json!({"username": "moritz", "text": "here now", "id": 1}));
    old.send_message("gone?");
    old.expect_event("message", json!({"username": "olga", "text": "gone?", "id": 1}));

    // The server ignores a switch to the current room, even if whitespace surrounds the room name.
    moritz.switch_room("new");
    moritz.switch_room("  new ");
    moritz.expect_nothing();
    new.expect_nothing();

    // An invalid room name causes an error, and the client stays in its room.
    moritz.switch_room("a\u{200b}b");
    moritz.expect_event("error", json!({}));
    moritz.switch_room("");
    moritz.expect_event("error", json!({}));
    moritz.send_message("still here");
    new.expect_event("message", json!({"text": "still here", "id": 2}));
    moritz.expect_event("message", json!({"text": "still here", "id": 2}));

    // The client is the only member of the new room. The member list is empty, because it excludes the client itself.
    moritz.switch_room(" brand new ");
    moritz.expect_event("switched", json!({"room": "brand new", "members": []}));
    new.expect_event("left", json!({"username": "moritz"}));
    for user in [&mut old, &mut new, &mut moritz] {
        user.expect_nothing();
    }
}

/// The server executes commands in order, even if they arrive in one write: only the old room receives the message
/// before the switch, and only the new room receives the message after the switch.
#[test]
fn a_switch_between_two_messages() {
    let server = chat(&[]);
    let mut old = join(&server, "olga", "old");
    old.expect_event("welcome", json!({}));
    let mut new = join(&server, "nina", "new");
    new.expect_event("welcome", json!({}));
    let mut moritz = server.upgrade(&events_path("moritz", "old"));
    let all = [
        json!({"event": "message", "data": {"text": "before"}}),
        json!({"event": "switch_room", "data": {"room": "new"}}),
        json!({"event": "ping"}),
        json!({"event": "message", "data": {"text": "after"}}),
    ];
    let frames: Vec<u8> = all.iter().flat_map(|event| masked(0x81, event.to_string().as_bytes())).collect();
    moritz.send(&frames);

    let mut moritz = User::Raw(moritz);
    moritz.expect_welcome("moritz", "old", &["olga"]);
    moritz.expect_event("message", json!({"username": "moritz", "text": "before", "id": 1}));
    moritz.expect_event("switched", json!({"room": "new", "members": ["nina"]}));
    moritz.expect_event("pong", json!({}));
    moritz.expect_event("message", json!({"username": "moritz", "text": "after", "id": 1}));
    old.expect_event("joined", json!({"username": "moritz"}));
    old.expect_event("message", json!({"username": "moritz", "text": "before", "id": 1}));
    old.expect_event("left", json!({"username": "moritz"}));
    new.expect_event("joined", json!({"username": "moritz"}));
    new.expect_event("message", json!({"username": "moritz", "text": "after", "id": 1}));
    for user in [&mut old, &mut new, &mut moritz] {
        user.expect_nothing();
    }
}

/// The server's expected reply to a message.
enum Reply {
    Silence,
    /// An `error` event with exactly this text.
    Error(String),
    /// An `error` event whose text contains this string.
    ErrorAbout(&'static str),
    /// A `message` event with this text, to every member of the room.
    Message(String),
    Pong,
}

use Reply::{ErrorAbout, Pong, Silence};

/// Sends each row's text to the server as user `bot`, and checks the complete reply. A second user, `witness`, must
/// receive only `message` events.
fn run(rows: &[(&str, String, Reply)]) {
    let server = chat(&[]);
    let mut witness = join_with_tungstenite(&server, "witness", "general");
    witness.expect_event("welcome", json!({}));
    let mut bot = join(&server, "bot", "general");
    bot.expect_event("welcome", json!({}));
    witness.expect_event("joined", json!({}));
    let name = |(id, sent, _): &(&str, String, Reply)| format!("{id}: {}", sent.chars().take(80).collect::<String>());
    each_row(rows, name, |(_, sent, reply)| {
        bot.send(sent);
        match reply {
            Silence => {}
            Reply::Error(text) => drop(bot.expect_event("error", json!({"message": text}))),
            ErrorAbout(what) => {
                let data = bot.expect_event("error", json!({}));
                let message = data["message"].as_str().expect("a text");
                assert!(message.contains(what), "{message:?} contains {what:?}");
            }
            Pong => drop(bot.expect_event("pong", json!({}))),
            Reply::Message(text) => {
                bot.expect_event("message", json!({"username": "bot", "text": text}));
                witness.expect_event("message", json!({"username": "bot", "text": text}));
            }
        }
        bot.expect_nothing();
        witness.expect_nothing();
    });
}

fn error(text: &str) -> Reply {
    Reply::Error(text.to_owned())
}

fn message(text: &str) -> Reply {
    Reply::Message(text.to_owned())
}

#[test]
fn messages_that_are_not_events() {
    let invalid = || error("Invalid JSON");
    let unknown = |event: &str| error(&format!("Unknown event: {event}"));
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    run(&[
        row("not JSON", "hello", invalid()),
        row("not JSON", "", invalid()),
        row("not JSON", "   ", invalid()),
        row("not JSON", "{", invalid()),
        row("not JSON", "{\"event\":\"ping\"", invalid()),
        row("not JSON", "{'event':'ping'}", invalid()),
        row("not JSON", "{\"event\":\"ping\"} x", invalid()),
        row("not JSON", "{\"event\":\"ping\"}{}", invalid()),
        row("not JSON", "{\"event\":\"ping\",}", invalid()),
        row("not JSON", "\u{feff}{\"event\":\"ping\"}", invalid()),
        row("not JSON", "{\"event\":\"ping\",\"data\":{\"x\":NaN}}", invalid()),
        row("not JSON", "{\"event\":\"ping\",\"data\":{\"x\":\"\u{1}\"}}", invalid()),
        row("not JSON", "{\"event\":\"\\ud800\"}", invalid()),
        row("not an object", "[]", ErrorAbout("object")),
        row("not an object", "[\"ping\"]", ErrorAbout("object")),
        row("not an object", "[\"message\",{\"text\":\"x\"}]", ErrorAbout("object")),
        row("not an object", "1", ErrorAbout("object")),
        row("not an object", "null", ErrorAbout("object")),
        row("not an object", "\"\"", ErrorAbout("object")),
        row("not an object", "\"ping\"", ErrorAbout("object")),
        row("not an object", "true", ErrorAbout("object")),
        row("no such event", "{}", unknown("")),
        row("no such event", "{\"data\":{}}", unknown("")),
        row("no such event", "{\"event\":\"\"}", unknown("")),
        row("no such event", "{\"event\":\"foo\"}", unknown("foo")),
        row("no such event", "{\"event\":\"PING\"}", unknown("PING")),
        row("no such event", "{\"event\":\" ping\"}", unknown(" ping")),
        row("no such event", "{\"event\":\"f\\u006fo\"}", unknown("foo")),
        row("no such event", "{\"event\":\"<b>\\u0000\\\"\"}", unknown("<b>\0\"")),
        row("no such event", &json!({"event": "x".repeat(64)}).to_string(), unknown(&"x".repeat(64))),
        row("no such event", &json!({"event": "x".repeat(65)}).to_string(), unknown(&"x".repeat(64))),
        row("no such event", &json!({"event": "é".repeat(65)}).to_string(), unknown(&"é".repeat(64))),
        row("no such event", "{\"event\":1}", ErrorAbout("event")),
        row("no such event", "{\"event\":null}", ErrorAbout("event")),
        row("no such event", "{\"event\":[\"ping\"]}", ErrorAbout("event")),
        row("mostly white space", &format!("{}{{}}{}", " ".repeat(30_000), " ".repeat(30_000)), unknown("")),
    ]);
}

#[test]
fn events_with_odd_data() {
    let unknown = || error("Unknown event: foo");
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let mut rows = vec![
        row("data of the wrong type", r#"{"event":"foo","data":null}"#, unknown()),
        row("data of the wrong type", r#"{"event":"foo","data":[]}"#, unknown()),
        row("data of the wrong type", r#"{"data":1,"event":"foo"}"#, unknown()),
        row("data of the wrong type", r#"{"event":"foo","data":{"text":1}}"#, unknown()),
        row("a wrong field", r#"{"event":"message","data":{"text":1}}"#, ErrorAbout("text")),
        row("a wrong field", r#"{"event":"message","data":{"text":null}}"#, ErrorAbout("text")),
        row("a wrong field", r#"{"event":"message","data":{"text":["x"]}}"#, ErrorAbout("text")),
        row("a wrong field", r#"{"event":"switch_room","data":{"room":1}}"#, ErrorAbout("room")),
        row("a wrong field", r#"{"event":"switch_room","data":{"room":null}}"#, ErrorAbout("room")),
        row("a wrong field", r#"{"event":"message"}"#, Silence),
        row("a wrong field", r#"{"event":"message","data":{}}"#, Silence),
        row("a wrong field", r#"{"event":"message","data":{"text":""}}"#, Silence),
        row("a wrong field", r#"{"event":"message","data":{"text":"  \t\r\n "}}"#, Silence),
        row("a wrong field", r#"{"event":"message","data":{"text":"\u00a0\u3000\u2003\u0085"}}"#, Silence),
        row("the event twice", r#"{"event":"ping","event":"ping"}"#, ErrorAbout("event")),
        row("the event twice", r#"{"event":"ping","event":"message","data":{"text":"x"}}"#, ErrorAbout("event")),
        row("the event twice", r#"{"event":"ping","\u0065vent":"foo"}"#, ErrorAbout("event")),
        row("a key twice", r#"{"event":"message","data":{"text":"a","text":"b"}}"#, ErrorAbout("text")),
        row("a key twice", r#"{"event":"message","data":{"text":"a","te\u0078t":"b"}}"#, ErrorAbout("text")),
        row("a key twice", r#"{"event":"message","data":{"text":"a"},"data":{"text":"b"}}"#, ErrorAbout("data")),
        row("a key twice", r#"{"event":"switch_room","data":{"room":"a","room":"b"}}"#, ErrorAbout("room")),
        row("more fields, any order", r#"{"event":"ping","seq":7,"data":{"a":[{}]}}"#, Pong),
        row(
            "more fields, any order",
            r#"{"event":"message","v":1,"data":{"text":"extra","mood":null}}"#,
            message("extra"),
        ),
        row(
            "more fields, any order",
            r#"{"data":{"text":"the other way round"},"event":"message"}"#,
            message("the other way round"),
        ),
        row("more fields, any order", " {\n\t\"event\" : \"ping\" }\r\n", Pong),
        row("ping", r#"{"event":"ping"}"#, Pong),
        row("ping", r#"{"event":"ping","data":{}}"#, Pong),
        row(
            "a line for wscat",
            r#"{"event":"message","data":{"text":"hello from wscat"}}"#,
            message("hello from wscat"),
        ),
    ];
    for event in ["message", "switch_room", "private", "typing", "history", "ping"] {
        for data in ["null", "\"x\"", "[]", "[\"x\"]", "1", "false"] {
            rows.push((
                "data of the wrong type",
                format!(r#"{{"event":"{event}","data":{data}}}"#),
                ErrorAbout("data"),
            ));
        }
    }
    run(&rows);
}

#[test]
fn texts() {
    let command = |id, text: &str| (id, json!({"event": "message", "data": {"text": text}}).to_string());
    let same = |id, text: &str| {
        let (id, sent) = command(id, text);
        (id, sent, message(text))
    };
    let trimmed = |id, text: &str, rest: &str| {
        let (id, sent) = command(id, text);
        (id, sent, message(rest))
    };
    let too_long = |id, text: &str| {
        let (id, sent) = command(id, text);
        (id, sent, error("Message too long"))
    };
    let spaces = " ".repeat(300);
    run(&[
        trimmed("trimming", "  hello \t\r\n", "hello"),
        trimmed("trimming", "\u{a0}\u{3000}hello\u{2028}", "hello"),
        same("white space inside", "hello  you"),
        same("NUL and ESC", "a\0b\u{1b}[2J\u{7}"),
        same("a line feed inside", "two\nlines"),
        same("kept in text", "a\u{200b}b\u{200d}c\u{202e}d\u{2066}e\u{ad}f\u{feff}g"),
        same("markup", "<img src=x onerror=alert(1)>"),
        same("noncharacters", "\u{fffe}\u{ffff}\u{10ffff}"),
        same("a slash that is not a command", "/me waves"),
        same("quotes", r#"she said "no\yes""#),
        same("500 characters", &"x".repeat(500)),
        same("500 characters of four bytes", &"\u{1f600}".repeat(500)),
        trimmed("500 characters and white space", &format!("{spaces}{}{spaces}", "x".repeat(500)), &"x".repeat(500)),
        too_long("501 characters", &"x".repeat(501)),
        too_long("501 characters of four bytes", &"\u{1f600}".repeat(501)),
        too_long("501 characters, white space inside", &format!("x{}x", " ".repeat(499))),
        too_long("60,000 characters", &"x".repeat(60_000)),
    ]);
}

/// A row of a test table: its id, a name, and the normalized name, or `None` if the server must reject the name.
type NameRow = (&'static str, String, Option<String>);

fn good(id: &'static str, name: &str) -> NameRow {
    (id, name.to_owned(), Some(name.to_owned()))
}

fn trimmed(id: &'static str, name: &str, rest: &str) -> NameRow {
    (id, name.to_owned(), Some(rest.to_owned()))
}

fn rejected(id: &'static str, name: &str) -> NameRow {
    (id, name.to_owned(), None)
}

/// Test rows for the rules that usernames and room names share.
fn name_rows() -> Vec<NameRow> {
    let mut rows = vec![
        rejected("empty", ""),
        rejected("white space", "   "),
        rejected("white space of other kinds", "\u{a0}\u{3000}\u{2003}"),
        trimmed("a space after it", "admin ", "admin"),
        trimmed("a space before it", " admin", "admin"),
        trimmed("U+00A0 and U+3000", "\u{a0}admin\u{3000}", "admin"),
        good("white space inside", "a b"),
        good("Cyrillic", "\u{430}dmin"),
        good("a tag", "<img src=x onerror=alert(1)>"),
        good("../x", "../x"),
        good("#a b", "#a b"),
        good("an emoji", "\u{1f469}\u{1f3fd}"),
        good("%2f", "%2f"),
        good("a slash", "/"),
        good("a plus", "a+b"),
        good("an ampersand", "a&room=b"),
        good("quotes", "\"a\\b'"),
    ];
    let forbidden: [&[char]; 7] = [
        &['\0', '\t', '\n', '\r', '\u{1b}', '\u{1f}', '\u{7f}', '\u{80}', '\u{85}', '\u{9f}'],
        &['\u{ad}', '\u{34f}', '\u{61c}', '\u{180b}', '\u{180d}', '\u{180e}', '\u{180f}', '\u{feff}'],
        &['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}', '\u{17b4}', '\u{17b5}', '\u{2028}', '\u{2029}'],
        &['\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{2060}', '\u{2061}', '\u{2065}'],
        &['\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{206a}', '\u{206f}', '\u{fff0}'],
        &['\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}', '\u{fe00}', '\u{fe0d}', '\u{1bca0}', '\u{1d173}'],
        &['\u{e0000}', '\u{e0001}', '\u{e0020}', '\u{e007f}', '\u{e0100}', '\u{e01ef}', '\u{e0fff}'],
    ];
    for c in forbidden.concat() {
        rows.push(rejected("a forbidden character", &format!("a{c}b")));
    }
    let beside = "\u{a1}\u{ac}\u{ae}\u{61b}\u{61d}\u{180a}\u{1810}\u{200a}\u{2010}\u{2027}\u{202f}\
                  \u{205f}\u{2070}\u{feee}\u{ff01}\u{fff9}\u{fe0f}\u{fe0e}";
    for c in beside.chars() {
        rows.push(good("next to a forbidden one", &format!("a{c}b")));
    }
    rows.extend([
        trimmed("decomposed", "Jose\u{301}", "José"),
        good("an emoji with a variation selector", "❤\u{fe0f}"),
        rejected("a variation selector without a character", "\u{fe0f}a"),
        rejected("a variation selector after a space", "a \u{fe0f}b"),
        rejected("nothing to see", "\u{2800}"),
    ]);
    rows
}

#[test]
fn usernames() {
    let server = chat(&[]);
    let mut rows = name_rows();
    rows.extend([
        good("32 characters", &"x".repeat(32)),
        good("32 characters of four bytes", &"\u{1f600}".repeat(32)),
        trimmed("32 characters and white space", &format!("  {}  ", "x".repeat(32)), &"x".repeat(32)),
        rejected("33 characters", &"x".repeat(33)),
        rejected("33 characters of two bytes", &"é".repeat(33)),
    ]);
    each_row(
        &rows,
        |(id, name, _)| format!("{id} {name:?}"),
        |(_, name, expected)| {
            let mut client = server.connect();
            client.send(&handshake().target(events_path(name, "general")).bytes());
            match expected {
                None => assert_eq!(client.read_response().status, 400),
                Some(expected) => {
                    assert_eq!(Response::parse(client.read_head().as_bytes()).status, 101);
                    let message = format!("Welcome to #general, {expected}!");
                    let data = json!({"username": expected, "message": message});
                    User::Raw(client).expect_event("welcome", data);
                }
            }
        },
    );
}

#[test]
fn room_names() {
    let mut rows = name_rows();
    rows.extend([
        good("64 characters", &"x".repeat(64)),
        good("64 characters of four bytes", &"\u{1f600}".repeat(64)),
        trimmed("64 characters and white space", &format!("  {}  ", "x".repeat(64)), &"x".repeat(64)),
        rejected("65 characters", &"x".repeat(65)),
        rejected("65 characters of two bytes", &"é".repeat(65)),
    ]);
    each_row(
        &rows,
        |(id, name, _)| format!("{id} {name:?}"),
        |(_, name, expected)| {
            // Start a new server for each row: rows may use the same room, and the previous row's clients may still be
            // members.
            let server = chat(&[]);
            let mut moritz = join(&server, "moritz", "start");
            moritz.expect_event("welcome", json!({}));
            moritz.switch_room(name);
            match expected {
                None => drop(moritz.expect_event("error", json!({}))),
                Some(expected) => drop(moritz.expect_event("switched", json!({"room": expected}))),
            }
            moritz.expect_nothing();
            let mut client = server.connect();
            client.send(&handshake().target(events_path("bot", name)).bytes());
            match expected {
                None => assert_eq!(client.read_response().status, 400),
                Some(expected) => {
                    assert_eq!(Response::parse(client.read_head().as_bytes()).status, 101);
                    User::Raw(client).expect_event("welcome", json!({"room": expected, "members": ["moritz"]}));
                }
            }
        },
    );
}

/// In a query string, `+` stands for a space and `%2B` for a plus sign.
#[test]
fn names_in_a_query() {
    let server = chat(&[]);
    let mut client = User::Raw(server.upgrade("/?token=dev-token&username=a+b&room=c%2Bd"));
    client.expect_event("welcome", json!({"username": "a b", "room": "c+d"}));
    let mut client = User::Raw(server.upgrade("/?room=%C3%A9&room=second&username=%e6%bc%a2&token=dev-token"));
    client.expect_event("welcome", json!({"username": "漢", "room": "é"}));
}

#[test]
fn names_and_texts_cannot_forge_log_lines() {
    let server = chat(&["-v"]);
    let mut client = join(&server, "x user=root", "a room=b");
    client.expect_event("welcome", json!({}));
    client.send_message("a\u{1b}[2J\nMSG room=general user=root forged\r\u{9b}b\u{2028}c");
    client.expect_event("message", json!({}));
    client.switch_room("c user=root");
    client.expect_event("switched", json!({}));
    drop(client);
    for kind in ["JOIN", "MSG", "SWITCH", "LEAVE"] {
        server.wait_for_log(kind);
    }
    let log = server.log();
    assert!(!log.contains("user=x user=root"), "a name does not look like a field:\n{log}");
    assert!(!log.contains("room=a room=b"), "a name does not look like a field:\n{log}");
    let raw = log.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{2028}');
    assert_eq!(raw, None, "no raw control characters:\n{log}");
    let forged: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(matches!(forged.as_slice(), [line] if line.contains("2J")), "one line per message:\n{log}");
    assert!(!log.contains("dev-token"), "no token:\n{log}");
}
