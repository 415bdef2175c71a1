//! Capabilities and limits: what a start needs, how to come by it, and how to let go of it.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::features::Features;

// Bit numbers of include/uapi/linux/capability.h, fixed by the system call interface.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn has(features: &Features, capability: u32) -> bool {
    features.capabilities >> capability & 1 == 1
}

/// Capabilities without which no program loads; `CAP_SYS_ADMIN` stands for both.
pub fn missing_to_load(features: &Features) -> Vec<&'static str> {
    let lacks = |capability| !has(features, capability) && !has(features, CAP_SYS_ADMIN);
    [("CAP_BPF", lacks(CAP_BPF)), ("CAP_PERFMON", lacks(CAP_PERFMON))]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect()
}

/// Capabilities that a run needs and this process has not. `CAP_SYS_RESOURCE` is among them where
/// maps count against `RLIMIT_MEMLOCK`; since the limit may have been raised from outside, lacking
/// that one alone is no reason not to try.
pub fn missing(features: &Features) -> Vec<&'static str> {
    let mut missing = missing_to_load(features);
    if counts_memlock(features) && !has(features, CAP_SYS_RESOURCE) {
        missing.push("CAP_SYS_RESOURCE");
    }
    missing
}

/// One line that says how `binary` comes by the capabilities it needs on this kernel.
pub fn remedy(features: &Features, binary: &Path) -> String {
    if features.cap_last_cap.is_some_and(|last| last < CAP_BPF) {
        return "this kernel does not know them (Linux has them since 5.8): run as root".to_owned();
    }
    let memlock = if counts_memlock(features) { ",cap_sys_resource" } else { "" };
    format!("run as root, or: setcap cap_bpf,cap_perfmon{memlock}+ep {}", binary.display())
}

/// Whether maps count against `RLIMIT_MEMLOCK`, which only `CAP_SYS_RESOURCE` raises: before 5.11,
/// as far as the release tells.
fn counts_memlock(features: &Features) -> bool {
    version(&features.release).is_some_and(|version| version < (5, 11))
}

/// Raises the limit where it counts. A limit that cannot be raised may still be high enough; if not,
/// the maps say so.
pub fn raise_memlock(features: &Features) {
    let unlimited = Rlimit { current: None, maximum: None };
    if counts_memlock(features)
        && let Err(error) = setrlimit(Resource::Memlock, unlimited)
    {
        log::debug!("raising RLIMIT_MEMLOCK: {error}");
    }
}

/// Gives up every capability of this thread and of those it starts, for good: rings, counters and
/// links work on without.
///
/// # Errors
/// If the kernel refuses to take capabilities away, which it never does of its own.
pub fn drop_all() -> Result<()> {
    // Only with CAP_SETPCAP; without it, no new privileges means the same for us.
    for capability in CapabilitySet::all().iter() {
        remove_capability_from_bounding_set(capability).ok();
    }
    clear_ambient_capability_set().context("clearing the ambient capabilities")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).context("dropping capabilities")?;
    set_no_new_privs(true).context("setting no_new_privs")
}

/// Major and minor number of a release such as `6.18.44-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::plan::tests::linux_6_18;

    #[test]
    fn capabilities() {
        let check = |release: &str, bits: &[u32], expected: &str| {
            let capabilities = bits.iter().map(|bit| 1 << bit).sum();
            let features = Features { release: release.to_owned(), capabilities, ..linux_6_18() };
            assert_eq!(missing(&features).join(" "), expected, "{release} {bits:?}");
        };
        check("6.12.1", &[], "CAP_BPF CAP_PERFMON");
        check("6.12.1", &[39], "CAP_PERFMON");
        check("6.12.1", &[38, 39], "");
        check("6.12.1", &[21], "");
        check("5.10.0-28-amd64", &[38, 39], "CAP_SYS_RESOURCE");
        check("5.10.0-28-amd64", &[21, 24], "");
        check("5.11", &[21], "");
        check("unheard of", &[21], "");

        let remedy_on = |release: &str| {
            let features = Features { release: release.to_owned(), ..linux_6_18() };
            remedy(&features, Path::new("/bin/finrace"))
        };
        assert_eq!(
            remedy_on("6.12.1"),
            "run as root, or: setcap cap_bpf,cap_perfmon+ep /bin/finrace"
        );
        let old = Features { cap_last_cap: Some(37), ..linux_6_18() };
        assert!(remedy(&old, Path::new("/bin/finrace")).starts_with("this kernel does not know"));
        assert_eq!(
            remedy_on("5.10.1"),
            "run as root, or: setcap cap_bpf,cap_perfmon,cap_sys_resource+ep /bin/finrace"
        );
    }

    #[test]
    fn nothing_is_left_of_capabilities() {
        // A thread of its own: the other tests keep theirs.
        let status = std::thread::spawn(|| {
            drop_all().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let status = status.join().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
}
