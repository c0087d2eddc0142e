//! The outbox: a bounded queue of whole frames for one socket. Outboxes share one copy of a broadcast. An outbox that
//! drops its output still finishes a half-sent frame: otherwise, the peer would read the next frame's header as
//! payload. Example: an outbox holds two shared frames and one of its own, and the socket has accepted seven bytes. The
//! second frame is half sent: the rest of it begins at offset 7 of its chunk and ends before offset 209. In total, 205
//! bytes are still queued.
//!
//! ```text
//!   chunk    frames              sent   to finish first
//!   Shared   5 bytes, 204 bytes  7      bytes 7 to 209
//!   Owned    3 bytes
//!   queued   205 bytes
//! ```

use std::io::{self, ErrorKind, IoSlice};
use std::{borrow::Cow, cell::Cell, collections::VecDeque, rc::Rc};

use super::{connection::Socket, observer::Observer};
use crate::ws::frame::{self, Role};

/// Size in bytes at which the outbox starts a new [`Chunk::Owned`]. Short chunks free memory early: a chunk is freed
/// only after its last byte is sent.
const MAX_OWNED_CHUNK: usize = 4096;
const MAX_CHUNKS_PER_WRITE: usize = 16; // maximum number of chunks per `writev` call; an outbox rarely has more

#[derive(Default)]
pub struct Outbox {
    chunks: VecDeque<Chunk>,
    sent: u32,  // number of sent bytes of the first chunk; fits a u32, because a chunk is under 4 GiB
    owned: u32, // total bytes of the chunks that are not shared
    len: usize, // total unsent bytes of all chunks
}

/// Whole frames, or an HTTP response, which counts as one frame. `drop_unsent` may leave a chunk that starts mid-frame.
enum Chunk {
    Response(Vec<u8>),
    Shared(Rc<SharedFrames>),
    Owned(Vec<u8>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Shared(frames) => &frames.bytes,
            Chunk::Owned(bytes) | Chunk::Response(bytes) => bytes,
        }
    }
}

/// A copy of a broadcast's frames. Members whose sockets do not accept every byte at once share the copy.
struct SharedFrames {
    bytes: Box<[u8]>,
    shared_bytes: Rc<Cell<usize>>, // total bytes of all `SharedFrames`, for `--max-buffered`
}

impl Drop for SharedFrames {
    fn drop(&mut self) {
        self.shared_bytes.set(self.shared_bytes.get() - self.bytes.len());
    }
}

pub struct Broadcast<'a> {
    pub frames: &'a [u8],
    pub count: u64, // number of WebSocket frames encoded in `frames`
    shared_bytes: &'a Rc<Cell<usize>>,
    shared: Option<Rc<SharedFrames>>,
}

impl<'a> Broadcast<'a> {
    pub fn new(frames: &'a [u8], shared_bytes: &'a Rc<Cell<usize>>) -> Broadcast<'a> {
        Broadcast { frames, count: count_frames(frames), shared_bytes, shared: None }
    }

    fn share(&mut self) -> Rc<SharedFrames> {
        let Broadcast { frames, shared_bytes, shared, .. } = self;
        Rc::clone(shared.get_or_insert_with(|| {
            shared_bytes.set(shared_bytes.get() + frames.len());
            Rc::new(SharedFrames { bytes: (*frames).into(), shared_bytes: Rc::clone(shared_bytes) })
        }))
    }
}

impl Outbox {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn owned_len(&self) -> usize {
        self.owned as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push_response(&mut self, response: Vec<u8>) {
        debug_assert!(self.chunks.is_empty(), "the HTTP response precedes every frame");
        (self.len, self.owned) = (response.len(), response.len() as u32);
        self.chunks.push_back(Chunk::Response(response));
    }

    pub fn push<'a>(&mut self, frames: impl Into<Cow<'a, [u8]>>) {
        let frames = frames.into();
        self.len += frames.len();
        self.owned += frames.len() as u32;
        match self.chunks.back_mut() {
            _ if frames.is_empty() => {}
            Some(Chunk::Owned(bytes)) if bytes.len() < MAX_OWNED_CHUNK => bytes.extend_from_slice(&frames),
            _ => self.chunks.push_back(Chunk::Owned(frames.into_owned())),
        }
    }

    /// Sends a broadcast after the queued output. Usually the socket accepts all bytes, so no copy is needed.
    pub fn send_broadcast(&mut self, broadcast: &mut Broadcast<'_>, socket: &mut impl Socket) -> io::Result<()> {
        let frames = broadcast.frames;
        let result = if self.is_empty() { socket.write(frames) } else { Ok(0) };
        let written = match result {
            Ok(written) if written == frames.len() => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            result => result?,
        };
        self.len += frames.len();
        self.chunks.push_back(Chunk::Shared(broadcast.share()));
        self.consume(written);
        self.flush(socket, None)
    }

