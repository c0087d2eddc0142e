//! Sends frames that a hostile client could send, and checks the server's replies (RFC 6455 §5, §7, §8.1).
//!
//! The cases of `wirechat poke` run here too. The tables add cases that are too numerous for `poke`: boundary
//! lengths, close codes, all opcodes, the order of the rules, and the first byte at which the server can check a
//! rule. The expected replies come from the RFC and PROTOCOL.md, not from the code. Each case runs twice: the client
//! sends its bytes once in one write and once in small pieces. After each run, the server must still serve other
//! clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};

use support::http::{Response, handshake};
use support::table::{Cut, each_row, hex};
use support::watched::WitnessedServer;
use support::{Frame, RawClient, masked, whole_frames};
use wirechat::tools::poke::case::{Case, End as CaseEnd, Opening, Reply, Requirement};
use wirechat::tools::poke::catalogue;
use wirechat::ws::close::ProtocolError;

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token&username=bot&room=general";

struct Row {
    id: String,
    at: &'static str,
    sent: Vec<u8>,
    /// The server's expected output, byte for byte. Afterwards, the connection must be in the state `end`.
    reply: Vec<u8>,
    end: End,
}

/// The expected state of the connection after the reply.
enum End {
    /// The connection stays open: the server replies to a Ping.
    Open,
    /// The server waits for more bytes from the client and sends nothing further.
    Waits,
    /// After replying to the client's Close, the server closes the TCP connection before the client does (§7.1.1).
    Over,
    /// The client broke this rule, so the server fails the connection. The `usize` is the number of bytes that the
    /// client still has to send to complete its last frame.
    Fails(Rule, usize),
    /// The client's Close broke this rule, so the server fails the connection. The client sends nothing after its
    /// Close.
    FailsClosed(Rule),
}

use End::{Open, Over, Waits};

/// The Close with which the server must report a broken rule. The close reason must contain one of `sections` (if there
/// are any) and one of `words`.
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
const MINIMAL_LENGTH: Rule = rule(1002, &["§5.2"], &["minimal", "shortest"]);
const TOP_BIT: Rule = rule(1002, &["§5.2"], &["most significant", "top bit", "highest bit", "63"]);
const FRAGMENT_ORDER: Rule = rule(1002, &["§5.4"], &["continu", "fragment", "message"]);
const BINARY: Rule = rule(1003, &[], &["binary", "text"]);
const SIZE: Rule = rule(1009, &[], &["limit", "large", "big", "long"]);
const FRAGMENTS: Rule = rule(1008, &[], &["fragments"]);
const UTF8: Rule = rule(1007, &["§8.1", "§5.6"], &["utf-8"]);
const CLOSE_PAYLOAD: Rule = rule(1002, &["§5.5.1"], &["close"]);
const CLOSE_CODE: Rule = rule(1002, &["§7.4"], &["code"]);
const CLOSE_REASON: Rule = rule(1007, &["§5.5.1", "§8.1", "§7.1.6"], &["utf-8"]);

fn row(id: impl Into<String>, at: &'static str, sent: impl AsRef<[u8]>, reply: impl AsRef<[u8]>, end: End) -> Row {
    Row { id: id.into(), at, sent: sent.as_ref().to_vec(), reply: reply.as_ref().to_vec(), end }
}

/// Creates a test case for `/echo`: the client sends `sent`, and the server must send `reply`. Both use the notation of
/// [`hex`].
fn echo(id: &str, sent: &str, reply: &str, end: End) -> Row {
    row(id, ECHO, hex(sent), hex(reply), end)
}

/// A row for `/echo`: `sent` breaks `rule`, and the server sends nothing before its Close.
fn fails(id: impl Into<String>, sent: &str, rule: Rule) -> Row {
    row(id, ECHO, hex(sent), [], End::Fails(rule, 0))
}

/// Like [`fails`], but for the chat endpoint. `missing_len` is the number of bytes missing from the last frame.
fn chat_fails(id: impl Into<String>, sent: &str, rule: Rule, missing_len: usize) -> Row {
    row(id, CHAT, hex(sent), [], End::Fails(rule, missing_len))
}

/// Encodes a server frame: unmasked, with the length in its shortest form.
fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(first, payload);
    frame[1] &= 0x7f;
    let key = frame.len() - payload.len() - 4;
    frame.drain(key..key + 4);
    frame
}

