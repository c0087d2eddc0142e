//! Parses bytes in common notations, such as hexadecimal digits, hex dumps, base64, and the strings and arrays of
//! programming languages. [`read`] recognizes a notation by its shape. The result names the notation and may name an
//! alternative, so that the user can notice a wrong guess. `read_case_bytes` reads the bytes of `poke`'s test
//! cases, such as `81 85 M0 'Hello'`. `M0` is a masking key of zeros, which leaves the payload unchanged (RFC 6455
//! §5.3).

mod dump;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, PAD};
use clap::ValueEnum;

const ZERO_MASKING_KEY: &str = "M0";
/// Maximum number of characters that an error text quotes from the input.
const MAX_QUOTED_CHARS: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Notation {
    /// Hexadecimal digits: 81 85, 8185, 0x81 0x85, 81-85, 81:85; 'Hello' for text, M0 for a masking key of zeros
    Hex,
    /// A hex dump by xxd, hexdump -C, od -tx1 or Wireshark: each line has an offset, bytes and perhaps an ASCII column
    Dump,
    /// Decimal numbers, signed or not: 129 133, [129, 133], [-127, -123]
    Decimal,
    /// Three octal digits per byte: 201 205
    Octal,
    /// Eight binary digits per byte: 10000001 10000101
    Bits,
    /// A string literal with escapes: b'\x81\x85', "\x81\x85"
    String,
    /// Base64, standard or URL-safe: gYU3+iE9f59NUVg=
    Base64,
    /// Raw bytes, taken from the input without decoding
    Raw,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub bytes: Vec<u8>,
    /// The name of the input's notation, as printed after "Read as", such as "hexadecimal digits".
    pub notation_name: String,
    /// Another notation in which the input may be written, usually with the option that selects this notation, such as
    /// "decimal numbers: --as decimal".
    pub alternative: Option<String>,
}

impl Decoded {
    pub fn new(bytes: Vec<u8>, notation_name: impl Into<String>) -> Decoded {
        Decoded { bytes, notation_name: notation_name.into(), alternative: None }
    }

    fn with_alternative(self, alternative: impl Into<String>) -> Decoded {
        Decoded { alternative: Some(alternative.into()), ..self }
    }
}

/// Detects the notation of `text`, for example a hex dump or a decimal list, and decodes the bytes.
///
/// ```
/// use wirechat::tools::notation;
/// let hello = b"\x81\x85\0\0\0\0Hello".to_vec();
/// assert_eq!(notation::read("81 85 M0 'Hello'").unwrap().bytes, hello);
/// assert_eq!(notation::read("0x81, 0x85, 00000000 48:65:6c:6c:6f").unwrap().bytes, hello);
/// assert_eq!(notation::read("<Buffer 81 85 00 00 00 00 48 65 6c 6c 6f>").unwrap().bytes, hello);
/// let error = notation::read("81 8g").unwrap_err();
/// assert!(error.starts_with("\"8g\" is not a byte"));
/// ```
///
/// # Errors
/// A one-line message that says why the text cannot be read.
pub fn read(text: &str) -> Result<Decoded, String> {
    let text = text.trim();
    if let Some(literals) = find_literals(text) {
        // Text in quotes without escapes, such as "81 05", probably contains another notation, so try other notations
        // first. The characters themselves cannot be a frame: a printable first byte sets a reserved bit (§5.2).
        let is_plain = text.starts_with('"') && !text.contains('\\');
        return match read(literals[0]).ok().filter(|_| is_plain && literals.len() == 1) {
            Some(decoded) => Ok(decoded.with_alternative("the text between the quotes: --as string")),
            None => Ok(Decoded::new(unescape_all(&literals)?, "a string literal")),
        };
    }
    if dump::is_likely_dump(text) {
        return dump::read(text);
    }
    if let Some(list) = List::find(text) {
        return list.read();
    }
    if let Some(bytes) = read_bits(text) {
        // Text of only 0s and 1s may also be hexadecimal. Suggest hexadecimal only if the text starts with 00 or 01:
        // the other possible first bytes, 0x10 and 0x11, set a reserved bit, so they cannot start a frame (§5.2).
        let is_hex = text.starts_with("00") || text.starts_with("01");
        let decoded = Decoded::new(bytes, "bits");
        return Ok(if is_hex { decoded.with_alternative("hexadecimal digits: --as hex") } else { decoded });
    }
    if let Some(bytes) = read_percent_encoded(text) {
        return Ok(Decoded::new(bytes, "percent-encoded bytes"));
    }
    if let Some(decoded) = read_numbers(text) {
        return decoded;
    }
    match read_hex(text) {
        Ok(bytes) => Ok(label_hex(text, bytes)),
        Err(_) if is_likely_base64(text) => Ok(Decoded::new(decode_base64(text)?, "base64")),
        Err(error) => Err(error),
    }
}

