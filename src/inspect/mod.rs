//! Shows what is on the wire, for `--trace`, `--record`, the page's inspector and the command-line tools. A [`Tap`]
//! turns the raw bytes of one connection, in both directions, into [`Record`]s. The tap parses frames with the
//! protocol's [`FrameHeader`](crate::ws::frame::FrameHeader), but tracks its own position in the stream, so the
//! protocol knows nothing about taps. The `text` and `json` modules format the records.
//!
//! ```text
//!   bytes of each read ───▶ ┌─────┐           ┌─ text   one line per frame, or its header drawn field by field
//!                           │ Tap │─▶ Record ─┤
//!   bytes of each write ──▶ └─────┘           └─ json   for the page's inspector
//! ```
//!
//! Reading order: this file and [`frame`] (the records), [`scan`] and [`tap`] (from bytes to records), [`checker`],
//! [`failure`] and [`lifecycle`] (broken rules, states), [`text`], [`json`] and [`escape`] (output), [`secret`] (what
//! is redacted), [`filter`], [`recorder`] and [`recording`] (`--trace-filter`, `--record`), [`observer`] and
//! [`inspection`] (the link to the server), [`reframe`] (fragments messages), [`cases`] (test cases for inspectors).

pub mod cases;
pub mod checker;
pub mod escape;
pub mod failure;
pub mod filter;
pub mod frame;
pub mod inflated;
pub mod inspection;
pub mod json;
pub mod lifecycle;
pub mod observer;
pub mod recorder;
pub mod recording;
pub mod reframe;
pub mod scan;
pub mod secret;
pub mod tap;
pub mod text;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::SystemTime;

use sha1::{Digest, Sha1};

use crate::ws::frame::Role;
use crate::ws::handshake::{GUID, accept_value};
pub use frame::{Frame, Header, LengthForm, Parts, Position};
pub use observer::{InspectObservers, InspectOptions, Trace};
pub use tap::Tap;

/// Maximum number of bytes of a payload or response body that a record stores.
pub const MAX_SHOWN_BYTES: usize = 1024;

// Maximum number of records in a `Records` list. It is above the 10,922 empty client frames that one read of 64 KiB
// can contain, and limits a list of such records to about 5 MB, because each takes about 300 bytes.
const MAX_RECORDS: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The connection's number. A trace shows number 7 as `#7`.
    pub connection: usize,
    /// The username, for `--trace-filter`. `None` before [`Tap::upgrade`], and on an endpoint without usernames.
    pub user: Option<Rc<str>>,
    /// When the tap reported the record. All records from the same read or write have the same time.
    pub time: SystemTime,
    pub kind: RecordKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RecordKind {
    /// The request head (§4.1), possibly incomplete.
    Request(Head),
    Response(Response),
    Frame(Frame),
    State(StateChange),
    Failure(Failure),
    /// The TCP connection closes (§7.1.1, §7.1.4).
    End(End),
    /// The number of records that are missing, for example because a record list was full; 1 if the number is unknown.
    Missed(u64),
    /// The number of frames, in both directions, that passed before the tap or the inspector was attached.
    Earlier(u64),
}

/// The head of an HTTP message. The tap redacts the secrets in a request head before it adds the head to a [`Record`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The raw bytes of the HTTP head, including the final blank line if it has arrived.
    pub bytes: Vec<u8>,
    /// Size in bytes of any blank lines before the request line or status line.
    pub leading_blank_len: usize,
    pub is_complete: bool,
    pub parts: Parts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub head: Head,
    /// The HTTP status code; 0 if the status line contains none.
    pub status: u16,
    /// The start of the response body, up to [`MAX_SHOWN_BYTES`] bytes; empty for a 101. Contains only bytes that the
    /// server wrote together with the end of the head.
    pub body: Vec<u8>,
    /// How to compute the accept value; `None` unless the response is a 101 and the request had a `Sec-WebSocket-Key`.
    pub accept: Option<AcceptSteps>,
}

/// The steps that compute the accept value from the client's key (§1.3, §4.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptSteps {
    /// The `Sec-WebSocket-Key` in base64, as sent: §4.2.2 hashes this text without decoding it.
    pub key: String,
    /// The key followed by the GUID of §1.3.
    pub key_and_guid: String,
    pub sha1: [u8; 20],
    /// The SHA-1 hash in base64: the accept value that the response must contain.
    pub accept: String,
    /// The accept value in the response, which may be wrong or absent.
    pub response_accept: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    pub from: State,
    pub to: State,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// §4.1: the handshake is not complete.
    Connecting,
    /// §4.1: the handshake succeeded, and both endpoints may send data.
    Open,
    /// §7.1.3: one endpoint has sent a Close.
    Closing,
    /// §7.1.4: both endpoints have sent a Close, or the TCP connection has closed.
    Closed,
}

