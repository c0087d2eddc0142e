//! `wirechat replay FILE`: what `--record` kept is seen again, offline.
//!
//! The bytes go through the tracer, which draws them as `--trace` would have, and through a [`Protocol`] of its own: what
//! that answers must be what the server answered then. So a recording of a fault shows whether the fault is still there.
//!
//! The subtle thing: the server also said things that were not answers (messages, pings, a Close for a reason of its own),
//! of which the protocol knows nothing. Only pongs, and a Close that answers, are compared. Who may come in is not asked
//! again: the tokens are masked.

use std::fs;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::screen::{Screen, Tone, quoted};
use crate::inspect::Head;
use crate::inspect::recording::{Recording, Step};
use crate::inspect::scan::{self, FrameScanner};
use crate::inspect::text::Detail;
use crate::ws::frame::{Opcode, Role};
use crate::ws::protocol::Protocol;

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

/// What a server answered by itself.
#[derive(Debug, Default)]
struct Answers {
    /// The payloads of its pongs.
    pongs: Vec<Vec<u8>>,
    /// The code of its Close, if it sent one with a code.
    close: Option<Option<u16>>,
    /// The Close was no answer: the server began it, for a reason of its own.
    is_own: bool,
}

/// Draws a recording, and compares. `true`: it ends as it ended then.
///
/// # Errors
/// The file cannot be read, or is no recording.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let path = arguments.file.display();
    let bytes = fs::read(&arguments.file).map_err(|error| format!("{path}: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{path} is no recording: it is not text"))?;
    let recording = Recording::parse(&text).map_err(|error| format!("{path}: {error}"))?;
    let screen = Screen::new(if arguments.line { Detail::Line } else { Detail::Full });
    recording.replay(|record| screen.line(&screen.drawn(record)));
    match recording.entries.last().map(|entry| &entry.step) {
        Some(Step::End(_)) => {}
        Some(Step::Cut) => screen.line("here the recording was cut: all of them had reached --record-limit"),
        _ => screen.line("here the recording stops: the connection was not over, or the server was killed"),
    }
    let difference = difference(&answers_of_server(&recording), &answers_of_protocol(&recording));
    let verdict = match &difference {
        None => screen.toned(Tone::Good, "as it was recorded: the protocol answers the same"),
        Some(difference) => screen.toned(Tone::Bad, &format!("NOT as it was recorded: {difference}")),
    };
    screen.line(&verdict);
    Ok(difference.is_none())
}

/// Where the answers of the protocol are others than those of the server. What the server had still to say when the
/// connection broke, when it closed for a reason of its own, or when there was no more room for the recording, is not
/// there.
fn difference(then: &Answers, now: &Answers) -> Option<String> {
    let pong = (0..then.pongs.len()).find(|at| now.pongs.get(*at) != then.pongs.get(*at));
    if let Some(at) = pong {
        let text = |answers: &Answers| match answers.pongs.get(at) {
            Some(payload) => quoted(&String::from_utf8_lossy(payload)),
            None => "none".into(),
        };
        return Some(format!(
            "Pong {} of the server was {}; that of the protocol is {}",
            at + 1,
            text(then),
            text(now)
        ));
    }
    let text = |close: &Option<Option<u16>>| match close {
        None => "none".into(),
        Some(None) => "without a code".into(),
        Some(Some(code)) => code.to_string(),
    };
    let is_other = !then.is_own && then.close.is_some() && then.close != now.close;
    is_other.then(|| {
        format!("the Close of the server was {}; that of the protocol is {}", text(&then.close), text(&now.close))
    })
}

/// What the server answered then.
fn answers_of_server(recording: &Recording) -> Answers {
    let (mut head, mut frames, mut answers) = (Head::default(), FrameScanner::new(Role::Server), Answers::default());
    for entry in &recording.entries {
        match &entry.step {
            Step::Server(bytes) => {
                let behind = head.read(bytes, 0);
                answers.take(&mut frames, behind);
            }
            Step::Closing => answers.is_own = answers.close.is_none(),
            _ => {}
        }
    }
    answers
}

