//! Parses hex dumps from `xxd`, `hexdump -C`, `od`, `tcpdump -X` and Wireshark. A line has an offset, bytes, and
//! optionally an ASCII column. Programs separate these columns differently, and an ASCII column can look like bytes.
//! So the parser checks that each offset grows by the number of bytes in the previous line, and that an ASCII column
//! matches its bytes. A dump that fails a check is an error.

use super::{Decoded, quote, read_hex};

/// A `*` line in a hex dump stands for copies of the line before it. They may extend a dump to at most this many bytes.
const MAX_REPEATED_DUMP_BYTES: usize = 1 << 20;
/// Wireshark and tcpdump print offsets of four digits. Other programs print longer offsets.
const MIN_OFFSET_DIGITS: usize = 4;
/// Some hex dump tools put a space in the middle of the ASCII column, after the eighth character.
const GAP_COLUMN: usize = 8;

/// Whether `text` is likely a hex dump. The first line must have an offset and a group of bytes. In addition, the
/// offset must be zero or followed by a colon, or the text must have several lines, all of which `read` accepts.
pub fn is_likely_dump(text: &str) -> bool {
    let Ok(lines) = parse_lines(text) else {
        // Parsing failed. If the first line is clearly from a hex dump, return true, so that `read` reports the error.
        return text.lines().next().and_then(Line::parse).is_some_and(|line| line.has_colon && line.has_group());
    };
    match &lines[..] {
        [first, ..] if !first.has_group() => false,
        [first, rest @ ..] => first.has_offset_marker() || (!rest.is_empty() && read(text).is_ok()),
        [] => false,
    }
}

