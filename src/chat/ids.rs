//! What the tables are keyed by: tokens and room numbers, and maps that are fast for both.
//!
//! The subtle thing: both count up and are never used again. So a word that comes late, for a client or a room that is
//! gone, finds nobody, rather than somebody else.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mio::Token;

/// A room's number. Rooms come and go with their members; a number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomId(pub(super) u64);

/// A map keyed by tokens.
pub type TokenMap<T> = HashMap<Token, T, BuildHasherDefault<CounterHasher>>;
/// A map keyed by rooms.
pub type RoomMap<T> = HashMap<RoomId, T, BuildHasherDefault<CounterHasher>>;

/// Tokens and room numbers are counted up by the server and no peer can choose one, so they need no hash that resists
/// an attack: one multiplication spreads them over the table.
#[derive(Debug, Default)]
pub struct CounterHasher(u64);

impl Hasher for CounterHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio (Knuth, volume 3, §6.4), folded so that the low bits mix as well.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_numbers_are_spread_over_a_table() {
        let hashes = (0..4096_u64).map(|number| {
            let mut hasher = CounterHasher::default();
            hasher.write_u64(number);
            hasher.finish()
        });
        // The standard map takes its bucket from the low bits and a tag of seven from the high ones.
        let (low, high): (Vec<_>, Vec<_>) = hashes.map(|hash| (hash % 4096, hash >> 57)).unzip();
        let distinct = |mut values: Vec<u64>| {
            values.sort_unstable();
            values.dedup();
            values.len()
        };
        assert!(distinct(low) > 2000);
        assert_eq!(distinct(high), 128);
    }
}
