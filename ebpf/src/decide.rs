//! Decides from plain integers which events leave the kernel; tested on the host.

use crate::abi::opener;
use crate::word;

/// TCP states, as in the kernel's `include/net/tcp_states.h` (v6.12, unchanged since 5.10).
pub mod state {
    #![expect(missing_docs, reason = "the kernel's own names")]
    pub const ESTABLISHED: u8 = 1;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
    pub const NEW_SYN_RECV: u8 = 12;
}

/// Data of at most this length may be something other than a request, so it gets a record where a longer
/// write or answer does not. Length alone never decides a class: see `logic/turn` for what else it takes.
pub const FEW_BYTES: u32 = 96;

/// A request counts as hanging at this retransmission. Linux's first timeout is at least 200 ms, so this
/// is after at least 1.4 s.
pub const HANGS_AFTER: u8 = 3;

/// The ring through which an event leaves the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Events with data at risk: few, and must not be crowded out.
    Races,
    /// Closes and reuses: many.
    Measures,
}

/// `later - earlier` of two sequence numbers or jiffies, as the kernel compares them.
#[inline(always)]
pub const fn distance(later: u32, earlier: u32) -> i32 {
    later.wrapping_sub(earlier).cast_signed()
}

/// Whether [`state_change`] may report this transition; checked before any field is read.
#[inline(always)]
pub const fn state_matters(old: u8, new: u8) -> bool {
    use state::{CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN};
    matches!(
        (old, new),
        (ESTABLISHED, CLOSE_WAIT | FIN_WAIT1 | CLOSE)
            | (CLOSE_WAIT, LAST_ACK)
            | (CLOSE_WAIT | FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK | LISTEN, CLOSE)
            | (CLOSE, LISTEN)
    )
}

/// The ring that a state change goes to, if it leaves the kernel at all.
///
/// `unacked` is `write_seq - snd_una`; `heard_after` is the number of jiffies from the last data sent
/// to the last data received.
#[inline(always)]
pub const fn state_change(
    old: u8,
    new: u8,
    unacked: u32,
    heard_after: i32,
    reuse_jiffies: u32,
) -> Option<Ring> {
    use state::{CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN};
    match (old, new) {
        // A FIN while some of our data is unacknowledged, or an end without an orderly close.
        (ESTABLISHED, CLOSE_WAIT | FIN_WAIT1) if unacked != 0 => Some(Ring::Races),
        (ESTABLISHED | CLOSE_WAIT, CLOSE) => Some(Ring::Races),
        // Data received long after we last sent any: a request that met a lingering close.
        (FIN_WAIT1 | FIN_WAIT2 | CLOSING, CLOSE) if heard_after > reuse_jiffies.cast_signed() => {
            Some(Ring::Races)
        }
        // Orderly closes, and listeners; not LISTEN->SYN_RECV: that is a child cloned from its listener.
        (ESTABLISHED, CLOSE_WAIT | FIN_WAIT1)
        | (CLOSE_WAIT, LAST_ACK)
        | (LAST_ACK | LISTEN, CLOSE)
        | (CLOSE, LISTEN) => Some(Ring::Measures),
        _ => None,
    }
}

/// Whether this end sent data so recently that there can be no gap: the fast path of nearly every
/// write on the host. [`is_told`] is only asked about writes for which this is false.
#[inline(always)]
pub const fn is_in_use(now: u32, lsndtime: u32, reuse_jiffies: u32) -> bool {
    now.wrapping_sub(lsndtime) <= reuse_jiffies
}

/// Whether a write in ESTABLISHED may start an exchange after a gap.
///
/// True when the last data came from the peer, and either that was longer than the threshold ago
/// (a client's reuse) or it ended a silence longer than the threshold (a server's answer to one).
#[inline(always)]
pub const fn may_be_reuse(now: u32, lsndtime: u32, lrcvtime: u32, reuse_jiffies: u32) -> bool {
    let silence = distance(lrcvtime, lsndtime);
    let threshold = reuse_jiffies.cast_signed();
    silence >= 0 && (distance(now, lrcvtime) > threshold || silence > threshold)
}

/// What is known about a write in ESTABLISHED that follows a pause.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// See [`opener`].
    pub opener: u8,
    /// See [`word`].
    pub word: u8,
    /// Bytes passed to this call.
    pub size: u32,
    /// Bytes from the peer that we have not acknowledged yet.
    pub heard: u32,
    /// Bytes from the peer that the application has not read.
    pub unread: u32,
    /// Current jiffies.
    pub now: u32,
    /// Jiffies when we last sent data.
    pub lsndtime: u32,
    /// Jiffies when we last received data.
    pub lrcvtime: u32,
}

