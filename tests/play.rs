//! Tests the inspector's command `{"do":"play"}`: the server connects to itself and plays a test case of
//! `wirechat poke`. Only a few test cases may run at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::http::handshake;
use support::{RawClient, Server, masked, token_file};

/// A chat client and the inspector of its connection.
struct InspectedClient {
    client: RawClient,
    inspector: RawClient,
    number: u64,
    /// The record that lists all test cases.
    catalogue: Value,
}

impl InspectedClient {
    fn join(server: &Server, query: &str) -> InspectedClient {
        let mut client = server.upgrade(&format!("/?{query}"));
        let ticket = client.read_event("welcome")["ticket"].as_str().expect("a ticket").to_owned();
        let mut inspector = server.upgrade(&format!("/inspect?ticket={ticket}"));
        let catalogue = inspector.read_json();
        assert_eq!(catalogue["record"], "cases");
        let records: Vec<Value> = (0..4).map(|_| inspector.read_json()).collect();
        assert_eq!(kinds(&records), ["request", "answer", "state", "missed"]);
        InspectedClient { client, inspector, number: records[0]["connection"].as_u64().unwrap(), catalogue }
    }

    fn start(server: &Server) -> InspectedClient {
        InspectedClient::join(server, "token=dev-token&username=alice")
    }

    fn send_play(&mut self, case: &str) {
        self.inspector.send_text(&json!({ "do": "play", "case": case }).to_string());
    }

    /// Reads records until one of the given kind arrives. Returns all of them, including that one.
    fn read_up_to(&mut self, kind: &str) -> Vec<Value> {
        let mut records = Vec::new();
        loop {
            records.push(self.inspector.read_json());
            if records.last().unwrap()["record"] == kind {
                return records;
            }
        }
    }

    fn play(&mut self, case: &str) -> Vec<Value> {
        self.send_play(case);
        self.read_up_to("played")
    }

    fn read_error(&mut self) -> String {
        self.read_up_to("error").pop().unwrap()["message"].as_str().unwrap().to_owned()
    }

    /// Sends a Ping from the inspected client. The inspector must receive records of the Ping and of the server's Pong.
    fn ping(&mut self, payload: &[u8]) {
        self.client.send(&masked(0x89, payload));
        assert_eq!(self.client.read_frame().payload, payload);
        for name in ["PING", "PONG"] {
            let record = self.read_up_to("frame").pop().unwrap();
            assert_eq!((&record["name"], &record["connection"]), (&name.into(), &self.number.into()));
        }
    }
}

fn kinds(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["record"].as_str().unwrap()).collect()
}

fn message(text: &str) -> String {
    json!({ "event": "message", "data": { "text": text } }).to_string()
}

#[test]
fn the_first_record_lists_the_cases() {
    let server = Server::start(&[]);
    let inspected = InspectedClient::start(&server);
    let cases = inspected.catalogue["cases"].as_array().unwrap();
    assert!(cases.len() > 60, "{}", cases.len());
    let unmasked = json!({ "name": "unmasked-frame", "title": "A text frame whose mask bit is 0", "rule": "§5.1" });
    assert!(cases.contains(&unmasked), "{cases:#?}");
}

