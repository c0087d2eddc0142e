//! Bytes and text as they may be shown: to a person, on a terminal, whoever sent them.
//!
//! The subtle thing: a terminal obeys what it is sent. So nothing from the wire is written but through [`escaped`].

use anstyle::Style as Ansi;

/// Whether there are colours.
#[derive(Debug, Clone, Copy)]
pub struct Paint(pub bool);

impl Paint {
    /// A text in a style, where there are colours.
    pub fn with(self, style: Ansi, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// Bytes as pairs of hexadecimal digits.
pub fn digits(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| DIGITS[usize::from(digit)]).collect()
}

/// The same with blanks between them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| digits(&[*byte])).collect::<Vec<_>>().join(" ")
}

/// Text in quotes. Those in it stay as they are, since JSON is full of them.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// Text in which what is no visible character is escaped.
pub fn escaped(text: &str) -> String {
    let visible = |c: char| if matches!(c, '\'' | '"' | '\\') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().map(visible).collect()
}

/// The beginning of a text: so many characters.
pub fn start_of(text: &str, max: usize) -> &str {
    text.char_indices().nth(max).map_or(text, |(end, _)| &text[..end])
}
