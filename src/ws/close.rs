//! §5.5.1 and §7.4: what a Close frame says, and why a connection is failed (§7.1.7).
//!
//! [`CloseCode`] is a status code that may stand on the wire, [`CloseFrame`] a Close payload, and [`ProtocolError`]
//! has one variant for each rule that a peer can break. This file does not know in which state a close is allowed:
//! that is `protocol.rs`.
//!
//! ```text
//!       0 – 999     refused
//!    1000 – 1003    taken
//!    1004 – 1006    refused
//!    1007 – 1014    taken
//!    1015 – 2999    refused
//!    3000 – 4999    taken
//!    5000 – 65535   refused
//! ```
//!
//! What is taken is what §7.4.1 defines and the registry has added since (§11.7), and what §7.4.2 leaves to libraries
//! (3000–3999) and applications (4000–4999).
//!
//! The subtle thing: 1005, 1006 and 1015 are codes that an application is *told* and that no frame may carry, so a
//! `CloseCode` cannot hold them.

use std::fmt;

/// §5.5: the payload of a control frame is at most this many bytes.
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// A status code that may stand in a Close frame (§7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The server is going down.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// A rule of the protocol was broken.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// A kind of data that this endpoint does not take.
    pub const UNSUPPORTED_DATA: CloseCode = CloseCode(1003);
    /// Text, or a close reason, that is not UTF-8.
    pub const INVALID_PAYLOAD: CloseCode = CloseCode(1007);
    /// A rule of this server, rather than of the protocol, was broken.
    pub const POLICY_VIOLATION: CloseCode = CloseCode(1008);
    /// A message over the size limit.
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);
    /// The server is short of something and another try later may succeed (IANA registry).
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);

    /// A code as it was received.
    ///
    /// §7.4.1, §7.4.2 and the registry of §11.7 allow 1000–1003, 1007–1014 and 3000–4999. Everything else is reserved,
    /// or must not be sent: [`ProtocolError::InvalidCloseCode`].
    ///
    /// ```
    /// use wirechat::ws::close::CloseCode;
    /// assert_eq!(CloseCode::from_wire(1000), Ok(CloseCode::NORMAL));
    /// assert!(CloseCode::from_wire(1006).is_err()); // "MUST NOT be set as a status code in a Close control frame"
    /// ```
    pub fn from_wire(code: u16) -> Result<CloseCode, ProtocolError> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(CloseCode(code)),
            _ => Err(ProtocolError::InvalidCloseCode(code)),
        }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// The payload of a Close frame (§5.5.1): nothing, or a code and a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    /// `None`: an empty Close. An application is told 1005 then (§7.1.5).
    pub code: Option<CloseCode>,
    /// UTF-8, at most 123 bytes; empty without a code.
    pub reason: &'a str,
}

