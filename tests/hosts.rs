//! Tests a public server with clients on different hosts: limits per address and per user, trusted proxies, access
//! tokens bound to a username, revoked tokens, and log lines. Each client connects from a loopback address such as
//! 127.0.0.2. Behind a trusted proxy, the client's address is the one in `X-Forwarded-For`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::users::{Dialect, User};
use support::{RawClient, Server, masked, token_file, wait_until};

/// Makes the server public, so that the server applies its limits to loopback clients, too.
const PUBLIC: [&str; 2] = ["--allow-host", "chat.example"];
/// Makes the server public and 127.0.0.1 a trusted proxy, so that tests can set client addresses in `X-Forwarded-For`.
const PROXIED: [&str; 2] = ["--trusted-proxy", "127.0.0.1"];
/// Turns off three limits, for tests of other features that would exceed them.
const UNLIMITED: [&str; 6] = ["--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "0"];

fn public(args: &[&str]) -> Server {
    Server::start(&[&PUBLIC, args].concat())
}

fn proxied(args: &[&str]) -> Server {
    Server::start(&[&PROXIED, args].concat())
}

/// Connects from `address`, a loopback address. Sends nothing.
fn connect_from(server: &Server, address: &str) -> RawClient {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    RawClient::new(socket.into())
}

/// Sends a request from `address`, a loopback address. Returns the client, and the response without its body.
fn request_from(server: &Server, address: &str, request: &Request) -> (RawClient, Response) {
    let mut client = connect_from(server, address);
    client.send(&request.bytes());
    let response = Response::parse(client.read_head().as_bytes());
    (client, response)
}

fn status_from(server: &Server, address: &str, target: &str) -> u16 {
    request_from(server, address, &handshake().target(target)).1.status
}

fn upgrade_from(server: &Server, address: &str, target: &str) -> RawClient {
    let (client, response) = request_from(server, address, &handshake().target(target));
    assert_eq!(response.status, 101, "{target} from {address}");
    client
}

/// Sends a request with the address `client` in `X-Forwarded-For`. Returns the complete response.
fn forwarded_response(server: &Server, client: &str, request: Request) -> Response {
    rejection(server, &request.add(format!("X-Forwarded-For: {client}")))
}

/// Sends a request and returns the complete response. Fails if the server upgrades the connection.
fn rejection(server: &Server, request: &Request) -> Response {
    let mut client = server.connect();
    client.send(&request.bytes());
    let response = Response::parse(client.read_head().as_bytes());
    assert_ne!(response.status, 101, "{response:?}");
    Response { body: String::from_utf8(client.read_to_clean_end()).unwrap(), ..response }
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

/// The subprotocol that carries an access token.
fn subprotocol(token: &str) -> String {
    format!("bearer.{}", BASE64_URL_SAFE_NO_PAD.encode(token))
}

// ------------------------------------------------------------------------------------------------------- wrong tokens

/// After `--max-wrong-tokens` wrong tokens from an address, the server rejects even a valid token from that address,
/// so that an attacker cannot go on guessing.
#[test]
fn too_many_wrong_tokens() {
    let file = tokens("wrong", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "3"]].concat());
    let right = || handshake().target("/?token=right");
    for target in ["/", "/echo", "/ws/general", "/ws", "/"] {
        let response = forwarded_response(&server, "192.0.2.1", handshake().target(target));
        assert_eq!((response.status, response.body.as_str()), (401, "Unauthorized"), "a missing token does not count");
    }
    let wrong = [
        handshake().target("/?token=wrong"),
        handshake().target("/echo").add("Authorization: Bearer wrong"),
        handshake().target("/").add(format!("Sec-WebSocket-Protocol: {}", subprotocol("wrong"))),
    ];
    for request in wrong {
        assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=right"), 101, "below the limit");
        assert_eq!(forwarded_response(&server, "192.0.2.1", request).status, 401);
    }
    for request in [right(), right().target("/echo?token=right"), right().target("/?token=wrong"), right().target("/")]
    {
        let response = forwarded_response(&server, "192.0.2.1", request);
        assert!(response.status == 429 && has_retry_after(&response), "{response:?}");
        assert!(response.body.contains("wrong tokens"), "the body names the limit: {response:?}");
    }
    let page = forwarded_response(&server, "192.0.2.1", get("/health"));
    assert_eq!(page.status, 200, "pages need no token");
    assert_eq!(forwarded_response(&server, "192.0.2.2", handshake().target("/?token=wrong")).status, 401);
    assert_eq!(forwarded_status(&server, "192.0.2.2", "/?token=right"), 101, "another address");
}

/// All addresses of an IPv6 /64 network share one limit on wrong tokens.
#[test]
fn an_ipv6_network_shares_one_limit_on_wrong_tokens() {
    let file = tokens("network", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "2"]].concat());
    for address in ["2001:db8::1", "2001:db8::ffff:2"] {
        assert_eq!(forwarded_status(&server, address, "/?token=wrong"), 401);
    }
    assert_eq!(forwarded_status(&server, "2001:db8::3", "/?token=right"), 429);
    assert_eq!(forwarded_status(&server, "2001:db8:0:1::1", "/?token=right"), 101, "another network");
}

#[test]
fn no_limit_on_wrong_tokens() {
    let file = tokens("unlimited", "right\n");
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file, "--max-wrong-tokens", "0"]].concat());
    for _ in 0..40 {
        assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=wrong"), 401);
    }
    assert_eq!(forwarded_status(&server, "192.0.2.1", "/?token=right"), 101);
    // The default of `--max-wrong-tokens` is 30.
    let server = proxied(&[&UNLIMITED[..], &["--tokens", &file]].concat());
    let statuses: Vec<u16> = (0..32).map(|_| forwarded_status(&server, "192.0.2.1", "/?token=wrong")).collect();
    assert_eq!(statuses, [[401; 30].as_slice(), &[429; 2]].concat());
}

// -------------------------------------------------------------------------------------------- connections per address

/// The server counts every accepted connection, even a silent one. It rejects connections over `--max-per-address`
/// without reading a request.
#[test]
fn too_many_connections_from_one_address() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "3"]);
    let mut silent: Vec<RawClient> = (0..3).map(|_| connect_from(&server, "127.0.0.2")).collect();
    let surplus = connect_from(&server, "127.0.0.2").read_response();
    assert!(surplus.status == 503 && has_retry_after(&surplus), "{surplus:?}");
    assert!(surplus.body.contains("too many connections"), "the body names the limit: {surplus:?}");
    assert_eq!(status_from(&server, "127.0.0.3", "/"), 101, "another address");
    // The rejection does not affect the three connections that the server had already accepted.
    silent[0].send(&handshake().bytes());
    assert!(silent[0].read_head().starts_with("HTTP/1.1 101 "));
    drop(silent.pop());
    wait_until("a client has left", || status_from(&server, "127.0.0.2", "/") == 101);
    let third = connect_from(&server, "127.0.0.2");
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
    drop(third);
}

