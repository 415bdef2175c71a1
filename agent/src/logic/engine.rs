//! The whole way from events to observations: follow, join, judge by what the peer is known for.

use super::classify::Settings;
use super::event::Event;
use super::join::Joiner;
use super::model::{Class, Incident, Nanos, Observation, Outcome, Role};
use super::peer::RowKey;
use super::table::Table;
use super::tracker::Tracker;

pub struct Engine {
    tracker: Tracker,
    joiner: Joiner,
    pub table: Table,
}

impl Engine {
    pub fn new(
        settings: Settings,
        listeners: impl IntoIterator<Item = (u32, u16)>,
        max_rows: usize,
    ) -> Self {
        Self {
            tracker: Tracker::new(settings, listeners),
            joiner: Joiner::default(),
            table: Table::new(max_rows, settings.threshold, settings.start),
        }
    }

    /// Takes in events in the order of their stamps, and that nothing before `until` is missing;
    /// gives back what they amount to.
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

    /// The end of the run: races wait no longer for the other end's view.
    pub fn finish(&mut self) -> Vec<Observation> {
        let mut out = Vec::new();
        self.joiner.expire(Nanos(u64::MAX), &mut out);
        self.settle(out)
    }

    fn settle(&mut self, mut out: Vec<Observation>) -> Vec<Observation> {
        out.retain_mut(|observation| {
            let is_kept = match observation {
                Observation::Incident(incident) => self.judge(incident),
                Observation::Close(_) | Observation::Reuse(_) | Observation::Dwell(_) => true,
            };
            if is_kept {
                self.table.add(observation);
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
    pub fn fill(&self) -> [(&'static str, usize, usize); 4] {
        self.tracker.fill()
    }

    /// What was not kept for lack of room.
    pub fn refused(&self) -> u64 {
        self.tracker.refused()
    }

    /// Closes of our own that were forgotten early.
    pub fn forgotten(&self) -> u64 {
        self.tracker.forgotten()
    }

    /// Names the cause, and decides what only a known timeout can; false if nothing happened
    /// after all.
    fn judge(&self, incident: &mut Incident) -> bool {
        let at_timeout = || {
            RowKey::of(&incident.origin)
                .zip(incident.gap)
                .is_some_and(|(key, gap)| self.table.is_at_timeout(&key, gap, incident.origin.rtt))
        };
        match (incident.class, incident.origin.role) {
            // A few bytes and our own close: as well a short answer to a last request.
            (Class::ReadAndClosed, _) if !at_timeout() => {
                if incident.outcome == Outcome::ClosedByUs {
                    return false;
                }
                incident.class = Class::PrematureClose;
            }
            // Our own stamps look the same when we abort a slow upload that we never answered.
            (Class::UnreadClose, Role::Server) if !at_timeout() => {
                incident.class = Class::Unknown;
            }
            _ => {}
        }
        incident.cause = self.table.cause(incident);
        if let Some(other) = &mut incident.other_view {
            other.cause = incident.cause;
        }
        true
    }
}
