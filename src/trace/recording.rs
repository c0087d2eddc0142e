//! `--record`: the bytes of a connection in a file, to be looked at again offline.
//!
//! ```text
//! {"connection":7,"wirechat":"0.1.0"}
//! {"at":"2026-11-22T12:00:01.204000Z","client":"47455420"}
//! {"at":"2026-11-22T12:00:01.204113Z","upgraded":{"message":65536,"fragments":100000,"binary":false,"user":"alice"}}
//! {"at":"2026-11-22T12:00:01.204113Z","server":"48545450"}
//! {"at":"2026-11-22T12:00:07.900200Z","closing":null}
//! {"at":"2026-11-22T12:00:08.310040Z","end":"closed by the client: 1000 "}
//! ```
//!
//! One line for each read, each write (here just their first four bytes), and each thing that the bytes do not tell. The file is what a bug report needs.
//!
//! The subtle thing: tokens are masked, and a token may be cut between two reads. So what comes before the request is
//! answered is held until it is, masked as one, and only then written, read by read. Masking keeps every length, so the
//! boundaries stay where they were.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::visible::digits;
use super::{Head, Records, Tap, secret};
use crate::ws::Limits;
use crate::ws::frame::Sender;

/// How much room a file keeps for the line that says that it ends early, in bytes.
const LAST_LINE: u64 = 80;

/// The folder where recordings go, and how much may still go there.
#[derive(Debug)]
pub struct Recordings {
    dir: PathBuf,
    left: Rc<Cell<u64>>,
}

/// Records one connection.
#[derive(Debug)]
pub struct Recorder {
    /// `None` when there is no more room, or the disk takes no more.
    file: Option<File>,
    left: Rc<Cell<u64>>,
    /// What the client sent before it was answered.
    held: Vec<(SystemTime, Vec<u8>)>,
    is_answered: bool,
}

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Title {
    connection: usize,
    wirechat: String,
}

/// Another line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    #[serde(with = "time")]
    pub at: SystemTime,
    /// What.
    #[serde(flatten)]
    pub step: Step,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The client's bytes of one read.
    Client(#[serde(with = "bytes")] Vec<u8>),
    /// The server's bytes of one write.
    Server(#[serde(with = "bytes")] Vec<u8>),
    /// The request was granted.
    Upgraded {
        /// As [`Limits::message`].
        message: usize,
        /// As [`Limits::fragments`].
        fragments: u32,
        /// As [`Limits::binary`].
        binary: bool,
        /// Who it is.
        user: Option<String>,
    },
    /// The server began to close.
    Closing,
    /// The TCP connection was over, and what the server had to say of it.
    End(String),
    /// There was no more room for this recording.
    Cut,
}

impl Recordings {
    /// Recordings go to `dir`, which is made if it is not there; `limit` is for all of them together, in bytes.
    ///
    /// # Errors
    /// A line that says why there can be no such folder.
    pub fn new(dir: &Path, limit: u64) -> Result<Recordings, String> {
        fs::create_dir_all(dir).map_err(|error| format!("--record {}: {error}", dir.display()))?;
        Ok(Recordings { dir: dir.to_owned(), left: Rc::new(Cell::new(limit)) })
    }

    /// Begins to record a connection; `None` if there is no more room. A file is never written over.
    pub fn begin(&mut self, connection: usize, now: SystemTime) -> Option<Recorder> {
        let title = Title { connection, wirechat: env!("CARGO_PKG_VERSION").into() };
        let title = serde_json::to_string(&title).unwrap_or_default() + "\n";
        let left = self.left.get().checked_sub(title.len() as u64 + LAST_LINE)?;
        let stamp = humantime::format_rfc3339_millis(now).to_string().replace(':', "-");
        let path = self.dir.join(format!("{stamp}-{connection}.wire"));
        let written = File::create_new(&path).and_then(|mut file| file.write_all(title.as_bytes()).map(|()| file));
        match written {
            Ok(file) => {
                self.left.set(left);
                let left = Rc::clone(&self.left);
                Some(Recorder { file: Some(file), left, held: Vec::new(), is_answered: false })
            }
            Err(error) => {
                log::warn!("RECORD {}: {error}", path.display());
                None
            }
        }
    }
}

impl Recorder {
    /// Records the bytes of one read or write.
    pub fn see(&mut self, from: Sender, bytes: &[u8], now: SystemTime) {
        match from {
            Sender::Client if !self.is_answered => self.held.push((now, bytes.to_vec())),
            Sender::Client => self.write(Step::Client(bytes.to_vec()), now),
            Sender::Server => {
                self.write_held();
                self.is_answered = true;
                let mut bytes = bytes.to_vec();
                secret::mask_ticket(&mut bytes);
                self.write(Step::Server(bytes), now);
            }
        }
    }

    /// Records what the server takes of this client.
    pub fn upgraded(&mut self, limits: Limits, user: Option<&str>, now: SystemTime) {
        let Limits { message, fragments, binary } = limits;
        self.write_held();
        self.is_answered = true;
        self.write(Step::Upgraded { message, fragments, binary, user: user.map(Into::into) }, now);
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

    fn write_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        let joined: Vec<u8> = held.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let mut head = Head::default();
        let behind = head.read(&joined, 1);
        let masked = [&secret::masked(&head.bytes), behind].concat();
        let mut rest = &masked[..];
        for (at, bytes) in held {
            let (read, tail) = rest.split_at(bytes.len().min(rest.len()));
            self.write(Step::Client(read.to_vec()), at);
            rest = tail;
        }
    }

    fn write(&mut self, step: Step, at: SystemTime) {
        let Some(file) = &mut self.file else { return };
        let line = |step| serde_json::to_string(&Entry { at, step }).unwrap_or_default() + "\n";
        let full = line(step);
        let (line, goes_on) = match self.left.get().checked_sub(full.len() as u64) {
            Some(left) => {
                self.left.set(left);
                (full, true)
            }
            None => (line(Step::Cut), false),
        };
        if file.write_all(line.as_bytes()).is_err() || !goes_on {
            self.file = None;
        }
    }
}

/// A recording as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// The number of the connection.
    pub connection: usize,
    /// What happened, in order.
    pub entries: Vec<Entry>,
}

