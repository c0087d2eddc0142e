//! Tests the chat page as a person uses it: in headless Chromium, opened from disk, against the real server.
//!
//! The tests check what a person can see: text, fields and focus. The tests wait for conditions, never for a fixed
//! time. If the page itself waits, for example to reconnect, a test replaces the page's timers or random numbers
//! beforehand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::net::TcpListener;
use std::sync::mpsc;
use support::{Server, wait_until};
use tungstenite::Message;
use tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use visitor::*;

// ---- Chatting ----

#[test]
fn two_tabs_from_disk_chat_both_ways() {
    let browser = browser!();
    let server = Server::start(&[]);
    let (alice, bob) = (browser.open(&page("")), browser.open(&page("")));
    for (tab, name) in [(&alice, "alice"), (&bob, "bob")] {
        tab.fill("Server", &ws(server.port()));
        tab.fill("Name", name);
        tab.press_button("Connect");
        wait_for_state(tab, "joined");
    }
    wait_for_log(&alice, "bob joined");
    wait_for_log(&bob, "Welcome to #general, bob!");
    wait_for_log(&bob, "Also here: alice.");
    type_message(&bob, "hello from bob");
    wait_for_log(&alice, "hello from bob");
    alice.click("__field('Message')");
    let many_scripts = "Grüße, 日本語, שלום, 🦀👩🏽‍💻 e\u{301}";
    alice.type_text(many_scripts);
    alice.press_button("Send");
    let conversation = json!([["bob", "hello from bob"], ["alice", many_scripts]]);
    for tab in [&alice, &bob] {
        wait_until("both messages are shown", || messages(tab) == conversation);
        assert_eq!(tab.text("document.querySelector('h1').textContent"), "#general");
    }
    assert_eq!(bob.text("document.querySelector('.own .text').textContent"), "hello from bob");
    assert_eq!(bob.eval("document.querySelectorAll('.own').length"), 1);
    assert_eq!(words(&alice).trim(), "Connected as alice.");
    assert_eq!(field(&alice, "Message"), "", "the box is empty again");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn times_are_in_the_zone_of_the_reader() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page(&format!("server={}", ws(server.port()))));
    alice.call("Emulation.setTimezoneOverride", json!({"timezoneId": "Asia/Kathmandu"})); // 5 h 45 min ahead of UTC
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    type_message(&alice, "what time is it?");
    alice.wait_for("document.querySelector('.message time')");
    let minutes = "((t) => { const [h, m] = t.match(/\\d+/g).map(Number); return h * 60 + m; })";
    let ahead = alice.eval(&format!(
        "(() => {{ const time = document.querySelector('.message time');
           const shown = {minutes}(time.textContent), utc = {minutes}(time.dateTime.slice(11, 16));
           return (shown - utc + 1440) % 720; }})()"
    ));
    assert_eq!(ahead, 345, "the page shows local time, on a 12-hour or a 24-hour clock");
}

#[test]
fn the_member_list_counts_connections_per_name() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    wait_for_members(&alice, &["alice you"]);
    let bob = server.upgrade("/?token=token-bob&username=bob");
    let bob_again = server.upgrade("/?token=token-bob&username=bob");
    let alice_again = server.upgrade("/?token=token-alice&username=alice");
    wait_for_members(&alice, &["alice you ×2", "bob ×2"]);
    // Carol joins last. Her member list must show the same number of connections for each of the others as alice's
    // list.
    let carol = join(&browser, server.port(), "carol");
    wait_for_members(&carol, &["carol you", "alice ×2", "bob ×2"]);
    carol.press_button("Leave");
    wait_for_state(&carol, "idle");
    wait_for_members(&carol, &[]);
    drop(bob);
    wait_for_members(&alice, &["alice you ×2", "bob"]);
    drop(bob_again);
    wait_for_members(&alice, &["alice you ×2"]);
    drop(alice_again);
    wait_for_members(&alice, &["alice you"]);
}

