//! Tests of packaging: the completion scripts and the man page contain every option, and the files in `.dist/` contain
//! only options, paths and commands that exist.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{CommandFactory, Parser};
use support::table::each_row;
use support::{Server, print_skipped, require_tool};
use wirechat::config::Config;

const UNIT: &str = include_str!("../.dist/wirechat.service");
const SOCKET: &str = include_str!("../.dist/wirechat.socket");
const ENVIRONMENT: &str = include_str!("../.dist/wirechat.env");
const CONTAINERFILE: &str = include_str!("../.dist/Containerfile");
const MANIFEST: &str = include_str!("../Cargo.toml");

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn wirechat(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The first word of each entry below `heading` in the output of `--help`.
fn first_words(help: &str, heading: &str) -> Vec<String> {
    let (_, lines) = help.split_once(&format!("\n{heading}:\n")).expect(heading);
    let lines = lines.lines().take_while(|line| !line.is_empty());
    let entries = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    entries.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// The long options in the output of `--help`, without the leading `--`.
fn options(help: &str) -> Vec<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let long = lines.filter_map(|line| line.split_once("--")).map(|(_, rest)| rest);
    long.map(|rest| rest.split(['[', '<', ' ']).next().unwrap().to_owned()).collect()
}

/// The long options of the server and of all tools.
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

/// A temporary file in its own folder. Dropping it deletes the file and the folder.
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
    assert!(!page.contains("(1)"), "there is only one page");
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

/// `man` and `completions` fail if the disk is full, and succeed if the reader of their output has closed the pipe.
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

/// The value of a setting in wirechat.service.
fn setting(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("the unit sets {name}"))
}

