//! Clients on different hosts, on a server that is not local: limits per address and per user, trusted proxies, tokens that are
//! bound to a username, tokens that are revoked, and what the log says about all of them. A client's address is that of its
//! socket (127.0.0.2, 127.0.0.3 …) or, behind a trusted proxy, what `X-Forwarded-For` says.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::users::{Dialect, User};
use support::{RawClient, Server, masked, token_file, wait_until};

/// With this option, a server is not local: it exempts no client, although all connect from loopback.
const PUBLIC: [&str; 2] = ["--allow-host", "chat.example"];
/// The same, and the address of a client is what `X-Forwarded-For` says.
const PROXIED: [&str; 2] = ["--trusted-proxy", "127.0.0.1"];
/// No limits on what the tests do in passing.
const UNLIMITED: [&str; 6] = ["--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "0"];

fn public(args: &[&str]) -> Server {
    Server::start(&[&PUBLIC, args].concat())
}

fn proxied(args: &[&str]) -> Server {
    Server::start(&[&PROXIED, args].concat())
}

/// A client at this loopback address; nothing has been sent yet.
fn connect_from(server: &Server, address: &str) -> RawClient {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    RawClient::new(socket.into())
}

/// Sends a request from a loopback address. Returns the client, and the response up to its blank line.
fn request_from(server: &Server, address: &str, request: &Request) -> (RawClient, Response) {
    let mut client = connect_from(server, address);
    client.send(&request.bytes());
    let response = Response::parse(client.read_head().as_bytes());
    (client, response)
}

fn status_from(server: &Server, address: &str, target: &str) -> u16 {
    request_from(server, address, &handshake().target(target)).1.status
}

/// Upgrades from a loopback address.
fn upgrade_from(server: &Server, address: &str, target: &str) -> RawClient {
    let (client, response) = request_from(server, address, &handshake().target(target));
    assert_eq!(response.status, 101, "{target} from {address}");
    client
}

/// A response in full, to a request that a trusted proxy forwards for this client.
fn forwarded(server: &Server, client: &str, request: Request) -> Response {
    rejection(server, &request.add(format!("X-Forwarded-For: {client}")))
}

/// A response that ends its connection, in full.
fn rejection(server: &Server, request: &Request) -> Response {
    let mut client = server.connect();
    client.send(&request.bytes());
    client.read_response()
}

fn forwarded_status(server: &Server, client: &str, target: &str) -> u16 {
    server.status(&handshake().target(target).add(format!("X-Forwarded-For: {client}")))
}

fn has_retry_after(response: &Response) -> bool {
    response.header("Retry-After").parse::<u32>().is_ok_and(|seconds| seconds > 0)
}

fn tokens(name: &str, content: &str) -> String {
    token_file(name, content).to_str().unwrap().to_owned()
}

/// The subprotocol that carries this token.
fn subprotocol(token: &str) -> String {
    format!("bearer.{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

// ------------------------------------------------------------------------------------------------------- wrong tokens

/// Over the limit, the server does not look at the token, so that nobody can find a right one.
#[test]
fn too_many_wrong_tokens() {
    let file = tokens("wrong", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "3"]].concat());
    let right = || handshake().target("/?token=right");
    for target in ["/", "/echo", "/ws/general", "/ws", "/"] {
        let response = forwarded(&server, "192.0.2.1", handshake().target(target));
        assert_eq!((response.status, response.body.as_str()), (401, "Unauthorized"), "a missing token does not count");
    }
    let wrong = [
        handshake().target("/?token=wrong"),
        handshake().target("/echo").add("Authorization: Bearer wrong"),
        handshake().target("/").add(format!("Sec-WebSocket-Protocol: {}", subprotocol("wrong"))),
    ];
    for request in wrong {
        assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=right"), 101, "the limit is not reached");
        assert_eq!(forwarded(&server, "192.0.2.1", request).status, 401);
    }
    for request in [right(), right().target("/echo?token=right"), right().target("/?token=wrong"), right().target("/")] {
        let response = forwarded(&server, "192.0.2.1", request);
        assert!(response.status == 429 && has_retry_after(&response), "{response:?}");
        assert!(response.body.contains("wrong tokens"), "the body names the limit: {response:?}");
    }
    let page = forwarded(&server, "192.0.2.1", get("/health"));
    assert_eq!(page.status, 200, "pages need no token");
    assert_eq!(forwarded(&server, "192.0.2.2", handshake().target("/?token=wrong")).status, 401);
    assert_eq!(forwarded_status(&server, "192.0.2.2", "/?token=right"), 101, "another address");
}

/// All addresses of a /64 count as one.
#[test]
fn an_ipv6_network_guesses_as_one_client() {
    let file = tokens("network", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "2"]].concat());
    for address in ["2001:db8::1", "2001:db8::ffff:2"] {
        assert_eq!(forwarded_status(&server, address, "/?token=wrong"), 401);
    }
    assert_eq!(forwarded_status(&server, "2001:db8::3", "/?token=right"), 429);
    assert_eq!(forwarded_status(&server, "2001:db8:0:1::1", "/?token=right"), 101, "another network");
}

