//! Implements the server's [`Socket`] for a TCP connection.

use std::io;
use std::net::Shutdown;

use mio::net::TcpStream;

use crate::server::connection::{Direction, Socket};

impl Socket for TcpStream {
    fn has_pending(&self, _: Direction) -> bool {
        false // unlike TLS, plain TCP has no user-space buffer
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}
