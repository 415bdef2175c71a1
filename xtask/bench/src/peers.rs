//! finrace next to other tools that follow connections: what the kernel spends for each.
//!
//! All of them see the same load of a connection per request, one tool after another, in rounds. The
//! kernel's own count of a program's time is what is compared; about 50 ns of each run are the
//! counting itself. The tools run where they like, the load stays on one processor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use finrace_lab::client::Random;
use serde::Serialize;
use xtask::setup::{self, Process, now};

use super::dialog::Dialog;
use super::figure::Figure;
use super::machine::{Conditions, Watch, field, read};
use super::programs::{Key, Program, Spent, Statistics, between, programs_of};
use super::stats::{Judgement, median};
use super::workload::{Running, Slice, Stand, Workload};

/// Budget of one connection from open to close, both ends here, in nanoseconds of BPF.
const BUDGET_NS: f64 = 2500.0;

/// The tool that it is compared with.
const RIVAL: &str = "tcplife";

const FINRACE: &str = "finrace";

/// How long a tool may take to get to work: bpftrace compiles first.
const START: Duration = Duration::from_secs(30);

/// Tools write megabytes of events: into memory where possible.
const MEMORY: &str = "/dev/shm";

/// Wait after that, before a tool is measured.
const SETTLE: Duration = Duration::from_millis(300);

const WINDOW: Duration = Duration::from_secs(2);

/// perf finds tracepoints in a file system that may not be mounted. This mounts it for the tool
/// alone: `unshare` gives it mounts of its own.
const MOUNTED: &str = "mount -t debugfs debugfs /sys/kernel/debug; \
                       mount -t tracefs tracefs /sys/kernel/tracing; exec \"$0\" \"$@\"";

const PRINT: &str = r#"tracepoint:sock:inet_sock_set_state {
    printf("%s %s:%d %s:%d %d %d\n", comm, ntop(args->saddr), args->sport, ntop(args->daddr),
        args->dport, args->oldstate, args->newstate);
}"#;

const COUNT: &str = "tracepoint:sock:inet_sock_set_state { @[args->newstate] = count(); }";

const HISTOGRAM: &str =
    "tracepoint:sock:inet_sock_set_state { @[ntop(args->daddr)] = hist(args->newstate); }";

#[derive(clap::Args, Debug)]
pub(super) struct PeersArgs {
    /// How often each tool is measured, for two seconds each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

struct Tool {
    name: &'static str,
    start: Start,
}

enum Start {
    Nothing,
    /// A word for the stage.
    Stage(&'static str),
    /// A program, and the Debian package that it is in.
    Program {
        package: &'static str,
        words: &'static [&'static str],
    },
}

impl Start {
    const fn libbpf(words: &'static [&'static str]) -> Self {
        Self::Program { package: "libbpf-tools", words }
    }

    const fn bpftrace(words: &'static [&'static str]) -> Self {
        Self::Program { package: "bpftrace", words }
    }
}

const TOOLS: [Tool; 8] = [
    Tool { name: "nothing", start: Start::Nothing },
    Tool { name: "empty programs", start: Start::Stage("empty") },
    Tool { name: FINRACE, start: Start::Stage("attached") },
    Tool { name: "bpftrace, count()", start: Start::bpftrace(&["bpftrace", "-e", COUNT]) },
    Tool { name: "bpftrace, hist()", start: Start::bpftrace(&["bpftrace", "-e", HISTOGRAM]) },
    Tool { name: RIVAL, start: Start::libbpf(&["tcplife"]) },
    Tool { name: "bpftrace, printf()", start: Start::bpftrace(&["bpftrace", "-e", PRINT]) },
    Tool { name: "tcpstates", start: Start::libbpf(&["tcpstates"]) },
];

/// Results of the part `peers`.
#[derive(Debug, Serialize)]
pub(super) struct PeersResults {
    rounds: usize,
    tools: Vec<ToolResult>,
    budget_ns: f64,
    judgement: Judgement,
    /// Time of the rival's programs per connection, divided by that of finrace's.
    rival_ratio: Option<f64>,
    conditions: Conditions,
}

