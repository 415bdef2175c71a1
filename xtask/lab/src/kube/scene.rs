//! What the steps share: the cluster, two networks, pods with processes that race, and agents.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use xtask::setup::{Process, run, until};

use super::cluster::Cluster;
use super::pods::{Cgroups, NODE};
use crate::link::{DEVICE, Link, command_in};
use crate::servers::metrics::{Metrics, Serving};

/// Time for names to come, and to come back: longer than the agent waits between two attempts.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// The Service `api`, which is just another address that the server listens on.
pub(super) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// One way, so that client and server see a FIN at different times.
const DELAY: Duration = Duration::from_millis(2);

/// The ports that servers listen on; the first of them are those of the Service.
const PORTS: RangeInclusive<u16> = 8_001..=8_060;
pub(super) const SERVICE_PORTS: RangeInclusive<u16> = 8_001..=8_010;

/// Last parts of addresses in the clients' namespace.
pub(super) const CLIENTS: RangeInclusive<u8> = 11..=50;

pub(super) struct Scene {
    // Dropped in this order: processes leave before their cgroups and networks do.
    processes: Vec<Process>,
    pub(super) agents: Vec<Agent>,
    pub(super) cgroups: Cgroups,
    link: Link,
    pub(super) cluster: Cluster,
    pub(super) directory: PathBuf,
    /// Ports not used yet: of the Service, and of no Service.
    ports: [RangeInclusive<u16>; 2],
}

impl Scene {
    pub(super) fn new(cluster: Cluster, directory: PathBuf) -> Result<Self> {
        let link = Link::new("kube", DELAY)?;
        let script = directory.join("traffic.py");
        fs::write(&script, include_str!("traffic.py")).context("writing traffic.py")?;
        let scene = Self {
            processes: Vec::new(),
            agents: Vec::new(),
            cgroups: Cgroups::new()?,
            link,
            cluster,
            directory,
            ports: [SERVICE_PORTS, SERVICE_PORTS.end() + 1..=*PORTS.end()],
        };
        for host in CLIENTS {
            Self::add_address(scene.link.client_ns(), scene.address(host))?;
        }
        for address in [scene.address(101), scene.address(102), scene.address(103), SERVICE] {
            Self::add_address(scene.link.server_ns(), address)?;
        }
        let route = ["route", "add", super::cluster::SERVICES, "dev", DEVICE];
        run(Command::new("ip").args(["-n", scene.link.client_ns()]).args(route))?;
        Ok(scene)
    }

    /// Gives the agents a token that holds as long as the Secret of this name does.
    pub(super) fn renew_token(&mut self, secret: &str) -> Result<()> {
        let token = self.cluster.token(secret)?;
        self.cluster.mount_token(&token)
    }

    fn add_address(namespace: &str, address: Ipv4Addr) -> Result<()> {
        let add = format!("address add {address}/32 dev {DEVICE}");
        run(Command::new("ip").args(["-n", namespace]).args(add.split(' ')))?;
        Ok(())
    }