fn upgrade(server: &WitnessedServer, at: &str) -> RawClient {
    let mut client = server.upgrade(at);
    if !at.starts_with(ECHO) {
        client.read_event("welcome");
    }
    client
}

fn play(server: &mut WitnessedServer, row: &Row, cut: Cut) {
    // Each row has its own room, because the client of the previous row may not have left its room yet.
    static NEXT_ROOM: AtomicU32 = AtomicU32::new(0);
    let room = format!("room={}", NEXT_ROOM.fetch_add(1, Ordering::Relaxed));
    let mut client = upgrade(server, &row.at.replace("room=general", &room));
    server.send(&mut client, &row.sent, cut);
    let reply = client.read_exact(row.reply.len());
    assert!(reply == row.reply, "came back: {:02x?}\nexpected: {:02x?}", start(&reply), start(&row.reply));
    match &row.end {
        Open => assert_open(&mut client),
        Waits => {
            server.wait_for_replies();
            assert_silent(&client);
        }
        Over => client.expect_end(),
        End::Fails(rule, missing_len) => assert_failed(&mut client, *rule, *missing_len),
        End::FailsClosed(rule) => {
            expect_close(&mut client, *rule);
            client.expect_end();
        }
    }
    server.check_chat();
}

/// Returns at most the first 200 bytes, to keep an error message short.
fn start(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(200)]
}

fn assert_open(client: &mut RawClient) {
    client.send(&masked(0x89, b"still there?"));
    assert_eq!(client.read_frame(), Frame { first: 0x8a, payload: b"still there?".to_vec() });
}

/// Checks that the client has no unread bytes. Call [`WitnessedServer::wait_for_replies`] first, so that no reply is
/// still in flight.
fn assert_silent(client: &RawClient) {
    client.stream.set_nonblocking(true).unwrap();
    let seen = client.stream.peek(&mut [0; 16]);
    client.stream.set_nonblocking(false).unwrap();
    let kind = seen.as_ref().map_err(std::io::Error::kind);
    assert_eq!(kind, Err(std::io::ErrorKind::WouldBlock), "the server waits and sends nothing");
}

