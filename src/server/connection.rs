//! One client's socket: what may be read from it, what waits to be written to it, and where it stands in its life.
//!
//! A [`Connection`] moves bytes and knows its phase. It does not know rooms, names or other connections, and it takes
//! no decision that needs the clock: the server asks it, and tells it.
//!
//! What is wanted of it, if it has input; the columns say how much waits to be written:
//!
//! | | nothing | something | over half of its bound |
//! |---|---|---|---|
//! | `Handshake` | read | read, write | read, write |
//! | `Open`, to the chat | read | read, write | write |
//! | `Open`, to `/echo` | read | write | write |
//! | `Draining(Close)` |  | write | write |
//! | `Draining(Linger)` | read | read, write | read, write |
//! | `Draining(Shut)` | read | read, write | read, write |
//!
//! The subtle thing: polling is edge-triggered. An edge that is not acted upon does not come again, so it is remembered
//! in `input`; [`Connection::interest`] says, from the state alone, what the server wants of it now.

use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use mio::net::TcpStream;

use super::inspection::Secret;
use super::outbox::Outbox;
use super::phase::{Ending, Endpoint, Open, Phase};
use super::watch::{Watch, Watched};
use crate::ws::close::CloseCode;
use crate::ws::frame::{self, Role};
use crate::ws::protocol::{Framing, State};
use crate::ws::request::HeadReader;

/// How much may be echoed of one read before it is written.
const ECHO_AHEAD: usize = 64 * 1024;

/// A socket and its state.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Where the client is.
    pub peer: SocketAddr,
    /// Where the connection stands in its life.
    pub phase: Phase,
    /// What waits to be written.
    pub outbox: Outbox,
    /// When the socket last told of input, or was accepted.
    pub last_received: Instant,
    /// When it must be looked at next, kept here for `Deadlines`; `None`: it began to close in this turn.
    pub deadline: Option<Instant>,
    /// Bytes of the shared allowance that are counted for this connection.
    pub buffered: usize,
    /// Whether the server has it on its list of connections to read.
    pub is_queued: bool,
    /// Input that was read and is not acted upon before there is room for the answers.
    pub unprocessed: Vec<u8>,
    /// Who looks at its bytes: nearly always nobody.
    pub watch: Option<Box<Watch>>,
    /// What the ticket for looking at it must hold; `None` once it is used, and where there is none.
    pub secret: Option<Secret>,
    /// Its next message is to go out in fragments.
    pub fragments_next: bool,
    /// The poll tells of room to write: it does once something had to wait for that.
    pub awaits_room: bool,
    input: Input,
}

/// What is known of the socket's readable side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Everything that came has been read; an edge will tell of more.
    Drained,
    /// There may be more to read.
    Readable,
    /// As `Readable`, and an end of the stream (or an error) is behind it, of which no further edge will tell.
    Ending,
    /// The end has been read.
    Ended,
}

/// What the server wants of a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// To read from it.
    pub read: bool,
    /// To write to it.
    pub write: bool,
}

/// What a read brought.
#[derive(Debug)]
pub enum Received {
    /// This many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The peer will send no more.
    End,
}

impl Connection {
    /// A connection that has just been accepted.
    pub fn new(stream: TcpStream, peer: SocketAddr, now: Instant) -> Connection {
        Connection {
            stream,
            peer,
            phase: Phase::Handshake(HeadReader::default()),
            outbox: Outbox::default(),
            last_received: now,
            deadline: None,
            buffered: 0,
            is_queued: false,
            unprocessed: Vec::new(),
            watch: None,
            secret: None,
            fragments_next: false,
            awaits_room: false,
            input: Input::Drained,
        }
    }

