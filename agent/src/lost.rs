//! What was lost, as a number.

/// Number of missing records among those lost. Closes forgotten early do not count: a busy server always has some,
/// and no alert is about them.
pub(crate) fn missing<'a>(lost: impl IntoIterator<Item = (&'a &'static str, &'a u64)>) -> u64 {
    let others = lost.into_iter().filter(|(reason, _)| **reason != "closed_full");
    others.map(|(_, count)| count).sum()
}
