//! Tests listening sockets: several addresses, dual-stack IPv6, Unix sockets, and socket activation by systemd. Also
//! tests the notifications to systemd.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{fs, thread};

use support::failure::{FAILURE, USAGE, run_to_failure};
use support::http::{Request, Response, get, handshake};
use support::{DEADLINE, RawClient, Server, print_skipped, require_tool, signal, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_wirechat");

/// A folder for the sockets of one test. Its path is short, because the path of a Unix socket has at most 107 bytes.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("wirechat-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn listen_option(path: &Path) -> String {
    format!("--listen=unix:{}", path.display())
}

/// A running server. Unlike a [`Server`], a `Process` need not listen on TCP. Dropping a `Process` kills the server.
struct Process {
    child: Child,
    banner: String,
}

impl Process {
    fn run(path: &Path, args: &[&str]) -> Process {
        Process::launch(Command::new(PROGRAM).arg(listen_option(path)).args(args))
    }

    /// Starts the server and waits for the end of its banner.
    fn launch(command: &mut Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("stop:") {
            let len = stdout.read_line(&mut banner).unwrap();
            assert!(len > 0, "the server ended at start: {:?}, {banner}", child.wait());
        }
        Process { child, banner }
    }

    fn stop(&mut self, name: &str) -> ExitStatus {
        signal(self.child.id(), name);
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a Unix socket. The `TcpStream` of the returned client wraps the descriptor of the Unix socket, which
/// works because reads and writes are the same for both kinds of sockets.
fn unix_client(path: &Path) -> RawClient {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    RawClient { stream: TcpStream::from(OwnedFd::from(stream)) }
}

fn status(client: &mut RawClient, request: &Request) -> u16 {
    client.send(&request.bytes());
    Response::parse(client.read_head().as_bytes()).status
}

fn unix_status(path: &Path, request: &Request) -> u16 {
    status(&mut unix_client(path), request)
}

#[test]
fn several_addresses_lead_to_the_same_rooms() {
    let folder = Folder::new("several");
    let path = folder.path("socket");
    let server = Server::start(&["--listen", "127.0.0.2:0", &listen_option(&path), "--open"]);
    let first_line = server.printed().lines().next().unwrap().to_owned();
    let second = first_line.split("http://127.0.0.2:").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    assert!(first_line.contains(&format!("unix:{} ", path.display())), "{first_line}");
    let mut clients = [
        server.connect(),
        RawClient::new(TcpStream::connect(format!("127.0.0.2:{second}")).unwrap()),
        unix_client(&path),
    ];
    for client in &mut clients {
        assert_eq!(status(client, &handshake().target("/?username=ann")), 101);
        client.read_event("welcome");
    }
    clients[0].send_text(r#"{"event":"message","data":{"text":"everywhere"}}"#);
    for client in &mut clients {
        assert_eq!(client.read_event("message")["text"], "everywhere");
    }
}

#[test]
fn addresses_from_the_environment() {
    let folder = Folder::new("environment");
    let path = folder.path("socket");
    let mut command = Command::new(PROGRAM);
    command.arg("--open").env("WIRECHAT_LISTEN", format!("127.0.0.1:0,unix:{}", path.display()));
    let server = Server::launch(&mut command);
    assert_eq!(server.status(&handshake()), 101);
    assert_eq!(unix_status(&path, &handshake()), 101);
}

/// A server that listens on `[::]` also accepts IPv4. Its banner shows a loopback address, which a browser can open.
#[test]
fn dual_stack() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return print_skipped("this machine has no IPv6");
    }
    let server = Server::start_at("[::]:0", &["--open"]);
    assert_eq!(server.addr(), SocketAddr::from(([127, 0, 0, 1], server.port())));
    for address in [server.addr(), (Ipv6Addr::LOCALHOST, server.port()).into()] {
        let mut client = RawClient::new(TcpStream::connect(address).unwrap());
        assert_eq!(
            status(&mut client, &handshake().target(format!("/?username=port-{}", address.ip().is_ipv4()))),
            101
        );
    }
    server.wait_for_log("user=port-true connection=1 address=127.0.0.1");
    server.wait_for_log("user=port-false connection=2 address=::1");
    assert!(Server::start_at("0.0.0.0:0", &["--open"]).addr().ip().is_loopback());
}

#[test]
fn an_address_that_is_given_twice() {
    for address in ["127.0.0.1:3000", "unix:/tmp/wirechat-twice"] {
        let mut command = Command::new(PROGRAM);
        run_to_failure(command.args(["--open", "--listen", address, "--listen", address]))
            .check(USAGE, &[address, "twice"]);
    }
    let long = format!("unix:/{}", "x".repeat(107));
    run_to_failure(Command::new(PROGRAM).args(["--open", "--listen", &long])).check(USAGE, &["--listen", "107 bytes"]);
}

// ------------------------------------------------------------------------------------------------------ Unix sockets

#[test]
fn the_command_in_the_banner_works() {
    let folder = Folder::new("banner");
    let server = Process::run(&folder.path("socket"), &["--open"]);
    assert!(
        server.banner.starts_with("wirechat ") && server.banner.contains(" listens on unix:/"),
        "{}",
        server.banner
    );
    let Some(curl) = require_tool("curl", &[]) else { return };
    let line = server.banner.lines().find_map(|line| line.trim().strip_prefix("curl:")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[0], "curl");
    let output = Command::new(curl).args(&words[1..]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "{\"status\":\"ok\"}\n");
}

/// A proxy may forward connections from anywhere to a Unix socket. So a server on a Unix socket counts as public, and
/// must not start with the demo tokens, which everybody knows.
#[test]
fn a_unix_socket_makes_the_server_public() {
    let folder = Folder::new("public");
    let listen = listen_option(&folder.path("socket"));
    run_to_failure(Command::new(PROGRAM).arg(&listen))
        .check(USAGE, &["demo tokens", "--listen unix:/", "--tokens", "--open"]);
    run_to_failure(Command::new(PROGRAM).args([&listen, "--listen=127.0.0.1:0"]))
        .check(USAGE, &["demo tokens", "unix:/"]);
    assert!(!folder.path("socket").exists());
}

#[test]
fn the_umask_decides_who_may_connect() {
    let folder = Folder::new("umask");
    let path = folder.path("socket");
    for (umask, mode) in [("022", 0o755), ("077", 0o700), ("007", 0o770)] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), PROGRAM, &listen_option(&path), "--open"]);
        let mut server = Process::launch(&mut shell);
        let file = fs::metadata(&path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, mode, "umask {umask}");
        assert!(server.stop("INT").success());
    }
}