/// Checks that the server sends a Close for `rule` and nothing else. After codes other than 1002 and 1009, the frame
/// boundaries are still known, so the client sends more frames, which the server must ignore.
fn assert_failed(client: &mut RawClient, rule: Rule, missing_len: usize) {
    let code = expect_close(client, rule);
    if !matches!(code, 1002 | 1009) {
        client.send(&vec![0; missing_len]);
        client.send(&masked(0x89, b"a ping"));
        client.send(&masked(0x81, br#"{"event":"ping"}"#));
        client.send(&masked(0x88, &code.to_be_bytes()));
    }
    assert_eq!(client.read_to_clean_end(), b"", "nothing follows the Close");
}

/// Checks that the next frame is a Close with the code of `rule` and a reason that explains `rule`. Returns the code.
fn expect_close(client: &mut RawClient, rule: Rule) -> u16 {
    let (code, reason) = client.read_frame().close();
    assert_eq!(code, rule.code, "{reason}");
    assert!(rule.sections.is_empty() || rule.sections.iter().any(|s| reason.contains(s)), "no section: {reason:?}");
    let lower = reason.to_lowercase();
    assert!(rule.words.iter().any(|word| lower.contains(word)), "{reason:?} has none of {:?}", rule.words);
    code
}

fn run(tables: &[Vec<Row>]) {
    let mut server = WitnessedServer::start(&[]);
    let rows = |cut: &Cut| tables.iter().flatten().map(|row| (row, *cut)).collect::<Vec<_>>();
    let rows: Vec<(&Row, Cut)> = Cut::BOTH.iter().flat_map(rows).collect();
    each_row(&rows, |(row, cut)| format!("{} ({cut:?})", row.id), |(row, cut)| play(&mut server, row, *cut));
    server.finish(&[]);
}

/// Returns the rule that an error reports. The `match` is exhaustive, so a new error without a rule does not
/// compile.
fn rule_of(error: ProtocolError) -> Rule {
    match error {
        ProtocolError::ReservedBits => RSV,
        ProtocolError::ReservedOpcode(_) => OPCODE,
        ProtocolError::FragmentedControl => CONTROL_FIN,
        ProtocolError::ControlTooLong => CONTROL_LENGTH,
        ProtocolError::Unmasked => MASK,
        ProtocolError::LengthNotMinimal => MINIMAL_LENGTH,
        ProtocolError::LengthTopBit => TOP_BIT,
        ProtocolError::UnexpectedContinuation | ProtocolError::ExpectedContinuation => FRAGMENT_ORDER,
        ProtocolError::UnsupportedData => BINARY,
        ProtocolError::MessageTooBig => SIZE,
        ProtocolError::TooManyFragments => FRAGMENTS,
        ProtocolError::TextNotUtf8 => UTF8,
        ProtocolError::ClosePayloadOfOneByte => CLOSE_PAYLOAD,
        ProtocolError::InvalidCloseCode(_) => CLOSE_CODE,
        ProtocolError::CloseReasonNotUtf8 => CLOSE_REASON,
        ProtocolError::MisplacedRsv1 | ProtocolError::InvalidDeflate => unreachable!("compression is not negotiated"),
    }
}

/// Runs the `wirechat poke` cases in which the client completes a valid handshake and then only sends bytes. Unlike
/// `poke`, this test parses the replies without the server's code, and checks the wording of close reasons.
#[test]
fn the_catalogue() {
    let rows: Vec<Row> = catalogue::all_cases().filter_map(row_of).collect();
    assert!(rows.len() >= 60, "{} cases", rows.len());
    run(&[rows]);
}

fn row_of(case: &Case) -> Option<Row> {
    let sent = match case.opening {
        Opening::Valid => case.bytes(&mut || [0; 4])?,
        Opening::Edited(_) | Opening::Deflate(_) | Opening::Takeover(_) | Opening::Skipped => return None,
    };
    let mut reply: Vec<u8> = case.replies.iter().flat_map(frame_of).collect();
    let end = match (case.end, case.error) {
        (_, Some(ProtocolError::CloseReasonNotUtf8)) => End::FailsClosed(CLOSE_REASON),
        (_, Some(error)) => End::Fails(rule_of(error), missing_len(&sent)),
        (CaseEnd::Open, None) => Open,
        (CaseEnd::Closes([1005]), None) => {
            reply.extend(unmasked(0x88, b""));
            Over
        }
        (CaseEnd::Closes([code]), None) => {
            reply.extend(unmasked(0x88, &code.to_be_bytes()));
            Over
        }
        _ => return None,
    };
    let at = if case.needs == Requirement::WirechatChat { CHAT } else { ECHO };
    Some(row(case.name, at, sent, reply, end))
}

fn frame_of(reply: &Reply) -> Vec<u8> {
    let letters = |len| (b'a'..=b'z').cycle().take(len).collect::<Vec<u8>>();
    match reply {
        Reply::Text(bytes) => unmasked(0x81, &hex(bytes)),
        Reply::Binary(bytes) => unmasked(0x82, &hex(bytes)),
        Reply::Letters(opcode, len) => unmasked(0x80 | opcode, &letters(*len)),
        Reply::Pong(bytes) | Reply::OptionalPong(bytes) => unmasked(0x8a, &hex(bytes)),
    }
}

/// Returns how many bytes are missing from the incomplete last frame in `sent`. Supports only 7-bit payload lengths:
/// returns 0 if it finds an extended length.
fn missing_len(mut sent: &[u8]) -> usize {
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

/// The server unmasks each frame with that frame's masking key, and fails the connection on an unmasked frame, a binary
/// frame on the chat endpoint, or a length that is not in the shortest form (§5.1–§5.3).
#[rustfmt::skip]
fn frame_rows() -> Vec<Row> {
    vec![
        echo("another key for each frame", "81 82 01 02 03 04 69 6b 82 82 ff ff ff ff 97 96", "81 02 'hi' 82 02 'hi'", Open),
        echo("two frames and a half", "81 81 M0 'a' 81 81 M0 'b' 81 82 M0 'c'", "81 01 'a' 81 01 'b'", Waits),
        fails("not masked, empty", "81 00", MASK),
        fails("not masked, a close", "88 02 03 e8", MASK),
        chat_fails("not masked, on the chat", "81 05 'Hello'", MASK, 0),
        echo("not masked, after a good frame", "81 82 M0 'ok' 81 02 'no'", "81 02 'ok'", End::Fails(MASK, 0)),
        chat_fails("empty binary on the chat", "82 80 M0", BINARY, 0),
        chat_fails("a binary fragment on the chat", "02 81 M0 'a'", BINARY, 0),
        fails("125 in the 16-bit form", "81 fe 00 7d", MINIMAL_LENGTH),
        fails("0 in the 16-bit form", "81 fe 00 00 M0", MINIMAL_LENGTH),
        fails("65535 in the 64-bit form", "81 ff 00 00 00 00 00 00 ff ff", MINIMAL_LENGTH),
        fails("0 in the 64-bit form", "82 ff 00 00 00 00 00 00 00 00 M0", MINIMAL_LENGTH),
        fails("126 in the 64-bit form", "82 ff 00 00 00 00 00 00 00 7e M0", MINIMAL_LENGTH),
    ]
}

/// Messages with lengths around the bounds of the three length forms (7, 16 and 64 bits). `/echo` must send each
/// message back with the length in its shortest form.
fn length_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for len in [0, 1, 125, 126, 127, 128, 996, 997, 65535, 65536, 65537] {
        let text: Vec<u8> = (b'a'..=b'z').cycle().take(len).collect();
        let binary: Vec<u8> = (0..=255).cycle().take(len).collect();
        rows.push(row(format!("text of {len}"), ECHO, masked(0x81, &text), unmasked(0x81, &text), Open));
        rows.push(row(format!("binary of {len}"), ECHO, masked(0x82, &binary), unmasked(0x82, &binary), Open));
    }
    rows
}

/// Frame headers that announce messages at and above the size limit, which is 64 KiB on the chat endpoint and
/// 16 MiB on `/echo`. A header above the limit fails the connection.
#[rustfmt::skip]
fn size_rows() -> Vec<Row> {
    vec![
        fails("one over, on /echo, text", "81 ff 00 00 00 00 01 00 00 01", SIZE),
        fails("2^63 - 1", "82 ff 7f ff ff ff ff ff ff ff", SIZE),
        fails("one over in two fragments", "02 81 M0 'a' 80 ff 00 00 00 00 01 00 00 00", SIZE),
        row("at the limit, on /echo", ECHO, hex("82 ff 00 00 00 00 01 00 00 00"), [], Waits),
        row("at the limit, on the chat", CHAT, hex("81 ff 00 00 00 00 00 01 00 00"), [], Waits),
        row("a megabyte of spaces", CHAT, hex("81 ff 00 00 00 00 00 10 00 00"), [], End::Fails(SIZE, 0)),
    ]
}

/// Frames that set an RSV bit or use one of the ten reserved opcodes. The server must fail the connection on each of
/// these frames, unless a negotiated extension defines the bit or the opcode (§5.2).
fn opcode_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for rsv in 1..8 {
        for first in [0x81, 0x82, 0x01, 0x88, 0x89, 0x8a] {
            let first: u8 = first | rsv << 4;
            rows.push(fails(format!("RSV in {first:02x}"), &format!("{first:02x} 80 M0"), RSV));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        rows.push(fails(format!("8{opcode:x}, empty"), &format!("8{opcode:x} 80 M0"), OPCODE));
        rows.push(fails(format!("8{opcode:x}"), &format!("8{opcode:x} 82 M0 'hi'"), OPCODE));
        // The server must not reserve memory for the length that this header announces.
        let huge = format!("8{opcode:x} ff 40 00 00 00 00 00 00 00");
        rows.push(fails(format!("8{opcode:x}, 2^62 bytes"), &huge, OPCODE));
        rows.push(fails(format!("0{opcode:x}"), &format!("0{opcode:x} 80 M0"), OPCODE));
    }
    rows
}

#[test]
fn the_order_of_header_rules() {
    run(&[order_rows(), early_failure_rows()]);
}

/// If a frame breaks several rules, the server reports the rule that comes first in this order: RSV, opcode, control
/// rules (FIN, at most 125 bytes), mask bit, minimal length, top bit, fragment order, message type, size limit.
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
        fails("minimal length before fragment order", "80 fe 00 05", MINIMAL_LENGTH),
        chat_fails("minimal length before message type", "82 fe 00 05", MINIMAL_LENGTH, 0),
        fails("top bit before fragment order", "80 ff 80 00 00 00 00 00 00 00", TOP_BIT),
        chat_fails("top bit before message type", "82 ff 80 00 00 00 00 00 00 00", TOP_BIT, 0),
        fails("top bit before size", "82 ff 80 00 00 00 7f ff ff ff", TOP_BIT),
        chat_fails("fragment order before message type", "01 81 M0 'a' 82 81 M0 'b'", FRAGMENT_ORDER, 0),
        fails("fragment order before size", "80 ff 00 00 00 00 7f ff ff ff", FRAGMENT_ORDER),
        fails("fragment order before size, one open", "02 81 M0 'a' 82 ff 00 00 00 00 7f ff ff ff", FRAGMENT_ORDER),
        chat_fails("message type before size", "82 ff 00 00 00 00 00 01 00 01", BINARY, 4 + 65537),
    ]
}

