//! `wirechat replay FILE` prints the trace of a recording made by `wirechat --record`, and checks whether this version
//! reacts as recorded. A fresh [`Protocol`] receives the recorded client bytes, and must send the same Pongs and Close
//! as the server did (RFC 6455 §5.5). The check ignores messages, Pings, and a Close that the server sent first: the
//! protocol alone does not cause them. The check also skips the handshake, because recorded access tokens are redacted.

use std::fs;
use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::screen::{Screen, Tone, quote};
use crate::inspect::Head;
use crate::inspect::recording::{Recording, Step};
use crate::inspect::scan::{FrameScanner, ScanResult};
use crate::inspect::text::Detail;
use crate::ws::frame::{Opcode, Role};
use crate::ws::protocol::Protocol;

const AFTER_HELP: &str = "\
Try:  wirechat --record recordings           save the bytes of each connection in a file
      wirechat replay recordings/….wire      and show one of them, every byte

The exit code is 0 if the protocol reacts as it did then, 1 if not, 2 if the file is not a recording.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Replay this recording file, written by wirechat --record DIR
    file: PathBuf,

    /// Print one line per frame instead of every byte
    #[arg(long)]
    line: bool,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

/// The Pongs and the Close that the server sent, either in the recording or in its replay.
#[derive(Debug, Default)]
struct Reactions {
    pongs: Vec<Vec<u8>>,
    /// The code of the Close: `None` if the server sent no Close, `Some(None)` if its Close had no code.
    close: Option<Option<u16>>,
    /// Whether the server started the closing handshake, for example to shut down or to drop a slow consumer.
    closed_first: bool,
}

/// Prints a recording, and replays its input to the protocol. Returns `true` if the protocol reacts as recorded.
///
/// # Errors
/// A one-line message if the file cannot be read or is not a recording.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let path = arguments.file.display().to_string();
    let bytes = fs::read(&arguments.file).map_err(|error| format!("cannot read {path}: {error}"))?;
    let recording = parse_recording(&path, bytes)?;
    let screen = Screen::new(if arguments.line { Detail::Line } else { Detail::Full });
    recording.replay(|record| screen.print(&screen.format_record(record)));
    match recording.entries.last().map(|entry| &entry.step) {
        Some(Step::End(_)) => {}
        Some(Step::Cut) => screen.print("The recording was cut here: --record-limit was reached."),
        _ => screen.print("The recording stops here: the connection was still open, or the server was killed."),
    }
    let difference = find_difference(&read_reactions(&recording), &replay_reactions(&recording));
    let result = match &difference {
        None => screen.paint(Tone::Good, "as recorded: the protocol reacts in the same way"),
        Some(difference) => screen.paint(Tone::Bad, &format!("NOT as recorded: {difference}")),
    };
    screen.print(&result);
    Ok(difference.is_none())
}

fn parse_recording(path: &str, bytes: Vec<u8>) -> Result<Recording, String> {
    let not_one = |seen: &str| {
        format!(
            "{path} is not a wirechat recording: its first line must be like {{\"connection\":7,\"wirechat\":\"0.1.0\"}}, \
             and {seen}. Make recordings with wirechat --record DIR"
        )
    };
    let text = String::from_utf8(bytes).map_err(|_| not_one("the file is not text"))?;
    let first_line = text.lines().next().unwrap_or_default();
    Recording::parse(&text).map_err(|error| match Recording::parse(first_line) {
        Ok(_) => format!("{path} is a damaged recording: {error}"),
        Err(_) if text.is_empty() => not_one("the file is empty"),
        Err(_) => not_one(&format!("it is {}", quote(first_line))),
    })
}

/// Describes the first recorded reaction that the replay does not reproduce. Extra reactions in the replay are fine:
/// the connection may have been lost, the server may have closed first, or the recording may have been cut short.
fn find_difference(then: &Reactions, now: &Reactions) -> Option<String> {
    if let Some(at) = (0..then.pongs.len()).find(|at| now.pongs.get(*at) != then.pongs.get(*at)) {
        let text = |reactions: &Reactions| match reactions.pongs.get(at) {
            Some(payload) => quote(&String::from_utf8_lossy(payload)),
            None => "missing".into(),
        };
        return Some(format!("Pong {} was {}, and is now {}", at + 1, text(then), text(now)));
    }
    let text = |close: &Option<Option<u16>>| match close {
        None => "missing".into(),
        Some(None) => "without a code".into(),
        Some(Some(code)) => code.to_string(),
    };
    let is_different = !then.closed_first && then.close.is_some() && then.close != now.close;
    is_different.then(|| format!("the Close was {}, and is now {}", text(&then.close), text(&now.close)))
}

fn read_reactions(recording: &Recording) -> Reactions {
    let (mut head, mut frames, mut reactions) =
        (Head::default(), FrameScanner::new(Role::Server), Reactions::default());
    for entry in &recording.entries {
        match &entry.step {
            Step::Server(bytes) => {
                let after_head = head.read(bytes, 0);
                reactions.scan(&mut frames, after_head);
            }
            Step::Upgraded { limits, .. } => frames.set_limits(*limits),
            Step::Closing => reactions.closed_first = reactions.close.is_none(),
            _ => {}
        }
    }
    reactions
}

