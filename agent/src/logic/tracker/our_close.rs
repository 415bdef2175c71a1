//! Our own closes: FIN, abort, timeout, and what lingers after them.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FAREWELL_BYTES, state};

use super::{Lost, OurClose, Tracker, listener};
use crate::logic::classify::{self, AtOurClose, Ended};
use crate::logic::event::Event;
use crate::logic::model::{Class, How, Incident, Observation, Origin, Outcome, Role};

impl Tracker {
    pub(super) fn our_fin(&mut self, event: &Event) {
        let role = event.role();
        let started = self.take_started(&event.key, role);
        let (at, ended) = classify::our_fin(event, self.known(event, role, started.as_ref()));
        if at == AtOurClose::Nothing {
            self.release_early(event, started.as_ref());
        }
        let origin = event.origin(role, event.process());
        self.say_close(event, origin, How::Fin, ended);
        match at {
            AtOurClose::GaveUp { gap } => {
                self.say_unanswered(event, origin, Class::SilentDrop, gap);
            }
            AtOurClose::Farewelled { gap, acked } => {
                let class = if acked { Class::ReadAndClosed } else { Class::FinCrossed };
                self.say_unanswered(event, origin, class, Some(gap));
            }
            AtOurClose::Nothing | AtOurClose::Farewell => {}
        }
        self.note_our_close(event, origin, ended, 1);
    }

    /// A request after a gap that we closed on, without an answer.
    pub(super) fn say_unanswered(
        &mut self,
        event: &Event,
        origin: Origin,
        class: Class,
        gap: Option<Duration>,
    ) {
        let raw = &event.raw;
        let timed_out = raw.new_state == state::CLOSE;
        let incident = Incident {
            gap,
            bytes: Some(event.unacked()).filter(|bytes| *bytes != 0),
            ..Incident::new(
                event.time,
                origin,
                class,
                if timed_out { Outcome::Unanswered } else { Outcome::ClosedByUs },
            )
        };
        let lost = Lost { start: raw.snd_una, end: raw.write_seq, peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    pub(super) fn note_our_close(&mut self, event: &Event, origin: Origin, ended: Ended, fin: u32) {
        let raw = &event.raw;
        if origin.role == Role::Server
            && let Some(listening) = self.listeners.get_mut(&listener(event))
        {
            listening.owner = origin.owner.or(listening.owner);
        }
        let close = OurClose {
            origin,
            ended,
            rcv_nxt: raw.rcv_nxt,
            snd_nxt: raw.write_seq.wrapping_add(fin),
            reported: false,
        };
        self.closed.insert(event.key.tuple, event.time, close);
    }

    /// ESTABLISHED->CLOSE: after a reset that was just seen, by our own abort, or by a timeout.
    pub(super) fn established_close(&mut self, event: &Event) {
        if self.followed.remove(&event.key).is_some() {
            return; // the reset has told it
        }
        let role = event.role();
        let started = self.take_started(&event.key, role);
        let known = self.known(event, role, started.as_ref());
        let (at, ended) = if event.has(flag::TASK) {
            let (idle, ended) = classify::our_abort(event, known);
            if let Some(idle) = idle {
                self.say_unread(event, idle);
            }
            (AtOurClose::Nothing, ended)
        } else {
            match classify::timed_out(event, known) {
                Some(told) => told,
                None => return, // its reset was lost, or came from a firewall by ICMP
            }
        };
        let process = event.process().or_else(|| started.and_then(|s| s.process));
        let origin = event.origin(role, process);
        self.say_close(event, origin, classify::how(event), ended);
        if let AtOurClose::GaveUp { gap } = at {
            self.say_unanswered(event, origin, Class::SilentDrop, gap);
        }
        self.note_our_close(event, origin, ended, 0);
    }

    pub(super) fn say_unread(&mut self, event: &Event, idle: Duration) {
        let raw = &event.raw;
        let incident = Incident {
            gap: Some(idle),
            idle: Some(idle),
            bytes: Some(event.unread(false)),
            ..Incident::new(
                event.time,
                event.origin(Role::Server, event.process()),
                Class::UnreadClose,
                Outcome::Reset,
            )
        };
        let lost = Lost { start: raw.copied_seq, end: raw.rcv_nxt, peer: raw.snd_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// FIN_WAIT->CLOSE with data that came long after our last: a lingering close that read and
    /// threw away a request.
    pub(super) fn lingering_close(&mut self, event: &Event) {
        let raw = event.raw;
        let Some(close) = self.closed.get(&event.key.tuple) else { return };
        // The peer's FIN, if it has come, counts as one.
        let bytes = raw.rcv_nxt.wrapping_sub(close.rcv_nxt);
        if bytes <= FAREWELL_BYTES + 1 || bytes > u32::MAX / 2 {
            return;
        }
        let lost = Lost {
            start: close.rcv_nxt,
            end: close.rcv_nxt.wrapping_add(bytes),
            peer: close.snd_nxt,
        };
        self.late_request(event, lost, bytes, Outcome::Acked);
    }
}
