//! The worst rows, for a page that has room for a few.
//!
//! As for a scrape, rows are gone through one by one, so that the caller can stop at any row. Rows that are
//! shown are copied: they are few.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::round::{Round, Step};
use super::{Row, Table, Told};
use crate::model::Nanos;
use crate::peer::{Peer, RowKey};
use crate::verdict::State;

/// The worst first: by verdict, races, races to be expected (in millionths an hour), closes.
pub type Badness = (State, Reverse<(u64, u64, u64)>);

/// What a page shows of a table.
#[derive(Debug)]
pub struct Picture {
    pub now: Nanos,
    /// The worst first, as many as were asked for; or the one that was asked for, if it is there.
    pub rows: Vec<Told>,
    /// All problems by verdict: rows, except for those whose other end has the same.
    pub states: BTreeMap<State, usize>,
    pub rows_now: usize,
    pub threshold: Duration,
    pub max_rows: usize,
    pub evictions: u64,
}

/// A survey under way.
#[derive(Debug)]
pub struct Survey {
    limit: usize,
    only: Option<(u32, Peer)>,
    round: Round,
    worst: BTreeSet<(Badness, RowKey)>,
    picture: Picture,
}

impl Survey {
    /// Covers the worst rows, or only those of one peer in one network namespace. Verdicts are worked out
    /// anew as of `now`.
    pub fn begin(table: &Table, limit: usize, only: Option<(u32, Peer)>, now: Nanos) -> Self {
        let picture = Picture {
            now,
            rows: Vec::new(),
            states: BTreeMap::new(),
            rows_now: 0,
            threshold: table.threshold,
            max_rows: table.max_rows,
            evictions: table.evictions,
        };
        Self { limit, only, round: Round::begin(now), worst: BTreeSet::new(), picture }
    }

    /// Does one row; false once all are done.
    pub fn step(&mut self, table: &mut Table) -> bool {
        if let Some(step) = self.round.step(table) {
            if let Step::Settled(slot) = step
                && let Some(row) = table.rows.get(slot)
            {
                self.note(table.told(row));
            }
            return true;
        }
        let Some((_, key)) = self.worst.pop_first() else { return false };
        // It may have left since.
        self.picture.rows.extend(table.row(&key).map(|row| table.told(row).cloned()));
        true
    }

    fn note(&mut self, Told { row, other_end, .. }: Told<&Row>) {
        let badness = row.stats.badness();
        if other_end.is_none() {
            *self.picture.states.entry(badness.0).or_default() += 1;
        }
        if self.only.is_none_or(|only| only == (row.key.netns, row.key.peer)) {
            self.worst.insert((badness, row.key));
            if self.worst.len() > self.limit {
                self.worst.pop_last();
            }
        }
    }

    /// Everything as it was seen.
    pub fn finish(mut self, table: &mut Table) -> Picture {
        while self.step(table) {}
        self.picture.rows_now = table.rows.len();
        self.picture
    }
}
