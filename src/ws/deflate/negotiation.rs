//! Negotiates permessage-deflate (RFC 7692 §7.1): accepts one of the client's offers and writes the response header.

use crate::ws::extension::is_extension_list;
use crate::ws::request::Request;

use super::MAX_WINDOW_BITS;

pub const EXTENSION_NAME: &str = "permessage-deflate";

/// The agreed parameters for messages to the client. Messages from the client always use `client_no_context_takeover`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    pub no_context_takeover: bool,
    pub window_bits: Option<u8>, // `None`: the client did not limit the window
}

/// Returns the first offer that the server accepts.
pub fn negotiate(request: &Request) -> Option<Agreement> {
    let lines: Vec<&[u8]> = request.header_values("Sec-WebSocket-Extensions").collect();
    let value = lines.join(&b", "[..]);
    let value = str::from_utf8(&value).ok().filter(|value| is_extension_list(value))?;
    value.split(',').find_map(|offer| {
        let (name, parameters) = offer.split_once(';').map_or((offer, None), |(name, rest)| (name, Some(rest)));
        let parameters = parameters.into_iter().flat_map(|rest| rest.split(';'));
        (name.trim_ascii() == EXTENSION_NAME).then(|| Agreement::from_parameters(parameters)).flatten()
    })
}

impl Agreement {
    /// RFC 7692 §7.1: a server "MUST decline" an offer if a parameter is unknown or repeated, or has an invalid value.
    fn from_parameters<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<Agreement> {
        let (mut agreement, mut names) = (Agreement { no_context_takeover: false, window_bits: None }, Vec::new());
        for parameter in parameters {
            let (name, value) =
                parameter.split_once('=').map_or((parameter, None), |(name, value)| (name, Some(value)));
            let (name, value) = (name.trim_ascii(), value.map(unquote));
            match (name, value.as_deref().map(parse_window_bits)) {
                _ if names.contains(&name) => return None,
                ("server_no_context_takeover", None) => agreement.no_context_takeover = true,
                // A window of 8 bits is impossible: zlib can compress only with windows of 9 bits or more.
                ("server_max_window_bits", Some(Some(bits @ 9..))) => agreement.window_bits = Some(bits),
                // Accept the `client_…` parameters, but do not store them. The server inflates every message
                // separately, with the largest window, so it does not depend on their values.
                ("client_no_context_takeover" | "client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(Some(_))) => {}
                _ => return None,
            }
            names.push(name);
        }
        Some(agreement)
    }

    /// Inserts the extension header into the 101 response, before the blank line at its end.
    pub fn add_header(self, response: &mut Vec<u8>) {
        let blank_line = response.len() - b"\r\n".len();
        response.splice(blank_line..blank_line, self.header().into_bytes());
    }

    pub fn header(self) -> String {
        let context = if self.no_context_takeover { "; server_no_context_takeover" } else { "" };
        let bits = self.window_bits.map_or(String::new(), |bits| format!("; server_max_window_bits={bits}"));
        format!("Sec-WebSocket-Extensions: {EXTENSION_NAME}; client_no_context_takeover{context}{bits}\r\n")
    }

    pub fn has_full_window(self) -> bool {
        self.window_bits.is_none_or(|bits| bits == MAX_WINDOW_BITS)
    }
}

/// Removes the quotes and backslashes if a parameter value is a quoted string, which RFC 6455 §9.1 allows.
pub fn unquote(value: &str) -> String {
    let value = value.trim_ascii();
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).map_or(value.into(), |text| text.replace('\\', ""))
}

