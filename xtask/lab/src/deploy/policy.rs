//! What we promise about the objects in a cluster, beyond their validity: no more rights than the
//! arguments need, nothing of the host, and that selectors, ports and accounts match.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::root;

/// Where the kubelet is too old for a right that does not also allow running commands in containers.
const NODES_PROXY: [&str; 2] = ["kustomize kubelet-proxy", "helm kubelet before 1.33"];

/// Where the kernel counts BPF maps as locked memory.
const MEMLOCK: [&str; 2] = ["kustomize linux-5.10", "helm much"];

/// Checks the manifests of one case; `rules` holds the expected alerts and recording rules.
pub(super) fn check(case: &str, objects: &[Value], rules: &Value) -> Result<()> {
    let set = Set(objects);
    let daemonset = set.only("DaemonSet")?;
    let pod = at(daemonset, "/spec/template")?;
    check_pod(case, pod).context("DaemonSet")?;
    ensure!(
        daemonset.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable").is_some(),
        "DaemonSet: no maxUnavailable"
    );
    let labels = at(pod, "/metadata/labels")?;
    selects(at(daemonset, "/spec/selector/matchLabels")?, labels).context("DaemonSet")?;
    check_rights(case, &set, pod)?;

    for object in objects {
        let kind = kind(object);
        let result = match kind {
            "PodMonitor" => selects(at(object, "/spec/selector/matchLabels")?, labels)
                .and_then(|()| has_port(at(object, "/spec/podMetricsEndpoints/0/port")?, pod)),
            "Service" => selects(at(object, "/spec/selector")?, labels)
                .and_then(|()| has_port(at(object, "/spec/ports/0/targetPort")?, pod)),
            "ServiceMonitor" => {
                let service = set.only("Service")?;
                let selector = at(object, "/spec/selector/matchLabels")?;
                let port = at(object, "/spec/endpoints/0/port")?;
                ensure!(
                    port == at(service, "/spec/ports/0/name")?,
                    "no port {port} in the Service"
                );
                selects(selector, at(service, "/metadata/labels")?)
            }
            "PrometheusRule" => {
                ensure!(
                    object.get("spec") == Some(rules),
                    "the rules are not those of deploy/prometheus"
                );
                Ok(())
            }
            "ConfigMap" => check_dashboard(object),
            "SecurityContextConstraints" => check_scc(object, &set, pod),
            "Namespace" | "DaemonSet" | "ServiceAccount" | "ClusterRole" | "ClusterRoleBinding"
            | "Role" | "RoleBinding" => Ok(()),
            _ => bail!("nothing is promised of a {kind}"),
        };
        result.context(kind.to_owned())?;
    }
    Ok(())
}

struct Set<'a>(&'a [Value]);

impl<'a> Set<'a> {
    fn of(&self, wanted: &str) -> Vec<&'a Value> {
        self.0.iter().filter(|object| kind(object) == wanted).collect()
    }

    fn only(&self, wanted: &str) -> Result<&'a Value> {
        match self.of(wanted).as_slice() {
            [object] => Ok(object),
            all => bail!("{} objects of kind {wanted} instead of one", all.len()),
        }
    }
}

fn kind(object: &Value) -> &str {
    object.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn name(object: &Value) -> Option<&Value> {
    object.pointer("/metadata/name")
}

fn at<'a>(value: &'a Value, pointer: &str) -> Result<&'a Value> {
    value.pointer(pointer).with_context(|| format!("no {pointer}"))
}

/// Requires a value to be exactly this.
fn is(value: &Value, pointer: &str, expected: &Value) -> Result<()> {
    let found = at(value, pointer)?;
    ensure!(found == expected, "{pointer} is {found} instead of {expected}");
    Ok(())
}

