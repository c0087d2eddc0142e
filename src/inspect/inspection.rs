//! Serves the page's inspectors: checks their tickets, executes their commands and sends them records. An inspector is
//! a WebSocket client that receives the records of another connection. While an inspector's outbox is over half full,
//! the server drops records for the inspector, and later reports how many it dropped. An inspector's own connection is
//! never inspected, because each record sent would cause another record.
//!
//! A ticket lets a client inspect one connection. The ticket consists of that connection's number and a keyed hash of
//! the number, so the server stores no tickets. The server sends a ticket only in the `welcome` event of the connection
//! that the ticket is for, so no other client learns the ticket from the server.
//!
//! An inspector can also run a test case of `wirechat poke`: see [`cases`](super::cases).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::SystemTime;

use base64::prelude::{BASE64_URL_SAFE, Engine};
use mio::Token;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

use super::cases::RunningCases;
use super::{Head, Record, RecordKind, Records, Tap, json};
use crate::maps::TokenMap;
use crate::server::observer::{Action, QueuedBytes};
use crate::ws::close::CloseCode;
use crate::ws::frame::{Opcode, Role};
use crate::ws::request::Rejection;

/// Maximum number of handshakes stored for inspectors that attach later.
const MAX_STORED_HANDSHAKES: usize = 256;
/// Maximum size in bytes of a request head stored for inspectors. Browsers usually send less than half as much.
const MAX_STORED_REQUEST_LEN: usize = 8 * 1024;
/// Maximum number of records in the queue that all inspectors share: a single read can produce thousands of records. A
/// full queue drops new records except `End`, which every inspector must receive.
const MAX_QUEUED_RECORDS: usize = 16 * 1024;
/// The server rejects an inspector's `ping` command while over 4 KiB are queued for the inspected connection.
const MAX_QUEUED_BYTES_FOR_PING: usize = 4096;
/// Maximum number of frames that an inspector receives per test case and direction, not counting Close frames. A case
/// may send 100,000 frames, but a learner reads only the first few.
const MAX_PLAYED_FRAMES: u64 = 20;
/// Size in bytes of the secret in a ticket (128 bits).
const SECRET_LEN: usize = 16;

const UNKNOWN_COMMAND: &str = "There is no command like this. Send {\"do\":\"ping\"}, {\"do\":\"fragment\"}, \
                               {\"do\":\"close\",\"code\":1000} or {\"do\":\"play\",\"case\":\"hello\"}.";
const INVALID_CLOSE_CODE: &str = "An endpoint must not send this close code (RFC 6455 §7.4). Send a code from 1000 to 1003, from \
                          1007 to 1011, or from 3000 to 4999.";
const TOO_MANY_QUEUED_BYTES: &str = "Too many bytes are queued for the connection already. Try again later.";
const CONNECTION_ENDED: &str = "The connection is over.";
const INVALID_TICKET: &str = "The ticket is wrong or was already used. Each welcome contains a new one while inspection is \
                            enabled.";

/// State that a connection's tap, which decodes the frames, shares with the owner of the link to the inspector. The
/// owner is [`RunningCases`] if a test case uses the connection, and otherwise [`Inspection`].
#[derive(Debug, Default)]
pub struct InspectorLink {
    pub inspector: Cell<Option<Token>>,
    is_ticket_used: Cell<bool>,
    /// Whether to split the next message that the server sends on the connection into fragments.
    pub should_fragment_next: Cell<bool>,
    /// Number of frames on the connection so far, in both directions, as counted by the tap.
    pub frame_count: Cell<u64>,
    /// Number of records dropped since the last report to the inspector, because the queue was full or because a test
    /// case had too many frames.
    missed: Cell<u64>,
    /// Whether the connection belongs to a test case of `wirechat poke`.
    is_played: bool,
}

