//! What a message costs on its way, without the kernel: `cargo bench`.
//!
//! One group a hop. Where a simpler way was given up for a faster one, both stand side by side, so that what counts is
//! a ratio of one run and not a time of one machine.

use std::hint::black_box;
use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mio::Token;
use wirechat::chat::access::Grant;
use wirechat::chat::dialect::Dialect;
use wirechat::chat::{Audience, Chat, Delivery, Newcomer, Now};
use wirechat::config::Config;
use wirechat::server::batch::Batches;
use wirechat::server::outbox::Outbox;
use wirechat::ws::frame::{self, FrameHeader, Opcode};
use wirechat::ws::mask;
use wirechat::ws::protocol::{Limits, Protocol};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const LIMITS: Limits = Limits { message: 1 << 24, fragments: 1 << 20, binary: true };
const TEXT: &str = r#"{"event":"message","data":{"text":"the quick brown fox jumps over the lazy dog, twice over"}}"#;

fn masked(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::append(&mut frame, Opcode::Text, payload);
    let header = frame.len() - payload.len();
    frame[1] |= 0x80;
    frame.splice(header..header, KEY);
    mask::apply(&mut frame[header + 4..], KEY, 0);
    frame
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    for (name, header) in [
        ("7-bit", &b"\x81\x85\x37\xfa\x21\x3d"[..]),
        ("64-bit", b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x37\xfa\x21\x3d"),
    ] {
        group.bench_function(name, |b| b.iter(|| FrameHeader::parse(black_box(header))));
    }
}

fn unmask(c: &mut Criterion) {
    for len in [102, 64 * 1024] {
        let mut group = c.benchmark_group(format!("unmask {len} bytes"));
        group.throughput(Throughput::Bytes(len as u64));
        let mut payload = vec![7; len];
        group.bench_function("by words", |b| b.iter(|| mask::apply(black_box(&mut payload), KEY, 1)));
        group.bench_function("by bytes", |b| {
            b.iter(|| {
                for (at, byte) in black_box(&mut payload).iter_mut().enumerate() {
                    *byte ^= KEY[(at + 1) % 4];
                }
            });
        });
    }
}

/// A whole message through the protocol: header, mask, UTF-8.
fn receive(c: &mut Criterion) {
    let texts = [("ascii", "the quick brown fox ".repeat(3200)), ("mixed", "zß水🍌".repeat(6400))];
    for (name, text) in texts {
        let mut group = c.benchmark_group(format!("receive 64 KB of {name} text"));
        group.throughput(Throughput::Bytes(text.len() as u64));
        for (pieces, size) in [("in one read", usize::MAX), ("in reads of 1000 bytes", 1000)] {
            let stream = masked(text.as_bytes());
            let run = |mut stream: Vec<u8>| {
                let mut protocol = Protocol::new(LIMITS);
                let size = size.min(stream.len());
                for mut input in stream.chunks_mut(size) {
                    black_box(protocol.receive(&mut input));
                }
            };
            group.bench_function(pieces, |b| b.iter_batched(|| stream.clone(), run, BatchSize::SmallInput));
        }
    }
    let stream = masked(TEXT.as_bytes());
    let run = |mut stream: Vec<u8>| {
        black_box(Protocol::new(LIMITS).receive(&mut &mut stream[..]));
    };
    c.bench_function("receive a small message", |b| b.iter_batched(|| stream.clone(), run, BatchSize::SmallInput));
}

fn encode(c: &mut Criterion) {
    let mut out = Vec::new();
    c.bench_function("encode a frame of 102 bytes", |b| {
        b.iter(|| {
            out.clear();
            frame::append(black_box(&mut out), Opcode::Text, black_box(&[b'x'; 102]));
        });
    });
}

fn now() -> Now {
    Now { time: SystemTime::UNIX_EPOCH, steady: Duration::ZERO }
}

/// A chat of one room, with as many members.
fn chat_of(members: usize) -> Chat {
    let mut chat = Chat::new(&Config::parse_from(["wirechat", "--rate-limit", "0"]));
    for number in 0..members {
        let newcomer = Newcomer {
            dialect: Dialect::Events,
            username: Rc::from(format!("user{number}")),
            room: "general".into(),
            grant: Grant::default(),
            client_id: None,
            resume: None,
            ticket: None,
        };
        chat.join(Token(number), newcomer, now());
    }
    chat
}

/// From a text to the outboxes of all members, and out of them: everything but the system calls.
fn fan_out(c: &mut Criterion) {
    for members in [1, 100, 1000] {
        let mut group = c.benchmark_group(format!("fan out to {members}"));
        group.throughput(Throughput::Elements(members as u64));
        let mut chat = chat_of(members);
        let mut outboxes: Vec<Outbox> = (0..members).map(|_| Outbox::default()).collect();
        let mut batches = Batches::default();
        group.bench_function("one message a turn", |b| {
            b.iter(|| {
                for delivery in chat.receive(Token(0), black_box(TEXT), now()) {
                    let Delivery::Tell { to: Audience::Room(room), notice } = delivery else { continue };
                    batches.append(room, chat.dialects(room), &notice);
                }
                while let Some(room) = batches.next_room() {
                    let Some(batch) = batches.take(room) else { continue };
                    let frames: Rc<[u8]> = Rc::from(batch.frames(Dialect::Events));
                    for (member, _) in chat.members(room) {
                        let outbox = &mut outboxes[member.0];
                        outbox.push_shared(Rc::clone(&frames));
                        outbox.flush(&mut io::sink()).expect("a sink takes everything");
                    }
                    batches.recycle(batch);
                }
            });
        });
    }
}

criterion_group!(benches, parse, unmask, receive, encode, fan_out);
criterion_main!(benches);
