//! Tests `wirechat poke`. The tests run it as a user does, and play every test case against this server. A test case
//! may demand more than the RFC does, and this server might still pass it. So the tests also play the cases against
//! npm's `ws`, and `WS_DEVIATIONS` gives the reason for each case that `ws` fails.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::table::each_row;
use support::watched::WitnessedServer;
use support::{DEADLINE, Server};
use wirechat::tools::poke::case::{Case, End, Opening};
use wirechat::tools::poke::check::{Verdict, check, describe_expected, describe_received};
use wirechat::tools::poke::play::{ClosingResult, Timing};
use wirechat::tools::poke::{Target, catalogue};
use wirechat::ws::close::ProtocolError;
use wirechat::ws::frame::{self, Opcode};
use wirechat::ws::handshake::{accept_handshake, accept_value, upgrade_required};
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol, State};
use wirechat::ws::request::{Rejection, Request};

/// A long timeout costs nothing: this server never makes a case wait until the timeout expires.
const DEFAULT_TIMING: Timing = Timing { timeout: DEADLINE, delay: Duration::from_millis(1), max_duration: None };

/// Plays a case. The returned string describes the result, for use in assertion messages.
fn play(target: &Target, case: &Case, timing: Timing) -> (Verdict, String) {
    let transcript = target.play(case, timing, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let words = format!("expected: {}; received: {}", describe_expected(case), describe_received(&transcript));
    (check(case, &transcript), words)
}

/// Server options: the cases about compression need `--deflate`.
const OPTIONS: &[&str] = if cfg!(feature = "deflate") { &["--deflate"] } else { &[] };

#[test]
fn this_server_passes_every_case() {
    passes_every_case(OPTIONS, Verdict::Expected);
}

/// A server without `--deflate` declines every compression offer, so cases that need compression are inapplicable.
#[cfg(feature = "deflate")]
#[test]
fn a_server_that_declines_compression_fails_no_case() {
    passes_every_case(&[], Verdict::Inapplicable("the server declined permessage-deflate"));
}

/// Plays every test case. `compressed` is the verdict to expect from a case that offers permessage-deflate.
fn passes_every_case(options: &[&str], compressed: Verdict) {
    let mut server = WitnessedServer::start(options);
    let target = Target::for_wirechat(&format!("ws://{}/", server.addr())).unwrap();
    let cases: Vec<&Case> = catalogue::all_cases().collect();
    each_row(
        &cases,
        |case| case.name.to_owned(),
        |case| {
            let (verdict, words) = play(&target, case, DEFAULT_TIMING);
            match case.opening {
                Opening::Deflate(_) => assert_eq!(verdict, compressed, "{words}"),
                // This server never lets a client use context takeover.
                Opening::Takeover(_) => assert!(matches!(verdict, Verdict::Inapplicable(_)), "{verdict:?}: {words}"),
                _ => assert_eq!(verdict, Verdict::Expected, "{words}"),
            }
            assert!(!words.contains("gets no"), "{words}");
            server.check_chat();
        },
    );
    server.finish(&["no-such-token"]);
}

/// If a test case leaves the connection open, `poke` performs a closing handshake (RFC 6455 §7.1.2), so that its output
/// also shows how a connection ends.
#[test]
fn a_case_that_leaves_the_connection_open_ends_with_a_closing_handshake() {
    let server = Server::start(&[]);
    let target = Target::for_wirechat(&format!("ws://{}/", server.addr())).unwrap();
    let mut closed = 0;
    for case in catalogue::all_cases().filter(|case| case.end == End::Open) {
        let transcript = target.play(case, DEFAULT_TIMING, &mut |_| {}).unwrap();
        assert_eq!(transcript.closing, Some(ClosingResult::Completed), "{}", case.name);
        closed += 1;
    }
    assert!(closed > 30, "{closed}");
    // No closing handshake is possible after a half-close, within an unfinished frame, or without an upgrade.
    for name in ["half-close", "slow-reader", "no-key"] {
        let case = catalogue::all_cases().find(|case| case.name == name).unwrap();
        let transcript = target.play(case, DEFAULT_TIMING, &mut |_| {}).unwrap();
        assert_eq!(transcript.closing, None, "{name}");
    }
}

/// Numbers each error. The exhaustive `match` does not compile until a new error has a number too.
fn error_number(error: ProtocolError) -> usize {
    use ProtocolError::*;
    match error {
        ReservedBits => 0,
        ReservedOpcode(_) => 1,
        FragmentedControl => 2,
        ControlTooLong => 3,
        Unmasked => 4,
        LengthNotMinimal => 5,
        LengthTopBit => 6,
        UnexpectedContinuation => 7,
        ExpectedContinuation => 8,
        UnsupportedData => 9,
        MessageTooBig => 10,
        TooManyFragments => 11,
        TextNotUtf8 => 12,
        ClosePayloadOfOneByte => 13,
        InvalidCloseCode(_) => 14,
        CloseReasonNotUtf8 => 15,
        MisplacedRsv1 => 16,
        InvalidDeflate => 17,
    }
}

#[test]
fn every_rule_has_a_case() {
    let broken: BTreeSet<usize> = catalogue::all_cases().filter_map(|case| case.error).map(error_number).collect();
    assert_eq!(broken, (0..if cfg!(feature = "deflate") { 18 } else { 16 }).collect());
    let section = |error: ProtocolError| error.section().split('.').next().unwrap().to_owned();
    for case in catalogue::all_cases() {
        if let Some(error) = case.error {
            // `section` covers only RFC 6455. For a compression error, look for RFC 7692 in the error's text instead.
            let is_cited = case.rule.0.starts_with("RFC 7692") && error.to_string().contains("RFC 7692");
            assert!(is_cited || case.rule.0.contains(&section(error)), "{}: {} or {error}", case.name, case.rule.0);
        }
    }
}

/// The software that deviates from the RFC. The version of `ws` is pinned, so a test fails if a listed deviation of
/// `ws` no longer occurs. The version of Node.js depends on the machine, so its deviations are optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deviation {
    OfWs,
    OfNode,
}

