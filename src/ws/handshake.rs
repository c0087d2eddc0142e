//! §4, the opening handshake, the server's side: the bytes of a request head become an [`Upgrade`] or a [`Rejection`].
//!
//! [`HeadReader`] finds the end of the head, [`Request`] is the head parsed once (by `httparse`), and [`Upgrade`] is
//! what §4.2.1 demands of it, checked. This file does not know which paths exist, who is welcome, or how a plain
//! answer is written: the server asks those questions between the steps, in the order that the protocol page fixes.
//!
//! The subtle thing: `httparse` starts over at the first byte of whatever it is given, so a head that drips in must
//! not be parsed before it is complete (CVE-2023-43669). The reader remembers how far it has searched for the blank
//! line, looks at no byte twice, and judges on the way only what could otherwise keep it waiting for nothing.

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use sha1::{Digest, Sha1};

use super::extension;

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

fn bad_request(body: impl Into<String>) -> Rejection {
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
    pub fn receive(&mut self, input: &[u8], max: usize) -> Result<Option<usize>, Rejection> {
        let before = self.bytes.len();
        let taken = input.len().min(max.saturating_sub(before));
        self.bytes.extend_from_slice(&input[..taken]);
        while let Some(found) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') {
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
        let line = &self.bytes[self.line..newline];
        let Some((b'\r', content)) = line.split_last() else {
            return Err(bad_request(
                "A line of the request ends with LF alone; every line must end with CR LF (RFC 9112 §2.2).",
            ));
        };
        let is_first = self.line == self.request_line;
        let is_blank = content.is_empty();
        self.line = newline + 1;
        if is_first && is_blank {
            self.request_line = self.line;
        }
        Ok(is_blank && !is_first)
    }

    fn judge_unfinished(&self, max: usize) -> Result<(), Rejection> {
        let so_far = self.head();
        if so_far.first().is_some_and(|&byte| !is_token_byte(byte) && byte != b'\r') {
            return Err(not_http(so_far));
        }
        let request_line_is_whole = self.line > self.request_line;
        if request_line_is_whole {
            // Without its blank line the head cannot be complete, so this says whether the request line is one.
            let line = &self.bytes[self.request_line..self.line];
            Request::parse(line, 0)?;
        }
        if self.bytes.len() < max {
            return Ok(());
        }
        if so_far.is_empty() || request_line_is_whole {
            return Err(Rejection::new(431, format!("The request head is over {max} bytes (RFC 6585 §5).")));
        }
        Err(Rejection::new(414, format!("The request line is over {max} bytes (RFC 9110 §15.5.15).")))
    }
}

/// Names what came in place of HTTP, as far as it can be told.
fn not_http(bytes: &[u8]) -> Rejection {
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

/// The parts of a request target (RFC 9112 §3.2), still percent-encoded.
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
        let mut headers = vec![httparse::EMPTY_HEADER; max_headers];
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
        let minor_version = parsed.version.unwrap_or_default();
        let count = parsed.headers.len();
        headers.truncate(count);
        let request = Request { method, raw_target, minor_version, headers };
        request.refuse_body()?;
        Ok(request)
    }

    /// The values of a header, in the order of its lines, without the blanks around them.
    pub fn header(&self, name: &str) -> impl Iterator<Item = &'h [u8]> {
        self.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
    }

    /// Whether `token` is in a header that is a list of tokens. Several lines are one list (RFC 9110 §5.3), and
    /// §4.2.1 has these tokens compared without regard to case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        let mut elements = self.header(name).flat_map(|line| line.split(|&byte| byte == b','));
        elements.any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
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
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // RFC 9112 §3.2.2 with RFC 3986 §6.2.3: an absolute form without a path means "/".
        let path = if path.is_empty() && authority.is_some() { "/" } else { path };
        Target { authority, path, query }
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
            _ => {
                let count = self.header("Host").count();
                return Err(bad_request(format!("Host must be sent once, not {count} times (RFC 9112 §3.2).")));
            }
        };
        match std::str::from_utf8(host) {
            Ok(host) if host.bytes().all(is_authority_byte) => Ok(host),
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
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    let is_version = matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit());
    is_version && !line.starts_with(b"PRI *")
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

/// RFC 3986 §3.2: what a host and a port are made of; no `@`, since RFC 9110 §4.2.4 deprecates user information.
fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

/// A request that meets §4.2.1 and asks for the WebSocket protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'h> {
    key: &'h [u8],
    /// The subprotocols that the client offers, in its order of preference.
    pub subprotocols: Vec<&'h str>,
}

const SUPPORTED_VERSION: &[(&str, &str)] = &[("Sec-WebSocket-Version", "13")];
/// The answer to a request that does not ask for an upgrade where only that is to be had (RFC 9110 §15.5.22).
const UPGRADE_REQUIRED: &[(&str, &str)] =
    &[("Upgrade", "websocket"), ("Connection", "Upgrade, close"), ("Sec-WebSocket-Version", "13")];

/// The 426 for a plain request to a WebSocket endpoint.
pub fn upgrade_required() -> Rejection {
    Rejection {
        status: 426,
        headers: UPGRADE_REQUIRED,
        body: "This is a WebSocket endpoint: ask with Upgrade: websocket, as a browser's `new WebSocket(url)` or \
               `wscat -c url` does (RFC 6455 §4.1)."
            .into(),
    }
}

