//! What one record says, given what is known of its connection: pure functions, no state.
//!
//! Sequence numbers decide the class; stamps only give durations. The surprise: in ESTABLISHED an
//! RST's own ACK is not yet applied when it is seen, so `snd_una` says nothing there.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FAREWELL_BYTES, distance};

use super::event::{Event, Ticks};
use super::model::{Class, Closer, Evidence, How, Nanos, Process, Role};
use super::owner::Owner;

/// How soon our own close must follow a small write for that to be a farewell, and how soon a FIN
/// must follow data for the two to belong together.
pub const AT_ONCE: Duration = Duration::from_millis(50);

/// What may come unread with a FIN and still be the reason of an idle close in words, which some
/// servers send: `PostgreSQL` 15's for `idle_session_timeout` takes 116 bytes.
const IDLE_MESSAGE_BYTES: u32 = 192;

/// What holds for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub ticks: Ticks,
    /// A gap longer than this makes a write a reuse.
    pub threshold: Duration,
    /// A hook sees writes: what it did not record did not happen.
    pub sees_writes: bool,
    /// When the programs were attached.
    pub start: Nanos,
}

/// An RST this soon after a small write may have come before the close that makes it a farewell:
/// on loopback it is there before the write returns.
pub const BEFORE_CLOSE: Duration = Duration::from_millis(1);

/// Linux's `ETIMEDOUT`, in `sk_err` when the kernel gave up on a connection.
const ETIMEDOUT: u32 = 110;

/// `ENETUNREACH`, `EHOSTDOWN`, `EHOSTUNREACH`: in its place where ICMP had told why nobody answers
/// (`tcp_write_err` prefers `sk_err_soft`, v6.12 `net/ipv4/tcp_timer.c`).
const UNREACHABLE: [u32; 3] = [101, 112, 113];

/// A write after a gap, remembered until the connection shows what became of it.
#[derive(Clone, Debug)]
pub struct Started {
    pub time: Nanos,
    pub role: Role,
    pub kind: StartedKind,
    /// Bytes of the first write.
    pub bytes: u32,
    /// `write_seq` before it: the sequence number of its first byte.
    pub start: u32,
    /// `rcv_nxt` then: an answer moves it.
    pub rcv_nxt: u32,
    pub owner: Owner,
    pub process: Option<Process>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedKind {
    /// We spoke after this long a gap.
    Gap(Duration),
    /// The peer spoke after this long a silence, and we at once: maybe our reply to its farewell,
    /// or a request that came just after it.
    Reply(Duration),
}

impl Started {
    /// The gap before it, if it was a request. After the peer's farewell, the silence is.
    pub fn gap(&self) -> Option<Duration> {
        match self.kind {
            StartedKind::Gap(gap) => Some(gap),
            StartedKind::Reply(silence) if !self.is_small() => Some(silence),
            StartedKind::Reply(_) => None,
        }
    }

    /// The gap before it, if it was an exchange and no farewell: what a reuse says.
    pub fn reuse_gap(&self) -> Option<Duration> {
        match (self.role, self.kind) {
            (Role::Client, StartedKind::Gap(gap)) | (Role::Server, StartedKind::Reply(gap)) => {
                Some(gap)
            }
            _ => None,
        }
    }

    /// Whether nothing was written after it, up to this event.
    fn is_last(&self, event: &Event) -> bool {
        event.raw.write_seq.wrapping_sub(self.start) == self.bytes
    }

    /// Bytes received since; `fin` if the peer's FIN is counted in `rcv_nxt`.
    fn answered(&self, event: &Event, fin: bool) -> u32 {
        event.raw.rcv_nxt.wrapping_sub(self.rcv_nxt).saturating_sub(fin.into())
    }

    /// Small enough to be a farewell or a control frame.
    pub fn is_small(&self) -> bool {
        self.bytes <= FAREWELL_BYTES
    }

    /// Whether no answer has begun: nothing came since, or a few bytes just now, with the close:
    /// a farewell. `fin` if the peer's FIN is counted in `rcv_nxt`.
    pub fn is_unanswered(&self, event: &Event, stamps: &Stamps, fin: bool) -> bool {
        let answered = self.answered(event, fin);
        answered == 0 || (answered <= FAREWELL_BYTES && stamps.heard_ago <= AT_ONCE)
    }
}

/// What is known of a connection beside the record at hand.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub role: Role,
    /// Its last write after a gap.
    pub started: Option<&'a Started>,
    pub settings: Settings,
}

