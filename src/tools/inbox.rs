//! Parses a server's bytes as a client does: the HTTP response (RFC 6455 §4.1), then messages, Pongs and a Close (§5,
//! §7). The parser also inflates compressed messages (RFC 7692). The server may be wrong or hostile, so the parser
//! limits everything that it stores, and fails on an oversized frame as soon as the frame's header is complete. Parsing
//! stops at the first violation of the RFC or of a limit.

use std::borrow::Cow;

use super::extensions::{self, DeflateParameters};
use super::screen::{escape, quote, shorten};
use crate::ws::close::{CloseFrame, ProtocolError};
use crate::ws::deflate::context::inflate_message;
use crate::ws::frame::{FrameHeader, Opcode, Role};
use crate::ws::handshake::accept_value;

/// Maximum size of an incomplete response head, and of the stored part of a response body, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Maximum size in bytes of all received frames plus all inflated messages, added together. No `poke` test case needs
/// to read more.
const MAX_FRAME_BYTES: u64 = 4 << 20;
const TOO_MANY_BYTES: &str = "the server sent or announced over 4 MiB, far more than was sent to it";
/// Maximum number of frames. `MAX_FRAME_BYTES` alone would permit two million empty frames.
const MAX_FRAMES: u32 = 50_000;
const MAX_HEADERS: usize = 128;
/// The close code of a Close frame without a code. §7.1.5: "If this Close control frame contains no status code, _The
/// WebSocket Connection Close Code_ is considered to be 1005."
pub const NO_STATUS_RECEIVED: u16 = 1005;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// The value of `Sec-WebSocket-Version`: the versions that the server supports (§4.4).
    pub versions: Option<String>,
    /// The agreed parameters of permessage-deflate; `None` if the server declined the extension.
    pub deflate: Option<DeflateParameters>,
    content_length: Option<usize>,
    pub body: Vec<u8>,
    /// Reasons to fail the connection even though the status is 101 (§4.1).
    pub violations: Vec<String>,
}

/// The parts of a client's request that the response depends on. `key` is `None` if missing or unknown. `extensions`
/// and `subprotocols` are `None` if unknown, and `Some("")` if the request offers none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    pub key: Option<String>,
    extensions: Option<String>,
    subprotocols: Option<String>,
}

impl Offer {
    pub fn from_key(key: &str) -> Offer {
        Offer { key: Some(key.to_owned()), ..Offer::default() }
    }

    pub fn from_request(head: &[u8]) -> Offer {
        let head = String::from_utf8_lossy(head);
        let lines: HeaderLines =
            head.lines().filter_map(|line| line.split_once(':')).map(|(n, v)| (n, v.into())).collect();
        let value = |name| Some(join_values(&lines, name).unwrap_or_default());
        Offer {
            key: join_values(&lines, "Sec-WebSocket-Key"),
            extensions: value("Sec-WebSocket-Extensions"),
            subprotocols: value("Sec-WebSocket-Protocol"),
        }
    }
}

impl Response {
    /// Returns the response head at the start of `bytes`, and its length in bytes; `None` if the head is incomplete.
    ///
    /// # Errors
    /// A one-line message if `bytes` cannot be parsed as an HTTP response.
    pub fn parse(bytes: &[u8], offer: &Offer) -> Result<Option<(Response, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let len = match parsed.parse(bytes) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("the response is not HTTP ({error}); it begins with {}", shorten(bytes))),
        };
        let status = parsed.code.unwrap_or_default();
        let lines: HeaderLines =
            parsed.headers.iter().map(|line| (line.name, String::from_utf8_lossy(line.value))).collect();
        let content_length = join_values(&lines, "Content-Length").and_then(|length| length.parse().ok());
        let violations = if status == 101 { find_violations(&lines, offer) } else { Vec::new() };
        let versions = join_values(&lines, "Sec-WebSocket-Version");
        let extensions = join_values(&lines, "Sec-WebSocket-Extensions").filter(|_| status == 101);
        let deflate = extensions.and_then(|chosen| DeflateParameters::from_response(&chosen));
        Ok(Some((Response { status, versions, deflate, content_length, body: Vec::new(), violations }, len)))
    }

    pub fn lists_version_13(&self) -> bool {
        let versions = self.versions.as_deref().unwrap_or_default();
        versions.split(',').any(|version| version.trim() == "13")
    }

    /// Whether the whole body of a rejection has arrived, or as much of it as fits in `MAX_RESPONSE_BYTES`. Returns
    /// `false` if the response has no Content-Length.
    pub fn is_complete(&self) -> bool {
        self.status != 101
            && self.content_length.is_some_and(|length| self.body.len() >= length.min(MAX_RESPONSE_BYTES))
    }
}