#[test]
fn the_unit_is_valid_and_hardened() {
    let Some(analyze) = require_tool("systemd-analyze", &[]) else { return };
    let unit = UNIT.replace("ExecStart=/usr/local/bin/wirechat", concat!("ExecStart=", env!("CARGO_BIN_EXE_wirechat")));
    assert_ne!(unit, UNIT);
    let (unit, socket) = (TemporaryFile::new("wirechat.service", &unit), TemporaryFile::new("wirechat.socket", SOCKET));
    // `systemd-analyze security` scores exposure from 0 to 100. A service without hardening scores 96.
    let checks: [&[&str]; 2] = [&["verify", "--man=no"], &["security", "--offline=yes", "--threshold=15"]];
    for arguments in checks {
        let output = Command::new(&analyze).args(arguments).arg(&unit.0).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    }
    // The commented-out settings of wirechat.socket must also be valid when they replace the active `ListenStream`.
    let alternative = SOCKET
        .replace("\nListenStream=127", "\n;ListenStream=127")
        .replace("\n#ListenS", "\nListenS")
        .replace("\n#Socket", "\nSocket");
    assert!(alternative.contains("\nListenStream=/run/wirechat.sock\n"));
    let alternative = TemporaryFile::new("alternative.socket", &alternative);
    for (socket, service) in [(&socket, "wirechat"), (&alternative, "alternative")] {
        let copy = socket.0.with_file_name(format!("{service}.service"));
        std::fs::copy(&unit.0, &copy).unwrap();
        let output = Command::new(&analyze).args(["verify", "--man=no"]).args([&socket.0, &copy]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{service}: {error}");
    }
}

/// wirechat.service uses the socket of wirechat.socket, and reports to systemd when it is ready.
#[test]
fn the_service_unit_matches_the_socket_unit() {
    assert_eq!((setting("Type"), setting("Sockets")), ("notify", "wirechat.socket"));
    let families = setting("RestrictAddressFamilies");
    assert!(families.contains("AF_UNIX"), "the server reports to systemd through a Unix socket: {families}");
    let port = SOCKET.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap();
    assert_eq!(
        socket2::SockAddr::from(port.parse::<std::net::SocketAddr>().unwrap()),
        Config::parse_from(["wirechat"]).listen[0]
    );
}

#[test]
fn the_unit_names_paths_that_belong_together() {
    assert_eq!(setting("ExecStart"), "/usr/local/bin/wirechat");
    assert_eq!(setting("ExecReload"), "kill -HUP $MAINPID");
    assert_eq!(setting("EnvironmentFile"), "/etc/wirechat/wirechat.env");
    let state = format!("/var/lib/{}/", setting("StateDirectory"));
    for (name, value) in variables(ENVIRONMENT.lines().map(|line| line.trim_start_matches('#'))) {
        let is_file = value.starts_with('/');
        assert!(!is_file || value.starts_with(&state), "the server can read and write {state} only: {name}={value}");
    }
}

/// Splits lines such as `WIRECHAT_LISTEN=127.0.0.1:3000` into variables and values.
fn variables<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(&'a str, &'a str)> {
    lines.filter(|line| line.starts_with("WIRECHAT_")).map(|line| line.split_once('=').expect(line)).collect()
}

/// Asserts that each environment variable sets a server option, and that its value is valid for that option.
#[track_caller]
fn assert_options(variables: &[(&str, &str)]) {
    let command = Config::command();
    assert!(!variables.is_empty());
    for (variable, value) in variables {
        let id = variable.trim_start_matches("WIRECHAT_").to_lowercase();
        let option = command.get_arguments().find(|option| option.get_id() == &id);
        let option = option.and_then(|option| option.get_long()).unwrap_or_else(|| panic!("{variable} is no option"));
        let config = Config::try_parse_from(["wirechat", &format!("--{option}={value}")]);
        assert!(config.is_ok(), "{variable}={value}");
    }
}

/// Every setting in wirechat.env is valid, even if it is commented out. Only WIRECHAT_HISTORY_DB is active.
#[test]
fn the_environment_file_names_options() {
    let suggested = variables(ENVIRONMENT.lines().map(|line| line.trim_start_matches('#')));
    assert!(suggested.len() > 4, "{suggested:?}");
    assert_options(&suggested);
    let active = variables(ENVIRONMENT.lines());
    assert_eq!(active.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["WIRECHAT_HISTORY_DB"]);
    // wirechat.env must contain an assignment, active or commented out, for each variable that its comments mention.
    // Its introduction mentions WIRECHAT_MAX_TEXT and WIRECHAT_LISTEN only to explain the file.
    for word in ENVIRONMENT.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
        let is_mentioned = ["WIRECHAT_MAX_TEXT", "WIRECHAT_LISTEN"].contains(&word);
        let is_option = || suggested.iter().any(|(name, _)| *name == word) || is_mentioned;
        assert!(!word.starts_with("WIRECHAT_") || is_option(), "{word}");
    }
}

/// The instructions of the Containerfile and their arguments, with continuation lines joined.
fn instructions() -> Vec<(String, String)> {
    let lines: String =
        CONTAINERFILE.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let lines = lines.replace("\\\n", " ");
    let lines = lines.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(instruction, rest)| (instruction.to_owned(), rest.trim().to_owned())).collect()
}

/// The arguments of the instruction `name`, which must occur exactly once.
fn instruction(name: &str) -> String {
    let mut found = instructions().into_iter().filter(|(instruction, _)| instruction == name);
    let (_, arguments) = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "{name} twice");
    arguments
}

