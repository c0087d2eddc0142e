//! A server under watch while somebody is rude to it: two people who go on chatting, and a log that keeps secrets.

use std::ops::{Deref, DerefMut};

use super::table::Cut;
use super::{RawClient, Server, masked};

/// The tokens a server takes when it was told of none (the demo set).
pub const DEMO_TOKENS: [&str; 4] = ["token-alice", "token-bob", "token-carol", "dev-token"];

pub struct Watched {
    server: Server,
    speaker: RawClient,
    listener: RawClient,
    /// On `/echo`, for [`Watched::barrier`] alone.
    pacer: RawClient,
    said: u64,
}

impl Watched {
    /// Starts a server with the demo tokens, with pings so rare that none comes between the lines of a test, and for
    /// people who may talk as fast as they like.
    pub fn start(args: &[&str]) -> Watched {
        let rare = ["--ping-interval", "600", "--idle-timeout", "1200", "--rate-limit", "0"];
        Watched::new(Server::start(&[args, &rare].concat()), "dev-token")
    }

    /// Watches a server that is running, with a token it takes. It must have no limit to how fast people talk, if the
    /// witnesses are to talk more than a few times.
    pub fn new(server: Server, token: &str) -> Watched {
        let room = format!("/?token={token}&username=witness&room=witnesses");
        let (mut speaker, listener) = (server.upgrade(&room), server.upgrade(&room));
        speaker.read_event("joined");
        let pacer = server.upgrade(&format!("/echo?token={token}"));
        Watched { server, speaker, listener, pacer, said: 0 }
    }

    /// Returns when the server has read whatever was sent to it before: it is one loop, and has answered something later.
    pub fn barrier(&mut self) {
        self.pacer.send(&masked(0x89, b"pace"));
        assert_eq!(self.pacer.read_frame().payload, b"pace");
    }

    /// The same, and what the server had to answer has been written as well. A turn of the loop may write the answer to
    /// the pacer before that to another; by the end of a second one the first is over.
    pub fn quiet(&mut self) {
        self.barrier();
        self.barrier();
    }

    /// Sends in pieces. A server that has heard enough may hang up in the middle of it.
    pub fn send(&mut self, client: &mut RawClient, bytes: &[u8], cut: Cut) {
        for piece in cut.pieces(bytes) {
            client.try_send(piece);
            if cut == Cut::Bytes {
                self.barrier();
            }
        }
    }

    /// The witnesses talk: what one says, both hear.
    pub fn still_chats(&mut self) {
        self.said += 1;
        let text = format!("ok {}", self.said);
        let event = serde_json::json!({"event": "message", "data": {"text": text}});
        self.speaker.send_text(&event.to_string());
        for witness in [&mut self.speaker, &mut self.listener] {
            assert_eq!(witness.read_event("message")["text"], text, "the witnesses chat");
        }
    }

    /// At the end of a table: the server runs, and its log holds neither a token nor a control character.
    pub fn finish(mut self, secrets: &[&str]) {
        self.still_chats();
        assert!(self.is_running(), "the server runs");
        let log = self.log();
        for secret in DEMO_TOKENS.iter().chain(secrets) {
            assert!(!log.contains(secret), "the log holds the token {secret}:\n{log}");
        }
        let raw = log.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(raw, None, "the log holds a raw control character:\n{log}");
    }
}

impl Deref for Watched {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Watched {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}