/// The test cases that a `ws` server fails, each with the software responsible (`ws` or Node.js) and the reason.
const WS_DEVIATIONS: &[(&str, Deviation, &str)] = &[
    ("version-8", Deviation::OfWs, "it still supports the draft with version 8"),
    ("http-1.0", Deviation::OfNode, "it does not check the version of HTTP (§4.2.1 item 1)"),
    (
        "malformed-extensions",
        Deviation::OfWs,
        "it reads the list only if compression is on, which it is not by default (§9.1)",
    ),
    ("no-host", Deviation::OfNode, "Node.js requires a Host in other requests, and not in an upgrade (§4.2.1 item 2)"),
    ("two-hosts", Deviation::OfNode, "Node.js takes the first of them (RFC 9112 §3.2)"),
    ("body", Deviation::OfNode, "Node.js passes the body on as the first bytes after the handshake (RFC 9112 §6.3)"),
    ("chunked-body", Deviation::OfNode, "the same, with the chunks' lengths among them (RFC 9112 §6.1)"),
    (
        "length-5-in-16-bits",
        Deviation::OfWs,
        "it takes a length in any form (§5.2: \"the minimal number of bytes MUST be used\")",
    ),
    ("length-5-in-64-bits", Deviation::OfWs, "the same"),
    (
        "slow-reader",
        Deviation::OfWs,
        "it buffers everything, and leaves it to its user to check bufferedAmount (§10.4)",
    ),
];

#[cfg(feature = "deflate")]
const WS_DEFLATE_DEVIATIONS: &[(&str, Deviation, &str)] = &[
    ("deflate-unknown-parameter", Deviation::OfWs, "it rejects the request, not only the offer (RFC 7692 §7)"),
    ("deflate-repeated-parameter", Deviation::OfWs, "the same"),
    ("deflate-window-of-16-bits", Deviation::OfWs, "the same"),
    ("deflate-window-of-7-bits", Deviation::OfWs, "the same"),
    ("deflate-value-not-allowed", Deviation::OfWs, "the same"),
    ("deflate-value-missing", Deviation::OfWs, "the same"),
    ("deflate-after-a-declined-offer", Deviation::OfWs, "the same"),
    ("deflate-fallback", Deviation::OfWs, "the same, although the next offer is valid (RFC 7692 §5)"),
    ("deflate-fallback-in-two-lines", Deviation::OfWs, "the same"),
    ("deflate-leading-zero", Deviation::OfWs, "it accepts the value (RFC 7692 §7.1.2.1: \"without leading zeroes\")"),
    ("deflate-after-a-final-block", Deviation::OfWs, "it drops what follows a final block (RFC 7692 §7.2.1)"),
];

