//! The inspector of the page: the traffic of its own connection, read from the screen and compared with the bytes.
//!
//! A hook in the page keeps every text that the page sent over its sockets; texts of the server are in the conversation.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use base64::prelude::{BASE64_STANDARD, Engine};
use browser::{Browser, Tab};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use std::net::TcpListener;
use support::{Server, wait_until};
use visitor::*;

/// Keeps every socket of the page, and what it sent over each: the chat's is the first, the inspector's the second.
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
const DETAIL: &str = "document.querySelector('.wire-detail')";

/// A page in the chat, with the drawer open and the first records in it.
fn inspect<'a>(browser: &'a Browser, server: &Server) -> Tab<'a> {
    let tab = join_with(browser, server.port(), "alice", WATCH_SOCKETS);
    tab.press_button("Inspect");
    wait_for_row(&tab, &["OPEN"]);
    wait_for_row(&tab, &["earlier frame"]);
    tab
}

/// The rows of the list, as text.
fn rows(tab: &Tab) -> Vec<String> {
    serde_json::from_value(tab.eval(&format!("{ROWS}.map((row) => row.textContent)"))).unwrap()
}

/// The last row with all these words in it.
fn row(words: &[&str]) -> String {
    format!("{ROWS}.findLast((row) => {}.every((words) => row.textContent.includes(words)))", json!(words))
}

fn wait_for_row(tab: &Tab, words: &[&str]) {
    tab.wait_for(&row(words));
}

fn choose(tab: &Tab, words: &[&str]) {
    wait_for_row(tab, words);
    tab.click(&row(words));
    tab.wait_for(&format!("{}.ariaSelected === 'true'", row(words)));
}

/// The bits of the figure, by the names of their fields.
fn bits(tab: &Tab, field: &str) -> String {
    tab.text(&format!(
        "[...document.querySelectorAll('.segment[data-field=\"{field}\"] .digits')].map((d) => d.textContent).join('')"
    ))
}

/// The bytes of a field, shown in hexadecimal.
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
    tab.wait_for(&format!("document.querySelector('.wire [role=status]').textContent.includes({})", json!(words)));
}

/// The text that the page sent last over the chat's socket.
fn sent(tab: &Tab) -> String {
    tab.text("sockets[0].sent.at(-1)")
}

// ---- The drawer, and the second socket ----

#[test]
fn nothing_runs_before_the_drawer_is_opened() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    type_message(&alice, "not inspected");
    wait_for_log(&alice, "not inspected");
    assert_eq!(alice.eval("document.querySelector('aside.wire').checkVisibility()"), false);
    assert_eq!(alice.eval("sockets.length"), 1);
    for _ in 0..2 {
        alice.press_button("Inspect");
        wait_for_row(&alice, &["OPEN"]);
        assert_eq!(alice.text("__button('Inspect').ariaExpanded"), "true");
        alice.wait_for("document.activeElement.role === 'listbox'");
        alice.press_button("Close");
        alice.wait_for("document.activeElement === __button('Inspect')");
        assert_eq!(alice.text("__button('Inspect').ariaExpanded"), "false");
    }
    assert_eq!(alice.eval("sockets.length"), 2, "the ticket is good once, and one socket is enough");
    assert_eq!(alice.text("sockets[1].protocol"), "inspect");
    alice.press_button("Leave");
    wait_for_state(&alice, "idle");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    assert_eq!(alice.eval("sockets.length"), 3, "a new ticket waits until the drawer is opened");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn without_a_ticket_the_page_explains_why() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = page(&format!("server={}", ws(listener.local_addr().unwrap().port())));
    let alice = browser.open_with(&url, WATCH_SOCKETS);
    alice.press_button("Inspect");
    wait_for_status(&alice, "Not connected.");
    alice.press_button("Menu");
    alice.press_button("Connect");
    let mut peer = accept(&listener);
    welcome(&mut peer, "general");
    wait_for_status(&alice, "--inspect");
    assert_eq!(alice.eval("[__button('An emoji').disabled, __button('A server ping').disabled]"), json!([false, true]));
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
    alice.press_button("Inspect");
    wait_for_status(&alice, "rejected the inspector");
    type_message(&alice, "the chat goes on");
    wait_for_log(&alice, "the chat goes on");
}

#[test]
fn the_next_connection_is_shown_below_a_line_and_the_last_is_ignored() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Menu");
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
    alice.press_button("A server ping");
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
    choose(&alice, &["Request"]);
    let head = alice.text(&format!("{DETAIL}.querySelector('.head').textContent"));
    assert!(head.starts_with("GET /?"), "{head}");
    assert!(head.ends_with("CRLFCRLF"), "its line ends are visible: {head}");
    assert!(!head.contains("dev-token"), "tokens are redacted: {head}");
    let key = head.split_once("Sec-WebSocket-Key: ").unwrap().1.split_once("CRLF").unwrap().0.to_owned();
    choose(&alice, &["Response"]);
    let joined = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let sha1 = Sha1::digest(joined.as_bytes());
    let accept = BASE64_STANDARD.encode(sha1);
    let steps = alice.eval("[...document.querySelectorAll('.steps code')].map((step) => step.textContent)");
    assert_eq!(steps[0], key);
    assert_eq!(steps[1], joined);
    assert_eq!(unhex(steps[2].as_str().unwrap()), sha1.as_slice());
    assert_eq!([&steps[3], &steps[4]], [&accept, &accept]);
    assert!(detail(&alice).contains(&format!("Sec-WebSocket-Accept: {accept}")));
}