#[test]
fn the_socket_file_is_removed_on_shutdown() {
    let folder = Folder::new("stop");
    let path = folder.path("socket");
    for name in ["TERM", "INT"] {
        let mut server = Process::run(&path, &["--open"]);
        assert_eq!(unix_status(&path, &handshake()), 101);
        assert!(server.stop(name).success());
        assert!(!path.exists(), "SIG{name}");
    }
    // During the drain delay, the server still accepts clients. A second signal stops the server at once.
    let mut server = Server::start(&[&listen_option(&path), "--open", "--drain-delay", "600"]);
    server.signal("TERM");
    server.wait_for_log("STOP");
    assert_eq!(unix_status(&path, &handshake()), 101);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(130));
    assert!(!path.exists());
    // If the second address is in use, the server fails to start, and deletes the socket file that it created.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(PROGRAM);
    let command = command.args([&listen_option(&path), "--listen", &address, "--open"]);
    run_to_failure(command).check(FAILURE, &["already in use", &address[address.len() - 4..]]);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let folder = Folder::new("dead");
    let path = folder.path("socket");
    let mut dead = Process::run(&path, &["--open"]);
    dead.stop("KILL");
    assert!(path.exists(), "a killed server leaves its socket file");
    let server = Process::run(&path, &["--open"]);
    assert_eq!(unix_status(&path, &handshake()), 101);
    drop(server);
}

