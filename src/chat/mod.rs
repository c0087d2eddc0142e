//! The chat: who is where, and who hears what.
//!
//! [`Chat`] keeps the tables and turns a [`Command`] into [`Delivery`]s. It knows clients, rooms, text and names; it
//! knows no frames, sockets or clocks: a client is a `mio::Token`, and the time is handed in.
//!
//! Reading order: [`command`] (the words), this file (leaving, switching), [`admission`] (joining), [`speech`] (saying),
//! [`rooms`], [`history`], [`timestamp`], [`names`], [`pace`] and [`ids`] (the tables), [`dialect`] (the words as JSON), [`access`] (who
//! may come in).
//!
//! ```text
//!   bob                 and who is told what, in this order
//!   comes to general    bob: welcome; general but bob: joined
//!   says something      general: message
//!   whispers to alice   alice: private; bob: private
//!   moves to rust       general: left; bob: switched; rust but bob: joined
//!   types               rust but bob: typing
//!   sends no JSON       bob: error
//!   leaves              rust: left
//! ```
//!
//! The subtle thing: who is *in* a room when something is said there is decided here, at once; when it is sent is the
//! server's affair. So every method returns what is to be told in the order in which it must be told.

pub mod access;
pub mod admission;
pub mod command;
pub mod dialect;
pub mod history;
pub mod ids;
pub mod names;
pub mod pace;
pub mod rooms;
pub mod speech;
pub mod timestamp;

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use mio::Token;

use crate::config::Config;
use access::Grant;
pub use admission::{Admission, Newcomer};
pub use command::{Audience, Delivery};
use command::{Command, Complaint, Notice};
use dialect::Dialect;
use history::{History, Past, Resume, Ring};
pub use ids::{RoomId, RoomMap, TokenMap};
use names::Names;
use pace::{Pace, Verdict};
use rooms::Rooms;
use timestamp::Clock;

/// Where a client is that names no room.
pub const DEFAULT_ROOM: &str = "general";

/// Why a client is closed that does not stop sending.
pub const FLOODING: &str = "flooding";
/// Why a client is closed, or may not speak, whose name is somebody else's.
pub const NAME_IN_USE: &str = "username already in use";
/// Why a client is closed in whose place another has come.
pub const REPLACED: &str = "replaced by a newer connection";

/// The time, by the clock that people read and by one that only goes forward (since the server's start).
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// To be shown.
    pub time: SystemTime,
    /// To be measured with.
    pub steady: Duration,
}

/// The tables.
#[derive(Debug)]
pub struct Chat {
    /// Boxed, since a table is larger than what is in it.
    clients: TokenMap<Box<Client>>,
    rooms: Rooms,
    names: Names,
    client_ids: HashMap<Rc<str>, Token>,
    history: Box<dyn History>,
    clock: Clock,
    rules: Rules,
}

/// What the configuration has to say here.
#[derive(Debug)]
struct Rules {
    max_text: usize,
    max_rooms: usize,
    /// Messages a second; 0: as many as they like.
    rate_limit: f64,
}

#[derive(Debug)]
struct Client {
    dialect: Dialect,
    /// The name it came with, which others see come and go.
    username: Rc<str>,
    /// The name it was last heard under.
    spoken_as: Rc<str>,
    room: RoomId,
    grant: Grant,
    client_id: Option<Rc<str>>,
    pace: Pace,
    /// When the others were last told that it is typing.
    typing_at: Option<Duration>,
}

impl Chat {
    /// An empty chat.
    pub fn new(config: &Config) -> Chat {
        Chat {
            clients: TokenMap::default(),
            rooms: Rooms::default(),
            names: Names::new(config.unique_names),
            client_ids: HashMap::new(),
            history: Box::new(Ring::new(config)),
            clock: Clock::default(),
            rules: Rules { max_text: config.max_text, max_rooms: config.max_rooms, rate_limit: config.rate_limit },
        }
    }

