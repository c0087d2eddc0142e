//! Inflates compressed messages (RFC 7692) for display, frame by frame and in bounded memory. With context takeover, a
//! message may refer to earlier ones. If the inflater has not seen those, the message is shown as it is on the wire.

use super::MAX_SHOWN_BYTES;
use crate::ws::deflate::{Inflater, TAIL};

/// What the payload of a compressed frame inflates to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inflated {
    /// Number of inflated bytes.
    pub len: u64,
    /// The first [`MAX_SHOWN_BYTES`] of them.
    pub start: Vec<u8>,
    /// Whether the data does not inflate here: it is invalid or too long, continues after a final block, or refers to an
    /// earlier message that is missing.
    pub is_broken: bool,
    /// Whether the message so far has the field `token`, whose value is secret.
    pub has_token: bool,
}

#[derive(Debug)]
pub struct MessageInflater {
    inflater: Inflater,
    /// Whether each message starts with an empty window (no context takeover).
    is_reset: bool,
    is_broken: bool,
    /// The end of the output, in which `"token"` may have begun.
    last: Vec<u8>,
    has_token: bool,
    /// How many bytes the message may still inflate to. An endpoint rejects a longer one, so the inflater stops there.
    remaining: u64,
}

impl MessageInflater {
    const TOKEN: &[u8] = b"\"token\"";

    pub fn new(is_reset: bool) -> MessageInflater {
        let mut inflater = Inflater::default();
        inflater.reset(b"");
        MessageInflater { inflater, is_reset, is_broken: false, last: Vec::new(), has_token: false, remaining: 0 }
    }

    pub fn start_message(&mut self, limit: usize) {
        if self.is_reset || self.is_broken {
            self.inflater.reset(b"");
        }
        (self.is_broken, self.has_token, self.remaining) = (false, false, limit as u64);
        self.last.clear();
    }

    /// Inflates unmasked payload bytes of a frame.
    pub fn inflate(&mut self, mut payload: &[u8], frame: &mut Inflated) {
        while !self.is_broken {
            let step = self.inflater.step(&mut payload);
            let (needs_input, output) = (step.needs_input, step.output);
            frame.len += output.len() as u64;
            let room = MAX_SHOWN_BYTES - frame.start.len();
            frame.start.extend_from_slice(&output[..output.len().min(room)]);
            self.last.extend_from_slice(output);
            self.has_token |= self.last.windows(Self::TOKEN.len()).any(|word| word == Self::TOKEN);
            self.last.drain(..self.last.len().saturating_sub(Self::TOKEN.len() - 1));
            let is_too_long = output.len() as u64 > self.remaining;
            self.remaining = self.remaining.saturating_sub(output.len() as u64);
            // A block after a final block may refer to bytes before it, which this inflater does not keep.
            self.is_broken |= step.is_broken || step.is_final || is_too_long;
            if needs_input {
                break;
            }
        }
        (frame.is_broken, frame.has_token) = (self.is_broken, self.has_token);
    }

    pub fn end_message(&mut self, frame: &mut Inflated) {
        self.inflate(&TAIL, frame);
    }
}
