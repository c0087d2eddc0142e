//! Tests of the page's message box (commands, recipients, drafts, long texts), and of how the page shows received
//! texts (links, code, mentions). The tests wait for conditions, never for a fixed time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use std::net::{TcpListener, TcpStream};

use browser::Tab;
use serde_json::{Value, json};
use support::{RawClient, Server, wait_until};
use tungstenite::WebSocket;
use tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use visitor::*;

/// Returns the event name and the text of the next room message or private message.
fn next_text(guest: &mut RawClient) -> (String, String) {
    loop {
        let event = guest.read_json();
        if let Some(text) = event["data"]["text"].as_str() {
            return (event["event"].as_str().unwrap().to_owned(), text.to_owned());
        }
    }
}

fn read_message(peer: &mut WebSocket<TcpStream>) -> Value {
    loop {
        let message: Value = serde_json::from_str(peer.read().unwrap().to_text().unwrap()).unwrap();
        if message["event"] == "message" || message["event"] == "private" {
            return message;
        }
    }
}

// ---- Limits ----

/// Regression test: a text of 65,480 characters caused a Close with code 1009, and each reconnect resent it.
#[test]
fn a_text_over_the_limits_is_not_sent() {
    let browser = browser!();
    let server = start_unlimited(&["--max-text", "40000"]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    let rows = [
        ("x".repeat(65_480), "The message has 65,480 characters. The limit is 40,000."),
        ("\u{1f600}".repeat(20_000), "bytes long. The limit is 65,536."),
    ];
    for (text, why) in rows {
        alice.fill("Message", &text);
        alice.press_key("Enter", false);
        wait_for_log(&alice, why);
        assert_eq!(field(&alice, "Message"), text);
    }
    alice.fill("Message", "short");
    alice.press_key("Enter", false);
    assert_eq!(next_text(&mut bob).1, "short", "the page did not send the long texts");
}

/// If the server closes the connection because of a message, the page marks the message as not sent and does not
/// resend it.
#[test]
fn a_message_that_makes_the_server_close_is_marked_unsent() {
    let browser = browser!();
    for (code, meaning) in [
        (CloseCode::Invalid, "1007 (invalid UTF-8)"),
        (CloseCode::Policy, "1008 (policy violation)"),
        (CloseCode::Size, "1009 (message too big)"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = std::thread::spawn(move || {
            let mut first = accept(&listener);
            welcome(&mut first, "general");
            read_message(&mut first);
            first.close(Some(CloseFrame { code, reason: "no".into() })).unwrap();
            while first.read().is_ok() {}
            let mut second = accept(&listener);
            welcome(&mut second, "general");
            read_message(&mut second)
        });
        let alice = join_with(&browser, port, "alice", SKIP_WAITS);
        type_message(&alice, "too much");
        wait_for_log(&alice, "Reconnected to #general.");
        let remark = format!("Not sent. The server closed the connection with code {meaning}.");
        assert_eq!(alice.text("document.querySelector('.unsent .remark').textContent"), remark);
        type_message(&alice, "another");
        assert_eq!(peer.join().unwrap()["data"]["text"], "another", "the failed message is not resent");
        // The user can discard the failed message.
        alice.click("document.querySelector('.unsent .cancel')");
        alice.wait_for("document.querySelectorAll('.unsent').length <= 1");
    }
}

/// A connection that ends right after `welcome` does not reset the delay between reconnects (RFC 6455 §7.2.3).
#[test]
fn a_short_connection_does_not_reset_the_backoff() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = std::thread::spawn(move || {
        for _ in 0..6 {
            let mut peer = accept(&listener);
            welcome(&mut peer, "general");
            let _ = peer.close(Some(CloseFrame { code: CloseCode::Error, reason: "storage failed".into() }));
            while peer.read().is_ok() {}
        }
    });
    let alice = browser.open_with(&page(&format!("server={}&username=alice", ws(port))), SKIP_WAITS);
    alice.press_button("Connect");
    alice.wait_for("waits.length >= 6");
    assert_eq!(alice.eval("waits.slice(0, 6)"), json!([1800, 3600, 7200, 14400, 27000, 27000]));
    alice.eval("window.setTimeout = () => 0");
    peer.join().unwrap();
}

#[test]
fn a_counter_appears_near_the_limit() {
    let browser = browser!();
    let server = start_unlimited(&["--max-text", "1000"]);
    let alice = join(&browser, server.port(), "alice");
    for (length, shown) in [(799, ""), (800, "800 of 1,000 characters"), (1001, "1,001 of 1,000 characters")] {
        alice.fill("Message", &"é".repeat(length));
        assert_eq!(alice.text("document.querySelector('#counter').textContent"), shown);
    }
}

// ---- Commands ----

/// The page does not send a mistyped command such as `/mgs bob secret`: the whole room would see the secret.
#[test]
fn a_mistyped_command_is_not_sent() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    for typed in
        ["/mgs bob secret", "/msgbob secret", "/m bob secret", "/w bob secret", "/nickname a", "/", "/ msg bob secret"]
    {
        alice.fill("Message", typed);
        alice.press_key("Enter", false);
        let command = typed.split(' ').next().unwrap();
        wait_for_log(&alice, &format!("There is no command {command}. Type /help to see all commands."));
        wait_for_log(&alice, "Your text is still in the message box.");
        assert_eq!(field(&alice, "Message"), typed);
        alice.eval("document.querySelector('#rows').replaceChildren()");
    }
    for typed in [
        "/join",
        "/join #",
        "/nick",
        "/me",
        "/msg",
        "/msg bob",
        "/MSG \"bob\" ",
        "//msg bob secret",
        " /msg bob secret",
    ] {
        alice.fill("Message", typed);
        alice.press_key("Enter", false);
        wait_for_log(&alice, "Your text is still in the message box.");
        assert_eq!(field(&alice, "Message"), typed);
        alice.eval("document.querySelector('#rows').replaceChildren()");
    }
    for (typed, event, text) in [
        ("/MSG bob for bob", "private", "for bob"),
        ("/Msg @bob still for bob", "private", "still for bob"),
        ("/msg \"bob\" more", "private", "more"),
        ("//shrug at this", "message", "/shrug at this"),
        (" /shrug at that", "message", "/shrug at that"),
        ("/me waves", "message", "/me waves"),
        ("plain", "message", "plain"),
    ] {
        alice.fill("Message", typed);
        alice.press_key("Enter", false);
        assert_eq!(next_text(&mut bob), (event.to_owned(), text.to_owned()), "{typed:?}");
    }
    // The "Send as text" button sends the unknown command to the room as a message.
    alice.fill("Message", "/shrug");
    alice.press_key("Enter", false);
    alice.press_button("Send as text");
    assert_eq!(next_text(&mut bob).1, "/shrug");
    alice.wait_for("__field('Message').value === ''");
    type_message(&alice, "/HELP");
    wait_for_log(&alice, "/join ROOM switches to another room.");
}

