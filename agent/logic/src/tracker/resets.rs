//! Resets in ESTABLISHED, and those that we sent for a segment.

use std::time::Duration;

use finrace_ebpf::abi::{flag, opener};
use finrace_ebpf::decide::{FEW_BYTES, distance, state};

use super::after_reset::Doubt;
use super::{Finding, Followed, Lost, OurClose, Tracker, listener};
use crate::event::Event;
use crate::model::{
    Certainty, Class, Closer, Evidence, How, Incident, Observation, Origin, Outcome, Read, Role,
};
use crate::owner::Owner;
use crate::turn::{self, Ended};

impl Tracker {
    pub(super) fn reset_established(&mut self, event: &Event) {
        let role = event.role();
        let (asked, served) = self.take_asked(event, role);
        let at = turn::reset(event, self.known(event, role, asked.as_ref()));
        let raw = &event.raw;
        let process = asked.as_ref().and_then(|asked| asked.process);
        let origin = event.origin(role, process);
        self.say_close(event, origin, How::Rst, at.ended, (asked.as_ref(), served));
        let is_pending = self.settle_pending(event, Outcome::Reset);
        let mut doubt = Doubt::Idle;
        if let Some(told) = at.told.filter(|_| !is_pending) {
            let start = asked.as_ref().map_or(raw.snd_una, |asked| asked.start);
            let bytes = raw.write_seq.wrapping_sub(start);
            let incident = Incident {
                gap: told.gap,
                bytes: Some(bytes).filter(|bytes| *bytes != 0),
                certainty: told.certainty,
                read: told.read,
                doubt: told.doubt,
                ..Incident::new(event.time, origin, told.class, Outcome::Reset)
            };
            let lost = Some(Lost { start, end: raw.write_seq, peer: raw.rcv_nxt });
            let finding = Finding { observation: Observation::Incident(incident), lost };
            let is_habit = self.habits.asks(&event.key, bytes);
            let is_acked = event.raw.app_limited == 0 && asked.is_some();
            if at.is_doubtful && !is_habit && self.settings.sees_ends && !is_acked {
                doubt = Doubt::Ruling(Box::new(finding));
            } else {
                self.findings.push(finding);
            }
        }
        if at.told.is_none() || matches!(doubt, Doubt::Ruling(_)) {
            self.await_end(event, origin, doubt);
        }
        // Its ->CLOSE follows and has nothing to add.
        let new = || Followed::new(event, role);
        self.followed.get_or_insert(event.key, event.time, new).done = true;
    }

    /// We answered a segment with RST: was it a request to a connection that we had closed?
    pub(super) fn reset_sent(&mut self, event: &Event) {
        let raw = event.raw;
        let tuple = event.key.tuple;
        let known = self.closed.get(&tuple).map(|close| {
            (distance(raw.skb_seq, close.rcv_nxt), close.snd_nxt, close.reported, close.said)
        });
        let (peer, said) = match known {
            // The next byte we expected: a request that begins after our close.
            Some((0, snd_nxt, false, said)) => (snd_nxt, said),
            // Later segments of it, or of what was under way.
            Some((1..=0x0010_0000, ..) | (0, _, true, _)) => return,
            // Another connection on this tuple, or none that we know.
            _ if event.has(flag::TIMEWAIT) => (raw.snd_nxt, None),
            _ => (raw.skb_ack, None),
        };
        // The same length as our own alert: its answer to that.
        if said == Some(raw.size) {
            return;
        }
        let lost = Lost { start: raw.skb_seq, end: raw.skb_seq.wrapping_add(raw.size), peer };
        // What our socket had taken in may have been read, and this may be a copy of it.
        let is_new = event.has(flag::TIMEWAIT | flag::FULL_SOCK) && raw.rcv_nxt == raw.skb_seq;
        let read = if is_new { Read::Never } else { Read::Unknown };
        self.late_request(event, lost, raw.size, Outcome::Reset, read);
    }

    pub(super) fn late_request(
        &mut self,
        event: &Event,
        lost: Lost,
        bytes: u32,
        outcome: Outcome,
        read: Read,
    ) {
        let tuple = event.key.tuple;
        let (unknown_role, listener) =
            (self.role_without_socket(event), self.listener_owner(event));
        let serves = self.habits.serves(&event.key, bytes);
        let is_short = bytes <= FEW_BYTES;
        let close = self.closed.get_mut(&tuple).filter(|close| close.rcv_nxt == lost.start);
        // Without a socket only what is known of earlier ones tells whose it was.
        let (role, idle, owner, process, class) = match &close {
            Some(close) => {
                if !turn::was_turn_complete(close.ended) {
                    return; // under way at our close: not a keep-alive race
                }
                let Origin { role, owner, process, .. } = close.origin;
                let class =
                    if close.has_gone_away { Class::AfterGoaway } else { Class::LateRequest };
                (role, Some(close.ended.idle), owner, process, class)
            }
            None if event.time <= self.blind_until => return,
            // A handshake that ended at a full listener, and never was a connection.
            None if event.raw.old_state == state::LISTEN => return,
            None if is_short => return,
            None => (unknown_role, None, listener, None, Class::LateRequest),
        };
        if let Some(close) = close {
            close.reported = true;
        }
        if role != Role::Server {
            return; // a download that our client cancelled
        }
        let origin = Origin { owner: event.owner.or(owner), ..event.origin(role, process) };
        let is_certain = !is_short || serves == Some(true);
        let incident = Incident {
            idle,
            bytes: Some(bytes),
            certainty: if is_certain { Certainty::Certain } else { Certainty::Inferred },
            read,
            ..Incident::new(event.time, origin, class, outcome)
        };
        if idle.is_none() {
            // Once per connection here too.
            let ended =
                Ended { closer: Closer::Local, evidence: Evidence::Unused, idle: Duration::ZERO };
            let close = OurClose {
                origin: incident.origin,
                ended,
                rcv_nxt: lost.start,
                snd_nxt: lost.peer,
                read_to: lost.start,
                sent_fin: false,
                said: None,
                has_gone_away: false,
                reported: true,
            };
            self.closed.insert(tuple, event.time, close);
        }
        // So few bytes, where all requests that are known here are longer, are the client's last words.
        if is_certain || serves != Some(false) {
            self.say(Observation::Incident(incident), Some(lost));
        }
    }

    fn listener_owner(&self, event: &Event) -> Owner {
        self.listeners.get(&listener(event)).map(|listening| listening.owner).unwrap_or_default()
    }

    /// Minisocks and missing sockets have no byte counts: the listener map tells.
    pub(super) fn role_without_socket(&self, event: &Event) -> Role {
        if event.has(flag::FULL_SOCK) && event.raw.opener != opener::UNKNOWN {
            return event.role();
        }
        match self.listeners.get(&listener(event)) {
            Some(listening) if listening.sockets > 0 => Role::Server,
            _ => Role::Unknown,
        }
    }
}
