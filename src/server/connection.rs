//! One connection (socket, stage, outbox, closing steps), and the collection of all connections. In the table below,
//! the rows are the stages of a connection, and the columns are the number of bytes in its outbox, which `--max-outbox`
//! bounds. Each cell shows whether the server reads from the connection and writes to it:
//!
//! | | none | some | over half of the bound |
//! |---|---|---|---|
//! | `Handshake` | read | read, write | read, write |
//! | `Open`, a chat client | read | read, write | write |
//! | `Open`, `/echo` | read | write | write |
//! | `Draining`, reads nothing |  | write | write |
//! | `Draining`, discards input | read | read, write | read, write |
//!
//! Closing has up to three steps. *Close* sends a Close frame, and reads frames until the peer's Close. *Drain* writes
//! the rest of the outbox, and reads no more frames. *Remove* drops the connection. In the next table, "framing lost"
//! means code 1002 or 1009 (the server then stops parsing), and "input left" that the socket may have unread input:
//!
//! | cause | still sent | still read | timer |
//! |---|---|---|---|
//! | an HTTP response | the outbox | discarded until the end of the stream | close timeout |
//! | the server closes | the outbox, a Close | frames, until the peer's Close | close timeout |
//! | the consumer is slow | the frame that is half sent, a Close | frames, until the peer's Close | close timeout |
//! | an error, framing intact | the outbox, a Close | frames, until the peer's Close | close timeout |
//! | an error, framing lost | the outbox, a Close | discarded until the end of the stream | close timeout |
//! | the peer closes | the outbox, a Close | nothing | close timeout |
//! | the peer closes, input left | the outbox, a Close | discarded until the end of the stream | close timeout |
//! | the peer ended the stream | the outbox | nothing | close timeout |
//! | a timeout or a failed socket | nothing | nothing | none |

use std::io::{self, ErrorKind, Read, Write};
use std::{borrow::Cow, collections::VecDeque, net::SocketAddr, time::Duration};

use mio::Token;

use super::observer::Observer;
use super::outbox::{Broadcast, Outbox, count_frames};
use crate::ws::deflate::{broadcast::Variant, negotiation::Agreement};
pub use crate::ws::frame::Role;
use crate::ws::protocol::{Limits, Protocol, State};
use crate::{config::Config, http::jwt::proof::Proof, maps::TokenMap, ws::request::HeadReader};

/// The server stops processing an `/echo` client's input while the client's outbox holds more than this many bytes.
const MAX_ECHO_OUTBOX: usize = 64 * 1024;
const WORK_LIST_COUNT: usize = Work::Remove as usize + 1;

/// A non-blocking transport. After `WouldBlock`, the event loop reports when the socket is ready again.
pub trait Socket: Read + Write {
    /// Whether the transport's own buffers, such as those of TLS, hold unread client bytes or unsent server bytes.
    fn has_pending_bytes(&self, _from: Role) -> bool {
        false // plain TCP has no buffer in user space
    }

    /// The number of bytes in the transport's own buffers, including unfinished TLS records.
    fn buffered_bytes(&self) -> usize {
        0
    }