impl Known<'_> {
    /// The gap before a request of ours, if `is_open` says that nothing has come of it.
    ///
    /// With a write hook, no record means no gap: an upload that lasts longer than the threshold
    /// has none. Without one, stamps are all there is, and they cannot tell the two apart.
    fn open_gap(&self, stamps: &Stamps, is_open: impl Fn(&Started) -> bool) -> Option<Duration> {
        match self.started.filter(|s| s.gap().is_some()) {
            Some(s) => s.gap().filter(|_| is_open(s)),
            None if self.settings.sees_writes => None,
            None => Some(stamps.sent_after).filter(|gap| *gap > self.settings.threshold),
        }
    }
}

/// Durations of a record's stamps.
#[derive(Clone, Copy, Debug)]
pub struct Stamps {
    /// Since our last data.
    pub sent_ago: Duration,
    /// Since the peer's last data.
    pub heard_ago: Duration,
    /// Our last data after the peer's, by stamps: zero if it came before.
    pub sent_after: Duration,
    /// The peer's last data after ours.
    pub heard_after: Duration,
}

impl Stamps {
    pub fn of(event: &Event, ticks: Ticks) -> Self {
        let raw = &event.raw;
        Self {
            sent_ago: ticks.between(raw.lsndtime, raw.jiffies),
            heard_ago: ticks.between(raw.lrcvtime, raw.jiffies),
            sent_after: ticks.between(raw.lrcvtime, raw.lsndtime),
            heard_after: ticks.between(raw.lsndtime, raw.lrcvtime),
        }
    }

    pub fn idle(&self) -> Duration {
        self.sent_ago.min(self.heard_ago)
    }
}

/// What a close says about an idle timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub closer: Closer,
    pub evidence: Evidence,
    pub idle: Duration,
}

/// What the peer's FIN did to bytes of ours that were on their way or just acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtFin {
    /// All is acknowledged, or nobody waits for an answer.
    Nothing,
    /// Our exchange was not acknowledged, and no answer had begun.
    Crossed { gap: Duration },
    /// Bytes were not acknowledged, but the answer had begun, or no gap was before them.
    Early,
    /// A request was acknowledged and not answered. `at_once`: after a gap, and the FIN followed
    /// so fast that the peer's event loop may have read it and fired its timer in one turn.
    Unanswered { gap: Option<Duration>, at_once: bool },
}

/// The peer's FIN, ESTABLISHED->CLOSE_WAIT: `tcp_ack` has run, `rcv_nxt` counts the FIN.
pub fn peer_fin(event: &Event, known: Known<'_>) -> (AtFin, Ended) {
    let Known { role, started, settings: Settings { ticks, threshold, .. } } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    if let Some(ended) = last_words(event, started, &stamps) {
        return (AtFin::Nothing, ended);
    }
    let request = started.filter(|s| {
        s.gap().is_some()
            && s.is_unanswered(event, &stamps, true)
            && (s.is_last(event) || s.answered(event, true) == 0)
    });

    if role == Role::Client && event.unacked() != 0 {
        // A FIN that acknowledges part of it comes from a server that has read that part.
        let gap = known.open_gap(&stamps, |s| raw.snd_una == s.start);
        let idle = gap.unwrap_or(stamps.idle());
        let at_fin = gap.map_or(AtFin::Early, |gap| AtFin::Crossed { gap });
        return (at_fin, ended(Evidence::Unanswered, idle));
    }
    if role == Role::Client {
        if let Some(start) = request {
            // A control frame (WINDOW_UPDATE, pong) is data, and not a request.
            if start.is_small() {
                let evidence =
                    if stamps.idle() > threshold { Evidence::Idle } else { Evidence::UpperBound };
                let since_gap = start.gap().unwrap_or_default() + stamps.sent_ago;
                let idle = if evidence == Evidence::Idle { stamps.idle() } else { since_gap };
                return (AtFin::Nothing, ended(evidence, idle));
            }
            let at_once = event.time.since(start.time) <= event.rtt() + AT_ONCE;
            let at_fin = AtFin::Unanswered { gap: start.gap(), at_once };
            return (at_fin, ended(Evidence::Unanswered, stamps.sent_ago));
        }
        if stamps.sent_after > Duration::ZERO {
            let gap = known.open_gap(&stamps, |_| false);
            let at_once = gap.is_some() && stamps.sent_ago <= event.rtt() + AT_ONCE;
            // Long after a last send without a gap before it: a control frame and an idle close,
            // or a server that gave up. Nothing here tells which, so nothing is claimed.
            let at_fin = if gap.is_none() && stamps.sent_ago > threshold {
                AtFin::Nothing
            } else {
                AtFin::Unanswered { gap, at_once }
            };
            return (at_fin, ended(Evidence::Unanswered, stamps.sent_ago));
        }
    }
    (AtFin::Nothing, quiet_fin(event, &stamps, threshold))
}

