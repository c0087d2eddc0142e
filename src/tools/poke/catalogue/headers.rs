//! Cases of the request as HTTP: line ends, blanks, hosts and bodies (RFC 9112), and what is no HTTP at all.

use super::CASE;
use crate::tools::poke::case::Edit::{
    Add, Before, Behind, LineEnd, LongLine, LongTarget, ManyLines, RequestLine, Set, Without,
};
use crate::tools::poke::case::Step::Bytes;
use crate::tools::poke::case::{Case, End, Needs, Opening};

/// A request that is no good HTTP.
const BAD: Case = Case { end: End::Status(400), allowed: &[REFUSAL], ..CASE };

const REFUSAL: (End, &str) = (End::Refused, "§4.2.1 asks for an HTTP error code and gives 400 as an example");
const HOST: (&str, &str) = ("RFC 9112 §3.2", "an HTTP/1.1 request has exactly one Host, or is answered with 400");
const BODY: (&str, &str) = ("RFC 9112 §6.3", "what a request announces as its body must not be taken for frames");
const WAITS: (End, &str) = (End::Waits, "RFC 9112 §2.2: lines end with CR LF, for which a server may wait");
const NO_HTTP: (End, &str) = (End::Cut, "RFC 9112 §3: who does not speak HTTP need not be answered in HTTP");
const NOT_HTTP: Case = Case {
    opening: Opening::Silent,
    allowed: &[REFUSAL, NO_HTTP],
    rule: ("RFC 9112 §3", "a request begins with a request line"),
    ..BAD
};
const BODY_ALLOWED: &[(End, &str)] =
    &[REFUSAL, (End::Open, "RFC 9110 §9.3.1: a body of a GET has no meaning, and may be read and dropped")];

pub(super) const CASES: &[Case] = &[
    Case { name: "no-host", what: "No Host header", opening: Opening::Odd(&[Without("Host")]), rule: HOST, ..BAD },
    Case {
        name: "two-hosts",
        what: "Two Host headers",
        opening: Opening::Odd(&[Add("Host: {host}")]),
        rule: HOST,
        ..BAD
    },
    Case {
        name: "foreign-host",
        what: "Host: elsewhere.example, as after DNS rebinding",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[Set("Host: elsewhere.example")]),
        end: End::Status(403),
        rule: ("§4.2.1", "Host names the server; one that is on loopback need not answer to any other name"),
        ..BAD
    },
    Case {
        name: "absolute-target",
        what: "A request line with a whole URL: GET http://host/path HTTP/1.1",
        opening: Opening::Odd(&[RequestLine("GET http://{host}{target} HTTP/1.1")]),
        end: End::Open,
        rule: ("RFC 9112 §3.2.2", "a server must take a target in absolute form"),
        ..CASE
    },
    Case {
        name: "blank-lines-first",
        what: "Two blank lines before the request line",
        opening: Opening::Odd(&[Before("0d 0a 0d 0a")]),
        end: End::Open,
        allowed: &[(End::Refused, "RFC 9112 §2.2: a server should ignore one such line, and need not ignore more")],
        rule: ("RFC 9112 §2.2", "blank lines before a request line should be ignored"),
        ..CASE
    },
    Case {
        name: "bare-lf",
        what: "Lines that end with LF alone",
        opening: Opening::Odd(&[LineEnd("0a")]),
        allowed: &[REFUSAL, (End::Open, "RFC 9112 §2.2: a server may take a lone LF for the end of a line"), WAITS],
        rule: ("RFC 9112 §2.2", "lines end with CR LF"),
        ..BAD
    },
    Case {
        name: "folded-line",
        what: "A header that goes on in the next line, behind a blank",
        opening: Opening::Odd(&[Add("X-Odd: a\r\n b")]),
        allowed: &[REFUSAL, (End::Open, "RFC 9112 §5.2: a server may replace such a fold by blanks")],
        rule: ("RFC 9112 §5.2", "a folded line is refused, or its fold replaced"),
        ..BAD
    },
    Case {
        name: "blank-before-the-colon",
        what: "X-Odd : a",
        opening: Opening::Odd(&[Add("X-Odd : a")]),
        rule: ("RFC 9112 §5.1", "a blank between a header's name and its colon must be answered with 400"),
        ..BAD
    },
    Case {
        name: "nul-in-a-header",
        what: "A header with a byte 00 in it",
        opening: Opening::Odd(&[Add("X-Odd: a\0b")]),
        allowed: &[REFUSAL, (End::Open, "RFC 9110 §5.5: a server may replace such a byte by a blank")],
        rule: ("RFC 9110 §5.5", "CR, LF and NUL have no place in a value"),
        ..BAD
    },
    Case {
        name: "body",
        what: "Content-Length: 5, and five bytes behind the request",
        opening: Opening::Odd(&[Add("Content-Length: 5"), Behind("'hello'")]),
        allowed: BODY_ALLOWED,
        rule: BODY,
        ..BAD
    },
    Case {
        name: "chunked-body",
        what: "Transfer-Encoding: chunked, and an empty body behind the request",
        opening: Opening::Odd(&[Add("Transfer-Encoding: chunked"), Behind("'0' 0d 0a 0d 0a")]),
        allowed: BODY_ALLOWED,
        rule: BODY,
        ..BAD
    },
    Case {
        name: "long-header",
        what: "A header of 9 KiB",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[LongLine(9 * 1024)]),
        end: End::Status(431),
        rule: ("RFC 6585 §5", "a head that is too large for the server is answered with 431"),
        ..BAD
    },
    Case {
        name: "many-headers",
        what: "65 headers",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[ManyLines(60)]),
        end: End::Status(431),
        rule: ("RFC 6585 §5", "a head that is too large for the server is answered with 431"),
        ..BAD
    },
    Case {
        name: "long-target",
        what: "A query of 9 KiB",
        needs: Needs::OwnEcho,
        opening: Opening::Odd(&[LongTarget(9 * 1024)]),
        end: End::Status(414),
        rule: ("RFC 9110 §15.5.15", "a target that is too long for the server is answered with 414"),
        ..BAD
    },
    Case {
        name: "tls",
        what: "The first bytes of wss:// on a port for ws://",
        // A record of a handshake (22) of TLS 1.0, 200 bytes long, with a ClientHello (1) of 196 bytes in it.
        steps: &[Bytes("16 03 01 00 c8 01 00 00 c4 03 03"), Bytes("0d 0a 0d 0a")],
        ..NOT_HTTP
    },
    Case {
        name: "ssh",
        what: "The banner of SSH",
        steps: &[Bytes("'SSH-2.0-OpenSSH_9.6' 0d 0a"), Bytes("0d 0a")],
        ..NOT_HTTP
    },
    Case {
        name: "frame-without-a-handshake",
        what: "A good frame, and no handshake before it",
        steps: &[Bytes("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        allowed: &[REFUSAL, NO_HTTP, WAITS],
        rule: ("§4.1", "frames come after the opening handshake"),
        ..NOT_HTTP
    },
];
