//! From the flags to which source is asked for what.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tokio::sync::{oneshot, watch};

use super::access::{Access, Verify};
use super::follow::{Follower, Selection};
use super::names::{Feeds, LocalPods, Names, Remotes};
use super::{Kube, KubeSetup, NameSource, Pace, RemoteNames, kubelet, object};
use crate::usage::Usage;

const PODS: &str = "/api/v1/pods";
const SERVICES: &str = "/api/v1/services";
const KUBELET_PORT: u16 = 10250;
/// Keys of this node's pods: at most 500 pods or so, with some containers each.
const LOCAL_MAX: usize = 10_000;
const API_SERVER: &str = "apiserver";

#[derive(Debug)]
pub(super) struct Plan {
    local: Local,
    /// Access to the API server.
    api: Access,
    remote: RemoteNames,
}

/// Where this node's pods are listed.
#[derive(Debug)]
enum Local {
    ApiServer { node: String },
    Kubelet(Access),
}

/// None if there is no source to ask and names were not requested.
pub(super) fn plan(config: &KubeSetup) -> Result<Option<Plan>> {
    let KubeSetup { flags, account, .. } = config;
    let api = match (&flags.config, account) {
        (Some(path), _) => Some(Access::Kubeconfig(path.clone())),
        (None, Some(account)) => Some(Access::Account(account.clone())),
        (None, None) => None,
    };
    let local = match (flags.source, &api) {
        (NameSource::ApiServer | NameSource::Kubelet, None) => bail!(Usage(
            "--kube.source: not in a pod with a service account; name a kubeconfig: \
             --kube.config FILE"
                .to_owned()
        )),
        (NameSource::Auto, Some(_)) if flags.node.is_none() => {
            log::warn!(
                "in a pod, but the node's name is not known: no names of pods; give it by \
                 --kube.node, or FINRACE_KUBE_NODE from spec.nodeName"
            );
            None
        }
        (NameSource::Auto | NameSource::ApiServer, Some(_)) => {
            Some(Local::ApiServer { node: node(flags)? })
        }
        (NameSource::Kubelet, Some(api)) => Some(Local::Kubelet(kubelet_access(flags, api)?)),
        (NameSource::None, _) | (NameSource::Auto, None) => None,
    };
    let (Some(local), Some(api)) = (local, api) else {
        if flags.remote != RemoteNames::None {
            bail!(Usage("--kube.remote needs a --kube.source that can be asked".to_owned()));
        }
        return Ok(None);
    };
    // Reads a kubeconfig, but nothing that Kubernetes mounts, which may come late.
    let kubelet = match &local {
        Local::Kubelet(access) => Some(access),
        Local::ApiServer { .. } => None,
    };
    for access in iter::once(&api).chain(kubelet) {
        access.config().map_err(|error| Usage(format!("{error:#}")))?;
    }
    Ok(Some(Plan { local, api, remote: flags.remote }))
}

/// The name goes into a selector.
fn node(flags: &Kube) -> Result<String> {
    let Some(node) = &flags.node else {
        bail!(Usage(
            "--kube.source apiserver needs this node's name: --kube.node, or FINRACE_KUBE_NODE \
             from spec.nodeName"
                .to_owned()
        ));
    };
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if node.is_empty() || !node.bytes().all(is_part) {
        bail!(Usage(format!("--kube.node `{node}`: not a node's name")));
    }
    Ok(node.clone())
}

fn kubelet_access(flags: &Kube, api: &Access) -> Result<Access> {
    let url = match (&flags.kubelet, flags.node_ip) {
        (Some(url), _) => url.clone(),
        (None, Some(ip)) => default_url(ip),
        (None, None) => bail!(Usage(
            "--kube.source kubelet needs this node's address: --kube.node-ip, or \
             FINRACE_KUBE_NODE_IP from status.hostIP"
                .to_owned()
        )),
    };
    let verify = match &flags.kubelet_ca {
        _ if flags.kubelet_insecure_tls => Verify::Nothing,
        Some(path) => Verify::File(path.clone()),
        None => Verify::Cluster,
    };
    let is_url = url.split_once("://").is_some_and(|(scheme, rest)| {
        matches!(scheme, "http" | "https") && !rest.trim_end_matches('/').contains('/')
    });
    if !is_url {
        bail!(Usage(format!("--kube.kubelet `{url}`: not https://HOST:PORT")));
    }
    Ok(Access::Kubelet { url, verify, credentials: Box::new(api.clone()) })
}

fn default_url(ip: IpAddr) -> String {
    format!("https://{}", SocketAddr::new(ip, KUBELET_PORT))
}

impl Plan {
    /// Starts learning, on a thread of its own, until the last copy of the names is dropped.
    pub(super) fn start(self, config: &KubeSetup) -> Result<Names> {
        let pace = config.pace;
        let changed = Arc::new(watch::Sender::new(()));
        let remote = |kind, decode| {
            let (max, clock) = (pace.remote_max, config.wall_clock);
            Remotes::new((API_SERVER, kind), decode, max, clock, &changed)
        };
        let source = match self.local {
            Local::ApiServer { .. } => API_SERVER,
            Local::Kubelet(_) => "kubelet",
        };
        let feeds = Arc::new(Feeds {
            local: LocalPods::new(
                (source, "pod"),
                object::local_pod,
                LOCAL_MAX,
                config.wall_clock,
                &changed,
            ),
            services: (self.remote != RemoteNames::None)
                .then(|| remote("service", object::service)),
            pods: (self.remote == RemoteNames::Pods)
                .then(|| remote("remote_pod", object::remote_pod)),
            changed: Arc::clone(&changed),
        });
        let (stop, stopped) = oneshot::channel();
        let names = Names::new(Arc::clone(&feeds), stop);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime of names")?;
        let learn = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = self.learn(&feeds, pace) => {}
                    // Nothing is ever sent.
                    _ = stopped => {}
                }
            });
        };
        std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(learn)
            .context("starting the thread of names")?;
        Ok(names)
    }

    async fn learn(&self, feeds: &Feeds, pace: Pace) {
        let pods = async {
            let feed = &feeds.local;
            match &self.local {
                Local::Kubelet(access) => match kubelet::poll(feed, access, &pace).await {},
                Local::ApiServer { node } => {
                    let fields = Some(format!("spec.nodeName={node}"));
                    let selection = Selection { path: PODS, fields, is_small: true };
                    match (Follower { feed, access: &self.api, selection, pace }).follow().await {}
                }
            }
        };
        let remote = async |feed: &Option<Remotes>, path, fields| {
            let Some(feed) = feed else { return };
            let selection = Selection { path, fields, is_small: false };
            match (Follower { feed, access: &self.api, selection, pace }).follow().await {}
        };
        // Those that have ended no longer have an address.
        let living = Some("status.phase!=Succeeded,status.phase!=Failed".to_owned());
        tokio::join!(
            pods,
            remote(&feeds.services, SERVICES, None),
            remote(&feeds.pods, PODS, living),
            forget(feeds, pace),
        );
    }
}

async fn forget(feeds: &Feeds, pace: Pace) {
    loop {
        tokio::time::sleep(pace.keep / 10).await;
        feeds.local.expire(pace.keep);
        [&feeds.services, &feeds.pods]
            .into_iter()
            .flatten()
            .for_each(|feed| feed.expire(pace.keep));
    }
}
