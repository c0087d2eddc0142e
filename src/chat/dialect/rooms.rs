//! The dialect of `/ws/{room}`: a name and a text in every message, and little else.
//!
//! The subtle thing: joins and leaves name nobody. What a message is said under is the name it carries, which the chat
//! judges; here it is only read.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

use super::{read_object, write_json};
use crate::chat::command::{Command, Complaint, Notice};

/// What every message of a client looks like. A key that comes twice is refused; one that is not known is ignored.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "string")]
    username: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    text: Cow<'a, str>,
}

/// With `Option` alone, `null` would count as left out.
fn string<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    Text::deserialize(deserializer).map(|text| Some(text.0))
}

/// Serde borrows a `Cow` only where it stands in a field of its own.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a client's message.
///
/// # Errors
/// What is wrong with it.
pub fn read(text: &str) -> Result<Command<'_>, Complaint> {
    let Message { kind, username, text } = read_object("", text)?;
    match kind.as_ref() {
        "" | "message" => Ok(Command::Message { username, text, nonce: None }),
        "typing" => Ok(Command::Typing { username }),
        // Not said aloud, whatever it was meant to be: it may have been meant for one only.
        unknown => Err(Complaint::UnknownEvent(unknown.chars().take(64).collect())),
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Told<'a> {
    System { message: &'a str },
    Message { username: &'a str, text: &'a str },
    Typing { username: &'a str },
    Private { from: &'a str, to: &'a str, text: &'a str },
    Error { message: String },
}

/// Appends a notice to `out`, if it has a shape here.
pub fn write(notice: &Notice, out: &mut Vec<u8>) {
    let told = match notice {
        Notice::Welcome { .. } | Notice::Joined { .. } => Told::System { message: "A user joined the chat" },
        Notice::Left { .. } => Told::System { message: "A user left the chat" },
        Notice::Message(posted) => Told::Message { username: &posted.username, text: &posted.text },
        Notice::Typing { username } => Told::Typing { username },
        Notice::Private(whisper) => Told::Private { from: &whisper.from, to: &whisper.to, text: &whisper.text },
        Notice::Error(fault) => Told::Error { message: fault.complaint.to_string() },
        Notice::Switched { .. } | Notice::Pong => return,
    };
    write_json(&told, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_ask() {
        let message = |username: Option<&'static str>, text: &'static str| {
            Ok(Command::Message { username: username.map(Cow::Borrowed), text: text.into(), nonce: None })
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
            assert_eq!(read(text), command, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("hello", "Invalid JSON"),
            ("[]", "A message must be a JSON object"),
            (r#"{"type":"private","to":"bob","text":"psst"}"#, "Unknown event: private"),
            (r#"{"text":1}"#, "text: invalid type: integer `1`, expected a string"),
            (r#"{"username":null}"#, "username: invalid type: null, expected a string"),
            (r#"{"text":"a","text":"b"}"#, "duplicate field `text`"),
        ];
        for (text, complaint) in cases {
            assert_eq!(read(text).expect_err(text).to_string(), complaint, "{text}");
        }
    }
}
