//! The transport of one connection: a TCP stream, with or without TLS. [`TlsSocket`] uses the unbuffered interface
//! of rustls: all connections share their I/O buffers, and a connection holds bytes only while a record is incomplete,
//! the server has not read the plaintext, or the kernel has not accepted the ciphertext. In each of these cases, the
//! connection holds at most about one record of 16 KiB.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic};

use crate::server::connection::{Role, Socket};

const MAX_PLAINTEXT: usize = 16 * 1024; // bytes per record (RFC 8446 §5.1)
const MAX_RECORD: usize = 5 + MAX_PLAINTEXT + 2048; // TLS 1.2 allows a larger expansion than 1.3 (RFC 5246 §6.2.3)
const MAX_READ_LEN: usize = 64 * 1024; // maximum bytes per read(2)
const MIN_READ_LEN: usize = 1024; // minimum buffer size for read(2)
const MAX_READS_WITHOUT_PLAINTEXT: usize = 4; // maximum number of TCP reads in one call to `TlsSocket::read`
/// Time that one turn may spend on handshakes, so that the private-key operations of many clients do not delay the
/// rooms. With ECDSA, 2 ms allow about ten handshakes. With RSA, one handshake takes about 2 ms.
const HANDSHAKE_TIME_PER_TURN: Duration = Duration::from_millis(2);
/// A fatal alert, `internal_error` (RFC 8446 §6.2), for a client that the server rejects before the handshake.
const REJECTION_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

const PLAIN_HTTP_ERROR: &str =
    "This port speaks TLS, and the request is not encrypted. Use https:// or wss:// (RFC 8446 §5.1).";

pub enum Transport {
    Plain(socket2::Socket),
    Tls(Box<TlsSocket>),
}

/// State that all TLS connections share: the I/O buffers, and the time spent on handshakes in this event-loop turn.
pub struct SharedTlsState {
    input: RefCell<Box<[u8]>>,
    output: RefCell<Box<[u8]>>,
    plaintext: RefCell<Vec<u8>>, // a buffer to join short slices into one record
    handshake_time: Cell<Duration>,
}

pub struct TlsSocket {
    tcp: socket2::Socket,
    session: UnbufferedServerConnection,
    mode: Mode,
    input: Vec<u8>,     // received bytes of an incomplete record or handshake message
    plaintext: Vec<u8>, // decrypted bytes that did not fit in the server's buffer
    output: Vec<u8>,    // encrypted bytes that the kernel has not accepted
    stream: StreamState,
    wants_shutdown: bool, // whether to shut down the write side of TCP once `output` is sent
    shared: Rc<SharedTlsState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    New, // no byte has arrived
    Session,
    Plain,  // the client speaks HTTP without TLS: the response is not encrypted, and further input is discarded
    Failed, // after a fatal alert, the server sends nothing and discards further input
}

/// The state of the peer's stream, as known from read(2) and the TLS records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamState {
    Drained,  // the kernel's receive buffer is empty, so new bytes cause a readiness edge
    Readable, // the kernel's receive buffer may hold more bytes, which cause no new readiness edge
    Ended,    // the peer has sent close_notify or FIN, and `read` has not reported the end yet
    Reported,
}

impl Default for SharedTlsState {
    fn default() -> SharedTlsState {
        let buffer = |len| RefCell::new(vec![0; len].into_boxed_slice());
        SharedTlsState {
            input: buffer(MAX_READ_LEN),
            output: buffer(MAX_RECORD + 1024), // 1 KiB extra, because rustls may put a KeyUpdate before the record
            plaintext: RefCell::default(),
            handshake_time: Cell::default(),
        }
    }
}

impl SharedTlsState {
    pub fn begin_turn(&self) {
        self.handshake_time.set(Duration::ZERO);
    }
}

