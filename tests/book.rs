//! The book that `src/lib.rs` is, held against the sources: the house, the way to read it, the limits, the exercises. Where
//! the README says the same, it must say the same.

#[path = "support/sources.rs"]
mod sources;

use clap::CommandFactory;
use sources::{module_doc, quoted, read_all, table_rows};
use wirechat::inspect::AcceptSteps;
use wirechat::server::Config;

const README: &str = include_str!("../README.md");

/// How many lines of a file, its tests left out, are read in a minute: fewer where every line is a rule.
const LINES_A_MINUTE: std::ops::RangeInclusive<usize> = 25..=60;

/// A chapter of the book: what stands under this heading.
fn chapter<'a>(markdown: &'a str, heading: &str) -> &'a str {
    let (_, chapter) = markdown.split_once(&format!("# {heading}\n")).expect(heading);
    chapter.split("\n# ").next().and_then(|chapter| chapter.split("\n## ").next()).unwrap_or_default()
}

fn book() -> String {
    module_doc(include_str!("../src/lib.rs"))
}

/// The picture of the house has the arrows that `tests/layering.rs` allows, between the rooms that are there.
#[test]
fn the_house_is_drawn_as_its_walls_stand() {
    let book = book();
    let picture = chapter(&book, "The house").split("```").nth(1).expect("a picture");
    let drawn = picture.lines().filter(|line| line.starts_with("  ")).map(|line| {
        let (room, rest) = line.trim().split_once(' ').expect("a room, and what it is good for");
        let named = rest.trim_start().strip_prefix("─▶ ").and_then(|rest| rest.split("  ").next());
        (room.to_owned(), named.unwrap_or_default().to_owned())
    });
    let files = read_all("src");
    let is_there = |room: &&str| {
        let is_it = |path: &str| path == format!("src/{room}.rs") || path == format!("src/{room}/mod.rs");
        files.iter().any(|(path, _)| is_it(path))
    };
    let walls = include_str!("layering.rs").split_once("const ARROWS").expect("the arrows").1;
    let rows = walls.lines().skip(1).take_while(|line| !line.starts_with("];"));
    let allowed = rows.filter_map(|row| {
        let mut names = row.split('"').skip(1).step_by(2);
        let room = names.next().filter(is_there)?;
        Some((room.to_owned(), names.filter(is_there).collect::<Vec<_>>().join(", ")))
    });
    let (mut drawn, mut allowed): (Vec<_>, Vec<_>) = (drawn.collect(), allowed.collect());
    drawn.sort();
    allowed.sort();
    assert_eq!(drawn, allowed, "the picture, and the walls");
}

/// The same table in the book, as modules, and in the README, as files; every file is in it, and the minutes are true.
#[test]
fn the_way_to_read_leads_through_every_file_in_time() {
    let book = book();
    let sources = read_all("src");
    let mut expected: Vec<&str> = sources.iter().map(|(path, _)| path.as_str()).collect();
    expected.retain(|path| !["src/lib.rs", "src/main.rs", "src/pictures.rs"].contains(path));
    let (mut found, mut way, mut minutes) = (Vec::new(), Vec::new(), 0);
    for row in table_rows(chapter(&book, "The way to read it")) {
        let modules = quoted(row[1]);
        let files: Vec<&str> = modules.iter().flat_map(|module| files_of(module, &expected)).collect();
        let minutes_here: usize = row[0].parse().expect("minutes");
        let lines: usize = sources.iter().filter(|(path, _)| files.contains(&path.as_str())).map(lines_to_read).sum();
        let pace = lines / minutes_here;
        assert!(LINES_A_MINUTE.contains(&pace), "{}: {lines} lines in {minutes_here} minutes", row[1]);
        found.extend(files.iter().copied());
        way.push((row[0].to_owned(), files.join(" "), row[2].to_owned()));
        minutes += minutes_here;
    }
    assert!(README.contains(&format!("{minutes} minutes in all")), "it is {minutes} minutes in all");
    found.sort();
    assert_eq!(found, expected, "the files on the way, and those that are there");

    let mut readme = Vec::new();
    for row in table_rows(chapter(README, "Where to start reading")) {
        let names = quoted(row[1]);
        let folder = names[0].rsplit_once('/').map_or("", |(folder, _)| folder);
        let in_folder =
            |name: &&str| if name.starts_with("src") { name.to_string() } else { format!("{folder}/{name}") };
        let paths: Vec<String> = names.iter().map(in_folder).collect();
        let files = paths.iter().flat_map(|path| match path.strip_suffix('/') {
            Some(folder) => {
                expected.iter().filter(|file| file.starts_with(folder)).map(|file| file.to_string()).collect()
            }
            None => vec![path.clone()],
        });
        readme.push((row[0].to_owned(), files.collect::<Vec<_>>().join(" "), row[2].to_owned()));
    }
    assert_eq!(readme, way, "the README, and the book");
}

