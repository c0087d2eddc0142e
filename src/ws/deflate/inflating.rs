//! Inflates a message while its frames arrive (RFC 7692 §7.2.2). Checks each piece of the output at once, so that a
//! message over the limit, or with invalid UTF-8, fails the connection before the rest is inflated.

use std::{cell::Cell, fmt, rc::Rc};

use super::codec::Inflater;
use super::{FINAL_BLOCK, MAX_WINDOW_BITS, SYNC_FLUSH_MARKER};
use crate::ws::close::ProtocolError::{self, InvalidDeflate, MessageTooBig};
use crate::ws::frame::FrameHeader;
use crate::ws::message::{Assembler, Message};

/// A message may contain any number of empty blocks, so an endless message could inflate to nothing. Therefore, the
/// compressed bytes of a message may exceed `MAX_EXPANSION` times its inflated bytes by at most `MAX_EXCESS`. The
/// factor permits a sender to flush after each byte, which takes seven compressed bytes per inflated byte.
const MAX_EXPANSION: usize = 8;
const MAX_EXCESS: usize = 64 * 1024;
/// Each final block (BFINAL = 1) adds this many bytes to the cost of its message, because the inflater then has the
/// extra work of a restart and of a copy of the window.
const FINAL_BLOCK_COST: usize = 1024;

/// The cost of a message so far: its compressed bytes, plus `FINAL_BLOCK_COST` for each final block.
#[derive(Debug, Default)]
pub struct Cost(usize);

impl Cost {
    /// Adds `read` compressed bytes to the cost of a message, and `FINAL_BLOCK_COST` if `is_final`. The message has
    /// inflated to `len` bytes so far. Returns `false` if its cost now exceeds the maximum for that length.
    pub fn add(&mut self, read: usize, is_final: bool, len: usize) -> bool {
        self.0 += read + if is_final { FINAL_BLOCK_COST } else { 0 };
        self.0 <= len * MAX_EXPANSION + MAX_EXCESS
    }
}

/// Keeps one idle inflater for the next compressed message of any connection. Connections can share the inflater,
/// because each message starts a new stream (`client_no_context_takeover`). One idle inflater is usually enough,
/// because most messages arrive with one read.
#[derive(Clone, Default)]
pub struct InflaterPool(Option<Rc<Cell<Option<Inflater>>>>); // `None`: no pool, so each message gets a new inflater

impl InflaterPool {
    pub fn shared() -> InflaterPool {
        InflaterPool(Some(Rc::default()))
    }

    /// Starts to assemble a message, compressed or not. `limit` is the maximum size after inflating, in bytes.
    pub fn begin_message(&self, header: &FrameHeader, limit: usize) -> Assembler {
        let output = Assembler::new(header.opcode);
        if !header.is_compressed {
            return output;
        }
        let mut inflater = self.0.as_ref().and_then(|pool| pool.take()).unwrap_or_default();
        inflater.reset(b"");
        let (inflater, pool) = (Some(inflater), self.clone());
        Assembler::Deflated(Box::new(InflatingMessage { inflater, pool, output, limit, cost: Cost::default() }))
    }
}

impl fmt::Debug for InflaterPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InflaterPool")
    }
}

/// A compressed message that has not fully arrived.
#[derive(Debug)]
pub struct InflatingMessage {
    inflater: Option<Inflater>, // `Some` until `drop` returns the inflater to the pool
    pool: InflaterPool,
    output: Assembler,
    limit: usize,
    cost: Cost,
}

impl InflatingMessage {
    /// Returns the number of inflated bytes so far, and the message's memory use in bytes.
    pub fn len_and_capacity(&self) -> (usize, usize) {
        let (len, capacity) = self.output.len_and_capacity();
        (len, capacity + Inflater::SIZE)
    }

