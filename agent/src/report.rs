//! `finrace report`: watches for a while, then one row per peer. The JSON form is documented in
//! docs/report.md and versioned by its `schema`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, Table as TextTable, presets};
use serde::Serialize;

use crate::app::Session;
use crate::cli::Report;
use crate::logic::idle::Reservoir;
use crate::logic::model::{Closer, Role};
use crate::logic::table::Stats;
use crate::output::{eprintln_quietly, print, seconds};

const DEFAULT: Duration = Duration::from_mins(1);
const DEMO: Duration = Duration::from_secs(10);

/// Version of the JSON form; a change that breaks a reader raises it.
const SCHEMA: &str = "finrace.report/1";

/// Observes, then prints.
pub async fn run(args: &Report) -> Result<()> {
    let duration = args.duration.unwrap_or(if args.kernel.demo { DEMO } else { DEFAULT });
    let mut session = Session::start(&args.kernel)?;
    eprintln_quietly(&format!(
        "finrace: attached ({}); watching for {}, Ctrl-C reports at once",
        session.hooks(),
        humantime::format_duration(duration)
    ));
    session.run(Some(duration), None, |_, _| Ok(ControlFlow::Continue(()))).await?;
    let document = Document::of(&session);
    let text = if args.json {
        serde_json::to_string_pretty(&document).context("encoding the report")?
    } else {
        document.to_text()
    };
    print(&text)
}

/// The report, as its JSON form has it. Durations are in seconds.
#[derive(Debug, Serialize)]
struct Document {
    schema: &'static str,
    started: String,
    seconds: f64,
    kernel: String,
    hooks: BTreeMap<&'static str, &'static str>,
    lost: BTreeMap<&'static str, u64>,
    peers: Vec<PeerReport>,
    /// The same events summed by port, whatever the peer: they outlive evicted peers.
    ports: Vec<PeerReport>,
}

#[derive(Debug, Serialize)]
struct PeerReport {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u32>,
    peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<String>,
    closes: BTreeMap<&'static str, Closes>,
    reuse: Quantiles,
    races: BTreeMap<&'static str, u64>,
    causes: BTreeMap<&'static str, u64>,
    incidents: BTreeMap<&'static str, u64>,
    /// Races of this side that are counted at the client's row, whose end is on this host too.
    seen: u64,
    idle_timeout: BTreeMap<&'static str, Timeout>,
}

/// Closes of one closer.
#[derive(Debug, Serialize)]
struct Closes {
    total: u64,
    by_evidence: BTreeMap<&'static str, u64>,
    /// Idle time at those closes that ended an idle connection.
    idle: Quantiles,
}

/// Of the last 256 values.
#[derive(Debug, Serialize)]
struct Quantiles {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Timeout {
    seconds: f64,
    spread_seconds: f64,
    closes: usize,
}

impl Document {
    fn of(session: &Session) -> Self {
        let table = &session.engine.table;
        let mut peers: Vec<_> = table
            .rows()
            .into_iter()
            .map(|row| {
                let netns = Some(row.key.netns);
                let process = row.process().map(str::to_owned);
                PeerReport::of(row.key.role(), netns, row.key.to_string(), process, &row.stats)
            })
            .collect();
        for (role, stats) in table.others() {
            let other = PeerReport::of(role, None, "other".to_owned(), None, stats);
            if !other.is_empty() {
                peers.push(other);
            }
        }
        peers.sort_by_cached_key(PeerReport::order);
        let mut ports: Vec<_> = table
            .ports()
            .into_iter()
            .map(|(key, port)| {
                PeerReport::of(key.role, Some(key.netns), key.to_string(), None, &port.stats)
            })
            .collect();
        ports.sort_by_cached_key(PeerReport::order);
        let hook = |job: &crate::probe::attach::Serving| {
            (job.job.name(), job.by().map_or("none", |choice| choice.hook.name()))
        };
        Self {
            schema: SCHEMA,
            started: humantime::format_rfc3339_micros(session.started).to_string(),
            seconds: session.elapsed().as_secs_f64(),
            kernel: session.features.release.clone(),
            hooks: session.serving.iter().map(hook).collect(),
            lost: session.lost(),
            peers,
            ports,
        }
    }

