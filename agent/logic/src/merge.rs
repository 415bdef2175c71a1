//! Brings the events of both rings into the order of their stamps.
//!
//! A ring is nearly in order already: a record is stamped before its place is reserved, so those of
//! two CPUs may have changed places.

use std::collections::VecDeque;

use super::event::Event;
use super::model::Nanos;

/// The number of rings.
pub const RINGS: usize = 2;

/// Room that is kept for the next time; what a burst took is given back.
const KEPT: usize = 1_024;

/// Events that wait until their neighbours must have come, each ring's in order.
#[derive(Debug, Default)]
pub struct Merge([VecDeque<Event>; RINGS]);

impl Merge {
    /// Takes in the next event of this ring.
    pub fn add(&mut self, ring: usize, event: Event) {
        let Some(events) = self.0.get_mut(ring) else { return };
        let later = events.iter().rev().take_while(|other| other.time > event.time).count();
        match later {
            0 => events.push_back(event),
            _ => events.insert(events.len() - later, event),
        }
    }

    /// How many events wait.
    pub fn waiting(&self) -> usize {
        self.0.iter().map(VecDeque::len).sum()
    }

    /// Takes out, in order, what is stamped up to `until`; of two with the same stamp, the first ring's comes first.
    pub fn take(&mut self, until: Nanos) -> Vec<Event> {
        let [a, b] = &mut self.0;
        let count = |events: &VecDeque<Event>| events.partition_point(|event| event.time <= until);
        let (mut of_a, mut of_b) = (count(a), count(b));
        let mut taken = Vec::with_capacity(of_a + of_b);
        while of_a != 0 && of_b != 0 {
            let is_a = a.front().map(|event| event.time) <= b.front().map(|event| event.time);
            let (events, left) = if is_a { (&mut *a, &mut of_a) } else { (&mut *b, &mut of_b) };
            taken.extend(events.pop_front());
            *left -= 1;
        }
        for (events, left) in [(a, of_a), (b, of_b)] {
            taken.extend(events.drain(..left));
            if events.len() < KEPT {
                events.shrink_to(KEPT);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decode;
    use finrace_ebpf::abi::{RECORD_SIZE, kind};

    fn event(time: u64, sk: u64) -> Event {
        let mut bytes = [0; RECORD_SIZE];
        bytes[0..8].copy_from_slice(&time.to_ne_bytes());
        bytes[8..16].copy_from_slice(&sk.to_ne_bytes());
        bytes[std::mem::offset_of!(finrace_ebpf::abi::Record, kind)] = kind::STATE;
        decode(&bytes).unwrap()
    }

    /// Adds times to both rings, and compares times and rings of what is taken up to each.
    fn check(rings: [&[u64]; 2], untils: &[u64], expected: &[&[(u64, u64)]]) {
        let mut merge = Merge::default();
        for (ring, times) in rings.into_iter().enumerate() {
            for time in times {
                merge.add(ring, event(*time, ring as u64));
            }
        }
        let taken = untils.iter().map(|until| {
            let events = merge.take(Nanos(*until));
            events.iter().map(|event| (event.time.0, event.key.sk)).collect::<Vec<_>>()
        });
        assert_eq!(taken.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn events_come_in_the_order_of_their_stamps() {
        check([&[1, 3, 5], &[2, 4]], &[9], &[&[(1, 0), (2, 1), (3, 0), (4, 1), (5, 0)]]);
        check([&[3, 1, 2], &[]], &[9], &[&[(1, 0), (2, 0), (3, 0)]]);
        check([&[], &[5, 4]], &[3, 4, 5, 6], &[&[], &[(4, 1)], &[(5, 1)], &[]]);
        check([&[2, 2], &[2, 1]], &[2], &[&[(1, 1), (2, 0), (2, 0), (2, 1)]]);
    }

    #[test]
    fn nothing_is_lost_or_doubled() {
        let mut merge = Merge::default();
        let mut taken = Vec::new();
        // 7919 and 10,000 have no divisor in common, so every number comes once.
        for number in 0..10_000_u64 {
            let jitter = number * 7_919 % 10_000 % 37;
            merge.add((number % 3 == 0).into(), event(number * 10 + jitter, number));
            if number % 100 == 0 {
                taken.extend(merge.take(Nanos((number * 10).saturating_sub(40))));
            }
        }
        taken.extend(merge.take(Nanos(u64::MAX)));
        assert!(taken.is_sorted_by_key(|event| event.time));
        let mut numbers: Vec<_> = taken.iter().map(|event| event.key.sk).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..10_000));
    }

    #[test]
    fn the_room_of_a_burst_is_given_back() {
        let mut merge = Merge::default();
        (0..50_000).for_each(|time| merge.add(1, event(time, 0)));
        assert_eq!(merge.take(Nanos(49_990)).len(), 49_991);
        assert!(merge.0[1].capacity() <= 2 * KEPT, "{}", merge.0[1].capacity());
        assert_eq!(merge.take(Nanos(50_000)).len(), 9);
    }
}
