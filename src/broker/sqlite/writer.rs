//! The writer thread, which executes database operations so that the event loop need not wait for them. One transaction
//! executes all operations that were queued during the previous transaction, up to a limit (group commit).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::{sync::Arc, thread::JoinHandle, time::Duration};

use super::database::{Batch, MAX_BATCH_COST, Operation};
use super::{Disk, bans::BanSubmitter};

pub const MAX_IDLE: Duration = Duration::from_secs(60);
const BATCH_QUEUE_CAPACITY: usize = 1; // the thread waits while this many executed batches are queued

/// Executes database operations on its own thread. `drop` waits until the thread has closed the database file.
pub struct WriterThread {
    operations: Option<Arc<Sender<Operation>>>, // set to `None` to stop the writer thread
    batches: Receiver<Result<Batch, String>>,
    thread: Option<JoinHandle<()>>,
}

impl WriterThread {
    /// `execute` runs a batch of operations in one transaction. After `max_idle` without an operation, the thread runs
    /// an empty batch, so that old messages expire. `wake` tells the event loop that a batch is finished.
    pub fn start(
        execute: impl FnMut(&[Operation]) -> Result<Batch, String> + Send + 'static,
        wake: impl Fn() + Send + 'static,
        max_idle: Duration,
    ) -> Result<WriterThread, String> {
        let (sender, operations) = channel();
        let (batch_sender, batches) = sync_channel(BATCH_QUEUE_CAPACITY);
        let thread = std::thread::Builder::new().name("history".into());
        let thread = thread.spawn(move || run(execute, &operations, &batch_sender, &wake, max_idle));
        let thread = thread.map_err(|error| format!("The history thread cannot start: {error}."))?;
        Ok(WriterThread { operations: Some(Arc::new(sender)), batches, thread: Some(thread) })
    }

    pub fn ban_submitter(&self) -> BanSubmitter {
        BanSubmitter(self.operations.as_ref().map(Arc::downgrade).unwrap_or_default())
    }
}

impl Disk for WriterThread {
    fn submit(&mut self, operation: Operation) {
        // Ignore a send error. It means that the thread has failed, and `next_batch` returns the thread's error.
        if let Some(operations) = &self.operations {
            let _ = operations.send(operation);
        }
    }

    fn next_batch(&mut self) -> Option<Result<Batch, String>> {
        match self.batches.try_recv() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the history thread has ended".into())),
        }
    }
}

