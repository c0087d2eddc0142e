//! Tests the tap and its text output: the trace of known frames is exactly as expected, the records do not depend on
//! where the stream is cut, and the tap agrees with `ws::protocol`.
//!
//! If a change alters a golden text, check that the new text is at least as readable.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::SystemTime;

use support::table::hex;
use wirechat::inspect::json;
use wirechat::inspect::text::{self, Detail, Style};
use wirechat::inspect::{Frame, RecordKind, Records, State, Tap};
use wirechat::ws::close::ProtocolError;
use wirechat::ws::frame::Role;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol};

const LIMITS: Limits = Limits { message: 70_000, fragments: 4, accepts_binary: true, deflates: false };

/// The time of every record in these tests.
fn noon() -> SystemTime {
    humantime::parse_rfc3339("2026-11-22T12:00:01.204Z").expect("a time")
}

/// Returns what `--trace` or `--trace=full` writes when the bytes in `passed` are sent on an open connection.
fn trace(limits: Limits, detail: Detail, passed: &[(Role, &[u8])]) -> String {
    let records = Records::default();
    let mut tap = Tap::open(7, records.clone());
    tap.set_limits(limits);
    for (from, bytes) in passed {
        tap.observe(*from, bytes, noon());
    }
    let mut out = String::new();
    records.take().iter().for_each(|record| text::write(record, Style { detail, uses_colour: false }, &mut out));
    out
}

/// Compares `text` with a golden text. If `WIRECHAT_BLESS` is set in the environment, writes `text` as the new golden
/// text instead, for review.
fn expect(golden: &str, name: &str, text: &str) {
    if std::env::var_os("WIRECHAT_BLESS").is_some() {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, text).expect("the golden text can be written");
    } else {
        assert!(
            golden == text,
            "tests/golden/{name} differs; the new text is:
{text}"
        );
    }
}

#[test]
fn the_trace_of_a_masked_text_frame_is_exact() {
    let hello = hex("81 85 37 fa 21 3d 7f 9f 4d 51 58");
    assert_eq!(
        trace(LIMITS, Detail::Full, &[(Role::Client, &hello)]),
        "\
2026-11-22T12:00:01.204Z  #7 → TEXT  fin mask=37fa213d len=5 (7-bit)  \"Hello\"                       §5.2 §5.3
  81          85             37 fa 21 3d   7f 9f 4d 51 58
  FIN opcode  MASK length=5  masking key   payload, masked
                                           48 65 6c 6c 6f   unmasked  \"Hello\"
"
    );
}

/// The example frames of §5.7. If the RFC does not show a payload, the payload consists of zeros.
#[test]
fn golden_example_frames_of_rfc_5_7() {
    let (short, long) = ([0; 256], [0; 65536]);
    let frames: [(Role, Vec<u8>); 8] = [
        (Role::Server, hex("81 05 'Hello'")),
        (Role::Client, hex("81 85 37 fa 21 3d 7f 9f 4d 51 58")),
        (Role::Server, hex("01 03 'Hel'")),
        (Role::Server, hex("80 02 'lo'")),
        (Role::Server, hex("89 05 'Hello'")),
        (Role::Client, hex("8a 85 37 fa 21 3d 7f 9f 4d 51 58")),
        (Role::Server, [&hex("82 7e 01 00")[..], &short].concat()),
        (Role::Server, [&hex("82 7f 00 00 00 00 00 01 00 00")[..], &long].concat()),
    ];
    let passed: Vec<_> = frames.iter().map(|(from, bytes)| (*from, &bytes[..])).collect();
    expect(include_str!("golden/examples.txt"), "examples.txt", &trace(LIMITS, Detail::Line, &passed));
    let full = trace(LIMITS, Detail::Full, &passed[..7]);
    expect(include_str!("golden/examples-full.txt"), "examples-full.txt", &full);
}

