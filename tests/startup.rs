//! Tests of the command line and the environment: configurations that the server accepts, configurations that the
//! server rejects, and the suggestions in its errors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use support::failure::{FAILURE, USAGE, expect_start_failure, run_to_failure};
use support::http::{Request, Response, handshake};
use support::table::each_row;
use support::watched::DEMO_TOKENS;
use support::{Server, token_file, wait_until};

/// A port in use is not a usage error: the server exits with the status for errors at run time.
#[test]
fn a_port_in_use() {
    let server = Server::start(&[]);
    let (address, port) = (server.addr().to_string(), server.port().to_string());
    expect_start_failure(&address, &[]).check(FAILURE, &[&port]);
    assert_eq!(server.status(&handshake()), 101, "the first server still runs");
}

/// Everybody knows the demo tokens, so a server that accepts them must listen on loopback.
#[test]
fn demo_tokens_off_loopback() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        expect_start_failure(listen, &[]).check(USAGE, &["demo tokens", listen, "--tokens", "--open"]);
    }
}

/// `--allow-host` and `--trusted-proxy` make a server on loopback public. It then needs `--tokens` or `--open`.
#[test]
fn demo_tokens_on_a_public_server() {
    for option in [["--allow-host", "chat.example"], ["--allow-host", "*"], ["--trusted-proxy", "127.0.0.1/32"]] {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            expect_start_failure(listen, &option)
                .check(USAGE, &["demo tokens", option[0], option[1], "--tokens", "--open"]);
        }
        assert_eq!(Server::start(&[&option[..], &["--open"]].concat()).status(&handshake()), 101);
    }
    let failure = run_to_failure(Server::command("127.0.0.1:0", &[]).env("WIRECHAT_TRUSTED_PROXY", "10.0.0.0/8"));
    failure.check(USAGE, &["demo tokens", "10.0.0.0/8"]);
}

/// A server on an IPv6 address accepts the address in `Host` and `Origin`, and rejects other hosts.
#[test]
fn ipv6() {
    let server = Server::start_at("[::1]:0", &[]);
    let own = format!("Host: {}", server.addr());
    assert_eq!(server.status(&handshake().set(&own)), 101);
    assert_eq!(server.status(&handshake().set(&own).add(format!("Origin: http://{}", server.addr()))), 101);
    assert_eq!(server.status(&handshake().set("Host: evil.example")), 403);
}

#[test]
fn a_bare_port_is_on_loopback() {
    let server = Server::start_at("0", &[]);
    assert!(server.addr().ip().is_loopback());
    assert_eq!(server.status(&handshake()), 101);
}

#[test]
fn invalid_addresses() {
    let rows = ["nonsense", "127.0.0.1", "localhost", ":3000", "127.0.0.1:99999", "99999", "-1", "::1", "::1:3000", ""];
    for listen in rows.into_iter().chain(["http://127.0.0.1:3000", "127.0.0.1:3000/"]) {
        let listen = format!("--listen={listen}");
        let failure = run_to_failure(Command::new(env!("CARGO_BIN_EXE_wirechat")).arg(listen));
        failure.check(USAGE, &["--listen", "127.0.0.1:3000"]);
    }
}

#[test]
fn invalid_options() {
    let mut rows: Vec<Vec<&str>> = vec![
        vec!["--max-head", "many"],
        vec!["--max-head", "100"],
        vec!["--max-text=-1"],
        vec!["--max-message", "18446744073709551616"],
        vec!["--idle-timeout", "30", "--ping-interval", "60"],
        vec!["--allow-origin", "nonsense"],
        vec!["--tokens"],
        vec!["--no-such-flag"],
        vec!["--trace-filter", "nonsense", "--trace"],
        vec!["--trace-filter", "control"],
        vec!["--quiet", "--verbose"],
    ];
    for flag in ["--max-head", "--max-headers", "--max-message", "--max-echo", "--max-text", "--max-fragments"] {
        rows.push(vec![flag, "0"]);
    }
    for flag in ["--max-outbox", "--max-buffered", "--max-connections", "--max-rooms"] {
        rows.push(vec![flag, "0"]);
    }
    for flag in ["--history", "--max-history", "--max-empty-rooms", "--rate-limit"] {
        for value in ["-1", "many", ""] {
            rows.push(vec![flag, value]);
        }
    }
    for (flag, value) in [("--rate-limit", "nan"), ("--rate-limit", "inf"), ("--history-ttl", "-1")] {
        rows.push(vec![flag, value]);
    }
    for flag in ["--handshake-timeout", "--ping-interval", "--idle-timeout", "--close-timeout"] {
        for value in ["0", "-1", "nan", "inf", "1e300", "soon", ""] {
            rows.push(vec![flag, value]);
        }
    }
    each_row(
        &rows,
        |row| row.join(" "),
        |row| {
            // Pass the option and its value as one argument, because a value may start with a minus sign.
            let joined = if row.get(1).is_some_and(|value| !value.starts_with("--")) { 2 } else { 1 };
            let first = [row[..joined].join("=")];
            let args: Vec<&str> = first.iter().map(String::as_str).chain(row.iter().skip(joined).copied()).collect();
            let flag = row[0].split('=').next().unwrap();
            expect_start_failure("127.0.0.1:0", &args).check(USAGE, &[flag]);
        },
    );
}

