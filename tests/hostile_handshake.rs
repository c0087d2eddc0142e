//! Rude peers at the door: requests with one thing wrong, and the answer each must get (RFC 6455 §4.2, RFC 9112).
//!
//! What everybody should try stands in the catalogue of `wirechat poke`, and its cases are rows here; the tables below
//! have the rest. They are read from the written protocol, not from the code: a row is its name, the request, and the
//! answer. Each request is sent whole and one byte a write, and after each the server must still serve others.

mod support;

use support::http::{Response, get, handshake};
use support::table::{Cut, each_row};
use support::watched::Watched;
use support::{ACCEPT, KEY};
use wirechat::tools::poke::case::{Case, End, Opening};
use wirechat::tools::poke::url::Url;
use wirechat::tools::poke::{catalogue, request};

struct Row {
    id: &'static str,
    request: Vec<u8>,
    answer: Answer,
}

fn row(id: &'static str, request: impl Into<Vec<u8>>, answer: Answer) -> Row {
    Row { id, request: request.into(), answer }
}

/// What must come back.
struct Answer {
    /// One of these.
    statuses: Vec<u16>,
    /// Header lines that must be there, value and all.
    with: Vec<(&'static str, &'static str)>,
    /// Headers that must not be there.
    without: Vec<&'static str>,
    body: Body,
}

