//! Answers questions about a `Sec-WebSocket-Key`, a close code (RFC 6455 §7.4 and the IANA registry), an opcode (§5.2),
//! a section or a word. Keywords are usually optional: [`explain_topic`] reads `explain 1006` like
//! `explain close 1006`.

use super::sections::{self, Section};
use crate::inspect::AcceptSteps;
use crate::inspect::escape::spaced_hex;
use crate::inspect::frame::opcode_name;
use crate::ws::close::CloseCode;
use crate::ws::frame::Opcode;
use crate::ws::handshake::decoded_key_len;

/// Registered close codes: number, name, description.
#[rustfmt::skip]
const CLOSE_CODES: &[(u16, &str, &str)] = &[
    (1000, "normal closure", "The purpose of the connection is fulfilled."),
    (1001, "going away", "A server shuts down, or a user leaves the page. wirechat sends it on SIGTERM."),
    (1002, "protocol error", "The peer broke a rule of RFC 6455. wirechat's reason names the rule and its section."),
    (1003, "unsupported data", "The endpoint does not accept this type of message. wirechat's chat rejects binary."),
    (1004, "reserved", "It has no meaning yet, and must not be sent."),
    (1005, "no status code", "Reported to an application when the Close that arrived had no code. It is never sent."),
    (1006, "abnormal closure", "Reported to an application when TCP ended without a Close. It is never sent."),
    (1007, "invalid data", "A text message, or the reason of a Close, is not UTF-8."),
    (1008, "policy violation", "The peer broke a rule of the server. wirechat: a name in use, a flood, a slow consumer, \
                                too many fragments."),
    (1009, "message too big", "A message is over the limit. wirechat sends it as soon as a header announces too much."),
    (1010, "missing extension", "Sent by a client that needs an extension which the server did not accept."),
    (1011, "internal error", "The server failed, and the client did nothing wrong."),
    (1012, "service restart", "The server restarts. Clients reconnect after a random delay. (IANA registry)"),
    (1013, "try again later", "The server is overloaded; wirechat: its buffers are full. (IANA registry)"),
    (1014, "bad gateway", "A proxy received an invalid response from the server. (IANA registry)"),
    (1015, "TLS handshake failed", "Reported to an application when TLS could not be set up. It is never sent."),
];

const OPCODES: &[(Opcode, &str, &str)] = &[
    (Opcode::Continuation, "5.4", "The next fragment of an unfinished message. The last fragment has FIN."),
    (Opcode::Text, "5.6", "A text message in UTF-8, or its first fragment if FIN is 0."),
    (Opcode::Binary, "5.6", "A binary message, or its first fragment if FIN is 0."),
    (Opcode::Close, "5.5.1", "Starts or completes the closing handshake: empty, or a two-byte code and a reason."),
    (Opcode::Ping, "5.5.2", "Asks for a Pong with the same payload."),
    (Opcode::Pong, "5.5.3", "Replies to a Ping. Without a Ping, it shows that the sender is alive."),
];

/// Explains the topic named by `words`, such as `close 1002`. If the words do not look like a topic, returns `None`,
/// and the caller parses them as bytes.
///
/// # Errors
/// Returns a one-line message if the words name a topic that does not exist, such as `section 99`.
pub fn explain_topic(words: &[&str]) -> Result<Option<String>, String> {
    match words {
        ["key", key] => Ok(Some(explain_key(key))),
        ["key", ..] => Err("explain key needs one Sec-WebSocket-Key, as sent in the request".into()),
        ["close" | "code" | "codes"] => {
            Ok(Some(format!("{}\n\nClose codes:\n{}", explain_opcode("close")?, list_close_codes())))
        }
        ["close" | "code", asked] => explain_close_code(asked).map(Some),
        ["opcode" | "opcodes"] => Ok(Some(list_opcodes())),
        ["opcode", asked] => explain_opcode(asked).map(Some),
        ["section" | "sections"] => Ok(Some(list_titles(sections::SECTIONS.iter()))),
        ["section", number] => explain_section(number).map(Some),
        ["close" | "code" | "opcode" | "section", _, extra, ..] => Err(format!("{extra:?} is one word too many")),
        [word] => explain_word(word),
        _ => Ok(None),
    }
}

