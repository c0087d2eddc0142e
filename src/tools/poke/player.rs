//! Runs test cases against the server in this process, for the chat page's inspector. Each case has its own thread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::catch_unwind;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::case::{Case, Requirement};
use super::check::{Verdict, check, describe_expected, describe_received};
use super::play::{self, Timing};
use super::{catalogue, find_case};
use crate::inspect::cases::{CasePlayer, CaseResult, CaseSummary, OnFinish};
use crate::tools::url::Url;

/// The time limits of a test case. They are short because a user waits for the result. `max_duration` still leaves
/// enough time for one late reply and one flood. In a flood, the client sends frames until the server accepts no more.
const TIMING: Timing = Timing {
    timeout: Duration::from_secs(3),
    delay: Duration::from_millis(5),
    max_duration: Some(Duration::from_secs(10)),
};
// These request targets contain no access token, because the server requires none for a test case. The server
// recognizes the connection of a test case by the client's address and port. `ECHO_TARGET` has a query because the test
// case `long-target` appends `&` and 9 KiB to this target.
const ECHO_TARGET: &str = "/echo?from=poke";
const CHAT_TARGET: &str = "/?username=poke&room=poke";

/// Runs test cases from the IP address that the server listens on, or from loopback if it listens on all addresses.
#[derive(Debug)]
pub struct LoopbackPlayer;

impl CasePlayer for LoopbackPlayer {
    fn cases(&self) -> Vec<CaseSummary> {
        catalogue::all_cases()
            .map(|case| CaseSummary { name: case.name, title: case.summary, rule: case.rule.0 })
            .collect()
    }

    fn start(&self, case: &str, server: SocketAddr, finish: OnFinish) -> Result<SocketAddr, String> {
        let (case, server) = (find_case(case)?, resolve_unspecified(server));
        let (socket, address) = bind(server.ip()).map_err(|error| format!("there is no socket for it: {error}"))?;
        let thread = std::thread::Builder::new().name(format!("play {}", case.name));
        // Catch a panic: the inspector must always learn that its test case is over.
        let play = move || catch_unwind(|| play(case, server, socket)).unwrap_or(Err("the client panicked".into()));
        let thread = thread.spawn(move || finish(play()));
        thread.map(|_| address).map_err(|error| format!("there is no thread for it: {error}"))
    }
}

/// Replaces the address 0.0.0.0 or :: with a loopback address.
fn resolve_unspecified(server: SocketAddr) -> SocketAddr {
    let ip = match server.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => return server,
    };
    SocketAddr::new(ip, server.port())
}

/// Binds the client's socket before it connects, so that the server knows in advance which client may connect without a
/// token. This is safe: the socket has an IP address of the server's own machine, so no other machine can connect from
/// the same address.
fn bind(ip: IpAddr) -> std::io::Result<(Socket, SocketAddr)> {
    let address = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket();
    Ok((socket, address.ok_or(std::io::ErrorKind::AddrNotAvailable)?))
}

fn play(case: &Case, server: SocketAddr, socket: Socket) -> Result<CaseResult, String> {
    let connected = socket.connect_timeout(&server.into(), TIMING.timeout);
    connected.map_err(|error| format!("the server does not accept a connection: {error}"))?;
    // Send `localhost` as the host: wirechat accepts it regardless of the server's address and `--allow-host`.
    let url = Url::parse(&format!("ws://localhost:{}/", server.port()))?;
    let url = url.with_target(if case.needs == Requirement::WirechatChat { CHAT_TARGET } else { ECHO_TARGET });
    let transcript = play::play(case, &url, socket.into(), TIMING, &mut |_| {});
    let transcript = transcript.map_err(|error| format!("the socket failed: {error}"))?;
    let (verdict, (section, rule)) = (check(case, &transcript), case.rule);
    let remark = match &verdict {
        Verdict::Unexpected(Some(violation)) => format!("; {violation}"),
        Verdict::Inapplicable(reason) => format!("; the case does not apply: {reason}"),
        // The test cases assume default limits, and a server that checks access tokens, origins and hosts. A server
        // with other options may fail some test cases.
        Verdict::Unexpected(None) if case.is_wirechat_rule() => "; the server's options may explain that".into(),
        _ => String::new(),
    };
    Ok(CaseResult {
        expected: describe_expected(case),
        received: describe_received(&transcript) + &remark,
        rule: format!("{section}: {rule}"),
        passed: !matches!(verdict, Verdict::Unexpected(_)),
    })
}
