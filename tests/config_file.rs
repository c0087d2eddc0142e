//! Tests of `--config FILE`: a TOML file sets options; environment variables and the command line override the file.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use serde_json::Value;
use support::failure::{Failure, USAGE, run_to_failure};
use support::http::handshake;
use support::table::each_row;
use support::users::{Dialect, User, events_path};
use support::{Server, token_file};

fn write_config(name: &str, text: &str) -> String {
    token_file(name, text).to_str().unwrap().to_owned()
}

fn with_file(path: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    command.args(["--config", path]);
    command
}

fn run_with(path: &str) -> Failure {
    run_to_failure(&mut with_file(path))
}

/// Joins, and returns the limits that the server reports in `welcome`.
fn limits(server: &Server) -> Value {
    User::at(server, Dialect::Events, &events_path("alice", "general"), "alice").receive()["data"]["limits"].take()
}

#[test]
fn the_command_line_overrides_the_environment_which_overrides_the_file() {
    let path = write_config("precedence", "max-text = 300\nmax-message = 40_000\nrate-limit = 7.5\n");
    let mut command = Server::command("127.0.0.1:0", &["--config", &path, "--max-text", "100"]);
    let server = Server::launch(command.env("WIRECHAT_MAX_MESSAGE", "50000").env("WIRECHAT_MAX_TEXT", "200"));
    let limits = limits(&server);
    assert_eq!(
        (&limits["max_text"], &limits["max_message"], &limits["rate_limit"]),
        (&100.into(), &50_000.into(), &7.5.into())
    );
}

#[test]
fn a_file_sets_options_of_each_kind() {
    let text = "# a comment
        listen = \"127.0.0.1:0\"
        open = true
        no-echo = false
        no-inspect = true
        allow-host = [\"chat.example\", \"localhost\"]
        allow-origin = []
        ping-interval = 0.5
        quiet = true";
    // Do not use `Server::command`: its `--listen` would override the `listen` in the file.
    let server = Server::launch(
        Command::new(env!("CARGO_BIN_EXE_wirechat")).env("WIRECHAT_CONFIG", write_config("kinds", text)),
    );
    assert_eq!(server.status(&handshake().target("/").set("Host: chat.example")), 101, "a client needs no token");
    assert_eq!(server.status(&handshake().target("/echo").set("Host: evil.example")), 403);
    assert_eq!(server.status(&handshake().target("/echo")), 101);
    assert_eq!(server.log(), "", "--quiet logs no connections");
}

/// A list on the command line replaces the list in the file. The server does not merge the two lists.
#[test]
fn lists_are_replaced() {
    let path = write_config("lists", "allow-host = [\"one.example\"]");
    let server = Server::start(&["--open", "--config", &path, "--allow-host", "two.example"]);
    assert_eq!(server.status(&handshake().set("Host: one.example")), 403);
    assert_eq!(server.status(&handshake().set("Host: two.example")), 101);
}

/// Each row has the text of a configuration file, and words that the error message must contain.
#[test]
fn errors_name_the_file_and_the_option() {
    let rows: [(&str, &[&str]); 15] = [
        ("max-txt = 5", &["--max-txt", "--max-text"]),
        ("max_text = 5", &["max_text", "--max-text"]),
        ("max-text = \"many\"", &["--max-text", "many", "a whole number"]),
        ("max-text = -1", &["--max-text", "-1"]),
        ("max-text = true", &["--max-text", "value"]),
        ("max-text = [5, 6]", &["--max-text"]),
        ("open = \"yes\"", &["--open"]),
        ("open = 1", &["--open"]),
        ("[limits]\nmax-text = 5", &["limits", "write a text, a number, true or false"]),
        ("listen = 07:32:00", &["listen", "write a text"]),
        ("config = \"other.toml\"", &["config", "only the command line"]),
        ("help = true", &["help", "only the command line"]),
        ("max-text = 5\n\nmax-text = 6", &["line 3", "duplicate"]),
        ("max-text = 5\nmax-message 6", &["line 2"]),
        ("listen = \"nonsense\"", &["--listen", "127.0.0.1:3000"]),
    ];
    each_row(
        &rows,
        |(text, _)| (*text).to_owned(),
        |(text, words)| {
            let path = write_config("errors", text);
            run_with(&path).check(USAGE, &[words, &["--config", &path][..]].concat());
        },
    );
    run_with("/nonexistent.toml").check(USAGE, &["--config /nonexistent.toml: No such file"]);
    // The error message for an invalid environment variable does not mention the configuration file.
    let path = write_config("valid", "max-text = 5");
    let environment = run_to_failure(with_file(&path).env("WIRECHAT_MAX_HEAD", "x"));
    environment.check(USAGE, &["--max-head"]);
    assert!(!environment.stderr.contains("--config"), "{}", environment.stderr);
    // The server also rejects a file whose options contradict each other.
    run_with(&write_config("pair", "ping-interval = 9\nidle-timeout = 8")).check(USAGE, &["--idle-timeout 8"]);
}

/// Subcommands such as `explain` do not read the configuration file.
#[test]
fn tools_ignore_the_file() {
    let mut explain = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    let output = explain.args(["explain", "8100"]).env("WIRECHAT_CONFIG", "/nonexistent.toml").output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
