//! Tests several instances with one Redis (PROTOCOL.md, "Several instances"). The instances must act as one chat:
//! rooms, members, message ids, histories, resuming, nonces, private messages, typing events and usernames work across
//! all instances.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/redis_server.rs"]
mod redis_server;
mod support;

use std::time::Duration;

use cluster::{Cluster, ids, instance, join, names, next, publish, since, welcome};
use redis_server::{Persistence, RedisServer};
use serde_json::{Value, json};
use support::http::handshake;
use support::users::{ANY_TIME, DIALECTS, Dialect, User, encode, events_path, path, presence_path, rooms_path, same};
use support::{Server, becomes_true, token_file, wait_until};

use Dialect::{Events, Presence};

const IN_USE: &str = "username already in use";
const REPLACED: &str = "replaced by a newer connection";

fn system(what: &str) -> Value {
    json!({"type": "system", "message": format!("A user {what} the chat")})
}

fn active(what: &str, name: &str, users: &[&str]) -> Value {
    json!({"type": format!("user_{what}"), "username": name, "active_users": users})
}

fn event(event: &str, name: &str) -> Value {
    json!({"event": event, "data": {"username": name}})
}

/// Sends a message as `sender`. Asserts that the message is the next event that `sender` and `others` receive, so that
/// any other unread event fails the test.
fn assert_no_other_event(sender: &mut User, others: &mut [&mut User], text: &str) {
    sender.send_event("message", json!({"text": text}));
    let data = sender.expect_event("message", json!({"text": text}));
    for user in others {
        user.expect_event("message", data.clone());
    }
}

// ------------------------------------------------------------------------------------------------- order and members

/// Nine clients on three instances publish at the same time. All clients receive the same messages in the same order,
/// and each sender's messages arrive in the order sent.
#[test]
fn one_order_and_one_sequence_of_ids() {
    const CLIENTS: usize = 9;
    const TEXTS: usize = 60;
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    let mut users: Vec<User> =
        (0..CLIENTS).map(|i| User::events(cluster.at(i % 3), &format!("user-{i}"), "r")).collect();
    for text in 0..TEXTS {
        users.iter_mut().for_each(|user| user.send_message(&text.to_string()));
    }
    let lists: Vec<Vec<Value>> =
        users.iter_mut().map(|user| (0..CLIENTS * TEXTS).map(|_| next(user, "message")).collect()).collect();
    for (i, message) in lists[0].iter().enumerate() {
        assert_eq!(message["id"], i + 1, "{message}");
    }
    for name in (0..CLIENTS).map(|i| format!("user-{i}")) {
        let sent = lists[0].iter().filter(|message| message["username"] == name);
        assert!(
            sent.map(|message| message["text"].clone()).eq((0..TEXTS).map(|text| json!(text.to_string()))),
            "{name}"
        );
    }
    assert!(lists.iter().all(|list| *list == lists[0]), "all lists are equal");
    users.iter_mut().for_each(User::expect_nothing);
}

/// Members on all instances receive joins, leaves and messages in the same order.
#[test]
fn joins_and_leaves_have_a_place_in_the_order() {
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    let mut watchers: Vec<User> = Vec::new();
    for i in 0..3 {
        let watcher = User::events(cluster.at(i), &format!("watcher-{i}"), "r");
        watchers.iter_mut().for_each(|earlier| drop(earlier.expect_message(event("joined", &format!("watcher-{i}")))));
        watchers.push(watcher);
    }
    for round in 0..15 {
        watchers.iter_mut().for_each(|watcher| watcher.send_message(&round.to_string()));
        let (guest, welcome) = join(cluster.at(round % 3), &format!("guest-{round}"), "r", "");
        assert_eq!(names(&welcome["members"]), ["watcher-0", "watcher-1", "watcher-2"], "{welcome}");
        guest.leave();
        // Wait for `left`: the next guest, on another instance, must not join before this leave reaches Redis.
        next(&mut watchers[0], "left");
    }
    publish(&mut watchers[0], "the end");
    let mut lists = Vec::new();
    for watcher in &mut watchers[1..] {
        let mut list = Vec::new();
        while list.last().is_none_or(|last: &Value| last["data"]["text"] != "the end") {
            let mut event = watcher.receive();
            event["data"].as_object_mut().unwrap().remove("nonce");
            list.push(event);
        }
        lists.push(list);
    }
    assert_eq!(lists[0], lists[1]);
    let count = |event: &str| lists[0].iter().filter(|received| received["event"] == event).count();
    assert_eq!((count("joined"), count("left"), count("message")), (15, 15, 46));
}

