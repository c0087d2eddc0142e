//! The tap beside a connection: raw bytes of both directions in, [`Record`](super::Record)s out.
//!
//! ```text
//!   Handshake ──101──▶ Frames
//!       └──any other answer──▶ Over
//! ```
//!
//! It keeps its own place in both streams, and has a [`Judge`] look at each frame of the client, so that a verdict
//! stands beside the frame that caused it.
//!
//! The subtle thing: a client may send frames behind its request before it is answered. Whether these bytes are frames
//! at all is known only when the answer has passed, so they wait for it.

use std::rc::Rc;
use std::time::SystemTime;

use super::judge::Judge;
use super::life::Life;
use super::records::Reporter;
use super::scan::{Side, Step};
use super::secret::TicketMask;
use super::{AcceptSteps, Frame, Head, MAX_SHOWN, Records, Response, State, What};
use super::{failure, secret};
use crate::ws::Limits;
use crate::ws::frame::{Opcode, Role};

/// How much of what comes before the answer waits for it, in bytes; but always one read.
const MAX_AHEAD: usize = 64 * 1024;
/// A tap. Dropping it ends the watch without a word.
#[derive(Debug)]
pub struct Tap {
    reporter: Reporter,
    stage: Stage,
    client: Side,
    server: Side,
    /// What the client sent behind its request, each with the number of its read.
    ahead: Vec<(u64, Vec<u8>)>,
    judge: Judge,
    life: Life,
    /// The server is going to send a ticket.
    ticket: Option<TicketMask>,
    /// Nothing behind the handshake is shown.
    is_private: bool,
}

/// What the bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    Frames,
    /// Nothing that follows is shown: a plain answer was the last.
    Over,
}

impl Tap {
    /// A tap that has seen nothing yet of the connection with this number. Its records go to the end of `records`.
    pub fn new(connection: usize, records: Records) -> Tap {
        Tap {
            reporter: Reporter::new(connection, records),
            stage: Stage::Handshake,
            client: Side::new(Role::Client),
            server: Side::new(Role::Server),
            ahead: Vec::new(),
            judge: Judge::default(),
            life: Life::new(State::Connecting),
            ticket: None,
            is_private: false,
        }
    }

    /// A tap on a connection that is open, and between two messages in both directions.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use wirechat::inspect::{Records, Tap, What};
    /// use wirechat::ws::frame::Role;
    /// let records = Records::default();
    /// let mut tap = Tap::open(1, records.clone());
    /// tap.see(Role::Client, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", SystemTime::now()); // §5.7
    /// let [record] = &records.take()[..] else { panic!() };
    /// let What::Frame(frame) = &record.what else { panic!() };
    /// assert_eq!((frame.header.name(), frame.unmasked()), ("TEXT", b"Hello".to_vec()));
    /// ```
    pub fn open(connection: usize, records: Records) -> Tap {
        Tap { stage: Stage::Frames, life: Life::new(State::Open), ..Tap::new(connection, records) }
    }

    /// What the server takes from this client. Before its first frame.
    pub fn set_limits(&mut self, limits: Limits) {
        self.judge.set_limits(limits);
    }

    /// It stands beside a server, whose Close has the last word on what was wrong.
    pub fn beside_server(mut self) -> Tap {
        self.judge.waits = true;
        self
    }

    /// The request is granted: what the server takes, who it is, and whether it is going to be sent a ticket, which is not
    /// to be shown.
    pub fn upgraded(&mut self, limits: Limits, user: Option<Rc<str>>, has_ticket: bool) {
        self.set_limits(limits);
        self.reporter.user = user;
        self.ticket = has_ticket.then(TicketMask::default);
    }

    /// Of this connection only the handshake and the end are shown.
    pub fn set_private(&mut self) {
        self.is_private = true;
    }