/// Decodes `text`, which must be in `notation`. The error is a one-line explanation.
pub fn decode_as(notation: Notation, text: &str) -> Result<Decoded, String> {
    let (bytes, name) = match notation {
        Notation::Hex => (read_hex(text)?, "hexadecimal digits"),
        Notation::Dump => return dump::read(text),
        Notation::Decimal => (read_in_radix(text, 10)?, "decimal numbers"),
        Notation::Octal => (read_in_radix(text, 8)?, "octal numbers"),
        Notation::Bits => {
            (read_bits(text).ok_or("these are not bits: write each byte as eight digits of 0 and 1")?, "bits")
        }
        Notation::String => match find_literals(text.trim()) {
            Some(literals) => (unescape_all(&literals)?, "a string literal"),
            None => (unescape(text.trim())?, "a string literal"),
        },
        Notation::Base64 => (decode_base64(text)?, "base64"),
        Notation::Raw => (text.into(), "raw bytes"),
    };
    Ok(Decoded::new(bytes, name))
}

/// Parses the hexadecimal notation of the `poke` test cases. Panics if `text` is malformed.
#[expect(clippy::expect_used, reason = "a test reads every case")]
pub(crate) fn read_case_bytes(text: &str) -> Vec<u8> {
    read_hex(text).expect("a valid case") // invariant: `every_case_can_be_read` checks the notation of every test case
}

/// Whether `c` can separate bytes: whitespace, array punctuation, a colon (as in certificate fingerprints), or a hyphen
/// (as in the output of C#'s `BitConverter`).
fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | ';' | ':' | '-' | '[' | ']' | '{' | '}' | '(' | ')')
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_separator).filter(|word| !word.is_empty())
}

/// Reads hexadecimal bytes, `M0` (a masking key of four zero bytes), and text in single quotes.
fn read_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let parts: Vec<&str> = text.split('\'').collect();
    // Paired quotes split the text into an odd number of parts, so an even number means that a quote is missing.
    if parts.len().is_multiple_of(2) {
        return Err("a ' has no partner: write text as 'Hello', in two quotes".into());
    }
    for (i, part) in parts.into_iter().enumerate() {
        if i % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
        } else {
            words(part).try_for_each(|word| read_hex_word(word, &mut bytes))?;
        }
    }
    Ok(bytes)
}

fn read_hex_word(word: &str, bytes: &mut Vec<u8>) -> Result<(), String> {
    if word == ZERO_MASKING_KEY {
        bytes.extend_from_slice(&[0; 4]);
        return Ok(());
    }
    let no_byte = || format!("{} is not a byte; write bytes as two hexadecimal digits, text as 'Hello'", quote(word));
    if let Some(pairs) = word.strip_prefix("\\x") {
        for pair in pairs.split("\\x") {
            bytes.push(parse_hex_byte(pair).ok_or_else(no_byte)?);
        }
        return Ok(());
    }
    let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    let (digits, has_prefix) = (digits.unwrap_or(word), digits.is_some());
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(no_byte());
    }
    // Accept a single hexadecimal digit only after 0x: without this prefix, the user probably forgot a digit.
    if digits.len() == 1 && has_prefix {
        bytes.extend(parse_hex_byte(digits));
        return Ok(());
    }
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{} has an odd number of hexadecimal digits; a byte has two", quote(word)));
    }
    bytes.extend((0..digits.len()).step_by(2).filter_map(|at| parse_hex_byte(&digits[at..at + 2])));
    Ok(())
}