/// Members on two instances, in three dialects, receive each other's joins, messages and leaves.
#[test]
fn all_dialects_share_a_room_across_instances() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let mut eve = User::events(a, "eve", "general");
    let mut ron = User::rooms(b, "ron", "general");
    eve.expect_message(event("joined", "Anonymous"));
    let mut pat = User::presence(a, "pat", "general");
    eve.expect_message(event("joined", "pat"));
    ron.expect_message(system("joined"));
    let (mut ann, welcome) = join(b, "ann", "general", "");
    assert_eq!(names(&welcome["members"]), ["Anonymous", "eve", "pat"]);
    assert_eq!(welcome["member_count"], 3);
    eve.expect_message(event("joined", "ann"));
    ron.expect_message(system("joined"));
    pat.expect_message(active("joined", "ann", &["eve", "Anonymous", "pat", "ann"]));
    let mut pia = User::at(b, Presence, &presence_path("pia", "1", "general"), "pia");
    pia.expect_message(active("joined", "pia", &["eve", "Anonymous", "pat", "ann", "pia"]));
    pat.expect_message(active("joined", "pia", &["eve", "Anonymous", "pat", "ann", "pia"]));
    eve.expect_message(event("joined", "pia"));
    ann.expect_message(event("joined", "pia"));
    ron.expect_message(system("joined"));

    let mut members = [eve, ron, pat, ann, pia];
    for (id, sender) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)] {
        let (name, text) = (members[sender].name.clone(), format!("number {id}"));
        members[sender].send_message(&text);
        for member in &mut members {
            let message = member.room_message(&name, &text, id);
            member.expect_message(message);
        }
    }
    let [mut eve, mut ron, pat, mut ann, mut pia] = members;
    pat.leave();
    for user in [&mut eve, &mut ann] {
        user.expect_message(event("left", "pat"));
    }
    ron.expect_message(system("left"));
    pia.expect_message(active("left", "pat", &["eve", "Anonymous", "ann", "pia"]));
    ron.leave();
    eve.expect_message(event("left", "Anonymous"));
    ann.expect_message(event("left", "Anonymous"));
    pia.expect_message(active("left", "Anonymous", &["eve", "ann", "pia"]));
    // Clients of every dialect, on either instance, receive the history.
    for (i, dialect) in DIALECTS.into_iter().enumerate() {
        let mut late = User::join(cluster.at(i % 2), dialect, "late", "general");
        let first = late.receive();
        if dialect == Events {
            assert_eq!(ids(&first["data"]["history"]), [1, 2, 3, 4, 5], "{first}");
        } else {
            for (id, name) in [(1, "eve"), (2, "ron"), (3, "pat"), (4, "ann"), (5, "pia")] {
                late.expect_message(late.room_message(name, &format!("number {id}"), id));
            }
        }
        late.leave();
    }
}

/// `--max-listed` limits `members`, and `--max-presence` limits `active_users`. Both limits count the members on all
/// instances together.
#[test]
fn large_rooms() {
    let Some(cluster) = Cluster::start(2, &["--max-listed", "3", "--max-presence", "4"]) else { return };
    let _members: Vec<User> = (0..4).map(|i| User::events(cluster.at(i % 2), &format!("user-{i}"), "r")).collect();
    let (_guest, welcome) = join(cluster.at(0), "guest", "r", "");
    assert_eq!((names(&welcome["members"]).len(), &welcome["member_count"]), (3, &json!(4)), "{welcome}");
    let mut pat = User::at(cluster.at(1), Presence, &presence_path("pat", "1", "r"), "pat");
    pat.expect_message(json!({"type": "user_joined", "username": "pat", "active_users": [], "active_count": 6}));
}

