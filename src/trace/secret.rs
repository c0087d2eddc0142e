//! What is never shown: tokens and tickets, however they are spelled.
//!
//! They are written over with stars, byte for byte, so that every other byte stays where it was and every length is as
//! it was on the wire.
//!
//! The subtle thing: a query is percent-decoded before it is read, so `%74oken=` names a token as well.

/// The parameters of a query, and the headers, whose values are secret.
const PARAMETERS: [&[u8]; 2] = [b"token", b"ticket"];
const HEADERS: [&[u8]; 3] = [b"authorization", b"proxy-authorization", b"cookie"];

/// A copy of a request head (or of what came of it) without its secrets.
pub fn masked(head: &[u8]) -> Vec<u8> {
    let mut head = head.to_vec();
    mask_parameters(&mut head);
    let mut is_secret = false;
    for line in head.split_mut(|byte| *byte == b'\n').skip(1) {
        let is_folded = line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        if !is_folded {
            is_secret = HEADERS.iter().any(|name| line[..colon].trim_ascii().eq_ignore_ascii_case(name));
        }
        let value = if is_folded { line } else { &mut line[colon..] };
        if is_secret {
            let visible = value.iter_mut().filter(|byte| !matches!(byte, b':' | b' ' | b'\t' | b'\r'));
            visible.for_each(|byte| *byte = b'*');
        }
    }
    head
}

/// Masks the ticket in a `welcome` that a server sends: unmasked bytes of a frame's payload.
pub fn mask_ticket(payload: &mut [u8]) {
    const FIELD: &[u8] = b"\"ticket\":\"";
    let Some(at) = payload.windows(FIELD.len()).position(|bytes| bytes == FIELD) else { return };
    payload[at + FIELD.len()..].iter_mut().take_while(|byte| **byte != b'"').for_each(|byte| *byte = b'*');
}

/// A parameter may stand in the request target, and in a `Referer`: wherever there is `?name=` or `&name=`.
fn mask_parameters(head: &mut [u8]) {
    let mut start = 0;
    while let Some(found) = head[start..].iter().position(|byte| matches!(byte, b'?' | b'&')) {
        start += found + 1;
        let is_end = |byte: &u8| matches!(byte, b'&' | b'#') || byte.is_ascii_whitespace();
        let end = head[start..].iter().position(is_end).map_or(head.len(), |len| start + len);
        let parameter = &mut head[start..end];
        let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else { continue };
        if PARAMETERS.contains(&&percent_decoded(&parameter[..equals])[..]) {
            parameter[equals + 1..].fill(b'*');
        }
    }
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let hex = tail.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = hex.and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(head: &str) -> String {
        String::from_utf8(masked(head.as_bytes())).unwrap()
    }

    #[test]
    fn tokens_are_masked_however_they_are_spelled() {
        let table = [
            ("GET /?token=dev-token&username=a HTTP/1.1\r\n", "GET /?token=*********&username=a HTTP/1.1\r\n"),
            ("GET /?username=a&%74oken=x HTTP/1.1\r\n", "GET /?username=a&%74oken=* HTTP/1.1\r\n"),
            ("GET /?token=a?b&token=c HTTP/1.1", "GET /?token=***&token=* HTTP/1.1"),
            ("GET /inspect?ticket=7-abc HTTP/1.1\r\n", "GET /inspect?ticket=***** HTTP/1.1\r\n"),
            ("GET /?tok", "GET /?tok"),
            ("GET /?token=half", "GET /?token=****"),
            ("GET /?my_token=x HTTP/1.1\r\n", "GET /?my_token=x HTTP/1.1\r\n"),
        ];
        for (head, masked) in table {
            assert_eq!(shown(head), masked);
        }
    }

    #[test]
    fn headers_with_secrets_are_masked() {
        assert_eq!(
            shown("GET / HTTP/1.1\r\nHost: a\r\nauthorization: Bearer dev-token\r\nCookie: a=b; c=d\r\n\r\n"),
            "GET / HTTP/1.1\r\nHost: a\r\nauthorization: ****** *********\r\nCookie: **** ***\r\n\r\n"
        );
        assert_eq!(
            shown("GET / HTTP/1.1\r\nAuthorization: Bearer\r\n folded\r\nHost: a\r\n"),
            "GET / HTTP/1.1\r\nAuthorization: ******\r\n ******\r\nHost: a\r\n"
        );
        assert_eq!(
            shown("GET / HTTP/1.1\r\nReferer: http://a/?token=x&b=c\r\n\r\n"),
            "GET / HTTP/1.1\r\nReferer: http://a/?token=*&b=c\r\n\r\n"
        );
    }

    #[test]
    fn a_ticket_in_a_welcome_is_masked() {
        let mut payload = *br#"{"event":"welcome","data":{"ticket":"7-00ff","room":"a"}}"#;
        mask_ticket(&mut payload);
        assert_eq!(&payload, br#"{"event":"welcome","data":{"ticket":"******","room":"a"}}"#);
    }
}
