//! Thousands of clients on one thread, and functions that measure the server's CPU time and memory. One poll loop
//! reads all data as soon as it arrives, so that the server never waits for a client. Most clients only count the
//! received bytes.

#![allow(dead_code)] // each test binary uses only part of this module

use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Frame, Server, upgrade_request, whole_frames};

/// Maximum number of connections that [`Crowd::request`] opens before it waits for the responses. More connections
/// would overflow the server's listen backlog.
const CONNECTS: usize = 256;
/// Seconds per clock tick, the unit in which `/proc/PID/stat` counts CPU time.
const TICK: f64 = 0.01;

pub struct Member {
    stream: Option<TcpStream>,
    /// Number of received bytes, including the response head.
    pub received: usize,
    /// The received bytes that [`Crowd::take_frames`] has not returned yet; `None` if the client only counts bytes.
    kept: Option<Vec<u8>>,
    /// The first 12 bytes of the response, which contain the HTTP version and the status.
    response: Vec<u8>,
    pub has_ended: bool,
}

pub struct Crowd {
    poll: Poll,
    events: Events,
    pub members: Vec<Member>,
    scratch: Vec<u8>,
    /// The deadline for all waits. A wait that reaches the deadline panics.
    end: Instant,
}

impl Crowd {
    pub fn new(end: Instant) -> Crowd {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit is allowed");
        let (poll, events) = (Poll::new().expect("a poll"), Events::with_capacity(4096));
        Crowd { poll, events, members: Vec::new(), scratch: vec![0; 256 * 1024], end }
    }

    /// Connects one client per path, and waits until the server has upgraded all of them.
    pub fn join(&mut self, server: &Server, paths: impl IntoIterator<Item = String>) -> Range<usize> {
        let requests = paths.into_iter().map(|path| upgrade_request(&path));
        let joined = self.request(server, requests);
        assert!(self.members[joined.clone()].iter().all(|member| member.status() == "101"), "all are upgraded");
        joined
    }

    /// Connects one client per request, and waits until each has received the start of a response.
    pub fn request(&mut self, server: &Server, requests: impl IntoIterator<Item = String>) -> Range<usize> {
        let (first, mut requests) = (self.members.len(), requests.into_iter().peekable());
        while requests.peek().is_some() {
            let start = self.members.len();
            for request in requests.by_ref().take(CONNECTS) {
                self.connect(server, &request, false);
            }
            self.turn_until("all clients of this group have a response", |crowd| {
                crowd.members[start..].iter().all(Member::has_response)
            });
        }
        first..self.members.len()
    }

    /// Connects a client that keeps the bytes it receives, and waits until the server has upgraded the connection.
    pub fn join_and_keep(&mut self, server: &Server, path: &str) -> usize {
        let id = self.connect(server, &upgrade_request(path), true);
        let mut head = None;
        self.turn_until("the client is upgraded", |crowd| {
            head = crowd.take_head(id);
            head.is_some()
        });
        assert!(head.is_some_and(|head| head.starts_with("HTTP/1.1 101 ")));
        id
    }

    /// Connects a client and sends its request, without waiting for the response. If `keeps` is true, the client
    /// keeps the received bytes.
    pub fn connect(&mut self, server: &Server, request: &str, keeps: bool) -> usize {
        let stream = std::net::TcpStream::connect(server.addr()).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_nonblocking(true).expect("a socket option");
        let (id, mut stream) = (self.members.len(), TcpStream::from_std(stream));
        self.poll.registry().register(&mut stream, Token(id), Interest::READABLE).expect("a socket to poll");
        let kept = keeps.then(Vec::new);
        self.members.push(Member { stream: Some(stream), received: 0, kept, response: Vec::new(), has_ended: false });
        self.send(id, request.as_bytes());
        id
    }

    /// Sends bytes, which must fit in the socket's send buffer.
    pub fn send(&mut self, id: usize, bytes: &[u8]) {
        let stream = self.members[id].stream.as_mut().expect("an open client");
        assert_eq!(std::io::Write::write(stream, bytes).expect("an open connection"), bytes.len(), "all of it");
    }

    /// Sends as many bytes as fit in the socket's send buffer. Ignores errors, because the server may have closed the
    /// connection.
    pub fn try_send(&mut self, id: usize, bytes: &[u8]) {
        let stream = self.members[id].stream.as_mut().expect("an open client");
        let _ = std::io::Write::write(stream, bytes);
    }

    /// Polls once, and reads everything that has arrived.
    pub fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::from_millis(100))).expect("a poll");
        for event in &self.events {
            self.members[event.token().0].read(&mut self.scratch);
        }
    }

    pub fn turn_until(&mut self, what: &str, mut condition: impl FnMut(&mut Crowd) -> bool) {
        while !condition(self) {
            assert!(Instant::now() < self.end, "never happened: {what}");
            self.turn();
        }
    }

    /// Removes the response head from the bytes that a client has received, and returns the head. Returns `None` while
    /// the head is incomplete.
    pub fn take_head(&mut self, id: usize) -> Option<String> {
        let kept = self.members[id].kept.as_mut().expect("it keeps bytes");
        let end = kept.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        Some(String::from_utf8(kept.drain(..end).collect()).expect("a head is ASCII"))
    }

    /// Returns the complete frames that a client has received since the last call.
    pub fn take_frames(&mut self, id: usize) -> Vec<Frame> {
        let kept = self.members[id].kept.as_mut().expect("it keeps bytes");
        let (frames, rest) = whole_frames(kept);
        *kept = rest.to_vec();
        frames
    }

    /// Half-closes the connection: the client sends a TCP FIN, but keeps reading.
    pub fn finish(&mut self, id: usize) {
        let stream = self.members[id].stream.as_ref().expect("an open client");
        let _ = stream.shutdown(std::net::Shutdown::Write); // the server may already have closed the connection
    }

    /// Closes a client's connection with a reset (TCP RST).
    pub fn reset(&mut self, id: usize) {
        let stream = self.members[id].stream.take().expect("an open client");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    }
}

impl Member {
    pub fn has_response(&self) -> bool {
        self.received >= 12
    }

    pub fn status(&self) -> &str {
        std::str::from_utf8(&self.response).expect("ASCII").strip_prefix("HTTP/1.1 ").expect("HTTP")
    }

    fn read(&mut self, scratch: &mut [u8]) {
        let Some(stream) = &mut self.stream else { return };
        loop {
            match std::io::Read::read(stream, scratch) {
                Ok(0) => break self.has_ended = true,
                Ok(len) => {
                    self.received += len;
                    let missing = 12 - self.response.len();
                    self.response.extend(&scratch[..len.min(missing)]);
                    self.kept.iter_mut().for_each(|kept| kept.extend_from_slice(&scratch[..len]));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => break self.has_ended = true,
            }
        }
    }
}

/// The server's CPU time in seconds, user plus system.
pub fn cpu_seconds(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).expect("a process");
    // Field 2 of `stat` is a name in parentheses, and may contain spaces. Fields 14 and 15 are `utime` and `stime`.
    let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>() * TICK
}

/// Resets a server's peak memory to its current memory. Returns the new peak in KiB.
pub fn reset_peak(server: &Server) -> usize {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("an own process");
    peak_memory(server)
}

/// Returns the server's peak resident memory (`VmHWM`) in KiB.
pub fn peak_memory(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
