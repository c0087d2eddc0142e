//! The base framing protocol (§5.2): parses frame headers and writes server frames. Checks the rules that concern a
//! single header. `protocol.rs` checks the order of fragments and the server's limits (§10.4).
//!
//! ```text
//!  0               1               2               3
//!  0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! |F|R|R|R| opcode|M| payload len | extended payload length,      |
//! |I|S|S|S|  (4)  |A|     (7)     | if payload len is             |
//! |N|V|V|V|       |S|             | 126: 16 bits, 127: 64 bits    |
//! | |1|2|3|       |K|             |                               |
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! | masking_key, 32 bits, if MASK is 1                            |
//! +---------------------------------------------------------------+
//! ```

use super::close::ProtocolError::{self, *};

const FIN_BIT: u8 = 0x80;
const RSV_BITS: u8 = 0x70;
const OPCODE_MASK: u8 = 0x0f;
const MASK_BIT: u8 = 0x80;
const LENGTH_MASK: u8 = 0x7f;
const LENGTH_16: u8 = 126; // value of the 7-bit length field if a 16-bit length follows
const LENGTH_64: u8 = 127; // value of the 7-bit length field if a 64-bit length follows

pub const MAX_HEADER_SIZE: usize = 2 + 8 + 4; // two fixed bytes, an 8-byte length, a 4-byte masking key
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// The endpoint that sent a frame. §5.1: a client must mask its frames, and a server must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    pub fn from_bits(bits: u8) -> Result<Opcode, ProtocolError> {
        use Opcode::*;
        let opcode = [Continuation, Text, Binary, Close, Ping, Pong].into_iter().find(|opcode| *opcode as u8 == bits);
        // §5.2: on an unknown opcode, "MUST _Fail the WebSocket Connection_". Only extensions may add opcodes (§5.8).
        opcode.ok_or(ReservedOpcode(bits))
    }

    pub fn is_control(self) -> bool {
        // §5.5: "Control frames are identified by opcodes where the most significant bit of the opcode is 1."
        self as u8 & 0x8 != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub fin: bool,
    pub opcode: Opcode,
    pub is_compressed: bool, // whether RSV1 is set (RFC 7692 §6)
    pub payload_len: u64,
    pub masking_key: Option<[u8; 4]>, // `None` if the mask bit is 0 or the masking key is incomplete
    pub size: usize,                  // size of the header in bytes, including the masking key
}

