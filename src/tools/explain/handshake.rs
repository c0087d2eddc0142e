//! Checks an opening handshake: a request against the server's rules (RFC 6455 §4.2.1), a response against a client's
//! rules (§4.1). An HTTP parser stops at its first error. To list more violations, this module repairs line endings
//! and parses each line of a request separately.

use crate::inspect::escape::escape;
use crate::tools::inbox::{Offer, Response};
use crate::tools::notation::Decoded;
use crate::ws::deflate::negotiate;
use crate::ws::frame::Role;
use crate::ws::handshake::{accept_handshake, accept_value, decoded_key_len};
use crate::ws::request::{HeadReader, Rejection, Request};

const RESPONSE_PREFIX: &[u8] = b"HTTP/1.";
const METHODS: [&[u8]; 8] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PATCH "];

#[derive(Debug)]
pub struct HandshakeReport<'b> {
    pub lines: Vec<String>,
    pub is_valid: bool,
    /// The endpoint that sent `rest`, the bytes after the handshake. `None` if the input contains no handshake.
    pub role: Option<Role>,
    pub rest: &'b [u8],
}

/// Reads the text of an HTTP message, or the output of `curl -v`. Returns `None` if the text is neither.
pub fn read_http_text(text: &str) -> Option<Decoded> {
    let is_http = |text: &str| is_request(text.trim_start().as_bytes()) || text.starts_with("HTTP/1.");
    if is_http(text) {
        return Some(Decoded::new(text.into(), "the text of an HTTP message"));
    }
    // curl -v prefixes sent headers with `> `, received headers with `< `, and its own remarks with `* `.
    let prefixed = text.lines().filter_map(|line| line.strip_prefix(['>', '<']));
    let heads: String =
        prefixed.map(|line| format!("{}\r\n", line.strip_prefix(' ').unwrap_or(line).trim_end())).collect();
    is_http(&heads).then(|| Decoded::new(heads.into(), "the output of curl -v"))
}

fn is_request(bytes: &[u8]) -> bool {
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// Explains a request, a response, or a request followed by its response. To check a response without its request, pass
/// the request's `Sec-WebSocket-Key` as `key`.
pub fn explain<'b>(bytes: &'b [u8], key: Option<&str>) -> HandshakeReport<'b> {
    let mut handshake = HandshakeReport { lines: Vec::new(), is_valid: true, role: None, rest: bytes };
    let mut offer = key.map(Offer::from_key);
    let blank = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
    if is_request(&bytes[blank..]) {
        let head = Head::split(bytes);
        handshake.add_head(&head, "request");
        handshake.check_request(&head);
        offer = Some(Offer::from_request(head.bytes));
        handshake.role = Some(Role::Client);
    }
    if handshake.rest.starts_with(RESPONSE_PREFIX) {
        let head = Head::split(handshake.rest);
        handshake.add_head(&head, "response");
        handshake.check_response(&head, offer.as_ref());
        handshake.role = Some(Role::Server);
    }
    handshake
}

impl<'b> HandshakeReport<'b> {
    fn add_head(&mut self, head: &Head<'b>, kind: &str) {
        self.lines.push(format!("HTTP {kind}, the opening handshake (§4): {} bytes.", head.bytes.len()));
        self.rest = head.rest;
    }

    fn check_request(&mut self, head: &Head) {
        let rejections = find_rejections(head);
        self.is_valid &= rejections.is_empty();
        self.lines.extend(rejections.iter().map(|rejection| format!("! {} {}", rejection.status, rejection.body)));
        self.lines.push(match rejections.len() {
            0 => "A valid request (§4.2.1).".into(),
            1 => "A server rejects this request: it breaks 1 rule.".into(),
            count => format!("A server rejects this request: it breaks {count} rules."),
        });
        if head.has_lone_lf {
            self.lines.push(
                "(Copying text often turns CR LF into LF. If so, the rule about line ends is not broken.)".into(),
            );
        }
        if let Some(agreement) = Request::parse(head.bytes, 1000).ok().and_then(|request| negotiate(&request)) {
            self.lines.push(format!(
                "It offers compression. A server with --deflate responds with {} (RFC 7692 §7.1).",
                agreement.header().trim_end()
            ));
        }
        let key = Offer::from_request(head.bytes).key.filter(|key| decoded_key_len(key.as_bytes()) == Some(16));
        if let Some(key) = key {
            let accept = accept_value(key.as_bytes());
            self.lines.push(format!("The response to this key has Sec-WebSocket-Accept: {accept} (§4.2.2)."));
        }
    }