impl<'a> CloseFrame<'a> {
    /// Reads the unmasked payload of a Close frame.
    ///
    /// # Errors
    /// A single byte, a code that may not be sent, or a reason that is not UTF-8.
    ///
    /// ```
    /// use wirechat::ws::close::{CloseCode, CloseFrame, ProtocolError};
    /// let bye = CloseFrame { code: Some(CloseCode::NORMAL), reason: "bye" };
    /// assert_eq!(CloseFrame::parse(b"\x03\xe8bye"), Ok(bye.clone())); // 0x03e8 is 1000
    /// assert_eq!(bye.encode(), b"\x03\xe8bye");
    /// assert_eq!(CloseFrame::parse(b"\x03"), Err(ProtocolError::ClosePayloadOfOneByte));
    /// ```
    pub fn parse(payload: &'a [u8]) -> Result<CloseFrame<'a>, ProtocolError> {
        match payload {
            [] => Ok(CloseFrame { code: None, reason: "" }),
            // §5.5.1: "the first two bytes of the body MUST be a 2-byte unsigned integer"
            [_] => Err(ProtocolError::ClosePayloadOfOneByte),
            [hi, lo, reason @ ..] => {
                let code = CloseCode::from_wire(u16::from_be_bytes([*hi, *lo]))?;
                let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
                Ok(CloseFrame { code: Some(code), reason })
            }
        }
    }

    /// The payload to send. A reason over 123 bytes is cut at a character, since §5.5 allows 125 bytes in all.
    pub fn encode(&self) -> Vec<u8> {
        let Some(code) = self.code else {
            return Vec::new();
        };
        let room = MAX_CONTROL_PAYLOAD - 2;
        let mut payload = code.get().to_be_bytes().to_vec();
        payload.extend_from_slice(&self.reason.as_bytes()[..self.reason.floor_char_boundary(room)]);
        payload
    }
}

/// A rule that a peer broke (§10.7): one variant a rule. Each knows the code that its connection is closed with, and the
/// section; its text is the reason that the peer reads.
///
/// ```
/// use wirechat::ws::close::{CloseCode, ProtocolError};
/// let error = ProtocolError::Unmasked;
/// assert_eq!(error.code(), CloseCode::PROTOCOL_ERROR);
/// assert_eq!(error.to_string(), "client frames must be masked (RFC 6455 §5.1)");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// RSV1, RSV2 or RSV3 is set, and no extension gave it a meaning.
    ReservedBits,
    /// Opcode 3–7 or 11–15.
    ReservedOpcode(u8),
    /// A Close, Ping or Pong without FIN.
    FragmentedControl,
    /// A Close, Ping or Pong of more than 125 bytes.
    ControlTooLong,
    /// The mask bit is 0.
    Unmasked,
    /// A length in a longer form than it needs.
    LengthNotMinimal,
    /// A 64-bit length with its most significant bit set.
    LengthTopBit,
    /// A continuation frame with no message open.
    UnexpectedContinuation,
    /// A new text or binary frame in the middle of a fragmented message.
    ExpectedContinuation,
    /// A binary message where only text is taken.
    UnsupportedData,
    /// A message over the limit in bytes.
    MessageTooBig,
    /// A message in more fragments than the limit.
    TooManyFragments,
    /// A text message with bytes that are not UTF-8.
    TextNotUtf8,
    /// A Close payload of one byte.
    ClosePayloadOfOneByte,
    /// A close code that may not be sent.
    InvalidCloseCode(u16),
    /// A close reason that is not UTF-8.
    CloseReasonNotUtf8,
}

impl ProtocolError {
    /// The code that the connection is closed with (§7.4.1).
    pub fn code(self) -> CloseCode {
        match self {
            ProtocolError::UnsupportedData => CloseCode::UNSUPPORTED_DATA,
            ProtocolError::MessageTooBig => CloseCode::MESSAGE_TOO_BIG,
            ProtocolError::TooManyFragments => CloseCode::POLICY_VIOLATION,
            ProtocolError::TextNotUtf8 | ProtocolError::CloseReasonNotUtf8 => CloseCode::INVALID_PAYLOAD,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }

    /// Where the rule stands in RFC 6455.
    pub fn section(self) -> &'static str {
        match self {
            ProtocolError::Unmasked => "5.1",
            ProtocolError::ReservedBits
            | ProtocolError::ReservedOpcode(_)
            | ProtocolError::LengthNotMinimal
            | ProtocolError::LengthTopBit => "5.2",
            ProtocolError::UnexpectedContinuation | ProtocolError::ExpectedContinuation => "5.4",
            ProtocolError::FragmentedControl | ProtocolError::ControlTooLong => "5.5",
            ProtocolError::ClosePayloadOfOneByte => "5.5.1",
            ProtocolError::InvalidCloseCode(_) => "7.4",
            ProtocolError::UnsupportedData => "7.4.1",
            ProtocolError::TextNotUtf8 | ProtocolError::CloseReasonNotUtf8 => "8.1",
            ProtocolError::MessageTooBig | ProtocolError::TooManyFragments => "10.4",
        }
    }

