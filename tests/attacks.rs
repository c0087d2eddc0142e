//! Attacks on a running server by up to 2,000 clients at once: mass disconnects, repeated joins, a flood of messages,
//! long lists of subprotocol names, and guessed tokens. Each test asserts upper bounds on the server's CPU time, its
//! memory, the bytes that it sends, or the messages that it handles before it replies to another client. Apart from
//! one generous deadline, no bound is in wall-clock time, because other programs may use the same machine. Each bound
//! is about five times what a small virtual machine needs: slow machines pass, and quadratic costs fail.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/crowd.rs"]
mod crowd;
mod support;

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crowd::{Crowd, cpu_seconds, peak_memory, reset_peak};
use support::users::{Dialect, chat, events_path, path, presence_path};
use support::{Server, masked, token_file, upgrade_request};

/// Number of clients in the largest room. Debug builds use fewer clients, because they are about ten times slower.
const MEMBERS: usize = if cfg!(debug_assertions) { 300 } else { 2000 };
/// Factor by which a debug build may exceed the CPU time of a release build.
const SLOWDOWN: f64 = if cfg!(debug_assertions) { 12.0 } else { 1.0 };
/// Wall-clock limit for all tests of this file together.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1024; // in KiB, the unit of `peak_memory`

/// Locks a mutex so that attacks run one at a time and do not compete for CPUs. Also returns the overall deadline.
fn lock_exclusively() -> (MutexGuard<'static, ()>, Instant) {
    static DEADLINE: LazyLock<Instant> = LazyLock::new(|| Instant::now() + LIMIT);
    static LOCK: Mutex<()> = Mutex::new(());
    (LOCK.lock().unwrap_or_else(PoisonError::into_inner), *DEADLINE)
}

/// Asserts that `cost` is below `bound`. Prints both numbers, so that `--nocapture` shows the margin.
fn assert_below(what: &str, cost: f64, bound: f64) {
    println!("{what}: {cost:.3}, bound {bound:.3}");
    assert!(cost < bound, "{what}: {cost:.3} is not below {bound:.3}");
}

// ------------------------------------------------------------------------------------------------- mass disconnect

#[derive(Debug, Clone, Copy, PartialEq)]
enum Disconnect {
    Close, // a Close frame; TCP stays open
    Finish,
    Reset,
}

