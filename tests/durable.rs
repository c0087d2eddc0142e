//! Tests durable history (PROTOCOL.md, section 5.1): the real server with a real file survives kills, simulated power
//! failures, restored backups, and full, failing or stalled disks. A kill or a power failure loses no acknowledged
//! message. The server stores no message twice, and reports `resumed: true` only if it sends all missed messages.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/history_file.rs"]
mod history_file;
#[path = "support/stall.rs"]
mod stall;
mod support;
#[path = "support/survivors.rs"]
mod survivors;

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Write};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crowd::Crowd;
use fastrand::Rng;
use history_file::{Directory, HistoryFile};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use stall::Stall;
use support::http::handshake;
use support::table::each_row;
use support::users::{Dialect, User, encode, events_path};
use support::{Server, masked, print_skipped, wait_until};
use survivors::{Survivors, message};

const CLIENTS: usize = 64;
const ROOMS: usize = 5;
const LIMIT: Duration = Duration::from_secs(120);

/// Returns a random number generator and its seed: `WIRECHAT_SEED`, or a random seed. Prints the seed, so that a
/// failed test can be repeated.
fn seeded_rng() -> (Rng, u64) {
    let seed = std::env::var("WIRECHAT_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    println!("WIRECHAT_SEED={seed}");
    (Rng::with_seed(seed), seed)
}

fn kill(server: &mut Server) {
    kill_process(Pid::from_raw(server.pid().cast_signed()).expect("a process"), Signal::KILL).expect("it runs");
    server.wait();
}

/// Stops the server with SIGTERM, and expects exit status 0.
fn stop(server: &mut Server) {
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

/// Joins a room. `resume` contains the resume parameters of the URL, if any. Returns the user and the data of the
/// `welcome` event.
fn join(server: &Server, name: &str, room: &str, resume: &str) -> (User, Value) {
    let path = format!("{}{resume}", events_path(name, room));
    let mut user = User::at(server, Dialect::Events, &path, name);
    let welcome = user.expect_event("welcome", json!({"room": room}));
    (user, welcome)
}

/// Joins as user `guest`, leaves again, and returns the data of the `welcome` event.
fn welcome(server: &Server, room: &str, resume: &str) -> Value {
    let (user, welcome) = join(server, "guest", room, resume);
    user.leave();
    welcome
}

fn since(epoch: &str, id: usize) -> String {
    format!("&epoch={}&since={id}", encode(epoch))
}

fn epoch(welcome: &Value) -> String {
    welcome["epoch"].as_str().expect("an epoch").to_owned()
}

fn ids(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().unwrap_or_else(|| panic!("a list of messages: {messages}"));
    messages.iter().map(|message| message["id"].as_u64().expect("an id")).collect()
}

/// Sends each text as a message, with the text as its nonce. Receives and returns the data of the `message` events.
/// Skips `joined` and `left` events.
fn publish<T: ToString>(user: &mut User, texts: impl IntoIterator<Item = T>) -> Vec<Value> {
    let texts: Vec<String> = texts.into_iter().map(|text| text.to_string()).collect();
    user.client.send(&texts.iter().flat_map(|text| message(text, text)).collect::<Vec<_>>());
    texts.iter().map(|text| receive_message(user, text)).collect()
}

fn receive_message(user: &mut User, nonce: &str) -> Value {
    loop {
        let mut received = user.receive();
        if received["event"] == "message" {
            assert_eq!(received["data"]["nonce"], nonce, "{received}");
            return received["data"].take();
        }
        assert!(received["event"] == "joined" || received["event"] == "left", "{received}");
    }
}

// --------------------------------------------------------------------------------------------------------- kill -9

/// Starts the server and kills it within 40 ms, possibly before the server has opened the history file.
fn start_and_kill(file: &HistoryFile, random: &mut Rng) {
    let mut command = Server::command("127.0.0.1:0", &["--history-db", file.path()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
    std::thread::sleep(Duration::from_micros(random.u64(..40_000)));
    child.kill().expect("a child");
    child.wait().expect("a child");
}

#[test]
fn kills_at_random_moments() {
    let rounds = std::env::var("WIRECHAT_KILL_ROUNDS").map_or(20, |rounds| rounds.parse().expect("a number"));
    let (mut random, seed) = seeded_rng();
    let directory = Directory::new("kills");
    let file = directory.file("history.db");
    let (mut survivors, start) = (Survivors::new(CLIENTS, ROOMS, seed), Instant::now());
    for round in 0..rounds {
        if random.u8(..3) == 0 {
            start_and_kill(&file, &mut random);
        }
        // Killing the process loses no committed message, even with `normal`, which does not fsync each commit.
        let sync = if random.bool() { "full" } else { "normal" };
        let mut server = file.start(&["--history-keep", "0", "--history-sync", sync]);
        let mut crowd = Crowd::new(Instant::now() + LIMIT);
        // After round 0, each client skips a round with a probability of 1 in 10.
        let present: Vec<usize> = (0..CLIENTS).filter(|_| round == 0 || random.u8(..10) > 0).collect();
        survivors.connect(&mut crowd, &server, present);
        // How many messages the server acknowledges before the kill. If 0, the kill may precede the first join. If
        // 1500, the server has checkpointed the WAL by then.
        let count =
            [0, random.usize(..50), random.usize(..400), 1500][[0, 1, 1, 1, 2, 2, 2, 2, 2, 3][random.usize(..10)]];
        let goal = survivors.acknowledged + count;
        let talk = AssertUnwindSafe(|| survivors.talk_until(&mut crowd, goal));
        if let Err(panic) = catch_unwind(talk) {
            println!("round {round}, the server is running: {}, its log: {}", server.is_running(), server.log());
            resume_unwind(panic);
        }
        std::thread::sleep(Duration::from_micros(random.u64(..3000)));
        kill(&mut server);
        survivors.read_to_end(&mut crowd);
        if round < 20 || round % 20 == 0 {
            survivors.check(&file.rows_of_copy());
        }
    }
    let mut server = file.start(&["--history-keep", "0"]);
    let mut crowd = Crowd::new(Instant::now() + LIMIT);
    survivors.connect(&mut crowd, &server, 0..CLIENTS);
    survivors.settle(&mut crowd);
    stop(&mut server);
    let rows = file.rows();
    survivors.check(&rows);
    assert_eq!(rows.messages, survivors.messages, "the clients have received every stored message");
    println!(
        "{rounds} rounds, {} messages acknowledged, {} resumes, {:.0} s",
        survivors.acknowledged,
        survivors.resumed,
        start.elapsed().as_secs_f64()
    );
}

/// Kills the server at a random moment during its first start, which creates the file. A later start must succeed.
#[test]
fn kills_while_the_file_is_created() {
    let (mut random, _) = seeded_rng();
    let directory = Directory::new("creation");
    for _ in 0..30 {
        let file = directory.file("history.db");
        file.remove();
        start_and_kill(&file, &mut random);
        start_and_kill(&file, &mut random);
        let mut server = file.start(&[]);
        let (mut eve, _) = join(&server, "eve", "general", "");
        publish(&mut eve, ["hello"]);
        kill(&mut server);
        assert_eq!(file.rows().messages.len(), 1);
        let connection = Connection::open(&file.path).unwrap();
        let vacuum: u32 = connection.query_row("PRAGMA auto_vacuum", [], |row| row.get(0)).unwrap();
        assert_eq!(vacuum, 2, "auto_vacuum is INCREMENTAL");
    }
}

// ------------------------------------------------------------------------------------------- power failures, restores

/// What a client knows about a room: all messages up to the last one that it has seen, and the epoch with which it
/// resumes.
struct SeenHistory {
    epoch: String,
    messages: Vec<Value>,
}

/// Joins as a client that has received only the messages and the epoch in `seen`. The server must report
/// `resumed: true` if and only if the history file contains that epoch and still contains all those messages.
fn check_resume(server: &Server, room: &str, seen: &SeenHistory, stored: &[Value], epochs: &[String]) {
    let count = seen.messages.len();
    let is_true = stored.starts_with(&seen.messages) && epochs.contains(&seen.epoch);
    let welcome = welcome(server, room, &since(&seen.epoch, count));
    assert_eq!(welcome["resumed"], is_true, "{} since {count}, of {}: {welcome}", seen.epoch, stored.len());
    let start = if is_true { count } else { stored.len().saturating_sub(50) };
    assert_eq!(welcome["history"], json!(stored[start..]), "{} since {count}", seen.epoch);
    assert_eq!(welcome["last_id"], stored.len());
}

/// Starts a server on `copy`, a history file with a truncated WAL. The file must still contain at least the first
/// `acknowledged` messages of `all`.
fn check_truncated_copy(copy: &HistoryFile, acknowledged: usize, all: &SeenHistory, random: &mut Rng) {
    let mut server = copy.start(&[]);
    let rows = copy.rows_of_copy();
    rows.check();
    let mut stored = rows.messages_in("cut");
    assert!(stored.len() >= acknowledged, "{} messages of {acknowledged} are left", stored.len());
    assert!(all.messages.starts_with(&stored) || stored.starts_with(&all.messages), "the copy has other messages");
    let count = all.messages.len();
    let mut edges = vec![0, acknowledged, stored.len().saturating_sub(1), stored.len(), stored.len() + 1, count];
    edges.extend([random.usize(..=count), random.usize(..=count)]);
    edges.retain(|edge| *edge <= count);
    let seen = |count: &usize| SeenHistory { epoch: all.epoch.clone(), messages: all.messages[..*count].to_vec() };
    let seen: Vec<SeenHistory> = edges.iter().map(seen).collect();
    for seen in &seen {
        check_resume(&server, "cut", seen, &stored, &rows.epochs);
    }
    // Publish new messages. They reuse the ids of the messages that were lost when the WAL was truncated.
    let (mut eve, _) = join(&server, "eve", "cut", "");
    for text in 0..random.usize(1..4) + count.saturating_sub(stored.len()) {
        stored.extend(publish(&mut eve, [format!("other {text}")]));
    }
    seen.iter().for_each(|seen| check_resume(&server, "cut", seen, &stored, &rows.epochs));
    kill(&mut server);
    assert_eq!(copy.rows().messages_in("cut"), stored);
}

/// Simulates power failures by truncating the WAL. Truncation after the synced part loses no message that was
/// acknowledged before the sync. Truncation within the synced part simulates a disk that ignored an fsync: messages are
/// lost, but the server does not report `resumed: true` to a client that has seen a lost message.
#[test]
fn power_failures() {
    let (mut random, _) = seeded_rng();
    let directory = Directory::new("power");
    let (file, copy) = (directory.file("history.db"), directory.file("copy.db"));
    let mut stored: Vec<Value> = Vec::new();
    for round in 0..3 {
        let mut server = file.start(&["--history-sync", "full"]);
        let (mut eve, welcome) = join(&server, "eve", "cut", "");
        // The file may contain messages that the killed server stored, but did not send to eve.
        stored = file.rows_of_copy().messages_in("cut");
        assert_eq!(welcome["last_id"], stored.len());
        for burst in 0..random.usize(1..8) {
            let texts: Vec<String> = (0..random.usize(1..20)).map(|text| format!("{round}, {burst}, {text}")).collect();
            stored.extend(publish(&mut eve, &texts));
        }
        let (acknowledged, synced) = (stored.len(), file.wal());
        // `valid_len` ignores WAL frames that an earlier server wrote. Each server checkpoints the WAL at startup, so
        // its first write restarts the WAL with new salts, which the older frames do not have.
        let synced_len = synced.valid_len();
        for text in 0..60 {
            let text = format!("{round}, late {text}");
            eve.client.send(&message(&text, &text));
        }
        for text in 0..random.usize(..60) {
            stored.push(receive_message(&mut eve, &format!("{round}, late {text}")));
        }
        kill(&mut server);
        let wal = file.wal();
        assert_eq!(wal.salts(), synced.salts(), "the server has not restarted the WAL");
        let seen = SeenHistory { epoch: epoch(&welcome), messages: stored.clone() };
        let (late, all) = (wal.frame_ends(synced_len), wal.frame_ends(0));
        let mut cuts = vec![(synced_len, acknowledged), (wal.valid_len(), stored.len())];
        for _ in 0..4 {
            cuts.push((late[random.usize(..late.len())], acknowledged));
            cuts.push((random.usize(synced_len..=wal.valid_len()), acknowledged));
            cuts.push((all[random.usize(..all.len())], 0));
            cuts.push((random.usize(..=wal.valid_len()), 0));
        }
        for (len, acknowledged) in cuts {
            println!("round {round}: {len} of {} bytes, {synced_len} are synced", wal.valid_len());
            file.copy_to(&copy);
            fs::write(copy.path_with_suffix("-wal"), &wal.0[..len]).expect("a file");
            check_truncated_copy(&copy, acknowledged, &seen, &mut random);
        }
    }
    assert!(!stored.is_empty());
}

/// Copies the history file, both while the server runs and after it has ended, and later replaces the file with one of
/// the copies. A client may resume only if the restored file contains the client's epoch and every message that the
/// client has seen.
#[test]
fn restored_copies() {
    let (mut random, _) = seeded_rng();
    let directory = Directory::new("restore");
    let file = directory.file("history.db");
    let mut all_seen: Vec<SeenHistory> = Vec::new();
    let mut copies: Vec<(HistoryFile, Vec<Value>)> = Vec::new();
    let (mut stored, mut text) = (Vec::new(), 0);
    for _ in 0..25 {
        let mut server = file.start(&["--history-sync", "normal"]);
        let epochs = file.rows_of_copy().epochs;
        for _ in 0..12.min(all_seen.len()) {
            let seen = &all_seen[random.usize(..all_seen.len())];
            check_resume(&server, "restored", seen, &stored, &epochs);
        }
        // Record eve as a client that has seen all stored messages and knows this run's epoch from her `welcome`.
        let (mut eve, welcome) = join(&server, "eve", "restored", "");
        let epoch = epoch(&welcome);
        all_seen.push(SeenHistory { epoch: epoch.clone(), messages: stored.clone() });
        for _ in 0..random.usize(..5) {
            if random.u8(..4) == 0 {
                let copy = directory.file(&format!("copy-{}.db", copies.len()));
                file.copy_to(&copy);
                copies.push((copy, stored.clone()));
            }
            text += 1;
            stored.extend(publish(&mut eve, [text]));
            all_seen.push(SeenHistory { epoch: epoch.clone(), messages: stored.clone() });
        }
        drop(eve); // otherwise, `stop` would wait for eve to reply to the server's Close
        let end = if random.bool() { kill } else { stop };
        end(&mut server);
        if random.u8(..3) == 0 && !copies.is_empty() {
            let (copy, content) = &copies[random.usize(..copies.len())];
            copy.copy_to(&file);
            stored.clone_from(content);
        } else if random.u8(..4) == 0 {
            let copy = directory.file(&format!("copy-{}.db", copies.len()));
            file.copy_to(&copy);
            copies.push((copy, stored.clone()));
        }
    }
    let server = file.start(&[]);
    let epochs = file.rows_of_copy().epochs;
    all_seen.iter().for_each(|seen| check_resume(&server, "restored", seen, &stored, &epochs));
    println!("{} states of clients, {} copies", all_seen.len(), copies.len());
}

/// Restores a backup that lacks the latest messages. New messages then reuse the ids of the lost ones, as in the
/// example in the documentation of `broker::sqlite`.
#[test]
fn a_restored_copy() {
    let directory = Directory::new("example");
    let (file, copy) = (directory.file("history.db"), directory.file("copy.db"));
    let run = |texts: &[&str], resumes: &[(&str, usize, bool)]| {
        let mut server = file.start(&[]);
        for (epoch, id, resumed) in resumes {
            assert_eq!(welcome(&server, "general", &since(epoch, *id))["resumed"], *resumed, "{epoch} since {id}");
        }
        let (mut eve, welcome) = join(&server, "eve", "general", "");
        publish(&mut eve, texts);
        kill(&mut server);
        epoch(&welcome)
    };
    let a = run(&["1", "2"], &[]);
    file.copy_to(&copy);
    let b = run(&["3", "4"], &[(&a, 2, true), (&a, 1, true)]);
    run(&[], &[(&a, 2, true), (&b, 4, true), (&b, 2, true), (&a, 3, false)]);
    copy.copy_to(&file);
    run(&["other 3", "other 4"], &[(&a, 2, true), (&b, 4, false), (&b, 2, false)]);
    run(&[], &[(&a, 2, true), (&a, 0, true), (&a, 3, false), (&b, 3, false), (&b, 4, false), (&b, 0, false)]);
}

// ------------------------------------------------------------------------------------- full, failing, stalled disks

/// Starts a server whose history file is on a small tmpfs that only the server's mount namespace contains. Returns
/// the server and the path under `/proc` through which the test reaches the tmpfs, or `None` if the test is not
/// allowed to mount a file system.
fn start_on_small_disk(directory: &Path, size: &str, args: &[&str]) -> Option<(Server, std::path::PathBuf)> {
    let mount = format!("mount -t tmpfs -o size={size} tmpfs '{}'", directory.display());
    let can_mount = Command::new("unshare").args(["--map-root-user", "--mount", "bash", "-ec", &mount]).output();
    if !can_mount.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "WIRECHAT_NO_SKIP is set, but the test cannot mount");
        print_skipped("this test needs to mount a file system, with unshare --map-root-user --mount");
        return None;
    }
    let file = directory.join("history.db");
    let server = Server::command("127.0.0.1:0", args);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "bash", "-ec", &format!("{mount}; exec \"$0\" \"$@\"")]);
    command.arg(server.get_program()).args(server.get_args()).env_remove("RUST_LOG");
    let server = Server::launch(command.args(["--rate-limit", "0", "--history-db"]).arg(&file));
    let seen =
        Path::new("/proc").join(server.pid().to_string()).join("root").join(directory.strip_prefix("/").unwrap());
    Some((server, seen))
}

