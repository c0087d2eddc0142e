//! Queries on the history file: a room's newest messages, pages, the messages that a client missed, and duplicates.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::database::{Operation, Outcome, StoredMessage};
use crate::broker::log::JSON_OVERHEAD;

/// Executes an operation without writing to the file. A new message is not stored, and its outcome is `DiskFull`.
pub fn execute_read(connection: &Connection, operation: &Operation) -> rusqlite::Result<Outcome> {
    match operation {
        Operation::Store { room, message } => {
            let original = find_duplicate(connection, room, message)?;
            Ok(original.map_or(Outcome::DiskFull, Outcome::Duplicate))
        }
        Operation::Load { room, limit, max_bytes } => read(connection, room, u64::MAX, *limit, *max_bytes),
        Operation::Page { room, before, limit, max_bytes } => read(connection, room, *before, *limit, *max_bytes),
        Operation::Resume { room, epoch, since, max_bytes } => resume(connection, room, epoch, *since, *max_bytes),
        Operation::Wait | Operation::Ban(_) => Ok(Outcome::Waited), // no caller passes `Ban`
    }
}

pub fn find_duplicate(
    connection: &Connection,
    room: &str,
    message: &StoredMessage,
) -> rusqlite::Result<Option<StoredMessage>> {
    let Some(nonce) = &message.nonce else { return Ok(None) };
    let mut statement = connection.prepare_cached(
        "SELECT id, time, username, text, nonce FROM messages
         WHERE room = (SELECT id FROM rooms WHERE name = ?1) AND username = ?2 AND nonce = ?3",
    )?;
    statement.query_row(params![room, message.username, nonce], read_message).optional()
}

/// Reads a room's newest messages with ids less than `before`, until `limit` or `max_bytes` is reached. Returns the
/// messages with the oldest first.
fn read(connection: &Connection, room: &str, before: u64, limit: usize, max_bytes: usize) -> rusqlite::Result<Outcome> {
    let (room, last_id): (i64, u64) = connection
        .prepare_cached("SELECT id, last_id FROM rooms WHERE name = ?")?
        .query_row([room], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .unwrap_or_default();
    let (before, mut messages, mut bytes) = (before.min(last_id + 1), Vec::<StoredMessage>::new(), 0);
    let mut statement = connection.prepare_cached(
        "SELECT id, time, username, text, nonce FROM messages WHERE room = ? AND id < ? ORDER BY id DESC LIMIT ?",
    )?;
    for message in statement.query_map(params![room, before, limit], read_message)? {
        let message = message?;
        // Stop at a gap in the ids, which an edited file may have. Read one message beyond `max_bytes`: the extra
        // message tells the caller that older messages exist.
        if message.id + messages.len() as u64 + 1 != before || bytes > max_bytes && messages.len() > 1 {
            break;
        }
        bytes += message.json_len();
        messages.push(message);
    }
    messages.reverse();
    Ok(Outcome::Messages { last_id, messages })
}

/// Reads all messages with an id above `since`, for a client that last joined the room during server run `epoch`.
/// Returns `NotResumable` if the file does not contain that run, if `since` is above the newest id, if any of these
/// messages is missing, if they exceed `max_bytes`, or if a later run than `epoch` stored the message with the id
/// `since`: the client may have seen a different message with that id. See the table in the parent module.
fn resume(connection: &Connection, room: &str, epoch: &str, since: u64, max_bytes: usize) -> rusqlite::Result<Outcome> {
    let limit = max_bytes / JSON_OVERHEAD;
    let mut statement = connection.prepare_cached("SELECT number FROM runs WHERE name = ?")?;
    let Some(known) = statement.query_row([epoch], |row| row.get::<_, i64>(0)).optional()? else {
        return Ok(Outcome::NotResumable);
    };
    let (room, last_id, deleted_id, deleted_run): (i64, u64, u64, i64) = connection
        .prepare_cached("SELECT id, last_id, deleted_id, deleted_run FROM rooms WHERE name = ?")?
        .query_row([room], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?
        .unwrap_or_default();
    if since < deleted_id || since > last_id || last_id - since > limit as u64 {
        return Ok(Outcome::NotResumable);
    }
    let run = if since == deleted_id {
        deleted_run
    } else {
        let mut statement = connection.prepare_cached("SELECT run FROM messages WHERE room = ? AND id = ?")?;
        statement.query_row(params![room, since], |row| row.get(0)).optional()?.unwrap_or(i64::MAX)
    };
    if run > known {
        return Ok(Outcome::NotResumable);
    }
    let mut statement = connection
        .prepare_cached("SELECT id, time, username, text, nonce FROM messages WHERE room = ? AND id > ? ORDER BY id")?;
    let (mut messages, mut bytes) = (Vec::<StoredMessage>::new(), 0);
    for message in statement.query_map(params![room, since], read_message)? {
        let message = message?;
        bytes += message.json_len();
        if bytes > max_bytes || message.id != since + messages.len() as u64 + 1 {
            return Ok(Outcome::NotResumable);
        }
        messages.push(message);
    }
    let is_complete = messages.len() as u64 == last_id - since;
    Ok(if is_complete { Outcome::Messages { last_id, messages } } else { Outcome::NotResumable })
}

pub fn read_message(row: &Row) -> rusqlite::Result<StoredMessage> {
    Ok(StoredMessage {
        id: row.get(0)?,
        time: row.get(1)?,
        username: row.get(2)?,
        text: row.get(3)?,
        nonce: row.get(4)?,
    })
}
