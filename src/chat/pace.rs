//! How much one client may say: a token bucket, and what becomes of those who do not mind it.
//!
//! ```text
//!   at second   0         0         0         0.5       1         5
//!   meets       Pass      Pass      SlowDown  SlowDown  Pass      Pass
//!   left        1         0         0         0.5       0         1
//! ```
//!
//! With one message a second a bucket holds two. Every message that passes takes one out, and time fills it again. The
//! clock is handed in, as everywhere in the chat.
//!
//! The subtle thing: being told to slow down is cheap for a client that does not listen, so that is counted as well;
//! but over a short while only, since everybody is too fast now and then.

use std::collections::VecDeque;
use std::time::Duration;

/// A burst is this many seconds' worth of messages.
const BURST_SECONDS: f64 = 2.0;
/// A flood is this many bursts' worth of refusals ...
const FLOOD_BURSTS: f64 = 5.0;
/// ... within this time.
const FLOOD_TIME: Duration = Duration::from_secs(10);

/// What a message meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Pass,
    /// There were too many; this one is lost.
    SlowDown,
    /// There still are too many.
    Flood,
}

/// The pace of one client.
#[derive(Debug)]
pub struct Pace {
    /// Messages that may pass now.
    level: f64,
    /// When that was computed.
    at: Duration,
    /// When it was told to slow down, of late.
    refusals: VecDeque<Duration>,
}

impl Pace {
    /// A client that has said nothing. `rate` is in messages a second; 0: no limit.
    pub fn new(rate: f64, now: Duration) -> Pace {
        Pace { level: burst(rate), at: now, refusals: VecDeque::new() }
    }

    /// Counts a message.
    pub fn judge(&mut self, rate: f64, now: Duration) -> Verdict {
        if rate == 0.0 {
            return Verdict::Pass;
        }
        let burst = burst(rate);
        let gained = now.saturating_sub(self.at).as_secs_f64() * rate;
        self.level = (self.level + gained).min(burst);
        self.at = now;
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Verdict::Pass;
        }
        while self.refusals.front().is_some_and(|at| now.saturating_sub(*at) > FLOOD_TIME) {
            self.refusals.pop_front();
        }
        if self.refusals.len() as f64 >= burst * FLOOD_BURSTS {
            return Verdict::Flood;
        }
        self.refusals.push_back(now);
        Verdict::SlowDown
    }
}

/// How many messages may come at once. However slow the rate, one may.
fn burst(rate: f64) -> f64 {
    (rate * BURST_SECONDS).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_picture_is_true() {
        let mut pace = Pace::new(1.0, at(0));
        let mut rows = ["  at second", "  meets", "  left"].map(|name| format!("{name:14}"));
        for now in [0, 0, 0, 500, 1000, 5000] {
            let verdict = pace.judge(1.0, at(now));
            let cells = [(now as f64 / 1000.0).to_string(), format!("{verdict:?}"), pace.level.to_string()];
            rows.iter_mut().zip(cells).for_each(|(row, cell)| *row += &format!("{cell:10}"));
        }
        crate::pictures::assert_drawn(include_str!("pace.rs"), &rows.join("\n"));
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut pace = Pace::new(5.0, at(0));
        let verdicts: Vec<_> = (0..11).map(|_| pace.judge(5.0, at(0))).collect();
        assert_eq!(verdicts[..10], [Verdict::Pass; 10]);
        assert_eq!(verdicts[10], Verdict::SlowDown);
        assert_eq!(pace.judge(5.0, at(199)), Verdict::SlowDown);
        assert_eq!(pace.judge(5.0, at(200)), Verdict::Pass);
        assert_eq!(pace.judge(5.0, at(201)), Verdict::SlowDown);
        let later: Vec<_> = (0..11).map(|_| pace.judge(5.0, at(60_000))).collect();
        assert_eq!((later[9], later[10]), (Verdict::Pass, Verdict::SlowDown), "never more than a burst");
    }

    #[test]
    fn a_flood_is_five_bursts_of_refusals_within_ten_seconds() {
        let mut pace = Pace::new(5.0, at(0));
        let verdicts: Vec<_> = (0..61).map(|_| pace.judge(5.0, at(0))).collect();
        assert_eq!(verdicts[10..60], [Verdict::SlowDown; 50]);
        assert_eq!(verdicts[60], Verdict::Flood);
        let mut patient = Pace::new(5.0, at(0));
        (0..10).for_each(|_| assert_eq!(patient.judge(5.0, at(0)), Verdict::Pass));
        // Four refusals in every second, of which one passes again: never fifty in ten seconds.
        for tick in 1..400 {
            assert_ne!(patient.judge(5.0, at(tick * 110)), Verdict::Flood, "tick {tick}");
        }
    }

    #[test]
    fn zero_is_no_limit_and_a_slow_rate_lets_one_pass() {
        let mut free = Pace::new(0.0, at(0));
        assert!((0..1000).all(|_| free.judge(0.0, at(0)) == Verdict::Pass));
        let mut slow = Pace::new(0.1, at(0));
        assert_eq!(slow.judge(0.1, at(0)), Verdict::Pass);
        assert_eq!(slow.judge(0.1, at(9_999)), Verdict::SlowDown);
        assert_eq!(slow.judge(0.1, at(10_000)), Verdict::Pass);
    }
}
