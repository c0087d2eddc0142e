//! Coming back: what a room remembers, and that a client which lost its connection, at whatever moment, neither misses a
//! message nor sees one twice.

mod support;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use support::people::{DIALECTS, Dialect, Person, TIME, chat, encode, events_path};
use support::table::each_row;
use support::{RawClient, Server, masked, upgrade_request, wait_until, whole_frames};

/// The name of a room's life, as it is written in a query.
fn epoch(data: &Value) -> String {
    data["epoch"].as_str().unwrap_or_else(|| panic!("an epoch is a string: {data}")).to_owned()
}

/// Somebody who comes back with these parameters, and the `welcome`.
fn comes(server: &Server, name: &str, room: &str, resume: &str) -> (Person, Value) {
    let path = format!("{}{resume}", events_path(name, room));
    let mut person = Person::at(server, Dialect::Events, &path, name);
    let welcome = person.hears_at_least("welcome", json!({}));
    (person, welcome)
}

/// The `welcome` of somebody who comes back with these parameters and goes again.
fn welcome(server: &Server, room: &str, resume: &str) -> Value {
    let (person, welcome) = comes(server, "guest", room, resume);
    person.leaves();
    welcome
}

fn since(epoch: &str, id: impl ToString) -> String {
    format!("&epoch={}&since={}", encode(epoch), encode(&id.to_string()))
}

fn ids(data: &Value) -> Vec<u64> {
    let history = data["history"].as_array().unwrap_or_else(|| panic!("a history: {data}"));
    history.iter().map(|message| message["id"].as_u64().expect("an id")).collect()
}

/// Says texts that are numbers, from the next id on, and hears each of them. Returns them as they were heard.
fn says_numbers(person: &mut Person, ids: std::ops::RangeInclusive<u64>) -> Vec<Value> {
    let say = |id: u64| {
        person.says(&id.to_string());
        loop {
            let mut heard = person.hear();
            if heard["event"] == "message" {
                assert_eq!(heard["data"]["id"], id, "{heard}");
                return heard["data"].take();
            }
        }
    };
    ids.map(say).collect()
}

// ------------------------------------------------------------------------------------------------ epoch and since

#[test]
fn a_room_without_a_message() {
    let server = chat(&[]);
    let (_eve, first) = comes(&server, "eve", "general", "");
    assert_eq!((&first["last_id"], &first["history"], &first["resumed"]), (&json!(0), &json!([]), &json!(false)));
    let epoch = epoch(&first);
    assert!(!epoch.is_empty());
    // J19: nothing was seen, and nothing missed.
    let again = welcome(&server, "general", &since(&epoch, 0));
    assert_eq!((&again["last_id"], &again["history"], &again["resumed"]), (&json!(0), &json!([]), &json!(true)));
    let ahead = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((&ahead["last_id"], &ahead["history"], &ahead["resumed"]), (&json!(0), &json!([]), &json!(false)));
}

/// Each edge of `since`, in a room that has kept the last three of five messages.
#[test]
fn edges_of_since() {
    let server = chat(&["--history", "3"]);
    let (mut eve, first) = comes(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let said = says_numbers(&mut eve, 1..=5);
    let (_other, elsewhere) = comes(&server, "eve", "elsewhere", "");
    let other = elsewhere["epoch"].as_str().unwrap().to_owned();
    let wrong = format!("{epoch}x");
    let with = |id: &str| since(&epoch, id);
    let rows: Vec<(&str, String, Option<u64>)> = vec![
        ("all seen", with("5"), Some(5)),
        ("one missed", with("4"), Some(4)),
        ("two missed", with("3"), Some(3)),
        ("as many missed as are kept", with("2"), Some(2)),
        ("one more missed than is kept", with("1"), None),
        ("nothing seen", with("0"), None),
        ("more seen than there is", with("6"), None),
        ("L17 far ahead", with("1000000000"), None),
        ("L17 -1", with("-1"), None),
        ("L17 -5", with("-5"), None),
        ("L17 2^63 - 1", with("9223372036854775807"), None),
        ("L17 2^63", with("9223372036854775808"), None),
        ("L17 -2^63", with("-9223372036854775808"), None),
        ("L17 2^64 - 1", with("18446744073709551615"), None),
        ("L17 2^64", with("18446744073709551616"), None),
        ("L17 2^64 + 5", with("18446744073709551621"), None),
        ("L17 2^32 + 5", with("4294967301"), None),
        ("L17 a thousand digits", with(&"5".repeat(1000)), None),
        ("no number", with("five"), None),
        ("a fraction", with("4.5"), None),
        ("an exponent", with("5e0"), None),
        ("hexadecimal", with("0x5"), None),
        ("other digits", with("\u{665}"), None),
        ("NUL", with("5\0"), None),
        ("empty", with(""), None),
        ("no since", format!("&epoch={epoch}"), None),
        ("no epoch", "&since=5".to_owned(), None),
        ("an empty epoch", "&epoch=&since=5".to_owned(), None),
        ("another epoch", since(&wrong, 5), None),
        ("the epoch of another room", since(&other, 0), None),
        ("the first epoch counts", format!("&epoch={wrong}{}", with("5")), None),
        ("the first since counts", format!("{}&since=x", with("4")), Some(4)),
        ("neither", String::new(), None),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, resume, seen)| {
            let welcome = welcome(&server, "general", resume);
            let history = &said[seen.unwrap_or(2) as usize..];
            assert_eq!(welcome["resumed"], seen.is_some(), "{welcome}");
            assert_eq!(welcome["history"], json!(history));
            assert_eq!((&welcome["epoch"], &welcome["last_id"]), (&json!(epoch), &json!(5)));
        },
    );
}