#[test]
fn switching_rooms() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut old = User::events(cluster.at(0), "old", "old");
    let (mut new, welcome) = join(cluster.at(0), "new", "new", "");
    let sent = publish(&mut new, "hello");
    let mut ann = User::events(cluster.at(1), "ann", "old");
    old.expect_message(event("joined", "ann"));
    ann.send_event("switch_room", json!({"room": "new"}));
    ann.send_message("here");
    let data = json!({"room": "new", "members": ["new"], "member_count": 1, "epoch": welcome["epoch"], "last_id": 1, "history": [sent]});
    ann.expect_message(json!({"event": "switched", "data": data}));
    old.expect_message(event("left", "ann"));
    new.expect_message(event("joined", "ann"));
    for user in [&mut ann, &mut new] {
        let message = user.room_message("ann", "here", 2);
        user.expect_message(message);
    }
    // The server executes a client's commands in the order sent.
    ann.send_message("before");
    ann.send_event("switch_room", json!({"room": "old"}));
    ann.send_message("after");
    for (name, text) in [("new", "before"), ("old", "after")] {
        let user = if name == "new" { &mut new } else { &mut old };
        assert_eq!(next(user, "message")["text"], text);
    }
    ann.expect_event("message", json!({"text": "before", "id": 3}));
    ann.expect_event("switched", json!({"room": "old", "members": ["old"]}));
    ann.expect_event("message", json!({"text": "after", "id": 1}));
    new.expect_message(event("left", "ann"));
}

// ------------------------------------------------------------------------------------------------- history and resume

#[test]
fn a_client_resumes_on_another_instance() {
    let Some(cluster) = Cluster::start(3, &[]) else { return };
    let (mut ann, first) = join(cluster.at(0), "ann", "r", "");
    let sent: Vec<Value> = (1..=5).map(|text| publish(&mut ann, &text.to_string())).collect();
    for server in &cluster.servers {
        for seen in 0..=5 {
            let back = welcome(server, "r", &since(&first["epoch"], seen));
            assert_eq!((&back["resumed"], &back["epoch"]), (&json!(true), &first["epoch"]), "{back}");
            assert_eq!(back["history"], json!(sent[usize::try_from(seen).unwrap()..]));
            assert_eq!(back["last_id"], 5);
        }
        for resume in [since(&first["epoch"], 6), since(&json!("another"), 3), "&since=3".into(), String::new()] {
            let back = welcome(server, "r", &resume);
            assert_eq!((&back["resumed"], &back["history"]), (&json!(false), &json!(sent)), "{resume}");
        }
    }
}

/// The history of a room expires after the room has been empty on all instances for `--history-ttl`. The history of a
/// room with a member does not expire.
#[test]
fn the_history_of_an_empty_room() {
    let Some(cluster) = Cluster::start(2, &["--history-ttl", "1"]) else { return };
    let mut first = Vec::new();
    for room in ["empty", "held"] {
        let (mut ann, welcome) = join(cluster.at(0), "ann", room, "");
        publish(&mut ann, "hello");
        first.push((ann, welcome["epoch"].clone()));
    }
    let (_holder, held) = first.pop().unwrap();
    let (ann, empty) = first.pop().unwrap();
    ann.leave();
    // Wait longer before each attempt, because each attempt joins the room, which restarts `--history-ttl`.
    let mut wait = Duration::from_millis(700);
    wait_until("the history has expired", || {
        std::thread::sleep(wait);
        wait *= 2;
        let back = welcome(cluster.at(1), "empty", &since(&empty, 1));
        assert_eq!(back["last_id"], u64::from(back["resumed"] == true), "{back}");
        back["epoch"] != empty
    });
    let back = welcome(cluster.at(1), "held", &since(&held, 0));
    assert_eq!((&back["resumed"], ids(&back["history"])), (&json!(true), vec![1]));
}

