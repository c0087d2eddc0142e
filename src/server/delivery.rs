//! From the chat to the sockets: who hears what becomes bytes in outboxes, and at the end of the turn, writes.
//!
//! Also the one way out: whatever ended a connection, it leaves the chat through `leave` and the tables through
//! `remove`.
//!
//! The subtle thing: writing finds out who is too slow or gone; their leaving is told to their rooms, which is writing
//! again. So the end of a turn goes round until nothing is left to be told. Each round but the first has lost a member,
//! so it ends.

use std::borrow::Cow;
use std::io;

use mio::{Interest, Registry, Token};

use super::Server;
use super::batch::Batch;
use super::connection::Connection;
use super::phase::{Ending, Phase};
use crate::chat::command::Notice;
use crate::chat::dialect::Dialect;
use crate::chat::{Audience, Delivery, RoomId};
use crate::ws::close::CloseCode;

/// What became of a write.
enum Written {
    /// All of it is out, or the rest waits for the socket.
    Fine,
    /// More is left than may wait for one reader.
    TooSlow,
    /// The socket has failed.
    Failed(String),
}

impl Server {
    /// Does what the chat wants done.
    pub(super) fn deliver(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            match delivery {
                Delivery::Move { token, from, to } => {
                    self.catch_up(token, from);
                    self.skip(token, to);
                }
                Delivery::Close { token, reason } => self.close(token, CloseCode::POLICY_VIOLATION, reason),
                Delivery::Tell { to: Audience::One(token), notice } => self.tell(token, &notice),
                Delivery::Tell { to: Audience::Room(room), notice } => self.tell_room(room, None, &notice),
                Delivery::Tell { to: Audience::Others(room, but), notice } => self.tell_room(room, Some(but), &notice),
            }
        }
    }

    /// Queues a word for one client, behind what its room was told before.
    fn tell(&mut self, token: Token, notice: &Notice) {
        self.chat.room_of(token).into_iter().for_each(|room| self.catch_up(token, room));
        let Some(dialect) = self.chat.dialect_of(token) else { return };
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.fragments_next {
            let mut frames = Vec::new();
            self.batches.write_frame(dialect, notice, &mut frames);
            connection.push_frames(&frames);
        } else {
            connection.outbox.push_own(|out| self.batches.write_frame(dialect, notice, out));
        }
        self.queue_write(token);
    }

    /// Adds a word for everyone in a room, or for everyone but one, to its batch.
    fn tell_room(&mut self, room: RoomId, but: Option<Token>, notice: &Notice) {
        but.into_iter().for_each(|but| self.catch_up(but, room));
        let is_full = self.batches.append(room, self.chat.dialects(room), notice);
        // Before the batch goes out, or it would go to that one too.
        but.into_iter().for_each(|but| self.skip(but, room));
        if is_full && let Some(batch) = self.batches.take(room) {
            self.send_batch(room, batch);
            self.is_busy = true;
        }
    }

    /// Gives a client what this room was told so far in this turn, so that what is queued next comes behind it.
    pub(super) fn catch_up(&mut self, token: Token, room: RoomId) {
        let Some(dialect) = self.chat.dialect_of(token) else { return };
        let unread = self.batches.catch_up(room, token, dialect);
        if unread.is_empty() {
            return;
        }
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.push_frames(unread);
            self.queue_write(token);
        }
    }

    /// Lets a client hear of this room only what it is told from now on.
    pub(super) fn skip(&mut self, token: Token, room: RoomId) {
        if let Some(dialect) = self.chat.dialect_of(token) {
            self.batches.catch_up(room, token, dialect);
        }
    }

    /// Remembers that a connection has something to write. What is said to it at once is remembered once.
    pub(super) fn queue_write(&mut self, token: Token) {
        if self.unsent.back() != Some(&token) {
            self.unsent.push_back(token);
        }
    }

    /// The closing of a connection has begun. If that is not over when all is written, it has `--close-timeout` from then on.
    pub(super) fn begin_closing(&mut self, token: Token) {
        if let Some(connection) = self.connections.get_mut(&token) {
            self.deadlines.cancel(token, &mut connection.deadline);
            self.queue_write(token);
        }
    }

    /// Takes a client out of the chat, and has the others told.
    pub(super) fn leave(&mut self, token: Token, reason: &str) {
        let deliveries = self.chat.leave(token, reason, self.chat_now());
        self.deliver(deliveries);
    }

    /// Ends a connection at the end of this turn. Nothing that it sends is acted upon any more.
    pub(super) fn end(&mut self, token: Token, reason: Cow<'static, str>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.deadlines.cancel(token, &mut connection.deadline);
        connection.phase = Phase::Draining(Ending::Close);
        self.ended.push_back((token, reason));
    }

    /// Writes everything there is to write, once a socket, and removes whoever has ended.
    pub(super) fn write_and_remove(&mut self) {
        loop {
            while let Some((room, batch)) = self.batches.take_next() {
                self.send_batch(room, batch);
            }
            while let Some(token) = self.unsent.pop_front() {
                self.write_to(token);
            }
            while let Some(token) = self.too_slow.pop_front() {
                self.drop_too_slow(token);
            }
            while let Some((token, reason)) = self.ended.pop_front() {
                self.remove(token, &reason);
            }
            self.report();
            // Whoever was too slow has something to write again, and whoever left is told of.
            let is_written = self.batches.is_empty() && self.unsent.is_empty();
            if is_written && self.too_slow.is_empty() && self.ended.is_empty() {
                debug_assert_eq!(self.deadlines.count(), self.connections.len(), "nobody is forgotten");
                // Now nearly everybody is between two messages.
                return self.attach_pending();
            }
        }
    }

    /// Writes the batch of a room to every member, behind what waits for it. Where it must wait itself, it is frozen: one
    /// copy for all, and a pointer each.
    fn send_batch(&mut self, room: RoomId, batch: Batch) {
        let mut shared = [const { None }; Dialect::ALL.len()];
        let mut failed = Vec::new();
        for (token, dialect) in self.chat.members(room) {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            let frames = batch.frames(dialect);
            let sent = match batch.mark(token) {
                // Not every dialect has a word for every notice.
                mark if mark == frames.len() => continue,
                0 if !connection.fragments_next => connection.send_shared(frames, &mut shared[dialect as usize]),
                mark => {
                    connection.push_frames(&frames[mark..]);
                    connection.flush()
                }
            };
            let sent = sent.and_then(|()| await_room(connection, token, self.poll.registry()));
            // Nobody leaves a room that is being walked through: what is wrong is seen to later.
            match judge(connection, sent, self.config.max_outbox) {
                Written::Fine if !connection.is_queued && connection.interest(self.config.max_outbox).read => {
                    connection.is_queued = true;
                    self.unread.push(token);
                }
                Written::Fine => {}
                Written::TooSlow => self.too_slow.push_back(token),
                Written::Failed(error) => failed.push((token, error)),
            }
        }
        self.batches.recycle(batch);
        for (token, error) in failed {
            self.end(token, error.into());
        }
    }

    fn write_to(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let sent = connection.flush().and_then(|()| await_room(connection, token, self.poll.registry()));
        match judge(connection, sent, self.config.max_outbox) {
            Written::Fine if connection.is_finished() => self.end(token, "".into()),
            // Its closing has begun in this turn, and is not over.
            Written::Fine if connection.deadline.is_none() => {
                self.set_deadline(token, self.now + self.config.close_timeout);
            }
            Written::Fine => {}
            Written::TooSlow => self.too_slow.push_back(token),
            Written::Failed(error) => self.end(token, error.into()),
        }
        self.count_buffered(token);
        self.queue_read(token);
    }

    /// Closes a client for whom too much waits. Of that, only a frame that is half sent still goes out.
    fn drop_too_slow(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        // It may have been found too slow twice, and must not lose its Close.
        if connection.is_bounded() {
            connection.outbox.drop_unsent();
            self.close(token, CloseCode::POLICY_VIOLATION, "too slow to read");
        }
    }

    /// The one place where a connection goes out of the tables. Dropping it closes the socket, which takes it out of
    /// the poll as well.
    fn remove(&mut self, token: Token, reason: &str) {
        self.leave(token, reason);
        let Some(mut connection) = self.connections.remove(&token) else { return };
        if let Some(watch) = &mut connection.watch {
            watch.end(reason);
            self.report();
        }
        self.end_inspection(token);
        self.deadlines.cancel(token, &mut connection.deadline);
        self.buffered -= connection.buffered;
        self.addresses.disconnected(connection.peer.ip());
        log::debug!("END {} {reason}", connection.peer);
        if let Some(listener) = &mut self.listener {
            listener.connection_ended();
        }
    }
}

/// Has the poll tell of room to write, the first time that something must wait for it, and then for good. A socket is not
/// registered for that from the start, since its first edge would be that there is room.
fn await_room(connection: &mut Connection, token: Token, registry: &Registry) -> io::Result<()> {
    if connection.awaits_room || connection.outbox.is_empty() {
        return Ok(());
    }
    connection.awaits_room = true;
    registry.reregister(connection.source(), token, Interest::READABLE | Interest::WRITABLE)
}

/// Judges what is left after a write by the bound. An echo has none: it is not read while it is unsent.
fn judge(connection: &Connection, sent: io::Result<()>, max_outbox: usize) -> Written {
    match sent {
        Err(error) => Written::Failed(error.to_string()),
        Ok(()) if connection.is_bounded() && connection.outbox.is_over(max_outbox) => Written::TooSlow,
        Ok(()) => Written::Fine,
    }
}
