//! The query of a request target, and percent-decoding.
//!
//! The subtle thing: a parameter that is given twice counts once, the first. So there is one way to read a query, and a
//! proxy that looks at the same one cannot be shown another.

use std::borrow::Cow;

use crate::ws::request::Rejection;

/// The query of a target: its parameters, decoded once.
pub struct Query<'a>(Vec<Parameter<'a>>);

/// `name=value`. `None`: badly encoded.
struct Parameter<'a> {
    name: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// What follows the `?` of a target.
    pub fn new(query: &'a str) -> Query<'a> {
        // Nearly always nothing is encoded, and that is seen at one glance.
        let is_plain = is_plain(query);
        let read = |text| if is_plain { Some(Cow::Borrowed(text)) } else { decode(text, true).ok() };
        let mut parameters = Vec::new();
        let mut rest = Some(query);
        while let Some(pairs) = rest {
            let (pair, behind) = cut(pairs, b'&');
            let (name, value) = cut(pair, b'=');
            parameters.push(Parameter { name: read(name), value: read(value.unwrap_or_default()) });
            rest = behind;
        }
        Query(parameters)
    }

    /// The value of the first parameter of this name.
    ///
    /// # Errors
    /// 400: the value is badly encoded.
    pub fn get(&self, name: &str) -> Option<Result<&str, Rejection>> {
        let parameter = self.0.iter().find(|parameter| parameter.name.as_deref() == Some(name))?;
        Some(parameter.value.as_deref().ok_or_else(malformed))
    }

    /// Whether every parameter, known or not, is well encoded.
    ///
    /// # Errors
    /// 400: one of them is not.
    pub fn check(&self) -> Result<(), Rejection> {
        let is_good = self.0.iter().all(|Parameter { name, value }| name.is_some() && value.is_some());
        if is_good { Ok(()) } else { Err(malformed()) }
    }
}

/// What is in front of the first `separator`, which is ASCII, and what is behind it. (As `split_once`, which takes
/// several times as long on texts as short as these.)
fn cut(text: &str, separator: u8) -> (&str, Option<&str>) {
    match memchr::memchr(separator, text.as_bytes()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Percent-decodes (RFC 3986 §2.1); with `plus`, a `+` is a space. Crates for this let a malformed `%` pass, so that
/// two readers of one address could see different names.
///
/// # Errors
/// 400: a `%` without its two digits, or bytes that are not UTF-8.
pub fn decode(text: &str, plus: bool) -> Result<Cow<'_, str>, Rejection> {
    if is_plain(text) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        decoded.push(match first {
            b'+' if plus => b' ',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2).ok_or_else(malformed)?;
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8).ok_or_else(malformed);
                digit(digits[0])? << 4 | digit(digits[1])?
            }
            byte => *byte,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| malformed())
}

fn is_plain(text: &str) -> bool {
    memchr::memchr2(b'%', b'+', text.as_bytes()).is_none()
}

/// What it was is not shown: it may have been meant as a token.
fn malformed() -> Rejection {
    Rejection::new(400, "A parameter or a path is not percent-encoded UTF-8 (RFC 3986 §2.1).")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(query: &str, name: &str) -> Option<Result<String, u16>> {
        Query::new(query).get(name).map(|value| value.map(str::to_owned).map_err(|rejection| rejection.status))
    }

    #[test]
    fn the_first_of_a_name_counts() {
        let cases = [
            ("token=a&token=b", Some(Ok("a"))),
            ("x=1&token=a%20b+c", Some(Ok("a b c"))),
            ("%74oken=a", Some(Ok("a"))),
            ("token", Some(Ok(""))),
            ("token=a=b", Some(Ok("a=b"))),
            ("?=&&", None),
            ("", None),
            ("Token=a", None),
            ("token=%e2%82%ac", Some(Ok("€"))),
            ("token=%zz", Some(Err(400))),
            ("token=%", Some(Err(400))),
            ("token=%e2%82", Some(Err(400))),
        ];
        for (query, expected) in cases {
            assert_eq!(get(query, "token"), expected.map(|value| value.map(str::to_owned)), "{query}");
        }
    }

    #[test]
    fn a_parameter_that_nobody_asks_for_is_checked_too() {
        assert!(Query::new("a=1&b=%41").check().is_ok());
        assert!(Query::new("a=1&b=%4").check().is_err());
        assert!(Query::new("a=1&%ff=b").check().is_err());
    }

    #[test]
    fn a_plus_is_a_space_in_a_query_only() {
        assert_eq!(decode("a+b", true).unwrap(), "a b");
        assert_eq!(decode("a+b", false).unwrap(), "a+b");
    }
}