    /// Removes a complete PROXY header from the input, and returns the client's address, if the header contains one.
    /// Returns `WouldBlock` while the header is incomplete.
    fn read_proxy_header(&self) -> io::Result<Option<SocketAddr>> {
        Ok(None)
    }

    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// A connection. Rarely used fields are in `cold`, a separate allocation, so that a broadcast touches less memory.
pub struct Connection<S> {
    socket: S,
    pub outbox: Outbox,
    pub frames_sent: u64, // number of frames sent or queued; an observer attached later continues this count
    pub bytes_sent: u64,
    pub observer: Option<Box<dyn Observer>>,
    input: Input,
    pub variant: Variant,            // whether and how messages of the room are compressed
    queued: [bool; WORK_LIST_COUNT], // for each kind of work, whether the connection is already queued for it
    pub cold: Box<ColdFields>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The stream ended or failed. Handled before `Read`, to detect a mass disconnect before any event batch is sent.
    ReadEnding,
    Read,
    Handshake, // an opening handshake costs more than a read of an open connection, so a turn allows fewer of them
    Write,
    CloseSlow,
    Remove,
}

pub struct ColdFields {
    pub peer: SocketAddr,           // the client's address, which a trusted proxy may have reported
    pub is_proxy: bool,             // whether the peer is a proxy that reports the client's address and scheme
    pub expects_proxy_header: bool, // whether the input starts with a PROXY header
    pub is_counted: bool,           // whether the connection counts towards `--max-per-address`
    pub proof: Proof,               // what the client's access token proves
    pub deflate: Option<Agreement>, // how `/echo` compresses messages; `None` without compression
    pub service: Option<Service>,   // `None` before the upgrade
    pub stage: Stage,
    /// When the last byte arrived. If the server runs an idle check late, it adds the delay to this time, so that the
    /// delay does not count as the peer's silence.
    pub last_received: Duration,
    pub deadline: Option<Duration>, // a copy of the deadline in `Timers`, to find the entry there
    pub close_code: Option<u16>,    // code of the first Close frame, sent or received
    pub buffered: usize,            // this connection's share of `ConnectionLimits::buffered`
    pub unprocessed: Box<[u8]>,     // input that waits until the outbox has room for the replies
}

pub enum Stage {
    Handshake(HeadReader),
    Open(Protocol),
    Draining {
        /// Whether to discard input until EOF: closing a socket with unread input sends an RST, which can lose output.
        discards_input: bool,
        is_write_closed: bool, // whether the server has already shut down the write side
        reason: Cow<'static, str>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    Chat,
    Echo,
    Inspect,
}

/// Whether the socket may have unread input. The edge-triggered poll reports new input only once, so remember it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Input {
    Drained, // the socket has no unread input, so new input causes a readiness edge
    Readable,
    Ending, // the stream has ended or failed: the poll reports nothing more, so read until EOF or an error
    Ended,
}

impl Service {
    pub fn limits(self, config: &Config) -> Limits {
        let message = match self {
            Service::Echo => config.max_echo,
            Service::Chat => config.max_message,
            Service::Inspect => 1024, // maximum message size in bytes; inspectors send only short commands
        };
        Limits { message, fragments: config.max_fragments, accepts_binary: self == Service::Echo, deflates: false }
    }
}

impl<S: Socket> Connection<S> {
    pub fn new(socket: S, peer: SocketAddr, observer: Option<Box<dyn Observer>>, now: Duration) -> Connection<S> {
        let cold = Box::new(ColdFields {
            peer,
            is_proxy: false,
            expects_proxy_header: false,
            is_counted: false,
            proof: Proof::default(),
            deflate: None,
            service: None,
            stage: Stage::Handshake(HeadReader::default()),
            last_received: now,
            deadline: None,
            close_code: None,
            buffered: 0,
            unprocessed: Box::default(),
        });
        let (outbox, input, variant, queued) = (Outbox::default(), Input::Drained, Variant::Plain, Default::default());
        Connection { socket, outbox, frames_sent: 0, bytes_sent: 0, observer, input, variant, queued, cold }
    }

    /// Marks the socket as readable. `is_last`: the stream ended or failed, so the poll will report no more input.
    pub fn set_readable(&mut self, is_last: bool) {
        self.input = self.input.max(if is_last { Input::Ending } else { Input::Readable });
    }

    pub fn wants_read(&self, max_outbox: usize) -> bool {
        let reads = match &self.cold.stage {
            Stage::Handshake(_) => true,
            Stage::Draining { discards_input, .. } => *discards_input,
            Stage::Open(_) if self.is_echo() => self.is_flushed(),
            // Replies (mostly Pongs) must not fill the outbox of a peer that sends but does not read.
            Stage::Open(_) => !self.is_congested(max_outbox),
        };
        reads && (self.has_input() || !self.cold.unprocessed.is_empty())
    }

    /// Whether the outbox is too full to process more of the client's frames, each of which may cause a reply.
    pub fn is_congested(&self, max_outbox: usize) -> bool {
        self.outbox.len() > if self.is_echo() { MAX_ECHO_OUTBOX } else { max_outbox / 2 }
    }

    pub fn is_queued(&self, work: Work) -> bool {
        self.queued[work as usize]
    }

    fn is_echo(&self) -> bool {
        self.cold.service == Some(Service::Echo)
    }

    fn has_input(&self) -> bool {
        matches!(self.input, Input::Readable | Input::Ending) || self.socket.has_pending_bytes(Role::Client)
    }