#[test]
fn the_containerfile_builds_from_files_and_features_that_exist() {
    let copies = instructions().into_iter().filter(|(name, rest)| name == "COPY" && !rest.starts_with("--from"));
    for (_, copy) in copies {
        let (sources, _) = copy.rsplit_once(' ').unwrap();
        for source in sources.split(' ') {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
        }
    }
    let feature = CONTAINERFILE.split("--features ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(MANIFEST.contains(&format!("\n{feature} = [")), "{feature}");
    let version = MANIFEST.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(CONTAINERFILE.contains(&format!("FROM rust:{version}-")), "the image has Rust {version}");
}

#[test]
fn the_container_runs_commands_that_exist() {
    let environment = instruction("ENV");
    let variables = variables(environment.split(' '));
    assert_options(&variables);
    let value = |name| variables.iter().find(|(found, _)| *found == name).unwrap().1;
    let port = value("WIRECHAT_LISTEN").rsplit(':').next().unwrap();
    assert_eq!(instruction("EXPOSE"), port);
    let volume = instruction("VOLUME");
    assert!(value("WIRECHAT_HISTORY_DB").starts_with(&format!("{volume}/")));
    let user = instruction("USER");
    assert!(user.split(':').all(|id| id.parse::<u32>().unwrap() > 0), "not root: {user}");
    let owned = instructions()
        .into_iter()
        .any(|(_, rest)| rest.ends_with(&volume) && rest.contains(&format!("--chown={user} ")));
    assert!(owned, "the user owns the volume");

    let server = Server::start_at("0.0.0.0:0", &["--open"]);
    let check = health_check(server.port());
    let arguments: Vec<&str> = check[1..].iter().map(String::as_str).collect();
    assert_eq!(wirechat(&arguments), "");
}

fn entry_point() -> Vec<String> {
    serde_json::from_str(&instruction("ENTRYPOINT")).unwrap()
}

/// The command of the Containerfile's health check, with `port` instead of the exposed port.
fn health_check(port: u16) -> Vec<String> {
    let check: Vec<String> = serde_json::from_str(instruction("HEALTHCHECK").split_once(" CMD ").unwrap().1).unwrap();
    assert_eq!(check[0], entry_point()[0]);
    let exposed = instruction("EXPOSE");
    assert!(check.last().unwrap().ends_with(&exposed), "{check:?}");
    check.iter().map(|word| word.replace(&exposed, &port.to_string())).collect()
}

/// Builds the program with the commands of the Containerfile. Runs the program in a chroot that contains only the
/// program, the token file and the volume, as a user who can write only to the volume.
#[test]
#[ignore = "builds a release, which takes minutes"]
fn the_program_of_the_container_needs_no_other_file() {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "only root may call chroot");
        return print_skipped("only root may call chroot");
    }
    let Some(chroot) = require_tool("chroot", &["/usr/sbin/chroot".into()]) else { return };
    let tokens = TemporaryFile::new("tokens.txt", "a-long-random-word\n");
    let root = tokens.0.parent().unwrap();
    let run = |command: &str| {
        let mut shell = Command::new("sh");
        let status = shell.args(["-ec", command]).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(status.unwrap().success(), "{command}");
    };
    let out = TemporaryFile::new("out", "");
    let out = out.0.parent().unwrap().to_str().unwrap();
    let (copies, commands): (Vec<_>, Vec<_>) = instructions()
        .into_iter()
        .filter(|(name, _)| name == "RUN" || name == "COPY")
        .partition(|(name, _)| name == "COPY");
    commands.iter().for_each(|(_, command)| run(&command.replace("/out", out)));
    let (user, user_option) = (instruction("USER"), format!("--chown={} ", instruction("USER")));
    for copy in copies.iter().filter_map(|(_, copy)| copy.strip_prefix("--from=build ")) {
        let (source, target) = copy.trim_start_matches(&user_option).split_once(' ').unwrap();
        let (source, target) = (source.replace("/out", out), format!("{}{target}", root.display()));
        run(&format!("cp -r {source} {target}"));
        if copy.starts_with(&user_option) {
            run(&format!("chown {user} {target}"));
        }
    }
    let program = format!("{}{}", root.display(), entry_point()[0]);
    let mib = std::fs::metadata(program).unwrap().len() as f64 / f64::from(1 << 20);
    assert!(mib <= 8.0, "the program has {mib:.2} MiB");

    let in_container = |arguments: &[String]| {
        let mut command = Command::new(&chroot);
        command.arg(format!("--userspec={user}")).arg(root).args(arguments).env_clear();
        command
    };
    let environment = instruction("ENV").replace(&instruction("EXPOSE"), "0");
    let options = ["--tokens", "/tokens.txt"].map(String::from);
    let mut command = in_container(&[entry_point(), options.to_vec()].concat());
    let server = Server::launch(command.envs(variables(environment.split(' '))));
    let checked = in_container(&health_check(server.port())).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert!(root.join("data/chat.db").exists(), "{}", server.printed());
}
