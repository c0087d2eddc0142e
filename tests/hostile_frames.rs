//! Rude peers past the door: the frames they send, and the frames they must get (RFC 6455 §5, §7, §8.1).
//!
//! What everybody should try stands in the catalogue of `wirechat poke`, and its cases are rows here. The tables below
//! have what is too much for a person: every length, code and opcode, the order of the rules, the first byte at which each
//! can speak. They are read from the RFC and the written protocol, not from the code: a row is its name, where it happens,
//! the bytes sent after the upgrade, the bytes that must come back, and what becomes of the connection. Each row is run
//! whole and again one byte a write, and after each the server must still serve others.

mod support;

use support::http::{Response, handshake};
use support::table::{Cut, each_row, hex};
use support::watched::Watched;
use support::{Frame, RawClient, masked, whole_frames};
use wirechat::tools::poke::case::{Back, Case, End as CaseEnd, Needs, Opening};
use wirechat::tools::poke::catalogue;
use wirechat::ws::close::ProtocolError;

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token&username=bot&room=general";

struct Row {
    id: String,
    at: &'static str,
    sent: Vec<u8>,
    /// What the server sends, byte for byte, before `end`.
    back: Vec<u8>,
    end: End,
}

/// What becomes of the connection.
enum End {
    /// It is as alive as before: a ping is answered.
    Open,
    /// The server waits for more, and has said nothing.
    Waits,
    /// `back` ended with a close that answers ours, and the server closes TCP first (§7.1.1).
    Over,
    /// The server closes for this reason; the peer still owes so many bytes of the frame that it began.
    Fails(Rule, usize),
    /// The same, and what broke the rule was the peer's close, so that nothing is owed.
    FailsClosed(Rule),
}

use End::{Open, Over, Waits};

/// A rule as a peer reads of it in the reason of the close: the code, the section (one of these), and a word.
#[derive(Clone, Copy)]
struct Rule {
    code: u16,
    sections: &'static [&'static str],
    words: &'static [&'static str],
}

const fn rule(code: u16, sections: &'static [&'static str], words: &'static [&'static str]) -> Rule {
    Rule { code, sections, words }
}

const RSV: Rule = rule(1002, &["§5.2"], &["rsv", "reserved bit"]);
const OPCODE: Rule = rule(1002, &["§5.2"], &["opcode"]);
const CONTROL_FIN: Rule = rule(1002, &["§5.5", "§5.4"], &["control"]);
const CONTROL_LENGTH: Rule = rule(1002, &["§5.5"], &["125"]);
const MASK: Rule = rule(1002, &["§5.1"], &["mask"]);
const MINIMAL: Rule = rule(1002, &["§5.2"], &["minimal", "shortest"]);
const TOP_BIT: Rule = rule(1002, &["§5.2"], &["most significant", "top bit", "highest bit", "63"]);
const ORDER: Rule = rule(1002, &["§5.4"], &["continu", "fragment", "message"]);
const BINARY: Rule = rule(1003, &[], &["binary", "text"]);
const SIZE: Rule = rule(1009, &[], &["limit", "large", "big", "long"]);
const FRAGMENTS: Rule = rule(1008, &[], &["fragments"]);
const UTF8: Rule = rule(1007, &["§8.1", "§5.6"], &["utf-8"]);
const CLOSE_PAYLOAD: Rule = rule(1002, &["§5.5.1"], &["close"]);
const CLOSE_CODE: Rule = rule(1002, &["§7.4"], &["code"]);
const CLOSE_REASON: Rule = rule(1007, &["§5.5.1", "§8.1", "§7.1.6"], &["utf-8"]);

fn row(id: impl Into<String>, at: &'static str, sent: impl AsRef<[u8]>, back: impl AsRef<[u8]>, end: End) -> Row {
    Row { id: id.into(), at, sent: sent.as_ref().to_vec(), back: back.as_ref().to_vec(), end }
}

/// On `/echo`, in the notation of [`hex`]: `sent` brings `back`.
fn echo(id: &str, sent: &str, back: &str, end: End) -> Row {
    row(id, ECHO, hex(sent), hex(back), end)
}

/// On `/echo`: these bytes break that rule, and nothing came before.
fn fails(id: impl Into<String>, sent: &str, rule: Rule) -> Row {
    row(id, ECHO, hex(sent), [], End::Fails(rule, 0))
}

/// The same on the chat.
fn chat_fails(id: impl Into<String>, sent: &str, rule: Rule, owed: usize) -> Row {
    row(id, CHAT, hex(sent), [], End::Fails(rule, owed))
}

