//! Benchmarks (`cargo bench`) of each step of a message's path through the server, and of a whole turn of the event
//! loop, with simulated sockets. One group compares the optimized unmasking with a byte-by-byte loop.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mio::Token;
use wirechat::broker::{Join, RoomId, User};

use wirechat::chat::dialect::Dialect;
use wirechat::chat::event::{Effect, Event as ChatEvent};
use wirechat::chat::{Chat, Identity, JoinRequest, Now};
use wirechat::config::Config;
use wirechat::http::access::AccessControl;
use wirechat::inspect::filter::Filter;
use wirechat::inspect::text::{Detail, Style};
use wirechat::inspect::{InspectObservers, InspectOptions, Records, Tap, Trace};
use wirechat::server::connection::{Connection, Socket};
use wirechat::server::fanout::Fanout;
use wirechat::server::limits::ConnectionLimits as ServerLimits;
use wirechat::server::observer::{ObservedStage, Observer, Observers};
use wirechat::server::outbox::Broadcast;
use wirechat::server::{Readiness, Server, new_memory_broker};
use wirechat::ws::frame::{self, FrameHeader, Opcode, Role};
use wirechat::ws::mask;
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const LIMITS: Limits = Limits { message: 1 << 24, fragments: 1 << 20, accepts_binary: true, deflates: false };
const TEXT: &str = r#"{"event":"message","data":{"text":"the quick brown fox jumps over the lazy dog, twice over"}}"#;
const REQUEST: &[u8] =
    b"GET /?token=dev-token HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const NOW: Now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };
const ROOM_SIZES: [usize; 3] = [1, 100, 1000];

/// A socket that accepts every write. Reads return the elements of the list from last to first, and then repeat the
/// first element forever.
struct MemorySocket(Vec<Vec<u8>>);

impl Read for MemorySocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = self.0.last().ok_or(io::ErrorKind::WouldBlock)?;
        let len = input.len();
        buffer[..len].copy_from_slice(input);
        self.0.truncate(1.max(self.0.len() - 1));
        Ok(len)
    }
}

