//! Server-wide limits on clients and buffered bytes, and limits per address on connections, new connections, wrong
//! access tokens and logged rejections. On a local server, the limits per address do not apply to loopback clients,
//! except the limit on logged rejections.

use std::collections::{HashMap, VecDeque};
use std::{cell::Cell, net::IpAddr, rc::Rc, time::Duration};

use mio::Token;

use crate::broker::memory::{BrokerLimits, MemoryBroker};
use crate::broker::{NameRules, Random, network_of};
use crate::chat::{DEFAULT_ROOM, names, rate_limiter::TokenBucket};
use crate::{config::Config, maps::PeerMap};

const MINUTE: Duration = Duration::from_secs(60);
// Allow each address a burst of 5 seconds' worth of `--connect-rate`, because a whole household may reconnect at once.
const CONNECT_BURST_SECONDS: f64 = 5.0;
const MAX_LOGGED_REJECTIONS_PER_MINUTE: usize = 5; // limit per address, so that no single client can fill the log

#[derive(Debug, Default)]
pub struct ConnectionLimits {
    is_local: bool,
    max_clients: usize,
    pub client_count: usize, // number of upgraded connections
    max_lingering: usize,
    lingering: VecDeque<Token>, // rejected connections whose clients may still read the response, oldest first
    max_per_address: usize,
    per_address: HashMap<IpAddr, usize>,
    connect_rate: f64,
    connect_buckets: PeerMap<IpAddr, TokenBucket>,
    max_wrong_tokens: usize,
    wrong_tokens: PeerMap<IpAddr, (usize, Duration)>, // number of wrong tokens, and time of the first one
    rejections: Option<(Duration, PeerMap<IpAddr, usize>)>, // when to log the next summary, and rejections per address
    pub buffered: usize, // bytes in the connections' own buffers, limited by `--max-buffered`
    pub shared_bytes: Rc<Cell<usize>>, // bytes in broadcasts that outboxes share; `--max-buffered` limits these too
}

impl ConnectionLimits {
    pub fn new(config: &Config, max_clients: usize, max_lingering: usize) -> ConnectionLimits {
        let or_unlimited = |limit| if limit == 0 { usize::MAX } else { limit };
        ConnectionLimits {
            is_local: config.is_local(),
            max_clients,
            max_lingering,
            max_per_address: or_unlimited(config.max_per_address),
            connect_rate: config.connect_rate,
            max_wrong_tokens: or_unlimited(config.max_wrong_tokens),
            ..ConnectionLimits::default()
        }
    }

    /// Whether to accept another socket while `count` are open. A full server accepts a few more, to send rejections.
    pub fn may_accept(&self, count: usize) -> bool {
        count < self.max_clients + self.max_lingering
    }

    pub fn is_full(&self) -> bool {
        self.client_count >= self.max_clients
    }

    /// Adds a rejected connection that lingers. If too many linger, returns the oldest, which the caller must remove.
    pub fn start_lingering(&mut self, token: Token) -> Option<Token> {
        self.lingering.push_back(token);
        // Keep one slot for lingering connections free, so that the server can accept and reject the next client.
        (self.lingering.len() >= self.max_lingering).then(|| self.lingering.pop_front()).flatten()
    }

    pub fn stop_lingering(&mut self, token: Token) {
        self.lingering.retain(|other| *other != token); // at most 256 connections linger, so a linear search is cheap
    }

