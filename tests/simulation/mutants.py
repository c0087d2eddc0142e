#!/usr/bin/env python3
"""Breaks the server on purpose, one small change at a time, and lets the simulation find each.

    tests/simulation/mutants.py             all mutants
    tests/simulation/mutants.py --sample 2  two of them, different ones each day
    tests/simulation/mutants.py NAME …      these

Works on a copy in a temporary folder, and fails if a mutant survives 1,000 seeds. MUTANTS_TARGET names a folder for the build.
"""
import datetime, os, re, shutil, subprocess, sys, tempfile, time

SEEDS, TIMEOUT, ORIGINAL = '1000', 1800, 'the original'
SERVER, LIFECYCLE, CONNECTION = 'src/server/mod.rs', 'src/server/lifecycle.rs', 'src/server/connection.rs'
OUTBOX, FANOUT = 'src/server/outbox.rs', 'src/server/fanout.rs'
BROADCAST = 'src/ws/deflate/broadcast.rs'
LISTENER, LOG_WRITER = 'src/net/listener.rs', 'src/net/log_writer.rs'
SQLITE, DATABASE = 'src/broker/sqlite/mod.rs', 'src/broker/sqlite/database.rs'
QUERIES = 'src/broker/sqlite/queries.rs'
SCRIPT, REDIS = 'src/broker/redis/script.lua', 'src/broker/redis/mod.rs'
LOG, MEMORY, CHAT = 'src/broker/log.rs', 'src/broker/memory.rs', 'src/chat/mod.rs'

