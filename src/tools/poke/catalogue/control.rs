//! Cases of Ping and Pong, and of the rules that all control frames share (§5.5).

use super::{CASE, CUT, FAILS, UNFINISHED};
use crate::tools::poke::case::Step::{Bytes, Frame, Letters};
use crate::tools::poke::case::{Back, Case};
use crate::ws::close::ProtocolError;

const PONG: (&str, &str) = ("§5.5.3", "a Pong has the payload of the Ping that it answers");
const AT_MOST_125: (&str, &str) = ("§5.5", "a control frame has at most 125 bytes of payload");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ping",
        what: "A Ping with \"Hello\"",
        steps: &[Bytes("89 85 37 fa 21 3d 7f 9f 4d 51 58")],
        back: &[Back::Pong("'Hello'")],
        rule: PONG,
        ..CASE
    },
    Case {
        name: "empty-ping",
        what: "A Ping without a payload",
        steps: &[Frame(0x89, "")],
        back: &[Back::Pong("")],
        rule: PONG,
        ..CASE
    },
    Case {
        name: "binary-ping",
        what: "A Ping with bytes that are no text",
        steps: &[Frame(0x89, "ff 00 fe 80")],
        back: &[Back::Pong("ff 00 fe 80")],
        rule: PONG,
        ..CASE
    },
    Case {
        name: "ping-of-125-bytes",
        what: "The longest Ping there is",
        steps: &[Frame(0x89, LONGEST)],
        back: &[Back::Pong(LONGEST)],
        rule: PONG,
        ..CASE
    },
    Case {
        name: "three-pings",
        what: "Three Pings in one write",
        steps: &[Bytes("89 81 M0 '1' 89 81 M0 '2' 89 81 M0 '3'")],
        back: &[Back::MaybePong("'1'"), Back::MaybePong("'2'"), Back::Pong("'3'")],
        rule: ("§5.5.3", "of several Pings the most recent must be answered; the others may be"),
        ..CASE
    },
    Case {
        name: "unasked-pong",
        what: "A Pong that nobody asked for",
        steps: &[Frame(0x8a, "'hi'")],
        rule: ("§5.5.3", "a Pong may come unasked, as a sign of life; no answer is expected"),
        ..CASE
    },
    Case {
        name: "ping-of-126-bytes",
        what: "A Ping that is one byte too long",
        steps: &[Letters(0x89, 126)],
        rule: AT_MOST_125,
        error: Some(ProtocolError::ControlTooLong),
        ..FAILS
    },
    Case {
        name: "pong-of-126-bytes",
        what: "A Pong that is one byte too long",
        steps: &[Letters(0x8a, 126)],
        rule: AT_MOST_125,
        error: Some(ProtocolError::ControlTooLong),
        ..FAILS
    },
    Case {
        name: "huge-ping",
        what: "A Ping that announces 2^62 bytes",
        steps: &[Bytes("89 ff 40 00 00 00 00 00 00 00")],
        allowed: &[CUT, UNFINISHED],
        rule: AT_MOST_125,
        error: Some(ProtocolError::ControlTooLong),
        ..FAILS
    },
];

/// 125 letters.
const LONGEST: &str = "'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstu'";
