//! Tests TLS with real clients: rustls, openssl and Python. The tests check the handshake, the data in both
//! directions, the end of a session, and the reload of certificates while the server runs.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, StreamOwned};
use support::certificate::{Certificate, EC, RSA};
use support::failure::{USAGE, expect_start_failure};
use support::http::{Response, get, handshake};
use support::table::each_row;
use support::tls::{client_settings, forward_to, new_session};
use support::{
    DEADLINE, Frame, RawClient, Server, becomes_true, masked, require_tool, split_frame, upgrade_request, wait_until,
};

const ECHO: &str = "/echo?token=dev-token";
const MIB: usize = 1024 * 1024;

/// A server with a certificate, and the settings of a client that trusts the certificate.
struct Fixture {
    server: Server,
    certificate: Certificate,
    settings: Arc<ClientConfig>,
}

impl Fixture {
    /// Starts the server. Returns `None` if openssl is missing.
    fn new(name: &str, args: &[&str]) -> Option<Fixture> {
        let certificate = Certificate::new(name, EC)?;
        let server = Server::start(&[&certificate.options()[..], args].concat());
        let settings = Arc::new(client_settings(&[&certificate], rustls::ALL_VERSIONS, &["http/1.1"]));
        Some(Fixture { server, certificate, settings })
    }

    fn connect(&self) -> TlsClient {
        TlsClient::connect(self.server.addr(), &self.settings)
    }

    fn upgrade(&self, path: &str) -> TlsClient {
        let mut client = self.connect();
        client.upgrade(path);
        client
    }
}

struct TlsClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    received: Vec<u8>,
}

impl TlsClient {
    fn connect(server: SocketAddr, settings: &Arc<ClientConfig>) -> TlsClient {
        let tcp = TcpStream::connect(server).expect("the server accepts");
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.set_write_timeout(Some(DEADLINE)).unwrap();
        TlsClient { stream: StreamOwned::new(new_session(settings), tcp), received: Vec::new() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server accepts bytes");
        self.stream.flush().expect("the server accepts bytes");
    }

    fn upgrade(&mut self, path: &str) {
        self.send(upgrade_request(path).as_bytes());
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a response");
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    }

    fn read_frame(&mut self) -> Frame {
        loop {
            if let Some((frame, rest)) = split_frame(&self.received) {
                self.received = rest.to_vec();
                return frame;
            }
            let mut chunk = [0; 16 * 1024];
            let len = self.stream.read(&mut chunk).expect("a frame");
            assert!(len > 0, "the stream ended before a frame");
            self.received.extend_from_slice(&chunk[..len]);
        }
    }

    fn expect_echo(&mut self, text: &str) {
        self.send(&masked(0x81, text.as_bytes()));
        assert_eq!(self.read_frame().text(), text);
    }

    /// Reads until the server ends the session with a close_notify alert. If the TCP stream ends without this alert,
    /// rustls returns `UnexpectedEof`, and this function panics.
    fn read_to_close_notify(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.received);
        self.stream.read_to_end(&mut rest).expect("close_notify before the end of TCP");
        rest
    }
}

#[test]
fn versions_and_keys() {
    for algorithm in [EC, RSA] {
        let Some(certificate) = Certificate::new(&format!("versions-{}", algorithm[0].replace(':', "-")), algorithm)
        else {
            return;
        };
        let server = Server::start(&certificate.options());
        assert!(server.printed().contains("listens on https://127.0.0.1:"), "{}", server.printed());
        wait_until("the banner names wss", || server.printed().contains("wscat -c 'wss://127.0.0.1:"));
        for (version, name) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
            let settings = Arc::new(client_settings(&[&certificate], &[version], &[]));
            let mut client = TlsClient::connect(server.addr(), &settings);
            client.upgrade(ECHO);
            client.expect_echo("over TLS");
            client.expect_echo(&"x".repeat(100_000));
            assert_eq!(client.stream.conn.protocol_version(), Some(name));
            assert_eq!(client.stream.conn.alpn_protocol(), None);
        }
    }
}

