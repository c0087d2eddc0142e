//! The command-line tools: [`explain`] draws frames from their bytes, [`poke`] runs test cases against a server,
//! [`replay`] draws a recording, `history` reads a history file, `admin` sends an operator's requests, [`health`]
//! checks that a server responds, and [`packaging`] prints completion scripts and the man page.
//!
//! The tools do not depend on each other, but share modules: [`notation`] parses bytes given as text, [`url`] parses
//! the URL of a server, [`inbox`] parses a server's bytes as a client does, [`extensions`] checks which extensions the
//! server accepted, and [`screen`] prints. A tool has at most one connection at a time and may block, so no tool needs
//! a poll loop.

#[cfg(feature = "metrics")]
pub mod admin;
#[cfg(feature = "tls")]
mod any_certificate;
pub mod explain;
pub mod extensions;
pub mod health;
#[cfg(feature = "sqlite")]
pub mod history;
pub mod inbox;
pub mod notation;
pub mod packaging;
pub mod poke;
pub mod replay;
pub mod screen;
pub mod url;

use std::time::{Duration, SystemTime};

use clap::{Command, Subcommand};

use crate::inspect::{Record, Records, Tap};
use crate::ws::frame::Role;
use crate::ws::protocol::Limits;

#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Draw WebSocket frames from their bytes, check a handshake, or look up a close code, opcode or RFC section
    Explain(explain::Arguments),
    /// Test a WebSocket server with valid and hostile input, and check its responses against RFC 6455
    Poke(poke::Arguments),
    /// Show a connection recorded with --record, and check that this version reacts as the recorded server did
    Replay(replay::Arguments),
    /// Export, check or copy a history file written with --history-db
    #[cfg(feature = "sqlite")]
    History(history::Arguments),
    /// List, remove and ban clients of a server started with --admin, or send a message to a room
    #[cfg(feature = "metrics")]
    Admin(admin::Arguments),
    /// Check that a server responds, for container and proxy health checks
    Health(health::Arguments),
    /// Print a completion script for bash, zsh, fish, PowerShell or elvish
    Completions(packaging::CompletionArguments),
    /// Print the man page
    Man(packaging::ManArguments),
}

impl Tool {
    /// Runs the tool, which prints its results to standard output. Returns `Ok(false)` if a check failed. `command`
    /// defines wirechat's whole command line, for completion scripts and the man page.
    ///
    /// # Errors
    /// A one-line message, for example if an argument is invalid, a file is unreadable or the server is unreachable.
    pub fn run(self, command: Command) -> Result<bool, String> {
        match self {
            Tool::Explain(arguments) => explain::run(&arguments),
            Tool::Poke(arguments) => poke::run(&arguments),
            Tool::Replay(arguments) => replay::run(&arguments),
            #[cfg(feature = "sqlite")]
            Tool::History(arguments) => history::run(&arguments),
            #[cfg(feature = "metrics")]
            Tool::Admin(arguments) => admin::run(&arguments),
            Tool::Health(arguments) => health::run(&arguments),
            Tool::Completions(arguments) => packaging::print_completions(&arguments, command),
            Tool::Man(_) => packaging::print_man_page(command),
        }
    }
}

/// Turns the bytes of one connection into trace records.
#[derive(Debug)]
pub struct Tracer {
    tap: Tap,
    records: Records,
}

const TOOL_LIMITS: Limits = Limits { message: usize::MAX, fragments: u32::MAX, accepts_binary: true, deflates: false };

impl Tracer {
    /// A tracer that expects the opening handshake first.
    pub fn new() -> Tracer {
        let records = Records::default();
        Tracer::from_parts(Tap::new(1, records.clone()), records)
    }

    /// A tracer that expects frames, not a handshake.
    pub fn open() -> Tracer {
        let records = Records::default();
        Tracer::from_parts(Tap::open(1, records.clone()), records)
    }

    /// A tracer for frames between endpoints that have negotiated permessage-deflate.
    pub fn open_with_deflate() -> Tracer {
        let mut tracer = Tracer::open();
        tracer.tap.set_limits(Limits { message: 16 << 20, deflates: true, ..TOOL_LIMITS });
        tracer
    }

    fn from_parts(mut tap: Tap, records: Records) -> Tracer {
        // Set no limits, because limits are each server's own choice: a trace must report only violations of the RFC.
        tap.set_limits(TOOL_LIMITS);
        Tracer { tap, records }
    }

    pub fn trace(&mut self, role: Role, bytes: &[u8], time: SystemTime) -> Vec<Record> {
        self.tap.observe(role, bytes, time);
        self.records.take()
    }

    /// Ends the trace, and returns the last records. The final record shows `cause`, the reason for the end.
    pub fn end(&mut self, cause: &str, time: SystemTime) -> Vec<Record> {
        self.tap.finish(cause, time);
        self.records.take()
    }
}

impl Default for Tracer {
    fn default() -> Tracer {
        Tracer::new()
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::from_millis(10), Duration::from_secs(600))
}

fn parse_duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if (min..=max).contains(&duration) => Ok(duration),
        Ok(_) => {
            let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
            Err(format!("must be from {min} to {max}"))
        }
        Err(_) => Err("must be a duration, such as 200ms or 5s".into()),
    }
}
