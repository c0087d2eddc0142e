//! Inflates compressed messages (RFC 7692) for display, frame by frame and in bounded memory. With context takeover, a
//! message may refer to earlier ones. If the inflater has not seen those, the inspector shows the message as it is on
//! the wire.

use super::MAX_SHOWN_BYTES;
use crate::ws::deflate::context::ContextInflater;
use crate::ws::deflate::inflating::Cost;

/// The inflated payload of a compressed frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InflatedPayload {
    /// Size in bytes of the frame's whole inflated payload. `prefix` may contain only the start of it.
    pub len: u64,
    /// The first [`MAX_SHOWN_BYTES`] inflated bytes.
    pub prefix: Vec<u8>,
    /// Whether inflating the message has failed: the message is invalid, too long or too costly (see `Cost`), or refers
    /// to an earlier message that the inflater has not seen.
    pub is_broken: bool,
    /// Whether the message so far has the field `token`, whose value is secret.
    pub has_token: bool,
}

#[derive(Debug)]
pub struct MessageInflater {
    inflater: ContextInflater,
    /// Whether each message starts with an empty window (no context takeover).
    is_reset: bool,
    is_broken: bool,
    /// The last few bytes of output, kept to find the field name `"token"` if it is split across two pieces of output.
    tail: Vec<u8>,
    has_token: bool,
    /// Maximum length of an inflated message in bytes. Endpoints reject longer messages, so the inflater stops there.
    limit: usize,
    /// Number of inflated bytes of the current message so far.
    len: usize,
    cost: Cost,
}

impl MessageInflater {
    const TOKEN: &[u8] = b"\"token\"";

    pub fn new(is_reset: bool) -> MessageInflater {
        MessageInflater {
            inflater: ContextInflater::default(),
            is_reset,
            is_broken: false,
            tail: Vec::new(),
            has_token: false,
            limit: 0,
            len: 0,
            cost: Cost::default(),
        }
    }

    pub fn start_message(&mut self, limit: usize) {
        if self.is_reset || self.is_broken {
            self.inflater.reset();
        }
        (self.is_broken, self.has_token, self.limit, self.len) = (false, false, limit, 0);
        self.cost = Cost::default();
        self.tail.clear();
    }

    /// Inflates unmasked payload bytes of a frame.
    pub fn inflate(&mut self, mut payload: &[u8], frame: &mut InflatedPayload) {
        while !self.is_broken {
            let before = payload.len();
            let step = self.inflater.step(&mut payload);
            let (needs_input, output) = (step.needs_input, step.output);
            frame.len += output.len() as u64;
            let room = MAX_SHOWN_BYTES - frame.prefix.len();
            frame.prefix.extend_from_slice(&output[..output.len().min(room)]);
            self.tail.extend_from_slice(output);
            self.has_token |= self.tail.windows(Self::TOKEN.len()).any(|word| word == Self::TOKEN);
            self.tail.drain(..self.tail.len().saturating_sub(Self::TOKEN.len() - 1));
            self.len += output.len();
            let is_affordable = self.cost.add(before - payload.len(), step.is_final, self.len);
            self.is_broken |= step.is_broken || self.len > self.limit || !is_affordable;
            if needs_input {
                break;
            }
        }
        (frame.is_broken, frame.has_token) = (self.is_broken, self.has_token);
    }

    pub fn end_message(&mut self, frame: &mut InflatedPayload) {
        self.is_broken |= !self.inflater.end_message();
        frame.is_broken = self.is_broken;
    }
}

#[cfg(feature = "deflate")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::protocol::{Event, Limits, Protocol};

    const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00"; // RFC 7692 §7.2.3.1
    const FINAL_HELLO: &[u8] = b"\xf3\x48\xcd\xc9\xc9\x07\x00"; // "Hello" in a DEFLATE block with BFINAL = 1
    const REFERENCE: &[u8] = b"\xf2\x00\x11\x00\x00"; // refers back to a "Hello" just before it (RFC 7692 §7.2.3.2)

    /// Returns the text that the inspector shows for each message; `None` for a message that does not inflate.
    fn inflate(is_reset: bool, messages: &[&[u8]]) -> Vec<Option<String>> {
        let mut inflater = MessageInflater::new(is_reset);
        let mut inflate = |payload: &&[u8]| {
            let mut frame = InflatedPayload::default();
            inflater.start_message(1000);
            payload.chunks(3).for_each(|piece| inflater.inflate(piece, &mut frame));
            inflater.end_message(&mut frame);
            (!frame.is_broken).then(|| String::from_utf8(frame.prefix).unwrap())
        };
        messages.iter().map(&mut inflate).collect()
    }

    /// Whether the server accepts `payload` as a compressed text message.
    fn is_accepted(payload: &[u8]) -> bool {
        let mut frame = vec![0xc1, 0xfe, (payload.len() >> 8) as u8, payload.len() as u8, 0, 0, 0, 0];
        if payload.len() < 126 {
            frame.splice(1..4, [0x80 | payload.len() as u8]);
        }
        frame.extend(payload);
        let mut protocol = Protocol::new(Limits { message: 1000, fragments: 1, accepts_binary: false, deflates: true });
        matches!(protocol.receive(&mut &mut frame[..]), Some(Event::Message(_)))
    }

    /// Final blocks (RFC 7692 §7.2.3.4) and several blocks in a message (§7.2.3.5) are valid.
    #[test]
    fn the_server_and_the_inspector_agree() {
        let [text, twice] = ["Hello", "HelloHello"].map(|text| Some(text.to_owned()));
        let rows: [(Vec<u8>, &Option<String>); 9] = [
            (HELLO.to_vec(), &text),
            ([FINAL_HELLO, b"\x00"].concat(), &text),
            ([FINAL_HELLO, HELLO].concat(), &twice),
            ([FINAL_HELLO, REFERENCE].concat(), &twice),
            (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00".to_vec(), &text),
            (FINAL_HELLO.to_vec(), &None),
            (HELLO[..4].to_vec(), &None),
            (REFERENCE.to_vec(), &None),
            // Each final block (BFINAL = 1) makes the inflater restart, which takes time. `Cost` therefore limits the
            // number of final blocks in a short message: 100 are too many.
            ([&[3, 0].repeat(100)[..], HELLO].concat(), &None),
        ];
        for (payload, expected) in rows {
            assert_eq!(&inflate(true, &[&payload])[0], expected, "{payload:02x?}");
            assert_eq!(is_accepted(&payload), expected.is_some(), "{payload:02x?}");
        }
    }

    #[test]
    fn a_final_block_keeps_the_context() {
        let final_hello = [FINAL_HELLO, b"\x00"].concat();
        let [text, none] = [Some("Hello".to_owned()), None];
        assert_eq!(inflate(false, &[&final_hello, REFERENCE, REFERENCE]), [text.clone(), text.clone(), text.clone()]);
        assert_eq!(inflate(true, &[HELLO, REFERENCE, HELLO]), [text.clone(), none.clone(), text.clone()]);
        assert_eq!(inflate(false, &[HELLO, b"\x07", REFERENCE, HELLO]), [text.clone(), none.clone(), none, text]);
    }
}
