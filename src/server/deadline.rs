//! When something must happen though nothing is received: handshake, ping, idle and close deadlines.
//!
//! Every connection has at most one deadline at a time: the next moment at which it must be looked at. Neither the
//! upgrade nor what is received moves it; the look finds what has come and sets the next. So a message costs nothing
//! here, an idle connection one look an interval, and the poll knows how long it may sleep.
//!
//! ```text
//!   a look at   10                    38                    68
//!   silent for  2                     30                    60
//!   therefore   next look at 38       ping, next look at 68 cut off
//! ```
//!
//! So it goes, with the default waits, for a client that was accepted at second 0 and sent its last byte at second 8.
//!
//! The subtle thing: the old deadline of a connection is taken out before a new one goes in, so the queue never holds
//! more entries than there are connections, however fast they come and go.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mio::Token;

use super::Server;
use super::listener::Listener;
use super::phase::Phase;
use crate::ws::request::Rejection;

/// All deadlines, the next one first.
#[derive(Debug, Default)]
pub struct Deadlines {
    queue: BTreeSet<(Instant, Token)>,
}

impl Deadlines {
    /// Sets the deadline of a connection. `current` is where the connection keeps it.
    pub fn set(&mut self, token: Token, current: &mut Option<Instant>, at: Instant) {
        self.cancel(token, current);
        self.queue.insert((at, token));
        *current = Some(at);
    }

    /// Forgets the deadline of a connection.
    pub fn cancel(&mut self, token: Token, current: &mut Option<Instant>) {
        if let Some(at) = current.take() {
            let was_there = self.queue.remove(&(at, token));
            debug_assert!(was_there, "a connection and the queue agree");
        }
    }

    /// How many connections have one.
    pub fn count(&self) -> usize {
        self.queue.len()
    }

    /// When the next deadline is.
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out a connection whose deadline is not after `now`, with that deadline.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Instant, Token)> {
        self.queue.first().filter(|(at, _)| *at <= now)?;
        self.queue.pop_first()
    }
}

impl Server {
    /// How long the poll may sleep: not at all if there is work left, else exactly until the next deadline.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let listener = self.listener.as_ref().filter(|_| self.has_room());
        if !self.unread.is_empty() || listener.is_some_and(|listener| listener.may_accept(self.now)) {
            return Some(Duration::ZERO);
        }
        let retry = listener.and_then(Listener::retry_at);
        let next = [self.deadlines.next(), retry, self.stop_at].into_iter().flatten().min();
        let next = next.map(|at| at.saturating_duration_since(Instant::now()));
        [next, self.journal.timeout()].into_iter().flatten().min()
    }

    /// Looks at every connection whose deadline has come: each gets a later one, or is ended.
    pub(super) fn look_at_due(&mut self) {
        while let Some((at, token)) = self.deadlines.pop_due(self.now) {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.deadline = None;
            // Silence counts up to when it should have been looked at: what comes later is the fault of a machine or a
            // process that stood still.
            let silent = at.saturating_duration_since(connection.last_received);
            let Some(wait) = self.config.after_silence(silent).filter(|_| connection.is_open()) else {
                self.time_is_up(token, silent);
                continue;
            };
            if silent >= self.config.ping_interval {
                self.ping(token);
            }
            self.set_deadline(token, self.now + (wait - silent));
        }
    }

    /// A connection that had to do something has not done it in time.
    fn time_is_up(&mut self, token: Token, silent: Duration) {
        let Some(connection) = self.connections.get(&token) else { return };
        match &connection.phase {
            Phase::Handshake(head) if head.is_empty() => self.end(token, "no request came".into()),
            Phase::Handshake(_) => {
                let wait = self.config.handshake_timeout.as_secs_f64();
                let body = format!("The request was not complete after {wait} seconds (RFC 9110 §15.5.9).");
                self.refuse(token, &Rejection::new(408, body), false);
            }
            Phase::Open(_) if connection.is_open() => {
                self.end(token, format!("silent for {:.0} seconds", silent.as_secs_f64()).into());
            }
            _ => self.end(token, "the close was not answered".into()),
        }
    }

    /// Sets when a connection must be looked at next.
    pub(super) fn set_deadline(&mut self, token: Token, at: Instant) {
        if let Some(connection) = self.connections.get_mut(&token) {
            self.deadlines.set(token, &mut connection.deadline, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_picture_is_true() {
        use clap::Parser;
        let config = crate::config::Config::try_parse_from(["wirechat"]).unwrap();
        let (mut rows, last_byte) =
            (["  a look at", "  silent for", "  therefore"].map(|name| format!("{name:14}")), 8);
        let mut look = Some(config.handshake_timeout.as_secs());
        while let Some(now) = look {
            let silent = Duration::from_secs(now - last_byte);
            look = config.after_silence(silent).map(|wait| now + (wait - silent).as_secs());
            let ping = if silent >= config.ping_interval { "ping, " } else { "" };
            let therefore = look.map_or("cut off".to_owned(), |next| format!("{ping}next look at {next}"));
            let cells = [now.to_string(), silent.as_secs().to_string(), therefore];
            rows.iter_mut().zip(cells).for_each(|(row, cell)| *row += &format!("{cell:22}"));
        }
        crate::pictures::assert_drawn(include_str!("deadline.rs"), &rows.join("\n"));
    }

    #[test]
    fn one_deadline_a_connection_the_next_one_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        let (mut first, mut second) = (None, None);
        deadlines.set(Token(1), &mut first, at(10));
        deadlines.set(Token(2), &mut second, at(20));
        assert_eq!((deadlines.next(), deadlines.pop_due(at(9))), (Some(at(10)), None));
        deadlines.set(Token(1), &mut first, at(30));
        assert_eq!(deadlines.next(), Some(at(20)));
        assert_eq!(deadlines.pop_due(at(20)), Some((at(20), Token(2))));
        deadlines.cancel(Token(1), &mut first);
        deadlines.cancel(Token(1), &mut first);
        assert_eq!((deadlines.next(), deadlines.pop_due(at(99)), first), (None, None, None));
    }
}
