//! The table of cases, row by row. A client has sent a request of 200 bytes, from 1,000 on, 1 s after the
//! last answer, which ended at 5,000.

use std::time::Duration;

use finrace_ebpf::abi::{RECORD_SIZE, Record, flag, kind, opener};
use finrace_ebpf::word;

use super::*;
use crate::event::decode;

const TICKS: Ticks = Ticks { hz: 250 };
const NOW_MS: u64 = 10_000;

/// A record of the client's socket, as of now, with everything acknowledged and read.
fn record() -> Record {
    // SAFETY: `Record` is integers only.
    let zero: Record = unsafe { std::mem::zeroed() };
    let now = (NOW_MS / 4) as u32;
    Record {
        time_ns: NOW_MS * 1_000_000,
        kind: kind::STATE,
        old_state: 1,
        new_state: 8,
        opener: opener::ACTIVE,
        flags: flag::FULL_SOCK | flag::TSTAMP_OK | flag::SAW_TSTAMP,
        jiffies: now,
        lsndtime: now,
        lrcvtime: now - 250,
        rcv_tstamp: now,
        write_seq: 1_200,
        snd_una: 1_200,
        snd_nxt: 1_200,
        // The FIN counts, and nobody has read it.
        rcv_nxt: 5_001,
        copied_seq: 5_000,
        rcv_wup: 5_000,
        bytes_received: 4_001,
        data_segs_out: 2,
        data_segs_in: 1,
        ..zero
    }
}

fn event(change: impl FnOnce(&mut Record)) -> Event {
    let mut record = record();
    change(&mut record);
    // SAFETY: integers only, and no padding between them.
    let bytes: [u8; RECORD_SIZE] = unsafe { std::mem::transmute(record) };
    decode(&bytes).unwrap()
}

/// The request, written this long before now.
fn asked(ago_ms: u64, change: impl FnOnce(&mut Record)) -> Asked {
    let write = event(|raw| {
        raw.time_ns -= ago_ms * 1_000_000;
        (raw.kind, raw.size) = (kind::WRITE, 200);
        (raw.old_state, raw.new_state) = (1, 1);
        (raw.write_seq, raw.snd_una, raw.rcv_nxt) = (1_000, 1_000, 5_000);
        (raw.data_segs_out, raw.bytes_received) = (1, 4_000);
        change(raw);
    });
    let silence = if write.unread(false) > 0 { Duration::from_secs(1) } else { Duration::ZERO };
    Asked::of(&write, Role::Client, AskedKind::Gap(Duration::from_secs(1)), silence, TICKS)
}

fn known(asked: Option<&Asked>, server: Option<ServerEnd>) -> Known<'_> {
    let settings = RunSettings {
        ticks: TICKS,
        threshold: Duration::from_millis(200),
        sees_writes: true,
        sees_ends: true,
        start: Nanos(0),
    };
    Known { role: Role::Client, asked, server, settings }
}

fn text(told: Option<Ruling>) -> String {
    told.map_or_else(
        || "nothing".to_owned(),
        |told| format!("{} {} {}", told.class, told.certainty, told.read),
    )
}

/// What is said at the peer's FIN, or what is at risk past it.
fn at_fin(asked: &Asked, server: Option<ServerEnd>, change: impl FnOnce(&mut Record)) -> String {
    let at = peer_fin(&event(change), known(Some(asked), server));
    match (at.told, at.at_risk) {
        (None, AtRisk::Request { class, certainty, .. }) => format!("{class} {certainty} waits"),
        (told, _) => text(told),
    }
}