#[test]
fn an_empty_room_keeps_its_history() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let (mut ann, first) = join(cluster.at(0), "ann", "r", "");
    let sent = publish(&mut ann, "hello");
    ann.leave();
    let back = welcome(cluster.at(1), "r", &since(&first["epoch"], 0));
    assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!([sent])));
    // An instance that starts later also serves the room's history.
    let late = instance(&cluster.redis.url(), &[]);
    let back = welcome(&late, "r", &since(&first["epoch"], 0));
    assert_eq!((&back["resumed"], &back["history"]), (&json!(true), &json!([sent])));
}

#[test]
fn pages_of_the_history() {
    let Some(cluster) = Cluster::start(2, &["--history", "20"]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "r");
    (1..=12).for_each(|text| drop(publish(&mut ann, &text.to_string())));
    let mut bob = User::events(cluster.at(1), "bob", "r");
    let rows =
        [(5, 2, vec![3, 4], true), (3, 10, vec![1, 2], false), (99, 3, vec![10, 11, 12], true), (1, 5, vec![], false)];
    for (before, limit, expected, more) in rows {
        bob.send_event("history", json!({"before": before, "limit": limit}));
        let page = bob.expect_event("history", json!({"room": "r", "before": before, "more": more}));
        assert_eq!(ids(&page["messages"]), expected, "{page}");
    }
}

// ------------------------------------------------------------------------------------------------------------- nonces

/// A client sends a message, then reuses the message's nonce on another instance. That instance repeats the event of
/// the first message, to the sender only.
#[test]
fn a_nonce_that_was_used_on_another_instance() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut witness = User::events(cluster.at(0), "witness", "r");
    let mut ann = User::events(cluster.at(0), "ann", "r");
    let sent = publish(&mut ann, "once");
    ann.leave();
    witness.expect_message(event("joined", "ann"));
    witness.expect_event("message", sent.clone());
    witness.expect_message(event("left", "ann"));
    let mut ann = User::events(cluster.at(1), "ann", "r");
    ann.send_event("message", json!({"text": "other words", "nonce": "once"}));
    ann.expect_event("message", sent);
    // Each user has separate nonces: bob's message with the same nonce is a new message.
    let mut bob = User::events(cluster.at(1), "bob", "r");
    ann.expect_message(event("joined", "bob"));
    bob.send_event("message", json!({"text": "mine", "nonce": "once"}));
    bob.expect_event("message", json!({"text": "mine", "id": 2}));
    for (event, fields) in [
        ("joined", json!({"username": "ann"})),
        ("joined", json!({"username": "bob"})),
        ("message", json!({"text": "mine", "id": 2})),
    ] {
        witness.expect_event(event, fields);
    }
    ann.expect_event("message", json!({"text": "mine", "id": 2}));
}

