//! Pure: what a kernel and the rights offer, to the programs worth trying for each job.
//!
//! A plan is an offer, not a promise: the loader tries a job's choices in order until one loads
//! and attaches. Whatever is not in a plan is named there, with the reason.

use std::fmt;

use super::features::{Features, Lockdown};

/// What finrace has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    Write,
    State,
    ResetReceived,
    ResetSent,
}

impl Job {
    pub const ALL: [Self; 4] = [Self::Write, Self::State, Self::ResetReceived, Self::ResetSent];

    /// Without these there are no classes, and so no run.
    pub fn is_required(self) -> bool {
        matches!(self, Self::State | Self::ResetReceived)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::State => "state",
            Self::ResetReceived => "reset received",
            Self::ResetSent => "reset sent",
        }
    }

    /// What is not known while no program serves this job.
    pub fn loses(self) -> &'static str {
        match self {
            Self::Write => {
                "process and FIN age of stale writes, client reuse gaps that no reset ends"
            }
            Self::State => "closes, FINs and all that rests on them: everything",
            Self::ResetReceived => "how races end, and those that only a reset shows",
            Self::ResetSent => {
                "late requests that a reset answers (late_request, but for lingering closes)"
            }
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
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
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
pub struct Choice {
    pub job: Job,
    pub hook: Hook,
    /// Name of the BPF function.
    pub program: &'static str,
    /// Tracepoint or kernel function.
    pub attach_to: &'static str,
    /// How many of a tracepoint's parameters the program reads, counted to the last one it touches.
    pub parameters: usize,
    /// What this choice does not see, though others for the same job do.
    pub misses: Option<&'static str>,
}

/// Every program there is, best first within a job.
const CHOICES: [Choice; 11] = {
    use Hook::{Fentry, Kprobe, RawTp, TpBtf};
    use Job::{ResetReceived, ResetSent, State, Write};
    [
        choice(Write, TpBtf, "fr_write_btf", "tcp_sendmsg_locked").reading(2),
        choice(Write, RawTp, "fr_write_raw", "tcp_sendmsg_locked").reading(2),
        choice(Write, Fentry, "fr_write_fent", "tcp_sendmsg").missing(KERNEL_WRITES),
        choice(Write, Kprobe, "fr_write_kpr", "tcp_sendmsg").missing(KERNEL_WRITES),
        choice(State, TpBtf, "fr_state_btf", "inet_sock_set_state").reading(3),
        choice(State, RawTp, "fr_state_raw", "inet_sock_set_state").reading(3),
        choice(ResetReceived, TpBtf, "fr_rrst_btf", "tcp_receive_reset").reading(1),
        choice(ResetReceived, RawTp, "fr_rrst_raw", "tcp_receive_reset").reading(1),
        choice(ResetSent, TpBtf, "fr_srst_btf", "tcp_send_reset").reading(3),
        choice(ResetSent, RawTp, "fr_srst_raw3", "tcp_send_reset").reading(3),
        choice(ResetSent, RawTp, "fr_srst_raw2", "tcp_send_reset").reading(2).missing(SOCKETLESS),
    ]
};

const KERNEL_WRITES: &str = "writes of kTLS and sendfile";
/// Calls without a full socket (19822a980e19) came shortly before the third parameter, the reason
/// (b533fb9cf4f7): both in 6.10, going by their dates.
const SOCKETLESS: &str = "requests that come when our socket is in TIME_WAIT or gone";

const fn choice(job: Job, hook: Hook, program: &'static str, attach_to: &'static str) -> Choice {
    Choice { job, hook, program, attach_to, parameters: 0, misses: None }
}

impl Choice {
    const fn reading(self, parameters: usize) -> Self {
        Self { parameters, ..self }
    }

    const fn missing(self, misses: &'static str) -> Self {
        Self { misses: Some(misses), ..self }
    }
}

/// A choice that is not worth trying here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    pub choice: Choice,
    pub why: String,
}

