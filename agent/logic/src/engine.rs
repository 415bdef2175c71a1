//! The whole way from events to observations: follow, join, judge by what is known of the peer.

use super::balance::{Balance, Stage};
use super::event::Event;
use super::join::Joiner;
use super::model::{Incident, Nanos, Observation};
use super::peer::RowKey;
use super::table::Table;
use super::tracker::Tracker;
use super::turn::{self, RunSettings};

pub struct Engine {
    tracker: Tracker,
    joiner: Joiner,
    pub table: Table,
    judged: u64,
    /// Nothing happened after all.
    dismissed: u64,
}

impl Engine {
    pub fn new(
        settings: RunSettings,
        listeners: impl IntoIterator<Item = (u32, u16)>,
        max_rows: usize,
    ) -> Self {
        Self {
            tracker: Tracker::new(settings, listeners),
            joiner: Joiner::default(),
            table: Table::new(max_rows, settings.threshold, settings.start),
            judged: 0,
            dismissed: 0,
        }
    }

    /// Takes in events in the order of their stamps, with nothing missing before `until`; gives back what
    /// they amount to.
    pub fn advance(&mut self, events: &[Event], until: Nanos) -> Vec<Observation> {
        for event in events {
            self.tracker.handle(event);
        }
        self.tracker.expire(until);
        let findings = self.tracker.take();
        let mut out = Vec::with_capacity(findings.len());
        for finding in findings {
            self.joiner.add(finding, &mut out);
        }
        self.joiner.expire(until, &mut out);
        self.settle(out)
    }

    /// The end of the run, at `now`: races no longer wait for their outcome, nor for the other end's view.
    pub fn finish(&mut self, now: Nanos) -> Vec<Observation> {
        self.tracker.finish(now);
        let mut out = Vec::new();
        for finding in self.tracker.take() {
            self.joiner.add(finding, &mut out);
        }
        self.joiner.expire(Nanos(u64::MAX), &mut out);
        self.settle(out)
    }

    fn settle(&mut self, mut out: Vec<Observation>) -> Vec<Observation> {
        self.judged += out.len() as u64;
        out.retain_mut(|observation| {
            let is_kept = match observation {
                Observation::Incident(incident) => self.judge(incident),
                Observation::Close(_)
                | Observation::Reuse(_)
                | Observation::Dwell(_)
                | Observation::Outcome(_) => true,
            };
            if is_kept {
                self.table.add(observation);
            } else {
                self.dismissed += 1;
            }
            is_kept
        });
        out
    }

    /// Records were lost in the ring of races.
    pub fn note_loss(&mut self, time: Nanos) {
        self.tracker.note_loss(time);
    }

    /// What is kept per connection: name, entries and limit.
    pub fn fill(&self) -> [(&'static str, usize, usize); 5] {
        self.tracker.fill()
    }

    /// What became of all that each stage took in.
    pub fn balances(&self) -> [Balance; 4] {
        let table = self.table.balance();
        let judge = Balance {
            taken: self.judged,
            passed: self.dismissed + self.table.added(),
            ..Balance::of(Stage::Judge)
        };
        [self.tracker.balance(), self.joiner.balance(), judge, table]
    }

    /// What was not kept for lack of room.
    pub fn refused(&self) -> u64 {
        self.tracker.refused()
    }

    /// Gaps, and resets of idle sockets, that were not kept for lack of room.
    pub fn gaps_refused(&self) -> u64 {
        self.tracker.gaps_refused()
    }

    /// Views of the server's end that were not told, since too many were told lately to know whether these had been.
    pub fn untold(&self) -> u64 {
        self.joiner.untold()
    }

    /// Closes of our own that were forgotten early.
    pub fn forgotten(&self) -> u64 {
        self.tracker.forgotten()
    }

    /// Names the cause, and decides what only a known timeout can; false if nothing happened
    /// after all.
    fn judge(&self, incident: &mut Incident) -> bool {
        let (key, rtt) = (RowKey::of(&incident.origin), incident.origin.rtt);
        let is_at_timeout =
            |silence| key.is_some_and(|key| self.table.is_at_timeout(&key, silence, rtt));
        if !turn::settle(incident, is_at_timeout) {
            return false;
        }
        incident.cause = self.table.cause(incident);
        if let Some(other) = &mut incident.other_view {
            other.cause = incident.cause;
        }
        true
    }
}