#[test]
fn switching_rooms_updates_both_rooms() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let bob = join(&browser, server.port(), "bob");
    switch_room(&alice, "lobby");
    wait_for_log(&alice, "You are now in #lobby.");
    wait_for_log(&bob, "alice left");
    wait_for_members(&alice, &["alice you"]);
    wait_for_members(&bob, &["bob you"]);
    assert_eq!(alice.text("document.querySelector('h1').textContent"), "#lobby");
    type_message(&bob, "anybody here?");
    wait_for_log(&bob, "anybody here?");
    bob.fill("Room name", "lobby");
    bob.press_button("Join");
    wait_for_log(&bob, "You are now in #lobby.");
    wait_for_log(&bob, "Also here: alice.");
    wait_for_members(&alice, &["alice you", "bob"]);
    type_message(&bob, "there you are");
    wait_for_log(&alice, "there you are");
    assert_eq!(messages(&alice), json!([["bob", "there you are"]]), "alice receives no message of her old room");
}

#[test]
fn markup_and_control_characters_stay_text() {
    let browser = browser!();
    let server = Server::start(&[]);
    let name = "<img src=x onerror=alert(1)>";
    let text = "<img src=x onerror=\"pwned=1\"><script>pwned=1</script> javascript:alert(1)";
    let (rude, alice) = (browser.open(&page("")), join(&browser, server.port(), "alice"));
    rude.fill("Server", &ws(server.port()));
    rude.fill("Name", name);
    rude.fill("Room", name);
    rude.press_button("Connect");
    wait_for_state(&rude, "joined");
    assert_eq!(rude.text("document.querySelector('h1').textContent"), format!("#{name}"));
    switch_room(&rude, "general");
    wait_for_log(&alice, &format!("{name} joined"));
    wait_for_members(&alice, &["alice you", name]);
    type_message(&rude, text);
    for tab in [&rude, &alice] {
        wait_until("the text is shown unchanged", || messages(tab) == json!([[name, text]]));
        assert_eq!(tab.eval("document.querySelectorAll('img, .message script').length"), 0);
        assert_eq!(tab.eval("typeof pwned"), "undefined");
    }
    let mut raw = server.upgrade("/?token=dev-token&username=raw");
    raw.send_text(r#"{"event":"message","data":{"text":"a\u0000b\u001b[2Jc\u007fd"}}"#);
    wait_for_log(&alice, "a␀b␛[2Jc␡d");
    assert_eq!(browser.page_errors(), [""; 0]);
    // Even if the page assigned unescaped text to `innerHTML`, the browser would throw a `TypeError`, because the
    // page's content security policy requires Trusted Types.
    let forget = "try { document.createElement('p').innerHTML = '<b>'; 'taken' } catch (error) { error.name }";
    assert_eq!(alice.text(forget), "TypeError");
}

#[test]
fn a_text_over_the_limit_is_not_sent_and_is_kept() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let long = "é".repeat(501);
    type_message(&alice, &long);
    wait_for_log(&alice, "Not sent. The message has 501 characters. The limit is 500.");
    assert_eq!(field(&alice, "Message"), long);
    alice.fill("Message", "short");
    alice.press_key("Enter", false);
    wait_until("the next message is sent", || messages(&alice) == json!([["alice", "short"]]));
    assert_eq!(alice.text("document.body.dataset.state"), "joined");
}

