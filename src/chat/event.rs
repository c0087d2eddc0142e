//! The chat's output: events for clients, and effects, which the server executes in order.

use std::{borrow::Cow, collections::BTreeMap, rc::Rc};

use mio::Token;
use serde::Serialize;

use crate::broker::{Backlog, BrokerError, Message, Page, PrivateMessage, RoomId};

/// An event for a client. Do not reorder the fields: PROTOCOL.md ("Dialect `events`") shows the serialized JSON.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// The first event to a client that uses the `events` dialect. The other dialects omit `welcome`.
    Welcome {
        message: String,
        members: Vec<Rc<str>>, // usernames of the room's other members, one per connection
        room: Rc<str>,
        username: Rc<str>,
        #[serde(flatten)]
        backlog: Backlog,
        session: String,
        member_count: usize, // number of the room's other members, even if `members` does not list them all
        limits: ClientLimits,
        #[serde(flatten)]
        extra: BTreeMap<&'static str, String>, // fields that the `server` module adds, such as `ticket`
    },
    /// A member has joined. The event also goes to the new member itself if its dialect omits `welcome`.
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
    /// A message to the room. Its sender also receives the event.
    Message(Rc<Message>),
    Switched {
        room: Rc<str>,
        members: Vec<Rc<str>>,
        member_count: usize,
        epoch: Rc<str>,
        last_id: u64,
        history: Vec<Rc<Message>>,
    },
    /// The reply to a `history` command. Only the client that sent the command receives the reply.
    History(Page),
    /// A member is typing. The typing member itself does not receive the event.
    Typing { username: Rc<str> },
    /// A private message. All connections of the recipient receive the event, and so does the sending connection.
    Private(Rc<PrivateMessage>),
    /// The client's JWT expires in `seconds` seconds.
    TokenExpiring { seconds: u64 },
    /// The server has accepted a fresh JWT. `expires` is the time when the JWT expires, in the format of RFC 3339.
    TokenAccepted { expires: String },
    /// The reply to a `ping` command, not to a Ping frame.
    Pong {},
    Error {
        message: ErrorText,
        #[serde(skip_serializing_if = "Option::is_none")]
        nonce: Option<Rc<str>>, // the nonce of the message that caused the error
    },
}

#[derive(Debug, Default, PartialEq, Serialize)]
pub struct ActiveUsers {
    pub active_users: Vec<Rc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_count: Option<usize>, // number of members in the room, if there are too many for `active_users`
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ClientLimits {
    pub max_text: usize,    // maximum length of a chat text, in characters
    pub max_message: usize, // maximum length of a WebSocket message, in bytes
    pub rate_limit: f64,    // maximum average number of messages per second from one user; 0 means no limit
}

pub type ErrorText = Cow<'static, str>;

// Close reasons: the values of `reason` in `Effect::Close`.
pub const FLOODING: &str = "flooding";
pub const NAME_IN_USE: &str = "username already in use";
pub const REPLACED: &str = "replaced by a newer connection";
pub const TOO_MANY_ROOMS: &str = "there are too many rooms";
pub const UNAVAILABLE: &str = "the rooms are unavailable";
pub const UNCONFIRMED: &str = "a message was not confirmed in time";

pub fn describe(error: BrokerError) -> ErrorText {
    match error {
        BrokerError::NameInUse | BrokerError::ClientIdInUse => NAME_IN_USE.into(),
        BrokerError::TooManyRooms => "There are too many rooms".into(),
        BrokerError::NoSuchUser(name) => format!("No such user: {name}").into(),
        BrokerError::NotStored => "Message not stored".into(),
        BrokerError::Unavailable => "The rooms are unavailable".into(),
    }
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    Send { client: Token, event: Event },
    Broadcast { room: RoomId, except: Option<Token>, event: Event },
    SetRoom { client: Token, from: Option<RoomId>, to: RoomId }, // the client now receives the events of room `to`
    Close { client: Token, reason: &'static str, may_retry: bool }, // the server closes `client` and calls `leave`
    Renew(Token, Box<str>, Option<Rc<str>>),                     // a client sent a fresh JWT, and perhaps a nonce
    StorageFailed { reason: String },                            // the server closes all connections and stops
}
