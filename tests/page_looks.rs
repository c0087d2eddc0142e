//! What the page looks like, and what it is to somebody who does not look: every width, both schemes, more contrast and
//! forced colours, the names that a screen reader says, and the rules of axe-core in every main state.

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
fn a_screen_reader_is_told_the_name_of_everything() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = join(&browser, server.port(), "alice");
    let tree = alice.call("Accessibility.getFullAXTree", json!({}));
    let named = |role: &str| -> Vec<&str> {
        let nodes =
            tree["nodes"].as_array().unwrap().iter().filter(|n| n["ignored"] == false && n["role"]["value"] == role);
        nodes.map(|n| n["name"]["value"].as_str().unwrap_or_default()).collect()
    };
    assert_eq!(named("textbox"), ["Name", "Room", "Server", "Token", "Message"]);
    assert_eq!(named("button"), ["Inspect", "Switch room", "Connect", "Leave", "Send"]);
    assert_eq!(named("log"), ["Conversation"]);
    assert_eq!(named("heading").into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["#general", "Who is here 1"]));
    assert_eq!(named("status").len(), 2, "the state, and what to do about it");
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

/// Start, chat, a private message begun, the menu, offline with words that wait and one that failed, refused.
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
    alice.view(width, height, "light");
    alice.prefer(features);
    audit(&alice, "start");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let mut guests = chat(server, &alice, &room);
    tell(&mut guests[0], &alice, "https://example.invalid/frames has the picture.");
    guests[0].send_text(r#"{"event":"private","data":{"to":"alice","text":"It is a surprise, so not a word!"}}"#);
    wait_for_log(&alice, "not a word!");
    say(&alice, "/msg carol My lips are sealed.");
    wait_for_log(&alice, "privately to carol");
    guests[1].send_text(r#"{"event":"typing"}"#);
    audit(&alice, "chat");
    if width < 720 {
        alice.press_button("Menu");
        audit(&alice, "menu");
    }
    alice.press_button("carol");
    alice.type_text("And");
    audit(&alice, "private");
    alice.press_key("Enter", false);
    say(&alice, &"too long ".repeat(60));
    alice.type_text("a draft");
    alice.wait_for("document.querySelector('[data-state=failed]') || __field('Message').value.includes('too long')");
    proxy.cut();
    wait_for_state(&alice, "waiting");
    alice.fill("Message", "I write while the line is away");
    alice.press_key("Enter", false);
    audit(&alice, "offline");
    // While the line is still away: else the page may come back by itself in the middle of this.
    if width < 720 {
        alice.press_button("Menu");
    }
    alice.fill("Token", "wrong");
    alice.press_button("Connect");
    proxy.mend();
    wait_for_state(&alice, "stopped");
    audit(&alice, "refused");
}

#[test]
fn forced_colours_and_still_pictures_are_respected() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page(&format!("server={}&username=alice&room=forced", ws(server.port()))));
    alice.view(1440, 900, "dark");
    alice.prefer(&[
        ("prefers-color-scheme", "dark"),
        ("forced-colors", "active"),
        ("prefers-reduced-motion", "reduce"),
    ]);
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let _guests = chat(&server, &alice, "forced");
    alice.screenshot("forced");
    assert_fits(&alice, "forced");
    // A ground is taken away, so a line has to say what it said: whose words these are.
    let line = |what: &str| alice.text(&format!("getComputedStyle(document.querySelector('{what}')).borderTopWidth"));
    assert_ne!(line(".own .text"), line(".message:not(.own) .text"));
    let moving = "document.getAnimations().length + [...document.querySelectorAll('*')]
        .filter((e) => getComputedStyle(e).transitionDuration !== '0s').length";
    assert_eq!(alice.eval(moving), 0);
}

#[test]
fn every_width_and_scheme_is_whole_and_legible() {
    let browser = browser!();
    let server = Server::start(&[]);
    for (width, height) in [(320, 568), (390, 844), (800, 600), (1440, 900)] {
        for scheme in ["light", "dark"] {
            let alice = browser.open(&page(&format!(
                "server={}&token=dev-token&username=alice&room=r{width}{scheme}",
                ws(server.port())
            )));
            alice.view(width, height, scheme);
            let name = |what: &str| format!("{width}-{scheme}-{what}");
            alice.screenshot(&name("start"));
            assert_fits(&alice, &name("start"));
            alice.press_button("Connect");
            wait_for_state(&alice, "joined");
            let room = format!("r{width}{scheme}");
            let guests = chat(&server, &alice, &room);
            alice.screenshot(&name("chat"));
            drop(guests);
            let guests = push_at_the_layout(&server, &alice, &room);
            alice.screenshot(&name("pushed"));
            assert_fits(&alice, &name("pushed"));
            assert_names_are_legible(&alice);
            drop(guests);
            if width < 720 {
                alice.press_button("Menu");
            }
            alice.fill("Token", "wrong");
            alice.press_button("Connect");
            wait_for_state(&alice, "stopped");
            alice.screenshot(&name("refused"));
            assert_fits(&alice, &name("refused"));
        }
    }
}

