//! The log writer queues lines and writes them to stderr in batches, if possible without blocking: a stopped terminal
//! or a full pipe must not delay any client. The log writer drops and counts lines that the queue cannot hold.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use env_filter::FilteredLog;
use log::{Level, Log, Metadata, Record};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags, open};

use super::is_ready;
use crate::chat::Now;

const PIPE_BUF: usize = 4096; // a pipe that polls as writable accepts this many bytes without blocking: pipe(7)
const MAX_QUEUED_BYTES: usize = 64 * 1024;
/// The events whose log lines may fill the whole log queue. Error lines may also fill the whole queue. All other lines
/// may fill only half of it, so that lines about rejected clients do not crowd out a `JOIN` line.
const PRIORITY_EVENTS: [&str; 3] = ["JOIN ", "LEAVE ", "SWITCH "];
// Log lines wait up to this long, so that several lines share a write. One write per loop turn would take 5 % of the
// CPU time that the server spends on a short connection.
const MAX_LINE_WAIT: Duration = Duration::from_millis(5);

/// Queues log lines for stderr. Clones share one queue.
#[derive(Clone)]
pub struct LogWriter(Arc<Mutex<LogQueue>>);

/// Writes to stderr and returns the number of bytes written. May block only if stderr cannot be made non-blocking.
pub type WriteFn = Box<dyn FnMut(&[u8]) -> io::Result<usize> + Send>;

pub struct LogQueue {
    queued: Vec<u8>,
    dropped: usize,
    waiting_since: Option<Duration>, // monotonic time of the first line queued since the last flush
    now: Now,
    write: WriteFn,
}

impl LogWriter {
    pub fn new(write: WriteFn) -> LogWriter {
        let now = Now { time: SystemTime::now(), monotonic: Duration::ZERO };
        LogWriter(Arc::new(Mutex::new(LogQueue { queued: Vec::new(), dropped: 0, waiting_since: None, now, write })))
    }

    /// Installs the global logger. The environment variable `WIRECHAT_LOG` (`env_filter` syntax) overrides `level`.
    pub fn install(level: log::LevelFilter) -> Result<LogWriter, String> {
        let directives = std::env::var("WIRECHAT_LOG").unwrap_or_default();
        let invalid = |error| format!("WIRECHAT_LOG={directives:?}: {error}.");
        let filter = env_filter::Builder::new().filter_level(level).try_parse(&directives).map_err(invalid)?.build();
        log::set_max_level(filter.filter());
        // If stderr is a terminal, reopen it: the new descriptor can be non-blocking without affecting other processes.
        // A poll would not suffice, because a terminal polls as writable even if it accepts only a single byte.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let reopen = || open("/proc/self/fd/2", flags, Mode::empty()).ok().map(File::from);
        let mut terminal = io::stderr().is_terminal().then(reopen).flatten();
        let write = move |bytes: &[u8]| match &mut terminal {
            Some(terminal) => terminal.write(bytes),
            // Despite the poll, the write can block: another process may fill the pipe between the poll and the write.
            None if is_ready(&io::stderr(), PollFlags::OUT) => io::stderr().write(&bytes[..bytes.len().min(PIPE_BUF)]),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        let writer = LogWriter::new(Box::new(write));
        let installed = log::set_boxed_logger(Box::new(FilteredLog::new(writer.clone(), filter)));
        debug_assert!(installed.is_ok(), "the logger is installed once");
        Ok(writer)
    }

    /// Queues trace lines, regardless of the log level.
    pub fn write(&self, text: &str) {
        let mut lines = self.lines();
        text.split_inclusive('\n').for_each(|line| lines.push(line.as_bytes(), MAX_QUEUED_BYTES / 2));
    }

    pub fn lines(&self) -> MutexGuard<'_, LogQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for LogWriter {
    fn enabled(&self, _: &Metadata) -> bool {
        true // `FilteredLog` has already dropped disabled records
    }

    fn log(&self, record: &Record) {
        self.lines().log(record);
    }

    fn flush(&self) {} // does nothing: the event loop decides when to flush the queue
}

impl LogQueue {
    /// Writes queued lines if the loop is idle, if 4 KiB are queued, or if a line has waited for `MAX_LINE_WAIT`.
    pub fn begin_turn(&mut self, now: Now, is_idle: bool) {
        self.now = now;
        // If lines are queued but `waiting_since` is `None`, stderr was full at the last flush: retry in every turn.
        let has_waited = self.waiting_since.is_none_or(|since| now.monotonic - since >= MAX_LINE_WAIT);
        if is_idle || has_waited || self.queued.len() >= PIPE_BUF {
            self.flush();
        }
    }

