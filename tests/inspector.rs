//! Tests the web page's inspector, which shows the traffic of the page's own connection. A hook in the page records
//! every message that the page sends, and the tests compare the displayed bytes with these messages.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::result_large_err)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use base64::prelude::{BASE64_STANDARD, Engine};
use browser::{Browser, Tab};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use support::{Server, wait_until};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::{Message, WebSocket};
use visitor::*;

/// A script that records the page's WebSockets, and the texts that the page sends over each WebSocket. The chat's
/// WebSocket is the first, the inspector's the second.
const WATCH_SOCKETS: &str = "window.sockets = [];
    window.WebSocket = class extends WebSocket {
        sent = [];
        constructor(url, protocols) {
            super(url, protocols);
            sockets.push(this);
        }
        send(text) {
            this.sent.push(text);
            super.send(text);
        }
    };";

const ROWS: &str = "[...document.querySelectorAll('.record')].filter((row) => !row.hidden)";
const DETAIL: &str = "document.querySelector('#inspector-detail')";

/// Joins the chat, opens the inspector and waits for its first records.
fn inspect<'a>(browser: &'a Browser, server: &Server) -> Tab<'a> {
    let tab = join_with(browser, server.port(), "alice", WATCH_SOCKETS);
    tab.press_button("Inspector");
    wait_for_row(&tab, &["OPEN"]);
    wait_for_row(&tab, &["earlier frame"]);
    tab
}

/// Makes the sidebar visible. If the window has no room for the sidebar next to the inspector, the page shows a Menu
/// button that opens the sidebar.
fn show_sidebar(tab: &Tab) {
    if tab.eval("__button('Menu').checkVisibility()") == true {
        tab.press_button("Menu");
    }
}

/// Returns the text of each visible row in the list of records.
fn rows(tab: &Tab) -> Vec<String> {
    serde_json::from_value(tab.eval(&format!("{ROWS}.map((row) => row.textContent)"))).unwrap()
}

/// Returns a JavaScript expression for the last visible row that contains all `words`.
fn row(words: &[&str]) -> String {
    format!("{ROWS}.findLast((row) => {}.every((words) => row.textContent.includes(words)))", json!(words))
}

fn wait_for_row(tab: &Tab, words: &[&str]) {
    tab.wait_for(&row(words));
}

fn select_row(tab: &Tab, words: &[&str]) {
    wait_for_row(tab, words);
    tab.click(&row(words));
    tab.wait_for(&format!("{}.ariaSelected === 'true'", row(words)));
}

/// Returns the bits that the page's header diagram shows for one field of the selected frame.
fn bits(tab: &Tab, field: &str) -> String {
    tab.text(&format!(
        "[...document.querySelectorAll('.segment[data-field=\"{field}\"] .digits')].map((d) => d.textContent).join('')"
    ))
}

/// Returns the bytes that the page shows in hexadecimal for one part of the selected frame.
fn bytes(tab: &Tab, part: &str) -> Vec<u8> {
    unhex(&tab.text(&format!("document.querySelector('.group[data-part={part}] code')?.textContent ?? ''")))
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn binary(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:08b}")).collect()
}

fn detail(tab: &Tab) -> String {
    tab.text(&format!("{DETAIL}.innerText"))
}

fn wait_for_status(tab: &Tab, words: &str) {
    tab.wait_for(&format!("document.querySelector('#inspector-status').textContent.includes({})", json!(words)));
}

/// Creates an empty directory in cargo's directory for temporary files.
fn empty_dir(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    dir
}

/// Returns the last text that the page sent over the chat's WebSocket.
fn sent(tab: &Tab) -> String {
    tab.text("sockets[0].sent.at(-1)")
}

// ---- Opening the inspector ----

#[test]
fn nothing_runs_before_the_inspector_is_opened() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    type_message(&alice, "not inspected");
    wait_for_log(&alice, "not inspected");
    assert_eq!(alice.eval("document.querySelector('#inspector').checkVisibility()"), false);
    assert_eq!(alice.eval("sockets.length"), 1);
    for _ in 0..2 {
        alice.press_button("Inspector");
        wait_for_row(&alice, &["OPEN"]);
        assert_eq!(alice.text("__button('Inspector').ariaExpanded"), "true");
        alice.wait_for("document.activeElement.role === 'listbox'");
        alice.press_button("Close");
        alice.wait_for("document.activeElement === __button('Inspector')");
        assert_eq!(alice.text("__button('Inspector').ariaExpanded"), "false");
    }
    assert_eq!(alice.eval("sockets.length"), 2, "the second opening uses the first inspector's WebSocket");
    assert_eq!(alice.text("sockets[1].protocol"), "inspect");
    alice.press_button("Leave");
    wait_for_state(&alice, "idle");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    assert_eq!(alice.eval("sockets.length"), 3, "a closed inspector opens no WebSocket");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn without_a_ticket_the_page_explains_why() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = page(&format!("server={}", ws(listener.local_addr().unwrap().port())));
    let alice = browser.open_with(&url, WATCH_SOCKETS);
    alice.press_button("Inspector");
    wait_for_status(&alice, "Not connected.");
    alice.press_button("Connect");
    let mut peer = accept(&listener);
    welcome(&mut peer, "general");
    wait_for_status(&alice, "--inspect");
    assert_eq!(
        alice.eval("[__button('Send an emoji').disabled, __button('Ask for a PING').disabled]"),
        json!([false, true])
    );
    assert_eq!(alice.eval("sockets.length"), 1);
}

#[test]
fn a_rejected_ticket_is_explained() {
    let browser = browser!();
    let server = Server::start(&[]);
    let replace_ticket = "window.WebSocket = class extends WebSocket {
        constructor(url, protocols) { super(String(url).replace(/ticket=.*/, 'ticket=spoilt'), protocols); }
    };";
    let alice = join_with(&browser, server.port(), "alice", replace_ticket);
    alice.press_button("Inspector");
    wait_for_status(&alice, "rejected the Inspector’s connection");
    type_message(&alice, "the chat goes on");
    wait_for_log(&alice, "the chat goes on");
}

#[test]
fn the_next_connection_is_shown_below_a_line_and_the_last_is_ignored() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    show_sidebar(&alice);
    alice.press_button("Leave");
    wait_for_row(&alice, &["client", "CLOSE", "1000"]);
    wait_for_row(&alice, &["TCP closed", "The client sent the first Close", "closed cleanly: both Closes passed"]);
    wait_for_status(&alice, "is closed");
    alice.press_button("Connect");
    alice.wait_for("sockets.length === 4");
    alice.wait_for(&format!("{ROWS}.filter((row) => row.textContent.includes('Request')).length === 2"));
    wait_until("the list goes on", || rows(&alice).last().unwrap().contains("earlier frame"));
    let before = rows(&alice);
    assert_eq!(before.iter().filter(|row| row.starts_with("Connection ")).count(), 2, "{before:?}");
    alice.eval(r#"sockets[1].onmessage({ data: '{"record":"missed","count":99}' })"#);
    alice.eval("sockets[1].onclose({ code: 1000, reason: '' })");
    alice.press_button("Ask for a PING");
    wait_for_row(&alice, &["client", "PONG"]);
    assert!(!rows(&alice).iter().any(|row| row.contains("99 frames")), "a record of an old socket was shown");
}

// ---- Handshake and frames ----

#[test]
fn the_handshake_comes_first_with_the_steps_to_its_accept_value() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let first: Vec<_> = rows(&alice).into_iter().take(4).collect();
    for (row, words) in first.iter().zip(["Connection ", "Request", "Response", "OPEN"]) {
        assert!(row.contains(words), "{first:?}");
    }
    select_row(&alice, &["Request"]);
    let head = alice.text(&format!("{DETAIL}.querySelector('.head').textContent"));
    assert!(head.starts_with("GET /?"), "{head}");
    assert!(head.ends_with("CRLFCRLF"), "the line ends are visible: {head}");
    assert!(!head.contains("dev-token"), "tokens are redacted: {head}");
    let key = head.split_once("Sec-WebSocket-Key: ").unwrap().1.split_once("CRLF").unwrap().0.to_owned();
    select_row(&alice, &["Response"]);
    let joined = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let sha1 = Sha1::digest(joined.as_bytes());
    let accept = BASE64_STANDARD.encode(sha1);
    let steps = alice.eval("[...document.querySelectorAll('.accept-steps code')].map((step) => step.textContent)");
    assert_eq!(steps[0], key);
    assert_eq!(steps[1], joined);
    assert_eq!(unhex(steps[2].as_str().unwrap()), sha1.as_slice());
    assert_eq!([&steps[3], &steps[4]], [&accept, &accept]);
    assert!(detail(&alice).contains(&format!("Sec-WebSocket-Accept: {accept}")));
}

