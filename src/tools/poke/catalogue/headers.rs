//! Test cases about the upgrade request as HTTP (RFC 9112): syntax, Host, bodies, sizes, and bytes that are not HTTP.

use super::DEFAULT_CASE;
use crate::tools::poke::case::Edit::{
    Add, Append, LineEnd, LongLine, LongTarget, ManyLines, Prepend, Remove, RequestLine, Set,
};
use crate::tools::poke::case::Step::Bytes;
use crate::tools::poke::case::{Case, End, Opening, Requirement};

/// Defaults for a test case whose HTTP request the server should reject.
const REJECTED_CASE: Case = Case { end: End::Status(400), allowed: &[ANY_HTTP_ERROR], ..DEFAULT_CASE };

const ANY_HTTP_ERROR: (End, &str) =
    (End::HttpError, "§4.2.1 demands \"an HTTP response with an appropriate error code (such as 400 Bad Request)\"");
const HOST_RULE: (&str, &str) = ("RFC 9112 §3.2", "an HTTP/1.1 request has exactly one Host, or gets a 400");
const BODY_RULE: (&str, &str) = ("RFC 9112 §6.3", "a server must not read the body of a request as frames");
const WAIT_FOR_CRLF: (End, &str) = (End::Waits, "RFC 9112 §2.2: lines end with CR LF, and a server may wait for it");
const DISCONNECT_WITHOUT_RESPONSE: (End, &str) =
    (End::Disconnects, "RFC 9112 §3: bytes that are not HTTP need no HTTP response");
const NOT_HTTP_CASE: Case = Case {
    opening: Opening::Skipped,
    allowed: &[ANY_HTTP_ERROR, DISCONNECT_WITHOUT_RESPONSE],
    rule: ("RFC 9112 §3", "a request starts with a request line"),
    ..REJECTED_CASE
};
const ALLOWED_BODY_ENDS: &[(End, &str)] =
    &[ANY_HTTP_ERROR, (End::Open, "RFC 9110 §9.3.1: the body of a GET has no meaning, and may be read and discarded")];

