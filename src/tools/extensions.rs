//! Checks the extensions of a server's response against the client's offers: RFC 6455 §4.1, and RFC 7692 §7 for
//! permessage-deflate.

use super::screen::quote;
use crate::ws::deflate::negotiation::{EXTENSION_NAME, parse_window_bits, unquote};

/// The parameters of permessage-deflate that the endpoints have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeflateParameters {
    /// Whether the server may compress a message with the help of its earlier messages (context takeover).
    pub server_takes_over_context: bool,
    /// Whether the client may compress a message with the help of its earlier messages (context takeover).
    pub client_takes_over_context: bool,
}

impl DeflateParameters {
    /// Parses `chosen`, the value of `Sec-WebSocket-Extensions` in the response. Returns `None` if the server has not
    /// accepted permessage-deflate.
    pub fn from_response(chosen: &str) -> Option<DeflateParameters> {
        let response = elements(chosen).find(|element| element.name == EXTENSION_NAME)?;
        Some(DeflateParameters {
            server_takes_over_context: response.get("server_no_context_takeover").is_none(),
            client_takes_over_context: response.get("client_no_context_takeover").is_none(),
        })
    }
}

/// An element of a `Sec-WebSocket-Extensions` header: an extension with its parameters.
struct Extension<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, Option<String>)>,
}

impl Extension<'_> {
    /// Returns the value of a parameter: `None` if the parameter is missing, `Some(None)` if it has no value.
    fn get(&self, name: &str) -> Option<Option<&str>> {
        self.parameters.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_deref())
    }

    fn window_bits(&self, name: &str) -> Option<u8> {
        parse_window_bits(self.get(name)??)
    }

    /// Returns the first parameter that is unknown or repeated, or has an invalid value (RFC 7692 §7).
    fn find_invalid_parameter(&self, is_offer: bool) -> Option<String> {
        self.parameters.iter().enumerate().find_map(|(at, (name, value))| {
            let is_valid = match (*name, value.as_deref().map(parse_window_bits)) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => true,
                ("server_max_window_bits" | "client_max_window_bits", Some(bits)) => bits.is_some(),
                ("client_max_window_bits", None) => is_offer,
                _ => false,
            };
            let is_repeated = self.parameters[..at].iter().any(|(earlier, _)| earlier == name);
            let parameter = value.as_ref().map_or((*name).to_owned(), |value| format!("{name}={value}"));
            (!is_valid || is_repeated).then(|| quote(&parameter))
        })
    }

    /// Returns the reason why this response does not match a valid `offer`; `None` if it matches.
    fn find_mismatch(&self, offer: &Extension) -> Option<&'static str> {
        let limit = offer.window_bits("server_max_window_bits");
        if self.get("client_max_window_bits").is_some() && offer.get("client_max_window_bits").is_none() {
            Some("client_max_window_bits was not offered (RFC 7692 §7.1.2.2)")
        } else if offer.get("server_no_context_takeover").is_some() && self.get("server_no_context_takeover").is_none()
        {
            Some("server_no_context_takeover was offered and is missing (RFC 7692 §7.1.1.1)")
        } else if limit.is_some_and(|limit| self.window_bits("server_max_window_bits").is_none_or(|bits| bits > limit))
        {
            Some("server_max_window_bits was offered; it is missing or larger (RFC 7692 §7.1.2.1)")
        } else {
            None
        }
    }
}

fn elements(list: &str) -> impl Iterator<Item = Extension<'_>> {
    // Splitting inside quotes is harmless: a quoted value must be a token, and a token contains no separator.
    let elements = list.split(',').map(str::trim).filter(|element| !element.is_empty());
    elements.map(|element| {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters = parts.map(|part| match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(unquote(value))),
            None => (part, None),
        });
        Extension { name, parameters: parameters.collect() }
    })
}

/// Returns the reasons why a client must fail the connection. `chosen` and `offered` are the values of
/// `Sec-WebSocket-Extensions` in the response and in the request.
pub fn find_violations(chosen: &str, offered: &str) -> Vec<String> {
    let mut found = Vec::new();
    // RFC 6455 §4.1: fail the connection on an extension "not present in the client's handshake".
    let extra = elements(chosen).filter(|chosen| !elements(offered).any(|offered| offered.name == chosen.name));
    found.extend(extra.map(|extra| {
        format!("the 101 names the extension {}, which was not offered (RFC 6455 §4.1)", quote(extra.name))
    }));
    let offers: Vec<Extension> = elements(offered).filter(|offer| offer.name == EXTENSION_NAME).collect();
    let responses: Vec<Extension> = elements(chosen).filter(|response| response.name == EXTENSION_NAME).collect();
    match &responses[..] {
        [response] if !offers.is_empty() => found.extend(find_deflate_violation(response, &offers)),
        // RFC 7692 §5: a server must not accept two offers of permessage-deflate, because both use RSV1.
        [_, _, ..] => found.push("the 101 accepts permessage-deflate twice (RFC 7692 §5)".into()),
        _ => {}
    }
    found
}