/// The inspector counts the frames from before it opened but does not show them. Later frames continue the numbering.
#[test]
fn earlier_frames_are_counted_and_the_numbers_go_on_after_them() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    for text in ["one", "two"] {
        type_message(&alice, text);
        wait_for_log(&alice, text);
    }
    alice.press_button("Inspector");
    wait_for_row(&alice, &["earlier frames are not shown"]);
    type_message(&alice, "three");
    wait_for_row(&alice, &["client", "three"]);
    wait_for_row(&alice, &["server", "three"]);
    let rows = rows(&alice);
    let earlier =
        rows.iter().find_map(|row| row.split_once("Frames not shown")?.1.split_once(" earlier")).expect("the count");
    let earlier: u64 = earlier.0.parse().expect("a number");
    let first_number = |side: &str| -> u64 {
        let row =
            rows.iter().find_map(|row| row.split_once(&format!("{side} "))?.1.split_once("TEXT")).expect("a frame");
        row.0.parse().expect("a number")
    };
    assert_eq!((first_number("↑ client") - 1) + (first_number("↓ server") - 1), earlier, "{rows:?}");
}

/// The inspector shows the same time for a frame as the server's trace: in UTC, with a `Z` at the end.
#[test]
fn times_are_in_utc() {
    let browser = browser!();
    let server = Server::start(&["--trace"]);
    let alice = inspect(&browser, &server);
    type_message(&alice, "when");
    wait_for_row(&alice, &["client", "when"]);
    let time = alice.text(&format!("{}.querySelector('time').textContent", row(&["client", "when"])));
    assert!(server.log().lines().any(|line| line.contains("when") && line.contains(&format!("T{time}  #1"))), "{time}");
    select_row(&alice, &["client", "when"]);
    let whole = alice.text(&format!("{DETAIL}.querySelector('time').textContent"));
    assert!(whole.ends_with(&format!("T{time}")) && whole.len() == "2026-11-22T12:00:01.204Z".len(), "{whole}");
}

#[test]
fn a_frame_is_shown_bit_by_bit_as_it_was_on_the_wire() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    type_message(&alice, "Hello");
    select_row(&alice, &["client", "TEXT", "Hello"]);
    let sent = sent(&alice);
    let [flags, length, key, masked] = ["flags", "length", "key", "payload"].map(|part| bytes(&alice, part));
    assert_eq!(flags, [0x81]);
    assert_eq!(length, [0x80 | sent.len() as u8]);
    let unmasked: Vec<u8> = masked.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    assert_eq!(String::from_utf8(unmasked).unwrap(), sent);
    assert_eq!(["FIN", "RSV1", "RSV2", "RSV3", "opcode"].map(|field| bits(&alice, field)).concat(), binary(&flags));
    assert_eq!(["MASK", "Payload len"].map(|field| bits(&alice, field)).concat(), binary(&length));
    assert_eq!(bits(&alice, "Masking-key"), binary(&key));
    assert_eq!(bits(&alice, "Payload Data"), binary(&masked[..2]));
    assert_eq!(alice.text(&format!("{DETAIL}.querySelector('.payload-text').textContent")), sent);
    assert_each_byte_can_be_unmasked(&alice, &masked, &key, &sent);
    let links = alice.eval(&format!("[...{DETAIL}.querySelectorAll('a')].map((a) => [a.textContent, a.href, a.rel])"));
    for link in links.as_array().unwrap() {
        let section = link[0].as_str().unwrap().trim_start_matches('§');
        assert_eq!(link[1], format!("https://www.rfc-editor.org/rfc/rfc6455#section-{section}"));
        assert_eq!(link[2], "noopener noreferrer");
    }
    assert!(detail(&alice).contains(&format!(": {} bytes of this frame", 6 + sent.len())), "{}", detail(&alice));
}

/// Checks that the page shows the unmasking of one byte: the byte under the mouse, or the byte that the user selects
/// with the keyboard.
fn assert_each_byte_can_be_unmasked(tab: &Tab, masked: &[u8], key: &[u8], text: &str) {
    let sum = || tab.text("document.querySelector('.equation').textContent");
    let expected = |i: usize| {
        let (byte, key, result) = (masked[i], key[i % 4], text.as_bytes()[i]);
        format!("{byte:02x} ^ {key:02x} = {result:02x} '{}'", result as char)
    };
    tab.hover("document.querySelectorAll('.byte')[9]");
    wait_until("the byte under the mouse is unmasked", || sum() == expected(9));
    tab.click("document.querySelectorAll('.byte')[2]");
    tab.press_key("ArrowRight", false);
    wait_until("the next byte is unmasked", || sum() == expected(3));
    tab.press_key("End", false);
    wait_until("the last byte is unmasked", || sum() == expected(text.len() - 1));
    assert_eq!(tab.eval("document.querySelectorAll('.byte[tabindex=\"0\"]').length"), 1, "one tab stop");
}

#[test]
fn extended_payload_lengths_are_shown() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    for (button, short, size) in [("Send 300 bytes", 126, 300_usize), ("Send 65,536 bytes", 127, 65_536)] {
        alice.press_button(button);
        let grouped = if size > 999 { "65,536 B" } else { "300 B" };
        select_row(&alice, &["client", "TEXT", grouped]);
        assert_eq!(sent(&alice).len(), size);
        let extended = &size.to_be_bytes()[if size > 65_535 { 0 } else { 6 }..];
        assert_eq!(bytes(&alice, "length"), [0x80 | short]);
        assert_eq!(bytes(&alice, "extended"), extended);
        assert_eq!(bits(&alice, "Extended payload length"), binary(extended));
        assert_eq!(bytes(&alice, "payload").len(), size.min(1024));
    }
    assert!(detail(&alice).contains("1,024 of 65,536 bytes shown"));
    wait_for_log(&alice, "65,536 bytes");
}

#[test]
fn an_emoji_is_split_into_its_utf8_bytes() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Send an emoji");
    select_row(&alice, &["client", "TEXT", "🍌"]);
    let shown = alice.eval(
        "[...document.querySelectorAll('.characters li')].map((li) => ['.point', 'code', '.binary']
            .map((part) => li.querySelector(part).textContent))",
    );
    assert_eq!(shown[0], json!(["U+1F34C", "f0 9f 8d 8c", binary("🍌".as_bytes())]));
    let points: Vec<_> = shown.as_array().unwrap().iter().map(|character| &character[0]).collect();
    assert_eq!(points, ["U+1F34C", "U+1F469", "U+200D", "U+1F680"]);
    wait_for_log(&alice, "👩‍🚀");
}

#[test]
fn the_fragments_of_a_message_are_linked() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Ask for fragments");
    wait_for_status(&alice, "in fragments. Send a message to see the fragments.");
    // The server executes an inspector's commands in order. Once the Ping requested below arrives, the server has also
    // executed the earlier command to fragment its next message.
    alice.press_button("Ask for a PING");
    wait_for_row(&alice, &["server", "PING"]);
    type_message(&alice, "bit by bit");
    wait_for_log(&alice, "bit by bit");
    select_row(&alice, &["server", "TEXT ·1"]);
    assert_eq!(bits(&alice, "FIN"), "0");
    wait_for_status(&alice, "as the server sees it");
    alice.wait_for("document.querySelector('.chain')?.textContent.includes('FIN')");
    let links = alice.eval("document.querySelectorAll('.chain button').length").as_u64().unwrap();
    assert!(links > 1, "{links} fragments");
    let mut message = Vec::new();
    for at in 0..links {
        alice.click(&format!("document.querySelectorAll('.chain button')[{at}]"));
        alice.wait_for(&format!("document.querySelectorAll('.chain button')[{at}].ariaCurrent === 'true'"));
        assert_eq!(bits(&alice, "FIN"), if at + 1 == links { "1" } else { "0" });
        assert_eq!(bits(&alice, "opcode"), if at == 0 { "0001" } else { "0000" });
        message.extend(bytes(&alice, "payload"));
    }
    let message: Value = serde_json::from_slice(&message).expect("the fragments are the message");
    assert_eq!(message["data"]["text"], "bit by bit");
}

