//! Prints the output of a tool, in color on a terminal. Terminals execute escape sequences, so tools must pass bytes
//! from the wire through [`quote()`], [`escape()`] or [`shorten()`]. [`Screen::format_record`] does its own escaping.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anstyle::{AnsiColor, Style as Ansi};

pub use crate::inspect::escape::escape;
use crate::inspect::text::{Detail, Style};
use crate::inspect::{Record, escape, text};

/// Maximum length of quoted text, in characters.
const MAX_QUOTED_CHARS: usize = 100;
/// Maximum length of binary data to show, in bytes.
const MAX_HEX_BYTES: usize = 16;

#[derive(Debug)]
pub struct Screen {
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Heading,
}

impl Screen {
    /// Uses color on a terminal, unless `NO_COLOR` is set and not empty.
    pub fn new(detail: Detail) -> Screen {
        Screen { style: Style::new(detail, std::io::stdout().is_terminal()) }
    }

    pub fn print(&self, text: &str) {
        // A closed pipe, as with `| head`, is not an error: the exit code still reports the result.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Heading => Ansi::new().bold(),
        };
        if self.style.uses_colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// Formats a record as `--trace` prints it, without the trailing newline.
    pub fn format_record(&self, record: &Record) -> String {
        let mut drawn = String::new();
        text::write(record, self.style, &mut drawn);
        drawn.truncate(drawn.trim_end().len());
        drawn
    }

    /// Like [`Screen::format_record`], but without the time and the connection number, for bytes that did not come from
    /// a connection.
    pub fn format_without_time(&self, record: &Record) -> String {
        let mut drawn = String::new();
        text::write_without_time(record, self.style, &mut drawn);
        drawn.truncate(drawn.trim_end().len());
        drawn
    }
}

/// Converts an error from writing to stdout into a one-line message. Unlike a full disk, a closed pipe is not an error:
/// a reader such as `head` may close it early.
pub fn check_written(result: io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot write to stdout: {error}")),
        _ => Ok(()),
    }
}

/// Quotes and escapes text from the wire, and truncates long text.
pub fn quote(text: &str) -> String {
    let start = escape::first_chars(text, MAX_QUOTED_CHARS);
    let dots = if start.len() < text.len() { "…" } else { "" };
    escape::quote(start) + dots
}

/// Formats the start of `bytes`: quoted text if `bytes` is UTF-8, else hexadecimal digits.
pub fn shorten(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => quote(text),
        Err(_) => format_hex(bytes),
    }
}

fn format_hex(bytes: &[u8]) -> String {
    let dots = if bytes.len() > MAX_HEX_BYTES { " …" } else { "" };
    escape::spaced_hex(&bytes[..bytes.len().min(MAX_HEX_BYTES)]) + dots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_from_the_wire_is_escaped_and_shortened() {
        assert_eq!(quote("say \"hi\"\x1b"), "\"say \"hi\"\\u{1b}\"");
        assert_eq!(quote(&"x".repeat(101)), format!("\"{}\"…", "x".repeat(100)));
        assert_eq!(shorten(b"hi\r\n"), "\"hi\\r\\n\"");
        assert_eq!(shorten(&[0xff; 17]), format!("{} …", ["ff"; 16].join(" ")));
    }
}
