//! Checks how the three protocol dialects parse and write. Each client message must parse to the same command as in a
//! second, simpler implementation of PROTOCOL.md, which uses `serde_json::Value`. Each event that a dialect writes must
//! equal the expected JSON.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use wirechat::broker::{Message, PrivateMessage};
use wirechat::chat::command::Command;
use wirechat::chat::dialect::Dialect;
use wirechat::chat::event::Event;

pub fn check(data: &[u8]) {
    let &[choice, ref rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match choice % 4 {
        0 => check_events_dialect(text),
        1 => check_rooms_dialect(text),
        2 => {
            let command = Command::Message { username: None, to: None, text: text.into() };
            assert_eq!(Dialect::Presence.parse(text), (Ok(command), None));
        }
        _ => check_written(text),
    }
}

/// All keys of a JSON object, including duplicates: of several equal keys, a `Value` keeps only one.
struct Keys(Vec<String>);

impl<'de> Visitor<'de> for Keys {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Keys, A::Error> {
        while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
            self.0.push(key);
        }
        Ok(self)
    }
}

fn has_repeated_key(json: &str) -> bool {
    let keys = serde_json::Deserializer::from_str(json).deserialize_map(Keys(Vec::new()));
    keys.is_ok_and(|keys| keys.0.iter().collect::<HashSet<_>>().len() < keys.0.len())
}

/// Parses `text` as a `Value`, which the test compares with the result of a dialect's parser. Returns `Ok(None)` if
/// the two cannot be compared: `Value` also decodes fields that the dialect's parser skips, and may fail there.
fn parse(text: &str) -> Result<Option<Value>, ()> {
    // serde_json reserves keys with this prefix for itself, so a `Value` does not treat them as ordinary keys.
    if text.contains("$serde_json::private") {
        return Ok(None);
    }
    match serde_json::from_str(text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let error = error.to_string();
            let is_stricter = ["recursion limit", "out of range", "surrogate", "hex escape"];
            if is_stricter.iter().any(|what| error.contains(what)) { Ok(None) } else { Err(()) }
        }
    }
}

/// Returns a string field, `Ok(None)` if the field is absent, or an error if the field is not a string.
fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<Cow<'a, str>>, ()> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.into())),
        Some(_) => Err(()),
    }
}

fn check_events_dialect(text: &str) {
    let (command, nonce) = Dialect::Events.parse(text);
    let message = match parse(text) {
        Ok(None) => return,
        Ok(Some(Value::Object(message))) => message,
        Ok(Some(_)) => return assert_eq!(command, Err("A message must be a JSON object".into())),
        Err(()) => return assert_eq!(command, Err("Invalid JSON".into()), "{text:?}"),
    };
    if has_repeated_key(text) {
        assert!(command.as_ref().is_err_and(|error| error.starts_with("duplicate field `")), "{text:?}: {command:?}");
        return;
    }
    let empty = Map::new();
    let data = match message.get("data") {
        None => Ok(&empty),
        Some(Value::Object(_)) if raw_data(text).is_some_and(|data| has_repeated_key(&data)) => Err(()),
        Some(Value::Object(data)) => Ok(data),
        Some(_) => Err(()),
    };
    let is_fraction = |name| data.is_ok_and(|data| data.get(name).is_some_and(Value::is_f64));
    if is_fraction("before") || is_fraction("limit") {
        return; // a `Value` stores a very large integer as a floating-point number
    }
    let expected = string(&message, "event").and_then(|event| expect_command(event.as_deref(), data?));
    match (command, expected) {
        (Ok(command), Ok(expected)) => assert_eq!((command, nonce.as_deref()), (expected.0, expected.1.as_deref())),
        (command, expected) => assert_eq!(command.is_ok(), expected.is_ok(), "{text:?}: {command:?}"),
    }
}

type Expected<'a> = Result<(Command<'a>, Option<Cow<'a, str>>), ()>;

