//! Detects rules that the client breaks (§7.1.7) by running a separate [`Protocol`] over a copy of the client's bytes.
//! Other modules format frames and explain failures.
//!
//! Inside a server, the tap sees a whole read before the server has processed any of the read. The server may then
//! close for another reason and never reach the frame that broke a rule. So the checker holds a failure until the
//! server sends its Close, and reports the failure only if the Close is for the same error.

use super::Failure;
use crate::ws::Limits;
use crate::ws::close::{CloseCode, CloseFrame, ProtocolError};
use crate::ws::protocol::{Event, Framing, Protocol, State};

// Generous defaults for use until the server's limits are known: the checker must not enforce a stricter limit than the
// server does.
const DEFAULT_LIMITS: Limits = Limits { message: 16 * 1024 * 1024, fragments: 100_000, accepts_binary: true };

#[derive(Debug)]
pub struct RuleChecker {
    pub limits: Limits,
    protocol: Protocol,
    /// Whether to hold each failure until the server sends its Close.
    pub awaits_close: bool,
    held: Option<(ProtocolError, Failure)>,
}

impl Default for RuleChecker {
    fn default() -> RuleChecker {
        let protocol = Protocol::new(DEFAULT_LIMITS);
        RuleChecker { limits: DEFAULT_LIMITS, protocol, awaits_close: false, held: None }
    }
}

impl RuleChecker {
    /// Sets the server's limits. Must be called before the first frame.
    pub fn set_limits(&mut self, limits: Limits) {
        (self.limits, self.protocol) = (limits, Protocol::new(limits));
    }

    /// Bytes buffered for an incomplete message.
    pub fn buffered(&self) -> usize {
        self.protocol.buffered()
    }

    /// Checks the client's next bytes and returns the protocol error, if any.
    pub fn check(&mut self, bytes: &[u8]) -> Option<ProtocolError> {
        // Copy the bytes: the protocol unmasks in place, but the tap shows bytes as they were on the wire.
        let mut bytes = bytes.to_vec();
        let (mut input, mut broken) = (&mut bytes[..], None);
        while let Some(event) = self.protocol.receive(&mut input) {
            if let Event::Failed(error) = event {
                broken = Some(error);
            }
        }
        // Discard the protocol's output: a tap sends nothing, so unsent Pongs would accumulate.
        self.protocol.take_output();
        broken
    }

    /// Whether the protocol has stopped parsing the client's bytes as frames.
    pub fn is_finished(&self) -> bool {
        matches!(self.protocol.state(), State::Closed | State::Closing(Framing::Lost))
    }

    /// Called when the server starts closing. A closing server discards data frames, so the checker does too.
    pub fn closing(&mut self) {
        self.protocol.close(CloseCode::NORMAL, "");
        self.protocol.take_output();
    }

    /// Returns the failure for immediate reporting, or holds the failure if `awaits_close` is set.
    pub fn hold(&mut self, error: ProtocolError, failure: Failure) -> Option<Failure> {
        if !self.awaits_close {
            return Some(failure);
        }
        self.held = Some((error, failure));
        None
    }

    /// Removes the held failure and returns it, unless the server closed for another reason. `close` is the payload of
    /// the server's Close, or `None` if the connection closed without a Close.
    pub fn release(&mut self, close: Option<&[u8]>) -> Option<Failure> {
        let (error, failure) = self.held.take()?;
        // A Close for this error contains the error's code and text. Any other Close has another cause.
        let expected = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        close.is_none_or(|payload| payload == expected).then_some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::frame::Role;

    #[test]
    fn a_held_failure_is_released_by_the_close_for_its_rule_and_no_other() {
        let error = ProtocolError::Unmasked;
        let failure = Failure { by: Role::Client, frame: 1, code: 1002, section: "5.1", because: String::new() };
        let agreeing = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        for (close, is_released) in [(Some(&agreeing[..]), true), (Some(b"\x03\xf0flooding"), false), (None, true)] {
            let mut checker = RuleChecker { awaits_close: true, ..RuleChecker::default() };
            assert_eq!(checker.hold(error, failure.clone()), None);
            assert_eq!(checker.release(close).is_some(), is_released, "{close:?}");
            assert_eq!(checker.release(None), None, "once");
        }
        assert!(RuleChecker::default().hold(error, failure).is_some(), "without a server: at once");
    }
}
