//! `--record`: writes the bytes of a connection to a file in the format of [`recording`](super::recording). The
//! recorder locates the end of the request head (§4.1) and the frame boundaries (§5.2) only to decide which bytes need
//! redaction; it does not interpret the content. The server's only thread writes the file: a slow disk slows down the
//! server, and a full disk stops the recordings but not the server.
//!
//! A token may be split across two reads. So the recorder buffers the request until the server accepts or rejects the
//! request, then redacts the request as a whole and writes one line per read. Redaction preserves lengths, so the read
//! boundaries do not move. Client bytes that are not a valid frame may be another request with a token: the recorder
//! redacts them and replaces everything after them with `*`.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use super::Head;
use super::recording::{Entry, Step, Title};
use super::scan::{self, Direction};
use super::secret::{self, WelcomeRedactor};
use crate::ws::Limits;
use crate::ws::frame::Role;

/// Quota reserved per file for a final [`Step::Cut`] line, in bytes.
const LAST_LINE: usize = 80;

/// Maximum number of read boundaries stored per request. Without this limit, a request that arrives one byte at a time
/// would cost 24 extra bytes of memory per byte.
const MAX_HELD: usize = 1024;

#[derive(Debug)]
pub struct Recordings {
    dir: PathBuf,
    quota: Rc<Quota>,
}

/// The number of bytes that all recordings together may still write.
#[derive(Debug)]
struct Quota {
    left: Cell<u64>,
    is_logged: Cell<bool>,
}

#[derive(Debug)]
pub struct Recorder {
    /// `None` after the quota is exhausted or a write has failed.
    file: Option<File>,
    quota: Rc<Quota>,
    /// Client bytes received before the response. `reads` contains the time and length of each read.
    held: Vec<u8>,
    reads: Vec<(SystemTime, usize)>,
    response: Head,
    client: Direction,
    welcome: Option<WelcomeRedactor>,
    is_private: bool,
}

impl Quota {
    /// Reserves `len` bytes, or returns `false` if fewer bytes are left.
    fn reserve(&self, len: usize) -> bool {
        let left = self.left.get().checked_sub(len as u64);
        left.inspect(|left| self.left.set(*left)).is_some()
    }

    /// Stops all recordings, and logs the reason once.
    fn exhaust(&self, why: &str) {
        // With a quota of zero, all remaining recordings end with `Step::Cut`.
        self.left.set(0);
        if !self.is_logged.replace(true) {
            log::warn!("RECORD stopped: {why}");
        }
    }
}

impl Recordings {
    /// Creates the directory if necessary. `limit` is the maximum total size of all new recordings, in bytes.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or is not writable.
    pub fn new(dir: &Path, limit: u64) -> Result<Recordings, String> {
        let probe = dir.join(format!(".wirechat-{}", std::process::id()));
        // 0700: recordings contain private messages.
        let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let tested = created.and_then(|()| new_file(&probe)).and_then(|_| fs::remove_file(&probe));
        tested.map_err(|error| format!("--record {}: {error}", dir.display()))?;
        let quota = Quota { left: Cell::new(limit), is_logged: Cell::new(false) };
        Ok(Recordings { dir: dir.to_owned(), quota: Rc::new(quota) })
    }

    /// Starts a recording. Returns `None` if the quota is exhausted or the file cannot be created.
    pub fn begin(&mut self, connection: usize, now: SystemTime) -> Option<Recorder> {
        let title = Title { connection, wirechat: env!("CARGO_PKG_VERSION").into() };
        let title = serde_json::to_string(&title).unwrap_or_default() + "\n";
        if !self.quota.reserve(title.len() + LAST_LINE) {
            self.quota.exhaust("--record-limit is reached");
            return None;
        }
        // Some file systems and archive tools do not allow colons in file names.
        let stamp = humantime::format_rfc3339_millis(now).to_string().replace(':', "-");
        let path = self.dir.join(format!("{stamp}-{connection}.wire"));
        match new_file(&path).and_then(|mut file| file.write_all(title.as_bytes()).map(|()| file)) {
            Ok(file) => Some(Recorder::new(file, Rc::clone(&self.quota))),
            Err(error) => {
                self.quota.exhaust(&format!("{}: {error}", path.display()));
                None
            }
        }
    }
}

