//! Drives headless Firefox over WebDriver BiDi. `browser.rs` does the same for Chromium, with the same functions, so
//! a test can include either file as its module `browser` and use `visitor.rs`.
//!
//! One WebSocket to the browser carries the commands for all tabs: the parameter `context` selects the tab. Each
//! command waits for its response. The driver ignores events, except uncaught exceptions, console errors, dialogs and
//! violations of the Content Security Policy, which must never happen.
#![allow(dead_code)] // each test binary uses only part of this module

#[path = "browser_process.rs"]
mod process;

use crate::support::{require_tool, wait_until};
use process::BrowserProcess;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use tungstenite::{Message, WebSocket};

/// JavaScript functions that find elements by their visible names.
const FINDERS: &str = include_str!("finders.js");

/// JavaScript that logs violations of the Content Security Policy to the console, because BiDi has no event for them.
const REPORT_VIOLATIONS: &str = "addEventListener('securitypolicyviolation',
    (event) => console.error('blocked:', event.effectiveDirective, event.blockedURI, event.sample));";

/// Headless Firefox with a fresh profile.
pub struct Browser {
    _process: BrowserProcess,
    bidi: RefCell<WebSocket<TcpStream>>,
    last_id: Cell<u64>,
    page_errors: RefCell<Vec<String>>,
}

impl Browser {
    /// Starts a browser. Returns `None` if Firefox is not installed (see [`require_tool`]).
    pub fn start() -> Option<Browser> {
        let program = require_tool("firefox-esr", &["/usr/bin/firefox-esr".into(), "/usr/bin/firefox".into()])?;
        let process = BrowserProcess::start("firefox", |profile| {
            let mut command = Command::new(program);
            command.args(["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"]).arg(profile);
            command.env("HOME", profile); // so that caches and crash reports stay in the profile directory
            command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
            command
        });
        let bidi = RefCell::new(connect(&process.profile.join("WebDriverBiDiServer.json")));
        let browser = Browser { _process: process, bidi, last_id: Cell::new(0), page_errors: RefCell::default() };
        browser.call("session.new", json!({"capabilities": {}}));
        let events = ["log.entryAdded", "browsingContext.userPromptOpened"];
        browser.call("session.subscribe", json!({"events": events}));
        Some(browser)
    }

    /// Opens a new tab, and waits until its page has loaded.
    pub fn open(&self, url: &str) -> Tab<'_> {
        self.open_with(url, "")
    }

    /// Like [`Browser::open`], but runs `script` before the page's own scripts.
    pub fn open_with(&self, url: &str, script: &str) -> Tab<'_> {
        let created = self.call("browsingContext.create", json!({"type": "tab"}));
        let tab = Tab { browser: self, context: created["context"].as_str().unwrap().to_owned() };
        let function = format!("() => {{ {FINDERS};{REPORT_VIOLATIONS};{script} }}");
        self.call("script.addPreloadScript", json!({"functionDeclaration": function, "contexts": [tab.context]}));
        tab.navigate(url);
        tab
    }

    /// Returns all uncaught exceptions, dialogs, policy violations and console errors so far, in any tab.
    pub fn page_errors(&self) -> Vec<String> {
        // If the WebSocket cannot connect, the page sends the server an HTTP request. If the server is down, that
        // request fails too, and Firefox logs a CORS error.
        let is_expected = |error: &&String| error.contains("CORS request did not succeed");
        self.page_errors.borrow().iter().filter(|error| !is_expected(error)).cloned().collect()
    }

    /// Sends a BiDi command and waits for its result.
    fn call(&self, method: &str, params: Value) -> Value {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let mut bidi = self.bidi.borrow_mut();
        let call = json!({"id": id, "method": method, "params": params});
        bidi.send(Message::text(call.to_string())).expect("Firefox listens");
        loop {
            let message = bidi.read().expect("Firefox responds");
            let mut message: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
            if message["id"] == id {
                assert_eq!(message["type"], "success", "{method}: {message}");
                return message["result"].take();
            }
            self.record(&message);
        }
    }

    fn record(&self, event: &Value) {
        let entry = &event["params"];
        // Firefox logs each WebSocket that fails to connect, with its URL. The page expects such failures.
        let is_failed_connection = entry["text"].as_str().is_some_and(|text| text.contains(" ws://"));
        let is_error = entry["level"] == "error" && !is_failed_connection;
        if is_error || event["method"] == "browsingContext.userPromptOpened" {
            self.page_errors.borrow_mut().push(event.to_string());
        }
    }
}