/// The peer's FIN within a round trip of a few bytes of ours, and before our own: farewells.
fn last_words(event: &Event, started: Option<&Started>, stamps: &Stamps) -> Option<Ended> {
    let ours = started.filter(|s| {
        s.is_small()
            && s.is_last(event)
            && event.time.since(s.time) <= event.rtt() + AT_ONCE
            && s.is_unanswered(event, stamps, true)
    })?;
    match ours.kind {
        // Ours came first, and the peer's reply and FIN were faster than our own.
        StartedKind::Gap(idle) if event.unacked() == 0 => {
            Some(Ended { closer: Closer::Local, evidence: Evidence::Idle, idle })
        }
        StartedKind::Gap(_) => None,
        // We have replied to the peer's, and its FIN was faster than ours.
        StartedKind::Reply(idle) => {
            Some(Ended { closer: Closer::Peer, evidence: Evidence::UpperBound, idle })
        }
    }
}

/// A FIN of the peer with nothing at risk: is it an idle close?
fn quiet_fin(event: &Event, stamps: &Stamps, threshold: Duration) -> Ended {
    let raw = &event.raw;
    // `bytes_received` counts the FIN.
    let (evidence, idle) = if raw.bytes_received <= 1 && raw.data_segs_out == 0 {
        (Evidence::Unused, stamps.idle())
    } else if stamps.idle() > threshold {
        (Evidence::Idle, stamps.idle())
    } else if stamps.sent_ago > threshold && event.unread(true) <= IDLE_MESSAGE_BYTES {
        // A short record came with the FIN, long after our last data: a farewell.
        (Evidence::UpperBound, stamps.sent_ago)
    } else {
        (Evidence::AfterData, stamps.idle())
    };
    Ended { closer: Closer::Peer, evidence, idle }
}

/// What our own first FIN left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOurClose {
    Nothing,
    /// The peer's farewell came instead of an answer, and we closed before its FIN. `acked` says
    /// whether its kernel had the request by then.
    Farewelled {
        gap: Duration,
        acked: bool,
    },
    /// We gave up on a request that nobody acknowledged, although it was sent again.
    GaveUp {
        gap: Option<Duration>,
    },
    /// A few last bytes before the FIN were a farewell, not a request.
    Farewell,
}

/// Our own FIN, ESTABLISHED->FIN_WAIT1; not queued yet, so `write_seq` does not count it.
pub fn our_fin(event: &Event, known: Known<'_>) -> (AtOurClose, Ended) {
    let Known { role, started, settings: Settings { ticks, threshold, .. } } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |closer, evidence, idle| Ended { closer, evidence, idle };

    if let AtOurClose::GaveUp { gap } = gave_up(event, known, &stamps) {
        let idle = gap.unwrap_or(stamps.heard_ago);
        return (AtOurClose::GaveUp { gap }, ended(Closer::Local, Evidence::Unanswered, idle));
    }
    if let Some(ended) = parting_words(event, started, &stamps) {
        return (AtOurClose::Farewell, ended);
    }
    if let Some(gap) = known.started.and_then(Started::gap)
        && let Some(acked) = farewelled(event, known, &stamps)
    {
        let at = AtOurClose::Farewelled { gap, acked };
        // Acknowledged, the few bytes may as well be an answer.
        let ended = if acked {
            ended(Closer::Local, Evidence::AfterData, stamps.idle())
        } else {
            ended(Closer::Peer, Evidence::Unanswered, gap)
        };
        return (at, ended);
    }
    // A few bytes came after a silence, and we close on them: the peer's farewell.
    let heard = raw.rcv_nxt.wrapping_sub(raw.rcv_wup);
    if (1..=FAREWELL_BYTES).contains(&heard)
        && stamps.heard_ago <= AT_ONCE
        && stamps.sent_ago > threshold
    {
        return (AtOurClose::Nothing, ended(Closer::Peer, Evidence::UpperBound, stamps.sent_ago));
    }
    let speaks_last = stamps.sent_after > Duration::ZERO;
    let awaits = match role {
        Role::Client => speaks_last,
        Role::Server => stamps.heard_after > Duration::ZERO,
        Role::Unknown => false,
    };
    let (evidence, idle) = if raw.bytes_received == 0 && raw.data_segs_out == 0 {
        (Evidence::Unused, stamps.idle())
    } else if event.unacked() != 0 && stamps.idle() > threshold {
        (Evidence::AfterData, stamps.idle())
    } else if awaits && stamps.idle() > threshold {
        (Evidence::Unanswered, stamps.idle())
    } else if stamps.idle() > threshold {
        (Evidence::Idle, stamps.idle())
    } else if stamps.sent_ago <= AT_ONCE && stamps.heard_ago > threshold {
        (Evidence::UpperBound, stamps.heard_ago)
    } else {
        (Evidence::AfterData, stamps.idle())
    };
    (AtOurClose::Nothing, ended(Closer::Local, evidence, idle))
}

