//! Joins the two ends' views of one failure, when both ends are on this host: it counts once.
//!
//! NAT changes addresses and keeps sequence numbers, so these join; addresses only break ties.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use finrace_ebpf::decide::distance;
use foldhash::HashMap;

use super::balance::{Balance, Stage};
use super::model::{Incident, Nanos, Observation, Role};
use super::tracker::{Finding, Lost};
use super::turn;

/// How long a client's race waits for the server's view of it, in addition to two round trips.
const CLIENT_WAIT: Duration = Duration::from_millis(300);

/// How long a server's race waits for the client's, in addition to ten: its outcome takes longer to become known.
const SERVER_WAIT: Duration = Duration::from_secs(3);

/// How long a race, once told, still absorbs a late view from the other end: Apache lingers for up to 30 s.
const REMEMBER: Duration = Duration::from_secs(35);

/// The most races that wait at a time; beyond that, the one due first is let go unjoined.
const WAITING: usize = 16_384;

/// The most races that are remembered once told.
const TOLD: usize = 32_768;

/// Races that wait for the other end's view.
#[derive(Debug, Default)]
pub struct Joiner {
    /// Ordered by when they are due.
    waiting: BTreeMap<Id, (Lost, Incident)>,
    waiting_by: ByLost<Id>,
    /// Each with the time until which it is remembered.
    told: VecDeque<(Nanos, Role, Lost)>,
    told_by: ByLost<Role>,
    added: u64,
    taken: u64,
    /// What was told, and views that were told already or joined the other end's.
    passed: u64,
    /// Something that should have been remembered until this time was forgotten.
    gap_until: Nanos,
    untold: u64,
}

/// When it is due, and its number.
type Id = (Nanos, u64);

/// By the first and by the last byte of what was lost: each view knows one of them at least.
#[derive(Debug)]
struct ByLost<T>([HashMap<u32, Vec<(Lost, T)>>; 2]);

impl<T> Default for ByLost<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}

impl<T: Copy + PartialEq> ByLost<T> {
    fn insert(&mut self, lost: Lost, value: T) {
        for (map, byte) in self.0.iter_mut().zip([lost.start, lost.end]) {
            map.entry(byte).or_default().push((lost, value));
        }
    }

    fn remove(&mut self, lost: Lost, value: T) {
        for (map, byte) in self.0.iter_mut().zip([lost.start, lost.end]) {
            let Some(values) = map.get_mut(&byte) else { continue };
            if let Some(index) = values.iter().position(|entry| *entry == (lost, value)) {
                values.swap_remove(index);
            }
            if values.is_empty() {
                map.remove(&byte);
            }
        }
    }

    /// Whatever lost the same bytes; possibly twice.
    fn same(&self, lost: Lost) -> impl Iterator<Item = T> {
        let found = self.0.iter().zip([lost.start, lost.end]);
        let found = found.filter_map(|(map, byte)| map.get(&byte)).flatten();
        found.filter(move |(other, _)| same(*other, lost)).map(|(_, value)| *value)
    }
}

impl Joiner {
    /// Takes in a finding; races are held back, everything else passes at once. What a client says of its own
    /// bytes is the last word on them, even that they were no request.
    pub fn add(&mut self, finding: Finding, out: &mut Vec<Observation>) {
        let Finding { observation, lost } = finding;
        self.taken += 1;
        let (incident, lost) = match (observation, lost) {
            (Observation::Incident(incident), Some(lost)) => (incident, lost),
            (other, _) => {
                self.passed += 1;
                out.push(other);
                return;
            }
        };
        let role = incident.origin.role;
        if self.told_by.same(lost).any(|other| other != role) {
            self.passed += 1;
            return;
        }
        let partners = self.waiting_by.same(lost).filter_map(|id| {
            let (_, view) = self.waiting.get(&id)?;
            (view.origin.role != role).then(|| (is_mirror(view, &incident), id))
        });
        let partner = partners.max_by_key(|(is_mirror, _)| *is_mirror).map(|(_, id)| id);
        if let Some((id, other_lost, other)) = partner.and_then(|id| self.take(id)) {
            let (mut client, server, lost, server_lost) = if role == Role::Client {
                (incident, other, lost, other_lost)
            } else {
                (other, incident, other_lost, lost)
            };
            if turn::reconcile(&mut client, &server, lost.start == server_lost.start) {
                client.other_view = Some(Box::new(server));
            }
            self.passed += 1;
            self.tell(client, lost, id.0, out);
            return;
        }
        if role == Role::Client && !incident.class.is_race() {
            let now = incident.time;
            self.tell(incident, lost, now, out);
            return;
        }
        let rtt = incident.origin.rtt.unwrap_or_default();
        let wait =
            if role == Role::Client { CLIENT_WAIT + 2 * rtt } else { SERVER_WAIT + 10 * rtt };
        if self.waiting.len() >= WAITING
            && let Some((id, ..)) = self.waiting.first_key_value()
        {
            let id = *id;
            self.let_go(id, incident.time, out);
        }
        self.added += 1;
        let id = (incident.time + wait, self.added);
        self.waiting_by.insert(lost, id);
        self.waiting.insert(id, (lost, incident));
    }

