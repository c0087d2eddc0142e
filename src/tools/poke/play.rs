//! Plays a case: connects, does what the case says, and takes down what comes back.
//!
//! Plain blocking sockets. This file does not judge: that is [`verdict`](super::verdict).
//!
//! The subtle thing: whatever the server does, a case ends. Each wait has a deadline that no trickle of bytes moves,
//! and a write that the server does not take is given up. A Ping of the server's is not answered: no case lasts long
//! enough to need it, and a Pong in the middle of a frame that goes out in pieces would spoil it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::case::{Back, Case, Edit, End, FLOOD, Opening, Step, masked};
use super::inbox::Inbox;
use super::request;
use super::url::Url;
use crate::trace::{Record, Records, Tap};
use crate::ws::Limits;
use crate::ws::frame::Sender;

/// The payload of the Ping that asks whether a connection is still alive.
pub const PROBE: &[u8] = b"still there?";
/// The limits of a server are its own: the tracer is to name broken rules, not limits.
const NO_LIMITS: Limits = Limits { message: usize::MAX, fragments: u32::MAX, binary: true };

/// How long a case waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For each answer.
    pub timeout: Duration,
    /// Between the pieces of what is sent slowly.
    pub delay: Duration,
}

/// What came of a case.
#[derive(Debug)]
pub struct Outcome {
    /// What the server sent.
    pub inbox: Inbox,
    /// Whether the TCP connection is over.
    pub ended: Ended,
    /// Whether the server was asked, with a Ping, if the connection is still alive.
    pub is_probed: bool,
    /// Of a flood: how many bytes the server took, and whether it then took no more.
    pub flood: Option<Flood>,
}

/// How the TCP connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It did not.
    No,
    /// The server ended it.
    Orderly,
    /// The server reset it, or is gone.
    Reset,
}

/// How a flood went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// Bytes that the server took, or the kernel for it.
    pub taken: u64,
    /// Whether it took no more in the end.
    pub has_stalled: bool,
}

/// Plays a case against the server at one of `addresses`. `show` gets what the tracer sees, as it happens.
///
/// # Errors
/// A line: nobody listens there.
pub fn play(
    case: &Case,
    url: &Url,
    addresses: &[SocketAddr],
    patience: Patience,
    show: &mut dyn FnMut(Record),
) -> Result<Outcome, String> {
    let stream = connect(addresses, patience.timeout).map_err(|error| format!("{}: {error}", url.authority()))?;
    let mut player = Player::new(stream, patience, show);
    let is_upgraded = player.open(case.opening, url);
    if is_upgraded {
        for step in case.steps {
            player.step(step);
        }
    }
    let is_probed = player.finish(case);
    Ok(Outcome { inbox: player.inbox, ended: player.ended, is_probed, flood: player.flood })
}

