//! The chat's three message formats, called dialects (PROTOCOL.md). A dialect parses [`Command`]s and writes
//! [`Event`]s. The URL path selects the dialect.

use std::{borrow::Cow, collections::BTreeMap, collections::btree_map::Entry, fmt, rc::Rc};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::DEFAULT_ROOM;
use super::command::{Command, ParsedCommand};
use super::event::{ActiveUsers, ErrorText, Event};
use crate::broker::Message;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    Events,   // used at the path `/`: every message is a JSON object with the field `event` and usually `data`
    Rooms,    // used at the path `/ws/{room}`: each message from a client may carry a different username
    Presence, // used at the path `/ws`: clients send plain text and receive lists of active users
}

impl Dialect {
    pub const ALL: [Dialect; 3] = [Dialect::Events, Dialect::Rooms, Dialect::Presence];

    pub fn subprotocol(self) -> &'static str {
        ["chat.events", "chat.rooms", "chat.presence"][self as usize]
    }

    /// The username for clients that do not choose one, or `None` if the dialect requires a username.
    pub fn default_username(self) -> Option<&'static str> {
        [Some("anonymous"), Some("Anonymous"), None][self as usize]
    }

    pub fn parse(self, text: &str) -> ParsedCommand<'_> {
        match self {
            Dialect::Events => parse_events_dialect(text),
            Dialect::Rooms => (parse_rooms_dialect(text), None),
            Dialect::Presence => (Ok(Command::Message { username: None, to: None, text: text.into() }), None),
        }
    }

    /// Appends the event as JSON. Appends nothing if the dialect does not have the event.
    pub fn write(self, event: &Event, out: &mut Vec<u8>) {
        use Dialect::{Events, Presence, Rooms};
        let json = match (self, event) {
            (Events, Event::Message(message)) => return write_message(message, out),
            (Events, _) => return write_json(event, out),
            (Rooms, Event::Joined { .. }) => WireEvent::System { message: "A user joined the chat" },
            (Rooms, Event::Left { .. }) => WireEvent::System { message: "A user left the chat" },
            (Rooms, Event::Message(sent)) => WireEvent::Message { username: &sent.username, text: &sent.text },
            (Rooms, Event::Typing { username }) => WireEvent::Typing { username },
            (Rooms, Event::Private(sent)) => WireEvent::Private { from: &sent.from, to: &sent.to, text: &sent.text },
            (Rooms, Event::Error { message, .. }) => WireEvent::Error { message },
            (Presence, Event::Joined { username, active }) => WireEvent::UserJoined(UserEvent { username, active }),
            (Presence, Event::Left { username, active }) => WireEvent::UserLeft(UserEvent { username, active }),
            (Presence, Event::Message(sent)) => {
                WireEvent::ChatMessage { username: &sent.username, text: &sent.text, timestamp: &sent.time }
            }
            (Presence, Event::Private(sent)) => {
                WireEvent::PrivateMessage { from: &sent.from, to: &sent.to, text: &sent.text, timestamp: &sent.time }
            }
            // In the `presence` dialect, an error is the only event without the `type` field.
            (Presence, Event::Error { message, .. }) => return write_json(&json!({ "error": message }), out),
            (_, Event::Welcome { .. } | Event::Switched { .. } | Event::History(_) | Event::Typing { .. }) => return,
            (_, Event::TokenExpiring { .. } | Event::TokenAccepted { .. } | Event::Pong {}) => return,
        };
        write_json(&json, out);
    }
}

