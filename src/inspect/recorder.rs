//! `--record`: writes down what passes, in the format of [`recording`](super::recording). It knows where a request head
//! ends (§4.1) and where frames do (§5.2), so as to know what may be kept; what they say is none of its business.
//!
//! The subtle thing: tokens are masked, and a token may be cut between two reads. So what comes before the request is
//! granted or answered is held, masked as one, and only then written, read by read. Masking keeps every length, so the
//! boundaries stay where they were. What can be no frame might be anything, and what is behind it is all stars.
//!
//! A file is written as things happen, by the one thread that there is: a slow disk slows the server while it is asked to
//! record, and a full one ends the recordings, not the server.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use super::Head;
use super::recording::{Entry, Step, Title};
use super::scan::{self, Side};
use super::secret::{self, TicketMask};
use crate::ws::Limits;
use crate::ws::frame::Role;

/// How much room a file keeps for the line that says that it ends early, in bytes.
const LAST_LINE: usize = 80;

/// How many reads of what is held keep their boundaries.
const MAX_HELD: usize = 1024;

/// The folder where recordings go, and how much may still go there.
#[derive(Debug)]
pub struct Recordings {
    dir: PathBuf,
    room: Rc<Room>,
}

/// What is left for all recordings of this run.
#[derive(Debug)]
struct Room {
    left: Cell<u64>,
    /// It was said that there is no more.
    is_told: Cell<bool>,
}

/// Records one connection.
#[derive(Debug)]
pub struct Recorder {
    /// `None` when there is no more room, or the disk takes no more.
    file: Option<File>,
    room: Rc<Room>,
    /// What the client sent before it was answered, and when each read of it came, with its length.
    held: Vec<u8>,
    reads: Vec<(SystemTime, usize)>,
    answer: Head,
    client: Side,
    ticket: Option<TicketMask>,
    is_private: bool,
}

impl Room {
    /// Takes this much. `false`: so much is not left.
    fn take(&self, len: usize) -> bool {
        let left = self.left.get().checked_sub(len as u64);
        left.inspect(|left| self.left.set(*left)).is_some()
    }

    /// Says once why nothing more is recorded.
    fn close(&self, why: &str) {
        self.left.set(0);
        if !self.is_told.replace(true) {
            log::warn!("RECORD nothing more is recorded: {why}");
        }
    }
}

impl Recordings {
    /// Recordings go to `dir`, which is made if it is not there; `limit` is for all of this run together, in bytes.
    ///
    /// # Errors
    /// A line that says why there can be no such folder, or no file in it.
    pub fn new(dir: &Path, limit: u64) -> Result<Recordings, String> {
        let probe = dir.join(format!(".wirechat-{}", std::process::id()));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let tried = made.and_then(|()| new_file(&probe)).and_then(|_| fs::remove_file(&probe));
        tried.map_err(|error| format!("--record {}: {error}", dir.display()))?;
        let room = Room { left: Cell::new(limit), is_told: Cell::new(false) };
        Ok(Recordings { dir: dir.to_owned(), room: Rc::new(room) })
    }

    /// Begins to record a connection; `None` if there is no more room. A file is never written over.
    pub fn begin(&mut self, connection: usize, now: SystemTime) -> Option<Recorder> {
        let title = Title { connection, wirechat: env!("CARGO_PKG_VERSION").into() };
        let title = serde_json::to_string(&title).unwrap_or_default() + "\n";
        if !self.room.take(title.len() + LAST_LINE) {
            self.room.close("--record-limit is reached");
            return None;
        }
        let stamp = humantime::format_rfc3339_millis(now).to_string().replace(':', "-");
        let path = self.dir.join(format!("{stamp}-{connection}.wire"));
        match new_file(&path).and_then(|mut file| file.write_all(title.as_bytes()).map(|()| file)) {
            Ok(file) => Some(Recorder::new(file, Rc::clone(&self.room))),
            Err(error) => {
                self.room.close(&format!("{}: {error}", path.display()));
                None
            }
        }
    }
}

