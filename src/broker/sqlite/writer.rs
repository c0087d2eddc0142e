//! The writer thread, the only code that waits for the disk. It takes everything that waits into one transaction (group
//! commit): while one batch is on its way to the disk, the next one gathers.

use std::iter;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use super::Disk;
use super::database::{Batch, Database, Operation};

const MAX_BATCH: usize = 8192; // bounds the memory of a batch's outcomes
const MAX_BATCHES: usize = 1; // executed batches that the loop has not received yet; then the writer waits

/// Executes operations on a thread of its own. Dropping it waits until the file is closed.
pub struct WriterThread {
    operations: Option<Sender<Operation>>, // `None` only while the thread stops
    batches: Receiver<Result<Batch, String>>,
    thread: Option<JoinHandle<()>>,
}

impl WriterThread {
    /// Calls `wake` after each batch, so that the event loop fetches its outcomes.
    pub fn start(database: Database, wake: impl Fn() + Send + 'static) -> Result<WriterThread, String> {
        let (sender, operations) = channel();
        let (batch_sender, batches) = sync_channel(MAX_BATCHES);
        let thread = std::thread::Builder::new().name("history".into());
        let thread = thread.spawn(move || run(database, &operations, &batch_sender, &wake));
        let thread = thread.map_err(|error| format!("The history thread cannot start: {error}."))?;
        Ok(WriterThread { operations: Some(sender), batches, thread: Some(thread) })
    }
}

impl Disk for WriterThread {
    fn submit(&mut self, operation: Operation) {
        // After a failure, the thread is gone. `next_batch` returns its error.
        if let Some(operations) = &self.operations {
            let _ = operations.send(operation);
        }
    }

    fn next_batch(&mut self) -> Option<Result<Batch, String>> {
        match self.batches.try_recv() {
            Ok(batch) => Some(batch),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the history thread has panicked".into())),
        }
    }
}

fn run(
    mut database: Database,
    operations: &Receiver<Operation>,
    batches: &SyncSender<Result<Batch, String>>,
    wake: &impl Fn(),
) {
    while let Ok(first) = operations.recv() {
        let waiting: Vec<Operation> = iter::once(first).chain(operations.try_iter()).take(MAX_BATCH).collect();
        let batch = database.execute(&waiting);
        // After an error, the file must not be used again: a failed fsync may have lost data that a second one confirms.
        let has_failed = batch.is_err();
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
