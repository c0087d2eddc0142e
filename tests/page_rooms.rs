//! Tests the page: older messages, notifications, links to a room, the list of people, reconnecting, and the layout.
//! The tests wait for conditions, never for a fixed time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use browser::Tab;
use serde_json::{Value, json};
use support::{RawClient, Server, wait_until};
use tungstenite::{Message, WebSocket};
use visitor::*;

fn open_connected_tab<'a>(browser: &'a browser::Browser, script: &str) -> (Tab<'a>, WebSocket<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = page(&format!("server={}&username=alice", ws(listener.local_addr().unwrap().port())));
    let tab = browser.open_with(&url, script);
    tab.press_button("Connect");
    let peer = accept(&listener);
    (tab, peer)
}

fn send(peer: &mut WebSocket<TcpStream>, event: &str, data: Value) {
    peer.send(Message::text(json!({"event": event, "data": data}).to_string())).unwrap();
}

fn texts(tab: &Tab) -> Value {
    tab.eval("[...document.querySelectorAll('.message .text')].map((text) => text.textContent)")
}

// ---- Messages ----

/// Scrolling up loads older messages without moving the messages that the visitor is reading.
#[test]
fn older_messages_are_loaded_at_the_top() {
    let browser = browser!();
    // With a small outbox, the `welcome` event contains only the newest messages.
    let server = start_unlimited(&["--history", "500", "--max-outbox", "12000"]);
    let mut bob = joined_guest(&server, "general", "bob");
    (1..=180).for_each(|n| say(&mut bob, &format!("line {n}")));
    let alice = join(&browser, server.port(), "alice");
    wait_for_log(&alice, "line 180");
    let count = || alice.eval("document.querySelectorAll('.message').length").as_u64().unwrap();
    let mut before = count();
    assert!(before < 100, "{before}");
    while before < 180 {
        let (first, top) = ("[...document.querySelectorAll('.message')].at(0)", "getBoundingClientRect().top");
        alice.eval(&format!("{LOG}.scrollTop = 150; window.first = {first}; 0"));
        alice.wait_for(&format!("document.querySelectorAll('.message').length > {before}"));
        alice.eval("__frame().then(__frame)");
        let moved = alice
            .eval(&format!("Math.abs(first.{top} - {LOG}.{top}) < 1000 && first.isConnected && {LOG}.scrollTop > 500"));
        assert_eq!(moved, true, "the page still shows what it showed before");
        before = count();
    }
    let all: Vec<String> = (1..=180).map(|n| format!("line {n}")).collect();
    assert_eq!(texts(&alice), json!(all), "each once and in order");
    alice.eval(&format!("{LOG}.scrollTop = 0"));
    say(&mut bob, "and now");
    wait_for_log(&alice, "and now");
    assert_eq!(alice.eval("document.querySelectorAll('.message').length"), 181, "there is nothing more to load");
    assert_eq!(browser.page_errors(), [""; 0]);
}

/// One author's consecutive messages share a header for five minutes. The oldest row on the page always has a header.
#[test]
fn consecutive_messages_share_a_header() {
    let browser = browser!();
    let (alice, mut peer) = open_connected_tab(&browser, "");
    let message = |n: u64, user: &str, minute: u64| {
        let time = format!("2026-01-01T12:{minute:02}:00.000Z");
        json!({"username": user, "text": format!("line {n}"), "id": n, "time": time})
    };
    let history: Vec<Value> =
        [("bob", 0), ("bob", 1), ("bob", 4), ("bob", 5), ("bob", 9), ("bob", 20), ("carol", 20), ("bob", 20)]
            .iter()
            .zip(1..)
            .map(|((user, minute), n)| message(n, user, *minute))
            .collect();
    let data = json!({"message": "Welcome!", "members": [], "room": "general", "username": "alice", "epoch": "e",
        "last_id": 8, "resumed": false, "history": history});
    send(&mut peer, "welcome", data);
    wait_for_log(&alice, "line 8");
    let headers = "[...document.querySelectorAll('.message')].map((row) => !row.classList.contains('follows'))";
    assert_eq!(alice.eval(headers), json!([true, false, false, true, false, true, true, true]));
    for id in 9..1700 {
        send(&mut peer, "message", message(id, "bob", 20));
    }
    wait_for_log(&alice, "line 1699");
    assert_eq!(alice.eval("document.querySelector('.message').classList.contains('follows')"), false);
    assert_eq!(alice.eval("document.querySelectorAll('#rows > *').length"), 1500);
}