#[test]
fn a_fin_meets_a_request() {
    let plain = asked(5, |_| ());
    let crossed = |raw: &mut Record| raw.snd_una = 1_000;
    assert_eq!(at_fin(&plain, None, crossed), "fin_crossed certain waits");
    // Words that do not acknowledge it are no answer, however many.
    let words = |raw: &mut Record| (raw.snd_una, raw.rcv_nxt) = (1_000, 5_301);
    assert_eq!(at_fin(&plain, None, words), "fin_crossed certain waits");
    let part = |raw: &mut Record| raw.snd_una = 1_100;
    assert_eq!(at_fin(&plain, None, part), "early_response certain unknown");
    // Answered is answered, however few the bytes.
    let answer = |raw: &mut Record| (raw.rcv_nxt, raw.lrcvtime) = (5_011, raw.jiffies);
    assert_eq!(at_fin(&plain, None, answer), "nothing");
    // Acknowledged a second ago, while a few bytes had come before that: those were no answer.
    let late_ack = |raw: &mut Record| {
        (raw.rcv_nxt, raw.lrcvtime) = (5_011, raw.jiffies - 100);
        raw.acked_us = NOW_MS * 1_000;
    };
    assert_eq!(at_fin(&plain, None, late_ack), "read_and_closed inferred unknown");
    assert_eq!(at_fin(&plain, None, |_| ()), "read_and_closed inferred unknown");
    let worked_on = asked(800, |_| ());
    assert_eq!(at_fin(&worked_on, None, |_| ()), "premature_close certain unknown");
    let end = |received, read| Some(ServerEnd { received, read, is_fin_lost: false });
    assert_eq!(at_fin(&worked_on, end(1_200, 1_000), |_| ()), "unread_close certain unknown");
    assert_eq!(at_fin(&worked_on, end(1_200, 1_200), |_| ()), "premature_close certain unknown");

    let unused = asked(5, |raw| raw.bytes_received = 0);
    assert_eq!(at_fin(&unused, None, crossed), "unused_close certain waits");
    // Written with a few bytes unread that came after a silence: past the peer's farewell.
    let past_words = asked(300, |raw| (raw.copied_seq, raw.data_segs_in) = (4_976, 2));
    assert_eq!(at_fin(&past_words, None, |_| ()), "stale_write certain unknown");
    // With an answer unread: the rest of an upload.
    let upload = asked(5, |raw| raw.copied_seq = 4_000);
    assert_eq!(at_fin(&upload, None, crossed), "early_response certain unknown");
    let said = |word: u8| asked(5, move |raw| raw.word = word);
    assert_eq!(at_fin(&said(word::PROBE), None, |_| ()), "stale_probe certain unknown");
    assert_eq!(at_fin(&said(word::CONTROL), None, |_| ()), "nothing");
    assert_eq!(at_fin(&said(word::FAREWELL), None, crossed), "nothing");
}

#[test]
fn a_write_past_the_fin() {
    let fin = event(|raw| (raw.lsndtime, raw.lrcvtime) = (raw.jiffies - 250, raw.jiffies - 249));
    let check = |change: &dyn Fn(&mut Record), expected: &str| {
        let late = event(|raw| {
            (raw.kind, raw.size, raw.new_state) = (kind::WRITE, 27, 8);
            raw.old_state = 8;
            (raw.lsndtime, raw.lrcvtime) = (raw.jiffies - 250, raw.jiffies - 249);
            change(raw);
        });
        let at_risk = late_write(&late, Some(&fin), None, known(None, None));
        let found = if let AtRisk::Request { class, certainty, .. } = at_risk {
            format!("{class} {certainty}")
        } else {
            format!("{at_risk:?}")
        };
        assert_eq!(found, expected);
    };
    check(&|_| (), "stale_write certain");
    check(&|raw| raw.word = word::REQUEST, "stale_write certain");
    check(&|raw| raw.lrcvtime = raw.jiffies - 5, "stale_write inferred");
    check(&|raw| raw.word = word::FAREWELL, "Farewell");
    check(&|raw| raw.word = word::PROBE, "Probe");
    check(&|raw| raw.bytes_received = 1, "unused_close certain");
    check(&|raw| raw.copied_seq = 4_000, "Continued"); // its answer is unread
    check(&|raw| raw.copied_seq = raw.rcv_nxt, "Continued"); // it knows of the end
}

