//! Tests of the README: its commands work, its sample output is real, its links lead to existing files, and its
//! reading times match the sources.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sources.rs"]
mod sources;
mod support;

use std::path::Path;
use std::process::Command;

use clap::{CommandFactory, Parser};
use sources::{code_spans, fences, read_all, table_rows};
#[cfg(all(feature = "sqlite", feature = "tls", feature = "jwt", feature = "metrics"))]
use support::wait_until;
use support::{Server, masked};
use wirechat::config::Config;

const README: &str = include_str!("../README.md");

/// The reading speeds on which the README's reading times are based.
const WORDS_PER_MINUTE: usize = 200;
const CODE_LINES_PER_MINUTE: usize = 25;

fn section(heading: &str) -> &'static str {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).expect(heading);
    section.split("\n## ").next().unwrap_or_default()
}

/// Returns the targets of the links in `text`, except links to other sites and to headings.
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

/// The README's tables list every source file exactly once. The reading time of each row matches the length of its
/// files, and the reading time of each part of the tour matches the sum of its rows.
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
    // The README's tables omit two files: lib.rs, because it contains the guided tour that the tables accompany, and
    // pictures.rs, because only tests use it.
    let is_listed = |path: &&str| !["src/lib.rs", "src/pictures.rs"].contains(path);
    let expected: Vec<&str> = sources.iter().map(|(path, _)| path.as_str()).filter(is_listed).collect();
    assert_eq!(found, expected, "left: files in the tables; right: files in src");
}

/// Checks that every option and every test named in the README's table of limits exists.
#[test]
fn every_limit_has_a_test() {
    let tests = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap();
    let tests: String = tests.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok()).collect();
    let rows = table_rows(section("Run it for others").split_once("### Limits").unwrap().1);
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

/// Whether `shown`, a reading time in the README, is within 10% plus one minute of the estimate `minutes`.
fn is_about(shown: &str, minutes: usize) -> bool {
    shown.parse::<usize>().is_ok_and(|shown| shown.abs_diff(minutes) <= 1 + minutes / 10)
}

/// Whether `link` covers the file `path`. A link to a `mod.rs` covers its whole folder if the link's text ends in a
/// slash: `[…/](…/mod.rs)`, with or without backticks.
fn covers(link: &str, path: &str) -> bool {
    let whole_folder = ["/`]", "/]"].iter().any(|end| README.contains(&format!("{end}({link})")));
    link == path || (whole_folder && link.strip_suffix("mod.rs").is_some_and(|folder| path.starts_with(folder)))
}

/// Estimates the time to read a source file. Comment lines count as prose, other lines as code. Unit tests and blank
/// lines do not count.
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

/// All shell commands in `text`, with continuation lines joined.
fn shell_commands(text: &str) -> Vec<String> {
    let fences = fences(text).into_iter().filter(|(kind, _)| *kind == "sh");
    let commands: String = fences.map(|(_, commands)| commands.replace("\\\n    ", "")).collect();
    commands.lines().map(str::to_owned).collect()
}

/// Splits a command into words, like a shell: single quotes group characters.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (index, part) in command.split('\'').enumerate() {
        let mut pieces = if index % 2 == 0 { part.split(' ').collect() } else { vec![part] }.into_iter();
        words.last_mut().unwrap().push_str(pieces.next().unwrap_or_default());
        words.extend(pieces.map(str::to_owned));
    }
    words
}

/// Every shell command in the README uses only existing options, and the server accepts a connection at every URL that
/// the README passes to wscat.
#[test]
fn commands_work() {
    let server = Server::start(&[]);
    let commands = shell_commands(README);
    for line in &commands {
        // A command must not contain a comment: by default, zsh does not recognize comments at its prompt.
        assert!(!line.contains('#'), "{line}");
        let program = ["cargo run -q --release -- ", "cargo run --release", "wirechat "];
        if let Some(arguments) = program.iter().find_map(|program| line.strip_prefix(program)) {
            let arguments = words(arguments.trim_start().trim_start_matches("-- "));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
            match arguments[..] {
                ["explain", ..] => drop(run(&arguments)),
                ["history", ..] if !cfg!(feature = "sqlite") => {}
                ["admin", ..] if !cfg!(feature = "metrics") => {}
                [tool @ ("poke" | "replay" | "history" | "admin" | "health"), ..] => drop(run(&[tool, "--help"])),
                [] => {}
                [option, ..] => {
                    assert!(option.starts_with("--"), "no test knows this command: {line}");
                    check_options(&arguments);
                }
            }
        } else if let Some(url) = line.strip_prefix("wscat -c 'ws://127.0.0.1:3000") {
            server.upgrade(url.trim_end_matches('\''));
        } else if !is_install_command(line) {
            let others = ["npm install -g wscat", "curl -i ", "echo ", "git pull"];
            assert!(others.iter().any(|other| line.starts_with(other)), "no test knows this command: {line}");
        }
    }
    assert!(commands.len() > 10, "the README has commands");
}

/// Asserts that the server accepts `options`. The server may reject an option only if this build lacks the feature that
/// the option needs.
fn check_options(options: &[&str]) {
    let config = Config::try_parse_from(["wirechat"].iter().chain(options)).unwrap_or_else(|error| panic!("{error}"));
    const FEATURES: [(&str, bool); 6] = [
        ("sqlite", cfg!(feature = "sqlite")),
        ("redis", cfg!(feature = "redis")),
        ("tls", cfg!(feature = "tls")),
        ("jwt", cfg!(feature = "jwt")),
        ("metrics", cfg!(feature = "metrics")),
        ("deflate", cfg!(feature = "deflate")),
    ];
    if let Err(error) = config.validate() {
        let feature = FEATURES.iter().find(|(name, _)| error.contains(&format!("needs the feature {name};")));
        assert!(feature.is_some_and(|(_, is_built)| !is_built), "{options:?}: {error}");
    }
}

