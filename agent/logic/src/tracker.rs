//! Follows sockets from their FIN or RST to their end, and hands what it has seen to [`turn`], which says
//! what became of bytes at risk.
//!
//! In the steady state nothing is kept: an entry exists for a socket past a FIN or RST, for a write after a
//! gap until it is accounted for, and for our own recent closes. All of it is bounded.

mod after_reset;
mod habits;
mod our_close;
mod peer_close;
mod resets;
mod writes;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use finrace_ebpf::decide::{FEW_BYTES, distance, state};
use foldhash::HashMap;

use self::after_reset::Dead;
use self::habits::Habits;
use super::balance::{Balance, Stage};
use super::event::{Event, Kind, SockKey, Tuple};
use super::model::{Close, Endpoint, Evidence, How, Nanos, Observation, Origin, Process, Role};
use super::owner::Owner;
use super::recent::Recent;
use super::turn::{self, Asked, AtRisk, Ended, Known, RunSettings, ServerEnd};

/// How long a small write is held back, in addition to two round trips: a farewell if our FIN follows.
const HOLD: Duration = Duration::from_millis(100);

/// How long an outcome is waited for, in addition to eight round trips.
const OUTCOME: Duration = Duration::from_secs(2);

/// After the start, or after a loss, requests without a known close are not judged: TIME_WAIT
/// lasts this long (`TCP_TIMEWAIT_LEN`, v6.12 include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_mins(1);

/// How often room is given back.
const TIDY: Duration = Duration::from_mins(1);

/// The most sockets past a FIN, past an RST, and closes of our own.
const LIMIT: usize = 16_384;

/// The most sockets whose last gap is kept in some form: many, since every connection that is used now and
/// then is among them.
const GAPS: usize = 65_536;

/// All that is kept of connections takes no more memory than this, however many there are.
pub const MEMORY: usize = 64 * 1024 * 1024;

const _: () = {
    const fn of<K, V>() -> usize {
        // A hash map has room for up to twice as many, an eighth of it empty.
        2 * (size_of::<(K, (Nanos, V))>() + 1)
    }
    let past = of::<SockKey, Followed>() + of::<SockKey, Dead>() + of::<Tuple, OurClose>();
    let gaps = of::<SockKey, Asked>() + of::<SockKey, Served>();
    assert!(LIMIT * past / 2 + GAPS * gaps / 2 <= MEMORY);
};

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
    /// First byte at risk, and segments with data sent before it.
    start: u32,
    segs_out: u32,
    process: Option<Process>,
    /// How it ended, while only the application's next step can tell what it was.
    waits: Option<Event>,
    /// Whether the application had read the peer's end, as it closed.
    has_noticed: Option<bool>,
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
    /// How far our application had read.
    read_to: u32,
    sent_fin: bool,
    /// The length of our last words, if there were any: as long as the client's own where those are TLS alerts.
    said: Option<u32>,
    /// These were a GOAWAY: what comes later is not acted on, and its client knows.
    has_gone_away: bool,
    /// A late request is reported once, however many segments it has.
    reported: bool,
}

/// A server's answer, or other words of it, after a silence.
#[derive(Clone, Copy, Debug)]
struct Served {
    /// `rcv_nxt` then.
    rcv_nxt: u32,
    silence_ms: u32,
    /// They answered nothing, or a ping.
    is_ping: bool,
}

impl Served {
    fn new(rcv_nxt: u32, silence: Duration, is_ping: bool) -> Self {
        let silence_ms = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
        Self { rcv_nxt, silence_ms, is_ping }
    }

    /// The silence that the connection has outlived up to this close: see [`turn::outlived`].
    fn outlived(self, event: &Event, ended: Ended) -> Duration {
        let silence = Duration::from_millis(self.silence_ms.into());
        let came = event.raw.rcv_nxt.wrapping_sub(self.rcv_nxt);
        if self.is_ping && ended.evidence == Evidence::Idle && came <= FEW_BYTES {
            silence.saturating_add(ended.idle)
        } else {
            silence
        }
    }
}

/// A port that is listened on.
#[derive(Debug, Default)]
struct Listening {
    sockets: u32,
    /// Who owns accepted sockets: learned as they close, where the listener was there before us.
    owner: Owner,
}

