//! Writes: after a gap, and after the peer's FIN.

use std::time::Duration;

use super::{Followed, HOLD, Served, Timer, Tracker};
use crate::event::{Event, SockKey, Tuple, Word};
use crate::model::{Nanos, Observation, Origin, Reuse, Role};
use crate::turn::{self, Asked, AskedKind, AtRisk, Stamps};

/// Bytes of a request whose own transfer may take a while.
const LONG_REQUEST: u64 = 64 * 1024;

impl Tracker {
    pub(super) fn write_after_gap(&mut self, event: &Event) {
        let raw = &event.raw;
        let ticks = self.settings.ticks;
        let gap = Stamps::of(event, ticks).idle();
        let silence = ticks.between(raw.lsndtime, raw.lrcvtime);
        let role = event.role();
        // Words of a server that nobody asked for: last words, or words that may be.
        let is_farewell = event.word() == Word::Farewell;
        // Both spoke within a tick: an acknowledgement alone came last, so our answer was the last word.
        let is_tie = raw.lsndtime == raw.lrcvtime;
        let spoke_last = silence.is_zero() && !(is_tie && event.last_heard() != 0);
        let may_part = is_farewell || (event.word() == Word::Sealed && spoke_last);
        let kind = match role {
            Role::Client if gap > self.settings.threshold => AskedKind::Gap(gap),
            Role::Server if gap > self.settings.threshold && may_part => AskedKind::Gap(gap),
            Role::Server if !self.ends_silence(event, silence) => {
                self.note_push(event, gap, silence);
                return;
            }
            Role::Client | Role::Server => AskedKind::Reply(silence),
            Role::Unknown => return,
        };
        if let Some(before) = self.asked.remove(&event.key) {
            self.habits.learn(&event.key, &before, event);
        }
        let asked = Asked::of(event, role, kind, silence, ticks);
        let process = asked.process;
        if role == Role::Server && matches!(kind, AskedKind::Reply(_)) && !is_farewell {
            let before = self.answered.get(&event.key);
            let request = before.map(|before| raw.rcv_nxt.wrapping_sub(before.rcv_nxt));
            if let Some(bytes) = request {
                self.habits.learn_served(&event.key, bytes, asked.word);
            }
            let served = Served::new(raw.rcv_nxt, silence, !asked.word.may_ask());
            self.answered.insert(event.key, event.time, served);
        }
        // A write that says it asks nothing is no reuse; a server's answer is.
        if role == Role::Client && asked.is_doubtful() {
            let due = event.time + HOLD + 2 * event.rtt();
            self.set_timer(due, Timer::Held(event.time), event.key);
        } else if let Some(gap) = asked.reuse_gap().filter(|_| asked.word.may_ask()) {
            self.say_reuse(&asked, event.origin(role, process), gap);
        }
        if role == Role::Client || may_part {
            self.asked.insert(event.key, event.time, asked);
        }
    }

    /// Whether a server's answer tells how long its client was silent: not at the first exchange,
    /// and not after a long request, whose own transfer is in that time.
    fn ends_silence(&self, event: &Event, silence: Duration) -> bool {
        let raw = &event.raw;
        let request = match self.answered.get(&event.key) {
            Some(before) => u64::from(raw.rcv_nxt.wrapping_sub(before.rcv_nxt)),
            None => raw.bytes_received,
        };
        silence > self.settings.threshold && raw.data_segs_out != 0 && request <= LONG_REQUEST
    }

    /// A server's words that nobody asked for ended a silence: the connection has outlived that.
    fn note_push(&mut self, event: &Event, gap: Duration, silence: Duration) {
        if gap > self.settings.threshold && silence.is_zero() {
            let served = Served::new(event.raw.rcv_nxt, gap, true);
            self.answered.insert(event.key, event.time, served);
        }
    }

    fn say_reuse(&mut self, asked: &Asked, origin: Origin, gap: Duration) {
        let Asked { time, bytes, is_probed, .. } = *asked;
        self.say(Observation::Reuse(Reuse { time, origin, gap, bytes, is_probed }), None);
    }

    /// No close followed a small write: it was no farewell.
    pub(super) fn release(&mut self, key: SockKey, written: Nanos) {
        let Some(asked) = self.asked.get(&key).filter(|asked| asked.time == written).cloned()
        else {
            return;
        };
        let Tuple { netns, local, remote } = key.tuple;
        let Asked { owner, role, process, .. } = asked;
        let origin = Origin { netns, owner, role, local, remote, process, rtt: None };
        match asked.reuse_gap() {
            Some(gap) => self.say_reuse(&asked, origin, gap),
            None => drop(self.asked.remove(&key)),
        }
    }

    /// A close followed a small write, and showed that it was no farewell.
    pub(super) fn release_early(&mut self, event: &Event, asked: Option<&Asked>) {
        if let Some(held) = asked
            && held.role == Role::Client
            && held.is_doubtful()
            && event.time.since(held.time) <= HOLD + 2 * event.rtt()
            && let Some(gap) = held.reuse_gap()
        {
            let origin = event.origin(held.role, held.process);
            self.say_reuse(held, origin, gap);
        }
    }

    pub(super) fn write_after_fin(&mut self, event: &Event) {
        let role = event.role();
        if role != Role::Client {
            return;
        }
        let mut followed = match self.followed.remove(&event.key) {
            Some(followed) => followed,
            None => Followed::new(event, role),
        };
        if !followed.done && followed.wrote.is_none() {
            followed.wrote = Some(event.time);
            followed.process = event.process();
            if followed.at_risk == AtRisk::None {
                let fin = followed.saw_fin.then_some(&followed.fin);
                let known = self.known(event, role, None);
                followed.at_risk = turn::late_write(event, fin, followed.ended, known);
                followed.start = event.raw.write_seq;
                followed.segs_out = event.raw.data_segs_out;
            }
            self.await_outcome(event);
        }
        let time = followed.fin.time;
        self.followed.insert(event.key, time, followed);
    }
}
