//! Detects the client's protocol errors (§7.1.7). The [`RuleChecker`] runs a second [`Protocol`] on a copy of the
//! client's bytes. It does not format frames or explain failures.
//!
//! In a server, the checker sees all bytes of a read before the server processes the first frame. The server may then
//! close the connection for another reason and never reach the invalid frame. For this reason, the checker reports a
//! failure only after the server sends its Close or TCP closes, and not at all if the server gave another reason.

use super::Failure;
use crate::ws::close::{CloseCode, CloseFrame, ProtocolError};
use crate::ws::protocol::{Event, Limits, Protocol, State};

// The limits of a checker until `set_limits` is called. They are generous, because it is worse to report a false
// protocol error than to miss one.
const DEFAULT_LIMITS: Limits =
    Limits { message: 16 * 1024 * 1024, fragments: 100_000, accepts_binary: true, deflates: false };

#[derive(Debug)]
pub struct RuleChecker {
    pub limits: Limits,
    protocol: Protocol,
    /// Whether to report a protocol error only after the server has sent its Close or the TCP connection has closed.
    pub awaits_close: bool,
    held_failure: Option<(ProtocolError, Failure)>,
}

impl Default for RuleChecker {
    fn default() -> RuleChecker {
        let protocol = Protocol::new(DEFAULT_LIMITS);
        RuleChecker { limits: DEFAULT_LIMITS, protocol, awaits_close: false, held_failure: None }
    }
}

impl RuleChecker {
    /// Sets the limits. Must be called before the client's first frame, because it also resets the protocol's state.
    pub fn set_limits(&mut self, limits: Limits) {
        (self.limits, self.protocol) = (limits, Protocol::new(limits));
    }

    pub fn buffered_bytes(&self) -> usize {
        self.protocol.buffered_bytes()
    }

    pub fn check(&mut self, bytes: &[u8]) -> Option<ProtocolError> {
        // Copy the bytes: the protocol unmasks in place, but the tap shows bytes as they were on the wire.
        let mut bytes = bytes.to_vec();
        let (mut input, mut broken) = (&mut bytes[..], None);
        while let Some(event) = self.protocol.receive(&mut input) {
            if let Event::Failed(error) = event {
                broken = Some(error);
            }
        }
        // Discard the output, for example Pongs: a tap never sends anything, so the output would accumulate.
        self.protocol.take_output();
        broken
    }

    /// Whether the protocol has stopped parsing the client's bytes as frames.
    pub fn is_finished(&self) -> bool {
        matches!(self.protocol.state(), State::Closed | State::OutOfSync)
    }

    /// Makes the checker discard later data frames, as the server does once it has queued or sent a Close.
    pub fn set_closing(&mut self) {
        self.protocol.close(CloseCode::NORMAL, "");
        self.protocol.take_output();
    }

    /// Holds the failure if `awaits_close` is set. Otherwise, returns the failure, for the caller to report now.
    pub fn hold_failure(&mut self, error: ProtocolError, failure: Failure) -> Option<Failure> {
        if !self.awaits_close {
            return Some(failure);
        }
        self.held_failure = Some((error, failure));
        None
    }

    /// Returns the failure that `hold_failure` stored, if any. `close` is the payload of the server's Close frame, or
    /// `None` if the server sent none. If that frame has another code or reason, returns `None` and discards the
    /// failure, because the server closed the connection before it reached the invalid frame.
    pub fn release_failure(&mut self, close: Option<&[u8]>) -> Option<Failure> {
        let (error, failure) = self.held_failure.take()?;
        let expected = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        close.is_none_or(|payload| payload == expected).then_some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::frame::Role;

    #[test]
    fn a_close_for_another_reason_drops_a_held_failure() {
        let error = ProtocolError::Unmasked;
        let failure = Failure { by: Role::Client, frame_number: 1, code: 1002, section: "5.1", reason: String::new() };
        let agreeing = CloseFrame { code: Some(error.code()), reason: &error.to_string() }.encode();
        for (close, is_released) in [(Some(&agreeing[..]), true), (Some(b"\x03\xf0flooding"), false), (None, true)] {
            let mut checker = RuleChecker { awaits_close: true, ..RuleChecker::default() };
            assert_eq!(checker.hold_failure(error, failure.clone()), None);
            assert_eq!(checker.release_failure(close).is_some(), is_released, "{close:?}");
            assert_eq!(checker.release_failure(None), None, "a failure is released once");
        }
        assert!(RuleChecker::default().hold_failure(error, failure).is_some(), "without `awaits_close`");
    }
}
