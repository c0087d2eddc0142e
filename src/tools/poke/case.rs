//! A test case: what the client sends, what the server must send back, and the rule under test. Cases are constants;
//! [`notation`] parses their bytes. A case checks statuses, replies, close codes and how the connection ends,
//! never the text of a close reason, because the RFC leaves that text to the server. A case may also list other
//! behavior that an RFC permits, with the section that permits it.

use crate::tools::notation;
use crate::ws::close::ProtocolError;
use crate::ws::mask;

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub summary: &'static str,
    pub needs: Requirement,
    pub opening: Opening,
    /// The client's actions after the opening handshake, in order.
    pub steps: &'static [Step],
    /// The messages and Pongs expected from the server, in order.
    pub replies: &'static [Reply],
    /// The expected final state of the connection, such as open, or closed with code 1002.
    pub end: End,
    /// Other final states that an RFC permits. Each text names the section that permits the state, and summarizes its
    /// rule.
    pub allowed: &'static [(End, &'static str)],
    /// The section under test (of RFC 6455 unless the text names another RFC), and a summary of its rule.
    pub rule: (&'static str, &'static str),
    /// The protocol error that wirechat must detect in the client's frames, if any.
    pub error: Option<ProtocolError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// The test case works with any endpoint that accepts an upgrade.
    Upgrade,
    Echo,
    /// The test case needs wirechat's `/echo` endpoint, because it tests wirechat's own rules or limits.
    WirechatEcho,
    WirechatChat,
}

#[derive(Debug, Clone, Copy)]
pub enum Opening {
    Valid,
    /// A request changed by the given edits, which may make the request invalid.
    Edited(&'static [Edit]),
    /// Like `Edited`, but the request also offers permessage-deflate. If the server declines the offer, the case is
    /// skipped.
    Deflate(&'static [Edit]),
    /// Like `Deflate`, but the client's compressed messages refer to earlier ones. Applies only to a server that allows
    /// such references (client context takeover, RFC 7692 §7.1.1.2).
    Takeover(&'static [Edit]),
    /// Skips the opening handshake: the client runs the first step of the case as soon as TCP connects.
    Skipped,
}

/// A change to a valid request. `{host}`, `{target}` and `{key}` in a line expand to the request's values.
#[derive(Debug, Clone, Copy)]
pub enum Edit {
    RequestLine(&'static str),
    /// Replaces the request's header line that has the same name as this line, or adds this line if there is none.
    Set(&'static str),
    /// Adds a header line, even if the request already has a header with that name.
    Add(&'static str),
    Remove(&'static str),
    /// Adds an `X-Long` header whose value has the given number of bytes.
    LongLine(usize),
    ManyLines(usize),
    /// Appends `&` and the given number of bytes to the query.
    LongTarget(usize),
    LineEnd(&'static str),
    /// Sends the given bytes before the request, in the same write.
    Prepend(&'static str),
    /// Sends the given bytes after the request, in the same write.
    Append(&'static str),
    /// Sends the request one byte at a time.
    ByteByByte,
}

#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Sends the given raw bytes in one write.
    Bytes(&'static str),
    /// Sends the given bytes one per write, with a pause after each.
    BytesSlowly(&'static str),
    /// Sends a frame with the given first byte (FIN, RSV, opcode) and payload, masked with a random key.
    Frame(u8, &'static str),
    /// Sends a frame with the given first byte and a payload of the given number of letters.
    Letters(u8, usize),
    /// Repeats the given steps the given number of times, and sends all their bytes in one write.
    Repeat(usize, &'static [Step]),
    /// Waits until the server has sent the given number of messages and Pongs in total.
    Await(usize),
    Pause,
    /// Sends a TCP FIN and continues to read.
    HalfClose,
    /// Sends a frame of letters repeatedly and does not read, until the server accepts no more bytes, disconnects, or
    /// has accepted [`FLOOD_BYTES`].
    Flood(u8, usize),
}

/// The client stops a flood after 96 MiB. The socket buffers cannot hold that many bytes, so a server that has accepted
/// all of them applies no backpressure.
pub const FLOOD_BYTES: u64 = 96 << 20;

#[derive(Debug, Clone, Copy)]
pub enum Reply {
    Text(&'static str),
    Binary(&'static str),
    /// A text message (opcode 1) or binary message (opcode 2) that consists of the given number of letters.
    Letters(u8, usize),
    Pong(&'static str),
    /// A Pong that the server may omit: §5.5.3 permits an endpoint to reply only to the most recent Ping.
    OptionalPong(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The connection stays open, even after a final Ping from the client.
    Open,
    /// The server sends nothing, except perhaps the 101 response, and waits for more bytes.
    Waits,
    /// The server sends a Close with one of the given codes (1005: no code), then closes TCP.
    Closes(&'static [u16]),
    ClosesWithAnyCode,
    /// The server closes TCP without sending a Close.
    Disconnects,
    Status(u16),
    /// An HTTP response with a status of 400 or above.
    HttpError,
    /// An HTTP error whose `Sec-WebSocket-Version` header lists 13.
    ListsVersion,
    /// Instead of the upgrade (101), the server sends any other final HTTP response: a status of 200 or above.
    NoUpgrade,
    /// Backpressure: the server stops reading from a client that does not read.
    StopsReading,
}

impl Opening {
    pub fn edits(self) -> &'static [Edit] {
        match self {
            Opening::Valid | Opening::Skipped => &[],
            Opening::Edited(edits) | Opening::Deflate(edits) | Opening::Takeover(edits) => edits,
        }
    }
}

impl Case {
    pub fn is_wirechat_rule(&self) -> bool {
        matches!(self.needs, Requirement::WirechatEcho | Requirement::WirechatChat)
    }

    /// Returns the bytes that all steps send (for a flood, only its first frame). Returns `None` if a step half-closes
    /// the connection. `key` generates a masking key for each frame.
    pub fn bytes(&self, key: &mut dyn FnMut() -> [u8; 4]) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for step in self.steps.iter().filter(|step| !matches!(step, Step::Await(_) | Step::Pause)) {
            bytes.extend(step.bytes(key)?);
        }
        Some(bytes)
    }
}

impl Step {
    /// Returns the bytes that the step sends (for a flood, only its first frame). Returns `None` if the step only
    /// waits, or half-closes the connection.
    pub fn bytes(&self, key: &mut dyn FnMut() -> [u8; 4]) -> Option<Vec<u8>> {
        match *self {
            Step::Bytes(bytes) | Step::BytesSlowly(bytes) => Some(notation::read_case_bytes(bytes)),
            Step::Frame(first, payload) => Some(encode_masked_frame(first, notation::read_case_bytes(payload), key())),
            Step::Letters(first, len) | Step::Flood(first, len) => {
                Some(encode_masked_frame(first, letters(len), key()))
            }
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

/// Encodes a masked client frame (§5.2, §5.3). `first` is the byte with FIN, RSV and opcode.
pub fn encode_masked_frame(first: u8, mut payload: Vec<u8>, key: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    // §5.2: "the minimal number of bytes MUST be used to encode the length"
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

pub fn letters(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}