fn parse_hex_byte(digits: &str) -> Option<u8> {
    let is_hex = digits.len() <= 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn label_hex(text: &str, bytes: Vec<u8>) -> Decoded {
    let decoded =
        Decoded::new(bytes, if text.contains('\'') { "hexadecimal digits and text" } else { "hexadecimal digits" });
    // `81, 85` is ambiguous: it may be hexadecimal, or a byte array printed in decimal.
    let is_decimal_list = text.contains(',') && words(text).all(|word| word.bytes().all(|b| b.is_ascii_digit()));
    if is_decimal_list { decoded.with_alternative("decimal numbers: --as decimal") } else { decoded }
}

/// Reads binary bytes: each word is eight digits of 0 and 1, after an optional `0b`. Returns `None` for other text.
fn read_bits(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<&str> = words(text).map(|word| word.strip_prefix("0b").unwrap_or(word)).collect();
    let is_byte = |word: &&str| word.len() == 8 && word.bytes().all(|digit| matches!(digit, b'0' | b'1'));
    let are_bits = !digits.is_empty() && digits.iter().all(is_byte);
    are_bits.then(|| digits.iter().filter_map(|word| u8::from_str_radix(word, 2).ok()).collect())
}

/// Reads percent-encoded bytes, such as `%81%85` or `%81 %85`. Returns `None` if the text contains anything else.
fn read_percent_encoded(text: &str) -> Option<Vec<u8>> {
    let pairs = text.strip_prefix('%')?.split('%').map(str::trim_end);
    pairs.map(|pair| parse_hex_byte(pair).filter(|_| pair.len() == 2)).collect()
}

/// Whether `text`, which is not valid hexadecimal, is probably base64. The text must decode. To exclude ordinary words,
/// it must also end in `=`, contain `+` or `/`, or contain uppercase letters, lowercase letters and digits.
fn is_likely_base64(text: &str) -> bool {
    let has = |test: fn(&u8) -> bool| text.as_bytes().iter().any(test);
    let is_mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit);
    let is_marked = text.ends_with('=') || text.contains(['+', '/']);
    // Base64 may be wrapped over several lines, but no line contains a space.
    let is_one_word = text.lines().all(|line| !line.trim().contains(' '));
    is_one_word && (is_marked || is_mixed) && decode_base64(text).is_ok()
}

fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    const LENIENT_BASE64: GeneralPurposeConfig =
        PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true);
    static BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT_BASE64);
    let one_line: String = text.split_whitespace().collect();
    // RFC 4648 §5: the URL-safe alphabet has `-` and `_` in place of `+` and `/`.
    let standard = one_line.replace('-', "+").replace('_', "/");
    BASE64.decode(standard).map_err(|error| format!("{} is not base64: {error}", quote(&one_line)))
}