/// Creates a file that only its owner can read. Never overwrites an existing file.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Recorder {
    fn new(file: File, quota: Rc<Quota>) -> Recorder {
        let (held, reads, response) = (Vec::new(), Vec::new(), Head::default());
        let client = Direction::new(Role::Client);
        Recorder { file: Some(file), quota, held, reads, response, client, welcome: None, is_private: false }
    }

    /// Records one read from the client or one write to the client.
    pub fn bytes(&mut self, from: Role, bytes: &[u8], now: SystemTime) {
        if self.file.is_none() {
            return;
        }
        match from {
            Role::Client if self.response.bytes.is_empty() => self.hold(bytes, now),
            Role::Client => self.write_client(bytes, now),
            Role::Server => self.write_server(bytes, now),
        }
    }

    /// Called when the server accepts the request. `secrets` is the number of secrets in the client's welcome.
    pub fn upgraded(&mut self, limits: Limits, user: Option<&str>, secrets: usize, now: SystemTime) {
        self.welcome = (secrets > 0).then(|| WelcomeRedactor::new(secrets));
        self.write_held();
        self.write(Step::Upgraded { limits, user: user.map(Into::into) }, now);
    }

    /// Omits frames from the recording, and keeps only the handshake and the close.
    pub fn set_private(&mut self) {
        self.is_private = true;
    }

    /// Memory used by the buffered request, in bytes.
    pub fn buffered(&self) -> usize {
        self.held.capacity() + self.reads.capacity() * size_of::<(SystemTime, usize)>()
    }

    pub fn closing(&mut self, now: SystemTime) {
        self.write(Step::Closing, now);
    }

    pub fn closed(&mut self, cause: &str, now: SystemTime) {
        self.write_held();
        self.write(Step::End(cause.into()), now);
    }

    fn hold(&mut self, bytes: &[u8], now: SystemTime) {
        self.held.extend_from_slice(bytes);
        let is_full = self.reads.len() == MAX_HELD;
        match self.reads.last_mut().filter(|_| is_full) {
            // Merge this read into the previous one, which loses a boundary but no bytes.
            Some((_, len)) => *len += bytes.len(),
            None => self.reads.push((now, bytes.len())),
        }
    }

    fn write_held(&mut self) {
        let (held, reads) = (std::mem::take(&mut self.held), std::mem::take(&mut self.reads));
        let rest = self.client.head.read(&held, 0);
        let head = secret::redacted(&held[..held.len() - rest.len()]);
        // Do not record an inspector's frames: its commands are as private as the records that it receives.
        let rest = if self.is_private { Vec::new() } else { self.redact_frames(rest) };
        let redacted = [head, rest].concat();
        let mut rest = &redacted[..];
        // A private recording omits the frames, so `redacted` may be shorter than the reads combined.
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
            let bytes = self.redact_frames(bytes);
            self.write(Step::Client(bytes), now);
        }
    }

    fn write_server(&mut self, bytes: &[u8], now: SystemTime) {
        // The server responds only after it has finished parsing the request, so the buffer is complete.
        self.write_held();
        let mut bytes = bytes.to_vec();
        let rest = self.response.read(&bytes, 0).len();
        if self.is_private {
            bytes.truncate(bytes.len() - rest);
        }
        self.welcome.iter_mut().for_each(|welcome| welcome.redact(&mut bytes));
        if !bytes.is_empty() {
            self.write(Step::Server(bytes), now);
        }
    }

    /// Redacts client bytes that are not valid frames.
    fn redact_frames(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        // After a rejection, the client's bytes are not frames; they may be another request.
        self.client.is_out_of_sync |= self.response.is_complete && self.response.status() != 101;
        while !rest.is_empty() && !self.client.is_out_of_sync {
            let before = rest;
            let step = self.client.frames.next(&mut rest, 0);
            let passed = &before[..before.len() - rest.len()];
            self.client.is_out_of_sync = matches!(step, scan::Step::Lost(..));
            kept.extend(if self.client.is_out_of_sync { secret::redacted(passed) } else { passed.to_vec() });
        }
        // Preserve the length, so that a replay counts the same number of bytes.
        kept.resize(bytes.len(), b'*');
        kept
    }

    fn write(&mut self, step: Step, at: SystemTime) {
        let Some(file) = &mut self.file else { return };
        let line = |step| serde_json::to_string(&Entry { at, step }).unwrap_or_default() + "\n";
        let mut line_of_step = line(step);
        let has_room = self.quota.reserve(line_of_step.len());
        if !has_room {
            // `Recordings::begin` reserved `LAST_LINE` bytes for this line.
            line_of_step = line(Step::Cut);
            self.quota.exhaust("--record-limit is reached");
        }
        // Write each line immediately: after a crash, the file must include the bytes that caused the crash.
        let written = file.write_all(line_of_step.as_bytes());
        if let Err(error) = &written {
            self.quota.exhaust(&error.to_string());
        }
        if written.is_err() || !has_room {
            self.file = None;
        }
    }
}