# For each mutant: its name, the file, the text to replace, and the replacement.
MUTANTS = [
    ('the cursor does not move', FANOUT, 'batch.cursors.insert(member, frames.len()).unwrap_or_default()',
     'batch.cursors.get(&member).copied().unwrap_or_default()'),
    ('a new member receives the batch before its join', SERVER, 'self.skip(client, to);', 'let _ = to;'),
    ('a switch loses the rest of the old batch', SERVER,
     'from.into_iter().for_each(|room| self.catch_up(client, room));', 'let _ = from;'),
    ('an event for all but one reaches all', SERVER, 'except.into_iter().for_each(|client| self.skip(client, room));', ''),
    ('a join does not empty the tail', BROADCAST,
     "members.tail.clear(); // the new member's inflater does not have these bytes\n            self.context_group.take_if(|last| *last == group);", ''),
    ('a message for all but one enters the tail', BROADCAST, '|| recipients == Recipients::AllButOne', ''),
    ('a group forgets that it has compressing members', SERVER, 'formats[dialect as usize][variant] = true;', ''),
    ('a private event overtakes the batch', SERVER,
     'self.chat.room_of(client).into_iter().for_each(|room| self.catch_up(client, room));\n        let Some(dialect)',
     'let Some(dialect)'),
    ('a reply overtakes the batch', LIFECYCLE,
     'self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));', ''),
    ('a removed connection stays in the chat', LIFECYCLE, 'self.chat.leave(token, &reason, self.now);', ''),
    ('a removed client counts for ever', LIFECYCLE, 'Some(_) => self.limits.client_count -= 1,', 'Some(_) => {}'),
    ('an address never gets its place back', LIFECYCLE,
     'self.limits.remove_connection(peer.ip());\n        }\n        match', '}\n        match'),
    ('buffered bytes are never given back', LIFECYCLE, 'self.limits.buffered -= buffered;', ''),
    ('a timer is forgotten in the list', LIFECYCLE, 'self.timers.set(token, &mut connection.cold.deadline, None);', ''),
    ('the silence is checked once only', LIFECYCLE, 'self.check_jwt_expiry(token, wait);', ''),
    ('a timer expires every millisecond', 'src/server/timers.rs', '{ ping_interval - silent };',
     '{ Duration::from_millis(1) };'),
    ('a lingering connection counts as a client', 'src/server/limits.rs', 'self.client_count >= self.max_clients',
     'self.client_count + self.lingering.len() >= self.max_clients'),
    ('all users share one rate limit', 'src/chat/rate_limiter.rs', 'self.users.entry(user.clone(), new,',
     'let _ = user;\n        self.users.entry(User::Connection(mio::Token(0)), new,'),
    ('no ping is sent', LIFECYCLE, 'if pings {', 'if pings && token.0 == 0 {'),
    ('a half-sent frame is dropped', OUTBOX, 'self.push(rest);', 'drop(rest);'),
    ('a partial write starts the next chunk anew', OUTBOX, 'self.sent -= len;', 'self.sent = 0;'),
    ('a partial write of a broadcast is repeated', OUTBOX,
     'self.chunks.push_back(Chunk::Shared(broadcast.share()));\n        self.consume(written);',
     'self.chunks.push_back(Chunk::Shared(broadcast.share()));\n        self.consume(written.min(0));'),
    ('the shared copies are counted twice', OUTBOX, 'shared_bytes.set(shared_bytes.get() + frames.len());', 'shared_bytes.set(shared_bytes.get() + 2 * frames.len());'),
    ('a full read counts as the last one', CONNECTION,
     'Ok(len) if len < buffer.len() && self.input == Input::Readable => (Input::Drained, Some(len)),',
     'Ok(len) if len > 0 => (Input::Drained, Some(len)),'),
    ('the end of the stream is forgotten after a short read', CONNECTION,
     'len < buffer.len() && self.input == Input::Readable', 'len < buffer.len()'),
    ('input is read although the outbox is full', CONNECTION,
     'self.outbox.len() > if self.is_echo() { MAX_ECHO_OUTBOX } else { max_outbox / 2 }',
     'self.outbox.len() > if self.is_echo() { MAX_ECHO_OUTBOX } else { max_outbox * 100 }'),
    ('a slow consumer is never closed', CONNECTION, 'self.is_open() && !self.is_echo() && self.outbox', 'self.is_echo() && self.outbox'),
    ('a drained connection does not wait for the peer', CONNECTION, '(!discards_input || self.input == Input::Ended)', '(!discards_input || self.input <= Input::Ended)'),
    ('an edge to write is ignored', SERVER, 'if readiness.is_writable && !connection.is_flushed()', 'if readiness.has_error && !connection.is_flushed()'),
    ('input that is left asks for no turn', SERVER,
     'self.connections.has_work([Work::ReadEnding, Work::Read, Work::Handshake])', 'false'),
    ('sockets are never closed', SERVER, 'self.removed.drain(..self.removed.len().min(CLOSES_PER_TURN));', ''),
    ('a Pong waits for the next event', SERVER, 'ProtocolEvent::Ping(_) => self.apply_protocol_state(token, ""),', 'ProtocolEvent::Ping(_) => {}'),
    ('unprocessed input is lost', SERVER, 'connection.cold.unprocessed = (&*input).into();', ''),
    ('frames right behind the request are lost', SERVER, 'self.receive_frames(token, &mut input[end..]);', 'let _ = end;'),
    ('a message gets the id after the next', LOG, 'message.id = self.last_id + 1;', 'message.id = self.last_id + 1 + self.last_id % 2;'),
    ('any epoch resumes', LOG, 'resume.filter(|resume| *resume.epoch == *self.epoch)', 'resume.filter(|resume| !resume.epoch.is_empty())'),
    ('a resume repeats the last message', LOG, 'self.last_id.checked_sub(resume.since)).filter(|count| *count <= fitting)',
     'self.last_id.checked_sub(resume.since)).map(|count| count + u64::from(count < fitting))'),
    ('a nonce is not remembered', LOG, 'self.nonces.extend(nonce_key(&message).map(|key| (key, Rc::clone(&message))));', ''),
    ('a page repeats a message', LOG, 'message.id < before', 'message.id <= before'),
    ('a page has no older ones', LOG, 'start > 0)', 'start > 1)'),
    ('a name outlives its client', MEMORY, 'self.by_username.remove(&self.username_entry(&username, client));', 'let _ = username;'),
    ('a client id outlives its client', MEMORY, 'client_id.and_then(|id| self.client_ids.remove(&id));', 'drop(client_id);'),
    ('a replaced client stays', MEMORY, '.for_each(|replaced| self.submit(replaced, Request::Leave, now));', '.for_each(drop);'),
    ('a switch leaves the old room full', MEMORY, 'self.announce_room(to);\n        self.rooms.remove_member(from, now);', 'self.announce_room(to);'),
    ('the sender receives a private message twice', MEMORY, 'recipients.retain(|recipient| *recipient != client);', ''),
    ('a history never expires', MEMORY, 'now.saturating_sub(room.emptied_at) <= self.config.ttl', 'room.emptied_at <= now'),
    ('two clients may hold one name', MEMORY, '(!may_share).then_some(*client)', '(!may_share && *client == Token(0)).then_some(*client)'),
    ('a new member receives its own join', CHAT, 'self.broadcast(to, Some(client), Event::Joined', 'self.broadcast(to, None, Event::Joined'),
    ('replies during the join are lost', CHAT, 'held.into_iter().for_each(|event| self.send(client, event));', 'drop(held);'),
    ('a client that leaves still receives', CHAT, 'self.room_mut(room).remove_recipient(client);', 'let _ = room;'),
    ('a repeated nonce gets no event', CHAT, '                self.send(client, Event::Message(message));', '                drop(message);'),
    ('a flood is ignored', CHAT, 'Decision::Flood => return self.close(client, event::FLOODING),', 'Decision::Flood => return,'),
    ('an error loses its nonce', CHAT,
     'Event::Error { message: event::describe(error), nonce }',
     'Event::Error { message: event::describe(error), nonce: nonce.filter(|_| false) }'),
    ('the echo does not wait for the broker', CHAT, '        self.broker.submit(client, request, now.monotonic);\n        Ok(())',
     '''        if let Request::Publish(Message { username, text, time, nonce, .. }) = &request {
            let (username, text, time, nonce) = (Rc::clone(username), text.clone(), Rc::clone(time), nonce.clone());
            self.send(client, Event::Message(Rc::new(Message { username, text, id: 1, time, nonce })));
        }
        self.broker.submit(client, request, now.monotonic);
        Ok(())'''),
    ('a half-closed client loses its outbox', LIFECYCLE,
     'connection.drain(false, REASON);\n                self.apply_protocol_state(token, REASON);', 'self.abort(token, REASON);'),
    ('the buffers have no bound', LIFECYCLE, 'if buffered <= self.config.max_buffered {', 'if buffered <= usize::MAX {'),
    ('a stop closes with 1000', LIFECYCLE, 'self.close_all(CloseCode::GOING_AWAY,', 'self.close_all(CloseCode::NORMAL,'),
    ('a message follows a gap', LIFECYCLE, 'self.chat.room_of(token).into_iter().for_each(|room| self.skip(token, room));', ''),
    ('a suspended server cuts its peers', LIFECYCLE, 'connection.cold.last_received = self.now.monotonic - silent;', ''),
    ('the listener forgets that another client waits', LISTENER, 'has_more(&self.socket).then_some(now)', 'None'),
    ('the listener never retries a failed accept', LISTENER, 'self.next_accept_at = Some(now + RETRY_DELAY);', 'self.next_accept_at = None;'),
    ('lost log lines are not counted', LOG_WRITER, 'self.dropped += 1;', ''),
    ('a stalled stderr loses the queue', LOG_WRITER, 'ErrorKind::WouldBlock => break,', 'ErrorKind::WouldBlock => written = self.queued.len(),'),
    ('a partial write to stderr is repeated', LOG_WRITER, 'self.queued.drain(..written);', 'if written == self.queued.len() { self.queued.clear(); }'),
    ('a leave overtakes a pending message', SQLITE,
     'self.queue.push_back(QueuedEvent { event, needs_outcome: operation.is_some(), limit, bytes });',
     'let queued = QueuedEvent { event, needs_outcome: operation.is_some(), limit, bytes };\n'
     'if matches!(queued.event, RoomEvent::Left { .. }) { self.queue.push_front(queued) } else { self.queue.push_back(queued) }'),
    ('a room with a queued opening is dropped', SQLITE, 'room.members == 0 && room.openings == 0', 'room.members == 0'),
    ('a stored message is not in the log', SQLITE, 'log.push(Rc::clone(message));', ''),
    ('a page of the file has no older ones', SQLITE, 'limit: limit + 1', 'limit'),
    ('no nonce is looked up in the file', QUERIES, 'let Some(nonce) = &message.nonce else { return Ok(None) };',
     'let Some(nonce) = message.nonce.as_ref().filter(|nonce| nonce.is_empty()) else { return Ok(None) };'),
    ('a resume ignores the run', QUERIES, 'if run > known {', 'if run > known + 1000 {'),
    ('a deletion is not recorded', DATABASE, 'SET deleted_id = ?2, deleted_run', 'SET deleted_id = deleted_id + 0 * ?2, deleted_run'),
    ('a transaction stays open', DATABASE, 'transaction.commit()?;\n        if std::mem::take', 'std::mem::forget(transaction);\n        if std::mem::take'),
    ('a full disk acknowledges', QUERIES, 'original.map_or(Outcome::DiskFull, Outcome::Duplicate)', 'original.map_or(Outcome::Stored(1), Outcome::Duplicate)'),
    ('one message too many is deleted', DATABASE, 'last_id.saturating_sub(keep).saturating_sub(deleted_id)',
     'last_id.saturating_sub(keep - 1).saturating_sub(deleted_id)'),
    ('requests of a lost connection are not sent again', REDIS, 'self.requests.mark_unsent_after(number(executed));', 'let _ = executed;'),
    ('a new lineage has the old epoch', SCRIPT, 'if known[2] ~= lineage or not generation then', 'if not generation then'),
    ('an epoch from before a loss counts for all messages', SCRIPT,
     "local is_continued = number >= tonumber(call('HGET', meta, 'continuous_from'))", 'local is_continued = true'),
    ('a closed client receives the batch', SERVER, 'let except = except.filter(|client| self.chat.room_of(*client).is_some());', ''),
]


