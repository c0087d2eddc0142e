//! Helpers for table tests: a notation for bytes, and a runner that reports every row that fails, not only the first.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Parses a notation for bytes: hexadecimal pairs, `M0` for the masking key 00 00 00 00 (which leaves a payload
/// unchanged), and `'text'` for ASCII bytes. `81 82 M0 'hi'` is a masked text message.
pub fn hex(notation: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, part) in notation.split('\'').enumerate() {
        if i % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        for word in part.split_whitespace() {
            match word {
                "M0" => bytes.extend_from_slice(&[0; 4]),
                pair => {
                    assert_eq!(pair.len(), 2, "a pair of hexadecimal digits: {pair}");
                    bytes.push(u8::from_str_radix(pair, 16).expect("hexadecimal digits"));
                }
            }
        }
    }
    bytes
}

/// Runs `check` on every row, then reports all rows that failed.
pub fn each_row<R>(rows: &[R], name: impl Fn(&R) -> String, mut check: impl FnMut(&R)) {
    let mut failed = Vec::new();
    for row in rows {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(row))) {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text");
            failed.push(format!("{}: {text}", name(row)));
        }
    }
    assert!(failed.is_empty(), "{} of {} rows failed:\n{}\n", failed.len(), rows.len(), failed.join("\n"));
}

/// How a test splits the bytes of one table row into writes to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All bytes in one write.
    Whole,
    /// Each piece of [`Cut::pieces`] in its own write. The test waits until the server has read a piece before it sends
    /// the next one.
    Bytes,
}

impl Cut {
    pub const BOTH: [Cut; 2] = [Cut::Whole, Cut::Bytes];

    /// Returns the pieces to write. `Cut::Bytes` cuts the first 2 KiB into single bytes, and the rest into pieces of
    /// 997 bytes. 997 is a prime number, so frames of equal size are cut at different positions.
    pub fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Cut::Whole => vec![bytes],
            Cut::Bytes => {
                let (first, rest) = bytes.split_at(bytes.len().min(2048));
                first.chunks(1).chain(rest.chunks(997)).collect()
            }
        }
    }
}
