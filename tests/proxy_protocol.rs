//! Tests `--proxy-protocol`: a PROXY header (version 1 or 2) in front of the client's bytes contains the client's
//! address. The tests act as the proxy, from 127.0.0.1 or over a Unix socket. `tests/reverse_proxies.rs` uses real
//! proxies.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use support::failure::{USAGE, expect_start_failure};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::{DEADLINE, RawClient, Server, wait_until};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

fn start(args: &[&str]) -> Server {
    let options = ["--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--open", "--connect-rate", "0", "-v"];
    Server::start(&[&options, args].concat())
}

/// Builds a version 2 PROXY header. `rest` is everything after the length field: the addresses and any optional fields.
fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &len, rest].concat()
}

fn addresses(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let both = match client.ip() {
        IpAddr::V4(ip) => [ip.octets(), [192, 0, 2, 99]].concat(),
        IpAddr::V6(ip) => [ip.octets(), [0x20; 16]].concat(),
    };
    [&both[..], &client.port().to_be_bytes(), &[1, 187]].concat()
}

/// A type-length-value field of a version 2 header.
fn tlv(kind: u8, len: u16) -> Vec<u8> {
    [&[kind][..], &len.to_be_bytes(), &vec![b'x'; len.into()]].concat()
}

/// A version 2 PROXY header that contains this client address.
fn from(client: &str) -> Vec<u8> {
    v2_header(PROXY, if client.starts_with('[') { TCP6 } else { TCP4 }, &addresses(client))
}

fn send(server: &Server, header: &[u8], request: &Request) -> RawClient {
    let mut client = server.connect();
    client.send(&[header, &request.bytes()].concat());
    client
}

fn status(client: &mut RawClient) -> u16 {
    Response::parse(client.read_head().as_bytes()).status
}

/// Sends the PROXY header and then a request. Asserts that the server accepts the request and logs `address`.
fn check_address(server: &Server, header: &[u8], address: &str) {
    let lines = || server.log().matches(&format!("CLOSE {address}")).count();
    let before = lines();
    assert_eq!(status(&mut send(server, header, &handshake().target("/echo"))), 101);
    wait_until(&format!("{address} in the log"), || lines() > before);
}

#[test]
fn the_header_names_the_client() {
    let server = start(&[]);
    let ipv6 = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff";
    let rows: [(Vec<u8>, &str); 11] = [
        (b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r\n".into(), "203.0.113.1:4711"),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n".into(), "255.255.255.255:65535"),
        (b"PROXY TCP6 2001:db8::1 ::1 4711 443\r\n".into(), "[2001:db8::1]:4711"),
        (format!("PROXY TCP6 {ipv6} {ipv6} 65535 65535\r\n").into(), &format!("[{ipv6}]:65535")),
        (b"PROXY TCP6 ::ffff:203.0.113.2 ::1 4711 443\r\n".into(), "203.0.113.2:4711"),
        (from("203.0.113.3:1"), "203.0.113.3:1"),
        (from("[2001:db8::3]:65535"), "[2001:db8::3]:65535"),
        (from("[::ffff:203.0.113.4]:4711"), "203.0.113.4:4711"),
        (v2_header(PROXY, 0x12, &addresses("203.0.113.5:1")), "203.0.113.5:1"),
        (v2_header(PROXY, 0x22, &addresses("[2001:db8::5]:1")), "[2001:db8::5]:1"),
        (
            v2_header(PROXY, TCP4, &[addresses("203.0.113.6:1"), tlv(1, 8), tlv(0x20, 300), tlv(0xea, 0)].concat()),
            "203.0.113.6:1",
        ),
    ];
    each_row(
        &rows,
        |row| row.0.escape_ascii().to_string(),
        |(header, address)| check_address(&server, header, address),
    );
}

/// The server skips everything after the addresses in a PROXY header: a field that fills the header to its maximum
/// length, truncated fields, and bytes that are not a field.
#[test]
fn bytes_after_the_addresses_are_skipped() {
    let server = start(&[]);
    let addresses = addresses("203.0.113.6:1");
    for fields in [tlv(0x20, 4096 - 16 - 12 - 3), vec![1], vec![1, 255, 255], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        check_address(&server, &v2_header(PROXY, TCP4, &[&addresses[..], &fields].concat()), "203.0.113.6:1");
    }
}

