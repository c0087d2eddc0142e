//! Compares the server's token-file parser with a simpler parser. An error must not quote a token, and parsing the same
//! file again must return the same token ids.

use std::collections::HashMap;

use wirechat::chat::names::{is_ignorable, parse_username, username_key};
use wirechat::http::tokens::AccessTokens;

const MAX_HEAD: usize = 100;

/// Returns a line's token and the username after it (possibly empty), or `None` if the line has no token.
fn split(line: &str) -> Option<(&str, &str)> {
    let chars: Vec<(usize, char)> = line.char_indices().collect();
    let comment = (0..chars.len()).find(|&at| chars[at].1 == '#' && (at == 0 || chars[at - 1].1.is_whitespace()));
    let text = comment.map_or(line, |at| &line[..chars[at].0]).trim();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (!text.is_empty()).then(|| (&text[..end], text[end..].trim()))
}

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines: Vec<_> = text.strip_prefix('\u{feff}').unwrap_or(text).lines().map(split).collect();
    let (mut tokens, mut spellings) = (HashMap::new(), HashMap::new());
    let mut wrong = None;
    for (number, line) in (1..).zip(&lines) {
        let Some((token, username)) = *line else { continue };
        let name =
            if username.is_empty() { Ok(None) } else { parse_username(username).map(|name| Some(name.to_string())) };
        let is_invisible = token.chars().any(|c| c.is_control() || is_ignorable(c));
        let Ok(name) = name.map(|name| name.map(std::rc::Rc::<str>::from)) else {
            wrong = Some(number);
            break;
        };
        let is_other = name
            .as_ref()
            .is_some_and(|name| *spellings.entry(username_key(name)).or_insert_with(|| name.clone()) != *name);
        if is_invisible || token.len() > MAX_HEAD || is_other || tokens.insert(token, (number, name)).is_some() {
            wrong = Some(number);
            break;
        }
    }
    match AccessTokens::parse(text, MAX_HEAD) {
        Ok(parsed) => {
            assert_eq!(wrong, None, "line {wrong:?} of {text:?}");
            assert!(!tokens.is_empty());
            for (token, (number, name)) in &tokens {
                let identity = parsed.identify(token).expect("a token of the file");
                assert_eq!((identity.token_line.map(|line| line.get()), &identity.username), (Some(*number), name));
            }
            assert_eq!(parsed.ids().len(), tokens.len(), "each token has its own id");
            let again = AccessTokens::parse(text, MAX_HEAD).expect("the same file");
            assert_eq!(again.ids(), parsed.ids(), "a reload keeps the ids");
        }
        Err(error) => match wrong {
            None => assert!(tokens.is_empty() && error.contains("no token"), "{error}"),
            Some(number) => {
                let fixed = error.strip_prefix(&format!("line {number}: ")).expect("the number of the line");
                let (token, username) = lines[number as usize - 1].expect("a token");
                // The error must not quote the token. Exempt short tokens and tokens that are part of a username,
                // because the error may contain the same text by coincidence.
                let quoted = fixed.contains(token) && token.len() > 12 && !username.contains(token);
                assert!(!quoted || spellings.values().any(|name| name.contains(token)), "{fixed} quotes {token:?}");
            }
        },
    }
}
