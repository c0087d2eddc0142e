//! One connection to the admin listener. It carries one request and one response, within [`TIMEOUT`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::Token;

use socket2::Socket;

use crate::http::{HeadReader, Rejection, Request, bad_request};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEAD_LEN: usize = 8 * 1024;
pub const MAX_HEADERS: usize = 64;
const MAX_BODY_LEN: usize = 64 * 1024;
const READS_PER_TURN: usize = 32; // up to 4 KiB each; a peer that never stops sending must not delay the clients

pub struct AdminConnection {
    socket: Socket,
    pub peer: SocketAddr,
    pub deadline: Duration,
    stage: Stage,
}

enum Stage {
    Head(HeadReader),
    Body { head: Vec<u8>, body: Vec<u8>, length: usize },
    Waiting(Token), // the response waits until the message or ban change with this token is stored
    Sending { response: Vec<u8>, sent: usize },
    Draining, // discards input: a close with unread input sends a TCP reset, and the peer may lose the response
}

type HeadAndBody = (Vec<u8>, Vec<u8>);

pub enum Progress {
    Waits,
    Ended,
    Request { head: Vec<u8>, body: Vec<u8> },
    Rejected(Rejection),
}

impl AdminConnection {
    pub fn new(socket: Socket, peer: SocketAddr, now: Duration) -> AdminConnection {
        AdminConnection { socket, peer, deadline: now + TIMEOUT, stage: Stage::Head(HeadReader::default()) }
    }

    pub fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Head(_) | Stage::Body { .. })
    }

    /// If the response must wait for a message or ban change to be stored, returns the token of that message or change.
    pub fn announcement(&self) -> Option<Token> {
        if let Stage::Waiting(token) = self.stage { Some(token) } else { None }
    }

    pub fn wait_for(&mut self, announcement: Token) {
        self.stage = Stage::Waiting(announcement);
    }

    pub fn respond(&mut self, response: Vec<u8>, now: Duration) {
        self.stage = Stage::Sending { response, sent: 0 };
        self.deadline = self.deadline.max(now + Duration::from_secs(1)); // leaves at least 1 s to send the response
    }

    /// Reads until the request is complete or the socket has no more input.
    pub fn receive(&mut self) -> Progress {
        let mut buffer = [0; 4096];
        while self.is_reading() {
            let input = match self.socket.read(&mut buffer) {
                Ok(0) => return Progress::Ended,
                Ok(len) => &buffer[..len],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Progress::Ended,
            };
            match self.stage.push(input) {
                Ok(Some((head, body))) => return Progress::Request { head, body },
                Ok(None) => {}
                Err(rejection) => return Progress::Rejected(rejection),
            }
        }
        Progress::Waits
    }

    /// Writes the response, then discards input until the peer ends the stream. Stops earlier if the socket would
    /// block, or after `READS_PER_TURN` reads. Returns two flags: whether the connection is still open, and whether
    /// unread input may remain. If the second flag is set, call `send` again without waiting for readiness.
    pub fn send(&mut self) -> (bool, bool) {
        if let Stage::Sending { response, sent } = &mut self.stage {
            while *sent < response.len() {
                match self.socket.write(&response[*sent..]) {
                    Ok(written @ 1..) => *sent += written,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return (true, false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return (false, false),
                }
            }
            if self.socket.shutdown(Shutdown::Write).is_err() {
                return (false, false);
            }
            self.stage = Stage::Draining;
        }
        if !matches!(self.stage, Stage::Draining) {
            return (true, false);
        }
        let mut buffer = [0; 4096];
        for _ in 0..READS_PER_TURN {
            match self.socket.read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (true, false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return (false, false),
            }
        }
        (true, true)
    }
}

