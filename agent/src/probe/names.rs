//! Names processes, where the kernel side can only name threads: `http-nio-8080-e` is `java`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_logic::event::Event;
use finrace_logic::model::Nanos;
use finrace_logic::owner::Owner;
use foldhash::HashMap;

use super::cgroups::of_process;
use crate::who::Who;

/// Inode of the first pid namespace (v6.12 `include/linux/proc_ns.h`, since 3.8).
const PROC_PID_INIT_INO: u64 = 0xEFFF_FFFC;

/// How long a name is trusted: process ids are reused, and processes rename themselves.
const FRESH: Duration = Duration::from_secs(10);

/// Names looked up at a time, some 10 us each: the rings wait in the meantime.
const MOST: usize = 50;

/// Names of processes by id, at most a few seconds old. A process that is gone, or is hidden in
/// another pid namespace, keeps the name of its thread.
pub struct ProcessNames {
    /// Whether the kernel's process ids are those of our `/proc`.
    in_first_namespace: bool,
    known: HashMap<u32, ProcEntry>,
    since: Nanos,
    who: Who,
}

/// What `/proc` says about a process.
struct ProcEntry {
    name: Option<[u8; 16]>,
    /// Set once it has been asked for.
    owner: Option<Owner>,
}

impl ProcessNames {
    pub fn new(who: Who) -> Self {
        let namespace = fs::metadata("/proc/self/ns/pid").map(|namespace| namespace.ino());
        let in_first_namespace = namespace.is_ok_and(|inode| inode == PROC_PID_INIT_INO);
        Self { in_first_namespace, known: HashMap::default(), since: Nanos(0), who }
    }

    /// Replaces the thread's name with the process's; the thread's stays if there is no time. If the
    /// socket does not reveal its owner, its process does.
    pub fn replace(&mut self, events: &mut [Event], now: Nanos) {
        if !self.in_first_namespace {
            return;
        }
        if now.since(self.since) > FRESH {
            self.known.clear();
            self.since = now;
        }
        let most = self.known.len() + MOST;
        for event in events.iter_mut().filter(|event| event.has(flag::TASK)) {
            let tgid = event.raw.tgid;
            if self.known.len() == most && !self.known.contains_key(&tgid) {
                continue;
            }
            let new = || ProcEntry { name: name(tgid), owner: None };
            let process = self.known.entry(tgid).or_insert_with(new);
            if let Some(name) = process.name {
                event.raw.comm = name;
            }
            if event.owner == Owner::UNKNOWN {
                event.task_owner = *process.owner.get_or_insert_with(|| owner(tgid, &self.who));
            }
        }
    }
}

fn owner(pid: u32, who: &Who) -> Owner {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    of_process(&text).map_or(Owner::UNKNOWN, |place| who.owner(place))
}

fn name(pid: u32) -> Option<[u8; 16]> {
    let text = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let mut name = [0; 16];
    let line = text.split(|byte| *byte == b'\n').next()?;
    for (to, from) in name.iter_mut().zip(line) {
        *to = *from;
    }
    Some(name)
}
