//! `wirechat poke`: its whole catalogue against this server and against npm's `ws`, and the program as a person runs it.
//!
//! A case that this server passes could still ask for what only this server does. So each is also played against a server
//! of somebody else's, and where that one strays, the RFC is named: the cases are fair, and the list below is short.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::table::each_row;
use support::watched::Watched;
use support::{DEADLINE, Server};
use wirechat::tools::poke::case::Case;
use wirechat::tools::poke::play::Patience;
use wirechat::tools::poke::verdict::{Verdict, came, expected, judge};
use wirechat::tools::poke::{Target, catalogue};
use wirechat::ws::close::ProtocolError;
use wirechat::ws::frame::{self, Opcode};
use wirechat::ws::handshake::{Upgrade, accept_key, upgrade_required};
use wirechat::ws::message::Message;
use wirechat::ws::protocol::{Event, Limits, Protocol, State};
use wirechat::ws::request::{Rejection, Request};

/// As long as it takes here: nothing that is expected of a server makes this wait.
const PATIENT: Patience = Patience { timeout: DEADLINE, delay: Duration::from_millis(1) };

/// Plays a case, and says in words what came, for a test that fails.
fn play(target: &Target, case: &Case, patience: Patience) -> (Verdict, String) {
    let outcome = target.play(case, patience, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    (judge(case, &outcome), format!("expected: {}; came: {}", expected(case), came(&outcome)))
}

#[test]
fn this_server_answers_every_case_as_expected() {
    let mut server = Watched::start(&[]);
    let target = Target::wirechat(&format!("ws://{}/", server.addr())).unwrap();
    let cases: Vec<&Case> = catalogue::all().collect();
    each_row(
        &cases,
        |case| case.name.to_owned(),
        |case| {
            let (verdict, words) = play(&target, case, PATIENT);
            assert_eq!(verdict, Verdict::Expected, "{words}");
            assert!(!words.contains("a Ping is not answered"), "{words}");
            server.still_chats();
        },
    );
    server.finish(&["no-such-token"]);
}

/// The number of a rule. A new rule has no place here, and does not compile until it has one.
fn number(error: ProtocolError) -> usize {
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
    }
}

#[test]
fn every_rule_has_a_case() {
    let broken: BTreeSet<usize> = catalogue::all().filter_map(|case| case.error).map(number).collect();
    assert_eq!(broken, (0..16).collect());
    let section = |error: ProtocolError| error.section().split('.').next().unwrap().to_owned();
    for case in catalogue::all() {
        if let Some(error) = case.error {
            assert!(case.rule.0.contains(&section(error)), "{}: {} or {error}", case.name, case.rule.0);
        }
    }
}

/// Whose doing it is. `ws` stands still at its version; the Node.js under it is whatever the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stray {
    OfWs,
    OfNode,
}

/// Where `ws` does something else than the RFC asks or allows: the case, whose doing it is, and why.
const WS_STRAYS: &[(&str, Stray, &str)] = &[
    ("version-8", Stray::OfWs, "it still speaks the draft that called itself version 8"),
    ("http-1.0", Stray::OfNode, "it does not look at the version of HTTP (§4.2.1 item 1)"),
    (
        "malformed-extensions",
        Stray::OfWs,
        "it reads the list only if compression is on, which it is not by default (§9.1)",
    ),
    ("no-host", Stray::OfNode, "Node.js demands a Host of other requests, and not of an upgrade (§4.2.1 item 2)"),
    ("two-hosts", Stray::OfNode, "Node.js takes the first of them (RFC 9112 §3.2)"),
    ("body", Stray::OfNode, "Node.js hands the body over as the first bytes behind the handshake (RFC 9112 §6.3)"),
    ("chunked-body", Stray::OfNode, "the same, with the chunks' lengths among them (RFC 9112 §6.1)"),
    (
        "length-5-in-16-bits",
        Stray::OfWs,
        "it takes a length in any form (§5.2: \"the minimal number of bytes MUST be used\")",
    ),
    ("length-5-in-64-bits", Stray::OfWs, "the same"),
    ("slow-reader", Stray::OfWs, "it leaves it to its user to look at bufferedAmount, and holds everything (§10.4)"),
];

