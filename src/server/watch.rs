//! Who watches the wire: `--trace`, the page's inspector, `--record`.
//!
//! ```text
//!   Connection ──reads, writes──▶ Watch ─▶ Tap ─▶ Records ──once a turn──▶ stderr, inspectors
//!                                   └────▶ Recorder ─▶ a file
//! ```
//!
//! Only a connection that is watched has a [`Watch`]; for all others it is one branch a read and a write. This file
//! knows what is to be watched and who is told; what there is to see is found by [`Tap`].
//!
//! The subtle thing: an inspector is a client like any other, and slow like any other. It is sent what fits into half of
//! its outbox, what does not is counted, and it is never itself watched, or each record would make another one.

use std::cell::Cell;
use std::io::{self, IoSlice, Write};
use std::rc::Rc;
use std::time::SystemTime;

use mio::Token;
use mio::net::TcpStream;

use super::Server;
use super::inspection::{Inspection, number, token};
use super::journal::Journal;
use crate::config::{Config, TraceDetail};
use crate::inspect::filter::Filter;
use crate::inspect::recorder::{Recorder, Recordings};
use crate::inspect::text::{self, Detail, Style};
use crate::inspect::{Record, Records, Tap};
use crate::ws::Limits;
use crate::ws::frame::Role;

/// What watches one connection.
#[derive(Debug)]
pub struct Watch {
    tap: Option<Tap>,
    recorder: Option<Recorder>,
    now: Rc<Cell<SystemTime>>,
}

/// Everybody who watches.
#[derive(Debug)]
pub struct Watchers {
    trace: Option<Trace>,
    recordings: Option<Recordings>,
    records: Records,
    /// When this turn began.
    now: Rc<Cell<SystemTime>>,
    /// The page's inspectors.
    pub inspection: Inspection,
}

/// `--trace`
#[derive(Debug)]
struct Trace {
    style: Style,
    filter: Filter,
}

impl Watch {
    /// A tap alone, by a clock of its own that stands still.
    pub fn of(tap: Tap) -> Watch {
        Watch { tap: Some(tap), recorder: None, now: Rc::new(Cell::new(SystemTime::now())) }
    }

    /// Is shown the bytes of one read or write.
    pub fn see(&mut self, from: Role, bytes: &[u8]) {
        let now = self.now.get();
        self.tap.iter_mut().for_each(|tap| tap.see(from, bytes, now));
        self.recorder.iter_mut().for_each(|recorder| recorder.see(from, bytes, now));
    }

    /// Is told what the server takes of this client, who it is, and whether it is going to be sent a ticket.
    pub fn upgraded(&mut self, limits: Limits, user: Option<&Rc<str>>, has_ticket: bool) {
        let now = self.now.get();
        self.tap.iter_mut().for_each(|tap| tap.upgraded(limits, user.cloned(), has_ticket));
        self.recorder
            .iter_mut()
            .for_each(|recorder| recorder.upgraded(limits, user.map(AsRef::as_ref), has_ticket, now));
    }

    /// Is told that nothing but the handshake and the end is to be seen.
    pub fn set_private(&mut self) {
        self.tap.iter_mut().for_each(Tap::set_private);
        self.recorder.iter_mut().for_each(Recorder::set_private);
    }

    /// Is told that the server begins to close.
    pub fn close_begins(&mut self) {
        self.tap.iter_mut().for_each(Tap::close_begins);
        self.recorder.iter_mut().for_each(|recorder| recorder.close_begins(self.now.get()));
    }

    /// Is told that the connection is over.
    pub fn end(&mut self, how: &str) {
        self.tap.iter_mut().for_each(|tap| tap.end(how, self.now.get()));
        self.recorder.iter_mut().for_each(|recorder| recorder.end(how, self.now.get()));
    }

    /// How much memory it holds, in bytes.
    pub fn buffered(&self) -> usize {
        self.tap.as_ref().map_or(0, Tap::buffered) + self.recorder.as_ref().map_or(0, Recorder::buffered)
    }
}

