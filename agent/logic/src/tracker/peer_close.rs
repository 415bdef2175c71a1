//! From the peer's FIN to `->CLOSE`: what became of our bytes.

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::state;

use super::after_reset::Doubt;
use super::{Finding, Followed, Lost, OUTCOME, Timer, Tracker};
use crate::event::{Event, Kind, SockKey};
use crate::model::{
    Class, Dwell, Evidence, How, Incident, Nanos, Observation, Origin, Outcome, Read, Role,
};
use crate::turn::{self, Asked, AtRisk, Ending, Ruling};

impl Tracker {
    pub(super) fn peer_fin(&mut self, event: &Event) {
        let role = event.role();
        let (asked, served) = self.take_asked(event, role);
        let at = turn::peer_fin(event, self.known(event, role, asked.as_ref()));
        if at.ended.evidence == Evidence::AfterData {
            self.release_early(event, asked.as_ref());
        }
        let process = asked.as_ref().and_then(|asked| asked.process);
        let origin = event.origin(role, process);
        self.say_close(event, origin, How::Fin, at.ended, (asked.as_ref(), served));
        let is_pending = self.settle_pending(event, Outcome::Closed);
        if let Some(told) = at.told.filter(|_| !is_pending) {
            self.say_at_fin(event, origin, told, asked.as_ref());
        }
        let is_waiting = matches!(at.at_risk, AtRisk::Request { .. } | AtRisk::Probe);
        if is_waiting {
            self.await_outcome(event);
        }
        // What is reported at the FIN is not reported again at its end.
        let done = is_pending || (at.told.is_some() && at.at_risk == AtRisk::Continued);
        let before = asked.filter(|asked| is_waiting && asked.start == event.raw.snd_una);
        let followed = Followed {
            ended: Some(at.ended),
            at_risk: at.at_risk,
            start: event.raw.snd_una,
            segs_out: before.map_or(event.raw.data_segs_out, |asked| asked.segs_out),
            process,
            done,
            ..Followed::new(event, role)
        };
        self.followed.insert(event.key, event.time, followed);
    }

    /// Sets the timer for what has no outcome yet.
    pub(super) fn await_outcome(&mut self, event: &Event) {
        self.set_timer(event.time + OUTCOME + 8 * event.rtt(), Timer::Outcome, event.key);
    }

    fn say_at_fin(&mut self, event: &Event, origin: Origin, told: Ruling, asked: Option<&Asked>) {
        let incident = Incident {
            gap: told.gap,
            bytes: Some(event.unacked()).filter(|bytes| *bytes != 0),
            certainty: told.certainty,
            read: told.read,
            doubt: told.doubt,
            ..Incident::new(event.time, origin, told.class, Outcome::Closed)
        };
        let lost = asked.map(|asked| Lost {
            start: asked.start,
            end: event.raw.write_seq,
            peer: event.raw.rcv_nxt,
        });
        self.say(Observation::Incident(incident), lost);
    }

    pub(super) fn last_ack(&mut self, event: &Event) {
        let Some(mut followed) = self.followed.remove(&event.key) else { return };
        let process = event.process();
        if followed.saw_fin {
            let dwell = Dwell {
                time: event.time,
                origin: event.origin(followed.role, process),
                dwell: event.time.since(followed.fin.time),
                written: event.raw.write_seq != followed.fin.raw.write_seq,
            };
            self.say(Observation::Dwell(dwell), None);
        }
        self.note_written(&mut followed, event);
        followed.process = followed.process.or(process);
        if followed.at_risk == AtRisk::None || followed.done {
            // A server may still hear that its client did not wait for the answer.
            followed.done |= followed.role != Role::Server;
            self.followed.insert(event.key, event.time, followed);
            return;
        }
        // We close; what we know of the peer's end by now, we knew when we closed.
        let has_noticed = Some(event.has_read_fin());
        let outcome = if self.is_farewell(&followed, event, has_noticed) {
            Outcome::ClosedByUs
        } else if event.unacked() == 0 {
            Outcome::Acked
        } else {
            followed.has_noticed = has_noticed;
            self.await_outcome(event);
            self.followed.insert(event.key, event.time, followed);
            return;
        };
        self.end_followed(followed, event, outcome, has_noticed);
    }