    pub fn push(&mut self, mut input: &[u8]) -> Result<(), ProtocolError> {
        let InflatingMessage { inflater: Some(inflater), output, limit, cost, .. } = self else { return Ok(()) };
        loop {
            let before = input.len();
            let step = inflater.step(&mut input);
            let (len, _) = output.len_and_capacity();
            MessageTooBig.err_unless(step.output.len() <= *limit - len)?;
            output.push(step.output, *limit - len)?;
            InvalidDeflate.err_unless(!step.is_broken)?;
            MessageTooBig.err_unless(cost.add(before - input.len(), step.is_final, len + step.output.len()))?;
            if step.needs_input {
                debug_assert!(input.is_empty());
                return Ok(());
            }
            if step.is_final {
                // RFC 7692 §7.2.3.4: blocks may follow a final block, and may refer to bytes before that block.
                inflater.reset(&window(output));
            }
        }
    }

    /// RFC 7692 §7.2.2: "Append 4 octets of 0x00 0x00 0xff 0xff to the tail end of the payload of the message."
    pub fn finish<'a>(mut self) -> Result<Message<'a>, ProtocolError> {
        InvalidDeflate.err_unless(self.inflater.as_mut().is_some_and(ends_message))?;
        std::mem::replace(&mut self.output, Assembler::Binary(Vec::new())).finish()
    }
}

/// Inflates the four bytes that the sender removed from the message ([`SYNC_FLUSH_MARKER`]), and then an empty final
/// block. Returns `true` if the inflater recognizes that final block. If the message ended inside another block, the
/// inflater would read the final block as data.
pub fn ends_message(inflater: &mut Inflater) -> bool {
    let end = [&SYNC_FLUSH_MARKER[..], &FINAL_BLOCK].concat();
    let mut input = &end[..];
    let step = inflater.step(&mut input);
    step.output.is_empty() && step.is_final && input.is_empty()
}

/// Returns the most recent output, enough to fill the 32 KiB window of DEFLATE. If the message continues after a final
/// block (RFC 7692 §7.2.1), the next blocks may refer to this output.
fn window(output: &Assembler) -> Vec<u8> {
    let last = |bytes: &[u8]| bytes[bytes.len().saturating_sub(1 << MAX_WINDOW_BITS)..].to_vec();
    match output {
        Assembler::Text { valid, incomplete } => [last(valid.as_bytes()), last(incomplete)].concat(),
        Assembler::Binary(bytes) => last(bytes),
        Assembler::Deflated(message) => window(&message.output),
    }
}

impl Drop for InflatingMessage {
    fn drop(&mut self) {
        let inflater = self.inflater.take();
        if let Some(pool) = &self.pool.0 {
            pool.set(inflater);
        }
    }
}

