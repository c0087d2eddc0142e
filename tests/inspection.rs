//! Tests `/inspect`: who may inspect a connection, which records an inspector receives, and that inspectors do not
//! disturb other clients.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use base64::prelude::{BASE64_URL_SAFE, Engine};
use serde_json::Value;
use support::http::handshake;
use support::{RawClient, Server, masked, wait_until};

const PING: &[u8] = b"{\"do\":\"ping\"}";
const FRAGMENT: &[u8] = b"{\"do\":\"fragment\"}";

fn path(name: &str) -> String {
    format!("/?token=dev-token&username={name}&room=general")
}

/// Joins the chat. Returns the client and the ticket from its `welcome` event.
fn join(server: &Server, name: &str) -> (RawClient, String) {
    let mut client = server.upgrade(&path(name));
    let welcome = client.read_event("welcome");
    (client, welcome["ticket"].as_str().expect("a ticket").to_owned())
}

fn inspect(server: &Server, ticket: &str) -> RawClient {
    server.upgrade(&format!("/inspect?ticket={ticket}"))
}

/// Reads records until one has the type `kind`, and returns that record. Discards the records before it.
fn read_record(inspector: &mut RawClient, kind: &str) -> Value {
    loop {
        let record = inspector.read_json();
        if record["record"] == kind {
            return record;
        }
    }
}

/// Reads records until it finds a frame that `from` (`client` or `server`) sent with the opcode `name`. Returns the
/// record of that frame.
fn read_frame(inspector: &mut RawClient, from: &str, name: &str) -> Value {
    loop {
        let frame = read_record(inspector, "frame");
        if frame["from"] == from && frame["name"] == name {
            return frame;
        }
    }
}

/// Returns the count of a `missed` record: how many records the server dropped because the inspector was too slow.
/// Returns 0 for any other record, and for a `missed` record that only counts the frames sent before the inspection
/// began (`earlier`).
fn missed_count(record: &Value) -> u64 {
    if record["earlier"] == true { 0 } else { record["count"].as_u64().unwrap_or_default() }
}

fn status(server: &Server, target: &str) -> u16 {
    let mut client = server.connect();
    let request = handshake().target(target);
    client.send(&request.bytes());
    client.read_response().status
}

