//! Tests of JWTs as access tokens (PROTOCOL.md, "JWT"): which tokens are valid, what they allow, and when they
//! expire. The tokens come from PyJWT, which shares no code with the server. Tests about time use a virtual clock.
//!
//! To use a Python that already has PyJWT, set `WIRECHAT_JWT_PYTHON` to its path. This command installs PyJWT:
//! `python3 -m venv target/jwt-venv && target/jwt-venv/bin/pip install -r tests/jwt/requirements.txt`

#![cfg(feature = "jwt")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/delayed_broker.rs"]
mod delayed_broker;
#[path = "support/delayed_world.rs"]
mod delayed_world;
#[path = "support/memory.rs"]
mod memory;
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime};

use memory::{Client, World};
use serde_json::{Value, json};
use support::failure::{USAGE, expect_start_failure};
use support::http::{Request, Response, get, handshake};
use support::table::each_row;
use support::users::{Dialect, User, encode};
use support::{Server, becomes_true, masked, require_tool, token_file, upgrade_request, wait_until};

/// The time at which the virtual clock starts, in seconds since the Unix epoch.
const START: u64 = 1 << 31;
/// Turns off limits that a test might reach by accident.
const UNLIMITED: [&str; 4] = ["--rate-limit", "0", "--max-wrong-tokens", "0"];

/// A Python process that makes tokens with PyJWT, and the directory of its key files.
struct TokenMaker {
    child: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    directory: PathBuf,
}

impl TokenMaker {
    /// Returns `None` if PyJWT is not installed.
    fn start(name: &str) -> Option<TokenMaker> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = std::env::var_os("WIRECHAT_JWT_PYTHON")
            .map_or_else(|| root.join("target/jwt-venv/bin/python"), PathBuf::from);
        let python = require_tool("target/jwt-venv (PyJWT)", &[python])?;
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("jwt-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new(python);
        let command = command.arg(root.join("tests/jwt/maker.py")).arg(&directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
        let (requests, replies) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut maker = TokenMaker { child, requests, replies, directory };
        assert_eq!(maker.reply(), "ready");
        Some(maker)
    }

    fn reply(&mut self) -> Value {
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("PyJWT runs")
    }

    fn request(&mut self, request: Value) -> Value {
        writeln!(self.requests, "{request}").expect("Python reads");
        self.reply()
    }

    fn token(&mut self, key: &str, claims: Value) -> String {
        self.request(json!({"key": key, "claims": claims})).as_str().expect("a token").to_owned()
    }

    fn key(&self, name: &str) -> String {
        self.directory.join(format!("{name}.key")).to_str().unwrap().to_owned()
    }

    /// Returns the options that make a server accept tokens signed with these keys.
    fn options(&self, keys: &[&str]) -> Vec<String> {
        keys.iter().flat_map(|key| ["--jwt-key".to_owned(), self.key(key)]).collect()
    }

    fn server(&self, keys: &[&str], args: &[&str]) -> Server {
        Server::start(&with(&self.options(keys), &[&UNLIMITED, args].concat()))
    }

    fn world(&self, keys: &[&str], args: &[&str]) -> World {
        World::new(&with(&self.options(keys), &[&UNLIMITED, args].concat()))
    }
}

impl Drop for TokenMaker {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait(), fs::remove_dir_all(&self.directory));
    }
}

