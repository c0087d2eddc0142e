//! Close codes (§7.4 and the IANA registry) and opcodes (§5.2), each in a few words.

use crate::ws::close::CloseCode;
use crate::ws::frame::Opcode;

/// The registered close codes: the name, who says it and when, and where in wirechat.
#[rustfmt::skip]
const CODES: &[(u16, &str, &str)] = &[
    (1000, "normal", "The purpose of the connection is fulfilled, and both sides are done."),
    (1001, "going away", "A server shuts down, or a page is left. wirechat says it to everybody on SIGTERM."),
    (1002, "protocol error", "A rule of RFC 6455 was broken. wirechat's reason names the rule and its section."),
    (1003, "unsupported data", "A kind of message that is not taken here, as binary on wirechat's chat."),
    (1004, "reserved", "It has no meaning yet, and must not be sent."),
    (1005, "no code", "An application is told this when the Close that came was empty. It is never sent."),
    (1006, "no Close", "An application is told this when the TCP connection ended without a Close. It is never sent."),
    (1007, "bad data", "Text, or the reason of a Close, that is not UTF-8."),
    (1008, "policy", "A rule of the server's own was broken: in wirechat a name in use, a flood, a reader too slow, too \
                      many fragments."),
    (1009, "too big", "A message over the limit. wirechat says it as soon as a header announces too much."),
    (1010, "extension missing", "Said by a client that wanted an extension which the server did not take."),
    (1011, "internal error", "Something went wrong in the server that is not the client's fault."),
    (1012, "service restart", "The server restarts; come back after a random while. (IANA registry)"),
    (1013, "try again later", "The server is short of something; in wirechat its buffers are full. (IANA registry)"),
    (1014, "bad gateway", "A proxy got a bad answer from the server behind it. (IANA registry)"),
    (1015, "TLS", "An application is told this when the TLS handshake failed. It is never sent."),
];

/// The opcodes that have a meaning.
const OPCODES: &[(Opcode, &str, &str)] = &[
    (Opcode::Continuation, "5.4", "The next fragment of the message that is open. The last one has FIN."),
    (Opcode::Text, "5.6", "A text message, in UTF-8, or its first fragment if FIN is 0."),
    (Opcode::Binary, "5.6", "A binary message, any bytes, or its first fragment if FIN is 0."),
    (Opcode::Close, "5.5.1", "Begins or answers the closing handshake: empty, or a code of two bytes and a reason."),
    (Opcode::Ping, "5.5.2", "Asks for a Pong with the same payload."),
    (Opcode::Pong, "5.5.3", "Answers a Ping; unasked, it is a sign of life."),
];

/// What is to be said of a close code; without one, the list of them.
///
/// # Errors
/// A line: this is no code.
pub fn close(asked: Option<&str>) -> Result<String, String> {
    let Some(asked) = asked else {
        let lines: Vec<String> = CODES.iter().map(|(code, name, _)| format!("{code}  {name}")).collect();
        return Ok(lines.join("\n"));
    };
    let code: u16 = asked.parse().map_err(|_| format!("{asked:?} is no close code: it is a number up to 65535"))?;
    let (name, words) = match CODES.iter().find(|(registered, ..)| *registered == code) {
        Some((_, name, words)) => (*name, *words),
        None => range(code),
    };
    let [hi, lo] = code.to_be_bytes();
    let wire = match CloseCode::from_wire(code) {
        Ok(_) => format!("In a Close it stands as {hi:02x} {lo:02x}: a server's is 88 02 {hi:02x} {lo:02x}."),
        Err(error) => format!("wirechat answers a Close with it with {}: {error}.", error.code().get()),
    };
    Ok(format!("{code}: {name}\n{words}\n{wire}\n§7.4; src/ws/close.rs"))
}

