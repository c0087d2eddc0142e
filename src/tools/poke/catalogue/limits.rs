//! Cases of what a server must not be made to hold: long messages, many fragments, a peer that does not read (§10.4).

use super::{CASE, CUT};
use crate::tools::poke::case::Step::{Bytes, Flood, Frame, Repeat};
use crate::tools::poke::case::{Case, End, Needs};
use crate::ws::close::ProtocolError;

const LIMITS: (&str, &str) = ("§10.4", "a server has limits and protects itself against those who exceed them");
const PATIENT: (End, &str) = (End::Waits, "§10.4 demands protection, and a server that sets nothing aside may wait");
const ANY_CODE: (End, &str) = (End::ClosesAnyhow, "§7.4.1: 1009 is for what is too big; the RFC does not demand it");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "huge-length",
        what: "A frame that announces 2^62 bytes",
        steps: &[Bytes("82 ff 40 00 00 00 00 00 00 00")],
        end: End::Closes(&[1009]),
        allowed: &[CUT, ANY_CODE, PATIENT],
        rule: LIMITS,
        error: Some(ProtocolError::MessageTooBig),
        ..CASE
    },
    Case {
        name: "huge-length-in-a-fragment",
        what: "A fragment of one byte, and one that announces 2^62",
        steps: &[Bytes("02 81 M0 'a' 80 ff 40 00 00 00 00 00 00 00")],
        end: End::Closes(&[1009]),
        allowed: &[CUT, ANY_CODE, PATIENT],
        rule: LIMITS,
        error: Some(ProtocolError::MessageTooBig),
        ..CASE
    },
    Case {
        name: "one-over-the-limit",
        what: "A message on /echo that is announced as 16 MiB and one byte",
        needs: Needs::OwnEcho,
        steps: &[Bytes("82 ff 00 00 00 00 01 00 00 01")],
        end: End::Closes(&[1009]),
        rule: LIMITS,
        error: Some(ProtocolError::MessageTooBig),
        ..CASE
    },
    Case {
        name: "one-over-the-limit-on-the-chat",
        what: "A message on the chat that is announced as 64 KiB and one byte",
        needs: Needs::OwnChat,
        steps: &[Bytes("81 ff 00 00 00 00 00 01 00 01")],
        end: End::Closes(&[1009]),
        rule: LIMITS,
        error: Some(ProtocolError::MessageTooBig),
        ..CASE
    },
    Case {
        name: "binary-on-the-chat",
        what: "A binary message where only text is taken",
        needs: Needs::OwnChat,
        steps: &[Frame(0x82, "00 ff 80")],
        end: End::Closes(&[1003]),
        rule: ("§7.4.1", "1003 is for a kind of data that the endpoint does not take"),
        error: Some(ProtocolError::UnsupportedData),
        ..CASE
    },
    Case {
        name: "too-many-fragments",
        what: "A message in 100,001 empty fragments",
        needs: Needs::OwnEcho,
        steps: &[Frame(0x01, ""), Repeat(100_000, &[Bytes("00 80 M0")])],
        end: End::Closes(&[1008]),
        rule: LIMITS,
        error: Some(ProtocolError::TooManyFragments),
        ..CASE
    },
    Case {
        name: "slow-reader",
        what: "Messages without end, of which no echo is read",
        needs: Needs::Echo,
        steps: &[Flood(0x82, 64 * 1024)],
        end: End::Stalls,
        allowed: &[CUT, ANY_CODE],
        rule: ("§10.4", "what one peer does not read must not pile up without bound: stop reading it, or close"),
        ..CASE
    },
];
