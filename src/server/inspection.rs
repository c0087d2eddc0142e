//! The page's inspector: who may look at which connection, and what it may ask for.
//!
//! `welcome` carries a ticket: 128 random bits, and in front of them the number of the connection that they are for. It
//! is good once. So nobody can look at a connection but who was sent its welcome, and there is no table of tickets: a
//! connection keeps its own.
//!
//! The subtle thing: a tap must begin between two messages, since it would take the middle of one for a header. Nearly
//! always that is at once; else the inspector waits.

use std::collections::VecDeque;
use std::time::SystemTime;

use base64::prelude::{BASE64_URL_SAFE, Engine};
use mio::Token;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use super::phase::Phase;
use super::{FIRST_CLIENT, Server};
use crate::chat::TokenMap;
use crate::inspect::{Record, Records, Tap, What, json};
use crate::ws::close::CloseCode;
use crate::ws::frame::{self, Opcode, Role};
use crate::ws::request::Rejection;

/// How many handshakes are kept for inspectors to come: those of the newest connections.
const KEPT: usize = 256;
/// The longest request that is kept, in bytes: a browser's has less than one thousand.
const MAX_KEPT: usize = 8 * 1024;
/// The random bits of a ticket, in bytes.
const TICKET: usize = 16;
/// How much randomness is fetched from the system at once, in bytes: a system call for each connection would be many.
const POOL: usize = 4096;
/// Nothing more is asked of a connection for which this much waits, in bytes.
const BUSY: usize = 4096;

/// The secret of a connection's ticket.
pub type Secret = [u8; TICKET];

/// The inspectors, and what they need.
#[derive(Debug)]
pub struct Inspection {
    is_on: bool,
    pool: Vec<u8>,
    kept: VecDeque<Handshake>,
    /// By the connection that is looked at.
    inspectors: TokenMap<Inspector>,
    /// Connections whose inspectors wait for the end of a message.
    pending: Vec<Token>,
}

/// A handshake that has passed.
#[derive(Debug)]
struct Handshake {
    token: Token,
    time: SystemTime,
    request: Vec<u8>,
    answer: Vec<u8>,
}

#[derive(Debug)]
struct Inspector {
    token: Token,
    /// Records that found no room in its outbox.
    missed: u64,
}

impl Inspection {
    /// With or without tickets.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(is_on: bool) -> Result<Inspection, String> {
        let mut inspection = Inspection {
            is_on,
            pool: Vec::new(),
            kept: VecDeque::new(),
            inspectors: TokenMap::default(),
            pending: Vec::new(),
        };
        // Where the system has none it is said at start, not to a client.
        if is_on {
            inspection.fill().map_err(|error| format!("no randomness for tickets: {error}"))?;
        }
        Ok(inspection)
    }

    fn fill(&mut self) -> Result<(), getrandom::Error> {
        let mut pool = vec![0; POOL];
        getrandom::fill(&mut pool)?;
        self.pool = pool;
        Ok(())
    }

    /// The secret for a new connection; `None` where inspection is off.
    pub fn secret(&mut self) -> Option<Secret> {
        if self.is_on && self.pool.len() < TICKET {
            self.fill().ok()?;
        }
        let rest = self.is_on.then(|| self.pool.len() - TICKET)?;
        let secret = self.pool[rest..].first_chunk().copied();
        self.pool.truncate(rest);
        secret
    }

    /// Keeps a handshake for an inspector to come.
    pub fn keep(&mut self, token: Token, request: &[u8], answer: &[u8], time: SystemTime) {
        if request.len() > MAX_KEPT {
            return;
        }
        // The oldest makes room, and gives its buffers to the newest.
        let oldest = if self.kept.len() < KEPT { None } else { self.kept.pop_front() };
        let (mut kept_request, mut kept_answer) =
            oldest.map(|oldest| (oldest.request, oldest.answer)).unwrap_or_default();
        kept_request.clear();
        kept_request.extend_from_slice(request);
        kept_answer.clear();
        kept_answer.extend_from_slice(answer);
        self.kept.push_back(Handshake { token, time, request: kept_request, answer: kept_answer });
    }

    /// The records of a handshake, if it is still kept.
    fn recall(&self, token: Token) -> Vec<Record> {
        let records = Records::default();
        if let Some(kept) = self.kept.iter().rev().find(|handshake| handshake.token == token) {
            let Handshake { time, request, answer, .. } = kept;
            let mut tap = Tap::new(number(token), records.clone());
            tap.see(Role::Client, request, *time);
            tap.see(Role::Server, answer, *time);
        }
        records.take()
    }
}

/// The number of a connection, as in `#7`: clients count from 1.
pub fn number(token: Token) -> usize {
    token.0 + 1 - FIRST_CLIENT
}

/// The connection with a number.
pub fn token(number: usize) -> Token {
    Token(number.saturating_add(FIRST_CLIENT - 1))
}

/// A ticket as it is sent: the number of the connection in eight bytes, then the secret, in base64.
pub fn ticket(connection: Token, secret: &Secret) -> String {
    let mut bytes = [0; 8 + TICKET];
    bytes[..8].copy_from_slice(&(number(connection) as u64).to_be_bytes());
    bytes[8..].copy_from_slice(secret);
    BASE64_URL_SAFE.encode(bytes)
}