#[test]
fn a_new_message_does_not_scroll_a_reader_away() {
    let browser = browser!();
    let server = Server::start(&["--rate-limit", "0"]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = guest(&server, "general", "bob");
    for n in 0..60 {
        bob.send_text(&json!({"event": "message", "data": {"text": format!("line {n}")}}).to_string());
    }
    let from_end = format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight");
    wait_for_log(&alice, "line 59");
    alice.wait_for(&format!("{from_end} < 2"));
    let wheel = json!({"type": "mouseWheel", "x": 600, "y": 200, "deltaX": 0, "deltaY": -800});
    alice.call("Input.dispatchMouseEvent", wheel);
    alice.wait_for(&format!("{from_end} > 400"));
    send_as_guest(&mut bob, &alice, "did you see?");
    assert!(alice.eval(&from_end).as_f64().unwrap() > 400.0, "the page has not scrolled");
    type_message(&alice, "yes");
    alice.wait_for(&format!("{from_end} < 2"));
}

// ---- The connection: lost, rejected, replaced ----

#[test]
fn the_page_reconnects_to_a_server_that_was_killed_and_restarted() {
    let browser = browser!();
    let mut server = Server::start(&[]);
    let port = server.port();
    let alice = join(&browser, port, "alice");
    alice.type_text("half a thought");
    server.signal("KILL");
    server.wait();
    wait_for_log(&alice, "The connection closed with code 1006 (connection lost without a Close frame).");
    assert_eq!(
        alice.text("document.querySelector('#members').textContent"),
        "alice you",
        "the member list is unchanged"
    );
    assert_eq!(
        alice.text("getComputedStyle(document.querySelector('#members')).fontStyle"),
        "italic",
        "marked as outdated"
    );
    wait_until("the page announces the next attempt", || words(&alice).contains("Trying again in"));
    let server = Server::start_at(&format!("127.0.0.1:{port}"), &[]);
    wait_for_log(&alice, "Reconnected to #general.");
    wait_for_members(&alice, &["alice you"]);
    assert_eq!(field(&alice, "Message"), "half a thought", "the draft is kept");
    alice.press_key("Enter", false);
    wait_until("the message is sent", || messages(&alice) == json!([["alice", "half a thought"]]));
    server.signal("TERM");
    wait_for_log(&alice, "The connection closed with code 1001 (going away)");
}

#[test]
fn the_page_reconnects_to_the_room_that_it_switched_to() {
    let browser = browser!();
    let server = Server::start(&[]);
    let port = server.port();
    let alice = join(&browser, port, "alice");
    switch_room(&alice, "lobby");
    wait_for_log(&alice, "You are now in #lobby.");
    drop(server);
    wait_for_state(&alice, "waiting");
    let _server = Server::start_at(&format!("127.0.0.1:{port}"), &[]);
    wait_for_log(&alice, "Reconnected to #lobby.");
}

#[test]
fn a_wrong_token_is_explained_and_not_retried() {
    let browser = browser!();
    let server = Server::start(&[]);
    let query = format!("server={}&username=alice&token=wrong", ws(server.port()));
    let alice = browser.open_with(&page(&query), COUNT_SOCKETS);
    alice.press_button("Connect");
    wait_for_state(&alice, "stopped");
    let words = words(&alice);
    assert!(words.starts_with("The token is wrong or missing. Check the token for typos."), "{words}");
    let tries = alice.eval("sockets");
    alice.eval("dispatchEvent(new Event('online')), document.dispatchEvent(new Event('visibilitychange'))");
    assert_eq!(alice.eval("sockets"), tries, "the page does not retry after it has stopped");
    alice.fill("Token", "token-alice");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "Welcome to #general, alice!");
}

/// If the server rejects a page because of its origin, the browser does not tell the page why the connection failed.
/// The page therefore names its origin as a possible cause.
#[test]
fn another_origin_is_explained() {
    let browser = browser!();
    let (server, other) = (Server::start(&[]), Server::start(&[]));
    let foreign = format!("http://127.0.0.1:{}", other.port());
    let tab = browser.open(&format!("{foreign}/?server={}&username=alice", ws(server.port())));
    tab.press_button("Connect");
    wait_for_state(&tab, "waiting");
    let cause = format!("The server may be rejecting pages from “{foreign}”.");
    assert!(words(&tab).starts_with(&format!("No connection. {cause}")), "{}", words(&tab));
}