/// The server checks the rules in the order of [`order_rows`], each as soon as the bytes that it needs have arrived.
#[rustfmt::skip]
fn early_failure_rows() -> Vec<Row> {
    vec![
        fails("RSV by the first byte", "c1", RSV),
        fails("opcode by the first byte", "83", OPCODE),
        fails("control FIN by the first byte", "09", CONTROL_FIN),
        fails("control length by the second byte", "89 fe", CONTROL_LENGTH),
        fails("mask by the second byte", "81 7f", MASK),
        fails("mask by the second byte, 16 bits", "81 7e", MASK),
        fails("minimal length by its last byte", "81 fe 00 7d", MINIMAL_LENGTH),
        fails("top bit by the third byte", "81 ff 80", TOP_BIT),
        fails("fragment order by the second byte", "80 85", FRAGMENT_ORDER),
        chat_fails("message type by the second byte", "82 85", BINARY, 4 + 5),
        fails("size before the masking key", "82 ff 00 00 00 00 01 00 00 01", SIZE),
        echo("the mask bit may still come", "80", "", Waits),
        echo("the length may still be minimal", "80 fe", "", Waits),
        echo("a valid first byte", "82", "", Waits),
        echo("a header without the end of its key", "81 85 00 00 00", "", Waits),
    ]
}

