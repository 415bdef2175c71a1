//! True races, which must be counted: once where two views of a failure meet, and as many in a
//! real Prometheus as were made.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::setup::{self, until};

use super::stage::{Stage, write};

/// Client, router and server, each in a namespace; the router translates a virtual address to the
/// server's, and the client's to its own. No address or port of one end's view is in the other's.
struct Nat {
    names: [String; 3],
}

const CLIENT: &str = "10.66.1.2";
const VIRTUAL: &str = "10.66.9.9";
const ROUTER: &str = "10.66.2.1";
const SERVER: &str = "10.66.2.2";

impl Nat {
    fn new(virtual_port: u16, server_port: u16) -> Result<Self> {
        let nat = Self { names: ["c", "r", "s"].map(|end| format!("look-nat-{end}")) };
        nat.remove(); // of an interrupted run
        let script = format!(
            "set -e
            ip netns add $1; ip netns add $2; ip netns add $3
            ip -n $1 link add wan type veth peer name near netns $2
            ip -n $3 link add wan type veth peer name far netns $2
            ip -n $1 address add {CLIENT}/24 dev wan
            ip -n $2 address add 10.66.1.1/24 dev near
            ip -n $2 address add {ROUTER}/24 dev far
            ip -n $3 address add {SERVER}/24 dev wan
            for end in $1:wan $2:near $2:far $3:wan; do
                ip -n ${{end%:*}} link set ${{end#*:}} up
            done
            ip -n $1 route add default via 10.66.1.1
            ip netns exec $2 sysctl -q net.ipv4.ip_forward=1
            ip netns exec $2 iptables -t nat -A PREROUTING -d {VIRTUAL} -p tcp \
                --dport {virtual_port} -j DNAT --to-destination {SERVER}:{server_port}
            ip netns exec $2 iptables -t nat -A POSTROUTING -o far -j MASQUERADE --random"
        );
        setup::run(Command::new("sh").args(["-c", &script, "nat"]).args(&nat.names))?;
        Ok(nat)
    }

    fn remove(&self) {
        for name in &self.names {
            // Before the run it usually does not exist.
            setup::run(Command::new("ip").args(["netns", "delete", name])).ok();
        }
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.remove();
    }
}

/// One race through address translation, both ends of it on this host: one line, both views.
pub(super) fn nat(stage: &mut Stage<'_>) -> Result<()> {
    let (virtual_port, server_port) = (stage.race_port()?, stage.race_port()?);
    let nat = Nat::new(virtual_port, server_port)?;
    let [client, _, server] = &nat.names;
    let arguments = [SERVER, &server_port.to_string(), "1"];
    let _server = stage.serve("server", stage.python(Some(server), "race_serve", arguments))?;
    let arguments = [VIRTUAL, &virtual_port.to_string(), "1.3", "1"];
    setup::run(&mut stage.python(Some(client), "race_get", arguments))?;
    stage.exactly(
        1,
        virtual_port,
        format!(
            "event=race class=stale_write role=client outcome=reset bytes=200 \
             gap_seconds=1.25..1.7 local={CLIENT}:* peer={VIRTUAL}:{virtual_port} \
             other_view.class=late_request other_view.role=server \
             other_view.local={SERVER}:{server_port} other_view.peer={ROUTER}:*"
        ),
    );
    stage.exactly(1, virtual_port, "event=race");
    stage.none(server_port, "event=race");
    Ok(())
}

/// How long programs may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Races made for Prometheus to count.
const RACES: usize = 5;

/// A real Prometheus scrapes `finrace serve` and knows the number of races.
pub(super) fn prometheus(stage: &mut Stage<'_>) -> Result<()> {
    let (raced, agent, own) = (stage.race_port()?, stage.port()?, stage.port()?);
    let mut serve = Command::new(&stage.kit.finrace);
    serve.args(["serve", "--web.listen-address", &format!("127.0.0.1:{agent}")]);
    let finrace = stage.spawn("finrace", serve)?;
    let metrics = format!("http://127.0.0.1:{agent}/metrics");
    let ready = format!("http://127.0.0.1:{agent}/-/ready");
    until("finrace is ready", PATIENCE, || fetch(&ready, &[]).map(|_| true))
        .with_context(|| format!("finrace serve said: {}", finrace.output().unwrap_or_default()))?;

    let conf = stage.dir.join("prometheus.yml");
    write(
        &conf,
        format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}
scrape_configs: [{{ job_name: finrace, static_configs: [{{ targets: ['127.0.0.1:{agent}'] }}] }}]
"
        ),
    )?;
    let mut server = Command::new("prometheus");
    server.arg(format!("--config.file={}", conf.display()));
    server.arg(format!("--storage.tsdb.path={}", stage.dir.join("data").display()));
    server.arg(format!("--web.listen-address=127.0.0.1:{own}"));
    let _prometheus = stage.listen("prometheus", server, own)?;

    let arguments = ["127.0.0.1", &raced.to_string(), "0.5"];
    let _server = stage.serve("server", stage.python(None, "race_serve", arguments))?;
    let arguments = ["127.0.0.1", &raced.to_string(), "0.8", &RACES.to_string()];
    setup::run(&mut stage.python(None, "race_get", arguments))?;

    let query = format!("http://127.0.0.1:{own}/api/v1/query?query=finrace_races_total");
    let mut answer = Value::Null;
    until("Prometheus knows of the races", PATIENCE, || {
        answer = serde_json::from_str(&fetch(&query, &[])?)?;
        Ok(races_on(&answer, raced) >= RACES)
    })
    .with_context(|| format!("last answer: {answer}"))?;
    // A failure counted twice would show in the next scrapes.
    sleep(Duration::from_secs(3));
    answer = serde_json::from_str(&fetch(&query, &[])?)?;
    let counted = races_on(&answer, raced);
    ensure!(counted == RACES, "Prometheus counts {counted} races of {RACES}: {answer}");
    stage.exactly(RACES, raced, "event=race role=client class=stale_write");
    stage.exactly(RACES, raced, "event=race");

    let text = stage.dir.join("metrics.txt");
    write(&text, fetch(&metrics, &[])?)?;
    setup::run(Command::new("sh").args(["-c", r#"promtool check metrics <"$0""#]).arg(&text))?;
    let accept = ["--include", "--header", "Accept: application/openmetrics-text; version=1.0.0"];
    let open = fetch(&metrics, &accept)?;
    let is_open = open.to_lowercase().contains("content-type: application/openmetrics-text")
        && open.ends_with("# EOF\n");
    ensure!(is_open, "not OpenMetrics: {open}");
    finrace.stop()?;
    Ok(())
}

/// The races in an instant vector whose series name this port, as a label or at a label's end.
fn races_on(answer: &Value, port: u16) -> usize {
    let series = answer.pointer("/data/result").and_then(Value::as_array);
    let (port, end) = (port.to_string(), format!(":{port}"));
    let is_ours = |series: &&Value| {
        let labels = series.get("metric").and_then(Value::as_object);
        let mut values = labels.into_iter().flat_map(|l| l.values().filter_map(Value::as_str));
        values.any(|text| text == port || text.ends_with(&end))
    };
    let value = |series: &Value| series.pointer("/value/1")?.as_str()?.parse::<usize>().ok();
    series.into_iter().flatten().filter(is_ours).filter_map(value).sum()
}

fn fetch(url: &str, arguments: &[&str]) -> Result<String> {
    let mut curl = Command::new("curl");
    setup::run(curl.args(["--silent", "--show-error", "--fail"]).args(arguments).arg(url))
}
