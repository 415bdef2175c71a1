//! What happened lately, in two spans of time.

use std::time::Duration;

use super::model::Nanos;

/// Two spans, the older of which is dropped when the newer is full: there is always one span's worth
/// of the past, and at most two.
#[derive(Clone, Debug)]
pub struct Window<T> {
    /// In seconds.
    span: u32,
    older: T,
    newer: T,
    /// When the older began.
    start: Nanos,
    turn: Nanos,
}

impl<T: Default> Window<T> {
    pub fn new(span: Duration, start: Nanos) -> Self {
        let span = u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
        Self { span, older: T::default(), newer: T::default(), start, turn: start }
    }

    /// The span that `now` is in.
    pub fn at(&mut self, now: Nanos) -> &mut T {
        self.turn(now);
        &mut self.newer
    }

    /// Drops what is too old by `now`; returns how many spans that was.
    pub fn turn(&mut self, now: Nanos) -> usize {
        let (passed, span) = (now.since(self.turn), Duration::from_secs(self.span.into()));
        if passed < span {
            return 0;
        }
        let newer = std::mem::take(&mut self.newer);
        let is_next = passed < 2 * span;
        if is_next {
            (self.older, self.start) = (newer, self.turn);
        } else {
            // Nothing happened in the whole span before.
            let span = u64::from(self.span) * 1_000_000_000;
            (self.older, self.start) = (T::default(), Nanos(now.0.saturating_sub(span)));
        }
        self.turn = now;
        if is_next { 1 } else { 2 }
    }

    pub fn spans(&self) -> [&T; 2] {
        [&self.older, &self.newer]
    }

    /// When what it covers began.
    pub const fn start(&self) -> Nanos {
        self.start
    }

    /// How much time it covers by `now`.
    pub fn length(&self, now: Nanos) -> Duration {
        now.since(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_dropped() {
        let at = |minutes: u64| Nanos(minutes * 60_000_000_000);
        let mut window: Window<u32> = Window::new(Duration::from_mins(30), at(0));
        let mut check = |minutes: u64, sum: u32, length: u64| {
            *window.at(at(minutes)) += 1;
            assert_eq!(
                (
                    window.spans().into_iter().sum::<u32>(),
                    window.length(at(minutes)).as_secs() / 60
                ),
                (sum, length)
            );
        };
        check(1, 1, 1);
        check(29, 2, 29);
        check(30, 3, 30);
        check(59, 4, 59);
        check(61, 3, 31);
        check(200, 1, 30);
    }
}
