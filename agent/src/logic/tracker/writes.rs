//! Writes: after a gap, and after the peer's FIN.

use std::cmp::Reverse;
use std::time::Duration;

use finrace_ebpf::decide::FAREWELL_BYTES;

use super::{AtRisk, Followed, HOLD, Timer, Tracker};
use crate::logic::classify::{Ended, Started, StartedKind};
use crate::logic::event::{Event, SockKey, Tuple};
use crate::logic::model::{Evidence, Nanos, Observation, Origin, Reuse, Role};

/// Bytes of a request whose transfer may take a time of its own.
const LONG_REQUEST: u64 = 64 * 1024;

impl Tracker {
    pub(super) fn write_after_gap(&mut self, event: &Event) {
        let raw = &event.raw;
        let ticks = self.settings.ticks;
        let gap = ticks.between(raw.lrcvtime, raw.jiffies);
        let silence = ticks.between(raw.lsndtime, raw.lrcvtime);
        let role = event.role();
        let after_gap = gap > self.settings.threshold;
        let is_small = raw.size <= FAREWELL_BYTES;
        let kind = match role {
            Role::Client if after_gap => StartedKind::Gap(gap),
            Role::Server if after_gap && is_small => StartedKind::Gap(gap),
            Role::Server if !self.ends_silence(event, silence) => return,
            Role::Client | Role::Server => StartedKind::Reply(silence),
            Role::Unknown => return,
        };
        let started = Started {
            time: event.time,
            role,
            kind,
            bytes: raw.size,
            start: raw.write_seq,
            rcv_nxt: raw.rcv_nxt,
            owner: event.owner,
            process: event.process(),
        };
        let process = started.process;
        if started.is_small() {
            let due = event.time + HOLD + 2 * event.rtt();
            self.timers.push(Reverse((due, Timer::Held(event.time), event.key)));
        } else if let Some(gap) = started.reuse_gap() {
            self.say_reuse(event.time, event.origin(role, process), gap, raw.size);
        }
        if role == Role::Server && matches!(kind, StartedKind::Reply(_)) {
            self.answered.insert(event.key, event.time, raw.rcv_nxt);
        }
        if role == Role::Client || started.is_small() {
            self.started.insert(event.key, event.time, started);
        }
    }

    /// Whether a server's answer tells how long its client was silent: not at the first exchange,
    /// and not after a long request, whose own transfer is in that time.
    fn ends_silence(&self, event: &Event, silence: Duration) -> bool {
        let raw = &event.raw;
        let request = match self.answered.get(&event.key) {
            Some(before) => u64::from(raw.rcv_nxt.wrapping_sub(*before)),
            None => raw.bytes_received,
        };
        silence > self.settings.threshold && raw.data_segs_out != 0 && request <= LONG_REQUEST
    }

    pub(super) fn say_reuse(&mut self, time: Nanos, origin: Origin, gap: Duration, bytes: u32) {
        self.say(Observation::Reuse(Reuse { time, origin, gap, bytes }), None);
    }

    /// No close followed a small write: it was no farewell.
    pub(super) fn release(&mut self, key: SockKey, written: Nanos) {
        let Some(started) = self.started.get(&key).filter(|s| s.time == written) else { return };
        let Tuple { netns, local, remote } = key.tuple;
        let Started { owner, role, process, .. } = *started;
        let origin = Origin { netns, owner, role, local, remote, process, rtt: None };
        let (time, bytes, gap) = (started.time, started.bytes, started.reuse_gap());
        match gap {
            Some(gap) => self.say_reuse(time, origin, gap, bytes),
            None => drop(self.started.remove(&key)),
        }
    }

    /// A close followed a small write, and showed that it was no farewell.
    pub(super) fn release_early(&mut self, event: &Event, started: Option<&Started>) {
        if let Some(held) = started
            && held.is_small()
            && event.time.since(held.time) <= HOLD + 2 * event.rtt()
            && let Some(gap) = held.reuse_gap()
        {
            let origin = event.origin(held.role, held.process);
            self.say_reuse(held.time, origin, gap, held.bytes);
        }
    }

    pub(super) fn write_after_fin(&mut self, event: &Event) {
        let role = event.role();
        if role != Role::Client {
            return;
        }
        let settings = self.settings;
        let new = || Followed::new(event, role);
        let followed = self.followed.get_or_insert(event.key, event.time, new);
        if followed.done || followed.wrote.is_some() {
            return;
        }
        followed.wrote = Some(event.time);
        followed.process = event.process();
        if followed.at_risk == AtRisk::None {
            // A farewell with the FIN does not end the idle: our own last data counts then.
            let since = match followed.ended {
                Some(Ended { evidence: Evidence::UpperBound, .. }) => event.raw.lsndtime,
                _ => event.raw.lrcvtime,
            };
            let gap = settings.ticks.between(since, event.raw.jiffies);
            followed.at_risk = if gap > settings.threshold {
                AtRisk::Stale { gap: Some(gap) }
            } else {
                AtRisk::Continued
            };
        }
        self.await_outcome(event);
    }
}
