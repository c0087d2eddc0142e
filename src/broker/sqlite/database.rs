//! The history file: its schema, the checks at startup, and the operations, which run in batches.

use std::collections::{BTreeMap, btree_map::Entry};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::bans::{self, BanChange, BanList};
use super::file::{APPLICATION_ID, SCHEMA_VERSION, check_header, connect, create, explain, failure};
use super::queries::{execute_read, find_duplicate};
use crate::broker::log::JSON_OVERHEAD;

const MIN_SQLITE_VERSION: i32 = 3_051_003; // earlier SQLite versions can corrupt a database when they restart its WAL
// Limit on deletions per stored message, so that a commit stays short after an operator lowers `--history-keep`.
const DELETES_PER_MESSAGE: u64 = 16;
const DELETES_PER_SWEEP: u64 = 1000;
const ROOMS_PER_SWEEP: usize = 200;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
const CHANGES_PER_CHECKPOINT: usize = 1000;
pub const MAX_BATCH_COST: usize = 64 * 1024;

const SCHEMA: &str = "
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE           -- random; sent to clients as the epoch
) STRICT;
CREATE TABLE rooms (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last_id INTEGER NOT NULL,           -- of the newest message ever stored
    deleted_id INTEGER NOT NULL,        -- of the newest message deleted by retention; 0 if none
    deleted_run INTEGER NOT NULL        -- the run that stored this message
) STRICT;
CREATE TABLE messages (
    room INTEGER NOT NULL REFERENCES rooms,
    id INTEGER NOT NULL,                -- consecutive in each room, from 1
    run INTEGER NOT NULL REFERENCES runs,
    time TEXT NOT NULL,                 -- RFC 3339, UTC, milliseconds
    username TEXT NOT NULL,
    text TEXT NOT NULL,
    nonce TEXT,
    PRIMARY KEY (room, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX messages_by_nonce ON messages (room, username, nonce) WHERE nonce IS NOT NULL;
";

#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    pub survives_power_failure: bool, // whether every commit syncs the WAL
    pub max_messages_per_room: u64,   // maximum number of messages kept per room; 0: no limit
    pub max_age_days: u32,            // maximum age of a message in days; older messages are deleted; 0: no limit
}

/// An operation on the history file, requested by the broker. The operations of a batch take effect in order.
#[derive(Debug)]
pub enum Operation {
    /// Stores a message under the room's next id, unless the room has a message with the same username and nonce.
    Store { room: Box<str>, message: StoredMessage },
    /// Reads the newest messages of a room.
    Load { room: Box<str>, limit: usize, max_bytes: usize },
    /// Reads all messages after message `since`, if no message is missing and all of them fit in `max_bytes`.
    Resume { room: Box<str>, epoch: String, since: u64, max_bytes: usize },
    /// Reads a room's newest messages with ids less than `before`.
    Page { room: Box<str>, before: u64, limit: usize, max_bytes: usize },
    /// Changes the operator's bans. Adds no `Outcome` to the batch: the result goes to the channel in `BanChange`.
    Ban(BanChange),
    /// Does nothing. The broker submits a `Wait` for a join that is queued behind other events, unless the client
    /// resumes. The cost of each `Wait` limits the number of joins in a batch.
    Wait,
}

#[derive(Debug)]
pub enum Outcome {
    Stored(u64), // id of the stored message
    Duplicate(StoredMessage),
    DiskFull,
    Messages { last_id: u64, messages: Vec<StoredMessage> }, // oldest first
    NotResumable,
    Waited,
}

#[derive(Debug, Default)]
pub struct Batch {
    pub outcomes: Vec<Outcome>,   // one outcome per operation except `Ban`, in the same order
    pub deletions: Vec<Deletion>, // messages that the expiry sweep deleted after the batch's operations were executed
}

/// Reports that the room's messages up to and including `id` were deleted.
#[derive(Debug)]
pub struct Deletion {
    pub room: Box<str>,
    pub id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    pub id: u64,
    pub time: String,
    pub username: String,
    pub text: String,
    pub nonce: Option<String>,
}

impl Operation {
    /// The operation's cost in bytes. The total cost of a batch is limited: after a disk stall, the event loop may
    /// apply a few batches in one turn, and a client's outbox must have room for all their events.
    pub fn cost(&self) -> usize {
        if let Operation::Store { message, .. } = self { message.json_len() } else { MAX_BATCH_COST / 16 }
    }

    fn is_write(&self) -> bool {
        matches!(self, Operation::Store { .. } | Operation::Ban(_))
    }
}

impl StoredMessage {
    /// The length of the message's JSON in bytes, assuming that no character needs escaping.
    pub fn json_len(&self) -> usize {
        JSON_OVERHEAD + self.username.len() + self.text.len() + self.nonce.as_ref().map_or(0, String::len)
    }
}

/// A room to which the current batch has added messages.
struct ChangedRoom {
    room: i64,
    last_id: u64,
    deleted_id: u64,
    stored_count: u64, // number of messages that the batch has stored in the room
}

pub struct Database {
    pub connection: Connection, // public so that tests can limit the database's size and simulate a server restart
    options: DatabaseOptions,
    run: i64,
    changes: usize,   // number of messages stored or expired since the last checkpoint
    is_full: bool,    // whether the last commit failed on a full disk; suppresses repeated warnings
    is_trusted: bool, // whether the last batch succeeded; if not, the file may be damaged
    next_sweep: Option<SystemTime>,
    swept_room: i64, // id of the last room that the current expiry sweep has finished; 0 if none
}

impl Database {
    /// Opens or creates the history file, begins a server run, and deletes the messages that are too old at time `now`.
    /// Never changes a file of another program. `Err` is a one-line error text for the operator.
    pub fn open(path: &Path, options: DatabaseOptions, run: &str, now: SystemTime) -> Result<Database, String> {
        let describe = |error: String| format!("--history-db {}: {error}", path.display());
        if rusqlite::version_number() < MIN_SQLITE_VERSION {
            return Err(describe(format!(
                "SQLite {} can corrupt a database; use 3.51.3 or later",
                rusqlite::version()
            )));
        }
        check_header(path).map_err(describe)?;
        match create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(describe(format!("cannot create the file: {error}")));
            }
            _ => {}
        }
        let open = |path| Database::begin_run(connect(path)?, options, run, now);
        open(path).map_err(|error| describe(explain(&error)))
    }

    /// Like `open`, but takes the current time from the system clock and also returns the operator's bans.
    pub fn open_with_bans(path: &Path, options: DatabaseOptions, run: &str) -> Result<(Database, BanList), String> {
        let now = SystemTime::now();
        let database = Database::open(path, options, run, now)?;
        let bans = bans::load(&database.connection, now).map_err(|error| explain(&error))?;
        Ok((database, bans))
    }

    /// Begins a server run: creates the schema in an empty file, checks the file, and records the run.
    pub fn begin_run(
        mut connection: Connection,
        options: DatabaseOptions,
        run: &str,
        now: SystemTime,
    ) -> rusqlite::Result<Database> {
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        create_schema(&mut connection)?;
        let damage: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if damage != "ok" {
            return Err(failure(ErrorCode::DatabaseCorrupt, damage));
        }
        connection.prepare("SELECT * FROM runs, rooms, messages")?; // fails if a table is missing
        connection.execute_batch(bans::SCHEMA)?;
        // Do not checkpoint on close: the file may be damaged. `drop` allows a checkpoint if the last batch succeeded.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?; // off: SQLite hides errors of automatic checkpoints
        let sync = if options.survives_power_failure { "FULL" } else { "NORMAL" };
        connection.pragma_update(None, "synchronous", sync)?;
        connection.execute("INSERT INTO runs (name) VALUES (?)", [run])?;
        let run = connection.last_insert_rowid();
        let (changes, is_full, is_trusted, next_sweep, swept_room) = (0, false, true, None, 0);
        let mut database = Database { connection, options, run, changes, is_full, is_trusted, next_sweep, swept_room };
        while database.sweep(now, &mut Vec::new())? {
            database.checkpoint()?; // without checkpoints, the WAL could outgrow the database file
        }
        database.vacuum()?;
        database.checkpoint()?;
        Ok(database)
    }

    /// Executes a batch in order. A batch that contains a write runs in one transaction. If the disk is full, writes
    /// nothing: each new message has the outcome `DiskFull`, and reads still work. After an `Err`, the batch may or may
    /// not be stored, and the file can no longer be trusted.
    pub fn execute(&mut self, operations: &[Operation]) -> Result<Batch, String> {
        self.is_trusted = false;
        let mut executed = self.commit(operations);
        let is_committed = executed.is_ok();
        if executed.as_ref().is_err_and(is_disk_full) {
            if !std::mem::replace(&mut self.is_full, true) {
                log::warn!("STORAGE full: messages are rejected until the disk has space");
            }
            // The WAL may have filled the disk. After a checkpoint, SQLite can reuse the space of the WAL.
            executed = ignore_full(self.checkpoint()).and_then(|()| self.execute_reads(operations));
        }
        self.is_trusted = executed.is_ok();
        for operation in operations {
            if let (Operation::Ban(change), Ok(_)) = (operation, &executed) {
                let _ = change.result_sender.send(is_committed); // an error means that the receiver no longer exists
            }
        }
        executed.map_err(|error| explain(&error))
    }

    /// Like `execute`, but also passes the duration of the call to `on_commit` if the batch contains a write.
    pub fn execute_timed(&mut self, operations: &[Operation], on_commit: &impl Fn(Duration)) -> Result<Batch, String> {
        let started = Instant::now();
        let executed = self.execute(operations);
        if operations.iter().any(Operation::is_write) {
            on_commit(started.elapsed());
        }
        executed
    }

    fn execute_reads(&self, operations: &[Operation]) -> rusqlite::Result<Batch> {
        let mut batch = Batch::default();
        for operation in operations.iter().filter(|operation| !matches!(operation, Operation::Ban(_))) {
            batch.outcomes.push(execute_read(&self.connection, operation)?);
        }
        Ok(batch)
    }

    fn commit(&mut self, operations: &[Operation]) -> rusqlite::Result<Batch> {
        let times = operations.iter().filter_map(|operation| match operation {
            Operation::Store { message, .. } => Some(message.time.as_str()),
            _ => None,
        });
        let (count, newest) = times.fold((0, None), |(count, _), time| (count + 1, Some(time)));
        if !operations.iter().any(Operation::is_write) {
            let mut batch = self.execute_reads(operations)?;
            // An idle writer thread executes empty batches, so that messages expire even if no client sends any.
            if operations.is_empty() {
                self.clean_up(SystemTime::now(), &mut batch.deletions)?;
            }
            return Ok(batch);
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut batch, mut rooms, keep) = (Batch::default(), BTreeMap::new(), self.options.max_messages_per_room);
        for operation in operations {
            let outcome = if let Operation::Store { room, message } = operation {
                let mut original = find_duplicate(&transaction, room, message)?;
                // A stored message may already have this nonce. If the batch has pushed that message out of the newest
                // `keep` messages, delete it first, so that the new message can use the nonce.
                if original.is_some() {
                    update_rooms(&transaction, &mut rooms, keep)?;
                    original = find_duplicate(&transaction, room, message)?;
                }
                match original {
                    Some(original) => Outcome::Duplicate(original),
                    None => store(&transaction, &mut rooms, room, message, self.run)?,
                }
            } else if let Operation::Ban(change) = operation {
                bans::apply(&transaction, change)?;
                continue;
            } else {
                update_rooms(&transaction, &mut rooms, keep)?;
                execute_read(&transaction, operation)?
            };
            batch.outcomes.push(outcome);
        }
        update_rooms(&transaction, &mut rooms, keep)?;
        transaction.commit()?;
        if std::mem::take(&mut self.is_full) {
            log::info!("STORAGE has space again");
        }
        self.changes += count;
        if let Some(Ok(now)) = newest.map(humantime::parse_rfc3339) {
            self.clean_up(now, &mut batch.deletions)?;
        }
        Ok(batch)
    }

    fn clean_up(&mut self, now: SystemTime, deletions: &mut Vec<Deletion>) -> rusqlite::Result<()> {
        ignore_full(self.sweep(now, deletions).map(drop))?;
        if self.changes >= CHANGES_PER_CHECKPOINT {
            ignore_full(self.vacuum())?;
            ignore_full(self.checkpoint())?;
        }
        Ok(())
    }

    /// Copies committed pages from the WAL into the database file, so that SQLite can overwrite the WAL.
    fn checkpoint(&mut self) -> rusqlite::Result<()> {
        self.changes = 0;
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }

    /// Shrinks the database file: returns its free pages to the file system.
    fn vacuum(&self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached("PRAGMA incremental_vacuum(1000)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {} // each step of the statement frees one page
        Ok(())
    }

    /// Deletes some expired or surplus messages. Returns whether more may be left; if not, the next sweep waits 60 s.
    fn sweep(&mut self, now: SystemTime, deletions: &mut Vec<Deletion>) -> rusqlite::Result<bool> {
        let DatabaseOptions { max_messages_per_room: keep, max_age_days, .. } = self.options;
        let now_since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = now_since_1970.checked_sub(DAY.saturating_mul(max_age_days)).filter(|_| max_age_days > 0);
        if oldest.is_none() && keep == 0 {
            return Ok(false);
        }
        // If the clock was set back, sweep now instead of waiting until the clock reaches `next_sweep` again.
        if self.next_sweep.is_some_and(|next| now < next && next <= now + SWEEP_INTERVAL) {
            return Ok(false);
        }
        let format = |oldest| humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + oldest).to_string();
        let oldest = oldest.map(format);
        let (mut left, mut swept, mut swept_room) = (DELETES_PER_SWEEP, Vec::new(), self.swept_room);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let rooms: Vec<(i64, Box<str>, u64, u64)> = transaction
            .prepare_cached("SELECT id, name, last_id, deleted_id FROM rooms WHERE id > ? ORDER BY id LIMIT ?")?
            .query_map(params![swept_room, ROOMS_PER_SWEEP], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let count = rooms.len();
        for (room, name, last_id, deleted_id) in rooms {
            let last = last_id.min(deleted_id + left);
            let surplus = if keep == 0 { 0 } else { last_id.saturating_sub(keep).min(last) };
            // Stop at the room's first message that is not too old, so that the remaining ids are consecutive.
            let kept: Option<u64> = transaction
                .prepare_cached("SELECT id FROM messages WHERE room = ? AND id <= ? AND time >= ? ORDER BY id LIMIT 1")?
                .query_row(params![room, last, oldest.as_deref().unwrap_or_default()], |row| row.get(0))
                .optional()?;
            let delete_to = kept.map_or(last, |kept| kept - 1).max(surplus);
            let is_finished = delete_to < last || last == last_id;
            if delete_to > deleted_id {
                delete_until(&transaction, room, delete_to)?;
                left -= delete_to - deleted_id;
                swept.push(Deletion { room: name, id: delete_to });
            }
            if !is_finished {
                break;
            }
            swept_room = room;
        }
        transaction.commit()?;
        self.changes += (DELETES_PER_SWEEP - left) as usize;
        deletions.extend(swept);
        let goes_on = left == 0 || count == ROOMS_PER_SWEEP;
        self.swept_room = if goes_on { swept_room } else { 0 };
        self.next_sweep = (!goes_on).then_some(now + SWEEP_INTERVAL);
        Ok(goes_on)
    }
}

