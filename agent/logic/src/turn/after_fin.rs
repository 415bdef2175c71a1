//! After the peer's FIN: what we wrote past it, and what that was once its end is seen.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FEW_BYTES, distance};

use super::{AtRisk, Ended, Known, Ruling, RunSettings, Stamps, may_be_words, past_farewell};
use crate::event::{Event, Ticks, Word};
use crate::model::{Certainty, Class, Evidence, Outcome, Read, Role};

/// A write after the peer's FIN. `fin` is the record of the FIN, `at_fin` what was said of it.
pub fn late_write(
    event: &Event,
    fin: Option<&Event>,
    ended: Option<Ended>,
    known: Known<'_>,
) -> AtRisk {
    let RunSettings { ticks, threshold, .. } = known.settings;
    let word = event.word();
    let raw = &event.raw;
    if word == Word::Farewell {
        return AtRisk::Farewell;
    }
    // A farewell with the FIN does not end the idle time: our own last data counts then.
    let after_words = ended.is_some_and(|ended| ended.evidence == Evidence::UpperBound);
    let since = if after_words { raw.lsndtime } else { raw.lrcvtime };
    let gap = ticks.between(since, raw.jiffies);
    if !word.may_ask() {
        return AtRisk::Probe;
    }
    let request = |class, certainty| AtRisk::Request {
        class,
        certainty,
        gap: Some(gap),
        word,
        is_doubtful: word.is_doubtful() && raw.size <= FEW_BYTES,
    };
    let stamps = Stamps::of(event, ticks);
    // `bytes_received` counts the FIN.
    if raw.bytes_received <= 1 {
        return request(Class::UnusedClose, Certainty::Certain);
    }
    if word == Word::Request {
        return request(Class::StaleWrite, Certainty::Certain);
    }
    // By the stamps, ours was the last word: what follows continues it, unless nothing came of it for so long
    // that it was none.
    let was_open = fin.is_some_and(|fin| Stamps::of(fin, ticks).sent_after > Duration::ZERO)
        && ended.is_none_or(|ended| ended.evidence != Evidence::Idle);
    if was_open || stamps.sent_after > Duration::ZERO && fin.is_none() && gap <= threshold {
        return AtRisk::Continued;
    }
    let unread = event.unread(true);
    // It has read up to the peer's end, and still writes: not in ignorance of it.
    if event.has_read_fin() {
        return AtRisk::Continued;
    }
    // An answer is unread: more of what was answered early. Words after a silence are no answer.
    if unread > 0 && !(after_words && may_be_words(word, unread)) {
        return AtRisk::Continued;
    }
    let certainty = if gap > threshold { Certainty::Certain } else { Certainty::Inferred };
    let farewell = if after_words { unread } else { 0 };
    let told = past_farewell(word, farewell, gap, certainty);
    request(told.class, told.certainty)
}

/// Bytes written after the FIN that no hook saw: the sequence numbers tell that they exist, the stamps when
/// the last were sent.
pub fn unseen_write(event: &Event, fin: &Event, ended: Option<Ended>, known: Known<'_>) -> AtRisk {
    let RunSettings { ticks, threshold, sees_writes, .. } = known.settings;
    let under_way = distance(fin.raw.lsndtime, fin.raw.lrcvtime) > 0
        && ended.is_none_or(|ended| ended.evidence != Evidence::Idle);
    let since = match ended {
        Some(Ended { evidence: Evidence::UpperBound, .. }) => fin.raw.lsndtime,
        _ => fin.raw.lrcvtime,
    };
    let gap = ticks.between(since, event.raw.lsndtime);
    // With a hook, what left no record was not the first write since the FIN.
    if under_way || (gap <= threshold && !sees_writes) {
        return AtRisk::Continued;
    }
    let certainty = if gap > threshold { Certainty::Certain } else { Certainty::Inferred };
    AtRisk::Request {
        class: if fin.raw.bytes_received <= 1 { Class::UnusedClose } else { Class::StaleWrite },
        certainty,
        gap: Some(gap),
        word: Word::Unknown,
        is_doubtful: true,
    }
}

