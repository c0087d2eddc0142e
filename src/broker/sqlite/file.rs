//! Opens a history file, and checks it before SQLite can change it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub const APPLICATION_ID: u32 = 0x7769_7265; // "wire" in ASCII
pub const SCHEMA_VERSION: u32 = 1;
pub const DAMAGED: &str = "the file is damaged"; // error prefix that `wirechat history check` recognizes
const LEGACY_FORMAT: u8 = 1; // the write version in the file header if the database does not use a WAL

pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let has_wal = has_wal(path);
    let connection = Connection::open_with_flags(literal_path(path), flags)?;
    // If the file has a WAL, disable the checkpoint on close: the checkpoint would change a file that may be damaged.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_wal)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?; // with an exclusive lock, a WAL needs no `-shm` file
    Ok(connection)
}

/// Prefixes a relative path with `./`, so that SQLite does not interpret a file name such as `:memory:`.
pub fn literal_path(path: &Path) -> PathBuf {
    Path::new(".").join(path)
}

/// Creates an empty file for SQLite to fill. Only the file's owner can read the file, because messages are private.
pub fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

/// Checks a file's header before SQLite opens the file: even a read by SQLite may change another program's database.
pub fn check_header(path: &Path) -> Result<(), String> {
    let mut header = Vec::new();
    // Reject a named pipe without opening it: `File::open` would block until another process opens the pipe.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err("this is not a regular file".into());
    }
    match File::open(path).and_then(|file| file.take(100).read_to_end(&mut header)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Err("this is a directory".into()),
        Err(error) => return Err(format!("cannot read the file: {error}")),
        Ok(0) => return Ok(()),
        Ok(_) => {}
    }
    // The header of an SQLite file: https://www.sqlite.org/fileformat.html, section 1.3
    let number =
        |at: usize| header.get(at..at + 4).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    match (header.starts_with(b"SQLite format 3\0"), number(68), number(60)) {
        // Reject a WAL that another copy of this file left behind: SQLite would apply the WAL and damage the file.
        (true, Some(APPLICATION_ID), Some(SCHEMA_VERSION)) if header[18] == LEGACY_FORMAT && has_wal(path) => {
            Err(format!("{}-wal belongs to another copy of this file; remove it", path.display()))
        }
        (true, Some(APPLICATION_ID), Some(SCHEMA_VERSION)) => Ok(()),
        (true, Some(APPLICATION_ID), Some(version)) => {
            Err(format!("a newer wirechat wrote this file (version {version}, this one reads {SCHEMA_VERSION})"))
        }
        (true, Some(_), _) => Err("this database belongs to another program".into()),
        _ => Err("this is not a SQLite database".into()),
    }
}

/// Whether the database has a write-ahead log (WAL) that is not empty, for example because a server was killed.
fn has_wal(path: &Path) -> bool {
    let Ok(mut wal) = path.canonicalize().map(PathBuf::into_os_string) else { return false };
    wal.push("-wal");
    Path::new(&wal).metadata().is_ok_and(|metadata| metadata.len() > 0)
}

pub fn failure(code: ErrorCode, message: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error { code, extended_code: 0 }, Some(message))
}

/// Describes an SQLite error in one line for the operator.
pub fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another process uses this file".into(),
        Some(ErrorCode::ReadOnly) => "the file is read-only".into(),
        // Join the lines: SQLite's integrity check reports damage on several lines.
        Some(ErrorCode::DatabaseCorrupt) => format!("{DAMAGED}: {}", error.to_string().replace('\n', " ")),
        Some(ErrorCode::SystemIoFailure) => format!("cannot read or write the file and its directory: {error}"),
        Some(ErrorCode::NotADatabase) => "this is not a SQLite database".into(),
        _ => error.to_string(),
    }
}