fn fill_disk(path: &Path) {
    let mut file = fs::File::create(path).expect("a file");
    for len in [64 * 1024, 4096, 1] {
        while file.write(&vec![b'x'; len]).is_ok_and(|len| len > 0) {}
    }
}

#[test]
fn a_full_disk() {
    let directory = Directory::new("full");
    let Some((mut server, disk)) = start_on_small_disk(&directory.0, "4m", &[]) else { return };
    let (mut eve, first) = join(&server, "eve", "general", "");
    let (mut bob, _) = join(&server, "bob", "general", "");
    let mut stored = publish(&mut eve, 1..=20);
    receive_messages(&mut bob, &stored);
    for round in 0..3 {
        let filler = disk.join("filler");
        fill_disk(&filler);
        // Even on a full disk, SQLite can store messages as long as it can checkpoint the WAL into the database file
        // and then reuse the WAL's space. Five rejections in a row show that neither file has space left.
        let mut rejected = Vec::new();
        for text in 0..3000 {
            let nonce = format!("{round}-{text}");
            eve.send(&json!({"event": "message", "data": {"text": nonce, "nonce": nonce}}).to_string());
            let received = eve.receive();
            if received["event"] == "message" {
                rejected.clear();
                receive_messages(&mut bob, &[received["data"].clone()]);
                stored.push(received["data"].clone());
            } else {
                let error = json!({"event": "error", "data": {"message": "Message not stored", "nonce": nonce}});
                assert_eq!(received, error);
                rejected.push(nonce);
            }
            if rejected.len() == 5 {
                break;
            }
        }
        assert_eq!(rejected.len(), 5, "the disk is full");
        check_reads_on_a_full_disk(&server, &mut eve, &mut bob, &stored);
        // eve sends new messages and repeats stored ones in a single write. The server rejects the new messages, and
        // sends her the stored ones again.
        let texts: Vec<String> = (0..30)
            .map(|text| if text % 3 == 0 { (text / 3 + 1).to_string() } else { format!("many {text}") })
            .collect();
        eve.client.send(&texts.iter().flat_map(|text| message(text, text)).collect::<Vec<_>>());
        for text in &texts {
            if text.starts_with("many") {
                let error = json!({"event": "error", "data": {"message": "Message not stored", "nonce": text}});
                assert_eq!(eve.receive(), error);
            } else {
                assert_eq!(receive_message(&mut eve, text), stored[text.parse::<usize>().unwrap() - 1]);
            }
        }
        bob.client.send(&message("1", "1"));
        let error = json!({"event": "error", "data": {"message": "Message not stored", "nonce": "1"}});
        assert_eq!(bob.receive(), error, "nonces are per user, so bob's message with eve's nonce is a new message");
        fs::remove_file(&filler).expect("a file");
        // The rejected messages have used up neither their nonces nor any ids.
        let again = publish(&mut eve, &rejected);
        assert_eq!(ids(&json!(again))[0], stored.len() as u64 + 1);
        stored.extend(again);
        receive_messages(&mut bob, &stored[stored.len() - 5..]);
    }
    let resumed = welcome(&server, "general", &since(&epoch(&first), 0));
    assert_eq!((&resumed["resumed"], &resumed["history"]), (&json!(true), &json!(stored)));
    assert!(server.log().contains("STORAGE full"), "{}", server.log());
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    let copy = directory.file("copy.db"); // this path is outside the server's small tmpfs
    HistoryFile { path: disk.join("history.db") }.copy_to(&copy);
    stop(&mut server);
    let rows = copy.rows();
    rows.check();
    assert_eq!(rows.messages_in("general"), stored);
}

