//! Ordinary traffic of real software that looks like the race but is not, with finrace watching:
//! every race it reports is a false alarm. Two scenarios at the end make true races, which must be
//! counted exactly.
//!
//! A scenario makes traffic and states claims about the lines on its ports. One `finrace watch`
//! runs through all of them, and the claims are checked when it has ended; so does one `finrace
//! report`, whose verdicts must not blame anyone. A finrace that sees
//! nothing fails too: each scenario demands lines about its ports.

#![expect(clippy::print_stdout, reason = "prints one line per scenario")]

mod http;
mod lines;
mod races;
mod stage;
mod stores;
mod streams;
mod tls;
mod verdicts;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use lines::Lines;
use stage::{Kit, Stage};
use verdicts::Verdicts;
use xtask::setup::{self, Process};

/// Checks that ordinary traffic counts as no race.
#[derive(clap::Args, Debug)]
pub(crate) struct LookalikeArgs {
    /// The finrace to test.
    #[arg(long, default_value = "target/release/finrace")]
    finrace: PathBuf,
    /// Run only this scenario.
    #[arg(long)]
    only: Option<String>,
}

type Scenario = (&'static str, fn(&mut Stage<'_>) -> Result<()>);

/// Scenarios that measure idle times: all at the same time.
const QUIET: &[Scenario] = &[
    ("tls-openssl", |s| tls::openssl(s, 0)),
    ("tls-openssl-10ms", |s| tls::openssl(s, 5)),
    ("tls-go", |s| tls::go(s, 0)),
    ("tls-go-10ms", |s| tls::go(s, 5)),
    ("http2", |s| tls::http2(s, 0)),
    ("http2-10ms", |s| tls::http2(s, 5)),
    ("http2-nginx", tls::http2_nginx),
    ("postgres", stores::postgres),
    ("redis", stores::redis),
    ("websocket", streams::websocket),
    ("nginx-reload", http::reload),
    ("early-response", http::early_response),
    ("cancelled-download", http::cancelled_download),
    ("slow-server", http::slow_server),
    ("health-checks", http::health_checks),
    ("connection-close", http::connection_close),
    ("nat-race", races::nat),
    ("prometheus", races::prometheus),
];

/// Scenarios that keep the processors busy: after the others.
const LOUD: &[Scenario] =
    &[("nginx-load", http::load), ("blocked-writer", streams::blocked_writer)];

/// finrace reports a race within 3 s of its outcome.
const SETTLE: Duration = Duration::from_secs(4);

pub(crate) fn run(args: LookalikeArgs) -> Result<()> {
    let wanted = |list: &[Scenario]| -> Vec<Scenario> {
        list.iter().copied().filter(|(n, _)| args.only.as_ref().is_none_or(|o| o == n)).collect()
    };
    let (quiet, loud) = (wanted(QUIET), wanted(LOUD));
    ensure!(!(quiet.is_empty() && loud.is_empty()), "no scenario of the name {:?}", args.only);
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;

    let dir = setup::target_dir().join("lookalikes");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let kit = Kit::new(dir, finrace)?;

    let watch = Finrace::start("watch", &kit)?;
    let report = Finrace::start("report", &kit)?;

    let mut results = play(&kit, &quiet);
    results.extend(play(&kit, &loud));
    sleep(SETTLE);
    let lines = Lines::read(&watch.stop()?)?;
    let verdicts = Verdicts::read(&report.stop()?)?;
    let mut failed = 0;
    for (name, played) in results {
        let faults = match played {
            Ok(stage) => stage.faults(&lines, &verdicts),
            Err(error) => vec![format!("the traffic itself: {error:#}")],
        };
        if faults.is_empty() {
            println!("ok {name}");
        }
        failed += usize::from(!faults.is_empty());
        for fault in faults {
            println!("FAIL {name}: {fault}");
        }
    }
    ensure!(failed == 0, "{failed} scenarios failed; logs are in {}", kit.dir.display());
    Ok(())
}

/// A running command of finrace with `--json`.
struct Finrace {
    process: Process,
    /// Its standard output.
    output: PathBuf,
}

impl Finrace {
    fn start(command: &str, kit: &Kit) -> Result<Self> {
        let output = kit.dir.join(format!("{command}.json"));
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"exec "$0" "$1" --json --for 1h >"$2""#]);
        shell.arg(&kit.finrace).arg(command).arg(&output);
        let mut process = Process::spawn(&format!("finrace-{command}"), shell, &kit.dir)?;
        process.wait_output("attached", Duration::from_secs(20))?;
        Ok(Self { process, output })
    }

    fn stop(self) -> Result<PathBuf> {
        self.process.stop()?;
        Ok(self.output)
    }
}

type Played<'a> = (&'static str, Result<Stage<'a>>);

/// Runs the scenarios at the same time.
fn play<'a>(kit: &'a Kit, scenarios: &[Scenario]) -> Vec<Played<'a>> {
    std::thread::scope(|scope| {
        let begin = |&(name, body): &Scenario| {
            let thread = scope.spawn(move || {
                let mut stage = Stage::new(name, kit)?;
                body(&mut stage).map(|()| stage)
            });
            (name, thread)
        };
        let running: Vec<_> = scenarios.iter().map(begin).collect();
        let end = |(name, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| {
            (name, thread.join().unwrap_or_else(|_panic| Err(anyhow!("panicked"))))
        };
        running.into_iter().map(end).collect()
    })
}