/// The page checks the fields before it connects, and shows each error under its field.
#[test]
fn fields_are_checked_before_connecting() {
    let browser = browser!();
    let server = Server::start(&[]);
    let tab = browser.open_with(&page(&format!("server={}", ws(server.port()))), COUNT_SOCKETS);
    let rows = [
        ("Name", "x".repeat(33), "Use at most 32 characters."),
        ("Name", "é\u{1f3fd}".repeat(25), "Use at most 32 characters."),
        ("Name", "\u{1f600}".repeat(32), ""),
        ("Name", "a\u{200b}b".into(), "Remove the invisible characters."),
        ("Name", "\u{2800}".into(), "Remove the invisible characters."),
        ("Name", "\u{2764}\u{fe0f}".into(), ""),
        ("Name", "alice".into(), ""),
        ("Room", "x".repeat(65), "Use at most 64 characters."),
        ("Room", "a\u{202e}b".into(), "Remove the invisible characters."),
        ("Room", "#tea".into(), ""),
        ("Token", "two words".into(), "Remove the spaces from the token."),
        ("Token", "dev-token".into(), ""),
    ];
    for (label, value, error) in rows {
        tab.fill(label, &value);
        let field = format!("__field('{label}')");
        let shown = format!("document.getElementById({field}.getAttribute('aria-describedby')).innerText");
        assert_eq!(tab.text(&shown), error, "{label} {value:?}");
        assert_eq!(tab.text(&format!("{field}.ariaInvalid")), (!error.is_empty()).to_string());
        if !error.is_empty() {
            tab.press_button("Connect");
            assert_eq!(
                tab.eval(&format!("document.activeElement === {field}")),
                true,
                "the focus is on the invalid field"
            );
        }
    }
    assert_eq!(tab.eval("sockets"), 0);
    tab.press_button("Connect");
    wait_for_state(&tab, "joined");
    assert_eq!(
        tab.text("document.querySelector('h1').textContent"),
        "#tea",
        "the page ignores the # that the user typed"
    );
}

/// While the server is unreachable, the page retries forever, with backoff.
#[test]
fn the_page_retries_forever_with_backoff() {
    let browser = browser!();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = format!("{COUNT_SOCKETS};{SKIP_WAITS}");
    let alice = browser.open_with(&page(&format!("server={}", ws(unused))), &script);
    alice.press_button("Connect");
    // Wait for no more than 12 attempts: Chromium delays new connections after failures, so more would take too long.
    alice.wait_for("sockets >= 12");
    assert!(
        words(&alice).contains("Is it running? To start a server, use the command cargo run --release."),
        "{}",
        words(&alice)
    );
    // The backoff doubles from 2 s up to 30 s. The page multiplies each wait by a random number, here 0.9.
    let waits = [1800, 3600, 7200, 14400, 27000, 27000, 27000];
    assert_eq!(alice.eval("waits.slice(0, 7)"), json!(waits));
    assert_eq!(alice.eval("Math.max(...waits)"), 27000);
    alice.press_button("Cancel");
    wait_for_state(&alice, "idle");
    assert!(!words(&alice).contains("You left the chat"), "alice never joined: {}", words(&alice));
}

#[test]
fn a_network_or_a_tab_that_becomes_active_ends_the_wait() {
    let browser = browser!();
    let mut server = Server::start(&[]);
    let port = server.port();
    let alice = join_with(&browser, port, "alice", DISABLE_TIMERS);
    let listen = format!("127.0.0.1:{port}");
    for came_back in ["online", "visible"] {
        server.signal("KILL");
        server.wait();
        wait_for_state(&alice, "waiting");
        server = Server::start_at(&listen, &[]);
        let network =
            |offline: bool| json!({"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        if came_back == "online" {
            alice.call("Network.emulateNetworkConditions", network(true));
            alice.call("Network.emulateNetworkConditions", network(false));
        } else {
            alice.eval("document.dispatchEvent(new Event('visibilitychange'))");
        }
        wait_for_state(&alice, "joined");
    }
}

#[test]
fn a_dead_connection_is_noticed_when_the_tab_becomes_visible() {
    let browser = browser!();
    let server = Server::start(&[]);
    // The page's timeout for a `pong`, 10 s, expires at once. All other timers keep their delays.
    let impatient = "const later = setTimeout; window.setTimeout = (run, ms) => later(run, ms === 10000 ? 0 : ms);";
    let alice = join_with(&browser, server.port(), "alice", impatient);
    server.signal("STOP");
    alice.eval("document.dispatchEvent(new Event('visibilitychange'))");
    wait_for_log(&alice, "The connection closed with code 1006");
    server.signal("CONT");
    wait_for_log(&alice, "Reconnected to #general.");
}

/// The names of close codes follow RFC 6455 §7.4 and the IANA registry.
#[test]
fn a_close_code_has_a_name() {
    let browser = browser!();
    let tab = browser.open(&page(""));
    let names = tab.eval("[1000, 1010, 1014, 2999, 3000, 3999, 4000, 4999].map(Words.nameCloseCode)");
    let [library, application] = ["library or framework code", "application code"];
    let registered = ["normal closure", "extension missing", "bad gateway", "unknown code"];
    assert_eq!(names, json!([&registered[..], &[library, library, application, application]].concat()));
}

#[test]
fn close_reasons_that_a_retry_cannot_fix_stop_the_retries() {
    let browser = browser!();
    let cases = [
        ("username already in use", "Choose another name", "stopped"),
        ("replaced by a newer connection", "somewhere else", "stopped"),
        ("flooding", "Wait a moment", "stopped"),
        ("too slow to read", "Trying again in", "waiting"),
    ];
    for (reason, advice, state) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = page(&format!("server={}", ws(listener.local_addr().unwrap().port())));
        let tab = browser.open_with(&url, DISABLE_TIMERS);
        tab.press_button("Connect");
        let mut peer = accept(&listener);
        peer.close(Some(CloseFrame { code: CloseCode::Policy, reason: reason.into() })).unwrap();
        while peer.read().is_ok() {}
        wait_for_state(&tab, state);
        let shown = words(&tab);
        for expected in ["1008 (policy violation)", &format!("“{reason}”"), advice] {
            assert!(shown.contains(expected), "{expected:?} is missing: {shown}");
        }
    }
}