/// Our own close right after a few bytes of ours: those were a farewell, or the reply to one.
fn parting_words(event: &Event, started: Option<&Started>, stamps: &Stamps) -> Option<Ended> {
    let ours = started.filter(|s| {
        // What follows a short answer is the farewell, not what came before the answer.
        let is_last_word = s.answered(event, false) == 0 || (s.is_last(event) && s.gap().is_some());
        s.is_small()
            && is_last_word
            && event.time.since(s.time) <= AT_ONCE + event.rtt()
            && s.is_unanswered(event, stamps, false)
    })?;
    let (closer, evidence, idle) = match ours.kind {
        StartedKind::Gap(gap) => (Closer::Local, Evidence::Idle, gap),
        StartedKind::Reply(silence) => (Closer::Peer, Evidence::UpperBound, silence),
    };
    Some(Ended { closer, evidence, idle })
}

/// Whether a client's request met the peer's farewell, so that we close first: `Some(acked)`.
/// Bytes that do not acknowledge the request cannot be its answer.
fn farewelled(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<bool> {
    let raw = &event.raw;
    let start = known.started.filter(|s| known.role == Role::Client && !s.is_small())?;
    let answered = raw.rcv_nxt.wrapping_sub(start.rcv_nxt);
    let few = match start.kind {
        StartedKind::Gap(_) => (1..=FAREWELL_BYTES).contains(&answered),
        StartedKind::Reply(_) => answered == 0,
    };
    let at_once = event.time.since(start.time) <= event.rtt() + AT_ONCE;
    if !few || !at_once || stamps.heard_ago > event.rtt() + AT_ONCE {
        return None;
    }
    Some(raw.snd_una != start.start)
}

/// Whether a client's request after a gap was never acknowledged, although it was sent again. The
/// gap is known only from its record: a retransmission touches `lsndtime`.
fn gave_up(event: &Event, known: Known<'_>, stamps: &Stamps) -> AtOurClose {
    let Known { role, started, settings } = known;
    let raw = &event.raw;
    if role != Role::Client || event.unacked() == 0 || raw.retransmits == 0 {
        return AtOurClose::Nothing;
    }
    let untouched = if let Some(s) = started {
        s.gap().is_some() && raw.snd_una == s.start && raw.rcv_nxt == s.rcv_nxt
    } else {
        // Nothing at all, not even an ACK, since long before our last (re)transmission.
        !settings.sees_writes
            && distance(raw.lrcvtime, raw.rcv_tstamp) >= 0
            && stamps.sent_after > settings.threshold
    };
    let gap = started.and_then(Started::gap);
    if untouched { AtOurClose::GaveUp { gap } } else { AtOurClose::Nothing }
}

/// The kernel gave up: ->CLOSE with `ETIMEDOUT`.
pub fn timed_out(event: &Event, known: Known<'_>) -> Option<(AtOurClose, Ended)> {
    if how(event) != How::Timeout {
        return None;
    }
    let stamps = Stamps::of(event, known.settings.ticks);
    let at = gave_up(event, known, &stamps);
    let idle = match at {
        AtOurClose::GaveUp { gap: Some(gap) } => gap,
        AtOurClose::GaveUp { gap: None }
        | AtOurClose::Nothing
        | AtOurClose::Farewelled { .. }
        | AtOurClose::Farewell => stamps.heard_ago,
    };
    Some((at, Ended { closer: Closer::Local, evidence: Evidence::Unanswered, idle }))
}

/// What an RST met in ESTABLISHED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtReset {
    /// A client's request after a gap: a race of this class.
    Reuse { class: Class, gap: Duration },
    /// A few bytes after a gap, and the RST at once.
    Farewell,
    /// An exchange was under way.
    MidStream,
    /// Nobody waited for anything.
    Quiet,
}