fn message(text: &str) -> String {
    format!(r#"{{"event":"message","data":{{"text":"{text}"}}}}"#)
}

#[test]
fn the_handshake_first_then_every_frame() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    assert_eq!(inspector.read_json()["record"], "cases");
    let request = inspector.read_json();
    assert_eq!(request["record"], "request");
    let head = request["head"].as_str().unwrap();
    assert!(head.starts_with("GET /?token=*********&username=alice&room=general HTTP/1.1\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"));
    let response = inspector.read_json();
    assert_eq!((&response["record"], &response["status"]), (&"answer".into(), &101.into()));
    assert_eq!(response["accept"]["sha1"], "b37a4f2cc0624f1690f64606cf385945b2bec4ea");
    assert_eq!(response["accept"]["accept"], support::ACCEPT);
    assert_eq!(response["accept"]["answered"], support::ACCEPT);
    assert_eq!(inspector.read_json()["to"], "OPEN");
    let earlier = inspector.read_json();
    assert_eq!(
        (&earlier["record"], &earlier["count"], &earlier["earlier"]),
        (&"missed".into(), &1.into(), &true.into())
    );

    let text = message("hi");
    alice.send_text(&text);
    let sent = read_frame(&mut inspector, "client", "TEXT");
    assert_eq!((&sent["fin"], &sent["masked"], &sent["key"]), (&true.into(), &true.into(), &"00000000".into()));
    assert_eq!(sent["header"], format!("81{:02x}00000000", 0x80 + text.len()));
    assert_eq!((&sent["payload"], &sent["number"]), (&hex(text.as_bytes()).into(), &1.into()));
    let echoed = read_frame(&mut inspector, "server", "TEXT");
    assert_eq!(echoed["number"], 2, "the server's first frame was `welcome`");
    assert_eq!(echoed["payload"], hex(&alice.read_frame().payload));

    alice.send(&masked(0x89, b"hey"));
    assert_eq!(read_frame(&mut inspector, "client", "PING")["payload"], "686579");
    assert_eq!(read_frame(&mut inspector, "server", "PONG")["payload"], "686579");

    alice.send(&[0x81, 0x05]);
    let failure = read_record(&mut inspector, "refusal");
    assert_eq!((&failure["code"], &failure["section"]), (&1002.into(), &"5.1".into()));
    assert_eq!(
        failure["because"],
        "this frame is not masked; a client must mask every frame; the second byte was 05, its top bit is 0"
    );
    assert_eq!(read_frame(&mut inspector, "server", "CLOSE")["payload"].as_str().unwrap()[..4], *"03ea");
    drop(alice);
    assert_eq!(read_record(&mut inspector, "end")["code"], 1002);
    assert_eq!(inspector.read_frame().close(), (1000, "the inspected connection is over".into()));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_ping_and_a_message_in_fragments_on_demand() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    inspector.send(&masked(0x81, PING));
    assert_eq!(alice.read_frame().first, 0x89);
    read_frame(&mut inspector, "server", "PING");

    inspector.send(&masked(0x81, FRAGMENT));
    inspector.send(&masked(0x81, PING));
    assert_eq!(alice.read_frame().first, 0x89, "a ping is not a message, so it is not fragmented");
    alice.send_text(&message("hello"));
    let fragments: Vec<_> = (0..3).map(|_| alice.read_frame()).collect();
    assert_eq!(fragments.iter().map(|frame| frame.first).collect::<Vec<_>>(), [0x01, 0x00, 0x80]);
    let whole: Vec<u8> = fragments.into_iter().flat_map(|frame| frame.payload).collect();
    let event: Value = serde_json::from_slice(&whole).expect("the assembled message");
    assert_eq!(event["data"]["text"], "hello");
    let places: Vec<_> =
        ["TEXT", "CONT", "CONT"].map(|name| read_frame(&mut inspector, "server", name)["place"].take()).into();
    assert_eq!(places.iter().map(|place| place["fragment"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    assert_eq!(places[2]["last"], true);
    alice.send_text(&message("again"));
    assert_eq!(alice.read_event("message")["text"], "again");

    inspector.send(&masked(0x81, b"{\"do\":\"harm\"}"));
    assert!(read_record(&mut inspector, "error")["message"].as_str().unwrap().contains("no command"));
    inspector.send(&masked(0x82, PING));
    assert_eq!(read_close(&mut inspector).0, 1003);
}

fn read_close(client: &mut RawClient) -> (u16, String) {
    loop {
        let frame = client.read_frame();
        if frame.opcode() == 8 {
            return frame.close();
        }
    }
}

/// Each Ping that an inspector requests has its own payload. A Pong repeats the payload of its Ping (RFC 6455 §5.5.3),
/// so the inspector can match each Pong to its Ping.
#[test]
fn the_pings_of_an_inspector_are_numbered() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    for payload in ["ping 1", "ping 2"] {
        inspector.send(&masked(0x81, PING));
        let ping = alice.read_frame();
        assert_eq!((ping.first, &ping.payload[..]), (0x89, payload.as_bytes()));
        assert_eq!(read_frame(&mut inspector, "server", "PING")["payload"], hex(payload.as_bytes()));
        alice.send(&masked(0x8a, &ping.payload));
        assert_eq!(read_frame(&mut inspector, "client", "PONG")["payload"], hex(payload.as_bytes()));
    }
}

#[test]
fn an_inspector_closes_the_inspected_connection_with_any_valid_code() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    for code in ["999", "1004", "1005", "1006", "1012", "1015", "2999", "5000", "65536", "-1", "\"1000\"", "null"] {
        inspector.send_text(&format!(r#"{{"do":"close","code":{code}}}"#));
        let error = read_record(&mut inspector, "error");
        assert!(error["message"].as_str().unwrap().contains("close code"), "{code}: {error}");
    }
    inspector.send_text(r#"{"do":"close"}"#);
    read_record(&mut inspector, "error");
    alice.send(&masked(0x89, b"still open"));
    assert_eq!(alice.read_frame().payload, b"still open");
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1011, 3000, 3999, 4000, 4999] {
        let (mut bob, ticket) = join(&server, "bob");
        let mut inspector = inspect(&server, &ticket);
        inspector.send_text(&format!(r#"{{"do":"close","code":{code}}}"#));
        assert_eq!(read_close(&mut bob), (code, "closed by the inspector".into()));
        bob.send(&masked(0x88, &code.to_be_bytes()));
        let end = read_record(&mut inspector, "end");
        assert_eq!((&end["began"], &end["code"], &end["clean"]), (&"server".into(), &code.into(), &true.into()));
        assert_eq!(read_close(&mut inspector).0, 1000);
    }
}

/// In a busy room, the server sends all fragments of a message before the next message (RFC 6455 §5.4).
#[test]
fn fragments_of_a_message_from_another_member() {
    let server = Server::start(&["--rate-limit", "0"]);
    let (mut alice, ticket) = join(&server, "alice");
    let (mut bob, _) = join(&server, "bob");
    let mut inspector = inspect(&server, &ticket);
    alice.read_event("joined");
    inspector.send(&masked(0x81, FRAGMENT));
    inspector.send(&masked(0x81, PING));
    assert_eq!(alice.read_frame().first, 0x89, "the server has handled both commands");
    let messages: Vec<u8> = (0..50).flat_map(|number| masked(0x81, message(&number.to_string()).as_bytes())).collect();
    bob.send(&messages);
    let first: Vec<u8> = (0..3).flat_map(|_| alice.read_frame().payload).collect();
    assert_eq!(serde_json::from_slice::<Value>(&first).unwrap()["data"]["text"], "0");
    for number in 1..50 {
        assert_eq!(alice.read_event("message")["text"], number.to_string());
    }
}

#[test]
fn a_ticket_is_good_once_and_for_one_connection() {
    let server = Server::start(&[]);
    let (_alice, ticket) = join(&server, "alice");
    let (bob, of_bob) = join(&server, "bob");
    assert_ne!(ticket, of_bob);
    let [ticket_bytes, bytes_of_bob] = [&ticket, &of_bob].map(|ticket| BASE64_URL_SAFE.decode(ticket).unwrap());
    let (number, secret) = ticket_bytes.split_at(8);
    assert_eq!(secret.len(), 16, "128 bits");
    let (number_of_bob, secret_of_bob) = bytes_of_bob.split_at(8);
    let guesses = [
        [&[][..], &[]],
        [number, &[]],
        [number, &[0; 16]],
        [number, secret_of_bob],
        [number_of_bob, secret],
        [number, &secret[..15]],
        [number, &[secret, &[0]].concat()],
        [&[0xff; 8], secret],
        [&[0; 8], secret],
    ];
    let guesses = guesses.map(|parts| BASE64_URL_SAFE.encode(parts.concat())).into_iter();
    for guess in guesses.chain(["-".into(), ticket.to_uppercase(), format!("{ticket}A")]) {
        assert_eq!(status(&server, &format!("/inspect?ticket={guess}")), 403, "{guess}");
    }
    assert_eq!(status(&server, "/inspect"), 400, "no ticket at all");
    assert_eq!(status(&server, &format!("/inspect?token=dev-token&ticket={ticket}x")), 403, "a token is no ticket");

    let mut inspector = inspect(&server, &ticket);
    read_record(&mut inspector, "request");
    assert_eq!(status(&server, &format!("/inspect?ticket={ticket}")), 403, "a ticket is valid only once");
    drop(bob);
    server.wait_for_log("user=bob connection=2 address=127.0.0.1 token_line=4 reason");
    assert_eq!(status(&server, &format!("/inspect?ticket={of_bob}")), 403, "the connection is over");
}

#[test]
fn an_inspector_from_another_origin_is_rejected() {
    let server = Server::start(&[]);
    let (_alice, ticket) = join(&server, "alice");
    let request = handshake().target(format!("/inspect?ticket={ticket}")).add("Origin: https://evil.example");
    let mut client = server.connect();
    client.send(&request.bytes());
    assert_eq!(client.read_response().status, 403);
    inspect(&server, &ticket); // succeeds: the rejected request did not use up the ticket
}

#[test]
fn tickets_only_where_inspection_is_on_and_only_for_the_native_dialect() {
    let off = Server::start_at("0.0.0.0:0", &["--open"]);
    let welcome = off.upgrade("/?username=alice").read_event("welcome");
    assert_eq!(welcome["ticket"], Value::Null);
    let on = Server::start_at("0.0.0.0:0", &["--open", "--inspect"]);
    let welcome = on.upgrade("/?username=alice").read_event("welcome");
    assert!(welcome["ticket"].is_string());
    let server = Server::start(&[]);
    for path in ["/ws/general?token=dev-token", "/ws?token=dev-token&username=pat&client_id=1"] {
        assert_eq!(server.upgrade(path).read_json()["ticket"], Value::Null, "{path}");
    }
}

#[test]
fn an_inspector_is_not_inspected() {
    let server = Server::start(&["--trace"]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    alice.send_text(&message("hi"));
    read_frame(&mut inspector, "server", "TEXT");
    drop(inspector);
    alice.send_text(&message("and on"));
    alice.read_event("message");
    server.wait_for_log("and on");
    let of_inspector: Vec<String> = server.log().lines().filter(|line| line.contains(" #2 ")).map(Into::into).collect();
    assert!(of_inspector.iter().all(|line| !line.contains("TEXT")), "{of_inspector:#?}");
}

/// If an inspector does not read, the server drops records, and later reports how many. The inspected client sees no
/// delay.
#[test]
fn an_inspector_that_never_reads() {
    let server = Server::start(&["--rate-limit", "0", "--max-outbox", "4096", "--history", "0"]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    // Send more frames than the kernel's socket buffers can hold as records, so that the server must drop some records.
    // A record is several times as long as its frame.
    const ROUNDS: usize = 400;
    for round in 0..ROUNDS {
        let messages: Vec<u8> = (0..20).flat_map(|_| masked(0x81, message(&"x".repeat(400)).as_bytes())).collect();
        alice.send(&messages);
        for _ in 0..20 {
            assert_eq!(alice.read_event("message")["text"].as_str().unwrap().len(), 400, "round {round}");
        }
    }
    // The server reports the number of dropped records only when it sends the next record. Send Pings to create more
    // records, until every frame is either shown or reported as dropped.
    let (sent, mut shown, mut missed) = (2 * 20 * ROUNDS as u64, 0, 0);
    while shown + missed < sent {
        alice.send(&masked(0x89, b""));
        assert_eq!(alice.read_frame().first, 0x8a);
        let record = inspector.read_json();
        shown += u64::from(record["record"] == "frame");
        missed += missed_count(&record);
    }
    assert!(missed > 0, "{shown} shown, and none missed");
}

/// Even a slow inspector receives the number of missed records, and then the `end` record.
#[test]
fn the_number_of_missed_records_comes_with_the_end() {
    let server = Server::start(&["--rate-limit", "0", "--max-outbox", "4096", "--history", "0"]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    const FRAMES: u64 = 3000;
    alice.send(&masked(0x8a, &[b'x'; 125]).repeat(FRAMES as usize));
    alice.send(&masked(0x88, b""));
    alice.read_to_end();
    let (mut shown, mut missed) = (0, 0);
    loop {
        let record = inspector.read_json();
        shown += u64::from(record["record"] == "frame");
        missed += missed_count(&record);
        if record["record"] == "end" {
            assert_eq!((&record["began"], &record["clean"]), (&"client".into(), &true.into()));
            break;
        }
    }
    assert!(missed > 0 && shown + missed >= FRAMES, "{shown} shown, {missed} missed");
    assert_eq!(inspector.read_frame().close().0, 1000);
}

/// Browsers open connections in advance, so the order of the requests may differ from the order in which the server
/// accepted the connections. Each inspector must still receive the request of the inspected connection.
#[test]
fn handshakes_are_kept_whatever_the_order_of_requests() {
    let server = Server::start(&[]);
    let mut sockets: Vec<RawClient> = (0..6).map(|_| server.connect()).collect();
    for (number, socket) in sockets.iter_mut().enumerate().rev() {
        socket.send(support::upgrade_request(&path(&format!("user{number}"))).as_bytes());
        socket.read_head();
        let ticket = socket.read_event("welcome")["ticket"].as_str().expect("a ticket").to_owned();
        let head = read_record(&mut inspect(&server, &ticket), "request")["head"].take();
        assert!(head.as_str().unwrap().contains(&format!("username=user{number}&")), "{head}");
    }
}

/// The server rejects an inspector for a connection that is closing. An inspector that attached earlier cannot delay
/// the close by sending commands.
#[test]
fn a_closing_connection_is_removed_after_the_close_timeout() {
    let server = Server::start(&["--close-timeout", "0.5"]);
    let (mut alice, ticket) = join(&server, "alice");
    let (mut bob, of_bob) = join(&server, "bob");
    let mut inspector = inspect(&server, &ticket);
    for (client, bytes) in [(&mut alice, masked(0x81, b"\xff")), (&mut bob, masked(0x81, b"\xff"))] {
        client.send(&bytes);
        assert_eq!(read_close(client).0, 1007);
    }
    assert_eq!(status(&server, &format!("/inspect?ticket={of_bob}")), 403, "bob's connection is closing");
    loop {
        inspector.try_send(&masked(0x81, PING));
        let frame = inspector.read_frame();
        if frame.opcode() == 8 {
            break;
        }
    }
    assert_eq!(alice.read_to_end(), b"", "the server sends no Ping after the Close");
}

/// An inspector that attaches in the middle of a message waits for the end of that message. If the inspected connection
/// ends first, the server closes the inspector's connection.
#[test]
fn a_waiting_inspector_is_closed_with_its_connection() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    alice.send(&masked(0x01, b"never finished"));
    let mut inspector = inspect(&server, &ticket);
    read_record(&mut inspector, "state");
    drop(alice);
    assert_eq!(inspector.read_frame().close(), (1000, "the inspected connection is over".into()));
}

/// During a shutdown, the inspector receives a record of the Close frame that the server sends to the inspected client.
#[test]
fn the_close_of_a_stopping_server_is_shown() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut inspector = inspect(&server, &ticket);
    read_record(&mut inspector, "state");
    server.signal("TERM");
    assert_eq!(read_close(&mut alice).0, 1001);
    assert!(read_frame(&mut inspector, "server", "CLOSE")["payload"].as_str().unwrap().starts_with("03e9"));
    alice.send(&masked(0x88, b"\x03\xe9"));
    assert_eq!(read_record(&mut inspector, "end")["clean"], true);
}

#[test]
fn inspectors_come_and_go() {
    let mut server = Server::start(&["--rate-limit", "0"]);
    let pairs: Vec<_> = (0..50).map(|number| join(&server, &format!("user{number}"))).collect();
    for (_, ticket) in &pairs {
        let mut inspector = inspect(&server, ticket);
        read_record(&mut inspector, "answer");
    }
    let (mut last, _) = join(&server, "last");
    last.send_text(&message("still here"));
    assert_eq!(last.read_event("message")["text"], "still here");
    drop(pairs);
    wait_until("all others have left", || server.log().matches("LEAVE").count() == 50);
    assert!(server.is_running());
}

/// An inspector that joins in the middle of a message receives records of the frames after that message.
#[test]
fn inspection_begins_between_two_messages() {
    let server = Server::start(&[]);
    let (mut alice, ticket) = join(&server, "alice");
    let mut bob = server.upgrade("/echo?token=dev-token");
    let whole = masked(0x81, message("in two halves").as_bytes());
    alice.send(&whole[..10]);
    // The server replies to each of bob's Pings in a separate turn of the event loop. After two replies, it has also
    // read the ten bytes that alice sent before the Pings.
    for _ in 0..2 {
        bob.send(&masked(0x89, b"sync"));
        assert_eq!(bob.read_frame().payload, b"sync");
    }
    let mut inspector = inspect(&server, &ticket);
    read_record(&mut inspector, "state");
    alice.send(&whole[10..]);
    alice.read_event("message");
    alice.send(&masked(0x89, b"now"));
    assert_eq!(read_record(&mut inspector, "frame")["name"], "PING");
}
