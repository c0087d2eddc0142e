//! Starts a browser process and connects to its remote-control WebSocket, for the Chromium and Firefox drivers.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::WebSocket;

use crate::support::{DEADLINE, becomes_true};

/// A running browser. On drop, kills the browser and removes its profile directory.
pub struct BrowserProcess {
    child: Child,
    pub profile: PathBuf,
}

impl BrowserProcess {
    /// Starts a browser with a fresh profile.
    pub fn start(name: &str, command: impl FnOnce(&Path) -> Command) -> BrowserProcess {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wirechat-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let profile = std::env::temp_dir().join(name);
        std::fs::create_dir(&profile).expect("a new directory for the profile");
        let child = command(&profile).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the browser starts");
        BrowserProcess { child, profile }
    }
}

impl Drop for BrowserProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The browser's child processes exit a moment after the browser, and may still write to the profile, so try
        // several times to remove the profile.
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            std::fs::remove_dir_all(&self.profile).is_ok()
        });
    }
}

/// Connects to the browser's WebSocket on 127.0.0.1. `address` is `PORT/PATH`.
pub fn connect(address: &str) -> WebSocket<TcpStream> {
    let (port, _) = address.split_once('/').expect("a port and a path");
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the browser accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    tungstenite::client(format!("ws://127.0.0.1:{address}"), stream).expect("the browser speaks WebSocket").0
}

/// Waits until a JavaScript expression is true on the page. Calls `eval` repeatedly to evaluate the expression there.
pub fn wait_for(expression: &str, eval: impl Fn(&str) -> Value) {
    if !becomes_true(|| eval(&format!("Boolean({expression})")) == true) {
        panic!("never happened: {expression}\nThe page shows: {}", eval("document.body.innerText"));
    }
}

/// Returns a JavaScript expression that finds the button with this text.
pub fn button(text: &str) -> String {
    format!("__button({})", json!(text))
}

/// Returns a JavaScript expression that finds the input field with this label.
pub fn field(label: &str) -> String {
    format!("__field({})", json!(label))
}
