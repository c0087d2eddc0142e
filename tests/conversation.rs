//! The dialect `events`, word for word: what several people in several rooms say and hear.
//!
//! One of them is `tungstenite`, a WebSocket client of other people's: what the server says must make sense to somebody
//! who was not written beside it.

mod support;

use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::http::{Response, handshake};
use support::people::{chat, events_path};
use support::table::each_row;
use support::{DEADLINE, RawClient, Server, masked};
use tungstenite::WebSocket;
use tungstenite::stream::MaybeTlsStream;

/// Somebody in a room.
enum Person {
    Raw(RawClient),
    Independent(Box<WebSocket<MaybeTlsStream<TcpStream>>>),
}

/// A raw socket that has joined; its `welcome` comes first.
fn join(server: &Server, name: &str, room: &str) -> Person {
    Person::Raw(server.upgrade(&events_path(name, room)))
}

/// The same, by the independent client.
fn join_independently(server: &Server, name: &str, room: &str) -> Person {
    let url = format!("ws://{}{}", server.addr(), events_path(name, room));
    let (socket, _) = tungstenite::connect(url).expect("the handshake satisfies tungstenite");
    if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    Person::Independent(Box::new(socket))
}

impl Person {
    fn send(&mut self, text: &str) {
        match self {
            Person::Raw(client) => client.send_text(text),
            Person::Independent(socket) => socket.send(text.into()).expect("the server takes a message"),
        }
    }

    fn say(&mut self, text: &str) {
        self.send(&json!({"event": "message", "data": {"text": text}}).to_string());
    }

    fn switch_room(&mut self, room: &str) {
        self.send(&json!({"event": "switch_room", "data": {"room": room}}).to_string());
    }

    /// The next thing that the server says, whatever it is.
    fn hear(&mut self) -> Value {
        match self {
            Person::Raw(client) => client.read_json(),
            Person::Independent(socket) => {
                let message = socket.read().expect("the server says something");
                serde_json::from_str(message.to_text().expect("text")).expect("JSON")
            }
        }
    }

    /// The next thing that the server says is this event, with at least these fields in its data. Returns the data.
    fn hears(&mut self, event: &str, data: Value) -> Value {
        let mut heard = self.hear();
        assert_eq!(heard["event"], event, "{heard}");
        for (name, value) in data.as_object().expect("fields") {
            assert_eq!(heard["data"][name], *value, "{name} of {heard}");
        }
        assert!(heard["data"].is_object(), "{heard}");
        heard["data"].take()
    }

    fn is_welcomed(&mut self, name: &str, room: &str, members: &[&str]) {
        let message = format!("Welcome to #{room}, {name}!");
        let data = self.hears("welcome", json!({"message": message, "room": room, "username": name}));
        assert_eq!(names(&data), members);
    }

    /// Nothing has been said to this person but what was heard already: the answer to a `ping` comes next.
    fn hears_nothing(&mut self) {
        self.send(r#"{"event":"ping"}"#);
        self.hears("pong", json!({}));
    }
}

/// The members, sorted: their order is the server's own affair.
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
    alice.is_welcomed("alice", "general", &[]);
    let mut bob = join_independently(&server, "bob", "general");
    bob.is_welcomed("bob", "general", &["alice"]);
    alice.hears("joined", json!({"username": "bob"}));
    // One name for each connection, and never the newcomer's own.
    let mut other_alice = join(&server, "alice", "general");
    other_alice.is_welcomed("alice", "general", &["alice", "bob"]);
    let mut carol = join(&server, "carol", "general");
    carol.is_welcomed("carol", "general", &["alice", "alice", "bob"]);
    for person in [&mut alice, &mut bob] {
        person.hears("joined", json!({"username": "alice"}));
        person.hears("joined", json!({"username": "carol"}));
    }
    other_alice.hears("joined", json!({"username": "carol"}));
    let mut stranger = join(&server, "dave", "elsewhere");
    stranger.is_welcomed("dave", "elsewhere", &[]);
    for person in [&mut alice, &mut bob, &mut other_alice, &mut carol] {
        person.hears_nothing();
    }
}

