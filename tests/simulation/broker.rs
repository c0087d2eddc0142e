//! Brokers that wrap another broker and report its decisions, or the chat's requests and events, to the model.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use mio::Token;
use wirechat::broker::{Broker, BrokerError, Join, Request, RoomEvent};

use crate::model::Model;

/// Reports the decisions of a synchronous broker to the model: the events that each request causes.
pub struct Decisions {
    pub broker: Box<dyn Broker>,
    pub model: Rc<RefCell<Model>>,
    pub events: VecDeque<RoomEvent>,
}

impl Broker for Decisions {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.broker.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        let broker = &mut self.broker;
        self.events.extend(Model::decide(&self.model, client, request, now, |request| {
            broker.submit(client, request, now);
            std::iter::from_fn(|| broker.next_event()).collect()
        }));
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        self.events.pop_front()
    }
}

/// Reports to the model each request from the chat and each event that the chat receives.
pub struct Events {
    pub broker: Box<dyn Broker>,
    pub model: Rc<RefCell<Model>>,
}

impl Broker for Events {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.broker.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        self.model.borrow_mut().see_request(client, &request);
        self.broker.submit(client, request, now);
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        let event = self.broker.next_event()?;
        self.model.borrow_mut().see_event(&event);
        Some(event)
    }
}
