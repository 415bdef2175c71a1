//! Tables full of peers: memory, and a scrape with gzip while observations go on.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::figure::Figure;
use super::workload::Stand;

/// Peers, and what there may be at most: milliseconds of a scrape, mebibytes during it.
const BUDGETS: [(u32, Option<f64>, Option<f64>); 4] = [
    (100, None, None),
    (1_000, None, None),
    (2_000, Some(30.0), Some(20.0)),
    (10_000, Some(250.0), Some(40.0)),
];

/// Mebibytes of an agent that does nothing yet: its own budget, and not part of the benchmark.
const IDLE: f64 = 10.0;

/// The agent's default.
const SERIES_MAX: u64 = 50_000;

/// A line of `cost table`. Times have a least, a middle and a longest.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Outcome {
    peers: u32,
    /// All rows as large as they can be.
    worst: bool,
    series: u64,
    bytes: u64,
    gzip_bytes: u64,
    scrape_ms: [f64; 3],
    gzip_scrape_ms: [f64; 3],
    rss_idle_kb: u64,
    rss_full_kb: u64,
    rss_peak_kb: u64,
    bytes_per_row: u64,
    event_path_waited_us: u64,
    event_path_waited_cpu_us: u64,
}

pub(super) fn run(stand: &Stand) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (peers, ..) in BUDGETS {
        let peers = peers.to_string();
        for more in [&[][..], &["--worst"], &["--series-max", "1000000"]] {
            outcomes.extend(stand.cost("table", &[&["--peers", &*peers], more].concat())?);
        }
    }
    Ok(outcomes)
}

pub(super) fn figures(outcomes: &[Outcome]) -> Vec<Figure> {
    let figures = outcomes.iter().filter_map(|outcome| {
        let (_, time, memory) = BUDGETS.into_iter().find(|(peers, ..)| *peers == outcome.peers)?;
        let Outcome { peers, worst, series, gzip_scrape_ms: [_, middle, _], .. } = outcome;
        #[expect(clippy::cast_precision_loss, reason = "of memory")]
        let mebibytes = |kib: u64| kib as f64 / 1024.0;
        let grown = mebibytes(outcome.rss_peak_kb - outcome.rss_idle_kb);
        let rows = if *worst { "all rows of the largest size" } else { "full" };
        let what = format!("{peers} peers, {rows}, {series} series in a scrape with gzip");
        let (time, memory) = (time?, memory?);
        let of_memory = format!("{what}: RSS, above that of an idle agent");
        let waits = format!("{what}: the most that events waited for it, in CPU time");
        let is_default = *series <= SERIES_MAX;
        Some([
            if is_default {
                Figure::at_most(what, *middle, time, " ms", 1)
            } else {
                Figure::new(what, format!("{middle:.1} ms"))
            },
            if is_default && !worst {
                // The idle agent already takes ten of the budget.
                Figure::at_most(of_memory, grown, memory - IDLE, " MiB", 1)
            } else {
                Figure::new(of_memory, format!("{grown:.1} MiB"))
            },
            Figure::new(waits, format!("{} us", outcome.event_path_waited_cpu_us)),
        ])
    });
    figures.flatten().collect()
}
