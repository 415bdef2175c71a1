//! `finrace check`: what this kernel and these rights allow, tried for real.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::Check;
use crate::output::print;
use crate::probe::attach::{Serving, attach};
use crate::probe::features::{Features, Lockdown, Roots, missing_capabilities};
use crate::probe::layout::Lost;

/// Attaches, lets go, and prints how it went; false if finrace cannot run here.
pub fn run(args: &Check) -> Result<bool> {
    let (features, _) = Features::read(Roots::default())?;
    let (serving, missing_fields, problem) = match try_out(args) {
        Ok((serving, missing)) => (serving, missing, None),
        Err(error) => (Vec::new(), Vec::new(), Some(format!("{error:#}"))),
    };
    let findings = Findings::of(&features, &serving, &missing_fields, problem);
    let text = if args.json {
        serde_json::to_string_pretty(&findings).context("encoding the findings")?
    } else {
        findings.to_text()
    };
    print(&text)?;
    Ok(findings.can_run)
}

fn try_out(args: &Check) -> Result<(Vec<Serving>, Vec<Lost>)> {
    let (mut features, resolved) = crate::app::prepare()?;
    let attached = attach(&mut features, resolved.layout, Duration::from_millis(200), &args.hooks)?;
    Ok((attached.serving, resolved.lost))
}

#[derive(Debug, Serialize)]
struct Findings {
    can_run: bool,
    kernel: String,
    arch: &'static str,
    btf: String,
    lockdown: &'static str,
    missing_capabilities: Vec<&'static str>,
    hz: u32,
    jobs: Vec<JobFindings>,
    missing_fields: Vec<FieldFindings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct JobFindings {
    job: &'static str,
    hook: &'static str,
    attached_to: &'static str,
    /// What is not seen with this hook, or without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    loses: Option<&'static str>,
    passed_over: Vec<String>,
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
        missing_fields: &[Lost],
        problem: Option<String>,
    ) -> Self {
        let jobs = serving.iter().map(|job| JobFindings {
            job: job.job.name(),
            hook: job.by.map_or("none", |choice| choice.hook.name()),
            attached_to: job.by.map_or("", |choice| choice.attach_to),
            loses: job.by.map_or(Some(job.job.loses()), |choice| choice.misses),
            passed_over: job
                .refused
                .iter()
                .map(|(choice, why)| format!("{} {}: {why}", choice.hook, choice.attach_to))
                .collect(),
        });
        let fields = missing_fields
            .iter()
            .map(|lost| FieldFindings { field: lost.field.clone(), loses: lost.loses });
        Self {
            can_run: problem.is_none(),
            kernel: features.release.clone(),
            arch: features.arch,
            btf: match &features.btf_problem {
                Some(problem) => problem.clone(),
                None => features.btf_path.display().to_string(),
            },
            lockdown: match features.lockdown {
                Lockdown::None => "none",
                Lockdown::Integrity => "integrity",
                Lockdown::Confidentiality => "confidentiality",
                Lockdown::Unknown => "not known (securityfs is not mounted)",
            },
            missing_capabilities: missing_capabilities(features),
            hz: features.hz,
            jobs: jobs.collect(),
            missing_fields: fields.collect(),
            problem,
        }
    }

    fn to_text(&self) -> String {
        let capabilities = if self.missing_capabilities.is_empty() {
            "all that is needed".to_owned()
        } else {
            format!("missing {}", self.missing_capabilities.join(", "))
        };
        let mut text = format!(
            "kernel         {} {}, HZ {}\nBTF            {}\nlockdown       {}\ncapabilities   {}\n",
            self.kernel, self.arch, self.hz, self.btf, self.lockdown, capabilities
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
            for passed in &job.passed_over {
                line(format!("{:15}passed over: {passed}", ""));
            }
        }
        for field in &self.missing_fields {
            line(format!("no {}; not seen: {}", field.field, field.loses));
        }
        match &self.problem {
            Some(problem) => line(format!("cannot run: {problem}")),
            None => line("can run".to_owned()),
        }
        text.trim_end().to_owned()
    }
}
