//! A client's rate limit: a token bucket with flood detection. At a limit of one message per second, the bucket holds
//! two tokens and gains one token per second. Each accepted message takes one token:
//!
//! ```text
//!   at second   0         0         0         0.5       1         5
//!   decision    Pass      Pass      SlowDown  SlowDown  Pass      Pass
//!   tokens left 1         0         0         0.5       0         1
//! ```

use std::collections::VecDeque;
use std::time::Duration;

const BURST_SECONDS: f64 = 2.0;
// Tolerate this many bursts of rejected messages within `FLOOD_TIME`. Rejecting them is cheap.
const FLOOD_BURSTS: f64 = 5.0;
const FLOOD_TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Pass,
    SlowDown, // over the limit: drop the message
    Flood,    // too many messages over the limit: close the connection
}

#[derive(Debug)]
pub struct RateLimiter {
    tokens: f64,
    refilled_at: Duration,
    rejections: VecDeque<Duration>, // times of the messages dropped within the last `FLOOD_TIME`
}

impl RateLimiter {
    /// Starts with a full bucket. `rate` is in messages per second; 0 means no limit. `now` is monotonic.
    pub fn new(rate: f64, now: Duration) -> RateLimiter {
        RateLimiter { tokens: burst(rate), refilled_at: now, rejections: VecDeque::new() }
    }

    pub fn check(&mut self, rate: f64, now: Duration) -> Decision {
        if rate == 0.0 {
            return Decision::Pass;
        }
        let refill = now.saturating_sub(self.refilled_at).as_secs_f64() * rate;
        self.tokens = (self.tokens + refill).min(burst(rate));
        self.refilled_at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Decision::Pass;
        }
        while self.rejections.front().is_some_and(|at| now.saturating_sub(*at) > FLOOD_TIME) {
            self.rejections.pop_front();
        }
        if self.rejections.len() as f64 >= burst(rate) * FLOOD_BURSTS {
            return Decision::Flood;
        }
        self.rejections.push_back(now);
        Decision::SlowDown
    }
}

fn burst(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(1.0) // at least one token, or no message would ever pass
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_picture_is_true() {
        let mut limiter = RateLimiter::new(1.0, at(0));
        let mut rows = ["  at second", "  decision", "  tokens left"].map(|name| format!("{name:14}"));
        for now in [0, 0, 0, 500, 1000, 5000] {
            let decision = limiter.check(1.0, at(now));
            let cells = [(now as f64 / 1000.0).to_string(), format!("{decision:?}"), limiter.tokens.to_string()];
            rows.iter_mut().zip(cells).for_each(|(row, cell)| *row += &format!("{cell:10}"));
        }
        crate::pictures::assert_drawn(include_str!("rate_limiter.rs"), &rows.join("\n"));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limiter = RateLimiter::new(5.0, at(0));
        let decisions: Vec<_> = (0..11).map(|_| limiter.check(5.0, at(0))).collect();
        assert_eq!(decisions[..10], [Decision::Pass; 10]);
        assert_eq!(decisions[10], Decision::SlowDown);
        assert_eq!(limiter.check(5.0, at(199)), Decision::SlowDown);
        assert_eq!(limiter.check(5.0, at(200)), Decision::Pass);
        assert_eq!(limiter.check(5.0, at(201)), Decision::SlowDown);
        let later: Vec<_> = (0..11).map(|_| limiter.check(5.0, at(60_000))).collect();
        assert_eq!((later[9], later[10]), (Decision::Pass, Decision::SlowDown), "never more than a burst");
    }

    #[test]
    fn a_flood_is_five_bursts_of_rejections_within_ten_seconds() {
        let mut limiter = RateLimiter::new(5.0, at(0));
        let decisions: Vec<_> = (0..61).map(|_| limiter.check(5.0, at(0))).collect();
        assert_eq!(decisions[10..60], [Decision::SlowDown; 50]);
        assert_eq!(decisions[60], Decision::Flood);
        let mut patient = RateLimiter::new(5.0, at(0));
        (0..10).for_each(|_| assert_eq!(patient.check(5.0, at(0)), Decision::Pass));
        // Of nine messages per second, five pass and about four are rejected: always under fifty in ten seconds.
        for tick in 1..400 {
            assert_ne!(patient.check(5.0, at(tick * 110)), Decision::Flood, "tick {tick}");
        }
    }

    #[test]
    fn zero_is_no_limit_and_a_slow_rate_lets_one_pass() {
        let mut free = RateLimiter::new(0.0, at(0));
        assert!((0..1000).all(|_| free.check(0.0, at(0)) == Decision::Pass));
        let mut slow = RateLimiter::new(0.1, at(0));
        assert_eq!(slow.check(0.1, at(0)), Decision::Pass);
        assert_eq!(slow.check(0.1, at(9_999)), Decision::SlowDown);
        assert_eq!(slow.check(0.1, at(10_000)), Decision::Pass);
    }
}
