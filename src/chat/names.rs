//! Validates, normalizes and compares usernames and room names (PROTOCOL.md, "Names").

use std::{borrow::Cow, rc::Rc};

use unicase::UniCase;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::dialect::Dialect;

pub fn parse_username(text: &str) -> Result<Cow<'_, str>, String> {
    parse_name("username", text, 32, 128)
}

pub fn parse_room_name(text: &str) -> Result<Cow<'_, str>, String> {
    parse_name("room", text, 64, 256)
}

/// Trims, normalizes (NFC) and validates a name. The error text is for a client or the author of a token file.
fn parse_name<'a>(kind: &str, text: &'a str, characters: usize, bytes: usize) -> Result<Cow<'a, str>, String> {
    let name = text.trim();
    let is_nfc = is_nfc_quick(name.chars()) == IsNormalized::Yes;
    let name: Cow<'_, str> = if is_nfc { name.into() } else { name.nfc().collect::<String>().into() };
    let (count, size, mut is_after_visible) = (name.chars().count(), name.len(), false);
    for character in name.chars() {
        let is_emoji_style = is_after_visible && matches!(character, '\u{fe0e}' | '\u{fe0f}');
        let is_invisible = matches!(character, '\u{2028}' | '\u{2029}') || is_ignorable(character);
        if character.is_control() || is_invisible && !is_emoji_style {
            return Err(format!("A {kind} must not hold control or invisible characters"));
        }
        is_after_visible = is_visible(character);
    }
    if !(1..=characters).contains(&count) || size > bytes {
        Err(format!("A {kind} has 1 to {characters} characters and at most {bytes} bytes, not {count} and {size}"))
    } else if !name.chars().any(is_visible) {
        Err(format!("A {kind} must hold a visible character"))
    } else {
        Ok(name)
    }
}

/// Whether text renderers hide the character: Default_Ignorable_Code_Point in Unicode 17 (DerivedCoreProperties.txt).
pub fn is_ignorable(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_visible(character: char) -> bool {
    // U+2800, the blank Braille pattern, looks like a space but is not whitespace.
    !(character.is_whitespace() || character == '\u{2800}' || is_ignorable(character))
}

/// The form in which usernames are compared: case-folded, in NFKC and without ignorable characters.
pub fn username_key(username: &Rc<str>) -> Rc<str> {
    if username.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Rc::clone(username); // the key equals the username: share one string to save memory
    }
    // Remove ignorable characters first, because they keep NFKC from reordering the combining marks around them.
    let visible: String = username.chars().filter(|character| !is_ignorable(*character)).nfkc().collect();
    // Case folding maps `STRASSE` and `straße` to the same key; lowercasing does not.
    UniCase::new(visible).to_folded_case().nfkc().collect::<String>().into()
}

pub fn is_default_username(username: &str) -> bool {
    Dialect::ALL.iter().any(|dialect| dialect.default_username() == Some(username))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(username: &str) -> Rc<str> {
        username_key(&username.into())
    }

    #[test]
    fn allowed_and_forbidden_names() {
        assert_eq!(parse_username("  Alice \u{a0}\u{3000}").unwrap(), "Alice");
        let (longest, widest) = ("x".repeat(32), "😀".repeat(32));
        for good in ["a", "Ünïcödé", "张伟", "<img src=x>", "❤\u{fe0f}", "a b", longest.as_str(), widest.as_str()]
        {
            assert_eq!(parse_username(good).unwrap(), good);
        }
        let (too_long, too_wide) = ("x".repeat(33), "😀".repeat(33));
        for bad in ["", "  ", too_long.as_str(), too_wide.as_str(), "\u{2800}", "\u{2800} \u{2800}"] {
            assert!(parse_username(bad).is_err(), "{bad:?}");
        }
        assert!(parse_room_name(&"r".repeat(64)).is_ok() && parse_room_name(&"r".repeat(65)).is_err());
        assert!(parse_room_name("../x").is_ok() && parse_room_name("#a b").is_ok());
    }

    #[test]
    fn names_are_normalized_before_they_are_measured() {
        assert_eq!(parse_username("e\u{301}").unwrap(), "é");
        let decomposed = "e\u{301}".repeat(32);
        assert_eq!(parse_username(&decomposed).unwrap(), "é".repeat(32));
        assert!(parse_username(&"e\u{301}".repeat(33)).is_err());
    }

    #[test]
    fn invisible_characters_are_rejected_wherever_they_stand() {
        let invisible = "\u{0}\u{1b}\u{7f}\u{85}\u{ad}\u{34f}\u{61c}\u{115f}\u{17b4}\u{180b}\u{180e}\u{200b}\u{200c}\
                         \u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2065}\u{2066}\u{2069}\
                         \u{206f}\u{3164}\u{fe00}\u{feff}\u{ffa0}\u{fff0}\u{1bca0}\u{1d173}\u{e0001}\u{e0100}";
        for character in invisible.chars() {
            for name in [format!("a{character}b"), format!("a{character}"), format!("{character}a")] {
                assert!(parse_username(&name).is_err() || name.trim() == "a", "{name:?}");
                assert!(parse_room_name(&name).is_err() || name.trim() == "a", "{name:?}");
            }
        }
        for lone in ["\u{fe0f}", "\u{fe0f}a", "a \u{fe0f}", "a\u{fe0f}\u{fe0f}"] {
            assert!(parse_username(lone).is_err(), "{lone:?}");
        }
    }

    #[test]
    fn names_are_the_same_if_their_keys_are() {
        for same in ["ALICE", "Alice", "ａｌｉｃｅ", "𝐚𝐥𝐢𝐜𝐞", "ⓐⓛⓘⓒⓔ", "𝓐lice"] {
            assert_eq!(key_of(same), key_of("alice"), "{same}");
        }
        assert_eq!(key_of("Straße"), key_of("STRASSE"));
        assert_eq!(key_of("❤\u{fe0f}"), key_of("❤"));
        assert_eq!(key_of("ﬁn"), key_of("FIN"));
        assert_eq!(key_of("\u{37a}\u{200b}\u{33a}"), key_of("\u{37a}\u{33a}"), "NFKC reorders the two marks");
        assert_ne!(key_of("alice"), key_of("аlice"), "a Cyrillic а is another letter than a Latin a");
        assert_ne!(key_of("alice"), key_of("bob"));
        assert!(
            is_default_username("anonymous") && is_default_username("Anonymous") && !is_default_username("ANONYMOUS")
        );
    }
}