    /// Whether the kernel has accepted all bytes of the connection's output.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty() && !self.socket.has_pending_bytes(Role::Server)
    }

    /// Reads once. Returns `None` on `WouldBlock` or `Interrupted`, 0 at the end of the stream, and
    /// `Err` if the socket has failed.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let (input, len) = match self.socket.read(buffer) {
            Ok(0) => (Input::Ended, Some(0)),
            // epoll(7): a short read means an empty socket buffer. Read again only if the stream has ended or failed.
            Ok(len) if len < buffer.len() && self.input == Input::Readable => (Input::Drained, Some(len)),
            Ok(len) => (self.input, Some(len)), // unread input may remain, so the server reads again in a later turn
            Err(error) if error.kind() == ErrorKind::WouldBlock => (Input::Drained, None),
            Err(error) if error.kind() == ErrorKind::Interrupted => (self.input, None),
            Err(error) => return Err(error),
        };
        self.input = input;
        if let (Some(observer), Some(len @ 1..)) = (&mut self.observer, len) {
            observer.observe(Role::Client, &buffer[..len]);
        }
        Ok(len)
    }

    pub fn read_proxy_header(&mut self) -> io::Result<Option<SocketAddr>> {
        let header = self.socket.read_proxy_header();
        let is_incomplete = header.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        self.cold.expects_proxy_header = is_incomplete && self.input != Input::Ending;
        self.input = if self.cold.expects_proxy_header { Input::Drained } else { self.input };
        header
    }

    /// Writes the outbox. Once it is empty, shuts down the write side if the connection only discards input from now
    /// on, so that the peer sees EOF and closes too.
    pub fn flush(&mut self) -> io::Result<()> {
        let Connection { socket, outbox, observer, bytes_sent, .. } = self;
        let before = outbox.len();
        let flushed = outbox.flush(socket, observer.as_deref_mut().map(|observer| observer as _));
        *bytes_sent += (before - outbox.len()) as u64;
        flushed?;
        socket.flush()?;
        observer.take_if(|observer| observer.is_done());
        if self.is_flushed()
            && let Stage::Draining { discards_input: true, is_write_closed: is_write_closed @ false, .. } =
                &mut self.cold.stage
        {
            *is_write_closed = true;
            self.socket.shutdown_write()?;
        }
        Ok(())
    }

    pub fn send_broadcast(&mut self, broadcast: &mut Broadcast<'_>) -> io::Result<()> {
        if self.observer.is_some() {
            self.push_frames(broadcast.frames);
            return self.flush();
        }
        self.frames_sent += broadcast.count;
        let total = self.outbox.len() + broadcast.frames.len();
        self.outbox.send_broadcast(broadcast, &mut self.socket)?;
        self.bytes_sent += (total - self.outbox.len()) as u64;
        Ok(())
    }

    pub fn push_frames<'a>(&mut self, frames: impl Into<Cow<'a, [u8]>>) {
        let frames = frames.into();
        self.frames_sent += count_frames(&frames);
        let reframed = self.observer.as_mut().and_then(|observer| observer.reframe(&frames));
        self.outbox.push(reframed.map_or(frames, Cow::Owned));
    }

    /// Whether the server may still send data frames on the connection.
    pub fn is_open(&self) -> bool {
        matches!(&self.cold.stage, Stage::Open(protocol) if protocol.state() == State::Open)
    }

    pub fn protocol_if_open(&mut self) -> Option<&mut Protocol> {
        let Stage::Open(protocol) = &mut self.cold.stage else { return None };
        (protocol.state() == State::Open).then_some(protocol)
    }

    /// Whether the client is a slow consumer. Always `false` on `/echo`, which has backpressure, and during closing.
    pub fn is_slow(&self, max_outbox: usize) -> bool {
        self.is_open() && !self.is_echo() && self.outbox.is_over_bound(max_outbox)
    }

    /// Moves the protocol's output to the outbox. If the protocol has read its last frame, drains the connection.
    pub fn apply_protocol_state(&mut self) {
        let Stage::Open(protocol) = &mut self.cold.stage else { return };
        let (replies, state) = (protocol.take_output(), protocol.state());
        self.push_frames(replies);
        match state {
            State::Open | State::Closing => {}
            State::OutOfSync => self.drain(true, "the peer ended the stream after the server's Close"),
            State::Closed => self.drain(self.has_input(), "both Closes passed; the server ended TCP (§7.1.1)"),
        }
    }

    pub fn drain(&mut self, discards_input: bool, reason: impl Into<Cow<'static, str>>) {
        self.cold.stage = Stage::Draining { discards_input, is_write_closed: false, reason: reason.into() };
    }

    pub fn has_drained(&self) -> bool {
        let Stage::Draining { discards_input, .. } = self.cold.stage else { return false };
        self.is_flushed() && (!discards_input || self.input == Input::Ended)
    }

    /// The bytes in the connection's own buffers, which count towards `--max-buffered`. Excludes shared frames.
    pub fn buffered_bytes(&self) -> usize {
        let received = match &self.cold.stage {
            Stage::Handshake(head) => head.byte_count(),
            Stage::Open(protocol) => protocol.buffered_bytes(),
            Stage::Draining { .. } => 0,
        };
        let observer = self.observer.as_ref().map_or(0, |observer| observer.buffered_bytes());
        // Exclude the socket's buffers while the connection waits in the `Remove` list: they are about to be freed. If
        // they counted, the server could close another connection to get below `--max-buffered`.
        let transport = if self.is_queued(Work::Remove) { 0 } else { self.socket.buffered_bytes() };
        received + observer + transport + self.cold.unprocessed.len() + self.outbox.owned_len()
    }

    /// Like `buffered_bytes`, but counts all unsent output, including shared frames.
    pub fn memory_bytes(&self) -> usize {
        self.buffered_bytes() - self.outbox.owned_len() + self.outbox.len()
    }
}

