//! The test cases that `wirechat poke` can run. The integration tests run all of them against wirechat
//! (`tests/poke.rs`), and most of them also with clients other than `poke` (`tests/hostile_frames.rs`,
//! `tests/hostile_handshake.rs`).

mod control;
#[cfg(feature = "deflate")]
mod deflate;
mod frames;
mod handshake;
mod headers;
mod limits;
mod messages;

use super::case::{Case, End, Opening, Requirement};

pub const GROUPS: &[(&str, &[Case])] = &[
    ("The opening handshake (§4)", handshake::CASES),
    ("The request as HTTP (§4.2.1, RFC 9112)", headers::CASES),
    ("Frames (§5.1–§5.3)", frames::CASES),
    ("Fragments (§5.4)", messages::FRAGMENT_CASES),
    ("Text (§5.6, §8.1)", messages::TEXT_CASES),
    ("Ping and Pong (§5.5)", control::PING_CASES),
    ("Closing (§5.5.1, §7)", control::CLOSE_CASES),
    ("Limits (§10.4)", limits::CASES),
    // Without the feature, `poke` cannot inflate a server's messages.
    #[cfg(feature = "deflate")]
    ("Compression (RFC 7692)", deflate::CASES),
];

pub fn all_cases() -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().flat_map(|(_, cases)| cases.iter())
}

const DEFAULT_CASE: Case = Case {
    name: "",
    summary: "",
    needs: Requirement::Upgrade,
    opening: Opening::Valid,
    steps: &[],
    replies: &[],
    end: End::Open,
    allowed: &[],
    rule: ("", ""),
    error: None,
};

const ECHO_CASE: Case = Case { needs: Requirement::Echo, ..DEFAULT_CASE };

/// Defaults for a test case whose client breaks a rule, so that the server must fail the connection (§7.1.7).
const VIOLATION_CASE: Case = Case { end: PROTOCOL_ERROR, allowed: &[DISCONNECT], ..DEFAULT_CASE };

const PROTOCOL_ERROR: End = End::Closes(&[1002]);
const DISCONNECT: (End, &str) =
    (End::Disconnects, "§7.1.7: an endpoint that fails the connection should send a Close first, and may omit it");

const WAIT_FOR_WHOLE_FRAME: (End, &str) =
    (End::Waits, "§5.2 does not say when a rule is checked; a server may wait for the whole frame");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tools::notation;
    use crate::tools::poke::case::{Edit, Reply};
    use crate::tools::poke::request;
    use crate::tools::url::Url;

    #[test]
    fn every_case_can_be_read() {
        let url = Url::parse("ws://127.0.0.1:3000/").unwrap();
        for case in all_cases() {
            let _ = case.bytes(&mut || [0; 4]);
            for reply in case.replies {
                match reply {
                    Reply::Text(bytes) | Reply::Binary(bytes) | Reply::Pong(bytes) | Reply::OptionalPong(bytes) => {
                        assert!(notation::read(bytes).is_ok(), "{}", case.name);
                    }
                    Reply::Letters(..) => {}
                }
            }
            assert!(!request::build_request(&url, "", case.opening.edits()).is_empty());
            for edit in case.opening.edits() {
                assert!(!matches!(edit, Edit::Set("") | Edit::Add("")), "{}", case.name);
            }
        }
    }

    #[test]
    fn every_case_has_a_unique_name_a_summary_and_a_rule() {
        let mut names = BTreeSet::new();
        for case in all_cases() {
            assert!(names.insert(case.name), "{} twice", case.name);
            assert!(case.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.'));
            assert!(!["list", "all"].contains(&case.name));
            assert!(
                !case.summary.is_empty() && case.summary.len() < 90 && !case.summary.ends_with('.'),
                "{}",
                case.name
            );
            assert!(!case.rule.0.is_empty() && !case.rule.1.is_empty(), "{} has a rule", case.name);
            let (section, why) = (case.rule.0, case.allowed.iter().all(|(_, why)| why.contains('§')));
            assert!(why, "{}: an allowed end cites its section", case.name);
            assert!(section.starts_with('§') || section.starts_with("RFC "), "{}", case.name);
        }
        assert!(names.len() >= 60, "{}", names.len());
    }

    #[test]
    fn a_case_that_breaks_a_rule_expects_the_code_of_that_rule() {
        for case in all_cases() {
            let Some(error) = case.error else { continue };
            assert!(matches!(case.end, End::Closes([code]) if *code == error.code().get()), "{}", case.name);
        }
    }
}
