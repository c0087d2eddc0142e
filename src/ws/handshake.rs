//! §4.2, the opening handshake, the server's side: a [`Request`] becomes an [`Upgrade`], and that the 101.
//!
//! This file does not know which paths exist, who is welcome, or how a plain answer is written: the server asks those
//! questions between the steps, in the order that the protocol page fixes.
//!
//! ```text
//!   key       dGhlIHNhbXBsZSBub25jZQ==
//!   and GUID  258EAFA5-E914-47DA-95CA-C5AB0DC85B11
//!   SHA-1     b3 7a 4f 2c c0 62 4f 16 90 f6 46 06 cf 38 59 45 b2 be c4 ea
//!   base64    s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
//! ```
//!
//! The subtle thing: the accept value is made of the key as it was sent, not of what it decodes to. It proves that the
//! server has read the request as a WebSocket handshake, and nothing else; it is no secret and no authentication.

use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::{DecodeSliceError, Engine};
use sha1::{Digest, Sha1};

use super::extension;
use super::request::{Rejection, Request, bad_request, is_token, shown};

/// A request that meets §4.2.1 and asks for the WebSocket protocol.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'h> {
    key: &'h [u8],
    /// The subprotocols that the client offers, in its order of preference.
    pub subprotocols: Vec<&'h str>,
}

/// What goes with a 426: RFC 9110 §15.5.22 and RFC 9110 §7.8 demand the first two, §4.4 the version that would do.
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
    ///
    /// ```
    /// use wirechat::ws::{handshake::Upgrade, request::Request};
    /// let head = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    ///     Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    /// let rejection = Upgrade::check(&Request::parse(head, 64).unwrap()).unwrap_err();
    /// assert_eq!(rejection.status, 426);
    /// assert!(rejection.body.ends_with("(RFC 6455 §4.4)."));
    /// ```
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
    /// else none is, which §4.2.2 allows and a client may accept or not (§1.9). It stands there once, as does the accept key
    /// (§11.3.4, §11.3.3).
    pub fn switching_protocols(&self, own: &str) -> Vec<u8> {
        // With room for the first frames, which go out with it.
        let mut head = String::with_capacity(1024);
        head.push_str("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
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
    Err(Rejection { status: 426, headers: UPGRADE_REQUIRED, body })
}

/// §4.2.1 item 5: "a base64-encoded value that, when decoded, is 16 bytes in length", and only one (§11.3.1).
fn read_key<'h>(request: &Request<'h>) -> Result<&'h [u8], Rejection> {
    let mut keys = request.header("Sec-WebSocket-Key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        let count = request.header("Sec-WebSocket-Key").count();
        let body = format!("Sec-WebSocket-Key must be sent once, not {count} times (RFC 6455 §4.2.1).");
        return Err(bad_request(body));
    };
    match key_len(key) {
        Some(16) => Ok(key),
        Some(len) => Err(bad_request(format!("Sec-WebSocket-Key must be 16 bytes, not {len} (RFC 6455 §4.2.1)."))),
        None => Err(bad_request(format!("Sec-WebSocket-Key {} is not base64 (RFC 6455 §4.2.1).", shown(key)))),
    }
}

