//! Redacts access tokens, tickets and other secrets: replaces their bytes with `*`, which preserves all lengths and all
//! other bytes. Parses query parameters as the server does: names are percent-decoded (`%74oken=`), and a value extends
//! to the next `&` or whitespace. Parses in one pass, so that a query of a million question marks takes linear time.

use percent_encoding::percent_decode;

use super::frame::Header;
use crate::ws::frame::Opcode;
use crate::ws::handshake::find_access_token;
use crate::ws::mask;

const SECRET_PARAMETERS: [&[u8]; 3] = [b"token", b"ticket", b"session"];
/// A header is secret if its name contains one of these words. A list of whole names would miss custom headers, such as
/// `X-Api-Key`.
const SECRET_WORDS: [&str; 10] =
    ["auth", "token", "api-key", "apikey", "secret", "password", "cookie", "session", "credential", "jwt"];
/// Prefixes of headers that proxies add. These headers may reveal a user's address or name. Cloudflare uses `cf-`, AWS
/// `x-amzn-`.
const PROXY_HEADER_PREFIXES: [&str; 6] = ["x-forwarded-", "forwarded", "x-real-", "x-remote-", "cf-", "x-amzn-"];

fn is_secret_header(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
    // Do not redact the challenge of a 401 or a 407: it contains no credentials.
    let is_challenge = name.ends_with("-authenticate");
    let is_secret = SECRET_WORDS.iter().any(|word| name.contains(word));
    is_secret && !is_challenge || PROXY_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns a copy of a request head, possibly incomplete, with the secrets redacted.
pub fn redact_head(head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    redact_parameters(&mut head);
    let (mut is_secret, mut offers_protocols) = (false, false);
    for line in head.split_mut(|byte| matches!(byte, b'\r' | b'\n')) {
        if line.is_empty() {
            continue; // Skip the empty string that the split produces between CR and LF.
        }
        // RFC 9112 §5.2 (obs-fold): a line that starts with a space or tab continues the previous header, so redact it
        // like that header.
        let is_folded = line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        if !is_folded {
            is_secret = is_secret_header(&line[..colon]);
            offers_protocols = line[..colon].trim_ascii().eq_ignore_ascii_case(b"sec-websocket-protocol");
        }
        let value = if is_folded { line } else { &mut line[colon..] };
        if is_secret {
            let visible = value.iter_mut().filter(|byte| !matches!(byte, b':' | b' ' | b'\t' | b'\r'));
            visible.for_each(|byte| *byte = b'*');
        } else if offers_protocols {
            value.split_mut(|byte| matches!(byte, b',' | b':' | b' ' | b'\t')).for_each(redact_access_token);
        }
    }
    head
}

fn redact_access_token(subprotocol: &mut [u8]) {
    if let Some(start) = find_access_token(subprotocol) {
        subprotocol[start..].fill(b'*');
    }
}

/// Redacts the `session` and `ticket` fields of a `welcome` event, even if the event is split across several writes.
#[derive(Debug)]
pub struct WelcomeRedactor {
    /// Number of secrets not yet redacted.
    remaining: usize,
    /// For each entry of `SECRET_FIELDS`, how many of its bytes match the end of the output so far.
    matched: [usize; Self::SECRET_FIELDS.len()],
    in_value: bool,
}

impl WelcomeRedactor {
    const SECRET_FIELDS: [&[u8]; 2] = [b"\"session\":\"", b"\"ticket\":\""];

    /// `count` is the number of secrets in the `welcome` event.
    pub fn new(count: usize) -> WelcomeRedactor {
        WelcomeRedactor { remaining: count, matched: [0; Self::SECRET_FIELDS.len()], in_value: false }
    }

    /// Redacts secrets in the next bytes of the server's output, in place.
    pub fn redact(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.remaining == 0 {
                return;
            }
            if self.in_value {
                self.in_value = *byte != b'"';
                self.remaining -= usize::from(!self.in_value);
                *byte = if self.in_value { b'*' } else { b'"' };
                continue;
            }
            for (field, matched) in Self::SECRET_FIELDS.iter().zip(&mut self.matched) {
                // After a mismatch, only a quotation mark can start a new match, because every field starts with one.
                *matched = if *byte == field[*matched] { *matched + 1 } else { usize::from(*byte == b'"') };
                self.in_value |= *matched == field.len();
                *matched %= field.len();
            }
        }
    }
}