/// Reads decimal or octal bytes without brackets, such as `129 133 55`, `-127, -123` or `201 205 067`. Returns `None`
/// if the text is something else, is a single word without a minus sign, or consists only of two-digit words, which are
/// probably hexadecimal.
fn read_numbers(text: &str) -> Option<Result<Decoded, String>> {
    let words: Vec<&str> = text.split([' ', ',', '\n', '\t', '\r']).filter(|word| !word.is_empty()).collect();
    let is_number = |digits: &str| (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if words.iter().any(|word| word.starts_with('-')) {
        let are_signed = words.iter().all(|word| is_number(word.strip_prefix('-').unwrap_or(word)));
        return are_signed.then(|| Ok(Decoded::new(read_in_radix(text, 10)?, "signed decimal numbers")));
    }
    let are_numbers = words.iter().all(|word| is_number(word));
    if words.len() < 2 || !are_numbers || words.iter().all(|word| word.len() == 2) {
        return None;
    }
    let is_padded = words.iter().any(|word| word.len() > 1 && word.starts_with('0'));
    let decimal = read_in_radix(text, 10).ok().filter(|_| !is_padded);
    let octal = read_in_radix(text, 8).ok().filter(|_| words.iter().all(|word| word.len() == 3));
    match (decimal, octal) {
        (Some(decimal), None) => Some(Ok(Decoded::new(decimal, "decimal numbers"))),
        (None, Some(octal)) => Some(Ok(Decoded::new(octal, "octal numbers"))),
        (Some(_), Some(_)) => {
            Some(Err("these numbers could be decimal or octal: add --as decimal or --as octal".into()))
        }
        (None, None) => None,
    }
}

fn read_in_radix(text: &str, radix: u32) -> Result<Vec<u8>, String> {
    let words: Vec<&str> = text.split(|c: char| is_separator(c) && c != '-').filter(|word| !word.is_empty()).collect();
    // Accept negative numbers: bytes are signed in Java, which prints 0x81 as -127.
    let is_signed = words.iter().any(|word| word.starts_with('-'));
    let byte = |word: &&str| {
        let unsigned = || u8::from_str_radix(word, radix).ok();
        let signed = || i8::from_str_radix(word, radix).ok().map(|byte| byte.cast_unsigned());
        let (found, range) = match (is_signed, radix) {
            (true, _) => (signed(), "-128 to 127"),
            (_, 8) => (unsigned(), "000 to 377"),
            _ => (unsigned(), "0 to 255"),
        };
        found.ok_or_else(|| format!("{} is not a byte; a byte is a number from {range}", quote(word)))
    };
    words.iter().map(byte).collect()
}

/// The innermost bracketed list in a text such as `Uint8Array(2) [ 129, 133 ]` or `char f[] = {0x81, 0x85};`.
struct List<'t> {
    before: &'t str,
    inside: &'t str,
    after: &'t str,
}

