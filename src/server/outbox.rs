//! What waits to be written to one socket: a queue of whole frames, most of them shared with other members.
//!
//! Three frames, two of them shared, when seven bytes have been sent:
//!
//! ```text
//!   chunk    frames              sent   to be finished first
//!   Shared   5 bytes, 204 bytes  7      bytes 7 to 209
//!   Own      3 bytes
//!   waiting  205 bytes
//! ```
//!
//! It knows frames only as bytes. The bound on it is kept by whoever pushes (see [`Outbox::is_over`]), because the
//! bound is judged after a flush, not before it.
//!
//! The subtle thing: a frame may be half sent. Whatever is to be dropped or said in between, that frame is finished
//! first, or the peer would take our next header for payload.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::rc::Rc;

use crate::ws::frame;

/// A chunk of this client's own grows up to this size before another is begun, so that the part of it that has been
/// sent is given back in time.
const OWN_CHUNK: usize = 4096;
/// How many chunks go into one system call. More would hardly ever be there, and the kernel stops at 1024.
const MAX_SLICES: usize = 16;

/// A queue of frames. Empty, it holds no buffer.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Nearly always all there is.
    first: Option<Chunk>,
    /// What stands behind the first.
    rest: VecDeque<Chunk>,
    /// How much of the first chunk has been sent.
    sent: usize,
    /// Bytes that are not sent yet.
    len: usize,
    /// How much of the first chunk is the HTTP answer that frames may stand behind.
    answer: usize,
}

/// Whole frames, behind the HTTP answer in the first of all.
#[derive(Debug)]
enum Chunk {
    /// The same bytes for everyone: a pointer, not a copy.
    Shared(Rc<[u8]>),
    /// For this client alone.
    Own(Vec<u8>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Shared(bytes) => bytes,
            Chunk::Own(bytes) => bytes,
        }
    }
}

impl Outbox {
    /// Bytes that are not sent yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything is sent.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Begins with an HTTP answer.
    pub fn push_answer(&mut self, answer: Vec<u8>) {
        debug_assert!(self.first.is_none(), "it is the first that a client is sent");
        (self.len, self.answer) = (answer.len(), answer.len());
        self.push(Chunk::Own(answer));
    }

    fn push(&mut self, chunk: Chunk) {
        match &self.first {
            None => self.first = Some(chunk),
            Some(_) => self.rest.push_back(chunk),
        }
    }

    /// Appends frames that others are sent too.
    pub fn push_shared(&mut self, frames: Rc<[u8]>) {
        self.len += frames.len();
        self.push(Chunk::Shared(frames));
    }

    /// Sends frames that others are sent too. Nearly always the writer takes all of them at once, and then nothing is
    /// queued and nothing is shared; `shared` becomes their one copy when the first of all must wait.
    ///
    /// # Errors
    /// As [`Outbox::flush`].
    pub fn send_shared(
        &mut self,
        frames: &[u8],
        shared: &mut Option<Rc<[u8]>>,
        writer: &mut impl Write,
    ) -> io::Result<()> {
        let written = match self.is_empty().then(|| writer.write(frames)) {
            None => 0,
            Some(Ok(written)) => written,
            Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Some(Err(error)) => return Err(error),
        };
        if written == frames.len() {
            return Ok(());
        }
        self.push_shared(Rc::clone(shared.get_or_insert_with(|| frames.into())));
        self.consume(written);
        self.flush(writer)
    }

    /// Appends frames of this client's own, written by `write` to the end of a buffer.
    pub fn push_own(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match self.rest.back_mut().or(self.first.as_mut()) {
            Some(Chunk::Own(bytes)) if bytes.len() < OWN_CHUNK => {
                let before = bytes.len();
                write(bytes);
                self.len += bytes.len() - before;
            }
            _ => {
                let mut bytes = Vec::new();
                write(&mut bytes);
                self.len += bytes.len();
                self.push(Chunk::Own(bytes));
            }
        }
    }

    /// Appends frames of this client's own that are written already: an empty outbox takes their buffer.
    pub fn push_frames(&mut self, frames: Vec<u8>) {
        if self.is_empty() {
            self.len = frames.len();
            self.push(Chunk::Own(frames));
        } else {
            self.push_own(|bytes| bytes.extend(frames));
        }
    }

    /// Writes as much as `writer` takes. `Ok`: it took everything, or it would block.
    ///
    /// # Errors
    /// What the writer says, except that it would block or was interrupted.
    pub fn flush(&mut self, writer: &mut impl Write) -> io::Result<()> {
        while self.len > 0 {
            let written = match self.write_some(writer) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.consume(written);
        }
        Ok(())
    }

