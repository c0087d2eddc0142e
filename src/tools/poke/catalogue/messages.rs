//! Test cases about messages: fragmentation, control frames between fragments (§5.4), UTF-8 in text (§5.6, §8.1).

use super::{DEFAULT_CASE, DISCONNECT, ECHO_CASE, VIOLATION_CASE};
use crate::tools::poke::case::Step::{Await, Bytes, Frame};
use crate::tools::poke::case::{Case, End, Reply};
use crate::ws::close::ProtocolError;

const FRAGMENTATION_RULE: (&str, &str) =
    ("§5.4", "the first frame has the opcode and no FIN, the others have opcode 0, the last one has FIN");
const CONTROL_BETWEEN_FRAGMENTS_RULE: (&str, &str) =
    ("§5.4", "control frames may come between the fragments of a message");
const CONTINUATION_RULE: (&str, &str) = ("§5.4", "a continuation frame needs an unfinished message");
const NO_INTERLEAVING_RULE: (&str, &str) = ("§5.4", "a message is finished before the next one starts");
const CONTROL_FIN_RULE: (&str, &str) = ("§5.5", "control frames must not be fragmented");

pub(super) const FRAGMENT_CASES: &[Case] = &[
    Case {
        name: "fragmented",
        summary: "\"Hello\" in two fragments",
        steps: &[Frame(0x01, "'He'"), Frame(0x80, "'llo'")],
        replies: &[Reply::Text("'Hello'")],
        rule: FRAGMENTATION_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "fragmented-binary",
        summary: "A binary message in three fragments",
        steps: &[Frame(0x02, "ff"), Frame(0x00, "fe"), Frame(0x80, "fd")],
        replies: &[Reply::Binary("ff fe fd")],
        rule: FRAGMENTATION_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "two-fragmented-messages",
        summary: "Two messages of two fragments each, in one write",
        steps: &[Bytes("01 81 M0 'a' 80 81 M0 'b' 01 81 M0 'c' 80 81 M0 'd'")],
        replies: &[Reply::Text("'ab'"), Reply::Text("'cd'")],
        rule: FRAGMENTATION_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "empty-fragments",
        summary: "A message of three empty fragments",
        steps: &[Frame(0x01, ""), Frame(0x00, ""), Frame(0x80, "")],
        replies: &[Reply::Text("")],
        rule: FRAGMENTATION_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "ping-between-fragments",
        summary: "A Ping between two fragments; its Pong comes before the message is finished",
        steps: &[Frame(0x01, "'He'"), Frame(0x89, "'?'"), Await(1), Frame(0x80, "'llo'")],
        replies: &[Reply::Pong("'?'"), Reply::Text("'Hello'")],
        rule: CONTROL_BETWEEN_FRAGMENTS_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "pong-between-fragments",
        summary: "A Pong between two fragments; it gets no reply",
        steps: &[Frame(0x01, "'He'"), Frame(0x8a, "'?'"), Frame(0x80, "'llo'")],
        replies: &[Reply::Text("'Hello'")],
        rule: CONTROL_BETWEEN_FRAGMENTS_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "close-between-fragments",
        summary: "A Close in the middle of a message, which stays unfinished",
        steps: &[Frame(0x01, "'He'"), Frame(0x88, "03 e8")],
        end: End::Closes(&[1000]),
        allowed: &[(
            End::ClosesWithAnyCode,
            "§5.5.1: the reply to a Close \"typically echos the status code\", but need not",
        )],
        rule: CONTROL_BETWEEN_FRAGMENTS_RULE,
        ..DEFAULT_CASE
    },
    Case {
        name: "continuation-of-nothing",
        summary: "A last fragment without a first one",
        steps: &[Frame(0x80, "'a'")],
        rule: CONTINUATION_RULE,
        error: Some(ProtocolError::UnexpectedContinuation),
        ..VIOLATION_CASE
    },
    Case {
        name: "middle-of-nothing",
        summary: "A middle fragment without a first one",
        steps: &[Frame(0x00, "'a'")],
        rule: CONTINUATION_RULE,
        error: Some(ProtocolError::UnexpectedContinuation),
        ..VIOLATION_CASE
    },
    Case {
        name: "text-inside-a-message",
        summary: "A whole text frame between two fragments of another message",
        steps: &[Frame(0x01, "'a'"), Frame(0x81, "'b'")],
        rule: NO_INTERLEAVING_RULE,
        error: Some(ProtocolError::ExpectedContinuation),
        ..VIOLATION_CASE
    },
    Case {
        name: "binary-inside-a-message",
        summary: "A first binary fragment while a text message is unfinished",
        steps: &[Frame(0x01, "'a'"), Frame(0x02, "'b'")],
        rule: NO_INTERLEAVING_RULE,
        error: Some(ProtocolError::ExpectedContinuation),
        ..VIOLATION_CASE
    },
    Case {
        name: "fragmented-ping",
        summary: "A Ping without FIN",
        steps: &[Frame(0x09, "")],
        rule: CONTROL_FIN_RULE,
        error: Some(ProtocolError::FragmentedControl),
        ..VIOLATION_CASE
    },
    Case {
        name: "fragmented-close",
        summary: "A Close without FIN",
        steps: &[Frame(0x08, "03 e8")],
        rule: CONTROL_FIN_RULE,
        error: Some(ProtocolError::FragmentedControl),
        ..VIOLATION_CASE
    },
];

