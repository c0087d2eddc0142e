//! The rate limit: a token bucket for each user's messages, with flood detection. A full bucket lets a user send a
//! burst of messages: as many as the rate allows in two seconds. Example with a rate of one message per second:
//!
//! ```text
//!   at second   0         0         0         0.5       1         5
//!   decision    Pass      Pass      SlowDown  SlowDown  Pass      Pass
//!   tokens left 1         0         0         0.5       0         1
//! ```

use std::{collections::VecDeque, time::Duration};

use crate::{broker::User, maps::PeerMap};

const BURST_SECONDS: f64 = 2.0;
const FLOOD_BURSTS: f64 = 5.0; // a flood is more than `burst * FLOOD_BURSTS` rejections within `FLOOD_WINDOW`
const FLOOD_WINDOW: Duration = Duration::from_secs(10);
const TYPING_RATE: f64 = 1.0; // maximum rate of a user's `typing` commands, in commands per second
const BUCKET_TTL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Pass,
    SlowDown, // the chat drops the message and sends an error
    Flood,    // the chat closes the connection
}

/// Limits each user rather than each connection, so that a new connection does not reset the limit. On a local server,
/// each connection counts as a separate user.
pub struct RateLimiter {
    rate: f64,  // messages per second; 0 means no limit
    burst: f64, // capacity of a bucket, in messages
    users: PeerMap<User, Usage>,
}

struct Usage {
    bucket: TokenBucket,
    typing: TokenBucket,
    rejections: VecDeque<Duration>, // times of messages rejected within the last `FLOOD_WINDOW`
}

/// A token bucket. The caller passes the rate (tokens per second), the burst (tokens) and the monotonic time.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    tokens: f64,
    refilled_at: Duration,
}

impl TokenBucket {
    pub fn full(burst: f64, now: Duration) -> TokenBucket {
        TokenBucket { tokens: burst, refilled_at: now }
    }

    pub fn take(&mut self, rate: f64, burst: f64, now: Duration) -> bool {
        let refill = now.saturating_sub(self.refilled_at).as_secs_f64() * rate;
        *self = TokenBucket { tokens: (self.tokens + refill).min(burst), refilled_at: now };
        let has_token = self.tokens >= 1.0;
        self.tokens -= f64::from(has_token);
        has_token
    }

    /// Whether the bucket has been unused for at least `age`, and long enough to refill from empty.
    pub fn is_expired(&self, rate: f64, burst: f64, age: Duration, now: Duration) -> bool {
        let unused = now.saturating_sub(self.refilled_at);
        unused >= age && (rate == 0.0 || unused.as_secs_f64() * rate >= burst)
    }
}

impl RateLimiter {
    pub fn new(rate: f64) -> RateLimiter {
        // A bucket with a capacity below one token would reject every message.
        RateLimiter { rate, burst: (rate * BURST_SECONDS).max(1.0), users: PeerMap::default() }
    }

    pub fn check_message(&mut self, user: &User, now: Duration) -> Decision {
        if self.take_token(user, now) {
            return Decision::Pass;
        }
        let (burst, Usage { rejections, .. }) = (self.burst, self.usage(user, now));
        while rejections.pop_front_if(|at| now.saturating_sub(*at) > FLOOD_WINDOW).is_some() {}
        if rejections.len() as f64 >= burst * FLOOD_BURSTS {
            return Decision::Flood;
        }
        rejections.push_back(now);
        Decision::SlowDown
    }

    /// Whether the rate limiter allows the user to join now. Leaves the token in the bucket; `take_token` takes it.
    pub fn has_token(&self, user: &User, now: Duration) -> bool {
        let bucket = self.users.get(user).map(|usage| usage.bucket);
        self.rate == 0.0 || bucket.is_none_or(|mut copy| copy.take(self.rate, self.burst, now))
    }

    pub fn take_token(&mut self, user: &User, now: Duration) -> bool {
        let RateLimiter { rate, burst, .. } = *self;
        rate == 0.0 || self.usage(user, now).bucket.take(rate, burst, now)
    }

    pub fn take_typing_token(&mut self, user: &User, now: Duration) -> bool {
        self.usage(user, now).typing.take(TYPING_RATE, 1.0, now)
    }

    pub fn forget(&mut self, user: &User) {
        self.users.remove(user);
    }

    fn usage(&mut self, user: &User, now: Duration) -> &mut Usage {
        let RateLimiter { rate, burst, .. } = *self;
        let (bucket, typing) = (TokenBucket::full(burst, now), TokenBucket::full(1.0, now));
        let new = Usage { bucket, typing, rejections: VecDeque::new() };
        self.users.entry(user.clone(), new, |usage| usage.bucket.is_expired(rate, burst, BUCKET_TTL, now))
    }
}

