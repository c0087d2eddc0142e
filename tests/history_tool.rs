//! Tests `wirechat history`: exporting a history file as text and JSON, checking the file, and backing it up.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/history_file.rs"]
mod history_file;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use history_file::Directory;
use serde_json::{Value, json};
use support::users::events_path;
use support::{RawClient, Server};

/// The directory in which a test runs its server and its `wirechat history` commands.
struct Folder(Directory);

impl Folder {
    fn new(name: &str) -> Folder {
        Folder(Directory::new(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    fn history(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        command.arg("history").args(arguments).current_dir(&self.0.0).output().unwrap()
    }

    /// Runs `wirechat history`, which must succeed. Returns its stdout.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.history(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `wirechat history`, which must fail with exit code 2. Returns its stderr.
    fn error(&self, arguments: &[&str]) -> String {
        let output = self.history(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    fn start(&self) -> Server {
        let args = ["--rate-limit", "0", "--history-db", "chat.db"];
        Server::launch(Server::command("127.0.0.1:0", &args).current_dir(&self.0.0))
    }
}

/// Sends a message, and returns the data of the resulting `message` event.
fn say(client: &mut RawClient, text: &str) -> Value {
    client.send_text(&json!({"event": "message", "data": {"text": text, "nonce": text}}).to_string());
    client.read_event("message")
}

/// The export must escape control characters. Otherwise a message could send escape sequences to a terminal.
#[test]
fn control_characters() {
    let folder = Folder::new("controls");
    let server = folder.start();
    let mut ann = server.upgrade(&events_path("ann", "tea"));
    say(&mut ann, "red \u{1b}[31m alert");
    drop(server);
    let printed = folder.run(&["chat.db", "export"]);
    assert!(printed.contains("alert") && !printed.trim_end().contains(char::is_control), "{printed:?}");
}

/// Writes a history file with two rooms, and kills the server, so that the messages stay in the write-ahead log (WAL).
/// Returns the messages.
fn write_history(folder: &Folder) -> [Value; 3] {
    let server = folder.start();
    let mut ann = server.upgrade(&events_path("ann", "tea"));
    let mut bob = server.upgrade(&events_path("bob", "a b"));
    [say(&mut ann, "one"), say(&mut ann, "two\nlines"), say(&mut bob, "three")]
}

#[test]
fn export() {
    let folder = Folder::new("export");
    let messages = write_history(&folder);
    let time = |message: &Value| message["time"].as_str().unwrap().to_owned();
    let [one, two, three] = &messages;
    let tea = format!("{} #tea ann: one\n{} #tea ann: two\n    lines\n", time(one), time(two));
    assert_eq!(folder.run(&["chat.db", "export", "--room", "tea"]), tea);
    let all = format!("{} #a b bob: three\n{tea}", time(three));
    assert_eq!(folder.run(&["chat.db", "export"]), all);
    let lines = folder.run(&["chat.db", "export", "--json"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, (room, message)) in lines.iter().zip([("a b", three), ("tea", one), ("tea", two)]) {
        let mut expected = message.clone();
        expected["room"] = room.into();
        assert_eq!(*line, expected);
    }
    assert_eq!(lines.len(), 3);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let export = Command::new(env!("CARGO_BIN_EXE_wirechat"))
        .args(["history", "chat.db", "export"])
        .current_dir(&folder.0.0)
        .stdout(full)
        .output()
        .unwrap();
    let error = String::from_utf8(export.stderr).unwrap();
    assert!(export.status.code() == Some(2) && error.contains("cannot write to stdout"), "{error}");
    assert!(folder.error(&["chat.db", "export", "--room", "Tea"]).contains("there is no room \"Tea\""));
}

#[test]
fn backup() {
    let folder = Folder::new("backup");
    write_history(&folder);
    assert_eq!(folder.run(&["chat.db", "backup", "copy.db"]), "");
    for file in ["chat.db", "chat.db-wal", "copy.db"] {
        let mode = std::fs::metadata(folder.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "only the owner may read {file}");
    }
    assert_eq!(folder.run(&["copy.db", "export"]), folder.run(&["chat.db", "export"]));
    assert!(folder.error(&["chat.db", "backup", "copy.db"]).contains("copy.db already exists"));
    assert!(folder.error(&["chat.db", "backup", "no/folder/copy.db"]).contains("chat.db: "));
    // A server that starts with the backup copy continues the sequence of message ids.
    std::fs::rename(folder.path("copy.db"), folder.path("chat.db")).unwrap();
    let _ = std::fs::remove_file(folder.path("chat.db-wal"));
    let server = folder.start();
    let mut ann = server.upgrade(&events_path("ann", "tea"));
    assert_eq!(ann.read_event("welcome")["last_id"], 2);
    assert_eq!(say(&mut ann, "four")["id"], 3);
}

#[test]
fn check() {
    let folder = Folder::new("check");
    write_history(&folder);
    assert_eq!(folder.run(&["chat.db", "check"]), "chat.db is sound: 3 messages in 2 rooms\n");
    folder.run(&["chat.db", "backup", "copy.db"]);
    let path = folder.path("copy.db"); // the copy has no WAL, so SQLite must read the page that this test damages
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    let output = folder.history(&["copy.db", "check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("copy.db is damaged: "));
    assert!(folder.error(&["copy.db", "backup", "again.db"]).contains("damaged"));
    assert!(!folder.path("again.db").exists(), "no incomplete copy is left");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(folder.history(&["copy.db", "check"]).status.code(), Some(1), "a truncated file");
}

#[test]
fn help() {
    let folder = Folder::new("help");
    assert!(folder.error(&[]).lines().count() == 1);
    assert!(folder.error(&["chat.db"]).contains("export, check, backup"));
    for (command, option) in [("export", "--room"), ("check", "--help"), ("backup", "<TO>")] {
        assert!(folder.run(&["chat.db", command, "--help"]).contains(option));
    }
}

#[test]
fn files_that_cannot_be_used() {
    let folder = Folder::new("unusable");
    std::fs::write(folder.path("text"), "not a database").unwrap();
    for (file, error) in
        [("missing.db", "there is no such file"), ("text", "not a SQLite database"), (".", "directory")]
    {
        assert!(folder.error(&[file, "check"]).contains(error), "{file}");
        assert!(folder.error(&[file, "export"]).contains(error), "{file}");
    }
    assert!(!folder.path("missing.db").exists());
    let server = folder.start();
    server.upgrade(&events_path("ann", "tea")).read_event("welcome");
    assert!(folder.error(&["chat.db", "export"]).contains("another process uses this file"));
}