#[cfg(feature = "deflate")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::deflate::codec::Compressor;
    use crate::ws::protocol::{Event, Limits, Protocol};

    const LIMITS: Limits = Limits { message: 1000, fragments: 100, accepts_binary: true, deflates: true };
    const HELLO: [u8; 7] = *b"\xf2\x48\xcd\xc9\xc9\x07\x00"; // RFC 7692 §7.2.3.1

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let len = payload.len();
        let length = match len {
            0..126 => vec![0x80 | len as u8],
            126..0x1_0000 => vec![0xfe, (len >> 8) as u8, len as u8],
            _ => [&[0xff][..], &(len as u64).to_be_bytes()].concat(),
        };
        [&[first], &length[..], &[0; 4], payload].concat()
    }

    fn compress(payload: &[u8]) -> Vec<u8> {
        let mut compressor = Compressor::new(MAX_WINDOW_BITS);
        compressor.compress(payload)
    }

    fn stored(len: usize, is_final: bool) -> Vec<u8> {
        let len_bytes = (len as u16).to_le_bytes();
        [&[u8::from(is_final)], &len_bytes[..], &len_bytes.map(|byte| !byte), &vec![b'x'; len][..]].concat()
    }

    /// Returns the events that `bytes` cause, and the peak number of buffered bytes. A text message appears as its
    /// text, or as its length if it is longer than 20 bytes.
    fn receive(bytes: &[u8], size: usize) -> (Vec<String>, usize) {
        let (mut protocol, mut events, mut memory) = (Protocol::new(LIMITS), Vec::new(), 0);
        for piece in bytes.to_vec().chunks_mut(size) {
            let mut input = piece;
            while let Some(event) = protocol.receive(&mut input) {
                events.push(match event {
                    Event::Message(Message::Text(text)) if text.len() > 20 => text.len().to_string(),
                    Event::Message(Message::Text(text)) => text.into_owned(),
                    Event::Message(Message::Binary(bytes)) => format!("{bytes:?}"),
                    Event::Failed(error) => format!("{} {error:?}", error.code().get()),
                    event => format!("{event:?}"),
                });
            }
            memory = memory.max(protocol.buffered_bytes());
        }
        (events, memory)
    }

    type Row = (&'static str, Vec<u8>, Vec<&'static str>);

    fn legal_rows() -> Vec<Row> {
        vec![
            ("7.2.3.1, one frame", frame(0xc1, &HELLO), vec!["Hello"]),
            ("7.2.3.1, two frames", [frame(0x41, &HELLO[..3]), frame(0x80, &HELLO[3..])].concat(), vec!["Hello"]),
            ("7.2.3.2, no shared window", [frame(0xc1, &HELLO), frame(0xc1, &HELLO)].concat(), vec!["Hello", "Hello"]),
            (
                "7.2.3.2, a reference to the message before",
                [frame(0xc1, &HELLO), frame(0xc1, b"\xf2\x00\x11\x00\x00")].concat(),
                vec!["Hello", "1007 InvalidDeflate"],
            ),
            ("7.2.3.3, a stored block", frame(0xc1, b"\x00\x05\x00\xfa\xffHello\x00"), vec!["Hello"]),
            ("7.2.3.4, BFINAL", frame(0xc1, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), vec!["Hello"]),
            (
                "BFINAL, then a block that refers to bytes before",
                frame(0xc1, &[&b"\xf3\x48\xcd\xc9\xc9\x07\x00"[..], b"\xf2\x00\x11\x00\x00"].concat()),
                vec!["HelloHello"],
            ),
            (
                "BFINAL without the empty block",
                frame(0xc1, b"\xf3\x48\xcd\xc9\xc9\x07\x00"),
                vec!["1007 InvalidDeflate"],
            ),
            (
                "7.2.3.5, two blocks",
                frame(0xc1, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
                vec!["Hello"],
            ),
            ("7.2.3.6, an empty message", frame(0xc1, b"\x00"), vec![""]),
            ("not even an empty block", frame(0xc1, b""), vec!["1007 InvalidDeflate"]),
            (
                "empty frames",
                [frame(0x41, b""), frame(0x00, &HELLO), frame(0x00, b""), frame(0x80, b"")].concat(),
                vec!["Hello"],
            ),
            (
                "the last frame has only the header of the empty block",
                [frame(0x41, &HELLO[..6]), frame(0x80, b"\x00")].concat(),
                vec!["Hello"],
            ),
            (
                "a Ping inside",
                [frame(0x41, &HELLO[..3]), frame(0x89, b"p"), frame(0x80, &HELLO[3..])].concat(),
                vec!["Ping([112])", "Hello"],
            ),
            ("uncompressed", [frame(0x81, b"a"), frame(0xc1, &HELLO)].concat(), vec!["a", "Hello"]),
            ("uncompressed frames", [frame(0x01, b"a"), frame(0x80, b"b")].concat(), vec!["ab"]),
            ("binary", frame(0xc2, &compress(b"\xff\xfe")), vec!["[255, 254]"]),
        ]
    }

    fn illegal_rows() -> Vec<Row> {
        let invalid = vec!["1007 InvalidDeflate"];
        let empty_block = [0, 0, 0, 0xff, 0xff];
        vec![
            ("text that is not UTF-8", frame(0xc1, &compress(b"a\xff")), vec!["1007 TextNotUtf8"]),
            ("half a character", frame(0xc1, &compress("é".as_bytes().split_at(1).0)), vec!["1007 TextNotUtf8"]),
            ("RSV1 on a continuation", [frame(0x41, &HELLO), frame(0xc0, b"")].concat(), vec!["1002 MisplacedRsv1"]),
            ("RSV1 on a Ping", frame(0xc9, b""), vec!["1002 MisplacedRsv1"]),
            ("RSV1 on a Close", frame(0xc8, b""), vec!["1002 MisplacedRsv1"]),
            ("RSV2", frame(0xa1, b""), vec!["1002 MisplacedRsv1"]),
            ("RSV1 and RSV3", frame(0xd1, &HELLO), vec!["1002 MisplacedRsv1"]),
            (
                "text that is not UTF-8, and then invalid data",
                frame(0xc1, b"\xfb\x8b\xcd\xc2\x89"),
                vec!["1007 TextNotUtf8"],
            ),
            ("the reserved block type", frame(0xc1, b"\x07\x00"), invalid.clone()),
            ("a stored block with wrong lengths", frame(0xc1, b"\x00\x05\x00\xff\xffHello\x00"), invalid.clone()),
            ("a stored block that lacks four bytes", frame(0xc1, &stored(9, false)[..10]), invalid.clone()),
            ("at the limit", frame(0xc1, &compress(&[b'x'; 1000])), vec!["1000"]),
            ("over the limit", frame(0xc1, &compress(&[b'x'; 1001])), vec!["1009 MessageTooBig"]),
            ("a bomb", frame(0xc1, &compress(&vec![0; 1 << 20])), vec!["1009 MessageTooBig"]),
            (
                "at the limit, and longer than it",
                frame(0xc1, &[stored(1, false).repeat(1000), vec![0]].concat()),
                vec!["1000"],
            ),
            ("many empty blocks", frame(0xc1, &[&empty_block.repeat(9000)[..], &HELLO].concat()), vec!["Hello"]),
            ("too many empty blocks", frame(0xc1, &empty_block.repeat(14_000)), vec!["1009 MessageTooBig"]),
            ("final blocks", frame(0xc1, &[stored(5, true).repeat(30), vec![0]].concat()), vec!["150"]),
            ("too many final blocks", frame(0xc1, &stored(0, true).repeat(70)), vec!["1009 MessageTooBig"]),
        ]
    }

    #[test]
    fn rfc_7692_messages_wherever_they_are_cut() {
        for (name, bytes, expected) in legal_rows().iter().chain(&illegal_rows()) {
            for size in [bytes.len(), 1, 2, 3, 5, 7, 100] {
                let (events, memory) = receive(bytes, size);
                assert_eq!(&events, expected, "{name}, in pieces of {size}");
                assert!(memory <= 2 * LIMITS.message + Inflater::SIZE, "{name}: {memory}");
            }
        }
    }

    #[test]
    fn every_truncated_message_fails() {
        let text: String = (0..60).map(|number| format!("{number} ")).collect();
        let dynamic = compress(text.repeat(5).as_bytes());
        for payload in [&HELLO[..], &dynamic, &[&stored(20, false)[..], &HELLO].concat()] {
            for len in (0..payload.len()).filter(|len| payload[..*len] != [0]) {
                let (events, _) = receive(&frame(0xc1, &payload[..len]), usize::MAX);
                assert_eq!(events, ["1007 InvalidDeflate"], "{len} bytes of {payload:02x?}");
            }
        }
    }

    #[test]
    fn an_inflater_returns_to_the_pool_whatever_ends_the_message() {
        let inflaters = InflaterPool::shared();
        for bytes in [frame(0xc1, &HELLO), frame(0xc1, b"\x07"), [frame(0x41, b""), frame(0x88, b"")].concat()] {
            let mut protocol = Protocol::new(LIMITS);
            protocol.inflaters = inflaters.clone();
            let mut bytes = bytes;
            let mut input = &mut bytes[..];
            while protocol.receive(&mut input).is_some() {}
            let pool = inflaters.0.as_ref().unwrap();
            let inflater = pool.take();
            assert!(inflater.is_some());
            pool.set(inflater);
        }
        let [mut first, mut second] = [(); 2].map(|()| Protocol::new(LIMITS));
        (first.inflaters, second.inflaters) = (inflaters.clone(), inflaters.clone());
        let (start, end) = (frame(0x41, &HELLO[..3]), frame(0x80, &HELLO[3..]));
        for protocol in [&mut first, &mut second] {
            assert!(protocol.receive(&mut &mut start.clone()[..]).is_none());
        }
        for protocol in [&mut first, &mut second] {
            let mut bytes = end.clone();
            assert_eq!(protocol.receive(&mut &mut bytes[..]), Some(Event::Message(Message::Text("Hello".into()))));
        }
    }
}