/// The welcome and more passed before the drawer was opened.
#[test]
fn earlier_frames_are_counted_and_the_numbers_go_on_after_them() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join_with(&browser, server.port(), "alice", WATCH_SOCKETS);
    for text in ["one", "two"] {
        type_message(&alice, text);
        wait_for_log(&alice, text);
    }
    alice.press_button("Inspect");
    wait_for_row(&alice, &["earlier frames are not shown"]);
    type_message(&alice, "three");
    wait_for_row(&alice, &["client", "three"]);
    wait_for_row(&alice, &["server", "three"]);
    let rows = rows(&alice);
    let earlier = rows.iter().find_map(|row| row.split_once("Not shown")?.1.split_once(" earlier")).expect("the count");
    let earlier: u64 = earlier.0.parse().expect("a number");
    let first_number = |side: &str| -> u64 {
        let row =
            rows.iter().find_map(|row| row.split_once(&format!("{side} "))?.1.split_once("TEXT")).expect("a frame");
        row.0.parse().expect("a number")
    };
    assert_eq!((first_number("↑ client") - 1) + (first_number("↓ server") - 1), earlier, "{rows:?}");
}

/// In UTC with its Z, as in the trace.
#[test]
fn times_are_in_utc() {
    let browser = browser!();
    let server = Server::start(&["--trace"]);
    let alice = inspect(&browser, &server);
    type_message(&alice, "when");
    wait_for_row(&alice, &["client", "when"]);
    let time = alice.text(&format!("{}.querySelector('time').textContent", row(&["client", "when"])));
    assert!(server.log().lines().any(|line| line.contains("when") && line.contains(&format!("T{time}  #1"))), "{time}");
    choose(&alice, &["client", "when"]);
    let whole = alice.text(&format!("{DETAIL}.querySelector('time').textContent"));
    assert!(whole.ends_with(&format!("T{time}")) && whole.len() == "2026-11-22T12:00:01.204Z".len(), "{whole}");
}

#[test]
fn a_frame_is_shown_bit_by_bit_as_it_was_on_the_wire() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    type_message(&alice, "Hello");
    choose(&alice, &["client", "TEXT", "Hello"]);
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
    assert_eq!(alice.text(&format!("{DETAIL}.querySelector('.text').textContent")), sent);
    assert_each_byte_can_be_unmasked(&alice, &masked, &key, &sent);
    let links = alice.eval(&format!("[...{DETAIL}.querySelectorAll('a')].map((a) => [a.textContent, a.href, a.rel])"));
    for link in links.as_array().unwrap() {
        let section = link[0].as_str().unwrap().trim_start_matches('§');
        assert_eq!(link[1], format!("https://www.rfc-editor.org/rfc/rfc6455#section-{section}"));
        assert_eq!(link[2], "noopener noreferrer");
    }
    assert!(detail(&alice).contains(&format!(": {} bytes of this frame", 6 + sent.len())), "{}", detail(&alice));
}

/// Unmasks single bytes by mouse and by keyboard.
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
fn the_longer_lengths_are_shown() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    for (button, short, size) in [("16-bit length", 126, 300_usize), ("64-bit length", 127, 65_536)] {
        alice.press_button(button);
        let grouped = if size > 999 { "65,536 B" } else { "300 B" };
        choose(&alice, &["client", "TEXT", grouped]);
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
    alice.press_button("An emoji");
    choose(&alice, &["client", "TEXT", "🍌"]);
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
    alice.press_button("Next message in fragments");
    wait_for_status(&alice, "in fragments. Send a message.");
    alice.press_button("A server ping"); // commands are carried out in order, so the ping comes after the request for fragments
    wait_for_row(&alice, &["server", "PING"]);
    type_message(&alice, "bit by bit");
    wait_for_log(&alice, "bit by bit");
    choose(&alice, &["server", "TEXT ·1"]);
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
    alice.press_button("A server ping");
    choose(&alice, &["server", "PING"]);
    assert_eq!(bytes(&alice, "flags"), [0x89]);
    let asked = bytes(&alice, "payload");
    choose(&alice, &["client", "PONG"]);
    assert_eq!(bytes(&alice, "flags"), [0x8a]);
    let pong = alice.text("[...document.querySelectorAll('.byte .result')].map((b) => b.textContent).join(' ')");
    assert_eq!(unhex(&pong), asked);
    assert!(detail(&alice).contains("§5.5.3"));
}

