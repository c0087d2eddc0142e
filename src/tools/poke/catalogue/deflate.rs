//! Test cases about permessage-deflate (RFC 7692): the negotiation, messages that the server must accept, and messages
//! that it must not accept. [`inbox`](crate::tools::inbox) checks every response against the offer, so a case does not
//! state the response that it expects.

use super::{DEFAULT_CASE, DISCONNECT, ECHO_CASE, VIOLATION_CASE};
use crate::tools::poke::case::Edit::Add;
use crate::tools::poke::case::Step::{Await, Frame, Letters, Repeat};
use crate::tools::poke::case::{Case, Edit, End, Opening, Reply, Requirement};
use crate::ws::close::ProtocolError;

/// Default values of a test case that needs compression and an echo.
const DEFLATE_CASE: Case = Case { opening: Opening::Deflate(OFFER), ..ECHO_CASE };

/// Default values of a test case whose client negotiates compression and then breaks a rule.
const DEFLATE_VIOLATION_CASE: Case = Case { opening: Opening::Deflate(OFFER), ..VIOLATION_CASE };

/// Default values of a test case in which the client sends a compressed message that cannot be inflated.
const INVALID_CASE: Case = Case {
    end: End::Closes(&[1007]),
    allowed: &[DISCONNECT, ANY_CLOSE_CODE],
    rule: INFLATE_RULE,
    error: Some(ProtocolError::InvalidDeflate),
    ..DEFLATE_VIOLATION_CASE
};

/// Default values of a test case in which the client makes an offer that the server must decline. A server without
/// compression also passes such a test case, because it declines every offer.
const DECLINED_CASE: Case = Case { rule: DECLINE_RULE, ..DEFAULT_CASE };

const OFFER: &[Edit] = &[Add("Sec-WebSocket-Extensions: permessage-deflate")];
/// "Hello", compressed as in RFC 7692 §7.2.3.1.
const HELLO: &str = "f2 48 cd c9 c9 07 00";
/// "Hello", compressed with a reference to a "Hello" just before it (RFC 7692 §7.2.3.2).
const REFERENCE: &str = "f2 00 11 00 00";
/// The start of a DEFLATE block that repeats `a`. Each `BOMB` appended to the block inflates to another 2064 bytes.
const BOMB_START: &str = "4a 1c";
const BOMB: &str = "05 a3 60 14 8c 82 51 30 0a 46 c1 28 18";

const DECLINE_RULE: (&str, &str) =
    ("RFC 7692 §7", "a server declines an offer with an unknown, repeated or invalid parameter, not the handshake");
const OFFERS_RULE: (&str, &str) = ("RFC 7692 §5", "a client may make several offers; the server accepts one, or none");
const WINDOW_BITS_RULE: (&str, &str) =
    ("RFC 7692 §7.1.2.1", "a server that accepts server_max_window_bits responds with the same or a smaller window");
const RSV1_RULE: (&str, &str) =
    ("RFC 7692 §6", "RSV1 marks the first frame of a compressed message, and no other frame");
const INFLATE_RULE: (&str, &str) =
    ("RFC 7692 §7.2.2", "the payload and 00 00 ff ff are DEFLATE data; data that does not inflate is no message");