impl<'t> List<'t> {
    fn find(text: &'t str) -> Option<List<'t>> {
        const PAIRS: [(char, char); 4] = [('[', ']'), ('{', '}'), ('(', ')'), ('<', '>')];
        // Find the last brackets with content but no nested brackets: `[ 129 ]` in `Buffer(1) [Uint8Array] [ 129 ]`.
        let innermost = text.rmatch_indices(['[', '{', '(', '<']).find_map(|(start, open)| {
            let (_, close) = PAIRS.iter().find(|(pair, _)| open.starts_with(*pair))?;
            let len = text[start + 1..].find(*close)?;
            let inside = &text[start + 1..start + 1 + len];
            let is_empty = inside.trim().is_empty() || inside.contains(['[', '{', '(', '<']);
            (!is_empty).then(|| List { before: &text[..start], inside, after: &text[start + 2 + len..] })
        });
        innermost.filter(List::is_named)
    }

    /// Whether the brackets enclose a list, as in `Uint8Array(2) [129, 133]`. They do not if bytes precede or follow
    /// them, as in `81 [85 37] fa`. Such brackets only separate bytes, and `read_hex` skips them.
    fn is_named(&self) -> bool {
        let is_name = |word: &str| read_hex(word).is_err();
        let before: Vec<&str> = words(self.before).collect();
        let is_declared = match before[..] {
            [] => true,
            // Go puts the type between the brackets and the list: `[11]byte{…}`.
            [_, kind] if self.before.starts_with('[') => is_name(kind),
            [first, ..] => is_name(first),
        };
        is_declared && words(self.after).next().is_none_or(is_name)
    }

    fn read(&self) -> Result<Decoded, String> {
        if let Some(literals) = find_literals(self.inside.trim()) {
            return Ok(Decoded::new(unescape_all(&literals)?, "a string literal"));
        }
        if self.inside.contains("...") || self.inside.contains('…') {
            return Err("the list is cut off (\"...\"): print all of it, in Node.js with buffer.toString('hex')".into());
        }
        let hex = self
            .inside
            .strip_prefix("Buffer ")
            .or_else(|| self.before.contains("Uint8Contents").then_some(self.inside));
        let decoded = match hex {
            Some(hex) => Decoded::new(read_hex(hex)?, "a Node.js buffer"),
            None => self.read_items()?,
        };
        match self.announced_len() {
            Some(len) if len != decoded.bytes.len() => {
                Err(format!("the list has {} items, but its length is given as {len}", decoded.bytes.len()))
            }
            _ => Ok(decoded),
        }
    }

    fn read_items(&self) -> Result<Decoded, String> {
        let items: Vec<&str> =
            self.inside.split([',', ';', ' ', '\n', '\t', '\r']).filter(|item| !item.is_empty()).collect();
        let is_decimal =
            |item: &&str| item.strip_prefix('-').unwrap_or(item).bytes().all(|digit| digit.is_ascii_digit());
        if let Some(bits) = read_bits(self.inside) {
            return Ok(Decoded::new(bits, "a list of bits"));
        }
        if !items.iter().all(is_decimal) {
            return Ok(Decoded::new(read_hex(self.inside)?, "a list of hexadecimal numbers"));
        }
        let decoded = Decoded::new(read_in_radix(self.inside, 10)?, "a list of decimal numbers");
        // Read `[81, 85]` as decimal, because programming languages print lists in decimal. But suggest hexadecimal,
        // because people also write two-digit hexadecimal bytes in brackets.
        let is_ambiguous = self.before.trim().is_empty() && items.iter().all(|item| item.len() == 2);
        Ok(if is_ambiguous { decoded.with_alternative("hexadecimal digits: --as hex") } else { decoded })
    }

    /// Finds the list's length in the text around the brackets, such as `11` in `Uint8Array(11) […]`,
    /// `uint8_t frame[11] = {…}`, `{…}; int len = 11;`, or `<…>, byteLength: 11`.
    fn announced_len(&self) -> Option<usize> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let after = self.after.split(|c| !is_word(c)).rev().find_map(|word| word.parse().ok());
        // A number before the list is the list's length only if the number is in brackets: the `2` in `f[2] = {…}` is a
        // length, but the `2` in `frame 2: […]` is not.
        let closings = self.before.rmatch_indices([')', ']', '>']);
        after.or_else(|| {
            closings.into_iter().find_map(|(at, _)| self.before[..at].rsplit(|c| !is_word(c)).next()?.parse().ok())
        })
    }
}

/// Returns the contents of adjacent string literals: `"…"`, `b"…"`, `b'…'`, `$'…'`, and `'…'` with an escape inside.
/// C and Python join adjacent literals, even if a backslash and a line break separate the literals.
fn find_literals(text: &str) -> Option<Vec<&str>> {
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (prefix, start) = match rest.find(['"', '\'']) {
            Some(at @ 0..=1) => rest.split_at(at),
            _ => return None,
        };
        let quote = &start[..1];
        let end = find_literal_end(&start[1..], quote)?;
        let inside = &start[1..=end];
        // Text in single quotes is a string literal only if it has a prefix (b or $) or contains a backslash.
        // Otherwise, it is plain text among hexadecimal bytes, as in 'a' 81 'b', which `read_hex` reads.
        let is_literal = match (prefix, quote) {
            ("b" | "B", _) | ("", "\"") | ("$", "'") => true,
            ("", "'") => inside.contains('\\'),
            _ => false,
        };
        if !is_literal {
            return None;
        }
        found.push(inside);
        rest = start[end + 2..].trim_start_matches([' ', '\n', '\r', '\t', '\\', ';', ',']);
    }
    (!found.is_empty()).then_some(found)
}

/// Returns the position of a string literal's closing quote: the first quote that no backslash escapes.
fn find_literal_end(text: &str, quote: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        if !is_escaped && quote.starts_with(c) {
            return Some(at);
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    None
}

fn unescape_all(literals: &[&str]) -> Result<Vec<u8>, String> {
    let parts: Result<Vec<Vec<u8>>, String> = literals.iter().map(|literal| unescape(literal)).collect();
    Ok(parts?.concat())
}

fn unescape(literal: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = literal;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let (byte, len) = read_escape(rest)?;
        bytes.push(byte);
        rest = &rest[len..];
    }
    Ok(bytes)
}