#[test]
fn a_ping_and_its_pong_are_frames_too() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Ask for a PING");
    select_row(&alice, &["server", "PING"]);
    assert_eq!(bytes(&alice, "flags"), [0x89]);
    let asked = bytes(&alice, "payload");
    select_row(&alice, &["client", "PONG"]);
    assert_eq!(bytes(&alice, "flags"), [0x8a]);
    let pong = alice.text("[...document.querySelectorAll('.byte .result')].map((b) => b.textContent).join(' ')");
    assert_eq!(unhex(&pong), asked);
    assert!(detail(&alice).contains("§5.5.3"));
}

// ---- The inspector's list of records: pausing, filtering, searching and maximum length ----

#[test]
fn the_list_can_be_paused_filtered_and_searched() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Pause");
    type_message(&alice, "while paused");
    wait_for_log(&alice, "while paused");
    alice.wait_for("__button('Resume (3 new)')"); // the commands `typing` and `message`, and the event `message`
    assert!(!rows(&alice).iter().any(|row| row.contains("TEXT")));
    alice.press_button("Resume (3 new)");
    alice.press_button("Ask for a PING");
    wait_for_row(&alice, &["PONG"]);
    let show = |which: &str| {
        let filter = "__field('Filter')";
        alice.eval(&format!("{filter}.value = '{which}', {filter}.dispatchEvent(new Event('change'))"));
        rows(&alice)
    };
    let all_hold = |rows: Vec<String>, words: &str| !rows.is_empty() && rows.iter().all(|row| row.contains(words));
    assert!(all_hold(show("data"), "TEXT"));
    assert!(all_hold(show("control"), "FIN") && !rows(&alice).iter().any(|row| row.contains("TEXT")));
    assert!(all_hold(show("client"), "↑ client"));
    assert!(all_hold(show("server"), "↓ server"));
    assert!(show("trouble").is_empty());
    show("all");
    alice.fill("Search", "WHILE paused");
    wait_until("only the search results are shown", || rows(&alice).len() == 2);
    alice.press_key("Escape", false);
    wait_until("the search has ended, and the inspector is still open", || rows(&alice).len() > 2);
}

#[test]
fn missed_records_are_counted_and_the_list_keeps_the_last_500_and_the_handshake() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let inject =
        "window.inject = (record) => sockets[1].onmessage({ data: JSON.stringify({ connection: 1, ...record }) });";
    alice.eval(&format!("{inject} inject({{ record: 'missed', count: 37 }})"));
    select_row(&alice, &["37 frames are not shown"]);
    assert!(detail(&alice).contains("The chat itself is not affected."));
    alice.eval(
        "for (let number = 1; number <= 1200; number += 1)
            inject({ record: 'frame', from: 'server', number, header: '8900', fin: true, rsv: 0, opcode: 9, name: 'PING',
                masked: false, key: null, length_bits: 7, length: 0, wire: '', payload: '', received: 0,
                complete: true, place: null, parts: { count: 1, listed: [[number, 2]] } });",
    );
    wait_for_row(&alice, &["server 1200", "PING"]);
    let rows = rows(&alice);
    assert!(rows.len() < 510, "{}", rows.len());
    assert!(rows[1].contains("Request") && rows[2].contains("Response"), "{:?}", &rows[..4]);
    assert!(rows[3].contains("The list keeps only the last 500."), "{:?}", &rows[..4]);
    type_message(&alice, "the chat goes on");
    wait_for_log(&alice, "the chat goes on");
}

// ---- Message excerpts in the list of records, notes on the handshake, and the frame diagram ----

#[test]
fn excerpts_are_readable_and_rows_are_colored_by_direction() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let mut bob = guest(&server, "general", "bob");
    wait_for_row(&alice, &["server", "bob joined"]);
    send_as_guest(&mut bob, &alice, "Hi, alice");
    wait_for_row(&alice, &["server", "message \"Hi, alice\" from bob"]);
    type_message(&alice, "Hello");
    wait_for_row(&alice, &["↑ client", "typing"]);
    wait_for_row(&alice, &["↑ client", "message \"Hello\""]);
    type_message(&alice, "/msg bob psst");
    wait_for_row(&alice, &["↑ client", "private message \"psst\" to bob"]);
    wait_for_row(&alice, &["↓ server", "private message \"psst\" from alice to bob"]);
    drop(bob);
    wait_for_row(&alice, &["server", "bob left"]);
    alice.press_button("Menu");
    switch_room(&alice, "annex");
    wait_for_row(&alice, &["↑ client", "switch to #annex"]);
    wait_for_row(&alice, &["↓ server", "switched to #annex"]);
    assert!(!rows(&alice).iter().any(|row| row.contains('{')), "the list shows no raw JSON: {:?}", rows(&alice));
    let color = |words: &[&str]| alice.text(&format!("getComputedStyle({}).backgroundColor", row(words)));
    let [client, server, state] = [&["↑ client", "\"Hello\""][..], &["↓ server", "\"Hello\""], &["OPEN"]].map(color);
    assert!(client != server && client != state && server != state, "{client} {server} {state}");
    select_row(&alice, &["↑ client", "\"Hello\""]);
    assert!(alice.text(&format!("{DETAIL}.querySelector('.payload-text').textContent")).starts_with("{\"event\""));
}

#[test]
fn each_line_of_the_handshake_is_explained() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    select_row(&alice, &["Request"]);
    let lines =
        "[...document.querySelectorAll('.lines > div')].map((line) => [...line.children].map((e) => e.textContent))";
    let explained = alice.eval(lines);
    let head = alice.text(&format!("{DETAIL}.querySelector('.head').innerText"));
    assert_eq!(explained.as_array().unwrap().len(), head.matches("\nCR").count().max(head.matches("CRLF").count()) - 1);
    let find = |lines: &Value, name: &str| -> String {
        let line = lines.as_array().unwrap().iter().find(|line| line[0] == name);
        line.unwrap_or_else(|| panic!("{name}: {lines}"))[1].as_str().unwrap().to_owned()
    };
    let declined = "permessage-deflate was offered and declined, which is why RSV1 stays 0. §9.1";
    assert!(find(&explained, "Sec-WebSocket-Extensions").starts_with(declined));
    assert!(find(&explained, "Sec-WebSocket-Key").contains("16 random bytes"));
    assert!(explained.as_array().unwrap().iter().all(|line| line[1].as_str().unwrap().contains('§')), "{explained}");
    select_row(&alice, &["Response"]);
    let explained = alice.eval(lines);
    assert!(find(&explained, "No Sec-WebSocket-Extensions").starts_with(declined));
    assert!(find(&explained, "Sec-WebSocket-Accept").contains("§4.2.2"));
}

/// Returns three lists with the names of the highlighted items: those in the figure, those in the list of fields, and
/// those in the bytes.
fn highlighted_parts(tab: &Tab) -> Value {
    tab.eval(
        "[['.segment', (e) => e.dataset.field], ['.words > div', (e) => e.querySelector('b, .term').textContent],
            ['.group', (e) => e.dataset.part]].map(([parts, name]) =>
                [...new Set([...document.querySelectorAll(parts)].filter((e) => 'lit' in e.dataset).map(name))])",
    )
}