/// Explains a word or number given without a keyword such as `close`. If the input is ambiguous, the reply covers the
/// likeliest meaning and lists other meanings.
fn explain_word(word: &str) -> Result<Option<String>, String> {
    let with = |topic: Result<String, String>, others: &str| topic.map(|topic| Some(format!("{topic}\n{others}")));
    if opcode_by_name(word).is_some() {
        return explain_opcode(word).map(Some);
    }
    if word.starts_with('§') || is_section_number(word) {
        return explain_section(word).map(Some);
    }
    if decoded_key_len(word.as_bytes()) == Some(16) && word.ends_with("==") {
        return with(Ok(explain_key(word)), "Read as a Sec-WebSocket-Key. If it is frames in base64: --as base64.");
    }
    let is_number = word.bytes().all(|digit| digit.is_ascii_digit());
    match (is_number, word.len(), word.parse::<u16>()) {
        // Read 0 to 15 as a decimal opcode. 0 to 9 cannot be hexadecimal bytes, because a byte has two digits. 10 to 15
        // could be the bytes 0x10 to 0x15, but these set a reserved bit, so no valid frame starts with them (§5.2).
        (true, 1, Ok(_)) | (true, 2, Ok(10..=15)) => {
            let byte = if word.len() == 1 { format!("0{word}") } else { format!("--as hex {word}") };
            with(
                explain_opcode(word),
                &format!("Read as an opcode. If it is a section: explain §{word}; a byte: explain {byte}."),
            )
        }
        // Read 1000 to 4999 as a close code. The digits could also be two hexadecimal bytes, but an uncompressed frame
        // never starts with a byte from 0x10 to 0x49, because such a byte sets a reserved bit (§5.2).
        (true, 4, Ok(1000..=4999)) => with(
            explain_close_code(word),
            &format!("Read as a close code. If it is two bytes: explain --as hex {word}."),
        ),
        (true, 3, Ok(_)) => with(
            explain_close_code(word),
            "Read as a close code. The HTTP statuses of a handshake are in §4.2.2: explain 4.2.2.",
        ),
        (true, 5, Ok(_)) => explain_close_code(word).map(Some),
        _ => Ok(find_mentions(word)),
    }
}

