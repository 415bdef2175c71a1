//! Pure: from what a kernel and the rights offer to the programs worth trying for each job.
//!
//! A plan is an offer, not a promise: the loader tries a job's choices in order until one loads
//! and attaches. Choices that are not worth trying are in the plan, too, with the reason.

use std::fmt;

use super::features::{Features, Lockdown};
use super::rights;

/// What finrace has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    Write,
    State,
    ResetReceived,
    /// The end of sockets that were reset while the application was not looking.
    Destroy,
    Retransmit,
    ResetSent,
    /// Resets without a full socket: the only sign of a late request when our socket is in
    /// TIME_WAIT or gone.
    TimeWait,
}

impl Job {
    pub const ALL: [Self; 7] = [
        Self::Write,
        Self::State,
        Self::ResetReceived,
        Self::Destroy,
        Self::Retransmit,
        Self::ResetSent,
        Self::TimeWait,
    ];

    /// Without these jobs there are no classes, and so no run.
    pub fn is_required(self) -> bool {
        matches!(self, Self::State | Self::ResetReceived)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::State => "state",
            Self::ResetReceived => "reset received",
            Self::Destroy => "destroy",
            Self::Retransmit => "retransmit",
            Self::ResetSent => "reset sent",
            Self::TimeWait => "time-wait",
        }
    }

    /// What remains unknown while no program serves this job.
    pub fn loses(self) -> &'static str {
        match self {
            Self::Write => {
                "process and FIN age of stale writes, client reuse gaps that no reset ends"
            }
            Self::State => "closes, FINs and all that rests on them: everything",
            Self::ResetReceived => "how races end, and those that only a reset shows",
            Self::Destroy => "requests that fail since their socket was reset while it was idle",
            Self::Retransmit => "requests that hang, until their connection ends",
            Self::ResetSent => "late requests that reach a socket which is still there",
            Self::TimeWait => "late requests that come when our socket is in TIME_WAIT or gone",
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Tracepoint with typed arguments: fields are loaded directly.
    TpBtf,
    /// Tracepoint with plain arguments: fields are read by `bpf_probe_read_kernel`.
    RawTp,
    /// Function entry with typed arguments: fields are loaded directly.
    Fentry,
    /// Function entry by breakpoint or ftrace: fields are read by `bpf_probe_read_kernel`.
    Kprobe,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::TpBtf, Self::RawTp, Self::Fentry, Self::Kprobe];

    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

impl Hook {
    /// Why no program can be attached this way.
    fn obstacle(self, features: &Features) -> Option<String> {
        const DIRECT_CALLS: &str = "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS";
        const KPROBE_EVENTS: &str = "CONFIG_KPROBE_EVENTS";
        let lacks = |option| features.config.as_ref().is_some_and(|config| config.lacks(option));
        let built_without = |option| format!("this kernel was built without {option}");
        let Features { trials, arch, .. } = features;
        match self {
            Self::TpBtf | Self::Fentry if !features.has_kernel_btf => {
                Some("the kernel has no BTF to check typed arguments against".to_owned())
            }
            Self::Fentry if lacks(DIRECT_CALLS) => Some(built_without(DIRECT_CALLS)),
            Self::RawTp if trials.raw_tracepoint == Some(false) => {
                Some("this kernel refuses raw tracepoint programs".to_owned())
            }
            Self::Kprobe if lacks(KPROBE_EVENTS) => Some(built_without(KPROBE_EVENTS)),
            Self::Kprobe if !features.has_kprobes || trials.kprobe == Some(false) => {
                Some("this kernel has no kprobes".to_owned())
            }
            Self::Kprobe if !["x86_64", "aarch64"].contains(arch) => {
                Some(format!("the program does not know the registers of {arch}"))
            }
            Self::TpBtf | Self::RawTp | Self::Fentry | Self::Kprobe => None,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One program and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Name of the BPF function.
    pub program: &'static str,
    /// Tracepoint or kernel function.
    pub attach_to: &'static str,
}

/// A way to serve a job; all of its parts or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub job: Job,
    pub hook: Hook,
    /// Never empty; the first one names the choice.
    pub parts: Vec<Part>,
    /// What this choice does not see, though others for the same job do.
    pub misses: Option<&'static str>,
}

impl Choice {
    /// Tracepoints or functions.
    pub fn places(&self) -> String {
        self.parts.iter().map(|part| part.attach_to).collect::<Vec<_>>().join(", ")
    }

