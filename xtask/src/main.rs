//! `cargo xtask`: builds the BPF object, and runs every test that is more than `cargo test`.

mod bench;
mod bpf;
mod cgroup;
mod ci;
mod client;
mod deploy;
mod docs;
mod field;
mod guest;
mod image;
mod kube;
mod lab;
mod link;
mod live;
mod lookalikes;
mod memory;
mod prometheus;
mod proxy;
mod rules;
mod score;
mod servers;
mod setup;
mod software;
mod vm;
mod wire;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// Builds, checks and tests finrace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF object that is committed under ebpf/, or check it
    Bpf(bpf::BpfArgs),
    /// Measure what finrace costs (root, Debian)
    Bench(bench::BenchArgs),
    /// Put what the matrix of kernels has recorded into docs/kernels.md, or check it
    Docs(docs::DocsArgs),
    /// Check manifests, chart, Containerfile, unit and packages (root, Debian)
    Deploy(deploy::DeployArgs),
    /// Everything that has to pass before a merge, stopping at the first failure (root, Debian)
    Test,
    /// Build the container image and run it as a cluster would (root, Debian)
    Image(image::ImageArgs),
    /// Load the programs into this kernel and show them real races (root)
    Live(live::LiveArgs),
    /// Live tests on other kernels, under QEMU (root, Debian)
    Vm(vm::VmArgs),
    /// Compare finrace with the wire: real proxies and servers that race (root, Debian)
    Lab(lab::LabArgs),
    /// Check and test alerts and recording rules (root, Debian)
    Rules,
    /// Run every query of the dashboard and of the documentation on real races (root, Debian)
    Dashboard(prometheus::PrometheusArgs),
    /// From a race to an alert to the cure, through Prometheus and Alertmanager (root, Debian)
    Alerts(prometheus::PrometheusArgs),
    /// Score estimates, exposure and verdicts on simulated traffic, of which all is known
    Score(score::ScoreArgs),
    /// Names of pods, from a real API server in all its states; builds that first (root, Debian)
    Kube(kube::KubeArgs),
    /// Real servers and chains of them: are timeouts, verdicts and advice right? (root, Debian)
    Servers(servers::ServersArgs),
    /// Take the pictures of the status page that are in README.md (root, Debian)
    Screenshots(servers::ScreenshotArgs),
    /// Native histograms and exemplars, as a real Prometheus takes them (root, Debian)
    Histograms(prometheus::HistogramsArgs),
    /// Traffic that looks like a race and is none (root, Debian)
    Field(field::FieldArgs),
    Lookalikes(lookalikes::LookalikeArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Bpf(args) => bpf::run(args),
        Task::Bench(args) => bench::run(args),
        Task::Deploy(args) => deploy::run(args),
        Task::Docs(args) => docs::run(args),
        Task::Test => ci::test(),
        Task::Image(args) => image::run(args),
        Task::Live(args) => live::run(args),
        Task::Vm(args) => vm::run(args),
        Task::Lab(args) => lab::run(args),
        Task::Rules => rules::run(),
        Task::Dashboard(args) => prometheus::dashboard(args),
        Task::Alerts(args) => prometheus::alerts(args),
        Task::Score(args) => score::run(args),
        Task::Kube(args) => kube::run(args),
        Task::Servers(args) => servers::run(args),
        Task::Screenshots(args) => servers::screenshots(&args),
        Task::Histograms(args) => prometheus::histograms(args),
        Task::Field(args) => field::run(args),
        Task::Lookalikes(args) => lookalikes::run(args),
    }
}

/// Runs a task as if it had been asked for on the command line.
fn task(arguments: &[&str]) -> Result<()> {
    let words = std::iter::once("xtask").chain(arguments.iter().copied());
    run(Cli::try_parse_from(words)?.task)
}

/// Says something to whoever started the task.
#[expect(clippy::print_stderr, reason = "xtask talks to a person; its parts have no log")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// The directory of the workspace.
fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The cargo that runs us.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command whose output is for the person who waits for it.
fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    let name = command.get_program().display();
    ensure!(status.success(), "{name} {:?}: {status}", command.get_args().collect::<Vec<_>>());
    Ok(())
}
