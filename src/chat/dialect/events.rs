//! The native dialect: every message is an object with `event` and `data`.
//!
//! The subtle thing: a client is told *what* is wrong with its JSON, in an order that can be relied on: whether it is
//! JSON at all, whether it is an object of the right shape, which event it is, and only then its data. So `data` is
//! kept as raw JSON until the event is known. What is right is read in one go; only what is wrong is read again, to
//! name the fault.

use std::borrow::Cow;
use std::rc::Rc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::chat::command::{Command, Complaint, Notice};

/// What every message of a client looks like. A key that comes twice is refused; one that is not known is ignored.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    event: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "not_null")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct MessageData<'a> {
    #[serde(borrow, default)]
    text: Cow<'a, str>,
}

#[derive(Deserialize)]
struct SwitchRoomData<'a> {
    #[serde(borrow, default = "general")]
    room: Cow<'a, str>,
}

#[derive(Deserialize)]
struct NoData {}

fn general() -> Cow<'static, str> {
    Cow::Borrowed(crate::chat::DEFAULT_ROOM)
}

/// With `Option` alone, `null` would count as left out.
fn not_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a client's message.
///
/// # Errors
/// The first fault, in the order told above.
pub fn read(text: &str) -> Result<Command<'_>, Complaint> {
    let Envelope { event, data } = read_object("", text)?;
    let data = data.map_or("{}", RawValue::get);
    match event.as_ref() {
        "message" => read_object("data", data).map(|MessageData { text }| Command::Message { text }),
        "switch_room" => read_object("data", data).map(|SwitchRoomData { room }| Command::SwitchRoom { room }),
        "ping" => read_object("data", data).map(|NoData {}| Command::Ping),
        unknown => Err(Complaint::UnknownEvent(unknown.chars().take(64).collect())),
    }
}

/// Reads a JSON object. `place` is where it stands in the message, for the complaint.
fn read_object<'a, T: Deserialize<'a>>(place: &str, json: &'a str) -> Result<T, Complaint> {
    // serde would also take an array, as a struct without its names.
    let is_object = json.trim_ascii_start().starts_with('{');
    match serde_json::from_str(json) {
        Ok(value) if is_object => Ok(value),
        _ => Err(find_fault::<T>(place, json, is_object)),
    }
}

/// Names the fault in a message that could not be read.
fn find_fault<'a, T: Deserialize<'a>>(place: &str, json: &'a str, is_object: bool) -> Complaint {
    if serde_json::from_str::<IgnoredAny>(json).is_err() {
        return Complaint::InvalidJson;
    }
    if !is_object {
        let what = if place.is_empty() { "A message" } else { place };
        return Complaint::WrongShape(format!("{what} must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) if error.inner().is_data() => {
            let path = error.path().to_string();
            let field: Vec<&str> = [place, &path].into_iter().filter(|part| !["", "."].contains(part)).collect();
            let field = field.join(".");
            let reason = error.inner().to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            Complaint::WrongShape(format!("{field}: {reason}").trim_start_matches(": ").to_owned())
        }
        // A string that is none, such as half of a surrogate pair, which is passed over where a value is ignored.
        _ => Complaint::InvalidJson,
    }
}

#[derive(Serialize)]
struct Event<D> {
    event: &'static str,
    data: D,
}

#[derive(Serialize)]
struct Welcome<'a> {
    message: String,
    members: &'a [Rc<str>],
    room: &'a str,
    username: &'a str,
}

#[derive(Serialize)]
struct Switched<'a> {
    room: &'a str,
    members: &'a [Rc<str>],
}

#[derive(Serialize)]
struct Message<'a> {
    username: &'a str,
    text: &'a str,
    id: u64,
    time: Time,
}

/// RFC 3339, UTC, milliseconds.
struct Time(std::time::SystemTime);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

#[derive(Serialize)]
struct Someone<'a> {
    username: &'a str,
}

#[derive(Serialize)]
struct Failure {
    message: String,
}

#[derive(Serialize)]
struct Nothing {}