#[test]
fn only_the_next_step_tells_a_few_bytes() {
    let request = |word| AtRisk::Request {
        class: Class::StaleWrite,
        certainty: Certainty::Certain,
        gap: None,
        word,
        is_doubtful: word == Word::Unknown,
    };
    let end = Ending {
        bytes: 27,
        outcome: Outcome::Reset,
        has_noticed: None,
        is_habit: false,
        is_known: true,
        read: Read::Never,
    };
    let check = |at_risk, end, expected: &str| assert_eq!(text(outcome(at_risk, end)), expected);
    let unknown = request(Word::Unknown);
    check(unknown, end, "nothing"); // waits
    check(unknown, Ending { has_noticed: Some(true), ..end }, "stale_write certain never");
    let unnoticed = Ending { has_noticed: Some(false), ..end };
    check(unknown, unnoticed, "farewell inferred unknown");
    check(unknown, Ending { is_habit: true, ..unnoticed }, "stale_write certain never");
    check(unknown, Ending { bytes: 97, ..unnoticed }, "stale_write certain never");
    check(request(Word::Request), unnoticed, "stale_write certain never");
    check(AtRisk::Farewell, end, "farewell certain unknown");
    check(AtRisk::Probe, end, "stale_probe certain unknown");
    check(AtRisk::Continued, end, "early_response inferred unknown");
    let acked = Ending { outcome: Outcome::Acked, ..end };
    check(AtRisk::Continued, acked, "half_close certain unknown");
    check(AtRisk::Continued, Ending { is_known: false, ..acked }, "unknown inferred unknown");
}

#[test]
fn a_reset_meets_a_request() {
    let at = |asked: &Asked, server: Option<ServerEnd>, change: &dyn Fn(&mut Record)| {
        let reset_event = event(|raw| {
            raw.kind = kind::RESET_RECEIVED;
            (raw.old_state, raw.new_state) = (1, 1);
            (raw.rcv_nxt, raw.snd_una) = (5_000, 1_000);
            change(raw);
        });
        let at = reset(&reset_event, known(Some(asked), server));
        text(at.told) + if at.told.is_some_and(|told| told.doubt.is_some()) { " doubt" } else { "" }
    };
    let plain = asked(5, |_| ());
    let (none, live) = (None, &|_: &mut Record| ());
    assert_eq!(at(&plain, none, live), "unread_close inferred unknown");
    // Long after: the peer's timeout tells whether it was worked on.
    let late = asked(800, |_| ());
    assert_eq!(at(&late, none, live), "unread_close inferred unknown doubt");
    let stateless = &|raw: &mut Record| raw.flags &= !flag::SAW_TSTAMP;
    assert_eq!(at(&plain, none, stateless), "silent_drop certain never");
    let twice = &|raw: &mut Record| (raw.flags, raw.data_segs_out) = (flag::TSTAMP_OK, 3);
    assert_eq!(at(&plain, none, twice), "silent_drop certain unknown");
    let unstamped = &|raw: &mut Record| raw.flags = flag::FULL_SOCK;
    assert_eq!(at(&plain, none, unstamped), "reset_after_reuse inferred unknown");
    let answered = &|raw: &mut Record| (raw.rcv_nxt, raw.snd_una) = (5_010, 1_200);
    assert_eq!(at(&plain, none, answered), "mid_stream_reset certain unknown");
    // The other end is on this host, and shows what it had.
    let end = |received, read| Some(ServerEnd { received, read, is_fin_lost: false });
    assert_eq!(at(&plain, end(1_000, 1_000), unstamped), "silent_drop certain never");
    let fin_lost = ServerEnd { received: 1_000, read: 1_000, is_fin_lost: true };
    assert_eq!(at(&plain, Some(fin_lost), stateless), "fin_crossed certain never");
    assert_eq!(at(&plain, end(1_200, 1_000), live), "unread_close certain never");
    assert_eq!(at(&plain, end(1_200, 1_100), live), "mid_stream_reset certain unknown");
    assert_eq!(at(&plain, end(1_200, 1_200), live), "mid_stream_reset certain unknown");
}

