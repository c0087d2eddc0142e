//! The chat: who is where, and who hears what.
//!
//! [`Chat`] keeps the tables and turns a [`Command`] into [`Delivery`]s. It knows clients, rooms, text and names; it
//! knows no frames, sockets or clocks: a client is a `mio::Token`, and the time is handed in.
//!
//! Reading order: [`command`] (the words), this file (the tables), [`dialect`] (the words as JSON), [`access`] (who may
//! come in).
//!
//! The subtle thing: who is *in* a room when something is said there is decided here, at once; when it is sent is the
//! server's affair. So every method returns what is to be told in the order in which it must be told.

pub mod access;
pub mod command;
pub mod dialect;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::time::SystemTime;

use mio::Token;

use command::{Command, Complaint, Notice};
use dialect::Dialect;

/// Where a client is that names no room.
pub const DEFAULT_ROOM: &str = "general";
/// Who a client is that gives no name.
pub const DEFAULT_USERNAME: &str = "anonymous";

/// A room's number. Rooms come and go with their members; a number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomId(u64);

/// To whom a notice goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// One client.
    One(Token),
    /// Everyone in a room.
    Room(RoomId),
    /// Everyone in a room but one.
    Others(RoomId, Token),
}

/// One notice and those who get it.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// To whom.
    pub to: Audience,
    /// What.
    pub notice: Notice<'a>,
}

/// Someone at the door, let in by [`access`].
#[derive(Debug)]
pub struct Newcomer {
    /// The shape it speaks.
    pub dialect: Dialect,
    /// Its name.
    pub username: Rc<str>,
    /// The room that it wants to be in.
    pub room: String,
}

/// The tables.
#[derive(Debug)]
pub struct Chat {
    clients: TokenMap<Client>,
    rooms: RoomMap<Room>,
    room_ids: HashMap<Rc<str>, RoomId>,
    rooms_so_far: u64,
    max_text: usize,
}

#[derive(Debug)]
struct Client {
    dialect: Dialect,
    username: Rc<str>,
    room: RoomId,
}

#[derive(Debug)]
struct Room {
    name: Rc<str>,
    members: TokenMap<Dialect>,
    last_id: u64,
}

impl Chat {
    /// An empty chat. `max_text` is the limit of a text in characters.
    pub fn new(max_text: usize) -> Chat {
        Chat {
            clients: TokenMap::default(),
            rooms: RoomMap::default(),
            room_ids: HashMap::new(),
            rooms_so_far: 0,
            max_text,
        }
    }