impl Socket for Transport {
    fn has_pending_bytes(&self, from: Role) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(tls) if from == Role::Server => !tls.output.is_empty(),
            Transport::Tls(tls) => {
                !tls.plaintext.is_empty() || matches!(tls.stream, StreamState::Readable | StreamState::Ended)
            }
        }
    }

    fn read_proxy_header(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Transport::Plain(tcp) => tcp.read_proxy_header(),
            Transport::Tls(tls) => tls.tcp.read_proxy_header(),
        }
    }

    fn buffered_bytes(&self) -> usize {
        match self {
            Transport::Plain(_) => 0,
            Transport::Tls(tls) => tls.input.len() + tls.plaintext.len() + tls.output.len(),
        }
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Transport::Plain(tcp) => tcp.shutdown(Shutdown::Write),
            Transport::Tls(tls) => {
                tls.wants_shutdown = true;
                tls.close()?;
                tls.send_output()
            }
        }
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(tcp) => tcp.read(buffer),
            Transport::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(tcp) => tcp.write(bytes),
            Transport::Tls(tls) => tls.write(&[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Plain(tcp) => tcp.write_vectored(slices),
            Transport::Tls(tls) => tls.write(slices),
        }
    }

    /// Sends encrypted bytes until the kernel accepts no more.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Plain(_) => Ok(()),
            Transport::Tls(tls) => tls.send_output(),
        }
    }
}

impl TlsSocket {
    pub fn new(
        tcp: socket2::Socket,
        settings: &Arc<ServerConfig>,
        shared: &Rc<SharedTlsState>,
    ) -> Result<TlsSocket, rustls::Error> {
        Ok(TlsSocket {
            tcp,
            session: UnbufferedServerConnection::new(Arc::clone(settings))?,
            mode: Mode::New,
            input: Vec::new(),
            plaintext: Vec::new(),
            output: Vec::new(),
            stream: StreamState::Drained,
            wants_shutdown: false,
            shared: Rc::clone(shared),
        })
    }