    /// Lets go of what has waited long enough by `now`.
    pub fn expire(&mut self, now: Nanos, out: &mut Vec<Observation>) {
        while let Some((id, _)) = self.waiting.first_key_value()
            && id.0 <= now
        {
            let id = *id;
            self.let_go(id, id.0, out);
        }
        while self.told.front().is_some_and(|(until, ..)| *until <= now) {
            self.forget();
        }
    }

    /// Views of the server's end that were not told, because it was no longer known whether the client's end
    /// had already told of the same race.
    pub const fn untold(&self) -> u64 {
        self.untold
    }

    /// What became of all findings.
    pub fn balance(&self) -> Balance {
        let Self { taken, passed, untold, waiting, .. } = self;
        Balance {
            stage: Stage::Joiner,
            taken: *taken,
            passed: *passed,
            lost: *untold,
            pending: waiting.len() as u64,
        }
    }

    fn take(&mut self, id: Id) -> Option<(Id, Lost, Incident)> {
        let (lost, incident) = self.waiting.remove(&id)?;
        self.waiting_by.remove(lost, id);
        Some((id, lost, incident))
    }

    /// Nothing joined it.
    fn let_go(&mut self, id: Id, now: Nanos, out: &mut Vec<Observation>) {
        let Some((_, lost, incident)) = self.take(id) else { return };
        if incident.origin.role == Role::Server && now < self.gap_until {
            self.untold += 1;
        } else {
            self.tell(incident, lost, now, out);
        }
    }

    fn tell(&mut self, incident: Incident, lost: Lost, now: Nanos, out: &mut Vec<Observation>) {
        if incident.other_view.is_none() {
            if self.told.len() >= TOLD
                && let Some(until) = self.forget()
            {
                self.gap_until = self.gap_until.max(until);
            }
            let role = incident.origin.role;
            self.told.push_back((now + REMEMBER, role, lost));
            self.told_by.insert(lost, role);
        }
        self.passed += 1;
        out.push(Observation::Incident(incident));
    }

    /// Forgets the one that was told first; returns the time until which it should have been remembered.
    fn forget(&mut self) -> Option<Nanos> {
        let (until, role, lost) = self.told.pop_front()?;
        self.told_by.remove(lost, role);
        Some(until)
    }
}

/// Whether both views lost the same request. One side may know its first byte alone (a segment
/// that met no socket), the other its last (a reset after it was acknowledged); and a segment sent
/// before the FIN came acknowledges one less than the socket that got it.
fn same(a: Lost, b: Lost) -> bool {
    (a.start == b.start || a.end == b.end) && distance(a.peer, b.peer).abs() <= 1
}