    /// Lets a client go, whatever the reason, which is for the log. Somebody who is not here goes without a word.
    pub fn leave(&mut self, token: Token, reason: &str, now: Now) -> Vec<Delivery> {
        let Some(client) = self.clients.remove(&token) else { return Vec::new() };
        self.names.remove(&client.spoken_as, token);
        if let Some(client_id) = &client.client_id {
            self.client_ids.remove(client_id);
        }
        let room = self.exit(token, client.room, now);
        log::info!("LEAVE room={} user={} reason={reason:?}", logged(&room), logged(&client.username));
        if self.rooms.get(client.room).is_none() {
            return Vec::new(); // nobody is left to be told
        }
        vec![Delivery::tell(Audience::Room(client.room), self.left(client.room, client.username))]
    }

    /// Reads a client's text in its dialect, and does what it asks. All of it but typing draws from its pace.
    pub fn receive(&mut self, token: Token, text: &str, now: Now) -> Vec<Delivery> {
        let Some(client) = self.clients.get_mut(&token) else { return Vec::new() };
        let read = client.dialect.read(text);
        let (is_typing, nonce) = match &read {
            Ok(command) => (matches!(command, Command::Typing { .. }), command.nonce()),
            Err(fault) => (false, fault.nonce.as_deref()),
        };
        let verdict = if is_typing { Verdict::Pass } else { client.pace.judge(self.rules.rate_limit, now.steady) };
        match verdict {
            Verdict::Pass => {}
            Verdict::SlowDown => return vec![Delivery::complain(token, Complaint::SlowDown, nonce)],
            Verdict::Flood => return vec![Delivery::Close { token, reason: FLOODING }],
        }
        match read {
            Ok(command) => self.handle(token, &command, now),
            Err(fault) => vec![Delivery::tell(Audience::One(token), Notice::Error(fault))],
        }
    }

    /// Does what a client asks.
    pub fn handle(&mut self, token: Token, command: &Command, now: Now) -> Vec<Delivery> {
        let done = match command {
            Command::Message { username, text, nonce } => {
                self.say(token, username.as_deref(), text, nonce.as_deref(), now)
            }
            Command::Private { to, text, nonce } => {
                self.name_for(token, None).and_then(|from| self.whisper(token, from, to, text, nonce.as_deref(), now))
            }
            Command::SwitchRoom { room } => self.switch_room(token, room, now),
            Command::Typing { username } => self.typing(token, username.as_deref(), now),
            Command::Ping => Ok(vec![Delivery::tell(Audience::One(token), Notice::Pong)]),
        };
        done.unwrap_or_else(|complaint| vec![Delivery::complain(token, complaint, command.nonce())])
    }

    /// The room that a client is in.
    pub fn room_of(&self, token: Token) -> Option<RoomId> {
        self.clients.get(&token).map(|client| client.room)
    }

    /// The shape that a client speaks.
    pub fn dialect_of(&self, token: Token) -> Option<Dialect> {
        self.clients.get(&token).map(|client| client.dialect)
    }

    /// Those who are in a room, in no order, each with its dialect.
    pub fn members(&self, room: RoomId) -> impl Iterator<Item = (Token, Dialect)> {
        self.rooms.get(room).into_iter().flat_map(rooms::Room::members)
    }

