//! The latest incidents, for anyone who wants to see what has just happened.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::SystemTime;

use finrace_logic::model::{Incident, Observation};
use finrace_logic::peer::{Peer, RowKey};

/// How many races are kept, and how many other incidents: a busy proxy may say farewell a hundred
/// times a second, and that must not push out a race.
const RACES: usize = 100;
const OTHERS: usize = 50;

type Timed = (SystemTime, Incident);

#[derive(Clone, Debug, Default)]
pub struct Incidents {
    races: VecDeque<Timed>,
    others: VecDeque<Timed>,
    /// Races since the start, including those no longer kept.
    total: u64,
}

impl Incidents {
    /// Adds the observation if it is an incident.
    pub fn add(&mut self, observation: Observation, time: SystemTime) {
        let Observation::Incident(incident) = observation else { return };
        let is_race = incident.class.is_race();
        self.total += u64::from(is_race);
        let (kept, most) =
            if is_race { (&mut self.races, RACES) } else { (&mut self.others, OTHERS) };
        if kept.len() == most {
            kept.pop_front();
        }
        kept.push_back((time, incident));
    }

    /// Requests lost since the start. Unlike the table's counts, which leave with their rows, it never
    /// decreases.
    pub(super) const fn total_races(&self) -> u64 {
        self.total
    }

    /// When a request was last lost.
    pub(super) fn last_race(&self) -> Option<SystemTime> {
        self.races.iter().map(|(time, _)| *time).max()
    }

    /// The newest first; races, other incidents, or both; of one peer, or of all.
    pub(super) fn newest(&self, which: Which, only: Option<(u32, Peer)>) -> Vec<&Timed> {
        let races = self.races.iter().filter(|_| which != Which::Others);
        let others = self.others.iter().filter(|_| which != Which::Races);
        let is_of = |incident: &Incident| {
            RowKey::of(&incident.origin).map(|key| (key.netns, key.peer)) == only
        };
        let mut all: Vec<_> = races
            .chain(others)
            .filter(|(_, incident)| {
                only.is_none()
                    || is_of(incident)
                    || incident.other_view.as_deref().is_some_and(is_of)
            })
            .collect();
        all.sort_by_key(|(time, _)| Reverse(*time));
        all
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Races,
    Others,
    Both,
}
