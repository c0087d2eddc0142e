//! A source of late events: a broker that holds events back, or the disk of a broker that stores messages.

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
    /// Whether something is pending that [`Late::release_one`] can release.
    pub fn is_pending(&self) -> bool {
        match self {
            Late::Broker(control) => control.pending() > 0,
            #[cfg(feature = "sqlite")]
            Late::Disk(disk) => disk.is_pending(),
        }
    }

    /// Releases one event of the broker, or executes all operations that wait for the disk.
    pub fn release_one(&self) -> bool {
        match self {
            Late::Broker(control) => control.release_one(),
            #[cfg(feature = "sqlite")]
            Late::Disk(disk) => disk.execute(),
        }
    }
}
