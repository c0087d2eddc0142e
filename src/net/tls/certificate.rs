//! Reads the files given by `--tls-cert` and `--tls-key`, checks that they match, and builds the TLS configuration.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fmt, fs};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, ServerConfig};

/// The PEM files of the certificate chain and of its private key.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A file's modification time, inode number and length, to detect changes. `None` if the metadata cannot be read.
pub type FileStamp = Option<(SystemTime, u64, u64)>;

/// A certificate, identified by the first bytes of its SHA-256 fingerprint, and the settings that use it.
#[derive(Clone)]
pub struct Certificate {
    pub settings: Arc<ServerConfig>,
    fingerprint: [u8; 8],
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fingerprint.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Files {
    /// # Errors
    /// A one-line message that names the option and the file.
    pub fn load(&self) -> Result<Certificate, String> {
        let chain = self.read_chain()?;
        let key = self.read_key()?;
        let provider = Arc::new(ring::default_provider());
        let fingerprint = fingerprint(chain.first().map_or(&[], |leaf| leaf.as_ref()), &provider);
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let certificate = self.certificate.display();
                self.key_error(&format!("this key does not belong to the certificate in {certificate}"))
            }
            Error::InvalidCertificate(error) => self.certificate_error(&format!("invalid certificate: {error}")),
            error => self.key_error(&error.to_string()),
        })?;
        let settings =
            new_server_config(certified, provider).map_err(|error| self.certificate_error(&error.to_string()))?;
        Ok(Certificate { settings: Arc::new(settings), fingerprint })
    }

    pub fn stamps(&self) -> [FileStamp; 2] {
        [&self.certificate, &self.key].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.ino(), metadata.len()))
        })
    }

    fn read_chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let pem = fs::read(&self.certificate);
        let pem = pem.map_err(|error| self.certificate_error(&format!("cannot read the file: {error}")))?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| self.certificate_error(&format!("the file is not valid PEM: {error}")))?;
        if chain.is_empty() {
            return Err(self.certificate_error("the file contains no certificate in PEM form (BEGIN CERTIFICATE)"));
        }
        Ok(chain)
    }

    fn read_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let pem = fs::read(&self.key).map_err(|error| self.key_error(&format!("cannot read the file: {error}")))?;
        // An encrypted key has the marker of PKCS #8 (RFC 7468 §11) or of OpenSSL's old format (RFC 1421 §4.6.1.1).
        let markers: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];
        if markers.iter().any(|marker| memchr::memmem::find(&pem, marker).is_some()) {
            return Err(self.key_error("the key is encrypted; decrypt it with openssl pkey -in FILE -out NEW-FILE"));
        }
        use rustls::pki_types::pem::Error::NoItemsFound;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
            NoItemsFound => self.key_error("the file contains no private key in PEM form (BEGIN PRIVATE KEY)"),
            error => self.key_error(&format!("the file is not valid PEM: {error}")),
        })
    }

    fn certificate_error(&self, what: &str) -> String {
        format_error("--tls-cert", &self.certificate, what)
    }

    fn key_error(&self, what: &str) -> String {
        format_error("--tls-key", &self.key, what)
    }
}

fn format_error(option: &str, path: &Path, what: &str) -> String {
    format!("{option} {}: {what}", path.display())
}

fn new_server_config(certified: CertifiedKey, provider: Arc<CryptoProvider>) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    let mut settings = builder.with_no_client_auth().with_cert_resolver(resolver);
    settings.alpn_protocols = vec![b"http/1.1".to_vec()]; // WebSocket over HTTP/2 (RFC 8441) is not implemented
    // Clients keep the TLS session state in tickets, so the server stores none. A reload of the certificate creates new
    // ticket keys, so a client with an older ticket needs a full handshake.
    settings.ticketer = ring::Ticketer::new()?;
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 1; // a chat client opens one connection at a time, so one session ticket suffices
    settings.max_early_data_size = 0; // an attacker can replay early data (RFC 8446 §8)
    Ok(settings)
}

/// Returns the first 8 bytes of the SHA-256 fingerprint that `openssl x509 -fingerprint -sha256` prints.
fn fingerprint(certificate: &[u8], provider: &CryptoProvider) -> [u8; 8] {
    let suites = provider.cipher_suites.iter().filter_map(|suite| suite.tls13());
    let mut hashes = suites.map(|suite| suite.common.hash_provider).filter(|hash| hash.output_len() == 32);
    let hash = hashes.next().map(|sha256| sha256.hash(certificate));
    hash.and_then(|hash| hash.as_ref().first_chunk().copied()).unwrap_or_default()
}