impl InspectorLink {
    pub fn for_test_case(inspector: Token) -> InspectorLink {
        InspectorLink { inspector: Cell::new(Some(inspector)), is_played: true, ..InspectorLink::default() }
    }

    fn skips(&self, record: &Record) -> bool {
        let RecordKind::Frame(frame) = &record.kind else { return false };
        self.is_played && frame.number > MAX_PLAYED_FRAMES && frame.header.opcode() != Opcode::Close as u8
    }
}

/// Records queued for inspectors, oldest first, each with the mio `Token` of the inspector's connection.
#[derive(Debug, Default)]
pub struct RecordQueue(RefCell<VecDeque<(Token, QueueEntry)>>);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "almost every entry is a record")]
enum QueueEntry {
    Record(Record),
    /// A test-case record. The server sends it even if the inspector's outbox is over half full.
    Cases(Value),
    /// The server has removed the inspected connection, so the inspector's connection must close too.
    Ended,
}

impl RecordQueue {
    pub fn push(&self, link: &InspectorLink, record: Record) {
        let Some(inspector) = link.inspector.get() else { return };
        let mut queue = self.0.borrow_mut();
        // Queue `End` even if the queue is full: the inspector must receive it, and each connection has only one.
        let is_full = queue.len() >= MAX_QUEUED_RECORDS && !matches!(record.kind, RecordKind::End(_));
        if is_full || link.skips(&record) {
            link.missed.set(link.missed.get() + 1);
            return;
        }
        let missed = link.missed.take();
        if missed > 0 {
            // Report the number of dropped records first, so that the inspector shows the gap in the right place.
            queue.push_back((
                inspector,
                QueueEntry::Record(Record { kind: RecordKind::Missed(missed), ..record.clone() }),
            ));
        }
        queue.push_back((inspector, QueueEntry::Record(record)));
    }
}

#[derive(Debug)]
struct Inspector {
    connection: Token,
    /// Number of records dropped since the last report to the inspector, because the outbox was over half full.
    missed: u64,
    /// Number of Pings sent at the inspector's request.
    pings: u64,
}

pub struct Inspection {
    // A random key for tickets. Each run of the server has a new key, so tickets from earlier runs are invalid.
    key: [u8; 64],
    max_queued: usize,
    /// Whether the server decodes the frames of every connection, from the first byte on. If false, the server decodes
    /// only the frames of connections that have an inspector.
    taps_all: bool,
    queue: Rc<RecordQueue>,
    handshakes: Rc<RefCell<Handshakes>>,
    /// Links to inspectors, keyed by inspected connection. A link stays in the map after its inspector has
    /// disconnected, because the link records that the inspector's ticket has been used.
    links: TokenMap<Rc<InspectorLink>>,
    /// Inspectors, keyed by the inspector's own connection (not by the inspected connection).
    inspectors: TokenMap<Inspector>,
    pub running_cases: RunningCases,
    actions: VecDeque<Action>,
}

impl Inspection {
    /// Creates the state for serving inspectors. `max_outbox` is the maximum size of an inspector's outbox, in bytes.
    pub fn new(
        max_outbox: usize,
        taps_all: bool,
        queue: Rc<RecordQueue>,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Inspection {
        let mut key = [0; 64];
        random(&mut key);
        Inspection {
            key,
            max_queued: max_outbox / 2,
            taps_all,
            queue,
            handshakes: Rc::default(),
            links: TokenMap::default(),
            inspectors: TokenMap::default(),
            running_cases: RunningCases::new(None),
            actions: VecDeque::new(),
        }
    }

    pub fn link(&mut self, connection: Token) -> Rc<InspectorLink> {
        Rc::clone(self.links.entry(connection).or_default())
    }

    pub fn capture_handshake(&self, connection: Token) -> HandshakeCapture {
        HandshakeCapture {
            connection,
            request: Head::default(),
            response: Head::default(),
            has_ticket: false,
            handshakes: Rc::clone(&self.handshakes),
        }
    }

    /// Returns a connection's ticket: the connection's number (eight bytes) and a secret, encoded in URL-safe base64.
    pub fn ticket(&self, connection: Token) -> String {
        let number = connection.0 as u64;
        let mut bytes = [0; 8 + SECRET_LEN];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&self.compute_secret(number));
        BASE64_URL_SAFE.encode(bytes)
    }

