//! `cargo xtask kube`: names from a real API server, for processes in cgroups as a kubelet makes
//! them, through everything that happens to clusters.
//!
//! There is no kubelet, no scheduler and no controller: what they would write is written here. The
//! agents run as the service account of the manifests in `deploy/`, with the rights that these give:
//! one as in a pod, the others by a kubeconfig.

#![expect(clippy::print_stdout, reason = "prints one line per step")]

mod build;
mod cluster;
mod crowd;
mod manifests;
mod pods;
mod scene;
mod steps;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, now, target_dir};

use crate::deploy;
use cluster::Cluster;
use scene::Scene;

/// The last step.
const MEMORY: &str = "memory";

/// Tests names of pods against a real API server.
#[derive(clap::Args, Debug)]
pub(crate) struct KubeArgs {
    /// Pods in the cluster when the agent's memory is measured
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pods: u32,
    /// Run only this step; `memory` is the last
    #[arg(long, value_name = "STEP")]
    only: Option<String>,
    /// The finrace to test.
    #[arg(long, default_value = "target/release/finrace")]
    finrace: PathBuf,
}

pub(crate) fn run(args: KubeArgs) -> Result<()> {
    if let Some(only) = &args.only {
        let mut names = steps::ALL.iter().map(|(name, _)| *name).chain([MEMORY]);
        ensure!(names.any(|name| name == only), "no step is called `{only}`");
    }
    ensure!(rustix::process::geteuid().is_root(), "cgroups, networks and the agent need root");
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;
    setup::ensure(&["curl", "etcd-server", "iproute2", "openssl", "python3"])?;
    let python = setup::python(&deploy::WHEELS)?;
    let kept = target_dir().join("kube");
    fs::create_dir_all(&kept).with_context(|| format!("creating {}", kept.display()))?;
    let api_server = build::api_server(&kept)?;

    let directory = setup::empty_directory(kept.join("run"))?;
    let cluster = Cluster::start(directory.clone(), api_server, python.join("kubectl"))?;
    let mut faults = 0;
    let mut judge = |name: &str, result: Result<()>| match result {
        Ok(()) => println!("ok {name}"),
        Err(error) => {
            faults += 1;
            println!("FAIL {name}: {error:#}");
        }
    };
    let is_wanted = |name: &str| args.only.as_ref().is_none_or(|only| only == name);
    let wanted: Vec<_> = steps::ALL.iter().filter(|(name, _)| is_wanted(name)).collect();
    judge("manifests", manifests::check(&cluster, &python));
    let mut scene = Scene::new(cluster, directory.clone())?;
    scene.renew_token("first")?;
    if !wanted.is_empty() {
        let start = now();
        let mut cast = steps::set(&mut scene, &finrace).context("setting the scene")?;
        for (name, step) in wanted {
            judge(name, step(&mut scene, &mut cast));
            // A failed step may have left it stopped.
            scene.cluster.ensure_api()?;
        }
        println!("kube: the steps took {:.0} s", start.elapsed().as_secs_f64());
    }
    scene.agents.clear();
    if is_wanted(MEMORY) {
        judge(MEMORY, crowd::measure(&mut scene, &finrace, args.pods));
    }
    drop(scene);
    // Hundreds of megabytes, from which there is nothing to learn.
    fs::remove_dir_all(directory.join("etcd")).context("removing etcd's data")?;
    ensure!(faults == 0, "{faults} steps failed; logs are in {}", directory.display());
    Ok(())
}