/// RST in ESTABLISHED. What sent it shows in the timestamp option: a live socket carries it where
/// it was negotiated, a reset without a socket does not (`tcp_v4_send_reset` against
/// `tcp_send_active_reset`, v6.12 net/ipv4).
pub fn reset(event: &Event, known: Known<'_>) -> (AtReset, Ended) {
    let Known { role, started, settings: Settings { ticks, threshold, .. } } = known;
    let stamps = Stamps::of(event, ticks);
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    if let Some(start) = started
        && let StartedKind::Reply(silence) = start.kind
        && start.is_small()
        && start.answered(event, false) == 0
        && event.time.since(start.time) <= event.rtt() + AT_ONCE
    {
        // Our reply to the peer's farewell met a close that would not wait for it.
        return (AtReset::Farewell, ended(Evidence::UpperBound, silence));
    }
    if role == Role::Client {
        // An ACK between the last answer and our last data: several flights, so under way. If all
        // is acknowledged, the last ACK is that of our last data, maybe of the same jiffy.
        let acked_between = event.unacked() != 0
            && distance(event.raw.rcv_tstamp, event.raw.lrcvtime) > 0
            && distance(event.raw.lsndtime, event.raw.rcv_tstamp) >= 0;
        let gap = known
            .open_gap(&stamps, |s| s.is_unanswered(event, &stamps, false))
            .filter(|_| started.is_some() || !acked_between);
        if let Some(gap) = gap {
            let small = started.is_some_and(|s| {
                s.is_small() && s.is_last(event) && event.time.since(s.time) <= BEFORE_CLOSE
            });
            let class = if !event.has(flag::TSTAMP_OK) {
                Class::ResetAfterReuse
            } else if event.has(flag::SAW_TSTAMP) {
                Class::UnreadClose
            } else {
                Class::SilentDrop
            };
            let at = if small { AtReset::Farewell } else { AtReset::Reuse { class, gap } };
            return (at, ended(Evidence::Unanswered, gap));
        }
    }
    let under_way = stamps.sent_after > Duration::ZERO || stamps.idle() <= threshold;
    if event.raw.bytes_received == 0 && event.raw.data_segs_out == 0 {
        (AtReset::Quiet, ended(Evidence::Unused, stamps.idle()))
    } else if role == Role::Server && stamps.idle() > threshold {
        // Our answer was last, and the client left an idle connection.
        (AtReset::Quiet, ended(Evidence::Idle, stamps.idle()))
    } else if under_way {
        (AtReset::MidStream, ended(Evidence::AfterData, stamps.idle()))
    } else {
        (AtReset::Quiet, ended(Evidence::Idle, stamps.idle()))
    }
}

/// Our own abortive close in task context, ESTABLISHED->CLOSE: unread data or `SO_LINGER` 0.
/// `Some(idle)` with it if it threw away a client's request: over 96 unread bytes that came after
/// a silence over the threshold.
pub fn our_abort(event: &Event, known: Known<'_>) -> (Option<Duration>, Ended) {
    let Known { role, started, settings: Settings { ticks, threshold, .. } } = known;
    let stamps = Stamps::of(event, ticks);
    let unread = event.unread(false);
    if let Some(ended) = parting_words(event, started, &stamps) {
        return (None, ended);
    }
    // A few bytes came after a silence, and we did not even read them: the peer's farewell.
    let limit = if role == Role::Server { FAREWELL_BYTES } else { IDLE_MESSAGE_BYTES };
    if (1..=limit).contains(&unread) && stamps.heard_ago <= AT_ONCE && stamps.sent_ago > threshold {
        let (closer, idle) = (Closer::Peer, stamps.sent_ago);
        return (None, Ended { closer, evidence: Evidence::UpperBound, idle });
    }
    let thrown_away =
        (role == Role::Server && unread > FAREWELL_BYTES && stamps.heard_after > threshold)
            .then_some(stamps.heard_after);
    let evidence = if unread > FAREWELL_BYTES {
        Evidence::Unanswered
    } else if event.raw.bytes_received == 0 && event.raw.data_segs_out == 0 {
        Evidence::Unused
    } else if stamps.idle() > threshold {
        Evidence::Idle
    } else {
        Evidence::AfterData
    };
    let idle = thrown_away.unwrap_or(stamps.idle());
    (thrown_away, Ended { closer: Closer::Local, evidence, idle })
}

/// How a close of this state change ended the connection.
pub fn how(event: &Event) -> How {
    let raw = &event.raw;
    let is_timeout = raw.code == ETIMEDOUT || UNREACHABLE.contains(&raw.code);
    if is_timeout { How::Timeout } else { How::Rst }
}
