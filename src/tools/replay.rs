//! `wirechat replay FILE`: what `--record` kept is seen again, offline.
//!
//! The bytes go through the tracer, which draws them as `--trace` would have, and through a [`Protocol`] of its own: what
//! that answers must be what the server answered then. So a recording of a fault shows whether the fault is still there.
//!
//! The subtle thing: the server also said things that were not answers (messages, pings, a Close of its own), of which
//! the protocol of today knows nothing. Only pongs and closes are compared. Who may come in is not asked again: the tokens
//! are masked.

use std::fs;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::screen::{Screen, Tone};
use crate::trace::recording::{Recording, Step};
use crate::trace::scan::{self, FrameScanner};
use crate::trace::text::Detail;
use crate::trace::{Head, Records};
use crate::ws::Limits;
use crate::ws::close::CloseCode;
use crate::ws::frame::{self, Opcode, Sender};
use crate::ws::protocol::{Protocol, State};

const AFTER_HELP: &str = "\
Try:  wirechat --record recordings           keep what passes, a file a connection
      wirechat replay recordings/….wire      and see one of them again, every byte of it

The exit code is 0 if it ends as it ended then, 1 if not, 2 if the file is no recording.";

/// What the tool is asked.
#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// A file that `wirechat --record DIR` has written
    file: PathBuf,

    /// One line a frame, instead of all of it
    #[arg(long)]
    line: bool,

    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// An answer of a server.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Pong(Vec<u8>),
    /// With its code. `None`: without one; or the server began it, and for its own reasons.
    Close(Option<u16>),
}

/// Draws a recording, and compares. `true`: it ends as it ended then.
///
/// # Errors
/// The file cannot be read, or is no recording.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let path = arguments.file.display();
    let text = fs::read_to_string(&arguments.file).map_err(|error| format!("{path}: {error}"))?;
    let recording = Recording::parse(&text).map_err(|error| format!("{path}: {error}"))?;
    let records = Records::default();
    recording.replay(records.clone());
    let screen = Screen::new(if arguments.line { Detail::Line } else { Detail::Full });
    records.take().iter().for_each(|record| screen.line(&screen.drawn(record)));
    let difference = difference(&answers_of_server(&recording), &answers_of_protocol(&recording));
    if let Some(difference) = &difference {
        screen.line(&screen.toned(Tone::Bad, &format!("NOT as it was recorded: {difference}")));
    }
    Ok(difference.is_none())
}

/// Where the answers of the protocol are others than those of the server. What the server had still to say when the
/// connection broke, or when there was no more room for the recording, is not there.
fn difference(then: &[Reply], now: &[Reply]) -> Option<String> {
    let is_same = |at: &usize| match (&then[*at], now.get(*at)) {
        (Reply::Close(_), Some(Reply::Close(None))) => true,
        (then, now) => Some(then) == now,
    };
    let at = (0..then.len()).find(|at| !is_same(at))?;
    let expected = now.get(at).map_or("none".into(), |reply| format!("{reply:?}"));
    Some(format!("answer {} of the server was {:?}; that of the protocol is {expected}", at + 1, then[at]))
}

/// The pongs and closes that the server sent.
fn answers_of_server(recording: &Recording) -> Vec<Reply> {
    let (mut head, mut frames, mut found) = (Head::default(), FrameScanner::new(Sender::Server), Vec::new());
    for entry in &recording.entries {
        if let Step::Server(bytes) = &entry.step {
            let behind = head.read(bytes, 0);
            if head.status() == 101 {
                found.extend(answers(&mut frames, behind));
            }
        }
    }
    found
}

/// The pongs and closes that the protocol answers to what the client sent.
fn answers_of_protocol(recording: &Recording) -> Vec<Reply> {
    let (mut head, mut protocol, mut replies) = (Head::default(), None, Vec::new());
    for entry in &recording.entries {
        match (&entry.step, &mut protocol) {
            (Step::Upgraded { message, fragments, binary, .. }, _) => {
                let limits = Limits { message: *message, fragments: *fragments, binary: *binary };
                protocol = Some(Protocol::new(limits));
            }
            (Step::Client(bytes), protocol) => {
                let mut bytes = head.read(bytes, 0).to_vec();
                let mut input = &mut bytes[..];
                while protocol.as_mut().is_some_and(|protocol| protocol.receive(&mut input).is_some()) {}
            }
            (Step::Closing, Some(protocol)) if protocol.state() == State::Open => {
                replies.extend(protocol.take_replies());
                protocol.close(CloseCode::NORMAL, "");
                protocol.take_replies();
                frame::append(&mut replies, Opcode::Close, b"");
            }
            _ => {}
        }
        replies.extend(protocol.iter_mut().flat_map(Protocol::take_replies));
    }
    answers(&mut FrameScanner::new(Sender::Server), &replies)
}

/// The pongs and closes among frames of a server.
fn answers(frames: &mut FrameScanner, mut bytes: &[u8]) -> Vec<Reply> {
    let mut answers = Vec::new();
    while let scan::Step::Complete(frame) = frames.next(&mut bytes, 0) {
        answers.extend(reply(frame.header.opcode(), &frame.wire));
    }
    answers
}

fn reply(opcode: u8, payload: &[u8]) -> Option<Reply> {
    match Opcode::from_bits(opcode) {
        Ok(Opcode::Pong) => Some(Reply::Pong(payload.to_vec())),
        Ok(Opcode::Close) => Some(Reply::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::visible::digits;

    /// A recording of these steps behind an upgrade.
    fn recording(steps: &[(&str, &[u8])]) -> Recording {
        let at = "2026-11-22T12:00:01.204000Z";
        let mut file = String::from("{\"connection\":7,\"wirechat\":\"0.1.0\"}\n");
        file += &format!(r#"{{"at":"{at}","upgraded":{{"message":99,"fragments":9,"binary":false,"user":null}}}}"#);
        let handshake: [(&str, &[u8]); 2] =
            [("client", b"GET / HTTP/1.1\r\n\r\n"), ("server", b"HTTP/1.1 101 \r\n\r\n")];
        for (name, bytes) in handshake.iter().chain(steps) {
            file += &match bytes {
                [] => format!("\n{{\"at\":\"{at}\",\"{name}\":null}}"),
                bytes => format!("\n{{\"at\":\"{at}\",\"{name}\":\"{}\"}}", digits(bytes)),
            };
        }
        Recording::parse(&file).unwrap()
    }

    fn compare(steps: &[(&str, &[u8])]) -> Option<String> {
        let recording = recording(steps);
        difference(&answers_of_server(&recording), &answers_of_protocol(&recording))
    }

    #[test]
    fn answers_are_compared() {
        let ping: &[u8] = b"\x89\x81\0\0\0\0p";
        assert_eq!(compare(&[("client", ping), ("server", b"\x81\x02hi\x8a\x01p")]), None);
        assert_eq!(compare(&[("client", ping)]), None, "it had still to be sent");
        assert_eq!(compare(&[("closing", b""), ("server", b"\x88\x02\x03\xf0")]), None, "for its own reasons");
        assert_eq!(compare(&[("client", &[0x81, 0x05]), ("server", b"\x88\x02\x03\xea")]), None, "1002");
        for wrong in [
            [("client", ping), ("server", b"\x8a\x01q")],
            [("client", b"\x89\x80\0\0\0\0"), ("server", b"\x88\x02\x03\xea")],
        ] {
            assert!(compare(&wrong).is_some(), "{wrong:?}");
        }
    }
}
