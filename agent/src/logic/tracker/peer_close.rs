//! From the peer's FIN to `->CLOSE`: what became of our bytes.

use std::cmp::Reverse;
use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FAREWELL_BYTES, distance, state};

use super::{AtRisk, Finding, Followed, Lost, OUTCOME, Timer, Tracker};
use crate::logic::classify::{self, AT_ONCE, AtFin, BEFORE_CLOSE, Ended, Settings};
use crate::logic::event::{Event, Kind, SockKey, Ticks};
use crate::logic::model::{
    Class, Dwell, Evidence, How, Incident, Nanos, Observation, Origin, Outcome, Role,
};

impl Tracker {
    pub(super) fn peer_fin(&mut self, event: &Event) {
        let role = event.role();
        let started = self.take_started(&event.key, role);
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
        if matches!(at_risk, AtRisk::Crossed { .. }) {
            self.await_outcome(event);
        }
        // What is reported at the FIN is not reported again at its end.
        let done = at_fin == AtFin::Early;
        let followed =
            Followed { ended: Some(ended), at_risk, process, done, ..Followed::new(event, role) };
        self.followed.insert(event.key, event.time, followed);
    }

    /// Sets the timer for what has no outcome yet.
    pub(super) fn await_outcome(&mut self, event: &Event) {
        let due = event.time + OUTCOME + 8 * event.rtt();
        self.timers.push(Reverse((due, Timer::Outcome, event.key)));
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

    pub(super) fn last_ack(&mut self, event: &Event) {
        let Some(followed) = self.followed.get_mut(&event.key) else { return };
        let process = event.process();
        if followed.saw_fin {
            let dwell = Dwell {
                time: event.time,
                origin: event.origin(followed.role, process),
                dwell: event.time.since(followed.fin.time),
                written: event.raw.write_seq != followed.fin.raw.write_seq,
            };
            self.findings.push(Finding { observation: Observation::Dwell(dwell), lost: None });
        }
        followed.note_written(event, &self.settings);
        followed.process = followed.process.or(process);
        if followed.at_risk == AtRisk::None || followed.done {
            followed.done = true;
            return;
        }
        let outcome = if followed.is_farewell(event, self.settings.ticks) {
            Outcome::ClosedByUs
        } else if event.unacked() == 0 {
            Outcome::Acked
        } else {
            self.await_outcome(event);
            return;
        };
        self.findings.extend(followed.end(event, outcome, &self.settings, self.lost_until));
    }

    pub(super) fn close(&mut self, event: &Event) {
        let Some(mut followed) = self.followed.remove(&event.key) else { return };
        followed.note_written(event, &self.settings);
        let outcome = if event.unacked() == 0 { Outcome::Acked } else { Outcome::ClosedByUs };
        self.findings.extend(followed.end(event, outcome, &self.settings, self.lost_until));
    }

    pub(super) fn reset_after_fin(&mut self, event: &Event) {
        let Some(followed) = self.followed.get_mut(&event.key) else {
            self.reset_of_unfollowed(event);
            return;
        };
        followed.note_written(event, &self.settings);
        let outcome = Outcome::Reset;
        self.findings.extend(followed.end(event, outcome, &self.settings, self.lost_until));
    }

    /// No outcome has come until `now`.
    pub(super) fn give_up(&mut self, key: SockKey, now: Nanos) {
        let Some(followed) = self.followed.get_mut(&key) else { return };
        let is_known = now > self.lost_until;
        let outcome = if is_known { Outcome::Unanswered } else { Outcome::Unknown };
        let last = Event { time: now, ..followed.fin };
        let class = followed.class(outcome, is_known);
        self.findings.extend(followed.tell(&last, class, outcome, self.settings.ticks));
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
}

impl Followed {
    /// As of the first record past the FIN; that of the FIN itself, if it was seen.
    pub(super) fn new(event: &Event, role: Role) -> Self {
        Self {
            fin: *event,
            saw_fin: event.kind == Kind::State && event.raw.new_state == state::CLOSE_WAIT,
            role,
            ended: None,
            at_risk: AtRisk::None,
            wrote: None,
            process: None,
            done: false,
        }
    }

    /// Bytes written after the FIN, our own FIN not counted.
    fn written(&self, event: &Event) -> u32 {
        let fin_sent = u32::from(event.has(flag::FIN_SENT));
        event.raw.write_seq.wrapping_sub(self.fin.raw.write_seq).wrapping_sub(fin_sent)
    }

    /// Bytes written after the FIN that no hook saw: the sequence numbers tell them.
    fn note_written(&mut self, event: &Event, settings: &Settings) {
        let Settings { ticks, threshold, .. } = *settings;
        if self.role != Role::Client
            || self.at_risk != AtRisk::None
            || !self.saw_fin
            || self.written(event) == 0
        {
            return;
        }
        let fin = &self.fin.raw;
        let under_way = distance(fin.lsndtime, fin.lrcvtime) > 0;
        let since = match self.ended {
            Some(Ended { evidence: Evidence::UpperBound, .. }) => fin.lsndtime,
            _ => fin.lrcvtime,
        };
        let gap = ticks.between(since, event.raw.lsndtime);
        self.at_risk = if under_way || gap <= threshold {
            AtRisk::Continued
        } else {
            AtRisk::Stale { gap: Some(gap) }
        };
    }

    /// At most 96 bytes after the FIN (or crossing it), and our close, or the end of the
    /// connection, at once. An RST so soon that no close can have come before it looks the same.
    fn is_farewell(&self, event: &Event, ticks: Ticks) -> bool {
        let after = self.written(event);
        let bytes = match self.at_risk {
            AtRisk::None => return false,
            AtRisk::Crossed { .. } => after.wrapping_add(self.fin.unacked()),
            AtRisk::Stale { .. } | AtRisk::Continued => after,
        };
        let since = match self.wrote {
            Some(wrote) if event.kind == Kind::ResetReceived => event.time.since(wrote),
            // The clock may have ticked just in between.
            _ => ticks
                .between(event.raw.lsndtime, event.raw.jiffies)
                .saturating_sub(ticks.duration(1)),
        };
        let limit = if event.kind == Kind::ResetReceived { BEFORE_CLOSE } else { AT_ONCE };
        bytes <= FAREWELL_BYTES && since <= limit
    }

    /// What it was, by what was at risk; `is_known` if nothing can be missing.
    fn class(&self, outcome: Outcome, is_known: bool) -> Class {
        match (self.at_risk, outcome) {
            (AtRisk::Crossed { .. }, _) => Class::FinCrossed,
            (AtRisk::Stale { .. }, _) => Class::StaleWrite,
            (AtRisk::Continued, Outcome::Acked) if is_known => Class::HalfClose,
            (AtRisk::Continued, Outcome::Reset) => Class::EarlyResponse,
            (AtRisk::Continued | AtRisk::None, _) => Class::Unknown,
        }
    }

    /// Its story, with the record that ends it.
    fn end(
        &mut self,
        event: &Event,
        outcome: Outcome,
        settings: &Settings,
        lost_until: Nanos,
    ) -> Option<Finding> {
        let class = if self.is_farewell(event, settings.ticks) {
            Class::Farewell
        } else {
            self.class(outcome, event.time > lost_until)
        };
        self.tell(event, class, outcome, settings.ticks)
    }

    /// Its story, once, and only if anything was at risk.
    fn tell(
        &mut self,
        event: &Event,
        class: Class,
        outcome: Outcome,
        ticks: Ticks,
    ) -> Option<Finding> {
        let fin = &self.fin.raw;
        let (gap, start) = match self.at_risk {
            _ if self.done => return None,
            AtRisk::None => return None,
            AtRisk::Crossed { gap } => (Some(gap), fin.snd_una),
            AtRisk::Stale { gap } => (gap, fin.write_seq),
            AtRisk::Continued => (None, fin.write_seq),
        };
        self.done = true;
        let fin_age = match (self.at_risk, self.wrote) {
            (AtRisk::Crossed { .. }, _) | (_, None) => None,
            (_, Some(wrote)) if self.saw_fin => Some(wrote.since(self.fin.time)),
            (_, Some(_)) => Some(ticks.between(fin.rcv_tstamp, fin.jiffies)),
        };
        let fin_sent = u32::from(event.has(flag::FIN_SENT));
        let bytes = event.raw.write_seq.wrapping_sub(start).wrapping_sub(fin_sent);
        let incident = Incident {
            gap,
            fin_age,
            idle: self.ended.map(|ended| ended.idle),
            bytes: Some(bytes).filter(|bytes| *bytes != 0),
            ..Incident::new(event.time, event.origin(self.role, self.process), class, outcome)
        };
        let end = start.wrapping_add(bytes);
        let lost = class.is_race().then_some(Lost { start, end, peer: fin.rcv_nxt });
        Some(Finding { observation: Observation::Incident(incident), lost })
    }
}