/// How what was at risk past a FIN came out.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// Bytes that were at risk.
    pub bytes: u32,
    pub outcome: Outcome,
    /// Whether the application has learnt of the end since, by reading it; `None`: not seen yet.
    pub has_noticed: Option<bool>,
    /// Requests of this length were answered before.
    pub is_habit: bool,
    /// Nothing can be missing.
    pub is_known: bool,
    pub read: Read,
}

/// What it was; `None` while only the application's next step can tell.
pub fn outcome(at_risk: AtRisk, end: Ending) -> Option<Ruling> {
    let told = match at_risk {
        AtRisk::Farewell => Ruling::certain(Class::Farewell, None),
        AtRisk::Probe => Ruling::certain(Class::StaleProbe, None),
        AtRisk::Request { class, certainty, gap, word, is_doubtful } => {
            let may_part = is_doubtful && end.bytes <= FEW_BYTES && !end.is_habit;
            match end.has_noticed {
                // Followed by our own close with nothing in between: last words.
                Some(false) if may_part => Ruling::inferred(Class::Farewell, gap),
                None if may_part => return None,
                _ => {
                    let certainty =
                        if word == Word::Request { Certainty::Certain } else { certainty };
                    Ruling { read: end.read, ..Ruling::new(class, certainty, gap) }
                }
            }
        }
        AtRisk::Continued if end.outcome == Outcome::Acked && end.is_known => {
            Ruling::certain(Class::HalfClose, None)
        }
        AtRisk::Continued if end.has_noticed == Some(false) && end.bytes <= FEW_BYTES => {
            Ruling::inferred(Class::Farewell, None)
        }
        AtRisk::Continued if end.outcome == Outcome::Reset => {
            Ruling::inferred(Class::EarlyResponse, None)
        }
        AtRisk::Continued | AtRisk::None => Ruling::inferred(Class::Unknown, None),
    };
    Some(told)
}

/// Whether an application can have read what an RST answers: no, if there was no socket and it answers a
/// single segment, sent once, of which nothing was acknowledged. With more segments, or sent once more, an
/// earlier one may have been read.
pub fn read_by(event: &Event, start: u32, segs_out: u32) -> Read {
    let raw = &event.raw;
    let is_single = raw.data_segs_out.wrapping_sub(segs_out) == 1;
    if event.is_stateless() && is_single && raw.snd_una == start {
        Read::Never
    } else {
        Read::Unknown
    }
}

/// An RST for what a server wrote past its client's FIN. Tells whether it had something to answer: the client
/// had asked last, or what it asked was still unread. A few bytes may just as well be the farewell that
/// answers the client's, which came with its FIN, unless `serves` knows requests as short as those.
pub fn client_gone(
    event: &Event,
    fin: &Event,
    ticks: Ticks,
    serves: impl FnOnce(u32) -> Option<bool>,
) -> Option<Ruling> {
    let stamps = Stamps::of(fin, ticks);
    let unacked = event.unacked().saturating_sub(event.has(flag::FIN_SENT).into());
    // Both spoke within a tick: then the side that says much is answering.
    let is_tie = stamps.heard_after == stamps.sent_after;
    let was_open = stamps.heard_after > Duration::ZERO
        || fin.unread(true) > 0
        || (is_tie && unacked > FEW_BYTES);
    let heard = fin.unread(true).max(fin.last_heard().saturating_sub(1));
    let may_be_farewell = unacked <= FEW_BYTES && heard <= FEW_BYTES && serves(heard) != Some(true);
    (was_open && unacked > 0 && !may_be_farewell)
        .then_some(Ruling::certain(Class::ClientGone, None))
}

/// RST after a FIN that was not seen: only stamps tell what was written.
pub fn reset_of_unfollowed(event: &Event, bytes: u32, settings: &RunSettings) -> Option<Ruling> {
    let raw = &event.raw;
    let gap = settings.ticks.between(raw.lrcvtime, raw.lsndtime);
    let is_request = event.role() == Role::Client && bytes > FEW_BYTES && gap > settings.threshold;
    let after_fin = distance(raw.lsndtime, raw.rcv_tstamp) > 0;
    let class = if after_fin { Class::StaleWrite } else { Class::FinCrossed };
    is_request.then(|| Ruling::inferred(class, Some(gap)))
}