/// Nothing is open, and the connection has been idle for 5 s.
#[test]
fn who_reset_an_idle_connection() {
    let closer = |spoke_ago_ms: u64, change: &dyn Fn(&mut Record)| {
        let reset_event = event(|raw| {
            raw.kind = kind::RESET_RECEIVED;
            (raw.old_state, raw.new_state) = (1, 1);
            (raw.lsndtime, raw.lrcvtime) = (raw.jiffies - 1_251, raw.jiffies - 1_250);
            raw.spoke_ns = (NOW_MS - spoke_ago_ms) * 1_000_000;
            (raw.flags, raw.rtt_us) = (flag::FULL_SOCK | flag::TSTAMP_OK, 100_000);
            change(raw);
        });
        let at = reset(&reset_event, known(None, None));
        assert_eq!((at.told, at.ended.evidence), (None, Evidence::Idle));
        at.ended.closer.as_str()
    };
    assert_eq!(closer(5_000, &|_| ()), "middlebox");
    assert_eq!(closer(401, &|_| ()), "middlebox");
    // It may answer a probe: the peer's host has forgotten the connection.
    assert_eq!(closer(400, &|_| ()), "peer");
    assert_eq!(closer(5_000, &|raw| raw.spoke_ns = 0), "peer");
    assert_eq!(closer(5_000, &|raw| raw.flags |= flag::SAW_TSTAMP), "peer");
    assert_eq!(closer(5_000, &|raw| raw.flags = flag::FULL_SOCK), "peer");
}

#[test]
fn keep_alive_probes_were_acknowledged() {
    let is_probed = |sent: u32, heard: u32, acked: u32| {
        let write = event(|raw| {
            (raw.rtt_us, raw.jiffies) = (100_000, 100);
            (raw.lsndtime, raw.lrcvtime, raw.rcv_tstamp) =
                (sent.wrapping_neg(), heard.wrapping_neg(), acked.wrapping_neg());
        });
        write.is_probed(TICKS)
    };
    // In ticks of 4 ms before: 1.2 s after the last data, whether the peer's or ours, and 4 ms more.
    assert!(is_probed(1_000, 900, 599) && is_probed(900, 1_000, 599));
    assert!(!is_probed(1_000, 900, 600) && !is_probed(900, 1_000, 600));
    assert!(!is_probed(1_000, 900, 900) && !is_probed(1_000, 900, 0), "a field that is not there");
}

#[test]
fn a_write_on_a_dead_socket() {
    let reset_event = event(|raw| raw.time_ns -= 500_000_000);
    let check = |change: &dyn Fn(&mut Record), expected: &str| {
        let end = event(|raw| {
            raw.kind = kind::DESTROYED;
            change(raw);
        });
        assert_eq!(text(write_after_reset(&end, &reset_event, known(None, None))), expected);
    };
    check(&|raw| raw.app_limited = 3, "write_after_reset certain never");
    check(&|_| (), "nothing"); // nobody wrote
    // An application that learns of the RST says farewell at once.
    let soon = |millis: u64| {
        move |raw: &mut Record| {
            raw.app_limited = 3;
            raw.time_ns = raw.time_ns - 500_000_000 + millis * 1_000_000;
        }
    };
    check(&soon(5), "nothing");
    check(&soon(30), "write_after_reset inferred never");
}

#[test]
fn a_request_past_a_goaway() {
    let fin =
        |words: u32| event(|raw| (raw.rcv_nxt, raw.lsndtime) = (5_001 + words, raw.jiffies - 500));
    let ended = Ended {
        closer: Closer::Peer,
        evidence: Evidence::UpperBound,
        idle: Duration::from_secs(1),
    };
    let check = |said: u8, words: u32, expected: &str| {
        let write = event(|raw| {
            (raw.kind, raw.word, raw.size, raw.old_state) = (kind::WRITE, said, 60, 8);
            (raw.rcv_nxt, raw.copied_seq) = (5_001 + words, 5_000);
            raw.lsndtime = raw.jiffies - 500;
        });
        let at_risk = late_write(&write, Some(&fin(words)), Some(ended), known(None, None));
        let AtRisk::Request { class, certainty, .. } = at_risk else { panic!("{at_risk:?}") };
        assert_eq!(format!("{class} {certainty}"), expected);
    };
    check(word::SEALED, 39, "after_goaway inferred");
    check(word::SEALED, 39 + 24, "after_goaway inferred");
    check(word::SEALED, 24, "stale_write certain"); // an alert alone
    check(word::SEALED, 82 + 24, "stale_write certain");
    check(word::UNKNOWN, 39, "stale_write certain");
}

