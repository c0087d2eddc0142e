//! The upgrade request (RFC 6455 §4.1), with the edits of a test case.

use super::case::Edit;
use crate::tools::notation;
use crate::tools::url::Url;

/// Builds the upgrade request for `url` with `key` as Sec-WebSocket-Key, and applies `edits`.
///
/// ```
/// use wirechat::tools::{poke::{case::Edit, request}, url::Url};
/// let url = Url::parse("ws://127.0.0.1:3000/echo").unwrap();
/// let request = request::build_request(&url, "dGhlIHNhbXBsZSBub25jZQ==", &[Edit::Remove("Sec-WebSocket-Version")]);
/// assert_eq!(request, b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUpgrade: websocket\r\n\
///     Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
/// ```
pub fn build_request(url: &Url, key: &str, edits: &[Edit]) -> Vec<u8> {
    let mut lines = vec![
        "GET {target} HTTP/1.1".to_owned(),
        "Host: {host}".to_owned(),
        "Upgrade: websocket".to_owned(),
        "Connection: Upgrade".to_owned(),
        "Sec-WebSocket-Key: {key}".to_owned(),
        "Sec-WebSocket-Version: 13".to_owned(),
    ];
    let (mut before, mut after, mut line_end) = (Vec::new(), Vec::new(), b"\r\n".to_vec());
    for edit in edits {
        match *edit {
            Edit::RequestLine(line) => lines[0] = line.to_owned(),
            Edit::Set(line) => match lines.iter_mut().find(|old| is_named(old, header_name(line))) {
                Some(old) => *old = line.to_owned(),
                None => lines.push(line.to_owned()),
            },
            Edit::Add(line) => lines.push(line.to_owned()),
            Edit::Remove(name) => lines.retain(|line| !is_named(line, name)),
            Edit::LongLine(len) => lines.push(format!("X-Long: {}", "x".repeat(len))),
            Edit::ManyLines(count) => lines.extend((1..=count).map(|i| format!("X-{i}: y"))),
            Edit::LongTarget(len) => {
                lines[0] = lines[0].replace("{target}", &format!("{{target}}&{}", "x".repeat(len)));
            }
            Edit::LineEnd(end) => line_end = notation::read_case_bytes(end),
            Edit::Prepend(bytes) => before = notation::read_case_bytes(bytes),
            Edit::Append(bytes) => after = notation::read_case_bytes(bytes),
            // `ByteByByte` changes how the request is sent, not its bytes.
            Edit::ByteByByte => {}
        }
    }
    let mut request = before;
    for line in lines {
        let line = line.replace("{target}", url.target()).replace("{host}", &url.authority()).replace("{key}", key);
        request.extend_from_slice(line.as_bytes());
        request.extend_from_slice(&line_end);
    }
    request.extend_from_slice(&line_end);
    request.append(&mut after);
    request
}

fn header_name(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

fn is_named(line: &str, name: &str) -> bool {
    header_name(line).eq_ignore_ascii_case(name)
}
