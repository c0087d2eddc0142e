//! What every test of the running server needs: the server itself on a port of its own, a raw socket that
//! speaks bytes, and the one rule about tools that may be missing.
//!
//! Nothing here uses the code under test: the client half is written again, as plainly as possible, so that a
//! mistake in `ws/` cannot hide behind the same mistake in its test.
#![allow(dead_code)] // each test binary uses its own part

pub mod http;
pub mod people;
pub mod table;
pub mod watched;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far beyond what anything here takes on a loaded machine; a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The upgrade request of RFC 6455 §1.2's shape that every raw client here sends; `{path}` is filled in.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// §1.3: the accept value that answers [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The program under test, listening on a loopback port of its own; killed when dropped.
pub struct Server {
    child: Child,
    addr: SocketAddr,
    banner: String,
    printed: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts the server with these arguments besides `--listen 127.0.0.1:0`, and waits until it says where it listens.
    pub fn start(args: &[&str]) -> Server {
        Server::start_at("127.0.0.1:0", args)
    }

    /// The same on an address of the caller's choice, to come back on a port that clients already know.
    pub fn start_at(listen: &str, args: &[&str]) -> Server {
        Server::launch(&mut Server::command(listen, args))
    }

    /// The command that [`Server::start_at`] runs, for a caller who wants more said first: an environment variable, say.
    pub fn command(listen: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
        command.args(["--listen", listen]).args(args).env_remove("RUST_LOG");
        command
    }

    /// Runs a command that ends up being the server, and waits until it says where it listens.
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
            addr = banner[start..].split_once("http://").map(|(_, rest)| {
                let end = rest.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(rest.len());
                rest[..end].parse().expect("an address and a port")
            });
        }
        // The rest of the banner is read on, so that the server never meets a full pipe.
        let printed = collect(stdout);
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

    /// What the server has written to stdout so far.
    pub fn printed(&self) -> String {
        self.banner.clone() + &self.printed.lock().unwrap()
    }

    /// What the server has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log holds `needle`.
    pub fn wait_for_log(&self, needle: &str) {
        wait_until(&format!("the log says {needle:?}"), || self.log().contains(needle));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be asked").is_none()
    }

    /// Sends a signal by its name, as `kill` takes it: `TERM`, `INT`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status();
        assert!(done.expect("kill runs").success());
    }

    /// Waits for the server's own end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the server ends", || {
            status = self.child.try_wait().expect("the child can be asked");
            status.is_some()
        });
        status.unwrap()
    }

    /// A socket to the server with nothing sent yet.
    pub fn connect(&self) -> RawClient {
        RawClient::new(TcpStream::connect(self.addr).expect("the server accepts"))
    }

    /// A socket that is past the upgrade: `path` with its query, for example `/echo?token=dev-token`.
    pub fn upgrade(&self, path: &str) -> RawClient {
        let mut client = self.connect();
        client.send(upgrade_request(path).as_bytes());
        let head = client.read_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream of the server's on a thread of its own, line by line, into a string that grows.
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

/// One frame as it came from the server.
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
        assert_eq!(self.first, 0x81, "a whole text frame: {self:?}");
        std::str::from_utf8(&self.payload).expect("text is UTF-8")
    }

    /// The code and the reason of a close frame; 1005 stands for an empty one (RFC 6455 §7.1.5).
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

/// A client that is nothing but a socket: it sends what it is told and reads frames strictly.
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
        self.stream.write_all(bytes).expect("the server takes bytes");
    }

    /// Sends, and does not mind a server that has already hung up.
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

    /// Reads an HTTP head, through its blank line and not a byte further.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.read_exact(1));
        }
        String::from_utf8(head).expect("a head is ASCII")
    }

    /// Reads one frame. A server's frame is unmasked, has no RSV bit, and has its length in the shortest form
    /// (RFC 6455 §5.1, §5.2): anything else fails the test here.
    pub fn read_frame(&mut self) -> Frame {
        let head = self.read_exact(2);
        assert_eq!(head[0] & 0x70, 0, "RSV bits are 0");
        assert_eq!(head[1] & 0x80, 0, "a server never masks");
        let len = match head[1] {
            126 => {
                let len = u16::from_be_bytes(self.read_exact(2).try_into().unwrap());
                assert!(len > 125, "the shortest length form");
                len as usize
            }
            127 => {
                let len = u64::from_be_bytes(self.read_exact(8).try_into().unwrap());
                assert!(len > 65535, "the shortest length form");
                len as usize
            }
            short => short as usize,
        };
        Frame { first: head[0], payload: self.read_exact(len) }
    }

    pub fn read_text(&mut self) -> String {
        self.read_frame().text().to_owned()
    }

    /// Reads a text frame that holds a JSON object.
    pub fn read_json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.read_text()).expect("JSON")
    }

    /// Reads frames until one is an event of this name, and returns its `data`.
    pub fn read_event(&mut self, event: &str) -> serde_json::Value {
        loop {
            let mut message = self.read_json();
            if message["event"] == event {
                return message["data"].take();
            }
        }
    }

    /// All bytes until the server ends the stream. A reset counts as an end.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return all,
                Err(e) => panic!("the server neither spoke nor hung up: {e}"),
            }
        }
    }

    /// Asserts that nothing more comes before the end of the stream.
    pub fn expect_end(&mut self) {
        assert_eq!(self.read_to_end(), b"", "nothing more before the end");
    }
}

/// A client frame with the masking key 00 00 00 00, so that its payload can be read in the bytes (RFC 6455 §5.3).
/// `first` is FIN, RSV and opcode: `0x81` is a whole text message.
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

/// The whole frames that a server's bytes are, and the beginning of one that is not whole.
pub fn whole_frames(mut bytes: &[u8]) -> (Vec<Frame>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((frame, rest)) = split_frame(bytes) {
        frames.push(frame);
        bytes = rest;
    }
    (frames, bytes)
}

fn split_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match second {
        126 => rest.split_first_chunk().map(|(len, rest)| (u64::from(u16::from_be_bytes(*len)), rest))?,
        127 => rest.split_first_chunk().map(|(len, rest)| (u64::from_be_bytes(*len), rest))?,
        short => (u64::from(short), rest),
    };
    let (payload, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((Frame { first, payload: payload.to_vec() }, rest))
}

/// A file of tokens with this content, for `--tokens`; `name` keeps apart the files of tests that run at once.
pub fn token_file(name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tokens-{name}-{}", std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    path
}

/// Waits for a condition, and fails the test at the deadline.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(condition), "never happened: {what}");
}

/// Waits for a condition until the deadline, and says whether it came true.
pub fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The path of a tool that a test needs, looked for at `candidates` and then in `PATH`. A machine without it skips the
/// test and says so; with `WIRECHAT_NO_SKIP` set, as in CI, that is a failure.
pub fn require_tool(name: &str, candidates: &[PathBuf]) -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let found = candidates
        .iter()
        .cloned()
        .chain(std::env::split_paths(&in_path).map(|dir| dir.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("WIRECHAT_NO_SKIP").is_none(), "{name} is missing and nothing may be skipped");
        say_skipped(&format!("this test needs {name}, which is not installed"));
    }
    found
}

/// Says aloud that a test was skipped. `eprintln!` would not do: what a passing test prints that way is never shown.
pub fn say_skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***\n");
}