    /// Reads plaintext. Returns 0 at the end of the peer's stream. `Interrupted` asks for another call in a later turn.
    /// `InvalidInput` means plain HTTP, to which the server can respond, and `InvalidData` a TLS error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MAX_READS_WITHOUT_PLAINTEXT {
            if !self.plaintext.is_empty() {
                let len = self.plaintext.len().min(buffer.len());
                buffer[..len].copy_from_slice(&self.plaintext[..len]);
                self.plaintext = self.plaintext[len..].to_vec();
                return Ok(len);
            }
            if matches!(self.stream, StreamState::Ended | StreamState::Reported) {
                // Accept the end of the TCP stream even without a close_notify alert: the WebSocket Close frame, not
                // TLS, shows whether the peer has finished.
                self.stream = StreamState::Reported;
                return Ok(0);
            }
            let len = self.receive(buffer)?;
            if len > 0 {
                return Ok(len);
            }
        }
        Err(ErrorKind::Interrupted.into())
    }

    /// Reads once from TCP. Returns the length of the plaintext in `buffer`, which may be 0.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let is_handshake = matches!(self.mode, Mode::New | Mode::Session) && self.session.is_handshaking();
        if is_handshake && self.shared.handshake_time.get() >= HANDSHAKE_TIME_PER_TURN {
            return Err(ErrorKind::Interrupted.into());
        }
        let shared = Rc::clone(&self.shared);
        let mut scratch = shared.input.borrow_mut();
        // Read only as much as fits into `buffer` after decryption, so that `self.plaintext` stays small.
        let limit = buffer.len().saturating_sub(self.input.len()).clamp(MIN_READ_LEN, MAX_READ_LEN);
        let len = self.tcp.read(&mut scratch[..limit]);
        self.stream = match &len {
            Ok(0) => StreamState::Ended,
            Ok(len) if *len < limit => StreamState::Drained, // epoll(7): a short read means an empty socket buffer
            Err(error) if error.kind() == ErrorKind::WouldBlock => StreamState::Drained,
            _ => StreamState::Readable,
        };
        let received = &mut scratch[..len?];
        match self.mode {
            _ if received.is_empty() => Ok(0),
            Mode::Plain | Mode::Failed => Ok(0),
            // TLS begins with a handshake record, whose first byte is 22. An HTTP request begins with a letter.
            Mode::New if received[0].is_ascii_alphabetic() => {
                self.mode = Mode::Plain;
                Err(io::Error::new(ErrorKind::InvalidInput, PLAIN_HTTP_ERROR))
            }
            Mode::New | Mode::Session => {
                self.mode = Mode::Session;
                let started = is_handshake.then(Instant::now);
                let result = self.process_records(received, buffer);
                let spent = started.map_or(Duration::ZERO, |started| started.elapsed());
                shared.handshake_time.set(shared.handshake_time.get() + spent);
                result
            }
        }
    }

    /// Decrypts the bytes of `self.input` and `received` into `buffer`, and sends handshake messages.
    fn process_records(&mut self, received: &mut [u8], buffer: &mut [u8]) -> io::Result<usize> {
        let mut joined = std::mem::take(&mut self.input);
        let records = if joined.is_empty() {
            received
        } else {
            joined.extend_from_slice(received);
            &mut joined[..]
        };
        let (mut consumed, mut copied) = (0, 0);
        let result = loop {
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(&mut records[consumed..]);
            let mut result = None;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        let fitting = record.payload.len().min(buffer.len() - copied);
                        buffer[copied..copied + fitting].copy_from_slice(&record.payload[..fitting]);
                        self.plaintext.extend_from_slice(&record.payload[fitting..]);
                        copied += fitting;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.output),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(), // `encode` has appended the data to `output`
                Ok(ConnectionState::PeerClosed) => self.stream = StreamState::Ended,
                Ok(_) => result = Some(Ok(copied)), // the session needs more input, or can encrypt output
                Err(error) => result = Some(Err(format!("TLS: {error}"))),
            }
            consumed += discard;
            if let Some(result) = result {
                break result;
            }
        };
        let rest = &mut records[consumed..];
        let result = result.and_then(|copied| match rest.len() {
            ..=MAX_RECORD => Ok(copied),
            _ => Err("TLS: a handshake message is too long".into()),
        });
        if result.is_ok() {
            self.input = rest.to_vec();
        } else {
            self.mode = Mode::Failed;
            // The session may have queued messages, such as the alert that tells the client about the error. Call
            // `process_tls_records` only while messages are queued: otherwise, it would parse the invalid input again.
            while self.session.wants_write()
                && let Ok(ConnectionState::EncodeTlsData(data)) = self.session.process_tls_records(rest).state
            {
                encode(data, &mut self.output);
            }
        }
        if !self.output.is_empty() {
            self.send_output()?;
        }
        result.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
    }

    /// Encrypts and sends plaintext until the kernel accepts no more. Returns the number of plaintext bytes consumed.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = slices.iter().map(|slice| slice.len()).sum();
        match self.mode {
            Mode::Plain => return self.tcp.write_vectored(slices),
            Mode::Failed => return Ok(total),
            Mode::New | Mode::Session if self.session.is_handshaking() => {
                // The server rejects the client before the handshake is complete. Send an alert instead of the HTTP
                // response: the response would require the rest of the handshake, which costs far more CPU time.
                self.mode = Mode::Failed;
                self.output.extend_from_slice(&REJECTION_ALERT);
                self.send_output()?;
                return Ok(total);
            }
            Mode::New | Mode::Session => {}
        }
        self.send_output()?;
        let (shared, mut written) = (Rc::clone(&self.shared), 0);
        let mut joined = shared.plaintext.borrow_mut();
        while written < total && self.output.is_empty() {
            let record = next_record(slices, written, &mut joined);
            self.encrypt(|traffic, output| traffic.encrypt(record, output))?;
            written += record.len();
        }
        if written < total && written == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(written) }
    }

    /// Calls `encrypt` with a buffer for a record, and sends the written bytes. `output` keeps what cannot be sent yet.
    fn encrypt(
        &mut self,
        mut encrypt: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        let shared = Rc::clone(&self.shared);
        let mut buffer = shared.output.borrow_mut();
        let len = loop {
            // The TLS session may already have parsed part of a handshake message in `input`. Every call must therefore
            // pass these bytes again, even a call that only encrypts.
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut self.input);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => break encrypt(&mut traffic, &mut buffer),
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.output),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => {
                    self.mode = Mode::Failed;
                    return Err(ErrorKind::BrokenPipe.into());
                }
            }
            self.input.drain(..discard);
        };
        let record = &buffer[..len.map_err(io::Error::other)?];
        // Earlier bytes in `output` must be sent before the record.
        let sent = if self.output.is_empty() { send(&mut self.tcp, record)? } else { 0 };
        self.output.extend_from_slice(&record[sent..]);
        Ok(())
    }

    fn send_output(&mut self) -> io::Result<()> {
        let sent = send(&mut self.tcp, &self.output)?;
        if sent > 0 {
            self.output = self.output[sent..].to_vec();
        }
        if self.output.is_empty() && std::mem::take(&mut self.wants_shutdown) {
            self.tcp.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Sends close_notify (RFC 8446 §6.1) once, if the handshake is complete and the session has not failed.
    fn close(&mut self) -> io::Result<()> {
        if self.mode != Mode::Session || self.session.is_handshaking() {
            return Ok(());
        }
        self.encrypt(|traffic, output| traffic.queue_close_notify(output))
    }
}

impl Drop for TlsSocket {
    fn drop(&mut self) {
        // RFC 8446 §6.1: "Each party MUST send a "close_notify" alert before closing its write side of the connection".
        // If bytes remain in `output`, skip the alert: the peer is not reading, so the alert would not reach it.
        if self.output.is_empty() {
            let _ = self.close();
        }
    }
}

/// Appends a handshake message or an alert to `output`.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, output: &mut Vec<u8>) {
    let start = output.len();
    if let Err(EncodeError::InsufficientSize(error)) = data.encode(&mut []) {
        output.resize(start + error.required_size, 0);
    }
    let encoded = data.encode(&mut output[start..]);
    debug_assert!(encoded.is_ok(), "the buffer has the size that the session asked for");
}