/// What there is for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPlan {
    pub job: Job,
    /// To be tried in this order.
    pub choices: Vec<Choice>,
    pub passed_over: Vec<PassedOver>,
}

/// What there is for each job, in the order of [`Job::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    jobs: [JobPlan; 4],
}

impl Plan {
    pub fn iter(&self) -> impl Iterator<Item = &JobPlan> {
        self.jobs.iter()
    }

    /// Jobs that the run cannot do without and that nothing can serve.
    pub fn unserved(&self) -> impl Iterator<Item = &JobPlan> {
        self.iter().filter(|plan| plan.job.is_required() && plan.choices.is_empty())
    }
}

/// Sorts every choice into those worth trying and those passed over.
pub fn plan(features: &Features) -> Plan {
    let jobs = Job::ALL.map(|job| {
        let mut plan = JobPlan { job, choices: Vec::new(), passed_over: Vec::new() };
        for choice in CHOICES.into_iter().filter(|choice| choice.job == job) {
            match obstacle(choice, features) {
                None => plan.choices.push(choice),
                Some(why) => plan.passed_over.push(PassedOver { choice, why }),
            }
        }
        plan
    });
    Plan { jobs }
}

/// Why `choice` cannot work; the most general reason is given first.
fn obstacle(choice: Choice, features: &Features) -> Option<String> {
    if let Some(problem) = &features.btf_problem {
        return Some(format!("no field offsets without BTF: {problem}"));
    }
    let lacking = features.missing_to_load();
    if !lacking.is_empty() {
        return Some(format!("not without {}", lacking.join(", ")));
    }
    // The reset-sent programs reach into the packet, which no direct load can.
    let probe_reads =
        matches!(choice.hook, Hook::RawTp | Hook::Kprobe) || choice.job == Job::ResetSent;
    if probe_reads && features.lockdown == Lockdown::Confidentiality {
        return Some("lockdown=confidentiality forbids bpf_probe_read_kernel".to_owned());
    }
    match choice.hook {
        Hook::TpBtf | Hook::RawTp => bad_tracepoint(choice, features),
        Hook::Fentry | Hook::Kprobe if !features.has_tcp_sendmsg => {
            Some(format!("BTF has no function {}", choice.attach_to))
        }
        Hook::Kprobe if !features.has_kprobes => Some("this kernel has no kprobes".to_owned()),
        Hook::Kprobe if features.arch != "x86_64" => {
            Some(format!("the program does not know the registers of {}", features.arch))
        }
        Hook::Fentry | Hook::Kprobe => None,
    }
}

