//! What is said: messages to a room, private messages, typing. The name something is said under is judged here too.
//!
//! The subtle thing: a client that lost its connection sends again what it saw no echo of, under the same nonce. If the
//! room has heard it, nobody hears it twice: the sender gets the first one's event.

use std::rc::Rc;

use mio::Token;

use super::access;
use super::command::{Complaint, Notice, Whisper};
use super::history::Draft;
use super::{Audience, Chat, Delivery, NAME_IN_USE, Now, excerpt, logged};

/// How often others are told, at the most, that somebody is typing.
const TYPING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

const NAME_NOT_GRANTED: &str = "This token may be used with another username only";

impl Chat {
    pub(super) fn say(
        &mut self,
        token: Token,
        username: Option<&str>,
        text: &str,
        nonce: Option<&str>,
        now: Now,
    ) -> Result<Vec<Delivery>, Complaint> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let username = self.name_for(token, username)?;
        if let Some(words) =
            text.strip_prefix("/msg").filter(|words| words.is_empty() || words.starts_with(char::is_whitespace))
        {
            let (to, text) = self.names.split_addressee(words.trim_start());
            let (to, text) = (to.to_owned(), text.to_owned());
            return self.whisper(token, username, &to, &text, nonce, now);
        }
        self.check_length(text)?;
        let Some(room) = self.room_of(token) else { return Ok(Vec::new()) };
        if let Some(posted) = nonce.and_then(|nonce| self.history.find(room, &username, nonce)) {
            return Ok(vec![Delivery::tell(Audience::One(token), Notice::Message(posted))]);
        }
        if log::log_enabled!(log::Level::Debug) {
            let room = self.rooms.get(room).map_or("", |room| &room.name);
            log::debug!("MSG room={} user={} {}", logged(room), logged(&username), excerpt(text));
        }
        self.take_name(token, &username);
        let (time, nonce) = (self.clock.timestamp(now.time), nonce.map(str::to_owned));
        let draft = Draft { username, text: text.to_owned(), time, nonce };
        let posted = self.history.append(room, draft);
        Ok(vec![Delivery::tell(Audience::Room(room), Notice::Message(posted))])
    }

    /// A private message. It enters no history, and the log says no more than that there was one.
    pub(super) fn whisper(
        &mut self,
        token: Token,
        from: Rc<str>,
        to: &str,
        text: &str,
        nonce: Option<&str>,
        now: Now,
    ) -> Result<Vec<Delivery>, Complaint> {
        let (to, text) = (to.trim(), text.trim());
        if text.is_empty() {
            return Ok(Vec::new());
        }
        self.check_length(text)?;
        let bearers = self.names.bearers(to);
        if bearers.is_empty() {
            return Err(Complaint::NoSuchUser(to.chars().take(64).collect()));
        }
        let bearers = bearers.to_vec();
        self.take_name(token, &from);
        let (text, nonce) = (text.to_owned(), nonce.map(str::to_owned));
        let whisper = Rc::new(Whisper { from, to: to.into(), text, time: self.clock.timestamp(now.time), nonce });
        let others = bearers.into_iter().filter(|bearer| *bearer != token);
        let everyone = others.chain([token]);
        log::debug!("PRIVATE user={} to={}", logged(&whisper.from), logged(to));
        Ok(everyone.map(|one| Delivery::tell(Audience::One(one), Notice::Private(Rc::clone(&whisper)))).collect())
    }

    /// Tells the others that a client is typing, if they were not told just now.
    pub(super) fn typing(
        &mut self,
        token: Token,
        username: Option<&str>,
        now: Now,
    ) -> Result<Vec<Delivery>, Complaint> {
        let Some(client) = self.clients.get_mut(&token) else { return Ok(Vec::new()) };
        let room = client.room;
        // Before the name is judged: typing draws nothing from the rate, so an error must not be had more often either.
        if client.typing_at.is_some_and(|at| now.steady.saturating_sub(at) < TYPING_INTERVAL) {
            return Ok(Vec::new());
        }
        client.typing_at = Some(now.steady);
        let username = self.name_for(token, username)?;
        Ok(vec![Delivery::tell(Audience::Others(room, token), Notice::Typing { username })])
    }

    fn check_length(&self, text: &str) -> Result<(), Complaint> {
        // A text has at least as many bytes as characters, so most need no counting.
        let most = self.rules.max_text;
        if text.len() > most && text.chars().count() > most { Err(Complaint::MessageTooLong) } else { Ok(()) }
    }

    /// A client has said something under this name, and has it from then on.
    fn take_name(&mut self, token: Token, name: &Rc<str>) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        if client.spoken_as != *name {
            self.names.remove(&client.spoken_as, token);
            self.names.add(name, token);
            client.spoken_as = Rc::clone(name);
        }
    }

    /// The name that a client may say something under: the one that the message carries, if its dialect has that, else
    /// the one it came with.
    pub(super) fn name_for(&self, token: Token, asked: Option<&str>) -> Result<Rc<str>, Complaint> {
        let Some(client) = self.clients.get(&token) else { return Ok("".into()) };
        let Some(asked) = asked else { return Ok(Rc::clone(&client.username)) };
        let name = access::username(asked).map_err(Complaint::BadName)?;
        if client.grant.username.as_deref().is_some_and(|own| own != name) {
            return Err(Complaint::BadName(NAME_NOT_GRANTED.into()));
        }
        if self.names.owner(name).is_some_and(|owner| owner != token) {
            return Err(Complaint::BadName(NAME_IN_USE.into()));
        }
        Ok(if *client.spoken_as == *name { Rc::clone(&client.spoken_as) } else { name.into() })
    }
}
