//! Helpers for the tests of the running server: a server on a free port, a raw-socket client, and a check for tools
//! that may be missing.
//!
//! The helpers do not use the code under test. The client is a second, minimal implementation of the protocol: a client
//! that used the code in `ws/` would repeat its mistakes, and the tests would not find them.
#![allow(dead_code)] // each test binary uses only part of this module

pub mod certificate;
pub mod failure;
pub mod http;
pub mod table;
#[cfg(feature = "tls")]
pub mod tls;
pub mod users;
pub mod watched;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far longer than any step of a test takes on a loaded machine. A test that reaches this deadline fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The `Sec-WebSocket-Key` of the example in RFC 6455 §1.2. All raw clients send this key.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The accept value for [`KEY`] (RFC 6455 §1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A running server, on a free loopback port unless a test sets the address. Dropping the value kills the server.
pub struct Server {
    child: Child,
    addr: SocketAddr,
    banner: String,
    printed: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts the server with `--listen 127.0.0.1:0` and these arguments, and waits until it prints its address.
    pub fn start(args: &[&str]) -> Server {
        Server::start_at("127.0.0.1:0", args)
    }

    /// Like [`Server::start`], but listens on `listen`, for example for a restart on the same port.
    pub fn start_at(listen: &str, args: &[&str]) -> Server {
        Server::launch(&mut Server::command(listen, args))
    }

    /// Returns the command that [`Server::start_at`] runs. A caller may add an environment variable to the command.
    pub fn command(listen: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        command.args(["--listen", listen]).args(args).env_remove("RUST_LOG");
        #[cfg(feature = "tls")]
        if let Some(certificate) = certificate::Certificate::shared().filter(|_| !args.contains(&"--tls-cert")) {
            command.args(certificate.options());
        }
        command
    }

    /// Starts a shell that runs `setup` and then executes the server with a redirection such as `2>/dev/full`.
    pub fn start_from_shell(setup: &str, redirection: &str, args: &[&str]) -> Server {
        let server = Server::command("127.0.0.1:0", args);
        let mut shell = Command::new("bash");
        shell.args(["-ec", &format!("{setup}\nexec \"$0\" \"$@\" {redirection}")]);
        Server::launch(shell.arg(server.get_program()).args(server.get_args()).env_remove("RUST_LOG"))
    }

    /// Runs a command that starts the server, and waits until the server prints its address.
    pub fn launch(command: &mut Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let log = collect(child.stderr.take().expect("stderr is piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (mut banner, mut addr) = (String::new(), None);
        while addr.is_none() {
            let start = banner.len();
            let n = stdout.read_line(&mut banner).expect("the banner is text");
            assert!(n > 0, "the server ended at start: {}", log.lock().unwrap());
            addr = banner[start..].split_once("://").map(|(_, rest)| {
                let end = rest.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(rest.len());
                rest[..end].parse().expect("an address and a port")
            });
        }
        // Keep reading: a full pipe would block the server.
        let printed = collect(stdout);
        #[cfg(feature = "tls")]
        if let Some(certificate) = certificate::Certificate::shared() {
            let settings = tls::client_settings(&[certificate], rustls::ALL_VERSIONS, &[]);
            addr = addr.map(|addr| tls::forward_to(addr, settings));
        }
        Server { child, addr: addr.unwrap(), banner, printed, log }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the server has written to stdout so far.
    pub fn printed(&self) -> String {
        self.banner.clone() + &self.printed.lock().unwrap()
    }

    /// Returns what the server has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait_for_log(&self, needle: &str) {
        wait_until(&format!("the log contains {needle:?}"), || self.log().contains(needle));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child has a status").is_none()
    }

    /// Sends a signal by its name: `TERM`, `INT`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the server exits", || {
            status = self.child.try_wait().expect("the child has a status");
            status.is_some()
        });
        status.unwrap()
    }

    /// Opens a TCP connection to the server, and sends nothing.
    pub fn connect(&self) -> RawClient {
        RawClient::new(TcpStream::connect(self.addr).expect("the server accepts"))
    }

    /// Connects a client, and upgrades to WebSocket. `path` includes the query: `/echo?token=dev-token`.
    pub fn upgrade(&self, path: &str) -> RawClient {
        let mut client = self.connect();
        client.send(upgrade_request(path).as_bytes());
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        client
    }
}

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status();
    assert!(done.expect("kill runs").success());
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a thread that reads the server's stdout or stderr line by line into a string.
fn collect(stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&text);
    let mut stream = BufReader::new(stream);
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            sink.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
    text
}

