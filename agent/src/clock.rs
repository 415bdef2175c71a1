//! The clock of the stamps, and from stamps to the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finrace_logic::model::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// When watching began, by either clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub started: SystemTime,
    pub start: Nanos,
}

impl Clock {
    pub fn since_start(&self, time: Nanos) -> Duration {
        time.since(self.start)
    }

    /// The wall clock at [`Nanos`] 0, since the Unix epoch. It does not move with the clock: an
    /// exemplar at another time would be another one to Prometheus.
    pub fn epoch(&self) -> Duration {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        started.saturating_sub(self.start.since(Nanos(0)))
    }
}

/// `CLOCK_MONOTONIC`, the clock that stamps the records.
pub fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    let (secs, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    Nanos(secs * 1_000_000_000 + nanos)
}

pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_count_from_the_epoch() {
        let second = Duration::from_secs(1);
        let clock = Clock { started: UNIX_EPOCH + 100 * second, start: Nanos(30_000_000_000) };
        assert_eq!(clock.epoch(), 70 * second);
    }
}