#[test]
fn a_case_with_an_invalid_frame() {
    let server = Server::start(&[]);
    let mut alice = InspectedClient::start(&server);
    let records = alice.play("unmasked-frame");
    // The server reads no frames after an invalid one, so the records do not include the client's Close.
    let expected = ["request", "answer", "state", "frame", "refusal", "frame", "state", "state", "end", "played"];
    assert_eq!(kinds(&records), expected);
    assert!(
        records.iter().all(|record| record["connection"] == records[0]["connection"] && record["time"].is_string())
    );
    assert_ne!(records[0]["connection"], alice.number);
    assert!(records[0]["head"].as_str().unwrap().starts_with("GET /echo?"), "{}", records[0]);
    assert_eq!((&records[1]["status"], &records[3]["masked"]), (&101.into(), &false.into()));
    assert_eq!((&records[4]["section"], &records[4]["code"]), (&"5.1".into(), &1002.into()));
    assert_eq!((&records[5]["name"], &records[5]["from"]), (&"CLOSE".into(), &"server".into()));
    assert_eq!((&records[8]["code"], &records[8]["clean"]), (&1002.into(), &false.into()));
    let played = &records[9];
    assert_eq!((&played["case"], &played["passed"]), (&"unmasked-frame".into(), &true.into()));
    assert_eq!(played["expected"], "Close 1002, then the end of TCP");
    assert_eq!(played["came"], "Close 1002 \"client frames must be masked (RFC 6455 §5.1)\", then the end of TCP");
    assert!(played["rule"].as_str().unwrap().starts_with("§5.1: "), "{played}");
    alice.ping(b"still inspected");
}

#[test]
fn a_case_that_is_valid() {
    let server = Server::start(&[]);
    let mut alice = InspectedClient::start(&server);
    let records = alice.play("hello");
    assert_eq!(records[1]["accept"]["accept"], support::ACCEPT);
    let texts: Vec<&Value> = records.iter().filter(|record| record["name"] == "TEXT").collect();
    assert_eq!(texts.iter().map(|frame| &frame["payload"]).collect::<Vec<_>>(), ["48656c6c6f", "48656c6c6f"]);
    assert_eq!(records.last().unwrap()["expected"], "text \"Hello\", the connection stays open");
    let end = &records[records.len() - 2];
    assert_eq!((&end["record"], &end["began"], &end["clean"]), (&"end".into(), &"client".into(), &true.into()));
}

#[test]
fn every_case_passes() {
    assert_every_case_passes(&[]);
    #[cfg(feature = "deflate")]
    assert_every_case_passes(&["--deflate"]);
}

fn assert_every_case_passes(options: &[&str]) {
    let server = Server::start(options);
    let mut alice = InspectedClient::start(&server);
    let cases = alice.catalogue["cases"].take();
    let (mut connections, start) = (Vec::new(), Instant::now());
    for case in cases.as_array().unwrap() {
        let records = alice.play(case["name"].as_str().unwrap());
        let played = records.last().unwrap();
        assert_eq!((&played["case"], &played["passed"]), (&case["name"], &true.into()), "{records:#?}");
        assert!(!played["came"].as_str().unwrap().contains("options"), "{played}");
        assert!(played["rule"].as_str().unwrap().starts_with(case["rule"].as_str().unwrap()), "{played}");
        assert!(records.len() <= 60, "{}: {} records", case["name"], records.len());
        assert!(records[..records.len() - 1].iter().all(|record| record["connection"] == played["connection"]));
        assert_eq!(records[records.len() - 2]["record"], "end", "{records:#?}");
        connections.push(played["connection"].as_u64().unwrap());
    }
    assert!(connections.is_sorted() && connections[0] > alice.number, "{connections:?}");
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
    alice.ping(b"still inspected");
}

