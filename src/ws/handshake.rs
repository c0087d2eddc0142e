//! §4.2, the opening handshake: validates a [`Request`] and writes the 101 response. The accept value only proves that
//! the server understands WebSocket, so the weakness of SHA-1 does not matter (§10.8).
//!
//! ```text
//!   key       dGhlIHNhbXBsZSBub25jZQ==
//!   and GUID  258EAFA5-E914-47DA-95CA-C5AB0DC85B11
//!   SHA-1     b3 7a 4f 2c c0 62 4f 16 90 f6 46 06 cf 38 59 45 b2 be c4 ea
//!   base64    s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
//! ```

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use sha1::{Digest, Sha1};

use super::extension::is_extension_list;
use super::request::{Rejection, Request, bad_request, is_token, quote};

/// The 426 response, with the headers that RFC 9110 §15.5.22, RFC 9110 §7.8 and RFC 6455 §4.4 require.
pub fn upgrade_required() -> Rejection {
    let headers = &[("Upgrade", "websocket"), ("Connection", "Upgrade, close"), ("Sec-WebSocket-Version", "13")];
    let body = "This is a WebSocket endpoint: send Upgrade: websocket, as a browser's `new WebSocket(url)` or \
                `wscat -c url` does (RFC 6455 §4.1).";
    Rejection { status: 426, headers, body: body.into() }
}

/// The 405 response. RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
pub fn method_rejection(request: &Request, allow: &'static [(&'static str, &'static str)]) -> Rejection {
    let body = format!("The method must be GET, not {} (RFC 6455 §4.2.1).", quote(request.method.as_bytes()));
    Rejection { status: 405, headers: allow, body }
}

/// Returns the 101 response (§4.2.2 item 5), or one rejection for each rule that the request breaks. `supported` is the
/// endpoint's subprotocol.
pub fn accept_handshake(request: &Request, supported: &str) -> Result<Vec<u8>, Vec<Rejection>> {
    let (mut accept, mut is_agreed) = (String::new(), false);
    // §11.3.2: the extension header may appear several times, so join its lines into one list.
    let offers: Vec<&[u8]> = request.header_values("Sec-WebSocket-Extensions").collect();
    let is_valid = offers.is_empty() || str::from_utf8(&offers.join(&b", "[..])).is_ok_and(is_extension_list);
    let rules = [
        // §4.2.1 item 1: "An HTTP/1.1 or higher GET request".
        (request.method != "GET").then(|| method_rejection(request, &[("Allow", "GET")])),
        (request.minor_version == 0)
            .then(|| bad_request("An upgrade requires HTTP/1.1; this request is HTTP/1.0 (RFC 6455 §4.2.1).")),
        request.host().err(),
        // §4.2.1 item 3: "An |Upgrade| header field containing the value "websocket"".
        (!request.has_token("Upgrade", "websocket")).then(upgrade_required),
        check_connection(request),
        check_version(request),
        read_key(request).map(|key| accept = accept_value(key)).err(),
        // §4.2.1 item 9, §9.1: a recipient of malformed extensions "MUST immediately _Fail the WebSocket Connection_".
        (!is_valid).then(|| bad_request("Sec-WebSocket-Extensions is malformed (RFC 6455 §9.1).")),
        read_subprotocols(request).map(|offered| is_agreed = offered.contains(&supported)).err(),
    ];
    let rejections: Vec<Rejection> = rules.into_iter().flatten().collect();
    if !rejections.is_empty() {
        return Err(rejections);
    }
    // No common subprotocol: the server "MUST NOT send back a |Sec-WebSocket-Protocol| header field" (§4.2.2, §1.9).
    let subprotocol = if is_agreed { format!("Sec-WebSocket-Protocol: {supported}\r\n") } else { String::new() };
    // §11.3.3 and §11.3.4: Sec-WebSocket-Accept and -Protocol "MUST NOT appear more than once in an HTTP response".
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    Ok(format!("{head}Sec-WebSocket-Accept: {accept}\r\n{subprotocol}\r\n").into_bytes())
}

