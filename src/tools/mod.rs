//! The other commands of the program: small tools that show the protocol at work, one frame or one rule at a time.
//!
//! | | |
//! |---|---|
//! | [`explain`] | draws frames that are given as bytes, and answers questions about RFC 6455 |
//! | [`poke`] | does one thing to a server, and says whether the answer was the right one |
//! | [`replay`] | shows again what `--record` kept of a connection |
//!
//! They do not know each other. What a server sends is taken apart by [`inbox`] and [`response`], bytes are read in
//! [`notation`], and what is found goes to the [`screen`].
//!
//! They use [`ws`](crate::ws) for the protocol and the [`trace`](crate::inspect)r to draw it, and plain blocking sockets:
//! a tool has one connection and may wait for it, so it needs no poll loop.

pub mod explain;
pub mod inbox;
pub mod notation;
pub mod poke;
pub mod replay;
pub mod response;
pub mod screen;

use clap::Subcommand;

use crate::ws::Limits;

/// The limits of a server are its own: a tool's tracer is to name broken rules, not limits.
const NO_LIMITS: Limits = Limits { message: usize::MAX, fragments: u32::MAX, binary: true };

/// A tool, and what it is asked.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Draws frames given as bytes; tells of a key, a close code, an opcode, a section of the RFC
    Explain(explain::Arguments),
    /// Does one thing to a WebSocket server, and says whether it answered as RFC 6455 asks
    Poke(poke::Arguments),
    /// Shows again, offline, what --record has kept of a connection, and whether it would end the same
    Replay(replay::Arguments),
}

impl Tool {
    /// Runs it, and writes what it finds to standard output. `true`: all was as it should be.
    ///
    /// # Errors
    /// A line for a person who asked something that makes no sense.
    pub fn run(self) -> Result<bool, String> {
        match self {
            Tool::Explain(arguments) => explain::run(&arguments),
            Tool::Poke(arguments) => poke::run(&arguments),
            Tool::Replay(arguments) => replay::run(&arguments),
        }
    }
}