#[test]
fn commands_change_the_room_and_the_name() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    type_message(&alice, "/JOIN #tea");
    wait_for_log(&alice, "You are now in #tea.");
    type_message(&alice, "/nick alicia");
    wait_for_members(&alice, &["alicia you"]);
    type_message(&alice, "/nick a\u{200b}b");
    wait_for_log(&alice, "Remove the invisible characters.");
    assert_eq!(
        alice.text("document.querySelector('#identity').textContent"),
        format!("alicia @ 127.0.0.1:{}", server.port())
    );
}

/// While a user edits the name, the form's button says what it does: "Back to the chat" or "Reconnect as alicia".
#[test]
fn the_name_can_be_edited() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    edit_connection(&alice);
    assert_eq!(alice.eval("__button('Connect')?.checkVisibility() ?? false"), false);
    alice.fill("Name", "alicia");
    alice.press_button("Back to the chat");
    alice.wait_for("__field('Message').checkVisibility()");
    edit_connection(&alice);
    assert_eq!(field(&alice, "Name"), "alice", "the edit is discarded");
    // "Back to the chat" discards the edited room name, so a later reconnect joins the old room.
    alice.fill("Room", "elsewhere");
    alice.press_button("Back to the chat");
    alice.fill("Message", "/nick alina");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "Welcome to #general, alina!");
    edit_connection(&alice);
    alice.fill("Name", "alicia");
    alice.press_button("Reconnect as alicia");
    wait_for_log(&alice, "Welcome to #general, alicia!");
    wait_for_members(&alice, &["alicia you"]);
}

