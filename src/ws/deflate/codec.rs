//! DEFLATE (RFC 1951), as implemented by zlib-rs. The other files of this module decide which messages to compress,
//! and with which context.

use std::fmt;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::{MAX_WINDOW_BITS, SYNC_FLUSH_MARKER, Step};

const PIECE_LEN: usize = 8 * 1024; // bytes of output per step; a zip bomb exceeds a limit by at most this much
// Level 1 takes 0.8 µs to compress a chat message to 31% of its size. zlib's default, 6, takes 5.9 µs to reach 24%.
const COMPRESSION_LEVEL: i32 = 1;

/// Inflates one message at a time, in pieces of bounded length.
pub struct Inflater {
    stream: Inflate,
    piece: Box<[u8]>,
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater { stream: Inflate::new(false, MAX_WINDOW_BITS), piece: vec![0; PIECE_LEN].into() }
    }
}

impl Inflater {
    pub const SIZE: usize = 64 * 1024; // memory in bytes: the window, the output buffer and the code tables, rounded up

    /// Starts a new stream, whose first block may refer to bytes at the end of `context`.
    pub fn reset(&mut self, context: &[u8]) {
        self.stream.reset(false);
        // `set_dictionary` fails only for a stream with a zlib header, and this stream has none.
        let set = self.stream.set_dictionary(context);
        debug_assert!(set.is_ok());
    }

    /// Inflates until a piece is full, a final block ends, or `input` is empty or invalid. Removes what it has read.
    pub fn step(&mut self, input: &mut &[u8]) -> Step<'_> {
        let (read, written) = (self.stream.total_in(), self.stream.total_out());
        let status = self.stream.decompress(input, &mut self.piece, InflateFlush::SyncFlush);
        let (is_final, is_broken) = (status == Ok(Status::StreamEnd), status.is_err());
        *input = &input[(self.stream.total_in() - read) as usize..];
        let output = &self.piece[..(self.stream.total_out() - written) as usize];
        Step { output, needs_input: output.len() < PIECE_LEN && !is_final && !is_broken, is_final, is_broken }
    }
}

pub struct Compressor(Deflate);

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    pub fn new(window_bits: u8) -> Compressor {
        Compressor(Deflate::new(COMPRESSION_LEVEL, false, window_bits))
    }

    /// Starts a new stream, whose messages may refer to `context`, the last bytes that the peer has inflated.
    pub fn reset(&mut self, context: &[u8]) {
        self.0.reset();
        let set = self.0.set_dictionary(context);
        debug_assert!(set.is_ok());
    }

    /// Compresses a message as the next part of the stream (RFC 7692 §7.2.1).
    pub fn compress(&mut self, payload: &[u8]) -> Vec<u8> {
        let (mut out, mut input) = (Vec::new(), payload);
        loop {
            let (start, read, written) = (out.len(), self.0.total_in(), self.0.total_out());
            let room = input.len() + input.len() / 8 + 64; // usually enough for the whole compressed message
            out.resize(start + room, 0);
            let compressed = self.0.compress(input, &mut out[start..], DeflateFlush::SyncFlush);
            debug_assert!(compressed.is_ok());
            input = &input[(self.0.total_in() - read) as usize..];
            out.truncate(start + (self.0.total_out() - written) as usize);
            if out.len() < start + room {
                break;
            }
        }
        // RFC 7692 §7.2.1: "Remove 4 octets (that are 0x00 0x00 0xff 0xff) from the tail end."
        debug_assert!(input.is_empty() && out.ends_with(&SYNC_FLUSH_MARKER), "the stream was flushed");
        out.truncate(out.len() - SYNC_FLUSH_MARKER.len());
        out
    }
}
