//! Plays a case: connects, does what the case says, and takes down what comes back.
//!
//! This file does not judge: that is [`verdict`](super::verdict). It does not know sockets: that is
//! [`wire`](super::wire).
//!
//! The subtle thing: a Ping of the server's is not answered. No case lasts long enough to need it, and a Pong in the
//! middle of a frame that goes out in pieces would spoil it.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::case::{Back, Case, Edit, End, FLOOD, Opening, Step, masked};
use super::request;
use super::url::Url;
use super::wire::{Ended, Wire};
use crate::inspect::Record;
use crate::tools::inbox::{Came, Inbox};

/// The payload of the Ping that asks whether a connection is still alive.
pub const PROBE: &[u8] = b"still there?";
/// The first byte of a Close.
const CLOSE: u8 = 0x88;
/// How long a server that does not know Ping yet must keep the connection open to have kept it open.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a server that takes no more is given to think better of it.
const STALL: Duration = Duration::from_secs(2);

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
    /// How a flood went.
    pub flood: Option<Flood>,
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
    let wire = Wire::connect(addresses, patience.timeout, show);
    let wire = wire.map_err(|error| format!("{}: {error}", url.authority()))?;
    let mut player = Player { wire, patience, flood: None, has_closed: false };
    let are_frames_due = player.open(case.opening, url);
    if are_frames_due {
        for step in case.steps {
            player.step(step);
        }
    }
    // Who did not answer the request within the timeout has had the time to.
    let is_unanswered = !are_frames_due && player.wire.inbox.answer.is_none();
    let is_probed = !is_unanswered && player.wait(case);
    player.close(case);
    player.wire.end();
    Ok(Outcome { inbox: player.wire.inbox, ended: player.wire.ended, is_probed, flood: player.flood })
}

/// Whether the Ping of [`PROBE`] was answered with a Pong.
pub fn is_answered(inbox: &Inbox) -> bool {
    inbox.back.iter().any(|came| matches!(came, Came::Pong(payload) if payload == PROBE))
}

/// Whether this answers the Ping of [`PROBE`]: with a Pong, or as a server does that takes every frame for a message.
pub fn is_probe(came: &Came) -> bool {
    let (Came::Pong(payload) | Came::Text(payload) | Came::Binary(payload)) = came;
    payload == PROBE
}

/// A key that nobody can guess (§5.3: "derived from a strong source of entropy").
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without a source of chance the key is 0, which is legal, and protects nobody from a tool that means to be rude.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

struct Player<'s> {
    wire: Wire<'s>,
    patience: Patience,
    flood: Option<Flood>,
    /// A Close of ours is out.
    has_closed: bool,
}

impl Player<'_> {
    /// Sends the request and reads the answer. `false`: there was no upgrade, so no frames are due.
    fn open(&mut self, opening: Opening, url: &Url) -> bool {
        let edits = match opening {
            Opening::Usual => &[],
            Opening::Odd(edits) => edits,
            Opening::Silent => return true,
        };
        let key = STANDARD.encode(random::<16>());
        let request = request::bytes(url, &key, edits);
        self.wire.inbox = Inbox::new(&request);
        if edits.iter().any(|edit| matches!(edit, Edit::Slowly)) {
            self.wire.send_slowly(&request, self.patience.delay);
        } else {
            self.wire.send(&request);
        }
        self.wire.read_until(self.patience.timeout, |inbox| inbox.answer.is_some());
        self.is_upgraded()
    }

    fn is_upgraded(&self) -> bool {
        self.wire.inbox.answer.as_ref().is_some_and(|answer| answer.status == 101)
    }

    fn step(&mut self, step: &Step) {
        let Patience { timeout, delay } = self.patience;
        let bytes = step.bytes(&mut random).unwrap_or_default();
        match *step {
            Step::Await(count) => self.wire.read_until(timeout, |inbox| inbox.back.len() >= count),
            Step::Pause => self.wire.pause(delay),
            Step::HalfClose => self.wire.half_close(),
            Step::Slowly(_) => self.wire.send_slowly(&bytes, delay),
            Step::Flood(..) => {
                let (taken, has_stalled) = self.wire.flood(&bytes, FLOOD, timeout.min(STALL));
                self.flood = Some(Flood { taken, has_stalled });
            }
            Step::Bytes(_) | Step::Frame(..) | Step::Letters(..) | Step::Repeat(..) => {
                self.has_closed |= bytes.first() == Some(&CLOSE);
                self.wire.send(&bytes);
            }
        }
    }

    /// Waits for what is expected. `true`: the server was asked whether the connection is still alive.
    fn wait(&mut self, case: &Case) -> bool {
        let timeout = self.patience.timeout;
        let expects_http = matches!(case.end, End::Status(_) | End::Refused | End::NamesVersion | End::NoUpgrade);
        match self.flood {
            // Who does not read has nothing to wait for, unless the server has hung up.
            Some(Flood { taken, has_stalled }) if has_stalled || taken >= FLOOD => false,
            // A server that was to refuse and did not may still do what is allowed: go on.
            None if self.is_upgraded() && (case.end == End::Open || expects_http) => {
                let is_needed = |back: &&Back| !matches!(back, Back::MaybePong(_));
                let needed = case.back.iter().filter(is_needed).count();
                self.wire.read_until(timeout, |inbox| inbox.back.len() >= needed);
                self.wire.send(&masked(0x89, PROBE.to_vec(), random()));
                self.wire.read_until(timeout.min(SILENCE), |inbox| inbox.back.iter().any(is_probe));
                true
            }
            _ => {
                self.wire.read_until(timeout, |_| false);
                false
            }
        }
    }

    /// §7.1.1: a Close is answered, and the server ends the TCP connection.
    fn close(&mut self, case: &Case) {
        let Some(close) = self.wire.inbox.close.clone() else { return };
        if !self.has_closed {
            let code = if close.code == 1005 { vec![] } else { close.code.to_be_bytes().to_vec() };
            self.wire.send(&masked(CLOSE, code, random()));
        }
        if case.error.is_some() {
            // The server may have lost its way in what we send, and not find our Close. The end of the stream it finds.
            self.wire.half_close();
        }
        self.wire.read_to_end(self.patience.timeout);
    }
}
