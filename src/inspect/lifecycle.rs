//! Tracks the RFC 6455 state of an observed connection, and which endpoint sent the first Close. The state changes when
//! a Close is on the wire, not when the server decides to close. When the TCP connection closes, the state becomes
//! CLOSED.
//!
//! ```text
//!   CONNECTING ──101──▶ OPEN ──a Close──▶ CLOSING ──the other endpoint's Close──▶ CLOSED
//! ```

use super::{End, State, StateChange};
use crate::ws::close::CloseFrame;
use crate::ws::frame::Role;

#[derive(Debug)]
pub struct Lifecycle {
    state: State,
    first_close: Option<FirstClose>,
}

#[derive(Debug)]
struct FirstClose {
    by: Role,
    code: Option<u16>,
    reason: String,
}

impl Lifecycle {
    pub fn new(state: State) -> Lifecycle {
        Lifecycle { state, first_close: None }
    }

    pub fn open(&mut self) -> Option<StateChange> {
        self.change(State::Open, "the server sent 101".into())
    }

    /// Records a Close sent by `from`, and returns the resulting state change, if any. `payload` must be unmasked.
    pub fn record_close(&mut self, from: Role, payload: &[u8]) -> Option<StateChange> {
        // Record every close code, even one that `CloseFrame::parse` rejects because it "MUST NOT be set" (§7.4.1).
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let close_reason = CloseFrame::parse(payload).map(|close| close.reason.to_owned()).unwrap_or_default();
        let code_text = code.map(|code| format!(" {code}")).unwrap_or_default();
        let reason = format!("the {} sent Close{code_text}", role_name(from));
        match &self.first_close {
            None => {
                // §7.1.5, §7.1.6: an endpoint takes the close code and reason from the first Close that it receives. A
                // tap sees both directions, so take the code and reason from the first Close in either direction.
                self.first_close = Some(FirstClose { by: from, code, reason: close_reason });
                self.change(State::Closing, reason)
            }
            Some(first) if first.by != from => self.change(State::Closed, reason),
            // §7.1.3: the first Close already started the closing handshake, so ignore a repeated Close.
            Some(_) => None,
        }
    }

    /// Changes the state to CLOSED when the TCP connection closes, and summarizes how the connection closed. The close
    /// is clean (§7.1.4) if both endpoints had sent a Close.
    pub fn close_tcp(&mut self, cause: &str) -> (Option<StateChange>, End) {
        let is_clean = self.state == State::Closed;
        let change = self.change(State::Closed, "the TCP connection ended".into());
        let first = self.first_close.take();
        let end = End {
            first_close: first.as_ref().map(|first| first.by),
            code: first.as_ref().and_then(|first| first.code),
            reason: first.map(|first| first.reason).unwrap_or_default(),
            is_clean,
            cause: cause.into(),
        };
        (change, end)
    }

    fn change(&mut self, to: State, reason: String) -> Option<StateChange> {
        let from = std::mem::replace(&mut self.state, to);
        (from != to).then_some(StateChange { from, to, reason })
    }
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_matches_the_code() {
        let mut lifecycle = Lifecycle::new(State::Connecting);
        let mut states = vec![lifecycle.state.name()];
        let mut pass = |change: Option<StateChange>| states.push(change.expect("a change").to.name());
        pass(lifecycle.open());
        pass(lifecycle.record_close(Role::Client, b""));
        assert_eq!(lifecycle.record_close(Role::Client, b""), None, "a second Close of the client");
        pass(lifecycle.record_close(Role::Server, b""));
        let [connecting, open, closing, closed] = states[..] else { panic!("four states") };
        let picture =
            format!("  {connecting} ──101──▶ {open} ──a Close──▶ {closing} ──the other endpoint's Close──▶ {closed}");
        crate::pictures::assert_in_module_doc(include_str!("lifecycle.rs"), &picture);
    }

    #[test]
    fn rfc_7_1_4_closed_cleanly_after_both_closes() {
        let mut lifecycle = Lifecycle::new(State::Open);
        lifecycle.record_close(Role::Server, b"\x03\xe9going");
        lifecycle.record_close(Role::Client, b"\x03\xe9");
        let (change, end) = lifecycle.close_tcp("both Closes passed");
        assert_eq!((change, end.is_clean, end.first_close), (None, true, Some(Role::Server)));
        assert_eq!((end.code, &end.reason[..], &end.cause[..]), (Some(1001), "going", "both Closes passed"));

        let (change, end) = Lifecycle::new(State::Open).close_tcp("reset");
        assert_eq!(change.map(|change| change.to), Some(State::Closed));
        assert_eq!((end.is_clean, end.first_close), (false, None));
    }
}
