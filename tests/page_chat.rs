//! Tests the chat page in a browser: history, broken connections, typing, private messages, unread messages and
//! rooms. A proxy (`support/proxy.rs`) breaks the connections. The tests wait for conditions, never for a fixed time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/proxy.rs"]
mod proxy;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use browser::Tab;
use proxy::Proxy;
use serde_json::{Value, json};
use std::net::TcpListener;
use support::{RawClient, Server, wait_until};
use tungstenite::Message;
use visitor::*;

/// Returns the texts of all messages that the page shows, in order, except unacknowledged ones.
fn texts(tab: &Tab) -> Vec<String> {
    strings(&tab.eval("[...document.querySelectorAll('.message .text')].map((text) => text.textContent)"))
}

/// Returns the text and the status (such as "Sending…") of each message that the server has not acknowledged.
fn unsent_messages(tab: &Tab) -> Value {
    let parts = "['.text', '.remark'].map((part) => row.querySelector(part).textContent)";
    tab.eval(&format!("[...document.querySelectorAll('.unsent')].map((row) => {parts})"))
}

fn notices(tab: &Tab) -> Vec<String> {
    strings(&tab.eval("[...document.querySelectorAll('.notice')].map((notice) => notice.textContent)"))
}

/// Waits until the page's log contains these consecutive rows. Each row is a notice or the text of a message.
fn wait_for_rows(tab: &Tab, expected: &[&str]) {
    let rows = "[...document.querySelectorAll('.message, .notice')]
        .map((row) => (row.querySelector('.text') ?? row).textContent)";
    let mut seen = Vec::new();
    wait_until(&format!("rows {expected:?}"), || {
        seen = strings(&tab.eval(rows));
        seen.windows(expected.len()).any(|some| some == expected)
    });
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn wait_for_texts(tab: &Tab, expected: &[String]) {
    let mut seen = Vec::new();
    wait_until(&format!("the texts are {expected:?}"), || {
        seen = texts(tab);
        seen == expected
    });
}

/// Waits until smooth scrolling has ended, because it would override the page's jump to the latest message.
fn wait_until_scrolling_stops(tab: &Tab) {
    let top = format!("{LOG}.scrollTop");
    wait_until("the log has stopped scrolling", || {
        tab.eval(&format!(
            "(async (top) => {{ for (let n = 0; n < 5; n++) await __frame(); return {top} === top }})({top})"
        )) == true
    });
}

/// Makes the proxy forward bytes again, and waits until the page has reconnected. Sends `online` events to the page, so
/// that it reconnects at once.
fn restore(tab: &Tab, proxy: &Proxy) {
    proxy.restore();
    wait_until("the page has reconnected", || {
        tab.eval("dispatchEvent(new Event('online'))");
        tab.text("document.body.dataset.state") == "joined"
    });
}

fn lose_connection(tab: &Tab, proxy: &Proxy) {
    proxy.cut();
    tab.wait_for("document.body.dataset.state === 'waiting'");
}

// ---- History ----

#[test]
fn history_is_above_the_welcome_and_new_messages_below_a_line() {
    let browser = browser!();
    let server = start(&[]);
    let mut bob = joined_guest(&server, "general", "bob");
    say(&mut bob, "before you came");
    let alice = join(&browser, server.port(), "alice");
    wait_for_rows(&alice, &["before you came", "Welcome to #general, alice!"]);
    type_message(&alice, "read that");
    wait_for_texts(&alice, &["before you came".into(), "read that".into()]);
    alice.navigate(&page(""));
    say(&mut bob, "while you were gone");
    alice.press_button("Connect");
    wait_for_rows(&alice, &["read that", "New messages", "while you were gone", "Welcome to #general, alice!"]);
    let all = ["before you came", "read that", "while you were gone"].map(String::from);
    wait_for_texts(&alice, &all);
    assert_eq!(alice.text("document.querySelector('.own .text').textContent"), "read that", "recognized by its nonce");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn a_message_from_a_namesake_is_not_shown_as_own() {
    let browser = browser!();
    let server = start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut other = joined_guest(&server, "general", "alice");
    send_as_guest(&mut other, &alice, "I am alice, too");
    assert_eq!(alice.eval("document.querySelectorAll('.own').length"), 0);
}

#[test]
fn a_line_separates_days() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let alice = browser.open(&page(&format!("server={}", ws(listener.local_addr().unwrap().port()))));
    alice.call("Emulation.setTimezoneOverride", json!({"timezoneId": "UTC"}));
    alice.press_button("Connect");
    let mut peer = accept(&listener);
    let times = ["2026-01-01T23:59:00.000Z", "2026-01-01T23:59:59.999Z", "2026-01-02T00:00:00.000Z"];
    let history: Vec<Value> = (1..)
        .zip(times)
        .map(|(id, time)| json!({"username": "bob", "text": format!("{id}"), "id": id, "time": time}))
        .collect();
    let data = json!({"message": "Welcome!", "members": [], "room": "general", "username": "alice", "epoch": "e",
        "last_id": 3, "resumed": false, "history": history});
    peer.send(Message::text(json!({"event": "welcome", "data": data}).to_string())).unwrap();
    wait_for_log(&alice, "Welcome!");
    let order = alice.eval(
        "[...document.querySelectorAll('.notice, .text')].slice(0, 5)
            .map((row) => row.textContent.match(/January \\d+|\\d+ January|^\\d$/)?.[0].replace(/\\D/g, ''))",
    );
    assert_eq!(order, json!(["1", "1", "2", "2", "3"]), "day, two messages, day, message");
}

// ---- Broken connections ----

#[test]
fn messages_written_offline_are_sent_in_order_within_the_rate_limit() {
    let browser = browser!();
    let server = start(&[]);
    let mut bob = joined_guest(&server, "general", "bob");
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    lose_connection(&alice, &proxy);
    let written: Vec<String> = (0..14).map(|n| format!("offline {n}")).collect(); // more than the rate limit's burst
    for text in &written {
        type_message(&alice, text);
    }
    let waiting: Vec<_> = written.iter().map(|text| json!([text, "Waiting for the connection."])).collect();
    assert_eq!(unsent_messages(&alice), json!(waiting));
    assert_eq!(texts(&alice), [""; 0], "the page shows no message as sent");
    alice.screenshot("offline-queue");
    restore(&alice, &proxy);
    wait_for_texts(&alice, &written);
    assert_eq!(unsent_messages(&alice), json!([]));
    assert!(!notices(&alice).iter().any(|notice| notice.contains("Slow down")), "within the rate limit");
    for text in &written {
        assert_eq!(bob.read_event("message")["text"], *text);
    }
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_number_of_waiting_messages_is_bounded() {
    let browser = browser!();
    let server = start(&[]);
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    lose_connection(&alice, &proxy);
    for n in 0..51 {
        type_message(&alice, &format!("{n}"));
    }
    wait_for_log(
        &alice,
        "Not sent. 50 messages are already waiting to be sent. Your text is still in the message box.",
    );
    assert_eq!(field(&alice, "Message"), "50");
    assert_eq!(unsent_messages(&alice).as_array().unwrap().len(), 50);
}

#[test]
fn before_the_first_connect_there_is_nothing_to_type_into() {
    let browser = browser!();
    let alice = browser.open(&page(""));
    for control in ["__field('Message')", "__field('Room name')", "__button('Leave')", "__button('Cancel')"] {
        assert_eq!(alice.eval(&format!("{control}.checkVisibility()")), false, "{control}");
    }
}

#[test]
fn a_connection_that_breaks_repeatedly_loses_and_repeats_nothing() {
    let browser = browser!();
    let server = start(&["--rate-limit", "0"]);
    let mut bob = joined_guest(&server, "general", "bob");
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    let mut received = Vec::new();
    for round in 0..6 {
        let mut both = vec![format!("bob {round}"), format!("alice {round}")];
        say(&mut bob, &both[0]);
        match round % 3 {
            // The server publishes alice's message, but its acknowledgement is lost. The page must resend the message
            // with the same nonce.
            0 => {
                wait_for_texts(&alice, &[received.clone(), vec![both[0].clone()]].concat());
                proxy.drop_responses();
                type_message(&alice, &both[1]);
                assert_eq!(bob.read_event("message")["text"], both[1]);
                assert_eq!(unsent_messages(&alice), json!([[both[1], "Sending…"]]));
                lose_connection(&alice, &proxy);
            }
            // The connection breaks before the page sends alice's message.
            1 => {
                lose_connection(&alice, &proxy);
                type_message(&alice, &both[1]);
            }
            // The page is disconnected while bob sends 20 messages.
            _ => {
                type_message(&alice, &both[1]);
                assert_eq!(bob.read_event("message")["text"], both[1]);
                lose_connection(&alice, &proxy);
                let more: Vec<String> = (0..20).map(|n| format!("meanwhile {round} {n}")).collect();
                more.iter().for_each(|text| say(&mut bob, text));
                both.extend(more);
            }
        }
        restore(&alice, &proxy);
        received.extend(both);
        wait_for_texts(&alice, &received);
        assert_eq!(unsent_messages(&alice), json!([]));
    }
    let sent: Vec<String> = received.iter().filter(|text| text.starts_with("alice")).cloned().collect();
    let own = alice.eval("[...document.querySelectorAll('.own .text')].map((text) => text.textContent)");
    assert_eq!(strings(&own), sent, "the page still recognizes alice's messages as her own");
    wait_for_log(&alice, "Reconnected to #general. 20 messages arrived while you were away.");
    // A new user receives the newest 50 messages of the history, which must match those on alice's page.
    let carol = join(&browser, server.port(), "carol");
    wait_for_texts(&carol, &received[received.len() - 50..]);
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn a_gap_longer_than_the_history_has_a_notice() {
    let browser = browser!();
    let server = start(&["--history", "3"]);
    let mut bob = joined_guest(&server, "general", "bob");
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    send_as_guest(&mut bob, &alice, "0");
    lose_connection(&alice, &proxy);
    for n in 1..=5 {
        say(&mut bob, &format!("{n}"));
    }
    restore(&alice, &proxy);
    wait_for_log(&alice, "You missed more messages than the server keeps, so some are not shown.");
    wait_for_texts(&alice, &["0", "3", "4", "5"].map(String::from));
}

#[test]
fn a_history_reset_shows_a_notice() {
    let browser = browser!();
    let mut server = start(&[]);
    let port = server.port();
    let alice = join(&browser, port, "alice");
    type_message(&alice, "in the old life");
    wait_for_texts(&alice, &["in the old life".into()]);
    server.signal("STOP");
    type_message(&alice, "into the void");
    type_message(&alice, "not even sent");
    server.signal("KILL");
    server.wait();
    wait_for_state(&alice, "waiting");
    let server = Server::start_at(&format!("127.0.0.1:{port}"), &[]);
    wait_until("the page has reconnected", || {
        alice.eval("dispatchEvent(new Event('online'))");
        alice.text("document.body.dataset.state") == "joined"
    });
    wait_for_log(&alice, "Reconnected to #general. The room’s history was reset, so some messages may be missing.");
    wait_for_texts(&alice, &["in the old life", "not even sent"].map(String::from));
    let remark =
        "The connection was lost before the server confirmed this message. The message may still have arrived.";
    assert_eq!(unsent_messages(&alice), json!([["into the void", remark]]));
    alice.screenshot("doubtful");
    alice.click("document.querySelector('.unsent .edit')");
    assert_eq!(field(&alice, "Message"), "into the void");
    alice.press_key("Enter", false);
    wait_for_texts(&alice, &["in the old life", "not even sent", "into the void"].map(String::from));
    assert_eq!(unsent_messages(&alice), json!([]));
    drop(server);
}

#[test]
fn messages_over_the_rate_limit_are_sent_later() {
    let browser = browser!();
    let server = start(&["--rate-limit", "1"]);
    let alice = join(&browser, server.port(), "alice");
    let written: Vec<String> = (0..5).map(|n| format!("word {n}")).collect();
    for text in &written {
        type_message(&alice, text);
    }
    wait_for_texts(&alice, &written);
    assert_eq!(unsent_messages(&alice), json!([]));
}

#[test]
fn a_failed_message_shows_its_reason_and_can_be_edited() {
    let browser = browser!();
    let server = start(&[]);
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    lose_connection(&alice, &proxy);
    type_message(&alice, "/msg nobody is it you?");
    type_message(&alice, "short");
    alice.type_text("draft");
    restore(&alice, &proxy);
    wait_for_texts(&alice, &["short".into()]);
    assert_eq!(
        unsent_messages(&alice),
        json!([["is it you?", "Not sent. The server reported: “No such user: nobody”."]])
    );
    alice.screenshot("failed");
    assert_eq!(field(&alice, "Message"), "draft");
    alice.click("document.querySelector('.unsent .edit')");
    assert_eq!((field(&alice, "Message"), recipient(&alice)), ("is it you?\ndraft".into(), "To nobody only".into()));
    assert_eq!(unsent_messages(&alice), json!([]));
}

#[test]
fn a_message_is_never_sent_to_another_server() {
    let browser = browser!();
    let (server, other) = (start(&[]), start(&[]));
    let mut bob = joined_guest(&other, "general", "bob");
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    lose_connection(&alice, &proxy);
    type_message(&alice, "for this server alone");
    edit_connection(&alice);
    alice.fill("Server", &ws(other.port()));
    alice.press_button("Cancel");
    alice.press_button("Connect");
    wait_for_log(&alice, "Welcome to #general, alice!");
    let remark = "Not sent: this message was written for another server or under another name.";
    assert_eq!(unsent_messages(&alice), json!([["for this server alone", remark]]));
    type_message(&alice, "for everybody");
    assert_eq!(bob.read_event("message")["text"], "for everybody");
}

// ---- Members ----

#[test]
fn many_joins_at_once_are_one_line() {
    let browser = browser!();
    let server = start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let crowd: Vec<RawClient> = (0..25).map(|n| joined_guest(&server, "general", &format!("guest {n}"))).collect();
    wait_for_log(&alice, "guest 0, guest 1, guest 24 and 22 others joined");
    drop(crowd);
    wait_for_members(&alice, &["alice you"]);
    let crowd = notices(&alice).pop().unwrap();
    assert!(crowd.matches("guest ").count() == 3 && crowd.ends_with(" and 22 others joined and left"), "{crowd}");
    assert_eq!(notices(&alice).len(), 3, "the welcome, the members, and the crowd: {:?}", notices(&alice));
    let mut bob = joined_guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "what a crowd");
    drop(bob);
    wait_for_log(&alice, "bob left");
    assert_eq!(notices(&alice).len(), 4, "after a message there is a new line");
}

#[test]
fn typing_is_shown_except_for_commands() {
    let browser = browser!();
    let server = start(&[]);
    // Stop the page's clock, so that the page sends only one typing event.
    let alice = join_with(&browser, server.port(), "alice", "performance.now = () => 0;");
    let mut bob = joined_guest(&server, "general", "bob");
    let typing = "document.querySelector('#typing').textContent";
    bob.send_text(r#"{"event":"typing"}"#);
    alice.wait_for(&format!("{typing} === 'bob is typing…'"));
    alice.wait_for(&format!("{typing} === ''")); // the typing indicator expires
    bob.send_text(r#"{"event":"typing"}"#);
    alice.wait_for(&format!("{typing} === 'bob is typing…'"));
    send_as_guest(&mut bob, &alice, "there");
    assert_eq!(alice.text(typing), "", "a user that has sent a message is not typing");
    alice.type_text("/msg carol psst");
    alice.fill("Message", "aloud");
    assert_eq!(bob.read_event("typing"), json!({"username": "alice"}));
    alice.type_text(" and"); // too soon for another typing event
    alice.press_key("Enter", false);
    let mut next = bob.read_json();
    while next["event"] == "joined" {
        next = bob.read_json();
    }
    assert_eq!(next["data"]["text"], "aloud and", "{next}");
}

#[test]
fn a_private_message_looks_private_and_reaches_one_user() {
    let browser = browser!();
    let server = start(&[]);
    let (alice, bob) = (join(&browser, server.port(), "alice"), join(&browser, server.port(), "bob smith"));
    let mut carol = joined_guest(&server, "general", "carol");
    wait_for_members(&alice, &["alice you", "bob smith", "carol"]);
    alice.type_text("half a thought");
    for name in ["bob smith", "carol", "bob smith"] {
        alice.press_button(name);
        assert_eq!(recipient(&alice), format!("To {name} only"), "a press replaces the recipient");
        assert_eq!(field(&alice, "Message"), "half a thought");
    }
    assert_eq!(alice.eval("__button('Send privately').checkVisibility()"), true);
    alice.press_key("Enter", false);
    let remarks = |tab: &Tab| tab.eval("[...document.querySelectorAll('.private .remark')].map((r) => r.textContent)");
    for (tab, remark) in [(&alice, "privately to bob smith"), (&bob, "privately to you")] {
        wait_for_texts(tab, &["half a thought".into()]);
        assert_eq!(remarks(tab), json!([remark]));
    }
    bob.click("document.querySelector('.message .name')");
    assert_eq!(recipient(&bob), "To alice only");
    bob.type_text("and the other half");
    bob.press_key("Enter", false);
    wait_for_log(&alice, "and the other half");
    alice.screenshot("private");
    assert_eq!(recipient(&alice), "To bob smith only", "until the user chooses the room again");
    alice.press_button("×");
    assert_eq!(recipient(&alice), "");
    type_message(&alice, "hello all");
    assert_eq!(carol.read_event("message")["text"], "hello all", "carol received no private message");
    for incomplete in ["/msg", "/msg carol", "/msg \"bob smith\""] {
        alice.fill("Message", incomplete);
        alice.press_key("Enter", false);
        wait_for_log(&alice, "Not sent. Type a name and a message after /msg. Your text is still in the message box.");
        assert_eq!(field(&alice, "Message"), incomplete);
    }
    alice.fill("Message", "");
    type_message(&alice, "/msg nobody hello");
    wait_for_log(&alice, "Not sent. The server reported: “No such user: nobody”.");
    assert_eq!((field(&alice, "Message"), recipient(&alice)), ("hello".into(), "To nobody only".into()));
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn help_is_shown_by_the_page() {
    let browser = browser!();
    let server = start(&[]);
    let alice = join(&browser, server.port(), "alice");
    type_message(&alice, "/help");
    wait_for_log(&alice, "/msg NAME TEXT sends TEXT to NAME only.");
    assert_eq!(field(&alice, "Message"), "");
}

// ---- Messages ----

#[test]
fn only_web_addresses_become_links() {
    let browser = browser!();
    let server = start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    let text = "see https://example.invalid/a?b=c#d, (HTTP://example.invalid/x). javascript:alert(1) data:text/html,x \
                ftp://example.invalid http:// https://[ https://\u{202e}live";
    send_as_guest(&mut bob, &alice, text);
    wait_for_texts(&alice, &[text.into()]);
    let links = alice.eval(
        "[...document.querySelectorAll('.text a')].map((a) => [a.textContent, a.protocol, a.target, a.rel].join(' '))",
    );
    let about = "_blank noopener noreferrer";
    assert_eq!(
        links,
        json!([
            format!("https://example.invalid/a?b=c#d https: {about}"),
            format!("HTTP://example.invalid/x http: {about}")
        ])
    );
}

#[test]
fn unread_messages_are_counted_and_a_button_jumps_to_them() {
    let browser = browser!();
    let server = start(&["--rate-limit", "0"]);
    let looks = "let looks = true; Object.defineProperty(document, 'visibilityState',
            { get: () => looks ? 'visible' : 'hidden' }); document.hasFocus = () => looks;
        window.look = (does) => { looks = does; document.dispatchEvent(new Event('visibilitychange')); };";
    let alice = join_with(&browser, server.port(), "alice", looks);
    let mut bob = joined_guest(&server, "general", "bob");
    for n in 0..60 {
        say(&mut bob, &format!("line {n}"));
    }
    wait_for_log(&alice, "line 59");
    assert_eq!(alice.text("document.title"), "#general · wirechat");
    alice.eval("look(false)");
    send_as_guest(&mut bob, &alice, "while away");
    send_as_guest(&mut bob, &alice, "and more");
    alice.wait_for("document.title === '(2) #general · wirechat'");
    alice.eval("look(true)");
    assert_eq!(alice.text("document.title"), "#general · wirechat");
    wait_for_rows(&alice, &["line 59", "New messages", "while away", "and more"]);
    let from_end = format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight");
    alice.wait_for(&format!("{from_end} < 2"));
    let wheel = json!({"type": "mouseWheel", "x": 600, "y": 200, "deltaX": 0, "deltaY": -800});
    alice.call("Input.dispatchMouseEvent", wheel);
    alice.wait_for(&format!("{from_end} > 400 && __button('Jump to latest')?.hidden === false"));
    wait_until_scrolling_stops(&alice);
    send_as_guest(&mut bob, &alice, "further down");
    alice.wait_for("document.title === '(1) #general · wirechat'");
    assert!(alice.eval(&from_end).as_f64().unwrap() > 400.0, "the page has not scrolled");
    alice.screenshot("scrolled-up");
    alice.press_button("Jump to latest (1 new)");
    alice.wait_for(&format!("{from_end} < 2 && document.title === '#general · wirechat'"));
    wait_for_rows(&alice, &["and more", "New messages", "further down"]);
    type_message(&alice, "seen");
    alice.wait_for("document.querySelectorAll('.new').length === 0"); // sending a message marks all messages as read
}

#[test]
fn thousands_of_messages_leave_the_page_small() {
    let browser = browser!();
    let server = start(&["--rate-limit", "0"]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    for n in 0..5000 {
        bob.send_text(&json!({"event": "message", "data": {"text": format!("line {n}")}}).to_string());
        bob.read_event("message");
    }
    wait_for_log(&alice, "line 4999");
    assert_eq!(alice.eval("document.querySelectorAll('#rows > *').length"), 1500);
    let from_end = format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight");
    alice.wait_for(&format!("{from_end} < 2"));
    type_message(&alice, "still here");
    wait_for_log(&alice, "still here");
    assert_eq!(browser.page_errors(), [""; 0]);
}

// ---- Rooms ----

#[test]
fn rooms_are_remembered_with_their_messages() {
    let browser = browser!();
    let server = start(&[]);
    let mut bob = joined_guest(&server, "general", "bob");
    let alice = join(&browser, server.port(), "alice");
    let rooms = "[...document.querySelectorAll('nav button')].map((b) => [b.textContent, b.ariaCurrent])";
    type_message(&alice, "in general");
    wait_for_texts(&alice, &["in general".into()]);
    switch_room(&alice, "tea");
    wait_for_log(&alice, "You are now in #tea.");
    type_message(&alice, "in tea");
    wait_for_texts(&alice, &["in tea".into()]);
    say(&mut bob, "in general, too");
    assert_eq!(alice.eval(rooms), json!([["#general", null], ["#tea", "true"]]));
    alice.press_button("#general");
    wait_for_texts(&alice, &["in general", "in general, too"].map(String::from));
    wait_for_log(&alice, "You are now in #general. 1 message arrived while you were away.");
    alice.press_button("#tea");
    wait_for_log(&alice, "You are now in #tea. There are no new messages.");
    wait_for_texts(&alice, &["in tea".into()]);
    alice.navigate(&page(""));
    alice.press_button("Connect");
    wait_for_log(&alice, "Welcome to #tea, alice!");
    assert_eq!(alice.eval(rooms), json!([["#general", null], ["#tea", "true"]]));
    wait_for_texts(&alice, &["in tea".into()]);
}

#[test]
fn a_message_waits_for_the_room_that_it_was_written_in() {
    let browser = browser!();
    let server = start(&[]);
    let (mut bob, mut carol) = (joined_guest(&server, "general", "bob"), joined_guest(&server, "tea", "carol"));
    let proxy = Proxy::to(server.addr());
    let alice = join(&browser, proxy.port(), "alice");
    lose_connection(&alice, &proxy);
    type_message(&alice, "for general");
    // Switch rooms before restoring the connection: otherwise, the page might reconnect to the old room first.
    switch_room(&alice, "tea");
    proxy.restore();
    wait_for_log(&alice, "Welcome to #tea, alice!");
    assert_eq!(unsent_messages(&alice), json!([["for general", "Waiting until you are in #general."]]));
    type_message(&alice, "for tea");
    assert_eq!(carol.read_event("message")["text"], "for tea");
    alice.press_button("#general");
    assert_eq!(bob.read_event("message")["text"], "for general");
    wait_for_texts(&alice, &["for general".into()]);
    // Type more messages than the rate limit allows at once, and switch rooms before the page has sent all of them.
    let written: Vec<String> = (0..10).map(|n| format!("general {n}")).collect();
    for text in &written {
        type_message(&alice, text);
    }
    alice.press_button("#tea");
    wait_for_log(&alice, "You are now in #tea.");
    let waiting = unsent_messages(&alice);
    assert!(waiting.as_array().unwrap().iter().all(|row| row[1] == "Waiting until you are in #general."), "{waiting}");
    wait_for_texts(&alice, &["for tea".into()]);
    switch_room(&alice, &"x".repeat(65));
    wait_for_log(&alice, "is not a valid room name. Use at most 64 characters.");
    type_message(&alice, "still in tea");
    assert_eq!(carol.read_event("message")["text"], "still in tea", "#tea gets no message for #general");
    alice.press_button("#general");
    for text in &written {
        assert_eq!(bob.read_event("message")["text"], *text);
    }
}

#[test]
fn a_room_switch_over_the_rate_limit_is_delayed() {
    let browser = browser!();
    let server = start(&["--rate-limit", "0.5"]);
    let alice = join(&browser, server.port(), "alice");
    for room in ["tea", "coffee"] {
        switch_room(&alice, room);
    }
    wait_for_log(&alice, "You are now in #coffee.");
}

// ---- Accessibility ----

#[test]
fn members_rooms_and_the_latest_message_are_reached_by_keyboard() {
    let browser = browser!();
    let server = start(&["--rate-limit", "0"]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "hello");
    wait_for_members(&alice, &["alice you", "bob"]);
    press(&alice, "__button('bob')");
    alice.wait_for("document.activeElement === __field('Message')");
    alice.type_text("psst");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "privately to bob");
    tab_to(&alice, "__field('Room name')");
    alice.type_text("tea");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "You are now in #tea.");
    press(&alice, "__button('#general')");
    wait_for_log(&alice, "You are now in #general.");
    assert_eq!(alice.text("document.activeElement.textContent"), "#general", "the focus stays in the switcher");
    for n in 0..60 {
        say(&mut bob, &format!("line {n}"));
    }
    wait_for_log(&alice, "line 59");
    tab_to(&alice, LOG);
    alice.press_key("PageUp", false);
    alice.wait_for("__button('Jump to latest')?.hidden === false");
    wait_until_scrolling_stops(&alice);
    press(&alice, "__button('Jump to latest')");
    alice.wait_for(&format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight < 2"));
    assert_eq!(alice.eval(&format!("document.activeElement === {LOG}")), true);
}

fn press(tab: &Tab, what: &str) {
    tab_to(tab, what);
    tab.press_key("Enter", false);
}
