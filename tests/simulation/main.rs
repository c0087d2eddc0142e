//! Simulates the whole server. A seed determines the server's options, the clients' actions, the socket and broker
//! faults, and the time, so that every run is repeatable. A model computes what each client must receive.
//!
//! ```text
//!   cargo test --release --test simulation               300 seeds
//!   cargo test --release --test simulation -- 4711       only seed 4711
//!   cargo test --release --test simulation -- --seeds 100000 --from 1
//!   cargo test --release --features redis --test simulation -- --instances --seeds 1000    only multi-instance runs
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(not(feature = "sqlite"), allow(dead_code))] // code that only a broker with storage needs
#![allow(clippy::too_many_lines)] // the longest functions are mostly a `match` with an arm per action, event or option

mod broker;
#[cfg(feature = "redis")]
mod cluster;
#[path = "../support/delayed_broker.rs"]
mod delayed_broker;
#[cfg(feature = "sqlite")]
mod durable;
mod late;
#[cfg(feature = "sqlite")]
#[path = "../support/manual_disk.rs"]
mod manual_disk;
#[path = "../support/memory.rs"]
mod memory;
mod model;
#[cfg(feature = "redis")]
mod redis;
mod run;
mod script;
#[path = "../support/mod.rs"]
mod support;
mod trace;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use model::{DETERMINISM, ISOLATION, NO_PANIC, Violation};
use run::Outcome;
use script::Script;

const DEFAULT_SEEDS: u64 = if cfg!(debug_assertions) { 40 } else { 300 };
/// One in this many seeds runs twice. Both runs must send the same bytes and take the same simulated time.
const REPLAY_EVERY: u64 = 10;
/// One in this many seeds also simulates several instances of the server.
#[cfg(feature = "redis")]
const INSTANCES_EVERY: u64 = 3;

/// States that a run of 300 or more seeds must reach.
const FREQUENT_STATES: &[&str] = &[
    "a Close by the server",
    "a Close in reply",
    "a Close with 1013",
    "a Close without a reply",
    "a drain",
    "a duplicate nonce",
    "a flood",
    "a full server",
    "a join that is rejected late",
    "a jump of the clock",
    "a message over the rate",
    "a message that is not stored",
    "a name in use",
    "a page of the history",
    "a private message",
    "a protocol error",
    "a resume",
    "a resume from the future",
    "a resume that failed",
    "a resume with missed messages",
    "a rude client in a shared room",
    "a run without the rude client",
    "a silent peer",
    "a slow consumer",
    "a slow consumer with half a frame",
    "a stop of the server",
    "a stream that ends without a Close",
    "a takeover",
    "a stalled stderr",
    "bytes that arrive late",
    "clients that waited for a descriptor",
];
/// The additional states that a run of 300 or more seeds must reach if the feature `deflate` is enabled.
const DEFLATE_STATES: &[&str] = &["a message with a shared context", "a message compressed alone"];

/// The additional states that a run of 300 or more seeds must reach if the feature `sqlite` is enabled.
const SQLITE_STATES: &[&str] = &[
    "a crash",
    "a crash between a commit and its events",
    "a disk that fails",
    "a full disk",
    "a message that was stored and not acknowledged",
    "a resume across a restart",
];
/// The additional states that a run of 300 or more seeds must reach if the feature `redis` is enabled.
const REDIS_STATES: &[&str] = &[
    "a Redis that is full",
    "a Redis whose data is erased while it runs",
    "a crash of an instance",
    "a lost connection",
    "a message right after an outage",
    "a partition",
    "a restart of Redis with its data",
    "a restart of Redis with older data",
    "a restart of Redis without data",
    "a stop of an instance",
    "a suspended instance",
];
/// Rare states. A run of 1,000 or more seeds must reach all of them. A shorter run may miss some.
const RARE_STATES: &[&str] = &[
    "a hold of broadcasts",
    "a peer that does not end the stream",
    "a peer that does not read the last bytes",
    "a rejected connection that makes room",
    "a request that is never complete",
    "a slow consumer alone in its room",
    "a switch during a pending join",
    "the buffers of the server are full",
    "too many joins",
    "log lines that were dropped",
    "too many rooms",
];

