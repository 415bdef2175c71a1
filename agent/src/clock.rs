//! From stamps to the time of day.

use std::time::{Duration, SystemTime};

use crate::logic::model::Nanos;

/// When watching began, by either clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub started: SystemTime,
    pub start: Nanos,
}

impl Clock {
    /// The wall time of a stamp, in UTC.
    pub fn rfc3339(&self, time: Nanos) -> String {
        let time = self.started.checked_add(self.since_start(time)).unwrap_or(self.started);
        rfc3339(time)
    }

    pub fn since_start(&self, time: Nanos) -> Duration {
        time.since(self.start)
    }
}

pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}
