//! The URL of a server (RFC 6455 §3) and the upgrade request (§4.1), with the edits of a test case. This module parses
//! URLs itself: a general URL parser would normalize the path, but a test client must send the path exactly as the user
//! typed it.

use std::net::{SocketAddr, ToSocketAddrs};

use super::case::Edit;
use crate::tools::notation;

/// A WebSocket URL: `ws://host:port/path?query`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// A host name or an IP address. An IPv6 address includes its brackets.
    host: String,
    port: u16,
    /// The path and the query, not normalized.
    target: String,
}

impl Url {
    /// Parses a `ws://` URL (§3).
    pub fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        match scheme.to_ascii_lowercase().as_str() {
            "ws" => {}
            "wss" => {
                return Err(format!(
                    "{text}: wss:// is WebSocket inside TLS, which poke does not support; use the plain ws:// port of the \
                     server"
                ));
            }
            "" => return Err(format!("{text} is not a URL: it begins with ws://, as in ws://127.0.0.1:8080/")),
            _ => {
                return Err(format!(
                    "{text}: a WebSocket URL begins with ws://; only ws:// is supported (RFC 6455 §3)"
                ));
            }
        }
        if text.contains('#') {
            return Err(format!("{text}: a WebSocket URL has no fragment; write # as %23 (RFC 6455 §3)"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{text:?}: blanks and letters outside of ASCII must be percent-encoded"));
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let (host, port) = split_port(authority).ok_or_else(|| {
            format!("{text}: {authority:?} is not a host with an optional port, such as 127.0.0.1:8080")
        })?;
        // §3: if the path is empty, the resource name begins with "/".
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Url { host: host.to_owned(), port, target })
    }

    pub fn with_target(&self, target: &str) -> Url {
        Url { target: target.to_owned(), ..self.clone() }
    }

    /// The value of the `Host` header. §4.1: it includes the port "when not using the default port".
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// Resolves the host. Unless `anywhere` is true, every address must be loopback: sending invalid frames to another
    /// machine requires its owner's permission.
    pub fn resolve(&self, anywhere: bool) -> Result<Vec<SocketAddr>, String> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let found = (host, self.port).to_socket_addrs();
        let found: Vec<SocketAddr> = found.map_err(|error| format!("cannot resolve {}: {error}", self.host))?.collect();
        let elsewhere = found.iter().find(|address| !address.ip().to_canonical().is_loopback());
        match elsewhere {
            _ if found.is_empty() => Err(format!("{} has no address", self.host)),
            Some(address) if !anywhere => Err(format!(
                "{} is another machine ({}); poke sends invalid frames, so add --yes-i-may if its owner permits that",
                self.host,
                address.ip()
            )),
            _ => Ok(found),
        }
    }
}

/// Splits `host:port`, `host`, `[::1]:port` or `[::1]` into host and port. §3: the default port of ws:// is 80.
fn split_port(authority: &str) -> Option<(&str, u16)> {
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[end..].rfind(':') {
        Some(colon) => (&authority[..end + colon], authority[end + colon + 1..].parse().ok()?),
        None => (authority, 80),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_plain = !host.is_empty() && !host.contains(['[', ']', ':', '@']);
    (port > 0 && (is_bracketed || is_plain)).then_some((host, port))
}

impl std::fmt::Display for Url {
    /// Prints the URL without its query, which may contain an access token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ws://{}{}", self.authority(), self.target.split('?').next().unwrap_or_default())
    }
}

/// Builds the upgrade request for `url` with `key` as Sec-WebSocket-Key, and applies `edits`.
///
/// ```
/// use wirechat::tools::poke::{case::Edit, request::{self, Url}};
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
        let line = line.replace("{target}", &url.target).replace("{host}", &url.authority()).replace("{key}", key);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let cases = [
            ("ws://127.0.0.1:8080/", "127.0.0.1:8080", "/"),
            ("ws://127.0.0.1:8080", "127.0.0.1:8080", "/"),
            ("WS://localhost/a/b?c=d", "localhost", "/a/b?c=d"),
            ("ws://localhost:80?c", "localhost", "/?c"),
            ("ws://[::1]:3000/echo?token=dev-token", "[::1]:3000", "/echo?token=dev-token"),
            ("ws://[::1]", "[::1]", "/"),
        ];
        for (text, authority, target) in cases {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.authority().as_str(), url.target.as_str()), (authority, target), "{text}");
        }
    }

    #[test]
    fn an_error_says_what_is_wrong_with_a_url() {
        let cases = [
            ("wss://localhost/", "TLS"),
            ("http://localhost/", "only ws://"),
            ("localhost:3000", "begins with ws://"),
            ("ws://localhost/#a", "fragment"),
            ("ws://local host/", "percent-encoded"),
            ("ws:///echo", "is not a host"),
            ("ws://localhost:0/", "is not a host"),
            ("ws://localhost:99999/", "is not a host"),
            ("ws://user@localhost/", "is not a host"),
            ("ws://::1/", "is not a host"),
        ];
        for (text, words) in cases {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn another_machine_needs_permission() {
        let url = Url::parse("ws://192.0.2.1/").unwrap();
        assert!(url.resolve(false).unwrap_err().contains("--yes-i-may"));
        assert!(url.resolve(true).is_ok());
        assert!(Url::parse("ws://127.0.0.1:1/").unwrap().resolve(false).is_ok());
        assert!(Url::parse("ws://[::1]/").unwrap().resolve(false).is_ok());
        assert!(Url::parse("ws://[::ffff:127.0.0.1]/").unwrap().resolve(false).is_ok());
    }
}