#[test]
fn fragments() {
    run(&[fragment_rows(), fragment_size_rows()]);
}

/// The server fails the connection on fragments in the wrong order, even if they are empty. In the right order, empty
/// fragments are valid (§5.4).
#[rustfmt::skip]
fn fragment_rows() -> Vec<Row> {
    vec![
        fails("an empty continuation of nothing", "80 80 M0", FRAGMENT_ORDER),
        echo("a continuation after an unfragmented message", "81 81 M0 'a' 80 81 M0 'b'", "81 01 'a'", End::Fails(FRAGMENT_ORDER, 0)),
        echo("a continuation after the last fragment", "01 81 M0 'a' 80 81 M0 'b' 80 81 M0 'c'", "81 02 'ab'", End::Fails(FRAGMENT_ORDER, 0)),
        fails("a first fragment in the middle", "01 81 M0 'a' 01 81 M0 'b'", FRAGMENT_ORDER),
        fails("a binary message in the middle", "01 81 M0 'a' 82 81 M0 'b'", FRAGMENT_ORDER),
        fails("a text message in a binary one", "02 81 M0 'a' 81 81 M0 'b'", FRAGMENT_ORDER),
        fails("a new message after an empty first fragment", "01 80 M0 81 80 M0", FRAGMENT_ORDER),
        fails("a fragmented pong", "0a 82 M0 'hi'", CONTROL_FIN),
        echo("empty fragments at both ends", "01 80 M0 00 81 M0 'a' 80 80 M0", "81 01 'a'", Open),
    ]
}

/// The chat's limit of 64 KiB applies to the total length of a message's fragments: one more byte fails the connection.
/// On `/echo`, the server replies to 1,000 Pings between two fragments.
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
        row("64 KiB in fragments", CHAT, &full, [], Waits),
        row("one byte over the limit, in fragments", CHAT, &over, [], End::Fails(SIZE, 0)),
        row("an empty fragment at the limit", CHAT, [full, hex("00 80 M0")].concat(), [], Waits),
        row("1,000 Pings between two fragments", ECHO, pinged, pongs, Open),
    ]
}

#[test]
fn utf8() {
    run(&[utf8_rows(), bad_utf8_rows(), early_utf8_failure_rows()]);
}

