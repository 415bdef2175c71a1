//! The peer's FIN: what it did to bytes of ours, and whether it ended an idle connection.

use std::time::Duration;

use finrace_ebpf::decide::FEW_BYTES;

use super::{
    AT_ONCE, Answer, Asked, AskedKind, AtRisk, Ended, Had, IDLE_MESSAGE_BYTES, Known, REACTION,
    Ruling, RunSettings, Stamps, is_first_answer, parted,
};
use crate::event::{Event, Word};
use crate::model::{Certainty, Class, Closer, Evidence, Role};

/// The peer's FIN, ESTABLISHED->CLOSE_WAIT: `tcp_ack` has run, `rcv_nxt` counts the FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtFin {
    pub ended: Ended,
    /// What is waiting for its outcome.
    pub at_risk: AtRisk,
    /// What is decided already.
    pub told: Option<Ruling>,
}

pub fn peer_fin(event: &Event, known: Known<'_>) -> AtFin {
    let Known { role, asked, settings: RunSettings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    if let Some(ended) = last_words(event, known, &stamps) {
        let at_risk = if event.unacked() == 0 { AtRisk::None } else { AtRisk::Farewell };
        return AtFin { ended, at_risk, told: None };
    }
    let quiet = quiet_fin(event, known, &stamps);
    let nothing = AtFin { ended: quiet, at_risk: AtRisk::None, told: None };
    if role != Role::Client {
        return nothing;
    }
    let open = asked.filter(|asked| {
        asked.answer(event, ticks, true) != Answer::Answered
            && (asked.is_last(event) || asked.heard(event, true) == 0)
    });
    if let Some(asked) = open.filter(|asked| !asked.word.may_ask()) {
        return asks_nothing(event, asked, &stamps, threshold);
    }
    if event.unacked() != 0 {
        return crossed(event, known, open, &stamps);
    }
    if let Some(asked) = open.filter(|asked| asked.gap().is_some() && !asked.continues()) {
        // The words ended the idle time, however late the FIN came.
        let ended = if asked.came_after_words() {
            ended(Evidence::UpperBound, asked.silence)
        } else {
            ended(Evidence::Unanswered, stamps.sent_ago)
        };
        let told = Some(unanswered(event, known, asked));
        return AtFin { ended, at_risk: AtRisk::None, told };
    }
    // The handshake sets both stamps, and a tick may pass between them.
    let has_spoken = event.raw.data_segs_out != 0 && stamps.sent_after > Duration::ZERO;
    if has_spoken && open.is_none_or(|asked| asked.gap().is_none()) {
        return spoke_last(event, known, &stamps);
    }
    nothing
}

/// Our last words asked nothing, and met the peer's FIN: an idle close, counted from when we last said or
/// heard anything that counts.
fn asks_nothing(event: &Event, asked: &Asked, stamps: &Stamps, threshold: Duration) -> AtFin {
    let is_idle = stamps.idle() > threshold;
    let evidence = if is_idle { Evidence::Idle } else { Evidence::UpperBound };
    let before = match asked.kind {
        AskedKind::Gap(gap) => gap,
        AskedKind::Reply(silence) => silence,
    };
    let idle = if is_idle { stamps.idle() } else { before + stamps.sent_ago };
    let met_the_close = event.unacked() != 0 || asked.word == Word::Probe;
    AtFin {
        ended: Ended { closer: Closer::Peer, evidence, idle },
        at_risk: if event.unacked() != 0 { AtRisk::Probe } else { AtRisk::None },
        told: (met_the_close && event.unacked() == 0)
            .then_some(Ruling::certain(Class::StaleProbe, Some(before))),
    }
}

/// A FIN that leaves bytes of ours unacknowledged: its sender had not got them.
fn crossed(event: &Event, known: Known<'_>, open: Option<&Asked>, stamps: &Stamps) -> AtFin {
    let raw = &event.raw;
    let early = |idle| AtFin {
        ended: Ended { closer: Closer::Peer, evidence: Evidence::Unanswered, idle },
        at_risk: AtRisk::Continued,
        told: Some(Ruling::certain(Class::EarlyResponse, None)),
    };
    let request = |class, certainty, gap: Option<Duration>, word: Word, is_doubtful| AtFin {
        ended: Ended {
            closer: Closer::Peer,
            evidence: Evidence::Unanswered,
            idle: gap.unwrap_or(stamps.idle()),
        },
        at_risk: AtRisk::Request { class, certainty, gap, word, is_doubtful },
        told: None,
    };
    // A FIN that acknowledges part of a request comes from a server that has read that part.
    if let Some(asked) = open.filter(|asked| asked.start == raw.snd_una) {
        let Some(gap) = asked.gap() else { return early(stamps.idle()) };
        if asked.continues() {
            return early(stamps.idle());
        }
        let class = if !asked.is_used {
            Class::UnusedClose
        } else if asked.came_after_words() {
            Class::StaleWrite
        } else {
            Class::FinCrossed
        };
        return request(class, Certainty::Certain, Some(gap), asked.word, asked.is_doubtful());
    }
    if open.is_none()
        && let Some(gap) = known.unseen_gap(stamps)
    {
        return request(Class::FinCrossed, Certainty::Inferred, Some(gap), Word::Unknown, true);
    }
    // No gap before it. Still a new turn if the one before was complete: the peer spoke before this flight
    // began, we have read what it said, and none of the flight is acknowledged.
    let peer_spoke_since = raw.rcv_nxt.wrapping_sub(raw.rcv_wup) > 1;
    let is_fresh = raw.sent_us != 0 && raw.sent_us == raw.acked_us;
    let has_read = event.unread(true) == 0;
    if is_fresh && has_read && !peer_spoke_since && raw.bytes_received > 1 {
        let gap = Some(stamps.sent_after);
        return request(Class::FinCrossed, Certainty::Inferred, gap, Word::Unknown, false);
    }
    if raw.bytes_received <= 1
        && is_fresh
        && raw.snd_nxt.wrapping_sub(raw.snd_una) == event.unacked()
    {
        let gap = Some(stamps.sent_after);
        return request(Class::UnusedClose, Certainty::Inferred, gap, Word::Unknown, false);
    }
    early(stamps.idle())
}

/// A request that was acknowledged and not answered, and the peer's FIN.
fn unanswered(event: &Event, known: Known<'_>, asked: &Asked) -> Ruling {
    let gap = asked.gap();
    if !asked.is_used {
        return Ruling::certain(Class::PrematureClose, gap);
    }
    if asked.came_after_words() {
        return Ruling::certain(Class::StaleWrite, gap);
    }
    let at_once = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
    match known.had(asked.start, asked.start.wrapping_add(asked.bytes)) {
        // On the wire it looks as if it had been read.
        Some(Had::Unread) if at_once => Ruling::certain(Class::ReadAndClosed, gap),
        Some(Had::Unread) => Ruling::certain(Class::UnreadClose, gap),
        // At the peer's timeout or not: the table knows its estimate.
        _ if at_once => Ruling { doubt: gap, ..Ruling::inferred(Class::ReadAndClosed, gap) },
        _ => Ruling::certain(Class::PrematureClose, gap),
    }
}

/// We spoke last, without a gap that was recorded, and the FIN acknowledges it.
fn spoke_last(event: &Event, known: Known<'_>, stamps: &Stamps) -> AtFin {
    let RunSettings { ticks, threshold, .. } = known.settings;
    let gap = known.unseen_gap(stamps);
    let ended = |evidence| Ended { closer: Closer::Peer, evidence, idle: stamps.sent_ago };
    let at_once = event.rtt() + ticks.duration(2);
    if gap.is_none() && stamps.sent_ago > threshold {
        // What follows the peer's words at once and gets no answer is a control frame (WINDOW_UPDATE, pong),
        // and the close an idle one; otherwise the server gave up. Nothing is claimed about the latter.
        let evidence =
            if stamps.sent_after <= at_once { Evidence::Idle } else { Evidence::Unanswered };
        return AtFin { ended: ended(evidence), at_risk: AtRisk::None, told: None };
    }
    let told = if gap.is_some() && stamps.sent_ago <= event.rtt() + AT_ONCE {
        Ruling { doubt: gap, ..Ruling::inferred(Class::ReadAndClosed, gap) }
    } else {
        Ruling::inferred(Class::PrematureClose, gap)
    };
    AtFin { ended: ended(Evidence::Unanswered), at_risk: AtRisk::None, told: Some(told) }
}

/// The peer's FIN soon after last words of ours, and before our own FIN.
fn last_words(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Ended> {
    let ticks = known.settings.ticks;
    let ours = known.asked.filter(|asked| {
        let is_named = asked.word == Word::Farewell;
        let is_reply = matches!(asked.kind, AskedKind::Reply(_));
        let soon = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
        asked.is_last(event)
            && (is_named || (asked.is_doubtful() && is_reply && soon && asked.unread == 0))
            && (asked.answer(event, ticks, true) != Answer::Answered
                || (stamps.heard_ago <= AT_ONCE && asked.heard(event, true) <= FEW_BYTES))
    })?;
    Some(parted(ours))
}

/// A FIN from the peer with nothing at risk: is it an idle close?
fn quiet_fin(event: &Event, known: Known<'_>, stamps: &Stamps) -> Ended {
    let RunSettings { threshold, .. } = known.settings;
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    // `bytes_received` counts the FIN.
    if raw.bytes_received <= 1 && raw.data_segs_out == 0 {
        return ended(Evidence::Unused, stamps.idle());
    }
    if stamps.idle() > threshold {
        return ended(Evidence::Idle, stamps.idle());
    }
    // Words came with the FIN, long after our last data: an answer that took long, or a farewell?
    if stamps.sent_ago <= threshold || is_first_answer(event, known.asked) {
        return ended(Evidence::AfterData, stamps.idle());
    }
    if let Some(silence) = event.silence_since_ack() {
        // We had acknowledged something before: an answer, `silence` ago.
        if silence > threshold {
            let is_tight = stamps.sent_ago.saturating_sub(silence) <= AT_ONCE;
            let evidence = if is_tight { Evidence::Idle } else { Evidence::UpperBound };
            return ended(evidence, stamps.sent_ago);
        }
        // Or just now, a part of the same words: that says nothing of them.
        if silence > REACTION {
            return ended(Evidence::AfterData, stamps.idle());
        }
    }
    if event.unread(true) > IDLE_MESSAGE_BYTES {
        return ended(Evidence::AfterData, stamps.idle());
    }
    ended(Evidence::UpperBound, stamps.sent_ago)
}