fn connect(addresses: &[SocketAddr], timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => {
                // Each write is to be a segment of its own, as far as TCP lets it.
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A masking key that nobody can guess (§5.3: "derived from a strong source of entropy").
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without a source of chance the key is 0: legal, and who reads it here sees what was sent.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

struct Player<'s> {
    stream: TcpStream,
    patience: Patience,
    tap: Tap,
    records: Records,
    show: &'s mut dyn FnMut(Record),
    inbox: Inbox,
    ended: Ended,
    flood: Option<Flood>,
    /// A Close of ours is out.
    has_closed: bool,
}

impl<'s> Player<'s> {
    fn new(stream: TcpStream, patience: Patience, show: &'s mut dyn FnMut(Record)) -> Player<'s> {
        let records = Records::default();
        let mut tap = Tap::new(1, records.clone());
        tap.set_limits(NO_LIMITS);
        let inbox = Inbox::default();
        Player { stream, patience, tap, records, show, inbox, ended: Ended::No, flood: None, has_closed: false }
    }

    /// Sends the request and reads the answer. `false`: there are no frames to be sent.
    fn open(&mut self, opening: Opening, url: &Url) -> bool {
        let edits = match opening {
            Opening::Usual => &[],
            Opening::Odd(edits) => edits,
            Opening::Silent => return true,
        };
        let key = STANDARD.encode(random::<16>());
        let request = request::bytes(url, &key, edits);
        self.inbox = Inbox::new(&request);
        if edits.iter().any(|edit| matches!(edit, Edit::Slowly)) {
            self.send_slowly(&request);
        } else {
            self.send(&request);
        }
        self.read_until(|inbox| inbox.answer.is_some());
        self.inbox.answer.as_ref().is_some_and(|answer| answer.status == 101)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Await(count) => self.read_until(|inbox| inbox.back.len() >= count),
            Step::Pause => self.pause(),
            Step::HalfClose => drop(self.stream.shutdown(Shutdown::Write)),
            Step::Flood(..) => self.flood(&step.bytes(&mut random).unwrap_or_default()),
            Step::Slowly(_) => self.send_slowly(&step.bytes(&mut random).unwrap_or_default()),
            Step::Bytes(_) | Step::Frame(..) | Step::Letters(..) | Step::Repeat(..) => {
                let bytes = step.bytes(&mut random).unwrap_or_default();
                self.has_closed |= bytes.first() == Some(&0x88);
                self.send(&bytes);
            }
        }
    }

    /// Waits for what is expected, and ends the connection as a client should. `true`: the server was asked whether the
    /// connection is still alive.
    fn finish(&mut self, case: &Case) -> bool {
        let expects_http = matches!(case.end, End::Status(_) | End::Refused | End::NoUpgrade);
        let is_upgraded = self.inbox.answer.as_ref().is_some_and(|answer| answer.status == 101);
        let is_probed = is_upgraded && (case.end == End::Open || expects_http);
        if self.flood.is_some() {
            // Whoever does not read has nothing to wait for.
        } else if is_probed {
            self.send(&masked(0x89, PROBE.to_vec(), random()));
            let is_needed = |back: &&Back| !matches!(back, Back::MaybePong(_));
            let expected = case.back.iter().filter(is_needed).count() + 1;
            self.read_until(|inbox| is_answered(inbox) && inbox.back.len() >= expected);
        } else {
            self.read_until(|_| false);
        }
        self.close(case);
        let end = match self.ended {
            Ended::No => "the client has seen enough",
            Ended::Orderly => "the server ended it",
            Ended::Reset => "the server reset it",
        };
        self.tap.end(end, SystemTime::now());
        self.show();
        is_probed
    }

    /// §7.1.1: the Close is answered, and the server ends the TCP connection.
    fn close(&mut self, case: &Case) {
        let Some(close) = self.inbox.close.clone() else { return };
        if !self.has_closed {
            let code = if close.code == 1005 { vec![] } else { close.code.to_be_bytes().to_vec() };
            self.send(&masked(0x88, code, random()));
        }
        if case.error.is_some() {
            // The server may have lost the way in what it reads, and not find our Close. The end of the stream it does.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        self.read_to_end();
    }

    /// Sends, in one write as far as the kernel takes it. A server may hang up in the middle of it.
    fn send(&mut self, bytes: &[u8]) {
        self.tap.see(Sender::Client, bytes, SystemTime::now());
        self.show();
        let _ = self.stream.set_write_timeout(Some(self.patience.timeout));
        // Whether the server has gone is found out by reading, which also gets what it said before.
        let _ = self.stream.write_all(bytes);
    }

    /// Sends one byte after the other, as long as the server has not had enough.
    fn send_slowly(&mut self, bytes: &[u8]) {
        for byte in bytes.chunks(1) {
            if self.ended == Ended::No && !self.inbox.is_final() {
                self.send(byte);
                self.pause();
            }
        }
    }

    /// Waits for the delay, and reads what comes meanwhile.
    fn pause(&mut self) {
        let deadline = Instant::now() + self.patience.delay;
        while self.read(deadline) {}
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    }

    /// Sends `frame` until the server takes no more.
    fn flood(&mut self, frame: &[u8]) {
        let _ = self.stream.set_write_timeout(Some(self.patience.timeout.min(Duration::from_secs(2))));
        let mut flood = Flood { taken: 0, has_stalled: false };
        'frames: while flood.taken < FLOOD {
            self.tap.see(Sender::Client, frame, SystemTime::now());
            self.show();
            let mut rest = frame;
            while !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(len) => {
                        rest = &rest[len..];
                        flood.taken += len as u64;
                    }
                    Err(error) => {
                        flood.has_stalled = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                        break 'frames;
                    }
                }
            }
        }
        if !flood.has_stalled && flood.taken < FLOOD {
            self.read_to_end();
        }
        self.flood = Some(flood);
    }

    /// Reads until `is_enough`, the end of the connection, a Close, or the timeout.
    fn read_until(&mut self, is_enough: impl Fn(&Inbox) -> bool) {
        let deadline = Instant::now() + self.patience.timeout;
        while !is_enough(&self.inbox) && !self.inbox.is_final() && self.read(deadline) {}
    }

    /// Reads until the end of the connection, or the timeout.
    fn read_to_end(&mut self) {
        let deadline = Instant::now() + self.patience.timeout;
        while self.inbox.fault.is_none() && self.read(deadline) {}
    }

    /// Reads once. `false`: there is nothing more, or not in time.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended != Ended::No || left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.ended = Ended::Orderly,
            Ok(len) => {
                self.tap.see(Sender::Server, &bytes[..len], SystemTime::now());
                self.show();
                self.inbox.receive(&bytes[..len]);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return false,
                ErrorKind::Interrupted => {}
                _ => self.ended = Ended::Reset,
            },
        }
        self.ended == Ended::No
    }

    fn show(&mut self) {
        for record in self.records.take() {
            (self.show)(record);
        }
    }
}

/// Whether the Ping of [`PROBE`] was answered.
pub fn is_answered(inbox: &Inbox) -> bool {
    inbox.back.iter().any(|came| matches!(came, super::inbox::Came::Pong(payload) if payload == PROBE))
}