#[test]
fn npm_ws_strays_where_it_is_known_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(node) = support::require_tool("node", &[]) else { return };
    if support::require_tool("ws", &[root.join("tests/npm/node_modules/ws/index.js")]).is_none() {
        return;
    }
    let (_echo, address) = start_echo(&node, &root.join("tests/npm/echo.js"));
    let target = Target::echo(&format!("ws://{address}/")).unwrap();
    // Where it strays, it may be waited for to the end.
    let patience = Patience { timeout: Duration::from_secs(10), ..PATIENT };
    let cases: Vec<&Case> = catalogue::all().filter(|case| target.takes(case)).collect();
    let strays: BTreeMap<&str, Stray> = WS_STRAYS.iter().map(|(case, stray, _)| (*case, *stray)).collect();
    assert!(strays.keys().all(|name| cases.iter().any(|case| case.name == *name)), "each is a case that is played");
    each_row(
        &cases,
        |case| case.name.to_owned(),
        |case| {
            let (verdict, words) = play(&target, case, patience);
            match (strays.get(case.name), matches!(verdict, Verdict::Wrong(_))) {
                (None, true) => panic!("it strays: {verdict:?}; {words}"),
                (Some(Stray::OfWs), false) => panic!("it strays no more: {verdict:?}; {words}"),
                _ => {}
            }
        },
    );
}

/// A child process that is killed when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the echo server, and waits until it says where it listens.
fn start_echo(node: &Path, script: &Path) -> (Killed, SocketAddr) {
    let mut command = Command::new(node);
    let mut child = command.arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("node starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let child = Killed(child);
    let port: u16 = line.trim().parse().unwrap_or_else(|_| panic!("no port: {line:?}"));
    (child, ([127, 0, 0, 1], port).into())
}

// ---- The program, as a person runs it ----

/// Runs `wirechat poke` with these arguments to its end.
fn poke(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    command.arg("poke").args(args).stdin(Stdio::null()).output().expect("it is run")
}

/// What it printed, after it ended with this code.
fn printed(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    assert!(!out.contains('\x1b') && !out.contains("dev-token"), "no colour in a pipe, no token anywhere: {out}");
    if code == 2 {
        assert_eq!(err.lines().count(), 1, "one line: {err}");
        assert!(err.starts_with("wirechat: "), "{err}");
        return err;
    }
    assert_eq!(err, "");
    out
}

fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} in\n{text}");
    }
}

fn url(server: &Server) -> String {
    format!("ws://{}/echo?token=dev-token", server.addr())
}

#[test]
fn the_list_has_every_case_and_what_it_does() {
    let list = printed(&poke(&["list"]), 0);
    for case in catalogue::all() {
        holds(&list, &[case.name, case.what]);
    }
    holds(&list, &["Frames (§5.1–§5.3)", "(wirechat's own rule)"]);
}

