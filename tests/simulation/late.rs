//! Releases delayed events: those that a test broker holds back, or those of the SQLite broker that wait for the disk.

use crate::delayed_broker::Control;
#[cfg(feature = "sqlite")]
use crate::durable::DiskControl;

#[derive(Clone)]
pub enum DelayedEvents {
    Broker(Control),
    #[cfg(feature = "sqlite")]
    Disk(DiskControl),
}

impl DelayedEvents {
    /// Whether [`DelayedEvents::release_one`] has an event to release or an operation to execute.
    pub fn is_pending(&self) -> bool {
        match self {
            DelayedEvents::Broker(control) => control.pending_count() > 0,
            #[cfg(feature = "sqlite")]
            DelayedEvents::Disk(disk) => disk.is_pending(),
        }
    }

    /// With a test broker, releases one delayed event. With the SQLite broker, executes all operations that wait for
    /// the disk. Returns `false` if nothing was pending.
    pub fn release_one(&self) -> bool {
        match self {
            DelayedEvents::Broker(control) => control.release_one(),
            #[cfg(feature = "sqlite")]
            DelayedEvents::Disk(disk) => disk.execute(),
        }
    }
}
