//! Access tokens (RFC 6455 §10.5), from the token file or built in for demos. A token may be bound to a username.

use std::collections::{HashMap, HashSet};
use std::{hash::BuildHasher, num::NonZeroU32, rc::Rc};

use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

use crate::chat::{CredentialId, Identity, names};

// The demo tokens are public knowledge, so they are valid only on a local server (PROTOCOL.md) without a token file.
pub const DEMO_TOKENS: &str = "token-alice\ntoken-bob\ntoken-carol\ndev-token";

#[derive(Debug, Default)]
pub struct AccessTokens {
    by_hash: HashMap<u64, Vec<(String, Identity)>>, // keyed by a seeded hash, so that lookup times reveal no token
    pub usernames: HashMap<Rc<str>, Rc<str>>,       // every username that a token is bound to, keyed by `username_key`
}

impl AccessTokens {
    /// Parses a token file: one token per line. Error messages are logged, so they never quote a token.
    pub fn parse(text: &str, max_head: usize) -> Result<AccessTokens, String> {
        let mut tokens = AccessTokens::default();
        // Strip the byte-order mark that some editors write. Otherwise the first line would be invalid.
        for (line, text) in (1..).zip(text.strip_prefix('\u{feff}').unwrap_or(text).lines()) {
            tokens.add(text, line, max_head).map_err(|error| format!("line {line}: {error}"))?;
        }
        (!tokens.by_hash.is_empty()).then_some(tokens).ok_or("the file contains no token; write one per line".into())
    }

    fn add(&mut self, text: &str, line: u32, max_head: usize) -> Result<(), String> {
        let comment = text.match_indices('#').find(|(at, _)| *at == 0 || text[..*at].ends_with(char::is_whitespace));
        let text = comment.map_or(text, |(at, _)| &text[..at]).trim();
        let (token, username) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if token.is_empty() {
            return Ok(());
        }
        // Reject invisible characters. They are usually pasted by accident, and no client would send a matching token.
        if let Some(found) = token.chars().find(|c| c.is_control() || names::is_ignorable(*c)) {
            return Err(format!("the token contains the invisible character U+{:04X}; remove it", u32::from(found)));
        }
        if token.len() > max_head {
            return Err(format!("the token has {} bytes, and a request head only --max-head {max_head}", token.len()));
        }
        let username = Some(username.trim()).filter(|name| !name.is_empty()).map(names::parse_username).transpose()?;
        let username: Option<Rc<str>> = username.map(Rc::from);
        if self.identify(token).is_some() {
            return Err("this token is already in the file; remove one of them".into());
        }
        if let Some(username) = &username {
            let other = self.usernames.entry(names::username_key(username)).or_insert_with(|| Rc::clone(username));
            if other != username {
                return Err(format!("the usernames {username:?} and {other:?} count as the same; write them alike"));
            }
        }
        let id = Some(credential_id(token, username.as_deref()));
        let identity = Identity { credential: id, token_line: NonZeroU32::new(line), username, claims: None };
        self.by_hash.entry(self.by_hash.hasher().hash_one(token)).or_default().push((token.to_owned(), identity));
        Ok(())
    }

    pub fn identify(&self, token: &str) -> Option<&Identity> {
        let mut candidates = self.by_hash.get(&self.by_hash.hasher().hash_one(token))?.iter();
        candidates.find(|(known, _)| known.as_bytes().ct_eq(token.as_bytes()).into()).map(|(_, identity)| identity)
    }

    pub fn ids(&self) -> HashSet<CredentialId> {
        self.by_hash.values().flatten().filter_map(|(_, identity)| identity.credential).collect()
    }
}

fn credential_id(token: &str, username: Option<&str>) -> CredentialId {
    let digest: [u8; 20] = Sha1::digest(format!("{token}\n{}", username.unwrap_or_default())).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    CredentialId::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap_or(CredentialId::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AccessTokens, String> {
        AccessTokens::parse(text, 1000)
    }

    fn id(tokens: &AccessTokens, token: &str) -> Option<CredentialId> {
        tokens.identify(token).and_then(|identity| identity.credential)
    }

    #[test]
    fn token_files() {
        let tokens = parse("# ours\n\nsecret\nother  Al ice # hers\nwith#hash\r\n").unwrap();
        for (token, line, username) in [("secret", 3, None), ("other", 4, Some("Al ice")), ("with#hash", 5, None)] {
            let identity = tokens.identify(token).unwrap();
            assert_eq!((identity.token_line.unwrap().get(), identity.username.as_deref()), (line, username));
        }
        assert!(
            ["", "# ours", "hash", "secre", "secret ", "Secret"].iter().all(|wrong| tokens.identify(wrong).is_none())
        );
        assert!(parse("\u{feff}secret\n").unwrap().identify("secret").is_some(), "the byte-order mark is skipped");
        let long = "x".repeat(1001);
        let bad = [
            ("", "one per line"),
            ("\u{feff}# nothing", "one per line"),
            ("one\none", "line 2"),
            ("token \u{200b}", "line 1"),
            ("one\n\u{feff}two", "U+FEFF"),
            ("one\u{1b}", "U+001B"),
            ("one alice\ntwo Alice", "line 2: the usernames \"Alice\" and \"alice\""),
            ("one alice\ntwo ａｌｉｃｅ", "line 2"),
            (&long, "--max-head 1000"),
        ];
        for (text, words) in bad {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        assert!(parse("one alice\ntwo alice").is_ok(), "several tokens may be bound to one username");
    }

    #[test]
    fn a_reload_keeps_the_ids_of_tokens_that_did_not_change() {
        let before = parse("one\ntwo ann\nthree\nfour").unwrap();
        let after = parse("new\nthree\ntwo bob\none").unwrap();
        assert_eq!(id(&after, "one"), id(&before, "one"));
        assert_eq!(id(&after, "three"), id(&before, "three"));
        for (token, other) in [("new", "one"), ("two", "two"), ("new", "four")] {
            assert_ne!(id(&after, token), id(&before, other), "{token} {other}");
        }
        assert!(!after.ids().contains(&id(&before, "four").unwrap()));
        assert_eq!(after.usernames.values().collect::<Vec<_>>(), [&Rc::<str>::from("bob")]);
    }

    #[test]
    fn a_large_file_is_read_in_linear_time() {
        let text: String = (0..100_000).map(|n| format!("token-{n} user-{n}\n")).collect();
        let tokens = parse(&text).unwrap();
        assert_eq!(tokens.identify("token-99999").unwrap().username.as_deref(), Some("user-99999"));
    }
}
