//! Checks the index in `src/ws/mod.rs` against RFC 6455 and the source code. The index must list every section of the
//! RFC and every section cited under `src/ws`. Every item and test that the index names must exist. The tests at the
//! end of this file test the checks themselves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sources.rs"]
mod sources;

use sources::{code_spans, module_doc, read_all, table_rows};
use wirechat::tools::explain::sections::{self, SECTIONS};

/// The table of contents of RFC 6455.
const CONTENTS: &str = "
    1 1.1 1.2 1.3 1.4 1.5 1.6 1.7 1.8 1.9
    2 2.1
    3
    4 4.1 4.2 4.2.1 4.2.2 4.3 4.4
    5 5.1 5.2 5.3 5.4 5.5 5.5.1 5.5.2 5.5.3 5.6 5.7 5.8
    6 6.1 6.2
    7 7.1 7.1.1 7.1.2 7.1.3 7.1.4 7.1.5 7.1.6 7.1.7 7.2 7.2.1 7.2.2 7.2.3 7.3 7.4 7.4.1 7.4.2
    8 8.1
    9 9.1 9.2
    10 10.1 10.2 10.3 10.4 10.5 10.6 10.7 10.8
    11 11.1 11.1.1 11.1.2 11.2 11.3 11.3.1 11.3.2 11.3.3 11.3.4 11.3.5 11.4 11.5 11.6 11.7 11.8 11.9
    12 13 14";

/// A source file: its path in the repository, and its text.
type Source = (String, String);

/// A row of the index. In the second table (sections that do not apply to servers), `places` and `tests` are empty.
#[derive(Debug, PartialEq)]
struct Row {
    sections: Vec<&'static str>,
    places: Vec<String>,
    tests: Vec<String>,
}

#[test]
fn the_index_and_the_sources_agree() {
    let sources = [read_all("src"), read_all("tests")].concat();
    let (_, index) = sources.iter().find(|(path, _)| path == "src/ws/mod.rs").expect("the index");
    let faults = faults(&module_doc(index), &sources);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// `wirechat explain section` must explain every section that, according to the index, applies to servers. It must know
/// at least the title of every other section.
#[test]
fn explain_agrees_with_the_index() {
    let (rows, _) = rows(&module_doc(include_str!("../src/ws/mod.rs")));
    let binding = rows.iter().filter(|row| !row.places.is_empty()).flat_map(|row| row.sections.iter().copied());
    let binding: Vec<&str> = binding.collect();
    let untold: Vec<_> = binding.iter().filter(|section| sections::find_sections(section).is_empty()).collect();
    assert!(untold.is_empty(), "explain does not explain {untold:?}");
    for section in contents() {
        let is_explained = !sections::find_sections(section).is_empty();
        assert_ne!(is_explained, sections::informative_title(section).is_some(), "§{section}");
    }
    for told in SECTIONS {
        assert!(contents().any(|section| section == told.number), "RFC 6455 has no §{}", told.number);
        let places: Vec<&str> = told.files.split(", ").filter(|place| place.starts_with("src/")).collect();
        let texts = places.iter().map(|place| std::fs::read_to_string(place).expect(place));
        let is_cited = texts.flat_map(|text| citations(&text)).any(|cited| cited == told.number);
        let must_be = binding.contains(&told.number) && !places.is_empty();
        assert!(is_cited || !must_be, "§{} is cited nowhere in {}", told.number, told.files);
    }
}

fn faults(index: &str, sources: &[Source]) -> Vec<String> {
    let (rows, mut faults) = rows(index);
    let listed: Vec<&str> = rows.iter().flat_map(|row| row.sections.iter().copied()).collect();
    for section in contents().filter(|section| !is_covered(section, &listed)) {
        faults.push(format!("§{section} is not in the index"));
    }
    for (path, text) in sources.iter().filter(|(path, _)| path.starts_with("src/ws/")) {
        for section in citations(text).into_iter().filter(|section| !is_covered(section, &listed)) {
            faults.push(format!("{path} cites §{section}, which is not in the index"));
        }
    }
    for row in rows.iter().filter(|row| !row.places.is_empty()) {
        faults.extend(faults_of_row(row, sources));
    }
    faults
}

/// Whether `listed`, the list of the sections in the index, covers a section. A section with subsections is covered
/// even if it is not listed itself, because the index must list all of its subsections.
fn is_covered(section: &str, listed: &[&str]) -> bool {
    let below = format!("{section}.");
    listed.contains(&section) || contents().any(|other| other.starts_with(&below))
}

fn contents() -> impl Iterator<Item = &'static str> {
    CONTENTS.split_whitespace()
}

// ---- Parsing the index ----

