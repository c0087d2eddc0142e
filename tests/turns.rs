//! While the server process is suspended, many clients join, send, switch rooms and leave. After the suspension, the
//! server processes all input in very few turns of the event loop. Every client must receive the events in the same
//! order.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use fastrand::Rng;
use serde_json::{Value, json};
use support::users::{DIALECTS, Dialect, User, chat, path, same};
use support::{RawClient, Server, masked, upgrade_request};

use Dialect::{Events, Presence, Rooms};

const ROOM: &str = "general";
const GUESTS: usize = 8;

/// The messages and the members of a client's room, according to the events that the client has received.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    texts: Vec<String>,
    members: Vec<String>,
}

/// A client that keeps track of the messages and the members of its room.
struct Member {
    user: User,
    dialect: Dialect,
    name: String,
    room: String,
    seen: Seen,
}

impl Member {
    fn new(client: RawClient, dialect: Dialect, name: &str) -> Member {
        let user = User::new(client, dialect, name);
        // Other users see a client of the `rooms` dialect under the default name.
        let name = if dialect == Rooms { "Anonymous" } else { name };
        Member { user, dialect, name: name.to_owned(), room: ROOM.to_owned(), seen: Seen::default() }
    }

    /// Processes one event. For a message, join or leave in [`ROOM`], returns a description of the event.
    fn take(&mut self, event: &Value) -> Option<String> {
        let data = if self.dialect == Events { &event["data"] } else { event };
        let kind = event[if self.dialect == Events { "event" } else { "type" }].as_str().expect("a kind");
        if let "welcome" | "switched" = kind {
            self.room = string(&data["room"]);
            self.seen.members = strings(&data["members"]);
            self.seen.members.push(self.name.clone());
            self.seen.texts =
                data["history"].as_array().unwrap().iter().map(|message| string(&message["text"])).collect();
            return None;
        }
        let what = match kind {
            "message" | "chat_message" => {
                self.seen.texts.push(string(&data["text"]));
                format!("{} sends {}", string(&data["username"]), string(&data["text"]))
            }
            "joined" | "user_joined" => {
                self.seen.members.push(string(&data["username"]));
                format!("{} joins", string(&data["username"]))
            }
            "left" | "user_left" => {
                let name = string(&data["username"]);
                let at = self.seen.members.iter().position(|member| *member == name);
                at.map(|at| self.seen.members.swap_remove(at));
                format!("{name} leaves")
            }
            "system" => if data["message"] == "A user joined the chat" { "joins" } else { "leaves" }.to_owned(),
            _ => return None,
        };
        if self.dialect == Presence && kind != "chat_message" {
            self.seen.members = strings(&data["active_users"]);
        }
        (self.room == ROOM).then_some(what)
    }