impl Write for MemorySocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(black_box(slices).iter().map(|slice| slice.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for MemorySocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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
        group.bench_function(name, |b| b.iter(|| FrameHeader::parse(Role::Client, black_box(header))));
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

/// Measures a whole message: parsing the header, unmasking the payload, validating UTF-8.
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

fn config() -> Config {
    let config = Config::parse_from(["wirechat", "--rate-limit", "0"]);
    config.validate().expect("a valid configuration");
    config
}

/// Returns a chat with a single room of `members` clients, and the id of that room.
fn chat(members: usize) -> (Chat, RoomId) {
    let config = config();
    let mut chat = Chat::new(&config, Box::new(new_memory_broker(&config, Box::new(|bytes| bytes.fill(7)))));
    for number in 0..members {
        let (identity, address) = (Identity::default(), [127, 0, 0, 1].into());
        let join = Join::new(&format!("user{number}"), "general", User::Connection(Token(number)));
        let request = JoinRequest { dialect: Dialect::Events, identity, address, join, extra: None };
        chat.join(Token(number), request, NOW);
    }
    while chat.next_effect().is_some() {}
    let room = chat.room_of(Token(0)).expect("a member");
    (chat, room)
}

/// Measures the chat's handling of one command: parsing its JSON, validating it, and producing the events to send.
fn submit(c: &mut Criterion) {
    let (mut chat, _) = chat(100);
    c.bench_function("text to effects", |b| {
        b.iter(|| {
            chat.receive(Token(0), black_box(TEXT), NOW);
            while let Some(effect) = chat.next_effect() {
                black_box(effect);
            }
        });
    });
}

/// Sends `TEXT` from the first client, and returns the event that the chat broadcasts to the room.
fn message_event(chat: &mut Chat) -> ChatEvent {
    chat.receive(Token(0), TEXT, NOW);
    let effects = std::iter::from_fn(|| chat.next_effect());
    let mut events = effects.filter_map(|effect| match effect {
        Effect::Broadcast { event, .. } => Some(event),
        _ => None,
    });
    events.next().expect("a message for the room")
}

/// Measures writing a batch of one or ten messages to the socket of every member of a room.
fn fan_out(c: &mut Criterion) {
    for members in ROOM_SIZES {
        let mut group = c.benchmark_group(format!("fan-out, room of {members}"));
        let (mut chat, room) = chat(members);
        let event = message_event(&mut chat);
        let mut connections: Vec<_> = (0..members).map(|_| connection(None)).collect();
        let mut fanout = Fanout::default();
        for messages in [1, 10] {
            group.throughput(Throughput::Elements((members * messages) as u64));
            group.bench_function(format!("messages: {messages}"), |b| {
                b.iter(|| {
                    for _ in 0..messages {
                        fanout.append(room, chat.dialects(room), None, &event);
                    }
                    let (_, batch) = fanout.take_next_batch().expect("a batch");
                    let shared_bytes = Rc::default();
                    let mut broadcast = Broadcast::new(&batch.frames[Dialect::Events as usize][0], &shared_bytes);
                    for (member, _) in chat.recipients(room) {
                        let sent = connections[member.0].send_broadcast(&mut broadcast);
                        sent.expect("the socket accepts everything");
                    }
                });
            });
        }
    }
}

fn connection(observer: Option<Box<dyn Observer>>) -> Connection<MemorySocket> {
    Connection::new(MemorySocket(vec![masked(TEXT.as_bytes())]), ADDRESS, observer, Duration::ZERO)
}

/// Returns an observer that formats a trace but discards the text. It has processed a handshake and expects frames.
fn tracer() -> Box<dyn Observer> {
    let style = Style { detail: Detail::Line, uses_colour: false };
    let write = Box::new(|line: &str| _ = black_box(line));
    let trace = Some(Trace { style, filter: Filter::default(), write });
    let options = InspectOptions { trace, record: None, enables_inspection: false, max_outbox: 1 << 20 };
    let mut inspect = InspectObservers::new(options, &mut |bytes| bytes.fill(7)).expect("no folder is needed");
    let mut observer = inspect.create_observer(Token(0), ADDRESS).expect("every connection is traced");
    observer.observe(Role::Client, REQUEST);
    observer.set_stage(ObservedStage::Upgraded {
        limits: LIMITS,
        username: None,
        is_inspector: false,
        has_welcome: false,
        has_ticket: false,
    });
    observer.observe(Role::Server, b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    observer
}

/// Measures reading a small message from a socket, parsing it and sending it back.
fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo a small message");
    for (name, observer) in [("not observed", None), ("traced", Some(tracer()))] {
        let (mut connection, mut protocol) = (connection(observer), Protocol::new(LIMITS));
        let mut scratch = vec![0; 64 * 1024];
        group.bench_function(name, |b| {
            b.iter(|| {
                let len = connection.read(&mut scratch).expect("a socket").expect("a message");
                let Some(Event::Message(Message::Text(text))) = protocol.receive(&mut &mut scratch[..len]) else {
                    panic!("a text message")
                };
                let mut reply = Vec::new();
                frame::append(&mut reply, Opcode::Text, text.as_bytes());
                connection.outbox.push(&reply);
                connection.flush().expect("the socket accepts everything");
            });
        });
    }
}

/// Measures only the tap, which turns the bytes of a connection into records. Each read contains exactly one frame.
fn tap(c: &mut Criterion) {
    let (frame, records) = (masked(TEXT.as_bytes()), Records::default());
    let mut tap = Tap::open(1, records.clone());
    c.bench_function("tap a small message", |b| {
        b.iter(|| {
            tap.observe(Role::Client, black_box(&frame), NOW.time);
            records.take()
        });
    });
}

/// Measures a whole turn of the event loop: the server reads a message from one member and sends it to all members.
fn turn(c: &mut Criterion) {
    let readable = Readiness { is_readable: true, is_writable: false, is_read_closed: false, has_error: false };
    for members in ROOM_SIZES {
        let config = config();
        let access = AccessControl::new(&config, None).expect("no token file is needed");
        let limits = ServerLimits::new(&config, members + 1, 1);
        let broker = Box::new(new_memory_broker(&config, Box::new(|bytes| bytes.fill(7))));
        let options =
            InspectOptions { trace: None, record: None, enables_inspection: false, max_outbox: config.max_outbox };
        let observers = InspectObservers::new(options, &mut |bytes| bytes.fill(7)).expect("no folder is needed");
        let mut server = Server::new(config, access, limits, Box::new(observers), broker, NOW);
        for number in 0..members {
            server.begin_turn(NOW);
            server.accept(MemorySocket(vec![masked(TEXT.as_bytes()), REQUEST.to_vec()]), Some(ADDRESS));
            server.set_ready(Token(number + 1), readable);
            server.finish_turn();
        }
        let mut group = c.benchmark_group(format!("turn of the server, room of {members}"));
        group.throughput(Throughput::Elements(members as u64));
        group.bench_function("one message", |b| {
            b.iter(|| {
                server.begin_turn(NOW);
                server.set_ready(Token(1), readable);
                server.finish_turn();
            });
        });
        assert_eq!(server.connection_count(), members, "every member is still connected");
    }
}

criterion_group!(benches, parse, unmask, receive, encode, submit, fan_out, echo, tap, turn);
criterion_main!(benches);