/// J20: who comes back again and again without a new message is told nothing twice.
#[test]
fn coming_back_twice() {
    let server = chat(&[]);
    let (mut eve, first) = comes(&server, "eve", "general", "");
    let epoch = epoch(&first);
    says_numbers(&mut eve, 1..=3);
    let first = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((ids(&first), &first["resumed"]), (vec![2, 3], &json!(true)));
    for _ in 0..3 {
        let again = welcome(&server, "general", &since(&epoch, 3));
        assert_eq!((ids(&again), &again["resumed"]), (vec![], &json!(true)));
    }
}

/// `--history N`: the default, another, and none.
#[test]
fn lengths_of_history() {
    for (args, kept) in
        [(&[][..], 50), (&["--history", "1"], 1), (&["--history", "120"], 120), (&["--history", "0"], 0)]
    {
        let server = chat(args);
        let (mut eve, first) = comes(&server, "eve", "general", "");
        let epoch = epoch(&first);
        let said = says_numbers(&mut eve, 1..=130);
        let newcomer = welcome(&server, "general", "");
        assert_eq!(newcomer["history"], json!(said[130 - kept..]), "{args:?}");
        assert_eq!((&newcomer["last_id"], &newcomer["resumed"]), (&json!(130), &json!(false)));
        let edge = 130 - kept as u64;
        for (id, resumed) in [(130, true), (edge, true), (edge - 1, false)] {
            let back = welcome(&server, "general", &since(&epoch, id));
            assert_eq!(back["resumed"], resumed, "{args:?}, since {id}");
            let from = if resumed { id } else { edge };
            assert_eq!(ids(&back), (from + 1..=130).collect::<Vec<_>>(), "{args:?}, since {id}");
        }
    }
}

/// The fullest history there can be by default is shown whole to a newcomer, on each dialect.
#[test]
fn the_fullest_history() {
    let server = chat(&[]);
    let name = "\u{1f600}".repeat(32);
    let mut eve = Person::events(&server, &name, "general");
    // A control character takes six bytes in JSON, more than any other.
    let text = format!("a{}b", "\u{1}".repeat(498));
    for i in 0..50 {
        let nonce = format!("{i:02}{}", "\u{1}".repeat(62));
        eve.sends("message", json!({"text": text, "nonce": nonce}));
        eve.hears_at_least("message", json!({"text": text, "nonce": nonce}));
    }
    for dialect in DIALECTS {
        let mut guest = Person::joins(&server, dialect, "guest", "general");
        let first = guest.hear();
        if dialect == Dialect::Events {
            assert_eq!(ids(&first["data"]), (1..=50).collect::<Vec<_>>());
        } else {
            for i in 0..50 {
                let told = guest.told(&name, &text, i);
                guest.hears(told);
            }
        }
        guest.hears_nothing();
        guest.leaves();
    }
}

