//! Tests the dialects `events`, `rooms` and `presence`: their endpoints, their exact JSON, and what a user of one
//! dialect receives from users of another dialect.
//!
//! PROTOCOL.md allows the server to add fields to an object, but most of these tests compare whole objects. If a new
//! field makes a test fail, first check that the existing pages for the dialect ignore unknown fields.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::users::{
    ANY_TIME, DIALECTS, Dialect, End, User, chat, encode, events_path, path, presence_path, rooms_path, same,
};
use support::{Server, masked, token_file};

use Dialect::{Events, Presence, Rooms};

// ------------------------------------------------------------------------------------------------------- endpoints

/// A description, a request, and the expected status of the response.
type Row = (&'static str, Request, u16);

fn to(target: impl Into<String>) -> Request {
    handshake().target(target)
}

fn presence_request(query: &str) -> Request {
    to(format!("/ws?token=dev-token&{query}"))
}

#[test]
fn endpoints() {
    let long = |count: usize| format!("username=pat&client_id={}", "%F0%9F%98%80".repeat(count));
    let rows: Vec<Row> = vec![
        ("a room", to("/ws/general?token=dev-token"), 101),
        ("a room, the token in the header", to("/ws/general").add("Authorization: Bearer dev-token"), 101),
        ("a room, no token", to("/ws/general"), 401),
        ("a room, a wrong token", to("/ws/general?token=wrong"), 401),
        ("a room, not an upgrade", get("/ws/general?token=dev-token"), 426),
        ("a room, POST", to("/ws/general?token=dev-token").method("POST"), 405),
        ("two segments", to("/ws/a/b?token=dev-token"), 404),
        ("two segments, no token: the path is checked first", to("/ws/a/b"), 404),
        ("two segments, the second empty", to("/ws/a/?token=dev-token"), 404),
        ("two segments, the first empty", to("/ws//a?token=dev-token"), 404),
        ("two segments, not an upgrade", get("/ws/a/b"), 404),
        ("another letter case", to("/WS/general?token=dev-token"), 404),
        ("no token and a bad room: the token is checked first", to("/ws/%00"), 401),
        ("presence", presence_request("username=pat&client_id=1"), 101),
        ("presence, not an upgrade", get("/ws?token=dev-token&username=pat&client_id=1"), 426),
        ("presence, POST", presence_request("username=pat&client_id=1").method("POST"), 405),
        ("presence, no token", to("/ws?username=pat&client_id=1"), 401),
        ("presence, no token and no name: the token is checked first", to("/ws"), 401),
        ("presence, no name", presence_request("client_id=1"), 400),
        ("presence, an empty name", presence_request("username=&client_id=1"), 400),
        ("presence, a bad name", presence_request("username=a%E2%80%8Bb&client_id=1"), 400),
        (
            "presence, a name of 33 characters",
            presence_request(&format!("username={}&client_id=1", "x".repeat(33))),
            400,
        ),
        ("presence, no client_id", presence_request("username=pat"), 400),
        ("presence, an empty client_id", presence_request("username=pat&client_id="), 400),
        ("presence, a client_id of 64 characters", presence_request(&long(64)), 101),
        ("presence, a client_id of 65 characters", presence_request(&long(65)), 400),
        ("presence, a client_id that is not UTF-8", presence_request("username=pat&client_id=%ff"), 400),
        ("presence, a bad room", presence_request("username=pat&client_id=1&room=%00"), 400),
        ("presence, an empty room", presence_request("username=pat&client_id=1&room="), 400),
        ("presence, the first client_id counts", presence_request("username=pat&client_id=&client_id=1"), 400),
        ("presence, the first name counts", presence_request("username=pat&client_id=1&username=%00"), 101),
    ];
    let server = Server::start(&[]);
    each_row(&rows, |row| row.0.to_owned(), |(_, request, status)| assert_eq!(server.status(request), *status));
}

#[test]
fn missing_parameters_are_named() {
    let server = Server::start(&[]);
    for (query, word) in [("client_id=1", "username"), ("username=pat", "client_id")] {
        let mut client = server.connect();
        client.send(&presence_request(query).bytes());
        let response = client.read_response();
        assert!(response.status == 400 && response.body.contains(word), "{response:?}");
    }
}

/// The server splits the path at `/` before it decodes the room name. A `+` in a path is not a space.
#[test]
fn rooms_in_the_path() {
    let long = |count: usize| "%F0%9F%98%80".repeat(count);
    let good = |at: &str, room: &str| (at.to_owned(), Ok(room.to_owned()));
    let bad = |at: &str| (at.to_owned(), Err(400));
    let rows: Vec<(String, Result<String, u16>)> = vec![
        good("general", "general"),
        good("a%20b", "a b"),
        good("a+b", "a+b"),
        good("%2B", "+"),
        good("%20a%C2%A0", "a"),
        good("a%2Fb", "a/b"),
        good("%2f", "/"),
        good("..%2Fx", "../x"),
        good("%25", "%"),
        good("%252f", "%2f"),
        good("%23a", "#a"),
        good("%3Fa", "?a"),
        good("a&room=b", "a&room=b"),
        good("%C3%A9", "é"),
        good("%e6%bc%a2", "漢"),
        good(&long(64), &"\u{1f600}".repeat(64)),
        bad(&long(65)),
        bad("%"),
        bad("a%"),
        bad("a%2"),
        bad("%zz"),
        bad("%+1"),
        bad("%ff"),
        bad("%ed%a0%80"),
        bad("%c0%af"),
        bad("%00"),
        bad("%0a"),
        bad("%7f"),
        bad("a%E2%80%8Bb"),
        bad("a%E2%80%AEb"),
        bad("%20"),
        bad("%20%C2%A0"),
    ];
    let server = chat(&[]);
    each_row(
        &rows,
        |row| row.0.clone(),
        |(at, expected)| {
            let target = format!("/ws/{at}?token=dev-token");
            match expected {
                Err(status) => assert_eq!(server.status(&to(target)), *status),
                Ok(room) => {
                    let _ron = User::at(&server, Rooms, &target, "");
                    let mut eve = User::join(&server, Events, "eve", room);
                    eve.expect_event("welcome", json!({"room": room, "members": ["Anonymous"]}));
                }
            }
        },
    );
    let nothing = server.status(&to("/ws/?token=dev-token"));
    assert!([400, 404].contains(&nothing), "an empty room: {nothing}");
}

#[test]
fn presence_takes_the_room_from_the_query() {
    let server = chat(&[]);
    let _pat = User::at(&server, Presence, "/ws?token=dev-token&username=p+t&client_id=1", "p t");
    let mut eve = User::join(&server, Events, "eve", "general");
    eve.expect_event("welcome", json!({"members": ["p t"]}));
    let _pat = User::at(&server, Presence, "/ws?token=dev-token&username=p%2Bt&client_id=2&room=a+b&room=c", "p+t");
    let mut eve = User::join(&server, Events, "eve", "a b");
    eve.expect_event("welcome", json!({"members": ["p+t"]}));
}

#[test]
fn subprotocols() {
    let rooms = "/ws/general?token=dev-token";
    let presence = "/ws?token=dev-token&username=pat&client_id=1";
    let rows = [
        (rooms, "chat.rooms", "chat.rooms"),
        (rooms, "x, chat.rooms, y", "chat.rooms"),
        (rooms, "chat.presence, chat.events, chat.rooms, echo", "chat.rooms"),
        (rooms, "chat.events, chat.presence", ""),
        (rooms, "CHAT.ROOMS", ""),
        (presence, "chat.presence", "chat.presence"),
        (presence, "chat.rooms, chat.events, chat.presence", "chat.presence"),
        (presence, "chat.rooms", ""),
        ("/?token=dev-token", "chat.rooms, chat.presence", ""),
        ("/?token=dev-token", "chat.rooms, chat.events", "chat.events"),
    ];
    let server = Server::start(&[]);
    each_row(
        &rows,
        |row| format!("{} {}", row.0, row.1),
        |(target, offered, chosen)| {
            let mut client = server.connect();
            client.send(&to(*target).add(format!("Sec-WebSocket-Protocol: {offered}")).bytes());
            let response = Response::parse(client.read_head().as_bytes());
            assert_eq!((response.status, response.header("Sec-WebSocket-Protocol")), (101, *chosen));
        },
    );
}

// ------------------------------------------------------------------------------------------------------- exact JSON

fn system(what: &str) -> Value {
    json!({"type": "system", "message": format!("A user {what} the chat")})
}

fn presence_event(what: &str, name: &str, users: &[&str]) -> Value {
    json!({"type": format!("user_{what}"), "username": name, "active_users": users})
}

fn event(event: &str, name: &str) -> Value {
    json!({"event": event, "data": {"username": name}})
}

#[test]
fn exact_rooms_json() {
    let server = chat(&[]);
    let mut ron = User::join(&server, Rooms, "ron", "general");
    ron.expect_message(json!({"type": "system", "message": "A user joined the chat"}));
    let mut rita = User::join(&server, Rooms, "", "general");
    for user in [&mut ron, &mut rita] {
        user.expect_message(json!({"type": "system", "message": "A user joined the chat"}));
    }
    ron.send(r#"{"username":"ron","text":" hello \u00e9 "}"#);
    rita.send(r#"{"text":"hello, ron"}"#);
    for user in [&mut ron, &mut rita] {
        let both = [user.receive(), user.receive()];
        let expected = [
            json!({"type": "message", "username": "ron", "text": "hello é"}),
            json!({"type": "message", "username": "Anonymous", "text": "hello, ron"}),
        ];
        assert!(both == expected || both[0] == expected[1] && both[1] == expected[0], "{both:?}");
    }
    ron.send(r#"{"type":"typing","username":"ron"}"#);
    rita.expect_message(json!({"type": "typing", "username": "ron"}));
    rita.send(r#"{"text":"/msg ron between  us"}"#);
    for user in [&mut ron, &mut rita] {
        user.expect_message(json!({"type": "private", "from": "Anonymous", "to": "ron", "text": "between  us"}));
    }
    // A client of the `rooms` dialect may send each message under a different username.
    ron.send(r#"{"username":"ronald","text":"it is me"}"#);
    for user in [&mut ron, &mut rita] {
        user.expect_message(json!({"type": "message", "username": "ronald", "text": "it is me"}));
    }
    ron.leave();
    rita.expect_message(json!({"type": "system", "message": "A user left the chat"}));
    rita.expect_nothing();
}

#[test]
fn exact_presence_json() {
    let server = chat(&[]);
    let mut pat = User::join(&server, Presence, "pat", "general");
    pat.expect_message(json!({"type": "user_joined", "username": "pat", "active_users": ["pat"]}));
    let mut pia = User::join(&server, Presence, "pia", "general");
    for user in [&mut pat, &mut pia] {
        user.expect_message(json!({"type": "user_joined", "username": "pia", "active_users": ["pat", "pia"]}));
    }
    // `active_users` lists a username once per connection.
    let mut other = User::at(&server, Presence, &presence_path("pia", "another id", "general"), "pia");
    for user in [&mut pat, &mut pia, &mut other] {
        user.expect_message(json!({"type": "user_joined", "username": "pia", "active_users": ["pat", "pia", "pia"]}));
    }
    pat.send(" hello \u{e9}\n");
    for user in [&mut pat, &mut pia, &mut other] {
        user.expect_message(
            json!({"type": "chat_message", "username": "pat", "text": "hello é", "timestamp": ANY_TIME}),
        );
    }
    other.leave();
    for user in [&mut pat, &mut pia] {
        user.expect_message(json!({"type": "user_left", "username": "pia", "active_users": ["pat", "pia"]}));
    }
    pat.send("/msg pia between  us");
    for user in [&mut pat, &mut pia] {
        user.expect_message(json!({
            "type": "private_message", "from": "pat", "to": "pia", "text": "between  us", "timestamp": ANY_TIME
        }));
    }
    pia.leave();
    pat.expect_message(json!({"type": "user_left", "username": "pia", "active_users": ["pat"]}));
    pat.send("/msg pia still there?");
    pat.expect_message(json!({"error": "No such user: pia"}));
    pat.expect_nothing();
}

/// The reply that the server must send to the text in a test row.
enum Reply {
    Silence,
    Error(&'static str),
    AnError,
    /// An error whose text contains this word.
    ErrorAbout(&'static str),
    /// A message to the room. The fields are the sender's username and the text.
    Message(String, String),
}

use Reply::{AnError, Error, ErrorAbout, Message, Silence};

/// Sends the text of each row, and checks that the server sends the expected reply and nothing else. A second user must
/// receive messages to the room, but no errors.
fn run(dialect: Dialect, rows: &[(&str, String, Reply)]) {
    let server = chat(&[]);
    let mut witness = User::rooms(&server, "", "general");
    let mut bot = User::join(&server, dialect, "bot", "general");
    bot.receive();
    witness.expect_message(system("joined"));
    let name = |(id, sent, _): &(&str, String, Reply)| format!("{id}: {}", sent.chars().take(80).collect::<String>());
    each_row(rows, name, |(_, sent, reply)| {
        bot.send(sent);
        match reply {
            Silence => {}
            AnError => drop(bot.expect_error()),
            Error(text) => assert_eq!(bot.expect_error(), *text),
            ErrorAbout(word) => {
                let message = bot.expect_error();
                assert!(message.contains(word), "{message:?} contains {word:?}");
            }
            Message(name, text) => {
                let expected = bot.room_message(name, text, 0);
                bot.expect_message(expected);
                witness.expect_message(witness.room_message(name, text, 0));
            }
        }
        bot.expect_nothing();
        witness.expect_nothing();
    });
}

fn message(name: &str, text: &str) -> Reply {
    Message(name.to_owned(), text.to_owned())
}

#[test]
fn rooms_messages() {
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let invalid = || Error("Invalid JSON");
    let carries = |name: &str| json!({"username": name, "text": "x"}).to_string();
    let text = |text: &str| json!({"text": text}).to_string();
    let none = "Anonymous";
    run(
        Rooms,
        &[
            row("not JSON", "hello", invalid()),
            row("not JSON", "", invalid()),
            row("not JSON", "{\"text\":\"x\"", invalid()),
            row("not JSON", "{\"text\":\"x\"} y", invalid()),
            row("not JSON", "{\"text\":\"\\ud800\"}", invalid()),
            row("not an object", "[]", ErrorAbout("object")),
            row("not an object", "[\"ron\",\"x\"]", ErrorAbout("object")),
            row("not an object", "1", ErrorAbout("object")),
            row("not an object", "null", ErrorAbout("object")),
            row("not an object", "\"x\"", ErrorAbout("object")),
            row("not an object", "true", ErrorAbout("object")),
            row("no text", "{}", Silence),
            row("no text", r#"{"username":"ron"}"#, Silence),
            row("empty text", &text(""), Silence),
            row("only white space", &text(" \t\r\n\u{a0}\u{3000}"), Silence),
            row("a wrong field", r#"{"text":1}"#, ErrorAbout("text")),
            row("a wrong field", r#"{"text":null}"#, ErrorAbout("text")),
            row("a wrong field", r#"{"text":["x"]}"#, ErrorAbout("text")),
            row("a wrong field", r#"{"username":1,"text":"x"}"#, ErrorAbout("username")),
            row("a wrong field", r#"{"username":{},"text":"x"}"#, ErrorAbout("username")),
            row("a key twice", r#"{"text":"a","text":"b"}"#, ErrorAbout("text")),
            row("a key twice", r#"{"text":"a","te\u0078t":"b"}"#, ErrorAbout("text")),
            row("a key twice", r#"{"username":"a","username":"b","text":"c"}"#, ErrorAbout("username")),
            row("control characters", &text("a\0b\u{1b}[2J"), message(none, "a\0b\u{1b}[2J")),
            row("more fields, any order", r#"{"text":"a","mood":null,"data":{"text":1}}"#, message(none, "a")),
            row("32 characters", &carries(&"\u{1f600}".repeat(32)), message(&"\u{1f600}".repeat(32), "x")),
            row("33 characters", &carries(&"x".repeat(33)), AnError),
            row("trimmed", r#"{"username":" ron\u3000","text":"x"}"#, message("ron", "x")),
            row("a bidirectional control", &carries("a\u{202e}b"), AnError),
            row("an invisible character", &carries("a\u{200b}b"), AnError),
            row("invisible characters in text", &text("a\u{200b}b\u{202e}"), message(none, "a\u{200b}b\u{202e}")),
            row("a control in a name", &carries("a\0b"), AnError),
            row("markup", &carries("<img src=x>"), message("<img src=x>", "x")),
            row("500 characters", &text(&"é".repeat(500)), message(none, &"é".repeat(500))),
            row("501 characters", &text(&"é".repeat(501)), Error("Message too long")),
            row("a slash that is not a command", &text("/me waves"), message(none, "/me waves")),
            row("private, no such user", &text("/msg bob hi"), Error("No such user: bob")),
            row("an object of another dialect", r#"{"event":"message","data":{"text":"x"}}"#, Silence),
        ],
    );
}

#[test]
fn presence_messages() {
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let same = |id, text: &str| row(id, text, message("bot", text));
    let spaces = " ".repeat(300);
    run(
        Presence,
        &[
            same("a text", "hello"),
            same("not JSON: an event", r#"{"event":"ping"}"#),
            same("not JSON: a message of rooms", r#"{"username":"ron","text":"x"}"#),
            same("not JSON: typing", r#"{"type":"typing","username":"bot"}"#),
            same("not JSON: a string", r#""x""#),
            same("incomplete JSON", "{"),
            same("null", "null"),
            same("control characters", "a\0b\u{1b}[2J"),
            same("invisible characters in text", "a\u{200b}b\u{202e}c\u{feff}d"),
            same("markup", "<img src=x onerror=alert(1)>"),
            same("a slash that is not a command", "/me waves"),
            row("empty text", "", Silence),
            row("only white space", " \t\r\n\u{a0}\u{3000}", Silence),
            row("trimming", "  a  b \n", message("bot", "a  b")),
            same("500 characters", &"é".repeat(500)),
            row(
                "500 characters and white space",
                &format!("{spaces}{}{spaces}", "x".repeat(500)),
                message("bot", &"x".repeat(500)),
            ),
            row("501 characters", &"é".repeat(501), Error("Message too long")),
            row("60,000 characters", &"x".repeat(60_000), Error("Message too long")),
            row("private, no such user", "/msg bob hi", Error("No such user: bob")),
        ],
    );
}

/// The server keeps the connection open after any well-formed text message within the size limit. Each reply is JSON.
#[test]
fn no_text_message_closes_the_connection() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let mut texts: Vec<String> =
        ["", "0", "-", "\0", "\u{feff}", "{", "}", "[]", "nul", "\"", "\\", "\u{2028}", "/", "/msg", "/msg ", "/msg x"]
            .map(str::to_owned)
            .to_vec();
    texts.extend([nested(127), nested(128), nested(30_000)]);
    texts.extend(["x".repeat(65_536), "\0".repeat(65_536), " ".repeat(65_536), "\u{10ffff}".repeat(16_384)]);
    texts.extend(["{\"a\":".repeat(10_000), "{\"event\":\"message\",\"data\":".to_owned() + &nested(20_000) + "}"]);
    let fields = ["event", "type", "username", "data", "text", "room", "to", "nonce"];
    let values = ["null", "true", "-1", "1e999", "\"\"", "\"\\u0000\"", "[]", "{}", "{\"text\":{}}", "\"typing\""];
    for (i, field) in fields.iter().enumerate() {
        for (j, value) in values.iter().enumerate() {
            let other = fields[(i + j) % fields.len()];
            texts.push(format!("{{\"{field}\":{value},\"{other}\":{value}}}"));
            for event in ["message", "private", "switch_room", "typing"] {
                texts.push(format!("{{\"event\":\"{event}\",\"data\":{{\"{field}\":{value}}}}}"));
            }
        }
    }
    let server = chat(&[]);
    for dialect in DIALECTS {
        let mut bot = User::join(&server, dialect, "bot", "general");
        for text in &texts {
            bot.send(text);
            bot.client.send(&masked(0x89, b"still there?"));
            loop {
                let frame = bot.frame();
                if frame.first == 0x8a {
                    break;
                }
                let start: String = text.chars().take(80).collect();
                assert_eq!(frame.first, 0x81, "{dialect:?} after {start:?}: {frame:?}");
                serde_json::from_str::<Value>(frame.text()).expect("JSON");
            }
        }
    }
}

/// In every dialect, the server fails the connection over a binary message, over text that is not UTF-8, and over an
/// unmasked frame.
#[test]
fn messages_that_are_not_text() {
    let server = Server::start(&[]);
    for dialect in DIALECTS {
        for (frame, code) in [(masked(0x82, b"x"), 1003), (masked(0x81, b"\xff"), 1007), (vec![0x81, 0x01, b'x'], 1002)]
        {
            let mut user = User::join(&server, dialect, "pat", "general");
            user.receive();
            user.client.send(&frame);
            let (got, reason) = user.frame().close();
            assert!(got == code && !reason.is_empty(), "{dialect:?}: {got} {reason:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------------ across dialects

/// One user of each dialect, all in the same room: eve uses `events`, ron uses `rooms` and joins as `Anonymous`, and
/// pat uses `presence`.
struct ThreeUsers {
    eve: User,
    ron: User,
    pat: User,
}

impl ThreeUsers {
    fn join(server: &Server, room: &str) -> ThreeUsers {
        let mut eve = User::events(server, "eve", room);
        let mut ron = User::rooms(server, "ron", room);
        eve.expect_message(event("joined", "Anonymous"));
        let mut pat = User::join(server, Presence, "pat", room);
        eve.expect_message(event("joined", "pat"));
        ron.expect_message(system("joined"));
        pat.expect_message(presence_event("joined", "pat", &["eve", "Anonymous", "pat"]));
        ThreeUsers { eve, ron, pat }
    }

    fn all(&mut self) -> [&mut User; 3] {
        [&mut self.eve, &mut self.ron, &mut self.pat]
    }

    /// Asserts that all three users receive the message, each in their own dialect.
    fn receive_message(&mut self, name: &str, text: &str, id: u64) {
        for user in self.all() {
            let expected = user.room_message(name, text, id);
            user.expect_message(expected);
        }
    }

    /// Asserts that each of the three users receives the join or leave event in the user's own dialect. `what` is
    /// `joined` or `left`, and `users` are the room's users after the event.
    fn receive_change(&mut self, what: &str, name: &str, users: &[&str]) {
        self.eve.expect_message(event(what, name));
        self.ron.expect_message(system(what));
        self.pat.expect_message(presence_event(what, name, users));
    }

    fn receive_nothing(&mut self) {
        self.all().into_iter().for_each(User::expect_nothing);
    }
}

#[test]
fn joins_and_leaves_across_dialects() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    for (dialect, name) in [(Events, "bea"), (Rooms, "Anonymous"), (Presence, "bob")] {
        for how in [End::Close, End::Eof, End::Reset] {
            let mut guest = User::join(&server, dialect, name, "general");
            three.receive_change("joined", name, &["eve", "Anonymous", "pat", name]);
            let received = guest.receive();
            match dialect {
                Events => {
                    assert!(same(&json!(["eve", "Anonymous", "pat"]), &received["data"]["members"]), "{received}")
                }
                Rooms => assert_eq!(received, system("joined")),
                Presence => {
                    assert!(
                        same(&presence_event("joined", name, &["eve", "Anonymous", "pat", name]), &received),
                        "{received}"
                    )
                }
            }
            guest.disconnect(how);
            three.receive_change("left", name, &["eve", "Anonymous", "pat"]);
        }
    }
    three.receive_nothing();
}

#[test]
fn messages_across_dialects() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    let mut outsider = User::rooms(&server, "", "elsewhere");
    for (i, text) in ["hello", "two\nlines \"quoted\" \\ \0", "\u{1f44b} <b>"].into_iter().enumerate() {
        let id = 3 * i as u64;
        three.eve.send_message(text);
        three.receive_message("eve", text, id + 1);
        three.ron.send_message(text);
        three.receive_message("ron", text, id + 2);
        three.pat.send_message(text);
        three.receive_message("pat", text, id + 3);
    }
    // Only the `events` dialect has nonces.
    three.eve.send_event("message", json!({"text": "once", "nonce": "n1"}));
    let expected = json!({"username": "eve", "text": "once", "id": 10, "time": ANY_TIME, "nonce": "n1"});
    three.eve.expect_message(json!({"event": "message", "data": expected}));
    three.ron.expect_message(json!({"type": "message", "username": "eve", "text": "once"}));
    three.pat.expect_message(json!({"type": "chat_message", "username": "eve", "text": "once", "timestamp": ANY_TIME}));
    three.receive_nothing();
    outsider.expect_nothing();
}

#[test]
fn all_dialects_show_the_same_time() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    three.ron.send_message("now");
    let eve = three.eve.receive();
    let pat = three.pat.receive();
    assert!(eve["data"]["time"].is_string());
    assert_eq!(eve["data"]["time"], pat["timestamp"]);
}

#[test]
fn typing_across_dialects() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    three.eve.send(r#"{"event":"typing"}"#);
    three.ron.expect_message(json!({"type": "typing", "username": "eve"}));
    three.ron.send(r#"{"type":"typing","username":"ron"}"#);
    three.eve.expect_message(event("typing", "ron"));
    // The `presence` dialect has no typing event, so pat receives nothing.
    three.receive_nothing();
}

#[test]
fn private_messages_across_dialects() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    three.ron.send_message("my name is ron");
    three.receive_message("ron", "my name is ron", 1);
    let names = ["eve", "ron", "pat"];
    for from in 0..3 {
        for to in 0..3 {
            let text = format!("from {from} to {to}");
            let all = three.all();
            all[from].send_message(&format!("/msg {} {text}", names[to]));
            for i in if from == to { vec![from] } else { vec![from, to] } {
                let private = all[i].private_message(names[from], names[to], &text);
                all[i].expect_message(private);
            }
            three.receive_nothing();
        }
    }
}

#[test]
fn switches_across_dialects() {
    let server = chat(&[]);
    let mut old = ThreeUsers::join(&server, "old");
    let mut new = ThreeUsers::join(&server, "new");
    let mut moritz = User::events(&server, "moritz", "old");
    old.receive_change("joined", "moritz", &["eve", "Anonymous", "pat", "moritz"]);
    new.pat.send_message("before");
    new.receive_message("pat", "before", 1);
    moritz.send_event("switch_room", json!({"room": "new"}));
    old.receive_change("left", "moritz", &["eve", "Anonymous", "pat"]);
    let switched = moritz.expect_event("switched", json!({"room": "new", "members": ["eve", "Anonymous", "pat"]}));
    assert_eq!(switched["history"][0]["text"], "before");
    new.receive_change("joined", "moritz", &["eve", "Anonymous", "pat", "moritz"]);
    moritz.send_message("after");
    new.receive_message("moritz", "after", 2);
    moritz.expect_message(moritz.room_message("moritz", "after", 2));
    old.receive_nothing();
    new.receive_nothing();
}

/// A new member receives the history in the member's own dialect.
#[test]
fn history_across_dialects() {
    let server = chat(&["--history", "3"]);
    let mut three = ThreeUsers::join(&server, "general");
    three.eve.send_message("gone already");
    three.receive_message("eve", "gone already", 1);
    three.eve.send_event("message", json!({"text": "one", "nonce": "n1"}));
    let one = three.eve.expect_event("message", json!({}));
    three.ron.send_message("two");
    let two = three.eve.expect_event("message", json!({"username": "ron"}));
    three.pat.send_message("three");
    let last = three.eve.expect_event("message", json!({"username": "pat"}));
    three.pat.send_message("/msg eve a secret");
    three.eve.expect_message(three.eve.private_message("pat", "eve", "a secret"));

    let expected = [one, two, last];
    let mut guest = User::join(&server, Events, "bea", "general");
    guest.expect_event("welcome", json!({"history": expected.clone(), "last_id": 4, "resumed": false}));
    guest.expect_nothing();
    let mut guest = User::join(&server, Rooms, "", "general");
    guest.expect_message(system("joined"));
    for message in &expected {
        guest.expect_message(json!({"type": "message", "username": message["username"], "text": message["text"]}));
    }
    guest.expect_nothing();
    let mut guest = User::join(&server, Presence, "bob", "general");
    guest.expect_message(presence_event("joined", "bob", &["eve", "Anonymous", "pat", "bea", "Anonymous", "bob"]));
    for message in &expected {
        let [name, text, time] = ["username", "text", "time"].map(|field| &message[field]);
        let received = guest.receive();
        assert_eq!(received, json!({"type": "chat_message", "username": name, "text": text, "timestamp": time}));
    }
    guest.expect_nothing();
}

// -------------------------------------------------------------------------------------------------------- names

/// In the `rooms` dialect, the username comes with each message and not with the join. A client's join and leave events
/// therefore show `Anonymous`.
#[test]
fn rooms_clients_send_a_username_with_each_message() {
    let server = chat(&[]);
    let mut eve = User::events(&server, "eve", "general");
    let mut ron = User::rooms(&server, "ron", "general");
    eve.expect_message(event("joined", "Anonymous"));
    eve.send_message("/msg Anonymous psst");
    eve.expect_message(eve.error("No such user: Anonymous"));
    ron.send_message("hello");
    eve.expect_message(eve.room_message("ron", "hello", 1));
    ron.expect_message(ron.room_message("ron", "hello", 1));
    let mut pat = User::join(&server, Presence, "pat", "general");
    pat.expect_message(presence_event("joined", "pat", &["eve", "Anonymous", "pat"]));
    pat.expect_message(pat.room_message("ron", "hello", 1));
    eve.expect_message(event("joined", "pat"));
    ron.expect_message(system("joined"));
    // In the `rooms` dialect, a client receives private messages addressed to the username in its most recent message.
    pat.send_message("/msg Anonymous psst");
    pat.expect_message(pat.error("No such user: Anonymous"));
    pat.send_message("/msg ron psst");
    pat.expect_message(pat.private_message("pat", "ron", "psst"));
    ron.expect_message(ron.private_message("pat", "ron", "psst"));
    ron.name = "ronald".to_owned();
    ron.send_message("hello again");
    for user in [&mut eve, &mut ron, &mut pat] {
        let expected = user.room_message("ronald", "hello again", 2);
        user.expect_message(expected);
    }
    pat.send_message("/msg ron psst");
    pat.expect_message(pat.error("No such user: ron"));
    pat.send_message("/msg ronald psst");
    pat.expect_message(pat.private_message("pat", "ronald", "psst"));
    ron.expect_message(ron.private_message("pat", "ronald", "psst"));
    ron.leave();
    eve.expect_message(event("left", "Anonymous"));
    pat.expect_message(presence_event("left", "Anonymous", &["eve", "pat"]));
    pat.send_message("/msg ronald psst");
    pat.expect_message(pat.error("No such user: ronald"));
    eve.expect_nothing();
}

/// If a token is bound to a username, each client with that token has that username, in every dialect. The server
/// rejects other usernames.
#[test]
fn the_username_of_a_token() {
    let file = token_file("own-name", "secret-any\nsecret-ann ann\n");
    let server = chat(&["--tokens", file.to_str().unwrap()]);
    let mut eve = User::at(&server, Events, "/?token=secret-any&username=eve", "eve");
    eve.expect_event("welcome", json!({}));
    let mut ann = User::at(&server, Rooms, "/ws/general?token=secret-ann", "");
    ann.expect_message(system("joined"));
    eve.expect_message(event("joined", "ann"));
    ann.send(r#"{"text":"no name"}"#);
    ann.send(r#"{"username":" ann ","text":"my name"}"#);
    for (id, text) in [(1, "no name"), (2, "my name")] {
        eve.expect_message(eve.room_message("ann", text, id));
        ann.expect_message(ann.room_message("ann", text, id));
    }
    for name in ["bob", "Ann", "Anonymous"] {
        ann.send(&json!({"username": name, "text": "not my name"}).to_string());
        ann.expect_error();
    }
    eve.send_message("/msg ann psst");
    eve.expect_message(eve.private_message("eve", "ann", "psst"));
    ann.expect_message(ann.private_message("eve", "ann", "psst"));
    ann.leave();
    eve.expect_message(event("left", "ann"));

    let mut ann = User::at(&server, Presence, "/ws?token=secret-ann&client_id=1", "ann");
    ann.expect_message(presence_event("joined", "ann", &["eve", "ann"]));
    ann.expect_message(ann.room_message("ann", "no name", 1));
    ann.expect_message(ann.room_message("ann", "my name", 2));
    eve.expect_message(event("joined", "ann"));
    assert_eq!(server.status(&to("/ws?token=secret-ann&client_id=2&username=bob")), 403);
    assert_eq!(server.status(&to("/ws?token=secret-ann&client_id=2&username=ann")), 101);
    assert_eq!(server.status(&to("/ws?token=secret-any&client_id=2")), 400);
}

/// With `--unique-names`, a client of the `rooms` dialect reserves a username by sending a message under that username.
/// Other clients that use the username get an error.
#[test]
fn a_message_reserves_its_username() {
    let server = chat(&["--unique-names"]);
    let mut eve = User::events(&server, "eve", "general");
    let mut ron = User::rooms(&server, "ron", "general");
    let mut rita = User::rooms(&server, "ron", "general");
    ron.expect_message(system("joined"));
    for _ in 0..2 {
        eve.expect_message(event("joined", "Anonymous"));
    }
    ron.send_message("hello");
    for user in [&mut eve, &mut ron, &mut rita] {
        let expected = user.room_message("ron", "hello", 1);
        user.expect_message(expected);
    }
    // Usernames are case-insensitive, and unique across dialects and rooms. Only the client that sends a rejected
    // username receives the error.
    rita.send_message("me too");
    rita.expect_error();
    rita.name = "EVE".to_owned();
    rita.send_message("me too");
    rita.expect_error();
    for dialect in [Events, Presence] {
        User::join(&server, dialect, "Ron", "elsewhere").expect_close(1008, "username already in use");
    }
    // A client may send more messages under its reserved username, `ron`. When it sends a message under another
    // username, `ron` becomes available to other clients.
    ron.send_message("still me");
    ron.name = "ronald".to_owned();
    ron.send_message("another");
    rita.name = "ron".to_owned();
    for user in [&mut eve, &mut ron, &mut rita] {
        for (name, text, id) in [("ron", "still me", 2), ("ronald", "another", 3)] {
            let expected = user.room_message(name, text, id);
            user.expect_message(expected);
        }
    }
    rita.send_message("at last");
    for user in [&mut eve, &mut ron, &mut rita] {
        let expected = user.room_message("ron", "at last", 4);
        user.expect_message(expected);
    }
    rita.leave();
    eve.expect_message(event("left", "Anonymous"));
    let mut other = User::events(&server, "ron", "general");
    eve.expect_message(event("joined", "ron"));
    for user in [&mut eve, &mut other] {
        user.expect_nothing();
    }
}

/// Several clients may be `Anonymous`, even with `--unique-names`.
#[test]
fn the_default_username_is_never_in_use() {
    let server = chat(&["--unique-names"]);
    let mut ron = User::rooms(&server, "", "general");
    let mut rita = User::rooms(&server, "", "general");
    ron.expect_message(system("joined"));
    for (i, sender) in [0, 1, 0].into_iter().enumerate() {
        let text = format!("text {i}");
        let both = [&mut ron, &mut rita];
        both[sender].send_message(&text);
        for user in both {
            let expected = user.room_message("Anonymous", &text, 0);
            user.expect_message(expected);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ client_id

/// A new connection replaces an older one with the same `client_id`, even if the older one is in another room.
#[test]
fn a_client_id_that_connects_twice() {
    let server = chat(&[]);
    let mut three = ThreeUsers::join(&server, "general");
    let mut elsewhere = ThreeUsers::join(&server, "elsewhere");
    let mut first = User::at(&server, Presence, &presence_path("peter", "the id", "general"), "peter");
    three.receive_change("joined", "peter", &["eve", "Anonymous", "pat", "peter"]);

    // The second connection joins the same room under another name.
    let mut second = User::at(&server, Presence, &presence_path("petra", "the id", "general"), "petra");
    three.receive_change("left", "peter", &["eve", "Anonymous", "pat"]);
    three.receive_change("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    second.expect_message(presence_event("joined", "petra", &["eve", "Anonymous", "pat", "petra"]));
    first.expect_message(presence_event("joined", "peter", &["eve", "Anonymous", "pat", "peter"]));
    first.expect_close(1008, "replaced by a newer connection");

    // The third connection joins another room.
    let mut third = User::at(&server, Presence, &presence_path("petra", "the id", "elsewhere"), "petra");
    three.receive_change("left", "petra", &["eve", "Anonymous", "pat"]);
    elsewhere.receive_change("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    third.expect_message(presence_event("joined", "petra", &["eve", "Anonymous", "pat", "petra"]));
    second.expect_close(1008, "replaced by a newer connection");

    // A `client_id` is case-sensitive. It is free again after its connection has ended.
    let mut other = User::at(&server, Presence, &presence_path("petra", "The id", "elsewhere"), "petra");
    elsewhere.receive_change("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]);
    other.expect_message(presence_event("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]));
    third.expect_message(presence_event("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]));
    third.leave();
    elsewhere.receive_change("left", "petra", &["eve", "Anonymous", "pat", "petra"]);
    let _fourth = User::at(&server, Presence, &presence_path("petra", "the id", "general"), "petra");
    three.receive_change("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    other.expect_message(presence_event("left", "petra", &["eve", "Anonymous", "pat", "petra"]));
    other.expect_nothing();
    three.receive_nothing();
    elsewhere.receive_nothing();
}

/// A connection that replaces an older one with the same `client_id` may reuse the older one's username, even with
/// `--unique-names`.
#[test]
fn a_client_id_is_checked_before_unique_names() {
    let server = chat(&["--unique-names"]);
    let mut eve = User::events(&server, "eve", "general");
    let mut first = User::at(&server, Presence, &presence_path("pat", "1", "general"), "pat");
    first.expect_message(presence_event("joined", "pat", &["eve", "pat"]));
    eve.expect_message(event("joined", "pat"));
    let mut second = User::at(&server, Presence, &presence_path("PAT", "1", "general"), "PAT");
    second.expect_message(presence_event("joined", "PAT", &["eve", "PAT"]));
    first.expect_close(1008, "replaced by a newer connection");
    eve.expect_message(event("left", "pat"));
    eve.expect_message(event("joined", "PAT"));
    let third = User::at(&server, Presence, &presence_path("pat", "2", "general"), "pat");
    third.expect_close(1008, "username already in use");
    eve.expect_nothing();
    second.expect_nothing();
}

/// With `--open`, users of every dialect join without a token.
#[test]
fn an_open_server_needs_no_token() {
    let server = Server::start(&["--open"]);
    let mut eve = User::at(&server, Events, &events_path("eve", "lobby"), "eve");
    eve.expect_event("welcome", json!({"room": "lobby"}));
    let mut ron = User::at(&server, Rooms, "/ws/lobby", "ron");
    ron.expect_message(system("joined"));
    eve.expect_message(event("joined", "Anonymous"));
    let mut pat = User::at(&server, Presence, "/ws?username=pat&client_id=abc123&room=lobby", "pat");
    pat.expect_message(presence_event("joined", "pat", &["eve", "Anonymous", "pat"]));
    eve.expect_message(event("joined", "pat"));
    ron.expect_message(system("joined"));
    ron.send_message("hello");
    for user in [&mut eve, &mut ron, &mut pat] {
        let expected = user.room_message("ron", "hello", 1);
        user.expect_message(expected);
    }
    let ron = User::at(&server, Rooms, &rooms_path("lobby"), "a token that is not required");
    ron.leave();
    assert_eq!(server.status(&to(format!("/ws?username={}", encode("pat")))), 400, "a client_id is still required");
    assert_eq!(server.status(&to(path(Presence, "pat", "lobby"))), 101);
}