/// Waits until Firefox has written its WebDriver BiDi port to `server_file`, then connects to that port.
fn connect(server_file: &Path) -> WebSocket<TcpStream> {
    let mut port = Value::Null;
    wait_until("Firefox writes its BiDi port", || {
        let text = std::fs::read_to_string(server_file).unwrap_or_default();
        port = serde_json::from_str(&text).map_or(Value::Null, |server: Value| server["ws_port"].clone());
        port.is_number()
    });
    process::connect(&format!("{port}/session"))
}

/// A browser tab. It stays open until the browser exits.
pub struct Tab<'a> {
    browser: &'a Browser,
    context: String,
}

impl Tab<'_> {
    pub fn call(&self, method: &str, mut params: Value) -> Value {
        params["context"] = self.context.as_str().into();
        self.browser.call(method, params)
    }

    pub fn navigate(&self, url: &str) {
        self.call("browsingContext.navigate", json!({"url": url, "wait": "complete"}));
    }

    /// Evaluates a JavaScript expression. If the value is a promise, waits for its result.
    pub fn eval(&self, expression: &str) -> Value {
        let json_of = format!("(async () => JSON.stringify(await ({expression})) ?? 'null')()");
        let target = json!({"context": self.context});
        let params = json!({"expression": json_of, "target": target, "awaitPromise": true});
        let done = self.browser.call("script.evaluate", params);
        assert_eq!(done["type"], "success", "{expression}: {}", done["exceptionDetails"]);
        serde_json::from_str(done["result"]["value"].as_str().unwrap()).unwrap()
    }

    pub fn text(&self, expression: &str) -> String {
        self.eval(expression).as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for(&self, expression: &str) {
        process::wait_for(expression, |expression| self.eval(expression));
    }

    /// Clicks in the middle of an element, once the element exists and nothing covers it. Tries again if the element
    /// moved just before the click, as elements do while the page reconnects.
    pub fn click(&self, element: &str) {
        self.call("browsingContext.activate", json!({}));
        wait_until(&format!("{element} is clicked"), || {
            let at = self.eval(&format!("__aim(() => {element})"));
            if at.is_null() {
                return false;
            }
            let to = json!({"type": "pointerMove", "x": at["x"], "y": at["y"]});
            let (down, up) = (json!({"type": "pointerDown", "button": 0}), json!({"type": "pointerUp", "button": 0}));
            self.perform_actions(json!({"type": "pointer", "id": "mouse", "actions": [to, down, up]}));
            self.eval("__hit") == true
        });
    }

    pub fn press_button(&self, text: &str) {
        self.click(&process::button(text));
    }

    /// Replaces the content of the field labelled `label`.
    pub fn fill(&self, label: &str, text: &str) {
        self.click(&process::field(label));
        self.press_together(&["\u{e009}", "a"]); // Ctrl+A: select all
        self.press_together(&["\u{e003}"]); // Backspace: if `text` is empty, typing it would not replace the selection
        self.type_text(text);
    }

    /// Types into the element that has the focus.
    pub fn type_text(&self, text: &str) {
        let key = |kind: &str, key: char| json!({"type": kind, "value": key});
        let actions: Vec<_> = text.chars().flat_map(|c| [key("keyDown", c), key("keyUp", c)]).collect();
        self.perform_actions(json!({"type": "key", "id": "keyboard", "actions": actions}));
    }

    /// Presses a named key such as `Enter`, with or without Shift.
    pub fn press_key(&self, key: &str, shift: bool) {
        // Code points from the WebDriver specification, section "Keyboard actions".
        let key = match key {
            "Tab" => "\u{e004}",
            "Enter" => "\u{e007}",
            "Escape" => "\u{e00c}",
            "ArrowUp" => "\u{e013}",
            "ArrowDown" => "\u{e015}",
            _ => panic!("this driver does not know the key {key}"),
        };
        let keys = ["\u{e008}", key]; // \u{e008} is Shift
        self.press_together(if shift { &keys } else { &keys[1..] });
    }

    /// Presses the keys in the given order, and releases them in reverse order.
    fn press_together(&self, keys: &[&str]) {
        let down = keys.iter().map(|key| json!({"type": "keyDown", "value": key}));
        let up = keys.iter().rev().map(|key| json!({"type": "keyUp", "value": key}));
        let actions: Vec<_> = down.chain(up).collect();
        self.perform_actions(json!({"type": "key", "id": "keyboard", "actions": actions}));
    }

    fn perform_actions(&self, source: Value) {
        self.call("input.performActions", json!({"actions": [source]}));
    }
}
