//! Every metric: name, help, unit, labels and buckets.
//!
//! A scrape shows the rows as they were when they were collected. A peer's series carry `role` and
//! the chosen labels ([`Label`]), and end when its row leaves, or when there are too many series; its
//! counts continue in `peer="other"`. Series of a port count the same events again, under names of
//! their own, so that a sum over a family counts nothing twice. Zeros are left out: the classes that
//! a row may have are a closed set, and most never happen.

mod encoding;
mod exemplar;
mod family;
mod format;
mod lines;
mod out;
mod process;
mod protobuf;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use encoding::{DescriptorEncoder, LabelSet, MetricEncoder, Number};
use exemplar::exemplar;
use family::{Distribution, MetricType, Unit};
use finrace_logic::balance::{Balance, Stage};
use finrace_logic::estimate::Population;
use finrace_logic::histogram::without_first;
use finrace_logic::knobs::Side;
use finrace_logic::model::Closer;
use finrace_logic::table::{Collection, Counts, Export, Measure, OF_OTHERS, Table};

use crate::lost::Lost;
use crate::who::SourceState;
pub use format::Format;
pub use lines::{Label, Naming};
use lines::{Line, Lines, lines};
pub use process::ProcessStatus;
pub use stream::{CHUNK, write};

/// Default limit of series per node.
pub const SERIES_MAX: usize = 50_000;

/// The lowest limit allowed: what the agent says about itself and the rows `other` have to fit.
pub const SERIES_LEAST: usize = 1_000;
const _: () = assert!(OF_OTHERS + 200 < SERIES_LEAST);

/// What the agent knows about itself at a scrape.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub version: &'static str,
    /// Source revision of the build, empty if unknown.
    pub revision: &'static str,
    pub rustc: &'static str,
    pub hooks: Vec<HookStatus>,
    /// Kernel fields that this kernel lacks.
    pub missing_fields: Vec<String>,
    /// Records read, by kind.
    pub events: Vec<(&'static str, u64)>,
    /// Records lost or refused, by reason.
    pub lost: Lost,
    /// What became of all that each stage took in.
    pub stages: Vec<Balance>,
    /// Runs of programs that the kernel skipped, by job; empty if it does not report them.
    pub skipped: Vec<(&'static str, u64)>,
    pub maps: Vec<Fill>,
    /// Ring buffers, in bytes.
    pub rings: Vec<Fill>,
    /// Where names of owners come from.
    pub sources: Vec<SourceState>,
    /// None where `/proc` cannot be read.
    pub process: Option<ProcessStatus>,
    /// The wall clock at [`finrace_logic::model::Nanos`] 0, since the Unix epoch.
    pub epoch: Duration,
}

/// A job of the kernel side, and the hook that serves it.
#[derive(Clone, Debug)]
pub struct HookStatus {
    pub job: &'static str,
    /// `none` where nothing serves the job.
    pub hook: &'static str,
    pub attached_to: String,
    pub program: String,
    /// What goes unseen with this hook, or without any.
    pub loses: Option<&'static str>,
}

/// How full a map or a ring is.
#[derive(Clone, Debug)]
pub struct Fill {
    pub name: &'static str,
    pub used: u64,
    pub capacity: u64,
}

impl Status {
    /// Number of series that it takes.
    fn series(&self) -> usize {
        let lists = [
            self.hooks.len(),
            self.hooks.iter().filter(|hook| hook.loses.is_some()).count(),
            self.missing_fields.len(),
            self.events.len(),
            self.lost.len(),
            4 * self.stages.len(),
            self.skipped.len(),
            2 * self.maps.len(),
            2 * self.rings.len(),
            self.sources.iter().map(|of| 2 + of.errors.len() + of.objects.len()).sum(),
        ];
        lists.iter().sum::<usize>() + OF_ITSELF
    }

    /// How many series are left for observations, of at most `series_max` in total.
    pub fn room(&self, series_max: usize) -> usize {
        series_max.saturating_sub(self.series())
    }
}

/// Number of series of which there is always exactly one.
const OF_ITSELF: usize = 15;

/// The whole exposition as one text (protobuf has none), with the verdicts as they are.
pub fn encode(table: &mut Table, status: Status, format: Format) -> String {
    let room = status.room(SERIES_MAX);
    let export = Collection::begin(table, room, None).finish(table);
    stream::to_text(export, status, Naming::default(), format)
}

/// The families that count each observation of a peer once.
const EACH_ONCE: [&str; 6] = [
    "finrace_closes_total",
    "finrace_lost_requests_total",
    "finrace_incidents_total",
    "finrace_races_seen_total",
    "finrace_reuse_gap_seconds_count",
    "finrace_close_wait_seconds_count",
];

/// Whether a scrape shows all that the table has counted.
pub fn balance(table: &mut Table, status: Status) -> Balance {
    let taken = table.balance().passed;
    let text = encode(table, status, Format::Text004);
    let shown = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let family = series.split('{').next()?;
        EACH_ONCE.contains(&family).then(|| value.parse::<u64>().ok())?
    });
    Balance { taken, passed: shown.sum(), ..Balance::of(Stage::Exposition) }
}