    /// The programs of the parts, each once.
    pub fn programs(&self) -> String {
        let mut programs: Vec<_> = self.parts.iter().map(|part| part.program).collect();
        programs.dedup();
        programs.join(", ")
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.hook, self.places())
    }
}

/// A choice as the table below states it, before a kernel has its say.
struct Candidate {
    job: Job,
    hook: Hook,
    parts: &'static [Part],
    /// How many of a tracepoint's parameters the program reads, counted up to the last one it touches.
    parameters: usize,
    /// Calls `bpf_probe_read_kernel`, whatever its hook.
    probe_reads: bool,
}

const fn part(program: &'static str, attach_to: &'static str) -> Part {
    Part { program, attach_to }
}

const fn candidate(job: Job, hook: Hook, parts: &'static [Part]) -> Candidate {
    let probe_reads = matches!(hook, Hook::RawTp | Hook::Kprobe);
    Candidate { job, hook, parts, parameters: 0, probe_reads }
}

impl Candidate {
    const fn reading(self, parameters: usize) -> Self {
        Self { parameters, ..self }
    }

    const fn with_probe_reads(self) -> Self {
        Self { probe_reads: true, ..self }
    }
}

/// Every program there is, best first within a job. Of the two functions that see writes, the inner
/// one comes first: it runs under the socket lock, and kTLS calls it directly since 6.5.
const CANDIDATES: &[Candidate] = {
    use Hook::{Fentry, Kprobe, RawTp, TpBtf};
    use Job::{Destroy, ResetReceived, ResetSent, Retransmit, State, TimeWait, Write};
    &[
        candidate(Write, TpBtf, &[part("fr_write_btf", "tcp_sendmsg_locked")]).reading(2),
        candidate(Write, RawTp, &[part("fr_write_raw", "tcp_sendmsg_locked")]).reading(2),
        candidate(
            Write,
            Fentry,
            &[part("fr_write_fent", "tcp_sendmsg_locked"), part("fr_pages_fent", SENDPAGES)],
        ),
        candidate(Write, Fentry, &[part("fr_write_fent", OUTER), part("fr_pages_fent", SENDPAGES)]),
        candidate(
            Write,
            Kprobe,
            &[part("fr_write_kpr", "tcp_sendmsg_locked"), part("fr_pages_kpr", SENDPAGES)],
        ),
        candidate(Write, Kprobe, &[part("fr_write_kpr", OUTER), part("fr_pages_kpr", SENDPAGES)]),
        candidate(State, TpBtf, &[part("fr_state_btf", "inet_sock_set_state")]).reading(3),
        candidate(State, RawTp, &[part("fr_state_raw", "inet_sock_set_state")]).reading(3),
        candidate(ResetReceived, TpBtf, &[part("fr_rrst_btf", "tcp_receive_reset")]).reading(1),
        candidate(ResetReceived, RawTp, &[part("fr_rrst_raw", "tcp_receive_reset")]).reading(1),
        candidate(Destroy, TpBtf, &[part("fr_dest_btf", "tcp_destroy_sock")]).reading(1),
        candidate(Destroy, RawTp, &[part("fr_dest_raw", "tcp_destroy_sock")]).reading(1),
        candidate(Retransmit, TpBtf, &[part("fr_retr_btf", "tcp_retransmit_skb")]).reading(1),
        candidate(Retransmit, RawTp, &[part("fr_retr_raw", "tcp_retransmit_skb")]).reading(1),
        // The packet's headers have no type: they are read by a helper, or not at all.
        candidate(ResetSent, TpBtf, &[part("fr_srst_btf", "tcp_send_reset")])
            .reading(3)
            .with_probe_reads(),
        candidate(ResetSent, TpBtf, &[part(HEADERLESS, "tcp_send_reset")]).reading(3),
        candidate(ResetSent, RawTp, &[part("fr_srst_raw3", "tcp_send_reset")]).reading(3),
        candidate(ResetSent, RawTp, &[part("fr_srst_raw2", "tcp_send_reset")]).reading(2),
        candidate(
            TimeWait,
            Fentry,
            &[part("fr_stray4_fent", "tcp_v4_send_reset"), part("fr_stray6_fent", V6_RESET)],
        )
        .with_probe_reads(),
        candidate(
            TimeWait,
            Kprobe,
            &[part("fr_stray_kpr", "tcp_v4_send_reset"), part("fr_stray_kpr", V6_RESET)],
        ),
    ]
};

