//! Bytes as people write them: `81 85 37`, `818537`, `0x81,0x85`, `\x81\x85`, `b'\x81\x85'` as Python prints them, bits as
//! `10000001 10000101`, a dump of `xxd` or `hexdump -C`.
//!
//! The project's own tables add two words to that: `M0` for the masking key 00 00 00 00, under which a payload reads as
//! it is (§5.3), and `'Hello'` for the bytes of a text. So a frame can be read in the source: `81 85 M0 'Hello'`.
//!
//! The subtle thing: an error names the word that it stumbled over. A learner who has copied a line from somewhere
//! should see at once what of it was no byte.

/// The words that stand for a masking key of zeros.
const ZERO_KEY: &str = "M0";
/// As much of a bad word as is shown.
const MAX_SHOWN: usize = 40;

/// Reads bytes in any of the notations above.
///
/// ```
/// use wirechat::tools::notation;
/// let hello = b"\x81\x85\0\0\0\0Hello".to_vec();
/// assert_eq!(notation::parse("81 85 M0 'Hello'"), Ok(hello.clone()));
/// assert_eq!(notation::parse("0x81, 0x85, 00000000 48:65:6c:6c:6f"), Ok(hello));
/// assert_eq!(notation::parse("81 8g").unwrap_err(), "\"8g\" is no byte: a byte is two hexadecimal digits");
/// ```
///
/// # Errors
/// A line that names the word that is no byte.
pub fn parse(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    if let Some(literal) = string_literal(text) {
        return unescape(literal);
    }
    if let Some(bytes) = read_bits(text) {
        return Ok(bytes);
    }
    let mut bytes = Vec::new();
    let mut in_dump = false;
    for line in text.lines().map(str::trim) {
        if in_dump && line.len() == 8 && line.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            continue; // the last line of `hexdump -C`: how many bytes there were
        }
        let columns = dump_columns(line);
        in_dump |= columns.is_some();
        let line = columns.unwrap_or(line);
        // What stands between the first two quotes is text, between the next two bytes again.
        for (i, part) in line.split('\'').enumerate() {
            if i % 2 == 1 {
                bytes.extend_from_slice(part.as_bytes());
                continue;
            }
            for word in part.split(is_separator).filter(|word| !word.is_empty()) {
                read_word(word, &mut bytes)?;
            }
        }
        if line.matches('\'').count() % 2 == 1 {
            return Err("a ' is opened and not closed".into());
        }
    }
    Ok(bytes)
}

/// Reads bytes that the program's own tables hold. A slip in one of them is found by the test that reads all of them.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    // invariant: `every_case_can_be_read` reads every table of the program
    parse(text).expect("bytes in a table of ours")
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | ';' | ':' | '[' | ']' | '{' | '}' | '(' | ')')
}

fn read_word(word: &str, bytes: &mut Vec<u8>) -> Result<(), String> {
    if word == ZERO_KEY {
        bytes.extend_from_slice(&[0; 4]);
        return Ok(());
    }
    let no_byte = || format!("{} is no byte: a byte is two hexadecimal digits", shown(word));
    if let Some(pairs) = word.strip_prefix("\\x") {
        for pair in pairs.split("\\x") {
            bytes.push(hex_byte(pair).ok_or_else(no_byte)?);
        }
        return Ok(());
    }
    let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    let (digits, is_marked) = (digits.unwrap_or(word), digits.is_some());
    if !digits.is_ascii() || digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(no_byte());
    }
    if digits.len() == 1 && is_marked {
        bytes.extend(hex_byte(digits));
        return Ok(());
    }
    if digits.len() == 3
        && let Ok(byte) = digits.parse::<u8>()
    {
        return Err(format!("{} is no byte: decimal is not read; write {byte:02x}", shown(word)));
    }
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{} is half a byte too much or too little: a byte is two hexadecimal digits", shown(word)));
    }
    bytes.extend((0..digits.len()).step_by(2).filter_map(|at| hex_byte(&digits[at..at + 2])));
    Ok(())
}

fn hex_byte(digits: &str) -> Option<u8> {
    let is_hex = digits.len() <= 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The bytes of a line of `xxd` or `hexdump -C`, without the offset in front and the characters behind; `None` for any
/// other line.
fn dump_columns(line: &str) -> Option<&str> {
    let digits = line.find(|c: char| !c.is_ascii_hexdigit())?;
    let (offset, rest) = line.split_at(digits);
    if offset.len() == 8 && rest.starts_with("  ") && rest.contains('|') {
        return rest.split('|').next();
    }
    let xxd = rest.strip_prefix(": ").filter(|_| offset.len() >= 4)?;
    xxd.trim_start().split("  ").next()
}

/// Bits, if that is what every word is: eight digits of 0 and 1.
fn read_bits(text: &str) -> Option<Vec<u8>> {
    let is_byte = |word: &&str| word.len() == 8 && word.bytes().all(|digit| matches!(digit, b'0' | b'1'));
    let words = || text.split(is_separator).filter(|word| !word.is_empty());
    let are_bits = words().next().is_some() && words().all(|word| is_byte(&word));
    are_bits.then(|| words().filter_map(|word| u8::from_str_radix(word, 2).ok()).collect())
}

/// What stands between the quotes of `"…"`, `b"…"`, `b'…'` or, if there is an escape in it, `'…'`.
fn string_literal(text: &str) -> Option<&str> {
    let (literal, has_prefix) = text.strip_prefix('b').map_or((text, false), |literal| (literal, true));
    if let Some(inside) = literal.strip_prefix('"') {
        return inside.strip_suffix('"');
    }
    let inside = literal.strip_prefix('\'')?.strip_suffix('\'')?;
    // 'a' 81 'b' begins and ends so as well, and is something else.
    let is_one = !inside.replace("\\\\", "").replace("\\'", "").contains('\'');
    (is_one && (has_prefix || inside.contains('\\'))).then_some(inside)
}

fn unescape(literal: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = chars.next().unwrap_or_default();
        bytes.push(match escape {
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            '0' => 0,
            '\\' | '"' | '\'' => escape as u8,
            'x' => {
                let pair: String = chars.by_ref().take(2).collect();
                let byte = hex_byte(&pair).filter(|_| pair.len() == 2);
                byte.ok_or_else(|| format!("{} is no byte: write \\x and two hexadecimal digits", shown(&pair)))?
            }
            other => return Err(format!("\\{other} is no escape: write \\x and two hexadecimal digits")),
        });
    }
    Ok(bytes)
}