/// Parses the fields of a client message as PROTOCOL.md specifies. Returns the message's command and nonce, or an error
/// if the message is invalid.
fn expect_command<'a>(event: Option<&str>, data: &'a Map<String, Value>) -> Expected<'a> {
    match event {
        Some("message") => Ok((text_command(data, None)?, valid_nonce(data)?)),
        Some("private") => {
            let to = string(data, "to")?.unwrap_or_default();
            Ok((text_command(data, Some(to))?, valid_nonce(data)?))
        }
        Some("switch_room") => {
            let room = string(data, "room")?.unwrap_or("general".into());
            Ok((Command::SwitchRoom { room }, None))
        }
        Some("typing") => Ok((Command::Typing { username: None }, None)),
        Some("ping") => Ok((Command::Ping, None)),
        Some("history") => {
            let before = data.get("before").and_then(Value::as_u64).ok_or(())?;
            let limit = data.get("limit").map_or(Some(50), Value::as_u64).filter(|limit| (1..=100).contains(limit));
            Ok((Command::History { before, limit: limit.ok_or(())? as usize }, None))
        }
        _ => Err(()),
    }
}

fn valid_nonce(data: &Map<String, Value>) -> Result<Option<Cow<'_, str>>, ()> {
    let nonce = string(data, "nonce")?;
    let is_valid = nonce.as_ref().is_none_or(|nonce| (1..=64).contains(&nonce.chars().count()));
    if is_valid { Ok(nonce) } else { Err(()) }
}

fn text_command<'a>(data: &'a Map<String, Value>, to: Option<Cow<'a, str>>) -> Result<Command<'a>, ()> {
    Ok(Command::Message { username: None, to, text: string(data, "text")?.unwrap_or_default() })
}

/// Returns the unparsed JSON of the `data` field.
fn raw_data(text: &str) -> Option<String> {
    let fields: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(text).ok()?;
    fields.get("data").map(|data| data.get().to_owned())
}

fn check_rooms_dialect(text: &str) {
    let (command, nonce) = Dialect::Rooms.parse(text);
    assert_eq!(nonce, None);
    let wanted = match parse(text) {
        Ok(None) => return,
        Err(()) => Err(()),
        Ok(Some(Value::Object(_))) if has_repeated_key(text) => Err(()),
        Ok(Some(Value::Object(message))) => rooms_command(&message).map(|command| format!("{command:?}")),
        Ok(Some(_)) => Err(()),
    };
    assert_eq!(command.map(|command| format!("{command:?}")).map_err(drop), wanted, "{text:?}");
}

fn rooms_command(message: &Map<String, Value>) -> Result<Command<'_>, ()> {
    let (kind, username) = (string(message, "type")?, string(message, "username")?);
    let text = string(message, "text")?.unwrap_or_default();
    match kind.as_deref() {
        None | Some("" | "message") => Ok(Command::Message { username, to: None, text }),
        Some("typing") => Ok(Command::Typing { username }),
        Some(_) => Err(()),
    }
}

/// Checks the JSON that each dialect writes for an event. All strings in the events, except the time, are from `text`.
fn check_written(text: &str) {
    let half = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let (name, body) = text.split_at(half);
    let (time, nonce): (Rc<str>, Rc<str>) = ("2026-11-28T00:00:00.000Z".into(), name.into());
    let message =
        Message { username: name.into(), text: body.into(), id: 7, time: time.clone(), nonce: Some(nonce.clone()) };
    let data = json!({"username": name, "text": body, "id": 7, "time": &*time, "nonce": name});
    expect(
        &Event::Message(message.into()),
        [
            json!({"event": "message", "data": data}),
            json!({"type": "message", "username": name, "text": body}),
            json!({"type": "chat_message", "username": name, "text": body, "timestamp": &*time}),
        ],
    );
    let private =
        PrivateMessage { from: name.into(), to: body.into(), text: text.into(), time: time.clone(), nonce: None };
    let data = json!({"from": name, "to": body, "text": text, "time": &*time});
    expect(
        &Event::Private(private.into()),
        [
            json!({"event": "private", "data": data}),
            json!({"type": "private", "from": name, "to": body, "text": text}),
            json!({"type": "private_message", "from": name, "to": body, "text": text, "timestamp": &*time}),
        ],
    );
    expect(
        &Event::Error { message: text.to_owned().into(), nonce: Some(nonce) },
        [
            json!({"event": "error", "data": {"message": text, "nonce": name}}),
            json!({"type": "error", "message": text}),
            json!({"error": text}),
        ],
    );
}

fn expect(event: &Event, jsons: [Value; 3]) {
    for (dialect, json) in Dialect::ALL.into_iter().zip(jsons) {
        let mut written = Vec::new();
        dialect.write(event, &mut written);
        assert_eq!(serde_json::from_slice::<Value>(&written).expect("JSON"), json);
    }
}
