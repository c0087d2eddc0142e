//! Tests the server's responses to hostile and unusual HTTP requests (RFC 6455 §4.2, RFC 9112).
//!
//! The requests come from the cases of `wirechat poke` and from the tables below. The expected responses follow the
//! RFCs and PROTOCOL.md, not the code. The client sends each request twice: in one write, and in small pieces. After
//! each request, the server must still serve other clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::http::{Response, get, handshake};
use support::table::{Cut, each_row};
use support::watched::WitnessedServer;
use support::{ACCEPT, KEY};
use wirechat::tools::poke::case::{Case, End, Opening};
use wirechat::tools::poke::catalogue;
use wirechat::tools::poke::request;
use wirechat::tools::url::Url;

struct Row {
    id: &'static str,
    request: Vec<u8>,
    expected: Expected,
}

fn row(id: &'static str, request: impl Into<Vec<u8>>, expected: Expected) -> Row {
    Row { id, request: request.into(), expected }
}

struct Expected {
    /// Any one of these statuses passes, because the RFCs sometimes permit several.
    statuses: Vec<u16>,
    /// Names and values of headers that the response must have.
    with: Vec<(&'static str, &'static str)>,
    /// Names of headers that the response must not have.
    without: Vec<&'static str>,
    body: Body,
}

