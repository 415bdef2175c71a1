//! `cargo xtask image`: builds the container image, and runs it as a cluster would: not as root,
//! with two capabilities, no new privileges, the seccomp profile that we ship, a root that cannot be
//! written to and a network of its own. It has to see a race between an nginx and a server in other
//! containers, and nothing where there is none.
//!
//! Nothing is pulled from a registry: the other images are made of programs of this machine.

mod build;
mod container;
mod cri;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup::{self, now, wait_port};
use xtask::{report, root};

use self::container::Container;
use crate::link::{Link, Namespace, within};
use crate::proxy::{self, Pools};
use crate::servers::load::{Gaps, Load, during};
use crate::servers::metrics::Metrics;
use crate::software::START;
use crate::software::conf::nginx_head;

#[derive(clap::Args)]
pub(crate) struct ImageArgs {
    /// Build the image, and leave it at that
    #[arg(long)]
    build_only: bool,
    /// An image with a shell and setcap to build in [default: made from this machine]
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
}

const SECCOMP: &str = "deploy/seccomp/finrace.json";

/// The agent's arguments, as in the `DaemonSet` but for the names of pods.
const SERVE: [&str; 3] = ["serve", "--web.listen-address=:9502", "--kube.source=none"];
const PORT: u16 = 9502;

/// As in the `DaemonSet`; the image sets the user.
const CONFINED: [&str; 4] =
    ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=32"];
const CAPABILITIES: [&str; 2] = ["--cap-add=BPF", "--cap-add=PERFMON"];

const ONE_WAY: Duration = Duration::from_millis(5);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Around the server's timeout, less the round trip: most requests cross its FIN.
const GAPS: Gaps = Gaps::Uniform(0.985..1.002);
const CLIENTS: usize = 8;

pub(crate) fn run(args: ImageArgs) -> Result<()> {
    setup::ensure(&["buildah", "libcap2-bin", "podman", "runc"])?;
    let directory = setup::empty_directory(setup::target_dir().join("image"))?;
    let image = build::image(&directory, args.base.as_deref())?;
    if args.build_only {
        return Ok(());
    }
    let profile = root().join(SECCOMP);
    refusals(&image, &profile, &directory)?;
    cri::run(&image, &profile, &directory)?;
    races(&image, &profile, &directory)
}

/// Without what it needs, the agent starts all the same, says what is missing, and exits with 1.
fn refusals(image: &str, profile: &Path, directory: &Path) -> Result<()> {
    let seccomp = format!("--security-opt=seccomp={}", profile.display());
    let check = |options: &[&str], expected: &str| {
        let options = [&CONFINED, options].concat();
        let (status, said) = container::run(&options, image, &SERVE)?;
        let is_refused = status == Some(1) && said.contains(expected);
        ensure!(is_refused, "{options:?}: {status:?} without `{expected}`: {said}");
        Ok(())
    };
    check(&[&seccomp], "missing CAP_BPF, CAP_PERFMON: ")?;
    check(&[&seccomp, "--cap-add=BPF"], "missing CAP_PERFMON: ")?;

    let text = fs::read_to_string(profile).with_context(|| format!("{}", profile.display()))?;
    let without = directory.join("seccomp-without-bpf.json");
    fs::write(&without, text.replace("\"bpf\", ", "")).context("writing a profile")?;
    let seccomp = format!("--security-opt=seccomp={}", without.display());
    check(
        &[&[&*seccomp], CAPABILITIES.as_slice()].concat(),
        "a seccomp profile or a security module",
    )
}

