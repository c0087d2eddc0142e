//! Executes the actions of a script: client actions such as `Send` and `Reset`, and faults such as `StallStderr`.

use super::*;

impl Run<'_> {
    pub(super) fn queue(&mut self, at: usize, out: Output) {
        let delay = self.delay(at, self.conns[at].last_send_at);
        let conn = &mut self.conns[at];
        let time = conn.last_send_at.max(self.world.now() + delay);
        conn.last_send_at = time;
        conn.outgoing.push_back((time, out));
        if !self.active.contains(&at) {
            self.active.push(at);
        }
    }

    /// Returns the network delay of the next bytes. Depends on the seed, the connection and `last`, the time of the
    /// previous bytes, but not on other connections. While faults are stopped, the delay is a tenth.
    pub(super) fn delay(&self, at: usize, last: Duration) -> Duration {
        let number = last.as_nanos() as u64 ^ self.conns[at].number << 20;
        let delay = self.script.latency.mul_f64(Rng::with_seed(number ^ self.script.seed).f64());
        if self.is_calm { delay / 10 } else { delay }
    }

    pub(super) fn queue_bytes(&mut self, at: usize, bytes: Vec<u8>) {
        self.queue(at, Output::Bytes(bytes));
    }

    /// Queues bytes, sometimes split at random into several pieces.
    pub(super) fn queue_in_pieces(&mut self, at: usize, mut bytes: Vec<u8>, random: &mut Rng) {
        while bytes.len() > 1 && random.u8(..4) == 0 {
            let rest = bytes.split_off(random.usize(1..bytes.len()));
            self.queue_bytes(at, std::mem::replace(&mut bytes, rest));
        }
        self.queue_bytes(at, bytes);
    }

    pub(super) fn close(&mut self, at: usize, code: u16) {
        if self.conns[at].sent_close.is_none() && self.conns[at].client.is_open() {
            self.conns[at].sent_close = Some(code);
            self.queue_bytes(at, masked(0x88, &code.to_be_bytes()));
        }
    }

    pub(super) fn reset(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        if !conn.is_over && conn.client.server_end() == End::Open {
            conn.client.reset();
            conn.is_reset = true;
            conn.outgoing.clear();
            conn.incoming.clear();
        }
    }

    pub(super) fn connect(
        &mut self,
        actor: usize,
        request: Vec<u8>,
        dialect: Option<Dialect>,
        random: &mut Rng,
    ) -> usize {
        let Actor { capacity, address, is_rude, .. } = self.script.actors[actor];
        self.world.capacity = capacity;
        let address: IpAddr = if address == 0 { Ipv4Addr::LOCALHOST.into() } else { [192, 0, 2, address].into() };
        let client = self.world.connect_from(address);
        let number = (actor as u64) << 20 | self.conns.iter().filter(|conn| conn.actor == actor).count() as u64;
        client.0.borrow_mut().faults = (!self.is_calm).then(|| self.faults(number));
        let at = self.conns.len();
        self.conns.push(Conn {
            client,
            actor,
            number,
            dialect,
            is_polite: !is_rude,
            token: None,
            input: Vec::new(),
            status: None,
            outgoing: VecDeque::new(),
            last_send_at: Duration::ZERO,
            incoming: VecDeque::new(),
            hash: FNV_OFFSET,
            frames: Vec::new(),
            received_close: None,
            sent_close: None,
            has_ended: false,
            is_reset: false,
            is_silent: false,
            may_lose_events: false,
            nonces: Vec::new(),
            errors: 0,
            long_texts: 0,
            allowed_errors: 0,
            pings: 0,
            ping_frames: VecDeque::new(),
            sent: VecDeque::new(),
            is_over: false,
            is_from_earlier_run: false,
            since: None,
            inflater: None,
        });
        self.active.push(at);
        self.current[actor] = Some(at);
        self.queue_in_pieces(at, request, random);
        at
    }

    pub(super) fn join(&mut self, actor: usize, resumes: bool, random: &mut Rng) {
        let Actor { name, dialect, client_id, .. } = &self.script.actors[actor];
        let known = &self.actor_states[actor];
        let room = if resumes && !known.room.is_empty() {
            known.room.clone()
        } else {
            ROOMS[random.usize(..ROOMS.len())].to_owned()
        };
        let mut path = match dialect {
            Dialect::Events => users::events_path(name, &room),
            Dialect::Rooms => users::rooms_path(&room),
            Dialect::Presence => users::presence_path(name, client_id, &room),
        };
        let mut asked = None;
        let resends = resumes && *dialect == Dialect::Events;
        if resends && !known.epoch.is_empty() {
            let since = if random.u8(..8) == 0 { random.u64(..=known.last_id + 2) } else { known.last_id };
            if since > known.last_id {
                self.count("a resume from the future");
            }
            path += &format!("&epoch={}&since={since}&session={}", known.epoch, known.session);
            asked = Some(since);
        }
        note!(self, "{name} connects to {path}");
        let texts = messages_to_resend(&self.actor_states[actor], &room, resends);
        let number = self.conns.iter().filter(|conn| conn.actor == actor).count() + actor;
        let request = self.offer_compression(upgrade_request(&path), number);
        let at = self.connect(actor, request.into_bytes(), Some(*dialect), random);
        self.conns[at].since = asked;
        for (nonce, text) in texts {
            self.send_message(at, &text, Some(nonce), random);
        }
    }

    /// If the server runs with `--deflate`, adds an offer of permessage-deflate to three out of four requests.
    fn offer_compression(&self, request: String, number: usize) -> String {
        let offer = match number % 4 {
            _ if self.script.option("--deflate").is_none() => return request,
            0 => return request,
            1 => "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
            _ => "permessage-deflate; client_max_window_bits",
        };
        let head = request.strip_suffix("\r\n").unwrap_or(&request);
        format!("{head}Sec-WebSocket-Extensions: {offer}\r\n\r\n")
    }

    /// Returns the current connection of `actor`, a simulated client, if the client can still send on it.
    pub(super) fn find_open_conn(&self, actor: usize) -> Option<usize> {
        let at = self.current[actor]?;
        let conn = &self.conns[at];
        let is_open =
            conn.client.is_open() && !conn.has_ended && conn.sent_close.is_none() && !conn.is_silent && !conn.is_over;
        let is_ending = conn.outgoing.iter().any(|(_, out)| matches!(out, Output::End));
        (is_open && !is_ending && conn.status.is_none_or(|status| status == 101)).then_some(at)
    }

    pub(super) fn send_text(&mut self, at: usize, text: &str, random: &mut Rng) {
        let bytes = if text.len() > 2 && random.u8(..12) == 0 {
            let (start, end) = text.as_bytes().split_at(text.len() / 2);
            [masked(0x01, start), masked(0x80, end)].concat()
        } else {
            masked(0x81, text.as_bytes())
        };
        self.queue_in_pieces(at, bytes, random);
    }

    pub(super) fn expect_submit(&mut self, at: usize, text: &str) {
        match self.conns[at].token {
            Some(token) => {
                if let Some(member) = self.model.borrow_mut().members.get_mut(&token) {
                    member.sent.push_back(text.into());
                }
            }
            None => self.conns[at].sent.push_back(text.into()),
        }
    }

    pub(super) fn send_message(&mut self, at: usize, text: &str, nonce: Option<String>, random: &mut Rng) {
        let actor = self.conns[at].actor;
        let name = self.script.actors[actor].name.clone();
        let Some(dialect) = self.conns[at].dialect else { return };
        self.expect_submit(at, text);
        self.conns[at].long_texts += usize::from(text.chars().count() > self.script.rules().max_text);
        let nonce = nonce.filter(|_| dialect == Dialect::Events);
        let spaced = if random.u8(..10) == 0 { format!("  {text}\n") } else { text.to_owned() };
        let json = match (dialect, &nonce) {
            (Dialect::Events, Some(nonce)) => {
                json!({"event": "message", "data": {"text": spaced, "nonce": nonce}}).to_string()
            }
            (Dialect::Events, None) => json!({"event": "message", "data": {"text": spaced}}).to_string(),
            (Dialect::Rooms, _) => json!({"username": name, "text": spaced}).to_string(),
            (Dialect::Presence, _) => spaced,
        };
        match nonce {
            Some(nonce) => {
                self.conns[at].nonces.push(nonce.clone());
                let unacknowledged = &mut self.actor_states[actor].unacknowledged;
                if !unacknowledged.iter().any(|(sent, _)| *sent == nonce) {
                    unacknowledged.push((nonce, text.to_owned()));
                }
            }
            None => self.conns[at].allowed_errors += 1,
        }
        self.send_text(at, &json, random);
    }

    pub(super) fn new_text(&mut self, actor: usize, len: usize, random: &mut Rng) -> String {
        self.actor_states[actor].texts += 1;
        let mut text = format!("m{actor}.{}", self.actor_states[actor].texts);
        let filler = [" x", "é", "\\", "\"", "z", "😀"][random.usize(..6)];
        let rest = len.saturating_sub(text.chars().count() + 1);
        if rest > 0 {
            text.push(' ');
        }
        // A repeated filler compresses to almost nothing, so it could never fill an outbox of compressed messages.
        let mut letters = random.clone();
        if self.script.option("--deflate").is_some() && letters.bool() {
            text.extend((0..rest).map(|_| letters.alphanumeric()));
        } else {
            text.push_str(&filler.repeat(rest / filler.chars().count()));
        }
        text.trim_end().to_owned()
    }

    pub(super) fn send_new(&mut self, actor: usize, len: usize, random: &mut Rng) {
        let Some(at) = self.find_open_conn(actor) else { return };
        let text = self.new_text(actor, len, random);
        let nonce = (random.u8(..3) > 0).then(|| format!("n{}", self.actor_states[actor].texts));
        self.send_message(at, &text, nonce, random);
    }

    pub(super) fn command(&mut self, actor: usize, event: &str, data: Value, random: &mut Rng) {
        let Some(at) = self.find_open_conn(actor) else { return };
        if self.conns[at].dialect == Some(Dialect::Events) {
            self.conns[at].allowed_errors += 1;
            self.send_text(at, &json!({"event": event, "data": data}).to_string(), random);
        }
    }

    pub(super) fn act(&mut self, timed: &TimedAction) {
        let TimedAction { actor, action, seed, .. } = *timed;
        let random = &mut Rng::with_seed(seed);
        let max_text = self.script.rules().max_text;
        let open = self.find_open_conn(actor);
        match action {
            Action::Connect if open.is_none() || random.u8(..3) == 0 => self.join(actor, false, random),
            Action::Connect => {}
            Action::Resume => self.join(actor, true, random),
            Action::Send => self.send_new(actor, 12, random),
            Action::SendLong => {
                let len = if random.u8(..4) == 0 { max_text + 3 } else { max_text };
                self.send_new(actor, len, random);
            }
            Action::Resend => {
                let Some(at) = open else { return };
                let known = &self.actor_states[actor];
                if let Some((nonce, text)) = random.choice(known.unacknowledged.clone()) {
                    self.send_message(at, &text, Some(nonce), random);
                } else if known.texts > 0 {
                    let number = known.texts;
                    let text = format!("m{actor}.{number} again");
                    self.send_message(at, &text, Some(format!("n{number}")), random);
                }
            }
            Action::Burst if open.is_some_and(|at| self.conns[at].may_lose_events) && random.bool() => {
                let Some(at) = open else { return };
                for number in 0..random.u8(20..100) {
                    self.conns[at].ping_frames.push_back(vec![number; 100]);
                    self.queue_bytes(at, masked(0x89, &[number; 100]));
                }
            }
            Action::Burst => {
                for _ in 0..random.usize(5..60) {
                    self.send_new(actor, random.usize(10..200).min(max_text), random);
                }
            }
            Action::Private => {
                let Some(at) = open else { return };
                let to = match random.u8(..6) {
                    0 => "nobody".to_owned(),
                    _ => self.script.actors[random.usize(..self.script.actors.len())].name.to_uppercase(),
                };
                let text = self.new_text(actor, 15, random);
                let name = &self.script.actors[actor].name;
                let words = format!("/msg {to} {text}");
                self.expect_submit(at, &text);
                let (json, nonce) = match self.conns[at].dialect {
                    Some(Dialect::Events) => {
                        let nonce = format!("n{}", self.actor_states[actor].texts);
                        (
                            json!({"event": "private", "data": {"to": to, "text": text, "nonce": nonce}}).to_string(),
                            Some(nonce),
                        )
                    }
                    Some(Dialect::Rooms) => (json!({"username": name, "text": words}).to_string(), None),
                    _ => (words, None),
                };
                match nonce {
                    Some(nonce) => self.conns[at].nonces.push(nonce),
                    None => self.conns[at].allowed_errors += 1,
                }
                self.send_text(at, &json, random);
            }
            Action::Switch => {
                let room = ROOMS[random.usize(..ROOMS.len())];
                self.command(actor, "switch_room", json!({"room": room}), random);
            }
            Action::Typing => {
                let Some(at) = open else { return };
                if self.conns[at].dialect == Some(Dialect::Rooms) {
                    let name = self.script.actors[actor].name.clone();
                    self.conns[at].allowed_errors += 1;
                    self.send_text(at, &json!({"type": "typing", "username": name}).to_string(), random);
                }
                self.command(actor, "typing", json!({}), random);
            }
            Action::Ping => {
                if let Some(at) = open.filter(|at| self.conns[*at].dialect == Some(Dialect::Events)) {
                    self.conns[at].pings += 1;
                    self.command(actor, "ping", json!({}), random);
                }
            }
            Action::PingFrame => {
                let Some(at) = open else { return };
                let payload = random.u64(..).to_le_bytes()[..random.usize(..9)].to_vec();
                self.conns[at].ping_frames.push_back(payload.clone());
                self.queue_bytes(at, masked(0x89, &payload));
            }
            Action::History => {
                let before = random.u64(..=self.actor_states[actor].last_id + 3);
                let limit = random.u64(1..=100);
                self.command(actor, "history", json!({"before": before, "limit": limit}), random);
            }
            Action::StopReading => {
                if let Some(at) = open {
                    self.conns[at].client.set_reading(false);
                    self.conns[at].may_lose_events = true;
                    note!(self, "{} stops reading", self.name(at));
                }
            }
            Action::ReadSome => {
                if let Some(at) = open {
                    self.conns[at].client.read_some(random.usize(1..3000));
                    self.receive(at);
                }
            }
            Action::ReadAll => {
                if let Some(at) = open {
                    note!(self, "{} reads", self.name(at));
                    self.conns[at].client.set_reading(true);
                    self.receive(at);
                }
            }
            Action::Close => {
                let code = [1000, 1000, 1001, 3000, 4999][random.usize(..5)];
                if let Some(at) = open {
                    self.close(at, code);
                }
            }
            Action::HalfClose => {
                if let Some(at) = open {
                    note!(self, "{} ends its stream", self.name(at));
                    self.queue(at, Output::End);
                }
            }
            Action::Reset => {
                if let Some(at) = self.current[actor] {
                    note!(self, "{} resets", self.name(at));
                    self.reset(at);
                }
            }
            Action::FallSilent => {
                if let Some(at) = open {
                    note!(self, "{} falls silent", self.name(at));
                    self.conns[at].is_silent = true;
                    self.conns[at].client.set_reading(random.bool());
                    self.conns[at].outgoing.clear();
                }
            }
            Action::BreakHead | Action::BreakRule => self.run_poke_case(actor, action, random),
            Action::PauseAccept => {
                note!(self, "no descriptor is left for a while");
                self.world.backlog().is_out_of_descriptors.set(true);
                self.accepts_at = self.world.now() + Duration::from_millis(random.u64(1..8000));
            }
            Action::StallStderr if !self.script.logs_to_stderr => {}
            Action::StallStderr => {
                note!(self, "stderr stalls");
                self.count("a stalled stderr");
                self.has_stalled = true;
                self.stderr.lock().expect("no panic").space = random.usize(..300);
                self.stderr_ready_at = self.world.now() + Duration::from_millis(random.u64(1..600_000));
            }
            Action::JumpClock => {
                note!(self, "the clock jumps");
                self.has_jumped = true;
                self.count("a jump of the clock");
                for at in &self.active {
                    // After a clock jump, the idle timeout may expire before a Ping or its Pong arrives.
                    let conn = &mut self.conns[*at];
                    conn.may_lose_events |= !conn.outgoing.is_empty() || !conn.incoming.is_empty();
                }
                self.world.jump(Duration::from_millis(random.u64(1..100_000)));
            }
            Action::FailPublish | Action::RejectJoin => match self.late.clone() {
                Some(DelayedEvents::Broker(control)) if action == Action::FailPublish => control.fail_next_publish(),
                Some(DelayedEvents::Broker(control)) => {
                    let error = if random.bool() { BrokerError::NameInUse } else { BrokerError::TooManyRooms };
                    control.reject_next_join(error);
                }
                #[cfg(feature = "sqlite")]
                Some(DelayedEvents::Disk(disk)) => self.inject_disk_fault(&disk, action, random),
                None => {}
            },
            Action::StopFaults => {
                self.stop_faults_and_check();
                self.inject_faults();
            }
        }
    }

    /// Runs a random test case of `wirechat poke` on a new connection. `BreakHead` sends a request with the
    /// edits of the case. `BreakRule` sends a valid request, and then the frames of the case.
    pub(super) fn run_poke_case(&mut self, actor: usize, action: Action, random: &mut Rng) {
        let cases: Vec<_> = catalogue::all_cases().collect();
        let case = cases[random.usize(..cases.len())];
        let chat = self.script.shares_room || random.bool();
        let target = if chat {
            let has_own_room = self.script.is_independent && !self.script.shares_room;
            let room = if has_own_room { RUDE_USERNAME } else { ROOMS[0] };
            format!("/?token=dev-token&username={RUDE_USERNAME}&room={}", encode(room))
        } else {
            "/echo?token=dev-token".to_owned()
        };
        let Ok(url) = Url::parse(&format!("ws://127.0.0.1:3000{target}")) else { return };
        // `BreakRule` usually sends a request without the case's edits. But a compression case needs a request that
        // offers permessage-deflate, and its edits add the offer, so apply its edits for `BreakRule` too.
        let edits = match (case.opening, action) {
            (Opening::Edited(_), Action::BreakHead) | (Opening::Deflate(_) | Opening::Takeover(_), _) => {
                case.opening.edits()
            }
            _ => &[],
        };
        let mut request = request::build_request(&url, KEY, edits);
        if action == Action::BreakHead && random.u8(..5) == 0 {
            request.truncate(random.usize(1..request.len())); // the client never completes the request
        }
        let mut keys = random.clone();
        let bytes = case.bytes(&mut || keys.u32(..).to_le_bytes()).unwrap_or_default();
        note!(self, "{} runs the test case {}", self.script.actors[actor].name, case.name);
        let dialect = chat.then_some(Dialect::Events);
        let at = self.connect(actor, request, dialect, random);
        if bytes.len() <= 70_000 && action == Action::BreakRule {
            self.queue_in_pieces(at, bytes, random);
        }
        if random.u8(..3) == 0 {
            self.queue(at, Output::End);
        }
    }
}

/// The nonces and texts of the unacknowledged messages that a client resends when it rejoins the room.
fn messages_to_resend(known: &ActorState, room: &str, resends: bool) -> Vec<(String, String)> {
    if resends && known.room == room { known.unacknowledged.clone() } else { Vec::new() }
}