/// One scrape's view of everything.
#[derive(Debug)]
struct Exposition {
    table: Export,
    status: Status,
    naming: Naming,
    format: Format,
}

/// Rows and ports in the form in which they are written.
struct Said<'a> {
    peers: Vec<Line<'a>>,
    ports: Vec<Line<'a>>,
}

impl Exposition {
    /// Made once for everything, since names may arrive in the meantime.
    fn lines(&self) -> Said<'_> {
        let Export { rows, ports, .. } = &self.table;
        Said { peers: lines(rows, &self.naming), ports: lines(ports, &self.naming) }
    }

    fn say(&self, said: &Said<'_>, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let epoch = (self.format != Format::Text004).then_some(self.status.epoch);
        let threshold = self.table.threshold;
        encode_peers(out, &said.peers, epoch, threshold)?;
        encode_ports(out, &said.ports, epoch, threshold)?;
        self.encode_self(out)?;
        self.encode_sources(out)?;
        self.encode_process(out)
    }
}

impl Exposition {
    fn encode_self(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Self { table, status, .. } = self;
        let help = "Version and build of this agent.";
        let build =
            [("version", status.version), ("revision", status.revision), ("rustc", status.rustc)];
        out.encode_descriptor("finrace_build", help, None, MetricType::Info)?
            .encode_info(&build)?;

        let help = "The kernel hook and program in use for each purpose.";
        let mut hooks = out.encode_descriptor("finrace_hook", help, None, MetricType::Info)?;
        // Not `job`, which is a label of every Prometheus target.
        for HookStatus { job, hook, attached_to, program, .. } in &status.hooks {
            hooks.encode_info(&[
                ("purpose", *job),
                ("hook", hook),
                ("attached_to", attached_to),
                ("program", program),
            ])?;
        }
        let help = "What finrace does not see because no better hook was available for a purpose: see finrace check.";
        let mut blind =
            out.encode_descriptor("finrace_blind_spot", help, None, MetricType::Info)?;
        for HookStatus { job, loses, .. } in &status.hooks {
            if let Some(loses) = loses {
                blind.encode_info(&[("purpose", *job), ("not_seen", *loses)])?;
            }
        }
        let help = "A field that this kernel lacks, so that finrace does not see something: see finrace check.";
        let mut fields =
            out.encode_descriptor("finrace_missing_field", help, None, MetricType::Info)?;
        for field in &status.missing_fields {
            fields.encode_info(&[("field", field)])?;
        }

        let help = "Records read from the kernel, by kind.";
        by_label(out, "finrace_events", help, "kind", status.events.iter().copied())?;
        let help =
            "Records lost or refused, by reason. What they would have said is missing everywhere.";
        let lost = status.lost.iter().map(|(reason, count)| (reason.as_str(), *count));
        by_label(out, "finrace_lost_events", help, "reason", lost)?;
        let stages = &status.stages;
        let of = |count: fn(&Balance) -> u64| {
            stages.iter().map(move |balance| (balance.stage.as_str(), count(balance)))
        };
        let help = "Records, connections or observations that a stage took in.";
        by_label(out, "finrace_stage_taken", help, "stage", of(|balance| balance.taken))?;
        let help = "What a stage handed on, or was done with.";
        by_label(out, "finrace_stage_passed", help, "stage", of(|balance| balance.passed))?;
        let help = "What a stage lost, for lack of room or because it was not understood.";
        by_label(out, "finrace_stage_lost", help, "stage", of(|balance| balance.lost))?;
        let help = "What waits in a stage: what it took in without what it passed and lost.";
        let mut pending =
            out.encode_descriptor("finrace_stage_pending", help, None, MetricType::Gauge)?;
        for (stage, count) in of(|balance| balance.pending) {
            pending.with(&[("stage", stage)], |pending| pending.encode_gauge(&count))?;
        }
        let help = "BPF runs that the kernel skipped, by purpose: the program was already running on that CPU.";
        by_label(out, "finrace_program_skips", help, "purpose", status.skipped.iter().copied())?;

        let maps = &status.maps;
        fills(
            out,
            "finrace_map_entries",
            "Connections that finrace keeps something about, by kind.",
            None,
            "map",
            maps,
            |f| f.used,
        )?;
        let help = "Most connections of each kind that finrace keeps something about.";
        fills(out, "finrace_map_capacity", help, None, "map", maps, |f| f.capacity)?;
        let (rings, bytes) = (&status.rings, Some(&Unit::Bytes));
        let help = "Bytes waiting in a ring buffer when it was last read.";
        fills(out, "finrace_ring_fill", help, bytes, "ring", rings, |f| f.used)?;
        fills(out, "finrace_ring_size", "Size of a ring buffer.", bytes, "ring", rings, |f| {
            f.capacity
        })?;

        let seconds = Some(&Unit::Seconds);
        let help = "Gap above which a write counts as a reuse.";
        gauge(out, "finrace_reuse_threshold", help, seconds, table.threshold.as_secs_f64())?;
        gauge(out, "finrace_table_rows", "Peers in the table.", None, table.rows_now as u64)?;
        let help = "Peers that the table can hold. Others are summed under peer=other.";
        gauge(out, "finrace_table_rows_max", help, None, table.max_rows as u64)?;
        let help = "Peers in the table that are summed under peer=other because there are too many series.";
        let left_out = table.rows.left_out as u64;
        gauge(out, "finrace_table_rows_unexported", help, None, left_out)?;
        let help =
            "Ports that are summed under server_port=other because there are too many series.";
        let left_out = table.ports.left_out as u64;
        gauge(out, "finrace_port_rows_unexported", help, None, left_out)?;
        let help = "Peers evicted from the full table. Their counts continue under peer=other.";
        counter(out, "finrace_table_evictions", help, table.evictions)?;
        let help = "Peers removed after a long silence. Their counts continue under peer=other.";
        counter(out, "finrace_table_stale", help, table.stale)?;
        let help =
            "Observations of peers that found no room in the table. They count under peer=other.";
        counter(out, "finrace_table_refusals", help, table.refusals)?;
        let help =
            "Ports evicted from the full table. Their counts continue under server_port=other.";
        counter(out, "finrace_port_evictions", help, table.port_evictions)?;
        let help =
            "Observations that belong to no row because it is not known which end is the client.";
        counter(out, "finrace_unattributed", help, table.unattributed)
    }