/// A frame as the server sends it: not masked, its length in the shortest form.
fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(first, payload);
    frame[1] &= 0x7f;
    let key = frame.len() - payload.len() - 4;
    frame.drain(key..key + 4);
    frame
}

fn upgrade(server: &Watched, at: &str) -> RawClient {
    let mut client = server.upgrade(at);
    if at == CHAT {
        client.read_event("welcome");
    }
    client
}

fn play(server: &mut Watched, row: &Row, cut: Cut) {
    let mut client = upgrade(server, row.at);
    server.send(&mut client, &row.sent, cut);
    let back = client.read_exact(row.back.len());
    assert!(back == row.back, "came back: {:02x?}\nexpected: {:02x?}", start(&back), start(&row.back));
    match &row.end {
        Open => still_answers(&mut client),
        Waits => {
            server.quiet();
            assert_silent(&client);
        }
        Over => client.expect_end(),
        End::Fails(rule, owed) => failed(&mut client, *rule, *owed),
        End::FailsClosed(rule) => {
            names_the_rule(&mut client, *rule);
            client.expect_end();
        }
    }
    server.still_chats();
}

/// As much of some bytes as a person wants to see.
fn start(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(200)]
}

fn still_answers(client: &mut RawClient) {
    client.send(&masked(0x89, b"still there?"));
    assert_eq!(client.read_frame(), Frame { first: 0x8a, payload: b"still there?".to_vec() });
}

/// Nothing has come; [`Watched::quiet`] made sure that nothing is on its way.
fn assert_silent(client: &RawClient) {
    client.stream.set_nonblocking(true).unwrap();
    let seen = client.stream.peek(&mut [0; 16]);
    client.stream.set_nonblocking(false).unwrap();
    let kind = seen.as_ref().map_err(std::io::Error::kind);
    assert_eq!(kind, Err(std::io::ErrorKind::WouldBlock), "the server waits and says nothing");
}