impl<'h> Upgrade<'h> {
    /// Checks items 1 and 4–9 of §4.2.1 in the order of the protocol page: HTTP version, `Connection`,
    /// `Sec-WebSocket-Version`, `Sec-WebSocket-Key`, extensions, subprotocols.
    ///
    /// # Errors
    /// 400, or 426 with the version that would do.
    pub fn check(request: &Request<'h>) -> Result<Upgrade<'h>, Rejection> {
        if request.minor_version == 0 {
            return Err(bad_request("An upgrade needs HTTP/1.1; this was HTTP/1.0 (RFC 6455 §4.2.1)."));
        }
        if !request.has_token("Connection", "upgrade") {
            let seen: Vec<_> = request.header("Connection").map(shown).collect();
            let seen = if seen.is_empty() { "nothing".into() } else { seen.join(", ") };
            return Err(bad_request(format!("Connection must hold Upgrade; it was {seen} (RFC 6455 §4.2.1).")));
        }
        check_version(request)?;
        let key = read_key(request)?;
        let extensions = joined(request, "Sec-WebSocket-Extensions");
        if extensions.is_some_and(|offer| !offer.is_ok_and(|offer| extension::is_offer(&offer))) {
            return Err(bad_request("Sec-WebSocket-Extensions is malformed (RFC 6455 §9.1)."));
        }
        Ok(Upgrade { key, subprotocols: read_subprotocols(request)? })
    }

    /// The bytes of the 101 (§4.2.2 item 5). `own` is the endpoint's subprotocol: it is named if it was offered, and
    /// else none is, which §4.2.2 allows and a client may accept or not.
    pub fn switching_protocols(&self, own: &str) -> Vec<u8> {
        let mut head =
            String::from("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
        head.push_str("Sec-WebSocket-Accept: ");
        head.push_str(&accept_key(self.key));
        if self.subprotocols.contains(&own) {
            head.push_str("\r\nSec-WebSocket-Protocol: ");
            head.push_str(own);
        }
        head.push_str("\r\n\r\n");
        head.into_bytes()
    }
}

fn check_version(request: &Request) -> Result<(), Rejection> {
    let mut versions = request.header("Sec-WebSocket-Version");
    let body = match (versions.next(), versions.next()) {
        (Some(b"13"), None) => return Ok(()),
        (_, Some(_)) => {
            return Err(bad_request("Sec-WebSocket-Version must be sent once (RFC 6455 §11.3.5)."));
        }
        (Some(other), None) => format!("Sec-WebSocket-Version must be 13; it was {} (RFC 6455 §4.4).", shown(other)),
        (None, None) => "Sec-WebSocket-Version: 13 is missing (RFC 6455 §4.2.1).".into(),
    };
    Err(Rejection { status: 426, headers: SUPPORTED_VERSION, body })
}

/// §4.2.1 item 5: "a base64-encoded value that, when decoded, is 16 bytes in length".
fn read_key<'h>(request: &Request<'h>) -> Result<&'h [u8], Rejection> {
    let mut keys = request.header("Sec-WebSocket-Key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        let count = request.header("Sec-WebSocket-Key").count();
        let body = format!("Sec-WebSocket-Key must be sent once, not {count} times (RFC 6455 §4.2.1).");
        return Err(bad_request(body));
    };
    // 16 bytes leave four spare bits in the last character. Keys written by hand set them; RFC 4648 §3.5 lets a
    // decoder pass over them, and the answer is made of the string as sent.
    let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    match GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(key) {
        Ok(decoded) if decoded.len() == 16 => Ok(key),
        Ok(decoded) => {
            let body = format!("Sec-WebSocket-Key must be 16 bytes, not {} (RFC 6455 §4.2.1).", decoded.len());
            Err(bad_request(body))
        }
        Err(_) => Err(bad_request(format!("Sec-WebSocket-Key {} is not base64 (RFC 6455 §4.2.1).", shown(key)))),
    }
}

/// §4.1 item 10 with §4.3: a list of tokens, each "MUST be unique".
fn read_subprotocols<'h>(request: &Request<'h>) -> Result<Vec<&'h str>, Rejection> {
    const NAME: &str = "Sec-WebSocket-Protocol";
    let mut offered = Vec::new();
    for element in request.header(NAME).flat_map(|line| line.split(|&byte| byte == b',')) {
        match std::str::from_utf8(element.trim_ascii()) {
            Ok("") => {}
            Ok(name) if offered.contains(&name) => {
                return Err(bad_request(format!("{NAME} names {} twice (RFC 6455 §4.1).", shown(name.as_bytes()))));
            }
            Ok(name) if is_token(name) => offered.push(name),
            _ => {
                return Err(bad_request(format!("{NAME} is malformed: {} (RFC 6455 §4.3).", shown(element))));
            }
        }
    }
    if offered.is_empty() && request.header(NAME).next().is_some() {
        return Err(bad_request(format!("{NAME} is sent and names nothing (RFC 6455 §4.3).")));
    }
    Ok(offered)
}

/// All lines of a list header as one (RFC 9110 §5.3): `None` if it was not sent, `Err` if it is not ASCII.
fn joined(request: &Request, name: &str) -> Option<Result<String, std::string::FromUtf8Error>> {
    let lines: Vec<&[u8]> = request.header(name).collect();
    (!lines.is_empty()).then(|| String::from_utf8(lines.join(&b", "[..])))
}

/// §1.3 and §4.2.2 item 5.4: the value of `Sec-WebSocket-Accept` that proves to the client that its key was read.
/// `key` is the string as sent, not decoded.
///
/// ```
/// use wirechat::ws::handshake::accept_key;
/// assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(hash)
}
