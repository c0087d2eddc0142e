//! Server-wide limits: open connections, connections per address, wrong tokens, buffered bytes.
//!
//! Loopback is exempt from the per-address limits: behind a local proxy, or in a test, all clients share one address.
//! An IPv6 customer has 2^64 addresses, so all addresses with the same first 64 bits count as one.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use mio::Token;

use crate::config::Config;

/// The period over which wrong tokens are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// The maximum number of addresses in `wrong_tokens`.
const MAX_REMEMBERED: usize = 10_000;

#[derive(Debug, Default)]
pub struct Limits {
    max_connections: usize,
    /// How many rejected connections may linger, so that their clients can read the response.
    max_lingering: usize,
    /// Oldest first.
    lingering: VecDeque<Token>,
    per_address: HashMap<IpAddr, usize>,
    max_per_address: usize,
    /// Per address: the number of wrong tokens, and the monotonic time when counting started.
    wrong_tokens: HashMap<IpAddr, (usize, Duration)>,
    max_wrong_tokens: usize,
    /// Bytes that count towards `--max-buffered`, summed over all connections.
    pub buffered: usize,
}

/// The address under which a client is counted; `None` if the client is exempt.
fn key(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
        address => Some(address),
    }
}

impl Limits {
    pub fn new(config: &Config, max_connections: usize, max_lingering: usize) -> Limits {
        Limits {
            max_connections,
            max_lingering,
            max_per_address: config.max_per_address,
            max_wrong_tokens: config.max_wrong_tokens,
            ..Limits::default()
        }
    }

    /// Allows a few connections over the maximum, so that the server can reject them with a response.
    pub fn may_accept(&self, count: usize) -> bool {
        count < self.max_connections + self.max_lingering
    }

    /// `count` includes lingering connections; `max_connections` does not.
    pub fn is_full(&self, count: usize) -> bool {
        count - self.lingering.len() > self.max_connections
    }

    /// If too many connections linger, returns the oldest, which the caller must remove.
    pub fn linger(&mut self, token: Token) -> Option<Token> {
        self.lingering.push_back(token);
        // Keep one place free, so that the server can accept and reject the next client.
        (self.lingering.len() >= self.max_lingering).then(|| self.lingering.pop_front()).flatten()
    }

    pub fn stop_lingering(&mut self, token: Token) {
        self.lingering.retain(|other| *other != token); // cheap: at most 256 entries
    }

    pub fn connected(&mut self, address: IpAddr) {
        if let Some(address) = key(address) {
            *self.per_address.entry(address).or_default() += 1;
        }
    }

    pub fn disconnected(&mut self, address: IpAddr) {
        let Some(address) = key(address) else { return };
        match self.per_address.get_mut(&address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.per_address.remove(&address)),
        }
    }

    pub fn is_over_share(&self, address: IpAddr) -> bool {
        let count = key(address).and_then(|address| self.per_address.get(&address));
        count.is_some_and(|count| *count > self.max_per_address)
    }

    /// Counts a wrong token at monotonic time `now`. Returns `true` if the address sent too many within a minute.
    pub fn is_guessing(&mut self, address: IpAddr, now: Duration) -> bool {
        let Some(address) = key(address) else { return false };
        if self.wrong_tokens.len() >= MAX_REMEMBERED && !self.wrong_tokens.contains_key(&address) {
            self.wrong_tokens.retain(|_, (_, since)| now - *since < WINDOW);
            // A full table must not lock out new addresses, so clear it. This allows a few more guesses.
            if self.wrong_tokens.len() >= MAX_REMEMBERED {
                self.wrong_tokens.clear();
            }
        }
        let (count, since) = self.wrong_tokens.entry(address).or_insert((0, now));
        if now - *since >= WINDOW {
            (*count, *since) = (0, now);
        }
        *count += 1;
        *count > self.max_wrong_tokens
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn limits() -> Limits {
        let config = Config::try_parse_from(["wirechat", "--max-per-address", "2", "--max-wrong-tokens", "3"]).unwrap();
        Limits::new(&config, 10, 4)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_that_linger_take_no_place_and_are_bounded() {
        let mut limits = limits();
        assert!(!limits.is_full(10) && limits.is_full(11));
        assert_eq!([1, 2, 3].map(|token| limits.linger(Token(token))), [None, None, None]);
        assert!(!limits.is_full(13) && limits.is_full(14));
        assert_eq!(limits.linger(Token(4)), Some(Token(1)), "the oldest makes room");
        limits.stop_lingering(Token(1));
        limits.stop_lingering(Token(3));
        assert_eq!(limits.linger(Token(5)), None);
        assert!(limits.may_accept(13) && !limits.may_accept(14));
    }

    #[test]
    fn an_address_has_its_share_and_an_ipv6_network_is_one_address() {
        let mut limits = limits();
        for address in ["192.0.2.1", "2001:db8::1", "2001:db8::ffff:1", "::ffff:192.0.2.1", "192.0.2.2"] {
            limits.connected(ip(address));
        }
        assert!(!limits.is_over_share(ip("192.0.2.1")) && !limits.is_over_share(ip("2001:db8::2")));
        limits.connected(ip("192.0.2.1"));
        limits.connected(ip("2001:db8::3"));
        assert!(limits.is_over_share(ip("::ffff:192.0.2.1")) && limits.is_over_share(ip("2001:db8::2")));
        assert!(!limits.is_over_share(ip("192.0.2.2")) && !limits.is_over_share(ip("2001:db8:0:1::1")));
        limits.disconnected(ip("192.0.2.1"));
        assert!(!limits.is_over_share(ip("192.0.2.1")));
    }

    #[test]
    fn removed_connections_leave_no_entry_and_loopback_is_not_counted() {
        let mut limits = limits();
        for _ in 0..10 {
            limits.connected(ip("127.0.0.1"));
            limits.connected(ip("::1"));
            assert!(!limits.is_guessing(ip("127.0.0.1"), Duration::ZERO));
        }
        assert!(limits.per_address.is_empty() && limits.wrong_tokens.is_empty());
        limits.connected(ip("192.0.2.1"));
        limits.disconnected(ip("192.0.2.1"));
        assert!(limits.per_address.is_empty());
    }

    #[test]
    fn wrong_tokens_are_counted_for_a_minute() {
        let mut limits = limits();
        let guess = |limits: &mut Limits, seconds| limits.is_guessing(ip("192.0.2.1"), Duration::from_secs(seconds));
        assert!((0..3).all(|_| !guess(&mut limits, 0)));
        assert!(guess(&mut limits, 59));
        assert!(!limits.is_guessing(ip("192.0.2.2"), Duration::from_secs(59)));
        assert!(!guess(&mut limits, 60));
    }

    #[test]
    fn the_number_of_addresses_with_wrong_tokens_is_bounded() {
        let mut limits = limits();
        for number in 0..30_000_u32 {
            limits.is_guessing(IpAddr::from(number.to_be_bytes()), Duration::ZERO);
            assert!(limits.wrong_tokens.len() <= MAX_REMEMBERED);
        }
    }
}
