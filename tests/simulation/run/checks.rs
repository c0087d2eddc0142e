//! The checks of a simulation run: after each turn, once all faults have stopped, and once all clients have left.

use super::*;

impl Run<'_> {
    pub(super) fn is_alive(&self, at: usize) -> bool {
        let conn = &self.conns[at];
        let is_closing = conn.received_close.is_some() || conn.sent_close.is_some() || conn.has_ended || conn.is_reset;
        conn.status == Some(101)
            && conn.dialect.is_some()
            && !is_closing
            && !conn.is_over
            && !conn.is_silent
            && conn.client.server_end() == End::Open
    }

    pub(super) fn check_outbox_bound(&mut self) {
        let mut model = self.model.borrow_mut();
        for at in &self.active {
            let conn = &self.conns[*at];
            // Skip a reset connection: bytes lost in the reset would count as bytes in the server's outbox.
            let is_checked = conn.is_polite && !conn.is_reset;
            let Some(token) = conn.token.filter(|token| is_checked && model.is_member(*token)) else { continue };
            model.check_queued_bytes(token, self.world.queued_bytes(token));
            if self.script.option("--deflate").is_none() {
                let incoming: usize = conn.incoming.iter().map(|(_, bytes)| bytes.len()).sum();
                model.check_outbox_bound(token, conn.client.in_flight() + incoming + conn.input.len());
            }
        }
    }

    pub(super) fn check_buffers(&mut self) {
        let max: usize = self.script.option("--max-buffered").and_then(|max| max.parse().ok()).unwrap_or(256 << 20);
        let buffered = self.world.buffered_bytes();
        if buffered > max {
            self.fail(BOUNDS, format!("{buffered} bytes are buffered"));
        }
    }

    /// Stops all faults. Then checks that all pending events arrive and that exactly the connected clients are
    /// members.
    pub(super) fn stop_faults_and_check(&mut self) {
        note!(self, "faults stop");
        self.is_calm = true;
        let backlog = self.world.backlog();
        backlog.is_out_of_descriptors.set(false);
        backlog.faults.take();
        (self.stderr_ready_at, self.stderr.lock().expect("no panic").space) = (self.world.now(), usize::MAX);
        for at in self.active.clone() {
            let conn = &self.conns[at];
            conn.client.0.borrow_mut().faults = None;
            if !conn.is_silent && !conn.client.is_reading() {
                conn.client.set_reading(true);
                self.receive(at);
            }
        }
        #[cfg(feature = "sqlite")]
        if let Some(DelayedEvents::Disk(disk)) = &self.late {
            disk.set_full(false);
        }
        self.release_at = self.world.now();
        let seconds = 8;
        self.run_until(self.world.now() + seconds * SECOND);
        if self.has_failed() || self.world.is_stopped {
            return;
        }
        for at in 0..self.conns.len() {
            let conn = &self.conns[at];
            if conn.is_from_earlier_run {
                continue;
            }
            let Some(token) = conn.token else {
                if self.world.backlog().len() > 0 && self.script.max_connections().is_some() {
                    continue;
                }
                return self.fail(LIVENESS, format!("{} is not accepted", self.name(at)));
            };
            let (alive, name) = (self.is_alive(at), self.name(at));
            let is_over = conn.is_over || conn.has_ended || conn.is_reset || conn.sent_close.is_some();
            if conn.is_polite && conn.status.is_none() && !conn.is_silent && !is_over {
                return self.fail(LIVENESS, format!("{name} waits for the response to its request"));
            }
            if conn.dialect.is_none() || conn.is_silent {
                continue;
            }
            let model = self.model.borrow();
            let Some(member) = model.members.get(&token) else { continue };
            let (is_there, pending, front) =
                (model.is_member(token), member.expected.len(), member.expected.front().cloned());
            let without_event = member.skipped + member.sent.len();
            drop(model);
            if is_there != alive && (is_there || conn.is_polite) {
                return self.fail(MEMBERS, format!("{name} is connected: {alive}, a member: {is_there}"));
            }
            if alive && conn.is_polite {
                if pending > 0 {
                    return self.fail(LIVENESS, format!("{name} waits for {pending} texts, the first is {front:?}"));
                }
                if without_event > conn.errors {
                    let text =
                        format!("{name} has {without_event} texts without an event, but only {} errors", conn.errors);
                    return self.fail(ORDER, text);
                }
                if !conn.nonces.is_empty() || !conn.ping_frames.is_empty() {
                    return self.fail(LIVENESS, format!("{name} waits for replies to {:?}", conn.nonces));
                }
                if conn.pings > 0 && self.script.option("--rate-limit") == Some("0") {
                    return self.fail(LIVENESS, format!("{name} waits for a pong"));
                }
            }
        }
        for token in self.model.borrow().all_members() {
            if !self.conn_by_token.contains_key(&token) {
                self.fail(MEMBERS, format!("{token:?} is a member without a connection"));
            }
        }
        self.check_log();
        #[cfg(feature = "sqlite")]
        self.check_file();
        self.count("a rest");
    }

    /// Checks that every log line is on stderr, complete and in order, or was counted as dropped during a stall.
    fn check_log(&mut self) {
        self.world.flush_log();
        let written = String::from_utf8_lossy(&self.stderr.lock().expect("no panic").written).into_owned();
        let (mut expected, mut dropped, mut count) = (self.logged.iter(), 0, 0);
        for line in written.lines() {
            if let Some(number) = line.strip_suffix(" log lines were dropped: stderr was full") {
                dropped += number.parse::<usize>().unwrap_or_default();
                continue;
            }
            // Skip the timestamp and the level.
            let message = line.get(31..).unwrap_or_default();
            count += 1;
            if !expected.any(|logged| logged == message) {
                return self.fail(LOG, format!("stderr has {line:?}, which was not logged, or is out of order"));
            }
        }
        let missing = self.logged.len() - count;
        if missing != dropped || missing > 0 && !self.has_stalled {
            return self.fail(LOG, format!("{missing} lines are missing, and {dropped} are counted as dropped"));
        }
        if dropped > 0 {
            self.count("log lines that were dropped");
        }
    }

    pub(super) fn inject_faults(&mut self) {
        self.is_calm = false;
        let random = Rng::with_seed(self.script.seed ^ 0xacce);
        *self.world.backlog().faults.borrow_mut() = Some((random, self.script.accept_fault_chance));
        for at in self.active.clone() {
            let faults = self.faults(self.conns[at].number);
            self.conns[at].client.0.borrow_mut().faults = Some(faults);
        }
    }

    pub(super) fn faults(&self, number: u64) -> Faults {
        let Script { short_io_chance, would_block_chance, interrupt_chance, spurious_edge_chance, seed, .. } =
            *self.script;
        Faults {
            random: Rng::with_seed(seed ^ number << 10),
            short_io_chance,
            would_block_chance,
            interrupt_chance,
            spurious_edge_chance,
        }
    }

    pub(super) fn disconnect_all(&mut self) {
        for at in self.active.clone() {
            if self.conns[at].client.is_open() && !self.conns[at].is_silent {
                match Rng::with_seed(self.script.seed ^ self.conns[at].number << 30).u8(..4) {
                    0 => self.close(at, 1000),
                    1 => self.queue(at, Output::End),
                    2 => self.reset(at),
                    _ => self.conns[at].is_silent = true,
                }
            }
        }
        let waits = [("--idle-timeout", 60), ("--close-timeout", 5), ("--handshake-timeout", 10)];
        let wait: Duration = waits.iter().map(|(name, default)| self.script.seconds(name, *default)).sum();
        self.run_until(self.world.now() + 2 * wait + 70 * SECOND);
        if self.has_failed() {
            return;
        }
        let (entries, bytes, next) =
            (self.world.entry_counts(), self.world.buffered_bytes(), self.world.next_turn_at());
        if entries != [0; 4] || bytes > 0 || next.is_some() {
            let text =
                format!("everyone has left, but {entries:?} entries and {bytes} bytes remain; next turn at {next:?}");
            return self.fail(BOUNDS, text);
        }
        self.fill_the_server();
    }

    /// Checks that the server no longer counts clients that have left: the server accepts as many new clients as its
    /// limits allow, and rejects one more. The rejected client lingers, but must not count: once another client has
    /// left, the server accepts a new one.
    pub(super) fn fill_the_server(&mut self) {
        let per_address =
            self.script.option("--max-per-address").and_then(|max| max.parse::<usize>().ok()).filter(|max| *max > 0);
        let places = self.script.max_connections().into_iter().chain(per_address).min().unwrap_or(1);
        let is_limited = self.script.max_connections().is_some() || per_address.is_some();
        let address: IpAddr = if self.script.is_public { [192, 0, 2, 1].into() } else { Ipv4Addr::LOCALHOST.into() };
        self.world.capacity = 64 * 1024;
        let mut clients: Vec<Client> = Vec::new();
        for number in 0..places + 2 * usize::from(is_limited) {
            if number > places {
                clients[0].reset();
                self.world.settle();
            }
            let client = self.world.connect_from(address);
            client.send(upgrade_request("/echo?token=dev-token").as_bytes());
            self.world.settle();
            let expected = if number == places && is_limited { "HTTP/1.1 503 " } else { "HTTP/1.1 101 " };
            let head = String::from_utf8_lossy(&client.read()).into_owned();
            if !head.starts_with(expected) {
                return self.fail(BOUNDS, format!("place {number} of {places}: {head:?}"));
            }
            clients.push(client);
        }
        clients.iter().filter(|client| client.is_open()).for_each(Client::reset);
        self.world.settle();
        self.world.flush_log();
        let (count, next) = (self.world.connection_count(), self.world.next_turn_at());
        if count > 0 || next != self.world.next_summary_at() {
            self.fail(BOUNDS, format!("all have left again, but {count} connections remain; next turn at {next:?}"));
        }
    }

    pub(super) fn shut_down(&mut self) {
        note!(self, "the server receives the signal to stop");
        self.is_stopping = true;
        let alive: Vec<usize> = self.active.iter().copied().filter(|at| self.is_alive(*at)).collect();
        match self.script.drain {
            Some(_) => self.world.drain(),
            None => self.world.shut_down(),
        }
        self.read_log();
        self.active.clone().into_iter().for_each(|at| self.receive(at));
        if !self.world.is_stopped {
            self.run_until(self.world.now() + self.script.drain.unwrap_or_default() + 3 * SECOND);
        }
        for at in self.active.clone() {
            self.conns[at].incoming.iter_mut().for_each(|(at, _)| *at = Duration::ZERO);
            self.receive(at);
        }
        if self.has_failed() {
            return;
        }
        if !self.world.is_stopped {
            return self.fail(LIVENESS, "the server does not stop");
        }
        for at in alive {
            let code = self.conns[at].received_close.as_ref().map(|(code, _)| *code);
            if code != Some(1001) {
                let text = format!("{} receives {code:?} at the stop", self.name(at));
                return self.fail(FRAMES, text);
            }
        }
        self.count(if self.script.drain.is_some() { "a drain" } else { "a stop of the server" });
    }
}