/// Each row contains two conflicting options and a value for the first option that resolves the conflict.
#[test]
fn limits_that_exclude_each_other() {
    let rows = [
        (["--max-text", "70000", "--max-message", "65536"], "65000"),
        (["--max-message", "500", "--max-text", "500"], "538"),
        (["--max-buffered", "2000000", "--max-echo", "2000001"], "2000001"),
        (["--max-history", "1024", "--max-text", "1025"], "1025"),
        (["--ping-interval", "60", "--idle-timeout", "60"], "59.9"),
    ];
    each_row(
        &rows,
        |(args, _)| args.join(" "),
        |(args, value)| {
            expect_start_failure("127.0.0.1:0", args).check(USAGE, &[args[0], args[1], args[2]]);
            Server::start(&[args[0], value, args[2], args[3]]);
        },
    );
    // The server accepts a `--max-text` of 20,000 characters, although a non-ASCII text of that length may exceed
    // `--max-message` (65,536 bytes).
    Server::start(&["--max-text", "20000"]);
}

/// A build without the feature `sqlite` rejects the feature's options, on the command line and in the environment.
#[test]
#[cfg(not(feature = "sqlite"))]
fn sqlite_options_without_the_feature() {
    let rows = [
        ("--history-db", "history.db"),
        ("--history-sync", "full"),
        ("--history-sync", "normal"),
        ("--history-keep", "5"),
        ("--history-keep", "0"),
        ("--history-days", "1"),
        ("--history-days", "0"),
    ];
    each_row(
        &rows,
        |(option, value)| format!("{option} {value}"),
        |(option, value)| {
            let words = [*option, "feature sqlite"];
            expect_start_failure("127.0.0.1:0", &[option, value]).check(USAGE, &words);
            let variable = format!("WIRECHAT_{}", option[2..].to_uppercase().replace('-', "_"));
            run_to_failure(Server::command("127.0.0.1:0", &[]).env(variable, value)).check(USAGE, &words);
        },
    );
    assert!(!std::path::Path::new("history.db").exists(), "no file is created");
}

#[test]
#[cfg(not(feature = "deflate"))]
fn deflate_options_without_the_feature() {
    for (option, value) in [("--deflate", None), ("--deflate-min", Some("100"))] {
        let words = [option, "needs the feature deflate", "--features deflate"];
        expect_start_failure("127.0.0.1:0", &[&[option][..], value.as_slice()].concat()).check(USAGE, &words);
        let variable = format!("WIRECHAT_{}", option[2..].to_uppercase().replace('-', "_"));
        let value = value.unwrap_or("true");
        run_to_failure(Server::command("127.0.0.1:0", &[]).env(variable, value)).check(USAGE, &words);
    }
}

#[test]
#[cfg(feature = "deflate")]
fn options_that_need_deflate() {
    let words = ["--deflate-min", "needs --deflate, which is missing; add --deflate"];
    expect_start_failure("127.0.0.1:0", &["--deflate-min", "100"]).check(USAGE, &words);
    for value in ["0", "x", "1.5"] {
        expect_start_failure("127.0.0.1:0", &["--deflate", "--deflate-min", value]).check(USAGE, &["--deflate-min"]);
    }
    Server::start(&["--deflate", "--deflate-min", "1"]);
}

