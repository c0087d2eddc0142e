//! Tests the `history` command: a client pages back through its room's history, and no other client receives anything.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::table::each_row;
use support::users::{ANY_TIME, Dialect, User, chat};
use support::{Server, masked};

fn ids(page: &Value) -> Vec<u64> {
    page["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|message| message["id"].as_u64().expect("an id"))
        .collect()
}

/// Sends one message per id, with the id as its text, and receives each `message` event.
fn send_numbers(user: &mut User, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        user.send_message(&id.to_string());
        user.expect_event("message", json!({"id": id, "text": id.to_string()}));
    }
}

/// Sends a `history` command with the fields `data`, and returns the page of messages that the server sends back.
/// `user` must receive no other event before the page.
fn page(user: &mut User, room: &str, data: Value) -> Value {
    user.send_event("history", data.clone());
    let page = user.expect_event("history", json!({"room": room, "before": data["before"]}));
    assert_eq!(page.as_object().map(serde_json::Map::len), Some(4), "{page}");
    page
}

/// Starts a server on which Eve sends `count` messages to one room. Returns the server and Eve.
fn server_with_messages(count: u64, args: &[&str]) -> (Server, User) {
    let server = chat(args);
    let mut eve = User::events(&server, "eve", "general");
    send_numbers(&mut eve, 1..=count);
    (server, eve)
}