#[test]
fn late_messages_of_an_old_socket_are_ignored() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go, may_go) = mpsc::channel();
    let peer = std::thread::spawn(move || {
        let mut old = accept(&listener);
        welcome(&mut old, "old");
        let mut new = accept(&listener);
        welcome(&mut new, "new");
        send_message(&mut old, "too late");
        let flooding = CloseFrame { code: CloseCode::Policy, reason: "flooding".into() };
        old.close(Some(flooding)).unwrap();
        while old.read().is_ok() {}
        drop(old);
        may_go.recv().unwrap();
        send_message(&mut new, "still here");
        may_go.recv().unwrap();
    });
    let alice = join_with(&browser, port, "alice", COUNT_SOCKETS);
    wait_for_log(&alice, "Welcome to #old, alice!");
    edit_connection(&alice);
    alice.press_button("Reconnect");
    alice.wait_for("closes === 1");
    wait_for_log(&alice, "Welcome to #new, alice!");
    assert_eq!(alice.text("document.body.dataset.state"), "joined");
    go.send(()).unwrap();
    wait_for_log(&alice, "still here");
    assert_eq!(messages(&alice), json!([["bob", "still here"]]));
    go.send(()).unwrap();
    peer.join().unwrap();
}

#[test]
fn an_invalid_address_is_explained() {
    let browser = browser!();
    let tab = browser.open(&page("server=ftp://example.invalid"));
    for address in [None, Some("ws://"), Some("ws://["), Some("")] {
        if let Some(address) = address {
            tab.fill("Server", address);
        }
        tab.press_button("Connect");
        assert_eq!(tab.text("__field('Server').ariaInvalid"), "true", "{address:?}");
        let error = "document.getElementById(__field('Server').getAttribute('aria-describedby')).innerText";
        assert_eq!(tab.text(error), "Use an address like ws://127.0.0.1:3000.", "{address:?}");
        assert_eq!(tab.text("document.body.dataset.state"), "idle");
    }
}

#[test]
fn unknown_events_and_fields_are_ignored() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let alice = browser.open(&page(&format!("server={}", ws(listener.local_addr().unwrap().port()))));
    alice.press_button("Connect");
    let mut peer = accept(&listener);
    welcome(&mut peer, "general");
    let strange = [
        "",
        "no json",
        "null",
        "[]",
        "1",
        "{}",
        r#"{"event":"constructor"}"#,
        r#"{"event":"__proto__"}"#,
        r#"{"event":7,"data":[]}"#,
        r#"{"event":"typing","data":{"username":"bob"}}"#,
        r#"{"event":"pong","data":{}}"#,
    ];
    for text in strange {
        peer.send(Message::text(text)).unwrap();
    }
    peer.send(Message::binary(vec![0, 255])).unwrap();
    let more = r#"{"event":"message","data":{"username":"bob","text":"hello","mood":"fine"},"version":2}"#;
    peer.send(Message::text(more)).unwrap();
    wait_until("the known fields are shown", || messages(&alice) == json!([["bob", "hello"]]));
    assert_eq!(browser.page_errors(), [""; 0]);
}