impl Stage {
    /// Adds input. Returns the head and the body of the request once both are complete.
    fn push(&mut self, mut input: &[u8]) -> Result<Option<HeadAndBody>, Rejection> {
        if let Stage::Head(reader) = self {
            let Some(end) = reader.receive(input, MAX_HEAD_LEN)? else { return Ok(None) };
            let head = reader.head().to_vec();
            let length = body_length(&Request::parse_head(&head, MAX_HEADERS)?)?;
            input = &input[end..];
            *self = Stage::Body { head, body: Vec::with_capacity(length), length };
        }
        let Stage::Body { head, body, length } = self else { return Ok(None) };
        body.extend_from_slice(&input[..input.len().min(*length - body.len())]);
        let is_complete = body.len() == *length;
        Ok(is_complete.then(|| (std::mem::take(head), std::mem::take(body))))
    }
}

fn body_length(request: &Request) -> Result<usize, Rejection> {
    if request.header_values("Transfer-Encoding").next().is_some() {
        return Err(Rejection::new(411, "A body must have a Content-Length (RFC 9110 §15.5.12)."));
    }
    let length = match request.header_values("Content-Length").collect::<Vec<_>>()[..] {
        [] => return Ok(0),
        [value] if value.iter().all(u8::is_ascii_digit) => {
            str::from_utf8(value).ok().and_then(|text| text.parse().ok())
        }
        _ => None,
    };
    let length: usize = length.ok_or_else(|| bad_request("Content-Length must be one number (RFC 9112 §6.3)."))?;
    let is_allowed = length <= MAX_BODY_LEN;
    is_allowed.then_some(length).ok_or_else(|| {
        Rejection::new(413, format!("The body has {length} bytes; the limit is {MAX_BODY_LEN} (RFC 9110 §15.5.14)."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a request in pieces of `size` bytes. Returns the head's length and the body, or the rejection's status.
    fn push(request: &str, size: usize) -> Result<Option<(usize, String)>, u16> {
        let mut stage = Stage::Head(HeadReader::default());
        for piece in request.as_bytes().chunks(size) {
            match stage.push(piece) {
                Ok(None) => {}
                Ok(Some((head, body))) => return Ok(Some((head.len(), String::from_utf8(body).unwrap()))),
                Err(rejection) => return Err(rejection.status),
            }
        }
        Ok(None)
    }

    #[test]
    fn a_request_is_complete_at_the_same_byte_wherever_it_is_cut() {
        let line = "POST /publish HTTP/1.1\r\n";
        let request = |headers: &str, body: &str| format!("{line}{headers}\r\n{body}");
        let length = |n: &str| format!("Content-Length: {n}\r\n");
        let rows = [
            (request("", ""), Ok(Some((line.len() + 2, String::new())))),
            (request("", "ignored"), Ok(Some((line.len() + 2, String::new())))),
            (request(&length("3"), "abc"), Ok(Some((line.len() + 21, "abc".into())))),
            (request(&length("3"), "abcd"), Ok(Some((line.len() + 21, "abc".into())))),
            (request(&length("3"), "ab"), Ok(None)),
            (request(&length("65536"), ""), Ok(None)),
            (request(&length("65537"), ""), Err(413)),
            (request(&length("99999999999999999999"), ""), Err(400)),
            (request(&length("-1"), ""), Err(400)),
            (request(&length("+1"), "x"), Err(400)),
            (request(&length(""), "x"), Err(400)),
            (request(&length("1, 1"), "x"), Err(400)),
            (request(&[length("1"), length("1")].concat(), "x"), Err(400)),
            (request("Transfer-Encoding: chunked\r\n", ""), Err(411)),
            (request(&format!("X: {}\r\n", "x".repeat(9000)), ""), Err(431)),
            (request(&"X: y\r\n".repeat(65), ""), Err(431)),
            (format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), Err(414)),
            ("\x16\x03\x01".into(), Err(400)),
        ];
        for (request, expected) in rows {
            for size in [1, 7, request.len()] {
                assert_eq!(push(&request, size), expected, "{request:.60} in pieces of {size}");
            }
        }
    }
}
