//! The log: lines are collected, and written to stderr together when the loop has nothing else to do, or in pieces of
//! 4 KiB while it has.
//!
//! `log` and `env_logger` decide which lines there are; this file, how they look and when they are written. It knows
//! nothing of what they say.
//!
//! The subtle thing: a pipe that nobody reads, or a terminal that is stopped, would block the write and with it every
//! client. So the kernel is asked first whether it would take more, and no more is written at once than a pipe takes
//! whole. Lines that find no room are lost, and counted. (Another process that writes to the same pipe could still
//! fill it between the question and the write. A thread of its own for the log would not even know that.)

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use log::{Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// The part of a pipe that is free when the kernel calls it writable, at the least (`PIPE_BUF`).
const PIECE: usize = 4096;
/// How much is kept for a stderr that takes no more.
const MAX_WAITING: usize = 64 * 1024;
/// How many turns of a loop that is never idle a line waits at the most.
const MAX_TURNS: u32 = 16;

/// The lines that wait to be written. Copies share them.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Mutex<Lines<Stderr>>>);

#[derive(Debug)]
struct Lines<W> {
    waiting: Vec<u8>,
    lost: usize,
    /// Turns since stderr was last offered what waits.
    turns: u32,
    /// A line has come since then.
    has_news: bool,
    /// When this turn began: in milliseconds, and as it stands before each line; empty until one needs it.
    millis: u64,
    time: String,
    stderr: W,
}

/// What `log` calls: `env_logger` judges a record, and what passes becomes a line of the journal.
struct Logger {
    filter: env_logger::Logger,
    journal: Journal,
}

/// Standard error as something that never blocks.
#[derive(Debug)]
enum Stderr {
    /// A terminal calls itself writable when it takes a single byte, so asking does not help. It is opened once more: that
    /// descriptor may be non-blocking without anybody else's becoming so.
    Terminal(File),
    /// A pipe, a file, or whatever else: it is asked each time.
    Asked(io::Stderr),
}

impl Journal {
    /// Installs a journal as the logger of this process. `level` is what is logged unless `WIRECHAT_LOG` says
    /// otherwise, in the syntax of `env_logger`.
    pub fn install(level: log::LevelFilter) -> Journal {
        let journal = Journal(Arc::new(Mutex::new(Lines::new(Stderr::open()))));
        let filter = env_logger::Builder::new().filter_level(level).parse_env("WIRECHAT_LOG").build();
        log::set_max_level(filter.filter());
        let installed = log::set_boxed_logger(Box::new(Logger { filter, journal: journal.clone() }));
        debug_assert!(installed.is_ok(), "the logger is installed once");
        journal
    }

    /// A turn of the loop begins at this time, with nothing to do if it `is_idle`. Writes what waits, if now is a good
    /// moment or the last one.
    pub fn turn(&self, now: SystemTime, is_idle: bool) {
        self.lines().turn(now, is_idle);
    }

    /// Whether lines wait that stderr was not offered yet, so that the loop must not go to sleep.
    pub fn has_news(&self) -> bool {
        self.lines().has_news
    }

    /// Writes what waits, as far as stderr takes it without blocking.
    pub fn flush(&self) {
        self.lines().flush();
    }

    /// Adds text that is not of the log: lines, whole. Who asks for them wants them at any level.
    pub fn write(&self, text: &str) {
        let mut lines = self.lines();
        text.split_inclusive('\n').for_each(|line| lines.add(line.as_bytes()));
    }

    fn lines(&self) -> MutexGuard<'_, Lines<Stderr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if self.filter.matches(record) {
            self.journal.lines().log(record);
        }
    }

    fn flush(&self) {} // when the loop has time for it
}

impl Stderr {
    fn open() -> Stderr {
        let stderr = io::stderr();
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
        let again = || File::options().write(true).custom_flags(flags).open("/proc/self/fd/2").ok();
        match stderr.is_terminal().then(again).flatten() {
            Some(terminal) => Stderr::Terminal(terminal),
            None => Stderr::Asked(stderr),
        }
    }
}

impl Write for Stderr {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self {
            Stderr::Terminal(terminal) => terminal.write(piece),
            Stderr::Asked(stderr) => {
                let mut asked = [PollFd::new(stderr, PollFlags::OUT)];
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                // An error counts as room: the write itself will tell.
                if poll(&mut asked, Some(&now)).is_ok_and(|ready| ready == 0) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                stderr.write(&piece[..piece.len().min(PIECE)])
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Lines<W> {
    fn new(stderr: W) -> Lines<W> {
        Lines { waiting: Vec::new(), lost: 0, turns: 0, has_news: false, millis: millis(SystemTime::now()), time: String::new(), stderr }
    }

    fn turn(&mut self, now: SystemTime, is_idle: bool) {
        let millis = millis(now);
        if millis != self.millis {
            self.millis = millis;
            self.time.clear();
        }
        self.turns += 1;
        if is_idle || self.turns >= MAX_TURNS || self.waiting.len() >= PIECE {
            self.flush();
        }
    }

    fn log(&mut self, record: &Record) {
        if self.time.is_empty() {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.millis);
            self.time = humantime::format_rfc3339_millis(now).to_string();
        }
        self.has_news = true;
        let (before, level) = (self.waiting.len(), record.level().as_str());
        for piece in [&self.time, " ", level, &"      "[level.len()..]] {
            self.waiting.extend_from_slice(piece.as_bytes());
        }
        // Memory takes whatever is written.
        let _ = self.waiting.write_fmt(*record.args());
        self.waiting.push(b'\n');
        if self.waiting.len() > MAX_WAITING {
            let line = self.waiting.split_off(before);
            self.add(&line);
        }
    }

    fn add(&mut self, line: &[u8]) {
        self.has_news = true;
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.flush();
        }
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.lost += 1;
        } else {
            self.waiting.extend_from_slice(line);
        }
    }

