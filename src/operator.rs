//! The state of the admin interface (feature `metrics`): counters, durations, bans, and the replies to messages that
//! the operator publishes. `net::metrics` serves the state over HTTP.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use crate::maps::TokenMap;

const MAX_BANS: usize = 10_000;

/// `E` is the type of the events that the chat sends to clients.
pub struct OperatorState<E> {
    pub counters: Counters,
    pub bans: Bans,
    pub commit_durations: Option<Arc<DurationHistogram>>, // durations of commits to the `--history-db` file
    pub announcements: TokenMap<Option<E>>, // the chat's reply to each `/publish` request; `None` until it arrives
}

impl<E> Default for OperatorState<E> {
    fn default() -> OperatorState<E> {
        let (counters, bans, announcements) = (Counters::default(), Bans::default(), TokenMap::default());
        OperatorState { counters, bans, commit_durations: None, announcements }
    }
}

/// Counters since the server's start. Incrementing costs next to nothing, so the server counts even without `--admin`.
#[derive(Debug, Default)]
pub struct Counters {
    pub accepted_connections: u64,
    pub open_connections: [u64; 3], // number of open upgraded connections, by `Service`
    pub rejections: BTreeMap<u16, u64>, // number of rejected requests, by HTTP status
    pub closes: BTreeMap<u16, u64>, // number of ended upgraded connections, by the code of the first Close
    pub slow_consumers: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,    // bytes sent on connections that have ended
    pub messages: [u64; 3], // number of room messages from clients, by the sender's `Dialect`
    pub deliveries: u64,    // room and private messages sent, counted once per recipient; excludes history
    pub resumes: [u64; 2],  // joins that asked to resume: first those that failed, then those that succeeded
    pub duplicates: u64,    // messages that repeated a nonce
}

impl Counters {
    /// Counts a connection that has ended. `service` is `None` if the connection was not upgraded.
    pub fn count_close(&mut self, service: Option<usize>, code: Option<u16>, bytes_sent: u64) {
        self.bytes_sent += bytes_sent;
        let Some(service) = service else { return };
        self.open_connections[service] -= 1;
        let code = code.unwrap_or(1006); // RFC 6455 §7.1.5: 1006 means that there was no Close frame
        // RFC 6455 §7.4.2 lets clients choose any code from 3000 to 4999. Count these codes as 3000 or 4000, so that
        // clients cannot add 2,000 time series to the metrics.
        *self.closes.entry(if code < 3000 { code } else { code / 1000 * 1000 }).or_default() += 1;
    }
}

/// The upper bounds of the buckets of [`DurationHistogram`], in seconds.
pub const BUCKET_BOUNDS_SECONDS: [f64; 10] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, f64::INFINITY];

/// A histogram of durations. Any thread may add a duration.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    counts: [AtomicU64; BUCKET_BOUNDS_SECONDS.len()],
    nanoseconds: AtomicU64,
}

impl DurationHistogram {
    pub fn add(&self, elapsed: Duration) {
        let bucket = BUCKET_BOUNDS_SECONDS.iter().position(|bound| elapsed.as_secs_f64() <= *bound);
        let bucket = bucket.unwrap_or(BUCKET_BOUNDS_SECONDS.len() - 1);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Returns the number of durations in each bucket. The counts are not cumulative.
    pub fn counts(&self) -> [u64; BUCKET_BOUNDS_SECONDS.len()] {
        self.counts.each_ref().map(|count| count.load(Relaxed))
    }

    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Relaxed))
    }
}

/// Stores a change to one ban. The arguments are the subject, the end of the ban (`None` lifts the ban), and the
/// current time. The receiver gets `true` once the change is stored.
pub type StoreBan = Box<dyn Fn(String, Option<SystemTime>, SystemTime) -> Receiver<bool>>;

/// The networks and the username keys that the operator has banned, each with the end of the ban.
#[derive(Default)]
pub struct Bans {
    pub addresses: HashMap<IpAddr, SystemTime>,
    pub usernames: HashMap<Rc<str>, SystemTime>,
    store: Option<StoreBan>, // `None` if a restart lifts all bans
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BanSubject {
    Address(IpAddr),   // a network, see `network_of`
    Username(Rc<str>), // normalized by `username_key`
}

impl fmt::Display for BanSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BanSubject::Address(network) => write!(f, "address {network}"),
            BanSubject::Username(key) => write!(f, "username {key}"),
        }
    }
}

impl Bans {
    /// Restores the bans of an earlier run. `stored` contains each [`BanSubject`] as text and the end of its ban.
    pub fn restore(&mut self, stored: Vec<(String, SystemTime)>, store: StoreBan) {
        for (subject, until) in stored.into_iter().take(MAX_BANS) {
            match subject.split_once(' ') {
                Some(("address", network)) => {
                    network.parse().into_iter().for_each(|network| _ = self.addresses.insert(network, until));
                }
                Some(("username", key)) => _ = self.usernames.insert(key.into(), until),
                _ => {} // ignore: no version of the server writes any other kind of subject
            }
        }
        self.store = Some(store);
    }

