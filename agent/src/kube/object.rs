//! From JSON to the keys objects are found by. Only the few fields that are needed are read; the rest
//! is skipped in place.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::Error as _;

use super::feed::Object;
use super::names::{Address, LocalKey, Named, Pod, Remote, hex, is_hash, number_of};
use super::workload::{PodOrigin, workload};

#[derive(Deserialize)]
struct PodObject<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default, borrow)]
    status: PodStatus<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<TemplateHash>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
struct TemplateHash {
    #[serde(rename = "pod-template-hash")]
    deployment: Option<String>,
    #[serde(rename = "rollouts-pod-template-hash")]
    rollout: Option<String>,
}

#[derive(Deserialize)]
struct Annotations {
    /// For a static pod: what its cgroup is named after.
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<String>,
}

#[derive(Deserialize)]
struct OwnerReference {
    kind: String,
    name: String,
    #[serde(default)]
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus<'a> {
    #[serde(default, borrow)]
    phase: Cow<'a, str>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
    init_container_statuses: Option<Vec<Container>>,
    container_statuses: Option<Vec<Container>>,
    ephemeral_container_statuses: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    /// `containerd://` and the id, once there is one.
    #[serde(default, rename = "containerID")]
    id: Option<String>,
}

#[derive(Deserialize)]
struct ServiceObject<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<ServicePort>>,
}

#[derive(Deserialize)]
struct ServicePort {
    port: u16,
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize)]
struct Ingress {
    ip: Option<String>,
}

impl PodObject<'_> {
    fn owner(&self) -> Option<&OwnerReference> {
        let mut owners = self.metadata.owner_references.iter().flatten();
        owners.find(|owner| owner.controller == Some(true))
    }

    /// The hash that the cgroup of a static pod is named after. The API server shows such a pod as owned
    /// by the node, with a uid of its own; to the kubelet the hash is the uid. Anybody can write an
    /// annotation.
    fn static_hash(&self) -> Option<&str> {
        let hash = self.metadata.annotations.as_ref()?.config_hash.as_deref()?;
        let is_nodes = self.owner().is_some_and(|owner| owner.kind == "Node");
        (is_nodes || self.metadata.uid == hash).then_some(hash)
    }

    fn workload(&self) -> &str {
        let node = self.spec.node_name.as_deref();
        let template_hash = self.metadata.labels.as_ref();
        let template_hash = template_hash
            .and_then(|labels| labels.deployment.as_deref().or(labels.rollout.as_deref()));
        workload(&PodOrigin {
            pod: &self.metadata.name,
            owner: self.owner().map(|owner| (owner.kind.as_str(), owner.name.as_str())),
            template_hash,
            created: self.metadata.creation_timestamp.as_deref(),
            static_on: self.static_hash().and(node),
        })
    }
}

/// A pod of this node.
pub(super) fn local_pod(json: &str) -> serde_json::Result<Object<LocalKey, Named>> {
    let pod: PodObject<'_> = serde_json::from_str(json)?;
    let uid = pod.metadata.number()?;
    let shared = Arc::new(Pod {
        namespace: (*pod.metadata.namespace).into(),
        name: (*pod.metadata.name).into(),
        workload: pod.workload().into(),
    });
    let with = |container| Named { pod: Arc::clone(&shared), container };
    let mut names = vec![(LocalKey::Uid(uid), with(None))];
    if let Some(hash) = pod.static_hash().filter(|hash| is_hash(hash)).and_then(number_of) {
        names.push((LocalKey::Hash(hash), with(None)));
    }
    let PodStatus {
        init_container_statuses, container_statuses, ephemeral_container_statuses, ..
    } = pod.status;
    let containers = [init_container_statuses, container_statuses, ephemeral_container_statuses];
    for container in containers.into_iter().flatten().flatten() {
        let id = container.id.as_deref().and_then(|id| Some(id.split_once("://")?.1));
        if let Some(id) = id.and_then(hex) {
            names.push((LocalKey::Container(id), with(Some(container.name.into()))));
        }
    }
    Ok(Object { uid, version: pod.metadata.resource_version, names })
}

/// A pod anywhere. One on the host's network has the node's address, which belongs to no pod, and
/// one that has ended has none.
pub(super) fn remote_pod(json: &str) -> serde_json::Result<Object<Address, Arc<Remote>>> {
    let pod: PodObject<'_> = serde_json::from_str(json)?;
    let uid = pod.metadata.number()?;
    let has_ended = matches!(&*pod.status.phase, "Succeeded" | "Failed");
    let names = if pod.spec.host_network == Some(true) || has_ended {
        Vec::new()
    } else {
        let remote = Arc::new(Remote {
            namespace: (*pod.metadata.namespace).into(),
            workload: pod.workload().into(),
            pod: Some((*pod.metadata.name).into()),
        });
        let listed = pod.status.pod_ips.into_iter().flatten().map(|address| address.ip);
        addresses(pod.status.pod_ip.into_iter().chain(listed))
            .into_iter()
            .map(|ip| ((ip, 0), Arc::clone(&remote)))
            .collect()
    };
    Ok(Object { uid, version: pod.metadata.resource_version, names })
}

/// A Service's addresses, each with its ports: several Services may share an external one.
pub(super) fn service(json: &str) -> serde_json::Result<Object<Address, Arc<Remote>>> {
    let ServiceObject { metadata, spec, status } = serde_json::from_str(json)?;
    let uid = metadata.number()?;
    let remote = Arc::new(Remote {
        namespace: (*metadata.namespace).into(),
        workload: (*metadata.name).into(),
        pod: None,
    });
    let listed = [spec.cluster_ips, spec.external_ips].into_iter().flatten().flatten();
    let ingress = status.load_balancer.and_then(|balancer| balancer.ingress);
    let ingress = ingress.into_iter().flatten().filter_map(|ingress| ingress.ip);
    let is_tcp =
        |port: &ServicePort| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let ports: Vec<u16> =
        spec.ports.into_iter().flatten().filter(is_tcp).map(|port| port.port).collect();
    let names = addresses(spec.cluster_ip.into_iter().chain(listed).chain(ingress))
        .into_iter()
        .flat_map(|ip| ports.iter().map(move |port| (ip, *port)))
        .map(|address| (address, Arc::clone(&remote)))
        .collect();
    Ok(Object { uid, version: metadata.resource_version, names })
}

/// Each once; a Service without one says `None`.
fn addresses(texts: impl Iterator<Item = String>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for ip in texts.filter_map(|text| text.parse::<IpAddr>().ok()) {
        let ip = ip.to_canonical();
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

impl Metadata<'_> {
    fn number(&self) -> serde_json::Result<u128> {
        number_of(&self.uid).ok_or_else(|| {
            let Self { namespace, name, uid, .. } = self;
            serde_json::Error::custom(format!("{namespace}/{name}: uid `{uid}`"))
        })
    }
}