def sample(count):
    start = datetime.date.today().toordinal() * count
    return [MUTANTS[(start + number) % len(MUTANTS)] for number in range(count)]


def main():
    arguments = sys.argv[1:]
    chosen = MUTANTS
    if arguments[:1] == ['--sample']:
        chosen = sample(int(arguments[1]))
    elif arguments:
        chosen = [mutant for mutant in MUTANTS if mutant[0] in arguments]
        if len(chosen) != len(arguments):
            sys.exit('There is no mutant of this name.')
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name, file, before, _ in MUTANTS:
        if open(os.path.join(root, file)).read().count(before) != 1:
            sys.exit(f'The mutant "{name}" no longer fits: {file} has changed.')
    files = subprocess.run(['git', 'ls-files'], cwd=root, check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory() as copy:
        for file in files:
            os.makedirs(os.path.dirname(os.path.join(copy, file)), exist_ok=True)
            shutil.copy(os.path.join(root, file), os.path.join(copy, file))
        target = os.environ.get('MUTANTS_TARGET') or os.path.join(copy, 'target')
        environment = dict(os.environ, CARGO_TARGET_DIR=target, CARGO_PROFILE_RELEASE_LTO='off', CARGO_INCREMENTAL='1',
                           CARGO_PROFILE_RELEASE_CODEGEN_UNITS='16', CARGO_PROFILE_RELEASE_OPT_LEVEL='1')
        if play(copy, environment, ORIGINAL) is not False:
            sys.exit('The simulation fails without a mutant.')
        survivors = [name for name, *change in chosen if not is_found(copy, environment, name, *change)]
    print(f'{len(chosen) - len(survivors)} of {len(chosen)} mutants found')
    sys.exit(bool(survivors))


def is_found(copy, environment, name, file, before, after):
    path = os.path.join(copy, file)
    with open(path) as source:
        text = source.read()
    with open(path, 'w') as source:
        source.write(text.replace(before, after, 1))
    try:
        return play(copy, environment, name)
    finally:
        with open(path, 'w') as source:
            source.write(text)


def play(copy, environment, name):
    test = ['cargo', 'test', '--quiet', '--release', '--features', 'full', '--test', 'simulation']
    built = subprocess.run(test + ['--no-run'], cwd=copy, env=environment, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f'NO BUILD  {name}\n{built.stderr}')
    start = time.time()
    run = test + ['--', '--seeds', SEEDS, '--no-shrink']
    try:
        played = subprocess.run(run, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        print(f'found     {name}: no end within {TIMEOUT} s', flush=True)
        return True
    found = re.search(r'seed (\d+) breaks a rule.*?\n  rule     (.*?)\n', played.stdout)
    verdict = f'found     {name}: seed {found[1]}, rule "{found[2]}"' if found else f'{"passes" if name == ORIGINAL else "SURVIVES":9} {name}'
    print(f'{verdict} ({time.time() - start:.0f} s)', flush=True)
    return bool(found)


main()
