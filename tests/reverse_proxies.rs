//! Tests the server behind real nginx, HAProxy and Caddy, with the configurations in the README.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/browser.rs"]
mod browser;
mod support;
#[path = "support/visitor.rs"]
mod visitor;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use browser::Browser;
use support::certificate::{Certificate, EC};
use support::{Server, becomes_true, require_tool, token_file, wait_until};
use visitor::{type_message, wait_for_log, wait_for_state};

/// A running proxy. It forwards requests for URLs that start with `https://127.0.0.1:{port}{path}` to a server.
struct Proxy {
    child: Child,
    directory: PathBuf,
    port: u16,
    path: &'static str,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns the first code block in the README with the language tag `language`. Port 3000 in the block is replaced by
/// `server`, the port of the test's server.
fn readme_config(language: &str, server: u16) -> String {
    let (_, rest) = include_str!("../README.md").split_once(&format!("```{language}\n")).expect(language);
    let (block, _) = rest.split_once("```").expect("the end of the block");
    assert!(block.contains("127.0.0.1:3000"), "{block}");
    block.replace("127.0.0.1:3000", &format!("127.0.0.1:{server}"))
}

fn replace(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?} in {text}");
    text.replace(old, new)
}

impl Proxy {
    /// Starts a proxy. `configure` receives the certificate's directory, the server's port and the proxy's port, and
    /// returns the contents of the proxy's configuration file.
    fn start(
        program: &Path,
        path: &'static str,
        arguments: &[&str],
        server: &Server,
        configure: impl Fn(&str, u16, u16) -> String,
    ) -> Option<Proxy> {
        let mut errors = String::new();
        for _ in 0..5 {
            let mut proxy = Proxy::spawn(program, path, arguments, server, &configure)?;
            let mut is_up = false;
            let has_settled = becomes_true(|| {
                is_up = proxy.curl("127.0.0.1", "health", &["--max-time", "5"]).starts_with("200");
                is_up || proxy.child.try_wait().unwrap().is_some()
            });
            if is_up {
                return Some(proxy);
            }
            // The proxy has exited, probably because another process took the port first. Try another port.
            errors += &fs::read_to_string(proxy.directory.join("stderr")).unwrap();
            assert!(has_settled, "{errors}");
        }
        panic!("{errors}");
    }

    fn spawn(
        program: &Path,
        path: &'static str,
        arguments: &[&str],
        server: &Server,
        configure: &impl Fn(&str, u16, u16) -> String,
    ) -> Option<Proxy> {
        let port = free_port();
        let certificate = Certificate::new(&format!("proxy-{port}"), EC)?;
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("proxy-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let both = [&certificate.cert, &certificate.key].map(|path| fs::read_to_string(path).unwrap());
        for (name, text) in [("cert.pem", &both[0]), ("key.pem", &both[1]), ("both.pem", &both.concat())] {
            fs::write(directory.join(name), text).unwrap();
        }
        fs::write(directory.join("config"), configure(directory.to_str().unwrap(), server.port(), port)).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&directory).env("HOME", &directory);
        command.env("XDG_CONFIG_HOME", &directory).env("XDG_DATA_HOME", &directory);
        let log = fs::File::create(directory.join("stderr")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the proxy starts");
        Some(Proxy { child, directory, port, path })
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{}{path}", self.port, self.path)
    }

    /// Sends a request from the loopback address `from`. Returns the status and the body, with a space between them.
    fn curl(&self, from: &str, path: &str, arguments: &[&str]) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--insecure", "--http1.1", "--max-time", "60", "--interface", from]);
        curl.args(["--output", "-", "--write-out", "\n%{http_code}"]).args(arguments).arg(self.url(path));
        let output = String::from_utf8(curl.output().expect("curl runs").stdout).unwrap();
        let (body, status) = output.rsplit_once('\n').unwrap();
        format!("{status} {}", body.trim())
    }
}