/// Parses the index. Returns its rows and a list of format errors.
fn rows(index: &str) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut faults) = (Vec::new(), Vec::new());
    for cells in table_rows(index) {
        let mut sections = Vec::new();
        for word in cells[0].split(';').flat_map(leading_numbers) {
            let range = word.split_once('–').unwrap_or((word, word));
            let [first, last] = [range.0, range.1].map(|end| contents().position(|section| section == end));
            match (first, last) {
                (Some(first), Some(last)) if first <= last => {
                    sections.extend(contents().skip(first).take(last + 1 - first))
                }
                _ => faults.push(format!("the index names §{word}, which RFC 6455 does not have")),
            }
        }
        let is_binding = cells.len() == 3;
        let tests = |cell| code_spans(cell).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let (places, tests) = if is_binding { (links(cells[1]), tests(cells[2])) } else { Default::default() };
        if is_binding && (places.is_empty() || tests.is_empty()) {
            faults.push(format!("the row {:?} lacks a place or a test", cells[0]));
        }
        rows.push(Row { sections, places, tests });
    }
    (rows, faults)
}

/// Returns the targets of a table cell's links, which have the form [`target`] or [`name`](target).
fn links(cell: &str) -> Vec<String> {
    let links = cell.split("[`").skip(1).filter_map(|link| link.split_once("`]"));
    let targets =
        links.map(|(name, rest)| rest.strip_prefix('(').and_then(|rest| rest.split(')').next()).unwrap_or(name));
    targets.map(str::to_owned).collect()
}

/// Returns the section numbers and ranges (such as `7.1.6–7.2.1`) at the start of a text.
fn leading_numbers(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split([' ', ',']).filter(|word| !word.is_empty());
    words.take_while(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

// ---- Items and tests in the index ----

fn faults_of_row(row: &Row, sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut cited = Vec::new();
    for place in &row.places {
        match find_place(place, sources) {
            Some(text) => cited.extend(citations(text)),
            None => faults.push(format!("{place} is nowhere")),
        }
    }
    for section in row.sections.iter().filter(|section| !cited.contains(&section.to_string())) {
        faults.push(format!("§{section} is not cited in the file of {}", row.places.join(" or ")));
    }
    for test in row.tests.iter().filter(|test| !is_test(test, sources)) {
        faults.push(format!("there is no test {test}"));
    }
    faults
}

/// Returns the text of the file that contains an item such as `frame::FrameHeader::parse` (under `src/ws`) or
/// `crate::config::Config`. Returns `None` if the file does not declare every name in the path after the module.
fn find_place<'s>(place: &str, sources: &'s [Source]) -> Option<&'s str> {
    let (root, path) = place.strip_prefix("crate::").map_or(("src/ws", place), |path| ("src", path));
    let names: Vec<&str> = path.split("::").collect();
    (0..=names.len()).rev().find_map(|len| {
        let module = [&[root], &names[..len]].concat().join("/");
        let is_it = |path: &str| path == format!("{module}.rs") || path == format!("{module}/mod.rs");
        let (_, text) = sources.iter().find(|(path, _)| is_it(path))?;
        names[len..].iter().all(|name| declares(text, name)).then_some(text.as_str())
    })
}

fn declares(text: &str, name: &str) -> bool {
    let keywords = ["fn ", "struct ", "enum ", "trait ", "type ", "const ", "pub use protocol::"];
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    keywords.iter().any(|keyword| {
        let declaration = format!("{keyword}{name}");
        text.match_indices(&declaration).any(|(at, found)| ends(&text[at + found.len()..]))
    })
}

/// Whether a test exists. A unit test is given as `name`, an integration test as `file::name` or as a file's path.
fn is_test(test: &str, sources: &[Source]) -> bool {
    if test.ends_with(".rs") {
        return sources.iter().any(|(path, _)| path == test);
    }
    let (file, name) = test.split_once("::").map_or((None, test), |(file, name)| (Some(file), name));
    let is_there = |path: &str| file.map_or(path.starts_with("src/"), |file| path == format!("tests/{file}.rs"));
    sources.iter().filter(|(path, _)| is_there(path)).any(|(_, text)| {
        let functions = text.split("#[test]").skip(1).filter_map(|rest| rest.split_once("fn "));
        functions.filter_map(|(_, rest)| rest.split_once('(')).any(|(found, _)| found == name)
    })
}

// ---- Citations in the sources ----

