//! Carries out a plan: tries a job's programs in order until one loads and attaches.
//!
//! One load is expected to fail: the program that proves whether `tcp_send_reset` may be had as
//! tp_btf. Everything stays attached until [`Attached`] is dropped.

use std::any::Any;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{MapData, RingBuf};
use aya::programs::{
    BtfTracePoint, FEntry, KProbe, Program, ProgramError, ProgramInfo, RawTracePoint,
};
use aya::{Btf as KernelBtf, Ebpf, EbpfLoader};
use finrace_ebpf::abi::{ABSENT, Layout, MEASURES_BYTES, RACES_BYTES, Settings, registers};
use finrace_ebpf::patch;
use finrace_logic::event::Ticks;

use super::features::Features;
use super::losses::Losses;
use super::plan::{Choice, Hook, Job, JobPlan, Part, may_probe_read, plan};
use super::rights;
use super::skips::Skips;
use super::verifier::{self, Loading};

/// Loaded where it must be refused; see `ebpf/src/main.rs`.
const PROOF: Part = Part { program: "fr_srst_proof", attach_to: "tcp_send_reset" };

/// A choice forced from outside: a job's only hook, or none for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forced {
    pub job: Job,
    /// `None`: the job is left unserved.
    pub hook: Option<Hook>,
    /// Only at this place; `None`: wherever the hook goes.
    pub attach_to: Option<String>,
}

impl Forced {
    fn allows(&self, choice: &Choice) -> bool {
        let first = choice.parts.first().map(|part| part.attach_to);
        self.hook == Some(choice.hook)
            && self.attach_to.as_deref().is_none_or(|place| first == Some(place))
    }
}

/// What became of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It serves the job.
    Taken,
    /// A better one serves the job. In a survey this one was also tried, and works.
    Spare,
    /// Not worth trying, and why.
    PassedOver(String),
    /// The kernel refused it, and why.
    Refused(String),
}

/// A choice and its fate.
#[derive(Clone, Debug)]
pub struct Tried {
    pub choice: Choice,
    pub outcome: Outcome,
    /// Instructions that the verifier processed, by program; only in a survey.
    pub instructions: Vec<(&'static str, u32)>,
}

/// How a job came to be served, or not.
#[derive(Clone, Debug)]
pub struct Serving {
    pub job: Job,
    /// Best first.
    pub tried: Vec<Tried>,
    /// The choice of another job that serves this one, too.
    pub with: Option<Choice>,
}

impl Serving {
    pub fn by(&self) -> Option<&Choice> {
        self.taken().or(self.with.as_ref())
    }

    /// The choice made for this job itself.
    pub fn taken(&self) -> Option<&Choice> {
        let taken = self.tried.iter().find(|tried| tried.outcome == Outcome::Taken);
        taken.map(|tried| &tried.choice)
    }

    /// What goes unseen with this choice, or without any.
    pub fn loses(&self) -> Option<&'static str> {
        self.by().map_or_else(|| Some(self.job.loses()), |choice| choice.misses)
    }

    /// Choices that were passed over or refused, each with the reason.
    fn refusals(&self) -> String {
        let refusal = |tried: &Tried| match &tried.outcome {
            Outcome::PassedOver(why) | Outcome::Refused(why) => {
                Some(format!("{}: {why}", tried.choice))
            }
            Outcome::Taken | Outcome::Spare => None,
        };
        self.tried.iter().filter_map(refusal).collect::<Vec<_>>().join("; ")
    }
}

/// Attached programs, and access to their records.
pub struct Attached {
    pub links: Vec<Link>,
    pub serving: Vec<Serving>,
    pub records: Records,
    pub skips: Skips,
}

