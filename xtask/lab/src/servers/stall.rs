//! Whether the machine itself stalled: then times are no longer those of the software, and
//! requests are lost that no configuration could have saved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use xtask::setup::{Preference, now};

/// Runs `body` ahead of whatever else the machine does, and returns with its result the longest time
/// in which none of it could run.
pub(super) fn measure<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    const STEP: Duration = Duration::from_millis(10);
    let _preference = Preference::begin();
    let done = AtomicBool::new(false);
    scope(|scope| {
        let meter = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = now();
                sleep(STEP);
                longest = longest.max(start.elapsed().saturating_sub(STEP));
            }
            longest
        });
        let result = with_end(&done, body);
        (result, meter.join().unwrap_or(Duration::MAX))
    })
}

/// Sets `end` when `body` is over, even if it panics: threads that wait for it would otherwise go on.
pub(super) fn with_end<T>(end: &AtomicBool, body: impl FnOnce() -> T) -> T {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let _end = End(end);
    body()
}
