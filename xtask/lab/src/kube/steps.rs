//! What happens to clusters, and the names that must come out.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use xtask::setup::run;

use super::manifests;
use super::pods::{Driver, NODE, Pod, Spec};
use super::scene::{Port, REMOTES, Race, SERVICE, SERVICE_PORTS, Scene};
use crate::cgroup::remove_tree;

pub(super) type Step = (&'static str, fn(&mut Scene, &mut Cast) -> Result<()>);

/// Run in this order; each leaves everything in order for the next.
pub(super) const ALL: &[Step] = &[
    ("names", names),
    ("only-own", only_own),
    ("short-lived", short_lived),
    ("churn", churn),
    ("no-server", no_server),
    ("gone", gone),
    ("no-rights", no_rights),
    ("renewed-token", renewed_token),
    ("no-token", no_token),
    ("still-named", still_named),
];

/// The pods that take part throughout.
pub(super) struct Cast {
    /// What the container that is long gone has lost, and its name.
    short_lived: Option<(Race, String)>,
    web: (Pod, PathBuf),
    db: Pod,
    /// Pods of this node that there are now.
    own: u32,
}

const WEB: &str = "shop/web/web-7c9d8b5f64-x2x4k/nginx";
const API: &str = "shop/api/api-5f6d7c8b99-q8z7t";

/// Some pods, then the agents, whose pods may come before or after them.
pub(super) fn set(scene: &mut Scene, finrace: &Path) -> Result<Cast> {
    manifests::grant(&scene.cluster)?;
    for namespace in ["shop", "logging", "batch"] {
        let object = json!({ "metadata": { "name": namespace } });
        scene.cluster.create("/api/v1/namespaces", &object)?;
    }
    let api = Pod::create(
        &scene.cluster,
        Spec {
            owner: Some(("ReplicaSet", "api-5f6d7c8b99".into())),
            driver: Driver::Cgroupfs,
            class: None,
            ..Spec::new("shop", "api-5f6d7c8b99-q8z7t", scene.address(101))
        },
    )?;
    create_service(scene)?;
    let cgroup = scene.cgroups.make(&api, "main")?;
    scene.serve("api", Some(&cgroup), &[scene.address(101), SERVICE])?;
    // As if on the other node: in no pod's cgroup.
    Pod::create(
        &scene.cluster,
        Spec {
            node: "node-b",
            owner: Some(("StatefulSet", "search".into())),
            ..Spec::new("logging", "search-0", scene.address(102))
        },
    )?;
    scene.serve("search", None, &[scene.address(102)])?;

    for remote in REMOTES {
        scene.start_agent(finrace, remote, &[])?;
    }
    scene.gauge("up", 1.0)?;

    let web = Pod::create(
        &scene.cluster,
        Spec {
            owner: Some(("ReplicaSet", "web-7c9d8b5f64".into())),
            containers: &["nginx"],
            sidecar: Some("mesh"),
            ..Spec::new("shop", "web-7c9d8b5f64-x2x4k", scene.address(11))
        },
    )?;
    let cgroup = scene.cgroups.make(&web, "nginx")?;
    let db = Spec {
        owner: Some(("StatefulSet", "db".into())),
        ..Spec::new("shop", "db-0", scene.address(16))
    };
    let db = Pod::create(&scene.cluster, db)?;
    Ok(Cast { short_lived: None, web: (web, cgroup), db, own: 3 })
}

fn create_service(scene: &Scene) -> Result<()> {
    let port = |port: u16| json!({ "name": format!("p{port}"), "port": port });
    let ports: Vec<Value> = SERVICE_PORTS.map(port).collect();
    let service = json!({
        "metadata": { "name": "api" },
        "spec": { "clusterIP": SERVICE.to_string(), "ports": ports, "selector": { "app": "api" } },
    });
    scene.cluster.create("/api/v1/namespaces/shop/services", &service)?;
    Ok(())
}

/// All kinds of owners and cgroups, and both ends.
fn names(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    let (api, search) = (scene.address(101), scene.address(102));
    let (web, cgroup) = &cast.web;
    let race = scene.race(cgroup, web.spec.ip, api)?;
    scene.expect("client", race, WEB, ["", "", &format!("{API}/-")])?;
    scene.expect("server", race, &format!("{API}/main"), ["", "", &WEB.replace("nginx", "-")])?;

    let mesh = scene.cgroups.make(web, "mesh")?;
    // At other ports the address may belong to something else.
    for (port, remote) in [(Port::Service, "shop/api/-/-"), (Port::Plain, "")] {
        let race = scene.race_at(port, &mesh, web.spec.ip, SERVICE)?;
        scene.expect("client", race, &WEB.replace("nginx", "mesh"), ["", remote, remote])?;
    }

    let plain = |name, host| Spec::new("shop", name, scene.address(host));
    let hash = "b53dfa9e2dc9b890f7fadb2770857b03";
    let specs = [
        (
            "logging/shipper/shipper-9kq2f/main",
            Spec {
                owner: Some(("DaemonSet", "shipper".into())),
                driver: Driver::Cgroupfs,
                ..Spec::new("logging", "shipper-9kq2f", scene.address(12))
            },
        ),
        (
            // All pods on the node's network share its address, so it names none of them.
            "kube-system/proxy/proxy-node-a/main",
            Spec {
                owner: Some(("Node", NODE.into())),
                driver: Driver::Cgroupfs,
                mirror_of: Some(hash),
                ..Spec::new("kube-system", "proxy-node-a", scene.address(1))
            },
        ),
        ("shop/once/once/main", Spec { class: Some("besteffort"), ..plain("once", 14) }),
        (
            // Like a hand-made ReplicaSet: its name does not end in a hash.
            "shop/cache-v2/cache-v2-wx5zz/main",
            Spec { owner: Some(("ReplicaSet", "cache-v2".into())), ..plain("cache-v2-wx5zz", 15) },
        ),
    ];
    for (name, spec) in specs {
        let is_of_host = spec.mirror_of.is_some();
        let (race, _) = start(scene, cast, spec, search)?;
        scene.expect("client", race, name, ["", "", "logging/search/search-0/-"])?;
        let remote = if is_of_host { String::new() } else { name.replace("/main", "/-") };
        scene.expect_clients(race, &remote)?;
    }
    let cgroup = scene.cgroups.make(&cast.db, "main")?;
    let race = scene.race(&cgroup, cast.db.spec.ip, search)?;
    scene.expect("client", race, "shop/db/db-0/main", ["", "", "logging/search/search-0/-"])
}

/// Creates a pod of this node whose one container begins to race.
fn start(scene: &mut Scene, cast: &mut Cast, spec: Spec, to: Ipv4Addr) -> Result<(Race, Pod)> {
    let pod = Pod::create(&scene.cluster, spec)?;
    cast.own += 1;
    let cgroup = scene.cgroups.make(&pod, "main")?;
    Ok((scene.race(&cgroup, pod.spec.ip, to)?, pod))
}

/// Pods of other nodes are not this agent's, even where their containers seem to run here.
fn only_own(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    scene.own_pods(cast.own)?;
    let spec = Spec { node: "node-b", ..Spec::new("shop", "stranger", scene.address(17)) };
    let pod = Pod::create(&scene.cluster, spec)?;
    let cgroup = scene.cgroups.make(&pod, "main")?;
    let race = scene.race(&cgroup, pod.spec.ip, scene.address(101))?;
    scene.expect("client", race, &short(&pod), ["", "", &format!("{API}/-")])?;
    scene.own_pods(cast.own)
}

/// The name of a container whose pod is not known.
fn short(pod: &Pod) -> String {
    let id: String = pod.container_id("main").chars().take(12).collect();
    format!("-/-/-/{id}")
}

/// A job's container ends before its race is reported, and its pod is deleted at once.
fn short_lived(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    // Its name contains the minute that it was due to start.
    let seconds: u64 = run(Command::new("date").arg("+%s"))?.trim().parse()?;
    let job = format!("nightly-{}", seconds / 60);
    let name = format!("{job}-7xv9k");
    let spec = Spec {
        owner: Some(("Job", job.into())),
        class: Some("besteffort"),
        ..Spec::new("batch", &name, scene.address(13))
    };
    let pod = Pod::create(&scene.cluster, spec)?;
    let cgroup = scene.cgroups.make(&pod, "main")?;
    let to = scene.address(102);
    let (race, mut process) = scene.start_race(Port::Plain, &cgroup, pod.spec.ip, to, 1)?;
    process.wait(Duration::from_secs(30))?;
    remove_tree(&cgroup);
    pod.delete(&scene.cluster)?;
    ensure!(!cgroup.exists(), "{}: still there", cgroup.display());
    let name = format!("batch/nightly/{name}/main");
    scene.expect("client", race, &name, ["", "", "logging/search/search-0/-"])?;
    cast.short_lived = Some((race, name));
    Ok(())
}

/// The same name, but another uid, other containers, and here another owner, too.
fn churn(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    cast.db.delete(&scene.cluster)?;
    cast.own -= 1;
    let spec = Spec { owner: Some(("StatefulSet", "db-v2".into())), ..cast.db.spec.clone() };
    let (race, pod) = start(scene, cast, spec, scene.address(101))?;
    cast.db = pod;
    scene.expect("client", race, "shop/db-v2/db-0/main", ["", "", &format!("{API}/-")])?;
    scene.own_pods(cast.own)
}

/// What is known stays known; then everything goes on.
fn no_server(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    scene.cluster.stop_api();
    scene.gauge("up", 0.0)?;
    let (web, cgroup) = &cast.web;
    let race = scene.race(cgroup, web.spec.ip, scene.address(101))?;
    scene.expect("client", race, WEB, ["", "", &format!("{API}/-")])?;
    scene.cluster.start_api()?;
    scene.gauge("up", 1.0)?;
    new_pod(scene, cast, "after-restart", 18)
}

/// A new pod gets its names.
fn new_pod(scene: &mut Scene, cast: &mut Cast, name: &str, host: u8) -> Result<()> {
    let spec = Spec::new("shop", name, scene.address(host));
    let (race, _) = start(scene, cast, spec, scene.address(101))?;
    let client = format!("shop/{name}/{name}/main");
    scene.expect("client", race, &client, ["", "", &format!("{API}/-")])
}

/// While the agents are stopped, pods come and go and the server forgets what came before.
fn gone(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    let spec = Spec::new("shop", "unseen-end", scene.address(19));
    let ending = Pod::create(&scene.cluster, spec)?;
    cast.own += 1;
    scene.own_pods(cast.own)?;
    let before = scene.errors("gone")?;
    let version = scene.cluster.get("/api/v1/pods?limit=1")?;
    let version = version.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    let version = version.unwrap_or_default().to_owned();

    scene.signal(Signal::STOP)?;
    let changed = (|| {
        // The first restart ends the watches, or else the changes would wait in their sockets; the second
        // begins with what there is then.
        scene.cluster.restart_api()?;
        ending.delete(&scene.cluster)?;
        let spec = Spec::new("shop", "unseen-begin", scene.address(20));
        let begun = Pod::create(&scene.cluster, spec)?;
        scene.cluster.restart_api().map(|()| begun)
    })();
    scene.signal(Signal::CONT)?;
    let begun = changed?;
    ensure!(scene.cluster.is_gone(&version)?, "the server still knows version {version}");
    let cgroup = scene.cgroups.make(&begun, "main")?;
    let race = scene.race(&cgroup, begun.spec.ip, scene.address(101))?;
    let client = "shop/unseen-begin/unseen-begin/main";
    scene.expect("client", race, client, ["", "", &format!("{API}/-")])?;
    scene.own_pods(cast.own)?;
    scene.more_errors("gone", &before)?;
    scene.gauge("up", 1.0)
}

/// Without rights the agents say so and call new containers by their ids.
fn no_rights(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    let before = scene.errors("forbidden")?;
    manifests::revoke(&scene.cluster)?;
    // A watch that is open goes on until it ends.
    scene.cluster.restart_api()?;
    scene.more_errors("forbidden", &before)?;
    scene.gauge("up", 0.0)?;
    let (race, pod) =
        start(scene, cast, Spec::new("shop", "unnamed", scene.address(21)), scene.address(101))?;
    scene.expect("client", race, &short(&pod), ["", "", &format!("{API}/-")])?;
    manifests::grant(&scene.cluster)?;
    scene.gauge("up", 1.0)?;
    new_pod(scene, cast, "named-again", 22)
}

/// The file has a new token before the old one ends: no request is refused.
fn renewed_token(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    let before = scene.errors("unauthorized")?;
    scene.renew_token("second")?;
    scene.cluster.revoke("first")?;
    scene.cluster.restart_api()?;
    new_pod(scene, cast, "after-renewal", 23)?;
    scene.gauge("up", 1.0)?;
    let after = scene.errors("unauthorized")?;
    ensure!(after == before, "requests were not authorized: {before:?}, then {after:?}");
    Ok(())
}

/// The token ends before a new one comes.
fn no_token(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    let before = scene.errors("unauthorized")?;
    scene.cluster.revoke("second")?;
    scene.cluster.restart_api()?;
    scene.more_errors("unauthorized", &before)?;
    scene.gauge("up", 0.0)?;
    scene.renew_token("third")?;
    scene.gauge("up", 1.0)?;
    new_pod(scene, cast, "after-refusal", 24)
}

/// After all that the job's row has its names, and nothing was lost.
fn still_named(scene: &mut Scene, cast: &mut Cast) -> Result<()> {
    if let Some((race, name)) = &cast.short_lived {
        scene.expect("client", *race, name, ["", "", "logging/search/search-0/-"])?;
    }
    for agent in &scene.agents {
        let lost = agent.scrape()?.sum("finrace_lost_events_total", &[]);
        ensure!(lost < 0.5, "{lost} records lost");
    }
    Ok(())
}
