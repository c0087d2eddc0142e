//! What one address takes of the server: its connections, and its wrong tokens.
//!
//! Loopback is left out of both: a proxy in front, or a test, would be one address for everybody.
//!
//! The subtle thing: in IPv6 a single customer has 2^64 addresses or more, so what counts as one is the first half of
//! it. And since even those are plenty, the memory of wrong tokens is bounded: when it is full, it is forgotten, which
//! gives a guesser a few more tries, where refusing strangers would give it the power to lock people out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;

/// Wrong tokens are counted within this.
const WINDOW: Duration = Duration::from_secs(60);
/// How many addresses' wrong tokens are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// The counts of all addresses.
#[derive(Debug)]
pub struct Addresses {
    connections: HashMap<Block, usize>,
    wrong_tokens: HashMap<Block, Guesses>,
    max_connections: usize,
    max_wrong_tokens: usize,
}

/// What counts as one address: an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Block {
    V4([u8; 4]),
    V6([u16; 4]),
}

#[derive(Debug)]
struct Guesses {
    since: Duration,
    count: usize,
}

impl Block {
    /// `None`: loopback, which is not counted.
    fn of(address: IpAddr) -> Option<Block> {
        match address.to_canonical() {
            address if address.is_loopback() => None,
            IpAddr::V4(address) => Some(Block::V4(address.octets())),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Some(Block::V6([a, b, c, d]))
            }
        }
    }
}

impl Addresses {
    /// Nothing counted.
    pub fn new(config: &Config) -> Addresses {
        Addresses {
            connections: HashMap::new(),
            wrong_tokens: HashMap::new(),
            max_connections: config.max_per_address,
            max_wrong_tokens: config.max_wrong_tokens,
        }
    }

    /// Counts a connection.
    pub fn connected(&mut self, address: IpAddr) {
        if let Some(block) = Block::of(address) {
            *self.connections.entry(block).or_default() += 1;
        }
    }

    /// Counts a connection back.
    pub fn disconnected(&mut self, address: IpAddr) {
        let Some(block) = Block::of(address) else { return };
        let left = self.connections.get(&block).map_or(0, |count| count - 1);
        match left {
            0 => self.connections.remove(&block),
            _ => self.connections.insert(block, left),
        };
    }

    /// Whether an address has more connections than it may.
    pub fn is_over_share(&self, address: IpAddr) -> bool {
        let count = Block::of(address).and_then(|block| self.connections.get(&block));
        count.is_some_and(|count| *count > self.max_connections)
    }

    /// Counts a wrong token at the time `now` of the steady clock. `true`: there were too many within a minute.
    pub fn is_guessing(&mut self, address: IpAddr, now: Duration) -> bool {
        let Some(block) = Block::of(address) else { return false };
        if self.wrong_tokens.len() >= MAX_REMEMBERED && !self.wrong_tokens.contains_key(&block) {
            self.wrong_tokens.retain(|_, guesses| now - guesses.since < WINDOW);
            if self.wrong_tokens.len() >= MAX_REMEMBERED {
                self.wrong_tokens.clear();
            }
        }
        let guesses = self.wrong_tokens.entry(block).or_insert(Guesses { since: now, count: 0 });
        if now - guesses.since >= WINDOW {
            *guesses = Guesses { since: now, count: 0 };
        }
        guesses.count += 1;
        guesses.count > self.max_wrong_tokens
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn addresses() -> Addresses {
        Addresses::new(
            &Config::try_parse_from(["wirechat", "--max-per-address", "2", "--max-wrong-tokens", "3"]).unwrap(),
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_share_and_a_v6_network_is_one_address() {
        let mut addresses = addresses();
        for address in ["192.0.2.1", "2001:db8::1", "2001:db8::ffff:1", "::ffff:192.0.2.1", "192.0.2.2"] {
            addresses.connected(ip(address));
        }
        assert!(!addresses.is_over_share(ip("192.0.2.1")) && !addresses.is_over_share(ip("2001:db8::2")));
        addresses.connected(ip("192.0.2.1"));
        addresses.connected(ip("2001:db8::3"));
        assert!(addresses.is_over_share(ip("::ffff:192.0.2.1")) && addresses.is_over_share(ip("2001:db8::2")));
        assert!(!addresses.is_over_share(ip("192.0.2.2")) && !addresses.is_over_share(ip("2001:db8:0:1::1")));
        addresses.disconnected(ip("192.0.2.1"));
        assert!(!addresses.is_over_share(ip("192.0.2.1")));
    }

    #[test]
    fn what_is_gone_takes_no_memory_and_loopback_is_not_counted() {
        let mut addresses = addresses();
        for _ in 0..10 {
            addresses.connected(ip("127.0.0.1"));
            addresses.connected(ip("::1"));
            assert!(!addresses.is_guessing(ip("127.0.0.1"), Duration::ZERO));
        }
        assert!(addresses.connections.is_empty() && addresses.wrong_tokens.is_empty());
        addresses.connected(ip("192.0.2.1"));
        addresses.disconnected(ip("192.0.2.1"));
        assert!(addresses.connections.is_empty());
    }

    #[test]
    fn wrong_tokens_are_counted_for_a_minute() {
        let mut addresses = addresses();
        let guess =
            |addresses: &mut Addresses, seconds| addresses.is_guessing(ip("192.0.2.1"), Duration::from_secs(seconds));
        assert!((0..3).all(|_| !guess(&mut addresses, 0)));
        assert!(guess(&mut addresses, 59));
        assert!(!addresses.is_guessing(ip("192.0.2.2"), Duration::from_secs(59)));
        assert!(!guess(&mut addresses, 60));
    }

    #[test]
    fn the_memory_of_guesses_is_bounded() {
        let mut addresses = addresses();
        for number in 0..30_000_u32 {
            addresses.is_guessing(IpAddr::from(number.to_be_bytes()), Duration::ZERO);
            assert!(addresses.wrong_tokens.len() <= MAX_REMEMBERED);
        }
    }
}
