//! TLS for the listener, behind the trait [`Socket`](crate::server::connection::Socket): the server reads and writes
//! the plaintext of the connection, and the transport encrypts it. rustls implements TLS 1.2 and 1.3 (RFC 5246, RFC
//! 8446). `certificate.rs` reads the certificate and its key, `acceptor.rs` reloads the files when they change, and
//! `socket.rs` is the transport. A build without the `tls` feature has only `absent.rs`, whose transport is the TCP
//! stream itself.

#[cfg(not(feature = "tls"))]
mod absent;
#[cfg(feature = "tls")]
pub mod acceptor;
#[cfg(feature = "tls")]
pub mod certificate;
#[cfg(feature = "tls")]
pub mod socket;

#[cfg(not(feature = "tls"))]
pub use absent::{Acceptor, Transport};
#[cfg(feature = "tls")]
pub use {acceptor::Acceptor, socket::Transport};
