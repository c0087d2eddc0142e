//! Runs a server that is expected to fail at startup, and checks its exit status and its single line on stderr.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::Server;

/// The server's exit status if an option, or a file that an option names, is invalid.
pub const USAGE: i32 = 2;
/// The exit status after an error at run time.
pub const FAILURE: i32 = 1;

/// The exit status and the error output of a server that failed to start.
pub struct Failure {
    pub status: Option<i32>,
    pub stderr: String,
}

#[track_caller]
pub fn expect_start_failure(listen: &str, args: &[&str]) -> Failure {
    run_to_failure(&mut Server::command(listen, args))
}

/// Runs a server that is expected to fail at startup, and waits for it to exit. If the server starts successfully,
/// kills it and fails the test.
#[track_caller]
pub fn run_to_failure(command: &mut Command) -> Failure {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut banner = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut banner).unwrap();
    if !banner.is_empty() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(banner, "", "the server does not start");
    Failure { status: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() }
}

impl Failure {
    /// Asserts the exit status, and that stderr is one line that contains all `words`.
    #[track_caller]
    pub fn check(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{}", self.stderr);
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert!(matches!(lines.as_slice(), [line] if line.starts_with("wirechat: ")), "one line: {:?}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} in {:?}", self.stderr);
        }
    }
}