/// Whether a write gets a record: a request after a gap, the first answer to one, and whatever may be a
/// farewell or follow one. If we sent last, only a write whose own bytes say that it is not a request.
#[inline(always)]
pub const fn is_told(write: Write, reuse_jiffies: u32) -> bool {
    let Write { opener, word, size, heard, unread, now, lsndtime, lrcvtime } = write;
    // What a server may send unasked: a farewell, or what may be one.
    let is_unasked = word == word::FAREWELL || (word == word::SEALED && size <= FEW_BYTES);
    if !may_be_reuse(now, lsndtime, lrcvtime, reuse_jiffies) {
        return match opener {
            opener::PASSIVE => is_unasked,
            _ => matches!(word, word::FAREWELL | word::CONTROL | word::PROBE),
        };
    }
    let threshold = reuse_jiffies.cast_signed();
    let after_gap = distance(now, lrcvtime) > threshold;
    let after_silence = distance(lrcvtime, lsndtime) > threshold;
    match opener {
        opener::ACTIVE => {
            // The peer broke a silence, with either a slow answer or a farewell.
            let after_few = size <= FEW_BYTES || heard <= FEW_BYTES || unread != 0;
            after_gap || (after_silence && after_few)
        }
        opener::PASSIVE => after_silence || is_unasked,
        _ => true,
    }
}

/// Who opened the connection, derived from byte counts alone: on the active side, the SYN is counted
/// in `bytes_acked`, but never in `bytes_sent`. Valid only until we send a FIN.
///
/// Source: `tcp_rcv_synsent_state_process` calls `tcp_ack` for the SYN (v6.12
/// `net/ipv4/tcp_input.c`), and children start with `snd_una` past it (`tcp_minisocks.c`).
#[inline(always)]
pub const fn opener_of(
    bytes_acked: u64,
    in_flight: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
) -> u8 {
    let sent_once = bytes_sent.wrapping_sub(bytes_retrans);
    match bytes_acked.wrapping_add(in_flight as u64).wrapping_sub(sent_once) {
        0 => opener::PASSIVE,
        1 => opener::ACTIVE,
        _ => opener::UNKNOWN,
    }
}

