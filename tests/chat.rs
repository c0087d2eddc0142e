//! Tests the chat without sockets. Each scenario runs with the memory broker and with a broker that delays events and
//! reorders them across rooms. Clients must receive the same events with both brokers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/delayed_broker.rs"]
mod delayed_broker;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use delayed_broker::{Control, DelayedBroker};
use fastrand::Rng;
use mio::Token;
use wirechat::broker::memory::MemoryBroker;
use wirechat::broker::{BrokerError, MemberId, Message, Resume, RoomEvent, RoomId};
use wirechat::chat::dialect::Dialect;
use wirechat::chat::event::{self, Effect, Event};
use wirechat::chat::{Chat, CredentialId, Identity, Join, JoinError, JoinRequest, Now, Session};
use wirechat::config::Config;
use wirechat::server;

const ALICE: Token = Token(1);
const BOB: Token = Token(2);
const CAROL: Token = Token(3);
const DAVE: Token = Token(4);
const NOW: Now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };

#[derive(Debug, Clone, Copy, PartialEq)]
enum Recipients {
    One(Token),
    /// All clients in the room, except the given client, if any.
    Room(RoomId, Option<Token>),
}

struct Harness {
    chat: Chat,
    /// Controls the delayed broker; `None` if the memory broker is used.
    control: Option<Control>,
}

/// Runs a scenario once with the memory broker, and once with the delayed broker for each of four seeds.
fn with_each_broker(args: &[&str], scenario: impl Fn(&mut Harness)) {
    scenario(&mut Harness::memory(args));
    (0..4).for_each(|seed| scenario(&mut Harness::delayed(args, seed)));
}

fn config(args: &[&str]) -> Config {
    Config::try_parse_from(["wirechat"].iter().chain(args)).unwrap()
}

fn memory_broker(config: &Config) -> MemoryBroker {
    let mut random = Rng::with_seed(1);
    server::new_memory_broker(config, Box::new(move |bytes: &mut [u8]| random.fill(bytes)))
}

impl Harness {
    fn memory(args: &[&str]) -> Harness {
        let config = config(args);
        Harness { chat: Chat::new(&config, Box::new(memory_broker(&config))), control: None }
    }

    fn delayed(args: &[&str], seed: u64) -> Harness {
        let config = config(args);
        let (broker, control) = DelayedBroker::new(Box::new(memory_broker(&config)), seed);
        Harness { chat: Chat::new(&config, Box::new(broker)), control: Some(control) }
    }

    /// Returns a harness with a delayed broker, and the `Control` that releases the broker's events. Alice and Bob have
    /// joined one room.
    fn delayed_with_two_members() -> (Harness, Control) {
        let mut harness = Harness::delayed(&[], 1);
        harness.join_alice_and_bob();
        let control = harness.control.clone().unwrap();
        (harness, control)
    }

    /// Alice and Bob join the room `general` in the `events` dialect.
    fn join_alice_and_bob(&mut self) {
        self.join(ALICE, request(Dialect::Events, "alice", "general"));
        self.join(BOB, request(Dialect::Events, "bob", "general"));
    }

    fn join(&mut self, client: Token, request: JoinRequest) -> Vec<Effect> {
        self.chat.join(client, request, NOW);
        self.drain()
    }

    fn leave(&mut self, client: Token) -> Vec<Effect> {
        self.chat.leave(client, "closed", NOW);
        self.drain()
    }

    fn receive(&mut self, client: Token, text: &str) -> Vec<Effect> {
        self.receive_at(client, text, NOW)
    }

    fn receive_at(&mut self, client: Token, text: &str, now: Now) -> Vec<Effect> {
        self.chat.receive(client, text, now);
        self.drain()
    }

    /// Releases all events that a delayed broker holds, one at a time, and returns the effects of all events.
    fn drain(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            effects.extend(self.take_ready_effects());
            if !self.control.as_ref().is_some_and(Control::release_one) {
                return effects;
            }
        }
    }

    /// Returns the effects that are ready now, without releasing a delayed event.
    fn take_ready_effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.chat.next_effect()).collect()
    }

    /// Joins and then leaves. Returns the close reason if the join is rejected.
    fn rejection(&mut self, client: Token, request: JoinRequest) -> Option<&'static str> {
        let effects = self.join(client, request);
        let rejection = effects.iter().find_map(|effect| match effect {
            Effect::Close { client: closed, reason, .. } if *closed == client => Some(*reason),
            _ => None,
        });
        assert_eq!(rejection.is_none(), self.chat.room_of(client).is_some());
        self.leave(client);
        rejection
    }
}

/// Returns a join request. Its credential is the same for every client. The last byte of the client's IP address is the
/// length of the username, so clients whose usernames differ in length have different addresses.
fn request(dialect: Dialect, username: &str, room: &str) -> JoinRequest {
    let identity = Identity { credential: CredentialId::new(1), ..Identity::default() };
    let address = [192, 0, 2, username.len() as u8].into();
    let join = Join { credential: identity.credential, ..Join::new(username, room, identity.user(address)) };
    JoinRequest { dialect, identity, address, join, extra: None }
}

fn with(request: JoinRequest, change: impl FnOnce(&mut Join)) -> JoinRequest {
    let mut request = request;
    change(&mut request.join);
    request
}

fn can_join(harness: &Harness, room: &str) -> bool {
    harness.chat.check_join(&request(Dialect::Events, "late", room), NOW)
        != Err(JoinError::Broker(BrokerError::TooManyRooms))
}