/// The variants up to `Error` are the events of the `rooms` dialect. The others are those of the `presence` dialect.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireEvent<'a> {
    System { message: &'a str },
    Message { username: &'a str, text: &'a str },
    Typing { username: &'a str },
    Private { from: &'a str, to: &'a str, text: &'a str },
    Error { message: &'a str },
    UserJoined(UserEvent<'a>),
    UserLeft(UserEvent<'a>),
    ChatMessage { username: &'a str, text: &'a str, timestamp: &'a str },
    PrivateMessage { from: &'a str, to: &'a str, text: &'a str, timestamp: &'a str },
}

#[derive(Serialize)]
struct UserEvent<'a> {
    username: &'a str,
    #[serde(flatten)]
    active: &'a ActiveUsers,
}

/// Writes a message in the `events` dialect. Uses serde only for texts that need escapes, because serde is slower: it
/// takes 564 ns instead of 97 ns for a message of 2,000 bytes.
fn write_message(Message { id, username, text, time, nonce }: &Message, out: &mut Vec<u8>) {
    let mut field = |name: &str, text: &str| {
        out.extend_from_slice(name.as_bytes());
        // Most texts need no JSON escapes (RFC 8259 §7). The check has no early exit, so the compiler can vectorize it.
        if text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\')) {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
        } else {
            write_json(&text, out);
        }
    };
    field(r#"{"event":"message","data":{"username":"#, username);
    field(r#","text":"#, text);
    field(&format!(r#","id":{id},"time":"#), time);
    nonce.iter().for_each(|nonce| field(r#","nonce":"#, nonce));
    out.extend_from_slice(b"}}");
}

fn parse_events_dialect(text: &str) -> ParsedCommand<'_> {
    if let Some(text) = parse_compact_message(text) {
        return (Ok(Command::Message { username: None, to: None, text }), None);
    }
    let mut nonce = None;
    let command = parse_command(text, &mut nonce);
    // Keep the nonce only for messages, token renewals and invalid commands, because the server echoes the nonce only
    // in its replies to these. Other commands ignore the field, like any unknown field.
    let nonce = nonce.filter(|_| matches!(command, Ok(Command::Message { .. } | Command::Token(_)) | Err(_)));
    (command, nonce)
}

/// Fast path for a message without a nonce, in the compact form of `JSON.stringify`: takes 29 ns instead of 215 ns.
fn parse_compact_message(text: &str) -> Option<Cow<'_, str>> {
    let text = text.strip_prefix(r#"{"event":"message","data":{"text":"#)?.strip_suffix("}}")?;
    serde_json::from_str(text).ok().map(|Text(text)| text)
}

fn parse_command<'a>(text: &'a str, nonce: &mut Option<Rc<str>>) -> Result<Command<'a>, ErrorText> {
    // Validate the message in the order that PROTOCOL.md requires: JSON, object, `event`, `data`.
    let message = Object::parse("", text)?.check_keys()?;
    let event = message.string("event")?.unwrap_or_default();
    let data = Object::parse("data", message.fields.get("data").map_or("{}", |data| data.get()));
    let given = data.as_ref().map_or(Ok(None), parse_nonce);
    *nonce = given.as_ref().ok().and_then(Option::clone);
    let data = data.and_then(Object::check_keys);
    match &*event {
        "message" | "private" => {
            let data = data?;
            let to = if event == "private" { Some(data.string("to")?.unwrap_or_default()) } else { None };
            let text = data.string("text")?.unwrap_or_default();
            given.map(|_| Command::Message { username: None, to, text })
        }
        "switch_room" => Ok(Command::SwitchRoom { room: data?.string("room")?.unwrap_or(DEFAULT_ROOM.into()) }),
        "history" => parse_history(&data?),
        "typing" => data.map(|_| Command::Typing { username: None }),
        "ping" => data.map(|_| Command::Ping),
        "token" => Ok(Command::Token(data.and_then(|data| data.string("token")).map(Option::unwrap_or_default))),
        _ => Err(format!("Unknown event: {}", excerpt(&event)).into()),
    }
}

fn parse_nonce(data: &Object<'_>) -> Result<Option<Rc<str>>, ErrorText> {
    let Some(nonce) = data.string("nonce")? else { return Ok(None) };
    let is_valid = (1..=64).contains(&nonce.chars().take(65).count());
    if is_valid { Ok(Some((*nonce).into())) } else { Err(data.error_at("nonce", "a nonce has 1 to 64 characters")) }
}

fn parse_history<'a>(data: &Object<'a>) -> Result<Command<'a>, ErrorText> {
    let before = data.integer("before")?.ok_or_else(|| data.error_at("before", "the id of a message is required"))?;
    let limit = data.integer("limit")?.unwrap_or(50);
    let command = Command::History { before, limit: limit as usize };
    if (1..=100).contains(&limit) { Ok(command) } else { Err(data.error_at("limit", "a limit is from 1 to 100")) }
}

fn parse_rooms_dialect(text: &str) -> Result<Command<'_>, ErrorText> {
    let message = Object::parse("", text)?.check_keys()?;
    let kind = message.string("type")?.unwrap_or_default();
    let username = message.string("username")?;
    let text = message.string("text")?.unwrap_or_default();
    match kind.as_ref() {
        "" | "message" => Ok(Command::Message { username, to: None, text }),
        "typing" => Ok(Command::Typing { username }),
        // Never publish a message of unknown type to the room. A client written for a different server may use this
        // type for private messages.
        unknown => Err(format!("Unknown event: {}", excerpt(unknown)).into()),
    }
}

/// A JSON object with unparsed values. Each value is parsed separately, so that an error can name the field.
struct Object<'a> {
    path: &'static str, // the object's name in error messages: "data", or "" for the whole message
    fields: BTreeMap<Cow<'a, str>, &'a RawValue>,
    repeated_key: Option<Cow<'a, str>>, // the first repeated key, for the error text
}

impl<'a> Object<'a> {
    fn parse(path: &'static str, json: &'a str) -> Result<Object<'a>, ErrorText> {
        let object = Object { path, fields: BTreeMap::new(), repeated_key: None };
        let mut input = serde_json::Deserializer::from_str(json);
        match input.deserialize_map(object).and_then(|object| input.end().map(|()| object)) {
            Ok(object) => Ok(object),
            // serde reports a wrong type before it has read the whole text, so first check that the text is JSON.
            Err(error) if error.is_data() && serde_json::from_str::<IgnoredAny>(json).is_ok() => {
                Err(format!("{} must be a JSON object", if path.is_empty() { "A message" } else { path }).into())
            }
            Err(_) => Err("Invalid JSON".into()),
        }
    }

    /// Rejects repeated keys: the server and a filter in front of the server could read different values (RFC 8259 §4).
    fn check_keys(self) -> Result<Object<'a>, ErrorText> {
        let Some(key) = &self.repeated_key else { return Ok(self) };
        Err(self.error_at("", &format!("duplicate field `{}`", excerpt(key))))
    }

    fn string(&self, name: &str) -> Result<Option<Cow<'a, str>>, ErrorText> {
        let Some(value) = self.fields.get(name) else { return Ok(None) };
        let text = serde_json::from_str(value.get()).map(|Text(text)| Some(text));
        text.map_err(|error| match error.to_string().split_once(" at line ") {
            // Omit serde's line and column, because serde counts from the start of the value, not of the message.
            Some((what, _)) if error.is_data() => self.error_at(name, what),
            // serde detects some invalid JSON, such as a lone surrogate, only when it decodes the string.
            _ => "Invalid JSON".into(),
        })
    }

    /// Returns the field's integer, or `None` if the field is missing. An integer beyond `u64` becomes `u64::MAX`.
    fn integer(&self, name: &str) -> Result<Option<u64>, ErrorText> {
        let Some(value) = self.fields.get(name).map(|value| value.get()) else { return Ok(None) };
        let is_integer = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_integer.then(|| Some(value.parse().unwrap_or(u64::MAX)));
        number.ok_or_else(|| self.error_at(name, "expected an integer, 0 or more"))
    }

    fn error_at(&self, name: &str, what: &str) -> ErrorText {
        let place = format!("{}.{name}", self.path);
        let place = place.trim_matches('.');
        if place.is_empty() { what.to_owned().into() } else { format!("{place}: {what}").into() }
    }
}

