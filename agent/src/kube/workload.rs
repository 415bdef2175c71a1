//! The workload of a pod: the name that somebody on call knows it by. Pure.

use std::time::{Duration, UNIX_EPOCH};

/// What a pod says about where it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PodOrigin<'a> {
    pub pod: &'a str,
    /// Kind and name of the owner that controls it.
    pub owner: Option<(&'a str, &'a str)>,
    /// The label that a Deployment, or an Argo Rollout, puts on pods and `ReplicaSet`.
    pub template_hash: Option<&'a str>,
    /// RFC 3339.
    pub created: Option<&'a str>,
    /// The node's name, for a pod that the kubelet started from a file.
    pub static_on: Option<&'a str>,
}

/// A `CronJob` may start a missed run later, and a Job may restart its pod.
const LATE: Duration = Duration::from_hours(24 * 31);
/// Clocks differ.
const EARLY: Duration = Duration::from_mins(2);

pub(super) fn workload<'a>(origin: &PodOrigin<'a>) -> &'a str {
    if let Some(node) = origin.static_on {
        return without_suffix(origin.pod, node).unwrap_or(origin.pod);
    }
    match origin.owner {
        Some(("ReplicaSet", name)) => {
            origin.template_hash.and_then(|hash| without_suffix(name, hash)).unwrap_or(name)
        }
        Some(("Job", name)) => cron_job(name, origin.created).unwrap_or(name),
        Some((_, name)) => name,
        None => origin.pod,
    }
}

fn without_suffix<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    name.strip_suffix(suffix)?.strip_suffix('-').filter(|name| !name.is_empty())
}

/// A `CronJob` names its Jobs after the scheduled minute since 1970. A Job that somebody named with a
/// number keeps its name, since that number is hardly the minute before the pod's creation.
/// <https://github.com/kubernetes/kubernetes/blob/v1.33.0/pkg/controller/cronjob/utils.go#L272-L275>
fn cron_job<'a>(job: &'a str, created: Option<&str>) -> Option<&'a str> {
    let (name, digits) = job.rsplit_once('-').filter(|(name, _)| !name.is_empty())?;
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let minutes: u64 = digits.parse().ok()?;
    let scheduled = UNIX_EPOCH.checked_add(Duration::from_secs(minutes.checked_mul(60)?))?;
    let created = humantime::parse_rfc3339(created?).ok()?;
    let range = created.checked_sub(LATE)?..=created.checked_add(EARLY)?;
    range.contains(&scheduled).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(origin: PodOrigin<'_>, expected: &str) {
        assert_eq!(workload(&origin), expected, "{origin:?}");
    }

    #[test]
    fn a_deployment_is_known_by_the_hash_of_its_replica_set() {
        let owned = |name, template_hash| PodOrigin {
            pod: "web-5d4f8c7b9-x2x4z",
            owner: Some(("ReplicaSet", name)),
            template_hash,
            ..PodOrigin::default()
        };
        check(owned("web-5d4f8c7b9", Some("5d4f8c7b9")), "web");
        check(owned("web-frontend-5d4f8c7b9", Some("5d4f8c7b9")), "web-frontend");
        // A ReplicaSet of its own, whose name only looks like a Deployment's.
        check(owned("web-5d4f8c7b9", None), "web-5d4f8c7b9");
        check(owned("web-5d4f8c7b9", Some("0c4f8c7b9")), "web-5d4f8c7b9");
        check(owned("5d4f8c7b9", Some("5d4f8c7b9")), "5d4f8c7b9");
        check(owned("-5d4f8c7b9", Some("5d4f8c7b9")), "-5d4f8c7b9");
    }

    #[test]
    fn others_are_their_owner_or_themselves() {
        let owned = |kind, name| PodOrigin {
            pod: "db-0",
            owner: Some((kind, name)),
            template_hash: Some("abc"),
            ..PodOrigin::default()
        };
        check(owned("StatefulSet", "db"), "db");
        check(owned("DaemonSet", "log-abc"), "log-abc");
        check(PodOrigin { pod: "debug", ..PodOrigin::default() }, "debug");
    }

    #[test]
    fn a_static_pod_loses_its_nodes_name() {
        let on = |pod, node| PodOrigin {
            pod,
            owner: Some(("Node", node)),
            static_on: Some(node),
            ..PodOrigin::default()
        };
        check(on("kube-apiserver-cp-1", "cp-1"), "kube-apiserver");
        check(on("etcd-cp-1", "1"), "etcd-cp");
        check(on("etcd", "cp-1"), "etcd");
    }

    #[test]
    fn a_cron_job_is_known_by_the_minute_of_its_job() {
        // Noon was 29_381_040 minutes after the start of 1970.
        let job = |name, created| PodOrigin {
            pod: "x",
            owner: Some(("Job", name)),
            created,
            ..PodOrigin::default()
        };
        let created = Some("2025-11-11T12:00:03Z");
        check(job("backup-29380800", created), "backup");
        check(job("nightly-backup-29380740", created), "nightly-backup");
        check(job("backup-29380800", None), "backup-29380800");
        check(job("backup-29380800", Some("yesterday")), "backup-29380800");
        // Dates, numbers and words.
        check(job("backup-20251111", created), "backup-20251111");
        check(job("backup-29480800", created), "backup-29480800");
        check(job("backup-99999999999999999999", created), "backup-99999999999999999999");
        check(job("backup-18446744073709551615", created), "backup-18446744073709551615");
        check(job("backup-+29380800", created), "backup-+29380800");
        check(job("backup", created), "backup");
        check(job("-29380800", created), "-29380800");
    }
}