pub struct Connections<S> {
    pub table: TokenMap<Connection<S>>,
    pub next_token: Token, // the server never reuses a poll token: a late event must not reach a newer connection
    work: [VecDeque<Token>; WORK_LIST_COUNT],
}

impl<S: Socket> Connections<S> {
    pub fn new(next_token: Token) -> Connections<S> {
        Connections { table: TokenMap::default(), next_token, work: Default::default() }
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut Connection<S>> {
        self.table.get_mut(&token)
    }

    pub fn queued_bytes(&self, token: Token) -> Option<usize> {
        self.table.get(&token).filter(|connection| connection.is_open()).map(|connection| connection.outbox.len())
    }

    pub fn send<'a>(&mut self, token: Token, frames: impl Into<Cow<'a, [u8]>>) {
        let frames = frames.into();
        if let Some(connection) = self.table.get_mut(&token).filter(|_| !frames.is_empty()) {
            connection.push_frames(frames);
            self.queue(Work::Write, token);
        }
    }

    pub fn queue_read(&mut self, token: Token, max_outbox: usize) {
        let Some(connection) = self.get_mut(token) else { return };
        let work = match connection.cold.stage {
            _ if !connection.wants_read(max_outbox) => return,
            Stage::Handshake(_) => Work::Handshake,
            _ if connection.input == Input::Ending => Work::ReadEnding,
            _ => Work::Read,
        };
        self.queue(work, token);
    }

    pub fn queue(&mut self, work: Work, token: Token) {
        let Some(connection) = self.table.get_mut(&token) else { return };
        if !std::mem::replace(&mut connection.queued[work as usize], true) {
            debug_assert!(!self.work[work as usize].contains(&token), "a work list holds a connection once");
            self.work[work as usize].push_back(token);
        }
    }

    pub fn dequeue(&mut self, work: Work) -> Option<Token> {
        let token = self.work[work as usize].pop_front()?;
        if let Some(connection) = self.table.get_mut(&token) {
            connection.queued[work as usize] = false;
        }
        Some(token)
    }

    pub fn queue_len(&self, work: Work) -> usize {
        self.work[work as usize].len()
    }

