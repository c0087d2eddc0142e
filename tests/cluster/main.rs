//! Runs several instances of the server that share one Redis, and hundreds of clients. Instances, Redis and the
//! connections fail at random. The clients reconnect and resend, and a checker verifies that they receive what
//! PROTOCOL.md promises.
//!
//! ```text
//!   cargo test --features redis --test cluster                                   30 seconds with seed 1
//!   cargo test --features redis --test cluster -- --seed 7 --seconds 600         ten minutes with seed 7
//!   cargo test --features redis --test cluster -- --volatile --seconds 60        some faults erase the data of Redis
//!   cargo test --features redis --test cluster -- --rolling                      instances restart one after the other
//! ```
//!
//! The seed determines the faults and the actions of the clients. Two runs with the same seed still differ, because the
//! processes run in real time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clients;
#[path = "../support/cluster.rs"]
mod cluster;
mod faults;
#[path = "../support/proxy.rs"]
mod proxy;
mod record;
#[path = "../support/redis_server.rs"]
mod redis_server;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clients::Pool;
use fastrand::Rng;
use faults::Machines;
use redis_server::{Persistence, RedisServer};
use serde_json::{Value, json};

/// Maximum time after the last fault until all clients agree on the members and messages of their rooms. Up to five
/// seconds pass before the instances detect that another instance is dead and remove its members.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

struct Arguments {
    seed: u64,
    time: Duration,
    instances: usize,
    clients: usize,
    rooms: usize,
    /// Actions per second, across all clients. Most actions send a message.
    rate: u64,
    /// With `--volatile`, Redis runs without persistence, and some of the injected faults erase its data.
    is_volatile: bool,
    /// The instances restart gracefully, one after the other. There are no other faults.
    is_rolling: bool,
    has_faults: bool,
}

/// Parses the command line. Ignores the options of Rust's test harness, such as `--test-threads 1`.
fn arguments() -> Arguments {
    let mut arguments = Arguments {
        seed: 1,
        time: Duration::from_secs(30),
        instances: 3,
        clients: 300,
        rooms: 20,
        rate: 300,
        is_volatile: false,
        is_rolling: false,
        has_faults: true,
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut number = || given.next().and_then(|value| value.parse::<u64>().ok()).expect("a number");
        match argument.as_str() {
            "--seed" => arguments.seed = number(),
            "--seconds" => arguments.time = Duration::from_secs(number()),
            "--instances" => arguments.instances = number() as usize,
            "--clients" => arguments.clients = number() as usize,
            "--rooms" => arguments.rooms = number() as usize,
            "--rate" => arguments.rate = number(),
            "--volatile" => arguments.is_volatile = true,
            "--rolling" => arguments.is_rolling = true,
            "--no-faults" => arguments.has_faults = false,
            "--test-threads" | "--skip" | "--format" | "--color" | "--logfile" => _ = given.next(),
            _ => {}
        }
    }
    arguments
}

struct Run {
    pool: Pool,
    machines: Machines,
    rate: u64,
    last_action: Instant,
    /// For each Redis fault, the time from its end to the next delivered message. Leaves out a fault if another one was
    /// active during that time.
    repair_times: Vec<Duration>,
}

impl Run {
    fn start(arguments: &Arguments) -> Option<Run> {
        let persistence = if arguments.is_volatile { Persistence::Off } else { Persistence::Always };
        let redis = RedisServer::start(persistence)?;
        // The checker looks for every acknowledged message in the history, which keeps 10,000 messages per room. So a
        // run must not publish more than 10,000 in any room.
        let mut args = vec!["--rate-limit", "0", "--history", "10000", "--max-history", "1000000000", "--drain", "2"];
        if arguments.seed.is_multiple_of(2) {
            args.push("--unique-names");
        }
        let machines = Machines::start(redis, arguments.instances, &args, !arguments.is_volatile);
        let random = Rng::with_seed(arguments.seed.wrapping_add(1));
        let mut pool = Pool::new(arguments.clients, arguments.rooms, random, !arguments.is_volatile);
        pool.only_sends = arguments.is_rolling;
        Some(Run { pool, machines, rate: arguments.rate, last_action: Instant::now(), repair_times: Vec::new() })
    }

    fn turn(&mut self) {
        let addrs: Vec<SocketAddr> = (0..self.machines.count()).map(|i| self.machines.addr(i)).collect();
        let count = self.pool.record.count;
        self.pool.turn(|random| addrs[random.usize(..addrs.len())]);
        if self.pool.record.count > count
            && let Some(repaired_at) = self.machines.repaired_at.take()
        {
            self.repair_times.push(repaired_at.elapsed());
        }
    }

    fn talk(&mut self) {
        let due = self.last_action.elapsed().as_micros() as u64 * self.rate / 1_000_000;
        if due > 0 {
            self.last_action = Instant::now();
            (0..due.min(self.rate)).for_each(|_| self.pool.act());
        }
    }

