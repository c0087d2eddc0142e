//! Events for clients, and effects for the server. An [`Event`] says what happened. An [`Effect`] says what the server
//! must do, such as deliver an event to a room. The server executes effects in order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use mio::Token;
use serde::Serialize;

use crate::broker::{Backlog, Message, PrivateMessage, RoomId};

/// An event for a client. Serializes to the JSON in PROTOCOL.md, "Dialect `events`", with the fields in this order.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// The first event that a client receives; only in the dialect `events`.
    Welcome {
        message: String,
        members: Vec<Rc<str>>, // usernames of the members already in the room, one per connection
        room: Rc<str>,
        username: Rc<str>,
        #[serde(flatten)]
        backlog: Backlog,
        session: String,
        member_count: usize, // `members` may be cut off
        limits: ClientLimits,
        #[serde(flatten)]
        extra: BTreeMap<&'static str, String>, // more fields from the server, such as `ticket`
    },
    /// Sent to the other members of the room, and to the new member itself if its dialect has no welcome.
    Joined {
        username: Rc<str>,
        #[serde(skip)]
        active: ActiveUsers,
    },
    Left {
        username: Rc<str>,
        #[serde(skip)]
        active: ActiveUsers,
    },
    /// Sent to every member of the room, including the sender.
    Message(Rc<Message>),
    /// Sent to the client that switched rooms. `members` excludes that client.
    Switched {
        room: Rc<str>,
        members: Vec<Rc<str>>,
        member_count: usize,
        epoch: Rc<str>,
        last_id: u64,
        history: Vec<Rc<Message>>,
    },
    /// Sent to the other members of the room.
    Typing { username: Rc<str> },
    /// Sent to all connections of the recipient, and to the sender.
    Private(Rc<PrivateMessage>),
    /// The reply to a `ping` command, not to a Ping frame.
    Pong {},
    /// Repeats the nonce of the message that caused the error. The connection stays open.
    Error {
        message: ErrorText,
        #[serde(skip_serializing_if = "Option::is_none")]
        nonce: Option<Rc<str>>,
    },
}

/// The members of a room, for the dialects that list them.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct ActiveUsers {
    pub active_users: Vec<Rc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_count: Option<usize>, // `Some` if the room is too large for a list
}

/// What a client may send.
#[derive(Debug, PartialEq, Serialize)]
pub struct ClientLimits {
    pub max_text: usize,    // characters of a text
    pub max_message: usize, // bytes of a message
    pub rate_limit: f64,    // messages per second; 0: no limit
}

/// PROTOCOL.md ("Errors") specifies some of these texts word for word.
pub type ErrorText = Cow<'static, str>;

#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Deliver an event to one client.
    Send { client: Token, event: Event },
    /// Deliver an event to all clients in a room except `but`.
    Broadcast { room: RoomId, but: Option<Token>, event: Event },
    /// From this effect on, the client receives the events of `to` instead of those of `from`.
    Moved { client: Token, from: Option<RoomId>, to: RoomId },
    /// Close the connection and call [`super::Chat::leave`], so that the client's room receives `left`.
    Close { client: Token, reason: CloseReason },
}

/// The Close frame contains [`CloseReason::text`]; the server chooses the close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    Flooding,
    NameInUse,
    Replaced,
    TooManyRooms,
}

impl CloseReason {
    pub fn text(self) -> &'static str {
        match self {
            CloseReason::Flooding => "flooding",
            CloseReason::NameInUse => "username already in use",
            CloseReason::Replaced => "replaced by a newer connection",
            CloseReason::TooManyRooms => "there are too many rooms",
        }
    }
}