/// Traces one invalid frame for each rule, and bytes that are not a WebSocket frame.
#[test]
fn golden_one_failure_for_each_rule() {
    let text_only = Limits { accepts_binary: false, ..LIMITS };
    let deflates = Limits { deflates: true, ..LIMITS };
    let five = "01 80 M0 00 80 M0 00 80 M0 00 80 M0 00 80 M0";
    let rules: [(&str, Limits, ProtocolError); 20] = [
        ("c1 85 M0 'Hello'", LIMITS, ProtocolError::ReservedBits),
        ("b1 85 M0 'Hello'", LIMITS, ProtocolError::ReservedBits),
        ("83 85 M0 'Hello'", LIMITS, ProtocolError::ReservedOpcode(3)),
        ("09 80 M0", LIMITS, ProtocolError::FragmentedControl),
        ("89 fe 00 7e M0", LIMITS, ProtocolError::ControlTooLong),
        ("81 05 'Hello'", LIMITS, ProtocolError::Unmasked),
        ("81 fe 00 05 M0 'Hello'", LIMITS, ProtocolError::LengthNotMinimal),
        ("81 ff 00 00 00 00 00 00 ff ff M0", LIMITS, ProtocolError::LengthNotMinimal),
        ("82 ff 80 00 00 00 00 00 00 00 M0", LIMITS, ProtocolError::LengthTopBit),
        ("80 82 M0 'lo'", LIMITS, ProtocolError::UnexpectedContinuation),
        ("01 83 M0 'Hel' 81 82 M0 'lo'", LIMITS, ProtocolError::ExpectedContinuation),
        ("82 82 M0 'hi'", text_only, ProtocolError::UnsupportedData),
        ("81 ff 00 00 00 00 00 01 11 71 M0", LIMITS, ProtocolError::MessageTooBig),
        (five, LIMITS, ProtocolError::TooManyFragments),
        ("81 84 M0 'ab' ff 'c'", LIMITS, ProtocolError::TextNotUtf8),
        ("88 81 M0 03", LIMITS, ProtocolError::ClosePayloadOfOneByte),
        ("88 82 M0 03 ed", LIMITS, ProtocolError::InvalidCloseCode(1005)),
        ("88 84 M0 03 e8 c3 28", LIMITS, ProtocolError::CloseReasonNotUtf8),
        ("c9 80 M0", deflates, ProtocolError::MisplacedRsv1),
        ("c1 81 M0 07", deflates, ProtocolError::InvalidDeflate),
    ];
    let mut text = String::new();
    for (bytes, limits, rule) in rules {
        let bytes = hex(bytes);
        assert_eq!(find_protocol_error(limits, &bytes), Some(rule), "{bytes:02x?}");
        text += &format!("-- {rule:?}\n{}", trace(limits, Detail::Full, &[(Role::Client, &bytes)]));
    }
    for (name, from, bytes) in [
        ("a masked frame from a server", Role::Server, hex("81 85 37 fa 21 3d 7f 9f 4d 51 58")),
        ("HTTP in place of a frame", Role::Client, b"GET /?token=secret HTTP/1.1\r\n".to_vec()),
        ("TLS in place of a frame", Role::Client, hex("16 03 01 02 00 01 00 01 fc 03 03")),
        ("text that ends inside a character", Role::Client, hex("81 83 M0 'a' e2 82")),
    ] {
        text += &format!("-- {name}\n{}", trace(LIMITS, Detail::Full, &[(from, &bytes)]));
    }
    assert!(!text.contains("secret"), "the trace shows a token");
    expect(include_str!("golden/failures.txt"), "failures.txt", &text);
}

fn find_protocol_error(limits: Limits, bytes: &[u8]) -> Option<ProtocolError> {
    let (mut protocol, mut bytes) = (Protocol::new(limits), bytes.to_vec());
    let mut input = &mut bytes[..];
    while let Some(event) = protocol.receive(&mut input) {
        if let Event::Failed(error) = event {
            return Some(error);
        }
    }
    None
}