/// What a mover is told of the room it comes to.
#[test]
fn switching_to_a_room_with_a_history() {
    let server = chat(&["--history", "2"]);
    let (mut nina, new) = comes(&server, "nina", "new", "");
    let said = says_numbers(&mut nina, 1..=3);
    let mut mover = Person::events(&server, "moritz", "old");
    mover.sends("switch_room", json!({"room": "new"}));
    let data = json!({"room": "new", "members": ["nina"], "epoch": new["epoch"], "last_id": 3, "history": said[1..]});
    mover.hears(json!({"event": "switched", "data": data}));
    mover.sends("switch_room", json!({"room": "brand new"}));
    let data = mover.hears_at_least("switched", json!({"members": [], "last_id": 0, "history": []}));
    assert_ne!(epoch(&data), epoch(&new));
    // Who is in a room can lose it and come back to it, however it came there.
    let epoch = epoch(&data);
    mover.says("here");
    mover.hears(mover.told("moritz", "here", 1));
    let back = welcome(&server, "brand new", &since(&epoch, 0));
    assert_eq!((ids(&back), &back["resumed"]), (vec![1], &json!(true)));
}

/// J21: another server has other epochs, and says so.
#[test]
fn a_server_that_was_started_again() {
    let server = chat(&[]);
    let (mut eve, first) = comes(&server, "eve", "general", "");
    says_numbers(&mut eve, 1..=3);
    drop((eve, server));
    let server = chat(&[]);
    let again = welcome(&server, "general", &since(&epoch(&first), 0));
    assert_ne!(epoch(&again), epoch(&first));
    assert_eq!((&again["resumed"], &again["last_id"], ids(&again)), (&json!(false), &json!(0), vec![]));
    let (mut eve, _) = comes(&server, "eve", "general", "");
    says_numbers(&mut eve, 1..=3);
    let again = welcome(&server, "general", &since(&epoch(&first), 2));
    assert_eq!((&again["resumed"], &again["last_id"], ids(&again)), (&json!(false), &json!(3), vec![1, 2, 3]));
}

// -------------------------------------------------------------------------------------------------- rooms that empty

#[test]
fn a_room_that_empties_keeps_its_history() {
    let server = chat(&[]);
    let (mut eve, first) = comes(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let said = says_numbers(&mut eve, 1..=3);
    eve.leaves();
    let back = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!(said[1..])));
    let (mut eve, newcomer) = comes(&server, "eve", "general", "");
    assert_eq!((&newcomer["epoch"], &newcomer["history"]), (&json!(epoch), &json!(said)));
    says_numbers(&mut eve, 4..=4);
    // Also by a switch, and from another dialect.
    eve.sends("switch_room", json!({"room": "elsewhere"}));
    eve.hears_at_least("switched", json!({}));
    let mut pat = Person::presence(&server, "pat", "general");
    for text in ["1", "2", "3", "4"] {
        pat.hears(pat.told("eve", text, 0));
    }
}

/// `--history-ttl`: a room that was empty for so long begins anew; one with somebody in it does not.
#[test]
fn a_history_that_is_too_old() {
    let server = chat(&["--history-ttl", "0.2"]);
    let (mut empty, empty_welcome) = comes(&server, "eve", "empty", "");
    let (mut held, held_welcome) = comes(&server, "eve", "held", "");
    says_numbers(&mut empty, 1..=2);
    says_numbers(&mut held, 1..=2);
    empty.leaves();
    // Each look fills the room for a moment, so that each wait is longer than the one before.
    let mut wait = Duration::from_millis(10);
    let mut back = Value::Null;
    wait_until("the room begins anew", || {
        std::thread::sleep(wait);
        wait *= 2;
        back = welcome(&server, "empty", &since(&epoch(&empty_welcome), 2));
        back["resumed"] == false
    });
    assert_ne!(epoch(&back), epoch(&empty_welcome));
    assert_eq!((&back["last_id"], ids(&back)), (&json!(0), vec![]));
    let back = welcome(&server, "held", &since(&epoch(&held_welcome), 1));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(true), vec![2]));
    drop(held);
}

/// `--max-empty-rooms`: of too many empty rooms, the one left alone for longest is given up.
#[test]
fn limit_of_empty_rooms() {
    let server = chat(&["--max-empty-rooms", "2"]);
    let mut epochs = Vec::new();
    for room in ["a", "b", "c", "d"] {
        let (mut eve, welcome) = comes(&server, "eve", room, "");
        says_numbers(&mut eve, 1..=2);
        epochs.push(epoch(&welcome));
        eve.leaves();
    }
    // Everybody stays, so that looking at one room costs no other its history.
    let mut people = Vec::new();
    for (room, i, kept) in [("d", 3, true), ("c", 2, true), ("b", 1, false), ("a", 0, false)] {
        let (eve, back) = comes(&server, "eve", room, &since(&epochs[i], 1));
        assert_eq!((&back["resumed"], ids(&back)), (&json!(kept), if kept { vec![2] } else { vec![] }), "{room}");
        people.push(eve);
    }
}

