//! What finrace takes from whole workloads.
//!
//! One continuous load, under which finrace comes and goes several times a second, in random order.
//! What disturbs the load disturbs neighbouring slices alike, so each slice is compared with the one
//! without finrace in the same round, and the median of these ratios is what counts.

use std::collections::BTreeMap;
use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum as _;
use comfy_table::{CellAlignment, Table, presets};
use finrace_lab::client::Random;
use serde::Serialize;
use xtask::setup::Preference;

use super::dialog::Dialog;
use super::figure::Figure;
use super::machine::{Conditions, Watch};
use super::stats::{Estimate, Judgement, median};
use super::workload::{Running, Slice, Stand, Workload};

/// Wait after attaching or detaching: the kernel spends about 20 ms waiting for all processors.
const SETTLE: Duration = Duration::from_millis(40);

const SLICE: Duration = Duration::from_millis(150);

/// Long enough for one scrape, of which there is one per second.
const LONG_SLICE: Duration = Duration::from_secs(1);

/// Only one round in this many has a long slice.
const LONG_EVERY: usize = 4;

#[derive(clap::Args, Debug)]
pub(super) struct LoadArgs {
    /// Rounds to begin with; they double while the result is too noisy
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Maximum number of rounds
    #[arg(long, default_value_t = 400)]
    max_rounds: usize,
    /// The workloads [default: all]
    #[arg(long, value_enum, value_name = "NAME")]
    workload: Vec<Workload>,
    /// Seed of the order in which configurations come
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the stage is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Configuration {
    /// Nothing is attached.
    None,
    /// Empty programs of the same types, on the same hooks.
    Empty,
    /// finrace, with its thread that reads and concludes.
    Attached,
    /// The same, and its metrics are fetched once a second.
    Scraped,
}

impl Configuration {
    const ALL: [Self; 4] = [Self::None, Self::Empty, Self::Attached, Self::Scraped];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Empty => "empty",
            Self::Attached => "attached",
            Self::Scraped => "scraped",
        }
    }

    const fn slice(self) -> Duration {
        match self {
            Self::None | Self::Empty | Self::Attached => SLICE,
            Self::Scraped => LONG_SLICE,
        }
    }
}

/// Results of the part `load`.
#[derive(Debug, Serialize)]
pub(super) struct LoadResults {
    workloads: Vec<WorkloadResult>,
    conditions: Conditions,
}

#[derive(Debug, Serialize)]
struct WorkloadResult {
    name: String,
    /// Without finrace.
    requests_per_second: f64,
    bytes_per_second: f64,
    /// CPU time of client and servers, without finrace.
    cpu_us_per_request: f64,
    configurations: Vec<ConfigurationResult>,
    /// How far the throughput falls behind that with empty programs.
    beyond_empty_percent: Estimate,
    beyond_empty: Judgement,
    /// Budget of the loss while attached.
    budget_percent: Option<f64>,
    judgement: Option<Judgement>,
}

/// Compared with no programs at all, in the same round.
#[derive(Debug, Serialize)]
struct ConfigurationResult {
    configuration: Configuration,
    rounds: usize,
    /// Loss of throughput.
    loss_percent: Estimate,
    /// Additional CPU time of client and servers per request.
    cpu_percent: Estimate,
    /// CPU time of finrace's own process, in percent of one processor.
    own_cpu_percent: f64,
}

type Round = BTreeMap<Configuration, Slice>;

/// Measures each workload.
pub(super) fn run(stand: &Stand, args: &LoadArgs) -> Result<LoadResults> {
    let watch = Watch::begin()?;
    let _preference = Preference::begin();
    let chosen = if args.workload.is_empty() { Workload::value_variants() } else { &args.workload };
    // Where the agent has much to do, it matters whether it takes that time from the load.
    let places = |workload: &Workload| {
        let elsewhere = (*workload == Workload::Close).then_some((*workload, true));
        std::iter::once((*workload, false)).chain(elsewhere)
    };
    let measure = |(workload, is_elsewhere): (Workload, bool)| {
        measure(workload, is_elsewhere, stand, args).with_context(|| workload.name().to_owned())
    };
    let workloads = chosen.iter().flat_map(places).map(measure).collect::<Result<_>>()?;
    Ok(LoadResults { workloads, conditions: watch.finish()? })
}