fn run(
    mut execute: impl FnMut(&[Operation]) -> Result<Batch, String>,
    operations: &Receiver<Operation>,
    batches: &SyncSender<Result<Batch, String>>,
    wake: &impl Fn(),
    max_idle: Duration,
) {
    loop {
        let mut waiting: Vec<Operation> = match operations.recv_timeout(max_idle) {
            Ok(first) => vec![first],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut cost: usize = waiting.iter().map(Operation::cost).sum();
        while cost < MAX_BATCH_COST
            && let Ok(next) = operations.try_recv()
        {
            cost += next.cost();
            waiting.push(next);
        }
        let batch = catch_unwind(AssertUnwindSafe(|| execute(&waiting)));
        let batch = batch.unwrap_or_else(|_| Err("the history thread has panicked".into()));
        // After an error, stop using the database file: a second fsync can succeed although the first one lost data.
        let has_failed = batch.is_err();
        if batch.as_ref().is_ok_and(|batch| batch.outcomes.is_empty() && batch.deletions.is_empty()) {
            if !waiting.is_empty() {
                // The batch only changed bans, and their results are sent through separate channels. Wake the event
                // loop, so that it reads these results and responds to the operator.
                wake();
            }
            continue;
        }
        let is_over = batches.send(batch).is_err() || has_failed;
        wake();
        if is_over {
            return;
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.operations = None;
        while self.batches.recv().is_ok() {}
        self.thread.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::database::{Deletion, Outcome};
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn load() -> Operation {
        Operation::Load { room: "tea".into(), limit: 1, max_bytes: 1000 }
    }

    /// Waits until the writer thread has executed a batch, and returns the batch.
    fn next_batch(writer: &mut WriterThread, woken: &Receiver<()>) -> Result<Batch, String> {
        woken.recv_timeout(DEADLINE).expect("a wake-up");
        writer.next_batch().expect("a wake-up has a batch")
    }

    #[test]
    fn operations_gather_while_a_batch_is_executed() {
        let ((wake, woken), (start, started), (finish, finished)) = (channel(), channel(), channel());
        let execute = move |operations: &[Operation]| {
            start.send(operations.len()).unwrap();
            finished.recv().unwrap();
            let outcomes = operations.iter().map(|_| Outcome::NotResumable).collect();
            Ok(Batch { outcomes, deletions: Vec::new() })
        };
        let mut writer = WriterThread::start(execute, move || wake.send(()).unwrap(), MAX_IDLE).unwrap();
        writer.submit(load());
        assert_eq!(started.recv(), Ok(1));
        (0..3).for_each(|_| writer.submit(load()));
        assert!(writer.next_batch().is_none());
        for count in [1, 3] {
            finish.send(()).unwrap();
            assert_eq!(next_batch(&mut writer, &woken).unwrap().outcomes.len(), count);
        }
        assert_eq!(started.recv(), Ok(3));
    }

    /// After a disk stall, one loop turn must not apply thousands of joins or send more than an outbox holds.
    #[test]
    fn a_batch_has_a_bounded_cost() {
        let ((wake, woken), (finish, finished)) = (channel(), channel::<()>());
        let execute = move |operations: &[Operation]| {
            finished.recv().unwrap();
            let outcomes = operations.iter().map(|_| Outcome::Waited).collect();
            Ok(Batch { outcomes, deletions: Vec::new() })
        };
        let mut writer = WriterThread::start(execute, move || wake.send(()).unwrap(), MAX_IDLE).unwrap();
        (0..100).for_each(|_| writer.submit(Operation::Wait));
        (0..100).for_each(|_| finish.send(()).unwrap());
        let mut left = 100;
        while left > 0 {
            let count = next_batch(&mut writer, &woken).unwrap().outcomes.len();
            assert!((1..=16).contains(&count), "{count}");
            left -= count;
        }
    }

    #[test]
    fn an_idle_thread_lets_messages_expire() {
        let (wake, woken) = channel();
        let mut count = 0;
        let execute = move |operations: &[Operation]| {
            assert_eq!(operations.len(), 0);
            count += 1;
            let expired = Deletion { room: "tea".into(), id: count };
            let deletions = if count == 3 { vec![expired] } else { Vec::new() };
            Ok(Batch { outcomes: Vec::new(), deletions })
        };
        let wake = move || wake.send(()).unwrap();
        let mut writer = WriterThread::start(execute, wake, Duration::from_millis(1)).unwrap();
        let batch = next_batch(&mut writer, &woken).unwrap();
        assert_eq!(batch.deletions[0].id, 3, "batches without deletions do not wake the event loop");
    }

    /// The result of a ban is sent through a separate channel, not with the batch. The thread must still wake the event
    /// loop, because the operator is waiting for that result.
    #[test]
    fn a_batch_without_outcomes_wakes_the_event_loop() {
        let (wake, woken) = channel();
        let execute = |_: &[Operation]| Ok(Batch::default());
        let mut writer = WriterThread::start(execute, move || wake.send(()).unwrap(), MAX_IDLE).unwrap();
        let store = writer.ban_submitter();
        let result = store.submit("a".into(), None, std::time::SystemTime::UNIX_EPOCH);
        woken.recv_timeout(DEADLINE).expect("a wake-up");
        assert!(writer.next_batch().is_none());
        drop(writer);
        assert!(result.recv().is_err(), "the batch sent no result");
        assert!(
            store.submit("a".into(), None, std::time::SystemTime::UNIX_EPOCH).recv().is_err(),
            "the thread has ended"
        );
    }

    #[test]
    fn an_error_and_a_panic_end_the_thread_and_reach_the_event_loop() {
        for (panics, error) in [(false, "disk I/O error"), (true, "the history thread has panicked")] {
            let (wake, woken) = mpsc::channel();
            let execute =
                move |_: &[Operation]| if panics { panic!("on purpose") } else { Err("disk I/O error".into()) };
            let mut writer = WriterThread::start(execute, move || wake.send(()).unwrap(), MAX_IDLE).unwrap();
            writer.submit(load());
            assert_eq!(next_batch(&mut writer, &woken).unwrap_err(), error);
            assert!(woken.recv().is_err(), "the thread has ended");
            writer.submit(load());
            assert!(writer.next_batch().unwrap().is_err());
        }
    }
}
