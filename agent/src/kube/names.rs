//! The interface for the rest of the agent.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{oneshot, watch};

use super::feed::{Feed, Reason};

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// The Deployment, `DaemonSet`, `CronJob`... that it belongs to, or its own name.
    pub workload: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub pod: Arc<Pod>,
    pub container: Option<Arc<str>>,
}

/// A Service, or a pod anywhere in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub namespace: Box<str>,
    /// The Service's name, or the pod's workload.
    pub workload: Box<str>,
    pub pod: Option<Box<str>>,
}

/// The state of a source of names.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    pub source: &'static str,
    /// Whether the last try succeeded, for all kinds of objects.
    pub is_up: bool,
    /// The last time that what is known was up to date; the oldest of all kinds.
    pub last_sync: Option<SystemTime>,
    /// Including those that never happened.
    pub errors: Vec<(Reason, u64)>,
    pub objects: Vec<(&'static str, usize)>,
}

/// The key a pod of this node is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LocalKey {
    Container([u8; 32]),
    Uid(u128),
    /// A static pod's cgroup is named after the hash of its manifest.
    Hash(u128),
}

/// An address and a port, 0 for any.
pub(super) type Address = (IpAddr, u16);

pub(super) type LocalPods = Feed<LocalKey, Named>;
pub(super) type Remotes = Feed<Address, Arc<Remote>>;

pub(super) struct Feeds {
    pub local: LocalPods,
    pub services: Option<Remotes>,
    pub pods: Option<Remotes>,
    pub changed: Arc<watch::Sender<()>>,
}

struct Shared {
    feeds: Arc<Feeds>,
    /// Ends the learning thread when the last of us is dropped.
    _stop: oneshot::Sender<()>,
}

#[derive(Clone)]
pub struct Names(Arc<Shared>);

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Names").field(&self.status()).finish()
    }
}

impl Names {
    #[cfg(feature = "kubernetes")]
    pub(super) fn new(feeds: Arc<Feeds>, stop: oneshot::Sender<()>) -> Self {
        Self(Arc::new(Shared { feeds, _stop: stop }))
    }

    /// The pod of a cgroup: by its container's id, 64 hexadecimal digits, else by the pod's uid as
    /// the cgroup has it, with dashes, underscores or neither.
    pub fn local(&self, pod_uid: Option<&str>, container_id: Option<&str>) -> Option<Named> {
        let pods = &self.0.feeds.local;
        let by_container = || pods.get(&LocalKey::Container(hex(container_id?)?));
        let by_uid = || {
            let uid = pod_uid?;
            let number = number_of(uid)?;
            // Two kinds of key, so that one pod's annotation cannot be taken for another pod's uid.
            let key = if is_hash(uid) { LocalKey::Hash } else { LocalKey::Uid };
            pods.get(&key(number))
        };
        by_container().or_else(by_uid)
    }

    /// The remote end of a connection; only with options that must be set.
    pub fn remote(&self, ip: IpAddr, port: u16) -> Option<Arc<Remote>> {
        let ip = ip.to_canonical();
        let feeds = &self.0.feeds;
        let service = feeds.services.as_ref().and_then(|services| services.get(&(ip, port)));
        service.or_else(|| feeds.pods.as_ref()?.get(&(ip, 0)))
    }

    /// One for each source that is asked.
    pub fn status(&self) -> Vec<SourceStatus> {
        let Feeds { local, services, pods, .. } = &*self.0.feeds;
        let mut sources = Vec::new();
        add(&mut sources, local);
        for feed in [services, pods].into_iter().flatten() {
            add(&mut sources, feed);
            if let Some(source) = sources.iter_mut().find(|source| source.source == feed.source) {
                match source.objects.iter_mut().find(|(kind, _)| *kind == "remote_address") {
                    Some((_, count)) => *count += feed.keys(),
                    None => source.objects.push(("remote_address", feed.keys())),
                }
            }
        }
        sources
    }

    /// Marked as changed whenever something has been learned, for those waiting for it.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.feeds.changed.subscribe()
    }
}

fn add<K, V>(sources: &mut Vec<SourceStatus>, feed: &Feed<K, V>)
where
    K: Clone + Eq + std::hash::Hash,
    V: Clone,
{
    let health = feed.health();
    let errors = Reason::ALL.into_iter().zip(health.errors);
    let object = (feed.kind, feed.objects());
    match sources.iter_mut().find(|source| source.source == feed.source) {
        Some(source) => {
            source.is_up &= health.is_up;
            // None counts as older than any time.
            source.last_sync = source.last_sync.min(health.last_sync);
            for (sum, (_, count)) in source.errors.iter_mut().zip(errors) {
                sum.1 += count;
            }
            source.objects.push(object);
        }
        None => sources.push(SourceStatus {
            source: feed.source,
            is_up: health.is_up,
            last_sync: health.last_sync,
            errors: errors.collect(),
            objects: vec![object],
        }),
    }
}

/// 32 hexadecimal digits, without the dashes of a uid or the underscores of systemd's cgroups.
pub(super) fn number_of(uid: &str) -> Option<u128> {
    let digits: String = uid.chars().filter(|c| !matches!(c, '-' | '_')).collect();
    hex(&digits).map(u128::from_be_bytes)
}

/// Whether it is a hash and not a uid.
pub(super) fn is_hash(uid: &str) -> bool {
    !uid.contains(['-', '_'])
}

/// Parses exactly as many hexadecimal digits as fit.
pub(super) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_come_in_three_forms() {
        let number = Some(0xdde1_244b_5bb5_4297_b544_85f3_bc0d_80bf);
        assert_eq!(number_of("dde1244b-5bb5-4297-b544-85f3bc0d80bf"), number);
        assert_eq!(number_of("dde1244b_5bb5_4297_b544_85f3bc0d80bf"), number);
        assert_eq!(number_of("dde1244b5bb54297b54485f3bc0d80bf"), number);
        for not_one in ["", "dde1244b", "dde1244b-5bb5-4297-b544-85f3bc0d80bg", "é1244b5bb5429785"]
        {
            assert_eq!(number_of(not_one), None, "{not_one}");
        }
    }
}
