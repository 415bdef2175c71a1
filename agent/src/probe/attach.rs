//! Carries out a plan: tries a job's programs in order until one loads and attaches.
//!
//! One load is expected to fail: the program that proves whether `tcp_send_reset` may be had as
//! tp_btf. Everything stays attached until [`Attached`] is dropped.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, KProbe, Program, ProgramError, RawTracePoint};
use aya::{Btf as KernelBtf, Ebpf, EbpfLoader};
use finrace_ebpf::abi::{Layout, MEASURES_BYTES, RACES_BYTES, Settings};

use super::features::Features;
use super::plan::{Choice, Hook, Job, plan};
use crate::logic::event::Ticks;

/// Loaded where it must be refused; see `ebpf/src/main.rs`.
const PROOF: Choice = Choice {
    job: Job::ResetSent,
    hook: Hook::TpBtf,
    program: "fr_srst_proof",
    attach_to: "tcp_send_reset",
    parameters: 1,
    misses: None,
};

/// A choice forced from outside: a job's only hook, or none for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forced {
    pub job: Job,
    pub hook: Option<Hook>,
}

/// How a job came to be served, or not.
#[derive(Clone, Debug)]
pub struct Serving {
    pub job: Job,
    pub by: Option<Choice>,
    /// Programs that were passed over or refused, each with the reason.
    pub refused: Vec<(Choice, String)>,
}

/// Loaded and attached programs, and the way to their records.
pub struct Attached {
    /// Keeps programs and links alive.
    _ebpf: Ebpf,
    pub serving: Vec<Serving>,
    pub races: RingBuf<MapData>,
    pub measures: RingBuf<MapData>,
    pub losses: PerCpuArray<MapData, u64>,
    pub log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

/// Loads the object with this kernel's offsets; no program is in the kernel yet.
fn load_object(layout: Layout, features: &Features, threshold: Duration) -> Result<Ebpf> {
    let settings = Settings {
        reuse_jiffies: Ticks { hz: features.hz }.from_duration(threshold),
        wake_bytes: RACES_BYTES.min(MEASURES_BYTES) / 4,
    };
    let level = log::max_level() as u8;
    EbpfLoader::new()
        .override_global("FR_LAYOUT", &layout, true)
        .override_global("FR_SETTINGS", &settings, true)
        .override_global("AYA_LOG_LEVEL", &level, false)
        .load(finrace_ebpf::object_bytes())
        .context("loading the BPF object")
}

/// Attaches what the plan offers, best first.
///
/// # Errors
/// If a required job cannot be served; the chain names each program tried and why it was refused.
pub fn attach(
    features: &mut Features,
    layout: Layout,
    threshold: Duration,
    forced: &[Forced],
) -> Result<Attached> {
    let btf = KernelBtf::from_sys_fs().context("parsing the kernel's BTF")?;
    let mut ebpf = load_object(layout, features, threshold)?;
    if features.tracepoints.tcp_send_reset == Some(3) {
        features.reset_sk_nullable = Some(load(&mut ebpf, &PROOF, &btf).is_err());
    }
    let mut serving = Vec::new();
    for offer in plan(features).iter() {
        let mut refused: Vec<_> =
            offer.passed_over.iter().map(|over| (over.choice, over.why.clone())).collect();
        let force = forced.iter().find(|force| force.job == offer.job);
        let mut by = None;
        for choice in &offer.choices {
            if let Some(force) = force
                && force.hook != Some(choice.hook)
            {
                refused.push((*choice, "another choice was forced".to_owned()));
                continue;
            }
            match load(&mut ebpf, choice, &btf).and_then(|()| attach_one(&mut ebpf, choice)) {
                Ok(()) => {
                    by = Some(*choice);
                    break;
                }
                Err(error) => {
                    log::debug!("{error:#}");
                    refused.push((*choice, brief(&error)));
                }
            }
        }
        if by.is_none() && offer.job.is_required() {
            let tried: Vec<_> = refused
                .iter()
                .map(|(choice, why)| format!("{} as {}: {why}", choice.attach_to, choice.hook))
                .collect();
            bail!("no usable hook for {}: {}", offer.job, tried.join("; "));
        }
        serving.push(Serving { job: offer.job, by, refused });
    }
    let log = match aya_log::EbpfLogger::init(&mut ebpf) {
        Ok(log) => Some(log),
        Err(error) => {
            log::debug!("no log of the kernel programs: {error}");
            None
        }
    };
    Ok(Attached {
        serving,
        races: ring(&mut ebpf, "FR_RACES")?,
        measures: ring(&mut ebpf, "FR_MEASURES")?,
        losses: PerCpuArray::try_from(take(&mut ebpf, "FR_LOSSES")?)
            .context("opening map FR_LOSSES")?,
        log,
        _ebpf: ebpf,
    })
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the BPF object has no map {name}"))
}

fn ring(ebpf: &mut Ebpf, name: &str) -> Result<RingBuf<MapData>> {
    RingBuf::try_from(take(ebpf, name)?).with_context(|| format!("opening map {name}"))
}

fn load(ebpf: &mut Ebpf, choice: &Choice, btf: &KernelBtf) -> Result<()> {
    let (name, to) = (choice.program, choice.attach_to);
    let program = program(ebpf, choice)?;
    match choice.hook {
        Hook::TpBtf => typed::<BtfTracePoint>(program, name)?.load(to, btf),
        Hook::Fentry => typed::<FEntry>(program, name)?.load(to, btf),
        Hook::RawTp => typed::<RawTracePoint>(program, name)?.load(),
        Hook::Kprobe => typed::<KProbe>(program, name)?.load(),
    }
    .with_context(|| format!("loading {name}"))
}

fn attach_one(ebpf: &mut Ebpf, choice: &Choice) -> Result<()> {
    let (name, to) = (choice.program, choice.attach_to);
    let program = program(ebpf, choice)?;
    match choice.hook {
        Hook::TpBtf => typed::<BtfTracePoint>(program, name)?.attach().map(drop),
        Hook::Fentry => typed::<FEntry>(program, name)?.attach().map(drop),
        Hook::RawTp => typed::<RawTracePoint>(program, name)?.attach(to).map(drop),
        Hook::Kprobe => typed::<KProbe>(program, name)?.attach(to, 0).map(drop),
    }
    .with_context(|| format!("attaching {name} to {to}"))
}

/// The program as the type that its hook implies.
fn typed<'a, T>(program: &'a mut Program, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    program.try_into().with_context(|| format!("taking {name} for its type"))
}

fn program<'a>(ebpf: &'a mut Ebpf, choice: &Choice) -> Result<&'a mut Program> {
    ebpf.program_mut(choice.program)
        .ok_or_else(|| anyhow!("the BPF object has no program {}", choice.program))
}

/// The chain's first and last link, without a verifier log between them.
fn brief(error: &anyhow::Error) -> String {
    let last = error.root_cause().to_string();
    let last = last.lines().next().unwrap_or_default();
    format!("{error}: {last}")
}