/// What a code without a name is (§7.4.2).
fn range(code: u16) -> (&'static str, &'static str) {
    match code {
        0..=999 => ("not used", "Codes below 1000 do not exist."),
        1016..=2999 => {
            ("reserved", "Reserved for later versions of the protocol and its extensions; must not be sent.")
        }
        3000..=3999 => ("registered", "For libraries, frameworks and applications, registered with IANA."),
        4000..=4999 => ("private", "For private use: it means what the two sides have agreed on."),
        _ => ("not used", "Codes above 4999 do not exist."),
    }
}

/// What is to be said of an opcode, by its number in any base or by its name; without one, the list of them.
///
/// # Errors
/// A line: this is no opcode.
pub fn opcode(asked: Option<&str>) -> Result<String, String> {
    let line = |(opcode, section, words): &(Opcode, &str, &str)| {
        format!("{:x}  {:<7} {words} §{section}", *opcode as u8, opcode.name())
    };
    let Some(asked) = asked else {
        let lines: Vec<String> = OPCODES.iter().map(line).collect();
        return Ok(lines.join("\n") + "\nAll others are reserved (§5.2).");
    };
    let no_opcode = || format!("{asked:?} is no opcode: it is a number from 0 to 15, or a name such as ping");
    let bits = by_name(asked).or_else(|| by_number(asked)).ok_or_else(no_opcode)?;
    let Some((opcode, section, words)) = OPCODES.iter().find(|(opcode, ..)| *opcode as u8 == bits) else {
        let kind = if bits < 8 { "data frames" } else { "control frames" };
        return Ok(format!(
            "opcode {bits} ({bits:#x}, {bits:04b}): reserved\nFor {kind} that may be defined one day. Until then it \
             fails the connection with 1002.\n§5.2; src/ws/frame.rs"
        ));
    };
    let kind = if opcode.is_control() {
        "A control frame: at most 125 bytes, never fragmented (§5.5)."
    } else {
        "A data frame."
    };
    let fin = 0x80 | bits;
    Ok(format!(
        "opcode {bits} ({bits:#x}, {bits:04b}): {}\n{words}\n{kind} With FIN, and without a reserved bit, its first \
         byte is {fin:02x}.\n§{section}; src/ws/frame.rs",
        opcode.name()
    ))
}

fn by_name(asked: &str) -> Option<u8> {
    let asked = if asked.eq_ignore_ascii_case("continuation") { "CONT" } else { asked };
    OPCODES.iter().find(|(opcode, ..)| opcode.name().eq_ignore_ascii_case(asked)).map(|(opcode, ..)| *opcode as u8)
}

/// `9`, `0x9`, `a`.
fn by_number(asked: &str) -> Option<u8> {
    let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let digits = asked.strip_prefix("0x").filter(|digits| is_number(digits));
    let number = match digits {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None if is_number(asked) => asked.parse().ok().or_else(|| u8::from_str_radix(asked, 16).ok()),
        None => None,
    };
    number.filter(|number| *number < 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_protocol() {
        for (code, _, words) in CODES {
            let is_sent = CloseCode::from_wire(*code).is_ok();
            assert_eq!(is_sent, !words.contains("never sent") && !words.contains("must not be sent"), "{code}");
        }
        for code in [0, 999, 1016, 2999, 3000, 3999, 4000, 4999, 5000, 65535] {
            assert!(close(Some(&code.to_string())).unwrap().starts_with(&format!("{code}: ")));
        }
    }

    #[test]
    fn an_opcode_by_any_name() {
        for asked in ["9", "0x9", "0x09", "ping", "PING", "Ping"] {
            assert!(opcode(Some(asked)).unwrap().starts_with("opcode 9 (0x9, 1001): PING\n"), "{asked}");
        }
        for asked in ["10", "a", "0xA", "pong"] {
            assert!(opcode(Some(asked)).unwrap().contains("PONG"), "{asked}");
        }
        assert!(opcode(Some("continuation")).unwrap().contains("CONT"));
        assert!(opcode(Some("3")).unwrap().contains("reserved") && opcode(Some("b")).unwrap().contains("control"));
        for asked in ["16", "0x10", "-1", "+1", "pang", "", "0x"] {
            assert!(opcode(Some(asked)).is_err(), "{asked}");
        }
    }
}