/// Decodes an escape sequence. Returns the byte that it stands for, and its length without the backslash.
fn read_escape(rest: &str) -> Result<(u8, usize), String> {
    let octal = rest.bytes().take(3).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
    let simple = |byte| Ok((byte, 1));
    match rest.chars().next() {
        Some('n') => simple(b'\n'),
        Some('r') => simple(b'\r'),
        Some('t') => simple(b'\t'),
        Some('a') => simple(7),
        Some('b') => simple(8),
        Some('f') => simple(12),
        Some('v') => simple(11),
        Some(c @ ('\\' | '"' | '\'')) => simple(c as u8),
        Some('x') => {
            let byte = rest.get(1..3).and_then(parse_hex_byte);
            let shown = rest.chars().skip(1).take(2).collect::<String>();
            byte.map(|byte| (byte, 3))
                .ok_or_else(|| format!("\\x must have two hexadecimal digits, not {}", quote(&shown)))
        }
        // gdb and C write 0x81 as \201.
        Some('0'..='7') => match u8::from_str_radix(&rest[..octal], 8) {
            Ok(byte) => Ok((byte, octal)),
            Err(_) => Err(format!("\\{} is not a byte: an octal escape ends at \\377", &rest[..octal])),
        },
        Some('u' | 'U') => Err("\\u names a character, not a byte: write \\x and two hexadecimal digits".into()),
        Some(other) => {
            Err(format!("\\{} is not an escape: write \\x and two hexadecimal digits", other.escape_debug()))
        }
        None => Err("the text ends with a lone backslash".into()),
    }
}