#[test]
fn npm_ws_fails_only_the_known_cases() {
    let cases = catalogue::all_cases().collect();
    assert_ws_deviations(cases, false, WS_DEVIATIONS);
}

#[cfg(feature = "deflate")]
#[test]
fn npm_ws_with_compression_fails_only_the_known_cases() {
    let cases = catalogue::all_cases().filter(|case| case.name.starts_with("deflate-")).collect();
    assert_ws_deviations(cases, true, WS_DEFLATE_DEVIATIONS);
}

fn assert_ws_deviations(mut cases: Vec<&Case>, deflates: bool, deviations: &[(&str, Deviation, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(node) = support::require_tool("node", &[]) else { return };
    if support::require_tool("ws", &[root.join("tests/npm/node_modules/ws/index.js")]).is_none() {
        return;
    }
    let (_echo, address) = start_echo(&node, &root.join("tests/npm/echo.js"), deflates);
    let target = Target::for_echo(&format!("ws://{address}/")).unwrap();
    // A test case that `ws` fails may run until its timeout expires. So use a shorter timeout than `DEFAULT_TIMING`
    // does.
    let timing = Timing { timeout: Duration::from_secs(10), ..DEFAULT_TIMING };
    cases.retain(|case| target.supports(case));
    let deviations: BTreeMap<&str, Deviation> =
        deviations.iter().map(|(case, deviation, _)| (*case, *deviation)).collect();
    assert!(deviations.keys().all(|name| cases.iter().any(|case| case.name == *name)), "a deviation of no case");
    each_row(
        &cases,
        |case| case.name.to_owned(),
        |case| {
            let (verdict, words) = play(&target, case, timing);
            match (deviations.get(case.name), matches!(verdict, Verdict::Unexpected(_))) {
                (None, true) => panic!("ws deviates: {verdict:?}; {words}"),
                (Some(Deviation::OfWs), false) => panic!("ws deviates no longer: {verdict:?}; {words}"),
                _ => {}
            }
            assert!(!deflates || !matches!(verdict, Verdict::Inapplicable(_)), "{verdict:?}");
        },
    );
}

/// A child process that is killed when dropped.
struct KillOnDrop(std::process::Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the echo server, and waits until it prints its port.
fn start_echo(node: &Path, script: &Path, deflates: bool) -> (KillOnDrop, SocketAddr) {
    let mut command = Command::new(node);
    let mut child = command
        .arg(script)
        .arg(deflates.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child = KillOnDrop(child);
    let port: u16 = line.trim().parse().unwrap_or_else(|_| panic!("no port: {line:?}"));
    (child, ([127, 0, 0, 1], port).into())
}

// ---- The program, as a user runs it ----

/// Runs `wirechat poke` with these arguments, and returns its exit status and output.
fn poke(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    command.arg("poke").args(args).stdin(Stdio::null()).output().expect("it is run")
}

/// Checks the exit code, and returns standard output. For exit code 2, returns the line on standard error.
fn printed(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    assert!(!out.contains('\x1b') && !out.contains("dev-token"), "no color in a pipe, no token anywhere: {out}");
    if code == 2 {
        assert_eq!(err.lines().count(), 1, "one line: {err}");
        assert!(err.starts_with("wirechat: "), "{err}");
        return err;
    }
    assert_eq!(err, "");
    out
}

fn assert_contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} in\n{text}");
    }
}

fn url(server: &Server) -> String {
    format!("ws://{}/echo?token=dev-token", server.addr())
}

#[test]
fn the_list_has_every_case_with_its_summary() {
    let list = printed(&poke(&["list"]), 0);
    for case in catalogue::all_cases() {
        assert_contains(&list, &[case.name, case.summary]);
    }
    assert_contains(&list, &["Frames (§5.1–§5.3)", "(wirechat only)"]);
}

#[test]
fn a_case_prints_the_exchange_the_result_and_the_rule() {
    let server = Server::start(&[]);
    let hello = printed(&poke(&["hello", &url(&server)]), 0);
    let wanted = [
        "hello: The RFC's own key",
        "→ GET /echo?token=********* HTTP/1.1",
        "→ TEXT  fin mask=37fa213d len=5 (7-bit)  \"Hello\"",
        "← TEXT  fin len=5 (7-bit)  \"Hello\"",
        "← CLOSE  fin len=2 (7-bit)  1000",
        "CLOSING ⇒ CLOSED",
        "\nexpected: text \"Hello\", the connection stays open\n\
         received: text \"Hello\", the connection stays open\n\
         rule:     §1.3: ",
    ];
    assert_contains(&hello, &wanted);
    assert!(hello.ends_with("\nas expected\n"), "{hello}");

    let rude = printed(&poke(&["unmasked-frame", &url(&server)]), 0);
    let wanted = [
        "! 1002 §5.1 this frame is not masked",
        "expected: Close 1002, then the end of TCP\n",
        "received: Close 1002 \"client frames must be masked (RFC 6455 §5.1)\", then the end of TCP\n",
        "rule:     §5.1: a client masks every frame",
    ];
    assert_contains(&rude, &wanted);

    let drawn = printed(&poke(&["hello", "--full", &url(&server)]), 0);
    assert_contains(&drawn, &["FIN opcode  MASK length=5  masking key", "key + GUID", "unmasked  \"Hello\""]);

    let rejected = printed(&poke(&["no-key", &url(&server)]), 0);
    assert_contains(&rejected, &["expected: HTTP 400\n", "received: HTTP 400 \"Sec-WebSocket-Key must be sent once"]);
}

#[test]
fn a_dozen_cases_by_name() {
    let server = Server::start(&[]);
    let names = [
        "fragmented",
        "one-byte-at-a-time",
        "half-a-header",
        "bad-utf8",
        "ping-between-fragments",
        "huge-length",
        "close",
        "half-close",
        "version-8",
        "tls",
        "bare-lf",
        "three-pings",
        "length-65536",
    ];
    for name in names {
        assert!(printed(&poke(&[name, &url(&server)]), 0).ends_with("\nas expected\n"), "{name}");
    }
}

#[test]
fn the_delay_is_honored() {
    let server = Server::start(&[]);
    let start = Instant::now();
    let slow = printed(&poke(&["one-byte-at-a-time", "--delay", "60ms", &url(&server)]), 0);
    assert!(start.elapsed() >= Duration::from_millis(660), "a pause of 60 ms after each of eleven bytes");
    // On a busy machine, several bytes may arrive before the server reads.
    assert_contains(&slow, &["\"Hello\"  in ", " reads"]);
}

#[test]
fn all_runs_every_case_and_counts_the_results() {
    let server = Server::start(OPTIONS);
    let server_url = format!("ws://{}/", server.addr());
    let own = printed(&poke(&["all", "--wirechat", "--delay", "1ms", &server_url]), 0);
    let takeover = catalogue::all_cases().filter(|case| matches!(case.opening, Opening::Takeover(_))).count();
    let count = catalogue::all_cases().count() - takeover;
    let policy = catalogue::all_cases().filter(|case| case.is_wirechat_rule()).count();
    assert_contains(
        &own,
        &[&format!("\n{count} as expected, 0 allowed by the RFC, 0 not as expected, {takeover} skipped\n")],
    );
    // Without --wirechat, cases about rules specific to wirechat are skipped.
    let foreign = printed(&poke(&["all", "--delay", "1ms", &url(&server)]), 0);
    let (rest, skipped) = (count - policy, policy + takeover);
    assert_contains(
        &foreign,
        &[&format!("\n{rest} as expected, 0 allowed by the RFC, 0 not as expected, {skipped} skipped\n")],
    );
}

#[test]
fn a_server_without_an_echo() {
    let server = Server::start(&[]);
    let chat = format!("ws://{}/?token=dev-token&username=poke&room=poke", server.addr());
    let rows = printed(&poke(&["all", "--no-echo", "--delay", "1ms", &chat]), 0);
    assert_contains(&rows, &[" 0 not as expected, "]);
    printed(&poke(&["hello", "--no-echo", &chat]), 2);
}

#[test]
fn an_error_says_what_to_write() {
    let server = Server::start(&[]);
    let url = url(&server);
    let cases: &[(&[&str], &str)] = &[
        (&["no-such-thing", &url], "no case \"no-such-thing\""),
        (&["utf", &url], "utf8-surrogate"),
        (&["hello", "wss://127.0.0.1/"], "TLS"),
        (&["hello", "http://127.0.0.1/"], "only ws://"),
        (&["hello", "ws://192.0.2.1/"], "--yes-i-may"),
        (&["hello", "ws://127.0.0.1:1/"], "cannot connect to 127.0.0.1:1: "),
        (&["wrong-token", &url], "a rule of wirechat's own"),
        (&["hello", "--delay", "soon", &url], "must be a duration"),
        (&["hello", "--timeout", "0s", &url], "must be from 10ms to 10m"),
        (&["hello", "--delay", "1h", &url], "must be from 0s to 10s"),
        (&[], "<CASE>"),
    ];
    for (args, words) in cases {
        assert_contains(&printed(&poke(args), 2), &[words]);
    }
}

/// A conforming server that validates input late: it checks a request after the complete head has arrived, and a frame
/// after the complete payload has arrived. It does not decode Sec-WebSocket-Key, because §4.2.2 does not require that.
fn serve_late(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.extend(byte);
    }
    let upgraded = respond_late(&head);
    let _ = stream.write_all(upgraded.as_ref().unwrap_or_else(|rejection| rejection));
    if upgraded.is_ok() {
        echo_late(&mut stream);
    }
    let _ = stream.shutdown(Shutdown::Write);
    drain(stream);
}