enum Body {
    /// Plain text for a person, with these words in it.
    Says(Vec<&'static str>),
    Is(&'static str),
    /// `client.html`.
    Page,
    JsonObject,
    Nothing,
}

/// The upgrade happens, and nothing is negotiated.
fn switches() -> Answer {
    let without = vec!["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Content-Length", "Transfer-Encoding"];
    let with = vec![("Sec-WebSocket-Accept", ACCEPT)];
    Answer { statuses: vec![101], with, without, body: Body::Nothing }
}

/// The key whose last letter has bits that belong to no byte is hashed as it was sent.
fn switches_with_stray_bits() -> Answer {
    Answer { with: vec![("Sec-WebSocket-Accept", "Zgw8jYXtqX5qJr7MJ1Q/MqzeSRI=")], ..switches() }
}

fn switches_with(protocol: &'static str) -> Answer {
    let mut answer = switches();
    answer.without.retain(|name| *name != "Sec-WebSocket-Protocol");
    answer.with.push(("Sec-WebSocket-Protocol", protocol));
    answer
}

/// A refusal whose body has `words` in it: the section, or what was received.
fn refuses(statuses: &[u16], words: &[&'static str]) -> Answer {
    Answer { statuses: statuses.to_vec(), with: vec![], without: vec![], body: Body::Says(words.to_vec()) }
}

fn ok(body: Body) -> Answer {
    Answer { statuses: vec![200], with: vec![], without: vec!["Upgrade"], body }
}

fn unauthorized() -> Answer {
    Answer {
        statuses: vec![401],
        with: vec![("WWW-Authenticate", "Bearer")],
        without: vec![],
        body: Body::Is("Unauthorized"),
    }
}

impl Answer {
    fn with(mut self, name: &'static str, value: &'static str) -> Answer {
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
            // RFC 9110 §15.5.22, §7.8; RFC 6455 §4.4.
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
            Body::Nothing => assert_eq!(body, "", "a head alone"),
            Body::Is(text) => assert_eq!(body, text),
            Body::Says(words) => {
                let kind = response.header("Content-Type");
                assert!(kind.starts_with("text/plain"), "plain text, not {kind:?}");
                assert!(!body.is_empty() && body.len() < 1024, "a sentence or two: {body:?}");
                for word in words {
                    assert!(body.contains(word), "the body says {word:?}: {response:?}");
                }
            }
            Body::Page => {
                assert!(response.header("Content-Type").starts_with("text/html"), "{response:?}");
                let page = concat!(env!("CARGO_MANIFEST_DIR"), "/client.html");
                let page = std::fs::read_to_string(page).expect("client.html is there");
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

/// Sends a row's request, and checks all that comes back.
fn ask(server: &mut Watched, row: &Row, cut: Cut) {
    let mut client = server.connect();
    server.send(&mut client, &row.request, cut);
    let mut response = Response::parse(client.read_head().as_bytes());
    response.body = match response.status {
        101 => String::new(),
        // A page ends its connection without reading on: what a peer sent behind its request may make a reset of that.
        200 => String::from_utf8(client.read_to_end()).unwrap(),
        _ => String::from_utf8(client.read_to_clean_end()).unwrap(),
    };
    row.answer.check(&response);
    server.still_chats();
}

fn run(mut server: Watched, rows: &[Row]) {
    let rows: Vec<(&Row, Cut)> = Cut::BOTH.iter().flat_map(|cut| rows.iter().map(|row| (row, *cut))).collect();
    each_row(&rows, |(row, cut)| format!("{} ({cut:?})", row.id), |(row, cut)| ask(&mut server, row, *cut));
    server.finish(&["wrong-7f3a", "a-secret"]);
}

/// The catalogue of `wirechat poke`: those of its cases that are about the request.
#[test]
fn the_catalogue() {
    let url = Url::parse("ws://127.0.0.1/echo?token=dev-token").unwrap();
    let rows: Vec<Row> = catalogue::all().filter_map(|case| row_of(case, &url)).collect();
    assert!(rows.len() >= 30, "{} cases", rows.len());
    run(Watched::start(&[]), &rows);
}

fn row_of(case: &Case, url: &Url) -> Option<Row> {
    let Opening::Odd(edits) = case.opening else { return None };
    let answer = match case.end {
        End::Open if case.name == "key-with-stray-bits" => switches_with_stray_bits(),
        End::Open => switches(),
        End::NamesVersion => refuses(&[426], &["§4.4"]),
        End::Status(401) => unauthorized(),
        End::Status(405) => not_allowed("GET"),
        // Who is not welcome is told what was seen; everybody else, of the rule too.
        End::Status(status @ (403 | 404)) => refuses(&[status], &[]),
        End::Status(status) => refuses(&[status], &[chapter(case.rule.0)]),
        _ => return None,
    };
    Some(row(case.name, request::bytes(url, KEY, edits), answer))
}

/// `§4` of `§4.2.1`: the answer may name a neighbour.
fn chapter(section: &'static str) -> &'static str {
    section.split('.').next().unwrap_or(section)
}

#[test]
fn upgrade_headers() {
    run(Watched::start(&[]), &upgrade_rows());
}

/// §4.2.1 (1)–(4): the request line, `Upgrade` and `Connection`.
#[rustfmt::skip]
fn upgrade_rows() -> Vec<Row> {
    let hs = handshake;
    vec![
        row("H01 the valid request", hs(), switches()),
        row("H01 on /echo", hs().target("/echo?token=dev-token"), switches()),
        row("H05 no blanks in the list", hs().set("Connection: keep-alive,Upgrade"), switches()),
        row("H06 Upgrade is a list", hs().set("Upgrade: h2c, websocket"), switches()),
        row("H07 two Connection lines", hs().set("Connection: close").add("Connection: Upgrade"), switches()),
        row("H07 two Upgrade lines", hs().set("Upgrade: h2c").add("Upgrade: websocket"), switches()),
        row("H09 Upgradex", hs().set("Connection: Upgradex"), refuses(&[400], &["§4.2.1"])),
        row("H09 websocketx", hs().target("/echo").set("Upgrade: websocketx"), refuses(&[426], &["§"])),
        row("H21 PUT", hs().method("PUT"), not_allowed("GET, HEAD")),
        row("H21 OPTIONS", hs().method("OPTIONS"), not_allowed("GET, HEAD")),
        row("H21 get", hs().method("get"), not_allowed("GET, HEAD")),
        row("H21 HEAD /echo", hs().method("HEAD").target("/echo?token=dev-token"), head_not_allowed()),
        row("H21 HEAD /", hs().method("HEAD"), ok(Body::Nothing)),
        row("H22 HTTP/1.2", hs().version("HTTP/1.2"), refuses(&[505], &["§15.6.6"])),
        row("H22 HTTP/2.0", hs().version("HTTP/2.0"), refuses(&[505], &["§15.6.6"])),
        row("H22 HTTP/0.9", hs().version("HTTP/0.9"), refuses(&[505], &["§15.6.6"])),
        row("H22 HTTP/1.1x", hs().version("HTTP/1.1x"), refuses(&[400, 505], &["§"])),
        row("H22 http/1.1", hs().version("http/1.1"), refuses(&[400], &["§"])),
    ]
}

fn not_allowed(methods: &'static str) -> Answer {
    refuses(&[405], &["§4.2.1"]).with("Allow", methods)
}

/// An answer to HEAD has no body, whatever its status (RFC 9110 §9.3.2).
fn head_not_allowed() -> Answer {
    Answer { body: Body::Nothing, ..not_allowed("GET") }
}

#[test]
fn keys_and_versions() {
    run(Watched::start(&[]), &key_and_version_rows());
}

/// §4.2.1 (5), (6): the key, which is hashed as it was sent, and the version.
#[rustfmt::skip]
fn key_and_version_rows() -> Vec<Row> {
    let hs = handshake;
    let version = |value: &str| hs().set(&format!("Sec-WebSocket-Version: {value}"));
    let key = |value: &str| hs().set(&format!("Sec-WebSocket-Key: {value}"));
    let needs_13 = || refuses(&[426], &["§4"]);
    let bad_key = || refuses(&[400], &["§4.2.1", "Sec-WebSocket-Key"]);
    vec![
        row("H13 12", version("12"), needs_13()),
        row("H13 13, 8", version("13, 8"), needs_13()),
        row("H13 +13", version("+13"), needs_13()),
        row("H13 013", version("013"), needs_13()),
        row("H13 empty", version(""), needs_13()),
        row("H13 blanks around it", version("  13 "), switches()),
        row("H15 13 twice", hs().add("Sec-WebSocket-Version: 13"), refuses(&[400], &["§11.3.5"])),
        row("H18 0 bytes", key(""), bad_key()),
        row("H18 the URL alphabet", key("dGhlIHNhbXBsZSBub25_ZQ=="), bad_key()),
        row("H18 no padding", key("dGhlIHNhbXBsZSBub25jZQ"), bad_key()),
        row("H18 half its padding", key("dGhlIHNhbXBsZSBub25jZQ="), bad_key()),
        row("H18 a blank inside", key("dGhlIHNhbXBs ZSBub25jZQ=="), bad_key()),
        row("H20 blanks around it", key("  dGhlIHNhbXBsZSBub25jZQ== \t"), switches()),
    ]
}

#[test]
fn heads_that_are_not_http() {
    run(Watched::start(&[]), &syntax_rows());
}

/// RFC 9112 §2.2, §5: line ends, blanks and bytes where they must not be.
#[rustfmt::skip]
fn syntax_rows() -> Vec<Row> {
    let hs = handshake;
    let bad = || refuses(&[400], &["§"]);
    let text = || String::from_utf8(hs().bytes()).unwrap();
    let value = |bytes: &[u8]| hs().add([b"X-Odd: a", bytes, b"b"].concat());
    vec![
        row("H25 obs-fold with a tab", hs().add("X-Odd: a\r\n\tb"), bad()),
        row("H25 obs-fold in Connection", hs().set("Connection: keep-alive,\r\n Upgrade"), bad()),
        row("H26 blank before the colon", hs().without("Host").add("Host : 127.0.0.1"), bad()),
        row("H26 blank before the first name", text().replacen("Host", " Host", 1), bad()),
        row("H26 no name", hs().add(": a"), bad()),
        row("H26 no colon", hs().add("nonsense"), bad()),
        row("H26 a blank in a name", hs().add("X Odd: a"), bad()),
        row("H27 bare LF once", text().replacen("\r\n", "\n", 1), bad()),
        row("H27 bare LF between two headers", text().replace("websocket\r\n", "websocket\n"), bad()),
        row("H27 bare LF at the very end", text().replace("\r\n\r\n", "\r\n\n"), bad()),
        row("H27 bare LF in front", format!("\n{}", text()), bad()),
        row("H28 bare CR", value(b"\r"), bad()),
        row("H28 ESC", value(b"\x1b[2J"), bad()),
        row("H28 DEL", value(b"\x7f"), bad()),
        row("H28 BEL in the target", hs().target("/\x07?token=dev-token"), bad()),
        row("H28 ESC in the target", hs().target("/\x1b[2J"), bad()),
        row("H28 a byte past ASCII in the target", hs().target("/?token=dev-token&room=é"), bad()),
        row("H28 a blank in the target", hs().target("/?token=dev-token&room=a b"), bad()),
        row("H28 a tab in a value is fine", value(b"\t"), switches()),
        row("H28 bytes past ASCII in a value are fine", value(b"\xff\x80"), switches()),
        row("H30 ten blank lines first", ["\r\n".repeat(10), text()].concat(), switches()),
        row("H51 no version", "GET /\r\n\r\n", bad()),
        row("H51 an empty request line", " \r\n\r\n", bad()),
    ]
}

#[test]
fn bodies_and_what_follows() {
    run(Watched::start(&[]), &body_rows());
}

/// RFC 9112 §6: an upgrade request has no body, and nothing behind a refused request is read.
#[rustfmt::skip]
fn body_rows() -> Vec<Row> {
    let hs = handshake;
    let bad = || refuses(&[400], &["§"]);
    let wrong = || hs().without("Sec-WebSocket-Key");
    vec![
        row("H38 Content-Length: 0 is none", hs().add("Content-Length: 0"), switches()),
        row("H38 Content-Length: -1", hs().add("Content-Length: -1"), bad()),
        row("H38 Content-Length: many", hs().add("Content-Length: many"), bad()),
        row("H38 0 and 5", hs().add("Content-Length: 0").add("Content-Length: 5").followed_by("hello"), bad()),
        row("H38 on a plain GET", get("/").add("Content-Length: 5").followed_by("hello"), bad()),
        row("H39 identity", hs().add("Transfer-Encoding: identity"), bad()),
        row("H40 both", hs().add("Content-Length: 0").add("Transfer-Encoding: chunked"), bad()),
        // All that comes until the end is taken for one answer, and its length is checked: a second one would show.
        row("H41 refused, and one more", wrong().followed_by(hs().bytes()), refuses(&[400], &["§4.2.1"])),
        row("H41 refused, and the page", wrong().followed_by(get("/").bytes()), refuses(&[400], &["§4.2.1"])),
        row("H41 health, and one more", get("/health").followed_by(get("/health").bytes()), ok(Body::JsonObject)),
    ]
}

#[test]
fn heads_that_are_too_long() {
    run(Watched::start(&[]), &length_rows());
}

/// The limits of a head: 8 KiB, and 64 headers, of which the valid request has five.
#[rustfmt::skip]
fn length_rows() -> Vec<Row> {
    let hs = handshake;
    let nine_kib = "x".repeat(9 * 1024);
    let too_large = || refuses(&[431], &["RFC 6585", "§5"]);
    let with = |count| (0..count).fold(hs(), |request, i| request.add(format!("X-{i}: y")));
    vec![
        row("H30 9 KiB of blank lines", ["\r\n".repeat(4608).into_bytes(), hs().bytes()].concat(), too_large()),
        row("H31 a name of 9 KiB", hs().add(format!("{nine_kib}: x")), too_large()),
        row("H31 a head of 8 KiB", hs().padded_to(8192), switches()),
        row("H31 one byte more", hs().padded_to(8193), too_large()),
        row("H31 no end in sight", format!("GET / HTTP/1.1\r\nX: {nine_kib}"), too_large()),
        row("H32 nothing but letters", nine_kib.clone(), refuses(&[414], &["§15.5.15"])),
        row("H33 64 headers", with(59), switches()),
        row("H33 2,000 headers", with(2000), too_large()),
    ]
}

/// H34 (a head of 20 MB was minutes of work for a server that parsed it anew on each read).
#[test]
fn a_head_of_20_mb_is_refused_after_8_kib() {
    let mut server = Watched::start(&[]);
    let mut client = server.connect();
    let mut writer = support::RawClient::new(client.stream.try_clone().unwrap());
    let flood = std::thread::spawn(move || {
        writer.send(b"GET / HTTP/1.1\r\nX: ");
        for _ in 0..320 {
            writer.try_send(&[b'x'; 64 * 1024]);
        }
    });
    let response = client.read_response();
    refuses(&[431], &["RFC 6585", "§5"]).check(&response);
    flood.join().unwrap();
    server.still_chats();
    server.finish(&[]);
}

/// H51: of peers that speak something else, the log says what it looked like.
#[test]
fn other_protocols_are_named_in_the_log() {
    let mut hello = b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03".to_vec();
    hello.resize(205, 0x2a);
    let rows = [
        ("TLS", hello),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
    ];
    let mut server = Watched::start(&[]);
    let name = |row: &(&str, Vec<u8>)| format!("H51 {}", row.0);
    each_row(&rows, name, |(protocol, bytes)| {
        let mut client = server.connect();
        client.send(bytes);
        let answer = client.read_to_clean_end();
        let statuses: &[u16] = if *protocol == "HTTP/2" { &[400, 505] } else { &[400] };
        assert!(answer.is_empty() || statuses.contains(&Response::parse(&answer).status), "400 or cut");
        server.wait_for_log(protocol);
        server.still_chats();
    });
    server.finish(&[]);
}

/// H03: bytes that arrive behind the head, in the same write, are the first bytes of the protocol.
#[test]
fn a_frame_behind_the_head_is_heard() {
    let mut server = Watched::start(&[]);
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
    run(Watched::start(&[]), &subprotocol_rows());
}

/// §4.2.2, §1.9: the endpoint's own subprotocol is chosen if it is offered, else none.
#[rustfmt::skip]
fn subprotocol_rows() -> Vec<Row> {
    let offer = |names: &str| handshake().add(format!("Sec-WebSocket-Protocol: {names}"));
    let echo = |names: &str| offer(names).target("/echo?token=dev-token");
    let bad = || refuses(&[400], &["§", "Sec-WebSocket-Protocol"]);
    let two_lines = |a: &str, b: &str| offer(a).add(format!("Sec-WebSocket-Protocol: {b}"));
    vec![
        row("H43 its own", offer("chat.events"), switches_with("chat.events")),
        row("H43 among others", offer("chat.v1, chat.events, x"), switches_with("chat.events")),
        row("H43 on a second line", two_lines("x", "chat.events"), switches_with("chat.events")),
        row("H43 on /echo", echo("chat.events, echo"), switches_with("echo")),
        row("H43 another endpoint's", echo("chat.events"), switches()),
        row("H43 /echo's on the chat", offer("echo"), switches()),
        row("H44 twice its own", offer("chat.events, chat.events"), bad()),
        row("H44 twice on two lines", two_lines("x", "x"), bad()),
        row("H44 a blank in a name", offer("chat events"), bad()),
        row("H44 no token", offer("chat@home"), bad()),
        row("H44 quoted", offer("\"chat.events\""), bad()),
        row("H44 nothing offered", offer(""), bad()),
        row("H44 blanks without end", offer(&format!("b{}x", " ".repeat(7000))), bad()),
    ]
}

#[test]
fn extensions() {
    run(Watched::start(&[]), &extension_rows());
}

/// §9.1: every extension is declined, and a list of them that is none is refused.
#[rustfmt::skip]
fn extension_rows() -> Vec<Row> {
    let ask = |extensions: &str| handshake().add(format!("Sec-WebSocket-Extensions: {extensions}"));
    let bad = || refuses(&[400], &["§", "Sec-WebSocket-Extensions"]);
    vec![
        row("H46 permessage-deflate", ask("permessage-deflate; client_max_window_bits"), switches()),
        row("H46 with a value", ask("permessage-deflate; server_max_window_bits=10, x-other"), switches()),
        row("H46 with a quoted value", ask("x-other; a=\"b\""), switches()),
        row("H46 two lines", ask("a").add("Sec-WebSocket-Extensions: b"), switches()),
        row("H46 a name that is a property elsewhere", ask("constructor"), switches()),
        row("H46 a parameter without a name", ask("permessage-deflate; ;"), bad()),
        row("H46 an extension without a name", ask("; a=b"), bad()),
        row("H46 a name without its value", ask("permessage-deflate; a="), bad()),
        row("H46 an open quote", ask("permessage-deflate; a=\"b"), bad()),
        row("H46 quoted, but no token", ask("permessage-deflate; a=\"b c\""), bad()),
        row("H46 two words", ask("permessage deflate"), bad()),
        row("H46 nothing", ask(""), bad()),
    ]
}

#[test]
fn targets() {
    run(Watched::start(&[]), &target_rows());
}

/// Paths, queries, and the target that is a whole address (RFC 9112 §3.2.2).
#[rustfmt::skip]
fn target_rows() -> Vec<Row> {
    let to = |target: &str| handshake().target(target);
    let query = |rest: &str| handshake().target(format!("/?token=dev-token&{rest}"));
    let bad = || refuses(&[400], &[]);
    vec![
        row("H48 /nope", to("/nope?token=dev-token"), refuses(&[404], &[])),
        row("H48 /echo/", to("/echo/?token=dev-token"), refuses(&[404], &[])),
        row("H48 /echo/x", to("/echo/x?token=dev-token"), refuses(&[404], &[])),
        row("H48 //", to("//?token=dev-token"), refuses(&[404], &[])),
        row("H48 /ECHO", to("/ECHO?token=dev-token"), refuses(&[404], &[])),
        row("H49 /..%2f", to("/..%2f?token=dev-token"), refuses(&[400, 404], &[])),
        row("H49 /%", to("/%?token=dev-token"), refuses(&[400, 404], &[])),
        row("H49 /%zz", to("/%zz?token=dev-token"), refuses(&[400, 404], &[])),
        row("H49 a lone % in a room", query("room=%"), bad()),
        row("H49 half a % in a room", query("room=a%2"), bad()),
        row("H49 %zz in a room", query("room=%zz"), bad()),
        row("H49 %+1 in a room", query("room=%+1"), bad()),
        row("H49 %00 in a room", query("room=%00"), bad()),
        row("H49 not UTF-8 in a name", query("username=%ff"), bad()),
        row("H49 a surrogate in a room", query("room=%ed%a0%80"), bad()),
        row("H49 % in the token", to("/?token=%zz"), refuses(&[400, 401], &[])),
        row("H49 a fragment", to("/?token=dev-token#x"), refuses(&[400], &["#"])),
        row("H49 absolute-form with a port", to("http://localhost:81/?token=dev-token"), switches()),
        row("H49 absolute-form, foreign", to("http://evil.example/?token=dev-token"), refuses(&[403], &["evil.example"])),
        row(
            "H49 absolute-form, its Host foreign",
            to("http://127.0.0.1/?token=dev-token").set("Host: evil.example"),
            refuses(&[403], &["evil.example"]),
        ),
        row("H50 the first token wins", to("/?token=dev-token&token=wrong-7f3a"), switches()),
        row("H50 also if it is wrong", to("/?token=wrong-7f3a&token=dev-token"), unauthorized()),
        row("H50 the first room wins", query("room=a&room=%00"), switches()),
        row("H50 ?token", to("/?token"), unauthorized()),
        row("H50 ?=&&", to("/?=&&"), unauthorized()),
        row("H50 ?=&& and a token", to("/?=&&token=dev-token"), switches()),
        row("H50 a token in the fragment is none", to("/#?token=dev-token"), refuses(&[400, 401, 404], &[])),
    ]
}

#[test]
fn plain_requests() {
    run(Watched::start(&[]), &plain_rows());
}

/// What a browser or a probe gets without an upgrade.
#[rustfmt::skip]
fn plain_rows() -> Vec<Row> {
    let health = || ok(Body::JsonObject);
    let needs_upgrade = || refuses(&[426], &["§"]);
    vec![
        row("H10 /echo", get("/echo?token=dev-token"), needs_upgrade()),
        row("H10 /echo without a token", get("/echo"), needs_upgrade()),
        row("H10 /echo with another Upgrade", handshake().target("/echo").set("Upgrade: h2c"), needs_upgrade()),
        row("H11 /", get("/"), ok(Body::Page)),
        row("H11 / with a query", get("/?username=bot&room=%zz"), ok(Body::Page)),
        row("H11 / with another Upgrade", handshake().set("Upgrade: h2c"), ok(Body::Page)),
        row("H11 HEAD /", get("/").method("HEAD"), ok(Body::Nothing)),
        row("H22 / over 1.0", get("/").version("HTTP/1.0"), ok(Body::Page)),
        row("H22 / over 1.0, no Host", get("/").version("HTTP/1.0").without("Host"), ok(Body::Page)),
        row("H10 /health", get("/health"), health()),
        row("H10 /health with an upgrade", handshake().target("/health"), health()),
        row("H10 HEAD /health", get("/health").method("HEAD"), ok(Body::Nothing)),
        row("H10 HEAD /health with an upgrade", handshake().method("HEAD").target("/health"), ok(Body::Nothing)),
        row("H10 POST /health", get("/health").method("POST"), not_allowed("GET, HEAD")),
    ]
}

/// "Checks run in this order, and the first that fails answers": each request here breaks two rules, and the numbers are
/// those of the list in the protocol.
#[test]
#[rustfmt::skip]
fn the_first_broken_rule_answers() {
    let hs = handshake;
    let foreign_host = "Host: evil.example";
    let foreign_origin = "Origin: https://evil.example";
    let long = "x".repeat(9000);
    let key = || refuses(&[400], &["Sec-WebSocket-Key"]);
    let two_hosts = || refuses(&[400], &["Host"]);
    let body = || hs().add("Content-Length: 5").followed_by("hello");
    let bad_name = "/?token=dev-token&username=%00";
    let wrong_token = "/?token=wrong-7f3a&username=%00";
    let no_key = || hs().without("Sec-WebSocket-Key");
    run(
        Watched::start(&[]),
        &[
            row("1 before 2: too long, no Host", hs().without("Host").add(long), refuses(&[431], &[])),
            row("1 before 2: a body, a foreign Host", body().set(foreign_host), refuses(&[400], &[])),
            row("1 before 2: HTTP/1.2, a foreign Host", hs().version("HTTP/1.2").set(foreign_host), refuses(&[505], &[])),
            row("1 before 3: a body, POST", body().method("POST"), refuses(&[400], &[])),
            row("2 before 3: two Hosts, POST", hs().add("Host: 127.0.0.1").method("POST"), two_hosts()),
            row("2 before 3: a foreign Host, POST", hs().set(foreign_host).method("POST"), refuses(&[403], &["evil.example"])),
            row("2 before 5: a foreign Host, the page", get("/").set(foreign_host), refuses(&[403], &["evil.example"])),
            row("2 before 5: no Host, health", get("/health").without("Host"), two_hosts()),
            row("3 before 4: POST, unknown path", hs().method("POST").target("/nope"), refuses(&[405], &[])),
            row("4 before 5: unknown path, no Upgrade", get("/nope"), refuses(&[404], &[])),
            row("4 before 9: unknown path, no token", hs().target("/nope"), refuses(&[404], &[])),
            row("5 before 6: no Upgrade, HTTP/1.0", get("/echo").version("HTTP/1.0"), refuses(&[426], &[])),
            row("6: HTTP/1.0, version 8", hs().version("HTTP/1.0").set("Sec-WebSocket-Version: 8"), refuses(&[400], &["1.0"])),
            row(
                "6: no Connection, version 8",
                hs().without("Connection").set("Sec-WebSocket-Version: 8"),
                refuses(&[400], &["Connection"]),
            ),
            row("6 before 7: version 8, no key", no_key().set("Sec-WebSocket-Version: 8"), refuses(&[426], &[])),
            row("7 before 8: no key, two Origins", no_key().add(foreign_origin).add("Origin: null"), key()),
            row("7 before 8: no key, a foreign Origin", no_key().add(foreign_origin), key()),
            row(
                "7 before 8: a protocol twice, a foreign Origin",
                hs().add("Sec-WebSocket-Protocol: x, x").add(foreign_origin),
                refuses(&[400], &["Sec-WebSocket-Protocol"]),
            ),
            row("8 before 9: two Origins, no token", hs().target("/").add(foreign_origin).add("Origin: null"), refuses(&[400], &["Origin"])),
            row("8 before 9: a foreign Origin, no token", hs().target("/").add(foreign_origin), refuses(&[403], &["evil.example"])),
            row("9 before 10: a wrong token, a bad name", hs().target(wrong_token), unauthorized()),
            row("10: a bad name", hs().target(bad_name), refuses(&[400], &["username"])),
        ],
    );
}

/// Steps 9 to 11: a full server still looks at everything else first.
#[test]
fn a_full_server_says_so_last() {
    // The three connections of the watch fill it.
    let full = || refuses(&[503], &[]);
    let server = Watched::start(&["--max-connections", "3"]);
    let rows = [
        row("H54 full", handshake(), full()),
        row("H54 full, /echo", handshake().target("/echo?token=dev-token"), full()),
        row("9 before 11: full, a wrong token", handshake().target("/?token=wrong-7f3a"), unauthorized()),
        row("10 before 11: full, a bad name", handshake().target("/?token=dev-token&room=%00"), refuses(&[400], &[])),
        row("5 before 11: full, health", get("/health"), ok(Body::JsonObject)),
    ];
    let retry = ask_retry_after(&server);
    assert!(retry.parse::<u32>().is_ok_and(|seconds| seconds > 0), "Retry-After is in seconds: {retry:?}");
    run(server, &rows);
}

fn ask_retry_after(server: &Watched) -> String {
    let mut client = server.connect();
    client.send(&handshake().bytes());
    client.read_response().header("Retry-After").to_owned()
}

#[test]
fn hosts() {
    run(Watched::start(&[]), &host_rows());
    let host = |name: &str| handshake().set(&format!("Host: {name}"));
    let foreign = || refuses(&[403], &["other.example"]);
    run(
        Watched::start(&["--allow-host", "chat.example"]),
        &[
            row("A07 allowed", host("chat.example"), switches()),
            row("A07 allowed, any port", host("chat.example:8443"), switches()),
            row("A07 allowed, other letter case", host("Chat.Example"), switches()),
            row("A07 loopback stays", host("localhost"), switches()),
            row("A07 another", host("other.example"), foreign()),
            row("A07 a name below it", host("chat.example.other.example"), foreign()),
        ],
    );
    let any = [row("A07 any host", host("other.example"), switches())];
    run(Watched::start(&["--allow-host", "*"]), &any);
}

/// H24 and A07: exactly one `Host`, and on a loopback listener a loopback name, whatever its port.
#[rustfmt::skip]
fn host_rows() -> Vec<Row> {
    let host = |name: &str| handshake().set(&format!("Host: {name}"));
    let foreign = |name| refuses(&[403], &[name]);
    vec![
        row("H24 no Host, the page", get("/").without("Host"), refuses(&[400], &["§3.2"])),
        row("A07 localhost", host("localhost"), switches()),
        row("A07 localhost and a port", host("localhost:3000"), switches()),
        row("A07 LocalHost", host("LocalHost"), switches()),
        row("A07 127.0.0.1 and a port", host("127.0.0.1:1"), switches()),
        row("A07 [::1]", host("[::1]"), switches()),
        row("A07 [::1] and a port", host("[::1]:3000"), switches()),
        row("A07 evil.example", host("evil.example"), foreign("evil.example")),
        row("A07 evil.example and a port", host("evil.example:3000"), foreign("evil.example")),
        row("A07 a loopback name in front", host("localhost.evil.example"), foreign("evil.example")),
        row("A07 a loopback address in front", host("127.0.0.1.evil.example"), foreign("evil.example")),
        row("A07 a loopback name as a user", host("localhost@evil.example"), refuses(&[400, 403], &[])),
        row("A07 a private address", host("192.168.0.1"), foreign("192.168.0.1")),
        row("A07 another loopback in disguise", host("[::2]"), foreign("[::2]")),
        row("A07 empty", host(""), refuses(&[400, 403], &[])),
    ]
}

#[test]
fn origins() {
    run(Watched::start(&[]), &origin_rows());
    let origin = |origin: &str| handshake().add(format!("Origin: {origin}"));
    let refused = || refuses(&[403], &["--allow-origin"]);
    run(
        Watched::start(&["--allow-origin", "https://good.example", "--allow-origin", "http://also.example:81"]),
        &[
            row("A04 allowed", origin("https://good.example"), switches()),
            row("A04 allowed too", origin("http://also.example:81"), switches()),
            row("A04 another scheme", origin("http://good.example"), refused()),
            row("A04 another port", origin("https://good.example:8443"), refused()),
            row("A04 no port", origin("http://also.example"), refused()),
            row("A04 a name below it", origin("https://sub.good.example"), refused()),
            row("A04 a name that begins with it", origin("https://good.example.evil.example"), refused()),
            row("A04 another", origin("https://evil.example"), refused()),
            row("A02 null stays on loopback", origin("null"), switches()),
        ],
    );
    let any =
        [row("A04 any", origin("https://evil.example"), switches()), row("A04 any: null", origin("null"), switches())];
    run(Watched::start(&["--allow-origin", "*"]), &any);
}

/// A01–A08 on a loopback listener that asks for a token.
#[rustfmt::skip]
fn origin_rows() -> Vec<Row> {
    let origin = |origin: &str| handshake().set("Host: localhost:3000").add(format!("Origin: {origin}"));
    let refused = |seen| refuses(&[403], &[seen, "--allow-origin"]);
    let long = format!("http://{}", "a".repeat(4096));
    vec![
        row("A01 none", handshake(), switches()),
        row("A02 null", origin("null"), switches()),
        row("A04 foreign", origin("https://evil.example"), refused("https://evil.example")),
        row("A04 foreign on /echo", origin("https://evil.example").target("/echo?token=dev-token"), refused("https://evil.example")),
        row("A05 the server's own", origin("http://localhost:3000"), switches()),
        row("A05 another port", origin("http://localhost:3001"), refused("http://localhost:3001")),
        row("A05 no port", origin("http://localhost"), refused("http://localhost")),
        row("A05 another loopback name", origin("http://127.0.0.1:3000"), refused("http://127.0.0.1:3000")),
        row("A05 another scheme", origin("https://localhost:3000"), refused("https://localhost:3000")),
        row("A05 a longer port", origin("http://localhost:30001"), refused("http://localhost:30001")),
        row("A05 a longer name", origin("http://localhost:3000.evil.example"), refuses(&[403], &["--allow-origin"])),
        row("A05 its own in a query", origin("http://evil.example?http://localhost:3000"), refuses(&[403], &["--allow-origin"])),
        row("A05 its own as a user", origin("http://localhost:3000@evil.example"), refuses(&[403], &["--allow-origin"])),
        row("A05 no origin at all", origin("nonsense"), refuses(&[403], &["--allow-origin"])),
        row("A05 empty", origin(""), refuses(&[403], &["--allow-origin"])),
        row("A05 two in one", origin("http://localhost:3000 https://evil.example"), refuses(&[403], &["--allow-origin"])),
        row("A08 two lines", origin("null").add("Origin: null"), refuses(&[400], &["Origin"])),
        row("A08 4 KiB", origin(&long), refuses(&[400, 403], &[])),
    ]
}

/// A02, A03: a page from disk has the origin `null`, and so has any site's sandboxed frame: only a token on loopback
/// makes it welcome.
#[test]
fn the_null_origin_elsewhere() {
    let null = || handshake().target("/?token=a-secret").add("Origin: null");
    let refused = || refuses(&[403], &["null", "--allow-origin"]);
    run_with("a-secret", "127.0.0.1:0", &["--open"], &[row("A03 --open", null(), refused())]);
    run_with(
        "a-secret",
        "127.0.0.1:0",
        &["--open", "--allow-origin", "null"],
        &[row("A03 --open, allowed", null(), switches())],
    );
    let tokens = support::token_file("public", "a-secret\n");
    let tokens = tokens.to_str().unwrap();
    let rows = [
        row("A03 a public bind", null(), refused()),
        row("A07 any host on a public bind", null().without("Origin").set("Host: evil.example"), switches()),
    ];
    run_with("a-secret", "0.0.0.0:0", &["--tokens", tokens], &rows);
    let rows = [row("A03 a public bind, allowed", null(), switches())];
    run_with("a-secret", "0.0.0.0:0", &["--tokens", tokens, "--allow-origin", "null"], &rows);
}

fn run_with(token: &str, listen: &str, args: &[&str], rows: &[Row]) {
    let args = [args, &["--rate-limit", "0"]].concat();
    run(Watched::new(support::Server::start_at(listen, &args), token), rows);
}

/// A09, A12: who brings no token that the server knows is told one and the same thing.
#[test]
#[rustfmt::skip]
fn tokens() {
    let token = |query: &str| handshake().target(format!("/?token={query}"));
    let bearer = |value: &str| handshake().target("/").add(format!("Authorization: {value}"));
    let rows = [
        row("A09 token-alice", token("token-alice"), switches()),
        row("A09 token-bob", token("token-bob"), switches()),
        row("A09 token-carol", token("token-carol"), switches()),
        row("A09 encoded", token("dev%2Dtoken"), switches()),
        row("A09 none", handshake().target("/"), unauthorized()),
        row("A09 none on /echo", handshake().target("/echo"), unauthorized()),
        row("A09 empty", token(""), unauthorized()),
        row("A09 wrong", token("wrong-7f3a"), unauthorized()),
        row("A09 the beginning of one", token("dev-toke"), unauthorized()),
        row("A09 one and more", token("dev-token1"), unauthorized()),
        row("A09 other letter case", token("DEV-TOKEN"), unauthorized()),
        row("A09 a blank behind it", token("dev-token%20"), unauthorized()),
        row("A09 a blank before it", token("+dev-token"), unauthorized()),
        row("A09 a NUL behind it", token("dev-token%00"), unauthorized()),
        row("A09 two of them", token("dev-token%0atoken-alice"), unauthorized()),
        row("A09 in the header", bearer("Bearer dev-token"), switches()),
        row("A09 in the header, scheme in other case", bearer("bearer dev-token"), switches()),
        row("A09 in the header, wrong", bearer("Bearer wrong-7f3a"), unauthorized()),
        row("A09 in the header, another scheme", bearer("Basic dev-token"), unauthorized()),
        row("A09 in the header, no scheme", bearer("dev-token"), unauthorized()),
        row("A09 the query's is wrong", token("wrong-7f3a").add("Authorization: Bearer dev-token"), unauthorized()),
        row("A09 the query's is right", token("dev-token").add("Authorization: Bearer wrong-7f3a"), switches()),
    ];
    run(Watched::start(&[]), &rows);
}