    fn compute_secret(&self, number: u64) -> [u8; SECRET_LEN] {
        // SHA-1 is safe for tickets. Every input has the same length, so a length-extension attack is impossible.
        // SHA-1's weak collision resistance does not help an attacker guess the secret of another connection.
        let digest = Sha1::new().chain_update(self.key).chain_update(number.to_be_bytes()).finalize();
        let mut secret = [0; SECRET_LEN];
        secret.copy_from_slice(&digest[..SECRET_LEN]);
        secret
    }

    fn verify_ticket(&self, ticket: &str) -> Option<Token> {
        let bytes = BASE64_URL_SAFE.decode(ticket).ok()?;
        let (number, secret) = bytes.split_first_chunk()?;
        let number = u64::from_be_bytes(*number);
        // Compare in constant time: the duration must not reveal how many bytes of a guess are correct.
        bool::from(self.compute_secret(number).ct_eq(secret)).then(|| usize::try_from(number).ok().map(Token))?
    }

    /// Makes `client` the inspector of the connection that `ticket` identifies, and queues the records of that
    /// connection's handshake, if the server still has them.
    ///
    /// # Errors
    /// Returns a 403 if the ticket is invalid or already used, or if its connection is no longer open.
    pub fn admit(
        &mut self,
        client: Token,
        ticket: &str,
        queued_bytes: QueuedBytes<'_>,
        now: SystemTime,
    ) -> Result<(), Rejection> {
        let wrong = || Rejection::new(403, INVALID_TICKET);
        // Reject a ticket for a connection that is closing or removed: almost nothing is left to inspect.
        let connection = self.verify_ticket(ticket).filter(|connection| queued_bytes(*connection).is_some());
        let connection = connection.ok_or_else(wrong)?;
        let link = self.link(connection);
        // A ticket is valid only once: it is part of a URL, and proxies and developer tools log URLs.
        if link.is_ticket_used.replace(true) {
            return Err(wrong());
        }
        link.inspector.set(Some(client));
        self.inspectors.insert(client, Inspector { connection, missed: 0, pings: 0 });
        let catalogue = self.running_cases.catalogue().map(|record| (client, QueueEntry::Cases(record)));
        self.queue.0.borrow_mut().extend(catalogue);
        // The handshake happened before the inspector attached, so queue its captured records before any frame.
        let handshake = self.handshakes.borrow().records(connection, connection.0);
        handshake.into_iter().for_each(|record| self.queue.push(&link, record));
        // Tell the inspector how many frames it missed. If the connection has no tap yet, `Attach` creates one, which
        // reports this number itself. Otherwise, queue the report here.
        if !self.taps_all {
            self.actions.push_back(Action::Attach(connection));
        } else if link.frame_count.get() > 0 {
            let (connection, kind) = (connection.0, RecordKind::Earlier(link.frame_count.get()));
            self.queue.push(&link, Record { connection, user: None, time: now, kind });
        }
        Ok(())
    }

