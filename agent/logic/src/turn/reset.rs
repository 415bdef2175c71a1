//! An RST in ESTABLISHED, and what is written on a socket that one has ended.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FEW_BYTES, distance};

use super::{
    AT_ONCE, Answer, Asked, AskedKind, Ended, Had, Known, REACTION, Ruling, RunSettings, Stamps,
    parted, past_farewell, read_by,
};
use crate::event::{Event, Word};
use crate::model::{Certainty, Class, Closer, Evidence, Read, Role};

/// What an RST met in ESTABLISHED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtReset {
    pub ended: Ended,
    pub told: Option<Ruling>,
    /// Only what the application does next tells whether it asked anything: if it lets go of the socket
    /// without looking, those were last words.
    pub is_doubtful: bool,
}

/// RST in ESTABLISHED. What sent it shows in the timestamp option: a live socket carries it where it was
/// negotiated (RFC 7323, 3.2), a reset without a socket does not (`tcp_v4_send_reset` against
/// `tcp_send_active_reset`, v6.12 net/ipv4). One without it that answers nothing of ours comes from neither:
/// something in between has made it up, as balancers and firewalls do at their idle timeout.
pub fn reset(event: &Event, known: Known<'_>) -> AtReset {
    let Known { role, asked, settings: RunSettings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    let at = |told, ended| AtReset { ended, told: Some(told), is_doubtful: false };
    let open = asked.filter(|asked| asked.answer(event, ticks, false) != Answer::Answered);
    if let Some(asked) = open {
        // Our reply to the peer's farewell met a close that would not wait for it.
        let is_reply = matches!(asked.kind, AskedKind::Reply(_)) && asked.gap().is_none();
        if asked.word == Word::Farewell || (is_reply && asked.is_doubtful()) {
            return at(Ruling::certain(Class::Farewell, None), parted(asked));
        }
        if !asked.word.may_ask() {
            let idle = asked.silence.max(stamps.heard_ago);
            return at(Ruling::certain(Class::StaleProbe, None), ended(Evidence::Unanswered, idle));
        }
    }
    if role == Role::Client
        && let Some((told, gap)) = reset_of_request(event, known, open, &stamps)
    {
        let is_doubtful = asked.is_none_or(Asked::is_doubtful) && told.class.is_race();
        let is_short = raw.write_seq.wrapping_sub(open.map_or(raw.snd_una, |asked| asked.start));
        let is_doubtful = is_doubtful && is_short <= FEW_BYTES;
        return AtReset { ended: ended(Evidence::Unanswered, gap), told: Some(told), is_doubtful };
    }
    let under_way = stamps.sent_after > Duration::ZERO || stamps.idle() <= threshold;
    let class = if role == Role::Server { Class::ClientGone } else { Class::MidStreamReset };
    if raw.bytes_received == 0 && raw.data_segs_out == 0 {
        AtReset { ended: ended(Evidence::Unused, stamps.idle()), told: None, is_doubtful: false }
    } else if role == Role::Server && stamps.idle() > threshold || !under_way {
        // The other side's word was last, and it left an idle connection.
        let is_answer = event.spoke_ago().is_none_or(|ago| ago <= threshold + 2 * event.rtt());
        let closer =
            if event.is_stateless() && !is_answer { Closer::Middlebox } else { Closer::Peer };
        let ended = Ended { closer, evidence: Evidence::Idle, idle: stamps.idle() };
        AtReset { ended, told: None, is_doubtful: false }
    } else {
        at(Ruling::certain(class, None), ended(Evidence::AfterData, stamps.idle()))
    }
}

/// What an RST did to a client's request, and the gap before that.
fn reset_of_request(
    event: &Event,
    known: Known<'_>,
    open: Option<&Asked>,
    stamps: &Stamps,
) -> Option<(Ruling, Duration)> {
    let raw = &event.raw;
    let (gap, since) = if let Some(asked) = open.filter(|asked| !asked.continues()) {
        (asked.gap()?, event.time.since(asked.time))
    } else if known.asked.is_some() {
        return None;
    } else {
        // An ACK between the last answer and our last data: several flights, so under way. If all
        // is acknowledged, the last ACK is that of our last data, maybe of the same jiffy.
        let acked_between = event.unacked() != 0
            && distance(raw.rcv_tstamp, raw.lrcvtime) > 0
            && distance(raw.lsndtime, raw.rcv_tstamp) >= 0;
        (known.unseen_gap(stamps).filter(|_| !acked_between)?, stamps.sent_ago)
    };
    if open.is_some_and(|asked| !asked.is_used) {
        return Some((Ruling::inferred(Class::MidStreamReset, Some(gap)), gap));
    }
    if let Some(asked) = open.filter(|asked| asked.came_after_words()) {
        return Some((past_farewell(asked.word, asked.unread, gap, Certainty::Certain), gap));
    }
    let start = open.map_or(raw.snd_una, |asked| asked.start);
    let never = |told| Ruling { read: Read::Never, ..told };
    let told = match open.and_then(|_| known.had(start, raw.write_seq)) {
        Some(Had::Nothing) if known.server.is_some_and(|server| server.is_fin_lost) => {
            never(Ruling::certain(Class::FinCrossed, Some(gap)))
        }
        // Nothing told the client of that close.
        Some(Had::Nothing) => never(Ruling::certain(Class::SilentDrop, Some(gap))),
        Some(Had::Unread) => never(Ruling::certain(Class::UnreadClose, Some(gap))),
        Some(Had::Part | Had::All) => Ruling::certain(Class::MidStreamReset, Some(gap)),
        None if event.is_stateless() => Ruling {
            read: open.map_or(Read::Unknown, |asked| read_by(event, start, asked.segs_out)),
            ..Ruling::certain(Class::SilentDrop, Some(gap))
        },
        // Long after it was acknowledged: worked on, unless the peer's timeout was due by then.
        None => {
            let is_live = event.has(flag::TSTAMP_OK);
            let class = if is_live { Class::UnreadClose } else { Class::ResetAfterReuse };
            let is_late = since > event.rtt() + AT_ONCE;
            let doubt = is_late.then_some(stamps.heard_ago);
            Ruling { doubt, ..Ruling::inferred(class, Some(gap)) }
        }
    };
    Some((told, gap))
}

/// A socket that an RST had ended, as its owner lets go of it. `reset` is the record of the RST.
pub fn write_after_reset(event: &Event, reset: &Event, known: Known<'_>) -> Option<Ruling> {
    let ticks = known.settings.ticks;
    // Only a write sets it, even one that fails: the RST had left it as it was.
    let has_written = event.raw.app_limited != reset.raw.app_limited;
    // An application that learns of the RST and says farewell to a dead socket does so at once.
    let dwell = event.time.since(reset.time);
    let gap = ticks.between(reset.raw.lrcvtime, event.raw.jiffies);
    let certainty = if dwell > AT_ONCE { Certainty::Certain } else { Certainty::Inferred };
    let told =
        Ruling { read: Read::Never, ..Ruling::new(Class::WriteAfterReset, certainty, Some(gap)) };
    (has_written && dwell > REACTION).then_some(told)
}
