//! The threads that talk to Redis, so that the event loop never waits for it. One thread calls the Lua script, and
//! the other reads the instance's inbox. Each thread reconnects when its connection fails.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use redis::{Client, Connection, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind};

// The Lua script returns this status after it has executed an instance's requests. It does not return the resulting
// events, but appends them to the inboxes of the instances.
pub const DONE: &str = "done";

const MAX_ENTRIES_PER_READ: usize = 256;
// A read of more bytes than this (about two messages) means that messages are arriving fast. The thread then pauses, so
// that more messages accumulate and the event loop wakes less often: at 8,000 messages/s, this halves the CPU time.
const BUSY_READ_BYTES: usize = 512;
const BUSY_READ_PAUSE: Duration = Duration::from_millis(5);

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_millis(400); // delivery must resume within a second after Redis is back

/// The interface between the broker and the Redis threads. Tests replace the threads with a simulation.
pub trait Link {
    /// Queues a call to the Lua script with these arguments. Calls run in the order they were queued.
    fn call(&mut self, arguments: Vec<String>);
    /// Starts to read the entries of inbox `key` that follow entry `after`. If Redis has restarted, its lineage no
    /// longer equals `lineage`, and the thread reads nothing (see [`LinkEvent`]).
    fn read_inbox(&mut self, key: &str, after: u64, lineage: &str);
    fn next_event(&mut self) -> Option<LinkEvent>;
}

#[derive(Debug)]
pub enum LinkEvent {
    /// `lineage` identifies the Redis process and its data. If it has changed, Redis may have lost its newest writes.
    Connected { lineage: String, warning: Option<String> },
    /// The reply to a call of the script. `Err`: Redis rejected the call without executing any of it.
    Reply(Result<Vec<String>, String>),
    /// The id and the events of each new inbox entry.
    Inbox(Vec<(u64, String)>),
    /// There is no connection. Redis may or may not have executed the last call.
    Lost { reason: String },
}

pub struct Threads {
    calls: Option<Sender<(u64, Vec<String>)>>, // set to `None` to stop the `caller` thread
    reads: Sender<InboxRead>,
    events: Receiver<(u64, LinkEvent)>, // each event and the `session` or `read_number` that it belongs to
    caller: Option<JoinHandle<()>>,
    session: u64, // number of the `caller` thread's newest connection; calls for an older one are dropped
    read_number: u64, // number of the newest `InboxRead`; entries returned by older reads are dropped
}

struct InboxRead {
    number: u64,
    key: String,
    after: u64,
    lineage: String,
}

#[derive(Clone)]
struct Reporter<W> {
    events: Sender<(u64, LinkEvent)>,
    wake: W,
}

impl<W: Fn()> Reporter<W> {
    fn report(&self, number: u64, event: LinkEvent, wakes: bool) {
        let _ = self.events.send((number, event));
        if wakes {
            (self.wake)();
        }
    }
}

impl Threads {
    /// `timeout` bounds every wait for Redis. `wake` wakes the event loop to read an event.
    pub fn start(
        client: Client,
        script: &str,
        timeout: Duration,
        wake: impl Fn() + Clone + Send + 'static,
    ) -> Result<Threads, String> {
        let ((calls, receiver), (reads, new_reads), (sender, events)) = (channel(), channel(), channel());
        let (script, reporter) = (Script::new(script), Reporter { events: sender, wake });
        let (reading, reader) = (client.clone(), reporter.clone());
        let error = |error| format!("A Redis thread cannot start: {error}.");
        let read = move || read_inboxes(&reading, &new_reads, timeout, &reader);
        Builder::new().name("redis inbox".into()).spawn(read).map_err(error)?;
        let call = move || send_calls(&client, &script, &receiver, timeout, &reporter);
        let caller = Builder::new().name("redis calls".into()).spawn(call).map_err(error)?;
        Ok(Threads { calls: Some(calls), reads, events, caller: Some(caller), session: 0, read_number: 0 })
    }
}

impl Link for Threads {
    fn call(&mut self, arguments: Vec<String>) {
        if let Some(calls) = &self.calls {
            let _ = calls.send((self.session, arguments));
        }
    }

    fn read_inbox(&mut self, key: &str, after: u64, lineage: &str) {
        self.read_number += 1;
        let _ =
            self.reads.send(InboxRead { number: self.read_number, key: key.into(), after, lineage: lineage.into() });
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        loop {
            let (number, event) = self.events.try_recv().ok()?;
            match event {
                LinkEvent::Connected { .. } => self.session = number,
                LinkEvent::Inbox(_) if number != self.read_number => continue,
                _ => {}
            }
            return Some(event);
        }
    }
}

impl Drop for Threads {
    /// Waits for the `caller` thread to end, so that the last call reaches Redis. The inbox thread ends by itself.
    fn drop(&mut self) {
        self.calls = None;
        self.caller.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

fn connect(client: &Client, timeout: Duration) -> RedisResult<(Connection, String)> {
    let mut connection = client.get_connection_with_timeout(timeout)?;
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))?;
    let mut lineage = String::new();
    for (section, field) in [("server", "run_id"), ("replication", "master_replid")] {
        let info: String = redis::cmd("INFO").arg(section).query(&mut connection)?;
        let value = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        lineage += value.unwrap_or_default();
    }
    Ok((connection, lineage))
}

