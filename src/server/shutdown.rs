//! The stages of a shutdown. With `--drain`, connections close at an even rate, the longest idle first.

use std::{collections::VecDeque, time::Duration};

use mio::Token;

/// The server closes connections in batches, at this interval, so that a member receives all `left` events of a batch
/// in one write. If each connection closed separately, n leaving members would cost about n² writes.
const STEP_INTERVAL: Duration = Duration::from_millis(100);

pub enum Shutdown {
    Announced { until: Duration }, // `--drain-delay`: the server still accepts clients
    Spreading(CloseSchedule),
    Publishing, // the server reads no more; the broker still publishes the messages already received
    Closing { until: Duration }, // all connections are closing; the server stops waiting at the monotonic time `until`
}

pub struct CloseSchedule {
    pub waiting: VecDeque<Token>,
    closes_per_step: f64,       // number of connections to close in a step
    remainder: f64,             // fraction of a connection carried over from earlier steps
    pub next_step_at: Duration, // monotonic time of the next step
    pub is_postponed: bool,     // the step is due, but waits until the broker has published all messages
}

impl CloseSchedule {
    /// `connections` contains the monotonic time of each connection's last received byte, and the connection's token.
    pub fn new(mut connections: Vec<(Duration, Token)>, span: Duration, now: Duration) -> CloseSchedule {
        connections.sort_unstable();
        let closes_per_step = connections.len() as f64 / span.div_duration_f64(STEP_INTERVAL).max(1.0);
        let waiting = connections.into_iter().map(|(_, token)| token).collect();
        CloseSchedule {
            waiting,
            closes_per_step,
            remainder: 0.0,
            next_step_at: now + STEP_INTERVAL,
            is_postponed: false,
        }
    }

    /// Returns the connections to close in this step; `None` if no connection is left.
    pub fn take_step(&mut self, now: Duration) -> Option<Vec<Token>> {
        self.is_postponed = false;
        self.next_step_at = (self.next_step_at + STEP_INTERVAL).max(now); // skip missed steps to avoid a burst
        let count = self.closes_per_step + self.remainder;
        self.remainder = count.fract();
        let count = self.waiting.len().min(count as usize);
        (!self.waiting.is_empty()).then(|| self.waiting.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a schedule to its end. Returns the time of each step and the connections that the step closed. After `n`
    /// steps, the next step runs `delay(n)` later than scheduled.
    fn run_schedule(count: usize, seconds: u64, delay: impl Fn(usize) -> Duration) -> Vec<(Duration, Vec<usize>)> {
        let connections = (0..count).map(|index| (Duration::from_secs(index as u64), Token(index))).collect();
        let mut schedule = CloseSchedule::new(connections, Duration::from_secs(seconds), Duration::ZERO);
        let mut closed = Vec::new();
        let mut now = schedule.next_step_at;
        while let Some(tokens) = schedule.take_step(now) {
            closed.push((now, tokens.into_iter().map(|token| token.0).collect()));
            now = schedule.next_step_at.max(now) + delay(closed.len());
        }
        closed
    }

    fn max_per_second(closed: &[(Duration, Vec<usize>)]) -> usize {
        let count = |(start, _): &(Duration, Vec<usize>)| {
            let second = closed.iter().filter(|(at, _)| (*start..*start + Duration::from_secs(1)).contains(at));
            second.map(|(_, tokens)| tokens.len()).sum()
        };
        closed.iter().map(count).max().unwrap_or_default()
    }

    #[test]
    fn connections_close_at_an_even_rate_the_longest_idle_first() {
        for (count, seconds) in [(1, 10), (7, 3), (100, 60), (1000, 1), (10_000, 10), (100_000, 10)] {
            let closed = run_schedule(count, seconds, |_| Duration::ZERO);
            assert!(closed.iter().flat_map(|(_, tokens)| tokens).copied().eq(0..count), "{count} in {seconds} s");
            let most = (count as f64 / seconds as f64 * 1.1).max(1.0);
            assert!(
                max_per_second(&closed) as f64 <= most.ceil(),
                "{count} in {seconds} s: {}",
                max_per_second(&closed)
            );
            let last = closed.last().unwrap().0.as_secs_f64();
            assert!((last - seconds as f64).abs() <= 0.21, "{count} in {seconds} s: {last}");
        }
    }

    #[test]
    fn a_delay_causes_no_burst() {
        let late = |step| Duration::from_millis(if step % 7 == 0 { 900 } else { 20 });
        let closed = run_schedule(2000, 10, late);
        assert_eq!(closed.iter().map(|(_, tokens)| tokens.len()).sum::<usize>(), 2000);
        assert!(max_per_second(&closed) <= 260, "{}", max_per_second(&closed));
    }
}
