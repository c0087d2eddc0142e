//! Measures what compression costs and saves in one room: the server's CPU time and the bytes on the wire, per
//! delivered frame. Compares four cases: a server without `--deflate`, and a server with `--deflate` whose clients
//! offer no compression, offer compression, or offer it with `server_no_context_takeover`. The clients only count the
//! received frames and bytes.
//!
//! Run: `cargo bench --features deflate --bench deflate`, optionally followed by `-- MEMBERS MESSAGES_PER_SECOND`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const BENCH_SECONDS: u64 = 5;
const SENDERS: usize = 10;

#[derive(Default)]
struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    is_over: AtomicBool,
}

fn start(args: &[&str]) -> (Child, u16) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    let command =
        command.args(["--listen", "127.0.0.1:0", "--quiet", "--rate-limit", "0", "--history", "0"]).args(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the server starts");
    let banner = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let port = banner.into_iter().find_map(|line| line.split("127.0.0.1:").nth(1)?.split('/').next()?.parse().ok());
    (child, port.expect("the banner shows the port"))
}

fn connect(port: u16, name: usize, offer: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let offer = if offer.is_empty() { String::new() } else { format!("Sec-WebSocket-Extensions: {offer}\r\n") };
    let request = format!(
        "GET /?token=dev-token&username=user{name}&room=bench HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

/// Starts a thread that counts the received frames and bytes until `is_over` is set.
fn count(mut stream: TcpStream, counters: Arc<Counters>) -> JoinHandle<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    thread::spawn(move || {
        let (mut buffer, mut filled) = (vec![0; 1 << 17], 0);
        while !counters.is_over.load(Relaxed) {
            let Ok(len @ 1..) = stream.read(&mut buffer[filled..]) else { continue };
            counters.bytes.fetch_add(len as u64, Relaxed);
            filled += len;
            let (mut at, mut frames) = (0, 0);
            while let Some(end) = frame_end(&buffer[at..filled]) {
                (at, frames) = (at + end, frames + 1);
            }
            counters.frames.fetch_add(frames, Relaxed);
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
    })
}

fn frame_end(bytes: &[u8]) -> Option<usize> {
    let (len, head) = match *bytes.get(1)? {
        126 => (u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]).into(), 4),
        short => (usize::from(short), 2),
    };
    (bytes.len() >= head + len).then_some(head + len)
}

/// Returns the user and system CPU time of a process in microseconds, assuming 100 clock ticks per second.
fn cpu_micros(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10_000
}

fn text(number: u64) -> String {
    const WORDS: [&str; 16] = [
        "compression",
        "is",
        "the",
        "room",
        "a",
        "message",
        "of",
        "words",
        "that",
        "repeat",
        "and",
        "some",
        "do",
        "not",
        "today",
        "tomorrow",
    ];
    let mut random = fastrand::Rng::with_seed(number);
    let words: Vec<&str> = (0..random.usize(3..14)).map(|_| WORDS[random.usize(..16)]).collect();
    format!("{{\"event\":\"message\",\"data\":{{\"text\":\"{} {number:x}\"}}}}", words.join(" "))
}

/// Runs one server and its clients; prints the server's CPU time and the bytes on the wire, per delivered frame.
fn run(name: &str, args: &[&str], offer: &str, members: usize, rate: u64) {
    let (mut server, port) = start(args);
    let counters = Arc::<Counters>::default();
    let streams: Vec<TcpStream> = (0..members).map(|member| connect(port, member, offer)).collect();
    let readers: Vec<_> =
        streams.iter().map(|stream| count(stream.try_clone().unwrap(), Arc::clone(&counters))).collect();
    thread::sleep(Duration::from_secs(1));
    let measure = || (cpu_micros(server.id()), counters.frames.load(Relaxed), counters.bytes.load(Relaxed));
    let (start, before) = (Instant::now(), measure());
    for number in 0..rate * BENCH_SECONDS {
        let sent = start + Duration::from_micros(number * 1_000_000 / rate);
        thread::sleep(sent.saturating_duration_since(Instant::now()));
        let text = text(number);
        let len = text.len() as u16;
        let length = if len < 126 { vec![0x80 | len as u8] } else { [&[0xfe], &len.to_be_bytes()[..]].concat() };
        let frame = [&[0x81], &length[..], &[0; 4], text.as_bytes()].concat();
        (&streams[number as usize % SENDERS.min(members)]).write_all(&frame).unwrap();
    }
    let expected = before.1 + rate * BENCH_SECONDS * members as u64;
    while counters.frames.load(Relaxed) < expected && start.elapsed() < Duration::from_secs(4 * BENCH_SECONDS) {
        thread::sleep(Duration::from_millis(10));
    }
    let after = measure();
    let frames = after.1 - before.1;
    println!(
        "{name:28} {members:5} members {rate:5}/s  {:7.3} µs/delivery  {:6.1} bytes/delivery  {frames} deliveries",
        (after.0 - before.0) as f64 / frames as f64,
        (after.2 - before.2) as f64 / frames as f64
    );
    counters.is_over.store(true, Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    let _ = server.kill();
    let _ = server.wait();
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (members, rate) = (numbers.first().copied().unwrap_or(100) as usize, numbers.get(1).copied().unwrap_or(200));
    let offer = "permessage-deflate; client_max_window_bits";
    for _ in 0..3 {
        run("plain", &[], "", members, rate);
        run("--deflate, no offer", &["--deflate"], "", members, rate);
        run("--deflate", &["--deflate"], offer, members, rate);
        let alone = "permessage-deflate; server_no_context_takeover";
        run("--deflate, without context", &["--deflate"], alone, members, rate);
    }
}