/// What send(2) and its like call; the caller of `tcp_sendmsg_locked`.
const OUTER: &str = "tcp_sendmsg";
/// Before 6.5, writes of `sendfile`, kTLS and sockmap go through it (c5c37af6ecad, 1d7e4538a546).
const SENDPAGES: &str = "do_tcp_sendpages";
/// In a module, or not built at all, where the kernel's own BTF lacks it.
const V6_RESET: &str = "tcp_v6_send_reset";
/// The one program for resets sent that reads no headers.
const HEADERLESS: &str = "fr_srst_dir";
/// `tcp_send_reset` has reported resets without a full socket since 19822a980e19; the reason, its
/// third parameter, came right after (b533fb9cf4f7), both in 6.10.
const TELLS_ALL: usize = 3;

/// A choice, and why it is not worth trying, if it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub choice: Choice,
    pub obstacle: Option<String>,
}

/// What is available for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPlan {
    pub job: Job,
    /// Best first: those without an obstacle should be tried in this order.
    pub offers: Vec<Offer>,
    /// The job whose program also does this one's work.
    pub served_with: Option<Job>,
}

/// What is available for each job, in the order of [`Job::ALL`].
pub fn plan(features: &Features) -> [JobPlan; Job::ALL.len()] {
    Job::ALL.map(|job| {
        let candidates = CANDIDATES.iter().filter(|candidate| candidate.job == job);
        let offers = candidates.map(|candidate| Offer {
            choice: candidate.choice(features),
            obstacle: candidate.obstacle(features),
        });
        let is_covered = job == Job::TimeWait && tells_all(features);
        JobPlan { job, offers: offers.collect(), served_with: is_covered.then_some(Job::ResetSent) }
    })
}

fn tells_all(features: &Features) -> bool {
    features.tracepoints.tcp_send_reset.is_some_and(|found| found >= TELLS_ALL)
}

impl Candidate {
    /// The parts whose function exists here; the first one always, so that it can be named.
    fn choice(&self, features: &Features) -> Choice {
        let exists = |part: &Part| features.functions.contains(&part.attach_to);
        let Self { job, hook, parts, .. } = self;
        let is_function = matches!(hook, Hook::Fentry | Hook::Kprobe);
        let wanted = |(index, part): &(usize, &Part)| *index == 0 || !is_function || exists(part);
        let parts: Vec<Part> =
            parts.iter().enumerate().filter(wanted).map(|(_, part)| *part).collect();
        let misses = if parts.iter().all(|part| part.attach_to == OUTER) {
            Some("writes of kTLS")
        } else if parts.iter().any(|part| part.program == HEADERLESS) {
            Some("late requests that come when no socket of the connection is left")
        } else {
            None
        };
        Choice { job: *job, hook: *hook, parts, misses }
    }