fn texts(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn check_pod(case: &str, pod: &Value) -> Result<()> {
    let spec = at(pod, "/spec")?;
    for key in ["hostPID", "hostIPC", "hostNetwork", "initContainers"] {
        ensure!(spec.get(key).is_none(), "{key} is set");
    }
    is(spec, "/securityContext/runAsNonRoot", &json!(true))?;
    is(spec, "/securityContext/runAsUser", &json!(65532))?;
    is(spec, "/securityContext/runAsGroup", &json!(65532))?;
    let seccomp = at(spec, "/securityContext/seccompProfile")?;
    let allowed = [
        json!({"type": "RuntimeDefault"}),
        json!({"type": "Localhost", "localhostProfile": "profiles/finrace.json"}),
    ];
    ensure!(allowed.contains(seccomp), "seccompProfile is {seccomp}");

    let hosts =
        json!([{"name": "cgroup", "hostPath": {"path": "/sys/fs/cgroup", "type": "Directory"}}]);
    is(spec, "/volumes", &hosts)?;
    let containers = at(spec, "/containers")?.as_array().map_or(0, Vec::len);
    ensure!(containers == 1, "{containers} containers");
    check_container(case, at(spec, "/containers/0")?)
}

fn check_container(case: &str, container: &Value) -> Result<()> {
    let mut context = at(container, "/securityContext")?.clone();
    let added = context.pointer("/capabilities/add").map(texts).unwrap_or_default();
    let mut needed = BTreeSet::from(["BPF", "PERFMON"]);
    if MEMLOCK.contains(&case) {
        needed.insert("SYS_RESOURCE");
    }
    ensure!(added == needed, "capabilities are {added:?} instead of {needed:?}");
    if let Some(capabilities) = context.pointer_mut("/capabilities").and_then(Value::as_object_mut)
    {
        capabilities.remove("add");
    }
    let expected = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    ensure!(context == expected, "securityContext has {context} instead of {expected}");

    let mounts = json!([{"name": "cgroup", "mountPath": "/sys/fs/cgroup", "readOnly": true}]);
    is(container, "/volumeMounts", &mounts)?;
    is(container, "/args/0", &json!("serve"))?;
    is(container, "/args/1", &json!("--web.listen-address=:9502"))?;
    is(container, "/ports", &json!([{"name": "http", "containerPort": 9502}]))?;
    for (probe, path) in [("livenessProbe", "/-/healthy"), ("readinessProbe", "/-/ready")] {
        is(container, &format!("/{probe}/httpGet"), &json!({"path": path, "port": "http"}))?;
    }
    is(container, "/terminationMessagePolicy", &json!("FallbackToLogsOnError"))?;
    at(container, "/resources/requests/cpu")?;
    at(container, "/resources/limits/memory")?;
    ensure!(container.pointer("/resources/limits/cpu").is_none(), "a limit of the CPU");
    let field = |name, path| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let env = json!([
        field("FINRACE_KUBE_NODE", "spec.nodeName"),
        field("FINRACE_KUBE_NODE_IP", "status.hostIP"),
    ]);
    is(container, "/env", &env)
}

/// The rights at the API server are those that the arguments need, and no others.
fn check_rights(case: &str, set: &Set<'_>, pod: &Value) -> Result<()> {
    let arguments = texts(at(pod, "/spec/containers/0/args")?);
    let mut needed = BTreeSet::new();
    let mut watch =
        |resource: &str| needed.extend(["list", "watch"].map(|verb| format!("{verb} {resource}.")));
    if arguments.contains("--kube.source=apiserver") || arguments.contains("--kube.remote=pods") {
        watch("pods");
    }
    if arguments.iter().any(|argument| argument.starts_with("--kube.remote=")) {
        watch("services");
    }
    if arguments.contains("--kube.source=kubelet") {
        let part = if NODES_PROXY.contains(&case) { "proxy" } else { "pods" };
        needed.insert(format!("get nodes/{part}."));
    }
    let mut granted = BTreeSet::new();
    for rule in
        set.of("ClusterRole").into_iter().filter_map(|role| role.get("rules")?.as_array()).flatten()
    {
        for group in texts(at(rule, "/apiGroups")?) {
            for resource in texts(at(rule, "/resources")?) {
                let verbs = texts(at(rule, "/verbs")?);
                granted.extend(verbs.iter().map(|verb| format!("{verb} {resource}.{group}")));
            }
        }
    }
    ensure!(granted == needed, "rights are {granted:?} instead of {needed:?}");

    let account = at(pod, "/spec/serviceAccountName")?;
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        for binding in set.of(kind) {
            is(binding, "/subjects/0/name", account).context(kind)?;
            let role = at(binding, "/roleRef/name")?;
            let roles = set.of(kind.trim_end_matches("Binding"));
            ensure!(roles.iter().any(|made| name(made) == Some(role)), "no role {role}");
        }
    }
    let accounts = set.of("ServiceAccount");
    let has_account = accounts.iter().any(|made| name(made) == Some(account));
    ensure!(has_account || accounts.is_empty(), "no ServiceAccount {account}");
    Ok(())
}

