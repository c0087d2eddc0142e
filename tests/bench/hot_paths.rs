//! What a message costs on its way, without the kernel: `cargo bench`.
//!
//! One group a hop. Where a simpler way was given up for a faster one, both stand side by side, so that what counts is
//! a ratio of one run and not a time of one machine.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mio::Token;
use wirechat::chat::access::Grant;
use wirechat::chat::dialect::Dialect;
use wirechat::chat::{Audience, Chat, Delivery, Newcomer, Now};
use wirechat::config::Config;
use wirechat::inspect::{Records, Tap};
use wirechat::server::batch::Batches;
use wirechat::server::connection::{Connection, Received};
use wirechat::server::outbox::Outbox;
use wirechat::server::watch::Watch;
use wirechat::ws::frame::{self, FrameHeader, Opcode, Role};
use wirechat::ws::mask;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol};

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
            username: format!("user{number}").into(),
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
                while let Some((room, batch)) = batches.take_next() {
                    let (frames, mut shared) = (batch.frames(Dialect::Events), None);
                    for (member, _) in chat.members(room) {
                        let sent = outboxes[member.0].send_shared(frames, &mut shared, &mut io::sink());
                        sent.expect("a sink takes everything");
                    }
                    batches.recycle(batch);
                }
            });
        });
    }
}

/// A connection of the server, and the client's end of it.
fn connection(watch: Option<Tap>) -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (stream, peer) = listener.accept().expect("the other end");
    client.set_nodelay(true).expect("a socket");
    stream.set_nonblocking(true).expect("a socket");
    let mut connection = Connection::new(mio::net::TcpStream::from_std(stream), peer, Instant::now());
    connection.watch = watch.map(|tap| Box::new(Watch::of(tap)));
    (connection, client)
}

/// A small message from the socket through the protocol and back, many times: what it takes in all.
fn echo(client: &mut TcpStream, frame: &[u8], mut serve: impl FnMut()) -> Duration {
    const MESSAGES: usize = 2_000;
    let mut back = vec![0; TEXT.len() + 2];
    let began = Instant::now();
    for _ in 0..MESSAGES {
        client.write_all(frame).expect("the server's end takes it");
        serve();
        client.read_exact(&mut back).expect("the echo");
    }
    began.elapsed()
}

/// What it costs that a connection can be watched, where nobody does, and where somebody does: ratios of rounds that take
/// turns, to a socket that is read and written by hand.
fn watch(_: &mut Criterion) {
    const ROUNDS: usize = 31;
    let (frame, mut scratch, mut protocol) = (masked(TEXT.as_bytes()), vec![0; 64 * 1024], Protocol::new(LIMITS));
    let records = Records::default();
    let (mut by_hand, mut client_by_hand) = connection(None);
    let (mut untapped, mut client_untapped) = connection(None);
    let (mut tapped, mut client_tapped) = connection(Some(Tap::open(1, records.clone())));
    let mut answer = |input: &mut [u8], outbox: &mut Outbox| {
        let Some(Event::Message(Message::Text(text))) = protocol.receive(&mut &mut *input) else { return };
        outbox.push_own(|out| frame::append(out, Opcode::Text, text.as_bytes()));
    };
    let mut through = |connection: &mut Connection, client: &mut TcpStream| {
        echo(client, &frame, || {
            let Ok(Received::Bytes(len)) = connection.read_some(&mut scratch) else { panic!("the message is there") };
            answer(&mut scratch[..len], &mut connection.outbox);
            connection.flush().expect("the socket takes it");
            records.take();
        })
    };
    let mut ratios = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let untapped = through(&mut untapped, &mut client_untapped);
        let tapped = through(&mut tapped, &mut client_tapped);
        let mut outbox = Outbox::default();
        let stream = by_hand.source();
        let (mut scratch, mut protocol) = (vec![0; 64 * 1024], Protocol::new(LIMITS));
        let by_hand = echo(&mut client_by_hand, &frame, || {
            let len = stream.read(&mut scratch).expect("the message is there");
            let mut input = &mut scratch[..len];
            let Some(Event::Message(Message::Text(text))) = protocol.receive(&mut input) else { return };
            outbox.push_own(|out| frame::append(out, Opcode::Text, text.as_bytes()));
            outbox.flush(stream).expect("the socket takes it");
        });
        for (ratios, time) in ratios.iter_mut().zip([untapped, tapped]) {
            ratios.push(time.as_secs_f64() / by_hand.as_secs_f64());
        }
    }
    for (name, mut ratios) in ["untapped", "tapped"].into_iter().zip(ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("echo of a small message, {name} : by hand = {:.3} (median of {ROUNDS} rounds)", ratios[ROUNDS / 2]);
    }
}

/// What the tap itself takes of it.
fn tap(c: &mut Criterion) {
    let (frame, records, now) = (masked(TEXT.as_bytes()), Records::default(), SystemTime::now());
    let mut tap = Tap::open(1, records.clone());
    c.bench_function("tap a small message", |b| {
        b.iter(|| {
            tap.see(Role::Client, black_box(&frame), now);
            records.take()
        });
    });
}

criterion_group!(benches, parse, unmask, receive, encode, fan_out, tap, watch);
criterion_main!(benches);