impl FrameHeader {
    /// Parses the header at the start of `bytes`, sent by `role`. Returns `Ok(None)` if the length field is incomplete.
    pub fn parse(role: Role, bytes: &[u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        FrameHeader::parse_with_deflate(role, false, bytes)
    }

    /// Like `parse`, but accepts RSV1 if the endpoints have negotiated permessage-deflate (`deflates`).
    pub fn parse_with_deflate(role: Role, deflates: bool, bytes: &[u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        // §5.2: the RSV bits "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
        let is_compressed = first & RSV_BITS != 0;
        if is_compressed {
            ReservedBits.err_unless(deflates)?;
            super::deflate::check_reserved_bits(first)?;
        }
        let opcode = Opcode::from_bits(first & OPCODE_MASK)?;
        let fin = first & FIN_BIT != 0;
        // §5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
        FragmentedControl.err_unless(fin || !opcode.is_control())?;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let short_len = second & LENGTH_MASK;
        // A control frame with a 7-bit length of 126 or 127 is invalid, so do not wait for the extended length.
        ControlTooLong.err_unless(!opcode.is_control() || usize::from(short_len) <= MAX_CONTROL_PAYLOAD)?;
        let is_masked = second & MASK_BIT != 0;
        // §5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        Unmasked.err_unless(is_masked || role == Role::Server)?;
        let (payload_len, key_at) = match (short_len, &bytes[2..]) {
            // §5.2: "the minimal number of bytes MUST be used": a 16-bit length must exceed 125, a 64-bit one 65,535.
            (LENGTH_16, [0, 0..=125, ..]) | (LENGTH_64, [0, 0, 0, 0, 0, 0, ..]) => return Err(LengthNotMinimal),
            // §5.2: in a 64-bit length, "the most significant bit MUST be 0".
            (LENGTH_64, [0x80..=0xff, ..]) => return Err(LengthTopBit),
            (LENGTH_64, &[a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10),
            (LENGTH_16, &[high, low, ..]) => (u16::from_be_bytes([high, low]).into(), 4),
            (LENGTH_16 | LENGTH_64, _) => return Ok(None),
            _ => (short_len.into(), 2),
        };
        let (masking_key, key_size) = if is_masked { (bytes[key_at..].first_chunk().copied(), 4) } else { (None, 0) };
        Ok(Some(FrameHeader { fin, opcode, is_compressed, payload_len, masking_key, size: key_at + key_size }))
    }
}

/// Appends one complete server frame to `out` (§6.1): unfragmented, unmasked, with the shortest length encoding.
pub fn append(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= MAX_CONTROL_PAYLOAD, "§5.5");
    out.reserve(MAX_HEADER_SIZE + payload.len());
    out.push(FIN_BIT | opcode as u8);
    // §5.1: "A server MUST NOT mask any frames that it sends to the client." The mask bit is 0 in all three branches.
    match payload.len() {
        len @ 0..=125 => out.push(len as u8),
        len @ 126..=0xffff => out.extend_from_slice(&[LENGTH_16, (len >> 8) as u8, len as u8]),
        len => out.extend([LENGTH_64].into_iter().chain((len as u64).to_be_bytes())),
    }
    out.extend_from_slice(payload);
}

/// Returns the size in bytes of the first frame. `frames` must start with the header of a server frame.
pub fn server_frame_len(frames: &[u8]) -> usize {
    let header = FrameHeader::parse_with_deflate(Role::Server, true, frames).ok().flatten();
    debug_assert!(header.is_some(), "not a frame that `append` wrote: {frames:02x?}");
    header.map_or(frames.len(), |header| header.size + header.payload_len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the constants with the module doc's diagram, in which a field of n bits is 2n - 1 characters wide.
    #[test]
    fn picture_matches_the_code() {
        let doc = crate::pictures::module_doc(include_str!("frame.rs"));
        let boxes: Vec<&str> = doc.lines().find(|line| line.starts_with("|F|R|R|R|")).unwrap().split('|').collect();
        let (mut bit, mut fields) = (0, Vec::new());
        for name in &boxes[1..boxes.len() - 1] {
            let width = name.len().div_ceil(2);
            fields.push(bit..bit + width);
            bit += width;
        }
        let mask = |bits: std::ops::Range<usize>| bits.fold(0u8, |mask, bit| mask | 0x80 >> (bit % 8));
        let drawn: Vec<u8> = fields[..6].iter().cloned().map(mask).collect();
        assert_eq!(
            drawn,
            [FIN_BIT, 0x40, 0x20, 0x10, OPCODE_MASK, MASK_BIT],
            "the first byte, and the mask bit of the second"
        );
        assert_eq!((drawn[1] | drawn[2] | drawn[3], mask(fields[6].clone())), (RSV_BITS, LENGTH_MASK));
        assert_eq!((fields[4].end, fields[6].end, fields[7].end), (8, 16, 32), "bytes end where boxes end");
        for form in [format!("{LENGTH_16}: 16 bits"), format!("{LENGTH_64}: 64 bits"), "masking_key, 32 bits".into()] {
            assert!(doc.contains(&form), "{form}");
        }
        assert_eq!(MAX_HEADER_SIZE * 8, 16 + 64 + 32);
    }

    type HeaderResult = Result<Option<(bool, Opcode, u64)>, ProtocolError>;

    /// Frame headers and their expected results. The headers omit the masking key, because no rule depends on it.
    const HEADERS: &[(&[u8], HeaderResult)] = &[
        (&[], Ok(None)),
        (&[0x81], Ok(None)),
        (&[0x81, 0x80], Ok(Some((true, Opcode::Text, 0)))),
        (&[0x81, 0x85], Ok(Some((true, Opcode::Text, 5)))),
        (&[0x01, 0x85], Ok(Some((false, Opcode::Text, 5)))),
        (&[0x82, 0xfd], Ok(Some((true, Opcode::Binary, 125)))),
        (&[0x00, 0x80], Ok(Some((false, Opcode::Continuation, 0)))),
        (&[0x88, 0xfd], Ok(Some((true, Opcode::Close, 125)))),
        (&[0x89, 0x80], Ok(Some((true, Opcode::Ping, 0)))),
        (&[0x8a, 0x80], Ok(Some((true, Opcode::Pong, 0)))),
        // An invalid RSV bit takes precedence over every other error in the header.
        (&[0xc1], Err(ReservedBits)),
        (&[0xa1], Err(ReservedBits)),
        (&[0x91], Err(ReservedBits)),
        (&[0xf3, 0x7f], Err(ReservedBits)),
        (&[0x83], Err(ReservedOpcode(3))),
        (&[0x07], Err(ReservedOpcode(7))),
        (&[0x8b], Err(ReservedOpcode(11))),
        (&[0x0f, 0x7f], Err(ReservedOpcode(15))),
        (&[0x08], Err(FragmentedControl)),
        (&[0x09], Err(FragmentedControl)),
        (&[0x0a, 0x7f], Err(FragmentedControl)),
        (&[0x88, 0xfe], Err(ControlTooLong)),
        (&[0x89, 0xff], Err(ControlTooLong)),
        (&[0x8a, 0x7e], Err(ControlTooLong)),
        // An unmasked client frame fails at its second byte, before any extended length arrives.
        (&[0x81, 0x05], Err(Unmasked)),
        (&[0x81, 0x7f], Err(Unmasked)),
        (&[0x81, 0x7e, 0x00, 0x05], Err(Unmasked)),
        (&[0x81, 0xfe, 0x00], Ok(None)),
        (&[0x81, 0xfe, 0x00, 0x7d], Err(LengthNotMinimal)),
        (&[0x81, 0xfe, 0x00, 0x7e], Ok(Some((true, Opcode::Text, 126)))),
        (&[0x81, 0xfe, 0xff, 0xff], Ok(Some((true, Opcode::Text, 65535)))),
        // The parser rejects a 64-bit length as soon as the bytes received so far prove it invalid.
        (&[0x81, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00], Ok(None)),
        (&[0x81, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00], Err(LengthNotMinimal)),
        (&[0x81, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00], Ok(Some((true, Opcode::Text, 65536)))),
        (&[0x81, 0xff, 0x80], Err(LengthTopBit)),
        (&[0x81, 0xff, 0x7f], Ok(None)),
        (
            &[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            Ok(Some((true, Opcode::Text, i64::MAX as u64))),
        ),
    ];

    #[test]
    fn rfc_5_2_headers_and_results() {
        for (bytes, expected) in HEADERS {
            let parsed =
                FrameHeader::parse(Role::Client, bytes).map(|header| header.map(|h| (h.fin, h.opcode, h.payload_len)));
            assert_eq!(parsed, *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn rfc_5_2_every_prefix_of_a_header_agrees_with_the_whole() {
        for (bytes, whole) in HEADERS {
            for cut in 0..bytes.len() {
                match FrameHeader::parse(Role::Client, &bytes[..cut]) {
                    Ok(None) => {}
                    Err(early) => assert_eq!(Err(early), *whole, "{bytes:02x?} cut at {cut}"),
                    Ok(Some(header)) => assert!(whole.is_ok() && header.masking_key.is_none(), "{bytes:02x?}"),
                }
            }
        }
    }

    #[test]
    fn rfc_5_2_the_masking_key_follows_the_length() {
        for (length, size) in [(&[0x85][..], 6), (&[0xfe, 1, 0], 8), (&[0xff, 0, 0, 0, 0, 0, 1, 0, 0], 14)] {
            let bytes = [&[0x81], length, &[1, 2, 3, 4]].concat();
            let header = FrameHeader::parse(Role::Client, &bytes).unwrap().unwrap();
            assert_eq!((header.masking_key, header.size), (Some([1, 2, 3, 4]), size));
            let cut = FrameHeader::parse(Role::Client, &bytes[..size - 1]).unwrap().unwrap();
            assert_eq!(cut.masking_key, None);
        }
    }

    #[test]
    fn rfc_6_1_server_frames() {
        let cases: [(usize, &[u8]); 6] = [
            (0, &[0x82, 0]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65535, &[0x82, 126, 0xff, 0xff]),
            (65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (70000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ];
        for (len, header) in cases {
            let mut out = Vec::new();
            append(&mut out, Opcode::Binary, &vec![7; len]);
            assert_eq!(&out[..header.len()], header);
            assert_eq!(out.len(), header.len() + len);
            assert_eq!(server_frame_len(&out), out.len());
        }
    }
}