#[test]
fn a_field_is_highlighted_in_the_figure_the_list_and_the_bytes_at_once() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.set_screen(1440, 1000, "light");
    type_message(&alice, "Hello");
    select_row(&alice, &["client", "message \"Hello\""]);
    let expect = |what: &str, expected: Value| wait_until(what, || highlighted_parts(&alice) == expected);
    let segment = |name: &str| format!("document.querySelector('.segment[data-field=\"{name}\"]')");
    let term = |name: &str| format!("__named('.term', '{name}')");
    let bytes = |part: &str| format!("document.querySelector('.group[data-part={part}] code')");
    let fin = json!([["FIN"], ["FIN"], ["flags"]]);
    let first = json!([["FIN", "RSV1", "RSV2", "RSV3", "opcode"], ["FIN", "RSV1–3", "opcode"], ["flags"]]);
    let key = json!([["Masking-key"], ["Masking-key"], ["key"]]);
    // The page shows each field in the header diagram, in the list of fields and in the frame's bytes. If the mouse
    // hovers over one of the three, the page highlights all three.
    alice.hover(&segment("FIN"));
    expect("FIN is highlighted", fin.clone());
    alice.hover(&term("Masking-key"));
    expect("the masking key is highlighted", key.clone());
    alice.hover(&bytes("flags"));
    expect("the fields of the first byte are highlighted", first.clone());
    alice.hover(&segment("Payload Data"));
    expect("the payload is highlighted", json!([["Payload Data"], ["Payload Data"], ["payload"]]));
    alice.screenshot("inspector-linked");
    alice.hover("document.querySelector('#inspector h2')");
    expect("nothing is highlighted", json!([[], [], []]));
    // Highlight fields with the keyboard. The figure and the list of fields each have a single tab stop.
    alice.eval(&format!("{DETAIL}.focus()"));
    tab_to(&alice, &segment("FIN"));
    expect("FIN is highlighted", fin.clone());
    alice.press_key("ArrowRight", false);
    expect("the reserved bits are highlighted", json!([["RSV1", "RSV2", "RSV3"], ["RSV1–3"], ["flags"]]));
    assert_eq!(alice.text("document.activeElement.ariaSelected"), "true");
    alice.press_key("Home", false);
    tab_to(&alice, &term("FIN"));
    alice.press_key("End", false);
    alice.press_key("ArrowUp", false);
    expect("the masking key is highlighted", key.clone());
    alice.press_key("Enter", false);
    alice.wait_for(&format!("document.activeElement === {}", segment("Masking-key")));
    alice.eval(&format!("{}.focus()", bytes("flags")));
    expect("the fields of the first byte are highlighted", first);
    for axe in axe().iter() {
        assert_accessible(&alice, axe, "linked fields");
    }
}

// ---- Messages and frames ----

#[test]
fn a_message_and_its_frame_lead_to_each_other() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    let mut bob = guest(&server, "general", "bob");
    type_message(&alice, "too early");
    wait_for_log(&alice, "too early");
    assert_eq!(alice.eval("document.querySelector('.show-frame').checkVisibility()"), false, "nothing to show yet");
    alice.press_button("Inspector");
    wait_for_row(&alice, &["earlier frame"]);
    send_as_guest(&mut bob, &alice, "from bob");
    type_message(&alice, "from alice");
    wait_for_row(&alice, &["server", "from alice"]);
    let message =
        |text: &str| format!("[...document.querySelectorAll('.message')].find((m) => m.innerText.includes('{text}'))");
    let show_frame = |text: &str| format!("{}.querySelector('.show-frame')", message(text));
    // “Show its frame” on a message opens the inspector, if it is closed, and selects the message's frame.
    alice.press_button("Close");
    alice.click(&show_frame("from bob"));
    alice.wait_for(&format!("{}.ariaSelected === 'true'", row(&["server", "from bob"])));
    alice.wait_for(&format!("document.activeElement === {DETAIL}"));
    // “Show its frame” on alice's own message selects the frame that she sent, and clears the filter if it hides that
    // frame.
    alice.eval("__field('Filter').value = 'control', __field('Filter').dispatchEvent(new Event('change'))");
    alice.eval(&format!("{}.focus()", show_frame("from alice")));
    assert_eq!(alice.text("getComputedStyle(document.activeElement).opacity"), "1");
    alice.press_key("Enter", false);
    alice.wait_for(&format!("{}.ariaSelected === 'true'", row(&["client", "from alice"])));
    // The “Show its message” button moves the focus from a frame to its message.
    alice.press_button("Show its message");
    alice.wait_for(&format!("document.activeElement === {}", message("from alice")));
    alice.wait_for(&format!("{}.classList.contains('shown-message')", message("from alice")));
    alice.wait_for("!document.querySelector('.shown-message')");
    // The page explains why a message has no frame in the list, and why a frame has no message on the page.
    alice.click(&show_frame("too early"));
    alice.wait_for(&format!("{DETAIL}.innerText.includes('was sent before the Inspector opened')"));
    alice.eval(&format!("{}.remove()", message("from bob")));
    select_row(&alice, &["server", "from bob"]);
    assert_eq!(alice.eval("__button('Show its message').disabled"), true);
    assert!(detail(&alice).contains("This message is not on the page"));
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn on_a_phone_a_frame_leads_to_its_message() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    type_message(&alice, "from alice");
    select_row(&alice, &["client", "from alice"]);
    alice.set_screen(390, 844, "light");
    alice.press_button("Show its message");
    alice.wait_for("document.activeElement.classList.contains('shown-message')");
    assert_eq!(alice.eval("document.querySelector('#inspector').checkVisibility()"), false);
    alice.click("document.querySelector('.show-frame')");
    alice.wait_for(&format!("document.activeElement === {DETAIL}"));
}

// ---- Pairs of frames, and close codes ----

#[test]
fn a_ping_and_its_pong_are_linked_and_so_are_both_closes() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let expect_pair = |words: &[&str], other: &[&str]| {
        select_row(&alice, words);
        alice.wait_for(&format!("/Round trip: (less than 1|[0-9,]+) ms\\./.test({DETAIL}.innerText)"));
        alice.click("document.querySelector('.pair .jump')");
        alice.wait_for(&format!("{}.ariaSelected === 'true'", row(other)));
    };
    alice.press_button("Ask for a PING");
    wait_for_row(&alice, &["client", "PONG"]);
    expect_pair(&["server", "PING"], &["client", "PONG"]);
    expect_pair(&["client", "PONG"], &["server", "PING"]);
    // The PONG for the first PING takes 12 ms. The PONG for the second PING takes 7 ms, and arrives first. The page
    // must match each PONG to its PING by the payload.
    alice.eval(
        "const ping = (from, number, name, hex, ms) => sockets[1].onmessage({ data: JSON.stringify({ record: 'frame',
            connection: 1, from, number, header: '8901', fin: true, rsv: 0, opcode: name === 'PING' ? 9 : 10, name,
            masked: false, key: null, length_bits: 7, length: 1, wire: hex, payload: hex, received: 1, complete: true,
            time: `2026-11-22T12:00:01.${ms}Z`, place: null, parts: { count: 1, listed: [[number, 3]] } }) });
        ping('server', 901, 'PING', '61', 100), ping('server', 902, 'PING', '62', 101);
        ping('client', 903, 'PONG', '62', 108), ping('client', 904, 'PONG', '61', 112);",
    );
    for (ping, pong, ms) in [("server 901", "client 904", "12 ms"), ("server 902", "client 903", "7 ms")] {
        select_row(&alice, &[ping]);
        assert!(detail(&alice).contains(&format!("Round trip: {ms}.")), "{}", detail(&alice));
        alice.click("document.querySelector('.pair .jump')");
        alice.wait_for(&format!("{}.ariaSelected === 'true'", row(&[pong])));
    }
    show_sidebar(&alice);
    alice.press_button("Leave");
    wait_for_row(&alice, &["↓ server", "CLOSE"]);
    alice.press_button("Inspector");
    expect_pair(&["↓ server", "CLOSE"], &["↑ client", "CLOSE"]);
    expect_pair(&["↑ client", "CLOSE"], &["↓ server", "CLOSE"]);
}

#[test]
fn a_close_with_a_code_is_requested() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let codes = alice.eval("[...__field('Close code').options].map((option) => Number(option.value))");
    let codes: Vec<u64> = serde_json::from_value(codes).unwrap();
    assert!([1000, 1001, 1002, 1011, 4000].iter().all(|code| codes.contains(code)), "{codes:?}");
    assert!(![1004, 1005, 1006, 1012, 1015].iter().any(|code| codes.contains(code)), "{codes:?}");
    alice.eval("__field('Close code').value = 1001");
    alice.press_button("Send Close frame");
    alice.wait_for(r#"sockets[1].sent.at(-1) === '{"do":"close","code":1001}'"#);
}