#[test]
#[cfg(not(feature = "tls"))]
fn tls_options_without_the_feature() {
    for option in ["--tls-cert", "--tls-key"] {
        let words = [option, "needs the feature tls", "--features tls"];
        expect_start_failure("127.0.0.1:0", &[option, "file.pem"]).check(USAGE, &words);
        let variable = format!("WIRECHAT_{}", option[2..].to_uppercase().replace('-', "_"));
        run_to_failure(Server::command("127.0.0.1:0", &[]).env(variable, "file.pem")).check(USAGE, &words);
    }
}

#[test]
#[cfg(not(feature = "jwt"))]
fn jwt_options_without_the_feature() {
    for (option, value) in [("--jwt-key", "missing.pem"), ("--jwt-issuer", "a"), ("--jwt-audience", "a")] {
        let words = [option, "feature jwt"];
        expect_start_failure("127.0.0.1:0", &[option, value]).check(USAGE, &words);
        let variable = format!("WIRECHAT_{}", option[2..].to_uppercase().replace('-', "_"));
        run_to_failure(Server::command("127.0.0.1:0", &[]).env(variable, value)).check(USAGE, &words);
    }
}

#[test]
#[cfg(not(feature = "metrics"))]
fn metrics_option_without_the_feature() {
    expect_start_failure("127.0.0.1:0", &["--admin", "0"]).check(USAGE, &["--admin", "feature metrics"]);
    run_to_failure(Server::command("127.0.0.1:0", &[]).env("WIRECHAT_ADMIN", "0")).check(USAGE, &["feature metrics"]);
}

#[test]
#[cfg(not(feature = "redis"))]
fn redis_options_without_the_feature() {
    let rows = [("--redis", "redis://127.0.0.1:6379"), ("--redis-prefix", "chat"), ("--redis-timeout", "5")];
    for (option, value) in rows {
        let words = [option, "feature redis"];
        expect_start_failure("127.0.0.1:0", &[option, value]).check(USAGE, &words);
        let variable = format!("WIRECHAT_{}", option[2..].to_uppercase().replace('-', "_"));
        run_to_failure(Server::command("127.0.0.1:0", &[]).env(variable, value)).check(USAGE, &words);
    }
}

/// A host or origin that no request can match is an error. The error suggests a correct value if there is one.
#[test]
fn hosts_and_origins_that_match_nothing() {
    let rows = [
        ("--allow-host", "https://chat.example", "chat.example"),
        ("--allow-host", "https://chat.example:8443/path", "chat.example"),
        ("--allow-host", "chat.example/", "chat.example"),
        ("--allow-host", "chat example", ""),
        ("--allow-host", "*.example", ""),
        ("--allow-host", "a,,b", ""),
        ("--allow-host", "", ""),
        ("--allow-origin", "chat.example", "https://chat.example"),
        ("--allow-origin", "localhost:8080", "http://localhost:8080"),
        ("--allow-origin", "https://chat.example/", "https://chat.example"),
        ("--allow-origin", "wss://chat.example", "https://chat.example"),
        ("--allow-origin", "https://*.example", ""),
        ("--allow-origin", "https://chat example", ""),
        ("--allow-origin", "https://", ""),
        ("--allow-origin", "https://a.example,", ""),
    ];
    each_row(
        &rows,
        |(option, value, _)| format!("{option} {value}"),
        |(option, value, suggestion)| {
            // Pass --open: --allow-host makes the server public, and a public server must not use the demo tokens.
            let failure = expect_start_failure("127.0.0.1:0", &[option, value, "--open"]);
            failure.check(USAGE, &[option]);
            match *suggestion {
                "" => assert!(!failure.stderr.contains("write "), "{}", failure.stderr),
                suggestion => {
                    failure.check(USAGE, &[value, &format!("write {suggestion}\n")]);
                    Server::start(&[option, suggestion, "--open"]);
                }
            }
        },
    );
}

/// The body of a 403 names the option that would allow the request. A server with this option accepts the request.
#[test]
fn advice_in_a_rejection_works() {
    let origins =
        ["https://evil.example", "http://LocalHost:81", "file://", "moz-extension://0f-ab", "app://x", "null"];
    let origins = origins.map(|value| ("Origin", "--allow-origin ", value));
    let hosts = ["evil.example", "evil.example:81", "[::2]:3000", "10.0.0.1", "EVIL.example.", "0x0a.1"];
    let hosts = hosts.map(|value| ("Host", "--allow-host ", value));
    // Without --open, a local server accepts the origin `null` by default, but this test needs a rejection.
    let server = Server::start(&["--open"]);
    each_row(
        &[origins, hosts].concat(),
        |(header, _, value)| format!("{header}: {value}"),
        |(header, option, value)| {
            let request = request_with(header, value);
            let body = expect_rejection(&server, &request);
            let (_, advice) = body.split_once(option).unwrap_or_else(|| panic!("{option} in {body:?}"));
            let server = Server::start(&["--open", option.trim(), advice.split(' ').next().unwrap()]);
            assert_eq!(server.status(&request), 101, "{option}{advice}");
        },
    );
}