    /// The monotonic time by which the next loop turn must begin, to write queued log lines. `None` means no deadline.
    pub fn deadline(&self) -> Option<Duration> {
        self.waiting_since.map(|since| since + MAX_LINE_WAIT)
    }

    fn log(&mut self, record: &Record) {
        let (time, message) = (humantime::format_rfc3339_millis(self.now.time), record.args().to_string());
        let is_urgent = record.level() == Level::Error || PRIORITY_EVENTS.iter().any(|name| message.starts_with(name));
        let max = if is_urgent { MAX_QUEUED_BYTES } else { MAX_QUEUED_BYTES / 2 };
        self.push(format!("{time} {:<5} {message}\n", record.level()).as_bytes(), max);
    }

    /// Queues a line. If the queue would exceed `max` bytes, flushes first. Drops a line that still does not fit.
    fn push(&mut self, line: &[u8], max: usize) {
        if self.queued.len() + line.len() > max {
            self.flush();
        }
        if self.queued.len() + line.len() > max {
            self.dropped += 1;
        } else {
            self.queued.extend_from_slice(line);
            self.waiting_since.get_or_insert(self.now.monotonic);
        }
    }

    pub fn flush(&mut self) {
        self.waiting_since = None;
        let mut written = 0;
        while written < self.queued.len() {
            match (self.write)(&self.queued[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Discard the log lines: if stderr fails, the server has nowhere to report the error.
                Err(_) => written = self.queued.len(),
            }
        }
        self.queued.drain(..written);
        if self.queued.is_empty() && self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.push(format!("{dropped} log lines were dropped: stderr was full\n").as_bytes(), MAX_QUEUED_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::{Deref, DerefMut};

    use super::*;

    /// A fake stderr that accepts `space` bytes and then returns `WouldBlock`.
    struct Pipe {
        taken: Vec<u8>,
        space: usize,
    }

    impl Pipe {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            let len = piece.len().min(self.space).min(PIPE_BUF);
            self.space -= len;
            self.taken.extend_from_slice(&piece[..len]);
            if len == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(len) }
        }
    }

    struct TestQueue {
        lines: LogQueue,
        pipe: Arc<Mutex<Pipe>>,
    }

    impl TestQueue {
        fn stderr(&self) -> MutexGuard<'_, Pipe> {
            self.pipe.lock().unwrap()
        }
    }

    impl Deref for TestQueue {
        type Target = LogQueue;

        fn deref(&self) -> &LogQueue {
            &self.lines
        }
    }

    impl DerefMut for TestQueue {
        fn deref_mut(&mut self) -> &mut LogQueue {
            &mut self.lines
        }
    }

    fn lines(space: usize) -> TestQueue {
        let pipe = Arc::new(Mutex::new(Pipe { taken: Vec::new(), space }));
        let stderr = Arc::clone(&pipe);
        let write = move |piece: &[u8]| stderr.lock().unwrap().write(piece);
        let lines = Arc::into_inner(LogWriter::new(Box::new(write)).0).unwrap().into_inner().unwrap();
        TestQueue { lines, pipe }
    }

    /// Advances the test's clock by `wait` milliseconds, runs one turn, and returns the bytes that the turn wrote.
    fn turn(lines: &mut TestQueue, wait: u64, is_idle: bool) -> Vec<u8> {
        let monotonic = lines.now.monotonic + Duration::from_millis(wait);
        lines.begin_turn(Now { time: SystemTime::UNIX_EPOCH, monotonic }, is_idle);
        std::mem::take(&mut lines.stderr().taken)
    }

