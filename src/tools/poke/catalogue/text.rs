//! Cases of text, which is UTF-8 and nothing else (§5.6, §8.1).

use super::{CUT, ECHO, FAILS};
use crate::tools::poke::case::Step::{Bytes, Frame};
use crate::tools::poke::case::{Back, Case, End};
use crate::ws::close::ProtocolError;

const UTF8: (&str, &str) = ("§8.1", "text that is not UTF-8 fails the connection; 1007 is the code for it");
const WHOLE: (&str, &str) = ("§5.6", "a text message is UTF-8 as a whole; its fragments may cut a character");
/// A text that is none.
const BAD: Case = Case {
    end: End::Closes(&[1007]),
    allowed: &[CUT, (End::Closes(&[1002]), "§8.1 asks to fail the connection and names no code")],
    rule: UTF8,
    error: Some(ProtocolError::TextNotUtf8),
    ..FAILS
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "utf8",
        what: "κόσμε, five letters in eleven bytes",
        steps: &[Frame(0x81, "ce ba e1 bd b9 cf 83 ce bc ce b5")],
        back: &[Back::Text("ce ba e1 bd b9 cf 83 ce bc ce b5")],
        rule: ("§5.6", "text is UTF-8"),
        ..ECHO
    },
    Case {
        name: "utf8-cut-by-fragments",
        what: "A letter of three bytes in three fragments",
        steps: &[Frame(0x01, "e1"), Frame(0x00, "bd"), Frame(0x80, "b9")],
        back: &[Back::Text("e1 bd b9")],
        rule: WHOLE,
        ..ECHO
    },
    Case {
        name: "utf8-edges",
        what: "The first and the last character of each length, around the surrogates, U+FFFE",
        steps: &[Frame(0x81, "00 7f c2 80 df bf e0 a0 80 ed 9f bf ee 80 80 ef bf be f0 90 80 80 f4 8f bf bf")],
        back: &[Back::Text("00 7f c2 80 df bf e0 a0 80 ed 9f bf ee 80 80 ef bf be f0 90 80 80 f4 8f bf bf")],
        rule: ("§8.1", "whatever RFC 3629 calls UTF-8 is text, noncharacters and NUL included"),
        ..ECHO
    },
    Case {
        name: "bad-utf8-in-binary",
        what: "The same bytes that are no text, in a binary message",
        steps: &[Frame(0x82, "ff fe ed a0")],
        back: &[Back::Binary("ff fe ed a0")],
        rule: ("§5.6", "a binary message is any bytes"),
        ..ECHO
    },
    Case {
        name: "bad-utf8",
        what: "κόσμε, a surrogate half, \"edited\"",
        steps: &[Frame(0x81, "ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 'edited'")],
        ..BAD
    },
    Case { name: "utf8-byte-ff", what: "A byte ff, which UTF-8 never has", steps: &[Frame(0x81, "ff")], ..BAD },
    Case {
        name: "utf8-surrogate",
        what: "A surrogate half, U+D800, by itself",
        steps: &[Frame(0x81, "ed a0 80")],
        ..BAD
    },
    Case {
        name: "utf8-overlong",
        what: "A slash in two bytes where one is enough",
        steps: &[Frame(0x81, "c0 af")],
        ..BAD
    },
    Case {
        name: "utf8-past-the-end",
        what: "U+110000, one past the last character",
        steps: &[Frame(0x81, "f4 90 80 80")],
        ..BAD
    },
    Case {
        name: "utf8-unfinished",
        what: "A message that ends in the middle of a character",
        steps: &[Frame(0x81, "'a' f0 9f 98")],
        ..BAD
    },
    Case {
        name: "bad-utf8-in-a-fragment",
        what: "A good first fragment, and a last one with a byte that cannot follow",
        steps: &[Frame(0x01, "ce ba e1"), Frame(0x80, "'a'")],
        ..BAD
    },
    Case {
        name: "bad-utf8-early",
        what: "A wrong byte at the start of a frame that is never finished",
        steps: &[Bytes("81 e4 M0 'a' ff")],
        allowed: &[
            CUT,
            (End::Closes(&[1002]), "§8.1 asks to fail the connection and names no code"),
            (End::Waits, "§8.1 does not say when; a server may wait for the whole message"),
        ],
        ..BAD
    },
];