    fn encode_sources(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sources = &self.status.sources;
        let help = "1 while new names of processes, containers and pods are found, by source.";
        let mut up =
            out.encode_descriptor("finrace_attribution_up", help, None, MetricType::Gauge)?;
        for SourceState { name, is_up, .. } in sources {
            up.with(&[("source", *name)], |up| up.encode_gauge(&u64::from(*is_up)))?;
        }
        let help = "When a source was last read completely, since the Unix epoch.";
        let (name, seconds) = ("finrace_attribution_last_sync_timestamp", Some(&Unit::Seconds));
        let mut synced = out.encode_descriptor(name, help, seconds, MetricType::Gauge)?;
        for SourceState { name, last_sync, .. } in sources {
            if let Some(time) = last_sync {
                let time = time.as_secs_f64();
                synced.with(&[("source", *name)], |synced| synced.encode_gauge(&time))?;
            }
        }
        let help = "Names that were not found and reads that failed, by source and reason.";
        let name = "finrace_attribution_errors";
        let mut errors = out.encode_descriptor(name, help, None, MetricType::Counter)?;
        for SourceState { name, errors: counts, .. } in sources {
            for (reason, count) in counts {
                sample(&mut errors, &[("source", *name), ("reason", *reason)], *count)?;
            }
        }
        let help = "Objects that a source knows, by kind.";
        let name = "finrace_attribution_objects";
        let mut objects = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for SourceState { name, objects: counts, .. } in sources {
            for (kind, count) in counts {
                let labels = [("source", *name), ("kind", *kind)];
                objects.with(&labels, |objects| objects.encode_gauge(count))?;
            }
        }
        Ok(())
    }

