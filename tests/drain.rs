//! Tests the graceful shutdown of a server behind a load balancer: `--drain-delay` and `--drain`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/memory.rs"]
mod memory;
mod support;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use memory::{Client, World};
use support::http::handshake;
use support::{Server, masked, wait_until};

const CALM: [&str; 6] = ["--ping-interval", "600", "--idle-timeout", "1200", "--rate-limit", "0"];
const STEP: Duration = Duration::from_millis(100);

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn world(args: &[&str]) -> World {
    World::new(&[args, &CALM].concat())
}

fn member(world: &mut World, number: usize) -> Client {
    let client = world.upgrade(&format!("/?token=dev-token&username=user-{number}&room=room-{}", number / 100));
    client.read_event("welcome");
    client
}

/// Returns the code of the Close that the client has received, if any, and replies to the Close.
fn close_code(client: &Client) -> Option<u16> {
    let close = client.read_frames().into_iter().find(|frame| frame.opcode() == 8)?;
    client.send(&masked(0x88, &close.payload[..2]));
    Some(close.close().0)
}

/// Advances the clock in steps until the server stops. Returns for each client the step at which Close 1001 arrived.
fn play(world: &mut World, clients: &[Client]) -> Vec<usize> {
    let mut closed = vec![None; clients.len()];
    for step in 0.. {
        for (client, closed) in clients.iter().zip(&mut closed).filter(|(_, closed)| closed.is_none()) {
            *closed = close_code(client).map(|code| {
                assert_eq!(code, 1001);
                step
            });
        }
        if world.is_stopped {
            break;
        }
        world.advance(STEP);
    }
    closed.into_iter().map(|step| step.expect("every client receives a Close")).collect()
}

/// A drain spreads the closes evenly over the `--drain` period. Within any second, the server closes at most 1.3 times
/// the average number of connections per second.
#[test]
fn closes_are_spread_evenly() {
    for (count, span) in [(1000, 10), (300, 1), (30, 30)] {
        let mut world = world(&["--drain", &span.to_string()]);
        let clients: Vec<Client> = (0..count).map(|number| member(&mut world, number)).collect();
        world.drain();
        let mut closed = play(&mut world, &clients);
        closed.sort_unstable();
        let even = (count as f64 / span as f64).max(1.0);
        for (index, start) in closed.iter().enumerate() {
            let in_a_second = closed[index..].iter().take_while(|step| *step - start < 10).count();
            assert!(in_a_second as f64 <= 1.3 * even, "{count} over {span} s: {in_a_second} in a second");
        }
        let last = closed[count - 1] as f64 / 10.0;
        assert!((last - span as f64).abs() < 0.3, "{count} over {span} s: the last after {last} s");
    }
}