fn check_scc(scc: &Value, set: &Set<'_>, pod: &Value) -> Result<()> {
    let wanted = texts(at(pod, "/spec/containers/0/securityContext/capabilities/add")?);
    let allowed = texts(at(scc, "/allowedCapabilities")?);
    ensure!(allowed == wanted, "allows {allowed:?}, and the pod has {wanted:?}");
    let name = at(scc, "/metadata/name")?;
    is(pod, "/metadata/annotations/openshift.io~1required-scc", name)?;
    let role = set.only("Role")?;
    is(role, "/rules/0/resourceNames", &json!([name]))?;
    is(role, "/rules/0/verbs", &json!(["use"]))
}

/// Checks that Grafana's sidecar loads it, and that the dashboard is ours.
fn check_dashboard(map: &Value) -> Result<()> {
    is(map, "/metadata/labels/grafana_dashboard", &json!("1"))?;
    let text = at(map, "/data/finrace.json")?.as_str().context("no text")?;
    let dashboard: Value = serde_json::from_str(text).context("finrace.json")?;
    let path = root().join("deploy/grafana/finrace.json");
    let original = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    ensure!(serde_json::from_str::<Value>(&original)? == dashboard, "not that of deploy/grafana");
    Ok(())
}

fn selects(selector: &Value, labels: &Value) -> Result<()> {
    let selector = selector.as_object().context("no selector")?;
    ensure!(!selector.is_empty(), "an empty selector");
    for (name, value) in selector {
        ensure!(labels.get(name) == Some(value), "nothing has the label {name}={value}");
    }
    Ok(())
}

