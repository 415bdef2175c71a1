//! Which side closes idle connections first at present: the order that everything is about.

use std::time::Duration;

use super::model::{Closer, Nanos};

/// Which side made the latest closes, with a limited share for each second: a reload that closes a thousand
/// connections is not a thousand times as telling as one timeout.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    /// The latest is the lowest bit; set for the peer.
    closers: u128,
    count: u32,
    /// Closes in a row by one side, with no race since; and when it began.
    row: Option<(Closer, u32, Nanos)>,
    second: u64,
    /// Closes of either side in that second.
    in_second: [u8; 2],
}

impl Order {
    const SIZE: u32 = u128::BITS;
    const PER_SECOND: u8 = 4;

    pub fn add(&mut self, time: Nanos, closer: Closer) {
        let second = time.0 / 1_000_000_000;
        if second != self.second {
            (self.second, self.in_second) = (second, [0; 2]);
        }
        let [by_peer, by_us] = &mut self.in_second;
        let (count, bit) = match closer {
            Closer::Peer | Closer::Middlebox => (by_peer, 1),
            Closer::Local => (by_us, 0),
        };
        if *count == Self::PER_SECOND {
            return;
        }
        *count += 1;
        self.closers = self.closers << 1 | bit;
        self.count = Self::SIZE.min(self.count + 1);
        let row = self.row.filter(|(other, ..)| *other == closer).unwrap_or((closer, 0, time));
        self.row = Some((closer, row.1.saturating_add(1), row.2));
    }

    /// A request was lost: whatever row there was did not prevent it.
    pub fn note_race(&mut self) {
        self.row = None;
    }

    /// How many of the latest closes were by that side.
    pub const fn by(&self, closer: Closer) -> u32 {
        let by_peer = self.closers.count_ones();
        match closer {
            Closer::Peer | Closer::Middlebox => by_peer,
            Closer::Local => self.count - by_peer,
        }
    }

    /// How many of the latest closes in a row were all by that side, with no race since.
    pub fn in_a_row(&self, closer: Closer) -> u32 {
        self.row.filter(|(other, ..)| *other == closer).map_or(0, |(_, row, _)| row)
    }

    /// How long that row has lasted by `now`.
    pub fn row_length(&self, closer: Closer, now: Nanos) -> Duration {
        let row = self.row.filter(|(other, ..)| *other == closer);
        row.map_or(Duration::ZERO, |(.., since)| now.since(since))
    }

    /// The other side's share of what came before that row, as far as it is known.
    pub fn share_before_row(&self, closer: Closer) -> Option<f64> {
        let row = self.in_a_row(closer).min(self.count);
        let other = match closer {
            Closer::Peer | Closer::Middlebox => Closer::Local,
            Closer::Local => Closer::Peer,
        };
        (self.count > row).then(|| f64::from(self.by(other)) / f64::from(self.count - row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(closes: impl IntoIterator<Item = (u64, Closer)>) -> Order {
        let mut order = Order::default();
        closes.into_iter().for_each(|(second, closer)| {
            order.add(Nanos(second * 1_000_000_000), closer);
        });
        order
    }

    #[test]
    fn the_latest_count() {
        let order = of((0..200).map(|i| (i, if i < 190 { Closer::Peer } else { Closer::Local })));
        assert_eq!((order.by(Closer::Peer), order.by(Closer::Local)), (118, 10));
        assert_eq!((order.in_a_row(Closer::Local), order.in_a_row(Closer::Peer)), (10, 0));
        assert_eq!(order.share_before_row(Closer::Local), Some(1.0));
        let none = Order::default();
        assert_eq!(
            (none.by(Closer::Peer), none.by(Closer::Local), none.in_a_row(Closer::Peer)),
            (0, 0, 0)
        );
        assert_eq!(of([(1, Closer::Local); 3]).share_before_row(Closer::Local), None);
    }

    #[test]
    fn a_moment_counts_as_one() {
        let order = of([(7, Closer::Peer); 1000].into_iter().chain([(7, Closer::Local); 2]));
        assert_eq!((order.by(Closer::Peer), order.by(Closer::Local)), (4, 2));
    }

    #[test]
    fn a_race_ends_a_row() {
        let mut order = of((0..30).map(|second| (second, Closer::Local)));
        order.note_race();
        assert_eq!(order.in_a_row(Closer::Local), 0);
        order.add(Nanos(40_000_000_000), Closer::Local);
        assert_eq!(order.in_a_row(Closer::Local), 1);
    }
}
