//! §5.4: splits a message into fragments at an inspector's request, so that a learner can see fragmentation.

use crate::ws::deflate::RSV1;
use crate::ws::frame::{self, FrameHeader, Opcode, Role};

const FIN_BIT: u8 = 0x80;

/// Appends `frames` to `out`. Splits the first frame, which must be an unfragmented data frame, into three fragments.
pub fn append_in_fragments(out: &mut Vec<u8>, frames: &[u8]) {
    let (frame, rest) = frames.split_at(frame::server_frame_len(frames).min(frames.len()));
    let parsed = FrameHeader::parse_with_deflate(Role::Server, true, frame);
    let Ok(Some(FrameHeader { opcode, size, is_compressed, .. })) = parsed else {
        debug_assert!(false, "not a frame that `append` wrote: {frame:02x?}");
        return out.extend_from_slice(frames);
    };
    debug_assert!(!opcode.is_control(), "§5.5: control frames must not be fragmented");
    let payload = &frame[size..];
    let (first, others) = payload.split_at(payload.len() / 3);
    let (second, third) = others.split_at(first.len());
    // §5.4: only the first fragment carries the opcode (and RSV1, RFC 7692 §6), and only the last carries FIN_BIT.
    let rsv1 = if is_compressed { RSV1 } else { 0 };
    let fragments = [(opcode, rsv1, first), (Opcode::Continuation, 0, second), (Opcode::Continuation, FIN_BIT, third)];
    for (opcode, fin, payload) in fragments {
        let start = out.len();
        frame::append(out, opcode, payload);
        out[start] = fin | opcode as u8;
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::append_in_fragments;

    #[test]
    fn only_the_first_frame_is_split() {
        let mut out = Vec::new();
        append_in_fragments(&mut out, b"\x81\x05Hello\x81\x02hi");
        assert_eq!(out, b"\x01\x01H\x00\x01e\x80\x03llo\x81\x02hi");
        let mut compressed = Vec::new();
        append_in_fragments(&mut compressed, b"\xc1\x05Hello");
        assert_eq!(compressed, b"\x41\x01H\x00\x01e\x80\x03llo");
    }
}
