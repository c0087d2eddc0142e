//! Trusted proxies: finds a client's address and scheme in the headers that a proxy adds. Any client can send these
//! headers, so they apply only to connections from a proxy that the operator trusts.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::ws::request::Request;

/// Returns the rightmost `X-Forwarded-For` address that is not a trusted proxy: each proxy appends its peer's address.
/// If every address is a trusted proxy, returns the leftmost address. Ignores a malformed entry and all entries to its
/// left.
pub fn find_client_address(request: &Request, proxies: &[IpNet]) -> Option<IpAddr> {
    let addresses: Vec<IpAddr> = request.list_elements("X-Forwarded-For").rev().map_while(parse_address).collect();
    addresses.iter().find(|address| !is_trusted_proxy(**address, proxies)).or(addresses.last()).copied()
}

pub fn is_trusted_proxy(address: IpAddr, proxies: &[IpNet]) -> bool {
    proxies.iter().any(|network| network.contains(&address))
}

pub fn find_scheme(request: &Request) -> &'static str {
    let last = request.list_elements("X-Forwarded-Proto").next_back();
    if last.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https")) { "https" } else { "http" }
}

/// Parses an address. Some proxies add a port, or put brackets around an IPv6 address.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let address = text.trim_matches(['[', ']']).parse().ok();
    address.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip())).map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_address(headers: &str) -> Option<String> {
        let proxies = ["127.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap());
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let request = Request::parse(head.as_bytes(), 64).unwrap();
        find_client_address(&request, &proxies).map(|address| address.to_string())
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_address() {
        let rows = [
            ("203.0.113.7", Some("203.0.113.7")),
            ("6.6.6.6, 203.0.113.7", Some("203.0.113.7")),
            ("6.6.6.6, 203.0.113.7, 10.1.1.1 ,127.0.0.1", Some("203.0.113.7")),
            ("6.6.6.6\r\nX-Forwarded-For: 203.0.113.7, 10.1.1.1", Some("203.0.113.7")),
            ("2001:db9::7, [2001:db8::1]", Some("2001:db9::7")),
            ("203.0.113.7:4711, 10.1.1.1:80", Some("203.0.113.7")),
            ("[2001:db9::7]:4711", Some("2001:db9::7")),
            ("::ffff:203.0.113.7", Some("203.0.113.7")),
            ("10.1.1.1, 10.1.1.2", Some("10.1.1.1")),
            ("6.6.6.6, unknown, 10.1.1.2", Some("10.1.1.2")),
            ("6.6.6.6, , 10.1.1.2", Some("10.1.1.2")),
            ("unknown", None),
            ("", None),
        ];
        for (value, address) in rows {
            assert_eq!(client_address(&format!("X-Forwarded-For: {value}\r\n")).as_deref(), address, "{value}");
        }
        assert_eq!(client_address(""), None);
    }

    #[test]
    fn the_last_scheme_decides() {
        let scheme_of = |headers: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            find_scheme(&Request::parse(head.as_bytes(), 64).unwrap())
        };
        assert_eq!(scheme_of(""), "http");
        assert_eq!(scheme_of("X-Forwarded-Proto: HTTPS\r\n"), "https");
        assert_eq!(scheme_of("X-Forwarded-Proto: https, http\r\n"), "http");
        assert_eq!(scheme_of("X-Forwarded-Proto: http\r\nX-Forwarded-Proto: https\r\n"), "https");
    }
}
