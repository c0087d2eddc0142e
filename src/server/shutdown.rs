//! SIGINT and SIGTERM: nobody is accepted any more, everybody is told (§7.4.1, code 1001), and the loop ends when they have
//! answered or their time is over.
//!
//! The subtle thing: everybody leaves at once, and nobody is told of the others, or the last words of a full room would
//! be as many as the square of its members.

use std::time::Duration;

use mio::Token;

use super::phase::{Endpoint, Open, Phase};
use super::{Server, Stopped};
use crate::chat::Chat;
use crate::ws::close::CloseCode;

/// How long a shutdown waits for its clients.
const SHUTDOWN: Duration = Duration::from_secs(2);

impl Server {
    /// `false`: a second signal has come.
    pub(super) fn handle_signals(&mut self) -> bool {
        let count = self.signals.pending().count();
        (0..count).all(|_| self.stop())
    }

    /// Begins the shutdown: nobody is accepted any more and everybody is told. `false`: that had begun before.
    fn stop(&mut self) -> bool {
        if self.stop_at.is_some() {
            return false;
        }
        log::info!("STOP connections to close: {}", self.connections.len());
        self.stop_at = Some(self.now + SHUTDOWN);
        self.listener = None;
        // Everybody is leaving: nobody is told of the others.
        self.chat = Chat::new(&self.config);
        let tokens: Vec<Token> = self.connections.keys().copied().collect();
        for token in tokens {
            match self.connections.get(&token).map(|connection| &connection.phase) {
                Some(Phase::Handshake(_)) => self.end(token, "the server is shutting down".into()),
                // It goes with the connection that it looks at, whose Close it still wants to see.
                Some(Phase::Open(Open { endpoint: Endpoint::Inspect(_), .. })) => {}
                _ => self.close(token, CloseCode::GOING_AWAY, "the server is shutting down"),
            }
        }
        true
    }

    /// The loop is over: those who watch are told so of every connection that is left.
    pub(super) fn stopped(&mut self, how: Stopped) -> Stopped {
        let watched = self.connections.values_mut().filter_map(|connection| connection.watch.as_mut());
        watched.for_each(|watch| watch.end("the server stopped"));
        self.report();
        how
    }
}
