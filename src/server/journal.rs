//! The log: lines are collected, and written to stderr together: a piece of 4 KiB as soon as there is one, and what is
//! less after a few milliseconds.
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
/// How long a line may wait for others to go with, in milliseconds.
const MAX_WAIT: u64 = 5;

/// The lines that wait to be written. Copies share them.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Mutex<Lines<Stderr>>>);

#[derive(Debug)]
struct Lines<W> {
    waiting: Vec<u8>,
    lost: usize,
    /// When the first line came that stderr was not offered yet, in milliseconds.
    news_since: Option<u64>,
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

    /// A turn of the loop begins at this time, with nothing to do if it `is_idle`. Writes what waits, if that is
    /// enough, has waited for long enough, or was offered before.
    pub fn turn(&self, now: SystemTime, is_idle: bool) {
        self.lines().turn(now, is_idle);
    }

    /// How long the loop may sleep before `turn` is to be called, if there is news.
    pub fn timeout(&self) -> Option<Duration> {
        let lines = self.lines();
        let waited = lines.news_since.map(|since| lines.millis.abs_diff(since))?;
        Some(Duration::from_millis(MAX_WAIT.saturating_sub(waited)))
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
                // An error counts as room: the write itself will tell.
                if poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready == 0) {
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
        Lines {
            waiting: Vec::new(),
            lost: 0,
            news_since: None,
            millis: millis(SystemTime::now()),
            time: String::new(),
            stderr,
        }
    }

    fn turn(&mut self, now: SystemTime, is_idle: bool) {
        let millis = millis(now);
        if millis != self.millis {
            self.millis = millis;
            self.time.clear();
        }
        // What is no news was offered to a stderr that took no more, and is offered again.
        let has_waited = self.news_since.is_none_or(|since| millis.abs_diff(since) >= MAX_WAIT);
        if is_idle || has_waited || self.waiting.len() >= PIECE {
            self.flush();
        }
    }

    fn log(&mut self, record: &Record) {
        if self.time.is_empty() {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.millis);
            self.time = humantime::format_rfc3339_millis(now).to_string();
        }
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
        } else {
            self.news_since.get_or_insert(self.millis);
        }
    }

    fn add(&mut self, line: &[u8]) {
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.flush();
        }
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.lost += 1;
        } else {
            self.waiting.extend_from_slice(line);
            self.news_since.get_or_insert(self.millis);
        }
    }

    fn flush(&mut self) {
        self.news_since = None;
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

    /// Begins the next turn so many milliseconds after the last, and returns what is written.
    fn turn(lines: &mut Lines<Pipe>, wait: u64, is_idle: bool) -> Vec<u8> {
        lines.turn(SystemTime::UNIX_EPOCH + Duration::from_millis(lines.millis + wait), is_idle);
        std::mem::take(&mut lines.stderr.taken)
    }

    #[test]
    fn lines_are_written_together_when_there_is_nothing_else_to_do() {
        let mut lines = lines(usize::MAX);
        lines.add(b"one\n");
        assert_eq!(turn(&mut lines, 0, false), b"");
        lines.add(b"two\n");
        assert_eq!(turn(&mut lines, 0, true), b"one\ntwo\n");
    }

    #[test]
    fn a_loop_that_is_never_idle_writes_what_is_enough_or_has_waited() {
        let mut lines = lines(usize::MAX);
        lines.add(b"one\n");
        assert_eq!(turn(&mut lines, MAX_WAIT - 1, false), b"");
        lines.add(b"two\n");
        assert_eq!(turn(&mut lines, 1, false), b"one\ntwo\n");
        lines.add(&[b'x'; PIECE - 1]);
        assert_eq!(turn(&mut lines, 0, false), b"");
        lines.add(b"\n");
        assert_eq!(turn(&mut lines, 0, false).len(), PIECE);
    }

    #[test]
    fn a_line_for_which_others_had_to_go_keeps_the_loop_awake() {
        let mut by_add = lines(usize::MAX);
        let mut by_log = lines(usize::MAX);
        for lines in [&mut by_add, &mut by_log] {
            lines.add(&[b'x'; MAX_WAITING]);
        }
        by_add.add(b"one\n");
        by_log.log(&Record::builder().args(format_args!("one")).build());
        for lines in [by_add, by_log] {
            assert_eq!(lines.stderr.taken.len(), MAX_WAITING);
            assert!(lines.news_since.is_some() && lines.waiting.ends_with(b"one\n"));
        }
    }

    #[test]
    fn a_stderr_that_took_no_more_is_offered_the_rest_in_every_turn() {
        let mut lines = lines(0);
        lines.add(b"one\n");
        assert_eq!(turn(&mut lines, 0, true), b"");
        assert_eq!(lines.news_since, None, "the loop does not stay awake for it");
        lines.stderr.room = usize::MAX;
        assert_eq!(turn(&mut lines, 0, false), b"one\n");
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
