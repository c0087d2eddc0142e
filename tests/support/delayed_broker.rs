//! A test broker that wraps another broker and holds back its events. A test releases the events one by one: in random
//! order across rooms, but in order within each room and for each client. The test broker can also fail a message,
//! reject a join, and simulate members on other instances.
#![allow(dead_code)] // each test binary uses only part of this module

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use mio::Token;
use wirechat::broker::{Broker, BrokerError, Join, MemberId, Request, RoomEvent, RoomId};

pub struct DelayedBroker(Rc<RefCell<State>>);

/// The test's handle for a [`DelayedBroker`].
#[derive(Clone)]
pub struct Control(Rc<RefCell<State>>);

struct State {
    inner: Box<dyn Broker>,
    /// Events held back until the test calls [`Control::release_one`], oldest first.
    pending: Vec<Pending>,
    released: VecDeque<RoomEvent>,
    /// The room that each client will be in after the release of all pending events.
    rooms: HashMap<Token, RoomId>,
    random: Rng,
    fails_next_publish: bool,
    next_join_error: Option<BrokerError>,
    remote_members: HashMap<String, Vec<(MemberId, Rc<str>)>>,
}

#[derive(Debug)]
struct Pending {
    event: RoomEvent,
    /// If two events share a key, the broker must return the older event first.
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Room(RoomId),
    Client(Token),
}

impl DelayedBroker {
    pub fn new(inner: Box<dyn Broker>, seed: u64) -> (DelayedBroker, Control) {
        let state = State {
            inner,
            pending: Vec::new(),
            released: VecDeque::new(),
            rooms: HashMap::new(),
            random: Rng::with_seed(seed),
            fails_next_publish: false,
            next_join_error: None,
            remote_members: HashMap::new(),
        };
        let state = Rc::new(RefCell::new(state));
        (DelayedBroker(Rc::clone(&state)), Control(state))
    }
}

impl Broker for DelayedBroker {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.0.borrow().inner.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        self.0.borrow_mut().submit(client, request, now);
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        self.0.borrow_mut().released.pop_front()
    }
}

impl Control {
    /// Releases a random event among those that share no key with an earlier pending event. Returns `false` if no event
    /// is pending.
    pub fn release_one(&self) -> bool {
        let state = &mut *self.0.borrow_mut();
        let shares_key = |a: &Pending, b: &Pending| a.keys.iter().any(|key| b.keys.contains(key));
        let may_go = |at: &usize| !state.pending[..*at].iter().any(|earlier| shares_key(earlier, &state.pending[*at]));
        let candidates: Vec<usize> = (0..state.pending.len()).filter(may_go).collect();
        let Some(at) = state.random.choice(candidates) else { return false };
        let event = state.pending.remove(at).event;
        state.released.push_back(event);
        true
    }

    pub fn pending_count(&self) -> usize {
        self.0.borrow().pending.len()
    }

    pub fn fail_next_publish(&self) {
        self.0.borrow_mut().fails_next_publish = true;
    }

    pub fn reject_next_join(&self, error: BrokerError) {
        self.0.borrow_mut().next_join_error = Some(error);
    }

    /// When the room opens, it already has these members on other instances.
    pub fn add_remote_members(&self, room: &str, members: &[(MemberId, &str)]) {
        let members = members.iter().map(|(member, username)| (*member, Rc::from(*username))).collect();
        self.0.borrow_mut().remote_members.insert(room.to_owned(), members);
    }

    /// Simulates an event from another instance.
    pub fn inject(&self, event: RoomEvent) {
        self.0.borrow_mut().hold(event, None);
    }
}

impl State {
    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        match request {
            Request::Join(_) if self.next_join_error.is_some() => {
                let Some(error) = self.next_join_error.take() else { return };
                self.hold(RoomEvent::JoinRejected { client, error }, Some(client));
            }
            Request::Publish(message) if self.fails_next_publish && self.rooms.contains_key(&client) => {
                self.fails_next_publish = false;
                let (error, nonce) = (BrokerError::NotStored, message.nonce);
                self.hold(RoomEvent::Rejected { client, error, nonce }, Some(client));
            }
            request => self.inner.submit(client, request, now),
        }
        while let Some(event) = self.inner.next_event() {
            self.hold(event, Some(client));
        }
    }

    /// Holds back `event`, which `client` caused, until the test releases it. Events that concern the same room or
    /// client must keep their order, so the test cannot release an event before an older one that has a key in common
    /// with it. The keys of `event` are the rooms and clients that it names, `client`, and the room of `client`.
    fn hold(&mut self, mut event: RoomEvent, client: Option<Token>) {
        let mut keys: Vec<Key> = client.into_iter().map(Key::Client).collect();
        keys.extend(client.and_then(|client| self.rooms.get(&client)).copied().map(Key::Room));
        match &mut event {
            RoomEvent::Opened { room, name, members } => {
                members.extend(self.remote_members.remove(&**name).unwrap_or_default());
                keys.push(Key::Room(*room));
            }
            RoomEvent::Left { room, member, .. } => {
                keys.push(Key::Room(*room));
                if let MemberId::Local(client) = member {
                    keys.push(Key::Client(*client));
                    self.rooms.remove(client);
                }
            }
            RoomEvent::Joined { client, from, to, .. } => {
                keys.extend(from.iter().chain([&*to]).map(|room| Key::Room(*room)));
                self.rooms.insert(*client, *to);
            }
            RoomEvent::RemoteJoined { room, .. }
            | RoomEvent::Resynchronized { room, .. }
            | RoomEvent::Closed { room }
            | RoomEvent::Published { room, .. }
            | RoomEvent::Typing { room, .. } => keys.push(Key::Room(*room)),
            RoomEvent::Private { recipients, .. } => keys.extend(recipients.iter().map(|client| Key::Client(*client))),
            RoomEvent::History { .. }
            | RoomEvent::Duplicate { .. }
            | RoomEvent::JoinRejected { .. }
            | RoomEvent::Rejected { .. }
            | RoomEvent::FateUnknown { .. }
            | RoomEvent::StorageFailed { .. } => {}
        }
        self.pending.push(Pending { event, keys });
    }
}
