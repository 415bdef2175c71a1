//! What the agent takes in memory on a large cluster: all pods in a real API server, as large as
//! pods are in practice, and all options on that cost memory.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::setup::{now, run, until};

use super::cluster::Cluster;
use super::manifests;
use super::pods::{NODE, container_id};
use super::scene::{CLIENTS, Scene};
use crate::memory::Memory;

/// What the agent may take, at its peak.
const MEMORY_MB: f64 = 40.0;

/// Pods that a kubelet takes by default.
const ON_NODE: u32 = 110;

/// Pods of each other node, and of a Deployment.
const PER_NODE: u32 = 100;
const PER_OWNER: u32 = 25;

const NAMESPACES: u32 = 20;

/// One in this many pods is replaced.
const CHURN: usize = 10;

/// Requests per run of curl.
const CHUNK: usize = 500;

const ALL_OPTIONS: &[&str] = &["--demo", "--metrics.native-histograms", "--metrics.exemplars"];

/// Fills the cluster, starts an agent that knows all pods, replaces some of them, and looks at what
/// the agent takes.
pub(super) fn measure(scene: &mut Scene, finrace: &Path, count: u32) -> Result<()> {
    manifests::grant(&scene.cluster)?;
    for number in 0..NAMESPACES {
        let object = json!({ "metadata": { "name": namespace(number) } });
        scene.cluster.create("/api/v1/namespaces", &object)?;
    }
    let others = scene.cluster.pods()?;
    let start = now();
    let crowd: Vec<Member> = (0..count).map(|number| Member::new(number, 0)).collect();
    add(&scene.cluster, &crowd)?;
    let first = crowd.first().context("a crowd of nobody")?;
    let bytes = u32::try_from(scene.cluster.get(&first.path())?.to_string().len())?;
    println!(
        "kube: {count} pods of {:.1} kB each, put in within {:.0} s",
        f64::from(bytes) / 1e3,
        start.elapsed().as_secs_f64()
    );

    let start = now();
    scene.start_agent(finrace, "pods", ALL_OPTIONS)?;
    let remote = count + others;
    let synced = wait_known(scene, remote)?;
    println!(
        "kube: known {:.1} s after the agent's start; it takes {synced}",
        start.elapsed().as_secs_f64()
    );

    fill_table(scene, &crowd)?;
    let filled = wait_known(scene, remote)?;
    println!("kube: every row of the table taken; it takes {filled}");

    // They all leave first, so that the number of pods shows when the others have come.
    let leaving: Vec<Member> = (0..count).step_by(CHURN).map(|n| Member::new(n, 0)).collect();
    let coming: Vec<Member> = (0..count).step_by(CHURN).map(|n| Member::new(n, 1)).collect();
    request(&scene.cluster, &leaving, |pod| {
        ("DELETE", pod.path(), json!({ "gracePeriodSeconds": 0 }))
    })?;
    wait_known(scene, remote - u32::try_from(leaving.len())?)?;
    add(&scene.cluster, &coming)?;
    let churned = wait_known(scene, remote)?;
    println!("kube: {} pods replaced; it takes {churned}", coming.len());
    scene.agents.clear();
    ensure!(churned.peak_mb() < MEMORY_MB, "{churned}: more than {MEMORY_MB} MB");
    Ok(())
}

/// Containers of this node's pods lose requests to many peers: more than the table has rows.
fn fill_table(scene: &mut Scene, crowd: &[Member]) -> Result<()> {
    let server = scene.address(103);
    scene.serve("crowd", None, &[server])?;
    for (host, member) in CLIENTS.zip(crowd) {
        // Only the id identifies it: the uid belongs to no pod.
        let id = container_id(&member.path(), "server");
        let path = format!("kubepods/pod0a1b2c3d-0000-4000-8000-000000000000/{id}");
        let cgroup = scene.cgroups.make_at(Path::new(&path))?;
        scene.race_all(&cgroup, scene.address(host), server)?;
    }
    let agent = scene.agents.first().context("no agent")?;
    until("the table is full", Duration::from_secs(20), || {
        let metrics = agent.scrape()?;
        Ok(metrics.plain("finrace_table_rows") == metrics.plain("finrace_table_rows_max"))
    })?;
    // Asked as by a Prometheus that takes native histograms, and as by people.
    let accept = "Accept: application/vnd.google.protobuf;\
                  proto=io.prometheus.client.MetricFamily;encoding=delimited";
    for path in ["/metrics", "/", "/api/v1/peers", "/metrics"] {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--output", "/dev/null"]);
        curl.args(["--header", accept, &format!("http://{}{path}", agent.address())]);
        run(&mut curl)?;
    }
    Ok(())
}

/// Waits until the agent knows this many pods of the cluster.
fn wait_known(scene: &Scene, remote: u32) -> Result<Memory> {
    let agent = scene.agents.first().context("no agent")?;
    let mut last = 0.0;
    until("all pods are known", Duration::from_mins(2), || {
        last = agent.attribution("objects", &[("kind", "remote_pod")])?;
        Ok((last - f64::from(remote)).abs() < 0.5)
    })
    .with_context(|| format!("{last} instead of {remote}"))?;
    Memory::of(agent.process().pid())
}

