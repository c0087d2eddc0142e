//! The interface for traces, recordings and the page's inspector. An [`Observer`] receives the bytes of one connection.
//! [`Observers`] decides which connections to observe, and serves inspectors: clients that observe other connections.

use std::{net::SocketAddr, rc::Rc, time::SystemTime};

use mio::Token;

use crate::{ws::close::CloseCode, ws::frame::Role, ws::protocol::Limits, ws::request::Rejection};

pub trait Observer {
    /// Processes the bytes that the server has just read (`from` is the client) or written (`from` is the server).
    fn observe(&mut self, from: Role, bytes: &[u8]);

    fn set_stage(&mut self, stage: ObservedStage<'_>);

    fn finish(&mut self, reason: &str);

    /// Returns frames to send instead of `frames`, such as the same message in fragments. `None` keeps `frames`.
    fn reframe(&mut self, frames: &[u8]) -> Option<Vec<u8>>;

    /// Returns the size of the observer's buffers in bytes, which counts towards `--max-buffered`.
    fn buffered_bytes(&self) -> usize;

    /// Returns true once the observer needs no more bytes. The server then drops the observer.
    fn is_done(&self) -> bool;
}

#[derive(Debug, Clone, Copy)]
pub enum ObservedStage<'a> {
    /// The server will send the 101 response. If `has_welcome`, a `welcome` event with the client's secret `session`
    /// follows the join. If `has_ticket`, the `welcome` event also contains [`Observers::welcome_field`].
    Upgraded { limits: Limits, username: Option<&'a Rc<str>>, is_inspector: bool, has_welcome: bool, has_ticket: bool },
    /// The server starts the closing handshake. The server's Close frame is not on the wire yet.
    Closing,
}

pub trait Observers {
    fn begin_turn(&mut self, now: SystemTime);

    fn create_observer(&mut self, connection: Token, peer: SocketAddr) -> Option<Box<dyn Observer>>;

    /// Whether a server that requires access tokens also requires one from this client.
    fn needs_token(&self, connection: Token) -> bool;

    /// Returns an observer for an open connection. `received` and `sent` count the frames so far. The server calls
    /// `attach` only between two messages.
    fn attach(&mut self, connection: Token, limits: Limits, received: u64, sent: u64) -> Option<Box<dyn Observer>>;

    fn forget(&mut self, connection: Token);

    /// Returns the name and value of the `welcome` field that carries the connection's ticket for the inspector.
    fn welcome_field(&mut self, connection: Token) -> Option<(&'static str, String)>;

    /// Rejects an inspector (403) if its ticket is wrong or was used before, or if the observed connection is not open.
    fn admit_inspector(&mut self, client: Token, ticket: &str, queued_bytes: QueuedBytes<'_>) -> Result<(), Rejection>;

    fn receive(&mut self, client: Token, text: &str, queued_bytes: QueuedBytes<'_>);

    fn next_action(&mut self, queued_bytes: QueuedBytes<'_>) -> Option<Action>;
}

/// Returns the number of bytes queued for a connection; `None` if the connection is not open.
pub type QueuedBytes<'a> = &'a dyn Fn(Token) -> Option<usize>;

#[derive(Debug)]
pub enum Action {
    Send(Token, String),
    Attach(Token), // the server attaches an observer once the connection is between two messages
    Detach(Token),
    Ping(Token, String), // the payload of a Ping, at most 125 bytes (§5.5)
    Close(Token, CloseCode, &'static str),
}
