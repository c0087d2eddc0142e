//! The native dialect: every message is an object with `event` and `data`.
//!
//! The subtle thing: a client is told *what* is wrong with its JSON, in an order that can be relied on: whether it is
//! JSON at all, whether it is an object of the right shape, which event it is, and only then its data. So `data` is
//! kept as raw JSON until the event is known. What is right is read in one go, and a message as browsers
//! write it needs no envelope to be taken off; only what is wrong is read again, to name the fault.

use std::borrow::Cow;
use std::rc::Rc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{read_object, write_json};
use crate::chat::command::{Command, Complaint, Fault, Notice, Whisper};
use crate::chat::history::{Past, Posted};
use crate::chat::timestamp::Timestamp;

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
    #[serde(borrow, default, deserialize_with = "nonce")]
    nonce: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct PrivateData<'a> {
    #[serde(borrow, default)]
    to: Cow<'a, str>,
    #[serde(borrow, default)]
    text: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "nonce")]
    nonce: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct SwitchRoomData<'a> {
    #[serde(borrow, default = "default_room")]
    room: Cow<'a, str>,
}

#[derive(Deserialize)]
struct NoData {}

/// Serde borrows a `Cow` only where it stands in a field of its own.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn default_room() -> Cow<'static, str> {
    Cow::Borrowed(crate::chat::DEFAULT_ROOM)
}

/// With `Option` alone, `null` would count as left out.
fn not_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn nonce<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    let Text(nonce) = Text::deserialize(deserializer)?;
    match nonce.chars().take(65).count() {
        1..=64 => Ok(Some(nonce)),
        _ => Err(D::Error::custom("a nonce has 1 to 64 characters")),
    }
}

/// Reads a client's message.
///
/// # Errors
/// The first fault, in the order told above.
pub fn read(text: &str) -> Result<Command<'_>, Fault> {
    if let Some(MessageData { text, nonce }) = read_compact(text) {
        return Ok(Command::Message { username: None, text, nonce });
    }
    let Envelope { event, data } = read_object("", text)?;
    let data = data.map_or("{}", RawValue::get);
    let command = match event.as_ref() {
        "message" => read_object("data", data).map(|MessageData { text, nonce }| Command::Message {
            username: None,
            text,
            nonce,
        }),
        "switch_room" => read_object("data", data).map(|SwitchRoomData { room }| Command::SwitchRoom { room }),
        "private" => {
            read_object("data", data).map(|PrivateData { to, text, nonce }| Command::Private { to, text, nonce })
        }
        "typing" => read_object("data", data).map(|NoData {}| Command::Typing { username: None }),
        "ping" => read_object("data", data).map(|NoData {}| Command::Ping),
        unknown => Err(Complaint::UnknownEvent(unknown.chars().take(64).collect())),
    };
    command.map_err(|complaint| Fault { complaint, nonce: find_nonce(data) })
}

/// Reads a message as browsers write it, without a blank and with the event first: then it is known where the data is.
/// It takes nothing but what the way by the envelope takes too, and as that does; where it is in doubt it takes nothing.
fn read_compact(text: &str) -> Option<MessageData<'_>> {
    /// As [`MessageData`], but with nothing to be passed over, which takes its time, and with a text.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Compact<'a> {
        #[serde(borrow)]
        text: Cow<'a, str>,
        #[serde(borrow, default, deserialize_with = "nonce")]
        nonce: Option<Cow<'a, str>>,
    }
    let data = text.strip_prefix(r#"{"event":"message","data":"#)?.strip_suffix('}')?;
    // serde would also take an array, as a struct without its names.
    let Compact { text, nonce } = data.starts_with('{').then(|| serde_json::from_str(data).ok())??;
    Some(MessageData { text, nonce })
}

/// The nonce of a message that has something else wrong with it.
fn find_nonce(data: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Nonce<'a> {
        #[serde(borrow, default, deserialize_with = "nonce")]
        nonce: Option<Cow<'a, str>>,
    }
    serde_json::from_str::<Nonce>(data).ok()?.nonce.map(Cow::into_owned)
}

