//! Cases of single frames: header, length, mask, opcode (§5.1–§5.3).

use super::{CUT, ECHO, FAILS, UNFINISHED};
use crate::tools::poke::case::Step::{Await, Bytes, Frame, Letters, Pause, Slowly};
use crate::tools::poke::case::{Back, Case, End};
use crate::ws::close::ProtocolError;

const MASK: (&str, &str) = ("§5.1", "a client masks every frame; a server closes the connection when one is not");
const LENGTH: (&str, &str) = ("§5.2", "lengths to 125 stand in 7 bits, to 65535 in 16 more, above that in 64 more");
const MINIMAL: (&str, &str) = ("§5.2", "a length is written in the shortest of its three forms");
const TOP_BIT: (&str, &str) = ("§5.2", "the most significant bit of a 64-bit length is 0");
const RSV: (&str, &str) =
    ("§5.2", "RSV1, RSV2 and RSV3 are 0 unless an extension that was negotiated gives them a meaning");
const OPCODE: (&str, &str) = ("§5.2", "opcodes 3–7 and 11–15 are reserved; an unknown one fails the connection");
const STREAM: (&str, &str) = ("§5.2", "frames lie in a stream of bytes; where it is cut means nothing");
const TOO_BIG: (End, &str) =
    (End::Closes(&[1009]), "§7.4.1: 1009 is for what is too big to process, and this length is");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "zero-key",
        what: "A masking key of four zeros, which leaves the payload as it is",
        steps: &[Bytes("81 85 M0 'Hello'")],
        back: &[Back::Text("'Hello'")],
        rule: ("§5.3", "the masking key is any 32-bit value, 0 included"),
        ..ECHO
    },
    Case {
        name: "new-key-each-frame",
        what: "Two frames, each with another masking key",
        steps: &[Bytes("81 82 01 02 03 04 69 6b"), Bytes("81 82 ff ff ff ff 97 96")],
        back: &[Back::Text("'hi'"), Back::Text("'hi'")],
        rule: ("§5.3", "a client picks a fresh key for every frame"),
        ..ECHO
    },
    Case {
        name: "binary",
        what: "A binary message of bytes that are no text",
        steps: &[Frame(0x82, "00 ff 80")],
        back: &[Back::Binary("00 ff 80")],
        rule: ("§5.6", "a binary message is any bytes, and comes back as binary"),
        ..ECHO
    },
    Case {
        name: "empty-text",
        what: "A text message of no bytes",
        steps: &[Frame(0x81, "")],
        back: &[Back::Text("")],
        rule: ("§5.2", "a payload may be empty"),
        ..ECHO
    },
    Case {
        name: "length-125",
        what: "125 letters, the most that the 7 bits of the length can say",
        steps: &[Letters(0x81, 125)],
        back: &[Back::Letters(1, 125)],
        rule: LENGTH,
        ..ECHO
    },
    Case {
        name: "length-126",
        what: "126 letters, the first length in 16 bits",
        steps: &[Letters(0x81, 126)],
        back: &[Back::Letters(1, 126)],
        rule: LENGTH,
        ..ECHO
    },
    Case {
        name: "length-65535",
        what: "65535 letters, the last length in 16 bits",
        steps: &[Letters(0x81, 65535)],
        back: &[Back::Letters(1, 65535)],
        rule: LENGTH,
        ..ECHO
    },
    Case {
        name: "length-65536",
        what: "65536 letters, the first length in 64 bits",
        steps: &[Letters(0x82, 65536)],
        back: &[Back::Letters(2, 65536)],
        rule: LENGTH,
        ..ECHO
    },
    Case {
        name: "one-byte-at-a-time",
        what: "The RFC's \"Hello\", each byte in a write of its own",
        steps: &[Slowly("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        back: &[Back::Text("'Hello'")],
        rule: STREAM,
        ..ECHO
    },
    Case {
        name: "half-a-header",
        what: "A frame cut in the middle of its masking key, and the rest later",
        steps: &[Bytes("81 85 37 fa"), Pause, Bytes("21 3d 7f 9f 4d 51 58")],
        back: &[Back::Text("'Hello'")],
        rule: STREAM,
        ..ECHO
    },
    Case {
        name: "two-frames-and-a-half",
        what: "Two frames and half of a third in one write, and the rest later",
        steps: &[Bytes("81 81 M0 'a' 81 81 M0 'b' 81 82 M0 'c'"), Await(2), Bytes("'d'")],
        back: &[Back::Text("'a'"), Back::Text("'b'"), Back::Text("'cd'")],
        rule: STREAM,
        ..ECHO
    },
    Case {
        name: "unmasked-frame",
        what: "A text frame whose mask bit is 0",
        steps: &[Bytes("81 05 'Hello'")],
        rule: MASK,
        error: Some(ProtocolError::Unmasked),
        ..FAILS
    },
    Case {
        name: "unmasked-ping",
        what: "A Ping whose mask bit is 0",
        steps: &[Bytes("89 00")],
        rule: MASK,
        error: Some(ProtocolError::Unmasked),
        ..FAILS
    },
    Case {
        name: "rsv1",
        what: "RSV1 set, as compression would, without having negotiated it",
        steps: &[Bytes("c1 85 M0 'Hello'")],
        rule: RSV,
        error: Some(ProtocolError::ReservedBits),
        ..FAILS
    },
    Case {
        name: "rsv2",
        what: "RSV2 set",
        steps: &[Bytes("a1 85 M0 'Hello'")],
        rule: RSV,
        error: Some(ProtocolError::ReservedBits),
        ..FAILS
    },
    Case {
        name: "rsv3-on-a-ping",
        what: "A Ping with RSV3 set",
        steps: &[Bytes("99 80 M0")],
        rule: RSV,
        error: Some(ProtocolError::ReservedBits),
        ..FAILS
    },
    Case {
        name: "opcode-3",
        what: "A frame with the reserved opcode 3",
        steps: &[Bytes("83 82 M0 'hi'")],
        rule: OPCODE,
        error: Some(ProtocolError::ReservedOpcode(3)),
        ..FAILS
    },
    Case {
        name: "opcode-11",
        what: "A frame with opcode 11, reserved for a control frame yet to come",
        steps: &[Bytes("8b 80 M0")],
        rule: OPCODE,
        error: Some(ProtocolError::ReservedOpcode(11)),
        ..FAILS
    },
    Case {
        name: "http-after-the-upgrade",
        // E is no mask, and a length of 69: all of such a frame is there.
        what: "A second HTTP request where frames are due: G is RSV1 and opcode 7",
        steps: &[Bytes(
            "'GET / HTTP/1.1' 0d 0a 'Host: localhost' 0d 0a 'Accept: text/html,application/xhtml+xml' 0d 0a \
             'Accept-Language: en' 0d 0a 0d 0a",
        )],
        rule: RSV,
        error: Some(ProtocolError::ReservedBits),
        ..FAILS
    },
    Case {
        name: "length-5-in-16-bits",
        what: "Five bytes whose length stands in 16 bits",
        steps: &[Bytes("81 fe 00 05 M0 'Hello'")],
        rule: MINIMAL,
        error: Some(ProtocolError::LengthNotMinimal),
        ..FAILS
    },
    Case {
        name: "length-5-in-64-bits",
        what: "Five bytes whose length stands in 64 bits",
        steps: &[Bytes("81 ff 00 00 00 00 00 00 00 05 M0 'Hello'")],
        rule: MINIMAL,
        error: Some(ProtocolError::LengthNotMinimal),
        ..FAILS
    },
    Case {
        name: "length-top-bit",
        what: "A 64-bit length with its most significant bit set",
        steps: &[Bytes("81 ff 80 00 00 00 00 00 00 00")],
        allowed: &[CUT, TOO_BIG, UNFINISHED],
        rule: TOP_BIT,
        error: Some(ProtocolError::LengthTopBit),
        ..FAILS
    },
    Case {
        name: "length-all-bits",
        what: "A 64-bit length of ones: -1 to a server that reads it as signed",
        steps: &[Bytes("81 ff ff ff ff ff ff ff ff ff")],
        allowed: &[CUT, TOO_BIG, UNFINISHED],
        rule: TOP_BIT,
        error: Some(ProtocolError::LengthTopBit),
        ..FAILS
    },
];
