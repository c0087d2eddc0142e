//! Tests the examples of RFC 6455 §5.7, byte for byte. Received bytes arrive in one read, or split across two reads.
//!
//! The server sends unmasked frames: the output of `frame::append` must equal the unmasked single-frame examples. If a
//! client sends an unmasked frame, the server must fail the connection.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::borrow::Cow;

use wirechat::ws::close::ProtocolError;
use wirechat::ws::frame::{self, Opcode};
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol};

const UNMASKED_HELLO: &[u8] = b"\x81\x05\x48\x65\x6c\x6c\x6f";
const MASKED_HELLO: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
const UNMASKED_FRAGMENTS: [&[u8]; 2] = [b"\x01\x03\x48\x65\x6c", b"\x80\x02\x6c\x6f"];
const UNMASKED_PING: &[u8] = b"\x89\x05\x48\x65\x6c\x6c\x6f";
const MASKED_PONG: &[u8] = b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
const HEADER_FOR_256_BYTES: &[u8] = b"\x82\x7e\x01\x00";
const HEADER_FOR_64_KIB: &[u8] = b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00";

fn protocol() -> Protocol {
    Protocol::new(Limits { message: 1 << 20, fragments: 100, accepts_binary: true, deflates: false })
}

/// Receives `bytes` in two reads, split at `cut`. Returns the events as text, and the bytes of the server's replies.
fn receive(bytes: &[u8], cut: usize) -> (Vec<String>, Vec<u8>) {
    let mut protocol = protocol();
    let mut bytes = bytes.to_vec();
    let (left, right) = bytes.split_at_mut(cut);
    let mut events = Vec::new();
    for mut input in [left, right] {
        while let Some(event) = protocol.receive(&mut input) {
            events.push(format!("{event:?}"));
        }
    }
    (events, protocol.take_output())
}

fn expect(bytes: &[u8], event: &Event) {
    for cut in 0..=bytes.len() {
        assert_eq!(receive(bytes, cut).0, [format!("{event:?}")], "cut at {cut}");
    }
}

/// Builds a client frame from a server frame: sets the mask bit, and adds a masking key of zeros after the length.
fn masked(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = header.to_vec();
    frame[1] |= 0x80;
    [&frame, &[0; 4][..], payload].concat()
}

fn sent(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::append(&mut out, opcode, payload);
    out
}

#[test]
fn a_single_frame_unmasked_text_message() {
    assert_eq!(sent(Opcode::Text, b"Hello"), UNMASKED_HELLO);
    expect(UNMASKED_HELLO, &Event::Failed(ProtocolError::Unmasked));
}

#[test]
fn a_single_frame_masked_text_message() {
    expect(MASKED_HELLO, &Event::Message(Message::Text("Hello".into())));
}

#[test]
fn a_fragmented_unmasked_text_message() {
    expect(&UNMASKED_FRAGMENTS.concat(), &Event::Failed(ProtocolError::Unmasked));
    let fragments = UNMASKED_FRAGMENTS.map(|frame| masked(&frame[..2], &frame[2..]));
    expect(&fragments.concat(), &Event::Message(Message::Text("Hello".into())));
}

#[test]
fn an_unmasked_ping_request_and_a_masked_ping_response() {
    assert_eq!(sent(Opcode::Ping, b"Hello"), UNMASKED_PING);
    expect(MASKED_PONG, &Event::Pong(Cow::Borrowed(b"Hello")));
    // The server's Pong has the payload of the client's Ping (§5.5.3).
    let ping = masked(&UNMASKED_PING[..2], b"Hello");
    for cut in 0..=ping.len() {
        let (events, replies) = receive(&ping, cut);
        assert_eq!(events, [format!("{:?}", Event::Ping(Cow::Borrowed(b"Hello")))]);
        assert_eq!(replies, b"\x8a\x05Hello");
    }
}

#[test]
fn _256_bytes_in_a_single_unmasked_frame() {
    binary(HEADER_FOR_256_BYTES, 256);
}

#[test]
fn _64_kib_in_a_single_unmasked_frame() {
    binary(HEADER_FOR_64_KIB, 65536);
}

fn binary(header: &[u8], len: usize) {
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    assert_eq!(sent(Opcode::Binary, &payload), [header, &payload].concat());
    let frame = masked(header, &payload);
    let event = format!("{:?}", Event::Message(Message::Binary(payload.into())));
    // Split the frame at every byte of its header, but at only some bytes of its payload, which can be 64 KiB long.
    for cut in (0..header.len() + 8).chain((0..frame.len()).step_by(4097)).chain([frame.len()]) {
        assert_eq!(receive(&frame, cut).0, [event.as_str()], "cut at {cut}");
    }
}