/// Two connections of one user send the same nonces at the same time. The room gets one message per nonce.
#[test]
fn a_nonce_that_is_used_on_two_instances_at_once() {
    const COUNT: usize = 100;
    let Some(cluster) = Cluster::start(2, &["--history", "1000"]) else { return };
    let mut witness = User::events(cluster.at(0), "witness", "r");
    let mut both = [0, 1].map(|i| User::events(cluster.at(i), "ann", "r"));
    for number in 0..COUNT {
        both.iter_mut().for_each(|ann| cluster::send_with_nonce(ann, &number.to_string()));
    }
    let mut texts = Vec::new();
    for id in 1..=COUNT {
        let message = next(&mut witness, "message");
        assert_eq!(message["id"], id);
        texts.push(message["text"].as_str().unwrap().parse::<usize>().unwrap());
    }
    texts.sort_unstable();
    assert!(texts.iter().copied().eq(0..COUNT), "{texts:?}");
    // Both connections send the same nonces, and each must receive every message at least once. If a connection sends a
    // nonce that the other one has already used, it may receive that message twice: once as a broadcast, and once as
    // the reply to its own command.
    for ann in &mut both {
        cluster::send_with_nonce(ann, &format!("the end of {}", ann.name));
        let mut seen = [false; COUNT];
        loop {
            let message = next(ann, "message");
            match message["id"].as_u64().unwrap() as usize {
                id if id <= COUNT => seen[id - 1] = true,
                _ => break,
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }
}

// --------------------------------------------------------------------------------------------------- private messages

/// A private message arrives exactly once at the connection that sent it and at each of the recipient's connections.
#[test]
fn private_messages() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let mut ann = User::events(a, "ann", "room 1");
    let mut other_ann = User::events(b, "ann", "room 2");
    let mut bobs = [User::events(a, "bob", "room 3"), User::events(b, "bob", "room 4")];
    let mut pat = User::presence(b, "bob", "room 5");
    for text in ["/msg bob psst", "/msg \"bob\" again"] {
        ann.send_message(text);
        let text = text.rsplit(' ').next().unwrap();
        for user in bobs.iter_mut().chain([&mut pat, &mut ann]) {
            let private = user.private_message("ann", "bob", text);
            user.expect_message(private);
        }
    }
    // A private message from ann to herself reaches both of her connections.
    ann.send_event("private", json!({"to": "ann", "text": "a note", "nonce": "n"}));
    let data = json!({"from": "ann", "to": "ann", "text": "a note", "time": ANY_TIME, "nonce": "n"});
    for user in [&mut ann, &mut other_ann] {
        user.expect_message(json!({"event": "private", "data": data}));
    }
    // A private message reaches its recipient whatever the case of the username, even across instances.
    other_ann.leave();
    let mut zoe = User::events(b, "Zoe", "room 6");
    for user in [&mut ann, &mut bobs[0]] {
        user.send_message("/msg ZOE hi");
        let name = user.name.clone();
        for receiver in [&mut *user, &mut zoe] {
            let received = receiver.receive();
            assert!(same(&receiver.private_message(&name, "ZOE", "hi"), &received), "{received}");
        }
    }
    for name in ["nobody", "anonymous"] {
        ann.send_message(&format!("/msg {name} hi"));
        ann.expect_message(ann.error(&format!("No such user: {name}")));
    }
    zoe.leave();
    wait_until("the name is gone", || {
        ann.send_message("/msg Zoe hi");
        let received = ann.receive();
        received == ann.error("No such user: Zoe")
    });
    // An earlier private message used the nonce `n`. The room's history contains no private messages, so a message to
    // the room may use `n` again.
    ann.send_event("message", json!({"text": "hello", "nonce": "n"}));
    ann.expect_event("message", json!({"text": "hello", "id": 1, "nonce": "n"}));
    for user in bobs.iter_mut().chain([&mut pat, &mut ann]) {
        user.expect_nothing();
    }
}

/// In the `rooms` dialect, each message states its sender's username. A client receives private messages that are sent
/// to the username in its own latest message.
#[test]
fn private_messages_to_names_in_use() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "r");
    let mut ron = User::rooms(cluster.at(1), "ron", "r");
    ann.expect_message(event("joined", "Anonymous"));
    ron.send_message("hello");
    for (name, text, id) in [("ron", "hello", 1), ("rita", "hello again", 2)] {
        if name == "rita" {
            ron.name = name.to_owned();
            ron.send_message(text);
        }
        ann.expect_message(ann.room_message(name, text, id));
        ron.expect_message(ron.room_message(name, text, id));
        ann.send_message(&format!("/msg {name} psst"));
        ann.expect_message(ann.private_message("ann", name, "psst"));
        ron.expect_message(ron.private_message("ann", name, "psst"));
    }
    ann.send_message("/msg ron psst");
    ann.expect_message(ann.error("No such user: ron"));
}

// ------------------------------------------------------------------------------------------------------------- typing

#[test]
fn typing() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let mut ann = User::events(cluster.at(0), "ann", "r");
    let mut bob = User::events(cluster.at(1), "bob", "r");
    let mut ron = User::rooms(cluster.at(1), "", "r");
    let mut outsider = User::events(cluster.at(1), "eve", "elsewhere");
    for name in ["bob", "Anonymous"] {
        ann.expect_message(event("joined", name));
    }
    bob.expect_message(event("joined", "Anonymous"));
    ann.send_event("typing", json!({}));
    bob.expect_message(event("typing", "ann"));
    ron.expect_message(json!({"type": "typing", "username": "ann"}));
    ron.send(r#"{"type":"typing","username":"ron"}"#);
    for user in [&mut ann, &mut bob] {
        user.expect_message(event("typing", "ron"));
    }
    assert_no_other_event(&mut ann, &mut [&mut bob], "neither is in the history");
    ron.expect_message(ron.room_message("ann", "neither is in the history", 1));
    outsider.expect_nothing();
    let welcome = welcome(cluster.at(1), "r", "");
    assert_eq!((ids(&welcome["history"]), &welcome["last_id"]), (vec![1], &json!(1)));
}

