//! Runs a test case: sends the request, performs the steps, and stores what the server sent in a [`Transcript`].
//! [`super::check`] decides whether the result is right. The client never replies to the server's Pings: most test
//! cases are too short to need a Pong, and a Pong between two parts of a frame would corrupt that frame.

use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::case::{Case, Edit, End, FLOOD_BYTES, Opening, Reply, Step, encode_masked_frame};
use super::connection::{Connection, TcpState};
use super::request;
use crate::inspect::Record;
use crate::tools::inbox::{Inbox, IncomingPayload, NO_STATUS_RECEIVED};
use crate::tools::url::Url;

/// The payload of the Ping that tests whether a connection still works.
pub const PROBE_PAYLOAD: &[u8] = b"still there?";
/// The first byte of a Ping: FIN and opcode 9.
const PING_FIRST_BYTE: u8 = 0x89;
const CLOSE_FIRST_BYTE: u8 = 0x88;
const NORMAL_CLOSURE: [u8; 2] = 1000_u16.to_be_bytes();
/// Timeout for the reply to the final Ping or Close. It is short because a server that is still under development may
/// never reply, and `poke all` then waits this long in many test cases.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(1);
/// A flood has stalled when the server accepts nothing for two seconds, or for `--timeout` if that is shorter.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub timeout: Duration,
    /// The pause after each byte of a [`Step::BytesSlowly`], and the duration of a [`Step::Pause`].
    pub delay: Duration,
    /// The maximum duration of the whole test case; `None` for no maximum.
    pub max_duration: Option<Duration>,
}

#[derive(Debug)]
pub struct Transcript {
    /// Everything that the client received before the final closing handshake, and any violation during the handshake.
    pub inbox: Inbox,
    /// The state of the TCP connection at the end of the test case, before the client starts the closing handshake.
    pub tcp: TcpState,
    /// Whether the client sent the Ping with [`PROBE_PAYLOAD`].
    pub is_probed: bool,
    pub flood: Option<Flood>,
    /// The result of the final closing handshake; `None` if the client did not start one.
    pub closing: Option<ClosingResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// The number of flood bytes that the server or the kernel's socket buffers accepted.
    pub accepted: u64,
    pub has_stalled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingResult {
    Completed,
    /// The server sent no Close in reply to the client's Close.
    Unanswered,
}

/// Runs a test case on a new connection. `show` receives each trace record immediately.
///
/// # Errors
/// Fails if the operating system rejects a socket option.
pub fn play(
    case: &Case,
    url: &Url,
    stream: TcpStream,
    timing: Timing,
    show: &mut dyn FnMut(Record),
) -> std::io::Result<Transcript> {
    let connection = Connection::new(stream, timing, show)?;
    let mut player = Player { connection, timing, flood: None, has_sent_close: false };
    let (is_open, mut is_inapplicable) = (player.open(case.opening, url), false);
    if is_open {
        is_inapplicable = why_inapplicable(case, &player.connection.inbox).is_some();
        let steps = if is_inapplicable { &[] } else { case.steps };
        steps.iter().for_each(|step| player.run_step(step));
    }
    // If there is no response, `open` has waited for the whole timeout, or no response can follow: do not wait again.
    let is_silent = !is_open && player.connection.inbox.response.is_none();
    let is_probed = !is_silent && !is_inapplicable && player.wait_for_replies(case);
    player.reply_to_close(case);
    let (mut inbox, tcp) = (player.connection.inbox.clone(), player.connection.tcp);
    let closing = player.try_closing_handshake(is_probed || is_inapplicable);
    // `inbox` was cloned before the closing handshake. Add the violation, if any, that the handshake revealed.
    inbox.violation = player.connection.inbox.violation.take();
    player.connection.trace_end();
    Ok(Transcript { inbox, tcp, is_probed, flood: player.flood, closing })
}

/// Returns the reason why a test case does not apply to an upgraded connection; `None` if the case applies.
pub fn why_inapplicable(case: &Case, inbox: &Inbox) -> Option<&'static str> {
    match (case.opening, inbox.deflate()) {
        _ if !inbox.is_upgraded() => None,
        (Opening::Deflate(_) | Opening::Takeover(_), None) => Some("the server declined permessage-deflate"),
        (Opening::Takeover(_), Some(agreed)) if !agreed.client_takes_over_context => {
            Some("the server demanded client_no_context_takeover")
        }
        _ => None,
    }
}

pub fn has_probe_pong(inbox: &Inbox) -> bool {
    inbox.received.iter().any(|incoming| matches!(incoming, IncomingPayload::Pong(payload) if payload == PROBE_PAYLOAD))
}

/// Whether `incoming` is a reply to the test Ping. A server without Ping support may echo the payload as a message.
pub fn is_probe_reply(incoming: &IncomingPayload) -> bool {
    let (IncomingPayload::Pong(payload) | IncomingPayload::Text(payload) | IncomingPayload::Binary(payload)) = incoming;
    payload == PROBE_PAYLOAD
}

/// Returns random bytes. §5.3: a masking key MUST be "derived from a strong source of entropy".
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Ignore a failure: a frame with any masking key is valid, and a test client has no secrets to protect.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

struct Player<'s> {
    connection: Connection<'s>,
    timing: Timing,
    flood: Option<Flood>,
    has_sent_close: bool,
}

