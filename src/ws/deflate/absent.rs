//! Stands in for the module `codec` in builds without the feature `deflate`. Such builds never negotiate compression,
//! but they may replay a recording with compressed messages. Inflating them must therefore return an error, not panic.

use super::Step;

#[derive(Debug, Default)]
pub struct Inflater {}

impl Inflater {
    pub const SIZE: usize = 0;

    pub fn reset(&mut self, _: &[u8]) {}

    pub fn step(&mut self, _: &mut &[u8]) -> Step<'_> {
        Step { output: b"", needs_input: false, is_final: false, is_broken: true }
    }
}

#[derive(Debug)]
pub struct Compressor;

impl Compressor {
    pub fn new(_: u8) -> Compressor {
        Compressor
    }

    pub fn reset(&mut self, _: &[u8]) {}

    pub fn compress(&mut self, _: &[u8]) -> Vec<u8> {
        unreachable!("no connection negotiated compression");
    }
}