#[test]
fn alpn() {
    let Some(fixture) = Fixture::new("alpn", &[]) else { return };
    let negotiated = |names: &[&str]| {
        let settings = Arc::new(client_settings(&[&fixture.certificate], rustls::ALL_VERSIONS, names));
        let mut client = TlsClient::connect(fixture.server.addr(), &settings);
        client.stream.conn.complete_io(&mut client.stream.sock)?;
        Ok::<_, std::io::Error>(client.stream.conn.alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(negotiated(&["http/1.1"]).unwrap(), Some(b"http/1.1".to_vec()));
    assert_eq!(negotiated(&["h2", "http/1.1"]).unwrap(), Some(b"http/1.1".to_vec()));
    assert_eq!(negotiated(&[]).unwrap(), None);
    let error = negotiated(&["h2"]).unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

/// The server sends one session ticket, and a client resumes the session with this ticket (RFC 8446 §2.2). The server
/// accepts no early data, because an attacker could replay it.
#[test]
fn one_ticket_resumes_a_session() {
    let Some(fixture) = Fixture::new("tickets", &[]) else { return };
    let mut first = fixture.upgrade(ECHO);
    first.expect_echo("first");
    assert_eq!(first.stream.conn.tls13_tickets_received(), 1);
    assert_eq!(first.stream.conn.handshake_kind(), Some(HandshakeKind::Full));
    let mut second = fixture.connect();
    assert!(second.stream.conn.early_data().is_none(), "no early data");
    second.upgrade(ECHO);
    second.expect_echo("second");
    assert_eq!(second.stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn openssl_speaks_to_the_server() {
    let Some(fixture) = Fixture::new("openssl", &[]) else { return };
    for version in ["-tls1_2", "-tls1_3"] {
        let mut client = Command::new(require_tool("openssl", &[]).unwrap())
            .args(["s_client", "-quiet", "-alpn", "http/1.1", "-verify_return_error", "-CAfile"])
            .arg(&fixture.certificate.cert)
            .args([version, "-connect", &fixture.server.addr().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(&get("/health").bytes()).unwrap();
        let output = client.wait_with_output().unwrap();
        drop(stdin);
        let response = Response::parse(&output.stdout);
        assert_eq!((response.status, response.body.as_str()), (200, "{\"status\":\"ok\"}\n"), "{version}");
    }
}

const PYTHON_CLIENT: &str = r#"
import socket, ssl, sys
port, certificate = int(sys.argv[1]), sys.argv[2]
context = ssl.create_default_context(cafile=certificate)
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(('127.0.0.1', port), timeout=30) as tcp:
        with context.wrap_socket(tcp, server_hostname='localhost') as tls:
            tls.sendall(b'GET /echo?token=dev-token HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n'
                        b'Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n'
                        b'Sec-WebSocket-Version: 13\r\n\r\n')
            stream = tls.makefile('rb')
            assert b' 101 ' in stream.readline()
            while stream.readline() != b'\r\n':
                pass
            tls.sendall(b'\x81\x85\0\0\0\0Hello')
            assert stream.read(7) == b'\x81\x05Hello'
            tls.sendall(b'\x88\x82\0\0\0\0\x03\xe8')
            assert stream.read() == b'\x88\x02\x03\xe8'
            print(tls.version())
"#;

#[test]
fn python_speaks_to_the_server() {
    let Some(fixture) = Fixture::new("python", &[]) else { return };
    let Some(python) = require_tool("python3", &[]) else { return };
    let port = fixture.server.port().to_string();
    let output = Command::new(python)
        .args(["-c", PYTHON_CLIENT, &port])
        .arg(&fixture.certificate.cert)
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "TLSv1.2\nTLSv1.3\n");
}

/// The server must not assume that a record or a handshake message arrives in one read.
#[test]
fn a_handshake_cut_into_single_bytes() {
    let Some(fixture) = Fixture::new("cut", &[]) else { return };
    for version in [&TLS12, &TLS13] {
        let settings = Arc::new(client_settings(&[&fixture.certificate], &[version], &[]));
        let mut session = new_session(&settings);
        let mut tcp = TcpStream::connect(fixture.server.addr()).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        session.writer().write_all(upgrade_request(ECHO).as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut bytes = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut bytes).unwrap();
            }
            bytes.iter().for_each(|byte| tcp.write_all(&[*byte]).unwrap());
            assert!(session.read_tls(&mut tcp).unwrap() > 0);
            let state = session.process_new_packets().unwrap();
            let start = head.len();
            head.resize(start + state.plaintext_bytes_to_read(), 0);
            session.reader().read_exact(&mut head[start..]).unwrap();
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
    }
}

/// Returns the bytes of a valid ClientHello, in one record.
fn client_hello(settings: &Arc<ClientConfig>) -> Vec<u8> {
    let mut bytes = Vec::new();
    new_session(settings).write_tls(&mut bytes).unwrap();
    bytes
}

/// RFC 8446 §5.1: a handshake message may be fragmented over several records.
#[test]
fn a_handshake_message_in_records_of_one_byte() {
    let Some(fixture) = Fixture::new("records", &[]) else { return };
    let hello = client_hello(&fixture.settings);
    let mut client = fixture.server.connect();
    hello[5..].iter().for_each(|byte| client.send(&[0x16, 3, 1, 0, 1, *byte]));
    let header = client.read_exact(3);
    assert_eq!(header, [0x16, 3, 3], "a ServerHello");
}

#[test]
fn invalid_handshakes() {
    let Some(fixture) = Fixture::new("invalid", &["--verbose"]) else { return };
    let hello = client_hello(&fixture.settings);
    let flipped = |at: usize| {
        let mut hello = hello.clone();
        hello[at] ^= 0xff;
        hello
    };
    // The first record of a handshake message whose header announces 16 MiB.
    let endless = [&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &vec![0; 16 * 1024 - 4]].concat();
    let long = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &vec![0; 16 * 1024 - 4], &[0x16, 3, 1, 0x40, 0]].concat();
    let rows: [(&str, Vec<u8>); 9] = [
        ("NUL bytes", vec![0; 100]),
        ("SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x07\x00\xc0".to_vec()),
        ("application data", b"\x17\x03\x03\x00\x01x".to_vec()),
        ("an empty handshake record", b"\x16\x03\x01\x00\x00\x16\x03\x01\x00\x00".to_vec()),
        ("a record that is too long", b"\x16\x03\x01\xff\xff".to_vec()),
        ("a wrong message type", flipped(5)),
        ("a wrong length", flipped(8)),
        ("a message of 16 MiB", endless),
        ("a message of 64 KiB", [&long[..], &vec![0; 16 * 1024]].concat()),
    ];
    each_row(
        &rows,
        |(name, _)| (*name).to_owned(),
        |(_, bytes)| {
            let mut client = fixture.server.connect();
            let port = client.stream.local_addr().unwrap();
            client.try_send(bytes);
            let reply = client.read_to_end();
            // The server may send one fatal alert (RFC 8446 §6) and nothing else.
            assert!(reply.is_empty() || matches!(reply[..], [21, 3, _, 0, 2, 2, _]), "{reply:?}");
            fixture.server.wait_for_log(&format!("CLOSE {port} reason=\"TLS: "));
        },
    );
    fixture.server.wait_for_log(" 400 TLS: ");
    fixture.upgrade(ECHO).expect_echo("still alive");
}

/// Returns the bytes that a client sends before the HTTP response arrives: the TLS handshake and the upgrade request.
/// Each vector is one flight, which the client sends without waiting for the server.
fn flights(fixture: &Fixture, version: &'static rustls::SupportedProtocolVersion) -> Vec<Vec<u8>> {
    let settings = Arc::new(client_settings(&[&fixture.certificate], &[version], &[]));
    let (mut session, mut flights) = (new_session(&settings), Vec::new());
    let mut tcp = TcpStream::connect(fixture.server.addr()).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    session.writer().write_all(upgrade_request(ECHO).as_bytes()).unwrap();
    let mut has_response = false;
    while !has_response {
        let mut flight = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut flight).unwrap();
        }
        tcp.write_all(&flight).unwrap();
        flights.extend((!flight.is_empty()).then_some(flight));
        session.read_tls(&mut tcp).unwrap();
        has_response = session.process_new_packets().unwrap().plaintext_bytes_to_read() > 0;
    }
    flights
}

/// Flips, inserts, removes and repeats random bytes of a client's records. The server must continue to run.
#[test]
fn damaged_records() {
    let Some(mut fixture) = Fixture::new("damaged", &["--quiet"]) else { return };
    for version in [&TLS12, &TLS13] {
        let flights = flights(&fixture, version);
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut client = fixture.server.connect();
            for flight in &flights {
                let mut bytes = flight.clone();
                for _ in 0..random.usize(..3) {
                    let at = random.usize(..bytes.len());
                    match random.u8(..5) {
                        0 => bytes[at] ^= 1 << random.u8(..8),
                        1 => bytes.truncate(at.max(1)),
                        2 => bytes.insert(at, random.u8(..)),
                        3 => drop(bytes.drain(..at.min(bytes.len() - 1))),
                        _ => bytes.extend_from_within(at..),
                    }
                }
                client.try_send(&bytes);
            }
            client.stream.shutdown(Shutdown::Write).unwrap_or_default();
            client.read_to_end();
        }
        assert!(fixture.server.is_running(), "{}", fixture.server.log());
        fixture.upgrade(ECHO).expect_echo("still alive");
    }
}

#[test]
fn a_client_that_disconnects_during_the_handshake() {
    let Some(fixture) = Fixture::new("leaves", &["--verbose"]) else { return };
    let hello = client_hello(&fixture.settings);
    for cut in [0, 1, 5, 6, hello.len() / 2, hello.len() - 1, hello.len()] {
        let mut client = fixture.server.connect();
        let port = client.stream.local_addr().unwrap();
        client.send(&hello[..cut]);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.read_to_end();
        fixture.server.wait_for_log(&format!("CLOSE {port} reason=\"the peer ended the stream before its request"));
    }
    fixture.upgrade(ECHO).expect_echo("still alive");
}

/// One deadline covers the TLS handshake and the HTTP request.
#[test]
fn a_client_that_is_silent() {
    let Some(fixture) = Fixture::new("silent", &["--verbose", "--handshake-timeout", "0.3"]) else { return };
    let hello = client_hello(&fixture.settings);
    for cut in [0, 10, hello.len()] {
        let mut client = fixture.server.connect();
        client.send(&hello[..cut]);
        client.read_to_end();
    }
    let mut client = fixture.connect();
    client.stream.conn.complete_io(&mut client.stream.sock).unwrap();
    assert_eq!(client.read_to_close_notify(), b"", "the TLS handshake is complete, but the request is missing");
    let silent = "reason=\"no request arrived in time\"";
    wait_until("four deadlines", || fixture.server.log().matches(silent).count() == 4);
}

#[test]
fn plain_http_on_the_tls_port() {
    let Some(fixture) = Fixture::new("plain", &[]) else { return };
    for request in [get("/").bytes(), handshake().bytes(), b"G".to_vec(), get("/").padded_to(8000).bytes()] {
        let mut client = fixture.server.connect();
        client.send(&request);
        let response = Response::parse(&client.read_to_end());
        assert_eq!(response.status, 400);
        assert!(response.body.starts_with("This port speaks TLS"), "{}", response.body);
    }
    fixture.server.wait_for_log(" 400 This port speaks TLS");
}

#[test]
fn tls_on_a_plain_port() {
    let Some(certificate) = Certificate::new("unused", EC) else { return };
    let settings = Arc::new(client_settings(&[&certificate], rustls::ALL_VERSIONS, &[]));
    let server = Server::start(&[]);
    let mut client = TlsClient::connect(server.addr(), &settings);
    assert!(client.stream.conn.complete_io(&mut client.stream.sock).is_err());
    server.wait_for_log(" 400 Not an HTTP/1.1 request but a TLS ClientHello");
}

/// With TLS, the server's own origin is `https://HOST`, not `http://HOST`.
#[test]
fn own_origin() {
    let Some(fixture) = Fixture::new("origin", &[]) else { return };
    let host = fixture.server.addr().to_string();
    let status = |origin: &str| {
        let mut client = fixture.connect();
        client.send(&handshake().set(&format!("Host: {host}")).add(format!("Origin: {origin}")).bytes());
        let mut status = [0; 12];
        client.stream.read_exact(&mut status).unwrap();
        String::from_utf8(status[9..].to_vec()).unwrap()
    };
    assert_eq!(status(&format!("https://{host}")), "101");
    assert_eq!(status(&format!("http://{host}")), "403");
    assert_eq!(status("https://evil.example"), "403");
}

/// The server rejects a connection over `--max-per-address` with a TLS alert, without a TLS handshake.
#[test]
fn too_many_connections_from_one_address() {
    let args = ["--open", "--allow-host", "chat.example", "--max-per-address", "1"];
    let Some(fixture) = Fixture::new("per-address", &args) else { return };
    let mut first = fixture.upgrade("/echo");
    let mut second = fixture.connect();
    let error = second.stream.conn.complete_io(&mut second.stream.sock).unwrap_err();
    assert!(error.to_string().contains("InternalError"), "{error}");
    fixture.server.wait_for_log(" 503 ");
    first.expect_echo("not affected");
}

/// RFC 8446 §6.1: "Each party MUST send a "close_notify" alert before closing its write side of the connection".
#[test]
fn the_server_ends_with_close_notify() {
    let Some(mut fixture) = Fixture::new("close-notify", &[]) else { return };
    for version in [&TLS12, &TLS13] {
        let settings = Arc::new(client_settings(&[&fixture.certificate], &[version], &[]));
        let connect = || TlsClient::connect(fixture.server.addr(), &settings);
        let mut client = connect();
        client.send(&get("/health").bytes());
        assert_eq!(Response::parse(&client.read_to_close_notify()).status, 200);
        let mut client = connect();
        client.send(&get("/nowhere").bytes());
        assert_eq!(Response::parse(&client.read_to_close_notify()).status, 404);
        let mut client = connect();
        client.upgrade(ECHO);
        client.send(&masked(0x88, b"\x03\xe8"));
        assert_eq!(client.read_to_close_notify(), b"\x88\x02\x03\xe8", "the client closed");
        let mut client = connect();
        client.upgrade(ECHO);
        client.send(b"\x81\x01x");
        let rest = client.read_to_close_notify();
        assert_eq!(split_frame(&rest).unwrap().0.close().0, 1002, "framing is lost");
    }
    let mut client = fixture.upgrade(ECHO);
    fixture.server.signal("INT");
    assert_eq!(client.read_frame().close().0, 1001);
    client.send(&masked(0x88, b"\x03\xe9"));
    assert_eq!(client.read_to_close_notify(), b"", "shutdown");
    assert!(fixture.server.wait().success());
}

/// RFC 8446 §6.1: each direction of a session closes separately. After the client's close_notify, the server still
/// sends its data.
#[test]
fn half_close() {
    let Some(fixture) = Fixture::new("half-close", &[]) else { return };
    let mut client = fixture.upgrade(ECHO);
    let message = "x".repeat(50_000);
    client.stream.write_all(&masked(0x81, message.as_bytes())).unwrap();
    client.stream.conn.send_close_notify();
    client.stream.flush().unwrap();
    let rest = client.read_to_close_notify();
    let (frame, rest) = split_frame(&rest).expect("the echo");
    assert_eq!(frame.text(), message);
    assert_eq!(split_frame(rest).map(|(frame, _)| frame.close().0), None, "the server sends no Close after the echo");
}

#[test]
fn sixteen_mebibytes_in_both_directions() {
    for version in [&TLS12, &TLS13] {
        let Some(fixture) = Fixture::new("big", &["--max-read", "1024"]) else { return };
        // With this --max-read, the server needs several reads per TLS record.
        check_large_echo(&fixture, version, 2 * MIB);
        let Some(fixture) = Fixture::new("big", &[]) else { return };
        check_large_echo(&fixture, version, 16 * MIB);
    }
}

fn check_large_echo(fixture: &Fixture, version: &'static rustls::SupportedProtocolVersion, len: usize) {
    let settings = client_settings(&[&fixture.certificate], &[version], &[]);
    let forwarder = forward_to(fixture.server.addr(), settings);
    let mut client = RawClient::new(TcpStream::connect(forwarder).unwrap());
    client.send(upgrade_request(ECHO).as_bytes());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    client.send(&masked(0x82, &payload));
    let frame = client.read_frame();
    assert!(frame.first == 0x82 && frame.payload == payload, "{} bytes", frame.payload.len());
    // Send several messages without waiting for the echoes: the server has to stop reading while it cannot write.
    let mut reader = RawClient::new(client.stream.try_clone().unwrap());
    let sent = masked(0x82, &payload[..len / 8]);
    let sender = std::thread::spawn(move || (0..8).for_each(|_| client.send(&sent)));
    for _ in 0..8 {
        assert!(reader.read_frame().payload == payload[..len / 8]);
    }
    sender.join().unwrap();
}

fn resident_kib(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_slow_consumer() {
    let Some(fixture) = Fixture::new("slow", &["--rate-limit", "0", "--max-outbox", "65536"]) else { return };
    let mut slow = fixture.upgrade("/?token=token-alice&username=alice&room=r");
    let mut sender = fixture.upgrade("/?token=token-bob&username=bob&room=r");
    let before = resident_kib(&fixture.server);
    let text = format!("{{\"event\":\"message\",\"data\":{{\"text\":\"{}\"}}}}", "x".repeat(500));
    let batch = masked(0x81, text.as_bytes()).repeat(100);
    // The kernel buffers several megabytes before the outbox grows.
    while !fixture.server.log().contains("too slow to read") {
        sender.send(&batch);
        (0..100).for_each(|_| while sender.read_frame().text().contains("\"joined\"") {});
    }
    let grown = resident_kib(&fixture.server).saturating_sub(before);
    assert!(grown < 8 * 1024, "the server grew by {grown} KiB");
    let rest = slow.read_frames_until_close();
    assert_eq!(rest.last().unwrap().close(), (1008, "too slow to read".into()));
    assert!(rest.len() > 100, "the client has received more than 100 messages");
}

impl TlsClient {
    /// Reads frames up to and including a Close, and replies with a Close. The server must then end the session.
    fn read_frames_until_close(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.last().is_none_or(|frame: &Frame| frame.opcode() != 8) {
            frames.push(self.read_frame());
        }
        self.send(&masked(0x88, b"\x03\xf0"));
        assert_eq!(self.read_to_close_notify(), b"");
        frames
    }
}

/// The bytes of an incomplete TLS record count towards `--max-buffered`.
#[test]
fn incomplete_records_are_bounded() {
    let args = ["--max-buffered", "131072", "--max-echo", "65536", "--verbose"];
    let Some(fixture) = Fixture::new("incomplete", &args) else { return };
    let record = [&[0x17, 3, 3, 0x40, 0x11][..], &vec![0; 16_000]].concat();
    let mut clients: Vec<TlsClient> = (0..12).map(|_| fixture.upgrade(ECHO)).collect();
    for client in &mut clients {
        let _ = client.stream.sock.write_all(&record);
    }
    wait_until("four closed clients", || fixture.server.log().matches("the server's buffers are full").count() >= 4);
    fixture.upgrade(ECHO).expect_echo("not affected");
}

/// Overwrites the server's certificate and key files, `to`, with the pair `from`.
fn install(from: &Certificate, to: &Certificate) {
    fs::copy(&from.cert, &to.cert).unwrap();
    fs::copy(&from.key, &to.key).unwrap();
}

#[test]
fn a_hundred_reloads() {
    let [Some(a), Some(b)] = [Certificate::new("reload-a", EC), Certificate::new("reload-b", RSA)] else { return };
    let Some(files) = Certificate::new("reload", EC) else { return };
    install(&a, &files);
    let server = Server::start(&files.options());
    let connect = |certificates: &[&Certificate]| {
        let settings = Arc::new(client_settings(certificates, rustls::ALL_VERSIONS, &[]));
        TlsClient::connect(server.addr(), &settings)
    };
    let mut old = connect(&[&a]);
    old.upgrade(ECHO);
    for number in 1..=100 {
        let (next, before) = if number % 2 == 1 { (&b, &a) } else { (&a, &b) };
        let in_force = if number == 50 {
            // The key does not match the certificate, so the server keeps the old pair.
            fs::copy(&a.key, &files.key).unwrap();
            before
        } else {
            install(next, &files);
            next
        };
        server.signal("HUP");
        // During the reload, the server presents either the old certificate or the new one.
        connect(&[&a, &b]).upgrade(ECHO);
        let reloads =
            |log: &str| log.matches("RELOAD certificate").count() + log.matches("the old certificate").count();
        wait_until("the reload", || reloads(&server.log()) == number);
        let mut client = connect(&[in_force]);
        client.upgrade(ECHO);
        client.expect_echo("new");
        old.expect_echo("old");
    }
    let log = server.log();
    assert_eq!(log.matches("RELOAD failed, the old certificate stays in force: --tls-key").count(), 1, "{log}");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("RELOAD certificate old=")).collect();
    assert_eq!(lines.len(), 99);
    assert!(lines[0].split(['=', ' ']).filter(|word| word.len() == 16).count() == 2, "{}", lines[0]);
}

/// The server loads a changed certificate and key even without a SIGHUP.
#[test]
fn changed_files_are_loaded() {
    let [Some(files), Some(other)] = [Certificate::new("changed", EC), Certificate::new("changed-to", EC)] else {
        return;
    };
    let server = Server::start(&files.options());
    fs::copy(&other.cert, &files.cert).unwrap();
    server.wait_for_log("RELOAD failed, the old certificate stays in force");
    fs::copy(&other.key, &files.key).unwrap();
    server.wait_for_log("RELOAD certificate old=");
    let settings = Arc::new(client_settings(&[&other], rustls::ALL_VERSIONS, &[]));
    let mut client = TlsClient::connect(server.addr(), &settings);
    client.upgrade(ECHO);
    assert_eq!(server.log().matches("RELOAD failed, the old certificate").count(), 1, "one line per failed reload");
}

/// A trace shows WebSocket frames, not TLS records.
#[test]
fn a_trace_shows_the_plaintext() {
    let Some(fixture) = Fixture::new("trace", &["--trace"]) else { return };
    fixture.upgrade(ECHO).expect_echo("readable");
    wait_until("both frames", || fixture.server.log().matches("\"readable\"").count() == 2);
    assert!(becomes_true(|| fixture.server.log().contains("← HTTP/1.1 101 ")), "the trace also shows the response");
}

#[test]
fn errors_at_start() {
    let [Some(pair), Some(other)] = [Certificate::new("start", EC), Certificate::new("start-other", RSA)] else {
        return;
    };
    let openssl = |args: &[&str], output: &str| {
        let path = pair.key.with_extension(output);
        let made = Command::new(require_tool("openssl", &[]).unwrap()).args(args).arg("-out").arg(&path).output();
        assert!(made.unwrap().status.success());
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (pair.cert.to_str().unwrap(), pair.key.to_str().unwrap());
    let encrypted = openssl(&["pkey", "-in", key, "-aes256", "-passout", "pass:secret"], "enc");
    let other_key = other.key.to_str().unwrap();
    let old_form = openssl(&["rsa", "-traditional", "-in", other_key, "-aes256", "-passout", "pass:secret"], "old");
    let rows: [(&[&str], &[&str]); 10] = [
        (&["--tls-cert", cert], &["--tls-cert needs --tls-key, which is missing"]),
        (&["--tls-key", key], &["--tls-key needs --tls-cert, which is missing"]),
        (&["--tls-cert", "missing.pem", "--tls-key", key], &["--tls-cert missing.pem: cannot read the file: No such"]),
        (&["--tls-cert", cert, "--tls-key", "missing.pem"], &["--tls-key missing.pem: cannot read the file: No such"]),
        (&["--tls-cert", key, "--tls-key", key], &["--tls-cert", "contains no certificate"]),
        (&["--tls-cert", cert, "--tls-key", cert], &["--tls-key", "contains no private key"]),
        (&["--tls-cert", cert, "--tls-key", other_key], &["--tls-key", "does not belong to the certificate in", cert]),
        (&["--tls-cert", cert, "--tls-key", &encrypted], &["--tls-key", "the key is encrypted", "openssl pkey"]),
        (&["--tls-cert", cert, "--tls-key", &old_form], &["--tls-key", "the key is encrypted", "openssl pkey"]),
        (&["--tls-cert", "/", "--tls-key", key], &["--tls-cert /: cannot read the file: Is a directory"]),
    ];
    each_row(
        &rows,
        |(args, _)| args.join(" "),
        |(args, words)| {
            expect_start_failure("127.0.0.1:0", args).check(USAGE, words);
        },
    );
}

/// `wirechat health` accepts a self-signed certificate.
#[test]
fn health_checks() {
    let Some(certificate) = Certificate::new("health", EC) else { return };
    let server = Server::start(&certificate.options());
    let health = |url: String| Command::new(env!("CARGO_BIN_EXE_wirechat")).args(["health", &url]).output().unwrap();
    let healthy = health(format!("https://127.0.0.1:{}", server.port()));
    assert!(healthy.status.success(), "{healthy:?}");
    let plain = health(format!("http://127.0.0.1:{}", server.port()));
    let error = String::from_utf8(plain.stderr).unwrap();
    assert!(plain.status.code() == Some(1) && error.contains("the status is 400, not 200"), "{error}");
    let plain_server = Server::start(&[]);
    let error = String::from_utf8(health(format!("https://{}", plain_server.addr())).stderr).unwrap();
    assert!(error.contains("cannot read the response"), "{error}");
}

/// With `--proxy-protocol`, the PROXY header precedes the ClientHello and is not encrypted.
#[test]
fn a_proxy_names_the_client_before_tls() {
    let options = ["--open", "--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--max-per-address", "1"];
    let Some(fixture) = Fixture::new("proxy-header", &options) else { return };
    let connect = |header: &[u8]| {
        let mut tcp = TcpStream::connect(fixture.server.addr()).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.write_all(header).unwrap();
        TlsClient { stream: StreamOwned::new(new_session(&fixture.settings), tcp), received: Vec::new() }
    };
    let mut client = connect(b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r\n");
    client.upgrade("/echo");
    client.expect_echo("hello");
    drop(client);
    fixture.server.wait_for_log("CLOSE 203.0.113.1:4711 ");
    // Send the PROXY header and the ClientHello in one write.
    let hello = client_hello(&fixture.settings);
    let mut tcp = TcpStream::connect(fixture.server.addr()).unwrap();
    tcp.write_all(&[b"PROXY TCP4 203.0.113.2 192.0.2.99 4711 443\r\n", &hello[..]].concat()).unwrap();
    let mut record = [0; 3];
    tcp.read_exact(&mut record).unwrap();
    assert_eq!(record, [22, 3, 3], "a ServerHello");
    // A client that exceeds `--max-per-address` receives a TLS alert. A client that sends no PROXY header receives
    // nothing: the server only closes the connection.
    let mut rejected = TcpStream::connect(fixture.server.addr()).unwrap();
    rejected.write_all(b"PROXY TCP4 203.0.113.2 192.0.2.99 4712 443\r\n").unwrap();
    rejected.read_exact(&mut record).unwrap();
    assert_eq!(record[0], 21, "an alert");
    fixture.server.wait_for_log("REJECT 203.0.113.2:4712 503 ");
    let mut without = RawClient::new(TcpStream::connect(fixture.server.addr()).unwrap());
    without.send(&hello);
    without.expect_end();
    fixture.server.wait_for_log("400 The PROXY header is missing or malformed");
}