// ---- The echo of “Hello” ----

#[test]
fn hello_is_echoed_without_json_around_it() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Send “Hello” alone");
    wait_for_row(&alice, &["Echo", "sent \"Hello\", received \"Hello\""]);
    assert_eq!(alice.text("sockets[2].url.replace(/[?].*/, '').replace(/.*[/]/, '')"), "echo");
    assert_eq!(alice.eval("sockets[2].sent"), json!(["Hello"]));
    alice.wait_for("document.querySelectorAll('#inspector-detail .views').length === 2");
    let hex = |view: usize| {
        alice.text(&format!(
            "[...document.querySelectorAll('#inspector-detail .views')[{view}].querySelectorAll('.group code')]
                .map((code) => code.textContent).join(' ')"
        ))
    };
    assert_eq!(hex(0), "81 85 37 fa 21 3d 7f 9f 4d 51 58", "RFC 6455 §5.7");
    assert_eq!(hex(1), "81 05 48 65 6c 6c 6f", "RFC 6455 §5.7");
    assert!(detail(&alice).contains("37 fa 21 3d is from the RFC’s example; the browser used a different key."));
    alice.hover("document.querySelector('.views .segment')");
    let expected = json!([["FIN"], ["FIN"], ["flags"]]);
    wait_until("only the fields of one frame are linked", || {
        highlighted_parts(&alice) == expected && alice.eval("document.querySelectorAll('.group[data-lit]').length") == 1
    });
    assert_eq!(alice.eval("document.querySelectorAll('.group[data-lit]').length"), 1, "of one frame only");
    alice.screenshot("inspector-hello");
    for axe in axe().iter() {
        assert_accessible(&alice, axe, "hello");
    }
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn without_an_echo_the_page_says_what_failed() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let alice =
        browser.open_with(&page(&format!("server={}", ws(listener.local_addr().unwrap().port()))), WATCH_SOCKETS);
    alice.press_button("Inspector");
    alice.press_button("Send “Hello” alone");
    drop(listener.accept().unwrap());
    wait_for_row(&alice, &["Echo", "the server did not accept the connection"]);
    alice.wait_for("!__button('Send “Hello” alone').disabled");
}

// ---- Test cases, with a scripted server ----

const REQUEST: &str = "GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The close reason that the server sends after an unmasked frame. `wirechat replay` reports the unmasked frame as an
/// error only if the Close has this reason. With any other reason, something else made the server close the connection.
const REASON: &str = "client frames must be masked (RFC 6455 §5.1)";

/// A scripted server: the server's ends of the page's chat and inspector connections, controlled by the test.
struct Script {
    chat: WebSocket<TcpStream>,
    inspector: WebSocket<TcpStream>,
}

impl Script {
    /// Opens a page that joins the chat, and accepts the connection of the page's inspector.
    fn start<'a>(browser: &'a Browser) -> (Script, Tab<'a>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = page(&format!("server={}&username=alice", ws(listener.local_addr().unwrap().port())));
        let tab = browser.open_with(&url, WATCH_SOCKETS);
        tab.press_button("Connect");
        let mut chat = accept(&listener);
        let data = json!({"message": "Welcome to #general, alice!", "members": [], "room": "general",
            "username": "alice", "ticket": "the-ticket", "epoch": "e", "last_id": 0, "history": []});
        chat.send(Message::text(json!({"event": "welcome", "data": data}).to_string())).unwrap();
        wait_for_state(&tab, "joined");
        tab.press_button("Inspector");
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        let select = |request: &Request, mut response: Response| {
            assert_eq!(request.uri(), "/inspect?ticket=the-ticket");
            response.headers_mut().insert("Sec-WebSocket-Protocol", "inspect".parse().unwrap());
            Ok(response)
        };
        let mut script = Script { chat, inspector: tungstenite::accept_hdr(stream, select).unwrap() };
        script.handshake(1);
        (script, tab)
    }

    fn send(&mut self, record: Value) {
        self.inspector.send(Message::text(record.to_string())).unwrap();
    }

    fn send_record(&mut self, connection: u64, record: Value) {
        let mut record = record;
        record["connection"] = connection.into();
        record["time"] = "2026-11-22T12:00:01.204Z".into();
        self.send(record);
    }

    fn handshake(&mut self, connection: u64) {
        let parts = |head: &str| json!({"count": 1, "listed": [[1, head.len()]]});
        self.send_record(connection, json!({"record": "request", "head": REQUEST, "parts": parts(REQUEST)}));
        let accept = json!({"record": "answer", "head": RESPONSE, "status": 101, "body": "", "parts": parts(RESPONSE)});
        self.send_record(connection, accept);
        self.state(connection, "CONNECTING", "OPEN");
    }

    fn state(&mut self, connection: u64, from: &str, to: &str) {
        self.send_record(
            connection,
            json!({"record": "state", "from": from, "to": to, "because": "the script says so"}),
        );
    }

    /// Sends the inspector the record of an unmasked frame, with the number of the read or write that carried the
    /// frame. Read 1 is the HTTP request and write 1 is the response, so the client's frame n is in read n + 1, and the
    /// server's frame n is in write n + 1.
    fn frame(&mut self, connection: u64, from: &str, number: u64, opcode: u8, payload: &[u8]) {
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = if opcode == 8 { "CLOSE" } else { "TEXT" };
        let place = if opcode == 8 { json!(null) } else { json!({"message": number, "fragment": 1, "last": true}) };
        self.send_record(
            connection,
            json!({"record": "frame", "from": from, "number": number, "name": name, "opcode": opcode,
            "header": format!("{:02x}{:02x}", 0x80 | opcode, payload.len()), "fin": true, "rsv": 0, "masked": false,
            "key": null, "length_bits": 7, "length": payload.len(), "wire": hex, "payload": hex,
            "received": payload.len(), "complete": true, "place": place,
            "parts": {"count": 1, "listed": [[number + 1, payload.len() + 2]]}}),
        );
    }

    fn offer_cases(&mut self) {
        let case = |name, title, rule| json!({"name": name, "title": title, "rule": rule});
        self.send(json!({"record": "cases", "cases": [
            case("zero-key", "A masking key of four zeros", "§5.3"),
            case("unmasked-frame", "A client frame without a mask", "§5.1")]}));
    }

    /// Sends the list of test cases, presses Play for `unmasked-frame`, and reads the command that the page sends.
    fn begin(&mut self, tab: &Tab) {
        self.offer_cases();
        tab.wait_for("__button('Play').checkVisibility()");
        tab.eval("__field('Test case').value = 'unmasked-frame'");
        tab.press_button("Play");
        assert_eq!(self.command(), json!({"do": "play", "case": "unmasked-frame"}));
    }

    /// Sends the records of the test case `unmasked-frame`, which uses connection 9.
    fn play(&mut self) {
        self.handshake(9);
        self.frame(9, "client", 1, 1, b"Hello");
        self.send_record(
            9,
            json!({"record": "refusal", "by": "client", "frame": 1, "code": 1002, "section": "5.1",
            "because": "the frame is not masked"}),
        );
        self.frame(9, "server", 1, 8, &[&1002_u16.to_be_bytes()[..], REASON.as_bytes()].concat());
        self.state(9, "OPEN", "CLOSING");
        self.send_record(
            9,
            json!({"record": "end", "began": "server", "code": 1002, "reason": "", "clean": false,
            "how": "closed by the server"}),
        );
    }

    fn finish(&mut self) {
        self.send(json!({"record": "played", "case": "unmasked-frame", "expected": "a Close with 1002",
            "came": "a Close with 1002", "rule": "§5.1: a client masks every frame", "passed": true}));
    }

    /// Reads the next command that the page sends.
    fn command(&mut self) -> Value {
        serde_json::from_str(self.inspector.read().unwrap().to_text().unwrap()).unwrap()
    }
}

