//! The answer to an opening handshake, and what a client must check of it (§4.1).

use std::borrow::Cow;

use super::screen::{escaped, quoted, start};
use crate::ws::handshake::accept_key;

const MAX_HEADERS: usize = 128;

/// The head of an HTTP answer, and as much of its body as came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The versions that it names (§4.4).
    pub versions: Option<String>,
    /// What the server announces as the length of the body.
    length: Option<usize>,
    /// The body of a plain answer.
    pub body: Vec<u8>,
    /// What is wrong with a 101.
    pub fault: Option<String>,
}

impl Response {
    /// A 101 that is as it should be.
    pub fn upgraded() -> Response {
        Response { status: 101, versions: None, length: None, body: Vec::new(), fault: None }
    }

    /// Reads the head at the start of `bytes`, and says how long it is. `Ok(None)`: not all of it is there.
    ///
    /// # Errors
    /// A line: this is no HTTP.
    pub fn parse(bytes: &[u8], request: &str) -> Result<Option<(Response, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let len = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("the answer is no HTTP ({error}); it begins with {}", start(bytes))),
        };
        let status = parsed.code.unwrap_or_default();
        let lines = parsed.headers.iter();
        let lines: Lines = lines.map(|line| (line.name, String::from_utf8_lossy(line.value))).collect();
        let length = joined(&lines, "Content-Length").and_then(|length| length.parse().ok());
        let fault = (status == 101).then(|| fault_of_101(&lines, request)).flatten();
        let versions = joined(&lines, "Sec-WebSocket-Version");
        Ok(Some((Response { status, versions, length, body: Vec::new(), fault }, len)))
    }

    /// Whether version 13 is among those that it names.
    pub fn names_version(&self) -> bool {
        let versions = self.versions.as_deref().unwrap_or_default();
        versions.split(',').any(|version| version.trim() == "13")
    }

    /// Whether all of a plain answer is there, as far as that can be told without the end of the connection.
    pub fn is_complete(&self) -> bool {
        self.status != 101 && self.length.is_some_and(|length| self.body.len() >= length)
    }
}

/// The lines of a head: name and value.
type Lines<'h> = Vec<(&'h str, Cow<'h, str>)>;

