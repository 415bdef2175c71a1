//! From the id of a cgroup to what it is: its directory is searched for where cgroups of version 2 are
//! mounted.
//!
//! The id is the inode number of the directory, so finding one takes a walk through all of them. A walk
//! is made when there are sockets whose cgroup is not yet known, not too often, and in turns, so that
//! the rings need not wait for it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use finrace_logic::event::Event;
use finrace_logic::model::Nanos;
use finrace_logic::owner::{Owner, Place};
use finrace_logic::recent::Recent;
use foldhash::HashSet;
use rustix::fs::statfs;

use crate::clock::monotonic;
use crate::who::{Unnamed, Who};

/// Where systemd mounts cgroups of version 2: alone, or alongside those of version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// `CGROUP2_SUPER_MAGIC` (v6.12 `include/uapi/linux/magic.h`).
const CGROUP2: u64 = 0x6367_7270;

/// Id of the root of the hierarchy: no socket of a container or unit has it.
const ROOT: u64 = 1;

/// Link count of a directory without subdirectories, each of which adds one
/// (`kernfs_refresh_inode`, v6.12 fs/kernfs/inode.c).
const EMPTY: u64 = 2;

/// How many ids are remembered, and for how long at least, in use or not.
const MOST: usize = 16_384;
const KEPT: Duration = Duration::from_mins(10);

/// Time from one walk to the next: at least this long, and at least this many times as long as the walk
/// took: 5 % of a processor while short-lived containers come and go.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_TIMES: u32 = 20;

/// How long a walk may run before the rings get their turn: they fill up in the meantime.
const TURN: Duration = Duration::from_millis(10);

/// Maximum number of directories in a walk.
const MOST_DIRECTORIES: usize = 65_536;

/// Where the hierarchy of the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount(PathBuf);

impl Mount {
    /// The given directory, or else the usual places.
    ///
    /// # Errors
    /// If there is none, or only the part that belongs to a container alone.
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
        // A container's own cgroup has nothing in it, unless that container is itself a node.
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
    /// The value when `known` was started.
    forgotten: u32,
    walk: Option<Walk>,
    next_walk: Nanos,
}

/// A walk through the directories, which may take several turns.
struct Walk {
    /// The nearest to the root first: many directories below one of them cannot leave the others nameless.
    directories: VecDeque<PathBuf>,
    wanted: HashSet<u64>,
    seen: usize,
    took: Duration,
}

impl Cgroups {
    pub fn new(mount: Option<Mount>, who: Who) -> Self {
        let (known, forgotten) = (Recent::new(MOST, KEPT), who.forgotten());
        Self { mount, who, known, forgotten, walk: None, next_walk: Nanos(0) }
    }

    /// Sets the owner of each event's socket.
    pub fn name(&mut self, events: &mut [Event], now: Nanos) {
        if self.mount.is_none() {
            return;
        }
        let forgotten = self.who.forgotten();
        if self.forgotten != forgotten {
            self.known = Recent::new(MOST, KEPT);
            self.forgotten = forgotten;
        }
        let mut new = HashSet::default();
        for event in events.iter_mut() {
            match self.known.get(&event.raw.cgroup) {
                Some(owner) => event.owner = *owner,
                None if event.raw.cgroup > ROOT => drop(new.insert(event.raw.cgroup)),
                None => {}
            }
        }
        if self.walk.is_none() && !new.is_empty() && now >= self.next_walk {
            self.walk = self.mount.as_ref().map(|mount| Walk::new(mount, new.clone()));
        }
        self.go_on(now);
        if new.is_empty() {
            return;
        }
        for event in events.iter_mut().filter(|event| new.contains(&event.raw.cgroup)) {
            event.owner = self.known.get(&event.raw.cgroup).copied().unwrap_or_default();
        }
        new.retain(|id| self.known.get(id).is_none());
        if !new.is_empty() {
            self.who.count(Unnamed::Busy, new.len());
        }
    }

    /// Walks for as long as the rings may wait.
    fn go_on(&mut self, now: Nanos) {
        let (Some(walk), Some(Mount(mount))) = (&mut self.walk, &self.mount) else { return };
        let (who, known) = (&self.who, &mut self.known);
        let is_over = walk.go(mount, |id, path| {
            let owner = Place::of(path).map_or(Owner::UNKNOWN, |place| who.owner(place));
            known.insert(id, now, owner);
        });
        if is_over && let Some(Walk { wanted, seen, took, .. }) = self.walk.take() {
            self.next_walk = now + PAUSE.max(took * PAUSE_TIMES);
            // An id that there was no time to find is searched for again.
            if seen < MOST_DIRECTORIES && !wanted.is_empty() {
                self.who.count(Unnamed::Gone, wanted.len());
                // Ids are never reused, so these need not be searched for again.
                for id in wanted {
                    self.known.insert(id, now, Owner::UNKNOWN);
                }
            }
        }
    }
}

