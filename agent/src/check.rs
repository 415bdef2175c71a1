//! `finrace check`: what this kernel and these rights allow, tried for real.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use finrace_logic::balance::Balance;
use serde::Serialize;

use crate::cli::{Check, KernelArgs};
use crate::metrics;
use crate::output::{eprintln_quietly, json, print};
use crate::probe::attach::{Outcome, Serving, Tried, survey};
use crate::probe::features::{Features, Lockdown, Roots};
use crate::probe::layout::Lacking;
use crate::probe::plan::Choice;
use crate::probe::rights;
use crate::session::{self, Session};

/// Attaches every program that could serve, detaches it, and prints how it went; false if finrace
/// cannot run here, or if something goes missing uncounted while it does.
pub async fn run(args: &Check) -> Result<bool> {
    rights::raise()?;
    let kernel = &args.kernel;
    let (mut features, btf) = Features::read(Roots::default(), kernel.btf.as_deref())?;
    let tried = session::usable(&mut features, btf).and_then(|resolved| {
        let threshold = kernel.reuse_threshold;
        let serving = survey(&mut features, resolved.layout, threshold, &kernel.hooks)?;
        Ok((serving, resolved.lost))
    });
    let (serving, missing_fields, problem) = match tried {
        Ok((serving, missing)) => (serving, missing, None),
        Err(error) => (Vec::new(), Vec::new(), Some(format!("{error:#}"))),
    };
    let mut findings = Findings::of(&features, &serving, &missing_fields, problem);
    if let (true, Some(duration)) = (findings.can_run, args.live) {
        findings.live = Some(LiveFindings::watch(kernel, duration).await?);
    }
    let text = if args.json { json(&findings, true)? } else { findings.to_text() };
    print(&text)?;
    Ok(findings.can_run && findings.live.is_none_or(|live| live.is_complete))
}

#[derive(Debug, Serialize)]
struct Findings {
    can_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    kernel: String,
    arch: &'static str,
    btf: String,
    config: Option<String>,
    lockdown: &'static str,
    jit: &'static str,
    unprivileged_bpf_disabled: Option<u8>,
    uid: u32,
    missing_capabilities: Vec<&'static str>,
    hz: u32,
    jobs: Vec<JobFindings>,
    missing_fields: Vec<FieldFindings>,
    /// What was seen while it ran, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<LiveFindings>,
}

#[derive(Debug, Serialize)]
struct LiveFindings {
    seconds: f64,
    /// All that each stage took in was passed on, counted as lost, or was still waiting.
    is_complete: bool,
    stages: Vec<StageFindings>,
}

#[derive(Debug, Serialize)]
struct StageFindings {
    stage: &'static str,
    taken: u64,
    /// Handed on, or done with.
    passed: u64,
    /// Missing, and counted by reason.
    lost: u64,
    pending: u64,
    /// Missing, and counted nowhere; negative where something was counted twice.
    unaccounted: i128,
}

impl LiveFindings {
    /// Runs as the other commands do, for that long or until a signal.
    async fn watch(kernel: &KernelArgs, duration: Duration) -> Result<Self> {
        let mut session = Session::start(kernel)?;
        eprintln_quietly(&format!(
            "attached; watching for {}",
            humantime::format_duration(duration)
        ));
        session.run(Some(duration), None, |_, _| Ok(ControlFlow::Continue(()))).await?;
        let mut balances = session.balances();
        let status = session.status();
        balances.push(metrics::balance(&mut session.engine.table, status));
        Ok(Self {
            seconds: session.elapsed().as_secs_f64(),
            is_complete: balances.iter().all(|balance| balance.unaccounted() == 0),
            stages: balances.iter().map(StageFindings::of).collect(),
        })
    }

    fn write(&self, line: &mut impl FnMut(String)) {
        let Self { seconds, is_complete, stages } = self;
        line(format!("\nwatched for {seconds:.0} s"));
        let columns = |of: [&str; 6]| {
            let [stage, rest @ ..] = of;
            let rest = rest.map(|column| format!("{column:>12}")).concat();
            format!("{stage:<14}{rest}")
        };
        line(columns(["stage", "taken", "passed", "lost", "pending", "unaccounted"]));
        for StageFindings { stage, taken, passed, lost, pending, unaccounted } in stages {
            let [taken, passed, lost, pending] =
                [taken, passed, lost, pending].map(ToString::to_string);
            let unaccounted = unaccounted.to_string();
            line(columns([stage, &taken, &passed, &lost, &pending, &unaccounted]));
        }
        line(if *is_complete {
            "everything is accounted for".to_owned()
        } else {
            "something went missing uncounted: this is a fault of finrace, please report it"
                .to_owned()
        });
    }
}

impl StageFindings {
    fn of(balance: &Balance) -> Self {
        let Balance { stage, taken, passed, lost, pending } = *balance;
        let unaccounted = balance.unaccounted();
        Self { stage: stage.as_str(), taken, passed, lost, pending, unaccounted }
    }
}

