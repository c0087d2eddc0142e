//! A server with in-memory sockets whose broker replies only when the test lets it.

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

/// Lets the broker reply to everything that it has received.
pub fn release(world: &mut World, control: &Control) {
    world.turn_with(|server| {
        while control.release_one() {
            server.apply_effects();
        }
    });
    world.settle();
}
