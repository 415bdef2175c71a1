//! Follows sockets from their FIN to `->CLOSE` and says what became of bytes at risk.
//!
//! In the steady state nothing is kept: an entry exists for a socket past a FIN, for a write after
//! a gap until it is answered for, and for our own recent closes. All of it is bounded.

mod our_close;
mod peer_close;
mod resets;
mod writes;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use finrace_ebpf::decide::state;
use foldhash::HashMap;

use super::classify::{Ended, Known, Settings, Started};
use super::event::{Event, Kind, SockKey, Tuple};
use super::model::{Close, How, Nanos, Observation, Origin, Process, Role};
use super::owner::Owner;
use super::recent::Recent;

/// How long a small write is held back, beside two round trips: a farewell if our FIN follows.
const HOLD: Duration = Duration::from_millis(100);

/// How long an outcome is waited for, beside eight round trips.
const OUTCOME: Duration = Duration::from_secs(2);

/// After the start, or after a loss, requests without a known close are not judged: TIME_WAIT
/// lasts this long (`TCP_TIMEWAIT_LEN`, v6.12 include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_mins(1);

/// How often room is given back.
const TIDY: Duration = Duration::from_mins(1);

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

/// A port that is listened on.
#[derive(Debug, Default)]
struct Listening {
    sockets: u32,
    /// Whose accepted sockets are: learned as they close, where the listener was there before us.
    owner: Owner,
}

/// Why a timer was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The small write of this time was held back.
    Held(Nanos),
    /// An outcome is overdue.
    Outcome,
}

#[derive(Debug)]
pub struct Tracker {
    settings: Settings,
    followed: Recent<SockKey, Followed>,
    started: Recent<SockKey, Started>,
    /// A server's last answer after a silence: `rcv_nxt` then.
    answered: Recent<SockKey, u32>,
    closed: Recent<Tuple, OurClose>,
    /// By network namespace and port.
    listeners: HashMap<(u32, u16), Listening>,
    timers: BinaryHeap<Reverse<(Nanos, Timer, SockKey)>>,
    /// Until when an unknown connection says nothing.
    blind_until: Nanos,
    /// Until when a missing record says nothing.
    lost_until: Nanos,
    findings: Vec<Finding>,
    /// When room was last given back.
    tidied: Nanos,
}

impl Tracker {
    pub fn new(settings: Settings, listeners: impl IntoIterator<Item = (u32, u16)>) -> Self {
        let mut known: HashMap<_, Listening> = HashMap::default();
        for listener in listeners {
            known.entry(listener).or_default().sockets += 1;
        }
        Self {
            settings,
            followed: Recent::new(LIMIT, Duration::from_mins(10)),
            started: Recent::new(LIMIT, Duration::from_mins(1)),
            answered: Recent::new(LIMIT, Duration::from_mins(1)),
            closed: Recent::new(LIMIT, 2 * TIME_WAIT),
            listeners: known,
            timers: BinaryHeap::new(),
            blind_until: settings.start + TIME_WAIT,
            lost_until: Nanos(0),
            findings: Vec::new(),
            tidied: settings.start,
        }
    }

    /// What is kept: sockets past the peer's FIN, clients' writes and servers' answers after a
    /// gap, our own recent closes; with the limit of each.
    pub fn fill(&self) -> [(&'static str, usize, usize); 4] {
        [
            ("followed", self.followed.count(), LIMIT),
            ("started", self.started.count(), LIMIT),
            ("answered", self.answered.count(), LIMIT),
            ("closed", self.closed.count(), LIMIT),
        ]
    }

    /// Sockets that found no room.
    pub fn refused(&self) -> u64 {
        self.followed.refused + self.started.refused + self.answered.refused
    }

    /// Closes of our own that were forgotten before their time: where there are many a second.
    pub fn forgotten(&self) -> u64 {
        self.closed.refused
    }

    /// Records of races were lost: what is missing for the next minute proves nothing.
    pub fn note_loss(&mut self, time: Nanos) {
        self.lost_until = time + TIME_WAIT;
        self.blind_until = self.blind_until.max(self.lost_until);
    }

    /// Takes what has been found since the last call.
    pub fn take(&mut self) -> Vec<Finding> {
        // About as many will be found until the next one.
        let next = Vec::with_capacity(self.findings.len());
        std::mem::replace(&mut self.findings, next)
    }

    /// Takes in one event; events come in the order of their stamps.
    pub fn handle(&mut self, event: &Event) {
        self.expire(event.time);
        let (refused, forgotten) = (self.refused(), self.forgotten());
        self.dispatch(event);
        // What was pushed out is missing as if its record had been lost.
        if self.refused() != refused {
            self.note_loss(event.time);
        }
        // Only what is not known says nothing: the latest closes still are.
        if self.forgotten() != forgotten {
            self.blind_until = self.blind_until.max(event.time + TIME_WAIT);
        }
    }

    fn dispatch(&mut self, event: &Event) {
        match (event.kind, event.raw.old_state, event.raw.new_state) {
            (Kind::State, _, state::LISTEN) => {
                let listening = self.listeners.entry(listener(event)).or_default();
                listening.sockets += 1;
                listening.owner = event.owner.or(listening.owner);
            }
            (Kind::State, state::LISTEN, _) => {
                let port = listener(event);
                if let Some(listening) = self.listeners.get_mut(&port) {
                    listening.sockets = listening.sockets.saturating_sub(1);
                    if listening.sockets == 0 {
                        self.listeners.remove(&port);
                    }
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
                Timer::Held(written) => self.release(key, written),
                Timer::Outcome => self.give_up(key, due),
            }
        }
        if now.since(self.tidied) >= TIDY {
            self.tidied = now;
            self.tidy(now);
        }
    }

    /// Gives back the room that a burst took. Of what is kept, only our own closes leave for their
    /// age: the others wait for a close that is still to come.
    fn tidy(&mut self, now: Nanos) {
        self.closed.forget(now);
        self.closed.shrink();
        self.followed.shrink();
        self.started.shrink();
        self.answered.shrink();
        if self.timers.capacity() / 4 > self.timers.len().max(256) {
            self.timers.shrink_to(2 * self.timers.len());
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
    /// Without a record of its own, a write proves to have had no gap only if the hook was there
    /// at the time and nothing was lost since.
    fn known<'a>(&self, event: &Event, role: Role, started: Option<&'a Started>) -> Known<'a> {
        let sent_ago = self.settings.ticks.between(event.raw.lsndtime, event.raw.jiffies);
        let sees_writes = self.settings.sees_writes
            && event.time > self.lost_until
            && event.time.since(self.settings.start) > sent_ago;
        Known { role, started, settings: Settings { sees_writes, ..self.settings } }
    }

    /// Forgets the writes of a socket that closes.
    fn take_started(&mut self, key: &SockKey, role: Role) -> Option<Started> {
        if role != Role::Client {
            self.answered.remove(key);
        }
        self.started.remove(key)
    }
}

/// The key of the port that an event is at.
fn listener(event: &Event) -> (u32, u16) {
    (event.key.tuple.netns, event.key.tuple.local.port)
}