    fn encode_process(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(process) = &self.status.process else { return Ok(()) };
        let seconds = Some(&Unit::Seconds);
        let help = "CPU time used by this agent's own process.";
        out.encode_descriptor("process_cpu", help, seconds, MetricType::Counter)?
            .encode_counter(&process.cpu.as_secs_f64(), None)?;
        let bytes = Some(&Unit::Bytes);
        gauge(out, "process_resident_memory", "Resident memory.", bytes, process.resident_bytes)?;
        gauge(out, "process_open_fds", "Open file descriptors.", None, process.open_fds)?;
        let help = "Start of the process since the Unix epoch.";
        gauge(out, "process_start_time", help, seconds, process.start.as_secs_f64())
    }
}

fn encode_peers(
    out: &mut DescriptorEncoder<'_>,
    peers: &Lines<'_>,
    epoch: Option<Duration>,
    threshold: Duration,
) -> fmt::Result {
    let help = "Requests that were, or probably were, lost to a closing connection.";
    races(out, "finrace_races", help, peers, epoch)?;

    let help =
        "Lost requests: the sum of finrace_races. It starts at zero, before a peer's first loss.";
    let mut family =
        out.encode_descriptor("finrace_lost_requests", help, None, MetricType::Counter)?;
    for Line { labels, counts, withheld, judged } in peers {
        let lost = counts.races().saturating_sub(*withheld);
        // The sums of others belong to no peer.
        if lost > 0 || judged.is_some() {
            sample(&mut family, labels, lost)?;
        }
    }

    let help = "Events on a closing connection that are not races.";
    let mut family = out.encode_descriptor("finrace_incidents", help, None, MetricType::Counter)?;
    for Line { labels, counts, .. } in peers {
        for (class, count) in counts.other_incidents() {
            sample(&mut family, &(labels, [("class", class.as_str())]), count)?;
        }
    }

    let help = "Races that this end saw too, and that count on the other end's row.";
    let mut family =
        out.encode_descriptor("finrace_races_seen", help, None, MetricType::Counter)?;
    for Line { labels, counts, .. } in peers.iter().filter(|line| line.counts.seen > 0) {
        sample(&mut family, labels, counts.seen)?;
    }

    closes(
        out,
        "finrace_closes",
        "Closed connections: by which end, how, and what the close says about an idle timeout.",
        peers,
    )?;
    let help = "Idle time of connections that were closed while idle.";
    idle(out, "finrace_idle_before_close", help, peers, threshold)?;
    let help = "Idle time before a connection was used again. The count is the number of reuses.";
    histograms(out, "finrace_reuse_gap", help, peers, (Measure::ReuseGap, threshold))?;
    let help = "Time from the peer's FIN to our write into the closing connection.";
    histograms(out, "finrace_fin_age_at_write", help, peers, (Measure::FinAge, threshold))?;
    let help = "Time that a socket stayed in CLOSE_WAIT until we closed it.";
    histograms(out, "finrace_close_wait", help, peers, (Measure::Dwell, threshold))?;
    judgements(out, "finrace", "", peers)?;
    advised(out, peers)?;
    let help = "1 on a server's row if the client is on this host too: the client's row has the same problem.";
    let mut family = out.encode_descriptor("finrace_other_end", help, None, MetricType::Gauge)?;
    for Line { labels, judged, .. } in peers {
        if judged.as_ref().is_some_and(|judged| judged.is_other_end) {
            family.with(labels, |series| series.encode_gauge(&1_u64))?;
        }
    }
    Ok(())
}