/// Valid text messages, and a binary message that is not UTF-8. The server must echo each of them (§5.6, §8.1).
fn utf8_rows() -> Vec<Row> {
    let same = |id: &str, text: &[u8]| row(id, ECHO, masked(0x81, text), unmasked(0x81, text), Open);
    let kosme = hex("ce ba e1 bd b9 cf 83 ce bc ce b5");
    let mut dripped = hex("01 80 M0");
    kosme.iter().for_each(|byte| dripped.extend(masked(0x00, &[*byte])));
    dripped.extend(hex("80 80 M0"));
    vec![
        row("one byte per fragment", ECHO, dripped, unmasked(0x81, &kosme), Open),
        same("NUL", &[0]),
        same("the last of each length", &hex("7f df bf ef bf bf f4 8f bf bf")),
        same("the first of each length", &hex("00 c2 80 e0 a0 80 f0 90 80 80")),
        same("around the surrogates", &hex("ed 9f bf ee 80 80")),
        same("U+FFFE and U+FFFF", &hex("ef bf be ef bf bf")),
        same("U+1FFFE and U+10FFFF", &hex("f0 9f bf be f4 8f bf bf")),
        same("a byte order mark", &hex("ef bb bf 'a'")),
        row("binary may end inside a character", ECHO, hex("02 81 M0 ce 80 80 M0"), hex("82 01 ce"), Open),
    ]
}

/// Text messages that are not valid UTF-8, whole or in two fragments. The server must fail the connection (§8.1).
fn bad_utf8_rows() -> Vec<Row> {
    let bad = [
        ("a surrogate", "ed a0 80"),
        ("the last surrogate", "ed bf bf"),
        ("/ in two bytes", "c0 af"),
        ("/ in three bytes", "e0 80 af"),
        ("/ in four bytes", "f0 80 80 af"),
        ("NUL in two bytes", "c0 80"),
        ("a continuation byte alone", "80"),
        ("one continuation byte too many", "ce ba ba"),
        ("above U+10FFFF", "f4 90 80 80"),
        ("five bytes", "f8 88 80 80 80"),
        ("fe", "fe"),
        ("ff", "ff"),
        ("ends in a character of two", "'a' ce"),
        ("ends in a character of three", "'a' e1 bd"),
        ("ends in a character of four", "'a' f0 9f bf"),
        ("a letter in a character", "e1 bd 'a'"),
    ];
    let mut rows = Vec::new();
    for (id, text) in bad {
        let text = hex(text);
        let (first, last) = text.split_at(text.len() / 2);
        let halves = [masked(0x01, first), masked(0x80, last)].concat();
        // The client sends both fragments in full, even if the server fails the connection after the first. So the
        // client has no frame left to complete, and the number in `End::Fails` is 0.
        rows.push(row(id, ECHO, masked(0x81, &text), [], End::Fails(UTF8, 0)));
        rows.push(row(format!("{id}, in two fragments"), ECHO, halves, [], End::Fails(UTF8, 0)));
        rows.push(row(format!("{id}, on the chat"), CHAT, masked(0x81, &text), [], End::Fails(UTF8, 0)));
    }
    rows
}

/// As soon as a byte makes a text message invalid UTF-8, the server fails the connection, even if the frame is
/// incomplete. Most of these frames announce 100 bytes, but the client sends only the first few.
fn early_utf8_failure_rows() -> Vec<Row> {
    let early = [
        ("ff", "ff"),
        ("c0", "c0"),
        ("f5", "f5"),
        ("a continuation byte", "80"),
        ("a surrogate, by its second byte", "'a' ed a0"),
        ("an overlong one, by its second byte", "'a' e0 80"),
        ("an overlong one of four, by its second byte", "f0 8f"),
        ("above U+10FFFF, by its second byte", "'Hello' f4 90"),
        ("a character that is not finished", "ce ba e1 'a'"),
    ];
    let begun = |text: &str| [hex("81 e4 M0"), hex(text)].concat();
    let fails = |(id, text): (&str, &str)| {
        let missing_len = 100 - hex(text).len();
        row(id, ECHO, begun(text), [], End::Fails(UTF8, missing_len))
    };
    let mut rows: Vec<Row> = early.into_iter().map(fails).collect();
    for text in ["ed 9f", "e0 a0", "f4 8f", "f0 90", "ce"] {
        rows.push(row(format!("{text} may still become a character"), ECHO, begun(text), [], Waits));
    }
    rows.push(row("at the start of a fragment", ECHO, hex("01 81 M0 f4 00 e4 M0 90"), [], End::Fails(UTF8, 99)));
    rows.push(row("a last empty fragment", ECHO, hex("01 81 M0 ce 80 80 M0"), [], End::Fails(UTF8, 0)));
    rows
}

#[test]
fn close_frames() {
    run(&[close_rows(), close_code_rows()]);
}

