//! Makes bytes and text from a peer safe to print. Terminals execute escape sequences, so code that prints text from
//! the wire must call [`escape()`].

use anstyle::Style as Ansi;

#[derive(Debug, Clone, Copy)]
pub struct Paint(pub bool);

impl Paint {
    pub fn apply(self, style: Ansi, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

pub fn plain_hex(bytes: &[u8]) -> String {
    // Use a lookup table: this function runs for every inspected frame, and `format!` is slower.
    const HEX_DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| HEX_DIGITS[usize::from(digit)]).collect()
}

pub fn spaced_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| plain_hex(&[*byte])).collect::<Vec<_>>().join(" ")
}

pub fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text))
}

/// Escapes every non-printable character, so that a terminal executes no escape sequence from a peer.
pub fn escape(text: &str) -> String {
    // Unlike `escape_debug`, keep quotes and backslashes: they are harmless, and JSON stays readable.
    let visible = |c: char| if matches!(c, '\'' | '"' | '\\') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().map(visible).collect()
}

pub fn first_chars(text: &str, max: usize) -> &str {
    text.char_indices().nth(max).map_or(text, |(end, _)| &text[..end])
}