// -------------------------------------------------------------------------------------------------- names and clients

#[test]
fn unique_names() {
    let Some(cluster) = Cluster::start(2, &["--unique-names"]) else { return };
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let mut witness = User::events(a, "witness", "general");
    let alice = User::events(a, "Alice", "general");
    witness.expect_message(event("joined", "Alice"));
    for server in [a, b] {
        for (dialect, name, room) in
            [(Events, "alice", "general"), (Events, "ALICE", "x"), (Presence, "alice", "general")]
        {
            User::join(server, dialect, name, room).expect_close(1008, IN_USE);
        }
    }
    // The default username is exempt from `--unique-names`, so several clients may have it.
    let _anonymous = [User::events(a, "anonymous", "x"), User::events(b, "anonymous", "x")];
    // In the `rooms` dialect, a client reserves a username by sending a message under that username.
    let mut ron = User::rooms(b, "alice", "general");
    witness.expect_message(event("joined", "Anonymous"));
    ron.send_message("I am not Alice");
    ron.expect_error();
    ron.name = "ron".to_owned();
    ron.send_message("I am Ron");
    ron.expect_message(ron.room_message("ron", "I am Ron", 1));
    witness.expect_message(witness.room_message("ron", "I am Ron", 1));
    User::join(a, Events, "Ron", "general").expect_close(1008, IN_USE);
    // A username is free again as soon as the other members have received `left` for that username.
    alice.leave();
    witness.expect_message(event("left", "Alice"));
    let mut alice = User::events(b, "alice", "general");
    witness.expect_message(event("joined", "alice"));
    assert_no_other_event(&mut witness, &mut [&mut alice], "all together");
}

/// Many clients on three instances join under the same username at the same time. The server accepts one and closes the
/// others.
#[test]
fn a_race_for_a_name() {
    let Some(cluster) = Cluster::start(3, &["--unique-names"]) else { return };
    for round in 0..5 {
        let path = events_path(&format!("alice-{round}"), "general");
        let users: Vec<User> = (0..12).map(|i| User::at(cluster.at(i % 3), Events, &path, "alice")).collect();
        let mut winners = Vec::new();
        for mut user in users {
            let frame = user.frame();
            if frame.opcode() == 8 {
                assert_eq!(frame.close(), (1008, IN_USE.to_owned()));
            } else {
                winners.push(user);
            }
        }
        assert_eq!(winners.len(), 1, "one client has the name");
    }
}

/// A connection that sends the session of an older connection replaces that connection, even on another instance.
#[test]
fn a_takeover_by_session() {
    let Some(cluster) = Cluster::start(2, &["--unique-names"]) else { return };
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let mut witness = User::events(a, "witness", "general");
    let (mut alice, first) = join(a, "alice", "general", "");
    witness.expect_message(event("joined", "alice"));
    let sent = publish(&mut alice, "hello");
    witness.expect_event("message", sent.clone());
    let session = first["session"].as_str().unwrap();
    for wrong in ["", "x", &"f".repeat(32), &session[1..]] {
        let path = format!("{}&session={wrong}", events_path("alice", "general"));
        User::at(b, Events, &path, "alice").expect_close(1008, IN_USE);
    }
    for server in [b, a, b] {
        let resume = format!("{}&session={session}", since(&first["epoch"], 0));
        let (again, welcome) = join(server, "alice", "general", &resume);
        assert_eq!((&welcome["resumed"], &welcome["history"]), (&json!(true), &json!([sent])));
        assert_eq!((names(&welcome["members"]), &welcome["session"]), (vec!["witness".to_owned()], &json!(session)));
        alice.expect_close(1008, REPLACED);
        alice = again;
        witness.expect_message(event("left", "alice"));
        witness.expect_message(event("joined", "alice"));
    }
    assert_no_other_event(&mut witness, &mut [&mut alice], "to the newest");
    User::join(a, Events, "Alice", "general").expect_close(1008, IN_USE);
}

