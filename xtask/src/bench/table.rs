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

/// A line of `cost table`. Times have a least, a middle and a longest.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Outcome {
    peers: u32,
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
}

/// By default, where only so many peers are shown as there is room for; and all of them.
pub(super) fn run(stand: &Stand) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (peers, ..) in BUDGETS {
        let peers = peers.to_string();
        for series_max in [&["--series-max", "1000000"][..], &[]] {
            let arguments = [&["--peers", &*peers], series_max].concat();
            outcomes.extend(stand.cost("table", &arguments)?);
        }
    }
    Ok(outcomes)
}

pub(super) fn figures(outcomes: &[Outcome]) -> Vec<Figure> {
    let figures = outcomes.iter().filter_map(|outcome| {
        let (_, time, memory) = BUDGETS.into_iter().find(|(peers, ..)| *peers == outcome.peers)?;
        let Outcome { peers, series, gzip_scrape_ms: [_, middle, _], rss_peak_kb, .. } = outcome;
        #[expect(clippy::cast_precision_loss, reason = "of memory")]
        let mebibytes = *rss_peak_kb as f64 / 1024.0;
        let what = format!("scrape of {peers} peers, {series} series, gzip");
        let (time, memory) = (time?, memory?);
        Some([
            Figure::at_most(what.clone(), *middle, time, " ms", 1),
            Figure::at_most(format!("{what}: RSS at most"), mebibytes, memory, " MiB", 1),
            Figure::new(
                format!("{what}: events wait at most"),
                format!("{} us", outcome.event_path_waited_us),
            ),
        ])
    });
    figures.flatten().collect()
}