    /// The socket, to be registered.
    pub fn source(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Remembers an edge. `ends`: the peer has shut down its side, or the socket has failed.
    pub fn set_readable(&mut self, ends: bool) {
        self.input = match self.input {
            Input::Ended => Input::Ended,
            Input::Ending => Input::Ending,
            _ if ends => Input::Ending,
            _ => Input::Readable,
        };
    }

    /// What is wanted of this connection now, derived from its state. `max_outbox` is the bound in bytes.
    pub fn interest(&self, max_outbox: usize) -> Wanted {
        let takes_input = match &self.phase {
            Phase::Handshake(_) | Phase::Draining(Ending::Linger | Ending::Shut) => true,
            Phase::Draining(Ending::Close) => false,
            Phase::Open(open) => match open.endpoint {
                // An echo is as long as its message: what is not sent is not added to.
                Endpoint::Echo => self.outbox.is_empty(),
                // Answers (pongs above all) must not pile up for a peer who sends and does not read.
                Endpoint::Chat | Endpoint::Inspect(_) => self.outbox.len() <= max_outbox / 2,
            },
        };
        let has_input = self.has_input() || !self.unprocessed.is_empty();
        Wanted { read: takes_input && has_input, write: !self.outbox.is_empty() }
    }

    /// Whether so much waits to be written that no more frames should be acted upon, since each may be answered.
    pub fn is_congested(&self, max_outbox: usize) -> bool {
        match &self.phase {
            Phase::Open(Open { endpoint: Endpoint::Echo, .. }) => self.outbox.len() > ECHO_AHEAD,
            _ => self.outbox.len() > max_outbox / 2,
        }
    }

    fn has_input(&self) -> bool {
        matches!(self.input, Input::Readable | Input::Ending)
    }

    /// Reads once, at most as much as `buffer` holds.
    ///
    /// # Errors
    /// What the socket says, except that it would block or was interrupted.
    pub fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    self.input = Input::Ended;
                    return Ok(Received::End);
                }
                Ok(len) => {
                    if let Some(watch) = &mut self.watch {
                        watch.see(Role::Client, &buffer[..len]);
                    }
                    // epoll(7): on a stream, a short read means that it is drained. Only an end is told but once.
                    if len < buffer.len() && self.input == Input::Readable {
                        self.input = Input::Drained;
                    }
                    return Ok(Received::Bytes(len));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.input = Input::Drained;
                    return Ok(Received::Nothing);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what waits, as far as the socket takes it, and shuts down the write side when its time has come.
    ///
    /// # Errors
    /// What the socket says, except that it would block or was interrupted.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.watch {
            None => self.outbox.flush(&mut self.stream)?,
            Some(watch) => self.outbox.flush(&mut Watched { stream: &mut self.stream, watch })?,
        }
        if self.outbox.is_empty() && matches!(self.phase, Phase::Draining(Ending::Linger)) {
            self.stream.shutdown(Shutdown::Write)?;
            self.phase = Phase::Draining(Ending::Shut);
        }
        Ok(())
    }

    /// Writes what waits, and behind it frames that others are sent too; see [`Outbox::send_shared`].
    ///
    /// # Errors
    /// As [`Connection::flush`].
    pub fn send_shared(&mut self, frames: &[u8], shared: &mut Option<Rc<[u8]>>) -> io::Result<()> {
        match &mut self.watch {
            None => self.outbox.send_shared(frames, shared, &mut self.stream),
            Some(watch) => self.outbox.send_shared(frames, shared, &mut Watched { stream: &mut self.stream, watch }),
        }
    }

    /// Whether nothing is left to be done, so that the connection can be removed.
    pub fn is_finished(&self) -> bool {
        match self.phase {
            Phase::Handshake(_) | Phase::Open(_) => false,
            Phase::Draining(Ending::Close) => self.outbox.is_empty(),
            Phase::Draining(Ending::Linger | Ending::Shut) => self.outbox.is_empty() && self.input == Input::Ended,
        }
    }

    /// Whether data may still be sent: an upgraded connection whose closing has not begun.
    pub fn is_open(&self) -> bool {
        matches!(&self.phase, Phase::Open(open) if open.protocol.state() == State::Open)
    }

    /// Whether there is a bound on what may wait here: for all but an echo, which is not read while it is unsent, as
    /// long as the connection is open. (What a closing one still has to say is short.)
    pub fn is_bounded(&self) -> bool {
        self.is_open() && matches!(&self.phase, Phase::Open(open) if open.endpoint != Endpoint::Echo)
    }

    /// Whether nothing has begun, in either direction, that has not passed to its end.
    pub fn is_between_messages(&self) -> bool {
        let is_received = self.unprocessed.is_empty() && self.outbox.is_empty();
        is_received && self.is_open() && matches!(&self.phase, Phase::Open(open) if open.protocol.is_between_messages())
    }

    /// Queues whole data frames for this client alone; the first in fragments, if that was asked for.
    pub fn push_frames(&mut self, frames: &[u8]) {
        if frames.is_empty() {
            return;
        }
        if std::mem::take(&mut self.fragments_next) {
            self.outbox.push_own(|out| frame::append_in_fragments(out, frames));
        } else {
            self.outbox.push_own(|out| out.extend_from_slice(frames));
        }
    }

    /// Begins the closing handshake (§7.1.2), if it has not begun.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        if let Phase::Open(open) = &mut self.phase {
            open.protocol.close(code, reason);
            self.watch.iter_mut().for_each(|watch| watch.close_begins());
        }
    }

    /// Queues the replies of the protocol, and follows it where it stands: when nothing is left to be read as frames,
    /// the connection drains.
    pub fn follow_protocol(&mut self) {
        let Phase::Open(open) = &mut self.phase else { return };
        let replies = open.protocol.take_replies();
        if !replies.is_empty() {
            self.outbox.push_frames(replies);
        }
        match open.protocol.state() {
            State::Open | State::Closing(Framing::Intact) => {}
            State::Closing(Framing::Lost) => self.phase = Phase::Draining(Ending::Linger),
            // §7.1.1: the server closes first. With input unread that would be a reset.
            State::Closed if self.has_input() => self.phase = Phase::Draining(Ending::Linger),
            State::Closed => self.phase = Phase::Draining(Ending::Close),
        }
    }

    /// Bytes that count against the allowance shared by all: an unfinished message, input that waits, and output that
    /// has no bound of its own, which is an echo, whatever has become of its connection.
    pub fn buffered_now(&self) -> usize {
        let message = match &self.phase {
            Phase::Open(open) => open.protocol.buffered(),
            _ => 0,
        };
        let watch = self.watch.as_ref().map_or(0, |watch| watch.buffered());
        message + watch + self.unprocessed.len() + if self.is_bounded() { 0 } else { self.outbox.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::protocol::{Limits, Protocol};

    /// A connection to nobody: it is moved by hand, and never read or written.
    fn connection(phase: Phase, waiting: usize) -> Connection {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = stream.peer_addr().unwrap();
        let mut connection = Connection::new(TcpStream::from_std(stream), peer, Instant::now());
        assert!(matches!(connection.phase, Phase::Handshake(_)));
        connection.phase = phase;
        connection.outbox.push_own(|bytes| bytes.resize(waiting, 0));
        connection.set_readable(false);
        connection
    }

    fn open(endpoint: Endpoint) -> Phase {
        Phase::Open(Open { protocol: Protocol::new(Limits { message: 9, fragments: 9, binary: true }), endpoint })
    }

    #[test]
    fn the_picture_of_what_is_wanted_is_true() {
        const BOUND: usize = 100;
        type Make = fn() -> Phase;
        let phases: [(&str, Make); 6] = [
            ("`Handshake`", || Phase::Handshake(HeadReader::default())),
            ("`Open`, to the chat", || open(Endpoint::Chat)),
            ("`Open`, to `/echo`", || open(Endpoint::Echo)),
            ("`Draining(Close)`", || Phase::Draining(Ending::Close)),
            ("`Draining(Linger)`", || Phase::Draining(Ending::Linger)),
            ("`Draining(Shut)`", || Phase::Draining(Ending::Shut)),
        ];
        let mut table = "| | nothing | something | over half of its bound |\n|---|---|---|---|".to_owned();
        for (name, phase) in phases {
            let wanted = [0, 1, BOUND / 2 + 1].map(|waiting| {
                let Wanted { read, write } = connection(phase(), waiting).interest(BOUND);
                let words = [(read, "read"), (write, "write")].into_iter().filter(|(is_wanted, _)| *is_wanted);
                words.map(|(_, word)| word).collect::<Vec<_>>().join(", ")
            });
            table += &format!("\n| {name} | {} |", wanted.join(" | "));
        }
        crate::pictures::assert_drawn(include_str!("connection.rs"), &table);
    }

    /// The arrow of the picture that leads from `Open` to `Draining`.
    #[test]
    fn rfc_7_1_1_when_the_server_hangs_up() {
        let after = |mut bytes: Vec<u8>, has_input: bool| {
            let mut connection = connection(open(Endpoint::Echo), 0);
            connection.input = if has_input { Input::Readable } else { Input::Drained };
            let Phase::Open(open) = &mut connection.phase else { panic!("it is open") };
            while open.protocol.receive(&mut &mut bytes[..]).is_some_and(|_| false) {}
            connection.follow_protocol();
            match connection.phase {
                Phase::Draining(ending) => Some(ending),
                _ => None,
            }
        };
        assert_eq!(after(b"\x89\x80\0\0\0\0".to_vec(), true), None, "a Ping");
        assert_eq!(after(b"\x81\x81\0\0\0\0\xff".to_vec(), true), None, "our Close is out, its Close can still come");
        assert_eq!(after(b"\x81\x05".to_vec(), false), Some(Ending::Linger), "framing lost");
        let close = b"\x88\x80\0\0\0\0";
        assert_eq!(after(close.to_vec(), true), Some(Ending::Linger), "both Closes have passed, with input unread");
        assert_eq!(after(close.to_vec(), false), Some(Ending::Close), "both Closes have passed");
    }
}
