//! Creates self-signed certificates with openssl.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::require_tool;

/// The paths of a self-signed certificate for `localhost` and of its private key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

pub const EC: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const RSA: &[&str] = &["rsa:2048"];

impl Certificate {
    /// Creates a self-signed certificate for `localhost` with openssl. Returns `None` if openssl is not installed.
    pub fn new(name: &str, algorithm: &[&str]) -> Option<Certificate> {
        let openssl = require_tool("openssl", &[])?;
        let path =
            |end| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.{end}", std::process::id()));
        let certificate = Certificate { cert: path("crt"), key: path("key") };
        let made = Command::new(openssl)
            .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey"])
            .args(algorithm)
            // By default, openssl creates a CA certificate, which rustls rejects as a server's certificate.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
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

    /// Returns the certificate that all test servers use if `WIRECHAT_TEST_TLS` is set.
    pub fn shared() -> Option<&'static Certificate> {
        static CERTIFICATE: LazyLock<Option<Certificate>> = LazyLock::new(|| {
            std::env::var_os("WIRECHAT_TEST_TLS")?;
            Certificate::new("all-tests", EC)
        });
        CERTIFICATE.as_ref()
    }
}