impl Drop for Database {
    /// Lets SQLite checkpoint and remove the WAL on close, but not after an error or a panic: a checkpoint would sync
    /// the file again, and the second fsync may succeed although the first has lost data.
    fn drop(&mut self) {
        // Set this option here, not after each batch: a change makes SQLite prepare all statements again (100 µs).
        let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !self.is_trusted);
    }
}

fn is_disk_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Ignores a full-disk error, which only delays deletions and checkpoints: committed messages are already in the WAL.
fn ignore_full(result: rusqlite::Result<()>) -> rusqlite::Result<()> {
    result.or_else(|error| if is_disk_full(&error) { Ok(()) } else { Err(error) })
}

/// Stores a message. Does not update the room's row: `update_rooms` does that once for several messages.
fn store<'b>(
    connection: &Connection,
    rooms: &mut BTreeMap<&'b str, ChangedRoom>,
    name: &'b str,
    message: &StoredMessage,
    run: i64,
) -> rusqlite::Result<Outcome> {
    let room = match rooms.entry(name) {
        Entry::Occupied(room) => room.into_mut(),
        Entry::Vacant(room) => {
            let mut statement = connection.prepare_cached(
                "INSERT INTO rooms (name, last_id, deleted_id, deleted_run) VALUES (?, 0, 0, 0)
                 ON CONFLICT (name) DO UPDATE SET last_id = last_id RETURNING id, last_id, deleted_id",
            )?;
            room.insert(statement.query_row([name], |row| {
                Ok(ChangedRoom { room: row.get(0)?, last_id: row.get(1)?, deleted_id: row.get(2)?, stored_count: 0 })
            })?)
        }
    };
    room.last_id += 1;
    room.stored_count += 1;
    let StoredMessage { time, username, text, nonce, .. } = message;
    connection
        .prepare_cached(
            "INSERT INTO messages (room, id, run, time, username, text, nonce) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![room.room, room.last_id, run, time, username, text, nonce])?;
    Ok(Outcome::Stored(room.last_id))
}

/// Stores the newest id of each changed room, and deletes messages beyond `keep`. Must be called before the batch's
/// next read, so that the read sees these changes.
fn update_rooms(connection: &Connection, rooms: &mut BTreeMap<&str, ChangedRoom>, keep: u64) -> rusqlite::Result<()> {
    for (_, ChangedRoom { room, last_id, deleted_id, stored_count }) in std::mem::take(rooms) {
        connection.prepare_cached("UPDATE rooms SET last_id = ? WHERE id = ?")?.execute(params![last_id, room])?;
        let surplus = if keep == 0 { 0 } else { last_id.saturating_sub(keep).saturating_sub(deleted_id) };
        if surplus > 0 {
            delete_until(connection, room, deleted_id + surplus.min(stored_count * DELETES_PER_MESSAGE))?;
        }
    }
    Ok(())
}

/// Deletes a room's messages up to and including the message `id`. Records, in the table `rooms`, this id and the
/// server run that stored the message.
fn delete_until(connection: &Connection, room: i64, id: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE rooms SET deleted_id = ?2, deleted_run = (SELECT run FROM messages WHERE room = ?1 AND id = ?2)
             WHERE id = ?1",
        )?
        .execute(params![room, id])?;
    connection.prepare_cached("DELETE FROM messages WHERE room = ?1 AND id <= ?2")?.execute(params![room, id])?;
    Ok(())
}

/// Creates the schema in an empty file. Must run before WAL mode is on, so that SQLite writes the application id and
/// schema version to the header of the file itself. [`check_header`] can read them there even after a crash.
fn create_schema(connection: &mut Connection) -> rusqlite::Result<()> {
    let is_empty: bool = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if is_empty {
        // Set `auto_vacuum`, the application id and the schema version in one transaction: a crash must not leave a
        // header with only some of them. Defer the write lock: a transaction that holds it cannot set `auto_vacuum`.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
        transaction.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.execute_batch(SCHEMA)?;
        transaction.commit()?;
    }
    Ok(())
}
