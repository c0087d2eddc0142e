//! The events in an instance's inbox. The script on the Redis server writes each event as one line of JSON.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::super::{Message, PrivateMessage};

/// A message without its id, which Redis assigns.
#[derive(Debug, Serialize, Deserialize)]
pub struct MessageWithoutId {
    username: Rc<str>,
    text: Box<str>,
    time: Rc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<Rc<str>>,
}

impl MessageWithoutId {
    pub fn new(message: Message) -> MessageWithoutId {
        let Message { username, text, time, nonce, .. } = message;
        MessageWithoutId { username, text, time, nonce }
    }

    pub fn with_id(self, id: u64) -> Message {
        let MessageWithoutId { username, text, time, nonce } = self;
        Message { username, text, id, time, nonce }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InboxEvent {
    /// Redis has executed all requests of this instance up to and including the one with this number. All events that
    /// those requests caused come before this event in the inbox.
    Executed(u64),
    /// A request failed because of a bug in the script.
    Failed(Box<str>),
    /// The room has a new epoch: the room is new, or Redis has restarted or failed over. The messages that this
    /// instance has received are still valid. Fields: the room and its new epoch.
    Renewed(Rc<str>, Rc<str>),
    /// A room gets its first member on this instance. Fields: the room, and the room's members on other instances.
    Opened(Rc<str>, Vec<(u32, u64, Rc<str>)>),
    /// A client of this instance has joined: the client, its previous room, its new room, and the new room's history.
    Joined(u64, Option<Rc<str>>, Rc<str>, Rc<str>, u64, bool, Vec<(u64, MessageWithoutId)>),
    JoinRejected(u64),
    /// A client of another instance has joined: the room, the instance, and the client's number and username.
    Arrived(Rc<str>, u32, u64, Rc<str>),
    Left(Rc<str>, u32, u64),
    /// A message to a room: the room, the sender's instance and client number, the message's id, and the message.
    Message(Rc<str>, u32, u64, u64, MessageWithoutId),
    /// This instance's operator has published a message. Fields: the room, the instance, the token of the operator's
    /// request, the message's id, and the message.
    Announced(Rc<str>, u32, u64, u64, MessageWithoutId),
    Duplicate(u64, u64, MessageWithoutId),
    /// A private message: recipients, message, and the sender if the sender is a client of this instance.
    Private(Vec<u64>, PrivateMessage, Option<u64>),
    /// A page of history: the client, the room, the request's `before`, whether older messages exist, and the messages.
    Page(u64, Rc<str>, u64, bool, Vec<(u64, MessageWithoutId)>),
    Typing(Rc<str>, u32, u64, Rc<str>),
    /// A request other than a join failed. Fields: the client, the reason, a detail, and the request's nonce.
    Rejected(u64, Box<str>, Rc<str>, Option<Rc<str>>),
    /// The current state of a room in which this instance may have missed events. Fields: the room, its epoch, the last
    /// message id, whether the messages are exactly the missed ones, the messages, and the members.
    Synced(Rc<str>, Rc<str>, u64, bool, Vec<(u64, MessageWithoutId)>, Vec<(u32, u64, Rc<str>)>),
}
