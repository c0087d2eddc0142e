//! The transport in a build without the `tls` feature: plain TCP.

use std::{io, net::SocketAddr, time::Duration};

use crate::{config::Config, inspect::cases::BoxedPlayer};

pub type Transport = socket2::Socket;

#[derive(Debug)]
pub struct Acceptor;

impl Acceptor {
    pub fn new(_: &Config) -> Result<Acceptor, String> {
        Ok(Acceptor) // `Config::validate` has already rejected any TLS options
    }

    pub fn accept(&self, tcp: socket2::Socket, _: Option<SocketAddr>) -> io::Result<Transport> {
        Ok(tcp)
    }

    pub fn begin_turn(&mut self, _: Duration) {}

    pub fn next_check_at(&self) -> Option<Duration> {
        None
    }

    pub fn reload(&mut self) {}

    pub fn exempt_player_from_tls(&self, player: BoxedPlayer) -> BoxedPlayer {
        player
    }
}