fn event(name: &str, data: &str) -> String {
    format!(r#"{{"event":"{name}","data":{data}}}"#)
}

fn message(text: &str) -> String {
    event("message", &format!(r#"{{"text":"{text}"}}"#))
}

fn switch(room: &str) -> String {
    event("switch_room", &format!(r#"{{"room":"{room}"}}"#))
}

fn json(dialect: Dialect, event: &Event) -> String {
    let mut json = Vec::new();
    dialect.write(event, &mut json);
    String::from_utf8(json).unwrap()
}

/// Returns the events that the chat sends, in the `events` dialect, with the recipients of each event.
fn sent(effects: &[Effect]) -> Vec<(Recipients, String)> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::SetRoom { .. } => None,
        Effect::Close { .. } | Effect::Renew(..) | Effect::StorageFailed { .. } => panic!("not sent: {effect:?}"),
        Effect::Send { client, event } => Some((Recipients::One(*client), json(Dialect::Events, event))),
        Effect::Broadcast { room, except, event } => {
            Some((Recipients::Room(*room, *except), json(Dialect::Events, event)))
        }
    });
    sent.collect()
}

// ---------------------------------------------------------------------------------------------------------- rooms

#[test]
fn a_client_that_joins_is_welcomed_and_announced() {
    with_each_broker(&[], |harness| {
        let effects = harness.join(ALICE, request(Dialect::Events, "alice", "general"));
        let room = harness.chat.room_of(ALICE).unwrap();
        assert_eq!(effects[0], Effect::SetRoom { client: ALICE, from: None, to: room });
        let first = sent(&effects);
        let welcome = r##"{"event":"welcome","data":{"message":"Welcome to #general, alice!","members":[],"##;
        assert_eq!((first.len(), first[0].0), (1, Recipients::One(ALICE)));
        assert!(first[0].1.starts_with(welcome), "{}", first[0].1);
        assert!(first[0].1.contains(r#""last_id":0,"resumed":false,"history":[],"session":""#), "{}", first[0].1);
        let limits = r#""member_count":0,"limits":{"max_text":500,"max_message":65536,"rate_limit":5.0}}}"#;
        assert!(first[0].1.ends_with(limits), "{}", first[0].1);
        let extra = Some(("ticket", "t".to_owned()));
        let second = sent(&harness.join(BOB, JoinRequest { extra, ..request(Dialect::Events, "bob", "general") }));
        assert!(second[0].1.contains(r#""members":["alice"]"#));
        assert!(second[0].1.ends_with(r#","ticket":"t"}}"#), "{}", second[0].1);
        assert_eq!(second[1], (Recipients::Room(room, Some(BOB)), event("joined", r#"{"username":"bob"}"#)));
    });
}

#[test]
fn a_switch_sends_its_events_in_order() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        let old = harness.chat.room_of(BOB).unwrap();
        let effects = harness.receive(BOB, &switch(" other "));
        let new = harness.chat.room_of(BOB).unwrap();
        assert_eq!(effects[0], Effect::SetRoom { client: BOB, from: Some(old), to: new });
        let events = sent(&effects);
        assert_eq!(events[0], (Recipients::Room(old, None), event("left", r#"{"username":"bob"}"#)));
        assert_eq!(events[1].0, Recipients::One(BOB));
        assert!(
            events[1]
                .1
                .starts_with(r#"{"event":"switched","data":{"room":"other","members":[],"member_count":0,"epoch":"#)
        );
        assert_eq!(harness.receive(BOB, &switch("other")), [], "bob is already in this room");
        assert_eq!(harness.chat.recipients(old).collect::<Vec<_>>(), [(ALICE, Dialect::Events)]);
        let effects = harness.receive(ALICE, &switch("other"));
        assert_eq!(effects[0], Effect::SetRoom { client: ALICE, from: Some(old), to: new });
        let events = sent(&effects);
        assert_eq!(events[1], (Recipients::Room(new, Some(ALICE)), event("joined", r#"{"username":"alice"}"#)));
        assert_eq!(events.len(), 2, "the old room is empty, so the chat sends no `left`");
    });
}

#[test]
fn a_room_without_members_is_closed() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        let room = harness.chat.room_of(BOB).unwrap();
        let left = (Recipients::Room(room, None), event("left", r#"{"username":"alice"}"#));
        assert_eq!(sent(&harness.leave(ALICE)), [left]);
        assert_eq!(harness.leave(ALICE), []);
        assert_eq!(harness.leave(BOB), []);
        assert!(harness.chat.recipients(room).next().is_none() && harness.chat.dialects(room).next().is_none());
        assert!(harness.chat.room_of(BOB).is_none() && harness.chat.dialect_of(BOB).is_none());
        harness.join(CAROL, request(Dialect::Events, "carol", "general"));
        assert_ne!(harness.chat.room_of(CAROL), Some(room), "room ids are never reused");
        let no_such_user = event("error", r#"{"message":"No such user: bob"}"#);
        assert_eq!(sent(&harness.receive(CAROL, &message("/msg bob hi"))), [(Recipients::One(CAROL), no_such_user)]);
    });
}

#[test]
fn rooms_are_limited_and_emptying_a_room_allows_another() {
    with_each_broker(&["--max-rooms", "2"], |harness| {
        harness.join_alice_and_bob();
        assert!(can_join(harness, "second"));
        harness.receive(BOB, &switch("second"));
        assert!(!can_join(harness, "third") && can_join(harness, "general"));
        harness.join(CAROL, request(Dialect::Events, "carol", "general"));
        let error = event("error", r#"{"message":"There are too many rooms"}"#);
        assert_eq!(sent(&harness.receive(ALICE, &switch("third"))), [(Recipients::One(ALICE), error)]);
        let late = request(Dialect::Events, "dave", "third");
        assert_eq!(harness.rejection(DAVE, late), Some(event::TOO_MANY_ROOMS));
        let events = sent(&harness.receive(BOB, &switch("third")));
        assert!(
            events[0].1.contains(r#""switched","data":{"room":"third""#),
            "bob frees a place by leaving the second room empty: {events:?}"
        );
        assert!(!can_join(harness, "second"));
    });
}

#[test]
fn a_switch_does_not_evict_the_history_of_its_new_room() {
    with_each_broker(&["--max-empty-rooms", "1"], |harness| {
        harness.join(ALICE, request(Dialect::Events, "alice", "kept"));
        harness.receive(ALICE, &message("kept message"));
        harness.leave(ALICE);
        harness.join(BOB, request(Dialect::Events, "bob", "other"));
        harness.receive(BOB, &message("another one"));
        let events = sent(&harness.receive(BOB, &switch("kept")));
        assert!(events[0].1.contains("kept message"), "{}", events[0].1);
    });
}

#[test]
fn each_dialect_has_its_own_welcome_and_backlog() {
    with_each_broker(&[], |harness| {
        harness.join(ALICE, request(Dialect::Events, "alice", "general"));
        harness.receive(ALICE, &message("hi"));
        let events = |effects: Vec<Effect>, dialect| -> Vec<String> {
            let events = effects.iter().filter_map(|effect| match effect {
                Effect::Send { event, .. } => Some(json(dialect, event)),
                _ => None,
            });
            events.collect()
        };
        let rooms = harness.join(BOB, request(Dialect::Rooms, "bob", "general"));
        assert_eq!(
            events(rooms, Dialect::Rooms),
            [
                r#"{"type":"system","message":"A user joined the chat"}"#,
                r#"{"type":"message","username":"alice","text":"hi"}"#
            ]
        );
        let presence = harness.join(CAROL, request(Dialect::Presence, "carol", "general"));
        assert_eq!(
            events(presence, Dialect::Presence),
            [
                r#"{"type":"user_joined","username":"carol","active_users":["alice","bob","carol"]}"#,
                r#"{"type":"chat_message","username":"alice","text":"hi","timestamp":"1970-01-01T00:00:00.000Z"}"#
            ]
        );
        let effects = harness.leave(BOB);
        let [Effect::Broadcast { event: left, .. }] = &effects[..] else { panic!("{effects:?}") };
        let active = r#"{"type":"user_left","username":"bob","active_users":["alice","carol"]}"#;
        assert_eq!(json(Dialect::Presence, left), active);
    });
}

// ------------------------------------------------------------------------------------------------------- messages

#[test]
fn a_message_goes_to_all_members_and_is_numbered() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        let room = harness.chat.room_of(ALICE).unwrap();
        let data = r#"{"username":"alice","text":"hi","id":1,"time":"1970-01-01T00:00:00.000Z"}"#;
        assert_eq!(
            sent(&harness.receive(ALICE, &message(" hi "))),
            [(Recipients::Room(room, None), event("message", data))]
        );
        assert!(sent(&harness.receive(BOB, &message("/me waves")))[0].1.contains(r#""text":"/me waves","id":2"#));
        let later = Now { time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_001), ..NOW };
        for (now, time) in [(later, "2023-11-14T22:13:20.001Z"), (NOW, "1970-01-01T00:00:00.000Z")] {
            assert!(sent(&harness.receive_at(BOB, &message("hi"), now))[0].1.contains(time));
        }
    });
}

#[test]
fn the_length_of_a_text_is_limited_in_characters_after_trimming() {
    with_each_broker(&["--max-text", "5"], |harness| {
        harness.join_alice_and_bob();
        assert!(sent(&harness.receive(BOB, &message("  ééééé ")))[0].1.contains(r#""text":"ééééé""#));
        let too_long = event("message", r#"{"text":"éééééé","nonce":"n"}"#);
        let error = event("error", r#"{"message":"Message too long","nonce":"n"}"#);
        assert_eq!(sent(&harness.receive(BOB, &too_long)), [(Recipients::One(BOB), error)]);
        assert_eq!(harness.receive(BOB, &message("   ")), []);
        let nothing = event("error", r#"{"message":"Nothing to send","nonce":"n"}"#);
        let empty = event("message", r#"{"text":" ","nonce":"n"}"#);
        assert_eq!(sent(&harness.receive(BOB, &empty)), [(Recipients::One(BOB), nothing)]);
        assert!(sent(&harness.receive(BOB, &message("/msg alice 12345")))[0].1.contains(r#""text":"12345""#));
    });
}

#[test]
fn a_message_that_is_sent_twice_is_published_once() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        let message = event("message", r#"{"text":"hi","nonce":"n1"}"#);
        let first = sent(&harness.receive(ALICE, &message));
        let again = sent(&harness.receive(ALICE, &message));
        assert_eq!((again.len(), again[0].0, &again[0].1), (1, Recipients::One(ALICE), &first[0].1));
        let other = sent(&harness.receive(BOB, &message));
        assert!(other[0].1.contains(r#""id":2"#), "the same nonce from another user is a new message");
    });
}

#[test]
fn a_private_message_goes_to_two_names_only() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        harness.join(CAROL, request(Dialect::Rooms, "bob", "elsewhere"));
        let private = event("private", r#"{"to":"bob","text":" psst ","nonce":"n"}"#);
        let events = sent(&harness.receive(ALICE, &private));
        let recipients: Vec<_> = events.iter().map(|(to, _)| *to).collect();
        assert_eq!(recipients, [BOB, CAROL, ALICE].map(Recipients::One));
        let expected = r#"{"from":"alice","to":"bob","text":"psst","time":"1970-01-01T00:00:00.000Z","nonce":"n"}"#;
        assert_eq!(events[0].1, event("private", expected));
        let to_itself = harness.receive(ALICE, &message("/msg alice hello me"));
        assert_eq!(sent(&to_itself).len(), 1, "alice receives a message to herself once");
        for (to, named) in [("zoe", "zoe"), (" ", ""), (&"x".repeat(100), &"x".repeat(64)), ("a\\u0000b", "a\\u0000b")]
        {
            let private = event("private", &format!(r#"{{"to":"{to}","text":"hi"}}"#));
            let error = event("error", &format!(r#"{{"message":"No such user: {named}"}}"#));
            assert_eq!(sent(&harness.receive(ALICE, &private)), [(Recipients::One(ALICE), error)]);
        }
    });
}

#[test]
fn a_private_message_recipient_is_one_word_or_quoted() {
    with_each_broker(&[], |harness| {
        harness.join(ALICE, request(Dialect::Presence, "ann", "general"));
        harness.join(BOB, request(Dialect::Presence, "ann lee", "general"));
        let texts = [
            ("/msg ann lee hi", r#""to":"ann","text":"lee hi""#),
            ("/msg \"ann lee\"  hi", r#""to":"ann lee","text":"hi""#),
            ("/msg \"ann\" hi", r#""to":"ann","text":"hi""#),
            ("/msg \"ann hi", "No such user: \\\"ann"),
            ("/message ann hi", r#""text":"/message ann hi""#),
        ];
        for (text, expected) in texts {
            let events = sent(&harness.receive(BOB, text));
            assert!(events[0].1.contains(expected), "{text}: {events:?}");
        }
        for incomplete in ["/msg", "/msg ", "/msg ann", "/msg \"ann lee\" "] {
            let error = event("error", r#"{"message":"Nothing to send"}"#);
            assert_eq!(sent(&harness.receive(BOB, incomplete)), [(Recipients::One(BOB), error)], "{incomplete}");
        }
    });
}

#[test]
fn typing_is_shown_once_a_second_and_costs_nothing() {
    with_each_broker(&["--rate-limit", "0.5"], |harness| {
        harness.join_alice_and_bob();
        let room = harness.chat.room_of(ALICE).unwrap();
        let at = |milliseconds| Now { monotonic: Duration::from_millis(milliseconds), ..NOW };
        let typing = r#"{"event":"typing"}"#;
        let shown = [0, 500, 999, 1000, 1500].map(|ms| sent(&harness.receive_at(ALICE, typing, at(ms))));
        let expected = (Recipients::Room(room, Some(ALICE)), event("typing", r#"{"username":"alice"}"#));
        assert_eq!(shown, [vec![expected.clone()], vec![], vec![], vec![expected], vec![]]);
        let effects = harness.receive_at(ALICE, &message("hi"), at(1500));
        assert!(matches!(effects[0], Effect::Broadcast { except: None, .. }));
    });
}

#[test]
fn too_many_messages_and_then_a_flood() {
    with_each_broker(&[], |harness| {
        harness.join_alice_and_bob();
        let message = event("message", r#"{"text":"hi","nonce":"n"}"#);
        let mut last = Vec::new();
        for count in 1..=61 {
            last = harness.receive(ALICE, if count % 2 == 0 { "no JSON" } else { &message });
            let is_slowed = matches!(&last[..], [Effect::Send { event: Event::Error { message, nonce }, .. }]
                if message == "Slow down" && nonce.is_some() == (count % 2 == 1));
            assert_eq!(is_slowed, (11..=60).contains(&count), "message {count}");
        }
        assert_eq!(last, [Effect::Close { client: ALICE, reason: event::FLOODING, may_retry: false }]);
    });
}

// ---------------------------------------------------------------------------------------------------------- names

#[test]
fn only_the_username_in_the_last_message_is_in_use() {
    with_each_broker(&["--unique-names"], |harness| {
        harness.join_alice_and_bob();
        harness.join(CAROL, request(Dialect::Rooms, "Anonymous", "general"));
        let publish = |name: &str| format!(r#"{{"username":"{name}","text":"hi"}}"#);
        let error = event("error", r#"{"message":"username already in use"}"#);
        assert_eq!(sent(&harness.receive(CAROL, &publish("ALICE"))), [(Recipients::One(CAROL), error)]);
        assert!(sent(&harness.receive(CAROL, &publish("carol")))[0].1.contains(r#""username":"carol""#));
        let private = sent(&harness.receive(ALICE, &message("/msg carol hi")));
        assert_eq!(private.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [CAROL, ALICE].map(Recipients::One));
        let other = || request(Dialect::Events, "Carol", "general");
        assert_eq!(harness.rejection(DAVE, other()), Some(event::NAME_IN_USE));
        harness.receive(CAROL, r#"{"text":"hi"}"#);
        assert_eq!(harness.rejection(Token(5), other()), None);
    });
}

#[test]
fn a_name_is_not_taken_by_a_message_that_is_not_published() {
    with_each_broker(&["--unique-names", "--max-text", "5"], |harness| {
        harness.join_alice_and_bob();
        harness.join(CAROL, request(Dialect::Rooms, "Anonymous", "general"));
        for text in ["too long", "/msg zed hi", " "] {
            harness.receive(CAROL, &format!(r#"{{"username":"zoe","text":"{text}"}}"#));
        }
        harness.receive(CAROL, r#"{"type":"typing","username":"zoe"}"#);
        assert_eq!(harness.rejection(DAVE, request(Dialect::Events, "zoe", "general")), None);
    });
}

#[test]
fn typing_under_a_bad_name_is_an_error_once_a_second() {
    with_each_broker(&[], |harness| {
        harness.join(CAROL, request(Dialect::Rooms, "Anonymous", "general"));
        let typing = r#"{"type":"typing","username":""}"#;
        let counts: Vec<_> = (0..100).map(|_| harness.receive(CAROL, typing).len()).collect();
        assert_eq!((counts[0], counts.iter().sum::<usize>()), (1, 1));
    });
}

#[test]
fn a_token_with_a_username_allows_no_other() {
    with_each_broker(&[], |harness| {
        let identity =
            Identity { credential: CredentialId::new(1), username: Some("ann".into()), ..Identity::default() };
        harness.join(CAROL, JoinRequest { identity, ..request(Dialect::Rooms, "ann", "general") });
        let error = event("error", r#"{"message":"This token may be used with another username only"}"#);
        assert_eq!(
            sent(&harness.receive(CAROL, r#"{"username":"Ann","text":"hi"}"#)),
            [(Recipients::One(CAROL), error)]
        );
        assert!(sent(&harness.receive(CAROL, r#"{"username":" ann ","text":"hi"}"#))[0].1.contains("\"ann\""));
    });
}

#[test]
fn a_client_that_reconnects_replaces_itself() {
    with_each_broker(&["--unique-names"], |harness| {
        let welcome = sent(&harness.join(ALICE, request(Dialect::Events, "alice", "general")));
        let session = welcome[0].1.split(r#""session":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let session = Session(u128::from_str_radix(session, 16).unwrap().to_be_bytes());
        harness.join(BOB, request(Dialect::Events, "bob", "general"));
        let room = harness.chat.room_of(BOB).unwrap();
        let again = || request(Dialect::Events, "alice", "general");
        assert_eq!(harness.rejection(CAROL, again()), Some(event::NAME_IN_USE));
        let made_up = with(again(), |join| {
            join.resume = Some(Resume { epoch: "any".into(), since: 0 });
            join.session = Some(Session([7; 16]));
        });
        assert_eq!(harness.rejection(DAVE, made_up), Some(event::NAME_IN_USE));
        let effects = harness.join(Token(5), with(again(), |join| join.session = Some(session)));
        assert_eq!(effects[0], Effect::Close { client: ALICE, reason: event::REPLACED, may_retry: false });
        assert_eq!(effects[2], Effect::SetRoom { client: Token(5), from: None, to: room });
        let events = sent(&effects[1..]);
        assert_eq!(events[0], (Recipients::Room(room, None), event("left", r#"{"username":"alice"}"#)));
        assert!(events[1].0 == Recipients::One(Token(5)) && events[1].1.contains(r#""members":["bob"]"#));
        assert_eq!(events[2], (Recipients::Room(room, Some(Token(5))), event("joined", r#"{"username":"alice"}"#)));
        assert_eq!(harness.leave(ALICE), [], "alice has already left");
        assert_eq!(harness.receive(ALICE, &message("hi")), []);
    });
}

#[test]
fn a_username_that_a_token_is_bound_to_is_reserved() {
    with_each_broker(&[], |harness| {
        harness.chat.set_reserved_usernames(["Ann".into()].into_iter());
        for look_alike in ["Ann", "ann", "ＡＮＮ"] {
            let request = request(Dialect::Events, look_alike, "general");
            assert_eq!(harness.chat.check_join(&request, NOW), Err(JoinError::Reserved), "{look_alike}");
        }
        let identity =
            Identity { credential: CredentialId::new(2), username: Some("Ann".into()), ..Identity::default() };
        let own = JoinRequest { identity, ..request(Dialect::Rooms, "Ann", "general") };
        assert_eq!(harness.chat.check_join(&own, NOW), Ok(()));
        harness.join(ALICE, own);
        assert!(sent(&harness.receive(ALICE, r#"{"text":"hi"}"#))[0].1.contains(r#""username":"Ann""#));
        harness.join(BOB, request(Dialect::Rooms, "Anonymous", "general"));
        let error = event("error", r#"{"message":"The username ann is reserved for another token"}"#);
        assert_eq!(sent(&harness.receive(BOB, r#"{"username":"ann","text":"hi"}"#)), [(Recipients::One(BOB), error)]);
        harness.join(CAROL, request(Dialect::Events, "carol", "general"));
        harness.chat.set_reserved_usernames(["Carol".into()].into_iter());
        let error = event("error", r#"{"message":"The username carol is reserved for another token"}"#);
        assert_eq!(sent(&harness.receive(CAROL, &message("hi"))), [(Recipients::One(CAROL), error)]);
    });
}

#[test]
fn default_usernames_cannot_be_addressed() {
    with_each_broker(&[], |harness| {
        harness.join(ALICE, request(Dialect::Events, "anonymous", "general"));
        harness.join(BOB, request(Dialect::Rooms, "Anonymous", "general"));
        for name in ["anonymous", "Anonymous", "ANONYMOUS"] {
            let error = event("error", &format!(r#"{{"message":"No such user: {name}"}}"#));
            let effects = harness.receive(ALICE, &message(&format!("/msg {name} hi")));
            assert_eq!(sent(&effects), [(Recipients::One(ALICE), error)]);
        }
    });
}

#[test]
fn users_share_a_bucket_that_outlives_the_connection_except_on_a_local_server() {
    for (args, is_local) in
        [(&["--rate-limit", "1"][..], true), (&["--rate-limit", "1", "--trusted-proxy", "127.0.0.1"], false)]
    {
        let mut harness = Harness::memory(args);
        let is_slowed = |harness: &mut Harness, client: Token| {
            harness.join(client, request(Dialect::Presence, "alice", "general"));
            let slowed = (0..3).map(|_| sent(&harness.receive(client, "hi"))[0].1.contains("Slow down"));
            let slowed = slowed.collect::<Vec<_>>();
            harness.leave(client);
            slowed
        };
        let reconnect = request(Dialect::Presence, "alice", "general");
        (0..9).for_each(|_| assert_eq!(harness.chat.check_join(&reconnect, NOW), Ok(()), "check_join takes no token"));
        let first = is_slowed(&mut harness, ALICE);
        // A join takes a token from the user's rate-limit bucket. On a local server, which only this machine can reach,
        // a join takes no token, and each new connection starts with a full bucket.
        assert_eq!(first, if is_local { [false, false, true] } else { [false, true, true] });
        let again = is_slowed(&mut harness, BOB);
        assert_eq!(again, if is_local { [false, false, true] } else { [true, true, true] });
        let slowed = if is_local { Ok(()) } else { Err(JoinError::TooManyJoins) };
        assert_eq!(harness.chat.check_join(&reconnect, NOW), slowed);
        let other = request(Dialect::Presence, "another address", "general");
        assert_eq!(harness.chat.check_join(&other, NOW), Ok(()));
    }
}

#[test]
fn large_rooms_send_shorter_lists() {
    with_each_broker(&["--max-listed", "2", "--max-presence", "2"], |harness| {
        harness.join_alice_and_bob();
        let presence = |effects: &[Effect]| -> Vec<String> {
            let events = effects.iter().filter_map(|effect| match effect {
                Effect::Send { event, .. } | Effect::Broadcast { event, .. } => Some(json(Dialect::Presence, event)),
                _ => None,
            });
            events.filter(|json| json.contains("active_users")).collect()
        };
        let effects = harness.join(CAROL, request(Dialect::Presence, "carol", "general"));
        let large = r#"{"type":"user_joined","username":"carol","active_users":[],"active_count":3}"#;
        assert_eq!(presence(&effects), [large, large], "one event for carol, one for the other members");
        let welcome = sent(&harness.join(DAVE, request(Dialect::Events, "dave", "general")));
        assert!(
            welcome[0].1.contains(r#""members":["alice","bob"],"#) && welcome[0].1.contains(r#""member_count":3,"#)
        );
        harness.leave(ALICE);
        let small = r#"{"type":"user_left","username":"bob","active_users":["carol","dave"]}"#;
        assert_eq!(presence(&harness.leave(BOB)), [small]);
    });
}

#[test]
fn a_client_id_belongs_to_one_connection() {
    with_each_broker(&["--unique-names"], |harness| {
        let request = || with(request(Dialect::Presence, "pat", "general"), |join| join.client_id = Some("c1".into()));
        harness.join(ALICE, request());
        let effects = harness.join(BOB, request());
        let replaced = Effect::Close { client: ALICE, reason: event::REPLACED, may_retry: false };
        assert_eq!(effects[0], replaced, "the client id is checked before the username");
        assert!(harness.chat.room_of(BOB).is_some());
        let other_id = with(request(), |join| join.client_id = Some("c2".into()));
        assert_eq!(harness.rejection(CAROL, other_id), Some(event::NAME_IN_USE));
        harness.leave(BOB);
        assert_eq!(harness.rejection(DAVE, request()), None);
    });
}

#[test]
fn history_goes_to_the_client_that_asked() {
    with_each_broker(&["--history", "3"], |harness| {
        harness.join_alice_and_bob();
        ["one", "two", "three", "four"].iter().for_each(|text| drop(harness.receive(BOB, &message(text))));
        let history = |data: &str| event("history", data);
        let effects = sent(&harness.receive(ALICE, &history(r#"{"before":4,"limit":1}"#)));
        let page = r#"{"room":"general","before":4,"messages":[{"username":"bob","text":"three","id":3,"time":"1970-01-01T00:00:00.000Z"}],"more":true}"#;
        assert_eq!(effects, [(Recipients::One(ALICE), history(page))]);
        let effects = sent(&harness.receive(ALICE, &history(r#"{"before":2}"#)));
        assert_eq!(effects[0].1, history(r#"{"room":"general","before":2,"messages":[],"more":false}"#));
        harness.receive(ALICE, &switch("rust"));
        let effects = sent(&harness.receive(ALICE, &history(r#"{"before":9}"#)));
        assert_eq!(effects[0].1, history(r#"{"room":"rust","before":9,"messages":[],"more":false}"#));
    });
}

// ------------------------------------------------------------------------------------ brokers that return events late

#[test]
fn commands_of_a_joining_client_take_effect_in_order_after_its_welcome() {
    for seed in 0..20 {
        let mut harness = Harness::delayed(&[], seed);
        harness.join(ALICE, request(Dialect::Events, "alice", "rust"));
        harness.chat.join(BOB, request(Dialect::Events, "bob", "general"), NOW);
        let history = || event("history", r#"{"before":2}"#);
        let texts = [
            message("one"),
            history(),
            "no JSON".into(),
            event("ping", "{}"),
            switch("rust"),
            message("two"),
            history(),
        ];
        texts.iter().for_each(|text| harness.chat.receive(BOB, text, NOW));
        assert_eq!(harness.take_ready_effects(), [], "the broker has returned nothing yet");
        assert_eq!((harness.chat.room_of(BOB), harness.chat.dialect_of(BOB)), (None, Some(Dialect::Events)));
        let names: Vec<String> = harness
            .drain()
            .iter()
            .filter_map(|effect| match effect {
                Effect::Send { event, .. } | Effect::Broadcast { event, .. } => {
                    json(Dialect::Events, event).split('"').nth(3).map(str::to_owned)
                }
                _ => None,
            })
            .collect();
        assert_eq!(
            names,
            ["welcome", "error", "pong", "message", "history", "switched", "joined", "message", "history"]
        );
        assert_eq!(harness.chat.room_of(BOB), harness.chat.room_of(ALICE));
    }
}

#[test]
fn a_joining_client_cannot_make_the_server_hold_events_without_bound() {
    let mut harness = Harness::delayed(&["--rate-limit", "0"], 0);
    harness.chat.join(ALICE, request(Dialect::Events, "alice", "general"), NOW);
    (0..64).for_each(|_| harness.chat.receive(ALICE, "no JSON", NOW));
    assert_eq!(harness.take_ready_effects(), []);
    harness.chat.receive(ALICE, "no JSON", NOW);
    assert_eq!(
        harness.take_ready_effects(),
        [Effect::Close { client: ALICE, reason: event::FLOODING, may_retry: false }]
    );
    assert_eq!(harness.drain().len(), 66, "SetRoom, the welcome, and 64 held errors");
}

#[test]
fn a_client_that_leaves_while_its_join_is_pending_receives_nothing() {
    for seed in 0..20 {
        let mut harness = Harness::delayed(&[], seed);
        harness.join(ALICE, request(Dialect::Events, "alice", "general"));
        let room = harness.chat.room_of(ALICE).unwrap();
        harness.chat.join(BOB, request(Dialect::Events, "bob", "general"), NOW);
        harness.chat.receive(BOB, &message("hi"), NOW);
        harness.chat.leave(BOB, "closed", NOW);
        harness.chat.leave(BOB, "again", NOW);
        harness.chat.receive(BOB, &message("late"), NOW);
        let events = sent(&harness.drain());
        assert_eq!(events[0], (Recipients::Room(room, Some(BOB)), event("joined", r#"{"username":"bob"}"#)));
        assert!(events[1].0 == Recipients::Room(room, None) && events[1].1.contains(r#""text":"hi""#));
        assert_eq!(events[2], (Recipients::Room(room, None), event("left", r#"{"username":"bob"}"#)));
        assert_eq!(events.len(), 3);
        assert_eq!(harness.chat.dialect_of(BOB), None, "the chat has forgotten bob");
    }
}

#[test]
fn a_client_that_is_leaving_receives_nothing_but_is_a_member_until_it_has_left() {
    let (mut harness, control) = Harness::delayed_with_two_members();
    let room = harness.chat.room_of(ALICE).unwrap();
    harness.chat.receive(ALICE, &message("hi"), NOW);
    harness.chat.leave(BOB, "closed", NOW);
    assert_eq!(harness.chat.recipients(room).collect::<Vec<_>>(), [(ALICE, Dialect::Events)]);
    assert_eq!(harness.chat.room_of(BOB), None);
    control.release_one();
    assert_eq!(harness.take_ready_effects().len(), 1, "alice receives only the message");
    harness.chat.join(CAROL, request(Dialect::Events, "carol", "general"), NOW);
    let events = sent(&harness.drain());
    assert_eq!(events[0], (Recipients::Room(room, None), event("left", r#"{"username":"bob"}"#)));
    assert!(events[1].1.contains(r#""members":["alice"]"#));
}

#[test]
fn a_join_can_be_rejected_late() {
    for (error, reason, may_retry) in
        [(BrokerError::NameInUse, event::NAME_IN_USE, false), (BrokerError::TooManyRooms, event::TOO_MANY_ROOMS, true)]
    {
        let (mut harness, control) = Harness::delayed_with_two_members();
        control.reject_next_join(error.clone());
        harness.chat.join(CAROL, request(Dialect::Events, "carol", "general"), NOW);
        [message("hi"), switch("other"), message("/msg bob hi")]
            .iter()
            .for_each(|text| harness.chat.receive(CAROL, text, NOW));
        let close = Effect::Close { client: CAROL, reason, may_retry };
        assert_eq!(harness.drain(), [close], "carol's commands are dropped");
        assert_eq!(harness.chat.dialect_of(CAROL), None);
        assert_eq!(harness.leave(CAROL), []);
        control.reject_next_join(error);
        harness.chat.join(DAVE, request(Dialect::Events, "dave", "general"), NOW);
        harness.chat.leave(DAVE, "closed", NOW);
        assert_eq!(harness.drain(), [], "dave has left, so the chat does not close his connection");
    }
}

#[test]
fn a_client_that_leaves_and_is_replaced_at_once_leaves_once() {
    let mut harness = Harness::delayed(&[], 3);
    let request = || with(request(Dialect::Presence, "pat", "general"), |join| join.client_id = Some("c1".into()));
    harness.join(ALICE, request());
    harness.chat.join(BOB, request(), NOW);
    harness.chat.receive(ALICE, "too late", NOW);
    harness.chat.leave(ALICE, "closed", NOW);
    let effects = harness.drain();
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Close { .. })), "{effects:?}");
    assert_eq!(sent(&effects).len(), 1, "only bob's welcome: alice had left, so nobody else was in the room");
}

#[test]
fn the_error_for_an_unstored_message_has_its_nonce() {
    let (mut harness, control) = Harness::delayed_with_two_members();
    let room = harness.chat.room_of(ALICE).unwrap();
    let message = event("message", r#"{"text":"hi","nonce":"n1"}"#);
    control.fail_next_publish();
    let error = event("error", r#"{"message":"Message not stored","nonce":"n1"}"#);
    assert_eq!(sent(&harness.receive(ALICE, &message)), [(Recipients::One(ALICE), error)]);
    let events = sent(&harness.receive(ALICE, &message));
    assert_eq!(events[0].0, Recipients::Room(room, None), "the nonce of the failed message may be used again");
    assert!(events[0].1.contains(r#""id":1"#), "the failed message used no id");
}

#[test]
fn a_duplicate_reaches_its_sender_alone() {
    let (mut harness, control) = Harness::delayed_with_two_members();
    let message = event("message", r#"{"text":"hi","nonce":"n1"}"#);
    harness.chat.receive(ALICE, &message, NOW);
    harness.chat.receive(ALICE, &message, NOW);
    harness.chat.leave(BOB, "closed", NOW);
    let recipients: Vec<_> = sent(&harness.drain()).iter().map(|(to, _)| *to).collect();
    let room = harness.chat.room_of(ALICE).unwrap();
    assert_eq!(recipients, [Recipients::Room(room, None), Recipients::One(ALICE), Recipients::Room(room, None)]);
    harness.chat.receive(ALICE, &message, NOW);
    harness.chat.leave(ALICE, "closed", NOW);
    control.release_one();
    assert_eq!(harness.take_ready_effects(), [], "a client that is leaving receives no duplicate either");
    assert_eq!(harness.drain(), []);
}

#[test]
fn members_on_other_instances_are_listed_and_announced() {
    let rita = MemberId::Remote { instance: 1, connection: 7 };
    let rob = MemberId::Remote { instance: 1, connection: 8 };
    let mut harness = Harness::delayed(&[], 1);
    let control = harness.control.clone().unwrap();
    control.add_remote_members("general", &[(rita, "rita")]);
    let events = sent(&harness.join(ALICE, request(Dialect::Events, "alice", "general")));
    assert!(events[0].1.contains(r#""members":["rita"]"#), "{}", events[0].1);
    assert_eq!(events.len(), 1, "only alice's welcome: rita's own instance sends `joined` to rita");
    let room = harness.chat.room_of(ALICE).unwrap();
    harness.join(BOB, request(Dialect::Presence, "bob", "general"));

    control.inject(RoomEvent::RemoteJoined { room, member: rob, username: "rob".into() });
    let effects = harness.drain();
    let [Effect::Broadcast { except: None, event: joined, .. }] = &effects[..] else { panic!("{effects:?}") };
    let active = r#"{"type":"user_joined","username":"rob","active_users":["alice","bob","rita","rob"]}"#;
    assert_eq!(json(Dialect::Presence, joined), active);

    control.inject(RoomEvent::Typing { room, client: None, username: "rob".into() });
    let typing = event("typing", r#"{"username":"rob"}"#);
    assert_eq!(sent(&harness.drain()), [(Recipients::Room(room, None), typing)]);
    let (username, time) = ("rob".into(), "1970-01-01T00:00:00.000Z".into());
    let remote = Message { id: 1, username, text: "hi".into(), time, nonce: None };
    control.inject(RoomEvent::Published { room, client: None, message: Rc::new(remote) });
    assert!(sent(&harness.drain())[0].1.contains(r#""username":"rob","text":"hi","id":1"#));

    control.inject(RoomEvent::Left { room, member: rita });
    let effects = harness.drain();
    let [Effect::Broadcast { except: None, event: left, .. }] = &effects[..] else { panic!("{effects:?}") };
    let active = r#"{"type":"user_left","username":"rita","active_users":["alice","bob","rob"]}"#;
    assert_eq!(json(Dialect::Presence, left), active);
    assert_eq!(sent(&harness.join(CAROL, request(Dialect::Events, "carol", "general"))).len(), 2);

    [ALICE, BOB, CAROL].into_iter().for_each(|client| drop(harness.leave(client)));
    assert!(harness.chat.recipients(room).next().is_none());
    control.add_remote_members("general", &[(rob, "rob")]);
    let events = sent(&harness.join(DAVE, request(Dialect::Events, "dave", "general")));
    assert!(events[0].1.contains(r#""members":["rob"]"#), "the room has reopened on this instance");
}

/// For each client: the encoded events that the chat sends to the client, and the close reason, in order.
#[derive(Debug, Default, PartialEq)]
struct Transcripts(BTreeMap<Token, Vec<String>>);

impl Transcripts {
    fn deliver(&mut self, effect: Effect, chat: &Chat) {
        let mut receive = |client: Token, dialect: Dialect, event: &Event| {
            self.0.entry(client).or_default().push(json(dialect, event));
        };
        match effect {
            Effect::Send { client, event } => {
                receive(client, chat.dialect_of(client).unwrap(), &event);
            }
            Effect::Broadcast { room, except: None, event } => {
                chat.recipients(room).for_each(|(client, dialect)| receive(client, dialect, &event));
            }
            Effect::Broadcast { room, except: Some(except), event } => {
                let others = chat.recipients(room).filter(|(client, _)| *client != except);
                others.for_each(|(client, dialect)| receive(client, dialect, &event));
            }
            Effect::SetRoom { client, to, .. } => assert_eq!(chat.room_of(client), Some(to)),
            Effect::Close { client, reason, .. } => self.0.entry(client).or_default().push(format!("{reason:?}")),
            Effect::Renew(..) => panic!("this server accepts no JWTs"),
            Effect::StorageFailed { .. } => panic!("this broker stores nothing"),
        }
    }
}

/// Runs clients that send random commands without waiting for the resulting events.
fn run_random_chat(harness: &mut Harness, seed: u64) -> Transcripts {
    let random = &mut Rng::with_seed(seed);
    let mut transcripts = Transcripts::default();
    let mut clients: Vec<Token> = Vec::new();
    let rooms = ["a", "b", "c", "d"];
    for step in 0..300 {
        let room = *random.choice(&rooms).unwrap();
        // Draw all random numbers of a step in advance, so that the clients do the same with every broker.
        let (action, at, count) = (random.u8(0..10), random.usize(0..100), random.usize(0..4));
        match action {
            0..2 => {
                let client = Token(step);
                clients.push(client);
                let dialect = Dialect::ALL[at % 3];
                harness.chat.join(client, request(dialect, &format!("user{}", at % 8), room), NOW);
            }
            _ if clients.is_empty() => {}
            2 => harness.chat.leave(clients.swap_remove(at % clients.len()), "closed", NOW),
            3 => {
                let text = event("history", &format!(r#"{{"before":{at},"limit":{}}}"#, count + 1));
                harness.chat.receive(clients[at % clients.len()], &text, NOW);
            }
            4 => harness.chat.receive(clients[at % clients.len()], &switch(room), NOW),
            _ => {
                let text = event("message", &format!(r#"{{"text":"{step}","nonce":"{}"}}"#, at % 20));
                harness.chat.receive(clients[at % clients.len()], &text, NOW);
            }
        }
        if let Some(control) = &harness.control {
            (0..count).for_each(|_| _ = control.release_one());
        }
        while let Some(effect) = harness.chat.next_effect() {
            transcripts.deliver(effect, &harness.chat);
        }
    }
    while harness.control.as_ref().is_some_and(Control::release_one) {
        while let Some(effect) = harness.chat.next_effect() {
            transcripts.deliver(effect, &harness.chat);
        }
    }
    // Compare only clients that stay: how many events a leaving client still receives depends on the broker's delay.
    transcripts.0.retain(|client, _| clients.contains(client));
    transcripts
}

#[test]
fn delay_changes_nothing_that_a_client_receives() {
    let args = ["--rate-limit", "0", "--max-rooms", "3", "--unique-names"];
    let mut count = 0;
    for seed in 0..50 {
        let expected = run_random_chat(&mut Harness::memory(&args), seed);
        count += expected.0.values().map(Vec::len).sum::<usize>();
        for order in 0..4 {
            let transcripts = run_random_chat(&mut Harness::delayed(&args, order), seed);
            assert_eq!(transcripts, expected, "seed {seed}, order {order}");
        }
    }
    assert!(count > 5000, "{count} events");
}
