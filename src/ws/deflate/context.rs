//! Inflates messages that may refer to earlier ones (context takeover, RFC 7692 §7.2.3.2). The server does not allow
//! clients to send such messages. Only the inspector and the tools need this module, because they inflate a server's
//! messages.

use super::inflating::{Cost, ends_message};
use super::{Inflater, MAX_WINDOW_BITS, Step};
use crate::ws::close::ProtocolError::{self, InvalidDeflate, MessageTooBig};

const WINDOW_SIZE: usize = 1 << MAX_WINDOW_BITS;

/// Inflates the compressed messages of one direction of a connection.
#[derive(Debug, Default)]
pub struct ContextInflater {
    inflater: Inflater,
    window: Vec<u8>, // the most recent output, at least the last `WINDOW_SIZE` bytes
    is_final: bool,  // a final block has ended, so the next block starts a new stream
}

impl ContextInflater {
    pub const SIZE: usize = Inflater::SIZE + 2 * WINDOW_SIZE; // in bytes

    /// Clears the window of earlier output, so that the next message cannot refer to earlier messages (RFC 7692
    /// §7.1.1).
    pub fn reset(&mut self) {
        self.window.clear();
        self.is_final = true;
    }

    /// Like [`Inflater::step`], but also inflates blocks that follow a final block. These blocks may refer to bytes
    /// before the final block (RFC 7692 §7.2.3.4).
    pub fn step(&mut self, input: &mut &[u8]) -> Step<'_> {
        if self.is_final {
            self.inflater.reset(&self.window);
        }
        let step = self.inflater.step(input);
        self.window.extend_from_slice(step.output);
        if self.window.len() > 2 * WINDOW_SIZE {
            self.window.drain(..self.window.len() - WINDOW_SIZE);
        }
        self.is_final = step.is_final;
        step
    }

    /// Must be called at the end of each message. Returns `false` if the message ended in the middle of a DEFLATE
    /// block.
    pub fn end_message(&mut self) -> bool {
        if self.is_final {
            self.inflater.reset(&self.window);
        }
        self.is_final = true;
        ends_message(&mut self.inflater)
    }
}

/// Inflates a whole message. `window` holds the last bytes of earlier messages. On success, it also holds those of this
/// message.
pub fn inflate_message(mut payload: &[u8], window: &mut Vec<u8>, limit: usize) -> Result<Vec<u8>, ProtocolError> {
    let mut inflater = ContextInflater { window: std::mem::take(window), is_final: true, ..ContextInflater::default() };
    let (mut output, mut cost) = (Vec::new(), Cost::default());
    loop {
        let before = payload.len();
        let step = inflater.step(&mut payload);
        output.extend_from_slice(step.output);
        InvalidDeflate.err_unless(!step.is_broken)?;
        let is_affordable = cost.add(before - payload.len(), step.is_final, output.len());
        MessageTooBig.err_unless(output.len() <= limit && is_affordable)?;
        if step.needs_input {
            break;
        }
    }
    InvalidDeflate.err_unless(inflater.end_message())?;
    *window = inflater.window;
    Ok(output)
}