    /// One system call. A single chunk, which is the rule, needs no list.
    fn write_some(&self, writer: &mut impl Write) -> io::Result<usize> {
        let first = self.first.as_ref().map_or(&[][..], |first| &first.bytes()[self.sent..]);
        if self.rest.is_empty() {
            return writer.write(first);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let bytes = std::iter::once(first).chain(self.rest.iter().map(Chunk::bytes));
        let count = slices.iter_mut().zip(bytes).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count();
        writer.write_vectored(&slices[..count])
    }

    fn consume(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(chunk) = &self.first {
            let rest = chunk.bytes().len() - self.sent;
            if written < rest {
                self.sent += written;
                return;
            }
            written -= rest;
            (self.sent, self.answer) = (0, 0);
            self.first = self.rest.pop_front();
        }
        self.rest = VecDeque::new();
    }

    /// Whether more than `bound` bytes wait behind the frame that goes out next. That one alone is never too much: a
    /// welcome with its history is larger than any message.
    pub fn is_over(&self, bound: usize) -> bool {
        self.len > bound && self.len - (self.end_of_frame(self.sent + 1) - self.sent) > bound
    }

    /// Drops everything but the rest of a frame that is half sent.
    pub fn drop_unsent(&mut self) {
        let end = self.end_of_frame(self.sent);
        let rest = self.first.as_ref().map(|chunk| chunk.bytes()[self.sent..end].to_vec()).unwrap_or_default();
        *self = Outbox::default();
        if !rest.is_empty() {
            self.push_own(|bytes| bytes.extend(rest));
        }
    }

    /// Where in the first chunk the frame ends that holds the byte before `position`; 0 for 0. It is found by walking
    /// from header to header, since every chunk begins with a frame: but for an HTTP answer, which counts as one, and for
    /// what `drop_unsent` has left, behind which comes only a Close.
    fn end_of_frame(&self, position: usize) -> usize {
        let Some(chunk) = &self.first else { return 0 };
        let bytes = chunk.bytes();
        let mut end = if position > 0 { self.answer } else { 0 };
        while end < position.min(bytes.len()) {
            end += frame::server_frame_len(&bytes[end..]);
        }
        end.min(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Outbox {
        fn chunks(&self) -> Vec<&Chunk> {
            self.first.iter().chain(&self.rest).collect()
        }
    }

    /// A socket that takes `room` bytes and then would block.
    struct Socket {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.room);
            self.room -= written;
            self.taken.extend_from_slice(&bytes[..written]);
            if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        frame::append(&mut out, frame::Opcode::Binary, &vec![7; len]);
        out
    }

    /// Three frames in two chunks: a shared one of two, and one of its own.
    fn outbox() -> (Outbox, Vec<u8>) {
        let mut outbox = Outbox::default();
        let shared = [frame(3), frame(200)].concat();
        outbox.push_shared(Rc::from(&shared[..]));
        outbox.push_own(|bytes| bytes.extend(frame(1)));
        (outbox, [shared, frame(1)].concat())
    }

    #[test]
    fn the_picture_is_true() {
        let (mut outbox, _) = outbox();
        outbox.flush(&mut Socket { taken: Vec::new(), room: 7 }).unwrap();
        let mut picture = String::from("  chunk    frames              sent   to be finished first");
        for (at, chunk) in outbox.chunks().into_iter().enumerate() {
            let name = if matches!(chunk, Chunk::Shared(_)) { "Shared" } else { "Own" };
            let (mut frames, mut rest) = (Vec::new(), chunk.bytes());
            while !rest.is_empty() {
                let (frame, behind) = rest.split_at(frame::server_frame_len(rest));
                frames.push(format!("{} bytes", frame.len()));
                rest = behind;
            }
            let (sent, end) = (outbox.sent, outbox.end_of_frame(outbox.sent));
            let offsets = if at == 0 { format!("{sent:<7}bytes {sent} to {end}") } else { String::new() };
            picture += &format!("\n  {name:9}{:20}{offsets}", frames.join(", "));
        }
        picture += &format!("\n  waiting  {} bytes", outbox.len());
        crate::pictures::assert_drawn(include_str!("outbox.rs"), &picture);
    }

    #[test]
    fn frames_that_are_written_already_come_in_their_order() {
        let (mut outbox, mut sent) = (Outbox::default(), Vec::new());
        [frame(3), frame(5), frame(4)].into_iter().for_each(|frames| outbox.push_frames(frames));
        assert_eq!((outbox.len(), outbox.chunks().len()), ([frame(3), frame(5), frame(4)].concat().len(), 1));
        outbox.flush(&mut sent).unwrap();
        assert_eq!(sent, [frame(3), frame(5), frame(4)].concat());
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_partial_write_is_taken_up_where_it_ended() {
        let (_, all) = outbox();
        for cut in 0..=all.len() {
            let (mut outbox, _) = outbox();
            let mut socket = Socket { taken: Vec::new(), room: cut };
            outbox.flush(&mut socket).unwrap();
            assert_eq!(outbox.len(), all.len() - cut);
            socket.room = usize::MAX;
            outbox.flush(&mut socket).unwrap();
            assert_eq!(socket.taken, all, "cut at {cut}");
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn what_is_sent_to_many_is_kept_once_for_those_who_must_wait() {
        let frames = [frame(3), frame(200)].concat();
        for cut in 0..=frames.len() {
            let mut shared = None;
            let (mut quick, mut slow, mut slower) = (Outbox::default(), Outbox::default(), Outbox::default());
            let mut socket = Socket { taken: Vec::new(), room: usize::MAX };
            quick.send_shared(&frames, &mut shared, &mut socket).unwrap();
            assert!(quick.is_empty() && shared.is_none() && socket.taken == frames);
            let mut socket = Socket { taken: Vec::new(), room: cut };
            slow.send_shared(&frames, &mut shared, &mut socket).unwrap();
            slower.send_shared(&frames, &mut shared, &mut Socket { taken: Vec::new(), room: 0 }).unwrap();
            assert_eq!((slow.len(), slower.len()), (frames.len() - cut, frames.len()));
            let waiting = if cut < frames.len() { 3 } else { 2 };
            assert_eq!(shared.map(|frames| Rc::strong_count(&frames)), Some(waiting), "one copy, cut at {cut}");
            socket.room = usize::MAX;
            slow.send_shared(&frame(1), &mut None, &mut socket).unwrap();
            assert_eq!(socket.taken, [&frames[..], &frame(1)].concat(), "behind what waits, cut at {cut}");
        }
    }

    #[test]
    fn what_is_dropped_is_never_half_a_frame() {
        let (_, all) = outbox();
        let ends = [0, 5, 5 + 204, all.len()];
        for cut in 0..=all.len() {
            assert_dropped_at_an_end(outbox().0, &all, &ends, cut);
        }
    }

    /// Of an outbox that holds `all`, whose frames end at `ends`: when the socket takes no more than `cut` bytes and what
    /// is unsent is dropped, what goes out goes on to the next end.
    fn assert_dropped_at_an_end(mut outbox: Outbox, all: &[u8], ends: &[usize], cut: usize) {
        let mut socket = Socket { taken: Vec::new(), room: cut };
        outbox.flush(&mut socket).unwrap();
        outbox.drop_unsent();
        socket.room = usize::MAX;
        outbox.flush(&mut socket).unwrap();
        let end = *ends.iter().find(|&&end| end >= cut).unwrap();
        assert_eq!(socket.taken, all[..end], "cut at {cut}");
    }

    #[test]
    fn an_answer_and_the_frames_behind_it_are_one_chunk() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let all = [answer, &frame(3)[..], &frame(1)].concat();
        let ends = [0, answer.len(), answer.len() + 5, all.len()];
        for cut in 0..=all.len() {
            let mut outbox = Outbox::default();
            outbox.push_answer(answer.to_vec());
            outbox.push_own(|bytes| bytes.extend(frame(3)));
            outbox.push_own(|bytes| bytes.extend(frame(1)));
            assert_eq!((outbox.chunks().len(), outbox.len()), (1, all.len()));
            assert_dropped_at_an_end(outbox, &all, &ends, cut);
        }
    }

    #[test]
    fn one_frame_is_never_too_much() {
        let mut outbox = Outbox::default();
        outbox.push_own(|bytes| bytes.extend(frame(100)));
        assert!(!outbox.is_over(10));
        outbox.push_shared(frame(0).into());
        assert!(outbox.is_over(1) && !outbox.is_over(2));
    }

    #[test]
    fn a_chunk_of_its_own_does_not_grow_for_ever_under_a_slow_reader() {
        let mut outbox = Outbox::default();
        let mut socket = Socket { taken: Vec::new(), room: 0 };
        for _ in 0..1000 {
            outbox.push_own(|bytes| bytes.extend(frame(100)));
            socket.room = if outbox.len() > 500 { 102 } else { 0 };
            outbox.flush(&mut socket).unwrap();
            assert!(outbox.chunks().iter().all(|chunk| chunk.bytes().len() < OWN_CHUNK + 200));
        }
        assert!(outbox.chunks().len() < 4);
    }
}