/// Messages count as read only in a focused window: a browser may report a window as visible while another covers it.
#[test]
fn messages_in_an_unfocused_window_are_unread() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let focus = "window.focused = true; document.hasFocus = () => focused;";
    let alice = join_with(&browser, server.port(), "alice", focus);
    let mut bob = joined_guest(&server, "general", "bob");
    alice.eval("window.focused = false");
    send_as_guest(&mut bob, &alice, "unseen");
    alice.wait_for("document.title === '(1) #general · wirechat'");
    alice.wait_for("document.querySelector('[aria-current] .badge').textContent === '1'");
    alice.eval("window.focused = true; dispatchEvent(new Event('focus')); 0");
    alice.wait_for("document.title === '#general · wirechat'");
    assert_eq!(alice.text("document.querySelector('[aria-current] .badge').textContent"), "");
}

/// The page notifies only about private messages and mentions, and only if the visitor has enabled notifications.
#[test]
fn notifications_are_opt_in() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let stub = "window.shown = []; window.focused = true; document.hasFocus = () => focused;
        window.Notification = class { constructor(title, { body, tag }) { shown.push([title, body, tag]); }
            static permission = 'default';
            static requestPermission() { Notification.permission = 'granted'; return Promise.resolve('granted'); } };";
    let alice = join_with(&browser, server.port(), "alice", stub);
    let mut bob = joined_guest(&server, "general", "bob");
    let private = r#"{"event":"private","data":{"to":"alice","text":"psst"}}"#;
    alice.eval("window.focused = false");
    send_as_guest(&mut bob, &alice, "@alice, are you there?");
    assert_eq!(alice.eval("shown"), json!([]), "alice has not enabled notifications");
    alice.press_button("Notify me");
    alice.wait_for("__button('Notify me').ariaPressed === 'true'");
    send_as_guest(&mut bob, &alice, "just talk");
    send_as_guest(&mut bob, &alice, "@alice!");
    bob.send_text(private);
    wait_for_log(&alice, "psst");
    let expected = json!([
        ["bob mentioned you in #general", "@alice!", "wirechat"],
        ["bob sent you a private message", "psst", "wirechat"]
    ]);
    assert_eq!(alice.eval("shown"), expected);
    alice.eval("window.focused = true; 0");
    bob.send_text(&private.replace("psst", "again"));
    wait_for_log(&alice, "again");
    alice.press_button("Notify me");
    alice.eval("window.focused = false; 0");
    send_as_guest(&mut bob, &alice, "@alice?");
    assert_eq!(alice.eval("shown"), expected);
}

#[test]
fn a_link_to_the_room_has_no_token() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let copy = "Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (text) => { window.copied = text; } } });";
    let alice = join_with(&browser, server.port(), "alice", copy);
    switch_room(&alice, "tea & cake");
    wait_for_log(&alice, "You are now in #tea & cake.");
    alice.press_button("Copy link to this room");
    wait_for_log(&alice, "The link to this room is copied.");
    let link = alice.text("copied");
    assert!(!link.contains("token"), "{link}");
    let carol = browser.open(&link);
    assert_eq!((field(&carol, "Room"), field(&carol, "Server")), ("tea & cake".into(), ws(server.port())));
}

// ---- People ----

/// The page updates the list of people in place, so a name keeps the focus while other users join and leave.
#[test]
fn the_list_of_people_keeps_the_focus() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let alice = join(&browser, server.port(), "alice");
    let _mike = joined_guest(&server, "general", "mike");
    wait_for_members(&alice, &["alice you", "mike"]);
    alice.eval("__button('mike').focus()");
    let others: Vec<RawClient> = ["bob", "zoe", "carol"].map(|name| joined_guest(&server, "general", name)).into();
    wait_for_members(&alice, &["alice you", "bob", "carol", "mike", "zoe"]);
    drop(others);
    wait_for_members(&alice, &["alice you", "mike"]);
    assert_eq!(alice.text("document.activeElement.textContent"), "mike");
}