/// Reads a hex dump, and detects the notation of its bytes and offsets.
///
/// # Errors
/// A one-line message, for example about an offset out of sequence, or a column that is neither bytes nor the ASCII
/// text of the bytes.
pub fn read(text: &str) -> Result<Decoded, String> {
    let lines = parse_lines(text)?;
    let first = lines.first().ok_or("a dump has at least one line")?;
    if let Some(line) = lines.iter().find(|line| line.has_16_bit_words()) {
        // Reject 16-bit words, as `od -x` and plain `hexdump` print them. On a little-endian machine, these programs
        // swap the bytes of each pair and pad an odd last byte, so the original bytes are unknown.
        return Err(format!(
            "line {} has words of 16 bits, whose byte order depends on the machine: use hexdump -C, od -tx1 or xxd \
             (or add --as hex)",
            line.number
        ));
    }
    // By default, od prints octal offsets of seven digits, so if an offset has seven digits, try octal first. Most
    // other programs print hexadecimal offsets.
    let bases = if first.offset.len() == 7 { [8, 10, 16] } else { [16, 8, 10] };
    let mut found: Vec<(Vec<u8>, Radix, u32)> = Vec::new();
    let mut errors: Vec<Mismatch> = Vec::new();
    for radix in Radix::ALL {
        for base in bases {
            match read_lines(&lines, radix, base) {
                Ok(bytes) if found.iter().all(|(other, ..)| *other != bytes) => found.push((bytes, radix, base)),
                Err(error) if base == bases[0] => errors.push(error),
                _ => {}
            }
        }
    }
    let Some((bytes, radix, base)) = found.first().cloned() else {
        // Report the error of the radix that parsed the most input: the user probably meant that radix.
        let best = errors.into_iter().max_by_key(|error| (error.line, error.read));
        return Err(best.map(|error| error.text).unwrap_or_default());
    };
    if radix == Radix::Octal && found.iter().any(|(_, other, _)| *other == Radix::Decimal) {
        return Err("the bytes of this dump could be octal or decimal: use od -tx1 or xxd".into());
    }
    let decoded = Decoded::new(bytes, format!("a dump of {} bytes", radix.name()));
    let other_base = found.iter().find(|(_, other, offsets)| *other == radix && *offsets != base);
    match other_base {
        Some((_, _, other)) => {
            let [this, other] = [base, *other].map(|base| match base {
                8 => "octal",
                10 => "decimal",
                _ => "hexadecimal",
            });
            Ok(decoded.with_alternative(format!("a dump with {other} offsets; {this} ones were assumed")))
        }
        // The first digits of a one-line dump may be an offset or the start of a frame. An offset is more likely,
        // because most offsets start with 00. A frame that starts with the byte 00 would be a continuation frame, which
        // cannot start a message (§5.4). Mention `--as hex` in case the guess is wrong.
        None if lines.len() == 1 && read_hex(text).is_ok() => {
            Ok(decoded.with_alternative("bytes from the first digit on: --as hex"))
        }
        None => Ok(decoded),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Radix {
    Bits,
    Hex,
    Octal,
    Decimal,
}

impl Radix {
    /// The radixes of a hex dump's bytes, in the order to try them. Binary is first, because eight digits of 0 and 1
    /// are more likely to be one binary byte than four hexadecimal bytes.
    const ALL: [Radix; 4] = [Radix::Bits, Radix::Hex, Radix::Octal, Radix::Decimal];

    fn name(self) -> &'static str {
        match self {
            Radix::Bits => "binary",
            Radix::Hex => "hexadecimal",
            Radix::Octal => "octal",
            Radix::Decimal => "decimal",
        }
    }

    /// Parses a group of digits in this radix, such as `8185` (hexadecimal) or `201` (octal), and appends its bytes to
    /// `bytes`. Returns `false` if the group is invalid.
    fn read_group(self, group: &str, bytes: &mut Vec<u8>) -> bool {
        let (base, is_right_size) = match self {
            Radix::Bits => (2, group.len() == 8),
            Radix::Octal => (8, group.len() == 3),
            Radix::Decimal => (10, group.len() <= 3),
            Radix::Hex => {
                let digits = group.strip_prefix("0x").unwrap_or(group);
                let is_hex = digits.len().is_multiple_of(2) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let pair = |at| u8::from_str_radix(&digits[at..at + 2], 16).ok();
                bytes.extend((0..digits.len()).step_by(2).filter(|_| is_hex).filter_map(pair));
                return is_hex;
            }
        };
        let is_number = is_right_size && group.bytes().all(|digit| digit.is_ascii_digit());
        let byte = is_number.then(|| u8::from_str_radix(group, base).ok()).flatten();
        bytes.extend(byte);
        byte.is_some()
    }
}

#[derive(Debug)]
struct Line<'t> {
    number: usize,
    /// The line's offset in octal, decimal or hexadecimal; empty for a `*` line, which repeats the previous line.
    offset: &'t str,
    has_colon: bool,
    /// The bytes and the ASCII column; empty for a `*` line, and for the last line of `od` and `hexdump -C`, which has
    /// only an offset.
    rest: &'t str,
}

impl<'t> Line<'t> {
    fn parse(text: &'t str) -> Option<Line<'t>> {
        let text = text.trim();
        if text == "*" {
            return Some(Line { number: 0, offset: "", has_colon: false, rest: "" });
        }
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        let (offset, rest) = digits.split_at(end);
        let (rest, has_colon) = rest.strip_prefix(':').map_or((rest, false), |rest| (rest, true));
        let is_offset = offset.len() >= MIN_OFFSET_DIGITS && (rest.is_empty() || rest.starts_with([' ', '\t']));
        is_offset.then_some(Line { number: 0, offset, has_colon, rest: rest.trim_end() })
    }

    fn is_repetition(&self) -> bool {
        self.offset.is_empty()
    }

    fn is_end(&self) -> bool {
        !self.is_repetition() && self.rest.is_empty()
    }

    /// Whether the offset column alone, such as `0000:`, shows that the text is a hex dump.
    fn has_offset_marker(&self) -> bool {
        self.has_colon || self.offset.bytes().all(|digit| digit == b'0')
    }

    fn has_group(&self) -> bool {
        let first = self.rest.split_whitespace().next().unwrap_or_default();
        Radix::ALL.iter().any(|radix| radix.read_group(first, &mut Vec::new()))
    }

    /// Whether a hex dump line consists of 16-bit words, as `hexdump` and `od -x` print them. `xxd` and `tcpdump` also
    /// print groups of four digits, but in byte order and with a colon after the offset.
    fn has_16_bit_words(&self) -> bool {
        let mut groups = self.rest.split_whitespace().peekable();
        !self.has_colon && groups.peek().is_some() && groups.all(|group| group.len() == 4)
    }
}

fn parse_lines(text: &str) -> Result<Vec<Line<'_>>, String> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        match Line::parse(line) {
            Some(line) => lines.push(Line { number, ..line }),
            None => return Err(format!("line {number} has no offset at its start: {}", quote(line.trim()))),
        }
    }
    Ok(lines)
}

