//! §9, extensions. This server validates the client's `Sec-WebSocket-Extensions` header but declines every offer
//! except, with `--deflate`, permessage-deflate. Without permessage-deflate, `frame.rs` requires the RSV bits to be 0.

use super::request::is_token;

/// Whether `value` matches the grammar of §9.1: a list of `name; parameter; parameter=value`.
pub fn is_extension_list(value: &str) -> bool {
    // Splitting inside quotes is harmless: a quoted value must be a token, and a token contains no separator.
    let mut offers = value.split(',').map(str::trim_ascii).filter(|offer| !offer.is_empty()).peekable();
    offers.peek().is_some()
        && offers.all(|offer| {
            let mut parts = offer.split(';');
            parts.next().is_some_and(|name| is_token(name.trim_ascii_end())) && parts.all(is_parameter)
        })
}

fn is_parameter(text: &str) -> bool {
    // §9.1: a parameter may have no value. Substitute a valid token for a missing value, so that the checks below
    // depend only on the parameter's name.
    let (name, value) = text.split_once('=').unwrap_or((text, "none"));
    let (name, value) = (name.trim_ascii(), value.trim_ascii());
    let Some(quoted) = value.strip_prefix('"') else { return is_token(name) && is_token(value) };
    // §9.1: "the value after quoted-string unescaping MUST conform to the 'token' ABNF", and a token has no backslash.
    let unquoted = quoted.strip_suffix('"').unwrap_or_default();
    is_token(name) && unquoted.strip_prefix('\\').unwrap_or(unquoted).split('\\').all(is_token)
}

#[cfg(test)]
mod tests {
    use super::is_extension_list;

    #[test]
    fn rfc_9_1_offers() {
        let good = [
            "foo",
            "foo, bar",
            "foo ,\tbar;baz",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            r#"foo; bar="baz""#,
            r#"foo; bar="b\az" ; x"#,
            "foo,,bar",
            "constructor",
        ];
        let bad = [
            "",
            " ",
            ",",
            "foo bar",
            "foo;",
            "foo;;bar",
            "foo; =1",
            "foo; bar=",
            "foo=1",
            r#"foo; bar=""#,
            r#"foo; bar="a b""#,
            r#"foo; bar="""#,
            r#"foo; bar="x\"#,
            r#"foo; bar="x"y"#,
            "foo/bar",
            "f\u{f6}o",
        ];
        for offer in good {
            assert!(is_extension_list(offer), "{offer}");
        }
        for offer in bad {
            assert!(!is_extension_list(offer), "{offer}");
        }
    }

    #[test]
    fn white_space_takes_linear_time() {
        let blanks = " ".repeat(100_000);
        assert!(!is_extension_list(&format!("b{blanks}x")));
    }
}
