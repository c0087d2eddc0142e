//! A room's members on all server instances, and its local recipients. The broker stores the history.

use std::{collections::BTreeMap, rc::Rc};

use mio::Token;

use super::dialect::Dialect;
use crate::broker::MemberId;

pub struct Room {
    pub name: Rc<str>,
    pub usernames: BTreeMap<MemberId, Rc<str>>, // members in key order: local members first, in connection order
    pub recipients: BTreeMap<Token, Dialect>,   // local members that are not leaving; small entries, for fast iteration
    pub dialect_counts: [usize; Dialect::ALL.len()], // for each dialect (wire format), the number of recipients
}

impl Room {
    pub fn new(name: Rc<str>, members: Vec<(MemberId, Rc<str>)>) -> Room {
        let (usernames, recipients) = (members.into_iter().collect(), BTreeMap::new());
        Room { name, usernames, recipients, dialect_counts: [0; Dialect::ALL.len()] }
    }

    /// Adds a member. `dialect` is `None` if this instance must not send the room's events to the member: the member is
    /// connected to another instance, or it began to leave before its join was complete.
    pub fn add_member(&mut self, member: MemberId, username: Rc<str>, dialect: Option<Dialect>) {
        let before = self.usernames.insert(member, username);
        debug_assert_eq!(before, None, "a member joins a room once");
        if let (MemberId::Local(client), Some(dialect)) = (member, dialect) {
            self.recipients.insert(client, dialect);
            self.dialect_counts[dialect as usize] += 1;
        }
    }

    pub fn remove_member(&mut self, member: MemberId) -> Rc<str> {
        if let MemberId::Local(client) = member {
            self.remove_recipient(client);
        }
        let Some(username) = self.usernames.remove(&member) else { unreachable!("only a member leaves") };
        username
    }

    pub fn remove_recipient(&mut self, client: Token) {
        if let Some(dialect) = self.recipients.remove(&client) {
            self.dialect_counts[dialect as usize] -= 1;
        }
    }

    pub fn is_closed(&self) -> bool {
        // Local members sort before remote members, so if the first member is remote, no member is local.
        !matches!(self.usernames.first_key_value(), Some((MemberId::Local(_), _)))
    }

    pub fn dialects(&self) -> impl Iterator<Item = Dialect> {
        Dialect::ALL.into_iter().filter(|dialect| self.dialect_counts[*dialect as usize] > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_listed_and_recipients_are_counted_by_dialect() {
        let remote = MemberId::Remote { instance: 1, connection: 0 };
        let mut room = Room::new("general".into(), vec![(remote, "remote".into())]);
        assert!(room.is_closed(), "the room has no local member yet");
        for (token, dialect) in [(9, Dialect::Events), (2, Dialect::Rooms), (3, Dialect::Events)] {
            room.add_member(MemberId::Local(Token(token)), format!("user{token}").into(), Some(dialect));
        }
        let usernames = |room: &Room| room.usernames.values().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(usernames(&room), ["user2", "user3", "user9", "remote"]);
        assert!(room.dialects().eq([Dialect::Events, Dialect::Rooms]));
        assert!(room.recipients.keys().map(|client| client.0).eq([2, 3, 9]));
        room.remove_recipient(Token(2));
        room.remove_recipient(Token(2));
        assert!(room.dialects().eq([Dialect::Events]), "a client that is leaving receives nothing more");
        assert_eq!(
            usernames(&room),
            ["user2", "user3", "user9", "remote"],
            "a client that is leaving stays a member until it has left"
        );
        for token in [2, 3, 9] {
            assert!(!room.is_closed());
            assert_eq!(*room.remove_member(MemberId::Local(Token(token))), *format!("user{token}"));
        }
        assert!(room.is_closed() && room.recipients.is_empty() && usernames(&room) == ["remote"]);
    }
}
