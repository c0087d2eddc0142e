//! Every limit at n and at n + 1, and what they mean to those who did not cross them.

mod support;

use serde_json::json;
use support::http::{Request, get, handshake};
use support::table::{each_row, hex};
use support::watched::Watched;
use support::{Frame, RawClient, Server, masked, wait_until};

const ECHO: &str = "/echo?token=dev-token";
const CHAT: &str = "/?token=dev-token";

/// What becomes of some bytes behind an upgrade.
enum Outcome {
    /// An echo, or an event, with this in it.
    Says(&'static str),
    Closes(u16, &'static str),
}

use Outcome::{Closes, Says};

/// A name, flags, an endpoint, what is sent there, and what becomes of it.
type Limit<'a> = (&'a str, &'a [&'a str], &'a str, Vec<u8>, Outcome);

/// Each limit at n and at n + 1.
#[test]
fn limits_of_messages() {
    let fragments = |count: usize| [hex("01 80 M0"), hex("00 80 M0").repeat(count - 1)].concat();
    let whole = |count: usize| [fragments(count - 1), hex("80 83 M0 'end'")].concat();
    let ping = |len: usize| masked(0x81, format!("{:len$}", r#"{"event":"ping"}"#).as_bytes());
    let text = |text: &str| masked(0x81, json!({"event": "message", "data": {"text": text}}).to_string().as_bytes());
    let message = ["--max-message", "300", "--max-text", "10"];
    let parts = ["--max-fragments", "4"];
    let rows: Vec<Limit> = vec![
        ("--max-message at", &message, CHAT, ping(300), Says("pong")),
        ("--max-message over", &message, CHAT, ping(301), Closes(1009, "")),
        ("--max-message does not bind /echo", &message, ECHO, masked(0x81, &[b'x'; 301]), Says("xxx")),
        ("--max-echo at", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1000]), Says("xxx")),
        ("--max-echo over", &["--max-echo", "1000"], ECHO, masked(0x82, &[b'x'; 1001]), Closes(1009, "")),
        ("--max-echo does not bind the chat", &["--max-echo", "1000"], CHAT, ping(1001), Says("pong")),
        ("--max-text at", &["--max-text", "10"], CHAT, text("ääääääääää"), Says("ääääääääää")),
        ("--max-text over", &["--max-text", "10"], CHAT, text("äääääääääää"), Says("Message too long")),
        ("--max-fragments at", &parts, ECHO, whole(4), Says("end")),
        ("--max-fragments over", &parts, ECHO, whole(5), Closes(1008, "fragments")),
        ("--max-fragments over, no end", &parts, ECHO, fragments(5), Closes(1008, "fragments")),
        ("--max-fragments for each message anew", &parts, ECHO, whole(4).repeat(3), Says("end")),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, args, at, sent, outcome)| {
            let mut server = Watched::start(args);
            let mut client = server.upgrade(at);
            client.send(sent);
            let mut frame = client.read_frame();
            if frame.payload.windows(9).any(|bytes| bytes == b"\"welcome\"") {
                frame = client.read_frame();
            }
            match outcome {
                Says(what) => assert!(String::from_utf8_lossy(&frame.payload).contains(what), "{frame:?}"),
                Closes(code, word) => {
                    let (got, reason) = frame.close();
                    assert!(got == *code && reason.contains(word), "{got} {reason:?}");
                }
            }
            server.still_chats();
        },
    );
}

#[test]
fn limits_of_heads() {
    let with = |count| (0..count).fold(handshake(), |request, i| request.add(format!("X-{i}: y")));
    let head = ["--max-head", "512"];
    let headers = ["--max-headers", "8"];
    let rows: Vec<(&str, &[&str], Request, u16)> = vec![
        ("--max-head at", &head, handshake().padded_to(512), 101),
        ("--max-head over", &head, handshake().padded_to(513), 431),
        ("--max-headers at", &headers, with(3), 101),
        ("--max-headers over", &headers, with(4), 431),
    ];
    each_row(
        &rows,
        |row| row.0.to_owned(),
        |(_, args, request, status)| {
            assert_eq!(Server::start(args).status(request), *status);
        },
    );
}

/// F13: the largest echo there is by default.
#[test]
fn an_echo_of_16_mib() {
    let server = Watched::start(&[]);
    let mut client = server.upgrade(ECHO);
    let mut writer = RawClient::new(client.stream.try_clone().unwrap());
    let payload: Vec<u8> = (0..=255).cycle().take(16 << 20).collect();
    let frame = masked(0x82, &payload);
    let writing = std::thread::spawn(move || writer.send(&frame));
    assert!(client.read_frame() == Frame { first: 0x82, payload }, "the same comes back");
    writing.join().unwrap();
    server.finish(&[]);
}

/// `--max-connections`: the one too many is refused, and there is room again when another has gone.
#[test]
fn limit_of_connections() {
    let server = Server::start(&["--max-connections", "2"]);
    let (first, _second) = (server.upgrade(CHAT), server.upgrade(ECHO));
    assert_eq!(server.status(&handshake()), 503);
    assert_eq!(server.status(&get("/health")), 200);
    drop(first);
    wait_until("there is room again", || server.status(&handshake()) == 101);
}

/// `--max-buffered`: unfinished messages of all connections together. The one that crosses it is closed, the others go on.
#[test]
fn limit_of_what_is_buffered() {
    let mut server = Watched::start(&["--max-buffered", "200000"]);
    let half = masked(0x02, &[b'x'; 60_000]);
    for _ in 0..2 {
        let mut clients: Vec<RawClient> = (0..3).map(|_| server.upgrade(ECHO)).collect();
        for client in &mut clients {
            client.send(&half);
            server.barrier();
        }
        let mut last = server.upgrade(ECHO);
        last.send(&half);
        let (code, reason) = last.read_frame().close();
        assert_eq!(code, 1013);
        assert!(reason.contains("buffer"), "{reason}");
        last.send(&masked(0x88, &code.to_be_bytes()));
        last.expect_end();
        for client in &mut clients {
            client.send(&masked(0x80, b"end"));
            assert_eq!(client.read_frame().payload.len(), 60_003, "the others go on");
        }
        server.still_chats();
    }
    server.finish(&[]);
}
