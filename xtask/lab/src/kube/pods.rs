//! Pods as a kubelet would have them: the object with its status, and cgroups with their names.

use std::borrow::Cow;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cluster::Cluster;
use crate::cgroup::remove_tree;

/// The node that the agent runs on.
pub(super) const NODE: &str = "node-a";

/// How the kubelet names cgroups.
#[derive(Clone, Copy, Debug)]
pub(super) enum Driver {
    Systemd,
    Cgroupfs,
}

/// What a pod should be like.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) namespace: &'static str,
    pub(super) name: String,
    pub(super) node: &'static str,
    pub(super) ip: Ipv4Addr,
    /// Kind and name, as in the pod's metadata.
    pub(super) owner: Option<(&'static str, Cow<'static, str>)>,
    pub(super) containers: &'static [&'static str],
    /// An init container that keeps running next to the others.
    pub(super) sidecar: Option<&'static str>,
    pub(super) driver: Driver,
    /// `burstable`, `besteffort`, or nothing if guaranteed.
    pub(super) class: Option<&'static str>,
    /// A mirror of a pod that the kubelet has from a file: the hash that stands for its uid.
    pub(super) mirror_of: Option<&'static str>,
}

impl Spec {
    pub(super) fn new(namespace: &'static str, name: &str, ip: Ipv4Addr) -> Self {
        Self {
            namespace,
            name: name.to_owned(),
            node: NODE,
            ip,
            owner: None,
            containers: &["main"],
            sidecar: None,
            driver: Driver::Systemd,
            class: Some("burstable"),
            mirror_of: None,
        }
    }

    /// The path of the pods of its namespace in the API.
    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    fn object(&self) -> Value {
        let owner = |(kind, name): &(&str, Cow<'_, str>)| {
            let version = match *kind {
                "Node" => "v1",
                "Job" => "batch/v1",
                _ => "apps/v1",
            };
            // No object with this uid is needed: nothing runs that would miss it.
            let uid = "0a1b2c3d-0000-4000-8000-000000000000";
            json!([{
                "apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true,
            }])
        };
        // As the controller of Deployments labels them.
        let hash = self.owner.as_ref().and_then(|(kind, name)| {
            let (_, hash) = name.rsplit_once('-').filter(|_| *kind == "ReplicaSet")?;
            (hash.len() == 10).then_some(hash)
        });
        let mirror = |hash| json!({ "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash });
        let containers = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({ "name": name, "image": "test" })).collect()
        };
        json!({
            "metadata": {
                "name": self.name,
                "labels": hash.map(|hash| json!({ "pod-template-hash": hash })),
                "annotations": self.mirror_of.map(mirror),
                "ownerReferences": self.owner.as_ref().map(owner),
            },
            "spec": {
                "nodeName": self.node,
                "hostNetwork": self.mirror_of.is_some(),
                "initContainers": containers(self.sidecar.as_slice()),
                "containers": containers(self.containers),
            },
        })
    }

    /// What the kubelet would report once all containers run.
    fn status(&self, uid: &str) -> Value {
        let state = |name: &&str| {
            json!({
                "name": name, "image": "test", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": {} },
                "containerID": format!("containerd://{}", container_id(uid, name)),
            })
        };
        let states = |names: &[&str]| -> Vec<Value> { names.iter().map(state).collect() };
        let ip = self.ip.to_string();
        json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "initContainerStatuses": states(self.sidecar.as_slice()),
            "containerStatuses": states(self.containers),
        } })
    }
}

/// A pod in the API server.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) spec: Spec,
    uid: String,
}

impl Pod {
    /// Creates it, and reports what a kubelet would report about it.
    pub(super) fn create(cluster: &Cluster, spec: Spec) -> Result<Self> {
        let answer = cluster.create(&spec.path(), &spec.object())?;
        let uid = answer.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.context("a pod without a uid")?.to_owned();
        let pod = Self { spec, uid };
        cluster.change(&format!("{}/status", pod.path()), &pod.spec.status(&pod.uid))?;
        Ok(pod)
    }

    pub(super) fn delete(&self, cluster: &Cluster) -> Result<()> {
        cluster.delete(&self.path())
    }

    fn path(&self) -> String {
        format!("{}/{}", self.spec.path(), self.spec.name)
    }

    pub(super) fn container_id(&self, container: &str) -> String {
        container_id(&self.uid, container)
    }

    /// The cgroup of a container, relative to where the hierarchy of pods begins.
    fn cgroup(&self, container: &str) -> PathBuf {
        let uid = self.spec.mirror_of.unwrap_or(&self.uid);
        let id = self.container_id(container);
        match (self.spec.driver, self.spec.class) {
            (Driver::Cgroupfs, None) => format!("kubepods/pod{uid}/{id}"),
            (Driver::Cgroupfs, Some(class)) => format!("kubepods/{class}/pod{uid}/{id}"),
            (Driver::Systemd, class) => {
                let uid = uid.replace('-', "_");
                let scope = format!("cri-containerd-{id}.scope");
                class.map_or_else(
                    || format!("kubepods.slice/kubepods-pod{uid}.slice/{scope}"),
                    |class| {
                        let slice = format!("kubepods-{class}");
                        format!("kubepods.slice/{slice}.slice/{slice}-pod{uid}.slice/{scope}")
                    },
                )
            }
        }
        .into()
    }
}

/// A container id in containerd's format.
pub(super) fn container_id(uid: &str, container: &str) -> String {
    let digest = Sha256::digest(format!("{uid}/{container}"));
    digest.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A directory of the cgroup2 hierarchy under which all pods are. Dropping it ends whatever still
/// runs in there.
#[derive(Debug)]
pub(super) struct Cgroups(PathBuf);

impl Cgroups {
    pub(super) fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let mount = mounts.find_map(|mut mount| {
            let place = mount.nth(1)?;
            (mount.next()? == "cgroup2").then_some(place)
        });
        // Like the pods of a node that is itself a container, as in kind.
        let root =
            Path::new(mount.context("no cgroup2 hierarchy is mounted")?).join("finrace-kube");
        let cgroups = Self(root);
        cgroups.remove(); // of an interrupted run
        ensure!(!cgroups.0.exists(), "{}: still there", cgroups.0.display());
        Ok(cgroups)
    }

    /// Makes the cgroup of a container.
    pub(super) fn make(&self, pod: &Pod, container: &str) -> Result<PathBuf> {
        self.make_at(&pod.cgroup(container))
    }

    /// Makes the cgroup of this path.
    pub(super) fn make_at(&self, path: &Path) -> Result<PathBuf> {
        let path = self.0.join(path);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    fn remove(&self) {
        if self.0.exists() {
            fs::write(self.0.join("cgroup.kill"), "1").ok();
            remove_tree(&self.0);
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.remove();
    }
}