    pub fn receive_command(&mut self, client: Token, text: &str, queued_bytes: QueuedBytes<'_>) {
        let Some(inspector) = self.inspectors.get_mut(&client) else { return };
        let connection = inspector.connection;
        // Treat invalid JSON as `null`: it has no `do` field, so the inspector gets the `UNKNOWN_COMMAND` error.
        let command: Value = serde_json::from_str(text).unwrap_or_default();
        let error = match (command["do"].as_str(), queued_bytes(connection)) {
            (Some("ping" | "fragment" | "close" | "play"), None) => CONNECTION_ENDED,
            (Some("ping"), Some(queued)) if queued > MAX_QUEUED_BYTES_FOR_PING => TOO_MANY_QUEUED_BYTES,
            (Some("ping"), Some(_)) => {
                inspector.pings += 1;
                // §5.5.3: a Pong repeats its Ping's payload, so a number in the payload shows which Ping a Pong is for.
                let payload = format!("ping {}", inspector.pings);
                return self.actions.push_back(Action::Ping(connection, payload));
            }
            (Some("fragment"), Some(_)) => return self.link(connection).should_fragment_next.set(true),
            (Some("close"), Some(_)) => match parse_close_code(&command["code"]) {
                Some(code) => {
                    return self.actions.push_back(Action::Close(connection, code, "closed by the inspector"));
                }
                None => INVALID_CLOSE_CODE,
            },
            (Some("play"), Some(_)) => match self.running_cases.start(client, command["case"].as_str()) {
                Ok(()) => return,
                Err(error) => return self.send(client, &json!({ "record": "error", "message": error })),
            },
            _ => UNKNOWN_COMMAND,
        };
        self.send(client, &json!({ "record": "error", "message": error }));
    }

    pub fn next_action(&mut self, queued_bytes: QueuedBytes<'_>, now: SystemTime) -> Option<Action> {
        // Queue a finished test case's result behind the records of its connection, so that the result arrives last.
        while let Some((client, record)) = self.running_cases.next_finished(now) {
            self.queue.0.borrow_mut().push_back((client, QueueEntry::Cases(record)));
        }
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let (client, record) = self.queue.0.borrow_mut().pop_front()?;
            match record {
                // `send_record` checks the size of the outbox before each record, because each record increases it.
                QueueEntry::Record(record) => self.send_record(client, record, queued_bytes),
                QueueEntry::Cases(record) if queued_bytes(client).is_some() => self.send(client, &record),
                QueueEntry::Cases(_) => {} // drop it: the inspector's connection is no longer open
                QueueEntry::Ended => {
                    let reason = "the inspected connection is over";
                    self.actions.push_back(Action::Close(client, CloseCode::NORMAL, reason));
                }
            }
        }
    }

    /// Cleans up after a connection's removal. The connection may be an inspector's, an inspected one or neither.
    pub fn remove(&mut self, connection: Token) {
        // `detach` does nothing unless the removed connection is an inspector's, so no check is needed.
        self.detach(connection);
        self.running_cases.remove(connection);
        let inspector = self.links.remove(&connection).and_then(|link| link.inspector.get());
        if let Some(inspector) = inspector {
            // Queue `Ended` last, so that the inspector's queued records precede its Close frame.
            self.queue.0.borrow_mut().push_back((inspector, QueueEntry::Ended));
        }
    }

    fn send_record(&mut self, client: Token, record: Record, queued_bytes: QueuedBytes<'_>) {
        let Some(inspector) = self.inspectors.get_mut(&client) else { return };
        let Some(queued) = queued_bytes(client) else { return self.detach(client) };
        // Drop records while the outbox is over half full: the server's own frames need room, and the server closes a
        // client whose outbox is full. Never drop `End`: every inspector must receive it.
        if queued > self.max_queued && !matches!(record.kind, RecordKind::End(_)) {
            inspector.missed += if let RecordKind::Missed(count) = record.kind { count } else { 1 };
            return;
        }
        let missed = std::mem::take(&mut inspector.missed);
        if missed > 0 {
            self.send(client, &json::record_to_json(&Record { kind: RecordKind::Missed(missed), ..record.clone() }));
        }
        self.send(client, &json::record_to_json(&record));
    }

    fn send(&mut self, client: Token, record: &Value) {
        self.actions.push_back(Action::Send(client, record.to_string()));
    }

    fn detach(&mut self, client: Token) {
        let Some(Inspector { connection, .. }) = self.inspectors.remove(&client) else { return };
        let Some(link) = self.links.get(&connection) else { return };
        // Keep the `InspectorLink`, because it records that the ticket was used. Clear only its inspector.
        link.inspector.set(None);
        if !self.taps_all {
            self.actions.push_back(Action::Detach(connection));
        }
    }
}