#[test]
fn a_case_is_played_below_its_own_heading() {
    let browser = browser!();
    let (mut script, alice) = Script::start(&browser);
    wait_for_row(&alice, &["OPEN"]);
    assert_eq!(alice.eval("__button('Play').checkVisibility()"), false, "without cases there is nothing to play");
    script.begin(&alice);
    let options = alice.eval("[...__field('Test case').options].map((option) => [option.value, option.textContent])");
    assert_eq!(options[1], json!(["unmasked-frame", "unmasked-frame: A client frame without a mask (§5.1)"]));
    alice.wait_for("__button('Play').disabled");
    wait_for_status(&alice, "is playing test case unmasked-frame");
    script.play();
    wait_for_row(&alice, &["TCP closed"]);
    assert_eq!(alice.eval("__button('Play').disabled"), true, "until the result has arrived");
    script.finish();
    alice.wait_for("!__button('Play').disabled");
    wait_for_row(&alice, &["Case played", "unmasked-frame: passed"]);
    wait_for_status(&alice, "Showing connection 1 as the server sees it.");
    script.frame(1, "server", 7, 1, br#"{"event":"joined","data":{"username":"bob"}}"#);
    wait_for_row(&alice, &["bob joined"]);
    let rows: Vec<String> = rows(&alice).into_iter().map(|row| row.replace("12:00:01.204Z", "")).collect();
    let at =
        |start: &str| rows.iter().position(|row| row.starts_with(start)).unwrap_or_else(|| panic!("{start}: {rows:?}"));
    let order = [
        "Connection 1",
        "Case: unmasked-frame",
        "↑ client 1TEXT",
        "✕ client",
        "↓ server 1CLOSE",
        "TCP closed",
        "Case played",
        "Connection 1, continued",
        "↓ server 7TEXT",
    ]
    .map(at);
    assert!(order.is_sorted(), "{order:?} {rows:?}");
    select_row(&alice, &["Case played"]);
    let text = detail(&alice);
    assert!(
        ["Expected", "a Close with 1002", "Actual", "Rule", "a client masks every frame. §5.1"]
            .iter()
            .all(|part| text.replace("frame §", "frame. §").contains(part)),
        "{text}"
    );
    alice.screenshot("inspector-case");
    for axe in axe().iter() {
        assert_accessible(&alice, axe, "a played case");
    }
    // The page enables the Play button again after an `error` record, as it does after a result.
    alice.press_button("Play");
    script.command();
    alice.wait_for("__button('Play').disabled");
    script.send(json!({"record": "error", "message": "There is no case like this."}));
    wait_for_row(&alice, &["Error", "There is no case like this."]);
    alice.wait_for("!__button('Play').disabled");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_records_of_a_case_do_not_change_those_of_the_chat() {
    let browser = browser!();
    let (mut script, alice) = Script::start(&browser);
    script.begin(&alice);
    script.frame(1, "server", 2, 1, br#"{"event":"joined","data":{"username":"bob"}}"#);
    script.play();
    script.finish();
    let data = json!({"username": "bob", "text": "still here", "id": 4, "time": "2026-11-22T12:00:01.204Z"});
    let event = json!({"event": "message", "data": data}).to_string();
    script.chat.send(Message::text(event.clone())).unwrap();
    wait_for_log(&alice, "still here");
    script.frame(1, "server", 3, 1, event.as_bytes());
    select_row(&alice, &["server 3", "still here"]);
    alice.press_button("Show its message");
    alice.wait_for("document.activeElement.innerText.includes('still here')");
    select_row(&alice, &["server 1", "CLOSE"]);
    assert!(detail(&alice).contains("The other side has not sent a Close frame."), "no Close of this connection");
    wait_for_status(&alice, "Showing connection 1 as the server sees it.");
}

// ---- Copying and saving ----

/// Runs wirechat with `args`. Returns its stdout and stderr, and whether it succeeded.
fn wirechat(args: &[&str]) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(args).output().unwrap();
    (String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr), output.status.success())
}

#[test]
fn a_frame_is_copied_as_hex_and_as_a_command() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let keep = "Object.defineProperty(navigator, 'clipboard',
        { configurable: true, value: { writeText: async (text) => { window.copied = text; } } })";
    alice.eval(&format!("{keep}, 0"));
    type_message(&alice, "Hello");
    wait_for_row(&alice, &["server", "\"Hello\""]);
    for (from, option) in [("client", ""), ("server", "--from-server ")] {
        select_row(&alice, &[from, "message \"Hello\""]);
        let parts = ["flags", "length", "extended", "key", "payload"].map(|part| bytes(&alice, part)).concat();
        alice.press_button("Copy as hex");
        alice.wait_for(&format!("{DETAIL}.innerText.includes('{} bytes copied.')", parts.len()));
        let hex = alice.text("copied");
        assert_eq!(unhex(&hex), parts);
        alice.press_button("Copy “wirechat explain” command");
        alice.wait_for(&format!("{DETAIL}.innerText.includes('The command is copied.')"));
        assert_eq!(alice.text("copied"), format!("wirechat explain {option}'{hex}'"));
        let args: Vec<&str> = ["explain"].into_iter().chain(option.split_whitespace()).chain([&hex[..]]).collect();
        let (output, is_valid) = wirechat(&args);
        assert!(is_valid && output.contains("One complete and valid frame."), "{output}");
    }
    alice.press_button("Send 65,536 bytes");
    select_row(&alice, &["client", "65,536 B"]);
    alice.press_button("Copy as hex");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('64,512 bytes are missing')"));
    alice.press_button("Copy “wirechat explain” command");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('has only the start of this payload')"));
    // A page that another machine serves without TLS has no `navigator.clipboard`, and copies with `execCommand`.
    alice.eval(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });
        document.execCommand = (name) => {
            window.copied = `${name}: ${document.activeElement.value}`;
            return true;
        }; 0",
    );
    select_row(&alice, &["server", "message \"Hello\""]);
    alice.press_button("Copy as hex");
    alice.wait_for("copied.startsWith('copy: 81 ')");
    alice.wait_for("document.activeElement === __button('Copy as hex')");
}

#[test]
fn a_connection_is_saved_as_a_recording_that_replay_reads() {
    let browser = browser!();
    let (mut script, alice) = Script::start(&browser);
    let dir = empty_dir("inspector-recordings");
    alice.call("Page.setDownloadBehavior", json!({"behavior": "allow", "downloadPath": dir}));
    script.begin(&alice);
    script.play();
    script.finish();
    select_row(&alice, &["Case: unmasked-frame"]);
    alice.press_button("Save as recording");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('Saved unmasked-frame.wire.')"));
    let file = dir.join("unmasked-frame.wire");
    let is_complete =
        || std::fs::read_to_string(&file).is_ok_and(|text| text.lines().any(|line| line.contains("\"end\"")));
    wait_until("the file is complete", is_complete);
    let (output, is_as_recorded) = wirechat(&["replay", file.to_str().unwrap()]);
    assert!(is_as_recorded, "{output}\n{}", std::fs::read_to_string(&file).unwrap());
    for part in
        ["GET /echo HTTP/1.1", "101 Switching Protocols", "\"Hello\"", "1002 §5.1", "CLOSE", "closed by the server"]
    {
        assert!(output.contains(part), "{part}: {output}");
    }
}

/// The `welcome` event arrives before the inspector opens, so the page rebuilds the frame from the event's text.
#[test]
fn the_connection_of_the_chat_is_saved_as_a_recording() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let dir = empty_dir("inspector-chat-recording");
    alice.call("Page.setDownloadBehavior", json!({"behavior": "allow", "downloadPath": dir}));
    type_message(&alice, "Hello");
    wait_for_row(&alice, &["↓ server", "message \"Hello\" from alice"]);
    alice.press_button("Ask for a PING");
    wait_for_row(&alice, &["↑ client", "PONG"]);
    select_row(&alice, &["Connection "]);
    alice.press_button("Save as recording");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('Saved connection-1.wire.')"));
    let file = dir.join("connection-1.wire");
    wait_until("the file is complete", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with("}\n")));
    let text = std::fs::read_to_string(&file).unwrap();
    let (output, is_as_recorded) = wirechat(&["replay", file.to_str().unwrap()]);
    assert!(is_as_recorded, "{output}\n{text}");
    for part in ["101 Switching Protocols", "Welcome to #general, a", "\"ping 1\"", "PONG", "as recorded"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    let welcome = alice.text("JSON.parse(sessionStorage.getItem('wirechat-session')).session");
    let secret: String = welcome.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(&secret) && !output.contains(&welcome), "no secret of the welcome is in the file");
}