fn is_section_number(word: &str) -> bool {
    word.contains('.')
        && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Lists the sections with `word` in the title, or if there are none, in the text. If only one title has `word`, shows
/// its section in full. Returns `None` if no section mentions `word`, or if `word` has fewer than three characters, a
/// character other than a letter or a hyphen, or only hexadecimal digits ("cafe"). The caller then reads it as bytes.
fn find_mentions(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    let is_word = word.len() >= 3 && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-');
    if !is_word || word.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    // Match prefixes, so that "mask" finds "masking" and "fragment" finds "fragmentation".
    let has_word = |text: &str| {
        let text = text.to_lowercase();
        text.split(|c: char| !c.is_alphanumeric() && c != '-').any(|found| found.starts_with(&word))
    };
    let (in_title, in_text): (Vec<&Section>, Vec<&Section>) = sections::SECTIONS
        .iter()
        .filter(|section| has_word(section.title) || has_word(section.text))
        .partition(|section| has_word(section.title));
    match (&in_title[..], &in_text[..]) {
        ([], []) => None,
        ([only], _) => Some(format!("{}{}", format_section(only), format_see_also(&in_text))),
        ([], found) | (found, _) => {
            Some(format!("Sections of RFC 6455 about {word:?}:\n{}", list_titles(found.iter().copied())))
        }
    }
}

fn format_see_also(sections: &[&Section]) -> String {
    if sections.is_empty() { String::new() } else { format!("\n\nAlso in:\n{}", list_titles(sections.iter().copied())) }
}

/// Shows each step in computing the accept value (§1.3, §4.2.2).
fn explain_key(key: &str) -> String {
    let AcceptSteps { key_and_guid, sha1, accept, .. } = AcceptSteps::from_key(key);
    let objection = match decoded_key_len(key.as_bytes()) {
        Some(16) => String::new(),
        Some(len) => format!("\nNot a valid key: it must be base64 of 16 bytes, and is of {len} (§4.2.1)."),
        None => "\nNot a valid key: it must be base64 of 16 bytes, and is not base64 (§4.2.1).".into(),
    };
    format!(
        "key          {key}\nkey + GUID   {key_and_guid}\nits SHA-1    {}\nin base64    {accept}\n\
         The last line is the accept value, Sec-WebSocket-Accept (§1.3, §4.2.2; src/ws/handshake.rs).{objection}",
        spaced_hex(&sha1)
    )
}

fn list_close_codes() -> String {
    CLOSE_CODES.iter().map(|(code, name, _)| format!("{code}  {name}")).collect::<Vec<_>>().join("\n")
}

fn explain_close_code(asked: &str) -> Result<String, String> {
    let code: u16 = asked.parse().map_err(|_| {
        format!("{asked:?} is not a close code: write a number up to 65535 (explain close lists the codes)")
    })?;
    let (name, text) = match CLOSE_CODES.iter().find(|(registered, ..)| *registered == code) {
        Some((_, name, text)) => (*name, *text),
        None => code_range(code),
    };
    let [hi, lo] = code.to_be_bytes();
    let wire = match CloseCode::from_wire(code) {
        Ok(_) => format!("On the wire: {hi:02x} {lo:02x}. A server's Close with it is 88 02 {hi:02x} {lo:02x}."),
        Err(error) => format!("A Close that carries it fails the connection with {}: {error}.", error.code().get()),
    };
    Ok(format!("Close code {code}: {name}\n{text}\n{wire}\n§7.4; src/ws/close.rs"))
}

/// Returns the name and the meaning of the range that contains an unregistered close code (§7.4.2).
fn code_range(code: u16) -> (&'static str, &'static str) {
    match code {
        0..=999 => ("not used", "Close codes start at 1000."),
        1016..=2999 => {
            ("reserved", "Reserved for later versions of the protocol and its extensions. It must not be sent.")
        }
        3000..=3999 => ("registered", "For libraries, frameworks and applications, registered with IANA."),
        4000..=4999 => ("private", "For private use: both endpoints have to agree on its meaning."),
        _ => ("not used", "Close codes end at 4999."),
    }
}

fn list_opcodes() -> String {
    let line = |(opcode, section, text): &(Opcode, &str, &str)| {
        format!("{:x}  {:<7} {text} §{section}", *opcode as u8, opcode_name(*opcode))
    };
    OPCODES.iter().map(line).collect::<Vec<_>>().join("\n") + "\nAll others are reserved (§5.2)."
}

fn explain_opcode(asked: &str) -> Result<String, String> {
    let error = || format!("{asked:?} is not an opcode: write a number from 0 to 15, or a name such as ping");
    let bits = opcode_by_name(asked).or_else(|| opcode_by_number(asked)).ok_or_else(error)?;
    let Some((opcode, section, text)) = OPCODES.iter().find(|(opcode, ..)| *opcode as u8 == bits) else {
        let kind = if bits < 8 { "data" } else { "control" };
        return Ok(format!(
            "Opcode {bits} ({bits:#x}, {bits:04b}): reserved\nReserved for {kind} frames of the future. Until then it fails \
             the connection with 1002.\n§5.2; src/ws/frame.rs"
        ));
    };
    let kind = match opcode.is_control() {
        true => "A control frame: at most 125 bytes of payload, never fragmented (§5.5).",
        false => "A data frame.",
    };
    let first = 0x80 | bits;
    Ok(format!(
        "Opcode {bits} ({bits:#x}, {bits:04b}): {}\n{text}\n{kind} With FIN and no reserved bit, its first byte is \
         {first:02x}.\n§{section}; src/ws/frame.rs",
        opcode_name(*opcode)
    ))
}

fn opcode_by_name(asked: &str) -> Option<u8> {
    let asked = if asked.eq_ignore_ascii_case("continuation") { "CONT" } else { asked };
    OPCODES
        .iter()
        .find(|(opcode, ..)| opcode_name(*opcode).eq_ignore_ascii_case(asked))
        .map(|(opcode, ..)| *opcode as u8)
}

/// Parses an opcode such as `9`, `0x9` or `a`, first as decimal, then as hexadecimal.
fn opcode_by_number(asked: &str) -> Option<u8> {
    // Check every digit: `from_str_radix` would also accept a sign.
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let digits = asked.strip_prefix("0x").filter(|digits| is_number(digits));
    let number = match digits {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None if is_number(asked) => asked.parse().ok().or_else(|| u8::from_str_radix(asked, 16).ok()),
        None => None,
    };
    number.filter(|number| *number < 16)
}

fn explain_section(asked: &str) -> Result<String, String> {
    let number = asked.trim_start_matches('§').trim_end_matches('.');
    let found = sections::find_sections(number);
    match found[..] {
        [] => match sections::informative_title(number) {
            Some(title) => Ok(format!("§{number} {title}\nIt has no rule for an endpoint.")),
            None => Err(format!("RFC 6455 has no section {asked:?} (wirechat explain section lists them)")),
        },
        [only] => Ok(format_section(only)),
        [first, ref below @ ..] if first.number == number => {
            Ok(format!("{}\n\nIts subsections:\n{}", format_section(first), list_titles(below.iter().copied())))
        }
        _ => Ok(list_titles(found.into_iter())),
    }
}

fn format_section(section: &Section) -> String {
    let files = if section.files.is_empty() { String::new() } else { format!("\nIn wirechat: {}", section.files) };
    format!("§{} {}\n{}{files}", section.number, section.title, wrap(section.text))
}

fn list_titles<'s>(sections: impl Iterator<Item = &'s Section>) -> String {
    sections.map(|section| format!("§{:<7} {}", section.number, section.title)).collect::<Vec<_>>().join("\n")
}

