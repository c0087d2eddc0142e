//! `wirechat explain`: draws frames that are given as bytes, and answers questions about the protocol.
//!
//! [`frames`] draws, with the tracer; [`numbers`] and [`sections`] hold what can be asked by name. The bytes may be
//! written in any usual way ([`notation`]), and may come from standard input.

pub mod frames;
pub mod numbers;
pub mod sections;

use std::io::{IsTerminal, Read, Write};

use clap::{ArgAction, Args};
use sha1::{Digest, Sha1};

use self::frames::Explained;
use super::notation;
use super::screen::{Screen, Tone, hex};
use crate::inspect::text::Detail;
use crate::ws::frame::Role;
use crate::ws::handshake::{GUID, accept_key, key_len};

/// The most that is read from standard input.
const MAX_INPUT: u64 = 1 << 20;

const AFTER_HELP: &str = "\
Try:  wirechat explain 81 85 37 fa 21 3d 7f 9f 4d 51 58        a client's \"Hello\" (RFC 6455 §5.7)
      wirechat explain --from-server 8105 48656c6c6f           a server's
      wirechat explain \"81 85 M0 'Hello'\"                      M0: a masking key of zeros, '…': text
      xxd frames.bin | wirechat explain                        a dump, or the bytes themselves
      wirechat explain key dGhlIHNhbXBsZSBub25jZQ==            from the key to the accept value
      wirechat explain close 1006
      wirechat explain opcode 9
      wirechat explain section 5.4

The exit code is 0 if the frames are whole and right, 1 if not, 2 if the question makes no sense.";

/// What is asked of `explain`.
#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Frames in hexadecimal, in any usual notation; "-" or nothing: from standard input. Or one of: key KEY, close
    /// CODE, opcode N, section N
    #[arg(value_name = "BYTES")]
    pub words: Vec<String>,

    /// These frames come from a server, which masks none
    #[arg(long)]
    pub from_server: bool,

    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// Answers what is asked. `true`: the frames are whole, and nothing is wrong with them.
///
/// # Errors
/// A line: a word that is no byte, a section that does not exist.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let screen = Screen::new(Detail::Full);
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    let answer = match words[..] {
        ["key", key] => key_steps(key),
        ["key", ..] => return Err("explain key wants one Sec-WebSocket-Key, as sent".into()),
        ["close"] => numbers::close(None)?,
        ["close", code] => numbers::close(Some(code))?,
        ["opcode"] => numbers::opcode(None)?,
        ["opcode", opcode] => numbers::opcode(Some(opcode))?,
        ["section"] => titles(sections::SECTIONS.iter()),
        ["section", number] => section(number)?,
        ["close" | "opcode" | "section", _, word, ..] => return Err(format!("{word:?} is one word too many")),
        [] | ["-"] => return frames(&screen, &read_stdin()?, arguments.from_server),
        _ => return frames(&screen, &spelled(&words.join(" "))?, arguments.from_server),
    };
    screen.line(&answer);
    Ok(true)
}

/// Draws frames. `true`: nothing is wrong with them, and nothing missing.
fn frames(screen: &Screen, bytes: &[u8], from_server: bool) -> Result<bool, String> {
    if bytes.is_empty() {
        return Err("there are no bytes to explain".into());
    }
    let sender = if from_server { Role::Server } else { Role::Client };
    let Explained { before, records, notes, is_right } = frames::explain(bytes, sender);
    before.iter().for_each(|line| screen.line(line));
    for record in &records {
        screen.line(&frames::without_clock(&screen.drawn(record)));
    }
    let tone = if is_right { Tone::Good } else { Tone::Bad };
    notes.iter().for_each(|note| screen.line(&screen.toned(tone, note)));
    Ok(is_right)
}

/// §1.3 and §4.2.2, step by step.
fn key_steps(key: &str) -> String {
    let joined = format!("{key}{GUID}");
    let hash = Sha1::digest(joined.as_bytes());
    let decoded = match key_len(key.as_bytes()) {
        Some(16) => String::new(),
        Some(len) => format!("\nA key must be base64 of 16 bytes; this is one of {len} (§4.2.1)."),
        None => "\nA key must be base64, and this is not (§4.2.1).".into(),
    };
    format!(
        "key          {key}\nkey + GUID   {joined}\nits SHA-1    {}\nin base64    {}\n\
         The last line is Sec-WebSocket-Accept (§1.3, §4.2.2; src/ws/handshake.rs).{decoded}",
        hex(&hash, hash.len()),
        accept_key(key.as_bytes())
    )
}

fn section(asked: &str) -> Result<String, String> {
    let number = asked.trim_start_matches('§');
    let found = sections::find(number);
    match found[..] {
        [] => match sections::unbinding(number) {
            Some(title) => {
                Ok(format!("§{number} {title}\nIt asks nothing of an endpoint, and has no place in wirechat."))
            }
            None => Err(format!("RFC 6455 has no section {asked:?} (wirechat explain section)")),
        },
        [only] => Ok(told(only)),
        [first, ref below @ ..] if first.number == number => {
            Ok(format!("{}\n\nBelow it:\n{}", told(first), titles(below.iter().copied())))
        }
        _ => Ok(titles(found.into_iter())),
    }
}

fn told(section: &sections::Section) -> String {
    let place = if section.place.is_empty() { String::new() } else { format!("\nin wirechat: {}", section.place) };
    format!("§{} {}\n{}{place}", section.number, section.title, wrapped(section.words))
}

fn titles(sections: impl Iterator<Item = &'static sections::Section>) -> String {
    let lines: Vec<String> = sections.map(|section| format!("§{:<7} {}", section.number, section.title)).collect();
    lines.join("\n")
}

/// A text in lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    let (mut lines, mut line) = (String::new(), 0);
    for word in text.split(' ') {
        let len = word.chars().count();
        if line > 0 {
            let is_full = line + 1 + len > 100;
            lines.push(if is_full { '\n' } else { ' ' });
            line = if is_full { 0 } else { line + 1 };
        }
        lines.push_str(word);
        line += len;
    }
    lines
}

/// Reads bytes from standard input: as text in any notation, or, if it is no text, as they are.
fn read_stdin() -> Result<Vec<u8>, String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let prompt = "Frames in hexadecimal, please, as 81 85 37 fa 21 3d 7f 9f 4d 51 58; then Ctrl-D.";
        let _ = writeln!(std::io::stderr(), "{prompt}");
    }
    let mut input = Vec::new();
    let read = stdin.lock().take(MAX_INPUT + 1).read_to_end(&mut input);
    read.map_err(|error| format!("standard input: {error}"))?;
    if input.len() as u64 > MAX_INPUT {
        return Err(format!("standard input is over {} MiB", MAX_INPUT >> 20));
    }
    let is_text = |text: &&str| !text.chars().any(|c| c.is_control() && !c.is_whitespace());
    match std::str::from_utf8(&input).ok().filter(is_text) {
        Some(text) => spelled(text),
        None => Ok(input),
    }
}

/// The bytes that a text stands for: an HTTP head for itself, anything else for what it spells.
fn spelled(text: &str) -> Result<Vec<u8>, String> {
    if frames::is_http(text.as_bytes()) { Ok(text.into()) } else { notation::parse(text) }
}