/// Asserts that `user` receives `messages`, in this order.
fn receive_messages(user: &mut User, messages: &[Value]) {
    for message in messages {
        assert_eq!(receive_message(user, message["nonce"].as_str().expect("a nonce")), *message);
    }
}

/// Checks that joins, room switches, history pages, private messages and repeated messages work on a full disk.
fn check_reads_on_a_full_disk(server: &Server, eve: &mut User, bob: &mut User, stored: &[Value]) {
    let (mut ann, welcome) = join(server, "ann", "general", "");
    eve.expect_event("joined", json!({"username": "ann"}));
    bob.expect_event("joined", json!({"username": "ann"}));
    assert_eq!(welcome["history"], json!(stored[stored.len().saturating_sub(50)..]));
    assert_eq!(welcome["last_id"], stored.len());
    ann.send_event("history", json!({"before": 15, "limit": 10}));
    assert_eq!(ann.expect_event("history", json!({"more": true}))["messages"], json!(stored[4..14]));
    ann.send_event("private", json!({"to": "eve", "text": "psst"}));
    for user in [&mut ann, eve] {
        user.expect_event("private", json!({"from": "ann", "to": "eve", "text": "psst"}));
    }
    eve.client.send(&message("7", "7"));
    assert_eq!(receive_message(eve, "7"), stored[6], "a stored message is repeated to its sender");
    ann.send_event("switch_room", json!({"room": "never used before"}));
    ann.expect_event("switched", json!({"last_id": 0, "history": []}));
    ann.send_event("switch_room", json!({"room": "general"}));
    ann.expect_event("switched", json!({"last_id": stored.len()}));
    for user in [&mut *eve, &mut *bob] {
        user.expect_event("left", json!({"username": "ann"}));
        user.expect_event("joined", json!({"username": "ann"}));
    }
    ann.leave();
    for user in [eve, bob] {
        user.expect_event("left", json!({"username": "ann"}));
    }
}