#[test]
fn no_limit_of_wrong_tokens() {
    let file = tokens("unlimited", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "0"]].concat());
    for _ in 0..40 {
        assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=wrong"), 401);
    }
    assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=right"), 101);
    // Without the option, the limit is 30.
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file]].concat());
    let statuses: Vec<u16> = (0..32).map(|_| forwarded_status(&server, "192.0.2.1", "/?token=wrong")).collect();
    assert_eq!(statuses, [[401; 30].as_slice(), &[429; 2]].concat());
}

// -------------------------------------------------------------------------------------------- connections per address

/// A socket counts from accept, even if it never sends a byte. The server does not read from the surplus.
#[test]
fn too_many_connections_from_one_address() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "3"]);
    let mut silent: Vec<RawClient> = (0..3).map(|_| connect_from(&server, "127.0.0.2")).collect();
    let surplus = connect_from(&server, "127.0.0.2").read_response();
    assert!(surplus.status == 503 && has_retry_after(&surplus), "{surplus:?}");
    assert!(surplus.body.contains("too many connections"), "the body names the limit: {surplus:?}");
    assert_eq!(status_from(&server, "127.0.0.3", "/"), 101, "another address");
    // The three have not been disturbed.
    silent[0].send(&handshake().bytes());
    assert!(silent[0].read_head().starts_with("HTTP/1.1 101 "));
    drop(silent.pop());
    wait_until("one has left", || status_from(&server, "127.0.0.2", "/") == 101);
    let third = connect_from(&server, "127.0.0.2");
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
    drop(third);
}

/// A rejected client frees its place at once, even if its connection lingers.
#[test]
fn rejected_connections_do_not_count() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "1"]);
    let mut lingering = Vec::new();
    for _ in 0..5 {
        let (client, response) = request_from(&server, "127.0.0.2", &handshake().target("/nope"));
        assert_eq!(response.status, 404);
        lingering.push(client);
    }
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 101);
}

/// A proxy connects for many clients, so its connections count for the client that each request names.
#[test]
fn connections_through_a_proxy() {
    let server = proxied(&["--open", "--rate-limit", "0", "--max-per-address", "2", "--connect-rate", "0"]);
    let _silent: Vec<RawClient> = (0..5).map(|_| server.connect()).collect();
    let upgrade = |client: &str| {
        let mut connection = server.connect();
        connection.send(&handshake().target("/").add(format!("X-Forwarded-For: {client}")).bytes());
        let response = Response::parse(connection.read_head().as_bytes());
        (connection, response.status)
    };
    let mut clients = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        for expected in [101, 101, 503] {
            let (client, status) = upgrade(address);
            assert_eq!(status, expected, "{address}");
            clients.push(client);
        }
    }
    let surplus = forwarded(&server, "192.0.2.1", handshake().target("/"));
    assert!(surplus.status == 503 && surplus.body.contains("too many connections"), "{surplus:?}");
    drop(clients);
    wait_until("the clients have left", || upgrade("192.0.2.1").1 == 101);
}

#[test]
fn no_limit_of_connections_per_address() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "0"]);
    let _silent: Vec<RawClient> = (0..100).map(|_| connect_from(&server, "127.0.0.2")).collect();
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 101);
    // Without the option, the limit is 32.
    let server = public(&["--open", "--rate-limit", "0"]);
    let _silent: Vec<RawClient> = (0..32).map(|_| connect_from(&server, "127.0.0.2")).collect();
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
}