thread_local! {
    /// The message and the source location of the last panic.
    static LAST_PANIC: Cell<String> = const { Cell::new(String::new()) };
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a. Starts from `hash`, which is `FNV_OFFSET` or the hash of the previous bytes.
fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Arguments {
    seed: Option<u64>,
    seeds: u64,
    from: u64,
    /// Whether to reduce a failing script to fewer actions that still cause the failure.
    shrinks: bool,
    /// Whether to simulate several instances of the server with every seed. In a range of seeds, also skips the
    /// single-server runs.
    instances: bool,
}

/// Parses the command line. Ignores arguments of libtest, such as `--test-threads 1`.
fn arguments() -> Arguments {
    let mut arguments = Arguments { seed: None, seeds: DEFAULT_SEEDS, from: 1, shrinks: true, instances: false };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut number = || given.next().and_then(|value| value.parse().ok());
        match argument.as_str() {
            "--seeds" => arguments.seeds = number().unwrap_or(arguments.seeds),
            "--from" => arguments.from = number().unwrap_or(arguments.from),
            "--instances" => arguments.instances = true,
            "--no-shrink" => arguments.shrinks = false,
            "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" => _ = given.next(),
            seed => arguments.seed = seed.parse().ok().or(arguments.seed),
        }
    }
    arguments
}

/// Runs a script of client actions. Reports a panic as a violation.
fn run(script: &Script, is_tracing: bool) -> Outcome {
    panic::catch_unwind(AssertUnwindSafe(|| run::run(script, is_tracing))).unwrap_or_else(|_| Outcome {
        violation: Some(Violation { rule: NO_PANIC, text: LAST_PANIC.take() }),
        step: trace::step_count(),
        trace: trace::take(),
        hash: 0,
        received: BTreeMap::new(),
        time: Duration::ZERO,
        messages: 0,
        counters: BTreeMap::new(),
    })
}

/// Runs a script. Some scripts run twice, the second time with a trace, to check that a seed reproduces its run. Some
/// scripts with a rude client also run without it, to check that it does not affect the others.
fn check(script: &Script) -> Outcome {
    let mut outcome = run(script, false);
    if outcome.violation.is_some() {
        return outcome;
    }
    if script.seed.is_multiple_of(REPLAY_EVERY) {
        let again = run(script, true);
        if again.hash != outcome.hash || again.time != outcome.time || !trace::has_records(&again.trace) {
            let text = format!("hashes {:016x} and {:016x}, trace {:?}", outcome.hash, again.hash, again.trace);
            outcome.violation = Some(Violation { rule: DETERMINISM, text });
        }
    }
    if script.is_independent && outcome.violation.is_none() {
        outcome.violation = check_isolation(script, &outcome);
        let kind = if script.shares_room { "a rude client in a shared room" } else { "a run without the rude client" };
        *outcome.counters.entry(kind).or_default() += 1;
    }
    outcome
}

fn check_isolation(script: &Script, with: &Outcome) -> Option<Violation> {
    let mut polite = script.clone();
    polite.actions.retain(|timed| !script.actors[timed.actor].is_rude);
    let without = run(&polite, false);
    if let Some(violation) = without.violation {
        return Some(violation);
    }
    let polite_actors = (0..script.actors.len()).filter(|actor| !script.actors[*actor].is_rude);
    for actor in polite_actors {
        let [with, without] = [with, &without].map(|run| run.received.get(&actor).map_or(&[][..], Vec::as_slice));
        let same = with.iter().zip(without).take_while(|(with, without)| with == without).count();
        if same < with.len().max(without.len()) {
            let (name, with, without) = (&script.actors[actor].name, with.get(same), without.get(same));
            let text = format!("{name} receives {with:?}, but without the rude client {without:?}");
            return Some(Violation { rule: ISOLATION, text });
        }
    }
    None
}

/// Spends up to a minute removing actions. `breaks` returns whether the remaining actions still cause the failure.
fn shrink<T: Clone>(actions: &[T], breaks: impl Fn(Vec<T>) -> bool) -> Vec<T> {
    let mut shrunk = actions.to_vec();
    let end = Instant::now() + Duration::from_secs(60);
    let mut size = shrunk.len().div_ceil(2);
    while size > 0 && Instant::now() < end {
        let mut start = 0;
        let before = shrunk.len();
        while start < shrunk.len() && Instant::now() < end {
            let mut smaller = shrunk.clone();
            smaller.drain(start..(start + size).min(smaller.len()));
            if breaks(smaller.clone()) {
                shrunk = smaller;
            } else {
                start += size;
            }
        }
        if size == 1 && shrunk.len() == before {
            break;
        }
        size = (size / 2).max(1);
    }
    shrunk
}

fn shrink_script(script: &Script, rule: &'static str) -> Script {
    let breaks = |actions| {
        let smaller = Script { actions, ..script.clone() };
        check(&smaller).violation.is_some_and(|violation| violation.rule == rule)
    };
    Script { actions: shrink(&script.actions, breaks), ..script.clone() }
}

/// The cargo arguments for the features of this build on which scripts depend.
fn features() -> String {
    let mut enabled = Vec::new();
    enabled.extend(cfg!(feature = "sqlite").then_some("sqlite"));
    enabled.extend(cfg!(feature = "redis").then_some("redis"));
    enabled.extend(cfg!(feature = "deflate").then_some("deflate"));
    if enabled.is_empty() { String::new() } else { format!(" --features {}", enabled.join(",")) }
}