/// Returns the sections of RFC 6455 that a text cites, either as `§5.1` (but not after the number of another RFC) or as
/// `=> "5.1"`, as in `ProtocolError::section`.
fn citations(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for mark in ["§", "=> \""] {
        for (at, _) in text.match_indices(mark) {
            let rest = &text[at + mark.len()..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let section = rest[..end].trim_end_matches('.');
            let is_section = section.starts_with(|c: char| c.is_ascii_digit());
            if is_section && (mark == "§" || rest[end..].starts_with('"')) && !ends_with_another_rfc(&text[..at]) {
                found.push(section.to_owned());
            }
        }
    }
    found
}

fn ends_with_another_rfc(before: &str) -> bool {
    let mut words = before.trim_end().rsplit(|c: char| c.is_whitespace() || c == '(');
    let (number, rfc) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    before.ends_with(' ') && rfc == "RFC" && number != "6455" && number.bytes().all(|byte| byte.is_ascii_digit())
}

// ---- Tests of the checks above ----

#[test]
fn the_index_is_read() {
    let index = "| section | where | test |\n|---|---|---|\n| 5.1, 7.1.6–7.2.1 some 3 words | [`a::B`], [`x`](c) | `d` |\n\n\
                 | section | why |\n|---|---|\n| 4.1 half; 12 | `not` a test |\n";
    let (rows, faults) = rows(index);
    let row = |sections: &[&'static str], places: &[&str], tests: &[&str]| Row {
        sections: sections.to_vec(),
        places: places.iter().map(|place| place.to_string()).collect(),
        tests: tests.iter().map(|test| test.to_string()).collect(),
    };
    let binding = row(&["5.1", "7.1.6", "7.1.7", "7.2", "7.2.1"], &["a::B", "c"], &["d"]);
    assert_eq!((rows, faults), (vec![binding, row(&["4.1", "12"], &[], &[])], vec![]));
    let (_, faults) = self::rows("|---|---|---|\n| 5.9 x | [`a`] | `t` |\n| 5.1–1 | | `t` |\n| 5.2 | [`a`] | |\n");
    assert_eq!(faults.len(), 4, "{faults:#?}");
}

#[test]
fn citations_are_distinguished() {
    let cited = |text: &str| citations(text).join(" ");
    assert_eq!(cited("// §5.1: see §7.4.1, §10.4."), "5.1 7.4.1 10.4");
    assert_eq!(cited("(RFC 6455 §5.2) RFC 9112 §3.2 and §4.4 (RFC 9110 §5.3)"), "5.2 4.4");
    assert_eq!(cited("RFC 9112, §6; of §{}, § 5, §x"), "6");
    assert_eq!(cited("Unmasked => \"5.1\", Other => \"10.4 x\", 1 => \"one\""), "5.1");
}

#[test]
fn missing_items_tests_and_sections_are_found() {
    let source = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let sources = [
        source(
            "src/ws/frame.rs",
            "/// §5.1\npub fn append() {}\n#[test]\n#[ignore]\nfn it_works() {}\nfn not_a_test() {}\n",
        ),
        source("src/config.rs", "//! RFC 6455 §10.4\npub struct Config {}"),
        source("tests/limits.rs", "#[test]\nfn each() {}"),
    ];
    for place in ["frame", "frame::append", "crate::config::Config"] {
        assert!(find_place(place, &sources).is_some(), "{place}");
    }
    for place in ["mask", "frame::app", "frame::appended", "config::Config", "crate::config::Conf", "crate::none"] {
        assert!(find_place(place, &sources).is_none(), "{place}");
    }
    for (test, is_there) in [
        ("it_works", true),
        ("not_a_test", false),
        ("each", false),
        ("limits::each", true),
        ("limits::it_works", false),
        ("tests/limits.rs", true),
        ("tests/none.rs", false),
    ] {
        assert_eq!(is_test(test, &sources), is_there, "{test}");
    }
    let all_but = |left_out: &str, row: &str| {
        let rest: Vec<_> = contents().filter(|section| ![left_out, "5.1"].contains(section)).collect();
        format!("|---|---|---|\n{row}\n\n|---|---|\n| {} | no |\n", rest.join(", "))
    };
    let expect = |left_out: &str, row: &str, words: &[&str]| {
        let faults = faults(&all_but(left_out, row), &sources);
        assert_eq!(faults.len(), words.len(), "{faults:#?}");
        assert!(faults.iter().zip(words).all(|(fault, word)| fault.contains(word)), "{faults:#?}");
    };
    let good = "| 5.1 masks | [`frame::append`] | `it_works` |";
    expect("", good, &[]);
    expect("9.2", good, &["§9.2 is not in the index"]);
    expect("", "", &["§5.1 is not in", "src/ws/frame.rs cites §5.1"]);
    expect("", "| 5.1, 5.3 | [`frame`] | `it_works` |", &["§5.3 is not cited"]);
    expect("", "| 5.1 | [`frame`], [`mask`] | `it_works`, `gone` |", &["mask is nowhere", "no test gone"]);
}
