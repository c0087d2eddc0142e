//! Injects faults into the instances, into their connections to Redis, and into Redis itself. The seed decides the
//! kind, the target, the start and the duration of each fault.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::cluster;
use crate::proxy::Proxy;
use crate::record::now;
use crate::redis_server::RedisServer;
use crate::support::{Server, signal};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    KillInstance(usize),
    StopInstance(usize),
    /// The instance receives SIGTERM and closes its connections one by one (`--drain`).
    DrainInstance(usize),
    Cut(usize),
    /// Redis executes the commands of an instance, but its replies do not reach the instance.
    DropReplies(usize),
    KillRedis,
    /// Redis is killed and restarts without its data. Happens only with `--volatile`.
    EraseRedis,
    Flush,
    StopRedis,
    PauseRedis,
    KillConnections,
}

impl Fault {
    /// Returns a number that identifies the process or connection that the fault affects. Two active faults must not
    /// share this number, because ending one of them would also end the other.
    fn target(self) -> usize {
        match self {
            Fault::KillInstance(i) | Fault::StopInstance(i) | Fault::DrainInstance(i) => i,
            Fault::Cut(i) | Fault::DropReplies(i) => 10 + i,
            _ => 20,
        }
    }
}

/// An active fault and the time when it ends.
struct ActiveFault {
    fault: Fault,
    end: Instant,
}

/// The instances, Redis, the proxies between them, and the active faults.
pub struct Machines {
    pub redis: RedisServer,
    /// One entry per instance; `None` while the instance is down.
    pub servers: Vec<Option<Server>>,
    addrs: Vec<SocketAddr>,
    proxies: Vec<Proxy>,
    args: Vec<String>,
    current: Vec<ActiveFault>,
    /// The faults that this round has not used yet. [`Machines::fail`] takes faults from the end.
    deck: Vec<Fault>,
    next: Instant,
    pub counts: Vec<(String, usize)>,
    keeps_data: bool,
    /// Whether Redis has been killed since the caller last cleared this flag.
    pub has_restarted: bool,
    /// When the last Redis fault ended, to measure how long recovery takes. The next delivered message ends the
    /// measurement. A new fault cancels it.
    pub repaired_at: Option<Instant>,
}

impl Machines {
    pub fn start(redis: RedisServer, count: usize, args: &[&str], keeps_data: bool) -> Machines {
        let proxies: Vec<Proxy> = (0..count).map(|_| Proxy::to(redis.addr())).collect();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut machines = Machines {
            redis,
            servers: Vec::new(),
            // The kernel never chooses these ports itself, so no other program gets the port of an instance that is
            // down.
            addrs: (0..count).map(|_| ([127, 0, 0, 1], crate::redis_server::free_port()).into()).collect(),
            proxies,
            args,
            current: Vec::new(),
            deck: Vec::new(),
            next: Instant::now() + Duration::from_secs(2),
            counts: Vec::new(),
            keeps_data,
            has_restarted: false,
            repaired_at: None,
        };
        for i in 0..count {
            let server = machines.launch(i);
            cluster::wait_until_ready(&server);
            machines.servers.push(Some(server));
        }
        machines
    }

    fn launch(&self, i: usize) -> Server {
        let proxy = SocketAddr::from(([127, 0, 0, 1], self.proxies[i].port()));
        let url = self.redis.url_via(proxy);
        let args: Vec<&str> = ["--redis", &url].into_iter().chain(self.args.iter().map(String::as_str)).collect();
        Server::start_at(&self.addrs[i].to_string(), &args)
    }

    pub fn addr(&self, i: usize) -> SocketAddr {
        self.addrs[i]
    }

    pub fn count(&self) -> usize {
        self.addrs.len()
    }

    /// Ends the faults that have expired. Returns `true` if it is time for the next fault.
    pub fn turn(&mut self) -> bool {
        self.end_expired_faults(Instant::now());
        Instant::now() >= self.next
    }

    /// Begins a random fault on a target that has no active fault, if there is such a target. Picks a random time for
    /// the next fault.
    pub fn fail(&mut self, random: &mut Rng) {
        self.next = Instant::now() + Duration::from_millis(random.u64(200..2500));
        // Use every fault in the shuffled deck before refilling it, so even a short run covers most kinds of faults.
        if self.deck.is_empty() {
            self.deck = self.kinds();
            random.shuffle(&mut self.deck);
        }
        let is_free = |fault: &Fault| self.current.iter().all(|current| current.fault.target() != fault.target());
        let Some(at) = self.deck.iter().rposition(is_free) else { return };
        let fault = self.deck.remove(at);
        // A third of the faults that have a duration last at least 5.5 seconds. That is long enough for the other
        // instances to declare the affected instance dead, and for requests to Redis to time out.
        let length = match fault {
            Fault::KillConnections | Fault::Flush => 0,
            _ if random.u8(..3) == 0 => random.u64(5500..9000),
            _ => random.u64(50..2500),
        };
        self.begin(fault, Duration::from_millis(length), random);
    }

    fn kinds(&self) -> Vec<Fault> {
        let of_instance = |i| {
            [
                Fault::KillInstance(i),
                Fault::StopInstance(i),
                Fault::DrainInstance(i),
                Fault::Cut(i),
                Fault::DropReplies(i),
            ]
        };
        let of_redis = [Fault::KillRedis, Fault::StopRedis, Fault::PauseRedis, Fault::KillConnections];
        let losses = [Fault::EraseRedis, Fault::Flush];
        let mut kinds: Vec<Fault> = (0..self.count()).flat_map(of_instance).collect();
        // With n instances, `kinds` now contains each instance fault n times, once per instance. Add each fault in
        // `of_redis` n times too, so that it is as likely as each kind of instance fault.
        (0..self.count()).for_each(|_| kinds.extend(of_redis));
        if !self.keeps_data {
            kinds.extend(losses.repeat(2));
        }
        kinds
    }

