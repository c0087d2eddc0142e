//! Timers: at most one deadline per connection, for the handshake, pings, silence and closing.
//!
//! Received bytes do not move a deadline, so a message costs no timer work. When a deadline expires, the server checks
//! the time of the last received byte and sets the next deadline. Example: a client sends its last byte at second 8.
//!
//! ```text
//!   check at    10                    38                    68
//!   silent for  2                     30                    60
//!   result      next check at 38      ping, next at 68      removed
//! ```

use std::{collections::BTreeSet, time::Duration};

use mio::Token;

#[derive(Debug, Default)]
pub struct Timers(BTreeSet<(Duration, Token)>);

impl Timers {
    /// Replaces the connection's deadline, and updates `current`, the connection's copy of the deadline.
    pub fn set(&mut self, token: Token, current: &mut Option<Duration>, at: Option<Duration>) {
        if let Some(old) = std::mem::replace(current, at) {
            let was_queued = self.0.remove(&(old, token));
            debug_assert!(was_queued, "the connection's copy equals its entry in the set");
        }
        self.0.extend(at.map(|at| (at, token)));
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        self.0.first().map(|(at, _)| *at)
    }

    pub fn pop_expired(&mut self, now: Duration) -> Option<(Duration, Token)> {
        self.0.first().filter(|(at, _)| *at <= now)?;
        self.0.pop_first()
    }
}

/// Returns whether to ping a silent peer and the time until the next check, or `None` if the idle timeout has passed.
pub fn plan_check(silent: Duration, ping_interval: Duration, idle_timeout: Duration) -> Option<(bool, Duration)> {
    let pings = silent >= ping_interval;
    let wait = if pings { ping_interval.min(idle_timeout.saturating_sub(silent)) } else { ping_interval - silent };
    (silent < idle_timeout).then_some((pings, wait))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn picture_matches_the_code() {
        let config = crate::config::Config::try_parse_from(["wirechat"]).unwrap();
        let mut rows = ["  check at", "  silent for", "  result"].map(|name| format!("{name:14}"));
        let (last_byte, mut check) = (at(8), Some(config.handshake_timeout));
        while let Some(now) = check {
            let after = plan_check(now - last_byte, config.ping_interval, config.idle_timeout);
            let result = after.map_or("removed".to_owned(), |(pings, wait)| {
                format!("{} at {}", if pings { "ping, next" } else { "next check" }, (now + wait).as_secs())
            });
            let cells = [now.as_secs().to_string(), (now - last_byte).as_secs().to_string(), result];
            rows.iter_mut().zip(cells).for_each(|(row, cell)| *row += &format!("{cell:22}"));
            check = after.map(|(_, wait)| now + wait);
        }
        crate::pictures::assert_in_module_doc(include_str!("timers.rs"), &rows.join("\n"));
    }

    #[test]
    fn a_ping_follows_every_interval_of_silence() {
        let check = |now: u64, last| plan_check(at(now - last), at(10), at(60));
        assert_eq!(check(10, 0), Some((true, at(10))));
        assert_eq!(check(20, 0), Some((true, at(10))), "a peer that never replies is pinged again");
        assert_eq!(check(20, 11), Some((false, at(1))), "the Pong arrived at second 11");
        assert_eq!(check(21, 11), Some((true, at(10))));
        assert_eq!(check(55, 0), Some((true, at(5))));
        assert_eq!(check(60, 0), None);
    }

    #[test]
    fn a_connection_has_one_deadline_and_the_earliest_expires_first() {
        let mut timers = Timers::default();
        let (mut first, mut second) = (None, None);
        timers.set(Token(1), &mut first, Some(at(10)));
        timers.set(Token(2), &mut second, Some(at(20)));
        assert_eq!((timers.next_deadline(), timers.pop_expired(at(9))), (Some(at(10)), None));
        timers.set(Token(1), &mut first, Some(at(30)));
        assert_eq!(timers.next_deadline(), Some(at(20)));
        assert_eq!(timers.pop_expired(at(20)), Some((at(20), Token(2))));
        timers.set(Token(1), &mut first, None);
        timers.set(Token(1), &mut first, None);
        assert_eq!((timers.next_deadline(), timers.pop_expired(at(99)), first), (None, None, None));
    }
}
