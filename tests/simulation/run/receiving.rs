//! Checks everything that the clients receive (response heads, frames and events) against the model.

use super::*;

pub(super) struct Frame {
    first: u8,
    payload: Vec<u8>,
    pub(super) len: usize,
}

/// Parses the first frame of `bytes`. Returns `None` if the frame is incomplete, and an error if a server must not send
/// such a frame.
pub(super) fn parse_frame(bytes: &[u8], deflates: bool) -> Result<Option<Frame>, String> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    let (len, head, min) = match second {
        126 if bytes.len() >= 4 => (u64::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4, 126),
        127 if bytes.len() >= 10 => {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[2..10]);
            (u64::from_be_bytes(long), 10, 65536)
        }
        126 | 127 => return Ok(None),
        short => (u64::from(short), 2, 0),
    };
    let is_known = matches!(first, 0x81 | 0x82 | 0x88 | 0x89 | 0x8a) || deflates && matches!(first, 0xc1 | 0xc2);
    if second & 0x80 != 0 || !is_known || len < min || len > 20 << 20 {
        return Err(format!("a frame that starts with {first:#04x} {second:#04x} and has {len} bytes"));
    }
    if first & 0x0f >= 8 && len > 125 {
        return Err("a control frame of more than 125 bytes".to_owned());
    }
    let len = head + len as usize;
    Ok((bytes.len() >= len).then(|| Frame { first, payload: bytes[head..len].to_vec(), len }))
}

/// Removes from an event everything that depends on whether the rude client takes part: its name, its share of the
/// member count, and the epoch and session, which are random and change because the server draws random bytes for the
/// rude client. Returns `None` for the rude client's own join and leave events.
fn strip_rude_clients(text: &str) -> Option<String> {
    let Ok(mut json) = serde_json::from_str::<Value>(text) else { return Some(text.to_owned()) };
    let is_rude = |name: &Value| name == RUDE_USERNAME;
    let is_move = ["joined", "left"].iter().any(|kind| json["event"] == *kind)
        || ["user_joined", "user_left"].iter().any(|kind| json["type"] == *kind);
    if is_move && (is_rude(&json["data"]["username"]) || is_rude(&json["username"])) {
        return None;
    }
    if let Some(Value::Array(users)) = json.get_mut("active_users") {
        users.retain(|name| !is_rude(name));
    }
    if let Some(Value::Object(data)) = json.get_mut("data") {
        let mut removed = 0;
        if let Some(Value::Array(members)) = data.get_mut("members") {
            removed = members.len();
            members.retain(|name| !is_rude(name));
            removed -= members.len();
        }
        if let Some(count) = data.get_mut("member_count") {
            *count = json!(count.as_u64().unwrap_or_default() - removed as u64);
        }
        data.retain(|name, _| !matches!(&**name, "epoch" | "session"));
    }
    Some(json.to_string())
}

