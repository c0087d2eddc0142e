//! The plan of a simulation of several instances: the options, the users, their actions, and the faults. A seed
//! determines the whole plan.

use std::time::Duration;

use fastrand::Rng;

use super::network::{Break, Data};
use crate::support::users::Dialect;

pub const ROOMS: [&str; 3] = ["general", "tea", "Été"];

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub instances: usize,
    pub options: Vec<(&'static str, String)>,
    pub history: usize,
    pub timeout: Duration,
    pub max_delay: Duration,
    /// Redis trims an instance's inbox to this many entries.
    pub max_inbox: Option<usize>,
    pub users: Vec<Dialect>,
    pub steps: Vec<(Duration, Step)>,
    /// By this time, all steps have run and all faults have ended.
    pub end: Duration,
}

#[derive(Debug, Clone, Copy)]
pub enum Step {
    Connect(usize),
    Send(usize, bool),
    Burst(usize, u8),
    Private(usize, usize),
    Switch(usize, usize),
    Typing(usize),
    History(usize, u64),
    Close(usize),
    Reset(usize),
    Fault(Fault),
    /// Every joined user of the `events` dialect sends a message, about one second after a restart of Redis.
    Probe,
    /// Checks that the messages of the last probe have arrived.
    CheckProbe,
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The instance is suspended for this long.
    Suspend(usize, Duration),
    Crash(usize, Duration),
    /// The instance shuts down cleanly. A new instance starts this much later.
    Stop(usize, Duration),
    Partition(usize, Duration),
    BreakCalls(usize, Break),
    BreakReads(usize),
    Lag(usize, Duration),
    Stall(Duration),
    Fill(Duration),
    Snapshot,
    Restart(Duration, Data),
    /// An operator deletes all data in Redis (FLUSHALL). Redis keeps running, and its connections stay open.
    Flush,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xc105_7e12);
        let random = &mut random;
        let history = [5, 50, 500, 500][random.usize(..4)];
        let mut options = vec![("--rate-limit", "0".to_owned()), ("--history", history.to_string())];
        if random.u8(..4) == 0 {
            options.push(("--unique-names", String::new()));
        }
        let instances = random.usize(2..5);
        let users = (0..random.usize(3..9)).map(|_| match random.u8(..8) {
            0 => Dialect::Rooms,
            1 => Dialect::Presence,
            _ => Dialect::Events,
        });
        let users: Vec<Dialect> = users.collect();
        let mut plan = Plan {
            seed,
            instances,
            options,
            history,
            timeout: Duration::from_millis([1000, 2000, 5000][random.usize(..3)]),
            max_delay: Duration::from_millis([0, 1, 1, 5, 60][random.usize(..5)]),
            max_inbox: (random.u8(..6) == 0).then(|| random.usize(3..30)),
            users,
            steps: Vec::new(),
            end: Duration::ZERO,
        };
        plan.add_steps(random);
        plan
    }

    fn add_steps(&mut self, random: &mut Rng) {
        let horizon = Duration::from_millis(random.u64(4_000..40_000));
        let count = self.users.len();
        for user in 0..count {
            self.steps.push((horizon.mul_f64(random.f64() * 0.1), Step::Connect(user)));
        }
        let weights: Vec<u32> = (0..9).map(|_| random.u32(..6)).collect();
        for _ in 0..random.usize(20..250) {
            let (user, other) = (random.usize(..count), random.usize(..count));
            let total: u32 = weights.iter().sum::<u32>() + 8;
            let mut left = random.u32(..total);
            let kind = weights.iter().position(|weight| match left.checked_sub(*weight) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            let step = match kind {
                Some(0) => Step::Private(user, other),
                Some(1) => Step::Switch(user, random.usize(..ROOMS.len())),
                Some(2) => Step::Typing(user),
                Some(3) => Step::History(user, random.u64(..12)),
                Some(4) => Step::Close(user),
                Some(5) => Step::Reset(user),
                Some(6) => Step::Connect(user),
                Some(7) => Step::Burst(user, random.u8(2..20)),
                Some(8) => Step::Send(user, false),
                _ => Step::Send(user, true),
            };
            self.steps.push((horizon.mul_f64(random.f64()), step));
        }
        self.add_faults(random, horizon);
        self.steps.sort_by_key(|(at, _)| *at);
    }

    fn add_faults(&mut self, random: &mut Rng, horizon: Duration) {
        self.end = horizon;
        // Draw a subset of the kinds of faults, so that each kind also occurs without the other kinds.
        let kinds: Vec<u8> = (0..12).filter(|_| random.u8(..3) == 0).collect();
        let count = if kinds.is_empty() { 0 } else { random.usize(1..8) };
        let mut outages: Vec<(Duration, Duration, bool)> = Vec::new();
        for _ in 0..count {
            // One fault in three starts shortly after the previous fault.
            let at = match outages.last() {
                Some((before, ..)) if random.u8(..3) == 0 => *before + Duration::from_millis(random.u64(..300)),
                _ => horizon.mul_f64(0.1 + 0.85 * random.f64()),
            };
            let instance = random.usize(..self.instances);
            let long = Duration::from_millis([50, 900, 2500, 6000, 12_000][random.usize(..5)]).mul_f64(random.f64());
            let fault = match kinds[random.usize(..kinds.len())] {
                0 => Fault::Suspend(instance, long),
                1 => Fault::Crash(instance, long),
                2 => Fault::Stop(instance, long),
                3 => Fault::Partition(instance, long),
                4 => Fault::BreakCalls(
                    instance,
                    [Break::BeforeTheCall, Break::AfterTheCall, Break::Late][random.usize(..3)],
                ),
                5 => Fault::BreakReads(instance),
                6 => Fault::Lag(instance, long / 2),
                7 => Fault::Stall(long),
                8 => Fault::Fill(long / 2),
                9 => Fault::Restart(long, Data::All),
                10 => Fault::Flush,
                _ => {
                    let data = [Data::Snapshot, Data::Nothing][random.usize(..2)];
                    let before = Duration::from_millis(random.u64(..3000));
                    self.steps.push((at.saturating_sub(before), Step::Fault(Fault::Snapshot)));
                    Fault::Restart(long, data)
                }
            };
            let until = match fault {
                Fault::Suspend(_, time) | Fault::Crash(_, time) | Fault::Stop(_, time) => at + time,
                Fault::Partition(_, time) | Fault::Lag(_, time) => at + time,
                Fault::Stall(time) | Fault::Fill(time) | Fault::Restart(time, _) => at + time,
                _ => at,
            };
            outages.push((at, until, matches!(fault, Fault::Restart(..))));
            self.end = self.end.max(until);
            self.steps.push((at, Step::Fault(fault)));
        }
        // If a Redis restart overlaps no other fault, check about one second after Redis is back that the users'
        // messages are acknowledged.
        for (at, until, is_restart) in &outages {
            let probe = *until + Duration::from_secs(1) + 10 * self.max_delay;
            let check = probe + Duration::from_millis(20) + 8 * self.max_delay;
            let is_alone = |other: &&(Duration, Duration, bool)| other.1 + self.timeout >= *at && other.0 <= check;
            if *is_restart && outages.iter().filter(is_alone).count() == 1 {
                self.steps.extend([(probe, Step::Probe), (check, Step::CheckProbe)]);
                self.end = self.end.max(check);
            }
        }
    }
}