    /// The dialects in which a room is to be told something.
    pub fn dialects(&self, room: RoomId) -> impl Iterator<Item = Dialect> + use<'_> {
        self.rooms.get(room).into_iter().flat_map(rooms::Room::dialects)
    }

    fn switch_room(&mut self, token: Token, name: &str, now: Now) -> Result<Vec<Delivery>, Complaint> {
        let name = access::room_name(name).map_err(Complaint::BadName)?;
        let Some(client) = self.clients.get(&token) else { return Ok(Vec::new()) };
        let (old_id, dialect, username) = (client.room, client.dialect, Rc::clone(&client.username));
        let found = self.rooms.find(name);
        if found == Some(old_id) {
            return Ok(Vec::new());
        }
        // A mover who leaves its old room empty makes place for the new one.
        let is_alone = self.rooms.get(old_id).is_some_and(|room| room.member_count() == 1);
        if !is_alone && !self.has_room_for(name) {
            return Err(Complaint::TooManyRooms);
        }
        let members = self.members_named(found);
        // First in, then out: a room that empties may cost another its place among those that are kept.
        let room = Rc::from(name);
        let (new_id, past) = self.enter(token, dialect, found, &room, None, now);
        let old = self.exit(token, old_id, now);
        let left = self.left(old_id, Rc::clone(&username));
        if let Some(client) = self.clients.get_mut(&token) {
            client.room = new_id;
        }
        log::info!("SWITCH from={} to={} user={}", logged(&old), logged(name), logged(&username));
        let joined = self.joined(new_id, &username);
        Ok(vec![
            Delivery::Move { token, from: old_id, to: new_id },
            Delivery::tell(Audience::Room(old_id), left),
            Delivery::tell(Audience::One(token), Notice::Switched { room, members, past }),
            Delivery::tell(Audience::Others(new_id, token), joined),
        ])
    }

    /// Puts a client into a room, which is made if none of that name was found. Returns what was said there.
    fn enter(
        &mut self,
        token: Token,
        dialect: Dialect,
        found: Option<RoomId>,
        name: &Rc<str>,
        resume: Option<&Resume>,
        now: Now,
    ) -> (RoomId, Past) {
        let id = found.unwrap_or_else(|| {
            let id = self.rooms.open(Rc::clone(name));
            self.history.open(id, name, now.steady);
            id
        });
        self.rooms.enter(id, token, dialect);
        (id, self.history.recall(id, resume))
    }

    /// Takes a client out of a room. Returns the room's name.
    fn exit(&mut self, token: Token, id: RoomId, now: Now) -> Rc<str> {
        let name = self.rooms.get(id).map_or_else(|| "".into(), |room| Rc::clone(&room.name));
        if self.rooms.exit(id, token) {
            self.history.close(id, now.steady);
        }
        name
    }

    /// The names of those in a room, those who connected first, first.
    fn members_named(&self, room: Option<RoomId>) -> Vec<Rc<str>> {
        let room = room.and_then(|id| self.rooms.get(id));
        let mut tokens: Vec<_> = room.into_iter().flat_map(rooms::Room::members).map(|(token, _)| token).collect();
        tokens.sort_unstable(); // tokens count up
        tokens.iter().filter_map(|token| self.clients.get(token)).map(|client| Rc::clone(&client.username)).collect()
    }

    /// As [`Chat::members_named`], if anyone there is shown that: in a large room it is not made for nothing.
    fn members_shown(&self, room: RoomId) -> Vec<Rc<str>> {
        if self.dialects(room).any(Dialect::shows_members) { self.members_named(Some(room)) } else { Vec::new() }
    }

    fn joined(&self, room: RoomId, username: &Rc<str>) -> Notice {
        Notice::Joined { username: Rc::clone(username), members: self.members_shown(room) }
    }

    fn left(&self, room: RoomId, username: Rc<str>) -> Notice {
        Notice::Left { username, members: self.members_shown(room) }
    }
}

/// A name as a log line shows it: bare where that cannot be misread, else quoted and escaped.
pub fn logged(name: &str) -> Cow<'_, str> {
    let is_plain = name.chars().all(|character| character.is_alphanumeric() || matches!(character, '-' | '_' | '.'));
    if is_plain { name.into() } else { format!("{name:?}").into() }
}