/// How many bytes a key decodes to; `None`: it is not base64.
pub fn key_len(key: &[u8]) -> Option<usize> {
    // 16 bytes leave four spare bits in the last character. Keys written by hand set them; RFC 4648 §3.5 lets a
    // decoder pass over them, and the answer is made of the string as sent.
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    static BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    match BASE64.decode_slice(key, &mut [0; 18]) {
        Err(DecodeSliceError::OutputSliceTooSmall) => BASE64.decode(key).ok().map(|decoded| decoded.len()),
        decoded => decoded.ok(),
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

/// All lines of a list header as one (§11.3.2, RFC 9110 §5.3): `None` if it was not sent, `Err` if it is not ASCII.
fn joined(request: &Request, name: &str) -> Option<Result<String, std::string::FromUtf8Error>> {
    let lines: Vec<&[u8]> = request.header(name).collect();
    (!lines.is_empty()).then(|| String::from_utf8(lines.join(&b", "[..])))
}

/// §1.3: what a server that speaks another protocol would not think of.
pub const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// §1.3 and §4.2.2 item 5.4: the value of `Sec-WebSocket-Accept` that proves to the client that its key was read.
/// `key` is the string as sent, not decoded.
///
/// ```
/// use wirechat::ws::handshake::accept_key;
/// assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
pub fn accept_key(key: &[u8]) -> String {
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request of §1.2, with one of its lines taken out and others put in.
    fn head(without: &str, with: &str) -> String {
        let lines = [
            "GET /chat HTTP/1.1",
            "Host: server.example.com",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ];
        let kept = lines.into_iter().filter(|line| without.is_empty() || !line.starts_with(without));
        let mut head = kept.chain(with.split('|').filter(|line| !line.is_empty())).collect::<Vec<_>>();
        head.sort_by_key(|line| !line.ends_with("HTTP/1.0")); // a request line that was put in comes first
        head.join("\r\n") + "\r\n\r\n"
    }

    fn status(without: &str, with: &str) -> Result<(), u16> {
        let head = head(without, with);
        let request = Request::parse(head.as_bytes(), 64).unwrap();
        Upgrade::check(&request).map(|_| ()).map_err(|rejection| rejection.status)
    }

    #[test]
    fn rfc_1_3_the_accept_key() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(accept_key(b"dGhlIHNhbXBsZSBub25jZR=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the string is hashed");
    }

    #[test]
    fn the_picture_is_true() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let hash = crate::pictures::hex(&hash);
        let rows = [("key", key), ("and GUID", GUID), ("SHA-1", &hash), ("base64", &accept_key(key.as_bytes()))];
        let picture = rows.map(|(name, value)| format!("  {name:10}{value}"));
        crate::pictures::assert_drawn(include_str!("handshake.rs"), &picture.join("\n"));
    }

    #[test]
    fn rfc_4_2_1_requests_and_statuses() {
        let cases = [
            ("", "", Ok(())),
            ("GET", "GET / HTTP/1.0", Err(400)),
            ("Connection", "", Err(400)),
            ("Connection", "Connection: keep-alive, UPGRADE", Ok(())),
            ("Connection", "Connection: keep-alive|connection: upgrade", Ok(())),
            ("Connection", "Connection: notUpgrade", Err(400)),
            ("Connection", "Connection: Upgradex", Err(400)),
            ("Sec-WebSocket-Version", "", Err(426)),
            ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8", Err(426)),
            ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8", Err(426)),
            ("Sec-WebSocket-Version", "Sec-WebSocket-Version: +13", Err(426)),
            ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 013", Err(426)),
            ("", "Sec-WebSocket-Version: 13", Err(400)),
            ("Sec-WebSocket-Key", "", Err(400)),
            ("", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key:", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: not base64 at all!!!!!==", Err(400)),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==", Ok(())),
            ("Sec-WebSocket-Key", "Sec-WebSocket-Key:   dGhlIHNhbXBsZSBub25jZQ==  ", Ok(())),
            ("", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", Ok(())),
            ("", "Sec-WebSocket-Extensions: a|Sec-WebSocket-Extensions: b; c", Ok(())),
            ("", "Sec-WebSocket-Extensions: a; =b", Err(400)),
            ("", "Sec-WebSocket-Extensions:", Err(400)),
            ("", "Sec-WebSocket-Protocol: a, b", Ok(())),
            ("", "Sec-WebSocket-Protocol: a|Sec-WebSocket-Protocol: b", Ok(())),
            ("", "Sec-WebSocket-Protocol: a, a", Err(400)),
            ("", "Sec-WebSocket-Protocol: a|Sec-WebSocket-Protocol: a", Err(400)),
            ("", "Sec-WebSocket-Protocol: a b", Err(400)),
            ("", "Sec-WebSocket-Protocol:", Err(400)),
        ];
        for (without, with, verdict) in cases {
            assert_eq!(status(without, with), verdict, "without {without:?}, with {with:?}");
        }
    }

    #[test]
    fn rfc_4_2_2_the_answer() {
        let plain = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let cases = [
            ("", ""),
            ("Sec-WebSocket-Protocol: other", ""),
            ("Sec-WebSocket-Protocol: Chat.events", ""),
            ("Sec-WebSocket-Protocol: other, chat.events", "Sec-WebSocket-Protocol: chat.events\r\n"),
            ("Sec-WebSocket-Extensions: permessage-deflate", ""),
        ];
        for (offer, answered) in cases {
            let head = head("", offer);
            let request = Request::parse(head.as_bytes(), 64).unwrap();
            let answer = Upgrade::check(&request).unwrap().switching_protocols("chat.events");
            assert_eq!(String::from_utf8(answer).unwrap(), format!("{plain}{answered}\r\n"), "{offer}");
        }
    }
}
