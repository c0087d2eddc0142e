//! Generates a script from a seed: the server's options, the faults of the sockets and the broker, the clients, and
//! their timed actions. Each seed draws its own mix of actions (swarm testing), so that some seeds repeat one action
//! very often. A script is plain data, so the shrinker can remove actions.

use std::time::Duration;

use fastrand::Rng;

use crate::model::Rules;
use crate::support::users::{DIALECTS, Dialect};

#[derive(Debug, Clone)]
pub struct Script {
    pub seed: u64,
    pub options: Vec<(&'static str, String)>,
    pub actors: Vec<Actor>,
    pub actions: Vec<TimedAction>,
    /// The time at which the actions and faults stop and the final checks begin.
    pub end: Duration,
    pub short_io_chance: f64,
    pub would_block_chance: f64,
    pub interrupt_chance: f64,
    pub spurious_edge_chance: f64,
    pub accept_fault_chance: f64,
    pub latency: Duration,
    /// Maximum delay of the broker's events. If `None`, the script uses the memory broker, which delays no events.
    pub delay: Option<Duration>,
    /// How many messages per room the broker keeps in the history file; 0 means no limit. If `None`, there is no file.
    pub history_keep: Option<usize>,
    pub is_observed: bool,
    pub has_crowd: bool,
    pub is_public: bool,
    /// The script has one rude client and also runs without it. In both runs, each other client must receive the same
    /// frames, apart from random values (`epoch`, `session`) and everything about the rude client.
    pub is_independent: bool,
    /// The rude client joins a room of other clients, instead of a room of its own.
    pub shares_room: bool,
    pub logs_to_stderr: bool,
    pub ends_with_shutdown: bool,
    /// The sum of `--drain-delay` and `--drain`. `None`: the script does not end with a drain.
    pub drain: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Actor {
    pub name: String,
    pub dialect: Dialect,
    pub client_id: String,
    pub address: u8,
    pub capacity: usize,
    pub is_rude: bool,
}

#[derive(Debug, Clone)]
pub struct TimedAction {
    pub at: Duration,
    pub actor: usize,
    pub action: Action,
    /// Seed for the random details of the action.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Connect,
    Resume,
    Send,
    SendLong,
    Resend,
    Burst,
    Private,
    Switch,
    Typing,
    Ping,
    PingFrame,
    History,
    StopReading,
    ReadSome,
    ReadAll,
    Close,
    HalfClose,
    Reset,
    FallSilent,
    BreakRule,
    BreakHead,
    // No client performs the actions below. They affect the server's environment, such as its clock or its broker.
    PauseAccept,
    StallStderr,
    JumpClock,
    FailPublish,
    RejectJoin,
    /// Stops the faults for 8 simulated seconds and checks that the server delivers everything that is pending.
    StopFaults,
}

pub const ROOMS: [&str; 5] = ["general", "rust", "tea", "Été", "a b"];
const NAMES: [&str; 14] =
    ["ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jan", "kim", "lea", "max", "zoé"];

impl Script {
    pub fn new(seed: u64) -> Script {
        let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635);
        let random = &mut random;
        let has_crowd = random.u8(..50) == 0;
        let is_independent = !has_crowd && random.u8(..6) == 0;
        let shares_room = is_independent && random.bool();
        let is_public = !has_crowd && random.u8(..4) == 0;
        // In a busy script, clients send bursts of messages and often stop reading, to fill the server's outboxes.
        let is_busy = !has_crowd && !is_independent && random.u8(..4) == 0;
        let mut options = Vec::new();
        let mut option = |random: &mut Rng, chance: u8, name, values: &[&str]| {
            if random.u8(..100) < chance {
                options.push((name, values[random.usize(..values.len())].to_owned()));
            }
        };
        if is_busy {
            option(random, 100, "--rate-limit", &["0"]);
            option(random, 70, "--max-outbox", &["1024", "2048", "8192"]);
            option(random, 40, "--max-buffered", &["12000", "20000"]);
        } else {
            option(random, 60, "--rate-limit", &["0", "0", "1", "5", "100"]);
        }
        option(random, 50, "--history", &["0", "1", "3", "20", "200"]);
        option(random, 25, "--history-ttl", &["1", "20", "600"]);
        option(random, 40, "--max-text", &["20", "60", "2000"]);
        option(random, 25, "--unique-names", &["true"]);
        option(random, 20, "--max-listed", &["0", "1", "3"]);
        option(random, 30, "--max-presence", &["0", "1", "3"]);
        option(random, 30, "--max-read", &["1024", "2048"]);
        option(random, 20, "--ping-interval", &["3", "29"]);
        option(random, 20, "--close-timeout", &["1", "20"]);
        option(random, 20, "--handshake-timeout", &["5"]);
        if !is_independent && !is_busy && !has_crowd {
            option(random, 45, "--max-outbox", &["1024", "2048", "8192", "65536"]);
            option(random, 15, "--max-rooms", &["1", "2"]);
            option(random, 15, "--max-empty-rooms", &["0", "1"]);
            option(random, 10, "--max-history", &["20000", "50000"]);
            option(random, 15, "--max-connections", &["2", "5", "9"]);
        }
        if options.iter().any(|(name, _)| *name == "--max-buffered") {
            options.extend([("--max-echo", "1000".to_owned()), ("--max-message", "12000".into())]);
        }
        if is_public {
            options.extend([("--listen", "0.0.0.0:3000".to_owned()), ("--open", "true".into())]);
            options.push(("--connect-rate", "0".into()));
            if random.bool() && !is_independent && !has_crowd {
                options.push(("--max-per-address", "3".into()));
            } else {
                options.push(("--max-per-address", "0".into()));
            }
        }
        if shares_room {
            // The test repeats this script without its rude client and compares what the other clients receive.
            // Exclude options with which that client's presence would change their history or member list.
            options.retain(|(name, _)| !matches!(*name, "--history-ttl" | "--max-listed" | "--max-presence"));
            options.push(("--history-ttl", "86400".into()));
        }
        let count = if has_crowd { random.usize(165..220) } else { random.usize(2..11) };
        let capacities = [64, 300, 1000, 4000, 16_000, 64 * 1024];
        // Exclude the `rooms` dialect: its join events have no username, so the test could not tell whose join it is.
        let named = [Dialect::Events, Dialect::Presence];
        let dialect =
            |random: &mut Rng| if shares_room { named[random.usize(..2)] } else { DIALECTS[random.usize(..3)] };
        let dialects: Vec<Dialect> = (0..random.usize(1..5)).map(|_| dialect(random)).collect();
        let shared_names = if random.u8(..4) == 0 { 3 } else { 0 };
        let mut actors: Vec<Actor> = (0..count)
            .map(|number| Actor {
                name: match () {
                    () if random.u8(..10) < shared_names => NAMES[random.usize(..3)].to_owned(),
                    () if number < NAMES.len() => NAMES[number].to_owned(),
                    () => format!("user{number}"),
                },
                dialect: dialects[random.usize(..dialects.len())],
                client_id: format!("id {}", if random.u8(..20) == 0 { 0 } else { number }),
                address: if is_public { random.u8(1..5) } else { 0 },
                capacity: if has_crowd || shares_room {
                    64 * 1024
                } else {
                    capacities[random.usize(..capacities.len())]
                },
                is_rude: false,
            })
            .collect();
        let rude = if is_independent { 1 } else { [0, 0, 1, 2][random.usize(..4)] };
        for number in 0..rude {
            let capacity = capacities[random.usize(..capacities.len())];
            let (dialect, client_id) = (Dialect::Events, format!("rude {number}"));
            actors.push(Actor {
                name: format!("rude{number}"),
                dialect,
                client_id,
                address: 9,
                capacity,
                is_rude: true,
            });
        }
        let faults = random.u8(..3);
        let chances = [0.9, 0.5, 0.3, 0.3];
        let chances = chances.map(|max: f64| if faults == 0 || random.bool() { 0.0 } else { random.f64() * max });
        // Each read, write and turn of the event loop advances the random number generator that decides a connection's
        // faults. A rude client causes additional turns and, in a shared room, additional reads and writes on
        // the other connections. Turn off the faults that would differ in a run without that client.
        let [short_io_chance, would_block_chance, interrupt_chance, spurious_edge_chance] =
            if shares_room { [0.0; 4] } else { chances };
        let spurious_edge_chance = if is_independent { 0.0 } else { spurious_edge_chance };
        let accept_fault_chance = if !is_independent && random.u8(..4) == 0 { random.f64() * 0.7 } else { 0.0 };
        let latency = [0, 0, 1, 20, 200, 900][random.usize(..6)];
        let delay =
            (!is_independent && !has_crowd && random.u8(..5) < 2).then(|| [0, 1, 50, 400, 2000][random.usize(..5)]);
        let mut script = Script {
            seed,
            options,
            actors,
            actions: Vec::new(),
            end: Duration::ZERO,
            short_io_chance,
            would_block_chance,
            interrupt_chance,
            spurious_edge_chance,
            accept_fault_chance,
            latency: Duration::from_millis(latency),
            delay: delay.map(Duration::from_millis),
            history_keep: None,
            is_observed: random.u8(..6) == 0,
            has_crowd,
            is_public,
            is_independent,
            shares_room,
            logs_to_stderr: random.u8(..4) == 0,
            ends_with_shutdown: random.u8(..5) == 0,
            drain: None,
        };
        script.write_actions(random, is_busy);
        if cfg!(feature = "sqlite") && !is_independent && !has_crowd {
            script.store_messages(&mut Rng::with_seed(seed ^ 0xd15c));
        }
        // Do not drain in a script that also runs without one of its clients. A drain closes clients one after another,
        // so removing a client would change when the others are closed.
        if script.ends_with_shutdown && !is_independent {
            script.drain_clients(&mut Rng::with_seed(seed ^ 0xd7a1));
        }
        if cfg!(feature = "deflate") && !is_independent {
            script.compress(&mut Rng::with_seed(seed ^ 0xdef1));
        }
        script
    }

    /// Adds a drain to half of the shutdowns. `random` is a separate generator, so the rest of a script stays the same.
    fn drain_clients(&mut self, random: &mut Rng) {
        if random.bool() {
            return;
        }
        let (delay, drain) = ([0, 0, 2][random.usize(..3)], [0, 1, 10, 90][random.usize(..4)]);
        self.options.extend([("--drain-delay", delay.to_string()), ("--drain", drain.to_string())]);
        self.drain = Some(Duration::from_secs(delay + drain));
    }

    /// Enables compression in half of the scripts. Do not call this for a script that compares two runs with different
    /// clients: the compressed bytes that a client receives depend on the other clients.
    fn compress(&mut self, random: &mut Rng) {
        if random.bool() {
            self.options.push(("--deflate", "true".into()));
            self.options.push(("--deflate-min", ["1", "32", "200"][random.usize(..3)].into()));
        }
    }

    /// Gives one script in three a history file. `random` is a separate generator, so all other scripts are the same
    /// with and without the `sqlite` feature.
    fn store_messages(&mut self, random: &mut Rng) {
        if random.u8(..3) > 0 {
            return;
        }
        self.history_keep = Some([0, 0, 3, 40][random.usize(..4)]);
        let delay = [0, 1, 20, 300, 2000][random.usize(..5)];
        self.delay = Some(Duration::from_millis(delay));
        self.logs_to_stderr = false; // a crash loses log lines, but the final checks expect all of them on stderr
    }

    fn write_actions(&mut self, random: &mut Rng, is_busy: bool) {
        use Action::*;
        let horizon = Duration::from_secs([2, 20, 120, 900, 3600, 7200][random.usize(..6)]);
        // A crowd that stays for hours only costs time: almost all turns handle Pings and Pongs.
        let horizon = if self.has_crowd { horizon.min(Duration::from_secs(60)) } else { horizon };
        // Each action, its weight, and the percentage of scripts that contain the action (swarm testing).
        let mut weights = Vec::new();
        for (action, weight, chance) in [
            (Connect, 6, 100),
            (Resume, 8, 80),
            (Send, 40, 95),
            (SendLong, 8, 60),
            (Resend, 8, 60),
            (Burst, 5, 50),
            (Private, 8, 60),
            (Switch, 8, 70),
            (Typing, 6, 50),
            (Ping, 4, 50),
            (PingFrame, 4, 50),
            (History, 6, 50),
            (StopReading, 4, 50),
            (ReadSome, 4, 50),
            (ReadAll, 5, 90),
            (Close, 3, 60),
            (HalfClose, 2, 40),
            (Reset, 3, 50),
            (FallSilent, 1, 30),
            (PauseAccept, 1, 30),
            (StallStderr, 1, 30),
            (JumpClock, 1, 30),
            (FailPublish, 4, 60),
            (RejectJoin, 2, 50),
            (StopFaults, 1, 50),
        ] {
            if random.u32(..100) < chance {
                weights.push((action, weight * random.u32(1..6)));
            }
        }
        weights.push((Connect, 4));
        if is_busy {
            weights.extend([(StopReading, 30), (Burst, 60), (ReadSome, 10), (SendLong, 20)]);
        }
        if self.is_independent {
            // Exclude actions after which many handshakes are pending at once: the server limits the handshakes per
            // turn, so the clients would delay each other.
            weights.retain(|(action, _)| !matches!(action, JumpClock | PauseAccept | StopFaults));
        }
        if self.shares_room {
            weights.retain(|(action, _)| !matches!(action, StopReading | ReadSome | ReadAll));
        }
        let rude = self.actors.iter().position(|actor| actor.is_rude).unwrap_or(self.actors.len());
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let draw = |random: &mut Rng| {
            let mut left = random.u32(..total);
            let found = weights.iter().find(|(_, weight)| match left.checked_sub(*weight) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            found.map_or(Connect, |(action, _)| *action)
        };
        let mut actions = Vec::new();
        let time = |random: &mut Rng| horizon.mul_f64(random.f64());
        for actor in 0..rude {
            let at = if self.has_crowd { horizon / 100 } else { time(random) / 8 };
            actions.push(TimedAction { at, actor, action: Connect, seed: random.u64(..) });
        }
        let count = if self.has_crowd { 60 } else { random.usize(20..250) };
        for _ in 0..count {
            let action = draw(random);
            actions.push(TimedAction { at: time(random), actor: random.usize(..rude), action, seed: random.u64(..) });
        }
        for actor in rude..self.actors.len() {
            for _ in 0..random.usize(1..12) {
                let action = if random.u8(..3) == 0 { BreakHead } else { BreakRule };
                actions.push(TimedAction { at: time(random), actor, action, seed: random.u64(..) });
            }
        }
        if self.has_crowd {
            let (at, stay) = (horizon.mul_f64(0.9), random.usize(3..8));
            let all = (0..rude).map(|actor| TimedAction { at, actor, action: Reset, seed: random.u64(..) });
            actions.extend(all.skip(stay));
        }
        // In most scripts, round the times, so that one turn of the event loop handles several actions.
        if random.u8(..3) > 0 && !self.is_independent {
            let grain = horizon.as_millis() as u64 / random.u64(10..80) + 1;
            for timed in &mut actions {
                timed.at = Duration::from_millis(timed.at.as_millis() as u64 / grain * grain);
            }
        }
        actions.sort_by_key(|timed| timed.at);
        self.actions = actions;
        self.end = horizon;
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(option, _)| *option == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: usize) -> usize {
        self.option(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    pub fn seconds(&self, name: &str, default: u64) -> Duration {
        Duration::from_secs(self.number(name, default as usize) as u64)
    }

    pub fn max_connections(&self) -> Option<usize> {
        self.option("--max-connections").and_then(|value| value.parse().ok())
    }

    /// Whether the broker may reject a join that it would otherwise accept.
    pub fn rejects_joins(&self) -> bool {
        self.delay.is_some() && self.actions.iter().any(|timed| timed.action == Action::RejectJoin)
    }

    /// Whether the server may reject a client because of a limit on connections, addresses or rooms.
    pub fn has_limits(&self) -> bool {
        let rooms = ["--max-rooms", "--max-empty-rooms"];
        self.max_connections().is_some() || self.is_public || rooms.iter().any(|name| self.option(name).is_some())
    }

    pub fn is_buffer_tight(&self) -> bool {
        self.option("--max-buffered").is_some()
    }

    pub fn rules(&self) -> Rules {
        let tight = ["--max-rooms", "--max-empty-rooms", "--max-history"];
        let is_tight = tight.iter().any(|name| self.option(name).is_some());
        Rules {
            history: self.number("--history", 50),
            history_ttl: self.seconds("--history-ttl", 3600),
            max_outbox: self.number("--max-outbox", 256 * 1024),
            max_text: self.number("--max-text", 500),
            max_message: self.number("--max-message", 64 * 1024),
            max_listed: self.number("--max-listed", 1000),
            max_presence: self.number("--max-presence", 100),
            rate_limit: self.option("--rate-limit").and_then(|rate| rate.parse().ok()).unwrap_or(5.0),
            unique_names: self.option("--unique-names").is_some(),
            history_keep: self.history_keep,
            has_high_limits: !is_tight,
        }
    }
}
