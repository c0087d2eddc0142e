//! Cases of messages in several frames, and of control frames between them (§5.4).

use super::{CASE, ECHO, FAILS};
use crate::tools::poke::case::Step::{Await, Bytes, Frame};
use crate::tools::poke::case::{Back, Case, End};
use crate::ws::close::ProtocolError;

const FRAGMENTS: (&str, &str) =
    ("§5.4", "a first frame with an opcode and without FIN, continuations with opcode 0, the last of them with FIN");
const BETWEEN: (&str, &str) = ("§5.4", "control frames may come between the fragments of a message");
const NOT_OPEN: (&str, &str) = ("§5.4", "a continuation continues a message that has been begun");
const INTERLEAVED: (&str, &str) = ("§5.4", "a message is finished before the next one is begun");
const CONTROL: (&str, &str) = ("§5.5", "control frames must not be fragmented");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "fragmented",
        what: "\"Hello\" in two fragments",
        steps: &[Frame(0x01, "'He'"), Frame(0x80, "'llo'")],
        back: &[Back::Text("'Hello'")],
        rule: FRAGMENTS,
        ..ECHO
    },
    Case {
        name: "fragmented-binary",
        what: "A binary message in three fragments",
        steps: &[Frame(0x02, "ff"), Frame(0x00, "fe"), Frame(0x80, "fd")],
        back: &[Back::Binary("ff fe fd")],
        rule: FRAGMENTS,
        ..ECHO
    },
    Case {
        name: "two-fragmented-messages",
        what: "Two messages of two fragments each, in one write",
        steps: &[Bytes("01 81 M0 'a' 80 81 M0 'b' 01 81 M0 'c' 80 81 M0 'd'")],
        back: &[Back::Text("'ab'"), Back::Text("'cd'")],
        rule: FRAGMENTS,
        ..ECHO
    },
    Case {
        name: "empty-fragments",
        what: "A message of three fragments that are all empty",
        steps: &[Frame(0x01, ""), Frame(0x00, ""), Frame(0x80, "")],
        back: &[Back::Text("")],
        rule: FRAGMENTS,
        ..ECHO
    },
    Case {
        name: "ping-between-fragments",
        what: "A Ping between two fragments, answered before the message is finished",
        steps: &[Frame(0x01, "'He'"), Frame(0x89, "'?'"), Await(1), Frame(0x80, "'llo'")],
        back: &[Back::Pong("'?'"), Back::Text("'Hello'")],
        rule: BETWEEN,
        ..ECHO
    },
    Case {
        name: "pong-between-fragments",
        what: "A Pong between two fragments, which is not answered",
        steps: &[Frame(0x01, "'He'"), Frame(0x8a, "'?'"), Frame(0x80, "'llo'")],
        back: &[Back::Text("'Hello'")],
        rule: BETWEEN,
        ..ECHO
    },
    Case {
        name: "close-between-fragments",
        what: "A Close in the middle of a message that will never be finished",
        steps: &[Frame(0x01, "'He'"), Frame(0x88, "03 e8")],
        end: End::Closes(&[1000]),
        allowed: &[(End::ClosesAnyhow, "§5.5.1: a Close is answered, typically with the code that it had")],
        rule: BETWEEN,
        ..CASE
    },
    Case {
        name: "continuation-of-nothing",
        what: "A last fragment where no message was begun",
        steps: &[Frame(0x80, "'a'")],
        rule: NOT_OPEN,
        error: Some(ProtocolError::UnexpectedContinuation),
        ..FAILS
    },
    Case {
        name: "middle-of-nothing",
        what: "A middle fragment where no message was begun",
        steps: &[Frame(0x00, "'a'")],
        rule: NOT_OPEN,
        error: Some(ProtocolError::UnexpectedContinuation),
        ..FAILS
    },
    Case {
        name: "text-inside-a-message",
        what: "A whole text frame between two fragments of another message",
        steps: &[Frame(0x01, "'a'"), Frame(0x81, "'b'")],
        rule: INTERLEAVED,
        error: Some(ProtocolError::ExpectedContinuation),
        ..FAILS
    },
    Case {
        name: "binary-inside-a-message",
        what: "A first binary fragment while a text message is open",
        steps: &[Frame(0x01, "'a'"), Frame(0x02, "'b'")],
        rule: INTERLEAVED,
        error: Some(ProtocolError::ExpectedContinuation),
        ..FAILS
    },
    Case {
        name: "fragmented-ping",
        what: "A Ping without FIN",
        steps: &[Frame(0x09, "")],
        rule: CONTROL,
        error: Some(ProtocolError::FragmentedControl),
        ..FAILS
    },
    Case {
        name: "fragmented-close",
        what: "A Close without FIN",
        steps: &[Frame(0x08, "03 e8")],
        rule: CONTROL,
        error: Some(ProtocolError::FragmentedControl),
        ..FAILS
    },
];