impl Server {
    /// The connection that a ticket is for, if it is good.
    ///
    /// # Errors
    /// 403
    pub(super) fn find_by_ticket(&self, ticket: &str) -> Result<Token, Rejection> {
        let find = |ticket: &[u8]| {
            let (number, secret) = ticket.split_first_chunk()?;
            let token = token(u64::from_be_bytes(*number).try_into().ok()?);
            let connection = self.connections.get(&token).filter(|connection| connection.is_open())?;
            bool::from(connection.secret.as_ref()?.ct_eq(secret)).then_some(token)
        };
        let found = BASE64_URL_SAFE.decode(ticket).ok().and_then(|ticket| find(&ticket));
        let body =
            "The ticket is wrong, or was used before. A new one comes with each welcome, where inspection is on.";
        found.ok_or_else(|| Rejection::new(403, body))
    }

    /// Lets an upgraded connection look at another, whose ticket it brought.
    pub(super) fn begin_inspection(&mut self, inspector: Token, inspected: Token) {
        if let Some(connection) = self.connections.get_mut(&inspected) {
            connection.secret = None; // good once
        }
        let inspection = &mut self.watchers.inspection;
        inspection.inspectors.insert(inspected, Inspector { token: inspector, missed: 0 });
        inspection.pending.push(inspected);
        for record in self.watchers.inspection.recall(inspected) {
            self.show(inspected, &record);
        }
        self.attach_pending();
    }

    /// Taps the connections that have an inspector waiting, if they are between two messages.
    pub(super) fn attach_pending(&mut self) {
        let watchers = &mut self.watchers;
        for token in std::mem::take(&mut watchers.inspection.pending) {
            match self.connections.get_mut(&token) {
                Some(connection) if connection.is_between_messages() => {
                    if let Phase::Open(open) = &connection.phase {
                        watchers.tap(token, &mut connection.watch, open.endpoint.limits(&self.config));
                    }
                }
                Some(_) => watchers.inspection.pending.push(token),
                None => {}
            }
        }
    }

    /// Shows a record to the inspector of a connection, if it has one and there is room.
    pub(super) fn show(&mut self, inspected: Token, record: &Record) {
        let Some(inspector) = self.watchers.inspection.inspectors.get_mut(&inspected) else { return };
        let connection = self.connections.get_mut(&inspector.token);
        let Some(connection) = connection.filter(|connection| connection.is_open()) else {
            return self.give_up_inspection(inspected);
        };
        // How it ended is always told.
        let is_last = matches!(record.what, What::End(_));
        if connection.outbox.len() > self.config.max_outbox / 2 && !is_last {
            inspector.missed += 1;
            return;
        }
        let missed = std::mem::take(&mut inspector.missed);
        if missed > 0 {
            let record = Record { what: What::Missed(missed), ..record.clone() };
            connection.outbox.push_own(|out| append(out, &json::value(&record)));
        }
        connection.outbox.push_own(|out| append(out, &json::value(record)));
        let token = inspector.token;
        self.queue_write(token);
    }

    /// Does what an inspector asks of the connection that it looks at.
    pub(super) fn receive_command(&mut self, inspector: Token, inspected: Token, text: &str) {
        let command: Value = serde_json::from_str(text).unwrap_or_default();
        let connection = self.connections.get_mut(&inspected).filter(|connection| connection.is_open());
        let complaint = match (command["do"].as_str(), connection) {
            (Some("ping"), Some(connection)) if connection.outbox.len() > BUSY => "too much waits there to be read",
            (Some("ping"), Some(_)) => return self.ping(inspected),
            (Some("fragment"), Some(connection)) => {
                connection.fragments_next = true;
                return;
            }
            (Some("ping" | "fragment"), None) => "that connection is over",
            _ => "this is no command: there is {\"do\":\"ping\"} and {\"do\":\"fragment\"}",
        };
        if let Some(connection) = self.connections.get_mut(&inspector) {
            connection.outbox.push_own(|out| append(out, &json!({ "record": "error", "message": complaint })));
            self.queue_write(inspector);
        }
    }

    /// A connection has gone: its inspector has nothing more to see.
    pub(super) fn end_inspection(&mut self, inspected: Token) {
        if let Some(inspector) = self.watchers.inspection.inspectors.remove(&inspected) {
            self.close(inspector.token, CloseCode::NORMAL, "the inspected connection is over");
        }
    }

    /// An inspector has gone: the connection that it looked at is left alone.
    fn give_up_inspection(&mut self, inspected: Token) {
        self.watchers.inspection.inspectors.remove(&inspected);
        if let Some(connection) = self.connections.get_mut(&inspected) {
            self.watchers.untap(&mut connection.watch);
        }
    }
}

fn append(out: &mut Vec<u8>, record: &Value) {
    frame::append(out, Opcode::Text, record.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_handshakes_are_kept_if_they_are_not_too_long() {
        let mut inspection = Inspection::new(true).unwrap();
        let request = |len| ["GET / HTTP/1.1\r\nX: ", &"x".repeat(len), "\r\n\r\n"].concat();
        for number in 1..=KEPT + 1 {
            inspection.keep(token(number), request(1).as_bytes(), b"", SystemTime::UNIX_EPOCH);
        }
        let last = token(KEPT + 2);
        inspection.keep(last, request(MAX_KEPT).as_bytes(), b"", SystemTime::UNIX_EPOCH);
        let is_kept = |token| !inspection.recall(token).is_empty();
        assert!(!is_kept(token(1)) && is_kept(token(2)) && is_kept(token(KEPT + 1)) && !is_kept(last));
    }
}
