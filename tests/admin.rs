//! Tests of the admin listener (`--admin`): every request and every error, metrics that match a scripted load exactly,
//! kicks, bans, published messages, slow and malicious peers, and the tool `wirechat admin`.

#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "sqlite")]
#[path = "support/history_file.rs"]
mod history_file;
#[cfg(feature = "sqlite")]
#[path = "support/stall.rs"]
mod stall;
mod support;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::users::{encode, events_path, presence_path, rooms_path};
use support::{Frame, RawClient, Server, masked, require_tool, upgrade_request, wait_until};

/// A server with an admin listener.
struct Host {
    server: Server,
    admin: SocketAddr,
}

impl Host {
    fn start(args: &[&str]) -> Host {
        let args = [&["--admin", "127.0.0.1:0", "--rate-limit", "0"], args].concat();
        Host::launch(&mut Server::command("127.0.0.1:0", &args))
    }

    fn launch(command: &mut Command) -> Host {
        let server = Server::launch(command);
        let mut admin = None;
        wait_until("the banner shows the admin address", || {
            let printed = server.printed();
            let address = printed.split_once("admin:").and_then(|(_, rest)| rest.split_once("http://"));
            admin = address.and_then(|(_, rest)| rest.split_once("/\n")?.0.parse().ok());
            admin.is_some()
        });
        Host { server, admin: admin.unwrap() }
    }

    fn connect(&self) -> RawClient {
        RawClient::new(TcpStream::connect(self.admin).expect("the admin listener accepts"))
    }

    fn exchange(&self, request: &Request) -> Response {
        let mut client = self.connect();
        client.send(&request.bytes());
        client.read_response()
    }

    fn request(&self, method: &'static str, target: &str) -> Response {
        self.exchange(&get(target).method(method))
    }

    /// Sends a request, expects status 200, and returns the response's JSON.
    fn json(&self, method: &'static str, target: &str) -> Value {
        parse_json(&self.request(method, target))
    }

    fn publish(&self, room: &str, body: &str) -> Response {
        self.exchange(&publish_request(room, body))
    }

    fn metrics(&self) -> BTreeMap<String, f64> {
        let response = self.request("GET", "/metrics");
        assert_eq!(response.status, 200);
        let lines = response.body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.trim_start_matches("wirechat_").to_owned(), value.parse().expect("a number"))
        };
        lines.map(sample).collect()
    }

    /// Waits until every metric in `expected` has the given value. A metric that `/metrics` does not list counts as 0.
    fn wait_for_metrics(&self, expected: &[(&str, u64)]) {
        let mut metrics = BTreeMap::new();
        let differing = |metrics: &BTreeMap<String, f64>| {
            let value = |name: &str| metrics.get(name).copied().unwrap_or_default();
            let rows = expected.iter().filter(|(name, count)| value(name) != *count as f64);
            rows.map(|(name, count)| format!("{name}: {}, not {count}", value(name))).collect::<Vec<_>>()
        };
        let is_reached = support::becomes_true(|| {
            metrics = self.metrics();
            differing(&metrics).is_empty()
        });
        assert!(is_reached, "{}", differing(&metrics).join("\n"));
    }

    fn join(&self, name: &str, room: &str) -> RawClient {
        let mut client = self.server.upgrade(&events_path(name, room));
        client.read_event("welcome");
        client
    }

    fn run_tool(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        command.arg("admin").args(arguments).env("WIRECHAT_ADMIN", self.admin.to_string());
        command.stdin(Stdio::null()).output().unwrap()
    }
}

fn publish_request(room: &str, body: &str) -> Request {
    let request = get(&format!("/publish?room={}", encode(room))).method("POST");
    request.add(format!("Content-Length: {}", body.len())).followed_by(body)
}

fn parse_json(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.header("Content-Type"), "application/json");
    assert!(response.body.ends_with('\n'), "{}", response.body);
    serde_json::from_str(&response.body).expect("JSON")
}

/// Skips frames until a Close frame, and returns the Close frame's code and reason.
fn read_close(client: &mut RawClient) -> (u16, String) {
    loop {
        let frame = client.read_frame();
        if frame.opcode() == 8 {
            return frame.close();
        }
    }
}

fn removal_close() -> (u16, String) {
    (1008, "removed by the operator".to_owned())
}

/// Method, target, expected status, expected text. The text is the `Allow` header for 405, the whole body for 200, and
/// a part of the body for all other statuses.
const REQUESTS: &[(&str, &str, u16, &str)] = &[
    ("GET", "/live", 200, "live\n"),
    ("GET", "/live?x=y", 200, "live\n"),
    ("GET", "/ready", 200, "ready\n"),
    ("GET", "/clients", 200, "[]\n"),
    ("GET", "/bans", 200, "[]\n"),
    ("POST", "/live", 405, "GET, HEAD"),
    ("DELETE", "/metrics", 405, "GET, HEAD"),
    ("get", "/live", 405, "GET, HEAD"),
    ("OPTIONS", "/clients", 405, "GET, HEAD"),
    ("GET", "/kick", 405, "POST"),
    ("HEAD", "/kick", 405, "POST"),
    ("GET", "/publish", 405, "POST"),
    ("GET", "/ban", 405, "POST, DELETE"),
    ("PUT", "/ban", 405, "POST, DELETE"),
    ("POST", "/bans", 405, "GET, HEAD"),
    ("GET", "/", 404, "\"/\""),
    ("GET", "/health", 404, ""),
    ("GET", "/live/", 404, ""),
    ("POST", "/shutdown", 404, ""),
    ("POST", "/kick", 400, "either username or connection"),
    ("POST", "/kick?user=ann", 400, "either username or connection"),
    ("POST", "/kick?username=ann&connection=1", 400, "either username or connection"),
    ("POST", "/kick?username=", 400, "A username has 1 to 32 characters"),
    ("POST", "/kick?username=%ff", 400, "A username"),
    ("POST", "/kick?username=a%0ab", 400, "control"),
    ("POST", "/kick?connection=", 400, "not the number of a connection"),
    ("POST", "/kick?connection=-1", 400, "not the number of a connection"),
    ("POST", "/kick?connection=ann", 400, "not the number of a connection"),
    ("POST", "/kick?connection=99999999999999999999", 400, "not the number of a connection"),
    ("POST", "/kick?connection=18446744073709551615", 200, "{\"closed\":0}\n"),
    ("POST", "/kick?connection=0", 200, "{\"closed\":0}\n"),
    ("POST", "/kick?username=nobody", 200, "{\"closed\":0}\n"),
    ("POST", "/ban?seconds=5", 400, "either username or address"),
    ("POST", "/ban?username=ann&address=192.0.2.1&seconds=5", 400, "either username or address"),
    ("POST", "/ban?connection=1&seconds=5", 400, "either username or address"),
    ("POST", "/ban?username=ann", 400, "seconds is missing"),
    ("POST", "/ban?username=ann&seconds=0", 400, "seconds must be a number from 1"),
    ("POST", "/ban?username=ann&seconds=-5", 400, "seconds must be"),
    ("POST", "/ban?username=ann&seconds=1.5", 400, "seconds must be"),
    ("POST", "/ban?username=ann&seconds=18446744073709551615", 400, "seconds must be"),
    ("POST", "/ban?address=chat.example&seconds=5", 400, "\"chat.example\" is not an IP address"),
    ("POST", "/ban?address=192.0.2.0/24&seconds=5", 400, "not an IP address"),
    ("DELETE", "/ban", 400, "either username or address"),
    ("DELETE", "/ban?username=ann", 200, "{\"lifted\":0}\n"),
    ("POST", "/publish", 400, "room is missing"),
    ("POST", "/publish?room=", 400, "A room has 1 to 64 characters"),
    ("POST", "/publish?room=tea", 400, "Invalid JSON"),
];