/// Returns the 101 response, or the rejection as an error.
fn respond_late(head: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let render = |rejection: Rejection| {
        let status = rejection.status;
        let head = format!("HTTP/1.1 {status} No\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n");
        head.into_bytes()
    };
    // `accept_handshake` rejects an invalid key, so replace the key with a valid one.
    let head = String::from_utf8_lossy(head);
    let key = head.split_once("Sec-WebSocket-Key: ").and_then(|(_, rest)| rest.split("\r\n").next()).unwrap_or(KEY);
    let known = head.replace(key, KEY);
    let request = Request::parse(known.as_bytes(), 100).map_err(render)?;
    request.host().map_err(render)?;
    if request.method != "GET" || !request.has_token("Upgrade", "websocket") {
        return Err(render(upgrade_required()));
    }
    let answer = accept_handshake(&request, "none").map_err(|mut rejections| render(rejections.remove(0)))?;
    let answer = String::from_utf8(answer).expect("ASCII");
    Ok(answer.replace(&accept_value(KEY.as_bytes()), &accept_value(key.as_bytes())).into_bytes())
}

/// Echoes messages until the connection closes or the client disconnects.
fn echo_late(stream: &mut TcpStream) {
    let mut protocol =
        Protocol::new(Limits { message: 1 << 20, fragments: 1000, accepts_binary: true, deflates: false });
    while protocol.state() == State::Open {
        let Some(mut frame) = read_whole_frame(stream) else { return };
        let mut answer = Vec::new();
        match protocol.receive(&mut &mut frame[..]) {
            Some(Event::Message(Message::Text(text))) => frame::append(&mut answer, Opcode::Text, text.as_bytes()),
            Some(Event::Message(Message::Binary(bytes))) => frame::append(&mut answer, Opcode::Binary, &bytes),
            _ => answer = protocol.take_output(),
        }
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// All bytes of the next frame, even an invalid one; `None` if the client disconnects first.
fn read_whole_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    let mut read = |frame: &mut Vec<u8>, len: u64| {
        let came = Read::by_ref(stream).take(len).read_to_end(frame).ok()? as u64;
        (came == len).then_some(())
    };
    read(&mut frame, 2)?;
    let (is_masked, short) = (frame[1] & 0x80 != 0, frame[1] & 0x7f);
    let size = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    read(&mut frame, size)?;
    let long = frame[2..].iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
    read(&mut frame, if is_masked { 4 } else { 0 })?;
    read(&mut frame, if size > 0 { long } else { u64::from(short) })?;
    Some(frame)
}

/// Without a limit on the total time, every step against a silent server would wait for the whole timeout.
#[test]
fn a_case_has_a_total_time_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = Target::for_echo(&format!("ws://{}/", silent.local_addr().unwrap())).unwrap();
    let timing = Timing { max_duration: Some(Duration::from_millis(300)), ..DEFAULT_TIMING };
    for name in ["hello", "slow-request", "tls"] {
        let case = catalogue::all_cases().find(|case| case.name == name).unwrap();
        let start = Instant::now();
        play(&target, case, timing);
        assert!(start.elapsed() < DEADLINE / 2, "{name}: {:?}", start.elapsed());
    }
}