#[test]
fn an_invisible_message_is_not_sent() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    for typed in ["\u{200b}", "\u{2060}\u{feff}", " \u{3000}\n", "\u{2800}", "\u{e0001}", "/msg bob \u{200b}"] {
        alice.fill("Message", typed);
        alice.press_key("Enter", false);
    }
    alice.fill("Message", "\u{2764}\u{fe0f}");
    alice.press_key("Enter", false);
    assert_eq!(next_text(&mut bob).1, "\u{2764}\u{fe0f}");
}

/// While an IME composes text, Enter does not send the message. In Safari, only `keyCode` 229 marks such an
/// Enter.
#[test]
fn enter_during_ime_composition_does_not_send() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    alice.type_text("日本");
    let press = |init: &str| {
        let event =
            format!("new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, cancelable: true, {init} }})");
        alice.eval(&format!("__field('Message').dispatchEvent({event})")) == false
    };
    assert!(!press("isComposing: true") && !press("keyCode: 229") && !press("shiftKey: true"));
    assert_eq!(field(&alice, "Message"), "日本");
    assert!(press("keyCode: 13"));
    wait_for_log(&alice, "日本");
}

/// A touch keyboard has no Shift+Enter, so Enter starts a new line, and only the Send button sends the message.
#[test]
fn enter_on_a_touch_keyboard_starts_a_new_line() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = browser.open(&page(&format!("server={}&username=alice", ws(server.port()))));
    alice.call("Emulation.setTouchEmulationEnabled", json!({"enabled": true}));
    alice.call("Emulation.setEmitTouchEventsForMouse", json!({"enabled": true, "configuration": "mobile"}));
    alice.set_screen(390, 844, "light");
    alice.wait_for("matchMedia('(pointer: coarse)').matches");
    alice.eval("__button('Connect').click()");
    wait_for_state(&alice, "joined");
    alice.eval("__field('Message').focus()");
    alice.type_text("one");
    alice.press_key("Enter", false);
    alice.type_text("two");
    alice.eval("__button('Send').click()");
    wait_until("both lines are one message", || messages(&alice) == json!([["alice", "one\ntwo"]]));
}

#[test]
fn the_up_arrow_brings_back_the_last_message() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    alice.press_key("ArrowUp", false);
    assert_eq!(field(&alice, "Message"), "");
    type_message(&alice, "first");
    wait_for_log(&alice, "first");
    alice.press_key("ArrowUp", false);
    assert_eq!(field(&alice, "Message"), "first");
    alice.fill("Message", "draft");
    alice.press_key("ArrowUp", false);
    assert_eq!(field(&alice, "Message"), "draft");
}

// ---- Recipients and drafts ----

