//! A round of assessments: the verdict of each row worked out anew, one row at a time, so that the caller can stop
//! at any.

use super::Table;
use crate::model::Nanos;

/// A round under way.
#[derive(Debug)]
pub(super) struct Round {
    now: Nanos,
    /// Rows up to here are assessed; then, up to here say what their other end does, where that knows better.
    assessed: usize,
    settled: usize,
}

/// What was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A row was assessed; or it had to leave, since nothing was seen of it for long.
    Assessed,
    /// The verdict of the row in this slot is final.
    Settled(usize),
}

impl Round {
    /// Verdicts will be those as of `now`.
    pub(super) const fn begin(now: Nanos) -> Self {
        Self { now, assessed: 0, settled: 0 }
    }

    /// Does one row; none once all are done.
    pub(super) fn step(&mut self, table: &mut Table) -> Option<Step> {
        if let Some(row) = table.rows.get(self.assessed) {
            if table.is_stale(row.last_seen, self.now) {
                // Next is the one that moves into its slot.
                table.remove_row(self.assessed);
            } else {
                table.assess_row(self.assessed, self.now);
                self.assessed += 1;
            }
            return Some(Step::Assessed);
        }
        let slot = self.settled;
        (slot < table.rows.len()).then(|| {
            table.settle(slot);
            self.settled += 1;
            Step::Settled(slot)
        })
    }
}