/// With `--trace` or `--record`, every connection has an observer from the start. Even so, an inspector must receive
/// each frame of a test case only once.
#[test]
fn frames_are_sent_once_with_a_trace_or_recordings() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("play-{}", std::process::id()));
    for options in [&["--trace"][..], &["--record", folder.to_str().unwrap()]] {
        let server = Server::start(options);
        let mut alice = InspectedClient::start(&server);
        let records = alice.play("ping");
        let names: Vec<&str> = records.iter().filter_map(|record| record["name"].as_str()).collect();
        assert_eq!(names, ["PING", "PONG", "PING", "PONG", "CLOSE", "CLOSE"], "{records:#?}");
        assert_eq!(records.last().unwrap()["passed"], true);
        alice.ping(b"still inspected");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn an_unknown_case_name() {
    let server = Server::start(&[]);
    let mut alice = InspectedClient::start(&server);
    alice.send_play("no-such-case");
    assert!(alice.read_error().contains("no case \"no-such-case\""));
    for command in [r#"{"do":"play"}"#, r#"{"do":"play","case":1}"#] {
        alice.inspector.send_text(command);
        assert!(alice.read_error().contains("names no case"));
    }
    alice.play("hello");
}

#[test]
fn one_case_at_a_time() {
    let server = Server::start(&[]);
    let (mut alice, mut bob) =
        (InspectedClient::start(&server), InspectedClient::join(&server, "token=dev-token&username=bob"));
    alice.send_play("slow-reader");
    alice.send_play("hello");
    assert!(alice.read_error().contains("being played already"));
    assert_eq!(bob.play("hello").last().unwrap()["passed"], true, "another inspector may play at the same time");
    assert_eq!(alice.read_up_to("played").pop().unwrap()["case"], "slow-reader");
    assert_eq!(alice.play("hello").last().unwrap()["case"], "hello");
}

#[test]
fn inspectors_share_one_limit_of_running_cases() {
    let server = Server::start(&[]);
    let mut inspected: Vec<InspectedClient> = (0..5)
        .map(|number| InspectedClient::join(&server, &format!("token=dev-token&username=u{number}&room=r{number}")))
        .collect();
    let (last, others) = inspected.split_last_mut().unwrap();
    for other in others.iter_mut() {
        other.send_play("slow-reader"); // runs for two seconds, so that all these cases overlap
        other.read_up_to("request");
    }
    last.send_play("hello");
    assert!(last.read_error().contains("Try again later"));
    for other in others {
        assert_eq!(other.read_up_to("played").pop().unwrap()["passed"], true);
    }
    assert_eq!(last.play("hello").last().unwrap()["passed"], true);
}

/// A case must end when the inspected connection closes or the inspector disconnects. The test starts more cases than
/// may run at the same time, so cases that do not end would block the last one.
#[test]
fn the_inspected_connection_closes_while_a_case_is_played() {
    let mut server = Server::start(&[]);
    for _ in 0..6 {
        let InspectedClient { client, mut inspector, .. } = InspectedClient::start(&server);
        inspector.send_text(&json!({ "do": "play", "case": "hello" }).to_string());
        drop(client);
        loop {
            let frame = inspector.read_frame();
            if frame.opcode() == 8 {
                assert_eq!(frame.close(), (1000, "the inspected connection is over".into()));
                break;
            }
        }
    }
    for _ in 0..3 {
        InspectedClient::start(&server).send_play("slow-request"); // drops both connections immediately
    }
    let mut alice = InspectedClient::start(&server);
    while !try_play(&mut alice) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.is_running());
}

/// Plays a test case. Returns `false` if the server rejects the command because too many other cases are running.
fn try_play(alice: &mut InspectedClient) -> bool {
    alice.send_play("hello");
    loop {
        let record = alice.inspector.read_json();
        match record["record"].as_str().unwrap() {
            "played" => return true,
            "error" => return false,
            _ => {}
        }
    }
}