/// What the protocol answers now. Frames that came with the request wait for it to be granted.
fn answers_of_protocol(recording: &Recording) -> Answers {
    let (mut head, mut ahead, mut protocol) = (Head::default(), Vec::new(), None::<Protocol>);
    let (mut frames, mut answers) = (FrameScanner::new(Role::Server), Answers::default());
    for entry in &recording.entries {
        match &entry.step {
            Step::Upgraded { limits, .. } => protocol = Some(Protocol::new(*limits)),
            Step::Client(bytes) => ahead.extend_from_slice(head.read(bytes, 0)),
            _ => {}
        }
        let Some(protocol) = &mut protocol else { continue };
        let mut bytes = std::mem::take(&mut ahead);
        let mut input = &mut bytes[..];
        while protocol.receive(&mut input).is_some() {}
        answers.take(&mut frames, &protocol.take_replies());
    }
    answers
}

impl Answers {
    /// Takes what is an answer among frames of a server.
    fn take(&mut self, frames: &mut FrameScanner, mut bytes: &[u8]) {
        while let scan::Step::Complete(frame) = frames.next(&mut bytes, 0) {
            match Opcode::from_bits(frame.header.opcode()) {
                Ok(Opcode::Pong) => self.pongs.push(frame.wire),
                Ok(Opcode::Close) => self.close = Some(frame.wire.first_chunk().map(|code| u16::from_be_bytes(*code))),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::visible::digits;

    /// A recording of these steps behind an upgrade.
    fn recording(steps: &[(&str, &[u8])]) -> Recording {
        let at = "2026-11-22T12:00:01.204000Z";
        let mut file = String::from("{\"connection\":7,\"wirechat\":\"0.1.0\"}\n");
        file += &format!(r#"{{"at":"{at}","upgraded":{{"message":99,"fragments":9,"binary":false,"user":null}}}}"#);
        let handshake: [(&str, &[u8]); 2] =
            [("client", b"GET / HTTP/1.1\r\n\r\n"), ("server", b"HTTP/1.1 101 \r\n\r\n")];
        for (name, bytes) in handshake.iter().chain(steps) {
            file += &match bytes {
                [] if *name == "closing" => format!("\n{{\"at\":\"{at}\",\"{name}\":null}}"),
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
        let pings = [ping, ping].concat();
        assert_eq!(compare(&[("client", ping), ("server", b"\x81\x02hi\x8a\x01p")]), None);
        assert_eq!(compare(&[("client", &pings), ("server", b"\x8a\x01p")]), None, "one had still to be sent");
        assert_eq!(compare(&[("client", &pings), ("closing", b""), ("server", b"\x88\x02\x03\xf0")]), None, "its own");
        assert_eq!(compare(&[("client", &[0x81, 0x05]), ("server", b"\x88\x02\x03\xea")]), None, "1002");
        for (sent, answered, fault) in [
            (ping, &b"\x8a\x01q"[..], "Pong 1 of the server was \"q\"; that of the protocol is \"p\""),
            (b"", b"\x8a\x01q", "Pong 1 of the server was \"q\"; that of the protocol is none"),
            (ping, b"\x88\x02\x03\xea", "the Close of the server was 1002; that of the protocol is none"),
            (b"\x81\x05", b"\x88\x02\x03\xef", "the Close of the server was 1007; that of the protocol is 1002"),
        ] {
            assert_eq!(compare(&[("client", sent), ("server", answered)]).as_deref(), Some(fault));
        }
    }

    #[test]
    fn frames_that_came_with_the_request_are_answered_when_it_is_granted() {
        let mut recording = recording(&[("server", b"\x8a\x01p")]);
        let Step::Client(request) = &mut recording.entries[1].step else { panic!("the request") };
        request.extend_from_slice(b"\x89\x81\0\0\0\0p");
        recording.entries.swap(0, 1); // the upgrade behind it, as it is recorded
        assert_eq!(difference(&answers_of_server(&recording), &answers_of_protocol(&recording)), None);
        assert_eq!(answers_of_protocol(&recording).pongs, [b"p"]);
    }
}
