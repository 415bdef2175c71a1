//! What was lost, as a number.

/// The reason of closes that were forgotten early.
pub(crate) const CLOSED_FULL: &str = "closed_full";

/// Number of missing records among those lost. Closes forgotten early do not count: a busy server always has some,
/// and no alert is about them.
pub(crate) fn missing<'a>(lost: impl IntoIterator<Item = (&'a &'static str, &'a u64)>) -> u64 {
    let others = lost.into_iter().filter(|(reason, _)| **reason != CLOSED_FULL);
    others.map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_misses_nothing() {
        let lost = [("races_ring_full", 2), (CLOSED_FULL, 1000), ("views_full", 1)];
        assert_eq!(missing(lost.iter().map(|(reason, count)| (reason, count))), 3);
    }
}