    /// Counts a new connection, even one over a limit, until `remove_connection`. `Err` describes the exceeded limit.
    pub fn add_connection(&mut self, address: IpAddr, now: Duration) -> Result<(), &'static str> {
        let Some(address) = self.limit_key(address) else { return Ok(()) };
        let count = self.per_address.entry(address).or_default();
        *count += 1;
        if *count > self.max_per_address {
            return Err("This address has too many connections");
        }
        let (rate, burst) = (self.connect_rate, (self.connect_rate * CONNECT_BURST_SECONDS).max(1.0));
        let is_expired = |bucket: &TokenBucket| bucket.is_expired(rate, burst, Duration::ZERO, now);
        let full = TokenBucket::full(burst, now);
        let may_connect = rate == 0.0 || self.connect_buckets.entry(address, full, is_expired).take(rate, burst, now);
        if may_connect { Ok(()) } else { Err("This address connects too fast") }
    }

    pub fn remove_connection(&mut self, address: IpAddr) {
        let Some(address) = self.limit_key(address) else { return };
        match self.per_address.get_mut(&address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.per_address.remove(&address)),
        }
    }

    pub fn may_try_token(&self, address: IpAddr, now: Duration) -> bool {
        let wrong = self.limit_key(address).and_then(|address| self.wrong_tokens.get(&address));
        wrong.is_none_or(|(count, since)| *count < self.max_wrong_tokens || now - *since >= MINUTE)
    }

    pub fn count_wrong_token(&mut self, address: IpAddr, now: Duration) {
        let Some(address) = self.limit_key(address) else { return };
        let is_expired = |(_, since): &(usize, Duration)| now - *since >= MINUTE;
        let wrong = self.wrong_tokens.entry(address, (0, now), is_expired);
        *wrong = if is_expired(wrong) { (1, now) } else { (wrong.0 + 1, wrong.1) };
    }

    /// Counts a rejection. Returns whether to log it; if not, the next summary in the log includes the rejection.
    pub fn should_log_rejection(&mut self, address: IpAddr, now: Duration) -> bool {
        let (_, counts) = self.rejections.get_or_insert_with(|| (now + MINUTE, PeerMap::default()));
        let count = counts.entry(network_of(address), 0, |_| false);
        *count += 1;
        *count <= MAX_LOGGED_REJECTIONS_PER_MINUTE
    }

    pub fn take_rejection_summary(&mut self, now: Duration) -> Vec<(IpAddr, usize)> {
        let Some((_, counts)) = self.rejections.take_if(|(at, _)| *at <= now) else { return Vec::new() };
        let repeated = counts.into_entries().filter(|(_, count)| *count > MAX_LOGGED_REJECTIONS_PER_MINUTE);
        repeated.map(|(address, count)| (address, count - MAX_LOGGED_REJECTIONS_PER_MINUTE)).collect()
    }

    pub fn next_summary_at(&self) -> Option<Duration> {
        self.rejections.as_ref().map(|(at, _)| *at)
    }

    /// The address or network whose limits apply to a client; `None` if the client is exempt.
    fn limit_key(&self, address: IpAddr) -> Option<IpAddr> {
        (!(self.is_local && address.to_canonical().is_loopback())).then(|| network_of(address))
    }
}

pub fn new_memory_broker(config: &Config, random: Random) -> MemoryBroker {
    let (memory, names) = broker_limits(config);
    MemoryBroker::new(memory, random, names)
}