/// A connection whose token is bound to a username replaces an older connection with that username, even if it does not
/// send the older connection's session.
#[test]
fn a_takeover_by_a_bound_token() {
    let tokens = token_file("redis-bound", "secret-any\nsecret-ann Ann\n");
    let Some(cluster) = Cluster::start(2, &["--unique-names", "--tokens", tokens.to_str().unwrap()]) else { return };
    let join = |server: &Server, query: &str| {
        let mut user = User::at(server, Events, &format!("/?room=general&{query}"), "");
        user.expect_event("welcome", json!({}));
        user
    };
    let mut witness = join(cluster.at(0), "token=secret-any&username=witness");
    let mut ann = join(cluster.at(0), "token=secret-ann");
    witness.expect_message(event("joined", "Ann"));
    for i in [1, 0, 1] {
        let newer = join(cluster.at(i), "token=secret-ann");
        ann.expect_close(1008, REPLACED);
        ann = newer;
        witness.expect_message(event("left", "Ann"));
        witness.expect_message(event("joined", "Ann"));
    }
    assert_no_other_event(&mut witness, &mut [&mut ann], "welcome back");
}

/// A new connection replaces an older one that has the same `client_id` and token. If the `client_id` is the same but
/// the token is not, the server rejects the new handshake or closes the new connection.
#[test]
fn client_ids() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    let [a, b] = [cluster.at(0), cluster.at(1)];
    let mut witness = User::events(a, "witness", "general");
    let mut first = User::at(a, Presence, &presence_path("pat", "the id", "general"), "pat");
    first.expect_message(active("joined", "pat", &["witness", "pat"]));
    witness.expect_message(event("joined", "pat"));
    for (server, name) in [(b, "petra"), (a, "pat"), (b, "petra")] {
        let other = presence_path("mallory", "the id", "general").replace("dev-token", "token-bob");
        let other = if server.status(&handshake().target(&*other)) == 403 {
            None
        } else {
            Some(User::at(server, Presence, &other, "mallory"))
        };
        other.into_iter().for_each(|other| other.expect_close(1008, IN_USE));
        let mut second = User::at(server, Presence, &presence_path(name, "the id", "general"), name);
        second.expect_message(active("joined", name, &["witness", name]));
        witness.expect_message(event("left", &first.name));
        witness.expect_message(event("joined", name));
        first.expect_close(1008, REPLACED);
        first = second;
    }
    witness.expect_nothing();
    // After a connection has ended, a client with a different token may use the same `client_id`.
    first.leave();
    witness.expect_message(event("left", "petra"));
    let other = presence_path("mallory", "the id", "general").replace("dev-token", "token-bob");
    let mut other = User::at(a, Presence, &other, "mallory");
    other.expect_message(active("joined", "mallory", &["witness", "mallory"]));
}

// ------------------------------------------------------------------------------------- Redis keys, the log, handshakes

#[test]
fn chats_with_different_prefixes() {
    let Some(redis) = RedisServer::start(Persistence::Always) else { return };
    let servers =
        ["one", "two", "one"].map(|prefix| instance(&redis.url(), &["--redis-prefix", prefix, "--unique-names"]));
    let mut one = User::events(&servers[0], "ann", "general");
    let mut two = User::events(&servers[1], "ann", "general");
    publish(&mut one, "to one");
    let (mut third, welcome) = join(&servers[2], "bob", "general", "");
    assert_eq!((names(&welcome["members"]), &welcome["last_id"]), (vec!["ann".to_owned()], &json!(1)));
    one.expect_message(event("joined", "bob"));
    third.send_message("/msg ann psst");
    third.expect_message(third.private_message("bob", "ann", "psst"));
    one.expect_message(one.private_message("bob", "ann", "psst"));
    two.send_message("/msg bob psst");
    two.expect_message(two.error("No such user: bob"));
    publish(&mut two, "to two");
    for user in [&mut one, &mut two, &mut third] {
        user.expect_nothing();
    }
    let strays: Vec<String> =
        redis.keys().into_iter().filter(|key| !key.starts_with("one") && !key.starts_with("two")).collect();
    assert!(strays.is_empty(), "all keys carry a prefix: {strays:?}");
}

