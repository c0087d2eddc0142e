//! One TCP connection in memory. The server's end is a [`MemorySocket`], and the client's end is a [`Client`].
//!
//! Readiness is edge-triggered, as with epoll: after a socket changes (new bytes, free buffer space after a blocked
//! write, the end of the stream, a reset), the link reports the socket once, with its state at the time of the report.
#![allow(dead_code)] // each test binary uses only part of this module

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem;
use std::rc::Rc;
use std::time::SystemTime;

use fastrand::Rng;
use mio::Token;
use serde_json::Value;
use wirechat::inspect::{Record, Records, Tap};
use wirechat::server::Readiness;
use wirechat::server::connection::Socket;
use wirechat::ws::frame::Role;

use super::NO_EDGE;
use crate::support::{Frame, masked, split_frame};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum End {
    #[default]
    Open,
    /// The endpoint has ended its stream. The bytes sent before the end still arrive.
    Ended,
    Reset,
}

/// The faults that a link injects at random. A real socket may show any of them at any time. Each number is the
/// probability of a fault per call, except for `spurious_edge_chance`.
pub struct Faults {
    pub random: Rng,
    /// Probability that a read or write transfers fewer bytes than it could.
    pub short_io_chance: f64,
    /// Probability that a call returns `WouldBlock` although the socket is ready. The link then reports the socket as
    /// ready again, so that the server retries.
    pub would_block_chance: f64,
    /// Probability that a call fails with `Interrupted`, as if a signal had arrived.
    pub interrupt_chance: f64,
    /// Probability per turn that the link reports an edge although the socket has not changed.
    pub spurious_edge_chance: f64,
}

impl Faults {
    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.f64() < probability
    }
}

/// Outputs one record of a trace.
pub type WriteRecord = Rc<dyn Fn(&Record)>;

/// Traces a connection as `--trace` does. Taps the socket instead of using an observer, which could change what the
/// server does.
pub struct Trace {
    tap: Tap,
    records: Records,
    write: WriteRecord,
}

impl Trace {
    pub fn new(connection: Token, write: WriteRecord) -> Trace {
        let records = Records::default();
        Trace { tap: Tap::new(connection.0, records.clone()).hold_failures(), records, write }
    }

    /// Passes a dummy time: `write` drops the tracer's timestamp and uses the simulated time.
    fn observe(&mut self, from: Role, bytes: &[u8]) {
        self.tap.observe(from, bytes, SystemTime::UNIX_EPOCH);
        self.write_records();
    }

    fn finish(&mut self) {
        self.tap.finish("the server closed its socket", SystemTime::UNIX_EPOCH);
        self.write_records();
    }

    fn write_records(&self) {
        self.records.take().iter().for_each(|record| (self.write)(record));
    }
}

pub type SharedLink = Rc<RefCell<Link>>;

/// The state of a connection, which the server's end and the client's end share.
#[derive(Default)]
pub struct Link {
    pub token: Option<Token>,
    capacity: usize,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    client_end: End,
    server_end: End,
    /// Whether the server has closed its socket.
    pub is_dropped: bool,
    /// Whether the server's socket has an event, such as new bytes or a reset, that the link has not reported yet.
    pub has_edge: bool,
    /// Whether the server's last write was partial or blocked.
    is_blocked: bool,
    is_reading: bool,
    received: Vec<u8>,
    pub faults: Option<Faults>,
    pub trace: Option<Trace>,
    /// Whether, since the last turn, bytes have passed between the server and this socket, or a fault has occurred.
    pub is_active: bool,
}

impl Link {
    /// Decides at random whether the current call fails. Returns the error with which it must fail, if any.
    fn fault(&mut self) -> Option<io::Error> {
        let faults = self.faults.as_mut()?;
        let error = if faults.happens(faults.would_block_chance) {
            self.has_edge = true;
            ErrorKind::WouldBlock
        } else if faults.happens(faults.interrupt_chance) {
            ErrorKind::Interrupted
        } else {
            return None;
        };
        self.is_active = true;
        Some(error.into())
    }

    /// Whether the client's end of stream or reset has arrived at the server.
    fn has_ended(&self) -> bool {
        self.client_end != End::Open && self.to_server.len() <= self.capacity
    }

    fn shorten(&mut self, len: usize) -> usize {
        let Some(faults) = self.faults.as_mut().filter(|_| len > 1) else { return len };
        if faults.happens(faults.short_io_chance) { faults.random.usize(1..=len) } else { len }
    }