    pub(super) fn close(&mut self, event: &Event) {
        let Some(mut followed) = self.followed.remove(&event.key) else { return };
        if let Some(reset) = followed.waits.take() {
            let origin = reset.origin(followed.role, followed.process);
            self.await_end(&reset, origin, Doubt::Past(Box::new(followed)));
            return;
        }
        self.note_written(&mut followed, event);
        let outcome = if event.unacked() == 0 { Outcome::Acked } else { Outcome::ClosedByUs };
        let has_noticed = followed.has_noticed.or(Some(event.has_read_fin()));
        self.end_followed(followed, event, outcome, has_noticed);
    }

    pub(super) fn reset_after_fin(&mut self, event: &Event) {
        let Some(mut followed) = self.followed.remove(&event.key) else {
            self.reset_of_unfollowed(event);
            return;
        };
        if followed.role == Role::Server {
            self.say_client_gone(&followed, event);
            self.followed.insert(event.key, event.time, Followed { done: true, ..followed });
            return;
        }
        self.note_written(&mut followed, event);
        let has_noticed = followed.has_noticed;
        if !followed.done
            && has_noticed.is_none()
            && self.settings.sees_ends
            && self.told(&followed, event, Outcome::Reset, None).is_none()
        {
            // What it was shows when its owner lets go of it: whether it looked first or not.
            followed.waits = Some(*event);
            self.followed.insert(event.key, event.time, followed);
            return;
        }
        let has_noticed = has_noticed.or(Some(followed.is_older_than_a_close(event)));
        self.end_followed(followed, event, Outcome::Reset, has_noticed);
    }

    /// Our answer met an RST: its client had left.
    fn say_client_gone(&mut self, followed: &Followed, event: &Event) {
        let serves = |bytes| self.habits.serves(&event.key, bytes);
        let told = turn::client_gone(event, &followed.fin, self.settings.ticks, serves);
        if let Some(told) = told.filter(|_| followed.saw_fin && !followed.done) {
            let origin = event.origin(followed.role, followed.process);
            let bytes = Some(event.unacked().saturating_sub(event.has(flag::FIN_SENT).into()));
            let incident = Incident {
                bytes,
                certainty: told.certainty,
                ..Incident::new(event.time, origin, told.class, Outcome::Reset)
            };
            self.say(Observation::Incident(incident), None);
        }
    }

    /// No outcome has come until `now`.
    pub(super) fn give_up(&mut self, key: SockKey, now: Nanos) {
        let is_known = now > self.lost_until;
        let outcome = if is_known { Outcome::Unanswered } else { Outcome::Unknown };
        self.tell_late(key, now, outcome);
    }

    /// The run ends before the outcome has come.
    pub(super) fn tell_unknown(&mut self, key: SockKey, now: Nanos) {
        self.tell_late(key, now, Outcome::Unknown);
    }

    fn tell_late(&mut self, key: SockKey, now: Nanos, outcome: Outcome) {
        let Some(followed) = self.followed.remove(&key) else { return };
        let fin_sent = followed.has_noticed.is_some();
        let last = Event { time: now.max(followed.fin.time), ..followed.fin };
        let time = followed.fin.time;
        // Its owner has not let go of it: it was no farewell.
        if !followed.done
            && (followed.at_risk != AtRisk::Continued || outcome == Outcome::Unanswered)
        {
            let noticed = if fin_sent { followed.has_noticed } else { Some(true) };
            if let Some(finding) = self.finding(&followed, &last, outcome, noticed) {
                self.findings.push(finding);
            }
        }
        self.followed.insert(key, time, Followed { done: true, ..followed });
    }

