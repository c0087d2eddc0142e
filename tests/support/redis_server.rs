//! A real `redis-server` process for one test, with its own port and directory. A test can kill, suspend and restart
//! the process, with or without its data. Another Redis on the machine does not interfere.
#![allow(dead_code)] // each test binary uses only part of this module

use std::fs;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{require_tool, signal, wait_until};

/// The lowest ephemeral port on Linux. Redis listens on a lower port, so that no outgoing connection takes its port
/// while Redis is stopped.
const FIRST_EPHEMERAL_PORT: u16 = 32768;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Redis replies to a write only after the write is on the disk (`appendfsync always`).
    Always,
    Off,
}

pub struct RedisServer {
    program: PathBuf,
    directory: PathBuf,
    persistence: Persistence,
    options: Vec<String>,
    password: Option<String>,
    port: u16,
    process: Option<Child>,
    /// Whether to keep the directory after the test. A failed test always keeps the directory.
    pub keeps_directory: bool,
}

impl RedisServer {
    /// Starts Redis. Returns `None` on a machine without `redis-server`.
    pub fn start(persistence: Persistence) -> Option<RedisServer> {
        RedisServer::start_with(persistence, None, &[])
    }

    pub fn start_with(persistence: Persistence, password: Option<&str>, options: &[&str]) -> Option<RedisServer> {
        let mut redis = RedisServer::prepare(persistence, password, options)?;
        redis.launch();
        Some(redis)
    }

    /// Chooses a port and a directory for a Redis that [`RedisServer::launch`] starts later.
    pub fn prepare(persistence: Persistence, password: Option<&str>, options: &[&str]) -> Option<RedisServer> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let program = require_tool("redis-server", &[])?;
        let name = format!("redis-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory");
        let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        options.extend(password.into_iter().flat_map(|password| ["--requirepass".to_owned(), password.to_owned()]));
        let password = password.map(str::to_owned);
        let (port, process, keeps_directory) = (free_port(), None, false);
        Some(RedisServer { program, directory, persistence, options, password, port, process, keeps_directory })
    }

    /// Starts Redis with the data in its directory, and waits until Redis accepts commands.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "Redis is not running");
        self.repair_data();
        wait_until("Redis starts", || {
            let has_exited = |process: &mut Child| process.try_wait().expect("a child").is_some();
            if self.process.as_mut().is_none_or(has_exited) {
                // If Redis exits at once, another program is using the port. At the first start, choose another port.
                // At later starts, clients already know the port, so retry until the port is free.
                if self.process.is_some() && self.is_new() {
                    self.port = free_port();
                }
                self.process = Some(self.spawn());
            }
            self.ask(&["PING"]).is_ok_and(|reply| reply == "PONG")
        });
        let _ = fs::write(self.directory.join("started"), "");
    }

    /// A kill can leave an incomplete transaction at the end of the append-only file. At its next start, Redis 7.0
    /// would execute the first part of the transaction. `redis-check-aof --fix` removes the whole transaction.
    fn repair_data(&self) {
        let Ok(files) = fs::read_dir(self.directory.join("appendonlydir")) else { return };
        for path in
            files.map(|file| file.expect("an entry").path()).filter(|path| path.extension().is_some_and(|e| e == "aof"))
        {
            let mut tool = Command::new(self.program.with_file_name("redis-check-aof"));
            let tool = tool.arg("--fix").arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
            let mut tool = tool.expect("redis-check-aof runs");
            let _ = tool.stdin.take().expect("a pipe").write_all(b"y\n");
            tool.wait().expect("a child");
        }
    }

    fn is_new(&self) -> bool {
        !self.directory.join("started").exists()
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.directory.join("redis.log"));
        let log = log.expect("a file");
        let appends = if self.persistence == Persistence::Always { "yes" } else { "no" };
        let mut command = Command::new(&self.program);
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--daemonize", "no", "--save", ""]);
        command.args(["--appendonly", appends, "--appendfsync", "always", "--dir"]).arg(&self.directory);
        command.args(&self.options).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log).spawn().expect("redis-server runs")
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self) -> String {
        self.url_via(self.addr())
    }

    /// Returns the URL of this Redis with another address, such as the address of a proxy.
    pub fn url_via(&self, addr: SocketAddr) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}{addr}")
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("Redis is running");
        process.kill().expect("a child");
        process.wait().expect("a child");
    }

    /// Kills Redis, and starts it again with the data on the disk.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Deletes the files in which Redis keeps its data. Redis must not be running.
    pub fn remove_data(&mut self) {
        assert!(self.process.is_none(), "Redis is not running");
        let _ = fs::remove_dir_all(self.directory.join("appendonlydir"));
        let _ = fs::remove_file(self.directory.join("dump.rdb"));
    }

    /// The directory with the data and the log.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("Redis is running").id()
    }

    /// Suspends the process (SIGSTOP): connections stay open, but Redis does not reply.
    pub fn stop(&self) {
        signal(self.pid(), "STOP");
    }

    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// Executes a command on a new connection. Returns the reply as JSON: a string, a number, a list or `null`.
    pub fn ask(&self, command: &[&str]) -> Result<Value> {
        let stream = TcpStream::connect_timeout(&self.addr(), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = BufReader::new(stream);
        if let Some(password) = &self.password {
            request(&mut stream, &["AUTH", password])?;
        }
        request(&mut stream, command)
    }

    /// Like [`RedisServer::ask`], for a command that must succeed.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> Value {
        self.ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub fn keys(&self) -> Vec<String> {
        let keys = self.run(&["KEYS", "*"]);
        let keys = keys.as_array().expect("a list").iter();
        keys.map(|key| key.as_str().expect("a key").to_owned()).collect()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if !std::thread::panicking() && !self.keeps_directory {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Returns a port that is free now, and that Linux does not choose as an ephemeral port.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10000..FIRST_EPHEMERAL_PORT);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn request(stream: &mut BufReader<TcpStream>, command: &[&str]) -> Result<Value> {
    let mut bytes = format!("*{}\r\n", command.len());
    command.iter().for_each(|word| bytes += &format!("${}\r\n{word}\r\n", word.len()));
    stream.get_mut().write_all(bytes.as_bytes())?;
    reply(stream)
}

fn reply(stream: &mut BufReader<TcpStream>) -> Result<Value> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(ErrorKind::UnexpectedEof)?;
    let number = || rest.parse::<i64>().map_err(Error::other);
    match kind {
        "+" => Ok(json!(rest)),
        "-" => Err(Error::other(rest.to_owned())),
        ":" => Ok(json!(number()?)),
        "*" => (0..number()?).map(|_| reply(stream)).collect::<Result<Vec<_>>>().map(Value::Array),
        "$" => {
            let Ok(len) = usize::try_from(number()?) else { return Ok(Value::Null) };
            let mut bytes = vec![0; len + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(len);
            Ok(json!(String::from_utf8_lossy(&bytes)))
        }
        _ => Err(Error::other(format!("not a reply: {line}"))),
    }
}
