//! The programs' own counts, and how far they have come in the rings.

use anyhow::{Context as _, Result, bail};
use aya::maps::Map;
use finrace_ebpf::abi::{RECORD_SIZE, loss};
use finrace_logic::balance::{Balance, Stage};
use finrace_logic::merge::RINGS;

use super::mapping::Mapping;

/// What a record takes in a ring, with the ring's own header (`BPF_RINGBUF_HDR_SZ`, v5.10
/// kernel/bpf/ringbuf.c).
const IN_RING: u64 = (RECORD_SIZE + 8) as u64;
const _: () = assert!(RECORD_SIZE.is_multiple_of(8));

/// What became of the records of a ring since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFlow {
    /// Records that have found it full.
    pub full: u64,
    /// Places that programs reserved in it.
    pub reserved: u64,
    /// Those that we are through with.
    pub consumed: u64,
    /// Those that held a record.
    pub read: u64,
    /// Those that programs gave back without one; some may not be consumed yet.
    pub given_back: u64,
}

/// The programs' counts, mapped into this process.
pub struct Losses {
    counts: Mapping,
    positions: [Positions; RINGS],
}

/// How far a ring has been read and written, in bytes since the start.
struct Positions {
    consumer: Mapping,
    producer: Mapping,
}

impl Positions {
    /// The first two pages of a ring hold its positions (`struct bpf_ringbuf`, v5.10 kernel/bpf/ringbuf.c).
    fn map(ring: &Map) -> Result<Self> {
        let Map::RingBuf(data) = ring else { bail!("not a ring") };
        Ok(Self { consumer: Mapping::of(data, 0, 1)?, producer: Mapping::of(data, 1, 1)? })
    }
}

impl RingFlow {
    /// What became of all that programs had to say.
    pub fn balance(&self, stage: Stage) -> Balance {
        let Self { full, reserved, consumed, read, given_back } = *self;
        // A program counts what it gives back before it does so.
        let given_back = given_back.min(consumed.saturating_sub(read));
        Balance {
            stage,
            taken: reserved + full,
            passed: read + given_back,
            lost: full,
            pending: reserved.saturating_sub(consumed),
        }
    }
}

impl Losses {
    pub fn map(counts: &Map, rings: [&Map; RINGS]) -> Result<Self> {
        let Map::Array(data) = counts else { bail!("FR_LOSSES is not an array") };
        let counts = Mapping::of(data, 0, loss::COUNT as usize).context("FR_LOSSES")?;
        let [races, measures] = rings.map(Positions::map);
        Ok(Self {
            counts,
            positions: [races.context("FR_RACES")?, measures.context("FR_MEASURES")?],
        })
    }

    /// As of now, where so many records were read from each ring.
    pub fn flows(&self, read: [u64; RINGS]) -> [RingFlow; RINGS] {
        let indices = [
            [loss::RACES_FULL, loss::RACES_GIVEN_BACK],
            [loss::MEASURES_FULL, loss::MEASURES_GIVEN_BACK],
        ];
        let mut flows = [RingFlow::default(); RINGS];
        for (((flow, indices), ring), read) in
            flows.iter_mut().zip(indices).zip(&self.positions).zip(read)
        {
            let [full, given_back] = indices.map(|index| self.counts.word(index as usize));
            let consumed = ring.consumer.word(0) / IN_RING;
            let reserved = ring.producer.word(0) / IN_RING;
            *flow = RingFlow { full, reserved, consumed, read, given_back };
        }
        flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_no_loss() {
        let unaccounted = |flow: RingFlow| flow.balance(Stage::RacesRing).unaccounted();
        let flow = RingFlow { full: 7, reserved: 100, consumed: 90, read: 80, given_back: 10 };
        assert_eq!(unaccounted(flow), 0);
        assert_eq!(unaccounted(RingFlow { given_back: 15, ..flow }), 0, "five are to be consumed");
        assert_eq!(unaccounted(RingFlow { given_back: 9, ..flow }), 1, "one has gone missing");
        assert_eq!(
            unaccounted(RingFlow { read: 91, given_back: 0, ..flow }),
            -1,
            "one was read twice"
        );
        let Balance { taken, passed, lost, pending, .. } = flow.balance(Stage::RacesRing);
        assert_eq!([taken, passed, lost, pending], [107, 90, 7, 10]);
    }
}
