//! What was lost, by reason, and as a number.

use std::collections::BTreeMap;

use finrace_logic::words;

words! {
    /// Why something that happened is missing from what is said.
    Reason {
        /// Too many closes by this host in two minutes: some were forgotten.
        ClosedFull = "closed_full",
        /// No room to remember how long a connection was idle.
        GapsFull = "gaps_full",
        /// This version does not understand the record.
        Malformed = "malformed",
        /// The ring of closes and reuses was full.
        MeasuresRingFull = "measures_ring_full",
        /// The ring of bytes at risk was full.
        RacesRingFull = "races_ring_full",
        /// No room to follow a connection.
        TrackerFull = "tracker_full",
        /// Too many losses at once to tell which of them both ends saw.
        ViewsFull = "views_full",
    }
}

impl Reason {
    /// Whether it counts among the missing records. Closes forgotten early do not: a busy server always has some,
    /// and no alert is about them.
    const fn counts(self) -> bool {
        match self {
            Self::ClosedFull => false,
            Self::GapsFull
            | Self::Malformed
            | Self::MeasuresRingFull
            | Self::RacesRingFull
            | Self::TrackerFull
            | Self::ViewsFull => true,
        }
    }
}

/// How much was lost.
pub type Lost = BTreeMap<Reason, u64>;

/// Number of missing records among those lost.
pub(crate) fn missing(lost: &Lost) -> u64 {
    lost.iter().filter(|(reason, _)| reason.counts()).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_misses_nothing() {
        let lost = [(Reason::RacesRingFull, 2), (Reason::ClosedFull, 1000), (Reason::ViewsFull, 1)];
        assert_eq!(missing(&lost.into()), 3);
    }
}
