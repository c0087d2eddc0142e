//! §4.2.1, the HTTP layer: parses the bytes of a request head into a [`Request`] or a [`Rejection`]. This module checks
//! the rules of HTTP (RFC 9110, RFC 9112) and of targets (§3). `handshake.rs` checks the upgrade.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub status: u16,
    pub headers: &'static [(&'static str, &'static str)],
    pub body: String,
}

impl Rejection {
    pub fn new(status: u16, body: impl Into<String>) -> Rejection {
        Rejection { status, headers: &[], body: body.into() }
    }
}

pub fn bad_request(body: impl Into<String>) -> Rejection {
    Rejection::new(400, body)
}

/// Escapes and quotes at most 100 received bytes, for a response or a log line.
pub fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]);
    let dots = if bytes.len() > 100 { "…" } else { "" };
    format!("\"{}{dots}\"", text.escape_debug())
}

/// Buffers an incomplete request head: parsing the head after each read would take quadratic time (CVE-2023-43669).
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
    line_start: usize,         // offset in `bytes` of the last line, which is still incomplete
    request_line_start: usize, // offset in `bytes` of the request line, which blank lines may precede
}

impl HeadReader {
    /// Returns `Some(n)` once the head is complete: frames start at `input[n]`. `max` limits the head's size in bytes.
    pub fn receive(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, Rejection> {
        let before = self.bytes.len();
        let accepted = &input[..input.len().min(max.saturating_sub(before))];
        self.bytes.extend_from_slice(accepted);
        for newline in memchr::memchr_iter(b'\n', accepted) {
            self.check_first_byte()?;
            let end = before + newline + 1;
            let line = &self.bytes[self.line_start..end];
            // RFC 9112 §2.2 allows a bare LF. Reject it: a proxy may split lines differently (request smuggling).
            if !line.ends_with(b"\r\n") {
                return Err(bad_request("A line ends with LF alone; every line must end with CR LF (RFC 9112 §2.2)."));
            }
            let (is_first, is_blank) = (self.line_start == self.request_line_start, line == b"\r\n");
            if is_first && is_blank {
                // RFC 9112 §2.2: a server "SHOULD ignore at least one empty line (CRLF)" before the request line.
                self.request_line_start = end;
            } else if is_first {
                // Parse the request line at once: a peer that does not speak HTTP may never send the final blank line.
                Request::parse(line, 0)?;
            } else if is_blank {
                self.bytes.truncate(end);
                return Ok(Some(newline + 1));
            }
            self.line_start = end;
        }
        self.check_first_byte()?;
        if self.bytes.len() < max {
            return Ok(None);
        }
        if self.line_start == self.request_line_start && !self.head().is_empty() {
            return Err(Rejection::new(414, format!("The request line is over {max} bytes (RFC 9110 §15.5.15).")));
        }
        Err(Rejection::new(431, format!("The request head is over {max} bytes (RFC 6585 §5).")))
    }

    pub fn head(&self) -> &[u8] {
        &self.bytes[self.request_line_start..]
    }

    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Rejects a first byte that cannot start a request. Does not wait for a newline: a TLS ClientHello may have none.
    fn check_first_byte(&self) -> Result<(), Rejection> {
        let is_allowed = |&byte: &u8| is_token_byte(byte) || byte == b'\r' || byte == b'\n';
        if self.head().first().is_none_or(is_allowed) { Ok(()) } else { Err(reject_non_http(self.head())) }
    }
}

fn reject_non_http(bytes: &[u8]) -> Rejection {
    // Quote only the bytes before `?` or `:`: the server logs the rejection, and later bytes may hold an access token.
    let bytes = bytes.split(|byte| b"?:".contains(byte)).next().unwrap_or_default();
    let what = match bytes {
        [0x16, 0x03, ..] | [0x16] => " but a TLS ClientHello; this is a plain ws:// port, not wss://",
        [b'S', b'S', b'H', b'-', ..] => " but an SSH banner",
        [b'P', b'R', b'I', b' ', b'*', ..] => " but an HTTP/2 preface",
        _ => &format!(": {}", quote(bytes)),
    };
    bad_request(format!("Not an HTTP/1.1 request{what} (RFC 9112 §3)."))
}

#[derive(Debug, Clone)]
pub struct Request<'h> {
    pub method: &'h str,            // method names are case-sensitive (RFC 9110 §9.1)
    pub authority: Option<&'h str>, // only if the target is in absolute-form: `http://host:port/path` (RFC 9112 §3.2.2)
    pub path: &'h str,              // path and query are still percent-encoded
    pub query: &'h str,             // the query string, empty if the target has no `?`
    pub minor_version: u8,          // the digit after `HTTP/1.`: 0 or 1
    pub headers: Vec<httparse::Header<'h>>,
}