/// A socket that shows what it takes.
pub struct Watched<'a> {
    /// The socket.
    pub stream: &'a mut TcpStream,
    /// What is shown.
    pub watch: &'a mut Watch,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.watch.see(Role::Server, &bytes[..written]);
        Ok(written)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.stream.write_vectored(slices)?;
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(written).collect();
        self.watch.see(Role::Server, &bytes);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Watchers {
    /// Those that the configuration asks for.
    ///
    /// # Errors
    /// One line: the filter makes no sense, or the folder for recordings cannot be made.
    pub fn new(config: &Config) -> Result<Watchers, String> {
        Ok(Watchers {
            trace: Trace::new(config)?,
            recordings: config.record.as_deref().map(|dir| Recordings::new(dir, config.record_limit)).transpose()?,
            records: Records::default(),
            now: Rc::new(Cell::new(SystemTime::UNIX_EPOCH)),
            inspection: Inspection::new(config.inspect || config.is_loopback())?,
        })
    }

    /// Looks at the clock, once a turn: what is seen in the turn is seen at this time.
    pub fn tell_time(&self) -> SystemTime {
        let now = SystemTime::now();
        self.now.set(now);
        now
    }

    /// What watches a connection from its first byte, if anything does.
    pub fn watch(&mut self, token: Token) -> Option<Box<Watch>> {
        let tap = self.trace.as_ref().map(|_| Tap::new(number(token), self.records.clone()).beside_server());
        let recorder = self.recordings.as_mut().and_then(|files| files.begin(number(token), self.now.get()));
        let is_watched = tap.is_some() || recorder.is_some();
        is_watched.then(|| Box::new(Watch { tap, recorder, now: Rc::clone(&self.now) }))
    }

    /// Adds a tap to what watches an open connection that is between two messages.
    pub fn tap(&self, token: Token, watch: &mut Option<Box<Watch>>, limits: Limits) {
        let fresh = || Box::new(Watch { tap: None, recorder: None, now: Rc::clone(&self.now) });
        watch.get_or_insert_with(fresh).tap.get_or_insert_with(|| {
            let mut tap = Tap::open(number(token), self.records.clone()).beside_server();
            tap.set_limits(limits);
            tap
        });
    }

    /// Takes the tap off a connection again that was there for its inspector alone.
    pub fn untap(&self, watch: &mut Option<Box<Watch>>) {
        if self.trace.is_none()
            && let Some(watched) = watch
        {
            watched.tap = None;
            if watched.recorder.is_none() {
                *watch = None;
            }
        }
    }
}

/// Checks the options that belong here.
///
/// # Errors
/// A line that names the option.
pub fn check(config: &Config) -> Result<(), String> {
    filter(config).map(|_| ())
}

fn filter(config: &Config) -> Result<Filter, String> {
    let filter = config.trace_filter.as_deref().map(Filter::parse).transpose();
    Ok(filter.map_err(|error| format!("--trace-filter {error}"))?.unwrap_or_default())
}

impl Trace {
    fn new(config: &Config) -> Result<Option<Trace>, String> {
        let filter = filter(config)?;
        let Some(detail) = config.trace else { return Ok(None) };
        let detail = match detail {
            TraceDetail::Line => Detail::Line,
            TraceDetail::Full => Detail::Full,
        };
        Ok(Some(Trace { style: Style::new(detail, io::IsTerminal::is_terminal(&io::stderr())), filter }))
    }

    fn write(&self, record: &Record, journal: &Journal) {
        if self.filter.shows(record) {
            let mut text = String::new();
            text::write(record, self.style, &mut text);
            journal.write(&text);
        }
    }
}

impl Server {
    /// Tells those who watch what passed since they were last told.
    pub(super) fn report(&mut self) {
        for record in self.watchers.records.take() {
            self.watchers.trace.iter().for_each(|trace| trace.write(&record, &self.journal));
            self.show(token(record.connection), &record);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_tap_goes_with_its_inspector_unless_there_is_a_trace() {
        for (args, stays) in [(vec!["wirechat"], false), (vec!["wirechat", "--trace"], true)] {
            let mut watchers = Watchers::new(&Config::parse_from(args)).unwrap();
            let (token, mut watch) = (token(1), watchers.watch(token(1)));
            assert_eq!(watch.is_some(), stays, "before it is looked at");
            watchers.tap(token, &mut watch, Limits { message: 9, fragments: 9, binary: false });
            assert!(watch.is_some());
            watchers.untap(&mut watch);
            assert_eq!(watch.is_some(), stays, "when nobody looks any more");
        }
    }
}