/// What programs write and the agent reads.
pub struct Records {
    pub races: RingBuf<MapData>,
    pub measures: RingBuf<MapData>,
    pub losses: Losses,
    pub log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

/// An attached program; dropping this detaches it.
pub struct Link {
    _link: Box<dyn Any + Send>,
}

/// Attaches what the plan offers, best first. What is attached stays attached without the `Kernel`.
///
/// # Errors
/// If a required job cannot be served, or any job by the hook forced for it; the chain names
/// each program tried and why it was refused.
pub fn attach(
    features: &mut Features,
    layout: Layout,
    threshold: Duration,
    forced: &[Forced],
) -> Result<(Kernel, Attached)> {
    let mut kernel = Kernel::open(features, layout, threshold)?;
    kernel.prove(features);
    let mut links = Vec::new();
    let serving = serve(&plan(features), forced, |choice| {
        links.extend(kernel.attach(choice)?);
        Ok(())
    })?;
    let skips = kernel.skips(&serving)?;
    let records = kernel.records()?;
    Ok((kernel, Attached { links, serving, records, skips }))
}

/// Attaches every choice that the plan offers, one after another, and detaches each: nothing
/// stays. Otherwise like [`attach`].
pub fn survey(
    features: &mut Features,
    layout: Layout,
    threshold: Duration,
    forced: &[Forced],
) -> Result<Vec<Serving>> {
    let mut kernel = Kernel::open(features, layout, threshold)?;
    kernel.prove(features);
    let plan = plan(features);
    let mut serving = serve(&plan, forced, |choice| kernel.attach_for_a_moment(choice))?;
    for tried in serving.iter_mut().flat_map(|job| &mut job.tried) {
        match &tried.outcome {
            Outcome::Spare => {
                if let Err(error) = kernel.attach_for_a_moment(&tried.choice) {
                    tried.outcome = Outcome::Refused(brief(&error));
                    continue;
                }
            }
            Outcome::Taken => {}
            Outcome::PassedOver(_) | Outcome::Refused(_) => continue,
        }
        tried.instructions = kernel.instructions(&tried.choice)?;
    }
    Ok(serving)
}

/// Goes through the plan with `try_one`, which attaches a choice or says why not.
fn serve(
    plan: &[JobPlan],
    forced: &[Forced],
    mut try_one: impl FnMut(&Choice) -> Result<()>,
) -> Result<Vec<Serving>> {
    let mut serving: Vec<Serving> = Vec::new();
    for JobPlan { job, offers, served_with } in plan {
        // The last word counts, as with other options.
        let force = forced.iter().rfind(|force| force.job == *job);
        let mut is_served = false;
        let mut tried = Vec::new();
        for offer in offers {
            let choice = offer.choice.clone();
            let outcome = if let Some(why) = &offer.obstacle {
                Outcome::PassedOver(why.clone())
            } else if force.is_some_and(|force| !force.allows(&choice)) {
                Outcome::PassedOver("another choice was forced".to_owned())
            } else if is_served {
                Outcome::Spare
            } else {
                match try_one(&choice) {
                    Ok(()) => Outcome::Taken,
                    Err(error) => {
                        log::debug!("{error:#}");
                        Outcome::Refused(brief(&error))
                    }
                }
            };
            is_served |= outcome == Outcome::Taken;
            tried.push(Tried { choice, outcome, instructions: Vec::new() });
        }
        let with = serving.iter().find(|other| Some(other.job) == *served_with && force.is_none());
        let with = with.and_then(|other| other.by().cloned());
        let new = Serving { job: *job, tried, with };
        if new.by().is_none() {
            let wanted = force.and_then(|force| force.hook);
            if let Some(hook) = wanted {
                bail!("{job} cannot be had by {hook}: {}", new.refusals());
            }
            ensure!(!job.is_required(), "no usable hook for {job}: {}", new.refusals());
        }
        serving.push(new);
    }
    Ok(serving)
}

/// An object with its maps, and what it takes to load its programs.
pub struct Kernel {
    ebpf: Ebpf,
    /// Without it there are no typed arguments, and the plan offers none.
    btf: Option<KernelBtf>,
}

impl Kernel {
    /// Opens our own programs with this kernel's offsets. Creates the maps; loads no program yet.
    pub fn open(features: &Features, layout: Layout, threshold: Duration) -> Result<Self> {
        rights::raise_memlock(features);
        let settings = Settings {
            reuse_jiffies: Ticks { hz: features.hz }.from_duration(threshold),
            wake_bytes: RACES_BYTES.min(MEASURES_BYTES) / 4,
            registers: match features.arch {
                "aarch64" => registers::AARCH64,
                _ => registers::X86_64,
            },
            probe_read: u32::from(may_probe_read(features)),
        };
        let level = log::max_level() as u8;
        let mut layout = layout;
        if features.bpf_jit_enable == Some(0) {
            layout.rdonly_cast_id = ABSENT; // no function of the kernel is called without a JIT
        }
        if layout.sk_cgroup_is_val == 1 && !may_probe_read(features) {
            layout.sk_cgroup = ABSENT; // a number is not loaded from
        }
        let mut object = finrace_ebpf::object().context("unpacking the BPF object")?;
        let changed = patch::apply(&mut object, &layout, &settings);
        ensure!(changed > 0, "the BPF object has no operands to be put in");
        let ebpf = EbpfLoader::new()
            .override_global("FR_LAYOUT", &layout, true)
            .override_global("FR_SETTINGS", &settings, true)
            .override_global("AYA_LOG_LEVEL", &level, false)
            .load(&object)
            .map_err(|error| {
                let why = rights::why_refused(features, &error);
                anyhow::Error::from(error).context(format!("loading the BPF object{why}"))
            })?;
        Self::new(ebpf, features)
    }

