//! Names of pods, as the agent asks for them, from a server that behaves as real ones do.

#![cfg(test)]
#![cfg(feature = "kubernetes")]

use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use finrace::kube::{self, Account, Kube, KubeSetup, Names, Pace, Reason, SourceStatus};
use serde_json::{Value, json};

mod apiserver;
mod flags;
mod kubelet;
mod memory;
mod remote;
mod server;
mod trouble;

use server::{Files, Server};

const NODE: &str = "node-a";

/// For what must happen eventually; none of the tests is about how long it takes.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

/// A clock that always says the same.
fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// Retries at once, otherwise the default pace.
fn quick() -> Pace {
    let retry = [Duration::from_millis(2), Duration::from_millis(20)];
    Pace { retry, poll: Duration::from_millis(5), ..Pace::default() }
}

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    kube: Kube,
}

/// The configuration that a line of flags gives.
fn config(line: &str, account: Option<Account>) -> KubeSetup {
    let flags = Flags::try_parse_from(["finrace"].into_iter().chain(line.split_whitespace()));
    KubeSetup { flags: flags.expect("flags").kube, account, pace: quick(), wall_clock: clock }
}

fn start(config: KubeSetup) -> Names {
    kube::start(config).expect("a start").expect("names")
}

/// Started with a kubeconfig and more flags.
fn names_of(files: &Files, more: &str, pace: Pace) -> Names {
    let file = files.0.join("config");
    let line =
        format!("--kube.source apiserver --kube.node {NODE} --kube.config {}", file.display());
    start(KubeSetup { pace, ..config(&format!("{line} {more}"), None) })
}

/// An API server, and the names that an agent asks it for.
async fn asked(more: &str, fill: impl FnOnce(&mut server::World)) -> (Server, Files, Names) {
    let server = Server::start().await;
    server.with(|world| {
        world.token = Some("first".to_owned());
        fill(world);
    });
    let files = Files::new(&format!("http://{}", server.address), "first");
    let names = names_of(&files, more, quick());
    (server, files, names)
}

/// Waits until something is known, or no longer known.
async fn until(names: &Names, mut is_so: impl FnMut(&Names) -> bool) {
    let mut changes = names.changes();
    while !is_so(names) {
        in_time(changes.changed()).await.expect("somebody who learns");
    }
}

fn status_of(names: &Names, source: &str) -> SourceStatus {
    names.status().into_iter().find(|status| status.source == source).expect("a source")
}

fn is_up(names: &Names) -> bool {
    names.status().iter().all(|status| status.is_up)
}

fn errors(names: &Names, reason: Reason) -> u64 {
    let all = names.status().into_iter().flat_map(|status| status.errors);
    all.filter(|(of, _)| *of == reason).map(|(_, count)| count).sum()
}

fn objects(names: &Names, kind: &str) -> usize {
    let all = names.status().into_iter().flat_map(|status| status.objects);
    all.filter(|(of, _)| *of == kind).map(|(_, count)| count).sum()
}

/// `namespace/workload/pod/container`
fn local(names: &Names, uid: Option<&str>, container: Option<&str>) -> String {
    names.local(uid, container).map_or_else(String::new, |named| {
        let pod = named.pod;
        let container = named.container.unwrap_or_default();
        format!("{}/{}/{}/{container}", pod.namespace, pod.workload, pod.name)
    })
}

/// `namespace/workload/pod`
fn remote(names: &Names, ip: &str, port: u16) -> String {
    let ip: IpAddr = ip.parse().expect("an address");
    names.remote(ip, port).map_or_else(String::new, |remote| {
        let pod = remote.pod.as_deref().unwrap_or_default();
        format!("{}/{}/{pod}", remote.namespace, remote.workload)
    })
}

fn uid(number: u32) -> String {
    format!("{number:08x}-5bb5-4297-b544-85f3bc0d80bf")
}

fn container_id(number: u32) -> String {
    format!("{number:064x}")
}

/// The address of a pod.
fn ip(number: u32) -> String {
    format!("10.1.{}.{}", number / 250, number % 250 + 1)
}

/// A Deployment's pod on this node, with one container, as large as real ones.
fn pod(number: u32) -> Value {
    let noise: Vec<_> = (0..20).map(|n| json!({"manager": "kubelet", "operation": n})).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("web-5d4f8c7b9-{number:05}"), "namespace": "shop", "uid": uid(number),
            "creationTimestamp": "2025-11-11T12:00:03Z",
            "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"note": "\"quoted\" and \u{1f30d}"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9",
                 "uid": uid(1), "controller": true, "blockOwnerDeletion": true}],
            "managedFields": noise,
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "web:1"}]},
        "status": {
            "phase": "Running", "hostIP": "192.0.2.1", "podIP": ip(number),
            "podIPs": [{"ip": ip(number)}, {"ip": format!("fd00::{number:x}")}],
            "containerStatuses": [
                {"name": "app", "ready": true,
                 "containerID": format!("containerd://{}", container_id(number))}],
        },
    })
}
