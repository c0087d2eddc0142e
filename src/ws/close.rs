//! §5.5.1 and §7.4: the payload of a Close frame, and the protocol errors that fail a connection (§7.1.7).

use std::{borrow::Cow, fmt};

use super::frame::MAX_CONTROL_PAYLOAD;

/// A status code that a Close frame may carry (§7.4). Frames must not carry 1005, 1006 or 1015: only APIs report them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    pub const NORMAL: CloseCode = CloseCode(1000);
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    pub const POLICY_VIOLATION: CloseCode = CloseCode(1008);
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);
    pub const INTERNAL_ERROR: CloseCode = CloseCode(1011);
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013); // defined in the IANA registry (§11.7), not in RFC 6455

    pub fn from_wire(code: u16) -> Result<CloseCode, ProtocolError> {
        // Allow 1000–1003, 1007–1011 (§7.4.1), 1012–1014 (IANA, §11.7), 3000–4999 (libraries, applications, §7.4.2).
        let is_allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        ProtocolError::InvalidCloseCode(code).err_unless(is_allowed).map(|()| CloseCode(code))
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame<'a> {
    pub code: Option<CloseCode>, // `None` if the Close payload is empty, which browsers report as code 1005 (§7.1.5)
    pub reason: &'a str,         // the close reason, empty if `code` is `None`
}

impl<'a> CloseFrame<'a> {
    pub fn parse(payload: &'a [u8]) -> Result<CloseFrame<'a>, ProtocolError> {
        let (code, reason): (_, &[u8]) = match payload {
            [] => (None, b""),
            // §5.5.1: "the first two bytes of the body MUST be a 2-byte unsigned integer"
            [_] => return Err(ProtocolError::ClosePayloadOfOneByte),
            [high, low, reason @ ..] => (Some(CloseCode::from_wire(u16::from_be_bytes([*high, *low]))?), reason),
        };
        Ok(CloseFrame { code, reason: str::from_utf8(reason).or(Err(ProtocolError::CloseReasonNotUtf8))? })
    }

    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(self.code.is_some() || self.reason.is_empty(), "§5.5.1: a reason follows a code");
        let Some(code) = self.code else { return Vec::new() };
        let end = self.reason.floor_char_boundary(MAX_CONTROL_PAYLOAD - 2); // §5.5: 125 bytes, including a 2-byte code
        [&code.get().to_be_bytes(), &self.reason.as_bytes()[..end]].concat()
    }
}

/// The rule of RFC 6455 or RFC 7692 that the peer broke, or the limit of this server that the peer exceeded (§10.7).
/// `Display` writes the Close reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    ReservedBits,
    ReservedOpcode(u8),
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
    InvalidCloseCode(u16),
    CloseReasonNotUtf8,
    MisplacedRsv1,
    InvalidDeflate,
}

impl ProtocolError {
    fn code_section_and_text(self) -> (u16, &'static str, Cow<'static, str>) {
        use ProtocolError::*;
        match self {
            ReservedBits => (1002, "5.2", "RSV bits must be 0: no extension was negotiated".into()),
            ReservedOpcode(opcode) => (1002, "5.2", format!("opcode {opcode:#x} is reserved").into()),
            FragmentedControl => (1002, "5.5", "control frames must not be fragmented".into()),
            ControlTooLong => (1002, "5.5", "control frames carry at most 125 bytes".into()),
            Unmasked => (1002, "5.1", "client frames must be masked".into()),
            LengthNotMinimal => (1002, "5.2", "the length must be in its shortest form".into()),
            LengthTopBit => (1002, "5.2", "the top bit of a 64-bit length must be 0".into()),
            UnexpectedContinuation => (1002, "5.4", "continuation frame with no message to continue".into()),
            ExpectedContinuation => (1002, "5.4", "new message before the previous one was finished".into()),
            UnsupportedData => (1003, "7.4.1", "only text messages are accepted here".into()),
            MessageTooBig => (1009, "10.4", "message over the size limit".into()),
            TooManyFragments => (1008, "10.4", "message in too many fragments".into()),
            TextNotUtf8 => (1007, "8.1", "text must be UTF-8".into()),
            ClosePayloadOfOneByte => (1002, "5.5.1", "a close payload must be empty or begin with a code".into()),
            InvalidCloseCode(code) => (1002, "7.4", format!("close code {code} must not be sent").into()),
            CloseReasonNotUtf8 => (1007, "8.1", "a close reason must be UTF-8".into()),
            MisplacedRsv1 => (1002, "5.2", "of the RSV bits, only RSV1 of a message's first frame may be 1".into()),
            InvalidDeflate => (1007, "7.4.1", "the compressed message does not inflate".into()),
        }
    }