/// The close names the rule. Where framing is lost, the stream then ends; where it is intact, the server skips frames
/// until our close, and answers none of them.
fn failed(client: &mut RawClient, rule: Rule, owed: usize) {
    let code = names_the_rule(client, rule);
    if !matches!(code, 1002 | 1009) {
        client.send(&vec![0; owed]);
        client.send(&masked(0x89, b"a ping"));
        client.send(&masked(0x81, br#"{"event":"ping"}"#));
        client.send(&masked(0x88, &code.to_be_bytes()));
    }
    assert_eq!(client.read_to_clean_end(), b"", "nothing follows the close");
}

/// The next frame is a close with the rule's code, and its reason tells a person of the rule. Returns the code.
fn names_the_rule(client: &mut RawClient, rule: Rule) -> u16 {
    let (code, reason) = client.read_frame().close();
    assert_eq!(code, rule.code, "{reason}");
    assert!(rule.sections.is_empty() || rule.sections.iter().any(|s| reason.contains(s)), "no section: {reason:?}");
    let lower = reason.to_lowercase();
    assert!(rule.words.iter().any(|word| lower.contains(word)), "{reason:?} has none of {:?}", rule.words);
    code
}

fn run(tables: &[Vec<Row>]) {
    let mut server = Watched::start(&[]);
    let rows = |cut: &Cut| tables.iter().flatten().map(|row| (row, *cut)).collect::<Vec<_>>();
    let rows: Vec<(&Row, Cut)> = Cut::BOTH.iter().flat_map(rows).collect();
    each_row(&rows, |(row, cut)| format!("{} ({cut:?})", row.id), |(row, cut)| play(&mut server, row, *cut));
    server.finish(&[]);
}

/// The rule that an error is about. Every error has one, or this does not compile.
fn rule_of(error: ProtocolError) -> Rule {
    match error {
        ProtocolError::ReservedBits => RSV,
        ProtocolError::ReservedOpcode(_) => OPCODE,
        ProtocolError::FragmentedControl => CONTROL_FIN,
        ProtocolError::ControlTooLong => CONTROL_LENGTH,
        ProtocolError::Unmasked => MASK,
        ProtocolError::LengthNotMinimal => MINIMAL,
        ProtocolError::LengthTopBit => TOP_BIT,
        ProtocolError::UnexpectedContinuation | ProtocolError::ExpectedContinuation => ORDER,
        ProtocolError::UnsupportedData => BINARY,
        ProtocolError::MessageTooBig => SIZE,
        ProtocolError::TooManyFragments => FRAGMENTS,
        ProtocolError::TextNotUtf8 => UTF8,
        ProtocolError::ClosePayloadOfOneByte => CLOSE_PAYLOAD,
        ProtocolError::InvalidCloseCode(_) => CLOSE_CODE,
        ProtocolError::CloseReasonNotUtf8 => CLOSE_REASON,
    }
}

/// The catalogue of `wirechat poke`: those of its cases that are nothing but bytes behind a valid handshake. It is played
/// here by a client that shares no code with the server, and held to the words of the reasons as well.
#[test]
fn the_catalogue() {
    let rows: Vec<Row> = catalogue::all().filter_map(row_of).collect();
    assert!(rows.len() >= 60, "{} cases", rows.len());
    run(&[rows]);
}

fn row_of(case: &Case) -> Option<Row> {
    let sent = match case.opening {
        Opening::Usual => case.bytes(&mut || [0; 4])?,
        Opening::Odd(_) | Opening::Silent => return None,
    };
    let mut back: Vec<u8> = case.back.iter().flat_map(frame_of).collect();
    let end = match (case.end, case.error) {
        (_, Some(ProtocolError::CloseReasonNotUtf8)) => End::FailsClosed(CLOSE_REASON),
        (_, Some(error)) => End::Fails(rule_of(error), owed(&sent)),
        (CaseEnd::Open, None) => Open,
        (CaseEnd::Closes([1005]), None) => {
            back.extend(unmasked(0x88, b""));
            Over
        }
        (CaseEnd::Closes([code]), None) => {
            back.extend(unmasked(0x88, &code.to_be_bytes()));
            Over
        }
        _ => return None,
    };
    let at = if case.needs == Needs::OwnChat { CHAT } else { ECHO };
    Some(row(case.name, at, sent, back, end))
}

/// The frame that a message or a Pong comes back in.
fn frame_of(back: &Back) -> Vec<u8> {
    let letters = |len| (b'a'..=b'z').cycle().take(len).collect::<Vec<u8>>();
    match back {
        Back::Text(bytes) => unmasked(0x81, &hex(bytes)),
        Back::Binary(bytes) => unmasked(0x82, &hex(bytes)),
        Back::Letters(opcode, len) => unmasked(0x80 | opcode, &letters(*len)),
        Back::Pong(bytes) | Back::MaybePong(bytes) => unmasked(0x8a, &hex(bytes)),
    }
}

/// How many bytes the last of these frames still lacks, as far as its length stands in seven bits.
fn owed(mut sent: &[u8]) -> usize {
    while let [_, second @ 0..=0xfd, ..] = sent {
        let size = 2 + usize::from(second >> 7) * 4 + usize::from(second & 0x7f);
        match sent.split_at_checked(size) {
            Some((_, rest)) => sent = rest,
            None => return size - sent.len(),
        }
    }
    0
}

#[test]
fn frames() {
    run(&[frame_rows(), length_rows(), size_rows(), opcode_rows()]);
}

/// §5.2, §5.3, §5.7.
#[rustfmt::skip]
fn frame_rows() -> Vec<Row> {
    vec![
        echo("F05 another key for each frame", "81 82 01 02 03 04 69 6b 82 82 ff ff ff ff 97 96", "81 02 'hi' 82 02 'hi'", Open),
        echo("F21 two frames and a half", "81 81 M0 'a' 81 81 M0 'b' 81 82 M0 'c'", "81 01 'a' 81 01 'b'", Waits),
        fails("F01 not masked, empty", "81 00", MASK),
        fails("F01 not masked, a close", "88 02 03 e8", MASK),
        chat_fails("F01 not masked, on the chat", "81 05 'Hello'", MASK, 0),
        echo("F01 behind a good frame", "81 82 M0 'ok' 81 02 'no'", "81 02 'ok'", End::Fails(MASK, 0)),
        chat_fails("F05 empty binary on the chat", "82 80 M0", BINARY, 0),
        chat_fails("F05 a binary fragment on the chat", "02 81 M0 'a'", BINARY, 0),
        fails("F07 125 in the form of 16 bits", "81 fe 00 7d", MINIMAL),
        fails("F07 none in the form of 16 bits", "81 fe 00 00 M0", MINIMAL),
        fails("F09 65535 in the form of 64 bits", "81 ff 00 00 00 00 00 00 ff ff", MINIMAL),
        fails("F09 none in the form of 64 bits", "82 ff 00 00 00 00 00 00 00 00 M0", MINIMAL),
        fails("F09 126 in the form of 64 bits", "82 ff 00 00 00 00 00 00 00 7e M0", MINIMAL),
    ]
}

/// F04, F05, F06, F25: every length where a form begins or ends, in the shortest form both ways.
fn length_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for len in [0, 1, 125, 126, 127, 128, 996, 997, 65535, 65536, 65537] {
        let text: Vec<u8> = (b'a'..=b'z').cycle().take(len).collect();
        let binary: Vec<u8> = (0..=255).cycle().take(len).collect();
        rows.push(row(format!("F04 text of {len}"), ECHO, masked(0x81, &text), unmasked(0x81, &text), Open));
        rows.push(row(format!("F05 binary of {len}"), ECHO, masked(0x82, &binary), unmasked(0x82, &binary), Open));
    }
    rows
}

/// F13: 64 KiB on the chat, 16 MiB on `/echo`, judged by the header that would cross the limit.
#[rustfmt::skip]
fn size_rows() -> Vec<Row> {
    vec![
        fails("F13 one over, on /echo, text", "81 ff 00 00 00 00 01 00 00 01", SIZE),
        fails("F13 2^63 - 1", "82 ff 7f ff ff ff ff ff ff ff", SIZE),
        fails("F13 one over in two fragments", "02 81 M0 'a' 80 ff 00 00 00 00 01 00 00 00", SIZE),
        row("F13 at the limit, on /echo", ECHO, hex("82 ff 00 00 00 00 01 00 00 00"), [], Waits),
        row("F13 at the limit, on the chat", CHAT, hex("81 ff 00 00 00 00 00 01 00 00"), [], Waits),
        row("J12 a megabyte of blanks", CHAT, hex("81 ff 00 00 00 00 00 10 00 00"), [], End::Fails(SIZE, 0)),
    ]
}

/// F14 and F15: without an extension no RSV bit has a meaning, and ten opcodes have none at all.
fn opcode_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for rsv in 1..8 {
        for first in [0x81, 0x82, 0x01, 0x88, 0x89, 0x8a] {
            let first: u8 = first | rsv << 4;
            rows.push(fails(format!("F14 {first:02x}"), &format!("{first:02x} 80 M0"), RSV));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        rows.push(fails(format!("F15 8{opcode:x}, empty"), &format!("8{opcode:x} 80 M0"), OPCODE));
        rows.push(fails(format!("F15 8{opcode:x}"), &format!("8{opcode:x} 82 M0 'hi'"), OPCODE));
        // A length that must not be believed, and nothing must be set aside for.
        let huge = format!("8{opcode:x} ff 40 00 00 00 00 00 00 00");
        rows.push(fails(format!("F15 8{opcode:x}, 2^62 bytes"), &huge, OPCODE));
        rows.push(fails(format!("F15 0{opcode:x}"), &format!("0{opcode:x} 80 M0"), OPCODE));
    }
    rows
}

#[test]
fn the_order_of_header_rules() {
    run(&[order_rows(), earliest_rows()]);
}

/// Where several rules are broken, the first of this order speaks: RSV, opcode, control rules (FIN, at most 125), mask
/// bit, minimal length, top bit, fragment order, message type, size limit.
#[rustfmt::skip]
fn order_rows() -> Vec<Row> {
    vec![
        fails("RSV before opcode", "c3 80 M0", RSV),
        fails("RSV before control FIN", "49 80 M0", RSV),
        fails("RSV before mask", "c1 05", RSV),
        fails("RSV before fragment order", "c0 80 M0", RSV),
        fails("RSV before size", "c2 ff 7f ff ff ff ff ff ff ff", RSV),
        fails("opcode before control FIN", "0b 80 M0", OPCODE),
        fails("opcode before control length", "8b fe 00 7e M0", OPCODE),
        fails("opcode before mask", "83 05", OPCODE),
        fails("opcode before minimal length", "83 fe 00 05", OPCODE),
        fails("control FIN before control length", "09 fe 00 7e", CONTROL_FIN),
        fails("control FIN before mask", "09 00", CONTROL_FIN),
        fails("control length before mask", "89 7e 00 7e", CONTROL_LENGTH),
        fails("control length before minimal length", "89 fe 00 05", CONTROL_LENGTH),
        fails("control length before top bit", "8a ff ff ff ff ff ff ff ff ff", CONTROL_LENGTH),
        fails("mask before minimal length", "81 7e 00 05", MASK),
        fails("mask before top bit", "81 7f 80 00 00 00 00 00 00 00", MASK),
        fails("mask before fragment order", "80 05", MASK),
        chat_fails("mask before message type", "82 05", MASK, 0),
        fails("mask before size", "82 7f 7f ff ff ff ff ff ff ff", MASK),
        fails("minimal length before fragment order", "80 fe 00 05", MINIMAL),
        chat_fails("minimal length before message type", "82 fe 00 05", MINIMAL, 0),
        fails("top bit before fragment order", "80 ff 80 00 00 00 00 00 00 00", TOP_BIT),
        chat_fails("top bit before message type", "82 ff 80 00 00 00 00 00 00 00", TOP_BIT, 0),
        fails("top bit before size", "82 ff 80 00 00 00 7f ff ff ff", TOP_BIT),
        chat_fails("fragment order before message type", "01 81 M0 'a' 82 81 M0 'b'", ORDER, 0),
        fails("fragment order before size", "80 ff 00 00 00 00 7f ff ff ff", ORDER),
        fails("fragment order before size, one open", "02 81 M0 'a' 82 ff 00 00 00 00 7f ff ff ff", ORDER),
        chat_fails("message type before size", "82 ff 00 00 00 00 00 01 00 01", BINARY, 4 + 65537),
    ]
}

/// A rule speaks as soon as the bytes that it needs are there, and not before an earlier rule has had its say.
#[rustfmt::skip]
fn earliest_rows() -> Vec<Row> {
    vec![
        fails("RSV by the first byte", "c1", RSV),
        fails("opcode by the first byte", "83", OPCODE),
        fails("control FIN by the first byte", "09", CONTROL_FIN),
        fails("control length by the second byte", "89 fe", CONTROL_LENGTH),
        fails("mask by the second byte", "81 7f", MASK),
        fails("mask by the second byte, 16 bits", "81 7e", MASK),
        fails("minimal length by its last byte", "81 fe 00 7d", MINIMAL),
        fails("top bit by the third byte", "81 ff 80", TOP_BIT),
        fails("fragment order by the second byte", "80 85", ORDER),
        chat_fails("message type by the second byte", "82 85", BINARY, 4 + 5),
        fails("size before the masking key", "82 ff 00 00 00 00 01 00 00 01", SIZE),
        echo("a mask may come yet", "80", "", Waits),
        echo("a shortest form may come yet", "80 fe", "", Waits),
        echo("a first byte that is fine", "82", "", Waits),
        echo("a whole header without its key", "81 85 00 00 00", "", Waits),
    ]
}

#[test]
fn fragments() {
    run(&[fragment_rows(), fragment_size_rows()]);
}

/// §5.4.
#[rustfmt::skip]
fn fragment_rows() -> Vec<Row> {
    vec![
        fails("G03 an empty one of nothing", "80 80 M0", ORDER),
        echo("G03 behind a whole message", "81 81 M0 'a' 80 81 M0 'b'", "81 01 'a'", End::Fails(ORDER, 0)),
        echo("G03 behind the last fragment", "01 81 M0 'a' 80 81 M0 'b' 80 81 M0 'c'", "81 02 'ab'", End::Fails(ORDER, 0)),
        fails("G04 a first fragment in the middle", "01 81 M0 'a' 01 81 M0 'b'", ORDER),
        fails("G04 binary in the middle", "01 81 M0 'a' 82 81 M0 'b'", ORDER),
        fails("G04 text in binary", "02 81 M0 'a' 81 81 M0 'b'", ORDER),
        fails("G04 after an empty first", "01 80 M0 81 80 M0", ORDER),
        fails("G06 a fragmented pong", "0a 82 M0 'hi'", CONTROL_FIN),
        echo("G08 empty ones around", "01 80 M0 00 81 M0 'a' 80 80 M0", "81 01 'a'", Open),
    ]
}

/// G11: fragments of 1 KiB up to the chat's limit, and the header that would cross it. G14: pings between two fragments.
fn fragment_size_rows() -> Vec<Row> {
    let kib = [b' '; 1024];
    let mut full = masked(0x01, &kib);
    (1..64).for_each(|_| full.extend(masked(0x00, &kib)));
    let over = [full.clone(), hex("80 81")].concat();
    let mut pinged = hex("01 82 M0 'He'");
    let mut pongs = Vec::new();
    for i in 0..1000u16 {
        pinged.extend(masked(0x89, &i.to_be_bytes()));
        pongs.extend(unmasked(0x8a, &i.to_be_bytes()));
    }
    pinged.extend(hex("80 83 M0 'llo'"));
    pongs.extend(hex("81 05 'Hello'"));
    vec![
        row("G11 64 KiB in fragments", CHAT, &full, [], Waits),
        row("G11 one byte more", CHAT, &over, [], End::Fails(SIZE, 0)),
        row("G11 an empty one more is not over it", CHAT, [full, hex("00 80 M0")].concat(), [], Waits),
        row("G14 1,000 pings between", ECHO, pinged, pongs, Open),
    ]
}

#[test]
fn utf8() {
    run(&[utf8_rows(), bad_utf8_rows(), early_utf8_rows()]);
}

/// §5.6, §8.1: what is text.
fn utf8_rows() -> Vec<Row> {
    let same = |id: &str, text: &[u8]| row(id, ECHO, masked(0x81, text), unmasked(0x81, text), Open);
    let kosme = hex("ce ba e1 bd b9 cf 83 ce bc ce b5");
    let mut dripped = hex("01 80 M0");
    kosme.iter().for_each(|byte| dripped.extend(masked(0x00, &[*byte])));
    dripped.extend(hex("80 80 M0"));
    vec![
        row("U02 one byte a fragment", ECHO, dripped, unmasked(0x81, &kosme), Open),
        same("U04 NUL", &[0]),
        same("U04 the last of each length", &hex("7f df bf ef bf bf f4 8f bf bf")),
        same("U04 the first of each length", &hex("00 c2 80 e0 a0 80 f0 90 80 80")),
        same("U04 around the surrogates", &hex("ed 9f bf ee 80 80")),
        same("U09 U+FFFE and U+FFFF", &hex("ef bf be ef bf bf")),
        same("U09 U+1FFFE and U+10FFFF", &hex("f0 9f bf be f4 8f bf bf")),
        same("U09 a byte order mark", &hex("ef bb bf 'a'")),
        row("U10 in binary it may end anywhere", ECHO, hex("02 81 M0 ce 80 80 M0"), hex("82 01 ce"), Open),
    ]
}

/// U03–U06: what is not, in a whole frame, in two fragments, and on the chat.
fn bad_utf8_rows() -> Vec<Row> {
    let bad = [
        ("U03 a surrogate", "ed a0 80"),
        ("U03 the last surrogate", "ed bf bf"),
        ("U04 / in two bytes", "c0 af"),
        ("U04 / in three bytes", "e0 80 af"),
        ("U04 / in four bytes", "f0 80 80 af"),
        ("U04 NUL in two bytes", "c0 80"),
        ("U04 a continuation alone", "80"),
        ("U04 a continuation too many", "ce ba ba"),
        ("U05 past U+10FFFF", "f4 90 80 80"),
        ("U05 five bytes", "f8 88 80 80 80"),
        ("U05 fe", "fe"),
        ("U05 ff", "ff"),
        ("U06 ends in a character of two", "'a' ce"),
        ("U06 ends in a character of three", "'a' e1 bd"),
        ("U06 ends in a character of four", "'a' f0 9f bf"),
        ("U06 a letter in a character", "e1 bd 'a'"),
    ];
    let mut rows = Vec::new();
    for (id, text) in bad {
        let text = hex(text);
        let (first, last) = text.split_at(text.len() / 2);
        let halves = [masked(0x01, first), masked(0x80, last)].concat();
        // In two fragments the first may be enough to fail; its sender has then sent the other whole.
        rows.push(row(id, ECHO, masked(0x81, &text), [], End::Fails(UTF8, 0)));
        rows.push(row(format!("{id}, in two fragments"), ECHO, halves, [], End::Fails(UTF8, 0)));
        rows.push(row(format!("{id}, on the chat"), CHAT, masked(0x81, &text), [], End::Fails(UTF8, 0)));
    }
    rows
}

/// U08: a byte that cannot become text fails at once, in the middle of a frame. Each of these frames promises 100 bytes.
fn early_utf8_rows() -> Vec<Row> {
    let early = [
        ("ff", "ff"),
        ("c0", "c0"),
        ("f5", "f5"),
        ("a continuation", "80"),
        ("a surrogate, by its second byte", "'a' ed a0"),
        ("an overlong one, by its second byte", "'a' e0 80"),
        ("an overlong one of four, by its second byte", "f0 8f"),
        ("past U+10FFFF, by its second byte", "'Hello' f4 90"),
        ("a character that is not finished", "ce ba e1 'a'"),
    ];
    let begun = |text: &str| [hex("81 e4 M0"), hex(text)].concat();
    let fails = |(id, text): (&str, &str)| {
        let owed = 100 - hex(text).len();
        row(format!("U08 {id}"), ECHO, begun(text), [], End::Fails(UTF8, owed))
    };
    let mut rows: Vec<Row> = early.into_iter().map(fails).collect();
    for text in ["ed 9f", "e0 a0", "f4 8f", "f0 90", "ce"] {
        rows.push(row(format!("U08 {text} may become text yet"), ECHO, begun(text), [], Waits));
    }
    rows.push(row("U08 at a fragment's start", ECHO, hex("01 81 M0 f4 00 e4 M0 90"), [], End::Fails(UTF8, 99)));
    rows.push(row("U06 a last empty fragment", ECHO, hex("01 81 M0 ce 80 80 M0"), [], End::Fails(UTF8, 0)));
    rows
}

#[test]
fn closes() {
    run(&[close_rows(), close_code_rows()]);
}

/// §5.5.1, §7: a reply repeats the code without a reason, an empty close is answered empty, and nothing follows.
#[rustfmt::skip]
fn close_rows() -> Vec<Row> {
    let reason = "x".repeat(123);
    vec![
        row("C01 on the chat", CHAT, hex("88 82 M0 03 e8"), hex("88 02 03 e8"), Over),
        echo("C04 with a reason of 123", &format!("88 fd M0 03 e8 '{reason}'"), "88 02 03 e8", Over),
        fails("C04 with a reason of 124", &format!("88 fe 00 7e M0 03 e8 '{reason}x'"), CONTROL_LENGTH),
        echo("C04 a reason cut in a character", "88 83 M0 03 e8 c3", "", End::FailsClosed(CLOSE_REASON)),
        echo("C11 garbage behind it", "88 82 M0 03 e8 ff ff ff ff ff ff", "88 02 03 e8", Over),
        echo("C11 before it", "81 81 M0 'a' 89 81 M0 'b' 88 80 M0", "81 01 'a' 8a 01 'b' 88 00", Over),
    ]
}

/// C06–C10: each edge of the ranges of §7.4 and of the registry.
fn close_code_rows() -> Vec<Row> {
    let good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
    let bad = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535];
    let close = |code: u16| masked(0x88, &code.to_be_bytes());
    let good =
        good.map(|code| row(format!("C08 {code}"), ECHO, close(code), unmasked(0x88, &code.to_be_bytes()), Over));
    let bad = bad.map(|code| row(format!("C06 {code}"), ECHO, close(code), [], End::Fails(CLOSE_CODE, 0)));
    good.into_iter().chain(bad).collect()
}

