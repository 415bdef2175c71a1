//! What an event costs on its way from a ring to the table, stage by stage.

mod traffic;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use finrace::clock::monotonic;
use finrace::probe::attach::attach;
use finrace::probe::names::ProcessNames;
use finrace::probe::source::{Batch, Source};
use finrace::session;
use finrace::who::Who;
use finrace_ebpf::abi::{RECORD_SIZE, Record};
use finrace_logic::engine::Engine;
use finrace_logic::event::{Event, Ticks, decode};
use finrace_logic::join::Joiner;
use finrace_logic::merge::Merge;
use finrace_logic::merge::RINGS;
use finrace_logic::model::Nanos;
use finrace_logic::tracker::Tracker;
use finrace_logic::turn::RunSettings;
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::say;
pub(crate) use traffic::Traffic;
use traffic::{HZ, is_of_races};

/// The agent's defaults.
const MAX_ROWS: usize = 1_000;
const THRESHOLD: Duration = Duration::from_millis(200);

/// Records waiting when a quarter-full ring wakes its reader.
const QUARTER: usize = 1_560;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    traffic: Traffic,
    /// Only the stages up to this one, and no clock: for a profiler or an instruction counter
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// Instead, for this many seconds, take what this host's own traffic writes into the rings (root)
    #[arg(long)]
    attached: Option<u64>,
}

/// Each runs after the stages before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Stage {
    /// Only making the traffic: the part to subtract
    Traffic,
    /// Bytes to events, in the order of their stamps
    Decode,
    /// And process names
    Name,
    /// And following sockets
    Track,
    /// And joining both ends' views
    Join,
    /// And finding causes and counting in rows: everything
    Engine,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(seconds) = args.attached {
        return attached(Duration::from_secs(seconds));
    }
    let records = args.traffic.records();
    // Every tick, or as soon as a ring is a quarter full.
    let batch = usize::try_from(args.traffic.rate / 10)?.clamp(1, QUARTER);
    if let Some(stage) = args.stage {
        go(&records, batch, stage, &mut Spent::default());
        return Ok(());
    }
    let timed = || Spent { is_timed: true, ..Spent::default() };
    let mut spent = timed();
    let (events, observations) = go(&records, batch, Stage::Engine, &mut spent);
    // Once more, for the stages inside the engine.
    let mut inside = timed();
    go(&records, batch, Stage::Join, &mut inside);
    let ns = |time: Duration| time.as_nanos() as u64 / events.max(1) as u64;
    let total = spent.decode + spent.order + spent.engine;
    let line = json!({
        "part": "events",
        "rate": args.traffic.rate,
        "batch": batch,
        "events": events,
        "observations": observations,
        "event_bytes": size_of::<Event>(),
        "ns_per_event": {
            "decode": ns(spent.decode),
            "order": ns(spent.order),
            "track": ns(inside.track),
            "join": ns(inside.join),
            "engine": ns(spent.engine),
            "total": ns(total),
        },
    });
    say(&line)
}

/// What came out of the rings.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) batches: u64,
    pub(crate) events: u64,
    pub(crate) malformed: u64,
    pub(crate) observations: u64,
    /// Records that have found their ring full since the start, by ring.
    pub(crate) lost: [u64; RINGS],
    /// The most bytes that waited in a ring.
    pub(crate) waited: u64,
}

/// Does what the agent does with the batches of a source, until `is_enough` or the source ends.
pub(crate) fn follow(
    batches: &mut UnboundedReceiver<Batch>,
    engine: &mut Engine,
    mut is_enough: impl FnMut(&Seen) -> bool,
) -> Seen {
    let mut seen = Seen::default();
    while !is_enough(&seen)
        && let Some(batch) = batches.blocking_recv()
    {
        seen.batches += 1;
        seen.events += batch.events.len() as u64;
        seen.malformed += batch.malformed.len() as u64;
        seen.waited = batch.waited.into_iter().fold(seen.waited, u64::max);
        let lost = batch.flows.map(|ring| ring.full);
        if lost != seen.lost {
            seen.lost = lost;
            engine.note_loss(batch.until);
        }
        seen.observations += engine.advance(&batch.events, batch.until).len() as u64;
    }
    seen
}

