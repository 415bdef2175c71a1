//! From the id of a cgroup to what it is: its directory is looked for where cgroups of version 2 are
//! mounted.
//!
//! The id is the inode number of the directory, so it takes a walk through all of them to find one.
//! A walk is made when there are sockets whose cgroup is not known yet, and not too often.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::statfs;

use super::source::monotonic;
use crate::logic::event::Event;
use crate::logic::model::Nanos;
use crate::logic::owner::{Owner, Place};
use crate::logic::recent::Recent;
use crate::who::{Unnamed, Who};

/// Where systemd mounts cgroups of version 2: alone, or beside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// `CGROUP2_SUPER_MAGIC` (v6.12 `include/uapi/linux/magic.h`).
const CGROUP2: u64 = 0x6367_7270;

/// Id of the root of the hierarchy: no socket of a container or unit has it.
const ROOT: u64 = 1;

/// Links of a directory without another one within, each of which is one more
/// (`kernfs_refresh_inode`, v6.12 fs/kernfs/inode.c).
const EMPTY: u64 = 2;

/// Ids that are remembered, and for how long at least, in use or not.
const MOST: usize = 16_384;
const KEPT: Duration = Duration::from_mins(10);

/// From one walk to the next, at least this long, and so many times as long as it took: 5 % of a
/// processor while short-lived containers come and go.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_TIMES: u32 = 20;

/// Directories of a walk.
const MOST_DIRECTORIES: usize = 65_536;

/// Where the hierarchy of the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount(PathBuf);

impl Mount {
    /// The directory that was given, else where it usually is.
    ///
    /// # Errors
    /// If there is none, or only the part that a container has for itself.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        match given {
            Some(path) => Self::at(path),
            None => MOUNTS.iter().map(Path::new).find_map(|path| Self::at(path).ok()).context(
                "no cgroups of version 2 at /sys/fs/cgroup, or only those of this container: mount \
                 the host's and name the place with --cgroup.path",
            ),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn at(path: &Path) -> Result<Self> {
        let name = || path.display();
        let kind = statfs(path).with_context(|| format!("{}", name()))?.f_type;
        ensure!(kind.cast_unsigned() == CGROUP2, "{} has no cgroups of version 2", name());
        let root = fs::metadata(path).with_context(|| format!("{}", name()))?;
        // The one of a container has nothing in it, unless that container is a node itself.
        let is_useful = root.ino() == ROOT || root.nlink() > EMPTY;
        ensure!(is_useful, "{} is the cgroup of this container alone", name());
        Ok(Self(path.to_owned()))
    }
}

/// Owners by cgroup id.
pub struct Cgroups {
    mount: Option<Mount>,
    who: Who,
    known: Recent<u64, Owner>,
    next_walk: Nanos,
}

impl Cgroups {
    pub fn new(mount: Option<Mount>, who: Who) -> Self {
        Self { mount, who, known: Recent::new(MOST, KEPT), next_walk: Nanos(0) }
    }

    /// Tells each event whose socket it is.
    pub fn name(&mut self, events: &mut [Event], now: Nanos) {
        let Some(Mount(mount)) = &self.mount else { return };
        let is_new =
            |event: &&Event| event.raw.cgroup > ROOT && self.known.get(&event.raw.cgroup).is_none();
        let mut wanted: HashSet<u64> =
            events.iter().filter(is_new).map(|event| event.raw.cgroup).collect();
        if !wanted.is_empty() {
            if now < self.next_walk {
                self.who.count(Unnamed::Busy, wanted.len());
            } else {
                let start = monotonic();
                let (who, known) = (&self.who, &mut self.known);
                walk(mount, &mut wanted, |id, path| {
                    let owner = Place::of(path).map_or(Owner::UNKNOWN, |place| who.owner(place));
                    known.insert(id, now, owner);
                });
                self.who.count(Unnamed::Gone, wanted.len());
                // An id is never used again, so they need not be looked for again.
                for id in wanted.drain() {
                    known.insert(id, now, Owner::UNKNOWN);
                }
                let took = monotonic().since(start);
                self.next_walk = now + PAUSE.max(took * PAUSE_TIMES);
            }
        }
        for event in events {
            event.owner = self.known.get(&event.raw.cgroup).copied().unwrap_or_default();
        }
    }
}