#[test]
fn pings() {
    run(&[ping_rows()]);
}

/// §5.5.2, §5.5.3: every ping is answered with its payload, in order with what was sent before it.
fn ping_rows() -> Vec<Row> {
    let longest: Vec<u8> = (0..125).collect();
    let ten = |frame: fn(u8, &[u8]) -> Vec<u8>, first| (0..10).flat_map(|i| frame(first, &[i; 3])).collect::<Vec<u8>>();
    vec![
        row("P01 on the chat", CHAT, hex("89 82 M0 'hi'"), hex("8a 02 'hi'"), Open),
        row("P03 of 125 bytes", ECHO, masked(0x89, &longest), unmasked(0x8a, &longest), Open),
        fails("P02 of 2^63 - 1 bytes", "89 ff 7f ff ff ff ff ff ff ff", CONTROL_LENGTH),
        row("P05 ten of them", ECHO, ten(masked, 0x89), ten(unmasked, 0x8a), Open),
        echo("P05 between messages", "81 81 M0 'a' 89 81 M0 'b' 81 81 M0 'c'", "81 01 'a' 8a 01 'b' 81 01 'c'", Open),
        echo("P06 an empty pong", "8a 80 M0", "", Open),
    ]
}

/// H03 and F01 in one: what comes behind the head is judged like everything else.
#[test]
fn a_broken_frame_behind_the_head() {
    let mut server = Watched::start(&[]);
    let mut client = server.connect();
    client.send(&handshake().target(ECHO).followed_by(hex("81 7f")).bytes());
    assert_eq!(Response::parse(client.read_head().as_bytes()).status, 101);
    failed(&mut client, MASK, 0);
    server.still_chats();
    server.finish(&[]);
}

