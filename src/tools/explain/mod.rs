//! `wirechat explain` decodes and draws frames, checks an opening handshake, or looks up a number or word in RFC 6455.
//! The command reads bytes from its arguments or standard input, in any notation that [`notation`] recognizes.
//!
//! Some input is ambiguous: `10` can be an opcode, a section or a byte. [`topics`] picks the likeliest meaning, and
//! the output also lists other meanings.

pub mod frames;
pub mod handshake;
pub mod sections;
pub mod topics;

use std::io::{IsTerminal, Read, Write};

use clap::{ArgAction, Args};

use self::frames::Explanation;
use super::notation::{self, Decoded, Notation};
use super::screen::{Screen, Tone};
use crate::inspect::text::Detail;
use crate::ws::frame::Role;

/// Maximum size of standard input, in bytes.
const MAX_INPUT_BYTES: u64 = 1 << 20;

const AFTER_HELP: &str = "\
Try:  wirechat explain 81 85 37 fa 21 3d 7f 9f 4d 51 58        a client's \"Hello\" (RFC 6455 §5.7)
      wirechat explain --from-server 8105 48656c6c6f           a server's
      wirechat explain \"81 85 M0 'Hello'\"                      M0: a masking key of zeros, '…': text
      xxd frames.bin | wirechat explain                        a hex dump, or the bytes themselves
      wirechat explain < request.txt                           a request, or one and its response
      wirechat explain key dGhlIHNhbXBsZSBub25jZQ==            the accept value for a key
      wirechat explain ping                                    an opcode (also: opcode 9)
      wirechat explain 1006                                    a close code (also: close 1006)
      wirechat explain 5.4                                     a section (also: section 5.4)
      wirechat explain masking                                 sections about a word

The exit code is 0 if the bytes are complete and valid, 1 if not, 2 if the input makes no sense.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Explain frames or a handshake, given as bytes in any usual notation. Read standard input if omitted or "-". Or
    /// explain a topic: key KEY, close CODE, opcode N, section N, ping, masking, 1006
    #[arg(value_name = "BYTES")]
    words: Vec<String>,

    /// Expect a server's frames, which are not masked (default: a client's frames, which are masked)
    #[arg(long)]
    from_server: bool,

    /// Read the bytes in this notation (default: detect the notation)
    #[arg(long = "as", value_name = "NOTATION")]
    notation: Option<Notation>,

    /// Check a response against the Sec-WebSocket-Key of its request
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

/// Explains the given bytes or looks up a topic of RFC 6455. Returns `true` unless the bytes are incomplete or invalid.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let screen = Screen::new(Detail::Full);
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    let topic = if arguments.notation.is_none() { topics::explain_topic(&words)? } else { None };
    if let Some(topic) = topic {
        screen.print(&topic);
        return Ok(true);
    }
    let decoded = match words[..] {
        [] | ["-"] => read_stdin(arguments.notation)?,
        _ => read_text(&join_words(&words), arguments.notation)?,
    };
    if decoded.bytes.is_empty() {
        return Err("there are no bytes to explain: pass some, such as 81 85 37 fa 21 3d 7f 9f 4d 51 58".into());
    }
    let count = if decoded.bytes.len() == 1 { "1 byte".into() } else { format!("{} bytes", decoded.bytes.len()) };
    screen.print(&format!("Read as {}: {count}.", decoded.notation_name));
    if let Some(alternative) = &decoded.alternative {
        screen.print(&format!("It could also be {alternative}."));
    }
    let role = if arguments.from_server { Role::Server } else { Role::Client };
    let explanation = frames::explain(&decoded.bytes, role, arguments.key.as_deref());
    print(&screen, &explanation);
    Ok(explanation.is_valid)
}

fn print(screen: &Screen, explanation: &Explanation) {
    explanation.handshake.iter().for_each(|line| screen.print(line));
    for record in &explanation.records {
        screen.print(&screen.format_without_time(record));
    }
    let tone = if explanation.is_valid { Tone::Good } else { Tone::Bad };
    explanation.notes.iter().for_each(|note| screen.print(&screen.paint(tone, note)));
}

/// Joins the arguments with spaces, or with newlines if each of several arguments contains a space: the user probably
/// quoted whole lines, such as lines of a hex dump.
fn join_words(words: &[&str]) -> String {
    let are_lines = words.len() > 1 && words.iter().all(|word| word.contains(' '));
    words.join(if are_lines { "\n" } else { " " })
}

/// Reads standard input: text in `notation` (detected if `None`), or binary input as raw bytes.
fn read_stdin(notation: Option<Notation>) -> Result<Decoded, String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let prompt = "Type or paste bytes, such as 81 85 37 fa 21 3d 7f 9f 4d 51 58, then press Ctrl-D.";
        let _ = writeln!(std::io::stderr(), "{prompt}");
    }
    let mut input = Vec::new();
    let read = stdin.lock().take(MAX_INPUT_BYTES + 1).read_to_end(&mut input);
    read.map_err(|error| format!("cannot read standard input: {error}"))?;
    if input.len() as u64 > MAX_INPUT_BYTES {
        return Err(format!("standard input is over {} MiB: pass a part of it", MAX_INPUT_BYTES >> 20));
    }
    if notation == Some(Notation::Raw) {
        return Ok(Decoded::new(input, "raw bytes"));
    }
    let is_control = |c: char| c.is_control() && !c.is_whitespace();
    match std::str::from_utf8(&input) {
        Ok(text) if !text.contains(is_control) => read_text(text, notation),
        // The input is text with control characters. It is probably not a frame: its first byte sets a reserved bit
        // (§5.2). More likely, a program has converted the bytes of a frame to characters, for example with
        // JSON.stringify(data.toString('latin1')).
        Ok(text) if !text.starts_with(|c: char| c.is_ascii_control()) => {
            Err("the input is text with control characters, \
            as if bytes had been converted to characters: pass the bytes themselves, or a hex dump (or add --as raw)"
                .into())
        }
        _ => Ok(Decoded::new(input, "raw bytes")),
    }
}

fn read_text(text: &str, notation: Option<Notation>) -> Result<Decoded, String> {
    match notation {
        Some(notation) => notation::decode_as(notation, text),
        None => match handshake::read_http_text(text) {
            Some(decoded) => Ok(decoded),
            None => notation::read(text),
        },
    }
}