/// The page keeps the recipient separate from the text, so a click on another name replaces only the recipient.
#[test]
fn a_selected_name_replaces_the_recipient() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let (mut bob, mut carol) = (joined_guest(&server, "general", "bob"), joined_guest(&server, "general", "carol"));
    wait_for_members(&alice, &["alice you", "bob", "carol"]);
    alice.fill("Message", "/msg bob it is a secret");
    alice.press_button("carol");
    assert_eq!((recipient(&alice), field(&alice, "Message")), ("To carol only".into(), "it is a secret".into()));
    alice.press_key("Enter", false);
    assert_eq!(next_text(&mut carol), ("private".into(), "it is a secret".into()));
    alice.press_key("Escape", false);
    assert_eq!(recipient(&alice), "");
    type_message(&alice, "for all");
    assert_eq!(next_text(&mut bob), ("message".into(), "for all".into()));
}

/// A click on a name starts a private message unless it ends a text selection: the user then wants to copy the name.
#[test]
fn a_selection_starts_no_private_message() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "hello");
    let name = "document.querySelector('.message .name')";
    alice.eval(&format!("getSelection().selectAllChildren({name}); {name}.click(); 0"));
    assert_eq!(recipient(&alice), "");
    alice.eval(&format!("getSelection().removeAllRanges(); {name}.click(); 0"));
    assert_eq!(recipient(&alice), "To bob only");
}

/// The page keeps a draft for each room, and shows only the draft of the current room.
#[test]
fn every_room_has_a_draft() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut _bob = joined_guest(&server, "tea", "bob");
    alice.type_text("for general");
    switch_room(&alice, "tea");
    wait_for_log(&alice, "You are now in #tea.");
    assert_eq!(field(&alice, "Message"), "");
    alice.press_button("bob");
    alice.type_text("for bob");
    alice.press_button("#general");
    wait_for_log(&alice, "You are now in #general.");
    assert_eq!((field(&alice, "Message"), recipient(&alice)), ("for general".into(), String::new()));
    // The page keeps drafts across a reload.
    alice.navigate(&page(""));
    alice.press_button("Connect");
    wait_for_log(&alice, "Welcome to #general, alice!");
    assert_eq!(field(&alice, "Message"), "for general");
    alice.press_button("#tea");
    wait_for_log(&alice, "You are now in #tea.");
    assert_eq!((field(&alice, "Message"), recipient(&alice)), ("for bob".into(), "To bob only".into()));
}

#[test]
fn a_waiting_message_can_be_canceled() {
    let browser = browser!();
    let mut server = start_unlimited(&[]);
    let port = server.port();
    let alice = join_with(&browser, port, "alice", DISABLE_TIMERS);
    server.signal("KILL");
    server.wait();
    wait_for_state(&alice, "waiting");
    type_message(&alice, "never mind");
    type_message(&alice, "send this");
    alice.click("document.querySelector('.unsent .cancel')");
    let _server = Server::start_at(&format!("127.0.0.1:{port}"), &[]);
    alice.press_button("Try now");
    wait_until("the page sends only the second message", || messages(&alice) == json!([["alice", "send this"]]));
}

// ---- Message rendering ----

/// Sends `text` as a guest. Returns a JavaScript expression for the row in which the page shows the text.
fn row_of(tab: &Tab, guest: &mut RawClient, text: &str) -> String {
    let count = tab.eval("document.querySelectorAll('.message').length").as_u64().unwrap();
    guest.send_text(&json!({"event": "message", "data": {"text": text}}).to_string());
    tab.wait_for(&format!("document.querySelectorAll('.message').length > {count}"));
    format!("[...document.querySelectorAll('.message')].at({count})")
}

