//! The catalogue: everything that `wirechat poke` can do to a server.
//!
//! One list, two uses: a person plays its cases one by one against whatever server, and this project's own tests play
//! all of them against its own (`tests/poke.rs`, `tests/hostile_frames.rs`, `tests/hostile_handshake.rs`).
//!
//! A case is added by writing it down in the file where it belongs.

mod closes;
mod control;
mod fragments;
mod frames;
mod handshake;
mod headers;
mod limits;
mod text;

use super::case::{Case, End, Needs, Opening};

/// The parts of the catalogue, with what they are about.
pub const PARTS: &[(&str, &[Case])] = &[
    ("The opening handshake (§4)", handshake::CASES),
    ("The request as HTTP (§4.2.1, RFC 9112)", headers::CASES),
    ("Frames (§5.1–§5.3)", frames::CASES),
    ("Fragments (§5.4)", fragments::CASES),
    ("Text (§5.6, §8.1)", text::CASES),
    ("Ping and Pong (§5.5)", control::CASES),
    ("Closing (§5.5.1, §7)", closes::CASES),
    ("Limits and patience (§10.4)", limits::CASES),
];

/// All cases, in order.
pub fn all() -> impl Iterator<Item = &'static Case> {
    PARTS.iter().flat_map(|(_, cases)| cases.iter())
}

/// What most cases have in common; the rest of a case is what is special about it.
const CASE: Case = Case {
    name: "",
    what: "",
    needs: Needs::Upgrade,
    opening: Opening::Usual,
    steps: &[],
    back: &[],
    end: End::Open,
    allowed: &[],
    rule: ("", ""),
    error: None,
};

/// A case that wants its messages back.
const ECHO: Case = Case { needs: Needs::Echo, ..CASE };

/// A broken rule that fails the connection (§7.1.7).
const FAILS: Case = Case { end: PROTOCOL_ERROR, allowed: &[CUT], ..CASE };

const PROTOCOL_ERROR: End = End::Closes(&[1002]);
const CUT: (End, &str) =
    (End::Cut, "§7.1.7: an endpoint that fails the connection should send a Close first, and may leave it out");

/// Of a frame that never ends.
const UNFINISHED: (End, &str) = (End::Waits, "§5.2 does not say when; a server may wait for the whole frame");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tools::poke::case::{Back, Edit};
    use crate::tools::poke::url::Url;
    use crate::tools::{notation, poke::request};

    #[test]
    fn every_case_can_be_read() {
        let url = Url::parse("ws://127.0.0.1:3000/").unwrap();
        for case in all() {
            let _ = case.bytes(&mut || [0; 4]);
            for back in case.back {
                match back {
                    Back::Text(bytes) | Back::Binary(bytes) | Back::Pong(bytes) | Back::MaybePong(bytes) => {
                        assert!(notation::parse(bytes).is_ok(), "{}", case.name);
                    }
                    Back::Letters(..) => {}
                }
            }
            if let Opening::Odd(edits) = case.opening {
                assert!(!request::bytes(&url, "", edits).is_empty());
                for edit in edits {
                    assert!(!matches!(edit, Edit::Set("") | Edit::Add("")), "{}", case.name);
                }
            }
        }
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_says_what_it_is_about() {
        let mut names = BTreeSet::new();
        for case in all() {
            assert!(names.insert(case.name), "{} twice", case.name);
            assert!(case.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.'));
            assert!(!["list", "all"].contains(&case.name));
            assert!(!case.what.is_empty() && case.what.len() < 90 && !case.what.ends_with('.'), "{}", case.name);
            assert!(!case.rule.0.is_empty() && !case.rule.1.is_empty(), "{} names its rule", case.name);
            let (section, why) = (case.rule.0, case.allowed.iter().all(|(_, why)| why.contains('§')));
            assert!(why, "{}: what allows it is a section", case.name);
            assert!(section.starts_with('§') || section.starts_with("RFC "), "{}", case.name);
        }
        assert!(names.len() >= 60, "{}", names.len());
    }

    #[test]
    fn a_case_that_breaks_a_rule_expects_the_code_of_that_rule() {
        for case in all() {
            let Some(error) = case.error else { continue };
            assert!(matches!(case.end, End::Closes([code]) if *code == error.code().get()), "{}", case.name);
        }
    }
}
