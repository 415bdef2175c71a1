//! Streams of records that real kernels produced, replayed: what the logic makes of them is
//! compared with `streams/NAME.txt`. Also bytes that no kernel produces: refused or tolerated.
//!
//! Each line of `streams/NAME.jsonl` is a record without the fields that are zero; the first line tells
//! the story of the traffic. `GOLDEN=write cargo test` rewrites the expected files: read the
//! diff.
#![cfg(test)]

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use finrace::metrics::{self, Format, Status};
use finrace_ebpf::abi::{RECORD_SIZE, Record, flag, kind, opener};
use finrace_ebpf::word;
use finrace_logic::engine::Engine;
use finrace_logic::event::{DecodeError, Event, Kind, Ticks, decode};
use finrace_logic::model::{Close, Dwell, Incident, Nanos, Observation, Origin, Read, Reuse, Role};
use finrace_logic::turn::RunSettings;
use serde_json::{Map, Value};

const STREAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/streams");
/// The interval at which the rings are drained.
const TICK: Duration = Duration::from_millis(100);
/// After this long, nothing is pending any more.
const SETTLED: Duration = Duration::from_secs(10);
const MAX_ROWS: usize = 50;

#[test]
fn streams_are_understood() {
    let mut differing = Vec::new();
    let mut names: Vec<_> =
        fs::read_dir(STREAMS).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    assert!(!names.is_empty(), "no streams in {STREAMS}");
    names.sort();
    for stream in names {
        let (hz, events) = read(&stream);
        let (mut engine, lines) = replay(hz, &events, TICK);
        let (_, singly) = replay(hz, &events, Duration::ZERO);
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        let is_same = sorted(singly) == sorted(lines.clone());
        assert!(is_same, "{} depends on how it is cut into batches", stream.display());

        let text = lines.join("\n") + "\n\n" + &scrape(&mut engine);
        let golden = stream.with_extension("txt");
        if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
            fs::write(golden, text).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != text {
            differing.push(format!("{} differs, is now:\n{text}", golden.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// With tens of thousands of closes a second, only the latest are remembered: a request that comes
/// late to one of them is reported, one to an older close is not, and nothing else becomes uncertain.
#[test]
fn a_busy_server_still_tells_late_requests() {
    let (hz, events) = read(&Path::new(STREAMS).join("stale_write.jsonl"));
    let close = events.iter().find(|event| (event.raw.old_state, event.raw.new_state) == (1, 4));
    let close = *close.expect("a FIN of ours");
    let others: Vec<Event> = (0..60_000_u32)
        .map(|number| {
            let mut other = close;
            other.time = Nanos(close.time.0 - 60_000_000 + 1_000 * u64::from(number));
            other.key.sk ^= u64::from(number + 1) << 8;
            other.key.tuple.remote.ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into();
            other
        })
        .collect();
    let late = |event: &Event| {
        let mut reset = *event;
        reset.kind = Kind::ResetSent;
        reset.time = close.time + Duration::from_millis(1);
        reset.raw.kind = kind::RESET_SENT;
        (reset.raw.old_state, reset.raw.new_state) = (0, 0);
        reset.raw.flags = flag::SEGMENT;
        (reset.raw.skb_seq, reset.raw.size) = (event.raw.rcv_nxt, 500);
        reset.raw.skb_ack = event.raw.write_seq.wrapping_add(1);
        reset
    };
    let late_requests = |of: &Event| {
        let mut all = others.clone();
        all.extend([close, late(of)]);
        let (engine, lines) = replay(hz, &all, TICK);
        assert!(engine.forgotten() > 30_000 && engine.refused() == 0);
        lines.iter().filter(|line| line.contains("late_request")).count()
    };
    assert_eq!(late_requests(&close), 1);
    assert_eq!(late_requests(others.last().unwrap()), 1);
    assert_eq!(late_requests(others.first().unwrap()), 0);
}

/// An HTTP/2 server over TLS whose clients are elsewhere: its last words imply that a request which comes after
/// them was refused. An alert alone, or an answer, implies nothing of the kind.
#[test]
fn a_server_knows_that_it_has_gone_away() {
    let (hz, events) = read(&Path::new(STREAMS).join("stale_write.jsonl"));
    let mut server: Vec<Event> = events
        .into_iter()
        .filter(|event| event.raw.opener == opener::PASSIVE || event.kind == Kind::ResetSent)
        .collect();
    let [close, reset, ..] = &mut *server else { panic!("a FIN of ours, and a reset") };
    let start = close.raw.write_seq;
    let mut words = *close;
    words.kind = Kind::Write;
    (words.raw.kind, words.raw.word) = (kind::WRITE, word::SEALED);
    words.raw.new_state = words.raw.old_state;
    let (words_at, closed) = (words.time, *close);
    let mut told = |bytes: u32| {
        let mut close = closed;
        (words.raw.size, words.time) = (bytes, words_at);
        close.time = words_at + Duration::from_micros(20);
        close.raw.write_seq = start.wrapping_add(bytes);
        (close.raw.snd_nxt, close.raw.lsndtime) = (close.raw.write_seq, close.raw.jiffies);
        reset.raw.snd_nxt = close.raw.write_seq.wrapping_add(1);
        reset.raw.skb_ack = reset.raw.snd_nxt;
        let (_, lines) = replay(hz, &[words, close, *reset], TICK);
        let told = lines.into_iter().find(|line| line.contains("bytes 200")).unwrap_or_default();
        told.split(' ').take(2).collect::<Vec<_>>().join(" ")
    };
    // A GOAWAY in TLS 1.3, alone and with its alert.
    assert_eq!([told(39), told(39 + 24)], ["incident after_goaway"; 2]);
    assert_eq!([told(24), told(40), told(500)], ["race late_request"; 3]);
}

/// A race that still waits for its outcome is reported once, at the end of a run.
#[test]
fn the_end_of_a_run_loses_no_race() {
    let (hz, events) = read(&Path::new(STREAMS).join("stale_write.jsonl"));
    let late =
        events.iter().position(|event| event.kind == Kind::Write && event.raw.old_state == 8);
    let upto = &events[..=late.expect("a write into CLOSE_WAIT")];
    let mut engine = engine(hz);
    let end = upto.last().unwrap().time + TICK;
    let told = |observations: Vec<Observation>| -> Vec<String> {
        let incidents = observations.into_iter().filter(|o| matches!(o, Observation::Incident(_)));
        incidents.map(|observation| line(&observation)).collect()
    };
    assert!(told(engine.advance(upto, end)).is_empty());
    let lines = told(engine.finish(end));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("race stale_write unknown unknown client gap 1.400"), "{lines:?}");
    assert!(told(engine.finish(end)).is_empty());
}

/// A request that hangs is reported once. What comes after its answer is about something else.
#[test]
fn a_request_that_hung_and_was_answered_hides_no_later_race() {
    let (hz, events) = read(&Path::new(STREAMS).join("silent_drop.jsonl"));
    let write = *events.iter().find(|event| event.kind == Kind::Write).expect("a reuse");
    let reset = *events.iter().find(|e| e.kind == Kind::ResetReceived).expect("its reset");
    let at = |mut event: Event, kind: Kind, millis: u64| {
        event.kind = kind;
        event.time = write.time + Duration::from_millis(millis);
        event
    };
    let mut hangs = at(reset, Kind::Retransmitted, 1_400);
    hangs.raw.retransmits = 3;
    let outcomes = |second: &[Event]| {
        let mut engine = engine(hz);
        let mut lines = Vec::new();
        for event in [&[write, hangs], second].concat() {
            lines.extend(engine.advance(&[event], event.time).iter().map(line));
        }
        lines.extend(engine.finish(write.time + SETTLED).iter().map(line));
        lines.retain(|line| !line.starts_with("close") && !line.starts_with("reuse"));
        lines
    };
    let only = outcomes(&[at(reset, Kind::ResetReceived, 2_000)]);
    assert_eq!(only.len(), 2, "{only:?}");
    assert!(only.iter().any(|line| line.starts_with("race silent_drop idle pending client")));
    assert!(only.iter().any(|line| line.starts_with("outcome silent_drop")), "{only:?}");

    // Answered with 300 bytes, used again, and lost.
    let mut again = at(write, Kind::Write, 3_000);
    again.raw.write_seq = write.raw.write_seq.wrapping_add(write.raw.size);
    (again.raw.snd_una, again.raw.snd_nxt) = (again.raw.write_seq, again.raw.write_seq);
    again.raw.rcv_nxt = write.raw.rcv_nxt.wrapping_add(300);
    again.raw.copied_seq = again.raw.rcv_nxt;
    let mut lost = at(reset, Kind::ResetReceived, 3_001);
    lost.raw.snd_una = again.raw.write_seq;
    lost.raw.write_seq = again.raw.write_seq.wrapping_add(again.raw.size);
    (lost.raw.rcv_nxt, lost.raw.copied_seq) = (again.raw.rcv_nxt, again.raw.rcv_nxt);
    let both = outcomes(&[again, lost]);
    let races = both.iter().filter(|line| line.starts_with("race silent_drop")).count();
    assert_eq!((races, both.len()), (2, 2), "{both:?}");
}

/// `never` only where one segment, sent once, met no socket: judged from the client's end alone.
#[test]
fn what_may_have_been_read_is_never_called_unread() {
    let (hz, events) = read(&Path::new(STREAMS).join("stale_write.jsonl"));
    let client: Vec<Event> =
        events.into_iter().filter(|event| event.raw.opener == opener::ACTIVE).collect();
    let told = |change: &dyn Fn(&mut Record)| {
        let mut changed = client.clone();
        changed
            .iter_mut()
            .filter(|e| e.kind == Kind::ResetReceived)
            .for_each(|e| change(&mut e.raw));
        let mut engine = engine(hz);
        let last = changed.last().unwrap().time;
        let mut observations = engine.advance(&changed, last);
        observations.extend(engine.finish(last + SETTLED));
        let mut races = Vec::new();
        for observation in &observations {
            if let Observation::Incident(incident) = observation
                && incident.class.is_race()
            {
                races.push(incident.read);
            }
        }
        assert_eq!(races.len(), 1);
        races[0]
    };
    assert_eq!(told(&|_| ()), Read::Never);
    // Two segments, or one sent twice: an earlier one may have been read. So may what was acknowledged, and
    // what was reset by a live socket, or by a socket that may or may not have been alive.
    let changes: [&dyn Fn(&mut Record); 4] = [
        &|raw| raw.data_segs_out += 1,
        &|raw| raw.snd_una = raw.snd_una.wrapping_add(1),
        &|raw| raw.flags |= flag::SAW_TSTAMP,
        &|raw| raw.flags &= !flag::TSTAMP_OK,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(told(change), Read::Unknown, "change {number}");
    }
}

fn engine(hz: u32) -> Engine {
    let threshold = Duration::from_millis(200);
    let settings = RunSettings {
        ticks: Ticks { hz },
        threshold,
        sees_writes: true,
        sees_ends: true,
        start: Nanos::default(),
    };
    Engine::new(settings, [], MAX_ROWS)
}

/// Events are fed in batches of this length of time; zero for each alone.
fn replay(hz: u32, events: &[Event], tick: Duration) -> (Engine, Vec<String>) {
    let mut engine = engine(hz);
    let mut lines = Vec::new();
    let mut rest = events;
    while let Some(first) = rest.first() {
        let until = first.time + tick;
        let (batch, later) = rest.split_at(rest.partition_point(|event| event.time <= until));
        lines.extend(engine.advance(batch, until).iter().map(line));
        rest = later;
    }
    let end = events.last().unwrap().time + SETTLED;
    lines.extend(engine.advance(&[], end).iter().map(line));
    for balance in engine.balances() {
        assert_eq!(balance.unaccounted(), 0, "{balance:?}");
    }
    (engine, lines)
}

/// An observation in one line.
fn line(observation: &Observation) -> String {
    let origin = observation.origin();
    let (role, by) = (origin.role, by(origin));
    match observation {
        Observation::Close(Close { closer, how, evidence, idle, .. }) => {
            format!("close {role} {closer} {how} {evidence} {:.3}{by}", idle.as_secs_f64())
        }
        Observation::Reuse(Reuse { gap, bytes, .. }) => {
            format!("reuse {role} gap {:.3} bytes {bytes}{by}", gap.as_secs_f64())
        }
        Observation::Dwell(Dwell { dwell, written, .. }) => {
            let written = if *written { " written" } else { "" };
            format!("dwell {role} {:.3}{written}{by}", dwell.as_secs_f64())
        }
        Observation::Incident(incident) => {
            let event = if incident.class.is_race() { "race" } else { "incident" };
            let other = incident.other_view.as_deref().map(view);
            let other = other.map_or_else(String::new, |other| format!(" + {other}"));
            format!("{event} {}{other}", view(incident))
        }
        Observation::Outcome(incident) => format!("outcome {}", view(incident)),
    }
}

fn view(incident: &Incident) -> String {
    let Incident { origin, class, cause, outcome, .. } = incident;
    let mut text = format!("{class} {cause} {outcome} {}", origin.role);
    for (name, time) in
        [("gap", incident.gap), ("fin_age", incident.fin_age), ("idle", incident.idle)]
    {
        if let Some(time) = time {
            write!(text, " {name} {:.3}", time.as_secs_f64()).unwrap();
        }
    }
    if let Some(bytes) = incident.bytes {
        write!(text, " bytes {bytes}").unwrap();
    }
    text + &by(origin)
}

fn by(origin: &Origin) -> String {
    origin.process.as_ref().map_or_else(String::new, |process| format!(" by {}", process.name))
}

/// What a scrape says about peers; the buckets are left to the tests of the metrics.
fn scrape(engine: &mut Engine) -> String {
    let text = metrics::encode(&mut engine.table, Status::default(), Format::OpenMetrics);
    let of_peers = text.lines().filter(|line| line.contains("role=") && !line.contains("_port_"));
    let counts = of_peers.filter(|line| !line.contains("_bucket{") && !line.contains("_sum{"));
    counts.map(|line| line.to_owned() + "\n").collect()
}

// --- From text to records ---

/// HZ of the kernel, and its records.
fn read(path: &Path) -> (u32, Vec<Event>) {
    let text = fs::read_to_string(path).unwrap();
    let (head, lines) = text.split_once('\n').unwrap();
    let head: Value = serde_json::from_str(head).unwrap();
    assert!(head["story"].is_string(), "{} tells no story", path.display());
    let hz = head["hz"].as_u64().unwrap();
    let records =
        lines.lines().map(|line| Fields(serde_json::from_str(line).unwrap()).into_record());
    (hz as u32, records.map(|record| decode(&bytes(record)).unwrap()).collect())
}

/// The fields of a record that are not zero.
struct Fields(Map<String, Value>);

impl Fields {
    /// Fields are removed as they are read, so that a leftover is a mistake.
    fn into_record(mut self) -> Record {
        let record = Record {
            time_ns: self.number("time_ns"),
            sk: self.number("sk"),
            bytes_received: self.number("bytes_received"),
            cgroup: self.number("cgroup"),
            netns: self.number("netns"),
            tgid: self.number("tgid"),
            comm: self.comm(),
            local: self.address("local"),
            remote: self.address("remote"),
            local_port: self.number("local_port"),
            remote_port: self.number("remote_port"),
            kind: self.word("kind", KINDS),
            old_state: self.word("old_state", STATES),
            new_state: self.word("new_state", STATES),
            shutdown: self.number("shutdown"),
            opener: self.word("opener", OPENERS),
            flags: self.text("flags").split('|').map(|name| value_of(name, FLAGS)).sum(),
            retransmits: self.number("retransmits"),
            word: self.word("word", WORDS),
            jiffies: self.number("jiffies"),
            lsndtime: self.number("lsndtime"),
            lrcvtime: self.number("lrcvtime"),
            rcv_tstamp: self.number("rcv_tstamp"),
            write_seq: self.number("write_seq"),
            snd_una: self.number("snd_una"),
            snd_nxt: self.number("snd_nxt"),
            rcv_nxt: self.number("rcv_nxt"),
            copied_seq: self.number("copied_seq"),
            rtt_us: self.number("rtt_us"),
            data_segs_out: self.number("data_segs_out"),
            size: self.number("size"),
            skb_seq: self.number("skb_seq"),
            skb_ack: self.number("skb_ack"),
            max_ack_backlog: self.number("max_ack_backlog"),
            code: self.number("code"),
            rcv_wup: self.number("rcv_wup"),
            sent_us: self.number("sent_us"),
            acked_us: self.number("acked_us"),
            spoke_ns: self.number("spoke_ns"),
            snd_wl1: self.number("snd_wl1"),
            app_limited: self.number("app_limited"),
            data_segs_in: self.number("data_segs_in"),
            padding: 0,
        };
        assert!(self.0.is_empty(), "unknown fields: {:?}", self.0);
        record
    }

    fn number<T: TryFrom<u64, Error: std::fmt::Debug>>(&mut self, name: &str) -> T {
        let number = self.0.remove(name).map_or(0, |value| value.as_u64().unwrap());
        T::try_from(number).unwrap()
    }

    fn text(&mut self, name: &str) -> String {
        self.0.remove(name).map_or_else(String::new, |value| value.as_str().unwrap().to_owned())
    }

    fn word(&mut self, name: &str, words: &[(&str, u8)]) -> u8 {
        value_of(&self.text(name), words)
    }

    fn comm(&mut self) -> [u8; 16] {
        let mut comm = self.text("comm").into_bytes();
        comm.resize(16, 0);
        comm.try_into().unwrap()
    }

    fn address(&mut self, name: &str) -> [u8; 16] {
        match self.text(name).as_str() {
            "" => [0; 16],
            text => match text.parse().unwrap() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            },
        }
    }
}

const KINDS: &[(&str, u8)] = &[
    ("STATE", kind::STATE),
    ("WRITE", kind::WRITE),
    ("RESET_RECEIVED", kind::RESET_RECEIVED),
    ("RESET_SENT", kind::RESET_SENT),
    ("DESTROYED", kind::DESTROYED),
    ("RETRANSMITTED", kind::RETRANSMITTED),
];

const WORDS: &[(&str, u8)] = &[
    ("REQUEST", word::REQUEST),
    ("FAREWELL", word::FAREWELL),
    ("CONTROL", word::CONTROL),
    ("PROBE", word::PROBE),
    ("SEALED", word::SEALED),
];

const STATES: &[(&str, u8)] = &[
    ("ESTABLISHED", 1),
    ("SYN_SENT", 2),
    ("SYN_RECV", 3),
    ("FIN_WAIT1", 4),
    ("FIN_WAIT2", 5),
    ("TIME_WAIT", 6),
    ("CLOSE", 7),
    ("CLOSE_WAIT", 8),
    ("LAST_ACK", 9),
    ("LISTEN", 10),
    ("CLOSING", 11),
    ("NEW_SYN_RECV", 12),
];

const OPENERS: &[(&str, u8)] = &[("ACTIVE", opener::ACTIVE), ("PASSIVE", opener::PASSIVE)];

const FLAGS: &[(&str, u8)] = &[
    ("FULL_SOCK", flag::FULL_SOCK),
    ("TASK", flag::TASK),
    ("SAW_TSTAMP", flag::SAW_TSTAMP),
    ("TSTAMP_OK", flag::TSTAMP_OK),
    ("SEGMENT", flag::SEGMENT),
    ("TIMEWAIT", flag::TIMEWAIT),
    ("FIN_SENT", flag::FIN_SENT),
];

fn value_of(name: &str, words: &[(&str, u8)]) -> u8 {
    let known = words.iter().find(|(word, _)| *word == name);
    assert!(known.is_some() || name.is_empty(), "unknown word {name}");
    known.map_or(0, |(_, value)| *value)
}

fn bytes(record: Record) -> [u8; RECORD_SIZE] {
    // SAFETY: integers only, and no padding between them: the fields are 208 bytes long.
    unsafe { std::mem::transmute(record) }
}

// --- What no kernel produces ---

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn bytes(&mut self) -> [u8; RECORD_SIZE] {
        std::array::from_fn(|_| self.next() as u8)
    }

    /// Any bytes that decode.
    fn record(&mut self) -> Record {
        // SAFETY: `Record` is integers only, so every bit pattern is valid.
        let record: Record = unsafe { std::mem::transmute(self.bytes()) };
        let (old_state, new_state) = (self.below(13) as u8, self.below(13) as u8);
        let word = self.below(6) as u8;
        Record { kind: 1 + self.below(6) as u8, old_state, new_state, word, ..record }
    }

    /// Few sockets, states on their way to the end, numbers that nearly fit together: what gets
    /// deep into the logic.
    fn likely_record(&mut self, time: Nanos) -> Record {
        const WAYS: &[(u8, u8)] =
            &[(1, 8), (1, 4), (1, 7), (8, 9), (8, 7), (9, 7), (5, 7), (7, 10)];
        let mut record = self.record();
        record.time_ns = time.0;
        record.sk = self.below(6);
        (record.netns, record.opener) = (self.below(2) as u32, (record.sk % 3) as u8);
        record.local = Ipv6Addr::LOCALHOST.octets();
        record.remote = Ipv6Addr::LOCALHOST.octets();
        (record.local_port, record.remote_port) = (record.sk as u16 / 2, self.below(3) as u16);
        if !self.one_in(8) {
            let way = WAYS[self.below(WAYS.len() as u64) as usize];
            (record.old_state, record.new_state) =
                if record.kind == kind::STATE { way } else { (way.0, way.0) };
        }
        let now = (time.0 / 4_000_000) as u32;
        record.jiffies = now;
        for stamp in [&mut record.lsndtime, &mut record.lrcvtime, &mut record.rcv_tstamp] {
            *stamp = now.wrapping_sub(self.below(300) as u32);
        }
        for sequence in [
            &mut record.write_seq,
            &mut record.snd_una,
            &mut record.snd_nxt,
            &mut record.rcv_nxt,
            &mut record.copied_seq,
            &mut record.skb_seq,
            &mut record.skb_ack,
            &mut record.rcv_wup,
            &mut record.snd_wl1,
        ] {
            // Close to where they wrap.
            *sequence = 100_u32.wrapping_sub(self.below(200) as u32);
        }
        record.size = self.below(200) as u32;
        record.retransmits = self.below(4) as u8;
        let now_us = time.0 / 1_000;
        let ago = |random: &mut Self| now_us.saturating_sub(random.below(1_200_000));
        (record.sent_us, record.acked_us) = (ago(self), ago(self));
        record.spoke_ns = ago(self) * 1_000;
        record.app_limited = self.below(2) as u32;
        record.rtt_us = self.below(100_000) as u32;
        record.code = if self.one_in(4) { 110 } else { 104 }; // ETIMEDOUT, ECONNRESET
        record
    }
}

#[test]
fn malformed_bytes_are_refused() {
    let mut random = Random(1);
    let good = Record { kind: kind::STATE, old_state: 1, new_state: 12, ..random.record() };
    assert!(decode(&bytes(good)).is_ok());
    for length in (0..2 * RECORD_SIZE).filter(|length| *length != RECORD_SIZE) {
        assert_eq!(decode(&vec![0; length]), Err(DecodeError::Length(length)));
    }
    for kind in (0..=u8::MAX).filter(|kind| !(1..=6).contains(kind)) {
        assert_eq!(decode(&bytes(Record { kind, ..good })), Err(DecodeError::Kind(kind)));
    }
    for state in 13..=u8::MAX {
        let expected = Err(DecodeError::State(state));
        assert_eq!(decode(&bytes(Record { old_state: state, ..good })), expected);
        assert_eq!(decode(&bytes(Record { new_state: state, ..good })), expected);
    }
    for word in 6..=u8::MAX {
        assert_eq!(decode(&bytes(Record { word, ..good })), Err(DecodeError::Word(word)));
    }
    let decoded = (0..10_000).filter(|_| decode(&random.bytes()).is_ok()).count();
    // Of 2^32 values of kind, states and first bytes, 6 * 13 * 13 * 6 are known.
    assert!(decoded < 10, "{decoded}");
}

/// Feeds batches, and checks what is kept against its limits.
fn endure(count: usize, mut next: impl FnMut(&mut Random) -> Record) -> Vec<Observation> {
    let mut random = Random(6);
    let mut engine = engine(250);
    let mut observations = Vec::new();
    let mut left = count;
    while left > 0 {
        let batch = left.min(1 + random.below(50) as usize);
        left -= batch;
        let mut events: Vec<_> =
            (0..batch).map(|_| decode(&bytes(next(&mut random))).unwrap()).collect();
        events.sort_by_key(|event| event.time);
        let until = events.last().unwrap().time;
        if random.one_in(200) {
            engine.note_loss(until);
        }
        observations.extend(engine.advance(&events, until));
    }
    assert!(engine.fill().iter().all(|(_, entries, limit)| entries <= limit));
    assert!(engine.table.rows().len() <= MAX_ROWS);
    for format in [Format::OpenMetrics, Format::Text004] {
        assert!(!metrics::encode(&mut engine.table, Status::default(), format).is_empty());
    }
    observations
}

#[test]
fn any_order_of_likely_records_is_borne() {
    let mut time = Nanos::default();
    let observations = endure(100_000, |random| {
        let pause = if random.one_in(500) { 90_000 } else { random.below(40) };
        time = time + Duration::from_millis(pause);
        random.likely_record(time)
    });
    // It got deep: nearly every class was reported.
    let mut classes: Vec<_> = observations
        .iter()
        .filter_map(|o| match o {
            Observation::Incident(incident) => Some(incident.class),
            Observation::Close(_)
            | Observation::Reuse(_)
            | Observation::Dwell(_)
            | Observation::Outcome(_) => None,
        })
        .collect();
    classes.sort_unstable();
    classes.dedup();
    assert!(classes.len() >= 10, "only {classes:?}");
    let of_unknown = |o: &Observation| matches!(o, Observation::Incident(i) if i.class.is_race() && i.origin.role == Role::Unknown);
    assert!(!observations.iter().any(of_unknown), "a race of nobody");
}

#[test]
fn any_records_are_borne() {
    endure(100_000, Random::record);
}