    pub fn flush(&mut self, socket: &mut impl Socket, mut observer: Option<&mut dyn Observer>) -> io::Result<()> {
        while self.len > 0 {
            let mut slices: [IoSlice<'_>; MAX_CHUNKS_PER_WRITE] =
                std::array::from_fn(|at| IoSlice::new(self.chunks.get(at).map(Chunk::bytes).unwrap_or_default()));
            slices[0].advance(self.sent as usize);
            let written = match socket.write_vectored(&slices[..self.chunks.len().min(MAX_CHUNKS_PER_WRITE)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                result => result?,
            };
            if let Some(observer) = &mut observer {
                // Call the observer once per write, even if the write includes several chunks.
                let mut bytes = slices.iter().map(|slice| &**slice).collect::<Vec<&[u8]>>().concat();
                bytes.truncate(written);
                observer.observe(Role::Server, &bytes);
            }
            self.consume(written);
        }
        Ok(())
    }

    fn consume(&mut self, written: usize) {
        self.len -= written;
        self.sent += written as u32;
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.bytes().len() <= self.sent as usize) {
            let len = chunk.bytes().len() as u32;
            self.sent -= len;
            self.owned -= if matches!(chunk, Chunk::Shared(_)) { 0 } else { len };
        }
        if self.is_empty() {
            self.chunks = VecDeque::new(); // frees the memory of the empty queue
        }
    }

    /// Whether more than `bound` bytes are queued behind the frame at the front of the queue. That frame does not
    /// count, because a single frame may have any length. Call `flush` first, so that bytes that the socket can accept
    /// now do not count.
    pub fn is_over_bound(&self, bound: usize) -> bool {
        self.len > bound && self.len - (self.frame_end(self.sent as usize + 1) - self.sent as usize) > bound
    }

    /// Drops all output except the HTTP response and the rest of a half-sent frame. Without the response, the peer
    /// could not read a Close.
    pub fn drop_unsent(&mut self) {
        let (start, end) = (self.sent as usize, self.frame_end(self.sent as usize));
        let rest = self.chunks.front().map(|chunk| chunk.bytes()[start..end].to_vec()).unwrap_or_default();
        *self = Outbox::default();
        self.push(rest);
    }

    /// Rounds `position` up to the end of a frame or response in the first chunk. Do not call this after `drop_unsent`:
    /// the outbox may then start in the middle of a frame.
    fn frame_end(&self, position: usize) -> usize {
        let Some(chunk) = self.chunks.front() else { return 0 };
        let bytes = chunk.bytes();
        let mut end = if matches!(chunk, Chunk::Response(_)) { bytes.len() } else { 0 };
        while end < position.min(bytes.len()) {
            end += frame::server_frame_len(&bytes[end..]);
        }
        end.min(bytes.len())
    }
}

/// Counts the frames in `frames`. Every frame must be whole and unmasked.
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

    impl Outbox {
        fn chunks(&self) -> Vec<&Chunk> {
            self.chunks.iter().collect()
        }
    }

    /// A socket that accepts `space` bytes, then returns `WouldBlock`.
    struct Pipe {
        written: Vec<u8>,
        space: usize,
    }

    fn pipe(space: usize) -> Pipe {
        Pipe { written: Vec::new(), space }
    }

    impl Read for Pipe {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = bytes.len().min(self.space);
            self.space -= written;
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
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        frame::append(&mut out, frame::Opcode::Binary, &vec![7; len]);
        out
    }

    /// Returns an outbox with two frames in a shared chunk and one in an owned chunk, and a copy of all bytes.
    fn outbox() -> (Outbox, Vec<u8>) {
        let mut outbox = Outbox::default();
        let shared = [frame(3), frame(200)].concat();
        outbox.send_broadcast(&mut Broadcast::new(&shared, &Rc::default()), &mut pipe(0)).unwrap();
        outbox.push(frame(1));
        (outbox, [shared, frame(1)].concat())
    }

    #[test]
    fn picture_matches_the_code() {
        let (mut outbox, _) = outbox();
        outbox.flush(&mut pipe(7), None).unwrap();
        let mut picture = String::from("  chunk    frames              sent   to finish first");
        for (at, chunk) in outbox.chunks().into_iter().enumerate() {
            let name = if matches!(chunk, Chunk::Shared(_)) { "Shared" } else { "Owned" };
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
        crate::pictures::assert_in_module_doc(include_str!("outbox.rs"), &picture);
    }

    #[test]
    fn owned_frames_keep_their_order_in_one_chunk() {
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
            socket.space = usize::MAX;
            outbox.flush(&mut socket, None).unwrap();
            assert_eq!(socket.written, all, "cut at {cut}");
            assert!(outbox.is_empty());
        }
    }

