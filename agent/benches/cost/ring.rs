//! The path of records from the kernel to the table, at any rate: a program of our own writes them
//! into the agent's ring on one processor, and the whole agent takes them out on another.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, MapData, loaded_maps};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader, Pod, RawTracePointRunOptions, TestRun as _};
use clap::ValueEnum;
use finrace::cli::KernelArgs;
use finrace::clock::monotonic;
use finrace::lost::Reason;
use finrace::session::Session;
use finrace_ebpf::abi::{MEASURES_BYTES, Record};
use finrace_logic::model::Nanos;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;

use crate::events::{Traffic, duration};
use crate::programs::{Loose, Programs};
use crate::say;
use crate::table::memory;

#[path = "../../../ebpf/bench/shared.rs"]
mod shared;
use shared::{PATTERNS, PRODUCERS, Produced};

/// The processor of both agent threads and of the second producer.
const AGENT: usize = 0;
const PRODUCER: usize = 1;
const _: () = assert!(PRODUCER < PRODUCERS as usize);

/// Warm-up, before the load counts as steady.
const WARM: Duration = Duration::from_secs(2);

/// Records per turn of the program.
const TURN: u64 = 500;

/// The agent's programs wake its reader at this fill level.
const WAKE_BYTES: u64 = MEASURES_BYTES as u64 / 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Object with the producer
    #[arg(long)]
    object: PathBuf,
    /// An empty directory on bpffs
    #[arg(long)]
    bpffs: PathBuf,
    /// How records come
    #[arg(long, value_enum)]
    load: Load,
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Peers: half are servers that are connected to, half are clients
    #[arg(long, default_value_t = 1_000)]
    peers: u64,
    /// Another producer, on the agent's processor
    #[arg(long)]
    two: bool,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Load {
    /// No records
    Idle,
    /// 10,000 a second, in batches of one millisecond
    #[value(name = "10k")]
    #[serde(rename = "10k")]
    TenThousand,
    /// 100,000 a second
    #[value(name = "100k")]
    #[serde(rename = "100k")]
    HundredThousand,
    /// 1,000,000 a second
    #[value(name = "1M")]
    #[serde(rename = "1M")]
    Million,
    /// 50,000 at once, every second
    Burst,
    /// As many as possible
    Flood,
}

impl Load {
    /// How many at once, and how long until the next ones.
    const fn portion(self) -> (u64, Duration) {
        const MILLISECOND: Duration = Duration::from_millis(1);
        match self {
            Self::Idle => (0, MILLISECOND),
            Self::TenThousand => (10, MILLISECOND),
            Self::HundredThousand => (100, MILLISECOND),
            Self::Million => (1_000, MILLISECOND),
            Self::Burst => (50_000, Duration::from_secs(1)),
            Self::Flood => (50_000, Duration::ZERO),
        }
    }
}

/// What became of a load.
#[derive(Serialize)]
struct Outcome {
    load: Load,
    seconds: f64,
    /// Records written or refused; those refused because the ring was full.
    produced: u64,
    refused: u64,
    /// Records that the agent has taken out; those that it reports as lost.
    seen: u64,
    lost: u64,
    /// The longest time it took to write a portion.
    longest_portion_us: u64,
    /// CPU time of the first producer per record.
    producer_ns_per_record: Option<f64>,
    /// Share of one processor, once all rows are there.
    agent_cpu_percent: f64,
    agent_us_per_event: Option<f64>,
    rss_kb: u64,
}

pub(crate) fn run(args: Args) -> Result<()> {
    on_processor(AGENT)?;
    let (_, loose) = Programs::load(&args.object, &args.kernel.hooks)?;
    let source = Producer::new(&args)?;
    let second = args.two.then(|| source.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Loose { attached, features, missing_fields } = loose;
    let mut session = Session::over(attached, features, missing_fields, &args.kernel)?;
    let before = clock_gettime(ClockId::ProcessCPUTime);
    let start = monotonic();
    let (load, seconds) = (args.load, args.seconds);
    let producing = std::thread::spawn(move || source.run(PRODUCER, load, seconds));
    let second = second.map(|second| std::thread::spawn(move || second.run(AGENT, load, seconds)));
    let time = Duration::from_secs(args.seconds) + Duration::from_millis(500);
    let mut rss_kb = 0;
    runtime.block_on(async {
        session.run(Some(time), None, |_, _| Ok(ControlFlow::Continue(()))).await?;
        rss_kb = memory("VmRSS")?;
        Ok::<_, anyhow::Error>(())
    })?;
    let seconds = monotonic().since(start).as_secs_f64();
    let join = |thread: JoinHandle<Result<Done>>| {
        thread.join().map_err(|_panic| anyhow!("a producer has panicked"))?
    };
    let done = join(producing)?;
    let second = second.map(join).transpose()?.unwrap_or_default();
    // All threads but the producers'.
    let own = since(before, ClockId::ProcessCPUTime).saturating_sub(done.cpu + second.cpu);
    let own = own.saturating_sub(done.warm.agent).as_secs_f64();
    let seen = session.counts.events().into_iter().map(|(_, count)| count).sum::<u64>();
    let lost = session.lost().get(&Reason::MeasuresRingFull).copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    let per_event = (seen > 0).then(|| 1e6 * own / (seen - done.warm.records) as f64);
    let time = seconds - done.warm.time.as_secs_f64();
    let count = done.records.count + second.records.count;
    let refused = done.records.refused + second.records.refused;
    #[expect(clippy::cast_precision_loss, reason = "below 2^52")]
    let ns_per_record =
        (done.records.count > 0).then(|| done.cpu.as_nanos() as f64 / done.records.count as f64);
    say(&Outcome {
        load: args.load,
        seconds,
        produced: count,
        refused,
        seen,
        lost,
        longest_portion_us: u64::try_from(done.longest.as_micros())?,
        producer_ns_per_record: ns_per_record,
        agent_cpu_percent: 100.0 * own / time,
        agent_us_per_event: per_event,
        rss_kb,
    })?;
    ensure!(count == seen + lost && refused == lost, "produced is not seen and lost");
    Ok(())
}

fn since(before: Timespec, clock: ClockId) -> Duration {
    duration(clock_gettime(clock)).saturating_sub(duration(before))
}

fn on_processor(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| format!("moving to processor {processor}"))
}