/// Lets all users send messages until the server closes their connections. Returns the messages that each user
/// received.
fn send_until_closed(users: Vec<User>) -> Vec<Vec<Value>> {
    let mut open: Vec<(User, Vec<Value>)> = users.into_iter().map(|user| (user, Vec::new())).collect();
    let mut closed = Vec::new();
    for round in 0..2000 {
        for (user, _) in &mut open {
            let texts = (0..4).map(|text| format!("{} {}", user.name, round * 4 + text));
            user.client.try_send(&texts.flat_map(|text| message(&text, &text)).collect::<Vec<_>>());
        }
        // Read until either the last of the user's four messages or a Close arrives.
        for (mut user, mut received) in std::mem::take(&mut open) {
            let last = format!("{} {}", user.name, round * 4 + 3);
            loop {
                let frame = user.frame();
                if frame.opcode() == 8 {
                    assert_eq!(frame.close(), (1011, "storage failed".to_owned()));
                    closed.push(received);
                    break;
                }
                let mut event: Value = serde_json::from_str(frame.text()).expect("JSON");
                assert_ne!(event["event"], "error", "the server sends no error for a pending message: {event}");
                let is_last = event["data"]["nonce"] == *last;
                received.extend((event["event"] == "message").then(|| event["data"].take()));
                if is_last {
                    open.push((user, received));
                    break;
                }
            }
        }
        if open.is_empty() {
            return closed;
        }
    }
    panic!("no write to the disk has failed");
}

/// Simulates a broken disk: with `ulimit -f`, every write beyond the given file size fails.
#[test]
fn a_disk_that_fails() {
    let directory = Directory::new("error");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let mut stored = publish(&mut eve, 1..=10);
    stop(&mut server);
    let kib = fs::metadata(&file.path).expect("a file").len() / 1024 + 300;
    let setup = format!("trap '' XFSZ; ulimit -f {kib}");
    let mut server = Server::start_from_shell(&setup, "", &["--rate-limit", "0", "--history-db", file.path()]);
    let users = (0..8).map(|number| join(&server, &format!("user-{number}"), "general", "").0).collect();
    let (mut echo, elsewhere) = (server.upgrade("/echo?token=dev-token"), join(&server, "zoe", "elsewhere", "").0);
    let received = send_until_closed(users);
    assert_eq!(echo.read_frame().close(), (1011, "storage failed".to_owned()));
    drop(echo);
    elsewhere.expect_close(1011, "storage failed");
    assert_eq!(server.wait().code(), Some(1));
    server.wait_for_log("ERROR");
    let log = server.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    let is_complete = |line: &str| line.contains("STORAGE failed: ") && line.contains("disk I/O error");
    assert!(matches!(&*errors, [error] if is_complete(error)), "{errors:?}");
    // Each member received a prefix of the same sequence of messages.
    let longest = received.iter().max_by_key(|messages| messages.len()).expect("a user");
    assert!(received.iter().all(|messages| longest.starts_with(messages)), "members received different messages");
    stored.extend_from_slice(longest);
    let rows = file.rows_of_copy();
    rows.check();
    assert!(rows.messages_in("general").starts_with(&stored), "acknowledged messages are lost");
    println!("{} messages were acknowledged, {} are stored", stored.len(), rows.messages.len());
    let mut server = file.start(&[]);
    let again = welcome(&server, "general", &since(&epoch(&first), 10));
    assert_eq!((&again["resumed"], ids(&again["history"]).len() + 10), (&json!(true), rows.messages.len()));
    // user-0 resends its messages. The server stores none of them twice.
    let (mut user, _) = join(&server, "user-0", "general", "");
    publish(&mut user, (0..stored.len() / 8 + 2).map(|text| format!("user-0 {text}")));
    stop(&mut server);
    file.rows().check();
}

/// Overwrites half of the file while the server runs. When the server reads a damaged page, it closes every
/// connection and exits.
#[test]
fn a_file_damaged_while_the_server_runs() {
    let directory = Directory::new("damage");
    let file = directory.file("history.db");
    let mut server = file.start(&["--history-sync", "normal"]);
    let (mut eve, _) = join(&server, "eve", "general", "");
    // Store more than fits in SQLite's page cache. The server must then read the damaged pages from the file, because
    // the cache cannot hold intact copies of all of them.
    for chunk in 0..12 {
        let texts = (0..500).map(|text| (format!("{chunk} {text}"), "x".repeat(480)));
        let texts: Vec<(String, String)> = texts.collect();
        eve.client.send(&texts.iter().flat_map(|(nonce, text)| message(nonce, text)).collect::<Vec<_>>());
        texts.iter().for_each(|(nonce, _)| _ = receive_message(&mut eve, nonce));
    }
    stop(&mut server);
    let mut server = file.start(&[]);
    let (mut eve, _) = join(&server, "eve", "general", "");
    let (bob, _) = join(&server, "bob", "elsewhere", "");
    let mut bytes = fs::read(&file.path).expect("a file");
    let (start, end) = (bytes.len() / 4096 / 4 * 4096, bytes.len() / 4096 / 4 * 3 * 4096);
    bytes[start..end].fill(0xa5);
    fs::write(&file.path, bytes).expect("a file");
    for before in (1..6000).step_by(100) {
        eve.send_event("history", json!({"before": before}));
        let frame = eve.frame();
        if frame.opcode() == 8 {
            assert_eq!(frame.close(), (1011, "storage failed".to_owned()));
            bob.expect_close(1011, "storage failed");
            drop(eve);
            assert_eq!(server.wait().code(), Some(1));
            server.wait_for_log("ERROR STORAGE failed: the file is damaged: ");
            assert_start_fails(file.path.as_os_str(), &["damaged"]);
            return;
        }
    }
    panic!("the server does not notice the damage");
}

/// With `--history-sync full`, the server syncs each commit before it acknowledges the message; with `normal`, it
/// does not. Only a trace of the system calls shows the difference.
#[test]
fn a_commit_is_synced_before_its_acknowledgement() {
    let Some(strace) = support::require_tool("strace", &[]) else { return };
    let directory = Directory::new("sync");
    for (sync, is_synced) in [("full", true), ("normal", false)] {
        let (file, log) = (directory.file(&format!("{sync}.db")), directory.0.join(sync));
        let server = Server::command("127.0.0.1:0", &["--rate-limit", "0", "--history-sync", sync]);
        let mut command = Command::new(&strace);
        command.args(["-f", "-qq", "-e", "trace=pwrite64,fdatasync,fsync,writev,write,sendto", "-s", "5000", "-o"]);
        command.arg(&log).arg(server.get_program()).args(server.get_args()).arg("--history-db").arg(&file.path);
        let server = Server::launch(command.env_remove("RUST_LOG"));
        let (mut eve, _) = join(&server, "eve", "general", "");
        for text in 1..=10 {
            publish(&mut eve, [format!("text number {text} of eve")]);
        }
        drop(eve);
        // `server` is the strace process, and the real server is the child of strace.
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.pid())).expect("children");
        support::signal(children.trim().parse().expect("one child"), "TERM");
        let mut server = server;
        assert_eq!(server.wait().code(), Some(0));
        let calls = fs::read_to_string(&log).expect("a log");
        let mut synced = 0;
        for text in 1..=10 {
            let text = format!("text number {text} of eve");
            let lines: Vec<&str> = calls.lines().collect();
            let stored =
                lines.iter().position(|line| line.contains("pwrite64") && line.contains(&text)).expect("a write");
            let sent =
                lines.iter().position(|line| !line.contains("pwrite64") && line.contains(&text)).expect("an event");
            assert!(stored < sent, "{text} is sent before it is stored");
            synced += usize::from(
                lines[stored..sent]
                    .iter()
                    .any(|line| line.contains("sync(") && line.contains("= 0") || line.contains("sync resumed")),
            );
        }
        assert_eq!(synced, if is_synced { 10 } else { 0 }, "commits synced with {sync}: {calls}");
    }
}

