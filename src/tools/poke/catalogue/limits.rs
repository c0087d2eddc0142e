//! Test cases about a server's limits (§10.4): long messages, binary messages, many fragments, and a client that
//! does not read the echo.

use super::{DEFAULT_CASE, DISCONNECT};
use crate::tools::poke::case::Step::{Bytes, Flood, Frame, Repeat};
use crate::tools::poke::case::{Case, End, Requirement};
use crate::ws::close::ProtocolError;

const LIMITS_RULE: (&str, &str) = ("§10.4", "a server with limits protects itself against clients that exceed them");
const WAIT_FOR_PAYLOAD: (End, &str) =
    (End::Waits, "§10.4 demands protection; a server that allocates nothing in advance may wait for the payload");
const ANY_CLOSE_CODE: (End, &str) =
    (End::ClosesWithAnyCode, "§7.4.1: 1009 means too big; the RFC does not demand that code");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "huge-length",
        summary: "A frame that announces 2^62 bytes",
        steps: &[Bytes("82 ff 40 00 00 00 00 00 00 00")],
        end: End::Closes(&[1009]),
        allowed: &[DISCONNECT, ANY_CLOSE_CODE, WAIT_FOR_PAYLOAD],
        rule: LIMITS_RULE,
        error: Some(ProtocolError::MessageTooBig),
        ..DEFAULT_CASE
    },
    Case {
        name: "huge-length-in-a-fragment",
        summary: "A fragment of one byte, then one that announces 2^62",
        steps: &[Bytes("02 81 M0 'a' 80 ff 40 00 00 00 00 00 00 00")],
        end: End::Closes(&[1009]),
        allowed: &[DISCONNECT, ANY_CLOSE_CODE, WAIT_FOR_PAYLOAD],
        rule: LIMITS_RULE,
        error: Some(ProtocolError::MessageTooBig),
        ..DEFAULT_CASE
    },
    Case {
        name: "one-over-the-limit",
        summary: "A message of 16 MiB and one byte on /echo, announced in its header",
        needs: Requirement::WirechatEcho,
        steps: &[Bytes("82 ff 00 00 00 00 01 00 00 01")],
        end: End::Closes(&[1009]),
        rule: LIMITS_RULE,
        error: Some(ProtocolError::MessageTooBig),
        ..DEFAULT_CASE
    },
    Case {
        name: "one-over-the-limit-on-the-chat",
        summary: "A message of 64 KiB and one byte on the chat, announced in its header",
        needs: Requirement::WirechatChat,
        steps: &[Bytes("81 ff 00 00 00 00 00 01 00 01")],
        end: End::Closes(&[1009]),
        rule: LIMITS_RULE,
        error: Some(ProtocolError::MessageTooBig),
        ..DEFAULT_CASE
    },
    Case {
        name: "binary-on-the-chat",
        summary: "A binary message on the chat, which accepts only text",
        needs: Requirement::WirechatChat,
        steps: &[Frame(0x82, "00 ff 80")],
        end: End::Closes(&[1003]),
        rule: ("§7.4.1", "1003 is for a type of data that the endpoint does not accept"),
        error: Some(ProtocolError::UnsupportedData),
        ..DEFAULT_CASE
    },
    Case {
        name: "too-many-fragments",
        summary: "A message in 100,001 empty fragments",
        needs: Requirement::WirechatEcho,
        steps: &[Frame(0x01, ""), Repeat(100_000, &[Bytes("00 80 M0")])],
        end: End::Closes(&[1008]),
        rule: LIMITS_RULE,
        error: Some(ProtocolError::TooManyFragments),
        ..DEFAULT_CASE
    },
    Case {
        name: "slow-reader",
        summary: "Endless messages whose echo is not read",
        needs: Requirement::Echo,
        steps: &[Flood(0x82, 64 * 1024)],
        end: End::StopsReading,
        allowed: &[DISCONNECT, ANY_CLOSE_CODE],
        rule: ("§10.4", "a server must bound what it buffers for a slow consumer: stop reading, or close"),
        ..DEFAULT_CASE
    },
];