impl Run<'_> {
    pub(super) fn receive(&mut self, at: usize) {
        let now = self.world.now();
        let bytes = self.conns[at].client.read();
        if !bytes.is_empty() {
            let last = self.conns[at].incoming.back().map_or(now, |(last, _)| *last);
            // The delay towards a client is constant. If it depended on the previous bytes, as in `queue`, an event
            // about the rude client could change the delay of the next event.
            let arrives_at = last.max(now + self.delay(at, Duration::ZERO));
            self.conns[at].incoming.push_back((arrives_at, bytes));
            if arrives_at > now {
                self.count("bytes that arrive late");
            }
        }
        let conn = &mut self.conns[at];
        let mut has_arrived = false;
        while let Some((_, bytes)) = conn.incoming.pop_front_if(|(at, _)| *at <= now) {
            conn.hash = fnv1a(conn.hash, &bytes);
            conn.input.extend(bytes);
            has_arrived = true;
        }
        if has_arrived {
            self.read_input(at);
        }
        let conn = &self.conns[at];
        let end = conn.client.server_end();
        if conn.is_reset || end != End::Open && conn.incoming.is_empty() {
            self.handle_end(at, end);
        }
    }

    pub(super) fn read_input(&mut self, at: usize) {
        let mut input = std::mem::take(&mut self.conns[at].input);
        let mut start = 0;
        if self.conns[at].status.is_none() {
            let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                self.conns[at].input = input;
                return;
            };
            let head = String::from_utf8_lossy(&input[..end]).into_owned();
            self.read_head(at, &head);
            start = end + 4;
        }
        if self.conns[at].status == Some(101) {
            loop {
                match parse_frame(&input[start..], self.conns[at].inflater.is_some()) {
                    Ok(Some(mut frame)) => {
                        start += frame.len;
                        if matches!(frame.first, 0xc1 | 0xc2) {
                            self.inflate(at, &mut frame);
                        }
                        self.read_frame(at, &frame);
                    }
                    Ok(None) => break,
                    Err(what) => {
                        let name = self.name(at);
                        return self.fail(FRAMES, format!("{name} receives {what}"));
                    }
                }
            }
            self.conns[at].input = input.split_off(start);
        }
    }

    /// Inflates a message with the client's inflater. The inflater must consume all bytes.
    fn inflate(&mut self, at: usize, frame: &mut Frame) {
        let Some(Inflater { stream, takes_over }) = &mut self.conns[at].inflater else { return };
        if !*takes_over {
            stream.reset(false);
        }
        let (input, before) = ([&frame.payload[..], &[0, 0, 0xff, 0xff]].concat(), stream.total_in());
        let mut text = Vec::with_capacity(1 << 20);
        let result = stream.decompress_vec(&input, &mut text, FlushDecompress::Sync);
        let is_whole = stream.total_in() - before == input.len() as u64;
        (frame.first, frame.payload) = (frame.first & !0x40, text);
        let counted = if *takes_over { "a message with a shared context" } else { "a message compressed alone" };
        self.count(counted);
        if result.is_err() || !is_whole {
            let text = format!("{} cannot inflate a message: {result:?}", self.name(at));
            self.fail(FRAMES, text);
        }
    }

    pub(super) fn name(&self, at: usize) -> String {
        let conn = &self.conns[at];
        format!("{} (connection {})", self.script.actors[conn.actor].name, conn.token.map_or(0, |token| token.0))
    }

    pub(super) fn read_head(&mut self, at: usize, head: &str) {
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let Some(status) = status else { return self.fail(FRAMES, format!("no HTTP response: {head:?}")) };
        let script = self.script;
        let has_jumped = self.has_jumped;
        let conn = &mut self.conns[at];
        conn.status = Some(status);
        let is_right = match status {
            101 => true,
            503 => script.has_limits(),
            429 => script.is_public,
            408 => has_jumped || conn.is_silent,
            403 => script.is_public,
            _ => false,
        };
        if conn.is_polite && !is_right {
            let text = format!("{} is rejected with {status}", self.name(at));
            self.fail(MEMBERS, text);
        }
        if status == 101 && head.contains("permessage-deflate") {
            let takes_over = !head.contains("server_no_context_takeover");
            self.conns[at].inflater = Some(Inflater { stream: Decompress::new(false), takes_over });
        }
        if status == 101 && self.conns[at].is_polite && !head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
            self.fail(FRAMES, "a wrong accept value");
        }
    }

    pub(super) fn read_frame(&mut self, at: usize, frame: &Frame) {
        if self.script.is_independent {
            let text = strip_rude_clients(&String::from_utf8_lossy(&frame.payload));
            self.conns[at].frames.extend(text.map(|text| format!("{:#04x} {text}", frame.first)));
        }
        if let Some(close) = &self.conns[at].received_close {
            let payload = String::from_utf8_lossy(&frame.payload);
            let text = format!("{} receives {payload:?} after the Close {close:?}", self.name(at));
            return self.fail(FRAMES, text);
        }
        if frame.first == 0x82 && self.conns[at].dialect.is_some() {
            return self.fail(FRAMES, "an event of the chat in a binary frame");
        }
        match frame.first {
            0x89 => {
                if !self.conns[at].is_silent {
                    self.queue_bytes(at, masked(0x8a, &frame.payload));
                }
            }
            0x8a => {
                let conn = &mut self.conns[at];
                let expected = conn.ping_frames.pop_front();
                if conn.is_polite && expected.as_ref() != Some(&frame.payload) {
                    let text = format!("{} receives a Pong that it did not ask for", self.name(at));
                    self.fail(ORDER, text);
                }
            }
            0x88 => self.read_close(at, &frame.payload),
            _ => {
                let Ok(text) = std::str::from_utf8(&frame.payload) else {
                    if frame.first == 0x82 && !self.conns[at].is_polite {
                        return;
                    }
                    return self.fail(FRAMES, "a text that is not UTF-8");
                };
                if self.conns[at].dialect.is_some() {
                    self.read_text(at, text);
                }
            }
        }
    }

    pub(super) fn read_text(&mut self, at: usize, text: &str) {
        let Some(token) = self.conns[at].token else { return };
        let expected = self.model.borrow_mut().receive(token, text);
        let (actor, dialect) = (self.conns[at].actor, self.conns[at].dialect);
        let Some(expected) = expected else { return self.read_reply(at, text) };
        if let Some(nonce) = &expected.in_reply_to {
            self.settle_nonce(at, nonce);
        }
        if let Some(id) = expected.id {
            self.messages += 1;
            if self.current[actor] == Some(at) {
                self.actor_states[actor].last_id = id;
            }
        }
        if dialect == Some(Dialect::Events)
            && (text.starts_with(r#"{"event":"welcome""#) || text.starts_with(r#"{"event":"switched""#))
        {
            let Ok(json) = serde_json::from_str::<Value>(text) else { return self.fail(FRAMES, "no JSON") };
            let data = &json["data"];
            let since = self.conns[at].since;
            let known = &mut self.actor_states[actor];
            let is_resumed = data["resumed"] == true;
            known.room = data["room"].as_str().unwrap_or_default().to_owned();
            known.epoch = data["epoch"].as_str().unwrap_or_default().to_owned();
            let last_id = data["last_id"].as_u64().unwrap_or_default();
            let ids: Vec<u64> =
                data["history"].as_array().into_iter().flatten().filter_map(|message| message["id"].as_u64()).collect();
            // If the client has resumed, the history must begin right after the last message that the client already
            // had.
            let next = ids.first().copied().unwrap_or(last_id + 1);
            let has_gap = is_resumed && Some(next) != since.map(|since| since + 1);
            known.last_id = last_id;
            if let Some(session) = data["session"].as_str() {
                known.session = session.to_owned();
            }
            if has_gap {
                self.fail(crate::model::RESUME, "a resume with a gap");
            }
        }
    }

    pub(super) fn settle_nonce(&mut self, at: usize, nonce: &str) {
        let conn = &mut self.conns[at];
        let actor = conn.actor;
        if let Some(found) = conn.nonces.iter().position(|sent| sent == nonce) {
            conn.nonces.remove(found);
        } else if conn.is_polite {
            return self.fail(ACKNOWLEDGEMENT, format!("an unexpected or repeated reply to {nonce}"));
        }
        self.actor_states[actor].unacknowledged.retain(|(sent, _)| sent != nonce);
    }

    /// Checks a text message other than the event that the model expects next. It must be a `pong` event, or an error
    /// in reply to one of this client's commands. Any other message fails the run.
    pub(super) fn read_reply(&mut self, at: usize, text: &str) {
        let (token, dialect) = (self.conns[at].token, self.conns[at].dialect);
        let json: Value = serde_json::from_str(text).unwrap_or_default();
        let next = token.and_then(|token| {
            self.model
                .borrow()
                .members
                .get(&token)
                .and_then(|member| member.expected.front().map(|next| next.text.to_string()))
        });
        let wrong = format!("{} receives {text:?}, but next is {next:?}", self.name(at));
        if json["event"] == "pong" {
            let Some(left) = self.conns[at].pings.checked_sub(1) else { return self.fail(ORDER, wrong) };
            self.conns[at].pings = left;
            return;
        }
        let message = match dialect {
            Some(Dialect::Events) if json["event"] == "error" => &json["data"]["message"],
            Some(Dialect::Rooms) if json["type"] == "error" => &json["message"],
            Some(Dialect::Presence) if json["error"].is_string() => &json["error"],
            _ => return self.fail(ORDER, wrong),
        };
        let message = message.as_str().unwrap_or_default().to_owned();
        if !self.conns[at].is_polite {
            return;
        }
        let rules = self.script.rules();
        let conn = &mut self.conns[at];
        conn.errors += 1;
        let is_right = match &*message {
            "Slow down" => rules.rate_limit > 0.0,
            "Message too long" => conn.long_texts > 0,
            _ => false,
        };
        if !is_right {
            return self.fail(ORDER, wrong);
        }
        if message == "Slow down" {
            self.count("a message over the rate");
        } else {
            self.conns[at].long_texts -= 1;
        }
        match json["data"]["nonce"].as_str() {
            Some(nonce) => {
                let nonce = nonce.to_owned();
                let actor = self.conns[at].actor;
                let kept = self.actor_states[actor].unacknowledged.clone();
                self.settle_nonce(at, &nonce);
                if message == "Slow down" {
                    self.actor_states[actor].unacknowledged = kept;
                }
            }
            // An error without a nonce is the reply to a command without a nonce.
            None if self.conns[at].allowed_errors > 0 => self.conns[at].allowed_errors -= 1,
            None => self.fail(ORDER, wrong),
        }
    }

    pub(super) fn read_close(&mut self, at: usize, payload: &[u8]) {
        let close = match payload {
            [] => (1005, String::new()),
            [high, low, reason @ ..] => {
                (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
            }
            [_] => return self.fail(FRAMES, "a Close with one byte"),
        };
        let conn = &self.conns[at];
        let script = self.script;
        let is_right = match close.0 {
            code if conn.sent_close == Some(code) && close.1.is_empty() => true,
            1001 => self.is_stopping,
            1011 => script.history_keep.is_some() && close.1 == "storage failed",
            1008 => match close.1.as_str() {
                "username already in use" => script.rules().unique_names || script.rejects_joins(),
                "replaced by a newer connection" => self.has_rival(at),
                "flooding" => script.rules().rate_limit > 0.0,
                "too slow to read" => true, // checked below
                _ => false,
            },
            1013 => script.is_buffer_tight() || !script.rules().has_high_limits || script.rejects_joins(),
            code => {
                !conn.is_polite
                    && ([1000, 1002, 1003, 1005, 1007, 1008, 1009].contains(&code) || (3000..5000).contains(&code))
            }
        };
        let is_replied = conn.sent_close == Some(close.0) && close.1.is_empty();
        // The server must reply to every message before it replies to the client's Close, unless the broker delays
        // events.
        let is_done = conn.nonces.is_empty() || script.delay.is_some() || script.has_crowd;
        if !is_right {
            let text = format!("{} receives the Close {close:?}", self.name(at));
            return self.fail(FRAMES, text);
        }
        if is_replied && !is_done && conn.is_polite {
            let text = format!("{} receives a Close, but no reply to {:?}", self.name(at), conn.nonces);
            return self.fail(ACKNOWLEDGEMENT, text);
        }
        let reply = conn.sent_close.is_none() && !conn.is_silent;
        let counter = match (close.0, close.1.as_str()) {
            (1008, "username already in use") if script.delay.is_some() => "a join that is rejected late",
            (1013, _) => "a Close with 1013",
            _ if is_replied => "a Close in reply",
            _ => "a Close by the server",
        };
        self.count(counter);
        // Check the size of a slow consumer's outbox only without broker delays and socket faults: a delayed join
        // releases all held replies at once, and a faulty socket may accept the whole outbox before the Close.
        let is_exact = script.would_block_chance == 0.0 && script.interrupt_chance == 0.0 && script.delay.is_none();
        if close.1 == "too slow to read" && conn.is_polite && is_exact {
            let model = self.model.borrow();
            let owed = conn.token.and_then(|token| model.members.get(&token)).map_or(0, |member| member.expected_bytes);
            drop(model);
            // While a client's outbox is over half full, the server processes none of its commands, so replies alone
            // cannot fill the outbox.
            if owed + 300 <= script.rules().max_outbox / 2 {
                let text = format!("{} is too slow, but is owed only {owed} bytes", self.name(at));
                return self.fail(BOUNDS, text);
            }
        }
        self.conns[at].received_close = Some(close.clone());
        if reply {
            let payload = if close.0 == 1005 { Vec::new() } else { close.0.to_be_bytes().to_vec() };
            self.conns[at].sent_close = Some(close.0);
            self.queue_bytes(at, masked(0x88, &payload));
        }
    }

    /// Whether another connection may have replaced the connection `at`: it has the same client id, or has resumed the
    /// session of a client of the same name.
    fn has_rival(&self, at: usize) -> bool {
        let actor = |at: usize| &self.script.actors[self.conns[at].actor];
        let is_rival = |other| actor(other).name == actor(at).name || actor(other).client_id == actor(at).client_id;
        (0..self.conns.len()).any(|other| other != at && is_rival(other))
    }

    pub(super) fn handle_end(&mut self, at: usize, end: End) {
        if self.conns[at].is_over {
            return;
        }
        note!(self, "{} sees the end of the stream: {end:?}", self.name(at));
        let is_tight =
            self.script.is_buffer_tight() || self.script.max_connections().is_some() || self.script.is_public;
        // The server may close a connection without a response while it stops, after its storage has failed, and if a
        // limit applies: then too many rejected connections may linger.
        let may_drop = self.is_stopping || self.world.storage_failed() || self.script.has_limits();
        let conn = &mut self.conns[at];
        conn.is_over = conn.has_ended || conn.is_reset || end == End::Reset || conn.is_silent;
        if !conn.has_ended && !conn.is_reset && !conn.is_silent {
            if conn.outgoing.iter().all(|(_, out)| !matches!(out, Output::End)) {
                let at = conn.last_send_at.max(self.world.now());
                conn.outgoing.push_back((at, Output::End));
            }
            if !conn.client.is_open() || conn.client.is_closed_by_server() {
                conn.is_over = true;
            }
        }
        let is_explained = conn.received_close.is_some()
            || conn.sent_close.is_some()
            || conn.has_ended
            || conn.is_reset
            || conn.is_silent
            || conn.may_lose_events
            || conn.status.map_or(may_drop, |status| status != 101);
        let has_all_replies = conn.nonces.is_empty()
            || conn.is_reset
            || conn.received_close.is_some()
            || conn.may_lose_events
            || conn.is_silent;
        // The server may cut a frame short only if its buffers are full, and a response only if too many rejected
        // connections linger.
        let is_upgraded = conn.is_polite && conn.status == Some(101) && !self.script.is_buffer_tight();
        let is_truncated = end == End::Ended && !conn.is_reset && !conn.input.is_empty();
        if is_upgraded && is_truncated && (conn.received_close.is_some() || !conn.may_lose_events) {
            let text = format!("the stream to {} ends with the bytes {:02x?}", self.name(at), self.conns[at].input);
            return self.fail(FRAMES, text);
        }
        if conn.is_polite && !is_tight {
            if !is_explained {
                let text = format!("the server drops {}, which was neither slow nor silent", self.name(at));
                self.fail(LIVENESS, text);
            } else if !has_all_replies
                && end == End::Ended
                && conn.status == Some(101)
                && conn.sent_close.is_none()
                && self.script.delay.is_none()
                && !self.script.has_crowd
            {
                let text = format!("{} sees the end, but no reply to {:?}", self.name(at), self.conns[at].nonces);
                self.fail(ACKNOWLEDGEMENT, text);
            }
        }
    }
}
