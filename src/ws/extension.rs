//! §9, extensions: the seam where one would enter. By default nothing is negotiated.
//!
//! A client offers extensions in `Sec-WebSocket-Extensions`; a server may answer with those that it takes, and one
//! that it takes may give the RSV bits a meaning. This server reads the offer strictly, takes nothing of it and says
//! nothing, which is how §9.1 has a server decline; so `frame.rs` demands RSV bits of 0.
//!
//! An extension would be a file beside this one: it would look at the offers here, add its answer to the 101, and
//! stand between the frames and the messages of `protocol.rs`.
//!
//! The subtle thing: header parsers of this grammar have had regular expressions that ran for minutes on a line of
//! blanks. This one walks over each byte once.

use super::request::is_token;

/// Whether `value` is an offer as the grammar of §9.1 has it: a list of `name; parameter; parameter=value`. Several
/// header lines are one list, joined with commas (RFC 9110 §5.3).
///
/// ```
/// use wirechat::ws::extension::is_offer;
/// assert!(is_offer("permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"));
/// assert!(!is_offer("permessage-deflate; =10"));
/// ```
pub fn is_offer(value: &str) -> bool {
    let mut offers = 0;
    let mut rest = value.trim_matches(BLANK);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start_matches(BLANK); // an empty list element counts for nothing
            continue;
        }
        let Some(after) = skip_offer(rest) else {
            return false;
        };
        offers += 1;
        rest = after;
    }
    offers > 0
}

const BLANK: [char; 2] = [' ', '\t'];

/// One extension with its parameters; returns what follows, which is empty or begins with a comma.
fn skip_offer(text: &str) -> Option<&str> {
    let mut rest = skip_token(text)?;
    while let Some(parameter) = rest.strip_prefix(';') {
        rest = skip_token(parameter.trim_start_matches(BLANK))?;
        if let Some(value) = rest.strip_prefix('=') {
            rest = skip_value(value.trim_start_matches(BLANK))?;
        }
    }
    (rest.is_empty() || rest.starts_with(',')).then_some(rest)
}

/// A parameter's value: a token, or a quoted string whose content is one (§9.1: "the value after quoted-string
/// unescaping MUST conform to the 'token' ABNF").
fn skip_value(text: &str) -> Option<&str> {
    let Some(quoted) = text.strip_prefix('"') else {
        return skip_token(text);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => break,
            '\\' => value.push(characters.next()?),
            plain => value.push(plain),
        }
    }
    is_token(&value).then(|| characters.as_str().trim_start_matches(BLANK))
}

/// A token, and the blanks behind it.
fn skip_token(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !is_token(c.encode_utf8(&mut [0; 4]))).unwrap_or(text.len());
    (end > 0).then(|| text[end..].trim_start_matches(BLANK))
}

#[cfg(test)]
mod tests {
    use super::is_offer;

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
            assert!(is_offer(offer), "{offer}");
        }
        for offer in bad {
            assert!(!is_offer(offer), "{offer}");
        }
    }

    #[test]
    fn a_line_of_blanks_is_walked_over_once() {
        let blanks = " ".repeat(100_000);
        assert!(!is_offer(&format!("b{blanks}x")));
    }
}
