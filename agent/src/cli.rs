//! The command line: arguments as typed, and the filters and choices made of them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use finrace_logic::model::{Class, Endpoint, Incident, Observation, Origin};
use finrace_logic::table::Keeps;
use finrace_logic::verdict::State;

use crate::http::MAX_REQUESTS;
use crate::http::listen::Listen;
use crate::kube::Kube;
use crate::metrics::{Label, SERIES_LEAST, SERIES_MAX};
use crate::probe::attach::Forced;
use crate::probe::plan::{Hook, Job};

/// Sees the keep-alive FIN race in the kernel and explains it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// How much to log to standard error: off, error, warn, info, debug or trace.
    #[arg(long = "log.level", env = "FINRACE_LOG_LEVEL", default_value = "warn", global = true)]
    pub log_level: log::LevelFilter,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print one line per event as it happens.
    #[command(after_help = "Examples:
  finrace watch --races                  only requests lost to a closing connection
  finrace watch --port 8080 --for 5m     what happens on one port
  finrace watch --json --class stale_write --process nginx
  finrace watch --demo                   with traffic of its own that races")]
    Watch(Watch),
    /// Observe for a while, then say of each peer what is wrong and what to change.
    #[command(after_help = "Examples:
  finrace report --for 5m
  finrace report --demo                  with traffic of its own that races
  finrace report --for 1h --json > before.json
  finrace report --for 1h --against before.json    did the change work?
  finrace report --fail-on racing,exposed          for scripts

Exit status: 3 if a peer has one of the verdicts of --fail-on.")]
    Report(Report),
    /// Run as a daemon that Prometheus scrapes.
    #[command(after_help = "Examples:
  finrace serve                          http://127.0.0.1:9502/metrics
  finrace serve --web.listen-address :9502 --web.config.file web.yaml")]
    Serve(Serve),
    /// Show what this kernel and these rights allow, and what is lost.
    #[command(after_help = "Examples:
  finrace check
  finrace check --json

Exit status: 0 if finrace can run here, 1 if not.")]
    Check(Check),
    /// Print completions for a shell.
    #[command(after_help = "Examples:
  finrace completions bash > /usr/share/bash-completion/completions/finrace
  finrace completions zsh > /usr/share/zsh/site-functions/_finrace
  finrace completions fish > /usr/share/fish/vendor_completions.d/finrace.fish")]
    Completions(Completions),
    /// Print the manual page, or write all pages to a directory.
    #[command(after_help = "Examples:
  finrace man | man -l -
  finrace man /usr/local/share/man/man1")]
    Man(Man),
}

#[derive(Args, Debug)]
pub struct Completions {
    pub shell: Shell,
}

#[derive(Args, Debug)]
pub struct Man {
    /// Created if missing; gets one page for finrace and one for each command.
    pub directory: Option<PathBuf>,
}

/// How the kernel side is set up.
#[derive(Args, Debug)]
pub struct KernelArgs {
    /// Idle threshold: a write after a longer gap counts as a reuse, a close after a longer gap as an idle
    /// close.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = threshold,
          env = "FINRACE_REUSE_THRESHOLD")]
    pub reuse_threshold: Duration,
    /// Force the hook for a job, for debugging: write, state, reset-received, reset-sent or time-wait to
    /// tp_btf, raw_tp, fentry, kprobe or none, optionally with the function to attach to
    /// (`write=fentry:tcp_sendmsg`).
    #[arg(long = "hook", value_name = "JOB=HOOK", value_parser = forced)]
    pub hooks: Vec<Forced>,
    /// Take field offsets from this file instead of /sys/kernel/btf/vmlinux. It must be the BTF of
    /// exactly the running kernel.
    #[arg(long, value_name = "FILE", env = "FINRACE_BTF")]
    pub btf: Option<PathBuf>,
    /// Maximum number of peers tracked individually; the rest are aggregated as `other`.
    #[arg(
        long = "peers.max",
        value_name = "N",
        default_value_t = 2_000,
        env = "FINRACE_PEERS_MAX"
    )]
    pub peers_max: usize,
    /// Mount point of the host's cgroup v2 hierarchy, used to name containers and units
    /// [default: /sys/fs/cgroup, or unified in it].
    #[arg(long = "cgroup.path", value_name = "DIR", env = "FINRACE_CGROUP_PATH")]
    pub cgroup_path: Option<PathBuf>,
    #[command(flatten)]
    pub kube: Kube,
    /// Run a keep-alive server with an idle timeout of 1 s, and clients that reuse too late.
    #[arg(long)]
    pub demo: bool,
}

#[derive(Args, Debug)]
pub struct Watch {
    #[command(flatten)]
    pub kernel: KernelArgs,
    #[command(flatten)]
    pub filter: Filter,
    /// Print one JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// Stop after this long.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
}

