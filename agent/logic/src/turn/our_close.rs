//! Our own close: FIN, abort, or the kernel that gave up; and requests that hang.

use std::time::Duration;

use finrace_ebpf::decide::{FEW_BYTES, distance};

use super::{
    AT_ONCE, Answer, Asked, AskedKind, Ended, IDLE_MESSAGE_BYTES, Known, Ruling, RunSettings,
    Stamps, is_first_answer, parted, past_farewell,
};
use crate::event::{Event, Word};
use crate::model::{Certainty, Class, Closer, Evidence, How, Role};

/// Linux's `ETIMEDOUT`, in `sk_err` when the kernel gave up on a connection.
const ETIMEDOUT: u32 = 110;

/// `ENETUNREACH`, `EHOSTDOWN`, `EHOSTUNREACH`: in its place where ICMP had said why nothing answers
/// (`tcp_write_err` prefers `sk_err_soft`, v6.12 `net/ipv4/tcp_timer.c`).
const UNREACHABLE: [u32; 3] = [101, 112, 113];

/// What our own first FIN left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOurClose {
    pub ended: Ended,
    pub told: Option<Ruling>,
    /// A few last bytes before the FIN were a farewell, not a request.
    pub is_farewell: bool,
}

impl AtOurClose {
    const fn quiet(ended: Ended) -> Self {
        Self { ended, told: None, is_farewell: false }
    }
}

