//! Follows sockets from their FIN to `->CLOSE` and says what became of bytes at risk.
//!
//! In the steady state nothing is kept: an entry exists for a socket past a FIN, for a write after
//! a gap until it is answered for, and for our own recent closes. All of it is bounded.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use finrace_ebpf::abi::{flag, opener};
use finrace_ebpf::decide::{FAREWELL_BYTES, distance, state};

use super::classify::{
    self, AT_ONCE, AtFin, AtOurClose, AtReset, Ended, Known, Settings, Started, StartedKind,
};
use super::event::{Event, Kind, SockKey, Ticks, Tuple};
use super::model::{
    Cause, Class, Close, Closer, Dwell, Evidence, How, Incident, Nanos, Observation, Origin,
    Outcome, Process, Reuse, Role,
};
use super::recent::Recent;

/// How long a small write is held back, beside two round trips: a farewell if our FIN follows.
const HOLD: Duration = Duration::from_millis(100);

/// How long an outcome is waited for, beside eight round trips.
const OUTCOME: Duration = Duration::from_secs(2);

/// After the start, or after a loss, requests without a known close are not judged: TIME_WAIT
/// lasts this long (`TCP_TIMEWAIT_LEN`, v6.12 include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_mins(1);

/// Most entries of each kind; each takes about 300 bytes.
const LIMIT: usize = 16_384;

/// Sequence numbers that both ends of a connection share, whatever NAT does to addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lost {
    /// First byte of the lost request.
    pub start: u32,
    /// The one after its last.
    pub end: u32,
    /// The next one expected from the server.
    pub peer: u32,
}

/// An observation, with what joins the two ends' views of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub observation: Observation,
    pub lost: Option<Lost>,
}

/// Bytes at risk on a socket past the peer's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AtRisk {
    None,
    /// On their way when the FIN came.
    Crossed {
        gap: Duration,
    },
    /// Began after the FIN, after a gap.
    Stale {
        gap: Option<Duration>,
    },
    /// Continue what was under way at the FIN.
    Continued,
}

/// A socket past the peer's FIN.
#[derive(Debug)]
struct Followed {
    fin: Event,
    /// False where the FIN itself was not seen: then `fin` is a later record.
    saw_fin: bool,
    role: Role,
    ended: Option<Ended>,
    at_risk: AtRisk,
    /// Our first write after the FIN, where a hook saw it.
    wrote: Option<Nanos>,
    process: Option<Process>,
    /// Its story is told; only `->CLOSE` is still to come.
    done: bool,
}

/// A connection that we closed.
#[derive(Debug)]
struct OurClose {
    origin: Origin,
    ended: Ended,
    /// Next sequence number expected from the peer.
    rcv_nxt: u32,
    /// Ours, with the FIN.
    snd_nxt: u32,
    /// A late request is reported once, however many segments it has.
    reported: bool,
}

/// Why a timer was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A small write was held back.
    Held,
    /// An outcome is overdue.
    Outcome,
}

#[derive(Debug)]
pub struct Tracker {
    settings: Settings,
    followed: Recent<SockKey, Followed>,
    started: Recent<SockKey, Started>,
    closed: Recent<Tuple, OurClose>,
    /// Sockets that listen, by network namespace and port.
    listeners: HashMap<(u32, u16), u32>,
    timers: BinaryHeap<Reverse<(Nanos, Timer, SockKey)>>,
    /// Until when an unknown connection says nothing.
    blind_until: Nanos,
    /// Until when a missing record says nothing.
    lost_until: Nanos,
    findings: Vec<Finding>,
}

impl Tracker {
    pub fn new(settings: Settings, listeners: impl IntoIterator<Item = (u32, u16)>) -> Self {
        let mut known = HashMap::new();
        for listener in listeners {
            *known.entry(listener).or_insert(0) += 1;
        }
        Self {
            settings,
            followed: Recent::new(LIMIT, Duration::from_mins(10)),
            started: Recent::new(LIMIT, Duration::from_mins(1)),
            closed: Recent::new(LIMIT, 2 * TIME_WAIT),
            listeners: known,
            timers: BinaryHeap::new(),
            blind_until: settings.start + TIME_WAIT,
            lost_until: Nanos(0),
            findings: Vec::new(),
        }
    }