/// The member list of a large room shows only 100 people, so even thousands of joins barely change the list. A search
/// finds the other members.
#[test]
fn the_member_list_of_a_large_room_stays_small() {
    let browser = browser!();
    let (alice, mut peer) = open_connected_tab(&browser, "");
    let members: Vec<String> = (0..1000).map(|n| format!("member {n:04}")).collect();
    send(
        &mut peer,
        "welcome",
        json!({"message": "Welcome!", "members": members, "member_count": 2999, "room": "general",
        "username": "alice", "epoch": "e", "last_id": 0, "resumed": false, "history": []}),
    );
    wait_for_log(&alice, "Also here: member 0000, member 0001, member 0002, member 0003, member 0004 and 2,994 more.");
    alice.eval(
        "window.changes = 0;
         new MutationObserver((list) => { window.changes += list.length; })
             .observe(document.querySelector('#members'), { childList: true, subtree: true, characterData: true }); 0",
    );
    for n in 1000..3000 {
        send(&mut peer, "joined", json!({"username": format!("member {n}")}));
    }
    send(
        &mut peer,
        "message",
        json!({"username": "bob", "text": "everybody is here", "id": 1, "time": "2026-01-01T00:00:00.000Z"}),
    );
    wait_for_log(&alice, "everybody is here");
    alice.wait_for("document.querySelector('#count').textContent === '5,000'");
    assert_eq!(alice.eval("document.querySelectorAll('#members li').length"), 100);
    assert_eq!(alice.text("document.querySelector('#more-people').textContent"), "and 4,900 more");
    let changes = alice.eval("changes").as_u64().unwrap();
    assert!(changes < 100, "{changes} changes of the list");
    alice.fill("Find people", "2777");
    wait_for_members(&alice, &["member 2777"]);
    alice.press_button("member 2777");
    alice.wait_for("document.querySelector('#recipient').innerText.includes('To member 2777 only')");
    // In a large room, the `welcome` event names only some of the members. If an unnamed member leaves, the page still
    // decrements the people count.
    for _ in 0..10 {
        send(&mut peer, "left", json!({"username": "an unlisted one"}));
    }
    alice.wait_for("document.querySelector('#count').textContent === '4,990'");
    assert_eq!(browser.page_errors(), [""; 0]);
}

// ---- The connection ----

/// The page gives up only if `GET /check` reports status 400, 401 or 403. If the server is full, the page retries.
#[test]
fn a_full_server_is_tried_again() {
    let browser = browser!();
    let server = start_unlimited(&["--max-connections", "1"]);
    let guest = server.upgrade("/echo?token=dev-token");
    let alice = browser.open_with(&page(&format!("server={}&username=alice", ws(server.port()))), "");
    alice.press_button("Connect");
    wait_until("the page says that the server is full", || words(&alice).contains("The server is full."));
    wait_for_state(&alice, "waiting");
    assert!(words(&alice).contains("Trying again in"), "{}", words(&alice));
    drop(guest);
    wait_until("the page joins", || {
        alice.eval("dispatchEvent(new Event('online'))");
        alice.text("document.body.dataset.state") == "joined"
    });
}

/// A response to `GET /check` without the server's `status` field may come from a proxy. The page then retries,
/// whatever the HTTP status.
#[test]
fn the_page_retries_after_a_proxy_response() {
    let browser = browser!();
    for body in ["HTTP/1.1 502 Bad Gateway", "HTTP/1.1 404 Not Found", "HTTP/1.1 403 Forbidden", "HTTP/1.1 200 OK"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let response =
            format!("{body}\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(response.as_bytes());
            }
        });
        let tab = browser.open_with(&page(&format!("server={}", ws(port))), "");
        tab.press_button("Connect");
        wait_for_state(&tab, "waiting");
        assert!(words(&tab).contains("A proxy may be responding while the server"), "{body}: {}", words(&tab));
    }
}

