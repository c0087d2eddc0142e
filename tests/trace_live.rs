//! Tests `--trace` and `--record` on a running server. A replay of a recording must print the same lines as the
//! trace.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::http::get;
use support::{Server, masked, wait_until};

const CHAT: &str = "/?token=dev-token&username=alice&room=general";

/// Deletes the folder that an earlier run of the test left behind, and returns the path of the folder.
fn test_dir(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    path
}

/// Returns the lines of the trace, without the log lines.
fn traced(log: &str) -> String {
    log.lines()
        .filter(|line| !line.contains("Z INFO ") && !line.contains("Z WARN "))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Sends each kind of traffic: a request in two reads, a message, a Ping, a fragmented message, an invalid frame, and a
/// request without an upgrade.
fn visit(server: &Server) {
    let mut alice = server.connect();
    let request = support::upgrade_request(CHAT);
    let (first, second) = request.as_bytes().split_at(12); // the split is between `token=` and the token
    alice.send(first);
    server.upgrade("/echo?token=dev-token").send(&masked(0x88, b""));
    alice.send(second);
    alice.read_head();
    alice.read_event("welcome");
    alice.send_text(r#"{"event":"message","data":{"text":"hé\u0007\u001b[31m"}}"#);
    alice.read_event("message");
    alice.send(&[masked(0x01, b"{\"event\""), masked(0x89, b"p"), masked(0x80, b":\"ping\"}")].concat());
    assert_eq!(alice.read_frame().first, 0x8a);
    alice.read_event("pong");
    alice.send(&masked(0xc1, b"no"));
    assert_eq!(alice.read_frame().close().0, 1002);
    drop(alice);
    let mut plain = server.connect();
    plain.send(&get("/nope?token=dev-token").bytes());
    plain.read_to_end();
}

#[test]
fn one_line_per_frame_without_secrets_or_control_characters() {
    let server = Server::start(&["--trace"]);
    visit(&server);
    server.wait_for_log("404");
    wait_until("the end of both connections", || server.log().matches("= over").count() >= 2);
    let log = server.log();
    for line in [
        "→ GET /?token=*********&username=alice&room=general HTTP/1.1",
        "← HTTP/1.1 101 Switching Protocols",
        "= CONNECTING ⇒ OPEN  the server sent 101",
        "→ TEXT  fin mask=00000000 len=57 (7-bit)",
        "→ PING  fin mask=00000000 len=1 (7-bit)  \"p\"",
        "← PONG  fin len=1 (7-bit)  \"p\"",
        "message 2, fragment 2, the last",
        "! 1002 §5.2 RSV1 is set;",
        "← CLOSE  fin",
        "← HTTP/1.1 404 Not Found",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    assert!(!log.contains("dev-token"), "{log}");
    assert!(log.chars().all(|character| character == '\n' || !character.is_control()), "{log}");
    assert!(!log.contains("masking key"), "only --trace=full draws fields");
}

#[test]
fn every_field_with_trace_full() {
    let server = Server::start(&["--trace=full"]);
    visit(&server);
    server.wait_for_log("404");
    for part in ["FIN opcode  MASK length=57  masking key   payload, masked", "key + GUID", "␍␊", "unmasked  \"p\""]
    {
        assert!(server.log().contains(part), "{part}\n{}", server.log());
    }
}

#[test]
fn filters() {
    let table = [
        ("control", "PING", "TEXT"),
        ("errors", "! 1002 §5.2", "PING"),
        ("user=alice", "TEXT", "404"),
        ("#1", "alice", "404"),
        ("#1,control", "PING", "TEXT"),
    ];
    for (filter, shown, hidden) in table {
        let server = Server::start(&["--trace", "--trace-filter", filter]);
        visit(&server);
        server.wait_for_log("REJECT");
        wait_until(&format!("{filter} shows {shown}"), || traced(&server.log()).contains(shown));
        assert!(!traced(&server.log()).contains(hidden), "{filter} hides {hidden}:\n{}", server.log());
    }
}

#[test]
fn an_invalid_filter_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(["--trace", "--trace-filter", "x=1"]).output();
    let output = output.expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--trace-filter") && error.lines().count() == 1, "{error}");
}

#[test]
fn a_recording_is_replayed_as_it_was_traced() {
    let dir = test_dir("recordings");
    let dir_arg = dir.to_str().expect("UTF-8");
    let mut server = Server::start(&["--trace=full", "--record", dir_arg]);
    visit(&server);
    wait_until("all connections have ended", || server.log().matches("= over").count() == 3);
    server.signal("TERM");
    assert!(server.wait().success());
    let mut files: Vec<_> = fs::read_dir(&dir).expect("the folder").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "one file per connection");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&files[0])), (0o700, 0o600), "readable by their owner only");
    for path in files {
        let file = fs::read_to_string(&path).unwrap();
        assert!(!file.contains("dev-token") && !file.contains(&hex(b"dev-token")), "{file}");
        let replayed = replay(&path);
        let number = path.file_stem().unwrap().to_str().unwrap().rsplit('-').next().unwrap();
        let (drawn, result) = replayed.trim_end().rsplit_once('\n').expect("a result in the last line");
        assert!(lines_of_connection(&traced(&server.log()), number) == format!("{drawn}\n"), "{}", path.display());
        assert_eq!(result, "as recorded: the protocol reacts in the same way");
    }
}