/// The server's reply to a Close repeats the close code without the reason. The reply to an empty Close is an empty
/// Close (§5.5.1, §7).
#[rustfmt::skip]
fn close_rows() -> Vec<Row> {
    let reason = "x".repeat(123);
    vec![
        row("a Close on the chat", CHAT, hex("88 82 M0 03 e8"), hex("88 02 03 e8"), Over),
        echo("a reason of 123 bytes", &format!("88 fd M0 03 e8 '{reason}'"), "88 02 03 e8", Over),
        fails("a reason of 124 bytes", &format!("88 fe 00 7e M0 03 e8 '{reason}x'"), CONTROL_LENGTH),
        echo("a reason that ends inside a character", "88 83 M0 03 e8 c3", "", End::FailsClosed(CLOSE_REASON)),
        echo("garbage after a Close", "88 82 M0 03 e8 ff ff ff ff ff ff", "88 02 03 e8", Over),
        echo("a message and a Ping before a Close", "81 81 M0 'a' 89 81 M0 'b' 88 80 M0", "81 01 'a' 8a 01 'b' 88 00", Over),
    ]
}

/// Close codes at the bounds of each range in §7.4 and in the IANA registry. The server replies to a valid code with
/// the same code, and fails the connection on an invalid code.
fn close_code_rows() -> Vec<Row> {
    let good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
    let bad = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535];
    let close = |code: u16| masked(0x88, &code.to_be_bytes());
    let good =
        good.map(|code| row(format!("code {code}"), ECHO, close(code), unmasked(0x88, &code.to_be_bytes()), Over));
    let bad = bad.map(|code| row(format!("code {code}"), ECHO, close(code), [], End::Fails(CLOSE_CODE, 0)));
    good.into_iter().chain(bad).collect()
}

#[test]
fn pings() {
    run(&[ping_rows()]);
}

/// The server replies to every Ping with a Pong that has the same payload, after its replies to all earlier frames
/// (§5.5.2, §5.5.3).
fn ping_rows() -> Vec<Row> {
    let longest: Vec<u8> = (0..125).collect();
    let ten = |frame: fn(u8, &[u8]) -> Vec<u8>, first| (0..10).flat_map(|i| frame(first, &[i; 3])).collect::<Vec<u8>>();
    vec![
        row("a Ping on the chat", CHAT, hex("89 82 M0 'hi'"), hex("8a 02 'hi'"), Open),
        row("a Ping of 125 bytes", ECHO, masked(0x89, &longest), unmasked(0x8a, &longest), Open),
        fails("a Ping of 2^63 - 1 bytes", "89 ff 7f ff ff ff ff ff ff ff", CONTROL_LENGTH),
        row("ten Pings", ECHO, ten(masked, 0x89), ten(unmasked, 0x8a), Open),
        echo(
            "a Ping between messages",
            "81 81 M0 'a' 89 81 M0 'b' 81 81 M0 'c'",
            "81 01 'a' 8a 01 'b' 81 01 'c'",
            Open,
        ),
        echo("an empty Pong", "8a 80 M0", "", Open),
    ]
}

/// The server also checks a frame that arrives together with the head of the upgrade request.
#[test]
fn a_broken_frame_after_the_head() {
    let mut server = WitnessedServer::start(&[]);
    let mut client = server.connect();
    client.send(&handshake().target(ECHO).followed_by(hex("81 7f")).bytes());
    assert_eq!(Response::parse(client.read_head().as_bytes()).status, 101);
    assert_failed(&mut client, MASK, 0);
    server.check_chat();
    server.finish(&[]);
}

/// Splits a frame after each byte of its 14-byte header in turn, and sends the two parts separately. The server must
/// send nothing until the second part arrives.
#[test]
fn a_header_in_two_parts() {
    let mut server = WitnessedServer::start(&[]);
    let text: Vec<u8> = (b'a'..=b'z').cycle().take(65536).collect();
    let mut frame = hex("81 ff 00 00 00 00 00 01 00 00 01 02 03 04");
    frame.extend(text.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    let mut client = server.upgrade(ECHO);
    for cut in 1..=14 {
        client.send(&frame[..cut]);
        server.wait_for_replies();
        assert_silent(&client);
        client.send(&frame[cut..]);
        assert!(client.read_frame() == Frame { first: 0x81, payload: text.clone() }, "cut at {cut}");
    }
    server.finish(&[]);
}

/// The client sends two messages and half of a third. The server echoes the first two immediately, and the third when
/// the other half arrives.
#[test]
fn two_and_a_half_frames() {
    let mut server = WitnessedServer::start(&[]);
    let mut client = server.upgrade(ECHO);
    client.send(&hex("81 81 M0 'a' 82 81 M0 'b' 81 82 M0 'c'"));
    assert_eq!(client.read_exact(6), hex("81 01 'a' 82 01 'b'"));
    server.wait_for_replies();
    assert_silent(&client);
    client.send(b"d");
    assert_eq!(client.read_text(), "cd");
    server.finish(&[]);
}

/// The server's replies to a valid stream do not depend on where the client cuts the stream into writes.
#[test]
fn any_legal_stream_cut_anywhere() {
    let mut server = WitnessedServer::start(&[]);
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (sent, reply) = legal_stream(&mut random);
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
        assert!(client.read_exact(reply.len()) == reply, "seed {seed}");
        assert_open(&mut client);
    }
    server.finish(&[]);
}

