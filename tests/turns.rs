//! Everything at once: the server is stopped while many people come, speak, move about and go, and finds all of it when it
//! goes on, in as few turns of its loop as can be. What happened then has one order, and everybody saw that.

mod support;

use fastrand::Rng;
use serde_json::{Value, json};
use support::people::{DIALECTS, Dialect, Person, chat, path, same};
use support::{RawClient, Server, masked, upgrade_request};

use Dialect::{Events, Presence, Rooms};

const ROOM: &str = "general";
const GUESTS: usize = 8;

/// What somebody has seen of [`ROOM`]: the texts from the first one on, and who is there.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    texts: Vec<String>,
    members: Vec<String>,
}

/// Somebody, and what they have seen.
struct Witness {
    person: Person,
    dialect: Dialect,
    name: String,
    room: String,
    seen: Seen,
}

impl Witness {
    fn new(client: RawClient, dialect: Dialect, name: &str) -> Witness {
        let person = Person::new(client, dialect, name);
        // On `rooms`, what others see is the name that nobody gave.
        let name = if dialect == Rooms { "Anonymous" } else { name };
        Witness { person, dialect, name: name.to_owned(), room: ROOM.to_owned(), seen: Seen::default() }
    }

    /// Takes in one thing that was said. `None`: it was no event of the room.
    fn take(&mut self, heard: &Value) -> Option<String> {
        let data = if self.dialect == Events { &heard["data"] } else { heard };
        let kind = heard[if self.dialect == Events { "event" } else { "type" }].as_str().expect("a kind");
        if let "welcome" | "switched" = kind {
            self.room = string(&data["room"]);
            self.seen.members = strings(&data["members"]);
            self.seen.members.push(self.name.clone());
            self.seen.texts = data["history"].as_array().unwrap().iter().map(|told| string(&told["text"])).collect();
            return None;
        }
        let what = match kind {
            "message" | "chat_message" => {
                self.seen.texts.push(string(&data["text"]));
                format!("{} says {}", string(&data["username"]), string(&data["text"]))
            }
            "joined" | "user_joined" => {
                self.seen.members.push(string(&data["username"]));
                format!("{} joins", string(&data["username"]))
            }
            "left" | "user_left" => {
                let name = string(&data["username"]);
                let at = self.seen.members.iter().position(|member| *member == name);
                // On presence, one's own arrival brings all the names there are.
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

    /// Takes in everything up to this text in the room, and returns what happened there, each with who was there then.
    fn hear_until(&mut self, text: &str) -> Vec<(String, Vec<String>)> {
        let mut happened = Vec::new();
        while self.room != ROOM || self.seen.texts.last().is_none_or(|last| last != text) {
            let heard = self.person.hear();
            if let Some(what) = self.take(&heard) {
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

/// Somebody who comes while the server is stopped: all they will ever send stands behind their request.
fn guest(server: &Server, random: &mut Rng, name: &str) -> (Witness, bool) {
    let dialect = random.choice(DIALECTS).unwrap();
    let room = if dialect == Events && random.bool() { "elsewhere" } else { ROOM };
    let mut witness = Witness::new(server.connect(), dialect, name);
    let mut all = upgrade_request(&path(dialect, name, room)).into_bytes();
    let switch = |room: &str| json!({"event": "switch_room", "data": {"room": room}}).to_string();
    for i in 0..random.usize(0..6) {
        let text = match random.u8(0..6) {
            0 | 1 if dialect == Events => switch(random.choice([ROOM, "elsewhere"]).unwrap()),
            2 if dialect == Events => json!({"event": "ping"}).to_string(),
            3 => witness.person.message(&format!("/msg {name} a note")),
            _ => witness.person.message(&format!("{i} by {name}")),
        };
        all.extend(masked(0x81, text.as_bytes()));
    }
    if dialect == Events {
        all.extend(masked(0x81, switch(ROOM).as_bytes()));
    }
    let stays = random.u8(0..3) > 0;
    all.extend(if stays { masked(0x89, b"done") } else { masked(0x88, &1000u16.to_be_bytes()) });
    witness.person.client.send(&all);
    (witness, stays)
}

/// Reads until the server has done what the guest asked for.
fn settle(guest: &mut Witness, stays: bool) {
    assert!(guest.person.client.read_head().starts_with("HTTP/1.1 101 "));
    loop {
        let frame = guest.person.frame();
        match frame.first {
            0x8a if stays => return,
            0x88 if !stays => return guest.person.client.expect_end(),
            _ => drop(guest.take(&serde_json::from_str(frame.text()).expect("JSON"))),
        }
    }
}

/// The three who are there all the time: on `events`, on `rooms`, and on `presence`.
fn residents(server: &Server) -> [Witness; 3] {
    let mut residents = DIALECTS.map(|dialect| {
        let name = format!("{dialect:?}");
        Witness::new(server.upgrade(&path(dialect, &name, ROOM)), dialect, &name)
    });
    residents[2].person.says("all here");
    for witness in &mut residents {
        witness.hear_until("all here");
    }
    residents
}

fn round(server: &Server, residents: &mut [Witness; 3], random: &mut Rng, number: usize) {
    server.signal("STOP");
    let mut guests: Vec<_> = (0..GUESTS).map(|i| guest(server, random, &format!("guest {number}.{i}"))).collect();
    for i in 0..3 {
        let resident = random.choice(&mut *residents).unwrap();
        resident.person.says(&format!("{number}.{i}"));
    }
    server.signal("CONT");
    guests.iter_mut().for_each(|(guest, stays)| settle(guest, *stays));
    let end = format!("the end of {number}");
    residents[0].person.says(&end);
    let [events, rooms, presence] = residents;
    let happened = events.hear_until(&end);
    assert_eq!(presence.hear_until(&end), happened, "round {number}");
    // What `rooms` is told of who comes and goes names nobody.
    let nameless = |what: &str| if what.contains(" says ") { what.to_owned() } else { last_word(what) };
    let told: Vec<String> = rooms.hear_until(&end).into_iter().map(|(what, _)| what).collect();
    assert_eq!(told, happened.iter().map(|(what, _)| nameless(what)).collect::<Vec<_>>(), "round {number}");
    for (mut guest, _) in guests.into_iter().filter(|(_, stays)| *stays) {
        guest.hear_until(&end);
        assert_eq!(guest.seen.texts, events.seen.texts, "{}", guest.name);
        if guest.dialect != Rooms {
            guest.seen.members.sort();
            assert_eq!(guest.seen.members, events.seen.members, "{}", guest.name);
        }
        guest.person.leaves();
    }
}

fn last_word(what: &str) -> String {
    what.rsplit(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn everything_at_once() {
    for seed in 0..6 {
        let server = chat(&["--history", "1000"]);
        let mut residents = residents(&server);
        let mut random = Rng::with_seed(seed);
        (0..10).for_each(|number| round(&server, &mut residents, &mut random, number));
        // Messages have their numbers in the order in which they were heard.
        let mut late = Person::joins(&server, Events, "late", ROOM);
        let welcome = late.hears_at_least("welcome", json!({}));
        let history = welcome["history"].as_array().unwrap();
        let texts: Vec<String> = history.iter().map(|told| string(&told["text"])).collect();
        assert_eq!(texts, residents[0].seen.texts, "seed {seed}");
        assert!(history.iter().zip(1..).all(|(told, id): (&Value, u64)| told["id"] == id), "seed {seed}");
        assert!(same(&welcome["last_id"], &json!(texts.len())), "seed {seed}");
    }
}

/// A turn in which a room is told more than one batch holds ends early. Whoever had not been read by then is read next.
#[test]
fn a_turn_that_is_cut_short() {
    let server = Server::start(&[]);
    let mut people: Vec<RawClient> =
        (0..8).map(|number| server.upgrade(&format!("/?token=dev-token&username=p{number}"))).collect();
    let message = json!({"event": "message", "data": {"text": format!("a{}b", "\u{1}".repeat(498))}}).to_string();
    // All of it is there when the server looks, so that it is one turn's work.
    server.signal("STOP");
    for person in &mut people {
        person.send(&masked(0x81, message.as_bytes()).repeat(10));
        person.send(&masked(0x89, b"am I heard?"));
    }
    server.signal("CONT");
    for person in &mut people {
        let pong = std::iter::repeat_with(|| person.read_frame()).find(|frame| frame.opcode() != 1).unwrap();
        assert_eq!((pong.first, &pong.payload[..]), (0x8a, &b"am I heard?"[..]));
    }
}

/// A word for all but one that fills a batch, which is sent at once then, is for all but that one all the same.
#[test]
fn a_word_for_the_others_that_fills_a_batch() {
    let server = Server::start(&[]);
    // As many bytes as a name may have, and as many names as make a list of over 64 KiB.
    let name = "%F0%9F%98%80".repeat(32);
    let _crowd: Vec<RawClient> =
        (0..600).map(|_| server.upgrade(&format!("/?token=dev-token&username={name}"))).collect();
    let mut newcomer = server.upgrade("/ws?token=dev-token&username=pat&client_id=1");
    newcomer.send(&masked(0x89, b""));
    let welcome = newcomer.read_json();
    assert_eq!((&welcome["type"], welcome["active_users"].as_array().unwrap().len()), (&json!("user_joined"), 601));
    assert_eq!(newcomer.read_frame().first, 0x8a, "its own join is told once");
}
