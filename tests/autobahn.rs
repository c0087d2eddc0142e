//! Runs the Autobahn test suite's fuzzing client against `/echo`: the 301 cases of the suite's sections 1–7, 9 and
//! 10. The results must equal `autobahn/expected.json`; even a better result fails the test. The suite reports a case
//! as "OK", "NON-STRICT" (allowed, but late or lossy) or "INFORMATIONAL" (the RFC has no rule). Where the RFC has a
//! rule, `expected.json` contains only "OK".
//!
//! With the `deflate` feature, the server runs with `--deflate`, and the tests also run a sample of the 216 cases of
//! sections 12 and 13, which test compression. `WIRECHAT_AUTOBAHN=all` runs all of these cases and takes ten minutes.
//!
//! Two runners execute the same cases, one runner after the other, each in well under a minute. The suite's own
//! delays take most of that time: one second in each of the cases 5.19, 5.20 and 6.4.*. The reports, one page per
//! case, stay in `target/tmp/autobahn/`.
//!
//! - `kosoku` runs on Python 3.10 or newer, and CI requires it. One command installs `kosoku`:
//!   `python3 -m venv target/autobahn-venv && target/autobahn-venv/bin/pip install -r tests/autobahn/requirements.txt`
//! - `wstest`, the original runner, needs Python 2.7. Without `wstest`, its tests are skipped. Only `wstest` checks
//!   which endpoint closes the TCP connection first ("FAILED BY CLIENT"), so `the_server_closes_tcp_first` checks
//!   that rule without a runner. After the command above, these commands install `wstest`:
//!   `target/autobahn-venv/bin/virtualenv -p python2.7 target/autobahn-original && target/autobahn-original/bin/pip
//!   install -r tests/autobahn/requirements-original.txt`
//!
//! The environment variables `WIRECHAT_KOSOKU` and `WIRECHAT_WSTEST` set other paths for the two programs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Server, masked};

const CASES: usize = 301;
/// Maximum time of one run of the suite. The longest run, with all compression cases, takes about ten minutes.
const SUITE_DEADLINE: Duration = Duration::from_secs(1800);

/// Allows only one runner at a time, because runners measure response times and would slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// For each case number: the suite's `behavior` and `behaviorClose`.
type Results = BTreeMap<String, (String, String)>;

#[test]
fn every_case_is_as_expected() {
    let venv = repository_path("target/autobahn-venv/bin/kosoku");
    let Some(kosoku) = support::require_tool("kosoku", &candidates("WIRECHAT_KOSOKU", venv)) else { return };
    let server = start();
    let reports = fresh_dir("kosoku");
    let mut command = Command::new(kosoku);
    command.arg(echo_url(&server)).args(["-x", "12.*", "-x", "13.*", "-o"]).arg(&reports);
    run_suite(command, &reports, &expected());
}

#[test]
#[cfg(feature = "deflate")]
fn compressed_messages() {
    let venv = repository_path("target/autobahn-venv/bin/kosoku");
    let Some(kosoku) = support::require_tool("kosoku", &candidates("WIRECHAT_KOSOKU", venv)) else { return };
    let (server, reports) = (start(), fresh_dir("kosoku-deflate"));
    let mut command = Command::new(kosoku);
    command.arg(echo_url(&server)).arg("-o").arg(&reports);
    // The first case of each group sends an empty message, which `kosoku` cannot send.
    let cases = compressed_cases().into_iter().filter(|case| !case.ends_with(".1"));
    let expected: Results = cases.map(|case| (case, result("OK", "OK"))).collect();
    command.args(expected.keys().flat_map(|case| ["-i", case]));
    run_suite(command, &reports, &expected);
}

#[test]
#[cfg(feature = "deflate")]
fn compressed_messages_with_the_original_runner() {
    let cases = compressed_cases();
    let expected: Results = cases.iter().map(|case| (case.clone(), result("OK", "OK"))).collect();
    run_with_wstest("wstest-deflate", &json!(cases), &json!([]), &expected);
}