/// If `GET /check` reports that the server would accept the connection, the browser or a proxy must be blocking it.
/// Retries then do not load the server, so the page waits at most 8 s before each retry, instead of up to 30 s.
#[test]
fn the_backoff_stays_short_while_the_server_would_accept() {
    let browser = browser!();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let accepts = r#"{"status":101,"message":""}"#;
        let len = accepts.len();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{accepts}"
            );
        }
    });
    let tab = browser.open_with(&page(&format!("server={}", ws(port))), SKIP_WAITS);
    tab.press_button("Connect");
    tab.wait_for("waits.length >= 6");
    assert_eq!(tab.eval("waits.slice(0, 6)"), json!([1800, 3600, 7200, 7200, 7200, 7200]));
    tab.eval("window.setTimeout = () => 0");
}

/// If a retry cannot succeed, the page stops and shows the server's reason for the rejection.
#[test]
fn final_rejections_are_explained() {
    let browser = browser!();
    let tokens = support::token_file("rejections", "secret alice\nother\n");
    let server = start_unlimited(&["--tokens", tokens.to_str().unwrap(), "--unique-names"]);
    let rows = [
        ("token=wrong&username=alice", "The token is wrong or missing."),
        ("token=secret&username=bob", "This token is bound to another username"),
        ("token=other&username=alice", "This username is reserved for another token"),
    ];
    for (query, why) in rows {
        let tab = browser.open(&page(&format!("server={}&{query}", ws(server.port()))));
        tab.press_button("Connect");
        wait_for_state(&tab, "stopped");
        assert!(words(&tab).contains(why), "{query}: {}", words(&tab));
        assert_eq!(tab.eval("__button('Connect').checkVisibility()"), true);
        assert_eq!(tab.eval("__button('Leave').checkVisibility()"), false);
    }
}

/// With `--unique-names`, a reloaded page replaces its own old connection.
#[test]
fn a_reload_takes_over_its_own_connection() {
    let browser = browser!();
    let server = start_unlimited(&["--unique-names"]);
    let alice = join(&browser, server.port(), "alice");
    let session = alice.text("JSON.parse(sessionStorage.getItem('wirechat-session')).session");
    assert_eq!(session.len(), 32);
    // The test cannot make the page's connection go dead, so another client uses the page's username and session.
    let mut other = server.upgrade(&format!("/?token=dev-token&username=alice&session={session}"));
    other.read_event("welcome");
    wait_for_state(&alice, "stopped");
    assert!(words(&alice).contains("You connected from somewhere else."), "{}", words(&alice));
    alice.navigate(&page(""));
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    assert_eq!(other.read_frame().close(), (1008, "replaced by a newer connection".to_owned()));
    // A new tab does not have the first tab's session secret, so it cannot take over the first tab's connection.
    let stranger = browser.open(&page(&format!("server={}&username=alice", ws(server.port()))));
    stranger.press_button("Connect");
    wait_for_state(&stranger, "stopped");
    assert!(words(&stranger).contains("Choose another name, then reconnect."), "{}", words(&stranger));
}

/// A proxy may serve the chat under a path prefix. The page finds its server with or without a slash at the end.
#[test]
fn a_page_under_a_path_finds_its_server() {
    let browser = browser!();
    let html = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/client.html")).unwrap();
    for path in ["/chat", "/chat/", "/a/b/", "/", "/chat/client.html"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (found, target) = mpsc::channel();
        let html = html.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, html, found) = (stream.unwrap(), html.clone(), found.clone());
                // Use one thread per connection, because Chromium also opens connections on which it sends nothing.
                std::thread::spawn(move || {
                    let mut head = String::new();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                    if head.contains("Upgrade: websocket") {
                        let _ = found.send(head.split(' ').nth(1).unwrap().to_owned());
                        return;
                    }
                    let length = html.len();
                    let fields = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: ";
                    let _ = stream.write_all(format!("{fields}{length}\r\n\r\n{html}").as_bytes());
                });
            }
        });
        let tab = browser.open(&format!("http://127.0.0.1:{port}{path}"));
        let prefix = path.trim_end_matches("client.html").trim_end_matches('/');
        assert_eq!(field(&tab, "Server"), format!("ws://127.0.0.1:{port}{prefix}"), "{path}");
        tab.press_button("Connect");
        assert!(target.recv().unwrap().starts_with(&format!("{prefix}/?token=dev-token&")), "{path}");
        tab.press_button("Cancel");
    }
}

