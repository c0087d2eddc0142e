//! Reads a history file for `wirechat history`, while no server is using the file.

use std::io::ErrorKind;
use std::path::Path;

use rusqlite::Connection;

use super::database::StoredMessage;
use super::file::{check_header, connect, create, explain, literal_path};
use super::queries::read_message;

pub struct HistoryReader(Connection);

impl HistoryReader {
    /// Opens a history file. `Err` is a one-line error text for the user.
    pub fn open(path: &Path) -> Result<HistoryReader, String> {
        if !path.exists() {
            return Err("there is no such file".into());
        }
        check_header(path)?;
        let open = || {
            let connection = connect(path)?;
            // This query fails while a server holds its lock on the file.
            connection.query_row("SELECT count(*) FROM rooms", [], |_| Ok(()))?;
            Ok(HistoryReader(connection))
        };
        open().map_err(|error| explain(&error))
    }

    /// Checks the file for damage. Returns the number of rooms and the number of messages. `Err` describes the damage.
    pub fn check(&mut self) -> Result<(u64, u64), String> {
        let count = |sql: &str| self.0.query_row(sql, [], |row| row.get::<_, u64>(0));
        let check = || {
            let result: String = self.0.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            let counts = (count("SELECT count(*) FROM rooms")?, count("SELECT count(*) FROM messages")?);
            Ok(if result == "ok" { Ok(counts) } else { Err(result) })
        };
        check().unwrap_or_else(|error: rusqlite::Error| Err(explain(&error)))
    }

    /// Writes a compact copy of the database to `path`. Fails if a file with this path already exists.
    pub fn copy_to(&mut self, path: &Path) -> Result<(), String> {
        let name = literal_path(path).into_os_string().into_string().map_err(|_| "the path is not UTF-8".to_owned())?;
        create(path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => format!("{} already exists", path.display()),
            _ => format!("cannot create {}: {error}", path.display()),
        })?;
        self.0.execute("VACUUM INTO ?", [name]).map(drop).map_err(|error| {
            let _ = std::fs::remove_file(path); // a failed VACUUM leaves an incomplete copy
            explain(&error)
        })
    }

    pub fn room_names(&self) -> Result<Vec<String>, String> {
        let names = || {
            let mut statement = self.0.prepare("SELECT name FROM rooms ORDER BY name")?;
            statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()
        };
        names().map_err(|error| explain(&error))
    }

    /// Calls `visit` for each message of a room, oldest first, until `visit` returns `false`.
    pub fn for_each_message(&self, room: &str, mut visit: impl FnMut(StoredMessage) -> bool) -> Result<(), String> {
        let mut read = || {
            let mut statement = self.0.prepare(
                "SELECT messages.id, time, username, text, nonce FROM messages JOIN rooms ON rooms.id = room
                 WHERE name = ? ORDER BY messages.id",
            )?;
            for message in statement.query_map([room], read_message)? {
                if !visit(message?) {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|error: rusqlite::Error| explain(&error))
    }
}