fn has_port(port: &Value, pod: &Value) -> Result<()> {
    is(pod, "/spec/containers/0/ports/0/name", port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result for a set that is as promised, but for some changes.
    fn with(case: &str, changes: &[(&str, Value)]) -> String {
        let text = include_str!("promised.json");
        let mut list: Value = serde_json::from_str(text).unwrap();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            list.pointer_mut(parent).expect(parent)[key] = value.clone();
        }
        match check(case, list.as_array().unwrap(), &Value::Null) {
            Ok(()) => "fine".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn each_broken_promise_is_found() {
        let check = |pointer: &str, value: Value, expected: &str| {
            let found = with("kustomize base", &[(pointer, value)]);
            assert!(found.contains(expected), "{pointer}: {found}");
        };
        let spec = "/0/spec/template/spec";
        let container = &format!("{spec}/containers/0");
        let context = &format!("{container}/securityContext");
        check("/0/metadata/name", json!("finrace"), "fine");
        check(&format!("{context}/privileged"), json!(true), "privileged");
        check(&format!("{context}/allowPrivilegeEscalation"), json!(true), "securityContext");
        check(&format!("{context}/readOnlyRootFilesystem"), json!(false), "securityContext");
        check(&format!("{context}/capabilities/drop"), json!(["NET_RAW"]), "securityContext");
        check(&format!("{context}/capabilities/add"), json!(["BPF"]), "capabilities");
        let too_much = json!(["BPF", "PERFMON", "SYS_ADMIN"]);
        check(&format!("{context}/capabilities/add"), too_much, "SYS_ADMIN");
        let old = json!(["BPF", "PERFMON", "SYS_RESOURCE"]);
        check(&format!("{context}/capabilities/add"), old, "SYS_RESOURCE");
        check(&format!("{spec}/hostPID"), json!(true), "hostPID");
        check(&format!("{spec}/hostNetwork"), json!(true), "hostNetwork");
        check(&format!("{spec}/securityContext/runAsUser"), json!(0), "runAsUser");
        check(
            &format!("{spec}/securityContext/seccompProfile/type"),
            json!("Unconfined"),
            "seccomp",
        );
        check(&format!("{spec}/volumes/0/hostPath/path"), json!("/"), "volumes");
        check(&format!("{container}/volumeMounts/0/readOnly"), json!(false), "volumeMounts");
        check(&format!("{container}/resources/limits/cpu"), json!("1"), "limit of the CPU");
        check(&format!("{container}/livenessProbe/httpGet/path"), json!("/"), "livenessProbe");
        check(&format!("{container}/ports/0/name"), json!("web"), "ports");
        let without = json!(["serve", "--web.listen-address=:9502", "--kube.source=none"]);
        check(&format!("{container}/args"), without, "rights are");
        check("/0/spec/template/metadata/labels", json!({"a": "b"}), "nothing has the label");
        check("/1/rules/0/verbs", json!(["list", "watch", "delete"]), "delete pods");
        check("/1/rules/0/resources", json!(["*"]), "rights are");
        check("/2/subjects/0/name", json!("default"), "subjects");
        check("/2/roleRef/name", json!("cluster-admin"), "no role");
        check("/3/metadata/name", json!("other"), "no ServiceAccount");
        check("/4/spec/selector/matchLabels", json!({"app": "x"}), "PodMonitor");
        check("/4/spec/podMetricsEndpoints/0/port", json!("metrics"), "PodMonitor");
        check("/5/spec/selector", json!({}), "an empty selector");
        check("/6/spec/endpoints/0/port", json!("metrics"), "no port");
        check("/3/kind", json!("Secret"), "nothing is promised of a Secret");
    }

    #[test]
    fn more_rights_only_where_they_are_meant() {
        let container = "/0/spec/template/spec/containers/0";
        let add = format!("{container}/securityContext/capabilities/add");
        let args = format!("{container}/args");
        let memlock = [(&*add, json!(["BPF", "PERFMON", "SYS_RESOURCE"]))];
        assert_eq!(with("kustomize linux-5.10", &memlock), "fine");
        assert!(with("helm default", &memlock).contains("SYS_RESOURCE"));
        assert!(with("kustomize linux-5.10", &[]).contains("SYS_RESOURCE"));

        let kubelet = |resource| {
            let of_kubelet =
                json!(["serve", "--web.listen-address=:9502", "--kube.source=kubelet"]);
            [
                (&*args, of_kubelet),
                ("/1/rules/0/resources", json!([resource])),
                ("/1/rules/0/verbs", json!(["get"])),
            ]
        };
        let (pods, proxy) = (kubelet("nodes/pods"), kubelet("nodes/proxy"));
        assert_eq!(with("kustomize kubelet", &pods), "fine");
        assert!(with("kustomize kubelet", &proxy).contains("get nodes/proxy"));
        assert!(with("helm kubelet", &proxy).contains("get nodes/proxy"));
        assert_eq!(with("kustomize kubelet-proxy", &proxy), "fine");
        assert_eq!(with("helm kubelet before 1.33", &proxy), "fine");
        assert!(with("helm kubelet before 1.33", &pods).contains("get nodes/pods"));
    }

    #[test]
    fn seccomp_allows_no_namespaces_and_changes_no_directories() {
        let profile = include_str!("../../../../deploy/seccomp/finrace.json");
        let profile: Value = serde_json::from_str(profile).unwrap();
        // What is not allowed seems not to exist, so that libraries do without clone3.
        is(&profile, "/defaultAction", &json!("SCMP_ACT_ERRNO")).unwrap();
        is(&profile, "/defaultErrnoRet", &json!(38)).unwrap();
        let rules = profile["syscalls"].as_array().unwrap();
        let (filtered, plain): (Vec<_>, Vec<_>) =
            rules.iter().partition(|rule| rule.get("args").is_some());
        let plain: BTreeSet<&str> = plain.iter().flat_map(|rule| texts(&rule["names"])).collect();
        for name in [
            "clone",
            "clone3",
            "fork",
            "vfork",
            "unshare",
            "setns",
            "mount",
            "chroot",
            "pivot_root",
            "open",
            "creat",
            "mkdir",
            "mkdirat",
            "mknod",
            "mknodat",
            "link",
            "linkat",
            "symlink",
            "symlinkat",
            "rename",
            "renameat",
            "renameat2",
            "rmdir",
            "unlink",
            "unlinkat",
        ] {
            assert!(!plain.contains(name), "{name}");
        }
        let [clone] = filtered.as_slice() else { panic!("{filtered:?}") };
        is(clone, "/names", &json!(["clone"])).unwrap();
        // NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
        let flags = json!({
            "index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ",
        });
        is(clone, "/args", &json!([flags])).unwrap();
    }
}
