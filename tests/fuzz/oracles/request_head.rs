//! Compares the server's parser of request heads with a line-based parser that does not use `httparse`. The server
//! must accept an upgrade request that obeys all rules of the handshake, and must not upgrade any other request.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use tungstenite::handshake::derive_accept_key;
use wirechat::http::{Client, Outcome, format_rejection, route_request};
use wirechat::ws::request::{HeadReader, Rejection, Request, is_authority};

use super::cuts;

const MAX_HEADERS: usize = 8;

pub fn check(data: &[u8]) {
    let &[choice, read_cuts, ref bytes @ ..] = data else { return };
    let max = if choice & 1 == 0 { 2000 } else { 60 };
    let (found, reader) = read(bytes, max, 0);
    for cuts in [1, read_cuts] {
        let (again, other) = read(bytes, max, cuts);
        assert_eq!(again.as_ref().map_err(|error| error.status), found.as_ref().map_err(|error| error.status));
        assert!(again.is_err() || other.head() == reader.head() || again == Ok(None));
    }
    assert!(reader.byte_count() <= max);
    let expected = expected_end(bytes, max);
    let status = found.as_ref().copied().map_err(|error| error.status);
    assert_eq!(status, expected, "{:?}", String::from_utf8_lossy(bytes));
    match found {
        Ok(Some(_)) => {}
        Ok(None) => return,
        Err(rejection) => return check_response(&rejection),
    }
    let lines = split_lines(reader.head());
    let head = parse_lines(&lines);
    let parsed = Request::parse(reader.head(), MAX_HEADERS);
    assert_eq!(parsed.as_ref().err().map(|error| error.status), head.as_ref().err().copied(), "{lines:?}");
    let (Ok(request), Ok(head)) = (parsed, head) else { return };
    let client =
        Client { address: Ipv4Addr::LOCALHOST.into(), is_proxied: false, may_try_token: true, needs_token: false };
    let must_upgrade = head.is_upgrade() && head.target == "/echo" && head.has_no_other_checked_header();
    match route_request(&request, &super::access(None), client, super::NOW) {
        Ok(Outcome::Upgrade { response, .. }) => {
            assert!(head.is_upgrade(), "{lines:?} is no upgrade");
            let key = head.all("sec-websocket-key")[0];
            let accept = format!("Sec-WebSocket-Accept: {}\r\n", derive_accept_key(key.as_bytes()));
            assert!(String::from_utf8_lossy(&response).contains(&accept));
        }
        _ if must_upgrade => panic!("{lines:?} must be an upgrade"),
        Ok(Outcome::Response(response)) => check_response_bytes(&response, head.method == "HEAD"),
        Ok(Outcome::Check { .. }) => assert!(request.path == "/check"),
        Err(rejection) => check_response(&rejection),
    }
}

/// Passes `bytes` to a `HeadReader` in pieces. Returns the offset of the first byte after the head, if it is complete.
fn read(bytes: &[u8], max: usize, read_cuts: u8) -> (Result<Option<usize>, Rejection>, HeadReader) {
    let (mut reader, mut start) = (HeadReader::default(), 0);
    for len in cuts(read_cuts, bytes.len()) {
        match reader.receive(&bytes[start..start + len], max) {
            Ok(None) => start += len,
            Ok(Some(end)) => return (Ok(Some(start + end)), reader),
            Err(error) => return (Err(error), reader),
        }
    }
    (Ok(None), reader)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Computes the result that `read` must return: the offset of the first byte after the request head, or `None` if the
/// head is incomplete. The error is the HTTP status if the server rejects the head before it parses the headers.
fn expected_end(bytes: &[u8], max: usize) -> Result<Option<usize>, u16> {
    let accepted = &bytes[..bytes.len().min(max)];
    let (mut start, mut has_request_line) = (0, false);
    while let Some(len) = accepted[start..].iter().position(|byte| *byte == b'\n') {
        let line = &accepted[start..start + len];
        if !has_request_line && !line.first().is_none_or(|byte| is_token(*byte) || *byte == b'\r') {
            return Err(400);
        }
        let Some(line) = line.strip_suffix(b"\r") else { return Err(400) };
        start += len + 1;
        match (line.is_empty(), has_request_line) {
            (true, true) => return Ok(Some(start)),
            (true, false) => {}
            (false, true) => {}
            (false, false) => {
                check_request_line(line)?;
                if line.contains(&b'\r') {
                    return Err(400);
                }
                has_request_line = true;
            }
        }
    }
    let rest = &accepted[start..];
    if !has_request_line && rest.first().is_some_and(|byte| !is_token(*byte) && *byte != b'\r') {
        return Err(400);
    }
    match accepted.len() < max {
        true => Ok(None),
        false if !has_request_line && !rest.is_empty() => Err(414),
        false => Err(431),
    }
}

fn check_request_line(line: &[u8]) -> Result<(), u16> {
    // If the line contains a stray CR (one that does not belong to its CRLF), check only the part before the CR, as the
    // server does. If that part is valid, the caller then rejects the line because of the CR.
    let line = line.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let parts: Vec<&[u8]> = line.splitn(3, |byte| *byte == b' ').collect();
    let &[method, target, version] = &parts[..] else { return Err(400) };
    let is_method = !method.is_empty() && method.iter().all(|byte| is_token(*byte));
    // The server itself rejects a non-ASCII target that is valid UTF-8. `httparse` rejects other non-ASCII bytes.
    let is_target = !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte < 0x7f);
    match version {
        b"HTTP/1.0" | b"HTTP/1.1" if is_method && is_target && !target.contains(&b'#') => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => {
            let is_other = major.is_ascii_digit()
                && minor.is_ascii_digit()
                && !version.starts_with(b"HTTP/1.0")
                && version != b"HTTP/1.1";
            // The server rejects an unsupported version (505) before it looks for `#` and non-ASCII characters (400).
            let may_be_target = !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
            let is_text = std::str::from_utf8(target).is_ok();
            let is_preface = line.starts_with(b"PRI * ");
            Err(if is_method && may_be_target && is_text && is_other && !is_preface { 505 } else { 400 })
        }
        _ => Err(400),
    }
}