/// If `Origin` or `Host` is malformed, the 403 response and its log line do not suggest an option that allows the
/// value: the client chose the value, and an operator may paste a suggested option into a shell.
#[test]
fn no_advice_for_a_malformed_origin_or_host() {
    let origins = ["", "nonsense", "wss://evil.example", "https://a b", "http://me@evil.example", "http://é"];
    let shell = ["http://x$(touch y);`id`", "app://$(id)", "http://x';id;'", "http://x|id", "https://*"];
    let origins = origins.into_iter().chain(shell).map(|value| ("Origin", value));
    let hosts = ["a$b", "", "x$(id)", "x';id;'", "x;id"].map(|value| ("Host", value));
    let rows: Vec<_> = origins.chain(hosts).collect();
    each_row(
        &rows,
        |(header, value)| format!("{header}: {value}"),
        |(header, value)| {
            // Use a new server for each request, because a server logs only the first few rejections of an address.
            let server = Server::start(&["--open"]);
            let body = expect_rejection(&server, &request_with(header, value));
            assert!(body.ends_with(" cannot name it.\n") && body.matches("--allow-").count() == 1, "{body:?}");
            server.wait_for_log(body.trim_end());
        },
    );
}

fn request_with(header: &str, value: &str) -> Request {
    let request = if header == "Host" { handshake().without("Host") } else { handshake() };
    request.add(format!("{header}: {value}"))
}

fn expect_rejection(server: &Server, request: &Request) -> String {
    let mut client = server.connect();
    client.send(&request.bytes());
    let response = client.read_response();
    assert_eq!(response.status, 403, "{response:?}");
    response.body
}

/// With `--allow-host`, a server on 0.0.0.0 accepts only the listed hosts and loopback names.
#[test]
fn hosts_on_a_public_listener() {
    let server = Server::start_at("0.0.0.0:0", &["--open", "--allow-host", "chat.example"]);
    for (host, status) in [("chat.example", 101), ("CHAT.example:8443", 101), ("localhost", 101), ("evil.example", 403)]
    {
        assert_eq!(server.status(&handshake().set(&format!("Host: {host}"))), status, "{host}");
    }
}

/// A token file may contain comments, blank lines, CRLF, a byte-order mark, and usernames that tokens are bound to.
#[test]
fn a_token_file() {
    let content =
        "\u{feff}secret-one # the friends\n\nsecret-two alice\n  \nsecret-three bob # the host\nsecret-four\r\n";
    let file = token_file("good", content);
    let server = Server::start(&["--tokens", file.to_str().unwrap()]);
    let rows = [
        ("secret-one", 101, "anonymous"),
        ("secret-one&username=anybody", 101, "anybody"),
        ("secret-two", 101, "alice"),
        ("secret-two&username=alice", 101, "alice"),
        ("secret-two&username=+alice+", 101, "alice"),
        ("secret-two&username=bob", 403, ""),
        ("secret-two&username=Alice", 403, ""),
        ("secret-three", 101, "bob"),
        ("secret-three&username=bob", 101, "bob"),
        ("secret-four", 101, "anonymous"),
        ("secret", 401, ""),
        ("secret-two+alice", 401, ""),
        ("%23", 401, ""),
        ("%EF%BB%BFsecret-one", 401, ""),
        ("", 401, ""),
        ("dev-token", 401, ""),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(query, status, name)| {
            let mut client = server.connect();
            client.send(&handshake().target(format!("/?token={query}")).bytes());
            let response = Response::parse(client.read_head().as_bytes());
            assert_eq!(response.status, *status);
            if *status == 101 {
                assert_eq!(client.read_event("welcome")["username"], *name);
            }
        },
    );
    server.signal("TERM");
    server.wait_for_log("STOP");
    for secret in ["secret-one", "secret-two", "secret-three", "secret-four", "dev-token"] {
        let output = server.log() + &server.printed();
        assert!(!output.contains(secret), "{secret} is printed: {output}");
    }
}