#[test]
fn the_socket_file_of_a_live_server_is_kept() {
    let folder = Folder::new("live");
    let path = folder.path("socket");
    let _server = Process::run(&path, &["--open"]);
    let fails = || {
        let mut command = Command::new(PROGRAM);
        run_to_failure(command.args([&listen_option(&path), "--open"])).check(FAILURE, &["unix:/", "already in use"]);
    };
    fails();
    assert_eq!(unix_status(&path, &handshake()), 101, "the first server still accepts clients");
    // A server with a full backlog also counts as running: it may just be too busy to accept connections.
    let busy_path = folder.path("busy");
    let busy = UnixListener::bind(&busy_path).unwrap();
    shorten_backlog(&busy);
    let waiting: Vec<_> = std::iter::from_fn(|| connect_now(&busy_path)).take(10_000).collect();
    assert!(!waiting.is_empty());
    let mut command = Command::new(PROGRAM);
    run_to_failure(command.args([&listen_option(&busy_path), "--open"])).check(FAILURE, &["unix:/", "already in use"]);
    assert!(busy_path.exists());
}

/// Limits the listener's backlog to one connection.
fn shorten_backlog(listener: &UnixListener) {
    socket2::SockRef::from(listener).listen(0).unwrap();
}

/// Connects without waiting. Returns `None` if the listener's backlog is full.
fn connect_now(path: &Path) -> Option<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.connect(&socket2::SockAddr::unix(path).unwrap()).is_ok().then_some(socket)
}

#[test]
fn no_other_file_is_deleted() {
    let folder = Folder::new("other");
    let (target, socket) = (folder.path("target"), folder.path("dead"));
    fs::write(&target, "precious").unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let datagrams = UnixDatagram::bind(folder.path("datagrams")).unwrap();
    fs::write(folder.path("file"), "precious").unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    symlink(&target, folder.path("link")).unwrap();
    symlink(&socket, folder.path("link-to-socket")).unwrap();
    symlink(folder.path("nothing"), folder.path("broken-link")).unwrap();
    for name in ["file", "folder", "link", "link-to-socket", "broken-link", "datagrams"] {
        let path = folder.path(name);
        let before = fs::symlink_metadata(&path).unwrap().file_type();
        let mut command = Command::new(PROGRAM);
        run_to_failure(command.args([&listen_option(&path), "--open"])).check(FAILURE, &["unix:/", name]);
        assert_eq!(fs::symlink_metadata(&path).unwrap().file_type(), before, "{name}");
    }
    assert_eq!(
        fs::read_to_string(target).unwrap() + &fs::read_to_string(folder.path("file")).unwrap(),
        "preciousprecious"
    );
    assert!(socket.exists());
    drop(datagrams);
    let path = folder.path("no-folder").join("socket");
    run_to_failure(Command::new(PROGRAM).args([&listen_option(&path), "--open"]))
        .check(FAILURE, &["unix:/", "--listen"]);
}

/// A new server binds the path of a Unix socket before the old server stops. The old server must not delete the new
/// server's socket file.
#[test]
fn shutdown_keeps_the_socket_file_of_another_server() {
    let folder = Folder::new("another");
    let path = folder.path("socket");
    let mut old = Process::run(&path, &["--open"]);
    fs::remove_file(&path).unwrap();
    let _new = Process::run(&path, &["--open"]);
    assert!(old.stop("TERM").success());
    assert_eq!(unix_status(&path, &handshake()), 101);
}

