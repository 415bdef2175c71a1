//! The manifests in `deploy/`: does an API server take them, and which rights do they give?

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::setup;

use super::cluster::Cluster;
use crate::deploy;

/// API groups of others, which this server does not know.
const FOREIGN: [&str; 2] = ["monitoring.coreos.com", "security.openshift.io"];

/// Resources that an agent might ask for, or must never get.
const RESOURCES: [&str; 13] = [
    "pods",
    "pods/exec",
    "pods/log",
    "services",
    "discovery.k8s.io/endpointslices",
    "endpoints",
    "nodes",
    "nodes/pods",
    "nodes/proxy",
    "secrets",
    "configmaps",
    "serviceaccounts/token",
    "*",
];
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "*"];

/// Has the server check all of them; applies the base, and checks what it allows, and what the
/// component for remote names adds.
pub(super) fn check(cluster: &Cluster, python: &Path) -> Result<()> {
    let directory = setup::empty_directory(directory(cluster))?;
    let manifests = deploy::manifests(python, &directory)?;
    for (case, text) in &manifests {
        let is_known = |part: &&str| !FOREIGN.iter().any(|group| part.contains(group));
        let known: Vec<&str> = text.split("\n---\n").filter(is_known).collect();
        let file = file(cluster, case);
        fs::write(&file, known.join("\n---\n")).with_context(|| file.display().to_string())?;
    }
    // Existing objects cannot turn into others, so none exist.
    let namespace = json!({ "metadata": { "name": "finrace" } });
    cluster.create("/api/v1/namespaces", &namespace)?;
    let dry = ["--dry-run=server", "--validate=true", "--namespace=finrace"];
    for case in manifests.keys() {
        apply(cluster, case, &dry)?;
    }
    // Otherwise nothing above would mean anything.
    let typo = manifests.get(BASE).with_context(|| format!("no `{BASE}`"))?;
    let typo = typo.replace("readOnlyRootFilesystem", "readonlyRootFilesystem");
    fs::write(file(cluster, "typo"), typo).context("writing a typo")?;
    ensure!(apply(cluster, "typo", &dry).is_err(), "a mistyped field went through");

    apply(cluster, BASE, &["--validate=true"])?;
    let base = rights(cluster)?;
    ensure!(base == "list pods, watch pods", "the base gives the right to {base}");
    grant(cluster)?;
    let rights = rights(cluster)?;
    ensure!(
        rights == "list pods, list services, watch pods, watch services",
        "with remote-services there is the right to {rights}"
    );
    Ok(())
}

const BASE: &str = "kustomize base";

/// Gives the agent's account the rights of the base and those to names of remote ends.
pub(super) fn grant(cluster: &Cluster) -> Result<()> {
    apply(cluster, "kustomize remote-services", &[])
}

fn apply(cluster: &Cluster, case: &str, options: &[&str]) -> Result<()> {
    let file = file(cluster, case).display().to_string();
    let arguments = [&["apply", "--filename", &file], options].concat();
    cluster.kubectl(&arguments).map(drop).with_context(|| case.to_owned())
}

fn directory(cluster: &Cluster) -> PathBuf {
    cluster.directory().join("manifests")
}

fn file(cluster: &Cluster, case: &str) -> PathBuf {
    directory(cluster).join(format!("{case}.yaml"))
}

/// Takes all of them away.
pub(super) fn revoke(cluster: &Cluster) -> Result<()> {
    cluster.delete("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/finrace")
}

/// What the account may do, of [`VERBS`] with [`RESOURCES`].
fn rights(cluster: &Cluster) -> Result<String> {
    let mut rights = BTreeSet::new();
    for resource in RESOURCES {
        let (group, plain) = resource.split_once(".io/").map_or_else(
            || (String::new(), resource),
            |(group, plain)| (format!("{group}.io"), plain),
        );
        let (plain, subresource) = plain.split_once('/').unwrap_or((plain, ""));
        for verb in VERBS {
            let review = json!({ "spec": {
                "user": "system:serviceaccount:finrace:finrace",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": plain, "subresource": subresource,
                },
            } });
            let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
            let answer = cluster.create(path, &review)?;
            if answer.pointer("/status/allowed") == Some(&Value::Bool(true)) {
                rights.insert(format!("{verb} {resource}"));
            }
        }
    }
    Ok(rights.into_iter().collect::<Vec<_>>().join(", "))
}
