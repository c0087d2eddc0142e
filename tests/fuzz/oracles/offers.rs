//! Compares the negotiation of permessage-deflate (RFC 7692 §7.1) with a simpler implementation, for any value of
//! `Sec-WebSocket-Extensions`.

use wirechat::ws::deflate::{Agreement, negotiate};
use wirechat::ws::extension::is_extension_list;
use wirechat::ws::request::Request;

pub fn check(data: &[u8]) {
    let Ok(value) = std::str::from_utf8(data) else { return };
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Extensions: {value}\r\n\r\n");
    let Ok(request) = Request::parse(head.as_bytes(), 64) else { return };
    if value.contains(|c: char| c.is_control() && c != '\t')
        || request.header_values("Sec-WebSocket-Extensions").count() != 1
    {
        return; // the input is not exactly one valid header value
    }
    let found = negotiate(&request);
    assert_eq!(found, expected(value), "{value:?}");
    if let Some(agreement) = found {
        // Offer the server's own response back to it. The server must accept this offer with the same parameters.
        let header = agreement.header();
        let (_, response) = header.trim_end().split_once(": ").unwrap();
        assert_eq!(expected(response), Some(agreement));
    }
}

fn expected(value: &str) -> Option<Agreement> {
    if !is_extension_list(value) {
        return None;
    }
    // A token contains no quote, backslash or whitespace, so removing these characters does not change any token.
    let plain: String = value.chars().filter(|c| !matches!(c, '"' | '\\' | ' ' | '\t')).collect();
    plain.split(',').find_map(|offer| {
        let mut words: Vec<&str> = offer.split(';').collect();
        if words.remove(0) != "permessage-deflate" {
            return None;
        }
        let mut agreement = Agreement { no_context_takeover: false, window_bits: None };
        let mut counts = [0; 4];
        for word in words {
            let bits = |prefix: &str| (8..=15).find(|bits| word == format!("{prefix}={bits}"));
            let index = match word {
                "server_no_context_takeover" => {
                    agreement.no_context_takeover = true;
                    0
                }
                "client_no_context_takeover" => 1,
                "client_max_window_bits" => 2,
                _ if bits("client_max_window_bits").is_some() => 2,
                _ => {
                    agreement.window_bits = Some(bits("server_max_window_bits").filter(|bits| *bits > 8)?);
                    3
                }
            };
            counts[index] += 1;
        }
        counts.iter().all(|count| *count <= 1).then_some(agreement)
    })
}