/// The server trusts every peer on a Unix socket as a proxy: it believes the client's address in `X-Forwarded-For` and
/// the scheme in `X-Forwarded-Proto`.
#[test]
fn a_peer_of_a_unix_socket_is_a_proxy() {
    let folder = Folder::new("proxy");
    let path = folder.path("socket");
    let server = Server::start(&[&listen_option(&path), "--open", "--max-per-address", "2"]);
    let from = |address: &str| handshake().add(format!("X-Forwarded-For: 198.51.100.9, {address}"));
    let mut clients: Vec<RawClient> = (0..8).map(|_| unix_client(&path)).collect();
    let rows = [
        (from("203.0.113.1"), 101),
        (from("203.0.113.1"), 101),
        (from("203.0.113.1"), 503),
        (from("203.0.113.2"), 101),
        // Without `X-Forwarded-For`, the client's address is unknown, so `--max-per-address` does not apply.
        (handshake(), 101),
        (handshake(), 101),
        (handshake(), 101),
    ];
    for (row, (client, (request, expected))) in clients.iter_mut().zip(&rows).enumerate() {
        assert_eq!(status(client, request), *expected, "row {row}");
    }
    server.wait_for_log("REJECT 203.0.113.1");
    for (scheme, expected) in [("https", 101), ("http", 403)] {
        let request = handshake().set("Host: 127.0.0.1").add(format!("X-Forwarded-Proto: {scheme}"));
        assert_eq!(unix_status(&path, &request.clone().add("Origin: https://127.0.0.1")), expected, "{scheme}");
        // Over TCP, this server trusts no proxy, and ignores `X-Forwarded-Proto`.
        assert_eq!(server.status(&request.add("Origin: https://127.0.0.1")), 403, "{scheme}");
    }
    assert!(!server.log().contains("PROXY"), "{}", server.log());
}

/// A server that listens only on a Unix socket accepts any `Host`, unless `--allow-host` lists the allowed hosts.
#[test]
fn hosts_on_a_unix_socket() {
    let folder = Folder::new("hosts");
    let path = folder.path("socket");
    let chat = handshake().set("Host: chat.example");
    let server = Process::run(&path, &["--open"]);
    assert_eq!(unix_status(&path, &chat), 101);
    assert_eq!(unix_status(&path, &chat.clone().add("Origin: http://chat.example")), 101);
    assert_eq!(unix_status(&path, &chat.clone().add("Origin: http://evil.example")), 403);
    drop(server);
    let _server = Process::run(&path, &["--open", "--allow-host", "chat.example"]);
    assert_eq!(unix_status(&path, &chat), 101);
    assert_eq!(unix_status(&path, &handshake().set("Host: evil.example")), 403);
    assert_eq!(unix_status(&path, &get("/health")), 200);
}

// --------------------------------------------------------------------------------------------------- socket activation

/// Returns a command that passes `descriptor` to the server as file descriptor 3, as systemd does. `pid` is the value
/// of `LISTEN_PID`, as a shell expression: `$$` is the server's process id, because the shell's `exec` keeps it.
fn activated_command(descriptor: OwnedFd, pid: &str, args: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("exec 3<&0 </dev/null; LISTEN_PID={pid} LISTEN_FDS=1 exec \"$0\" \"$@\"");
    shell.args(["-c", &script, PROGRAM]).args(args).stdin(Stdio::from(descriptor));
    shell
}

#[test]
fn an_inherited_socket_replaces_the_address() {
    let folder = Folder::new("inherited");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let never = listen_option(&folder.path("never"));
    let process = Process::launch(&mut activated_command(listener.into(), "$$", &[&never]));
    assert!(process.banner.contains(&format!("http://{address}/")), "{}", process.banner);
    let mut client = RawClient::new(TcpStream::connect(address).unwrap());
    assert_eq!(status(&mut client, &handshake().target("/?token=dev-token")), 101, "the server is local");
    assert!(!folder.path("never").exists());

    let path = folder.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut process = Process::launch(&mut activated_command(listener.into(), "$$", &["--open"]));
    assert!(process.banner.contains(&format!("unix:{}", path.display())), "{}", process.banner);
    assert_eq!(unix_status(&path, &handshake()), 101);
    assert!(process.stop("TERM").success());
    assert!(path.exists(), "the socket file belongs to the parent");
}

/// The demo tokens are public knowledge, so a server with an inherited socket on a public address must not start with
/// them.
#[test]
fn an_inherited_socket_can_make_the_server_public() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    run_to_failure(&mut activated_command(listener.into(), "$$", &[])).check(USAGE, &["demo tokens"]);
}

