//! Compresses a message once for many peers that share a context. The documentation of the module `deflate` explains
//! the shared context, with an example.

use std::collections::HashMap;
use std::hash::Hash;

use super::codec::Compressor;
use super::inflating::InflaterPool;
use super::negotiation::Agreement;
use super::{MAX_WINDOW_BITS, RSV1};
use crate::ws::frame::{self, FrameHeader, Opcode, Role};
use crate::ws::protocol::{Limits, Protocol};

const MAX_TAIL_LEN: usize = 2 * 1024; // in bytes; most repetition in a chat is within the last dozen events
const MIN_WINDOW_BITS: u8 = 9;
pub const DEFAULT_MIN_PAYLOAD_LEN: usize = 32; // in bytes; shorter messages stay uncompressed

/// How a member receives the messages of its room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Variant {
    #[default]
    Plain,
    Shared,     // compressed; may refer to earlier messages that all current members have received
    Standalone, // compressed without references to other messages, and with a window of only 512 bytes
}

impl Variant {
    pub const COUNT: usize = 3;
}

impl From<Option<Agreement>> for Variant {
    fn from(agreement: Option<Agreement>) -> Variant {
        match agreement {
            None => Variant::Plain,
            Some(agreement) if agreement.no_context_takeover || !agreement.has_full_window() => Variant::Standalone,
            Some(_) => Variant::Shared,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipients {
    All,
    AllButOne,
    AllButNew(Variant), // the new member receives the event too, but separately and uncompressed
}

impl Recipients {
    /// `except` is the [`Variant`] of the member to exclude from the broadcast, or `None` to exclude nobody. If that
    /// member is in another group, pass `Plain`: its compression state cannot affect this group's messages.
    pub fn new(except: Option<Variant>, is_join: bool) -> Recipients {
        match except {
            None => Recipients::All,
            Some(variant) if is_join => Recipients::AllButNew(variant),
            Some(_) => Recipients::AllButOne,
        }
    }
}

/// Compresses the messages of all groups. A group is a set of members that receive the same messages, so one compressed
/// copy serves many of them. `K` identifies the group.
#[derive(Debug)]
pub struct Deflater<K> {
    min_payload_len: usize, // messages shorter than this many bytes are sent uncompressed
    shared: Option<Compressor>,
    context_group: Option<K>, // the group whose next message `shared` can compress without a reset
    standalone: [Option<Compressor>; (MAX_WINDOW_BITS - MIN_WINDOW_BITS + 1) as usize], // a compressor per window size
    groups: HashMap<K, Group>,
    max_groups: usize, // if `groups` has more entries than this, `add_member` removes the entries of defunct groups
    pub inflaters: InflaterPool,
}

#[derive(Debug, Default)]
struct Group {
    // The end of the text that every current `Shared` member has inflated. The next compressed message may refer to it,
    // because it is still in the window of each of these members.
    tail: Vec<u8>,
    is_used: [bool; Variant::COUNT], // the variants that members use; stale after a member leaves, until `update`
}

impl<K> Default for Deflater<K> {
    fn default() -> Deflater<K> {
        Deflater::new(DEFAULT_MIN_PAYLOAD_LEN)
    }
}

impl<K> Deflater<K> {
    pub fn new(min_payload_len: usize) -> Deflater<K> {
        let (groups, inflaters) = (HashMap::new(), InflaterPool::shared());
        Deflater {
            min_payload_len,
            shared: None,
            context_group: None,
            standalone: Default::default(),
            groups,
            max_groups: 16,
            inflaters,
        }
    }

    /// Returns the [`Protocol`] of a new connection, which uses the server's shared pool of inflaters.
    pub fn new_protocol(&self, limits: Limits) -> Protocol {
        let mut protocol = Protocol::new(limits);
        protocol.inflaters = self.inflaters.clone();
        protocol
    }
}

impl<K: Copy + Eq + Hash> Deflater<K> {
    /// `exists` returns whether a group still exists. Once there are many groups, `add_member` removes the groups that
    /// no longer exist.
    pub fn add_member(&mut self, group: K, variant: Variant, exists: impl Fn(&K) -> bool) {
        if variant == Variant::Plain {
            return;
        }
        if self.groups.len() > self.max_groups {
            self.groups.retain(|group, _| exists(group));
            self.max_groups = 16 + 2 * self.groups.len();
            self.context_group = None;
        }
        let members = self.groups.entry(group).or_default();
        members.is_used[variant as usize] = true;
        if variant == Variant::Shared {
            members.tail.clear(); // the new member's inflater does not have these bytes
            self.context_group.take_if(|last| *last == group);
        }
    }

    /// Records which [`Variant`]s of a message the current members of the given groups receive. Removes each given
    /// group in which no member receives compressed messages.
    pub fn update<const N: usize>(&mut self, groups: [(K, [bool; Variant::COUNT]); N]) {
        for (group, is_used) in groups {
            let Some(members) = self.groups.get_mut(&group) else { continue };
            members.is_used = is_used;
            if is_used[1..] == [false; Variant::COUNT - 1] {
                self.groups.remove(&group);
                self.context_group.take_if(|last| *last == group);
            }
        }
    }

    /// Appends a message to `frames`, once for each compressed [`Variant`] that the group's members receive. The caller
    /// has already appended the uncompressed message, which begins at `start` in the frames of `Plain`.
    pub fn append(&mut self, group: K, recipients: Recipients, start: usize, frames: &mut [Vec<u8>; Variant::COUNT]) {
        let Some(Group { tail, is_used }) = self.groups.get_mut(&group) else { return };
        let [plain_frames, shared_frames, standalone_frames] = frames;
        let Ok(Some(header)) = FrameHeader::parse(Role::Server, &plain_frames[start..]) else { return };
        let text = &plain_frames[start + header.size..];
        let is_plain = text.len() < self.min_payload_len || recipients == Recipients::AllButOne;
        if is_used[Variant::Shared as usize] {
            if is_plain {
                shared_frames.extend_from_slice(&plain_frames[start..]);
            } else {
                let compressor = self.shared.get_or_insert_with(|| Compressor::new(MAX_WINDOW_BITS));
                if self.context_group != Some(group) {
                    compressor.reset(tail);
                }
                append_compressed(shared_frames, Opcode::Text, &compressor.compress(text));
                if recipients == Recipients::AllButNew(Variant::Shared) {
                    debug_assert!(tail.is_empty(), "the join has emptied the tail");
                    self.context_group = None;
                } else {
                    push_tail(tail, text);
                    self.context_group = Some(group);
                }
            }
        }
        if is_used[Variant::Standalone as usize] {
            if is_plain {
                standalone_frames.extend_from_slice(&plain_frames[start..]);
            } else {
                let compressed = self.compress_standalone(MIN_WINDOW_BITS, text);
                append_compressed(standalone_frames, Opcode::Text, &compressed);
            }
        }
    }

    /// Appends a message for one peer. A compressed message contains no references to earlier messages.
    pub fn append_standalone(
        &mut self,
        agreement: Option<Agreement>,
        opcode: Opcode,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Some(agreement) = agreement.filter(|_| payload.len() >= self.min_payload_len) else {
            return frame::append(out, opcode, payload);
        };
        let compressed = self.compress_standalone(agreement.window_bits.unwrap_or(MAX_WINDOW_BITS), payload);
        append_compressed(out, opcode, &compressed);
    }

    fn compress_standalone(&mut self, window_bits: u8, payload: &[u8]) -> Vec<u8> {
        let compressor = &mut self.standalone[usize::from(window_bits - MIN_WINDOW_BITS)];
        let compressor = compressor.get_or_insert_with(|| Compressor::new(window_bits));
        compressor.reset(b"");
        compressor.compress(payload)
    }
}

fn append_compressed(out: &mut Vec<u8>, opcode: Opcode, compressed: &[u8]) {
    let start = out.len();
    frame::append(out, opcode, compressed);
    out[start] |= RSV1;
}

fn push_tail(tail: &mut Vec<u8>, text: &[u8]) {
    tail.extend_from_slice(&text[text.len().saturating_sub(MAX_TAIL_LEN)..]);
    tail.drain(..tail.len().saturating_sub(MAX_TAIL_LEN));
}

#[cfg(feature = "deflate")]
#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};

    use super::*;
    use crate::ws::deflate::SYNC_FLUSH_MARKER;

    /// A member that inflates with a different implementation of DEFLATE than the server.
    struct Member {
        variant: Variant,
        inflater: Decompress,
        window: String,
    }

    impl Member {
        fn new(variant: Variant) -> Member {
            Member { variant, inflater: Decompress::new(false), window: String::new() }
        }

        fn inflate(&mut self, payload: &[u8]) -> String {
            if self.variant == Variant::Standalone {
                self.inflater.reset(false);
            }
            let (input, before) = ([payload, &SYNC_FLUSH_MARKER].concat(), self.inflater.total_in());
            let mut out = Vec::with_capacity(100_000);
            self.inflater.decompress_vec(&input, &mut out, FlushDecompress::Sync).unwrap();
            assert_eq!(self.inflater.total_in() - before, input.len() as u64, "the inflater has read all of the input");
            String::from_utf8(out).unwrap()
        }

        /// Returns whether the frame is compressed, and its text.
        fn receive(&mut self, mut frame: Vec<u8>) -> (bool, String) {
            let is_compressed = frame[0] & RSV1 != 0;
            frame[0] &= !RSV1;
            let header = FrameHeader::parse(Role::Server, &frame).unwrap().unwrap();
            let payload = frame[header.size..].to_vec();
            assert_eq!((header.payload_len as usize, header.opcode), (payload.len(), Opcode::Text), "one whole frame");
            let text = if is_compressed { self.inflate(&payload) } else { String::from_utf8(payload).unwrap() };
            if is_compressed {
                self.window += &text;
            }
            (is_compressed, text)
        }
    }

    fn broadcast(deflater: &mut Deflater<u8>, group: u8, to: Recipients, text: &str) -> [Vec<u8>; Variant::COUNT] {
        let mut frames = [const { Vec::new() }; Variant::COUNT];
        frame::append(&mut frames[0], Opcode::Text, text.as_bytes());
        deflater.append(group, to, 0, &mut frames);
        frames
    }

    #[test]
    fn picture_matches_the_code() {
        let (mut deflater, mut alice, mut bob) = (Deflater::new(1), Member::new(Variant::Shared), None);
        deflater.add_member(1, Variant::Shared, |_| true);
        let mut picture = format!("  {:16}{:14}{:13}{:16}bob's window", "", "sent", "tail", "alice's window");
        let rows = [
            ("alice: \"one\"", Recipients::All, "one "),
            ("alice: \"two\"", Recipients::All, "two "),
            ("bob joins", Recipients::AllButOne, "bob has joined"),
            ("bob: \"three\"", Recipients::All, "three "),
            ("alice types", Recipients::AllButOne, "alice is typing"),
            ("alice: \"four\"", Recipients::All, "four "),
        ];
        for (name, to, text) in rows {
            if name == "bob joins" {
                deflater.add_member(1, Variant::Shared, |_| true);
            }
            let [_, shared, _] = broadcast(&mut deflater, 1, to, text);
            let (is_compressed, received) = alice.receive(shared.clone());
            assert_eq!(received, text);
            if let Some(bob) = &mut bob {
                assert_eq!(Member::receive(bob, shared), (is_compressed, text.to_owned()));
            }
            if name == "bob joins" {
                bob = Some(Member::new(Variant::Shared));
            }
            let tail = String::from_utf8_lossy(&deflater.groups[&1].tail).into_owned();
            let (sent, window) = (u8::from(is_compressed), bob.as_ref().map_or("", |bob| bob.window.trim_end()));
            let row =
                format!("  {name:16}RSV1 = {sent:<7}{:13}{:<15} {window}", tail.trim_end(), alice.window.trim_end());
            picture += &format!("\n{}", row.trim_end());
        }
        crate::pictures::assert_in_module_doc(include_str!("mod.rs"), &picture);
    }

    /// There are three groups of recipients. Members with different `Variant`s join, leave and switch groups at random.
    #[test]
    fn every_member_inflates_every_message() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut deflater = Deflater::new(20);
        let mut groups: [Vec<Member>; 3] = [const { Vec::new() }; 3];
        let (mut sizes, mut compressed) = ([0; 2], [0; Variant::COUNT]);
        for number in 0..5000 {
            let group = random.usize(..groups.len());
            let key = group as u8;
            let variant = [Variant::Plain, Variant::Shared, Variant::Shared, Variant::Standalone][random.usize(..4)];
            let mut new = None;
            match random.u8(..40) {
                0 => new = Some(Member::new(variant)),
                1 if !groups[group].is_empty() => {
                    let member = random.usize(..groups[group].len());
                    drop(groups[group].swap_remove(member));
                }
                2 if !groups[group].is_empty() => {
                    let member = groups[group].swap_remove(0);
                    let to = (group + 1) % groups.len();
                    deflater.add_member(to as u8, member.variant, |_| true);
                    groups[to].push(member);
                    continue;
                }
                3 => {
                    let mut is_used = [false; Variant::COUNT];
                    groups[group].iter().for_each(|member| is_used[member.variant as usize] = true);
                    deflater.update([(key, is_used)]);
                }
                _ => {}
            }
            let long = if random.u8(..100) == 0 { "0123456789".repeat(random.usize(..900)) } else { String::new() };
            let text = format!("{{\"username\":\"user{}\",\"id\":{number},\"text\":\"{long}\"}}", random.u8(..5));
            let text = if random.u8(..10) == 0 { "short" } else { &text };
            let to = match &new {
                Some(member) => {
                    deflater.add_member(key, member.variant, |_| true);
                    Recipients::AllButNew(member.variant)
                }
                None if random.bool() => Recipients::All,
                None => [Recipients::All, Recipients::AllButOne][random.usize(..2)],
            };
            let sent = broadcast(&mut deflater, key, to, text);
            let skips = (to == Recipients::AllButOne && !groups[group].is_empty()).then_some(0);
            for (at, member) in groups[group].iter_mut().enumerate().filter(|(at, _)| Some(*at) != skips) {
                let (is_compressed, received) = member.receive(sent[member.variant as usize].clone());
                assert_eq!(received, text, "message {number} to member {at} of group {group}");
                let is_plain = member.variant == Variant::Plain || text == "short" || to == Recipients::AllButOne;
                assert_eq!(is_compressed, !is_plain);
                compressed[member.variant as usize] += usize::from(is_compressed);
                if member.variant == Variant::Shared && long.is_empty() {
                    sizes = [sizes[0] + sent[0].len(), sizes[1] + sent[1].len()];
                }
            }
            groups[group].extend(new);
            assert!(deflater.groups.values().all(|group| group.tail.len() <= MAX_TAIL_LEN));
        }
        assert!(compressed[1] > 1000 && compressed[2] > 1000, "{compressed:?}");
        assert!(sizes[1] < sizes[0], "{sizes:?}");
        (10..60).for_each(|group| deflater.add_member(group, Variant::Shared, |group| *group == 40));
        assert!(deflater.groups.len() <= 20, "{}", deflater.groups.len());
    }

    #[test]
    fn a_small_window_is_never_exceeded() {
        let mut deflater = Deflater::<u8>::new(1);
        let text: String = (0..40).map(|number| number.to_string().repeat(300)).collect::<String>().repeat(2);
        for bits in 9..=MAX_WINDOW_BITS {
            let agreement = Agreement { no_context_takeover: false, window_bits: Some(bits) };
            let mut frame = Vec::new();
            deflater.append_standalone(Some(agreement), Opcode::Text, text.as_bytes(), &mut frame);
            frame[0] &= !RSV1;
            let header = FrameHeader::parse(Role::Server, &frame).unwrap().unwrap();
            // Inflate one byte at a time: otherwise, the inflater would find earlier bytes in the output buffer, and
            // accept references beyond its window.
            let (mut inflater, mut out) = (zlib_rs::Inflate::new(false, bits), Vec::new());
            let input = [&frame[header.size..], &SYNC_FLUSH_MARKER].concat();
            while out.len() < text.len() {
                let (at, mut byte) = (inflater.total_in() as usize, [0]);
                inflater.decompress(&input[at..], &mut byte, zlib_rs::InflateFlush::NoFlush).unwrap();
                out.extend(byte);
            }
            assert_eq!(String::from_utf8(out).unwrap(), text, "{bits} bits");
        }
    }
}