/// Checks §4.2.1 item 4: "A |Connection| header field that includes the token "Upgrade"".
fn check_connection(request: &Request) -> Option<Rejection> {
    let received: Vec<_> = request.header_values("Connection").map(quote).collect();
    let received = if received.is_empty() { "missing".into() } else { received.join(", ") };
    let rejection = || bad_request(format!("Connection must contain Upgrade; it is {received} (RFC 6455 §4.2.1)."));
    (!request.has_token("Connection", "upgrade")).then(rejection)
}

/// Checks §4.2.1 item 6: "A |Sec-WebSocket-Version| header field, with a value of 13."
fn check_version(request: &Request) -> Option<Rejection> {
    // Send 426 rather than 400, so that the client can retry with a version that the response lists (§4.4).
    let rejection = |body| Some(Rejection { body, ..upgrade_required() });
    match request.header_values("Sec-WebSocket-Version").collect::<Vec<_>>()[..] {
        [b"13"] => None,
        [] => rejection("Sec-WebSocket-Version: 13 is missing (RFC 6455 §4.2.1).".into()),
        [other] => rejection(format!("Sec-WebSocket-Version must be 13; it is {} (RFC 6455 §4.4).", quote(other))),
        _ => Some(bad_request("Sec-WebSocket-Version must be sent once (RFC 6455 §11.3.5).")),
    }
}

/// Reads a key "that, when decoded, is 16 bytes in length" (§4.2.1 item 5). §11.3.1 allows the header only once.
fn read_key<'h>(request: &Request<'h>) -> Result<&'h [u8], Rejection> {
    let keys: Vec<&[u8]> = request.header_values("Sec-WebSocket-Key").collect();
    let error = match (&keys[..], keys.first().and_then(|key| decoded_key_len(key))) {
        ([key], Some(16)) => return Ok(key),
        ([_], Some(len)) => format!("must decode to 16 bytes, not {len}"),
        ([key], None) => format!("{} is not base64", quote(key)),
        _ => format!("must be sent once, not {} times", keys.len()),
    };
    Err(bad_request(format!("Sec-WebSocket-Key {error} (RFC 6455 §4.2.1).")))
}

pub fn decoded_key_len(key: &[u8]) -> Option<usize> {
    // Ignore the unused bits at the end of the key, as RFC 4648 §3.5 allows: handwritten keys often set these bits.
    const ALLOW_TRAILING_BITS: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    static BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, ALLOW_TRAILING_BITS);
    BASE64.decode(key).ok().map(|decoded| decoded.len())
}

/// Marks an access token in `Sec-WebSocket-Protocol`, the only header that `new WebSocket()` lets a web page set.
pub const BEARER_PREFIX: &[u8] = b"bearer.";

/// Finds the offset of an access token to redact, even in a malformed subprotocol such as `chat;bearer.…`.
pub fn find_access_token(subprotocol: &[u8]) -> Option<usize> {
    let prefix = subprotocol.windows(BEARER_PREFIX.len()).position(|part| part.eq_ignore_ascii_case(BEARER_PREFIX));
    prefix.map(|at| at + BEARER_PREFIX.len())
}

/// Reads the offered subprotocols (§4.2.1 item 8, §4.3), which "MUST all be unique strings" (§4.1 item 10).
fn read_subprotocols<'h>(request: &Request<'h>) -> Result<Vec<&'h str>, Rejection> {
    const FIELD: &str = "Sec-WebSocket-Protocol";
    let error = |what: &str, section: &str| Err(bad_request(format!("{FIELD} {what} (RFC 6455 §{section}).")));
    let redact = |name| if find_access_token(name).is_some() { "a bearer token".into() } else { quote(name) };
    let mut names = Vec::new();
    // RFC 9110 §5.6.1.2: a recipient ignores empty list elements.
    for element in request.list_elements(FIELD).filter(|element| !element.is_empty()) {
        match str::from_utf8(element) {
            // Limit the number of names (§10.4), because the duplicate check takes quadratic time.
            Ok(_) if names.len() == 32 => return error("has over 32 names", "10.4"),
            Ok(name) if names.contains(&name) => return error(&format!("has {} twice", redact(element)), "4.1"),
            Ok(name) if is_token(name) => names.push(name),
            _ => return error(&format!("is malformed: {}", redact(element)), "4.3"),
        }
    }
    if names.is_empty() && request.header_values(FIELD).next().is_some() { error("is empty", "4.3") } else { Ok(names) }
}