const UTF8_RULE: (&str, &str) = ("§8.1", "text that is not UTF-8 fails the connection; 1007 is the code for it");
const UTF8_ACROSS_FRAGMENTS_RULE: (&str, &str) =
    ("§5.6", "a text message is UTF-8 as a whole; a fragment may end inside a character");
const NOT_UTF8_CASE: Case = Case {
    end: End::Closes(&[1007]),
    allowed: &[DISCONNECT, (End::Closes(&[1002]), "§8.1 says to fail the connection, but names no code")],
    rule: UTF8_RULE,
    error: Some(ProtocolError::TextNotUtf8),
    ..VIOLATION_CASE
};

pub(super) const TEXT_CASES: &[Case] = &[
    Case {
        name: "utf8",
        summary: "κόσμε, five characters in eleven bytes",
        steps: &[Frame(0x81, "ce ba e1 bd b9 cf 83 ce bc ce b5")],
        replies: &[Reply::Text("ce ba e1 bd b9 cf 83 ce bc ce b5")],
        rule: ("§5.6", "text is UTF-8"),
        ..ECHO_CASE
    },
    Case {
        name: "utf8-cut-by-fragments",
        summary: "A character of three bytes in three fragments",
        steps: &[Frame(0x01, "e1"), Frame(0x00, "bd"), Frame(0x80, "b9")],
        replies: &[Reply::Text("e1 bd b9")],
        rule: UTF8_ACROSS_FRAGMENTS_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "utf8-edges",
        summary: "Characters at the edges of each length, around the surrogates, and U+FFFE",
        steps: &[Frame(0x81, "00 7f c2 80 df bf e0 a0 80 ed 9f bf ee 80 80 ef bf be f0 90 80 80 f4 8f bf bf")],
        replies: &[Reply::Text("00 7f c2 80 df bf e0 a0 80 ed 9f bf ee 80 80 ef bf be f0 90 80 80 f4 8f bf bf")],
        rule: ("§8.1", "everything that RFC 3629 defines as UTF-8 is text, including noncharacters and NUL"),
        ..ECHO_CASE
    },
    Case {
        name: "bad-utf8-in-binary",
        summary: "Bytes that are not UTF-8, in a binary message",
        steps: &[Frame(0x82, "ff fe ed a0")],
        replies: &[Reply::Binary("ff fe ed a0")],
        rule: ("§5.6", "a binary message may contain any bytes"),
        ..ECHO_CASE
    },
    Case {
        name: "bad-utf8",
        summary: "κόσμε, a lone surrogate, \"edited\"",
        steps: &[Frame(0x81, "ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 'edited'")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "utf8-byte-ff",
        summary: "A byte ff, which never occurs in UTF-8",
        steps: &[Frame(0x81, "ff")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "utf8-surrogate",
        summary: "A lone surrogate, U+D800",
        steps: &[Frame(0x81, "ed a0 80")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "utf8-overlong",
        summary: "A slash encoded in two bytes instead of one",
        steps: &[Frame(0x81, "c0 af")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "utf8-past-the-end",
        summary: "U+110000, one after the last code point",
        steps: &[Frame(0x81, "f4 90 80 80")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "utf8-unfinished",
        summary: "A message that ends inside a character",
        steps: &[Frame(0x81, "'a' f0 9f 98")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "bad-utf8-in-a-fragment",
        summary: "A valid first fragment, then one whose first byte cannot follow it",
        steps: &[Frame(0x01, "ce ba e1"), Frame(0x80, "'a'")],
        ..NOT_UTF8_CASE
    },
    Case {
        name: "bad-utf8-early",
        summary: "An invalid byte at the start of a frame that stays unfinished",
        steps: &[Bytes("81 e4 M0 'a' ff")],
        allowed: &[
            DISCONNECT,
            (End::Closes(&[1002]), "§8.1 says to fail the connection, but names no code"),
            (End::Waits, "§8.1 does not say when; a server may wait for the whole message"),
        ],
        ..NOT_UTF8_CASE
    },
];
