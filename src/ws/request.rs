//! §4.2.1, first half: the bytes of a request head become a [`Request`] or a [`Rejection`].
//!
//! [`HeadReader`] finds the end of the head in whatever pieces it comes, and `httparse` then parses it once. What HTTP
//! itself demands is checked here (RFC 9112, RFC 9110); what makes a request an upgrade is in `handshake.rs`.
//!
//! The subtle thing: `httparse` starts over at the first byte of whatever it is given, so a head that drips in must
//! not be parsed before it is complete (CVE-2023-43669). The reader remembers how far it has searched for the blank
//! line, looks at no byte twice, and judges on the way only what could otherwise keep it waiting for nothing.

/// Why a request is not upgraded: an HTTP status, headers that go with it, and a sentence or two for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The HTTP status code.
    pub status: u16,
    /// Headers beside those that every plain answer has.
    pub headers: &'static [(&'static str, &'static str)],
    /// Plain text: the rule, what was received, the section.
    pub body: String,
}

impl Rejection {
    /// A rejection without headers of its own.
    pub fn new(status: u16, body: impl Into<String>) -> Rejection {
        Rejection { status, headers: &[], body: body.into() }
    }
}

pub(super) fn bad_request(body: impl Into<String>) -> Rejection {
    Rejection::new(400, body)
}

/// Bytes of a peer as they may be shown in an answer or a log: escaped, and not too long.
pub fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]);
    let dots = if bytes.len() > 100 { "…" } else { "" };
    format!("\"{}{dots}\"", text.escape_debug())
}

/// Collects a request head that may come in pieces of any size, and finds its end.
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
    /// Everything before this has been searched for the end of a line.
    searched: usize,
    /// Where the line that is being searched begins.
    line: usize,
    /// Where the request line begins: behind the blank lines that RFC 9112 §2.2 lets a client send first.
    request_line: usize,
}

impl HeadReader {
    /// Takes received bytes. `Ok(Some(n))`: the head is complete, its last byte was `input[n - 1]`, and what is behind
    /// belongs to the protocol. `Ok(None)`: not complete yet. `max` is the limit for the whole head in bytes.
    ///
    /// # Errors
    /// 400 for what no HTTP head can begin with, 414 or 431 for one over `max`.
    ///
    /// ```
    /// let mut reader = wirechat::ws::request::HeadReader::default();
    /// assert_eq!(reader.receive(b"GET / HTTP/1.1\r\nHost: a\r\n", 8192), Ok(None));
    /// assert_eq!(reader.receive(b"\r\n\x81", 8192), Ok(Some(2))); // what is behind is a frame
    /// ```
    pub fn receive(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, Rejection> {
        let before = self.bytes.len();
        let taken = input.len().min(max.saturating_sub(before));
        self.bytes.extend_from_slice(&input[..taken]);
        while let Some(found) = memchr::memchr(b'\n', &self.bytes[self.searched..]) {
            let newline = self.searched + found;
            self.searched = newline + 1;
            if self.end_line(newline)? {
                self.bytes.truncate(newline + 1);
                return Ok(Some(newline + 1 - before));
            }
        }
        self.searched = self.bytes.len();
        self.judge_unfinished(max)?;
        Ok(None)
    }

    /// The complete head, without the blank lines before it.
    pub fn head(&self) -> &[u8] {
        &self.bytes[self.request_line..]
    }

    /// Whether anything has come at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends the current line at `newline`; `true` if that was the end of the head.
    fn end_line(&mut self, newline: usize) -> Result<bool, Rejection> {
        let is_first = self.line == self.request_line;
        if is_first {
            self.judge_start()?;
        }
        let Some((b'\r', content)) = self.bytes[self.line..newline].split_last() else {
            return Err(bad_request("A line ends with LF alone; every line must end with CR LF (RFC 9112 §2.2)."));
        };
        let is_blank = content.is_empty();
        self.line = newline + 1;
        match (is_first, is_blank) {
            (true, true) => self.request_line = self.line,
            // What does not begin like HTTP may never send a blank line.
            (true, false) => drop(Request::parse(&self.bytes[self.request_line..self.line], 0)?),
            _ => {}
        }
        Ok(is_blank && !is_first)
    }

    /// What nothing in HTTP can begin with.
    fn judge_start(&self) -> Result<(), Rejection> {
        let is_wrong = self.head().first().is_some_and(|&byte| !is_token_byte(byte) && !b"\r\n".contains(&byte));
        if is_wrong { Err(not_http(self.head())) } else { Ok(()) }
    }

    fn judge_unfinished(&self, max: usize) -> Result<(), Rejection> {
        self.judge_start()?;
        if self.bytes.len() < max {
            return Ok(());
        }
        let request_line_is_whole = self.line > self.request_line;
        if self.head().is_empty() || request_line_is_whole {
            return Err(Rejection::new(431, format!("The request head is over {max} bytes (RFC 6585 §5).")));
        }
        Err(Rejection::new(414, format!("The request line is over {max} bytes (RFC 9110 §15.5.15).")))
    }
}

/// Names what came in place of HTTP, as far as it can be told. What follows a `?` or `:` is not shown: it may be a token.
fn not_http(bytes: &[u8]) -> Rejection {
    let bytes = bytes.split(|&byte| byte == b'?' || byte == b':').next().unwrap_or_default();
    let what = match bytes {
        [0x16, 0x03, ..] | [0x16] => "a TLS ClientHello; this is a plain ws:// port, not wss://",
        [b'S', b'S', b'H', b'-', ..] => "an SSH banner",
        [b'P', b'R', b'I', b' ', b'*', ..] => "an HTTP/2 preface",
        _ => {
            return bad_request(format!("Not an HTTP/1.1 request: {} (RFC 9112 §3).", shown(bytes)));
        }
    };
    bad_request(format!("Not an HTTP/1.1 request but {what} (RFC 9112 §3)."))
}

/// A request head, parsed.
#[derive(Debug)]
pub struct Request<'h> {
    /// As sent; methods are case-sensitive (RFC 9110 §9.1).
    pub method: &'h str,
    /// The target as sent: use [`Request::target`].
    raw_target: &'h str,
    /// HTTP/1.x: the x.
    pub minor_version: u8,
    headers: Vec<httparse::Header<'h>>,
}