#[test]
fn descriptors_that_do_not_listen() {
    let folder = Folder::new("descriptors");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let file = fs::File::create(folder.path("file")).unwrap();
    let (unix, _other) = UnixStream::pair().unwrap();
    let rows: [(&str, OwnedFd); 5] = [
        ("a file", file.into()),
        ("UDP", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
        ("a connection", connected.into()),
        ("a pair", unix.into()),
        ("datagrams", UnixDatagram::unbound().unwrap().into()),
    ];
    for (name, descriptor) in rows {
        println!("{name}");
        run_to_failure(&mut activated_command(descriptor, "$$", &[])).check(USAGE, &["descriptor 3"]);
    }
}

#[test]
fn descriptors_for_another_process() {
    for pid in ["1", "", "$(($$ + 1))"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let process = Process::launch(&mut activated_command(listener.into(), pid, &["--listen", "127.0.0.1:0"]));
        assert!(!process.banner.contains(&address.to_string()), "LISTEN_PID={pid}: {}", process.banner);
    }
}

/// The parent process keeps the listening socket open. While no server is running, clients wait in the backlog.
#[test]
fn a_restart_loses_no_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut last = None;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = RawClient::new(TcpStream::connect(address).expect("the backlog has room"));
                    assert_eq!(status(&mut client, &handshake().target("/echo?token=dev-token")), 101);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let descriptor = listener.try_clone().unwrap().into();
            let mut process = Process::launch(&mut activated_command(descriptor, "$$", &["--drain", "10"]));
            let before = served.load(Ordering::Relaxed);
            wait_until("clients are served", || served.load(Ordering::Relaxed) > before + 50);
            assert!(process.stop("TERM").success());
        }
        // Some client threads may still be waiting in the backlog. Start one more server to respond to them, so that
        // all threads finish.
        let descriptor = listener.try_clone().unwrap().into();
        last = Some(Process::launch(&mut activated_command(descriptor, "$$", &[])));
        is_over.store(true, Ordering::Relaxed);
    });
    drop(last);
}

#[test]
fn systemd_socket_activate() {
    let Some(activate) = require_tool("systemd-socket-activate", &[]) else { return };
    let folder = Folder::new("activate");
    let path = folder.path("socket");
    let mut command = Command::new(activate);
    let listen = format!("--listen={}", path.display());
    let child = command.arg(listen).args([PROGRAM, "--open"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process { child: child.spawn().unwrap(), banner: String::new() };
    wait_until("the socket exists", || path.exists());
    // The first connection makes systemd-socket-activate start the server, which then accepts that connection.
    for _ in 0..3 {
        assert_eq!(unix_status(&path, &handshake()), 101);
    }
    assert!(process.stop("TERM").success());
}

// ---------------------------------------------------------------------------------------------------------- readiness

#[test]
fn systemd_knows_the_state_of_the_server() {
    let folder = Folder::new("notify");
    let socket = UnixDatagram::bind(folder.path("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let receive = || {
        let mut bytes = [0; 1000];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let path = folder.path("socket");
    let mut command = Command::new(PROGRAM);
    command.args([&listen_option(&path), "--open", "--drain-delay", "0.5", "--drain", "60"]);
    let mut process = Process::launch(command.env("NOTIFY_SOCKET", folder.path("notify")));
    assert_eq!(receive()[0], "READY=1");
    assert_eq!(unix_status(&path, &handshake()), 101);
    signal(process.child.id(), "HUP");
    let reloading = receive();
    assert_eq!(reloading[0], "RELOADING=1");
    let now = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(now.parse::<u64>().unwrap() > 0);
    assert_eq!(receive()[0], "READY=1");
    signal(process.child.id(), "TERM");
    let stopping = receive();
    assert_eq!(stopping[0], "STOPPING=1");
    let timeout = stopping.iter().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap();
    assert!(timeout.parse::<u64>().unwrap() > 60_500_000, "{timeout}");
    assert!(process.child.wait().unwrap().success(), "the server stops once no client is left");
    socket.set_nonblocking(true).unwrap();
    assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "one notification per state");
}

/// The server must start and run even if it cannot send notifications to `NOTIFY_SOCKET`.
#[test]
fn a_notify_socket_that_does_not_exist() {
    let mut command = Server::command("127.0.0.1:0", &[]);
    let server = Server::launch(command.env("NOTIFY_SOCKET", "/no/such/socket"));
    assert_eq!(server.status(&handshake()), 101);
    server.wait_for_log("NOTIFY_SOCKET");
}