#[test]
fn a_recording_with_gaps_is_not_saved() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    type_message(&alice, "before");
    wait_for_log(&alice, "before");
    alice.press_button("Inspector");
    select_row(&alice, &["Connection "]);
    wait_for_row(&alice, &["earlier frames"]);
    alice.press_button("Save as recording");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('Not saved: frames are missing.')"));
    let (mut script, alice) = Script::start(&browser);
    script.frame(1, "client", 1, 1, b"Hello");
    select_row(&alice, &["\"Hello\""]);
    let refuses = |why: &str| {
        select_row(&alice, &["Connection 1"]);
        alice.press_button("Save as recording");
        alice.wait_for(&format!("{DETAIL}.innerText.includes({})", json!(why)));
    };
    script.send_record(
        1,
        json!({"record": "frame", "from": "client", "number": 2, "header": "8288", "fin": true, "rsv": 0,
        "opcode": 2, "name": "BINARY", "masked": false, "key": null, "length_bits": 7, "length": 8, "wire": "0102",
        "payload": "0102", "received": 8, "complete": true, "place": null, "parts": {"count": 1, "listed": [[2, 10]]}}),
    );
    wait_for_row(&alice, &["BINARY"]);
    refuses("Not saved: the page has only the start of client frame 2.");
    script.frame(1, "server", 2, 1, b"later");
    wait_for_row(&alice, &["later"]);
    script.send_record(1, json!({"record": "missed", "count": 3}));
    wait_for_row(&alice, &["3 frames are not shown"]);
    refuses("Not saved: frames are missing.");
}

// ---- Layout ----

#[test]
fn the_split_is_moved_by_mouse_and_keyboard_and_remembered() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.set_screen(1440, 900, "light");
    let split = "document.querySelector('[role=separator]')";
    let width = || alice.eval("document.querySelector('#inspector').getBoundingClientRect().width").as_f64().unwrap();
    let now = || alice.text(&format!("{split}.ariaValueNow")).parse::<f64>().unwrap();
    wait_until("the value is the width", || (width() / 14.4 - now()).abs() < 1.0);
    let mouse = |kind: &str, x: f64, buttons: u8| {
        let params = json!({"type": kind, "x": x, "y": 400, "button": "left", "buttons": buttons, "clickCount": 1});
        alice.call("Input.dispatchMouseEvent", params);
    };
    alice.call("Page.bringToFront", json!({}));
    let edge = 1440.0 - width();
    mouse("mousePressed", edge, 1);
    mouse("mouseMoved", 860.0, 1);
    mouse("mouseReleased", 860.0, 0);
    wait_until("the inspector follows the mouse", || (width() - 580.0).abs() < 10.0);
    mouse("mouseMoved", 700.0, 0);
    alice.eval(&format!("{split}.focus()"));
    let before = now();
    alice.press_key("ArrowLeft", false);
    wait_until("the inspector is wider", || now() == before + 2.0 && (width() / 14.4 - now()).abs() < 1.0);
    alice.press_key("ArrowRight", false);
    wait_until("the inspector is as wide as before", || now() == before);
    alice.press_key("Home", false);
    wait_until("the inspector is as narrow as allowed", || now() == 30.0);
    alice.press_key("ArrowLeft", false);
    assert_eq!(alice.text("JSON.parse(localStorage.getItem('wirechat-inspector')).width.toString()"), "32");
    let url = alice.text("location.href");
    alice.navigate(&url);
    alice.press_button("Inspector");
    wait_until("the width is remembered", || (width() - 0.32 * 1440.0).abs() < 2.0);
}

#[test]
fn the_sidebar_makes_room_for_the_inspector() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let boxes = |ids: &str| alice.eval(&format!("document.querySelector('{ids}').checkVisibility()")) == true;
    for (width, has_side) in [(800, false), (1200, false), (1440, true), (1920, true)] {
        alice.set_screen(width, 900, "light");
        alice.wait_for(&format!("innerWidth === {width}"));
        assert_eq!(boxes("#side"), has_side, "{width}");
        assert!(boxes("#inspector"), "{width}");
        if !has_side {
            alice.press_button("Menu");
            alice.wait_for("document.querySelector('#side').checkVisibility()");
            assert_fits(&alice, &format!("{width} with the menu"));
            alice.screenshot(&format!("inspector-menu-{width}"));
            alice.press_button("Menu");
            alice.wait_for("!document.querySelector('#side').checkVisibility()");
        }
        let is_beside = alice.eval(
            "document.querySelector('#inspector-detail').getBoundingClientRect().left
                >= document.querySelector('#records').getBoundingClientRect().right",
        );
        assert_eq!(is_beside, width >= 1700, "{width}: the list and the detail");
    }
}

#[test]
fn the_filter_can_be_removed_when_nothing_matches() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.fill("Search", "no such text");
    alice.wait_for("document.querySelector('#inspector-nothing').innerText.startsWith('No frame matches.')");
    assert!(rows(&alice).is_empty());
    alice.screenshot("inspector-nothing");
    for axe in axe().iter() {
        assert_accessible(&alice, axe, "nothing matches");
    }
    alice.press_button("Clear filter");
    wait_until("the list is back", || rows(&alice).len() > 4);
    assert_eq!(field(&alice, "Search"), "");
    assert_eq!(alice.text("document.activeElement.id"), "records");
}

#[test]
fn on_a_phone_targets_are_large_and_fields_do_not_zoom() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Ask for a PING");
    select_row(&alice, &["client", "PONG"]);
    alice.set_screen(390, 844, "light");
    for view in ["detail", "list"] {
        let small = alice.eval(
            "[...document.querySelectorAll('#inspector :is(button, select, input, summary, .record)')]
                .filter((e) => e.checkVisibility()).map((e) => [e.textContent, e.getBoundingClientRect()])
                .filter(([, { width, height }]) => width < 44 || height < 44)",
        );
        assert_eq!(small, json!([]), "{view}");
        if view == "detail" {
            alice.press_button("Back to the list");
        }
    }
    let sizes = alice.eval(
        "[...document.querySelectorAll('#inspector :is(select, input)')]
            .map((e) => parseFloat(getComputedStyle(e).fontSize))",
    );
    assert!(sizes.as_array().unwrap().iter().all(|size| size.as_f64().unwrap() >= 16.0), "{sizes}");
}

#[test]
fn on_a_phone_the_actions_are_closed_until_the_user_opens_them() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    alice.set_screen(390, 844, "dark");
    let url = alice.text("location.href");
    alice.navigate(&url);
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    alice.press_button("Inspector");
    wait_for_row(&alice, &["OPEN"]);
    let is_open = "document.querySelector('#inspector-actions').open";
    assert_eq!(alice.eval(is_open), false);
    assert_eq!(alice.eval("document.querySelector('main').checkVisibility({ visibilityProperty: true })"), false);
    alice.screenshot("inspector-phone");
    alice.click("document.querySelector('#inspector-summary')");
    alice.wait_for(is_open);
    alice.navigate(&url);
    assert_eq!(alice.eval(is_open), true, "the page remembers the open actions");
}

#[test]
fn forced_colors_keep_selection_and_links_visible() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.set_media_features(&[("forced-colors", "active")]);
    type_message(&alice, "Hello");
    select_row(&alice, &["client", "\"Hello\""]);
    alice.hover("document.querySelector('.segment[data-field=opcode]')");
    alice.wait_for("document.querySelectorAll('[data-lit]').length === 3");
    let outline =
        |element: &str| alice.text(&format!("getComputedStyle(document.querySelector('{element}')).outlineStyle"));
    assert_eq!([".record[aria-selected=true]", ".segment[data-lit]"].map(outline), ["solid", "solid"]);
    alice.screenshot("inspector-forced-colors");
    for axe in axe().iter() {
        assert_accessible(&alice, axe, "forced colors");
    }
}

