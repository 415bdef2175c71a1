//! What a socket belongs to: a pod's container, a container, a systemd unit; read from the path of its cgroup.
//!
//! A process or a thread is not an owner: the kernel knows it only while it writes or closes, and there are
//! many. A cgroup is known at every event, even in softirq.

use std::sync::Arc;

/// Stands for an owner: a small number, so that it can be part of a key. Its name is looked up only
/// when something is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u32);

impl Owner {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);

    /// This one, or the other where nothing is known of this one.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::UNKNOWN { other } else { self }
    }
}

/// What the path of a cgroup says. Two paths of one unit, or of one container, are the same place;
/// a unit that is started again comes back to its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// As the API server has it; for a static pod, the hash of its configuration.
    pub pod_uid: Option<Box<str>>,
    /// 64 hexadecimal digits.
    pub container_id: Option<Box<str>>,
    /// Where there is neither: a systemd unit, or the last part of the path.
    pub unit: Option<Box<str>>,
}

/// Names of one end of a connection; those that are not known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    pub namespace: Option<Arc<str>>,
    /// Name of the Deployment, of the Service and so on; outside Kubernetes, of the unit.
    pub workload: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    /// Its name; the first digits of its id where that is all that is known.
    pub container: Option<Arc<str>>,
}

impl End {
    pub const fn is_empty(&self) -> bool {
        self.namespace.is_none()
            && self.workload.is_none()
            && self.pod.is_none()
            && self.container.is_none()
    }

    /// For a person: `shop/checkout-5b9`, `nginx.service`; nothing where nothing is known.
    pub fn text(&self) -> Option<String> {
        let name = self.pod.as_ref().or(self.workload.as_ref()).or(self.container.as_ref())?;
        Some(match &self.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_string(),
        })
    }
}

/// Digits of a container's id that are enough for a person and for `docker ps`.
const SHORT_ID: usize = 12;

impl Place {
    /// From a path below the root of the hierarchy (`/system.slice/nginx.service`); none for the root itself.
    /// What precedes the part of Kubernetes does not matter: a node may itself be a container, and the path
    /// relative to the agent's own cgroup.
    pub fn of(path: &str) -> Option<Self> {
        let mut place = Self::default();
        let mut last = None;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
            // What comes below is named by that user.
            if part.starts_with("user@") && place.pod_uid.is_none() {
                last = Some(part);
                break;
            }
            if let Some(uid) = pod_uid(part) {
                // The node's own container, around it.
                place.container_id = None;
                place.pod_uid = Some(uid);
            }
            if let Some(id) = container_id(part) {
                place.container_id = Some(id.into());
            }
            last = Some(part);
        }
        if place.pod_uid.is_none() && place.container_id.is_none() {
            let units = path.split('/').rev().filter(|part| is_unit(part));
            place.unit = Some(units.chain(last).next()?.into());
        }
        Some(place)
    }

    /// What can be said without asking anybody.
    pub fn end(&self) -> End {
        let short = |id: &str| Arc::from(id.get(..SHORT_ID).unwrap_or(id));
        End {
            container: self.container_id.as_deref().map(short),
            workload: self.unit.as_deref().map(Arc::from),
            ..End::default()
        }
    }
}

/// The last 64 hexadecimal digits in a row, with nothing of their kind around them.
fn container_id(part: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    part.rsplit(|c| !is_hex(c)).find(|run| run.len() == DIGITS)
}

/// `pod` and a UID, whose dashes systemd's driver writes as `_`; or `pod` and 32 digits.
fn pod_uid(part: &str) -> Option<Box<str>> {
    const UID: usize = 36;
    const HASH: usize = 32;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let rest = part.match_indices("pod").map(|(at, pod)| part.get(at + pod.len()..));
    rest.flatten().find_map(|rest| {
        // What follows a colon is a container: systemd's driver without its slices.
        let uid = rest.split(':').next().unwrap_or_default();
        let uid = uid.strip_suffix(".slice").unwrap_or(uid);
        let is_uid = uid.len() == UID
            && uid.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-' || byte == b'_',
                _ => is_hex(byte),
            });
        let is_hash = uid.len() == HASH && uid.bytes().all(is_hex);
        (is_uid || is_hash).then(|| uid.replace('_', "-").into())
    })
}