/// Why a timer was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The small write of this time was held back.
    Held(Nanos),
    /// An outcome is overdue.
    Outcome,
    /// The owner of a socket that was reset has not let go of it.
    Kept,
}

#[derive(Debug)]
pub struct Tracker {
    settings: RunSettings,
    followed: Recent<SockKey, Followed>,
    asked: Recent<SockKey, Asked>,
    /// A server's last answer after a silence.
    answered: Recent<SockKey, Served>,
    closed: Recent<Tuple, OurClose>,
    /// By both addresses: where the other end of a connection is on this host, in any namespace.
    closes_of: Recent<[Endpoint; 2], Tuple>,
    /// Sockets that an RST has ended, until they are let go of.
    dead: Recent<SockKey, Dead>,
    /// Requests that hang and have been told: by socket, as they were told.
    pending: Recent<SockKey, Finding>,
    habits: Habits,
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
    pub fn new(settings: RunSettings, listeners: impl IntoIterator<Item = (u32, u16)>) -> Self {
        let mut known: HashMap<_, Listening> = HashMap::default();
        for listener in listeners {
            known.entry(listener).or_default().sockets += 1;
        }
        Self {
            settings,
            followed: Recent::new(LIMIT, Duration::from_mins(10)),
            asked: Recent::new(GAPS, Duration::from_mins(1)),
            answered: Recent::new(GAPS, Duration::from_mins(1)),
            closed: Recent::new(LIMIT, 2 * TIME_WAIT),
            closes_of: Recent::new(LIMIT, 2 * TIME_WAIT),
            dead: Recent::new(LIMIT, Duration::from_hours(2)),
            pending: Recent::new(1_024, Duration::from_hours(1)),
            habits: Habits::default(),
            listeners: known,
            timers: BinaryHeap::new(),
            blind_until: settings.start + TIME_WAIT,
            lost_until: Nanos(0),
            findings: Vec::new(),
            tidied: settings.start,
        }
    }