/// Returns whether `line` is a command that installs the server or runs it as a service. If so, also asserts that its
/// arguments are correct: for example, that the files it names exist.
fn is_install_command(line: &str) -> bool {
    let unit = include_str!("../.dist/wirechat.service");
    let state = unit.lines().find_map(|line| line.strip_prefix("StateDirectory=")).unwrap();
    let words = words(line);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["cargo", "build", "--release", "--features", feature] => {
            assert!(include_str!("../Cargo.toml").contains(&format!("\n{feature} = [")), "{line}");
        }
        ["sudo", "install", "-d", "-m", "700", folder] => assert_eq!(folder, format!("/var/lib/{state}")),
        ["sudo", "install", "-m", "644", "-t", folder, "tokens.txt"] => assert_eq!(folder, format!("/var/lib/{state}")),
        ["sudo", "install", "-D", ..] => {
            let folder = words.iter().position(|word| *word == "-t").unwrap() + 1;
            let (folder, files) = (words[folder], &words[folder + 1..]);
            for file in files {
                let path = Path::new(file);
                let installed = format!("{folder}/{}", path.file_name().unwrap().to_str().unwrap());
                let is_unit =
                    ["service", "socket"].map(|end| format!("/etc/systemd/system/wirechat.{end}")).contains(&installed);
                let is_named = || unit.lines().any(|line| line.ends_with(&format!("={installed}")));
                assert!(is_unit || is_named(), "the unit does not name {installed}");
                assert!(*file == "target/release/wirechat" || repository().join(file).exists(), "{file}");
            }
        }
        ["sudo", "certbot", "certonly", "--standalone", "--domain", "chat.example", "--deploy-hook", hook] => {
            assert!(hook.contains(&format!("install -m 644 -t /var/lib/{state} ")), "{hook}");
            let options = include_str!("../.dist/wirechat.env");
            for file in hook.split(' ').filter_map(|word| word.strip_prefix("$RENEWED_LINEAGE/")) {
                assert!(options.contains(&format!("=/var/lib/{state}/{file}\n")), "{file}");
            }
        }
        ["sudo", "systemctl", "enable", "--now", "wirechat"] => assert!(unit.contains("\n[Install]\n")),
        ["sudo", "systemctl", "reload", "wirechat"] => assert!(unit.contains("\nExecReload=")),
        ["sudo", "systemctl", "restart", "wirechat"] | ["sudo", "journalctl", "-u", "wirechat"] => {}
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
        ["source", "<(wirechat", "completions", "bash)"] => assert!(!run(&["completions", "bash"]).is_empty()),
        _ => return false,
    }
    true
}

/// Runs the commands in "Run it for others" (README.md), and checks that the servers start and the tools succeed.
#[test]
#[cfg(all(feature = "sqlite", feature = "tls", feature = "jwt", feature = "metrics"))]
fn the_deployment_commands_work() {
    let Some(certificate) = support::certificate::Certificate::new("readme", support::certificate::EC) else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("readme-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(&certificate.cert, folder.join("fullchain.pem")).unwrap();
    std::fs::copy(&certificate.key, folder.join("privkey.pem")).unwrap();
    std::fs::write(folder.join("issuer.pem"), [b'k'; 32]).unwrap();
    let commands = shell_commands(section("Run it for others"));
    let shell = |command: &str| {
        let output = Command::new("bash").args(["-ec", command]).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let find = |start: &str| commands.iter().filter(|command| command.starts_with(start)).collect::<Vec<_>>();
    find("echo ").into_iter().for_each(|command| drop(shell(command)));
    let starts = find("wirechat --");
    assert_eq!(starts.len(), 5, "with TLS, behind a proxy, two instances, with a file");
    let mut stopped = None;
    for (index, command) in starts.into_iter().enumerate() {
        let arguments = words(&command.replace(":8443", ":0").replace(":3001", ":0"));
        let mut server = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        server.args(&arguments[1..]).args(["--admin", "0"]).current_dir(&folder);
        if index > 0 {
            server.args(["--listen", "127.0.0.1:0"]);
        }
        let server = Server::launch(&mut server);
        let scheme = if index == 0 { "https" } else { "http" };
        wait_until("the server prints all addresses", || server.printed().contains("stop:"));
        let printed = server.printed();
        let admin = printed.split("admin:  http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
        let tools = find("wirechat health ").into_iter().chain(find("wirechat admin "));
        // This test has no Redis, so a server with `--redis` responds but is not ready. Check only that it responds.
        for command in tools.filter(|tool| !command.contains("--redis") || tool.ends_with(":3000")) {
            let command = command.replace("http://127.0.0.1:3000", &format!("{scheme}://127.0.0.1:{}", server.port()));
            let command = command.replace("127.0.0.1:9000", admin);
            let command = command.replace("wirechat", env!("CARGO_BIN_EXE_wirechat"));
            shell(&format!("export WIRECHAT_ADMIN={admin}; {command}"));
        }
        stopped = Some(server);
    }
    drop(stopped);
    let tools = find("wirechat history ");
    let outputs: String =
        tools.iter().map(|command| shell(&command.replacen("wirechat", env!("CARGO_BIN_EXE_wirechat"), 1))).collect();
    assert!(tools.len() == 3 && outputs.contains("Back in five minutes."), "{outputs}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Sends each JSON line from the README's section "Try it", and expects no error. As in that section, the page is
/// connected at the same time, under a username that it generated.
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
fn documented_options_and_defaults_are_correct() {
    let command = Config::command();
    let rows = table_rows(section("Run it for others"));
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