#[test]
fn bad_token_files() {
    let long = format!("secret-one {}\n", "x".repeat(33));
    let endless = format!("secret-one{}\n", "x".repeat(8192));
    let utf16: Vec<u8> = "\u{feff}secret-one\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let rows: [(&str, &[u8], &str); 10] = [
        ("empty", b"", "one per line"),
        ("nothing-but-comments", b"# nobody\n\n", "one per line"),
        ("not-utf8", b"secret-one\n\xff\xfe\n", "UTF-8"),
        ("utf16", &utf16, "UTF-8"),
        ("a-forbidden-name", "secret-one a\u{200b}b\n".as_bytes(), "line 1"),
        ("a-long-name", long.as_bytes(), "line 1"),
        ("twice", b"secret-one\n\nsecret-one bob\n", "line 3"),
        // Concatenating two files can leave the byte-order mark of the second file in the middle.
        (
            "a-mark-in-the-middle",
            "secret-one\n\u{feff}secret-two\n".as_bytes(),
            "line 2: the token contains the invisible",
        ),
        ("an-invisible-token", "secret-one\u{200b}\n".as_bytes(), "U+200B"),
        ("an-endless-token", endless.as_bytes(), "--max-head 8192"),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(name, content, words)| {
            let file = token_file(name, content);
            let failure = expect_start_failure("127.0.0.1:0", &["--tokens", file.to_str().unwrap()]);
            failure.check(USAGE, &["--tokens", file.to_str().unwrap(), words]);
            assert!(!failure.stderr.contains("secret-one"), "a token is printed: {}", failure.stderr);
        },
    );
    for path in ["/no/such/file", env!("CARGO_TARGET_TMPDIR")] {
        expect_start_failure("127.0.0.1:0", &["--tokens", path]).check(USAGE, &["--tokens", path]);
    }
    let file = token_file("with-open", "secret-one\n");
    let file = file.to_str().unwrap();
    expect_start_failure("127.0.0.1:0", &["--open", "--tokens", file]).check(USAGE, &["--open", "--tokens"]);
}

/// With `--open`, the server accepts clients without a token and clients with any token.
#[test]
fn an_open_server_needs_no_token() {
    let server = Server::start(&["--open"]);
    for target in ["/", "/?username=bob", "/?token=whatever", "/echo"] {
        assert_eq!(server.status(&handshake().target(target)), 101, "{target}");
    }
}

/// The wscat command in the banner contains the demo token, a placeholder or no token, but never a token from a file.
#[test]
fn the_banner() {
    let file = token_file("banner", "secret-one\n");
    let line = |args: &[&str]| {
        let server = Server::start(args);
        wait_until("wscat is mentioned", || server.printed().lines().any(|line| line.contains("wscat")));
        let printed = server.printed();
        assert!(printed.lines().next().unwrap().contains(&format!("http://{}/", server.addr())), "{printed}");
        let line = printed.lines().find(|line| line.contains("wscat")).unwrap().to_owned();
        assert!(line.contains(&format!("ws://{}/", server.addr())), "{line}");
        line
    };
    let demo = line(&[]);
    assert!(demo.contains("token=dev-token"), "{demo}");
    assert!(DEMO_TOKENS[..3].iter().all(|token| !demo.contains(token)), "another demo token: {demo}");
    let file = line(&["--tokens", file.to_str().unwrap()]);
    assert!(file.contains("token=TOKEN") && !file.contains("secret-one"), "{file}");
    let open = line(&["--open"]);
    assert!(!open.contains("token"), "{open}");
}

