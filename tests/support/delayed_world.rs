//! A server with in-memory sockets, whose broker holds back all events until the test calls [`release`].

use crate::delayed_broker::{Control, DelayedBroker};
use crate::memory::World;

pub fn start(options: &[&str]) -> (World, Control) {
    let mut control = None;
    let world = World::with_broker(options, 1, false, |broker| {
        let (broker, its_control) = DelayedBroker::new(Box::new(broker), 1);
        control = Some(its_control);
        Box::new(broker)
    });
    (world, control.unwrap())
}

/// Releases all events that the broker has held back, and lets the server process the events.
pub fn release(world: &mut World, control: &Control) {
    world.turn_with(|server| {
        while control.release_one() {
            server.apply_effects();
        }
    });
    world.settle();
}