fn measure(
    workload: Workload,
    is_elsewhere: bool,
    stand: &Stand,
    args: &LoadArgs,
) -> Result<WorkloadResult> {
    let directory = stand.directory(&format!("load/{workload:?}").to_lowercase())?;
    let mut stage = stand.stage(&directory, !is_elsewhere)?;
    let mut running = workload.start(stand, &directory)?;
    let mut random = Random(args.seed);
    let mut rounds: Vec<Round> = Vec::new();
    let mut wanted = args.rounds;
    // Caches fill, and the kernel's guesses of buffer sizes settle.
    sleep(Duration::from_secs(1));
    loop {
        while rounds.len() < wanted {
            let is_long = rounds.len().is_multiple_of(LONG_EVERY);
            rounds.push(round(&mut stage, &mut running, &mut random, is_long)?);
        }
        let result = WorkloadResult::new(workload, is_elsewhere, &rounds).context("no rounds")?;
        // This looks at the width alone, so going on does not favour any result.
        if result.is_sharp() || wanted >= args.max_rounds {
            running.finish()?;
            stage.finish()?;
            return Ok(result);
        }
        wanted = (2 * wanted).min(args.max_rounds);
    }
}

/// A slice of each configuration.
fn round(
    stage: &mut Dialog,
    running: &mut Running,
    random: &mut Random,
    is_long: bool,
) -> Result<Round> {
    let mut order = Configuration::ALL.to_vec();
    order.retain(|configuration| is_long || *configuration != Configuration::Scraped);
    random.shuffle(&mut order);
    let slice = |configuration: Configuration| {
        stage.tell(configuration.name())?;
        sleep(SETTLE);
        let start = running.count(Some(stage.pid()))?;
        sleep(configuration.slice());
        let end = running.count(Some(stage.pid()))?;
        Ok((configuration, Slice::between(start, end)?))
    };
    order.into_iter().map(slice).collect()
}

/// By how many percent `value` is lower in `of` than in `base`, for each round with both.
fn losses(
    rounds: &[Round],
    of: Configuration,
    base: Configuration,
    value: fn(&Slice) -> f64,
) -> Vec<f64> {
    let loss =
        |round: &Round| Some(100.0 * (1.0 - value(round.get(&of)?) / value(round.get(&base)?)));
    rounds.iter().filter_map(loss).collect()
}

impl WorkloadResult {
    /// None where there are no rounds.
    fn new(workload: Workload, is_elsewhere: bool, rounds: &[Round]) -> Option<Self> {
        use Configuration::{Attached, Empty, None, Scraped};
        let plain = |value: fn(&Slice) -> f64| {
            median(rounds.iter().filter_map(|round| round.get(&None)).map(value).collect())
        };
        let beyond_empty_percent =
            Estimate::new(&losses(rounds, Attached, Empty, Slice::per_second))?;
        let configurations = [Empty, Attached, Scraped]
            .map(|configuration| ConfigurationResult::new(configuration, rounds));
        let configurations: Vec<_> = configurations.into_iter().flatten().collect();
        let attached =
            configurations.iter().find(|result| result.configuration == Attached)?.loss_percent;
        let budget_percent = workload.budget();
        Some(Self {
            name: if is_elsewhere {
                format!("{}, the agent on another processor", workload.name())
            } else {
                workload.name().to_owned()
            },
            requests_per_second: plain(Slice::per_second)?,
            bytes_per_second: plain(|slice| slice.bytes / slice.seconds)?,
            cpu_us_per_request: plain(Slice::cpu_per_request)?,
            beyond_empty: Judgement::of_none(&beyond_empty_percent),
            beyond_empty_percent,
            budget_percent,
            judgement: budget_percent.map(|budget| Judgement::of(&attached, budget)),
            configurations,
        })
    }

    fn is_sharp(&self) -> bool {
        let too_noisy = [Some(self.beyond_empty), self.judgement];
        !too_noisy.contains(&Some(Judgement::TooNoisy))
    }

    fn figures(&self) -> Vec<Figure> {
        let Self { name, budget_percent, judgement, beyond_empty, .. } = self;
        let mut figures = Vec::new();
        for ConfigurationResult { configuration, loss_percent, .. } in &self.configurations {
            let what = format!("{name}, {}: loss of throughput, %", configuration.name());
            let figure = Figure::new(what, loss_percent.to_string());
            figures.push(match (configuration, budget_percent, judgement) {
                (Configuration::Attached, Some(budget), Some(judgement)) => {
                    figure.within(format!("upper end {budget}"), *judgement)
                }
                _ => figure,
            });
        }
        let what = format!("{name}, attached against empty programs: loss of throughput, %");
        let figure = Figure::new(what, self.beyond_empty_percent.to_string());
        figures.push(if budget_percent.is_some() {
            figure.within("none to be seen", *beyond_empty)
        } else {
            figure
        });
        figures
    }
}