fn with<'a>(options: &'a [String], args: &[&'a str]) -> Vec<&'a str> {
    options.iter().map(String::as_str).chain(args.iter().copied()).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are valid for ten minutes.
fn claims(subject: &str) -> Value {
    json!({"sub": subject, "exp": now() + 600})
}

/// Adds the fields of `more` to `claims`, replacing fields of the same name.
fn merge(mut claims: Value, more: Value) -> Value {
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

fn request(target: &str, token: &str) -> Request {
    let separator = if target.contains('?') { '&' } else { '?' };
    handshake().target(format!("{target}{separator}token={}", encode(token)))
}

/// Joins in the `events` dialect. Returns the user and the data of the `welcome` event.
fn join(server: &Server, token: &str, query: &str) -> (User, Value) {
    let mut user = User::at(server, Dialect::Events, &format!("/?token={token}{query}"), "");
    let welcome = user.expect_event("welcome", json!({}));
    (user, welcome)
}

// ------------------------------------------------------------------------------------------- valid and invalid tokens

#[test]
fn valid_tokens() {
    let Some(mut maker) = TokenMaker::start("valid") else { return };
    let all = maker.server(&["hs", "rs", "es", "ed"], &[]);
    let strict = maker.server(&["hs"], &["--jwt-issuer", "https://id.example", "--jwt-audience", "chat"]);
    let strict_claims = merge(claims("alice"), json!({"iss": "https://id.example", "aud": "chat"}));
    let exp = now() + 600;
    let rows = [
        (&all, "hs", claims("alice")),
        (&all, "rs", claims("alice")),
        (&all, "es", claims("alice")),
        (&all, "ed", claims("alice")),
        (&all, "hs", claims("Ünïcödé 🦀")),
        (&all, "hs", json!({"sub": "alice", "exp": exp as f64 + 0.5})),
        (&all, "hs", json!({"sub": "alice", "exp": 1e300})),
        (&all, "hs", json!({"sub": "alice", "exp": u64::MAX})),
        (&all, "hs", merge(claims("alice"), json!({"nbf": exp - 700}))),
        (&all, "hs", merge(claims("alice"), json!({"nbf": -1.5}))),
        (&all, "hs", merge(claims("alice"), json!({"iat": exp, "jti": "1", "name": {"a": [1]}}))),
        (&all, "hs", merge(claims("alice"), json!({"iss": "anybody", "aud": ["anything"]}))),
        (&all, "hs", merge(claims("alice"), json!({"rooms": ["other", " general "]}))),
        (&strict, "hs", strict_claims.clone()),
        (&strict, "hs", merge(strict_claims.clone(), json!({"aud": ["other", "chat"]}))),
    ];
    for (server, key, claims) in rows {
        let token = maker.token(key, claims.clone());
        assert_eq!(server.status(&request("/", &token)), 101, "{key} {claims}: {}", server.log());
    }
    for wrong in [
        json!({"iss": null}),
        json!({"iss": "https://id.example/"}),
        json!({"iss": ["https://id.example"]}),
        json!({"iss": "HTTPS://ID.EXAMPLE"}),
        json!({"aud": null}),
        json!({"aud": "Chat"}),
        json!({"aud": []}),
        json!({"aud": ["other"]}),
        json!({"aud": ["chat", 1]}),
        json!({"aud": {"chat": true}}),
        json!({"aud": "chat other"}),
    ] {
        // PyJWT does not encode some of these claims, so the test builds the payload itself.
        let payload = merge(strict_claims.clone(), wrong).to_string();
        let token = maker.request(json!({"payload": payload}));
        assert_eq!(strict.status(&request("/", token.as_str().unwrap())), 401, "{payload}");
        assert_eq!(all.status(&request("/", token.as_str().unwrap())), 101, "any issuer and audience: {payload}");
    }
    for missing in ["iss", "aud"] {
        let mut claims = strict_claims.clone();
        claims.as_object_mut().unwrap().remove(missing);
        assert_eq!(strict.status(&request("/", &maker.token("hs", claims))), 401, "without {missing}");
    }
    // The server ignores the header parameters `kid`, `typ` and `jku`.
    for headers in [json!({"kid": "1"}), json!({"typ": "at+jwt"}), json!({"jku": "http://127.0.0.1:1/"})] {
        let token = maker.request(json!({"key": "rs", "claims": claims("alice"), "headers": headers}));
        assert_eq!(all.status(&request("/", token.as_str().unwrap())), 101, "{headers}");
    }
}

#[test]
fn a_token_in_every_place() {
    let Some(mut maker) = TokenMaker::start("places") else { return };
    let server = maker.server(&["ed"], &[]);
    let token = maker.token("ed", claims("alice"));
    let plain = handshake().target("/echo");
    let bearer = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, &token);
    assert_eq!(server.status(&plain.clone().add(format!("Authorization: Bearer {token}"))), 101);
    assert_eq!(server.status(&plain.clone().add(format!("Sec-WebSocket-Protocol: echo, bearer.{bearer}"))), 101);
    assert_eq!(server.status(&plain), 401);
    let mut client = server.connect();
    client.send(&get(&format!("/check?token={token}&endpoint=/")).bytes());
    assert_eq!(client.read_response().body, "{\"status\":101,\"message\":\"\"}\n");
}

#[test]
fn hostile_tokens() {
    let Some(mut maker) = TokenMaker::start("hostile") else { return };
    let server = maker.server(&["hs", "rs", "es", "ed"], &["--max-head", "65536"]);
    let good = maker.token("hs", claims("witness"));
    let (mut witness, _) = join(&server, &good, "");
    let rows = maker.request(json!({"hostile": now()}));
    let rows: Vec<(String, String)> = serde_json::from_value(rows).unwrap();
    assert!(rows.len() > 200, "{}", rows.len());
    each_row(
        &rows,
        |(name, _)| name.clone(),
        |(_, token)| {
            let mut client = server.connect();
            client.send(&request("/", token).bytes());
            let response = client.read_response();
            assert_eq!((response.status, &*response.body), (401, "Unauthorized"));
            assert_eq!(response.header("WWW-Authenticate"), "Bearer");
        },
    );
    witness.expect_nothing();
    // The log gives the reason for each rejection, but must not quote the token. Skip parts (split at the dots) of up
    // to 30 characters, because the log may contain these for another reason.
    wait_until("each reason is logged", || server.log().matches("JWT rejected: ").count() == rows.len());
    let log = server.log();
    for part in rows.iter().flat_map(|(_, token)| token.split('.')).filter(|part| part.len() > 30) {
        assert!(!log.contains(part), "{part} in {log}");
    }
}

#[test]
fn wrong_tokens_are_counted() {
    let Some(mut maker) = TokenMaker::start("counted") else { return };
    let options = maker.options(&["hs"]);
    let server = Server::start(&with(&options, &["--allow-host", "chat.example", "--max-wrong-tokens", "2"]));
    let expired = maker.token("hs", json!({"sub": "alice", "exp": now() - 60}));
    let good = maker.token("hs", claims("alice"));
    let statuses = [&good, &expired, &good, &expired, &good].map(|token| server.status(&request("/", token)));
    assert_eq!(statuses, [101, 401, 101, 401, 429]);
}

// ---------------------------------------------------------------------------------------------------------- key files

#[test]
fn key_files() {
    let Some(mut maker) = TokenMaker::start("files") else { return };
    for (file, key) in [("hs-newline", "hs"), ("hs-crlf", "hs"), ("rs-pkcs1", "rs"), ("rs-text", "rs")] {
        let token = maker.token(key, claims("alice"));
        assert_eq!(maker.server(&[file], &[]).status(&request("/", &token)), 101, "{file}");
    }
    let bad = [
        ("hs-31", "32 bytes"),
        ("hs-31-newline", "32 bytes"),
        ("hs-two-newlines", "32 bytes"),
        ("empty", "32 bytes"),
        ("rsa-1024", "2048 bits"),
        ("p-384", ""),
        ("secp256k1", ""),
        ("x25519", ""),
        ("rs-private", "public key"),
        ("rs-private-pkcs1", "public key"),
        ("es-private", "public key"),
        ("es-private-sec1", "public key"),
        ("ed-private", "public key"),
        ("ed-short", ""),
        ("two", "one public key"),
        ("rs-der", "PEM"),
        ("es-der", "PEM"),
        ("ed-der", "PEM"),
        ("rs-cut", ""),
        ("nothing", ""),
        ("label", "public key"),
        ("begin", "public key"),
        ("missing", "cannot read"),
    ];
    for (name, words) in bad {
        let failure = expect_start_failure("127.0.0.1:0", &with(&maker.options(&["hs", name]), &[]));
        failure.check(USAGE, &["--jwt-key", &maker.key(name), words]);
    }
    // The server recognizes a public key in a UTF-16 file, and does not use the file as an HMAC secret.
    let text = fs::read_to_string(maker.key("es")).unwrap();
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    fs::write(maker.key("utf-16"), utf16).unwrap();
    let server = maker.server(&["utf-16"], &[]);
    assert_eq!(server.status(&request("/", &maker.token("es", claims("alice")))), 101, "it is the same key");
}

#[test]
fn options_that_exclude_each_other() {
    let Some(maker) = TokenMaker::start("options") else { return };
    let key = maker.key("hs");
    let rows: [(&[&str], &[&str]); 3] = [
        (&["--open", "--jwt-key", &key], &["--open", "--jwt-key"]),
        (&["--jwt-issuer", "a"], &["--jwt-issuer", "--jwt-key FILE"]),
        (&["--jwt-audience", "a", "--open"], &["--jwt-audience", "--jwt-key FILE"]),
    ];
    for (args, words) in rows {
        expect_start_failure("127.0.0.1:0", args).check(USAGE, words);
    }
    // `--allow-host` makes this server public. A public server does not start while the demo tokens are valid. This
    // server starts, because `--jwt-key` disables them.
    let server = Server::start(&["--jwt-key", &key, "--allow-host", "chat.example"]);
    assert_eq!(server.status(&handshake()), 401);
    assert!(!server.printed().contains("dev-token"), "{}", server.printed());
    let local = Server::start(&["--jwt-key", &key]);
    assert_eq!(local.status(&handshake()), 401);
    // `WIRECHAT_JWT_KEY` may name several files, separated by commas.
    let mut command = Server::command("127.0.0.1:0", &[]);
    let both = Server::launch(command.env("WIRECHAT_JWT_KEY", format!("{key},{}", maker.key("es"))));
    assert_eq!(both.status(&handshake()), 401);
}

// ----------------------------------------------------------------------------------------------------------- identity

#[test]
fn a_token_names_the_user() {
    let Some(mut maker) = TokenMaker::start("user") else { return };
    let tokens = token_file("jwt", "plain\nbound Carol\n");
    let server = maker.server(&["hs", "es"], &["--tokens", tokens.to_str().unwrap(), "--unique-names"]);
    let (alice, alice2) = (maker.token("hs", claims("alice")), maker.token("es", claims("alice")));
    let (bob, carol) = (maker.token("hs", claims("bob")), maker.token("hs", claims("carol")));
    let status = |target: &str, token: &str| server.status(&request(target, token));
    assert_eq!(status("/?username=mallory", &alice), 403);
    assert_eq!(status("/?username=alice", &alice), 101);
    assert_eq!(status("/?username=Alice", &alice), 403, "exactly that username");
    assert_eq!(status("/?username=Carol", &carol), 403);
    assert_eq!(status("/?username=carol", "plain"), 403, "the token file reserves this username");
    assert_eq!(status("/?username=zoe", "plain"), 101);
    assert_eq!(status("/", "bound"), 101);

    // A newer connection of the same user replaces the older one, even if different keys have signed the tokens.
    let (older, welcome) = join(&server, &alice, "&room=den");
    assert_eq!(welcome["username"], "alice");
    let (mut newer, _) = join(&server, &alice2, "&room=den");
    older.expect_close(1008, "replaced by a newer connection");
    newer.send_message("hi");
    newer.expect_event("message", json!({"username": "alice", "text": "hi"}));

    // A client can resume its session with a fresh token of the same user.
    let (epoch, session) = (welcome["epoch"].as_str().unwrap(), welcome["session"].as_str().unwrap());
    let query = format!("&room=den&epoch={epoch}&since=0&session={session}");
    let fresh = maker.token("es", merge(claims("alice"), json!({"jti": "fresh"})));
    let (_, resumed) = join(&server, &fresh, &query);
    assert_eq!((&resumed["resumed"], resumed["history"].as_array().unwrap().len()), (&json!(true), 1));
    newer.expect_close(1008, "replaced by a newer connection");

    // While a `client_id` is in use, the server accepts it only with a token of the same subject.
    let presence = |token: &str, room: &str| {
        let target = format!("/ws?token={token}&client_id=1&room={room}");
        User::at(&server, Dialect::Presence, &target, "")
    };
    let mut first = presence(&bob, "a");
    first.receive();
    assert_eq!(status("/ws?client_id=1&username=zoe", "plain"), 403);
    assert_eq!(status("/ws?client_id=1", &alice), 403);
    let mut second = presence(&maker.token("es", claims("bob")), "a");
    first.expect_close(1008, "replaced by a newer connection");
    assert_eq!(second.receive()["username"], "bob");

    // In the `rooms` dialect, the server adds the token's username to a message without a username. A message with
    // another username is an error.
    let mut rooms = User::at(&server, Dialect::Rooms, &format!("/ws/b?token={}", maker.token("hs", claims("rae"))), "");
    rooms.receive();
    rooms.send(r#"{"text":"hi"}"#);
    rooms.expect_message(json!({"type": "message", "username": "rae", "text": "hi"}));
    rooms.send(r#"{"username":"zoe","text":"hi"}"#);
    assert!(rooms.expect_error().contains("another username"));
}

#[test]
fn a_token_lists_the_rooms() {
    let Some(mut maker) = TokenMaker::start("rooms") else { return };
    let server = maker.server(&["hs"], &[]);
    let tea = maker.token("hs", merge(claims("alice"), json!({"rooms": ["tea", "café"]})));
    let none = maker.token("hs", merge(claims("bob"), json!({"rooms": []})));
    let rows = [
        (&tea, "/?room=tea", 101),
        (&tea, "/?room=cafe%CC%81", 101),
        (&tea, "/", 403),
        (&tea, "/?room=Tea", 403),
        (&tea, "/?room=%00", 400),
        (&tea, "/ws/tea", 101),
        (&tea, "/ws/coffee", 403),
        (&tea, "/ws?client_id=1&room=tea", 101),
        (&tea, "/ws?client_id=1", 403),
        (&tea, "/echo", 101),
        (&none, "/echo", 101),
        (&none, "/", 403),
    ];
    for (token, target, status) in rows {
        assert_eq!(server.status(&request(target, token)), status, "{target}");
    }
    let (mut alice, _) = join(&server, &tea, "&room=tea");
    alice.send_event("switch_room", json!({"room": "coffee"}));
    assert_eq!(alice.expect_error(), "Not allowed in this room");
    alice.send_event("switch_room", json!({}));
    assert_eq!(alice.expect_error(), "Not allowed in this room");
    alice.send_event("switch_room", json!({"room": " cafe\u{301}"}));
    alice.expect_event("switched", json!({"room": "café"}));
    alice.send_event("switch_room", json!({"room": "café"}));
    alice.expect_nothing();
}

// ------------------------------------------------------------------------------------------------- expiry and renewal

/// Advances the clock by `time` seconds and replies to Pings. Returns everything else that the client receives.
fn advance(world: &mut World, client: &Client, time: f64) -> Vec<Value> {
    let (mut texts, mut left) = (Vec::new(), Duration::from_secs_f64(time));
    loop {
        let step = left.min(Duration::from_secs(10));
        world.advance(step);
        for frame in client.read_frames() {
            match frame.opcode() {
                9 => client.send(&masked(0x8a, &frame.payload)),
                8 => texts.push(json!(frame.close())),
                _ => texts.push(serde_json::from_str(frame.text()).unwrap()),
            }
        }
        left -= step;
        if left.is_zero() {
            return texts;
        }
    }
}

fn expiring(seconds: u64) -> Value {
    json!({"event": "token_expiring", "data": {"seconds": seconds}})
}

fn expired() -> Value {
    json!([1008, "token expired"])
}

const NOTHING: [Value; 0] = [];

fn at(time: f64) -> Value {
    json!({"sub": "alice", "exp": START as f64 + time})
}

fn enter(world: &mut World, target: &str, token: &str) -> Client {
    let separator = if target.contains('?') { '&' } else { '?' };
    let client = world.upgrade(&format!("{target}{separator}token={token}"));
    if target.starts_with("/?") || target == "/" {
        client.read_event("welcome");
    } else if target.starts_with("/ws") {
        client.read_json();
    }
    client
}

#[test]
fn a_token_that_expires() {
    let Some(mut maker) = TokenMaker::start("end") else { return };
    let mut world = maker.world(&["hs"], &[]);
    let token = maker.token("hs", at(1000.25));
    let client = enter(&mut world, "/", &token);
    assert_eq!(advance(&mut world, &client, 970.2), NOTHING);
    assert_eq!(advance(&mut world, &client, 0.1), [expiring(30)]);
    assert_eq!(advance(&mut world, &client, 29.9), NOTHING);
    assert_eq!(advance(&mut world, &client, 0.1), [expired()]);
    let token = maker.token("hs", at(1050.0));
    for target in ["/", "/ws/a", "/ws?client_id=1", "/echo"] {
        let token = if target == "/" { maker.token("hs", at(1049.5)) } else { token.clone() };
        let mut world = maker.world(&["hs"], &[]);
        world.jump(Duration::from_secs(1000));
        let client = enter(&mut world, target, &token);
        let texts = advance(&mut world, &client, 49.4);
        assert_eq!(texts, if target == "/" { vec![expiring(30)] } else { vec![] }, "{target}");
        assert_eq!(advance(&mut world, &client, 0.7), [expired()], "{target}");
    }
}

#[test]
fn a_token_that_expires_soon() {
    let Some(mut maker) = TokenMaker::start("late") else { return };
    // The token expires within 30 seconds, so the warning follows `welcome` at once.
    let mut world = maker.world(&["hs"], &[]);
    let client = enter(&mut world, "/", &maker.token("hs", at(9.5)));
    assert_eq!(advance(&mut world, &client, 0.0), [expiring(10)]);
    assert_eq!(advance(&mut world, &client, 9.4), NOTHING);
    assert_eq!(advance(&mut world, &client, 0.2), [expired()]);
    // The handshake tolerates five seconds of clock skew, so it may accept an expired token. The server then closes
    // the connection because the token has expired.
    for (claims, status) in [
        (at(-4.9), 101),
        (at(-5.0), 401),
        (at(-6.0), 401),
        (merge(at(600.0), json!({"nbf": START as f64 + 5.0})), 101),
        (merge(at(600.0), json!({"nbf": START as f64 + 5.1})), 401),
    ] {
        let mut world = maker.world(&["hs"], &[]);
        let client = world.connect();
        client.send(upgrade_request(&format!("/?token={}", maker.token("hs", claims.clone()))).as_bytes());
        world.settle();
        assert_eq!(Response::parse(client.read_head().as_bytes()).status, status, "{claims}");
        if claims == at(-4.9) {
            let texts = advance(&mut world, &client, 0.5);
            assert_eq!(texts.last(), Some(&expired()), "{texts:?}");
        }
    }
}

#[test]
fn a_token_that_expires_after_the_end_of_time() {
    let Some(mut maker) = TokenMaker::start("never") else { return };
    for exp in [json!(1e300), json!(u64::MAX), json!(253_402_300_800_u64)] {
        let mut world = maker.world(&["hs"], &[]);
        let token = maker.token("hs", json!({"sub": "alice", "exp": exp}));
        let client = enter(&mut world, "/", &token);
        assert_eq!(advance(&mut world, &client, 3.0 * 86_400.0), NOTHING);
        client.send_text(&json!({"event": "token", "data": {"token": token}}).to_string());
        let accepted = json!({"event": "token_accepted", "data": {"expires": "9999-12-31T23:59:59.000Z"}});
        assert_eq!(advance(&mut world, &client, 100.0), [accepted]);
    }
}

#[test]
fn a_token_is_renewed() {
    let Some(mut maker) = TokenMaker::start("renewed") else { return };
    let mut world = maker.world(&["hs", "rs"], &[]);
    let client = enter(&mut world, "/?room=tea", &maker.token("hs", at(40.0)));
    let renew = |world: &mut World, data: Value| {
        client.send_text(&json!({"event": "token", "data": data}).to_string());
        advance(world, &client, 0.0)
    };
    let accepted = |expires: &str| [json!({"event": "token_accepted", "data": {"expires": expires}})];
    let error = |message: &str| [json!({"event": "error", "data": {"message": message}})];
    let cannot = error("This token cannot renew the current one");
    assert_eq!(advance(&mut world, &client, 10.0), [expiring(30)]);

    // The server rejects a token that cannot renew the current one, and the current token stays in use.
    for bad in [
        maker.token("hs", merge(at(600.0), json!({"sub": "bob"}))),
        maker.token("hs", merge(at(600.0), json!({"sub": "Alice"}))),
        maker.token("hs", merge(at(600.0), json!({"rooms": ["general"]}))),
        maker.token("hs", merge(at(600.0), json!({"rooms": []}))),
        maker.token("hs2", at(600.0)),
        maker.token("hs", at(0.0)),
        "nonsense".into(),
        String::new(),
        "dev-token".into(),
    ] {
        assert_eq!(renew(&mut world, json!({"token": bad})), cannot, "{bad}");
    }
    assert_eq!(renew(&mut world, json!({})), cannot);
    assert_eq!(
        renew(&mut world, json!({"token": 1})),
        error("data.token: invalid type: integer `1`, expected a string")
    );
    assert_eq!(renew(&mut world, json!([])), error("data must be a JSON object"));
    let with_nonce =
        json!({"event": "error", "data": {"message": "This token cannot renew the current one", "nonce": "n"}});
    assert_eq!(renew(&mut world, json!({"token": "x", "nonce": "n"})), [with_nonce]);

    // A new token may be signed with another key, and may allow fewer rooms. The client can then no longer switch to a
    // room that only the old token allowed.
    let fresh = maker.token("rs", merge(at(100.0), json!({"rooms": ["tea"]})));
    assert_eq!(renew(&mut world, json!({"token": fresh})), accepted("2038-01-19T03:15:48.000Z"));
    client.send_text(r#"{"event":"switch_room","data":{"room":"general"}}"#);
    assert_eq!(advance(&mut world, &client, 59.9), error("Not allowed in this room"));
    assert_eq!(advance(&mut world, &client, 0.2), [expiring(30)]);
    // A new token may expire before the current one. The server then closes the connection at the earlier time.
    let fresh = maker.token("hs", at(75.5));
    assert_eq!(renew(&mut world, json!({"token": fresh}))[..1], accepted("2038-01-19T03:15:23.500Z"));
    assert_eq!(advance(&mut world, &client, 5.3), NOTHING);
    assert_eq!(advance(&mut world, &client, 0.2), [expired()]);
}

/// A client renews its token while a slow broker delays the client's switch to another room. If the new token does
/// not allow that room, the server closes the connection after the switch.
#[test]
fn a_token_is_renewed_during_a_switch() {
    let Some(mut maker) = TokenMaker::start("switch") else { return };
    let options = maker.options(&["hs"]);
    let (mut world, control) = delayed_world::start(&with(&options, &UNLIMITED));
    let both = maker.token("hs", merge(at(600.0), json!({"rooms": ["tea", "coffee"]})));
    let tea = maker.token("hs", merge(at(600.0), json!({"rooms": ["tea"]})));
    let client = world.upgrade(&format!("/?room=tea&token={both}"));
    delayed_world::release(&mut world, &control);
    client.read_event("welcome");
    client.send_text(r#"{"event":"switch_room","data":{"room":"coffee"}}"#);
    client.send_text(&json!({"event": "token", "data": {"token": tea}}).to_string());
    world.settle();
    client.read_event("token_accepted");
    delayed_world::release(&mut world, &control);
    client.read_event("switched");
    assert_eq!(client.read_frame().close(), (1008, "Not allowed in this room".to_owned()));
}

/// The server compares a token's expiry with the system clock. If the clock is set forward or back while the token is
/// in use, the token expires earlier or later in real time.
#[test]
fn the_clock_is_set_while_a_token_is_in_use() {
    let Some(mut maker) = TokenMaker::start("clock") else { return };
    let mut world = maker.world(&["hs"], &[]);
    let client = enter(&mut world, "/", &maker.token("hs", at(3600.0)));
    world.set_clock(Duration::from_secs(START + 4000));
    assert_eq!(advance(&mut world, &client, 30.0), [expired()], "the server checks the clock every 30 s");
    let mut world = maker.world(&["hs"], &[]);
    let client = enter(&mut world, "/", &maker.token("hs", at(60.0)));
    world.set_clock(Duration::from_secs(START - 100));
    assert_eq!(advance(&mut world, &client, 129.0), NOTHING);
    assert_eq!(advance(&mut world, &client, 2.0), [expiring(30)]);
    assert_eq!(advance(&mut world, &client, 30.0), [expired()]);
}

/// Tests with the real clock: on every endpoint, the server closes a connection when its token expires.
#[test]
fn token_expiry_with_the_real_clock() {
    let Some(mut maker) = TokenMaker::start("short") else { return };
    let server = maker.server(&["es"], &[]);
    let token = maker.token("es", json!({"sub": "alice", "exp": now() + 3}));
    let mut users = ["/ws/a", "/ws?client_id=1&room=b", "/echo"]
        .map(|target| User::new(server.upgrade(request(target, &token).path()), Dialect::Events, ""));
    let (mut alice, _) = join(&server, &token, "");
    let seconds = alice.expect_event("token_expiring", json!({}))["seconds"].as_u64().unwrap();
    assert!((1..=3).contains(&seconds), "{seconds}");
    users[..2].iter_mut().for_each(|user| _ = user.receive());
    alice.expect_close(1008, "token expired");
    users.into_iter().for_each(|user| user.expect_close(1008, "token expired"));
    server.wait_for_log("token expired");
}

/// Traces and recordings contain no tokens, not even the tokens in renewals.
#[test]
fn tokens_are_not_traced_or_recorded() {
    let Some(mut maker) = TokenMaker::start("trace") else { return };
    let records = maker.directory.join("records");
    let server = maker.server(&["es"], &["--trace=full", "--verbose", "--record", records.to_str().unwrap()]);
    let tokens = ["a", "b", "c", "d"].map(|id| maker.token("es", merge(claims("alice"), json!({"jti": id}))));
    let (mut alice, _) = join(&server, &tokens[0], "");
    alice.send_event("token", json!({"token": tokens[1]}));
    alice.expect_event("token_accepted", json!({}));
    alice.send(&format!(r#"{{"event":"token","data":{{"tok\u0065n":"{}"}}}}"#, tokens[3]));
    alice.expect_event("token_accepted", json!({}));
    // The next renewal arrives in two fragments, with whitespace in its JSON.
    let command = format!(r#"{{"event": "token", "data": {{"token" : "{}"}}}}"#, tokens[2]);
    let (first, second) = command.split_at(command.len() - 40);
    alice.client.send(&masked(0x01, first.as_bytes()));
    alice.client.send(&masked(0x80, second.as_bytes()));
    alice.expect_event("token_accepted", json!({}));
    alice.leave();
    server.wait_for_log("CLOSE");
    let files = fs::read_dir(&records).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let recorded: String = files.collect();
    let log = server.log();
    assert!(log.contains("token_accepted") && recorded.contains("client"), "{log} {recorded}");
    for token in &tokens {
        for part in [&token[..12], &token[40..60], &token[token.len() - 20..]] {
            let hex: String = part.bytes().map(|byte| format!("{byte:02x}")).collect();
            let spaced: String = part.bytes().map(|byte| format!("{byte:02x} ")).collect();
            for text in [part, &hex, &spaced[..29]] {
                assert!(!log.contains(text) && !recorded.contains(text), "{text} in {log} {recorded}");
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- reload

#[test]
fn keys_are_reloaded() {
    let Some(mut maker) = TokenMaker::start("reload") else { return };
    let options = maker.options(&["first", "second"]);
    let copy = |maker: &TokenMaker, from: &str, to: &str| _ = fs::copy(maker.key(from), maker.key(to)).unwrap();
    copy(&maker, "hs", "first");
    copy(&maker, "es", "second");
    let server = Server::start(&with(&options, &UNLIMITED));
    let tokens = ["hs", "es", "es2"].map(|key| maker.token(key, claims(key)));
    let statuses = |server: &Server| tokens.each_ref().map(|token| server.status(&request("/echo", token)));
    assert_eq!(statuses(&server), [101, 101, 401]);
    let (by_first, _) = join(&server, &tokens[0], "&room=a");
    let (mut by_second, _) = join(&server, &tokens[1], "&room=b");
    let (mut renewed, _) = join(&server, &tokens[0], "&room=c");
    renewed.send_event("token", json!({"token": maker.token("es", claims("hs"))}));
    renewed.expect_event("token_accepted", json!({}));

    // Write the second file's key to the first file, and a new key to the second file. The server must then reject
    // tokens signed with the first file's old key, and close the connections that use them.
    let mut reloads = 0;
    let mut reload = |line: &str| {
        server.signal("HUP");
        reloads += 1;
        wait_until("the reload", || server.log().matches("RELOAD tokens ").count() == reloads);
        assert!(server.log().contains(line), "{line} in {}", server.log());
    };
    copy(&maker, "es", "first");
    copy(&maker, "es2", "second");
    reload("RELOAD tokens added=0 removed=0 jwt_keys_added=1 jwt_keys_removed=1 connections_closed=");
    by_first.expect_close(1008, "token revoked");
    assert_eq!(statuses(&server), [401, 101, 101]);
    by_second.expect_nothing();
    renewed.expect_nothing();

    // If the server cannot load a key file, the old key of that file stays valid. The server still loads the other
    // file.
    fs::write(maker.key("first"), "short").unwrap();
    copy(&maker, "hs", "second");
    reload("jwt_keys_added=1 jwt_keys_removed=1");
    assert!(server.log().contains("RELOAD failed, the old key stays in force: --jwt-key"), "{}", server.log());
    assert_eq!(statuses(&server), [101, 101, 401]);
    by_second.expect_nothing();
    fs::remove_file(maker.key("first")).unwrap();
    reload("RELOAD tokens added=0 removed=0 connections_closed=0");
    assert_eq!(statuses(&server), [101, 101, 401]);
    copy(&maker, "hs", "first");
    reload("jwt_keys_removed=1 connections_closed=");
    by_second.expect_close(1008, "token revoked");
    renewed.expect_close(1008, "token revoked");
    assert_eq!(statuses(&server), [101, 401, 401]);
}

#[test]
fn tokens_and_keys_are_reloaded_together() {
    let Some(mut maker) = TokenMaker::start("both") else { return };
    let file = token_file("jwt-both", "one\ntwo\n");
    let server = maker.server(&["hs"], &["--tokens", file.to_str().unwrap()]);
    let jwt = maker.token("hs", claims("alice"));
    let (mut alice, _) = join(&server, &jwt, "");
    let (one, _) = join(&server, "one", "&username=bob&room=x");
    fs::write(&file, "two\n").unwrap();
    server.signal("HUP");
    one.expect_close(1008, "token revoked");
    assert!(becomes_true(|| server.log().contains("RELOAD tokens added=0 removed=1 connections_closed=1")));
    alice.expect_nothing();
    // If the token file is invalid, the server still reloads the key files.
    fs::write(&file, "").unwrap();
    fs::copy(maker.key("hs2"), maker.key("hs")).unwrap();
    server.signal("HUP");
    alice.expect_close(1008, "token revoked");
    assert_eq!(server.status(&request("/", "two&username=zoe")), 401);
    assert_eq!(server.status(&request("/?username=zoe", "two")), 101);
    assert_eq!(server.status(&request("/", &jwt)), 401);
}

/// Without `--jwt-key`, the server rejects the `token` command as unknown.
#[test]
fn the_token_command_without_jwt_key() {
    let mut world = World::new(&UNLIMITED);
    let client = enter(&mut world, "/", "dev-token");
    for data in [json!({"token": "x"}), json!(1), json!({"token": 1})] {
        client.send_text(&json!({"event": "token", "data": data}).to_string());
        assert_eq!(
            advance(&mut world, &client, 0.0),
            [json!({"event": "error", "data": {"message": "Unknown event: token"}})]
        );
    }
}