#[test]
fn a_case_tells_what_was_done_what_came_and_why() {
    let server = Server::start(&[]);
    let hello = printed(&poke(&["hello", &url(&server)]), 0);
    let wanted = [
        "hello: The RFC's own key",
        "→ GET /echo?token=********* HTTP/1.1",
        "→ TEXT  fin mask=37fa213d len=5 (7-bit)  \"Hello\"",
        "← TEXT  fin len=5 (7-bit)  \"Hello\"",
        "\nexpected: text \"Hello\", the connection stays open\n\
         came:     text \"Hello\", the connection stays open\n\
         rule:     §1.3: ",
    ];
    holds(&hello, &wanted);
    assert!(hello.ends_with("\nas expected\n"), "{hello}");

    let rude = printed(&poke(&["unmasked-frame", &url(&server)]), 0);
    let wanted = [
        "! 1002 §5.1 this frame is not masked",
        "expected: Close 1002, then the end of the connection\n",
        "came:     Close 1002 \"client frames must be masked (RFC 6455 §5.1)\", then the end of the connection\n",
        "rule:     §5.1: a client masks every frame",
    ];
    holds(&rude, &wanted);

    let drawn = printed(&poke(&["hello", "--full", &url(&server)]), 0);
    holds(&drawn, &["FIN opcode  MASK length=5  masking key", "key + GUID", "unmasked  \"Hello\""]);

    let refused = printed(&poke(&["no-key", &url(&server)]), 0);
    holds(&refused, &["expected: HTTP 400\n", "came:     HTTP 400 \"Sec-WebSocket-Key must be sent once"]);
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
fn the_delay_is_kept() {
    let server = Server::start(&[]);
    let start = Instant::now();
    let slow = printed(&poke(&["one-byte-at-a-time", "--delay", "60ms", &url(&server)]), 0);
    assert!(start.elapsed() >= Duration::from_millis(660), "eleven bytes");
    // On a busy machine several of them may have come before the server reads.
    holds(&slow, &["\"Hello\"  in ", " reads"]);
}

#[test]
fn all_of_them_and_a_table() {
    let server = Server::start(&[]);
    let server_url = format!("ws://{}/", server.addr());
    let own = printed(&poke(&["all", "--wirechat", "--delay", "1ms", &server_url]), 0);
    let count = catalogue::all().count();
    let policy = catalogue::all().filter(|case| case.is_policy()).count();
    holds(&own, &[&format!("\n{count} as expected, 0 allowed by the RFC, 0 not as expected, 0 left out\n")]);
    // As a stranger: its own rules are left out.
    let foreign = printed(&poke(&["all", "--delay", "1ms", &url(&server)]), 0);
    let rest = count - policy;
    holds(&foreign, &[&format!("\n{rest} as expected, 0 allowed by the RFC, 0 not as expected, {policy} left out\n")]);
}

#[test]
fn a_server_without_an_echo() {
    let server = Server::start(&[]);
    let chat = format!("ws://{}/?token=dev-token&username=poke&room=poke", server.addr());
    let rows = printed(&poke(&["all", "--no-echo", "--delay", "1ms", &chat]), 0);
    holds(&rows, &[" 0 not as expected, "]);
    printed(&poke(&["hello", "--no-echo", &chat]), 2);
}

#[test]
fn questions_that_make_no_sense() {
    let server = Server::start(&[]);
    let url = url(&server);
    let cases: &[(&[&str], &str)] = &[
        (&["no-such-thing", &url], "no case \"no-such-thing\""),
        (&["utf", &url], "utf8-surrogate"),
        (&["hello", "wss://127.0.0.1/"], "TLS"),
        (&["hello", "http://127.0.0.1/"], "only ws://"),
        (&["hello", "ws://192.0.2.1/"], "--yes-i-may"),
        (&["hello", "ws://127.0.0.1:1/"], "127.0.0.1:1: "),
        (&["wrong-token", &url], "rule of wirechat's own"),
        (&["hello", "--delay", "soon", &url], "must be a duration"),
        (&["hello", "--timeout", "0s", &url], "must be from 10ms to 10m"),
        (&["hello", "--delay", "1h", &url], "must be from 0s to 10s"),
        (&[], "<CASE>"),
    ];
    for (args, words) in cases {
        holds(&printed(&poke(args), 2), &[words]);
    }
}

/// A server that keeps to the RFC and judges late: a request when all of its head is there, and a frame when all of it
/// is. It does not decode the key, for which there is no need (§4.2.2).
fn serve_late(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.extend(byte);
    }
    let upgraded = answer_late(&head);
    let _ = stream.write_all(upgraded.as_ref().unwrap_or_else(|refusal| refusal));
    if upgraded.is_ok() {
        echo_late(&mut stream);
    }
    let _ = stream.shutdown(Shutdown::Write);
    drain(stream);
}

