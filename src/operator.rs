//! What the operator of a server sees and decides (feature `metrics`): numbers, counted where things happen, bans, and
//! the replies to messages that the operator publishes. `net::metrics` serves all of it over HTTP.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::SystemTime;

use crate::maps::TokenMap;

const MAX_BANS: usize = 10_000;

/// `E`: the events that the chat sends to clients.
#[derive(Debug)]
pub struct Operator<E> {
    pub counters: Counters,
    pub bans: Bans,
    pub announcing: TokenMap<Option<E>>, // one entry per message of the operator; `Some` once the chat has a reply
}

impl<E> Default for Operator<E> {
    fn default() -> Operator<E> {
        Operator { counters: Counters::default(), bans: Bans::default(), announcing: TokenMap::default() }
    }
}

/// Numbers since the server's start. An increment costs next to nothing, so the server counts even if nobody asks.
#[derive(Debug, Default)]
pub struct Counters {
    pub accepts: u64,
    pub services: [u64; 3],             // upgraded connections that exist now, by `Service`
    pub rejections: BTreeMap<u16, u64>, // by HTTP status
    pub closes: BTreeMap<u16, u64>,     // upgraded connections that have ended, by the code of the first Close frame
    pub slow_consumers: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,    // by connections that have ended
    pub messages: [u64; 3], // messages that clients have published to rooms, by `Dialect`
    pub deliveries: u64,    // messages, room or private, sent to clients: once per recipient, and without any history
    pub resumes: [u64; 2],  // joins that asked to resume: those that could not, those that could
    pub duplicates: u64,    // messages that repeated a nonce
}

impl Counters {
    /// Counts the end of a connection. `service` is `None` if the connection was not upgraded.
    pub fn count_end(&mut self, service: Option<usize>, code: Option<u16>, bytes_sent: u64) {
        self.bytes_sent += bytes_sent;
        let Some(service) = service else { return };
        self.services[service] -= 1;
        let code = code.unwrap_or(1006); // RFC 6455 §7.1.5: 1006 means that no Close was sent
        // Clients may choose any code from 3000 to 4999. Count them by the thousand, so that no client can add rows.
        *self.closes.entry(if code < 3000 { code } else { code / 1000 * 1000 }).or_default() += 1;
    }
}

/// The networks and the username keys that the operator has banned, each with the end of the ban.
#[derive(Debug, Default)]
pub struct Bans {
    pub addresses: HashMap<IpAddr, SystemTime>,
    pub usernames: HashMap<Rc<str>, SystemTime>,
}

impl Bans {
    /// `key` returns a username key. It is called only if a username is banned, because keys are slow to compute.
    pub fn contains(&self, network: IpAddr, key: impl FnOnce() -> Option<Rc<str>>, now: SystemTime) -> bool {
        let is_in_force = |until: &SystemTime| now < *until;
        let by_key = || if self.usernames.is_empty() { None } else { self.usernames.get(&key()?) };
        self.addresses.get(&network).is_some_and(is_in_force) || by_key().is_some_and(is_in_force)
    }

    pub fn remove_expired(&mut self, now: SystemTime) {
        self.addresses.retain(|_, until| now < *until);
        self.usernames.retain(|_, until| now < *until);
    }

    /// Whether there is no room for another ban.
    pub fn is_full(&self) -> bool {
        self.addresses.len() + self.usernames.len() >= MAX_BANS
    }
}
