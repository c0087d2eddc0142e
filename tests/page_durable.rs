//! Tests the page with `--history-db`: after a restart of the server, the page shows every message exactly once.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use serde_json::json;
use support::Server;
use visitor::*;

fn texts(tab: &browser::Tab) -> serde_json::Value {
    tab.eval("[...document.querySelectorAll('.message .text')].map((text) => text.textContent)")
}

/// Starts a server that listens on `listen` and stores its history in `file`. Dropping the `Server` kills the process.
fn start_on(listen: &str, file: &str) -> Server {
    Server::start_at(listen, &["--rate-limit", "0", "--history-db", file])
}

#[test]
fn a_restart_loses_nothing_and_repeats_nothing() {
    let browser = browser!();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{}.db", std::process::id()));
    let file = path.to_str().unwrap();
    let server = start_on("127.0.0.1:0", file);
    let (listen, port) = (server.addr().to_string(), server.port());
    let mut bob = joined_guest(&server, "general", "bob");
    (1..=120).for_each(|n| say(&mut bob, &format!("line {n}")));
    let alice = join(&browser, port, "alice");
    wait_for_log(&alice, "line 120");
    switch_room(&alice, "rust");
    alice.wait_for("document.title.includes('#rust')");
    type_message(&alice, "in rust");
    wait_for_log(&alice, "in rust");

    drop((bob, server));
    wait_for_state(&alice, "waiting");
    let server = start_on(&listen, file);
    wait_for_log(&alice, "Reconnected to #rust.");
    let mut bob = joined_guest(&server, "general", "bob");
    say(&mut bob, "line 121");
    switch_room(&alice, "general");
    wait_for_log(&alice, "line 121");
    // The room has a new epoch after the restart. The page must not show the earlier messages a second time.
    let expected: Vec<String> = (71..=121).map(|n| format!("line {n}")).collect();
    assert_eq!(texts(&alice), json!(expected), "each message once, in order");
    switch_room(&alice, "rust");
    alice.wait_for("document.title.includes('#rust')");
    assert_eq!(texts(&alice), json!(["in rust"]));

    // A new visitor can scroll back to all messages from before the restart.
    let carol = join(&browser, port, "carol");
    switch_room(&carol, "general"); // the page first joins the room that the browser used last
    wait_for_log(&carol, "line 121");
    let count = || carol.eval("document.querySelectorAll('.message').length").as_u64().unwrap();
    while count() < 121 {
        let before = count();
        carol.eval(&format!("{LOG}.scrollTop = 0; 0"));
        carol.wait_for(&format!("document.querySelectorAll('.message').length > {before}"));
    }
    let all: Vec<String> = (1..=121).map(|n| format!("line {n}")).collect();
    assert_eq!(texts(&carol), json!(all));
    carol.screenshot("stored-history");
    assert_eq!(browser.page_errors(), [""; 0]);
    drop(server);
    let _ = std::fs::remove_file(&path);
}