fn encode_ports(
    out: &mut DescriptorEncoder<'_>,
    ports: &Lines<'_>,
    epoch: Option<Duration>,
    threshold: Duration,
) -> fmt::Result {
    let help = "Like finrace_races, over all peers of a port.";
    races(out, "finrace_port_races", help, ports, epoch)?;
    closes(out, "finrace_port_closes", "Like finrace_closes, over all peers of a port.", ports)?;
    let help = "Like finrace_idle_before_close, over all peers of a port.";
    idle(out, "finrace_port_idle_before_close", help, ports, threshold)?;
    let help = "Like finrace_reuse_gap, over all peers of a port.";
    histograms(out, "finrace_port_reuse_gap", help, ports, (Measure::ReuseGap, threshold))?;
    judgements(out, "finrace_port", " Over all peers of a port.", ports)
}

/// Suffix of the name, help, and value.
type TimeoutGauge<'a> = (&'a str, &'a str, fn(&Population) -> f64);

/// What the observations amount to: timeouts, exposure, verdict.
fn judgements(
    out: &mut DescriptorEncoder<'_>,
    prefix: &str,
    level_help: &str,
    lines: &Lines<'_>,
) -> fmt::Result {
    let judged = || lines.iter().filter_map(|line| Some((&line.labels, line.judged.as_ref()?)));
    let seconds = Some(&Unit::Seconds);
    let timeouts: [TimeoutGauge<'_>; 3] = [
        ("", "Idle timeout of a side, estimated from its closes.", |p| p.value),
        ("_low", "Earliest close to expect at that idle timeout.", |p| p.low),
        ("_high", "Latest close seen at that idle timeout.", |p| p.high),
    ];
    for (suffix, help, of) in timeouts {
        let name = format!("{prefix}_idle_timeout{suffix}");
        let help = format!("{help}{level_help}");
        let mut family = out.encode_descriptor(&name, &help, seconds, MetricType::Gauge)?;
        for (labels, judged) in judged() {
            for (closer, timeout) in Closer::ENDS.iter().zip(&judged.timeouts) {
                let Some(timeout) = timeout else { continue };
                let labels = (labels, [("closer", closer.as_str())]);
                let value = to_micros(of(timeout));
                family.with(&labels, |series| series.encode_gauge(&value))?;
            }
        }
    }
    let name = format!("{prefix}_exposure_races_per_hour");
    let help = format!(
        "Races to expect per hour, from gaps, idle timeout and round-trip time.{level_help}"
    );
    let mut family = out.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
    for (labels, judged) in judged() {
        if let Some(expected) = judged.expected {
            family.with(labels, |series| series.encode_gauge(&expected))?;
        }
    }
    let name = format!("{prefix}_verdict");
    let help = format!("1 for the current verdict; the others have no series.{level_help}");
    let mut family = out.encode_descriptor(&name, &help, None, MetricType::Gauge)?;
    for (labels, judged) in judged() {
        if let Some(verdict) = judged.verdict {
            let labels = (labels, [("verdict", verdict.as_str())]);
            family.with(&labels, |series| series.encode_gauge(&1_u64))?;
        }
    }
    Ok(())
}