/// A file that nobody had, for its owner alone.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Recorder {
    fn new(file: File, room: Rc<Room>) -> Recorder {
        let (held, reads, answer) = (Vec::new(), Vec::new(), Head::default());
        let client = Side::new(Role::Client);
        Recorder { file: Some(file), room, held, reads, answer, client, ticket: None, is_private: false }
    }

    /// Records the bytes of one read or write.
    pub fn see(&mut self, from: Role, bytes: &[u8], now: SystemTime) {
        if self.file.is_none() {
            return;
        }
        match from {
            Role::Client if self.answer.bytes.is_empty() => self.hold(bytes, now),
            Role::Client => self.write_client(bytes, now),
            Role::Server => {
                self.write_held();
                let mut bytes = bytes.to_vec();
                let behind = self.answer.read(&bytes, 0).len();
                if self.is_private {
                    bytes.truncate(bytes.len() - behind);
                }
                self.ticket.iter_mut().for_each(|ticket| ticket.mask(&mut bytes));
                if !bytes.is_empty() {
                    self.write(Step::Server(bytes), now);
                }
            }
        }
    }

    /// Records what the server takes of this client. `has_ticket`: it is going to be sent one.
    pub fn upgraded(&mut self, limits: Limits, user: Option<&str>, has_ticket: bool, now: SystemTime) {
        self.ticket = has_ticket.then(TicketMask::default);
        self.write_held();
        self.write(Step::Upgraded { limits, user: user.map(Into::into) }, now);
    }

    /// Of this connection only the handshake and the end are recorded.
    pub fn set_private(&mut self) {
        self.is_private = true;
    }

    /// How much memory it holds, in bytes.
    pub fn buffered(&self) -> usize {
        self.held.capacity() + self.reads.capacity() * size_of::<(SystemTime, usize)>()
    }

    /// Records that the server begins to close.
    pub fn close_begins(&mut self, now: SystemTime) {
        self.write(Step::Closing, now);
    }

    /// Records that the TCP connection is over.
    pub fn end(&mut self, how: &str, now: SystemTime) {
        self.write_held();
        self.write(Step::End(how.into()), now);
    }

    fn hold(&mut self, bytes: &[u8], now: SystemTime) {
        self.held.extend_from_slice(bytes);
        let is_full = self.reads.len() == MAX_HELD;
        match self.reads.last_mut().filter(|_| is_full) {
            Some((_, len)) => *len += bytes.len(),
            None => self.reads.push((now, bytes.len())),
        }
    }

    fn write_held(&mut self) {
        let (held, reads) = (std::mem::take(&mut self.held), std::mem::take(&mut self.reads));
        let behind = self.client.head.read(&held, 0);
        let head = secret::masked(&held[..held.len() - behind.len()]);
        let behind = if self.is_private { Vec::new() } else { self.without_strangers(behind) };
        let masked = [head, behind].concat();
        let mut rest = &masked[..];
        for (at, len) in reads {
            let (read, tail) = rest.split_at(len.min(rest.len()));
            if !read.is_empty() {
                self.write(Step::Client(read.to_vec()), at);
            }
            rest = tail;
        }
    }

    fn write_client(&mut self, bytes: &[u8], now: SystemTime) {
        if !self.is_private {
            let bytes = self.without_strangers(bytes);
            self.write(Step::Client(bytes), now);
        }
    }

    /// A client's bytes behind its request, as they may be kept: frames as they are. A frame that cannot be one may be
    /// a request with its token; and behind it, or behind a plain answer, nothing is looked at.
    fn without_strangers(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        self.client.is_lost |= self.answer.is_complete && self.answer.status() != 101;
        while !rest.is_empty() && !self.client.is_lost {
            let before = rest;
            let step = self.client.frames.next(&mut rest, 0);
            let passed = &before[..before.len() - rest.len()];
            self.client.is_lost = matches!(step, scan::Step::Lost(..));
            kept.extend(if self.client.is_lost { secret::masked(passed) } else { passed.to_vec() });
        }
        kept.resize(bytes.len(), b'*');
        kept
    }

    fn write(&mut self, step: Step, at: SystemTime) {
        let Some(file) = &mut self.file else { return };
        let line = |step| serde_json::to_string(&Entry { at, step }).unwrap_or_default() + "\n";
        let mut line_of_step = line(step);
        let goes_on = self.room.take(line_of_step.len());
        if !goes_on {
            line_of_step = line(Step::Cut);
            self.room.close("--record-limit is reached");
        }
        let written = file.write_all(line_of_step.as_bytes());
        if let Err(error) = &written {
            self.room.close(&error.to_string());
        }
        if written.is_err() || !goes_on {
            self.file = None;
        }
    }
}
