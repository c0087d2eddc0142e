//! Test cases about the opening handshake: the headers of the upgrade request, and the response (§4.1, §4.2).

use super::{DEFAULT_CASE, ECHO_CASE};
use crate::tools::poke::case::Edit::{Add, Append, ByteByByte, Remove, RequestLine, Set};
use crate::tools::poke::case::Step::Bytes;
use crate::tools::poke::case::{Case, End, Opening, Reply, Requirement};
use crate::ws::close::ProtocolError;

/// Default values for a test case whose request the server should reject (§4.2.1).
const REJECTED_CASE: Case = Case { end: End::Status(400), allowed: &[ANY_HTTP_ERROR], ..DEFAULT_CASE };

/// Default values for a test case whose request is unusual but valid: the server should accept it.
const ACCEPTED_CASE: Case = Case { end: End::Open, ..DEFAULT_CASE };

const ANY_HTTP_ERROR: (End, &str) =
    (End::HttpError, "§4.2.1 demands \"an HTTP response with an appropriate error code (such as 400 Bad Request)\"");
const HTTP_ERROR_RULE: (&str, &str) =
    ("§4.2.1", "a request that is not a complete WebSocket handshake gets an HTTP error");
const CONNECTION_LIST_RULE: (&str, &str) =
    ("§4.2.1", "Connection is a list; one of its tokens is \"upgrade\", compared case-insensitively");
const KEY_RULE: (&str, &str) = ("§4.2.1", "the key is sent once, and is base64 of 16 bytes");
const UPGRADE_WITHOUT_KEY_DECODING: (End, &str) =
    (End::Open, "§4.2.2: \"It is not necessary for the server to base64-decode the |Sec-WebSocket-Key| value.\"");
