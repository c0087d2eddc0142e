//! The heads of the handshake as they pass, and §1.3's accept value step by step.
//!
//! ```text
//!   dGhlIHNhbXBsZSBub25jZQ==                                        Sec-WebSocket-Key, as sent
//!   dGhlIHNhbXBsZSBub25jZQ==258EAFA5-E914-47DA-95CA-C5AB0DC85B11    with the GUID behind it
//!   b37a4f2cc0624f1690f64606cf385945b2bec4ea                        the SHA-1 of that
//!   s3pPLMBiTxaQ9kYGzzhZRbK+xOo=                                    its base64: Sec-WebSocket-Accept
//! ```
//!
//! Nothing is judged here: a request is shown as it came, however wrong it is, and the server's answer says what is the
//! matter.
//!
//! The subtle thing: a head may come in pieces, byte by byte even. So it is remembered how far the blank lines before a
//! request go, and only the last three bytes of a piece are looked at again.

use sha1::{Digest, Sha1};

use super::{AcceptSteps, Head};
use crate::ws::handshake::{GUID, accept_key};

/// How much of a head is kept, in bytes: the most that a server can be told to take.
const MAX_HEAD: usize = 1024 * 1024;

impl Head {
    /// Takes the bytes of the read or write `part`, up to the blank line, and returns those behind it.
    pub fn read<'b>(&mut self, bytes: &'b [u8], part: u64) -> &'b [u8] {
        const END: &[u8] = b"\r\n\r\n";
        if self.is_complete {
            return bytes;
        }
        let before = self.bytes.len();
        let kept = bytes.len().min(MAX_HEAD - before);
        self.bytes.extend_from_slice(&bytes[..kept]);
        // Blank lines may stand before a request line (RFC 9112 §2.2).
        if self.blank == before {
            self.blank += bytes[..kept].iter().take_while(|byte| b"\r\n".contains(byte)).count();
        }
        let from = before.saturating_sub(END.len() - 1).max(self.blank);
        let found = self.bytes[from..].windows(END.len()).position(|end| end == END);
        let end = found.map_or(self.bytes.len(), |at| from + at + END.len());
        self.bytes.truncate(end);
        self.is_complete = found.is_some();
        self.parts.add(part, end - before);
        // What is over the bound is of the head too.
        if self.is_complete { &bytes[end - before..] } else { &[] }
    }

    /// The first line, without its end.
    pub fn first_line(&self) -> String {
        let lines = self.bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        String::from_utf8_lossy(lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()).into_owned()
    }

    /// The status of an answer; 0 if there is none to be read.
    pub fn status(&self) -> u16 {
        self.first_line().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<String> {
        self.bytes.split(|byte| *byte == b'\n').find_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let is_it = line[..colon].eq_ignore_ascii_case(name.as_bytes());
            is_it.then(|| String::from_utf8_lossy(line[colon + 1..].trim_ascii()).into_owned())
        })
    }
}

impl AcceptSteps {
    /// The steps for a key, with no answer to compare them with.
    ///
    /// ```
    /// use wirechat::inspect::AcceptSteps;
    /// let steps = AcceptSteps::of("dGhlIHNhbXBsZSBub25jZQ==");
    /// assert_eq!((steps.sha1[0], &steps.accept[..]), (0xb3, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")); // §1.3
    /// ```
    pub fn of(key: &str) -> AcceptSteps {
        let joined = format!("{key}{GUID}");
        let sha1 = Sha1::digest(joined.as_bytes()).into();
        AcceptSteps { key: key.into(), joined, sha1, accept: accept_key(key.as_bytes()), answered: None }
    }

    /// The steps from a request to its answer (§4.2.2, item 5.4); `None` for a request without a key.
    pub fn between(request: &Head, answer: &Head) -> Option<AcceptSteps> {
        let key = request.header("Sec-WebSocket-Key")?;
        Some(AcceptSteps { answered: answer.header("Sec-WebSocket-Accept"), ..AcceptSteps::of(&key) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is over the bound is not taken for what is behind the head.
    #[test]
    fn a_head_that_is_too_long_has_nothing_behind_it() {
        let (mut head, piece) = (Head::default(), vec![b'x'; MAX_HEAD / 2 + 1]);
        assert_eq!(head.read(&piece, 1), b"");
        assert_eq!(head.read(&piece, 2), b"");
        assert_eq!((head.bytes.len(), head.is_complete), (MAX_HEAD, false));
        assert_eq!(head.read(b"\r\n\r\n", 3), b"");
    }
}