/// The same, with one that is used between.
#[test]
fn the_empty_room_that_was_used_last_is_kept() {
    let server = chat(&["--max-empty-rooms", "2"]);
    let mut epochs = Vec::new();
    for room in ["a", "b", "a", "c"] {
        let (mut eve, welcome) = comes(&server, "eve", room, "");
        let last = welcome["last_id"].as_u64().unwrap();
        says_numbers(&mut eve, last + 1..=last + 1);
        epochs.push(epoch(&welcome));
        eve.leaves();
    }
    let (_c, back) = comes(&server, "eve", "c", &since(&epochs[3], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(true), vec![1]));
    let (_a, back) = comes(&server, "eve", "a", &since(&epochs[0], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(true), vec![1, 2]));
    let (_b, back) = comes(&server, "eve", "b", &since(&epochs[1], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(false), vec![]));
}

/// `--max-history`: a single room stays below it, with what is newest.
#[test]
fn limit_of_history_in_bytes() {
    const LIMIT: usize = 20_000;
    let server = chat(&["--history", "1000", "--max-history", &LIMIT.to_string()]);
    let (mut eve, first) = comes(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let text = |id: u64| format!("{id:0500}");
    for id in 1..=100 {
        eve.says(&text(id));
        eve.hears(eve.told("eve", &text(id), id));
    }
    let newcomer = welcome(&server, "general", "");
    let kept = ids(&newcomer);
    assert!(!kept.is_empty() && kept.len() * 500 <= LIMIT, "{} texts of 500 bytes", kept.len());
    assert!(kept.iter().copied().eq(101 - kept.len() as u64..=100), "the newest, without a gap: {kept:?}");
    let edge = kept[0] - 1;
    for (id, resumed) in [(edge, true), (edge - 1, false)] {
        let back = welcome(&server, "general", &since(&epoch, id));
        assert_eq!((&back["resumed"], ids(&back)), (&json!(resumed), kept.clone()));
    }
}

/// `--max-history` over all rooms: the empty room that was left alone for longest is given up first, whole, and at no
/// moment a room that was used later and not it.
#[test]
fn the_oldest_empty_room_is_given_up_first() {
    let text = "x".repeat(500);
    let mut seen = Vec::new();
    for count in (0..=40).step_by(2) {
        let server = chat(&["--history", "1000", "--max-history", "20000"]);
        let fill = |room: &str, count: u64| {
            let (mut eve, welcome) = comes(&server, "eve", room, "");
            for id in 1..=count {
                eve.says(&text);
                eve.hears(eve.told("eve", &text, id));
            }
            (eve, epoch(&welcome))
        };
        let (first, first_epoch) = fill("first", 8);
        first.leaves();
        let (second, second_epoch) = fill("second", 8);
        second.leaves();
        let (_busy, _) = fill("busy", count);
        let kept = [("first", first_epoch), ("second", second_epoch)].map(|(room, epoch)| {
            let (person, back) = comes(&server, "guest", room, &since(&epoch, 0));
            let whole = back["resumed"] == true;
            assert_eq!(ids(&back).len(), if whole { 8 } else { 0 }, "whole or not at all: {room}, {count} in busy");
            (person, whole)
        });
        seen.push(kept.map(|(_, whole)| whole));
    }
    assert_eq!(seen.first(), Some(&[true, true]));
    assert_eq!(seen.last(), Some(&[false, false]));
    assert!(seen.contains(&[false, true]) && !seen.contains(&[true, false]), "{seen:?}");
}

// ---------------------------------------------------------------------------------------------------------- nonces

fn with_nonce(text: &str, nonce: &str) -> Value {
    json!({"text": text, "nonce": nonce})
}

/// J22: what is sent again under the same nonce is answered with the first one's event, to the sender alone.
#[test]
fn a_message_that_is_sent_again() {
    let server = chat(&[]);
    let mut eve = Person::events(&server, "eve", "general");
    let mut bob = Person::events(&server, "bob", "general");
    eve.hears_at_least("joined", json!({"username": "bob"}));
    eve.sends("message", with_nonce("once", "n1"));
    let data = json!({"username": "eve", "text": "once", "id": 1, "time": TIME, "nonce": "n1"});
    let first = eve.hears(json!({"event": "message", "data": data}));
    assert_eq!(bob.hear(), first, "everybody sees the nonce");
    // Whatever the text is now.
    for text in ["once", "twice"] {
        eve.sends("message", with_nonce(text, "n1"));
        assert_eq!(eve.hear(), first);
    }
    bob.hears_nothing();
    // Another connection of the same name is the same sender.
    let mut again = Person::events(&server, "eve", "general");
    for person in [&mut eve, &mut bob] {
        person.hears_at_least("joined", json!({"username": "eve"}));
    }
    again.sends("message", with_nonce("once", "n1"));
    assert_eq!(again.hear(), first);
    // Another name, and another nonce, are another message; so is one without a nonce.
    bob.sends("message", with_nonce("once", "n1"));
    let data = json!({"username": "bob", "text": "once", "id": 2, "time": TIME, "nonce": "n1"});
    for person in [&mut eve, &mut bob, &mut again] {
        person.hears(json!({"event": "message", "data": data}));
    }
    for (id, nonce) in [(3, "N1"), (4, "n1 x")] {
        eve.sends("message", with_nonce("once", nonce));
        let data = json!({"username": "eve", "text": "once", "id": id, "time": TIME, "nonce": nonce});
        for person in [&mut eve, &mut bob, &mut again] {
            person.hears(json!({"event": "message", "data": data}));
        }
    }
    for id in [5, 6] {
        eve.says("once");
        for person in [&mut eve, &mut bob, &mut again] {
            let told = person.told("eve", "once", id);
            person.hears(told);
        }
    }
    let newcomer = welcome(&server, "general", "");
    assert_eq!(ids(&newcomer), [1, 2, 3, 4, 5, 6]);
    assert_eq!(newcomer["history"][0], first["data"], "history is as it was heard");
}

/// A nonce is one of a room, and of what the room remembers.
#[test]
fn how_far_a_nonce_reaches() {
    for (args, forgotten) in [(&["--history", "2"][..], 3), (&["--history", "0"], 1)] {
        let server = chat(args);
        let mut eve = Person::events(&server, "eve", "general");
        eve.sends("message", with_nonce("first", "n"));
        eve.hears_at_least("message", json!({"id": 1, "nonce": "n"}));
        for id in 2..=forgotten {
            if id == 3 {
                eve.sends("message", with_nonce("still there", "n"));
                eve.hears_at_least("message", json!({"id": 1, "text": "first"}));
            }
            eve.says("another");
            eve.hears(eve.told("eve", "another", id));
        }
        eve.sends("message", with_nonce("again", "n"));
        eve.hears_at_least("message", json!({"id": forgotten + 1, "text": "again", "nonce": "n"}));
        eve.sends("switch_room", json!({"room": "elsewhere"}));
        eve.hears_at_least("switched", json!({}));
        eve.sends("message", with_nonce("elsewhere", "n"));
        eve.hears_at_least("message", json!({"id": 1, "text": "elsewhere", "nonce": "n"}));
    }
}

/// 1 to 64 characters, and a string.
#[test]
fn what_a_nonce_is() {
    let server = chat(&[]);
    let mut eve = Person::events(&server, "eve", "general");
    let rows = [
        ("1 character", json!("x"), true),
        ("64 characters", json!("x".repeat(64)), true),
        ("64 characters of four bytes", json!("\u{1f600}".repeat(64)), true),
        ("any characters", json!("\0\"\u{200b}<b>"), true),
        ("empty", json!(""), false),
        ("65 characters", json!("x".repeat(65)), false),
        ("65 characters of four bytes", json!("\u{1f600}".repeat(65)), false),
        ("a number", json!(1), false),
        ("null", json!(null), false),
        ("a list", json!(["x"]), false),
    ];
    let mut id = 0;
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, nonce, good)| {
            eve.sends("message", json!({"text": "hello", "nonce": nonce}));
            if *good {
                id += 1;
                let data = json!({"username": "eve", "text": "hello", "id": id, "time": TIME, "nonce": nonce});
                eve.hears(json!({"event": "message", "data": data}));
            } else {
                let data = eve.hears_at_least("error", json!({}));
                let message = data["message"].as_str().unwrap();
                assert!(message.contains("nonce"), "it is named: {data}");
            }
            eve.hears_nothing();
        },
    );
}