#[test]
fn pages_lead_back_to_the_first_message() {
    let (server, mut eve) = server_with_messages(130, &["--history", "200"]);
    let mut guest = User::join(&server, Dialect::Events, "guest", "general");
    let welcome = guest.expect_event("welcome", json!({"last_id": 130}));
    eve.expect_event("joined", json!({}));
    for limit in [1, 7, 50, 99, 100] {
        let (mut before, mut messages, mut pages) = (131, Vec::new(), 0);
        loop {
            let page = page(&mut guest, "general", json!({"before": before, "limit": limit}));
            let mut older = page["messages"].as_array().unwrap().clone();
            assert!(!older.is_empty() && older.len() <= limit, "{page}");
            before = older[0]["id"].as_u64().unwrap();
            older.append(&mut messages);
            messages = older;
            pages += 1;
            if page["more"] == json!(false) {
                break;
            }
        }
        assert_eq!((before, pages), (1, 130_usize.div_ceil(limit)));
        let ids: Vec<u64> = messages.iter().map(|message| message["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (1..=130).collect::<Vec<_>>(), "each message once, oldest first");
        assert_eq!(json!(messages), welcome["history"], "the pages equal the history in `welcome`");
    }
    eve.expect_nothing();
    guest.expect_nothing();
}

/// Tests the boundary values of `before` and `limit` in a room whose history has the messages 11 to 130.
#[test]
fn edges_of_a_page() {
    let (_server, mut eve) = server_with_messages(130, &["--history", "120"]);
    let rows = [
        (json!({"before": 131}), 81..131, true),
        (json!({"before": 130}), 80..130, true),
        (json!({"before": 131, "limit": 1}), 130..131, true),
        (json!({"before": 131, "limit": 100}), 31..131, true),
        (json!({"before": 61}), 11..61, false),
        (json!({"before": 62}), 12..62, true),
        (json!({"before": 12, "limit": 1}), 11..12, false),
        (json!({"before": 11}), 0..0, false),
        (json!({"before": 5}), 0..0, false),
        (json!({"before": 1}), 0..0, false),
        (json!({"before": 0}), 0..0, false),
        (json!({"before": 132}), 81..131, true),
        (json!({"before": u64::from(u32::MAX) + 12}), 81..131, true),
        (json!({"before": (1_u64 << 53) - 1}), 81..131, true),
        (json!({"before": u64::MAX}), 81..131, true),
        (json!({"before": 12, "limit": 100, "more": true, "room": "x"}), 11..12, false),
    ];
    each_row(
        &rows,
        |(data, ..)| data.to_string(),
        |(data, expected, more)| {
            let page = page(&mut eve, "general", data.clone());
            assert_eq!((ids(&page), &page["more"]), (expected.clone().collect(), &json!(more)));
        },
    );
    // An integer that does not fit in a `u64` is valid, like any other `before` greater than `last_id`.
    eve.send(r#"{"event":"history","data":{"before":100000000000000000000000}}"#);
    assert_eq!(ids(&eve.expect_event("history", json!({"more": true}))), (81..131).collect::<Vec<_>>());
}

#[test]
fn errors_name_the_field() {
    let (_server, mut eve) = server_with_messages(1, &[]);
    let integer = "expected an integer, 0 or more";
    let mut rows = vec![
        ("{}".to_owned(), "data.before: the id of a message is required".to_owned()),
        (r#"{"limit":1}"#.to_owned(), "data.before: the id of a message is required".to_owned()),
        (r#"{"before":1,"before":1}"#.to_owned(), "data: duplicate field `before`".to_owned()),
    ];
    for value in ["null", "\"1\"", "\"\"", "1.5", "1.0", "1e2", "-1", "-0", "true", "[1]", "{}"] {
        rows.push((format!(r#"{{"before":{value}}}"#), format!("data.before: {integer}")));
        rows.push((format!(r#"{{"before":1,"limit":{value}}}"#), format!("data.limit: {integer}")));
    }
    for value in ["0", "101", "18446744073709551615", "18446744073709551616"] {
        rows.push((format!(r#"{{"before":1,"limit":{value}}}"#), "data.limit: a limit is from 1 to 100".to_owned()));
    }
    each_row(
        &rows,
        |(data, _)| data.clone(),
        |(data, error)| {
            eve.send(&format!(r#"{{"event":"history","data":{data}}}"#));
            assert_eq!(eve.expect_error(), *error);
        },
    );
    eve.send(r#"{"event":"history"}"#);
    assert_eq!(eve.expect_error(), "data.before: the id of a message is required");
    eve.send_event("history", json!({"before": null, "nonce": "n1"}));
    eve.expect_event("error", json!({"nonce": "n1"}));
    eve.expect_nothing();
}

/// The server executes commands in order, even if all of them arrive in one read. A history page comes from the room
/// that the client is in when the server executes the `history` command.
#[test]
fn pages_keep_the_order_of_the_commands() {
    let (server, mut eve) = server_with_messages(2, &[]);
    let mut tom = User::events(&server, "tom", "tea");
    send_numbers(&mut tom, 1..=1);
    let history = r#"{"event":"history","data":{"before":99,"limit":2}}"#;
    let commands = [
        history,
        r#"{"event":"message","data":{"text":"3"}}"#,
        history,
        r#"{"event":"switch_room","data":{"room":"tea"}}"#,
        history,
        r#"{"event":"message","data":{"text":"2"}}"#,
        r#"{"event":"ping"}"#,
        history,
        r#"{"event":"switch_room","data":{"room":"new"}}"#,
        history,
    ];
    eve.client.send(&commands.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect::<Vec<_>>());
    let receives_page = |eve: &mut User, room: &str, expected: &[u64], more: bool| {
        let page = eve.expect_event("history", json!({"room": room, "before": 99, "more": more}));
        assert_eq!(ids(&page), expected);
    };
    receives_page(&mut eve, "general", &[1, 2], false);
    eve.expect_event("message", json!({"id": 3}));
    receives_page(&mut eve, "general", &[2, 3], true);
    eve.expect_event("switched", json!({"room": "tea"}));
    receives_page(&mut eve, "tea", &[1], false);
    eve.expect_event("message", json!({"id": 2}));
    eve.expect_event("pong", json!({}));
    receives_page(&mut eve, "tea", &[1, 2], false);
    eve.expect_event("switched", json!({"room": "new"}));
    receives_page(&mut eve, "new", &[], false);
    eve.expect_nothing();
    tom.expect_event("joined", json!({"username": "eve"}));
    tom.expect_event("message", json!({"id": 2}));
    tom.expect_event("left", json!({"username": "eve"}));
    tom.expect_nothing();
}

#[test]
fn a_message_in_a_page_equals_its_event() {
    let server = chat(&[]);
    let mut eve = User::events(&server, "eve", "general");
    let mut ann = User::rooms(&server, "ann", "general");
    eve.expect_event("joined", json!({}));
    eve.send_event("message", json!({"text": "a \"quoted\" \u{1}", "nonce": "n\u{1}"}));
    let first = eve.expect_event("message", json!({}));
    ann.send_message("from another dialect");
    let second = eve.expect_event("message", json!({}));
    let data = json!({"room": "general", "before": 3, "messages": [first, second], "more": false});
    eve.send_event("history", json!({"before": 3}));
    eve.expect_message(json!({"event": "history", "data": data}));
    // The history does not contain private messages.
    eve.send_event("private", json!({"to": "ann", "text": "psst"}));
    eve.expect_message(eve.private_message("eve", "ann", "psst"));
    assert_eq!(page(&mut eve, "general", json!({"before": 9}))["messages"], data["messages"]);
    assert_eq!(first["time"].as_str().map(str::len), Some("2026-01-31T12:00:00.000Z".len()), "{ANY_TIME}");
}

#[test]
fn a_server_that_keeps_no_history() {
    let (_server, mut eve) = server_with_messages(3, &["--history", "0"]);
    for before in [0, 1, 4, 99] {
        let page = page(&mut eve, "general", json!({"before": before}));
        assert_eq!((&page["messages"], &page["more"]), (&json!([]), &json!(false)));
    }
}

#[test]
fn a_page_counts_towards_the_rate_limit() {
    let server = Server::start(&["--rate-limit", "1"]);
    let mut eve = User::events(&server, "eve", "general");
    (0..2).for_each(|_| drop(page(&mut eve, "general", json!({"before": 1}))));
    eve.send_event("history", json!({"before": 1}));
    assert_eq!(eve.expect_error(), "Slow down");
}

/// If `limit` messages do not fit in the outbox, the server sends a shorter page. The client gets the rest
/// with further requests.
#[test]
fn long_messages_make_short_pages() {
    let server = chat(&["--history", "100", "--max-outbox", "16384"]);
    let mut eve = User::events(&server, "eve", "general");
    for id in 1..=100 {
        eve.send_message(&"\u{1}".repeat(498).replacen('\u{1}', "x", 1).chars().rev().chain(['x']).collect::<String>());
        eve.expect_event("message", json!({"id": id}));
    }
    let (mut before, mut all) = (101, Vec::new());
    while before > 1 {
        eve.send_event("history", json!({"before": before, "limit": 100}));
        let frame = eve.frame();
        assert!(frame.payload.len() <= 16384, "{} bytes", frame.payload.len());
        let page: Value = serde_json::from_str(frame.text()).unwrap();
        let page = &page["data"];
        assert_eq!(page["more"], json!(ids(page)[0] > 1));
        all.splice(0..0, ids(page));
        before = all[0];
    }
    assert_eq!(all, (1..=100).collect::<Vec<_>>());
}

#[test]
fn only_the_events_dialect_has_the_history_command() {
    let server = chat(&[]);
    let mut ann = User::rooms(&server, "ann", "general");
    ann.send(r#"{"type":"history","before":1}"#);
    assert_eq!(ann.expect_error(), "Unknown event: history");
    let mut pat = User::presence(&server, "pat", "tea");
    let text = r#"{"event":"history","data":{"before":1}}"#;
    pat.send_message(text);
    let expected = pat.room_message("pat", text, 1);
    pat.expect_message(expected);
}
