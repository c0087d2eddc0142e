//! The identity that an access token proves: the client's username, its allowed rooms, and when the token expires.

use std::net::IpAddr;
use std::{collections::HashSet, num::NonZeroU32, rc::Rc, time::SystemTime};

use super::names;
use crate::broker::{CredentialId, User, network_of};

/// The identity that an access token proves. A client without an access token has the default identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub credential: Option<CredentialId>, // id of the token, or of the key that verifies the JWT
    pub token_line: Option<NonZeroU32>,   // the token's line number in the token file (or the demo tokens), for the log
    pub username: Option<Rc<str>>,        // the only username that the token allows; `None`: any unreserved username
    pub claims: Option<Rc<Claims>>,       // `None` if the token is not a JWT
}

/// The claims of a JWT that limit what the client may do.
#[derive(Debug, PartialEq, Eq)]
pub struct Claims {
    pub rooms: Option<HashSet<Box<str>>>, // `None`: all rooms
    pub expires: SystemTime,
}

impl Identity {
    pub fn allows_room(&self, room: &str) -> bool {
        self.claims.as_ref().and_then(|claims| claims.rooms.as_ref()).is_none_or(|rooms| rooms.contains(room))
    }

    /// The user whose rate limit and room limit apply. On a local server (loopback only), each connection is a user of
    /// its own instead (PROTOCOL.md, "Rate limit").
    pub fn user(&self, address: IpAddr) -> User {
        match &self.username {
            Some(username) => User::Username(names::username_key(username)),
            None => User::Peer { credential: self.credential, address: network_of(address) },
        }
    }
}