fn shown(word: &str) -> String {
    let start: String = word.chars().take(MAX_SHOWN).collect();
    let dots = if start.len() < word.len() { "…" } else { "" };
    format!("\"{}{dots}\"", start.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_of_the_same_bytes() {
        let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let notations = [
            "81 85 37 fa 21 3d 7f 9f 4d 51 58",
            "818537fa213d7f9f4d5158",
            "8185 37FA213D 7f9f4d5158",
            "0x81 0x85 0x37 0xfa 0x21 0x3d 0x7f 0x9f 0x4d 0x51 0x58",
            "[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]",
            "0x818537fa213d7f9f4d5158",
            "81:85:37:fa:21:3d:7f:9f:4d:51:58",
            r"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
            r#""\x81\x857\xfa!=\x7f\x9fMQX""#,
            r#"b"\x81\x857\xfa!=\x7f\x9fMQX""#,
            r"b'\x81\x857\xfa!=\x7f\x9fMQX'",
            r"'\x81\x857\xfa!=\x7f\x9fMQX'",
            "10000001 10000101 00110111 11111010 00100001 00111101 01111111 10011111 01001101 01010001 01011000",
            "'' 81 85 '7' fa '!=' 7f 9f 'MQX'",
            "81 85 '7' fa '!=' 7f 9f 'MQX'",
            "81 85 37 fa\n21 3d\t7f 9f\r\n4d 51 58\n",
            "00000000: 8185 37fa 213d 7f9f 4d51 58              ..7.!=..MQX\n",
            "00000000  81 85 37 fa 21 3d 7f 9f  4d 51 58           |..7.!=..MQX|\n0000000b\n",
            "0000:  81 85 37 fa 21 3d 7f 9f\n0008:  4d 51 58\n",
        ];
        for notation in notations {
            assert_eq!(parse(notation).as_deref(), Ok(&hello[..]), "{notation}");
        }
        assert_eq!(parse("M0 'M0'"), Ok(b"\0\0\0\0M0".to_vec()));
        assert_eq!(parse("0x5, 0xA"), Ok(vec![5, 10]));
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse(r"b'it\'s \\'"), Ok(b"it's \\".to_vec()));
        assert_eq!(parse("b'M0' "), Ok(b"M0".to_vec()));
        assert_eq!(parse("'a' 00 'b'"), Ok(b"a\0b".to_vec()));
        assert_eq!(parse(r"'\' 00 '\'"), Ok(b"\\\0\\".to_vec()));
        assert_eq!(
            parse("10000001 1000000 0"),
            Err("\"1000000\" is half a byte too much or too little: a byte is two hexadecimal digits".into())
        );
        assert_eq!(parse("10000001 00 00"), Ok(vec![0x10, 0, 0, 1, 0, 0]));
        assert_eq!(parse(r#""\0\n\r\t\\\"é""#), Ok("\0\n\r\t\\\"é".into()));
    }

    #[test]
    fn the_bad_word_is_named() {
        let cases = [
            ("81 8g", "\"8g\" is no byte: a byte is two hexadecimal digits"),
            ("81 x 05", "\"x\" is no byte: a byte is two hexadecimal digits"),
            ("0x", "\"0x\" is no byte: a byte is two hexadecimal digits"),
            ("é", "\"é\" is no byte: a byte is two hexadecimal digits"),
            (r"\x81\xg", "\"\\\\x81\\\\xg\" is no byte: a byte is two hexadecimal digits"),
            ("818", "\"818\" is half a byte too much or too little: a byte is two hexadecimal digits"),
            ("[129, 133]", "\"129\" is no byte: decimal is not read; write 81"),
            ("300", "\"300\" is half a byte too much or too little: a byte is two hexadecimal digits"),
            ("81 'Hello", "a ' is opened and not closed"),
            (r#""\q""#, "\\q is no escape: write \\x and two hexadecimal digits"),
            (r#""\x8""#, "\"8\" is no byte: write \\x and two hexadecimal digits"),
        ];
        for (text, error) in cases {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
    }
}
