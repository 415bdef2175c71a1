//! What happened lately, in two spans of time.

use std::time::Duration;

use super::model::Nanos;

/// Two spans, the older of which is dropped when the newer is full: there is always one span's worth
/// of the past, and at most two.
#[derive(Clone, Debug)]
pub struct Window<T> {
    span: Duration,
    older: T,
    newer: T,
    /// When the older began.
    start: Nanos,
    turn: Nanos,
}

impl<T: Default> Window<T> {
    pub fn new(span: Duration, start: Nanos) -> Self {
        Self { span, older: T::default(), newer: T::default(), start, turn: start }
    }

    /// The span that `now` is in.
    pub fn at(&mut self, now: Nanos) -> &mut T {
        let passed = now.since(self.turn);
        if passed >= self.span {
            let newer = std::mem::take(&mut self.newer);
            if passed < 2 * self.span {
                (self.older, self.start) = (newer, self.turn);
            } else {
                // Nothing happened in the whole span before.
                let span = u64::try_from(self.span.as_nanos()).unwrap_or(u64::MAX);
                (self.older, self.start) = (T::default(), Nanos(now.0.saturating_sub(span)));
            }
            self.turn = now;
        }
        &mut self.newer
    }

    pub fn spans(&self) -> [&T; 2] {
        [&self.older, &self.newer]
    }

    /// How long has been looked at by `now`.
    pub fn length(&self, now: Nanos) -> Duration {
        now.since(self.start)
    }

    /// A sum over both spans.
    pub fn sum(&self, of: impl Fn(&T) -> u32) -> u32 {
        self.spans().into_iter().map(of).fold(0, u32::saturating_add)
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
                (window.sum(|count| *count), window.length(at(minutes)).as_secs() / 60),
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