/// Returns the output of `wirechat replay` for a valid recording.
fn replay(path: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).arg("replay").arg(path).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the part of the trace that belongs to one connection: its lines, and the indented lines after each of them.
fn lines_of_connection(trace: &str, number: &str) -> String {
    let mut is_its = false;
    let lines = trace.lines().filter(|line| {
        if !line.starts_with(' ') {
            is_its = line.contains(&format!("  #{number} "));
        }
        is_its
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until the recordings in a folder contain `needle`. Returns the text of all recordings in the folder.
fn recorded(dir: &Path, needle: &str) -> String {
    let mut text = String::new();
    wait_until(&format!("a recording contains {needle}"), || {
        let files = fs::read_dir(dir).expect("the folder").map(|entry| entry.unwrap().path());
        text = files.map(|path| fs::read_to_string(path).unwrap()).collect();
        text.contains(needle)
    });
    text
}

/// The server redacts a token wherever it appears in a client's input, for example in a rejected request, or in an HTTP
/// request that the client sends instead of a WebSocket frame.
#[test]
fn tokens_never_appear_in_traces_or_recordings() {
    let upgrade = support::upgrade_request("/echo?username=a");
    let table: [(&str, Vec<&[u8]>); 7] = [
        (
            "after a rejected request",
            vec![b"GET /nope HTTP/1.1\r\nHost: a\r\n\r\nGET /?token=dev-token HTTP/1.1\r\n\r\n"],
        ),
        ("after an early rejection", vec![b"GET / HTTP/1.1\r\nX: a\n", b"Authorization: Bearer dev-token\r\n\r\n"]),
        ("as a first line", vec![b"Authorization: Bearer dev-token\r\n\r\n"]),
        ("after a #", vec![b"GET /?token=x#dev-token HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]),
        ("in place of a frame", vec![upgrade.as_bytes(), b"DELETE /?token=dev-token HTTP/1.1\r\n\r\n"]),
        ("in place of a frame, as a header", vec![upgrade.as_bytes(), b"\nAuthorization: Bearer dev-token\r\n\r\n"]),
        ("cut", vec![b"GET /health?tok", b"en=dev-to", b"ken HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]),
    ];
    for (name, pieces) in table {
        let dir = test_dir(&format!("secrets {name}"));
        let server = Server::start(&[
            "--open",
            "--close-timeout",
            "0.5",
            "--trace=full",
            "--record",
            dir.to_str().expect("UTF-8"),
        ]);
        let mut client = server.connect();
        for piece in pieces {
            client.try_send(piece);
            server.upgrade("/echo"); // once this handshake completes, the server has read `piece`
        }
        drop(client);
        server.wait_for_log("#1 = over");
        let files = recorded(&dir, "\"end\"");
        for (what, text) in [("trace", server.log()), ("recording", files)] {
            for secret in ["dev-token", "dev-to", &hex(b"dev-token"), &hex(b"dev-to"), &spaced_hex(b"dev-to")] {
                assert!(!text.contains(secret), "{name}: {secret} in the {what}");
            }
        }
    }
}

fn spaced_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// The server does not record an inspector's connection, not even a frame sent together with the inspector's request.
#[test]
fn an_inspectors_records_are_not_recorded() {
    let dir = test_dir("inspector");
    let server = Server::start(&["--record", dir.to_str().expect("UTF-8")]);
    let mut alice = server.upgrade(CHAT);
    let ticket = alice.read_event("welcome")["ticket"].as_str().expect("a ticket").to_owned();
    let mut inspector = server.connect();
    let request = support::upgrade_request(&format!("/inspect?ticket={ticket}"));
    inspector.send(&[request.as_bytes(), &masked(0x81, b"{\"do\":\"ping\"}")].concat());
    inspector.read_head();
    inspector.read_json();
    drop(inspector);
    drop(alice);
    let end = |text: &str| text.matches("\"end\"").count() == 2;
    wait_until("both connections have ended", || end(&recorded(&dir, "\"end\"")));
    let text = recorded(&dir, "\"end\"");
    assert!(!text.contains(&hex(b"\"record\"")) && !text.contains(&hex(b"\"do\"")), "{text}");
}

/// The trace reports a client's protocol error only if the server closed the connection because of that error.
#[test]
fn a_rule_broken_after_the_server_has_closed_is_not_reported() {
    let server = Server::start(&["--trace", "--rate-limit", "1"]);
    let mut alice = server.upgrade(CHAT);
    alice.read_event("welcome");
    let message = masked(0x81, br#"{"event":"message","data":{"text":"hi"}}"#);
    alice.send(&[message.repeat(80), vec![0x81, 0x05]].concat());
    let close = alice.read_to_end();
    assert!(close.windows(8).any(|bytes| bytes == b"flooding"), "the server closed for another reason");
    drop(alice);
    server.wait_for_log("#1 = over");
    assert!(!server.log().contains("#1 !"), "{}", server.log());
}

#[test]
fn a_frame_that_comes_with_the_request_is_reported() {
    for (frame, words) in
        [(&[0x81, 0x05][..], "#1 ! 1002 §5.1"), (&masked(0x88, b"\x03\xe8bye"), "the client sent the first Close")]
    {
        let server = Server::start(&["--trace"]);
        let mut client = server.connect();
        client.send(&[support::upgrade_request(CHAT).as_bytes(), frame].concat());
        client.read_to_end();
        server.wait_for_log("#1 = over");
        assert!(server.log().contains(words), "{}", server.log());
    }
}

/// When the server stops, the trace shows the end of every connection. For an inspector's connection, the trace shows
/// only the handshake and the end.
#[test]
fn every_connection_has_an_end() {
    let mut server = Server::start(&["--trace"]);
    let mut alice = server.upgrade(CHAT);
    let ticket = alice.read_event("welcome")["ticket"].as_str().expect("a ticket").to_owned();
    let _inspector = server.upgrade(&format!("/inspect?ticket={ticket}"));
    server.signal("TERM");
    server.wait();
    wait_until("the trace shows both ends", || server.log().matches("= over").count() == 2);
    let log = server.log();
    let of_inspector: Vec<&str> = log.lines().filter(|line| line.contains("  #2 ")).collect();
    assert_eq!(of_inspector.len(), 5, "request, response, two states, end: {of_inspector:#?}");
}

/// Each recording needs a file descriptor, so `--record` at least halves the number of connections that the server
/// accepts.
#[test]
fn recordings_count_against_the_descriptors() {
    let dir = test_dir("descriptors");
    let most = |args: &[&str]| -> usize {
        let banner = Server::start(args).printed();
        let words = banner.split_once("up to ").expect("a bound").1;
        words.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
    };
    let (without, with) = (most(&[]), most(&["--record", dir.to_str().expect("UTF-8")]));
    assert!(with <= without / 2 && with > without / 4, "{with} of {without}");
}

#[test]
fn recordings_stay_within_their_limit() {
    let dir = test_dir("limited");
    let server = Server::start(&["--record", dir.to_str().expect("UTF-8"), "--record-limit", "20000"]);
    let mut echo = server.upgrade("/echo?token=dev-token");
    for _ in 0..100 {
        echo.send_text(&"x".repeat(1000));
        echo.read_frame();
    }
    for _ in 0..10 {
        server.upgrade("/echo?token=dev-token").send_text("hi");
    }
    let files: Vec<_> = fs::read_dir(&dir).expect("the folder").map(|entry| entry.unwrap().path()).collect();
    let size: u64 = files.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(size <= 20_000 && size > 15_000, "{size} bytes");
    let is_cut = |path: &&PathBuf| fs::read_to_string(path).unwrap().trim_end().ends_with("\"cut\":null}");
    let cut: Vec<_> = files.iter().filter(is_cut).collect();
    assert_eq!(cut.len(), 1, "only the connection that reached the limit has a cut recording");
    let replayed = replay(cut[0]);
    assert!(replayed.contains("\nThe recording was cut here: --record-limit was reached.\nas recorded"), "{replayed}");
    server.wait_for_log("RECORD");
    assert_eq!(server.log().matches("RECORD").count(), 1, "logged once: {}", server.log());
}

/// The server still records later connections after many rejected requests, and after it fails to create a file.
#[test]
fn upgraded_connections_are_still_recorded() {
    let dir = test_dir("still recorded");
    let server = Server::start(&["--record", dir.to_str().expect("UTF-8"), "--record-limit", "20000"]);
    for _ in 0..60 {
        let mut rejected = server.connect();
        rejected.send(&get("/nope").bytes());
        rejected.read_to_end();
    }
    server.wait_for_log("RECORD stopped: requests without an upgrade");
    fs::remove_dir_all(&dir).expect("the folder can be removed");
    server.upgrade("/echo?token=dev-token");
    server.wait_for_log("RECORD failed");
    fs::create_dir(&dir).expect("the folder can be created again");
    let mut echo = server.upgrade("/echo?token=dev-token");
    echo.send_text("hi");
    echo.read_frame();
    drop(echo);
    assert!(recorded(&dir, "\"end\"").contains(&hex(b"\x81\x02hi")), "{}", server.log());
}
