//! permessage-deflate (RFC 7692): negotiation, compressed messages in both directions, and one compression of a message
//! for a whole room. [`negotiation`] chooses the parameters, [`inflating`] receives, and [`broadcast`] sends.
//! [`context`] inflates messages of both peers, for the inspector and the tools. zlib-rs implements DEFLATE itself
//! (RFC 1951). The module uses no sockets, and does not know what a room is.
//!
//! DEFLATE replaces repeated text with a reference to an earlier occurrence in the last 32 KiB, the *window*. Chat
//! events are short and alike, so they shrink well only if they may refer to earlier messages. RFC 7692 allows that
//! (*context takeover*): the window then contains the compressed messages that the peer has received. Most servers
//! therefore keep a compressor for each connection, and compress a message to n members n times.
//!
//! This server compresses the message once. The members of a room receive the same messages, so their windows end in
//! the same bytes, back to the join of the newest member. The room keeps that common end, the *tail*: a message may
//! refer to it and to nothing else. A join empties the tail, because the new member's window does not have these
//! bytes. An event for one member, or for all but one, is sent uncompressed (RSV1 = 0), so it enters no window
//! (exception: [`broadcast::Recipients::AllButNew`]). Example, with the windows of two members:
//!
//! ```text
//!                   sent          tail         alice's window  bob's window
//!   alice: "one"    RSV1 = 1      one          one
//!   alice: "two"    RSV1 = 1      one two      one two
//!   bob joins       RSV1 = 0                   one two
//!   bob: "three"    RSV1 = 1      three        one two three   three
//!   alice types     RSV1 = 0      three        one two three   three
//!   alice: "four"   RSV1 = 1      three four   one two three four three four
//! ```
//!
//! A tail holds at most 2 KiB, and the server has one compressor for all tails. So a room needs at most 2 KiB for each
//! dialect (JSON format) of its members, and a connection needs no compressor. A client that declines context takeover,
//! or wants a smaller window, receives a second variant of each message, which refers to no other message. In the other
//! direction, the server forbids context takeover (`client_no_context_takeover`), so a connection needs an inflater
//! only while a compressed message arrives.

#[cfg_attr(not(feature = "deflate"), path = "absent.rs")]
mod codec;

pub mod broadcast;
pub mod context;
pub mod inflating;
pub mod negotiation;

pub use codec::Inflater;
pub use negotiation::{Agreement, negotiate};

use super::close::ProtocolError::{self, MisplacedRsv1};

/// RFC 7692 §6: marks the first frame of a compressed message.
pub const RSV1: u8 = 0x40;
const MAX_WINDOW_BITS: u8 = 15;
/// RFC 7692 §7.2.1: the last four bytes of a flushed stream, which a sender removes from each message. They are the
/// length fields of an empty stored block.
pub const SYNC_FLUSH_MARKER: [u8; 4] = [0, 0, 0xff, 0xff];
/// An empty stored block (RFC 1951 §3.2.4) with BFINAL = 1.
const FINAL_BLOCK: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// The result of one step of an [`Inflater`]: a piece of output, and the state of the stream after that piece.
pub struct Step<'a> {
    pub output: &'a [u8],
    pub needs_input: bool, // the step has read all of its input
    pub is_final: bool,    // a final block (BFINAL = 1) has ended
    pub is_broken: bool,   // the input does not inflate
}

/// Checks the first byte of a frame that sets a reserved bit. RFC 7692 §6 allows only RSV1, in a message's first frame.
pub fn check_reserved_bits(first: u8) -> Result<(), ProtocolError> {
    let starts_message = matches!(first & 0x0f, 1..8); // `Opcode::from_bits` rejects the reserved opcodes 3 to 7
    MisplacedRsv1.err_unless(first & 0x30 == 0 && starts_message)
}