    fn begin(&mut self, fault: Fault, length: Duration, random: &mut Rng) {
        let name = format!("{fault:?}").split('(').next().unwrap_or_default().to_owned();
        match self.counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((name, 1)),
        }
        self.repaired_at = None;
        println!("{} {fault:?} for {:.1} s", now(), length.as_secs_f64());
        self.has_restarted |= matches!(fault, Fault::KillRedis | Fault::EraseRedis);
        match fault {
            Fault::KillInstance(i) => {
                if let Some(mut server) = self.servers[i].take() {
                    cluster::kill(&mut server);
                }
            }
            Fault::StopInstance(i) => self.signal(i, "STOP"),
            Fault::DrainInstance(i) => self.signal(i, "TERM"),
            Fault::Cut(i) => self.proxies[i].cut(),
            Fault::DropReplies(i) => self.proxies[i].drop_responses(),
            Fault::KillRedis => self.redis.kill(),
            Fault::EraseRedis => {
                self.redis.kill();
                self.redis.remove_data();
            }
            Fault::StopRedis => self.redis.stop(),
            Fault::PauseRedis => {
                let mode = if random.bool() { "ALL" } else { "WRITE" };
                let _ = self.redis.ask(&["CLIENT", "PAUSE", &length.as_millis().to_string(), mode]);
            }
            Fault::KillConnections => {
                let kinds = [&["normal"][..], &["pubsub"], &["normal", "pubsub"]][random.usize(..3)];
                kinds.iter().for_each(|kind| drop(self.redis.ask(&["CLIENT", "KILL", "TYPE", kind])));
            }
            Fault::Flush => drop(self.redis.ask(&["FLUSHALL"])),
        }
        self.current.push(ActiveFault { fault, end: Instant::now() + length });
    }

    fn end_expired_faults(&mut self, now: Instant) {
        let (over, active): (Vec<_>, _) =
            std::mem::take(&mut self.current).into_iter().partition(|current| current.end <= now);
        self.current = active;
        for ActiveFault { fault, .. } in over {
            // The instance is still draining. Check again in 100 ms: waiting here would stall the clients, which run on
            // the same thread.
            if let Fault::DrainInstance(i) = fault
                && self.servers[i].as_mut().is_some_and(Server::is_running)
            {
                self.current.push(ActiveFault { fault, end: now + Duration::from_millis(100) });
            } else {
                self.end(fault);
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::KillInstance(i) => self.servers[i] = Some(self.launch(i)),
            Fault::StopInstance(i) => self.signal(i, "CONT"),
            Fault::DrainInstance(i) => {
                if let Some(mut server) = self.servers[i].take() {
                    server.wait();
                }
                self.servers[i] = Some(self.launch(i));
            }
            Fault::Cut(i) => self.proxies[i].restore(),
            // The proxy has dropped replies in mid-stream, which TCP never does, so the proxy must cut the connection.
            Fault::DropReplies(i) => {
                self.proxies[i].cut();
                self.proxies[i].restore();
            }
            Fault::KillRedis | Fault::EraseRedis => self.redis.launch(),
            Fault::StopRedis => self.redis.resume(),
            Fault::PauseRedis => drop(self.redis.ask(&["CLIENT", "UNPAUSE"])),
            Fault::KillConnections | Fault::Flush => {}
        }
        // Start measuring the recovery time, unless another active fault could delay the recovery.
        if fault.target() == 20 && self.current.is_empty() {
            self.repaired_at = Some(Instant::now());
        }
    }

    /// Ends all active faults early and waits until no instance is draining.
    pub fn repair(&mut self) {
        while let Some(last) = self.current.iter().map(|current| current.end).max() {
            self.end_expired_faults(last);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops an instance with SIGTERM and starts it again. Calls `turn` repeatedly until the instance is ready.
    pub fn restart_gracefully(&mut self, i: usize, mut turn: impl FnMut(&mut Machines)) {
        self.signal(i, "TERM");
        loop {
            turn(self);
            if self.servers[i].as_mut().is_none_or(|server| !server.is_running()) {
                break;
            }
        }
        self.servers[i] = Some(self.launch(i));
        while self.servers[i].as_ref().is_some_and(|server| !cluster::is_ready(server)) {
            turn(self);
        }
    }

    fn signal(&self, i: usize, name: &str) {
        if let Some(server) = &self.servers[i] {
            signal(server.pid(), name);
        }
    }

    /// Returns the last lines of each instance's log, to explain a failed run. Skips INFO lines that are not about
    /// Redis.
    pub fn logs(&self) -> String {
        let logs = self.servers.iter().enumerate().filter_map(|(i, server)| Some((i, server.as_ref()?.log())));
        let end = |(i, log): (usize, String)| {
            let lines: Vec<&str> =
                log.lines().filter(|line| !line.contains(" INFO ") || line.contains("REDIS")).collect();
            let skipped = lines.len().saturating_sub(60);
            format!("--- instance {i}\n{}\n", lines[skipped..].join("\n"))
        };
        logs.map(end).collect()
    }
}
