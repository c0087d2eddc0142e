//! Executes the examples of `src/chat/PROTOCOL.md` against the real server.
//!
//! A code block marked `session` lists steps, one per line; a block marked `http` contains a request and its response.
//! The blocks under one heading share a server and its clients. `PROTOCOL.md` explains the notation.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::Command;

use support::http::Response;
use support::table::hex;
use support::users::ANY_TIME;
use support::{Frame, RawClient, Server, masked, wait_until};

const PAGE: &str = include_str!("../src/chat/PROTOCOL.md");

/// Variables for values that the server chooses. In expected output, a variable matches any value, which the test
/// remembers. In the client's input, the test replaces the variable with that value.
const VARIABLES: [&str; 3] = ["EPOCH", "SESSION", "TICKET"];

/// The working directory of the server and of the shell commands in the examples.
const DIRECTORY: &str = env!("CARGO_TARGET_TMPDIR");

#[derive(Debug)]
struct Example {
    heading: &'static str,
    /// The language of the code block: `session` or `http`.
    kind: &'static str,
    /// The line number of the code block in `PROTOCOL.md`.
    line: usize,
    text: String,
}

fn examples() -> Vec<Example> {
    let (mut examples, mut heading, mut open) = (Vec::new(), "", None);
    for (number, line) in (1..).zip(PAGE.lines()) {
        open = match (open, line.strip_prefix("```")) {
            (None, Some(kind)) => Some(Example { heading, kind, line: number, text: String::new() }),
            (Some(example), Some(_)) => {
                examples.push(example);
                None
            }
            (Some(example), None) => Some(Example { text: example.text + line + "\n", ..example }),
            (None, None) => {
                assert!(!line.contains("{\""), "line {number}: JSON belongs into an example, where it is executed");
                heading = if line.starts_with('#') { line } else { heading };
                None
            }
        };
    }
    assert!(open.is_none(), "an open fence");
    examples
}

/// The state that the examples under one heading share.
#[derive(Default)]
struct Session {
    server: Option<Server>,
    clients: BTreeMap<String, Client>,
    variables: BTreeMap<&'static str, String>,
}

struct Client {
    socket: RawClient,
    /// Whether to skip received messages until one matches the next expected message. The step `< …` sets this field.
    is_skipping: bool,
}

#[test]
fn links_within_the_page_have_a_heading() {
    let headings = PAGE
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let anchors: Vec<String> =
        headings.map(|heading| heading.replace('`', "").replace(' ', "-").to_lowercase()).collect();
    for link in PAGE.split("](#").skip(1) {
        let link = link.split(')').next().unwrap_or_default();
        assert!(anchors.iter().any(|anchor| anchor == link), "#{link}");
    }
}

#[test]
fn every_example_is_what_the_server_does() {
    let examples = examples();
    for end in ["", "-wal"] {
        let _ = std::fs::remove_file(format!("{DIRECTORY}/history.db{end}"));
    }
    let mut failed = Vec::new();
    for section in examples.chunk_by(|a, b| a.heading == b.heading) {
        let has = |option: &str| section.iter().any(|example| example.text.contains(option));
        let features = [
            ("--history-db", cfg!(feature = "sqlite")),
            ("--jwt-key", cfg!(feature = "jwt")),
            ("--admin", cfg!(feature = "metrics")),
            ("--deflate", cfg!(feature = "deflate")),
        ];
        let is_missing = features.iter().any(|(option, is_built)| !is_built && has(option));
        if is_missing || has("--tls-cert") && !make_certificate() {
            continue;
        }
        let result = std::panic::catch_unwind(|| {
            let mut session = Session::default();
            section.iter().for_each(|example| session.play(example));
            session.finish();
        });
        failed.extend(result.is_err().then_some(section[0].heading));
    }
    assert!(examples.len() > 20, "the page has examples");
    assert!(failed.is_empty(), "see the messages above for what differs in: {failed:?}");
}