/// A PROXY header names no client if the proxy connects to check the server's health, or does not know the client. The
/// server then uses the proxy's own address, or the address in `X-Forwarded-For`.
#[test]
fn headers_that_name_no_client() {
    let server = start(&["--max-per-address", "1"]);
    let unix = [&[b'/'; 216][..], &tlv(1, 8)].concat();
    let rows = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.1 192.0.2.99 4711 443\r\n".to_vec(),
        format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16)).into_bytes(),
        v2_header(LOCAL, 0, &[]),
        v2_header(LOCAL, 0, &tlv(4, 20)),
        v2_header(LOCAL, TCP4, &addresses("203.0.113.1:4711")),
        v2_header(LOCAL, 0x51, b"any"), // the server ignores the address family in a LOCAL header
        v2_header(PROXY, 0, &[]),
        v2_header(PROXY, 0, &tlv(1, 8)),
        v2_header(PROXY, 0x31, &unix),
    ];
    each_row(
        &rows,
        |header| header.escape_ascii().to_string(),
        |header| {
            check_address(&server, header, "127.0.0.1:");
            let forwarded = handshake().target("/echo").add("X-Forwarded-For: 198.51.100.7");
            let lines = || server.log().matches("CLOSE 198.51.100.7:").count();
            let before = lines();
            assert_eq!(status(&mut send(&server, header, &forwarded)), 101);
            wait_until("the forwarded address is in the log", || lines() > before);
        },
    );
    assert!(!server.log().contains("203.0.113.1"), "{}", server.log());
}

/// Sends the pieces one by one. After each piece, a request on another connection ensures that the server has read the
/// piece.
fn send_in_pieces(server: &Server, client: &mut RawClient, pieces: &[&[u8]]) {
    for piece in pieces {
        client.send(piece);
        assert_eq!(status(&mut send(server, &v2_header(LOCAL, 0, &[]), &get("/health"))), 200);
    }
}

#[test]
fn a_header_in_pieces() {
    let server = start(&["--max-per-address", "0"]);
    let v1: &[u8] = b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r\n";
    let v2 = v2_header(PROXY, TCP6, &[addresses("[2001:db8::1]:4711"), tlv(4, 9)].concat());
    let frame = support::masked(0x81, b"hello");
    let request = [handshake().target("/echo").bytes(), frame].concat();
    for header in [v1, &v2] {
        let all = [header, &request].concat();
        let cuts = (1..=header.len() + 1).map(|at| vec![&all[..at], &all[at..]]);
        for pieces in cuts.chain([all.chunks(1).collect()]) {
            let mut client = server.connect();
            send_in_pieces(&server, &mut client, &pieces);
            assert_eq!(status(&mut client), 101, "{:?}", pieces[0].escape_ascii().to_string());
            assert_eq!(client.read_text(), "hello");
        }
    }
}

/// After an invalid PROXY header, the server closes the connection without a response, because the client could mistake
/// a response for one from the proxy.
#[test]
fn bad_headers_end_the_connection() {
    let server = start(&[]);
    let addresses = addresses("203.0.113.1:4711");
    let malformed = "missing or malformed";
    let line = |line: &str| line.as_bytes().to_vec();
    let rows = [
        (get("/health").bytes(), malformed),
        (handshake().bytes(), malformed),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\x01\x02\x03\x04\x05".to_vec(), malformed),
        (line("PROXY TCP4 203.0.113.1 192.0.2.99 4711\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.1 192.0.2.99 4711 65536\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.1 192.0.2.99 -1 443\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.1  192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.256 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.01 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY TCP4 2001:db8::1 ::1 4711 443\r\n"), malformed),
        (line("PROXY TCP6 203.0.113.1 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY TCP6 [2001:db8::1] ::1 4711 443\r\n"), malformed),
        (line("PROXY TCP5 203.0.113.1 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY tcp4 203.0.113.1 192.0.2.99 4711 443\r\n"), malformed),
        (line("proxy TCP4 203.0.113.1 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r \n"), malformed),
        (line("PROXY TCP4 \u{ff12}03.0.113.1 192.0.2.99 4711 443\r\n"), malformed),
        (line("PROXY UNKNOWN\rx"), malformed),
        (format!("PROXY UNKNOWN {}\r\n", "x".repeat(108 - 16)).into_bytes(), malformed),
        (b"PROXY UNKNOWN ".iter().copied().chain([b'x'; 200]).collect(), malformed),
        (b"PROXY ".repeat(1000), malformed),
        (v2_header(0x11, TCP4, &addresses), malformed),
        (v2_header(0x31, TCP4, &addresses), malformed),
        (v2_header(0x22, TCP4, &addresses), malformed),
        (v2_header(0x2f, TCP4, &addresses), malformed),
        (v2_header(PROXY, 0x41, &addresses), malformed),
        (v2_header(PROXY, 0x13, &addresses), malformed),
        (v2_header(PROXY, 0x10, &addresses), malformed),
        (v2_header(PROXY, TCP6, &addresses), malformed),
        (v2_header(PROXY, TCP4, &addresses[..11]), malformed),
        (v2_header(PROXY, 0x31, &[b'/'; 215]), malformed),
        ([&b"\r\n\r\n\0\r\nQUIT\r"[..], &[PROXY, TCP4, 0, 12], &addresses].concat(), malformed),
        (v2_header(PROXY, TCP4, &[&addresses[..], &tlv(0x20, 4096 - 16 - 12 - 2)].concat()), "too long"),
        (v2_header(PROXY, TCP4, &[b'x'; 65535]), "too long"),
    ];
    each_row(
        &rows,
        |row| row.0[..row.0.len().min(80)].escape_ascii().to_string(),
        |(bytes, why)| {
            let mut client = server.connect();
            client.try_send(bytes);
            client.try_send(&handshake().bytes()); // after an invalid PROXY header, the server must ignore the request
            client.expect_end();
            let peer = client.stream.local_addr().unwrap();
            server.wait_for_log(&format!("CLOSE {peer} reason=\"The PROXY header is {why}"));
        },
    );
    let rejections = server.log().matches(" 400 The PROXY header is missing or malformed (--proxy-protocol).").count();
    assert_eq!(rejections, 5, "one address must not fill the log");
    check_address(&server, &from("203.0.113.1:4711"), "203.0.113.1:4711");
    assert!(!server.log().contains("panic"), "{}", server.log());
}

