//! What a run reports when it fails: the number of steps, and, if the run is traced, its last events. These are the
//! records of each connection as `--trace` writes them (except empty Pings and Pongs), the log lines, and the script's
//! actions and faults. All of it is in thread-locals, because a panic in the server drops the run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use wirechat::inspect::text::{self, Detail, Style};
use wirechat::inspect::{Frame, Record, RecordKind};

use crate::memory::link::WriteRecord;

/// Number of lines to keep.
const LEN: usize = 50;
const STYLE: Style = Style { detail: Detail::Line, uses_colour: false };
/// Length of the timestamp in the tracer's lines. A trace shows the time since the start of the run instead.
const TIMESTAMP_LEN: usize = "2026-01-01T00:00:00.000Z".len();

thread_local! {
    static LINES: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

/// Removes the lines of the last run. If `is_on`, collects those of the next one.
pub fn start(is_on: bool) {
    LINES.take();
    IS_ON.set(is_on);
    STEPS.set(0);
}

/// Sets the time of the next records, since the start of the run.
pub fn set_time(now: Duration) {
    NOW.set(now);
}

pub fn count_step() {
    STEPS.set(STEPS.get() + 1);
}

/// Returns the number of steps (actions or faults) that the current or most recent run has executed.
pub fn step_count() -> usize {
    STEPS.get()
}

pub fn note(now: Duration, line: impl FnOnce() -> String) {
    set_time(now);
    push(line);
}

fn push(line: impl FnOnce() -> String) {
    if IS_ON.get() {
        LINES.with_borrow_mut(|lines| {
            if lines.len() == LEN {
                lines.pop_front();
            }
            lines.push_back(format!("{:>12.3} s  {}", NOW.get().as_secs_f64(), line()));
        });
    }
}

/// Returns a function that adds a connection's records to the trace, or `None` if the run is not traced. `prefix`
/// starts each line: empty, or, in a run with several instances, the instance's name and a space.
pub fn writer(prefix: String) -> Option<WriteRecord> {
    let write = move |record: &Record| {
        if is_keepalive(record) {
            return;
        }
        let mut line = String::new();
        text::write(record, STYLE, &mut line);
        push(|| format!("{prefix}{}", line[TIMESTAMP_LEN..].trim()));
    };
    IS_ON.get().then(|| Rc::new(write) as _)
}

/// Whether the record is a Ping or Pong without a payload. An hour of them would push everything else out of the trace.
fn is_keepalive(record: &Record) -> bool {
    let RecordKind::Frame(Frame { header, .. }) = &record.kind else { return false };
    matches!(header.name(), "PING" | "PONG") && header.length_7() == 0
}

/// Whether the lines include a record of a connection, which starts with the connection's number, such as `#7`.
pub fn has_records(lines: &VecDeque<String>) -> bool {
    lines.iter().any(|line| line.contains(" #"))
}

pub fn take() -> VecDeque<String> {
    LINES.take()
}