/// A protocol error, for which the receiving endpoint fails the connection (§7.1.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub by: Role,
    /// The [`Frame::number`] of the frame that caused the protocol error.
    pub frame_number: u64,
    pub code: u16,
    pub section: &'static str,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The endpoint that sent the first Close; `None` if neither endpoint sent a Close.
    pub first_close: Option<Role>,
    /// The close code in the first Close; `None` if there was no Close, or if it contained no code.
    pub code: Option<u16>,
    pub reason: String,
    /// Whether the connection closed "cleanly" (§7.1.4), that is, after both endpoints had sent a Close.
    pub is_clean: bool,
    /// Why the TCP connection closed, in the words of the server or the tool that observed it.
    pub cause: String,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Connecting => "CONNECTING",
            State::Open => "OPEN",
            State::Closing => "CLOSING",
            State::Closed => "CLOSED",
        }
    }
}

impl AcceptSteps {
    /// Computes the accept value step by step from the key alone, without a response to compare it with.
    ///
    /// ```
    /// use wirechat::inspect::AcceptSteps;
    /// let steps = AcceptSteps::from_key("dGhlIHNhbXBsZSBub25jZQ==");
    /// assert_eq!((steps.sha1[0], &steps.accept[..]), (0xb3, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")); // §1.3
    /// ```
    pub fn from_key(key: &str) -> AcceptSteps {
        // §4.2.2: "concatenating /key/ … with the string …, taking the SHA-1 hash of this concatenated value"
        let key_and_guid = format!("{key}{GUID}");
        let sha1 = Sha1::digest(key_and_guid.as_bytes()).into();
        AcceptSteps { key: key.into(), key_and_guid, sha1, accept: accept_value(key.as_bytes()), response_accept: None }
    }

    /// Computes the accept value from the key in the request (§4.2.2, item 5.4). The result also contains the accept
    /// value of the response, for comparison. Returns `None` if the request has no key.
    pub fn from_handshake(request: &Head, response: &Head) -> Option<AcceptSteps> {
        let key = request.header("Sec-WebSocket-Key")?;
        Some(AcceptSteps { response_accept: response.header("Sec-WebSocket-Accept"), ..AcceptSteps::from_key(&key) })
    }
}

/// A bounded list of records. A clone shares the list with the original.
#[derive(Debug, Clone, Default)]
pub struct Records(Rc<RefCell<Vec<Record>>>);

impl Records {
    /// Appends a record to the list, or drops the record and returns `false` if the list is full.
    fn push(&self, record: Record) -> bool {
        // Drop the new record, not the oldest: the older records may show what filled the list.
        let mut records = self.0.borrow_mut();
        let has_room = records.len() < MAX_RECORDS;
        if has_room {
            records.push(record);
        }
        has_room
    }

    pub fn take(&self) -> Vec<Record> {
        self.0.take()
    }
}

/// Adds one connection's records to a shared list, and counts the records that do not fit.
#[derive(Debug)]
pub struct Reporter {
    connection: usize,
    records: Records,
    pub user: Option<Rc<str>>,
    pub time: SystemTime,
    missed: u64,
}

impl Reporter {
    pub fn new(connection: usize, records: Records) -> Reporter {
        Reporter { connection, records, user: None, time: SystemTime::UNIX_EPOCH, missed: 0 }
    }

    pub fn report(&mut self, kind: RecordKind) {
        let record = |kind| Record { connection: self.connection, user: self.user.clone(), time: self.time, kind };
        // Report the number of missed records first, so that a reader sees where the records are missing.
        if self.missed > 0 && self.records.push(record(RecordKind::Missed(self.missed))) {
            self.missed = 0;
        }
        if self.missed > 0 || !self.records.push(record(kind)) {
            self.missed += 1;
        }
    }

    pub fn report_failure(&mut self, failure: Option<Failure>) {
        failure.into_iter().for_each(|failure| self.report(RecordKind::Failure(failure)));
    }

    pub fn report_change(&mut self, change: Option<StateChange>) {
        change.into_iter().for_each(|change| self.report(RecordKind::State(change)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_dropped_by_a_full_queue_are_counted() {
        let records = Records::default();
        let mut reporter = Reporter::new(7, records.clone());
        (0..MAX_RECORDS + 37).for_each(|_| reporter.report(RecordKind::Missed(0)));
        assert_eq!(records.take().len(), MAX_RECORDS);
        reporter.report(RecordKind::Missed(0));
        let kinds: Vec<_> = records.take().into_iter().map(|record| record.kind).collect();
        assert_eq!(kinds, [RecordKind::Missed(37), RecordKind::Missed(0)]);
    }
}