/// RFC 9110 §5.3: several lines of one name are one list. The values of this name; `None` if it is not there.
fn joined(lines: &Lines, name: &str) -> Option<String> {
    let lines = lines.iter().filter(|(found, _)| found.trim().eq_ignore_ascii_case(name));
    let values: Vec<&str> = lines.map(|(_, value)| value.trim()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// The elements of a list, without their parameters.
fn elements(list: &str) -> impl Iterator<Item = &str> {
    let elements = list.split(',').map(|element| element.split(';').next().unwrap_or_default().trim());
    elements.filter(|element| !element.is_empty())
}

/// §4.1: what makes a client fail the connection although the status is 101.
fn fault_of_101(answer: &Lines, request: &str) -> Option<String> {
    let request: Lines = request.lines().filter_map(|line| line.split_once(':')).map(|(n, v)| (n, v.into())).collect();
    let of = |lines: &Lines, name: &str| joined(lines, name).unwrap_or_default();
    let has = |name: &str, token: &str| elements(&of(answer, name)).any(|found| found.eq_ignore_ascii_case(token));
    if !has("Upgrade", "websocket") {
        return Some("the 101 has no Upgrade: websocket (RFC 6455 §4.2.2)".into());
    }
    if !has("Connection", "upgrade") {
        return Some("the 101 has no Connection: Upgrade (RFC 6455 §4.2.2)".into());
    }
    let key = of(&request, "Sec-WebSocket-Key");
    let (accept, expected) = (joined(answer, "Sec-WebSocket-Accept"), accept_key(key.as_bytes()));
    if accept.as_deref() != Some(&expected) {
        let sent = accept.unwrap_or_else(|| "missing".into());
        return Some(format!(
            "Sec-WebSocket-Accept must be {expected} for the key {key}; it is {} (RFC 6455 §4.2.2)",
            escaped(&sent)
        ));
    }
    let (extensions, offer) = (of(answer, "Sec-WebSocket-Extensions"), of(&request, "Sec-WebSocket-Extensions"));
    if let Some(extra) = elements(&extensions).find(|chosen| !elements(&offer).any(|offered| offered == *chosen)) {
        return Some(format!("the 101 names the extension {}, which was not offered (RFC 6455 §4.1)", quoted(extra)));
    }
    // One, and no list: if there are two, they are together the name of none.
    let (chosen, offer) = (joined(answer, "Sec-WebSocket-Protocol")?, of(&request, "Sec-WebSocket-Protocol"));
    let is_offered = elements(&offer).any(|offered| offered == chosen);
    (!is_offered)
        .then(|| format!("the 101 names the subprotocol {}, which was not offered (RFC 6455 §4.1)", quoted(&chosen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(answer: &str, request: &str) -> Option<String> {
        let request = format!("GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{request}\r\n");
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{answer}\r\n");
        let (parsed, len) = Response::parse(answer.as_bytes(), &request).unwrap().unwrap();
        assert_eq!(len, answer.len());
        parsed.fault
    }

    #[test]
    fn rfc_4_1_what_a_client_checks_of_a_101() {
        let good =
            "Upgrade: WebSocket\r\nConnection: x, upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert_eq!(fault(good, ""), None);
        let with = |line: &str| format!("{good}{line}\r\n");
        assert_eq!(fault(&with("Sec-WebSocket-Protocol: b"), "Sec-WebSocket-Protocol: a, b\r\n"), None);
        assert!(fault(&with("Sec-WebSocket-Protocol: b"), "").unwrap().contains("subprotocol"));
        assert!(fault(&with("Sec-WebSocket-Extensions: x; a=1"), "").unwrap().contains("the extension \"x\""));
        let offer = "Sec-WebSocket-Extensions: x; a=1\r\nSec-WebSocket-Extensions: z\r\n";
        assert_eq!(fault(&with("Sec-WebSocket-Extensions: x; a=1, z"), offer), None);
        assert!(fault(&with("Sec-WebSocket-Extensions: x, y"), offer).unwrap().contains("the extension \"y\""));
        let offer = "Sec-WebSocket-Protocol: a, b\r\n";
        assert!(fault(&with("Sec-WebSocket-Protocol: a, b"), offer).unwrap().contains("the subprotocol \"a, b\""));
        assert!(fault(&good.replace("s3pP", "S3pP"), "").unwrap().contains("it is S3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(fault(&good.replace("Accept", "Except"), "").unwrap().contains("it is missing"));
        assert!(fault(&good.replace("WebSocket\r\nC", "h2c\r\nC"), "").unwrap().contains("Upgrade: websocket"));
        assert!(fault(&good.replace(", upgrade", ""), "").unwrap().contains("Connection: Upgrade"));
    }

    /// RFC 9110 §5.3: what may be a list may come in several lines. What may not is then something else.
    #[test]
    fn several_lines_of_one_name() {
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let good = format!("Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n{accept}");
        assert_eq!(fault(&good, ""), None);
        let twice = fault(&(good + accept), "").unwrap();
        assert!(twice.contains("it is s3pPLMBiTxaQ9kYGzzhZRbK+xOo=, s3pPLMBiTxaQ9kYGzzhZRbK+xOo= "), "{twice}");
    }

    #[test]
    fn what_is_no_http_is_shown() {
        let fault = |bytes| Response::parse(bytes, "").unwrap_err();
        assert!(fault(b"SSH-2.0-x\r\n").ends_with("; it begins with \"SSH-2.0-x\\r\\n\""));
        assert!(fault(b"\x1b[31mred").ends_with("; it begins with \"\\u{1b}[31mred\""));
        assert!(fault(b"\x16\x03\xff").ends_with("; it begins with 16 03 ff"));
        let long = fault(&[b'x'; 1000]);
        assert!(long.ends_with("xxx\"…") && long.len() < 200, "{long}");
    }

    #[test]
    fn an_answer_may_come_in_pieces_and_may_be_none() {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno";
        for cut in 0..answer.len() - 2 {
            assert_eq!(Response::parse(&answer[..cut], ""), Ok(None), "cut at {cut}");
        }
        let (mut parsed, len) = Response::parse(answer, "").unwrap().unwrap();
        assert_eq!((parsed.status, &answer[len..]), (400, &b"no"[..]));
        assert!(!parsed.is_complete());
        parsed.body = b"no".to_vec();
        assert!(parsed.is_complete());
        assert!(Response::parse(b"\x81\x05Hello", "").is_err());
    }
}