/// The file of a module; of `dialect` and `catalogue`, whose parts are not public, all of them.
fn files_of<'a>(module: &str, files: &[&'a str]) -> Vec<&'a str> {
    let path = format!("src/{}", module.replace("::", "/"));
    let is_it = |file: &&&str| {
        **file == format!("{path}.rs")
            || **file == format!("{path}/mod.rs")
            || (["dialect", "catalogue"].iter().any(|whole| path.ends_with(whole)) && file.starts_with(&path))
    };
    let found: Vec<&str> = files.iter().filter(is_it).copied().collect();
    assert!(!found.is_empty(), "there is no module {module}");
    found
}

fn lines_to_read((_, text): &(String, String)) -> usize {
    text.split("#[cfg(test)]").next().unwrap_or_default().lines().count()
}

/// Every limit and wait of the configuration is in the book, with its default, and the README has the same.
#[test]
fn the_limits_are_those_of_the_configuration() {
    let command = Config::command();
    let is_limit = |arg: &&clap::Arg| matches!(arg.get_help_heading(), Some("Limits" | "Waits"));
    let default = |arg: &clap::Arg| arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let limits: Vec<(String, Option<String>)> = command
        .get_arguments()
        .filter(is_limit)
        .map(|arg| (format!("--{}", arg.get_long().unwrap_or_default()), default(arg)))
        .collect();
    let book = book();
    for (name, table) in [
        ("the book", chapter(&book, "Why each limit is what it is")),
        ("the README", README.split_once("Limits and waits").expect("a table").1),
    ] {
        let rows = table_rows(table.split("\n## ").next().unwrap_or_default());
        let options = rows.iter().map(|row| quoted(row[0])[0].split(' ').next().unwrap_or_default());
        assert_eq!(options.collect::<Vec<_>>(), limits.iter().map(|(name, _)| name).collect::<Vec<_>>(), "{name}");
        for (row, (option, default)) in rows.iter().zip(&limits) {
            let said = row[1].split([' ', ',']).next();
            assert!(default.is_none() || said == default.as_deref(), "{name}, {option}: {} is {default:?}", row[1]);
        }
    }
}

/// What an exercise names is there: each file, and in it each name that is said to be in it.
#[test]
fn the_exercises_can_be_done() {
    let (book, sources) = (book(), [read_all("src"), read_all("tests")].concat());
    let exercises = table_rows(chapter(&book, "Ten exercises"));
    assert_eq!(exercises.len(), 10);
    for row in &exercises {
        for cell in [row[2], row[3]] {
            let mut names = Vec::new();
            let mut files = 0;
            for word in quoted(cell) {
                let Some((_, text)) = sources.iter().find(|(path, _)| path == word) else {
                    names.push(word);
                    continue;
                };
                files += 1;
                for name in names.drain(..) {
                    let declared = ["fn ", "struct ", "enum "].map(|keyword| format!("{keyword}{name}"));
                    let is_there = declared.iter().any(|declared| text.contains(declared));
                    assert!(is_there, "exercise {}: {name} is not in {word}", row[0]);
                }
            }
            assert!(files > 0 && names.is_empty(), "exercise {}: {names:?} are in no file", row[0]);
        }
    }
}

/// The examples in the tracer's documentation are what it says: each line of them stands in a golden text, and the steps
/// to the accept value are those that it takes.
#[test]
fn the_tracer_says_what_its_documentation_shows() {
    let shown = |source| {
        let doc = module_doc(source);
        let lines = doc.split("```").nth(1).expect("an example").lines().skip(1);
        lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let golden = include_str!("golden/examples-full.txt");
    for source in [include_str!("../src/inspect/figure.rs"), include_str!("../src/inspect/text.rs")] {
        for line in shown(source) {
            assert!(golden.lines().any(|said| said.trim() == line), "not in tests/golden: {line}");
        }
    }
    let shown = shown(include_str!("../src/inspect/head.rs"));
    let first_words: Vec<&str> = shown.iter().filter_map(|line| line.split(' ').next()).collect();
    let steps = AcceptSteps::of(first_words[0]);
    let sha1: String = steps.sha1.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(first_words, [steps.key, steps.joined, sha1, steps.accept]);
}
