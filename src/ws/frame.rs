//! §5.2, the base framing protocol: the header of a frame, parsed and encoded.
//!
//! ```text
//!  0               1               2               3
//!  0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! |F|R|R|R| opcode|M| length      | longer length, if `length` is |
//! |I|S|S|S|  (4)  |A|     (7)     | 126: 16 bits                  |
//! |N|V|V|V|       |S|             | 127: 64 bits                  |
//! | |1|2|3|       |K|             |                               |
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! | masking_key, 32 bits, if MASK is 1                            |
//! +---------------------------------------------------------------+
//! ```
//!
//! Here are all the rules that a header can break on its own. Those that depend on what came before (fragment order,
//! limits) are in `protocol.rs`. This file never sees a payload.
//!
//! [`FrameHeader::parse`] is the server's view, to whom only a client sends. [`FrameHeader::parse_from`] reads either
//! side's frames, for whoever watches both.
//!
//! The subtle thing: a header may arrive byte by byte. The rules are tried in one fixed order, each as soon as the
//! bytes it needs are there, and one that cannot be judged yet holds up those behind it. So the verdict is the same
//! wherever the stream was cut, and it falls before a single byte of payload is accepted.

use super::close::ProtocolError;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASK: u8 = 0x80;
const LENGTH: u8 = 0x7f;
/// The values of the seven length bits that announce a longer form.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// The longest header: two bytes, a 64-bit length, a masking key.
pub const MAX_HEADER: usize = 2 + 8 + 4;

/// Which side sends: §5.1 has other rules for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It masks every frame.
    Client,
    /// It masks none.
    Server,
}

/// What a frame is for (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// The next fragment of an open message.
    Continuation = 0x0,
    /// A message of UTF-8 text, or its first fragment.
    Text = 0x1,
    /// A message of bytes, or its first fragment.
    Binary = 0x2,
    /// §5.5.1
    Close = 0x8,
    /// §5.5.2
    Ping = 0x9,
    /// §5.5.3
    Pong = 0xa,
}

impl Opcode {
    /// Reads the four opcode bits.
    ///
    /// # Errors
    /// §5.2: "If an unknown opcode is received, the receiving endpoint MUST _Fail the WebSocket Connection_." None is
    /// given a meaning by an extension (§5.8), so all the others are unknown.
    ///
    /// ```
    /// use wirechat::ws::{close::ProtocolError, frame::Opcode};
    /// assert_eq!(Opcode::from_bits(0x9), Ok(Opcode::Ping));
    /// assert_eq!(Opcode::from_bits(0x3), Err(ProtocolError::ReservedOpcode(3)));
    /// ```
    pub fn from_bits(bits: u8) -> Result<Opcode, ProtocolError> {
        Ok(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            reserved => return Err(ProtocolError::ReservedOpcode(reserved)),
        })
    }

    /// Its name in capitals, as in the prose of the RFC, but short for a continuation.
    pub fn name(self) -> &'static str {
        match self {
            Opcode::Continuation => "CONT",
            Opcode::Text => "TEXT",
            Opcode::Binary => "BINARY",
            Opcode::Close => "CLOSE",
            Opcode::Ping => "PING",
            Opcode::Pong => "PONG",
        }
    }

    /// §5.5: "Control frames are identified by opcodes where the most significant bit of the opcode is 1."
    ///
    /// ```
    /// use wirechat::ws::frame::Opcode;
    /// assert!(Opcode::Close.is_control() && !Opcode::Continuation.is_control());
    /// ```
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// This is the last fragment of its message.
    pub fin: bool,
    /// What the frame is for.
    pub opcode: Opcode,
    /// How many bytes of payload follow the header.
    pub payload_len: u64,
    /// What the payload is masked with. Of a client's frame `None` only as long as not all of its four bytes have come:
    /// every rule can be judged without it, so none waits for it. Of a server's frame `None`, unless it is wrong.
    pub masking_key: Option<[u8; 4]>,
    /// How many bytes the header takes in all, the masking key included.
    pub size: usize,
}