/// A GUID that is "unlikely to be used by network endpoints that do not understand the WebSocket Protocol" (§1.3).
pub const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// §4.2.2 item 5.4: the value of `Sec-WebSocket-Accept`. `key` is `Sec-WebSocket-Key` as sent, still in base64.
pub fn accept_value(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds the request of §1.2 minus the lines that start with `without`, plus the `|`-separated lines of `with`.
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
        // If `with` contains an HTTP/1.0 request line, move it to the front, before the header lines.
        head.sort_by_key(|line| !line.ends_with("HTTP/1.0"));
        head.join("\r\n") + "\r\n\r\n"
    }

    fn status(without: &str, with: &str) -> Result<(), u16> {
        let head = head(without, with);
        let request = Request::parse(head.as_bytes(), 64).unwrap();
        accept_handshake(&request, "").map(drop).map_err(|rejections| rejections[0].status)
    }

    #[test]
    fn rfc_1_3_accept_value() {
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(
            accept_value(b"dGhlIHNhbXBsZSBub25jZR=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "the key is hashed as sent"
        );
    }

    #[test]
    fn picture_matches_the_code() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let hash = crate::pictures::format_hex(&hash);
        let rows = [("key", key), ("and GUID", GUID), ("SHA-1", &hash), ("base64", &accept_value(key.as_bytes()))];
        let picture = rows.map(|(name, value)| format!("  {name:10}{value}"));
        crate::pictures::assert_in_module_doc(include_str!("handshake.rs"), &picture.join("\n"));
    }

    #[test]
    fn rfc_4_2_1_requests_and_statuses() {
        let cases = [
            ("", "", Ok(())),
            ("GET", "GET / HTTP/1.0", Err(400)),
            ("Host", "", Err(400)),
            ("Upgrade", "", Err(426)),
            ("Upgrade", "Upgrade: h2c, WebSocket", Ok(())),
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
        for (without, with, expected) in cases {
            assert_eq!(status(without, with), expected, "without {without:?}, with {with:?}");
        }
        for (count, expected) in [(32, Ok(())), (33, Err(400))] {
            let names: Vec<_> = (0..count).map(|number| number.to_string()).collect();
            assert_eq!(status("", &format!("Sec-WebSocket-Protocol: {}", names.join(","))), expected, "{count} names");
        }
    }

    #[test]
    fn rfc_4_2_1_every_broken_rule_has_a_rejection() {
        let head = b"POST / HTTP/1.0\r\nHost: a b\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: short\r\n\
            Sec-WebSocket-Extensions: ;\r\nSec-WebSocket-Protocol: a, a\r\n\r\n";
        let request = Request::parse(head, 64).unwrap();
        let rejections = accept_handshake(&request, "").unwrap_err();
        let subjects =
            ["method", "HTTP/1.1", "Host", "Upgrade:", "Connection", "-Version", "-Key", "-Extensions", "-Protocol"];
        assert_eq!(rejections.len(), subjects.len());
        for (rejection, subject) in rejections.iter().zip(subjects) {
            assert!(rejection.body.contains(subject), "{subject}: {rejection:?}");
            assert!(rejection.body.contains("§"), "{rejection:?}");
        }
    }

    #[test]
    fn rfc_4_2_2_response() {
        let plain = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let cases = [
            ("", ""),
            ("Sec-WebSocket-Protocol: other", ""),
            ("Sec-WebSocket-Protocol: Chat.events", ""),
            ("Sec-WebSocket-Protocol: other, chat.events", "Sec-WebSocket-Protocol: chat.events\r\n"),
            ("Sec-WebSocket-Extensions: permessage-deflate", ""),
        ];
        for (offer, selected) in cases {
            let head = head("", offer);
            let request = Request::parse(head.as_bytes(), 64).unwrap();
            let response = accept_handshake(&request, "chat.events").unwrap();
            assert_eq!(String::from_utf8(response).unwrap(), format!("{plain}{selected}\r\n"), "{offer}");
        }
    }
}
