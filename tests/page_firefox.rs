//! Tests the page's main features in Firefox. The other tests of the page run in Chromium. The tests wait for
//! conditions, never for a fixed time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/firefox.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use browser::Tab;
use serde_json::{Value, json};
use support::{Server, wait_until};
use visitor::*;

/// A message text with markup, a backslash, several scripts, and an emoji that consists of several code points.
const SPECIAL_TEXT: &str = r#"<b>&amp; "q" \n</b> Grüße, 日本語, שלום, 🦀👩🏽‍💻 é"#;

/// Returns a JavaScript expression for the last inspector row whose text contains all these words.
fn row(words: &[&str]) -> String {
    let rows = "[...document.querySelectorAll('.record')]";
    format!("{rows}.findLast((row) => {}.every((words) => row.textContent.includes(words)))", json!(words))
}

/// Selects the last inspector row with these words, and returns the bits that the detail view shows for a frame
/// field.
fn bits_of_row(tab: &Tab, words: &[&str], field: &str) -> String {
    tab.wait_for(&row(words));
    tab.click(&row(words));
    tab.wait_for(&format!("{}.ariaSelected === 'true'", row(words)));
    let digits = format!("document.querySelectorAll('.segment[data-field=\"{field}\"] .digits')");
    tab.text(&format!("[...{digits}].map((digits) => digits.textContent).join('')"))
}

fn wait_for_messages(tab: &Tab, expected: &Value) {
    wait_until(&format!("the messages are {expected}"), || messages(tab) == *expected);
}

#[test]
fn opened_from_disk_the_page_chats_both_ways() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = guest(&server, "general", "bob");
    wait_for_members(&alice, &["alice you", "bob"]);
    send_as_guest(&mut bob, &alice, SPECIAL_TEXT);
    bob.read_event("message");
    type_message(&alice, SPECIAL_TEXT);
    let received = bob.read_event("message");
    assert_eq!((&received["username"], &received["text"]), (&json!("alice"), &json!(SPECIAL_TEXT)));
    wait_for_messages(&alice, &json!([["bob", SPECIAL_TEXT], ["alice", SPECIAL_TEXT]]));
    assert_eq!(words(&alice).trim(), "Connected as alice.");
    assert_eq!(field(&alice, "Message"), "", "the box is empty again");
    drop(bob);
    wait_for_members(&alice, &["alice you"]);
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_page_rejoins_after_a_restart_and_sends_what_was_written_offline() {
    let browser = browser!();
    let server = Server::start(&[]);
    let port = server.port();
    let alice = join(&browser, port, "alice");
    type_message(&alice, "before");
    wait_for_messages(&alice, &json!([["alice", "before"]]));
    drop(server); // kills the server, so the connection ends without a Close frame
    wait_for_state(&alice, "waiting");
    type_message(&alice, "written offline");
    alice.wait_for("document.querySelector('.unsent .remark')?.textContent === 'Waiting for the connection.'");
    let server = Server::start_at(&format!("127.0.0.1:{port}"), &[]);
    wait_for_state(&alice, "joined");
    wait_for_messages(&alice, &json!([["alice", "before"], ["alice", "written offline"]]));
    alice.wait_for("!document.querySelector('.unsent')");
    let history = guest(&server, "general", "bob").read_event("welcome")["history"].take();
    assert_eq!((&history[0]["text"], &history[1]), (&json!("written offline"), &Value::Null));
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_inspector_shows_the_bits_of_frames() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    alice.press_button("Inspector");
    alice.wait_for(&row(&["earlier frame"]));
    type_message(&alice, "bit by bit");
    assert_eq!(bits_of_row(&alice, &["client", "TEXT", "bit by bit"], "opcode"), "0001");
    let shown = ["FIN", "MASK"].map(|field| bits_of_row(&alice, &["client", "TEXT", "bit by bit"], field));
    assert_eq!(shown, ["1", "1"], "RFC 6455 §5.1: a client masks");
    assert_eq!(bits_of_row(&alice, &["server", "TEXT", "bit by bit"], "MASK"), "0", "a server does not mask");
    alice.press_button("Ask for a PING");
    assert_eq!(bits_of_row(&alice, &["server", "PING"], "opcode"), "1001");
    assert_eq!(bits_of_row(&alice, &["client", "PONG"], "opcode"), "1010");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn served_over_http_the_page_works_within_its_policy() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&format!("http://127.0.0.1:{}/", server.port()));
    assert_eq!(field(&alice, "Server"), ws(server.port()));
    alice.fill("Name", "alice");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    type_message(&alice, SPECIAL_TEXT);
    wait_for_messages(&alice, &json!([["alice", SPECIAL_TEXT]]));
    assert_eq!(browser.page_errors(), [""; 0]);
    // Violate the content security policy on purpose: the browser must enforce it, and `page_errors` must report the
    // violation.
    alice.eval("document.body.setAttribute('style', 'color: red')");
    wait_until("a violation is reported", || {
        alice.eval("__frame().then(() => 0)");
        browser.page_errors().iter().any(|error| error.contains("blocked: style-src"))
    });
}