#[test]
fn requests_and_their_errors() {
    let host = Host::start(&[]);
    each_row(
        REQUESTS,
        |(method, target, ..)| format!("{method} {target}"),
        |(method, target, status, expected)| {
            let mut client = host.connect();
            client.send(&get(target).method(method).bytes());
            let response = client.read_response();
            assert_eq!(response.status, *status, "{response:?}");
            assert_eq!(response.header("Connection"), "close");
            match status {
                405 => assert_eq!(response.header("Allow"), *expected),
                200 => assert_eq!(response.body, *expected),
                _ => assert!(response.body.contains(expected), "{response:?}"),
            }
            assert_eq!(response.body.is_empty(), *method == "HEAD", "{response:?}");
        },
    );
}

/// A HEAD response has the same Content-Length as the response to a GET request for the same target. If a client sends
/// two requests at once on one connection, the server responds only to the first.
#[test]
fn head_requests_and_pipelined_requests() {
    let host = Host::start(&[]);
    for target in ["/live", "/ready", "/clients", "/bans"] {
        let (head, full) = (host.request("HEAD", target), host.request("GET", target));
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{target}");
        assert_eq!(head.header("Content-Length"), full.body.len().to_string(), "{target}");
    }
    let twice = get("/live").followed_by(get("/metrics").bytes());
    assert_eq!(host.exchange(&twice).body, "live\n");
    let http_1_0 = host.exchange(&get("/live").version("HTTP/1.0").without("Host"));
    assert_eq!((http_1_0.status, http_1_0.body.as_str()), (200, "live\n"));
}

