//! What a case of the catalogue is: data. What is done to a server, what it must answer, and the rule.
//!
//! Bytes are written in the notation of [`notation`], so that a case reads like the frames that
//! it sends. This file does not know how a case is played ([`play`](super::play)) or judged
//! ([`verdict`](super::verdict)).
//!
//! The subtle thing: what is expected are codes, messages and the end of a connection, never the words of a reason,
//! because a case must be fair to any server. What else RFC 6455 lets a server do is listed, with the sentence that
//! allows it.

use crate::tools::notation;
use crate::ws::close::ProtocolError;
use crate::ws::mask;

/// One thing to do to a server, and what it must answer.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub what: &'static str,
    /// What must be at the other end.
    pub needs: Needs,
    /// How the connection begins.
    pub opening: Opening,
    /// What is done then, in order.
    pub steps: &'static [Step],
    /// The messages and Pongs that must come back.
    pub back: &'static [Back],
    /// What must become of the connection.
    pub end: End,
    /// What else is right, and why.
    pub allowed: &'static [(End, &'static str)],
    /// The section of RFC 6455 (or of another RFC, named), and what it says in our words.
    pub rule: (&'static str, &'static str),
    /// The rule as this project's own code has it, if the case breaks one.
    pub error: Option<ProtocolError>,
}

/// What a case needs of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any endpoint that takes a WebSocket connection.
    Upgrade,
    /// One that gives every message back.
    Echo,
    /// wirechat's own `/echo`: what is tried is no rule of the RFC, but this server's own.
    OwnEcho,
    /// wirechat's own chat, for the same reason.
    OwnChat,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
pub enum Opening {
    /// With a valid handshake (§4.1).
    Usual,
    /// With a handshake that has something odd about it.
    Odd(&'static [Edit]),
    /// With nothing: the first step's bytes are the first that the server sees.
    Silent,
}

/// What is odd about a request. In lines, `{host}`, `{target}` and `{key}` stand for what the usual one would have.
#[derive(Debug, Clone, Copy)]
pub enum Edit {
    /// Another request line.
    RequestLine(&'static str),
    /// A line in place of the one with the same name.
    Set(&'static str),
    /// One more line.
    Add(&'static str),
    /// No line of this name.
    Without(&'static str),
    /// A line `X-Long: ` of so many bytes.
    LongLine(usize),
    /// So many more lines.
    ManyLines(usize),
    /// A query of so many bytes more.
    LongTarget(usize),
    /// Something else for CR LF.
    LineEnd(&'static str),
    /// Bytes in front of the request.
    Before(&'static str),
    /// Bytes behind the request, in the same write.
    Behind(&'static str),
    /// One byte at a time.
    Slowly,
}

/// Something that is done once the connection is open.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// These bytes, in one write.
    Bytes(&'static str),
    /// These bytes, one at a time, with the delay between them.
    Slowly(&'static str),
    /// A whole frame: the byte with FIN, RSV and opcode, then a payload, masked with a key of chance.
    Frame(u8, &'static str),
    /// The same with so many letters for its payload.
    Letters(u8, usize),
    /// All of this so many times, in one write.
    Repeat(usize, &'static [Step]),
    /// Goes on when so many messages and Pongs have come in all.
    Await(usize),
    /// Waits for the delay.
    Pause,
    /// Ends the stream of bytes in this direction (TCP's FIN), and goes on reading.
    HalfClose,
    /// This frame again and again, without reading, until the server takes no more or has taken [`FLOOD`] bytes.
    Flood(u8, usize),
}

/// Far more than the kernel's buffers between two programs hold: a server that has taken so much holds the rest itself.
pub const FLOOD: u64 = 96 << 20;

/// Something that comes back.
#[derive(Debug, Clone, Copy)]
pub enum Back {
    /// A text message.
    Text(&'static str),
    /// A binary message.
    Binary(&'static str),
    /// A text message (1) or a binary one (2) of so many letters.
    Letters(u8, usize),
    /// A Pong.
    Pong(&'static str),
    /// A Pong that need not come (§5.5.3: only the most recent Ping must be answered).
    MaybePong(&'static str),
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is as alive as before: a Ping is answered.
    Open,
    /// The server says nothing, and waits.
    Waits,
    /// A Close with one of these codes (1005: none), then the end of the TCP connection.
    Closes(&'static [u16]),
    /// A Close with any code, then the end of the TCP connection.
    ClosesAnyhow,
    /// The end of the TCP connection, without a Close.
    Cut,
    /// An HTTP answer with this status in place of the 101.
    Status(u16),
    /// An HTTP answer with a status from 400 on.
    Refused,
    /// The same, and Sec-WebSocket-Version in it names 13.
    NamesVersion,
    /// Any HTTP answer but a 101.
    NoUpgrade,
    /// The server stops reading a peer that does not read.
    Stalls,
}

impl Case {
    /// Whether the case tries a rule of wirechat's own, which another server need not have.
    pub fn is_policy(&self) -> bool {
        matches!(self.needs, Needs::OwnEcho | Needs::OwnChat)
    }

    /// What the steps send, as one stream; `None` if there is more to them than bytes. `key` gives the masking keys.
    pub fn bytes(&self, key: &mut dyn FnMut() -> [u8; 4]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for step in self.steps.iter().filter(|step| !matches!(step, Step::Await(_) | Step::Pause)) {
            bytes.extend(step.bytes(key)?);
        }
        Some(bytes)
    }
}

impl Step {
    /// The bytes that the step sends; `None` if it does something else.
    pub fn bytes(&self, key: &mut dyn FnMut() -> [u8; 4]) -> Option<Vec<u8>> {
        match *self {
            Step::Bytes(bytes) | Step::Slowly(bytes) => Some(notation::bytes(bytes)),
            Step::Frame(first, payload) => Some(masked(first, notation::bytes(payload), key())),
            Step::Letters(first, len) | Step::Flood(first, len) => Some(masked(first, letters(len), key())),
            Step::Repeat(times, steps) => {
                let mut bytes = Vec::new();
                for step in std::iter::repeat_n(steps, times).flatten() {
                    bytes.extend(step.bytes(key)?);
                }
                Some(bytes)
            }
            Step::Await(_) | Step::Pause | Step::HalfClose => None,
        }
    }
}

/// A frame as a client sends it (§5.2, §5.3), its length in the shortest form. `first` is FIN, RSV and opcode.
pub fn masked(first: u8, mut payload: Vec<u8>, key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    mask::apply(&mut payload, key, 0);
    frame.append(&mut payload);
    frame
}

/// The alphabet, over and over.
pub fn letters(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}
