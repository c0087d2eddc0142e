//! Reads the header in which a proxy names the client of a forwarded stream (PROXY protocol, versions 1 and 2:
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use rustix::net::{RecvFlags, recv};
use socket2::Socket;

const MAX_V1_HEADER_LEN: usize = 107; // section 2.1 of the PROXY protocol
const MAX_V2_HEADER_LEN: usize = 4096; // the protocol allows 64 KiB, but even a header with TLS data fits in 4 KiB

/// Removes a complete header from the kernel's receive buffer, and returns the client's address, if the header contains
/// one. Returns `WouldBlock` while the header is incomplete. Peeks first, so that the bytes after the header stay in
/// the buffer.
pub fn read_header(socket: &Socket) -> io::Result<Option<SocketAddr>> {
    let mut buffer = [0; MAX_V2_HEADER_LEN];
    let (_, received) = recv(socket, &mut buffer, RecvFlags::PEEK)?;
    let limit = if buffer[0] == b'P' { MAX_V1_HEADER_LEN } else { MAX_V2_HEADER_LEN };
    if buffer[0] == b'\r' && buffer[12] == 0x20 {
        // The LOCAL command means that the proxy opened the connection for itself, for example as a health check. The
        // server must then ignore the address family (PROXY protocol, section 2.2), so clear it.
        buffer[13] = 0;
    }
    let why = match ProxyHeader::parse(&buffer[..received.min(limit)], ParseConfig::default()) {
        Ok((header, len)) => {
            let client = header.proxied_address().map(|address| address.source);
            return recv(socket, &mut buffer[..len], RecvFlags::empty()).map(|_| client).map_err(io::Error::from);
        }
        Err(_) if received == 0 => return Err(ErrorKind::UnexpectedEof.into()),
        Err(Error::BufferTooShort) if received < limit => return Err(ErrorKind::WouldBlock.into()),
        Err(Error::BufferTooShort) => "too long",
        Err(_) => "missing or malformed",
    };
    Err(io::Error::new(ErrorKind::InvalidData, format!("The PROXY header is {why} (--proxy-protocol).")))
}