#[test]
fn links_end_where_the_address_ends() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    let rows = [
        (
            "see https://en.wikipedia.invalid/wiki/Frame_(networking).",
            "https://en.wikipedia.invalid/wiki/Frame_(networking)",
        ),
        (
            "(https://en.wikipedia.invalid/wiki/Frame_(networking))",
            "https://en.wikipedia.invalid/wiki/Frame_(networking)",
        ),
        ("(see https://a.invalid/x)", "https://a.invalid/x"),
        ("[https://a.invalid/x[1]]", "https://a.invalid/x[1]"),
        ("見て https://a.invalid/x。はい", "https://a.invalid/x"),
        ("「https://a.invalid/x」", "https://a.invalid/x"),
        ("https://a.invalid/ウィキ、そして", "https://a.invalid/ウィキ"),
        ("“https://a.invalid/x”", "https://a.invalid/x"),
        ("https://a.invalid/x…", "https://a.invalid/x"),
        ("«https://a.invalid/x»", "https://a.invalid/x"),
        ("*https://a.invalid/x*", "https://a.invalid/x"),
        ("https://a.invalid/?q=a,b;c!d?e", "https://a.invalid/?q=a,b;c!d?e"),
        ("https://a.invalid/x?!", "https://a.invalid/x"),
    ];
    for (text, link) in rows {
        let row = row_of(&alice, &mut bob, text);
        assert_eq!(
            alice.eval(&format!("[...{row}.querySelectorAll('a')].map((a) => a.textContent)")),
            json!([link]),
            "{text}"
        );
        assert_eq!(alice.text(&format!("{row}.querySelector('.text').textContent")), text);
    }
}

#[test]
fn code_and_mentions_stand_out() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "al.ice");
    let mut bob = joined_guest(&server, "general", "bob");
    let rows = [
        ("use `cargo run` now", "code", json!(["cargo run"])),
        ("```rust\nfn main() {}\n  x\n```\nafter", "pre code", json!(["fn main() {}\n  x"])),
        ("an odd ` stays", "code", json!([])),
        ("<b>`<i>`</b>", "code", json!(["<i>"])),
        ("`https://a.invalid`", "a", json!([])),
        ("hello @al.ice!", ".mention", json!(["@al.ice"])),
        ("hello @AL.ICE", ".mention", json!(["@AL.ICE"])),
        ("hello @al-ice, @al.icex and x@al.ice", ".mention", json!([])),
        ("no code: @bob", ".mention", json!([])),
    ];
    for (text, selector, found) in rows {
        let row = row_of(&alice, &mut bob, text);
        assert_eq!(
            alice.eval(&format!("[...{row}.querySelectorAll('{selector}')].map((e) => e.textContent)")),
            found,
            "{text}"
        );
    }
    let mono = "getComputedStyle(document.querySelector('.text code')).fontFamily";
    assert!(alice.text(mono).contains("monospace"));
    assert_eq!(browser.page_errors(), [""; 0]);
}

/// The page clips stacked diacritics at the edge of the message's row, so that they do not cover other messages.
#[test]
fn message_text_stays_in_its_row() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut guests: Vec<RawClient> = ["\u{1f1eb}\u{1f1f7} rené", "\u{1f469}\u{1f3fd}x", "e\u{301}va"]
        .iter()
        .map(|name| guest(&server, "general", name))
        .collect();
    alice.wait_for("document.querySelectorAll('#members li').length === 4");
    // A member's initial is a whole grapheme cluster, such as a flag emoji, which has two code points.
    let initials = alice.eval("[...document.querySelectorAll('#members li')].map((li) => li.dataset.initial)");
    assert!(initials.as_array().unwrap().contains(&json!("\u{1f1eb}\u{1f1f7}")), "{initials}");
    assert!(
        initials.as_array().unwrap().contains(&json!("É")) || initials.as_array().unwrap().contains(&json!("E\u{301}")),
        "{initials}"
    );
    guests[0].read_event("welcome");
    let row = row_of(&alice, &mut guests[0], &format!("a{}", "\u{30d}".repeat(60)));
    assert_eq!(alice.text(&format!("getComputedStyle({row}).overflow")), "clip");
    // A right-to-left room name does not reorder the sentence that contains the name.
    switch_room(&alice, "חדר 3");
    alice.wait_for("[...document.querySelectorAll('.notice bdi')].some((bdi) => bdi.textContent === '#חדר 3')");
}