    /// An address in the network of both ends: those from 100 on are servers'.
    pub(super) fn address(&self, host: u8) -> Ipv4Addr {
        let IpAddr::V4(base) = self.link.server_ip() else { return Ipv4Addr::UNSPECIFIED };
        let [a, b, c, _] = base.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    /// Starts a server on all ports at these addresses.
    pub(super) fn serve(
        &mut self,
        name: &str,
        cgroup: Option<&Path>,
        addresses: &[Ipv4Addr],
    ) -> Result<()> {
        let ports =
            addresses.iter().flat_map(|address| PORTS.map(move |port| format!("{address}:{port}")));
        let mut command = self.command(cgroup, self.link.server_ns(), "serve");
        command.args(ports);
        let mut process = Process::spawn(name, command, &self.directory)?;
        process.wait_output("ready", Duration::from_secs(20))?;
        self.processes.push(process);
        Ok(())
    }

    /// A container that loses requests to a server until the end of the run, for ten minutes at
    /// most.
    pub(super) fn race(&mut self, cgroup: &Path, from: Ipv4Addr, to: Ipv4Addr) -> Result<Race> {
        self.race_at(Port::Plain, cgroup, from, to)
    }

    pub(super) fn race_at(
        &mut self,
        port: Port,
        cgroup: &Path,
        from: Ipv4Addr,
        to: Ipv4Addr,
    ) -> Result<Race> {
        let (race, process) = self.start_race(port, cgroup, from, to, 600)?;
        self.processes.push(process);
        Ok(race)
    }

    /// A container that loses a number of requests and ends. Its port has not been used yet, so that
    /// the row is its own.
    pub(super) fn start_race(
        &mut self,
        port: Port,
        cgroup: &Path,
        from: Ipv4Addr,
        to: Ipv4Addr,
        rounds: u32,
    ) -> Result<(Race, Process)> {
        let [service, plain] = &mut self.ports;
        let ports = if port == Port::Service { service } else { plain };
        let port = ports.next().context("no port left")?;
        let race = Race { from, to: SocketAddr::new(to.into(), port) };
        let mut command = self.command(Some(cgroup), self.link.client_ns(), "race");
        command.args([from.to_string(), rounds.to_string(), race.to.to_string()]);
        let process = Process::spawn(&format!("race-{port}"), command, &self.directory)?;
        Ok((race, process))
    }

    /// A container that loses a request at each port of an address; it has ended when this returns.
    pub(super) fn race_all(&self, cgroup: &Path, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
        let mut command = self.command(Some(cgroup), self.link.client_ns(), "race");
        command.args([from.to_string(), "1".to_owned()]);
        command.args(PORTS.map(|port| format!("{to}:{port}")));
        Process::spawn("race-all", command, &self.directory)?.wait(Duration::from_secs(30))
    }

    /// The script in a cgroup, which is where its sockets will belong, and in a network.
    fn command(&self, cgroup: Option<&Path>, namespace: &str, role: &str) -> Command {
        let inner = command_in(Some(namespace), "python3");
        let mut command = if let Some(cgroup) = cgroup {
            let mut command = Command::new("sh");
            command.args(["-c", r#"echo $$ >"$0"/cgroup.procs && exec "$@""#]).arg(cgroup);
            command.arg(inner.get_program());
            command
        } else {
            Command::new(inner.get_program())
        };
        command.args(inner.get_args()).arg(self.directory.join("traffic.py")).arg(role);
        command
    }

    /// Starts `finrace serve` as the node's agent: as in a pod if it names no remote ends, as
    /// with the manifests' base, otherwise by a kubeconfig.
    pub(super) fn start_agent(
        &mut self,
        finrace: &Path,
        remote: &'static str,
        arguments: &[&str],
    ) -> Result<()> {
        let config = self.cluster.agent_config()?.display().to_string();
        let mut all = vec!["--kube.node", NODE];
        let program = if remote == "none" {
            self.cluster.in_pod(finrace)?
        } else {
            all.extend(["--kube.source=apiserver", "--kube.config", &*config]);
            all.extend(["--kube.remote", remote]);
            finrace.to_owned()
        };
        all.extend(arguments);
        let name = format!("finrace-{remote}");
        let serving = Serving::start_with(&program, &name, &all, &self.directory)?;
        self.agents.push(Agent { remote, serving });
        Ok(())
    }

    /// Waits until all agents call the ends of a race by these names: the local one, and the remote
    /// one as each resolves it, where an empty string means no name.
    pub(super) fn expect(
        &self,
        role: &str,
        race: Race,
        local: &str,
        remote: [&str; REMOTES.len()],
    ) -> Result<()> {
        for (agent, remote) in self.agents.iter().zip(remote) {
            let (client, server) = if role == "client" { (local, remote) } else { (remote, local) };
            agent.wait_names(role, race, |[c, s]| c == client && s == server).with_context(
                || format!("not `{client}` to `{server}`, remote ends by {}", agent.remote),
            )?;
        }
        Ok(())
    }

    /// The same for a server's clients alone, which only an agent that knows all pods can name.
    pub(super) fn expect_clients(&self, race: Race, client: &str) -> Result<()> {
        for agent in &self.agents {
            let client = if agent.remote == "pods" { client } else { "" };
            agent.wait_names("server", race, |[c, _]| c == client).with_context(|| {
                format!("clients not `{client}`, remote ends by {}", agent.remote)
            })?;
        }
        Ok(())
    }

    /// Waits until a metric of all agents has this value.
    pub(super) fn gauge(&self, name: &str, value: f64) -> Result<()> {
        for agent in &self.agents {
            until(
                &format!("{name} is {value}, remote ends by {}", agent.remote),
                PATIENCE,
                || Ok((agent.attribution(name, &[])? - value).abs() < 0.5),
            )?;
        }
        Ok(())
    }

    /// Waits until each agent knows as many pods as there are on its node.
    pub(super) fn own_pods(&self, count: u32) -> Result<()> {
        for agent in &self.agents {
            let mut last = 0.0;
            until("the agent knows all pods of its node, and no others", PATIENCE, || {
                last = agent.attribution("objects", &[("kind", "pod")])?;
                Ok((last - f64::from(count)).abs() < 0.5)
            })
            .with_context(|| format!("{last} instead of {count}, by {}", agent.remote))?;
        }
        Ok(())
    }

    /// The errors with a reason that each agent has counted.
    pub(super) fn errors(&self, reason: &str) -> Result<Vec<f64>> {
        self.agents.iter().map(|agent| agent.errors(reason)).collect()
    }

    /// Waits until each agent has counted more of them.
    pub(super) fn more_errors(&self, reason: &str, before: &[f64]) -> Result<()> {
        for (agent, before) in self.agents.iter().zip(before) {
            let what = format!("there is one more `{reason}`, remote ends by {}", agent.remote);
            until(&what, PATIENCE, || Ok(agent.errors(reason)? > *before))?;
        }
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        self.agents.iter().try_for_each(|agent| agent.process().signal(signal))
    }
}

/// How the agents resolve remote ends.
pub(super) const REMOTES: [&str; 3] = ["none", "services", "pods"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Service,
    Plain,
}

/// Which end loses requests to which.
#[derive(Clone, Copy, Debug)]
pub(super) struct Race {
    pub(super) from: Ipv4Addr,
    pub(super) to: SocketAddr,
}

/// An agent of the node.
pub(super) struct Agent {
    /// What it resolves remote addresses by.
    pub(super) remote: &'static str,
    serving: Serving,
}

impl Agent {
    pub(super) fn process(&self) -> &Process {
        self.serving.process()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.serving.address
    }

    pub(super) fn scrape(&self) -> Result<Metrics> {
        self.serving.scrape()
    }

    /// A metric of the attribution by the API server.
    pub(super) fn attribution(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let name = format!("finrace_attribution_{name}");
        let labels = [&[("source", "apiserver")], labels].concat();
        Ok(self.scrape()?.sum(&name, &labels))
    }

    fn errors(&self, reason: &str) -> Result<f64> {
        self.attribution("errors_total", &[("reason", reason)])
    }

    /// Waits until all series of one end of a race have the same names, for which this is true.
    fn wait_names(
        &self,
        role: &str,
        race: Race,
        is_right: impl Fn([&str; 2]) -> bool,
    ) -> Result<()> {
        let mut last = BTreeSet::new();
        until("a row has its names", PATIENCE, || {
            last = self.names(role, race)?;
            let only = last.first().filter(|_| last.len() == 1);
            Ok(only.is_some_and(|[client, server]| is_right([client, server])))
        })
        .with_context(|| format!("{role}, {} to {}: {last:?}", race.from, race.to))
    }

    /// The names of client and server in all series of one end of a race; none before it is reported.
    fn names(&self, role: &str, race: Race) -> Result<BTreeSet<[String; 2]>> {
        // Counted at the client, whose races they are; the server's row has the closes.
        let (metric, peer) = if role == "client" {
            ("finrace_races_total", race.to.to_string())
        } else {
            ("finrace_closes_total", format!(":{} from {}", race.to.port(), race.from))
        };
        let metrics = self.scrape()?;
        let series = metrics.series(metric, &[("role", role), ("peer", &peer)]);
        let names = |labels: Vec<&str>| ["client", "server"].map(|end| name(&labels, end));
        Ok(series.into_iter().map(|(labels, _)| names(labels)).collect())
    }
}

/// What a series' labels say about one end: `namespace/workload/pod/container`, `-` for a part they do
/// not give, or nothing.
fn name(labels: &[&str], end: &str) -> String {
    let parts = ["namespace", "workload", "pod", "container"].map(|part| {
        let start = format!("{end}_{part}=\"");
        let mut values = labels.iter().filter_map(|label| label.strip_prefix(&*start));
        values.next().map_or("-", |value| value.trim_end_matches('"'))
    });
    if parts == ["-"; 4] { String::new() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_end() {
        let labels = ["role=\"client\"", "client_pod=\"web-1\"", "client_namespace=\"shop\""];
        assert_eq!(name(&labels, "client"), "shop/-/web-1/-");
        assert_eq!(name(&labels, "server"), "");
    }
}
