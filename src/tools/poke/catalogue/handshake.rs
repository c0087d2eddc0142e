//! Cases of the opening handshake: what makes a request an upgrade, and what the answer must be (§4.1, §4.2).

use super::{CASE, ECHO};
use crate::tools::poke::case::Edit::{Add, Behind, RequestLine, Set, Slowly, Without};
use crate::tools::poke::case::Step::Bytes;
use crate::tools::poke::case::{Back, Case, End, Needs, Opening};
use crate::ws::close::ProtocolError;

/// A request that §4.2.1 does not let pass.
const REFUSED: Case = Case { end: End::Status(400), allowed: &[REFUSAL], ..CASE };

/// A request that is right, however odd it looks.
const ACCEPTED: Case = Case { end: End::Open, ..CASE };

const REFUSAL: (End, &str) = (End::Refused, "§4.2.1 asks for an HTTP error code and gives 400 as an example");
const HTTP_ERROR: (&str, &str) =
    ("§4.2.1", "a request that is not a whole WebSocket handshake must be answered with an HTTP error code");
const LIST: (&str, &str) =
    ("§4.2.1", "Connection is a list; one of its tokens is \"upgrade\", in whatever letter case");
const KEY: (&str, &str) = ("§4.2.1", "the key is sent once, and is base64 of 16 bytes");
const UNDECODED: (End, &str) =
    (End::Open, "§4.2.2: \"It is not necessary for the server to base64-decode the |Sec-WebSocket-Key| value.\"");
