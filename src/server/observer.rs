//! The interface for wire inspection by the tracer, recordings and the page's inspector. An [`Observer`] sees the bytes
//! of one connection. Without an observer, each read and write costs one extra branch. [`Observers`] chooses which
//! connections to observe, and serves clients that watch. The server does not know how observers use the bytes.

use std::rc::Rc;
use std::time::SystemTime;

use mio::Token;

use crate::ws::close::CloseCode;
use crate::ws::frame::Role;
use crate::ws::protocol::Limits;
use crate::ws::request::Rejection;

pub trait Observer {
    /// The server calls this once per read (`from` is the client) and once per write (`from` is the server).
    fn bytes(&mut self, from: Role, bytes: &[u8]);

    fn stage(&mut self, stage: Stage<'_>);

    fn closed(&mut self, reason: &str);

    /// Returns different frames with the same messages, to queue instead; `None` to queue `frames` unchanged.
    fn reframe(&mut self, frames: &[u8]) -> Option<Vec<u8>>;

    /// Input bytes held by the observer, which count towards `--max-buffered`.
    fn buffered(&self) -> usize;

    /// Whether the observer needs no more bytes. If so, the server drops the observer.
    fn is_done(&self) -> bool;
}

#[derive(Debug, Clone, Copy)]
pub enum Stage<'a> {
    /// The server accepted the request and will send the 101. `is_inspector`: this client is_inspector others, so do not show
    /// this client's frames. `has_welcome`: the client will receive a welcome, which contains a session.
    /// `has_welcome_field`: the welcome will also carry [`Observers::welcome_field`].
    Upgraded {
        limits: Limits,
        username: Option<&'a Rc<str>>,
        is_inspector: bool,
        has_welcome: bool,
        has_welcome_field: bool,
    },
    /// The server's Close frame is queued but not yet written.
    Closing,
}

/// The default methods observe nothing.
pub trait Observers {
    /// `_time` is the time of every event in the turn.
    fn begin_turn(&mut self, _time: SystemTime) {}

    /// Returns `None` to leave the new connection unobserved.
    fn accepted(&mut self, _connection: Token) -> Option<Box<dyn Observer>> {
        None
    }

    /// Returns an observer for an open connection, in response to [`Action::Attach`]. Frames sent include queued ones.
    fn attach(&mut self, _: Token, _: Limits, _frames_received: u64, _frames_sent: u64) -> Option<Box<dyn Observer>> {
        None
    }

    fn removed(&mut self, _connection: Token) {}

    /// The name and value of an extra field in this connection's `welcome`, for the page's inspector.
    fn welcome_field(&mut self, _connection: Token) -> Option<(&'static str, String)> {
        None
    }

    /// Rejects a client of the observers' endpoint with 403 if the secret is wrong, was used before, or belongs to a
    /// connection that is no longer open.
    fn admit(&mut self, _client: Token, _secret: &str, _queued_bytes: QueuedBytes<'_>) -> Result<(), Rejection> {
        Err(Rejection::new(403, "Inspection is off on this server."))
    }

    fn receive(&mut self, _client: Token, _text: &str, _queued_bytes: QueuedBytes<'_>) {}

    fn next_action(&mut self, _queued_bytes: QueuedBytes<'_>) -> Option<Action> {
        None
    }
}

impl Observers for () {}

/// Returns the number of bytes queued for a connection; `None` if the connection is not open.
pub type QueuedBytes<'a> = &'a dyn Fn(Token) -> Option<usize>;

#[derive(Debug)]
pub enum Action {
    /// Send a text message to a client of the observers' endpoint.
    Send(Token, String),
    /// Attach an observer to an open connection, between two messages.
    Attach(Token),
    Detach(Token),
    Ping(Token),
    Close(Token, CloseCode, &'static str),
}