/// One pod of many.
struct Member {
    number: u32,
    /// Pods that replace each other have different names.
    round: u32,
}

impl Member {
    fn new(number: u32, round: u32) -> Self {
        Self { number, round }
    }

    fn name(&self) -> String {
        // As Kubernetes makes them: Deployment, hash of its template, five characters.
        let suffix = container_id("pod", &format!("{}.{}", self.number, self.round));
        format!("{}-{}", self.replica_set(), suffix.get(..5).unwrap_or_default())
            + &format!("{:x}", self.number)
    }

    fn deployment(&self) -> String {
        format!("service-with-a-name-{}", self.number / PER_OWNER)
    }

    fn replica_set(&self) -> String {
        let hash = container_id("template", &self.deployment());
        format!("{}-{}", self.deployment(), hash.get(..10).unwrap_or_default())
    }

    fn namespace(&self) -> String {
        namespace(self.number / PER_OWNER % NAMESPACES)
    }

    fn node(&self) -> String {
        match self.number.checked_sub(ON_NODE) {
            Some(elsewhere) => format!("node-{}", elsewhere / PER_NODE),
            None => NODE.to_owned(),
        }
    }

    fn ip(&self) -> Ipv4Addr {
        let [_, _, high, low] = (self.number + 10).to_be_bytes();
        Ipv4Addr::new(10, 128 + self.round as u8, high, low)
    }

    fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace())
    }

    fn path(&self) -> String {
        format!("{}/{}", self.pods(), self.name())
    }

    fn object(&self) -> Value {
        let environment: Vec<Value> = (0..20)
            .map(|n| json!({ "name": format!("SETTING_{n}"), "value": "a value of usual length" }))
            .collect();
        let container = |name: &str| {
            let probe = json!({ "httpGet": { "path": "/healthy", "port": 8080 } });
            json!({
                "name": name,
                "image": format!("registry.example/team/{name}:1.2.3"),
                "env": environment,
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "livenessProbe": probe,
                "readinessProbe": probe,
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            })
        };
        let hash = container_id("template", &self.deployment());
        json!({
            "metadata": {
                "name": self.name(),
                "labels": {
                    "app.kubernetes.io/name": self.deployment(),
                    "app.kubernetes.io/part-of": "a-product-of-some-name",
                    "pod-template-hash": hash.get(..10),
                },
                "annotations": { "checksum/config": hash },
                "ownerReferences": [{
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": self.replica_set(),
                    "uid": "0a1b2c3d-0000-4000-8000-000000000000",
                    "controller": true,
                }],
            },
            "spec": {
                "nodeName": self.node(),
                "containers": [container("server"), container("proxy")],
                "volumes": [{ "name": "data", "emptyDir": {} }],
            },
        })
    }

    fn status(&self) -> Value {
        let ip = self.ip().to_string();
        let state = |name: &str| {
            let id = container_id(&self.path(), name);
            json!({
                "name": name,
                "image": format!("registry.example/team/{name}:1.2.3"),
                "imageID": format!("registry.example/team/{name}@sha256:{id}"),
                "ready": true,
                "restartCount": 0,
                "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
                "containerID": format!("containerd://{id}"),
            })
        };
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
        let states = ["server", "proxy"].map(state);
        json!({ "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{ "ip": ip }],
            "conditions": conditions,
            "containerStatuses": states,
        } })
    }
}

fn namespace(number: u32) -> String {
    format!("team-{number}")
}

/// Creates pods, and then reports their containers.
fn add(cluster: &Cluster, crowd: &[Member]) -> Result<()> {
    request(cluster, crowd, |pod| ("POST", pod.pods(), pod.object()))?;
    request(cluster, crowd, |pod| ("PATCH", format!("{}/status", pod.path()), pod.status()))
}

/// A request for each, several at a time.
fn request(
    cluster: &Cluster,
    crowd: &[Member],
    one: impl Fn(&Member) -> (&'static str, String, Value),
) -> Result<()> {
    let config = cluster.directory().join("requests.curl");
    let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    for chunk in crowd.chunks(CHUNK) {
        let mut text = String::new();
        for member in chunk {
            let (method, path, body) = one(member);
            let body = body.to_string();
            writeln!(text, "next\nsilent\nshow-error\nfail\noutput = /dev/null")?;
            writeln!(text, "request = {method}\nurl = \"{}\"", cluster.url(&path))?;
            writeln!(text, "data = \"{}\"", quote(&body))?;
            for (name, value) in cluster.options(method) {
                writeln!(text, "{name} = \"{value}\"")?;
            }
        }
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let mut curl = Command::new("curl");
        curl.args(["--parallel", "--parallel-max", "8", "--config"]).arg(&config);
        run(&mut curl)?;
    }
    Ok(())
}