/// Our own FIN, ESTABLISHED->FIN_WAIT1; not queued yet, so `write_seq` does not count it.
pub fn our_fin(event: &Event, known: Known<'_>) -> AtOurClose {
    let Known { role, asked, settings: RunSettings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |closer, evidence, idle| Ended { closer, evidence, idle };

    if let Some(told) = gave_up(event, known, &stamps) {
        let idle = told.gap.unwrap_or(stamps.heard_ago);
        let ended = ended(Closer::Local, Evidence::Unanswered, idle);
        return AtOurClose { ended, told: Some(told), is_farewell: false };
    }
    if let Some(ended) = parting_words(event, known, &stamps) {
        return AtOurClose { ended, told: None, is_farewell: true };
    }
    if let Some(lost) = farewelled(event, known, &stamps) {
        return lost;
    }
    // The peer spoke after a silence, in few bytes, and we close on them: its farewell, unless they were
    // the first answer.
    let heard = match event.last_heard() {
        0 => raw.rcv_nxt.wrapping_sub(raw.rcv_wup),
        last => last,
    };
    if (1..=FEW_BYTES).contains(&heard)
        && stamps.heard_ago <= AT_ONCE
        && stamps.sent_ago > threshold
        && stamps.heard_after > threshold
        && !(role == Role::Server && event.unread(false) > 0)
        && !is_first_answer(event, asked)
    {
        return AtOurClose::quiet(ended(Closer::Peer, Evidence::UpperBound, stamps.sent_ago));
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
    } else if stamps.sent_ago <= AT_ONCE
        && stamps.heard_ago > threshold
        && had_answered(event, role)
    {
        (Evidence::UpperBound, stamps.heard_ago)
    } else {
        (Evidence::AfterData, stamps.idle())
    };
    AtOurClose::quiet(ended(Closer::Local, evidence, idle))
}

/// Whether our last words, just before our FIN, were a farewell and not a slow answer. A server can tell
/// while they are in flight: the client's latest segment was a bare acknowledgement, and so one of an earlier
/// answer. A client asks, so if it closes at once, its words were no answer.
fn had_answered(event: &Event, role: Role) -> bool {
    let raw = &event.raw;
    role != Role::Server || (event.unacked() != 0 && raw.snd_wl1 == raw.rcv_nxt)
}

/// Our own close after last words of ours, or right after a few bytes: those were a farewell, or the
/// reply to one.
fn parting_words(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Ended> {
    let ticks = known.settings.ticks;
    let ours = known.asked.filter(|asked| {
        let at_once = event.time.since(asked.time) <= AT_ONCE + event.rtt();
        if asked.word == Word::Farewell {
            return true; // however late our own FIN comes: a TLS server waits for its client's
        }
        // A server that answers a request and closes says no farewell; words that nobody asked for may be one.
        if asked.role == Role::Server {
            return matches!(asked.kind, AskedKind::Gap(_)) && at_once && event.unread(false) == 0;
        }
        if !asked.is_doubtful() || !at_once || asked.unread > 0 {
            return false;
        }
        // What follows a short answer is the farewell, not what came before the answer.
        match asked.answer(event, ticks, false) {
            Answer::None => true,
            Answer::Parting | Answer::Alert => asked.is_last(event) && stamps.heard_ago <= AT_ONCE,
            Answer::Answered => {
                asked.is_last(event)
                    && matches!(asked.kind, AskedKind::Gap(_))
                    && event.raw.acked_us == 0
                    && asked.heard(event, false) <= FEW_BYTES
                    && stamps.heard_ago <= AT_ONCE
            }
        }
    })?;
    Some(parted(ours))
}

/// Whether a client's request met the peer's farewell, so that we close first.
fn farewelled(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<AtOurClose> {
    let ticks = known.settings.ticks;
    // A client that writes with the peer's words unread, then reads them and closes, has waited for an answer.
    let has_waited = |asked: &Asked| asked.came_after_words() && event.unread(false) == 0;
    let asked = known.asked.filter(|asked| {
        known.role == Role::Client && (!asked.is_doubtful() || has_waited(asked))
    })?;
    let gap = asked.gap()?;
    let lost = |told, closer, evidence, idle| AtOurClose {
        ended: Ended { closer, evidence, idle },
        told: Some(told),
        is_farewell: false,
    };
    let answer = asked.answer(event, ticks, false);
    let at_once = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
    match (answer, asked.kind) {
        // Written with the farewell unread, and nothing came since.
        (Answer::None | Answer::Parting | Answer::Alert, _) if asked.came_after_words() => {
            let told = past_farewell(asked.word, asked.unread, gap, Certainty::Certain);
            Some(lost(told, Closer::Peer, Evidence::UpperBound, asked.silence))
        }
        (Answer::None, AskedKind::Reply(silence)) if at_once && asked.last_heard <= FEW_BYTES => {
            if event.raw.snd_una == asked.start {
                let told = Ruling::inferred(Class::FinCrossed, Some(gap));
                return Some(lost(told, Closer::Peer, Evidence::Unanswered, gap));
            }
            let told = Ruling::inferred(Class::ReadAndClosed, Some(gap));
            let told = Ruling { doubt: Some(silence), ..told };
            Some(lost(told, Closer::Local, Evidence::AfterData, stamps.idle()))
        }
        (Answer::Alert, AskedKind::Gap(_)) => {
            let told = Ruling::certain(Class::ReadAndClosed, Some(gap));
            Some(lost(told, Closer::Peer, Evidence::Unanswered, gap))
        }
        (Answer::Parting, AskedKind::Gap(_)) => {
            let told = Ruling::certain(Class::FinCrossed, Some(gap));
            Some(lost(told, Closer::Peer, Evidence::Unanswered, gap))
        }
        _ => None,
    }
}

/// Whether a client's request after a gap was never acknowledged, although it was sent again. The
/// gap is known only from its record: a retransmission touches `lsndtime`.
fn gave_up(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Ruling> {
    let Known { role, asked, settings, .. } = known;
    let raw = &event.raw;
    if role != Role::Client || event.unacked() == 0 || raw.retransmits == 0 {
        return None;
    }
    let untouched = if let Some(asked) = asked {
        asked.gap().is_some() && raw.snd_una == asked.start && raw.rcv_nxt == asked.rcv_nxt
    } else {
        // Nothing at all, not even an ACK, since long before our last (re)transmission.
        !settings.sees_writes
            && distance(raw.lrcvtime, raw.rcv_tstamp) >= 0
            && stamps.sent_after > settings.threshold
    };
    untouched.then(|| Ruling::inferred(Class::SilentDrop, asked.and_then(Asked::gap)))
}

/// A request that hangs: sent for the fourth time, and nothing came.
pub fn hangs(event: &Event, known: Known<'_>) -> Option<Ruling> {
    gave_up(event, known, &Stamps::of(event, known.settings.ticks))
        .filter(|told| told.gap.is_some())
}

/// The kernel gave up: ->CLOSE with `ETIMEDOUT`.
pub fn timed_out(event: &Event, known: Known<'_>) -> Option<AtOurClose> {
    if how(event) != How::Timeout {
        return None;
    }
    let stamps = Stamps::of(event, known.settings.ticks);
    let told = gave_up(event, known, &stamps);
    let idle = told.and_then(|told| told.gap).unwrap_or(stamps.heard_ago);
    let ended = Ended { closer: Closer::Local, evidence: Evidence::Unanswered, idle };
    Some(AtOurClose { ended, told, is_farewell: false })
}

/// Our own abortive close in task context, ESTABLISHED->CLOSE: unread data or `SO_LINGER` 0. Comes with
/// `Some(idle)` if it threw away a client's request that came after a silence over the threshold.
pub fn our_abort(event: &Event, known: Known<'_>) -> (Option<Duration>, Ended) {
    let Known { role, settings: RunSettings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let unread = event.unread(false);
    if let Some(ended) = parting_words(event, known, &stamps) {
        return (None, ended);
    }
    // A few bytes came after a silence, and we did not even read them: the peer's farewell, or on a server
    // maybe a request; the other end tells, or what requests look like here.
    let limit = if role == Role::Server { FEW_BYTES } else { IDLE_MESSAGE_BYTES };
    let is_farewell = (1..=limit).contains(&unread)
        && stamps.heard_ago <= AT_ONCE
        && stamps.sent_ago > threshold
        && !(role == Role::Server && known.settings.sees_ends);
    if is_farewell {
        let (closer, idle) = (Closer::Peer, stamps.sent_ago);
        return (None, Ended { closer, evidence: Evidence::UpperBound, idle });
    }
    let thrown_away = (role == Role::Server && unread > 0 && stamps.heard_after > threshold)
        .then_some(stamps.heard_after);
    let evidence = if unread > 0 {
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