// ---- The page's source ----

/// The content security policy contains the hashes of the page's scripts and styles. After a change, this test prints
/// the new hashes.
#[test]
fn the_policy_lists_the_scripts_and_styles() {
    let page = include_str!("../client.html");
    let elements = |name: &str| -> Vec<String> {
        let start = format!("\n<{name}");
        let parts = page.split(&start).skip(1).filter(|part| part.starts_with(['>', ' ']));
        let contents = parts.map(|part| {
            let (_, content) = part.split_once('>').unwrap();
            content.split_once(&format!("</{name}>")).unwrap().0
        });
        contents.map(|content| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(content)))).collect()
    };
    let (scripts, styles) = (elements("script"), elements("style"));
    assert_eq!((scripts.len(), styles.len()), (5, 2), "client.html has five scripts and two style sheets");
    let expected =
        format!("script-src\n    {};\n  style-src\n    {}\">", scripts.join("\n    "), styles.join("\n    "));
    assert!(page.contains(&expected), "the policy of client.html must end with:\n  {expected}");
    for forbidden in ["unsafe-inline", "unsafe-eval", " onclick=", " style=", "innerHTML ="] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

// ---- Fields ----

#[test]
fn a_first_visitor_presses_one_button() {
    let browser = browser!();
    let server = Server::start(&[]);
    let disk = browser.open(&page(""));
    assert_eq!(field(&disk, "Server"), "ws://127.0.0.1:3000");
    // If the page was loaded from a server and not from a file, the Server field contains the address of that server.
    let served = browser.open(&format!("http://127.0.0.1:{}/", server.port()));
    assert_eq!(field(&served, "Server"), ws(server.port()));
    for tab in [&disk, &served] {
        assert_eq!((field(tab, "Token"), field(tab, "Room")), ("dev-token".into(), "general".into()));
        assert_ne!(field(tab, "Name"), "");
    }
    served.press_button("Connect");
    wait_for_state(&served, "joined");
    type_message(&served, "served and sent");
    wait_for_log(&served, "served and sent");
    assert_eq!(browser.page_errors(), [""; 0]);
}

#[test]
fn the_query_string_fills_the_fields() {
    let browser = browser!();
    let tab = browser.open(&page("server=wss%3A%2F%2Fexample.invalid&username=Ren%C3%A9e+B&token=a%26b&room=%23tea"));
    let fields = ["Server", "Name", "Token", "Room"].map(|label| field(&tab, label));
    assert_eq!(fields, ["wss://example.invalid", "Renée B", "a&b", "#tea"]);
    tab.navigate(&page("user=bob"));
    assert_eq!(field(&tab, "Name"), "bob");
}

#[test]
fn the_fields_are_remembered() {
    let browser = browser!();
    let server = Server::start(&[]);
    let first = browser.open(&page(""));
    let values = [
        ("Server", ws(server.port())),
        ("Name", "alice".into()),
        ("Token", "token-alice".into()),
        ("Room", "tea".into()),
    ];
    for (label, value) in &values {
        first.fill(label, value);
    }
    first.press_button("Connect");
    wait_for_state(&first, "joined");
    let second = browser.open(&page(""));
    for (label, value) in &values {
        assert_eq!(field(&second, label), *value);
    }
    second.fill("Name", "bob");
    second.press_button("Connect");
    wait_for_state(&second, "joined");
    // After a reload, each tab still has the name that was last used in that tab.
    for (tab, name) in [(&first, "alice"), (&second, "bob")] {
        tab.navigate(&page(""));
        assert_eq!(field(tab, "Name"), name);
    }
    let elsewhere = browser.open(&page("server=ws://elsewhere.invalid"));
    assert_eq!(field(&elsewhere, "Token"), "", "the page keeps a token for one server only");
}