/// The beginning of a text as a log line shows it.
fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);
    const CAROL: Token = Token(3);
    const NOW: Now = Now { time: SystemTime::UNIX_EPOCH, steady: Duration::ZERO };

    fn chat(args: &[&str]) -> Chat {
        Chat::new(&Config::try_parse_from(["wirechat"].iter().chain(args)).unwrap())
    }

    fn newcomer(dialect: Dialect, username: &str, room: &str) -> Newcomer {
        let grant = Grant { token: Some(0), username: None };
        Newcomer {
            dialect,
            username: username.into(),
            room: room.into(),
            grant,
            client_id: None,
            resume: None,
            ticket: None,
        }
    }

    /// Alice and Bob, in the native dialect.
    fn chat_of_two(args: &[&str]) -> Chat {
        let mut chat = chat(args);
        chat.join(ALICE, newcomer(Dialect::Events, "alice", "general"), NOW);
        chat.join(BOB, newcomer(Dialect::Events, "bob", "general"), NOW);
        chat
    }

    fn event(name: &str, data: &str) -> String {
        format!(r#"{{"event":"{name}","data":{data}}}"#)
    }

    fn say(text: &str) -> String {
        event("message", &format!(r#"{{"text":"{text}"}}"#))
    }

    /// Deliveries as they read: to whom, and the JSON of the native dialect.
    fn told(deliveries: &[Delivery]) -> Vec<(Audience, String)> {
        let told = deliveries.iter().filter_map(|delivery| match delivery {
            Delivery::Move { .. } => None,
            Delivery::Close { .. } => panic!("not told: {delivery:?}"),
            Delivery::Tell { to, notice } => {
                let mut json = Vec::new();
                Dialect::Events.write(notice, &mut json);
                Some((*to, String::from_utf8(json).unwrap()))
            }
        });
        told.collect()
    }

    #[test]
    fn the_picture_is_true() {
        let mut chat = chat(&[]);
        chat.join(ALICE, newcomer(Dialect::Events, "alice", "general"), NOW);
        chat.join(CAROL, newcomer(Dialect::Events, "carol", "rust"), NOW);
        let general = chat.room_of(ALICE);
        let row = |deed: &str, deliveries: &[Delivery]| {
            let room = |id| if Some(id) == general { "general" } else { "rust" };
            let told = told(deliveries).into_iter().map(|(to, json)| {
                let event = json.split('"').nth(3).unwrap_or_default().to_owned();
                match to {
                    Audience::One(ALICE) => format!("alice: {event}"),
                    Audience::One(_) => format!("bob: {event}"),
                    Audience::Room(id) => format!("{}: {event}", room(id)),
                    Audience::Others(id, _) => format!("{} but bob: {event}", room(id)),
                }
            });
            format!("\n  {deed:20}{}", told.collect::<Vec<_>>().join("; "))
        };
        let mut picture = "  bob                 and who is told what, in this order".to_owned();
        picture += &row("comes to general", &chat.join(BOB, newcomer(Dialect::Events, "bob", "general"), NOW));
        picture += &row("says something", &chat.receive(BOB, &say("hi"), NOW));
        picture += &row("whispers to alice", &chat.receive(BOB, &say("/msg alice hi"), NOW));
        picture += &row("moves to rust", &chat.receive(BOB, &event("switch_room", r#"{"room":"rust"}"#), NOW));
        picture += &row("types", &chat.receive(BOB, r#"{"event":"typing"}"#, NOW));
        picture += &row("sends no JSON", &chat.receive(BOB, "hi", NOW));
        picture += &row("leaves", &chat.leave(BOB, "", NOW));
        crate::pictures::assert_drawn(include_str!("mod.rs"), &picture);
    }

    #[test]
    fn a_newcomer_is_welcomed_and_announced() {
        let mut chat = chat(&[]);
        let first = told(&chat.join(ALICE, newcomer(Dialect::Events, "alice", "general"), NOW));
        let room = chat.room_of(ALICE).unwrap();
        let welcome = r##"{"event":"welcome","data":{"message":"Welcome to #general, alice!","members":[],"##;
        assert_eq!(first[0].0, Audience::One(ALICE));
        assert!(first[0].1.starts_with(welcome), "{}", first[0].1);
        assert!(first[0].1.ends_with(r#""last_id":0,"resumed":false,"history":[]}}"#), "{}", first[0].1);
        let second = told(&chat.join(BOB, newcomer(Dialect::Events, "bob", "general"), NOW));
        assert!(second[0].1.contains(r#""members":["alice"]"#));
        assert_eq!(second[1], (Audience::Others(room, BOB), event("joined", r#"{"username":"bob"}"#)));
    }

    #[test]
    fn a_message_goes_to_everyone_and_is_numbered() {
        let mut chat = chat_of_two(&[]);
        let room = chat.room_of(ALICE).unwrap();
        let expected = event("message", r#"{"username":"alice","text":"hi","id":1,"time":"1970-01-01T00:00:00.000Z"}"#);
        assert_eq!(told(&chat.receive(ALICE, &say(" hi "), NOW)), [(Audience::Room(room), expected)]);
        assert!(told(&chat.receive(BOB, &say("/me waves"), NOW))[0].1.contains(r#""text":"/me waves","id":2"#));
    }

    #[test]
    fn a_text_has_its_limit_in_characters_after_trimming() {
        let mut chat = chat_of_two(&["--max-text", "5"]);
        assert!(told(&chat.receive(BOB, &say("  ééééé "), NOW))[0].1.contains(r#""text":"ééééé""#));
        let too_long = event("message", r#"{"text":"éééééé","nonce":"n"}"#);
        let error = event("error", r#"{"message":"Message too long","nonce":"n"}"#);
        assert_eq!(told(&chat.receive(BOB, &too_long, NOW)), [(Audience::One(BOB), error)]);
        assert_eq!(chat.receive(BOB, &say("   "), NOW), []);
        assert!(told(&chat.receive(BOB, &say("/msg alice 12345"), NOW))[0].1.contains(r#""text":"12345""#));
    }

    #[test]
    fn a_switch_is_told_in_order() {
        let mut chat = chat_of_two(&[]);
        let old = chat.room_of(BOB).unwrap();
        let switch = event("switch_room", r#"{"room":" other "}"#);
        let deliveries = chat.receive(BOB, &switch, NOW);
        let new = chat.room_of(BOB).unwrap();
        assert_eq!(deliveries[0], Delivery::Move { token: BOB, from: old, to: new });
        let deliveries = told(&deliveries);
        assert_eq!(deliveries[0], (Audience::Room(old), event("left", r#"{"username":"bob"}"#)));
        assert_eq!(deliveries[1].0, Audience::One(BOB));
        assert!(deliveries[1].1.starts_with(r#"{"event":"switched","data":{"room":"other","members":[],"epoch":"#));
        assert_eq!(deliveries[2], (Audience::Others(new, BOB), event("joined", r#"{"username":"bob"}"#)));
        assert_eq!(chat.receive(BOB, &switch, NOW), [], "the same room: nothing");
        assert_eq!(chat.members(old).collect::<Vec<_>>(), [(ALICE, Dialect::Events)]);
    }

    #[test]
    fn a_room_with_nobody_in_it_is_gone() {
        let mut chat = chat_of_two(&[]);
        let room = chat.room_of(BOB).unwrap();
        let left = (Audience::Room(room), event("left", r#"{"username":"alice"}"#));
        assert_eq!(told(&chat.leave(ALICE, "closed", NOW)), [left]);
        assert_eq!(chat.leave(ALICE, "again", NOW), []);
        chat.leave(BOB, "closed", NOW);
        assert!(chat.rooms.is_empty() && chat.clients.is_empty() && chat.names.bearers("bob").is_empty());
    }

    #[test]
    fn rooms_are_bounded_and_a_mover_makes_place() {
        let mut chat = chat_of_two(&["--max-rooms", "2"]);
        let switch = |room: &str| event("switch_room", &format!(r#"{{"room":"{room}"}}"#));
        assert!(chat.has_room_for("second"));
        chat.receive(BOB, &switch("second"), NOW);
        assert!(!chat.has_room_for("third") && chat.has_room_for("general"));
        chat.join(CAROL, newcomer(Dialect::Events, "carol", "general"), NOW);
        let error = event("error", r#"{"message":"There are too many rooms"}"#);
        assert_eq!(told(&chat.receive(ALICE, &switch("third"), NOW)), [(Audience::One(ALICE), error)]);
        assert_eq!(chat.receive(BOB, &switch("third"), NOW).len(), 4, "bob was alone in the second");
        assert_eq!(chat.rooms.len(), 2);
    }

    #[test]
    fn a_message_sent_twice_is_heard_once() {
        let mut chat = chat_of_two(&[]);
        let message = event("message", r#"{"text":"hi","nonce":"n1"}"#);
        let first = told(&chat.receive(ALICE, &message, NOW));
        let again = told(&chat.receive(ALICE, &message, NOW));
        assert_eq!((again[0].0, &again[0].1), (Audience::One(ALICE), &first[0].1));
        assert!(told(&chat.receive(BOB, &message, NOW))[0].1.contains(r#""id":2"#), "another name, another message");
    }

    #[test]
    fn a_private_message_is_for_two_names_only() {
        let mut chat = chat_of_two(&[]);
        chat.join(CAROL, newcomer(Dialect::Rooms, "bob", "elsewhere"), NOW);
        let private = event("private", r#"{"to":"bob","text":" psst ","nonce":"n"}"#);
        let heard = told(&chat.receive(ALICE, &private, NOW));
        let who: Vec<_> = heard.iter().map(|(to, _)| *to).collect();
        assert_eq!(who, [BOB, CAROL, ALICE].map(Audience::One));
        let expected = r#"{"from":"alice","to":"bob","text":"psst","time":"1970-01-01T00:00:00.000Z","nonce":"n"}"#;
        assert_eq!(heard[0].1, event("private", expected));
        let to_myself = chat.receive(ALICE, &say("/msg alice hello me"), NOW);
        assert_eq!(told(&to_myself).len(), 1, "the sender hears it once");
        let nobody = event("error", r#"{"message":"No such user: zoe"}"#);
        assert_eq!(told(&chat.receive(ALICE, &say("/msg zoe hi"), NOW)), [(Audience::One(ALICE), nobody)]);
    }

    #[test]
    fn typing_is_told_once_a_second_and_costs_nothing() {
        let mut chat = chat_of_two(&["--rate-limit", "0.5"]);
        let at = |milliseconds| Now { steady: Duration::from_millis(milliseconds), ..NOW };
        let told: Vec<_> =
            [0, 500, 999, 1000, 1500].map(|ms| chat.receive(ALICE, r#"{"event":"typing"}"#, at(ms)).len()).into();
        assert_eq!(told, [1, 0, 0, 1, 0]);
        assert!(matches!(chat.receive(ALICE, &say("hi"), at(1500))[0], Delivery::Tell { to: Audience::Room(_), .. }));
    }

    #[test]
    fn the_name_last_spoken_under_is_the_one_in_use() {
        let mut chat = chat_of_two(&["--unique-names"]);
        chat.join(CAROL, newcomer(Dialect::Rooms, "Anonymous", "general"), NOW);
        let speak = |name: &str| format!(r#"{{"username":"{name}","text":"hi"}}"#);
        let error = event("error", r#"{"message":"username already in use"}"#);
        assert_eq!(told(&chat.receive(CAROL, &speak("ALICE"), NOW)), [(Audience::One(CAROL), error)]);
        assert!(told(&chat.receive(CAROL, &speak("carol"), NOW))[0].1.contains(r#""username":"carol""#));
        assert_eq!(chat.names.bearers("carol"), [CAROL]);
        assert_eq!(chat.admit(&newcomer(Dialect::Events, "Carol", "general")), Admission::NameInUse);
        chat.receive(CAROL, r#"{"text":"hi"}"#, NOW);
        assert_eq!(chat.admit(&newcomer(Dialect::Events, "Carol", "general")), Admission::Free);
    }

    #[test]
    fn a_name_is_not_taken_by_what_is_not_said() {
        let mut chat = chat_of_two(&["--unique-names", "--max-text", "5"]);
        chat.join(CAROL, newcomer(Dialect::Rooms, "Anonymous", "general"), NOW);
        for text in ["too long", "/msg nobody hi", " "] {
            chat.receive(CAROL, &format!(r#"{{"username":"zoe","text":"{text}"}}"#), NOW);
        }
        assert_eq!(chat.admit(&newcomer(Dialect::Events, "zoe", "general")), Admission::Free);
    }

    #[test]
    fn typing_under_a_bad_name_is_an_error_once_a_second() {
        let mut chat = chat(&[]);
        chat.join(CAROL, newcomer(Dialect::Rooms, "Anonymous", "general"), NOW);
        let typing = r#"{"type":"typing","username":""}"#;
        let told: Vec<_> = (0..100).map(|_| chat.receive(CAROL, typing, NOW).len()).collect();
        assert_eq!((told[0], told.iter().sum::<usize>()), (1, 1));
    }

    #[test]
    fn a_move_does_not_drive_out_the_history_that_it_moves_to() {
        let mut chat = chat(&["--max-empty-rooms", "1"]);
        chat.join(ALICE, newcomer(Dialect::Events, "alice", "kept"), NOW);
        chat.receive(ALICE, &say("said here"), NOW);
        chat.leave(ALICE, "closed", NOW);
        chat.join(BOB, newcomer(Dialect::Events, "bob", "other"), NOW);
        chat.receive(BOB, &say("and there"), NOW);
        let moved = told(&chat.receive(BOB, &event("switch_room", r#"{"room":"kept"}"#), NOW));
        assert!(moved[1].1.contains("said here"), "{}", moved[1].1);
    }

    #[test]
    fn who_comes_back_replaces_itself() {
        let chat = chat_of_two(&["--unique-names"]);
        let again = newcomer(Dialect::Events, "alice", "general");
        assert_eq!(chat.admit(&again), Admission::NameInUse);
        let resume = Some(Resume { epoch: "any".into(), since: 0 });
        let back = Newcomer { resume: resume.clone(), ..again.clone() };
        assert_eq!(chat.admit(&back), Admission::Replaces(ALICE));
        let other_token = Newcomer { grant: Grant { token: Some(1), username: None }, resume, ..again };
        assert_eq!(chat.admit(&other_token), Admission::NameInUse);
    }

    #[test]
    fn a_client_id_is_one_connections() {
        let mut chat = chat(&["--unique-names"]);
        let with_id = Newcomer { client_id: Some("c1".into()), ..newcomer(Dialect::Presence, "pat", "general") };
        chat.join(ALICE, with_id.clone(), NOW);
        assert_eq!(chat.admit(&with_id), Admission::Replaces(ALICE), "judged before the name");
        let other_id = Newcomer { client_id: Some("c2".into()), ..with_id.clone() };
        assert_eq!(chat.admit(&other_id), Admission::NameInUse);
        chat.leave(ALICE, "replaced", NOW);
        assert_eq!(chat.admit(&with_id), Admission::Free);
    }

    #[test]
    fn too_many_messages_and_then_a_flood() {
        let mut chat = chat_of_two(&[]);
        let message = event("message", r#"{"text":"hi","nonce":"n"}"#);
        let mut last = Vec::new();
        for count in 1..=61 {
            last = chat.receive(ALICE, if count % 2 == 0 { "no JSON" } else { &message }, NOW);
            let slowed = matches!(&last[..], [Delivery::Tell { notice: Notice::Error(fault), .. }]
                if fault.complaint == Complaint::SlowDown && fault.nonce.is_some() == (count % 2 == 1));
            assert_eq!(slowed, (11..=60).contains(&count), "message {count}");
        }
        assert_eq!(last, [Delivery::Close { token: ALICE, reason: FLOODING }]);
    }

    #[test]
    fn names_in_the_log_cannot_forge_a_line() {
        assert_eq!(logged("alice"), "alice");
        assert_eq!(logged("a b\n\u{1b}[2J"), r#""a b\n\u{1b}[2J""#);
    }
}
