//! Accepts clients. If descriptors run out or the server is full, new clients wait in the kernel's accept queue. The
//! poll is edge-triggered and reports a client only once, so the listener retries after a pause or when a connection
//! closes.

use std::io::{self, ErrorKind};
use std::net::{Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::{fs, path::Path, path::PathBuf, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::{Config, RESERVED_DESCRIPTORS, format_address};
use crate::{proxy_protocol, server::connection};

const BACKLOG: i32 = 4096; // maximum length of the kernel's accept queue; equals Linux's default `somaxconn`
const RETRY_DELAY: Duration = Duration::from_millis(250); // pause between a failed accept and the next attempt
const LOG_INTERVAL: Duration = Duration::from_secs(1);

pub struct Listener<S = Socket> {
    pub socket: S,
    pub next_accept_at: Option<Duration>, // monotonic time of the next accept; `None` while awaiting a readiness edge
    pub logged_at: Option<Duration>,      // monotonic time when the listener last logged a failed accept
    pub file: Option<SocketFile>,         // the file of a Unix socket that this server has created
}

/// The file of a Unix socket. Dropping this value removes the file, unless another server has replaced the file.
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Listener {
    pub fn bind(address: &SockAddr) -> Result<Listener, String> {
        let open = || -> io::Result<Listener> {
            let (socket, path) = (Socket::new(address.domain(), Type::STREAM, None)?, address.as_pathname());
            socket.set_reuse_address(true)?; // a restart must not wait for old connections in TIME_WAIT
            if address.as_socket().is_some_and(|address| address.ip() == Ipv6Addr::UNSPECIFIED) {
                socket.set_only_v6(false)?; // [::] also serves IPv4
            }
            path.map_or(Ok(()), remove_stale_file)?;
            socket.bind(address)?;
            let file = path.map(SocketFile::new).transpose()?;
            socket.listen(BACKLOG)?;
            Ok(Listener { file, ..Listener::new(socket)? })
        };
        let name = format_address(address);
        open().map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => format!("{name} is already in use. Stop the other program or pass --listen."),
            ErrorKind::PermissionDenied => format!("{name} needs more privileges. Pass another --listen."),
            _ => format!("Cannot listen on {name}: {error}. Pass another --listen."),
        })
    }

    /// `socket` must be listening already.
    pub fn new(socket: Socket) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        if socket.domain()? != Domain::UNIX {
            // Accepted sockets inherit TCP_NODELAY. The server batches writes, so Nagle's algorithm only adds delay.
            socket.set_tcp_nodelay(true)?;
        }
        Ok(Listener { socket, next_accept_at: Some(Duration::ZERO), logged_at: None, file: None })
    }
}

impl<S> Listener<S> {
    /// Accepts the next client, if any. After a successful accept, `has_more` tells whether another client is waiting.
    pub fn accept<T>(&mut self, now: Duration, accept: fn(&S) -> io::Result<T>, has_more: fn(&S) -> bool) -> Option<T> {
        while self.next_accept_at.is_some_and(|at| at <= now) {
            let accepted = accept(&self.socket);
            let Err(error) = &accepted else {
                // Poll first (80 ns): accept(2) allocates a socket (900 ns) before it finds that no client is waiting.
                self.next_accept_at = has_more(&self.socket).then_some(now);
                return accepted.ok();
            };
            match error.kind() {
                ErrorKind::WouldBlock => self.next_accept_at = None,
                // accept(2): a signal interrupted the call, or one pending connection failed. Try the next connection.
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted => {}
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => {}
                _ => {
                    self.next_accept_at = Some(now + RETRY_DELAY);
                    if self.logged_at.is_none_or(|at| now - at >= LOG_INTERVAL) {
                        self.logged_at = Some(now);
                        log::warn!("ACCEPT failed, all clients wait in the backlog: {error}");
                    }
                }
            }
        }
        None
    }
}

/// Removes the file of a Unix socket that no server listens on.
fn remove_stale_file(path: &Path) -> io::Result<()> {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?; // do not block if the backlog of a live server is full
        socket.connect(&SockAddr::unix(path)?)
    };
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => Err(io::Error::other("the file is not a socket")),
        Ok(_) if connect().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) => fs::remove_file(path),
        _ => Ok(()),
    }
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.into(), inode: fs::symlink_metadata(path)?.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If the inode differs, another server has replaced the file.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Accepts a client. A client on a Unix socket has no address.
pub fn accept(socket: &Socket) -> io::Result<(Socket, Option<SocketAddr>)> {
    let (socket, peer) = socket.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer.as_socket()))
}

impl connection::Socket for Socket {
    fn read_proxy_header(&self) -> io::Result<Option<SocketAddr>> {
        proxy_protocol::read_header(self)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Raises the soft descriptor limit. Returns how many clients and how many lingering connections the limit allows.
pub fn raise_descriptor_limit(config: &Config) -> Result<(usize, usize), String> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = if raised.is_ok() { maximum } else { current }.map_or(usize::MAX, |limit| limit as usize);
    let reserved = RESERVED_DESCRIPTORS + config.features.admin.map_or(0, |_| super::metrics::MAX_ADMIN_DESCRIPTORS);
    let (spare, most) = (RESERVED_DESCRIPTORS / 2, descriptors.saturating_sub(reserved));
    // Each recorded connection needs a second descriptor, for its recording, even if the server rejects the client.
    let most = if config.record.is_some() { most.saturating_sub(spare) / 2 } else { most };
    let max_connections = config.max_connections.unwrap_or(most);
    if most == 0 || max_connections > most {
        let advice = "Raise it with ulimit -n, or lower --max-connections.";
        return Err(format!("The limit of {descriptors} descriptors allows {most} connections. {advice}"));
    }
    // Rejected connections linger so that their clients can read the response. They may use the descriptors that
    // --max-connections leaves free, and half of the `RESERVED_DESCRIPTORS`.
    let lingering = (max_connections / 8).clamp(spare, 256).min(most - max_connections + spare);
    Ok((max_connections, lingering))
}
