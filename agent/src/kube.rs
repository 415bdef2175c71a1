//! Names of pods: from the API server, or from the kubelet, by options.
//!
//! Everything is read by one thread with a runtime of its own, since decoding a list of pods takes
//! longer than the event loop may wait. The rest of the agent asks [`Names`], which never waits for
//! a server. Whatever fails is counted by reason and tried again; names that are known stay known.
//!
//! `kube` makes connections: kubeconfig, service account, TLS, tokens and certificates that are
//! renewed. The list and the watch are ours ([`follow`]), because the watcher of `kube-runtime` does
//! not tell when a watch works again after an error, which is what the metric has to say, and has no
//! way on from `410 Gone` as the answer to a new watch.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::{Args, ValueEnum};

#[cfg(feature = "kubernetes")]
mod access;
#[cfg(feature = "kubernetes")]
mod bounded;
mod directory;
#[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "nobody fills it"))]
mod feed;
#[cfg(feature = "kubernetes")]
mod follow;
#[cfg(feature = "kubernetes")]
mod kubelet;
mod names;
#[cfg(feature = "kubernetes")]
mod object;
#[cfg(feature = "kubernetes")]
mod plan;
#[cfg(feature = "kubernetes")]
mod workload;

pub use feed::Reason;
pub use names::{Named, Names, Pod, Remote, SourceStatus};

/// Where names of pods come from.
#[derive(Args, Clone, Debug)]
pub struct Kube {
    /// Names of this node's pods: from the API server, from the kubelet, or none. `auto` is the API
    /// server in a pod that has a service account, else none.
    #[arg(
        long = "kube.source",
        value_name = "SOURCE",
        env = "FINRACE_KUBE_SOURCE",
        default_value = "auto"
    )]
    pub source: NameSource,
    /// This node's name in Kubernetes.
    #[arg(long = "kube.node", value_name = "NAME", env = "FINRACE_KUBE_NODE")]
    pub node: Option<String>,
    /// This node's address, at which its kubelet is asked.
    #[arg(long = "kube.node-ip", value_name = "ADDR", env = "FINRACE_KUBE_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// How to reach the API server, instead of as the pod's service account.
    #[arg(long = "kube.config", value_name = "FILE", env = "FINRACE_KUBE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where the kubelet is [default: port 10250 of this node's address, by HTTPS].
    #[arg(long = "kube.kubelet", value_name = "URL", env = "FINRACE_KUBE_KUBELET")]
    pub kubelet: Option<String>,
    /// CA bundle for verifying the kubelet's certificate [default: the cluster's].
    #[arg(long = "kube.kubelet-ca", value_name = "FILE", env = "FINRACE_KUBE_KUBELET_CA")]
    pub kubelet_ca: Option<PathBuf>,
    /// Do not verify the kubelet's certificate, which is self-signed on many clusters. Anyone who can
    /// impersonate the node's address then receives the token.
    #[arg(
        long = "kube.kubelet-insecure-tls",
        env = "FINRACE_KUBE_KUBELET_INSECURE_TLS",
        conflicts_with = "kubelet_ca"
    )]
    pub kubelet_insecure_tls: bool,
    /// Names of remote ends, from the API server: by Services, or by Services and the pods of the
    /// whole cluster.
    #[arg(
        long = "kube.remote",
        value_name = "WHAT",
        env = "FINRACE_KUBE_REMOTE",
        default_value = "none"
    )]
    pub remote: RemoteNames,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NameSource {
    Auto,
    #[value(name = "apiserver")]
    ApiServer,
    Kubelet,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RemoteNames {
    None,
    Services,
    Pods,
}

/// What a run is given besides its flags.
#[derive(Clone, Debug)]
pub struct KubeSetup {
    pub flags: Kube,
    /// The service account, in a pod that has one.
    pub account: Option<Account>,
    pub pace: Pace,
    /// Of last successes, for people and Prometheus.
    pub wall_clock: fn() -> SystemTime,
}

/// What Kubernetes gives a pod to reach the API server with.
#[derive(Clone, Debug)]
pub struct Account {
    pub server: String,
    /// Holds `token` and `ca.crt`, which are renewed while we run.
    pub directory: PathBuf,
}

impl Account {
    /// As every client library finds it.
    pub fn detect() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let directory = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        let account = Self { server: url(&host, &port), directory };
        account.directory.join("token").exists().then_some(account)
    }
}

fn url(host: &str, port: &str) -> String {
    let is_v6 = host.parse::<Ipv6Addr>().is_ok();
    if is_v6 { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

/// How often, how long, how many.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between tries: twice as long each time, from the first to the second, less up to a half by
    /// chance, so that the agents of a fleet do not come back all at once.
    pub retry: [Duration; 2],
    /// For an answer, all of a list's page included.
    pub request: Duration,
    /// In a watch; a server sends at least a bookmark each minute.
    pub silence: Duration,
    /// Between two questions to the kubelet.
    pub poll: Duration,
    /// How long names of what is gone are kept.
    pub keep: Duration,
    /// Addresses of remote ends that are known, for Services and for pods each.
    pub remote_max: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // As client-go does.
            retry: [Duration::from_millis(800), Duration::from_secs(30)],
            request: Duration::from_secs(30),
            silence: Duration::from_secs(150),
            poll: Duration::from_secs(20),
            keep: Duration::from_mins(5),
            remote_max: 20_000,
        }
    }
}

/// Begins to learn names; nothing if there is nobody to ask. What the flags do not allow is
/// [`Usage`](crate::usage::Usage).
#[cfg(feature = "kubernetes")]
pub fn start(config: KubeSetup) -> Result<Option<Names>> {
    match plan::plan(&config)? {
        Some(plan) => plan.start(&config).map(Some),
        None => Ok(None),
    }
}

/// Nothing; to ask for more is [`Usage`](crate::usage::Usage).
#[cfg(not(feature = "kubernetes"))]
pub fn start(config: KubeSetup) -> Result<Option<Names>> {
    let flags = config.flags;
    let is_asked = !matches!(flags.source, NameSource::Auto | NameSource::None);
    anyhow::ensure!(
        !is_asked && flags.remote == RemoteNames::None,
        crate::usage::Usage(
            "--kube.source, --kube.remote: this finrace was built without its feature \
             `kubernetes`"
                .to_owned()
        )
    );
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_url_as_it_has_to_be() {
        assert_eq!(url("10.96.0.1", "443"), "https://10.96.0.1:443");
        assert_eq!(url("fd01::1", "6443"), "https://[fd01::1]:6443");
        assert_eq!(url("kubernetes.default.svc", "443"), "https://kubernetes.default.svc:443");
    }

    #[test]
    #[cfg(not(feature = "kubernetes"))]
    fn without_the_feature_nobody_is_asked() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            kube: Kube,
        }
        let outcome = |line: &[&str]| {
            let flags = Flags::try_parse_from([&["finrace"], line].concat()).expect("flags").kube;
            let wall_clock = || std::time::UNIX_EPOCH;
            let config = KubeSetup { flags, account: None, pace: Pace::default(), wall_clock };
            start(config).map(|names| names.is_some())
        };
        assert!(matches!(outcome(&[]), Ok(false)));
        assert!(matches!(outcome(&["--kube.source=none"]), Ok(false)));
        for line in ["--kube.source=apiserver", "--kube.source=kubelet", "--kube.remote=pods"] {
            let error = outcome(&[line]).expect_err(line);
            assert!(error.is::<crate::usage::Usage>() && error.to_string().contains("kubernetes"));
        }
    }
}
