//! `cargo xtask dashboard`: every query of the dashboard and of docs/fleet.md, run by a real
//! Prometheus on what a real finrace says about real races. Each must succeed, and return
//! rows.
//!
//! Two of them watch: one with classic histograms, one with native ones, on which the dashboard has to
//! show the same.
//!
//! What is rightly empty on a healthy host has to have rows on one that is not. That host is made
//! up: it says that it is blind, loses records and knows no names.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, now, server_port};
use xtask::{report, root};

use super::board::Board;
use super::endpoint::Endpoint;
use super::queries::{Choice, Query, of_page};
use super::stand::{self, Pair};
use super::{Daemon, OPTIONS, PrometheusArgs, prepare, rules};
use crate::servers::load::during;
use crate::servers::metrics::Serving;

/// How long verdicts and rates may take to come.
const PATIENCE: Duration = Duration::from_mins(2);

/// Time between two checks.
const PAUSE: Duration = Duration::from_secs(5);

const PAGE: &str = "docs/fleet.md";

/// All names, as finrace's own tests have them.
const METRICS: &str = include_str!("../../../../agent/src/golden/busy.text004.txt");

/// The made-up host, and one that does not answer.
const SICK: &str = "made-up.*";

/// Panels that are empty where finrace is healthy.
const EMPTY: [&str; 6] = [
    "Hosts down",
    "Hosts blind or lossy",
    "Hosts that are blind or lose records",
    "Records lost a second",
    "Blind spots",
    "Other bytes that met a closing connection",
];

pub(crate) fn run(args: PrometheusArgs) -> Result<()> {
    let finrace = args.finrace()?;
    let directory = prepare("dashboard")?;
    let read = |path: &str| fs::read_to_string(root().join(path)).with_context(|| path.to_owned());
    let board = Board::parse(&read("deploy/grafana/finrace.json")?)?;
    let page_text = read(PAGE)?;
    let page = of_page(PAGE, &page_text);
    ensure!(!page.is_empty(), "no queries in {PAGE}");
    let rules = rules()?;
    let queries = [board.queries(), page].concat();
    let mut faults = [board.faults(), unknown_names(&queries, &rules)].concat();

    let software = stand::software(&directory)?;
    let racing = Pair::start(directory.join("racing"), &software, None, "")?;
    // A close call: now one side closes first, now the other, so that both timeouts are known.
    let close = Pair::start(directory.join("close"), &software, None, "keepalive_timeout 2020ms;")?;
    let serving = Serving::start(&finrace, &directory)?;
    let arguments = ["--metrics.native-histograms"];
    let native = Serving::start_with(&finrace, "native", &arguments, &directory)?;
    let start = now();
    let sick = Endpoint::start(move |_| sick(start.elapsed().as_secs()))?;
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port()?));
    let jobs = [
        ("finrace", serving.address),
        ("native", native.address),
        ("made-up", sick.address),
        ("made-up-and-down", nobody),
    ];
    let local = Daemon::prometheus(&jobs, &rules, None, &directory)?;
    let global = federate(&page_text, local.address, &directory)?;
    let scene = Scene { local, global };

    let [hits, others] = racing.racing();
    let loads = [hits, others, close.idle()];
    let (found, _) = during(&loads, || {
        let end = now() + PATIENCE;
        loop {
            let found = scene.check(&board, &queries)?;
            if found.is_empty() || now() > end {
                return Ok(found);
            }
            sleep(PAUSE);
        }
    })?;
    faults.extend(found);
    for fault in &faults {
        report(&format!("FAIL {fault}"));
    }
    ensure!(faults.is_empty(), "{} queries are wrong", faults.len());
    report(&format!("{} queries, all of them with rows", queries.len()));
    Ok(())
}

/// The global Prometheus of the page: its configuration is on it, only targets and times are ours.
fn federate(page: &str, local: SocketAddr, directory: &Path) -> Result<Daemon> {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut found = blocks.filter(|block| block.contains("/federate"));
    let conf = found.next().with_context(|| format!("no federation in {PAGE}"))?;
    let (head, _) = conf.split_once("- targets: ").context("no targets in the federation")?;
    let conf = format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n{head}- targets: ['{local}']\n"
    );
    let directory = setup::empty_directory(directory.join("global"))?;
    Daemon::start("prometheus", &conf, &OPTIONS, &directory)
}

/// Where the questions are asked.
struct Scene {
    local: Daemon,
    /// It has only what it federates.
    global: Daemon,
}