const VERSION_RULE: (&str, &str) = (
    "§4.2.2",
    "for an unsupported version, the server sends an error such as 426 and lists the versions that it supports",
);
const SUBPROTOCOL_RULE: (&str, &str) = ("§4.2.2", "the server selects one of the offered subprotocols, or none");
const EXTENSION_RULE: (&str, &str) =
    ("§9.1", "a server may decline every extension; it must not use one that was not offered");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "hello",
        summary: "The RFC's own key (§1.3) and its own frame (§5.7), a masked \"Hello\"",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")]),
        steps: &[Bytes("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        replies: &[Reply::Text("'Hello'")],
        rule: ("§1.3", "the accept value is base64 of the SHA-1 of the key and a fixed GUID"),
        ..ECHO_CASE
    },
    Case {
        name: "slow-request",
        summary: "A valid request, one byte at a time",
        opening: Opening::Edited(&[ByteByByte]),
        allowed: &[(End::Status(408), "§10.4: a server may limit how long a handshake takes")],
        rule: ("§4.2.1", "the request is a stream of bytes; where TCP cuts it has no meaning"),
        ..ACCEPTED_CASE
    },
    Case {
        name: "frame-behind-the-request",
        summary: "A frame in the same write as the request, before the 101",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[Append("81 82 M0 'hi'")]),
        replies: &[Reply::Text("'hi'")],
        rule: ("§4.1", "a client must wait for the 101; wirechat still processes early frames"),
        ..ECHO_CASE
    },
    Case {
        name: "connection-is-a-list",
        summary: "Connection: keep-alive, Upgrade, as Firefox sends it",
        opening: Opening::Edited(&[Set("Connection: keep-alive, Upgrade")]),
        rule: CONNECTION_LIST_RULE,
        ..ACCEPTED_CASE
    },
    Case {
        name: "connection-in-two-lines",
        summary: "Two Connection lines, the second with Upgrade",
        opening: Opening::Edited(&[Set("Connection: keep-alive"), Add("Connection: Upgrade")]),
        rule: ("RFC 9110 §5.3", "several lines of one list header are one list"),
        ..ACCEPTED_CASE
    },
    Case {
        name: "other-letter-case",
        summary: "UPGRADE: WebSocket and connection: upgrade",
        opening: Opening::Edited(&[Set("UPGRADE: WebSocket"), Set("connection: upgrade")]),
        rule: ("§4.2.1", "header names, \"websocket\" and \"upgrade\" are compared case-insensitively"),
        ..ACCEPTED_CASE
    },
    Case {
        name: "no-upgrade",
        summary: "A plain GET, without the Upgrade header",
        opening: Opening::Edited(&[Remove("Upgrade")]),
        end: End::Status(426),
        allowed: &[(
            End::NoUpgrade,
            "§4.2.1: a request without Upgrade is not a handshake, and may get any HTTP response",
        )],
        rule: ("§4.2.1", "the Upgrade header must contain \"websocket\""),
        ..REJECTED_CASE
    },
    Case {
        name: "no-connection",
        summary: "No Connection header",
        opening: Opening::Edited(&[Remove("Connection")]),
        rule: HTTP_ERROR_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "connection-almost-upgrade",
        summary: "Connection: notUpgrade",
        opening: Opening::Edited(&[Set("Connection: notUpgrade")]),
        rule: CONNECTION_LIST_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "no-key",
        summary: "No Sec-WebSocket-Key",
        opening: Opening::Edited(&[Remove("Sec-WebSocket-Key")]),
        rule: KEY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "two-keys",
        summary: "Two Sec-WebSocket-Key lines",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Key: {key}")]),
        rule: KEY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "key-of-15-bytes",
        summary: "A key that decodes to 15 bytes",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFh")]),
        allowed: &[ANY_HTTP_ERROR, UPGRADE_WITHOUT_KEY_DECODING],
        rule: KEY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "key-of-17-bytes",
        summary: "A key that decodes to 17 bytes",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYWE=")]),
        allowed: &[ANY_HTTP_ERROR, UPGRADE_WITHOUT_KEY_DECODING],
        rule: KEY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "key-not-base64",
        summary: "A key of the right length with characters that base64 does not have",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")]),
        allowed: &[ANY_HTTP_ERROR, UPGRADE_WITHOUT_KEY_DECODING],
        rule: KEY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "key-with-stray-bits",
        summary: "A key whose last character has unused bits set; the key is hashed as sent",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==")]),
        allowed: &[(End::HttpError, "RFC 4648 §3.5 permits a decoder to reject such bits")],
        rule: ("§4.2.2", "the accept value is computed from the key as sent, not from its decoded bytes"),
        ..ACCEPTED_CASE
    },
    Case {
        name: "no-version",
        summary: "No Sec-WebSocket-Version",
        opening: Opening::Edited(&[Remove("Sec-WebSocket-Version")]),
        end: End::Status(426),
        rule: HTTP_ERROR_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "version-8",
        summary: "Sec-WebSocket-Version: 8, a draft of the RFC",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Version: 8")]),
        end: End::ListsVersion,
        allowed: &[],
        rule: VERSION_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "version-14",
        summary: "Sec-WebSocket-Version: 14, which does not exist",
        opening: Opening::Edited(&[Set("Sec-WebSocket-Version: 14")]),
        end: End::ListsVersion,
        allowed: &[],
        rule: VERSION_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "two-versions",
        summary: "Two Sec-WebSocket-Version lines, 13 and 8",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Version: 8")]),
        rule: ("§11.3.5", "a request has one Sec-WebSocket-Version line, with one number"),
        ..REJECTED_CASE
    },
    Case {
        name: "post",
        summary: "POST in place of GET",
        opening: Opening::Edited(&[RequestLine("POST {target} HTTP/1.1")]),
        end: End::Status(405),
        rule: ("§4.2.1", "a handshake is a GET"),
        ..REJECTED_CASE
    },
    Case {
        name: "http-1.0",
        summary: "HTTP/1.0, with every header of an upgrade",
        opening: Opening::Edited(&[RequestLine("GET {target} HTTP/1.0")]),
        allowed: &[(End::NoUpgrade, "RFC 9110 §7.8: Upgrade in an HTTP/1.0 request is ignored")],
        rule: ("§4.2.1", "a handshake is a request of HTTP/1.1 or higher"),
        ..REJECTED_CASE
    },
    Case {
        name: "unknown-extension",
        summary: "An offer of an unknown extension",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: x-unheard-of; a=1")]),
        rule: EXTENSION_RULE,
        ..ACCEPTED_CASE
    },
    Case {
        name: "malformed-extensions",
        summary: "Sec-WebSocket-Extensions: permessage-deflate; =10",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; =10")]),
        rule: ("§9.1", "a list of extensions that breaks the grammar fails the handshake"),
        ..REJECTED_CASE
    },
    Case {
        name: "unknown-subprotocol",
        summary: "An offer of unknown subprotocols",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Protocol: x-unheard-of, x-other")]),
        allowed: &[(End::HttpError, "§4.2.2: a server that needs another subprotocol may reject the handshake")],
        rule: SUBPROTOCOL_RULE,
        ..ACCEPTED_CASE
    },
    Case {
        name: "subprotocol-twice",
        summary: "The same subprotocol offered twice",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Protocol: x-other, x-other")]),
        allowed: &[ANY_HTTP_ERROR, (End::Open, "§4.1 forbids it to the client and demands nothing of the server")],
        rule: ("§4.1", "each subprotocol is offered once"),
        ..REJECTED_CASE
    },
    Case {
        name: "unknown-path",
        summary: "A handshake for a path that does not exist",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[RequestLine("GET /nope HTTP/1.1")]),
        end: End::Status(404),
        rule: ("§4.2.2", "an unavailable resource gets an HTTP error such as 404"),
        ..REJECTED_CASE
    },
    Case {
        name: "wrong-token",
        summary: "An unknown access token",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[RequestLine("GET /echo?token=no-such-token HTTP/1.1")]),
        end: End::Status(401),
        rule: ("§4.2.2", "a server may authenticate the client with the means of HTTP before it upgrades"),
        ..REJECTED_CASE
    },
    Case {
        name: "foreign-origin",
        summary: "An Origin of another site",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[Add("Origin: https://elsewhere.example")]),
        end: End::Status(403),
        rule: ("§10.2", "a server rejects an unexpected origin with 403"),
        ..REJECTED_CASE
    },
    Case {
        name: "early-rude-frame",
        summary: "An unmasked frame in the same write as the request",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[Append("81 02 'hi'")]),
        end: End::Closes(&[1002]),
        rule: ("§5.1", "a server closes the connection when a frame is not masked"),
        error: Some(ProtocolError::Unmasked),
        ..DEFAULT_CASE
    },
];