enum Body {
    /// A text/plain body that contains all of these words.
    Contains(Vec<&'static str>),
    Is(&'static str),
    Page,
    JsonObject,
    Nothing,
}

/// Expects a 101 response without a subprotocol or an extension.
fn upgrades() -> Expected {
    let without = vec!["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Content-Length", "Transfer-Encoding"];
    let with = vec![("Sec-WebSocket-Accept", ACCEPT)];
    Expected { statuses: vec![101], with, without, body: Body::Nothing }
}

/// Expects a 101 response to a key whose unused base64 bits are not 0. The server computes the accept value from the
/// key's text, not from the decoded bytes.
fn upgrades_with_stray_bits() -> Expected {
    Expected { with: vec![("Sec-WebSocket-Accept", "Zgw8jYXtqX5qJr7MJ1Q/MqzeSRI=")], ..upgrades() }
}

fn upgrades_with(protocol: &'static str) -> Expected {
    let mut expected = upgrades();
    expected.without.retain(|name| *name != "Sec-WebSocket-Protocol");
    expected.with.push(("Sec-WebSocket-Protocol", protocol));
    expected
}

/// Expects a rejection whose body contains `words`, such as an RFC section or a value from the request.
fn rejects(statuses: &[u16], words: &[&'static str]) -> Expected {
    Expected { statuses: statuses.to_vec(), with: vec![], without: vec![], body: Body::Contains(words.to_vec()) }
}

fn ok(body: Body) -> Expected {
    Expected { statuses: vec![200], with: vec![], without: vec!["Upgrade"], body }
}

fn unauthorized() -> Expected {
    Expected {
        statuses: vec![401],
        with: vec![("WWW-Authenticate", "Bearer")],
        without: vec![],
        body: Body::Is("Unauthorized"),
    }
}

impl Expected {
    fn with(mut self, name: &'static str, value: &'static str) -> Expected {
        self.with.push((name, value));
        self
    }

    fn check(&self, response: &Response) {
        assert!(self.statuses.contains(&response.status), "{:?} expected, got {response:?}", self.statuses);
        for (name, value) in &self.with {
            assert_eq!(response.header(name), *value, "{name} of {response:?}");
        }
        for name in &self.without {
            assert_eq!(response.header(name), "", "no {name} expected: {response:?}");
        }
        match response.status {
            101 => {
                assert_eq!(response.list("Upgrade"), ["websocket"]);
                assert_eq!(response.list("Connection"), ["upgrade"]);
            }
            // A 426 response names the required protocol and version: RFC 9110 §15.5.22, §7.8; RFC 6455 §4.4.
            426 => {
                assert_eq!(response.list("Upgrade"), ["websocket"], "{response:?}");
                assert_eq!(response.list("Connection"), ["upgrade", "close"], "{response:?}");
                assert_eq!(response.header("Sec-WebSocket-Version"), "13", "{response:?}");
            }
            _ => assert_eq!(response.header("Connection"), "close", "{response:?}"),
        }
        self.check_body(response);
    }

    fn check_body(&self, response: &Response) {
        let body = &response.body;
        match &self.body {
            Body::Nothing => assert_eq!(body, "", "no body"),
            Body::Is(text) => assert_eq!(body, text),
            Body::Contains(words) => {
                let kind = response.header("Content-Type");
                assert!(kind.starts_with("text/plain"), "plain text, not {kind:?}");
                assert!(!body.is_empty() && body.len() < 1024, "a sentence or two: {body:?}");
                for word in words {
                    assert!(body.contains(word), "the body contains {word:?}: {response:?}");
                }
            }
            Body::Page => {
                assert!(response.header("Content-Type").starts_with("text/html"), "{response:?}");
                let page = concat!(env!("CARGO_MANIFEST_DIR"), "/client.html");
                let page = std::fs::read_to_string(page).expect("client.html exists");
                assert!(*body == page, "the page is client.html, byte for byte");
            }
            Body::JsonObject => {
                assert!(response.header("Content-Type").starts_with("application/json"), "{response:?}");
                let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
                assert!(json.is_object() && body.len() < 1024, "a small object: {body}");
            }
        }
        if !matches!(self.body, Body::Nothing) {
            assert_eq!(response.header("Content-Length"), body.len().to_string(), "{response:?}");
        }
    }
}

/// Sends the request from one row of a test table, and checks the whole response. Then checks that other clients can
/// still chat.
fn play(server: &mut WitnessedServer, row: &Row, cut: Cut) {
    let mut client = server.connect();
    server.send(&mut client, &row.request, cut);
    let mut response = Response::parse(client.read_head().as_bytes());
    response.body = match response.status {
        101 => String::new(),
        // After a 200, the server does not read bytes that follow the request, so its close may cause a TCP reset.
        200 => String::from_utf8(client.read_to_end()).unwrap(),
        _ => String::from_utf8(client.read_to_clean_end()).unwrap(),
    };
    row.expected.check(&response);
    server.check_chat();
}

fn run(mut server: WitnessedServer, rows: &[Row]) {
    let rows: Vec<(&Row, Cut)> = Cut::BOTH.iter().flat_map(|cut| rows.iter().map(|row| (row, *cut))).collect();
    each_row(&rows, |(row, cut)| format!("{} ({cut:?})", row.id), |(row, cut)| play(&mut server, row, *cut));
    server.finish(&["wrong-7f3a", "a-secret"]);
}

/// Runs the cases of `wirechat poke` that change the opening request.
#[test]
fn the_catalogue() {
    let url = Url::parse("ws://127.0.0.1/echo?token=dev-token").unwrap();
    let rows: Vec<Row> = catalogue::all_cases().filter_map(|case| row_of(case, &url)).collect();
    assert!(rows.len() >= 30, "{} cases", rows.len());
    run(WitnessedServer::start(&[]), &rows);
}

fn row_of(case: &Case, url: &Url) -> Option<Row> {
    let Opening::Edited(edits) = case.opening else { return None };
    let expected = match case.end {
        End::Open if case.name == "key-with-stray-bits" => upgrades_with_stray_bits(),
        End::Open => upgrades(),
        End::ListsVersion => rejects(&[426], &["§4.4"]),
        End::Status(401) => unauthorized(),
        End::Status(405) => not_allowed("GET"),
        // The body of a 403 or 404 need not cite an RFC section.
        End::Status(status @ (403 | 404)) => rejects(&[status], &[]),
        End::Status(status) => rejects(&[status], &[chapter(case.rule.0)]),
        _ => return None,
    };
    Some(row(case.name, request::build_request(url, KEY, edits), expected))
}

/// Shortens a section number to its top level: `§4.2.1` becomes `§4`. The server's rejection may cite a different
/// subsection of that section than the test case does.
fn chapter(section: &'static str) -> &'static str {
    section.split('.').next().unwrap_or(section)
}

#[test]
fn upgrade_headers() {
    run(WitnessedServer::start(&[]), &upgrade_rows());
}

/// RFC 6455 §4.2.1, items 1, 3 and 4: the request line, `Upgrade` and `Connection`.
#[rustfmt::skip]
fn upgrade_rows() -> Vec<Row> {
    let hs = handshake;
    vec![
        row("the valid request", hs(), upgrades()),
        row("on /echo", hs().target("/echo?token=dev-token"), upgrades()),
        row("no white space in the list", hs().set("Connection: keep-alive,Upgrade"), upgrades()),
        row("Upgrade is a list", hs().set("Upgrade: h2c, websocket"), upgrades()),
        row("two Connection lines", hs().set("Connection: close").add("Connection: Upgrade"), upgrades()),
        row("two Upgrade lines", hs().set("Upgrade: h2c").add("Upgrade: websocket"), upgrades()),
        row("Upgradex", hs().set("Connection: Upgradex"), rejects(&[400], &["§4.2.1"])),
        row("websocketx", hs().target("/echo").set("Upgrade: websocketx"), rejects(&[426], &["§"])),
        row("PUT", hs().method("PUT"), not_allowed("GET, HEAD")),
        row("OPTIONS", hs().method("OPTIONS"), not_allowed("GET, HEAD")),
        row("get", hs().method("get"), not_allowed("GET, HEAD")),
        row("HEAD /echo", hs().method("HEAD").target("/echo?token=dev-token"), head_not_allowed()),
        row("HEAD /", hs().method("HEAD"), ok(Body::Nothing)),
        row("HTTP/1.2", hs().version("HTTP/1.2"), rejects(&[505], &["§15.6.6"])),
        row("HTTP/2.0", hs().version("HTTP/2.0"), rejects(&[505], &["§15.6.6"])),
        row("HTTP/0.9", hs().version("HTTP/0.9"), rejects(&[505], &["§15.6.6"])),
        row("HTTP/1.1x", hs().version("HTTP/1.1x"), rejects(&[400, 505], &["§"])),
        row("http/1.1", hs().version("http/1.1"), rejects(&[400], &["§"])),
    ]
}

fn not_allowed(methods: &'static str) -> Expected {
    rejects(&[405], &["§4.2.1"]).with("Allow", methods)
}

/// A response to HEAD has no body, whatever its status (RFC 9110 §9.3.2).
fn head_not_allowed() -> Expected {
    Expected { body: Body::Nothing, ..not_allowed("GET") }
}

#[test]
fn keys_and_versions() {
    run(WitnessedServer::start(&[]), &key_and_version_rows());
}

/// RFC 6455 §4.2.1, items 5 and 6: the key and the version.
#[rustfmt::skip]
fn key_and_version_rows() -> Vec<Row> {
    let hs = handshake;
    let version = |value: &str| hs().set(&format!("Sec-WebSocket-Version: {value}"));
    let key = |value: &str| hs().set(&format!("Sec-WebSocket-Key: {value}"));
    let needs_13 = || rejects(&[426], &["§4"]);
    let bad_key = || rejects(&[400], &["§4.2.1", "Sec-WebSocket-Key"]);
    vec![
        row("12", version("12"), needs_13()),
        row("13, 8", version("13, 8"), needs_13()),
        row("+13", version("+13"), needs_13()),
        row("013", version("013"), needs_13()),
        row("an empty version", version(""), needs_13()),
        row("white space around the version", version("  13 "), upgrades()),
        row("13 twice", hs().add("Sec-WebSocket-Version: 13"), rejects(&[400], &["§11.3.5"])),
        row("a key of 0 bytes", key(""), bad_key()),
        row("the URL alphabet", key("dGhlIHNhbXBsZSBub25_ZQ=="), bad_key()),
        row("no padding", key("dGhlIHNhbXBsZSBub25jZQ"), bad_key()),
        row("half its padding", key("dGhlIHNhbXBsZSBub25jZQ="), bad_key()),
        row("a space inside the key", key("dGhlIHNhbXBs ZSBub25jZQ=="), bad_key()),
        row("white space around the key", key("  dGhlIHNhbXBsZSBub25jZQ== \t"), upgrades()),
    ]
}

#[test]
fn heads_that_are_not_http() {
    run(WitnessedServer::start(&[]), &syntax_rows());
}

/// RFC 9112 §2.2, §5: line endings, white space and control characters in the wrong places.
#[rustfmt::skip]
fn syntax_rows() -> Vec<Row> {
    let hs = handshake;
    let bad = || rejects(&[400], &["§"]);
    let text = || String::from_utf8(hs().bytes()).unwrap();
    let value = |bytes: &[u8]| hs().add([b"X-Odd: a", bytes, b"b"].concat());
    vec![
        row("obs-fold with a tab", hs().add("X-Odd: a\r\n\tb"), bad()),
        row("obs-fold in Connection", hs().set("Connection: keep-alive,\r\n Upgrade"), bad()),
        row("a space before the colon", hs().without("Host").add("Host : 127.0.0.1"), bad()),
        row("a space before the first name", text().replacen("Host", " Host", 1), bad()),
        row("no name", hs().add(": a"), bad()),
        row("no colon", hs().add("nonsense"), bad()),
        row("a space in a header name", hs().add("X Odd: a"), bad()),
        row("bare LF once", text().replacen("\r\n", "\n", 1), bad()),
        row("bare LF between two headers", text().replace("websocket\r\n", "websocket\n"), bad()),
        row("bare LF at the very end", text().replace("\r\n\r\n", "\r\n\n"), bad()),
        row("bare LF before the request", format!("\n{}", text()), bad()),
        row("bare CR", value(b"\r"), bad()),
        row("ESC", value(b"\x1b[2J"), bad()),
        row("DEL", value(b"\x7f"), bad()),
        row("BEL in the target", hs().target("/\x07?token=dev-token"), bad()),
        row("ESC in the target", hs().target("/\x1b[2J"), bad()),
        row("a byte above ASCII in the target", hs().target("/?token=dev-token&room=é"), bad()),
        row("a space in the target", hs().target("/?token=dev-token&room=a b"), bad()),
        row("a tab in a value is allowed", value(b"\t"), upgrades()),
        row("bytes above ASCII in a value are allowed", value(b"\xff\x80"), upgrades()),
        row("ten blank lines first", ["\r\n".repeat(10), text()].concat(), upgrades()),
        row("no version", "GET /\r\n\r\n", bad()),
        row("an empty request line", " \r\n\r\n", bad()),
    ]
}

#[test]
fn bodies_and_what_follows() {
    run(WitnessedServer::start(&[]), &body_rows());
}

/// RFC 9112 §6: the server rejects a request that has a body, and never reads a second request on a connection.
#[rustfmt::skip]
fn body_rows() -> Vec<Row> {
    let hs = handshake;
    let bad = || rejects(&[400], &["§"]);
    let wrong = || hs().without("Sec-WebSocket-Key");
    vec![
        row("Content-Length: 0 is no body", hs().add("Content-Length: 0"), upgrades()),
        row("Content-Length: -1", hs().add("Content-Length: -1"), bad()),
        row("Content-Length: many", hs().add("Content-Length: many"), bad()),
        row("Content-Length: 0 and 5", hs().add("Content-Length: 0").add("Content-Length: 5").followed_by("hello"), bad()),
        row("Content-Length on a plain GET", get("/").add("Content-Length: 5").followed_by("hello"), bad()),
        row("Transfer-Encoding: identity", hs().add("Transfer-Encoding: identity"), bad()),
        row("Content-Length and Transfer-Encoding", hs().add("Content-Length: 0").add("Transfer-Encoding: chunked"), bad()),
        // The client reads to the end of the stream and checks Content-Length, so a second response fails the test.
        row("rejected, and another request", wrong().followed_by(hs().bytes()), rejects(&[400], &["§4.2.1"])),
        row("rejected, and the page", wrong().followed_by(get("/").bytes()), rejects(&[400], &["§4.2.1"])),
        row("health, twice", get("/health").followed_by(get("/health").bytes()), ok(Body::JsonObject)),
    ]
}

#[test]
fn heads_that_are_too_long() {
    run(WitnessedServer::start(&[]), &length_rows());
}

/// A request head may have up to 8 KiB and 64 headers. The request from `handshake` already has five headers.
#[rustfmt::skip]
fn length_rows() -> Vec<Row> {
    let hs = handshake;
    let nine_kib = "x".repeat(9 * 1024);
    let too_large = || rejects(&[431], &["RFC 6585", "§5"]);
    let with = |count| (0..count).fold(hs(), |request, i| request.add(format!("X-{i}: y")));
    vec![
        row("9 KiB of blank lines", ["\r\n".repeat(4608).into_bytes(), hs().bytes()].concat(), too_large()),
        row("a name of 9 KiB", hs().add(format!("{nine_kib}: x")), too_large()),
        row("a head of 8 KiB", hs().padded_to(8192), upgrades()),
        row("a head of 8 KiB and one byte", hs().padded_to(8193), too_large()),
        row("a header without an end", format!("GET / HTTP/1.1\r\nX: {nine_kib}"), too_large()),
        row("nothing but letters", nine_kib.clone(), rejects(&[414], &["§15.5.15"])),
        row("64 headers", with(59), upgrades()),
        row("2,000 headers", with(2000), too_large()),
    ]
}

/// Without a limit on the size of the request head, a server that parses the whole head again after each read would
/// spend minutes on a head of 20 MB.
#[test]
fn a_head_of_20_mb_is_rejected_after_8_kib() {
    let mut server = WitnessedServer::start(&[]);
    let mut client = server.connect();
    let mut writer = support::RawClient::new(client.stream.try_clone().unwrap());
    let flood = std::thread::spawn(move || {
        writer.send(b"GET / HTTP/1.1\r\nX: ");
        for _ in 0..320 {
            writer.try_send(&[b'x'; 64 * 1024]);
        }
    });
    let response = client.read_response();
    rejects(&[431], &["RFC 6585", "§5"]).check(&response);
    flood.join().unwrap();
    server.check_chat();
    server.finish(&[]);
}

#[test]
fn other_protocols_are_named_in_the_log() {
    let mut hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03".to_vec();
    hello.resize(205, 0x2a);
    let rows = [
        ("TLS", hello),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
    ];
    let mut server = WitnessedServer::start(&[]);
    let name = |row: &(&str, Vec<u8>)| row.0.to_owned();
    each_row(&rows, name, |(protocol, bytes)| {
        let mut client = server.connect();
        client.send(bytes);
        let response = client.read_to_clean_end();
        let statuses: &[u16] = if *protocol == "HTTP/2" { &[400, 505] } else { &[400] };
        assert!(response.is_empty() || statuses.contains(&Response::parse(&response).status), "400, or no response");
        server.wait_for_log(protocol);
        server.check_chat();
    });
    server.finish(&[]);
}

/// A client may send its first frame in the same write as the request head.
#[test]
fn a_frame_after_the_head_is_received() {
    let mut server = WitnessedServer::start(&[]);
    for cut in Cut::BOTH {
        let mut client = server.connect();
        let request = handshake().target("/echo?token=dev-token").followed_by(support::table::hex("81 82 M0 'hi'"));
        server.send(&mut client, &request.bytes(), cut);
        client.read_head();
        assert_eq!(client.read_text(), "hi");
    }
    let mut client = server.connect();
    let message = support::masked(0x81, br#"{"event":"message","data":{"text":"at once"}}"#);
    client.send(&handshake().followed_by(message).bytes());
    client.read_head();
    assert_eq!(client.read_event("message")["text"], "at once");
    server.finish(&[]);
}

#[test]
fn subprotocols() {
    run(WitnessedServer::start(&[]), &subprotocol_rows());
}

/// RFC 6455 §4.2.2, §1.9: the server selects the endpoint's subprotocol if the client offers it, and otherwise none.
#[rustfmt::skip]
fn subprotocol_rows() -> Vec<Row> {
    let offer = |names: &str| handshake().add(format!("Sec-WebSocket-Protocol: {names}"));
    let echo = |names: &str| offer(names).target("/echo?token=dev-token");
    let bad = || rejects(&[400], &["§", "Sec-WebSocket-Protocol"]);
    let two_lines = |a: &str, b: &str| offer(a).add(format!("Sec-WebSocket-Protocol: {b}"));
    vec![
        row("the subprotocol of the endpoint", offer("chat.events"), upgrades_with("chat.events")),
        row("among others", offer("chat.v1, chat.events, x"), upgrades_with("chat.events")),
        row("on a second line", two_lines("x", "chat.events"), upgrades_with("chat.events")),
        row("on /echo", echo("chat.events, echo"), upgrades_with("echo")),
        row("another endpoint's", echo("chat.events"), upgrades()),
        row("/echo's on the chat", offer("echo"), upgrades()),
        row("the same twice", offer("chat.events, chat.events"), bad()),
        row("twice on two lines", two_lines("x", "x"), bad()),
        row("a space in a name", offer("chat events"), bad()),
        row("not a token", offer("chat@home"), bad()),
        row("quoted", offer("\"chat.events\""), bad()),
        row("nothing offered", offer(""), bad()),
        row("thousands of spaces", offer(&format!("b{}x", " ".repeat(7000))), bad()),
    ]
}

#[test]
fn extensions() {
    run(WitnessedServer::start(&[]), &extension_rows());
}

/// RFC 6455 §9.1: without `--deflate`, the server declines every extension. The server rejects a malformed list.
#[rustfmt::skip]
fn extension_rows() -> Vec<Row> {
    let offer = |extensions: &str| handshake().add(format!("Sec-WebSocket-Extensions: {extensions}"));
    let bad = || rejects(&[400], &["§", "Sec-WebSocket-Extensions"]);
    vec![
        row("permessage-deflate", offer("permessage-deflate; client_max_window_bits"), upgrades()),
        row("with a value", offer("permessage-deflate; server_max_window_bits=10, x-other"), upgrades()),
        row("with a quoted value", offer("x-other; a=\"b\""), upgrades()),
        row("two lines", offer("a").add("Sec-WebSocket-Extensions: b"), upgrades()),
        row("a name that is a property in JavaScript", offer("constructor"), upgrades()),
        row("a parameter without a name", offer("permessage-deflate; ;"), bad()),
        row("an extension without a name", offer("; a=b"), bad()),
        row("a name without its value", offer("permessage-deflate; a="), bad()),
        row("an open quote", offer("permessage-deflate; a=\"b"), bad()),
        row("quoted, but not a token", offer("permessage-deflate; a=\"b c\""), bad()),
        row("two words", offer("permessage deflate"), bad()),
        row("an empty list", offer(""), bad()),
    ]
}

#[test]
fn targets() {
    run(WitnessedServer::start(&[]), &target_rows());
}

/// Request targets: paths, queries, and absolute-form (RFC 9112 §3.2.2).
#[rustfmt::skip]
fn target_rows() -> Vec<Row> {
    let to = |target: &str| handshake().target(target);
    let query = |rest: &str| handshake().target(format!("/?token=dev-token&{rest}"));
    let bad = || rejects(&[400], &[]);
    vec![
        row("/nope", to("/nope?token=dev-token"), rejects(&[404], &[])),
        row("/echo/", to("/echo/?token=dev-token"), rejects(&[404], &[])),
        row("/echo/x", to("/echo/x?token=dev-token"), rejects(&[404], &[])),
        row("//", to("//?token=dev-token"), rejects(&[404], &[])),
        row("/ECHO", to("/ECHO?token=dev-token"), rejects(&[404], &[])),
        row("/..%2f", to("/..%2f?token=dev-token"), rejects(&[400, 404], &[])),
        row("/%", to("/%?token=dev-token"), rejects(&[400, 404], &[])),
        row("/%zz", to("/%zz?token=dev-token"), rejects(&[400, 404], &[])),
        row("a lone % in a room", query("room=%"), bad()),
        row("half a % in a room", query("room=a%2"), bad()),
        row("%zz in a room", query("room=%zz"), bad()),
        row("%+1 in a room", query("room=%+1"), bad()),
        row("%00 in a room", query("room=%00"), bad()),
        row("not UTF-8 in a name", query("username=%ff"), bad()),
        row("a surrogate in a room", query("room=%ed%a0%80"), bad()),
        row("% in the token", to("/?token=%zz"), rejects(&[400, 401], &[])),
        row("a fragment", to("/?token=dev-token#x"), rejects(&[400], &["#"])),
        row("absolute-form with a port", to("http://localhost:81/?token=dev-token"), upgrades()),
        row("absolute-form, foreign", to("http://evil.example/?token=dev-token"), rejects(&[403], &["evil.example"])),
        row(
            "absolute-form, its Host foreign",
            to("http://127.0.0.1/?token=dev-token").set("Host: evil.example"),
            rejects(&[403], &["evil.example"]),
        ),
        row("the first token wins", to("/?token=dev-token&token=wrong-7f3a"), upgrades()),
        row("even if it is wrong", to("/?token=wrong-7f3a&token=dev-token"), unauthorized()),
        row("the first room wins", query("room=a&room=%00"), upgrades()),
        row("?token", to("/?token"), unauthorized()),
        row("?=&&", to("/?=&&"), unauthorized()),
        row("?=&& and a token", to("/?=&&token=dev-token"), upgrades()),
        row("a token in the fragment does not count", to("/#?token=dev-token"), rejects(&[400, 401, 404], &[])),
    ]
}

#[test]
fn plain_requests() {
    run(WitnessedServer::start(&[]), &non_upgrade_rows());
}

/// Requests that do not lead to an upgrade, such as page loads and health checks.
#[rustfmt::skip]
fn non_upgrade_rows() -> Vec<Row> {
    let health = || ok(Body::JsonObject);
    let needs_upgrade = || rejects(&[426], &["§"]);
    vec![
        row("/echo", get("/echo?token=dev-token"), needs_upgrade()),
        row("/echo without a token", get("/echo"), needs_upgrade()),
        row("/echo with another Upgrade", handshake().target("/echo").set("Upgrade: h2c"), needs_upgrade()),
        row("/", get("/"), ok(Body::Page)),
        row("/ with a query", get("/?username=bot&room=%zz"), ok(Body::Page)),
        row("/ with another Upgrade", handshake().set("Upgrade: h2c"), ok(Body::Page)),
        row("HEAD /", get("/").method("HEAD"), ok(Body::Nothing)),
        row("/ over 1.0", get("/").version("HTTP/1.0"), ok(Body::Page)),
        row("/ over 1.0, no Host", get("/").version("HTTP/1.0").without("Host"), ok(Body::Page)),
        row("/health", get("/health"), health()),
        row("/health with an upgrade", handshake().target("/health"), health()),
        row("HEAD /health", get("/health").method("HEAD"), ok(Body::Nothing)),
        row("HEAD /health with an upgrade", handshake().method("HEAD").target("/health"), ok(Body::Nothing)),
        row("POST /health", get("/health").method("POST"), not_allowed("GET, HEAD")),
        row("/check", get("/check?token=dev-token"), health()),
        row("/check without a token", get("/check"), health()),
        row("/check with an upgrade", handshake().target("/check?token=dev-token"), health()),
        row("/check over 1.0", get("/check").version("HTTP/1.0"), health()),
        row("HEAD /check with an upgrade", handshake().method("HEAD").target("/check"), ok(Body::Nothing)),
        row("POST /check", get("/check?token=a-secret").method("POST"), not_allowed("GET, HEAD")),
        row("a foreign Host at /check", get("/check?token=a-secret").set("Host: evil.example"), rejects(&[403], &["evil.example"])),
    ]
}

/// If a request breaks several rules, the response reports the first one. The row names begin with the rules' step
/// numbers from the table in `src/chat/PROTOCOL.md`.
#[test]
#[rustfmt::skip]
fn the_first_broken_rule_decides() {
    let hs = handshake;
    let foreign_host = "Host: evil.example";
    let foreign_origin = "Origin: https://evil.example";
    let long = "x".repeat(9000);
    let key = || rejects(&[400], &["Sec-WebSocket-Key"]);
    let two_hosts = || rejects(&[400], &["Host"]);
    let body = || hs().add("Content-Length: 5").followed_by("hello");
    let bad_name = "/?token=dev-token&username=%00";
    let wrong_token = "/?token=wrong-7f3a&username=%00";
    let no_key = || hs().without("Sec-WebSocket-Key");
    run(
        WitnessedServer::start(&[]),
        &[
            row("1 before 2: too long, no Host", hs().without("Host").add(long), rejects(&[431], &[])),
            row("1 before 2: a body, a foreign Host", body().set(foreign_host), rejects(&[400], &[])),
            row("1 before 2: HTTP/1.2, a foreign Host", hs().version("HTTP/1.2").set(foreign_host), rejects(&[505], &[])),
            row("1 before 3: a body, POST", body().method("POST"), rejects(&[400], &[])),
            row("2 before 3: two Hosts, POST", hs().add("Host: 127.0.0.1").method("POST"), two_hosts()),
            row("2 before 3: a foreign Host, POST", hs().set(foreign_host).method("POST"), rejects(&[403], &["evil.example"])),
            row("2 before 5: a foreign Host, the page", get("/").set(foreign_host), rejects(&[403], &["evil.example"])),
            row("2 before 5: no Host, health", get("/health").without("Host"), two_hosts()),
            row("3 before 4: POST, unknown path", hs().method("POST").target("/nope"), rejects(&[405], &[])),
            row("4 before 5: unknown path, no Upgrade", get("/nope"), rejects(&[404], &[])),
            row("4 before 9: unknown path, no token", hs().target("/nope"), rejects(&[404], &[])),
            row("5 before 6: no Upgrade, HTTP/1.0", get("/echo").version("HTTP/1.0"), rejects(&[426], &[])),
            row("6: HTTP/1.0, version 8", hs().version("HTTP/1.0").set("Sec-WebSocket-Version: 8"), rejects(&[400], &["1.0"])),
            row(
                "6: no Connection, version 8",
                hs().without("Connection").set("Sec-WebSocket-Version: 8"),
                rejects(&[400], &["Connection"]),
            ),
            row("6 before 7: version 8, no key", no_key().set("Sec-WebSocket-Version: 8"), rejects(&[426], &[])),
            row("7 before 8: no key, two Origins", no_key().add(foreign_origin).add("Origin: null"), key()),
            row("7 before 8: no key, a foreign Origin", no_key().add(foreign_origin), key()),
            row(
                "7 before 8: a protocol twice, a foreign Origin",
                hs().add("Sec-WebSocket-Protocol: x, x").add(foreign_origin),
                rejects(&[400], &["Sec-WebSocket-Protocol"]),
            ),
            row("8 before 9: two Origins, no token", hs().target("/").add(foreign_origin).add("Origin: null"), rejects(&[400], &["Origin"])),
            row("8 before 9: a foreign Origin, no token", hs().target("/").add(foreign_origin), rejects(&[403], &["evil.example"])),
            row("9 before 10: a wrong token, a bad name", hs().target(wrong_token), unauthorized()),
            row("10: a bad name", hs().target(bad_name), rejects(&[400], &["username"])),
        ],
    );
}

/// The server checks `--max-connections` last, in step 11 of the table in `src/chat/PROTOCOL.md`.
#[test]
fn max_connections_is_checked_last() {
    // `WitnessedServer` itself opens three connections. With `--max-connections 3`, the server is then full.
    let full = || rejects(&[503], &[]);
    let server = WitnessedServer::start(&["--max-connections", "3"]);
    let rows = [
        row("full", handshake(), full()),
        row("full, /echo", handshake().target("/echo?token=dev-token"), full()),
        row("9 before 11: full, a wrong token", handshake().target("/?token=wrong-7f3a"), unauthorized()),
        row("10 before 11: full, a bad name", handshake().target("/?token=dev-token&room=%00"), rejects(&[400], &[])),
        row("5 before 11: full, health", get("/health"), ok(Body::JsonObject)),
    ];
    let retry = retry_after(&server);
    assert!(retry.parse::<u32>().is_ok_and(|seconds| seconds > 0), "Retry-After is in seconds: {retry:?}");
    run(server, &rows);
}

fn retry_after(server: &WitnessedServer) -> String {
    let mut client = server.connect();
    client.send(&handshake().bytes());
    client.read_response().header("Retry-After").to_owned()
}

#[test]
fn hosts() {
    run(WitnessedServer::start(&[]), &host_rows());
    let host = |name: &str| handshake().set(&format!("Host: {name}"));
    let foreign = || rejects(&[403], &["other.example"]);
    run(
        WitnessedServer::start(&["--allow-host", "chat.example", "--open"]),
        &[
            row("allowed", host("chat.example"), upgrades()),
            row("allowed, any port", host("chat.example:8443"), upgrades()),
            row("allowed, other letter case", host("Chat.Example"), upgrades()),
            row("loopback names stay allowed", host("localhost"), upgrades()),
            row("another", host("other.example"), foreign()),
            row("a longer name", host("chat.example.other.example"), foreign()),
        ],
    );
    let any = [row("any host", host("other.example"), upgrades())];
    run(WitnessedServer::start(&["--allow-host", "*", "--open"]), &any);
}

/// A request needs exactly one `Host`. On a loopback listener, `Host` must be a loopback name, with any port.
#[rustfmt::skip]
fn host_rows() -> Vec<Row> {
    let host = |name: &str| handshake().set(&format!("Host: {name}"));
    let foreign = |name| rejects(&[403], &[name]);
    vec![
        row("no Host, the page", get("/").without("Host"), rejects(&[400], &["§3.2"])),
        row("localhost", host("localhost"), upgrades()),
        row("localhost and a port", host("localhost:3000"), upgrades()),
        row("LocalHost", host("LocalHost"), upgrades()),
        row("127.0.0.1 and a port", host("127.0.0.1:1"), upgrades()),
        row("[::1]", host("[::1]"), upgrades()),
        row("[::1] and a port", host("[::1]:3000"), upgrades()),
        row("evil.example", host("evil.example"), foreign("evil.example")),
        row("evil.example and a port", host("evil.example:3000"), foreign("evil.example")),
        row("a loopback name at the start", host("localhost.evil.example"), foreign("evil.example")),
        row("a loopback address at the start", host("127.0.0.1.evil.example"), foreign("evil.example")),
        row("a loopback name as user information", host("localhost@evil.example"), rejects(&[400, 403], &[])),
        row("a private address", host("192.168.0.1"), foreign("192.168.0.1")),
        row("an address next to loopback", host("[::2]"), foreign("[::2]")),
        row("empty", host(""), rejects(&[400, 403], &[])),
    ]
}

#[test]
fn origins() {
    run(WitnessedServer::start(&[]), &origin_rows());
    let origin = |origin: &str| handshake().add(format!("Origin: {origin}"));
    let rejected = || rejects(&[403], &["--allow-origin"]);
    run(
        WitnessedServer::start(&["--allow-origin", "https://good.example", "--allow-origin", "http://also.example:81"]),
        &[
            row("allowed", origin("https://good.example"), upgrades()),
            row("allowed too", origin("http://also.example:81"), upgrades()),
            row("another scheme", origin("http://good.example"), rejected()),
            row("another port", origin("https://good.example:8443"), rejected()),
            row("no port", origin("http://also.example"), rejected()),
            row("a subdomain", origin("https://sub.good.example"), rejected()),
            row("a name with the same beginning", origin("https://good.example.evil.example"), rejected()),
            row("another", origin("https://evil.example"), rejected()),
            row("null stays allowed on loopback", origin("null"), upgrades()),
        ],
    );
    let any = [row("any", origin("https://evil.example"), upgrades()), row("any: null", origin("null"), upgrades())];
    run(WitnessedServer::start(&["--allow-origin", "*"]), &any);
}

/// Test table for the `Origin` header. The server listens on a loopback address and requires a token.
#[rustfmt::skip]
fn origin_rows() -> Vec<Row> {
    let origin = |origin: &str| handshake().set("Host: localhost:3000").add(format!("Origin: {origin}"));
    let rejected = |seen| rejects(&[403], &[seen, "--allow-origin"]);
    let long = format!("http://{}", "a".repeat(4096));
    vec![
        row("none", handshake(), upgrades()),
        row("null", origin("null"), upgrades()),
        row("foreign", origin("https://evil.example"), rejected("https://evil.example")),
        row("foreign on /echo", origin("https://evil.example").target("/echo?token=dev-token"), rejected("https://evil.example")),
        row("the server's own", origin("http://localhost:3000"), upgrades()),
        row("another port", origin("http://localhost:3001"), rejected("http://localhost:3001")),
        row("no port", origin("http://localhost"), rejected("http://localhost")),
        row("another loopback name", origin("http://127.0.0.1:3000"), rejected("http://127.0.0.1:3000")),
        row("another scheme", origin("https://localhost:3000"), rejected("https://localhost:3000")),
        row("a longer port", origin("http://localhost:30001"), rejected("http://localhost:30001")),
        row("a longer name", origin("http://localhost:3000.evil.example"), rejects(&[403], &["--allow-origin"])),
        row("the server's own in a query", origin("http://evil.example?http://localhost:3000"), rejects(&[403], &["--allow-origin"])),
        row("the server's own as user information", origin("http://localhost:3000@evil.example"), rejects(&[403], &["--allow-origin"])),
        row("not an origin", origin("nonsense"), rejects(&[403], &["--allow-origin"])),
        row("empty", origin(""), rejects(&[403], &["--allow-origin"])),
        row("two in one", origin("http://localhost:3000 https://evil.example"), rejects(&[403], &["--allow-origin"])),
        row("two lines", origin("null").add("Origin: null"), rejects(&[400], &["Origin"])),
        row("4 KiB", origin(&long), rejects(&[400, 403], &[])),
    ]
}

/// By default, the server allows the origin `null` only on a loopback listener that requires a token: a page opened
/// from disk has the origin `null`, but so does a sandboxed frame of any website.
#[test]
fn the_null_origin_on_open_and_public_servers() {
    let null = || handshake().target("/?token=a-secret").add("Origin: null");
    let rejected = || rejects(&[403], &["null", "--allow-origin"]);
    run_with("a-secret", "127.0.0.1:0", &["--open"], &[row("--open", null(), rejected())]);
    run_with(
        "a-secret",
        "127.0.0.1:0",
        &["--open", "--allow-origin", "null"],
        &[row("--open, allowed", null(), upgrades())],
    );
    let tokens = support::token_file("public", "a-secret\n");
    let tokens = tokens.to_str().unwrap();
    let rows = [
        row("a public bind", null(), rejected()),
        row("any host on a public bind", null().without("Origin").set("Host: evil.example"), upgrades()),
    ];
    run_with("a-secret", "0.0.0.0:0", &["--tokens", tokens], &rows);
    let rows = [row("a public bind, allowed", null(), upgrades())];
    run_with("a-secret", "0.0.0.0:0", &["--tokens", tokens, "--allow-origin", "null"], &rows);
}

fn run_with(token: &str, listen: &str, args: &[&str], rows: &[Row]) {
    let args = [args, &["--rate-limit", "0"]].concat();
    run(WitnessedServer::new(support::Server::start_at(listen, &args), token), rows);
}

/// A missing token and every wrong token get the same 401 response.
#[test]
#[rustfmt::skip]
fn tokens() {
    let token = |query: &str| handshake().target(format!("/?token={query}"));
    let bearer = |value: &str| handshake().target("/").add(format!("Authorization: {value}"));
    let rows = [
        row("token-alice", token("token-alice"), upgrades()),
        row("token-bob", token("token-bob"), upgrades()),
        row("token-carol", token("token-carol"), upgrades()),
        row("encoded", token("dev%2Dtoken"), upgrades()),
        row("none", handshake().target("/"), unauthorized()),
        row("none on /echo", handshake().target("/echo"), unauthorized()),
        row("empty", token(""), unauthorized()),
        row("wrong", token("wrong-7f3a"), unauthorized()),
        row("the beginning of a token", token("dev-toke"), unauthorized()),
        row("a token and one character more", token("dev-token1"), unauthorized()),
        row("other letter case", token("DEV-TOKEN"), unauthorized()),
        row("a space after it", token("dev-token%20"), unauthorized()),
        row("a space before it", token("+dev-token"), unauthorized()),
        row("a NUL after it", token("dev-token%00"), unauthorized()),
        row("two of them", token("dev-token%0atoken-alice"), unauthorized()),
        row("in the header", bearer("Bearer dev-token"), upgrades()),
        row("in the header, scheme in other case", bearer("bearer dev-token"), upgrades()),
        row("in the header, wrong", bearer("Bearer wrong-7f3a"), unauthorized()),
        row("in the header, another scheme", bearer("Basic dev-token"), unauthorized()),
        row("in the header, no scheme", bearer("dev-token"), unauthorized()),
        row("the query's is wrong", token("wrong-7f3a").add("Authorization: Bearer dev-token"), unauthorized()),
        row("the query's is right", token("dev-token").add("Authorization: Bearer wrong-7f3a"), upgrades()),
    ];
    run(WitnessedServer::start(&[]), &rows);
}