/// Creates `chat.crt` and `chat.key` for the examples with TLS. Returns `false` if this build has no TLS, or if
/// openssl is missing.
fn make_certificate() -> bool {
    #[cfg(feature = "tls")]
    if let Some(certificate) = support::certificate::Certificate::new("protocol-page", support::certificate::EC) {
        std::fs::copy(certificate.cert, format!("{DIRECTORY}/chat.crt")).unwrap();
        std::fs::copy(certificate.key, format!("{DIRECTORY}/chat.key")).unwrap();
        return true;
    }
    false
}

impl Session {
    fn server(&mut self) -> &Server {
        self.server.get_or_insert_with(|| Server::start(&[]))
    }

    fn play(&mut self, example: &Example) {
        match example.kind {
            "session" => steps(&example.text).iter().for_each(|(line, step)| self.step(step, example.line + line)),
            "http" => self.exchange(&example.text, example.line),
            kind => panic!("line {}: no test executes a fence marked {kind:?}", example.line),
        }
    }

    fn step(&mut self, step: &str, line: usize) {
        if let Some(command) = step.strip_prefix("$ wirechat") {
            self.finish();
            self.clients.clear();
            self.server = None; // stops the old server, which may use the same history file
            let command = command.replace("--admin 9000", "--admin 0");
            let arguments: Vec<&str> = command.split_whitespace().collect();
            self.server = Some(Server::launch(Server::command("127.0.0.1:0", &arguments).current_dir(DIRECTORY)));
            return;
        }
        if let Some(command) = step.strip_prefix("$ ") {
            let pid = self.server.as_ref().map_or_else(|| "PID".to_owned(), |server| server.pid().to_string());
            let status = Command::new("sh").args(["-c", &command.replace("PID", &pid)]).current_dir(DIRECTORY).status();
            assert!(status.expect("a shell runs").success(), "line {line}: {command}");
            return;
        }
        let (name, step) = step.split_once(' ').unwrap_or_else(|| panic!("line {line}: no step"));
        let step = step.trim_start();
        if let Some(url) = step.strip_prefix("connects to ws://127.0.0.1:3000") {
            let path = self.expand_variables(url);
            let client = Client { socket: self.server().upgrade(&path), is_skipping: false };
            self.clients.insert(name.to_owned(), client);
        } else if step == "disconnects" {
            let mut client = self.clients.remove(name).expect(step);
            client.socket.send(&masked(0x88, &1000u16.to_be_bytes()));
            let mut frame = client.next_frame();
            while client.is_skipping && frame.opcode() != 8 {
                frame = client.next_frame();
            }
            assert_eq!(format_frame(&frame), "close 1000", "line {line}: {name} has received another message before");
            client.socket.expect_end();
        } else if step == "is cut off" {
            self.clients.remove(name).expect(step);
        } else if let Some(text) = step.strip_prefix("> ") {
            let frame = client_frame(&self.expand_variables(text));
            self.clients.get_mut(name).unwrap_or_else(|| panic!("line {line}: {name}?")).socket.send(&frame);
        } else if let Some(expected) = step.strip_prefix("< ") {
            self.receive(name, expected, line);
        } else {
            panic!("line {line}: no step: {step}");
        }
    }

    fn receive(&mut self, name: &str, expected: &str, line: usize) {
        let client = self.clients.get_mut(name).unwrap_or_else(|| panic!("line {line}: {name}?"));
        if expected == "…" {
            client.is_skipping = true;
            return;
        }
        loop {
            let received = format_frame(&client.next_frame());
            match matches(expected, &received, &self.variables) {
                Some(variables) => {
                    self.variables.extend(variables);
                    client.is_skipping = false;
                    break;
                }
                None => assert!(client.is_skipping, "line {line}, {name}\nexpected {expected}\nreceived {received}"),
            }
        }
        if expected.starts_with("close") {
            let mut client = self.clients.remove(name).expect("a client");
            client.socket.try_send(&masked(0x88, &1000u16.to_be_bytes()));
            let _ = client.socket.stream.shutdown(std::net::Shutdown::Write);
            client.socket.expect_end();
        }
    }