/// Of 40 simultaneous clients at one address, the server accepts 32, the default of `--max-per-address`. The server
/// tells the other 8 that their address has too many connections.
#[test]
fn an_address_gets_its_whole_share() {
    let server = public(&["--open", "--rate-limit", "0"]);
    let mut clients = send_requests_at_once(&server, 40, "/");
    let rejected: Vec<_> = clients.iter_mut().filter(|(_, response)| response.status != 101).collect();
    assert_eq!(rejected.len(), 40 - 32);
    for (client, response) in rejected {
        assert_eq!(response.status, 503);
        let body = String::from_utf8(client.read_to_clean_end()).unwrap();
        assert!(body.starts_with("This address has too many connections"), "{body}");
    }
}

/// Silent connections count towards `--max-per-address` of their own address, but not towards `--max-connections`.
#[test]
fn silent_connections_count_towards_their_address_only() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-connections", "50"]);
    let _silent: Vec<RawClient> = (0..52).map(|_| connect_from(&server, "127.0.0.2")).collect();
    for address in ["127.0.0.3", "127.0.0.4"] {
        let _clients: Vec<RawClient> = (0..10).map(|_| upgrade_from(&server, address, "/")).collect();
    }
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
}

/// Rejected connections do not count towards `--max-per-address`, even while they linger.
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

/// `--max-per-address` counts a proxied connection against the address in `X-Forwarded-For`, not the proxy's address.
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
    let surplus = forwarded_response(&server, "192.0.2.1", handshake().target("/"));
    assert!(surplus.status == 503 && surplus.body.contains("too many connections"), "{surplus:?}");
    drop(clients);
    wait_until("the clients have left", || upgrade("192.0.2.1").1 == 101);
}

#[test]
fn no_limit_on_connections_per_address() {
    let server = public(&["--open", "--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "0"]);
    let _silent: Vec<RawClient> = (0..100).map(|_| connect_from(&server, "127.0.0.2")).collect();
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 101);
    // The default of `--max-per-address` is 32.
    let server = public(&["--open", "--rate-limit", "0"]);
    let _silent: Vec<RawClient> = (0..32).map(|_| connect_from(&server, "127.0.0.2")).collect();
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
}

/// One address may open a burst of five times `--connect-rate` connections, and then `--connect-rate` per second.
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
fn no_limit_on_connections_per_second() {
    for args in [&["--connect-rate", "0"][..], &["--connect-rate", "10000"]] {
        let server = public(&[&["--open", "--max-per-address", "0"], args].concat());
        for _ in 0..300 {
            assert_eq!(request_from(&server, "127.0.0.2", &get("/health")).1.status, 200);
        }
    }
    // A local server does not apply `--connect-rate` to loopback clients.
    let server = Server::start(&["--connect-rate", "0.001"]);
    (0..10).for_each(|_| assert_eq!(server.status(&get("/health")), 200));
}

/// Even with a very low `--connect-rate`, the server accepts the first connection of each address.
#[test]
fn the_slowest_rate_of_connections() {
    let server = public(&["--open", "--connect-rate", "0.001"]);
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 101);
    assert_eq!(status_from(&server, "127.0.0.2", "/"), 503);
    assert_eq!(status_from(&server, "127.0.0.3", "/"), 101);
}

// --------------------------------------------------------------------------------------------------- the full server

