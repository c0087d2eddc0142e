//! Helpers for the page's tests: a visitor with a browser, a guest with a raw socket, and a scripted server.
//!
//! Most checks look only at what a person can see: text, fields and focus. The tests wait for conditions, never for a
//! fixed time.
#![allow(dead_code, unused_imports, unused_macros)] // each test binary uses only part of this module

use crate::browser::{Browser, Tab};
use crate::support::{self, RawClient, Server, wait_until};
use serde_json::{Value, json};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use tungstenite::{Message, WebSocket};

pub const LOG: &str = "document.querySelector('[role=log]')";

/// Starts a browser. If Chromium is missing, prints that the test is skipped, and returns from the test.
macro_rules! browser {
    () => {
        match crate::browser::Browser::start() {
            Some(browser) => browser,
            None => return,
        }
    };
}
pub(crate) use browser;

// ---- The visitor ----

/// Returns the URL of the page on disk, with the query string `query`.
pub fn page(query: &str) -> String {
    format!("file://{}/client.html?{query}", env!("CARGO_MANIFEST_DIR").replace(' ', "%20"))
}

pub fn ws(port: u16) -> String {
    format!("ws://127.0.0.1:{port}")
}

/// Opens the page from disk with the server's port and the username, presses Connect, and waits until the user has
/// joined.
pub fn join<'a>(browser: &'a Browser, port: u16, name: &str) -> Tab<'a> {
    join_with(browser, port, name, "")
}

pub fn join_with<'a>(browser: &'a Browser, port: u16, name: &str, script: &str) -> Tab<'a> {
    let tab = browser.open_with(&page(&format!("server={}&username={name}", ws(port))), script);
    tab.press_button("Connect");
    wait_for_state(&tab, "joined");
    tab
}

pub fn wait_for_state(tab: &Tab, state: &str) {
    tab.wait_for(&format!("document.body.dataset.state === '{state}'"));
}

pub fn type_message(tab: &Tab, text: &str) {
    tab.click("__field('Message')");
    tab.type_text(text);
    tab.press_key("Enter", false);
}

/// Uses the form in the sidebar to switch to a room.
pub fn switch_room(tab: &Tab, room: &str) {
    tab.fill("Room name", room);
    tab.press_key("Enter", false);
}

/// Leaves the chat view, and opens the form with the connection settings.
pub fn edit_connection(tab: &Tab) {
    tab.click("document.querySelector('#edit')");
    tab.wait_for("document.body.dataset.view === 'start'");
}

/// Waits until the conversation contains `text`. The user's own messages do not count until the server echoes them.
pub fn wait_for_log(tab: &Tab, text: &str) {
    tab.wait_for(&format!("document.querySelector('#rows').innerText.includes({})", json!(text)));
}

/// Returns the conversation: the username and text of each message, in order.
pub fn messages(tab: &Tab) -> Value {
    tab.eval(
        "[...document.querySelectorAll('.message')]
            .map((m) => ['.name', '.text'].map((part) => m.querySelector(part).textContent))",
    )
}

/// Waits until the list of members equals `expected`.
pub fn wait_for_members(tab: &Tab, expected: &[&str]) {
    let list = "[...document.querySelectorAll('#members li')].map((li) => li.textContent.trim())";
    tab.wait_for(&format!("JSON.stringify({list}) === {}", json!(json!(expected).to_string())));
}

/// Returns the visible status messages, such as the state of the connection.
pub fn words(tab: &Tab) -> String {
    tab.text(
        "[...document.querySelectorAll('[role=status]')]
            .filter((s) => s.checkVisibility()).map((s) => s.innerText).join(' ')",
    )
}

/// Returns the recipient that the page shows next to the message box, or an empty string for a room message.
pub fn recipient(tab: &Tab) -> String {
    let chip = "document.querySelector('#recipient')";
    tab.text(&format!("{chip}.hidden ? '' : {chip}.children[0].innerText"))
}

pub fn field(tab: &Tab, label: &str) -> String {
    tab.text(&format!("__field({}).value", json!(label)))
}

/// Presses Tab until the element `what` has focus, and checks that the focus is visible.
pub fn tab_to(tab: &Tab, what: &str) {
    for _ in 0..20 {
        if tab.eval(&format!("document.activeElement === {what}")) == true {
            assert_ne!(tab.text("getComputedStyle(document.activeElement).outlineStyle"), "none", "{what}");
            return;
        }
        tab.press_key("Tab", false);
    }
    panic!("Tab never reaches {what}");
}

