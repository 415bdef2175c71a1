//! Sockets that an RST has ended: what their owner does with them, until it lets go.

use super::{Finding, Followed, Lost, OUTCOME, Timer, Tracker};
use crate::event::{Event, SockKey};
use crate::model::{Class, Incident, Observation, Origin, Outcome, Role};
use crate::turn;

/// Such a socket.
#[derive(Debug)]
pub(super) struct Dead {
    reset: Event,
    role: Role,
    origin: Origin,
    doubt: Doubt,
}

/// What its end should tell.
#[derive(Debug)]
pub(super) enum Doubt {
    /// It was idle: whether a request is written on it anyway.
    Idle,
    /// Whether this was a request after all.
    Ruling(Box<Finding>),
    /// Likewise, past the peer's FIN.
    Past(Box<Followed>),
}

impl Tracker {
    /// An RST has ended this socket, and its owner's next step tells something.
    pub(super) fn await_end(&mut self, event: &Event, origin: Origin, doubt: Doubt) {
        if origin.role != Role::Client {
            return;
        }
        if !matches!(doubt, Doubt::Idle) {
            self.set_timer(event.time + OUTCOME, Timer::Kept, event.key);
        }
        let dead = Dead { reset: *event, role: origin.role, origin, doubt };
        self.dead.insert(event.key, event.time, dead);
    }

    /// A socket's owner has let go of it.
    pub(super) fn destroyed(&mut self, event: &Event) {
        let Some(Dead { reset, role, origin, doubt }) = self.dead.remove(&event.key) else {
            return;
        };
        match doubt {
            Doubt::Idle => {
                let known = self.known(event, role, None);
                let Some(told) = turn::write_after_reset(event, &reset, known) else { return };
                let incident = Incident {
                    gap: told.gap,
                    // How long the dead socket had been in the pool.
                    fin_age: Some(event.time.since(reset.time)),
                    idle: Some(turn::Stamps::of(&reset, self.settings.ticks).idle()),
                    certainty: told.certainty,
                    read: told.read,
                    ..Incident::new(event.time, origin, told.class, Outcome::Failed)
                };
                self.say(Observation::Incident(incident), None);
            }
            // An error that was not fetched was not waited for.
            Doubt::Ruling(finding) if event.raw.code != 0 => self.say_farewell(*finding),
            Doubt::Ruling(finding) => self.findings.push(*finding),
            Doubt::Past(followed) => {
                let has_noticed = Some(event.has_read_fin());
                self.end_followed(*followed, &reset, Outcome::Reset, has_noticed);
            }
        }
    }

    /// Its owner has not let go: no farewell, then.
    pub(super) fn still_kept(&mut self, key: SockKey) {
        let Some(dead) = self.dead.get_mut(&key) else { return };
        let (doubt, reset) = (std::mem::replace(&mut dead.doubt, Doubt::Idle), dead.reset);
        match doubt {
            Doubt::Idle => return,
            Doubt::Ruling(finding) => self.findings.push(*finding),
            Doubt::Past(followed) => {
                self.end_followed(*followed, &reset, Outcome::Reset, Some(true));
            }
        }
        self.dead.remove(&key);
    }

    fn say_farewell(&mut self, mut finding: Finding) {
        if let Observation::Incident(incident) = &mut finding.observation {
            incident.class = Class::Farewell;
            incident.certainty = crate::model::Certainty::Inferred;
        }
        self.findings.push(finding);
    }

    /// A request hangs: told once, while its outcome is pending.
    pub(super) fn hangs(&mut self, event: &Event) {
        let role = event.role();
        let asked = self.asked.get(&event.key).cloned();
        let Some(told) = turn::hangs(event, self.known(event, role, asked.as_ref())) else {
            return;
        };
        if self.pending.get(&event.key).is_some() {
            return;
        }
        let raw = &event.raw;
        let origin = event.origin(role, asked.and_then(|asked| asked.process));
        let incident = Incident {
            gap: told.gap,
            bytes: Some(event.unacked()),
            certainty: told.certainty,
            ..Incident::new(event.time, origin, told.class, Outcome::Pending)
        };
        let lost = Some(Lost { start: raw.snd_una, end: raw.write_seq, peer: raw.rcv_nxt });
        let finding = Finding { observation: Observation::Incident(incident), lost };
        self.pending.insert(event.key, event.time, finding.clone());
        self.findings.push(finding);
    }

    /// Whether this socket's request was told while it was pending: then only its outcome is new.
    pub(super) fn settle_pending(&mut self, event: &Event, outcome: Outcome) -> bool {
        let Some(Finding { observation: Observation::Incident(told), lost: Some(lost) }) =
            self.pending.remove(&event.key)
        else {
            return false;
        };
        // More than a FIN has come since: it was answered after all, and this is about something later.
        let heard = event.raw.rcv_nxt.wrapping_sub(lost.peer);
        if heard > 1 && event.raw.snd_una != lost.start {
            return false;
        }
        let incident = Incident { time: event.time, outcome, ..told };
        self.say(Observation::Outcome(incident), None);
        true
    }
}