const HANDSHAKE: [&str; 8] = [
    "--header",
    "Connection: Upgrade",
    "--header",
    "Upgrade: websocket",
    "--header",
    "Sec-WebSocket-Version: 13",
    "--header",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

fn start_server(port: &str, tokens: &Path) -> Server {
    let tokens = ["--tokens", tokens.to_str().unwrap()];
    let args = ["--trusted-proxy", "127.0.0.1", "--max-wrong-tokens", "2", "--connect-rate", "0", "--verbose"];
    Server::start_at(&format!("127.0.0.1:{port}"), &[&args[..], &tokens].concat())
}

/// Tests a server behind a proxy end to end: limits, origin, the page, tokens in logs, and a restart.
fn check(start: impl Fn(&Server) -> Option<Proxy>) {
    let (Some(_), Some(browser)) = (require_tool("curl", &[]), Browser::start()) else { return };
    let tokens = token_file("proxies", "a-secret-of-alice alice\na-secret-of-bob bob\n");
    let server = start_server("0", &tokens);
    let Some(proxy) = start(&server) else { return };

    // The server applies its limits to the addresses of the clients, not to the address of the proxy.
    let guess = |from| proxy.curl(from, "echo?token=wrong", &HANDSHAKE);
    assert_eq!([guess("127.0.0.2"), guess("127.0.0.2")], ["401 Unauthorized", "401 Unauthorized"]);
    assert!(guess("127.0.0.2").starts_with("429 "), "{}", guess("127.0.0.2"));
    assert_eq!(guess("127.0.0.3"), "401 Unauthorized");
    server.wait_for_log("REJECT 127.0.0.3:");

    // Browsers load the page through a proxy that terminates TLS, so the page's origin starts with `https`.
    let own = format!("Origin: https://127.0.0.1:{}", proxy.port);
    let token = "Authorization: Bearer a-secret-of-bob";
    let ask = |origin: &str| proxy.curl("127.0.0.4", "check", &["--header", origin, "--header", token]);
    assert!(ask(&own).contains("\"status\":101"), "{}", ask(&own));
    assert!(ask(&own.replace("https", "http")).contains("\"status\":403"));

    // The page works behind the proxy. Alice opens a link with her token. Bob enters his token, and the page must
    // not send it in a URL.
    let alice = browser.open(&proxy.url("?username=alice&token=a-secret-of-alice&room=tea"));
    alice.press_button("Connect");
    wait_for_state(&alice, "joined");
    type_message(&alice, "hello through the proxy");
    wait_for_log(&alice, "hello through the proxy");
    let bob = browser.open(&proxy.url("?username=bob&room=tea"));
    bob.fill("Token", "a-secret-of-bob");
    bob.press_button("Connect");
    wait_for_state(&bob, "joined");
    wait_for_log(&bob, "hello through the proxy");
    // The access log of nginx (path `/chat/`) must contain the username but not the token. HAProxy and Caddy write no
    // access log by default.
    let log = fs::read_to_string(proxy.directory.join("access.log")).unwrap_or_default();
    assert!(proxy.path == "/" || log.contains("username=bob"), "{log}");
    assert!(!log.contains("a-secret-of-bob"), "{log}");

    // Restart the server while the proxy keeps running. Both pages must reconnect and rejoin their room.
    let port = server.port().to_string();
    drop(server);
    wait_for_state(&alice, "waiting");
    let server = start_server(&port, &tokens);
    wait_until("alice is back", || {
        alice.eval("document.body.dataset.state") == "joined" || {
            alice.eval("document.querySelector('#retry')?.click()");
            false
        }
    });
    type_message(&alice, "back again");
    wait_for_log(&bob, "back again");
    server.wait_for_log("JOIN");
}

#[test]
fn nginx() {
    let Some(program) = require_tool("nginx", &["/usr/sbin/nginx".into()]) else { return };
    let arguments = ["-e", "stderr", "-p", ".", "-c", "config", "-g", "daemon off;"];
    check(|server| {
        Proxy::start(&program, "/chat/", &arguments, server, |directory, server, port| {
            let locations = readme_config("nginx", server);
            format!(
                "pid {directory}/pid; events {{}}
                 http {{
                     access_log {directory}/access.log;
                     client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
                     fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
                     scgi_temp_path {directory}/scgi;
                     server {{
                         listen 127.0.0.1:{port} ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;
                         {locations}
                     }}
                 }}"
            )
        })
    });
}

#[test]
fn haproxy() {
    let Some(program) = require_tool("haproxy", &["/usr/sbin/haproxy".into()]) else { return };
    check(|server| {
        Proxy::start(&program, "/", &["-db", "-f", "config"], server, |directory, server, port| {
            let config = readme_config("haproxy", server);
            let config = replace(&config, "bind :443", &format!("bind 127.0.0.1:{port}"));
            let config = replace(&config, "/etc/haproxy/chat.pem", &format!("{directory}/both.pem"));
            format!(
                "defaults\n    mode http\n    timeout client 60s\n    timeout server 60s\n    timeout connect 5s\n{config}"
            )
        })
    });
}

/// Tests the server behind HAProxy in TCP mode. HAProxy sends the client's address in a PROXY protocol header. TLS
/// ends at the server if `tls_ends_at_server` is set, and otherwise at HAProxy.
fn check_proxy_protocol(version: &str, tls_ends_at_server: bool) {
    let Some(program) = require_tool("haproxy", &["/usr/sbin/haproxy".into()]) else { return };
    let (Some(_), Some(certificate)) = (require_tool("curl", &[]), Certificate::new(version, EC)) else { return };
    let tokens = token_file(version, "a-secret-of-bob bob\n");
    let options = ["--proxy-protocol", "--trusted-proxy", "127.0.0.1", "--max-wrong-tokens", "2", "--verbose"];
    let others = ["--tokens", tokens.to_str().unwrap(), "--allow-origin", "https://chat.example"];
    let tls = if tls_ends_at_server { certificate.options().to_vec() } else { Vec::new() };
    let server = Server::start(&[&options[..], &others, &tls].concat());
    let proxy = Proxy::start(&program, "/", &["-db", "-f", "config"], &server, |directory, server, port| {
        let tls = if tls_ends_at_server { String::new() } else { format!(" ssl crt {directory}/both.pem") };
        let config = replace(&readme_config("cfg", server), "bind :443", &format!("bind 127.0.0.1:{port}{tls}"));
        let config = replace(&config, "send-proxy-v2 check", &format!("{version} check inter 50ms"));
        format!("defaults\n    timeout connect 5s\n{config}")
    });
    let proxy = proxy.unwrap();
    let forged = [&HANDSHAKE[..], &["--header", "X-Forwarded-For: 203.0.113.1"]].concat();
    let guess = |from| proxy.curl(from, "echo?token=wrong", &forged)[..3].to_owned();
    let statuses = ["127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"].map(guess);
    assert_eq!(statuses, ["401", "401", "429", "401"], "{}", server.log());
    let ask = |origin: &str| {
        let headers = [format!("Origin: {origin}"), "Authorization: Bearer a-secret-of-bob".into()];
        proxy.curl("127.0.0.4", "check", &["--header", &headers[0], "--header", &headers[1]])
    };
    assert!(ask("https://chat.example").contains("\"status\":101"), "{}", ask("https://chat.example"));
    assert!(ask("https://evil.example").contains("\"status\":403"));
    // HAProxy also sends a PROXY protocol header on the connections of its health checks.
    wait_until("a health check ends", || server.log().contains("CLOSE 127.0.0.1:"));
    assert!(!server.log().contains(" 400 ") && !server.log().contains("203.0.113.1"), "{}", server.log());
}

#[test]
fn haproxy_names_the_client_in_a_header() {
    check_proxy_protocol("send-proxy", false);
    check_proxy_protocol("send-proxy-v2", false);
}

#[cfg(feature = "tls")]
#[test]
fn haproxy_forwards_tls() {
    check_proxy_protocol("send-proxy", true);
    check_proxy_protocol("send-proxy-v2", true);
}

#[test]
fn caddy() {
    let Some(program) = require_tool("caddy", &["/usr/bin/caddy".into()]) else { return };
    check(|server| {
        Proxy::start(
            &program,
            "/",
            &["run", "--adapter", "caddyfile", "--config", "config"],
            server,
            |_, server, port| {
                let site = readme_config("caddy", server);
                let site =
                    replace(&site, "chat.example {", &format!("https://127.0.0.1:{port} {{\n    tls cert.pem key.pem"));
                format!("{{\n    admin off\n    auto_https disable_redirects\n}}\n{site}")
            },
        )
    });
}