    /// What is kept: sockets past the peer's FIN, clients' writes and servers' answers after a
    /// gap, our own recent closes, sockets that were reset; with the limit of each.
    pub fn fill(&self) -> [(&'static str, usize, usize); 5] {
        [
            ("followed", self.followed.count(), LIMIT),
            ("started", self.asked.count(), GAPS),
            ("answered", self.answered.count(), GAPS),
            ("closed", self.closed.count(), LIMIT),
            ("reset", self.dead.count(), LIMIT),
        ]
    }

    /// What became of all that was kept, whatever it was.
    pub fn balance(&self) -> Balance {
        let stage = Stage::Tracker;
        let Self { followed, asked, answered, closed, closes_of, dead, pending, .. } = self;
        [
            followed.balance(stage),
            asked.balance(stage),
            answered.balance(stage),
            closed.balance(stage),
            closes_of.balance(stage),
            dead.balance(stage),
            pending.balance(stage),
        ]
        .into_iter()
        .fold(Balance::of(stage), Balance::plus)
    }

    /// Sockets past a FIN that found no room: what is missing of them says nothing.
    pub fn refused(&self) -> u64 {
        self.followed.refused
    }

    /// Gaps, and resets of idle sockets, that found no room: these are missing, and nothing else.
    pub fn gaps_refused(&self) -> u64 {
        self.asked.refused + self.answered.refused + self.dead.refused
    }

    /// Closes of our own that were forgotten early: this happens where there are many per second.
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
        // Only an unknown connection says nothing: the latest closes are still known.
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
            (Kind::Destroyed, ..) => self.destroyed(event),
            (Kind::Retransmitted, ..) => self.hangs(event),
        }
    }

    /// Stops waiting for what was due by `now`, a time up to which all events have come.
    pub fn expire(&mut self, now: Nanos) {
        while let Some(Reverse((due, timer, key))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            self.ring(timer, key, due);
        }
        if now.since(self.tidied) >= TIDY {
            self.tidied = now;
            self.tidy(now);
        }
    }

    /// Gives back the room that a burst took. Of what is kept, only our own closes leave because of their
    /// age: the others wait for a close that is still to come.
    fn tidy(&mut self, now: Nanos) {
        self.closed.forget(now);
        self.closed.shrink();
        self.closes_of.forget(now);
        self.closes_of.shrink();
        self.dead.forget(now);
        self.dead.shrink();
        self.pending.forget(now);
        self.followed.shrink();
        self.asked.shrink();
        self.answered.shrink();
        if self.timers.capacity() / 4 > self.timers.len().max(256) {
            self.timers.shrink_to(2 * self.timers.len());
        }
    }

    fn say(&mut self, observation: Observation, lost: Option<Lost>) {
        self.findings.push(Finding { observation, lost });
    }

    fn say_close(
        &mut self,
        event: &Event,
        origin: Origin,
        how: How,
        ended: Ended,
        (asked, served): (Option<&Asked>, Option<Served>),
    ) {
        let Ended { closer, evidence, idle } = ended;
        let time = event.time;
        let served = served.map(|served| served.outlived(event, ended));
        let outlived = turn::outlived(event, ended, asked).max(served.unwrap_or_default());
        let close = Close { time, origin, closer, how, evidence, idle, outlived };
        self.say(Observation::Close(close), None);
    }

    /// The end of the run: what still waits for its outcome is told without one.
    pub fn finish(&mut self, now: Nanos) {
        for key in self.followed.keys() {
            self.tell_unknown(key, now);
        }
        for key in self.dead.keys() {
            self.still_kept(key);
        }
    }

    /// Sets a timer. There are at most a few for each thing that is kept; beyond that, the oldest goes off early.
    fn set_timer(&mut self, due: Nanos, timer: Timer, key: SockKey) {
        if self.timers.len() >= 4 * LIMIT
            && let Some(Reverse((oldest, timer, key))) = self.timers.pop()
        {
            self.ring(timer, key, oldest);
        }
        self.timers.push(Reverse((due, timer, key)));
    }

    /// A timer goes off.
    fn ring(&mut self, timer: Timer, key: SockKey, due: Nanos) {
        match timer {
            Timer::Held(written) => self.release(key, written),
            Timer::Outcome => self.give_up(key, due),
            Timer::Kept => self.still_kept(key),
        }
    }

    /// Without a record of its own, a write proves to have had no gap only if the hook was there
    /// at the time, nothing was lost since, and what was kept of it is still there.
    fn known<'a>(&self, event: &Event, role: Role, asked: Option<&'a Asked>) -> Known<'a> {
        let sent_ago = self.settings.ticks.between(event.raw.lsndtime, event.raw.jiffies);
        let since = self.settings.start.max(self.asked.left_until);
        let sees_writes = self.settings.sees_writes
            && event.time > self.lost_until
            && event.time.since(since) > sent_ago;
        let server = if role == Role::Client { self.server_end(event) } else { None };
        let settings = RunSettings { sees_writes, ..self.settings };
        Known { role, asked, server, settings }
    }

    /// The other end as it closed, if it is on this host.
    fn server_end(&self, event: &Event) -> Option<ServerEnd> {
        let Tuple { local, remote, .. } = event.key.tuple;
        let close = self.closed.get(self.closes_of.get(&[remote, local])?)?;
        let is_same = distance(close.snd_nxt, event.raw.rcv_nxt).abs() <= 1;
        is_same.then_some(ServerEnd {
            received: close.rcv_nxt,
            read: close.read_to,
            is_fin_lost: close.sent_fin && close.reported,
        })
    }

    /// Forgets the writes of a socket that closes: the last after a gap, and a server's last words
    /// after one.
    fn take_asked(&mut self, event: &Event, role: Role) -> (Option<Asked>, Option<Served>) {
        let served = if role == Role::Client { None } else { self.answered.remove(&event.key) };
        let asked = self.asked.remove(&event.key);
        if let Some(asked) = &asked {
            self.habits.learn(&event.key, asked, event);
        }
        (asked, served)
    }
}

/// The key of the port that an event is at.
fn listener(event: &Event) -> (u32, u16) {
    (event.key.tuple.netns, event.key.tuple.local.port)
}