/// An environment variable can set an option, but the command line takes precedence.
#[test]
fn flags_from_the_environment() {
    let reply = |args: &[&str]| {
        let mut command = Server::command("127.0.0.1:0", args);
        let server = Server::launch(command.env("WIRECHAT_MAX_TEXT", "3"));
        let mut client = server.upgrade("/?token=dev-token");
        client.read_event("welcome");
        client.send_text(r#"{"event":"message","data":{"text":"four"}}"#);
        client.read_json()["event"].clone()
    };
    assert_eq!(reply(&[]), "error");
    assert_eq!(reply(&["--max-text", "4"]), "message");
}

#[test]
fn lists_from_the_environment() {
    let mut command = Server::command("127.0.0.1:0", &["--open"]);
    let command = command.env("WIRECHAT_ALLOW_HOST", "a.example, b.example ,c.example");
    let server = Server::launch(command.env("WIRECHAT_ALLOW_ORIGIN", "https://a.example, null"));
    for host in ["a.example", "b.example", "c.example"] {
        assert_eq!(server.status(&handshake().set(&format!("Host: {host}"))), 101, "{host}");
    }
    for origin in ["https://a.example", "null"] {
        assert_eq!(server.status(&handshake().add(format!("Origin: {origin}"))), 101, "{origin}");
    }
    let mut command = Server::command("127.0.0.1:0", &[]);
    run_to_failure(command.env("WIRECHAT_ALLOW_HOST", "a.example b.example")).check(USAGE, &["--allow-host"]);
}

/// For every option, the server treats an empty environment variable as unset.
#[test]
fn empty_variables() {
    let help = Command::new(env!("CARGO_BIN_EXE_wirechat")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (options, _) = help.split_once("\nLogging and help:").expect("the options without a variable come last");
    let options = options.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let names = options.map(|line| line.split([' ', '[', '<']).next().unwrap().to_uppercase().replace('-', "_"));
    let names: Vec<String> = names.map(|name| format!("WIRECHAT_{name}")).collect();
    assert!(names.len() > 30 && names.contains(&"WIRECHAT_MAX_TEXT".into()), "{names:?}");
    let mut command = Server::command("127.0.0.1:0", &[]);
    command.envs(names.iter().map(|name| (name, "")));
    let server = Server::launch(&mut command);
    assert_eq!(server.status(&handshake()), 101);
    assert_eq!(server.status(&handshake().target("/")), 401, "WIRECHAT_OPEN= does not open the server");
    // An empty environment variable counts as unset, but an empty address on the command line is an error.
    expect_start_failure("", &[]).check(USAGE, &["--listen"]);
}

/// A typo in a boolean environment variable is a startup error: `WIRECHAT_OPEN=flase` must not open the server.
#[test]
fn switches_from_the_environment() {
    let command = |value: &str| {
        let mut command = Server::command("127.0.0.1:0", &[]);
        command.env("WIRECHAT_OPEN", value);
        command
    };
    for (value, status) in [("1", 101), ("true", 101), ("yes", 101), ("0", 401), ("false", 401), ("off", 401)] {
        let server = Server::launch(&mut command(value));
        assert_eq!(server.status(&handshake().target("/")), status, "{value}");
    }
    for value in ["flase", "2", "-"] {
        run_to_failure(&mut command(value)).check(USAGE, &["--open", value]);
    }
}

/// The error for a misspelled option, value or subcommand is one line, with the argument parser's suggestion, if any.
#[test]
fn misspelled_options_and_tools() {
    let rows: [(&[&str], &[&str]); 7] = [
        (&["--max-txt", "5"], &["--max-txt", "a similar argument exists: '--max-text'"]),
        (&["--tarce"], &["--tarce", "a similar argument exists: '--trace'"]),
        (&["--trace=fll"], &["--trace", "fll", "a similar value exists: 'full'"]),
        (&["--trace", "full"], &["write --trace=full as one word"]),
        (&["explian", "81"], &["explian", "similar subcommand", "'explain'"]),
        (&["poek"], &["poek", "similar subcommand", "'poke'"]),
        (&["xyzzy"], &["xyzzy"]),
    ];
    each_row(
        &rows,
        |(args, _)| args.join(" "),
        |(args, words)| {
            let failure = run_to_failure(Command::new(env!("CARGO_BIN_EXE_wirechat")).args(*args));
            failure.check(USAGE, words);
            failure.check(USAGE, &["(see --help)\n"]);
            assert!(!failure.stderr.contains("Usage"), "{}", failure.stderr);
        },
    );
}

#[test]
fn help() {
    let output = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_wirechat")).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let help = output(&["--help"]);
    assert!(help.contains("\nUsage: wirechat [OPTIONS]"), "{help}");
    assert_eq!(output(&["help"]), help);
    assert_eq!(output(&["-h"]), help);
    for tool in ["explain", "poke", "replay", "health", "completions", "man"] {
        let help = output(&[tool, "--help"]);
        assert!(help.contains(&format!("\nUsage: wirechat {tool}")), "{help}");
        assert_eq!(output(&["help", tool]), help);
    }
    run_to_failure(Command::new(env!("CARGO_BIN_EXE_wirechat")).args(["help", "poek"])).check(USAGE, &["'poke'"]);
}