    /// Why this cannot work; the most general reason is given first.
    fn obstacle(&self, features: &Features) -> Option<String> {
        if let Some(problem) = &features.btf_problem {
            return Some(format!("no field offsets without BTF: {problem}"));
        }
        let lacking = rights::missing_to_load(features);
        if !lacking.is_empty() {
            return Some(format!("not without {}", lacking.join(", ")));
        }
        if self.job == Job::TimeWait && tells_all(features) {
            return Some("tcp_send_reset tells of these here".to_owned());
        }
        if self.probe_reads && features.lockdown == Lockdown::Confidentiality {
            return Some("lockdown=confidentiality forbids bpf_probe_read_kernel".to_owned());
        }
        if self.probe_reads && features.trials.probe_read == Some(false) {
            return Some("this kernel refuses bpf_probe_read_kernel".to_owned());
        }
        if let Some(why) = self.hook.obstacle(features) {
            return Some(why);
        }
        match self.hook {
            Hook::TpBtf | Hook::RawTp => self.bad_tracepoint(features),
            Hook::Fentry | Hook::Kprobe => {
                let part = self.parts.first()?;
                let is_there = features.functions.contains(&part.attach_to);
                (!is_there).then(|| format!("BTF has no function {}", part.attach_to))
            }
        }
    }

    /// A raw tracepoint program that touches a parameter the tracepoint does not have loads, but does
    /// not attach, so the counts decide, never the version: vendor kernels backport.
    fn bad_tracepoint(&self, features: &Features) -> Option<String> {
        let (known, place) = (features.tracepoints, self.parts.first()?.attach_to);
        let found = match self.job {
            Job::Write => known.tcp_sendmsg_locked,
            Job::State => known.inet_sock_set_state,
            Job::ResetReceived => known.tcp_receive_reset,
            Job::Destroy => known.tcp_destroy_sock,
            Job::Retransmit => known.tcp_retransmit_skb,
            Job::ResetSent | Job::TimeWait => known.tcp_send_reset,
        };
        let (Some(found), read) = (found, self.parameters) else {
            return Some(format!("BTF has no tracepoint {place}"));
        };
        if found < read {
            return Some(format!("the tracepoint has {found} of the {read} parameters read"));
        }
        if self.job != Job::ResetSent {
            return None;
        }
        if read < TELLS_ALL && found > read {
            return Some("the tracepoint has a reason, which fr_srst_raw3 reads".to_owned());
        }
        match (self.hook, features.reset_sk_nullable) {
            // Loads are not fault-protected and the program's NULL check would be dropped.
            (Hook::TpBtf, Some(false)) => Some(
                "this kernel takes sk as never NULL: a stray segment could crash it".to_owned(),
            ),
            (Hook::TpBtf, None) => {
                Some("not shown that this kernel knows sk may be NULL".to_owned())
            }
            (Hook::TpBtf, Some(true)) if !self.probe_reads && may_probe_read(features) => {
                Some("others see more where bpf_probe_read_kernel is allowed".to_owned())
            }
            _ => None,
        }
    }
}

