//! Cases of the closing handshake, its codes and its reasons (§5.5.1, §7).

use super::{CASE, CUT, FAILS};
use crate::tools::poke::case::Step::{Bytes, Frame, HalfClose};
use crate::tools::poke::case::{Case, End, Needs};
use crate::ws::close::ProtocolError;

/// A Close that is right, and is answered.
const ANSWERED: Case = Case { allowed: &[ANY_CODE], ..CASE };
/// A Close with a code that must not be sent.
const BAD_CODE: Case = Case { allowed: &[CUT, (End::ClosesAnyhow, OTHER_CODE)], rule: CODE, ..FAILS };

const ANY_CODE: (End, &str) =
    (End::ClosesAnyhow, "§5.5.1: the answer to a Close typically has the code that was received, and need not");
const OTHER_CODE: &str = "§7.4 says which codes must not be sent, and not with which one an endpoint answers them";
const ECHOED: (&str, &str) =
    ("§5.5.1", "a Close is answered with a Close, and then the server ends the TCP connection (§7.1.1)");
const CODE: (&str, &str) = ("§7.4", "1004–1006, 1015, and all outside of 1000–1014 and 3000–4999 must not be sent");
const NOTHING_FOLLOWS: (&str, &str) = ("§5.5.1", "after a Close no more frames are sent, and none is answered");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "close",
        what: "A Close with code 1000",
        steps: &[Bytes("88 82 37 fa 21 3d 34 12")],
        end: End::Closes(&[1000]),
        rule: ECHOED,
        ..ANSWERED
    },
    Case {
        name: "empty-close",
        what: "A Close without a code",
        steps: &[Frame(0x88, "")],
        end: End::Closes(&[1005]),
        rule: ECHOED,
        ..ANSWERED
    },
    Case {
        name: "close-with-a-reason",
        what: "A Close with code 1000 and the reason \"bye\"",
        steps: &[Frame(0x88, "03 e8 'bye'")],
        end: End::Closes(&[1000]),
        rule: ECHOED,
        ..ANSWERED
    },
    Case {
        name: "close-with-the-longest-reason",
        what: "A Close with a reason of 123 bytes",
        steps: &[Frame(0x88, LONGEST)],
        end: End::Closes(&[1000]),
        rule: ECHOED,
        ..ANSWERED
    },
    Case {
        name: "close-4999",
        what: "A Close with code 4999, the last of those for private use",
        steps: &[Frame(0x88, "13 87")],
        end: End::Closes(&[4999]),
        rule: ("§7.4.2", "codes 3000–3999 are for libraries and applications, 4000–4999 for private use"),
        ..ANSWERED
    },
    Case {
        name: "close-of-one-byte",
        what: "A Close with half a code",
        steps: &[Frame(0x88, "03")],
        rule: ("§5.5.1", "the payload of a Close is empty, or begins with a code of two bytes"),
        error: Some(ProtocolError::ClosePayloadOfOneByte),
        ..FAILS
    },
    Case {
        name: "close-0",
        what: "A Close with code 0",
        steps: &[Frame(0x88, "00 00")],
        error: Some(ProtocolError::InvalidCloseCode(0)),
        ..BAD_CODE
    },
    Case {
        name: "close-999",
        what: "A Close with code 999, below the first",
        steps: &[Frame(0x88, "03 e7")],
        error: Some(ProtocolError::InvalidCloseCode(999)),
        ..BAD_CODE
    },
    Case {
        name: "close-1005",
        what: "A Close with code 1005, which stands for \"no code\" and is never sent",
        steps: &[Frame(0x88, "03 ed")],
        error: Some(ProtocolError::InvalidCloseCode(1005)),
        ..BAD_CODE
    },
    Case {
        name: "close-1006",
        what: "A Close with code 1006, which stands for \"no Close came\" and is never sent",
        steps: &[Frame(0x88, "03 ee")],
        error: Some(ProtocolError::InvalidCloseCode(1006)),
        ..BAD_CODE
    },
    Case {
        name: "close-1015",
        what: "A Close with code 1015, which stands for a failure of TLS and is never sent",
        steps: &[Frame(0x88, "03 f7")],
        error: Some(ProtocolError::InvalidCloseCode(1015)),
        ..BAD_CODE
    },
    Case {
        name: "close-2999",
        what: "A Close with code 2999, reserved for the RFC and its extensions",
        steps: &[Frame(0x88, "0b b7")],
        error: Some(ProtocolError::InvalidCloseCode(2999)),
        ..BAD_CODE
    },
    Case {
        name: "close-5000",
        what: "A Close with code 5000, above the last",
        steps: &[Frame(0x88, "13 88")],
        error: Some(ProtocolError::InvalidCloseCode(5000)),
        ..BAD_CODE
    },
    Case {
        name: "close-with-a-bad-reason",
        what: "A Close whose reason is not UTF-8",
        steps: &[Frame(0x88, "03 e8 c3 28")],
        end: End::Closes(&[1007]),
        allowed: &[CUT, (End::Closes(&[1002]), "§8.1 asks to fail the connection and names no code")],
        rule: ("§8.1", "the reason of a Close is UTF-8, like text"),
        error: Some(ProtocolError::CloseReasonNotUtf8),
        ..FAILS
    },
    Case {
        name: "close-too-long",
        what: "A Close with a payload of 126 bytes",
        steps: &[Frame(0x88, TOO_LONG)],
        rule: ("§5.5", "a control frame has at most 125 bytes of payload"),
        error: Some(ProtocolError::ControlTooLong),
        ..FAILS
    },
    Case {
        name: "text-after-close",
        what: "A text message behind a Close",
        needs: Needs::Echo,
        steps: &[Bytes("88 82 M0 03 e8 81 81 M0 'a'")],
        end: End::Closes(&[1000]),
        rule: NOTHING_FOLLOWS,
        ..ANSWERED
    },
    Case {
        name: "ping-after-close",
        what: "A Ping behind a Close",
        steps: &[Bytes("88 82 M0 03 e8 89 80 M0")],
        end: End::Closes(&[1000]),
        rule: NOTHING_FOLLOWS,
        ..ANSWERED
    },
    Case {
        name: "two-closes",
        what: "Two Closes, of which the first counts",
        steps: &[Bytes("88 82 M0 03 e8 88 82 M0 03 e9")],
        end: End::Closes(&[1000]),
        rule: NOTHING_FOLLOWS,
        ..ANSWERED
    },
    Case {
        name: "half-close",
        what: "A message, and then the end of the stream, without a Close",
        steps: &[Frame(0x81, "'a'"), HalfClose],
        end: End::Cut,
        allowed: &[(End::ClosesAnyhow, "§7.1.5: nobody is left to read a Close, but sending one does no harm")],
        rule: ("§7.1.5", "the TCP connection may end without a Close; an application is told 1006 then"),
        ..CASE
    },
];

/// Code 1000 and 123 letters.
const LONGEST: &str = "03 e8 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrs'";
/// And one more.
const TOO_LONG: &str = "03 e8 'abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrst'";
