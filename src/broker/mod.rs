//! The broker puts the events of each room in order and keeps the room's history. The chat submits a [`Request`] and
//! does not wait: a broker may return the [`RoomEvent`] later. For each [`RoomEvent`], the chat updates its tables and
//! creates both the sender's echo and the events for the other members. Every broker guarantees:
//!
//! - All members of a room see the room's events in the same order.
//! - The requests of one client take effect, and their events arrive, in the order of submission.
//! - The broker silently drops a request from a client that is not a member of any room, except `Join` and `Announce`.
//! - Every join results in exactly one [`RoomEvent::Joined`] or [`RoomEvent::JoinRejected`]. Every client that joined
//!   causes exactly one [`RoomEvent::Left`], when it leaves or is replaced.

pub mod log;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sqlite;

use std::net::{IpAddr, Ipv6Addr};
use std::{collections::HashMap, hash::BuildHasherDefault, rc::Rc, time::Duration};

use mio::Token;
use serde::{Deserialize, Serialize};

use crate::maps::CounterHasher;

pub type Random = Box<dyn FnMut(&mut [u8])>;
/// Identifies an access token and the username that the token is bound to, without revealing the token. All instances
/// of the server compute the same id for the same token and username.
pub type CredentialId = std::num::NonZeroU64;
pub type RoomMap<T> = HashMap<RoomId, T, BuildHasherDefault<CounterHasher>>;

#[derive(Debug, Clone, Copy)]
pub struct NameRules {
    pub key: fn(&Rc<str>) -> Rc<str>, // returns a username's comparison key, such as `alice` for `Alice` and `ALICE`
    pub may_share: fn(&str) -> bool,  // whether several clients may use a username at the same time
}

pub trait Broker {
    /// Checks a join before the handshake succeeds. A later `submit` may still reject the join.
    fn check_join(&self, join: &Join) -> Result<(), BrokerError>;
    /// Submits a request. `next_event` returns the resulting events, possibly in a later turn of the event loop. `now`
    /// is the time since the server's start.
    fn submit(&mut self, client: Token, request: Request, now: Duration);
    fn next_event(&mut self) -> Option<RoomEvent>;
    /// The total size, in bytes, of the requests whose events the broker has not returned yet. 0 if there are none.
    fn queued_bytes(&self) -> usize {
        0
    }
    fn begin_turn(&mut self, _now: Duration) {}
    /// When `begin_turn` must be called next, as the time since the server's start; `None` if there is no deadline.
    fn next_turn_at(&self) -> Option<Duration> {
        None
    }
    /// Whether the broker can currently execute requests promptly. `false`, for example, while Redis is unreachable.
    fn is_available(&self) -> bool {
        true
    }
}

/// Identifies a room while it has members on this server. The server never reuses an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(pub u64);

/// A room member, identified by its connection to this server or to another. Local members sort before remote ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemberId {
    Local(Token),
    Remote { instance: u32, connection: u64 },
}

/// The unit to which per-user limits apply. All connections of a user share one rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum User {
    Connection(Token),
    Username(Rc<str>), // `NameRules::key` of the username that the client's access token is bound to
    Peer { credential: Option<CredentialId>, address: IpAddr },
}

/// Returns the unit to which per-address limits apply: an IPv4 address, or the /64 network of an IPv6 address, because
/// an IPv6 customer controls at least a /64 network.
pub fn network_of(address: IpAddr) -> IpAddr {
    let IpAddr::V6(address) = address.to_canonical() else { return address.to_canonical() };
    Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
}

/// A client's request; the chat has already validated its names and texts. A client holds one username: that of its
/// last accepted message, or of its join if it has sent no message. The client receives private messages to that
/// username. No other client can use a held username, unless [`NameRules::may_share`] allows clients to share it.
#[derive(Debug)]
pub enum Request {
    Join(Join),
    Leave,
    Switch { room: Rc<str> }, // a switch to the client's current room does nothing
    Publish(Message),
    Private(PrivateMessage),
    History { before: u64, limit: usize }, // requests up to `limit` messages of the room with ids less than `before`
    Typing { username: Rc<str> },
    Announce { room: Rc<str>, message: Message }, // a message from the operator, who is not a member of the room
}

#[derive(Debug, Clone)]
pub struct Join {
    pub username: Rc<str>,
    /// Whether the token is bound to `username`. If so, and clients may not share it, the client replaces its holder.
    pub is_bound: bool,
    pub session: Option<Session>, // session of the client's older connection, whose username the client may take over
    pub room: Rc<str>,
    pub user: User,                 // a room that the join creates counts towards this user's room limit
    pub client_id: Option<Rc<str>>, // if present, the client replaces an older client with the same id
    pub credential: Option<CredentialId>, // the access token's id; `None` with a JWT and with `--open`
    pub resume: Option<Resume>,
}