#[test]
fn a_drop_at_the_timeout_is_a_lost_fin() {
    let incident = || {
        let mut incident = Incident::new(
            Nanos(0),
            event(|_| ()).origin(Role::Client, None),
            Class::SilentDrop,
            Outcome::Reset,
        );
        incident.gap = Some(Duration::from_secs(1));
        incident
    };
    let settled = |is_due: bool| {
        let mut incident = incident();
        assert!(settle(&mut incident, |_| is_due));
        format!("{} {}", incident.class, incident.certainty)
    };
    assert_eq!(settled(true), "fin_crossed inferred");
    assert_eq!(settled(false), "silent_drop certain");
}

#[test]
fn an_alert_is_no_answer_to_a_request_in_tls() {
    let sealed = asked(5, |raw| raw.word = word::SEALED);
    let came = |bytes: u32| {
        move |raw: &mut Record| {
            (raw.rcv_nxt, raw.lrcvtime) = (5_001 + bytes, raw.jiffies);
        }
    };
    assert_eq!(at_fin(&sealed, None, came(31)), "read_and_closed inferred unknown");
    assert_eq!(at_fin(&sealed, None, came(80)), "nothing");
    assert_eq!(at_fin(&asked(5, |_| ()), None, came(31)), "nothing");
    // The client closes on it first; `rcv_nxt` has no FIN then.
    let ours = |bytes: u32| {
        let event = event(|raw| {
            (raw.new_state, raw.rcv_nxt, raw.lrcvtime) = (4, 5_000 + bytes, raw.jiffies);
        });
        text(our_fin(&event, known(Some(&sealed), None)).told)
    };
    assert_eq!(ours(31), "read_and_closed certain unknown");
    assert_eq!(ours(80), "nothing");
}

#[test]
fn a_handshake_across_a_tick_is_no_use() {
    let a_tick_apart = |raw: &mut Record| {
        (raw.lsndtime, raw.lrcvtime) = (raw.jiffies - 250, raw.jiffies - 251);
    };
    let unused = event(|raw| {
        a_tick_apart(raw);
        (raw.bytes_received, raw.data_segs_out, raw.data_segs_in) = (1, 0, 0);
    });
    let at = peer_fin(&unused, known(None, None));
    assert_eq!((at.ended.evidence, at.told), (Evidence::Unused, None));
    let used = peer_fin(&event(a_tick_apart), known(None, None));
    assert_eq!((used.ended.evidence, used.told), (Evidence::Idle, None));
}

#[test]
fn a_silence_is_outlived_by_what_breaks_it() {
    let idle = |idle_ms: u64, evidence| Ended {
        closer: Closer::Peer,
        evidence,
        idle: Duration::from_millis(idle_ms),
    };
    let outlived = |asked: &Asked, ended| outlived(&event(|_| ()), ended, Some(asked)).as_millis();
    let request = asked(3_000, |_| ());
    assert_eq!(outlived(&request, idle(3_000, Evidence::Idle)), 1_000);
    assert_eq!(super::outlived(&event(|_| ()), idle(3_000, Evidence::Idle), None), Duration::ZERO);
    // Past the server's last words.
    let late = asked(1_000, |raw| (raw.rcv_nxt, raw.data_segs_in) = (5_031, 2));
    assert!(late.came_after_words());
    assert_eq!(outlived(&late, idle(1_000, Evidence::UpperBound)), 0);
    // The server's timer does not count a ping: to it, the silence has lasted since before.
    let ping = Asked { word: Word::Probe, ..asked(3_000, |_| ()) };
    assert_eq!(outlived(&ping, idle(3_000, Evidence::Idle)), 4_000);
    let reply = Asked {
        kind: AskedKind::Reply(Duration::from_secs(1)),
        bytes: 40,
        ..asked(3_000, |raw| raw.write_seq = 1_160)
    };
    assert_eq!(outlived(&reply, idle(3_000, Evidence::Idle)), 4_000);
    // Our reply to the server's last words is part of the end.
    assert_eq!(outlived(&reply, idle(1_000, Evidence::UpperBound)), 0);
    assert_eq!(outlived(&reply, idle(1_000, Evidence::Idle)), 0);
}