#[test]
fn an_invite_link_loses_its_token() {
    let browser = browser!();
    let server = Server::start(&[]);
    for base in [page(""), format!("http://127.0.0.1:{}/?", server.port())] {
        let query = format!("server={}&username=alice&token=token-alice&room=tea", ws(server.port()));
        let tab = browser.open(&(base + &query));
        for _ in 0..2 {
            assert_eq!(field(&tab, "Token"), "token-alice");
            let address = tab.text("location.href");
            assert!(!address.contains("token") && address.contains("room=tea"), "{address}");
            tab.navigate(&address); // a reload keeps the token
        }
    }
    assert_eq!(browser.page_errors(), [""; 0]);
}

/// Over TLS, the page sends the token as a subprotocol, not in the URL, because proxies log URLs.
#[test]
fn over_tls_the_token_is_a_subprotocol() {
    let browser = browser!();
    let stub = "window.sockets = [];
        window.WebSocket = class { constructor(...args) { sockets.push(args.map(String)); } close() {} };";
    let tab = browser.open_with(&page("server=wss://chat.invalid&username=alice&token=a%E2%82%AC%3Fb"), stub);
    tab.press_button("Connect");
    tab.wait_for("sockets.length > 0");
    let url = "wss://chat.invalid/?username=alice&room=general";
    assert_eq!(tab.eval("sockets[0]"), json!([url, "chat.events,bearer.YeKCrD9i"]));
}

#[test]
fn two_tabs_of_a_new_visitor_have_different_names() {
    let browser = browser!();
    let server = Server::start(&[]);
    let first = browser.open_with(&page(""), "Math.random = () => 0.1");
    first.fill("Server", &ws(server.port()));
    first.press_button("Connect");
    wait_for_state(&first, "joined");
    let second = browser.open_with(&page(""), "Math.random = () => 0.2");
    assert_eq!(field(&second, "Server"), ws(server.port()), "the typed address is remembered");
    assert_ne!(field(&second, "Name"), field(&first, "Name"));
}

#[test]
fn a_browser_that_denies_storage_can_chat() {
    let browser = browser!();
    let server = Server::start(&[]);
    let denied = "for (const name of ['localStorage', 'sessionStorage'])
        Object.defineProperty(window, name, { get() { throw new DOMException('denied', 'SecurityError'); } });";
    let alice = join_with(&browser, server.port(), "alice", denied);
    type_message(&alice, "nothing is kept");
    wait_for_log(&alice, "nothing is kept");
    assert_eq!(browser.page_errors(), [""; 0]);
}

// ---- Accessibility ----

#[test]
fn everything_works_with_the_keyboard_alone() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page("username=alice"));
    let focus_on = |what: &str| tab_to(&alice, what);
    focus_on("__field('Server')");
    alice.eval("document.activeElement.select()");
    alice.type_text(&ws(server.port()));
    focus_on("__button('Connect')");
    alice.press_key("Enter", false);
    wait_for_state(&alice, "joined");
    alice.wait_for("document.activeElement === __field('Message')");
    alice.type_text("two");
    alice.press_key("Enter", true);
    alice.type_text("lines");
    alice.press_key("Enter", false);
    wait_until("Shift and Enter start a new line", || messages(&alice) == json!([["alice", "two\nlines"]]));
    alice.type_text("by button");
    focus_on("__button('Send')");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "by button");
    focus_on(LOG); // the message log is focusable, so that the arrow keys can scroll it
    focus_on("__field('Room name')");
    alice.type_text("tea");
    focus_on("__button('Join')");
    alice.press_key("Enter", false);
    wait_for_log(&alice, "You are now in #");
    focus_on("__button('Leave')");
    alice.press_key("Enter", false);
    wait_for_state(&alice, "idle");
}

// ---- A script that replaces the WebSocket class ----

/// Counts the WebSockets that the page opens, and their `close` events.
const COUNT_SOCKETS: &str = "window.sockets = 0; window.closes = 0;
    window.WebSocket = class extends WebSocket {
        constructor(url) {
            super(url);
            window.sockets += 1;
            this.addEventListener('close', () => { window.closes += 1; });
        }
    };";