    /// Lets a client in.
    pub fn join(&mut self, token: Token, newcomer: Newcomer) -> Vec<Delivery<'static>> {
        let Newcomer { dialect, username, room } = newcomer;
        let (id, room, members) = self.enter(token, dialect, &room);
        log::info!("JOIN room={} user={}", logged(&room), logged(&username));
        self.clients.insert(token, Client { dialect, username: Rc::clone(&username), room: id });
        let welcome = Notice::Welcome { username: Rc::clone(&username), room, members };
        vec![
            Delivery { to: Audience::One(token), notice: welcome },
            Delivery { to: Audience::Others(id, token), notice: Notice::Joined { username } },
        ]
    }

    /// Lets a client go, whatever the reason, which is for the log. Somebody who is not here goes without a word.
    pub fn leave(&mut self, token: Token, reason: &str) -> Vec<Delivery<'static>> {
        let Some(client) = self.clients.remove(&token) else { return Vec::new() };
        let room = self.exit(token, client.room);
        log::info!("LEAVE room={} user={} reason={reason:?}", logged(&room), logged(&client.username));
        vec![Delivery { to: Audience::Room(client.room), notice: Notice::Left { username: client.username } }]
    }

    /// Reads a client's text in its dialect, and does what it asks.
    pub fn receive<'a>(&mut self, token: Token, text: &'a str, now: SystemTime) -> Vec<Delivery<'a>> {
        let Some(client) = self.clients.get(&token) else { return Vec::new() };
        match client.dialect.read(text) {
            Ok(command) => self.handle(token, command, now),
            Err(complaint) => vec![complain(token, complaint)],
        }
    }

    /// Does what a client asks at the time `now`.
    pub fn handle<'a>(&mut self, token: Token, command: Command<'a>, now: SystemTime) -> Vec<Delivery<'a>> {
        let done = match command {
            Command::Message { text } => self.say(token, text, now),
            Command::SwitchRoom { room } => self.switch_room(token, &room),
            Command::Ping => Ok(vec![Delivery { to: Audience::One(token), notice: Notice::Pong }]),
        };
        done.unwrap_or_else(|complaint| vec![complain(token, complaint)])
    }

    /// The room that a client is in.
    pub fn room_of(&self, token: Token) -> Option<RoomId> {
        self.clients.get(&token).map(|client| client.room)
    }

    /// The shape that a client speaks.
    pub fn dialect_of(&self, token: Token) -> Option<Dialect> {
        self.clients.get(&token).map(|client| client.dialect)
    }

    /// Those who are in a room, in no order.
    pub fn members(&self, room: RoomId) -> impl Iterator<Item = Token> {
        self.rooms.get(&room).into_iter().flat_map(|room| room.members.keys().copied())
    }

    fn say<'a>(&mut self, token: Token, text: Cow<'a, str>, now: SystemTime) -> Result<Vec<Delivery<'a>>, Complaint> {
        let text = trim(text);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        // A text has at least as many bytes as characters, so most need no counting.
        if text.len() > self.max_text && text.chars().count() > self.max_text {
            return Err(Complaint::MessageTooLong);
        }
        let Some(client) = self.clients.get(&token) else { return Ok(Vec::new()) };
        let Some(room) = self.rooms.get_mut(&client.room) else { return Ok(Vec::new()) };
        room.last_id += 1;
        log::debug!("MSG room={} user={} {}", logged(&room.name), logged(&client.username), excerpt(&text));
        let username = Rc::clone(&client.username);
        let notice = Notice::Message { username, text, id: room.last_id, time: now };
        Ok(vec![Delivery { to: Audience::Room(client.room), notice }])
    }

    fn switch_room(&mut self, token: Token, name: &str) -> Result<Vec<Delivery<'static>>, Complaint> {
        let name = access::room_name(name).map_err(Complaint::BadName)?;
        let Some(client) = self.clients.get(&token) else { return Ok(Vec::new()) };
        let (old_id, dialect, username) = (client.room, client.dialect, Rc::clone(&client.username));
        if self.room_ids.get(name) == Some(&old_id) {
            return Ok(Vec::new());
        }
        let old = self.exit(token, old_id);
        let (new_id, room, members) = self.enter(token, dialect, name);
        if let Some(client) = self.clients.get_mut(&token) {
            client.room = new_id;
        }
        log::info!("SWITCH from={} to={} user={}", logged(&old), logged(&room), logged(&username));
        let left = Notice::Left { username: Rc::clone(&username) };
        Ok(vec![
            Delivery { to: Audience::Room(old_id), notice: left },
            Delivery { to: Audience::One(token), notice: Notice::Switched { room, members } },
            Delivery { to: Audience::Others(new_id, token), notice: Notice::Joined { username } },
        ])
    }

    /// Puts a client into a room, which is made if there is none of that name. Returns the names of those who were
    /// there before.
    fn enter(&mut self, token: Token, dialect: Dialect, name: &str) -> (RoomId, Rc<str>, Vec<Rc<str>>) {
        let id = match self.room_ids.get(name) {
            Some(id) => *id,
            None => self.open_room(name),
        };
        // invariant: both tables hold the same rooms
        let room = self.rooms.get_mut(&id).expect("the room is open");
        let mut tokens: Vec<_> = room.members.keys().copied().collect();
        tokens.sort_unstable(); // tokens count up: those who came first, first
        let present = tokens.iter().filter_map(|token| self.clients.get(token));
        let members = present.map(|client| Rc::clone(&client.username)).collect();
        let was_there = room.members.insert(token, dialect);
        debug_assert_eq!(was_there, None, "a client is in one room");
        (id, Rc::clone(&room.name), members)
    }

    fn open_room(&mut self, name: &str) -> RoomId {
        self.rooms_so_far += 1;
        let (id, name) = (RoomId(self.rooms_so_far), Rc::from(name));
        self.room_ids.insert(Rc::clone(&name), id);
        self.rooms.insert(id, Room { name, members: TokenMap::default(), last_id: 0 });
        id
    }

    /// Takes a client out of a room; a room that is empty then is gone. Returns its name.
    fn exit(&mut self, token: Token, id: RoomId) -> Rc<str> {
        // invariant: the room of a client is in the table
        let room = self.rooms.get_mut(&id).expect("the room is open");
        let was_there = room.members.remove(&token);
        debug_assert!(was_there.is_some(), "a client is a member of its room");
        let name = Rc::clone(&room.name);
        if room.members.is_empty() {
            self.rooms.remove(&id);
            self.room_ids.remove(&name);
        }
        debug_assert_eq!(self.rooms.len(), self.room_ids.len());
        name
    }
}

fn complain(token: Token, complaint: Complaint) -> Delivery<'static> {
    Delivery { to: Audience::One(token), notice: Notice::Error(complaint) }
}

fn trim(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) if text.trim().len() == text.len() => Cow::Owned(text),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// A name as a log line shows it: bare where that cannot be misread, else quoted and escaped.
pub fn logged(name: &str) -> String {
    let is_plain = name.chars().all(|character| character.is_alphanumeric() || "-_.".contains(character));
    if is_plain { name.to_owned() } else { format!("{name:?}") }
}

/// The beginning of a text as a log line shows it.
fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// A map keyed by tokens.
pub type TokenMap<T> = HashMap<Token, T, BuildHasherDefault<CounterHasher>>;
/// A map keyed by rooms.
pub type RoomMap<T> = HashMap<RoomId, T, BuildHasherDefault<CounterHasher>>;

