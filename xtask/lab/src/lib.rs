//! finrace against real kernels, software and clusters. Everything here is for root on a machine or container that
//! is made for tests.

mod cgroup;
pub mod client;
mod deploy;
mod field;
pub mod guest;
mod image;
mod kube;
mod lab;
mod link;
pub mod live;
mod lookalikes;
pub mod memory;
mod prometheus;
mod proxy;
mod servers;
pub mod software;
pub mod vm;
mod wire;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::page::{self, PageArgs};

/// Tests finrace against real kernels, software and clusters.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Load the programs into this kernel and show them real races (root)
    Live(live::LiveArgs),
    /// Live tests on other kernels, under QEMU (root, Debian)
    Vm(vm::VmArgs),
    /// Compare finrace with the wire: real proxies and servers that race (root, Debian)
    Lab(lab::LabArgs),
    /// Third-party software, against its own count of failures (root, Debian)
    Field(field::FieldArgs),
    /// Traffic that looks like a race but is not one (root, Debian)
    Lookalikes(lookalikes::LookalikeArgs),
    /// Real servers and chains of them: are timeouts, verdicts and advice right? (root, Debian)
    Servers(servers::ServersArgs),
    /// Run every query of the dashboard and of the documentation on real races (root, Debian)
    Dashboard(prometheus::PrometheusArgs),
    /// From a race to an alert to the cure, through Prometheus and Alertmanager (root, Debian)
    Alerts(prometheus::PrometheusArgs),
    /// Native histograms and exemplars, as a real Prometheus takes them (root, Debian)
    Histograms(prometheus::HistogramsArgs),
    /// Check manifests, chart, Containerfile, unit and packages (root, Debian)
    Deploy(deploy::DeployArgs),
    /// Build the container image and run it as a cluster would (root, Debian)
    Image(image::ImageArgs),
    /// Names of pods, from a real API server in all its states; builds that first (root, Debian)
    Kube(kube::KubeArgs),
    /// Take the pictures of the status page that are in README.md (root, Debian)
    Screenshots(servers::ScreenshotArgs),
    /// Put what the matrix of kernels has recorded into docs/kernels.md, or check it
    #[command(hide = true)]
    Docs(PageArgs),
}

impl Cli {
    /// Runs what was asked for on the command line.
    pub fn run(self) -> Result<()> {
        match self.task {
            Task::Live(args) => live::run(args),
            Task::Vm(args) => vm::run(args),
            Task::Lab(args) => lab::run(args),
            Task::Field(args) => field::run(args),
            Task::Lookalikes(args) => lookalikes::run(args),
            Task::Servers(args) => servers::run(args),
            Task::Dashboard(args) => prometheus::dashboard(args),
            Task::Alerts(args) => prometheus::alerts(args),
            Task::Histograms(args) => prometheus::histograms(args),
            Task::Deploy(args) => deploy::run(args),
            Task::Image(args) => image::run(args),
            Task::Kube(args) => kube::run(args),
            Task::Screenshots(args) => servers::screenshots(&args),
            Task::Docs(args) => {
                let matrix = vm::Recorded::read()?.to_markdown()?;
                page::update(&args, "docs/kernels.md", "matrix", &matrix)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn each_task_is_listed() {
        let list = include_str!("../../src/when.txt");
        for task in Cli::command().get_subcommands().filter(|task| !task.is_hide_set()) {
            let line = format!("cargo xtask {}", task.get_name());
            assert!(list.contains(&line), "when.txt does not have `{line}`");
        }
    }
}