    /// Waits until all clients agree on the members and messages of their rooms. After [`SETTLE_TIMEOUT`], reports all
    /// disagreements.
    fn settle(&mut self) {
        let end = Instant::now() + SETTLE_TIMEOUT;
        while Instant::now() < end {
            (0..50).for_each(|_| self.turn());
            self.pool.resend_rejected();
            if self.pool.disagreements().is_empty() {
                return;
            }
        }
        for disagreement in self.pool.disagreements() {
            self.pool.record.report(format!("in the end, {disagreement}"));
        }
    }

    /// Compares the stored messages with the messages that the clients received. Then joins once for each client, with
    /// the client's epoch and last id. The server must then resume with an empty backlog. Only a client that received
    /// messages after a restart of Redis may fail to resume, because those messages may belong to an epoch that the
    /// client does not know.
    fn check_end(&mut self) {
        let rooms: BTreeSet<String> = self.pool.clients.iter().map(|client| client.room.clone()).collect();
        for (i, room) in rooms.iter().enumerate() {
            let server = self.machines.servers[i % self.machines.count()].as_ref().expect("an instance");
            let (mut reader, welcome) = cluster::join(server, &format!("reader-{i}"), room, "");
            let mut stored: Vec<Value> = Vec::new();
            let mut before = welcome["last_id"].as_u64().expect("an id") + 1;
            loop {
                reader.send_event("history", json!({"before": before, "limit": 100}));
                let page = cluster::next(&mut reader, "history");
                let mut messages = page["messages"].as_array().expect("messages").clone();
                before = messages.first().map_or(0, |message| message["id"].as_u64().expect("an id"));
                messages.append(&mut stored);
                stored = messages;
                if page["more"] != true {
                    break;
                }
            }
            let epoch = welcome["epoch"].as_str().expect("an epoch");
            self.pool.record.check_end(room, epoch, &stored);
        }
        for i in 0..self.pool.clients.len() {
            let client = &self.pool.clients[i];
            let server = self.machines.servers[(i + 1) % self.machines.count()].as_ref().expect("an instance");
            let resume = cluster::since(&json!(client.epoch), client.last_id);
            let (guest, welcome) = cluster::join(server, &format!("guest-{i}"), &client.room, &resume);
            let is_exact = welcome["resumed"] == true && welcome["history"] == json!([]);
            if !is_exact && (welcome["resumed"] == true || !client.has_outlived_epoch()) {
                let name = client.name.clone();
                self.pool.record.report(format!("in the end, {name} cannot resume: {welcome}"));
            }
            guest.leave();
        }
    }
}

fn main() -> ExitCode {
    let arguments = arguments();
    let Some(mut run) = Run::start(&arguments) else { return ExitCode::SUCCESS };
    let mut random = Rng::with_seed(arguments.seed);
    let end = Instant::now() + arguments.time;
    println!("cluster: seed {}, {:?}", arguments.seed, arguments.time);
    let mut restarted = 0;
    while Instant::now() < end {
        run.turn();
        run.talk();
        if arguments.is_rolling {
            let Run { pool, machines, .. } = &mut run;
            let addrs: Vec<SocketAddr> = (0..machines.count()).map(|i| machines.addr(i)).collect();
            machines.restart_gracefully(restarted % addrs.len(), |_| {
                pool.turn(|random| addrs[random.usize(..addrs.len())]);
                (0..2).for_each(|_| pool.act());
            });
            restarted += 1;
        } else if arguments.has_faults && run.machines.turn() && Instant::now() + Duration::from_secs(1) < end {
            // Let the clients perform a random number of actions, so that messages are in flight when the fault begins.
            (0..random.usize(..200)).for_each(|_| run.pool.act());
            (0..random.usize(..3)).for_each(|_| run.turn());
            run.machines.fail(&mut random);
            if std::mem::take(&mut run.machines.has_restarted) {
                run.pool.note_restart();
            }
        }
    }
    run.machines.repair();
    run.machines.repaired_at = None;
    run.settle();
    if run.pool.record.violations.is_empty() {
        run.check_end();
    }
    let (counts, record) = (&run.pool.counts, &run.pool.record);
    let slowest_repair = run.repair_times.iter().max().copied().unwrap_or_default();
    println!(
        "cluster: {} messages, {counts:?}, {} graceful restarts, faults: {:?}, delivery after a repair within {:.2} s",
        record.count,
        restarted,
        run.machines.counts,
        slowest_repair.as_secs_f64()
    );
    if record.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    run.machines.redis.keeps_directory = true;
    println!("The directory of Redis: {}", run.machines.redis.directory().display());
    println!(
        "{} violations; the seed was {}. The instances:\n{}",
        record.violations.len(),
        arguments.seed,
        run.machines.logs()
    );
    ExitCode::FAILURE
}
