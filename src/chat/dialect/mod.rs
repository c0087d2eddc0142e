//! The JSON shapes of the chat, one file a shape: text ⇄ [`Command`] and [`Notice`].
//!
//! Which dialect a client speaks is decided by the endpoint it came to, and stays so. A shape knows no rooms, no
//! members and no frames; it reads one text and writes one text, or nothing where it has no word for a notice.

mod events;
mod presence;
mod rooms;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::command::{Command, Complaint, Fault, Notice};

/// The shape that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"event": …, "data": …}`: the native one.
    Events,
    /// `{"type": …, …}`, a room in the path, a name in each message.
    Rooms,
    /// Plain text in; `{"type": …, …}` with the list of who is present out.
    Presence,
}

impl Dialect {
    /// All of them, each at the index that is its number.
    pub const ALL: [Dialect; 3] = [Dialect::Events, Dialect::Rooms, Dialect::Presence];

    /// The name that a client may offer in `Sec-WebSocket-Protocol`.
    pub fn subprotocol(self) -> &'static str {
        match self {
            Dialect::Events => "chat.events",
            Dialect::Rooms => "chat.rooms",
            Dialect::Presence => "chat.presence",
        }
    }

    /// Who a client is that gives no name; `None`: it must give one.
    pub fn default_username(self) -> Option<&'static str> {
        match self {
            Dialect::Events => Some("anonymous"),
            Dialect::Rooms => Some("Anonymous"),
            Dialect::Presence => None,
        }
    }

    /// Whether the past is told in the welcome. Otherwise it is told as messages behind it.
    pub fn welcomes_with_history(self) -> bool {
        self == Dialect::Events
    }

    /// Whether a join and a leave tell who is there now.
    pub fn shows_members(self) -> bool {
        self == Dialect::Presence
    }

    /// Reads what a client sent.
    ///
    /// # Errors
    /// What is wrong with it, to be told to the client.
    pub fn read(self, text: &str) -> Result<Command<'_>, Fault> {
        match self {
            Dialect::Events => events::read(text),
            Dialect::Rooms => rooms::read(text).map_err(Fault::from),
            Dialect::Presence => Ok(presence::read(text)),
        }
    }

    /// Appends a notice in this dialect to `out`: JSON, or nothing where the dialect has no word for it.
    pub fn write(self, notice: &Notice, out: &mut Vec<u8>) {
        match self {
            Dialect::Events => events::write(notice, out),
            Dialect::Rooms => rooms::write(notice, out),
            Dialect::Presence => presence::write(notice, out),
        }
    }
}

/// Reads a JSON object. `place` is where it stands in the message, for the complaint; empty: it is the message.
fn read_object<'a, T: Deserialize<'a>>(place: &str, json: &'a str) -> Result<T, Complaint> {
    // serde would also take an array, as a struct without its names.
    let is_object = json.trim_ascii_start().starts_with('{');
    let mut unknown = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_ignored::deserialize(&mut deserializer, |key| unknown.push(key.to_string()));
    match value.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) if is_object => match find_twin(unknown) {
            None => Ok(value),
            Some(key) => Err(wrong_shape(&[place], &format!("duplicate field `{key}`"))),
        },
        _ => Err(find_fault::<T>(place, json, is_object)),
    }
}

/// A key that stands there twice. Of the known ones serde itself tells.
fn find_twin(mut keys: Vec<String>) -> Option<String> {
    keys.sort_unstable();
    let twin = keys.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(twin[0].chars().take(64).collect())
}

/// A complaint about the field that these parts name, if they name one.
fn wrong_shape(path: &[&str], what: &str) -> Complaint {
    let parts: Vec<&str> = path.iter().copied().filter(|part| !["", "."].contains(part)).collect();
    let separator = if parts.is_empty() { "" } else { ": " };
    Complaint::WrongShape(format!("{}{separator}{what}", parts.join(".")))
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
            let reason = error.inner().to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            wrong_shape(&[place, &error.path().to_string()], reason)
        }
        // A string that is none, such as half of a surrogate pair, which is passed over where a value is ignored.
        _ => Complaint::InvalidJson,
    }
}

fn write_json(value: &impl Serialize, out: &mut Vec<u8>) {
    // invariant: strings and numbers can always be written, and memory takes them
    serde_json::to_writer(out, value).expect("JSON is written");
}

#[cfg(test)]
mod tests {
    use super::Dialect;

    #[test]
    fn each_dialect_stands_at_the_index_that_is_its_number() {
        for (index, dialect) in Dialect::ALL.into_iter().enumerate() {
            assert_eq!(dialect as usize, index);
        }
    }
}