    /// Sockets and connections kept at the moment.
    pub fn len(&self) -> usize {
        self.followed.len() + self.started.len() + self.closed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that found no room.
    pub fn refused(&self) -> u64 {
        self.followed.refused + self.started.refused + self.closed.refused
    }

    /// Records of races were lost: what is missing for the next minute proves nothing.
    pub fn note_loss(&mut self, time: Nanos) {
        self.lost_until = time + TIME_WAIT;
        self.blind_until = self.blind_until.max(self.lost_until);
    }

    /// Takes what has been found since the last call.
    pub fn take(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Takes in one event; events come in the order of their stamps.
    pub fn handle(&mut self, event: &Event) {
        self.expire(event.time);
        match (event.kind, event.raw.old_state, event.raw.new_state) {
            (Kind::State, _, state::LISTEN) => {
                *self.listeners.entry(listener(event)).or_insert(0) += 1;
            }
            (Kind::State, state::LISTEN, _) => {
                if let Some(count) = self.listeners.get_mut(&listener(event)) {
                    *count = count.saturating_sub(1);
                }
            }
            (Kind::State, state::ESTABLISHED, state::CLOSE_WAIT) => self.peer_fin(event),
            (Kind::State, state::ESTABLISHED, state::FIN_WAIT1) => self.our_fin(event),
            (Kind::State, state::ESTABLISHED, state::CLOSE) => self.established_close(event),
            (Kind::State, state::CLOSE_WAIT, state::LAST_ACK) => self.last_ack(event),
            (Kind::State, state::CLOSE_WAIT | state::LAST_ACK, state::CLOSE) => self.close(event),
            (Kind::State, _, state::CLOSE) => self.lingering_close(event),
            (Kind::State, ..) => {}
            (Kind::Write, state::CLOSE_WAIT, _) => self.write_after_fin(event),
            (Kind::Write, ..) => self.write_after_gap(event),
            (Kind::ResetReceived, state::ESTABLISHED, _) => self.reset_established(event),
            (Kind::ResetReceived, ..) => self.reset_after_fin(event),
            (Kind::ResetSent, ..) => self.reset_sent(event),
        }
    }

    /// Lets pass what was waited for until `now`, a time up to which all events have come.
    pub fn expire(&mut self, now: Nanos) {
        while let Some(Reverse((due, timer, key))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            match timer {
                Timer::Held => self.release(key),
                Timer::Outcome => {
                    let outcome =
                        if due <= self.lost_until { Outcome::Unknown } else { Outcome::Unanswered };
                    self.resolve(key, due, None, outcome);
                }
            }
        }
    }

    fn say(&mut self, observation: Observation, lost: Option<Lost>) {
        self.findings.push(Finding { observation, lost });
    }

    fn say_close(&mut self, event: &Event, origin: Origin, how: How, ended: Ended) {
        let Ended { closer, evidence, idle } = ended;
        self.say(
            Observation::Close(Close { time: event.time, origin, closer, how, evidence, idle }),
            None,
        );
    }

    // --- Writes ---

    fn write_after_gap(&mut self, event: &Event) {
        let raw = &event.raw;
        let ticks = self.settings.ticks;
        let gap = ticks.between(raw.lrcvtime, raw.jiffies);
        let silence = ticks.between(raw.lsndtime, raw.lrcvtime);
        let role = event.role();
        let after_gap = gap > self.settings.threshold;
        let is_small = raw.size <= FAREWELL_BYTES;
        let kind = match role {
            Role::Client if after_gap => StartedKind::Gap(gap),
            Role::Client => StartedKind::Reply(silence),
            Role::Server if after_gap && is_small => StartedKind::Gap(gap),
            // The first exchange of a connection is no reuse of it.
            Role::Server if raw.data_segs_out == 0 => return,
            Role::Server => StartedKind::Reply(silence),
            Role::Unknown => return,
        };
        let started = Started {
            time: event.time,
            role,
            kind,
            bytes: raw.size,
            start: raw.write_seq,
            rcv_nxt: raw.rcv_nxt,
            process: event.process(),
        };
        if started.is_small() {
            let due = event.time + HOLD + 2 * event.rtt();
            self.timers.push(Reverse((due, Timer::Held, event.key)));
        } else if let Some(gap) = started.reuse_gap() {
            self.say_reuse(event.time, event.origin(role, event.process()), gap, raw.size);
        }
        self.started.insert(event.key, event.time, started);
    }

    fn say_reuse(&mut self, time: Nanos, origin: Origin, gap: Duration, bytes: u32) {
        self.say(Observation::Reuse(Reuse { time, origin, gap, bytes }), None);
    }

    /// No close followed a small write: it was no farewell.
    fn release(&mut self, key: SockKey) {
        let Some(started) = self.started.get(&key) else { return };
        let Tuple { netns, local, remote } = key.tuple;
        let process = started.process.clone();
        let origin = Origin { netns, role: started.role, local, remote, process, rtt: None };
        let (time, bytes, gap) = (started.time, started.bytes, started.reuse_gap());
        match gap {
            Some(gap) => self.say_reuse(time, origin, gap, bytes),
            None => drop(self.started.remove(&key)),
        }
    }

    /// A close followed a small write, and showed that it was no farewell.
    fn release_early(&mut self, event: &Event, started: Option<&Started>) {
        if let Some(held) = started
            && held.is_small()
            && event.time.since(held.time) <= HOLD + 2 * event.rtt()
            && let Some(gap) = held.reuse_gap()
        {
            let origin = event.origin(held.role, held.process.clone());
            self.say_reuse(held.time, origin, gap, held.bytes);
        }
    }

    fn write_after_fin(&mut self, event: &Event) {
        let role = event.role();
        if role != Role::Client {
            return;
        }
        let settings = self.settings;
        let followed = self.follow(event, role);
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
        let due = event.time + OUTCOME + 8 * event.rtt();
        self.timers.push(Reverse((due, Timer::Outcome, event.key)));
    }

    fn known<'a>(&self, role: Role, started: Option<&'a Started>) -> Known<'a> {
        Known { role, started, settings: self.settings }
    }

