//! HTTP requests without an upgrade: the headers of the page, disabled endpoints, and a handshake from which a proxy
//! has removed `Upgrade`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::Server;
use support::http::{get, handshake, response};
use support::users::{Dialect, User, events_path};

#[test]
fn the_page_has_a_policy_and_is_cached_until_it_changes() {
    let server = Server::start(&[]);
    let page = response(&server, &get("/"));
    assert_eq!(page.header("Referrer-Policy"), "no-referrer");
    assert_eq!(page.header("X-Content-Type-Options"), "nosniff");
    assert_eq!(page.header("Cache-Control"), "no-cache");
    let policy = page.header("Content-Security-Policy");
    assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with("; frame-ancestors 'none'"), "{policy}");
    // The policy in the page's `<meta>` element must have the same hashes as the policy in this header. `tests/page.rs`
    // compares the hashes with the page's scripts and styles.
    let hashes: Vec<&str> = policy.split([' ', ';']).filter(|word| word.starts_with("'sha256-")).collect();
    assert!(hashes.len() == 7 && hashes.iter().all(|hash| page.body.contains(hash)), "{policy}");

    let tag = page.header("ETag");
    assert!(tag.len() > 20 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let rows = [
        (tag.to_owned(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"other\", {tag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
        (tag.trim_matches('"').to_owned(), 200),
    ];
    for (known, status) in rows {
        let response = response(&server, &get("/").add(format!("If-None-Match: {known}")));
        assert_eq!((response.status, response.body.is_empty()), (status, status == 304), "{known}");
        assert_eq!(response.header("ETag"), tag);
    }
    assert_eq!(response(&server, &get("/").method("HEAD").add(format!("If-None-Match: {tag}"))).status, 304);
    // The server forbids caching of every response except the page.
    assert_eq!(response(&server, &get("/health")).header("Cache-Control"), "no-store");
}

#[test]
fn endpoints_that_are_switched_off() {
    let server = Server::start(&["--no-echo", "--no-inspect"]);
    for request in [get("/echo?token=dev-token"), handshake().target("/echo?token=dev-token")] {
        assert_eq!(response(&server, &request).status, 404);
    }
    let welcome = User::at(&server, Dialect::Events, &events_path("alice", "general"), "alice").receive();
    assert!(welcome["event"] == "welcome" && welcome["data"]["ticket"].is_null(), "{welcome}");
}

/// If a proxy removes `Upgrade` from a handshake, the server sends the page and logs what the proxy must forward.
#[test]
fn a_handshake_without_upgrade_is_logged() {
    let server = Server::start(&[]);
    let stripped = handshake().without("Upgrade").without("Connection");
    assert_eq!(response(&server, &stripped).status, 200, "the page");
    assert_eq!(response(&server, &stripped.clone().target("/ws/tea?token=dev-token")).status, 426);
    let line = "a proxy must forward Upgrade and Connection";
    server.wait_for_log(line);
    assert_eq!(response(&server, &get("/")).status, 200);
    // The limit on logged rejections per address covers this log line, so that a client cannot fill the log.
    (0..20).for_each(|_| _ = response(&server, &stripped));
    assert!(server.log().matches(line).count() <= 5, "{}", server.log());
    assert!(!server.log().contains("dev-token"), "{}", server.log());
}
