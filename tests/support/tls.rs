//! TLS for the tests: certificates from openssl, a rustls client that accepts one certificate, and a forwarder that
//! lets a client without TLS use a TLS server. With the environment variable `WIRECHAT_TEST_TLS`, every test's server
//! speaks TLS behind such a forwarder.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use rustix::event::{PollFd, PollFlags, poll};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};

use super::{DEADLINE, require_tool};

/// The files of a self-signed certificate for `localhost` and its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub const EC: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const RSA: &[&str] = &["rsa:2048"];

impl Certificate {
    /// `None` if openssl is missing.
    pub fn new(name: &str, algorithm: &[&str]) -> Option<Certificate> {
        let openssl = require_tool("openssl", &[])?;
        let path =
            |end| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.{end}", std::process::id()));
        let certificate = Certificate { cert: path("crt"), key: path("key") };
        let made = Command::new(openssl)
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey"])
            .args(algorithm)
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout"])
            .args([certificate.key.as_os_str(), "-out".as_ref(), certificate.cert.as_os_str()])
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl runs").success());
        Some(certificate)
    }

    pub fn options(&self) -> [&str; 4] {
        ["--tls-cert", self.cert.to_str().unwrap(), "--tls-key", self.key.to_str().unwrap()]
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(&self.cert).expect("a certificate")
    }

    /// The files of the certificate that all servers use while `WIRECHAT_TEST_TLS` is set; otherwise none.
    pub fn of_all_tests() -> Option<&'static Certificate> {
        static CERTIFICATE: LazyLock<Option<Certificate>> = LazyLock::new(|| {
            std::env::var_os("WIRECHAT_TEST_TLS")?;
            Certificate::new("all-tests", EC)
        });
        CERTIFICATE.as_ref()
    }
}

/// Accepts the expected certificates and no others, whatever their names and dates are.
#[derive(Debug)]
struct Pinned {
    expected: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_expected = self.expected.iter().any(|expected| expected == end_entity);
        if is_expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("another certificate".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The settings of a client that expects one of these certificates. `versions`: TLS 1.2, TLS 1.3 or both.
pub fn client_settings(
    certificates: &[&Certificate],
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let expected = certificates.iter().map(|certificate| certificate.der()).collect();
    let verifier = Arc::new(Pinned { expected, provider: Arc::clone(&provider) });
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
    let mut settings = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    settings.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    settings
}

pub fn new_session(settings: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(Arc::clone(settings), "localhost".try_into().expect("a name")).expect("a session")
}

/// Accepts clients on a plain port and forwards their bytes to a TLS server. The thread ends with the process.
pub fn forward_to(server: SocketAddr, settings: ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (addr, settings) = (listener.local_addr().expect("an address"), Arc::new(settings));
    std::thread::spawn(move || {
        for plain in listener.incoming().flatten() {
            let settings = Arc::clone(&settings);
            std::thread::spawn(move || {
                let Ok(tcp) = TcpStream::connect(server) else { return };
                let mut link =
                    Link { plain, tcp, session: new_session(&settings), to_plain: Vec::new(), ends: [false; 2] };
                if link.run().is_err() {
                    // Pass on a reset. Otherwise, the other end would see a regular end of the stream.
                    for stream in [&link.plain, &link.tcp] {
                        let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
                    }
                }
            });
        }
    });
    addr
}

/// One connection of a forwarder. For backpressure, it reads from one end only if nothing is queued for the other.
struct Link {
    plain: TcpStream,
    tcp: TcpStream,
    session: ClientConnection,
    to_plain: Vec<u8>,
    ends: [bool; 2], // whether the plain client's stream and the server's stream have ended
}

impl Link {
    fn run(&mut self) -> io::Result<()> {
        self.plain.set_nonblocking(true)?;
        self.tcp.set_nonblocking(true)?;
        self.plain.set_nodelay(true)?;
        self.tcp.set_nodelay(true)?;
        while !(self.ends == [true; 2] && self.to_plain.is_empty() && !self.session.wants_write()) {
            self.wait()?;
            self.read_plain()?;
            self.read_tls()?;
            self.write()?;
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let flag = |condition: bool, flag| if condition { flag } else { PollFlags::empty() };
        let reads_plain = !self.ends[0] && !self.session.wants_write() && !self.session.is_handshaking();
        let plain = flag(reads_plain, PollFlags::IN) | flag(!self.to_plain.is_empty(), PollFlags::OUT);
        let reads_tls = !self.ends[1] && self.to_plain.is_empty();
        let tls = flag(reads_tls, PollFlags::IN) | flag(self.session.wants_write(), PollFlags::OUT);
        let (mut fds, timeout) = ([PollFd::new(&self.plain, plain), PollFd::new(&self.tcp, tls)], DEADLINE.try_into());
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref().ok()))?;
        if ready == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn read_plain(&mut self) -> io::Result<()> {
        if self.ends[0] || self.session.wants_write() || self.session.is_handshaking() {
            return Ok(());
        }
        let mut chunk = [0; 16 * 1024];
        match would_block(self.plain.read(&mut chunk))? {
            None => {}
            Some(0) => {
                self.ends[0] = true;
                self.session.send_close_notify();
            }
            Some(len) => self.session.writer().write_all(&chunk[..len])?,
        }
        Ok(())
    }

    fn read_tls(&mut self) -> io::Result<()> {
        if self.ends[1] || !self.to_plain.is_empty() {
            return Ok(());
        }
        let Some(len) = would_block(self.session.read_tls(&mut self.tcp))? else { return Ok(()) };
        let state = self.session.process_new_packets().map_err(io::Error::other)?;
        let start = self.to_plain.len();
        self.to_plain.resize(start + state.plaintext_bytes_to_read(), 0);
        self.session.reader().read_exact(&mut self.to_plain[start..])?;
        self.ends[1] = len == 0 || state.peer_has_closed();
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while self.session.wants_write() && would_block(self.session.write_tls(&mut self.tcp))?.is_some() {}
        while !self.to_plain.is_empty() {
            let Some(len) = would_block(self.plain.write(&self.to_plain))? else { break };
            self.to_plain.drain(..len);
        }
        if self.ends[0] && !self.session.wants_write() {
            let _ = self.tcp.shutdown(Shutdown::Write);
        }
        if self.ends[1] && self.to_plain.is_empty() {
            let _ = self.plain.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        result => result.map(Some),
    }
}
