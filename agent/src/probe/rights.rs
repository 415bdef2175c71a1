//! Capabilities and limits: what a start needs, how to get it, and how to give it up.

use std::error::Error;
use std::io;
use std::iter::successors;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::features::Features;

// Bit numbers of include/uapi/linux/capability.h, fixed by the system call interface.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Makes those capabilities effective that a start can use and this thread is permitted to use.
/// With `setcap cap_bpf,cap_perfmon+p` a file also starts where they are not granted, and can say
/// what is missing; with `+ep` the kernel would not even execute it.
///
/// # Errors
/// If the kernel refuses what it permits, which it never does on its own.
pub fn raise() -> Result<()> {
    let useful = CapabilitySet::BPF
        | CapabilitySet::PERFMON
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_RESOURCE;
    let mut sets = capabilities(None).context("reading the capabilities")?;
    let raised = sets.effective | sets.permitted & useful;
    if raised == sets.effective {
        return Ok(());
    }
    sets.effective = raised;
    set_capabilities(None, sets).context("raising the capabilities that are permitted")
}

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

/// Capabilities that a run needs and this process lacks. `CAP_SYS_RESOURCE` is among them where
/// maps count against `RLIMIT_MEMLOCK`; since the limit may have been raised from outside, lacking
/// only that one is no reason not to try.
pub fn missing(features: &Features) -> Vec<&'static str> {
    let mut missing = missing_to_load(features);
    if counts_memlock(features) && !has(features, CAP_SYS_RESOURCE) {
        missing.push("CAP_SYS_RESOURCE");
    }
    missing
}

/// One line that says how `binary` can get the capabilities it needs on this kernel.
pub fn remedy(features: &Features, binary: &Path) -> String {
    if features.cap_last_cap.is_some_and(|last| last < CAP_BPF) {
        return "this kernel does not know them (Linux has them since 5.8): run as root".to_owned();
    }
    let memlock = if counts_memlock(features) { ",cap_sys_resource" } else { "" };
    format!(
        "run as root, or: setcap cap_bpf,cap_perfmon{memlock}+p {}; in a container, add the \
         capabilities to it and run the image as it comes",
        binary.display()
    )
}

/// What may have caused a refusal to load, apart from the program, in brackets; empty if unknown.
pub fn why_refused(features: &Features, error: &(dyn Error + 'static)) -> String {
    // Nothing that always prevents a start is missing by then, only what may prevent it.
    let missing = missing(features).join(", ");
    if !missing.is_empty() {
        return format!(" (missing {missing}: try ulimit -l unlimited)");
    }
    let mut causes = successors(Some(error), |&error| error.source());
    let is_forbidden = causes.any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // Profiles answer with either: not permitted, or no such system call.
        matches!(kind, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported))
    });
    if is_forbidden {
        " (the capabilities are there: a seccomp profile or a security module forbids bpf(2))"
            .to_owned()
    } else {
        String::new()
    }
}

/// Whether maps count against `RLIMIT_MEMLOCK`, which only `CAP_SYS_RESOURCE` raises: before 5.11,
/// judging by the release.
fn counts_memlock(features: &Features) -> bool {
    version(&features.release).is_some_and(|version| version < (5, 11))
}

/// Raises the limit where it counts. A limit that cannot be raised may still be high enough; if not,
/// creating the maps fails.
pub fn raise_memlock(features: &Features) {
    let unlimited = Rlimit { current: None, maximum: None };
    if counts_memlock(features)
        && let Err(error) = setrlimit(Resource::Memlock, unlimited)
    {
        log::debug!("raising RLIMIT_MEMLOCK: {error}");
    }
}

/// Gives up every capability of this thread and of those it starts, for good: rings, counters and
/// links continue to work without them.
///
/// # Errors
/// If the kernel refuses to take capabilities away, which it never does on its own.
pub fn drop_all() -> Result<()> {
    // Works only with CAP_SETPCAP; without it, no_new_privs has the same effect for us.
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
    use aya::EbpfError;
    use aya::maps::MapError;

    use super::*;
    use crate::probe::plan::tests::linux_6_18;

    #[test]
    fn what_is_missing_and_how_to_come_by_it() {
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
            "run as root, or: setcap cap_bpf,cap_perfmon+p /bin/finrace; in a container, add the \
             capabilities to it and run the image as it comes"
        );
        let old = Features { cap_last_cap: Some(37), ..linux_6_18() };
        assert!(remedy(&old, Path::new("/bin/finrace")).starts_with("this kernel does not know"));
        assert!(remedy_on("5.10.1").contains("cap_bpf,cap_perfmon,cap_sys_resource+p /bin"));
    }

    #[test]
    fn refusals_are_told_apart() {
        let check = |release: &str, kind: io::ErrorKind, expected: &str| {
            let capabilities = 1 << CAP_BPF | 1 << CAP_PERFMON;
            let features = Features { release: release.to_owned(), capabilities, ..linux_6_18() };
            let io_error = io::Error::from(kind);
            let error = MapError::CreateError { name: "FR_RACES".to_owned(), io_error };
            let error = EbpfError::MapError(error);
            let why = why_refused(&features, &error);
            assert!(why.contains(expected) && why.is_empty() == expected.is_empty(), "{why}");
        };
        check("6.12.1", io::ErrorKind::PermissionDenied, "seccomp");
        check("6.12.1", io::ErrorKind::Unsupported, "seccomp");
        check("6.12.1", io::ErrorKind::OutOfMemory, "");
        check("5.10.1", io::ErrorKind::PermissionDenied, "missing CAP_SYS_RESOURCE");
    }

    #[test]
    fn what_is_permitted_is_raised_and_no_more() {
        // Capability sets belong to threads: this one's are like those of a file with `+p`. Without
        // rights of its own the test has none to raise, and sees that none appear from nowhere.
        let raised = std::thread::spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective = CapabilitySet::empty();
            sets.permitted &= CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::CHOWN;
            set_capabilities(None, sets).unwrap();
            raise().unwrap();
            (sets.permitted, capabilities(None).unwrap())
        });
        let (permitted, sets) = raised.join().unwrap();
        assert_eq!(sets.permitted, permitted);
        assert_eq!(sets.effective, permitted & (CapabilitySet::BPF | CapabilitySet::PERFMON));
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
