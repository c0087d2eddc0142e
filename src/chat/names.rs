//! Validates usernames and room names, and defines when two usernames are the same (PROTOCOL.md, "Names").

use std::rc::Rc;

use unicase::UniCase;

use super::dialect::Dialect;

/// Returns the trimmed username, or an error text for the client.
pub fn username(text: &str) -> Result<&str, String> {
    validate("username", text, 32, 128)
}

pub fn room_name(text: &str) -> Result<&str, String> {
    validate("room", text, 64, 256)
}

fn validate<'a>(kind: &str, text: &'a str, characters: usize, bytes: usize) -> Result<&'a str, String> {
    let name = text.trim();
    let (count, size) = (name.chars().count(), name.len());
    // Invisible characters and text-direction controls can make two different names look the same.
    let is_deceptive = |c| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if name.chars().any(|c| c.is_control() || is_deceptive(c)) {
        Err(format!("A {kind} must not hold control or invisible characters"))
    } else if !(1..=characters).contains(&count) || size > bytes {
        Err(format!("A {kind} has 1 to {characters} characters and at most {bytes} bytes, not {count} and {size}"))
    } else {
        Ok(name)
    }
}

/// `None` for a dialect's default username, which many clients may share.
pub fn unique_key(username: &str) -> Option<Rc<str>> {
    let is_default = Dialect::ALL.iter().any(|dialect| dialect.default_username() == Some(username));
    // Use Unicode case folding: lowercasing would not make `STRASSE` and `straße` equal.
    (!is_default).then(|| UniCase::new(username).to_folded_case().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_and_forbidden_names() {
        assert_eq!(username("  Alice \u{a0}\u{3000}"), Ok("Alice"));
        let (longest, widest) = ("x".repeat(32), "😀".repeat(32));
        for good in ["a", "Ünïcödé", "张伟", "<img src=x>", longest.as_str(), widest.as_str()] {
            assert_eq!(username(good), Ok(good));
        }
        let (too_long, too_wide) = ("x".repeat(33), "👨‍👩‍👧".repeat(12));
        let invisible = "\u{0}\u{7f}\u{85}\u{ad}\u{61c}\u{180e}\u{200b}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}";
        for bad in ["", "  ", too_long.as_str(), too_wide.as_str()] {
            assert!(username(bad).is_err(), "{bad}");
        }
        for character in invisible.chars() {
            assert!(username(&format!("a{character}b")).is_err(), "{character:?}");
        }
        assert!(room_name(&"r".repeat(64)).is_ok() && room_name(&"r".repeat(65)).is_err());
        assert!(room_name("../x").is_ok() && room_name("#a b").is_ok());
    }

    #[test]
    fn names_are_the_same_if_they_fold_to_the_same_key() {
        assert_eq!(unique_key("Straße"), unique_key("STRASSE"));
        assert_eq!(unique_key("strasse"), unique_key("STRASSE"));
        assert_ne!(unique_key("alice"), unique_key("bob"));
        assert_eq!((unique_key("anonymous"), unique_key("Anonymous")), (None, None));
        assert!(unique_key("ANONYMOUS").is_some(), "only the default names as they are spelled are exempt");
    }
}