/// While the disk does not respond, the server acknowledges no message. Everything that needs no disk still works.
#[test]
fn a_disk_that_stalls() {
    let directory = Directory::new("stall");
    let file = directory.file("history.db");
    let limits = ["--max-echo", "65536", "--max-buffered", "1048576"];
    let mut server = file.start(&limits);
    let (mut eve, _) = join(&server, "eve", "general", "");
    let (mut bob, _) = join(&server, "bob", "general", "");
    eve.expect_event("joined", json!({"username": "bob"}));
    let mut stored = publish(&mut eve, 1..=3);
    receive_messages(&mut bob, &stored);
    let Some(stall) = Stall::begin(&server) else { return };
    bob.send_event("typing", json!({}));
    eve.expect_event("typing", json!({"username": "bob"}));
    eve.client.send(&message("4", "4"));
    eve.send_event("ping", json!({}));
    eve.expect_event("pong", json!({}));
    eve.expect_nothing();
    bob.expect_nothing();
    assert_eq!(server.status(&handshake().target("/health").without("Upgrade")), 200);
    let mut echo = server.upgrade("/echo?token=dev-token");
    echo.send_text("still here");
    assert_eq!(echo.read_text(), "still here");
    let mut late = User::at(&server, Dialect::Events, &events_path("late", "general"), "late");
    // bob sends about 4 MB. To bound its memory, the server stops reading from him while the disk is stalled.
    let texts: Vec<String> = (5..8000).map(|text| format!("{text} {}", "x".repeat(400))).collect();
    let mut sender = bob.client.stream.try_clone().expect("a socket");
    let bytes: Vec<u8> = texts.iter().enumerate().flat_map(|(id, text)| message(&(id + 5).to_string(), text)).collect();
    let total = bytes.len();
    sender.set_nonblocking(true).expect("a socket option");
    let (mut sent, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_secs(1) && sent < total {
        match sender.write(&bytes[sent..]) {
            Ok(len) => (sent, quiet) = (sent + len, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
    sender.set_nonblocking(false).expect("a socket option");
    println!("the server and the kernel took {sent} bytes of {total}");
    let memory = crowd::peak_memory(&server);
    println!("the peak of the server's memory is {memory} KiB");
    stall.end();
    let rest = std::thread::spawn(move || sender.write_all(&bytes[sent..]));
    stored.push(receive_message(&mut eve, "4"));
    let history = late.expect_event("welcome", json!({"resumed": false}));
    assert_eq!(history["history"], json!(stored), "a join takes effect after the messages sent before the join");
    // All members must read, or the server would close their connections as slow consumers.
    let readers = [eve, late].map(|mut user| {
        std::thread::spawn(move || (5..8000).for_each(|id| _ = receive_message(&mut user, &id.to_string())))
    });
    receive_messages(&mut bob, &stored[3..]);
    for id in 5..8000 {
        assert_eq!(receive_message(&mut bob, &id.to_string())["id"], id);
    }
    readers.into_iter().for_each(|reader| reader.join().expect("each member receives all messages"));
    rest.join().expect("a thread").expect("all is sent");
    stop(&mut server);
    file.rows().check();
}

/// While the disk is stalled, a room's only member sends message 2, leaves and rejoins. With `--history-keep 1`,
/// message 3 deletes message 2, so the member may reuse the nonce of message 2.
#[test]
fn a_room_reopened_during_a_stall() {
    let directory = Directory::new("again");
    let mut server = directory.file("history.db").start(&["--history-keep", "1"]);
    let rooms: Vec<String> = (0..20).map(|room| format!("room-{room}")).collect();
    let mut users: Vec<User> = rooms.iter().map(|room| join(&server, "eve", room, "").0).collect();
    users.iter_mut().for_each(|user| _ = publish(user, ["1"]));
    let Some(stall) = Stall::begin(&server) else { return };
    for mut user in users {
        user.client.send(&message("2", "2"));
        user.leave();
    }
    let again = rooms.iter().map(|room| User::at(&server, Dialect::Events, &events_path("eve", room), "eve"));
    let mut again: Vec<User> = again.collect();
    for user in &mut again {
        user.client.send(&["3", "2"].map(|nonce| message(nonce, "again")).concat());
        user.client.send(&masked(0x89, b"all"));
        assert_eq!(user.frame().first, 0x8a, "the join is pending");
    }
    stall.end();
    for user in &mut again {
        let welcome = user.expect_event("welcome", json!({"last_id": 2}));
        assert!(ids(&welcome["history"]).iter().all(|id| *id == 2), "the history is empty or message 2");
        assert_eq!(
            (receive_message(user, "3")["id"].as_u64(), receive_message(user, "2")["id"].as_u64()),
            (Some(3), Some(4))
        );
    }
    for room in &rooms {
        assert_eq!(ids(&welcome(&server, room, "")["history"]), [4], "{room}");
    }
    stop(&mut server);
}

/// When a stalled disk recovers, the server sends all of a room's pending messages in one turn of the event loop. A
/// member that keeps reading must stay connected.
#[test]
fn a_busy_room_after_a_stall() {
    let directory = Directory::new("busy");
    let mut server = directory.file("history.db").start(&[]);
    let mut users: Vec<User> = (0..20).map(|user| join(&server, &format!("user-{user}"), "general", "").0).collect();
    let Some(stall) = Stall::begin(&server) else { return };
    for user in &mut users {
        let text = |text: i32| message(&text.to_string(), &"x".repeat(400));
        user.client.send(&(0..150).flat_map(text).collect::<Vec<_>>());
    }
    for user in &mut users {
        user.client.send(&masked(0x89, b"all"));
        while user.frame().first != 0x8a {}
    }
    stall.end();
    let readers = users.into_iter().map(|mut user| {
        std::thread::spawn(move || {
            let mut count = 0;
            while count < 3000 {
                let frame = user.frame();
                assert_eq!(frame.first, 0x81, "{} is closed after {count} messages: {:?}", user.name, frame.close());
                count += usize::from(frame.text().starts_with(r#"{"event":"message""#));
            }
            user
        })
    });
    let readers: Vec<_> = readers.collect();
    let users: Vec<_> = readers.into_iter().map(std::thread::JoinHandle::join).collect();
    assert!(users.iter().all(Result::is_ok), "{}", server.log());
    stop(&mut server);
}

// ---------------------------------------------------------------------------------------------------------- stops

/// Stops a server that has pending messages. The server must acknowledge each message that it received before SIGTERM,
/// and then send a Close with code 1001.
fn check_stop(file: &HistoryFile, stalls: bool) {
    let mut server = file.start(&[]);
    let mut users: Vec<User> =
        (0..16).map(|user| join(&server, &format!("user-{user}"), &format!("{user}"), "").0).collect();
    let stall = if stalls { Stall::begin(&server) } else { None };
    if stalls && stall.is_none() {
        return;
    }
    let mut received = vec![0; users.len()];
    for user in &mut users {
        let mut bytes: Vec<u8> = (0..100).flat_map(|text| message(&text.to_string(), "text")).collect();
        bytes.extend(masked(0x89, b"all"));
        user.client.send(&bytes);
    }
    // The Pong shows that the server has received all messages sent before the Ping.
    for (user, received) in users.iter_mut().zip(&mut received) {
        loop {
            let frame = user.frame();
            if frame.first == 0x8a {
                break;
            }
            assert!(frame.text().contains(&format!("\"nonce\":\"{received}\"")), "{frame:?}");
            *received += 1;
        }
    }
    server.signal("TERM");
    if let Some(stall) = stall {
        assert_eq!(received, vec![0; 16], "nothing is acknowledged while the disk stalls");
        server.wait_for_log("STOP");
        assert!(server.is_running());
        stall.end();
    }
    for (mut user, received) in users.into_iter().zip(received) {
        (received..100).for_each(|text| _ = receive_message(&mut user, &text.to_string()));
        user.expect_close(1001, "the server is shutting down");
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_stop_with_pending_messages() {
    let directory = Directory::new("stop");
    for (round, stalls) in [false, true, true].into_iter().enumerate() {
        let file = directory.file(&round.to_string());
        check_stop(&file, stalls);
        assert!(!file.path_with_suffix("-wal").exists(), "a clean stop removes the WAL");
        let rows = file.rows();
        rows.check();
        assert!(rows.messages.len() == 1600 || stalls, "{} messages", rows.messages.len());
    }
}

/// Stops the server at a random moment. Before the Close, each client must receive exactly its room's stored messages.
#[test]
fn a_stop_at_any_moment() {
    let (mut random, _) = seeded_rng();
    let directory = Directory::new("any");
    for round in 0..10 {
        let file = directory.file(&round.to_string());
        let mut server = file.start(&[]);
        let mut users: Vec<User> =
            (0..8).map(|user| join(&server, &format!("user-{user}"), &format!("{}", user / 4), "").0).collect();
        for user in &mut users {
            user.client.send(&(0..40).flat_map(|text| message(&text.to_string(), "text")).collect::<Vec<_>>());
        }
        std::thread::sleep(Duration::from_micros(random.u64(..5000)));
        server.signal("TERM");
        let mut received: Vec<Vec<Value>> = Vec::new();
        for user in &mut users {
            let mut messages = Vec::new();
            loop {
                let frame = user.frame();
                if frame.opcode() == 8 {
                    assert_eq!(frame.close().0, 1001);
                    user.client.try_send(&masked(0x88, &1001u16.to_be_bytes()));
                    break;
                }
                let mut event: Value = serde_json::from_str(frame.text()).expect("JSON");
                if event["event"] == "message" {
                    messages.push(event["data"].take());
                }
            }
            received.push(messages);
        }
        drop(users);
        assert_eq!(server.wait().code(), Some(0));
        let rows = file.rows();
        rows.check();
        for (user, messages) in received.iter().enumerate() {
            let stored = rows.messages_in(&(user / 4).to_string());
            assert_eq!(
                messages.len(),
                stored.len(),
                "round {round}: user {user} has received everything that is stored"
            );
            assert_eq!(*messages, stored);
        }
    }
}

/// A second signal ends the server immediately, even while the disk is stalled.
#[test]
fn a_second_signal_while_the_disk_stalls() {
    let directory = Directory::new("second");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let (mut eve, _) = join(&server, "eve", "general", "");
    let mut stored = publish(&mut eve, ["1"]);
    let Some(stall) = Stall::begin(&server) else { return };
    eve.client.send(&message("2", "2"));
    eve.expect_nothing();
    server.signal("TERM");
    server.wait_for_log("STOP");
    server.signal("TERM");
    let status = server.wait();
    assert_eq!(status.code(), Some(130), "{}", server.log());
    stall.end();
    let rows = file.rows();
    rows.check();
    stored.truncate(rows.messages.len());
    assert!(rows.messages_in("general").starts_with(&stored));
}

/// A second SIGTERM ends the process even if the event loop has finished and the history thread is closing its file.
#[test]
fn a_second_signal_while_the_file_is_closed() {
    let directory = Directory::new("closing");
    let mut server = directory.file("history.db").start(&[]);
    let Some(stall) = Stall::begin(&server) else { return };
    server.signal("TERM");
    server.wait_for_log("STOP");
    assert!(server.is_running());
    wait_until("another signal ends the server", || {
        server.signal("TERM");
        !server.is_running()
    });
    assert_eq!(server.wait().code(), Some(130), "{}", server.log());
    stall.end();
}

// -------------------------------------------------------------------------------------------------- rejected starts

/// Starts the server, and expects exit status 1 and one error line that contains all of `words` and the path.
fn assert_start_fails(path: &OsStr, words: &[&str]) {
    let mut command = Server::command("127.0.0.1:0", &["--history-db"]);
    let command = command.arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let end = Instant::now() + Duration::from_secs(10);
    let mut status = None;
    while status.is_none() && Instant::now() < end {
        status = child.try_wait().expect("a status");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("a child");
    let output = child.wait_with_output().expect("a child");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(matches!(&*lines, [line] if line.starts_with("wirechat: --history-db ")), "one line: {stderr:?}");
    for word in words.iter().copied().chain([&*path.to_string_lossy()]) {
        assert!(stderr.contains(word), "{word:?} in {stderr:?}");
    }
}

/// The server rejects every kind of unusable history file without changing any file in the directory.
#[test]
fn files_that_are_rejected() {
    type Prepare = fn(&HistoryFile);
    let rows: [(&str, Prepare, &[&str]); 16] = [
        ("a text", |file| fs::write(&file.path, "Dear diary, ".repeat(2000)).unwrap(), &["not a SQLite database"]),
        ("a short file", |file| fs::write(&file.path, "x").unwrap(), &["not a SQLite database"]),
        ("half a header", |file| fs::write(&file.path, "SQLite format 3\0").unwrap(), &["not a SQLite database"]),
        ("zeros", |file| fs::write(&file.path, [0; 8192]).unwrap(), &["not a SQLite database"]),
        ("the database of another program", |file| create_foreign_database(file, "", true), &["another program"]),
        (
            "the same, with our version",
            |file| create_foreign_database(file, "PRAGMA user_version = 1", true),
            &["another program"],
        ),
        (
            "the same, with a WAL",
            |file| create_foreign_database(file, "PRAGMA journal_mode = WAL", false),
            &["another program"],
        ),
        ("a higher version", |file| change_header(file, "PRAGMA user_version = 2"), &["newer", "version 2"]),
        ("a negative version", |file| change_header(file, "PRAGMA user_version = -1"), &["version"]),
        ("another application", |file| change_header(file, "PRAGMA application_id = 5"), &["another program"]),
        ("bytes overwritten", |file| damage(file, true), &["damaged"]),
        ("bytes overwritten, after a kill", |file| damage(file, false), &["damaged"]),
        ("cut in half", cut_in_half, &["damaged"]),
        ("a directory", |file| fs::create_dir(&file.path).unwrap(), &["directory"]),
        ("a pipe", pipe, &["not a regular file"]),
        ("a symbolic link to nowhere", |file| std::os::unix::fs::symlink("/no/such/file", &file.path).unwrap(), &[]),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, prepare, words)| {
            let directory = Directory::new("rejected");
            let file = directory.file("history.db");
            prepare(&file);
            let before = directory.contents();
            assert_start_fails(file.path.as_os_str(), words);
            let after = directory.contents();
            let names = |contents: &std::collections::BTreeMap<_, _>| format!("{:?}", contents.keys());
            assert_eq!(names(&before), names(&after), "no file is added or removed");
            assert!(before == after, "the file is not changed");
        },
    );
}

/// Creates a SQLite database with a table that wirechat does not use, as another program would. If `is_closed` is
/// false, a WAL remains beside the database, as if that program had been killed.
fn create_foreign_database(file: &HistoryFile, pragma: &str, is_closed: bool) {
    let path = if is_closed { file.path.clone() } else { file.path_with_suffix("-open") };
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(pragma).unwrap();
    connection.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)").unwrap();
    if !is_closed {
        let open = HistoryFile { path };
        assert!(open.path_with_suffix("-wal").exists());
        open.copy_to(file);
        drop(connection);
        open.remove();
    }
}

fn run_and_stop(file: &HistoryFile, texts: RangeInclusive<u64>) {
    let mut server = file.start(&[]);
    publish(&mut join(&server, "eve", "general", "").0, texts);
    stop(&mut server);
}

/// Creates a valid history file, then executes `sql` to change its header.
fn change_header(file: &HistoryFile, sql: &str) {
    run_and_stop(file, 1..=3);
    file.execute(sql);
    file.execute("PRAGMA wal_checkpoint(TRUNCATE)");
}

/// Creates a history file with 400 messages. If `is_closed` is false, publishes 5 more messages and kills the server,
/// which leaves a WAL. Then overwrites 64 bytes in the middle of the history file.
fn damage(file: &HistoryFile, is_closed: bool) {
    let mut server = file.start(&[]);
    publish(&mut join(&server, "eve", "general", "").0, 1..=400);
    stop(&mut server);
    if !is_closed {
        let mut server = file.start(&[]);
        publish(&mut join(&server, "eve", "general", "").0, 401..=405);
        kill(&mut server);
        assert!(file.wal().valid_len() > 4096);
    }
    let mut bytes = fs::read(&file.path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 64].fill(0xa5);
    fs::write(&file.path, bytes).unwrap();
}

fn cut_in_half(file: &HistoryFile) {
    run_and_stop(file, 1..=400);
    let bytes = fs::read(&file.path).unwrap();
    fs::write(&file.path, &bytes[..bytes.len() / 2]).unwrap();
}

fn pipe(file: &HistoryFile) {
    assert!(Command::new("mkfifo").arg(&file.path).status().unwrap().success());
}

#[test]
fn a_missing_directory() {
    let directory = Directory::new("parent");
    assert_start_fails(directory.0.join("missing").join("history.db").as_os_str(), &[]);
    assert_start_fails(directory.file("history.db").path.join("below").as_os_str(), &[]);
    assert!(directory.contents().is_empty(), "no directory is created");
}

/// A second server on the same file fails to start, even if it opens the file by another path. The first server
/// continues.
#[test]
fn a_file_in_use() {
    let directory = Directory::new("in-use");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let link = directory.0.join("link.db");
    std::os::unix::fs::symlink(&file.path, &link).unwrap();
    let (mut eve, _) = join(&server, "eve", "general", "");
    let mut count = 0;
    for path in [&file.path, &link, &directory.0.join(".").join("history.db")] {
        let before = directory.contents();
        assert_start_fails(path.as_os_str(), &["another process"]);
        assert!(before == directory.contents(), "the file is not changed");
        count += 1;
        assert_eq!(publish(&mut eve, [count])[0]["id"], count);
    }
    kill(&mut server);
    let rows = file.rows_of_copy();
    rows.check();
    assert_eq!((rows.messages.len(), rows.epochs.len()), (3, 1), "a rejected start adds no epoch");
    let server = file.start(&[]);
    assert_eq!(ids(&welcome(&server, "general", "")["history"]), [1, 2, 3]);
}

/// The server rejects a read-only file at startup, not at the first message.
#[test]
fn a_file_on_a_read_only_disk() {
    let directory = Directory::new("read-only");
    let file = directory.file("history.db");
    run_and_stop(&file, 1..=3);
    let before = directory.contents();
    let mount = format!("mount --bind '{0}' '{0}' && mount -o remount,bind,ro '{0}'", directory.0.display());
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "bash", "-ec", &format!("({mount}) || exit 99; exec \"$0\" \"$@\"")]);
    let server = Server::command("127.0.0.1:0", &["--history-db", file.path()]);
    let output = command.arg(server.get_program()).args(server.get_args()).output();
    let output = output.ok().filter(|output| output.status.success() || output.stderr.starts_with(b"wirechat: "));
    let Some(output) = output else {
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "WIRECHAT_NO_SKIP is set, but the test cannot mount");
        return print_skipped("this test needs to mount a directory, with unshare --map-root-user --mount");
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains("--history-db") && stderr.contains("read-only"), "{stderr}");
    assert!(before == directory.contents());
}

/// The server uses `--history-db` as a plain path, never as a URI or a special SQLite name such as `:memory:`. It
/// creates exactly one file, with the given name, and resumes from this file after a kill.
#[test]
fn file_names_are_plain_paths() {
    let names: [&[u8]; 13] = [
        b"a name with spaces",
        b"file:x?mode=memory",
        b"file:x",
        b"file:///x",
        b":memory:",
        b"x?mode=ro&immutable=1",
        b"x%20y",
        b"x#y",
        b"-x",
        b"'; DROP TABLE messages; --",
        "f\u{f6}\u{1f600}".as_bytes(),
        b"not\xffUTF-8",
        b"two\nlines",
    ];
    each_row(
        &names,
        |name| String::from_utf8_lossy(name).into_owned(),
        |name| {
            let (directory, name) = (Directory::new("names"), OsStr::from_bytes(name));
            fs::create_dir(directory.0.join("file:")).unwrap(); // the parent directory of the path `file:///x`
            for is_relative in [true, false] {
                let path = if is_relative { name.to_owned() } else { directory.0.join(name).into_os_string() };
                if is_relative && name == "file:///x" {
                    continue;
                }
                let start = || {
                    let mut option = std::ffi::OsString::from("--history-db=");
                    option.push(&path);
                    let mut command = Server::command("127.0.0.1:0", &[]);
                    Server::launch(command.arg(option).current_dir(&directory.0))
                };
                let mut server = start();
                let (mut eve, first) = join(&server, "eve", "general", "");
                let count = first["last_id"].as_u64().unwrap();
                publish(&mut eve, [count + 1]);
                kill(&mut server);
                let mut server = start();
                let again = welcome(&server, "general", &since(&epoch(&first), count as usize));
                assert_eq!((&again["resumed"], ids(&again["history"])), (&json!(true), vec![count + 1]));
                stop(&mut server);
                let base = if name == "file:///x" { directory.0.join("file:") } else { directory.0.clone() };
                let entries = fs::read_dir(base).unwrap().map(|entry| entry.unwrap());
                let files: Vec<_> =
                    entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name()).collect();
                let expected = if name == "file:///x" { OsStr::new("x") } else { name };
                assert_eq!(files, [expected], "the only file has this name");
            }
        },
    );
}

// ------------------------------------------------------------------------------------------------------- retention

/// Asserts that a guest who joins room `general` with the resume parameters `resume` receives `stored[start..]`.
fn expect_history(server: &Server, resume: &str, resumed: bool, stored: &[Value], start: usize) {
    let back = welcome(server, "general", resume);
    assert_eq!((&back["resumed"], &back["last_id"]), (&json!(resumed), &json!(stored.len())), "{resume}");
    assert_eq!(back["history"], json!(stored[start..]), "{resume}");
}

/// `--history-keep 3` keeps exactly the last three messages. A client that missed more than three does not resume.
#[test]
fn the_last_messages_are_kept() {
    let directory = Directory::new("keep");
    let file = directory.file("history.db");
    let mut server = file.start(&["--history-keep", "3"]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let mut stored = publish(&mut eve, 1..=10);
    for is_restarted in [false, true] {
        if is_restarted {
            kill(&mut server);
            server = file.start(&["--history-keep", "3"]);
        }
        for (id, resumed) in [(10, true), (9, true), (8, true), (7, true), (6, false), (0, false), (11, false)] {
            let start = if resumed { id } else { 7 };
            expect_history(&server, &since(&epoch(&first), id), resumed, &stored, start);
        }
    }
    let (mut eve, again) = join(&server, "eve", "general", "");
    // The nonce of a deleted message may be used again. The nonce of a kept message may not.
    eve.client.send(&message("9", "9"));
    assert_eq!(receive_message(&mut eve, "9"), stored[8]);
    stored.extend(publish(&mut eve, [1]));
    assert_eq!(stored[10]["id"], 11);
    eve.send_event("history", json!({"before": 1000}));
    let page = eve.expect_event("history", json!({"more": false}));
    assert_eq!(page["messages"], json!(stored[8..]));
    for (name, id, resumed) in
        [(&first, 8, true), (&first, 7, false), (&again, 8, true), (&again, 11, true), (&first, 11, false)]
    {
        assert_eq!(welcome(&server, "general", &since(&epoch(name), id))["resumed"], resumed, "since {id}");
    }
    kill(&mut server);
    let rows = file.rows();
    assert_eq!((rows.messages_in("general"), rows.last_ids["general"]), (stored[8..].to_vec(), 11));
}

/// After a restart with a lower `--history-keep`, the server deletes old messages gradually: a few with each new
/// message, until the room is within the new limit.
#[test]
fn a_lower_limit_for_an_existing_file() {
    let directory = Directory::new("lower");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let mut stored = publish(&mut eve, 1..=400);
    stop(&mut server);
    let mut server = file.start(&["--history-keep", "3"]);
    let (mut eve, _) = join(&server, "eve", "general", "");
    for text in 401..=430 {
        stored.extend(publish(&mut eve, [text]));
        let kept = file.rows_of_copy().messages_in("general");
        assert!(kept.len() >= 3 && stored.ends_with(&kept), "{} messages are kept", kept.len());
        let deleted = stored.len() - kept.len();
        for (id, resumed) in [(deleted, true), (deleted - 1, false)] {
            // The first run stored only messages 1 to 400, so a client with that run's epoch cannot resume after a
            // later message. All kept messages fit in one `welcome` event, so the size limit never prevents resuming.
            let back = welcome(&server, "general", &since(&epoch(&first), id));
            let is_old = id <= 400;
            assert_eq!(back["resumed"], resumed && is_old, "since {id}, {} are kept", kept.len());
        }
    }
    kill(&mut server);
    let rows = file.rows();
    assert_eq!((rows.messages_in("general"), rows.last_ids["general"]), (stored[427..].to_vec(), 430));
}

/// At startup, `--history-days 1` deletes messages older than one day, oldest first, but keeps each room's `last_id`.
#[test]
fn old_messages_are_deleted_at_start() {
    let directory = Directory::new("days");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let (mut eve, first) = join(&server, "eve", "general", "");
    let (mut bob, _) = join(&server, "bob", "old", "");
    let mut stored = publish(&mut eve, 1..=10);
    publish(&mut bob, 1..=1500);
    stop(&mut server);
    let day = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-86460 seconds')";
    let general = "room = (SELECT id FROM rooms WHERE name = 'general')";
    file.execute(&format!("UPDATE messages SET time = {day} WHERE NOT ({general}) OR {general} AND id <= 4"));
    // Message 7 is old, but follows newer messages. The server must keep it, because ids must stay consecutive.
    file.execute(&format!("UPDATE messages SET time = {day} WHERE {general} AND id = 7"));
    let seven = file.rows().messages[&("general".to_owned(), 7)].clone();
    stored[6] = seven;
    // `--history-days 0` sets no limit, and 2 deletes nothing because no message is two days old.
    for option in ["0", "2"] {
        let mut server = file.start(&["--history-days", option]);
        assert_eq!(ids(&welcome(&server, "general", "")["history"]).len(), 10);
        stop(&mut server);
    }
    let mut server = file.start(&["--history-days", "1"]);
    for (id, resumed) in [(4, true), (10, true), (3, false), (0, false)] {
        let start = if resumed { id } else { 4 };
        expect_history(&server, &since(&epoch(&first), id), resumed, &stored, start);
    }
    let old = welcome(&server, "old", &since(&epoch(&first), 1500));
    assert_eq!((&old["resumed"], &old["last_id"], &old["history"]), (&json!(true), &json!(1500), &json!([])));
    assert_eq!(welcome(&server, "old", &since(&epoch(&first), 1499))["resumed"], false);
    let (mut bob, _) = join(&server, "bob", "old", "");
    bob.send_event("history", json!({"before": 1501}));
    assert_eq!(bob.expect_event("history", json!({"more": false}))["messages"], json!([]));
    let again = publish(&mut bob, [1499]);
    assert_eq!(again[0]["id"], 1501, "the nonce may be used again, and the id is the next one");
    kill(&mut server);
    let rows = file.rows();
    assert_eq!((rows.messages_in("general"), rows.last_ids["general"]), (stored[4..].to_vec(), 10));
    assert_eq!((rows.messages_in("old"), rows.last_ids["old"]), (again, 1501));
}

// ------------------------------------------------------------------------------------------------ dialects and pages

/// After a restart, clients of every dialect receive all stored messages, whichever dialect the sender used.
#[test]
fn all_dialects_after_a_restart() {
    let directory = Directory::new("dialects");
    let file = directory.file("history.db");
    let mut server = file.start(&[]);
    let mut eve = User::events(&server, "eve", "general");
    let mut ron = User::rooms(&server, "ron", "general");
    let mut pat = User::presence(&server, "pat", "general");
    eve.send_message("from eve");
    assert_eq!(receive_message_from(&mut eve, "eve"), "from eve");
    ron.send_message("from ron");
    assert_eq!(receive_message_from(&mut eve, "ron"), "from ron");
    pat.send_message("from pat");
    assert_eq!(receive_message_from(&mut eve, "pat"), "from pat");
    kill(&mut server);
    let stored = file.rows_of_copy().messages_in("general");
    let server = file.start(&[]);
    let texts = [("eve", "from eve"), ("ron", "from ron"), ("pat", "from pat")];
    let mut ron = User::rooms(&server, "ron", "general");
    let mut pat = User::presence(&server, "pat", "general");
    for user in [&mut ron, &mut pat] {
        for (id, (name, text)) in texts.iter().enumerate() {
            let expected = user.room_message(name, text, id as u64 + 1);
            let mut received = user.receive();
            while received["type"] == "system" || received["type"] == "user_joined" {
                received = user.receive();
            }
            assert!(support::users::same(&expected, &received), "{received}, not {expected}");
            if let Some(time) = received.get("timestamp") {
                assert_eq!(*time, stored[id]["time"], "the time of the message, not of the restart");
            }
        }
    }
    assert_eq!(welcome(&server, "general", "")["history"], json!(stored));
}

fn receive_message_from(user: &mut User, name: &str) -> Value {
    loop {
        let mut received = user.receive();
        if received["event"] == "message" {
            assert_eq!(received["data"]["username"], name, "{received}");
            return received["data"]["text"].take();
        }
    }
}

/// After several restarts, history pages still reach back to the very first message, and a client that switches back to
/// a room still receives the room's history.
#[test]
fn pages_and_switches_across_restarts() {
    let directory = Directory::new("pages");
    let file = directory.file("history.db");
    let mut stored = Vec::new();
    for run in 0..4 {
        let mut server = file.start(&["--history", "10"]);
        let (mut eve, welcome) = join(&server, "eve", "general", "");
        assert_eq!(welcome["history"], json!(stored[stored.len().saturating_sub(10)..]));
        stored.extend(publish(&mut eve, run * 77 + 1..=run * 77 + 77));
        drop(eve);
        let end = if run % 2 == 0 { kill } else { stop };
        end(&mut server);
    }
    let server = file.start(&["--history", "10"]);
    let (mut eve, welcome) = join(&server, "eve", "general", "");
    for limit in [1, 33, 50, 100] {
        let (mut before, mut pages) = (u64::MAX >> 11, Vec::new());
        loop {
            eve.send_event("history", json!({"before": before, "limit": limit}));
            let page = eve.expect_event("history", json!({"room": "general", "before": before}));
            let messages = page["messages"].as_array().unwrap();
            assert!(messages.len() == limit || page["more"] == false, "{} of {limit}", messages.len());
            pages.splice(..0, messages.iter().cloned());
            before = pages[0]["id"].as_u64().unwrap();
            assert_eq!(page["more"], before > 1);
            if before == 1 {
                break;
            }
        }
        assert_eq!(pages, stored, "pages of {limit}");
    }
    eve.send_event("switch_room", json!({"room": "elsewhere"}));
    eve.expect_event("switched", json!({"last_id": 0, "history": [], "epoch": welcome["epoch"]}));
    let elsewhere = publish(&mut eve, ["1"]); // nonce 1 is in use only in room `general`
    assert_eq!(elsewhere[0]["id"], 1);
    // The server acknowledges a message before it processes a `switch_room` command that follows the message.
    eve.client.send(&message("before the switch", "text"));
    eve.send_event("switch_room", json!({"room": "general"}));
    assert_eq!(receive_message(&mut eve, "before the switch")["id"], 2);
    let back = eve.expect_event("switched", json!({"room": "general", "last_id": stored.len()}));
    assert_eq!(back["history"], json!(stored[stored.len() - 10..]));
}

/// A client that joins while messages are pending receives each message exactly once, in the `welcome` or as an event.
#[test]
fn joins_while_messages_are_pending() {
    let directory = Directory::new("joins");
    let file = directory.file("history.db");
    let server = file.start(&[]);
    let (mut eve, _) = join(&server, "eve", "general", "");
    for round in 0..40 {
        let texts: Vec<String> = (0..5).map(|text| format!("{round} {text}")).collect();
        eve.client.send(&texts.iter().flat_map(|text| message(text, text)).collect::<Vec<_>>());
        let (mut late, welcome) = join(&server, "late", "general", "");
        let mut seen = ids(&welcome["history"]);
        assert_eq!(seen.last().copied().unwrap_or_default(), welcome["last_id"].as_u64().unwrap());
        while seen.last() != Some(&(round * 5 + 5)) {
            let received = late.receive();
            assert_eq!(received["event"], "message", "{received}");
            seen.push(received["data"]["id"].as_u64().unwrap());
        }
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
        late.leave();
        texts.iter().for_each(|text| _ = receive_message(&mut eve, text));
    }
}

#[test]
fn history_options_need_a_file() {
    for (option, value) in [("--history-keep", "5"), ("--history-days", "1"), ("--history-sync", "normal")] {
        let output = Server::command("127.0.0.1:0", &[option, value]).output().expect("the program runs");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(option) && stderr.contains("--history-db"), "{stderr}");
    }
}
