//! `--record`: the bytes of a connection in a file, to be looked at again offline.
//!
//! ```text
//! {"connection":7,"wirechat":"0.1.0"}
//! {"at":"2026-11-22T12:00:01.204000Z","client":"47455420"}
//! {"at":"2026-11-22T12:00:01.204113Z","upgraded":{"message":65536,"fragments":100000,"binary":false,"user":"alice"}}
//! {"at":"2026-11-22T12:00:01.204113Z","server":"48545450"}
//! {"at":"2026-11-22T12:00:07.900200Z","closing":null}
//! {"at":"2026-11-22T12:00:08.310040Z","end":"closed by the client: 1000"}
//! ```
//!
//! One line for each read, each write (here just their first four bytes), and each thing that the bytes do not tell. The
//! file is what a bug report needs. How it comes about is told in [`recorder`](super::recorder).
//!
//! Only the first thousand reads of a request have lines of their own.
//!
//! The subtle thing: a file may end in the middle of a line, when the disk is full or the server was killed. What is
//! before that line is as good as ever.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::visible::digits;
use super::{Record, Records, Tap};
use crate::ws::Limits;
use crate::ws::frame::Role;

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Title {
    /// The number of the connection.
    pub connection: usize,
    /// The version of the server.
    pub wirechat: String,
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
        /// What the server takes of this client.
        #[serde(flatten, with = "Limited")]
        limits: Limits,
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
    /// use wirechat::inspect::recording::Recording;
    /// let file = r#"{"connection":7,"wirechat":"0.1.0"}
    /// {"at":"2026-11-22T12:00:01.204000Z","client":"8180"}"#;
    /// assert_eq!(Recording::parse(file).unwrap().entries.len(), 1);
    /// assert!(Recording::parse("GET / HTTP/1.1").unwrap_err().starts_with("line 1: "));
    /// ```
    pub fn parse(text: &str) -> Result<Recording, String> {
        let mut lines = text.lines().enumerate();
        let wrong = |number: usize, error: serde_json::Error| {
            let error = error.to_string();
            format!("line {}: {}", number + 1, error.split(" at line ").next().unwrap_or_default())
        };
        let (_, title) = lines.next().ok_or("line 1: the file is empty")?;
        let title: Title = serde_json::from_str(title).map_err(|error| wrong(0, error))?;
        let mut entries = Vec::new();
        for (number, line) in lines {
            match serde_json::from_str(line) {
                Ok(entry) => entries.push(entry),
                // A line without its end was not written to its end.
                Err(_) if !text.ends_with('\n') && number + 1 == text.lines().count() => {}
                Err(error) => return Err(wrong(number, error)),
            }
        }
        Ok(Recording { connection: title.connection, entries })
    }

    /// Lets a tap see it again, and hands out what it has to say, read by read: as beside a server, more than a read's
    /// worth of records is never held.
    pub fn replay(&self, mut show: impl FnMut(&Record)) {
        let records = Records::default();
        let mut tap = Tap::new(self.connection, records.clone()).beside_server();
        for Entry { at, step } in &self.entries {
            match step {
                Step::Client(bytes) => tap.see(Role::Client, bytes, *at),
                Step::Server(bytes) => tap.see(Role::Server, bytes, *at),
                Step::Upgraded { limits, user } => tap.upgraded(*limits, user.as_deref().map(Into::into), false),
                Step::Closing => tap.close_begins(),
                Step::End(how) => tap.end(how, *at),
                Step::Cut => {}
            }
            records.take().iter().for_each(&mut show);
        }
    }
}

/// [`Limits`] as they are written: `ws` itself knows no format.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
struct Limited {
    message: usize,
    fragments: u32,
    binary: bool,
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
    use crate::inspect::What;

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
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"4\"}}\n"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"zz\"}}\n"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"yesterday\",\"client\":\"00\"}}\n"), "line 2: "),
            (&format!("{title}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"more\":1}}\n"), "line 2: "),
        ];
        for (file, line) in damaged {
            assert!(Recording::parse(file).is_err_and(|error| error.starts_with(line)), "{file}");
        }
    }

    #[test]
    fn what_is_before_a_line_without_its_end_is_read() {
        let file =
            "{\"connection\":7,\"wirechat\":\"0.1.0\"}\n{\"at\":\"2026-11-22T12:00:01Z\",\"client\":\"00\"}\n{\"at\":";
        assert_eq!(Recording::parse(file).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_long_recording_is_seen_whole() {
        let step = |step| Entry { at: SystemTime::UNIX_EPOCH, step };
        let handshake = [
            Step::Client(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            Step::Server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec()),
        ];
        let reads = (0..4).map(|_| Step::Client(b"\x8a\x80\0\0\0\0".repeat(10_000)));
        let recording = Recording { connection: 7, entries: handshake.into_iter().chain(reads).map(step).collect() };
        let mut frames = 0;
        recording.replay(|record| frames += usize::from(matches!(record.what, What::Frame(_))));
        assert_eq!(frames, 40_000);
    }
}