/// An error says which message it answers.
#[test]
fn errors_carry_the_nonce() {
    let server = chat(&["--max-text", "30"]);
    let mut eve = Person::events(&server, "eve", "general");
    let long = "x".repeat(31);
    let rows = [
        ("message", json!({"text": long, "nonce": "n"}), "Message too long"),
        ("message", json!({"text": "/msg bob hello", "nonce": "n"}), "No such user: bob"),
        ("message", json!({"text": format!("/msg eve {long}"), "nonce": "n"}), "Message too long"),
        ("private", json!({"to": "bob", "text": "hello", "nonce": "n"}), "No such user: bob"),
        ("private", json!({"to": "eve", "text": long, "nonce": "n"}), "Message too long"),
    ];
    each_row(
        &rows,
        |row| row.1.to_string(),
        |(event, data, message)| {
            eve.sends(event, data.clone());
            eve.hears(json!({"event": "error", "data": {"message": message, "nonce": "n"}}));
            // And one without a nonce carries none.
            let mut data = data.clone();
            data.as_object_mut().unwrap().remove("nonce");
            eve.sends(event, data);
            eve.hears(eve.error(message));
        },
    );
    // What was refused was not posted, so its nonce is free.
    eve.sends("message", with_nonce("hello", "n"));
    eve.hears_at_least("message", json!({"id": 1, "nonce": "n"}));
}

