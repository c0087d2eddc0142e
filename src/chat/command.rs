//! The words between the chat and its dialects: what a client asks ([`Command`]), what a client is told ([`Notice`]).
//!
//! Every dialect reads its own JSON into the one and writes the other in its own JSON, so that the chat itself knows
//! no JSON and people of different dialects meet in the same rooms.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::SystemTime;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Say this to the room.
    Message {
        /// As it was sent: neither trimmed nor judged.
        text: Cow<'a, str>,
    },
    /// Leave the room for another one.
    SwitchRoom {
        /// The name as it was sent.
        room: Cow<'a, str>,
    },
    /// Answer me. (Not a Ping frame, which `ws` answers by itself.)
    Ping,
}

/// What a client is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// To the one who joined, first of all.
    Welcome {
        /// The name it came with.
        username: Rc<str>,
        /// Where it is now.
        room: Rc<str>,
        /// Those who were there already, one for each connection.
        members: Vec<Rc<str>>,
    },
    /// To the others in the room.
    Joined {
        /// Who came.
        username: Rc<str>,
    },
    /// To everyone in the room, the sender too.
    Message {
        /// Who said it.
        username: Rc<str>,
        /// What was said, trimmed.
        text: Cow<'a, str>,
        /// From 1, one more with each message of the room.
        id: u64,
        /// When.
        time: SystemTime,
    },
    /// To those who remain, whatever ended the connection.
    Left {
        /// Who went.
        username: Rc<str>,
    },
    /// To the one who switched.
    Switched {
        /// Where it is now.
        room: Rc<str>,
        /// Those who were there already.
        members: Vec<Rc<str>>,
    },
    /// To the one who asked.
    Pong,
    /// To the one at fault. The connection stays open.
    Error(Complaint),
}

/// What was wrong with something a client sent. Its text is what the client reads, word for word.
#[derive(Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Not JSON at all.
    InvalidJson,
    /// An event that does not exist; at most 64 characters of its name.
    UnknownEvent(String),
    /// JSON, but not of the shape that the event has: what is wrong with it.
    WrongShape(String),
    /// A text over the limit.
    MessageTooLong,
    /// A name that no room may have: why.
    BadName(String),
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Complaint::InvalidJson => f.write_str("Invalid JSON"),
            Complaint::UnknownEvent(name) => write!(f, "Unknown event: {name}"),
            Complaint::MessageTooLong => f.write_str("Message too long"),
            Complaint::WrongShape(what) | Complaint::BadName(what) => f.write_str(what),
        }
    }
}