struct Mismatch {
    line: usize,
    /// Number of bytes that the parser read from the invalid dump line before the error.
    read: usize,
    text: String,
}

fn read_lines(lines: &[Line], radix: Radix, base: u32) -> Result<Vec<u8>, Mismatch> {
    let mismatch = |line: &Line, read: usize, text: String| {
        let text = format!("line {}: {text}", line.number);
        Mismatch { line: line.number, read, text }
    };
    let offset = |line: &Line| {
        let offset = usize::from_str_radix(line.offset, base).ok();
        offset.ok_or_else(|| mismatch(line, 0, format!("{} is not an offset", quote(line.offset))))
    };
    let (start, mut bytes, mut previous) = (offset(&lines[0])?, Vec::new(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        let next = lines.get(index + 1);
        if line.is_repetition() {
            let end = next.map(offset).transpose()?.and_then(|end| end.checked_sub(start)).unwrap_or(0);
            let missing = end.saturating_sub(bytes.len());
            if previous.is_empty() || missing == 0 || missing % previous.len() != 0 || end > MAX_REPEATED_DUMP_BYTES {
                return Err(mismatch(line, 0, "\"*\" must stand between two lines, for at most 1 MiB".into()));
            }
            bytes.extend(previous.repeat(missing / previous.len()));
            continue;
        }
        // An offset of 16 hexadecimal digits can be as large as `usize::MAX`, so plain addition could overflow.
        let expected = start.saturating_add(bytes.len());
        if offset(line)? != expected {
            let expected = match base {
                8 => format!("{expected:0width$o}", width = line.offset.len()),
                10 => format!("{expected:0width$}", width = line.offset.len()),
                _ => format!("{expected:0width$x}", width = line.offset.len()),
            };
            return Err(mismatch(
                line,
                0,
                format!("the offset is {}, but {expected} must follow; is a line missing?", line.offset),
            ));
        }
        if line.is_end() {
            continue;
        }
        let count = match next {
            Some(next) if !next.is_repetition() => offset(next)?.checked_sub(expected),
            _ => None,
        };
        previous = read_columns(line.rest, radix, count).map_err(|(read, text)| mismatch(line, read, text))?;
        bytes.extend_from_slice(&previous);
    }
    Ok(bytes)
}

/// Reads the bytes from `rest`, the part of a dump line after the offset. An ASCII column may follow the bytes. It is
/// recognized because its characters match them. `count` is the number of bytes that the line must have according to
/// the next line's offset, if known. An error includes the number of bytes read before it.
fn read_columns(rest: &str, radix: Radix, count: Option<usize>) -> Result<Vec<u8>, (usize, String)> {
    let (mut bytes, mut found) = (Vec::new(), None);
    let mut tail = rest.trim_start();
    loop {
        let group = tail.split_whitespace().next().unwrap_or_default();
        if group.is_empty() || !radix.read_group(group, &mut bytes) {
            break;
        }
        let after = &tail[group.len()..];
        let gap = after.len() - after.trim_start().len();
        // After a single space, digits are always read as bytes. After a wider gap, they may also be the ASCII column,
        // if they match the bytes read so far.
        let is_text = gap >= 2 && shows_text(after, &bytes);
        if after.trim().is_empty() || is_text || !starts_with_group(after, radix) && shows_text(after, &bytes) {
            let is_better = found.is_none() || count == Some(bytes.len());
            if is_better && count.is_none_or(|count| count == bytes.len()) {
                found = Some(bytes.clone());
            }
        }
        tail = after.trim_start();
    }
    let text = match found {
        Some(found) => return Ok(found),
        None if bytes.is_empty() => format!("{} is not a byte", quote(tail)),
        None if !tail.is_empty() => format!(
            "{} is neither more bytes nor the text of the bytes before it (od -c and xxd -e cannot be read; use xxd)",
            quote(tail)
        ),
        None => format!(
            "{} bytes here, but the next offset leaves {}; is the line complete?",
            bytes.len(),
            count.unwrap_or_default()
        ),
    };
    Err((bytes.len(), text))
}

fn starts_with_group(text: &str, radix: Radix) -> bool {
    let group = text.split_whitespace().next().unwrap_or_default();
    !group.is_empty() && radix.read_group(group, &mut Vec::new())
}

/// Returns whether `column` shows `bytes` as ASCII: plain, in bars (`hexdump`), or in angle brackets (`od`).
fn shows_text(column: &str, bytes: &[u8]) -> bool {
    let column = column.trim();
    let unwrap = |open, close| column.strip_prefix(open).and_then(|column| column.strip_suffix(close));
    let candidates = [Some(column), unwrap('|', '|'), unwrap('>', '<')];
    candidates.into_iter().flatten().any(|column| {
        let chars: Vec<char> = column.chars().collect();
        let mut without_gap = chars.clone();
        let has_gap = chars.get(GAP_COLUMN) == Some(&' ');
        has_gap.then(|| without_gap.remove(GAP_COLUMN));
        column_matches(&chars, bytes) || (has_gap && column_matches(&without_gap, bytes))
    })
}

/// Returns whether an ASCII column matches its bytes. A printable ASCII byte must appear as itself, and any other byte
/// as a dot or a non-ASCII character (Wireshark prints bullets). The check is strict so that hex digits are rarely
/// mistaken for an ASCII column. It ignores leading and trailing spaces, because a copied dump may lack them.
fn column_matches(column: &[char], bytes: &[u8]) -> bool {
    let is_blank = |byte: &u8| *byte == b' ';
    let column = column.iter().copied().skip_while(|c| *c == ' ').collect::<Vec<char>>();
    let start = bytes.iter().take_while(|byte| is_blank(byte)).count();
    let end = bytes.iter().rev().take_while(|byte| is_blank(byte)).count();
    let bytes = &bytes[start..bytes.len().saturating_sub(end).max(start)];
    let column: &[char] = &column[..column.len() - column.iter().rev().take_while(|c| **c == ' ').count()];
    let is_shown = |(c, byte): (&char, &u8)| match byte {
        b' '..=b'~' => u32::from(*c) == u32::from(*byte),
        _ => *c == '.' || !c.is_ascii(),
    };
    column.len() == bytes.len() && column.iter().zip(bytes).all(is_shown)
}

#[cfg(test)]
mod tests {
    use super::super::read as read_any;
    use super::*;

    const HELLO: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";

    #[test]
    fn hex_dumps_of_common_tools_parse_to_the_same_frame() {
        let dumps = [
            ("xxd", "00000000: 8185 37fa 213d 7f9f 4d51 58              ..7.!=..MQX\n"),
            (
                "xxd -b",
                "00000000: 10000001 10000101 00110111 11111010 00100001 00111101  ..7.!=\n\
                        00000006: 01111111 10011111 01001101 01010001 01011000           ..MQX\n",
            ),
            ("hexdump -C", "00000000  81 85 37 fa 21 3d 7f 9f  4d 51 58           |..7.!=..MQX|\n0000000b\n"),
            ("od -tx1", "0000000 81 85 37 fa 21 3d 7f 9f 4d 51 58\n0000013\n"),
            ("od -Ax -tx1z", "000000 81 85 37 fa 21 3d 7f 9f 4d 51 58                 >..7.!=..MQX<\n00000b\n"),
            ("od -Ad -tx1", "0000000 81 85 37 fa 21 3d 7f 9f\n0000008 4d 51 58\n0000011\n"),
            ("od -b", "0000000 201 205 067 372 041 075 177 237 115 121 130\n0000013\n"),
            ("od -tu1", "0000000 129 133  55 250  33  61 127 159  77  81  88\n0000013\n"),
            ("Wireshark", "0000   81 85 37 fa 21 3d 7f 9f 4d 51 58                  ..7.!=..MQX"),
            ("Wireshark, bytes only", "0000   81 85 37 fa 21 3d 7f 9f 4d 51 58"),
            ("Wireshark, bullets", "0000   81 85 37 fa 21 3d 7f 9f 4d 51 58   ··7·!=··MQX"),
            ("Wireshark, a stream", "00000000  81 85 37 fa 21 3d 7f 9f  4d 51 58           ..7.!=.. MQX"),
            ("tcpdump -X", "\t0x0000:  8185 37fa 213d 7f9f 4d51 58            ..7.!=..MQX"),
            ("gdb x/8xb", "0x7ffe10:\t0x81\t0x85\t0x37\t0xfa\t0x21\t0x3d\t0x7f\t0x9f\n0x7ffe18:\t0x4d\t0x51\t0x58"),
            ("a pasted word", "0000 81 85 37 fa 21 3d 7f 9f 4d 51 58 ..7.!=..MQX"),
            ("offsets from 0x36", "0036   81 85 37 fa 21 3d 7f 9f\n003e   4d 51 58"),
        ];
        for (program, dump) in dumps {
            let decoded = read_any(dump).unwrap_or_else(|error| panic!("{program}: {error}"));
            assert_eq!(decoded.bytes, HELLO, "{program}");
            assert!(decoded.notation_name.starts_with("a dump of "), "{program}: {}", decoded.notation_name);
        }
    }

    #[test]
    fn a_text_column_that_looks_like_bytes_is_not_read_as_bytes() {
        let cases: [(&str, &[u8]); 6] = [
            ("00000000  80 81 82 83 84 85 86 87  4d 51 58", b"\x80\x81\x82\x83\x84\x85\x86\x87MQX"),
            ("0000   81 02 61 62   ..ab", b"\x81\x02ab"),
            ("0000   41 42 43 44   ABCD", b"ABCD"),
            ("0000   20 41 42 20    AB", b" AB "),
            ("0000   31 32 20 33 34   12 34\n0005   35   5", b"12 345"),
            ("00000000: 3131 3220 3232  112 22\n00000006: 33  3", b"112 223"),
        ];
        for (dump, bytes) in cases {
            assert_eq!(read_any(dump).unwrap().bytes, bytes, "{dump}");
        }
    }

    #[test]
    fn repeated_lines_are_filled_in() {
        let dump = "0000000 81 fe 00 80\n0000004 00 00 00 00\n*\n0000210\n";
        assert_eq!(read(dump).unwrap().bytes.len(), 0o210);
        let dump = "00000000  00 00 00 00  |....|\n*\n00000020  01  |.|\n00000021\n";
        assert_eq!(read(dump).unwrap().bytes.len(), 33);
        assert!(read("00000000  00 00  |..|\n*\nfffffff0\n").unwrap_err().contains("at most 1 MiB"));
    }

    #[test]
    fn hexadecimal_words_are_not_taken_for_offsets() {
        for text in ["8185 37fa\n213d 7f9f", "8185  37 fa", "818537fa\n213d7f9f", "8185:37fa:213d"] {
            let decoded = read_any(text).unwrap();
            assert_eq!(decoded.notation_name, "hexadecimal digits", "{text}");
        }
    }

    #[test]
    fn a_dump_that_does_not_add_up_is_an_error() {
        let cases = [
            ("0000   81 85 37 fa\n0010   21 3d", "line 1: 4 bytes here, but the next offset leaves 16"),
            ("00000000: 8185 37fa  ..7.\n00000004: 213d  XX", "\"XX\" is neither more bytes nor the text"),
            ("00000000: fa378581 9f7f3d21   58514d           ..7.!=..MQX", "is neither more bytes nor the text"),
            ("0000   81 85\n0001   37", "line 1: "),
            ("0000   81 85\nfa 37", "line 2 has no offset at its start: \"fa 37\""),
            ("0000000 8581 fa37 3d21 9f7f 514d 0058\n000000b", "words of 16 bits"),
            ("0000000 201 205   7 372   !   = 177 237   M   Q   X\n0000013", "line 1: "),
            ("0000000 101 102\n0000002", "octal or decimal"),
        ];
        for (dump, words) in cases {
            let error = read(dump).unwrap_err();
            assert!(error.contains(words), "{dump}: {error}");
        }
    }
}
