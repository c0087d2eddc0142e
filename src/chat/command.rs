//! The words of the chat: what a client asks ([`Command`]), what a client is told ([`Notice`]), and to whom that goes
//! ([`Delivery`]).
//!
//! Every dialect reads its own JSON into the one and writes the other in its own JSON, so that the chat itself knows
//! no JSON and people of different dialects meet in the same rooms.
//!
//! The subtle thing: a command is what was *asked*, and borrows it from the message as it lies; nothing in it is judged. A
//! notice is what *is*, and owns or shares what it says, since many may be told of it.

use std::borrow::Cow;
use std::rc::Rc;

use mio::Token;

use super::history::{Past, Posted};
use super::ids::RoomId;
use super::timestamp::Timestamp;

/// What a client asks for. Texts and names are as they were sent: neither trimmed nor judged.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Say this to the room; or, if it begins with `/msg `, to somebody.
    Message {
        /// The name to say it under, in a dialect whose messages carry one.
        username: Option<Cow<'a, str>>,
        /// What to say.
        text: Cow<'a, str>,
        /// What the client calls it, so that it can be recognised.
        nonce: Option<Cow<'a, str>>,
    },
    /// Say this to one name only.
    Private {
        /// The name.
        to: Cow<'a, str>,
        /// What to say.
        text: Cow<'a, str>,
        /// As above.
        nonce: Option<Cow<'a, str>>,
    },
    /// Leave the room for another one.
    SwitchRoom {
        /// Its name.
        room: Cow<'a, str>,
    },
    /// Tell the others that I am writing.
    Typing {
        /// As above.
        username: Option<Cow<'a, str>>,
    },
    /// Answer me. (Not a Ping frame, which `ws` answers by itself.)
    Ping,
}

impl Command<'_> {
    /// What the client calls the message that this is.
    pub fn nonce(&self) -> Option<&str> {
        match self {
            Command::Message { nonce, .. } | Command::Private { nonce, .. } => nonce.as_deref(),
            _ => None,
        }
    }
}

/// What a client is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// To the one who joined, first of all.
    Welcome {
        /// The name it came with.
        username: Rc<str>,
        /// Where it is now.
        room: Rc<str>,
        /// Those who were there already, one for each connection.
        members: Vec<Rc<str>>,
        /// What was said there.
        past: Past,
        /// With it the client may look at its own connection.
        ticket: Option<String>,
    },
    /// To the others in the room.
    Joined {
        /// Who came.
        username: Rc<str>,
        /// All who are there now, if anyone in the room is shown that.
        members: Vec<Rc<str>>,
    },
    /// To everyone in the room, the sender too.
    Message(Rc<Posted>),
    /// To those who remain, whatever ended the connection.
    Left {
        /// Who went.
        username: Rc<str>,
        /// All who are there now, if anyone in the room is shown that.
        members: Vec<Rc<str>>,
    },
    /// To the one who switched.
    Switched {
        /// Where it is now.
        room: Rc<str>,
        /// Those who were there already.
        members: Vec<Rc<str>>,
        /// What was said there.
        past: Past,
    },
    /// To the others in the room.
    Typing {
        /// Who is writing.
        username: Rc<str>,
    },
    /// To those who have the name, and to the one who said it.
    Private(Rc<Whisper>),
    /// To the one who asked.
    Pong,
    /// To the one at fault. The connection stays open.
    Error(Fault),
}

/// A private message.
#[derive(Debug, PartialEq, Eq)]
pub struct Whisper {
    /// Who says it.
    pub from: Rc<str>,
    /// To whom.
    pub to: Rc<str>,
    /// What is said, trimmed.
    pub text: String,
    /// When.
    pub time: Timestamp,
    /// What the sender calls it.
    pub nonce: Option<String>,
}

/// Something wrong that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// What was wrong.
    pub complaint: Complaint,
    /// What the client calls the message that it was.
    pub nonce: Option<String>,
}

impl From<Complaint> for Fault {
    fn from(complaint: Complaint) -> Fault {
        Fault { complaint, nonce: None }
    }
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
    /// Too many messages.
    SlowDown,
    /// A private message to a name that nobody has.
    NoSuchUser(String),
    /// A name that may not be used: why.
    BadName(String),
    /// There are as many rooms as there may be.
    TooManyRooms,
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Complaint::InvalidJson => f.write_str("Invalid JSON"),
            Complaint::UnknownEvent(name) => write!(f, "Unknown event: {name}"),
            Complaint::MessageTooLong => f.write_str("Message too long"),
            Complaint::SlowDown => f.write_str("Slow down"),
            Complaint::NoSuchUser(name) => write!(f, "No such user: {name}"),
            Complaint::TooManyRooms => f.write_str("There are too many rooms"),
            Complaint::WrongShape(what) | Complaint::BadName(what) => f.write_str(what),
        }
    }
}

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

/// What the server is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Send a notice to those who get it.
    Tell {
        /// To whom.
        to: Audience,
        /// What.
        notice: Notice,
    },
    /// A client has changed rooms: it is told all that the old one was told so far, and of the new one nothing yet.
    Move {
        /// Who.
        token: Token,
        /// The old room.
        from: RoomId,
        /// The new room.
        to: RoomId,
    },
    /// Close a client that broke a rule of the chat.
    Close {
        /// Whom.
        token: Token,
        /// What it reads.
        reason: &'static str,
    },
}

impl Delivery {
    pub(super) fn tell(to: Audience, notice: Notice) -> Delivery {
        Delivery::Tell { to, notice }
    }

    pub(super) fn complain(token: Token, complaint: Complaint, nonce: Option<&str>) -> Delivery {
        let fault = Fault { complaint, nonce: nonce.map(str::to_owned) };
        Delivery::tell(Audience::One(token), Notice::Error(fault))
    }
}