#[derive(Debug, Serialize)]
struct JobFindings {
    job: &'static str,
    /// `none` where nothing serves it.
    hook: &'static str,
    attached_to: String,
    /// What goes unseen with this hook, or without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    loses: Option<&'static str>,
    /// Best first.
    choices: Vec<ChoiceFindings>,
}

#[derive(Debug, Serialize)]
struct ChoiceFindings {
    hook: &'static str,
    attach_to: String,
    program: String,
    /// `taken`; `spare`: it works, and a better one is taken; `passed_over`; `refused`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Instructions that the verifier processes, by program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    verified: Vec<ProgramFindings>,
}

#[derive(Debug, Serialize)]
struct ProgramFindings {
    program: &'static str,
    instructions: u32,
}

#[derive(Debug, Serialize)]
struct FieldFindings {
    field: String,
    loses: &'static str,
}

impl Findings {
    fn of(
        features: &Features,
        serving: &[Serving],
        missing_fields: &[Lacking],
        problem: Option<String>,
    ) -> Self {
        let fields = missing_fields
            .iter()
            .map(|lost| FieldFindings { field: lost.field.clone(), loses: lost.loses });
        Self {
            can_run: problem.is_none(),
            problem,
            kernel: features.release.clone(),
            arch: features.arch,
            btf: match &features.btf_problem {
                Some(problem) => problem.clone(),
                None => features.btf_path.display().to_string(),
            },
            config: features.config.as_ref().map(|config| config.path.display().to_string()),
            lockdown: match features.lockdown {
                Lockdown::None => "none",
                Lockdown::Integrity => "integrity",
                Lockdown::Confidentiality => "confidentiality",
                Lockdown::Unknown => "not known (securityfs is not mounted)",
            },
            jit: match features.bpf_jit_enable {
                Some(0) => "off",
                Some(_) => "on",
                None => "not known",
            },
            unprivileged_bpf_disabled: features.unprivileged_bpf_disabled,
            uid: features.uid,
            missing_capabilities: rights::missing(features),
            hz: features.hz,
            jobs: serving.iter().map(JobFindings::of).collect(),
            missing_fields: fields.collect(),
            live: None,
        }
    }

    fn to_text(&self) -> String {
        let capabilities = if self.missing_capabilities.is_empty() {
            "all that is needed".to_owned()
        } else {
            format!("missing {}", self.missing_capabilities.join(", "))
        };
        let mut text = format!(
            "kernel         {} {}, HZ {}, JIT {}\nBTF            {}\nlockdown       {}\n\
             capabilities   {}\n",
            self.kernel, self.arch, self.hz, self.jit, self.btf, self.lockdown, capabilities
        );
        let mut line = |line: String| {
            // Writing to a String cannot fail.
            writeln!(text, "{line}").unwrap_or_default();
        };
        for job in &self.jobs {
            line(format!("{:<14} {} {}", job.job, job.hook, job.attached_to));
            if let Some(loses) = job.loses {
                line(format!("{:15}not seen: {loses}", ""));
            }
            for choice in &job.choices {
                let ChoiceFindings { hook, attach_to, program, .. } = choice;
                let name = format!("{hook} {attach_to} ({program})");
                match (choice.state, &choice.why) {
                    ("spare", _) => line(format!("{:15}also works: {name}", "")),
                    (state, Some(why)) => {
                        line(format!("{:15}{}: {name}: {why}", "", state.replace('_', " ")));
                    }
                    _ => {}
                }
            }
        }
        for field in &self.missing_fields {
            line(format!("no {}; not seen: {}", field.field, field.loses));
        }
        match &self.problem {
            Some(problem) => line(format!("cannot run: {problem}")),
            None => line("can run".to_owned()),
        }
        if let Some(live) = &self.live {
            live.write(&mut line);
        }
        text.trim_end().to_owned()
    }
}

impl JobFindings {
    fn of(serving: &Serving) -> Self {
        Self {
            job: serving.job.name(),
            hook: serving.by().map_or("none", |choice| choice.hook.name()),
            attached_to: serving.by().map_or_else(String::new, Choice::places),
            loses: serving.loses(),
            choices: serving.tried.iter().map(ChoiceFindings::of).collect(),
        }
    }
}

impl ChoiceFindings {
    fn of(Tried { choice, outcome, instructions }: &Tried) -> Self {
        let (state, why) = match outcome {
            Outcome::Taken => ("taken", None),
            Outcome::Spare => ("spare", None),
            Outcome::PassedOver(why) => ("passed_over", Some(why.clone())),
            Outcome::Refused(why) => ("refused", Some(why.clone())),
        };
        let verified = instructions
            .iter()
            .map(|&(program, instructions)| ProgramFindings { program, instructions });
        Self {
            hook: choice.hook.name(),
            attach_to: choice.places(),
            program: choice.programs(),
            state,
            why,
            verified: verified.collect(),
        }
    }
}
