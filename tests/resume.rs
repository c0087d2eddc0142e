//! Tests room histories and resumes: a client that loses its connection and resumes misses no message and receives
//! no message twice.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use support::table::each_row;
use support::users::{ANY_TIME, DIALECTS, Dialect, User, chat, encode, events_path};
use support::{RawClient, Server, masked, upgrade_request, wait_until, whole_frames};

fn epoch(data: &Value) -> String {
    data["epoch"].as_str().unwrap_or_else(|| panic!("an epoch is a string: {data}")).to_owned()
}

/// Joins with the query parameters in `resume`. Returns the user and the data of the `welcome` event.
fn join(server: &Server, name: &str, room: &str, resume: &str) -> (User, Value) {
    let path = format!("{}{resume}", events_path(name, room));
    let mut user = User::at(server, Dialect::Events, &path, name);
    let welcome = user.expect_event("welcome", json!({}));
    (user, welcome)
}

/// Joins with the query parameters in `resume`, leaves again, and returns the data of the `welcome` event.
fn welcome(server: &Server, room: &str, resume: &str) -> Value {
    let (user, welcome) = join(server, "guest", room, resume);
    user.leave();
    welcome
}

fn since(epoch: &str, id: impl ToString) -> String {
    format!("&epoch={}&since={}", encode(epoch), encode(&id.to_string()))
}

fn ids(data: &Value) -> Vec<u64> {
    let history = data["history"].as_array().unwrap_or_else(|| panic!("a history: {data}"));
    history.iter().map(|message| message["id"].as_u64().expect("an id")).collect()
}

/// Sends one message for each id in `ids`, with the id as its text. Waits until the server sends each message back, and
/// checks that the server has assigned the expected id. Returns the `data` fields of the messages received.
fn send_numbers(user: &mut User, ids: std::ops::RangeInclusive<u64>) -> Vec<Value> {
    let send = |id: u64| {
        user.send_message(&id.to_string());
        loop {
            let mut received = user.receive();
            if received["event"] == "message" {
                assert_eq!(received["data"]["id"], id, "{received}");
                return received["data"].take();
            }
        }
    };
    ids.map(send).collect()
}

// ---------------------------------------------------------------------------------- the parameters `epoch` and `since`

#[test]
fn a_room_without_a_message() {
    let server = chat(&[]);
    let (_eve, first) = join(&server, "eve", "general", "");
    assert_eq!((&first["last_id"], &first["history"], &first["resumed"]), (&json!(0), &json!([]), &json!(false)));
    let epoch = epoch(&first);
    assert!(!epoch.is_empty());
    // The room has no messages yet, so a client that resumes after id 0 has missed nothing.
    let again = welcome(&server, "general", &since(&epoch, 0));
    assert_eq!((&again["last_id"], &again["history"], &again["resumed"]), (&json!(0), &json!([]), &json!(true)));
    let ahead = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((&ahead["last_id"], &ahead["history"], &ahead["resumed"]), (&json!(0), &json!([]), &json!(false)));
}

/// Tests valid and invalid values of `epoch` and `since` in a room that has kept the last three of five messages.
#[test]
fn valid_and_invalid_values_of_epoch_and_since() {
    let server = chat(&["--history", "3"]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let sent = send_numbers(&mut eve, 1..=5);
    let (_other, elsewhere) = join(&server, "eve", "elsewhere", "");
    let other = elsewhere["epoch"].as_str().unwrap().to_owned();
    let wrong = format!("{epoch}x");
    let with = |id: &str| since(&epoch, id);
    let rows: Vec<(&str, String, Option<u64>)> = vec![
        ("all seen", with("5"), Some(5)),
        ("one missed", with("4"), Some(4)),
        ("two missed", with("3"), Some(3)),
        ("all kept messages missed", with("2"), Some(2)),
        ("one message missed that is not kept", with("1"), None),
        ("nothing seen", with("0"), None),
        ("more seen than exist", with("6"), None),
        ("far ahead", with("1000000000"), None),
        ("-1", with("-1"), None),
        ("-5", with("-5"), None),
        ("2^63 - 1", with("9223372036854775807"), None),
        ("2^63", with("9223372036854775808"), None),
        ("-2^63", with("-9223372036854775808"), None),
        ("2^64 - 1", with("18446744073709551615"), None),
        ("2^64", with("18446744073709551616"), None),
        ("2^64 + 5", with("18446744073709551621"), None),
        ("2^32 + 5", with("4294967301"), None),
        ("a thousand digits", with(&"5".repeat(1000)), None),
        ("not a number", with("five"), None),
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
            let history = &sent[seen.unwrap_or(2) as usize..];
            assert_eq!(welcome["resumed"], seen.is_some(), "{welcome}");
            assert_eq!(welcome["history"], json!(history));
            assert_eq!((&welcome["epoch"], &welcome["last_id"]), (&json!(epoch), &json!(5)));
        },
    );
}