#[test]
fn a_server_may_validate_late() {
    let target = Target::for_echo(&listen(serve_late)).unwrap();
    let timing = Timing { timeout: Duration::from_secs(5), ..DEFAULT_TIMING };
    // Run the cases in parallel, because some wait for the whole timeout.
    let played: Vec<(&Case, JoinHandle<_>)> = catalogue::all_cases()
        .filter(|case| target.supports(case))
        .map(|case| {
            let target = target.clone();
            (case, std::thread::spawn(move || play(&target, case, timing)))
        })
        .collect();
    let mut allowed = BTreeSet::new();
    for (case, played) in played {
        match played.join().expect(case.name) {
            (Verdict::Unexpected(fault), words) => panic!("{}: {fault:?}; {words}", case.name),
            (Verdict::Allowed(_), _) => drop(allowed.insert(case.name)),
            (Verdict::Expected | Verdict::Inapplicable(_), _) => {}
        }
    }
    for name in ["bare-lf", "key-not-base64", "huge-ping", "length-top-bit", "frame-without-a-handshake"] {
        assert!(allowed.contains(name), "{name}: {allowed:?}");
    }
}

/// Starts a minimal server for one connection. The server completes the opening handshake, then passes the connection
/// to `rest`. Returns the server's URL and thread.
fn start_fake_server(rest: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    let serve = move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            head.extend(byte);
        }
        let head = String::from_utf8(head).expect("a request is ASCII");
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).expect("a key");
        let accept = accept_value(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).expect("the client reads");
        rest(stream);
    };
    (url, std::thread::spawn(serve))
}