/// Tokens and room numbers are counted up by the server and no peer can choose one, so they need no hash that resists
/// an attack: one multiplication spreads them over the table.
#[derive(Debug, Default)]
pub struct CounterHasher(u64);

impl Hasher for CounterHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio (Knuth, volume 3, §6.4), folded so that the low bits mix as well.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn newcomer(username: &str, room: &str) -> Newcomer {
        Newcomer { dialect: Dialect::Events, username: username.into(), room: room.into() }
    }

    fn chat_of_two() -> Chat {
        let mut chat = Chat::new(5);
        chat.join(ALICE, newcomer("alice", "general"));
        chat.join(BOB, newcomer("bob", "general"));
        chat
    }

    fn say(text: &str) -> String {
        format!(r#"{{"event":"message","data":{{"text":"{text}"}}}}"#)
    }

    /// Deliveries as they read: to whom, and the JSON.
    fn told(deliveries: &[Delivery]) -> Vec<(Audience, String)> {
        let told = deliveries.iter().map(|delivery| {
            let mut json = Vec::new();
            Dialect::Events.write(&delivery.notice, &mut json);
            (delivery.to, String::from_utf8(json).unwrap())
        });
        told.collect()
    }

    #[test]
    fn a_newcomer_is_welcomed_and_announced() {
        let mut chat = Chat::new(500);
        let first = told(&chat.join(ALICE, newcomer("alice", "general")));
        let room = chat.room_of(ALICE).unwrap();
        let welcome = concat!(
            r##"{"event":"welcome","data":{"message":"Welcome to #general, alice!","members":[],"##,
            r#""room":"general","username":"alice"}}"#
        );
        assert_eq!(first[0], (Audience::One(ALICE), welcome.into()));
        let second = told(&chat.join(BOB, newcomer("bob", "general")));
        assert!(second[0].1.contains(r#""members":["alice"]"#));
        let joined = r#"{"event":"joined","data":{"username":"bob"}}"#;
        assert_eq!(second[1], (Audience::Others(room, BOB), joined.into()));
    }

    #[test]
    fn a_message_goes_to_everyone_and_is_numbered() {
        let mut chat = chat_of_two();
        let room = chat.room_of(ALICE).unwrap();
        let text = say(" hi ");
        let expected = concat!(
            r#"{"event":"message","data":{"username":"alice","text":"hi","id":1,"#,
            r#""time":"1970-01-01T00:00:00.000Z"}}"#
        );
        assert_eq!(told(&chat.receive(ALICE, &text, NOW)), [(Audience::Room(room), expected.into())]);
        assert!(told(&chat.receive(BOB, &text, NOW))[0].1.contains(r#""id":2"#));
    }

    #[test]
    fn a_text_has_its_limit_in_characters_after_trimming() {
        let mut chat = chat_of_two();
        assert!(told(&chat.receive(BOB, &say("  ééééé "), NOW))[0].1.contains(r#""text":"ééééé""#));
        assert!(told(&chat.receive(BOB, &say("éééééé"), NOW))[0].1.contains("Message too long"));
        assert_eq!(chat.receive(BOB, &say("   "), NOW), []);
    }

    #[test]
    fn a_switch_is_told_in_order() {
        let mut chat = chat_of_two();
        let old = chat.room_of(BOB).unwrap();
        let switch = r#"{"event":"switch_room","data":{"room":" other "}}"#;
        let deliveries = told(&chat.receive(BOB, switch, NOW));
        let new = chat.room_of(BOB).unwrap();
        let expected = [
            (Audience::Room(old), r#"{"event":"left","data":{"username":"bob"}}"#.into()),
            (Audience::One(BOB), r#"{"event":"switched","data":{"room":"other","members":[]}}"#.into()),
            (Audience::Others(new, BOB), r#"{"event":"joined","data":{"username":"bob"}}"#.into()),
        ];
        assert_eq!(deliveries, expected);
        assert_eq!(chat.receive(BOB, switch, NOW), [], "the same room: nothing");
        assert_eq!(chat.members(old).collect::<Vec<_>>(), [ALICE]);
    }

    #[test]
    fn a_room_with_nobody_in_it_is_gone() {
        let mut chat = chat_of_two();
        let room = chat.room_of(BOB).unwrap();
        let left = r#"{"event":"left","data":{"username":"alice"}}"#;
        assert_eq!(told(&chat.leave(ALICE, "closed")), [(Audience::Room(room), left.into())]);
        assert_eq!(chat.leave(ALICE, "again"), []);
        chat.leave(BOB, "closed");
        assert!(chat.rooms.is_empty() && chat.room_ids.is_empty() && chat.clients.is_empty());
    }

    #[test]
    fn names_in_the_log_cannot_forge_a_line() {
        assert_eq!(logged("alice"), "alice");
        assert_eq!(logged("a b\n\u{1b}[2J"), r#""a b\n\u{1b}[2J""#);
    }
}
