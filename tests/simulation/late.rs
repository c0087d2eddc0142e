//! Releases delayed events: those that a test broker holds back, or those of the SQLite broker that wait for the disk.

use crate::delayed_broker::Control;
#[cfg(feature = "sqlite")]
use crate::durable::DiskControl;

#[derive(Clone)]
pub enum Late {
    Broker(Control),
    #[cfg(feature = "sqlite")]
    Disk(DiskControl),
}

impl Late {
    /// Whether [`Late::release_one`] has an event to release or an operation to execute.
    pub fn is_pending(&self) -> bool {
        match self {
            Late::Broker(control) => control.pending() > 0,
            #[cfg(feature = "sqlite")]
            Late::Disk(disk) => disk.is_pending(),
        }
    }

    /// With a test broker, releases one delayed event. With the SQLite broker, executes all operations that wait for
    /// the disk. Returns `false` if nothing was pending.
    pub fn release_one(&self) -> bool {
        match self {
            Late::Broker(control) => control.release_one(),
            #[cfg(feature = "sqlite")]
            Late::Disk(disk) => disk.execute(),
        }
    }
}