/// Parses the code of a `close` command. Returns `None` unless §7.4 lets an endpoint send the code. Unlike `from_wire`,
/// this function rejects 1012–1014, which were registered after the RFC.
fn parse_close_code(code: &Value) -> Option<CloseCode> {
    let code = code.as_u64().and_then(|code| u16::try_from(code).ok())?;
    CloseCode::from_wire(code).ok().filter(|_| !(1012..=1014).contains(&code))
}

#[derive(Debug, Default)]
struct Handshakes(VecDeque<CapturedHandshake>);

#[derive(Debug)]
struct CapturedHandshake {
    connection: Token,
    time: SystemTime,
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Handshakes {
    fn push(&mut self, handshake: CapturedHandshake) {
        // Drop the oldest handshake. It is the least likely to be needed, because a page usually opens its inspector
        // soon after it connects.
        if self.0.len() == MAX_STORED_HANDSHAKES {
            self.0.pop_front();
        }
        self.0.push_back(handshake);
    }

    /// Returns the records of a connection's handshake. The list is empty if the handshake was not captured or if newer
    /// handshakes have displaced it.
    fn records(&self, connection: Token, number: usize) -> Vec<Record> {
        let records = Records::default();
        if let Some(kept) = self.0.iter().rev().find(|handshake| handshake.connection == connection) {
            let mut tap = Tap::new(number, records.clone());
            tap.observe(Role::Client, &kept.request, kept.time);
            tap.observe(Role::Server, &kept.response, kept.time);
        }
        records.take()
    }
}

/// Captures one connection's handshake, so that an inspector that attaches later can show it. Does not capture frames:
/// storing them takes memory, and scanning a small message takes about as long as delivering it.
#[derive(Debug)]
pub struct HandshakeCapture {
    connection: Token,
    request: Head,
    response: Head,
    has_ticket: bool,
    handshakes: Rc<RefCell<Handshakes>>,
}

impl HandshakeCapture {
    /// Captures the bytes of one read from the client or one write to it. Returns whether the capture has ended.
    pub fn observe(&mut self, from: Role, bytes: &[u8], now: SystemTime) -> bool {
        match from {
            Role::Client => {
                self.request.read(bytes, 0);
                // The server keeps up to 256 handshakes in memory, so limit the size of each: stop capturing a request
                // that is too long, for example because of many cookies.
                return self.request.bytes.len() > MAX_STORED_REQUEST_LEN;
            }
            // `has_ticket` is still `false`, so the server has not called `upgrade`, and this response is not a 101.
            // End the capture, because only an upgraded connection can be inspected.
            Role::Server if !self.has_ticket => return true,
            Role::Server => self.response.read(bytes, 0),
        };
        if self.response.is_complete {
            let [request, response] = [&mut self.request, &mut self.response].map(|head| {
                // Free the unused capacity, which is large if the head arrived in one read with the frames after it.
                head.bytes.shrink_to_fit();
                std::mem::take(&mut head.bytes)
            });
            let handshake = CapturedHandshake { connection: self.connection, time: now, request, response };
            self.handshakes.borrow_mut().push(handshake);
        }
        self.response.is_complete
    }

    /// Records whether the upgraded client gets a ticket for an inspector. If it does not, returns `true` to end the
    /// capture: no inspector can show the handshake without that ticket.
    pub fn upgrade(&mut self, has_ticket: bool) -> bool {
        self.has_ticket = has_ticket;
        !has_ticket
    }

    pub fn buffered_bytes(&self) -> usize {
        self.request.bytes.capacity() + self.response.bytes.capacity()
    }
}
