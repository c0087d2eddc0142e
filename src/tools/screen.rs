//! What a tool writes: plain lines, with colour on a terminal that wants it.
//!
//! The subtle thing: much of what is shown was sent by somebody else, and a terminal obeys what it is sent. So nothing
//! from the wire is written but through [`quoted`], or by the tracer, which escapes as well.

use std::io::{IsTerminal, Write};

use anstyle::{AnsiColor, Style as Ansi};

use crate::inspect::text::{Detail, Style};
pub use crate::inspect::visible::escaped;
use crate::inspect::{Record, text, visible};

/// As much of a text from the wire as is shown.
const MAX_QUOTED: usize = 100;
/// As many of bytes that are no text.
const MAX_HEX: usize = 16;

/// Standard output.
#[derive(Debug)]
pub struct Screen {
    style: Style,
}

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// All is well.
    Good,
    /// Something is wrong.
    Bad,
    /// A heading.
    Heading,
}

impl Screen {
    /// Standard output, with so much of each frame. There is colour on a terminal, unless `NO_COLOR` is set.
    pub fn new(detail: Detail) -> Screen {
        Screen { style: Style::new(detail, std::io::stdout().is_terminal()) }
    }

    /// Writes a line, or several.
    pub fn line(&self, text: &str) {
        // If nobody reads on (`| head`), the exit code still tells.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// A text in the colour of its tone, where there is colour.
    pub fn toned(&self, tone: Tone, text: &str) -> String {
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Heading => Ansi::new().bold(),
        };
        if self.style.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// What the tracer saw, as it draws it, without the last line's end.
    pub fn drawn(&self, record: &Record) -> String {
        let mut drawn = String::new();
        text::write(record, self.style, &mut drawn);
        drawn.truncate(drawn.trim_end().len());
        drawn
    }
}

/// A text from the wire between quotes, as the tracer has it: escaped, and not too long.
pub fn quoted(text: &str) -> String {
    let start = visible::start_of(text, MAX_QUOTED);
    let dots = if start.len() < text.len() { "…" } else { "" };
    visible::quoted(start) + dots
}

/// Bytes from the wire as text between quotes or, if they are none, as pairs of digits; the first of them.
pub fn start(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => quoted(text),
        Err(_) => hex(bytes, MAX_HEX),
    }
}

/// Bytes from the wire as pairs of digits, the first of them.
pub fn hex(bytes: &[u8], max: usize) -> String {
    let dots = if bytes.len() > max { " …" } else { "" };
    visible::hex(&bytes[..bytes.len().min(max)]) + dots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_the_wire() {
        assert_eq!(quoted("say \"hi\"\x1b"), "\"say \"hi\"\\u{1b}\"");
        assert_eq!(quoted(&"x".repeat(101)), format!("\"{}\"…", "x".repeat(100)));
        assert_eq!(start(b"hi\r\n"), "\"hi\\r\\n\"");
        assert_eq!(start(&[0xff; 17]), format!("{} …", ["ff"; 16].join(" ")));
    }
}
