//! Coming in: whether a newcomer can join as it is, and what everybody is told when it does.
//!
//! The subtle thing: a name, or an id that a client gave itself, may be taken. Judging that changes nothing; whoever has
//! to go leaves as anybody leaves, and only then does the newcomer come in.

use std::rc::Rc;

use mio::Token;

use super::access::Grant;
use super::command::Notice;
use super::dialect::Dialect;
use super::history::Resume;
use super::pace::Pace;
use super::{Audience, Chat, Client, Delivery, Now, logged};

/// Someone at the door, let in by [`access`](super::access).
#[derive(Debug, Clone)]
pub struct Newcomer {
    /// The shape it speaks.
    pub dialect: Dialect,
    /// Its name.
    pub username: Rc<str>,
    /// The room that it wants to be in.
    pub room: Rc<str>,
    /// What its token allows.
    pub grant: Grant,
    /// What it calls itself; only one connection may.
    pub client_id: Option<Rc<str>>,
    /// Where it was when it was last here.
    pub resume: Option<Resume>,
    /// With it the client may look at its own connection; it is told of in the welcome.
    pub ticket: Option<String>,
}

/// Whether a newcomer can join.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It can.
    Free,
    /// It takes the place of this one, which must leave first.
    Replaces(Token),
    /// Somebody else has the name.
    NameInUse,
}

impl Chat {
    /// Whether a room of this name is there or can be made.
    pub fn has_room_for(&self, name: &str) -> bool {
        self.rooms.len() < self.rules.max_rooms || self.rooms.find(name).is_some()
    }

    /// Whether a newcomer can join as it is.
    pub fn admit(&self, newcomer: &Newcomer) -> Admission {
        let same_id = newcomer.client_id.as_ref().and_then(|id| self.client_ids.get(id)).copied();
        let owner = self.names.owner(&newcomer.username).filter(|owner| Some(*owner) != same_id);
        let Some(owner) = owner else {
            return same_id.map_or(Admission::Free, Admission::Replaces);
        };
        // Somebody who comes back over a new connection while the old one has not been missed yet. A name alone proves
        // nothing: it must be the same token.
        let theirs = self.clients.get(&owner).and_then(|client| client.grant.token);
        if newcomer.resume.is_some() && theirs.is_some() && theirs == newcomer.grant.token {
            Admission::Replaces(owner)
        } else {
            Admission::NameInUse
        }
    }

    /// Lets a client in that was admitted.
    pub fn join(&mut self, token: Token, newcomer: Newcomer, now: Now) -> Vec<Delivery> {
        let Newcomer { dialect, username, room, grant, client_id, resume, ticket } = newcomer;
        let found = self.rooms.find(&room);
        let members = self.members_named(found);
        let (id, past) = self.enter(token, dialect, found, &room, resume.as_ref(), now);
        log::info!("JOIN room={} user={}", logged(&room), logged(&username));
        self.names.add(&username, token);
        if let Some(client_id) = &client_id {
            self.client_ids.insert(Rc::clone(client_id), token);
        }
        let pace = Pace::new(self.rules.rate_limit, now.steady);
        let (name, spoken_as) = (Rc::clone(&username), Rc::clone(&username));
        let client = Client { dialect, username: name, spoken_as, room: id, grant, client_id, pace, typing_at: None };
        self.clients.insert(token, Box::new(client));
        let replayed = if dialect.welcomes_with_history() { Vec::new() } else { past.messages.clone() };
        let has_others = self.rooms.get(id).is_some_and(|room| room.member_count() > 1);
        let joined = has_others.then(|| Delivery::tell(Audience::Others(id, token), self.joined(id, &username)));
        let welcome = Notice::Welcome { username, room, members, past, ticket };
        let mut told = vec![Delivery::tell(Audience::One(token), welcome)];
        told.extend(replayed.into_iter().map(|posted| Delivery::tell(Audience::One(token), Notice::Message(posted))));
        told.extend(joined);
        told
    }
}