    /// How much memory it holds for what is not complete, in bytes.
    pub fn buffered(&self) -> usize {
        self.judge.buffered() + self.ahead.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Sees the bytes of one read of what the client sent, or of one write of what the server sent.
    pub fn see(&mut self, from: Role, bytes: &[u8], time: SystemTime) {
        self.reporter.time = time;
        let side = self.side(from);
        side.parts += 1;
        let part = side.parts;
        match (&self.stage, from) {
            (Stage::Over, _) => {}
            (Stage::Frames, _) => self.see_frames(from, bytes, part),
            (Stage::Handshake, Role::Client) => self.see_request(bytes, part),
            (Stage::Handshake, Role::Server) => self.see_answer(bytes, part),
        }
    }

    /// The server has begun to close the connection, though its Close has not passed yet: what the client sends from
    /// here on is skipped, whatever it is.
    pub fn close_begins(&mut self) {
        self.judge.close_begins();
    }

    /// The TCP connection is over. `how` is what the server has to say of it.
    pub fn end(&mut self, how: &str, time: SystemTime) {
        self.reporter.time = time;
        if self.stage == Stage::Handshake {
            self.tell_request();
        }
        for from in [Role::Client, Role::Server] {
            let side = self.side(from);
            if let Some(frame) = side.frames.current().filter(|_| !side.is_told).cloned() {
                self.tell_frame(frame);
            }
        }
        self.reporter.tell_refusal(self.judge.settle(None));
        let (change, end) = self.life.end(how);
        self.reporter.tell_change(change);
        self.reporter.tell(What::End(end));
    }

    fn side(&mut self, sender: Role) -> &mut Side {
        match sender {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    fn see_request(&mut self, bytes: &[u8], part: u64) {
        let was_complete = self.client.head.is_complete;
        let behind = self.client.head.read(bytes, part);
        if self.client.head.is_complete && !was_complete {
            self.tell_head();
        }
        let waiting: usize = self.ahead.iter().map(|(_, bytes)| bytes.len()).sum();
        if waiting > 0 && waiting + behind.len() > MAX_AHEAD {
            self.client.is_lost = true;
            self.reporter.tell(What::Missed(1));
        } else if !behind.is_empty() {
            self.ahead.push((part, behind.to_vec()));
        }
    }

    /// Tells of a request that is answered, or given up, before its head is complete.
    fn tell_request(&mut self) {
        if !self.client.head.is_complete && !self.client.head.bytes.is_empty() {
            self.tell_head();
        }
    }

    fn tell_head(&mut self) {
        let head = Head { bytes: secret::masked(&self.client.head.bytes), ..self.client.head.clone() };
        self.reporter.tell(What::Request(head));
    }

    fn see_answer(&mut self, bytes: &[u8], part: u64) {
        if self.server.head.bytes.is_empty() {
            self.tell_request();
        }
        let behind = self.server.head.read(bytes, part);
        if !self.server.head.is_complete {
            return;
        }
        let head = self.server.head.clone();
        let status = head.status();
        if status != 101 {
            let body = behind[..behind.len().min(MAX_SHOWN)].to_vec();
            self.stage = Stage::Over;
            self.ahead = Vec::new();
            return self.reporter.tell(What::Response(Response { head, status, body, accept: None }));
        }
        let accept = AcceptSteps::between(&self.client.head, &head);
        self.reporter.tell(What::Response(Response { head, status, body: Vec::new(), accept }));
        self.stage = if self.is_private { Stage::Over } else { Stage::Frames };
        self.reporter.tell_change(self.life.open());
        (self.client.head, self.server.head) = (Head::default(), Head::default());
        for (ahead, bytes) in std::mem::take(&mut self.ahead) {
            self.see_frames(Role::Client, &bytes, ahead); // it came before the answer was written
        }
        self.see_frames(Role::Server, behind, part);
    }

    fn see_frames(&mut self, from: Role, mut bytes: &[u8], part: u64) {
        while !bytes.is_empty() && !self.side(from).is_lost && self.stage == Stage::Frames {
            let before = bytes;
            let step = self.side(from).frames.next(&mut bytes, part);
            let passed = &before[..before.len() - bytes.len()];
            match from {
                Role::Client => self.judge_client(passed, &step),
                Role::Server => self.judge_server(&step),
            }
            match step {
                Step::More => {}
                Step::Lost(..) => self.side(from).is_lost = true,
                Step::Complete(frame) => {
                    let close = (frame.header.opcode() == Opcode::Close as u8).then(|| frame.unmasked());
                    if let (Role::Server, Some(payload)) = (from, &close) {
                        self.reporter.tell_refusal(self.judge.settle(Some(payload)));
                        self.judge.close_begins();
                    }
                    if !std::mem::take(&mut self.side(from).is_told) {
                        self.tell_frame(frame);
                    }
                    if let Some(payload) = close {
                        self.reporter.tell_change(self.life.see_close(from, &payload));
                    }
                }
            }
        }
    }

    fn judge_client(&mut self, passed: &[u8], step: &Step) {
        if let Some(error) = self.judge.pass(passed)
            && let Some(frame) = self.tell_refused(Role::Client, step)
        {
            let refusal = failure::explain(error, &frame, &self.judge.limits);
            self.reporter.tell_refusal(self.judge.find(error, refusal));
        }
        self.client.is_lost |= self.judge.is_over();
    }

    /// Judges what can be judged of a server's frame: its header.
    fn judge_server(&mut self, step: &Step) {
        let broken = match step {
            Step::Lost(_, error) => Some(*error),
            Step::Complete(frame) if frame.header.is_masked() => None,
            _ => return,
        };
        if let Some(frame) = self.tell_refused(Role::Server, step) {
            let explained = broken.map(|error| failure::explain(error, &frame, &self.judge.limits));
            self.reporter.tell(What::Failure(explained.unwrap_or_else(|| failure::masked_by_server(&frame))));
        }
    }

    /// Tells of a frame that is refused, as far as it came, and gives it back.
    fn tell_refused(&mut self, from: Role, step: &Step) -> Option<Frame> {
        let frame = match step {
            Step::Complete(frame) | Step::Lost(frame, _) => frame.clone(),
            Step::More => self.side(from).frames.current()?.clone(),
        };
        self.side(from).is_told = true;
        self.tell_frame(frame.clone());
        Some(frame)
    }

    fn tell_frame(&mut self, mut frame: Frame) {
        let is_text = frame.header.opcode() == Opcode::Text as u8;
        match frame.sender {
            // It is in the first message that a server sends.
            Role::Server if is_text => self.ticket.take().iter_mut().for_each(|mask| mask.mask(&mut frame.wire)),
            Role::Server => {}
            // A request in place of a frame has its token where a frame has its payload.
            Role::Client if frame.header.is_masked() => {}
            Role::Client => {
                let header = frame.header.bytes();
                frame.wire = secret::masked(&[header, &frame.wire].concat()).split_off(header.len());
            }
        }
        self.reporter.tell(What::Frame(frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_true() {
        let stage_after = |answer: &[u8]| {
            let mut tap = Tap::new(1, Records::default());
            tap.see(Role::Client, b"GET / HTTP/1.1\r\n\r\n", SystemTime::UNIX_EPOCH);
            tap.see(Role::Server, answer, SystemTime::UNIX_EPOCH);
            tap.stage
        };
        let [before, upgraded, plain] =
            [&b""[..], b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"].map(stage_after);
        let picture = format!("  {before:?} ──101──▶ {upgraded:?}\n      └──any other answer──▶ {plain:?}");
        crate::pictures::assert_drawn(include_str!("tap.rs"), &picture);
    }

    /// The one thing that the bytes alone do not tell: the server has begun to close, and its Close is still to be sent.
    #[test]
    fn what_comes_behind_a_close_that_waits_is_not_judged() {
        let broken = |closes: bool| {
            let records = Records::default();
            let mut tap = Tap::open(1, records.clone());
            if closes {
                tap.close_begins();
            }
            tap.see(Role::Client, b"\x81\x81\0\0\0\0\xff", SystemTime::UNIX_EPOCH);
            records.take().iter().any(|record| matches!(record.what, What::Failure(_)))
        };
        assert!(broken(false) && !broken(true));
    }
}