    pub fn take_edge(&mut self, spurious: Readiness) -> Option<Readiness> {
        let is_spurious = self.faults.as_mut().is_some_and(|faults| faults.happens(faults.spurious_edge_chance));
        let is_reset = self.client_end == End::Reset;
        self.is_active = is_spurious;
        let has_ended = self.has_ended();
        let readiness = Readiness {
            is_readable: spurious.is_readable || has_ended || !self.to_server.is_empty(),
            is_writable: spurious.is_writable || is_reset || self.to_client.len() < self.capacity,
            is_read_closed: has_ended,
            has_error: is_reset,
        };
        (mem::take(&mut self.has_edge) || is_spurious || spurious != NO_EDGE).then_some(readiness)
    }

    pub fn deliver(&mut self) {
        if self.is_reading {
            self.deliver_some(usize::MAX);
        }
    }

    fn deliver_some(&mut self, max_len: usize) {
        let len = self.to_client.len().min(max_len);
        if len > 0 {
            self.received.extend(self.to_client.drain(..len));
            self.has_edge |= mem::take(&mut self.is_blocked);
        }
    }
}

/// The server's end of a connection.
pub struct MemorySocket(pub SharedLink);

impl Read for MemorySocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let link = &mut *self.0.borrow_mut();
        if let Some(error) = link.fault() {
            return Err(error);
        }
        let was_ended = link.has_ended();
        let len = link.shorten(link.to_server.len().min(link.capacity).min(buffer.len()));
        buffer.iter_mut().zip(link.to_server.drain(..len)).for_each(|(to, from)| *to = from);
        // After a read that does not fill `buffer`, the server assumes that the socket is empty and waits for the next
        // edge. So report an edge if bytes are left. Also report one if the client's end of stream arrives now: it
        // arrives once all bytes before it fit in the socket's receive buffer.
        link.is_active |= len > 0;
        link.trace.iter_mut().filter(|_| len > 0).for_each(|trace| trace.observe(Role::Client, &buffer[..len]));
        let rest_arrives = len > 0 && len < buffer.len() && !link.to_server.is_empty();
        link.has_edge |= rest_arrives || (link.has_ended() && !was_ended);
        match (len, link.client_end) {
            (0, End::Open) => Err(ErrorKind::WouldBlock.into()),
            (0, End::Reset) => Err(ErrorKind::ConnectionReset.into()),
            _ => Ok(len),
        }
    }
}

impl Write for MemorySocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let link = &mut *self.0.borrow_mut();
        assert_eq!(link.server_end, End::Open, "no write follows the end of the stream");
        if link.client_end == End::Reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if let Some(error) = link.fault() {
            return Err(error);
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = link.capacity - link.to_client.len();
        let room = if total == 0 { room } else { link.shorten(room.min(total)) };
        link.is_blocked = total > room;
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        link.is_active = true;
        let written = slices.iter().flat_map(|slice| slice.iter()).take(room);
        if let Some(trace) = &mut link.trace {
            trace.observe(Role::Server, &written.clone().copied().collect::<Vec<u8>>());
        }
        link.to_client.extend(written);
        Ok(total.min(room))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Socket for MemorySocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().server_end = End::Ended;
        Ok(())
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        let link = &mut *self.0.borrow_mut();
        link.is_dropped = true;
        link.trace.iter_mut().for_each(Trace::finish);
        if !link.to_server.is_empty() {
            // Closing a socket with unread input sends a TCP reset, which discards the bytes that the peer has not
            // read yet.
            link.to_client.clear();
            link.server_end = End::Reset;
        } else if link.server_end == End::Open {
            link.server_end = End::Ended;
        }
    }
}

/// The client's end of a connection. Sending never blocks. The server reads the client's bytes in its next turn, and
/// the client can read the server's bytes after the turn.
pub struct Client(pub SharedLink);

impl Client {
    /// `capacity` is the maximum number of bytes that the server can read at once, or can write before the client
    /// reads.
    pub fn new(capacity: usize) -> Client {
        Client(Rc::new(RefCell::new(Link { capacity, is_reading: true, ..Link::default() })))
    }