impl ConfigurationResult {
    fn new(configuration: Configuration, rounds: &[Round]) -> Option<Self> {
        let none = Configuration::None;
        let losses_of = losses(rounds, configuration, none, Slice::per_second);
        let more_cpu: Vec<f64> = losses(rounds, configuration, none, Slice::cpu_per_request)
            .into_iter()
            .map(|less| -less)
            .collect();
        let slices = rounds.iter().filter_map(|round| round.get(&configuration));
        let (own, all) = slices
            .fold((0.0, 0.0), |(own, all), slice| (own + slice.other_cpu, all + slice.seconds));
        Some(Self {
            configuration,
            rounds: losses_of.len(),
            loss_percent: Estimate::new(&losses_of)?,
            cpu_percent: Estimate::new(&more_cpu)?,
            own_cpu_percent: 100.0 * own / all,
        })
    }
}

impl LoadResults {
    pub(super) fn figures(&self) -> Vec<Figure> {
        self.workloads.iter().flat_map(WorkloadResult::figures).collect()
    }
}

impl fmt::Display for LoadResults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "workload",
            "per s",
            "us CPU",
            "with",
            "rounds",
            "loss of throughput, %",
            "more CPU per request, %",
            "own CPU, %",
            "budget",
            "",
        ]);
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        for workload in &self.workloads {
            let mut first = [
                workload.name.clone(),
                format!("{:.0}", workload.requests_per_second),
                format!("{:.1}", workload.cpu_us_per_request),
            ];
            for result in &workload.configurations {
                let is_judged = result.configuration == Configuration::Attached;
                let judgement = workload.judgement.filter(|_| is_judged);
                table.add_row(std::mem::take(&mut first).into_iter().chain([
                    result.configuration.name().to_owned(),
                    result.rounds.to_string(),
                    result.loss_percent.to_string(),
                    result.cpu_percent.to_string(),
                    format!("{:.2}", result.own_cpu_percent),
                    number(workload.budget_percent.filter(|_| is_judged)),
                    judgement.map(|judgement| judgement.to_string()).unwrap_or_default(),
                ]));
            }
            table.add_row([
                "",
                "",
                "",
                "attached against empty",
                "",
                &workload.beyond_empty_percent.to_string(),
                "",
                "",
                "",
                &workload.beyond_empty.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round in which the machine ran at this share of its speed.
    fn made_up(speed: f64, attached: f64) -> Round {
        let slice = |requests| Slice {
            seconds: 0.15,
            requests: requests * speed,
            bytes: 0.0,
            cpu: 0.15,
            other_cpu: 0.0015,
        };
        [
            (Configuration::None, slice(1000.0)),
            (Configuration::Empty, slice(996.0)),
            (Configuration::Attached, slice(attached)),
            (Configuration::Scraped, slice(950.0)),
        ]
        .into()
    }

    /// A machine that is slower from round to round changes nothing.
    #[test]
    fn paired() {
        let rounds: Vec<Round> = (1..=20).map(|i| made_up(1.0 / f64::from(i), 990.0)).collect();
        let result = WorkloadResult::new(Workload::Redis, false, &rounds).unwrap();
        let check = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-6, "{value}");
        for (result, loss) in result.configurations.iter().zip([0.4, 1.0, 5.0]) {
            check(result.loss_percent.median, loss);
            check(result.cpu_percent.median, 100.0 * (100.0 / (100.0 - loss) - 1.0));
            check(result.own_cpu_percent, 1.0);
        }
        assert_eq!(result.judgement, Some(Judgement::Within));
        // A loss of 0.6 % that is certain.
        assert_eq!(result.beyond_empty, Judgement::Over);
        let over = |figure: &Figure| figure.judgement == Some(Judgement::Over);
        assert_eq!(result.figures().into_iter().filter(over).count(), 1);
    }

    #[test]
    fn over_and_noisy() {
        let judge = |attached: fn(u32) -> f64| {
            let rounds: Vec<Round> = (0..40).map(|i| made_up(1.0, attached(i))).collect();
            WorkloadResult::new(Workload::Redis, false, &rounds).unwrap()
        };
        assert_eq!(judge(|_| 970.0).judgement, Some(Judgement::Over));
        let noisy = judge(|i| if i % 2 == 0 { 900.0 } else { 1100.0 });
        assert_eq!(noisy.judgement, Some(Judgement::TooNoisy));
        assert!(!noisy.is_sharp());
        assert!(WorkloadResult::new(Workload::Redis, false, &[]).is_none());
    }
}
