//! `--record`: writes the bytes of a connection to a file in the format of [`recording`](super::recording). The
//! recorder locates the ends of the HTTP heads (§4.1) and the frame boundaries (§5.2) only to decide which bytes to
//! redact or omit. The event-loop thread writes the file, so a slow disk slows down the server. If a file cannot be
//! created or written, only the recording of that connection stops.
//!
//! An access token may be split across two reads. So the recorder buffers the request until the server has processed
//! the request, then redacts the request as a whole and writes one line per read. Redaction preserves lengths, so the
//! read boundaries do not move. Client bytes that are not a valid frame may be another request with an access token, so
//! the recorder redacts any secrets in these bytes and replaces everything after them with `*`.
//!
//! The recorder creates the file when the server has processed the request, or when the connection closes before that.
//! Only then does the recorder know which part of `--record-limit` the file counts against.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use super::recording::{Entry, FirstLine, Step};
use super::scan::{DirectionState, ScanResult};
use super::secret::{self, TokenRedactor, WelcomeRedactor};
use super::{Frame, Head};
use crate::ws::frame::Role;
use crate::ws::protocol::Limits;

/// Bytes of the quota that each file reserves for a final [`Step::Cut`] line.
const CUT_LINE_LEN: usize = 80;

/// Maximum number of read boundaries stored per request. Without this limit, a request that arrives one byte at a time
/// would cost 24 extra bytes of memory per byte.
const MAX_STORED_READS: usize = 1024;

/// Recordings of connections without an upgrade share `--record-limit` divided by this number. Anyone can open such
/// connections, so their recordings must not use up the quota of upgraded connections.
const REJECTED_QUOTA_DIVISOR: u64 = 10;

/// Minimum interval between log lines about files that cannot be created or written.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Recorders {
    shared: Rc<SharedState>,
}

#[derive(Debug)]
struct SharedState {
    dir: PathBuf,
    upgraded: Quota,
    /// The quota for connections without an upgrade, such as rejected requests.
    rejected: Quota,
    error_logged_at: Cell<Option<SystemTime>>,
}

/// The number of bytes that a group of recordings may still write.
#[derive(Debug)]
struct Quota {
    /// Bytes left in the quota. Becomes `None` when a recorder needs more bytes than are left. After that, a recorder
    /// with an open file adds only a [`Step::Cut`] line, which marks the recording as incomplete.
    remaining: Cell<Option<u64>>,
    /// The warning to log when the quota is exhausted.
    message: &'static str,
}

#[derive(Debug)]
pub struct Recorder {
    shared: Rc<SharedState>,
    connection: usize,
    accepted_at: SystemTime,
    output: Output,
    is_upgraded: bool,
    /// Client bytes received before the response. `reads` has the time and length of up to [`MAX_STORED_READS`] reads.
    buffered: Vec<u8>,
    reads: Vec<(SystemTime, usize)>,
    response: Head,
    client: DirectionState,
    welcome: Option<WelcomeRedactor>,
    /// Redacts JWTs in the client's `token` commands. `None` unless the client uses the `events` dialect.
    tokens: Option<TokenRedactor>,
    is_private: bool,
}

#[derive(Debug)]
enum Output {
    /// The recording has no file yet: the server has not processed the request.
    NotCreated,
    File(File),
    /// The recording has stopped: the quota is exhausted, or the file could not be created or written.
    Stopped,
}

impl Quota {
    fn new(limit: u64, message: &'static str) -> Quota {
        Quota { remaining: Cell::new(Some(limit)), message }
    }

    fn is_exhausted(&self) -> bool {
        self.remaining.get().is_none()
    }

    /// Reserves `len` bytes. If fewer remain, logs a warning, and this and all later calls return `false`.
    fn reserve(&self, len: usize) -> bool {
        let Some(remaining) = self.remaining.get() else { return false };
        self.remaining.set(remaining.checked_sub(len as u64));
        if self.is_exhausted() {
            log::warn!("RECORD stopped: {}", self.message);
        }
        !self.is_exhausted()
    }

    /// Returns to the quota `len` bytes that a recorder reserved but did not write.
    fn release(&self, len: usize) {
        self.remaining.set(self.remaining.get().map(|remaining| remaining + len as u64));
    }
}

impl SharedState {
    fn log_error(&self, path: &Path, error: &io::Error, now: SystemTime) {
        let is_recent = |at| now.duration_since(at).is_ok_and(|passed| passed < LOG_INTERVAL);
        if !self.error_logged_at.get().is_some_and(is_recent) {
            self.error_logged_at.set(Some(now));
            log::warn!("RECORD failed: {}: {error}", path.display());
        }
    }
}