/// The handshake timeout also covers the wait for the PROXY header. If the peer half-closes the connection before the
/// request is complete, the server closes it without waiting for the timeout.
#[test]
fn a_header_arrives_in_time() {
    let server = start(&["--handshake-timeout", "0.2"]);
    let header = from("203.0.113.1:4711");
    for piece in [&b""[..], b"P", b"PROXY TCP4 203.0.113.1", &header[..12], &header[..header.len() - 1], &header] {
        let mut client = server.connect();
        client.send(piece);
        client.expect_end();
        let reason = "no request arrived in time";
        let peer = if piece == header { "203.0.113.1:4711" } else { &client.stream.local_addr().unwrap().to_string() };
        server.wait_for_log(&format!("CLOSE {peer} reason={reason:?}"));
    }
    let server = start(&["--handshake-timeout", "86400"]);
    for piece in [&b""[..], b"PROXY TCP4 203.0.113.1", &header[..20], &header] {
        let mut client = server.connect();
        client.send(piece);
        client.stream.shutdown(Shutdown::Write).unwrap();
        client.expect_end();
    }
}

/// Whether the server has logged a client address from a PROXY header or from `X-Forwarded-For`.
fn has_logged_client(server: &Server) -> bool {
    ["REJECT", "CLOSE", "JOIN", "FAIL"].iter().any(|event| server.log().contains(&format!("{event} 203.0.113.")))
}

/// The server expects PROXY headers only from trusted proxies. From any other peer, a PROXY header is a malformed
/// request.
#[test]
fn headers_from_untrusted_peers() {
    let server = start(&["--trusted-proxy", "2001:db8::/32"]);
    let elsewhere = start(&["--trusted-proxy", "10.0.0.0/8"]);
    let connect = |server: &Server| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
        socket.connect(&server.addr().into()).unwrap();
        RawClient::new(socket.into())
    };
    for server in [server, elsewhere] {
        let exchange = |header: &[u8]| {
            let mut client = connect(&server);
            client.send(&[header, &handshake().target("/echo").add("X-Forwarded-For: 203.0.113.2").bytes()].concat());
            status(&mut client)
        };
        assert_eq!(exchange(b""), 101);
        server.wait_for_log("CLOSE 127.0.0.2:");
        assert_eq!(exchange(b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r\n"), 400);
        assert_eq!(exchange(&from("203.0.113.1:4711")), 400);
        server.wait_for_log("REJECT 127.0.0.2:");
        assert!(!has_logged_client(&server), "{}", server.log());
    }
}

/// Without `--proxy-protocol`, the server rejects a PROXY header even from a trusted proxy.
#[test]
fn headers_without_the_option() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--open"]);
    for header in [&b"PROXY TCP4 203.0.113.1 192.0.2.99 4711 443\r\n"[..], &from("203.0.113.1:4711")] {
        assert_eq!(status(&mut send(&server, header, &handshake())), 400);
    }
    server.wait_for_log("REJECT 127.0.0.1:");
    assert!(!has_logged_client(&server), "{}", server.log());
}

