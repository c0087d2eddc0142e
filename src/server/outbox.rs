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
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

use super::connection::Socket;
use super::observer::Observer;
use crate::ws::frame::{self, Role};

/// A [`Chunk::Own`] of this size takes no more frames, because sent bytes are freed one whole chunk at a time.
const MAX_OWN_CHUNK: usize = 4096;
/// Chunks per `writev` call. More are rarely queued, and the kernel accepts at most 1024.
const MAX_SLICES: usize = 16;

/// An empty outbox allocates no memory.
#[derive(Debug, Default)]
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    /// Sent bytes of the first chunk. No chunk has 4 GiB.
    sent: u32,
    /// Bytes of the chunks that are not shared.
    own: u32,
    /// Unsent bytes of all chunks.
    len: usize,
}

/// A buffer of whole frames, or an HTTP response, which counts as one frame.
#[derive(Debug)]
enum Chunk {
    Response(Vec<u8>),
    /// A copy shared by all members whose sockets did not accept everything at once.
    Shared(Rc<SharedFrames>),
    Own(Vec<u8>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Shared(frames) => &frames.bytes,
            Chunk::Own(bytes) | Chunk::Response(bytes) => bytes,
        }
    }
}

/// Frames in several outboxes. They count once towards `--max-buffered`, in `total`.
#[derive(Debug)]
struct SharedFrames {
    bytes: Box<[u8]>,
    total: Rc<Cell<usize>>,
}

impl Drop for SharedFrames {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes.len());
    }
}

/// Frames for several members, and the copy that their outboxes share once a socket does not accept all bytes.
#[derive(Debug)]
pub struct Broadcast<'a> {
    pub frames: &'a [u8],
    pub count: u64, // of frames
    total: &'a Rc<Cell<usize>>,
    copy: Option<Rc<SharedFrames>>,
}

