//! Whose socket it is: that of the cgroup in which it was created, no matter which process runs when
//! something happens to it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use finrace::probe::cgroups::Mount;

use crate::races::stale_write;
use crate::stage::{Pair, Scenario, Skip, Stage};

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new(
        "owners_of_both_ends",
        owners,
        "race class=stale_write role=client client.workload=finrace-live-client.service \
             other_view.class=late_request \
             other_view.server.workload=finrace-live-server.service
         close role=client closer=peer client.workload=finrace-live-client.service
         close role=server closer=local server.workload=finrace-live-server.service
         !race client.workload=finrace-live-writer.service
         !close server.workload=finrace-live-writer.service",
    )
    .also_hookless(),
    Scenario::new(
        "no_owner_in_the_root",
        |stage| stale_write(stage.used_pair()?),
        "race class=stale_write role=client other_view.class=late_request
         !race client.workload=finrace-live-client.service",
    ),
];

/// Listener, client and writer are in groups of their own; the accepted socket is created in
/// softirq, while the client's thread connects.
fn owners(stage: &mut Stage) -> Result<()> {
    let groups = ["server", "client", "writer"].map(Group::new);
    let [server, client, writer] = groups;
    let (server, client, writer) = (server?, client?, writer?);
    server.enter()?;
    let listener = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
    client.enter()?;
    let mut pair = Pair::new(&listener, listener.local_addr()?)?;
    writer.enter()?;
    pair.exchange()?;
    stale_write(pair)
}

/// A cgroup for threads, gone when dropped.
struct Group {
    root: PathBuf,
    directory: PathBuf,
}

impl Group {
    fn new(name: &str) -> Result<Self> {
        let mount = Mount::find(None).map_err(|error| Skip(format!("{error:#}")))?;
        let root = mount.path().to_owned();
        let directory = root.join(format!("finrace-live-{name}.service"));
        let group = Self { root, directory };
        fs::create_dir_all(&group.directory)
            .with_context(|| format!("making {}", group.directory.display()))?;
        write(&group.directory.join("cgroup.type"), "threaded")?;
        Ok(group)
    }

    /// Moves the calling thread.
    fn enter(&self) -> Result<()> {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        let threads = self.directory.join("cgroup.threads");
        // Only from the root: a thread cannot leave the group that its process is in.
        write(&threads, &thread).map_err(|error| Skip(format!("{error:#}")).into())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        // Back to where the other threads are; a group that is not empty stays.
        fs::write(self.root.join("cgroup.threads"), thread).ok();
        fs::remove_dir(&self.directory).ok();
    }
}

fn write(file: &std::path::Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing to {}", file.display()))
}
