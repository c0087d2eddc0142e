//! Tests private messages, typing events, and `--unique-names` on a running server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::http::handshake;
use support::table::each_row;
use support::users::{ANY_TIME, DIALECTS, Dialect, User, chat, encode, events_path, path, presence_path};
use support::{Server, masked, token_file, wait_until};

use Dialect::{Events, Presence, Rooms};

const IN_USE: &str = "username already in use";
const REPLACED: &str = "replaced by a newer connection";

/// Connects one user per name, with the `events` dialect. Each user joins a separate room, so no user receives another
/// user's joins or room messages.
fn users<const N: usize>(server: &Server, names: [&str; N]) -> [User; N] {
    let mut room = 0;
    names.map(|name| {
        room += 1;
        User::events(server, name, &format!("room {room}"))
    })
}

// ------------------------------------------------------------------------------------------------ private messages

/// Only the sender and the recipient receive a private message, even if they are in different rooms.
#[test]
fn only_sender_and_recipient_receive_a_private_message() {
    let server = chat(&[]);
    let mut ann = User::events(&server, "ann", "general");
    let mut bob = User::events(&server, "bob", "elsewhere");
    let mut others = DIALECTS.map(|dialect| User::join(&server, dialect, "carol", "general"));
    others.iter_mut().for_each(|other| drop(other.receive()));
    (0..3).for_each(|_| drop(ann.expect_event("joined", json!({}))));
    others[0].expect_event("joined", json!({}));
    others[0].expect_event("joined", json!({}));
    others[1].receive();

    ann.send_message("/msg bob psst");
    bob.send_event("private", json!({"to": "ann", "text": "  what? \n"}));
    // Both ann and bob receive both private messages, in either order.
    for user in [&mut ann, &mut bob] {
        let mut received = [user.receive(), user.receive()];
        received.sort_by_key(|event| event["data"]["from"].to_string());
        for (event, [from, to, text]) in received.iter().zip([["ann", "bob", "psst"], ["bob", "ann", "what?"]]) {
            assert!(support::users::same(&user.private_message(from, to, text), event), "{event}");
        }
        user.expect_nothing();
    }
    others.iter_mut().for_each(User::expect_nothing);
    // A private message has no id and is not part of the history.
    ann.send_message("to all");
    ann.expect_message(ann.room_message("ann", "to all", 1));
    let mut late = User::join(&server, Events, "bob", "general");
    let welcome = late.expect_event("welcome", json!({"last_id": 1}));
    assert_eq!(welcome["history"].as_array().unwrap().len(), 1, "{welcome}");
}

/// The sender and every connection with the recipient's name receive a private message once, even if the sender and
/// the recipient have the same name.
#[test]
fn each_connection_with_a_name_receives_a_private_message_once() {
    let server = chat(&[]);
    let [mut ann, mut other_ann, mut bob, mut other_bob] = users(&server, ["ann", "ann", "bob", "bob"]);
    let mut pat = User::presence(&server, "bob", "a room of presence");
    ann.send_message("/msg bob to all of you");
    for user in [&mut ann, &mut bob, &mut other_bob, &mut pat] {
        let private = user.private_message("ann", "bob", "to all of you");
        user.expect_message(private);
    }
    ann.send_message("/msg ann a note");
    for user in [&mut ann, &mut other_ann] {
        let private = user.private_message("ann", "ann", "a note");
        user.expect_message(private);
    }
    for user in [&mut ann, &mut other_ann, &mut bob, &mut other_bob, &mut pat] {
        user.expect_nothing();
    }
    // The client `pat` has the username bob, like two other clients. After those two leave, `pat` sends a private
    // message to bob. `pat` is then both the sender and the only recipient, and must receive the message only once.
    bob.leave();
    other_bob.leave();
    pat.send_message("/msg bob a note");
    pat.expect_message(pat.private_message("bob", "bob", "a note"));
    pat.expect_nothing();
}