/// The parts of a request target (§3, RFC 9112 §3.2), still percent-encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'h> {
    /// What stood between `http://` and the path, if the target was in absolute form.
    pub authority: Option<&'h str>,
    /// Up to the first `?`.
    pub path: &'h str,
    /// What follows the first `?`; empty without one.
    pub query: &'h str,
}

impl<'h> Request<'h> {
    /// Parses a complete head. A line alone, with `max_headers` 0, is judged as a request line.
    ///
    /// # Errors
    /// 400, 431 for more than `max_headers`, 505 for a version other than 1.0 and 1.1. A body that is announced is
    /// an error too: nobody would read it, and what it holds must not be taken for frames.
    pub fn parse(head: &'h [u8], max_headers: usize) -> Result<Request<'h>, Rejection> {
        // A header takes a line, so there is no need of room for more.
        let lines = memchr::memchr_iter(b'\n', head).count();
        let mut headers = vec![httparse::EMPTY_HEADER; lines.min(max_headers)];
        let mut parsed = httparse::Request::new(&mut headers);
        match parsed.parse(head) {
            Ok(_) => {}
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Rejection::new(431, format!("The request has over {max_headers} headers (RFC 6585 §5).")));
            }
            Err(httparse::Error::Version) if names_another_version(head) => {
                return Err(Rejection::new(505, "This server speaks HTTP/1.1 and HTTP/1.0 (RFC 9110 §15.6.6)."));
            }
            Err(error) => return Err(malformed(head, error)),
        }
        let (method, raw_target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
        if !raw_target.is_ascii() || raw_target.contains('#') {
            return Err(bad_request("The request target holds a # (RFC 6455 §3) or a byte that is not ASCII."));
        }
        let (minor_version, count) = (parsed.version.unwrap_or_default(), parsed.headers.len());
        headers.truncate(count);
        let request = Request { method, raw_target, minor_version, headers };
        request.refuse_body()?;
        Ok(request)
    }

    /// The values of a header, in the order of its lines, without the blanks around them.
    pub fn header(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        let is_it = move |found: &str| found == name || found.eq_ignore_ascii_case(name);
        self.headers.iter().filter(move |h| is_it(h.name)).map(|h| h.value.trim_ascii())
    }

