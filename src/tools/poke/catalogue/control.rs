//! Test cases about control frames (§5.5): Ping, Pong, and the Close frame with its codes and reasons (§7).

use super::{DEFAULT_CASE, DISCONNECT, VIOLATION_CASE, WAIT_FOR_WHOLE_FRAME};
use crate::tools::poke::case::Step::{Bytes, Frame, HalfClose, Letters};
use crate::tools::poke::case::{Case, End, Reply, Requirement};
use crate::ws::close::ProtocolError;

const PONG_RULE: (&str, &str) = ("§5.5.3", "a Pong has the payload of the Ping that it replies to");
const CONTROL_LEN_RULE: (&str, &str) = ("§5.5", "a control frame has at most 125 bytes of payload");

pub(super) const PING_CASES: &[Case] = &[
    Case {
        name: "ping",
        summary: "A Ping with \"Hello\"",
        steps: &[Bytes("89 85 37 fa 21 3d 7f 9f 4d 51 58")],
        replies: &[Reply::Pong("'Hello'")],
        rule: PONG_RULE,
        ..DEFAULT_CASE
    },
    Case {
        name: "empty-ping",
        summary: "A Ping without a payload",
        steps: &[Frame(0x89, "")],
        replies: &[Reply::Pong("")],
        rule: PONG_RULE,
        ..DEFAULT_CASE
    },
    Case {
        name: "binary-ping",
        summary: "A Ping with bytes that are not text",
        steps: &[Frame(0x89, "ff 00 fe 80")],
        replies: &[Reply::Pong("ff 00 fe 80")],
        rule: PONG_RULE,
        ..DEFAULT_CASE
    },
    Case {
        name: "ping-of-125-bytes",
        summary: "The longest Ping that is valid",
        steps: &[Frame(0x89, LONGEST_PAYLOAD)],
        replies: &[Reply::Pong(LONGEST_PAYLOAD)],
        rule: PONG_RULE,
        ..DEFAULT_CASE
    },
    Case {
        name: "three-pings",
        summary: "Three Pings in one write",
        steps: &[Bytes("89 81 M0 '1' 89 81 M0 '2' 89 81 M0 '3'")],
        replies: &[Reply::OptionalPong("'1'"), Reply::OptionalPong("'2'"), Reply::Pong("'3'")],
        rule: ("§5.5.3", "of several Pings, only the most recent one needs a Pong"),
        ..DEFAULT_CASE
    },
    Case {
        name: "unasked-pong",
        summary: "A Pong without a Ping",
        steps: &[Frame(0x8a, "'hi'")],
        rule: ("§5.5.3", "a Pong may be sent without a Ping, as a heartbeat; it gets no reply"),
        ..DEFAULT_CASE
    },
    Case {
        name: "ping-of-126-bytes",
        summary: "A Ping that is one byte too long",
        steps: &[Letters(0x89, 126)],
        rule: CONTROL_LEN_RULE,
        error: Some(ProtocolError::ControlTooLong),
        ..VIOLATION_CASE
    },
    Case {
        name: "pong-of-126-bytes",
        summary: "A Pong that is one byte too long",
        steps: &[Letters(0x8a, 126)],
        rule: CONTROL_LEN_RULE,
        error: Some(ProtocolError::ControlTooLong),
        ..VIOLATION_CASE
    },
    Case {
        name: "huge-ping",
        summary: "A Ping that announces 2^62 bytes",
        steps: &[Bytes("89 ff 40 00 00 00 00 00 00 00")],
        allowed: &[DISCONNECT, WAIT_FOR_WHOLE_FRAME],
        rule: CONTROL_LEN_RULE,
        error: Some(ProtocolError::ControlTooLong),
        ..VIOLATION_CASE
    },
];

/// 125 letters: the longest payload of a control frame (§5.5).
const LONGEST_PAYLOAD: &str = "'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstu'";

/// The defaults for test cases that send a valid Close: the server must reply with a Close.
const VALID_CLOSE_CASE: Case = Case { allowed: &[ANY_CLOSE_CODE], ..DEFAULT_CASE };
const BAD_CODE_CASE: Case =
    Case { allowed: &[DISCONNECT, (End::ClosesWithAnyCode, ANY_CODE_RULE)], rule: CLOSE_CODE_RULE, ..VIOLATION_CASE };

const ANY_CLOSE_CODE: (End, &str) =
    (End::ClosesWithAnyCode, "§5.5.1: the reply to a Close \"typically echos the status code\", but need not");
const ANY_CODE_RULE: &str = "§7.4 lists the codes that must not be sent, but no code to fail the connection with";
const CLOSE_REPLY_RULE: (&str, &str) =
    ("§5.5.1", "the server replies to a Close with a Close, and then ends TCP (§7.1.1)");
const CLOSE_CODE_RULE: (&str, &str) =
    ("§7.4", "1004–1006, 1015, and all codes outside of 1000–1014 and 3000–4999 must not be sent");
const NO_FRAME_AFTER_CLOSE_RULE: (&str, &str) =
    ("§5.5.1", "no frame may follow a Close; if one does, it gets no reply");