    /// Sends the request of an example, and checks the status line, the headers and the body of the response. Ignores
    /// headers that the example does not show.
    fn exchange(&mut self, text: &str, line: usize) {
        let (request, response) = text.split_once("\n\nHTTP/1.1 ").expect("a request, a blank line, a response");
        let request = self.expand_variables(request);
        let is_admin = request.contains("\nHost: 127.0.0.1:9000");
        let mut client = if is_admin { connect_to_admin(self.server()) } else { self.server().connect() };
        client.send(format!("{}\r\n\r\n", request.replace('\n', "\r\n")).as_bytes());
        let (head, body) = response.split_once("\n\n").unwrap_or((response.trim_end(), ""));
        let received = if head.starts_with("101") { client.read_head().into() } else { client.read_to_clean_end() };
        let mut lines = head.lines();
        let status_line = format!("HTTP/1.1 {}\r\n", lines.next().unwrap_or_default());
        assert!(received.starts_with(status_line.as_bytes()), "line {line}: {}", String::from_utf8_lossy(&received));
        let received = Response::parse(&received);
        for header in lines {
            let (name, value) = header.split_once(": ").expect("a header");
            assert_eq!(received.header(name), value, "line {line}, {name}");
        }
        let is_same = matches(body.trim_end(), received.body.trim_end(), &self.variables).is_some();
        let is_shown = !body.is_empty() || head.starts_with("101") || request.starts_with("HEAD");
        assert!(is_same && is_shown, "line {line}: the body is {}", received.body);
    }

    /// Checks that no client has received a message that the examples do not show.
    fn finish(&mut self) {
        for (name, client) in &mut self.clients {
            client.socket.send(&masked(0x89, b"the end"));
            let mut received = format_frame(&client.next_frame());
            while client.is_skipping && received != "pong the end" {
                received = format_frame(&client.next_frame());
            }
            assert_eq!(received, "pong the end", "{name} receives a message that the examples do not show");
        }
    }

    /// Replaces each variable in `text` with its value.
    fn expand_variables(&self, text: &str) -> String {
        let replace = |text: String, (name, value): (&&str, &String)| text.replace(*name, value);
        self.variables.iter().fold(text.to_owned(), replace)
    }
}

impl Client {
    /// Returns the next frame other than a Ping, and replies to Pings. Joins the fragments of a message into one frame.
    fn next_frame(&mut self) -> Frame {
        let mut message: Option<Frame> = None;
        loop {
            let frame = self.socket.read_frame();
            let is_final = frame.first & 0x80 != 0;
            match (frame.opcode(), &mut message) {
                (9, _) => self.socket.send(&masked(0x8a, &frame.payload)),
                (0, Some(message)) => {
                    message.payload.extend(frame.payload);
                    message.first |= frame.first;
                }
                _ if is_final => return frame,
                _ => message = Some(frame),
            }
            if is_final && let Some(message) = message.take_if(|message| message.first & 0x80 != 0) {
                return message;
            }
        }
    }
}

/// Connects to the admin listener. Its port is 9000 in the examples; the server's banner shows the actual port.
fn connect_to_admin(server: &Server) -> RawClient {
    let mut address = None;
    wait_until("the banner shows the admin address", || {
        let banner = server.printed();
        address = banner.split_once("admin:  http://").and_then(|(_, rest)| Some(rest.split_once("/\n")?.0.to_owned()));
        address.is_some()
    });
    RawClient::new(TcpStream::connect(address.unwrap()).expect("the admin listener accepts"))
}

