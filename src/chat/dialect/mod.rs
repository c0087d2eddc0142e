//! The JSON shapes of the chat, one file a shape: text ⇄ [`Command`] and [`Notice`].
//!
//! Which dialect a client speaks is decided by the endpoint it came to, and stays so. A shape knows no rooms, no
//! members and no frames; it reads one text and writes one text.

mod events;

use super::command::{Command, Complaint, Notice};

/// The shape that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"event": …, "data": …}`: the native one.
    Events,
}

impl Dialect {
    /// The name that a client may offer in `Sec-WebSocket-Protocol`.
    pub fn subprotocol(self) -> &'static str {
        match self {
            Dialect::Events => "chat.events",
        }
    }

    /// Reads what a client sent.
    ///
    /// # Errors
    /// What is wrong with it, to be told to the client.
    pub fn read(self, text: &str) -> Result<Command<'_>, Complaint> {
        match self {
            Dialect::Events => events::read(text),
        }
    }

    /// Appends a notice in this dialect to `out`.
    pub fn write(self, notice: &Notice, out: &mut Vec<u8>) {
        match self {
            Dialect::Events => events::write(notice, out),
        }
    }
}