impl<'h> Request<'h> {
    /// Parses a complete request head, or a request line alone if `max_headers` is 0. Rejects a request with a body.
    pub fn parse(head: &'h [u8], max_headers: usize) -> Result<Request<'h>, Rejection> {
        let request = Request::parse_head(head, max_headers)?;
        // Reject requests with a body: the server would mistake the body for WebSocket frames.
        let has_length = request.header_values("Content-Length").any(|value| value != b"0");
        if has_length || request.header_values("Transfer-Encoding").next().is_some() {
            return Err(bad_request("This server accepts no request with a body (RFC 6455 §4.1, RFC 9112 §6)."));
        }
        Ok(request)
    }

    pub fn parse_head(head: &'h [u8], max_headers: usize) -> Result<Request<'h>, Rejection> {
        let mut headers = vec![httparse::EMPTY_HEADER; memchr::memchr_iter(b'\n', head).count().min(max_headers)];
        let mut parsed = httparse::Request::new(&mut headers);
        parsed.parse(head).map_err(|error| reject_parse_error(head, max_headers, error))?;
        let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(bad_request("The request line is incomplete (RFC 9112 §3)."));
        };
        // §3: "Fragment identifiers are meaningless […] and MUST NOT be used on these URIs."
        if !target.is_ascii() || target.contains('#') {
            return Err(bad_request("The request target contains a # (RFC 6455 §3) or a byte that is not ASCII."));
        }
        let is_known = |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("ws");
        let (_, rest) = target.split_once("://").filter(|(scheme, _)| is_known(scheme)).unzip();
        let (authority, local) = rest.map(|rest| rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))).unzip();
        let local = local.unwrap_or(target);
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        // RFC 3986 §6.2.3: in absolute-form, an empty path means "/".
        let path = if path.is_empty() && authority.is_some() { "/" } else { path };
        Ok(Request { method, authority, path, query, minor_version, headers: parsed.headers.to_vec() })
    }

    /// The trimmed values of all header lines called `name`, in order.
    pub fn header_values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'h [u8]> {
        // §4.2.1: "as per [RFC2616], the order of the header fields is not important", and names are case-insensitive.
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
    }

    /// The trimmed elements of the comma-separated lists in all header lines called `name` (RFC 9110 §5.3).
    pub fn list_elements(&self, name: &str) -> impl DoubleEndedIterator<Item = &'h [u8]> {
        self.header_values(name).flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list_elements(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The value of `Host` (§4.2.1 item 2); empty if an HTTP/1.0 request has no `Host` header.
    pub fn host(&self) -> Result<&'h str, Rejection> {
        // RFC 9112 §3.2: a server "MUST respond with a 400" to an HTTP/1.1 request without Host or with several.
        let value = match self.header_values("Host").collect::<Vec<_>>()[..] {
            [value] => value,
            [] if self.minor_version == 0 => b"",
            _ => return Err(bad_request("Host must be sent once (RFC 9112 §3.2).")),
        };
        let host = str::from_utf8(value).ok().filter(|host| host.is_empty() || is_authority(host));
        host.ok_or_else(|| bad_request(format!("Host {} is not a valid host and port (RFC 9112 §3.2).", quote(value))))
    }
}

fn reject_parse_error(head: &[u8], limit: usize, error: httparse::Error) -> Rejection {
    use httparse::Error::*;
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    // The HTTP/2 preface (RFC 9113 §3.4) looks like a request line, but a 400 that names HTTP/2 is clearer than a 505.
    let version = line.splitn(3, |&byte| byte == b' ').nth(2).filter(|_| !line.starts_with(b"PRI * "));
    match (error, version) {
        (HeaderName, _) => bad_request("A header name is malformed (RFC 9112 §5)."),
        (HeaderValue, _) => bad_request("A header value contains a forbidden byte (RFC 9110 §5.5)."),
        (NewLine, _) => bad_request("A CR is not followed by LF (RFC 9112 §2.2)."),
        (TooManyHeaders, _) => Rejection::new(431, format!("The request has over {limit} headers (RFC 6585 §5).")),
        (Version, Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'])) => {
            Rejection::new(505, "This server speaks HTTP/1.1 and HTTP/1.0 (RFC 9110 §15.6.6).")
        }
        _ => reject_non_http(line),
    }
}