    pub fn new(ebpf: Ebpf, features: &Features) -> Result<Self> {
        let btf = features.has_kernel_btf.then(KernelBtf::from_sys_fs).transpose();
        Ok(Self { ebpf, btf: btf.context("parsing the kernel's BTF")? })
    }

    /// Finds out whether the verifier knows that the sk of `tcp_send_reset` may be NULL.
    fn prove(&mut self, features: &mut Features) {
        if features.has_kernel_btf && features.tracepoints.tcp_send_reset == Some(3) {
            features.reset_sk_nullable = Loading::from(self.load(Hook::TpBtf, PROOF)).knows_null();
        }
    }

    /// Attaches all parts of a choice, or leaves nothing behind.
    fn attach(&mut self, choice: &Choice) -> Result<Vec<Link>> {
        let attached = self.attach_parts(choice);
        if attached.is_err() {
            self.unload(choice)?;
        }
        attached
    }

    fn attach_for_a_moment(&mut self, choice: &Choice) -> Result<()> {
        self.attach_parts(choice).map(drop).and(self.unload(choice))
    }

    fn attach_parts(&mut self, choice: &Choice) -> Result<Vec<Link>> {
        let Choice { hook, parts, .. } = choice;
        let mut links = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let is_loaded = parts.iter().take(index).any(|other| other.program == part.program);
            if !is_loaded {
                self.load(*hook, *part)?;
            }
            links.push(self.attach_part(*hook, *part)?);
        }
        Ok(links)
    }

    /// Loads a program into the kernel, for attachment at this place and nowhere else.
    pub fn load(&mut self, hook: Hook, Part { program, attach_to: to }: Part) -> Result<()> {
        let btf = self.btf.as_ref().context("the kernel has no BTF of its own");
        let kernel = find(&mut self.ebpf, program)?;
        match hook {
            Hook::TpBtf => typed::<BtfTracePoint>(kernel)?.load(to, btf?),
            Hook::Fentry => typed::<FEntry>(kernel)?.load(to, btf?),
            Hook::RawTp => typed::<RawTracePoint>(kernel)?.load(),
            Hook::Kprobe => typed::<KProbe>(kernel)?.load(),
        }
        .with_context(|| format!("loading {program}"))
    }

    /// Attaches a loaded program.
    pub fn attach_part(&mut self, hook: Hook, part: Part) -> Result<Link> {
        let Part { program, attach_to: to } = part;
        let kernel = find(&mut self.ebpf, program)?;
        /// Takes the link out of the program, which would otherwise keep it.
        macro_rules! link {
            ($kind:ty, $($argument:expr),*) => {{
                let program = typed::<$kind>(kernel)?;
                let link = program.attach($($argument),*).and_then(|id| program.take_link(id));
                link.map(|link| Link { _link: Box::new(link) })
            }};
        }
        match hook {
            Hook::TpBtf => link!(BtfTracePoint,),
            Hook::Fentry => link!(FEntry,),
            Hook::RawTp => link!(RawTracePoint, to),
            Hook::Kprobe => link!(KProbe, to, 0),
        }
        .with_context(|| format!("attaching {program} to {to}"))
    }