pub(super) fn may_probe_read(features: &Features) -> bool {
    features.lockdown != Lockdown::Confidentiality && features.trials.probe_read != Some(false)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::probe::config::KernelConfig;
    use crate::probe::features::{FUNCTIONS, Tracepoints};
    use crate::probe::trials::Trials;

    /// A root process on a kernel with these parameter counts: write, reset sent.
    fn kernel(release: &str, sendmsg_locked: Option<usize>, send_reset: usize) -> Features {
        Features {
            release: release.to_owned(),
            arch: "x86_64",
            btf_path: PathBuf::from("/sys/kernel/btf/vmlinux"),
            btf_problem: None,
            has_kernel_btf: true,
            tracepoints: Tracepoints {
                tcp_sendmsg_locked: sendmsg_locked,
                inet_sock_set_state: Some(3),
                tcp_receive_reset: Some(1),
                tcp_destroy_sock: Some(1),
                tcp_retransmit_skb: Some(2),
                tcp_send_reset: Some(send_reset),
            },
            functions: FUNCTIONS.into_iter().filter(|name| *name != SENDPAGES).collect(),
            has_kprobes: true,
            config: None,
            trials: Trials::default(),
            lockdown: Lockdown::None,
            capabilities: u64::MAX,
            cap_last_cap: Some(40),
            uid: 0,
            hz: 250,
            unprivileged_bpf_disabled: Some(2),
            bpf_jit_enable: Some(1),
            reset_sk_nullable: None,
        }
    }

    pub(in crate::probe) fn linux_6_18() -> Features {
        Features { reset_sk_nullable: Some(true), ..kernel("6.18.44", Some(4), 3) }
    }

    pub(in crate::probe) fn linux_6_1() -> Features {
        Features { functions: FUNCTIONS.to_vec(), ..kernel("6.1.176", None, 2) }
    }

    /// Checks what is worth trying, in order: a line for each job, choices separated by `|`, each shown
    /// by its programs, those of `write` by their places.
    #[track_caller]
    fn check(features: &Features, expected: &str) {
        let job = |job: &JobPlan| {
            let choices = job.offers.iter().filter(|offer| offer.obstacle.is_none());
            let texts: Vec<String> = choices
                .map(
                    |Offer { choice, .. }| {
                        if job.job == Job::Write { choice.to_string() } else { choice.programs() }
                    },
                )
                .collect();
            let with = job.served_with.map(|other| format!("as {other}")).unwrap_or_default();
            format!("{}: {with}{}", job.job, texts.join(" | "))
        };
        let lines: Vec<String> = plan(features).iter().map(job).collect();
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
        let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
        assert_eq!(lines, expected);
    }

    /// Checks why a program is passed over; empty: it is not.
    #[track_caller]
    fn check_why(features: &Features, program: &str, place: &str, expected: &str) {
        let plan = plan(features);
        let offers = plan.iter().flat_map(|job| &job.offers);
        let is_meant = |part: &Part| part.program == program && part.attach_to == place;
        let offer = offers.clone().find(|offer| offer.choice.parts.first().is_some_and(is_meant));
        let offer = offer.unwrap_or_else(|| panic!("no choice of {program} at {place}"));
        assert_eq!(offer.obstacle.as_deref().unwrap_or_default(), expected);
    }

    const WRITE_6_18: &str = "write: tp_btf tcp_sendmsg_locked | raw_tp tcp_sendmsg_locked \
         | fentry tcp_sendmsg_locked | fentry tcp_sendmsg \
         | kprobe tcp_sendmsg_locked | kprobe tcp_sendmsg";

    const STATE: &str = "state: fr_state_btf | fr_state_raw
        reset received: fr_rrst_btf | fr_rrst_raw
        destroy: fr_dest_btf | fr_dest_raw
        retransmit: fr_retr_btf | fr_retr_raw";

    #[test]
    fn linux_5_10_and_6_1() {
        let write = "write: fentry tcp_sendmsg_locked, do_tcp_sendpages \
             | fentry tcp_sendmsg, do_tcp_sendpages \
             | kprobe tcp_sendmsg_locked, do_tcp_sendpages \
             | kprobe tcp_sendmsg, do_tcp_sendpages";
        let features = linux_6_1();
        check(
            &features,
            &format!(
                "{write}
                 {STATE}
                 reset sent: fr_srst_raw2
                 time-wait: fr_stray4_fent, fr_stray6_fent | fr_stray_kpr"
            ),
        );
        let no_tracepoint = "BTF has no tracepoint tcp_sendmsg_locked";
        check_why(&features, "fr_write_btf", "tcp_sendmsg_locked", no_tracepoint);
        let few = "the tracepoint has 2 of the 3 parameters read";
        check_why(&features, "fr_srst_raw3", "tcp_send_reset", few);
        check_why(&features, "fr_srst_btf", "tcp_send_reset", few);

        // IPv6 in a module: its function is not in the kernel's own BTF.
        let functions = features.functions.iter().copied().filter(|name| *name != V6_RESET);
        let no_ipv6 = Features { functions: functions.collect(), ..features.clone() };
        let stray = plan(&no_ipv6);
        let stray = stray.last().and_then(|job| job.offers.first()).map(|offer| &offer.choice);
        assert_eq!(stray.map(Choice::programs).as_deref(), Some("fr_stray4_fent"));
    }

    #[test]
    fn linux_6_12() {
        let refused = Features { reset_sk_nullable: Some(false), ..kernel("6.12.30", None, 3) };
        let write = "write: fentry tcp_sendmsg_locked | fentry tcp_sendmsg \
             | kprobe tcp_sendmsg_locked | kprobe tcp_sendmsg";
        let raw = format!("{write}\n{STATE}\nreset sent: fr_srst_raw3\ntime-wait: as reset sent");
        check(&refused, &raw);
        let unasked = Features { reset_sk_nullable: None, ..refused.clone() };
        check(&unasked, &raw);
        let crash = "this kernel takes sk as never NULL: a stray segment could crash it";
        for program in ["fr_srst_btf", HEADERLESS] {
            check_why(&refused, program, "tcp_send_reset", crash);
            let why = "not shown that this kernel knows sk may be NULL";
            check_why(&unasked, program, "tcp_send_reset", why);
        }
        let raw2 = "the tracepoint has a reason, which fr_srst_raw3 reads";
        check_why(&refused, "fr_srst_raw2", "tcp_send_reset", raw2);
        let covered = "tcp_send_reset tells of these here";
        check_why(&refused, "fr_stray_kpr", "tcp_v4_send_reset", covered);
        check(
            &Features { reset_sk_nullable: Some(true), ..refused },
            &format!(
                "{write}
                 {STATE}
                 reset sent: fr_srst_btf | fr_srst_raw3
                 time-wait: as reset sent"
            ),
        );
    }

    #[test]
    fn linux_6_18_with_everything_and_with_less() {
        let rest =
            format!("{STATE}\nreset sent: fr_srst_btf | fr_srst_raw3\ntime-wait: as reset sent");
        check(&linux_6_18(), &format!("{WRITE_6_18}\n{rest}"));
        let kprobe = |features: &Features, why: &str| {
            check_why(features, "fr_write_kpr", "tcp_sendmsg_locked", why);
        };
        let no_kprobes = Features { has_kprobes: false, ..linux_6_18() };
        kprobe(&no_kprobes, "this kernel has no kprobes");
        let foreign = Features { arch: "riscv64", ..linux_6_18() };
        kprobe(&foreign, "the program does not know the registers of riscv64");
        kprobe(&Features { arch: "aarch64", ..linux_6_18() }, "");
        let no_inner = Features { functions: vec!["tcp_sendmsg"], ..linux_6_18() };
        kprobe(&no_inner, "BTF has no function tcp_sendmsg_locked");
        check(
            &no_inner,
            &format!(
                "write: tp_btf tcp_sendmsg_locked | raw_tp tcp_sendmsg_locked \
                 | fentry tcp_sendmsg | kprobe tcp_sendmsg\n{rest}"
            ),
        );
        // The outer function does not see kTLS, except where do_tcp_sendpages does.
        let misses = |features: &Features, place: &str| {
            let [write, ..] = plan(features);
            let mut offers = write.offers.into_iter().map(|offer| offer.choice);
            offers.find(|choice| choice.places() == place).and_then(|choice| choice.misses)
        };
        assert_eq!(misses(&linux_6_18(), "tcp_sendmsg"), Some("writes of kTLS"));
        assert_eq!(misses(&linux_6_18(), "tcp_sendmsg_locked"), None);
        assert_eq!(misses(&linux_6_1(), "tcp_sendmsg, do_tcp_sendpages"), None);
    }

    #[test]
    fn without_btf_of_its_own_only_plain_arguments() {
        let features = Features { has_kernel_btf: false, ..linux_6_18() };
        check(
            &features,
            "write: raw_tp tcp_sendmsg_locked | kprobe tcp_sendmsg_locked | kprobe tcp_sendmsg
             state: fr_state_raw
             reset received: fr_rrst_raw
             destroy: fr_dest_raw
             retransmit: fr_retr_raw
             reset sent: fr_srst_raw3
             time-wait: as reset sent",
        );
    }

    #[test]
    fn what_a_trial_or_the_configuration_rules_out() {
        let trials =
            Trials { kprobe: Some(false), raw_tracepoint: Some(false), ..Trials::default() };
        let features = Features { trials, ..linux_6_18() };
        check_why(&features, "fr_write_kpr", "tcp_sendmsg", "this kernel has no kprobes");
        let refused = "this kernel refuses raw tracepoint programs";
        check_why(&features, "fr_state_raw", "inet_sock_set_state", refused);

        let off = KernelConfig::parse(PathBuf::from("config"), "CONFIG_KPROBE_EVENTS=y");
        let features = Features { config: Some(off), ..linux_6_18() };
        let why = "this kernel was built without CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS";
        check_why(&features, "fr_write_fent", "tcp_sendmsg", why);
        check_why(&features, "fr_write_kpr", "tcp_sendmsg", "");
    }

    #[test]
    fn under_confidentiality_only_direct_loads() {
        let expected = "write: tp_btf tcp_sendmsg_locked | fentry tcp_sendmsg_locked \
             | fentry tcp_sendmsg
             state: fr_state_btf
             reset received: fr_rrst_btf
             destroy: fr_dest_btf
             retransmit: fr_retr_btf
             reset sent: fr_srst_dir
             time-wait: as reset sent";
        let features = Features { lockdown: Lockdown::Confidentiality, ..linux_6_18() };
        check(&features, expected);
        let why = "lockdown=confidentiality forbids bpf_probe_read_kernel";
        check_why(&features, "fr_srst_btf", "tcp_send_reset", why);
        check_why(&features, "fr_srst_raw3", "tcp_send_reset", why);
        // securityfs is not mounted, but the helper is refused.
        let trials = Trials { probe_read: Some(false), ..Trials::default() };
        let unknown = Features { lockdown: Lockdown::Unknown, trials, ..linux_6_18() };
        check(&unknown, expected);
        let why = "this kernel refuses bpf_probe_read_kernel";
        check_why(&unknown, "fr_srst_raw3", "tcp_send_reset", why);
        // Never if a stray segment could crash the node.
        let refused = Features { reset_sk_nullable: Some(false), ..features };
        let [.., reset_sent, _] = plan(&refused);
        assert!(reset_sent.offers.iter().all(|offer| offer.obstacle.is_some()));

        let usual = format!(
            "{WRITE_6_18}\n{STATE}\nreset sent: fr_srst_btf | fr_srst_raw3\n\
             time-wait: as reset sent"
        );
        check(&Features { lockdown: Lockdown::Integrity, ..linux_6_18() }, &usual);
        check(&Features { lockdown: Lockdown::Unknown, ..linux_6_18() }, &usual);
    }

    #[test]
    fn what_ends_the_run() {
        let check_all = |features: &Features, why: &str| {
            for offer in plan(features).iter().flat_map(|job| &job.offers) {
                assert_eq!(offer.obstacle.as_deref(), Some(why), "{}", offer.choice);
            }
        };
        let problem = Some("reading x: No such file".to_owned());
        let no_btf = Features { btf_problem: problem, ..linux_6_18() };
        check_all(&no_btf, "no field offsets without BTF: reading x: No such file");
        let no_rights = Features { capabilities: 0, ..linux_6_18() };
        check_all(&no_rights, "not without CAP_BPF, CAP_PERFMON");
        check_all(&Features { capabilities: 1 << 39, ..linux_6_18() }, "not without CAP_PERFMON");

        let mut features = linux_6_18();
        features.tracepoints.inet_sock_set_state = Some(2);
        let few = "the tracepoint has 2 of the 3 parameters read";
        check_why(&features, "fr_state_btf", "inet_sock_set_state", few);
        check_why(&features, "fr_state_raw", "inet_sock_set_state", few);
    }

    #[test]
    fn names_fit_the_kernel() {
        for part in CANDIDATES.iter().flat_map(|candidate| candidate.parts) {
            assert!(part.program.len() <= 15 && part.program.starts_with("fr_"));
        }
    }
}
