//! Our own closes: FIN, abort, timeout, and what lingers after them.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FEW_BYTES, state};

use super::{Lost, OurClose, Tracker, listener};
use crate::event::{Event, Word};
use crate::model::{Certainty, Class, How, Incident, Observation, Origin, Outcome, Read, Role};
use crate::turn::{self, Asked, Ended, Ruling};

impl Tracker {
    pub(super) fn our_fin(&mut self, event: &Event) {
        let role = event.role();
        let (asked, served) = self.take_asked(event, role);
        let at = turn::our_fin(event, self.known(event, role, asked.as_ref()));
        if !at.is_farewell {
            self.release_early(event, asked.as_ref());
        }
        let origin = event.origin(role, event.process());
        self.say_close(event, origin, How::Fin, at.ended, (asked.as_ref(), served));
        if !self.settle_pending(event, Outcome::ClosedByUs)
            && let Some(told) = at.told
        {
            self.say_unanswered(event, origin, told, asked.as_ref());
        }
        self.note_our_close(event, origin, at.ended, 1, asked.as_ref());
        self.say_thrown_away(event, asked.as_ref());
    }

    /// A request that we closed on, without an answer.
    fn say_unanswered(
        &mut self,
        event: &Event,
        origin: Origin,
        told: Ruling,
        asked: Option<&Asked>,
    ) {
        let raw = &event.raw;
        let timed_out = raw.new_state == state::CLOSE;
        let outcome = if timed_out { Outcome::Unanswered } else { Outcome::ClosedByUs };
        let start = asked.map_or(raw.snd_una, |asked| asked.start);
        let incident = Incident {
            gap: told.gap,
            bytes: Some(raw.write_seq.wrapping_sub(start)).filter(|bytes| *bytes != 0),
            certainty: told.certainty,
            read: told.read,
            doubt: told.doubt,
            ..Incident::new(event.time, origin, told.class, outcome)
        };
        let lost = Lost { start, end: raw.write_seq, peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// A server has said farewell some time ago, and what came since was more than the client's own.
    fn say_thrown_away(&mut self, event: &Event, asked: Option<&Asked>) {
        let Some(said) =
            asked.filter(|asked| asked.role == Role::Server && asked.word == Word::Farewell)
        else {
            return;
        };
        let bytes = event.raw.rcv_nxt.wrapping_sub(said.rcv_nxt);
        if bytes == 0 || bytes == said.bytes || bytes > u32::MAX / 2 {
            return; // nothing, or its own alert
        }
        let is_short = bytes <= FEW_BYTES;
        if is_short && self.habits.serves(&event.key, bytes) != Some(true) {
            return;
        }
        let lost = Lost {
            start: said.rcv_nxt,
            end: event.raw.rcv_nxt,
            peer: said.start.wrapping_add(said.bytes),
        };
        if let Some(close) = self.closed.get_mut(&event.key.tuple) {
            close.rcv_nxt = said.rcv_nxt;
        }
        self.late_request(event, lost, bytes, Outcome::Acked, Read::Unknown);
    }

    pub(super) fn note_our_close(
        &mut self,
        event: &Event,
        origin: Origin,
        ended: Ended,
        fin: u32,
        asked: Option<&Asked>,
    ) {
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
            read_to: raw.copied_seq,
            sent_fin: fin != 0,
            said: asked.filter(|asked| asked.word == Word::Farewell).map(|asked| asked.bytes),
            has_gone_away: asked.is_some_and(|asked| turn::is_goaway(asked.word, asked.bytes)),
            reported: false,
        };
        let tuple = event.key.tuple;
        self.closed.insert(tuple, event.time, close);
        if origin.role == Role::Server {
            self.closes_of.insert([tuple.local, tuple.remote], event.time, tuple);
        }
    }

    /// ESTABLISHED->CLOSE: after a reset that was just seen, by our own abort, or by a timeout.
    pub(super) fn established_close(&mut self, event: &Event) {
        if self.followed.remove(&event.key).is_some() {
            return; // the reset has told it
        }
        let role = event.role();
        let (asked, served) = self.take_asked(event, role);
        let known = self.known(event, role, asked.as_ref());
        let (told, ended) = if event.has(flag::TASK) {
            let (idle, ended) = turn::our_abort(event, known);
            if let Some(idle) = idle {
                self.say_unread(event, idle);
            }
            (None, ended)
        } else {
            match turn::timed_out(event, known) {
                Some(at) => (at.told, at.ended),
                None => return, // its reset was lost, or came from a firewall by ICMP
            }
        };
        let process = event.process().or_else(|| asked.as_ref().and_then(|asked| asked.process));
        let origin = event.origin(role, process);
        self.say_close(event, origin, turn::how(event), ended, (asked.as_ref(), served));
        if !self.settle_pending(event, Outcome::Unanswered)
            && let Some(told) = told
        {
            self.say_unanswered(event, origin, told, asked.as_ref());
        }
        self.note_our_close(event, origin, ended, 0, asked.as_ref());
    }

    /// We have thrown a request away unread.
    fn say_unread(&mut self, event: &Event, idle: Duration) {
        let raw = &event.raw;
        let bytes = event.unread(false);
        // A few bytes may be the client's last words, unless requests here are as short.
        if bytes <= FEW_BYTES && self.habits.serves(&event.key, bytes) != Some(true) {
            return;
        }
        let incident = Incident {
            gap: Some(idle),
            idle: Some(idle),
            bytes: Some(bytes),
            certainty: Certainty::Inferred,
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
        // The peer's FIN counts as one, where that is what ends the connection: it has just come then.
        let bytes = raw.rcv_nxt.wrapping_sub(close.rcv_nxt);
        let fin = u32::from(raw.jiffies.wrapping_sub(raw.rcv_tstamp) <= 1);
        let bytes = bytes.saturating_sub(fin);
        if close.reported || bytes == 0 || bytes > u32::MAX / 2 || close.said == Some(bytes) {
            return;
        }
        if bytes <= FEW_BYTES && self.habits.serves(&event.key, bytes) == Some(false) {
            return;
        }
        let lost = Lost {
            start: close.rcv_nxt,
            end: close.rcv_nxt.wrapping_add(bytes),
            peer: close.snd_nxt,
        };
        self.late_request(event, lost, bytes, Outcome::Acked, Read::Unknown);
    }
}