/// Whether a reset received in this state (or data received after our close) may be part of a race.
#[inline(always)]
pub const fn reset_matters(sk_state: u8) -> bool {
    matches!(sk_state, state::ESTABLISHED | state::CLOSE_WAIT | state::LAST_ACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_changes_take_the_right_ring() {
        use state::{CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN};
        let check = |old, new, unacked, heard, expected| {
            assert_eq!(
                state_change(old, new, unacked, heard, 50),
                expected,
                "{old}->{new} unacked {unacked} heard {heard}"
            );
        };
        check(ESTABLISHED, CLOSE_WAIT, 0, 0, Some(Ring::Measures));
        check(ESTABLISHED, CLOSE_WAIT, 1, 0, Some(Ring::Races));
        check(ESTABLISHED, FIN_WAIT1, 0, 0, Some(Ring::Measures));
        check(ESTABLISHED, FIN_WAIT1, 9, 0, Some(Ring::Races));
        check(ESTABLISHED, CLOSE, 0, 0, Some(Ring::Races));
        check(CLOSE_WAIT, LAST_ACK, 0, 0, Some(Ring::Measures));
        check(LAST_ACK, CLOSE, 0, 0, Some(Ring::Measures));
        check(FIN_WAIT2, CLOSE, 0, 51, Some(Ring::Races));
        check(FIN_WAIT2, CLOSE, 0, 50, None);
        check(FIN_WAIT2, CLOSE, 0, -1000, None);
        check(FIN_WAIT2, FIN_WAIT2, 0, 1000, None);
        check(CLOSE, LISTEN, 0, 0, Some(Ring::Measures));
        check(LISTEN, CLOSE, 0, 0, Some(Ring::Measures));
        check(LISTEN, 3, 0, 0, None);
        check(2, CLOSE, 0, 0, None);
        check(2, ESTABLISHED, 0, 0, None);
    }

    #[test]
    fn what_does_not_matter_stays() {
        for (old, new) in (0..=13).flat_map(|old| (0..=13).map(move |new| (old, new))) {
            let goes = [(0, 0), (1, 0), (0, 51)]
                .map(|(unacked, heard)| state_change(old, new, unacked, heard, 50).is_some());
            assert_eq!(state_matters(old, new), goes.contains(&true), "{old}->{new}");
        }
    }

    #[test]
    fn only_an_exchange_after_a_gap_may_be_a_reuse() {
        // (now, last sent, last received): the stamps wrap as jiffies do.
        let base = u32::MAX - 20;
        let check = |now: u32, sent: u32, received: u32, expected| {
            let at = |ticks: u32| base.wrapping_add(ticks);
            assert_eq!(may_be_reuse(at(now), at(sent), at(received), 50), expected);
        };
        check(60, 0, 5, true); // answered at 5, next request at 60
        check(55, 0, 5, false); // exactly the threshold
        check(300, 5, 0, false); // we sent last: a blocked sender, a pipelined request
        check(61, 0, 60, true); // a server's answer to a request after 60 ticks of silence
        check(51, 0, 50, false);
        check(52, 0, 51, true);
    }

    #[test]
    fn what_may_be_a_reuse_is_not_in_use() {
        let base = u32::MAX - 150;
        let at = |ticks: u32| base.wrapping_add(ticks);
        let mut reuses = 0;
        for (now, sent, received) in (0..300)
            .flat_map(|now| (0..=now).map(move |sent| (now, sent)))
            .flat_map(|(now, sent)| (0..=now).step_by(7).map(move |received| (now, sent, received)))
        {
            if may_be_reuse(at(now), at(sent), at(received), 50) {
                assert!(!is_in_use(at(now), at(sent), 50), "{now} {sent} {received}");
                reuses += 1;
            }
        }
        assert!(reuses > 1000);
        assert!(is_in_use(at(50), at(0), 50) && !is_in_use(at(51), at(0), 50));
    }

    #[test]
    fn a_write_is_told_for_the_side_that_speaks() {
        let write = |opener, size, sent: u32, received: u32| Write {
            opener,
            word: word::UNKNOWN,
            size,
            heard: 1_000,
            unread: 0,
            now: 1000,
            lsndtime: sent,
            lrcvtime: received,
        };
        let check = |write: Write, expected| assert_eq!(is_told(write, 50), expected, "{write:?}");
        let (active, passive) = (opener::ACTIVE, opener::PASSIVE);
        check(write(active, 200, 900, 900), true); // request after a gap of 100
        check(write(passive, 200, 900, 900), false); // slow answer or push
        check(write(passive, 31, 900, 900), false); // likewise, however short
        check(Write { word: word::FAREWELL, ..write(passive, 31, 900, 900) }, true);
        check(Write { word: word::SEALED, ..write(passive, 39, 900, 900) }, true); // maybe GOAWAY
        check(write(passive, 200, 900, 1000), true); // answer to a request after a silence
        check(write(active, 200, 900, 1000), false); // pipelining after a slow answer
        check(write(active, 24, 900, 1000), true); // may answer the server's close_notify
        let after_few = |heard| Write { heard, ..write(active, 200, 900, 1000) };
        check(after_few(31), true); // may directly follow it
        check(after_few(0), true); // likewise, acknowledged at once
        check(after_few(97), false); // pipelining, as above
        check(Write { unread: 212, ..after_few(212) }, true); // unread by the application: a 408
        // We sent last.
        check(write(active, 31, 900, 890), false);
        check(Write { word: word::CONTROL, ..write(active, 17, 900, 890) }, true);
        check(Write { word: word::CONTROL, ..write(passive, 17, 900, 890) }, false);
        check(Write { word: word::FAREWELL, ..write(passive, 24, 900, 890) }, true);
        check(Write { word: word::SEALED, ..write(passive, 39, 900, 890) }, true); // maybe GOAWAY
        check(Write { word: word::SEALED, ..write(passive, 97, 900, 890) }, false);
    }

    #[test]
    fn the_opener_follows_from_byte_counts() {
        assert_eq!(opener_of(1, 0, 0, 0), opener::ACTIVE);
        assert_eq!(opener_of(0, 0, 0, 0), opener::PASSIVE);
        assert_eq!(opener_of(101, 50, 150, 0), opener::ACTIVE);
        assert_eq!(opener_of(100, 50, 200, 50), opener::PASSIVE);
        assert_eq!(opener_of(7, 0, 0, 0), opener::UNKNOWN);
    }
}