    pub fn has_work(&self, lists: [Work; 3]) -> bool {
        lists.into_iter().any(|work| self.queue_len(work) > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    struct SilentSocket {
        pending: Option<Role>,
    }

    impl Read for SilentSocket {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl Write for SilentSocket {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.pending.take_if(|from| *from == Role::Server);
            Ok(())
        }
    }

    impl Socket for SilentSocket {
        fn has_pending_bytes(&self, from: Role) -> bool {
            self.pending == Some(from)
        }

        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn connection(stage: Stage, service: Service, queued: usize) -> Connection<SilentSocket> {
        let peer = "192.0.2.1:1".parse().unwrap();
        let mut connection = Connection::new(SilentSocket { pending: None }, peer, None, Duration::ZERO);
        (connection.cold.stage, connection.cold.service) = (stage, Some(service));
        connection.outbox.push(vec![0; queued]);
        connection.set_readable(false);
        connection
    }

    fn open() -> Stage {
        Stage::Open(Protocol::new(Limits { message: 9, fragments: 9, accepts_binary: true, deflates: false }))
    }

    fn draining(discards_input: bool) -> Stage {
        Stage::Draining { discards_input, is_write_closed: false, reason: "".into() }
    }

    #[test]
    fn the_interest_table_matches_the_code() {
        const BOUND: usize = 100;
        type Make = fn() -> Stage;
        let stages: [(&str, Make, Service); 5] = [
            ("`Handshake`", || Stage::Handshake(HeadReader::default()), Service::Chat),
            ("`Open`, a chat client", open, Service::Chat),
            ("`Open`, `/echo`", open, Service::Echo),
            ("`Draining`, reads nothing", || draining(false), Service::Chat),
            ("`Draining`, discards input", || draining(true), Service::Chat),
        ];
        let mut table = "| | none | some | over half of the bound |\n|---|---|---|---|".to_owned();
        for (name, stage, service) in stages {
            let cells = [0, 1, BOUND / 2 + 1].map(|queued| {
                let connection = connection(stage(), service, queued);
                let words = [(connection.wants_read(BOUND), "read"), (!connection.is_flushed(), "write")]
                    .into_iter()
                    .filter(|(is_wanted, _)| *is_wanted);
                words.map(|(_, word)| word).collect::<Vec<_>>().join(", ")
            });
            table += &format!("\n| {name} | {} |", cells.join(" | "));
        }
        crate::pictures::assert_in_module_doc(include_str!("connection.rs"), &table);
    }

    #[test]
    fn every_queued_frame_is_counted_for_later_observers() {
        let mut connection = connection(open(), Service::Chat, 0);
        let frames = b"\x81\x01a\x81\x01b";
        connection.send_broadcast(&mut Broadcast::new(frames, &Rc::default())).unwrap();
        connection.push_frames(frames);
        connection.protocol_if_open().unwrap().ping(b"");
        connection.apply_protocol_state();
        assert_eq!(connection.frames_sent, 5);
    }

    #[test]
    fn bytes_inside_the_transport_count_as_input_and_as_unsent() {
        let mut connection = connection(open(), Service::Chat, 0);
        connection.input = Input::Drained;
        assert!(!connection.wants_read(100) && connection.is_flushed());
        connection.socket.pending = Some(Role::Client);
        assert!(connection.wants_read(100) && connection.is_flushed(), "decrypted and unread");
        connection.socket.pending = Some(Role::Server);
        assert!(!connection.wants_read(100) && !connection.is_flushed(), "encrypted and unsent");
        connection.flush().unwrap();
        assert!(connection.is_flushed(), "the transport sends its bytes, even if the outbox is empty");
    }

    #[test]
    fn rfc_7_1_1_when_the_server_closes_tcp() {
        let after = |mut bytes: Vec<u8>, has_input: bool| {
            let mut connection = connection(open(), Service::Echo, 0);
            connection.input = if has_input { Input::Readable } else { Input::Drained };
            let Stage::Open(protocol) = &mut connection.cold.stage else { panic!("it is open") };
            while protocol.receive(&mut &mut bytes[..]).is_some_and(|_| false) {}
            connection.apply_protocol_state();
            match connection.cold.stage {
                Stage::Draining { discards_input, .. } => Some(discards_input),
                _ => None,
            }
        };
        assert_eq!(after(b"\x89\x80\0\0\0\0".to_vec(), true), None, "a Ping");
        assert_eq!(after(b"\x81\x81\0\0\0\0\xff".to_vec(), true), None, "the peer's Close may still follow");
        assert_eq!(after(b"\x81\x05".to_vec(), false), Some(true), "framing lost");
        let close = b"\x88\x80\0\0\0\0";
        assert_eq!(after(close.to_vec(), true), Some(true), "both Closes passed, with input unread");
        assert_eq!(after(close.to_vec(), false), Some(false), "both Closes passed");
    }
}