/// The 101, or a refusal.
fn answer_late(head: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let refusal = |rejection: Rejection| {
        let status = rejection.status;
        let head = format!("HTTP/1.1 {status} No\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n");
        head.into_bytes()
    };
    // This project's own rules demand a good key, so they get one.
    let head = String::from_utf8_lossy(head);
    let key = head.split_once("Sec-WebSocket-Key: ").and_then(|(_, rest)| rest.split("\r\n").next()).unwrap_or(KEY);
    let known = head.replace(key, KEY);
    let request = Request::parse(known.as_bytes(), 100).map_err(refusal)?;
    request.host().map_err(refusal)?;
    if request.method != "GET" || !request.has_token("Upgrade", "websocket") {
        return Err(refusal(upgrade_required()));
    }
    let answer = Upgrade::check(&request).map_err(refusal)?.switching_protocols("none");
    let answer = String::from_utf8(answer).expect("ASCII");
    Ok(answer.replace(&accept_key(KEY.as_bytes()), &accept_key(key.as_bytes())).into_bytes())
}

/// Gives messages back until the connection is closed, or the client gone.
fn echo_late(stream: &mut TcpStream) {
    let mut protocol = Protocol::new(Limits { message: 1 << 20, fragments: 1000, binary: true });
    while protocol.state() == State::Open {
        let Some(mut frame) = read_whole_frame(stream) else { return };
        let mut answer = Vec::new();
        match protocol.receive(&mut &mut frame[..]) {
            Some(Event::Message(Message::Text(text))) => frame::append(&mut answer, Opcode::Text, text.as_bytes()),
            Some(Event::Message(Message::Binary(bytes))) => frame::append(&mut answer, Opcode::Binary, &bytes),
            _ => answer = protocol.take_replies(),
        }
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// All bytes of the next frame, however wrong it is; `None` if the client is gone before.
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

#[test]
fn a_server_that_judges_late_is_not_wrong() {
    let target = Target::echo(&listen(serve_late)).unwrap();
    let patience = Patience { timeout: Duration::from_secs(5), ..PATIENT };
    // All at once: some are waited for to the end.
    let played: Vec<(&Case, JoinHandle<_>)> = catalogue::all()
        .filter(|case| target.takes(case))
        .map(|case| {
            let target = target.clone();
            (case, std::thread::spawn(move || play(&target, case, patience)))
        })
        .collect();
    let mut allowed = BTreeSet::new();
    for (case, played) in played {
        match played.join().expect(case.name) {
            (Verdict::Wrong(fault), words) => panic!("{}: {fault:?}; {words}", case.name),
            (Verdict::Allowed(_), _) => drop(allowed.insert(case.name)),
            (Verdict::Expected, _) => {}
        }
    }
    for name in ["bare-lf", "key-not-base64", "huge-ping", "length-top-bit", "frame-without-a-handshake"] {
        assert!(allowed.contains(name), "{name}: {allowed:?}");
    }
}

/// A server of a few lines that reads a request and then does `rest` with the connection, once.
fn fake(rest: impl FnOnce(TcpStream) + Send + 'static) -> (String, JoinHandle<()>) {
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
        let accept = accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).expect("the client reads");
        rest(stream);
    };
    (url, std::thread::spawn(serve))
}