impl<'a> Broadcast<'a> {
    /// `total` counts the bytes of all copies.
    pub fn new(frames: &'a [u8], total: &'a Rc<Cell<usize>>) -> Broadcast<'a> {
        Broadcast { frames, count: count_frames(frames), total, copy: None }
    }

    fn copy(&mut self) -> Rc<SharedFrames> {
        let Broadcast { frames, total, copy, .. } = self;
        let copy = copy.get_or_insert_with(|| {
            total.set(total.get() + frames.len());
            Rc::new(SharedFrames { bytes: (*frames).into(), total: Rc::clone(total) })
        });
        Rc::clone(copy)
    }
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that this outbox alone keeps in memory.
    pub fn own_len(&self) -> usize {
        self.own as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues the HTTP response, which must precede every frame.
    pub fn push_response(&mut self, response: Vec<u8>) {
        debug_assert!(self.chunks.is_empty(), "the response comes first");
        (self.len, self.own) = (response.len(), response.len() as u32);
        self.chunks.push_back(Chunk::Response(response));
    }

    pub fn push<'a>(&mut self, frames: impl Into<Cow<'a, [u8]>>) {
        let frames = frames.into();
        self.len += frames.len();
        self.own += frames.len() as u32;
        match self.chunks.back_mut() {
            _ if frames.is_empty() => {}
            Some(Chunk::Own(bytes)) if bytes.len() < MAX_OWN_CHUNK => bytes.extend_from_slice(&frames),
            _ => self.chunks.push_back(Chunk::Own(frames.into_owned())),
        }
    }

    /// Sends frames that several members receive. Usually the socket accepts all bytes without a copy.
    pub fn send_shared(&mut self, broadcast: &mut Broadcast<'_>, socket: &mut impl Socket) -> io::Result<()> {
        let frames = broadcast.frames;
        let written = match self.is_empty().then(|| socket.write(frames)) {
            Some(Ok(written)) if written == frames.len() => return Ok(()),
            Some(Ok(written)) => written,
            None => 0,
            Some(Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Some(Err(error)) => return Err(error),
        };
        self.len += frames.len();
        self.chunks.push_back(Chunk::Shared(broadcast.copy()));
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
            slices[0].advance(self.sent as usize);
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
        self.sent += written as u32;
        while let Some(chunk) = self.chunks.front().filter(|chunk| chunk.bytes().len() <= self.sent as usize) {
            let len = chunk.bytes().len() as u32;
            self.sent -= len;
            self.own -= if matches!(chunk, Chunk::Shared(_)) { 0 } else { len };
            self.chunks.pop_front();
        }
        if self.is_empty() {
            self.chunks = VecDeque::new(); // frees the queue's buffer
        }
    }

    /// Whether more than `bound` bytes are queued after the next frame. The next frame does not count, because a welcome
    /// with a long history can exceed the bound on its own. Call after a flush, which leaves only unaccepted bytes.
    pub fn is_over_bound(&self, bound: usize) -> bool {
        self.len > bound && self.len - (self.frame_end(self.sent as usize + 1) - self.sent as usize) > bound
    }

    /// Drops all output except the rest of a half-sent frame.
    pub fn drop_unsent(&mut self) {
        let (start, end) = (self.sent as usize, self.frame_end(self.sent as usize));
        let rest = self.chunks.front().map(|chunk| chunk.bytes()[start..end].to_vec()).unwrap_or_default();
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

/// `frames` must be whole, unmasked frames.
pub fn count_frames(mut frames: &[u8]) -> u64 {
    let mut count = 0;
    while !frames.is_empty() {
        frames = &frames[frame::server_frame_len(frames)..];
        count += 1;
    }
    count
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
        outbox.send_shared(&mut Broadcast::new(&shared, &Rc::default()), &mut pipe(0)).unwrap();
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
            let (sent, end) = (outbox.sent, outbox.frame_end(outbox.sent as usize));
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
            let total = Rc::default();
            let mut broadcast = Broadcast::new(&frames, &total);
            let (mut quick, mut slow, mut slower) = (Outbox::default(), Outbox::default(), Outbox::default());
            let mut socket = pipe(usize::MAX);
            quick.send_shared(&mut broadcast, &mut socket).unwrap();
            assert!(quick.is_empty() && total.get() == 0 && socket.written == frames);
            let mut socket = pipe(cut);
            slow.send_shared(&mut broadcast, &mut socket).unwrap();
            slower.send_shared(&mut broadcast, &mut pipe(0)).unwrap();
            assert_eq!((slow.len(), slower.len()), (frames.len() - cut, frames.len()));
            assert_eq!((total.get(), slow.own_len(), slower.own_len()), (frames.len(), 0, 0), "one copy, cut at {cut}");
            socket.room = usize::MAX;
            slow.push(frame(1));
            slow.flush(&mut socket, None).unwrap();
            assert_eq!(socket.written, [&frames[..], &frame(1)].concat(), "after what was queued, cut at {cut}");
            drop((slow, broadcast));
            assert_eq!(total.get(), frames.len(), "one outbox still holds the copy");
            slower.drop_unsent();
            assert_eq!(total.get(), 0);
        }
    }

    #[test]
    fn own_bytes_count_until_their_chunk_is_sent() {
        let (mut outbox, _) = outbox();
        assert_eq!(outbox.own_len(), frame(1).len());
        let mut socket = pipe(outbox.len() - 1);
        outbox.flush(&mut socket, None).unwrap();
        assert_eq!((outbox.len(), outbox.own_len()), (1, frame(1).len()));
        socket.room = 1;
        outbox.flush(&mut socket, None).unwrap();
        assert_eq!(outbox.own_len(), 0);
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
        outbox.send_shared(&mut Broadcast::new(&frame(0), &Rc::default()), &mut pipe(0)).unwrap();
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
            assert!(outbox.chunks().iter().all(|chunk| chunk.bytes().len() < MAX_OWN_CHUNK + 200));
        }
        assert!(outbox.chunks().len() < 4);
    }
}
