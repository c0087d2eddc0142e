//! Tests the exit code and the error message of `wirechat health` for healthy, unhealthy, absent and hostile servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::table::each_row;
use support::{DEADLINE, Server};

fn health(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    command.arg("health").args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Checks that `wirechat health` exits with `code` and prints one line to stderr that contains all `words`.
#[track_caller]
fn assert_error(arguments: &[&str], code: i32, words: &[&str]) {
    let output = health(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(output.stdout.is_empty() && error.starts_with("wirechat: ") && error.lines().count() == 1, "{error:?}");
    for word in words {
        assert!(error.contains(word), "{word:?} in {error:?}");
    }
}

/// Accepts one connection on a free port, reads the request, and passes the stream to `serve`.
fn listen(serve: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        serve(stream);
    });
    address
}

fn respond(response: &'static [u8]) -> String {
    let address = listen(move |mut stream| drop(stream.write_all(response)));
    format!("http://{address}")
}

#[test]
fn a_running_server() {
    let server = Server::start(&[]);
    for path in ["", "/", "/health", "/?a=b"] {
        let output = health(&[&format!("http://{}{path}", server.addr())]);
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{path}: {output:?}");
    }
    assert_error(&[&format!("http://{}/nowhere?token=secret", server.addr())], 1, &["/nowhere: the status is 404"]);
}

/// In a container, a server listens on all addresses, and `--allow-host` contains only the server's public name.
/// `wirechat health` must still succeed with a loopback name.
#[test]
fn a_public_server() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let server = Server::start_at(listen, &["--open", "--allow-host", "chat.example"]);
        for host in ["127.0.0.1", "localhost"] {
            let output = health(&[&format!("http://{host}:{}", server.port())]);
            assert!(output.status.success(), "{host} for {listen}: {output:?}");
        }
    }
}

/// `wirechat health` ignores the environment variables that configure the server: a container passes the same variables
/// to both programs.
#[test]
fn server_variables_are_ignored() {
    let server = Server::start(&[]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_wirechat"));
    command.args(["health", &format!("http://{}", server.addr())]).env("WIRECHAT_LISTEN", "nonsense");
    assert!(command.status().unwrap().success());
}

#[test]
fn the_request_is_exact() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 1000];
        let len = stream.read(&mut request).unwrap();
        sender.send(String::from_utf8(request[..len].to_vec()).unwrap()).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
    });
    assert!(health(&[&format!("http://{address}/A%20b?c=d")]).status.success());
    let expected = format!("GET /A%20b?c=d HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    assert_eq!(receiver.recv().unwrap(), expected);
}

#[test]
fn responses_of_unhealthy_servers() {
    let rows: [(&[u8], &str); 8] = [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "the status is 503, not 200"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the status is 204"),
        (b"HTTP/1.1 301 Moved Permanently\r\nLocation: /health\r\n\r\n", "the status is 301"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the status is 101"),
        (b"HTTP/1.1 200 OK\r\nContent-", "without a complete response"),
        (b"", "without a complete response"),
        (b"SSH-2.0-OpenSSH\x1b[31m\r\n", "the response is not HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "the response is not HTTP"),
    ];
    each_row(
        &rows,
        |(response, _)| String::from_utf8_lossy(response).into_owned(),
        |(response, words)| {
            let url = respond(response);
            assert_error(&[&url], 1, &[&format!("{url}/health: "), words]);
        },
    );
}

#[test]
fn a_closed_port() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_error(&[&format!("http://{address}")], 1, &[&address.to_string(), "cannot connect"]);
}

#[test]
fn a_name_without_an_address() {
    assert_error(&["http://wirechat.invalid:3000", "--timeout", "20s"], 1, &["wirechat.invalid"]);
}

/// Neither a silent server nor a server that sends one byte at a time can extend the timeout of `wirechat health`.
#[test]
fn servers_that_are_too_slow() {
    let silent = listen(|stream| {
        thread::sleep(DEADLINE);
        drop(stream);
    });
    let slow = listen(|mut stream| {
        for byte in b"HTTP/1.1 200 OK\r\nX: ".iter().chain([b'x'; 10_000].iter()) {
            let _ = stream.write_all(&[*byte]);
            thread::sleep(Duration::from_millis(10));
        }
    });
    let not_accepted = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [silent, slow, not_accepted.local_addr().unwrap()] {
        let start = Instant::now();
        assert_error(&[&format!("http://{address}"), "--timeout", "300ms"], 1, &["no response within 300ms"]);
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(300) && elapsed < DEADLINE / 2, "{elapsed:?}");
    }
}

/// `wirechat health` stops reading an endless response long before the timeout.
#[test]
fn endless_responses() {
    let endless = |start: &'static [u8], rest: &'static [u8]| {
        let address = listen(move |mut stream| {
            let _ = stream.write_all(start);
            let many = rest.repeat(1000);
            while stream.write_all(&many).is_ok() {}
        });
        format!("http://{address}")
    };
    let limit = ["the head of the response does not end"];
    assert_error(&[&endless(b"HTTP/1.1 200 OK\r\nX: ", b"xx"), "--timeout", "60s"], 1, &limit);
    assert_error(&[&endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "--timeout", "60s"], 1, &["too many headers"]);
    let body = health(&[&endless(b"HTTP/1.1 200 OK\r\n\r\n", b"xx"), "--timeout", "60s"]);
    assert!(body.status.success(), "{body:?}");
}

#[test]
fn bad_arguments() {
    let rows: [(&[&str], &str); 11] = [
        (&["ws://127.0.0.1:3000"], "http://127.0.0.1:3000"),
        (&["127.0.0.1:3000"], "begin with http://"),
        (&["/health"], "begin with http://"),
        (&[""], "begin with http://"),
        (&["http://"], "is not a host"),
        (&["http://127.0.0.1:99999"], "is not a host"),
        (&["http://me:secret@127.0.0.1"], "is not a host"),
        (&["http://127.0.0.1:3000/a b\r\nX: y"], "percent-encoded"),
        (&["http://127.0.0.1:3000/#a"], "fragment"),
        (&[], "<URL>"),
        (&["http://127.0.0.1:3000", "--timeout", "0s"], "--timeout"),
    ];
    each_row(&rows, |(arguments, _)| arguments.join(" "), |(arguments, words)| assert_error(arguments, 2, &[words]));
}

#[test]
#[cfg(not(feature = "tls"))]
fn https_needs_the_tls_feature() {
    assert_error(&["https://127.0.0.1:3000"], 2, &["https needs the feature tls", "the server's own port"]);
}