/// The bytes of a valid upgrade request for `path`.
pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: FIN, RSV and opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    pub fn text(&self) -> &str {
        assert_eq!(self.first, 0x81, "a complete text frame: {self:?}");
        std::str::from_utf8(&self.payload).expect("text is UTF-8")
    }

    /// Returns the code and the reason of a Close frame. The code of an empty Close is 1005 (RFC 6455 §7.1.5).
    pub fn close(&self) -> (u16, String) {
        assert_eq!(self.first, 0x88, "a close frame: {self:?}");
        match self.payload.as_slice() {
            [] => (1005, String::new()),
            [hi, lo, reason @ ..] => {
                (u16::from_be_bytes([*hi, *lo]), String::from_utf8(reason.to_vec()).expect("a reason is UTF-8"))
            }
            [_] => panic!("a close payload of one byte"),
        }
    }
}

/// A raw-socket client: it can send arbitrary bytes, and fails the test if a frame from the server is invalid.
pub struct RawClient {
    pub stream: TcpStream,
}

impl RawClient {
    pub fn new(stream: TcpStream) -> RawClient {
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        RawClient { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server accepts bytes");
    }

    /// Sends bytes, and ignores errors: the server may have closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&masked(0x81, text.as_bytes()));
    }

    pub fn read_exact(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("more bytes from the server");
        bytes
    }

    /// Reads the head of an HTTP response up to and including the blank line, and not a byte more.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read_exact(1));
        }
        String::from_utf8(head).expect("a head is ASCII")
    }

    /// Reads one frame, and not a byte more.
    pub fn read_frame(&mut self) -> Frame {
        let mut bytes = self.read_exact(2);
        assert_eq!(bytes[1] & 0x80, 0, "a server never masks");
        let len = match bytes[1] {
            short @ 0..=125 => short.into(),
            long => {
                let extended = self.read_exact(if long == 126 { 2 } else { 8 });
                bytes.extend(&extended);
                extended.iter().fold(0, |len, byte| len << 8 | usize::from(*byte))
            }
        };
        bytes.extend(self.read_exact(len));
        split_frame(&bytes).expect("a whole frame").0
    }

    pub fn read_text(&mut self) -> String {
        self.read_frame().text().to_owned()
    }

    /// Reads a text frame that contains JSON.
    pub fn read_json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.read_text()).expect("JSON")
    }

    /// Reads events until one has the name `event`, and returns the `data` of that event.
    pub fn read_event(&mut self, event: &str) -> serde_json::Value {
        loop {
            let mut message = self.read_json();
            if message["event"] == event {
                return message["data"].take();
            }
        }
    }

    /// Reads until the server closes or resets the connection.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return all,
                Err(e) => panic!("the server neither sent anything nor ended the stream: {e}"),
            }
        }
    }

    /// Asserts that the stream ends without another byte.
    pub fn expect_end(&mut self) {
        assert_eq!(self.read_to_end(), b"", "nothing more before the end");
    }
}

/// Builds a client frame with the masking key 00 00 00 00, which leaves the payload readable (RFC 6455 §5.3). `first`
/// is the first byte (FIN, RSV and opcode): `0x81` is an unfragmented text message.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=65535 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Splits bytes from the server into complete frames and the start of an incomplete frame.
pub fn whole_frames(mut bytes: &[u8]) -> (Vec<Frame>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((frame, rest)) = split_frame(bytes) {
        frames.push(frame);
        bytes = rest;
    }
    (frames, bytes)
}

/// Returns the first frame and the bytes after it, or `None` if the frame is incomplete. Fails the test if the frame is
/// masked, has an RSV bit, or does not use the shortest form of its length (RFC 6455 §5.1, §5.2).
pub fn split_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    assert_eq!(first & 0x70, 0, "RSV bits are 0");
    assert_eq!(second & 0x80, 0, "a server never masks");
    let (len, min, rest) = match second {
        126 => rest.split_first_chunk().map(|(len, rest)| (u64::from(u16::from_be_bytes(*len)), 126, rest))?,
        127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len), 65536, rest))?,
        short => (u64::from(short), 0, rest),
    };
    assert!(len >= min, "the shortest length form");
    let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((Frame { first, payload: payload.to_vec() }, rest))
}

/// Writes a file for `--tokens`. `name` distinguishes the files of tests that run at the same time.
pub fn token_file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tokens-{name}-{}", std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    path
}

/// Waits for a condition, and fails the test after [`DEADLINE`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(becomes_true(condition), "never happened: {what}");
}

/// Waits for a condition, and returns `false` if the condition is still false after [`DEADLINE`].
pub fn becomes_true(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Finds a tool that a test needs: one of `candidates`, or `name` in `PATH`. If the tool is missing, prints that the
/// test is skipped and returns `None`. If `WIRECHAT_NO_SKIP` is set, as in CI, fails the test instead.
pub fn require_tool(name: &str, candidates: &[PathBuf]) -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let found = candidates
        .iter()
        .cloned()
        .chain(std::env::split_paths(&in_path).map(|dir| dir.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "{name} is missing and nothing may be skipped");
        print_skipped(&format!("this test needs {name}, which is not installed"));
    }
    found
}

/// Prints that a test is skipped. The test harness would hide the output of `eprintln!` because the test passes.
pub fn print_skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***\n");
}
