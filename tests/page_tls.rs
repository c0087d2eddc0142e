//! Tests the chat page over TLS: Chromium loads the page from `https://`, and the page connects to `wss://` on the same
//! host.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use support::Server;
use support::certificate::{Certificate, EC};
use visitor::*;

#[test]
fn two_visitors_talk_over_tls() {
    let browser = browser!();
    let Some(certificate) = Certificate::new("page", EC) else { return };
    let server = Server::start(&certificate.options());
    let join = |name: &str| {
        let tab = browser.open(&format!("https://127.0.0.1:{}/?username={name}", server.port()));
        tab.press_button("Connect");
        wait_for_state(&tab, "joined");
        assert_eq!(tab.text("location.protocol"), "https:");
        tab
    };
    let (alice, bob) = (join("alice"), join("bob"));
    type_message(&alice, "over TLS");
    wait_for_log(&bob, "over TLS");
    assert_eq!(browser.page_errors(), Vec::<String>::new());
}