    pub(super) fn err_unless(self, is_obeyed: bool) -> Result<(), ProtocolError> {
        if is_obeyed { Ok(()) } else { Err(self) }
    }

    pub fn code(self) -> CloseCode {
        CloseCode(self.code_section_and_text().0)
    }

    /// The relevant section of RFC 6455. For a compression error, `Display` cites RFC 7692 instead.
    pub fn section(self) -> &'static str {
        self.code_section_and_text().1
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, section, sentence) = self.code_section_and_text();
        match self {
            Self::MisplacedRsv1 => write!(f, "{sentence} (RFC 7692 §6)"),
            Self::InvalidDeflate => write!(f, "{sentence} (RFC 7692 §7.2.2)"),
            _ => write!(f, "{sentence} (RFC 6455 §{section})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7_4_each_edge_of_each_range_of_codes() {
        let allowed = [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999];
        let rejected = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535];
        for code in allowed {
            assert_eq!(CloseCode::from_wire(code).map(CloseCode::get), Ok(code));
        }
        for code in rejected {
            assert_eq!(CloseCode::from_wire(code), Err(ProtocolError::InvalidCloseCode(code)));
        }
    }

    #[test]
    fn rfc_5_5_1_close_payloads() {
        let close = |code, reason| Ok(CloseFrame { code, reason });
        assert_eq!(CloseFrame { code: Some(CloseCode::NORMAL), reason: "bye" }.encode(), b"\x03\xe8bye");
        assert_eq!(CloseFrame::parse(b""), close(None, ""));
        assert_eq!(CloseFrame::parse(b"\x03\xe8"), close(Some(CloseCode::NORMAL), ""));
        assert_eq!(CloseFrame::parse(b"\x03\xe8bye"), close(Some(CloseCode::NORMAL), "bye"));
        assert_eq!(CloseFrame::parse(b"\x03"), Err(ProtocolError::ClosePayloadOfOneByte));
        assert_eq!(CloseFrame::parse(b"\x03\xed"), Err(ProtocolError::InvalidCloseCode(1005)));
        assert_eq!(CloseFrame::parse(b"\x03\xe8\xff"), Err(ProtocolError::CloseReasonNotUtf8));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(100);
        let payload = CloseFrame { code: Some(CloseCode::NORMAL), reason: &reason }.encode();
        assert_eq!(payload.len(), 124, "one byte is left over, and half a character does not fit");
        assert!(CloseFrame::parse(&payload).is_ok());
    }

    #[test]
    fn every_error_text_fits_in_a_close_frame() {
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
            MisplacedRsv1,
            InvalidDeflate,
        ];
        for error in all {
            assert!(error.to_string().len() <= MAX_CONTROL_PAYLOAD - 2, "{error}");
            let source = match error {
                MisplacedRsv1 => "(RFC 7692 §6)".to_owned(),
                InvalidDeflate => "(RFC 7692 §7.2.2)".to_owned(),
                _ => format!("(RFC 6455 §{})", error.section()),
            };
            assert!(error.to_string().ends_with(&source), "{error}");
        }
    }
}
