//! How the server starts, or does not: addresses, tokens, values that make no sense, and what it says about it.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use support::http::{Response, handshake};
use support::table::each_row;
use support::watched::DEMO_TOKENS;
use support::{Server, token_file, wait_until};

/// What a server that does not start leaves behind.
struct Failure {
    code: Option<i32>,
    said: String,
}

fn refusal(listen: &str, args: &[&str]) -> Failure {
    let mut command = Server::command(listen, args);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is run");
    let mut banner = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut banner).unwrap();
    if !banner.is_empty() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(banner, "", "it does not start");
    Failure { code: output.status.code(), said: String::from_utf8(output.stderr).unwrap() }
}

impl Failure {
    /// A failure, told in one line with this word in it.
    fn names(&self, word: &str) {
        assert!(self.code.is_some_and(|code| code != 0), "exit code {:?}", self.code);
        let lines: Vec<&str> = self.said.lines().filter(|line| !line.trim().is_empty()).collect();
        assert!(matches!(lines.as_slice(), [line] if line.contains(word)), "one line with {word:?}: {:?}", self.said);
    }
}

/// T11.
#[test]
fn a_port_in_use() {
    let server = Server::start(&[]);
    let address = server.addr().to_string();
    refusal(&address, &[]).names(&address);
    assert_eq!(server.status(&handshake()), 101, "the first one lives");
}

/// A16: everybody knows the demo tokens.
#[test]
fn demo_tokens_off_loopback() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        refusal(listen, &[]).names("token");
    }
}

/// T10: the same over IPv6.
#[test]
fn ipv6() {
    let server = Server::start_at("[::1]:0", &[]);
    let own = format!("Host: {}", server.addr());
    assert_eq!(server.status(&handshake().set(&own)), 101);
    assert_eq!(server.status(&handshake().set(&own).add(format!("Origin: http://{}", server.addr()))), 101);
    assert_eq!(server.status(&handshake().set("Host: evil.example")), 403);
}

#[test]
fn an_address_that_is_none() {
    for listen in ["nonsense", "127.0.0.1", "127.0.0.1:99999", ""] {
        let refusal = refusal(listen, &[]);
        assert!(refusal.code.is_some_and(|code| code != 0), "exit code {:?}", refusal.code);
        assert!(refusal.said.lines().next().is_some_and(|line| line.contains("--listen")), "{:?}", refusal.said);
    }
}

#[test]
fn silly_values() {
    let mut rows: Vec<Vec<&str>> = vec![
        vec!["--max-head", "many"],
        vec!["--max-text=-1"],
        vec!["--max-message", "18446744073709551616"],
        vec!["--idle-timeout", "30", "--ping-interval", "60"],
        vec!["--allow-origin", "nonsense"],
        vec!["--tokens"],
        vec!["--no-such-flag"],
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
            // As one word, so that a minus is part of the value.
            let joined = [row[..row.len().min(2)].join("=")];
            let args: Vec<&str> = joined.iter().map(String::as_str).chain(row.iter().skip(2).copied()).collect();
            let refusal = refusal("127.0.0.1:0", &args);
            assert!(refusal.code.is_some_and(|code| code != 0), "exit code {:?}", refusal.code);
            // An option that is spelled wrong may bring a hint in further lines.
            let first = refusal.said.lines().next().unwrap_or_default();
            let mut flags =
                row.iter().filter(|word| word.starts_with("--")).map(|word| word.split('=').next().unwrap());
            assert!(flags.any(|flag| first.contains(flag)), "the first line names the flag: {:?}", refusal.said);
            assert!(refusal.said.lines().count() < 8, "not the whole help: {:?}", refusal.said);
        },
    );
}

/// `--tokens`: who may come in with what, and as whom.
#[test]
fn a_file_of_tokens() {
    let content = "# the friends\n\nsecret-one\nsecret-two alice\n  \nsecret-three bob # the host\nsecret-four\r\n";
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
        let told = server.log() + &server.printed();
        assert!(!told.contains(secret), "{secret} is told: {told}");
    }
}

#[test]
fn bad_files_of_tokens() {
    let long = format!("secret-one {}\n", "x".repeat(33));
    let rows: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("nothing-but-comments", b"# nobody\n\n"),
        ("not-utf8", b"secret-one\n\xff\xfe\n"),
        ("a-forbidden-name", "secret-one a\u{200b}b\n".as_bytes()),
        ("a-long-name", long.as_bytes()),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(name, content)| {
            let file = token_file(name, content);
            let refusal = refusal("127.0.0.1:0", &["--tokens", file.to_str().unwrap()]);
            refusal.names(file.to_str().unwrap());
            assert!(!refusal.said.contains("secret-one"), "a token is told: {}", refusal.said);
        },
    );
    for path in ["/no/such/file", env!("CARGO_TARGET_TMPDIR")] {
        refusal("127.0.0.1:0", &["--tokens", path]).names(path);
    }
    let file = token_file("with-open", "secret-one\n");
    refusal("127.0.0.1:0", &["--open", "--tokens", file.to_str().unwrap()]).names("--open");
}

/// `--open`: nobody is asked for a token, and one that is brought is not judged.
#[test]
fn open_to_everyone() {
    let server = Server::start(&["--open"]);
    for target in ["/", "/?username=bob", "/?token=whatever", "/echo"] {
        assert_eq!(server.status(&handshake().target(target)), 101, "{target}");
    }
}

/// The line for wscat works when it is pasted, and tells no secret.
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
    assert!(DEMO_TOKENS[..3].iter().all(|token| !demo.contains(token)), "never another: {demo}");
    let file = line(&["--tokens", file.to_str().unwrap()]);
    assert!(file.contains("token=TOKEN") && !file.contains("secret-one"), "{file}");
    let open = line(&["--open"]);
    assert!(!open.contains("token"), "{open}");
}

/// Each flag is also a variable of the environment, and the flag wins.
#[test]
fn flags_from_the_environment() {
    let said = |args: &[&str]| {
        let mut command = Server::command("127.0.0.1:0", args);
        let server = Server::launch(command.env("WIRECHAT_MAX_TEXT", "3"));
        let mut client = server.upgrade("/?token=dev-token");
        client.read_event("welcome");
        client.send_text(r#"{"event":"message","data":{"text":"four"}}"#);
        client.read_json()["event"].clone()
    };
    assert_eq!(said(&[]), "error");
    assert_eq!(said(&["--max-text", "4"]), "message");
}
