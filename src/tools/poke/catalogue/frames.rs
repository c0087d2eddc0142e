//! Test cases about single frames: header, length, mask, opcode (§5.1–§5.3).

use super::{DISCONNECT, ECHO_CASE, VIOLATION_CASE, WAIT_FOR_WHOLE_FRAME};
use crate::tools::poke::case::Step::{Await, Bytes, BytesSlowly, Frame, Letters, Pause};
use crate::tools::poke::case::{Case, End, Reply};
use crate::ws::close::ProtocolError;

const MASK_RULE: (&str, &str) = ("§5.1", "a client masks every frame; a server closes the connection when one is not");
const LENGTH_RULE: (&str, &str) =
    ("§5.2", "lengths up to 125 use 7 bits, up to 65535 another 16, above that another 64");
const SHORTEST_LENGTH_RULE: (&str, &str) = ("§5.2", "a length is written in the shortest of its three forms");
const TOP_BIT_RULE: (&str, &str) = ("§5.2", "the most significant bit of a 64-bit length is 0");
const RSV_RULE: (&str, &str) = ("§5.2", "RSV1, RSV2 and RSV3 are 0 unless a negotiated extension defines them");
const OPCODE_RULE: (&str, &str) = ("§5.2", "opcodes 3–7 and 11–15 are reserved; an unknown one fails the connection");
const STREAM_RULE: (&str, &str) = ("§5.2", "frames are a stream of bytes; where TCP cuts it has no meaning");
const TOO_BIG: (End, &str) =
    (End::Closes(&[1009]), "§7.4.1: 1009 is for a message that is too big to process, as this one is");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "zero-key",
        summary: "A masking key of four zeros, which does not change the payload",
        steps: &[Bytes("81 85 M0 'Hello'")],
        replies: &[Reply::Text("'Hello'")],
        rule: ("§5.3", "the masking key is any 32-bit value, 0 included"),
        ..ECHO_CASE
    },
    Case {
        name: "new-key-each-frame",
        summary: "Two frames with different masking keys",
        steps: &[Bytes("81 82 01 02 03 04 69 6b"), Bytes("81 82 ff ff ff ff 97 96")],
        replies: &[Reply::Text("'hi'"), Reply::Text("'hi'")],
        rule: ("§5.3", "a client uses a fresh key for every frame"),
        ..ECHO_CASE
    },
    Case {
        name: "binary",
        summary: "A binary message of bytes that are not text",
        steps: &[Frame(0x82, "00 ff 80")],
        replies: &[Reply::Binary("00 ff 80")],
        rule: ("§5.6", "a binary message may contain any bytes, and is echoed as binary"),
        ..ECHO_CASE
    },
    Case {
        name: "empty-text",
        summary: "A text message of no bytes",
        steps: &[Frame(0x81, "")],
        replies: &[Reply::Text("")],
        rule: ("§5.2", "a payload may be empty"),
        ..ECHO_CASE
    },
    Case {
        name: "length-125",
        summary: "125 letters, the longest length in 7 bits",
        steps: &[Letters(0x81, 125)],
        replies: &[Reply::Letters(1, 125)],
        rule: LENGTH_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "length-126",
        summary: "126 letters, the first length in 16 bits",
        steps: &[Letters(0x81, 126)],
        replies: &[Reply::Letters(1, 126)],
        rule: LENGTH_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "length-65535",
        summary: "65535 letters, the longest length in 16 bits",
        steps: &[Letters(0x81, 65535)],
        replies: &[Reply::Letters(1, 65535)],
        rule: LENGTH_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "length-65536",
        summary: "65536 letters, the first length in 64 bits",
        steps: &[Letters(0x82, 65536)],
        replies: &[Reply::Letters(2, 65536)],
        rule: LENGTH_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "one-byte-at-a-time",
        summary: "The RFC's \"Hello\", one byte per write",
        steps: &[BytesSlowly("81 85 37 fa 21 3d 7f 9f 4d 51 58")],
        replies: &[Reply::Text("'Hello'")],
        rule: STREAM_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "half-a-header",
        summary: "A frame cut inside its masking key; the rest follows after a pause",
        steps: &[Bytes("81 85 37 fa"), Pause, Bytes("21 3d 7f 9f 4d 51 58")],
        replies: &[Reply::Text("'Hello'")],
        rule: STREAM_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "two-frames-and-a-half",
        summary: "Two frames and half of a third in one write; the rest follows later",
        steps: &[Bytes("81 81 M0 'a' 81 81 M0 'b' 81 82 M0 'c'"), Await(2), Bytes("'d'")],
        replies: &[Reply::Text("'a'"), Reply::Text("'b'"), Reply::Text("'cd'")],
        rule: STREAM_RULE,
        ..ECHO_CASE
    },
    Case {
        name: "unmasked-frame",
        summary: "A text frame whose mask bit is 0",
        steps: &[Bytes("81 05 'Hello'")],
        rule: MASK_RULE,
        error: Some(ProtocolError::Unmasked),
        ..VIOLATION_CASE
    },
    Case {
        name: "unmasked-ping",
        summary: "A Ping whose mask bit is 0",
        steps: &[Bytes("89 00")],
        rule: MASK_RULE,
        error: Some(ProtocolError::Unmasked),
        ..VIOLATION_CASE
    },
    Case {
        name: "rsv1",
        summary: "RSV1 set, as for compression, which was not negotiated",
        steps: &[Bytes("c1 85 M0 'Hello'")],
        rule: RSV_RULE,
        error: Some(ProtocolError::ReservedBits),
        ..VIOLATION_CASE
    },
    Case {
        name: "rsv2",
        summary: "RSV2 set",
        steps: &[Bytes("a1 85 M0 'Hello'")],
        rule: RSV_RULE,
        error: Some(ProtocolError::ReservedBits),
        ..VIOLATION_CASE
    },
    Case {
        name: "rsv3-on-a-ping",
        summary: "A Ping with RSV3 set",
        steps: &[Bytes("99 80 M0")],
        rule: RSV_RULE,
        error: Some(ProtocolError::ReservedBits),
        ..VIOLATION_CASE
    },
    Case {
        name: "opcode-3",
        summary: "A frame with the reserved opcode 3",
        steps: &[Bytes("83 82 M0 'hi'")],
        rule: OPCODE_RULE,
        error: Some(ProtocolError::ReservedOpcode(3)),
        ..VIOLATION_CASE
    },
    Case {
        name: "opcode-11",
        summary: "A frame with opcode 11, reserved for a future control frame",
        steps: &[Bytes("8b 80 M0")],
        rule: OPCODE_RULE,
        error: Some(ProtocolError::ReservedOpcode(11)),
        ..VIOLATION_CASE
    },
    Case {
        name: "http-after-the-upgrade",
        // A server that parses the HTTP request as a frame takes the request's second byte, `E` (0x45), for a payload
        // length of 69. Send more than 69 bytes, so that no server waits for the rest of the payload.
        summary: "A second HTTP request after the upgrade: its G is RSV1 and opcode 7",
        steps: &[Bytes(
            "'GET / HTTP/1.1' 0d 0a 'Host: localhost' 0d 0a 'Accept: text/html,application/xhtml+xml' 0d 0a \
             'Accept-Language: en' 0d 0a 0d 0a",
        )],
        rule: RSV_RULE,
        error: Some(ProtocolError::ReservedBits),
        ..VIOLATION_CASE
    },
    Case {
        name: "length-5-in-16-bits",
        summary: "Five bytes with their length in 16 bits",
        steps: &[Bytes("81 fe 00 05 M0 'Hello'")],
        rule: SHORTEST_LENGTH_RULE,
        error: Some(ProtocolError::LengthNotMinimal),
        ..VIOLATION_CASE
    },
    Case {
        name: "length-5-in-64-bits",
        summary: "Five bytes with their length in 64 bits",
        steps: &[Bytes("81 ff 00 00 00 00 00 00 00 05 M0 'Hello'")],
        rule: SHORTEST_LENGTH_RULE,
        error: Some(ProtocolError::LengthNotMinimal),
        ..VIOLATION_CASE
    },
    Case {
        name: "length-top-bit",
        summary: "A 64-bit length with its most significant bit set",
        steps: &[Bytes("81 ff 80 00 00 00 00 00 00 00")],
        allowed: &[DISCONNECT, TOO_BIG, WAIT_FOR_WHOLE_FRAME],
        rule: TOP_BIT_RULE,
        error: Some(ProtocolError::LengthTopBit),
        ..VIOLATION_CASE
    },
    Case {
        name: "length-all-bits",
        summary: "A 64-bit length of all ones, which is -1 as a signed number",
        steps: &[Bytes("81 ff ff ff ff ff ff ff ff ff")],
        allowed: &[DISCONNECT, TOO_BIG, WAIT_FOR_WHOLE_FRAME],
        rule: TOP_BIT_RULE,
        error: Some(ProtocolError::LengthTopBit),
        ..VIOLATION_CASE
    },
];
