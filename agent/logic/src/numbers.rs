//! Numbers and durations as text.

use std::time::Duration;

/// A number of events in a given time, for people: `14`, `2.8`, `0.29`.
pub fn number(value: f64) -> String {
    match value {
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// Durations for people: `250 ms`, `4.98 s`, `12 min`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..100.0 => format!("{seconds:.2} s"),
        ..600.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// The ending of a noun after this count.
pub const fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}