type HeaderLines<'h> = Vec<(&'h str, Cow<'h, str>)>;

/// Joins the values of a repeated header with commas, which preserves the header's meaning (RFC 9110 §5.3).
fn join_values(lines: &HeaderLines, name: &str) -> Option<String> {
    let lines = lines.iter().filter(|(found, _)| found.trim().eq_ignore_ascii_case(name));
    let values: Vec<&str> = lines.map(|(_, value)| value.trim()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// Returns the elements of a comma-separated header value, without their parameters (such as `; a=1`).
fn elements(list: &str) -> impl Iterator<Item = &str> {
    let elements = list.split(',').map(|element| element.split(';').next().unwrap_or_default().trim());
    elements.filter(|element| !element.is_empty())
}

/// Returns the reasons why a client must fail the connection after a 101 response (§4.1).
fn find_violations(response: &HeaderLines, offer: &Offer) -> Vec<String> {
    let value = |name: &str| join_values(response, name);
    let has = |name: &str, token: &str| {
        elements(&value(name).unwrap_or_default()).any(|found| found.eq_ignore_ascii_case(token))
    };
    let mut found = Vec::new();
    if !has("Upgrade", "websocket") {
        found.push("the 101 has no Upgrade: websocket (RFC 6455 §4.2.2)".into());
    }
    if !has("Connection", "upgrade") {
        found.push("the 101 has no Connection: Upgrade (RFC 6455 §4.2.2)".into());
    }
    let accept = value("Sec-WebSocket-Accept");
    let expected = offer.key.as_ref().map(|key| accept_value(key.as_bytes()));
    match (&accept, expected) {
        (None, _) => found.push("the 101 has no Sec-WebSocket-Accept (RFC 6455 §4.2.2)".into()),
        (Some(accept), Some(expected)) if *accept != expected => found.push(format!(
            "Sec-WebSocket-Accept must be {expected} for the key {}; it is {} (RFC 6455 §4.2.2)",
            escape(offer.key.as_deref().unwrap_or_default()),
            escape(accept)
        )),
        _ => {}
    }
    if let (Some(chosen), Some(offered)) = (value("Sec-WebSocket-Extensions"), &offer.extensions) {
        found.extend(extensions::find_violations(&chosen, offered));
    }
    if let (Some(chosen), Some(offered)) = (value("Sec-WebSocket-Protocol"), &offer.subprotocols) {
        // A server selects at most one subprotocol, so compare the whole value: a list never matches an offered name.
        if !elements(offered).any(|offered| offered == chosen) {
            found.push(format!(
                "the 101 names the subprotocol {}, which was not offered (RFC 6455 §4.1)",
                quote(&chosen)
            ));
        }
    }
    found
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingPayload {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingClose {
    /// The code of the Close frame; [`NO_STATUS_RECEIVED`] if the Close frame contains none.
    pub code: u16,
    pub reason: String,
}

#[derive(Debug, Clone)]
struct UnfinishedMessage {
    opcode: Opcode,
    is_compressed: bool,
    payload: Vec<u8>,
}

/// The response, messages, Pongs and Close that a server has sent so far.
#[derive(Debug, Clone, Default)]
pub struct Inbox {
    /// Unparsed bytes: an incomplete response head, an incomplete frame, or everything after the protocol error that
    /// stopped the parser.
    unread: Vec<u8>,
    offer: Offer,
    pub response: Option<Response>,
    unfinished: Option<UnfinishedMessage>,
    /// The last inflated bytes of earlier compressed messages. Later messages may refer to these bytes.
    window: Vec<u8>,
    frame_bytes: u64,
    frames: u32,
    pub received: Vec<IncomingPayload>,
    pub close: Option<IncomingClose>,
    /// The first violation of the RFC or of a limit. The parser ignores all later bytes.
    pub violation: Option<String>,
}

impl Inbox {
    pub fn new(request: &[u8]) -> Inbox {
        Inbox { offer: Offer::from_request(request), ..Inbox::default() }
    }

    /// An inbox that expects frames: the handshake is already over.
    pub fn open() -> Inbox {
        Inbox { response: Some(Response { status: 101, ..Response::default() }), ..Inbox::default() }
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        if self.violation.is_some() {
            return;
        }
        self.unread.extend_from_slice(bytes);
        if self.response.is_none() {
            self.read_response();
        }
        match &mut self.response {
            Some(response) if response.status == 101 => self.read_frames(),
            Some(response) => {
                let room = MAX_RESPONSE_BYTES.saturating_sub(response.body.len());
                response.body.extend(self.unread.drain(..).take(room));
            }
            None => {}
        }
    }

    pub fn is_upgraded(&self) -> bool {
        self.response.as_ref().is_some_and(|response| response.status == 101)
    }

    pub fn deflate(&self) -> Option<DeflateParameters> {
        self.response.as_ref()?.deflate
    }

    pub fn is_empty(&self) -> bool {
        self.response.is_none() && self.unread.is_empty()
    }

    pub fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Whether the client can stop reading: it has received a Close or a complete response that rejects the handshake,
    /// or the server has violated the RFC or a limit.
    pub fn is_final(&self) -> bool {
        self.close.is_some() || self.violation.is_some() || self.response.as_ref().is_some_and(Response::is_complete)
    }

    fn read_response(&mut self) {
        match Response::parse(&self.unread, &self.offer) {
            Ok(Some((response, len))) => {
                self.unread.drain(..len);
                self.violation = response.violations.first().cloned();
                self.response = Some(response);
            }
            Ok(None) if self.unread.len() > MAX_RESPONSE_BYTES => {
                self.violation =
                    Some(format!("the head of the response does not end within {MAX_RESPONSE_BYTES} bytes"));
            }
            Ok(None) => {}
            Err(violation) => self.violation = Some(violation),
        }
    }

    fn read_frames(&mut self) {
        let bytes = std::mem::take(&mut self.unread);
        let mut rest = bytes.as_slice();
        while self.violation.is_none() {
            match self.read_frame(rest) {
                Ok(Some(len)) => rest = &rest[len..],
                Ok(None) => break,
                Err(violation) => self.violation = Some(violation),
            }
        }
        self.unread = rest.to_vec();
    }

    /// Reads the frame at the start of `bytes` and returns its length; `None` if the frame is incomplete.
    fn read_frame(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        // `FrameHeader::parse` accepts a masked server frame, so check the mask bit separately, as soon as it arrives.
        if bytes.get(1).is_some_and(|second| second & 0x80 != 0) {
            return Err("the server masked a frame (RFC 6455 §5.1)".into());
        }
        let broken = |error| match error {
            ProtocolError::MessageTooBig => TOO_MANY_BYTES.to_owned(), // this client's own limit, not a rule of the RFC
            error => format!("the server broke a rule: {error}"),
        };
        let header = FrameHeader::parse_with_deflate(Role::Server, self.deflate().is_some(), bytes);
        let Some(header) = header.map_err(broken)? else { return Ok(None) };
        if self.close.is_some() {
            return Err("the server sent a frame after its Close (RFC 6455 §5.5.1)".into());
        }
        let frame_bytes = self.frame_bytes + header.size as u64 + header.payload_len;
        if frame_bytes > MAX_FRAME_BYTES {
            return Err(TOO_MANY_BYTES.into());
        }
        if self.frames == MAX_FRAMES {
            return Err(format!("the server sent over {MAX_FRAMES} frames, far more than were sent to it"));
        }
        let len = header.size + header.payload_len as usize;
        let Some(payload) = bytes.get(header.size..len) else { return Ok(None) };
        (self.frame_bytes, self.frames) = (frame_bytes, self.frames + 1);
        self.store_frame(&header, payload).map_err(broken)?;
        Ok(Some(len))
    }

    fn store_frame(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), ProtocolError> {
        match (header.opcode, self.unfinished.is_some()) {
            (Opcode::Ping, _) => return Ok(()),
            (Opcode::Pong, _) => self.received.push(IncomingPayload::Pong(payload.to_vec())),
            (Opcode::Close, _) => {
                let close = CloseFrame::parse(payload)?;
                let code = close.code.map_or(NO_STATUS_RECEIVED, |code| code.get());
                self.close = Some(IncomingClose { code, reason: close.reason.to_owned() });
            }
            (Opcode::Continuation, false) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, true) => return Err(ProtocolError::ExpectedContinuation),
            (opcode, _) => {
                let is_compressed = header.is_compressed;
                let new = UnfinishedMessage { opcode, is_compressed, payload: Vec::new() };
                self.unfinished.get_or_insert(new).payload.extend_from_slice(payload);
            }
        }
        if header.fin && !header.opcode.is_control() {
            self.finish_message()?;
        }
        Ok(())
    }

    fn finish_message(&mut self) -> Result<(), ProtocolError> {
        let Some(UnfinishedMessage { opcode, is_compressed, mut payload }) = self.unfinished.take() else {
            return Ok(());
        };
        if is_compressed {
            if !cfg!(feature = "deflate") {
                return Ok(()); // without the `deflate` feature, ignore compressed messages
            }
            payload = self.inflate(&payload)?;
        }
        self.received.push(match opcode {
            // §8.1 applies to both endpoints: the client, too, fails the connection if a text message is not UTF-8.
            Opcode::Text if std::str::from_utf8(&payload).is_err() => return Err(ProtocolError::TextNotUtf8),
            Opcode::Text => IncomingPayload::Text(payload),
            _ => IncomingPayload::Binary(payload),
        });
        Ok(())
    }

    fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        if self.deflate().is_some_and(|agreed| !agreed.server_takes_over_context) {
            self.window.clear();
        }
        let limit = MAX_FRAME_BYTES - self.frame_bytes;
        let inflated = inflate_message(payload, &mut self.window, limit as usize)?;
        self.frame_bytes += inflated.len() as u64;
        Ok(inflated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    /// Parses a valid response and `frames`, whole and in pieces of 1 to 8 bytes. All results must be equal.
    fn inbox(frames: &[u8]) -> Inbox {
        let bytes = [RESPONSE, frames].concat();
        let mut whole = Inbox::new(REQUEST);
        whole.receive(&bytes);
        for size in 1..9 {
            let mut cut = Inbox::new(REQUEST);
            bytes.chunks(size).for_each(|piece| cut.receive(piece));
            let result = |inbox: &Inbox| (inbox.received.clone(), inbox.close.clone(), inbox.violation.clone());
            assert_eq!(result(&cut), result(&whole), "pieces of {size}");
        }
        whole
    }

    #[test]
    fn frames_become_messages_wherever_they_are_cut() {
        let inbox = inbox(b"\x81\x02hi\x8a\x01?\x02\x01\xff\x89\x00\x80\x01\xfe\x88\x05\x03\xe8bye");
        let expected = [
            IncomingPayload::Text(b"hi".to_vec()),
            IncomingPayload::Pong(b"?".to_vec()),
            IncomingPayload::Binary(b"\xff\xfe".to_vec()),
        ];
        assert_eq!(inbox.received, expected);
        assert_eq!(inbox.close, Some(IncomingClose { code: 1000, reason: "bye".into() }));
        assert_eq!(inbox.violation, None);
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn compressed_messages_inflate_with_the_agreed_context() {
        const HELLO: &[u8] = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"; // RFC 7692 §7.2.3.1
        const REFERENCE: &[u8] = b"\xc1\x05\xf2\x00\x11\x00\x00"; // refers to the previous message (RFC 7692 §7.2.3.2)
        let receive = |parameters: &str, frames: &[&[u8]]| {
            let mut inbox = Inbox::open();
            let deflate = DeflateParameters::from_response(&format!("permessage-deflate{parameters}"));
            inbox.response.as_mut().unwrap().deflate = deflate;
            inbox.receive(&frames.concat());
            (inbox.received.len(), inbox.violation.unwrap_or_default())
        };
        assert_eq!(receive("", &[HELLO, b"\x81\x01a", REFERENCE]), (3, String::new()));
        assert_eq!(receive("", &[b"\x41\x03\xf2\x48\xcd\x80\x04\xc9\xc9\x07\x00", REFERENCE]), (2, String::new()));
        let (received, violation) = receive("; server_no_context_takeover", &[HELLO, HELLO, REFERENCE]);
        assert!(received == 2 && violation.contains("RFC 7692 §7.2.2"), "{violation}");
        let (_, violation) = receive("", &[HELLO, b"\xc9\x00"]);
        assert!(violation.contains("RFC 7692 §6"), "{violation}");
        let (_, violation) = receive("", &[b"\xc1\x04\x4a\xfc\x0f\x00"]);
        assert!(violation.contains("§8.1"), "{violation}");
        // The bomb repeats 13 bytes, which inflate to 2064 bytes each time.
        let bomb = b"\x05\xa3\x60\x14\x8c\x82\x51\x30\x0a\x46\xc1\x28\x18".repeat(2500);
        let header = [&[0xc2, 126][..], &(bomb.len() as u16 + 2).to_be_bytes(), b"\x4a\x1c"].concat();
        assert_eq!(receive("", &[&header, &bomb]), (0, TOO_MANY_BYTES.into()));
    }

    #[test]
    fn server_violations_cite_their_section() {
        let cases: [(&[u8], &str); 9] = [
            (b"\x81\x80\0\0\0\0", "§5.1"),
            (b"\xc1\x00", "§5.2"),
            (b"\x81\x7e\x00\x01a", "§5.2"),
            (b"\x80\x00", "§5.4"),
            (b"\x01\x00\x81\x00", "§5.4"),
            (b"\x81\x01\xff", "§8.1"),
            (b"\x88\x02\x03\xee", "§7.4"),
            (b"\x88\x00\x8a\x00", "§5.5.1"),
            (b"\x82\x7f\x00\x00\x00\x00\x10\x00\x00\x00", "MiB"),
        ];
        for (frames, words) in cases {
            let violation = inbox(frames).violation.unwrap();
            assert!(violation.contains(words), "{frames:02x?}: {violation}");
        }
    }

    fn violations_of(response: &str, request: &str) -> Vec<String> {
        let request = format!("GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{request}\r\n");
        let response = format!("HTTP/1.1 101 Switching Protocols\r\n{response}\r\n");
        let (parsed, len) =
            Response::parse(response.as_bytes(), &Offer::from_request(request.as_bytes())).unwrap().unwrap();
        assert_eq!(len, response.len());
        parsed.violations
    }

    fn violation(response: &str, request: &str) -> String {
        let [violation] = &violations_of(response, request)[..] else { panic!("one violation: {response}") };
        violation.clone()
    }

    #[test]
    fn rfc_4_1_client_checks_a_101_response() {
        let good =
            "Upgrade: WebSocket\r\nConnection: x, upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        assert_eq!(violations_of(good, ""), [""; 0]);
        assert_eq!(violations_of("", "").len(), 3);
        let with = |line: &str| format!("{good}{line}\r\n");
        assert_eq!(violations_of(&with("Sec-WebSocket-Protocol: b"), "Sec-WebSocket-Protocol: a, b\r\n"), [""; 0]);
        assert!(violation(&with("Sec-WebSocket-Protocol: b"), "").contains("subprotocol"));
        assert!(violation(&with("Sec-WebSocket-Extensions: x; a=1"), "").contains("the extension \"x\""));
        let offer = "Sec-WebSocket-Extensions: x; a=1\r\nSec-WebSocket-Extensions: z\r\n";
        assert_eq!(violations_of(&with("Sec-WebSocket-Extensions: x; a=1, z"), offer), [""; 0]);
        assert!(violation(&with("Sec-WebSocket-Extensions: x, y"), offer).contains("the extension \"y\""));
        let offer = "Sec-WebSocket-Protocol: a, b\r\n";
        assert!(violation(&with("Sec-WebSocket-Protocol: a, b"), offer).contains("the subprotocol \"a, b\""));
        assert!(violation(&good.replace("s3pP", "S3pP"), "").contains("it is S3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(violation(&good.replace("Accept", "Except"), "").contains("no Sec-WebSocket-Accept"));
        assert!(violation(&good.replace("WebSocket\r\nC", "h2c\r\nC"), "").contains("Upgrade: websocket"));
        assert!(violation(&good.replace(", upgrade", ""), "").contains("Connection: Upgrade"));
    }

    /// RFC 9110 §5.3: a header may appear twice only if its value is a list. The value of Connection is a list, but the
    /// value of Sec-WebSocket-Accept is not.
    #[test]
    fn repeated_headers() {
        let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let good = format!("Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n{accept}");
        assert_eq!(violations_of(&good, ""), [""; 0]);
        let twice = violation(&(good + accept), "");
        assert!(twice.contains("it is s3pPLMBiTxaQ9kYGzzhZRbK+xOo=, s3pPLMBiTxaQ9kYGzzhZRbK+xOo= "), "{twice}");
    }

    #[test]
    fn an_error_shows_how_a_response_that_is_not_http_begins() {
        let error = |bytes| Response::parse(bytes, &Offer::default()).unwrap_err();
        assert!(error(b"SSH-2.0-x\r\n").ends_with("; it begins with \"SSH-2.0-x\\r\\n\""));
        assert!(error(b"\x1b[31mred").ends_with("; it begins with \"\\u{1b}[31mred\""));
        assert!(error(b"\x16\x03\xff").ends_with("; it begins with 16 03 ff"));
        let long = error(&[b'x'; 1000]);
        assert!(long.ends_with("xxx\"…") && long.len() < 200, "{long}");
    }

    #[test]
    fn a_long_response_body_is_final_at_the_size_limit() {
        let mut inbox = Inbox::new(b"GET / HTTP/1.1\r\n\r\n");
        inbox.receive(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99999999\r\n\r\n");
        assert!(!inbox.is_final());
        inbox.receive(&[b'x'; MAX_RESPONSE_BYTES]);
        assert!(inbox.is_final());
    }

    #[test]
    fn a_response_may_come_in_pieces() {
        let response = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno";
        let offer = Offer::default();
        for cut in 0..response.len() - 2 {
            assert_eq!(Response::parse(&response[..cut], &offer), Ok(None), "cut at {cut}");
        }
        let (mut parsed, len) = Response::parse(response, &offer).unwrap().unwrap();
        assert_eq!((parsed.status, &response[len..]), (400, &b"no"[..]));
        assert!(!parsed.is_complete());
        parsed.body = b"no".to_vec();
        assert!(parsed.is_complete());
        assert!(Response::parse(b"\x81\x05Hello", &offer).is_err());
    }
}