/// An item that both `Protocol` and `Tap` report when they parse a client's stream. The tests convert the reports of
/// both to this type, and compare them.
#[derive(Debug, PartialEq)]
enum StreamEvent {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    Failed(u16, &'static str),
}

fn events_from_protocol(stream: &[u8], cuts: &[usize]) -> Vec<StreamEvent> {
    let (mut protocol, mut seen) = (Protocol::new(LIMITS), Vec::new());
    for piece in pieces(stream, cuts) {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        while let Some(event) = protocol.receive(&mut input) {
            seen.push(match event {
                Event::Message(Message::Text(text)) => StreamEvent::Text(text.as_bytes().to_vec()),
                Event::Message(Message::Binary(bytes)) => StreamEvent::Binary(bytes.to_vec()),
                Event::Ping(payload) => StreamEvent::Ping(payload.to_vec()),
                Event::Pong(payload) => StreamEvent::Pong(payload.to_vec()),
                Event::Close(code, _) => StreamEvent::Close(code.map(|code| code.get())),
                Event::Failed(error) => StreamEvent::Failed(error.code().get(), error.section()),
            });
        }
    }
    truncate_after_end(seen)
}

/// Splits a client's stream at the offsets in `cuts`, passes the pieces to a [`Tap`], and returns the tap's records.
fn records(stream: &[u8], cuts: &[usize]) -> Vec<RecordKind> {
    let records = Records::default();
    let mut tap = Tap::open(1, records.clone());
    tap.set_limits(LIMITS);
    pieces(stream, cuts).for_each(|piece| tap.observe(Role::Client, piece, noon()));
    records.take().into_iter().map(|record| record.kind).collect()
}

/// Returns the messages and control frames that the tap reports for a client's stream. Includes a protocol error as
/// `StreamEvent::Failed`, but not the frame that caused it.
fn events_from_tap(stream: &[u8], cuts: &[usize]) -> Vec<StreamEvent> {
    let records = records(stream, cuts);
    let broken = records
        .iter()
        .find_map(|kind| if let RecordKind::Failure(failure) = kind { Some(failure.frame_number) } else { None });
    let (mut seen, mut message, mut first) = (Vec::new(), Vec::new(), 0);
    for kind in records {
        match kind {
            RecordKind::Failure(failure) => seen.push(StreamEvent::Failed(failure.code, failure.section)),
            RecordKind::Frame(frame) if Some(frame.number) != broken && frame.is_complete() => {
                seen.extend(assemble_event(&frame, &mut message, &mut first));
            }
            _ => {}
        }
    }
    truncate_after_end(seen)
}

fn assemble_event(frame: &Frame, message: &mut Vec<u8>, first: &mut u8) -> Option<StreamEvent> {
    let payload = frame.unmasked_payload();
    match frame.header.opcode() {
        0x8 => return Some(StreamEvent::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))),
        0x9 => return Some(StreamEvent::Ping(payload)),
        0xa => return Some(StreamEvent::Pong(payload)),
        0x0 => {}
        opcode => (*message, *first) = (Vec::new(), opcode),
    }
    message.extend(payload);
    let whole = frame.header.fin().then(|| std::mem::take(message))?;
    Some(if *first == 1 { StreamEvent::Text(whole) } else { StreamEvent::Binary(whole) })
}

/// Truncates the list after the first protocol error or Close: `Protocol` and `Tap` may parse the rest differently.
fn truncate_after_end(mut seen: Vec<StreamEvent>) -> Vec<StreamEvent> {
    if let Some(last) = seen.iter().position(|seen| matches!(seen, StreamEvent::Failed(..) | StreamEvent::Close(_))) {
        seen.truncate(last + 1);
    }
    seen
}

fn pieces<'s>(stream: &'s [u8], cuts: &[usize]) -> impl Iterator<Item = &'s [u8]> {
    let ends: Vec<usize> = cuts.iter().copied().chain([stream.len()]).collect();
    let starts: Vec<usize> = std::iter::once(0).chain(cuts.iter().copied()).collect();
    starts.into_iter().zip(ends).map(|(start, end)| &stream[start..end])
}

fn random_cuts(random: &mut fastrand::Rng, len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = (0..random.usize(0..6)).map(|_| random.usize(0..=len)).collect();
    cuts.sort_unstable();
    cuts
}