/// Medians of a tool's rounds.
#[derive(Debug, Serialize)]
struct ToolResult {
    name: &'static str,
    /// Rounds in which it could be measured.
    rounds: usize,
    ns_per_connection: Option<f64>,
    hits_per_connection: Option<f64>,
    ns_per_hit: Option<f64>,
    connections_per_second: Option<f64>,
    /// CPU time of the tool's own process, in percent of one processor.
    cpu_percent: Option<f64>,
    rss_mb: Option<f64>,
    /// Events that it reports as lost, over all rounds; none where it does not tell.
    lost: Option<u64>,
    /// Results of each program, where the stage tells.
    programs: Vec<ProgramResult>,
    /// Why it could not be measured, the last time.
    failure: Option<String>,
}

#[derive(Debug, Serialize)]
struct ProgramResult {
    name: String,
    hook: String,
    hits_per_connection: f64,
    ns_per_hit: f64,
}

/// One window of one tool.
#[derive(Default)]
struct Sample {
    slice: Slice,
    programs: BTreeMap<Key, Spent>,
    rss_mb: Option<f64>,
    lost: Option<u64>,
}

/// Measures each tool in turn, several times.
pub(super) fn run(stand: &Stand, args: &PeersArgs) -> Result<PeersResults> {
    let watch = Watch::begin()?;
    let directory = stand.directory("peers")?;
    let memory = Path::new(MEMORY);
    let logs = if memory.is_dir() { memory.to_owned() } else { directory.clone() };
    let _statistics = Statistics::on()?;
    let mut kit = Kit {
        stage: stand.stage(&directory, false)?,
        running: Workload::Close.start(stand, &directory)?,
        logs,
    };
    let mut outcomes: Vec<Outcome<'_>> = TOOLS.iter().map(Outcome::new).collect();
    let mut random = Random(1);
    sleep(Duration::from_secs(1));
    for _ in 0..args.rounds {
        random.shuffle(&mut outcomes);
        for outcome in &mut outcomes {
            match kit.measure(outcome.tool) {
                Ok(sample) => outcome.samples.push(sample),
                Err(error) => outcome.failure = Some(format!("{error:#}")),
            }
        }
    }
    kit.running.finish()?;
    kit.stage.finish()?;
    outcomes.sort_by_key(|outcome| TOOLS.iter().position(|tool| tool.name == outcome.tool.name));
    let tools = outcomes.into_iter().map(ToolResult::new).collect();
    PeersResults::new(args.rounds, tools, watch.finish()?)
}

/// What became of one tool.
struct Outcome<'a> {
    tool: &'a Tool,
    samples: Vec<Sample>,
    /// Why it could not be measured, the last time that it could not.
    failure: Option<String>,
}

impl<'a> Outcome<'a> {
    const fn new(tool: &'a Tool) -> Self {
        Self { tool, samples: Vec::new(), failure: None }
    }
}

/// What all tools are measured with.
struct Kit {
    stage: Dialog,
    running: Running,
    /// For what tools write.
    logs: PathBuf,
}

impl Kit {
    fn measure(&mut self, tool: &Tool) -> Result<Sample> {
        Statistics::again()?;
        match tool.start {
            Start::Nothing => self.window(None, |_| Ok(Vec::new())),
            Start::Stage(word) => {
                self.stage.tell(word)?;
                let pid = self.stage.pid();
                let sample = self.window(Some(pid), |stage| {
                    Ok(serde_json::from_str(&stage.ask("programs")?)?)
                })?;
                self.stage.tell("none")?;
                Ok(sample)
            }
            Start::Program { package, words } => {
                setup::ensure(&["util-linux", package])?;
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", MOUNTED]).args(words);
                let mut process = Process::spawn("finrace-bench-tool", command, &self.logs)?;
                let log = process.log().to_owned();
                let pid = process.pid();
                let sample = wait_for_runs(&mut process)
                    .and_then(|()| self.window(Some(pid), |_| Ok(vec![programs_of(pid)?])));
                let lost = Some(lost(&process.stop()?));
                fs::remove_file(log).context("removing what a tool has written")?;
                Ok(Sample { lost, ..sample? })
            }
        }
    }