/// The program that writes records into the agent's ring.
#[derive(Clone)]
struct Producer {
    ebpf: Arc<Ebpf>,
}

/// What it has done.
#[derive(Default)]
struct Done {
    records: Produced,
    longest: Duration,
    cpu: Duration,
    warm: Warm,
}

/// The time in which the table is filled for the first time, which is not a steady state.
#[derive(Clone, Copy, Default)]
struct Warm {
    time: Duration,
    records: u64,
    /// CPU time of the agent.
    agent: Duration,
}

impl Producer {
    fn new(args: &Args) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for name in ["FR_MEASURES", "FR_LOSSES"] {
            let path = args.bpffs.join(name);
            newest(name)?.pin(&path).with_context(|| format!("pinning {name}"))?;
            loader.map_pin_path(name, path);
        }
        let object = std::fs::read(&args.object).context("reading the object")?;
        let mut ebpf = loader.load(&object).context("loading the producer")?;
        let mut patterns: Array<_, Pattern> =
            ebpf.map_mut("PATTERN").context("no map of patterns")?.try_into()?;
        let records = Traffic::of(PATTERNS as usize, args.peers).records();
        for (index, record) in (0_u32..PATTERNS).zip(records.iter().cycle()) {
            patterns.set(index, Pattern(aged(*record)), 0)?;
        }
        let program: &mut RawTracePoint =
            ebpf.program_mut("produce").context("the object has no producer")?.try_into()?;
        program.load().context("loading the producer")?;
        Ok(Self { ebpf: Arc::new(ebpf) })
    }

    fn run(self, processor: usize, load: Load, seconds: u64) -> Result<Done> {
        on_processor(processor)?;
        let program = self.ebpf.program("produce").context("the object has no producer")?;
        let program: &RawTracePoint = program.try_into()?;
        let slot = u32::from(processor == PRODUCER);
        let (portion, pause) = load.portion();
        let before = clock_gettime(ClockId::ThreadCPUTime);
        let begin = monotonic();
        let mut due = Duration::ZERO;
        let mut longest = Duration::ZERO;
        let process = clock_gettime(ClockId::ProcessCPUTime);
        let mut warm = None;
        let mut count = 0;
        while due < Duration::from_secs(seconds) {
            let start = monotonic();
            let mut rest = portion;
            while rest > 0 {
                let turn = rest.min(TURN);
                let mut options = RawTracePointRunOptions::new();
                [options.args[0], options.args[1], options.args[2]] =
                    [turn, WAKE_BYTES, slot.into()];
                let ran = program.test_run(options).context("producing")?;
                ensure!(ran.return_value == 0, "the producer says {}", ran.return_value);
                rest -= turn;
            }
            count += portion;
            if due >= WARM && warm.is_none() {
                let own = since(before, ClockId::ThreadCPUTime);
                let agent = since(process, ClockId::ProcessCPUTime).saturating_sub(own);
                warm = Some(Warm { time: due, records: count, agent });
            }
            let now = monotonic();
            longest = longest.max(now.since(start));
            due = if pause.is_zero() { now.since(begin) } else { due + pause };
            std::thread::sleep((due + begin.since(Nanos(0))).saturating_sub(now.since(Nanos(0))));
        }
        let cpu = since(before, ClockId::ThreadCPUTime);
        let produced: Array<_, Produced> =
            self.ebpf.map("PRODUCED").context("no map of counts")?.try_into()?;
        let warm = warm.unwrap_or_default();
        Ok(Done { records: produced.get(&slot, 0)?, longest, cpu, warm })
    }
}

/// The newest map of this name: it is ours.
fn newest(name: &str) -> Result<MapData> {
    let maps = loaded_maps().filter_map(Result::ok);
    let ours = maps.filter(|map| map.name_as_str() == Some(name)).map(|map| map.id()).max();
    Ok(MapData::from_id(ours.with_context(|| format!("no map {name}"))?)?)
}

/// The record with ages in place of its jiffies stamps.
fn aged(record: Record) -> Record {
    let age = |stamp: u32| record.jiffies.wrapping_sub(stamp);
    Record {
        lsndtime: age(record.lsndtime),
        lrcvtime: age(record.lrcvtime),
        rcv_tstamp: age(record.rcv_tstamp),
        ..record
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Pattern(Record);

// SAFETY: integers and arrays of them, without padding.
unsafe impl Pod for Pattern {}
// SAFETY: likewise.
unsafe impl Pod for Produced {}
