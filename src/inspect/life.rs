//! Where a watched connection stands, by the states that RFC 6455 names, and who began to close it.
//!
//! ```text
//!   CONNECTING ──101──▶ OPEN ──a Close──▶ CLOSING ──the other side's Close──▶ CLOSED
//! ```
//!
//! The end of the TCP connection leads to CLOSED from everywhere. This is what passed on the wire: a server may know
//! earlier that it is about to close.

use super::{End, State, StateChange};
use crate::ws::close::CloseFrame;
use crate::ws::frame::Role;

/// The state of a connection.
#[derive(Debug)]
pub struct Life {
    state: State,
    first_close: Option<FirstClose>,
}

#[derive(Debug)]
struct FirstClose {
    by: Role,
    code: Option<u16>,
    reason: String,
}

impl Life {
    /// A connection in this state.
    pub fn new(state: State) -> Life {
        Life { state, first_close: None }
    }

    /// The server has answered 101 (§4.1).
    pub fn open(&mut self) -> Option<StateChange> {
        self.change(State::Open, "the server answered 101".into())
    }

    /// A Close with this unmasked payload has passed (§7.1.3).
    pub fn see_close(&mut self, from: Role, payload: &[u8]) -> Option<StateChange> {
        // Also a code that may not be sent was sent.
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let reason = CloseFrame::parse(payload).map(|close| close.reason.to_owned()).unwrap_or_default();
        let who = match from {
            Role::Client => "client",
            Role::Server => "server",
        };
        let because = format!("the {who} sent Close{}", code.map(|code| format!(" {code}")).unwrap_or_default());
        match &self.first_close {
            None => {
                self.first_close = Some(FirstClose { by: from, code, reason });
                self.change(State::Closing, because)
            }
            Some(first) if first.by != from => self.change(State::Closed, because),
            Some(_) => None,
        }
    }

    /// The TCP connection is over (§7.1.4): "cleanly" after both Closes. `how` is what the server has to say of it.
    pub fn end(&mut self, how: &str) -> (Option<StateChange>, End) {
        let is_clean = self.state == State::Closed;
        let change = self.change(State::Closed, "the TCP connection is over".into());
        let first = self.first_close.take();
        let end = End {
            began: first.as_ref().map(|first| first.by),
            code: first.as_ref().and_then(|first| first.code),
            reason: first.map(|first| first.reason).unwrap_or_default(),
            is_clean,
            how: how.into(),
        };
        (change, end)
    }

    fn change(&mut self, to: State, because: String) -> Option<StateChange> {
        let from = std::mem::replace(&mut self.state, to);
        (from != to).then_some(StateChange { from, to, because })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_true() {
        let mut life = Life::new(State::Connecting);
        let mut states = vec![life.state.name()];
        let mut pass = |change: Option<StateChange>| states.push(change.expect("a change").to.name());
        pass(life.open());
        pass(life.see_close(Role::Client, b""));
        assert_eq!(life.see_close(Role::Client, b""), None, "a second one of the same side");
        pass(life.see_close(Role::Server, b""));
        let [connecting, open, closing, closed] = states[..] else { panic!("four states") };
        let picture =
            format!("  {connecting} ──101──▶ {open} ──a Close──▶ {closing} ──the other side's Close──▶ {closed}");
        crate::pictures::assert_drawn(include_str!("life.rs"), &picture);
    }

    #[test]
    fn rfc_7_1_4_it_ends_cleanly_after_both_closes_and_says_who_began() {
        let mut life = Life::new(State::Open);
        life.see_close(Role::Server, b"\x03\xe9going");
        life.see_close(Role::Client, b"\x03\xe9");
        let (change, end) = life.end("done");
        assert_eq!((change, end.is_clean, end.began), (None, true, Some(Role::Server)));
        assert_eq!((end.code, &end.reason[..]), (Some(1001), "going"));

        let (change, end) = Life::new(State::Open).end("reset");
        assert_eq!(change.map(|change| change.to), Some(State::Closed));
        assert_eq!((end.is_clean, end.began), (false, None));
    }
}