impl Recording {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// The number of the line, and what is wrong with it.
    ///
    /// ```
    /// use wirechat::trace::recording::Recording;
    /// let file = r#"{"connection":7,"wirechat":"0.1.0"}
    /// {"at":"2026-11-22T12:00:01.204000Z","client":"8180"}"#;
    /// assert_eq!(Recording::parse(file).unwrap().entries.len(), 1);
    /// assert!(Recording::parse("GET / HTTP/1.1").unwrap_err().starts_with("line 1: "));
    /// ```
    pub fn parse(text: &str) -> Result<Recording, String> {
        let mut lines = text.lines().enumerate();
        let wrong = |number: usize, error| format!("line {}: {error}", number + 1);
        let (_, title) = lines.next().ok_or("line 1: the file is empty")?;
        let title: Title = serde_json::from_str(title).map_err(|error| wrong(0, error))?;
        let entries = lines.map(|(number, line)| serde_json::from_str(line).map_err(|error| wrong(number, error)));
        Ok(Recording { connection: title.connection, entries: entries.collect::<Result<_, _>>()? })
    }

    /// Lets a tap see it again.
    pub fn replay(&self, records: Records) {
        let mut tap = Tap::new(self.connection, records);
        for Entry { at, step } in &self.entries {
            match step {
                Step::Client(bytes) => tap.see(Sender::Client, bytes, *at),
                Step::Server(bytes) => tap.see(Sender::Server, bytes, *at),
                Step::Upgraded { message, fragments, binary, user } => {
                    tap.set_limits(Limits { message: *message, fragments: *fragments, binary: *binary });
                    user.iter().for_each(|user| tap.set_user(user.as_str().into()));
                }
                Step::Closing => tap.close_begins(),
                Step::End(how) => tap.end(how, *at),
                Step::Cut => {}
            }
        }
    }
}

/// A time as RFC 3339 has it, to the microsecond.
mod time {
    use std::time::SystemTime;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_micros(*time))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Bytes as hexadecimal digits.
mod bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::digits(bytes))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, odd) = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes = if odd.is_empty() { pairs.iter().map(byte).collect() } else { None };
        bytes.ok_or_else(|| D::Error::custom("bytes are pairs of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the module doc is read, and written again as it stands there.
    #[test]
    fn the_picture_is_true() {
        let doc = crate::pictures::module_doc(include_str!("recording.rs"));
        let file = doc.split("```").nth(1).and_then(|block| block.split_once('\n')).expect("the picture").1;
        let recording = Recording::parse(file).unwrap();
        let steps: Vec<&Step> = recording.entries.iter().map(|entry| &entry.step).collect();
        assert!(matches!(
            steps[..],
            [Step::Client(_), Step::Upgraded { .. }, Step::Server(_), Step::Closing, Step::End(_)]
        ));
        for (entry, line) in recording.entries.iter().zip(file.lines().skip(1)) {
            assert_eq!(serde_json::to_string(entry).unwrap(), line);
        }
    }

    #[test]
    fn damaged_files_are_refused_with_the_line_at_fault() {
        let title = r#"{"connection":7,"wirechat":"0.1.0"}"#;
        let damaged = [
            ("", "line 1: "),
            ("{}", "line 1: "),
            (&format!("{title}\n\n"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"4\"}}"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"zz\"}}"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"yesterday\",\"client\":\"00\"}}"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"more\":1}}"), "line 2: "),
        ];
        for (file, line) in damaged {
            assert!(Recording::parse(file).is_err_and(|error| error.starts_with(line)), "{file}");
        }
    }
}