    fn check_response(&mut self, head: &Head, offer: Option<&Offer>) {
        let mut violations = Vec::new();
        if head.has_lone_lf {
            violations.push("a line ends with LF alone; every line must end with CR LF (RFC 9112 §2.2)".to_owned());
        }
        if !head.is_complete {
            violations.push(NO_BLANK_LINE.to_owned());
        }
        let unknown = Offer::default();
        match Response::parse(&head.repair(), offer.unwrap_or(&unknown)) {
            Ok(Some((response, _))) if response.status == 101 => violations.extend(response.violations),
            Ok(Some((response, _))) => violations.push(format!(
                "the status is {}, not 101: the server rejected the handshake, and no frames follow (RFC 6455 §4.1)",
                response.status
            )),
            Ok(None) => violations.push("the head cannot be read (RFC 9112 §4)".to_owned()),
            Err(error) => violations.push(error),
        }
        self.is_valid &= violations.is_empty();
        self.lines.extend(violations.iter().map(|violation| format!("! {violation}.")));
        match (violations.is_empty(), offer.and_then(|offer| offer.key.as_ref())) {
            (true, Some(key)) => {
                let (accept, key) = (accept_value(key.as_bytes()), escape(key));
                self.lines.push(format!("A valid response: {accept} is the accept value for the key {key} (§4.1)."));
            }
            (true, None) => self.lines.push(
                "A valid response (§4.1), as far as it can be checked alone. To check Sec-WebSocket-Accept, put the request \
                 before it, or add --key KEY."
                    .into(),
            ),
            (false, _) => self.lines.push("A client fails the connection on this response.".into()),
        }
    }
}

const NO_BLANK_LINE: &str = "the blank line that ends the head is missing (RFC 9112 §2.1)";

/// The start line and headers of an HTTP message.
struct Head<'b> {
    /// All bytes through the blank line after the headers, or the whole input if that line is missing.
    bytes: &'b [u8],
    rest: &'b [u8],
    is_complete: bool,
    has_lone_lf: bool,
}

impl<'b> Head<'b> {
    fn split(bytes: &'b [u8]) -> Head<'b> {
        let (mut end, mut has_content, mut has_lone_lf) = (0, false, false);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let content = line.trim_ascii_end();
            end += line.len();
            has_lone_lf |= line.ends_with(b"\n") && !line.ends_with(b"\r\n");
            // RFC 9112 §2.2: blank lines may precede the start line, so only a later blank line ends the headers.
            if content.is_empty() && has_content && line.ends_with(b"\n") {
                return Head { bytes: &bytes[..end], rest: &bytes[end..], is_complete: true, has_lone_lf };
            }
            has_content |= !content.is_empty();
        }
        Head { bytes, rest: &[], is_complete: false, has_lone_lf }
    }

    fn lines(&self) -> impl Iterator<Item = &'b [u8]> {
        let lines = self.bytes.split(|byte| *byte == b'\n');
        lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).filter(|line| !line.is_empty())
    }

    /// Returns the start line and headers with CR LF after every line and a blank line at the end.
    fn repair(&self) -> Vec<u8> {
        let mut repaired: Vec<u8> = self.lines().flat_map(|line| [line, b"\r\n"].concat()).collect();
        repaired.extend(b"\r\n");
        repaired
    }
}

