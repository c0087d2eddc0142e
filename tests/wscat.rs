//! Tests the server with `wscat`, a popular command-line client from npm, in a pipe and on a terminal.
//! `tests/npm/package.json` pins the version of wscat. To install wscat:
//! `npm install --prefix tests/npm --no-package-lock --no-audit --no-fund`
//!
//! wscat drops lines that it reads before it is connected, and exits at the end of its stdin. So the tests keep stdin
//! open, and type nothing before wscat has printed the `welcome`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use support::{RawClient, Server, wait_until};

const LINE: &str = r#"{"event":"message","data":{"text":"hello from wscat"}}"#;

struct Wscat {
    child: Child,
    stdin: ChildStdin,
    /// The stdout of wscat so far.
    output: Arc<Mutex<String>>,
    /// The prefix that wscat prints before a received message: empty in a pipe, `< ` on a terminal.
    line_prefix: &'static str,
}

impl Wscat {
    fn start(mut command: Command, line_prefix: &'static str) -> Wscat {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("wscat starts");
        let output = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&output);
        let mut stdout = child.stdout.take().expect("stdout is piped");
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut chunk) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        let stdin = child.stdin.take().expect("stdin is piped");
        Wscat { child, stdin, output, line_prefix }
    }

    /// Types `line`, then `end`: a line feed in a pipe, or a carriage return (Enter) on a terminal.
    fn type_line(&mut self, line: &str, end: &str) {
        self.stdin.write_all(format!("{line}{end}").as_bytes()).expect("wscat reads a line");
        self.stdin.flush().expect("wscat reads a line");
    }

    /// Waits until wscat prints an event with this name, and returns the event's data.
    fn wait_for_event(&self, event: &str) -> Value {
        let mut found = None;
        wait_until(&format!("wscat prints the event {event:?}"), || {
            found = events(&self.output.lock().unwrap(), self.line_prefix)
                .into_iter()
                .find(|shown| shown["event"] == event);
            found.is_some()
        });
        found.unwrap()["data"].take()
    }

    fn wait_for_text(&self, text: &str) {
        wait_until(&format!("wscat prints {text:?}"), || self.output.lock().unwrap().contains(text));
    }
}

impl Drop for Wscat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("wscat printed: {:?}", self.output.lock().unwrap());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the JSON messages that wscat received, parsed from its `output`. wscat prints each one on its own line,
/// after the prefix `line_prefix`. Ignores terminal color codes and an incomplete last line.
fn events(output: &str, line_prefix: &str) -> Vec<Value> {
    let whole = &output[..output.rfind('\n').unwrap_or(0)];
    let object = |line: &str| {
        let start = line.find(&format!("{line_prefix}{{"))? + line_prefix.len();
        serde_json::from_str(&line[start..=line.rfind('}')?]).ok()
    };
    whole.lines().filter_map(object).collect()
}

/// Returns the absolute path of wscat, because the shell that `script` starts may have another working directory.
fn wscat() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm/node_modules/.bin/wscat");
    support::require_tool("wscat", &[installed])
}

fn url(server: &Server) -> String {
    format!("ws://127.0.0.1:{}/?token=dev-token&username=bot&room=general", server.port())
}

/// Joins the room as alice, and reads the `welcome`.
fn join_as_alice(server: &Server) -> RawClient {
    let mut client = server.upgrade("/?token=token-alice&username=alice&room=general");
    assert_eq!(client.read_event("welcome")["username"], "alice");
    client
}

#[test]
fn a_script_chats_through_a_pipe() {
    let Some(wscat) = wscat() else { return };
    let server = Server::start(&[]);
    let mut alice = join_as_alice(&server);
    let mut command = Command::new(wscat);
    command.args(["-c", &url(&server)]);
    let mut bot = Wscat::start(command, "");
    converse(&mut bot, "\n", &mut alice);

    drop(bot);
    assert_eq!(alice.read_event("left")["username"], "bot");
}

#[cfg(target_os = "linux")] // the `script` command takes different options on other systems
#[test]
fn a_person_chats_on_a_terminal() {
    let (Some(wscat), Some(script)) = (wscat(), support::require_tool("script", &[])) else { return };
    let server = Server::start(&[]);
    let mut alice = join_as_alice(&server);
    // `script` (util-linux) runs a shell command on a terminal. The command reads its arguments from the environment.
    let mut command = Command::new(script);
    command.args(["-qec", r#"exec "$WSCAT" -c "$URL""#, "/dev/null"]);
    command.env("WSCAT", wscat).env("URL", url(&server)).env("SHELL", "/bin/sh").env("TERM", "xterm");
    let mut bot = Wscat::start(command, "< ");
    bot.wait_for_text("Connected (press CTRL+C to quit)");
    converse(&mut bot, "\r", &mut alice);

    server.signal("TERM");
    bot.wait_for_text("Disconnected (code: 1001");
}

/// Waits until wscat has joined as `bot`. Then sends a message from wscat, and checks that both wscat and alice receive
/// the text unchanged.
fn converse(bot: &mut Wscat, end: &str, alice: &mut RawClient) {
    let welcome = bot.wait_for_event("welcome");
    assert_eq!(welcome["message"], "Welcome to #general, bot!");
    assert_eq!(alice.read_event("joined")["username"], "bot");

    bot.type_line(LINE, end);
    for seen in [bot.wait_for_event("message"), alice.read_event("message")] {
        assert_eq!(seen["username"], "bot");
        assert_eq!(seen["text"], "hello from wscat");
    }
}

#[test]
fn only_complete_received_lines_count() {
    let typed = "\u{1b}[1G> {\"event\":\"message\",\"data\":{}}\r\r\n";
    let received = "\u{1b}[34m< {\"event\":\"pong\",\"data\":{}}\u{1b}[39m\r\n";
    let unfinished = "< {\"event\":\"left\",\"data\":{}}";
    let shown = events(&format!("{typed}{received}{unfinished}"), "< ");
    assert_eq!(shown, [serde_json::json!({ "event": "pong", "data": {} })]);
}
