//! The clock that stamps records, and the conversion from stamps to the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finrace_logic::model::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// When watching began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub started: SystemTime,
    pub start: Nanos,
}

impl Clock {
    pub fn since_start(&self, time: Nanos) -> Duration {
        time.since(self.start)
    }

    /// The wall clock at [`Nanos`] 0, since the Unix epoch. It does not follow later changes of the
    /// clock: to Prometheus, an exemplar with another time would be a different one.
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

/// The time of day, which may jump and may be arbitrarily wrong.
#[expect(clippy::disallowed_methods, reason = "the one place that reads it")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// In UTC, with microseconds; times before 1970, and years with too many digits for RFC 3339, are clamped.
pub fn rfc3339(time: SystemTime) -> String {
    /// The end of 9999.
    const LAST: Duration = Duration::from_micros(253_402_300_799_999_999);
    humantime::format_rfc3339_micros(time.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_clock_is_too_wrong() {
        let day = Duration::from_hours(24);
        let far = Duration::from_secs(1 << 50);
        for (time, expected) in [
            (UNIX_EPOCH - day, "1970-01-01T00:00:00.000000Z"),
            (UNIX_EPOCH - far, "1970-01-01T00:00:00.000000Z"),
            (UNIX_EPOCH + day, "1970-01-02T00:00:00.000000Z"),
            (UNIX_EPOCH + far, "9999-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(rfc3339(time), expected);
            let clock = Clock { started: time, start: Nanos(30_000_000_000) };
            assert!(clock.epoch() <= 2 * far);
        }
    }

    #[test]
    fn stamps_count_from_the_epoch() {
        let second = Duration::from_secs(1);
        let clock = Clock { started: UNIX_EPOCH + 100 * second, start: Nanos(30_000_000_000) };
        assert_eq!(clock.epoch(), 70 * second);
    }
}
