//! The answer to an opening handshake, and what a client must check of it (§4.1).

use crate::ws::handshake::accept_key;

const MAX_HEADERS: usize = 128;

/// The head of an HTTP answer, and as much of its body as came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
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

impl Answer {
    /// A 101 that is as it should be.
    pub fn upgraded() -> Answer {
        Answer { status: 101, versions: None, length: None, body: Vec::new(), fault: None }
    }

    /// Reads the head at the start of `bytes`, and says how long it is. `Ok(None)`: not all of it is there.
    ///
    /// # Errors
    /// A line: this is no HTTP.
    pub fn parse(bytes: &[u8], request: &str) -> Result<Option<(Answer, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let len = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("the answer is no HTTP ({error})")),
        };
        let status = parsed.code.unwrap_or_default();
        let value = |name: &str| {
            let header = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(header.value).trim().to_owned())
        };
        let length = value("Content-Length").and_then(|length| length.parse().ok());
        let fault = (status == 101).then(|| fault_of_101(&value, request)).flatten();
        let versions = value("Sec-WebSocket-Version");
        Ok(Some((Answer { status, versions, length, body: Vec::new(), fault }, len)))
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

/// §4.1: what makes a client fail the connection although the status is 101.
fn fault_of_101(value: &impl Fn(&str) -> Option<String>, request: &str) -> Option<String> {
    let has = |name: &str, token: &str| {
        let list = value(name).unwrap_or_default();
        list.split(',').any(|element| element.trim().eq_ignore_ascii_case(token))
    };
    let offered = |name: &str| {
        let Some(answered) = value(name) else { return true };
        let chosen = answered.split([',', ';']).next().unwrap_or_default().trim();
        let offer = value_in(request, name).unwrap_or_default();
        offer.split([',', ';']).any(|element| element.trim() == chosen)
    };
    let key = value_in(request, "Sec-WebSocket-Key").unwrap_or_default();
    let (accept, expected) = (value("Sec-WebSocket-Accept"), accept_key(key.as_bytes()));
    if !has("Upgrade", "websocket") {
        return Some("the 101 has no Upgrade: websocket (RFC 6455 §4.2.2)".into());
    }
    if !has("Connection", "upgrade") {
        return Some("the 101 has no Connection: Upgrade (RFC 6455 §4.2.2)".into());
    }
    if accept.as_deref() != Some(&expected) {
        let sent = accept.unwrap_or_else(|| "missing".into());
        return Some(format!(
            "Sec-WebSocket-Accept must be {expected} for the key {key}; it is {} (RFC 6455 §4.2.2)",
            sent.escape_debug()
        ));
    }
    if !offered("Sec-WebSocket-Extensions") {
        return Some("the 101 names an extension that was not offered (RFC 6455 §4.1)".into());
    }
    if !offered("Sec-WebSocket-Protocol") {
        return Some("the 101 names a subprotocol that was not offered (RFC 6455 §4.1)".into());
    }
    None
}

/// The value of the first line of this name in a request, without blanks around it.
fn value_in<'r>(request: &'r str, name: &str) -> Option<&'r str> {
    let mut lines = request.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(answer: &str, request: &str) -> Option<String> {
        let request = format!("GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{request}\r\n");
        let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{answer}\r\n");
        let (parsed, len) = Answer::parse(answer.as_bytes(), &request).unwrap().unwrap();
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
        assert!(fault(&with("Sec-WebSocket-Extensions: x; a=1"), "").unwrap().contains("extension"));
        assert!(fault(&good.replace("s3pP", "S3pP"), "").unwrap().contains("it is S3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(fault(&good.replace("Accept", "Except"), "").unwrap().contains("it is missing"));
        assert!(fault(&good.replace("WebSocket\r\nC", "h2c\r\nC"), "").unwrap().contains("Upgrade: websocket"));
        assert!(fault(&good.replace(", upgrade", ""), "").unwrap().contains("Connection: Upgrade"));
    }

    #[test]
    fn an_answer_may_come_in_pieces_and_may_be_none() {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno";
        for cut in 0..answer.len() - 2 {
            assert_eq!(Answer::parse(&answer[..cut], ""), Ok(None), "cut at {cut}");
        }
        let (mut parsed, len) = Answer::parse(answer, "").unwrap().unwrap();
        assert_eq!((parsed.status, &answer[len..]), (400, &b"no"[..]));
        assert!(!parsed.is_complete());
        parsed.body = b"no".to_vec();
        assert!(parsed.is_complete());
        assert!(Answer::parse(b"\x81\x05Hello", "").is_err());
    }
}