/// Generates a client frame that is nearly always valid.
fn random_frame(random: &mut fastrand::Rng, in_message: &mut bool) -> Vec<u8> {
    let strange = random.u32(0..200) == 0;
    let opcode = match random.u8(0..10) {
        0 => 0x9,
        1 => 0xa,
        2 if random.u8(0..20) == 0 => 0x8,
        _ if strange => random.u8(0..16),
        _ if *in_message => 0x0,
        3 => 0x2,
        _ => 0x1,
    };
    let fin = opcode >= 8 || random.u8(0..3) > 0;
    if opcode < 8 {
        *in_message = !fin;
    }
    let mut payload: Vec<u8> = match (opcode, random.u8(0..20)) {
        (0x8, _) => [&random.u16(995..1016).to_be_bytes()[..], b"bye"].concat(),
        (0x0..=0x2, 0) => vec![b'a'; random.usize(0..1000)],
        (_, 1) if strange => vec![0xff; 3],
        _ => "zß水🍌".bytes().take(random.choice([0, 1, 3, 6, 10]).unwrap_or(0)).collect(),
    };
    let (key, first) = (random.u32(..).to_be_bytes(), u8::from(fin) << 7 | opcode);
    let mut frame = vec![if strange && random.bool() { first | 0x40 } else { first }];
    match payload.len() {
        len if strange && random.bool() => frame.extend([0xfe, 0, len as u8]),
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => frame.extend([0xfe, (len >> 8) as u8, len as u8]),
    }
    wirechat::ws::mask::apply(&mut payload, key, 0);
    [&frame[..], &key, &payload].concat()
}

#[test]
fn on_a_million_random_frames_the_tap_agrees_with_the_protocol() {
    let (mut random, mut frames) = (fastrand::Rng::with_seed(6455), 0);
    while frames < 1_000_000 {
        let (mut stream, mut in_message, count) = (Vec::new(), false, random.usize(1..60));
        (0..count).for_each(|_| stream.extend(random_frame(&mut random, &mut in_message)));
        frames += count;
        let (ours, theirs) = (random_cuts(&mut random, stream.len()), random_cuts(&mut random, stream.len()));
        let (tap, protocol) = (events_from_tap(&stream, &ours), events_from_protocol(&stream, &theirs));
        assert_eq!(tap, protocol, "{stream:02x?} cut at {ours:?} and at {theirs:?}");
    }
}

/// The tap reports the same frames, however the stream is split into reads. Only each frame's list of reads may differ.
/// The test does not compare invalid frames, because the split determines how much of such a frame the tap reports.
#[test]
fn the_tap_reports_the_same_frames_wherever_the_stream_is_cut() {
    let mut random = fastrand::Rng::with_seed(57);
    let seen = |stream: &[u8], cuts: &[usize]| -> Vec<RecordKind> {
        let records = records(stream, cuts);
        let broken = records.iter().position(|kind| matches!(kind, RecordKind::Failure(_)));
        let valid = records.into_iter().take(broken.map_or(usize::MAX, |at| at - 1));
        valid.map(without_parts).collect()
    };
    for _ in 0..2_000 {
        let (mut stream, mut in_message) = (Vec::new(), false);
        (0..8).for_each(|_| stream.extend(random_frame(&mut random, &mut in_message)));
        let (whole, each) = (seen(&stream, &[]), (1..stream.len()).collect::<Vec<_>>());
        assert_eq!(seen(&stream, &each), whole, "byte by byte: {stream:02x?}");
        let cuts = random_cuts(&mut random, stream.len());
        assert_eq!(seen(&stream, &cuts), whole, "cut at {cuts:?}: {stream:02x?}");
    }
}

fn without_parts(kind: RecordKind) -> RecordKind {
    match kind {
        RecordKind::Frame(frame) => RecordKind::Frame(Frame { parts: Default::default(), ..frame }),
        other => other,
    }
}

#[test]
fn the_reads_of_a_frame_are_listed() {
    let stream = hex("89 80 M0 81 85 M0 'Hello' 8a 80 M0");
    let parts =
        |kind: &RecordKind| if let RecordKind::Frame(frame) = kind { frame.parts.listed.clone() } else { Vec::new() };
    let listed: Vec<_> = records(&stream, &[8, 15]).iter().map(parts).collect();
    assert_eq!(listed, [vec![(1, 6)], vec![(1, 2), (2, 7), (3, 2)], vec![(3, 6)]]);
}

const REQUEST: &[u8] =
    b"GET /?token=dev-token&username=a%0ab HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Traces a whole connection: a request in two reads with a frame right after it, a Ping, an unmasked client frame,