/// The server rejects requests sent by web pages in the operator's browser, even by pages that use DNS rebinding.
#[test]
fn hosts_and_origins() {
    let host = Host::start(&["--allow-host", "admin.example", "--open"]);
    let rows = [
        ("Host: localhost:9000", 200),
        ("Host: 127.0.0.1", 200),
        ("Host: [::1]:9000", 200),
        ("Host: admin.example", 200),
        ("Host: evil.example", 403),
        ("Host: 127.0.0.1.evil.example", 403),
        ("Host: 10.0.0.1", 403),
        ("Host: a b", 400),
    ];
    let mut member = host.join("ann", "tea");
    for (header, status) in rows {
        assert_eq!(host.exchange(&get("/live").set(header)).status, status, "{header}");
    }
    assert_eq!(host.exchange(&get("/live").without("Host")).status, 400);
    assert_eq!(host.exchange(&get("http://evil.example/live")).status, 403);
    for origin in ["http://127.0.0.1:9000", "null", "https://evil.example", ""] {
        let kick = get("/kick?username=ann").method("POST").add(format!("Origin: {origin}"));
        assert_eq!(host.exchange(&kick).status, 403, "{origin}");
    }
    member.send_text(r#"{"event":"ping"}"#);
    member.read_event("pong");
    // On a non-loopback address, the admin listener accepts any `Host`: it cannot know all names of its machine.
    let host = Host::launch(&mut Server::command("127.0.0.1:0", &["--admin", "0.0.0.0:0"]));
    let mut client = RawClient::new(TcpStream::connect(("127.0.0.1", host.admin.port())).unwrap());
    client.send(&get("/live").set("Host: chat.internal:9000").bytes());
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn malformed_and_oversized_requests() {
    let host = Host::start(&[]);
    let rows: Vec<(Vec<u8>, u16)> = vec![
        (get("/live").padded_to(8192).bytes(), 200),
        (get("/live").padded_to(8193).bytes(), 431),
        (get(&format!("/{}", "x".repeat(9000))).bytes(), 414),
        ((0..70).fold(get("/live"), |request, _| request.add("X: y")).bytes(), 431),
        (get("/live").version("HTTP/2.0").bytes(), 505),
        (b"\x16\x03\x01\x02\x00".to_vec(), 400),
        (b"GET /live HTTP/1.1\n\n".to_vec(), 400),
        (get("/publish?room=tea").method("POST").add("Transfer-Encoding: chunked").bytes(), 411),
        (get("/publish?room=tea").method("POST").add("Content-Length: 65537").bytes(), 413),
        (get("/publish?room=tea").method("POST").add("Content-Length: x").bytes(), 400),
        (publish_request("tea", &" ".repeat(65536)).bytes(), 400),
        (publish_request("tea", &"[".repeat(65536)).bytes(), 400),
        (get("/live").followed_by(vec![b'x'; 300_000]).bytes(), 200),
    ];
    each_row(
        &rows,
        |(bytes, _)| String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned(),
        |(bytes, status)| {
            let mut client = host.connect();
            client.send(bytes);
            // If the server closed the socket before reading all input, a TCP reset would make `read_response` fail.
            assert_eq!(client.read_response().status, *status);
        },
    );
    for cut in [0, 1, 20, get("/live").bytes().len() - 1] {
        let mut client = host.connect();
        client.send(&get("/live").bytes()[..cut]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_end();
    }
    assert_eq!(host.request("GET", "/live").status, 200);
}

/// Clients that send nothing cannot lock out others: at its connection limit, the admin listener drops the oldest
/// silent connection to accept a new one. A slow client, which sends its request byte by byte, still gets a response.
#[test]
fn silent_and_slow_peers() {
    let host = Host::start(&[]);
    let mut silent: Vec<RawClient> = (0..100).map(|_| host.connect()).collect();
    assert_eq!(host.request("GET", "/ready").status, 200);
    silent[0].expect_end();
    let mut slow = host.connect();
    for byte in publish_request("tea", r#"{"username":"bot","text":"hi"}"#).bytes() {
        slow.send(&[byte]);
    }
    assert_eq!(parse_json(&slow.read_response())["text"], "hi");
    // To make room for the new connections, the server dropped only the oldest silent ones. The newest silent
    // connection stays open until its timeout of 10 seconds.
    let mut last = silent.pop().unwrap();
    last.expect_end();
}

/// The number of bytes that all [`CountingClient`] clients have sent, then the number that they have received.
type ByteCounts = Rc<Cell<[u64; 2]>>;

/// A client that counts the bytes that it sends and receives.
struct CountingClient {
    client: RawClient,
    bytes: ByteCounts,
}

impl CountingClient {
    fn connect(host: &Host, request: &[u8], bytes: &ByteCounts) -> (CountingClient, String) {
        let mut counted = CountingClient { client: host.server.connect(), bytes: Rc::clone(bytes) };
        counted.send(request);
        let head = counted.client.read_head();
        counted.add(1, head.len());
        (counted, head)
    }

    /// Connects and upgrades. Unless `words` is empty, reads frames until one contains `words`.
    fn join(host: &Host, path: &str, bytes: &ByteCounts, words: &str) -> CountingClient {
        let (mut counted, head) = CountingClient::connect(host, upgrade_request(path).as_bytes(), bytes);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        if !words.is_empty() {
            counted.read_until(words);
        }
        counted
    }

    fn add(&self, direction: usize, len: usize) {
        let mut bytes = self.bytes.get();
        bytes[direction] += len as u64;
        self.bytes.set(bytes);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.add(0, bytes.len());
        self.client.send(bytes);
    }

    fn send_text(&mut self, text: &str) {
        self.send(&masked(0x81, text.as_bytes()));
    }

    fn read_frame(&mut self) -> Frame {
        let frame = self.client.read_frame();
        let header = match frame.payload.len() {
            0..=125 => 2,
            126..=65535 => 4,
            _ => 10,
        };
        self.add(1, header + frame.payload.len());
        frame
    }

    fn read_until(&mut self, words: &str) -> String {
        loop {
            let frame = self.read_frame();
            let text = String::from_utf8_lossy(&frame.payload).into_owned();
            if text.contains(words) {
                return text;
            }
        }
    }

    /// Reads until the server ends the stream.
    fn finish(mut self) {
        let rest = self.client.read_to_end().len();
        self.add(1, rest);
    }

    fn close(mut self, payload: &[u8]) {
        self.send(&masked(0x88, payload));
        self.finish();
    }

    /// Half-closes TCP without sending a Close frame.
    fn shut_down(self) {
        self.client.stream.shutdown(Shutdown::Write).unwrap();
        self.finish();
    }
}

/// ann sends three room messages, one message with a repeated nonce, a private message to pat, and a private message
/// to an unknown user. ben sends two room messages, and pat sends one.
fn talk(ann: &mut CountingClient, ben: &mut CountingClient, pat: &mut CountingClient) {
    for number in 1..=3 {
        let text = format!("ann's message {number}");
        let message = json!({"event": "message", "data": {"text": text, "nonce": format!("n{number}")}});
        ann.send_text(&message.to_string());
        let echo: Value = serde_json::from_str(&ann.read_until(&text)).unwrap();
        assert_eq!(echo["data"]["id"], number);
        ben.read_until(&text);
        pat.read_until(&text);
    }
    ann.send_text(&json!({"event": "message", "data": {"text": "again", "nonce": "n1"}}).to_string());
    ann.read_until("n1");
    for text in ["one", "two"] {
        ben.send_text(&json!({"username": "ben", "text": text}).to_string());
        [&mut *ann, &mut *ben, &mut *pat].into_iter().for_each(|user| drop(user.read_until(text)));
    }
    pat.send_text("a long text ".repeat(20).trim());
    [&mut *ann, &mut *ben, &mut *pat].into_iter().for_each(|user| drop(user.read_until("a long text")));
    ann.send_text(&json!({"event": "private", "data": {"to": "pat", "text": "psst"}}).to_string());
    [&mut *ann, &mut *pat].into_iter().for_each(|user| drop(user.read_until("psst")));
    ann.send_text(&json!({"event": "private", "data": {"to": "nobody", "text": "psst"}}).to_string());
    ann.read_until("No such user");
}

const METRICS_AFTER_CHAT: [(&str, u64); 13] = [
    ("connections{endpoint=\"/\"}", 1),
    ("connections{endpoint=\"/ws/{room}\"}", 1),
    ("connections{endpoint=\"/ws\"}", 1),
    ("connections{endpoint=\"/echo\"}", 0),
    ("connections{endpoint=\"none\"}", 0),
    ("rooms", 1),
    ("accepts_total", 3),
    ("messages_total{dialect=\"events\"}", 3),
    ("messages_total{dialect=\"rooms\"}", 2),
    ("messages_total{dialect=\"presence\"}", 1),
    ("deliveries_total", 6 * 3 + 2),
    ("duplicates_total", 1),
    ("storage_queue_bytes", 0),
];

/// Opens and closes nine connections: two echo clients, four chat clients and three rejected requests.
fn close_in_many_ways(host: &Host, bytes: &ByteCounts) {
    let mut echo = CountingClient::join(host, "/echo?token=dev-token", bytes, "");
    echo.send_text(&"x".repeat(70_000));
    assert_eq!(echo.read_frame().payload.len(), 70_000);
    host.wait_for_metrics(&[("connections{endpoint=\"/echo\"}", 1)]);
    echo.close(&4001u16.to_be_bytes());
    let mut rude = CountingClient::join(host, "/echo?token=dev-token", bytes, "");
    rude.send(b"\x81\x02no");
    rude.shut_down();
    let mut gone = CountingClient::join(host, &events_path("gone", "away"), bytes, "");
    let welcome: Value = serde_json::from_str(&gone.read_until("welcome")).unwrap();
    gone.shut_down();
    host.wait_for_metrics(&[("rooms", 1)]);
    let resume = |epoch: &str| format!("{}&epoch={epoch}&since=0", events_path("gone", "away"));
    let epoch = welcome["data"]["epoch"].as_str().unwrap();
    CountingClient::join(host, &resume(epoch), bytes, "\"resumed\":true").close(b"");
    CountingClient::join(host, &resume("other"), bytes, "\"resumed\":false").close(&1000u16.to_be_bytes());
    let mut kicked = CountingClient::join(host, &events_path("kicked", "away"), bytes, "welcome");
    assert_eq!(host.json("POST", "/kick?username=kicked"), json!({"closed": 1}));
    kicked.read_until("removed by the operator");
    kicked.close(&1008u16.to_be_bytes());
    let wrong = handshake().target("/?token=wrong").bytes();
    for request in [get("/echo").bytes(), wrong.clone(), wrong] {
        CountingClient::connect(host, &request, bytes).0.finish();
    }
}

const METRICS_AFTER_CLOSE: [(&str, u64); 21] = [
    ("connections{endpoint=\"/\"}", 0),
    ("connections{endpoint=\"/ws/{room}\"}", 0),
    ("connections{endpoint=\"/ws\"}", 0),
    ("connections{endpoint=\"/echo\"}", 0),
    ("connections{endpoint=\"/inspect\"}", 0),
    ("connections{endpoint=\"none\"}", 0),
    ("rooms", 0),
    ("accepts_total", 12),
    ("rejections_total{status=\"401\"}", 2),
    ("rejections_total{status=\"426\"}", 1),
    ("closes_total{code=\"1000\"}", 3),
    ("closes_total{code=\"1002\"}", 1),
    ("closes_total{code=\"1005\"}", 1),
    ("closes_total{code=\"1006\"}", 1),
    ("closes_total{code=\"1008\"}", 1),
    ("closes_total{code=\"3xxx\"}", 1),
    ("closes_total{code=\"4xxx\"}", 1),
    ("resumes_total{outcome=\"resumed\"}", 1),
    ("resumes_total{outcome=\"restarted\"}", 1),
    ("slow_consumers_total", 0),
    ("buffered_bytes", 0),
];

#[test]
fn metrics_match_a_scripted_load() {
    let host = Host::start(&["--ping-interval", "3600", "--idle-timeout", "7200"]);
    let bytes = ByteCounts::default();
    let mut ann = CountingClient::join(&host, &events_path("ann", "tea"), &bytes, "welcome");
    let mut ben = CountingClient::join(&host, &rooms_path("tea"), &bytes, "joined");
    let mut pat = CountingClient::join(&host, &presence_path("pat", "1", "tea"), &bytes, "user_joined");
    talk(&mut ann, &mut ben, &mut pat);
    host.wait_for_metrics(&METRICS_AFTER_CHAT);
    close_in_many_ways(&host, &bytes);
    ann.close(&1000u16.to_be_bytes());
    ben.read_until("left");
    ben.close(&1000u16.to_be_bytes());
    pat.read_until("Anonymous");
    pat.close(&3000u16.to_be_bytes());
    host.wait_for_metrics(&METRICS_AFTER_CLOSE);
    let [sent, received] = bytes.get();
    host.wait_for_metrics(&[("received_bytes_total", sent), ("sent_bytes_total", received)]);
    let metrics = host.metrics();
    assert!(metrics["turn_duration_seconds_count"] > 10.0 && metrics["turn_duration_seconds_sum"] > 0.0);
    for (name, total) in [("rejections_total", 3.0), ("closes_total", 9.0), ("messages_total", 6.0)] {
        let rows = metrics.iter().filter(|(sample, _)| sample.starts_with(name));
        assert_eq!(rows.map(|(_, count)| count).sum::<f64>(), total, "{name}: each once");
    }
}

/// The server sends Close 1008 to a client that does not read, and counts one slow consumer.
#[test]
fn slow_consumers_are_counted() {
    let host = Host::start(&["--max-outbox", "1024"]);
    let mut slow = host.join("slow", "tea");
    let mut ann = host.join("ann", "tea");
    slow.read_event("joined");
    let text = json!({"event": "message", "data": {"text": "x".repeat(500)}}).to_string();
    wait_until("the outbox of the slow consumer overflows", || {
        for _ in 0..100 {
            ann.send_text(&text);
            ann.read_event("message");
        }
        host.metrics()["slow_consumers_total"] == 1.0
    });
    assert_eq!(read_close(&mut slow), (1008, "too slow to read".to_owned()));
    slow.try_send(&masked(0x88, b""));
    host.wait_for_metrics(&[("closes_total{code=\"1008\"}", 1), ("connections{endpoint=\"/\"}", 1)]);
}

/// promtool parses `/metrics` in the Prometheus text format; the Python package prometheus_client parses OpenMetrics.
#[test]
fn independent_parsers_accept_the_metrics() {
    #[cfg(feature = "sqlite")]
    let folder = history_file::Directory::new("metrics");
    #[cfg(feature = "sqlite")]
    let host = Host::start(&["--history-db", folder.0.join("chat.db").to_str().unwrap()]);
    #[cfg(not(feature = "sqlite"))]
    let host = Host::start(&[]);
    let mut client = host.join("ann", "tea");
    assert_eq!(host.server.status(&get("/nowhere")), 404);
    client.send(&masked(0x88, b""));
    host.wait_for_metrics(&[("closes_total{code=\"1005\"}", 1), ("rejections_total{status=\"404\"}", 1)]);
    let rows = [
        ("", true),
        ("Accept: */*", true),
        ("Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1", true),
        ("Accept: text/plain;version=0.0.4", false),
        ("Accept: TEXT/plain", false),
    ];
    for (header, is_open_metrics) in rows {
        let request = if header.is_empty() { get("/metrics") } else { get("/metrics").add(header) };
        let response = host.exchange(&request);
        let kind = response.header("Content-Type").split(';').next().unwrap();
        assert_eq!(kind == "application/openmetrics-text", is_open_metrics, "{header}: {kind}");
        assert_eq!(response.body.ends_with("# EOF\n"), is_open_metrics, "{header}");
    }
    let text = host.exchange(&get("/metrics").add("Accept: text/plain")).body;
    assert_eq!(text.contains("wirechat_storage_commit_duration_seconds_bucket"), cfg!(feature = "sqlite"));
    if let Some(promtool) = require_tool("promtool", &[]) {
        let output = feed(Command::new(promtool).args(["check", "metrics"]), &text);
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    // Requires a Python venv in target/openmetrics with the packages of tests/openmetrics/requirements.txt.
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/openmetrics/bin/python");
    if let Some(python) = require_tool("openmetrics-python", &[python]) {
        const SCRIPT: &str = "import sys; from prometheus_client.openmetrics import parser; \
            print(*sorted(f.name + ' ' + f.type for f in parser.text_string_to_metric_families(sys.stdin.read())), sep='\\n')";
        let output = feed(Command::new(python).args(["-c", SCRIPT]), &host.request("GET", "/metrics").body);
        let families = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for family in ["connections gauge", "messages counter", "closes counter", "turn_duration_seconds histogram"] {
            assert!(families.lines().any(|line| line == format!("wirechat_{family}")), "{family}: {families}");
        }
    }
}

/// Runs `command` with `input` on its stdin.
fn feed(command: &mut Command, input: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the tool runs");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).expect("the tool reads its stdin");
    child.wait_with_output().unwrap()
}

#[test]
fn clients_are_listed() {
    let host = Host::start(&[]);
    let ann = host.join("ann", "a b");
    let mut ben = host.server.upgrade(&rooms_path("tea"));
    ben.send_text(r#"{"username":"<ben>","text":"hi"}"#);
    while !ben.read_text().contains("hi") {}
    let _echo = host.server.upgrade("/echo?token=dev-token");
    let clients = host.json("GET", "/clients");
    let clients = clients.as_array().unwrap();
    let fields = |name: &str| clients.iter().map(|client| client[name].clone()).collect::<Vec<_>>();
    assert_eq!(fields("username"), [json!("ann"), json!("<ben>"), json!(null)]);
    assert_eq!(fields("room"), [json!("a b"), json!("tea"), json!(null)]);
    assert_eq!(fields("dialect"), ["events", "rooms", "echo"]);
    assert_eq!(fields("address"), ["127.0.0.1"; 3]);
    assert_eq!(fields("queued"), [0; 3]);
    assert!(fields("connection").is_sorted_by_key(|number| number.as_u64()));
    for since in &fields("since")[..2] {
        let since = humantime::parse_rfc3339(since.as_str().unwrap()).unwrap();
        assert!(since.elapsed().unwrap() < support::DEADLINE);
    }
    drop(ann);
    wait_until("the list is shorter", || host.json("GET", "/clients").as_array().unwrap().len() == 2);
}

#[test]
fn kicked_clients() {
    let host = Host::start(&[]);
    let (mut ann, mut twin, mut other) = (host.join("Ann", "tea"), host.join("ann", "pub"), host.join("anne", "tea"));
    assert_eq!(host.json("POST", "/kick?username=ANN"), json!({"closed": 2}));
    assert_eq!((read_close(&mut ann), read_close(&mut twin)), (removal_close(), removal_close()));
    assert_eq!(other.read_event("left")["username"], "Ann");
    host.server.wait_for_log("KICK user=ann closed=2 by=127.0.0.1:");
    // In the `rooms` dialect of the protocol, a client's username is the one in its latest message.
    let mut ben = host.server.upgrade(&rooms_path("tea"));
    ben.send_text(r#"{"username":"ben","text":"hi"}"#);
    while !ben.read_text().contains("hi") {}
    assert_eq!(host.json("POST", "/kick?username=ben"), json!({"closed": 1}));
    assert_eq!(read_close(&mut ben), removal_close());
    // An echo client has no username, so kick the client by its connection number.
    let mut echo = host.server.upgrade("/echo?token=dev-token");
    let clients = host.json("GET", "/clients");
    let number = clients.as_array().unwrap().last().unwrap()["connection"].as_u64().unwrap();
    assert_eq!(host.json("POST", &format!("/kick?connection={number}")), json!({"closed": 1}));
    assert_eq!(host.json("POST", &format!("/kick?connection={number}")), json!({"closed": 0}), "already closing");
    assert_eq!(read_close(&mut echo), removal_close());
    host.json("POST", "/kick?username=x%20y%3D1");
    host.server.wait_for_log("KICK user=\"x y=1\" closed=0");
    other.send_text(r#"{"event":"ping"}"#);
    other.read_event("pong");
    assert_eq!(host.server.status(&handshake().target(events_path("ann", "tea"))), 101, "a kick is not a ban");
}

#[test]
fn banned_usernames() {
    let host = Host::start(&[]);
    let mut mallory = host.join("mallory", "tea");
    let mut ben = host.server.upgrade(&rooms_path("tea"));
    assert_eq!(host.json("POST", "/ban?username=Mallory&seconds=3600"), json!({"closed": 1}));
    assert_eq!(read_close(&mut mallory), removal_close());
    host.server.wait_for_log("BAN user=mallory seconds=3600 closed=1 by=127.0.0.1:");
    let status = |path: &str| host.server.status(&handshake().target(path));
    for name in ["mallory", "MALLORY", "ｍａｌｌｏｒｙ"] {
        assert_eq!(status(&events_path(name, "tea")), 403, "{name}");
        assert_eq!(status(&presence_path(name, "1", "tea")), 403, "{name}");
    }
    assert_eq!(status(&events_path("mallory2", "tea")), 101);
    let check = host.server.connect().exchange_text("/check?token=dev-token&username=mallory");
    assert!(check.contains("\"status\":403") && check.contains("operator has banned"), "{check}");
    // In the `rooms` dialect, each message carries a username, so the server checks each message against the bans.
    for (name, words) in [("Mallory", "The username Mallory is banned"), ("ben", "\"text\":\"hi\"")] {
        ben.send_text(&json!({"username": name, "text": "hi"}).to_string());
        let mut text = ben.read_text();
        while text.contains("system") {
            text = ben.read_text();
        }
        assert!(text.contains(words), "{text}");
    }
    let bans = host.json("GET", "/bans");
    assert_eq!((bans.as_array().unwrap().len(), &bans[0]["username"]), (1, &json!("mallory")));
    let until = humantime::parse_rfc3339(bans[0]["until"].as_str().unwrap()).unwrap();
    let left = until.duration_since(std::time::SystemTime::now()).unwrap().as_secs();
    assert!((3500..=3600).contains(&left), "{left}");
    assert_eq!(host.json("DELETE", "/ban?username=mallory"), json!({"lifted": 1}));
    host.server.wait_for_log("UNBAN user=mallory lifted=1 by=127.0.0.1:");
    assert_eq!(host.json("GET", "/bans"), json!([]));
    assert_eq!(status(&events_path("mallory", "tea")), 101);
    host.json("POST", "/ban?username=mallory&seconds=1");
    wait_until("the ban is over", || status(&events_path("mallory", "tea")) == 101);
    assert_eq!(host.json("GET", "/bans"), json!([]));
}

/// The server bans by the client address that the proxy sends in `X-Forwarded-For`. Banning an IPv6 address bans its
/// whole /64 network.
#[test]
fn banned_addresses() {
    let host = Host::start(&["--trusted-proxy", "127.0.0.1", "--open"]);
    let from = |address: &str, path: &str| handshake().target(path).add(format!("X-Forwarded-For: {address}"));
    let join = |address: &str| {
        let mut client = host.server.connect();
        client.send(&from(address, "/?username=ann").bytes());
        assert!(client.read_head().starts_with("HTTP/1.1 101 "), "{address}");
        client
    };
    let (mut banned, mut neighbor, mut six) = (join("192.0.2.7"), join("192.0.2.8"), join("2001:db8::1"));
    let mut echo = host.server.connect();
    echo.send(&from("192.0.2.7", "/echo").bytes());
    echo.read_head();
    assert_eq!(host.json("POST", "/ban?address=192.0.2.7&seconds=60"), json!({"closed": 2}));
    assert_eq!((read_close(&mut banned), read_close(&mut echo)), (removal_close(), removal_close()));
    assert_eq!(host.json("POST", "/ban?address=2001:db8::abcd&seconds=60"), json!({"closed": 1}));
    assert_eq!(read_close(&mut six), removal_close());
    host.server.wait_for_log("BAN address=2001:db8::/64 seconds=60 closed=1");
    let rows = [
        ("192.0.2.7", "/?username=new", 403),
        ("192.0.2.7", "/ws/tea", 403),
        ("192.0.2.7", "/ws?username=new&client_id=1", 403),
        ("192.0.2.7", "/echo", 403),
        ("::ffff:192.0.2.7", "/echo", 403),
        ("2001:db8::2", "/echo", 403),
        ("2001:db8:0:1::2", "/echo", 101),
        ("192.0.2.8", "/echo", 101),
    ];
    for (address, path, status) in rows {
        assert_eq!(host.server.status(&from(address, path)), status, "{address} {path}");
    }
    neighbor.send_text(r#"{"event":"ping"}"#);
    neighbor.read_event("pong");
    let bans = host.json("GET", "/bans");
    assert_eq!((&bans[0]["address"], &bans[1]["address"]), (&json!("192.0.2.7"), &json!("2001:db8::/64")));
    assert_eq!(host.json("DELETE", "/ban?address=2001:db8::3"), json!({"lifted": 1}));
    assert_eq!(host.server.status(&from("2001:db8::2", "/echo")), 101);
}

/// The list of clients and the bans use the client address from the PROXY protocol header.
#[test]
fn clients_named_by_a_proxy_header() {
    let host = Host::start(&["--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--open"]);
    let join = |header: &str| {
        let mut client = host.server.connect();
        client.send(&[header.as_bytes(), &handshake().target("/?username=ann").bytes()].concat());
        let status = Response::parse(client.read_head().as_bytes()).status;
        (client, status)
    };
    let header = "PROXY TCP4 192.0.2.7 192.0.2.99 4711 443\r\n";
    let (mut ann, status) = join(header);
    assert_eq!((status, &host.json("GET", "/clients")[0]["address"]), (101, &json!("192.0.2.7")));
    assert_eq!(host.json("POST", "/ban?address=192.0.2.7&seconds=60"), json!({"closed": 1}));
    assert_eq!(read_close(&mut ann), removal_close());
    assert_eq!([join(header).1, join("PROXY UNKNOWN\r\n").1], [403, 101]);
    host.server.connect().send(b"GET / HTTP/1.1\r\n");
    host.wait_for_metrics(&[("rejections_total{status=\"400\"}", 1), ("rejections_total{status=\"403\"}", 1)]);
}

#[test]
fn published_messages() {
    let host = Host::start(&["--max-text", "10"]);
    let mut ann = host.join("ann", "tea");
    let mut ben = host.server.upgrade(&rooms_path("tea"));
    let body = json!({"username": " bot ", "text": " hi ", "nonce": "n1"}).to_string();
    let published = parse_json(&host.publish("tea", &body));
    assert_eq!(published["username"], "bot");
    assert_eq!((&published["text"], &published["id"], &published["nonce"]), (&json!("hi"), &json!(1), &json!("n1")));
    assert_eq!(ann.read_event("joined")["username"], "Anonymous");
    assert_eq!(ann.read_json(), json!({"event": "message", "data": published}), "the publisher does not join");
    while ben.read_text() != r#"{"type":"message","username":"bot","text":"hi"}"# {}
    host.server.wait_for_log("PUBLISH room=tea user=bot by=127.0.0.1:");
    // A second request with the same nonce publishes nothing and gets the same response.
    assert_eq!(parse_json(&host.publish("tea", &body)), published);
    assert_eq!(parse_json(&host.publish("tea", r#"{"username":"bot","text":"/msg ann x"}"#))["id"], 2);
    assert_eq!(ann.read_json()["data"]["text"], "/msg ann x", "/msg is plain text here, and ann received no duplicate");
    ann.send_text(r#"{"event":"message","data":{"text":"three"}}"#);
    assert_eq!(ann.read_json()["data"]["id"], 3);
    let mut carl = host.server.upgrade(&events_path("carl", "tea"));
    let welcome = carl.read_event("welcome");
    assert_eq!((&welcome["members"], &welcome["member_count"]), (&json!(["ann", "Anonymous"]), &json!(2)));
    assert_eq!(welcome["history"][0], published);
    // The server keeps messages that are published to an empty room. The next client that joins receives them in
    // `welcome`.
    for id in [1, 2] {
        let body = json!({"username": "bot", "text": "early"}).to_string();
        assert_eq!(parse_json(&host.publish("new", &body))["id"], id);
    }
    host.wait_for_metrics(&[("rooms", 1), ("deliveries_total", 2 * 2 + 2)]);
    let welcome = host.server.upgrade(&events_path("carl", "new")).read_event("welcome");
    assert_eq!((&welcome["last_id"], &welcome["members"]), (&json!(2), &json!([])));
    assert_eq!(welcome["history"][1]["text"], "early");
}

#[test]
fn messages_that_are_not_published() {
    let host = Host::start(&["--max-text", "10", "--max-rooms", "1"]);
    let mut ann = host.join("ann", "tea");
    let rows = [
        (r#"{"username":"bot","text":"hi"}"#, "other", "There are too many rooms"),
        ("", "tea", "Invalid JSON"),
        ("hi", "tea", "Invalid JSON"),
        ("{\"username\":\"\u{fffd}", "tea", "Invalid JSON"),
        ("[]", "tea", "data must be a JSON object"),
        (r#"{"username":"bot","text":"hi"},"event":{}"#, "tea", "Invalid JSON"),
        (r#"{"text":"hi"}"#, "tea", "data.username is missing"),
        (r#"{"username":7,"text":"hi"}"#, "tea", "data.username must be a string"),
        (r#"{"username":"","text":"hi"}"#, "tea", "A username has 1 to 32 characters"),
        (r#"{"username":"a\u0007","text":"hi"}"#, "tea", "A username must not hold control"),
        (r#"{"username":"bot"}"#, "tea", "Nothing to send"),
        (r#"{"username":"bot","text":"  "}"#, "tea", "Nothing to send"),
        (r#"{"username":"bot","text":"12345678901"}"#, "tea", "Message too long"),
        (r#"{"username":"bot","text":7}"#, "tea", "data.text"),
        (r#"{"username":"bot","text":"hi","nonce":""}"#, "tea", "data.nonce: a nonce has 1 to 64 characters"),
        (r#"{"username":"bot","text":"hi","text":"ho"}"#, "tea", "text"),
    ];
    each_row(
        &rows,
        |(body, room, _)| format!("{room} {body}"),
        |(body, room, error)| {
            let response = host.publish(room, body);
            assert_eq!(response.status, 400, "{response:?}");
            assert!(response.body.contains(error), "{response:?}");
        },
    );
    assert_eq!(host.publish("x\u{7}", r#"{"username":"bot","text":"hi"}"#).status, 400);
    ann.send_text(r#"{"event":"ping"}"#);
    assert_eq!(ann.read_json()["event"], "pong", "ann received no message");
    assert_eq!(parse_json(&host.publish("tea", r#"{"username":"bot","text":"1234567890"}"#))["id"], 1);
}

/// The server stores a published message like a client's message. The server responds as soon as the message is on
/// disk. If that takes more than 10 seconds, the server responds 503.
#[test]
#[cfg(feature = "sqlite")]
fn published_messages_are_durable() {
    let folder = history_file::Directory::new("admin");
    let start = || {
        let args = ["--admin", "127.0.0.1:0", "--history-db", "chat.db"];
        Host::launch(Server::command("127.0.0.1:0", &args).current_dir(&folder.0))
    };
    let host = start();
    let body = r#"{"username":"bot","text":"hi","nonce":"n1"}"#;
    assert!(!host.request("GET", "/metrics").body.contains("storage_commit_duration_seconds_count 1"));
    let published = parse_json(&host.publish("tea", body));
    host.wait_for_metrics(&[("storage_commit_duration_seconds_count", 1)]);
    host.server.signal("KILL");
    drop(host);
    let host = start();
    let mut ann = host.join("ann", "pub");
    assert_eq!(parse_json(&host.publish("tea", body)), published, "the nonce is known across restarts");
    assert_eq!(parse_json(&host.publish("tea", r#"{"username":"bot","text":"ho"}"#))["id"], 2);
    let welcome = host.server.upgrade(&events_path("ben", "tea")).read_event("welcome");
    assert_eq!((&welcome["history"][0], &welcome["last_id"], &welcome["members"]), (&published, &json!(2), &json!([])));
    let Some(stall) = stall::Stall::begin(&host.server) else { return };
    let mut late = host.connect();
    late.send(&publish_request("late", body).bytes());
    host.server.wait_for_log("PUBLISH room=late");
    let response = late.read_response();
    assert_eq!((response.status, response.body.contains("same nonce")), (503, true), "{response:?}");
    let reason = host.request("GET", "/ready");
    assert_eq!((reason.status, reason.body.as_str()), (503, "storage: messages wait for the disk\n"));
    assert_eq!(host.request("GET", "/live").status, 200);
    assert!(host.metrics()["storage_queue_bytes"] > 0.0);
    let mut patient = host.connect();
    patient.send(&publish_request("pub", r#"{"username":"bot","text":"patience"}"#).bytes());
    host.server.wait_for_log("PUBLISH room=pub");
    stall.end();
    let published = parse_json(&patient.read_response());
    assert_eq!(ann.read_json(), json!({"event": "message", "data": published}));
    wait_until("the server is ready again", || host.request("GET", "/ready").status == 200);
    assert_eq!(host.server.upgrade(&events_path("ben", "late")).read_event("welcome")["last_id"], 1, "stored late");
    host.wait_for_metrics(&[("rooms", 1), ("storage_queue_bytes", 0)]);
}

/// The command that starts a server with a history file in `folder`.
#[cfg(feature = "sqlite")]
fn durable_command(folder: &history_file::Directory, args: &[&str]) -> Command {
    let args = [&["--history-db", "chat.db", "--trusted-proxy", "127.0.0.1", "--open"], args].concat();
    let mut command = Server::command("127.0.0.1:0", &args);
    command.current_dir(&folder.0);
    command
}

#[cfg(feature = "sqlite")]
fn durable_host(folder: &history_file::Directory) -> Host {
    Host::launch(&mut durable_command(folder, &["--admin", "127.0.0.1:0"]))
}

#[cfg(feature = "sqlite")]
fn kill(host: Host) {
    host.server.signal("KILL");
}

#[cfg(feature = "sqlite")]
fn status_from(server: &Server, address: &str, path: &str) -> u16 {
    server.status(&handshake().target(path).add(format!("X-Forwarded-For: {address}")))
}

/// The server stores a ban in the history file before responding, so a ban survives even SIGKILL.
#[test]
#[cfg(feature = "sqlite")]
fn bans_are_durable() {
    let folder = history_file::Directory::new("bans");
    let host = durable_host(&folder);
    let mut ann = host.join("ann", "tea");
    assert_eq!(host.json("POST", "/ban?username=ANN&seconds=3600"), json!({"closed": 1}));
    assert_eq!(read_close(&mut ann), removal_close());
    for subject in ["username=ben%20x", "address=192.0.2.7", "address=2001:db8::7", "address=192.0.2.9"] {
        assert_eq!(host.json("POST", &format!("/ban?{subject}&seconds=60")), json!({"closed": 0}));
    }
    host.json("POST", "/ban?username=ben%20x&seconds=7200"); // replaces the 60-second ban
    assert_eq!(host.json("DELETE", "/ban?address=192.0.2.9"), json!({"lifted": 1}));
    assert_eq!(host.json("DELETE", "/ban?address=192.0.2.9"), json!({"lifted": 0}));
    let bans = host.json("GET", "/bans");
    host.json("POST", "/ban?username=carl&seconds=1");
    kill(host);

    let host = durable_host(&folder);
    wait_until("the shortest ban is over", || host.json("GET", "/bans").as_array().unwrap().len() == 4);
    let until = |ban: &Value| humantime::parse_rfc3339(ban["until"].as_str().unwrap()).unwrap();
    for (before, after) in bans.as_array().unwrap().iter().zip(host.json("GET", "/bans").as_array().unwrap()) {
        assert_eq!((&before["address"], &before["username"]), (&after["address"], &after["username"]));
        // The history file stores the end of a ban in seconds, rounded up.
        let later = until(after).duration_since(until(before)).expect("no ban ends early");
        assert!(later.as_secs() <= 1, "{before} {after}");
    }
    let status = |address: &str, path: &str| status_from(&host.server, address, path);
    let addresses = ["192.0.2.7", "2001:db8::1", "192.0.2.9"].map(|address| status(address, "/echo"));
    assert_eq!(addresses, [403, 403, 101]);
    let names = ["Ann", "ben%20x", "carl"].map(|name| status("192.0.2.1", &format!("/?username={name}")));
    assert_eq!(names, [403, 403, 101]);
    for subject in ["username=ann", "username=ben%20x", "address=2001:db8::7"] {
        assert_eq!(host.json("DELETE", &format!("/ban?{subject}")), json!({"lifted": 1}));
    }
    kill(host);

    let host = durable_host(&folder);
    assert_eq!(host.json("GET", "/bans")[0]["address"], "192.0.2.7");
    assert_eq!(host.json("GET", "/bans").as_array().unwrap().len(), 1, "lifted bans stay lifted");
    kill(host);
    let file = rusqlite::Connection::open(folder.0.join("chat.db")).unwrap();
    let subjects = file.query_row("SELECT group_concat(subject) FROM bans", [], |row| row.get::<_, String>(0));
    assert_eq!(subjects.unwrap(), "address 192.0.2.7", "bans that are over are removed");
}

/// A server without `--admin` still enforces stored bans. A history file from an older version has no `bans`
/// table, so the server creates the table.
#[test]
#[cfg(feature = "sqlite")]
fn bans_without_the_admin_port_and_in_an_old_file() {
    let folder = history_file::Directory::new("old-bans");
    let ban = |host: &Host| assert_eq!(host.json("POST", "/ban?address=192.0.2.7&seconds=60"), json!({"closed": 0}));
    let host = durable_host(&folder);
    ban(&host);
    kill(host);
    let server = Server::launch(&mut durable_command(&folder, &[]));
    assert_eq!(["192.0.2.7", "192.0.2.8"].map(|address| status_from(&server, address, "/echo")), [403, 101]);
    drop(server);
    rusqlite::Connection::open(folder.0.join("chat.db")).unwrap().execute("DROP TABLE bans", []).unwrap();
    let host = durable_host(&folder);
    assert_eq!(host.json("GET", "/bans"), json!([]));
    ban(&host);
    kill(host);
    assert_eq!(durable_host(&folder).json("GET", "/bans")[0]["address"], "192.0.2.7");
}

/// Even while the disk is stalled, a ban takes effect at once. The server responds as soon as the ban is stored. If
/// that takes more than 10 seconds, the server responds 507.
#[test]
#[cfg(feature = "sqlite")]
fn a_ban_waits_for_the_disk() {
    let folder = history_file::Directory::new("slow-ban");
    let args = ["--admin", "127.0.0.1:0", "--history-db", "chat.db"];
    let host = Host::launch(Server::command("127.0.0.1:0", &args).current_dir(&folder.0));
    let mut ann = host.join("ann", "tea");
    let Some(stall) = stall::Stall::begin(&host.server) else { return };
    let send = |target: &str| {
        let mut client = host.connect();
        client.send(&get(target).method("POST").bytes());
        client
    };
    let mut late = send("/ban?username=ann&seconds=3600");
    assert_eq!(read_close(&mut ann), removal_close());
    assert_eq!(host.json("GET", "/bans")[0]["username"], "ann");
    let response = late.read_response();
    assert_eq!((response.status, response.body.contains("not stored yet")), (507, true), "{response:?}");
    let mut patient = send("/ban?username=ben&seconds=3600");
    host.server.wait_for_log("BAN user=ben");
    drop(send("/ban?username=carl&seconds=3600")); // this peer disconnects before the response
    host.server.wait_for_log("BAN user=carl");
    stall.end();
    assert_eq!(parse_json(&patient.read_response()), json!({"closed": 0}));
    wait_until("the commits are counted", || host.metrics()["storage_commit_duration_seconds_count"] >= 1.0);
    assert!(host.metrics()["storage_commit_duration_seconds_sum"] > 0.0);
}

/// When the server has no file descriptors left, `/ready` responds 503 on an admin connection that is already open.
#[test]
fn a_server_without_descriptors_is_not_ready() {
    let host = Host::start(&[]);
    let open = || -> Vec<usize> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", host.server.pid())).expect("a process");
        let number = |entry: std::fs::DirEntry| entry.file_name().to_str().expect("digits").parse();
        descriptors.map(|entry| number(entry.expect("a descriptor")).expect("a number")).collect()
    };
    let before = open().len();
    let mut monitor = host.connect();
    wait_until("the server has accepted the connection", || open().len() == before + 1);
    let open = open();
    let free = (0..).find(|number| !open.contains(number)).expect("a free number");
    let limit = ["--pid".to_owned(), host.server.pid().to_string(), format!("--nofile={free}:")];
    assert!(Command::new("prlimit").args(limit).status().expect("prlimit runs").success());
    let _waiting = host.server.connect();
    host.server.wait_for_log("ACCEPT failed");
    monitor.send(&get("/ready").bytes());
    let response = monitor.read_response();
    assert_eq!((response.status, response.body.starts_with("descriptors: ")), (503, true), "{response:?}");
}

#[test]
fn a_full_server_is_not_ready() {
    let host = Host::start(&["--max-connections", "1"]);
    let client = host.join("ann", "tea");
    let response = host.request("GET", "/ready");
    assert_eq!((response.status, response.body.lines().count()), (503, 1));
    assert!(response.body.starts_with("full: "), "{response:?}");
    let head = host.request("HEAD", "/ready");
    assert_eq!((head.status, head.body.as_str()), (503, ""));
    assert_eq!(host.request("GET", "/live").status, 200);
    drop(client);
    wait_until("the server is ready again", || host.request("GET", "/ready").status == 200);
}

/// At shutdown, the server waits two seconds for clients to reply to its Close. In those two seconds, `/ready` and
/// `/publish` respond 503.
#[test]
fn a_server_that_is_shutting_down_is_not_ready() {
    let is_seen = (0..5).any(|_| {
        let mut host = Host::start(&[]);
        let _client = host.join("ann", "tea");
        let (mut ready, mut publish) = (host.connect(), host.connect());
        assert_eq!(host.request("GET", "/live").status, 200, "the server has accepted both connections");
        host.server.signal("TERM");
        host.server.wait_for_log("STOP");
        ready.try_send(&get("/ready").bytes());
        publish.try_send(&publish_request("tea", r#"{"username":"bot","text":"hi"}"#).bytes());
        let responses = [ready, publish].map(|mut client| String::from_utf8(client.read_to_end()).unwrap());
        assert!(host.server.wait().success());
        responses[0].contains("503") && responses[0].contains("draining") && responses[1].contains("503")
    });
    assert!(is_seen, "no 503 in five attempts");
}

/// The server does not start if the address of `--admin` is in use, or equals the address of `--listen`.
#[test]
fn addresses_that_are_in_use() {
    let host = Host::start(&[]);
    let fail = |listen: &str, admin: &str| {
        let mut command = Server::command(listen, &["--admin", admin]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        error
    };
    let error = fail("127.0.0.1:0", &host.admin.to_string());
    assert!(error.contains("already in use") && error.contains("--admin"), "{error}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = fail(&free, &free);
    assert!(error.contains("--listen") || error.contains("--admin"), "{error}");
    // `--admin` with only a port listens on loopback.
    let host = Host::launch(&mut Server::command("127.0.0.1:0", &["--admin", "0"]));
    assert!(host.admin.ip().is_loopback());
}

#[test]
fn the_admin_tool_runs_commands() {
    let host = Host::start(&[]);
    let mut ann = host.join("ann", "tea");
    let printed = |arguments: &[&str]| {
        let output = host.run_tool(arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(printed(&["clients"]).contains("\"username\":\"ann\""));
    assert!(printed(&["publish", "tea", "hello there"]).contains("\"username\":\"operator\""));
    assert_eq!(ann.read_event("message")["text"], "hello there");
    assert!(printed(&["publish", "tea", "x", "--username", "bot", "--nonce", "n"]).contains("\"nonce\":\"n\""));
    assert_eq!(printed(&["kick", "ann"]), "{\"closed\":1}\n");
    assert_eq!(read_close(&mut ann), removal_close());
    assert_eq!(printed(&["kick", "--connection", "1"]), "{\"closed\":0}\n");
    assert_eq!(printed(&["ban", "ann", "--seconds", "60"]), "{\"closed\":0}\n");
    assert_eq!(printed(&["ban", "--address", "2001:db8::1"]), "{\"closed\":0}\n");
    assert!(printed(&["bans"]).contains("\"username\":\"ann\""));
    assert_eq!(printed(&["unban", "ann"]), "{\"lifted\":1}\n");
    assert_eq!(printed(&["unban", "--address", "2001:db8::"]), "{\"lifted\":1}\n");
    assert_eq!(printed(&["bans", "--url", &format!("http://{}", host.admin)]), "[]\n");
    assert_eq!(printed(&["bans", "--url", &host.admin.port().to_string()]), "[]\n");
    let failing = |arguments: &[&str], status: i32, words: &str| {
        let output = host.run_tool(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(status), 0), "{arguments:?}: {error}");
        assert!(error.contains(words) && error.lines().count() == 1, "{arguments:?}: {error}");
    };
    failing(&["publish", "tea", " "], 1, "400: Nothing to send");
    failing(&["ban", "ann", "--seconds", "0"], 1, "seconds must be");
    failing(&["clients", "--url", &format!("http://{}", host.server.addr())], 1, "404");
    failing(&["clients", "--url", "1"], 1, "cannot connect");
    failing(&["clients", "--url", "https://127.0.0.1"], 2, "https is not supported");
    failing(&["dance"], 2, "dance");
    failing(&["kick"], 2, "NAME");
}

trait Exchange {
    fn exchange_text(self, target: &str) -> String;
}

impl Exchange for RawClient {
    /// Sends a GET request and returns the response's body.
    fn exchange_text(mut self, target: &str) -> String {
        self.send(&get(target).bytes());
        self.read_response().body
    }
}
