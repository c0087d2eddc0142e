//! The three dialects side by side: their endpoints, each one's shapes word for word, and what people on one of them see
//! of people on the others.
//!
//! The protocol page lets a server add fields to an object. These tests know of none but those of `welcome`, so that
//! whoever adds one meets them, and looks first at the pages that were written for these shapes.

mod support;

use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::people::{
    DIALECTS, Dialect, End, Person, TIME, chat, encode, events_path, path, presence_path, rooms_path, same,
};
use support::table::each_row;
use support::{Server, masked, token_file};

use Dialect::{Events, Presence, Rooms};

// ------------------------------------------------------------------------------------------------------- endpoints

/// A name, a request, and the status of its answer.
type Door = (&'static str, Request, u16);

fn to(target: impl Into<String>) -> Request {
    handshake().target(target)
}

fn presence_query(query: &str) -> Request {
    to(format!("/ws?token=dev-token&{query}"))
}

#[test]
fn endpoints() {
    let long = |count: usize| format!("username=pat&client_id={}", "%F0%9F%98%80".repeat(count));
    let rows: Vec<Door> = vec![
        ("a room", to("/ws/general?token=dev-token"), 101),
        ("a room, the token in the header", to("/ws/general").add("Authorization: Bearer dev-token"), 101),
        ("a room, no token", to("/ws/general"), 401),
        ("a room, a wrong token", to("/ws/general?token=wrong"), 401),
        ("a room, not an upgrade", get("/ws/general?token=dev-token"), 426),
        ("a room, POST", to("/ws/general?token=dev-token").method("POST"), 405),
        ("two segments", to("/ws/a/b?token=dev-token"), 404),
        ("two segments, no token: the path is judged first", to("/ws/a/b"), 404),
        ("two segments, the second empty", to("/ws/a/?token=dev-token"), 404),
        ("two segments, the first empty", to("/ws//a?token=dev-token"), 404),
        ("two segments, not an upgrade", get("/ws/a/b"), 404),
        ("another letter case", to("/WS/general?token=dev-token"), 404),
        ("no token is judged before a bad room", to("/ws/%00"), 401),
        ("presence", presence_query("username=pat&client_id=1"), 101),
        ("presence, not an upgrade", get("/ws?token=dev-token&username=pat&client_id=1"), 426),
        ("presence, POST", presence_query("username=pat&client_id=1").method("POST"), 405),
        ("presence, no token", to("/ws?username=pat&client_id=1"), 401),
        ("presence, no token is judged before no name", to("/ws"), 401),
        ("presence, no name", presence_query("client_id=1"), 400),
        ("presence, an empty name", presence_query("username=&client_id=1"), 400),
        ("presence, a bad name", presence_query("username=a%E2%80%8Bb&client_id=1"), 400),
        ("presence, a name of 33", presence_query(&format!("username={}&client_id=1", "x".repeat(33))), 400),
        ("presence, no client_id", presence_query("username=pat"), 400),
        ("presence, an empty client_id", presence_query("username=pat&client_id="), 400),
        ("presence, a client_id of 64 characters", presence_query(&long(64)), 101),
        ("presence, a client_id of 65 characters", presence_query(&long(65)), 400),
        ("presence, a client_id that is not UTF-8", presence_query("username=pat&client_id=%ff"), 400),
        ("presence, a bad room", presence_query("username=pat&client_id=1&room=%00"), 400),
        ("presence, an empty room", presence_query("username=pat&client_id=1&room="), 400),
        ("presence, the first client_id counts", presence_query("username=pat&client_id=&client_id=1"), 400),
        ("presence, the first name counts", presence_query("username=pat&client_id=1&username=%00"), 101),
    ];
    let server = Server::start(&[]);
    each_row(&rows, |row| row.0.to_owned(), |(_, request, status)| assert_eq!(server.status(request), *status));
}

/// What the server answers to who is not let in for want of a parameter names it.
#[test]
fn what_is_missing_is_named() {
    let server = Server::start(&[]);
    for (query, word) in [("client_id=1", "username"), ("username=pat", "client_id")] {
        let mut client = server.connect();
        client.send(&presence_query(query).bytes());
        let response = client.read_response();
        assert!(response.status == 400 && response.body.contains(word), "{response:?}");
    }
}

/// The room in the path: split at `/`, then decoded, then judged as every room is. `+` is a plus there.
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
                    let _ron = Person::at(&server, Rooms, &target, "");
                    let mut eve = Person::joins(&server, Events, "eve", room);
                    eve.hears_at_least("welcome", json!({"room": room, "members": ["Anonymous"]}));
                }
            }
        },
    );
    let nothing = server.status(&to("/ws/?token=dev-token"));
    assert!([400, 404].contains(&nothing), "an empty room: {nothing}");
}