/// A script that makes reconnects fast and predictable: random numbers are always 0.9, and each timer's delay is
/// recorded in `waits` and skipped. Four delays are not skipped: 15 seconds for a `welcome`, 10 seconds for a `pong`,
/// 2 seconds for `typing`, and 250 milliseconds for rendering in a hidden tab.
pub const SKIP_WAITS: &str = "window.waits = []; Math.random = () => 0.9;
    const later = window.setTimeout;
    window.setTimeout = (run, ms) => {
        if ([15000, 10000, 2000, 250].includes(ms)) return later(run, ms);
        window.waits.push(ms);
        return later(run, 0);
    };";

/// A script that disables `setTimeout`, so that no timer of the page ever expires.
pub const DISABLE_TIMERS: &str = "window.setTimeout = () => 0;";

// ---- A guest without a browser ----

/// Starts a server that sends no Pings for five minutes, because guests do not reply to Pings.
pub fn start(args: &[&str]) -> Server {
    Server::start(&[args, &["--ping-interval", "300", "--idle-timeout", "600"]].concat())
}

pub fn start_unlimited(args: &[&str]) -> Server {
    start(&[args, &["--rate-limit", "0"]].concat())
}

pub fn guest(server: &Server, room: &str, name: &str) -> RawClient {
    server.upgrade(&format!("/?token=dev-token&room={room}&username={}", percent_encode(name)))
}

/// Connects a guest, and reads its `welcome`.
pub fn joined_guest(server: &Server, room: &str, name: &str) -> RawClient {
    let mut guest = guest(server, room, name);
    guest.read_event("welcome");
    guest
}

/// Sends a message and waits for its echo, so that messages of several users have a fixed order.
pub fn say(guest: &mut RawClient, text: &str) {
    guest.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
    while guest.read_event("message")["text"] != text {}
}

/// Sends a message as the guest, and waits until the page shows it.
pub fn send_as_guest(guest: &mut RawClient, tab: &Tab, text: &str) {
    guest.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
    wait_for_log(tab, text);
}

/// Checks that no element reaches beyond the left or right edge of the screen, and that neither the page nor the
/// message log scrolls sideways. On a wide screen, the page itself must not scroll vertically either.
pub fn assert_fits(tab: &Tab, what: &str) {
    let outside = tab.eval(
        "[...document.querySelectorAll('body *:not(.unseen, .unseen *)')]
            .map((e) => [e.outerHTML.slice(0, 120), e.getBoundingClientRect()])
            .filter(([, { width, left, right }]) => width > 0 && (left < -0.5 || right > innerWidth + 0.5))",
    );
    assert_eq!(outside, json!([]), "{what}");
    if tab.eval("innerWidth > 720") == true {
        assert_eq!(
            tab.eval("document.documentElement.scrollHeight - innerHeight"),
            0,
            "{what}: the page itself scrolls"
        );
    }
    for element in ["document.documentElement", LOG] {
        assert_eq!(tab.eval(&format!("{element}.scrollWidth - {element}.clientWidth")), 0, "{what}: {element}");
    }
}

/// Returns the axe-core script, or `None` on a machine without axe-core (see [`require_tool`](support::require_tool)).
pub fn axe() -> Option<String> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/npm/node_modules/axe-core/axe.min.js");
    let path = support::require_tool("axe.min.js", &[installed])?;
    Some(std::fs::read_to_string(path).unwrap())
}

/// Checks all rules that axe-core enables by default, including its best practices.
pub fn assert_accessible(tab: &Tab, axe: &str, what: &str) {
    tab.eval(&format!("{axe}; 0"));
    let violations = tab.eval(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations
            .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`)))",
    );
    assert_eq!(violations, json!([]), "{what}");
}

pub fn percent_encode(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

// ---- A scripted server ----

/// Accepts the next connection that requests an upgrade. Closes other connections, such as requests for `/health`,
/// without a response.
pub fn accept(listener: &TcpListener) -> WebSocket<TcpStream> {
    loop {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        if let Ok(socket) = tungstenite::accept(stream) {
            return socket;
        }
    }
}

pub fn welcome(peer: &mut WebSocket<TcpStream>, room: &str) {
    let message = format!("Welcome to #{room}, alice!");
    let data = json!({"message": message, "members": ["bob"], "room": room, "username": "alice"});
    peer.send(Message::text(json!({"event": "welcome", "data": data}).to_string())).unwrap();
}

pub fn send_message(peer: &mut WebSocket<TcpStream>, text: &str) {
    let data = json!({"username": "bob", "text": text, "id": 1, "time": "2026-01-01T00:00:00.000Z"});
    peer.send(Message::text(json!({"event": "message", "data": data}).to_string())).unwrap();
}