fn is_mirror(a: &Incident, b: &Incident) -> bool {
    a.origin.local == b.origin.remote && a.origin.remote == b.origin.local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Class, Endpoint, Origin, Outcome};
    use crate::owner::Owner;

    fn race(role: Role, class: Class, millis: u64, lost: Lost) -> Finding {
        let origin = Origin {
            netns: 1,
            owner: Owner::UNKNOWN,
            role,
            local: Endpoint::default(),
            remote: Endpoint::default(),
            process: None,
            rtt: None,
        };
        let time = Nanos(millis * 1_000_000);
        let incident =
            Incident { cause: Cause::Idle, ..Incident::new(time, origin, class, Outcome::Reset) };
        Finding { observation: Observation::Incident(incident), lost: Some(lost) }
    }

    /// Both ends tell of each race, the server's end late: more than are remembered, in too short a time.
    #[test]
    fn what_was_forgotten_is_not_told_twice() {
        let lost = |n: u32| Lost { start: n * 1000, end: n * 1000 + 200, peer: 501 };
        for count in [TOLD as u32 - 10, TOLD as u32 + 20_000] {
            let mut joiner = Joiner::default();
            let mut out = Vec::new();
            for n in 0..count {
                let at = u64::from(n / 10);
                joiner.expire(Nanos(at * 1_000_000), &mut out);
                joiner.add(race(Role::Client, Class::StaleWrite, at, lost(n)), &mut out);
            }
            for n in 0..count {
                let at = 8_000 + u64::from(n / 10);
                joiner.expire(Nanos(at * 1_000_000), &mut out);
                joiner.add(race(Role::Server, Class::LateRequest, at, lost(n)), &mut out);
            }
            joiner.expire(Nanos(120_000_000_000), &mut out);
            let forgotten = u64::from(count).saturating_sub(TOLD as u64);
            assert_eq!((out.len(), joiner.untold()), (count as usize, forgotten));
            assert!(joiner.waiting_by.0.iter().all(HashMap::is_empty));
            let balance = joiner.balance();
            assert_eq!((balance.unaccounted(), balance.lost), (0, forgotten));
            assert_eq!(balance.taken, 2 * u64::from(count));
            assert!(joiner.told_by.0.iter().all(HashMap::is_empty));
            // Long after, a view of the server's end alone is told once more.
            joiner.add(race(Role::Server, Class::LateRequest, 200_000, lost(1)), &mut out);
            joiner.expire(Nanos(300_000_000_000), &mut out);
            assert_eq!(out.len(), count as usize + 1);
        }
    }

    /// Adds the findings, waits, and prints what came out: role and class, the other view after.
    fn check(findings: Vec<Finding>, expected: &str) {
        let mut joiner = Joiner::default();
        let mut out = Vec::new();
        for finding in findings {
            joiner.expire(finding.observation.time(), &mut out);
            joiner.add(finding, &mut out);
            assert_eq!(joiner.balance().unaccounted(), 0);
        }
        joiner.expire(Nanos(60_000_000_000), &mut out);
        let view = |i: &Incident| format!("{} {}", i.origin.role, i.class);
        let lines: Vec<_> = out
            .iter()
            .filter_map(|observation| match observation {
                Observation::Incident(i) => Some(match &i.other_view {
                    Some(other) => format!("{} + {}", view(i), view(other)),
                    None => view(i),
                }),
                Observation::Close(_)
                | Observation::Reuse(_)
                | Observation::Dwell(_)
                | Observation::Outcome(_) => None,
            })
            .collect();
        assert_eq!(lines.join("; "), expected);
    }

    #[test]
    fn two_views_of_one_failure_are_one_race() {
        let lost = Lost { start: 100, end: 300, peer: 501 };
        let client = |at| race(Role::Client, Class::StaleWrite, at, lost);
        let server = |at, lost| race(Role::Server, Class::LateRequest, at, lost);
        let joined = "client stale_write + server late_request";
        check(vec![server(10, lost), client(11)], joined);
        check(vec![client(10), server(11, lost)], joined);
        check(vec![server(10, lost), client(2_500)], joined);
        let crossed = Lost { start: 100, end: 200, peer: 500 };
        check(vec![server(10, crossed), client(11)], joined);
        let acked = Lost { start: 300, end: 300, peer: 501 };
        check(vec![server(10, acked), client(11)], joined);
        // Told already: counted on the client's row only.
        check(vec![client(10), server(1_000, lost)], "client stale_write");
        // Different sequence numbers, or too late.
        let other = Lost { start: 100, end: 300, peer: 900 };
        check(vec![server(10, other), client(11)], "client stale_write; server late_request");
        // Told already, on the server's row: counted there only.
        check(vec![server(10, lost), client(3_500)], "server late_request");
        // What the client says of its own bytes is the last word on them.
        let farewell = |at| race(Role::Client, Class::Farewell, at, lost);
        check(vec![server(10, lost), farewell(11)], "client farewell");
        check(vec![farewell(10), server(11, lost)], "client farewell");
        let reset = |gap, at| {
            let mut finding = race(Role::Client, Class::MidStreamReset, at, lost);
            if let Observation::Incident(incident) = &mut finding.observation {
                incident.gap = gap;
            }
            finding
        };
        let mid_stream = |at| reset(Some(Duration::from_secs(1)), at);
        let unread = race(Role::Server, Class::UnreadClose, 10, lost);
        check(vec![unread, mid_stream(11)], "client unread_close + server unread_close");
        check(vec![mid_stream(11)], "client mid_stream_reset");
        // For the rest of an upload, it is not known where the request began.
        let unread = race(Role::Server, Class::UnreadClose, 10, lost);
        check(vec![unread, reset(None, 11)], "client mid_stream_reset");
        check(vec![client(10), client(10)], "client stale_write; client stale_write");
    }
}