// ---- Layout, scrolling and keyboard ----

/// On a laptop screen, at least twenty one-line messages are visible. The title, messages and input box are aligned.
#[test]
fn the_chat_is_dense_and_has_one_column() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let mut bob = joined_guest(&server, "general", "bob");
    let mut carol = joined_guest(&server, "general", "carol");
    for n in 0..25 {
        say(&mut bob, &format!("bob {n}"));
        carol.read_event("message");
        say(&mut carol, &format!("carol {n}"));
        bob.read_event("message");
    }
    let alice = join(&browser, server.port(), "alice");
    wait_for_log(&alice, "carol 24");
    for (width, height) in [(390, 844), (1440, 900), (1920, 1080)] {
        for scheme in ["light", "dark"] {
            alice.set_screen(width, height, scheme);
            alice.eval(&format!("{LOG}.scrollTop = 1e9; __frame().then(__frame)"));
            alice.screenshot(&format!("dense-{width}-{scheme}"));
        }
        let visible = alice.eval(&format!(
            "[...document.querySelectorAll('.message')].filter((row) => {{
                const [log, box] = [{LOG}, row].map((e) => e.getBoundingClientRect());
                return box.top >= log.top && box.bottom <= log.bottom; }}).length"
        ));
        if width >= 1440 {
            assert!(visible.as_u64().unwrap() >= 20, "{width}: {visible} messages");
        }
        // The left and right edges of the title, the messages and the input box, excluding padding and the scroll bar.
        let edges = alice.eval(
            "['.top', '#rows', '.compose'].map((selector) => {
                const element = document.querySelector(selector), style = getComputedStyle(element), box = element.getBoundingClientRect();
                const scrollbar = element.offsetWidth - element.clientWidth;
                return [box.left + parseFloat(style.paddingLeft), box.right - scrollbar - parseFloat(style.paddingRight)].map(Math.round);
            })",
        );
        assert_eq!(edges[0], edges[1], "{width}: {edges}");
        assert_eq!(edges[1], edges[2], "{width}: {edges}");
    }
}

/// On a phone, the form does not move when an error message appears, and every control is large enough for a finger.
#[test]
fn controls_on_a_phone_are_large() {
    let browser = browser!();
    let server = start_unlimited(&[]);
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tab = browser.open(&page(&format!("server={}&username=alice", ws(unused))));
    tab.set_screen(390, 844, "light");
    let top = "__field('Name').getBoundingClientRect().top";
    let before = tab.eval(top);
    tab.press_button("Connect");
    wait_for_state(&tab, "waiting");
    assert_eq!(tab.eval(top), before);
    tab.press_button("Cancel");
    let small = "[...document.querySelectorAll('button, input, textarea, select')].filter((e) => e.checkVisibility())
        .map((e) => [e.textContent.trim() || e.id, e.getBoundingClientRect()])
        .filter(([, { width, height }]) => width < 44 || height < 44).map(([name]) => name)";
    assert_eq!(tab.eval(small), json!([]), "the start");
    tab.fill("Server", &ws(server.port()));
    tab.press_button("Connect");
    wait_for_state(&tab, "joined");
    let _bob = joined_guest(&server, "general", "bob");
    let _long = joined_guest(&server, &"long-".repeat(10), "carol");
    switch_room_on_phone(&tab, &"long-".repeat(10));
    assert_eq!(tab.eval(small), json!([]), "the chat");
    tab.press_button("Menu");
    for part in ["Rooms", "People", "Connection"] {
        tab.press_button(part);
        assert_eq!(tab.eval(small), json!([]), "{part}");
        assert_fits(&tab, part);
    }
    let title = "document.querySelector('h1')";
    assert!(tab.eval(&format!("{title}.getBoundingClientRect().height")).as_f64().unwrap() < 40.0, "one line");
    // In landscape orientation, and at 200 % zoom, the list of messages is still usable.
    for (width, height) in [(844, 390), (720, 450)] {
        tab.set_screen(width, height, "light");
        assert_fits(&tab, "landscape");
        let height = tab.eval(&format!("{LOG}.getBoundingClientRect().height")).as_f64().unwrap();
        assert!(height > 150.0, "{width}: {height}");
    }
}