fn split_lines(head: &[u8]) -> Vec<String> {
    // Decode as Latin-1, which maps each byte to one character, so that no byte is lost.
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    text.split("\r\n").map(str::to_owned).take_while(|line| !line.is_empty()).collect()
}

struct Head<'a> {
    method: &'a str,
    target: &'a str,
    version: &'a str,
    headers: Vec<(String, &'a str)>,
}

fn parse_lines(lines: &[String]) -> Result<Head<'_>, u16> {
    let parts: Vec<&str> = lines[0].splitn(3, ' ').collect();
    let mut headers = Vec::new();
    for line in &lines[1..] {
        if !line.bytes().next().is_some_and(is_token) {
            return Err(400);
        }
        let Some((name, value)) = line.split_once(':') else { return Err(400) };
        if !name.chars().all(|c| c.is_ascii() && is_token(c as u8)) {
            return Err(400);
        }
        if !value.chars().all(|c| c == '\t' || c >= ' ' && c != '\u{7f}') {
            return Err(400);
        }
        if headers.len() == MAX_HEADERS {
            return Err(431);
        }
        headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])));
    }
    let head = Head { method: parts[0], target: parts[1], version: parts[2], headers };
    let has_body =
        head.all("content-length").iter().any(|value| *value != "0") || !head.all("transfer-encoding").is_empty();
    if has_body { Err(400) } else { Ok(head) }
}

impl Head<'_> {
    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|header| header.0 == name).map(|header| header.1).collect()
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        let mut elements = self.all(name).into_iter().flat_map(|value| value.split(','));
        elements.any(|element| element.trim_matches([' ', '\t']).eq_ignore_ascii_case(token))
    }

    /// Checks the rules of RFC 6455 §4.2.1, except those for origins, subprotocols and extensions.
    fn is_upgrade(&self) -> bool {
        let (keys, hosts) = (self.all("sec-websocket-key"), self.all("host"));
        let is_key = |key: &str| {
            let body = key.trim_end_matches('=');
            let is_base64 = body.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/');
            is_base64 && body.len() == 22 && key.len() == 24
        };
        self.method == "GET"
            && self.version == "HTTP/1.1"
            && hosts.len() == 1
            && (hosts[0].is_empty() || is_authority(hosts[0]))
            && self.has_token("upgrade", "websocket")
            && self.has_token("connection", "upgrade")
            && self.all("sec-websocket-version") == ["13"]
            && keys.len() == 1
            && is_key(keys[0])
    }

    /// Whether the request has none of the optional headers that can make the server reject the handshake.
    fn has_no_other_checked_header(&self) -> bool {
        ["sec-websocket-protocol", "sec-websocket-extensions", "origin", "authorization"]
            .iter()
            .all(|name| self.all(name).is_empty())
    }
}

fn check_response(rejection: &Rejection) {
    assert!([400, 401, 403, 404, 405, 414, 426, 431, 505].contains(&rejection.status), "{rejection:?}");
    assert!(!rejection.body.contains(char::is_control), "{rejection:?}");
    check_response_bytes(&format_rejection(rejection, false, SystemTime::UNIX_EPOCH), false);
}

fn check_response_bytes(response: &[u8], is_head: bool) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(len) = parsed.parse(response).expect("a response") else { panic!("a whole head") };
    let length = parsed.headers.iter().find(|header| header.name == "Content-Length").expect("a length");
    let length: usize = String::from_utf8_lossy(length.value).parse().expect("a number");
    assert_eq!(response.len() - len, if is_head { 0 } else { length });
}
