//! Brokers that wrap another broker and pass requests and events through unchanged. They also report these requests and
//! events to the [`Model`], which checks them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use mio::Token;
use wirechat::broker::{Broker, BrokerError, Join, Request, RoomEvent};

use crate::model::Model;

/// Wraps a synchronous broker. Reports each request to the model, together with the events that the request causes.
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
        self.events.extend(Model::execute_and_check(&self.model, client, request, now, |request| {
            broker.submit(client, request, now);
            std::iter::from_fn(|| broker.next_event()).collect()
        }));
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        self.events.pop_front()
    }
}

/// Wraps any broker. Reports to the model each request that the chat submits and each event that the chat receives.
pub struct Events {
    pub broker: Box<dyn Broker>,
    pub model: Rc<RefCell<Model>>,
}

impl Broker for Events {
    fn check_join(&self, join: &Join) -> Result<(), BrokerError> {
        self.broker.check_join(join)
    }

    fn submit(&mut self, client: Token, request: Request, now: Duration) {
        self.model.borrow_mut().observe_request(client, &request);
        self.broker.submit(client, request, now);
    }

    fn next_event(&mut self) -> Option<RoomEvent> {
        let event = self.broker.next_event()?;
        self.model.borrow_mut().observe_event(&event);
        Some(event)
    }
}