/// Returns a sample of the cases of sections 12 and 13, or all of them with `WIRECHAT_AUTOBAHN=all`. Each of the twelve
/// groups has 18 cases, with messages of 0 to 128 KiB. Cases 11 to 18 of a group send the messages in fragments.
#[cfg(feature = "deflate")]
fn compressed_cases() -> Vec<String> {
    let groups = (1..=5).map(|group| format!("12.{group}")).chain((1..=7).map(|group| format!("13.{group}")));
    let has_all = std::env::var_os("WIRECHAT_AUTOBAHN").is_some_and(|value| value == "all");
    let numbers: Vec<u32> = if has_all { (1..=18).collect() } else { vec![1, 3, 11] };
    groups.flat_map(|group| numbers.iter().map(move |number| format!("{group}.{number}")).collect::<Vec<_>>()).collect()
}

/// Starts a server, with `--deflate` if the build has that feature.
fn start() -> Server {
    Server::start(if cfg!(feature = "deflate") { &["--deflate"] } else { &[] })
}

#[test]
fn every_case_is_as_expected_with_the_original_runner() {
    run_with_wstest("wstest", &json!(["*"]), &json!(["12.*", "13.*"]), &expected());
}

fn run_with_wstest(name: &str, cases: &Value, excluded: &Value, expected: &Results) {
    let found = match std::env::var_os("WIRECHAT_WSTEST") {
        Some(path) => PathBuf::from(path),
        None => repository_path("target/autobahn-original/bin/wstest"),
    };
    // `require_tool` would fail the test in CI. Skip the test instead: few machines have Python 2.7, and `kosoku` runs
    // the same cases.
    if std::env::var_os("WIRECHAT_WSTEST").is_none() && !found.is_file() {
        support::print_skipped("the original Autobahn suite, for Python 2.7, is not installed");
        return;
    }
    let server = start();
    let reports = fresh_dir(name);
    let spec = reports.join("spec.json");
    let plan = json!({
        "outdir": &reports,
        "servers": [{ "agent": "wirechat", "url": echo_url(&server) }],
        "cases": cases,
        "exclude-cases": excluded,
        "exclude-agent-cases": {},
    });
    fs::write(&spec, plan.to_string()).expect("the plan is written");
    let mut command = Command::new(found);
    command.args(["-m", "fuzzingclient", "-s"]).arg(&spec);
    run_suite(command, &reports, expected);
}

/// `kosoku` itself closes the TCP connection, so it cannot check that the server closes TCP first (RFC 6455 §7.1.1).
#[test]
fn the_server_closes_tcp_first() {
    let close = masked(0x88, &[0x03, 0xe8]);
    let protocol_error = masked(0xc1, b"a reserved bit is set");
    // Autobahn case 6.4.3: the payload contains U+110000, and the client does not send the frame's last six bytes.
    let mut bad_text = masked(0x81, b"\xce\xba\xf4\x90\x80\x80edited");
    bad_text.truncate(bad_text.len() - 6);
    let server = start();
    for (sent, code) in [(close, 1000), (protocol_error, 1002), (bad_text, 1007)] {
        let mut client = server.upgrade("/echo?token=dev-token");
        client.send(&sent);
        assert_eq!(client.read_frame().close().0, code);
        if code != 1000 {
            // Reply with a Close, as the Autobahn suite does, even if the client has not finished its text frame.
            client.try_send(&masked(0x88, &u16::to_be_bytes(code)));
        }
        client.expect_end();
    }
}

#[test]
fn the_expected_results_cover_the_whole_suite() {
    let expected = expected();
    assert_eq!(expected.len(), CASES);
    let other: Vec<&str> =
        expected.iter().filter(|(_, v)| *v != &result("OK", "OK")).map(|(case, _)| case.as_str()).collect();
    assert_eq!(other, ["7.1.6", "7.13.1", "7.13.2"]);
}

#[test]
fn a_difference_is_seen() {
    let expected = Results::from([
        ("1.1.1".to_owned(), result("OK", "OK")),
        ("6.4.3".to_owned(), result("OK", "OK")),
        ("7.1.5".to_owned(), result("OK", "OK")),
        ("7.1.6".to_owned(), result("INFORMATIONAL", "INFORMATIONAL")),
    ]);
    assert!(differences(&expected, &expected.clone()).is_empty());
    let mut got = expected.clone();
    got.insert("6.4.3".to_owned(), result("NON-STRICT", "OK"));
    got.insert("7.1.5".to_owned(), result("OK", "WRONG CODE"));
    got.insert("9.9.9".to_owned(), result("OK", "OK"));
    got.remove("1.1.1");
    assert_eq!(differences(&expected, &got), ["1.1.1", "6.4.3", "7.1.5", "9.9.9"]);
}