    /// Sets when the ban of `subject` ends, or lifts the ban if `until` is `None`. Returns whether `subject` was banned
    /// before and, if the server stores bans, the receiver of [`StoreBan`].
    pub fn set(
        &mut self,
        subject: &BanSubject,
        until: Option<SystemTime>,
        now: SystemTime,
    ) -> (bool, Option<Receiver<bool>>) {
        let before = match (subject, until) {
            (BanSubject::Address(network), Some(until)) => self.addresses.insert(*network, until),
            (BanSubject::Address(network), None) => self.addresses.remove(network),
            (BanSubject::Username(key), Some(until)) => self.usernames.insert(Rc::clone(key), until),
            (BanSubject::Username(key), None) => self.usernames.remove(key),
        };
        // Store the change even if it changes nothing here: an earlier attempt to store it may have failed.
        let was_banned = before.is_some_and(|until| now < until);
        (was_banned, self.store.as_ref().map(|store| store(subject.to_string(), until, now)))
    }

    /// Whether the network or the username key is banned. Calls `key`, which is slow, only if any username is banned.
    pub fn contains(&self, network: IpAddr, key: impl FnOnce() -> Option<Rc<str>>, now: SystemTime) -> bool {
        let is_in_force = |until: &SystemTime| now < *until;
        let by_key = || if self.usernames.is_empty() { None } else { self.usernames.get(&key()?) };
        self.addresses.get(&network).is_some_and(is_in_force) || by_key().is_some_and(is_in_force)
    }

    pub fn remove_expired(&mut self, now: SystemTime) {
        self.addresses.retain(|_, until| now < *until);
        self.usernames.retain(|_, until| now < *until);
    }

    pub fn is_banned(&self, subject: &BanSubject) -> bool {
        match subject {
            BanSubject::Address(network) => self.addresses.contains_key(network),
            BanSubject::Username(key) => self.usernames.contains_key(key),
        }
    }

    pub fn is_full(&self) -> bool {
        self.addresses.len() + self.usernames.len() >= MAX_BANS
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn bans_are_bounded_and_expire() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (mut bans, network) = (Bans::default(), IpAddr::from([192, 0, 2, 1]));
        bans.addresses.insert(network, at(10));
        bans.usernames.extend((1..MAX_BANS).map(|number| (Rc::from(format!("user{number}")), at(20))));
        assert!(bans.is_full());
        let is_banned = |bans: &Bans, name: &str, seconds| {
            bans.contains(IpAddr::from([192, 0, 2, 2]), || Some(name.into()), at(seconds))
        };
        assert!(is_banned(&bans, "user7", 19) && !is_banned(&bans, "user7", 20) && !is_banned(&bans, "other", 0));
        assert!(bans.contains(network, || None, at(9)) && !bans.contains(network, || None, at(10)));
        let lift = |bans: &mut Bans, seconds| bans.set(&BanSubject::Address(network), None, at(seconds)).0;
        assert!(!lift(&mut bans, 10), "the ban has expired");
        bans.addresses.insert(network, at(10));
        assert!(lift(&mut bans, 9) && !lift(&mut bans, 9), "a ban is lifted once");
        bans.addresses.insert(network, at(10));
        bans.remove_expired(at(10));
        assert!(!bans.is_full() && bans.addresses.is_empty() && bans.usernames.len() == MAX_BANS - 1);
        bans.remove_expired(at(20));
        assert!(!bans.contains(network, || unreachable!("no username is banned, so no key is needed"), at(0)));
    }

    #[test]
    fn bans_are_restored_and_stored() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (mut bans, log) = (Bans::default(), Rc::new(RefCell::new(Vec::new())));
        let stored = Rc::clone(&log);
        let store = move |subject: String, until, _| {
            stored.borrow_mut().push((subject, until));
            std::sync::mpsc::channel().1
        };
        let subjects = ["address 192.0.2.1", "address nowhere", "username a b", "username", "room tea"];
        bans.restore(subjects.map(|subject| (subject.to_owned(), at(10))).to_vec(), Box::new(store));
        assert_eq!((bans.addresses.len(), bans.usernames.len()), (1, 1));
        let subject = BanSubject::Username("a b".into());
        assert!(bans.is_banned(&subject));
        assert!(bans.set(&subject, None, at(0)).0 && !bans.is_banned(&subject));
        let (was_banned, result) = bans.set(&subject, None, at(0));
        assert!(!was_banned && result.is_some());
        bans.set(&BanSubject::Address("2001:db8::".parse().unwrap()), Some(at(5)), at(0));
        let lifted = ("username a b".to_owned(), None);
        let expected = [lifted.clone(), lifted, ("address 2001:db8::".to_owned(), Some(at(5)))];
        assert_eq!(*log.borrow(), expected);
    }

    #[test]
    fn each_close_is_counted_once_and_custom_codes_share_a_row() {
        let mut counters = Counters { open_connections: [2, 2, 0], ..Counters::default() };
        let ends = [(None, None), (Some(0), None), (Some(0), Some(1008)), (Some(1), Some(3000)), (Some(1), Some(3999))];
        ends.into_iter().for_each(|(service, code)| counters.count_close(service, code, 5));
        assert_eq!((counters.open_connections, counters.bytes_sent), ([0; 3], 25));
        assert!(counters.closes.into_iter().eq([(1006, 1), (1008, 1), (3000, 2)]));
    }
}
