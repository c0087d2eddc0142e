//! Replaces `net::metrics` in a build without the `metrics` feature. [`AdminListener`] is uninhabited, because
//! such a build has no admin listener.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Registry, Token};

use super::{listener::Listener, tls::Transport};
use crate::{chat::Now, config::Config, server::Server};

pub const ADMIN_TOKEN: Token = Token(usize::MAX - 3);
pub const MAX_ADMIN_DESCRIPTORS: usize = 0;

#[derive(Debug)]
pub struct AdminListener {
    pub address: SocketAddr,
    never: Never,
}

#[derive(Debug)]
enum Never {}

impl AdminListener {
    pub fn open(_: &Config, _: &Registry) -> Result<Option<AdminListener>, String> {
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