fn replay_reactions(recording: &Recording) -> Reactions {
    // Like the server, buffer the client's frames until the upgrade, because frames may arrive with the request.
    let (mut head, mut buffered, mut protocol) = (Head::default(), Vec::new(), None::<Protocol>);
    let (mut frames, mut reactions) = (FrameScanner::new(Role::Server), Reactions::default());
    for entry in &recording.entries {
        match &entry.step {
            Step::Upgraded { limits, .. } => protocol = Some(Protocol::new(*limits)),
            Step::Client(bytes) => buffered.extend_from_slice(head.read(bytes, 0)),
            _ => {}
        }
        let Some(protocol) = &mut protocol else { continue };
        let mut bytes = std::mem::take(&mut buffered);
        let mut input = &mut bytes[..];
        while protocol.receive(&mut input).is_some() {}
        reactions.scan(&mut frames, &protocol.take_output());
    }
    reactions
}

impl Reactions {
    fn scan(&mut self, frames: &mut FrameScanner, mut bytes: &[u8]) {
        while let ScanResult::Complete(frame) = frames.next(&mut bytes, 0) {
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
    use crate::inspect::escape::plain_hex;

    fn recording(steps: &[(&str, &[u8])]) -> Recording {
        let at = "2026-11-22T12:00:01.204000Z";
        let mut file = String::from("{\"connection\":7,\"wirechat\":\"0.1.0\"}\n");
        file += &format!(
            r#"{{"at":"{at}","upgraded":{{"message":99,"fragments":9,"binary":false,"deflate":true,"user":null}}}}"#
        );
        let handshake: [(&str, &[u8]); 2] =
            [("client", b"GET / HTTP/1.1\r\n\r\n"), ("server", b"HTTP/1.1 101 \r\n\r\n")];
        for (name, bytes) in handshake.iter().chain(steps) {
            file += &match bytes {
                [] if *name == "closing" => format!("\n{{\"at\":\"{at}\",\"{name}\":null}}"),
                bytes => format!("\n{{\"at\":\"{at}\",\"{name}\":\"{}\"}}", plain_hex(bytes)),
            };
        }
        Recording::parse(&file).unwrap()
    }

    fn compare(steps: &[(&str, &[u8])]) -> Option<String> {
        let recording = recording(steps);
        find_difference(&read_reactions(&recording), &replay_reactions(&recording))
    }

    #[test]
    fn pongs_and_closes_are_compared() {
        let ping: &[u8] = b"\x89\x81\0\0\0\0p";
        let pings = [ping, ping].concat();
        assert_eq!(compare(&[("client", ping), ("server", b"\x81\x02hi\x8a\x01p")]), None);
        assert_eq!(compare(&[("client", &pings), ("server", b"\x8a\x01p")]), None, "the last Pong was lost");
        assert_eq!(
            compare(&[("client", &pings), ("closing", b""), ("server", b"\x88\x02\x03\xf0")]),
            None,
            "the server closed first"
        );
        assert_eq!(
            compare(&[("client", &[0x81, 0x05]), ("server", b"\x88\x02\x03\xea")]),
            None,
            "the replay sends 1002 too"
        );
        for (sent, recorded, expected) in [
            (ping, &b"\x8a\x01q"[..], "Pong 1 was \"q\", and is now \"p\""),
            (b"", b"\x8a\x01q", "Pong 1 was \"q\", and is now missing"),
            (b"", b"\xc1\x01\0\x8a\x01q", "Pong 1 was \"q\", and is now missing"), // a compressed message, then a Pong
            (ping, b"\x88\x02\x03\xea", "the Close was 1002, and is now missing"),
            (b"\x81\x05", b"\x88\x02\x03\xef", "the Close was 1007, and is now 1002"),
        ] {
            assert_eq!(compare(&[("client", sent), ("server", recorded)]).as_deref(), Some(expected));
        }
    }

    #[test]
    fn frames_in_one_read_with_the_request_wait_for_the_upgrade() {
        let mut recording = recording(&[("server", b"\x8a\x01p")]);
        let Step::Client(request) = &mut recording.entries[1].step else { panic!("the request") };
        request.extend_from_slice(b"\x89\x81\0\0\0\0p");
        recording.entries.swap(0, 1); // as in a real recording, the request precedes the upgrade
        assert_eq!(find_difference(&read_reactions(&recording), &replay_reactions(&recording)), None);
        assert_eq!(replay_reactions(&recording).pongs, [b"p"]);
    }

    #[test]
    fn a_file_that_is_not_a_recording_is_reported_as_such() {
        let error = |bytes: &[u8]| parse_recording("f", bytes.to_vec()).unwrap_err();
        let start = "f is not a wirechat recording: its first line must be like {\"connection\":7,\"wirechat\":\"0.1.0\"}, and ";
        let end = ". Make recordings with wirechat --record DIR";
        assert_eq!(error(b"root:x:0\nbin:x:1\n"), format!("{start}it is \"root:x:0\"{end}"));
        assert_eq!(error(b"\x7fELF\xff"), format!("{start}the file is not text{end}"));
        assert_eq!(error(b""), format!("{start}the file is empty{end}"));
        let damaged = error(b"{\"connection\":7,\"wirechat\":\"0.1.0\"}\n{}\n");
        assert!(damaged.starts_with("f is a damaged recording: line 2: "), "{damaged}");
    }
}
