//! Replaces `net::metrics` in a build without the `metrics` feature. [`Admin`] is uninhabited, because
//! such a build has no admin listener.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use super::{listener::Listener, tls::Transport};
use crate::{chat::Now, config::Config, server::Server};

pub const ADMIN: Token = Token(usize::MAX - 3);
pub const DESCRIPTORS: usize = 0;

#[derive(Debug)]
pub struct Admin {
    pub address: SocketAddr,
    never: Never,
}

#[derive(Debug)]
enum Never {}

impl Admin {
    pub fn open(_: &Config, _: &Registry) -> Result<Option<Admin>, String> {
        Ok(None)
    }

    pub fn set_ready(&mut self) {
        match self.never {}
    }

    pub fn next_turn_at(&self) -> Option<Duration> {
        match self.never {}
    }

    pub fn begin_turn(&mut self, _: &mut Server<Transport>, _: &[Listener], _: Now) {
        match self.never {}
    }

    pub fn finish_turn(&mut self, _: &Server<Transport>, _: Instant, _: Duration) {
        match self.never {}
    }
}