/// Returns a stream of ten messages, in up to five fragments each, with Pings and Pongs in between. Also returns the
/// bytes that `/echo` must send in reply.
fn legal_stream(random: &mut fastrand::Rng) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut reply) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let text: String = (0..random.usize(0..200)).map(|_| random.char('\u{20}'..'\u{10ffff}')).collect();
        let opcode = random.u8(1..=2);
        let mut payload = text.as_bytes();
        let fragments = random.usize(1..=5);
        for i in 0..fragments {
            let len = if i + 1 == fragments { payload.len() } else { random.usize(0..=payload.len()) };
            let (part, after) = payload.split_at(len);
            let fin = if i + 1 == fragments { 0x80 } else { 0 };
            sent.extend(randomly_masked(random, fin | if i == 0 { opcode } else { 0 }, part));
            payload = after;
            if i + 1 < fragments && random.bool() {
                let ping: Vec<u8> = (0..random.usize(0..=125)).map(|_| random.u8(..)).collect();
                sent.extend(randomly_masked(random, 0x89, &ping));
                sent.extend(randomly_masked(random, 0x8a, &ping));
                reply.extend(unmasked(0x8a, &ping));
            }
        }
        reply.extend(unmasked(0x80 | opcode, text.as_bytes()));
    }
    (sent, reply)
}

/// Encodes a client frame with a random masking key.
fn randomly_masked(random: &mut fastrand::Rng, first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(first, payload);
    let key: [u8; 4] = random.u32(..).to_be_bytes();
    let start = frame.len() - payload.len();
    frame[start - 4..start].copy_from_slice(&key);
    frame[start..].iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    frame
}

/// After random bytes, the server either fails the connection with a Close, or ends its stream once the client has
/// ended its own.
#[test]
fn random_bytes() {
    let mut server = WitnessedServer::start(&[]);
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let noise: Vec<u8> = (0..random.usize(1..600)).map(|_| random.u8(..)).collect();
        let mut client = upgrade(&server, if random.bool() { ECHO } else { CHAT });
        client.try_send(&noise);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let reply = client.read_to_end();
        let (frames, rest) = whole_frames(&reply);
        assert_eq!(rest, b"", "seed {seed}: the reply ends inside a frame");
        let code = frames.last().filter(|frame| frame.opcode() == 8).map(|frame| frame.close().0);
        assert!(matches!(code, None | Some(1002 | 1003 | 1007 | 1009)), "seed {seed}: {reply:02x?}");
        if noise[0] & 0x70 != 0 {
            assert_eq!(code, Some(1002), "seed {seed} sets an RSV bit in its first frame");
        }
    }
    server.check_chat();
    server.finish(&[]);
}

/// If a client disconnects in the middle of a message, the server does not deliver the incomplete message.
#[test]
fn a_disconnect_in_the_middle_of_a_message() {
    let server = WitnessedServer::start(&[]);
    let mut listener = upgrade(&server, CHAT);
    let event = br#"{"event":"message","data":{"text":"half"}}"#;
    for cut in 1..event.len() {
        let mut client = upgrade(&server, CHAT);
        assert_eq!(listener.read_json()["event"], "joined");
        let [first, rest] = [&event[..cut], &event[cut..]];
        client.send(&masked(0x01, first));
        client.send(&masked(0x80, rest)[..6 + rest.len() - 1]);
        drop(client);
        assert_eq!(listener.read_json()["event"], "left", "no message before `left`, cut at {cut}");
    }
    server.finish(&[]);
}
