//! From the peer's FIN to `->CLOSE`: what became of our bytes.

use std::cmp::Reverse;
use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FAREWELL_BYTES, distance, state};

use super::{AtRisk, Followed, Lost, OUTCOME, Timer, Tracker};
use crate::logic::classify::{self, AT_ONCE, AtFin, BEFORE_CLOSE, Ended, Settings};
use crate::logic::event::{Event, Kind, SockKey, Ticks};
use crate::logic::model::{
    Class, Dwell, Evidence, How, Incident, Nanos, Observation, Origin, Outcome, Role,
};

impl Tracker {
    pub(super) fn peer_fin(&mut self, event: &Event) {
        let role = event.role();
        let started = self.take_started(&event.key);
        let (at_fin, ended) = classify::peer_fin(event, self.known(event, role, started.as_ref()));
        if ended.evidence == Evidence::AfterData {
            self.release_early(event, started.as_ref());
        }
        let process = started.as_ref().and_then(|s| s.process);
        let origin = event.origin(role, process);
        self.say_close(event, origin, How::Fin, ended);
        let at_risk = match at_fin {
            AtFin::Nothing => AtRisk::None,
            AtFin::Crossed { gap } => AtRisk::Crossed { gap },
            AtFin::Early => {
                self.say_at_fin(event, origin, Class::EarlyResponse, None);
                AtRisk::Continued
            }
            AtFin::Unanswered { gap, at_once } => {
                // At the peer's timeout or not: the engine knows its estimate.
                let class = if at_once { Class::ReadAndClosed } else { Class::PrematureClose };
                self.say_at_fin(event, origin, class, gap);
                AtRisk::None
            }
        };
        let followed = self.follow(event, role);
        followed.ended = Some(ended);
        followed.at_risk = at_risk;
        followed.process = process;
        // What was reported at the FIN is not reported again at its end.
        followed.done = at_fin == AtFin::Early;
        if matches!(at_risk, AtRisk::Crossed { .. }) {
            let due = event.time + OUTCOME + 8 * event.rtt();
            self.timers.push(Reverse((due, Timer::Outcome, event.key)));
        }
    }

    pub(super) fn say_at_fin(
        &mut self,
        event: &Event,
        origin: Origin,
        class: Class,
        gap: Option<Duration>,
    ) {
        let incident = Incident {
            gap,
            bytes: Some(event.unacked()).filter(|bytes| *bytes != 0),
            ..Incident::new(event.time, origin, class, Outcome::Closed)
        };
        self.say(Observation::Incident(incident), None);
    }

    /// The entry of this socket; made from `event` if its FIN was not seen.
    pub(super) fn follow(&mut self, event: &Event, role: Role) -> &mut Followed {
        let saw_fin = event.kind == Kind::State && event.raw.new_state == state::CLOSE_WAIT;
        if saw_fin {
            self.followed.remove(&event.key);
        }
        self.followed.get_or_insert(event.key, event.time, || Followed {
            fin: *event,
            saw_fin,
            role,
            ended: None,
            at_risk: AtRisk::None,
            wrote: None,
            process: None,
            done: false,
        })
    }

    pub(super) fn last_ack(&mut self, event: &Event) {
        let Some(followed) = self.followed.get(&event.key) else { return };
        if followed.saw_fin {
            let process = event.process();
            let dwell = Dwell {
                time: event.time,
                origin: event.origin(followed.role, process),
                dwell: event.time.since(followed.fin.time),
                written: event.raw.write_seq != followed.fin.raw.write_seq,
            };
            self.say(Observation::Dwell(dwell), None);
        }
        self.note_written(event);
        let Some(followed) = self.followed.get_mut(&event.key) else { return };
        if followed.process.is_none() {
            followed.process = event.process();
        }
        if followed.at_risk == AtRisk::None || followed.done {
            followed.done = true;
        } else if is_farewell(followed, event, self.settings.ticks) {
            self.resolve_as(event.key, event, Class::Farewell, Outcome::ClosedByUs);
        } else if event.unacked() == 0 {
            self.resolve(event.key, event.time, Some(event), Outcome::Acked);
        } else {
            let due = event.time + OUTCOME + 8 * event.rtt();
            self.timers.push(Reverse((due, Timer::Outcome, event.key)));
        }
    }

    /// Bytes written after the FIN that no hook saw: the sequence numbers tell them.
    pub(super) fn note_written(&mut self, event: &Event) {
        let Settings { ticks, threshold, .. } = self.settings;
        let Some(followed) = self.followed.get_mut(&event.key) else { return };
        if followed.role != Role::Client
            || followed.at_risk != AtRisk::None
            || !followed.saw_fin
            || written(followed, event) == 0
        {
            return;
        }
        let fin = &followed.fin.raw;
        let under_way = distance(fin.lsndtime, fin.lrcvtime) > 0;
        let since = match followed.ended {
            Some(Ended { evidence: Evidence::UpperBound, .. }) => fin.lsndtime,
            _ => fin.lrcvtime,
        };
        let gap = ticks.between(since, event.raw.lsndtime);
        followed.at_risk = if under_way || gap <= threshold {
            AtRisk::Continued
        } else {
            AtRisk::Stale { gap: Some(gap) }
        };
    }

    pub(super) fn close(&mut self, event: &Event) {
        self.note_written(event);
        if let Some(followed) = self.followed.get(&event.key)
            && !followed.done
            && followed.at_risk != AtRisk::None
        {
            let outcome = if event.unacked() == 0 { Outcome::Acked } else { Outcome::ClosedByUs };
            if is_farewell(followed, event, self.settings.ticks) {
                self.resolve_as(event.key, event, Class::Farewell, outcome);
            } else {
                self.resolve(event.key, event.time, Some(event), outcome);
            }
        }
        self.followed.remove(&event.key);
    }