#[test]
fn the_room_of_presence_is_in_the_query() {
    let server = chat(&[]);
    let _pat = Person::at(&server, Presence, "/ws?token=dev-token&username=p+t&client_id=1", "p t");
    let mut eve = Person::joins(&server, Events, "eve", "general");
    eve.hears_at_least("welcome", json!({"members": ["p t"]}));
    let _pat = Person::at(&server, Presence, "/ws?token=dev-token&username=p%2Bt&client_id=2&room=a+b&room=c", "p+t");
    let mut eve = Person::joins(&server, Events, "eve", "a b");
    eve.hears_at_least("welcome", json!({"members": ["p+t"]}));
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

// -------------------------------------------------------------------------------------------------- word for word

fn system(what: &str) -> Value {
    json!({"type": "system", "message": format!("A user {what} the chat")})
}

fn active(what: &str, name: &str, users: &[&str]) -> Value {
    json!({"type": format!("user_{what}"), "username": name, "active_users": users})
}

fn event(event: &str, name: &str) -> Value {
    json!({"event": event, "data": {"username": name}})
}

#[test]
fn rooms_word_for_word() {
    let server = chat(&[]);
    let mut ron = Person::joins(&server, Rooms, "ron", "general");
    ron.hears(json!({"type": "system", "message": "A user joined the chat"}));
    let mut rita = Person::joins(&server, Rooms, "", "general");
    for person in [&mut ron, &mut rita] {
        person.hears(json!({"type": "system", "message": "A user joined the chat"}));
    }
    ron.send(r#"{"username":"ron","text":" hello \u00e9 "}"#);
    rita.send(r#"{"text":"hello, ron"}"#);
    for person in [&mut ron, &mut rita] {
        let both = [person.hear(), person.hear()];
        let expected = [
            json!({"type": "message", "username": "ron", "text": "hello é"}),
            json!({"type": "message", "username": "Anonymous", "text": "hello, ron"}),
        ];
        assert!(both == expected || both[0] == expected[1] && both[1] == expected[0], "{both:?}");
    }
    ron.send(r#"{"type":"typing","username":"ron"}"#);
    rita.hears(json!({"type": "typing", "username": "ron"}));
    rita.send(r#"{"text":"/msg ron between  us"}"#);
    for person in [&mut ron, &mut rita] {
        person.hears(json!({"type": "private", "from": "Anonymous", "to": "ron", "text": "between  us"}));
    }
    // The next message may carry another name.
    ron.send(r#"{"username":"ronald","text":"it is me"}"#);
    for person in [&mut ron, &mut rita] {
        person.hears(json!({"type": "message", "username": "ronald", "text": "it is me"}));
    }
    ron.leaves();
    rita.hears(json!({"type": "system", "message": "A user left the chat"}));
    rita.hears_nothing();
}

#[test]
fn presence_word_for_word() {
    let server = chat(&[]);
    let mut pat = Person::joins(&server, Presence, "pat", "general");
    pat.hears(json!({"type": "user_joined", "username": "pat", "active_users": ["pat"]}));
    let mut pia = Person::joins(&server, Presence, "pia", "general");
    for person in [&mut pat, &mut pia] {
        person.hears(json!({"type": "user_joined", "username": "pia", "active_users": ["pat", "pia"]}));
    }
    // One name for each connection.
    let mut other = Person::at(&server, Presence, &presence_path("pia", "another id", "general"), "pia");
    for person in [&mut pat, &mut pia, &mut other] {
        person.hears(json!({"type": "user_joined", "username": "pia", "active_users": ["pat", "pia", "pia"]}));
    }
    pat.send(" hello \u{e9}\n");
    for person in [&mut pat, &mut pia, &mut other] {
        person.hears(json!({"type": "chat_message", "username": "pat", "text": "hello é", "timestamp": TIME}));
    }
    other.leaves();
    for person in [&mut pat, &mut pia] {
        person.hears(json!({"type": "user_left", "username": "pia", "active_users": ["pat", "pia"]}));
    }
    pat.send("/msg pia between  us");
    for person in [&mut pat, &mut pia] {
        person.hears(json!({
            "type": "private_message", "from": "pat", "to": "pia", "text": "between  us", "timestamp": TIME
        }));
    }
    pia.leaves();
    pat.hears(json!({"type": "user_left", "username": "pia", "active_users": ["pat"]}));
    pat.send("/msg pia still there?");
    pat.hears(json!({"error": "No such user: pia"}));
    pat.hears_nothing();
}

/// What the server says to a message: nothing, an error with this text, or that names this, or in words of its own; or
/// the room is told.
enum Reply {
    Silence,
    Error(&'static str),
    AnError,
    ErrorAbout(&'static str),
    Says(String, String),
}

use Reply::{AnError, Error, ErrorAbout, Says, Silence};

/// Sends what each row says, and hears its reply, the whole of it; and a second person hears what was for everyone.
fn run(dialect: Dialect, rows: &[(&str, String, Reply)]) {
    let server = chat(&[]);
    let mut listener = Person::rooms(&server, "", "general");
    let mut bot = Person::joins(&server, dialect, "bot", "general");
    bot.hear();
    listener.hears(system("joined"));
    let name = |(id, sent, _): &(&str, String, Reply)| format!("{id}: {}", sent.chars().take(80).collect::<String>());
    each_row(rows, name, |(_, sent, reply)| {
        bot.send(sent);
        match reply {
            Silence => {}
            AnError => drop(bot.hears_an_error()),
            Error(text) => assert_eq!(bot.hears_an_error(), *text),
            ErrorAbout(word) => {
                let message = bot.hears_an_error();
                assert!(message.contains(word), "{message:?} names {word:?}");
            }
            Says(name, text) => {
                let told = bot.told(name, text, 0);
                bot.hears(told);
                listener.hears(listener.told(name, text, 0));
            }
        }
        bot.hears_nothing();
        listener.hears_nothing();
    });
}

fn says(name: &str, text: &str) -> Reply {
    Says(name.to_owned(), text.to_owned())
}

#[test]
fn messages_of_rooms() {
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let invalid = || Error("Invalid JSON");
    let carries = |name: &str| json!({"username": name, "text": "x"}).to_string();
    let text = |text: &str| json!({"text": text}).to_string();
    let none = "Anonymous";
    run(
        Rooms,
        &[
            row("J01", "hello", invalid()),
            row("J01", "", invalid()),
            row("J01", "{\"text\":\"x\"", invalid()),
            row("J01", "{\"text\":\"x\"} y", invalid()),
            row("J01", "{\"text\":\"\\ud800\"}", invalid()),
            row("J02", "[]", ErrorAbout("object")),
            row("J02", "[\"ron\",\"x\"]", ErrorAbout("object")),
            row("J02", "1", ErrorAbout("object")),
            row("J02", "null", ErrorAbout("object")),
            row("J02", "\"x\"", ErrorAbout("object")),
            row("J02", "true", ErrorAbout("object")),
            row("J05", "{}", Silence),
            row("J05", r#"{"username":"ron"}"#, Silence),
            row("J05", &text(""), Silence),
            row("J05", &text(" \t\r\n\u{a0}\u{3000}"), Silence),
            row("J05", r#"{"text":1}"#, ErrorAbout("text")),
            row("J05", r#"{"text":null}"#, ErrorAbout("text")),
            row("J05", r#"{"text":["x"]}"#, ErrorAbout("text")),
            row("J05", r#"{"username":1,"text":"x"}"#, ErrorAbout("username")),
            row("J05", r#"{"username":{},"text":"x"}"#, ErrorAbout("username")),
            row("J07", r#"{"text":"a","text":"b"}"#, ErrorAbout("text")),
            row("J07", r#"{"text":"a","te\u0078t":"b"}"#, ErrorAbout("text")),
            row("J07", r#"{"username":"a","username":"b","text":"c"}"#, ErrorAbout("username")),
            row("J09", &text("a\0b\u{1b}[2J"), says(none, "a\0b\u{1b}[2J")),
            row("J11", r#"{"text":"a","mood":null,"data":{"text":1}}"#, says(none, "a")),
            row("N01 32 characters", &carries(&"\u{1f600}".repeat(32)), says(&"\u{1f600}".repeat(32), "x")),
            row("N01 33 characters", &carries(&"x".repeat(33)), AnError),
            row("N02", r#"{"username":" ron\u3000","text":"x"}"#, says("ron", "x")),
            row("N03", &carries("a\u{202e}b"), AnError),
            row("N04", &carries("a\u{200b}b"), AnError),
            row("N04 kept in text", &text("a\u{200b}b\u{202e}"), says(none, "a\u{200b}b\u{202e}")),
            row("a control in a name", &carries("a\0b"), AnError),
            row("N09", &carries("<img src=x>"), says("<img src=x>", "x")),
            row("500 characters", &text(&"é".repeat(500)), says(none, &"é".repeat(500))),
            row("501 characters", &text(&"é".repeat(501)), Error("Message too long")),
            row("a slash that is no command", &text("/me waves"), says(none, "/me waves")),
            row("private, for nobody", &text("/msg bob hi"), Error("No such user: bob")),
            row("an event is no message here", r#"{"event":"message","data":{"text":"x"}}"#, Silence),
        ],
    );
}

#[test]
fn messages_of_presence() {
    let row = |id, sent: &str, reply| (id, sent.to_owned(), reply);
    let same = |id, text: &str| row(id, text, says("bot", text));
    let blanks = " ".repeat(300);
    run(
        Presence,
        &[
            same("a text", "hello"),
            same("no JSON: an event", r#"{"event":"ping"}"#),
            same("no JSON: a message of rooms", r#"{"username":"ron","text":"x"}"#),
            same("no JSON: typing", r#"{"type":"typing","username":"bot"}"#),
            same("no JSON: a string", r#""x""#),
            same("half a JSON", "{"),
            same("null", "null"),
            same("J09", "a\0b\u{1b}[2J"),
            same("N04 kept in text", "a\u{200b}b\u{202e}c\u{feff}d"),
            same("N09", "<img src=x onerror=alert(1)>"),
            same("a slash that is no command", "/me waves"),
            row("J05", "", Silence),
            row("J05", " \t\r\n\u{a0}\u{3000}", Silence),
            row("trimming", "  a  b \n", says("bot", "a  b")),
            same("500 characters", &"é".repeat(500)),
            row(
                "500 characters and blanks",
                &format!("{blanks}{}{blanks}", "x".repeat(500)),
                says("bot", &"x".repeat(500)),
            ),
            row("501 characters", &"é".repeat(501), Error("Message too long")),
            row("60,000 characters", &"x".repeat(60_000), Error("Message too long")),
            row("private, for nobody", "/msg bob hi", Error("No such user: bob")),
        ],
    );
}

/// Nothing that a client sends in a well-formed text message up to the size limit ends its connection; and it comes out
/// on no dialect in a shape that could not be read.
#[test]
fn nothing_in_a_text_ends_a_connection() {
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
        let mut bot = Person::joins(&server, dialect, "bot", "general");
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

/// A binary message is refused, and text that is not UTF-8, on every dialect as on the first.
#[test]
fn what_is_no_text() {
    let server = Server::start(&[]);
    for dialect in DIALECTS {
        for (frame, code) in [(masked(0x82, b"x"), 1003), (masked(0x81, b"\xff"), 1007), (vec![0x81, 0x01, b'x'], 1002)]
        {
            let mut person = Person::joins(&server, dialect, "pat", "general");
            person.hear();
            person.client.send(&frame);
            let (got, reason) = person.frame().close();
            assert!(got == code && !reason.is_empty(), "{dialect:?}: {got} {reason:?}");
        }
    }
}

// ------------------------------------------------------------------------------------------------ across dialects

/// One person on each dialect, in one room: eve on `events`, somebody on `rooms` who says to be ron, pat on `presence`.
struct Three {
    eve: Person,
    ron: Person,
    pat: Person,
}

impl Three {
    fn meet(server: &Server, room: &str) -> Three {
        let mut eve = Person::events(server, "eve", room);
        let mut ron = Person::rooms(server, "ron", room);
        eve.hears(event("joined", "Anonymous"));
        let mut pat = Person::joins(server, Presence, "pat", room);
        eve.hears(event("joined", "pat"));
        ron.hears(system("joined"));
        pat.hears(active("joined", "pat", &["eve", "Anonymous", "pat"]));
        Three { eve, ron, pat }
    }

    fn all(&mut self) -> [&mut Person; 3] {
        [&mut self.eve, &mut self.ron, &mut self.pat]
    }

    /// Each of them hears this message, in their own shape.
    fn are_told(&mut self, name: &str, text: &str, id: u64) {
        for person in self.all() {
            let told = person.told(name, text, id);
            person.hears(told);
        }
    }

    fn see(&mut self, what: &str, name: &str, users: &[&str]) {
        self.eve.hears(event(what, name));
        self.ron.hears(system(what));
        self.pat.hears(active(what, name, users));
    }

    fn hear_nothing(&mut self) {
        self.all().into_iter().for_each(Person::hears_nothing);
    }
}

#[test]
fn joins_and_leaves_in_each_other_s_shapes() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    for (dialect, name) in [(Events, "bea"), (Rooms, "Anonymous"), (Presence, "bob")] {
        for how in [End::Close, End::Eof, End::Reset] {
            let mut guest = Person::joins(&server, dialect, name, "general");
            three.see("joined", name, &["eve", "Anonymous", "pat", name]);
            let heard = guest.hear();
            match dialect {
                Events => assert!(same(&json!(["eve", "Anonymous", "pat"]), &heard["data"]["members"]), "{heard}"),
                Rooms => assert_eq!(heard, system("joined")),
                Presence => {
                    assert!(same(&active("joined", name, &["eve", "Anonymous", "pat", name]), &heard), "{heard}")
                }
            }
            guest.hangs_up(how);
            three.see("left", name, &["eve", "Anonymous", "pat"]);
        }
    }
    three.hear_nothing();
}

#[test]
fn messages_in_each_other_s_shapes() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    let mut stranger = Person::rooms(&server, "", "elsewhere");
    for (i, text) in ["hello", "two\nlines \"quoted\" \\ \0", "\u{1f44b} <b>"].into_iter().enumerate() {
        let id = 3 * i as u64;
        three.eve.says(text);
        three.are_told("eve", text, id + 1);
        three.ron.says(text);
        three.are_told("ron", text, id + 2);
        three.pat.says(text);
        three.are_told("pat", text, id + 3);
    }
    // A nonce is an affair of `events`.
    three.eve.sends("message", json!({"text": "once", "nonce": "n1"}));
    let told = json!({"username": "eve", "text": "once", "id": 10, "time": TIME, "nonce": "n1"});
    three.eve.hears(json!({"event": "message", "data": told}));
    three.ron.hears(json!({"type": "message", "username": "eve", "text": "once"}));
    three.pat.hears(json!({"type": "chat_message", "username": "eve", "text": "once", "timestamp": TIME}));
    three.hear_nothing();
    stranger.hears_nothing();
}

#[test]
fn one_time_for_all() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    three.ron.says("now");
    let eve = three.eve.hear();
    let pat = three.pat.hear();
    assert!(eve["data"]["time"].is_string());
    assert_eq!(eve["data"]["time"], pat["timestamp"]);
}

#[test]
fn typing_in_each_other_s_shapes() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    three.eve.send(r#"{"event":"typing"}"#);
    three.ron.hears(json!({"type": "typing", "username": "eve"}));
    three.ron.send(r#"{"type":"typing","username":"ron"}"#);
    three.eve.hears(event("typing", "ron"));
    // Presence has no such thing, neither to say nor to hear.
    three.hear_nothing();
}

#[test]
fn private_messages_in_each_other_s_shapes() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    three.ron.says("my name is ron");
    three.are_told("ron", "my name is ron", 1);
    let names = ["eve", "ron", "pat"];
    for from in 0..3 {
        for to in 0..3 {
            let text = format!("from {from} to {to}");
            let all = three.all();
            all[from].says(&format!("/msg {} {text}", names[to]));
            for i in if from == to { vec![from] } else { vec![from, to] } {
                let private = all[i].private(names[from], names[to], &text);
                all[i].hears(private);
            }
            three.hear_nothing();
        }
    }
}

#[test]
fn a_move_in_each_other_s_shapes() {
    let server = chat(&[]);
    let mut old = Three::meet(&server, "old");
    let mut new = Three::meet(&server, "new");
    let mut mover = Person::events(&server, "moritz", "old");
    old.see("joined", "moritz", &["eve", "Anonymous", "pat", "moritz"]);
    new.pat.says("before");
    new.are_told("pat", "before", 1);
    mover.sends("switch_room", json!({"room": "new"}));
    old.see("left", "moritz", &["eve", "Anonymous", "pat"]);
    let switched = mover.hears_at_least("switched", json!({"room": "new", "members": ["eve", "Anonymous", "pat"]}));
    assert_eq!(switched["history"][0]["text"], "before");
    new.see("joined", "moritz", &["eve", "Anonymous", "pat", "moritz"]);
    mover.says("after");
    new.are_told("moritz", "after", 2);
    mover.hears(mover.told("moritz", "after", 2));
    old.hear_nothing();
    new.hear_nothing();
}

/// A newcomer is shown what was said before, in the shape of a message of its own dialect, after its join.
#[test]
fn history_in_each_other_s_shapes() {
    let server = chat(&["--history", "3"]);
    let mut three = Three::meet(&server, "general");
    three.eve.says("gone already");
    three.are_told("eve", "gone already", 1);
    three.eve.sends("message", json!({"text": "one", "nonce": "n1"}));
    let one = three.eve.hears_at_least("message", json!({}));
    three.ron.says("two");
    let two = three.eve.hears_at_least("message", json!({"username": "ron"}));
    three.pat.says("three");
    let last = three.eve.hears_at_least("message", json!({"username": "pat"}));
    three.pat.says("/msg eve a secret");
    three.eve.hears(three.eve.private("pat", "eve", "a secret"));

    let told = [one, two, last];
    let mut guest = Person::joins(&server, Events, "bea", "general");
    guest.hears_at_least("welcome", json!({"history": told.clone(), "last_id": 4, "resumed": false}));
    guest.hears_nothing();
    let mut guest = Person::joins(&server, Rooms, "", "general");
    guest.hears(system("joined"));
    for message in &told {
        guest.hears(json!({"type": "message", "username": message["username"], "text": message["text"]}));
    }
    guest.hears_nothing();
    let mut guest = Person::joins(&server, Presence, "bob", "general");
    guest.hears(active("joined", "bob", &["eve", "Anonymous", "pat", "bea", "Anonymous", "bob"]));
    for message in &told {
        let [name, text, time] = ["username", "text", "time"].map(|field| &message[field]);
        let heard = guest.hear();
        assert_eq!(heard, json!({"type": "chat_message", "username": name, "text": text, "timestamp": time}));
    }
    guest.hears_nothing();
}

// -------------------------------------------------------------------------------------------------------- names

/// On `rooms` a name is what a message carries; who has come is `Anonymous`, for as long as it stays.
#[test]
fn a_name_of_rooms_is_of_its_messages() {
    let server = chat(&[]);
    let mut eve = Person::events(&server, "eve", "general");
    let mut ron = Person::rooms(&server, "ron", "general");
    eve.hears(event("joined", "Anonymous"));
    eve.says("/msg Anonymous psst");
    eve.hears(eve.private("eve", "Anonymous", "psst"));
    ron.hears(ron.private("eve", "Anonymous", "psst"));
    ron.says("hello");
    eve.hears(eve.told("ron", "hello", 1));
    ron.hears(ron.told("ron", "hello", 1));
    let mut pat = Person::joins(&server, Presence, "pat", "general");
    pat.hears(active("joined", "pat", &["eve", "Anonymous", "pat"]));
    pat.hears(pat.told("ron", "hello", 1));
    eve.hears(event("joined", "pat"));
    ron.hears(system("joined"));
    // A private message finds it under the last name it used, and under no other.
    pat.says("/msg Anonymous psst");
    pat.hears(pat.error("No such user: Anonymous"));
    pat.says("/msg ron psst");
    pat.hears(pat.private("pat", "ron", "psst"));
    ron.hears(ron.private("pat", "ron", "psst"));
    ron.name = "ronald".to_owned();
    ron.says("hello again");
    for person in [&mut eve, &mut ron, &mut pat] {
        let told = person.told("ronald", "hello again", 2);
        person.hears(told);
    }
    pat.says("/msg ron psst");
    pat.hears(pat.error("No such user: ron"));
    pat.says("/msg ronald psst");
    pat.hears(pat.private("pat", "ronald", "psst"));
    ron.hears(ron.private("pat", "ronald", "psst"));
    ron.leaves();
    eve.hears(event("left", "Anonymous"));
    pat.hears(active("left", "Anonymous", &["eve", "pat"]));
    pat.says("/msg ronald psst");
    pat.hears(pat.error("No such user: ronald"));
    eve.hears_nothing();
}

/// Who brings a token with a name of its own has that name on every dialect, asked or not.
#[test]
fn a_token_s_own_name() {
    let file = token_file("own-name", "secret-any\nsecret-ann ann\n");
    let server = chat(&["--tokens", file.to_str().unwrap()]);
    let mut eve = Person::at(&server, Events, "/?token=secret-any&username=eve", "eve");
    eve.hears_at_least("welcome", json!({}));
    let mut ann = Person::at(&server, Rooms, "/ws/general?token=secret-ann", "");
    ann.hears(system("joined"));
    eve.hears(event("joined", "ann"));
    ann.send(r#"{"text":"no name"}"#);
    ann.send(r#"{"username":" ann ","text":"my name"}"#);
    for (id, text) in [(1, "no name"), (2, "my name")] {
        eve.hears(eve.told("ann", text, id));
        ann.hears(ann.told("ann", text, id));
    }
    for name in ["bob", "Ann", "Anonymous"] {
        ann.send(&json!({"username": name, "text": "not my name"}).to_string());
        ann.hears_an_error();
    }
    eve.says("/msg ann psst");
    eve.hears(eve.private("eve", "ann", "psst"));
    ann.hears(ann.private("eve", "ann", "psst"));
    ann.leaves();
    eve.hears(event("left", "ann"));

    let mut ann = Person::at(&server, Presence, "/ws?token=secret-ann&client_id=1", "ann");
    ann.hears(active("joined", "ann", &["eve", "ann"]));
    ann.hears(ann.told("ann", "no name", 1));
    ann.hears(ann.told("ann", "my name", 2));
    eve.hears(event("joined", "ann"));
    assert_eq!(server.status(&to("/ws?token=secret-ann&client_id=2&username=bob")), 403);
    assert_eq!(server.status(&to("/ws?token=secret-ann&client_id=2&username=ann")), 101);
    assert_eq!(server.status(&to("/ws?token=secret-any&client_id=2")), 400);
}

/// With `--unique-names`, a name that is spoken under is in use, and one that is in use may not be spoken under.
#[test]
fn unique_names_of_messages() {
    let server = chat(&["--unique-names"]);
    let mut eve = Person::events(&server, "eve", "general");
    let mut ron = Person::rooms(&server, "ron", "general");
    let mut rita = Person::rooms(&server, "ron", "general");
    ron.hears(system("joined"));
    for _ in 0..2 {
        eve.hears(event("joined", "Anonymous"));
    }
    ron.says("hello");
    for person in [&mut eve, &mut ron, &mut rita] {
        let told = person.told("ron", "hello", 1);
        person.hears(told);
    }
    // Neither on the same dialect, nor somewhere else; nor in another letter case; and nobody else hears of it.
    rita.says("me too");
    rita.hears_an_error();
    rita.name = "EVE".to_owned();
    rita.says("me too");
    rita.hears_an_error();
    for dialect in [Events, Presence] {
        Person::joins(&server, dialect, "Ron", "elsewhere").sees_the_close(1008, "username already in use");
    }
    // The one who has it may go on, and who takes another gives it up.
    ron.says("still me");
    ron.name = "ronald".to_owned();
    ron.says("another");
    rita.name = "ron".to_owned();
    for person in [&mut eve, &mut ron, &mut rita] {
        for (name, text, id) in [("ron", "still me", 2), ("ronald", "another", 3)] {
            let told = person.told(name, text, id);
            person.hears(told);
        }
    }
    rita.says("at last");
    for person in [&mut eve, &mut ron, &mut rita] {
        let told = person.told("ron", "at last", 4);
        person.hears(told);
    }
    rita.leaves();
    eve.hears(event("left", "Anonymous"));
    let mut other = Person::events(&server, "ron", "general");
    eve.hears(event("joined", "ron"));
    for person in [&mut eve, &mut other] {
        person.hears_nothing();
    }
}

/// Two who bring no name to `rooms` are both `Anonymous`, whatever else is unique.
#[test]
fn the_default_name_of_messages_is_never_in_use() {
    let server = chat(&["--unique-names"]);
    let mut ron = Person::rooms(&server, "", "general");
    let mut rita = Person::rooms(&server, "", "general");
    ron.hears(system("joined"));
    for (i, speaker) in [0, 1, 0].into_iter().enumerate() {
        let text = format!("text {i}");
        let both = [&mut ron, &mut rita];
        both[speaker].says(&text);
        for person in both {
            let told = person.told("Anonymous", &text, 0);
            person.hears(told);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ client_id

/// A second connection with the same `client_id` takes the place of the first, wherever on the server that was.
#[test]
fn a_client_that_comes_twice() {
    let server = chat(&[]);
    let mut three = Three::meet(&server, "general");
    let mut abroad = Three::meet(&server, "abroad");
    let mut first = Person::at(&server, Presence, &presence_path("peter", "the id", "general"), "peter");
    three.see("joined", "peter", &["eve", "Anonymous", "pat", "peter"]);

    // In the same room, under another name.
    let mut second = Person::at(&server, Presence, &presence_path("petra", "the id", "general"), "petra");
    three.see("left", "peter", &["eve", "Anonymous", "pat"]);
    three.see("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    second.hears(active("joined", "petra", &["eve", "Anonymous", "pat", "petra"]));
    first.hears(active("joined", "peter", &["eve", "Anonymous", "pat", "peter"]));
    first.sees_the_close(1008, "replaced by a newer connection");

    // In another room.
    let mut third = Person::at(&server, Presence, &presence_path("petra", "the id", "abroad"), "petra");
    three.see("left", "petra", &["eve", "Anonymous", "pat"]);
    abroad.see("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    third.hears(active("joined", "petra", &["eve", "Anonymous", "pat", "petra"]));
    second.sees_the_close(1008, "replaced by a newer connection");

    // Another id is somebody else, the letter case included; and one that has gone is nobody's.
    let mut other = Person::at(&server, Presence, &presence_path("petra", "The id", "abroad"), "petra");
    abroad.see("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]);
    other.hears(active("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]));
    third.hears(active("joined", "petra", &["eve", "Anonymous", "pat", "petra", "petra"]));
    third.leaves();
    abroad.see("left", "petra", &["eve", "Anonymous", "pat", "petra"]);
    let _fourth = Person::at(&server, Presence, &presence_path("petra", "the id", "general"), "petra");
    three.see("joined", "petra", &["eve", "Anonymous", "pat", "petra"]);
    other.hears(active("left", "petra", &["eve", "Anonymous", "pat", "petra"]));
    other.hears_nothing();
    three.hear_nothing();
    abroad.hear_nothing();
}

/// Who is let in by its `client_id` takes its name along, however unique names are.
#[test]
fn a_client_id_is_judged_before_unique_names() {
    let server = chat(&["--unique-names"]);
    let mut eve = Person::events(&server, "eve", "general");
    let mut first = Person::at(&server, Presence, &presence_path("pat", "1", "general"), "pat");
    first.hears(active("joined", "pat", &["eve", "pat"]));
    eve.hears(event("joined", "pat"));
    let mut second = Person::at(&server, Presence, &presence_path("PAT", "1", "general"), "PAT");
    second.hears(active("joined", "PAT", &["eve", "PAT"]));
    first.sees_the_close(1008, "replaced by a newer connection");
    eve.hears(event("left", "pat"));
    eve.hears(event("joined", "PAT"));
    let third = Person::at(&server, Presence, &presence_path("pat", "2", "general"), "pat");
    third.sees_the_close(1008, "username already in use");
    eve.hears_nothing();
    second.hears_nothing();
}

/// Paths as other people's pages write them work as they stand where no token is asked for.
#[test]
fn open_to_pages_that_bring_no_token() {
    let server = Server::start(&["--open"]);
    let mut eve = Person::at(&server, Events, &events_path("eve", "lobby"), "eve");
    eve.hears_at_least("welcome", json!({"room": "lobby"}));
    let mut ron = Person::at(&server, Rooms, "/ws/lobby", "ron");
    ron.hears(system("joined"));
    eve.hears(event("joined", "Anonymous"));
    let mut pat = Person::at(&server, Presence, "/ws?username=pat&client_id=abc123&room=lobby", "pat");
    pat.hears(active("joined", "pat", &["eve", "Anonymous", "pat"]));
    eve.hears(event("joined", "pat"));
    ron.hears(system("joined"));
    ron.says("hello");
    for person in [&mut eve, &mut ron, &mut pat] {
        let told = person.told("ron", "hello", 1);
        person.hears(told);
    }
    let ron = Person::at(&server, Rooms, &rooms_path("lobby"), "a token that nobody asked for");
    ron.leaves();
    assert_eq!(server.status(&to(format!("/ws?username={}", encode("pat")))), 400, "a client_id is still required");
    assert_eq!(server.status(&to(path(Presence, "pat", "lobby"))), 101);
}