#[derive(Serialize)]
struct Event<D> {
    event: &'static str,
    data: D,
}

#[derive(Serialize)]
struct Private<'a> {
    from: &'a str,
    to: &'a str,
    text: &'a str,
    time: &'a Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

#[derive(Serialize)]
struct Someone<'a> {
    username: &'a str,
}

#[derive(Serialize)]
struct Failure<'a> {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
}

#[derive(Serialize)]
struct Nothing {}

/// Appends a notice to `out`.
pub fn write(notice: &Notice, out: &mut Vec<u8>) {
    match notice {
        Notice::Welcome { username, room, members, past, ticket } => {
            let Past { epoch, last_id, resumed, messages } = past;
            let message = ["Welcome to #", room, ", ", username, "!"].concat();
            put(br#"{"event":"welcome","data":{"message":"#, &message, out);
            put(br#","members":"#, members, out);
            put(br#","room":"#, room, out);
            put(br#","username":"#, username, out);
            put_plain(br#","epoch":"#, epoch, out);
            put(br#","last_id":"#, last_id, out);
            put(br#","resumed":"#, resumed, out);
            put_history(messages, out);
            if let Some(ticket) = ticket {
                put_plain(br#","ticket":"#, ticket, out);
            }
            out.extend_from_slice(b"}}");
        }
        Notice::Joined { username, .. } => write_event("joined", Someone { username }, out),
        Notice::Message(posted) => {
            out.extend_from_slice(br#"{"event":"message","data":"#);
            put_posted(posted, out);
            out.push(b'}');
        }
        Notice::Left { username, .. } => write_event("left", Someone { username }, out),
        Notice::Switched { room, members, past } => {
            let Past { epoch, last_id, messages, .. } = past;
            put(br#"{"event":"switched","data":{"room":"#, room, out);
            put(br#","members":"#, members, out);
            put(br#","epoch":"#, epoch, out);
            put(br#","last_id":"#, last_id, out);
            put_history(messages, out);
            out.extend_from_slice(b"}}");
        }
        Notice::Typing { username } => write_event("typing", Someone { username }, out),
        Notice::Private(whisper) => {
            let Whisper { from, to, text, time, nonce } = &**whisper;
            write_event("private", Private { from, to, text, time, nonce: nonce.as_deref() }, out);
        }
        Notice::Pong => write_event("pong", Nothing {}, out),
        Notice::Error(Fault { complaint, nonce }) => {
            write_event("error", Failure { message: complaint.to_string(), nonce: nonce.as_deref() }, out);
        }
    }
}

fn put_history(messages: &[Rc<Posted>], out: &mut Vec<u8>) {
    out.extend_from_slice(br#","history":["#);
    for (number, posted) in messages.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        put_posted(posted, out);
    }
    out.push(b']');
}

fn put_posted(Posted { id, username, text, time, nonce }: &Posted, out: &mut Vec<u8>) {
    put_text(br#"{"username":"#, username, out);
    put_text(br#","text":"#, text, out);
    put(br#","id":"#, id, out);
    put_plain(br#","time":"#, time.as_str(), out);
    if let Some(nonce) = nonce {
        put(br#","nonce":"#, nonce, out);
    }
    out.push(b'}');
}

/// Puts a value behind the name of its field. What is told most often, and what is long, is put together from such
/// pieces, since half the work of writing it as a whole would go into names that are always the same.
#[inline]
fn put(name: &[u8], value: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    write_json(value, out);
}

/// As `put`, for a text: nearly always nothing in it is to be escaped (RFC 8259 §7), and that is seen at one glance.
fn put_text(name: &[u8], text: &str, out: &mut Vec<u8>) {
    // Without an early end: so it is done sixteen bytes at a time.
    let is_plain = text.bytes().fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if is_plain { put_plain(name, text, out) } else { put(name, &text, out) }
}

/// As `put`, for a text that holds nothing to be escaped.
fn put_plain(name: &[u8], text: &str, out: &mut Vec<u8>) {
    for piece in [name, b"\"", text.as_bytes(), b"\""] {
        out.extend_from_slice(piece);
    }
}

fn write_event(event: &'static str, data: impl Serialize, out: &mut Vec<u8>) {
    write_json(&Event { event, data }, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> String {
        read(text).expect_err(text).complaint.to_string()
    }

    #[test]
    fn what_clients_ask() {
        let message = |text| Ok(Command::Message { username: None, text: Cow::Borrowed(text), nonce: None });
        let named =
            |text, nonce| Ok(Command::Message { username: None, text: Cow::Borrowed(text), nonce: Some(nonce) });
        let private = |to, text| Ok(Command::Private { to: Cow::Borrowed(to), text: Cow::Borrowed(text), nonce: None });
        let switch = |room| Ok(Command::SwitchRoom { room: Cow::Borrowed(room) });
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
            (r#"{"event":"typing"}"#, Ok(Command::Typing { username: None })),
            (r#"{"event":"ping"}"#, Ok(Command::Ping)),
            (r#"{"\u0065vent":"ping","data":{"any":1}}"#, Ok(Command::Ping)),
        ];
        for (text, command) in cases {
            assert_eq!(read(text), command, "{text}");
        }
    }

    /// The same with a blank in front, which sends it the long way: also with any two characters of it changed.
    #[test]
    fn a_compact_message_means_what_it_means_anyhow() {
        const MESSAGE: &str = r#"{"event":"message","data":{"text":"a\n","nonce":"b"}}"#;
        assert!(read_compact(MESSAGE).is_some());
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
            compact += usize::from(read_compact(&text).is_some());
            assert_eq!(read(&text), read(&format!(" {text}")), "{text}");
        }
        assert!(compact > 100, "{compact} were read the short way");
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

    fn written(notice: &Notice) -> String {
        let mut out = Vec::new();
        write(notice, &mut out);
        let text = String::from_utf8(out).expect("text");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
        text
    }

    #[test]
    fn what_is_put_together_from_pieces_is_json() {
        let posted = |id, nonce| {
            let time = std::time::SystemTime::UNIX_EPOCH.into();
            Rc::new(Posted { id, username: "al\"".into(), text: "é\n\\ [hi]".into(), time, nonce })
        };
        let seven = r#"{"username":"al\"","text":"é\n\\ [hi]","id":7,"time":"1970-01-01T00:00:00.000Z"}"#;
        let eight = seven.replace("7,", "8,").replace("Z\"", r#"Z","nonce":"\u0001n\"""#);
        assert_eq!(
            written(&Notice::Message(posted(8, Some("\u{1}n\"".into())))),
            format!(r#"{{"event":"message","data":{eight}}}"#)
        );
        let (room, username) = (Rc::from("r\""), Rc::from("al\""));
        let past = |messages| Past { epoch: "e".into(), last_id: 8, messages, resumed: true };
        let messages = vec![posted(7, None), posted(8, Some("\u{1}n\"".into()))];
        assert_eq!(
            written(&Notice::Switched { room: Rc::clone(&room), members: Vec::new(), past: past(messages) }),
            format!(
                r#"{{"event":"switched","data":{{"room":"r\"","members":[],"epoch":"e","last_id":8,"history":[{seven},{eight}]}}}}"#
            )
        );
        let members = vec![Rc::clone(&username), "bob".into()];
        let ticket = Some("AAec-_".into());
        assert_eq!(
            written(&Notice::Welcome { username, room, members, past: past(Vec::new()), ticket }),
            concat!(
                r#"{"event":"welcome","data":{"message":"Welcome to #r\", al\"!","members":["al\"","bob"],"#,
                r#""room":"r\"","username":"al\"","epoch":"e","last_id":8,"resumed":true,"history":[],"ticket":"AAec-_"}}"#
            )
        );
    }
}