/// After the last member has left a room, all Redis keys of the room expire with the room's history. Only the list of
/// empty rooms remains, and its length is bounded.
#[test]
fn keys_expire() {
    let Some(cluster) = Cluster::start(2, &["--history-ttl", "1", "--unique-names"]) else { return };
    let before = cluster.redis.keys();
    for (i, dialect) in DIALECTS.into_iter().enumerate() {
        let mut user = User::join(cluster.at(i % 2), dialect, "ann", &format!("room {i}"));
        user.receive();
        user.send_message("hello");
        user.receive();
        user.leave();
    }
    let mut left = Vec::new();
    let is_over = becomes_true(|| {
        left = cluster.redis.keys().into_iter().filter(|key| !before.contains(key)).collect::<Vec<_>>();
        left.iter().all(|key| key == "wirechat:empty")
    });
    assert!(is_over, "keys that stay: {left:?}");
}

/// The log never contains the Redis password, whether it is right or wrong, and whether or not Redis is running.
#[test]
fn the_log_contains_no_password() {
    const PASSWORD: &str = "correct-horse";
    let Some(mut redis) = RedisServer::start_with(Persistence::Off, Some(PASSWORD), &[]) else { return };
    let server = instance(&redis.url(), &["-v"]);
    let (mut ann, _) = join(&server, "ann", "general", "");
    publish(&mut ann, "hello");
    let wrong = cluster::launch(&redis.url().replace(PASSWORD, "wrong-staple"), &["-v"]);
    let user = cluster::launch(&redis.url().replace("//:", "//default:"), &["-v"]);
    cluster::wait_until_ready(&user);
    wait_until("the log reports a rejected password", || wrong.log().to_lowercase().contains("redis"));
    assert!(!cluster::is_ready(&wrong));
    redis.kill();
    wait_until("no instance is ready", || {
        [&server, &wrong, &user].into_iter().all(|server| !cluster::is_ready(server))
    });
    let absent = cluster::launch(&redis.url(), &["-v"]);
    wait_until("the log reports that Redis is absent", || absent.log().to_lowercase().contains("redis"));
    for server in [&server, &wrong, &user, &absent] {
        for secret in [PASSWORD, "wrong-staple"] {
            let (log, printed) = (server.log(), server.printed());
            assert!(!log.contains(secret) && !printed.contains(secret), "{log}{printed}");
        }
    }
}

/// The server warns if Redis is configured to evict keys, because the chat would silently lose its history.
#[test]
fn a_warning_about_eviction() {
    for (policy, is_warned) in [("allkeys-lru", true), ("volatile-ttl", true), ("noeviction", false)] {
        let options = ["--maxmemory", "100mb", "--maxmemory-policy", policy];
        let Some(redis) = RedisServer::start_with(Persistence::Off, None, &options) else { return };
        let server = instance(&redis.url(), &[]);
        if is_warned {
            server.wait_for_log("maxmemory-policy");
        } else {
            User::events(&server, "ann", "general").leave();
            assert!(!server.log().contains("maxmemory-policy"), "{}", server.log());
        }
    }
}

/// Each instance checks handshakes in the same way as a server without Redis.
#[test]
fn rejected_handshakes() {
    let Some(cluster) = Cluster::start(2, &[]) else { return };
    for (target, status) in [
        (path(Events, "ann", "general"), 101),
        (rooms_path("general"), 101),
        (path(Presence, "pat", "general"), 101),
        ("/echo?token=dev-token".into(), 101),
        ("/?token=wrong".into(), 401),
        (format!("/?token=dev-token&room={}", encode("\0")), 400),
    ] {
        for server in &cluster.servers {
            assert_eq!(server.status(&handshake().target(&*target)), status, "{target}");
        }
    }
}
