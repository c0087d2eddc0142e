//! Translates the chat's requests into arguments for the Lua script that Redis executes.

use std::rc::Rc;

use mio::Token;

use super::super::{Broker, BrokerError, Join, Message, PrivateMessage, Request, RoomEvent, Session, User};
use super::RedisBroker;
use super::inbox::MessageWithoutId;
use super::requests::{Kind, QueuedRequest, format_credential, format_flag, nonce_key, to_json};

impl RedisBroker {
    pub(super) fn submit_request(&mut self, client: Token, request: Request) {
        match request {
            Request::Join(join) => self.join(client, join),
            Request::Announce { room, message } => self.announce(client, &room, message),
            _ if self.mirror.clients.get(&client).is_none_or(|record| record.is_leaving || record.is_hidden) => {}
            Request::Leave => {
                self.mirror.clients.get_mut(&client).into_iter().for_each(|record| record.is_leaving = true);
                self.push(client, Kind::Internal, "leave", Vec::new());
            }
            Request::Switch { room } => self.switch(client, room),
            Request::Publish(message) => self.publish(client, message),
            Request::Private(message) => self.send_private_message(client, &message),
            Request::History { before, limit } => {
                self.push(client, Kind::Query, "page", vec![before.to_string(), limit.to_string()]);
            }
            Request::Typing { username } => {
                if self.is_available() {
                    let arguments = self.claim_arguments(&username).to_vec();
                    self.push(client, Kind::Typing, "typing", arguments);
                }
            }
        }
    }

    pub(super) fn push(&mut self, client: Token, kind: Kind, name: &'static str, arguments: Vec<String>) {
        let client_argument = std::iter::once(client.0.to_string());
        let arguments = client_argument.chain(arguments).collect();
        self.requests.push(QueuedRequest::new(client, kind, name, arguments, self.now));
        self.flush();
    }

    pub(super) fn push_internal(&mut self, name: &'static str, arguments: Vec<String>) {
        self.requests.push(QueuedRequest::new(Token(0), Kind::Internal, name, arguments, self.now));
    }

    /// Sends a rejection through Redis, so that the client receives the error after the events of earlier requests.
    fn push_rejection(&mut self, client: Token, nonce: Option<&Rc<str>>) {
        self.push(client, Kind::Query, "reject", vec!["rooms".into(), to_json(&nonce)]);
    }

    fn claim_arguments(&self, username: &Rc<str>) -> [String; 3] {
        let may_share = (self.names.may_share)(username);
        [username.to_string(), (self.names.key)(username).to_string(), format_flag(may_share)]
    }

    fn join(&mut self, client: Token, join: Join) {
        if !self.mirror.may_open(&join.room, &join.user) {
            let error = BrokerError::TooManyRooms;
            return self.mirror.events.push_back(RoomEvent::JoinRejected { client, error });
        }
        let mut session = [0; 16];
        (self.random)(&mut session);
        let session = join.session.unwrap_or(Session(session));
        let arguments = self.join_arguments(&join, session);
        self.mirror.add(client, join, session);
        self.push(client, Kind::Join, "join", arguments);
    }

    fn join_arguments(&self, join: &Join, session: Session) -> Vec<String> {
        let [username, key, share] = self.claim_arguments(&join.username);
        let client_id = join.client_id.as_deref().unwrap_or_default().to_owned();
        let given = join.session.map(Session::to_hex).unwrap_or_default();
        let (epoch, since) =
            join.resume.as_ref().map(|resume| (resume.epoch.clone(), resume.since)).unwrap_or_default();
        let credential = format_credential(join.credential);
        let room = join.room.to_string();
        let (bound, new_session, since) = (format_flag(join.is_bound), session.to_hex(), since.to_string());
        vec![room, username, key, share, bound, client_id, credential, given, new_session, epoch, since]
    }

    fn switch(&mut self, client: Token, room: Rc<str>) {
        let Some(record) = self.mirror.clients.get(&client) else { return };
        let joined_as = record.join.username.to_string();
        // Even at a room limit, a client may switch to a new room if it is this instance's last client in a room that
        // its user opened. The limits count only rooms with clients of this instance, so their number does not grow.
        if !self.mirror.may_open(&room, &record.join.user) && !self.mirror.switch_frees_room(record) {
            return self.push_rejection(client, None);
        }
        self.mirror.set_target(client, &room);
        self.push(client, Kind::Query, "switch", vec![room.to_string(), joined_as]);
    }

    fn publish(&mut self, client: Token, message: Message) {
        let nonce = message.nonce.clone();
        let mut arguments = self.claim_arguments(&message.username).to_vec();
        arguments.extend([to_json(&nonce), nonce_key(&message), to_json(&MessageWithoutId::new(message))]);
        self.push(client, Kind::Message { nonce }, "publish", arguments);
    }

    fn announce(&mut self, client: Token, room: &Rc<str>, message: Message) {
        let nonce = message.nonce.clone();
        if !self.mirror.may_open(room, &User::Connection(Token(0))) {
            return self.push_rejection(client, nonce.as_ref());
        }
        let arguments = vec![room.to_string(), nonce_key(&message), to_json(&MessageWithoutId::new(message))];
        self.push(client, Kind::Message { nonce }, "announce", arguments);
    }

    fn send_private_message(&mut self, client: Token, message: &PrivateMessage) {
        let mut arguments = self.claim_arguments(&message.from).to_vec();
        let key = (self.names.key)(&message.to).to_string();
        arguments.extend([to_json(&message.nonce), key, message.to.to_string(), to_json(message)]);
        self.push(client, Kind::Message { nonce: message.nonce.clone() }, "private", arguments);
    }

    pub(super) fn push_rejoin(&mut self, client: Token) {
        let Some(record) = self.mirror.clients.get(&client) else { return };
        let room = record.room.as_deref().unwrap_or_default().to_owned();
        let [username, key, share] = self.claim_arguments(&record.username);
        let client_id = record.join.client_id.as_deref().unwrap_or_default().to_owned();
        let (credential, session) = (format_credential(record.join.credential), record.session.to_hex());
        let (token, joined_as) = (client.0.to_string(), record.join.username.to_string());
        let arguments = vec![token, room, joined_as, username, key, share, client_id, credential, session];
        self.push_internal("rejoin", arguments);
    }
}