impl Player<'_> {
    /// Sends the upgrade request and reads the response. Returns `false` if the server does not send a 101. If the test
    /// case skips the handshake, sends nothing and returns `true`.
    fn open(&mut self, opening: Opening, url: &Url) -> bool {
        if matches!(opening, Opening::Skipped) {
            return true;
        }
        let edits = opening.edits();
        let key = STANDARD.encode(random_bytes::<16>());
        let request = request::build_request(url, &key, edits);
        self.connection.inbox = Inbox::new(&request);
        if edits.iter().any(|edit| matches!(edit, Edit::ByteByByte)) {
            self.connection.send_slowly(&request, self.timing.delay);
        } else {
            self.connection.send(&request);
        }
        self.connection.read_until(self.timing.timeout, |inbox| inbox.response.is_some());
        self.connection.inbox.is_upgraded()
    }

    fn run_step(&mut self, step: &Step) {
        let Timing { timeout, delay, .. } = self.timing;
        let bytes = step.bytes(&mut random_bytes).unwrap_or_default();
        match *step {
            Step::Await(count) => self.connection.read_until(timeout, |inbox| inbox.received.len() >= count),
            Step::Pause => self.connection.pause(delay),
            Step::HalfClose => self.connection.half_close(),
            Step::BytesSlowly(_) => self.connection.send_slowly(&bytes, delay),
            Step::Flood(..) => {
                let (accepted, has_stalled) = self.connection.flood(&bytes, FLOOD_BYTES, timeout.min(STALL_TIMEOUT));
                self.flood = Some(Flood { accepted, has_stalled });
            }
            Step::Bytes(_) | Step::Frame(..) | Step::Letters(..) | Step::Repeat(..) => {
                self.has_sent_close |= bytes.first() == Some(&CLOSE_FIRST_BYTE);
                self.connection.send(&bytes);
            }
        }
    }

    /// Waits for the server's replies. If the connection is upgraded and should still be open, sends the test Ping
    /// ([`PROBE_PAYLOAD`]) and waits for its Pong. Does the same if the server upgraded a request that the test case
    /// expects it to reject. Returns whether it sent the Ping.
    fn wait_for_replies(&mut self, case: &Case) -> bool {
        let timeout = self.timing.timeout;
        let expects_http = matches!(case.end, End::Status(_) | End::HttpError | End::ListsVersion | End::NoUpgrade);
        match self.flood {
            // The flood stalled or reached its maximum, so the result is known: do not read the echoed bytes.
            Some(Flood { accepted, has_stalled }) if has_stalled || accepted >= FLOOD_BYTES => false,
            // Send the test Ping even if the test case expects a rejection: the case may also permit an upgrade.
            None if self.connection.inbox.is_upgraded() && (case.end == End::Open || expects_http) => {
                let is_required = |reply: &&Reply| !matches!(reply, Reply::OptionalPong(_));
                let required = case.replies.iter().filter(is_required).count();
                self.connection.read_until(timeout, |inbox| inbox.received.len() >= required);
                self.connection.send(&encode_masked_frame(PING_FIRST_BYTE, PROBE_PAYLOAD.to_vec(), random_bytes()));
                self.connection
                    .read_until(timeout.min(SILENCE_TIMEOUT), |inbox| inbox.received.iter().any(is_probe_reply));
                true
            }
            _ => {
                self.connection.read_until(timeout, |_| false);
                false
            }
        }
    }

    /// Replies to the server's Close, if any, and waits until the server closes TCP (§7.1.1). §5.5.1: "If an
    /// endpoint receives a Close frame and did not previously send a Close frame, the endpoint MUST send a Close frame
    /// in response."
    fn reply_to_close(&mut self, case: &Case) {
        let Some(close) = self.connection.inbox.close.clone() else { return };
        if !self.has_sent_close {
            let code = if close.code == NO_STATUS_RECEIVED { vec![] } else { close.code.to_be_bytes().to_vec() };
            self.connection.send(&encode_masked_frame(CLOSE_FIRST_BYTE, code, random_bytes()));
        }
        if case.error.is_some() {
            // After an invalid frame, the server may be unable to parse a Close, but it still notices the TCP FIN.
            self.connection.half_close();
        }
        self.connection.read_to_end(self.timing.timeout);
    }

    /// Starts a closing handshake (§7.1.2) if the connection is open. Does nothing if the client may have stopped in
    /// the middle of a frame (`is_complete` is `false`), because the server would read the Close as the rest of that
    /// frame.
    fn try_closing_handshake(&mut self, is_complete: bool) -> Option<ClosingResult> {
        let connection = &mut self.connection;
        let is_open = connection.tcp == TcpState::Open && !connection.is_half_closed && !connection.inbox.is_final();
        if !is_complete || !is_open || self.has_sent_close {
            return None;
        }
        connection.send(&encode_masked_frame(CLOSE_FIRST_BYTE, NORMAL_CLOSURE.to_vec(), random_bytes()));
        connection.read_until(self.timing.timeout.min(SILENCE_TIMEOUT), |_| false);
        if connection.inbox.close.is_none() {
            return Some(ClosingResult::Unanswered);
        }
        connection.read_to_end(self.timing.timeout.min(SILENCE_TIMEOUT));
        Some(ClosingResult::Completed)
    }
}