impl Recorders {
    /// Creates the directory for recordings if needed. `limit` is the maximum total size of new recordings, in bytes.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or is not writable.
    pub fn new(dir: &Path, limit: u64) -> Result<Recorders, String> {
        let probe = dir.join(format!(".wirechat-{}", std::process::id()));
        // Mode 0700 keeps other users out, because recordings contain private messages.
        let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let tested = created.and_then(|()| create_private_file(&probe, "")).and_then(|_| fs::remove_file(&probe));
        tested.map_err(|error| format!("--record {}: {error}", dir.display()))?;
        let upgraded = Quota::new(limit - limit / REJECTED_QUOTA_DIVISOR, "--record-limit is reached");
        let message = "requests without an upgrade have used their part of --record-limit";
        let rejected = Quota::new(limit / REJECTED_QUOTA_DIVISOR, message);
        let error_logged_at = Cell::default();
        Ok(Recorders { shared: Rc::new(SharedState { dir: dir.to_owned(), upgraded, rejected, error_logged_at }) })
    }

    /// Returns a new recorder, or `None` if the quotas for connections with and without an upgrade are both exhausted.
    pub fn start(&mut self, connection: usize, now: SystemTime) -> Option<Recorder> {
        let is_over = self.shared.upgraded.is_exhausted() && self.shared.rejected.is_exhausted();
        (!is_over).then(|| Recorder::new(Rc::clone(&self.shared), connection, now))
    }
}

/// Creates a file for `--record` that only its owner can read. Never overwrites an existing file.
fn create_private_file(path: &Path, first_line: &str) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // If the disk is full, remove the new file: otherwise, each connection would leave an empty file.
    file.write_all(first_line.as_bytes()).inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(file)
}

impl Recorder {
    fn new(shared: Rc<SharedState>, connection: usize, accepted_at: SystemTime) -> Recorder {
        Recorder {
            shared,
            connection,
            accepted_at,
            output: Output::NotCreated,
            is_upgraded: false,
            buffered: Vec::new(),
            reads: Vec::new(),
            response: Head::default(),
            client: DirectionState::new(Role::Client),
            welcome: None,
            tokens: None,
            is_private: false,
        }
    }

    fn quota(&self) -> &Quota {
        if self.is_upgraded { &self.shared.upgraded } else { &self.shared.rejected }
    }

    fn path(&self) -> PathBuf {
        // Replace colons: some file systems and archive tools do not allow them in file names.
        let stamp = humantime::format_rfc3339_millis(self.accepted_at).to_string().replace(':', "-");
        self.shared.dir.join(format!("{stamp}-{}.wire", self.connection))
    }

    fn create_file(&self, now: SystemTime) -> Output {
        let first_line = FirstLine { connection: self.connection, wirechat: env!("CARGO_PKG_VERSION").into() };
        let first_line = serde_json::to_string(&first_line).unwrap_or_default() + "\n";
        let reserved = first_line.len() + CUT_LINE_LEN;
        if !self.quota().reserve(reserved) {
            return Output::Stopped;
        }
        let path = self.path();
        match create_private_file(&path, &first_line) {
            Ok(file) => Output::File(file),
            Err(error) => {
                self.quota().release(reserved);
                self.shared.log_error(&path, &error, now);
                Output::Stopped
            }
        }
    }

    /// Records one read from the client or one write to the client.
    pub fn observe(&mut self, from: Role, bytes: &[u8], now: SystemTime) {
        match from {
            _ if matches!(self.output, Output::Stopped) => {}
            Role::Client if self.response.bytes.is_empty() => self.buffer_request(bytes, now),
            Role::Client => self.record_client_bytes(bytes, now),
            Role::Server => self.record_server_bytes(bytes, now),
        }
    }

    /// Records the upgrade. `secrets` is the number of secrets to redact in the `welcome` event.
    pub fn upgrade(&mut self, limits: Limits, user: Option<&str>, secrets: usize, now: SystemTime) {
        self.welcome = (secrets > 0).then(|| WelcomeRedactor::new(secrets));
        self.tokens = (secrets > 0).then(TokenRedactor::default);
        self.is_upgraded = true;
        self.client.frames.set_limits(limits);
        self.flush_request(now);
        self.write(Step::Upgraded { limits, user: user.map(Into::into) }, now);
    }

    /// Makes the recorder omit all frames of an inspector's connection, in both directions.
    pub fn set_private(&mut self) {
        self.is_private = true;
    }

