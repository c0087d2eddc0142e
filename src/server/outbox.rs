//! The outbox: a bounded queue of whole frames for one socket. Most frames are shared with other members of a room.
//!
//! A partial write can leave a frame half sent. The outbox always finishes that frame first, or the peer would read the
//! next header as payload. Three frames, two of them shared, after seven bytes were sent:
//!
//! ```text
//!   chunk    frames              sent   to finish first
//!   Shared   5 bytes, 204 bytes  7      bytes 7 to 209
//!   Own      3 bytes
//!   queued   205 bytes
//! ```

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

use super::connection::Socket;
use super::observer::Observer;
use crate::ws::frame::{self, Role};

/// A [`Chunk::Own`] of this size takes no more frames, because sent bytes are freed one whole chunk at a time.
const OWN_CHUNK: usize = 4096;
/// Chunks per `writev` call. More are rarely queued, and the kernel accepts at most 1024.
const MAX_SLICES: usize = 16;

/// An empty outbox allocates no memory.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    /// Sent bytes of the first chunk.
    sent: usize,
    /// Unsent bytes of all chunks.
    len: usize,
}

/// A buffer of whole frames, or an HTTP response, which counts as one frame.
#[derive(Debug)]
enum Chunk {
    Response(Vec<u8>),
    /// A copy shared by all members whose sockets did not accept everything at once.
    Shared(Rc<[u8]>),
    Own(Vec<u8>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Shared(bytes) => bytes,
            Chunk::Own(bytes) | Chunk::Response(bytes) => bytes,
        }
    }
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues the HTTP response, which must precede every frame.
    pub fn push_response(&mut self, response: Vec<u8>) {
        debug_assert!(self.chunks.is_empty(), "the response comes first");
        self.len = response.len();
        self.chunks.push_back(Chunk::Response(response));
    }

    pub fn push<'a>(&mut self, frames: impl Into<Cow<'a, [u8]>>) {
        let frames = frames.into();
        self.len += frames.len();
        match self.chunks.back_mut() {
            _ if frames.is_empty() => {}
            Some(Chunk::Own(bytes)) if bytes.len() < OWN_CHUNK => bytes.extend_from_slice(&frames),
            _ => self.chunks.push_back(Chunk::Own(frames.into_owned())),
        }
    }

    /// Sends frames that several members receive. Usually the socket accepts all bytes without a copy. The first write
    /// that would block makes one copy in `shared`, and all blocked outboxes queue that copy.
    pub fn send_shared(
        &mut self,
        frames: &[u8],
        shared: &mut Option<Rc<[u8]>>,
        socket: &mut impl Socket,
    ) -> io::Result<()> {
        let written = match self.is_empty().then(|| socket.write(frames)) {
            Some(Ok(written)) if written == frames.len() => return Ok(()),
            Some(Ok(written)) => written,
            None => 0,
            Some(Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Some(Err(error)) => return Err(error),
        };
        let frames = shared.get_or_insert_with(|| frames.into());
        self.len += frames.len();
        self.chunks.push_back(Chunk::Shared(Rc::clone(frames)));
        self.consume(written);
        self.flush(socket, None)
    }

    /// Returns `Ok` if everything is written or the socket would block, and `Err` if the socket has failed.
    pub fn flush(&mut self, socket: &mut impl Socket, mut observer: Option<&mut dyn Observer>) -> io::Result<()> {
        while self.len > 0 {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = slices.len().min(self.chunks.len());
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(chunk.bytes());
            }
            slices[0].advance(self.sent);
            let written = match socket.write_vectored(&slices[..count]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if let Some(observer) = &mut observer {
                // Call the observer once per write, however many chunks were written.
                let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(written).collect();
                observer.bytes(Role::Server, &bytes);
            }
            self.consume(written);
        }
        Ok(())
    }

    fn consume(&mut self, written: usize) {
        self.len -= written;
        self.sent += written;
        while let Some(len) = self.chunks.front().map(|chunk| chunk.bytes().len()).filter(|len| *len <= self.sent) {
            self.sent -= len;
            self.chunks.pop_front();
        }
        if self.is_empty() {
            self.chunks = VecDeque::new(); // frees the queue's buffer
        }
    }

    /// Whether more than `bound` bytes are queued after the next frame. The next frame does not count, because a welcome
    /// with a long history can exceed the bound on its own. Call after a flush, which leaves only unaccepted bytes.
    pub fn is_over_bound(&self, bound: usize) -> bool {
        self.len > bound && self.len - (self.frame_end(self.sent + 1) - self.sent) > bound
    }

    /// Drops all output except the rest of a half-sent frame.
    pub fn drop_unsent(&mut self) {
        let end = self.frame_end(self.sent);
        let rest = self.chunks.front().map(|chunk| chunk.bytes()[self.sent..end].to_vec()).unwrap_or_default();
        *self = Outbox::default();
        self.push(rest);
    }

    /// In the first chunk, returns the end of the frame that contains byte `position - 1`; 0 for position 0. A chunk
    /// starts with a frame header, unless it is a response or the rest that `drop_unsent` keeps (only a Close follows).
    fn frame_end(&self, position: usize) -> usize {
        let Some(chunk) = self.chunks.front() else { return 0 };
        let bytes = chunk.bytes();
        let mut end = if position > 0 && matches!(chunk, Chunk::Response(_)) { bytes.len() } else { 0 };
        while end < position.min(bytes.len()) {
            end += frame::server_frame_len(&bytes[end..]);
        }
        end.min(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::server::connection::Direction;

    impl Outbox {
        fn chunks(&self) -> Vec<&Chunk> {
            self.chunks.iter().collect()
        }
    }

    /// A socket that accepts `room` bytes, then returns `WouldBlock`.
    struct Pipe {
        written: Vec<u8>,
        room: usize,
    }

    fn pipe(room: usize) -> Pipe {
        Pipe { written: Vec::new(), room }
    }

    impl Read for Pipe {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.room);
            self.room -= written;
            self.written.extend_from_slice(&bytes[..written]);
            if written == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(written) }
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.write(&slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Socket for Pipe {
        fn has_pending(&self, _: Direction) -> bool {
            false
        }

        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        frame::append(&mut out, frame::Opcode::Binary, &vec![7; len]);
        out
    }

    /// Two frames in a shared chunk, and one frame in an own chunk.
    fn outbox() -> (Outbox, Vec<u8>) {
        let mut outbox = Outbox::default();
        let shared = [frame(3), frame(200)].concat();
        outbox.send_shared(&shared, &mut None, &mut pipe(0)).unwrap();
        outbox.push(frame(1));
        (outbox, [shared, frame(1)].concat())
    }

    #[test]
    fn the_picture_matches_the_code() {
        let (mut outbox, _) = outbox();
        outbox.flush(&mut pipe(7), None).unwrap();
        let mut picture = String::from("  chunk    frames              sent   to finish first");
        for (at, chunk) in outbox.chunks().into_iter().enumerate() {
            let name = if matches!(chunk, Chunk::Shared(_)) { "Shared" } else { "Own" };
            let (mut frames, mut rest) = (Vec::new(), chunk.bytes());
            while !rest.is_empty() {
                let (frame, behind) = rest.split_at(frame::server_frame_len(rest));
                frames.push(format!("{} bytes", frame.len()));
                rest = behind;
            }
            let (sent, end) = (outbox.sent, outbox.frame_end(outbox.sent));
            let offsets = if at == 0 { format!("{sent:<7}bytes {sent} to {end}") } else { String::new() };
            picture += &format!("\n  {name:9}{:20}{offsets}", frames.join(", "));
        }
        picture += &format!("\n  queued   {} bytes", outbox.len());
        crate::pictures::assert_drawn(include_str!("outbox.rs"), &picture);
    }

    #[test]
    fn own_frames_keep_their_order_in_one_chunk() {
        let (mut outbox, mut sent) = (Outbox::default(), pipe(usize::MAX));
        [frame(3), frame(5), frame(4)].iter().for_each(|frames| outbox.push(frames));
        assert_eq!((outbox.len(), outbox.chunks().len()), ([frame(3), frame(5), frame(4)].concat().len(), 1));
        outbox.flush(&mut sent, None).unwrap();
        assert_eq!(sent.written, [frame(3), frame(5), frame(4)].concat());
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_partial_write_continues_where_it_ended() {
        let (_, all) = outbox();
        for cut in 0..=all.len() {
            let (mut outbox, _) = outbox();
            let mut socket = pipe(cut);
            outbox.flush(&mut socket, None).unwrap();
            assert_eq!(outbox.len(), all.len() - cut);
            socket.room = usize::MAX;
            outbox.flush(&mut socket, None).unwrap();
            assert_eq!(socket.written, all, "cut at {cut}");
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn members_that_have_to_wait_share_one_copy() {
        let frames = [frame(3), frame(200)].concat();
        for cut in 0..=frames.len() {
            let mut shared = None;
            let (mut quick, mut slow, mut slower) = (Outbox::default(), Outbox::default(), Outbox::default());
            let mut socket = pipe(usize::MAX);
            quick.send_shared(&frames, &mut shared, &mut socket).unwrap();
            assert!(quick.is_empty() && shared.is_none() && socket.written == frames);
            let mut socket = pipe(cut);
            slow.send_shared(&frames, &mut shared, &mut socket).unwrap();
            slower.send_shared(&frames, &mut shared, &mut pipe(0)).unwrap();
            assert_eq!((slow.len(), slower.len()), (frames.len() - cut, frames.len()));
            let waiting = if cut < frames.len() { 3 } else { 2 };
            assert_eq!(shared.map(|frames| Rc::strong_count(&frames)), Some(waiting), "one copy, cut at {cut}");
            socket.room = usize::MAX;
            slow.send_shared(&frame(1), &mut None, &mut socket).unwrap();
            assert_eq!(socket.written, [&frames[..], &frame(1)].concat(), "behind what waits, cut at {cut}");
        }
    }

    #[test]
    fn a_frame_that_is_half_sent_is_not_dropped() {
        let (_, all) = outbox();
        let ends = [0, 5, 5 + 204, all.len()];
        for cut in 0..=all.len() {
            assert_dropped_at_an_end(outbox().0, &all, &ends, cut);
        }
    }

    /// `all` is the content of `outbox`, whose frames end at `ends`. After the socket has accepted `cut` bytes and
    /// `drop_unsent` has run, the socket must receive only the rest of the half-sent frame.
    fn assert_dropped_at_an_end(mut outbox: Outbox, all: &[u8], ends: &[usize], cut: usize) {
        let mut socket = pipe(cut);
        outbox.flush(&mut socket, None).unwrap();
        outbox.drop_unsent();
        socket.room = usize::MAX;
        outbox.flush(&mut socket, None).unwrap();
        let end = *ends.iter().find(|&&end| end >= cut).unwrap();
        assert_eq!(socket.written, all[..end], "cut at {cut}");
    }

    #[test]
    fn a_response_counts_as_one_frame() {
        let response = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let all = [response, &frame(3)[..], &frame(1)].concat();
        let ends = [0, response.len(), response.len() + 5, all.len()];
        for cut in 0..=all.len() {
            let mut outbox = Outbox::default();
            outbox.push_response(response.to_vec());
            outbox.push(frame(3));
            outbox.push(frame(1));
            assert_eq!((outbox.chunks().len(), outbox.len()), (2, all.len()));
            assert_dropped_at_an_end(outbox, &all, &ends, cut);
        }
    }

    #[test]
    fn one_frame_alone_is_never_over_the_bound() {
        let mut outbox = Outbox::default();
        outbox.push(frame(100));
        assert!(!outbox.is_over_bound(10));
        outbox.send_shared(&frame(0), &mut None, &mut pipe(0)).unwrap();
        assert!(outbox.is_over_bound(1) && !outbox.is_over_bound(2));
    }

    #[test]
    fn an_own_chunk_stays_short_under_a_slow_consumer() {
        let mut outbox = Outbox::default();
        let mut socket = pipe(0);
        for _ in 0..1000 {
            outbox.push(frame(100));
            socket.room = if outbox.len() > 500 { 102 } else { 0 };
            outbox.flush(&mut socket, None).unwrap();
            assert!(outbox.chunks().iter().all(|chunk| chunk.bytes().len() < OWN_CHUNK + 200));
        }
        assert!(outbox.chunks().len() < 4);
    }
}
