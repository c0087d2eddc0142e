//! Two types of hash map. The keys of a [`TokenMap`] are numbers that the server assigns, so a fast, predictable hash
//! is safe. A [`PeerMap`] has keys that identify peers and that peers may choose, so it uses the standard library's
//! randomized hash.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use mio::Token;

const MAX_PEERS: usize = 100_000;

pub type TokenMap<T> = HashMap<Token, T, BuildHasherDefault<CounterHasher>>;

/// Hashes sequential numbers that the server assigns. No peer can choose a number, so the hash need not resist attacks.
///
/// The low bits of the hash select the bucket, and equal the low bits of the number. So consecutive numbers are
/// adjacent in memory, and a loop over a room's members visits their connections mostly in memory order. The top seven
/// bits of the hash are mixed, because the standard map compares those bits before it compares keys.
#[derive(Debug, Default)]
pub struct CounterHasher(u64);

impl Hasher for CounterHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are hashed");
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        const TAG_MASK: u64 = 0x7f << 57;
        // Fibonacci hashing: multiply by 2^64 divided by the golden ratio (Knuth, volume 3, §6.4).
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = number & !TAG_MASK | mixed & TAG_MASK;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A bounded map from peers (users or networks, for example) to values that expire.
#[derive(Debug)]
pub struct PeerMap<K, V> {
    entries: HashMap<K, V>,
    /// When the map has this many entries, inserting a new key removes the expired entries and sets `sweep_at` to about
    /// twice the number of entries that remain, so that an insertion takes amortized constant time.
    sweep_at: usize,
}

impl<K, V> Default for PeerMap<K, V> {
    fn default() -> PeerMap<K, V> {
        PeerMap { entries: HashMap::new(), sweep_at: 1024 }
    }
}

impl<K: Eq + Hash, V> PeerMap<K, V> {
    /// Returns the value for `key`. If the map has no such key, first inserts `new`.
    pub fn entry(&mut self, key: K, new: V, is_expired: impl Fn(&V) -> bool) -> &mut V {
        if self.entries.len() >= self.sweep_at && !self.entries.contains_key(&key) {
            self.entries.retain(|_, value| !is_expired(value));
            // If too many unexpired values remain, discard all values. The alternatives are worse: to reject new peers,
            // or to search the whole map for expired values at every insertion.
            if self.entries.len() > MAX_PEERS / 2 {
                self.entries.clear();
            }
            self.sweep_at = (2 * self.entries.len()).clamp(1024, MAX_PEERS);
        }
        self.entries.entry(key).or_insert(new)
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    pub fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub fn into_entries(self) -> impl Iterator<Item = (K, V)> {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_peers_forgets_expired_entries_first_and_is_bounded() {
        let mut map = PeerMap::default();
        (0..MAX_PEERS).for_each(|peer| *map.entry(peer, 0, |count| *count < 2) += 1 + usize::from(peer < 10));
        assert!(map.entries.len() <= 2048, "{} entries", map.entries.len());
        assert!((0..10).all(|peer| map.get(&peer) == Some(&2)), "the first ten entries have not expired");
        (0..3 * MAX_PEERS).for_each(|peer| _ = map.entry(peer, 9, |count| *count < 2));
        assert!(map.entries.len() <= MAX_PEERS);
    }
}