/// `--max-per-address` counts connections by the client address in the PROXY header. The server uses `X-Forwarded-For`
/// instead only if the address in the PROXY header is another trusted proxy.
#[test]
fn limits_apply_to_the_client_address() {
    let server = start(&["--max-per-address", "2", "--trusted-proxy", "10.0.0.0/8"]);
    let connect = |header: &str, forwarded: &str| {
        let mut client =
            send(&server, &from(header), &handshake().target("/echo").add(format!("X-Forwarded-For: {forwarded}")));
        (status(&mut client), client)
    };
    let first = connect("203.0.113.1:1", "198.51.100.1");
    let second = connect("203.0.113.1:2", "198.51.100.2");
    let third = connect("203.0.113.1:3", "198.51.100.3");
    let other = connect("203.0.113.2:1", "203.0.113.1");
    assert_eq!([first.0, second.0, third.0, other.0], [101, 101, 503, 101]);
    server.wait_for_log("REJECT 203.0.113.1:3 503 ");
    // The server rejects a connection over the limit without waiting for its request.
    let mut early = server.connect();
    early.send(&from("203.0.113.1:4"));
    assert_eq!(status(&mut early), 503);
    let proxies: Vec<_> =
        (1..=6).map(|n| connect(&format!("10.0.0.1:{n}"), &format!("198.51.100.{}", n / 3))).collect();
    assert_eq!(proxies.iter().map(|proxy| proxy.0).collect::<Vec<_>>(), [101, 101, 101, 101, 503, 101][..].to_vec());
    drop(first);
    server.wait_for_log("CLOSE 203.0.113.1:1 ");
    assert_eq!(connect("203.0.113.1:5", "198.51.100.1").0, 101, "the first client has left");
}

#[test]
fn clients_connect_at_a_limited_rate() {
    let server =
        Server::start(&["--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--open", "--connect-rate", "0.2"]);
    let connect = |address: &str| status(&mut send(&server, &from(address), &get("/health")));
    assert_eq!([connect("203.0.113.1:1"), connect("203.0.113.1:2"), connect("203.0.113.2:1")], [200, 503, 200]);
    // `--connect-rate` does not apply to the proxy's own connections.
    (0..9).for_each(|_| assert_eq!(status(&mut send(&server, &v2_header(LOCAL, 0, &[]), &get("/health"))), 200));
}

/// The server trusts every peer on a Unix socket as a proxy, so each peer must send a PROXY header.
#[test]
fn a_proxy_on_a_unix_socket() {
    let path = std::env::temp_dir().join(format!("wirechat-header-{}", std::process::id()));
    let listen = format!("--listen=unix:{}", path.display());
    let server = start(&[&listen, "--max-per-address", "1"]);
    let connect = |pieces: &[&[u8]]| {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = RawClient { stream: TcpStream::from(OwnedFd::from(stream)) };
        pieces.iter().for_each(|piece| client.send(piece));
        client.send(&handshake().target("/echo").bytes());
        client
    };
    let mut clients = ["203.0.113.1:1", "203.0.113.1:2", "[2001:db8::1]:1"].map(|address| connect(&[&from(address)]));
    assert_eq!(clients.each_mut().map(status), [101, 503, 101]);
    let mut local = [(); 3].map(|()| connect(&[&v2_header(LOCAL, 0, &[])]));
    assert_eq!(local.each_mut().map(status), [101; 3]);
    connect(&[]).expect_end();
    // Send the header in one-byte writes. On a Unix socket, the kernel keeps each write in a separate buffer, so the
    // server must read a header that spans many buffers.
    let pieces: Vec<Vec<u8>> = from("203.0.113.3:1").chunks(1).map(<[u8]>::to_vec).collect();
    assert_eq!(status(&mut connect(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>())), 101);
    server.wait_for_log("CLOSE 203.0.113.3:1 ");
    server.wait_for_log("REJECT 203.0.113.1:2 503");
}

#[test]
fn the_option_needs_a_trusted_proxy() {
    let options = ["--proxy-protocol", "--open"];
    expect_start_failure("127.0.0.1:0", &options).check(USAGE, &["--proxy-protocol needs --trusted-proxy", "CIDR"]);
}