    /// Processes events until the message `text` arrives. Returns each event in [`ROOM`] with the room's members after
    /// the event.
    fn receive_until(&mut self, text: &str) -> Vec<(String, Vec<String>)> {
        let mut happened = Vec::new();
        while self.room != ROOM || self.seen.texts.last().is_none_or(|last| last != text) {
            let event = self.user.receive();
            if let Some(what) = self.take(&event) {
                self.seen.members.sort();
                happened.push((what, self.seen.members.clone()));
            }
        }
        happened
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a string: {value}")).to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap_or_else(|| panic!("a list: {value}")).iter().map(string).collect()
}

/// Connects a client while the server is suspended. One write contains the request and all of the client's frames.
fn guest(server: &Server, random: &mut Rng, name: &str) -> (Member, bool) {
    let dialect = random.choice(DIALECTS).unwrap();
    let room = if dialect == Events && random.bool() { "elsewhere" } else { ROOM };
    let mut member = Member::new(server.connect(), dialect, name);
    let mut all = upgrade_request(&path(dialect, name, room)).into_bytes();
    let switch = |room: &str| json!({"event": "switch_room", "data": {"room": room}}).to_string();
    for i in 0..random.usize(0..6) {
        let text = match random.u8(0..6) {
            0 | 1 if dialect == Events => switch(random.choice([ROOM, "elsewhere"]).unwrap()),
            2 if dialect == Events => json!({"event": "ping"}).to_string(),
            3 => member.user.message(&format!("/msg \"{name}\" a note")),
            _ => member.user.message(&format!("{i} by {name}")),
        };
        all.extend(masked(0x81, text.as_bytes()));
    }
    if dialect == Events {
        all.extend(masked(0x81, switch(ROOM).as_bytes()));
    }
    let stays = random.u8(0..3) > 0;
    all.extend(if stays { masked(0x89, b"done") } else { masked(0x88, &1000u16.to_be_bytes()) });
    member.user.client.send(&all);
    (member, stays)
}

/// Processes events until the server replies to the guest's last frame, which is a Ping or a Close.
fn settle(guest: &mut Member, stays: bool) {
    assert!(guest.user.client.read_head().starts_with("HTTP/1.1 101 "));
    loop {
        let frame = guest.user.frame();
        match frame.first {
            0x8a if stays => return,
            0x88 if !stays => return guest.user.client.expect_end(),
            _ => drop(guest.take(&serde_json::from_str(frame.text()).expect("JSON"))),
        }
    }
}

/// Connects three members, one in each dialect, who stay for the whole test.
fn connect_residents(server: &Server) -> [Member; 3] {
    let mut residents = DIALECTS.map(|dialect| {
        let name = format!("{dialect:?}");
        Member::new(server.upgrade(&path(dialect, &name, ROOM)), dialect, &name)
    });
    residents[2].user.send_message("all here");
    for member in &mut residents {
        member.receive_until("all here");
    }
    residents
}

fn round(server: &Server, residents: &mut [Member; 3], random: &mut Rng, number: usize) {
    server.signal("STOP");
    let mut guests: Vec<_> = (0..GUESTS).map(|i| guest(server, random, &format!("guest {number}.{i}"))).collect();
    for i in 0..3 {
        let resident = random.choice(&mut *residents).unwrap();
        resident.user.send_message(&format!("{number}.{i}"));
    }
    server.signal("CONT");
    guests.iter_mut().for_each(|(guest, stays)| settle(guest, *stays));
    let end = format!("the end of {number}");
    residents[0].user.send_message(&end);
    let [events, rooms, presence] = residents;
    let happened = events.receive_until(&end);
    assert_eq!(presence.receive_until(&end), happened, "round {number}");
    // In the `rooms` dialect, join and leave events contain no username, so compare only "joins" and "leaves".
    let nameless = |what: &str| if what.contains(" sends ") { what.to_owned() } else { last_word(what) };
    let received: Vec<String> = rooms.receive_until(&end).into_iter().map(|(what, _)| what).collect();
    assert_eq!(received, happened.iter().map(|(what, _)| nameless(what)).collect::<Vec<_>>(), "round {number}");
    for (mut guest, _) in guests.into_iter().filter(|(_, stays)| *stays) {
        guest.receive_until(&end);
        assert_eq!(guest.seen.texts, events.seen.texts, "{}", guest.name);
        if guest.dialect != Rooms {
            guest.seen.members.sort();
            assert_eq!(guest.seen.members, events.seen.members, "{}", guest.name);
        }
        guest.user.leave();
    }
}

fn last_word(what: &str) -> String {
    what.rsplit(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn everything_at_once() {
    for seed in 0..6 {
        let server = chat(&["--history", "1000"]);
        let mut residents = connect_residents(&server);
        let mut random = Rng::with_seed(seed);
        (0..10).for_each(|number| round(&server, &mut residents, &mut random, number));
        // The history lists the messages in the order in which the clients received them, with ids from 1.
        let mut late = User::join(&server, Events, "late", ROOM);
        let welcome = late.expect_event("welcome", json!({}));
        let history = welcome["history"].as_array().unwrap();
        let texts: Vec<String> = history.iter().map(|message| string(&message["text"])).collect();
        assert_eq!(texts, residents[0].seen.texts, "seed {seed}");
        assert!(history.iter().zip(1..).all(|(message, id): (&Value, u64)| message["id"] == id), "seed {seed}");
        assert!(same(&welcome["last_id"], &json!(texts.len())), "seed {seed}");
    }
}

/// Once a room's batch is full, the server reads from the room's other members only in the next turn of the event loop.
#[test]
fn a_turn_that_ends_early() {
    let server = Server::start(&[]);
    let mut clients: Vec<RawClient> =
        (0..8).map(|number| server.upgrade(&format!("/?token=dev-token&username=p{number}"))).collect();
    let message = json!({"event": "message", "data": {"text": format!("a{}b", "\u{1}".repeat(498))}}).to_string();
    // Suspend the server while the clients send, so that all of their input is ready in one turn of the event loop.
    server.signal("STOP");
    for client in &mut clients {
        client.send(&masked(0x81, message.as_bytes()).repeat(10));
        client.send(&masked(0x89, b"still there?"));
    }
    server.signal("CONT");
    for client in &mut clients {
        let pong = std::iter::repeat_with(|| client.read_frame()).find(|frame| frame.opcode() != 1).unwrap();
        assert_eq!((pong.first, &pong.payload[..]), (0x8a, &b"still there?"[..]));
    }
}

/// A new member must not receive the join event that the server broadcasts to the other members, even if the event is
/// so large that the server sends the room's batch immediately.
#[test]
fn an_event_for_the_others_that_fills_a_batch() {
    let server = Server::start(&["--max-presence", "1000"]);
    // The names of 600 members, each of the longest possible length, exceed 64 KiB, the size of a full batch.
    let name = "%F0%9F%98%80".repeat(32);
    let _crowd: Vec<RawClient> =
        (0..600).map(|_| server.upgrade(&format!("/?token=dev-token&username={name}"))).collect();
    let mut new_client = server.upgrade("/ws?token=dev-token&username=pat&client_id=1");
    new_client.send(&masked(0x89, b""));
    let welcome = new_client.read_json();
    assert_eq!((&welcome["type"], welcome["active_users"].as_array().unwrap().len()), (&json!("user_joined"), 601));
    assert_eq!(new_client.read_frame().first, 0x8a, "the new client receives its own join once");
}