/// Pauses the server with SIGSTOP while `count` clients send a request, so that the server finds all requests at once.
/// Returns the clients and their responses.
fn send_requests_at_once(server: &Server, count: usize, target: &str) -> Vec<(RawClient, Response)> {
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

/// Of many simultaneous clients, the server accepts exactly `--max-connections` and rejects the rest with 503.
#[test]
fn first_come_first_served() {
    for (target, extra) in [("/?token=dev-token", 0), ("/?token=dev-token", 6), ("/echo?token=dev-token", 60)] {
        let server = Server::start(&["--max-connections", "20"]);
        let mut clients = send_requests_at_once(&server, 20 + extra, target);
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

/// Upgraded connections count towards `--max-connections`. Unfinished handshakes and rejected requests do not count.
#[test]
fn only_upgraded_connections_count_towards_the_limit() {
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
    first.leave();
    assert_eq!(server.status(&handshake()), 101);
    drop((handshaking, lingering));
}

/// The server bounds the number of lingering rejected connections, so that new clients can still connect.
#[test]
fn rejected_connections_that_stay() {
    let patient = ["--open", "--max-connections", "1", "--close-timeout", "600", "--handshake-timeout", "600"];
    let limits = ["--rate-limit", "0", "--connect-rate", "0", "--max-per-address", "1"];
    let server = public(&[&patient[..], &limits].concat());
    let _silent = connect_from(&server, "127.0.0.2");
    let mut staying = Vec::new();
    for n in 0..40 {
        // 127.0.0.2 is over `--max-per-address` and gets 503. 127.0.0.3 requests an unknown path and gets 404.
        let mut client = connect_from(&server, ["127.0.0.2", "127.0.0.3"][n % 2]);
        if n % 2 == 1 {
            client.send(&handshake().target("/nope").bytes());
        }
        let response = Response::parse(client.read_head().as_bytes());
        assert_eq!(response.status, [503, 404][n % 2]);
        staying.push(client);
    }
    assert_eq!(status_from(&server, "127.0.0.4", "/"), 101);
}

// ---------------------------------------------------------------------------------------------- rate limit per user

/// Options that limit each user to one message per 1,000 seconds.
const LOW_RATE_LIMIT: [&str; 6] = ["--rate-limit", "0.001", "--connect-rate", "0", "--history", "0"];

fn is_join_rate_limited(server: &Server, address: &str, target: &str) -> bool {
    let (mut client, response) = request_from(server, address, &handshake().target(target));
    if response.status == 429 {
        assert!(has_retry_after(&response), "{response:?}");
        let body = String::from_utf8(client.read_to_clean_end()).unwrap();
        assert!(body.contains("joins"), "the body names the limit: {body}");
    }
    response.status == 429
}

/// A join counts as a message towards a user's rate limit, and reconnecting does not reset the limit. Clients with
/// the same access token and the same address are one user.
#[test]
fn joins_draw_from_the_rate_limit() {
    let file = tokens("joins", "one\ntwo\n");
    let server = public(&[&LOW_RATE_LIMIT[..], &["--tokens", &file]].concat());
    let mut first = upgrade_from(&server, "127.0.0.2", "/?token=one&username=first");
    first.read_event("welcome");
    first.send_text(r#"{"event":"message","data":{"text":"too many"}}"#);
    assert_eq!(first.read_event("error")["message"], "Slow down", "the join has drawn from the bucket");
    drop(first);
    // One rate limit covers a user's joins with any username on any chat endpoint.
    for target in ["/?token=one&username=first", "/?token=one&username=other", "/ws/x?token=one"] {
        assert!(is_join_rate_limited(&server, "127.0.0.2", target), "{target}");
    }
    assert!(is_join_rate_limited(&server, "127.0.0.2", "/ws?token=one&username=first&client_id=1"));
    (0..5).for_each(|_| drop(upgrade_from(&server, "127.0.0.2", "/echo?token=one")));
    // Rejected requests do not use up the rate limit.
    for _ in 0..3 {
        assert_eq!(status_from(&server, "127.0.0.3", "/?token=one&username=%00"), 400);
        assert_eq!(status_from(&server, "127.0.0.3", "/?token=wrong"), 401);
    }
    assert!(!is_join_rate_limited(&server, "127.0.0.3", "/?token=one"), "another address");
    assert!(is_join_rate_limited(&server, "127.0.0.3", "/?token=one"));
    assert!(!is_join_rate_limited(&server, "127.0.0.2", "/?token=two"), "another token");
}

/// Rejected joins do not count as flooding. Otherwise a program that keeps retrying would get the user's other
/// connections closed.
#[test]
fn rejected_joins_do_not_count_as_flooding() {
    let server = public(&[&LOW_RATE_LIMIT[..], &["--open"]].concat());
    let mut client = upgrade_from(&server, "127.0.0.2", "/");
    client.read_event("welcome");
    (0..20).for_each(|_| assert!(is_join_rate_limited(&server, "127.0.0.2", "/")));
    // The rate limit allows a burst of one message, so the sixth rejection within ten seconds counts as flooding.
    for _ in 0..5 {
        client.send_text(r#"{"event":"ping"}"#);
        assert_eq!(client.read_event("error")["message"], "Slow down");
    }
    client.send_text(r#"{"event":"ping"}"#);
    assert_eq!(client.read_frame().close(), (1008, "flooding".to_owned()));
}

/// On a server without access tokens, all clients at one address are one user and share one rate limit.
#[test]
fn an_address_is_one_user_on_an_open_server() {
    let server = public(&[&LOW_RATE_LIMIT[..], &["--open"]].concat());
    assert!(!is_join_rate_limited(&server, "127.0.0.2", "/?username=a"));
    assert!(is_join_rate_limited(&server, "127.0.0.2", "/?username=b"));
    assert!(!is_join_rate_limited(&server, "127.0.0.3", "/?username=a"));
}

/// All access tokens that are bound to the same username share one rate limit, whatever the client's address.
#[test]
fn a_bound_username_is_a_user_everywhere() {
    let file = tokens("bound", "phone ann\nlaptop ann\nother bob\n");
    let server = public(&[&LOW_RATE_LIMIT[..], &["--tokens", &file]].concat());
    assert!(!is_join_rate_limited(&server, "127.0.0.2", "/?token=phone"));
    for (address, target) in
        [("127.0.0.2", "/?token=phone"), ("127.0.0.3", "/ws/x?token=phone"), ("127.0.0.4", "/?token=laptop")]
    {
        assert!(is_join_rate_limited(&server, address, target), "{address} {target}");
    }
    assert!(!is_join_rate_limited(&server, "127.0.0.2", "/?token=other"));
}

/// All connections of a user share one token bucket, for messages and for room switches.
#[test]
fn connections_of_a_user_share_its_rate_limit() {
    let server = public(&["--open", "--rate-limit", "2", "--history", "0"]);
    let mut clients = ["a", "b"].map(|name| upgrade_from(&server, "127.0.0.2", &format!("/?username={name}")));
    clients.iter_mut().for_each(|client| drop(client.read_event("welcome")));
    let switches = (0..4).map(|n| json!({"event": "switch_room", "data": {"room": n.to_string()}}).to_string());
    let frames: Vec<u8> = switches.flat_map(|text| masked(0x81, text.as_bytes())).collect();
    let texts =
        ["1", "2", "3", "4", "last"].map(|text| json!({"event": "message", "data": {"text": text}}).to_string());
    let messages: Vec<u8> = texts.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
    let start = Instant::now();
    clients[0].send(&frames);
    clients[1].send(&messages);
    clients[1].send(&masked(0x89, b"end"));
    clients[0].send(&masked(0x89, b"end"));
    let count_passed = |client: &mut RawClient, event: &str| {
        let mut passed = 0;
        loop {
            let frame = client.read_frame();
            if frame.first == 0x8a {
                return passed;
            }
            let text: Value = serde_json::from_str(frame.text()).unwrap();
            passed += usize::from(text["event"] == event);
        }
    };
    let passed = count_passed(&mut clients[0], "switched") + count_passed(&mut clients[1], "message");
    // The bucket holds four tokens and refills at two per second. Each message or room switch takes one token.
    let most = 4 + 2 * start.elapsed().as_secs() as usize + 1;
    assert!(passed <= most.min(9), "{passed} of 9 passed, and {most} may pass");
}

/// The server counts a user's rejected messages and `typing` commands across all of the user's connections.
#[test]
fn connections_of_a_user_share_its_other_limits() {
    let server = public(&["--open", "--rate-limit", "1", "--history", "0"]);
    let mut witness = User::new(upgrade_from(&server, "127.0.0.3", "/?username=witness"), Dialect::Events, "witness");
    witness.expect_event("welcome", json!({}));
    let mut clients = ["a", "b"].map(|name| upgrade_from(&server, "127.0.0.2", &format!("/?username={name}")));
    for client in &mut clients {
        client.read_event("welcome");
        witness.expect_event("joined", json!({}));
    }
    let send_at_once = |clients: &mut [RawClient; 2], text: &str, count: usize| {
        server.signal("STOP");
        clients.iter_mut().for_each(|client| client.send(&masked(0x81, text.as_bytes()).repeat(count)));
        server.signal("CONT");
    };
    send_at_once(&mut clients, r#"{"event":"typing"}"#, 1);
    witness.expect_event("typing", json!({}));
    // The eleventh rejected message of a user counts as flooding, because the limit is five times the burst of two.
    // Each of the user's two connections sends only eight messages, so neither exceeds the limit alone.
    send_at_once(&mut clients, r#"{"event":"ping"}"#, 8);
    let left = witness.expect_event("left", json!({}));
    let [a, b] = &mut clients;
    let flooding = if left["username"] == "a" { a } else { b };
    let close = loop {
        let frame = flooding.read_frame();
        if frame.opcode() == 8 {
            break frame.close();
        }
    };
    assert_eq!(close, (1008, "flooding".to_owned()));
}

/// On a local server, each connection is a separate user, and joins do not use up the rate limit.
#[test]
fn joins_on_a_local_server_are_not_rate_limited() {
    let server = Server::start(&LOW_RATE_LIMIT);
    for _ in 0..5 {
        let mut user = User::events(&server, "ann", "general");
        user.send_message("first");
        user.expect_event("message", json!({"text": "first"}));
        user.leave();
    }
}

// ------------------------------------------------------------------------------------------------- reserved usernames

/// If a token is bound to a username, the server rejects clients that claim the username with another token,
/// regardless of case and letter width. Clients with the bound token may omit the username.
#[test]
fn reserved_usernames() {
    let file = tokens("reserved", "hers alice\nalso-hers alice\nany\n");
    let server = public(&[&UNLIMITED[..], &["--tokens", &file]].concat());
    let names = ["alice", "Alice", "ALICE", "%EF%BD%81lice", "%F0%9D%90%9Alice", "+alice+"];
    let targets = names.iter().flat_map(|name| {
        [format!("/?token=any&username={name}"), format!("/ws?token=any&client_id=1&username={name}")]
    });
    each_row(&targets.collect::<Vec<_>>(), String::clone, |target| {
        let response = rejection(&server, &handshake().target(target.as_str()));
        assert!(response.status == 403 && response.body.contains("reserved"), "{response:?}");
    });
    for target in
        ["/?token=hers&username=Alice", "/?token=hers&username=bob", "/ws?token=hers&client_id=1&username=bob"]
    {
        assert_eq!(server.status(&handshake().target(target)), 403, "{target}");
    }
    assert_eq!(server.status(&handshake().target("/?token=any&username=alice2")), 101);

    let mut witness = User::at(&server, Dialect::Events, "/?token=hers&room=names", "alice");
    witness.expect_event("welcome", json!({"username": "alice"}));
    let mut also = User::at(&server, Dialect::Events, "/?token=also-hers&username=alice&room=names", "alice");
    also.expect_event("welcome", json!({"username": "alice"}));
    witness.expect_event("joined", json!({"username": "alice"}));
    let mut presence = User::at(&server, Dialect::Presence, "/ws?token=hers&client_id=1&room=names", "alice");
    assert_eq!(presence.receive()["username"], "alice");
    witness.expect_event("joined", json!({"username": "alice"}));
    let mut rooms = User::at(&server, Dialect::Rooms, "/ws/names?token=hers", "");
    rooms.receive();
    witness.expect_event("joined", json!({"username": "alice"}));
    rooms.send_message("a message without a name");
    witness.expect_event("message", json!({"username": "alice"}));
    rooms.expect_message(json!({"type": "message", "username": "alice", "text": "a message without a name"}));
    rooms.name = "bob".into();
    rooms.send_message("under another name");
    rooms.expect_error();

    let mut other = User::at(&server, Dialect::Rooms, "/ws/names?token=any", "");
    other.receive();
    other.receive();
    witness.expect_event("joined", json!({"username": "Anonymous"}));
    for name in ["alice", "ALICE", "ａｌｉｃｅ", "alice\u{fe0f}"] {
        other.name = name.into();
        other.send_message("not alice");
        let error = other.expect_error();
        assert!(error.contains("reserved"), "{error}");
    }
    other.send(r#"{"type":"typing","username":"Alice"}"#);
    other.expect_error();
    other.name = "bob".into();
    other.send_message("bob");
    witness.expect_event("message", json!({"username": "bob", "text": "bob"}));
}

/// With `--unique-names`, a new client with a token bound to a username replaces the client that uses the username,
/// even if the two clients have different addresses.
#[test]
fn a_bound_token_takes_over_its_username() {
    let file = tokens("takeover", "phone ann\nlaptop ann\nfree\n");
    let server = public(&[&UNLIMITED[..], &["--unique-names", "--tokens", &file]].concat());
    let connect =
        |address: &str, target: &str| User::new(upgrade_from(&server, address, target), Dialect::Events, "ann");
    let mut first = connect("127.0.0.2", "/?token=phone");
    first.expect_event("welcome", json!({"username": "ann"}));
    for (address, target) in [("127.0.0.3", "/?token=laptop"), ("127.0.0.2", "/?token=laptop&username=ann")] {
        let mut next = connect(address, target);
        next.expect_event("welcome", json!({"username": "ann", "members": []}));
        std::mem::replace(&mut first, next).expect_close(1008, "replaced by a newer connection");
    }
    assert_eq!(status_from(&server, "127.0.0.2", "/?token=free&username=ann"), 403);
    first.expect_nothing();
    // A client with an unbound token cannot take over a username, not even from a client with the same token.
    let mut bob = connect("127.0.0.2", "/?token=free&username=bob");
    bob.expect_event("welcome", json!({}));
    connect("127.0.0.2", "/?token=free&username=bob").expect_close(1008, "username already in use");
}

/// While a `client_id` is in use, the server rejects clients that use it with another token.
#[test]
fn a_client_id_of_another_token() {
    let file = tokens("client-ids", "one\ntwo\n");
    let server = public(&[&UNLIMITED[..], &["--tokens", &file]].concat());
    let target = |token: &str| format!("/ws?token={token}&username={token}&client_id=7");
    let mut first = User::at(&server, Dialect::Presence, &target("one"), "one");
    first.receive();
    let response = rejection(&server, &handshake().target(target("two")));
    assert!(response.status == 403 && response.body.contains("client_id"), "{response:?}");
    first.expect_nothing();
    let mut second = User::at(&server, Dialect::Presence, &target("one"), "one");
    first.expect_close(1008, "replaced by a newer connection");
    second.receive();
    assert_eq!(server.status(&handshake().target(target("two"))), 403);
    assert_eq!(server.status(&handshake().target(target("two").replace("=7", "=8"))), 101, "another id");
    second.leave();
    assert_eq!(server.status(&handshake().target(target("two"))), 101, "the id is free");
}

// -------------------------------------------------------------------------------------------- tokens in a subprotocol

/// The server accepts an access token in `Sec-WebSocket-Protocol`, and never echoes, logs or records the token.
#[test]
fn a_token_in_a_subprotocol() {
    const TOKEN: &str = "s3cret+token/ünïcode";
    let offer = subprotocol(TOKEN);
    let encoded = offer.strip_prefix("bearer.").unwrap();
    let file = tokens("subprotocol", TOKEN);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("subprotocol-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    let record = dir.to_str().unwrap();
    let mut server =
        Server::start(&["--tokens", &file, "--trace=full", "--verbose", "--record", record, "--close-timeout", "0.5"]);
    let offering = |target: &str, offered: &str| {
        let request = handshake().target(target).add(format!("Sec-WebSocket-Protocol: {offered}"));
        let mut client = server.connect();
        client.send(&request.bytes());
        let head = client.read_head();
        assert!(!head.contains(encoded) && !head.contains("bearer"), "{head}");
        let response = Response::parse(head.as_bytes());
        let body = if response.status == 101 { Vec::new() } else { client.read_to_clean_end() };
        (response, String::from_utf8(body).unwrap())
    };
    let rows = [
        ("/", offer.clone(), 101, ""),
        ("/", format!("chat.events, {offer}"), 101, "chat.events"),
        ("/", format!("{offer},chat.events"), 101, "chat.events"),
        ("/ws/general", format!("{offer}, chat.rooms"), 101, "chat.rooms"),
        ("/ws?username=a&client_id=1", format!("{offer}, chat.presence"), 101, "chat.presence"),
        ("/echo", format!("echo , {offer}"), 101, "echo"),
        ("/", format!("chat.events\r\nSec-WebSocket-Protocol: {offer}"), 101, "chat.events"),
        ("/", subprotocol("wrong"), 401, ""),
        ("/", "bearer.".into(), 401, ""),
        ("/", format!("{offer}="), 400, ""),
        ("/?token=wrong", offer.clone(), 401, ""),
        ("/", format!("{offer}, {offer}"), 400, ""),
        ("/", format!("{offer}\r\nSec-WebSocket-Protocol: {offer}"), 400, ""),
        ("/", format!("{offer} chat.events"), 400, ""),
        ("/", format!("chat.events {offer}"), 400, ""),
        ("/", format!("\"{offer}\""), 400, ""),
        ("/", format!("Bearer.{encoded}, Bearer.{encoded}"), 400, ""),
    ];
    each_row(
        &rows,
        |row| format!("{} {:?}", row.0, row.1),
        |(target, offered, status, selected)| {
            let (response, body) = offering(target, offered);
            assert_eq!(response.status, *status, "{body}");
            assert_eq!(response.header("Sec-WebSocket-Protocol"), *selected);
            assert!(!body.contains(encoded), "{body}");
            if *status == 401 {
                assert_eq!(body, "Unauthorized");
            }
        },
    );
    server.signal("TERM");
    assert!(server.wait().success());
    wait_until("the log is complete", || server.log().matches("= over").count() == rows.len());
    let recordings = read_recordings(&dir);
    assert!(server.log().contains("bearer.*") && recordings.len() > 1000, "both contain the requests");
    for (what, text) in [("log", server.log()), ("banner", server.printed()), ("recordings", recordings)] {
        assert_hidden(TOKEN, what, &text);
        assert_hidden(encoded, what, &text);
    }
}

/// Asserts that `text` does not contain `secret`, either verbatim or in hexadecimal.
fn assert_hidden(secret: &str, what: &str, text: &str) {
    let digits: Vec<String> = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    for form in [secret.to_owned(), digits.join(""), digits.join(" ")] {
        assert!(!text.contains(&form), "the {what} contains {form}:\n{text}");
    }
}

/// The text of all recordings in a folder.
fn read_recordings(dir: &Path) -> String {
    let files = fs::read_dir(dir).expect("the folder").map(|entry| entry.unwrap().path());
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

// ----------------------------------------------------------------------------------------------------- trusted proxies

/// The server ignores `X-Forwarded-For` from an untrusted peer. It logs a single warning, with the `--trusted-proxy`
/// option that would trust the peer.
#[test]
fn headers_of_a_proxy_that_is_not_trusted() {
    let forwarded_join = |server: &Server| {
        let request = handshake().target("/?username=ann").add("X-Forwarded-For: 192.0.2.7");
        assert_eq!(server.status(&request), 101);
    };
    let warned = |server: &Server| server.log().matches("--trusted-proxy 127.0.0.1").count();
    let server = public(&[&UNLIMITED[..], &["--open"]].concat());
    (0..3).for_each(|_| forwarded_join(&server));
    wait_until("three clients have left", || server.log().matches("LEAVE").count() == 3);
    assert_eq!(server.log().matches("JOIN room=general user=ann connection=").count(), 3);
    assert_eq!((server.log().matches("address=127.0.0.1").count(), warned(&server)), (6, 1), "{}", server.log());
    assert!(!server.log().contains("192.0.2.7"), "{}", server.log());
    // If at least one `--trusted-proxy` is set, the server does not log a suggestion to add another: it assumes that
    // the operator has already listed all proxies.
    let server = Server::start(&[&UNLIMITED[..], &["--open", "--trusted-proxy", "10.0.0.0/8"]].concat());
    forwarded_join(&server);
    server.wait_for_log("LEAVE");
    assert!(server.log().contains("address=127.0.0.1") && warned(&server) == 0, "{}", server.log());
}

/// A client cannot fake its address in `X-Forwarded-For`: a trusted proxy appends the real address, and the server
/// reads the header from right to left.
#[test]
fn the_address_that_a_trusted_proxy_adds() {
    let server = proxied(&[&UNLIMITED[..], &["--open"]].concat());
    let rows = [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.2", "192.0.2.2"),
        ("6.6.6.6\r\nX-Forwarded-For: 192.0.2.3,127.0.0.1", "192.0.2.3"),
        ("[2001:db8::4]:4711", "2001:db8::4"),
        ("::ffff:192.0.2.5", "192.0.2.5"),
        ("192.0.2.6, unknown, 127.0.0.1", "127.0.0.1"),
        ("unknown", "127.0.0.1"),
    ];
    for (n, (header, address)) in rows.into_iter().enumerate() {
        assert_eq!(forwarded_status(&server, header, &format!("/?username=user{n}")), 101, "{header}");
        server.wait_for_log(&format!("LEAVE room=general user=user{n} "));
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains(&format!("user=user{n} ")));
        let count = lines.filter(|line| line.contains(&format!("address={address}"))).count();
        assert_eq!(count, 2, "{header} is {address}, on joining and on leaving: {log}");
    }
    // REJECT, CLOSE and FAIL log lines show the client's address with the port of the proxy's connection.
    assert_eq!(forwarded_status(&server, "192.0.2.8", "/nope"), 404);
    server.wait_for_log("REJECT 192.0.2.8:");
    assert_eq!(forwarded_status(&server, "192.0.2.9", "/echo"), 101);
    server.wait_for_log("CLOSE 192.0.2.9:");
    let mut faulty = server.connect();
    faulty.send(&handshake().target("/").add("X-Forwarded-For: 192.0.2.10").followed_by(b"\x81\x00").bytes());
    server.wait_for_log("FAIL 192.0.2.10:");
    assert!(!server.log().contains("6.6.6.6"), "{}", server.log());
}

/// The server uses the scheme in `X-Forwarded-Proto` for its own origin only if a trusted proxy sent the request.
#[test]
fn the_scheme_that_a_trusted_proxy_adds() {
    let rows = [
        ("https://chat.example", "X-Forwarded-Proto: https", 101, 403),
        ("http://chat.example", "X-Forwarded-Proto: https", 403, 101),
        ("https://chat.example", "X-Forwarded-Proto: http", 403, 403),
        ("http://chat.example", "X-Forwarded-Proto: http", 101, 101),
        ("https://chat.example", "X-Other: https", 403, 403),
        ("http://chat.example", "X-Other: https", 101, 101),
        ("https://chat.example", "X-Forwarded-Proto: http, https", 101, 403),
        ("https://chat.example", "X-Forwarded-Proto: https, http", 403, 403),
        ("https://chat.example", "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http", 403, 403),
        ("https://other.example", "X-Forwarded-Proto: https", 403, 403),
        ("https://chat.example:8443", "X-Forwarded-Proto: https", 403, 403),
    ];
    let args = [&UNLIMITED[..], &["--open", "--allow-host", "chat.example"]].concat();
    let (through_proxy, direct) = (proxied(&args), Server::start(&args));
    each_row(
        &rows,
        |row| format!("{} {}", row.0, row.1),
        |(origin, header, with_proxy, without)| {
            let request =
                handshake().target("/").set("Host: chat.example").add(format!("Origin: {origin}")).add(header);
            assert_eq!((through_proxy.status(&request), direct.status(&request)), (*with_proxy, *without));
        },
    );
}

// ------------------------------------------------------------------------------------------------ reloading the tokens

#[test]
fn tokens_are_reloaded() {
    let path = token_file("reload", "stays\ngone\nmoved ann\n");
    let server = public(&[&UNLIMITED[..], &["--tokens", path.to_str().unwrap()]].concat());
    let mut handshaking = server.connect();
    handshaking.send(b"GET /?token=gone HTTP/1.1\r\n");
    let mut witness = User::at(&server, Dialect::Events, "/?token=stays&username=witness", "witness");
    witness.expect_event("welcome", json!({}));
    let mut echo = server.upgrade("/echo?token=stays");
    let mut member = User::at(&server, Dialect::Events, "/?token=gone&username=member", "member");
    member.expect_event("welcome", json!({}));
    witness.expect_event("joined", json!({"username": "member"}));
    let mut ann = User::at(&server, Dialect::Rooms, "/ws/other?token=moved", "");
    ann.receive();
    let revoked_echo = User::at(&server, Dialect::Events, "/echo?token=gone", "");

    fs::write(&path, "# a comment moves the lines\nnew\nmoved bob\nstays\n").unwrap();
    server.signal("HUP");
    server.wait_for_log("RELOAD");
    assert!(server.log().contains("RELOAD tokens added=2 removed=2 connections_closed=3"), "{}", server.log());
    witness.expect_event("left", json!({"username": "member"}));
    for user in [member, ann, revoked_echo] {
        user.expect_close(1008, "token revoked");
    }
    handshaking.send(&handshake().bytes()[b"GET /?token=dev-token&username=bot&room=general HTTP/1.1\r\n".len()..]);
    assert!(handshaking.read_head().starts_with("HTTP/1.1 401 "));
    let rows = [
        ("/?token=gone", 401),
        ("/echo?token=gone", 401),
        ("/echo?token=new", 101),
        ("/?token=new&username=ann&room=x", 101),
        ("/?token=new&username=bob", 403),
        ("/?token=moved&username=bob&room=x", 101),
    ];
    let check =
        || rows.iter().for_each(|(target, status)| assert_eq!(status_from(&server, "127.0.0.2", target), *status));
    check();

    // If the new token file is invalid, the server keeps the old tokens.
    let bad: [&[u8]; 4] = [b"", b"one\none\n", b"t\xff\n", b"one \x1b\n"];
    for (n, content) in bad.iter().enumerate() {
        fs::write(&path, content).unwrap();
        server.signal("HUP");
        wait_until("the reload has failed", || server.log().matches("RELOAD failed").count() == n + 1);
        check();
    }
    fs::remove_file(&path).unwrap();
    server.signal("HUP");
    wait_until("the reload has failed", || server.log().matches("RELOAD failed").count() == 5);
    check();
    let log = server.log();
    let failed: Vec<&str> = log.lines().filter(|line| line.contains("RELOAD")).collect();
    assert_eq!(failed.len(), 6, "one line for each reload: {failed:?}");
    assert!(failed[2].contains("line 2"), "the line with the error: {failed:?}");
    for secret in ["token=", "gone", "stays"] {
        assert!(!log.contains(secret), "{log}");
    }
    // The server has not closed the connections whose token is still valid.
    witness.expect_nothing();
    echo.send_text("still here");
    assert_eq!(echo.read_text(), "still here");

    // A reload succeeds again once the token file is valid.
    fs::write(&path, "gone\n").unwrap();
    server.signal("HUP");
    witness.expect_close(1008, "token revoked");
    assert_eq!(status_from(&server, "127.0.0.2", "/?token=gone"), 101);
}

/// Without a token file, SIGHUP closes no connection.
#[test]
fn a_reload_without_a_file() {
    for args in [&[][..], &["--open"]] {
        let server = Server::start(args);
        let mut user = User::events(&server, "ann", "general");
        server.signal("HUP");
        server.wait_for_log("RELOAD");
        user.expect_nothing();
        assert_eq!(server.status(&handshake()), 101);
    }
}

// ----------------------------------------------------------------------------------------------------- local servers

/// A local server, which only this machine can reach, accepts the demo tokens and sends inspector tickets. A public
/// server rejects the demo tokens, and sends inspector tickets only with `--inspect`.
#[test]
fn privileges_of_a_local_server() {
    let has_ticket = |args: &[&str]| {
        let server = Server::start(&[args, &["--open"]].concat());
        server.upgrade("/").read_event("welcome")["ticket"].is_string()
    };
    for local in [&[][..], &["--allow-host", "localhost,127.0.0.5,[::1],my.localhost"]] {
        assert_eq!(Server::start(local).status(&handshake()), 101, "{local:?}");
        assert!(has_ticket(local), "{local:?}");
    }
    for public in [&PUBLIC[..], &PROXIED, &["--allow-host", "*"], &["--allow-host", "localhost,chat.example"]] {
        assert!(!has_ticket(public), "{public:?}");
        assert!(has_ticket(&[public, &["--inspect"]].concat()), "{public:?}");
    }
    let file = tokens("not-local", "right\n");
    let server = public(&["--tokens", &file]);
    assert_eq!(status_from(&server, "127.0.0.2", "/?token=dev-token"), 401);
    assert_eq!(status_from(&server, "127.0.0.2", "/?token=right"), 101);
}

// ------------------------------------------------------------------------------------------------------- large rooms

/// In a large room, the server shortens or omits the member list, but `member_count` and `active_count` are exact.
#[test]
fn large_rooms() {
    let server = Server::start(&["--max-listed", "2", "--max-presence", "3"]);
    let mut first = User::events(&server, "a", "big");
    let mut second = User::join(&server, Dialect::Presence, "b", "big");
    let joined = |name: &str, users: Value| json!({"type": "user_joined", "username": name, "active_users": users});
    second.expect_message(joined("b", json!(["a", "b"])));
    let mut third = User::join(&server, Dialect::Events, "c", "big");
    third.expect_event("welcome", json!({"members": ["a", "b"], "member_count": 2}));
    second.expect_message(joined("c", json!(["a", "b", "c"])));
    let mut fourth = User::join(&server, Dialect::Events, "d", "big");
    fourth.expect_event("welcome", json!({"members": ["a", "b"], "member_count": 3}));
    let large = |kind: &str, name: &str, count: usize| json!({"type": kind, "username": name, "active_users": [], "active_count": count});
    second.expect_message(large("user_joined", "d", 4));
    let mut fifth = User::join(&server, Dialect::Presence, "e", "big");
    fifth.expect_message(large("user_joined", "e", 5));
    second.expect_message(large("user_joined", "e", 5));
    let mut switcher = User::events(&server, "s", "small");
    switcher.send_event("switch_room", json!({"room": "big"}));
    switcher.expect_event("switched", json!({"members": ["a", "b"], "member_count": 5}));
    second.expect_message(large("user_joined", "s", 6));
    switcher.send_event("switch_room", json!({"room": "small"}));
    switcher.expect_event("switched", json!({"members": [], "member_count": 0}));
    second.expect_message(large("user_left", "s", 5));
    fifth.leave();
    second.expect_message(large("user_left", "e", 4));
    fourth.leave();
    second.expect_message(json!({"type": "user_left", "username": "d", "active_users": ["a", "b", "c"]}));
    for name in ["b", "c", "d", "e", "s"] {
        first.expect_event("joined", json!({"username": name}));
    }
}

// ----------------------------------------------------------------------------------------------------------- the log

/// The server logs the first five rejections of each address, and later rejections only in a summary.
#[test]
fn repeated_rejections_are_not_logged() {
    let server = public(&[&UNLIMITED[..], &["--open"]].concat());
    for n in 0..8 {
        assert_eq!(status_from(&server, "127.0.0.2", &format!("/nope{n}")), 404);
    }
    assert_eq!(status_from(&server, "127.0.0.3", "/nope"), 404);
    server.wait_for_log("REJECT 127.0.0.3:");
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("REJECT 127.0.0.2:")).collect();
    assert_eq!(lines.len(), 5, "{log}");
    for (n, line) in lines.iter().enumerate() {
        assert!(line.contains(" 404 ") && line.contains(&format!("/nope{n}")), "{line}");
    }
}

/// Log lines show a client's username, address and line in the token file, but never the client's token.
#[test]
fn lines_of_a_client_in_the_log() {
    let file = tokens("log", "# ours\nsecret-one\nsecret-two ann\n");
    let server = public(&[&UNLIMITED[..], &["--tokens", &file, "-v"]].concat());
    let mut ann = User::new(upgrade_from(&server, "127.0.0.2", "/?token=secret-two"), Dialect::Events, "ann");
    ann.expect_event("welcome", json!({}));
    let rooms = upgrade_from(&server, "127.0.0.3", "/ws/other?token=secret-one");
    ann.send_event("switch_room", json!({"room": "other"}));
    ann.expect_event("switched", json!({}));
    server.wait_for_log("SWITCH from=general to=other user=ann connection=");
    ann.send_message("hello");
    ann.expect_event("message", json!({}));
    server.wait_for_log("MSG room=other user=ann connection=");
    ann.leave();
    drop(rooms);
    server.wait_for_log("LEAVE room=other user=ann connection=");
    server.wait_for_log("LEAVE room=other user=Anonymous connection=");
    let log = server.log();
    let numbers = |user: &str, rest: &str| -> Vec<usize> {
        let lines = log.lines().filter_map(|line| line.split_once(&format!(" user={user} connection=")));
        lines
            .map(|(_, fields)| {
                let (number, fields) = fields.split_once(' ').unwrap();
                assert!(fields.starts_with(rest), "{fields}");
                number.parse().expect("the number of a connection")
            })
            .collect()
    };
    let (anns, others) =
        (numbers("ann", "address=127.0.0.2 token_line=3"), numbers("Anonymous", "address=127.0.0.3 token_line=2"));
    assert_eq!((anns.len(), others.len()), (4, 2), "{log}");
    assert!(anns.iter().all(|number| *number == anns[0] && *number != others[0]), "{log}");
    assert!(!log.contains("secret"), "{log}");
    // Without access tokens, log lines have no `token_line` field.
    let server = public(&[&UNLIMITED[..], &["--open"]].concat());
    drop(server.upgrade("/?username=bob"));
    server.wait_for_log("LEAVE");
    assert!(server.log().contains("user=bob connection=") && !server.log().contains("token_line"), "{}", server.log());
}

// ------------------------------------------------------------------------------------------------------------- rooms

/// `--max-rooms-per-user` limits the number of non-empty rooms that a user opened. A user can always join `general`.
#[test]
fn rooms_of_one_user() {
    let limit = ["--open", "--max-rooms-per-user", "2"];
    let server = public(&[&UNLIMITED[..], &limit].concat());
    let join = |address: &str, room: &str| {
        let target = format!("/?username={room}&room={room}");
        let mut user = User::new(upgrade_from(&server, address, &target), Dialect::Events, room);
        user.expect_event("welcome", json!({"room": room}));
        user
    };
    let (one, mut two) = (join("127.0.0.2", "one"), join("127.0.0.2", "two"));
    let mut guest = join("127.0.0.2", "two");
    two.expect_event("joined", json!({}));
    let target = "/?username=a&room=three";
    let (mut client, response) = request_from(&server, "127.0.0.2", &handshake().target(target));
    let body = String::from_utf8(client.read_to_clean_end()).unwrap();
    assert!(response.status == 503 && has_retry_after(&response) && body.contains("too many rooms"), "{body}");
    guest.send_event("switch_room", json!({"room": "three"}));
    assert!(guest.expect_error().contains("too many rooms"));
    // A user who has opened as many rooms as allowed can still join `general` and rooms that other users opened.
    join("127.0.0.2", "general").leave();
    let _others = join("127.0.0.3", "three");
    guest.send_event("switch_room", json!({"room": "general"}));
    guest.expect_event("switched", json!({"room": "general"}));
    guest.send_event("switch_room", json!({"room": "three"}));
    guest.expect_event("switched", json!({"room": "three", "members": ["three"]}));
    // An empty room does not count towards the limit, so the user can now open another room.
    one.leave();
    join("127.0.0.2", "four").leave();
}

/// When a user leaves behind more empty rooms than `--max-empty-rooms` allows, the server deletes the newest of that
/// user's empty rooms, with their histories. Empty rooms that other users opened keep their histories.
#[test]
fn rooms_of_one_user_evict_no_others() {
    let limits = ["--open", "--max-empty-rooms", "5", "--max-rooms-per-user", "1000"];
    let server = public(&[&UNLIMITED[..], &limits].concat());
    let visit = |address: &str, room: &str| {
        let target = format!("/?username=a&room={room}");
        let mut user = User::new(upgrade_from(&server, address, &target), Dialect::Events, "a");
        let last_id = user.expect_event("welcome", json!({}))["last_id"].as_u64();
        user.send_message("kept");
        user.expect_event("message", json!({}));
        user.leave();
        last_id
    };
    for room in ["quiet1", "quiet2"] {
        assert_eq!(visit("127.0.0.2", room), Some(0));
    }
    (0..20).for_each(|number| assert_eq!(visit("127.0.0.3", &format!("busy{number}")), Some(0)));
    for room in ["quiet1", "quiet2", "busy0", "busy1"] {
        assert_eq!(visit("127.0.0.4", room), Some(1), "{room}");
    }
    assert_eq!(visit("127.0.0.4", "busy18"), Some(0), "the newest histories of the busy user are deleted");
}

/// A server that only this machine can reach ignores `--max-rooms-per-user`: a user may open more rooms than that.
#[test]
fn a_local_server_does_not_limit_rooms_per_user() {
    let server = Server::start(&[&UNLIMITED[..], &["--max-rooms-per-user", "2"]].concat());
    let mut tourist = User::events(&server, "tourist", "general");
    for room in ["a", "b", "c", "d"] {
        tourist.send_event("switch_room", json!({"room": room}));
        tourist.expect_event("switched", json!({"room": room, "last_id": 0}));
        tourist.send_message("I was here");
        tourist.expect_event("message", json!({"id": 1}));
    }
    for room in ["a", "b", "c", "d"] {
        let mut reader = User::join(&server, Dialect::Events, "reader", room);
        reader.expect_event("welcome", json!({"room": room, "last_id": 1}));
    }
}

/// Even when `--max-rooms` is reached, clients can join `general`.
#[test]
fn general_can_always_be_joined() {
    let server = Server::start(&[&UNLIMITED[..], &["--max-rooms", "1"]].concat());
    let _one = User::events(&server, "a", "one");
    assert_eq!(server.status(&handshake().target("/?token=dev-token&room=two")), 503);
    let _general = User::events(&server, "b", "general");
    assert_eq!(server.status(&handshake().target("/?token=dev-token&room=two")), 503);
}

// ------------------------------------------------------------------------------------------------- limit on buffers

/// The outboxes together exceed `--max-buffered`, though no outbox exceeds `--max-outbox`. The server closes only the
/// clients that do not read.
#[test]
fn clients_that_do_not_read_fill_the_buffers() {
    let bounds = ["--max-buffered", "400000", "--max-echo", "65536", "--max-outbox", "67108864"];
    let others = ["--max-text", "20000", "--history", "0", "--close-timeout", "25"];
    let server = Server::start(&[&UNLIMITED[..], &bounds, &others].concat());
    let slow = |name: &str| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&server.addr().into()).unwrap();
        let mut client = RawClient::new(socket.into());
        client.send(&handshake().target(format!("/?token=dev-token&username={name}")).bytes());
        assert!(client.read_head().starts_with("HTTP/1.1 101 "));
        client.read_event("welcome");
        client
    };
    let mut slow: Vec<RawClient> = ["slow1", "slow2", "slow3"].map(slow).into();
    let mut chatter = User::events(&server, "chatter", "general");
    let text = "x".repeat(16_000);
    let mut left = Vec::new();
    let end = Instant::now() + support::DEADLINE;
    while left.len() < 3 {
        assert!(Instant::now() < end, "closed: {left:?}");
        chatter.send_message(&text);
        loop {
            let mut event = chatter.receive();
            if event["event"] == "left" {
                left.push(event["data"]["username"].take());
            } else if event["event"] == "message" {
                break;
            }
        }
    }
    for client in &mut slow {
        let close = loop {
            let frame = client.read_frame();
            if frame.opcode() == 8 {
                break frame.close();
            }
        };
        assert_eq!(close, (1013, "the server's buffers are full".to_owned()));
    }
    chatter.send_message("still here");
    chatter.expect_event("message", json!({"text": "still here"}));
}