/// Whether a token may contain `byte`, that is, whether `byte` is a `tchar` (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether `text` is a host with an optional port (RFC 3986 §3.2).
pub fn is_authority(text: &str) -> bool {
    // Reject `@`. RFC 9110 §4.2.4: user information before the host is an error, because it can disguise the host.
    let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'$'..=b'.' | b'!' | b';' | b'=' | b'_' | b'~');
    let host = text.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix(':').unwrap_or(text);
    match host.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(|ip| ip.bytes().all(|b| is_host(b) || b == b':')),
        None => !host.is_empty() && host.bytes().all(is_host),
    }
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
    fn frames_start_after_the_head() {
        let mut reader = HeadReader::default();
        assert_eq!(reader.receive(b"GET / HTTP/1.1\r\nHost: a\r\n", 8192), Ok(None));
        // The blank line ends the request head. The next byte, 0x81, already belongs to the client's first frame.
        assert_eq!(reader.receive(b"\r\n\x81", 8192), Ok(Some(2)));
    }

    #[test]
    fn a_head_ends_at_the_same_byte_wherever_it_is_cut() {
        let stream = [HEAD, "\x01\u{2}after the head\r\n\r\n"].concat();
        let with_blank_lines = ["\r\n".repeat(10).as_str(), &stream].concat();
        for size in 1..stream.len() {
            assert_eq!(read(stream.as_bytes(), size, 8192), Ok(Some(HEAD.len())), "pieces of {size}");
            assert_eq!(read(with_blank_lines.as_bytes(), size, 8192), Ok(Some(HEAD.len() + 20)));
            assert_eq!(read(&HEAD.as_bytes()[..HEAD.len() - 1], size, 8192), Ok(None));
        }
    }

    #[test]
    fn the_maximum_head_size_is_exact() {
        for size in [1, 7, HEAD.len()] {
            assert_eq!(read(HEAD.as_bytes(), size, HEAD.len()), Ok(Some(HEAD.len())));
            assert_eq!(read(HEAD.as_bytes(), size, HEAD.len() - 1), Err(431));
            assert_eq!(read(HEAD.as_bytes(), size, 20), Err(414), "not even the request line fits");
            assert_eq!(read(&b"\r\n".repeat(50), size, 100), Err(431));
        }
    }

    #[test]
    fn bytes_that_cannot_become_a_head_are_rejected_at_once() {
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
                assert_eq!(read(bytes, size, 8192), Err(400), "{}", quote(bytes));
            }
        }
        // If a head contains two errors, the first one decides the response, however the head is split into reads.
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
        for (head, expected) in cases {
            let parsed = Request::parse(head.as_bytes(), 64).map(|_| ()).map_err(|rejection| rejection.status);
            assert_eq!(parsed, expected, "{head:?}");
        }
    }

    #[test]
    fn header_names_are_case_insensitive_and_repeated_headers_are_one_list() {
        let request = Request::parse(HEAD.as_bytes(), 64).unwrap();
        for token in ["one", "ONE", "two", "three"] {
            assert!(request.has_token("x", token), "{token}");
        }
        assert!(!request.has_token("X", "on") && !request.has_token("X", "") && !request.has_token("Y", "one"));
        assert_eq!(request.host(), Ok("server.example.com"));
    }

    #[test]
    fn targets() {
        let cases = [
            ("/chat?x=1", (None, "/chat", "x=1")),
            ("/", (None, "/", "")),
            ("/a?b?c", (None, "/a", "b?c")),
            ("http://h:1/p?q", (Some("h:1"), "/p", "q")),
            ("WS://h", (Some("h"), "/", "")),
            ("http://h?q", (Some("h"), "/", "q")),
            ("*", (None, "*", "")),
        ];
        for (target, parts) in cases {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            let request = Request::parse(head.as_bytes(), 64).unwrap();
            assert_eq!((request.authority, request.path, request.query), parts, "{target}");
        }
    }

    #[test]
    fn host_must_be_sent_once() {
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