/// The agent without its HTTP side, on this host.
fn attached(time: Duration) -> Result<()> {
    let (mut features, resolved) = session::prepare(None)?;
    let (_, attached) = attach(&mut features, resolved.layout, THRESHOLD, &[])?;
    let start = monotonic();
    let settings = RunSettings {
        ticks: Ticks { hz: features.hz },
        threshold: THRESHOLD,
        sees_writes: true,
        sees_ends: true,
        start,
    };
    let mut engine = Engine::new(settings, [], MAX_ROWS);
    let (_source, mut batches) = Source::start(attached.records, None, Who::default())?;
    let begin = clock_gettime(ClockId::ProcessCPUTime);
    let seen = follow(&mut batches, &mut engine, |_| monotonic().since(start) >= time);
    let end = clock_gettime(ClockId::ProcessCPUTime);
    let spent = duration(end).saturating_sub(duration(begin));
    say(&json!({
        "part": "events_attached",
        "seconds": time.as_secs(),
        "batches": seen.batches,
        "events": seen.events,
        "malformed": seen.malformed,
        "observations": seen.observations,
        "lost": seen.lost,
        "waited": seen.waited,
        "cpu_us": spent.as_micros() as u64,
    }))
}

/// CPU time of this thread, by stage.
#[derive(Default)]
struct Spent {
    /// If not, the clock is not read: an instruction counter may not support that.
    is_timed: bool,
    decode: Duration,
    order: Duration,
    track: Duration,
    join: Duration,
    engine: Duration,
}

/// Carries the records through the stages up to `last`; returns how many events and observations
/// there were.
fn go(records: &[Record], batch: usize, last: Stage, spent: &mut Spent) -> (usize, usize) {
    let is_timed = spent.is_timed;
    let start = Nanos(records.first().map_or(0, |record| record.time_ns));
    let settings = RunSettings {
        ticks: Ticks { hz: HZ },
        threshold: THRESHOLD,
        sees_writes: true,
        sees_ends: true,
        start,
    };
    let mut engine = Engine::new(settings, [], MAX_ROWS);
    let (mut tracker, mut joiner) = (Tracker::new(settings, []), Joiner::default());
    let mut names = ProcessNames::new(Who::default());
    let mut merge = Merge::default();
    let (mut events, mut observations) = (0, 0);
    if last == Stage::Traffic {
        return (0, 0);
    }
    for records in records.chunks(batch) {
        let until = Nanos(records.last().map_or(0, |record| record.time_ns));
        timed(is_timed, &mut spent.decode, || {
            for record in records {
                if let Ok(event) = decode(bytes(record)) {
                    merge.add((!is_of_races(record)).into(), event);
                }
            }
        });
        let mut ready = Vec::new();
        timed(is_timed, &mut spent.order, || {
            ready = merge.take(until);
            if last != Stage::Decode {
                names.replace(&mut ready, until);
            }
        });
        events += ready.len();
        match last {
            Stage::Traffic | Stage::Decode | Stage::Name => {}
            Stage::Track | Stage::Join => {
                timed(is_timed, &mut spent.track, || {
                    for event in &ready {
                        tracker.handle(event);
                    }
                    tracker.expire(until);
                });
                let findings = tracker.take();
                if last == Stage::Join {
                    let mut out = Vec::new();
                    timed(is_timed, &mut spent.join, || {
                        for finding in findings {
                            joiner.add(finding, &mut out);
                        }
                        joiner.expire(until, &mut out);
                    });
                    observations += out.len();
                }
            }
            Stage::Engine => {
                timed(is_timed, &mut spent.engine, || {
                    observations += engine.advance(&ready, until).len();
                });
            }
        }
    }
    (events, observations)
}

fn timed(is_timed: bool, spent: &mut Duration, work: impl FnOnce()) {
    let now = || if is_timed { on_cpu() } else { Duration::ZERO };
    let begin = now();
    work();
    *spent += now().saturating_sub(begin);
}

/// CPU time of this thread.
fn on_cpu() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

pub(crate) fn duration(time: Timespec) -> Duration {
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned() as u32)
}

/// The record as it lies in a ring.
fn bytes(record: &Record) -> &[u8] {
    let record = std::ptr::from_ref(record).cast();
    // SAFETY: integers only and no padding between them, so all of its bytes have a value.
    unsafe { std::slice::from_raw_parts(record, RECORD_SIZE) }
}
