//! Cgroups such as systemd makes for its units: finrace names a workload by them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cgroup::remove_tree;

/// A cgroup of version 2, without systemd. Dropping this removes it, once its processes have ended.
pub(super) struct Unit {
    mount: PathBuf,
    path: PathBuf,
}

impl Unit {
    /// In a slice of our own, so that no real unit has it.
    pub(super) fn new(name: &str) -> Result<Self> {
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let mount = mount.into_iter().find(|mount| mount.join("cgroup.procs").exists());
        let mount = mount.context("no cgroups of version 2 below /sys/fs/cgroup")?.to_owned();
        let path = mount.join("finrace-lab.slice").join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { mount, path })
    }

    /// What `start` starts belongs to the unit: this process is in it meanwhile.
    pub(super) fn start<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let own = self.mount.join(own.context("no cgroup of version 2 of our own")?);
        enter(&self.path)?;
        let result = start();
        enter(&own)?;
        result
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Refused if another pair is in it, or in the slice.
        remove_tree(&self.path);
        if let Some(slice) = self.path.parent() {
            fs::remove_dir(slice).ok();
        }
    }
}

fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, std::process::id().to_string())
        .with_context(|| format!("writing {}", file.display()))
}
