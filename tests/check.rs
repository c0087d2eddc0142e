//! Tests of `GET /check`, which reports the status and the body that a handshake with the same parameters would get.
//! Most tests also make that handshake and compare the two results.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::http::{Request, get, handshake, response};
use support::table::each_row;
use support::users::{Dialect, User, encode};
use support::{Server, token_file, wait_until};

/// `--allow-host` makes the server public, so its limits per address also apply to loopback, from which all test
/// clients connect. The other two options turn off two of these limits: on the rate and the number of connections.
const PUBLIC: [&str; 6] = ["--allow-host", "chat.example", "--connect-rate", "0", "--max-per-address", "0"];

fn public(args: &[&str]) -> Server {
    Server::start(&[&PUBLIC, args].concat())
}

fn tokens(name: &str, content: &str) -> String {
    token_file(name, content).to_str().unwrap().to_owned()
}

/// Builds a `/check` request, which asks what status the server would send to a handshake for `target`.
fn check_request(target: &str) -> Request {
    let (endpoint, query) = target.split_once('?').unwrap_or((target, ""));
    get(&format!("/check?{query}&endpoint={}", encode(endpoint)))
}

/// Sends a `/check` request, and returns the JSON in the response.
fn check(server: &Server, request: &Request) -> Value {
    let response = response(server, request);
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.header("Content-Type"), "application/json");
    assert_eq!(response.header("Cache-Control"), "no-store");
    let json: Value = serde_json::from_str(&response.body).expect("JSON");
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(2), "{json}");
    json
}

fn status(server: &Server, target: &str) -> u64 {
    check(server, &check_request(target))["status"].as_u64().expect("a status")
}

/// The request target and the extra header lines of a handshake, and the status that the server must report.
type Row<'a> = (&'a str, &'a [&'a str], u16);

fn run(server: &Server, rows: &[Row]) {
    each_row(
        rows,
        |(target, headers, _)| format!("{target} {headers:?}"),
        |(target, headers, expected)| {
            let with_headers = |request: Request| headers.iter().fold(request, |request, line| request.add(line));
            let checked = check(server, &with_headers(check_request(target)));
            let response = response(server, &with_headers(handshake().target(*target)));
            assert_eq!(response.status, *expected, "{response:?}");
            assert_eq!(checked, json!({"status": response.status, "message": response.body}));
        },
    );
}

// ------------------------------------------------------------------------- a check reports the result of the handshake

#[test]
fn a_check_has_the_status_and_the_body_of_the_handshake() {
    let long_origin = format!("Origin: https://{}.example", "x".repeat(300));
    run(
        &Server::start(&[]),
        &[
            ("/?token=dev-token", &[], 101),
            ("/?token=dev-token&username=ann&room=tea", &[], 101),
            ("/ws/tea?token=dev-token", &[], 101),
            ("/ws/a%2Fb?token=dev-token", &[], 101),
            ("/ws?token=dev-token&username=ann&client_id=1", &[], 101),
            ("/?username=ann", &["Authorization: Bearer dev-token"], 101),
            // The server checks the endpoint before the token.
            ("/nope", &[], 404),
            ("/nope?token=dev-token", &["Origin: https://evil.example"], 404),
            ("/ws/a/b?token=dev-token", &[], 404),
            ("/ws/?token=dev-token", &[], 400),
            // The server checks the origin before the token.
            ("/?token=dev-token", &["Origin: null"], 101),
            ("/?token=dev-token", &["Origin: http://127.0.0.1"], 101),
            ("/", &["Origin: https://evil.example"], 403),
            ("/", &["Origin: null", "Origin: null"], 400),
            ("/", &[&long_origin], 400),
            // The server checks the token before the other parameters.
            ("/", &[], 401),
            ("/?token=wrong&username=%00", &[], 401),
            ("/?token=%zz", &[], 401),
            ("/?token=wrong", &["Authorization: Bearer dev-token"], 401),
            ("/ws/tea", &["Authorization: Bearer wrong"], 401),
            ("/ws?username=ann&client_id=1", &[], 401),
            ("/?token=dev-token&x=%zz", &[], 400),
            ("/?token=dev-token&username=%00", &[], 400),
            ("/?token=dev-token&username=", &[], 400),
            ("/?token=dev-token&room=+", &[], 400),
            ("/ws/%FF?token=dev-token", &[], 400),
            ("/ws/%zz?token=dev-token", &[], 400),
            ("/ws?token=dev-token&username=ann", &[], 400),
            ("/ws?token=dev-token&client_id=1", &[], 400),
            ("/ws?token=dev-token&username=ann&client_id=", &[], 400),
        ],
    );
}

#[test]
fn usernames_and_client_ids_of_another_token() {
    let file = tokens("check-names", "hers alice\nfree\nother\n");
    let server = public(&["--tokens", &file, "--rate-limit", "0"]);
    let mut pat = User::at(&server, Dialect::Presence, "/ws?token=free&username=pat&client_id=7", "pat");
    pat.receive();
    run(
        &server,
        &[
            ("/?token=hers", &[], 101),
            ("/?token=hers&username=bob", &[], 403),
            ("/?token=free&username=Alice", &[], 403),
            ("/ws?token=other&username=bob&client_id=7", &[], 403),
            ("/ws?token=other&username=bob&client_id=8", &[], 101),
        ],
    );
}