    pub(super) fn reset_after_fin(&mut self, event: &Event) {
        self.note_written(event);
        let Some(followed) = self.followed.get(&event.key) else {
            self.reset_of_unfollowed(event);
            return;
        };
        if followed.at_risk == AtRisk::None || followed.done {
            return;
        }
        if is_farewell(followed, event, self.settings.ticks) {
            self.resolve_as(event.key, event, Class::Farewell, Outcome::Reset);
        } else {
            self.resolve(event.key, event.time, Some(event), Outcome::Reset);
        }
    }

    /// RST after a FIN that was not seen (before the start, or lost): only stamps are left.
    pub(super) fn reset_of_unfollowed(&mut self, event: &Event) {
        let raw = &event.raw;
        let ticks = self.settings.ticks;
        let gap = ticks.between(raw.lrcvtime, raw.lsndtime);
        let bytes = event.unacked().saturating_sub(event.has(flag::FIN_SENT).into());
        if event.role() != Role::Client || bytes <= FAREWELL_BYTES || gap <= self.settings.threshold
        {
            return;
        }
        let after_fin = distance(raw.lsndtime, raw.rcv_tstamp) > 0;
        let class = if after_fin { Class::StaleWrite } else { Class::FinCrossed };
        let incident = Incident {
            gap: Some(gap),
            fin_age: after_fin.then(|| ticks.between(raw.rcv_tstamp, raw.lsndtime)),
            bytes: Some(bytes),
            ..Incident::new(event.time, event.origin(Role::Client, None), class, Outcome::Reset)
        };
        let lost =
            Lost { start: raw.snd_una, end: raw.snd_una.wrapping_add(bytes), peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// Tells the story of a followed socket, by what was at risk.
    pub(super) fn resolve(
        &mut self,
        key: SockKey,
        now: Nanos,
        event: Option<&Event>,
        outcome: Outcome,
    ) {
        let Some(followed) = self.followed.get(&key) else { return };
        if followed.done {
            return;
        }
        let class = match (followed.at_risk, outcome) {
            (AtRisk::None, _) => return,
            (AtRisk::Crossed { .. }, _) => Class::FinCrossed,
            (AtRisk::Stale { .. }, _) => Class::StaleWrite,
            (AtRisk::Continued, Outcome::Acked) if now > self.lost_until => Class::HalfClose,
            (AtRisk::Continued, Outcome::Reset) => Class::EarlyResponse,
            (AtRisk::Continued, _) => Class::Unknown,
        };
        let last = event.copied().unwrap_or(Event { time: now, ..followed.fin });
        self.resolve_as(key, &last, class, outcome);
    }

    pub(super) fn resolve_as(
        &mut self,
        key: SockKey,
        event: &Event,
        class: Class,
        outcome: Outcome,
    ) {
        let Some(followed) = self.followed.get_mut(&key) else { return };
        followed.done = true;
        let fin = followed.fin.raw;
        let (gap, start) = match followed.at_risk {
            AtRisk::Crossed { gap } => (Some(gap), fin.snd_una),
            AtRisk::Stale { gap } => (gap, fin.write_seq),
            AtRisk::None | AtRisk::Continued => (None, fin.write_seq),
        };
        let fin_age = match (followed.at_risk, followed.wrote) {
            (AtRisk::Crossed { .. }, _) | (_, None) => None,
            (_, Some(wrote)) if followed.saw_fin => Some(wrote.since(followed.fin.time)),
            (_, Some(_)) => Some(self.settings.ticks.between(fin.rcv_tstamp, fin.jiffies)),
        };
        let fin_sent = u32::from(event.has(flag::FIN_SENT));
        let bytes = event.raw.write_seq.wrapping_sub(start).wrapping_sub(fin_sent);
        let incident = Incident {
            gap,
            fin_age,
            idle: followed.ended.map(|ended| ended.idle),
            bytes: Some(bytes).filter(|bytes| *bytes != 0),
            ..Incident::new(
                event.time,
                event.origin(followed.role, followed.process),
                class,
                outcome,
            )
        };
        let end = start.wrapping_add(bytes);
        let lost = class.is_race().then_some(Lost { start, end, peer: fin.rcv_nxt });
        self.say(Observation::Incident(incident), lost);
    }
}

/// Bytes written after the FIN, our own FIN not counted.
fn written(followed: &Followed, event: &Event) -> u32 {
    let fin_sent = u32::from(event.has(flag::FIN_SENT));
    event.raw.write_seq.wrapping_sub(followed.fin.raw.write_seq).wrapping_sub(fin_sent)
}

/// At most 96 bytes after the FIN (or crossing it), and our close, or the end of the connection,
/// at once. An RST so soon that no close can have come before it looks the same.
fn is_farewell(followed: &Followed, event: &Event, ticks: Ticks) -> bool {
    let after = written(followed, event);
    let bytes = match followed.at_risk {
        AtRisk::None => return false,
        AtRisk::Crossed { .. } => after.wrapping_add(followed.fin.unacked()),
        AtRisk::Stale { .. } | AtRisk::Continued => after,
    };
    let since = match followed.wrote {
        Some(wrote) if event.kind == Kind::ResetReceived => event.time.since(wrote),
        // The clock may have ticked just in between.
        _ => ticks.between(event.raw.lsndtime, event.raw.jiffies).saturating_sub(ticks.duration(1)),
    };
    let limit = if event.kind == Kind::ResetReceived { BEFORE_CLOSE } else { AT_ONCE };
    bytes <= FAREWELL_BYTES && since <= limit
}
