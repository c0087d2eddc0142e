//! The URL of a server: `ws://` (RFC 6455 §3), `http://` or `https://` (RFC 9110 §4.2). This module parses URLs itself:
//! a general URL parser would normalize the path, but a test client must send the path exactly as the user typed it.

use std::net::{SocketAddr, ToSocketAddrs};

/// A URL of the form `ws://host:port/path?query`, or the same with `http` or `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    scheme: &'static str,
    /// The URL's host: a name or an IP address. An IPv6 address includes its brackets.
    host: String,
    port: u16,
    /// The URL's path and query, not normalized.
    target: String,
}

impl Url {
    /// Parses a `ws://` URL (RFC 6455 §3).
    pub fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = split_scheme(text);
        match scheme.as_str() {
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
        Url::parse_authority("ws", rest, text)
    }

    /// Parses an `http://` URL (RFC 9110 §4.2.1).
    pub fn parse_http(text: &str) -> Result<Url, String> {
        match split_scheme(text) {
            (scheme, _) if scheme == "https" => Err(format!(
                "{text:?}: https is not supported; ask the server's own port, which is plain HTTP, as in \
                 http://127.0.0.1:3000"
            )),
            _ => Url::parse_http_or_https(text),
        }
    }

    /// Parses an `http://` URL or, in a build with the `tls` feature, an `https://` URL (RFC 9110 §4.2.2).
    pub fn parse_http_or_https(text: &str) -> Result<Url, String> {
        let (scheme, rest) = split_scheme(text);
        match scheme.as_str() {
            "http" | "https" if rest.contains('#') => {
                Err(format!("{text:?}: a request cannot contain a fragment; remove # and the rest"))
            }
            "http" => Url::parse_authority("http", rest, text),
            "https" if cfg!(feature = "tls") => Url::parse_authority("https", rest, text),
            "https" => {
                Err(format!("{text:?}: https needs the feature tls; ask the server's own port, if it is plain HTTP"))
            }
            _ => Err(format!("{text:?}: the URL must begin with http://, as in http://127.0.0.1:3000")),
        }
    }

    /// Parses `rest`, the part of the URL `text` after `scheme://`.
    fn parse_authority(scheme: &'static str, rest: &str, text: &str) -> Result<Url, String> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{text:?}: blanks and letters outside of ASCII must be percent-encoded"));
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let (host, port) = split_port(authority, default_port(scheme)).ok_or_else(|| {
            format!("{text}: {authority:?} is not a host with an optional port, such as 127.0.0.1:8080")
        })?;
        // RFC 6455 §3 and RFC 9112 §3.2.1: if the path is empty, the request target begins with "/".
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Url { scheme, host: host.to_owned(), port, target })
    }

    pub fn with_target(&self, target: &str) -> Url {
        Url { target: target.to_owned(), ..self.clone() }
    }

    pub fn is_https(&self) -> bool {
        self.scheme == "https"
    }

    /// The request target in origin-form (RFC 9112 §3.2.1): the URL's path and query.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The value of the `Host` header. RFC 6455 §4.1: it includes the port "when not using the default port".
    pub fn authority(&self) -> String {
        if self.port == default_port(self.scheme) { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
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

/// Splits the URL `scheme://rest`. Returns the scheme in lower case, or an empty scheme if the URL has none.
fn split_scheme(text: &str) -> (String, &str) {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    (scheme.to_ascii_lowercase(), rest)
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// Splits `host:port`, `host`, `[::1]:port` or `[::1]` into host and port.
fn split_port(authority: &str, default: u16) -> Option<(&str, u16)> {
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[end..].rfind(':') {
        Some(colon) => (&authority[..end + colon], authority[end + colon + 1..].parse().ok()?),
        None => (authority, default),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let is_plain = !host.is_empty() && !host.contains(['[', ']', ':', '@']);
    (port > 0 && (is_bracketed || is_plain)).then_some((host, port))
}

impl std::fmt::Display for Url {
    /// Prints the URL without its query, which may contain an access token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority(), self.target.split('?').next().unwrap_or_default())
    }
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
    fn http_urls() {
        let url = |text| Url::parse_http(text).map(|url| format!("{url} {}", url.target()));
        assert_eq!(url("HTTP://127.0.0.1:3000").unwrap(), "http://127.0.0.1:3000/ /");
        assert_eq!(url("http://[::1]:80/a?b").unwrap(), "http://[::1]/a /a?b");
        let cases = [
            ("https://localhost/", "the server's own port"),
            ("ws://localhost/", "begin with http://"),
            ("localhost:3000", "begin with http://"),
            ("http://localhost/#a", "fragment"),
            ("http://local\nhost/", "percent-encoded"),
            ("http://", "is not a host"),
            ("http://localhost:0", "is not a host"),
        ];
        for (text, words) in cases {
            let error = url(text).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{text}: {error}");
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