impl FrameHeader {
    /// Parses the header of a client's frame at the start of `bytes`. `Ok(None)`: not enough bytes yet, and nothing wrong
    /// so far.
    ///
    /// # Errors
    /// The first broken rule, in this order: RSV, opcode, FIN and length of a control frame, mask bit, minimal
    /// length, top bit.
    ///
    /// ```
    /// use wirechat::ws::{close::ProtocolError, frame::{FrameHeader, Opcode}};
    /// let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d]; // §5.7: a masked text frame of five bytes
    /// let header = FrameHeader::parse(&hello).unwrap().unwrap();
    /// assert_eq!((header.fin, header.opcode, header.payload_len), (true, Opcode::Text, 5));
    /// assert_eq!((header.masking_key, header.size), (Some([0x37, 0xfa, 0x21, 0x3d]), 6));
    ///
    /// assert_eq!(FrameHeader::parse(&hello[..1]), Ok(None)); // not yet
    /// assert_eq!(FrameHeader::parse(&[0x81, 0x05]), Err(ProtocolError::Unmasked));
    /// ```
    pub fn parse(bytes: &[u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        FrameHeader::parse_from(Role::Client, bytes)
    }

    /// Parses the header of a frame of either side. A mask on a server's frame, which breaks §5.1, is read as a mask:
    /// it is for a client to refuse it, and this is no client.
    ///
    /// # Errors
    /// As [`FrameHeader::parse`]; of a server, not for the mask bit.
    pub fn parse_from(sender: Role, bytes: &[u8]) -> Result<Option<FrameHeader>, ProtocolError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        // §5.2: "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
        if first & RSV != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let opcode = Opcode::from_bits(first & OPCODE)?;
        let fin = first & FIN != 0;
        // §5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
        if opcode.is_control() && !fin {
            return Err(ProtocolError::FragmentedControl);
        }
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if opcode.is_control() && second & LENGTH > 125 {
            return Err(ProtocolError::ControlTooLong);
        }
        // §5.1: "a server MUST close a connection upon receiving a frame that is not masked"
        let is_masked = second & MASK != 0;
        if sender == Role::Client && !is_masked {
            return Err(ProtocolError::Unmasked);
        }
        let Some((payload_len, length_size)) = parse_length(second & LENGTH, &bytes[2..])? else {
            return Ok(None);
        };
        let key_at = 2 + length_size;
        let (masking_key, key_size) = if is_masked { (bytes[key_at..].first_chunk().copied(), 4) } else { (None, 0) };
        Ok(Some(FrameHeader { fin, opcode, payload_len, masking_key, size: key_at + key_size }))
    }
}

/// The payload length, and how many bytes its longer form took: none, two or eight. `bytes` are those that follow.
fn parse_length(short: u8, bytes: &[u8]) -> Result<Option<(u64, usize)>, ProtocolError> {
    // §5.2: "in all cases, the minimal number of bytes MUST be used to encode the length"
    match short {
        LENGTH_16 => {
            let Some(&length) = bytes.first_chunk::<2>() else {
                return Ok(None);
            };
            match u16::from_be_bytes(length) {
                0..=125 => Err(ProtocolError::LengthNotMinimal),
                length => Ok(Some((u64::from(length), 2))),
            }
        }
        LENGTH_64 => {
            // Six zero bytes in front leave a number that fits 16 bits, whatever the last two are.
            if bytes.starts_with(&[0; 6]) {
                return Err(ProtocolError::LengthNotMinimal);
            }
            // §5.2: "the most significant bit MUST be 0"
            if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
                return Err(ProtocolError::LengthTopBit);
            }
            Ok(bytes.first_chunk().map(|&length| (u64::from_be_bytes(length), 8)))
        }
        length => Ok(Some((u64::from(length), 0))),
    }
}