const VERSION: (&str, &str) = (
    "§4.2.2",
    "a version that the server does not speak is answered with an error, such as 426, that names those it does",
);
const SUBPROTOCOL: (&str, &str) = ("§4.2.2", "the server names one of the subprotocols that were offered, or none");
const EXTENSION: (&str, &str) =
    ("§9.1", "a server may decline every extension; it must not answer with one not offered");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "hello",
        what: "The RFC's own key (§1.3) and its own frame (§5.7), a masked \"Hello\"",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")]),
        steps: &[Bytes("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        back: &[Back::Text("'Hello'")],
        rule: ("§1.3", "the accept value is base64 of the SHA-1 of the key and a fixed GUID"),
        ..ECHO
    },
    Case {
        name: "slow-request",
        what: "A valid request, one byte at a time",
        opening: Opening::Odd(&[Slowly]),
        allowed: &[(End::Status(408), "§10.4: a server may have a limit to how long a handshake takes")],
        rule: ("§4.2.1", "the request is a stream of bytes; where it is cut means nothing"),
        ..ACCEPTED
    },
    Case {
        name: "frame-behind-the-request",
        what: "A frame in the same write as the request: it belongs to what comes after the 101",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[Behind("81 82 M0 'hi'")]),
        back: &[Back::Text("'hi'")],
        rule: ("§4.1", "a client must wait for the 101; from one that does not, wirechat loses no byte all the same"),
        ..ECHO
    },
    Case {
        name: "connection-is-a-list",
        what: "Connection: keep-alive, Upgrade, as Firefox sends it",
        opening: Opening::Odd(&[Set("Connection: keep-alive, Upgrade")]),
        rule: LIST,
        ..ACCEPTED
    },
    Case {
        name: "connection-in-two-lines",
        what: "Two Connection lines, the second with Upgrade",
        opening: Opening::Odd(&[Set("Connection: keep-alive"), Add("Connection: Upgrade")]),
        rule: ("RFC 9110 §5.3", "several lines of a list are one list"),
        ..ACCEPTED
    },
    Case {
        name: "other-letter-case",
        what: "UPGRADE: WebSocket and connection: upgrade",
        opening: Opening::Odd(&[Set("UPGRADE: WebSocket"), Set("connection: upgrade")]),
        rule: ("§4.2.1", "names of headers, \"websocket\" and \"upgrade\" are compared without regard to letter case"),
        ..ACCEPTED
    },
    Case {
        name: "no-upgrade",
        what: "A plain GET, without the Upgrade header",
        opening: Opening::Odd(&[Without("Upgrade")]),
        end: End::Status(426),
        allowed: &[(End::NoUpgrade, "§4.2.1: a request without Upgrade is no handshake, and HTTP may answer it")],
        rule: ("§4.2.1", "without \"websocket\" in Upgrade there is nothing to upgrade to"),
        ..REFUSED
    },
    Case {
        name: "no-connection",
        what: "No Connection header",
        opening: Opening::Odd(&[Without("Connection")]),
        rule: HTTP_ERROR,
        ..REFUSED
    },
    Case {
        name: "connection-almost-upgrade",
        what: "Connection: notUpgrade",
        opening: Opening::Odd(&[Set("Connection: notUpgrade")]),
        rule: LIST,
        ..REFUSED
    },
    Case {
        name: "no-key",
        what: "No Sec-WebSocket-Key",
        opening: Opening::Odd(&[Without("Sec-WebSocket-Key")]),
        rule: KEY,
        ..REFUSED
    },
    Case {
        name: "two-keys",
        what: "Two Sec-WebSocket-Key lines",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Key: {key}")]),
        rule: KEY,
        ..REFUSED
    },
    Case {
        name: "key-of-15-bytes",
        what: "A key that decodes to 15 bytes",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFh")]),
        allowed: &[REFUSAL, UNDECODED],
        rule: KEY,
        ..REFUSED
    },
    Case {
        name: "key-of-17-bytes",
        what: "A key that decodes to 17 bytes",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYWE=")]),
        allowed: &[REFUSAL, UNDECODED],
        rule: KEY,
        ..REFUSED
    },
    Case {
        name: "key-not-base64",
        what: "A key of the right length with letters that base64 does not have",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")]),
        allowed: &[REFUSAL, UNDECODED],
        rule: KEY,
        ..REFUSED
    },
    Case {
        name: "key-with-stray-bits",
        what: "A key whose last letter has bits that belong to no byte: the string is hashed as sent",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==")]),
        allowed: &[(End::Refused, "RFC 4648 §3.5 lets a decoder refuse such bits")],
        rule: ("§4.2.2", "the accept value is made of the key as it was sent, not of what it decodes to"),
        ..ACCEPTED
    },
    Case {
        name: "no-version",
        what: "No Sec-WebSocket-Version",
        opening: Opening::Odd(&[Without("Sec-WebSocket-Version")]),
        end: End::Status(426),
        rule: HTTP_ERROR,
        ..REFUSED
    },
    Case {
        name: "version-8",
        what: "Sec-WebSocket-Version: 8, from a draft",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Version: 8")]),
        end: End::NamesVersion,
        allowed: &[],
        rule: VERSION,
        ..REFUSED
    },
    Case {
        name: "version-14",
        what: "Sec-WebSocket-Version: 14, which does not exist",
        opening: Opening::Odd(&[Set("Sec-WebSocket-Version: 14")]),
        end: End::NamesVersion,
        allowed: &[],
        rule: VERSION,
        ..REFUSED
    },
    Case {
        name: "two-versions",
        what: "Two Sec-WebSocket-Version lines, 13 and 8",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Version: 8")]),
        rule: ("§11.3.5", "a request has one Sec-WebSocket-Version line, with one number"),
        ..REFUSED
    },
    Case {
        name: "post",
        what: "POST in place of GET",
        opening: Opening::Odd(&[RequestLine("POST {target} HTTP/1.1")]),
        end: End::Status(405),
        rule: ("§4.2.1", "a handshake is a GET"),
        ..REFUSED
    },
    Case {
        name: "http-1.0",
        what: "HTTP/1.0, with every header of an upgrade",
        opening: Opening::Odd(&[RequestLine("GET {target} HTTP/1.0")]),
        allowed: &[(End::NoUpgrade, "RFC 9110 §7.8: Upgrade in an HTTP/1.0 request is ignored")],
        rule: ("§4.2.1", "a handshake is a request of HTTP/1.1 or higher"),
        ..REFUSED
    },
    Case {
        name: "unknown-extension",
        what: "An offer of an extension that nobody knows",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Extensions: x-unheard-of; a=1")]),
        rule: EXTENSION,
        ..ACCEPTED
    },
    Case {
        name: "malformed-extensions",
        what: "Sec-WebSocket-Extensions: permessage-deflate; =10",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Extensions: permessage-deflate; =10")]),
        rule: ("§9.1", "a list of extensions that breaks the grammar fails the handshake"),
        ..REFUSED
    },
    Case {
        name: "unknown-subprotocol",
        what: "An offer of subprotocols that nobody knows",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Protocol: x-unheard-of, x-other")]),
        allowed: &[(End::Refused, "§4.2.2: a server that wants another subprotocol may refuse the handshake")],
        rule: SUBPROTOCOL,
        ..ACCEPTED
    },
    Case {
        name: "subprotocol-twice",
        what: "The same subprotocol offered twice",
        opening: Opening::Odd(&[Add("Sec-WebSocket-Protocol: x-other, x-other")]),
        allowed: &[REFUSAL, (End::Open, "§4.1 forbids it to the client and asks nothing of the server")],
        rule: ("§4.1", "each subprotocol is offered once"),
        ..REFUSED
    },
    Case {
        name: "unknown-path",
        what: "A handshake for a path that is not there",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[RequestLine("GET /nope HTTP/1.1")]),
        end: End::Status(404),
        rule: ("§4.2.2", "a resource that is not available is answered with an HTTP error code such as 404"),
        ..REFUSED
    },
    Case {
        name: "wrong-token",
        what: "A token that the server does not know",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[RequestLine("GET /echo?token=no-such-token HTTP/1.1")]),
        end: End::Status(401),
        rule: ("§4.2.2", "a server may ask who the client is, as HTTP does, before it upgrades"),
        ..REFUSED
    },
    Case {
        name: "foreign-origin",
        what: "A page of another site",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[Add("Origin: https://elsewhere.example")]),
        end: End::Status(403),
        rule: ("§10.2", "a server that is not for every page refuses an origin that it does not expect with 403"),
        ..REFUSED
    },
    Case {
        name: "early-rude-frame",
        what: "A frame without a mask in the same write as the request",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[Behind("81 02 'hi'")]),
        end: End::Closes(&[1002]),
        rule: ("§5.1", "a server closes the connection when a frame is not masked, the first one like any other"),
        error: Some(ProtocolError::Unmasked),
        ..CASE
    },
];