fn find_deflate_violation(response: &Extension, offers: &[Extension]) -> Option<String> {
    if let Some(parameter) = response.find_invalid_parameter(false) {
        return Some(format!(
            "the 101 accepts permessage-deflate with the parameter {parameter}, which is unknown, repeated or invalid \
             in a response (RFC 7692 §7)"
        ));
    }
    let valid = offers.iter().filter(|offer| offer.find_invalid_parameter(true).is_none());
    let mut mismatches = valid.map(|offer| response.find_mismatch(offer)).peekable();
    if mismatches.peek().is_none() {
        return Some("the 101 accepts permessage-deflate, whose offer is invalid (RFC 7692 §7)".into());
    }
    // `None` stands for an offer that matches, and one is enough. `None` is less than any `Some`, so `min` finds it.
    let mismatch = mismatches.min()??;
    Some(format!("the 101 does not accept permessage-deflate as offered: {mismatch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7692_7_1_a_client_checks_the_response() {
        let rows = [
            ("x", "x; a=1", None),
            ("x; a", "x", None),
            ("x, y", "x", Some("the extension \"y\"")),
            ("", "", None),
            ("", "; client_max_window_bits", None),
            ("; client_no_context_takeover; server_no_context_takeover; server_max_window_bits=9", "", None),
            ("; client_max_window_bits=10", "", Some("§7.1.2.2")),
            ("; client_max_window_bits=15", "; client_max_window_bits=10", None),
            ("; client_max_window_bits", "; client_max_window_bits", Some("\"client_max_window_bits\"")),
            ("", "; server_no_context_takeover", Some("§7.1.1.1")),
            ("; server_no_context_takeover", "; server_no_context_takeover", None),
            ("", "; server_max_window_bits=10", Some("§7.1.2.1")),
            ("; server_max_window_bits=11", "; server_max_window_bits=10", Some("§7.1.2.1")),
            ("; server_max_window_bits=\"9\"", "; server_max_window_bits=\"1\\0\"", None),
            ("; server_max_window_bits=8", "; server_max_window_bits=8", None),
            ("; server_max_window_bits=16", "", Some("\"server_max_window_bits=16\"")),
            ("; server_max_window_bits", "", Some("\"server_max_window_bits\"")),
            ("; server_no_context_takeover=1", "", Some("\"server_no_context_takeover=1\"")),
            ("; server_no_context_takeover; server_no_context_takeover", "", Some("repeated")),
            ("; x-unheard-of", "; x-unheard-of", Some("\"x-unheard-of\"")),
            ("", "; x-unheard-of", Some("whose offer is invalid")),
            ("", "; server_max_window_bits=7", Some("whose offer is invalid")),
            ("", "; x-unheard-of, permessage-deflate", None),
            ("", "; server_max_window_bits=10, permessage-deflate", None),
            ("; server_max_window_bits=10", "; server_max_window_bits=10, permessage-deflate", None),
            (", permessage-deflate", "", Some("twice")),
        ];
        for (chosen, offered, expected) in rows {
            let [chosen, offered] = [chosen, offered].map(|list| match list.strip_prefix(['x', 'X']) {
                Some(_) => list.to_owned(),
                None => format!("permessage-deflate{list}"),
            });
            let found = find_violations(&chosen, &offered);
            assert_eq!(found.len(), expected.iter().len(), "{chosen:?} for {offered:?}: {found:?}");
            assert!(expected.is_none_or(|expected| found[0].contains(expected)), "{found:?}");
        }
        assert_eq!(find_violations("permessage-deflate", "").len(), 1);
        assert_eq!(DeflateParameters::from_response("x"), None);
        let alone = DeflateParameters::from_response("x, permessage-deflate;client_no_context_takeover");
        assert_eq!(
            alone,
            Some(DeflateParameters { server_takes_over_context: true, client_takes_over_context: false })
        );
    }
}