#[test]
fn a_server_that_is_full() {
    let server = public(&["--open", "--rate-limit", "0", "--max-rooms", "1", "--max-connections", "2"]);
    let _first = server.upgrade("/?room=tea");
    run(&server, &[("/?room=coffee", &[], 503), ("/?room=%00", &[], 400)]);
    let _second = server.upgrade("/echo");
    run(&server, &[("/?room=tea", &[], 503), ("/ws/coffee", &[], 503), ("/?room=%00", &[], 400), ("/nope", &[], 404)]);
}

/// A `/check` request does not count towards the rate limit. The server checks the rate limit last, so it reports
/// status 429 only for a handshake that passes all other checks.
#[test]
fn a_check_draws_nothing_from_the_rate_limit() {
    let server = public(&["--open", "--rate-limit", "0.001", "--max-rooms", "1"]);
    (0..5).for_each(|_| assert_eq!(status(&server, "/?room=tea"), 101, "a check does not use up the burst"));
    let _client = server.upgrade("/?room=tea");
    run(
        &server,
        &[
            ("/?room=tea", &[], 429),
            ("/ws/tea", &[], 429),
            ("/ws?username=ann&client_id=1&room=tea", &[], 429),
            ("/?room=coffee", &[], 503),
            ("/?room=%00", &[], 400),
        ],
    );
}

#[test]
fn a_check_counts_wrong_tokens() {
    let file = tokens("check-wrong", "right\n");
    let server = || public(&["--tokens", &file, "--max-wrong-tokens", "3"]);
    let first = server();
    (0..9).for_each(|_| assert_eq!(status(&first, "/"), 401, "a missing token is not counted"));
    for target in ["/?token=wrong", "/ws/tea?token=wrong", "/ws?token=wrong"] {
        assert_eq!(status(&first, target), 401);
    }
    run(&first, &[("/?token=right", &[], 429), ("/?token=wrong", &[], 429), ("/", &[], 429), ("/nope", &[], 404)]);
    let second = server();
    (0..3).for_each(|_| assert_eq!(second.status(&handshake().target("/?token=wrong")), 401));
    assert_eq!(status(&second, "/?token=right"), 429, "wrong tokens in handshakes count as well");
    let third = server();
    // These requests have an unknown endpoint or a forbidden origin. The server checks both before the token, so the
    // wrong tokens do not count towards `--max-wrong-tokens`.
    (0..9).for_each(|_| assert_eq!(status(&third, "/nope?token=wrong"), 404));
    for _ in 0..9 {
        let foreign = check_request("/?token=wrong").add("Origin: https://evil.example");
        assert_eq!(check(&third, &foreign)["status"], 403);
    }
    assert_eq!(status(&third, "/?token=right"), 101);
}

#[test]
fn a_check_joins_nothing_and_replaces_nobody() {
    let server = Server::start(&["--unique-names"]);
    let mut ann = User::events(&server, "ann", "general");
    let mut pat = User::join(&server, Dialect::Presence, "pat", "tea");
    pat.receive();
    let id = encode("pat in tea");
    let targets = [
        "/?token=dev-token&username=bob".to_owned(),
        "/?token=dev-token&username=ann".to_owned(),
        "/ws/general?token=dev-token".to_owned(),
        format!("/ws?token=dev-token&username=pat&client_id={id}&room=tea"),
    ];
    for target in targets {
        // The username `ann` is in use, but the server rejects such a username only after the handshake.
        assert_eq!(check(&server, &check_request(&target)), json!({"status": 101, "message": ""}), "{target}");
    }
    ann.expect_nothing();
    pat.expect_nothing();
    let mut guest = User::join(&server, Dialect::Events, "guest", "general");
    guest.expect_event("welcome", json!({"members": ["ann"], "member_count": 1}));
}

// -------------------------------------------------------------------------------------------------- specific to /check

#[test]
fn the_endpoint_is_a_parameter() {
    let server = Server::start(&[]);
    let rows = [
        ("", 101),
        ("&endpoint=/", 101),
        ("&endpoint=%2F", 101),
        ("&endpoint=/ws/tea", 101),
        ("&endpoint=%2Fws%2Fa+b", 101),
        ("&endpoint=%2Fws%2Fa%252Fb", 101),
        ("&%65ndpoint=/ws/tea", 101),
        ("&endpoint=/&endpoint=/nope", 101),
        ("&endpoint=/nope&endpoint=/", 404),
        ("&endpoint=", 404),
        ("&endpoint=ws", 404),
        ("&endpoint=/ws/a/b", 404),
        ("&endpoint=%2Fws%2Fa%2Fb", 404),
        ("&endpoint=/echo", 404),
        ("&endpoint=/inspect", 404),
        ("&endpoint=/health", 404),
        ("&endpoint=/check", 404),
        ("&endpoint=/ws", 400),
        ("&endpoint=%zz", 400),
        ("&endpoint=%FF", 400),
        ("&endpoint=/ws/%2500", 400),
    ];
    each_row(
        &rows,
        |(query, _)| (*query).to_owned(),
        |(query, expected)| {
            let checked = check(&server, &get(&format!("/check?token=dev-token{query}")));
            assert_eq!(checked["status"], *expected, "{checked}");
        },
    );
}

