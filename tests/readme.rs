//! Tests the README: its commands work, its sample output is real, its links lead to existing files, and its reading
//! times match the sources.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sources.rs"]
mod sources;
mod support;

use std::path::Path;
use std::process::Command;

use clap::{CommandFactory, Parser};
use sources::{code_spans, fences, read_all, table_rows};
use support::{Server, masked};
use wirechat::config::Config;

const README: &str = include_str!("../README.md");

/// The reading speed that the README assumes.
const WORDS_PER_MINUTE: usize = 200;
const CODE_LINES_PER_MINUTE: usize = 25;

fn section(heading: &str) -> &'static str {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).expect(heading);
    section.split("\n## ").next().unwrap_or_default()
}

/// Returns the paths of a text's links to files, without links to other sites and to headings.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.starts_with("http") && !target.starts_with('#')).collect()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn links_lead_to_files() {
    for target in links(README) {
        let target = target.split('#').next().unwrap_or_default();
        assert!(repository().join(target).exists(), "{target}");
    }
}

/// Every source file is in exactly one row, and the minutes of each row and part match the length of the files.
#[test]
fn reading_times_are_measured() {
    let sources = read_all("src");
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for part in section("Read it").split("\n**Part ").skip(1).take(3) {
        let mut total = 0;
        for row in table_rows(part) {
            let files: Vec<_> =
                sources.iter().filter(|(path, _)| links(row[1]).iter().any(|link| covers(link, path))).collect();
            let minutes = files.iter().map(|(_, text)| seconds_to_read(text)).sum::<usize>().div_ceil(60);
            if !is_about(row[0], minutes) {
                wrong.push(format!("{} minutes, not {}: {}", minutes, row[0], code_spans(row[1]).join(" ")));
            }
            found.extend(files.into_iter().map(|(path, _)| path.as_str()));
            total += minutes;
        }
        let title = part.lines().next().unwrap_or_default();
        let total_shown = title.split('(').nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        if !is_about(total_shown, total) {
            wrong.push(format!("{total} minutes: {title}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    found.sort_unstable();
    // The tables omit lib.rs, which is the tour itself, and pictures.rs, which only tests use.
    let is_listed = |path: &&str| !["src/lib.rs", "src/pictures.rs"].contains(path);
    let expected: Vec<&str> = sources.iter().map(|(path, _)| path.as_str()).filter(is_listed).collect();
    assert_eq!(found, expected, "the files of the tables, and those that exist");
}

/// All tests and options named in the table of limits exist.
#[test]
fn every_limit_has_a_test() {
    let tests = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap();
    let tests: String = tests.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok()).collect();
    let rows = table_rows(section("Host it").split_once("### Limits").unwrap().1);
    assert!(rows.len() > 10);
    let help = Config::command().render_long_help().to_string();
    for row in rows {
        for option in code_spans(row[0]) {
            assert!(help.contains(&format!("{option} <")), "{option}");
        }
        for name in code_spans(row[4]) {
            assert!(tests.contains(&format!("fn {name}()")), "{name}");
        }
    }
}

/// Allows a deviation of 10 % plus one minute.
fn is_about(shown: &str, minutes: usize) -> bool {
    shown.parse::<usize>().is_ok_and(|shown| shown.abs_diff(minutes) <= 1 + minutes / 10)
}

/// Whether `link` leads to the file `path`, or to the `mod.rs` of a folder around it that the README lists as a whole:
/// `[…/](…/mod.rs)`, with or without backticks.
fn covers(link: &str, path: &str) -> bool {
    let whole_folder = ["/`]", "/]"].iter().any(|end| README.contains(&format!("{end}({link})")));
    link == path || (whole_folder && link.strip_suffix("mod.rs").is_some_and(|folder| path.starts_with(folder)))
}

/// Comments are prose; everything else except blank lines is code. The tests at the end of a file do not count.
fn seconds_to_read(source: &str) -> usize {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = source.lines().map(str::trim).filter(|line| !line.is_empty());
    let (prose, code): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("//"));
    let is_word = |word: &&str| word.contains(char::is_alphanumeric);
    let words: usize = prose.iter().map(|line| line.split_whitespace().filter(is_word).count()).sum();
    words * 60 / WORDS_PER_MINUTE + code.len() * 60 / CODE_LINES_PER_MINUTE
}

/// Each `$ wirechat …` example prints the output that the README shows; a line `…` stands for any number of lines.
#[test]
fn output_is_real() {
    let server = Server::start(&[]);
    let url = format!("ws://{}/echo?token=dev-token", server.addr());
    for (_, example) in fences(README).into_iter().filter(|(kind, _)| *kind == "console") {
        let (command, expected) = example.split_once('\n').expect("a command and its output");
        let arguments: Vec<&str> = command.strip_prefix("$ wirechat ").expect(command).split(' ').collect();
        let url = (arguments[0] == "poke").then_some(&url);
        let output = run(&[&arguments[..], url.map(|url| url.as_str()).as_slice()].concat());
        let is_same = match expected.split_once("…\n") {
            Some((start, end)) => output.starts_with(start) && output.ends_with(end),
            None => output == expected,
        };
        assert!(is_same, "{command} now prints\n{output}");
    }
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(arguments).output().expect("wirechat runs");
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The README's trace is an excerpt of a golden file.
#[test]
fn the_trace_is_real() {
    let golden = include_str!("golden/life.txt");
    let (_, shown) = fences(section("Watch the wire")).into_iter().find(|(kind, _)| *kind == "text").expect("a trace");
    assert!(golden.contains(shown), "{shown}");
}

/// The options of all shell commands exist, and the server accepts a client at each URL for wscat.
#[test]
fn commands_work() {
    let server = Server::start(&[]);
    let mut count = 0;
    for line in fences(README).into_iter().filter(|(kind, _)| *kind == "sh").flat_map(|(_, commands)| commands.lines())
    {
        // By default, zsh does not accept comments at its prompt.
        assert!(!line.contains('#'), "{line}");
        const FEATURES: [(&str, bool); 4] = [
            ("sqlite", cfg!(feature = "sqlite")),
            ("tls", cfg!(feature = "tls")),
            ("jwt", cfg!(feature = "jwt")),
            ("metrics", cfg!(feature = "metrics")),
        ];
        let option = |name: &str| format!(" --features {name}");
        let feature = FEATURES.into_iter().find(|(name, _)| line.contains(&option(name)));
        let is_other_build = feature.is_some_and(|(_, is_built)| !is_built);
        let line = &*feature.map_or_else(|| line.to_owned(), |(name, _)| line.replace(&option(name), ""));
        if let Some(arguments) = line.strip_prefix("cargo run -q --release -- ") {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            match arguments[0] {
                "explain" => drop(run(&arguments)),
                "history" | "admin" if is_other_build => {}
                "poke" | "replay" | "history" | "admin" => drop(run(&[arguments[0], "--help"])),
                tool => panic!("{tool}"),
            }
        } else if let Some(options) = line.strip_prefix("cargo run --release") {
            let options = options.trim_start().trim_start_matches("--").split_whitespace();
            let config = Config::try_parse_from(["wirechat"].into_iter().chain(options));
            let result = config.map_err(|error| error.to_string()).and_then(|config| config.validate());
            assert_eq!(result.err().is_some_and(|error| error.contains("needs the feature")), is_other_build, "{line}");
        } else if let Some(url) = line.strip_prefix("wscat -c 'ws://127.0.0.1:3000") {
            server.upgrade(url.trim_end_matches('\''));
        } else if !is_installation(line, &server) {
            let is_other = ["npm install -g wscat", "curl -i ", "echo "].iter().any(|other| line.starts_with(other));
            assert!(is_other, "no test knows this command: {line}");
        }
        count += 1;
    }
    assert!(count > 10, "the README has commands");
}

/// Checks a command of the section "Install it". Returns `false` if `line` is not one of these commands.
fn is_installation(line: &str, server: &Server) -> bool {
    let unit = include_str!("../.dist/wirechat.service");
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["cargo", "build", "--release", "--features", feature] => {
            assert!(include_str!("../Cargo.toml").contains(&format!("\n{feature} = [")), "{line}");
        }
        ["sudo", "install", "-D", .., "-t", folder, file] => {
            let path = Path::new(file);
            let installed = format!("{folder}/{}", path.file_name().unwrap().to_str().unwrap());
            let is_unit =
                ["service", "socket"].map(|end| format!("/etc/systemd/system/wirechat.{end}")).contains(&installed);
            let is_named = || unit.lines().any(|line| line.ends_with(&format!("={installed}")));
            assert!(is_unit || is_named(), "the unit does not name {installed}");
            assert!(file == "target/release/wirechat" || repository().join(file).exists(), "{file}");
        }
        ["sudo", "systemctl", "enable", "--now", "wirechat"] => assert!(unit.contains("\n[Install]\n")),
        ["sudo", "systemctl", "enable", "--now", "wirechat.socket"] => {
            assert!(include_str!("../.dist/wirechat.socket").contains("\n[Install]\n"));
        }
        ["sudo", "systemctl", "stop", "wirechat"] => {}
        ["podman", "build", "--format", "docker", "--file", file, "--tag", "wirechat", "."] => {
            assert!(repository().join(file).exists(), "{file}");
        }
        ["podman", "run", .., "wirechat", "--tokens", tokens] => {
            let containerfile = include_str!("../.dist/Containerfile");
            for mount in words.iter().zip(&words[1..]).filter(|(option, _)| **option == "-v").map(|(_, mount)| mount) {
                let path = mount.split(':').nth(1).unwrap();
                assert!(path == tokens || containerfile.contains(&format!("\nVOLUME {path}\n")), "{mount}");
            }
        }
        ["wirechat", "health", url] => {
            assert_eq!(run(&["health", &url.replace("127.0.0.1:3000", &server.addr().to_string())]), "");
        }
        ["source", "<(wirechat", "completions", "bash)"] => assert!(!run(&["completions", "bash"]).is_empty()),
        _ => return false,
    }
    true
}

/// Types the lines of "Try it" one after another, while the page is open with a name that the page generated.
#[test]
fn the_lines_to_type_cause_no_error() {
    let server = Server::start(&[]);
    let _page = server.upgrade("/?token=dev-token&username=finch-91&room=general");
    let mut wscat = server.upgrade("/?token=dev-token&username=me&room=general");
    let (_, lines) = fences(section("Try it")).into_iter().find(|(kind, _)| *kind == "json").expect("lines to type");
    lines.lines().for_each(|line| wscat.send_text(line));
    wscat.send(&masked(0x88, b""));
    let mut events = Vec::new();
    loop {
        let frame = wscat.read_frame();
        if frame.opcode() == 8 {
            break;
        }
        let event: serde_json::Value = serde_json::from_str(frame.text()).expect("JSON");
        events.push(event["event"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(events, ["welcome", "message", "private", "switched", "pong"]);
}

#[test]
fn options_exist_and_have_their_default() {
    let command = Config::command();
    let rows = table_rows(section("Host it"));
    assert!(rows.len() > 5);
    for row in rows {
        let name = code_spans(row[0])[0].split(' ').next().unwrap_or_default();
        let option = command.get_arguments().find(|option| Some(name.trim_start_matches("--")) == option.get_long());
        let option = option.unwrap_or_else(|| panic!("no option {name}"));
        let number = row[1].split('(').nth(1).and_then(|rest| rest.split(')').next());
        if let Some(number) = number {
            assert_eq!(option.get_default_values(), [number], "{name}");
        }
    }
}