/// F17: a header of 14 bytes in two parts, cut at each place, with a ping of another client answered in between.
#[test]
fn a_header_in_two_parts() {
    let mut server = Watched::start(&[]);
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(65536).collect();
    let mut frame = hex("81 ff 00 00 00 00 00 01 00 00 01 02 03 04");
    frame.extend(text.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    let mut client = server.upgrade(ECHO);
    for cut in 1..=14 {
        client.send(&frame[..cut]);
        server.quiet();
        assert_silent(&client);
        client.send(&frame[cut..]);
        assert!(client.read_frame() == Frame { first: 0x81, payload: text.clone() }, "cut at {cut}");
    }
    server.finish(&[]);
}

/// F21: two messages and a half bring two echoes now, and one when the rest is there.
#[test]
fn two_frames_and_a_half() {
    let mut server = Watched::start(&[]);
    let mut client = server.upgrade(ECHO);
    client.send(&hex("81 81 M0 'a' 82 81 M0 'b' 81 82 M0 'c'"));
    assert_eq!(client.read_exact(6), hex("81 01 'a' 82 01 'b'"));
    server.quiet();
    assert_silent(&client);
    client.send(b"d");
    assert_eq!(client.read_text(), "cd");
    server.finish(&[]);
}

/// F22: any legal stream, cut anywhere, brings the same frames back.
#[test]
fn any_legal_stream_cut_anywhere() {
    let mut server = Watched::start(&[]);
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (sent, back) = legal_stream(&mut random);
        let mut client = server.upgrade(ECHO);
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(300)));
            client.send(piece);
            if random.bool() {
                server.barrier();
            }
            rest = after;
        }
        assert!(client.read_exact(back.len()) == back, "seed {seed}");
        still_answers(&mut client);
    }
    server.finish(&[]);
}