    #[test]
    fn lines_are_written_together_when_there_is_nothing_else_to_do() {
        let mut lines = lines(usize::MAX);
        lines.push(b"one\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 0, false), b"");
        lines.push(b"two\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 0, true), b"one\ntwo\n");
    }

    #[test]
    fn a_busy_event_loop_writes_full_batches_and_overdue_lines() {
        let mut lines = lines(usize::MAX);
        lines.push(b"one\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 4, false), b"");
        lines.push(b"two\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 1, false), b"one\ntwo\n");
        lines.push(&[b'x'; PIPE_BUF - 1], MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 0, false), b"");
        lines.push(b"\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 0, false).len(), PIPE_BUF);
    }

    #[test]
    fn a_line_queued_after_a_forced_flush_has_a_deadline() {
        let mut by_push = lines(usize::MAX);
        let mut by_log = lines(usize::MAX);
        for lines in [&mut by_push, &mut by_log] {
            lines.push(&[b'x'; MAX_QUEUED_BYTES], MAX_QUEUED_BYTES);
        }
        by_push.push(b"one\n", MAX_QUEUED_BYTES);
        by_log.log(&Record::builder().args(format_args!("one")).build());
        for lines in [by_push, by_log] {
            assert_eq!(lines.stderr().taken.len(), MAX_QUEUED_BYTES);
            assert!(lines.waiting_since.is_some() && lines.queued.ends_with(b"one\n"));
        }
    }

    #[test]
    fn a_full_stderr_is_retried_in_every_turn() {
        let mut lines = lines(0);
        lines.push(b"one\n", MAX_QUEUED_BYTES);
        assert_eq!(turn(&mut lines, 0, true), b"");
        assert_eq!(lines.waiting_since, None, "a full stderr sets no deadline");
        lines.stderr().space = usize::MAX;
        assert_eq!(turn(&mut lines, 0, false), b"one\n");
    }

    #[test]
    fn a_line_has_a_time_and_a_level() {
        let mut lines = lines(usize::MAX);
        let mut log = |level, millis| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            lines.begin_turn(Now { time, monotonic: Duration::ZERO }, false);
            lines.log(&Record::builder().level(level).args(format_args!("what")).build());
        };
        log(log::Level::Info, 1_700_000_000_001);
        log(log::Level::Info, 1_700_000_000_001);
        log(log::Level::Error, 1_700_000_000_002);
        lines.flush();
        let written = "2023-11-14T22:13:20.001Z INFO  what\n2023-11-14T22:13:20.001Z INFO  what\n\
                       2023-11-14T22:13:20.002Z ERROR what\n";
        assert_eq!(String::from_utf8(lines.stderr().taken.clone()).unwrap(), written);
    }

    #[test]
    fn a_blocked_stderr_loses_lines_and_later_shows_their_number() {
        let mut lines = lines(0);
        for _ in 0..100 {
            lines.push(&[b'x'; 1024], MAX_QUEUED_BYTES);
            lines.flush();
        }
        assert_eq!((lines.queued.len(), lines.dropped), (MAX_QUEUED_BYTES, 36));
        lines.stderr().space = usize::MAX;
        lines.flush();
        lines.flush();
        assert_eq!(lines.stderr().taken.len(), MAX_QUEUED_BYTES + "36 log lines were dropped: stderr was full\n".len());
    }

    #[test]
    fn a_flood_of_rejections_leaves_room_for_the_lines_about_the_users() {
        let mut lines = lines(0);
        let log = |lines: &mut TestQueue, level, message: &str| {
            lines.log(&Record::builder().level(level).args(format_args!("{message}")).build());
        };
        for level in [Level::Info, Level::Warn].into_iter().cycle().take(2000) {
            log(&mut lines, level, "REJECT 192.0.2.1:5000 404 Not Found");
        }
        lines.push(&[b'x'; 1024], MAX_QUEUED_BYTES / 2);
        for message in ["JOIN room=a", "SWITCH from=a to=b", "LEAVE room=b", "RELOAD"] {
            let level = if message == "RELOAD" { Level::Error } else { Level::Info };
            log(&mut lines, level, message);
            assert!(lines.queued.ends_with(format!("{message}\n").as_bytes()), "{message}");
        }
        assert!(lines.queued.len() < MAX_QUEUED_BYTES / 2 + 200 && lines.dropped > 1000);
    }

    #[test]
    fn a_long_turn_loses_nothing_if_stderr_takes_it() {
        let mut lines = lines(usize::MAX);
        (0..1000).for_each(|_| lines.push(&[b'x'; 1024], MAX_QUEUED_BYTES));
        lines.flush();
        assert_eq!((lines.stderr().taken.len(), lines.dropped), (1000 * 1024, 0));
    }
}