/// Reads and discards input until the client disconnects.
fn drain(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn a_violation_by_the_server_is_reported() {
    let cases: [(&'static str, &'static [u8], &str); 7] = [
        ("hello", b"\x81\x85\0\0\0\0Hello", "the server masked a frame (RFC 6455 §5.1)"),
        ("hello", b"\xc1\x05Hello", "the server broke a rule: RSV bits must be 0"),
        ("hello", b"\x81\x05World\x8a\x0cstill there?", "received: text \"World\", the connection stays open"),
        ("ping", b"\x8a\x05World", "received: Pong \"World\", the connection stays open, but a Ping gets no Pong"),
        ("unmasked-frame", b"\x81\x05Hello", "NOT as expected"),
        ("close", b"\x88\x02\x03\xe8\x81\x00", "a frame after its Close (RFC 6455 §5.5.1)"),
        ("close", b"\x88\x02\x03\xe8", "Close 1000, but TCP does not end"),
    ];
    for (case, bytes, words) in cases {
        let (url, served) = start_fake_server(move |mut stream| {
            stream.write_all(bytes).expect("the client reads");
            drain(stream);
        });
        let output = poke(&[case, "--timeout", "5s", &url]);
        served.join().unwrap();
        assert_contains(&printed(&output, 1), &["NOT as expected", words]);
    }
}

/// A server passes the test case `hello` if it supports the handshake and echoes a message. It need not support Ping
/// and Close.
#[test]
fn an_unfinished_server_passes_what_it_supports() {
    let (url, served) = start_fake_server(|mut stream| {
        stream.write_all(b"\x81\x05Hello").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["hello", &url]);
    served.join().unwrap();
    let came = "received: text \"Hello\", the connection stays open, but a Ping gets no Pong";
    assert_contains(&printed(&output, 0), &[came, "\nas expected\n"]);

    // This server mistakes the Ping for a message, and echoes it as text.
    let (url, served) = start_fake_server(|mut stream| {
        stream.write_all(b"\x81\x05Hello\x81\x0cstill there?").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["hello", &url]);
    served.join().unwrap();
    assert_contains(&printed(&output, 0), &[came, "\nas expected\n"]);
}

/// Starts a server that passes each connection to `serve`, and returns the server's URL.
fn listen(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.expect("a client"), serve.clone());
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            std::thread::spawn(move || serve(stream));
        }
    });
    url
}

