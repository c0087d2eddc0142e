//! A disk that executes operations only when the test calls `execute`.
#![allow(dead_code)] // each test binary uses only part of this module

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::rc::Rc;

use wirechat::broker::sqlite::Disk;
use wirechat::broker::sqlite::database::{Batch, Operation};

/// All clones share one disk: the broker owns one clone, and the test another.
#[derive(Clone, Default)]
pub struct ManualDisk(Rc<RefCell<Queues>>);

#[derive(Default)]
struct Queues {
    waiting: Vec<Operation>,
    executed: VecDeque<Result<Batch, String>>,
}

impl Disk for ManualDisk {
    fn submit(&mut self, operation: Operation) {
        self.0.borrow_mut().waiting.push(operation);
    }

    fn next_batch(&mut self) -> Option<Result<Batch, String>> {
        self.0.borrow_mut().executed.pop_front()
    }
}

impl ManualDisk {
    /// The number of database operations that wait until the test calls `execute`.
    pub fn waiting_count(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    /// Executes all waiting operations as one batch, as the writer thread does.
    pub fn execute(&self, execute: impl FnOnce(&[Operation]) -> Result<Batch, String>) {
        let operations = mem::take(&mut self.0.borrow_mut().waiting);
        self.0.borrow_mut().executed.push_back(execute(&operations));
    }

    /// Simulates a crash of the server: drops the waiting operations and the results that the server has not received.
    pub fn crash(&self) {
        *self.0.borrow_mut() = Queues::default();
    }
}
