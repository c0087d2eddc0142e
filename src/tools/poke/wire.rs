//! A client's end of a connection: a blocking socket, the tracer beside it, and what has come so far.
//!
//! The subtle thing: whatever the server does, nothing here lasts. Each wait has a deadline that no trickle of bytes
//! moves, and a write that the server does not take is given up.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use crate::inspect::{Record, Records, Tap};
use crate::tools::NO_LIMITS;
use crate::tools::inbox::Inbox;
use crate::ws::frame::Role;

/// How the TCP connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It did not.
    No,
    /// The server ended it.
    Orderly,
    /// The server reset it, or is gone.
    Reset,
}

/// A connection to a server.
pub struct Wire<'s> {
    stream: TcpStream,
    tap: Tap,
    records: Records,
    show: &'s mut dyn FnMut(Record),
    /// What the server has sent.
    pub inbox: Inbox,
    /// Whether the connection is over.
    pub ended: Ended,
}

impl<'s> Wire<'s> {
    /// Connects to the first of `addresses` that answers, within the timeout. `show` gets what the tracer sees.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(
        addresses: &[SocketAddr],
        timeout: Duration,
        show: &'s mut dyn FnMut(Record),
    ) -> std::io::Result<Wire<'s>> {
        let stream = connect(addresses, timeout)?;
        // Each write is to be a segment of its own, as far as TCP lets it.
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        let records = Records::default();
        let mut tap = Tap::new(1, records.clone());
        tap.set_limits(NO_LIMITS);
        Ok(Wire { stream, tap, records, show, inbox: Inbox::default(), ended: Ended::No })
    }

    /// Sends bytes, in one write as far as the kernel takes it.
    pub fn send(&mut self, bytes: &[u8]) {
        self.see(Role::Client, bytes);
        // A server may hang up in the middle of it. That is found out by reading, which also gets what it said before.
        let _ = self.stream.write_all(bytes);
    }

    /// Sends one byte after the other, as long as the server has not had enough.
    pub fn send_slowly(&mut self, bytes: &[u8], delay: Duration) {
        for byte in bytes.chunks(1) {
            if self.ended == Ended::No && !self.inbox.is_final() {
                self.send(byte);
                self.pause(delay);
            }
        }
    }

    /// Waits, and reads what comes meanwhile.
    pub fn pause(&mut self, delay: Duration) {
        let deadline = Instant::now() + delay;
        while self.read(deadline) {}
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    }

    /// Ends the stream of bytes in this direction (TCP's FIN).
    pub fn half_close(&self) {
        // An error: there is nothing left to end.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends `bytes` again and again, and reads nothing, until the server takes no more for the whole of `patience` or
    /// has taken `max` bytes. Says how many it took, and whether it then took no more.
    pub fn flood(&mut self, bytes: &[u8], max: u64, patience: Duration) -> (u64, bool) {
        let mut taken = 0;
        if self.stream.set_write_timeout(Some(patience)).is_err() {
            return (taken, false);
        }
        while taken < max {
            self.see(Role::Client, bytes);
            let mut rest = bytes;
            while !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(len) => {
                        rest = &rest[len..];
                        taken += len as u64;
                    }
                    Err(error) => return (taken, matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
                }
            }
        }
        (taken, false)
    }

    /// Reads until `is_enough`, the end of the connection, a Close, or the timeout.
    pub fn read_until(&mut self, timeout: Duration, is_enough: impl Fn(&Inbox) -> bool) {
        let deadline = Instant::now() + timeout;
        while !is_enough(&self.inbox) && !self.inbox.is_final() && self.read(deadline) {}
    }

    /// Reads until the end of the connection, or the timeout.
    pub fn read_to_end(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.inbox.fault.is_none() && self.read(deadline) {}
    }

    /// Reads once. `false`: there is nothing more, or not in time.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if self.ended != Ended::No || left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.ended = Ended::Orderly,
            Ok(len) => {
                self.see(Role::Server, &bytes[..len]);
                self.inbox.receive(&bytes[..len]);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return false,
                ErrorKind::Interrupted => {}
                _ => self.ended = Ended::Reset,
            },
        }
        self.ended == Ended::No
    }

    /// Lets the tracer tell how it ended.
    pub fn end(&mut self) {
        let how = match self.ended {
            Ended::No => "the client has seen enough",
            Ended::Orderly => "the server ended it",
            Ended::Reset => "the server reset it",
        };
        self.tap.end(how, SystemTime::now());
        self.show();
    }

    fn see(&mut self, from: Role, bytes: &[u8]) {
        self.tap.see(from, bytes, SystemTime::now());
        self.show();
    }

    fn show(&mut self) {
        for record in self.records.take() {
            (self.show)(record);
        }
    }
}

fn connect(addresses: &[SocketAddr], timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