/// Reads until the client is gone.
fn drain(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn a_server_that_is_wrong_is_told_so() {
    let cases: [(&'static str, &'static [u8], &str); 7] = [
        ("hello", b"\x81\x85\0\0\0\0Hello", "the server masked a frame (RFC 6455 §5.1)"),
        ("hello", b"\xc1\x05Hello", "the server broke a rule: RSV bits must be 0"),
        ("hello", b"\x81\x05World\x8a\x0cstill there?", "came:     text \"World\", the connection stays open"),
        (
            "ping",
            b"\x8a\x05World",
            "came:     Pong \"World\", the connection stays open, though a Ping is not answered",
        ),
        ("unmasked-frame", b"\x81\x05Hello", "NOT as expected"),
        ("close", b"\x88\x02\x03\xe8\x81\x00", "a frame after its Close (RFC 6455 §5.5.1)"),
        ("close", b"\x88\x02\x03\xe8", "Close 1000, and the connection is not ended"),
    ];
    for (case, bytes, words) in cases {
        let (url, served) = fake(move |mut stream| {
            stream.write_all(bytes).expect("the client reads");
            drain(stream);
        });
        let output = poke(&[case, "--timeout", "5s", &url]);
        served.join().unwrap();
        holds(&printed(&output, 1), &["NOT as expected", words]);
    }
}

/// Who has just written a handshake and an echo, and no Ping yet, hears that these two are right.
#[test]
fn a_server_that_is_not_finished() {
    let (url, served) = fake(|mut stream| {
        stream.write_all(b"\x81\x05Hello").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["hello", &url]);
    served.join().unwrap();
    let came = "came:     text \"Hello\", the connection stays open, though a Ping is not answered";
    holds(&printed(&output, 0), &[came, "\nas expected\n"]);

    // It takes a Ping for a message.
    let (url, served) = fake(|mut stream| {
        stream.write_all(b"\x81\x05Hello\x81\x0cstill there?").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["hello", &url]);
    served.join().unwrap();
    holds(&printed(&output, 0), &[came, "\nas expected\n"]);
}

/// A server that takes connections, and does this with them.
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
fn a_server_that_does_not_answer() {
    let silent = listen(drain);
    let start = Instant::now();
    let text = printed(&poke(&["hello", "--timeout", "10s", &silent]), 1);
    assert!(start.elapsed() < Duration::from_secs(20), "it is waited for once");
    holds(&text, &["\ncame:     nothing; the server waits\n"]);
    let all = printed(&poke(&["all", "--timeout", "500ms", &silent]), 1);
    holds(&all, &["NOT as expected\nNothing came back at all, so the other cases are left out."]);
    assert_eq!(all.lines().count(), 3, "{all}");

    let gone = listen(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX").expect("the client reads");
        stream.shutdown(Shutdown::Write).expect("it is open");
        drain(stream);
    });
    let text = printed(&poke(&["hello", &gone]), 1);
    holds(&text, &["came:     the start of an answer, \"HTTP/1.1 200 OK\\r\\nX\", and the end of the connection\n"]);

    let other = listen(|mut stream| {
        stream.write_all(b"SSH-2.0-x\x1b[31m\r\n").expect("the client reads");
        drain(stream);
    });
    let text = printed(&poke(&["hello", &other]), 1);
    holds(
        &text,
        &["came:     something that breaks a rule, and nothing behind it was read\n", "the answer is no HTTP"],
    );
    holds(&text, &["it begins with \"SSH-2.0-x\\u{1b}[31m\\r\\n\"\n"]);
}

#[test]
fn whatever_the_server_does_it_ends() {
    // Says nothing at all.
    let (url, served) = fake(drain);
    let output = poke(&["hello", "--timeout", "1s", &url]);
    served.join().unwrap();
    holds(&printed(&output, 1), &["came:     the connection stays open, though a Ping is not answered"]);

    // Drips: every byte is one more sign of life, and moves no deadline.
    let (url, served) = fake(|mut stream| {
        while stream.write_all(b"\x89\x00").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let output = poke(&["hello", "--timeout", "300ms", &url]);
    served.join().unwrap();
    printed(&output, 1);

    // Never stops: what is held and what is shown are bounded. (This case waits for a Close for as long as it may.)
    let (url, served) = fake(|mut stream| {
        let frames = b"\x82\x7e\x00\x80".iter().copied().chain([0; 128]).collect::<Vec<u8>>().repeat(400);
        while stream.write_all(&frames).is_ok() {}
    });
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    let text = printed(&output, 1);
    holds(&text, &["over 4 MiB came back", " more …"]);
    assert!(text.lines().count() < 60, "{text}");

    // The same with messages of nothing.
    let (url, served) = fake(|mut stream| while stream.write_all(&b"\x81\x00".repeat(10_000)).is_ok() {});
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    holds(&printed(&output, 1), &["over 50000 frames came back"]);

    // Announces more than anybody would hold, and hangs up.
    let (url, served) = fake(|mut stream| {
        stream.write_all(b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff").expect("the client reads");
        drain(stream);
    });
    let output = poke(&["unmasked-frame", "--timeout", "60s", &url]);
    served.join().unwrap();
    holds(&printed(&output, 1), &["over 4 MiB came back"]);
}
