//! Joins the two ends' views of one failure, when both ends are on this host: it counts once.
//!
//! NAT changes addresses and keeps sequence numbers, so these join; addresses only break ties.

use std::collections::VecDeque;
use std::time::Duration;

use finrace_ebpf::decide::distance;

use super::model::{Incident, Nanos, Observation, Role};
use super::tracker::{Finding, Lost};
use super::turn;

/// How long a client's race waits for the server's view of it, beside two round trips.
const CLIENT_WAIT: Duration = Duration::from_millis(300);

/// How long a server's race waits for the client's, beside ten: its outcome takes longer to be known.
const SERVER_WAIT: Duration = Duration::from_secs(3);

/// How long what was told still takes in the other end's view that comes late: Apache lingers for up to
/// 30 s.
const REMEMBER: Duration = Duration::from_secs(35);

/// Most races that wait at a time; beyond, the oldest is let go unjoined.
const LIMIT: usize = 4_096;

/// Races that wait for the other end's view.
#[derive(Debug, Default)]
pub struct Joiner {
    waiting: VecDeque<(Nanos, Lost, Incident)>,
    told: VecDeque<(Nanos, Role, Lost)>,
}

impl Joiner {
    /// Takes in a finding; races are held back, all else passes at once. What a client says of its own
    /// bytes is the last word on them, also that they were no request.
    pub fn add(&mut self, finding: Finding, out: &mut Vec<Observation>) {
        let Finding { observation, lost } = finding;
        let (incident, lost) = match (observation, lost) {
            (Observation::Incident(incident), Some(lost)) => (incident, lost),
            (other, _) => {
                out.push(other);
                return;
            }
        };
        let role = incident.origin.role;
        let is_told = |(_, other, told): &(Nanos, Role, Lost)| *other != role && same(*told, lost);
        if self.told.iter().any(is_told) {
            return;
        }
        let partner = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, (_, other, view))| same(*other, lost) && view.origin.role != role)
            .max_by_key(|(_, (_, _, view))| is_mirror(view, &incident))
            .map(|(index, _)| index);
        if let Some((due, other_lost, other)) = partner.and_then(|at| self.waiting.remove(at)) {
            let (mut client, server, lost, server_lost) = if role == Role::Client {
                (incident, other, lost, other_lost)
            } else {
                (other, incident, other_lost, lost)
            };
            if turn::reconcile(&mut client, &server, lost.start == server_lost.start) {
                client.other_view = Some(Box::new(server));
            }
            self.tell(client, lost, due, out);
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
        if self.waiting.len() >= LIMIT
            && let Some((due, lost, incident)) = self.waiting.pop_front()
        {
            self.tell(incident, lost, due, out);
        }
        self.waiting.push_back((incident.time + wait, lost, incident));
    }

    /// Lets go what has waited long enough at `now`.
    pub fn expire(&mut self, now: Nanos, out: &mut Vec<Observation>) {
        let mut index = 0;
        while let Some((due, ..)) = self.waiting.get(index) {
            if *due > now {
                index += 1;
            } else if let Some((due, lost, incident)) = self.waiting.remove(index) {
                self.tell(incident, lost, due, out);
            }
        }
        while self.told.front().is_some_and(|(until, ..)| *until <= now) {
            self.told.pop_front();
        }
    }

    fn tell(&mut self, incident: Incident, lost: Lost, now: Nanos, out: &mut Vec<Observation>) {
        if incident.other_view.is_none() {
            if self.told.len() >= LIMIT {
                self.told.pop_front();
            }
            self.told.push_back((now + REMEMBER, incident.origin.role, lost));
        }
        out.push(Observation::Incident(incident));
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

    /// Adds the findings, waits, and prints what came out: role and class, the other view after.
    fn check(findings: Vec<Finding>, expected: &str) {
        let mut joiner = Joiner::default();
        let mut out = Vec::new();
        for finding in findings {
            joiner.expire(finding.observation.time(), &mut out);
            joiner.add(finding, &mut out);
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
        // Others' numbers, or too late.
        let other = Lost { start: 100, end: 300, peer: 900 };
        check(vec![server(10, other), client(11)], "server late_request; client stale_write");
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
        // Of the rest of an upload it is not known where the request began.
        let unread = race(Role::Server, Class::UnreadClose, 10, lost);
        check(vec![unread, reset(None, 11)], "client mid_stream_reset");
        check(vec![client(10), client(10)], "client stale_write; client stale_write");
    }
}