/// Redacts the JWT in a client's `token` command: every string value of a `token` field in a text message. Also redacts
/// every string value of a field whose name contains an escape, because the name may be `token` (`"\u0074oken"`). A frame
/// or a read may end anywhere, so the redactor keeps its state. The payload stays masked.
#[derive(Debug, Default)]
pub struct TokenRedactor(TokenState);

#[derive(Debug, Clone, Copy)]
enum TokenState {
    /// How many bytes of [`TokenRedactor::NAME`] match the end of the payload so far.
    Name(usize),
    /// In a string that contains an escape and may be a name.
    InEscapedName,
    /// In such a string, after a backslash: the next byte cannot end the string.
    EscapedInName,
    BeforeColon,
    BeforeValue,
    InValue,
    /// In the value, after a backslash: the next byte cannot end the value.
    Escaped,
}

impl Default for TokenState {
    fn default() -> TokenState {
        TokenState::Name(0)
    }
}

impl TokenRedactor {
    const NAME: &[u8] = b"\"token\"";

    /// Redacts payload bytes of a client's frame in place. `offset` is the position of `bytes` in the frame's payload.
    pub fn redact(&mut self, header: &Header, offset: u64, bytes: &mut [u8]) {
        match Opcode::from_bits(header.opcode()) {
            Ok(Opcode::Text) if offset == 0 => self.0 = TokenState::default(),
            Ok(Opcode::Text | Opcode::Continuation) => {}
            _ => return,
        }
        let key = header.masking_key().unwrap_or_default();
        for (at, byte) in (offset..).zip(bytes) {
            let key = key[(at % 4) as usize];
            let (redacted, state) = self.next(*byte ^ key);
            (*byte, self.0) = (redacted ^ key, state);
        }
    }

    /// Makes the redactor redact the next bytes up to a quotation mark. Must be called after payload bytes that did not
    /// pass through `redact`, because a token may have started in them.
    pub fn skip(&mut self) {
        self.0 = TokenState::InValue;
    }

    fn next(&self, byte: u8) -> (u8, TokenState) {
        use TokenState::{BeforeColon, BeforeValue, Escaped, EscapedInName, InEscapedName, InValue, Name};
        let restart = Name(usize::from(byte == b'"'));
        match (self.0, byte) {
            (InValue, b'"') => (byte, Name(0)),
            (InValue, b'\\') => (b'*', Escaped),
            (InValue | Escaped, _) => (b'*', InValue),
            (BeforeColon | BeforeValue, b' ' | b'\t' | b'\n' | b'\r') => (byte, self.0),
            (BeforeColon, b':') => (byte, BeforeValue),
            (BeforeValue, b'"') => (byte, InValue),
            // JSON has backslashes only in strings.
            (Name(_) | InEscapedName, b'\\') => (byte, EscapedInName),
            (InEscapedName, b'"') => (byte, BeforeColon),
            (InEscapedName | EscapedInName, _) => (byte, InEscapedName),
            (Name(matched), _) if byte == Self::NAME[matched] => {
                (byte, if matched + 1 == Self::NAME.len() { BeforeColon } else { Name(matched + 1) })
            }
            (Name(_) | BeforeColon | BeforeValue, _) => (byte, restart),
        }
    }
}

/// Overwrites `bytes`, the payload of a client's compressed frame from position `offset` on, with `*`. A replay can
/// still inflate the message, unless its last fragment has fewer than two bytes: the first `*` begins a block with
/// fixed Huffman codes, each further `*` is a literal, and the last two bytes of the last frame end the block.
pub fn redact_compressed(header: &Header, payload_len: u64, offset: u64, bytes: &mut [u8]) {
    for (at, byte) in (offset..).zip(bytes.iter_mut()) {
        *byte = match payload_len - at {
            2 if header.fin() => 0x02, // ends the block of literals
            1 if header.fin() => 0x00, // begins an empty stored block: the receiver appends the rest (RFC 7692 §7.2.2)
            _ => b'*',
        };
    }
    mask::apply(bytes, header.masking_key().unwrap_or_default(), (offset % 4) as usize);
}

