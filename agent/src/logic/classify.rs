//! What one record says, given what is known of its connection: pure functions, no state.
//!
//! Sequence numbers decide the class; stamps only give durations. The surprise: in ESTABLISHED an
//! RST's own ACK is not yet applied when it is seen, so `snd_una` says nothing there.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FAREWELL_BYTES, distance};

use super::event::{Event, Ticks};
use super::model::{Class, Closer, Evidence, How, Nanos, Process, Role};

/// How soon our own close must follow a small write for that to be a farewell, and how soon a FIN
/// must follow data for the two to belong together.
pub const AT_ONCE: Duration = Duration::from_millis(50);

/// Linux's `ETIMEDOUT`, in `sk_err` when the kernel gave up on a connection.
const ETIMEDOUT: u32 = 110;

/// A write after a gap, remembered until the connection shows what became of it.
#[derive(Clone, Debug)]
pub struct Started {
    pub time: Nanos,
    pub kind: StartedKind,
    /// Bytes of the first write.
    pub bytes: u32,
    /// `write_seq` before it: the sequence number of its first byte.
    pub start: u32,
    /// `rcv_nxt` then: an answer moves it.
    pub rcv_nxt: u32,
    pub process: Option<Process>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedKind {
    /// We spoke after this long a gap.
    Gap(Duration),
    /// The peer spoke after this long a silence, and a few bytes of ours followed at once: maybe
    /// our reply to its farewell.
    Reply(Duration),
}

impl Started {
    pub fn gap(&self) -> Option<Duration> {
        match self.kind {
            StartedKind::Gap(gap) => Some(gap),
            StartedKind::Reply(_) => None,
        }
    }

    /// Small enough to be a farewell or a control frame.
    pub fn is_small(&self) -> bool {
        self.bytes <= FAREWELL_BYTES
    }

    /// Bytes received since; `fin` if the peer's FIN is among them.
    fn answered(&self, event: &Event, fin: bool) -> u32 {
        event.raw.rcv_nxt.wrapping_sub(self.rcv_nxt).saturating_sub(fin.into())
    }