fn races(image: &str, profile: &Path, directory: &Path) -> Result<()> {
    let link = Link::new("frimage", ONE_WAY)?;
    let home = Namespace::new("frimage-a".to_owned())?;
    let seccomp = format!("--security-opt=seccomp={}", profile.display());
    let options = [
        &CONFINED[..],
        &CAPABILITIES,
        &[seccomp.as_str(), "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro"],
    ]
    .concat();
    let agent = Container::start("frimage-agent", Some(home.name()), &options, image, &SERVE)?;
    agent.wait_log("attached")?;
    let rights = agent.status()?;
    for line in
        ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        ensure!(rights.contains(line), "not `{line}`: {rights}");
    }
    ensure!(rights.contains("Uid:\t65532\t65532"), "another user: {rights}");

    let nginx = build::nginx(directory)?;
    let scrape = || {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        within(Some(home.name()), || Metrics::scrape(address))
    };
    // The same traffic: first with a server that keeps connections for long, then with one that races.
    let calm =
        Chain { name: "calm", keep_alive: Duration::from_secs(75), enough: Enough::Reuses(40) };
    let racing = Chain { name: "racing", keep_alive: KEEP_ALIVE, enough: Enough::Races(3) };
    for chain in [calm, racing] {
        let seen = chain
            .run(&nginx, &link, directory, &scrape)
            .with_context(|| format!("{}: {}", chain.name, agent.log().unwrap_or_default()))?;
        report(&format!(
            "{}: {} reuses by nginx in a container, {} races",
            chain.name, seen.reuses, seen.races
        ));
    }
    let metrics = scrape()?;
    report(&format!(
        "image of {} KiB; resident memory of the agent {:.0} KiB, at its start {} KiB",
        build::size(image)? / 1024,
        metrics.plain("process_resident_memory_bytes").unwrap_or_default() / 1024.0,
        agent.memory()?.peak,
    ));
    Ok(())
}

/// When a chain has run for long enough.
#[derive(Clone, Copy)]
enum Enough {
    /// This many reuses, enough for a race to have been seen; there must be none.
    Reuses(u32),
    Races(u32),
}

/// nginx with keep-alive connections to a server, each in a container.
#[derive(Clone, Copy)]
struct Chain {
    name: &'static str,
    /// The server's idle timeout.
    keep_alive: Duration,
    enough: Enough,
}

/// What the agent says about the server as a peer of nginx.
struct Seen {
    reuses: f64,
    races: f64,
}

impl Chain {
    fn run(
        self,
        image: &str,
        link: &Link,
        directory: &Path,
        scrape: &dyn Fn() -> Result<Metrics>,
    ) -> Result<Seen> {
        let start = |what: &str, namespace: &str, conf: &dyn Fn(&Path) -> Result<_>| {
            let directory = directory.join(format!("{}-{what}", self.name));
            fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
            let file: std::path::PathBuf = conf(&directory)?;
            let (file, place) = (file.to_string_lossy(), directory.to_string_lossy());
            Container::start(
                &format!("frimage-{what}"),
                Some(namespace),
                &["--read-only", &format!("--volume={place}:{place}")],
                image,
                &["-c", &file, "-p", &place, "-e", "error.log"],
            )
        };
        let server = SocketAddr::new(link.server_ip(), setup::server_port()?);
        let _server = start("server", link.server_ns(), &|directory| {
            let file = directory.join("server.conf");
            let conf = format!(
                "{}access_log off;\nserver {{\nlisten {server};\nkeepalive_timeout {}ms;\n\
                 return 200 hello;\n}}\n}}\n",
                nginx_head(&directory.to_string_lossy()),
                self.keep_alive.as_millis()
            );
            fs::write(&file, conf).context("writing server.conf")?;
            Ok(file)
        })?;
        let address = SocketAddr::from(([127, 0, 0, 1], setup::server_port()?));
        let _proxy = start("proxy", link.client_ns(), &|directory| {
            proxy::configure(directory, address, Pools::new(server, CLIENTS))
        })?;
        within(Some(link.client_ns()), || wait_port(address, START))?;

        let load = Load {
            namespace: Some(link.client_ns()),
            proxy: address,
            clients: 0..CLIENTS,
            gaps: GAPS,
            is_in_step: false,
            keep_alive: None,
        };
        let (seen, _) = during(&[load], || self.watch(server, scrape))?;
        Ok(seen)
    }

    /// Waits until the agent has seen enough.
    fn watch(self, server: SocketAddr, scrape: &dyn Fn() -> Result<Metrics>) -> Result<Seen> {
        let end = now() + Duration::from_mins(1);
        let peer = server.to_string();
        loop {
            sleep(Duration::from_secs(1));
            let metrics = scrape()?;
            let labels = [("role", "client"), ("peer", &*peer), ("process", "nginx")];
            let seen = Seen {
                reuses: metrics.sum("finrace_reuse_gap_seconds_count", &labels),
                races: metrics.sum("finrace_races_total", &labels),
            };
            let is_enough = match self.enough {
                Enough::Reuses(least) => {
                    ensure!(seen.races < 0.5, "{} races where there are none", seen.races);
                    seen.reuses >= least.into()
                }
                Enough::Races(least) => seen.races >= least.into(),
            };
            if is_enough {
                return Ok(seen);
            }
            ensure!(now() < end, "{} reuses and {} races only", seen.reuses, seen.races);
        }
    }
}