    fn to_text(&self) -> String {
        let lost: u64 = self.lost.values().sum();
        let races: u64 = self.peers.iter().map(PeerReport::total_races).sum();
        let mut table = TextTable::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header([
                "ROLE",
                "PEER",
                "PROCESS",
                "CLOSED BY PEER",
                "BY US",
                "IDLE AT CLOSE p50/p99",
                "REUSE GAP p50/max",
                "RACES",
            ]);
        for peer in &self.peers {
            table.add_row(peer.cells());
        }
        let head = format!(
            "{races} races in {:.1} s; Linux {}; {lost} records lost",
            self.seconds, self.kernel
        );
        if self.peers.is_empty() {
            return format!("{head}\nno connection was closed or reused after a gap");
        }
        let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        format!("{head}\n\n{}", lines.join("\n"))
    }
}

impl PeerReport {
    fn of(
        role: Role,
        netns: Option<u32>,
        peer: String,
        process: Option<String>,
        stats: &Stats,
    ) -> Self {
        let mut closes = BTreeMap::new();
        let mut idle_timeout = BTreeMap::new();
        for closer in Closer::ALL.iter().copied() {
            let mut by_evidence = BTreeMap::new();
            for ((_, _, evidence), count) in stats.closes.iter().filter(|(key, _)| key.0 == closer)
            {
                *by_evidence.entry(evidence.as_str()).or_insert(0) += count;
            }
            let idle = stats.idle(closer);
            let total = by_evidence.values().sum();
            let idle_times = Quantiles::of(idle.histogram.count(), &idle.exact);
            closes.insert(closer.as_str(), Closes { total, by_evidence, idle: idle_times });
            if let Some(estimate) = idle.estimate() {
                let timeout = Timeout {
                    seconds: estimate.timeout.as_secs_f64(),
                    spread_seconds: estimate.spread.as_secs_f64(),
                    closes: estimate.n,
                };
                idle_timeout.insert(closer.as_str(), timeout);
            }
        }
        let mut report = Self {
            role: role.as_str(),
            netns,
            peer,
            process,
            closes,
            reuse: Quantiles::of(stats.reuse_gap.count(), &stats.reuse_gaps),
            races: BTreeMap::new(),
            causes: BTreeMap::new(),
            incidents: BTreeMap::new(),
            seen: stats.seen,
            idle_timeout,
        };
        for ((class, cause), tally) in &stats.incidents {
            if class.is_race() {
                *report.races.entry(class.as_str()).or_insert(0) += tally.count;
                *report.causes.entry(cause.as_str()).or_insert(0) += tally.count;
            } else {
                *report.incidents.entry(class.as_str()).or_insert(0) += tally.count;
            }
        }
        report
    }

    fn total_races(&self) -> u64 {
        self.races.values().sum()
    }

    fn total_closes(&self, closer: Closer) -> u64 {
        self.closes.get(closer.as_str()).map_or(0, |closes| closes.total)
    }

    fn is_empty(&self) -> bool {
        self.closes.values().all(|closes| closes.total == 0)
            && self.reuse.count == 0
            && self.races.is_empty()
            && self.incidents.is_empty()
    }

    /// Most races first, then most closes, then by name.
    fn order(&self) -> (std::cmp::Reverse<(u64, u64, u64)>, String) {
        let closes = self.closes.values().map(|closes| closes.total).sum();
        (std::cmp::Reverse((self.total_races(), self.seen, closes)), self.peer.clone())
    }

    fn cells(&self) -> [String; 8] {
        let idle = |closer: Closer| {
            let idle = &self.closes.get(closer.as_str())?.idle;
            Some(format!("{closer} {} / {}", brief(idle.p50_seconds?), brief(idle.p99_seconds?)))
        };
        let idles: Vec<_> = Closer::ALL.iter().copied().filter_map(idle).collect();
        let gap = match (self.reuse.p50_seconds, self.reuse.max_seconds) {
            (Some(p50), Some(max)) => format!("{} / {}", brief(p50), brief(max)),
            _ => "-".to_owned(),
        };
        [
            self.role.to_owned(),
            self.peer.clone(),
            self.process.clone().unwrap_or_else(|| "-".to_owned()),
            self.total_closes(Closer::Peer).to_string(),
            self.total_closes(Closer::Local).to_string(),
            if idles.is_empty() { "-".to_owned() } else { idles.join(", ") },
            gap,
            self.race_cell(),
        ]
    }

    /// `7: stale_write 6, unread_close 1`, and what the other end's row counts.
    fn race_cell(&self) -> String {
        let classes: Vec<_> =
            self.races.iter().map(|(class, count)| format!("{class} {count}")).collect();
        let mut cell = self.total_races().to_string();
        if !classes.is_empty() {
            cell = format!("{cell}: {}", classes.join(", "));
        }
        if self.seen > 0 {
            cell = format!("{cell} (saw {} of the client's)", self.seen);
        }
        cell
    }
}

impl Quantiles {
    fn of(count: u64, values: &Reservoir) -> Self {
        let at = |q| values.quantile(q).map(|value: Duration| value.as_secs_f64());
        Self { count, p50_seconds: at(0.5), p99_seconds: at(0.99), max_seconds: at(1.0) }
    }
}

fn brief(value: f64) -> String {
    seconds(Duration::from_secs_f64(value))
}