    fn flush(&mut self) {
        (self.turns, self.has_news) = (0, false);
        let mut written = 0;
        while written < self.waiting.len() {
            match self.stderr.write(&self.waiting[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Nobody is there to be told.
                Err(_) => written = self.waiting.len(),
            }
        }
        self.waiting.drain(..written);
        if self.waiting.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            self.add(format!("{lost} lines of the log are lost: stderr took no more\n").as_bytes());
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stderr that takes so many bytes and then would block.
    struct Pipe {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Pipe {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            let len = piece.len().min(self.room).min(PIECE);
            self.room -= len;
            self.taken.extend_from_slice(&piece[..len]);
            if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(room: usize) -> Lines<Pipe> {
        Lines::new(Pipe { taken: Vec::new(), room })
    }

    #[test]
    fn lines_are_written_together_and_in_order_when_there_is_nothing_else_to_do() {
        let (mut lines, now) = (lines(usize::MAX), SystemTime::UNIX_EPOCH);
        lines.add(b"one\n");
        lines.turn(now, false);
        lines.add(b"two\n");
        assert_eq!((lines.stderr.taken.len(), lines.has_news), (0, true), "the loop must not sleep");
        lines.turn(now, true);
        assert_eq!((&lines.stderr.taken[..], lines.has_news), (&b"one\ntwo\n"[..], false));
    }

    #[test]
    fn a_loop_that_is_never_idle_writes_pieces_and_lets_no_line_wait_for_long() {
        let (mut lines, now) = (lines(usize::MAX), SystemTime::UNIX_EPOCH);
        let turns_until_written = |lines: &mut Lines<Pipe>| {
            let written = lines.stderr.taken.len();
            (1..100).find(|_| {
                lines.turn(now, false);
                lines.stderr.taken.len() > written
            })
        };
        lines.add(b"one\n");
        assert_eq!(turns_until_written(&mut lines), Some(MAX_TURNS));
        lines.add(&[b'x'; PIECE]);
        assert_eq!(turns_until_written(&mut lines), Some(1));
        lines.stderr.room = 0;
        lines.add(b"two\n");
        lines.turn(now, true);
        assert!(!lines.has_news, "the loop does not stay awake for a stderr that takes no more");
        lines.stderr.room = usize::MAX;
        lines.turn(now, true);
        assert!(lines.stderr.taken.ends_with(b"two\n"), "but offers it again what waits");
    }

    #[test]
    fn a_line_says_when_and_how_bad() {
        let mut lines = lines(usize::MAX);
        let mut log = |level, millis| {
            lines.turn(SystemTime::UNIX_EPOCH + Duration::from_millis(millis), false);
            lines.log(&Record::builder().level(level).args(format_args!("what")).build());
        };
        log(log::Level::Info, 1_700_000_000_001);
        log(log::Level::Info, 1_700_000_000_001);
        log(log::Level::Error, 1_700_000_000_002);
        lines.flush();
        let written = "2023-11-14T22:13:20.001Z INFO  what\n2023-11-14T22:13:20.001Z INFO  what\n\
                       2023-11-14T22:13:20.002Z ERROR what\n";
        assert_eq!(String::from_utf8(lines.stderr.taken).unwrap(), written);
    }

    #[test]
    fn a_stderr_that_takes_no_more_loses_lines_and_is_told_how_many() {
        let mut lines = lines(0);
        for _ in 0..100 {
            lines.add(&[b'x'; 1024]);
            lines.flush();
        }
        assert_eq!((lines.waiting.len(), lines.lost), (MAX_WAITING, 36));
        lines.stderr.room = usize::MAX;
        lines.flush();
        lines.flush();
        assert_eq!(lines.stderr.taken.len(), MAX_WAITING + "36 lines of the log are lost: stderr took no more\n".len());
    }

    #[test]
    fn a_long_turn_loses_nothing_if_stderr_takes_it() {
        let mut lines = lines(usize::MAX);
        (0..1000).for_each(|_| lines.add(&[b'x'; 1024]));
        lines.flush();
        assert_eq!((lines.stderr.taken.len(), lines.lost), (1000 * 1024, 0));
    }
}