/// and the end of the connection.
#[test]
fn golden_a_connection_from_its_request_to_its_end() {
    let records = Records::default();
    let mut tap = Tap::new(7, records.clone());
    let early = [&REQUEST[40..], &hex("81 82 M0 'hi'")].concat();
    let close = [&hex("88 2f 03 ea")[..], "client frames must be masked (RFC 6455 §5.1)".as_bytes()].concat();
    let life: [(Role, &[u8]); 6] = [
        (Role::Client, &REQUEST[..40]),
        (Role::Client, &early),
        (Role::Server, RESPONSE),
        (Role::Server, &hex("81 02 'hi' 89 00")),
        (Role::Client, &hex("8a 80 M0 81 02 'no'")),
        (Role::Server, &close),
    ];
    life.iter().for_each(|(from, bytes)| tap.observe(*from, bytes, noon()));
    tap.finish("done", noon());
    let taken = records.take();
    for (name, golden, detail) in [
        ("life.txt", include_str!("golden/life.txt"), Detail::Line),
        ("life-full.txt", include_str!("golden/life-full.txt"), Detail::Full),
    ] {
        let mut text = String::new();
        taken.iter().for_each(|record| text::write(record, Style { detail, uses_colour: false }, &mut text));
        assert!(!text.contains("dev-token"), "the trace shows a token");
        expect(golden, name, &text);
    }
    let states = taken
        .iter()
        .filter_map(|record| if let RecordKind::State(change) = &record.kind { Some(change.to) } else { None });
    assert_eq!(states.collect::<Vec<_>>(), [State::Open, State::Closing, State::Closed]);
}

#[test]
fn a_terminal_adds_only_colours() {
    let hello = hex("c1 85 37 fa 21 3d 7f 9f 4d 51 58");
    let records = Records::default();
    Tap::open(7, records.clone()).observe(Role::Client, &hello, noon());
    let taken = records.take();
    let written = |uses_colour| {
        let mut text = String::new();
        taken.iter().for_each(|record| text::write(record, Style { detail: Detail::Full, uses_colour }, &mut text));
        text
    };
    let (plain, colored) = (written(false), written(true));
    assert!(!plain.contains('\x1b') && colored.contains('\x1b'));
    // A color escape sequence ends at its first `m`.
    let mut parts = colored.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    let stripped = parts.fold(first, |text, part| text + part.split_once('m').expect("a color").1);
    assert_eq!(stripped, plain);
}

/// The example in the documentation of `inspect::text` is real output.
#[test]
fn the_example_in_the_documentation_is_in_a_golden_text() {
    let source = include_str!("../src/inspect/text.rs");
    let doc = source.lines().map_while(|line| line.strip_prefix("//!"));
    let example = doc.skip_while(|line| !line.contains("```")).skip(1).take_while(|line| !line.contains("```"));
    let golden = include_str!("golden/examples-full.txt");
    let mut lines = 0;
    for line in example {
        assert!(golden.lines().any(|golden| golden == &line[1..]), "not in the golden text: {line}");
        lines += 1;
    }
    assert_eq!(lines, 4);
}

/// When a connection ends cleanly, its end record contains the reason that the server gave, both as text and as JSON.
#[test]
fn a_clean_end_has_a_cause() {
    let records = Records::default();
    let mut tap = Tap::open(7, records.clone());
    tap.observe(Role::Client, &hex("88 85 M0 03 e8 'bye'"), noon());
    tap.observe(Role::Server, &hex("88 02 03 e8"), noon());
    tap.finish("both Closes passed; the server ended TCP (§7.1.1)", noon());
    let end = records.take().pop().expect("the end");
    let mut text = String::new();
    text::write(&end, Style { detail: Detail::Line, uses_colour: false }, &mut text);
    assert_eq!(
        text,
        "2026-11-22T12:00:01.204Z  #7 = over, cleanly: the client sent the first Close (1000 \"bye\"); both Closes passed; \
         the server ended TCP (§7.1.1)\n"
    );
    let json = json::record_to_json(&end);
    assert_eq!(
        (&json["clean"], &json["how"]),
        (&true.into(), &"both Closes passed; the server ended TCP (§7.1.1)".into())
    );
}