/// Which events to show; all that are given must hold.
#[derive(Args, Debug, Default)]
pub struct Filter {
    /// Only connections with this port, on either side; may be repeated.
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,
    /// Only connections with this remote address, or address and port.
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = peer)]
    pub peer: Option<PeerFilter>,
    /// Only events of this class; may be repeated.
    #[arg(long = "class", value_name = "CLASS")]
    pub classes: Vec<Class>,
    /// Only events whose process has this name, where it is known.
    #[arg(long, value_name = "NAME")]
    pub process: Option<String>,
    /// Only lost requests.
    #[arg(long)]
    pub races: bool,
}

#[derive(Args, Debug)]
pub struct Report {
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// How long to observe [default: 1m, with --demo 10s].
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Compare with an earlier report, saved with --json: did the change work?
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Exit with status 3 if a peer has one of these verdicts.
    #[arg(long, value_name = "VERDICT,...", value_delimiter = ',')]
    pub fail_on: Vec<State>,
}

#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Address to serve HTTP on, or `:9502` for all addresses; may be repeated.
    #[arg(
        long = "web.listen-address",
        value_name = "[ADDR]:PORT",
        default_value = "127.0.0.1:9502",
        value_delimiter = ',',
        env = "FINRACE_WEB_LISTEN_ADDRESS"
    )]
    pub listen: Vec<Listen>,
    /// Web configuration in the format of exporter-toolkit: TLS, client certificates, passwords, limits.
    #[arg(long = "web.config.file", value_name = "FILE", env = "FINRACE_WEB_CONFIG_FILE")]
    pub web_config: Option<PathBuf>,
    /// Maximum number of requests served at a time.
    #[arg(long = "web.max-requests", value_name = "N", default_value_t = MAX_REQUESTS,
          env = "FINRACE_WEB_MAX_REQUESTS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_requests: u16,
    /// Remove peers and ports that have been silent for this long; their counts move to `other`.
    #[arg(long = "peers.stale-after", value_name = "DURATION", default_value = "6h",
          value_parser = duration, env = "FINRACE_PEERS_STALE_AFTER")]
    pub stale_after: Duration,
    /// Maximum number of series in a response; peers beyond it are aggregated as `other`.
    #[arg(long = "metrics.series-max", value_name = "N", default_value_t = SERIES_MAX,
          env = "FINRACE_METRICS_SERIES_MAX", value_parser = series)]
    pub series_max: usize,
    /// Labels on series of peers and ports, in addition to role and a port's `server_port`. Peers with
    /// identical labels are merged. namespace, workload, pod and container each expand to client_* and
    /// server_*.
    #[arg(
        long = "metrics.labels",
        value_name = "LABEL,...",
        value_delimiter = ',',
        default_value = "peer,peer_ip,server_port,netns,process,namespace,workload,pod,container",
        env = "FINRACE_METRICS_LABELS"
    )]
    pub labels: Vec<Label>,
    /// Also keep native histograms, for a Prometheus that scrapes protobuf.
    #[arg(long = "metrics.native-histograms", env = "FINRACE_METRICS_NATIVE_HISTOGRAMS")]
    pub native_histograms: bool,
    /// Attach the latest lost request of each series as an exemplar: addresses, ports, gap, process.
    #[arg(long = "metrics.exemplars", env = "FINRACE_METRICS_EXEMPLARS")]
    pub exemplars: bool,
}

impl Serve {
    pub const fn keeps(&self) -> Keeps {
        Keeps { native: self.native_histograms, examples: self.exemplars }
    }
}

#[derive(Args, Debug)]
pub struct Check {
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Then watch for this long (10 s if no time is given), and show for each stage what it took in and what
    /// became of that.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
          default_missing_value = "10s", value_parser = duration)]
    pub live: Option<Duration>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// An address, with a port or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFilter {
    ip: IpAddr,
    port: Option<u16>,
}

impl PeerFilter {
    fn matches(self, remote: Endpoint) -> bool {
        self.ip == remote.ip && self.port.is_none_or(|port| port == remote.port)
    }
}

impl Filter {
    /// Whether to show this observation. A failure with two views is shown if either matches.
    pub fn matches(&self, observation: &Observation) -> bool {
        match observation {
            Observation::Incident(incident) | Observation::Outcome(incident) => {
                self.matches_incident(incident)
                    || incident.other_view.as_deref().is_some_and(|v| self.matches_incident(v))
            }
            Observation::Close(_) | Observation::Reuse(_) | Observation::Dwell(_) => {
                !self.races && self.classes.is_empty() && self.matches_origin(observation.origin())
            }
        }
    }

    fn matches_incident(&self, incident: &Incident) -> bool {
        (!self.races || incident.class.is_race())
            && (self.classes.is_empty() || self.classes.contains(&incident.class))
            && self.matches_origin(&incident.origin)
    }

