//! A server that a hostile client attacks while two other clients, the witnesses, keep chatting. At the end, the
//! server's log must contain no secret.

use std::ops::{Deref, DerefMut};

use super::table::Cut;
use super::{RawClient, Server, masked};

/// The demo tokens, which a local server accepts by default.
pub const DEMO_TOKENS: [&str; 4] = ["token-alice", "token-bob", "token-carol", "dev-token"];

pub struct WitnessedServer {
    server: Server,
    sender: RawClient,
    receiver: RawClient,
    /// A client of `/echo` that only [`WitnessedServer::barrier`] uses.
    pinger: RawClient,
    sent: u64,
}

impl WitnessedServer {
    /// Starts a server with the demo tokens and without a rate limit. Its Pings are so rare that a test receives
    /// none.
    pub fn start(args: &[&str]) -> WitnessedServer {
        let rare = ["--ping-interval", "600", "--idle-timeout", "1200", "--rate-limit", "0"];
        WitnessedServer::new(Server::start(&[args, &rare].concat()), "dev-token")
    }

    /// Connects two clients, the witnesses, to a running server. Both use the access token `token`. Each call of
    /// `check_chat` sends a message, so if a test calls it often, start the server with `--rate-limit 0`.
    pub fn new(server: Server, token: &str) -> WitnessedServer {
        let room = format!("/?token={token}&username=witness&room=witnesses");
        let (mut sender, receiver) = (server.upgrade(&room), server.upgrade(&room));
        sender.read_event("joined");
        let pinger = server.upgrade(&format!("/echo?token={token}"));
        WitnessedServer { server, sender, receiver, pinger, sent: 0 }
    }

    /// Sends a Ping and waits for the Pong. By then, the server has read all bytes that any client sent before this
    /// call, because it has a single event loop.
    pub fn barrier(&mut self) {
        self.pinger.send(&masked(0x89, b"barrier"));
        assert_eq!(self.pinger.read_frame().payload, b"barrier");
    }

    /// Waits until the server has written its replies to all bytes that any client sent before this call. Sends two
    /// Pings: in one turn of its event loop, the server may write the first Pong before another client's reply, but
    /// it writes the second Pong in a later turn.
    pub fn wait_for_replies(&mut self) {
        self.barrier();
        self.barrier();
    }

    /// Sends bytes in pieces. Ignores errors, because the server may close the connection before reading every piece.
    pub fn send(&mut self, client: &mut RawClient, bytes: &[u8], cut: Cut) {
        for piece in cut.pieces(bytes) {
            client.try_send(piece);
            if cut == Cut::Bytes {
                self.barrier();
            }
        }
    }

    /// Checks that a message sent by one witness reaches both.
    pub fn check_chat(&mut self) {
        self.sent += 1;
        let text = format!("ok {}", self.sent);
        let event = serde_json::json!({"event": "message", "data": {"text": text}});
        self.sender.send_text(&event.to_string());
        for witness in [&mut self.sender, &mut self.receiver] {
            assert_eq!(witness.read_event("message")["text"], text, "a witness received another message");
        }
    }

    /// Call this after the last test row. Checks that the server still runs and that its log contains no token and
    /// no control character.
    pub fn finish(mut self, secrets: &[&str]) {
        self.check_chat();
        assert!(self.is_running(), "the server runs");
        let log = self.log();
        for secret in DEMO_TOKENS.iter().chain(secrets) {
            assert!(!log.contains(secret), "the log contains the token {secret}:\n{log}");
        }
        let raw = log.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(raw, None, "the log contains a raw control character:\n{log}");
    }
}

impl Deref for WitnessedServer {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for WitnessedServer {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}