/// Ten messages in up to five fragments each, with pings and pongs anywhere between them; and what `/echo` answers.
fn legal_stream(random: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut back) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let text: String = (0..random.usize(0..200)).map(|_| random.char('\u{20}'..'\u{10ffff}')).collect();
        let opcode = random.u8(1..=2);
        let mut payload = text.as_bytes();
        let fragments = random.usize(1..=5);
        for i in 0..fragments {
            let len = if i + 1 == fragments { payload.len() } else { random.usize(0..=payload.len()) };
            let (part, after) = payload.split_at(len);
            let fin = if i + 1 == fragments { 0x80 } else { 0 };
            sent.extend(keyed(random, fin | if i == 0 { opcode } else { 0 }, part));
            payload = after;
            if i + 1 < fragments && random.bool() {
                let ping: Vec<u8> = (0..random.usize(0..=125)).map(|_| random.u8(..)).collect();
                sent.extend(keyed(random, 0x89, &ping));
                sent.extend(keyed(random, 0x8a, &ping));
                back.extend(unmasked(0x8a, &ping));
            }
        }
        back.extend(unmasked(0x80 | opcode, text.as_bytes()));
    }
    (sent, back)
}

/// A client frame with a masking key of chance.
fn keyed(random: &mut fastrand::Rng, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(first, payload);
    let key: [u8; 4] = random.u32(..).to_be_bytes();
    let start = frame.len() - payload.len();
    frame[start - 4..start].copy_from_slice(&key);
    frame[start..].iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    frame
}

