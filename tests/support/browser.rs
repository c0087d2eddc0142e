//! Headless Chromium, driven over the DevTools protocol.
//!
//! One WebSocket to the browser carries the calls and events of all tabs. Each message names its tab by a `sessionId`
//! ("flat" sessions). The driver makes one call at a time and waits for the response. It drops all events except
//! those that must never happen: an uncaught exception, a dialog, a violation of the content security policy.
//! [`Browser::page_errors`] returns these events.
//!
//! A test uses a tab like a person: it finds a button by its text and a field by its label, clicks at a point on the
//! screen, and types into the focused element.
#![allow(dead_code)] // each test binary uses only part of this module

#[path = "browser_process.rs"]
mod process;

use crate::support::{require_tool, wait_until};
use base64::prelude::{BASE64_STANDARD, Engine};
use process::BrowserProcess;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use tungstenite::{Message, WebSocket};

/// The command-line options of Chromium. The sandbox is off, because tests often run as root in a container.
/// Certificate errors are ignored, because the tests sign their own certificates. Background tabs run at full speed,
/// because one of two tabs that chat with each other is always in the background.
const FLAGS: &str = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --disable-breakpad
    --ignore-certificate-errors --disable-background-timer-throttling --disable-renderer-backgrounding --disable-backgrounding-occluded-windows
    --remote-debugging-port=0";

/// JavaScript functions that find an element by its visible text or label.
const FINDERS: &str = include_str!("finders.js");

/// Headless Chromium with a fresh profile.
pub struct Browser {
    _process: BrowserProcess,
    devtools: RefCell<WebSocket<TcpStream>>,
    last_id: Cell<u64>,
    page_errors: RefCell<Vec<String>>,
}

impl Browser {
    /// Starts a browser. Returns `None` on a machine without Chromium (see [`require_tool`]).
    pub fn start() -> Option<Browser> {
        let program = require_tool("chromium", &["/usr/bin/chromium".into()])?;
        let process = BrowserProcess::start("chromium", |profile| {
            let mut command = Command::new(program);
            command.args(FLAGS.split_whitespace()).arg(format!("--user-data-dir={}", profile.display()));
            command
        });
        let devtools = RefCell::new(connect(&process.profile.join("DevToolsActivePort")));
        Some(Browser { _process: process, devtools, last_id: Cell::new(0), page_errors: RefCell::default() })
    }

    /// Opens a new tab and waits until its page has loaded.
    pub fn open(&self, url: &str) -> Tab<'_> {
        self.open_with(url, "")
    }

    /// Like [`Browser::open`], with a script that runs before the page's own scripts.
    pub fn open_with(&self, url: &str, script: &str) -> Tab<'_> {
        let target = &self.call("", "Target.createTarget", json!({"url": "about:blank"}))["targetId"];
        let attached = self.call("", "Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        let tab = Tab { browser: self, session: attached["sessionId"].as_str().unwrap().to_owned() };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            tab.call(domain, json!({}));
        }
        tab.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": format!("{FINDERS};{script}")}));
        tab.navigate(url);
        tab
    }

    /// The uncaught exceptions, dialogs and policy violations so far, in all tabs.
    pub fn page_errors(&self) -> Vec<String> {
        self.page_errors.borrow().clone()
    }

    /// Makes a call and waits for its result. An empty `session` addresses the browser itself.
    fn call(&self, session: &str, method: &str, params: Value) -> Value {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let mut call = json!({"id": id, "method": method, "params": params});
        if !session.is_empty() {
            call["sessionId"] = session.into();
        }
        let mut devtools = self.devtools.borrow_mut();
        devtools.send(Message::text(call.to_string())).expect("Chromium listens");
        loop {
            let message = devtools.read().expect("Chromium responds");
            let mut message: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.record(&message);
        }
    }

    fn record(&self, event: &Value) {
        let is_error = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" | "Page.javascriptDialogOpening" => true,
            "Log.entryAdded" => event["params"]["entry"]["source"] == "security",
            _ => false,
        };
        if is_error {
            self.page_errors.borrow_mut().push(event.to_string());
        }
    }
}

