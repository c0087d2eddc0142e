//! What is not for everyone: private messages, typing, and names that belong to one person.

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::http::handshake;
use support::people::{DIALECTS, Dialect, Person, TIME, chat, encode, events_path, path, presence_path};
use support::table::each_row;
use support::{Server, masked, token_file, wait_until};

use Dialect::{Events, Presence, Rooms};

const IN_USE: &str = "username already in use";
const REPLACED: &str = "replaced by a newer connection";

/// People of these names on `events`, each in a room of their own, so that nobody hears of the others.
fn people<const N: usize>(server: &Server, names: [&str; N]) -> [Person; N] {
    let mut room = 0;
    names.map(|name| {
        room += 1;
        Person::events(server, name, &format!("room {room}"))
    })
}

// ------------------------------------------------------------------------------------------------ private messages

/// J15: it reaches two people, in whatever rooms they are, and nobody else, now or later.
#[test]
fn a_private_message_is_for_two() {
    let server = chat(&[]);
    let mut ann = Person::events(&server, "ann", "general");
    let mut bob = Person::events(&server, "bob", "elsewhere");
    let mut others = DIALECTS.map(|dialect| Person::joins(&server, dialect, "carol", "general"));
    others.iter_mut().for_each(|other| drop(other.hear()));
    (0..3).for_each(|_| drop(ann.hears_at_least("joined", json!({}))));
    others[0].hears_at_least("joined", json!({}));
    others[0].hears_at_least("joined", json!({}));
    others[1].hear();

    ann.says("/msg bob psst");
    bob.sends("private", json!({"to": "ann", "text": "  what? \n"}));
    // Whoever was faster: each hears both.
    for person in [&mut ann, &mut bob] {
        let mut heard = [person.hear(), person.hear()];
        heard.sort_by_key(|event| event["data"]["from"].to_string());
        for (event, [from, to, text]) in heard.iter().zip([["ann", "bob", "psst"], ["bob", "ann", "what?"]]) {
            assert!(support::people::same(&person.private(from, to, text), event), "{event}");
        }
        person.hears_nothing();
    }
    others.iter_mut().for_each(Person::hears_nothing);
    // It has no number, and enters no history.
    ann.says("to all");
    ann.hears(ann.told("ann", "to all", 1));
    let mut late = Person::joins(&server, Events, "bob", "general");
    let welcome = late.hears_at_least("welcome", json!({"last_id": 1}));
    assert_eq!(welcome["history"].as_array().unwrap().len(), 1, "{welcome}");
}

/// Every connection of the name hears it, and the sender, once, however many names they share.
#[test]
fn each_connection_of_a_name_hears_it_once() {
    let server = chat(&[]);
    let [mut ann, mut other_ann, mut bob, mut other_bob] = people(&server, ["ann", "ann", "bob", "bob"]);
    let mut pat = Person::presence(&server, "bob", "a room of presence");
    ann.says("/msg bob to all of you");
    for person in [&mut ann, &mut bob, &mut other_bob, &mut pat] {
        let private = person.private("ann", "bob", "to all of you");
        person.hears(private);
    }
    ann.says("/msg ann a note");
    for person in [&mut ann, &mut other_ann] {
        let private = person.private("ann", "ann", "a note");
        person.hears(private);
    }
    for person in [&mut ann, &mut other_ann, &mut bob, &mut other_bob, &mut pat] {
        person.hears_nothing();
    }
    // To oneself, and alone.
    bob.leaves();
    other_bob.leaves();
    pat.says("/msg bob a note");
    pat.hears(pat.private("bob", "bob", "a note"));
    pat.hears_nothing();
}

