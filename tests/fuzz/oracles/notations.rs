//! Writes the fuzz input in each notation, and parses the resulting text with `notation::read`. With a few exceptions,
//! `read` must return the same bytes, suggest another notation, or fail with an error that says how to specify the
//! notation. Also parses the input itself in each notation, and as WebSocket frames.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use wirechat::tools::explain::frames::explain;
use wirechat::tools::notation::{self, Notation};
use wirechat::ws::frame::Role;

/// Maximum size, in bytes, that a hex dump with a `*` line may decode to. A `*` line repeats the previous line, and the
/// parser accepts it for up to 1 MiB of data. The test assumes that later lines add at most 64 bytes.
const MAX_DUMP_BYTES: usize = (1 << 20) + 64;

pub fn check(data: &[u8]) {
    for role in [Role::Client, Role::Server] {
        let explanation = explain(data, role, None);
        let mut lines = explanation.handshake.iter().chain(&explanation.notes);
        let unsafe_line = lines.find(|line| line.contains(char::is_control));
        assert_eq!(unsafe_line, None, "a control character of the input reaches the terminal");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        check_text(text);
    }
    if !data.is_empty() {
        for (notation, text) in write(data) {
            if let Some(notation) = notation {
                let forced = notation::decode_as(notation, &text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
                assert_eq!(forced.bytes, data, "{notation:?} {text:?}");
            }
            match notation::read(&text) {
                Ok(reading) => {
                    // In three cases, `read` guesses wrong without naming an alternative. It reads:
                    // - hexadecimal as bits, if all digits are 0 or 1 and the first byte sets a reserved bit
                    // - decimal as hexadecimal, if no number has more than two digits
                    // - base64 as hexadecimal, if all characters after an optional 0x are hexadecimal digits or hyphens
                    let is_alike = match notation {
                        Some(Notation::Hex) => reading.notation_name == "bits" && data[0] & 0x70 != 0,
                        Some(Notation::Decimal) => data.iter().all(|byte| *byte < 100),
                        Some(Notation::Base64) => text
                            .trim_start_matches("0x")
                            .trim_start_matches("0X")
                            .bytes()
                            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-'),
                        _ => false,
                    };
                    let is_ambiguous = reading.alternative.is_some() || is_alike;
                    assert!(reading.bytes == data || is_ambiguous, "{notation:?}: {text:?} is read as {reading:?}");
                }
                // If `read` rejects the text, its error must suggest an `--as` option or another `od` command. Only the
                // errors for a single number and for base64 that looks like a word need no suggestion.
                Err(error) => {
                    let is_vague = data.len() == 1 || notation == Some(Notation::Base64);
                    let says_how = error.contains("--as ") || error.contains("use od");
                    assert!(is_vague || says_how, "{text:?}: {error}");
                }
            }
        }
    }
}

fn check_text(text: &str) {
    use Notation::*;
    let readings =
        [Hex, Dump, Decimal, Octal, Bits, String, Base64].map(|notation| notation::decode_as(notation, text));
    for result in readings.into_iter().chain([notation::read(text)]) {
        match result {
            // In a hex dump, one `*` line stands for many repeated lines, so a short dump may decode to 1 MiB or more.
            Ok(reading) => {
                let max = if text.contains('*') { MAX_DUMP_BYTES } else { 4 * text.len() };
                assert!(!reading.notation_name.is_empty() && reading.bytes.len() <= max);
            }
            Err(error) => assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}"),
        }
    }
}

/// Writes `data` in every notation. A JavaScript typed array is marked `None`, because it has no `Notation` value.
fn write(data: &[u8]) -> Vec<(Option<Notation>, String)> {
    let join = |format: fn(&u8) -> String, between: &str| data.iter().map(format).collect::<Vec<_>>().join(between);
    let (mut xxd, mut hexdump, mut wireshark) = (String::new(), String::new(), String::new());
    for (line, bytes) in data.chunks(16).enumerate() {
        let shown: String =
            bytes.iter().map(|&b| if b.is_ascii_graphic() || b == b' ' { b.into() } else { '.' }).collect();
        let pairs = bytes.chunks(2).map(|pair| pair.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let single = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
        let (pairs, at) = (pairs.collect::<Vec<_>>().join(" "), line * 16);
        let _ = writeln!(xxd, "{at:08x}: {pairs:<40} {shown}");
        let _ = writeln!(hexdump, "{at:08x}  {:<48}  |{shown}|", single.join(" "));
        let _ = writeln!(wireshark, "{at:04x}   {:<47}   {shown}", single.join(" "));
    }
    vec![
        (Some(Notation::Hex), join(|byte| format!("{byte:02x}"), " ")),
        (Some(Notation::Hex), join(|byte| format!("{byte:02X}"), "")),
        (Some(Notation::Hex), join(|byte| format!("0x{byte:02x}"), ", ")),
        (None, format!("Uint8Array({}) [ {} ]", data.len(), join(|byte| byte.to_string(), ", "))),
        (Some(Notation::Decimal), join(|byte| (*byte as i8).to_string(), ", ")),
        (Some(Notation::Bits), join(|byte| format!("{byte:08b}"), " ")),
        (Some(Notation::Octal), join(|byte| format!("{byte:03o}"), " ")),
        (Some(Notation::String), format!("\"{}\"", join(|byte| format!("\\x{byte:02x}"), ""))),
        (Some(Notation::Base64), STANDARD.encode(data)),
        (Some(Notation::Base64), URL_SAFE_NO_PAD.encode(data)),
        (Some(Notation::Dump), xxd),
        (Some(Notation::Dump), hexdump),
        (Some(Notation::Dump), wireshark),
    ]
}