/// Lists the rules that a request breaks: first HTTP rules, line by line, then the rules of RFC 6455 §4.2.1.
fn find_rejections(head: &Head) -> Vec<Rejection> {
    let mut found: Vec<Rejection> = Vec::new();
    let mut add = |rejection: Rejection| {
        if !found.contains(&rejection) {
            found.push(rejection);
        }
    };
    match HeadReader::default().receive(head.bytes, usize::MAX) {
        Ok(Some(_)) => {}
        Ok(None) => add(Rejection::new(400, format!("T{}.", &NO_BLANK_LINE[1..]))),
        Err(rejection) => {
            add(rejection);
            // `HeadReader` stops at its first error, so it does not also report a missing blank line after the headers.
            if !head.is_complete {
                add(Rejection::new(400, format!("T{}.", &NO_BLANK_LINE[1..])));
            }
        }
    }
    // Parse each line separately and drop invalid lines, so an invalid line cannot hide errors in later lines.
    let mut lines = head.lines();
    let request_line = [lines.next().unwrap_or_default(), b"\r\n"].concat();
    let mut kept = match Request::parse(&[&request_line, &b"\r\n"[..]].concat(), 0) {
        Ok(_) => request_line,
        Err(rejection) => {
            add(rejection);
            b"GET / HTTP/1.1\r\n".to_vec()
        }
    };
    let mut count = 0;
    for line in lines {
        let line = [line, b"\r\n"].concat();
        match Request::parse(&[b"GET / HTTP/1.1\r\n", &line[..], b"\r\n"].concat(), 1) {
            Ok(_) => {
                kept.extend(line);
                count += 1;
            }
            Err(rejection) => add(rejection),
        }
    }
    kept.extend(b"\r\n");
    match Request::parse(&kept, count) {
        Ok(request) => accept_handshake(&request, "").err().into_iter().flatten().for_each(add),
        Err(rejection) => add(rejection),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    fn list_errors(bytes: &str, key: Option<&str>) -> Vec<String> {
        let handshake = explain(bytes.as_bytes(), key);
        let listed: Vec<String> = handshake.lines.into_iter().filter(|line| line.starts_with('!')).collect();
        assert_eq!(listed.is_empty(), handshake.is_valid);
        listed
    }

    fn expect(bytes: &str, key: Option<&str>, words: &[&str]) {
        let listed = list_errors(bytes, key);
        assert_eq!(listed.len(), words.len(), "{listed:#?}");
        for (line, word) in listed.iter().zip(words) {
            assert!(line.contains(word), "{word:?} in {line:?}");
        }
    }

    #[test]
    fn every_broken_rule_of_a_request_is_listed() {
        expect(REQUEST, None, &[]);
        expect("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None, &["426", "Connection", "Version", "Key"]);
        expect(&REQUEST.replace("\r\n", "\n"), None, &["! 400 A line ends with LF alone"]);
        expect(REQUEST.trim_end(), None, &["The blank line that ends the head is missing"]);
        expect(&REQUEST.trim_end().replace("\r\n", "\n"), None, &["LF alone", "The blank line"]);
        let short = REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "short").replace("Sec-WebSocket-Version: 13\r\n", "");
        expect(&short, None, &["Sec-WebSocket-Version: 13 is missing", "\"short\" is not base64"]);
        let rude = REQUEST.replace("GET", "POST").replace("Host: ", "Host : ").replace("HTTP/1.1", "HTTP/1.0");
        expect(&rude, None, &["header name", "The method must be GET", "HTTP/1.0"]);
        let body = REQUEST.replace("Upgrade: websocket", "Content-Length: 5");
        expect(&body, None, &["body", "426"]);
    }

    #[test]
    fn a_response_is_compared_with_the_request_or_the_key() {
        let both = |response: &str| format!("{REQUEST}{response}");
        expect(&both(RESPONSE), None, &[]);
        expect(&both(&RESPONSE.replace("s3pP", "S3pP")), None, &["must be s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
        expect(RESPONSE, None, &[]);
        expect(RESPONSE, Some("dGhlIHNhbXBsZSBub25jZQ=="), &[]);
        expect(
            RESPONSE,
            Some("AAAAAAAAAAAAAAAAAAAAAA=="),
            &["Sec-WebSocket-Accept must be ICX+Yqv66kxgM0FcWaLWlFLwTAI="],
        );
        expect("HTTP/1.1 400 Bad Request\r\n\r\n", None, &["the status is 400, not 101"]);
        expect(
            &RESPONSE.replace("Upgrade: websocket\r\n", "").replace("\r\n", "\n"),
            None,
            &["LF alone", "no Upgrade"],
        );
        expect(RESPONSE.trim_end(), None, &["the blank line"]);
        let chosen = RESPONSE.replace("Upgrade: w", "Sec-WebSocket-Protocol: x\r\nUpgrade: w");
        expect(&both(&chosen), None, &["the subprotocol \"x\", which was not offered"]);
    }

    #[test]
    fn the_output_of_curl_is_a_request_and_its_response() {
        let prefixed =
            |prefix: &str, head: &str| head.lines().map(|line| format!("{prefix} {line}\n")).collect::<String>();
        let output =
            ["* Connected\n", &prefixed(">", REQUEST), "* Sent\n", &prefixed("<", RESPONSE), "{ [data]\n"].concat();
        let decoded = read_http_text(&output).unwrap();
        assert_eq!(decoded.bytes, [REQUEST, RESPONSE].concat().as_bytes());
        assert_eq!(read_http_text("81 85"), None);
        assert_eq!(read_http_text("<Buffer 81 85>"), None);
    }

    #[test]
    fn frames_may_follow_the_handshake() {
        let bytes = [REQUEST.as_bytes(), b"\x81\x80\0\0\0\0"].concat();
        let handshake = explain(&bytes, None);
        assert_eq!((handshake.role, handshake.rest.len()), (Some(Role::Client), 6));
        let bytes = [REQUEST.as_bytes(), RESPONSE.as_bytes(), b"\x81\x00"].concat();
        let handshake = explain(&bytes, None);
        assert_eq!((handshake.role, handshake.rest.len()), (Some(Role::Server), 2));
        assert_eq!(explain(b"\x81\x80", None).role, None);
    }
}