    /// What happens within a time window: to the load, a process, and programs.
    fn window(
        &mut self,
        pid: Option<u32>,
        programs: impl Fn(&mut Dialog) -> Result<Vec<Program>>,
    ) -> Result<Sample> {
        sleep(SETTLE);
        let before = programs(&mut self.stage)?;
        let start = self.running.count(pid)?;
        sleep(WINDOW);
        let slice = Slice::between(start, self.running.count(pid)?)?;
        let after = programs(&mut self.stage)?;
        let rss_mb = pid.map(rss_mb).transpose()?;
        Ok(Sample { slice, programs: between(&before, &after), rss_mb, lost: None })
    }
}

/// Waits until a tool's programs see the load.
fn wait_for_runs(process: &mut Process) -> Result<()> {
    let end = now() + START;
    while !programs_of(process.pid()).is_ok_and(|programs| programs.runs > 0) {
        if !process.is_running()? {
            bail!("it has ended: {}", process.output()?.trim());
        }
        ensure!(now() < end, "none of its programs runs: {}", process.output()?.trim());
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn rss_mb(pid: u32) -> Result<f64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let kib = field(&status, "VmRSS").and_then(|value| value.strip_suffix(" kB"));
    let kib: f64 = kib.and_then(|kib| kib.parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}

/// The sum of all "lost N events" that a tool has said.
fn lost(output: &str) -> u64 {
    let number = |text: &str| {
        let (number, rest) = text.split_once(' ')?;
        if rest.starts_with("events") { number.parse::<u64>().ok() } else { None }
    };
    // Some begin a sentence with it.
    output.split("ost ").skip(1).filter_map(number).sum()
}

impl Sample {
    fn runs(&self) -> f64 {
        self.programs.values().map(|spent| spent.runs).sum()
    }

    fn run_ns(&self) -> f64 {
        self.programs.values().map(|spent| spent.ns).sum()
    }
}

impl ToolResult {
    fn new(outcome: Outcome<'_>) -> Self {
        let Outcome { tool, samples, failure } = outcome;
        let mid = |value: &dyn Fn(&Sample) -> Option<f64>| {
            median(samples.iter().filter_map(value).collect())
        };
        // Without any runs there is no ratio.
        let by_runs = |sample: &Sample, value: f64| (sample.runs() > 0.0).then_some(value);
        Self {
            name: tool.name,
            rounds: samples.len(),
            ns_per_connection: mid(&|s| by_runs(s, s.run_ns() / s.slice.requests)),
            hits_per_connection: mid(&|s| by_runs(s, s.runs() / s.slice.requests)),
            ns_per_hit: mid(&|s| by_runs(s, s.run_ns() / s.runs())),
            connections_per_second: mid(&|s| Some(s.slice.per_second())),
            cpu_percent: mid(&|s| s.rss_mb.map(|_| 100.0 * s.slice.other_cpu / s.slice.seconds)),
            rss_mb: mid(&|s| s.rss_mb),
            lost: samples.iter().filter_map(|sample| sample.lost).reduce(|sum, lost| sum + lost),
            programs: program_results(&samples),
            failure,
        }
    }
}

fn program_results(samples: &[Sample]) -> Vec<ProgramResult> {
    let named = samples.iter().flat_map(|sample| sample.programs.keys());
    let keys: BTreeSet<_> = named.filter(|(name, _)| !name.is_empty()).collect();
    let result = |key: &Key| {
        let values = |value: &dyn Fn(&Sample, &Spent) -> f64| {
            let of = |sample: &Sample| Some(value(sample, sample.programs.get(key)?));
            median(samples.iter().filter_map(of).filter(|value| value.is_finite()).collect())
        };
        Some(ProgramResult {
            name: key.0.clone(),
            hook: key.1.clone(),
            hits_per_connection: values(&|sample, spent| spent.runs / sample.slice.requests)?,
            ns_per_hit: values(&|_, spent| spent.ns / spent.runs)?,
        })
    };
    keys.into_iter().filter_map(result).collect()
}

impl PeersResults {
    fn new(rounds: usize, tools: Vec<ToolResult>, conditions: Conditions) -> Result<Self> {
        let ns = |name| tools.iter().find(|tool| tool.name == name)?.ns_per_connection;
        let failure = tools.iter().find(|tool| tool.name == FINRACE).map(|tool| &tool.failure);
        let finrace = ns(FINRACE).with_context(|| format!("finrace: {failure:?}"))?;
        let judgement = if finrace <= BUDGET_NS { Judgement::Within } else { Judgement::Over };
        let rival_ratio = ns(RIVAL).map(|rival| rival / finrace);
        Ok(Self { rounds, tools, budget_ns: BUDGET_NS, judgement, rival_ratio, conditions })
    }

    pub(super) fn figures(&self) -> Vec<Figure> {
        let kernel = "BPF time of a connection, open to close, both ends here";
        let figure = |tool: &ToolResult| {
            let ns = tool.ns_per_connection?;
            let what = format!("{}: {kernel}", tool.name);
            Some(if tool.name == FINRACE {
                Figure::at_most(what, ns, self.budget_ns, " ns", 0)
            } else {
                Figure::new(what, format!("{ns:.0} ns")).for_all()
            })
        };
        self.tools.iter().filter_map(figure).collect()
    }
}

impl fmt::Display for PeersResults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "tool",
            "ns per connection",
            "hits per connection",
            "ns per hit",
            "own CPU, %",
            "RSS, MB",
            "connections per s",
            "lost",
        ]);
        let number = |value: Option<f64>, digits: usize| {
            value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
        };
        for tool in &self.tools {
            table.add_row([
                tool.name.to_owned(),
                number(tool.ns_per_connection, 0),
                number(tool.hits_per_connection, 1),
                number(tool.ns_per_hit, 0),
                number(tool.cpu_percent, 1),
                number(tool.rss_mb, 1),
                number(tool.connections_per_second, 0),
                tool.lost.map(|lost| lost.to_string()).unwrap_or_default(),
            ]);
            for program in &tool.programs {
                table.add_row([
                    format!("  {} on {}", program.name, program.hook),
                    number(Some(program.hits_per_connection * program.ns_per_hit), 0),
                    number(Some(program.hits_per_connection), 1),
                    number(Some(program.ns_per_hit), 0),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        for tool in &self.tools {
            if let Some(failure) = &tool.failure {
                let Self { rounds, .. } = self;
                let ToolResult { name, rounds: measured, .. } = tool;
                writeln!(f, "{name}: measured in {measured} of {rounds} rounds: {failure}")?;
            }
        }
        let judgement = self.judgement;
        write!(f, "finrace: {judgement} {:.0} ns a connection", self.budget_ns)?;
        self.rival_ratio
            .map_or(Ok(()), |ratio| write!(f, "; {RIVAL} takes {ratio:.1} times as much"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses() {
        let check = |output, expected| assert_eq!(lost(output), expected, "{output}");
        check("127.0.0.1 80 1\nnothing is lost here\n", 0);
        check("lost 12 events on CPU #0\nx\nlost 3 events on CPU #1\n", 15);
        check("Attaching 1 probe...\nLost 40 events\n", 40);
        check("most 5 events, lost x events, lost 7 sockets", 5);
    }

    #[test]
    fn medians_of_rounds() {
        let sample = |run_ns| Sample {
            slice: Slice { seconds: 2.0, requests: 100.0, other_cpu: 0.1, ..Slice::default() },
            programs: [(("p".to_owned(), "h".to_owned()), Spent { runs: 1000.0, ns: run_ns })]
                .into(),
            rss_mb: Some(5.0),
            lost: Some(2),
        };
        let samples = [200_000.0, 900_000.0, 210_000.0].map(sample).into();
        let [tool, ..] = &TOOLS;
        let result = ToolResult::new(Outcome { samples, ..Outcome::new(tool) });
        assert_eq!(result.rounds, 3);
        assert_eq!(result.ns_per_connection, Some(2100.0));
        assert_eq!(result.hits_per_connection, Some(10.0));
        assert_eq!(result.ns_per_hit, Some(210.0));
        assert_eq!(result.cpu_percent, Some(5.0));
        assert_eq!(result.lost, Some(6));
        assert_eq!(result.programs.len(), 1);
        let nothing =
            ToolResult::new(Outcome { samples: vec![Sample::default()], ..Outcome::new(tool) });
        assert_eq!(nothing.ns_per_hit, None);
    }
}
