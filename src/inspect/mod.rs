//! The wire, visible: what passed on a connection, as the bytes that passed.
//!
//! ```text
//!   bytes of each read ───▶ ┌─────┐        ┌─ text   one line a frame, or its header drawn field by field
//!                           │ Tap │─▶ Record ─┤
//!   bytes of each write ──▶ └─────┘        └─ json   for the page's inspector
//! ```
//!
//! A [`Tap`] stands beside a connection and is shown the raw bytes of both directions, each read and each write as it
//! was. It decodes them with the same [`FrameHeader::parse_from`](crate::ws::frame::FrameHeader::parse_from) as the
//! protocol, but on its own: the protocol does not know that it is watched. What it finds are [`Record`]s, and how they
//! look is a question of their own ([`text`], [`json`]).
//!
//! Reading order: this file and [`frame`] (what there is to say), [`tap`] (who says it), [`head`] and [`scan`] (what one
//! direction holds), [`judge`] and [`failure`] (what was wrong, and which bytes show it), [`life`] (the states),
//! [`records`] (where all that goes), [`text`], [`figure`] and [`json`] (how it looks), [`visible`] (what may go to a
//! terminal), [`secret`] (what is never shown), [`filter`] (what is asked for), [`recorder`] and [`recording`] (bytes kept
//! for later).
//!
//! The subtle thing: a tap must cost nothing where there is none, and must never cost more than a bound where there is
//! one. What does not fit is counted, and the count is a record too.

pub mod figure;
pub mod filter;
pub mod frame;
pub mod head;
pub mod json;
pub mod judge;
pub mod life;
pub mod recorder;
pub mod recording;
pub mod records;

pub mod failure;
pub mod scan;
pub mod secret;
pub mod tap;
pub mod text;
pub mod visible;

use std::rc::Rc;
use std::time::SystemTime;

use crate::ws::frame::Role;
pub use frame::{Frame, Header, LengthForm, Parts, Place};
pub use records::Records;
pub use tap::Tap;

/// How many bytes of a payload, or of the body of an answer, are kept in a record.
pub const MAX_SHOWN: usize = 1024;

/// Something that happened on a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The number of the connection, as in `#7`.
    pub connection: usize,
    /// Who is at its other end, once that is known.
    pub user: Option<Rc<str>>,
    /// When the last byte of it passed.
    pub time: SystemTime,
    /// What it was.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The head of the request, as far as it came (§4.1).
    Request(Head),
    /// The head of the answer (§4.2.2), and how its accept value comes about.
    Response(Response),
    /// A frame (§5.2).
    Frame(Frame),
    /// The connection went on to another state (§4.1, §7.1).
    State(StateChange),
    /// A rule was broken (§7.1.7).
    Failure(Failure),
    /// The TCP connection is over (§7.1.1, §7.1.4).
    End(End),
    /// So many records were left out here.
    Missed(u64),
}

/// The head of an HTTP message. Tokens are masked in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Its bytes: up to and with the blank line, if that came.
    pub bytes: Vec<u8>,
    /// How many of them are blank lines in front.
    pub blank: usize,
    /// Whether the blank line came.
    pub is_complete: bool,
    /// What it came in.
    pub parts: Parts,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its head.
    pub head: Head,
    /// The HTTP status; 0 if there is none to be read.
    pub status: u16,
    /// The first bytes behind the head of a plain answer.
    pub body: Vec<u8>,
    /// How the accept value of a 101 comes about.
    pub accept: Option<AcceptSteps>,
}

/// §1.3 and §4.2.2, step by step: from the client's key to the server's accept value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptSteps {
    /// `Sec-WebSocket-Key` as sent.
    pub key: String,
    /// The key with the GUID of §1.3 behind it.
    pub joined: String,
    /// The SHA-1 of that.
    pub sha1: [u8; 20],
    /// Its base64: what the answer must hold.
    pub accept: String,
    /// What the answer does hold.
    pub answered: Option<String>,
}

/// The connection went on to another state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// The state it was in.
    pub from: State,
    /// The state it is in.
    pub to: State,
    /// What did that.
    pub because: String,
}

/// The states of a connection by their names in RFC 6455.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// §4.1: the handshake is not over.
    Connecting,
    /// §4.1: data may be sent.
    Open,
    /// §7.1.3: a Close has passed.
    Closing,
    /// §7.1.4: both Closes have passed, or the TCP connection is gone.
    Closed,
}

/// A rule was broken, and by which bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Who broke it.
    pub by: Role,
    /// Which of the frames of that side broke it, as [`Frame::number`].
    pub frame: u64,
    /// What the connection is closed with (§7.4).
    pub code: u16,
    /// The section of RFC 6455.
    pub section: &'static str,
    /// What is wrong, the rule, and the bytes that show it.
    pub because: String,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Who sent the first Close; `None` if there was none.
    pub began: Option<Role>,
    /// The code of that Close; `None` if it had none.
    pub code: Option<u16>,
    /// Its reason.
    pub reason: String,
    /// Whether both sides sent one (§7.1.4: "cleanly").
    pub is_clean: bool,
    /// What the server has to say of it.
    pub how: String,
}

impl State {
    /// Its name in RFC 6455.
    pub fn name(self) -> &'static str {
        match self {
            State::Connecting => "CONNECTING",
            State::Open => "OPEN",
            State::Closing => "CLOSING",
            State::Closed => "CLOSED",
        }
    }
}
