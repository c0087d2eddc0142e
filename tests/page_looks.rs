//! Tests the appearance and accessibility of the chat page: several widths, both color schemes, high contrast, forced
//! colors, names for screen readers, and the rules of axe-core in every main state.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/proxy.rs"]
mod proxy;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use browser::{Browser, Tab};
use proxy::Proxy;
use serde_json::json;
use std::collections::BTreeSet;
use support::{RawClient, Server};
use visitor::*;

#[test]
fn every_control_has_a_name_for_screen_readers() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let tree = alice.call("Accessibility.getFullAXTree", json!({}));
    let named = |role: &str| -> Vec<&str> {
        let nodes =
            tree["nodes"].as_array().unwrap().iter().filter(|n| n["ignored"] == false && n["role"]["value"] == role);
        nodes.map(|n| n["name"]["value"].as_str().unwrap_or_default()).collect()
    };
    assert_eq!(named("textbox"), ["Message", "Room name"]);
    let buttons =
        ["#general", "Join", "Copy link to this room", "Edit connection", "Leave", "Notify me", "Inspector", "Send"];
    assert_eq!(named("button").into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(buttons));
    assert_eq!(named("log"), ["Conversation"]);
    assert_eq!(
        named("heading").into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from(["#general", "Rooms", "People 1"])
    );
    assert_eq!(named("status").len(), 2, "the connection state, and advice");
    assert_eq!(alice.text(&format!("{LOG}.getAttribute('aria-live')")), "polite");
}

#[test]
fn axe_finds_nothing_in_any_state() {
    let Some(axe) = axe() else { return };
    let browser = browser!();
    let server = Server::start(&[]);
    for (width, height) in [(390, 844), (1440, 900)] {
        for scheme in ["light", "dark"] {
            for contrast in ["no-preference", "more"] {
                let features = [("prefers-color-scheme", scheme), ("prefers-contrast", contrast)];
                let audit = |tab: &Tab, state: &str| {
                    let name = format!("{width}-{scheme}-{contrast}-{state}");
                    tab.screenshot(&name);
                    assert_fits(tab, &name);
                    assert_accessible(tab, &axe, &name);
                };
                visit_every_state(&browser, &server, (width, height), &features, &audit);
            }
        }
    }
}

/// Brings the page into each main state and calls `audit` with the state's name: start, chat, menu (only on narrow
/// screens), writing a private message, offline with a failed and an unsent message, rejected.
fn visit_every_state(
    browser: &Browser,
    server: &Server,
    (width, height): (u32, u32),
    features: &[(&str, &str)],
    audit: &dyn Fn(&Tab, &str),
) {
    let proxy = Proxy::to(server.addr());
    let room = format!("{width}-{}", features.iter().map(|(_, value)| *value).collect::<Vec<_>>().join("-"));
    let alice = browser.open(&page(&format!("server={}&username=alice&room={room}", ws(proxy.port()))));
    alice.set_screen(width, height, "light");
    alice.set_media_features(features);
    audit(&alice, "start");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let mut guests = chat(server, &alice, &room);
    send_as_guest(&mut guests[0], &alice, "https://example.invalid/frames has the picture.");
    guests[0].send_text(r#"{"event":"private","data":{"to":"alice","text":"It is a surprise, so not a word!"}}"#);
    wait_for_log(&alice, "not a word!");
    type_message(&alice, "/msg carol My lips are sealed.");
    wait_for_log(&alice, "privately to carol");
    guests[1].send_text(r#"{"event":"typing"}"#);
    audit(&alice, "chat");
    if width < 720 {
        for part in ["Rooms", "Connection", "People"] {
            if part == "Rooms" {
                alice.press_button("Menu");
            }
            alice.press_button(part);
            audit(&alice, &format!("menu-{part}"));
        }
    }
    alice.press_button("carol");
    alice.type_text("And");
    audit(&alice, "private");
    alice.press_key("Enter", false);
    type_message(&alice, &"too long ".repeat(60));
    alice.type_text("a draft");
    alice.wait_for("document.querySelector('[data-state=failed]') || __field('Message').value.includes('too long')");
    proxy.cut();
    wait_for_state(&alice, "waiting");
    alice.fill("Message", "I write while the line is away");
    alice.press_key("Enter", false);
    audit(&alice, "offline");
    // Enter a wrong token before the proxy restores the connection. Otherwise, the page would reconnect with the valid
    // token, and the server would not reject it.
    open_connection(&alice, width);
    alice.fill("Token", "wrong");
    alice.press_button("Cancel");
    alice.press_button("Connect");
    proxy.restore();
    wait_for_state(&alice, "stopped");
    audit(&alice, "rejected");
}

#[test]
fn forced_colours_and_reduced_motion_are_respected() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page(&format!("server={}&username=alice&room=forced", ws(server.port()))));
    alice.set_screen(1440, 900, "dark");
    alice.set_media_features(&[
        ("prefers-color-scheme", "dark"),
        ("forced-colors", "active"),
        ("prefers-reduced-motion", "reduce"),
    ]);
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let _guests = chat(&server, &alice, "forced");
    alice.screenshot("forced");
    assert_fits(&alice, "forced");
    // Forced colors remove backgrounds, so a border must mark the user's own messages.
    let line =
        |what: &str| alice.text(&format!("getComputedStyle(document.querySelector('{what}')).borderInlineStartWidth"));
    assert_ne!(line(".own .text"), line(".message:not(.own) .text"));
    let moving = "document.getAnimations().length + [...document.querySelectorAll('*')]
        .filter((e) => getComputedStyle(e).transitionDuration !== '0s').length";
    assert_eq!(alice.eval(moving), 0);
}

