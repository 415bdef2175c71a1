//! The whole way from events to observations: follow, join, judge by what the peer is known for.

use super::event::Event;
use super::join::Joiner;
use super::model::{Class, Incident, Nanos, Observation};
use super::peer::RowKey;
use super::table::Table;
use super::tracker::{Settings, Tracker};

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
            table: Table::new(max_rows, settings.threshold),
        }
    }

    /// Takes in events in the order of their stamps, and that nothing before `until` is missing;
    /// gives back what they amount to.
    pub fn advance(&mut self, events: &[Event], until: Nanos) -> Vec<Observation> {
        for event in events {
            self.tracker.handle(event);
        }
        self.tracker.expire(until);
        let mut out = Vec::new();
        for finding in self.tracker.take() {
            self.joiner.add(finding, &mut out);
        }
        self.joiner.expire(until, &mut out);
        for observation in &mut out {
            if let Observation::Incident(incident) = observation {
                self.judge(incident);
            }
            self.table.add(observation);
        }
        out
    }

    /// Records were lost in the ring of races.
    pub fn note_loss(&mut self, time: Nanos) {
        self.tracker.note_loss(time);
    }

    /// Sockets and connections kept at the moment.
    pub fn tracked(&self) -> usize {
        self.tracker.len()
    }

    /// What was not kept for lack of room.
    pub fn refused(&self) -> u64 {
        self.tracker.refused()
    }

    fn judge(&self, incident: &mut Incident) {
        if incident.class == Class::ReadAndClosed {
            let at_timeout = RowKey::of(&incident.origin)
                .zip(incident.gap)
                .is_some_and(|(key, gap)| self.table.is_at_timeout(&key, gap, incident.origin.rtt));
            if !at_timeout {
                incident.class = Class::PrematureClose;
            }
        }
        incident.cause = self.table.cause(incident);
        if let Some(other) = &mut incident.other_view {
            other.cause = incident.cause;
        }
    }
}