    /// Whether `token` is in a header that is a list of tokens. Several lines are one list (RFC 9110 §5.3), and
    /// §4.2.1 has these tokens compared without regard to case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        let is_it = |element: &[u8]| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes());
        self.header(name).any(|line| line.split(|&byte| byte == b',').any(is_it))
    }

    /// The target, taken apart.
    pub fn target(&self) -> Target<'h> {
        let scheme = ["http://", "ws://"]
            .into_iter()
            .find(|scheme| self.raw_target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
        let (authority, rest) = match scheme {
            None => (None, self.raw_target),
            Some(scheme) => {
                let rest = &self.raw_target[scheme.len()..];
                let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                (Some(authority), rest)
            }
        };
        let end = memchr::memchr(b'?', rest.as_bytes()).unwrap_or(rest.len());
        // RFC 9112 §3.2.2 with RFC 3986 §6.2.3: an absolute form without a path means "/".
        let path = if end == 0 && authority.is_some() { "/" } else { &rest[..end] };
        Target { authority, path, query: rest.get(end + 1..).unwrap_or_default() }
    }

    /// The one `Host` (§4.2.1 item 2). HTTP/1.0 may leave it out: then it is empty.
    ///
    /// # Errors
    /// 400 for none or several, or for one that is no authority (RFC 9112 §3.2).
    pub fn host(&self) -> Result<&'h str, Rejection> {
        let mut values = self.header("Host");
        let host = match (values.next(), values.next(), self.minor_version) {
            (Some(host), None, _) => host,
            (None, _, 0) => b"",
            _ => return Err(bad_request("Host must be sent once (RFC 9112 §3.2).")),
        };
        match std::str::from_utf8(host) {
            Ok(host) if host.is_empty() || is_authority(host) => Ok(host),
            _ => Err(bad_request(format!("Host {} is no host and port (RFC 9112 §3.2).", shown(host)))),
        }
    }

    fn refuse_body(&self) -> Result<(), Rejection> {
        let has_length = self.header("Content-Length").any(|value| value != b"0");
        if has_length || self.header("Transfer-Encoding").next().is_some() {
            return Err(bad_request("No request here may have a body (RFC 6455 §4.1, RFC 9112 §6)."));
        }
        Ok(())
    }
}