/// Appends one whole frame to `out`, as a server sends it (§6.1): FIN set, no mask (§5.1: "A server MUST NOT mask any frames
/// that it sends to the client"), the length in its shortest form.
///
/// ```
/// use wirechat::ws::frame::{self, Opcode};
/// let mut out = Vec::new();
/// frame::append(&mut out, Opcode::Text, b"Hello");
/// assert_eq!(out, b"\x81\x05Hello"); // §5.7
/// ```
pub fn append(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    debug_assert!(!opcode.is_control() || payload.len() <= 125, "§5.5");
    out.reserve(MAX_HEADER + payload.len());
    out.push(FIN | opcode as u8);
    match payload.len() {
        len @ 0..=125 => out.push(len as u8),
        len @ 126..=0xffff => {
            out.push(LENGTH_16);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(LENGTH_64);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Appends whole frames of our own, as [`append`] wrote them, to `out`, the first of them in three fragments (§5.4). That
/// first one must be a data frame.
///
/// ```
/// use wirechat::ws::frame;
/// let mut out = Vec::new();
/// frame::append_in_fragments(&mut out, b"\x81\x05Hello\x81\x02hi");
/// assert_eq!(out, b"\x01\x01H\x00\x01e\x80\x03llo\x81\x02hi");
/// ```
pub fn append_in_fragments(out: &mut Vec<u8>, frames: &[u8]) {
    let (frame, rest) = frames.split_at(server_frame_len(frames).min(frames.len()));
    let header = FrameHeader::parse_from(Role::Server, frame);
    let Ok(Some(FrameHeader { opcode, size, .. })) = header else {
        return out.extend_from_slice(frames);
    };
    debug_assert!(!opcode.is_control(), "§5.5: they must not be fragmented");
    let payload = &frame[size..];
    let (first, others) = payload.split_at(payload.len() / 3);
    let (second, third) = others.split_at(first.len());
    for (opcode, fin, payload) in
        [(opcode, 0, first), (Opcode::Continuation, 0, second), (Opcode::Continuation, FIN, third)]
    {
        let start = out.len();
        append(out, opcode, payload);
        out[start] = fin | opcode as u8;
    }
    out.extend_from_slice(rest);
}

/// The size in bytes, header and payload, of the frame at the start of `frames`: frames of our own, as [`append`]
/// wrote them. This is how a queue of frames finds where the one that is half sent ends.
///
/// ```
/// use wirechat::ws::frame;
/// assert_eq!(frame::server_frame_len(b"\x81\x05Hello\x89\x00"), 7); // the Ping behind it is another frame
/// ```
pub fn server_frame_len(frames: &[u8]) -> usize {
    let long = |len: usize| frames.iter().skip(2).take(len).fold(0, |size, byte| size << 8 | usize::from(*byte));
    match frames.get(1).copied().unwrap_or_default() {
        LENGTH_16 => 4 + long(2),
        LENGTH_64 => 10 + long(8),
        short => 2 + usize::from(short),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProtocolError::*;

    /// The picture in the module doc, against the constants: its boxes are as wide as the fields are in bits.
    #[test]
    fn the_picture_is_true() {
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
        assert_eq!(drawn, [FIN, 0x40, 0x20, 0x10, OPCODE, MASK], "the first byte, and the mask bit of the second");
        assert_eq!((drawn[1] | drawn[2] | drawn[3], mask(fields[6].clone())), (RSV, LENGTH));
        assert_eq!((fields[4].end, fields[6].end, fields[7].end), (8, 16, 32), "bytes end where boxes end");
        for form in [format!("{LENGTH_16}: 16 bits"), format!("{LENGTH_64}: 64 bits"), "masking_key, 32 bits".into()] {
            assert!(doc.contains(&form), "{form}");
        }
        assert_eq!(MAX_HEADER * 8, 16 + 64 + 32);
    }

    type Verdict = Result<Option<(bool, Opcode, u64)>, ProtocolError>;

    /// §5.2 and §5.5: headers, and what is to be said of each. The masking key is left off where it does not matter.
    const HEADERS: &[(&[u8], Verdict)] = &[
        (&[], Ok(None)),
        (&[0x81], Ok(None)),
        (&[0x81, 0x80], Ok(Some((true, Opcode::Text, 0)))),
        (&[0x01, 0x85], Ok(Some((false, Opcode::Text, 5)))),
        (&[0x82, 0xfd], Ok(Some((true, Opcode::Binary, 125)))),
        (&[0x00, 0x80], Ok(Some((false, Opcode::Continuation, 0)))),
        (&[0x88, 0xfd], Ok(Some((true, Opcode::Close, 125)))),
        (&[0x89, 0x80], Ok(Some((true, Opcode::Ping, 0)))),
        (&[0x8a, 0x80], Ok(Some((true, Opcode::Pong, 0)))),
        // RSV, whatever else is wrong
        (&[0xc1], Err(ReservedBits)),
        (&[0xa1], Err(ReservedBits)),
        (&[0x91], Err(ReservedBits)),
        (&[0xf3, 0x7f], Err(ReservedBits)),
        // opcodes
        (&[0x83], Err(ReservedOpcode(3))),
        (&[0x07], Err(ReservedOpcode(7))),
        (&[0x8b], Err(ReservedOpcode(11))),
        (&[0x0f, 0x7f], Err(ReservedOpcode(15))),
        // control frames, by class
        (&[0x08], Err(FragmentedControl)),
        (&[0x09], Err(FragmentedControl)),
        (&[0x0a, 0x7f], Err(FragmentedControl)),
        (&[0x88, 0xfe], Err(ControlTooLong)),
        (&[0x89, 0xff], Err(ControlTooLong)),
        (&[0x8a, 0x7e], Err(ControlTooLong)),
        // the mask bit, before the length behind it is there
        (&[0x81, 0x05], Err(Unmasked)),
        (&[0x81, 0x7f], Err(Unmasked)),
        (&[0x81, 0x7e, 0x00, 0x05], Err(Unmasked)),
        // 16-bit lengths
        (&[0x81, 0xfe, 0x00], Ok(None)),
        (&[0x81, 0xfe, 0x00, 0x7d], Err(LengthNotMinimal)),
        (&[0x81, 0xfe, 0x00, 0x7e], Ok(Some((true, Opcode::Text, 126)))),
        (&[0x81, 0xfe, 0xff, 0xff], Ok(Some((true, Opcode::Text, 65535)))),
        // 64-bit lengths, each verdict at the first byte that allows it
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
    fn rfc_5_2_headers_and_verdicts() {
        for (bytes, verdict) in HEADERS {
            let parsed = FrameHeader::parse(bytes).map(|header| header.map(|h| (h.fin, h.opcode, h.payload_len)));
            assert_eq!(parsed, *verdict, "{bytes:02x?}");
        }
    }

    /// However a header is cut, a shorter piece of it never says anything else than the whole.
    #[test]
    fn rfc_5_2_every_cut_of_a_header_agrees_with_the_whole() {
        for (bytes, whole) in HEADERS {
            for cut in 0..bytes.len() {
                match FrameHeader::parse(&bytes[..cut]) {
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
            let header = FrameHeader::parse(&bytes).unwrap().unwrap();
            assert_eq!((header.masking_key, header.size), (Some([1, 2, 3, 4]), size));
            let cut = FrameHeader::parse(&bytes[..size - 1]).unwrap().unwrap();
            assert_eq!(cut.masking_key, None);
        }
    }

    #[test]
    fn rfc_6_1_frames_as_a_server_sends_them() {
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