#[test]
fn a_private_message_with_a_nonce() {
    let server = chat(&[]);
    let [mut ann, mut bob] = people(&server, ["ann", "bob"]);
    for (event, data) in [
        ("private", json!({"to": "bob", "text": "psst", "nonce": "n1"})),
        ("message", json!({"text": "/msg bob psst", "nonce": "n1"})),
    ] {
        ann.sends(event, data);
        let data = json!({"from": "ann", "to": "bob", "text": "psst", "time": TIME, "nonce": "n1"});
        for person in [&mut ann, &mut bob] {
            person.hears(json!({"event": "private", "data": data}));
            person.hears_nothing();
        }
    }
    // The history knows nothing of it.
    ann.sends("message", json!({"text": "hello", "nonce": "n1"}));
    ann.hears_at_least("message", json!({"text": "hello", "id": 1, "nonce": "n1"}));
}

/// What a slash is the beginning of.
enum Reply {
    /// A private message for this name, with this text.
    Private(&'static str, &'static str),
    /// There is nobody of this name.
    Nobody(&'static str),
    /// A text like any other.
    Text(&'static str),
    Silence,
}

use Reply::{Nobody, Private, Silence, Text};

/// NAME is the longest present name that fits, else the first word.
#[test]
fn names_in_a_private_message() {
    let server = chat(&[]);
    let names = ["ann", "ann lee", "ann lee ray", "bob the", "\u{1f469}\u{1f3fd}", "<b>", "/msg"];
    let mut present = people(&server, names);
    let mut bot = Person::events(&server, "bot", "general");
    let rows = [
        ("/msg ann hi", Private("ann", "hi")),
        ("/msg ann lee hi", Private("ann lee", "hi")),
        ("/msg ann lee ray hi", Private("ann lee ray", "hi")),
        ("/msg ann lee rays hi", Private("ann lee", "rays hi")),
        ("/msg ann leeds hi", Private("ann", "leeds hi")),
        ("/msg ann ann lee hi", Private("ann", "ann lee hi")),
        ("/msg bob the hi", Private("bob the", "hi")),
        ("/msg bob hi", Nobody("bob")),
        ("/msg annabel hi", Nobody("annabel")),
        ("/msg an hi", Nobody("an")),
        ("/msg lee hi", Nobody("lee")),
        ("/msg no body hi", Nobody("no")),
        ("/msg <i> hi", Nobody("<i>")),
        ("/msg <b> hi", Private("<b>", "hi")),
        ("/msg \u{1f469}\u{1f3fd} hi", Private("\u{1f469}\u{1f3fd}", "hi")),
        ("/msg /msg hi", Private("/msg", "hi")),
        ("  /msg ann   two  words \n", Private("ann", "two  words")),
        ("/msg ann /msg bob hi", Private("ann", "/msg bob hi")),
        ("/me waves", Text("/me waves")),
        ("/message ann hi", Text("/message ann hi")),
        ("/", Text("/")),
        ("//msg ann hi", Text("//msg ann hi")),
        ("a /msg ann hi", Text("a /msg ann hi")),
        ("", Silence),
    ];
    let mut id = 0;
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(sent, reply)| {
            bot.says(sent);
            match reply {
                Private(to, text) => {
                    bot.hears(bot.private("bot", to, text));
                    let at = names.iter().position(|name| name == to).unwrap();
                    let private = present[at].private("bot", to, text);
                    present[at].hears(private);
                }
                Nobody(name) => drop(bot.hears(bot.error(&format!("No such user: {name}")))),
                Text(text) => {
                    id += 1;
                    bot.hears(bot.told("bot", text, id));
                }
                Silence => {}
            }
            bot.hears_nothing();
            present.iter_mut().for_each(Person::hears_nothing);
        },
    );
}

/// The name of who has gone fits no more, and that of who has come does.
#[test]
fn only_present_names_fit() {
    let server = chat(&[]);
    let [mut ann, long] = people(&server, ["ann", "ann lee"]);
    let mut bot = Person::events(&server, "bot", "general");
    long.leaves();
    bot.says("/msg ann lee hi");
    bot.hears(bot.private("bot", "ann", "lee hi"));
    ann.hears(ann.private("bot", "ann", "lee hi"));
    ann.leaves();
    bot.says("/msg ann lee hi");
    bot.hears(bot.error("No such user: ann"));
    // In the event the name is given, and is the whole of it.
    let [mut ann, mut long] = people(&server, ["ann", "ann lee"]);
    for (to, person) in [("ann", &mut ann), ("ann lee", &mut long)] {
        bot.sends("private", json!({"to": to, "text": "lee hi"}));
        bot.hears(bot.private("bot", to, "lee hi"));
        person.hears(person.private("bot", to, "lee hi"));
    }
    bot.sends("private", json!({"to": "ann lee ray", "text": "hi"}));
    bot.hears(bot.error("No such user: ann lee ray"));
    // There, a slash is a text.
    bot.sends("private", json!({"to": "ann", "text": "/msg bot hi"}));
    bot.hears(bot.private("bot", "ann", "/msg bot hi"));
}

/// The TEXT alone is judged by its length, on each dialect.
#[test]
fn how_long_a_private_message_may_be() {
    let server = chat(&["--max-text", "10"]);
    let name = "a name of 32 characters, no less";
    assert_eq!(name.len(), 32);
    let mut long = Person::events(&server, name, "elsewhere");
    for dialect in DIALECTS {
        let mut bot = Person::joins(&server, dialect, "bot", "general");
        bot.hear();
        for (text, fits) in [("0123456789", true), ("éééééééééé", true), ("0123456789x", false), ("01234 6789x", false)]
        {
            bot.says(&format!("/msg {name} {text}"));
            if fits {
                bot.hears(bot.private("bot", name, text));
                long.hears(long.private("bot", name, text));
            } else {
                bot.hears(bot.error("Message too long"));
            }
            if dialect == Events {
                bot.sends("private", json!({"to": name, "text": format!("  {text}  ")}));
                if fits {
                    bot.hears(bot.private("bot", name, text));
                    long.hears(long.private("bot", name, text));
                } else {
                    bot.hears(bot.error("Message too long"));
                }
            }
            bot.hears_nothing();
        }
        bot.leaves();
    }
    long.hears_nothing();
}

#[test]
fn private_events_with_odd_data() {
    let server = chat(&[]);
    let mut bot = Person::events(&server, "bot", "general");
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
            let message = bot.hears_an_error();
            assert!(message.contains(word), "{message:?} names {word:?}");
        },
    );
    for data in [r#"{"to":"bot"}"#, r#"{"to":"bot","text":""}"#, r#"{"to":"bot","text":" \t "}"#] {
        bot.send(&format!(r#"{{"event":"private","data":{data}}}"#));
        bot.hears_nothing();
    }
}

/// Nobody but the two sees it: not even who reads the log, in which other messages stand with their first words.
#[test]
fn the_log_does_not_tell_what_is_private() {
    let server = chat(&["-v"]);
    let mut bob = Person::events(&server, "bob", "general");
    for dialect in DIALECTS {
        let mut ann = Person::joins(&server, dialect, "ann", &format!("{dialect:?}"));
        ann.hear();
        ann.says("/msg bob the treasure is buried");
        ann.hears(ann.private("ann", "bob", "the treasure is buried"));
        bob.hears(bob.private("ann", "bob", "the treasure is buried"));
        ann.says("/msg carol the treasure is buried");
        ann.hears(ann.error("No such user: carol"));
        ann.says("in the open");
        ann.hears(ann.told("ann", "in the open", 1));
        ann.leaves();
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

/// What somebody sends who types.
fn types(dialect: Dialect, name: &str) -> String {
    if dialect == Rooms { typing(Rooms, name).to_string() } else { r#"{"event":"typing"}"#.to_owned() }
}

/// The others in the room are told; who types is not, nor anybody elsewhere.
#[test]
fn typing_is_for_the_others() {
    let server = chat(&[]);
    let [mut eve, mut ann] = ["eve", "ann"].map(|name| Person::events(&server, name, "general"));
    let mut stranger = Person::events(&server, "eve", "elsewhere");
    eve.hears_at_least("joined", json!({}));
    eve.send(r#"{"event":"typing"}"#);
    ann.hears(typing(Events, "eve"));
    // Each sender counts for themselves.
    ann.send(r#"{"event":"typing","data":{"username":"somebody else","text":1}}"#);
    eve.hears(typing(Events, "ann"));
    stranger.send(r#"{"event":"typing","data":{}}"#);
    for person in [&mut eve, &mut ann, &mut stranger] {
        person.hears_nothing();
    }
    // It is in no history, and `data` must be an object here too.
    let mut late = Person::joins(&server, Events, "late", "general");
    late.hears_at_least("welcome", json!({"last_id": 0, "history": []}));
    late.send(r#"{"event":"typing","data":null}"#);
    assert!(late.hears_an_error().contains("data"));
}

/// L11: at most one a second goes out, and the surplus is dropped in silence.
#[test]
fn typing_without_end() {
    for dialect in [Events, Rooms] {
        let server = chat(&[]);
        let mut eve = Person::events(&server, "eve", "general");
        let mut bot = Person::joins(&server, dialect, "bot", "general");
        bot.hear();
        eve.hears_at_least("joined", json!({}));
        let start = Instant::now();
        let frame = masked(0x81, types(dialect, "bot").as_bytes());
        bot.client.send(&frame.repeat(200));
        bot.says("done");
        bot.hears(bot.told("bot", "done", 1));
        let mut count = 0;
        loop {
            let heard = eve.hear();
            if heard == typing(Events, "bot") {
                count += 1;
                continue;
            }
            assert!(support::people::same(&eve.told("bot", "done", 1), &heard), "{heard}");
            break;
        }
        let most = 1 + start.elapsed().as_secs();
        assert!((1..=most).contains(&count), "{count} of 200 went out, of at most {most}");
        bot.hears_nothing();
        // And not for ever: a later one goes out again.
        wait_until("typing goes out again", || {
            bot.client.send(&frame);
            bot.says("and?");
            bot.hear();
            eve.hear() == typing(Events, "bot") && eve.hear()["event"] == "message"
        });
        let seconds = start.elapsed();
        assert!(seconds.as_millis() >= 1000, "a second is over: {seconds:?}");
    }
}

/// A name that may not be used is an error, and the surplus of that is dropped in silence as well.
#[test]
fn typing_under_a_name_that_is_another_s() {
    let file = token_file("typing", "secret-any\nsecret-ann ann\n");
    let server = chat(&["--tokens", file.to_str().unwrap()]);
    let mut eve = Person::at(&server, Events, "/?token=secret-any&username=eve", "eve");
    eve.hears_at_least("welcome", json!({}));
    let mut ann = Person::at(&server, Rooms, "/ws/general?token=secret-ann", "");
    ann.hear();
    eve.hears_at_least("joined", json!({"username": "ann"}));
    let start = Instant::now();
    ann.client.send(&masked(0x81, types(Rooms, "bob").as_bytes()).repeat(200));
    ann.says("done");
    let mut errors = 0;
    let last = loop {
        let heard = ann.hear();
        if heard["type"] != "error" {
            break heard;
        }
        errors += 1;
    };
    assert_eq!(last, ann.told("ann", "done", 1));
    let most = 1 + start.elapsed().as_secs();
    assert!((1..=most).contains(&errors), "{errors} errors, of at most {most}");
    eve.hears(eve.told("ann", "done", 1));
}

/// It draws nothing from the rate limit, on either dialect that has it.
#[test]
fn typing_costs_nothing() {
    let server = Server::start(&["--rate-limit", "0.1"]);
    for dialect in [Events, Rooms] {
        let mut bot = Person::joins(&server, dialect, "bot", &format!("{dialect:?}"));
        let first = bot.hear();
        bot.client.send(&masked(0x81, types(dialect, "bot").as_bytes()).repeat(100));
        bot.says("done");
        let told = bot.hear();
        assert!(told.to_string().contains("\"done\""), "after {first}: {told}");
        bot.hears_nothing();
        bot.leaves();
    }
}

// ---------------------------------------------------------------------------------------------------- unique names

/// Somebody who is let in past the upgrade, and then turned away, as a browser can read it.
fn is_turned_away(server: &Server, dialect: Dialect, name: &str, room: &str) {
    Person::joins(server, dialect, name, room).sees_the_close(1008, IN_USE);
}

/// C21, N02, N06: nobody sees a join, and nothing but the close is said.
#[test]
fn a_name_belongs_to_one() {
    let server = chat(&["--unique-names"]);
    let mut witness = Person::events(&server, "witness", "general");
    let mut alice = Person::events(&server, "Alice", "general");
    witness.hears_at_least("joined", json!({"username": "Alice"}));
    for dialect in [Events, Presence] {
        for name in ["Alice", "alice", "ALICE", " alice", "alice\u{3000}", "\u{a0}aLICE "] {
            for room in ["general", "elsewhere"] {
                is_turned_away(&server, dialect, name, room);
            }
        }
    }
    for person in [&mut witness, &mut alice] {
        person.hears_nothing();
    }
    // N08: what only looks alike is another name.
    for name in ["\u{410}lice", "alice2", "al ice", "alic\u{e9}"] {
        Person::events(&server, name, "elsewhere").leaves();
    }
    // She keeps it wherever she goes, and gives it back when she leaves.
    alice.sends("switch_room", json!({"room": "elsewhere"}));
    alice.hears_at_least("switched", json!({"members": []}));
    witness.hears_at_least("left", json!({"username": "Alice"}));
    is_turned_away(&server, Events, "alice", "general");
    alice.leaves();
    let mut alice = Person::presence(&server, "alice", "general");
    witness.hears_at_least("joined", json!({"username": "alice"}));
    is_turned_away(&server, Events, "Alice", "general");
    alice.hears_nothing();
    witness.hears_nothing();
}

/// Case folding is more than lower case.
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
            let first = Person::events(&server, first, "general");
            is_turned_away(&server, Events, second, "elsewhere");
            first.leaves();
            let second = Person::events(&server, second, "general");
            second.leaves();
        },
    );
}

/// The names that nobody has chosen never count.
#[test]
fn the_default_names_belong_to_nobody() {
    let server = chat(&["--unique-names"]);
    let mut people = Vec::new();
    for _ in 0..2 {
        for query in ["", "&username=anonymous", "&username=Anonymous"] {
            let mut person = Person::at(&server, Events, &format!("/?token=dev-token{query}"), "");
            person.hears_at_least("welcome", json!({}));
            people.push(person);
        }
        people.push(Person::rooms(&server, "", "elsewhere"));
        for name in ["anonymous", "Anonymous"] {
            let id = people.len().to_string();
            let mut person = Person::at(&server, Presence, &presence_path(name, &id, "a third"), name);
            assert_eq!(person.hear()["type"], "user_joined");
            people.push(person);
        }
    }
}

/// Without the flag, names may be shared.
#[test]
fn names_may_be_shared() {
    let server = chat(&[]);
    let mut alice = Person::events(&server, "alice", "general");
    let mut others = Vec::new();
    for (count, dialect) in DIALECTS.into_iter().enumerate() {
        let other = Person::joins(&server, dialect, "alice", "general");
        let name = if dialect == Rooms { "Anonymous" } else { "alice" };
        alice.hears_at_least("joined", json!({"username": name}));
        others.push(other);
        let mut late = Person::joins(&server, Events, "alice", "general");
        let members = late.hears_at_least("welcome", json!({}))["members"].clone();
        assert_eq!(members.as_array().unwrap().len(), count + 2, "{members}");
        alice.hears_at_least("joined", json!({"username": "alice"}));
        late.leaves();
        alice.hears_at_least("left", json!({"username": "alice"}));
    }
}

/// Whoever brings the same token and resumes takes the place of the older connection.
#[test]
fn a_name_that_comes_back() {
    let server = chat(&["--unique-names"]);
    let mut witness = Person::events(&server, "witness", "general");
    let mut alice = Person::joins(&server, Events, "alice", "general");
    let welcome = alice.hears_at_least("welcome", json!({"members": ["witness"]}));
    witness.hears_at_least("joined", json!({"username": "alice"}));
    witness.says("hello");
    witness.hears(witness.told("witness", "hello", 1));
    let epoch = encode(welcome["epoch"].as_str().unwrap());

    // Each of these is somebody else, or does not resume.
    let by = |token: &str, name: &str, resume: &str| {
        let path = events_path(name, "general").replace("dev-token", token) + resume;
        Person::at(&server, Events, &path, name)
    };
    let resume = format!("&epoch={epoch}&since=0");
    by("token-bob", "alice", &resume).sees_the_close(1008, IN_USE);
    by("dev-token", "alice", "").sees_the_close(1008, IN_USE);
    by("dev-token", "alice", "&since=0").sees_the_close(1008, IN_USE);
    by("dev-token", "alice", &format!("&epoch={epoch}")).sees_the_close(1008, IN_USE);
    witness.hears_nothing();
    alice.hears(alice.told("witness", "hello", 1));
    alice.hears_nothing();

    let mut again = by("dev-token", "alice", &resume);
    let welcome = again.hears_at_least("welcome", json!({"members": ["witness"], "resumed": true, "last_id": 1}));
    assert_eq!(welcome["history"][0]["text"], "hello");
    alice.sees_the_close(1008, REPLACED);
    witness.hears_at_least("left", json!({"username": "alice"}));
    witness.hears_at_least("joined", json!({"username": "alice"}));
    // The name is now that of the newer connection, and goes with it.
    is_turned_away(&server, Presence, "alice", "general");
    again.says("back");
    again.hears(again.told("alice", "back", 2));
    witness.hears(witness.told("alice", "back", 2));
    again.leaves();
    witness.hears_at_least("left", json!({"username": "alice"}));
    let other = by("token-bob", "alice", "");
    witness.hears_at_least("joined", json!({"username": "alice"}));
    other.leaves();
}

/// Where names are shared, nobody is replaced: a second connection that resumes is one more.
#[test]
fn a_shared_name_that_comes_back() {
    let server = chat(&[]);
    let mut alice = Person::joins(&server, Events, "alice", "general");
    let welcome = alice.hears_at_least("welcome", json!({}));
    let resume = format!("&epoch={}&since=0", encode(welcome["epoch"].as_str().unwrap()));
    let path = events_path("alice", "general") + &resume;
    let mut again = Person::at(&server, Events, &path, "alice");
    again.hears_at_least("welcome", json!({"members": ["alice"], "resumed": true}));
    alice.hears_at_least("joined", json!({"username": "alice"}));
    alice.says("both of us");
    for person in [&mut alice, &mut again] {
        let told = person.told("alice", "both of us", 1);
        person.hears(told);
    }
}

/// A second one of a name is let in past the upgrade, so that a browser can read why it is then turned away; who has
/// the name is not asked before the token, and not before the other parameters.
#[test]
fn names_are_judged_last() {
    let server = chat(&["--unique-names"]);
    let _alice = Person::events(&server, "alice", "general");
    let status = |target: &str| server.status(&handshake().target(target));
    assert_eq!(status(&path(Events, "alice", "general")), 101);
    assert_eq!(status(&path(Presence, "alice", "general")), 101);
    assert_eq!(status("/?token=wrong&username=alice"), 401);
    assert_eq!(status("/?token=dev-token&username=alice&room=%00"), 400);
    assert_eq!(status("/ws?token=dev-token&username=alice"), 400);
}