fn names_another_version(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    match words[..] {
        [b"PRI", b"*", _] => false, // HTTP/2 begins like a request, and is none (RFC 9113 §3.4)
        [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]] => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

fn malformed(head: &[u8], error: httparse::Error) -> Rejection {
    let line_end = head.iter().position(|&byte| byte == b'\r').unwrap_or(head.len());
    match error {
        httparse::Error::HeaderName => bad_request("A header name is malformed (RFC 9112 §5)."),
        httparse::Error::HeaderValue => bad_request("A header value holds a forbidden byte (RFC 9110 §5.5)."),
        httparse::Error::NewLine => bad_request("A CR stands without its LF (RFC 9112 §2.2)."),
        _ => not_http(&head[..line_end]),
    }
}

/// RFC 9110 §5.6.2, `tchar`.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §5.6.2: one or more `tchar`.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether `text` is a host, and perhaps a port (RFC 3986 §3.2). There is no user information: RFC 9110 §4.2.4 has it
/// treated as an error.
pub fn is_authority(text: &str) -> bool {
    let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'$'..=b'.' | b'!' | b';' | b'=' | b'_' | b'~');
    let is_literal = |byte: u8| is_host(byte) || byte == b':';
    let (host_is_good, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((literal, port)) => (literal.bytes().all(is_literal), port),
        None => {
            let (host, port) = text.split_at(text.bytes().position(|byte| byte == b':').unwrap_or(text.len()));
            (!host.is_empty() && host.bytes().all(is_host), port)
        }
    };
    host_is_good && (port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "GET /chat?x=1 HTTP/1.1\r\nHost: server.example.com\r\nX: one,  Two \r\nx: three\r\n\r\n";

    fn read(bytes: &[u8], size: usize, max: usize) -> Result<Option<usize>, u16> {
        let mut reader = HeadReader::default();
        for (at, piece) in bytes.chunks(size).enumerate() {
            let end = reader.receive(piece, max).map_err(|rejection| rejection.status)?;
            if let Some(end) = end {
                return Ok(Some(at * size + end));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_head_in_any_pieces_ends_at_the_same_byte() {
        let stream = [HEAD, "\x01\u{2}behind the head\r\n\r\n"].concat();
        let with_blank_lines = ["\r\n".repeat(10).as_str(), &stream].concat();
        for size in 1..stream.len() {
            assert_eq!(read(stream.as_bytes(), size, 8192), Ok(Some(HEAD.len())), "pieces of {size}");
            assert_eq!(read(with_blank_lines.as_bytes(), size, 8192), Ok(Some(HEAD.len() + 20)));
            assert_eq!(read(&HEAD.as_bytes()[..HEAD.len() - 1], size, 8192), Ok(None));
        }
    }

    #[test]
    fn a_head_has_its_limit_at_n_and_n_plus_1() {
        for size in [1, 7, HEAD.len()] {
            assert_eq!(read(HEAD.as_bytes(), size, HEAD.len()), Ok(Some(HEAD.len())));
            assert_eq!(read(HEAD.as_bytes(), size, HEAD.len() - 1), Err(431));
            assert_eq!(read(HEAD.as_bytes(), size, 20), Err(414), "not even the request line fits");
            assert_eq!(read(&b"\r\n".repeat(50), size, 100), Err(431));
        }
    }

    #[test]
    fn what_cannot_become_a_head_is_refused_at_once() {
        let cases: [&[u8]; 7] = [
            b"\x16\x03\x01",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x00",
            b"{\"event\":",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nHost: a\n",
            b"\n",
        ];
        for bytes in cases {
            for size in [1, bytes.len()] {
                assert_eq!(read(bytes, size, 8192), Err(400), "{}", shown(bytes));
            }
        }
        // Of two faults the first speaks, however it comes.
        for size in [1, 100] {
            assert_eq!(read(b"GET / HTTP/2.0\r\nHost:\na\r\n\r\n", size, 8192), Err(505));
        }
    }

    #[test]
    fn heads_and_statuses() {
        let line = |line: &str| format!("{line}\r\n\r\n");
        let with = |header: &str| format!("GET / HTTP/1.1\r\n{header}\r\n\r\n");
        let many = |count: usize| line(&format!("GET / HTTP/1.1{}", "\r\nX: y".repeat(count)));
        let cases = [
            (HEAD.to_owned(), Ok(())),
            (line("get / HTTP/1.1"), Ok(())),
            (line("GET / HTTP/1.0"), Ok(())),
            (line("GET / HTTP/1.2"), Err(505)),
            (line("GET / HTTP/2.0"), Err(505)),
            (line("PRI * HTTP/2.0"), Err(400)),
            (line("GET /"), Err(400)),
            (line("GET / HTTX/1.1"), Err(400)),
            (line("GET /\u{e9} HTTP/1.1"), Err(400)),
            (line("GET  / HTTP/1.1"), Err(400)),
            (line("GET /a b HTTP/1.1"), Err(400)),
            (with("A: b\r\n folded"), Err(400)),
            (with("A : b"), Err(400)),
            (with(" A: b"), Err(400)),
            (with("A: b\rc"), Err(400)),
            (with("A: b\0"), Err(400)),
            (with("A: \u{1b}[2J"), Err(400)),
            (with(": b"), Err(400)),
            (with("Content-Length: 0"), Ok(())),
            (with("Content-Length: 5"), Err(400)),
            (with("Content-Length: 0\r\nContent-Length: 5"), Err(400)),
            (with("Transfer-Encoding: chunked"), Err(400)),
            (many(64), Ok(())),
            (many(65), Err(431)),
        ];
        for (head, verdict) in cases {
            let parsed = Request::parse(head.as_bytes(), 64).map(|_| ()).map_err(|rejection| rejection.status);
            assert_eq!(parsed, verdict, "{head:?}");
        }
    }

    #[test]
    fn headers_are_lists_and_names_have_no_case() {
        let request = Request::parse(HEAD.as_bytes(), 64).unwrap();
        for token in ["one", "ONE", "two", "three"] {
            assert!(request.has_token("x", token), "{token}");
        }
        assert!(!request.has_token("X", "on") && !request.has_token("X", "") && !request.has_token("Y", "one"));
        assert_eq!(request.host(), Ok("server.example.com"));
    }

    #[test]
    fn targets_are_taken_apart() {
        let cases = [
            ("/chat?x=1", (None, "/chat", "x=1")),
            ("/", (None, "/", "")),
            ("/a?b?c", (None, "/a", "b?c")),
            ("http://h:1/p?q", (Some("h:1"), "/p", "q")),
            ("WS://h", (Some("h"), "/", "")),
            ("http://h?q", (Some("h"), "/", "q")),
            ("*", (None, "*", "")),
        ];
        for (target, (authority, path, query)) in cases {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            let request = Request::parse(head.as_bytes(), 64).unwrap();
            assert_eq!(request.target(), Target { authority, path, query }, "{target}");
        }
    }

    #[test]
    fn there_is_one_host() {
        fn host(head: &str) -> Result<String, u16> {
            let host = Request::parse(head.as_bytes(), 64).unwrap().host().map(str::to_owned);
            host.map_err(|rejection| rejection.status)
        }
        assert_eq!(host("GET / HTTP/1.1\r\n\r\n"), Err(400));
        assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), Ok("".into()));
        assert_eq!(host("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Err(400));
        assert_eq!(host("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), Err(400));
        for bad in ["me@a", "a:b", "a:1:2", "[::1]x", "[::1", "a b", ":80"] {
            assert_eq!(host(&format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n")), Err(400), "{bad}");
        }
        assert_eq!(host("GET / HTTP/1.1\r\nHost: [::1]:3000\r\n\r\n"), Ok("[::1]:3000".into()));
    }
}
