//! Hash maps keyed by connection tokens or room ids.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mio::Token;

pub type TokenMap<T> = HashMap<Token, T, BuildHasherDefault<CounterHasher>>;

/// Hashes sequential numbers that the server assigns. No peer can choose a number, so the hash need not resist attacks.
///
/// The low bits select the bucket and stay unmixed, so consecutive numbers are adjacent in memory. A loop over a room's
/// members then visits their connections in memory order. The top seven bits are mixed, because the standard map
/// compares those bits before it compares keys.
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
        const TAG: u64 = 0x7f << 57;
        // 2^64 divided by the golden ratio (Knuth, volume 3, §6.4).
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = number & !TAG | mixed & TAG;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
