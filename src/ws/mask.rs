//! §5.3, client-to-server masking: `transformed-octet-i = original-octet-i XOR masking-key[i MOD 4]`.
//!
//! ```text
//!   payload  48 65 6c 6c 6f
//!   key      37 fa 21 3d 37
//!   masked   7f 9f 4d 51 58
//! ```
//!
//! A mask hides nothing, since its key stands in front of what it masks. It keeps a page from choosing the bytes that go
//! over the wire, where a proxy might take them for a request (§10.3); so a client takes a new key for every frame.
//!
//! The same function masks and unmasks. It does not know frames: the caller says where in the payload its bytes
//! begin, because a payload may come in several reads.
//!
//! The subtle thing: the work is done a word at a time. The key is first rotated to where the slice begins, so that
//! every group of eight bytes meets the same eight key bytes; only the last few bytes are taken one by one.

/// XORs `payload` with `key` in place, as §5.3 says.
///
/// `offset` is the index, within the whole payload of the frame, of the first byte of this slice.
///
/// ```
/// use wirechat::ws::mask;
/// let mut payload = *b"Hello";
/// mask::apply(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
/// assert_eq!(payload, [0x7f, 0x9f, 0x4d, 0x51, 0x58]); // §5.7
/// mask::apply(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
/// assert_eq!(&payload, b"Hello"); // twice is the identity
/// ```
pub fn apply(payload: &mut [u8], mut key: [u8; 4], offset: usize) {
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    // Eight is a multiple of four, so the remainder begins at the first byte of the key again.
    for (byte, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::apply;
    use crate::pictures::{assert_drawn, hex};

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// The sentence of §5.3, word for word.
    fn by_definition(payload: &[u8]) -> Vec<u8> {
        payload.iter().enumerate().map(|(i, byte)| byte ^ KEY[i % 4]).collect()
    }

    #[test]
    fn rfc_5_3_split_at_every_offset() {
        let payload: Vec<u8> = (0..100).map(|i| i * 2 + 1).collect();
        for len in 0..payload.len() {
            for cut in 0..=len {
                let mut masked = payload[..len].to_vec();
                let (left, right) = masked.split_at_mut(cut);
                apply(left, KEY, 0);
                apply(right, KEY, cut);
                assert_eq!(masked, by_definition(&payload[..len]), "{len} bytes cut at {cut}");
            }
        }
    }

    #[test]
    fn the_picture_is_true() {
        let mut masked = *b"Hello";
        apply(&mut masked, KEY, 0);
        let key: Vec<u8> = KEY.into_iter().cycle().take(masked.len()).collect();
        let rows = [("payload", &b"Hello"[..]), ("key", &key), ("masked", &masked)];
        let picture = rows.map(|(name, bytes)| format!("  {name:9}{}", hex(bytes)));
        assert_drawn(include_str!("mask.rs"), &picture.join("\n"));
    }

    #[test]
    fn a_zero_key_changes_nothing() {
        let mut payload = *b"as it was";
        apply(&mut payload, [0; 4], 3);
        assert_eq!(&payload, b"as it was");
    }
}