fn report(script: &Script, outcome: &Outcome, shrinks: bool) {
    let Some(violation) = &outcome.violation else { return };
    println!("seed {} breaks a rule after {} of {} actions.", script.seed, outcome.step, script.actions.len());
    println!("  rule     {}\n  found    {}", violation.rule, violation.text);
    let shrunk = if shrinks { shrink_script(script, violation.rule) } else { script.clone() };
    let traced = run(&shrunk, true);
    println!("{} actions are enough. Options: {:?}", shrunk.actions.len(), shrunk.options);
    let Script {
        short_io_chance,
        would_block_chance,
        interrupt_chance,
        spurious_edge_chance,
        latency,
        delay,
        is_observed,
        ..
    } = &shrunk;
    println!(
        "Faults: short {short_io_chance:.2}, block {would_block_chance:.2}, interrupt {interrupt_chance:.2}, spurious \
         {spurious_edge_chance:.2}, latency {latency:?}, broker {delay:?}, observed {is_observed}"
    );
    for timed in &shrunk.actions {
        let actor = &shrunk.actors[timed.actor];
        println!(
            "  {:>12.3} s  {:?} by {} ({:?}, {} bytes)",
            timed.at.as_secs_f64(),
            timed.action,
            actor.name,
            actor.dialect,
            actor.capacity
        );
    }
    println!("The last events:");
    traced.trace.iter().for_each(|line| println!("  {line}"));
    if let Some(violation) = &traced.violation {
        println!("  {}: {}", violation.rule, violation.text);
    }
    println!("Again: cargo test --release{} --test simulation -- {}", features(), script.seed);
}

fn main() -> ExitCode {
    let arguments = arguments();
    panic::set_hook(Box::new(|panic| LAST_PANIC.set(panic.to_string())));
    if let Some(seed) = arguments.seed {
        #[cfg(feature = "redis")]
        if (arguments.instances || seed.is_multiple_of(INSTANCES_EVERY))
            && cluster::check(seed, arguments.shrinks).is_none()
        {
            return ExitCode::FAILURE;
        }
        let script = Script::new(seed);
        let outcome = check(&script);
        report(&script, &outcome, arguments.shrinks);
        println!(
            "seed {seed}: {} actions, {:?}, hash {:016x}, {:?}",
            script.actions.len(),
            outcome.time,
            outcome.hash,
            outcome.counters
        );
        return ExitCode::from(u8::from(outcome.violation.is_some()));
    }
    let start = Instant::now();
    let (mut time, mut messages, mut counters) = (Duration::ZERO, 0, BTreeMap::<&str, u64>::new());
    for seed in arguments.from..arguments.from + arguments.seeds {
        #[cfg(feature = "redis")]
        if arguments.instances || seed.is_multiple_of(INSTANCES_EVERY) {
            let Some(outcome) = cluster::check(seed, arguments.shrinks) else { return ExitCode::FAILURE };
            time += outcome.time;
            messages += outcome.messages;
            outcome.counters.into_iter().for_each(|(name, count)| *counters.entry(name).or_default() += count);
        }
        if arguments.instances {
            continue;
        }
        let script = Script::new(seed);
        let outcome = check(&script);
        if outcome.violation.is_some() {
            report(&script, &outcome, arguments.shrinks);
            return ExitCode::FAILURE;
        }
        time += outcome.time;
        messages += outcome.messages;
        outcome.counters.into_iter().for_each(|(name, count)| *counters.entry(name).or_default() += count);
    }
    let hours = time.as_secs_f64() / 3600.0;
    let reached: Vec<String> = counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!(
        "simulation: {} seeds from {} in {} s, {hours:.1} simulated hours, {messages} messages delivered. Sometimes: {}",
        arguments.seeds,
        arguments.from,
        start.elapsed().as_secs(),
        reached.join(", ")
    );
    let missing = |names: &[&'static str], min: u64| -> Vec<&'static str> {
        let is_missing = |name: &&&'static str| arguments.seeds >= min && !counters.contains_key(**name);
        names.iter().filter(is_missing).copied().collect()
    };
    if arguments.instances {
        return ExitCode::SUCCESS;
    }
    let mut missing_states = [missing(FREQUENT_STATES, 300), missing(RARE_STATES, 1000)].concat();
    let of_features = [
        (cfg!(feature = "sqlite"), SQLITE_STATES),
        (cfg!(feature = "redis"), REDIS_STATES),
        (cfg!(feature = "deflate"), DEFLATE_STATES),
    ];
    for (_, states) in of_features.into_iter().filter(|(is_enabled, _)| *is_enabled) {
        missing_states.extend(missing(states, 300));
    }
    if !missing_states.is_empty() {
        println!("These states were never reached: {}", missing_states.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