/// All members of a room disconnect except one, the witness, which must receive a `left` event for each of the others.
/// With `has_presence`, a client of the `presence` dialect stays in the room too. With `at_once`, SIGSTOP suspends the
/// server during the disconnects, so that it sees all of them at once when it resumes.
fn check_mass_disconnect(how: Disconnect, has_presence: bool, at_once: bool) {
    let (_guard, end) = lock_exclusively();
    let server = chat(&[]);
    let mut crowd = Crowd::new(end);
    let witness = crowd.join_and_keep(&server, &events_path("witness", "crowd"));
    if has_presence {
        crowd.join(&server, [presence_path("watcher", "watcher", "crowd")]);
    }
    let before = cpu_seconds(&server);
    let members = crowd.join(&server, (0..MEMBERS).map(|n| events_path(&format!("member-{n}"), "crowd")));
    let pinger = crowd.join_and_keep(&server, &events_path("pinger", "quiet"));
    let drop = format!("{how:?}, presence {has_presence}, at once {at_once}");
    println!("{drop}: {MEMBERS} joins: {:.3} CPU seconds", cpu_seconds(&server) - before);
    let (cpu, memory) = (cpu_seconds(&server), reset_peak(&server));
    if at_once {
        server.signal("STOP");
    }
    for member in members {
        match how {
            Disconnect::Close => crowd.send(member, &masked(0x88, b"")),
            Disconnect::Finish => crowd.finish(member),
            Disconnect::Reset => crowd.reset(member),
        }
    }
    crowd.send(pinger, &masked(0x89, b""));
    if at_once {
        server.signal("CONT");
    }
    let (mut left, mut cpu_before_pong) = (0, None);
    crowd.turn_until("the witness receives `left` for every member", |crowd| {
        if crowd.take_frames(pinger).iter().any(|frame| frame.opcode() == 10) {
            cpu_before_pong = Some(cpu_seconds(&server) - cpu);
        }
        let frames = crowd.take_frames(witness);
        left += frames.iter().filter(|frame| frame.text().starts_with(r#"{"event":"left""#)).count();
        left == MEMBERS && cpu_before_pong.is_some()
    });
    assert_below(&format!("{drop}: CPU seconds before a Pong"), cpu_before_pong.unwrap(), 0.1 * SLOWDOWN);
    assert_below(&format!("{drop}: CPU seconds"), cpu_seconds(&server) - cpu, MEMBERS as f64 * 100e-6 * SLOWDOWN);
    assert_below(&format!("{drop}: growth in MiB"), (peak_memory(&server) - memory) as f64 / MIB as f64, 20.0);
}

#[test]
fn all_members_send_a_close() {
    check_mass_disconnect(Disconnect::Close, true, false);
    check_mass_disconnect(Disconnect::Close, false, true);
}

#[test]
fn all_members_end_their_streams() {
    check_mass_disconnect(Disconnect::Finish, false, false);
    check_mass_disconnect(Disconnect::Finish, true, true);
}

#[test]
fn all_members_reset_their_connections() {
    check_mass_disconnect(Disconnect::Reset, true, false);
    check_mass_disconnect(Disconnect::Reset, false, true);
}

// -------------------------------------------------------------------------------------------------------- presence

/// Two connections of one user repeatedly join and leave a room of `presence` clients.
#[test]
fn a_user_that_comes_and_goes() {
    const ROUNDS: usize = 100;
    let (_guard, end) = lock_exclusively();
    let room = MEMBERS * 2 / 5;
    let server = chat(&[]);
    let mut crowd = Crowd::new(end);
    let members = crowd.join(&server, (0..room).map(|n| path(Dialect::Presence, &format!("member-{n}"), "crowd")));
    let member = crowd.join_and_keep(&server, &presence_path("member", "kept", "crowd"));
    crowd.take_frames(member);
    let (cpu, bytes) = (cpu_seconds(&server), crowd.members[members.start].received);
    let (mut joined, mut left) = (0, 0);
    for round in 1..=ROUNDS {
        let guests = crowd.join(&server, ["a", "b"].map(|id| presence_path("guest", id, "crowd")));
        guests.for_each(|guest| crowd.reset(guest));
        crowd.turn_until("the member receives both events of both sockets", |crowd| {
            for frame in crowd.take_frames(member) {
                joined += usize::from(frame.text().contains("user_joined"));
                left += usize::from(frame.text().contains("user_left"));
            }
            (joined, left) == (2 * round, 2 * round)
        });
    }
    // Every join and every leave sends one event to each member. If the event grew with the number of members, the
    // traffic would grow with the square of that number.
    let events = (4 * ROUNDS) as f64;
    let bytes = crowd.members[members.start].received - bytes;
    assert_below("presence: bytes per event for one member", bytes as f64 / events, 200.0);
    let cpu = (cpu_seconds(&server) - cpu) / events / room as f64 * 1e6;
    assert_below("presence: CPU microseconds per event and member", cpu, 20.0 * SLOWDOWN);
}

// ------------------------------------------------------------------------------------------------------- busy room

/// The members of one room flood it while new clients join a second room. A third room must not starve: the server may
/// handle only a few rounds of the flood between receiving a Ping from the third room and sending the Pong.
#[test]
fn a_busy_room_delays_no_other() {
    const FLOODERS: usize = 40;
    const BURST: usize = 20; // messages that each flooding client sends per write
    const ROUND: usize = FLOODERS * BURST;
    let (_guard, end) = lock_exclusively();
    let server = chat(&["--history", "0"]);
    let mut crowd = Crowd::new(end);
    let flooders = crowd.join(&server, (0..FLOODERS).map(|n| events_path(&format!("flooder-{n}"), "busy")));
    let witness = crowd.join_and_keep(&server, &events_path("witness", "busy"));
    let pinger = crowd.join_and_keep(&server, &events_path("pinger", "quiet"));
    let burst = masked(0x81, br#"{"event":"message","data":{"text":"flood"}}"#).repeat(BURST);
    let handshakes = MEMBERS / 4;
    let first = crowd.members.len();
    let (mut sent, mut received, mut pinged_at, mut pongs, mut longest) = (0, 0, None, 0, 0);
    loop {
        assert!(Instant::now() < end, "the attack takes too long");
        for frame in crowd.take_frames(witness) {
            received += usize::from(frame.text().starts_with(r#"{"event":"message""#));
        }
        let is_over =
            crowd.members.len() - first == handshakes && crowd.members[first..].iter().all(|m| m.has_response());
        if is_over && received == sent {
            break;
        }
        // Keep up to two rounds of messages in flight: the server always has input, but no outbox grows without limit.
        if !is_over && sent - received <= ROUND {
            flooders.clone().for_each(|flooder| crowd.send(flooder, &burst));
            sent += ROUND;
        }
        for frame in crowd.take_frames(pinger) {
            if frame.opcode() == 10 {
                let at = pinged_at.take().expect("a Pong follows a Ping");
                (longest, pongs) = (longest.max(received - at), pongs + 1);
            }
        }
        if pinged_at.is_none() {
            crowd.send(pinger, &masked(0x89, b"still there?"));
            pinged_at = Some(received);
        }
        for number in crowd.members.len() - first..handshakes.min(crowd.members.len() - first + 4) {
            crowd.connect(&server, &upgrade_request(&events_path(&format!("new-{number}"), "new")), false);
        }
        crowd.turn();
    }
    println!("busy room: {sent} messages, {pongs} Pongs");
    assert_below("busy room: most rounds before a Pong", longest as f64 / ROUND as f64, 8.0);
    assert_below("busy room: rounds per Pong", sent as f64 / ROUND as f64 / pongs as f64, 8.0);
    // One turn of the event loop handles up to 16 handshakes.
    assert_below("busy room: rounds per handshake", sent as f64 / ROUND as f64 / handshakes as f64, 0.5);
}

// ------------------------------------------------------------------------------------------------------ handshakes

/// Request heads of the maximum length, filled with subprotocol names (RFC 6455 §11.3.4). The names are all different
/// or all the same. The server must reject each head with a 400, without comparing every name with every other.
#[test]
fn thousands_of_subprotocol_names() {
    let (_guard, end) = lock_exclusively();
    let server = chat(&[]);
    let mut crowd = Crowd::new(end);
    let head = upgrade_request("/?token=dev-token").trim_end().to_owned() + "\r\nSec-WebSocket-Protocol: ";
    let different: String = (0..4096).map(|n| format!("{n:x},")).collect();
    for names in [different, "a,".repeat(4096)] {
        let mut request = head.clone() + &names;
        request.truncate(8192 - 5);
        request += "z\r\n\r\n";
        let cpu = cpu_seconds(&server);
        let count = MEMBERS / 2;
        for client in crowd.request(&server, std::iter::repeat_n(request, count)) {
            assert_eq!(crowd.members[client].status(), "400");
        }
        let cpu = (cpu_seconds(&server) - cpu) / count as f64 * 1e6;
        assert_below("subprotocols: CPU microseconds per handshake", cpu, 300.0 * SLOWDOWN);
    }
}

/// Clients guess tokens. Rejecting a wrong token must be cheap even if the token file has 100,000 lines.
#[test]
fn guessed_tokens() {
    const GUESSES: usize = 500;
    let (_guard, end) = lock_exclusively();
    let lines: String = (0..100_000).map(|n| format!("token-{n} user-{n}\n")).collect();
    let file = token_file("attacks", lines);
    let unlimited = ["--max-wrong-tokens", "0", "--max-per-address", "0", "--connect-rate", "0"];
    let server = Server::start(&[&["--tokens", file.to_str().unwrap()], &unlimited[..]].concat());
    std::fs::remove_file(file).unwrap();
    assert_below("tokens: CPU seconds of the start", cpu_seconds(&server), 0.5 * SLOWDOWN);
    let mut crowd = Crowd::new(end);
    let cpu = cpu_seconds(&server);
    let guesses = (0..GUESSES).map(|n| upgrade_request(&format!("/?token=guess-{n}")));
    for client in crowd.request(&server, guesses) {
        assert_eq!(crowd.members[client].status(), "401");
    }
    let cpu = (cpu_seconds(&server) - cpu) / GUESSES as f64 * 1e6;
    assert_below("tokens: CPU microseconds per guess", cpu, 200.0 * SLOWDOWN);
    crowd.join(&server, ["/?token=token-99999&username=user-99999".to_owned()]);
}