fn quote(word: &str) -> String {
    let start: String = word.chars().take(MAX_QUOTED_CHARS).collect();
    let dots = if start.len() < word.len() { "…" } else { "" };
    format!("\"{}{dots}\"", start.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";

    /// The bytes of [`HELLO`] in many notations, each with the `notation_name` that `read` must return.
    const NOTATIONS: &[(&str, &str)] = &[
        ("81 85 37 fa 21 3d 7f 9f 4d 51 58", "hexadecimal digits"),
        ("818537fa213d7f9f4d5158", "hexadecimal digits"),
        ("8185 37FA213D 7f9f4d5158", "hexadecimal digits"),
        ("0x81 0x85 0x37 0xfa 0x21 0x3d 0x7f 0x9f 0x4d 0x51 0x58", "hexadecimal digits"),
        ("0x818537fa213d7f9f4d5158", "hexadecimal digits"),
        ("81:85:37:fa:21:3d:7f:9f:4d:51:58", "hexadecimal digits"),
        ("81-85-37-fa-21-3d-7f-9f-4d-51-58", "hexadecimal digits"),
        ("81 [85] 37 fa (21 3d) 7f 9f 4d 51 58", "hexadecimal digits"),
        (r"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "hexadecimal digits"),
        ("81 85 37 fa\n21 3d\t7f 9f\r\n4d 51 58\n", "hexadecimal digits"),
        ("'' 81 85 '7' fa '!=' 7f 9f 'MQX'", "hexadecimal digits and text"),
        ("%81%85%37%fa%21%3d%7f%9f%4d%51%58", "percent-encoded bytes"),
        (r#""\x81\x857\xfa!=\x7f\x9fMQX""#, "a string literal"),
        (r#"b"\x81\x857\xfa!=\x7f\x9fMQX""#, "a string literal"),
        (r"b'\x81\x857\xfa!=\x7f\x9fMQX'", "a string literal"),
        (r"'\x81\x857\xfa!=\x7f\x9fMQX'", "a string literal"),
        (r"$'\x81\x857\xfa!=\x7f\x9fMQX'", "a string literal"),
        (r"bytearray(b'\x81\x857\xfa!=\x7f\x9fMQX')", "a string literal"),
        (r#""\201\2057\372!=\177\237MQX""#, "a string literal"),
        ("\"\\x81\\x85\\x37\\xfa\" \\\n\"\\x21\\x3d\\x7f\\x9f\\x4d\\x51\\x58\"", "a string literal"),
        ("[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]", "a list of hexadecimal numbers"),
        (
            "static const unsigned char f[11] = {\n 0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f,\n 0x4d, 0x51, 0x58 };",
            "a list of hexadecimal numbers",
        ),
        (
            "unsigned char h_bin[] = {\n  0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58\n};\n\
                 unsigned int h_bin_len = 11;",
            "a list of hexadecimal numbers",
        ),
        ("[129, 133, 55, 250, 33, 61, 127, 159, 77, 81, 88]", "a list of decimal numbers"),
        ("[-127, -123, 55, -6, 33, 61, 127, -97, 77, 81, 88]", "a list of decimal numbers"),
        ("[129 133 55 250 33 61 127 159 77 81 88]", "a list of decimal numbers"),
        ("<<129, 133, 55, 250, 33, 61, 127, 159, 77, 81, 88>>", "a list of decimal numbers"),
        (
            "Uint8Array(11) [\n  129, 133,  55, 250, 33,\n   61, 127, 159,  77, 81,\n   88\n]",
            "a list of decimal numbers",
        ),
        ("Buffer(11) [Uint8Array] [ 129, 133, 55, 250, 33, 61, 127, 159, 77, 81, 88 ]", "a list of decimal numbers"),
        (r#"{"type":"Buffer","data":[129,133,55,250,33,61,127,159,77,81,88]}"#, "a list of decimal numbers"),
        ("[11]byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}", "a list of hexadecimal numbers"),
        ("<Buffer 81 85 37 fa 21 3d 7f 9f 4d 51 58>", "a Node.js buffer"),
        (
            "ArrayBuffer {\n  [Uint8Contents]: <81 85 37 fa 21 3d 7f 9f 4d 51 58>,\n  byteLength: 11\n}",
            "a Node.js buffer",
        ),
        ("129 133 55 250 33 61 127 159 77 81 88", "decimal numbers"),
        ("129, 133, 55, 250, 33, 61, 127, 159, 77, 81, 88", "decimal numbers"),
        ("-127 -123 55 -6 33 61 127 -97 77 81 88", "signed decimal numbers"),
        ("201 205 067 372 041 075 177 237 115 121 130", "octal numbers"),
        ("10000001 10000101 00110111 11111010 00100001 00111101 01111111 10011111 01001101 01010001 01011000", "bits"),
        ("gYU3+iE9f59NUVg=", "base64"),
        ("gYU3-iE9f59NUVg", "base64"),
    ];

    #[test]
    fn one_frame_in_every_notation() {
        for (text, notation) in NOTATIONS {
            let decoded = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((&decoded.bytes[..], &decoded.notation_name[..]), (HELLO, *notation), "{text}");
            assert_eq!(decoded.alternative, None, "{text}");
        }
    }

    #[test]
    fn details_of_notations() {
        let bytes = |text| read(text).map(|decoded| decoded.bytes);
        assert_eq!(bytes("M0 'M0'"), Ok(b"\0\0\0\0M0".to_vec()));
        assert_eq!(bytes("0x5, 0xA"), Ok(vec![5, 10]));
        assert_eq!(bytes(""), Ok(vec![]));
        assert_eq!(bytes(r"b'it\'s \\'"), Ok(b"it's \\".to_vec()));
        assert_eq!(bytes("b'M0' "), Ok(b"M0".to_vec()));
        assert_eq!(bytes("'a' 00 'b'"), Ok(b"a\0b".to_vec()));
        assert_eq!(bytes(r"'\' 00 '\'"), Ok(b"\\\0\\".to_vec()));
        assert_eq!(bytes("10000001 00 00"), Ok(vec![0x10, 0, 0, 1, 0, 0]));
        assert_eq!(bytes(r#""\0\n\r\t\\\"é""#), Ok("\0\n\r\t\\\"é".into()));
    }

    #[test]
    fn the_other_meaning_of_an_ambiguous_text_is_named() {
        for (text, bytes, words) in [
            ("81, 05, 48", &[0x81, 0x05, 0x48][..], "--as decimal"),
            ("[81, 85, 37]", &[81, 85, 37], "--as hex"),
            ("\"8105\"", &[0x81, 0x05], "--as string"),
        ] {
            let decoded = read(text).unwrap();
            assert_eq!(decoded.bytes, bytes, "{text}");
            assert!(decoded.alternative.is_some_and(|other| other.contains(words)), "{text}");
        }
        let forced = |notation, text| decode_as(notation, text).map(|decoded| decoded.bytes);
        assert_eq!(forced(Notation::Decimal, "81, 05, 48"), Ok(vec![81, 5, 48]));
        assert_eq!(forced(Notation::Hex, "[81, 85, 37]"), Ok(vec![0x81, 0x85, 0x37]));
        assert_eq!(forced(Notation::String, "\"8105\""), Ok(b"8105".to_vec()));
        assert_eq!(forced(Notation::Octal, "[100 101]"), Ok(b"@A".to_vec()));
        assert_eq!(forced(Notation::Base64, "deadbeef"), Ok(b"u\xe6\x9dm\xe7\x9f".to_vec()));
        assert_eq!(forced(Notation::Raw, "81 85"), Ok(b"81 85".to_vec()));
        assert_eq!(forced(Notation::Bits, "0b10000001"), Ok(vec![0x81]));
    }

    #[test]
    fn errors_quote_the_word_and_say_what_to_write() {
        let cases = [
            ("81 8g", "\"8g\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'"),
            ("81 x 05", "\"x\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'"),
            ("0x", "\"0x\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'"),
            ("é", "\"é\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'"),
            ("hello", "\"hello\" is not a byte; write bytes as two hexadecimal digits, text as 'Hello'"),
            ("818 5", "\"818\" has an odd number of hexadecimal digits; a byte has two"),
            ("10000001 1000000 0", "\"1000000\" has an odd number of hexadecimal digits; a byte has two"),
            ("[129, 333]", "\"333\" is not a byte; a byte is a number from 0 to 255"),
            ("[-127, 200]", "\"200\" is not a byte; a byte is a number from -128 to 127"),
            ("100 101", "these numbers could be decimal or octal: add --as decimal or --as octal"),
            ("81 'Hello", "a ' has no partner: write text as 'Hello', in two quotes"),
            ("Uint8Array(12) [129, 133]", "the list has 2 items, but its length is given as 12"),
            (
                "<Buffer 07 07 ... 10 more bytes>",
                "the list is cut off (\"...\"): print all of it, in Node.js with buffer.toString('hex')",
            ),
            (r#""\q""#, "\\q is not an escape: write \\x and two hexadecimal digits"),
            ("\"\\\u{1b}\"", "\\\\u{1b} is not an escape: write \\x and two hexadecimal digits"),
            (r#""\x8""#, "\\x must have two hexadecimal digits, not \"8\""),
            (r#""\400""#, "\\400 is not a byte: an octal escape ends at \\377"),
            (r#""\u0081""#, "\\u names a character, not a byte: write \\x and two hexadecimal digits"),
        ];
        for (text, error) in cases {
            assert_eq!(read(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn any_text_is_read_or_rejected() {
        let palette: Vec<char> = "0019afx \n'\"\\[]{}<>()*:-,;=|%bB$é…\u{7f}zM".chars().collect();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let text: String = (0..random.usize(0..40)).map(|_| palette[random.usize(..palette.len())]).collect();
            let _ = read(&text);
            for notation in Notation::value_variants() {
                let _ = decode_as(*notation, &text);
            }
            let _ = dump::read(&format!("ffffffffffffffff: {text}"));
        }
    }
}