    /// Memory used by the buffered request and the message inflater, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        let reads = self.reads.capacity() * size_of::<(SystemTime, usize)>();
        self.buffered.capacity() + reads + self.client.frames.buffered_bytes()
    }

    pub fn set_closing(&mut self, now: SystemTime) {
        self.write(Step::Closing, now);
    }

    pub fn finish(&mut self, cause: &str, now: SystemTime) {
        self.flush_request(now);
        self.write(Step::End(cause.into()), now);
    }

    fn buffer_request(&mut self, bytes: &[u8], now: SystemTime) {
        self.buffered.extend_from_slice(bytes);
        let is_full = self.reads.len() == MAX_STORED_READS;
        match self.reads.last_mut().filter(|_| is_full) {
            // When `MAX_STORED_READS` reads are already stored, add the new bytes to the last stored read.
            Some((_, len)) => *len += bytes.len(),
            None => self.reads.push((now, bytes.len())),
        }
    }

    fn flush_request(&mut self, now: SystemTime) {
        let (buffered, reads) = (std::mem::take(&mut self.buffered), std::mem::take(&mut self.reads));
        if let Output::NotCreated = self.output {
            self.output = self.create_file(now);
        }
        let rest = self.client.head.read(&buffered, 0);
        let head = secret::redact_head(&buffered[..buffered.len() - rest.len()]);
        // Do not record an inspector's frames: its commands are as private as the records that it receives.
        let rest = if self.is_private { Vec::new() } else { self.redact_non_frames(rest) };
        let redacted = [head, rest].concat();
        let mut rest = &redacted[..];
        // The redacted copy may be shorter than the received bytes, because it omits an inspector's frames.
        for (at, len) in reads {
            let (read, tail) = rest.split_at(len.min(rest.len()));
            if !read.is_empty() {
                self.write(Step::Client(read.to_vec()), at);
            }
            rest = tail;
        }
    }

    fn record_client_bytes(&mut self, bytes: &[u8], now: SystemTime) {
        if !self.is_private {
            let bytes = self.redact_non_frames(bytes);
            self.write(Step::Client(bytes), now);
        }
    }

    fn record_server_bytes(&mut self, bytes: &[u8], now: SystemTime) {
        // Once the server responds, it reads no more of the request, so redact and write the buffered bytes now.
        self.flush_request(now);
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

    /// Copies the client's frames up to the first invalid header. Redacts the secrets in the frame with that header,
    /// and replaces all later bytes with `*`.
    fn redact_non_frames(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        // After a response other than 101, the client may send another request with an access token, so hide its bytes.
        self.client.is_out_of_sync |= self.response.is_complete && self.response.status() != 101;
        while !rest.is_empty() && !self.client.is_out_of_sync {
            let before = rest;
            let offset = self.client.frames.partial_frame().map_or(0, |frame| frame.received);
            let result = self.client.frames.next(&mut rest, 0);
            let mut passed = before[..before.len() - rest.len()].to_vec();
            let frame = match &result {
                ScanResult::Complete(frame) => Some(frame),
                ScanResult::More => self.client.frames.partial_frame(),
                ScanResult::Lost(..) => None,
            };
            match (frame, &mut self.tokens) {
                (None, _) => passed = secret::redact_head(&passed),
                (Some(frame @ Frame { inflated: Some(inflated), .. }), Some(_)) => {
                    let start = passed.len() - (frame.received - offset) as usize;
                    let is_only = frame.position.is_some_and(|position| position.fragment == 1 && position.is_last);
                    // A compressed message can be searched for a token only if it arrives whole: in one frame and one
                    // read. Redact any other compressed message.
                    let is_whole = is_only && offset == 0 && frame.is_complete();
                    if !is_whole || inflated.has_token || inflated.is_broken {
                        secret::redact_compressed(&frame.header, frame.payload_len, offset, &mut passed[start..]);
                    }
                }
                (Some(frame), Some(tokens)) => {
                    let start = passed.len() - (frame.received - offset) as usize;
                    tokens.redact(&frame.header, offset, &mut passed[start..]);
                }
                (Some(_), None) => {}
            }
            self.client.is_out_of_sync = matches!(result, ScanResult::Lost(..));
            kept.extend(passed);
        }
        // Append one `*` for each omitted byte, so that a replay of the recording shows the original byte counts.
        kept.resize(bytes.len(), b'*');
        kept
    }

    fn write(&mut self, step: Step, at: SystemTime) {
        let Output::File(file) = &self.output else { return };
        let line = |step| serde_json::to_string(&Entry { at, step }).unwrap_or_default() + "\n";
        let mut line_of_step = line(step);
        let has_room = self.quota().reserve(line_of_step.len());
        if !has_room {
            // A `Cut` line always fits, because `create_file` has reserved `CUT_LINE_LEN` bytes for it.
            line_of_step = line(Step::Cut);
        }
        // Write each line immediately: after a crash, the file must include the bytes that caused the crash.
        let written = (&*file).write_all(line_of_step.as_bytes());
        if let Err(error) = &written {
            self.shared.log_error(&self.path(), error, at);
        }
        if written.is_err() || !has_room {
            self.output = Output::Stopped;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 20_000;
    const LIMITS: Limits = Limits { message: 1000, fragments: 9, accepts_binary: false, deflates: false };
    const REQUEST: &[u8] = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const PING: &[u8] = b"\x89\x80\0\0\0\0";
    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn with_recordings(name: &str, test: impl FnOnce(&mut Recorders)) {
        let dir = std::env::temp_dir().join(format!("wirechat-recorder-{name}-{}", std::process::id()));
        test(&mut Recorders::new(&dir, LIMIT).expect("a writable directory"));
        fs::remove_dir_all(&dir).expect("the directory can be removed");
    }

    /// Records one connection. If `status` is `None`, the server sends no response. Returns the text of the recording,
    /// or "" if the recorder created no file.
    fn record(recordings: &mut Recorders, connection: usize, status: Option<u16>) -> String {
        let Some(mut recorder) = recordings.start(connection, NOW) else { return String::new() };
        recorder.observe(Role::Client, REQUEST, NOW);
        if status == Some(101) {
            recorder.upgrade(LIMITS, None, 0, NOW);
        }
        if let Some(status) = status {
            recorder.observe(Role::Server, format!("HTTP/1.1 {status} \r\n\r\n").as_bytes(), NOW);
            recorder.observe(Role::Client, PING, NOW);
        }
        recorder.finish("closed", NOW);
        fs::read_to_string(recorder.path()).unwrap_or_default()
    }

    #[test]
    fn rejected_and_unfinished_requests_use_only_a_small_part_of_the_limit() {
        for status in [Some(404), None] {
            with_recordings(&format!("rejected-{}", status.is_some()), |recordings| {
                let rejected: Vec<_> = (0..200).map(|connection| record(recordings, connection, status)).collect();
                assert!(rejected[0].contains("\"end\"") && rejected[199].is_empty(), "{status:?}");
                let len = rejected.iter().map(String::len).sum::<usize>() as u64;
                assert!(len <= LIMIT / 10 && len > LIMIT / 20, "{status:?}: {len} bytes");
                assert_eq!(recordings.shared.upgraded.remaining.get(), Some(LIMIT - LIMIT / 10));
                let upgraded = record(recordings, 200, Some(101));
                assert!(upgraded.contains("\"client\":\"898000000000\"") && upgraded.contains("\"end\""), "{upgraded}");
            });
        }
    }

    #[test]
    fn the_limit_ends_the_recordings() {
        with_recordings("limit", |recordings| {
            let mut len = 0;
            for connection in 0..200 {
                len += record(recordings, connection, Some([101, 404][connection % 2])).len() as u64;
            }
            assert!(len <= LIMIT && len > LIMIT / 2, "{len} bytes");
            assert!(recordings.start(200, NOW).is_none());
        });
    }

    #[test]
    fn a_file_that_cannot_be_created_costs_only_its_own_recording() {
        with_recordings("create", |recordings| {
            let taken = recordings.start(1, NOW).expect("a recorder").path();
            fs::write(&taken, "another file").expect("a writable directory");
            let remaining = recordings.shared.upgraded.remaining.get();
            assert_eq!(record(recordings, 1, Some(101)), "another file");
            assert_eq!(recordings.shared.upgraded.remaining.get(), remaining, "a failure must not use the limit");
            assert_eq!(recordings.shared.error_logged_at.get(), Some(NOW));
            assert!(record(recordings, 2, Some(101)).contains("\"end\""));
        });
    }

    #[test]
    fn a_full_disk_stops_only_the_recording_on_that_disk() {
        with_recordings("full", |recordings| {
            let mut recorder = recordings.start(1, NOW).expect("a recorder");
            recorder.output = Output::File(File::options().write(true).open("/dev/full").expect("/dev/full"));
            recorder.set_closing(NOW);
            assert!(matches!(recorder.output, Output::Stopped));
            assert!(record(recordings, 2, Some(101)).contains("\"end\""));
        });
    }

    #[test]
    fn file_errors_are_logged_at_most_once_a_minute() {
        with_recordings("log", |recordings| {
            let shared = &recordings.shared;
            for (seconds, logged) in [(0, 0), (59, 0), (60, 60), (119, 60), (10, 10)] {
                let error = io::ErrorKind::StorageFull.into();
                shared.log_error(Path::new("file"), &error, NOW + Duration::from_secs(seconds));
                assert_eq!(shared.error_logged_at.get(), Some(NOW + Duration::from_secs(logged)), "after {seconds} s");
            }
        });
    }
}