    /// RST after a FIN that was not seen (before the start, or lost): only stamps are left.
    fn reset_of_unfollowed(&mut self, event: &Event) {
        let raw = &event.raw;
        let bytes = event.unacked().saturating_sub(event.has(flag::FIN_SENT).into());
        let Some(told) = turn::reset_of_unfollowed(event, bytes, &self.settings) else { return };
        let after_fin = told.class == Class::StaleWrite;
        let incident = Incident {
            gap: told.gap,
            fin_age: after_fin.then(|| self.settings.ticks.between(raw.rcv_tstamp, raw.lsndtime)),
            bytes: Some(bytes),
            certainty: told.certainty,
            ..Incident::new(
                event.time,
                event.origin(Role::Client, None),
                told.class,
                Outcome::Reset,
            )
        };
        let lost =
            Lost { start: raw.snd_una, end: raw.snd_una.wrapping_add(bytes), peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// Bytes written after the FIN that no hook saw: the sequence numbers show them.
    fn note_written(&self, followed: &mut Followed, event: &Event) {
        if followed.role != Role::Client
            || followed.at_risk != AtRisk::None
            || !followed.saw_fin
            || followed.written(event) == 0
        {
            return;
        }
        let known = self.known(event, followed.role, None);
        followed.at_risk = turn::unseen_write(event, &followed.fin, followed.ended, known);
        followed.start = followed.fin.raw.write_seq;
    }

    fn is_farewell(&self, followed: &Followed, event: &Event, has_noticed: Option<bool>) -> bool {
        let told = self.told(followed, event, Outcome::ClosedByUs, has_noticed);
        told.is_some_and(|told| matches!(told.class, Class::Farewell | Class::StaleProbe))
    }

    /// What it was, if that can be told by now.
    fn told(
        &self,
        followed: &Followed,
        event: &Event,
        outcome: Outcome,
        has_noticed: Option<bool>,
    ) -> Option<Ruling> {
        let bytes = followed.bytes(event);
        let read = if outcome == Outcome::Reset {
            turn::read_by(event, followed.start, followed.segs_out)
        } else {
            Read::Unknown
        };
        let end = Ending {
            bytes,
            outcome,
            has_noticed,
            is_habit: self.habits.asks(&event.key, bytes),
            is_known: event.time > self.lost_until,
            read,
        };
        turn::outcome(followed.at_risk, end)
    }

    /// Its story, with the record that ends it.
    pub(super) fn end_followed(
        &mut self,
        followed: Followed,
        event: &Event,
        outcome: Outcome,
        has_noticed: Option<bool>,
    ) {
        if !followed.done
            && followed.at_risk != AtRisk::None
            && let Some(finding) = self.finding(&followed, event, outcome, has_noticed)
        {
            self.findings.push(finding);
        }
        // Until ->CLOSE, later records find that all is told.
        if event.raw.new_state != state::CLOSE && event.kind != Kind::Destroyed {
            self.followed.insert(event.key, followed.fin.time, Followed { done: true, ..followed });
        }
    }

    fn finding(
        &self,
        followed: &Followed,
        event: &Event,
        outcome: Outcome,
        has_noticed: Option<bool>,
    ) -> Option<Finding> {
        if followed.at_risk == AtRisk::None {
            return None;
        }
        let told = self.told(followed, event, outcome, has_noticed)?;
        let fin = &followed.fin.raw;
        let ticks = self.settings.ticks;
        let fin_age = match followed.wrote {
            None => None,
            Some(wrote) if followed.saw_fin => Some(wrote.since(followed.fin.time)),
            Some(_) => Some(ticks.between(fin.rcv_tstamp, fin.jiffies)),
        };
        let bytes = followed.bytes(event);
        let incident = Incident {
            gap: told.gap,
            fin_age,
            idle: followed.ended.map(|ended| ended.idle),
            bytes: Some(bytes).filter(|bytes| *bytes != 0),
            certainty: told.certainty,
            read: told.read,
            ..Incident::new(
                event.time,
                event.origin(followed.role, followed.process),
                told.class,
                outcome,
            )
        };
        let end = followed.start.wrapping_add(bytes);
        let lost = Some(Lost { start: followed.start, end, peer: fin.rcv_nxt });
        Some(Finding { observation: Observation::Incident(incident), lost })
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
            start: event.raw.write_seq,
            segs_out: event.raw.data_segs_out,
            process: None,
            waits: None,
            has_noticed: None,
            done: false,
        }
    }

    /// Bytes written after the FIN, our own FIN not counted.
    fn written(&self, event: &Event) -> u32 {
        let fin_sent = u32::from(event.has(flag::FIN_SENT));
        event.raw.write_seq.wrapping_sub(self.fin.raw.write_seq).wrapping_sub(fin_sent)
    }

    /// Bytes at risk, likewise.
    fn bytes(&self, event: &Event) -> u32 {
        let fin_sent = u32::from(event.has(flag::FIN_SENT));
        event.raw.write_seq.wrapping_sub(self.start).wrapping_sub(fin_sent)
    }

    /// Where no hook sees sockets end: an RST so soon after the write that no close can have come before
    /// it does not tell a request from last words.
    fn is_older_than_a_close(&self, event: &Event) -> bool {
        self.wrote.is_none_or(|wrote| event.time.since(wrote) > turn::BEFORE_CLOSE)
    }
}
