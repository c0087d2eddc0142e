//! The log: lines are collected during a turn of the loop and written to stderr together at its end.
//!
//! `log` and `env_logger` decide which lines there are and how they look; this file only decides when they are written.
//! It knows nothing of what they say.
//!
//! The subtle thing: a pipe that nobody reads, or a terminal that is stopped, would block the write and with it every
//! client. So the kernel is asked first whether it would take more, and no more is written at once than a pipe takes
//! whole. Lines that find no room are lost, and counted. (Another process that writes to the same pipe could still
//! fill it between the question and the write. A thread of its own for the log would not even know that.)

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The part of a pipe that is free when the kernel calls it writable, at the least (`PIPE_BUF`).
const PIECE: usize = 4096;
/// How much is kept for a stderr that takes no more.
const MAX_WAITING: usize = 64 * 1024;

/// The lines that wait to be written. Copies share them.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    waiting: Vec<u8>,
    lost: usize,
}

impl Journal {
    /// Installs a journal as the logger of this process. `level` is what is logged unless `WIRECHAT_LOG` says
    /// otherwise, in the syntax of `env_logger`.
    pub fn install(level: log::LevelFilter) -> Journal {
        let journal = Journal::default();
        let logger = env_logger::Builder::new()
            .filter_level(level)
            .parse_env("WIRECHAT_LOG")
            .format(|out, record| {
                let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
                writeln!(out, "{now} {:5} {}", record.level(), record.args())
            })
            .target(env_logger::Target::Pipe(Box::new(journal.clone())))
            .try_init();
        debug_assert!(logger.is_ok(), "the logger is installed once");
        journal
    }

    /// Writes what waits, as far as stderr takes it without blocking.
    pub fn flush(&self) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.waiting.is_empty() {
            lines.flush(&mut io::stderr(), stderr_takes_more);
        }
    }
}

impl Lines {
    fn add(&mut self, line: &[u8]) {
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.lost += 1;
        } else {
            self.waiting.extend_from_slice(line);
        }
    }

    fn flush(&mut self, stderr: &mut impl Write, takes_more: impl Fn() -> bool) {
        let mut written = 0;
        while written < self.waiting.len() && takes_more() {
            let piece = &self.waiting[written..];
            match stderr.write(&piece[..piece.len().min(PIECE)]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody is there to be told.
                Err(_) => written = self.waiting.len(),
            }
        }
        self.waiting.drain(..written);
        if self.waiting.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.add(format!("{lost} lines of the log are lost: nobody read them\n").as_bytes());
        }
    }
}

fn stderr_takes_more() -> bool {
    let stderr = io::stderr();
    let mut asked = [PollFd::new(&stderr, PollFlags::OUT)];
    // An error counts as room: the write itself will tell.
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_or(true, |ready| ready > 0)
}

impl Write for Journal {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // at the end of the turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turns_lines_are_written_together_and_in_order() {
        let mut lines = Lines::default();
        lines.add(b"one\n");
        lines.add(b"two\n");
        let mut stderr = Vec::new();
        lines.flush(&mut stderr, || true);
        assert_eq!(stderr, b"one\ntwo\n");
    }

    #[test]
    fn a_stderr_that_takes_no_more_loses_lines_and_is_told_how_many() {
        let mut lines = Lines::default();
        let line = [b'x'; 1024];
        for _ in 0..100 {
            lines.add(&line);
            lines.flush(&mut io::sink(), || false);
        }
        assert_eq!((lines.waiting.len(), lines.lost), (MAX_WAITING, 36));
        let mut stderr = Vec::new();
        lines.flush(&mut stderr, || true);
        lines.flush(&mut stderr, || true);
        assert_eq!(stderr.len(), MAX_WAITING + "36 lines of the log are lost: nobody read them\n".len());
    }
}