/// A client that resumes several times, without a new message in between, receives no message twice.
#[test]
fn resuming_twice() {
    let server = chat(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let epoch = epoch(&first);
    send_numbers(&mut eve, 1..=3);
    let first = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((ids(&first), &first["resumed"]), (vec![2, 3], &json!(true)));
    for _ in 0..3 {
        let again = welcome(&server, "general", &since(&epoch, 3));
        assert_eq!((ids(&again), &again["resumed"]), (vec![], &json!(true)));
    }
}

/// A room keeps its last 50 messages by default, its last `N` messages with `--history N`, and none with `--history 0`.
#[test]
fn lengths_of_history() {
    for (args, kept) in
        [(&[][..], 50), (&["--history", "1"], 1), (&["--history", "120"], 120), (&["--history", "0"], 0)]
    {
        let server = chat(args);
        let (mut eve, first) = join(&server, "eve", "general", "");
        let epoch = epoch(&first);
        let sent = send_numbers(&mut eve, 1..=130);
        let new_client = welcome(&server, "general", "");
        assert!(new_client["history"] == json!(sent[130 - kept..]), "{args:?}: {:?}", ids(&new_client));
        assert_eq!((&new_client["last_id"], &new_client["resumed"]), (&json!(130), &json!(false)));
        let edge = 130 - kept as u64;
        for (id, resumed) in [(130, true), (edge, true), (edge - 1, false)] {
            let back = welcome(&server, "general", &since(&epoch, id));
            assert_eq!(back["resumed"], resumed, "{args:?}, since {id}");
            let from = if resumed { id } else { edge };
            assert_eq!(ids(&back), (from + 1..=130).collect::<Vec<_>>(), "{args:?}, since {id}");
        }
    }
}

/// With the default options, a new client receives even the longest possible history in full, whatever its dialect.
#[test]
fn the_longest_history() {
    let server = chat(&[]);
    let name = "\u{1f600}".repeat(32);
    let mut eve = User::events(&server, &name, "general");
    // A control character takes six bytes in JSON (`\u0001`), more than any other character.
    let text = format!("a{}b", "\u{1}".repeat(498));
    for i in 0..50 {
        let nonce = format!("{i:02}{}", "\u{1}".repeat(62));
        eve.send_event("message", json!({"text": text, "nonce": nonce}));
        eve.expect_event("message", json!({"text": text, "nonce": nonce}));
    }
    for dialect in DIALECTS {
        let mut guest = User::join(&server, dialect, "guest", "general");
        let first = guest.receive();
        if dialect == Dialect::Events {
            assert_eq!(ids(&first["data"]), (1..=50).collect::<Vec<_>>());
        } else {
            for i in 0..50 {
                let expected = guest.room_message(&name, &text, i);
                guest.expect_message(expected);
            }
        }
        guest.expect_nothing();
        guest.leave();
    }
}

/// The `switched` event contains the history of the new room.
#[test]
fn switching_to_a_room_with_a_history() {
    let server = chat(&["--history", "2"]);
    let (mut nina, new) = join(&server, "nina", "new", "");
    let sent = send_numbers(&mut nina, 1..=3);
    let mut moritz = User::events(&server, "moritz", "old");
    moritz.send_event("switch_room", json!({"room": "new"}));
    let data = json!({"room": "new", "members": ["nina"], "member_count": 1, "epoch": new["epoch"], "last_id": 3, "history": sent[1..]});
    moritz.expect_message(json!({"event": "switched", "data": data}));
    moritz.send_event("switch_room", json!({"room": "brand new"}));
    let data = moritz.expect_event("switched", json!({"members": [], "last_id": 0, "history": []}));
    assert_ne!(epoch(&data), epoch(&new));
    // A client can also resume in a room that it switched to.
    let epoch = epoch(&data);
    moritz.send_message("here");
    moritz.expect_message(moritz.room_message("moritz", "here", 1));
    let back = welcome(&server, "brand new", &since(&epoch, 0));
    assert_eq!((ids(&back), &back["resumed"]), (vec![1], &json!(true)));
}

/// Without a history file, a restart changes the room's epoch, so no client can resume.
#[test]
fn a_restarted_server() {
    let server = chat(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    send_numbers(&mut eve, 1..=3);
    drop((eve, server));
    let server = chat(&[]);
    let again = welcome(&server, "general", &since(&epoch(&first), 0));
    assert_ne!(epoch(&again), epoch(&first));
    assert_eq!((&again["resumed"], &again["last_id"], ids(&again)), (&json!(false), &json!(0), vec![]));
    let (mut eve, _) = join(&server, "eve", "general", "");
    send_numbers(&mut eve, 1..=3);
    let again = welcome(&server, "general", &since(&epoch(&first), 2));
    assert_eq!((&again["resumed"], &again["last_id"], ids(&again)), (&json!(false), &json!(3), vec![1, 2, 3]));
}

// ------------------------------------------------------------------------------------------------------ empty rooms

#[test]
fn an_empty_room_keeps_its_history() {
    let server = chat(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let sent = send_numbers(&mut eve, 1..=3);
    eve.leave();
    let back = welcome(&server, "general", &since(&epoch, 1));
    assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!(sent[1..])));
    let (mut eve, new_client) = join(&server, "eve", "general", "");
    assert_eq!((&new_client["epoch"], &new_client["history"]), (&json!(epoch), &json!(sent)));
    send_numbers(&mut eve, 4..=4);
    // A room also keeps its history when its last member switches to another room. A client that uses the `presence`
    // dialect receives the history too.
    eve.send_event("switch_room", json!({"room": "elsewhere"}));
    eve.expect_event("switched", json!({}));
    let mut pat = User::presence(&server, "pat", "general");
    for text in ["1", "2", "3", "4"] {
        pat.expect_message(pat.room_message("eve", text, 0));
    }
}

/// The server deletes the history of a room that has been empty for `--history-ttl`. A room with a member keeps its
/// history.
#[test]
fn a_history_that_expires() {
    let server = chat(&["--history-ttl", "0.2"]);
    let (mut empty, empty_welcome) = join(&server, "eve", "empty", "");
    let (mut held, held_welcome) = join(&server, "eve", "held", "");
    send_numbers(&mut empty, 1..=2);
    send_numbers(&mut held, 1..=2);
    empty.leave();
    // Every attempt joins the room, which restarts the expiry timer of the room's history. Double the wait each time,
    // so that it eventually exceeds `--history-ttl`.
    let mut wait = Duration::from_millis(10);
    let mut back = Value::Null;
    wait_until("the history has expired", || {
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

/// When more than `--max-empty-rooms` rooms are empty, the server deletes the history of the room that has been
/// empty longest.
#[test]
fn empty_room_limit() {
    let server = chat(&["--max-empty-rooms", "2"]);
    let mut epochs = Vec::new();
    for room in ["a", "b", "c", "d"] {
        let (mut eve, welcome) = join(&server, "eve", room, "");
        send_numbers(&mut eve, 1..=2);
        epochs.push(epoch(&welcome));
        eve.leave();
    }
    // Keep the users connected. If they left, their rooms would be empty again, and the server could evict the history
    // of a room that the loop has not checked yet.
    let mut users = Vec::new();
    for (room, i, kept) in [("d", 3, true), ("c", 2, true), ("b", 1, false), ("a", 0, false)] {
        let (eve, back) = join(&server, "eve", room, &since(&epochs[i], 1));
        assert_eq!((&back["resumed"], ids(&back)), (&json!(kept), if kept { vec![2] } else { vec![] }), "{room}");
        users.push(eve);
    }
}

/// If too many rooms are empty, the server deletes the history of the room that has been empty longest. Here, that is
/// `b`, because a user visits `a` again after `b`.
#[test]
fn the_empty_room_that_was_used_last_is_kept() {
    let server = chat(&["--max-empty-rooms", "2"]);
    let mut epochs = Vec::new();
    for room in ["a", "b", "a", "c"] {
        let (mut eve, welcome) = join(&server, "eve", room, "");
        let last = welcome["last_id"].as_u64().unwrap();
        send_numbers(&mut eve, last + 1..=last + 1);
        epochs.push(epoch(&welcome));
        eve.leave();
    }
    let (_c, back) = join(&server, "eve", "c", &since(&epochs[3], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(true), vec![1]));
    let (_a, back) = join(&server, "eve", "a", &since(&epochs[0], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(true), vec![1, 2]));
    let (_b, back) = join(&server, "eve", "b", &since(&epochs[1], 0));
    assert_eq!((&back["resumed"], ids(&back)), (&json!(false), vec![]));
}

/// A single room keeps the newest messages that fit within `--max-history`.
#[test]
fn limit_of_history_in_bytes() {
    const LIMIT: usize = 20_000;
    let server = chat(&["--history", "1000", "--max-history", &LIMIT.to_string()]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let epoch = epoch(&first);
    let text = |id: u64| format!("{id:0500}");
    for id in 1..=100 {
        eve.send_message(&text(id));
        eve.expect_message(eve.room_message("eve", &text(id), id));
    }
    let new_client = welcome(&server, "general", "");
    let kept = ids(&new_client);
    assert!(!kept.is_empty() && kept.len() * 500 <= LIMIT, "{} texts of 500 bytes", kept.len());
    assert!(kept.iter().copied().eq(101 - kept.len() as u64..=100), "the newest, without a gap: {kept:?}");
    let edge = kept[0] - 1;
    for (id, resumed) in [(edge, true), (edge - 1, false)] {
        let back = welcome(&server, "general", &since(&epoch, id));
        assert_eq!((&back["resumed"], ids(&back)), (&json!(resumed), kept.clone()));
    }
}

/// When the histories of all rooms together exceed `--max-history`, the server first deletes the complete history of
/// the room that has been empty longest.
#[test]
fn the_oldest_empty_room_is_dropped_first() {
    let text = "x".repeat(500);
    let mut seen = Vec::new();
    for count in (0..=40).step_by(2) {
        let server = chat(&["--history", "1000", "--max-history", "20000"]);
        let fill = |room: &str, count: u64| {
            let (mut eve, welcome) = join(&server, "eve", room, "");
            for id in 1..=count {
                eve.send_message(&text);
                eve.expect_message(eve.room_message("eve", &text, id));
            }
            (eve, epoch(&welcome))
        };
        let (first, first_epoch) = fill("first", 8);
        first.leave();
        let (second, second_epoch) = fill("second", 8);
        second.leave();
        let (_busy, _) = fill("busy", count);
        let kept = [("first", first_epoch), ("second", second_epoch)].map(|(room, epoch)| {
            let (user, back) = join(&server, "guest", room, &since(&epoch, 0));
            let complete = back["resumed"] == true;
            assert_eq!(
                ids(&back).len(),
                if complete { 8 } else { 0 },
                "complete or not at all: {room}, {count} in busy"
            );
            (user, complete)
        });
        seen.push(kept.map(|(_, complete)| complete));
    }
    assert_eq!(seen.first(), Some(&[true, true]));
    assert_eq!(seen.last(), Some(&[false, false]));
    assert!(seen.contains(&[false, true]) && !seen.contains(&[true, false]), "{seen:?}");
}

// ---------------------------------------------------------------------------------------------------------- nonces

fn with_nonce(text: &str, nonce: &str) -> Value {
    json!({"text": text, "nonce": nonce})
}

/// If the server already knows the nonce of a message, it does not publish the message again. The server repeats the
/// original event to the sender only.
#[test]
fn a_message_that_is_resent() {
    let server = chat(&[]);
    let mut eve = User::events(&server, "eve", "general");
    let mut bob = User::events(&server, "bob", "general");
    eve.expect_event("joined", json!({"username": "bob"}));
    eve.send_event("message", with_nonce("once", "n1"));
    let data = json!({"username": "eve", "text": "once", "id": 1, "time": ANY_TIME, "nonce": "n1"});
    let first = eve.expect_message(json!({"event": "message", "data": data}));
    assert_eq!(bob.receive(), first, "every member receives the nonce");
    // The server compares only the nonces, so the text may differ.
    for text in ["once", "twice"] {
        eve.send_event("message", with_nonce(text, "n1"));
        assert_eq!(eve.receive(), first);
    }
    bob.expect_nothing();
    // The server recognizes a resent message by its nonce, even on another connection with the same username.
    let mut again = User::events(&server, "eve", "general");
    for user in [&mut eve, &mut bob] {
        user.expect_event("joined", json!({"username": "eve"}));
    }
    again.send_event("message", with_nonce("once", "n1"));
    assert_eq!(again.receive(), first);
    // A message with another username, another nonce or no nonce is new.
    bob.send_event("message", with_nonce("once", "n1"));
    let data = json!({"username": "bob", "text": "once", "id": 2, "time": ANY_TIME, "nonce": "n1"});
    for user in [&mut eve, &mut bob, &mut again] {
        user.expect_message(json!({"event": "message", "data": data}));
    }
    for (id, nonce) in [(3, "N1"), (4, "n1 x")] {
        eve.send_event("message", with_nonce("once", nonce));
        let data = json!({"username": "eve", "text": "once", "id": id, "time": ANY_TIME, "nonce": nonce});
        for user in [&mut eve, &mut bob, &mut again] {
            user.expect_message(json!({"event": "message", "data": data}));
        }
    }
    for id in [5, 6] {
        eve.send_message("once");
        for user in [&mut eve, &mut bob, &mut again] {
            let expected = user.room_message("eve", "once", id);
            user.expect_message(expected);
        }
    }
    let new_client = welcome(&server, "general", "");
    assert_eq!(ids(&new_client), [1, 2, 3, 4, 5, 6]);
    assert_eq!(new_client["history"][0], first["data"], "the history has what was received");
}

/// A room remembers a nonce for as long as the room's history keeps the message.
#[test]
fn the_scope_of_a_nonce() {
    for (args, dropped) in [(&["--history", "2"][..], 3), (&["--history", "0"], 1)] {
        let server = chat(args);
        let mut eve = User::events(&server, "eve", "general");
        eve.send_event("message", with_nonce("first", "n"));
        eve.expect_event("message", json!({"id": 1, "nonce": "n"}));
        for id in 2..=dropped {
            if id == 3 {
                eve.send_event("message", with_nonce("still there", "n"));
                eve.expect_event("message", json!({"id": 1, "text": "first"}));
            }
            eve.send_message("another");
            eve.expect_message(eve.room_message("eve", "another", id));
        }
        eve.send_event("message", with_nonce("again", "n"));
        eve.expect_event("message", json!({"id": dropped + 1, "text": "again", "nonce": "n"}));
        eve.send_event("switch_room", json!({"room": "elsewhere"}));
        eve.expect_event("switched", json!({}));
        eve.send_event("message", with_nonce("elsewhere", "n"));
        eve.expect_event("message", json!({"id": 1, "text": "elsewhere", "nonce": "n"}));
    }
}

/// A nonce is a string of 1 to 64 characters.
#[test]
fn valid_nonces() {
    let server = chat(&[]);
    let mut eve = User::events(&server, "eve", "general");
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
            eve.send_event("message", json!({"text": "hello", "nonce": nonce}));
            if *good {
                id += 1;
                let data = json!({"username": "eve", "text": "hello", "id": id, "time": ANY_TIME, "nonce": nonce});
                eve.expect_message(json!({"event": "message", "data": data}));
            } else {
                let data = eve.expect_event("error", json!({}));
                let message = data["message"].as_str().unwrap();
                assert!(message.contains("nonce"), "the error names the field: {data}");
            }
            eve.expect_nothing();
        },
    );
}

#[test]
fn errors_carry_the_nonce() {
    let server = chat(&["--max-text", "30"]);
    let mut eve = User::events(&server, "eve", "general");
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
            eve.send_event(event, data.clone());
            eve.expect_message(json!({"event": "error", "data": {"message": message, "nonce": "n"}}));
            // If the message has no nonce, the error has none either.
            let mut data = data.clone();
            data.as_object_mut().unwrap().remove("nonce");
            eve.send_event(event, data);
            eve.expect_message(eve.error(message));
        },
    );
    // The server does not remember the nonce of a rejected message, so the next message may reuse the nonce.
    eve.send_event("message", with_nonce("hello", "n"));
    eve.expect_event("message", json!({"id": 1, "nonce": "n"}));
}

#[test]
fn an_error_about_a_field_carries_the_nonce() {
    let server = chat(&[]);
    let mut eve = User::events(&server, "eve", "general");
    for data in [r#"{"nonce":"n","text":1}"#, r#"{"text":1,"nonce":"n"}"#] {
        eve.send(&format!(r#"{{"event":"message","data":{data}}}"#));
        eve.expect_event("error", json!({"nonce": "n"}));
    }
    for text in ["", "  "] {
        eve.send_event("message", with_nonce(text, "n"));
        eve.expect_event("error", json!({"nonce": "n", "message": "Nothing to send"}));
    }
}

// ------------------------------------------------------------------------------------- connections killed at random

const ROOM: &str = "talk";

/// A client that keeps its list of messages across lost connections, as `src/chat/PROTOCOL.md` describes.
struct Peer<'a> {
    server: &'a Server,
    name: String,
    connection: Option<Connection>,
    epoch: Option<String>,
    session: String,
    /// The data of each received message, ordered by id.
    messages: Vec<Value>,
    /// Text and nonce of each message that the client has sent but not received back, oldest first.
    unseen: VecDeque<(String, String)>,
    sent: usize,
    /// Connections that the client no longer uses, but has not closed.
    abandoned: Vec<Connection>,
    /// Number of times that the client resumed.
    resumed: usize,
    /// Number of messages that the client received a second time.
    duplicates: usize,
}

/// A connection, and the received bytes of an incomplete frame.
struct Connection {
    client: RawClient,
    buffer: Vec<u8>,
    resends_early: bool,
    is_joined: bool,
}

impl Connection {
    /// Checks that the server has closed this abandoned connection because a newer connection replaced it.
    fn assert_replaced(mut self, seed: u64) {
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
            assert!(n > 0, "the end, without a Close (seed {seed})");
            self.buffer.extend_from_slice(&chunk[..n]);
        }
    }
}

impl<'a> Peer<'a> {
    fn new(server: &'a Server, number: usize) -> Peer<'a> {
        let name = format!("peer {number}");
        let (messages, unseen, abandoned) = (Vec::new(), VecDeque::new(), Vec::new());
        Peer {
            server,
            name,
            connection: None,
            epoch: None,
            session: String::new(),
            messages,
            unseen,
            sent: 0,
            abandoned,
            resumed: 0,
            duplicates: 0,
        }
    }

    /// Joins or resumes. With `resends_early`, it resends its unacknowledged messages together with the upgrade
    /// request. Otherwise, it waits for `welcome`, because the history in `welcome` may acknowledge some of them.
    fn connect(&mut self, resends_early: bool) {
        let resume = self
            .epoch
            .as_ref()
            .map_or(String::new(), |epoch| format!("{}&session={}", since(epoch, self.messages.len()), self.session));
        let mut all = upgrade_request(&format!("{}{resume}", events_path(&self.name, ROOM))).into_bytes();
        if resends_early {
            all.extend(self.unseen.iter().flat_map(frame));
        }
        let mut client = self.server.connect();
        client.send(&all);
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        self.connection = Some(Connection { client, buffer: Vec::new(), resends_early, is_joined: false });
    }

    /// Sends the first bytes of a new message's frame. `part` receives the length of the frame and returns how many
    /// bytes to send.
    fn send(&mut self, part: impl FnOnce(usize) -> usize) {
        self.sent += 1;
        let sent = (format!("{} of {}", self.sent, self.name), format!("n{}", self.sent));
        let frame = frame(&sent);
        self.unseen.push_back(sent);
        let client = &mut self.connection.as_mut().expect("a connection").client;
        client.try_send(&frame[..part(frame.len())]);
    }

    /// Reads from the connection, and processes all complete frames. With `wait`, blocks until bytes arrive.
    fn read(&mut self, wait: bool) {
        let Some(connection) = &mut self.connection else { return };
        let mut chunk = [0; 4096];
        connection.client.stream.set_nonblocking(!wait).unwrap();
        let read = connection.client.stream.read(&mut chunk);
        connection.client.stream.set_nonblocking(false).unwrap();
        match read {
            Ok(0) => panic!("the server ended the connection of {}", self.name),
            Ok(n) => connection.buffer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock && !wait => return,
            Err(e) => panic!("the connection of {} failed: {e}", self.name),
        }
        let (frames, rest) = whole_frames(&connection.buffer);
        connection.buffer = rest.to_vec();
        for frame in frames {
            if frame.opcode() == 8 {
                // Only a client that does not resume can be rejected: a client that resumes replaces its own older
                // connection.
                assert_eq!(frame.close(), (1008, "username already in use".to_owned()));
                assert!(self.epoch.is_none(), "{} resumed and was rejected", self.name);
                self.connection = None;
                return;
            }
            if frame.first == 0x81 {
                self.receive(serde_json::from_str(frame.text()).expect("JSON"));
            }
        }
    }

    fn receive(&mut self, mut received: Value) {
        let data = received["data"].take();
        match received["event"].as_str().expect("an event") {
            "welcome" => self.welcome(&data),
            "message" => self.message(data),
            "joined" | "left" => {}
            other => panic!("{} receives {other}: {data}", self.name),
        }
    }

    fn welcome(&mut self, data: &Value) {
        assert_eq!(data["resumed"], self.epoch.is_some(), "{}: {data}", self.name);
        self.resumed += usize::from(self.epoch.is_some());
        assert!(self.epoch.as_ref().is_none_or(|known| *known == epoch(data)), "the epoch is the same");
        self.epoch = Some(epoch(data));
        self.session = data["session"].as_str().unwrap().to_owned();
        let expected: Vec<u64> = (self.messages.len() as u64 + 1..=data["last_id"].as_u64().unwrap()).collect();
        assert_eq!(ids(data), expected, "{} receives exactly what it missed", self.name);
        for message in data["history"].as_array().unwrap() {
            self.message(message.clone());
        }
        let connection = self.connection.as_mut().expect("a connection");
        connection.is_joined = true;
        for sent in self.unseen.iter().filter(|_| !connection.resends_early) {
            connection.client.try_send(&frame(sent));
        }
    }

    /// Adds a new message to the list, or checks that a repeated message is unchanged. Ids must have no gaps.
    fn message(&mut self, data: Value) {
        let id = data["id"].as_u64().expect("an id") as usize;
        if data["username"] == self.name {
            self.unseen.retain(|(_, nonce)| data["nonce"] != *nonce);
        }
        if let Some(known) = self.messages.get(id - 1) {
            assert_eq!(*known, data, "{} receives {id} again", self.name);
            assert_eq!(data["username"], self.name, "only its own messages are repeated");
            self.duplicates += 1;
        } else {
            assert_eq!(id, self.messages.len() + 1, "{} misses nothing", self.name);
            self.messages.push(data);
        }
    }

    /// Ends or abandons the connection in a random way.
    fn lose(&mut self, random: &mut Rng) {
        if random.u8(0..3) == 0 && self.is_joined() {
            self.send(|len| random.usize(1..len));
        }
        let Some(mut connection) = self.connection.take() else { return };
        let client = &mut connection.client;
        match random.u8(0..5) {
            0 => socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap(),
            1 => drop(client.stream.shutdown(Shutdown::Write)),
            2 => client.try_send(&masked(0x88, &1000u16.to_be_bytes())),
            // Abandon the connection without closing it. To replace it later, the client needs the session from an
            // earlier `welcome`, so a client that has never received a `welcome` closes it instead.
            3 if self.epoch.is_some() => self.abandoned.push(connection),
            _ => {}
        }
    }

    fn is_joined(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_joined)
    }
}

/// Encodes a message and its nonce as a frame.
fn frame((text, nonce): &(String, String)) -> Vec<u8> {
    masked(0x81, json!({"event": "message", "data": {"text": text, "nonce": nonce}}).to_string().as_bytes())
}

/// Four clients send about 300 messages while they lose their connections at random moments. At the end, all clients
/// have the same list, which contains every message exactly once.
fn run(seed: u64, args: &[&str]) {
    let server = chat(&[args, &["--history", "1000"]].concat());
    let mut random = Rng::with_seed(seed);
    // `host` stays in the room, so that the room never becomes empty. `ron` (dialect `rooms`) and `pat` (dialect
    // `presence`) stay connected throughout the test.
    let _host = User::events(&server, "host", ROOM);
    let mut ron = User::rooms(&server, "ron", ROOM);
    let mut pat = User::presence(&server, "pat", ROOM);
    let mut peers: Vec<Peer> = (0..4).map(|number| Peer::new(&server, number)).collect();
    while peers.iter().map(|peer| peer.sent).sum::<usize>() < 300 {
        let peer = random.choice(&mut peers).unwrap();
        match random.u8(0..20) {
            0..=2 => peer.lose(&mut random),
            3..=8 => peer.read(false),
            9..=11 => peer.read(peer.connection.as_ref().is_some_and(|connection| !connection.is_joined)),
            _ if peer.connection.is_none() => peer.connect(random.bool()),
            _ if peer.is_joined() => (0..random.u8(1..4)).for_each(|_| peer.send(|len| len)),
            _ => {}
        }
    }
    let total = peers.iter().map(|peer| peer.sent).sum::<usize>();
    for peer in &mut peers {
        wait_until(&format!("{} has all acknowledgements (seed {seed})", peer.name), || {
            if peer.connection.is_none() {
                peer.connect(false);
            }
            peer.read(false);
            peer.is_joined() && peer.unseen.is_empty()
        });
    }
    for peer in &mut peers {
        wait_until(&format!("{} has all messages (seed {seed})", peer.name), || {
            peer.read(false);
            peer.messages.len() >= total
        });
    }
    // Send a last message. Once a client has received it, no earlier message to that client is still in flight.
    ron.send_message("the end");
    for peer in &mut peers {
        while peer.messages.last().is_none_or(|last| last["text"] != "the end") {
            peer.read(true);
        }
        assert_eq!(peer.messages.len(), total + 1, "{} (seed {seed})", peer.name);
    }
    assert_equal_lists(&peers, seed);
    let texts: Vec<&Value> = peers[0].messages.iter().map(|message| &message["text"]).collect();
    assert_eq!(receive_all_texts(&mut ron, "message"), json!(texts), "rooms (seed {seed})");
    assert_eq!(receive_all_texts(&mut pat, "chat_message"), json!(texts), "presence (seed {seed})");
    let sum = |count: fn(&Peer) -> usize| peers.iter().map(count).sum::<usize>();
    assert!(sum(|peer| peer.resumed) > 10, "connections were lost (seed {seed})");
    assert!(sum(|peer| peer.duplicates) > 10, "messages were resent that had arrived (seed {seed})");
    assert!(sum(|peer| peer.abandoned.len()) > 0, "connections were abandoned (seed {seed})");
    if args.contains(&"--unique-names") {
        peers.into_iter().flat_map(|peer| peer.abandoned).for_each(|connection| connection.assert_replaced(seed));
    }
}

/// Checks that all clients have the same list, and that the list contains each client's messages once and in order.
fn assert_equal_lists(peers: &[Peer], seed: u64) {
    let messages = &peers[0].messages;
    for peer in peers {
        assert_eq!(peer.messages, *messages, "{} (seed {seed})", peer.name);
        let own = messages.iter().filter(|message| message["username"] == peer.name).map(|message| &message["text"]);
        let sent = (1..=peer.sent).map(|i| format!("{i} of {}", peer.name));
        assert_eq!(json!(own.collect::<Vec<_>>()), json!(sent.collect::<Vec<_>>()), "seed {seed}");
    }
}

/// Receives events up to the message "the end". Returns the texts of all messages.
fn receive_all_texts(user: &mut User, kind: &str) -> Value {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|last| last != "the end") {
        let mut received = user.receive();
        if received["type"] == kind {
            texts.push(received["text"].take());
        }
    }
    json!(texts)
}

#[test]
fn connections_killed_at_random_points() {
    (0..8).for_each(|seed| run(seed, &[]));
}

/// With `--unique-names`, a client that resumes replaces its own older connection.
#[test]
fn connections_killed_at_random_points_with_unique_names() {
    (100..108).for_each(|seed| run(seed, &["--unique-names"]));
}
