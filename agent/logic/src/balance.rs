//! What became of all that a stage took in: it was passed on or is done with, it was lost, or it waits there. What
//! is none of these went missing without being counted.

use crate::words;

words! {
    /// The stages between the kernel and what is said, in this order.
    Stage {
        /// Records of bytes at risk, from the programs to the reader.
        RacesRing = "races_ring",
        /// Records of closes and reuses, likewise.
        MeasuresRing = "measures_ring",
        /// Records, decoded and brought into order.
        Reader = "reader",
        /// What is remembered of connections.
        Tracker = "tracker",
        /// Findings, of which the two ends' views of one failure are joined.
        Joiner = "joiner",
        /// Observations whose cause is named.
        Judge = "judge",
        /// Observations, counted by peer.
        Table = "table",
        /// What the table has counted, as a scrape shows it.
        Exposition = "exposition",
    }
}

/// What became of all that a stage took in, in the unit of the stage: records, connections, observations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    pub stage: Stage,
    pub taken: u64,
    /// Handed on, or done with.
    pub passed: u64,
    /// Missing, and counted by reason.
    pub lost: u64,
    pub pending: u64,
}

impl Balance {
    /// Of a stage that has taken nothing yet.
    pub const fn of(stage: Stage) -> Self {
        Self { stage, taken: 0, passed: 0, lost: 0, pending: 0 }
    }

    /// The sum of both, under the name of this one.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            stage: self.stage,
            taken: self.taken + other.taken,
            passed: self.passed + other.passed,
            lost: self.lost + other.lost,
            pending: self.pending + other.pending,
        }
    }

    /// What went missing uncounted; negative where something was counted twice.
    pub fn unaccounted(&self) -> i128 {
        let Self { taken, passed, lost, pending, .. } = *self;
        i128::from(taken) - i128::from(passed) - i128::from(lost) - i128::from(pending)
    }
}
