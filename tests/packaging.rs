//! The files for packages that the program prints: completion scripts and the man page.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::require_tool;
use support::table::each_row;

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn wirechat(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The first words of the lines below a heading of `--help`.
fn first_words(help: &str, heading: &str) -> Vec<String> {
    let (_, lines) = help.split_once(&format!("\n{heading}:\n")).expect(heading);
    let lines = lines.lines().take_while(|line| !line.is_empty());
    let entries = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    entries.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// The long options in `--help`: `--listen` is `listen`.
fn options(help: &str) -> Vec<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let long = lines.filter_map(|line| line.split_once("--")).map(|(_, rest)| rest);
    long.map(|rest| rest.split(['[', '<', ' ']).next().unwrap().to_owned()).collect()
}

/// The options of the server and of all tools.
fn all_options() -> BTreeSet<String> {
    let help = wirechat(&["--help"]);
    let mut all: BTreeSet<String> = options(&help).into_iter().collect();
    assert!(all.len() > 40 && all.contains("max-text") && all.contains("version"), "{all:?}");
    for tool in first_words(&help, "Tools") {
        all.extend(options(&wirechat(&[&tool, "--help"])));
    }
    assert!(all.contains("no-echo") && all.contains("timeout"), "{all:?}");
    all
}

/// A file with this content, whose folder is removed when it is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(name: &str, content: &str) -> TemporaryFile {
        let folder = format!("packaging-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        TemporaryFile(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn completions_name_every_option_and_tool() {
    let (options, tools) = (all_options(), first_words(&wirechat(&["--help"]), "Tools"));
    each_row(
        &SHELLS,
        |shell| (*shell).to_owned(),
        |shell| {
            let script = wirechat(&["completions", shell]);
            let is_word = |word: &str| {
                let is_end = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '-');
                script.match_indices(word).any(|(at, _)| is_end(&script[at + word.len()..]))
            };
            let prefix = if *shell == "fish" { "-l " } else { "--" };
            let missing: Vec<&String> = options.iter().filter(|name| !is_word(&format!("{prefix}{name}"))).collect();
            assert!(missing.is_empty(), "the script does not name {missing:?}");
            assert!(tools.iter().all(|tool| is_word(tool)), "the script names the tools {tools:?}");
        },
    );
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(["completions", "tcsh"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && SHELLS.iter().all(|shell| error.contains(shell)), "{error}");
}

#[test]
fn completions_work_in_bash() {
    let Some(bash) = require_tool("bash", &[]) else { return };
    let script = TemporaryFile::new("wirechat.bash", &wirechat(&["completions", "bash"]));
    let checked = Command::new(&bash).arg("-n").arg(&script.0).output().unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    let rows = [
        ("--max-te", "--max-text"),
        ("expl", "explain"),
        ("health --time", "--timeout"),
        ("poke --yes", "--yes-i-may"),
    ];
    each_row(
        &rows,
        |(typed, _)| (*typed).to_owned(),
        |(typed, expected)| {
            let call = "source \"$0\"; COMP_WORDS=(wirechat $1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                        _wirechat wirechat \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; \
                        echo \"${COMPREPLY[@]}\"";
            let output = Command::new(&bash).args(["-c", call]).arg(&script.0).arg(typed).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{expected}\n"));
        },
    );
}

#[test]
fn the_man_page_contains_every_option_and_tool() {
    let page = wirechat(&["man"]).replace("\\-", "-");
    let missing: Vec<String> = all_options().into_iter().filter(|name| !page.contains(&format!("--{name}"))).collect();
    assert!(missing.is_empty(), "the man page does not contain {missing:?}");
    for tool in first_words(&wirechat(&["--help"]), "Tools") {
        assert!(page.contains(&format!("\n.SS \"wirechat {tool}\"\n")), "{tool}");
    }
    assert!(!page.contains("(1)"), "there is no other page");
}

#[test]
fn the_man_page_has_no_warnings() {
    let Some(man) = require_tool("man", &[]) else { return };
    let page = TemporaryFile::new("wirechat.1", &wirechat(&["man"]));
    let mut command = Command::new(man);
    command.args(["--warnings", "--local-file"]).arg(&page.0).env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80");
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("wirechat TOOL [ARGUMENTS]"), "{shown}");
}

/// A full disk is an error; a reader that closes the pipe is not.
#[test]
fn output_that_cannot_be_written() {
    for arguments in [&["man"][..], &["completions", "bash"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        let output = command.args(arguments).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && error.contains("cannot write to stdout"), "{arguments:?}: {error}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(arguments).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}