impl<'de> Visitor<'de> for Object<'de> {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Object<'de>, A::Error> {
        while let Some((Text(key), value)) = map.next_entry()? {
            match self.fields.entry(key) {
                Entry::Vacant(field) => _ = field.insert(value),
                Entry::Occupied(field) => _ = self.repeated_key.get_or_insert_with(|| field.key().clone()),
            }
        }
        Ok(self)
    }
}

// A newtype, because only a field can have the attribute `borrow`. Without it, serde would copy the text.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

pub fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "strings and numbers serialize, and a write to a Vec succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Backlog;
    use crate::chat::event::ClientLimits;

    #[test]
    fn the_index_of_a_dialect_is_its_number() {
        for (index, dialect) in Dialect::ALL.into_iter().enumerate() {
            assert_eq!(dialect as usize, index);
        }
    }

    #[test]
    fn many_keys_are_parsed_in_linear_time() {
        let keys: Vec<String> = (0..50_000).map(|number| format!(r#""{number}":0"#)).collect();
        let message = format!("{{{},\"7\":0}}", keys.join(","));
        let start = std::time::Instant::now();
        let object = Object::parse("", &message).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(object.check_keys().err().as_deref(), Some("duplicate field `7`"));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    fn error(text: &str) -> String {
        Dialect::Events.parse(text).0.expect_err(text).into_owned()
    }

    #[test]
    fn commands_of_clients() {
        let command = |to: Option<&'static str>, text, nonce| {
            (Command::Message { username: None, to: to.map(Cow::Borrowed), text: Cow::Borrowed(text) }, nonce)
        };
        let message = |text| command(None, text, None);
        let named = |text, nonce| command(None, text, Some(nonce));
        let private = |to, text| command(Some(to), text, None);
        let history = |before, limit| (Command::History { before, limit }, None);
        let switch = |room| (Command::SwitchRoom { room: Cow::Borrowed(room) }, None);
        let cases = [
            (r#"{"event":"message","data":{"text":"hi"}}"#, message("hi")),
            (r#" {"data" : {"text":"hi", "more":[1]}, "event":"message", "x":null} "#, message("hi")),
            (r#"{"event":"message","data":{"text":"\u00e9\n\u0000"}}"#, message("é\n\0")),
            (r#"{"event":"message","data":{"text":"}}","more":[1]}}"#, message("}}")),
            (r#"{"event":"message","data":{"text":"hi"},"x":{}}"#, message("hi")),
            (r#"{"data":{"nonce":"n1","text":"hi"},"event":"message"}"#, named("hi", "n1".into())),
            (r#"{"event":"message"}"#, message("")),
            (r#"{"event":"message","data":{}}"#, message("")),
            (r#"{"event":"switch_room","data":{"room":"x"}}"#, switch("x")),
            (r#"{"event":"switch_room"}"#, switch("general")),
            (r#"{"event":"message","data":{"text":"hi","nonce":"n1"}}"#, named("hi", "n1".into())),
            (r#"{"event":"private","data":{"to":"bob","text":"hi"}}"#, private("bob", "hi")),
            (r#"{"event":"private"}"#, private("", "")),
            (r#"{"event":"typing"}"#, (Command::Typing { username: None }, None)),
            (r#"{"event":"history","data":{"before":7}}"#, history(7, 50)),
            (r#"{"event":"history","data":{"limit":100,"before":0,"nonce":"n1"}}"#, history(0, 100)),
            (r#"{"event":"history","data":{"before":99999999999999999999,"limit":1}}"#, history(u64::MAX, 1)),
            (r#"{"event":"ping"}"#, (Command::Ping, None)),
            (r#"{"event":"switch_room","data":{"room":"x","nonce":"n1"}}"#, switch("x")),
            (r#"{"\u0065vent":"ping","data":{"any":1}}"#, (Command::Ping, None)),
        ];
        for (text, (command, nonce)) in cases {
            assert_eq!(Dialect::Events.parse(text), (Ok(command), nonce), "{text}");
        }
    }

    /// Parses randomly mutated messages twice, and checks that both results are equal. The first attempt may take the
    /// fast path. The second must use the general parser, because the test adds a leading space.
    #[test]
    fn both_ways_to_parse_a_message_have_the_same_result() {
        const MESSAGE: &str = r#"{"event":"message","data":{"text":"a\n"}}"#;
        let changes = ["", "\"", "\\", "{", "}", "[", "]", ",", ":", " ", "0", "null", "\"text\":", "\u{0}", "é"];
        let random = &mut fastrand::Rng::with_seed(1);
        let mut compact = 0;
        for _ in 0..20_000 {
            let mut text = MESSAGE.to_owned();
            for _ in 0..random.usize(1..3) {
                let start = text.floor_char_boundary(random.usize(0..text.len()));
                let end = text.ceil_char_boundary(start + random.usize(0..3)).min(text.len());
                text.replace_range(start..end, changes[random.usize(0..changes.len())]);
            }
            compact += usize::from(parse_compact_message(&text).is_some());
            assert_eq!(parse_events_dialect(&text), parse_events_dialect(&format!(" {text}")), "{text}");
        }
        assert!(compact > 100, "{compact} messages took the fast path");
    }

    #[test]
    fn both_ways_to_write_a_message_have_the_same_result() {
        for text in ["", "hi", "é\n", "\"", "\\", "\u{1f}", "\u{7f}", "a\u{2028}b"] {
            for nonce in [None, Some(Rc::from(text))] {
                let (username, time) = (text.into(), "1970-01-01T00:00:00.000Z".into());
                let event = Event::Message(Message { id: u64::MAX, username, text: text.into(), time, nonce }.into());
                assert_eq!(render(&event), serde_json::to_string(&event).unwrap());
            }
        }
    }

    #[test]
    fn texts_that_are_not_json() {
        let texts = [
            "",
            "hello",
            "{",
            r#"{"event":"ping"} x"#,
            r#"{"event":"ping",}"#,
            "\u{feff}{}",
            "NaN",
            "{'event':'ping'}",
            r#"{"event":"a","event":"b""#,
            r#"{"event":"message","data":{"text":"\ud800"}}"#,
            "{\"event\":\"a\u{1}b\"}",
            r#"{"event":1e999}"#,
        ];
        for text in texts {
            assert_eq!(error(text), "Invalid JSON", "{text}");
        }
        assert_eq!(error(&"[".repeat(1000)), "Invalid JSON");
    }

    #[test]
    fn errors_name_what_has_the_wrong_shape() {
        let cases = [
            ("[]", "A message must be a JSON object"),
            ("1", "A message must be a JSON object"),
            ("null", "A message must be a JSON object"),
            (r#"["ping"]"#, "A message must be a JSON object"),
            (r#"{"event":1}"#, "event: invalid type: integer `1`, expected a string"),
            (r#"{"event":null}"#, "event: invalid type: null, expected a string"),
            (r#"{"event":"ping","event":"message"}"#, "duplicate field `event`"),
            (r#"{"event":"ping","x":1,"y":2,"x":3}"#, "duplicate field `x`"),
            (r#"{"event":"ping","data":{"x":1,"x":2}}"#, "data: duplicate field `x`"),
            (r#"{"event":"ping","data":null}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":"x"}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":["x"]}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":{"text":5}}"#, "data.text: invalid type: integer `5`, expected a string"),
            (r#"{"event":"message","data":{"text":null}}"#, "data.text: invalid type: null, expected a string"),
            (r#"{"event":"message","data":{"text":"a","text":"b"}}"#, "data: duplicate field `text`"),
            (r#"{"event":"message","data":{"text":"a"},"data":{"text":"b"}}"#, "duplicate field `data`"),
            (r#"{"event":"message","data":{"text":"a"},"event":{}}"#, "duplicate field `event`"),
            (r#"{"event":"message","data":{"nonce":""}}"#, "data.nonce: a nonce has 1 to 64 characters"),
            (r#"{"event":"message","data":{"nonce":null}}"#, "data.nonce: invalid type: null, expected a string"),
            (r#"{"event":"history"}"#, "data.before: the id of a message is required"),
            (r#"{"event":"history","data":{"before":-1}}"#, "data.before: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":1.5}}"#, "data.before: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":1e3}}"#, "data.before: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":"1"}}"#, "data.before: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":null}}"#, "data.before: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":1,"limit":null}}"#, "data.limit: expected an integer, 0 or more"),
            (r#"{"event":"history","data":{"before":1,"limit":0}}"#, "data.limit: a limit is from 1 to 100"),
            (r#"{"event":"history","data":{"before":1,"limit":101}}"#, "data.limit: a limit is from 1 to 100"),
            (r#"{"event":"history","data":{"before":1,"before":2}}"#, "data: duplicate field `before`"),
            (r#"{"event":"switch_room","data":{"room":[]}}"#, "data.room: invalid type: sequence, expected a string"),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected, "{text}");
        }
    }

    #[test]
    fn an_unknown_event_is_reported_before_its_data() {
        assert_eq!(error("{}"), "Unknown event: ");
        assert_eq!(error(r#"{"event":"foo","data":null}"#), "Unknown event: foo");
        let long = format!(r#"{{"event":"{}"}}"#, "é".repeat(100));
        assert_eq!(error(&long), format!("Unknown event: {}", "é".repeat(64)));
    }

    fn render(event: &Event) -> String {
        let mut out = Vec::new();
        Dialect::Events.write(event, &mut out);
        let text = String::from_utf8(out).expect("text");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        text
    }

    #[test]
    fn events_word_for_word() {
        let message = |id, nonce| {
            let time = "1970-01-01T00:00:00.000Z".into();
            Rc::new(Message { id, username: "al\"".into(), text: "é\n\\ [hi]".into(), time, nonce })
        };
        let seven = r#"{"username":"al\"","text":"é\n\\ [hi]","id":7,"time":"1970-01-01T00:00:00.000Z"}"#;
        let eight = seven.replace("7,", "8,").replace("Z\"", r#"Z","nonce":"\u0001n\"""#);
        assert_eq!(
            render(&Event::Message(message(8, Some("\u{1}n\"".into())))),
            format!(r#"{{"event":"message","data":{eight}}}"#)
        );
        let (room, username) = (Rc::from("r\""), Rc::from("al\""));
        let backlog = |messages| Backlog { epoch: "e".into(), last_id: 8, messages, resumed: true };
        let messages = vec![message(7, None), message(8, Some("\u{1}n\"".into()))];
        assert_eq!(
            render(&Event::Switched {
                room: Rc::clone(&room),
                members: Vec::new(),
                member_count: 3,
                epoch: "e".into(),
                last_id: 8,
                history: messages
            }),
            format!(
                r#"{{"event":"switched","data":{{"room":"r\"","members":[],"member_count":3,"epoch":"e","last_id":8,"history":[{seven},{eight}]}}}}"#
            )
        );
        let members = vec![Rc::clone(&username), "bob".into()];
        let extra = [("ticket", "AAec-_".into())].into();
        let (message, session) = ("Welcome to #r\", al\"!".into(), "5e".into());
        let limits = ClientLimits { max_text: 1, max_message: 2, rate_limit: 0.5 };
        let (backlog, member_count) = (backlog(Vec::new()), 9);
        assert_eq!(
            render(&Event::Welcome { message, members, room, username, backlog, session, member_count, limits, extra }),
            concat!(
                r#"{"event":"welcome","data":{"message":"Welcome to #r\", al\"!","members":["al\"","bob"],"#,
                r#""room":"r\"","username":"al\"","epoch":"e","last_id":8,"resumed":true,"history":[],"session":"5e","#,
                r#""member_count":9,"limits":{"max_text":1,"max_message":2,"rate_limit":0.5},"ticket":"AAec-_"}}"#
            )
        );
    }

    #[test]
    fn commands_in_rooms() {
        let message = |username: Option<&'static str>, text: &'static str| {
            Ok(Command::Message { username: username.map(Cow::Borrowed), to: None, text: text.into() })
        };
        let typing = |username: Option<&'static str>| Ok(Command::Typing { username: username.map(Cow::Borrowed) });
        let cases = [
            (r#"{"username":"al","text":"hi"}"#, message(Some("al"), "hi")),
            (r#"{"text":"hi","type":"message","x":1}"#, message(None, "hi")),
            ("{}", message(None, "")),
            (r#"{"type":"typing","username":"al"}"#, typing(Some("al"))),
            (r#"{"type":"typing"}"#, typing(None)),
        ];
        for (text, command) in cases {
            assert_eq!(parse_rooms_dialect(text), command, "{text}");
        }
    }

    #[test]
    fn errors_in_rooms_name_what_is_wrong() {
        let cases = [
            ("hello", "Invalid JSON"),
            ("[]", "A message must be a JSON object"),
            (r#"{"type":"private","to":"bob","text":"psst"}"#, "Unknown event: private"),
            (r#"{"text":1}"#, "text: invalid type: integer `1`, expected a string"),
            (r#"{"username":null}"#, "username: invalid type: null, expected a string"),
            (r#"{"text":"a","text":"b"}"#, "duplicate field `text`"),
        ];
        for (text, error) in cases {
            assert_eq!(parse_rooms_dialect(text).expect_err(text), error, "{text}");
        }
    }
}
