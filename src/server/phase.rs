//! Where a connection stands in its life, and what it is for.
//!
//! ```text
//!   Handshake ──101──▶ Open ──framing lost, both Closes passed, or hung up──▶ Draining ──▶ removed
//!       └──────────── a plain answer, or a refusal ──────────────────────────────▲
//! ```
//!
//! An enum with data: what belongs to one phase cannot be asked for in another.

use mio::Token;

use crate::config::Config;
use crate::ws::Limits;
use crate::ws::protocol::Protocol;
use crate::ws::request::HeadReader;

/// The longest command of an inspector, in bytes.
const MAX_COMMAND: usize = 1024;

/// Where a connection stands in its life.
#[derive(Debug)]
pub enum Phase {
    /// The request head is being received.
    Handshake(HeadReader),
    /// Upgraded: frames.
    Open(Open),
    /// Nothing more is said or understood. What is queued goes out, then the connection ends as it says.
    Draining(Ending),
}

/// An upgraded connection.
#[derive(Debug)]
pub struct Open {
    /// Its state machine.
    pub protocol: Protocol,
    /// What its messages are for.
    pub endpoint: Endpoint,
}

/// What the messages of a connection are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// They go to the chat.
    Chat,
    /// They come back as they were.
    Echo,
    /// They are commands about this connection, which is looked at.
    Inspect(Token),
}

/// How a connection ends once everything queued is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At once: both sides have said all they had to.
    Close,
    /// The write side is shut down, and input is thrown away until the peer ends it too. Closing with input unread
    /// would make the kernel send a reset, which can destroy our last words before the peer has read them.
    Linger,
    /// As `Linger`, with the write side shut down already.
    Shut,
}

impl Endpoint {
    /// What it takes of one client.
    pub fn limits(self, config: &Config) -> Limits {
        let message = match self {
            Endpoint::Echo => config.max_echo,
            Endpoint::Chat => config.max_message,
            Endpoint::Inspect(_) => MAX_COMMAND,
        };
        Limits { message, fragments: config.max_fragments, binary: self == Endpoint::Echo }
    }
}