#[test]
fn the_layout_is_legible_at_every_width_and_scheme() {
    let browser = browser!();
    let server = Server::start(&[]);
    for (width, height) in [(320, 568), (390, 844), (800, 600), (1440, 900)] {
        for scheme in ["light", "dark"] {
            let alice = browser.open(&page(&format!(
                "server={}&token=dev-token&username=alice&room=r{width}{scheme}",
                ws(server.port())
            )));
            alice.set_screen(width, height, scheme);
            let name = |what: &str| format!("{width}-{scheme}-{what}");
            alice.screenshot(&name("start"));
            assert_fits(&alice, &name("start"));
            alice.press_button("Connect");
            wait_for_state(&alice, "joined");
            let room = format!("r{width}{scheme}");
            let guests = chat(&server, &alice, &room);
            alice.screenshot(&name("chat"));
            drop(guests);
            let guests = stress_layout(&server, &alice, &room);
            alice.screenshot(&name("pushed"));
            assert_fits(&alice, &name("pushed"));
            assert_names_are_legible(&alice);
            drop(guests);
            open_connection(&alice, width);
            alice.fill("Token", "wrong");
            alice.press_button("Reconnect");
            wait_for_state(&alice, "stopped");
            alice.screenshot(&name("rejected"));
            assert_fits(&alice, &name("rejected"));
        }
    }
}

#[test]
fn the_picture_in_the_readme_can_be_recreated() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page(&format!("server={}&username=alice&room=general", ws(server.port()))));
    alice.set_screen(1000, 680, "light");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let mut bob = guest(&server, "general", "bob");
    send_as_guest(&mut bob, &alice, "Good morning! Is this thing on?");
    type_message(&alice, "Loud and clear. Every byte of it is on my screen.");
    wait_for_log(&alice, "on my screen");
    send_as_guest(&mut bob, &alice, "FIN, opcode 1, masked: just as in the book.");
    bob.send_text(r#"{"event":"private","data":{"to":"alice","text":"I only looked at the first two."}}"#);
    wait_for_log(&alice, "I only looked");
    type_message(&alice, "Read https://www.rfc-editor.org/rfc/rfc6455#section-5.2 then 🙂");
    alice.wait_for("document.querySelectorAll('.own').length === 2");
    bob.send_text(r#"{"event":"typing"}"#);
    alice.wait_for("document.querySelector('#typing').textContent === 'bob is typing…'");
    alice.screenshot("page");
    assert_fits(&alice, "page");
}

/// Opens the form with the connection settings. On a narrow screen, goes through the menu's Connection tab.
fn open_connection(tab: &Tab, width: u32) {
    if width < 720 {
        tab.press_button("Menu");
        tab.press_button("Connection");
    }
    edit_connection(tab);
}

/// Lets bob, carol and the page exchange a few messages. Then bob leaves, and Renée joins. Returns carol and Renée.
fn chat(server: &Server, tab: &Tab, room: &str) -> Vec<RawClient> {
    let [mut bob, mut carol] = ["bob", "carol"].map(|name| guest(server, room, name));
    wait_for_log(tab, "carol joined");
    send_as_guest(&mut bob, tab, "Good morning! The kettle is on.");
    send_as_guest(&mut bob, tab, "Has anybody read §5.4 yet?");
    send_as_guest(
        &mut carol,
        tab,
        "Twice. Control frames may stand between the fragments, and that is the whole trick.",
    );
    type_message(tab, "I draw it on paper every time 🙂");
    wait_for_log(tab, "on paper");
    send_as_guest(&mut carol, tab, "Show us?");
    drop(bob);
    wait_for_log(tab, "bob left");
    vec![carol, guest(server, room, "Renée")]
}

/// Fills the page with content that tends to break layouts: a very long word, a username of wide letters,
/// right-to-left text, and a long member list. Returns the guests, who stay connected.
fn stress_layout(server: &Server, tab: &Tab, room: &str) -> Vec<RawClient> {
    let names = ["דנה".to_owned(), "W".repeat(32)].into_iter().chain((0..20).map(|n| format!("guest {n}")));
    let mut guests: Vec<RawClient> = names.map(|name| guest(server, room, &name)).collect();
    send_as_guest(&mut guests[0], tab, "שלום לכולם, ומה שלומכם today?");
    send_as_guest(&mut guests[1], tab, &format!("https://example.invalid/{}", "without/any/space/".repeat(12)));
    type_message(tab, &"w".repeat(300));
    wait_for_log(tab, "wwww");
    wait_for_log(tab, "guest 19");
    tab.fill("Message", &"not sent ".repeat(40));
    tab.type_text(&"w".repeat(200));
    tab.wait_for(&format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight < 2"));
    guests
}

/// Checks that a username is legible in each of the 360 hues: the contrast with the background is at least
/// 4.5:1 (WCAG).
fn assert_names_are_legible(tab: &Tab) {
    let worst = tab.eval(
        "(() => {
            const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            const luminance = (color) => {
                context.fillStyle = color;
                context.fillRect(0, 0, 1, 1);
                const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const name = document.querySelector('.message .name'), before = name.style.getPropertyValue('--hue');
            const backgroundLuminance = luminance(getComputedStyle(document.body).backgroundColor);
            const ratios = Array.from({ length: 360 }, (_, hue) => {
                name.style.setProperty('--hue', hue);
                const textLuminance = luminance(getComputedStyle(name).color);
                const [darker, lighter] = [textLuminance, backgroundLuminance].sort((one, other) => one - other);
                return (lighter + 0.05) / (darker + 0.05);
            });
            name.style.setProperty('--hue', before);
            return Math.min(...ratios);
        })()",
    );
    assert!(worst.as_f64().unwrap() >= 4.5, "the worst hue has {worst} to 1");
}