// ---- The list ----

#[test]
fn the_list_can_be_paused_filtered_and_searched() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.press_button("Pause");
    type_message(&alice, "while paused");
    wait_for_log(&alice, "while paused");
    alice.wait_for("__button('Resume (3 new)')"); // the typing event, the message, its echo
    assert!(!rows(&alice).iter().any(|row| row.contains("TEXT")));
    alice.press_button("Resume (3 new)");
    alice.press_button("A server ping");
    wait_for_row(&alice, &["PONG"]);
    let show = |which: &str| {
        alice.eval(&format!("__field('View').value = '{which}', __field('View').dispatchEvent(new Event('change'))"));
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
    wait_until("the search has ended, and the drawer is still open", || rows(&alice).len() > 2);
}

#[test]
fn missed_records_are_counted_and_the_list_keeps_the_last_500_and_the_handshake() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    let inject =
        "window.inject = (record) => sockets[1].onmessage({ data: JSON.stringify({ connection: 1, ...record }) });";
    alice.eval(&format!("{inject} inject({{ record: 'missed', count: 37 }})"));
    choose(&alice, &["37 frames are not shown"]);
    assert!(detail(&alice).contains("The chat itself missed nothing."));
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
    assert!(rows[3].contains("The list keeps the last 500."), "{:?}", &rows[..4]);
    type_message(&alice, "the chat goes on");
    wait_for_log(&alice, "the chat goes on");
}

// ---- Accessibility ----

#[test]
fn it_can_be_used_by_keyboard_alone() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    tab_to(&alice, "__button('Inspect')");
    alice.press_key("Enter", false);
    wait_for_row(&alice, &["OPEN"]);
    alice.press_key("Home", false);
    alice.press_key("ArrowDown", false);
    alice.wait_for(&format!("{DETAIL}.innerText.includes('The client’s request')"));
    alice.press_key("End", false);
    alice.press_key("ArrowUp", false);
    let active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))";
    alice.wait_for(&format!("{active} === {ROWS}.at(-2) && {active}.ariaSelected === 'true'"));
    tab_to(&alice, DETAIL); // to be scrolled
    alice.press_key("Escape", false);
    alice.wait_for("document.activeElement === __button('Inspect')");
    assert_eq!(alice.eval("document.querySelector('aside.wire').checkVisibility()"), false);
}

/// On a phone the chosen frame covers the list, so Escape returns to the list first.
#[test]
fn on_a_phone_escape_goes_back_step_by_step() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.view(360, 740, "light");
    alice.wait_for("matchMedia('(max-width: 44.99rem)').matches");
    alice.eval("document.querySelector('#records [role=option]:last-child').click()");
    alice.wait_for("document.querySelector('aside.wire').dataset.view === 'detail'");
    alice.press_key("Escape", false);
    alice.wait_for("document.querySelector('aside.wire').dataset.view === 'list'");
    assert_eq!(alice.eval("document.querySelector('aside.wire').checkVisibility()"), true);
    alice.press_key("Escape", false);
    alice.wait_for("!document.querySelector('aside.wire').checkVisibility()");
}

#[test]
fn every_width_scheme_and_contrast_fits_and_is_accessible() {
    let browser = browser!();
    let server = Server::start(&[]);
    let axe = axe();
    for (width, height) in [(320, 568), (360, 740), (800, 600), (1280, 800)] {
        for (scheme, contrast) in [("light", "no-preference"), ("dark", "no-preference"), ("light", "more")] {
            let alice = inspect(&browser, &server);
            alice.view(width, height, scheme);
            alice.prefer(&[("prefers-color-scheme", scheme), ("prefers-contrast", contrast)]);
            let look = |what: &str| {
                let name = format!("inspector-{width}-{scheme}-{contrast}-{what}");
                alice.screenshot(&name);
                assert_fits(&alice, &name);
                axe.iter().for_each(|axe| assert_accessible(&alice, axe, &name));
            };
            look("list");
            for (button, words, what) in [
                ("64-bit length", ["client", "65,536 B"], "long"),
                ("An emoji", ["client", "🍌"], "emoji"),
                ("A server ping", ["client", "PONG"], "pong"),
            ] {
                alice.press_button(button);
                choose(&alice, &words);
                look(what);
                if width < 720 {
                    alice.press_button("Back to the list");
                }
            }
            choose(&alice, &["Response"]);
            look("answer");
        }
    }
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_picture_in_the_readme_can_be_renewed() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = inspect(&browser, &server);
    alice.view(1280, 960, "light");
    let mut bob = guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "What does a word look like on the wire?");
    type_message(&alice, "Hello");
    wait_for_row(&alice, &["server", "Hello"]);
    choose(&alice, &["client", "Hello"]);
    alice.screenshot("inspector");
}