/// F23: random bytes end in a close for a broken rule, or in the end of the stream when ours ends.
#[test]
fn random_bytes() {
    let mut server = Watched::start(&[]);
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let noise: Vec<u8> = (0..random.usize(1..600)).map(|_| random.u8(..)).collect();
        let mut client = upgrade(&server, if random.bool() { ECHO } else { CHAT });
        client.try_send(&noise);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let answer = client.read_to_end();
        let (frames, rest) = whole_frames(&answer);
        assert_eq!(rest, b"", "seed {seed}: whole frames");
        let code = frames.last().filter(|frame| frame.opcode() == 8).map(|frame| frame.close().0);
        assert!(matches!(code, None | Some(1002 | 1003 | 1007 | 1009)), "seed {seed}: {answer:02x?}");
        if noise[0] & 0x70 != 0 {
            assert_eq!(code, Some(1002), "seed {seed} begins with an RSV bit");
        }
    }
    server.still_chats();
    server.finish(&[]);
}

/// G15: who hangs up in the middle of a message has said nothing.
#[test]
fn a_disconnect_in_the_middle_of_a_message() {
    let server = Watched::start(&[]);
    let mut listener = upgrade(&server, CHAT);
    let event = br#"{"event":"message","data":{"text":"half"}}"#;
    for cut in 1..event.len() {
        let mut client = upgrade(&server, CHAT);
        assert_eq!(listener.read_json()["event"], "joined");
        let [first, rest] = [&event[..cut], &event[cut..]];
        client.send(&masked(0x01, first));
        client.send(&masked(0x80, rest)[..6 + rest.len() - 1]);
        drop(client);
        assert_eq!(listener.read_json()["event"], "left", "and nothing said, cut at {cut}");
    }
    server.finish(&[]);
}