pub(super) const CLOSE_CASES: &[Case] = &[
    Case {
        name: "close",
        summary: "A Close with code 1000",
        steps: &[Bytes("88 82 37 fa 21 3d 34 12")],
        end: End::Closes(&[1000]),
        rule: CLOSE_REPLY_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "empty-close",
        summary: "A Close without a code",
        steps: &[Frame(0x88, "")],
        end: End::Closes(&[1005]),
        rule: CLOSE_REPLY_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "close-with-a-reason",
        summary: "A Close with code 1000 and the reason \"bye\"",
        steps: &[Frame(0x88, "03 e8 'bye'")],
        end: End::Closes(&[1000]),
        rule: CLOSE_REPLY_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "close-with-the-longest-reason",
        summary: "A Close with a reason of 123 bytes",
        steps: &[Frame(0x88, LONGEST_CLOSE_PAYLOAD)],
        end: End::Closes(&[1000]),
        rule: CLOSE_REPLY_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "close-4999",
        summary: "A Close with code 4999, the last one for private use",
        steps: &[Frame(0x88, "13 87")],
        end: End::Closes(&[4999]),
        rule: ("§7.4.2", "codes 3000–3999 are for libraries and applications, 4000–4999 for private use"),
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "close-of-one-byte",
        summary: "A Close with one byte of payload, half a code",
        steps: &[Frame(0x88, "03")],
        rule: ("§5.5.1", "the payload of a Close is empty, or starts with a code of two bytes"),
        error: Some(ProtocolError::ClosePayloadOfOneByte),
        ..VIOLATION_CASE
    },
    Case {
        name: "close-0",
        summary: "A Close with code 0",
        steps: &[Frame(0x88, "00 00")],
        error: Some(ProtocolError::InvalidCloseCode(0)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-999",
        summary: "A Close with code 999, below the first one",
        steps: &[Frame(0x88, "03 e7")],
        error: Some(ProtocolError::InvalidCloseCode(999)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-1005",
        summary: "A Close with code 1005, which means \"no code\" and is never sent",
        steps: &[Frame(0x88, "03 ed")],
        error: Some(ProtocolError::InvalidCloseCode(1005)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-1006",
        summary: "A Close with code 1006, which means \"no Close arrived\" and is never sent",
        steps: &[Frame(0x88, "03 ee")],
        error: Some(ProtocolError::InvalidCloseCode(1006)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-1015",
        summary: "A Close with code 1015, which means that TLS failed and is never sent",
        steps: &[Frame(0x88, "03 f7")],
        error: Some(ProtocolError::InvalidCloseCode(1015)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-2999",
        summary: "A Close with code 2999, reserved for the RFC and its extensions",
        steps: &[Frame(0x88, "0b b7")],
        error: Some(ProtocolError::InvalidCloseCode(2999)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-5000",
        summary: "A Close with code 5000, above the last one",
        steps: &[Frame(0x88, "13 88")],
        error: Some(ProtocolError::InvalidCloseCode(5000)),
        ..BAD_CODE_CASE
    },
    Case {
        name: "close-with-a-bad-reason",
        summary: "A Close whose reason is not UTF-8",
        steps: &[Frame(0x88, "03 e8 c3 28")],
        end: End::Closes(&[1007]),
        allowed: &[DISCONNECT, (End::Closes(&[1002]), "§8.1 says to fail the connection, but names no code")],
        rule: ("§8.1", "the reason of a Close is UTF-8, like a text message"),
        error: Some(ProtocolError::CloseReasonNotUtf8),
        ..VIOLATION_CASE
    },
    Case {
        name: "close-too-long",
        summary: "A Close with a payload of 126 bytes",
        steps: &[Frame(0x88, TOO_LONG_CLOSE_PAYLOAD)],
        rule: CONTROL_LEN_RULE,
        error: Some(ProtocolError::ControlTooLong),
        ..VIOLATION_CASE
    },
    Case {
        name: "text-after-close",
        summary: "A text message after a Close",
        needs: Requirement::Echo,
        steps: &[Bytes("88 82 M0 03 e8 81 81 M0 'a'")],
        end: End::Closes(&[1000]),
        rule: NO_FRAME_AFTER_CLOSE_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "ping-after-close",
        summary: "A Ping after a Close",
        steps: &[Bytes("88 82 M0 03 e8 89 80 M0")],
        end: End::Closes(&[1000]),
        rule: NO_FRAME_AFTER_CLOSE_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "two-closes",
        summary: "Two Closes; the first one counts",
        steps: &[Bytes("88 82 M0 03 e8 88 82 M0 03 e9")],
        end: End::Closes(&[1000]),
        rule: NO_FRAME_AFTER_CLOSE_RULE,
        ..VALID_CLOSE_CASE
    },
    Case {
        name: "half-close",
        summary: "A message, then the end of TCP, without a Close",
        steps: &[Frame(0x81, "'a'"), HalfClose],
        end: End::Disconnects,
        allowed: &[(End::ClosesWithAnyCode, "§7.3: \"Servers MAY close the WebSocket connection whenever desired\"")],
        rule: ("§7.1.5", "TCP may end without a Close; an application then sees code 1006"),
        ..DEFAULT_CASE
    },
];

/// Close payload: code 1000 and a reason of 123 bytes, the maximum (§5.5).
const LONGEST_CLOSE_PAYLOAD: &str = "03 e8 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrs'";
/// Close payload: code 1000 and a reason of 124 bytes, one more than the maximum (§5.5).
const TOO_LONG_CLOSE_PAYLOAD: &str = "03 e8 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrst'";