/// Sends bytes until the kernel accepts no more. Returns the number of bytes sent.
fn send(tcp: &mut socket2::Socket, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match tcp.write(&bytes[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => sent += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Returns the plaintext of the next record, which begins at byte `start` of `slices`. Copies only to join slices.
fn next_record<'a>(slices: &'a [IoSlice<'_>], start: usize, joined: &'a mut Vec<u8>) -> &'a [u8] {
    joined.clear();
    let mut skip = start;
    for (at, slice) in slices.iter().enumerate() {
        let rest = &slice[skip.min(slice.len())..];
        skip -= slice.len() - rest.len();
        let part = &rest[..rest.len().min(MAX_PLAINTEXT - joined.len())];
        if joined.is_empty() && (part.len() == MAX_PLAINTEXT || at + 1 == slices.len()) {
            return part;
        }
        joined.extend_from_slice(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_contain_the_slices_in_order() {
        let bytes: Vec<u8> = (0..3 * MAX_PLAINTEXT + 1).map(|at| (at % 251) as u8).collect();
        let cuts: [&[usize]; 7] =
            [&[], &[1], &[0, 1], &[5, 5, 9], &[MAX_PLAINTEXT], &[MAX_PLAINTEXT - 1], &[20_000, 20_001, 40_000]];
        for cuts in cuts {
            let ends = cuts.iter().copied().chain([bytes.len()]);
            let mut start = 0;
            let slices: Vec<IoSlice<'_>> =
                ends.map(|end| IoSlice::new(&bytes[std::mem::replace(&mut start, end)..end])).collect();
            let (mut joined, mut written) = (Vec::new(), Vec::new());
            while written.len() < bytes.len() {
                let record = next_record(&slices, written.len(), &mut joined);
                assert!((1..=MAX_PLAINTEXT).contains(&record.len()), "{cuts:?}");
                let record = record.to_vec();
                written.extend(record);
            }
            assert!(written == bytes, "{cuts:?}");
        }
    }
}
