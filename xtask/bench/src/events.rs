//! Records from within the kernel to the table: the whole agent on one processor, and a program
//! that writes into its ring on another.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BpfFs;
use super::figure::Figure;
use super::workload::Stand;

/// Budget in percent of one processor when nothing happens.
const IDLE_PERCENT: f64 = 0.2;
/// Budget of the agent per record, at 10,000 a second.
const MICROSECONDS: f64 = 0.5;

#[derive(clap::Args)]
pub(super) struct EventsArgs {
    /// Seconds per load
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

/// A line of `cost ring`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Outcome {
    load: String,
    seconds: f64,
    produced: u64,
    seen: u64,
    lost: u64,
    longest_portion_us: u64,
    producer_ns_per_record: Option<f64>,
    /// Whether another processor wrote, too.
    #[serde(default)]
    two: bool,
    agent_cpu_percent: f64,
    agent_us_per_event: Option<f64>,
    rss_kb: u64,
}

/// Results of the part `events`.
#[derive(Serialize)]
pub(super) struct Events {
    loads: Vec<Outcome>,
    /// The run loop kept busy: lines of `cost events`.
    by_peers: Vec<ByPeers>,
}

#[derive(Serialize)]
struct ByPeers {
    peers: &'static str,
    total_ns: f64,
    stages: Value,
}

/// How the work per record grows with the number of peers.
fn by_peers(stand: &Stand) -> Result<Vec<ByPeers>> {
    let measure = |peers| {
        let arguments = ["--rate", "1000000", "--count", "1000000", "--peers", peers];
        let lines: Vec<Value> = stand.cost("events", &arguments)?;
        let stages = lines.first().and_then(|line| line.get("ns_per_event")).cloned();
        let stages = stages.with_context(|| format!("{peers} peers: {lines:?}"))?;
        let total = stages.get("total").and_then(Value::as_f64).context("no total")?;
        Ok(ByPeers { peers, total_ns: total, stages })
    };
    ["10", "1000", "100000"].into_iter().map(measure).collect()
}

pub(super) fn run(stand: &Stand, args: &EventsArgs) -> Result<Events> {
    Ok(Events { loads: loads(stand, args)?, by_peers: by_peers(stand)? })
}

fn loads(stand: &Stand, args: &EventsArgs) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let loads = ["idle", "10k", "100k", "1M", "burst", "flood"].map(|load| (load, false));
    for (load, two) in loads.into_iter().chain([("1M", true)]) {
        let bpffs = BpfFs::mount(&stand.directory.join("bpffs"))?;
        let seconds = if ["idle", "10k"].contains(&load) { 2 * args.seconds } else { args.seconds }
            .to_string();
        let pinned = bpffs.0.to_string_lossy();
        let mut arguments = vec!["--bpffs", &*pinned, "--load", load, "--seconds", &seconds];
        arguments.extend(two.then_some("--two"));
        let outcome: Vec<Outcome> = stand.cost("ring", &arguments)?;
        ensure!(outcome.len() == 1, "{load}: {} results", outcome.len());
        outcomes.extend(outcome.into_iter().map(|outcome| Outcome { two, ..outcome }));
    }
    Ok(outcomes)
}

pub(super) fn figures(events: &Events) -> Vec<Figure> {
    let mut figures = Vec::new();
    for ByPeers { peers, total_ns, .. } in &events.by_peers {
        let what = format!("the agent kept busy with records of {peers} peers: CPU for each");
        figures.push(Figure::new(what, format!("{:.2} us", total_ns / 1e3)));
    }
    for outcome in &events.loads {
        if let (true, Some(ns)) = (outcome.two, outcome.producer_ns_per_record) {
            let what = "two processors that write 1,000,000 records a second each: CPU for each";
            figures.push(Figure::new(what, format!("{:.2} us", ns / 1e3)));
        }
    }
    for outcome in events.loads.iter().filter(|outcome| !outcome.two) {
        let Outcome { load, produced, seen, lost, agent_cpu_percent, .. } = outcome;
        #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
        let (lost_f, rate) = (*lost as f64, *produced as f64 / outcome.seconds);
        let per_event = outcome.agent_us_per_event.unwrap_or_default();
        let what = match &**load {
            "idle" => {
                let what = "agent, nothing happens: CPU of one processor";
                figures.push(Figure::at_most(what, *agent_cpu_percent, IDLE_PERCENT, " %", 2));
                continue;
            }
            "flood" => {
                figures.push(Figure::new(
                    "records as many as there can be: seen and lost, which are all",
                    format!("{seen} + {lost} of {rate:.0}/s, {per_event:.2} us CPU each"),
                ));
                continue;
            }
            "burst" => "bursts of 50,000 records at once".to_owned(),
            load => {
                if load == "10k" {
                    let what = "10,000 records a second: CPU of the agent for each";
                    figures.push(Figure::at_most(what, per_event, MICROSECONDS, " us", 2));
                }
                format!("{} records a second", load.replace('k', ",000").replace('M', ",000,000"))
            }
        };
        let what = format!("{what}, through rings of 1 MiB: lost");
        figures.push(Figure::at_most(what, lost_f, 0.0, "", 0));
    }
    figures
}
