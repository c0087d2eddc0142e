//! The file format of `--record`. The first line contains the connection number and the server version. Each other
//! line is one read, one write, or one state change that cannot be inferred from the bytes. A user can attach the file
//! to a bug report: [`Recording::replay`] reproduces the trace without a server.
//!
//! ```text
//! {"connection":7,"wirechat":"0.1.0"}
//! {"at":"2026-11-22T12:00:01.204000Z","client":"47455420"}
//! {"at":"2026-11-22T12:00:01.204113Z","upgraded":{"message":65536,"fragments":100000,"binary":false,"user":"alice"}}
//! {"at":"2026-11-22T12:00:01.204113Z","server":"48545450"}
//! {"at":"2026-11-22T12:00:07.900200Z","closing":null}
//! {"at":"2026-11-22T12:00:08.310040Z","end":"closed by the client: 1000"}
//! ```

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::escape::plain_hex;
use super::{Record, Records, Tap};
use crate::ws::frame::Role;
use crate::ws::protocol::Limits;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstLine {
    pub connection: usize,
    /// The version of the server that made the recording.
    pub wirechat: String,
}

/// Any line of a recording except the first: what happened, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "time")]
    pub at: SystemTime,
    #[serde(flatten)]
    pub step: Step,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The bytes that the server received from the client in a single read, without the secrets in them.
    Client(#[serde(with = "bytes")] Vec<u8>),
    /// The bytes that the server sent to the client in a single write, without the secrets in them.
    Server(#[serde(with = "bytes")] Vec<u8>),
    /// The server accepted the request. `user` is `None` on an endpoint without usernames.
    Upgraded {
        #[serde(flatten, with = "LimitsFormat")]
        limits: Limits,
        user: Option<String>,
    },
    Closing,
    /// The TCP connection closed, for the given reason.
    End(String),
    /// The last line of a recording that `--record-limit` cut short.
    Cut,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    pub connection: usize,
    pub entries: Vec<Entry>,
}

impl Recording {
    /// Parses a recording. Ignores an incomplete last line.
    ///
    /// # Errors
    /// Returns the line number and the reason if a line is invalid.
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
        let error_at = |number: usize, error: serde_json::Error| {
            // Remove serde_json's line number from the error: the number is always 1, as each line is parsed alone.
            let error = error.to_string();
            format!("line {}: {}", number + 1, error.split(" at line ").next().unwrap_or_default())
        };
        let (_, first_line) = lines.next().ok_or("line 1: the file is empty")?;
        let first_line: FirstLine = serde_json::from_str(first_line).map_err(|error| error_at(0, error))?;
        let mut entries = Vec::new();
        for (number, line) in lines {
            match serde_json::from_str(line) {
                Ok(entry) => entries.push(entry),
                // Ignore an incomplete last line: the server may have been killed during a write, or the disk may have
                // been full.
                Err(_) if !text.ends_with('\n') && number + 1 == text.lines().count() => {}
                Err(error) => return Err(error_at(number, error)),
            }
        }
        Ok(Recording { connection: first_line.connection, entries })
    }

    /// Passes the recorded bytes and state changes to a tap, and calls `show` for each of the tap's records.
    pub fn replay(&self, mut show: impl FnMut(&Record)) {
        let records = Records::default();
        // As in a live trace, omit a client's protocol error if the server began to close before it read the bad frame.
        let mut tap = Tap::new(self.connection, records.clone()).hold_failures();
        for Entry { at, step } in &self.entries {
            match step {
                Step::Client(bytes) => tap.observe(Role::Client, bytes, *at),
                Step::Server(bytes) => tap.observe(Role::Server, bytes, *at),
                // Pass 0 as the number of secrets to redact: the recorder has already redacted them.
                Step::Upgraded { limits, user } => tap.upgrade(*limits, user.as_deref().map(Into::into), 0),
                Step::Closing => tap.set_closing(),
                Step::End(cause) => tap.finish(cause, *at),
                Step::Cut => {}
            }
            // Drain the records after each entry: a long recording may produce more records than `Records` can hold.
            records.take().iter().for_each(&mut show);
        }
    }
}

/// Serializes [`Limits`], which cannot derive serde's traits: the `ws` module does not depend on serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
struct LimitsFormat {
    message: usize,
    fragments: u32,
    #[serde(rename = "binary")]
    accepts_binary: bool,
    #[serde(rename = "deflate", default, skip_serializing_if = "std::ops::Not::not")]
    deflates: bool,
}

/// Serializes times as RFC 3339 timestamps in UTC with microsecond precision.
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

/// Serializes bytes in hexadecimal, without separators.
mod bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::plain_hex(bytes))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, odd) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
        // An odd number of hexadecimal digits is an error: the file is damaged.
        let bytes = if odd.is_empty() { pairs.iter().map(byte).collect() } else { None };
        bytes.ok_or_else(|| D::Error::custom("bytes are pairs of hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::RecordKind;

    /// The example file in the module doc parses, and its entries serialize back to the same lines.
    #[test]
    fn picture_matches_the_code() {
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
    fn damaged_files_are_rejected_with_the_line_number() {
        let first_line = r#"{"connection":7,"wirechat":"0.1.0"}"#;
        let damaged = [
            ("", "line 1: "),
            ("{}", "line 1: "),
            (&format!("{first_line}\n\n"), "line 2: "),
            (&format!("{first_line}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"4\"}}\n"), "line 2: "),
            (&format!("{first_line}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"zz\"}}\n"), "line 2: "),
            (&format!("{first_line}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"client\":\"+4\"}}\n"), "line 2: "),
            (&format!("{first_line}\n{{\"at\":\"yesterday\",\"client\":\"00\"}}\n"), "line 2: "),
            (&format!("{first_line}\n{{\"at\":\"2026-11-22T12:00:01.204000Z\",\"more\":1}}\n"), "line 2: "),
        ];
        for (file, line) in damaged {
            assert!(Recording::parse(file).is_err_and(|error| error.starts_with(line)), "{file}");
        }
    }

    #[test]
    fn everything_before_an_incomplete_last_line_is_read() {
        let file =
            "{\"connection\":7,\"wirechat\":\"0.1.0\"}\n{\"at\":\"2026-11-22T12:00:01Z\",\"client\":\"00\"}\n{\"at\":";
        assert_eq!(Recording::parse(file).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_long_recording_is_replayed_completely() {
        let step = |step| Entry { at: SystemTime::UNIX_EPOCH, step };
        let handshake = [
            Step::Client(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            Step::Server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec()),
        ];
        let reads = (0..4).map(|_| Step::Client(b"\x8a\x80\0\0\0\0".repeat(10_000)));
        let recording = Recording { connection: 7, entries: handshake.into_iter().chain(reads).map(step).collect() };
        let mut frames = 0;
        recording.replay(|record| frames += usize::from(matches!(record.kind, RecordKind::Frame(_))));
        assert_eq!(frames, 40_000);
    }
}
