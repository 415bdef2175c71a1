//! What an event costs on its way from a ring to the table, stage by stage.

mod traffic;

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use finrace::logic::classify::Settings;
use finrace::logic::engine::Engine;
use finrace::logic::event::{Event, Ticks, decode};
use finrace::logic::join::Joiner;
use finrace::logic::model::Nanos;
use finrace::logic::tracker::Tracker;
use finrace::probe::names::Names;
use finrace_ebpf::abi::{RECORD_SIZE, Record};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use traffic::{HZ, Traffic, is_of_races};

/// As the agent is started by default.
const MAX_ROWS: usize = 1_000;
const THRESHOLD: Duration = Duration::from_millis(200);

/// Records that wait when a quarter full ring wakes its reader.
const QUARTER: usize = 1_560;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    traffic: Traffic,
    /// Only this, and no clock: for a profiler, or for one that counts instructions
    #[arg(long, value_enum)]
    stage: Option<Stage>,
}

/// Each is done after those before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Stage {
    /// Nothing but the making of the traffic: what to subtract
    Traffic,
    /// Bytes to events
    Decode,
    /// And names of processes, and the order of stamps
    Order,
    /// And sockets followed
    Track,
    /// And both ends' views joined
    Join,
    /// And causes, and rows counted: all of it
    Engine,
}

pub(crate) fn run(args: Args) -> Result<()> {
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
    // The same again, for what is inside of the engine.
    let mut inside = timed();
    go(&records, batch, Stage::Join, &mut inside);
    let ns = |time: Duration| time.as_nanos() as f64 / events.max(1) as f64;
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
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{line}");
    }
    Ok(())
}

/// Time of this thread on a CPU, by stage.
#[derive(Default)]
struct Spent {
    /// Else the clock is not read: what counts instructions for us may not know how to.
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
    let settings =
        Settings { ticks: Ticks { hz: HZ }, threshold: THRESHOLD, sees_writes: true, start };
    let mut engine = Engine::new(settings, [], MAX_ROWS);
    let (mut tracker, mut joiner) = (Tracker::new(settings, []), Joiner::default());
    let mut names = Names::new();
    let mut waiting = Vec::new();
    let (mut events, mut observations) = (0, 0);
    if last == Stage::Traffic {
        return (0, 0);
    }
    for records in records.chunks(batch) {
        let until = Nanos(records.last().map_or(0, |record| record.time_ns));
        timed(is_timed, &mut spent.decode, || {
            for of_races in [true, false] {
                let of_ring = records.iter().filter(|record| is_of_races(record) == of_races);
                waiting.extend(of_ring.filter_map(|record| decode(bytes(record)).ok()));
            }
        });
        if last == Stage::Decode {
            events += waiting.len();
            waiting.clear();
            continue;
        }
        let mut ready = Vec::new();
        timed(is_timed, &mut spent.order, || {
            waiting.sort_by_key(|event: &Event| event.time);
            let count = waiting.partition_point(|event| event.time <= until);
            ready.extend(waiting.drain(..count));
            names.replace(&mut ready, until);
        });
        events += ready.len();
        match last {
            Stage::Traffic | Stage::Decode | Stage::Order => {}
            Stage::Track | Stage::Join => {
                timed(is_timed, &mut spent.track, || {
                    ready.iter().for_each(|event| tracker.handle(event));
                    tracker.expire(until);
                });
                let findings = tracker.take();
                if last == Stage::Join {
                    let mut out = Vec::new();
                    timed(is_timed, &mut spent.join, || {
                        findings.into_iter().for_each(|finding| joiner.add(finding, &mut out));
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
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// As it lies in a ring.
fn bytes(record: &Record) -> &[u8] {
    let record = std::ptr::from_ref(record).cast();
    // SAFETY: integers only and no padding between them, so all of its bytes have a value.
    unsafe { std::slice::from_raw_parts(record, RECORD_SIZE) }
}