#[test]
fn the_quietest_connection_is_closed_first() {
    let mut world = world(&["--drain", "4"]);
    let clients: Vec<Client> = (0..4).map(|number| member(&mut world, number)).collect();
    for talker in [2, 0, 3, 1] {
        world.advance(seconds(1));
        clients[talker].send_text(r#"{"event":"ping"}"#);
        world.settle();
    }
    world.drain();
    let closed = play(&mut world, &clients);
    let mut order = [0, 1, 2, 3];
    order.sort_by_key(|client| closed[*client]);
    assert_eq!(order, [2, 0, 3, 1], "{closed:?}");
    assert!(order.windows(2).all(|pair| (9..=11).contains(&(closed[pair[1]] - closed[pair[0]]))), "{closed:?}");
}

/// During a drain, the clients that are still connected receive each other's messages. They also receive a `left` event
/// for each client whose connection the server has closed.
#[test]
fn the_remaining_clients_keep_chatting() {
    let mut world = world(&["--drain", "4"]);
    let clients: Vec<Client> = (0..4).map(|number| member(&mut world, number)).collect();
    for client in &clients {
        world.advance(seconds(1));
        client.send_text(r#"{"event":"ping"}"#);
        world.settle();
        client.read_frames();
    }
    world.drain();
    world.advance(Duration::from_millis(1100));
    assert_eq!(close_code(&clients[0]), Some(1001));
    world.settle();
    clients[1].send_text(r#"{"event":"message","data":{"text":"still here"}}"#);
    world.settle();
    for client in &clients[1..] {
        assert_eq!(client.read_event("left")["username"], "user-0");
        assert_eq!(client.read_event("message")["text"], "still here");
    }
    // If a message arrives in the same event-loop turn in which the server closes the sender's connection, the sender
    // receives the acknowledgment of the message before the Close.
    let mut frames = Vec::new();
    for number in 0..20 {
        world.jump(STEP);
        clients[1].send_text(&format!(r#"{{"event":"message","data":{{"text":"word {number}"}}}}"#));
        world.settle();
        assert_eq!(clients[2].read_event("message")["text"], format!("word {number}"));
        frames = clients[1].read_frames();
        assert!(frames[0].text().contains(&format!("word {number}")));
        if frames.len() > 1 {
            break;
        }
    }
    assert_eq!(frames[1].close().0, 1001);
    assert_eq!(close_code(&clients[2]), None);
}

/// During `--drain-delay`, the server accepts new connections. After the delay, it accepts none, but still completes
/// the handshakes that have begun.
#[test]
fn the_server_accepts_during_the_delay() {
    let mut world = world(&["--drain-delay", "5", "--drain", "4"]);
    let first = member(&mut world, 1);
    assert!(!world.is_draining());
    world.drain();
    assert!(world.is_draining(), "the status for load balancers changes at once");
    world.advance(seconds(4));
    let second = member(&mut world, 2);
    let slow = world.connect();
    slow.send(b"GET /echo?token=dev-token HTTP/1.1\r\nHost: localhost\r\n");
    world.advance(Duration::from_millis(1100));
    let late = world.connect();
    world.advance(seconds(1));
    assert_eq!(late.accepted_as(), None, "after the delay, the server accepts no connection");
    assert_eq!(close_code(&first), None);
    slow.send(
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    world.advance(seconds(1));
    assert!(slow.read_head().starts_with("HTTP/1.1 101 "));
    world.advance(seconds(3));
    for client in [&first, &second, &slow] {
        assert_eq!(close_code(client), Some(1001));
    }
    world.settle();
    assert!(world.is_stopped);
}

#[test]
fn a_delay_without_a_drain() {
    let mut world = world(&["--drain-delay", "5"]);
    let client = member(&mut world, 1);
    world.drain();
    world.advance(Duration::from_millis(4900));
    assert_eq!(close_code(&client), None);
    world.advance(Duration::from_millis(200));
    assert_eq!(close_code(&client), Some(1001));
    world.settle();
    assert!(world.is_stopped);
}

/// The server stops when its last client disconnects, even if the `--drain` period has not elapsed.
#[test]
fn a_drain_without_clients_ends_at_once() {
    let mut world = world(&["--drain", "600"]);
    let client = member(&mut world, 1);
    world.drain();
    world.advance(seconds(1));
    assert!(!world.is_stopped);
    client.end();
    world.advance(STEP * 3);
    assert!(world.is_stopped);
}

/// Without `--drain-delay` and `--drain`, SIGTERM closes all connections at once, as SIGINT does.
#[test]
fn no_drain_by_default() {
    let mut world = world(&[]);
    let clients: Vec<Client> = (0..3).map(|number| member(&mut world, number)).collect();
    world.drain();
    for client in &clients {
        assert_eq!(close_code(client), Some(1001));
    }
    world.settle();
    assert!(world.is_stopped);
}

// ---------------------------------------------------------------------------------------- a real process, with signals

#[test]
fn sigterm_drains() {
    let mut server = Server::start(&["--drain-delay", "0.2", "--drain", "0.5"]);
    let mut clients: Vec<_> = (0..5).map(|_| server.upgrade("/echo?token=dev-token")).collect();
    server.signal("TERM");
    server.wait_for_log("STOP");
    wait_until("the server accepts no connection", || {
        TcpStream::connect(server.addr()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    for client in &mut clients {
        assert_eq!(client.read_frame().close().0, 1001);
        client.send(&masked(0x88, &1001_u16.to_be_bytes()));
    }
    assert!(server.wait().success());
}

#[test]
fn sigint_does_not_drain() {
    let mut server = Server::start(&["--drain-delay", "600", "--drain", "600"]);
    let mut client = server.upgrade("/echo?token=dev-token");
    server.signal("INT");
    assert_eq!(client.read_frame().close().0, 1001);
    client.send(&masked(0x88, &1001_u16.to_be_bytes()));
    assert!(server.wait().success());
}

#[test]
fn a_second_signal_ends_the_drain() {
    for options in [["--drain-delay", "600"], ["--drain", "600"]] {
        for second in ["TERM", "INT"] {
            let mut server = Server::start(&options);
            let _client = server.upgrade("/echo?token=dev-token");
            server.signal("TERM");
            server.wait_for_log("STOP");
            if options[0] == "--drain-delay" {
                assert_eq!(server.status(&handshake()), 101, "the server still accepts clients");
            }
            server.signal(second);
            assert_eq!(server.wait().code(), Some(130), "{options:?} {second}");
        }
    }
}
