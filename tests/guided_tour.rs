//! Checks the guided tour in `src/lib.rs`: its layers must be those that `tests/layering.rs` enforces, its reading
//! order must be that of the README, and its exercises must name existing code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sources.rs"]
mod sources;

use clap::CommandFactory;
use sources::{code_spans, module_doc, read_all, table_rows};
use wirechat::config::Config;

const README: &str = include_str!("../README.md");

fn tour() -> String {
    module_doc(include_str!("../src/lib.rs"))
}

/// The text between `heading` and the next heading.
fn chapter<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let (_, chapter) = markdown.split_once(&format!("# {heading}\n")).expect(heading);
    chapter.split("\n# ").next().and_then(|chapter| chapter.split("\n## ").next()).unwrap_or_default()
}

#[test]
fn documented_layers_match_the_enforced_ones() {
    let tour = tour();
    let picture = chapter(&tour, "Layers").split("```").nth(1).expect("a picture");
    let drawn = picture.lines().skip(1).map(|line| {
        let (layer, rest) = line.split_once(' ').expect("a layer and what it does");
        let named = rest.trim_start().strip_prefix("─▶ ").and_then(|rest| rest.split("  ").next());
        (layer.to_owned(), named.unwrap_or_default().to_owned())
    });
    let walls = include_str!("layering.rs").split_once("const ALLOWED_DEPENDENCIES").expect("the arrows").1;
    let rows = walls.lines().skip(1).take_while(|line| !line.starts_with("];"));
    let allowed = rows.filter_map(|row| {
        let mut names = row.split('"').skip(1).step_by(2);
        let layer = names.next().filter(|layer| *layer != "maps")?;
        Some((layer.to_owned(), names.filter(|name| *name != "maps").collect::<Vec<_>>().join(", ")))
    });
    let (mut drawn, mut allowed): (Vec<_>, Vec<_>) = (drawn.collect(), allowed.collect());
    drawn.sort();
    allowed.sort();
    assert_eq!(drawn, allowed, "left: the picture; right: `ALLOWED_DEPENDENCIES` in tests/layering.rs");
}

/// The README lists files and the tour lists modules: `ws/frame.rs` in the README is `ws::frame` in the tour.
#[test]
fn the_reading_order_is_that_of_the_readme() {
    let tour = tour();
    let is_step = |line: &&str| line.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    let steps = chapter(&tour, "Reading order").lines().filter(is_step);
    let modules: Vec<Vec<&str>> = steps.map(code_spans).collect();
    // Skip part three of the README, which covers optional features. The tour in `src/lib.rs` cannot link to their
    // modules, because a default build does not contain them.
    let rows = table_rows(chapter(README, "Read it").split("**Part three").next().expect("a part"));
    let in_tour = |module: &String| module != "maps"; // the tour in src/lib.rs omits `maps`, a small helper module
    let files = rows.iter().map(|row| code_spans(row[1]).into_iter().map(module_of).filter(in_tour).collect());
    let files: Vec<Vec<String>> = files.collect();
    assert_eq!(modules, files, "left: the tour; right: the README");
}

/// Converts a path in the README to a module path: `ws/mod.rs` to `ws`, `chat/dialect.rs` to `chat::dialect`.
fn module_of(path: &str) -> String {
    if path == "main.rs" {
        return path.to_owned(); // the root of the binary crate has no module path
    }
    path.trim_end_matches(".rs").trim_end_matches("/mod").trim_end_matches('/').replace('/', "::")
}

#[test]
fn limits_of_the_protocol_page_are_those_of_the_configuration() {
    let command = Config::command();
    for row in table_rows(chapter(include_str!("../src/chat/PROTOCOL.md"), "Limits and timeouts")) {
        let name = code_spans(row[0])[0].trim_start_matches("--");
        let option = command.get_arguments().find(|arg| arg.get_long() == Some(name)).expect(name);
        assert_eq!(option.get_default_values()[0], row[1], "--{name}");
    }
}

/// Checks that the functions and types in each exercise exist. An exercise lists their names before the file that must
/// declare them, for example: "`parse` and `write` in `src/chat/dialect.rs`".
#[test]
fn exercises_name_code_that_exists() {
    let (tour, sources) = (tour(), [read_all("src"), read_all("tests")].concat());
    let exercises = table_rows(chapter(&tour, "Ten exercises"));
    assert_eq!(exercises.len(), 10);
    let mut missing = Vec::new();
    for row in &exercises {
        for cell in [row[2], row[3]] {
            let mut names = Vec::new();
            let mut files = 0;
            for word in code_spans(cell) {
                if !word.contains('/') {
                    names.push(word);
                    continue;
                }
                files += 1;
                let text = sources.iter().find(|(path, _)| path == word).map_or("", |(_, text)| text);
                for name in names.drain(..) {
                    let declared = ["fn ", "struct ", "enum "].map(|keyword| format!("{keyword}{name}"));
                    if !declared.iter().any(|declared| text.contains(declared)) {
                        missing.push(format!("exercise {}: {name} is not in {word}", row[0]));
                    }
                }
            }
            assert!(files > 0 && names.is_empty(), "exercise {}: {names:?} are in no file", row[0]);
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