/// Appends a notice to `out`.
pub fn write(notice: &Notice, out: &mut Vec<u8>) {
    match notice {
        Notice::Welcome { username, room, members } => {
            let message = format!("Welcome to #{room}, {username}!");
            write_event("welcome", Welcome { message, members, room, username }, out);
        }
        Notice::Joined { username } => write_event("joined", Someone { username }, out),
        Notice::Message { username, text, id, time } => {
            write_event("message", Message { username, text, id: *id, time: Time(*time) }, out);
        }
        Notice::Left { username } => write_event("left", Someone { username }, out),
        Notice::Switched { room, members } => write_event("switched", Switched { room, members }, out),
        Notice::Pong => write_event("pong", Nothing {}, out),
        Notice::Error(complaint) => write_event("error", Failure { message: complaint.to_string() }, out),
    }
}

fn write_event(event: &'static str, data: impl Serialize, out: &mut Vec<u8>) {
    let written = serde_json::to_writer(out, &Event { event, data });
    written.expect("the event is written"); // invariant: strings and numbers, into memory, always can be
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        read(text).expect_err(text).to_string()
    }

    #[test]
    fn what_clients_ask() {
        let message = |text| Ok(Command::Message { text: Cow::Borrowed(text) });
        let switch = |room| Ok(Command::SwitchRoom { room: Cow::Borrowed(room) });
        let cases = [
            (r#"{"event":"message","data":{"text":"hi"}}"#, message("hi")),
            (r#" {"data" : {"text":"hi", "more":[1]}, "event":"message", "x":null} "#, message("hi")),
            (r#"{"event":"message","data":{"text":"\u00e9\n\u0000"}}"#, message("é\n\0")),
            (r#"{"event":"message"}"#, message("")),
            (r#"{"event":"message","data":{}}"#, message("")),
            (r#"{"event":"switch_room","data":{"room":"x"}}"#, switch("x")),
            (r#"{"event":"switch_room"}"#, switch("general")),
            (r#"{"event":"ping"}"#, Ok(Command::Ping)),
            (r#"{"\u0065vent":"ping","data":{"any":1}}"#, Ok(Command::Ping)),
        ];
        for (text, command) in cases {
            assert_eq!(read(text), command, "{text}");
        }
    }

    #[test]
    fn what_is_not_json() {
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
            assert_eq!(complaint(text), "Invalid JSON", "{text}");
        }
        assert_eq!(complaint(&"[".repeat(1000)), "Invalid JSON");
    }

    #[test]
    fn what_has_the_wrong_shape_is_named() {
        let cases = [
            ("[]", "A message must be a JSON object"),
            ("1", "A message must be a JSON object"),
            ("null", "A message must be a JSON object"),
            (r#"["ping"]"#, "A message must be a JSON object"),
            (r#"{"event":1}"#, "event: invalid type: integer `1`, expected a string"),
            (r#"{"event":null}"#, "event: invalid type: null, expected a string"),
            (r#"{"event":"ping","event":"message"}"#, "duplicate field `event`"),
            (r#"{"event":"ping","data":null}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":"x"}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":["x"]}"#, "data must be a JSON object"),
            (r#"{"event":"message","data":{"text":5}}"#, "data.text: invalid type: integer `5`, expected a string"),
            (r#"{"event":"message","data":{"text":null}}"#, "data.text: invalid type: null, expected a string"),
            (r#"{"event":"message","data":{"text":"a","text":"b"}}"#, "data: duplicate field `text`"),
            (r#"{"event":"switch_room","data":{"room":[]}}"#, "data.room: invalid type: sequence, expected a string"),
        ];
        for (text, expected) in cases {
            assert_eq!(complaint(text), expected, "{text}");
        }
    }

    #[test]
    fn an_unknown_event_is_told_before_its_data() {
        assert_eq!(complaint("{}"), "Unknown event: ");
        assert_eq!(complaint(r#"{"event":"foo","data":null}"#), "Unknown event: foo");
        let long = format!(r#"{{"event":"{}"}}"#, "é".repeat(100));
        assert_eq!(complaint(&long), format!("Unknown event: {}", "é".repeat(64)));
    }
}