    /// Detaches and unloads whatever part of a choice is in the kernel.
    fn unload(&mut self, choice: &Choice) -> Result<()> {
        for Part { program, .. } in &choice.parts {
            let kernel = find(&mut self.ebpf, program)?;
            let unloaded = match choice.hook {
                Hook::TpBtf => typed::<BtfTracePoint>(kernel)?.unload(),
                Hook::Fentry => typed::<FEntry>(kernel)?.unload(),
                Hook::RawTp => typed::<RawTracePoint>(kernel)?.unload(),
                Hook::Kprobe => typed::<KProbe>(kernel)?.unload(),
            };
            match unloaded {
                Ok(()) | Err(ProgramError::NotLoaded) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("unloading {program}"));
                }
            }
        }
        Ok(())
    }

    /// What the kernel knows about a loaded program.
    pub fn info(&mut self, program: &str) -> Result<ProgramInfo> {
        find(&mut self.ebpf, program)?.info().with_context(|| format!("asking about {program}"))
    }

    /// Takes out of the object what the programs write to.
    fn records(&mut self) -> Result<Records> {
        let ebpf = &mut self.ebpf;
        let log = aya_log::EbpfLogger::init(ebpf)
            .inspect_err(|error| log::debug!("no log of the kernel programs: {error}"))
            .ok();
        let [races, measures, counts] =
            ["FR_RACES", "FR_MEASURES", "FR_LOSSES"].map(|name| take(ebpf, name));
        let (races, measures) = (races?, measures?);
        let losses = Losses::map(&counts?, [&races, &measures])?;
        let ring =
            |map, name| RingBuf::try_from(map).with_context(|| format!("opening map {name}"));
        Ok(Records {
            races: ring(races, "FR_RACES")?,
            measures: ring(measures, "FR_MEASURES")?,
            losses,
            log,
        })
    }

    /// The counters of the serving programs.
    fn skips(&mut self, serving: &[Serving]) -> Result<Skips> {
        let mut skips = Skips::default();
        for choice in serving.iter().filter_map(Serving::taken) {
            for Part { program, .. } in &choice.parts {
                let fd = find(&mut self.ebpf, program)?.fd()?.as_fd().try_clone_to_owned();
                skips.watch(choice.job, fd.context("duplicating a program's descriptor")?);
            }
        }
        Ok(skips)
    }

    /// Instructions that the verifier processes for each program of a working choice.
    fn instructions(&mut self, choice: &Choice) -> Result<Vec<(&'static str, u32)>> {
        let mut counts: Vec<(&'static str, u32)> = Vec::new();
        for part in &choice.parts {
            if counts.iter().any(|(program, _)| *program == part.program) {
                continue;
            }
            let load = || self.load(choice.hook, *part);
            if let Some(count) = verifier::instructions(load)? {
                counts.push((part.program, count));
            }
        }
        self.unload(choice)?;
        Ok(counts)
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the BPF object has no map {name}"))
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))
}

/// The program as the type that its hook implies.
fn typed<'a, T>(program: &'a mut Program) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    program.try_into().context("taking a program for its type")
}