const ANY_CLOSE_CODE: (End, &str) =
    (End::ClosesWithAnyCode, "RFC 7692 §7.2.2 names no close code for data that does not inflate");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "deflate-unknown-parameter",
        summary: "An offer with a parameter that RFC 7692 does not define",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; x-unheard-of")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-repeated-parameter",
        summary: "An offer with server_no_context_takeover twice",
        opening: Opening::Edited(&[Add(
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        )]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-window-of-16-bits",
        summary: "An offer with server_max_window_bits=16; the largest is 15",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-window-of-7-bits",
        summary: "An offer with client_max_window_bits=7; the smallest is 8",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=7")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-leading-zero",
        summary: "An offer with server_max_window_bits=010",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=010")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-value-not-allowed",
        summary: "An offer with server_no_context_takeover=1, which takes no value",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover=1")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-value-missing",
        summary: "An offer with server_max_window_bits, which needs a value",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits")]),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-after-a-declined-offer",
        summary: "A compressed message after an offer that the server must decline",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; x-unheard-of")]),
        steps: &[Frame(0xc1, HELLO)],
        rule: ("§5.2", "RSV1, RSV2 and RSV3 are 0 unless a negotiated extension defines them"),
        error: Some(ProtocolError::ReservedBits),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-window-of-8-bits",
        summary: "An offer with server_max_window_bits=8, which zlib does not support",
        opening: Opening::Edited(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8")]),
        rule: (
            "RFC 7692 §7.1.2.1",
            "8 bits are a valid window, which a server may decline; it must not use a larger one",
        ),
        ..DECLINED_CASE
    },
    Case {
        name: "deflate-fallback",
        summary: "An invalid offer, and then a valid one in the same line",
        opening: Opening::Deflate(&[Add(
            "Sec-WebSocket-Extensions: permessage-deflate; x-unheard-of, permessage-deflate",
        )]),
        steps: &[Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'")],
        rule: OFFERS_RULE,
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-fallback-in-two-lines",
        summary: "An invalid offer, and a valid one in another line",
        opening: Opening::Deflate(&[
            Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=7"),
            Add("Sec-WebSocket-Extensions: permessage-deflate"),
        ]),
        steps: &[Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'")],
        rule: OFFERS_RULE,
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-quoted-value",
        summary: "An offer with server_max_window_bits=\"10\"",
        opening: Opening::Deflate(&[Add(
            "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=\"10\"",
        )]),
        steps: &[Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'")],
        rule: WINDOW_BITS_RULE,
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-server-window",
        summary: "An offer that limits the server's window to 10 bits",
        opening: Opening::Deflate(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10")]),
        steps: &[Letters(0x81, 5000)],
        replies: &[Reply::Letters(1, 5000)],
        rule: WINDOW_BITS_RULE,
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-client-window",
        summary: "An offer that lets the server limit the client's window, as browsers send it",
        opening: Opening::Deflate(&[Add("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")]),
        steps: &[Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'")],
        rule: (
            "RFC 7692 §7.1.2.2",
            "a response contains client_max_window_bits only if the offer does, and with a value",
        ),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-server-no-takeover",
        summary: "Two long messages, whose echoes must not refer to each other",
        opening: Opening::Deflate(&[Add("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover")]),
        steps: &[Letters(0x81, 5000), Letters(0x81, 5000)],
        replies: &[Reply::Letters(1, 5000), Reply::Letters(1, 5000)],
        rule: (
            "RFC 7692 §7.1.1.1",
            "a server that accepts server_no_context_takeover repeats it, and compresses each message alone",
        ),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-client-no-takeover",
        summary: "A client that announces that it does not use context takeover",
        opening: Opening::Deflate(&[Add("Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover")]),
        steps: &[Frame(0xc1, HELLO), Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'"), Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.1.1.2", "client_no_context_takeover is a hint in an offer, and a demand in a response"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-hello",
        summary: "The RFC's own compressed \"Hello\"",
        steps: &[Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.2.3.1", "a message may be compressed, and the server echoes it compressed or not"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-binary",
        summary: "A compressed binary message",
        steps: &[Frame(0xc2, "62 f8 df 00 00")],
        replies: &[Reply::Binary("00 ff 80")],
        rule: ("RFC 7692 §6", "compression does not change the type of a message"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-uncompressed",
        summary: "An uncompressed message, and then a compressed one",
        steps: &[Frame(0x81, "'Hello'"), Frame(0xc1, HELLO)],
        replies: &[Reply::Text("'Hello'"), Reply::Text("'Hello'")],
        rule: ("RFC 7692 §6", "an endpoint may send any message uncompressed, with RSV1 = 0"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-fragments",
        summary: "A compressed message in three fragments, one of them empty; only the first has RSV1",
        steps: &[Frame(0x41, "f2 48 cd"), Frame(0x00, ""), Frame(0x80, "c9 c9 07 00")],
        replies: &[Reply::Text("'Hello'")],
        rule: RSV1_RULE,
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-ping-between-fragments",
        summary: "A Ping inside a compressed message",
        steps: &[Frame(0x41, "f2 48 cd"), Frame(0x89, "'inside'"), Frame(0x80, "c9 c9 07 00")],
        replies: &[Reply::Pong("'inside'"), Reply::Text("'Hello'")],
        rule: ("RFC 7692 §6", "a control frame may come between fragments; it is never compressed"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-characters-in-fragments",
        summary: "Compressed text that is cut inside a character",
        steps: &[Frame(0x41, "aa 3a 3c ff d9"), Frame(0x80, "86 2d 1f e6 f7 f6 00 00")],
        replies: &[Reply::Text("7a c3 9f e6 b0 b4 f0 9f 8d 8c")],
        rule: ("§5.6", "a text message is UTF-8 as a whole, after inflating"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-empty",
        summary: "A compressed message of no bytes",
        steps: &[Frame(0xc1, "00")],
        replies: &[Reply::Text("")],
        rule: ("RFC 7692 §7.2.3.6", "an empty message is an empty block"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-stored-block",
        summary: "\"Hello\" in a block without compression",
        steps: &[Frame(0xc1, "00 05 00 fa ff 'Hello' 00")],
        replies: &[Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.2.3.3", "a block may be stored without compression"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-two-blocks",
        summary: "\"Hello\" in two blocks, flushed between them",
        steps: &[Frame(0xc1, "f2 48 05 00 00 00 ff ff ca c9 c9 07 00")],
        replies: &[Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.2.3.5", "a message may have several blocks"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-final-block",
        summary: "\"Hello\" in a block with BFINAL = 1, twice",
        steps: &[Frame(0xc1, "f3 48 cd c9 c9 07 00 00"), Frame(0xc1, "f3 48 cd c9 c9 07 00 00")],
        replies: &[Reply::Text("'Hello'"), Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.2.3.4", "a block may be final; an empty block follows it"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-after-a-final-block",
        summary: "A block with BFINAL = 1, and another block in the same message",
        steps: &[Frame(0xc1, "f3 48 cd c9 c9 07 00 f2 48 cd c9 c9 07 00")],
        replies: &[Reply::Text("'HelloHello'")],
        rule: ("RFC 7692 §7.2.1", "blocks with BFINAL = 0 and BFINAL = 1 may be mixed in any order"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-takeover",
        summary: "A message that refers to the message before it",
        opening: Opening::Takeover(OFFER),
        steps: &[Frame(0xc1, HELLO), Frame(0xc1, REFERENCE)],
        replies: &[Reply::Text("'Hello'"), Reply::Text("'Hello'")],
        rule: ("RFC 7692 §7.2.3.2", "unless the response forbids it, a message may refer to earlier ones"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-server-takeover",
        summary: "Two long messages, whose echoes may refer to each other",
        steps: &[Letters(0x82, 5000), Letters(0x82, 5000)],
        replies: &[Reply::Letters(2, 5000), Reply::Letters(2, 5000)],
        rule: ("RFC 7692 §7.2.1", "messages that the server compresses inflate with the agreed context"),
        ..DEFLATE_CASE
    },
    Case {
        name: "deflate-forbidden-takeover",
        summary: "A message that refers to an earlier one, which wirechat forbids",
        needs: Requirement::WirechatEcho,
        steps: &[Frame(0xc1, HELLO), Await(1), Frame(0xc1, REFERENCE)],
        replies: &[Reply::Text("'Hello'")],
        allowed: &[],
        rule: ("RFC 7692 §7.1.1.2", "after client_no_context_takeover, the client compresses each message alone"),
        ..INVALID_CASE
    },
    Case {
        name: "deflate-rsv1-on-a-continuation",
        summary: "RSV1 on the second fragment of a compressed message",
        steps: &[Frame(0x41, "f2 48 cd"), Frame(0xc0, "c9 c9 07 00")],
        rule: RSV1_RULE,
        error: Some(ProtocolError::MisplacedRsv1),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-rsv1-on-a-ping",
        summary: "RSV1 on a Ping",
        steps: &[Frame(0xc9, "")],
        rule: RSV1_RULE,
        error: Some(ProtocolError::MisplacedRsv1),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-rsv1-on-a-close",
        summary: "RSV1 on a Close",
        steps: &[Frame(0xc8, "03 e8")],
        rule: RSV1_RULE,
        error: Some(ProtocolError::MisplacedRsv1),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-rsv2",
        summary: "RSV2 set, which compression does not use",
        steps: &[Frame(0xa1, "'Hello'")],
        rule: ("§5.2", "of the reserved bits, only RSV1 is negotiated (RFC 7692 §6)"),
        error: Some(ProtocolError::MisplacedRsv1),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-rsv3",
        summary: "RSV3 set besides RSV1",
        steps: &[Frame(0xd1, HELLO)],
        rule: ("§5.2", "of the reserved bits, only RSV1 is negotiated (RFC 7692 §6)"),
        error: Some(ProtocolError::MisplacedRsv1),
        ..DEFLATE_VIOLATION_CASE
    },
    Case {
        name: "deflate-garbage",
        summary: "A compressed message of bytes that are not DEFLATE data",
        steps: &[Frame(0xc1, "ff ff ff")],
        ..INVALID_CASE
    },
    Case {
        name: "deflate-truncated",
        summary: "A message cut inside its block, which wirechat does not echo in part",
        needs: Requirement::WirechatEcho,
        steps: &[Frame(0xc1, "f2 48 cd c9")],
        allowed: &[],
        ..INVALID_CASE
    },
    Case {
        name: "deflate-bad-utf8",
        summary: "Compressed text that inflates to a byte that never occurs in UTF-8",
        steps: &[Frame(0xc1, "4a fc 0f 00")],
        allowed: &[DISCONNECT],
        rule: ("§8.1", "text that is not UTF-8 fails the connection, also after inflating"),
        error: Some(ProtocolError::TextNotUtf8),
        ..INVALID_CASE
    },
    Case {
        name: "deflate-bomb",
        summary: "A compressed message of a few hundred bytes that inflates to 80 KiB, on the chat",
        needs: Requirement::WirechatChat,
        steps: &[Frame(0x41, BOMB_START), Repeat(40, &[Frame(0x00, BOMB)])],
        end: End::Closes(&[1009]),
        allowed: &[],
        rule: ("§10.4", "a limit applies to the inflated message, and the server stops inflating there"),
        error: Some(ProtocolError::MessageTooBig),
        ..DEFLATE_VIOLATION_CASE
    },
];
