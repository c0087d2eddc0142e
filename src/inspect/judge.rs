//! Which rule a client broke (§7.1.7): a [`Protocol`] of the tap's own, run over a copy of the client's bytes. It knows
//! nothing of how frames are shown, or a verdict explained.
//!
//! ```text
//!   a client's frame ─▶ Judge ─▶ a broken rule ──▶ told at once
//!                                      └── the server has its own say ──▶ told when its Close agrees
//! ```
//!
//! The subtle thing: beside a server, the tap sees a whole read before the server has acted on its first byte. The server
//! may close for a reason of its own in the middle of it, and then never looks at what broke a rule behind that. So there
//! a verdict waits for the server's Close, and falls only if that is the Close for this rule.

use super::Failure;
use crate::ws::Limits;
use crate::ws::close::{CloseCode, CloseFrame, ProtocolError};
use crate::ws::protocol::{Event, Framing, Protocol, State};

/// What is judged by before it is known what the server takes.
const DEFAULT_LIMITS: Limits = Limits { message: 16 * 1024 * 1024, fragments: 100_000, binary: true };

/// Judges the frames of one client.
#[derive(Debug)]
pub struct Judge {
    /// What the server takes.
    pub limits: Limits,
    protocol: Protocol,
    /// Verdicts wait for the server's Close.
    pub waits: bool,
    waiting: Option<(ProtocolError, Failure)>,
}

impl Default for Judge {
    fn default() -> Judge {
        Judge { limits: DEFAULT_LIMITS, protocol: Protocol::new(DEFAULT_LIMITS), waits: false, waiting: None }
    }
}

impl Judge {
    /// From here on the server takes this much. Before the first frame.
    pub fn set_limits(&mut self, limits: Limits) {
        (self.limits, self.protocol) = (limits, Protocol::new(limits));
    }

    /// How much memory it holds for a message that is not complete, in bytes.
    pub fn buffered(&self) -> usize {
        self.protocol.buffered()
    }

    /// Judges the next bytes of the client: the rule that they broke.
    pub fn pass(&mut self, bytes: &[u8]) -> Option<ProtocolError> {
        let mut bytes = bytes.to_vec();
        let (mut input, mut broken) = (&mut bytes[..], None);
        while let Some(event) = self.protocol.receive(&mut input) {
            if let Event::Failed(error) = event {
                broken = Some(error);
            }
        }
        self.protocol.take_replies();
        broken
    }

    /// Whether what follows is no frame any more, or nothing that is read.
    pub fn is_over(&self) -> bool {
        matches!(self.protocol.state(), State::Closed | State::Closing(Framing::Lost))
    }

    /// The server has begun to close: what the client sends from here on breaks nothing.
    pub fn close_begins(&mut self) {
        self.protocol.close(CloseCode::NORMAL, "");
        self.protocol.take_replies();
    }

    /// A verdict: given back if it is to be told at once.
    pub fn find(&mut self, error: ProtocolError, refusal: Failure) -> Option<Failure> {
        if !self.waits {
            return Some(refusal);
        }
        self.waiting = Some((error, refusal));
        None
    }

    /// The server's Close, with this payload, is about to pass; or no more can pass, and there was none. Gives back the
    /// verdict that waited, if it stands.
    pub fn settle(&mut self, close: Option<&[u8]>) -> Option<Failure> {
        let (error, refusal) = self.waiting.take()?;
        let expected = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        close.is_none_or(|payload| payload == expected).then_some(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::frame::Role;

    #[test]
    fn a_verdict_that_waits_falls_with_the_close_for_its_rule_and_no_other() {
        let error = ProtocolError::Unmasked;
        let refusal = Failure { by: Role::Client, frame: 1, code: 1002, section: "5.1", because: String::new() };
        let agreeing = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        for (close, falls) in [(Some(&agreeing[..]), true), (Some(b"\x03\xf0flooding"), false), (None, true)] {
            let mut judge = Judge { waits: true, ..Judge::default() };
            assert_eq!(judge.find(error, refusal.clone()), None);
            assert_eq!(judge.settle(close).is_some(), falls, "{close:?}");
            assert_eq!(judge.settle(None), None, "once");
        }
        assert!(Judge::default().find(error, refusal).is_some(), "with no server to wait for, at once");
    }
}
