//! Stores the operator's bans in the history file, so that the bans survive a restart.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};

use super::database::Operation;

const MAX_BAN_END: u64 = 253_402_300_800; // Unix time of the year 10000; a later time could overflow `SystemTime`

/// The server also adds this table to a history file from an earlier version. That version can still use the file, but
/// ignores the bans.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS bans (
    subject TEXT PRIMARY KEY,           -- what the operator has banned, such as `address 192.0.2.7`
    until INTEGER NOT NULL              -- Unix time in seconds
) STRICT, WITHOUT ROWID;
";

/// Each banned subject, with the time at which the ban ends.
pub type BanList = Vec<(String, SystemTime)>;

/// A request to set or lift one ban.
#[derive(Debug)]
pub struct BanChange {
    pub subject: String,
    pub until: Option<SystemTime>, // `None` lifts the ban
    pub now: SystemTime,
    // Sends `true` if the change was stored, or `false` if the disk is full. On any other error, this sender is dropped
    // without sending a value.
    pub result_sender: Sender<bool>,
}

/// Submits a new, changed or lifted ban. The arguments are the subject, when the ban ends (`None` lifts the ban), and
/// the current time. The receiver gets `true` once the change is stored.
pub type StoreBan = Box<dyn Fn(String, Option<SystemTime>, SystemTime) -> Receiver<bool>>;

/// Submits bans to the writer thread, through a weak reference that does not keep the thread alive.
pub struct BanSubmitter(pub Weak<Sender<Operation>>);

impl BanSubmitter {
    pub fn submit(&self, subject: String, until: Option<SystemTime>, now: SystemTime) -> Receiver<bool> {
        let (result_sender, receiver) = channel();
        let operation = Operation::Ban(BanChange { subject, until, now, result_sender });
        if let Some(operations) = self.0.upgrade() {
            let _ = operations.send(operation); // if the writer thread has failed, `receiver` finds its channel closed
        }
        receiver
    }
}

/// Reads the bans that are still in force.
pub fn load(connection: &Connection, now: SystemTime) -> rusqlite::Result<BanList> {
    let mut statement = connection.prepare("SELECT subject, until FROM bans WHERE until > ? AND until < ?")?;
    let rows = statement.query_map([unix_seconds(now), MAX_BAN_END], |row| {
        Ok((row.get(0)?, SystemTime::UNIX_EPOCH + Duration::from_secs(row.get(1)?)))
    })?;
    rows.collect()
}

/// Applies a change, and deletes all expired bans.
pub fn apply(connection: &Connection, change: &BanChange) -> rusqlite::Result<()> {
    let BanChange { subject, until, now, .. } = change;
    connection.execute("DELETE FROM bans WHERE until <= ? OR subject = ?", params![unix_seconds(*now), subject])?;
    if let Some(until) = until {
        connection
            .execute("INSERT INTO bans (subject, until) VALUES (?, ?)", params![subject, unix_seconds(*until)])?;
    }
    Ok(())
}

/// Rounds up, so that a ban does not end early.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64().ceil() as u64
}