// ---- The chat without the inspector ----

#[test]
fn the_chat_works_without_the_inspector() {
    let browser = browser!();
    let server = Server::start(&[]);
    let whole = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/client.html")).unwrap();
    let blocks = [
        ("inspector-style", "</style>"),
        ("inspector", "</aside>"),
        ("inspector-script", "</script>"),
        ("inspector-toggle", "</button>"),
    ];
    let rest = blocks.iter().fold(whole, |page, (id, end)| {
        let (before, block) = page.split_once(&format!(" id=\"{id}\"")).unwrap_or_else(|| panic!("{id}"));
        before[..before.rfind('<').unwrap()].to_owned() + block.split_once(end).unwrap().1
    });
    let dir = empty_dir("inspector-removed");
    let file = dir.join("client.html");
    std::fs::write(&file, rest).unwrap();
    let alice = browser.open(&format!("file://{}?server={}&username=alice", file.display(), ws(server.port())));
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    type_message(&alice, "without the inspector");
    wait_for_log(&alice, "without the inspector");
    assert_eq!(browser.page_errors(), [""; 0]);
}

// ---- Accessibility ----

#[test]
fn it_can_be_used_by_keyboard_alone() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    tab_to(&alice, "__button('Inspector')");
    alice.press_key("Enter", false);
    wait_for_row(&alice, &["OPEN"]);
    alice.press_key("Home", false);
    alice.press_key("ArrowDown", false);
    alice.wait_for(&format!("{DETAIL}.innerText.includes('The client’s request')"));
    alice.press_key("End", false);
    alice.press_key("ArrowUp", false);
    let active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))";
    alice.wait_for(&format!("{active} === {ROWS}.at(-2) && {active}.ariaSelected === 'true'"));
    tab_to(&alice, DETAIL); // the pane is focusable, so that the keyboard can scroll it
    alice.press_key("Escape", false);
    alice.wait_for("document.activeElement === __button('Inspector')");
    assert_eq!(alice.eval("document.querySelector('#inspector').checkVisibility()"), false);
}

/// The Tab key reaches every control of the inspector exactly once, and the focused control always has an outline.
#[test]
fn every_control_can_be_reached_by_keyboard() {
    let browser = browser!();
    let (mut script, alice) = Script::start(&browser);
    script.begin(&alice);
    script.frame(1, "server", 2, 1, br#"{"event":"message","data":{"username":"bob","text":"hi","id":1}}"#);
    select_row(&alice, &["\"hi\""]);
    alice.eval("__button('Inspector').focus()");
    tab_to(&alice, "document.querySelector('[role=separator]')");
    let mut reached = Vec::new();
    while !reached.iter().any(|name| name == "Save as recording") {
        alice.press_key("Tab", false);
        assert_ne!(alice.text("getComputedStyle(document.activeElement).outlineStyle"), "none", "{reached:?}");
        let name = "(document.activeElement.labels?.[0] ?? document.activeElement).textContent.trim().slice(0, 40)";
        reached.push(alice.text(&format!("document.activeElement.ariaLabel ?? {name}")));
        assert!(reached.len() < 40, "{reached:?}");
    }
    for name in [
        "Close",
        "Actions",
        "Send 300 bytes",
        "Send 65,536 bytes",
        "Send an emoji",
        "Send “Hello” alone",
        "Ask for a PING",
        "Ask for fragments",
        "Close code",
        "Send Close frame",
        "Test case",
        "Filter",
        "Search",
        "Pause",
        "Frames and events",
        "Selected record",
        "Copy as hex",
        "Copy “wirechat explain” command",
    ] {
        assert_eq!(reached.iter().filter(|other| *other == name).count(), 1, "{name}: {reached:?}");
    }
    script.finish();
    alice.wait_for("!__button('Play').disabled");
    alice.eval("__field('Test case').focus()");
    tab_to(&alice, "__button('Play')");
    alice.press_key("Enter", false);
    assert_eq!(script.command()["do"], "play");
}

/// With permessage-deflate, RSV1 marks a compressed message. The page must not show the compressed bytes as text.
#[test]
fn a_compressed_message_is_named_as_such() {
    let browser = browser!();
    let (mut script, alice) = Script::start(&browser);
    script.begin(&alice);
    let head = RESPONSE
        .replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n");
    script.send_record(9, json!({"record": "request", "head": REQUEST, "parts": {"count": 1, "listed": [[1, 152]]}}));
    script.send_record(
        9,
        json!({"record": "answer", "head": head, "status": 101, "body": "",
        "parts": {"count": 1, "listed": [[1, head.len()]]}}),
    );
    script.send_record(
        9,
        json!({"record": "frame", "from": "server", "number": 1, "header": "c107", "fin": true, "rsv": 4,
        "opcode": 1, "name": "TEXT", "masked": false, "key": null, "length_bits": 7, "length": 7,
        "wire": "f248cdc9c90700", "payload": "f248cdc9c90700", "received": 7, "complete": true,
        "place": {"message": 1, "fragment": 1, "last": true}, "parts": {"count": 1, "listed": [[2, 9]]}}),
    );
    select_row(&alice, &["server 1", "compressed message"]);
    assert!(detail(&alice).contains("RSV1 marks a message compressed with permessage-deflate."));
    assert!(!detail(&alice).contains("Payload as text"));
    alice.press_button("Save as recording");
    alice.wait_for(&format!("{DETAIL}.innerText.includes('the compression state')"));
    select_row(&alice, &["Response"]);
    assert!(detail(&alice).contains("The extensions that the server accepted"));
}

/// On a phone, the selected record covers the list. The first Escape returns to the list, the second closes the
/// inspector.
#[test]
fn on_a_phone_escape_goes_back_step_by_step() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.set_screen(360, 740, "light");
    alice.wait_for("matchMedia('(max-width: 44.99rem)').matches");
    alice.eval("document.querySelector('#records [role=option]:last-child').click()");
    alice.wait_for("document.querySelector('#inspector').dataset.view === 'detail'");
    alice.press_key("Escape", false);
    alice.wait_for("document.querySelector('#inspector').dataset.view === 'list'");
    assert_eq!(alice.eval("document.querySelector('#inspector').checkVisibility()"), true);
    alice.press_key("Escape", false);
    alice.wait_for("!document.querySelector('#inspector').checkVisibility()");
}

#[test]
fn every_width_scheme_and_contrast_fits_and_is_accessible() {
    let browser = browser!();
    let server = Server::start(&[]);
    let axe = axe();
    for (width, height) in [(320, 568), (390, 844), (800, 600), (1440, 900), (1920, 1080)] {
        for (scheme, contrast) in [("light", "no-preference"), ("dark", "no-preference"), ("light", "more")] {
            let alice = inspect(&browser, &server);
            alice.set_screen(width, height, scheme);
            alice.set_media_features(&[("prefers-color-scheme", scheme), ("prefers-contrast", contrast)]);
            let look = |what: &str| {
                let name = format!("inspector-{width}-{scheme}-{contrast}-{what}");
                alice.screenshot(&name);
                assert_fits(&alice, &name);
                axe.iter().for_each(|axe| assert_accessible(&alice, axe, &name));
            };
            look("list");
            for (button, words, what) in [
                ("Send 65,536 bytes", ["client", "65,536 B"], "long"),
                ("Send an emoji", ["client", "🍌"], "emoji"),
                ("Ask for a PING", ["client", "PONG"], "pong"),
            ] {
                alice.press_button(button);
                select_row(&alice, &words);
                look(what);
                if width < 720 {
                    alice.press_button("Back to the list");
                }
            }
            select_row(&alice, &["Response"]);
            look("answer");
        }
    }
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_readme_picture_of_the_inspector_can_be_recreated() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.set_screen(1280, 960, "light");
    let mut bob = guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "What does a word look like on the wire?");
    type_message(&alice, "Hello");
    wait_for_row(&alice, &["server", "Hello"]);
    select_row(&alice, &["client", "Hello"]);
    alice.screenshot("inspector");
}