fn switch_room_on_phone(tab: &Tab, room: &str) {
    tab.press_button("Menu");
    tab.press_button("Rooms");
    switch_room(tab, room);
    wait_for_log(tab, "You are now in #");
}

/// Scrolling through a long history neither adds nor removes rows.
#[test]
fn scrolling_does_little_work() {
    let browser = browser!();
    let server = start_unlimited(&["--history", "1000"]);
    let alice = join(&browser, server.port(), "alice");
    let mut bob = joined_guest(&server, "general", "bob");
    (0..3000).for_each(|n| say(&mut bob, &format!("line {n}")));
    wait_for_log(&alice, "line 2999");
    let before = alice.eval("document.querySelectorAll('*').length");
    let changes = alice.eval(&format!(
        "(async () => {{
            let changes = 0;
            const observer = new MutationObserver((list) => {{ changes += list.length; }});
            observer.observe({LOG}, {{ childList: true, subtree: true }});
            for (let n = 0; n < 30; n++) {{ {LOG}.scrollTop -= 300; await __frame(); }}
            return changes; }})()"
    ));
    assert_eq!(changes, 0, "scrolling creates no rows");
    assert_eq!(alice.eval("document.querySelectorAll('*').length"), before);
}

#[test]
fn every_control_is_reached_by_keyboard() {
    let browser = browser!();
    let mut server = start_unlimited(&[]);
    let copy = "Object.defineProperty(navigator, 'clipboard', { value: { writeText: async (text) => { window.copied = text; } } });
        Math.random = () => 0.99; window.Notification = class { static permission = 'default'; static requestPermission = async () => 'denied'; };";
    let alice = join_with(&browser, server.port(), "alice", copy);
    let _bob = joined_guest(&server, "general", "bob");
    wait_for_members(&alice, &["alice you", "bob"]);
    let press = |what: &str| {
        tab_to(&alice, what);
        alice.press_key("Enter", false);
    };
    press("__button('Copy link to this room')");
    alice.wait_for("window.copied");
    press("__button('bob')");
    alice.wait_for("document.activeElement === __field('Message')");
    press("document.querySelector('#recipient-clear')");
    alice.wait_for("document.activeElement === __field('Message') && document.querySelector('#recipient').hidden");
    press("__button('Notify me')");
    wait_for_log(&alice, "The browser does not allow notifications from this page.");
    press("document.querySelector('#edit')");
    alice.wait_for("document.activeElement === __field('Name')");
    press("__button('Back to the chat')");
    alice.wait_for("document.activeElement === __field('Message')");
    server.signal("KILL");
    server.wait();
    // Wait for a countdown that leaves enough time to press Tab before the page retries by itself.
    alice.wait_for("document.querySelector('#countdown').textContent.match(/\\d+/) > 8");
    tab_to(&alice, "__button('Try now')");
    let _server = Server::start_at(&format!("127.0.0.1:{}", server.port()), &[]);
    alice.press_key("Enter", false);
    wait_for_state(&alice, "joined");
    // On a phone, the menu has tabs, and the arrow keys move between them.
    alice.set_screen(390, 844, "light");
    press("__button('Menu')");
    let tab = |name: &str| {
        format!("[...document.querySelectorAll('[role=tab]')].find((tab) => tab.textContent === '{name}')")
    };
    tab_to(&alice, &tab("Rooms"));
    for (key, name, control) in [
        ("ArrowRight", "People", "#members"),
        ("ArrowRight", "Connection", "#edit"),
        ("ArrowRight", "Rooms", "#join-room"),
        ("ArrowLeft", "Connection", "#leave"),
    ] {
        alice.press_key(key, false);
        alice.wait_for(&format!("document.activeElement === {0} && {0}.ariaSelected === 'true'", tab(name)));
        assert_eq!(alice.eval(&format!("document.querySelector('{control}').checkVisibility()")), true, "{name}");
    }
    press("__button('Leave')");
    wait_for_state(&alice, "idle");
}