/// A message with a nonce and a text that is none is still the one that the error answers.
#[test]
fn an_error_about_a_field_carries_the_nonce() {
    let server = chat(&[]);
    let mut eve = Person::events(&server, "eve", "general");
    for data in [r#"{"nonce":"n","text":1}"#, r#"{"text":1,"nonce":"n"}"#] {
        eve.send(&format!(r#"{{"event":"message","data":{data}}}"#));
        eve.hears_at_least("error", json!({"nonce": "n"}));
    }
    for text in ["", "  "] {
        eve.sends("message", with_nonce(text, "n"));
        eve.hears_nothing();
    }
}

// ------------------------------------------------------------------------------------- connections killed at random

const ROOM: &str = "talk";

/// A client that keeps its list of messages over the loss of its connections, as the protocol page says how.
struct Peer<'a> {
    server: &'a Server,
    name: String,
    line: Option<Line>,
    epoch: Option<String>,
    /// The data of each message, that of id 1 first.
    list: Vec<Value>,
    /// What was sent and not seen again, in order.
    unseen: VecDeque<(String, String)>,
    said: usize,
    /// Connections that the client has given up and the server has not been told of.
    abandoned: Vec<Line>,
    /// How often it came back, and was told that nothing was lost.
    resumed: usize,
    /// How often what it sent again had been heard the first time.
    told_again: usize,
}

/// A connection, and the bytes read from it that are no whole frame yet.
struct Line {
    client: RawClient,
    buffer: Vec<u8>,
    is_hasty: bool,
    welcomed: bool,
}

impl Line {
    /// A connection that was abandoned hears in the end that another took its place.
    fn was_replaced(mut self, seed: u64) {
        let mut chunk = [0; 4096];
        loop {
            let (mut frames, rest) = whole_frames(&self.buffer);
            if frames.last().is_some_and(|frame| frame.opcode() == 8) {
                let close = frames.pop().unwrap().close();
                assert_eq!(
                    (close, rest),
                    ((1008, "replaced by a newer connection".to_owned()), &[][..]),
                    "seed {seed}"
                );
                return;
            }
            let n = self.client.stream.read(&mut chunk).expect("more bytes");
            assert!(n > 0, "the end, without a word (seed {seed})");
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }
}

impl<'a> Peer<'a> {
    fn new(server: &'a Server, number: usize) -> Peer<'a> {
        let name = format!("peer {number}");
        let (list, unseen, abandoned) = (Vec::new(), VecDeque::new(), Vec::new());
        Peer { server, name, line: None, epoch: None, list, unseen, said: 0, abandoned, resumed: 0, told_again: 0 }
    }

    /// Comes, or comes back. A hasty client sends what it saw no echo of behind its request, a patient one when it has read
    /// what it missed, and knows of more echoes.
    fn connect(&mut self, is_hasty: bool) {
        let resume = self.epoch.as_ref().map_or(String::new(), |epoch| since(epoch, self.list.len()));
        let mut all = upgrade_request(&format!("{}{resume}", events_path(&self.name, ROOM))).into_bytes();
        if is_hasty {
            all.extend(self.unseen.iter().flat_map(frame));
        }
        let mut client = self.server.connect();
        client.send(&all);
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        self.line = Some(Line { client, buffer: Vec::new(), is_hasty, welcomed: false });
    }

    /// Says something new, or does so only in part.
    fn say(&mut self, part: impl FnOnce(usize) -> usize) {
        self.said += 1;
        let said = (format!("{} of {}", self.said, self.name), format!("n{}", self.said));
        let frame = frame(&said);
        self.unseen.push_back(said);
        let client = &mut self.line.as_mut().expect("a connection").client;
        client.try_send(&frame[..part(frame.len())]);
    }

    /// Takes in what has come. `wait` is for something to come.
    fn read(&mut self, wait: bool) {
        let Some(line) = &mut self.line else { return };
        let mut chunk = [0; 4096];
        line.client.stream.set_nonblocking(!wait).unwrap();
        let read = line.client.stream.read(&mut chunk);
        line.client.stream.set_nonblocking(false).unwrap();
        match read {
            Ok(0) => panic!("the server hung up on {}", self.name),
            Ok(n) => line.buffer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock && !wait => return,
            Err(e) => panic!("{} is cut: {e}", self.name),
        }
        let (frames, rest) = whole_frames(&line.buffer);
        line.buffer = rest.to_vec();
        for frame in frames {
            if frame.opcode() == 8 {
                // Nobody who can resume is refused: it takes the place of its own older connection.
                assert_eq!(frame.close(), (1008, "username already in use".to_owned()));
                assert!(self.epoch.is_none(), "{} resumed and was refused", self.name);
                self.line = None;
                return;
            }
            if frame.first == 0x81 {
                self.hear(serde_json::from_str(frame.text()).expect("JSON"));
            }
        }
    }

    fn hear(&mut self, mut heard: Value) {
        let data = heard["data"].take();
        match heard["event"].as_str().expect("an event") {
            "welcome" => self.welcome(&data),
            "message" => self.message(data),
            "joined" | "left" => {}
            other => panic!("{} hears {other}: {data}", self.name),
        }
    }

    fn welcome(&mut self, data: &Value) {
        assert_eq!(data["resumed"], self.epoch.is_some(), "{}: {data}", self.name);
        self.resumed += usize::from(self.epoch.is_some());
        assert!(self.epoch.as_ref().is_none_or(|known| *known == epoch(data)), "the room lives on");
        self.epoch = Some(epoch(data));
        let expected: Vec<u64> = (self.list.len() as u64 + 1..=data["last_id"].as_u64().unwrap()).collect();
        assert_eq!(ids(data), expected, "{} is told just what it missed", self.name);
        for message in data["history"].as_array().unwrap() {
            self.message(message.clone());
        }
        let line = self.line.as_mut().expect("a connection");
        line.welcomed = true;
        for said in self.unseen.iter().filter(|_| !line.is_hasty) {
            line.client.try_send(&frame(said));
        }
    }

    /// The next message, or, in answer to one that was sent again, one of before; never a gap.
    fn message(&mut self, data: Value) {
        let id = data["id"].as_u64().expect("an id") as usize;
        if data["username"] == self.name {
            self.unseen.retain(|(_, nonce)| data["nonce"] != *nonce);
        }
        if let Some(known) = self.list.get(id - 1) {
            assert_eq!(*known, data, "{} hears of {id} again", self.name);
            assert_eq!(data["username"], self.name, "only what it sent itself is told again");
            self.told_again += 1;
        } else {
            assert_eq!(id, self.list.len() + 1, "{} misses nothing", self.name);
            self.list.push(data);
        }
    }

    /// Loses the connection, in one of the ways in which connections are lost.
    fn lose(&mut self, random: &mut Rng) {
        if random.u8(0..3) == 0 && self.is_welcomed() {
            self.say(|len| random.usize(1..len));
        }
        let Some(mut line) = self.line.take() else { return };
        let client = &mut line.client;
        match random.u8(0..5) {
            0 => socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap(),
            1 => drop(client.stream.shutdown(Shutdown::Write)),
            2 => client.try_send(&masked(0x88, &1000u16.to_be_bytes())),
            // Only with an epoch can it take the place of its older self.
            3 if self.epoch.is_some() => self.abandoned.push(line),
            _ => {}
        }
    }

    fn is_welcomed(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.welcomed)
    }
}

/// A message as it is sent, for the first time or again.
fn frame((text, nonce): &(String, String)) -> Vec<u8> {
    masked(0x81, json!({"event": "message", "data": {"text": text, "nonce": nonce}}).to_string().as_bytes())
}

/// Four clients say some three hundred things while their connections are lost at every step that there is. In the end
/// all have the same list, everything is in it, and nothing twice.
fn talk(seed: u64, args: &[&str]) {
    let server = chat(&[args, &["--history", "1000"]].concat());
    let mut random = Rng::with_seed(seed);
    // One who stays, so that the room does, and two to whom nothing ever happens.
    let _host = Person::events(&server, "host", ROOM);
    let mut ron = Person::rooms(&server, "ron", ROOM);
    let mut pat = Person::presence(&server, "pat", ROOM);
    let mut peers: Vec<Peer> = (0..4).map(|number| Peer::new(&server, number)).collect();
    while peers.iter().map(|peer| peer.said).sum::<usize>() < 300 {
        let peer = random.choice(&mut peers).unwrap();
        match random.u8(0..20) {
            0..=2 => peer.lose(&mut random),
            3..=8 => peer.read(false),
            9..=11 => peer.read(peer.line.as_ref().is_some_and(|line| !line.welcomed)),
            _ if peer.line.is_none() => peer.connect(random.bool()),
            _ if peer.is_welcomed() => (0..random.u8(1..4)).for_each(|_| peer.say(|len| len)),
            _ => {}
        }
    }
    let total = peers.iter().map(|peer| peer.said).sum::<usize>();
    for peer in &mut peers {
        wait_until(&format!("{} is done (seed {seed})", peer.name), || {
            if peer.line.is_none() {
                peer.connect(false);
            }
            peer.read(false);
            peer.is_welcomed() && peer.unseen.is_empty()
        });
    }
    for peer in &mut peers {
        wait_until(&format!("{} has heard all (seed {seed})", peer.name), || {
            peer.read(false);
            peer.list.len() >= total
        });
    }
    // And no more comes: what is on its way to one is on its way to all, and comes before what is said now.
    ron.says("the end");
    for peer in &mut peers {
        while peer.list.last().is_none_or(|last| last["text"] != "the end") {
            peer.read(true);
        }
        assert_eq!(peer.list.len(), total + 1, "{} (seed {seed})", peer.name);
    }
    agree(&peers, seed);
    let texts: Vec<&Value> = peers[0].list.iter().map(|message| &message["text"]).collect();
    assert_eq!(told(&mut ron, "message"), json!(texts), "rooms (seed {seed})");
    assert_eq!(told(&mut pat, "chat_message"), json!(texts), "presence (seed {seed})");
    let sum = |count: fn(&Peer) -> usize| peers.iter().map(count).sum::<usize>();
    assert!(sum(|peer| peer.resumed) > 10, "connections were lost (seed {seed})");
    assert!(sum(|peer| peer.told_again) > 10, "messages were sent again that had arrived (seed {seed})");
    assert!(sum(|peer| peer.abandoned.len()) > 0, "connections were abandoned (seed {seed})");
    if args.contains(&"--unique-names") {
        peers.into_iter().flat_map(|peer| peer.abandoned).for_each(|line| line.was_replaced(seed));
    }
}

/// All lists are one list, in which each said all that they said, once and in order.
fn agree(peers: &[Peer], seed: u64) {
    let list = &peers[0].list;
    for peer in peers {
        assert_eq!(peer.list, *list, "{} (seed {seed})", peer.name);
        let own = list.iter().filter(|message| message["username"] == peer.name).map(|message| &message["text"]);
        let said = (1..=peer.said).map(|i| format!("{i} of {}", peer.name));
        assert_eq!(json!(own.collect::<Vec<_>>()), json!(said.collect::<Vec<_>>()), "seed {seed}");
    }
}

/// The texts of all the messages up to the end.
fn told(person: &mut Person, kind: &str) -> Value {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|last| last != "the end") {
        let mut heard = person.hear();
        if heard["type"] == kind {
            texts.push(heard["text"].take());
        }
    }
    json!(texts)
}

#[test]
fn connections_killed_at_random_points() {
    (0..8).for_each(|seed| talk(seed, &[]));
}

/// The same, where a name is one person's: whoever comes back takes the place of their own older connection.
#[test]
fn connections_killed_at_random_points_with_unique_names() {
    (100..108).for_each(|seed| talk(seed, &["--unique-names"]));
}