pub fn broker_limits(config: &Config) -> (BrokerLimits, NameRules) {
    let memory = BrokerLimits {
        max_messages: config.history,
        max_bytes: config.max_history,
        max_backlog: config.max_outbox, // a longer backlog could make a new member a slow consumer
        max_rooms: config.max_rooms,
        max_rooms_per_user: if config.is_local() { usize::MAX } else { config.max_rooms_per_user },
        max_empty_rooms: config.max_empty_rooms,
        ttl: config.history_ttl,
        default_room: DEFAULT_ROOM,
    };
    let may_share = if config.unique_names { names::is_default_username } else { |_: &str| true };
    (memory, NameRules { key: names::username_key, may_share })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn limits(args: &[&str]) -> ConnectionLimits {
        let args = ["wirechat", "--max-wrong-tokens", "3"].iter().chain(args);
        ConnectionLimits::new(&Config::try_parse_from(args).unwrap(), 10, 4)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn connections_that_linger_are_bounded_and_only_clients_count() {
        let mut limits = limits(&["--max-per-address", "2"]);
        assert_eq!([1, 2, 3].map(|token| limits.start_lingering(Token(token))), [None, None, None]);
        assert_eq!(limits.start_lingering(Token(4)), Some(Token(1)), "the oldest connection stops lingering");
        limits.stop_lingering(Token(1));
        limits.stop_lingering(Token(3));
        assert_eq!(limits.start_lingering(Token(5)), None);
        assert!(limits.may_accept(13) && !limits.may_accept(14));
        limits.client_count = 9;
        assert!(!limits.is_full());
        limits.client_count = 10;
        assert!(limits.is_full());
    }

    #[test]
    fn an_address_has_its_share_and_an_ipv6_network_is_one_address() {
        let mut limits = limits(&["--max-per-address", "2"]);
        let connect =
            |limits: &mut ConnectionLimits, address: &str| limits.add_connection(ip(address), at(0.0)).is_ok();
        for address in ["192.0.2.1", "2001:db8::1", "2001:db8::ffff:1", "::ffff:192.0.2.1", "192.0.2.2"] {
            assert!(connect(&mut limits, address), "{address}");
        }
        for address in ["192.0.2.1", "2001:db8::3"] {
            assert!(!connect(&mut limits, address), "{address}");
            limits.remove_connection(ip(address)); // a rejected connection also counts until it is removed
        }
        assert!(connect(&mut limits, "2001:db8:0:1::1"));
        limits.remove_connection(ip("192.0.2.1"));
        assert!(connect(&mut limits, "192.0.2.1"), "one connection was removed");
    }

    #[test]
    fn connections_are_rate_limited_per_address() {
        let mut limits = limits(&["--max-per-address", "0", "--connect-rate", "2"]);
        let connects = |limits: &mut ConnectionLimits, address, now| {
            (0..20).take_while(|_| limits.add_connection(ip(address), at(now)).is_ok()).count()
        };
        assert_eq!(connects(&mut limits, "192.0.2.1", 0.0), 10, "a burst is five seconds of the rate");
        assert_eq!(connects(&mut limits, "192.0.2.1", 1.0), 2);
        assert_eq!(connects(&mut limits, "192.0.2.2", 1.0), 10, "each address has its own rate");
        let mut unlimited = self::limits(&["--max-per-address", "0", "--connect-rate", "0"]);
        assert_eq!(connects(&mut unlimited, "192.0.2.1", 0.0), 20);
    }

    #[test]
    fn only_a_local_server_exempts_loopback() {
        let mut local = limits(&["--max-per-address", "2"]);
        for _ in 0..200 {
            assert!(
                local.add_connection(ip("127.0.0.1"), at(0.0)).is_ok()
                    && local.add_connection(ip("::1"), at(0.0)).is_ok()
            );
            local.count_wrong_token(ip("127.0.0.1"), at(0.0));
        }
        assert!(local.per_address.is_empty() && local.may_try_token(ip("127.0.0.1"), at(0.0)));
        let mut public = limits(&["--max-per-address", "2", "--open", "--trusted-proxy", "127.0.0.1"]);
        let connects = (0..9).take_while(|_| public.add_connection(ip("127.0.0.2"), at(0.0)).is_ok()).count();
        assert_eq!(connects, 2);
        (0..4).for_each(|_| public.remove_connection(ip("127.0.0.2")));
        assert!(public.per_address.is_empty(), "removed connections leave no entry");
    }

    #[test]
    fn wrong_tokens_are_counted_for_a_minute() {
        let mut limits = limits(&["--max-per-address", "2"]);
        let guess = |limits: &mut ConnectionLimits, now| {
            let may_try_token = limits.may_try_token(ip("192.0.2.1"), at(now));
            limits.count_wrong_token(ip("192.0.2.1"), at(now));
            may_try_token
        };
        assert_eq!([0.0, 1.0, 2.0, 3.0, 59.0].map(|now| guess(&mut limits, now)), [true, true, true, false, false]);
        assert!(limits.may_try_token(ip("192.0.2.2"), at(3.0)), "each address has its own limit");
        assert_eq!([60.0, 61.0, 62.0, 63.0].map(|now| guess(&mut limits, now)), [true, true, true, false]);
    }

    #[test]
    fn repeated_rejections_are_summarized_once_a_minute() {
        let mut limits = limits(&["--max-per-address", "2"]);
        let logged = (0..317).filter(|_| limits.should_log_rejection(ip("192.0.2.1"), at(1.0))).count();
        assert_eq!(logged, MAX_LOGGED_REJECTIONS_PER_MINUTE);
        assert!(limits.should_log_rejection(ip("192.0.2.2"), at(2.0)));
        assert_eq!(limits.next_summary_at(), Some(at(61.0)));
        assert_eq!(limits.take_rejection_summary(at(60.9)), []);
        assert_eq!(limits.take_rejection_summary(at(61.0)), [(ip("192.0.2.1"), 312)]);
        assert_eq!((limits.take_rejection_summary(at(200.0)), limits.next_summary_at()), (Vec::new(), None));
        assert!(limits.should_log_rejection(ip("192.0.2.1"), at(200.0)));
    }
}