/// Returns the steps of a session with their line numbers. An indented line continues the step in the line above.
fn steps(text: &str) -> Vec<(usize, String)> {
    let mut steps: Vec<(usize, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix(' '), steps.last_mut()) {
            (Some(rest), Some((_, step))) => step.push_str(rest.trim_start()),
            _ => steps.push((number, line.to_owned())),
        }
    }
    steps
}

/// Builds the frame that a step sends: `> TEXT`, `> binary 00 01` or `> close 1000 "reason"`.
fn client_frame(text: &str) -> Vec<u8> {
    match text.split_once(' ') {
        Some(("binary", bytes)) => masked(0x82, &hex(bytes)),
        Some(("close", rest)) => {
            let (code, reason) = rest.split_once(' ').unwrap_or((rest, ""));
            let code: u16 = code.parse().expect("a close code");
            masked(0x88, &[&code.to_be_bytes(), reason.trim_matches('"').as_bytes()].concat())
        }
        None if text == "close" => masked(0x88, b""),
        _ => masked(0x81, text.as_bytes()),
    }
}

/// Formats a received frame in the notation of the examples in `PROTOCOL.md`.
fn format_frame(frame: &Frame) -> String {
    match frame.opcode() {
        8 => match frame.close() {
            (1005, _) => "close".to_owned(),
            (code, reason) if reason.is_empty() => format!("close {code}"),
            (code, reason) => format!("close {code} \"{reason}\""),
        },
        10 => format!("pong {}", String::from_utf8_lossy(&frame.payload)),
        _ => frame.text().to_owned(),
    }
}

/// Returns the values of the variables in `expected` if `received` matches, and `None` otherwise. In `expected`, `…`
/// and each variable match any text, and a time matches any time. If `known` contains a value for `EPOCH`, then `EPOCH`
/// matches only that value.
fn matches(
    expected: &str,
    received: &str,
    known: &BTreeMap<&'static str, String>,
) -> Option<BTreeMap<&'static str, String>> {
    let (expected, received) = (without_times(expected), without_times(received));
    let mut found = BTreeMap::new();
    let (mut expected, mut received) = (expected.as_str(), received.as_str());
    // `expected` alternates between literals and wildcards (`…` or a variable). `gap` is the wildcard before the next
    // literal. It is `None` before the first literal, which must be at the start of `received`.
    let mut gap: Option<&'static str> = None;
    loop {
        let next = VARIABLES.iter().chain(&["…"]).filter_map(|name| Some((expected.find(name)?, *name))).min();
        let (literal, rest) = next.map_or((expected, ""), |(at, name)| (&expected[..at], &expected[at + name.len()..]));
        let at = match (gap, next) {
            (None, _) => received.starts_with(literal).then_some(0)?,
            (Some(_), None) => received.ends_with(literal).then(|| received.len() - literal.len())?,
            (Some(_), Some(_)) => received.find(literal)?,
        };
        if let Some(name) = gap.filter(|name| *name != "…") {
            let value = received[..at].to_owned();
            if known.get(name).is_some_and(|known| is_constant(name) && *known != value) {
                return None;
            }
            found.insert(name, value);
        }
        received = &received[at + literal.len()..];
        let Some((_, name)) = next else { return received.is_empty().then_some(found) };
        (expected, gap) = (rest, Some(name));
    }
}

/// Whether a variable must have the same value in all examples under one heading of `PROTOCOL.md`. A room's epoch must.
/// A session or ticket need not, because the server creates a new one for each connection.
fn is_constant(name: &str) -> bool {
    name == "EPOCH"
}

/// Replaces every RFC 3339 time (in UTC, with milliseconds) with [`ANY_TIME`].
fn without_times(text: &str) -> String {
    let mut parts: Vec<&str> = text.split('"').collect();
    for part in &mut parts {
        if part.len() == 24 && part.ends_with('Z') && humantime::parse_rfc3339(part).is_ok() {
            *part = ANY_TIME;
        }
    }
    parts.join("\"")
}
