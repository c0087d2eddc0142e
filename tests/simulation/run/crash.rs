//! Simulated faults for a server with a history file: a full disk, a failing disk, and a crash with a restart.

use super::*;
use crate::durable;
use wirechat::broker::sqlite::LogLimits;

impl Run<'_> {
    pub(super) fn start_on(
        disk: &DiskControl,
        script: &Script,
        args: &[String],
        model: &Rc<RefCell<Model>>,
        at: Duration,
    ) -> World {
        let rules = script.rules();
        let bytes = script.option("--max-history").and_then(|max| max.parse().ok()).unwrap_or(16 << 20);
        let keep = script.history_keep.filter(|keep| *keep > 0).unwrap_or(usize::MAX);
        let limits = LogLimits { messages: rules.history.min(keep), backlog: rules.max_outbox, bytes };
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--history", "0", "--max-empty-rooms", "0"]);
        let mut world = World::with_broker(&args, script.seed, script.is_observed, |inner| {
            let broker = durable::broker(disk, inner, limits, model);
            Box::new(Events { broker, model: Rc::clone(model) })
        });
        world.trace = trace::writer(String::new());
        world.jump(at);
        world
    }

    pub(super) fn inject_disk_fault(&mut self, disk: &DiskControl, action: Action, random: &mut Rng) {
        match (action, random.u8(..4)) {
            (Action::FailPublish, 0 | 1) => {
                note!(self, "the disk is full");
                self.count("a full disk");
                disk.set_full(true);
            }
            (Action::RejectJoin, 0) => {
                note!(self, "the disk fails");
                self.count("a disk that fails");
                disk.fail();
            }
            _ => {
                // Send some messages first, so that a write is probably pending when the server crashes.
                for actor in 0..self.script.actors.len().min(random.usize(..8)) {
                    self.send_new(actor, 12, random);
                }
                self.run_until(self.world.now() + self.script.latency);
                note!(self, "the server dies");
                self.count("a crash");
                if random.bool() && disk.execute() {
                    self.count("a crash between a commit and its events");
                }
                self.restart();
            }
        }
    }

    /// Replaces the server with a new one on the same history file, as after a crash.
    pub(super) fn restart(&mut self) {
        let Some(DelayedEvents::Disk(disk)) = self.late.clone() else { return };
        for conn in self.conns.iter_mut().filter(|conn| !conn.is_from_earlier_run) {
            conn.client.reset();
            conn.outgoing.clear();
            conn.incoming.clear();
            (conn.is_over, conn.is_reset, conn.is_from_earlier_run) = (true, true, true);
        }
        self.active.clear();
        self.current.fill(None);
        self.conn_by_token.clear();
        disk.crash();
        disk.set_full(false);
        self.model.borrow_mut().crash(disk.messages());
        self.world = Run::start_on(&disk, self.script, &self.args, &self.model, self.world.now());
        let _ = take_log_lines();
        self.inject_faults();
    }

    /// Checks that the history file contains exactly the messages that the broker has published. Valid only while no
    /// message is pending.
    pub(super) fn check_file(&mut self) {
        let Some(DelayedEvents::Disk(disk)) = &self.late else { return };
        let file = disk.messages();
        let mut model = self.model.borrow_mut();
        model.check_file(&file);
        let known = model.message_count();
        let stored: usize = file.values().map(|(last_id, _)| *last_id as usize).sum();
        if stored != known {
            model.fail(ACKNOWLEDGEMENT, format!("{stored} messages are stored, but {known} were published"));
        }
    }
}