impl Scene {
    /// What is wrong with the answers, while the races go on.
    fn check(&self, board: &Board, queries: &[Query]) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for query in queries {
            faults.extend(self.fault(query).unwrap_or_else(|error| Some(format!("{error:#}"))));
        }
        for (name, selector, label) in board.lookups() {
            let selector = Choice::all("finrace").apply(selector);
            let values = self
                .local
                .api(&format!("label/{label}/values"), &[("match[]", &selector)])
                .with_context(|| format!("${name}"))?;
            if values.as_array().is_none_or(Vec::is_empty) {
                faults.push(format!("${name}: no values"));
            }
        }
        // Checks that this would find anything.
        for (from, to) in [
            ("finrace_verdict", "finrace_verdicts"),
            ("count by", "count bye"),
            ("job=~", "jobs=~"),
            ("workload_peer:", "peer:"),
        ] {
            let query = queries.iter().find(|query| query.expr.contains(from));
            let mut query = query.with_context(|| format!("no query with `{from}`"))?.clone();
            query.expr = query.expr.replace(from, to);
            let is_noticed = self.fault(&query).map_or(true, |fault| fault.is_some());
            ensure!(is_noticed, "`{to}` in place of `{from}` is not noticed");
        }
        Ok(faults)
    }

    /// What is wrong with one of them.
    fn fault(&self, query: &Query) -> Result<Option<String>> {
        // Even without it there has to be something.
        let expr = query.expr.replace(" or vector(0)", "");
        let query = &Query { expr, ..query.clone() };
        let rows = |choice| query.rows(&self.local, choice);
        let fault = |what: &str| Ok(Some(format!("{}: {what}: {}", query.place, query.expr)));
        let all = Choice::all("finrace");
        if EMPTY.contains(&&*query.place) {
            // What a kernel lacks must show on a healthy host, too.
            rows(all)?;
            if rows(Choice::all(SICK))? == 0 {
                return fault("no rows where there is something to show");
            }
        } else if rows(all)? == 0 {
            return fault("no rows");
        } else if query.expr.contains("$job") && rows(Choice::all("native"))? == 0 {
            return fault("no rows of native histograms");
        }
        let nobody = [
            ("$peer", Choice { peer: "nobody", ..all }),
            ("$client", Choice { client: "nobody", ..all }),
        ];
        for (variable, nobody) in nobody {
            if query.expr.contains(variable) && rows(nobody)? > 0 {
                return fault(&format!("rows, whatever {variable} is"));
            }
        }
        if query.is_recorded() && query.rows(&self.global, all)? == 0 {
            return fault("no rows where it is federated to");
        }
        Ok(None)
    }
}

/// Queries with names that nothing has, even where a zero takes the place of nothing.
fn unknown_names(queries: &[Query], rules: &str) -> Vec<String> {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for line in METRICS.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        else {
            continue;
        };
        known.insert(name.to_owned());
        if kind == "histogram" {
            known.extend(["_bucket", "_count", "_sum"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    let records = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: "));
    known.extend(records.map(str::to_owned));
    let unknown = queries.iter().flat_map(|query| {
        let unknown = query.metrics().into_iter().filter(|name| !known.contains(*name));
        unknown.map(|name| format!("{}: no metric {name}", query.place)).collect::<Vec<_>>()
    });
    unknown.collect()
}

/// What an unhealthy host says about itself, and Kubernetes about its pods.
fn sick(seconds: u64) -> String {
    format!(
        "finrace_incidents_total{{role=\"client\",peer=\"10.0.0.5:80\",class=\"farewell\"}} {seconds}\n\
         finrace_lost_events_total{{reason=\"races_ring_full\"}} {seconds}\n\
         finrace_hook_info{{purpose=\"write\",hook=\"none\",attached_to=\"\",program=\"\"}} 1\n\
         finrace_blind_spot_info{{purpose=\"write\",not_seen=\"process\"}} 1\n\
         finrace_missing_field_info{{field=\"tcp_sock.rcv_wup\"}} 1\n\
         finrace_attribution_up{{source=\"apiserver\"}} 0\n\
         kube_pod_info{{namespace=\"shop\",pod=\"cart-7d4b9\",pod_ip=\"127.0.0.1\",\
         created_by_kind=\"ReplicaSet\",created_by_name=\"cart-7d4b9\",host_network=\"false\"}} 1\n\
         kube_service_info{{namespace=\"shop\",service=\"cart\",cluster_ip=\"127.0.0.1\"}} 1\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_ones_are_there() {
        let board = Board::parse(include_str!("../../../../deploy/grafana/finrace.json")).unwrap();
        let queries = board.queries();
        for title in EMPTY {
            assert!(queries.iter().any(|query| query.place == title), "{title}");
        }
    }

    #[test]
    fn names() {
        let check = |expr: &str, expected: &[&str]| {
            let query = Query { place: "p".to_owned(), expr: expr.to_owned(), is_instant: true };
            assert_eq!(unknown_names(&[query], "    - record: a:finrace_x:sum\n"), expected);
        };
        check("rate(finrace_races_total[5m]) + process_open_fds", &[]);
        check("finrace_reuse_gap_seconds_bucket or finrace_reuse_gap_seconds", &[]);
        check("topk(1, a:finrace_x:sum)", &[]);
        check("finrace_race_total or vector(0)", &["p: no metric finrace_race_total"]);
        check("b:finrace_x:sum", &["p: no metric b:finrace_x:sum"]);
        check("finrace_races_total_bucket", &["p: no metric finrace_races_total_bucket"]);
    }
}
