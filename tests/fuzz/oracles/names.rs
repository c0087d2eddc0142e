//! Compares the parsers of usernames and room names with the rules of PROTOCOL.md, and checks that equivalent
//! spellings of a username have the same key.

use std::rc::Rc;

use unicode_normalization::UnicodeNormalization;
use wirechat::chat::names::{is_ignorable, parse_room_name, parse_username, username_key};

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    check_name_parser(text, 32, 128, |text| parse_username(text).ok().map(String::from));
    check_name_parser(text, 64, 256, |text| parse_room_name(text).ok().map(String::from));
    if let Ok(name) = parse_username(text) {
        check_key(&name);
    }
}

fn check_name_parser(text: &str, characters: usize, bytes: usize, parse: impl Fn(&str) -> Option<String>) {
    let expected: String = text.trim().nfc().collect();
    let is_variation = |c: char| c == '\u{fe0e}' || c == '\u{fe0f}';
    let is_visible = |c: &char| !c.is_whitespace() && !is_ignorable(*c) && *c != '\u{2800}';
    let all: Vec<char> = expected.chars().collect();
    let is_allowed = |index: usize| {
        let c = all[index];
        let follows_visible = index > 0 && is_visible(&all[index - 1]);
        !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}') && !is_ignorable(c)
            || is_variation(c) && follows_visible
    };
    let is_valid = (0..all.len()).all(is_allowed)
        && all.iter().any(is_visible)
        && all.len() <= characters
        && expected.len() <= bytes;
    let name = parse(text);
    assert_eq!(name, is_valid.then_some(expected), "{text:?}");
    if let Some(name) = name {
        assert_eq!(parse(&name).as_ref(), Some(&name), "a parsed name parses to itself");
        assert_eq!(parse(&name.nfd().collect::<String>()).as_ref(), Some(&name), "its NFD form parses to the name");
    }
}

fn key(name: &str) -> Rc<str> {
    username_key(&name.into())
}

fn check_key(name: &str) {
    let own = key(name);
    assert_eq!(key(&own), own, "the key of a key is the same key: {name:?}");
    let spellings: [String; 5] = [
        name.nfd().collect(),
        name.nfkc().collect(),
        name.nfkd().collect(),
        name.to_ascii_uppercase(),
        name.chars().flat_map(|c| [c, '\u{200b}']).collect(),
    ];
    for spelling in spellings {
        assert_eq!(key(&spelling), own, "{name:?} and {spelling:?}");
    }
    // The uppercase name must have the same key. Skip names with a letter whose case mapping is not one-to-one.
    if name.chars().all(|c| c.is_ascii() || c.to_uppercase().count() == 1 && c.to_lowercase().count() == 1) {
        let round = |c: char| c.to_uppercase().next().is_some_and(|upper| upper.to_lowercase().eq([c]));
        if name.chars().all(|c| round(c) || c.is_ascii()) {
            assert_eq!(key(&name.to_uppercase()), own, "{name:?} in capitals");
        }
    }
}