/// Gives the path of each directory that is wanted, until there is none left.
fn walk(mount: &Path, wanted: &mut HashSet<u64>, mut found: impl FnMut(u64, &str)) {
    let mut directories = vec![mount.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop()
        && !wanted.is_empty()
        && seen < MOST_DIRECTORIES
    {
        seen += 1;
        // One that has just gone has nothing in it.
        if let Err(error) = look_into(mount, &directory, wanted, &mut found, &mut directories) {
            log::debug!("reading {}: {error}", directory.display());
        }
    }
}

fn look_into(
    mount: &Path,
    directory: &Path,
    wanted: &mut HashSet<u64>,
    found: &mut impl FnMut(u64, &str),
    directories: &mut Vec<PathBuf>,
) -> io::Result<()> {
    // Most have no other directory within, only some sixty files.
    if fs::symlink_metadata(directory)?.nlink() == EMPTY {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        if wanted.remove(&entry.ino()) {
            let below = path.strip_prefix(mount).unwrap_or(&path).to_string_lossy();
            found(entry.ino(), &below);
        }
        directories.push(path);
    }
    Ok(())
}

/// What a process belongs to, as its file `cgroup` in `/proc` has it, for hosts where sockets do not
/// tell: of version 2, else of systemd's own hierarchy, else of any that says more than a path.
pub fn of_process(text: &str) -> Option<Place> {
    let lines = || {
        text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            Some((controllers, Place::of(path)?))
        })
    };
    let of = |wanted: &str| lines().find(|(controllers, _)| *controllers == wanted);
    let containers = || lines().find(|(_, place)| place.unit.is_none());
    of("").or_else(|| of("name=systemd")).or_else(containers).map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test, with these directories in it; gone with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, directories: &[&str]) -> Self {
            let path = std::env::temp_dir().join(format!("finrace-{name}-{}", std::process::id()));
            for directory in directories {
                fs::create_dir_all(path.join(directory)).unwrap();
            }
            Self(path)
        }

        fn id(&self, directory: &str) -> u64 {
            fs::metadata(self.0.join(directory)).unwrap().ino()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn event(cgroup: u64) -> Event {
        let mut record = [0; finrace_ebpf::abi::RECORD_SIZE];
        record[std::mem::offset_of!(finrace_ebpf::abi::Record, kind)] =
            finrace_ebpf::abi::kind::STATE;
        let mut event = crate::logic::event::decode(&record).unwrap();
        event.raw.cgroup = cgroup;
        event
    }

    #[test]
    fn sockets_are_named_by_their_cgroup() {
        let tree = Tree::new("cgroups", &["a.slice/b.service", "a.slice/c.service/d", "e"]);
        let who = Who::default();
        let mut cgroups = Cgroups::new(Some(Mount(tree.0.clone())), who.clone());
        let mut name = |cgroup: u64, now: Nanos| {
            let mut events = [event(cgroup)];
            cgroups.name(&mut events, now);
            who.end(events[0].owner).text().unwrap_or_default()
        };
        let at = |secs| Nanos(0) + Duration::from_secs(secs);
        assert_eq!(name(tree.id("a.slice/b.service"), at(1)), "b.service");
        // Not twice at once; then those below, too. Its unit stays one that has gone.
        assert_eq!(name(tree.id("a.slice/c.service/d"), at(1)), "");
        assert_eq!(name(tree.id("a.slice/c.service/d"), at(2)), "c.service");
        let gone = tree.id("e");
        assert_eq!(name(gone, at(3)), "e");
        fs::remove_dir(tree.0.join("e")).unwrap();
        assert_eq!(name(gone, at(4)), "e");
        // The root, none, and one that is nowhere.
        for id in [0, ROOT, u64::MAX, u64::MAX] {
            assert_eq!(name(id, at(5)), "");
        }
        assert_eq!(who.sources(true)[0].errors, [("gone", 1), ("busy", 1)]);
    }

    #[test]
    fn what_is_no_root_of_cgroups_is_refused() {
        let check = |path: &str, expected: &str| {
            let error = Mount::find(Some(Path::new(path))).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        };
        check("/proc", "/proc has no cgroups of version 2");
        check("/nowhere", "/nowhere: No such file");
    }

    #[test]
    fn processes() {
        let check = |text: &str, expected: Option<&str>| {
            let text = text.replace("<id>", &"ab".repeat(32));
            let place = of_process(&text).map(|place| place.end().text().unwrap_or_default());
            assert_eq!(place.as_deref(), expected, "{text}");
        };
        check("0::/system.slice/nginx.service\n", Some("nginx.service"));
        let hybrid = "9:name=systemd:/system.slice/a.service\n4:memory:/system.slice\n0::/\n";
        check(hybrid, Some("a.service"));
        check("5:pids:/docker/<id>\n4:memory:/docker/<id>\n", Some("abababababab"));
        // A hierarchy of somebody's own says nothing.
        check("4:memory:/somebody/limits\n9:name=systemd:/\n0::/\n", None);
        check("0::/\n", None);
        check("garbage", None);
        check("", None);
    }
}