/// RFC 7692 §7.1.2: "a decimal integer value without leading zeroes between 8 to 15, inclusive".
pub fn parse_window_bits(value: &str) -> Option<u8> {
    value.parse().ok().filter(|bits| (8..=MAX_WINDOW_BITS).contains(bits) && *value == bits.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(lines: &[&str]) -> Option<String> {
        let lines: String = lines.iter().map(|line| format!("Sec-WebSocket-Extensions: {line}\r\n")).collect();
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let header = negotiate(&Request::parse(head.as_bytes(), 64).unwrap())?.header();
        let accepted = header.strip_prefix("Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover");
        Some(accepted.unwrap().trim_end().to_owned())
    }

    #[test]
    fn rfc_7692_7_1_offers_and_responses() {
        let (plain, alone, ten) = (Some(""), Some("; server_no_context_takeover"), Some("; server_max_window_bits=10"));
        let rows: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&["permessage-deflate"], plain),
            (&["  permessage-deflate\t"], plain),
            (&["Permessage-deflate"], None),
            (&["permessage-deflate-x"], None),
            (&["x-webkit-deflate-frame"], None),
            (&["x-webkit-deflate-frame, permessage-deflate"], plain),
            (&["permessage-deflate; client_max_window_bits"], plain),
            (&["permessage-deflate; client_max_window_bits=8"], plain),
            (&["permessage-deflate; client_max_window_bits=15"], plain),
            (&["permessage-deflate; client_max_window_bits=\"1\\2\""], plain),
            (&["permessage-deflate; client_max_window_bits=7"], None),
            (&["permessage-deflate; client_max_window_bits=16"], None),
            (&["permessage-deflate; client_max_window_bits=+9"], None),
            (&["permessage-deflate; client_max_window_bits=09"], None),
            (&["permessage-deflate; client_max_window_bits=x"], None),
            (&["permessage-deflate; client_max_window_bits=257"], None),
            (&["permessage-deflate; client_no_context_takeover"], plain),
            (&["permessage-deflate; client_no_context_takeover=1"], None),
            (&["permessage-deflate; server_no_context_takeover"], alone),
            (&["permessage-deflate ;server_no_context_takeover ; client_max_window_bits"], alone),
            (&["permessage-deflate; server_no_context_takeover=true"], None),
            (&["permessage-deflate; server_no_context_takeover=\"x\""], None),
            (&["permessage-deflate; server_max_window_bits"], None),
            (&["permessage-deflate; server_max_window_bits=8"], None),
            (&["permessage-deflate; server_max_window_bits=9"], Some("; server_max_window_bits=9")),
            (&["permessage-deflate; server_max_window_bits=10"], ten),
            (&["permessage-deflate; server_max_window_bits = \"10\""], ten),
            (&["permessage-deflate; server_max_window_bits=15"], Some("; server_max_window_bits=15")),
            (&["permessage-deflate; server_max_window_bits=16"], None),
            (&["permessage-deflate; server_max_window_bits=010"], None),
            (&["permessage-deflate; server_max_window_bits=-10"], None),
            (&["permessage-deflate; server_max_window_bits=10; server_max_window_bits=10"], None),
            (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
            (&["permessage-deflate; client_max_window_bits; client_max_window_bits=9"], None),
            (&["permessage-deflate; unknown"], None),
            (&["permessage-deflate; Server_no_context_takeover"], None),
            (&["permessage-deflate; unknown, permessage-deflate"], plain),
            (&["permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=10"], ten),
            (&["permessage-deflate; server_max_window_bits=10, permessage-deflate"], ten),
            (&["permessage-deflate, permessage-deflate; server_max_window_bits=10"], plain),
            (&["permessage-deflate; server_max_window_bits=8", "permessage-deflate"], plain),
            (&["mux, permessage-deflate; server_no_context_takeover", "permessage-deflate"], alone),
            (
                &["permessage-deflate; server_max_window_bits=10; server_no_context_takeover"],
                Some("; server_no_context_takeover; server_max_window_bits=10"),
            ),
            (&["permessage-deflate;"], None),
            (&["permessage-deflate; server_max_window_bits=\"10"], None),
        ];
        for (lines, expected) in rows {
            assert_eq!(response(lines).as_deref(), *expected, "{lines:?}");
        }
    }
}