impl Join {
    pub fn new(username: &str, room: &str, user: User) -> Join {
        let (username, room) = (username.into(), room.into());
        Join { username, is_bound: false, session: None, room, user, client_id: None, credential: None, resume: None }
    }
}

/// A secret that proves ownership of an older connection. The broker generates one for a join without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session(pub [u8; 16]);

impl Session {
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Where a client resumes after a reconnect: after message `since`, in the history that `epoch` identifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    pub epoch: String,
    pub since: u64,
}

/// A message to a room. Serializes to the JSON of the `events` dialect.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    pub username: Rc<str>,
    pub text: Box<str>,
    pub id: u64,       // message ids count from 1 in each room; 0 until the broker assigns an id
    pub time: Rc<str>, // send time: UTC, RFC 3339, milliseconds; the same for all messages of an event-loop turn
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Rc<str>>, // the sender chooses the nonce, to recognize the echo of its own message
}

/// A message to all connections with one username. The broker never stores private messages.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateMessage {
    pub from: Rc<str>,
    pub to: Rc<str>,
    pub text: Box<str>,
    pub time: Rc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Rc<str>>,
}

/// The part of a room's history that a client receives when it joins or switches to the room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backlog {
    pub epoch: Rc<str>, // identifies the history that the message ids belong to
    pub last_id: u64,   // id of the room's newest message; 0 if the room has no messages yet
    pub resumed: bool,  // whether `messages` are exactly those that the client missed
    #[serde(rename = "history")]
    pub messages: Vec<Rc<Message>>, // sorted by id, the oldest message first
}

/// Messages of a room with ids less than `before`. Serializes to the JSON of the `events` dialect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page {
    pub room: Rc<str>,
    pub before: u64,
    pub messages: Vec<Rc<Message>>, // the newest messages with ids less than `before`, oldest first
    pub more: bool,                 // whether messages older than `messages` exist
}

#[derive(Debug, Clone)]
pub enum RoomEvent {
    /// A room is about to get its first member on this server. `members` are the members on other instances.
    Opened { room: RoomId, name: Rc<str>, members: Vec<(MemberId, Rc<str>)> },
    /// A client of this server has joined room `to`. If the client switched rooms, `from` is the room that it left.
    Joined { client: Token, session: Session, from: Option<RoomId>, to: RoomId, backlog: Backlog },
    /// A client of another instance has joined the room, or has switched to it from another room.
    RemoteJoined { room: RoomId, member: MemberId, username: Rc<str> },
    /// A member left or was replaced by a newer connection. The room closes after its last local member has left.
    Left { room: RoomId, member: MemberId },
    /// The broker opened the room only to publish the operator's message. It has no local members, so it closes again.
    Closed { room: RoomId },
    /// Every member of the room receives the message. `client` is the sender, or `None` if the sender is remote.
    Published { room: RoomId, client: Option<Token>, message: Rc<Message> },
    /// The history already has a message with this username and nonce. Only `client` receives the stored message.
    Duplicate { client: Token, message: Rc<Message> },
    /// A private message. `recipients`: the sender and this server's clients with the username `message.to`, each once.
    Private { recipients: Vec<Token>, message: Rc<PrivateMessage> },
    /// A page of history. Only `client`, which requested the page, receives the event.
    History { client: Token, page: Page },
    /// A member is typing. Every other member receives the event. `client` is `None` if the typing member is remote.
    Typing { room: RoomId, client: Option<Token>, username: Rc<str> },
    /// The join failed. The broker drops all later requests from the client.
    JoinRejected { client: Token, error: BrokerError },
    /// A request other than a join failed. The member stays in its room.
    Rejected { client: Token, error: BrokerError, nonce: Option<Rc<str>> },
    /// The chat may have missed events in the room, so it must send the room's current state to the room's local
    /// members. `members` lists the members on other instances.
    Resynchronized { room: RoomId, members: Vec<(MemberId, Rc<str>)>, backlog: Backlog },
    /// A message from the client may or may not have been published. The client must reconnect and resend the message.
    FateUnknown { client: Token },
    /// The broker can no longer store messages, and returns no more events.
    StorageFailed { reason: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerError {
    NameInUse,
    ClientIdInUse, // another client, with a different token or JWT subject, has joined with the same client id
    TooManyRooms,
    NoSuchUser(Rc<str>),
    Unavailable, // the broker could not accept the request in time
    NotStored,   // the broker neither stored nor sent the message; the client may retry with the same nonce
}