    #[test]
    fn members_that_have_to_wait_share_one_copy() {
        let frames = [frame(3), frame(200)].concat();
        for cut in 0..=frames.len() {
            let shared_bytes = Rc::default();
            let mut broadcast = Broadcast::new(&frames, &shared_bytes);
            let (mut quick, mut slow, mut slower) = (Outbox::default(), Outbox::default(), Outbox::default());
            let mut socket = pipe(usize::MAX);
            quick.send_broadcast(&mut broadcast, &mut socket).unwrap();
            assert!(quick.is_empty() && shared_bytes.get() == 0 && socket.written == frames);
            let mut socket = pipe(cut);
            slow.send_broadcast(&mut broadcast, &mut socket).unwrap();
            slower.send_broadcast(&mut broadcast, &mut pipe(0)).unwrap();
            assert_eq!((slow.len(), slower.len()), (frames.len() - cut, frames.len()));
            assert_eq!(
                (shared_bytes.get(), slow.owned_len(), slower.owned_len()),
                (frames.len(), 0, 0),
                "one copy, cut at {cut}"
            );
            socket.space = usize::MAX;
            slow.push(frame(1));
            slow.flush(&mut socket, None).unwrap();
            assert_eq!(socket.written, [&frames[..], &frame(1)].concat(), "the owned frame last, cut at {cut}");
            drop((slow, broadcast));
            assert_eq!(shared_bytes.get(), frames.len(), "one outbox still holds the copy");
            slower.drop_unsent();
            assert_eq!(shared_bytes.get(), 0);
        }
    }

    #[test]
    fn owned_bytes_count_until_their_chunk_is_sent() {
        let (mut outbox, _) = outbox();
        assert_eq!(outbox.owned_len(), frame(1).len());
        let mut socket = pipe(outbox.len() - 1);
        outbox.flush(&mut socket, None).unwrap();
        assert_eq!((outbox.len(), outbox.owned_len()), (1, frame(1).len()));
        socket.space = 1;
        outbox.flush(&mut socket, None).unwrap();
        assert_eq!(outbox.owned_len(), 0);
    }

    #[test]
    fn a_frame_that_is_half_sent_is_not_dropped() {
        let (_, all) = outbox();
        let ends = [0, 5, 5 + 204, all.len()];
        for cut in 0..=all.len() {
            assert_dropped_at_frame_end(outbox().0, &all, &ends, cut);
        }
    }

    /// `all` is the content of `outbox`, whose frames end at `ends`. After the socket has accepted `cut` bytes and
    /// `drop_unsent` has run, the socket must receive only what is left up to the next end.
    fn assert_dropped_at_frame_end(mut outbox: Outbox, all: &[u8], ends: &[usize], cut: usize) {
        let mut socket = pipe(cut);
        outbox.flush(&mut socket, None).unwrap();
        outbox.drop_unsent();
        socket.space = usize::MAX;
        outbox.flush(&mut socket, None).unwrap();
        let end = *ends.iter().find(|&&end| end >= cut).unwrap();
        assert_eq!(socket.written, all[..end], "cut at {cut}");
    }

    #[test]
    fn a_response_counts_as_one_frame() {
        let response = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        let all = [response, &frame(3)[..], &frame(1)].concat();
        let ends = [response.len(), response.len() + 5, all.len()]; // even an unsent response is not dropped
        for cut in 0..=all.len() {
            let mut outbox = Outbox::default();
            outbox.push_response(response.to_vec());
            outbox.push(frame(3));
            outbox.push(frame(1));
            assert_eq!((outbox.chunks().len(), outbox.len()), (2, all.len()));
            assert_dropped_at_frame_end(outbox, &all, &ends, cut);
        }
    }

    #[test]
    fn one_frame_alone_is_never_over_the_bound() {
        let mut outbox = Outbox::default();
        outbox.push(frame(100));
        assert!(!outbox.is_over_bound(10));
        outbox.send_broadcast(&mut Broadcast::new(&frame(0), &Rc::default()), &mut pipe(0)).unwrap();
        assert!(outbox.is_over_bound(1) && !outbox.is_over_bound(2));
    }

    #[test]
    fn an_owned_chunk_stays_short_under_a_slow_consumer() {
        let mut outbox = Outbox::default();
        let mut socket = pipe(0);
        for _ in 0..1000 {
            outbox.push(frame(100));
            socket.space = if outbox.len() > 500 { 102 } else { 0 };
            outbox.flush(&mut socket, None).unwrap();
            assert!(outbox.chunks().iter().all(|chunk| chunk.bytes().len() < MAX_OWNED_CHUNK + 200));
        }
        assert!(outbox.chunks().len() < 4);
    }
}
