//! The rights that the agent is started with, and what it must have given up once it is attached.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// A user and all the capabilities it has.
#[derive(Clone, Copy)]
pub(crate) struct Rights {
    id: u32,
    capabilities: CapabilitySet,
}

impl Rights {
    /// `FINRACE_UID=65532` and `FINRACE_CAPS=cap_bpf,cap_perfmon`; without them, those that these
    /// tests have.
    pub(crate) fn from_env() -> Result<Option<Self>> {
        let Ok(id) = std::env::var("FINRACE_UID") else { return Ok(None) };
        let id = id.parse().with_context(|| format!("reading FINRACE_UID={id}"))?;
        let names = std::env::var("FINRACE_CAPS").unwrap_or_default();
        let capabilities = names.split(',').filter(|name| !name.is_empty()).map(|name| {
            let upper = name.to_uppercase();
            upper
                .strip_prefix("CAP_")
                .and_then(CapabilitySet::from_name)
                .with_context(|| format!("FINRACE_CAPS: `{name}` is no capability"))
        });
        Ok(Some(Self { id, capabilities: capabilities.collect::<Result<_>>()? }))
    }

    /// The command's process gets these rights and no others.
    pub(crate) fn restrict(self, command: &mut Command) {
        // SAFETY: between fork and exec only system calls are made: no allocation, no lock.
        unsafe { command.pre_exec(move || self.take_on()) };
    }

    /// Dropping from the bounding set needs a capability, so that goes first; a change of user
    /// clears the effective and ambient sets, so these go last.
    fn take_on(self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if self.capabilities.contains(capability) {
                continue;
            }
            match thread::remove_capability_from_bounding_set(capability) {
                // The first one that this kernel does not know.
                Err(Errno::INVAL) => break,
                result => result?,
            }
        }
        thread::set_keep_capabilities(true)?;
        thread::set_thread_groups(&[])?;
        thread::set_thread_res_gid(gid, gid, gid)?;
        thread::set_thread_res_uid(uid, uid, uid)?;
        let (effective, permitted, inheritable) =
            (self.capabilities, self.capabilities, self.capabilities);
        thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
        for capability in self.capabilities {
            thread::configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(thread::set_no_new_privs(true)?)
    }
}

/// Checks that no thread of the process, which was started with these rights, has a capability left,
/// nor, where it could prevent that, can get one again.
pub(crate) fn check_given_up(rights: Option<Rights>, pid: u32) -> Result<()> {
    let started_with = match rights {
        Some(rights) => rights.capabilities,
        None => thread::capabilities(None).context("reading these tests' capabilities")?.effective,
    };
    let mut sets = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
    if started_with.contains(CapabilitySet::SETPCAP) {
        sets.push("CapBnd");
    }
    let tasks = format!("/proc/{pid}/task");
    let mut kept = Vec::new();
    for task in fs::read_dir(&tasks).with_context(|| format!("listing {tasks}"))? {
        let task = task.with_context(|| format!("listing {tasks}"))?;
        let status = task.path().join("status");
        let status =
            fs::read_to_string(&status).with_context(|| format!("reading {}", status.display()))?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.with_context(|| format!("a thread's status has no {key}"))
        };
        if let Some(rights) = rights {
            let ids = value("Uid")?;
            let is_id = |id: &str| id.parse() == Ok(rights.id);
            ensure!(ids.split_whitespace().all(is_id), "a thread runs as{ids}");
        }
        for set in &sets {
            let bits = value(set)?.trim();
            if bits.bytes().any(|digit| digit != b'0') {
                kept.push(format!("thread {} has {set} {bits}", value("Name")?.trim()));
            }
        }
    }
    ensure!(kept.is_empty(), "{}", kept.join(", "));
    Ok(())
}