#[test]
fn a_server_that_does_not_respond() {
    let silent = listen(drain);
    let start = Instant::now();
    let text = printed(&poke(&["hello", "--timeout", "10s", &silent]), 1);
    assert!(start.elapsed() < Duration::from_secs(20), "the client waits for the response only once");
    assert_contains(&text, &["\nreceived: nothing; the server waits\n"]);
    let all = printed(&poke(&["all", "--timeout", "500ms", &silent]), 1);
    assert_contains(&all, &["NOT as expected\nThe server sent nothing at all, so the other cases are skipped."]);
    assert_eq!(all.lines().count(), 3, "{all}");

    let gone = listen(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX").expect("the client reads");
        stream.shutdown(Shutdown::Write).expect("it is open");
        drain(stream);
    });
    let text = printed(&poke(&["hello", &gone]), 1);
    assert_contains(&text, &["received: the start of a response, \"HTTP/1.1 200 OK\\r\\nX\", then the end of TCP\n"]);

    let other = listen(|mut stream| {
        stream.write_all(b"SSH-2.0-x\x1b[31m\r\n").expect("the client reads");
        drain(stream);
    });
    let text = printed(&poke(&["hello", &other]), 1);
    assert_contains(
        &text,
        &["received: something that breaks a rule; nothing after it was read\n", "the response is not HTTP"],
    );
    assert_contains(&text, &["it begins with \"SSH-2.0-x\\u{1b}[31m\\r\\n\"\n"]);
}

#[test]
fn a_hostile_server_cannot_block_or_exhaust_the_client() {
    // The server completes the handshake and then sends nothing.
    let (url, served) = start_fake_server(drain);
    let output = poke(&["hello", "--timeout", "1s", &url]);
    served.join().unwrap();
    assert_contains(&printed(&output, 1), &["received: the connection stays open, but a Ping gets no Pong"]);

    // A slow stream of Pings must not extend the deadline.
    let (url, served) = start_fake_server(|mut stream| {
        while stream.write_all(b"\x89\x00").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let output = poke(&["hello", "--timeout", "300ms", &url]);
    served.join().unwrap();
    printed(&output, 1);

    // The server sends messages forever. The client must bound its memory and its output.
    let (url, served) = start_fake_server(|mut stream| {
        let frames = b"\x82\x7e\x00\x80".iter().copied().chain([0; 128]).collect::<Vec<u8>>().repeat(400);
        while stream.write_all(&frames).is_ok() {}
    });
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    let text = printed(&output, 1);
    assert_contains(&text, &["sent or announced over 4 MiB", " more …"]);
    assert!(text.lines().count() < 60, "{text}");

    // The server sends empty messages forever. The client must bound the number of frames.
    let (url, served) = start_fake_server(|mut stream| while stream.write_all(&b"\x81\x00".repeat(10_000)).is_ok() {});
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    assert_contains(&printed(&output, 1), &["over 50000 frames"]);

    // The server announces a frame of 2^63 - 1 bytes, the maximum. The client must not wait for the payload.
    let (url, served) = start_fake_server(|mut stream| {
        stream.write_all(b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    assert_contains(&printed(&output, 1), &["sent or announced over 4 MiB"]);
}
