//! The faults of a run. The seed decides which ones, of what, when, and for how long.

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
    /// SIGTERM with a drain, which closes connections one by one.
    DrainInstance(usize),
    Cut(usize),
    /// Redis executes what it receives, but its replies are lost.
    DropReplies(usize),
    KillRedis,
    /// Only in a run in which Redis may lose its data.
    EraseRedis,
    Flush,
    StopRedis,
    PauseRedis,
    KillConnections,
}

impl Fault {
    /// Two simultaneous faults of one target would end each other.
    fn target(self) -> usize {
        match self {
            Fault::KillInstance(i) | Fault::StopInstance(i) | Fault::DrainInstance(i) => i,
            Fault::Cut(i) | Fault::DropReplies(i) => 10 + i,
            _ => 20,
        }
    }
}

/// A fault that has begun, and the time of its end.
struct Current {
    fault: Fault,
    end: Instant,
}

/// The processes and their current faults.
pub struct Machines {
    pub redis: RedisServer,
    /// `None` while the instance is down.
    pub servers: Vec<Option<Server>>,
    addrs: Vec<SocketAddr>,
    proxies: Vec<Proxy>,
    args: Vec<String>,
    current: Vec<Current>,
    /// The remaining faults of this round, in reverse order.
    deck: Vec<Fault>,
    next: Instant,
    pub counts: Vec<(String, usize)>,
    keeps_data: bool,
    /// Whether Redis has been killed since the clients were told.
    pub has_restarted: bool,
    /// When Redis was repaired, until the next message is delivered.
    pub repaired: Option<Instant>,
}

impl Machines {
    pub fn start(redis: RedisServer, count: usize, args: &[&str], keeps_data: bool) -> Machines {
        let proxies: Vec<Proxy> = (0..count).map(|_| Proxy::to(redis.addr())).collect();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut machines = Machines {
            redis,
            servers: Vec::new(),
            // As for Redis: no other program gets the port while the instance is down.
            addrs: (0..count).map(|_| ([127, 0, 0, 1], crate::redis_server::free_port()).into()).collect(),
            proxies,
            args,
            current: Vec::new(),
            deck: Vec::new(),
            next: Instant::now() + Duration::from_secs(2),
            counts: Vec::new(),
            keeps_data,
            has_restarted: false,
            repaired: None,
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
        let url = self.redis.url_by(proxy);
        let args: Vec<&str> = ["--redis", &url].into_iter().chain(self.args.iter().map(String::as_str)).collect();
        Server::start_at(&self.addrs[i].to_string(), &args)
    }

    pub fn addr(&self, i: usize) -> SocketAddr {
        self.addrs[i]
    }

    pub fn count(&self) -> usize {
        self.addrs.len()
    }

    /// Ends the faults whose time is over. Returns whether it is time for the next fault.
    pub fn turn(&mut self) -> bool {
        self.end_until(Instant::now());
        Instant::now() >= self.next
    }

    /// Begins the next fault.
    pub fn fail(&mut self, random: &mut Rng) {
        self.next = Instant::now() + Duration::from_millis(random.u64(200..2500));
        if self.deck.is_empty() {
            self.deck = self.kinds();
            random.shuffle(&mut self.deck);
        }
        // The kinds take turns, so that even a short run has most of them.
        let is_free = |fault: &Fault| self.current.iter().all(|current| current.fault.target() != fault.target());
        let Some(at) = self.deck.iter().rposition(is_free) else { return };
        let fault = self.deck.remove(at);
        // Sometimes long enough that an instance counts as dead or a timeout expires.
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
        // As often as the faults of an instance.
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
        self.repaired = None;
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
        self.current.push(Current { fault, end: Instant::now() + length });
    }

    fn end_until(&mut self, now: Instant) {
        while let Some(at) = self.current.iter().position(|current| current.end <= now) {
            let fault = self.current.swap_remove(at).fault;
            // A stop waits for messages whose fate is unknown. Meanwhile, the clients must continue.
            if let Fault::DrainInstance(i) = fault
                && self.servers[i].as_mut().is_some_and(Server::is_running)
            {
                self.current.push(Current { fault, end: now + Duration::from_millis(100) });
                break;
            }
            self.end(fault);
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
            // TCP loses no bytes in the middle: after a loss, the connection ends.
            Fault::DropReplies(i) => {
                self.proxies[i].cut();
                self.proxies[i].restore();
            }
            Fault::KillRedis | Fault::EraseRedis => self.redis.launch(),
            Fault::StopRedis => self.redis.resume(),
            Fault::PauseRedis => drop(self.redis.ask(&["CLIENT", "UNPAUSE"])),
            Fault::KillConnections | Fault::Flush => {}
        }
        // If an instance is faulty too, its clients wait for that as well.
        if fault.target() == 20 && self.current.is_empty() {
            self.repaired = Some(Instant::now());
        }
    }

    /// Repairs everything.
    pub fn repair(&mut self) {
        while let Some(last) = self.current.iter().map(|current| current.end).max() {
            self.end_until(last);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Restarts one instance gracefully, and returns when it is ready again. `turn` runs meanwhile.
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

    /// What each instance has logged about its own state, for a failed run.
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
