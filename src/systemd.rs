//! Integration with systemd or a compatible service manager: takes over listening sockets that the service manager has
//! opened (`LISTEN_FDS`), and reports the server's state to the service manager (`NOTIFY_SOCKET`).

use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use socket2::Socket;

const SHUTDOWN_GRACE: Duration = Duration::from_secs(30); // time to receive Close frames and to store the last messages
const FIRST_DESCRIPTOR: usize = 3; // sd_listen_fds(3): the sockets follow stdin, stdout and stderr

/// Returns the listening sockets that this process has inherited: none unless `LISTEN_PID` is the id of this process.
pub fn take_sockets() -> Result<Vec<Socket>, String> {
    // listenfd would also accept descriptors if `LISTEN_PID` is missing or empty.
    if std::env::var("LISTEN_PID").ok() != Some(std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let mut descriptors = ListenFd::from_env(); // reads and then unsets `LISTEN_PID` and `LISTEN_FDS`
    let mut sockets = Vec::new();
    for index in 0..descriptors.len() {
        let mut socket = descriptors.take_tcp_listener(index).ok().flatten().map(Socket::from);
        if socket.is_none() {
            socket = descriptors.take_unix_listener(index).ok().flatten().map(Socket::from);
        }
        // Reject a socket whose address is unknown: the server could not tell whether other machines can reach it.
        let socket = socket.filter(|socket| socket.is_listener().unwrap_or_default() && socket.local_addr().is_ok());
        let descriptor = FIRST_DESCRIPTOR + index;
        sockets.push(socket.ok_or_else(|| {
            format!("LISTEN_FDS: descriptor {descriptor} is not a listening TCP or Unix stream socket")
        })?);
    }
    Ok(sockets)
}

pub fn report_ready() {
    report(&[NotifyState::Ready, NotifyState::Status("Accepting clients")]);
}

/// Reports that the server is reloading its files. The caller must call `report_ready` afterwards.
pub fn report_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => report(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("SYSTEMD no clock: {error}"),
    }
}

/// Reports that the server is stopping. `wait`: how long the shutdown waits before it closes the last connection.
pub fn report_stopping(wait: Duration) {
    let timeout = u32::try_from((wait + SHUTDOWN_GRACE).as_micros()).unwrap_or(u32::MAX); // `u32::MAX` µs: 71 minutes
    let status = NotifyState::Status("Closing the connections");
    report(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(timeout)]);
}

fn report(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("SYSTEMD cannot report to NOTIFY_SOCKET: {error}");
    }
}