pub(super) const CASES: &[Case] = &[
    Case {
        name: "no-host",
        summary: "No Host header",
        opening: Opening::Edited(&[Remove("Host")]),
        rule: HOST_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "two-hosts",
        summary: "Two Host headers",
        opening: Opening::Edited(&[Add("Host: {host}")]),
        rule: HOST_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "foreign-host",
        summary: "Host: elsewhere.example, as after DNS rebinding",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[Set("Host: elsewhere.example")]),
        end: End::Status(403),
        rule: ("§4.2.1", "Host names the server; on loopback, wirechat rejects any other name"),
        ..REJECTED_CASE
    },
    Case {
        name: "absolute-target",
        summary: "A request line with a whole URL: GET http://host/path HTTP/1.1",
        opening: Opening::Edited(&[RequestLine("GET http://{host}{target} HTTP/1.1")]),
        end: End::Open,
        rule: ("RFC 9112 §3.2.2", "a server must accept a target in absolute form"),
        ..DEFAULT_CASE
    },
    Case {
        name: "blank-lines-first",
        summary: "Two blank lines before the request line",
        opening: Opening::Edited(&[Prepend("0d 0a 0d 0a")]),
        end: End::Open,
        allowed: &[(End::HttpError, "RFC 9112 §2.2: a server should ignore one such line, and need not ignore more")],
        rule: ("RFC 9112 §2.2", "blank lines before a request line should be ignored"),
        ..DEFAULT_CASE
    },
    Case {
        name: "bare-lf",
        summary: "Lines that end with LF alone",
        opening: Opening::Edited(&[LineEnd("0a")]),
        allowed: &[
            ANY_HTTP_ERROR,
            (End::Open, "RFC 9112 §2.2: a server may accept a lone LF as the end of a line"),
            WAIT_FOR_CRLF,
        ],
        rule: ("RFC 9112 §2.2", "lines end with CR LF"),
        ..REJECTED_CASE
    },
    Case {
        name: "folded-line",
        summary: "A header that continues on the next line, after a blank",
        opening: Opening::Edited(&[Add("X-Odd: a\r\n b")]),
        allowed: &[ANY_HTTP_ERROR, (End::Open, "RFC 9112 §5.2: a server may replace a folded line by blanks")],
        rule: ("RFC 9112 §5.2", "a server rejects a folded line, or replaces the fold by blanks"),
        ..REJECTED_CASE
    },
    Case {
        name: "blank-before-the-colon",
        summary: "X-Odd : a",
        opening: Opening::Edited(&[Add("X-Odd : a")]),
        rule: ("RFC 9112 §5.1", "a blank between a header's name and its colon must get a 400"),
        ..REJECTED_CASE
    },
    Case {
        name: "nul-in-a-header",
        summary: "A header with a byte 00 in it",
        opening: Opening::Edited(&[Add("X-Odd: a\0b")]),
        allowed: &[ANY_HTTP_ERROR, (End::Open, "RFC 9110 §5.5: a server may replace the byte by a blank")],
        rule: ("RFC 9110 §5.5", "CR, LF and NUL are invalid in a value"),
        ..REJECTED_CASE
    },
    Case {
        name: "body",
        summary: "Content-Length: 5, and five bytes after the request",
        opening: Opening::Edited(&[Add("Content-Length: 5"), Append("'hello'")]),
        allowed: ALLOWED_BODY_ENDS,
        rule: BODY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "chunked-body",
        summary: "Transfer-Encoding: chunked, and an empty body after the request",
        opening: Opening::Edited(&[Add("Transfer-Encoding: chunked"), Append("'0' 0d 0a 0d 0a")]),
        allowed: ALLOWED_BODY_ENDS,
        rule: BODY_RULE,
        ..REJECTED_CASE
    },
    Case {
        name: "long-header",
        summary: "A header of 9 KiB",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[LongLine(9 * 1024)]),
        end: End::Status(431),
        rule: ("RFC 6585 §5", "a request head that is too large for the server gets a 431"),
        ..REJECTED_CASE
    },
    Case {
        name: "many-headers",
        summary: "65 headers",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[ManyLines(60)]),
        end: End::Status(431),
        rule: ("RFC 6585 §5", "a request head that is too large for the server gets a 431"),
        ..REJECTED_CASE
    },
    Case {
        name: "long-target",
        summary: "A query of 9 KiB",
        needs: Requirement::WirechatEcho,
        opening: Opening::Edited(&[LongTarget(9 * 1024)]),
        end: End::Status(414),
        rule: ("RFC 9110 §15.5.15", "a target that is too long for the server gets a 414"),
        ..REJECTED_CASE
    },
    Case {
        name: "tls",
        summary: "The first bytes of wss:// on a port for ws://",
        // The start of a 200-byte TLS 1.0 handshake record (type 22): a ClientHello (type 1) of 196 bytes. Two
        // CR LFs follow, so that a server that reads line by line does not wait for more input.
        steps: &[Bytes("16 03 01 00 c8 01 00 00 c4 03 03"), Bytes("0d 0a 0d 0a")],
        ..NOT_HTTP_CASE
    },
    Case {
        name: "ssh",
        summary: "The banner of SSH",
        steps: &[Bytes("'SSH-2.0-OpenSSH_9.6' 0d 0a"), Bytes("0d 0a")],
        ..NOT_HTTP_CASE
    },
    Case {
        name: "frame-without-a-handshake",
        summary: "A valid frame without a handshake",
        steps: &[Bytes("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        allowed: &[ANY_HTTP_ERROR, DISCONNECT_WITHOUT_RESPONSE, WAIT_FOR_CRLF],
        rule: ("§4.1", "frames come after the opening handshake"),
        ..NOT_HTTP_CASE
    },
];