#[test]
fn a_private_message_with_a_nonce() {
    let server = chat(&[]);
    let [mut ann, mut bob] = users(&server, ["ann", "bob"]);
    for (event, data) in [
        ("private", json!({"to": "bob", "text": "psst", "nonce": "n1"})),
        ("message", json!({"text": "/msg bob psst", "nonce": "n1"})),
    ] {
        ann.send_event(event, data);
        let data = json!({"from": "ann", "to": "bob", "text": "psst", "time": ANY_TIME, "nonce": "n1"});
        for user in [&mut ann, &mut bob] {
            user.expect_message(json!({"event": "private", "data": data}));
            user.expect_nothing();
        }
    }
    // The history does not contain the private message, so a room message may use the same nonce.
    ann.send_event("message", json!({"text": "hello", "nonce": "n1"}));
    ann.expect_event("message", json!({"text": "hello", "id": 1, "nonce": "n1"}));
}

enum Reply {
    /// A private message: the recipient's name and the text.
    Private(&'static str, &'static str),
    NoSuchUser(&'static str),
    NothingToSend,
    /// A message to the room, with this text.
    Text(&'static str),
    Silence,
}

use Reply::{NoSuchUser, NothingToSend, Private, Silence, Text};

/// Test messages and the expected replies. In `/msg NAME TEXT`, NAME is one word, or a name in double quotes.
const PRIVATE_MESSAGES: &[(&str, Reply)] = &[
    ("/msg ann hi", Private("ann", "hi")),
    ("/msg ann lee hi", Private("ann", "lee hi")),
    ("/msg \"ann\" hi", Private("ann", "hi")),
    ("/msg \"ann lee\" hi", Private("ann lee", "hi")),
    ("/msg \"ann lee ray\" hi", Private("ann lee ray", "hi")),
    ("/msg \"ann lee rays\" hi", NoSuchUser("ann lee rays")),
    ("/msg \" ann lee \" hi", Private("ann lee", "hi")),
    ("/msg \"ann lee\"hi", Private("ann lee", "hi")),
    ("/msg \"ann lee\" \"hi\"", Private("ann lee", "\"hi\"")),
    ("/msg ann \"lee\" hi", Private("ann", "\"lee\" hi")),
    ("/msg ann ann lee hi", Private("ann", "ann lee hi")),
    ("/msg \"bob the\" hi", Private("bob the", "hi")),
    ("/msg bob the hi", NoSuchUser("bob")),
    ("/msg \"bob\" the hi", NoSuchUser("bob")),
    ("/msg \"ann hi", NoSuchUser("\"ann")),
    ("/msg \"ann lee hi", NoSuchUser("\"ann")),
    ("/msg ann\" hi", NoSuchUser("ann\"")),
    ("/msg \"\" hi", NoSuchUser("")),
    ("/msg annabel hi", NoSuchUser("annabel")),
    ("/msg an hi", NoSuchUser("an")),
    ("/msg lee hi", NoSuchUser("lee")),
    ("/msg no body hi", NoSuchUser("no")),
    ("/msg <i> hi", NoSuchUser("<i>")),
    ("/msg <b> hi", Private("<b>", "hi")),
    ("/msg \u{1f469}\u{1f3fd} hi", Private("\u{1f469}\u{1f3fd}", "hi")),
    ("/msg /msg hi", Private("/msg", "hi")),
    ("  /msg ann   two  words \n", Private("ann", "two  words")),
    ("/msg   \"ann lee\"   two  words", Private("ann lee", "two  words")),
    ("/msg\tann\thi", Private("ann", "hi")),
    ("/msg ann /msg bob hi", Private("ann", "/msg bob hi")),
    ("/me waves", Text("/me waves")),
    ("/message ann hi", Text("/message ann hi")),
    ("/", Text("/")),
    ("//msg ann hi", Text("//msg ann hi")),
    ("a /msg ann hi", Text("a /msg ann hi")),
    ("/msg", NothingToSend),
    ("/msg ann", NothingToSend),
    ("/msg \"ann lee\" ", NothingToSend),
    ("", Silence),
];

#[test]
fn names_in_a_private_message() {
    let server = chat(&[]);
    let names = ["ann", "ann lee", "ann lee ray", "bob the", "\u{1f469}\u{1f3fd}", "<b>", "/msg"];
    let mut present = users(&server, names);
    let mut bot = User::events(&server, "bot", "general");
    let mut id = 0;
    each_row(
        PRIVATE_MESSAGES,
        |row| row.0.to_owned(),
        |(sent, reply)| {
            bot.send_message(sent);
            match reply {
                Private(to, text) => {
                    bot.expect_message(bot.private_message("bot", to, text));
                    let at = names.iter().position(|name| name == to).unwrap();
                    let private = present[at].private_message("bot", to, text);
                    present[at].expect_message(private);
                }
                NoSuchUser(name) => drop(bot.expect_message(bot.error(&format!("No such user: {name}")))),
                Text(text) => {
                    id += 1;
                    bot.expect_message(bot.room_message("bot", text, id));
                }
                NothingToSend => drop(bot.expect_message(bot.error("Nothing to send"))),
                Silence => {}
            }
            bot.expect_nothing();
            present.iter_mut().for_each(User::expect_nothing);
        },
    );
}

#[test]
fn only_connected_users_are_reached() {
    let server = chat(&[]);
    let [mut ann, long] = users(&server, ["ann", "ann lee"]);
    let mut bot = User::events(&server, "bot", "general");
    long.leave();
    bot.send_message("/msg \"ann lee\" hi");
    bot.expect_message(bot.error("No such user: ann lee"));
    bot.send_message("/msg ann hi");
    bot.expect_message(bot.private_message("bot", "ann", "hi"));
    ann.expect_message(ann.private_message("bot", "ann", "hi"));
    ann.leave();
    bot.send_message("/msg ann hi");
    bot.expect_message(bot.error("No such user: ann"));
    // In a `private` event, `to` is always the whole name, without quotes.
    let [mut ann, mut long] = users(&server, ["ann", "ann lee"]);
    for (to, user) in [("ann", &mut ann), ("ann lee", &mut long)] {
        bot.send_event("private", json!({"to": to, "text": "lee hi"}));
        bot.expect_message(bot.private_message("bot", to, "lee hi"));
        user.expect_message(user.private_message("bot", to, "lee hi"));
    }
    bot.send_event("private", json!({"to": "ann lee ray", "text": "hi"}));
    bot.expect_message(bot.error("No such user: ann lee ray"));
    // In a `private` event, a slash at the start of `text` is ordinary text, not the start of a command.
    bot.send_event("private", json!({"to": "ann", "text": "/msg bot hi"}));
    bot.expect_message(bot.private_message("bot", "ann", "/msg bot hi"));
}

/// In every dialect, `--max-text` limits only TEXT, not the whole `/msg NAME TEXT`.
#[test]
fn the_length_of_a_private_message() {
    let server = chat(&["--max-text", "10"]);
    let name = "a name of 32 characters, no less";
    assert_eq!(name.len(), 32);
    let mut long = User::events(&server, name, "elsewhere");
    for dialect in DIALECTS {
        let mut bot = User::join(&server, dialect, "bot", "general");
        bot.receive();
        for (text, fits) in [("0123456789", true), ("éééééééééé", true), ("0123456789x", false), ("01234 6789x", false)]
        {
            bot.send_message(&format!("/msg \"{name}\" {text}"));
            if fits {
                bot.expect_message(bot.private_message("bot", name, text));
                long.expect_message(long.private_message("bot", name, text));
            } else {
                bot.expect_message(bot.error("Message too long"));
            }
            if dialect == Events {
                bot.send_event("private", json!({"to": name, "text": format!("  {text}  ")}));
                if fits {
                    bot.expect_message(bot.private_message("bot", name, text));
                    long.expect_message(long.private_message("bot", name, text));
                } else {
                    bot.expect_message(bot.error("Message too long"));
                }
            }
            bot.expect_nothing();
        }
        bot.leave();
    }
    long.expect_nothing();
}

#[test]
fn private_events_with_odd_data() {
    let server = chat(&[]);
    let mut bot = User::events(&server, "bot", "general");
    let about = [
        (r#"{"to":1,"text":"x"}"#, "to"),
        (r#"{"to":null,"text":"x"}"#, "to"),
        (r#"{"to":["bot"],"text":"x"}"#, "to"),
        (r#"{"to":"bot","text":1}"#, "text"),
        (r#"{"to":"bot","text":null}"#, "text"),
        (r#"{"to":"bot","to":"ann","text":"x"}"#, "to"),
        (r#"{"to":"bot","text":"x","text":"y"}"#, "text"),
        ("null", "data"),
        ("[]", "data"),
        ("\"bot\"", "data"),
    ];
    each_row(
        &about,
        |row| row.0.to_owned(),
        |(data, word)| {
            bot.send(&format!(r#"{{"event":"private","data":{data}}}"#));
            let message = bot.expect_error();
            assert!(message.contains(word), "{message:?} contains {word:?}");
        },
    );
    for data in [r#"{"to":"bot"}"#, r#"{"to":"bot","text":""}"#, r#"{"to":"bot","text":" \t "}"#] {
        bot.send(&format!(r#"{{"event":"private","data":{data}}}"#));
        assert_eq!(bot.expect_error(), "Nothing to send");
    }
}

/// With `-v`, the log shows the first words of a room message, but never the text of a private message.
#[test]
fn the_log_contains_no_private_text() {
    let server = chat(&["-v"]);
    let mut bob = User::events(&server, "bob", "general");
    for dialect in DIALECTS {
        let mut ann = User::join(&server, dialect, "ann", &format!("{dialect:?}"));
        ann.receive();
        ann.send_message("/msg bob the treasure is buried");
        ann.expect_message(ann.private_message("ann", "bob", "the treasure is buried"));
        bob.expect_message(bob.private_message("ann", "bob", "the treasure is buried"));
        ann.send_message("/msg carol the treasure is buried");
        ann.expect_message(ann.error("No such user: carol"));
        ann.send_message("in the open");
        ann.expect_message(ann.room_message("ann", "in the open", 1));
        ann.leave();
        server.wait_for_log("in the open");
        assert!(!server.log().contains("treasure"), "{dialect:?}: {}", server.log());
        assert!(!server.log().contains("dev-token"), "{dialect:?}: {}", server.log());
    }
}

// ---------------------------------------------------------------------------------------------------------- typing

fn typing(dialect: Dialect, name: &str) -> Value {
    match dialect {
        Rooms => json!({"type": "typing", "username": name}),
        _ => json!({"event": "typing", "data": {"username": name}}),
    }
}

/// Returns the typing event that a client of this dialect sends. Only the `rooms` dialect puts a name into the event.
fn typing_command(dialect: Dialect, name: &str) -> String {
    if dialect == Rooms { typing(Rooms, name).to_string() } else { r#"{"event":"typing"}"#.to_owned() }
}

/// Only the other members of the sender's room receive a typing event.
#[test]
fn only_other_members_receive_typing() {
    let server = chat(&[]);
    let [mut eve, mut ann] = ["eve", "ann"].map(|name| User::events(&server, name, "general"));
    let mut outsider = User::events(&server, "eve", "elsewhere");
    eve.expect_event("joined", json!({}));
    eve.send(r#"{"event":"typing"}"#);
    ann.expect_message(typing(Events, "eve"));
    // The limit of one typing event per second applies to each sender separately.
    ann.send(r#"{"event":"typing","data":{"username":"another","text":1}}"#);
    eve.expect_message(typing(Events, "ann"));
    outsider.send(r#"{"event":"typing","data":{}}"#);
    for user in [&mut eve, &mut ann, &mut outsider] {
        user.expect_nothing();
    }
    // Typing events are not part of the history.
    let mut late = User::join(&server, Events, "late", "general");
    late.expect_event("welcome", json!({"last_id": 0, "history": []}));
    // If a typing event has `data`, it must be an object.
    late.send(r#"{"event":"typing","data":null}"#);
    assert!(late.expect_error().contains("data"));
}

/// The server forwards at most one typing event per second from each client, and silently drops the rest.
#[test]
fn continuous_typing() {
    for dialect in [Events, Rooms] {
        let server = chat(&[]);
        let mut eve = User::events(&server, "eve", "general");
        let mut bot = User::join(&server, dialect, "bot", "general");
        bot.receive();
        eve.expect_event("joined", json!({}));
        let start = Instant::now();
        let frame = masked(0x81, typing_command(dialect, "bot").as_bytes());
        bot.client.send(&frame.repeat(200));
        bot.send_message("done");
        bot.expect_message(bot.room_message("bot", "done", 1));
        let mut count = 0;
        loop {
            let received = eve.receive();
            if received == typing(Events, "bot") {
                count += 1;
                continue;
            }
            assert!(support::users::same(&eve.room_message("bot", "done", 1), &received), "{received}");
            break;
        }
        let most = 1 + start.elapsed().as_secs();
        assert!((1..=most).contains(&count), "{count} of 200 typing events were forwarded, at most {most} may be");
        bot.expect_nothing();
        // One second after the first typing event, the server forwards another one.
        wait_until("a typing event is forwarded again", || {
            bot.client.send(&frame);
            bot.send_message("and?");
            bot.receive();
            eve.receive() == typing(Events, "bot") && eve.receive()["event"] == "message"
        });
        let seconds = start.elapsed();
        assert!(seconds.as_millis() >= 1000, "forwarded too early, after {seconds:?}");
    }
}

/// If a client sends a typing command under a name that its token does not allow, the server replies with an error, but
/// at most once per second.
#[test]
fn typing_under_a_forbidden_name() {
    let file = token_file("typing", "secret-any\nsecret-ann ann\n");
    let server = chat(&["--tokens", file.to_str().unwrap()]);
    let mut eve = User::at(&server, Events, "/?token=secret-any&username=eve", "eve");
    eve.expect_event("welcome", json!({}));
    let mut ann = User::at(&server, Rooms, "/ws/general?token=secret-ann", "");
    ann.receive();
    eve.expect_event("joined", json!({"username": "ann"}));
    let start = Instant::now();
    ann.client.send(&masked(0x81, typing_command(Rooms, "bob").as_bytes()).repeat(200));
    ann.send_message("done");
    let mut errors = 0;
    let last = loop {
        let received = ann.receive();
        if received["type"] != "error" {
            break received;
        }
        errors += 1;
    };
    assert_eq!(last, ann.room_message("ann", "done", 1));
    let most = 1 + start.elapsed().as_secs();
    assert!((1..=most).contains(&errors), "{errors} errors, at most {most} are allowed");
    eve.expect_message(eve.room_message("ann", "done", 1));
}

#[test]
fn typing_does_not_count_toward_the_rate_limit() {
    let server = Server::start(&["--rate-limit", "0.1"]);
    for dialect in [Events, Rooms] {
        let mut bot = User::join(&server, dialect, "bot", &format!("{dialect:?}"));
        let first = bot.receive();
        bot.client.send(&masked(0x81, typing_command(dialect, "bot").as_bytes()).repeat(100));
        bot.send_message("done");
        let expected = bot.receive();
        assert!(expected.to_string().contains("\"done\""), "after {first}: {expected}");
        bot.expect_nothing();
        bot.leave();
    }
}

// ---------------------------------------------------------------------------------------------------- unique names

/// Asserts that the server rejects a join because the name is in use. The server completes the handshake first, so
/// that a browser can read the close reason.
fn check_join_is_rejected(server: &Server, dialect: Dialect, name: &str, room: &str) {
    User::join(server, dialect, name, room).expect_close(1008, IN_USE);
}

/// A second client with the same name receives only a Close, and the other clients receive no `joined`.
#[test]
fn a_unique_name_has_one_client() {
    let server = chat(&["--unique-names"]);
    let mut witness = User::events(&server, "witness", "general");
    let mut alice = User::events(&server, "Alice", "general");
    witness.expect_event("joined", json!({"username": "Alice"}));
    for dialect in [Events, Presence] {
        for name in ["Alice", "alice", "ALICE", " alice", "alice\u{3000}", "\u{a0}aLICE "] {
            for room in ["general", "elsewhere"] {
                check_join_is_rejected(&server, dialect, name, room);
            }
        }
    }
    for user in [&mut witness, &mut alice] {
        user.expect_nothing();
    }
    // Names that only look alike are different names: the first name below starts with a Cyrillic letter.
    for name in ["\u{410}lice", "alice2", "al ice", "alic\u{e9}"] {
        User::events(&server, name, "elsewhere").leave();
    }
    // Alice keeps her name when she switches rooms, and frees it when she leaves.
    alice.send_event("switch_room", json!({"room": "elsewhere"}));
    alice.expect_event("switched", json!({"members": []}));
    witness.expect_event("left", json!({"username": "Alice"}));
    check_join_is_rejected(&server, Events, "alice", "general");
    alice.leave();
    let mut alice = User::presence(&server, "alice", "general");
    witness.expect_event("joined", json!({"username": "alice"}));
    check_join_is_rejected(&server, Events, "Alice", "general");
    alice.expect_nothing();
    witness.expect_nothing();
}

/// `--unique-names` compares usernames after case folding and NFKC, not just lowercasing: σας equals σασ, for example.
#[test]
fn names_are_case_folded() {
    let server = chat(&["--unique-names"]);
    let rows = [
        ("äöü", "ÄÖÜ"),
        ("\u{436}", "\u{416}"),
        ("σας", "ΣΑΣ"),
        ("σασ", "σας"),
        ("\u{1e9e}", "ß"),
        ("\u{212a}elvin", "kelvin"),
        ("\u{ff21}", "\u{ff41}"),
    ];
    each_row(
        &rows,
        |row| format!("{} {}", row.0, row.1),
        |(first, second)| {
            let first = User::events(&server, first, "general");
            check_join_is_rejected(&server, Events, second, "elsewhere");
            first.leave();
            let second = User::events(&server, second, "general");
            second.leave();
        },
    );
}

/// With `--unique-names`, several clients may still have the default name, Anonymous.
#[test]
fn the_default_names_may_be_shared() {
    let server = chat(&["--unique-names"]);
    let mut users = Vec::new();
    for _ in 0..2 {
        for query in ["", "&username=anonymous", "&username=Anonymous"] {
            let mut user = User::at(&server, Events, &format!("/?token=dev-token{query}"), "");
            user.expect_event("welcome", json!({}));
            users.push(user);
        }
        users.push(User::rooms(&server, "", "elsewhere"));
        for name in ["anonymous", "Anonymous"] {
            let id = users.len().to_string();
            let mut user = User::at(&server, Presence, &presence_path(name, &id, "a third"), name);
            assert_eq!(user.receive()["type"], "user_joined");
            users.push(user);
        }
    }
}

/// Without `--unique-names`, several clients may have the same name.
#[test]
fn names_may_be_shared() {
    let server = chat(&[]);
    let mut alice = User::events(&server, "alice", "general");
    let mut others = Vec::new();
    for (count, dialect) in DIALECTS.into_iter().enumerate() {
        let other = User::join(&server, dialect, "alice", "general");
        let name = if dialect == Rooms { "Anonymous" } else { "alice" };
        alice.expect_event("joined", json!({"username": name}));
        others.push(other);
        let mut late = User::join(&server, Events, "alice", "general");
        let members = late.expect_event("welcome", json!({}))["members"].clone();
        assert_eq!(members.as_array().unwrap().len(), count + 2, "{members}");
        alice.expect_event("joined", json!({"username": "alice"}));
        late.leave();
        alice.expect_event("left", json!({"username": "alice"}));
    }
}

/// With `--unique-names`, a client that presents the session of an older connection replaces that connection.
#[test]
fn a_unique_name_that_resumes() {
    let server = chat(&["--unique-names"]);
    let mut witness = User::events(&server, "witness", "general");
    let mut alice = User::join(&server, Events, "alice", "general");
    let welcome = alice.expect_event("welcome", json!({"members": ["witness"]}));
    witness.expect_event("joined", json!({"username": "alice"}));
    witness.send_message("hello");
    witness.expect_message(witness.room_message("witness", "hello", 1));
    let epoch = encode(welcome["epoch"].as_str().unwrap());

    let by = |token: &str, name: &str, resume: &str| {
        let path = events_path(name, "general").replace("dev-token", token) + resume;
        User::at(&server, Events, &path, name)
    };
    let session = welcome["session"].as_str().unwrap().to_owned();
    let other = "f".repeat(32);
    let resume = format!("&epoch={epoch}&since=0&session={session}");
    // The following requests do not present the session of alice's connection, so the server rejects them.
    by("dev-token", "alice", &format!("&epoch={epoch}&since=0")).expect_close(1008, IN_USE);
    for session in ["", "x", "0", &other, &session[1..], &format!("{session}0")] {
        by("dev-token", "alice", &format!("&session={session}")).expect_close(1008, IN_USE);
    }
    by("dev-token", "alice", "").expect_close(1008, IN_USE);
    by("dev-token", "alice", "&since=0").expect_close(1008, IN_USE);
    by("dev-token", "alice", &format!("&epoch={epoch}")).expect_close(1008, IN_USE);
    witness.expect_nothing();
    alice.expect_message(alice.room_message("witness", "hello", 1));
    alice.expect_nothing();

    let mut again = by("dev-token", "alice", &resume);
    let welcome = again.expect_event("welcome", json!({"members": ["witness"], "resumed": true, "last_id": 1}));
    assert_eq!(welcome["history"][0]["text"], "hello");
    alice.expect_close(1008, REPLACED);
    witness.expect_event("left", json!({"username": "alice"}));
    witness.expect_event("joined", json!({"username": "alice"}));
    assert_eq!(welcome["session"], session, "the session stays the same, in case the client misses the welcome");
    // The newer connection now holds the name. When the newer connection ends, the name becomes free.
    check_join_is_rejected(&server, Presence, "alice", "general");
    again.send_message("back");
    again.expect_message(again.room_message("alice", "back", 2));
    witness.expect_message(witness.room_message("alice", "back", 2));
    again.leave();
    witness.expect_event("left", json!({"username": "alice"}));
    let other = by("token-bob", "alice", "");
    witness.expect_event("joined", json!({"username": "alice"}));
    other.leave();
}

/// Without `--unique-names`, a client that resumes does not replace its older connection.
#[test]
fn a_client_with_a_shared_name_resumes() {
    let server = chat(&[]);
    let mut alice = User::join(&server, Events, "alice", "general");
    let welcome = alice.expect_event("welcome", json!({}));
    let resume = format!("&epoch={}&since=0", encode(welcome["epoch"].as_str().unwrap()));
    let path = events_path("alice", "general") + &resume;
    let mut again = User::at(&server, Events, &path, "alice");
    again.expect_event("welcome", json!({"members": ["alice"], "resumed": true}));
    alice.expect_event("joined", json!({"username": "alice"}));
    alice.send_message("both of us");
    for user in [&mut alice, &mut again] {
        let expected = user.room_message("alice", "both of us", 1);
        user.expect_message(expected);
    }
}

/// If a name is in use, the handshake succeeds and the server then closes the connection, so that a browser can read
/// the close reason. The server still rejects a handshake with an invalid token or parameter.
#[test]
fn names_in_use_are_checked_last() {
    let server = chat(&["--unique-names"]);
    let _alice = User::events(&server, "alice", "general");
    let status = |target: &str| server.status(&handshake().target(target));
    assert_eq!(status(&path(Events, "alice", "general")), 101);
    assert_eq!(status(&path(Presence, "alice", "general")), 101);
    assert_eq!(status("/?token=wrong&username=alice"), 401);
    assert_eq!(status("/?token=dev-token&username=alice&room=%00"), 400);
    assert_eq!(status("/ws?token=dev-token&username=alice"), 400);
}