/// Redacts secret parameters after `?` or `&` anywhere in the head: a `Referer` header may also contain a query.
fn redact_parameters(head: &mut [u8]) {
    let (mut name, mut is_secret) = (None, false);
    for at in 0..head.len() {
        match head[at] {
            b'&' => (name, is_secret) = (Some(at + 1), false),
            byte if byte.is_ascii_whitespace() => (name, is_secret) = (None, false),
            _ if is_secret => head[at] = b'*',
            b'?' => name = Some(at + 1),
            b'=' => {
                let name: Option<Vec<u8>> = name.take().map(|start| percent_decode(&head[start..at]).collect());
                is_secret = name.is_some_and(|name| SECRET_PARAMETERS.contains(&&name[..]));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These messages of one or two frames can still be inflated after `redact_compressed` has overwritten them.
    #[cfg(feature = "deflate")]
    #[test]
    fn replaced_messages_inflate() {
        use crate::inspect::inflated::{InflatedPayload, MessageInflater};
        for frames in [&[1][..], &[2], &[5], &[6], &[100], &[70_000], &[40, 25], &[3, 2]] {
            let (mut inflater, mut inflated) = (MessageInflater::new(true), InflatedPayload::default());
            inflater.start_message(1 << 20);
            for (number, len) in (1..).zip(frames) {
                let fin = if number == frames.len() { 0x80 } else { 0 };
                let mut payload = vec![0xff; *len];
                let mut header = Header::default();
                header.push(&[fin | 1, 0x80, 0, 0, 0, 0]);
                redact_compressed(&header, *len as u64, 0, &mut payload);
                inflater.inflate(&payload, &mut inflated);
            }
            inflater.end_message(&mut inflated);
            assert!(!inflated.is_broken, "{frames:?}");
        }
    }

    fn redact_text(head: &str) -> String {
        String::from_utf8(redact_head(head.as_bytes())).unwrap()
    }

    #[test]
    fn access_tokens_in_a_request_line_or_header_are_redacted() {
        let table = [
            ("GET /?token=dev-token&username=a HTTP/1.1\r\n", "GET /?token=*********&username=a HTTP/1.1\r\n"),
            ("GET /?username=a&%74oken=x HTTP/1.1\r\n", "GET /?username=a&%74oken=* HTTP/1.1\r\n"),
            ("GET /?token=a?b&token=c HTTP/1.1", "GET /?token=***&token=* HTTP/1.1"),
            ("GET /inspect?ticket=A-_bc HTTP/1.1\r\n", "GET /inspect?ticket=***** HTTP/1.1\r\n"),
            ("GET /?token=a#b=c?d&x=1 HTTP/1.1", "GET /?token=*******&x=1 HTTP/1.1"),
            ("DELETE /x?token=a HTTP/1.1", "DELETE /x?token=* HTTP/1.1"),
            ("Authorization: Bearer a\r\n\r\n", "Authorization: ****** *\r\n\r\n"),
            ("GET / HTTP/1.1\rAuthorization: Bearer a\r\r", "GET / HTTP/1.1\rAuthorization: ****** *\r\r"),
            ("GET /?tok", "GET /?tok"),
            ("GET /?token=half", "GET /?token=****"),
            ("GET /?my_token=x HTTP/1.1\r\n", "GET /?my_token=x HTTP/1.1\r\n"),
        ];
        for (head, redacted) in table {
            assert_eq!(redact_text(head), redacted);
        }
    }

    #[test]
    fn headers_with_secrets_are_redacted() {
        assert_eq!(
            redact_text("GET / HTTP/1.1\r\nHost: a\r\nauthorization: Bearer dev-token\r\nCookie: a=b; c=d\r\n\r\n"),
            "GET / HTTP/1.1\r\nHost: a\r\nauthorization: ****** *********\r\nCookie: **** ***\r\n\r\n"
        );
        assert_eq!(
            redact_text("GET / HTTP/1.1\r\nAuthorization: Bearer\r\n folded\r\nHost: a\r\n"),
            "GET / HTTP/1.1\r\nAuthorization: ******\r\n ******\r\nHost: a\r\n"
        );
        assert_eq!(
            redact_text("GET / HTTP/1.1\r\nReferer: http://a/?token=x&b=c\r\n\r\n"),
            "GET / HTTP/1.1\r\nReferer: http://a/?token=*&b=c\r\n\r\n"
        );
    }

    #[test]
    fn credentials_are_redacted_under_every_name() {
        let secret = [
            "X-Api-Key: abc",
            "X-Auth-Token: abc",
            "Proxy-Authorization: abc",
            "Set-Cookie: abc",
            "X-Forwarded-User: abc",
            "X-Forwarded-For: abc",
            "Forwarded: abc",
            "X-Forwarded-Access-Token: abc",
            "Cf-Access-Jwt-Assertion: abc",
            "X-Amzn-Oidc-Data: abc",
            "X-Real-IP: abc",
        ];
        for header in secret {
            let head = format!("GET / HTTP/1.1\r\n{header}\r\n\r\n");
            assert_eq!(redact_text(&head), head.replace(" abc", " ***"));
        }
        for header in ["Host: abc", "Sec-WebSocket-Key: abc", "Sec-WebSocket-Accept: abc", "WWW-Authenticate: abc"] {
            let head = format!("GET / HTTP/1.1\r\n{header}\r\n\r\n");
            assert_eq!(redact_text(&head), head);
        }
    }

    #[test]
    fn a_token_among_the_subprotocols_is_redacted() {
        assert_eq!(
            redact_text("Sec-WebSocket-Protocol: chat.events, bearer.ZGV2,x\r\nsec-websocket-protocol:bearer.ZGV2\r\n"),
            "Sec-WebSocket-Protocol: chat.events, bearer.****,x\r\nsec-websocket-protocol:bearer.****\r\n"
        );
        assert_eq!(redact_text("GET /?token=a&session=5e HTTP/1.1\r\n"), "GET /?token=*&session=** HTTP/1.1\r\n");
    }

    #[test]
    fn the_secrets_of_a_welcome_are_redacted_wherever_the_payload_is_cut() {
        let welcome =
            br#"{"event":"welcome","data":{"a":"","session":"5eef","b":1,"ticket":"A-_0ff"}},{"ticket":"later"}"#;
        let redacted =
            br#"{"event":"welcome","data":{"a":"","session":"****","b":1,"ticket":"******"}},{"ticket":"later"}"#;
        for cut in 0..welcome.len() {
            let (mut payload, mut redactor) = (welcome.to_vec(), WelcomeRedactor::new(2));
            let (left, right) = payload.split_at_mut(cut);
            redactor.redact(left);
            redactor.redact(right);
            assert_eq!(payload, redacted, "cut at {cut}");
        }
    }

    #[test]
    fn the_token_of_a_token_command_is_redacted_wherever_the_payload_is_cut() {
        let rows = [
            (r#"{"event":"token","data":{"token":"a.b"}}"#, r#"{"event":"token","data":{"token":"***"}}"#),
            (
                r#"{"data":{ "token" : "a\"b" , "x":"y"},"event":"token"}"#,
                r#"{"data":{ "token" : "****" , "x":"y"},"event":"token"}"#,
            ),
            (r#"{"token":1,"token":"a"}"#, r#"{"token":1,"token":"*"}"#),
            (r#"{"\u0074oken":"a.b"}"#, r#"{"\u0074oken":"***"}"#),
            (r#"{"t\u006fken" :"a","x":"b"}"#, r#"{"t\u006fken" :"*","x":"b"}"#),
            (r#"{"tok\u0065n":"a\u0022b","token":"c"}"#, r#"{"tok\u0065n":"********","token":"*"}"#),
            (r#"{"text":"\\","x":"y","token":"a"}"#, r#"{"text":"\\","x":"y","token":"*"}"#),
            (r#"{"text":"\"token\":\"a","token":"b"}"#, r#"{"text":"\"token\":\"a","token":"*"}"#),
            (
                r#"{"text":"\"token\":\"a\"","tokens":"b","token":"#,
                r#"{"text":"\"token\":\"a\"","tokens":"b","token":"#,
            ),
        ];
        let key = [1, 2, 3, 4];
        let masked = |text: &str| {
            let mut payload = text.as_bytes().to_vec();
            crate::ws::mask::apply(&mut payload, key, 0);
            payload
        };
        let mut header = Header::default();
        header.push(&[&[0x81, 0x80 | 100], &key[..]].concat());
        for (text, redacted) in rows {
            for cut in 0..text.len() {
                let (mut payload, mut redactor) = (masked(text), TokenRedactor::default());
                let (left, right) = payload.split_at_mut(cut);
                redactor.redact(&header, 0, left);
                redactor.redact(&header, cut as u64, right);
                assert_eq!(payload, masked(redacted), "{text} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_query_of_a_million_question_marks_is_redacted_in_linear_time() {
        let head = format!("GET /{}token=x HTTP/1.1\r\n", "?".repeat(1 << 20));
        assert!(redact_text(&head).ends_with("?token=* HTTP/1.1\r\n"));
    }
}