/// A raw tracepoint program that touches a parameter which the tracepoint has not loads, but does
/// not attach, so the counts decide, never the version: vendor kernels backport.
fn bad_tracepoint(choice: Choice, features: &Features) -> Option<String> {
    let known = features.tracepoints;
    let found = match choice.job {
        Job::Write => known.tcp_sendmsg_locked,
        Job::State => known.inet_sock_set_state,
        Job::ResetReceived => known.tcp_receive_reset,
        Job::ResetSent => known.tcp_send_reset,
    };
    let (Some(found), read) = (found, choice.parameters) else {
        return Some(format!("BTF has no tracepoint {}", choice.attach_to));
    };
    if found < read {
        return Some(format!("the tracepoint has {found} of the {read} parameters read"));
    }
    if choice.job != Job::ResetSent {
        return None;
    }
    if read < 3 && found > read {
        return Some("the tracepoint has a reason, which fr_srst_raw3 reads".to_owned());
    }
    match (choice.hook, features.reset_sk_nullable) {
        // Its loads are not fault-protected and its own NULL check would be dropped as dead code.
        (Hook::TpBtf, Some(false)) => {
            Some("this kernel takes sk as never NULL: a stray segment could crash it".to_owned())
        }
        (Hook::TpBtf, None) => Some("not shown that this kernel knows sk may be NULL".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::probe::features::Tracepoints;

    /// A root process on a kernel with these parameter counts: write, reset sent.
    fn kernel(release: &str, sendmsg_locked: Option<usize>, send_reset: usize) -> Features {
        Features {
            release: release.to_owned(),
            arch: "x86_64",
            btf_path: PathBuf::from("/sys/kernel/btf/vmlinux"),
            btf_problem: None,
            tracepoints: Tracepoints {
                tcp_sendmsg_locked: sendmsg_locked,
                inet_sock_set_state: Some(3),
                tcp_receive_reset: Some(1),
                tcp_send_reset: Some(send_reset),
            },
            has_tcp_sendmsg: true,
            has_kprobes: true,
            lockdown: Lockdown::None,
            capabilities: u64::MAX,
            uid: 0,
            hz: 250,
            unprivileged_bpf_disabled: Some(2),
            reset_sk_nullable: Some(false),
        }
    }

    fn linux_6_18() -> Features {
        Features { reset_sk_nullable: Some(true), ..kernel("6.18.44", Some(4), 3) }
    }

    /// The programs of each job in order, then what required job is unserved.
    #[track_caller]
    fn check(features: &Features, expected: &str) {
        let plan = plan(features);
        let job = |job: &JobPlan| {
            let programs: Vec<&str> = job.choices.iter().map(|choice| choice.program).collect();
            format!("{}: {}", job.job, programs.join(" "))
        };
        let mut lines: Vec<String> = plan.iter().map(job).collect();
        lines.extend(plan.unserved().map(|job| format!("cannot run: {}", job.job)));
        let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
        let lines: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
        assert_eq!(lines, expected);
    }

    /// The reason given for each program that is passed over.
    #[track_caller]
    fn check_why(features: &Features, expected: &[(&str, &str)]) {
        let plan = plan(features);
        let over: Vec<(&str, &str)> = plan
            .iter()
            .flat_map(|job| &job.passed_over)
            .map(|over| (over.choice.program, over.why.as_str()))
            .collect();
        assert_eq!(over, expected);
    }

    #[test]
    fn linux_5_10_and_6_1() {
        for release in ["5.10.223", "6.1.176"] {
            let features = Features { reset_sk_nullable: None, ..kernel(release, None, 2) };
            check(
                &features,
                "write: fr_write_fent fr_write_kpr
                 state: fr_state_btf fr_state_raw
                 reset received: fr_rrst_btf fr_rrst_raw
                 reset sent: fr_srst_raw2",
            );
            check_why(
                &features,
                &[
                    ("fr_write_btf", "BTF has no tracepoint tcp_sendmsg_locked"),
                    ("fr_write_raw", "BTF has no tracepoint tcp_sendmsg_locked"),
                    ("fr_srst_btf", "the tracepoint has 2 of the 3 parameters read"),
                    ("fr_srst_raw3", "the tracepoint has 2 of the 3 parameters read"),
                ],
            );
        }
    }

    #[test]
    fn linux_6_12() {
        let unsafe_btf = kernel("6.12.30", None, 3);
        let expected = "write: fr_write_fent fr_write_kpr
             state: fr_state_btf fr_state_raw
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_raw3";
        check(&unsafe_btf, expected);
        check(&Features { reset_sk_nullable: None, ..unsafe_btf.clone() }, expected);
        let raw2 = ("fr_srst_raw2", "the tracepoint has a reason, which fr_srst_raw3 reads");
        let no_write = [
            ("fr_write_btf", "BTF has no tracepoint tcp_sendmsg_locked"),
            ("fr_write_raw", "BTF has no tracepoint tcp_sendmsg_locked"),
        ];
        let crash = "this kernel takes sk as never NULL: a stray segment could crash it";
        check_why(&unsafe_btf, &[no_write[0], no_write[1], ("fr_srst_btf", crash), raw2]);
        let unasked = "not shown that this kernel knows sk may be NULL";
        check_why(
            &Features { reset_sk_nullable: None, ..unsafe_btf.clone() },
            &[no_write[0], no_write[1], ("fr_srst_btf", unasked), raw2],
        );
        check(
            &Features { reset_sk_nullable: Some(true), ..unsafe_btf },
            "write: fr_write_fent fr_write_kpr
             state: fr_state_btf fr_state_raw
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_btf fr_srst_raw3",
        );
    }

    #[test]
    fn linux_6_18_with_everything_and_with_less() {
        check(
            &linux_6_18(),
            "write: fr_write_btf fr_write_raw fr_write_fent fr_write_kpr
             state: fr_state_btf fr_state_raw
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_btf fr_srst_raw3",
        );
        check_why(
            &Features { has_kprobes: false, ..linux_6_18() },
            &[
                ("fr_write_kpr", "this kernel has no kprobes"),
                ("fr_srst_raw2", "the tracepoint has a reason, which fr_srst_raw3 reads"),
            ],
        );
        check_why(
            &Features { arch: "riscv64", ..linux_6_18() },
            &[
                ("fr_write_kpr", "the program does not know the registers of riscv64"),
                ("fr_srst_raw2", "the tracepoint has a reason, which fr_srst_raw3 reads"),
            ],
        );
        let expected = "write: fr_write_btf fr_write_raw
             state: fr_state_btf fr_state_raw
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_btf fr_srst_raw3";
        check(&Features { has_tcp_sendmsg: false, ..linux_6_18() }, expected);
    }

    #[test]
    fn under_confidentiality_only_direct_loads() {
        let features = Features { lockdown: Lockdown::Confidentiality, ..linux_6_18() };
        check(
            &features,
            "write: fr_write_btf fr_write_fent
             state: fr_state_btf
             reset received: fr_rrst_btf
             reset sent:",
        );
        let why = "lockdown=confidentiality forbids bpf_probe_read_kernel";
        let over = [
            "fr_write_raw",
            "fr_write_kpr",
            "fr_state_raw",
            "fr_rrst_raw",
            "fr_srst_btf",
            "fr_srst_raw3",
            "fr_srst_raw2",
        ];
        check_why(&features, &over.map(|program| (program, why)));
        let expected = "write: fr_write_btf fr_write_raw fr_write_fent fr_write_kpr
             state: fr_state_btf fr_state_raw
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_btf fr_srst_raw3";
        check(&Features { lockdown: Lockdown::Integrity, ..linux_6_18() }, expected);
        check(&Features { lockdown: Lockdown::Unknown, ..linux_6_18() }, expected);
    }

    #[test]
    fn what_ends_the_run() {
        let nothing = "write:
             state:
             reset received:
             reset sent:
             cannot run: state
             cannot run: reset received";
        let check_all = |features: &Features, why: &str| {
            check(features, nothing);
            check_why(features, &CHOICES.map(|choice| (choice.program, why)));
        };
        let problem = Some("reading x: No such file".to_owned());
        let no_btf = Features { btf_problem: problem, ..linux_6_18() };
        check_all(&no_btf, "no field offsets without BTF: reading x: No such file");
        let no_rights = Features { capabilities: 0, ..linux_6_18() };
        check_all(&no_rights, "not without CAP_BPF, CAP_PERFMON");
        check_all(&Features { capabilities: 1 << 39, ..linux_6_18() }, "not without CAP_PERFMON");

        let mut features = linux_6_18();
        features.tracepoints.inet_sock_set_state = Some(2);
        check(
            &features,
            "write: fr_write_btf fr_write_raw fr_write_fent fr_write_kpr
             state:
             reset received: fr_rrst_btf fr_rrst_raw
             reset sent: fr_srst_btf fr_srst_raw3
             cannot run: state",
        );
    }

    #[test]
    fn names_fit_the_kernel() {
        for choice in CHOICES {
            assert!(choice.program.len() <= 15 && choice.program.starts_with("fr_"));
        }
    }
}
