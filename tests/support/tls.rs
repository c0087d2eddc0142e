//! TLS for the tests: a rustls client that trusts the test's certificates, and a forwarder through which a client
//! without TLS can use a TLS server. If the environment variable `WIRECHAT_TEST_TLS` is set, every test's server
//! uses TLS behind such a forwarder.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::DEADLINE;
use super::certificate::Certificate;

/// Returns the settings of a TLS client that trusts these certificates. `versions` is TLS 1.2, TLS 1.3 or both.
pub fn client_settings(
    certificates: &[&Certificate],
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    certificates.iter().for_each(|certificate| roots.add(der(certificate)).expect("a certificate"));
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("versions").with_root_certificates(roots);
    let mut settings = builder.with_no_client_auth();
    settings.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    settings
}

pub fn der(certificate: &Certificate) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&certificate.cert).expect("a certificate")
}

pub fn new_session(settings: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(settings), "localhost".try_into().expect("a name")).expect("a session")
}

/// Accepts clients without TLS, and forwards their bytes to a TLS server. Returns the address for the clients. The
/// threads end with the process.
pub fn forward_to(server: SocketAddr, settings: ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (addr, settings) = (listener.local_addr().expect("an address"), Arc::new(settings));
    std::thread::spawn(move || {
        for plain in listener.incoming().flatten() {
            let settings = Arc::clone(&settings);
            std::thread::spawn(move || {
                let Ok(tcp) = TcpStream::connect(server) else { return };
                let mut link = Link {
                    plain,
                    tcp,
                    session: new_session(&settings),
                    plain_outbox: Vec::new(),
                    has_ended: [false; 2],
                };
                if link.run().is_err() {
                    // Reset both streams. Otherwise, each peer would see a regular end of the stream.
                    for stream in [&link.plain, &link.tcp] {
                        let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
                    }
                }
            });
        }
    });
    addr
}

/// A forwarded connection. For backpressure, the forwarder reads from one peer only while no bytes are queued for
/// the other peer.
struct Link {
    plain: TcpStream,
    tcp: TcpStream,
    session: ClientConnection,
    plain_outbox: Vec<u8>,
    has_ended: [bool; 2], // whether the plain client's stream and the server's stream have ended
}

impl Link {
    fn run(&mut self) -> io::Result<()> {
        self.plain.set_nonblocking(true)?;
        self.tcp.set_nonblocking(true)?;
        self.plain.set_nodelay(true)?;
        self.tcp.set_nodelay(true)?;
        while !(self.has_ended == [true; 2] && self.plain_outbox.is_empty() && !self.session.wants_write()) {
            self.wait()?;
            self.read_plain()?;
            self.read_tls()?;
            self.write()?;
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let flag = |condition: bool, flag| if condition { flag } else { PollFlags::empty() };
        let reads_plain = !self.has_ended[0] && !self.session.wants_write() && !self.session.is_handshaking();
        let plain = flag(reads_plain, PollFlags::IN) | flag(!self.plain_outbox.is_empty(), PollFlags::OUT);
        let reads_tls = !self.has_ended[1] && self.plain_outbox.is_empty();
        let tls = flag(reads_tls, PollFlags::IN) | flag(self.session.wants_write(), PollFlags::OUT);
        let (mut fds, timeout) = ([PollFd::new(&self.plain, plain), PollFd::new(&self.tcp, tls)], DEADLINE.try_into());
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref().ok()))?;
        if ready == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn read_plain(&mut self) -> io::Result<()> {
        if self.has_ended[0] || self.session.wants_write() || self.session.is_handshaking() {
            return Ok(());
        }
        let mut chunk = [0; 16 * 1024];
        match none_if_would_block(self.plain.read(&mut chunk))? {
            None => {}
            Some(0) => {
                self.has_ended[0] = true;
                self.session.send_close_notify();
            }
            Some(len) => self.session.writer().write_all(&chunk[..len])?,
        }
        Ok(())
    }

    fn read_tls(&mut self) -> io::Result<()> {
        if self.has_ended[1] || !self.plain_outbox.is_empty() {
            return Ok(());
        }
        let Some(len) = none_if_would_block(self.session.read_tls(&mut self.tcp))? else { return Ok(()) };
        let state = self.session.process_new_packets().map_err(io::Error::other)?;
        let start = self.plain_outbox.len();
        self.plain_outbox.resize(start + state.plaintext_bytes_to_read(), 0);
        self.session.reader().read_exact(&mut self.plain_outbox[start..])?;
        self.has_ended[1] = len == 0 || state.peer_has_closed();
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while self.session.wants_write() && none_if_would_block(self.session.write_tls(&mut self.tcp))?.is_some() {}
        while !self.plain_outbox.is_empty() {
            let Some(len) = none_if_would_block(self.plain.write(&self.plain_outbox))? else { break };
            self.plain_outbox.drain(..len);
        }
        if self.has_ended[0] && !self.session.wants_write() {
            let _ = self.tcp.shutdown(Shutdown::Write);
        }
        if self.has_ended[1] && self.plain_outbox.is_empty() {
            let _ = self.plain.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn none_if_would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}