#[test]
fn defaults() {
    let server = chat(&[]);
    let mut client = Person::Raw(server.upgrade("/?token=dev-token"));
    client.is_welcomed("anonymous", "general", &[]);
    client.switch_room("elsewhere");
    client.hears("switched", json!({"room": "elsewhere"}));
    client.send(r#"{"event":"switch_room"}"#);
    client.hears("switched", json!({"room": "general", "members": []}));
    client.switch_room("elsewhere");
    client.hears("switched", json!({"room": "elsewhere"}));
    client.send(r#"{"event":"switch_room","data":{}}"#);
    client.hears("switched", json!({"room": "general", "members": []}));
}

#[test]
fn messages() {
    let server = chat(&[]);
    let mut alice = join(&server, "alice", "general");
    alice.hears("welcome", json!({}));
    let mut bob = join_independently(&server, "bob", "general");
    bob.hears("welcome", json!({}));
    alice.hears("joined", json!({"username": "bob"}));
    let mut carol = join(&server, "carol", "elsewhere");
    carol.hears("welcome", json!({}));

    let before = SystemTime::now();
    alice.say("hello, bob");
    let heard = alice.hears("message", json!({"username": "alice", "text": "hello, bob", "id": 1}));
    assert_eq!(bob.hear(), json!({"event": "message", "data": heard}), "everyone hears the same");
    assert_time(&heard["time"], before);

    bob.say("hello, alice \u{1f44b}");
    for person in [&mut alice, &mut bob] {
        person.hears("message", json!({"username": "bob", "text": "hello, alice \u{1f44b}", "id": 2}));
    }
    // Each room counts for itself.
    carol.say("anybody here?");
    carol.hears("message", json!({"username": "carol", "text": "anybody here?", "id": 1}));
    bob.say("third");
    alice.hears("message", json!({"username": "bob", "id": 3}));
    bob.hears("message", json!({"username": "bob", "id": 3}));
    for person in [&mut alice, &mut bob, &mut carol] {
        person.hears_nothing();
    }
}

/// RFC 3339 in UTC with milliseconds, between `before` and now.
fn assert_time(time: &Value, before: SystemTime) {
    let text = time.as_str().expect("a time is a string");
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    let time = humantime::parse_rfc3339(text).expect("RFC 3339");
    // The last millisecond is cut off, not rounded.
    assert!(time + Duration::from_millis(1) >= before && time <= SystemTime::now(), "{text} is now");
}

/// A way to go.
type Ending = (&'static str, fn(RawClient));

/// Whatever ends a connection, those who remain hear `left`, once.
#[test]
fn leaving() {
    let server = chat(&[]);
    let mut alice = join(&server, "alice", "general");
    alice.hears("welcome", json!({}));
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
        alice.hears("joined", json!({"username": how}));
        end(client);
        alice.hears("left", json!({"username": how}));
    }
    let mut bob = join_independently(&server, "bob", "general");
    bob.is_welcomed("bob", "general", &["alice"]);
    alice.hears("joined", json!({"username": "bob"}));
    let Person::Independent(mut socket) = bob else { unreachable!() };
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    alice.hears("left", json!({"username": "bob"}));
    alice.hears_nothing();
}

#[test]
fn switching_rooms() {
    let server = chat(&[]);
    let mut old = join(&server, "olga", "old");
    old.hears("welcome", json!({}));
    let mut new = join(&server, "nina", "new");
    new.hears("welcome", json!({}));
    let mut mover = join_independently(&server, "moritz", "old");
    mover.is_welcomed("moritz", "old", &["olga"]);
    old.hears("joined", json!({"username": "moritz"}));

    mover.switch_room("new");
    old.hears("left", json!({"username": "moritz"}));
    mover.hears("switched", json!({"room": "new", "members": ["nina"]}));
    new.hears("joined", json!({"username": "moritz"}));

    mover.say("here now");
    new.hears("message", json!({"username": "moritz", "text": "here now", "id": 1}));
    mover.hears("message", json!({"username": "moritz", "text": "here now", "id": 1}));
    old.say("gone?");
    old.hears("message", json!({"username": "olga", "text": "gone?", "id": 1}));

    // The same room is no move, under whatever blanks.
    mover.switch_room("new");
    mover.switch_room("  new ");
    mover.hears_nothing();
    new.hears_nothing();

    // A name that is none is an error, and the mover stays.
    mover.switch_room("a\u{200b}b");
    mover.hears("error", json!({}));
    mover.switch_room("");
    mover.hears("error", json!({}));
    mover.say("still here");
    new.hears("message", json!({"text": "still here", "id": 2}));
    mover.hears("message", json!({"text": "still here", "id": 2}));

    // A room begins with whoever enters it.
    mover.switch_room(" brand new ");
    mover.hears("switched", json!({"room": "brand new", "members": []}));
    new.hears("left", json!({"username": "moritz"}));
    for person in [&mut old, &mut new, &mut mover] {
        person.hears_nothing();
    }
}

/// What is sent in one piece happens in its order: the mover hears its own words in the old room before it is told of
/// the new one, and neither room hears what was said in the other.
#[test]
fn a_move_between_two_messages() {
    let server = chat(&[]);
    let mut old = join(&server, "olga", "old");
    old.hears("welcome", json!({}));
    let mut new = join(&server, "nina", "new");
    new.hears("welcome", json!({}));
    let mut mover = server.upgrade(&events_path("moritz", "old"));
    let all = [
        json!({"event": "message", "data": {"text": "before"}}),
        json!({"event": "switch_room", "data": {"room": "new"}}),
        json!({"event": "ping"}),
        json!({"event": "message", "data": {"text": "after"}}),
    ];
    let frames: Vec<u8> = all.iter().flat_map(|event| masked(0x81, event.to_string().as_bytes())).collect();
    mover.send(&frames);

    let mut mover = Person::Raw(mover);
    mover.is_welcomed("moritz", "old", &["olga"]);
    mover.hears("message", json!({"username": "moritz", "text": "before", "id": 1}));
    mover.hears("switched", json!({"room": "new", "members": ["nina"]}));
    mover.hears("pong", json!({}));
    mover.hears("message", json!({"username": "moritz", "text": "after", "id": 1}));
    old.hears("joined", json!({"username": "moritz"}));
    old.hears("message", json!({"username": "moritz", "text": "before", "id": 1}));
    old.hears("left", json!({"username": "moritz"}));
    new.hears("joined", json!({"username": "moritz"}));
    new.hears("message", json!({"username": "moritz", "text": "after", "id": 1}));
    for person in [&mut old, &mut new, &mut mover] {
        person.hears_nothing();
    }
}

/// What the server says to a message.
enum Reply {
    /// Nothing at all.
    Silence,
    /// An `error` with this text.
    Error(String),
    /// An `error` whose text names this.
    ErrorAbout(&'static str),
    /// A `message` with this text, to everyone.
    Message(String),
    Pong,
}

use Reply::{ErrorAbout, Pong, Silence};

/// Says what each row says, and hears its reply, the whole of it; and a second person hears what was for everyone.
fn run(rows: &[(&str, String, Reply)]) {
    let server = chat(&[]);
    let mut listener = join_independently(&server, "listener", "general");
    listener.hears("welcome", json!({}));
    let mut bot = join(&server, "bot", "general");
    bot.hears("welcome", json!({}));
    listener.hears("joined", json!({}));
    let name = |(id, sent, _): &(&str, String, Reply)| format!("{id}: {}", sent.chars().take(80).collect::<String>());
    each_row(rows, name, |(_, sent, reply)| {
        bot.send(sent);
        match reply {
            Silence => {}
            Reply::Error(text) => drop(bot.hears("error", json!({"message": text}))),
            ErrorAbout(what) => {
                let data = bot.hears("error", json!({}));
                let message = data["message"].as_str().expect("a text");
                assert!(message.contains(what), "{message:?} names {what:?}");
            }
            Pong => drop(bot.hears("pong", json!({}))),
            Reply::Message(text) => {
                bot.hears("message", json!({"username": "bot", "text": text}));
                listener.hears("message", json!({"username": "bot", "text": text}));
            }
        }
        bot.hears_nothing();
        listener.hears_nothing();
    });
}

fn error(text: &str) -> Reply {
    Reply::Error(text.to_owned())
}

fn message(text: &str) -> Reply {
    Reply::Message(text.to_owned())
}

#[test]
fn messages_that_are_no_events() {
    let invalid = || error("Invalid JSON");
    let unknown = |event: &str| error(&format!("Unknown event: {event}"));
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    run(&[
        row("J01", "hello", invalid()),
        row("J01", "", invalid()),
        row("J01", "   ", invalid()),
        row("J01", "{", invalid()),
        row("J01", "{\"event\":\"ping\"", invalid()),
        row("J01", "{'event':'ping'}", invalid()),
        row("J01", "{\"event\":\"ping\"} x", invalid()),
        row("J01", "{\"event\":\"ping\"}{}", invalid()),
        row("J01", "{\"event\":\"ping\",}", invalid()),
        row("J01", "\u{feff}{\"event\":\"ping\"}", invalid()),
        row("J01", "{\"event\":\"ping\",\"data\":{\"x\":NaN}}", invalid()),
        row("J01", "{\"event\":\"ping\",\"data\":{\"x\":\"\u{1}\"}}", invalid()),
        row("J01", "{\"event\":\"\\ud800\"}", invalid()),
        row("J02", "[]", ErrorAbout("object")),
        row("J02", "[\"ping\"]", ErrorAbout("object")),
        row("J02", "[\"message\",{\"text\":\"x\"}]", ErrorAbout("object")),
        row("J02", "1", ErrorAbout("object")),
        row("J02", "null", ErrorAbout("object")),
        row("J02", "\"\"", ErrorAbout("object")),
        row("J02", "\"ping\"", ErrorAbout("object")),
        row("J02", "true", ErrorAbout("object")),
        row("J03", "{}", unknown("")),
        row("J03", "{\"data\":{}}", unknown("")),
        row("J03", "{\"event\":\"\"}", unknown("")),
        row("J03", "{\"event\":\"foo\"}", unknown("foo")),
        row("J03", "{\"event\":\"PING\"}", unknown("PING")),
        row("J03", "{\"event\":\" ping\"}", unknown(" ping")),
        row("J03", "{\"event\":\"f\\u006fo\"}", unknown("foo")),
        row("J03", "{\"event\":\"<b>\\u0000\\\"\"}", unknown("<b>\0\"")),
        row("J03", &json!({"event": "x".repeat(64)}).to_string(), unknown(&"x".repeat(64))),
        row("J03", &json!({"event": "x".repeat(65)}).to_string(), unknown(&"x".repeat(64))),
        row("J03", &json!({"event": "é".repeat(65)}).to_string(), unknown(&"é".repeat(64))),
        row("J03", "{\"event\":1}", ErrorAbout("event")),
        row("J03", "{\"event\":null}", ErrorAbout("event")),
        row("J03", "{\"event\":[\"ping\"]}", ErrorAbout("event")),
        row("J12", &format!("{}{{}}{}", " ".repeat(30_000), " ".repeat(30_000)), unknown("")),
    ]);
}

#[test]
fn events_with_odd_data() {
    let unknown = || error("Unknown event: foo");
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let mut rows = vec![
        row("J04", r#"{"event":"foo","data":null}"#, unknown()),
        row("J04", r#"{"event":"foo","data":[]}"#, unknown()),
        row("J04", r#"{"data":1,"event":"foo"}"#, unknown()),
        row("J04", r#"{"event":"foo","data":{"text":1}}"#, unknown()),
        row("J05", r#"{"event":"message","data":{"text":1}}"#, ErrorAbout("text")),
        row("J05", r#"{"event":"message","data":{"text":null}}"#, ErrorAbout("text")),
        row("J05", r#"{"event":"message","data":{"text":["x"]}}"#, ErrorAbout("text")),
        row("J05", r#"{"event":"switch_room","data":{"room":1}}"#, ErrorAbout("room")),
        row("J05", r#"{"event":"switch_room","data":{"room":null}}"#, ErrorAbout("room")),
        row("J05", r#"{"event":"message"}"#, Silence),
        row("J05", r#"{"event":"message","data":{}}"#, Silence),
        row("J05", r#"{"event":"message","data":{"text":""}}"#, Silence),
        row("J05", r#"{"event":"message","data":{"text":"  \t\r\n "}}"#, Silence),
        row("J05", r#"{"event":"message","data":{"text":"\u00a0\u3000\u2003\u0085"}}"#, Silence),
        row("J06", r#"{"event":"ping","event":"ping"}"#, ErrorAbout("event")),
        row("J06", r#"{"event":"ping","event":"message","data":{"text":"x"}}"#, ErrorAbout("event")),
        row("J06", r#"{"event":"ping","\u0065vent":"foo"}"#, ErrorAbout("event")),
        row("J07", r#"{"event":"message","data":{"text":"a","text":"b"}}"#, ErrorAbout("text")),
        row("J07", r#"{"event":"message","data":{"text":"a","te\u0078t":"b"}}"#, ErrorAbout("text")),
        row("J07", r#"{"event":"message","data":{"text":"a"},"data":{"text":"b"}}"#, ErrorAbout("data")),
        row("J07", r#"{"event":"switch_room","data":{"room":"a","room":"b"}}"#, ErrorAbout("room")),
        row("J11", r#"{"event":"ping","seq":7,"data":{"a":[{}]}}"#, Pong),
        row("J11", r#"{"event":"message","v":1,"data":{"text":"extra","mood":null}}"#, message("extra")),
        row("J11", r#"{"data":{"text":"the other way round"},"event":"message"}"#, message("the other way round")),
        row("J11", " {\n\t\"event\" : \"ping\" }\r\n", Pong),
        row("J16", r#"{"event":"ping"}"#, Pong),
        row("J16", r#"{"event":"ping","data":{}}"#, Pong),
        row("J17", r#"{"event":"message","data":{"text":"hello from wscat"}}"#, message("hello from wscat")),
    ];
    for event in ["message", "switch_room", "private", "typing", "ping"] {
        for data in ["null", "\"x\"", "[]", "[\"x\"]", "1", "false"] {
            rows.push(("J04", format!(r#"{{"event":"{event}","data":{data}}}"#), ErrorAbout("data")));
        }
    }
    run(&rows);
}

#[test]
fn texts() {
    let say = |id, text: &str| (id, json!({"event": "message", "data": {"text": text}}).to_string());
    let same = |id, text: &str| {
        let (id, sent) = say(id, text);
        (id, sent, message(text))
    };
    let trimmed = |id, text: &str, rest: &str| {
        let (id, sent) = say(id, text);
        (id, sent, message(rest))
    };
    let too_long = |id, text: &str| {
        let (id, sent) = say(id, text);
        (id, sent, error("Message too long"))
    };
    let blanks = " ".repeat(300);
    run(&[
        trimmed("trimming", "  hello \t\r\n", "hello"),
        trimmed("trimming", "\u{a0}\u{3000}hello\u{2028}", "hello"),
        same("a blank inside", "hello  you"),
        same("J09 NUL and ESC", "a\0b\u{1b}[2J\u{7}"),
        same("a line feed inside", "two\nlines"),
        same("N04 kept in text", "a\u{200b}b\u{200d}c\u{202e}d\u{2066}e\u{ad}f\u{feff}g"),
        same("N09", "<img src=x onerror=alert(1)>"),
        same("noncharacters", "\u{fffe}\u{ffff}\u{10ffff}"),
        same("a slash that is no command", "/me waves"),
        same("quotes", r#"she said "no\yes""#),
        same("500 characters", &"x".repeat(500)),
        same("500 characters of four bytes", &"\u{1f600}".repeat(500)),
        trimmed("500 characters and blanks", &format!("{blanks}{}{blanks}", "x".repeat(500)), &"x".repeat(500)),
        too_long("501 characters", &"x".repeat(501)),
        too_long("501 characters of four bytes", &"\u{1f600}".repeat(501)),
        too_long("501 characters, blanks inside", &format!("x{}x", " ".repeat(499))),
        too_long("60,000 characters", &"x".repeat(60_000)),
    ]);
}

/// A name, and what it is after trimming; `None` if it is refused.
type Name = (&'static str, String, Option<String>);

fn good(id: &'static str, name: &str) -> Name {
    (id, name.to_owned(), Some(name.to_owned()))
}

fn trimmed(id: &'static str, name: &str, rest: &str) -> Name {
    (id, name.to_owned(), Some(rest.to_owned()))
}

fn refused(id: &'static str, name: &str) -> Name {
    (id, name.to_owned(), None)
}

/// What holds for the names of people and of rooms alike.
fn name_rows() -> Vec<Name> {
    let mut rows = vec![
        refused("N01 empty", ""),
        refused("N01 blanks", "   "),
        refused("N01 blanks of other kinds", "\u{a0}\u{3000}\u{2003}"),
        trimmed("N02 a blank behind", "admin ", "admin"),
        trimmed("N02 a blank before", " admin", "admin"),
        trimmed("N02 U+00A0 and U+3000", "\u{a0}admin\u{3000}", "admin"),
        good("a blank inside", "a b"),
        good("N08 Cyrillic", "\u{430}dmin"),
        good("N09 a tag", "<img src=x onerror=alert(1)>"),
        good("N12 ../x", "../x"),
        good("N12 #a b", "#a b"),
        good("N12 an emoji", "\u{1f469}\u{1f3fd}"),
        good("N12 %2f", "%2f"),
        good("N12 a slash", "/"),
        good("a plus", "a+b"),
        good("an ampersand", "a&room=b"),
        good("quotes", "\"a\\b'"),
    ];
    let forbidden: [&[char]; 5] = [
        &['\0', '\t', '\n', '\r', '\u{1b}', '\u{1f}', '\u{7f}', '\u{80}', '\u{85}', '\u{9f}'],
        &['\u{ad}', '\u{61c}', '\u{180e}', '\u{feff}', '\u{2060}', '\u{2028}', '\u{2029}'],
        &['\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}'],
        &['\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}'],
        &['\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}'],
    ];
    for c in forbidden.concat() {
        rows.push(refused("N03, N04", &format!("a{c}b")));
    }
    let beside = "\u{a1}\u{ac}\u{ae}\u{61b}\u{61d}\u{180d}\u{180f}\u{200a}\u{2010}\u{2027}\u{202f}\
                  \u{205f}\u{2061}\u{2065}\u{206a}\u{feee}\u{ff01}";
    for c in beside.chars() {
        rows.push(good("beside the forbidden", &format!("a{c}b")));
    }
    rows
}

#[test]
fn usernames() {
    let server = chat(&[]);
    let mut rows = name_rows();
    rows.extend([
        good("N01 32 characters", &"x".repeat(32)),
        good("N01 32 characters of four bytes", &"\u{1f600}".repeat(32)),
        trimmed("N01 32 characters and blanks", &format!("  {}  ", "x".repeat(32)), &"x".repeat(32)),
        refused("N01 33 characters", &"x".repeat(33)),
        refused("N01 33 characters of two bytes", &"é".repeat(33)),
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
                    Person::Raw(client).hears("welcome", data);
                }
            }
        },
    );
}

#[test]
fn room_names() {
    let mut rows = name_rows();
    rows.extend([
        good("N01 64 characters", &"x".repeat(64)),
        good("N01 64 characters of four bytes", &"\u{1f600}".repeat(64)),
        trimmed("N01 64 characters and blanks", &format!("  {}  ", "x".repeat(64)), &"x".repeat(64)),
        refused("N01 65 characters", &"x".repeat(65)),
        refused("N01 65 characters of two bytes", &"é".repeat(65)),
    ]);
    each_row(
        &rows,
        |(id, name, _)| format!("{id} {name:?}"),
        |(_, name, expected)| {
            // One for each row: two rows may have the same room, and whoever hangs up is there a little longer.
            let server = chat(&[]);
            let mut mover = join(&server, "moritz", "where it begins");
            mover.hears("welcome", json!({}));
            mover.switch_room(name);
            match expected {
                None => drop(mover.hears("error", json!({}))),
                Some(expected) => drop(mover.hears("switched", json!({"room": expected}))),
            }
            mover.hears_nothing();
            let mut client = server.connect();
            client.send(&handshake().target(events_path("bot", name)).bytes());
            match expected {
                None => assert_eq!(client.read_response().status, 400),
                Some(expected) => {
                    assert_eq!(Response::parse(client.read_head().as_bytes()).status, 101);
                    Person::Raw(client).hears("welcome", json!({"room": expected, "members": ["moritz"]}));
                }
            }
        },
    );
}

/// `+` is a blank in a query, and a plus is `%2B`.
#[test]
fn names_in_a_query() {
    let server = chat(&[]);
    let mut client = Person::Raw(server.upgrade("/?token=dev-token&username=a+b&room=c%2Bd"));
    client.hears("welcome", json!({"username": "a b", "room": "c+d"}));
    let mut client = Person::Raw(server.upgrade("/?room=%C3%A9&room=second&username=%e6%bc%a2&token=dev-token"));
    client.hears("welcome", json!({"username": "漢", "room": "é"}));
}

/// What people are called and say stands in the log in one line, and cannot pass for another line or another field.
#[test]
fn the_log_is_not_a_stage() {
    let server = chat(&["-v"]);
    let mut client = join(&server, "x user=root", "a room=b");
    client.hears("welcome", json!({}));
    client.say("a\u{1b}[2J\nMSG room=general user=root forged\r\u{9b}b\u{2028}c");
    client.hears("message", json!({}));
    client.switch_room("c user=root");
    client.hears("switched", json!({}));
    drop(client);
    for kind in ["JOIN", "MSG", "SWITCH", "LEAVE"] {
        server.wait_for_log(kind);
    }
    let log = server.log();
    assert!(!log.contains("user=x user=root"), "a name does not pass for a field:\n{log}");
    assert!(!log.contains("room=a room=b"), "a name does not pass for a field:\n{log}");
    let raw = log.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{2028}');
    assert_eq!(raw, None, "no raw control characters:\n{log}");
    let forged: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(matches!(forged.as_slice(), [line] if line.contains("2J")), "one line a message:\n{log}");
    assert!(!log.contains("dev-token"), "no token:\n{log}");
}