impl Walk {
    fn new(Mount(mount): &Mount, wanted: HashSet<u64>) -> Self {
        Self { directories: [mount.clone()].into(), wanted, seen: 0, took: Duration::ZERO }
    }

    /// Reports the path of each wanted directory; false if the walk has to continue another time.
    fn go(&mut self, mount: &Path, mut found: impl FnMut(u64, &str)) -> bool {
        let start = monotonic();
        let is_over = loop {
            let Some(directory) = self.directories.pop_front() else { break true };
            // A directory that has just gone has nothing in it.
            if let Err(error) = self.look_into(mount, &directory, &mut found) {
                log::debug!("reading {}: {error}", directory.display());
            }
            self.seen += 1;
            if self.wanted.is_empty() || self.seen >= MOST_DIRECTORIES {
                break true;
            }
            if monotonic().since(start) > TURN {
                break false;
            }
        };
        self.took += monotonic().since(start);
        is_over
    }

    fn look_into(
        &mut self,
        mount: &Path,
        directory: &Path,
        found: &mut impl FnMut(u64, &str),
    ) -> io::Result<()> {
        // Most have no subdirectory, only some sixty files.
        if fs::symlink_metadata(directory)?.nlink() == EMPTY {
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let path = entry.path();
            if self.wanted.remove(&entry.ino()) {
                let below = path.strip_prefix(mount).unwrap_or(&path).to_string_lossy();
                found(entry.ino(), &below);
            }
            self.directories.push_back(path);
        }
        Ok(())
    }
}

/// What a process belongs to, according to its file `cgroup` in `/proc`, for hosts where sockets do not
/// show it: from version 2, else from systemd's own hierarchy, else from any that says more than a path.
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

    /// A directory for one test, with the given directories in it; removed when dropped.
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
        let mut event = finrace_logic::event::decode(&record).unwrap();
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
        // No second walk right away; then those below are found, too, by their unit. One that has gone stays known.
        assert_eq!(name(tree.id("a.slice/c.service/d"), at(1)), "");
        assert_eq!(name(tree.id("a.slice/c.service/d"), at(2)), "c.service");
        let gone = tree.id("e");
        assert_eq!(name(gone, at(3)), "e");
        fs::remove_dir(tree.0.join("e")).unwrap();
        assert_eq!(name(gone, at(4)), "e");
        // The root, no cgroup, and one that does not exist.
        for id in [0, ROOT, u64::MAX, u64::MAX] {
            assert_eq!(name(id, at(5)), "");
        }
        assert_eq!(who.sources(true)[0].errors, [("gone", 1), ("busy", 1)]);
    }

    #[test]
    fn owners_that_were_forgotten_are_looked_up_again() {
        let tree = Tree::new("forgotten", &["a.slice/b.service"]);
        let who = Who::default();
        let mut cgroups = Cgroups::new(Some(Mount(tree.0.clone())), who.clone());
        let mut name = |secs| {
            let mut events = [event(tree.id("a.slice/b.service"))];
            cgroups.name(&mut events, Nanos(0) + Duration::from_secs(secs));
            who.end(events[0].owner).text()
        };
        assert_eq!(name(1).as_deref(), Some("b.service"));
        for number in 0..20_000 {
            who.owner(Place::of(&format!("/{number}.service")).unwrap());
        }
        // An interrupted walk continues at the next turn.
        assert_eq!((2..100).find_map(name).as_deref(), Some("b.service"));
    }

    #[test]
    fn the_nearest_to_the_root_are_found_first() {
        let deep: Vec<String> = (0..300).map(|n| format!("a/b/c/{n}/x")).collect();
        let mut directories: Vec<&str> = deep.iter().map(String::as_str).collect();
        directories.push("z.service");
        let tree = Tree::new("nearest", &directories);
        let wanted = HashSet::from_iter([tree.id("z.service")]);
        let mut walk = Walk::new(&Mount(tree.0.clone()), wanted);
        let mut found = Vec::new();
        while !walk.go(&tree.0, |_, path| found.push(path.to_owned())) {}
        assert_eq!((found, walk.seen), (vec!["z.service".to_owned()], 1));
        // An id that does not exist takes the whole walk, in as many turns as needed.
        let mut walk = Walk::new(&Mount(tree.0.clone()), HashSet::from_iter([u64::MAX]));
        while !walk.go(&tree.0, |_, _| panic!("found")) {}
        assert_eq!((walk.seen, walk.wanted.len()), (1 + 3 + 2 * 300 + 1, 1));
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
        // A custom hierarchy says nothing.
        check("4:memory:/somebody/limits\n9:name=systemd:/\n0::/\n", None);
        check("0::/\n", None);
        check("garbage", None);
        check("", None);
    }
}