/// What to change, where something is wrong.
fn advised(out: &mut DescriptorEncoder<'_>, peers: &Lines<'_>) -> fmt::Result {
    let help = "Idle timeout to set on that side so that no more requests are lost; only if something is wrong.";
    let (name, unit) = ("finrace_advised_idle_timeout", Some(&Unit::Seconds));
    let mut family = out.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for Line { labels, judged, .. } in peers {
        let advised = judged.iter().flat_map(|judged| judged.advised);
        for (side, seconds) in [Side::Client, Side::Server].into_iter().zip(advised) {
            let Some(seconds) = seconds else { continue };
            let labels = (labels, [("side", side.as_str())]);
            family.with(&labels, |series| series.encode_gauge(&to_micros(seconds)))?;
        }
    }
    Ok(())
}

/// Seconds without meaningless digits.
fn to_micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn races(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    lines: &Lines<'_>,
    epoch: Option<Duration>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for Line { labels, counts, .. } in lines {
        for (kind, tally) in counts.incidents.iter().filter(|((class, ..), _)| class.is_race()) {
            let example = epoch.zip(counts.example(kind));
            let exemplar = example.map(|(epoch, example)| exemplar(example, epoch));
            let (class, cause, read) = kind;
            let kind =
                [("class", class.as_str()), ("cause", cause.as_str()), ("read", read.as_str())];
            family.with(&(labels, kind), |series| {
                series.encode_counter(&tally.count, exemplar.as_ref())
            })?;
        }
    }
    Ok(())
}

fn closes(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    lines: &Lines<'_>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for Line { labels, counts, .. } in lines {
        for ((closer, how, evidence), count) in counts.closes.iter() {
            let kind = [
                ("closer", closer.as_str()),
                ("how", how.as_str()),
                ("evidence", evidence.as_str()),
            ];
            sample(&mut family, &(labels, kind), *count)?;
        }
    }
    Ok(())
}

fn idle(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    lines: &Lines<'_>,
    threshold: Duration,
) -> fmt::Result {
    let mut family =
        out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for Line { labels, counts, .. } in lines {
        for closer in Closer::ENDS {
            let labels = (labels, [("closer", closer.as_str())]);
            distribution(&mut family, &labels, counts, (Measure::of_idle(closer), threshold))?;
        }
    }
    Ok(())
}

fn histograms(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    lines: &Lines<'_>,
    measure: (Measure, Duration),
) -> fmt::Result {
    let mut family =
        out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    lines.iter().try_for_each(|Line { labels, counts, .. }| {
        distribution(&mut family, labels, counts, measure)
    })
}

fn by_label<'a>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    counts: impl IntoIterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    counts.into_iter().try_for_each(|(value, count)| sample(&mut family, &[(label, value)], count))
}

fn fills(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    label: &str,
    fills: &[Fill],
    of: impl Fn(&Fill) -> u64,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    fills.iter().try_for_each(|fill| {
        family.with(&[(label, fill.name)], |series| series.encode_gauge(&of(fill)))
    })
}

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter(&value, None)
}

fn gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl Number,
) -> fmt::Result {
    out.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
}

/// One series of a counter.
fn sample(family: &mut MetricEncoder<'_>, labels: &impl LabelSet, value: u64) -> fmt::Result {
    family.with(labels, |series| series.encode_counter(&value, None))
}

/// The series of a histogram, if it has any value. Buckets that could never have one are left out:
/// the threshold of gaps says which.
fn distribution(
    family: &mut MetricEncoder<'_>,
    labels: &impl LabelSet,
    counts: &Counts,
    (measure, threshold): (Measure, Duration),
) -> fmt::Result {
    let histogram = counts.histogram(measure);
    if histogram.is_empty() {
        return Ok(());
    }
    let mut buckets = histogram.buckets(measure.bounds());
    let distribution = Distribution {
        sum: histogram.sum().as_secs_f64(),
        count: histogram.count(),
        buckets: without_first(&mut buckets, measure.unused_buckets(threshold)),
        native: counts.native(measure),
    };
    family.with(labels, |series| series.encode_histogram(distribution))
}
