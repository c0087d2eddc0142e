//! Tests the chat page with `--deflate`: Chromium offers permessage-deflate by default, and the server accepts. Both
//! peers compress the messages that they send.

#![cfg(feature = "deflate")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use support::Server;
use support::users::events_path;
use visitor::*;

#[test]
fn visitors_talk_through_compressed_messages() {
    let browser = browser!();
    let server = Server::start(&["--deflate", "--trace", "--rate-limit", "0"]);
    let join = |name: &str| {
        let tab = browser.open(&format!("http://127.0.0.1:{}/?username={name}", server.port()));
        tab.press_button("Connect");
        wait_for_state(&tab, "joined");
        tab
    };
    let (alice, bob) = (join("alice"), join("bob"));
    for number in 0..10 {
        let text = format!("a compressed message of some length, number {number}");
        type_message(if number % 2 == 0 { &alice } else { &bob }, &text);
        wait_for_log(&alice, &text);
        wait_for_log(&bob, &text);
        // A guest joins and leaves, so that the server sends other events between the messages.
        let mut guest = server.upgrade(&events_path(&format!("guest {number}"), "general"));
        guest.read_event("welcome");
    }
    let log = server.log();
    let count = |sign: char| log.lines().filter(|line| line.contains(sign) && line.contains(" rsv1 ")).count();
    assert!(count('→') >= 10, "Chromium compresses: {log}");
    assert!(count('←') >= 20, "the server compresses: {log}");
    assert_eq!(browser.page_errors(), Vec::<String>::new());
}

/// The inspector shows the inflated text of a compressed message, even if earlier messages were sent before the
/// inspector opened.
#[test]
fn the_inspector_inflates() {
    let browser = browser!();
    let server = Server::start(&["--deflate"]);
    let tab = browser.open(&format!("http://127.0.0.1:{}/?username=alice", server.port()));
    tab.press_button("Connect");
    wait_for_state(&tab, "joined");
    let mut bob = server.upgrade(&events_path("bob", "general"));
    bob.send_text(r#"{"event":"message","data":{"text":"a message before the inspector"}}"#);
    wait_for_log(&tab, "a message before the inspector");
    tab.press_button("Inspector");
    tab.wait_for("[...document.querySelectorAll('.record')].some((row) => row.textContent.includes('earlier frame'))");
    bob.send_text(r#"{"event":"message","data":{"text":"a message after the inspector"}}"#);
    let row =
        "[...document.querySelectorAll('.record')].findLast((row) => row.textContent.includes('a message after'))";
    tab.wait_for(row);
    tab.click(row);
    tab.wait_for("document.querySelector('#inspector-detail').innerText.includes(' inflate to ')");
    let detail = tab.text("document.querySelector('#inspector-detail').innerText");
    assert!(detail.contains("compressed with") && detail.contains("a message after the inspector"), "{detail}");
    // A binary message inflates to bytes, not to text.
    tab.eval("__field('Test case').value = 'deflate-binary'");
    tab.press_button("Play");
    let row = "[...document.querySelectorAll('.record')].find((row) => row.textContent.includes('00 ff 80'))";
    tab.wait_for(row);
    tab.click(row);
    tab.wait_for("document.querySelector('#inspector-detail').innerText.includes('5 bytes inflate to 3 bytes')");
    let parts = "[...document.querySelectorAll('#inspector-detail .part')]";
    let inflated = tab.text(&format!("{parts}.find((part) => part.innerText.startsWith('Inflated')).innerText"));
    assert!(inflated.contains("Payload: 3 bytes") && inflated.contains("00 ff 80"), "{inflated}");
    assert!(!inflated.contains('\u{fffd}'), "{inflated}");
    assert_eq!(browser.page_errors(), Vec::<String>::new());
}