/// The chain's first and last link, without a verifier log between them.
fn brief(error: &anyhow::Error) -> String {
    let last = error.root_cause().to_string();
    let last = last.lines().next().unwrap_or_default();
    format!("{error}: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::plan::tests::{linux_6_1, linux_6_18};

    /// The result with a kernel that refuses these programs: a line for each job, or the error.
    fn served(features: &Features, forced: &[Forced], refused: &[&str]) -> String {
        let serving = serve(&plan(features), forced, |choice| {
            let hit = choice.parts.iter().find(|part| refused.contains(&part.program));
            hit.map_or(Ok(()), |part| Err(anyhow!("no such function").context(part.program)))
        });
        let line = |job: &Serving| {
            let by = job.by().map_or_else(|| "none".to_owned(), ToString::to_string);
            format!("{}: {by}", job.job)
        };
        serving.map_or_else(
            |error| format!("{error:#}"),
            |serving| serving.iter().map(line).collect::<Vec<_>>().join("\n"),
        )
    }

    fn forced(job: Job, hook: Option<Hook>, attach_to: Option<&str>) -> Forced {
        Forced { job, hook, attach_to: attach_to.map(str::to_owned) }
    }

    /// Words of the object that hold `placeholder` where instructions have an offset or a number.
    fn with_placeholder(object: &[u8]) -> usize {
        let offsets = [patch::SKC_STATE, patch::LSNDTIME];
        let numbers = [patch::REUSE_JIFFIES, patch::TCP_SOCK_ID, patch::RDONLY_CAST_ID];
        let words = object.as_chunks::<8>().0.iter();
        let held = words.filter(|[_, _, o0, o1, number @ ..]| {
            let number = i32::from_le_bytes(*number);
            numbers.contains(&number)
                || (number == 0 && offsets.contains(&i16::from_le_bytes([*o0, *o1])))
        });
        held.count()
    }

    #[test]
    fn every_placeholder_is_put_in() {
        let layout = Layout {
            skc_state: 18,
            lsndtime: 1584,
            tcp_sock_id: 4711,
            rdonly_cast_id: 812,
            ..Layout::ABSENT
        };
        let settings = Settings { reuse_jiffies: 50, wake_bytes: 1, registers: 0, probe_read: 1 };
        let object = finrace_ebpf::object().unwrap();
        let mut changed = object.clone();
        let count = patch::apply(&mut changed, &layout, &settings);
        assert_eq!((count, with_placeholder(&changed)), (with_placeholder(&object), 0));
        // Six programs for writes, four of which load directly.
        assert!(count >= 6 + 3 * 4, "{count}");
        assert_eq!(patch::apply(&mut changed, &layout, &settings), 0);

        // r0 = call of kernel function 812, or of a helper without it.
        let call = |layout: &Layout| {
            let mut call = [0x85, 0x20, 0, 0, 0, 0, 0, 0];
            call[4..].copy_from_slice(&patch::RDONLY_CAST_ID.to_le_bytes());
            assert_eq!(patch::apply(&mut call, layout, &settings), 1);
            call
        };
        assert_eq!(call(&layout), [0x85, 0x20, 0, 0, 0x2C, 3, 0, 0]);
        let without = Layout { rdonly_cast_id: ABSENT, ..layout };
        assert_eq!(call(&without), [0x85, 0, 0, 0, 137, 0, 0, 0]);
        // r2 = *(u8 *)(r1 + 18); what only looks like it stays as it is.
        let mut load = [0x71, 0x12, 0x01, 0x7F, 0, 0, 0, 0];
        patch::apply(&mut load, &layout, &settings);
        assert_eq!(load, [0x71, 0x12, 18, 0, 0, 0, 0, 0]);
        let mut store = [0x73, 0x12, 0x01, 0x7F, 0, 0, 0, 0];
        assert_eq!(patch::apply(&mut store, &layout, &settings), 0);
    }

    #[test]
    fn the_first_that_attaches_serves() {
        let best = "write: tp_btf tcp_sendmsg_locked
state: tp_btf inet_sock_set_state
reset received: tp_btf tcp_receive_reset
destroy: tp_btf tcp_destroy_sock
retransmit: tp_btf tcp_retransmit_skb
reset sent: tp_btf tcp_send_reset
time-wait: tp_btf tcp_send_reset";
        assert_eq!(served(&linux_6_18(), &[], &[]), best);
        let refused = ["fr_write_btf", "fr_write_raw", "fr_state_btf", "fr_srst_btf"];
        let second = "write: fentry tcp_sendmsg_locked
state: raw_tp inet_sock_set_state
reset received: tp_btf tcp_receive_reset
destroy: tp_btf tcp_destroy_sock
retransmit: tp_btf tcp_retransmit_skb
reset sent: raw_tp tcp_send_reset
time-wait: raw_tp tcp_send_reset";
        assert_eq!(served(&linux_6_18(), &[], &refused), second);
        // All parts or none.
        let old = "write: kprobe tcp_sendmsg_locked, do_tcp_sendpages
state: tp_btf inet_sock_set_state
reset received: tp_btf tcp_receive_reset
destroy: tp_btf tcp_destroy_sock
retransmit: tp_btf tcp_retransmit_skb
reset sent: raw_tp tcp_send_reset
time-wait: kprobe tcp_v4_send_reset, tcp_v6_send_reset";
        assert_eq!(served(&linux_6_1(), &[], &["fr_pages_fent", "fr_stray6_fent"]), old);
    }

    #[test]
    fn only_what_is_required_ends_the_run() {
        let writes = ["fr_write_btf", "fr_write_raw", "fr_write_fent", "fr_write_kpr"];
        assert!(served(&linux_6_18(), &[], &writes).starts_with("write: none\n"));
        assert_eq!(
            served(&linux_6_18(), &[], &["fr_state_btf", "fr_state_raw"]),
            "no usable hook for state: \
             tp_btf inet_sock_set_state: fr_state_btf: no such function; \
             raw_tp inet_sock_set_state: fr_state_raw: no such function"
        );
    }

    #[test]
    fn a_forced_hook_is_had_or_the_run_ends() {
        let outer = [forced(Job::Write, Some(Hook::Fentry), Some("tcp_sendmsg"))];
        assert!(served(&linux_6_18(), &outer, &[]).starts_with("write: fentry tcp_sendmsg\n"));
        let kprobe = forced(Job::Write, Some(Hook::Kprobe), None);
        let none = [kprobe, forced(Job::Write, None, None), forced(Job::ResetSent, None, None)];
        let served_by_none = served(&linux_6_18(), &none, &[]);
        assert!(served_by_none.starts_with("write: none\n"), "{served_by_none}");
        assert!(served_by_none.ends_with("reset sent: none\ntime-wait: none"), "{served_by_none}");
        let stray = [forced(Job::TimeWait, Some(Hook::Kprobe), None)];
        let refused = served(&linux_6_18(), &stray, &[]);
        let expected = "time-wait cannot be had by kprobe: ";
        assert!(refused.starts_with(expected), "{refused}");
        assert!(refused.ends_with(": tcp_send_reset tells of these here"), "{refused}");
    }
}
