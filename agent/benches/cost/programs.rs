//! The kernel programs of finrace, and for each a twin that does nothing: both are loaded, and can be
//! attached and detached at will.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use finrace::probe::attach::{Attached, Forced, Kernel, Link, Records, Serving, attach};
use finrace::probe::features::Features;
use finrace::probe::layout::Lacking;
use finrace::probe::plan::{Hook, Job, Part};
use finrace::session::prepare;
use serde::Serialize;

/// The agent's default.
const THRESHOLD: Duration = Duration::from_millis(200);

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Set {
    None,
    /// Twins.
    Empty,
    Finrace,
}

impl Set {
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Empty, Self::Finrace];
}

/// A program in the kernel, attached or not.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    job: Job,
    hook: Hook,
    part: Part,
    twin: Part,
}

pub(crate) struct Programs {
    finrace: Kernel,
    twins: Kernel,
    loaded: Vec<Loaded>,
    links: Vec<Link>,
}

/// What the kernel counted for a program, with run-time statistics on.
#[derive(Debug, Serialize)]
pub(crate) struct Count {
    pub(crate) name: &'static str,
    pub(crate) hook: &'static str,
    pub(crate) runs: u64,
    pub(crate) run_ns: u64,
    /// Instructions that the verifier went through.
    pub(crate) verified: Option<u32>,
}

impl Programs {
    /// Loads what the agent would choose here, and the twins from `object`. Nothing is attached;
    /// reading is left to the caller.
    pub(crate) fn load(object: &Path, forced: &[Forced]) -> Result<(Self, Loose)> {
        let (mut features, resolved) = prepare(None)?;
        let (finrace, mut attached) = attach(&mut features, resolved.layout, THRESHOLD, forced)?;
        attached.links.clear();
        let object = std::fs::read(object).with_context(|| format!("{}", object.display()))?;
        let mut twins = Kernel::new(Ebpf::load(&object)?, &features)?;
        let mut loaded: Vec<Loaded> = Vec::new();
        for choice in attached.serving.iter().filter_map(Serving::taken) {
            for part in &choice.parts {
                let name = part.program.replacen("fr_", "no_", 1);
                let known = loaded.iter().find(|other| other.part.program == part.program);
                let twin = known.map_or_else(|| &*name.leak(), |known| known.twin.program);
                let twin = Part { program: twin, ..*part };
                if known.is_none() {
                    twins.load(choice.hook, twin)?;
                }
                loaded.push(Loaded { job: choice.job, hook: choice.hook, part: *part, twin });
            }
        }
        let programs = Self { finrace, twins, loaded, links: Vec::new() };
        Ok((programs, Loose { attached, features, missing_fields: resolved.lost }))
    }

    /// Attaches these programs and no others; only those of one job, if one is given.
    pub(crate) fn attach(&mut self, set: Set, job: Option<Job>) -> Result<()> {
        self.links.clear();
        for Loaded { hook, part, twin, .. } in Self::of(&self.loaded, job) {
            match set {
                Set::None => {}
                Set::Empty => self.links.push(self.twins.attach_part(*hook, *twin)?),
                Set::Finrace => self.links.push(self.finrace.attach_part(*hook, *part)?),
            }
        }
        Ok(())
    }

    fn of(loaded: &[Loaded], job: Option<Job>) -> impl Iterator<Item = &Loaded> {
        loaded.iter().filter(move |loaded| job.is_none_or(|job| loaded.job == job))
    }

    /// The hook that serves a job.
    pub(crate) fn hook(&self, job: Job) -> Option<&'static str> {
        Self::of(&self.loaded, Some(job)).next().map(|loaded| loaded.hook.name())
    }

    /// Counts of all programs of a set, whether they are attached now or not.
    pub(crate) fn counts(&mut self, set: Set) -> Result<Vec<Count>> {
        let mut all: Vec<Count> = Vec::new();
        for Loaded { hook, part, twin, .. } in &self.loaded {
            let (kernel, part) = match set {
                Set::None => break,
                Set::Empty => (&mut self.twins, twin),
                Set::Finrace => (&mut self.finrace, part),
            };
            if all.iter().any(|known| known.name == part.program) {
                continue;
            }
            let info = kernel.info(part.program)?;
            let run_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
            all.push(Count {
                name: part.program,
                hook: hook.name(),
                runs: info.run_count(),
                run_ns,
                verified: info.verified_instruction_count(),
            });
        }
        Ok(all)
    }
}

/// What the programs write into, and what else a session needs.
pub(crate) struct Loose {
    pub(crate) attached: Attached,
    pub(crate) features: Features,
    pub(crate) missing_fields: Vec<Lacking>,
}

impl Loose {
    /// Discards the records that wait.
    pub(crate) fn drain(&mut self) {
        let Records { races, measures, .. } = &mut self.attached.records;
        for ring in [races, measures] {
            while ring.next().is_some() {}
        }
    }
}