    fn matches_origin(&self, origin: &Origin) -> bool {
        let port = |port| self.ports.is_empty() || self.ports.contains(&port);
        let process = || origin.process.as_ref().map(|process| process.name.as_str());
        (port(origin.local.port) || port(origin.remote.port))
            && self.peer.is_none_or(|peer| peer.matches(origin.remote))
            && self.process.as_deref().is_none_or(|wanted| process() == Some(wanted))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error} (as in 30s, 5m, 1h30m)")),
    }
}

/// Jiffies are at least 1 ms, and the kernel compares them as signed numbers.
fn threshold(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(10)..=Duration::from_hours(1);
    let threshold = duration(text)?;
    if range.contains(&threshold) { Ok(threshold) } else { Err("must be 10ms to 1h".to_owned()) }
}

fn series(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|error| format!("{error}"))?;
    if count < SERIES_LEAST { Err(format!("must be at least {SERIES_LEAST}")) } else { Ok(count) }
}

fn peer(text: &str) -> Result<PeerFilter, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(PeerFilter { ip: ip.to_canonical(), port: None });
    }
    match text.parse::<SocketAddr>() {
        Ok(peer) => Ok(PeerFilter { ip: peer.ip().to_canonical(), port: Some(peer.port()) }),
        Err(_) => Err("not an address, or an address and port (10.0.0.5:80, [::1]:80)".to_owned()),
    }
}

pub fn forced(text: &str) -> Result<Forced, String> {
    let (job, hook) = text.split_once('=').ok_or("not JOB=HOOK")?;
    let (hook, place) = match hook.split_once(':') {
        Some((hook, place)) => (hook, Some(place.to_owned())),
        None => (hook, None),
    };
    let named = |name: &str| name.replace(' ', "-") == job;
    let job = Job::ALL.into_iter().find(|job| named(job.name())).ok_or_else(|| {
        let known = Job::ALL.map(|job| job.name().replace(' ', "-"));
        format!("`{job}` is not one of {}", known.join(", "))
    })?;
    if hook == "none" {
        return Ok(Forced { job, hook: None, attach_to: None });
    }
    match Hook::ALL.into_iter().find(|known| known.name() == hook) {
        Some(hook) => Ok(Forced { job, hook: Some(hook), attach_to: place }),
        None => Err(format!("`{hook}` is not one of tp_btf, raw_tp, fentry, kprobe, none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a command line; an error is given as clap's kind and the offending text.
    fn refuse(line: &str, offending: &str) {
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(offending), "{line}: {error}");
    }

    #[test]
    fn bad_usage_names_the_offending_text() {
        refuse("finrace report --for 5x", "5x");
        refuse("finrace report --for 0s", "0s");
        refuse("finrace report --fail-on racing,late", "late");
        refuse("finrace watch --class fin_cross", "fin_cross");
        refuse("finrace watch --peer 10.0.0.300", "10.0.0.300");
        refuse("finrace watch --port 70000", "70000");
        refuse("finrace watch --hook write=usdt", "usdt");
        refuse("finrace watch --hook wirte=none", "wirte");
        refuse("finrace watch --reuse-threshold 1ms", "1ms");
        refuse("finrace serve --web.listen-address 9502", "9502");
        refuse("finrace serve --web.listen-address :9502,localhost:1", "localhost:1");
        refuse("finrace serve --metrics.series-max 999", "999");
        refuse("finrace --log.level loud check", "loud");
    }

    #[test]
    fn all_labels_are_there_unless_some_are_chosen() {
        use clap::ValueEnum as _;
        let labels = |line: &str| {
            let parsed = Cli::try_parse_from(line.split(' ')).expect(line);
            let Command::Serve(serve) = parsed.command else { panic!("{line} is {parsed:?}") };
            serve.labels
        };
        assert_eq!(labels("finrace serve"), Label::value_variants());
        assert_eq!(
            labels("finrace serve --metrics.labels server_port,peer_ip"),
            [Label::ServerPort, Label::PeerIp]
        );
        refuse("finrace serve --metrics.labels port", "server_port");
    }

    #[test]
    fn hooks_and_peers_are_understood() {
        let hook = forced("reset-sent=raw_tp").expect("a hook");
        let raw = Forced { job: Job::ResetSent, hook: Some(Hook::RawTp), attach_to: None };
        assert_eq!(hook, raw);
        let hook = forced("time-wait=kprobe:tcp_v4_send_reset").expect("a hook and a place");
        assert_eq!(
            (hook.job, hook.attach_to.as_deref()),
            (Job::TimeWait, Some("tcp_v4_send_reset"))
        );
        let mapped = peer("[::ffff:10.0.0.5]:80").expect("a peer");
        assert!(mapped.matches(Endpoint { ip: "10.0.0.5".parse().expect("ip"), port: 80 }));
        assert!(!mapped.matches(Endpoint { ip: "10.0.0.5".parse().expect("ip"), port: 81 }));
    }
}