fn wrap(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_close_codes_agrees_with_the_protocol() {
        for (code, _, text) in CLOSE_CODES {
            let is_sent = CloseCode::from_wire(*code).is_ok();
            assert_eq!(is_sent, !text.contains("never sent") && !text.contains("must not be sent"), "{code}");
        }
        for code in [0, 999, 1016, 2999, 3000, 3999, 4000, 4999, 5000, 65535] {
            assert!(explain_close_code(&code.to_string()).unwrap().starts_with(&format!("Close code {code}: ")));
        }
    }

    #[test]
    fn an_opcode_by_any_name() {
        for asked in ["9", "0x9", "0x09", "ping", "PING", "Ping"] {
            assert!(explain_opcode(asked).unwrap().starts_with("Opcode 9 (0x9, 1001): PING\n"), "{asked}");
        }
        for asked in ["10", "a", "0xA", "pong"] {
            assert!(explain_opcode(asked).unwrap().contains("PONG"), "{asked}");
        }
        assert!(explain_opcode("continuation").unwrap().contains("CONT"));
        assert!(explain_opcode("3").unwrap().contains("reserved") && explain_opcode("b").unwrap().contains("control"));
        for asked in ["16", "0x10", "-1", "+1", "pang", "", "0x"] {
            assert!(explain_opcode(asked).is_err(), "{asked}");
        }
    }

    #[test]
    fn words_and_numbers_without_a_keyword() {
        let cases = [
            ("ping", "Opcode 9 "),
            ("Close", "Opcode 8 "),
            ("continuation", "Opcode 0 "),
            ("5.2", "§5.2 "),
            ("§5.2", "§5.2 "),
            ("§5", "§5.1 "),
            ("7.4.1", "§7.4.1 "),
            ("1006", "Close code 1006: "),
            ("4999", "Close code 4999: "),
            ("999", "Close code 999: "),
            ("9", "Opcode 9 "),
            ("10", "Opcode 10 "),
            ("masking", "Sections of RFC 6455 about \"masking\""),
            ("fragment", "§5.4 "),
            ("dGhlIHNhbXBsZSBub25jZQ==", "key          dGhl"),
        ];
        for (word, start) in cases {
            let reply = explain_topic(&[word]).unwrap().unwrap_or_else(|| panic!("{word} is a question"));
            assert!(reply.starts_with(start), "{word}: {reply}");
        }
        for word in ["81", "8105", "818537", "0x81", "decade", "hello8", "gYU3+iE9f59NUVg=", "16"] {
            assert_eq!(explain_topic(&[word]), Ok(None), "{word}");
        }
        for (word, other) in [("10", "explain §10"), ("9", "a byte: explain 09"), ("1006", "explain --as hex 1006")] {
            assert!(explain_topic(&[word]).unwrap().unwrap().contains(other), "{word}");
        }
        assert!(explain_topic(&["5.99"]).is_err());
    }
}
