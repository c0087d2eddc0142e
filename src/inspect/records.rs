//! Where records go: one list for all connections, and for each connection somebody who adds to it.
//!
//! The list is taken in every turn of the loop. In between it is bounded, since one read can hold thousands of frames; a
//! [`Reporter`] counts what found no room and says so when there is room again.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::SystemTime;

use super::{Failure, Record, StateChange, What};

/// How many records wait to be taken; what comes on top is counted instead.
const MAX_RECORDS: usize = 16 * 1024;

/// Where taps put their records: one list for all, so that what happened first stands first.
#[derive(Debug, Clone, Default)]
pub struct Records(Rc<RefCell<Vec<Record>>>);

impl Records {
    /// Adds a record. `false`: too many wait already, and it is left out.
    fn push(&self, record: Record) -> bool {
        let mut records = self.0.borrow_mut();
        let has_room = records.len() < MAX_RECORDS;
        if has_room {
            records.push(record);
        }
        has_room
    }

    /// Takes all that wait, in the order in which they happened.
    pub fn take(&self) -> Vec<Record> {
        self.0.take()
    }
}

/// Adds the records of one connection.
#[derive(Debug)]
pub struct Reporter {
    connection: usize,
    records: Records,
    /// Who is at the other end, once that is known.
    pub user: Option<Rc<str>>,
    /// When what is reported now passed.
    pub time: SystemTime,
    /// Records that were left out since the last one.
    missed: u64,
}

impl Reporter {
    /// Of the connection with this number.
    pub fn new(connection: usize, records: Records) -> Reporter {
        Reporter { connection, records, user: None, time: SystemTime::UNIX_EPOCH, missed: 0 }
    }

    /// Reports what happened.
    pub fn tell(&mut self, what: What) {
        let record = |what| Record { connection: self.connection, user: self.user.clone(), time: self.time, what };
        if self.missed > 0 && self.records.push(record(What::Missed(self.missed))) {
            self.missed = 0;
        }
        if self.missed > 0 || !self.records.push(record(what)) {
            self.missed += 1;
        }
    }

    /// Reports that a rule was broken, if one was.
    pub fn tell_refusal(&mut self, refusal: Option<Failure>) {
        if let Some(refusal) = refusal {
            self.tell(What::Failure(refusal));
        }
    }

    /// Reports that the state has changed, if it has.
    pub fn tell_change(&mut self, change: Option<StateChange>) {
        if let Some(change) = change {
            self.tell(What::State(change));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted() {
        let records = Records::default();
        let mut reporter = Reporter::new(7, records.clone());
        (0..MAX_RECORDS + 37).for_each(|_| reporter.tell(What::Missed(0)));
        assert_eq!(records.take().len(), MAX_RECORDS);
        reporter.tell(What::Missed(0));
        let whats: Vec<_> = records.take().into_iter().map(|record| record.what).collect();
        assert_eq!(whats, [What::Missed(37), What::Missed(0)]);
    }
}
