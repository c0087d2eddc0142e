//! The interface for wire inspection: the tracer, recordings, the page's inspector. An [`Observer`] sees the bytes of
//! one connection; a connection without an observer pays one branch per read and write. [`Observers`] chooses the
//! connections to observe, and serves clients that watch. The server does not know how observers use the bytes.

use std::rc::Rc;
use std::time::SystemTime;

use mio::Token;

use crate::ws::Limits;
use crate::ws::close::CloseCode;
use crate::ws::frame::Role;
use crate::ws::request::Rejection;

/// Receives the bytes and the stages of one connection.
pub trait Observer {
    /// Receives the bytes of one read (`from` the client) or of one write (`from` the server).
    fn bytes(&mut self, from: Role, bytes: &[u8]);

    fn stage(&mut self, stage: Stage<'_>);

    /// Reports that the TCP connection has closed, and why.
    fn closed(&mut self, reason: &str);

    /// Returns frames to queue instead of `frames`, with the same messages; `None` to queue `frames` unchanged.
    fn reframe(&mut self, frames: &[u8]) -> Option<Vec<u8>>;

    /// Input bytes that the observer holds. These bytes count towards `--max-buffered`.
    fn buffered(&self) -> usize;

    /// Whether the observer needs no more bytes. If so, the server drops the observer.
    fn is_done(&self) -> bool;
}

/// A stage that a connection has entered.
#[derive(Debug, Clone, Copy)]
pub enum Stage<'a> {
    /// The server accepted the request; the 101 comes next. `watches`: this client watches others, so do not show its
    /// frames. `has_welcome_field`: the client's welcome will carry [`Observers::welcome_field`].
    Upgraded { limits: Limits, username: Option<&'a Rc<str>>, watches: bool, has_welcome_field: bool },
    /// The server's Close frame is queued but not yet written.
    Closing,
}

/// Chooses the connections to observe, and serves clients that watch. The default methods observe nothing.
pub trait Observers {
    /// Starts a turn of the event loop. `_time` is the time of every event in the turn.
    fn begin_turn(&mut self, _time: SystemTime) {}

    /// Returns an observer for a newly accepted connection; `None` to leave the connection unobserved.
    fn accepted(&mut self, _connection: Token) -> Option<Box<dyn Observer>> {
        None
    }

    /// Returns an observer for an open connection, in response to [`Action::Attach`].
    fn attach(&mut self, _connection: Token, _open: OpenConnection) -> Option<Box<dyn Observer>> {
        None
    }

    fn removed(&mut self, _connection: Token) {}

    /// The name and value of an extra field in this connection's `welcome`, for the page's inspector.
    fn welcome_field(&mut self, _connection: Token) -> Option<(&'static str, String)> {
        None
    }

    /// Admits a client to the observers' endpoint. Rejects the client with 403 if the secret is wrong, was used before,
    /// or belongs to a connection that is no longer open.
    fn admit(&mut self, _client: Token, _secret: &str, _queued_bytes: QueuedBytes<'_>) -> Result<(), Rejection> {
        Err(Rejection::new(403, "Inspection is off on this server."))
    }

    /// Handles a text message from a client of the observers' endpoint.
    fn receive(&mut self, _client: Token, _text: &str, _queued_bytes: QueuedBytes<'_>) {}

    fn next_action(&mut self, _queued_bytes: QueuedBytes<'_>) -> Option<Action> {
        None
    }
}

impl Observers for () {}

/// Returns the number of bytes queued for a connection; `None` if the connection is not open.
pub type QueuedBytes<'a> = &'a dyn Fn(Token) -> Option<usize>;

/// The state of an open connection when an observer attaches.
#[derive(Debug, Clone, Copy)]
pub struct OpenConnection {
    pub limits: Limits,
    pub frames_received: u64,
    /// Frames sent or queued.
    pub frames_sent: u64,
}

/// An action that the observers request from the server.
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
