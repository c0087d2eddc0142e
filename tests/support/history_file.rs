//! Reads, copies and changes a `--history-db` file, and finds the offsets at which a power failure could cut its
//! write-ahead log (WAL).
#![allow(dead_code)] // each test binary uses only part of this module

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::support::Server;

/// A temporary directory for one test. On drop, the directory is removed, unless the test has failed.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new(name: &str) -> Directory {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("durable-{}-{number}-{name}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        Directory(path)
    }

    pub fn file(&self, name: &str) -> HistoryFile {
        HistoryFile { path: self.0.join(name) }
    }

    /// Returns the contents of each file in the directory, by file name. Ignores subdirectories.
    pub fn contents(&self) -> BTreeMap<OsString, Vec<u8>> {
        let entries = fs::read_dir(&self.0).expect("a directory").map(|entry| entry.expect("an entry"));
        let files = entries.filter(|entry| entry.file_type().expect("a type").is_file());
        files.map(|entry| (entry.file_name(), fs::read(entry.path()).expect("a file"))).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[derive(Debug, Clone)]
pub struct HistoryFile {
    pub path: PathBuf,
}

#[derive(Debug, Default, Clone, PartialEq)]
pub struct Rows {
    /// The data of each `message` event, by room and id.
    pub messages: BTreeMap<(String, u64), Value>,
    pub last_ids: BTreeMap<String, u64>,
    pub epochs: Vec<String>,
}

impl HistoryFile {
    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path in UTF-8")
    }

    /// Starts a server that stores its history in the file at `self.path` and does not limit the message rate.
    pub fn start(&self, args: &[&str]) -> Server {
        Server::start(&[&["--rate-limit", "0", "--history-db", self.path()], args].concat())
    }

    /// Returns the path of the history file with a suffix such as `-wal`.
    pub fn path_with_suffix(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    pub fn wal(&self) -> Wal {
        Wal(fs::read(self.path_with_suffix("-wal")).unwrap_or_default())
    }

    pub fn remove(&self) {
        for suffix in ["", "-wal", "-journal", "-shm"] {
            let _ = fs::remove_file(self.path_with_suffix(suffix));
        }
    }

    /// Copies the file, its WAL and its rollback journal to another path. Replaces any files that are already there.
    pub fn copy_to(&self, to: &HistoryFile) {
        to.remove();
        for suffix in ["", "-wal", "-journal"] {
            if self.path_with_suffix(suffix).exists() {
                fs::copy(self.path_with_suffix(suffix), to.path_with_suffix(suffix)).expect("a copy");
            }
        }
    }

    /// Reads all rows. No server may have the file open. Reading may move messages from the WAL into the file.
    pub fn rows(&self) -> Rows {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("a file");
        let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
        assert_eq!(check, "ok", "{}", self.path.display());
        let mut rows = Rows::default();
        let mut statement = connection
            .prepare("SELECT rooms.name, messages.id, time, username, text, nonce FROM messages JOIN rooms ON rooms.id = room")
            .expect("the schema");
        let mut messages = statement.query([]).expect("messages");
        while let Some(row) = messages.next().expect("a row") {
            let (room, id): (String, u64) = (row.get(0).expect("a room"), row.get(1).expect("an id"));
            let column = |number: usize| row.get::<_, String>(number).expect("a text");
            let mut message = json!({"id": id, "time": column(2), "username": column(3), "text": column(4)});
            if let Some(nonce) = row.get::<_, Option<String>>(5).expect("a nonce or NULL") {
                message["nonce"] = json!(nonce);
            }
            rows.messages.insert((room, id), message);
        }
        let mut statement = connection.prepare("SELECT name, last_id FROM rooms").expect("the schema");
        let last_ids = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rooms");
        rows.last_ids = last_ids.map(|row| row.expect("a room")).collect();
        let mut statement = connection.prepare("SELECT name FROM runs ORDER BY number").expect("the schema");
        rows.epochs = statement.query_map([], |row| row.get(0)).expect("runs").map(|row| row.expect("a run")).collect();
        rows
    }

    /// Like [`HistoryFile::rows`], but reads a copy, so that the next server finds the file exactly as the last
    /// server left it.
    pub fn rows_of_copy(&self) -> Rows {
        let copy = HistoryFile { path: self.path_with_suffix("-copy") };
        self.copy_to(&copy);
        let rows = copy.rows();
        copy.remove();
        rows
    }

    /// Executes SQL on the file. No server may have the file open.
    pub fn execute(&self, sql: &str) {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("a file");
        connection.execute_batch(sql).expect("a change");
    }
}

impl Rows {
    /// Checks the rows of a file from which the server has deleted no messages: the ids of each room are 1, 2, 3 …
    /// up to its last id, and no user has used a nonce twice in a room.
    pub fn check(&self) {
        for (room, last_id) in &self.last_ids {
            let ids: Vec<u64> = self.messages.keys().filter(|key| key.0 == *room).map(|key| key.1).collect();
            assert_eq!(ids, (1..=*last_id).collect::<Vec<_>>(), "the ids of {room}");
        }
        let mut nonces = BTreeMap::new();
        for ((room, id), message) in self.messages.iter().filter(|(_, message)| message["nonce"].is_string()) {
            let key = (room, message["username"].to_string(), message["nonce"].to_string());
            if let Some(first) = nonces.insert(key, id) {
                panic!("{room}: messages {first} and {id} have the same nonce: {message}");
            }
        }
    }

    /// Returns the messages of one room, ordered by id.
    pub fn messages_in(&self, room: &str) -> Vec<Value> {
        self.messages.iter().filter(|(key, _)| key.0 == room).map(|(_, message)| message.clone()).collect()
    }
}

/// The bytes of a WAL: a 32-byte header, then frames, each with a 24-byte header and a page. When SQLite restarts the
/// WAL, it writes new salts to the header and overwrites frames from the start, so old frames remain after new ones.
/// See <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.
pub struct Wal(pub Vec<u8>);

const WAL_HEADER_LEN: usize = 32;

impl Wal {
    pub fn salts(&self) -> Option<&[u8]> {
        self.0.get(16..24)
    }

    pub fn frame_len(&self) -> usize {
        let size = self.0.get(8..12).expect("a header");
        24 + size.iter().fold(0, |size, byte| size << 8 | usize::from(*byte))
    }

    /// Returns the number of bytes up to the end of the last frame that has the same salts as the header.
    pub fn valid_len(&self) -> usize {
        let Some(salts) = self.salts() else { return self.0.len() };
        let mut len = WAL_HEADER_LEN;
        while self.0.get(len + 8..len + 16) == Some(salts) {
            len += self.frame_len();
        }
        len.min(self.0.len())
    }

    /// Returns the end offsets of the WAL header and of each valid frame, omitting offsets below `start`.
    pub fn frame_ends(&self, start: usize) -> Vec<usize> {
        let ends = (WAL_HEADER_LEN..=self.valid_len()).step_by(self.frame_len());
        ends.filter(|end| *end >= start).collect()
    }
}