#[cfg(test)]
mod tests {
    use mio::Token;

    use super::*;

    const USER: User = User::Connection(Token(1));

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn picture_matches_the_code() {
        let mut limiter = RateLimiter::new(1.0);
        let mut rows = ["  at second", "  decision", "  tokens left"].map(|name| format!("{name:14}"));
        for now in [0, 0, 0, 500, 1000, 5000] {
            let decision = limiter.check_message(&USER, at(now));
            let tokens = limiter.users.get(&USER).unwrap().bucket.tokens;
            let cells = [(now as f64 / 1000.0).to_string(), format!("{decision:?}"), tokens.to_string()];
            rows.iter_mut().zip(cells).for_each(|(row, cell)| *row += &format!("{cell:10}"));
        }
        crate::pictures::assert_in_module_doc(include_str!("rate_limiter.rs"), &rows.join("\n"));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate_applies() {
        let mut limiter = RateLimiter::new(5.0);
        let decisions: Vec<_> = (0..11).map(|_| limiter.check_message(&USER, at(0))).collect();
        assert_eq!(decisions[..10], [Decision::Pass; 10]);
        assert_eq!(decisions[10], Decision::SlowDown);
        assert_eq!(limiter.check_message(&USER, at(199)), Decision::SlowDown);
        assert_eq!(limiter.check_message(&USER, at(200)), Decision::Pass);
        assert_eq!(limiter.check_message(&USER, at(201)), Decision::SlowDown);
        let later: Vec<_> = (0..11).map(|_| limiter.check_message(&USER, at(60_000))).collect();
        assert_eq!((later[9], later[10]), (Decision::Pass, Decision::SlowDown), "the bucket holds only one burst");
    }

    #[test]
    fn a_flood_is_five_bursts_of_rejections_within_ten_seconds() {
        let mut limiter = RateLimiter::new(5.0);
        let decisions: Vec<_> = (0..61).map(|_| limiter.check_message(&USER, at(0))).collect();
        assert_eq!(decisions[10..60], [Decision::SlowDown; 50]);
        assert_eq!(decisions[60], Decision::Flood);
        let mut patient = RateLimiter::new(5.0);
        (0..10).for_each(|_| assert_eq!(patient.check_message(&USER, at(0)), Decision::Pass));
        // With a limit of five messages per second, a user who sends nine per second gets about four rejections per
        // second, or 40 in ten seconds. More than 50 in ten seconds would be a flood.
        for tick in 1..400 {
            assert_ne!(patient.check_message(&USER, at(tick * 110)), Decision::Flood, "tick {tick}");
        }
    }

    #[test]
    fn rejected_joins_do_not_count_as_flooding() {
        let mut limiter = RateLimiter::new(5.0);
        let join = |limiter: &mut RateLimiter| limiter.has_token(&USER, at(0)) && limiter.take_token(&USER, at(0));
        let passed = (0..1000).filter(|_| join(&mut limiter)).count();
        assert_eq!((passed, limiter.check_message(&USER, at(0))), (10, Decision::SlowDown));
    }

    #[test]
    fn zero_is_no_limit_and_a_slow_rate_lets_one_pass() {
        let mut free = RateLimiter::new(0.0);
        assert!((0..1000).all(|_| free.check_message(&USER, at(0)) == Decision::Pass));
        assert!(
            free.take_typing_token(&USER, at(0))
                && !free.take_typing_token(&USER, at(999))
                && free.take_typing_token(&USER, at(1000))
        );
        let mut slow = RateLimiter::new(0.1);
        assert_eq!(slow.check_message(&USER, at(0)), Decision::Pass);
        assert_eq!(slow.check_message(&USER, at(9_999)), Decision::SlowDown);
        assert_eq!(slow.check_message(&USER, at(10_000)), Decision::Pass);
    }

    #[test]
    fn a_bucket_is_kept_until_it_is_full_again_and_for_a_minute() {
        let expired = |rate, burst, seconds: u64| {
            let mut bucket = TokenBucket::full(burst, at(0));
            assert!(bucket.take(rate, burst, at(0)));
            bucket.is_expired(rate, burst, BUCKET_TTL, at(1000 * seconds))
        };
        assert!(!expired(5.0, 10.0, 59) && expired(5.0, 10.0, 60));
        assert!(!expired(0.01, 1.0, 99) && expired(0.01, 1.0, 100), "a slow bucket is not full after a minute");
    }
}