#[test]
fn the_picture_in_the_readme_can_be_taken_again() {
    let browser = browser!();
    let server = Server::start(&[]);
    let alice = browser.open(&page(&format!("server={}&username=alice&room=general", ws(server.port()))));
    alice.view(1000, 680, "light");
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    let mut bob = guest(&server, "general", "bob");
    tell(&mut bob, &alice, "Good morning! Is this thing on?");
    say(&alice, "Loud and clear. Every byte of it is on my screen.");
    wait_for_log(&alice, "on my screen");
    tell(&mut bob, &alice, "FIN, opcode 1, masked: just as in the book.");
    bob.send_text(r#"{"event":"private","data":{"to":"alice","text":"I only looked at the first two."}}"#);
    wait_for_log(&alice, "I only looked");
    say(&alice, "Read https://www.rfc-editor.org/rfc/rfc6455#section-5.2 then 🙂");
    alice.wait_for("document.querySelectorAll('.own').length === 2");
    bob.send_text(r#"{"event":"typing"}"#);
    alice.wait_for("document.querySelector('#typing').textContent === 'bob is typing…'");
    alice.screenshot("page");
    assert_fits(&alice, "page");
}

/// A few words as people say them.
fn chat(server: &Server, tab: &Tab, room: &str) -> Vec<RawClient> {
    let [mut bob, mut carol] = ["bob", "carol"].map(|name| guest(server, room, name));
    wait_for_log(tab, "carol joined");
    tell(&mut bob, tab, "Good morning! The kettle is on.");
    tell(&mut bob, tab, "Has anybody read §5.4 yet?");
    tell(&mut carol, tab, "Twice. Control frames may stand between the fragments, and that is the whole trick.");
    say(tab, "I draw it on paper every time 🙂");
    wait_for_log(tab, "on paper");
    tell(&mut carol, tab, "Show us?");
    drop(bob);
    wait_for_log(tab, "bob left");
    vec![carol, guest(server, room, "Renée")]
}

/// What layouts break at: a word without an end, a name of wide letters, text from right to left, a long list.
fn push_at_the_layout(server: &Server, tab: &Tab, room: &str) -> Vec<RawClient> {
    let names = ["דנה".to_owned(), "W".repeat(32)].into_iter().chain((0..20).map(|n| format!("guest {n}")));
    let mut guests: Vec<RawClient> = names.map(|name| guest(server, room, &name)).collect();
    tell(&mut guests[0], tab, "שלום לכולם, ומה שלומכם today?");
    tell(&mut guests[1], tab, &format!("https://example.invalid/{}", "without/any/space/".repeat(12)));
    say(tab, &"w".repeat(300));
    wait_for_log(tab, "wwww");
    wait_for_log(tab, "guest 19 joined");
    tab.fill("Message", &"not sent ".repeat(40));
    tab.type_text(&"w".repeat(200));
    tab.wait_for(&format!("{LOG}.scrollHeight - {LOG}.scrollTop - {LOG}.clientHeight < 2"));
    guests
}

/// Every hue that a name can have stands out from what is behind it: WCAG's 4.5 to 1.
fn assert_names_are_legible(tab: &Tab) {
    let worst = tab.eval(
        "(() => {
            const pen = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            const light = (colour) => {
                pen.fillStyle = colour;
                pen.fillRect(0, 0, 1, 1);
                const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const name = document.querySelector('.message .name'), before = name.style.getPropertyValue('--hue');
            const paper = light(getComputedStyle(document.body).backgroundColor);
            const ratios = Array.from({ length: 360 }, (_, hue) => {
                name.style.setProperty('--hue', hue);
                const ink = light(getComputedStyle(name).color);
                return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
            });
            name.style.setProperty('--hue', before);
            return Math.min(...ratios);
        })()",
    );
    assert!(worst.as_f64().unwrap() >= 4.5, "the worst hue has {worst} to 1");
}
