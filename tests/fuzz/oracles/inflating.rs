//! Checks that inflating a message gives the same result however reads split the stream, and that flate2 inflates it to
//! the same bytes. The fuzz input's first byte selects whether the rest is compressed data or a payload to compress.
//! The second byte selects how to split the message into frames, the third how to split the stream into reads.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use wirechat::tools::poke::case::encode_masked_frame;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol, State};

use super::cuts;
use super::utf8::receive;

const LIMIT: usize = 5000;
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

pub fn check(data: &[u8]) {
    let &[choice, fragment_cuts, read_cuts, ref rest @ ..] = data else { return };
    let limits = Limits { message: LIMIT, fragments: 1000, accepts_binary: true, deflates: true };
    let payload = if choice & 1 == 0 { rest.to_vec() } else { compress(rest, choice >> 4) };
    let opcode = if choice & 2 == 0 { 2 } else { 1 };
    let (mut stream, mut at, lens) = (Vec::new(), 0, cuts(fragment_cuts, payload.len()));
    for (index, len) in lens.iter().enumerate() {
        let first = if index == 0 { 0x40 | opcode } else { 0 } | if index + 1 == lens.len() { 0x80 } else { 0 };
        stream.extend(encode_masked_frame(first, payload[at..at + len].to_vec(), [choice, 1, 2, 3]));
        at += len;
    }
    let mut protocol = Protocol::new(limits);
    let (events, output) = receive(&mut protocol, &stream, 0);
    for cuts in [1, read_cuts] {
        let mut again = Protocol::new(limits);
        let (others, _) = receive(&mut again, &stream, cuts);
        assert_eq!((others, again.state()), (events.clone(), protocol.state()), "cut by {cuts}");
        assert!(again.buffered_bytes() <= 2 * LIMIT + (64 << 10), "memory is bounded");
    }
    assert!(protocol.state() == State::Open || output.first() == Some(&0x88), "a failure sends a Close");
    compare(&stream, limits, &payload);
    if choice & 1 == 1 && opcode == 2 && rest.len() <= LIMIT && !lens.is_empty() && lens.len() <= 1000 {
        assert_eq!(events, [format!("{:?}", Event::Message(Message::Binary(rest.into())))]);
    }
}

fn compress(payload: &[u8], level: u8) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(u32::from(level % 10)), false);
    let mut out = Vec::with_capacity(payload.len() * 2 + 1000);
    compress.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    assert!(out.ends_with(&TAIL), "the buffer is large enough");
    out.truncate(out.len() - TAIL.len());
    out
}

/// Checks that flate2 inflates an accepted message to the same bytes as the server does. If flate2 stops early, at a
/// final DEFLATE block, its output must be a prefix of the server's output.
fn compare(stream: &[u8], limits: Limits, payload: &[u8]) {
    let (mut stream, mut protocol) = (stream.to_vec(), Protocol::new(limits));
    let mut input = &mut stream[..];
    let ours = match protocol.receive(&mut input) {
        Some(Event::Message(Message::Text(text))) => text.into_owned().into_bytes(),
        Some(Event::Message(Message::Binary(bytes))) => bytes.into_owned(),
        _ => return,
    };
    let (mut decompress, mut theirs) = (Decompress::new(false), Vec::with_capacity(2 * LIMIT));
    let status = decompress.decompress_vec(&[payload, &TAIL].concat(), &mut theirs, FlushDecompress::Sync);
    match status.expect("a valid stream") {
        Status::StreamEnd => assert!(ours.starts_with(&theirs)),
        _ => assert_eq!(ours, theirs),
    }
}
