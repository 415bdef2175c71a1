//! Resets in ESTABLISHED, and those that we sent for a segment.

use std::time::Duration;

use finrace_ebpf::abi::{flag, opener};
use finrace_ebpf::decide::{distance, state};

use super::{Followed, Lost, OurClose, Tracker, listener};
use crate::logic::classify::{self, AtReset, Ended};
use crate::logic::event::Event;
use crate::logic::model::{
    Class, Closer, Evidence, How, Incident, Observation, Origin, Outcome, Role,
};
use crate::logic::owner::Owner;

impl Tracker {
    pub(super) fn reset_established(&mut self, event: &Event) {
        let role = event.role();
        let started = self.take_started(&event.key, role);
        let (at, ended) = classify::reset(event, self.known(event, role, started.as_ref()));
        let raw = &event.raw;
        let process = started.as_ref().and_then(|s| s.process);
        let origin = event.origin(role, process);
        self.say_close(event, origin, How::Rst, ended);
        let (class, gap) = match at {
            AtReset::Reuse { class, gap } => (Some(class), Some(gap)),
            AtReset::Farewell => (Some(Class::Farewell), None),
            AtReset::MidStream if role == Role::Server => (Some(Class::ClientGone), None),
            AtReset::MidStream => (Some(Class::MidStreamReset), None),
            AtReset::Quiet => (None, None),
        };
        if let Some(class) = class {
            let start = started.as_ref().map_or(raw.snd_una, |s| s.start);
            let incident = Incident {
                gap,
                bytes: Some(raw.write_seq.wrapping_sub(start)).filter(|bytes| *bytes != 0),
                ..Incident::new(event.time, origin, class, Outcome::Reset)
            };
            let lost =
                class.is_race().then_some(Lost { start, end: raw.write_seq, peer: raw.rcv_nxt });
            self.say(Observation::Incident(incident), lost);
        }
        // Its ->CLOSE follows and has nothing to add.
        let new = || Followed::new(event, role);
        self.followed.get_or_insert(event.key, event.time, new).done = true;
    }

    /// We answered a segment with RST: was it a request to a connection that we had closed?
    pub(super) fn reset_sent(&mut self, event: &Event) {
        let raw = event.raw;
        let tuple = event.key.tuple;
        let known = self
            .closed
            .get(&tuple)
            .map(|close| (distance(raw.skb_seq, close.rcv_nxt), close.snd_nxt, close.reported));
        let peer = match known {
            // The next byte we expected: a request that begins after our close.
            Some((0, snd_nxt, false)) => snd_nxt,
            // Later segments of it, or of what was under way.
            Some((1..=0x0010_0000, ..) | (0, _, true)) => return,
            // Another connection on this tuple, or none that we know.
            _ if event.has(flag::TIMEWAIT) => raw.snd_nxt,
            _ => raw.skb_ack,
        };
        let lost = Lost { start: raw.skb_seq, end: raw.skb_seq.wrapping_add(raw.size), peer };
        self.late_request(event, lost, raw.size, Outcome::Reset);
    }

    pub(super) fn late_request(&mut self, event: &Event, lost: Lost, bytes: u32, outcome: Outcome) {
        let tuple = event.key.tuple;
        let (unknown_role, listener) =
            (self.role_without_socket(event), self.listener_owner(event));
        let close = self.closed.get_mut(&tuple).filter(|close| close.rcv_nxt == lost.start);
        // Without a socket only what is known of earlier ones tells whose it was.
        let (role, idle, owner, process) = match &close {
            Some(close) => {
                let was_idle =
                    matches!(close.ended.evidence, Evidence::Idle | Evidence::UpperBound);
                if !was_idle {
                    return; // under way at our close: not a keep-alive race
                }
                let Origin { role, owner, process, .. } = close.origin;
                (role, Some(close.ended.idle), owner, process)
            }
            None if event.time <= self.blind_until => return,
            // A handshake that ended at a full listener, and never was a connection.
            None if event.raw.old_state == state::LISTEN => return,
            None => (unknown_role, None, listener, None),
        };
        if let Some(close) = close {
            close.reported = true;
        }
        if role != Role::Server {
            return; // a download that our client cancelled
        }
        let origin = Origin { owner: event.owner.or(owner), ..event.origin(role, process) };
        let incident = Incident {
            idle,
            bytes: Some(bytes),
            ..Incident::new(event.time, origin, Class::LateRequest, outcome)
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
                reported: true,
            };
            self.closed.insert(tuple, event.time, close);
        }
        self.say(Observation::Incident(incident), Some(lost));
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