/// A page may read the response (CORS) only if the server allows the page's origin, whatever status the response
/// reports.
#[test]
fn pages_of_allowed_origins_may_read_the_response() {
    let server = Server::start(&["--allow-origin", "https://Chat.example"]);
    let any = Server::start(&["--allow-origin", "*"]);
    let file = tokens("check-origins", "dev-token\n");
    let public = public(&["--tokens", &file]);
    let rows: [(&Server, &str, bool); 10] = [
        (&server, "null", true),
        (&server, "http://127.0.0.1", true),
        (&server, "https://chat.example", true),
        (&server, "https://chat.example:443", true),
        (&server, "https://evil.example", false),
        (&server, "http://chat.example", false),
        (&server, "https://chat.example, null", false),
        (&any, "https://evil.example", true),
        (&public, "null", false),
        (&public, "http://127.0.0.1", true),
    ];
    each_row(
        &rows,
        |(_, origin, _)| (*origin).to_owned(),
        |(server, origin, is_allowed)| {
            for (target, otherwise) in [("/?token=wrong", 401), ("/nope", 404), ("/?token=dev-token&room=%00", 400)] {
                let request = check_request(target).add(format!("Origin: {origin}"));
                let response = response(server, &request);
                let expected = if *is_allowed { (*origin, "Origin") } else { ("", "") };
                let cors = (response.header("Access-Control-Allow-Origin"), response.header("Vary"));
                assert_eq!(cors, expected, "{response:?}");
                let json: Value = serde_json::from_str(&response.body).unwrap();
                let expected = if *is_allowed || target == "/nope" { otherwise } else { 403 };
                assert_eq!(json["status"], expected, "{json}");
            }
        },
    );
    for headers in [&[][..], &["Origin: null", "Origin: null"]] {
        let request = headers.iter().fold(check_request("/?token=dev-token"), |request, line| request.add(line));
        assert_eq!(response(&server, &request).header("Access-Control-Allow-Origin"), "", "{headers:?}");
    }
    let not_utf8 = check_request("/?token=dev-token").add(b"Origin: https://\xff");
    assert_eq!(response(&any, &not_utf8).header("Access-Control-Allow-Origin"), "");
    // The server sends `Access-Control-Allow-Origin` only in responses to `/check`.
    for request in [get("/health"), get("/"), handshake().target("/")] {
        let response = response(&any, &request.add("Origin: https://evil.example"));
        assert_eq!(response.header("Access-Control-Allow-Origin"), "", "{response:?}");
    }
}

#[test]
fn check_supports_get_and_head_and_ignores_upgrade() {
    let server = Server::start(&[]);
    let get_response = response(&server, &check_request("/?token=wrong"));
    assert_eq!(get_response.body, "{\"status\":401,\"message\":\"Unauthorized\"}\n");
    let head_response = response(&server, &check_request("/?token=wrong").method("HEAD"));
    assert_eq!((head_response.status, head_response.body.as_str()), (200, ""));
    assert_eq!(head_response.header("Content-Length"), get_response.header("Content-Length"));
    for method in ["POST", "PUT", "OPTIONS", "DELETE", "head"] {
        let response = response(&server, &check_request("/?token=dev-token").method(method));
        assert_eq!((response.status, response.header("Allow")), (405, "GET, HEAD"), "{method}");
    }
    for method in ["GET", "HEAD"] {
        let upgrade = handshake().method(method).target("/check?token=dev-token&username=ann");
        let response = response(&server, &upgrade);
        assert_eq!((response.status, response.header("Upgrade")), (200, ""), "{method}");
        assert_eq!(response.header("Connection"), "close");
    }
}

/// Neither the log nor the trace contains the token of a `/check` request, whether the token is in the query or in a
/// header.
#[test]
fn no_token_of_a_check_is_logged() {
    const SECRET: &str = "s3cret-7f3a";
    let mut server = Server::start(&["--verbose", "--trace=full", "--open"]);
    for request in [
        check_request(&format!("/?token={SECRET}")),
        check_request("/").add(format!("Authorization: Bearer {SECRET}")),
        get(&format!("/check?token={SECRET}&endpoint=/nope")),
    ] {
        let checked = check(&server, &request);
        assert!(!checked.to_string().contains(SECRET), "{checked}");
    }
    wait_until("the trace has each request", || server.log().matches("/check").count() >= 3);
    server.signal("TERM");
    assert!(server.wait().success());
    let log = server.log();
    assert!(!log.contains(SECRET), "{log}");
}