/// Returns a warning for the operator if Redis may evict the server's keys when its memory is full.
fn find_eviction_warning(connection: &mut Connection) -> Option<String> {
    // Some hosted Redis services forbid CONFIG. Return no warning if the policy is unknown.
    let policy: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query(connection).ok()?;
    let policy = policy.into_iter().nth(1).filter(|policy| policy != "noeviction")?;
    Some(format!("maxmemory-policy is {policy}, so Redis may delete parts of the chat; set it to noeviction"))
}

/// Waits before reconnecting: exponential backoff with jitter. Returns `false` if the server stops.
fn back_off<T>(wait: &mut Duration, channel: &Receiver<T>) -> bool {
    let mut random = [0];
    _ = getrandom::fill(&mut random);
    let jitter = wait.mul_f64(0.5 + f64::from(random[0]) / 512.0); // instances must not reconnect at the same time
    *wait = (*wait * 2).min(MAX_BACKOFF);
    let deadline = std::time::Instant::now() + jitter;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        match channel.recv_timeout(left) {
            Ok(_) => {} // discard this call: it was queued for the connection that has failed
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

fn send_calls(
    client: &Client,
    script: &Script,
    calls: &Receiver<(u64, Vec<String>)>,
    timeout: Duration,
    reporter: &Reporter<impl Fn()>,
) {
    let (mut session, mut wait) = (0, MIN_BACKOFF);
    loop {
        let failed = match connect(client, timeout) {
            Ok((mut connection, lineage)) => {
                session += 1;
                let warning = find_eviction_warning(&mut connection);
                reporter.report(session, LinkEvent::Connected { lineage, warning }, true);
                loop {
                    let Ok((of, arguments)) = calls.recv() else { return };
                    if of != session {
                        continue;
                    }
                    let mut invocation = script.prepare_invoke();
                    arguments.iter().for_each(|argument| _ = invocation.arg(argument));
                    match invocation.invoke::<Vec<String>>(&mut connection) {
                        Ok(reply) => {
                            wait = MIN_BACKOFF;
                            let says_nothing = reply.len() == 1 && reply[0] == DONE;
                            reporter.report(session, LinkEvent::Reply(Ok(reply)), !says_nothing);
                        }
                        Err(error) if was_rejected(&error) => {
                            reporter.report(session, LinkEvent::Reply(Err(error.to_string())), true);
                        }
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        reporter.report(session, LinkEvent::Lost { reason: failed.to_string() }, true);
        if !back_off(&mut wait, calls) {
            return;
        }
    }
}

/// Whether Redis rejected a call without executing any of it. The thread then keeps its connection. After any other
/// error, the thread reconnects: `ResponseError` may come from a script that has already written data, and `ReadOnly`
/// comes from a replica, while the thread needs the master.
fn was_rejected(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(kind) => kind != ServerErrorKind::ReadOnly && kind != ServerErrorKind::ResponseError,
        ErrorKind::Extension => true, // an error that the `redis` crate does not know, such as OOM or MISCONF
        _ => false,
    }
}

fn read_inboxes(client: &Client, reads: &Receiver<InboxRead>, timeout: Duration, reporter: &Reporter<impl Fn()>) {
    let mut wait = MIN_BACKOFF;
    let Ok(mut read) = reads.recv() else { return };
    loop {
        if let Ok((mut connection, lineage)) = connect(client, timeout)
            && lineage == read.lineage
        {
            wait = MIN_BACKOFF;
            while let Ok(entries) = read_entries(&mut connection, &read, timeout) {
                read.after = entries.last().map_or(read.after, |(id, _)| *id);
                if !entries.is_empty() {
                    let bytes: usize = entries.iter().map(|(_, events)| events.len()).sum();
                    reporter.report(read.number, LinkEvent::Inbox(entries), true);
                    if bytes > BUSY_READ_BYTES {
                        std::thread::sleep(BUSY_READ_PAUSE);
                    }
                }
                match reads.try_recv() {
                    Ok(newer) => {
                        read = newer;
                        break;
                    }
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
        // Wait before reconnecting. If Redis has restarted, its lineage (the id of its process and data) no longer
        // matches. The thread then reads no entries until the broker sends an `InboxRead` with the new lineage.
        loop {
            match reads.recv_timeout(wait) {
                Ok(newer) => read = newer,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        wait = (wait * 2).min(MAX_BACKOFF);
    }
}

/// Waits for entries, but only briefly, so that the thread soon notices a new `InboxRead`.
fn read_entries(connection: &mut Connection, read: &InboxRead, timeout: Duration) -> RedisResult<Vec<(u64, String)>> {
    type Streams = Option<Vec<(String, Vec<(String, (String, String))>)>>;
    let block = (timeout / 2).min(Duration::from_millis(500)).as_millis() as u64;
    let mut command = redis::cmd("XREAD");
    command.arg("COUNT").arg(MAX_ENTRIES_PER_READ).arg("BLOCK").arg(block).arg("STREAMS").arg(&read.key);
    let streams: Streams = command.arg(format!("{}-0", read.after)).query(connection)?;
    let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
    let id = |id: &str| id.split('-').next().and_then(|id| id.parse().ok()).unwrap_or(0);
    Ok(entries.map(|(name, (_, events))| (id(&name), events)).collect())
}