    /// Whether no answer has begun: nothing came but perhaps a farewell.
    pub fn is_unanswered(&self, event: &Event, fin: bool) -> bool {
        self.answered(event, fin) <= FAREWELL_BYTES
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
pub fn peer_fin(
    event: &Event,
    role: Role,
    started: Option<&Started>,
    ticks: Ticks,
    threshold: Duration,
) -> (AtFin, Ended) {
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    let request = started.filter(|s| s.gap().is_some() && s.is_unanswered(event, true));

    if role == Role::Client && event.unacked() != 0 {
        let untouched = |s: &Started| raw.snd_una == s.start || s.is_unanswered(event, true);
        let gap = match started.filter(|s| s.gap().is_some()) {
            Some(s) => s.gap().filter(|_| untouched(s)),
            // No record of the start: bare FIN, stamps tell the gap before our last data.
            None => Some(stamps.sent_after).filter(|gap| *gap > threshold),
        };
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
            let gap = Some(stamps.sent_after).filter(|gap| *gap > threshold);
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

/// A FIN of the peer with nothing at risk: is it an idle close?
fn quiet_fin(event: &Event, stamps: &Stamps, threshold: Duration) -> Ended {
    let raw = &event.raw;
    // `bytes_received` counts the FIN.
    let (evidence, idle) = if raw.bytes_received <= 1 && raw.data_segs_out == 0 {
        (Evidence::Unused, stamps.idle())
    } else if stamps.idle() > threshold {
        (Evidence::Idle, stamps.idle())
    } else if stamps.sent_ago > threshold && event.unread(true) <= FAREWELL_BYTES {
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
    /// We gave up on a request that nobody acknowledged, although it was sent again.
    GaveUp {
        gap: Option<Duration>,
    },
    /// A few last bytes before the FIN were a farewell, not a request.
    Farewell,
}

/// Our own FIN, ESTABLISHED->FIN_WAIT1; not queued yet, so `write_seq` does not count it.
pub fn our_fin(
    event: &Event,
    role: Role,
    started: Option<&Started>,
    ticks: Ticks,
    threshold: Duration,
) -> (AtOurClose, Ended) {
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |closer, evidence, idle| Ended { closer, evidence, idle };

    if let AtOurClose::GaveUp { gap } = gave_up(event, role, started, &stamps, threshold) {
        let idle = gap.unwrap_or(stamps.heard_ago);
        return (AtOurClose::GaveUp { gap }, ended(Closer::Local, Evidence::Unanswered, idle));
    }
    if let Some(start) = started
        && start.is_small()
        && event.time.since(start.time) <= AT_ONCE
        && start.is_unanswered(event, false)
    {
        let (closer, evidence, idle) = match start.kind {
            StartedKind::Gap(gap) => (Closer::Local, Evidence::Idle, gap),
            StartedKind::Reply(silence) => (Closer::Peer, Evidence::UpperBound, silence),
        };
        return (AtOurClose::Farewell, ended(closer, evidence, idle));
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

/// Whether a client's request after a gap was never acknowledged, although it was sent again. The
/// gap is known only from its record: a retransmission touches `lsndtime`.
fn gave_up(
    event: &Event,
    role: Role,
    started: Option<&Started>,
    stamps: &Stamps,
    threshold: Duration,
) -> AtOurClose {
    let raw = &event.raw;
    if role != Role::Client || event.unacked() == 0 || raw.retransmits == 0 {
        return AtOurClose::Nothing;
    }
    let untouched = if let Some(s) = started {
        s.gap().is_some() && raw.snd_una == s.start && raw.rcv_nxt == s.rcv_nxt
    } else {
        // Nothing at all, not even an ACK, since long before our last (re)transmission.
        distance(raw.lrcvtime, raw.rcv_tstamp) >= 0 && stamps.sent_after > threshold
    };
    let gap = started.and_then(Started::gap);
    if untouched { AtOurClose::GaveUp { gap } } else { AtOurClose::Nothing }
}

/// The kernel gave up: ->CLOSE with `ETIMEDOUT`.
pub fn timed_out(
    event: &Event,
    role: Role,
    started: Option<&Started>,
    ticks: Ticks,
    threshold: Duration,
) -> Option<(AtOurClose, Ended)> {
    if event.raw.code != ETIMEDOUT {
        return None;
    }
    let stamps = Stamps::of(event, ticks);
    let at = gave_up(event, role, started, &stamps, threshold);
    let idle = match at {
        AtOurClose::GaveUp { gap: Some(gap) } => gap,
        AtOurClose::GaveUp { gap: None } | AtOurClose::Nothing | AtOurClose::Farewell => {
            stamps.heard_ago
        }
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
pub fn reset(
    event: &Event,
    role: Role,
    started: Option<&Started>,
    ticks: Ticks,
    threshold: Duration,
) -> (AtReset, Ended) {
    let stamps = Stamps::of(event, ticks);
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    if role == Role::Client {
        let recorded = started.filter(|s| s.gap().is_some());
        let gap = match recorded {
            Some(s) => s.gap().filter(|_| s.is_unanswered(event, false)),
            None => Some(stamps.sent_after).filter(|gap| *gap > threshold),
        };
        if let Some(gap) = gap {
            let small = recorded.is_some_and(|s| {
                s.is_small()
                    && event.raw.write_seq.wrapping_sub(s.start) <= FAREWELL_BYTES
                    && event.time.since(s.time) <= AT_ONCE
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
pub fn our_abort(
    event: &Event,
    role: Role,
    ticks: Ticks,
    threshold: Duration,
) -> (Option<Duration>, Ended) {
    let stamps = Stamps::of(event, ticks);
    let unread = event.unread(false);
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
    if event.raw.code == ETIMEDOUT { How::Timeout } else { How::Rst }
}