    /// Whether the next frame can no longer be found: its header made no sense, or its payload is too long to wait
    /// for. Otherwise frames can be skipped until the peer's own Close comes.
    pub fn loses_framing(self) -> bool {
        matches!(self.code(), CloseCode::PROTOCOL_ERROR | CloseCode::MESSAGE_TOO_BIG)
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::ReservedBits => {
                write!(f, "RSV bits must be 0, no extension was negotiated")
            }
            ProtocolError::ReservedOpcode(opcode) => write!(f, "opcode {opcode:#x} is reserved"),
            ProtocolError::FragmentedControl => write!(f, "control frames must not be fragmented"),
            ProtocolError::ControlTooLong => write!(f, "control frames carry at most 125 bytes"),
            ProtocolError::Unmasked => write!(f, "client frames must be masked"),
            ProtocolError::LengthNotMinimal => write!(f, "the length must be in its shortest form"),
            ProtocolError::LengthTopBit => write!(f, "the top bit of a 64-bit length must be 0"),
            ProtocolError::UnexpectedContinuation => {
                write!(f, "continuation frame with no message to continue")
            }
            ProtocolError::ExpectedContinuation => {
                write!(f, "new message before the last one was finished")
            }
            ProtocolError::UnsupportedData => write!(f, "only text messages are taken here"),
            ProtocolError::MessageTooBig => write!(f, "message over the size limit"),
            ProtocolError::TooManyFragments => write!(f, "message in too many fragments"),
            ProtocolError::TextNotUtf8 => write!(f, "text must be UTF-8"),
            ProtocolError::ClosePayloadOfOneByte => {
                write!(f, "a close payload is empty or has a two-byte code")
            }
            ProtocolError::InvalidCloseCode(code) => {
                write!(f, "close code {code} must not be sent")
            }
            ProtocolError::CloseReasonNotUtf8 => write!(f, "a close reason must be UTF-8"),
        }?;
        write!(f, " (RFC 6455 §{})", self.section())
    }
}

impl std::error::Error for ProtocolError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7_4_each_edge_of_each_range_of_codes() {
        let allowed = [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999];
        let refused = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535];
        for code in allowed {
            assert_eq!(CloseCode::from_wire(code).map(CloseCode::get), Ok(code));
        }
        for code in refused {
            assert_eq!(CloseCode::from_wire(code), Err(ProtocolError::InvalidCloseCode(code)));
        }
    }

    #[test]
    fn the_picture_is_true() {
        let verdict = |code| if CloseCode::from_wire(code).is_ok() { "taken" } else { "refused" };
        let (mut picture, mut start) = (Vec::new(), 0);
        for code in 0..=u16::MAX {
            if code == u16::MAX || verdict(code + 1) != verdict(code) {
                picture.push(format!("  {start:5} – {code:<5}   {}", verdict(code)));
                start = code.saturating_add(1);
            }
        }
        crate::pictures::assert_drawn(include_str!("close.rs"), &picture.join("\n"));
    }

    #[test]
    fn rfc_5_5_1_payloads_and_verdicts() {
        let close = |code, reason| Ok(CloseFrame { code, reason });
        assert_eq!(CloseFrame::parse(b""), close(None, ""));
        assert_eq!(CloseFrame::parse(b"\x03\xe8"), close(Some(CloseCode::NORMAL), ""));
        assert_eq!(CloseFrame::parse(b"\x03\xe8bye"), close(Some(CloseCode::NORMAL), "bye"));
        assert_eq!(CloseFrame::parse(b"\x03"), Err(ProtocolError::ClosePayloadOfOneByte));
        assert_eq!(CloseFrame::parse(b"\x03\xed"), Err(ProtocolError::InvalidCloseCode(1005)));
        assert_eq!(CloseFrame::parse(b"\x03\xe8\xff"), Err(ProtocolError::CloseReasonNotUtf8));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "é".repeat(100);
        let payload = CloseFrame { code: Some(CloseCode::NORMAL), reason: &reason }.encode();
        assert_eq!(payload.len(), 124, "62 bytes more would still fit, half a character would not");
        assert!(CloseFrame::parse(&payload).is_ok());
    }

    #[test]
    fn every_reason_fits_a_close_frame() {
        use ProtocolError::*;
        let all = [
            ReservedBits,
            ReservedOpcode(0xf),
            FragmentedControl,
            ControlTooLong,
            Unmasked,
            LengthNotMinimal,
            LengthTopBit,
            UnexpectedContinuation,
            ExpectedContinuation,
            UnsupportedData,
            MessageTooBig,
            TooManyFragments,
            TextNotUtf8,
            ClosePayloadOfOneByte,
            InvalidCloseCode(65535),
            CloseReasonNotUtf8,
        ];
        for error in all {
            assert!(error.to_string().len() <= MAX_CONTROL_PAYLOAD - 2, "{error}");
            assert!(error.to_string().ends_with(&format!("(RFC 6455 §{})", error.section())), "{error}");
        }
    }
}