    // --- The peer closes ---

    fn peer_fin(&mut self, event: &Event) {
        let role = event.role();
        let started = self.started.remove(&event.key);
        let (at_fin, ended) = classify::peer_fin(event, self.known(role, started.as_ref()));
        if ended.evidence == Evidence::AfterData {
            self.release_early(event, started.as_ref());
        }
        let process = started.as_ref().and_then(|s| s.process.clone());
        let origin = event.origin(role, process.clone());
        self.say_close(event, origin.clone(), How::Fin, ended);
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

    fn say_at_fin(&mut self, event: &Event, origin: Origin, class: Class, gap: Option<Duration>) {
        let incident = Incident {
            time: event.time,
            origin,
            class,
            cause: Cause::Unknown,
            outcome: Outcome::Closed,
            gap,
            fin_age: None,
            idle: None,
            bytes: Some(event.unacked()).filter(|bytes| *bytes != 0),
            other_view: None,
        };
        self.say(Observation::Incident(incident), None);
    }

    /// The entry of this socket; made from `event` if its FIN was not seen.
    fn follow(&mut self, event: &Event, role: Role) -> &mut Followed {
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

    fn last_ack(&mut self, event: &Event) {
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
    fn note_written(&mut self, event: &Event) {
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

    fn close(&mut self, event: &Event) {
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

    fn reset_after_fin(&mut self, event: &Event) {
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
    fn reset_of_unfollowed(&mut self, event: &Event) {
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
            time: event.time,
            origin: event.origin(Role::Client, None),
            class,
            cause: Cause::Unknown,
            outcome: Outcome::Reset,
            gap: Some(gap),
            fin_age: after_fin.then(|| ticks.between(raw.rcv_tstamp, raw.lsndtime)),
            idle: None,
            bytes: Some(bytes),
            other_view: None,
        };
        let lost =
            Lost { start: raw.snd_una, end: raw.snd_una.wrapping_add(bytes), peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// Tells the story of a followed socket, by what was at risk.
    fn resolve(&mut self, key: SockKey, now: Nanos, event: Option<&Event>, outcome: Outcome) {
        let Some(followed) = self.followed.get(&key) else { return };
        if followed.done {
            return;
        }
        let class = match (followed.at_risk, outcome) {
            (AtRisk::None, _) => return,
            (AtRisk::Crossed { .. }, _) => Class::FinCrossed,
            (AtRisk::Stale { .. }, _) => Class::StaleWrite,
            (AtRisk::Continued, Outcome::Acked) => Class::HalfClose,
            (AtRisk::Continued, Outcome::Reset) => Class::EarlyResponse,
            (AtRisk::Continued, _) => Class::Unknown,
        };
        let last = event.copied().unwrap_or(Event { time: now, ..followed.fin });
        self.resolve_as(key, &last, class, outcome);
    }

    fn resolve_as(&mut self, key: SockKey, event: &Event, class: Class, outcome: Outcome) {
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
            time: event.time,
            origin: event.origin(followed.role, followed.process.clone()),
            class,
            cause: Cause::Unknown,
            outcome,
            gap,
            fin_age,
            idle: followed.ended.map(|ended| ended.idle),
            bytes: Some(bytes).filter(|bytes| *bytes != 0),
            other_view: None,
        };
        let end = start.wrapping_add(bytes);
        let lost = class.is_race().then_some(Lost { start, end, peer: fin.rcv_nxt });
        self.say(Observation::Incident(incident), lost);
    }

    // --- We close ---

    fn our_fin(&mut self, event: &Event) {
        let role = event.role();
        let started = self.started.remove(&event.key);
        let (at, ended) = classify::our_fin(event, self.known(role, started.as_ref()));
        if at == AtOurClose::Nothing {
            self.release_early(event, started.as_ref());
        }
        let origin = event.origin(role, event.process());
        self.say_close(event, origin.clone(), How::Fin, ended);
        match at {
            AtOurClose::GaveUp { gap } => {
                self.say_unanswered(event, origin.clone(), Class::SilentDrop, gap);
            }
            AtOurClose::Farewelled { gap, acked } => {
                let class = if acked { Class::ReadAndClosed } else { Class::FinCrossed };
                self.say_unanswered(event, origin.clone(), class, Some(gap));
            }
            AtOurClose::Nothing | AtOurClose::Farewell => {}
        }
        self.note_our_close(event, origin, ended, 1);
    }

    /// A request after a gap that we closed on, without an answer.
    fn say_unanswered(
        &mut self,
        event: &Event,
        origin: Origin,
        class: Class,
        gap: Option<Duration>,
    ) {
        let raw = &event.raw;
        let timed_out = raw.new_state == state::CLOSE;
        let incident = Incident {
            time: event.time,
            origin,
            class,
            cause: Cause::Unknown,
            outcome: if timed_out { Outcome::Unanswered } else { Outcome::ClosedByUs },
            gap,
            fin_age: None,
            idle: None,
            bytes: Some(event.unacked()).filter(|bytes| *bytes != 0),
            other_view: None,
        };
        let lost = Lost { start: raw.snd_una, end: raw.write_seq, peer: raw.rcv_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    fn note_our_close(&mut self, event: &Event, origin: Origin, ended: Ended, fin: u32) {
        let raw = &event.raw;
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
    fn established_close(&mut self, event: &Event) {
        if self.followed.remove(&event.key).is_some() {
            return; // the reset has told it
        }
        let role = event.role();
        let started = self.started.remove(&event.key);
        let known = self.known(role, started.as_ref());
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
        self.say_close(event, origin.clone(), classify::how(event), ended);
        if let AtOurClose::GaveUp { gap } = at {
            self.say_unanswered(event, origin.clone(), Class::SilentDrop, gap);
        }
        self.note_our_close(event, origin, ended, 0);
    }

    fn say_unread(&mut self, event: &Event, idle: Duration) {
        let raw = &event.raw;
        let incident = Incident {
            time: event.time,
            origin: event.origin(Role::Server, event.process()),
            class: Class::UnreadClose,
            cause: Cause::Unknown,
            outcome: Outcome::Reset,
            gap: Some(idle),
            fin_age: None,
            idle: Some(idle),
            bytes: Some(event.unread(false)),
            other_view: None,
        };
        let lost = Lost { start: raw.copied_seq, end: raw.rcv_nxt, peer: raw.snd_nxt };
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// FIN_WAIT->CLOSE with data that came long after our last: a lingering close that read and
    /// threw away a request.
    fn lingering_close(&mut self, event: &Event) {
        let raw = event.raw;
        let Some(close) = self.closed.get(&event.key.tuple) else { return };
        // The peer's FIN counts as one.
        let bytes = raw.rcv_nxt.wrapping_sub(close.rcv_nxt).saturating_sub(1);
        if bytes <= FAREWELL_BYTES || bytes > u32::MAX / 2 {
            return;
        }
        let lost = Lost {
            start: close.rcv_nxt,
            end: close.rcv_nxt.wrapping_add(bytes),
            peer: close.snd_nxt,
        };
        self.late_request(event, lost, bytes, Outcome::Acked);
    }

    // --- Resets ---

    fn reset_established(&mut self, event: &Event) {
        let role = event.role();
        let started = self.started.remove(&event.key);
        let (at, ended) = classify::reset(event, self.known(role, started.as_ref()));
        let raw = &event.raw;
        let process = started.as_ref().and_then(|s| s.process.clone());
        let origin = event.origin(role, process);
        self.say_close(event, origin.clone(), How::Rst, ended);
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
                time: event.time,
                origin,
                class,
                cause: Cause::Unknown,
                outcome: Outcome::Reset,
                gap,
                fin_age: None,
                idle: None,
                bytes: Some(raw.write_seq.wrapping_sub(start)).filter(|bytes| *bytes != 0),
                other_view: None,
            };
            let lost =
                class.is_race().then_some(Lost { start, end: raw.write_seq, peer: raw.rcv_nxt });
            self.say(Observation::Incident(incident), lost);
        }
        // Its ->CLOSE follows and has nothing to add.
        self.follow(event, role).done = true;
    }

    /// We answered a segment with RST: was it a request to a connection that we had closed?
    fn reset_sent(&mut self, event: &Event) {
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

    fn late_request(&mut self, event: &Event, lost: Lost, bytes: u32, outcome: Outcome) {
        let tuple = event.key.tuple;
        let unknown_role = self.role_without_socket(event);
        let close = self.closed.get_mut(&tuple).filter(|close| close.rcv_nxt == lost.start);
        let (role, idle, process) = match &close {
            Some(close) => {
                let was_idle =
                    matches!(close.ended.evidence, Evidence::Idle | Evidence::UpperBound);
                if !was_idle {
                    return; // under way at our close: not a keep-alive race
                }
                (close.origin.role, Some(close.ended.idle), close.origin.process.clone())
            }
            None if event.time <= self.blind_until => return,
            None => (unknown_role, None, None),
        };
        if let Some(close) = close {
            close.reported = true;
        }
        if role != Role::Server {
            return; // a download that our client cancelled
        }
        let incident = Incident {
            time: event.time,
            origin: event.origin(role, process),
            class: Class::LateRequest,
            cause: Cause::Unknown,
            outcome,
            gap: None,
            fin_age: None,
            idle,
            bytes: Some(bytes),
            other_view: None,
        };
        if idle.is_none() {
            // Once per connection here too.
            let ended =
                Ended { closer: Closer::Local, evidence: Evidence::Unused, idle: Duration::ZERO };
            let close = OurClose {
                origin: incident.origin.clone(),
                ended,
                rcv_nxt: lost.start,
                snd_nxt: lost.peer,
                reported: true,
            };
            self.closed.insert(tuple, event.time, close);
        }
        self.say(Observation::Incident(incident), Some(lost));
    }

    /// Minisocks and missing sockets have no byte counts: the listener map tells.
    fn role_without_socket(&self, event: &Event) -> Role {
        if event.has(flag::FULL_SOCK) && event.raw.opener != opener::UNKNOWN {
            return event.role();
        }
        match self.listeners.get(&listener(event)) {
            Some(count) if *count > 0 => Role::Server,
            _ => Role::Unknown,
        }
    }
}

fn listener(event: &Event) -> (u32, u16) {
    (event.key.tuple.netns, event.key.tuple.local.port)
}

/// Bytes written after the FIN, our own FIN not counted.
fn written(followed: &Followed, event: &Event) -> u32 {
    let fin_sent = u32::from(event.has(flag::FIN_SENT));
    event.raw.write_seq.wrapping_sub(followed.fin.raw.write_seq).wrapping_sub(fin_sent)
}

/// At most 96 bytes after the FIN (or crossing it), and our close, or the end of the connection,
/// at once. A tiny request that is reset before its application could close looks the same.
fn is_farewell(followed: &Followed, event: &Event, ticks: Ticks) -> bool {
    let bytes = match followed.at_risk {
        AtRisk::None => return false,
        AtRisk::Crossed { .. } => written(followed, event) + followed.fin.unacked(),
        AtRisk::Stale { .. } | AtRisk::Continued => written(followed, event),
    };
    bytes <= FAREWELL_BYTES && ticks.between(event.raw.lsndtime, event.raw.jiffies) <= AT_ONCE
}