/// Connects to DevTools. Waits for the file to which Chromium writes the port and, on the next line, the URL path.
fn connect(active_port: &Path) -> WebSocket<TcpStream> {
    let mut text = String::new();
    wait_until("Chromium writes its DevTools port", || {
        text = std::fs::read_to_string(active_port).unwrap_or_default();
        text.lines().count() == 2
    });
    process::connect(&text.trim_end().replace('\n', ""))
}

/// A tab, which stays open until the browser exits.
pub struct Tab<'a> {
    browser: &'a Browser,
    session: String,
}

impl Tab<'_> {
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.browser.call(&self.session, method, params)
    }

    pub fn navigate(&self, url: &str) {
        let loaded = self.call("Page.navigate", json!({"url": url}));
        assert!(loaded["errorText"].is_null(), "{url}: {}", loaded["errorText"]);
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'");
    }

    /// Evaluates a JavaScript expression. If the value is a promise, waits for its result.
    pub fn eval(&self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut done = self.call("Runtime.evaluate", params);
        assert!(done["exceptionDetails"].is_null(), "{expression}: {}", done["exceptionDetails"]);
        done["result"]["value"].take()
    }

    pub fn text(&self, expression: &str) -> String {
        self.eval(expression).as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for(&self, expression: &str) {
        process::wait_for(expression, |expression| self.eval(expression));
    }

    /// Waits until an element exists and nothing covers it, and clicks its center. Retries if the element moved before
    /// the click, which happens while the page reconnects.
    pub fn click(&self, element: &str) {
        self.call("Page.bringToFront", json!({}));
        wait_until(&format!("{element} is clicked"), || {
            let at = self.eval(&format!("__aim(() => {element})"));
            if at.is_null() {
                return false;
            }
            for kind in ["mousePressed", "mouseReleased"] {
                let params = json!({"type": kind, "x": at["x"], "y": at["y"], "button": "left", "clickCount": 1});
                self.call("Input.dispatchMouseEvent", params);
            }
            self.eval("__hit") == true
        });
    }

    pub fn hover(&self, element: &str) {
        let at = self.eval(&format!("__centre(() => {element})"));
        self.call("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": at["x"], "y": at["y"]}));
    }

    pub fn press_button(&self, text: &str) {
        self.click(&process::button(text));
    }

    /// Replaces the content of the field that has this label.
    pub fn fill(&self, label: &str, text: &str) {
        self.click(&process::field(label));
        self.call("Input.dispatchKeyEvent", json!({"type": "keyDown", "commands": ["selectAll"]}));
        self.type_text(text);
    }

    /// Types into the focused element.
    pub fn type_text(&self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a named key, such as Enter or Tab, with or without Shift.
    pub fn press_key(&self, key: &str, shift: bool) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "PageUp" => (33, ""),
            "End" => (35, ""),
            "Home" => (36, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            _ => panic!("this driver does not know the key {key}"),
        };
        self.call("Page.bringToFront", json!({}));
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let shift = if shift { 8 } else { 0 };
            let mut params = json!({"type": kind, "key": key, "code": key, "modifiers": shift, "text": text});
            params["windowsVirtualKeyCode"] = code.into();
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Sets the size of the screen in CSS pixels and the preferred color scheme.
    pub fn set_screen(&self, width: u32, height: u32, scheme: &str) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", screen);
        self.set_media_features(&[("prefers-color-scheme", scheme)]);
    }

    /// Sets these CSS media features and resets all others to their defaults.
    pub fn set_media_features(&self, features: &[(&str, &str)]) {
        let features: Vec<_> = features.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Writes a screenshot of the tab to the directory in the environment variable `WIRECHAT_SCREENSHOTS`, if it is
    /// set.
    pub fn screenshot(&self, name: &str) {
        let Some(dir) = std::env::var_os("WIRECHAT_SCREENSHOTS") else {
            return;
        };
        self.call("Page.bringToFront", json!({}));
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let png = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&dir).join(format!("{name}.png")), png).expect("a place for screenshots");
    }
}