    fn link(&self) -> RefMut<'_, Link> {
        self.0.borrow_mut()
    }

    pub fn token(&self) -> Token {
        self.link().token.expect("the server has accepted the client")
    }

    pub fn send(&self, bytes: &[u8]) {
        assert!(self.is_open(), "the client has ended its stream");
        let mut link = self.link();
        if link.is_dropped {
            link.server_end = End::Reset; // a closed socket replies to data with a reset
        } else {
            link.to_server.extend(bytes);
            link.has_edge = true;
        }
    }

    /// Returns how many bytes the client can send without filling its queue to the server beyond the capacity.
    pub fn space(&self) -> usize {
        let link = self.link();
        link.capacity.saturating_sub(link.to_server.len())
    }

    pub fn send_text(&self, text: &str) {
        self.send(&masked(0x81, text.as_bytes()));
    }

    /// Starts or stops the client's reading. While the client does not read, the server's bytes fill a queue. Once the
    /// queue is full, the server's writes block.
    pub fn set_reading(&self, is_reading: bool) {
        self.link().is_reading = is_reading;
        self.link().deliver();
    }

    pub fn read_some(&self, max_len: usize) {
        self.link().deliver_some(max_len);
    }

    pub fn is_reading(&self) -> bool {
        self.link().is_reading
    }

    /// Returns the number of bytes (at most the capacity) that the server has written and the client has not
    /// received.
    pub fn in_flight(&self) -> usize {
        self.link().to_client.len()
    }

    /// Returns the bytes that the server has written and the client has not received.
    pub fn unread(&self) -> Vec<u8> {
        self.link().to_client.iter().copied().collect()
    }

    /// Returns the token of the connection, or `None` if the server has not accepted the client yet.
    pub fn accepted_as(&self) -> Option<Token> {
        self.link().token
    }

    /// Ends the client's stream (half-close). The client can still read.
    pub fn end(&self) {
        let mut link = self.link();
        (link.client_end, link.has_edge) = (End::Ended, true);
    }

    pub fn reset(&self) {
        let mut link = self.link();
        link.to_client.clear();
        (link.client_end, link.has_edge) = (End::Reset, true);
    }

    /// Whether the server has closed its socket.
    pub fn is_closed_by_server(&self) -> bool {
        self.link().is_dropped
    }

    /// Returns the state of the server's stream as the client sees it: `Open` while any bytes are still in flight.
    pub fn server_end(&self) -> End {
        let link = self.link();
        if link.to_client.is_empty() { link.server_end } else { End::Open }
    }

    /// Whether the client may still send bytes: the client has neither ended nor reset its stream.
    pub fn is_open(&self) -> bool {
        self.link().client_end == End::Open
    }

    /// Returns the received bytes without removing them from the buffer.
    pub fn received(&self) -> Vec<u8> {
        self.link().received.clone()
    }

    pub fn read(&self) -> Vec<u8> {
        mem::take(&mut self.link().received)
    }

    /// Reads an HTTP head, including its blank line.
    pub fn read_head(&self) -> String {
        let received = &mut self.link().received;
        let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a whole head");
        String::from_utf8(received.drain(..end + 4).collect()).expect("a head is ASCII")
    }

    /// Returns the next frame if all its bytes have arrived.
    pub fn next_frame(&self) -> Option<Frame> {
        let received = &mut self.link().received;
        let (frame, rest) = split_frame(received)?;
        *received = rest.to_vec();
        Some(frame)
    }

    pub fn read_frame(&self) -> Frame {
        self.next_frame().unwrap_or_else(|| panic!("no frame, but {:?}", self.read()))
    }

    /// Reads all complete frames that have arrived.
    pub fn read_frames(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next_frame()).collect()
    }

    pub fn read_json(&self) -> Value {
        serde_json::from_str(self.read_frame().text()).expect("JSON")
    }

    /// Checks that the next frame is this event, and returns its data.
    pub fn read_event(&self, event: &str) -> Value {
        let mut json = self.read_json();
        assert_eq!(json["event"], event, "{json}");
        json["data"].take()
    }

    /// Checks that no received bytes are unread and that the server has not ended the stream.
    pub fn expect_nothing(&self) {
        assert_eq!((self.next_frame(), self.read(), self.server_end()), (None, vec![], End::Open));
    }

    /// Checks that no received bytes are unread and that the server has ended the stream without a reset.
    pub fn expect_end(&self) {
        assert_eq!((self.next_frame(), self.read(), self.server_end()), (None, vec![], End::Ended));
    }
}