/// After a burst of five seconds' connections, an address may connect at the rate.
#[test]
fn an_address_that_connects_too_fast() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "1", "--max-per-address", "0"]);
    let start = Instant::now();
    let responses: Vec<Response> = (0..60)
        .map(|_| {
            let mut client = connect_from(&server, "127.0.0.2");
            client.try_send(&get("/health").bytes());
            client.read_response()
        })
        .collect();
    let accepted = responses.iter().filter(|response| response.status == 200).count();
    let most = 6 + start.elapsed().as_secs() as usize;
    assert!((5..=most).contains(&accepted), "{accepted} of at most {most}");
    let mut rejected = responses.iter().filter(|response| response.status != 200);
    assert!(rejected.all(|response| {
        response.status == 503 && has_retry_after(response) && response.body.contains("connects too fast")
    }));
    assert_eq!(status_from(&server, "127.0.0.3", "/"), 101, "another address");
}

#[test]
fn no_limit_of_connections_per_second() {
    for args in [&["--connect-rate", "0"][..], &["--connect-rate", "10000"]] {
        let server = public(&[&["--open", "--max-per-address", "0"], args].concat());
        for _ in 0..300 {
            assert_eq!(request_from(&server, "127.0.0.2", &get("/health")).1.status, 200);
        }
    }
    // A local server has no limit for loopback.
    let server = Server::start(&["--connect-rate", "0.001"]);
    (0..10).for_each(|_| assert_eq!(server.status(&get("/health")), 200));
}

/// Even at the slowest rate, an address may connect once.
#[test]
fn the_slowest_rate_of_connections() {
    let server = public(&["--open", "--connect-rate", "0.001"]);
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 101);
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
    assert_eq!(status_from(&server, "127.0.0.3", "/"), 101);
}

// --------------------------------------------------------------------------------------------------- the full server

/// `count` clients whose requests reach the server at the same time: it stands still until all have been sent. Returns the
/// clients and their responses.
fn all_at_once(server: &Server, count: usize, target: &str) -> Vec<(RawClient, Response)> {
    server.signal("STOP");
    let mut clients: Vec<RawClient> = (0..count).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(&handshake().target(target).bytes()));
    server.signal("CONT");
    let respond = |mut client: RawClient| {
        let head = client.read_head();
        (client, Response::parse(head.as_bytes()))
    };
    clients.into_iter().map(respond).collect()
}

/// However many clients come at once, as many as there are places get in, and every other one gets a response.
#[test]
fn first_come_first_served() {
    for (target, extra) in [("/?token=dev-token", 0), ("/?token=dev-token", 6), ("/echo?token=dev-token", 60)] {
        let server = Server::start(&["--max-connections", "20"]);
        let mut clients = all_at_once(&server, 20 + extra, target);
        let accepted = clients.iter().filter(|(_, response)| response.status == 101).count();
        let rejected: Vec<_> = clients.iter_mut().filter(|(_, response)| response.status != 101).collect();
        assert_eq!((accepted, rejected.len()), (20, extra));
        for (client, response) in rejected {
            assert!(response.status == 503 && has_retry_after(response), "{response:?}");
            let body = String::from_utf8(client.read_to_clean_end()).unwrap();
            assert!(body.starts_with("The server is full"), "{body}");
        }
    }
}

/// A connection takes a place only after its handshake, and a rejected one takes none.
#[test]
fn only_clients_take_places() {
    let server = Server::start(&["--max-connections", "2"]);
    let half = |_| {
        let mut client = server.connect();
        client.send(b"GET / HTTP/1.1\r\n");
        client
    };
    let mut handshaking: Vec<RawClient> = (0..2).map(half).collect();
    handshaking.push(server.connect());
    let lingering: Vec<RawClient> = (0..3)
        .map(|_| {
            let mut client = server.connect();
            client.send(&handshake().target("/nope").bytes());
            assert!(client.read_head().starts_with("HTTP/1.1 404 "));
            client
        })
        .collect();
    let first = User::events(&server, "first", "general");
    let _second = User::events(&server, "second", "general");
    assert!(rejection(&server, &handshake()).body.starts_with("The server is full"));
    for target in ["/", "/health"] {
        assert_eq!(rejection(&server, &get(target)).status, 200, "{target}");
    }
    first.leaves();
    assert_eq!(server.status(&handshake()), 101);
    drop((handshaking, lingering));
}
