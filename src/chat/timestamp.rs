//! When something was said, as people are shown it.
//!
//! The subtle thing: all that is said in a turn of the server's loop has one time, and what was said is told again to
//! everyone who comes later. So a time is written when something is said, once for all that has it, and shared.

use std::rc::Rc;
use std::time::SystemTime;

use serde::Serialize;

/// RFC 3339, UTC, milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timestamp(Rc<str>);

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        Timestamp(humantime::format_rfc3339_millis(time).to_string().into())
    }
}

impl Timestamp {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Remembers how the time was written last.
#[derive(Debug, Default)]
pub struct Clock {
    last: Option<(SystemTime, Timestamp)>,
}

impl Clock {
    /// This time, written.
    pub fn timestamp(&mut self, time: SystemTime) -> Timestamp {
        if let Some((last, written)) = &self.last
            && *last == time
        {
            return written.clone();
        }
        let written = Timestamp::from(time);
        self.last = Some((time, written.clone()));
        written
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_is_written_as_it_is() {
        let mut clock = Clock::default();
        let later = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_001);
        for (time, written) in [
            (SystemTime::UNIX_EPOCH, "1970-01-01T00:00:00.000Z"),
            (later, "2023-11-14T22:13:20.001Z"),
            (later, "2023-11-14T22:13:20.001Z"),
            (SystemTime::UNIX_EPOCH, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(&*clock.timestamp(time).0, written);
        }
    }
}
