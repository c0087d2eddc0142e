//! The client connection of `poke`: a blocking socket, a tracer, and an [`Inbox`] that parses the server's bytes. No
//! server can block `poke` forever: each read has a deadline that incoming bytes do not extend, and each write has a
//! timeout. An optional time limit covers the whole connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use super::play::Timing;
use crate::inspect::Record;
use crate::tools::Tracer;
use crate::tools::inbox::Inbox;
use crate::ws::frame::Role;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    Open,
    /// The server sent a TCP FIN.
    Ended,
    /// The server sent RST, or the network failed.
    Reset,
}

pub struct Connection<'s> {
    stream: TcpStream,
    /// The deadline of the whole connection, if any: no read or write starts after the deadline.
    ends_at: Option<Instant>,
    tracer: Tracer,
    show: &'s mut dyn FnMut(Record),
    pub inbox: Inbox,
    pub tcp: TcpState,
    pub is_half_closed: bool,
}

impl<'s> Connection<'s> {
    /// Wraps a connected socket. `show` receives each trace record.
    ///
    /// # Errors
    /// Fails if a socket option cannot be set.
    pub fn new(stream: TcpStream, timing: Timing, show: &'s mut dyn FnMut(Record)) -> std::io::Result<Connection<'s>> {
        // Disable Nagle's algorithm, which could merge the parts of a split frame into one TCP segment.
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timing.timeout))?;
        let ends_at = timing.max_duration.map(|limit| Instant::now() + limit);
        let (tracer, inbox) = (Tracer::new(), Inbox::default());
        Ok(Connection { stream, ends_at, tracer, show, inbox, tcp: TcpState::Open, is_half_closed: false })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.trace(Role::Client, bytes);
        // Ignore the error: if the server disconnects during the write, later reads return any remaining bytes, then
        // report the disconnect.
        let _ = self.write(bytes);
    }

    /// Writes bytes to the socket. Returns the number of bytes written, and the error that stopped the write, if any.
    fn write(&mut self, bytes: &[u8]) -> (usize, std::io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            if self.ends_at.is_some_and(|end| end <= Instant::now()) {
                return (written, Err(ErrorKind::Other.into())); // `TimedOut` would mean that the server stalled
            }
            match self.stream.write(&bytes[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    /// Writes one byte at a time, `delay` apart. Stops early if the TCP connection ends or [`Inbox::is_final`] returns
    /// true.
    pub fn send_slowly(&mut self, bytes: &[u8], delay: Duration) {
        for byte in bytes.chunks(1) {
            if self.tcp == TcpState::Open && !self.inbox.is_final() {
                self.send(byte);
                self.pause(delay);
            }
        }
    }

    /// Waits for `delay`, and reads the bytes that arrive meanwhile.
    pub fn pause(&mut self, delay: Duration) {
        let deadline = self.cap_deadline(Instant::now() + delay);
        while self.read(deadline) {}
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    }

    pub fn half_close(&mut self) {
        self.is_half_closed = true;
        // Ignore the error of the half-close: if the connection is lost, the next read reports that.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends `bytes` repeatedly without reading, until a write fails, the server accepts nothing for `patience`, or the
    /// server has accepted `max` bytes. Returns the number of accepted bytes, and whether the last write timed out.
    pub fn flood(&mut self, bytes: &[u8], max: u64, patience: Duration) -> (u64, bool) {
        let mut accepted = 0;
        if self.stream.set_write_timeout(Some(patience)).is_err() {
            return (accepted, false);
        }
        while accepted < max {
            self.trace(Role::Client, bytes);
            let (written, result) = self.write(bytes);
            accepted += written as u64;
            if let Err(error) = result {
                return (accepted, is_timeout(&error));
            }
        }
        (accepted, false)
    }

    /// Reads until `is_enough` or [`Inbox::is_final`] returns true, the TCP connection ends, or the timeout expires.
    pub fn read_until(&mut self, timeout: Duration, is_enough: impl Fn(&Inbox) -> bool) {
        let deadline = Instant::now() + timeout;
        while !is_enough(&self.inbox) && !self.inbox.is_final() && self.read(deadline) {}
    }

    /// Reads until the TCP connection ends, the server violates the RFC or a limit, or the timeout expires.
    pub fn read_to_end(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.inbox.violation.is_none() && self.read(deadline) {}
    }

    /// Reads from the socket once. Returns `false` if the TCP connection has ended or the deadline has passed.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = self.cap_deadline(deadline).saturating_duration_since(Instant::now());
        if self.tcp != TcpState::Open || left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.tcp = TcpState::Ended,
            Ok(len) => {
                self.trace(Role::Server, &bytes[..len]);
                self.inbox.receive(&bytes[..len]);
            }
            Err(error) if is_timeout(&error) => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.tcp = TcpState::Reset,
        }
        self.tcp == TcpState::Open
    }

    fn cap_deadline(&self, deadline: Instant) -> Instant {
        self.ends_at.map_or(deadline, |end| end.min(deadline))
    }

    pub fn trace_end(&mut self) {
        let cause = match self.tcp {
            TcpState::Open => "the client disconnected",
            TcpState::Ended => "the server ended TCP",
            TcpState::Reset => "the server reset TCP",
        };
        self.tracer.end(cause, SystemTime::now()).into_iter().for_each(&mut self.show);
    }

    fn trace(&mut self, role: Role, bytes: &[u8]) {
        self.tracer.trace(role, bytes, SystemTime::now()).into_iter().for_each(&mut self.show);
    }
}

/// Whether a socket timeout expired: the error is `WouldBlock` on Unix and `TimedOut` on Windows.
fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