fn is_unit(part: &str) -> bool {
    [".service", ".scope", ".socket"].iter().any(|suffix| part.ends_with(suffix))
        || part.starts_with("lxc.payload.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3fb0a8a1c4b7d2e9f6051728394a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6";
    const UID: &str = "dde1244b-5bb5-4297-b544-85f3bc0d80bf";
    const UNDERSCORES: &str = "dde1244b_5bb5_4297_b544_85f3bc0d80bf";
    const HASH: &str = "b53dfa9e2dc9b890f7fadb2770857b03";

    fn place(path: &str) -> String {
        let path = path.replace("<id>", ID).replace("<uid>", UID).replace("<uid_>", UNDERSCORES);
        let path = path.replace("<hash>", HASH);
        let Some(Place { pod_uid, container_id, unit }) = Place::of(&path) else {
            return "none".to_owned();
        };
        let parts = [("pod", pod_uid), ("container", container_id), ("unit", unit)];
        let parts =
            parts.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
        let text = parts.collect::<Vec<_>>().join(", ");
        text.replace(ID, "<id>").replace(UID, "<uid>").replace(HASH, "<hash>")
    }

    #[test]
    fn paths() {
        let check = |path: &str, expected: &str| assert_eq!(place(path), expected, "{path}");
        let pod = "pod <uid>, container <id>";
        // Kubernetes with systemd's driver: containerd, CRI-O, cri-dockerd.
        let slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice";
        for container in ["cri-containerd-<id>.scope", "crio-<id>.scope", "docker-<id>.scope"] {
            check(&format!("{slices}/{container}"), pod);
        }
        check(&format!("{slices}/crio-<id>.scope/container"), pod);
        check(slices, "pod <uid>");
        // With the driver cgroupfs, by class; a static pod.
        check("/kubepods/burstable/pod<uid>/<id>", pod);
        check("/kubepods/pod<uid>/<id>", pod);
        check("/kubepods/burstable/pod<hash>/<id>", "pod <hash>, container <id>");
        // kind: the node is a container itself, and the path may be relative.
        let inner = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod<uid_>.slice";
        check(&format!("/docker/{}/{inner}/cri-containerd-<id>.scope", "a".repeat(64)), pod);
        check(&format!("/docker/{}/{inner}", "a".repeat(64)), "pod <uid>");
        check("/../../kubepods-besteffort-pod<uid_>.slice/cri-containerd-<id>.scope", pod);
        // Other forms that containerd uses.
        check("/k8s.io/<id>", "container <id>");
        check("/system.slice/containerd.service/kubepods-pod<uid_>.slice:cri-containerd:<id>", pod);
        // Containers alone.
        check("/docker/<id>", "container <id>");
        check("/system.slice/docker-<id>.scope", "container <id>");
        check("/libpod_parent/libpod-<id>", "container <id>");
        check("/machine.slice/libpod-<id>.scope/container", "container <id>");
        // Units, and what is below one.
        check("/system.slice/nginx.service", "unit nginx.service");
        check("/system.slice/php-fpm.service/pool/www", "unit php-fpm.service");
        check("/user.slice/user-1000.slice/session-3.scope", "unit session-3.scope");
        check(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
            "unit a.service",
        );
        // A user may give cgroups of their own any name.
        let own = "/user.slice/user-1000.slice/user@1000.service/x-pod<uid_>.slice";
        check(&format!("{own}/cri-containerd-<id>.scope"), "unit cri-containerd-<id>.scope");
        check("/lxc.payload.web/system.slice/nginx.service", "unit nginx.service");
        check("/lxc.payload.web/other", "unit lxc.payload.web");
        check("/podruntime/kubelet", "unit kubelet");
        check("/azure.slice", "unit azure.slice");
        check("/", "none");
        check("", "none");
        check("/..", "none");
    }

    #[test]
    fn what_only_looks_like_an_id() {
        let check = |path: &str, expected: &str| assert_eq!(place(path), expected, "{path}");
        // A digit more or less, capitals, a word that ends in `pod`.
        check("/a/<id>0", "unit <id>0");
        check(&format!("/a/{}", &ID[1..]), &format!("unit {}", &ID[1..]));
        check(&format!("/a/{}", ID.to_uppercase()), &format!("unit {}", ID.to_uppercase()));
        check("/podcast.service", "unit podcast.service");
        check("/tripod<uid>x", "unit tripod<uid>x");
        check("/podpod<hash>", "pod <hash>");
        check("/system.slice/pod<uid>.service", "unit pod<uid>.service");
    }

    #[test]
    fn texts() {
        let some = |text: &str| Some(Arc::from(text));
        let place = Place::of(&format!("/docker/{ID}")).unwrap();
        assert_eq!(place.end().text().as_deref(), Some("3fb0a8a1c4b7"));
        let pod = End { namespace: some("shop"), pod: some("web-5"), ..place.end() };
        assert_eq!(pod.text().as_deref(), Some("shop/web-5"));
        let service = End { namespace: some("shop"), workload: some("web"), ..End::default() };
        assert_eq!(service.text().as_deref(), Some("shop/web"));
        assert_eq!(End::default().text(), None);
        assert!(End::default().is_empty() && !service.is_empty());
    }
}
