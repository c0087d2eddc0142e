//! Fuzzing oracles. Each checks a property of the server's code that must hold for every input, and panics if it
//! does not. Most oracles compare the result with that of another library or of a simple implementation of the
//! rules, or compare the results for the same input cut into different pieces. Some expected results come from the
//! server's own functions, such as `is_ignorable` and `username_key`, so these oracles cannot find errors in those
//! functions.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)] // each target runs one oracle; the others are dead code

pub mod dialects;
pub mod frames;
#[cfg(feature = "deflate")]
pub mod inflating;
pub mod names;
pub mod notations;
pub mod offers;
pub mod query;
pub mod recordings;
pub mod request_head;
pub mod tokens;
pub mod utf8;

use std::time::{Duration, SystemTime};

use clap::Parser;
use wirechat::chat::Now;
use wirechat::config::Config;
use wirechat::http::access::AccessControl;

const NOW: Now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };

type Oracle = fn(&[u8]);

/// All oracles, each with the name of its fuzz target.
pub const ALL: &[(&str, Oracle)] = &[
    ("dialects", dialects::check),
    ("frames", frames::check),
    #[cfg(feature = "deflate")]
    ("inflating", inflating::check),
    ("names", names::check),
    ("notations", notations::check),
    ("offers", offers::check),
    ("query", query::check),
    ("recordings", recordings::check),
    ("request_head", request_head::check),
    ("tokens", tokens::check),
    ("utf8", utf8::check),
];

/// Splits `len` bytes into pieces, and returns the length of each piece. Seed 0 makes a single piece, seed 1 makes
/// pieces of one byte, and any other seed makes random pieces of up to 20 bytes.
fn cuts(seed: u8, len: usize) -> Vec<usize> {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut left = len;
    let next = move || {
        let piece = match seed {
            0 => left,
            1 => 1.min(left),
            _ => random.usize(1..=left.clamp(1, 20)).min(left),
        };
        left -= piece;
        (piece > 0).then_some(piece)
    };
    std::iter::from_fn(next).collect()
}

/// Returns access rules that allow every host and origin, so that only other rules can reject a request.
fn access(tokens: Option<&str>) -> AccessControl {
    let config =
        Config::try_parse_from(["wirechat", "--allow-host", "*", "--allow-origin", "*"]).expect("a configuration");
    AccessControl::new(&config, tokens).expect("tokens")
}
