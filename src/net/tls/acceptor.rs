//! Gives each accepted TCP stream its TLS session, and replaces the certificate when its files change.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::certificate::{Certificate, FileStamp, Files};
use super::socket::{SharedTlsState, TlsSocket, Transport};
use crate::config::Config;
use crate::inspect::cases::{BoxedPlayer, CasePlayer, CaseSummary, OnFinish};

/// Time between two checks of the certificate's files. The server loads changed files only after two checks in a row
/// find the same state, so a reload takes up to two intervals.
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(4);
const MAX_PLAIN_PEERS: usize = 16; // more than enough for all test cases that run at once: each has one client

/// Accepts TLS clients, or plain clients if there is no `--tls-cert`.
pub struct Acceptor(Option<TlsAcceptor>);

struct TlsAcceptor {
    files: Files,
    certificate: Certificate,
    loaded: [FileStamp; 2], // the state of the certificate's files when the server last tried to load them
    seen: [FileStamp; 2],   // the state of the certificate's files at the last check
    next_check: Duration,   // monotonic time
    shared: Rc<SharedTlsState>,
    plain_peers: Rc<PlainPeers>,
}

impl Acceptor {
    /// # Errors
    /// A one-line message if the certificate or its key is missing or unusable.
    pub fn new(config: &Config) -> Result<Acceptor, String> {
        let (Some(certificate), Some(key)) = (config.features.tls_cert.clone(), config.features.tls_key.clone()) else {
            return Ok(Acceptor(None));
        };
        let files = Files { certificate, key };
        let stamps = files.stamps();
        Ok(Acceptor(Some(TlsAcceptor {
            certificate: files.load()?,
            files,
            loaded: stamps,
            seen: stamps,
            next_check: CERTIFICATE_CHECK_INTERVAL,
            shared: Rc::default(),
            plain_peers: Rc::default(),
        })))
    }

    pub fn accept(&self, tcp: socket2::Socket, peer: Option<SocketAddr>) -> io::Result<Transport> {
        let Some(tls) = self.0.as_ref().filter(|tls| !peer.is_some_and(|peer| tls.plain_peers.remove(peer))) else {
            return Ok(Transport::Plain(tcp));
        };
        let socket = TlsSocket::new(tcp, &tls.certificate.settings, &tls.shared).map_err(io::Error::other)?;
        Ok(Transport::Tls(Box::new(socket)))
    }

    /// Resets the time budget for TLS handshakes. If a few seconds have passed since the last check, also checks
    /// whether the certificate's files have changed.
    pub fn begin_turn(&mut self, now: Duration) {
        let Some(tls) = &mut self.0 else { return };
        tls.shared.begin_turn();
        if now < tls.next_check {
            return;
        }
        tls.next_check = now + CERTIFICATE_CHECK_INTERVAL;
        let stamps = tls.files.stamps();
        // A program that renews a certificate replaces two files, one after the other. To avoid loading a mismatched
        // pair, wait until neither file has changed since the previous check.
        let has_settled = stamps == std::mem::replace(&mut tls.seen, stamps);
        if has_settled && stamps != tls.loaded {
            self.reload();
        }
    }

    pub fn next_check_at(&self) -> Option<Duration> {
        self.0.as_ref().map(|tls| tls.next_check)
    }

    /// Loads the certificate and its key for new connections. If they do not load or match, the old pair stays in use.
    pub fn reload(&mut self) {
        let Some(tls) = &mut self.0 else { return };
        tls.loaded = tls.files.stamps();
        match tls.files.load() {
            Ok(certificate) => {
                let old = std::mem::replace(&mut tls.certificate, certificate);
                log::info!("RELOAD certificate old={old} new={}", tls.certificate);
            }
            Err(error) => log::error!("RELOAD failed, the old certificate stays in force: {error}"),
        }
    }

    pub fn exempt_player_from_tls(&self, player: BoxedPlayer) -> BoxedPlayer {
        match &self.0 {
            Some(tls) => Box::new(PlaintextPlayer { player, peers: Rc::clone(&tls.plain_peers) }),
            None => player,
        }
    }
}

/// Runs test cases whose clients connect without TLS. The server recognizes these clients by their addresses: no other
/// process can use such an address while the client's socket is bound.
struct PlaintextPlayer {
    player: BoxedPlayer,
    peers: Rc<PlainPeers>,
}

/// Addresses of started clients that the server has not accepted yet, oldest first.
#[derive(Default)]
struct PlainPeers(RefCell<Vec<SocketAddr>>);

impl PlainPeers {
    fn add(&self, address: SocketAddr) {
        let mut addresses = self.0.borrow_mut();
        let surplus = (addresses.len() + 1).saturating_sub(MAX_PLAIN_PEERS);
        // If the list is full, remove the oldest address. Its client never connected, or the address would be gone.
        addresses.drain(..surplus);
        addresses.push(address);
    }

    fn remove(&self, address: SocketAddr) -> bool {
        self.0.borrow_mut().extract_if(.., |waiting| *waiting == address).count() > 0
    }
}

impl CasePlayer for PlaintextPlayer {
    fn cases(&self) -> Vec<CaseSummary> {
        self.player.cases()
    }

    fn start(&self, case: &str, server: SocketAddr, finish: OnFinish) -> Result<SocketAddr, String> {
        self.player.start(case, server, finish).inspect(|address| self.peers.add(*address))
    }
}
