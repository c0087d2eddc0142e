//! `ws://host:port/path?query` (§3), and whether it is on this machine.

use std::net::{SocketAddr, ToSocketAddrs};

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// A name or an address; an IPv6 address has its brackets.
    host: String,
    port: u16,
    /// The path and the query.
    pub target: String,
}

impl Url {
    /// Takes a URL apart (§3).
    ///
    /// # Errors
    /// A line that says what is wrong with it, and what would be right.
    pub fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        match scheme.to_ascii_lowercase().as_str() {
            "ws" => {}
            "wss" => {
                return Err(format!(
                    "{text}: wss:// is WebSocket inside TLS, which this tool does not speak; give the plain ws:// port \
                     behind it"
                ));
            }
            "" => return Err(format!("{text} is no URL: it begins with ws://, as in ws://127.0.0.1:8080/")),
            _ => return Err(format!("{text}: only ws:// URLs are for WebSockets (RFC 6455 §3)")),
        }
        if text.contains('#') {
            return Err(format!("{text}: a WebSocket URL has no fragment, the part behind # (RFC 6455 §3)"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{text:?}: blanks, and letters that are not ASCII, must be percent-encoded"));
        }
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let (host, port) = split_port(authority).ok_or_else(|| format!("{text}: {authority:?} is no host and port"))?;
        // §3: without a path, the resource name is "/".
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Url { host: host.to_owned(), port, target })
    }

    /// The same server, another path and query.
    pub fn with_target(&self, target: &str) -> Url {
        Url { target: target.to_owned(), ..self.clone() }
    }

    /// What stands in `Host`: the port too, unless it is that of `ws://`.
    pub fn authority(&self) -> String {
        if self.port == 80 { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The addresses to connect to. Unless `anywhere`, all of them must be on this machine: what is sent is rude, and
    /// only one's own server should get it.
    ///
    /// # Errors
    /// A line: there is no such host, or it is elsewhere.
    pub fn addresses(&self, anywhere: bool) -> Result<Vec<SocketAddr>, String> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let found = (host, self.port).to_socket_addrs();
        let found: Vec<SocketAddr> = found.map_err(|error| format!("{}: {error}", self.host))?.collect();
        let elsewhere = found.iter().find(|address| !address.ip().to_canonical().is_loopback());
        match elsewhere {
            _ if found.is_empty() => Err(format!("{} has no address", self.host)),
            Some(address) if !anywhere => Err(format!(
                "{} is {}, which is not this machine; what this tool sends is rude, so it asks: --yes-i-may",
                self.host,
                address.ip()
            )),
            _ => Ok(found),
        }
    }
}

/// `host:port`, `host`, `[::1]:port`, `[::1]`; the port of `ws://` is 80.
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
    /// The query is left out: there may be a token in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ws://{}{}", self.authority(), self.target.split('?').next().unwrap_or_default())
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
    fn what_is_no_url_for_this_is_told_why() {
        let cases = [
            ("wss://localhost/", "TLS"),
            ("http://localhost/", "only ws://"),
            ("localhost:3000", "begins with ws://"),
            ("ws://localhost/#a", "fragment"),
            ("ws://local host/", "percent-encoded"),
            ("ws:///echo", "no host"),
            ("ws://localhost:0/", "no host and port"),
            ("ws://localhost:99999/", "no host and port"),
            ("ws://user@localhost/", "no host and port"),
            ("ws://::1/", "no host and port"),
        ];
        for (text, words) in cases {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn only_this_machine_unless_asked() {
        let url = Url::parse("ws://192.0.2.1/").unwrap();
        assert!(url.addresses(false).unwrap_err().contains("--yes-i-may"));
        assert!(url.addresses(true).is_ok());
        assert!(Url::parse("ws://127.0.0.1:1/").unwrap().addresses(false).is_ok());
        assert!(Url::parse("ws://[::1]/").unwrap().addresses(false).is_ok());
        assert!(Url::parse("ws://[::ffff:127.0.0.1]/").unwrap().addresses(false).is_ok());
    }
}