#[test]
fn the_server_serves_others_while_a_case_is_played() {
    let server = Server::start(&["--rate-limit", "0"]);
    let mut alice = InspectedClient::start(&server);
    let mut bob = server.upgrade("/?token=dev-token&username=bob&room=busy");
    alice.send_play("slow-reader");
    alice.read_up_to("request");
    let start = Instant::now();
    for number in 0..100 {
        bob.send_text(&message(&number.to_string()));
        assert_eq!(bob.read_event("message")["text"], number.to_string());
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(alice.read_up_to("played").pop().unwrap()["passed"], true);
}

/// The case sends 100,001 frames. The inspector receives records of the first 20 frames, the number of records that it
/// missed, and records of how the connection ended.
#[test]
fn a_long_test_case_has_few_records() {
    let server = Server::start(&[]);
    let mut alice = InspectedClient::start(&server);
    let records = alice.play("too-many-fragments");
    let frames: Vec<&Value> = records.iter().filter(|record| record["record"] == "frame").collect();
    assert_eq!(frames.iter().filter(|frame| frame["name"] != "CLOSE").count(), 20);
    let missed: u64 = records
        .iter()
        .filter(|record| record["record"] == "missed")
        .map(|record| record["count"].as_u64().unwrap())
        .sum();
    assert!(missed > 90_000, "{missed}");
    assert!(frames.iter().any(|frame| frame["name"] == "CLOSE" && frame["from"] == "server"));
    assert_eq!(records[records.len() - 2]["code"], 1008);
}

/// With `--tokens`, the connection of a test case needs no token, but every other connection does.
#[test]
fn only_test_cases_need_no_token() {
    let tokens = token_file("play", "secret-of-alice alice\n");
    let server = Server::start(&["--tokens", tokens.to_str().unwrap()]);
    let mut alice = InspectedClient::join(&server, "token=secret-of-alice");
    for case in ["hello", "binary-on-the-chat", "wrong-token", "foreign-origin", "foreign-host", "long-target"] {
        assert_eq!(alice.play(case).last().unwrap()["passed"], true, "{case}");
    }
    alice.send_play("slow-reader");
    alice.read_up_to("request");
    let mut other = server.connect();
    other.send(&handshake().target("/echo").bytes());
    assert_eq!(other.read_response().status, 401);
    alice.read_up_to("played");
    assert!(!server.log().contains("secret-of-alice"));
}

#[test]
fn cases_run_on_a_public_server() {
    let server = Server::start_at("0.0.0.0:0", &["--open", "--inspect", "--allow-host", "chat.example"]);
    let mut alice = InspectedClient::join(&server, "username=alice");
    for case in ["hello", "unmasked-frame", "foreign-origin", "foreign-host"] {
        assert_eq!(alice.play(case).last().unwrap()["passed"], true, "{case}");
    }
    let played = alice.play("wrong-token").pop().unwrap();
    assert_eq!((&played["passed"], &played["expected"]), (&false.into(), &"HTTP 401".into()));
    assert_eq!(played["came"], "the connection stays open; the server's options may explain that");
}

#[test]
fn cases_run_over_ipv6() {
    let server = Server::start_at("[::1]:0", &[]);
    assert_eq!(InspectedClient::start(&server).play("hello").last().unwrap()["passed"], true);
}

#[test]
fn a_test_case_counts_towards_the_connection_limits() {
    let server = Server::start_at("0.0.0.0:0", &["--open", "--inspect", "--max-per-address", "2"]);
    let mut alice = InspectedClient::join(&server, "username=alice");
    let records = alice.play("hello");
    assert_eq!(kinds(&records), ["answer", "state", "end", "played"]);
    let played = &records[3];
    assert_eq!(played["passed"], false);
    assert!(played["came"].as_str().unwrap().starts_with("HTTP 503 \"This address has too many"), "{played}");
}

#[test]
fn a_server_stops_while_a_case_is_played() {
    let mut server = Server::start(&[]);
    let mut alice = InspectedClient::start(&server);
    alice.send_play("slow-reader");
    alice.read_up_to("request");
    server.signal("TERM");
    let start = Instant::now();
    assert!(server.wait().success());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

/// Test cases may connect from 127.0.0.1 without an access token, even if a trusted proxy has the same address.
#[test]
fn behind_a_proxy_on_this_machine() {
    let tokens = token_file("play-proxy", "secret\n");
    let options = ["--tokens", tokens.to_str().unwrap(), "--inspect", "--trusted-proxy", "127.0.0.1"];
    let server = Server::start(&options);
    let mut alice = InspectedClient::join(&server, "token=secret&username=alice");
    assert_eq!(alice.play("hello").last().unwrap()["passed"], true);
    assert_eq!(alice.play("wrong-token").last().unwrap()["passed"], true);
}