/// Runs the suite, and fails with a list of the cases whose results are unexpected. If only cases that measure time
/// fail, runs the suite once more: if the machine was suspended, the second run passes. If the server is slow, the
/// second run fails too.
fn run_suite(mut command: Command, reports: &Path, expected: &Results) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|failed| failed.into_inner());
    let mut index = play(&mut command, reports);
    let mut different = differences(expected, &results(&index));
    if !different.is_empty() && different.iter().all(|case| depends_on_timing(case, &index[case])) {
        eprintln!("late in {different:?}: playing the suite once more");
        index = play(&mut command, reports);
        different = differences(expected, &results(&index));
    }
    let report: Vec<String> = different
        .iter()
        .map(|case| {
            let wanted = expected.get(case).map_or("nothing".to_owned(), |(own, close)| format!("{own} / {close}"));
            format!("  {case}: expected {wanted}, {}", describe_result(reports, &index[case]))
        })
        .collect();
    let count = report.len();
    assert!(report.is_empty(), "{count} cases differ; see {}:\n{}", reports.display(), report.join("\n"));
}

/// Runs the suite once. Returns the suite's index: for each case, the results and the name of the report file.
fn play(command: &mut Command, reports: &Path) -> Value {
    let (output, index) = (reports.join("output.txt"), reports.join("index.json"));
    let _ = fs::remove_file(&index); // if this run fails, the index of an earlier run must not remain
    let log = File::create(&output).expect("a log file");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
    run_to_completion(command, &output);
    let agents = read_json(&index);
    agents.as_object().and_then(|agents| agents.values().next()).expect("one agent's results").clone()
}

fn depends_on_timing(case: &str, got: &Value) -> bool {
    case.starts_with("6.4.") || got["behaviorClose"] == "FAILED BY CLIENT"
}

/// Ignores the exit status: `kosoku` fails even if all results are as expected, and `wstest` always succeeds.
fn run_to_completion(command: &mut Command, output: &Path) {
    let mut child = command.spawn().expect("the suite starts");
    let end = Instant::now() + SUITE_DEADLINE;
    while child.try_wait().expect("the suite has a status").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the suite did not finish; its output is in {}", output.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the cases whose results differ, including cases that are only in `expected` or only in `got`.
fn differences(expected: &Results, got: &Results) -> Vec<String> {
    let cases: BTreeSet<&String> = expected.keys().chain(got.keys()).collect();
    cases.into_iter().filter(|case| expected.get(*case) != got.get(*case)).cloned().collect()
}

/// Describes the result of one test case. `entry` is the case's entry in the suite's index, which also names the report
/// file with the suite's explanation.
fn describe_result(reports: &Path, entry: &Value) -> String {
    let Some(file) = entry["reportfile"].as_str() else { return "was not played".to_owned() };
    let report = read_json(&reports.join(file));
    let received: String = report["received"].to_string().chars().take(200).collect();
    format!(
        "got {} / {}\n      {} {}\n      received {received}, close {} {}",
        entry["behavior"].as_str().unwrap_or("nothing"),
        entry["behaviorClose"].as_str().unwrap_or("nothing"),
        report["result"],
        report["resultClose"],
        report["remoteCloseCode"],
        report["remoteCloseReason"],
    )
}

fn expected() -> Results {
    results(&read_json(&repository_path("tests/autobahn/expected.json")))
}

fn results(cases: &Value) -> Results {
    let text = |case: &Value, field: &str| case[field].as_str().expect("a result").to_owned();
    let cases = cases.as_object().expect("an object of cases");
    cases.iter().map(|(case, v)| (case.clone(), (text(v, "behavior"), text(v, "behaviorClose")))).collect()
}

fn result(behavior: &str, close: &str) -> (String, String) {
    (behavior.to_owned(), close.to_owned())
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("no results in {}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn echo_url(server: &Server) -> String {
    format!("ws://127.0.0.1:{}/echo?token=dev-token", server.port())
}

fn repository_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn candidates(variable: &str, usual: PathBuf) -> Vec<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).into_iter().chain([usual]).collect()
}

/// Creates an empty folder for a runner's reports, and deletes the reports of the previous run.
fn fresh_dir(runner: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("autobahn").join(runner);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("a folder for the reports");
    dir
}
