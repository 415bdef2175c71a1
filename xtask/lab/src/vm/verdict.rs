//! What the guests said against what `kernels.toml` lets them say.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::Table;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::boot::{Account, Part, Said};
use super::spec::{Kernel, Run, Spec};

/// Everything that is known of one kernel in the end.
#[derive(Deserialize, Serialize)]
pub(super) struct Report {
    pub(super) kernel: String,
    pub(super) release: String,
    pub(super) runs: BTreeMap<String, Outcome>,
    /// Boots that had to be repeated.
    #[serde(skip)]
    pub(super) hangs: usize,
    /// By BPF program: how many instructions the verifier went through.
    pub(super) instructions: BTreeMap<String, u64>,
}

/// How a run has ended.
#[derive(Deserialize, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Outcome {
    Played {
        ok: usize,
        /// Scenarios with reasons.
        skipped: BTreeMap<String, String>,
        /// Failures that are allowed.
        lost: Vec<String>,
        failed: Vec<String>,
    },
    /// The agent refuses to run like this here.
    Refused { why: String },
    /// The guest has not got this far, or not to the end.
    Lost,
}

impl Outcome {
    fn of(said: &Said, run: &Run, kernel: &Kernel) -> Self {
        match (&said.check, &said.live) {
            _ if said.is_broken => Self::Lost,
            (Some(Part { status: Some(0), .. }), None) => Self::failed("it was not refused"),
            (_, Some(Part { status: Some(status), lines })) => {
                let losses: Vec<_> = run.losses_on(kernel).flat_map(|l| &l.failures).collect();
                Self::played(*status, lines, &losses)
            }
            (Some(Part { status: Some(1), lines }), None) => Self::Refused { why: reason(lines) },
            _ => Self::Lost,
        }
    }

    fn played(status: u8, lines: &[String], losses: &[&String]) -> Self {
        let mut ok = 0;
        let mut skipped = BTreeMap::new();
        let (mut lost, mut failed) = (Vec::new(), Vec::new());
        for line in lines {
            if line.starts_with("ok ") {
                ok += 1;
            } else if let Some(skip) = line.strip_prefix("SKIP ") {
                let (name, reason) = skip.split_once(": ").unwrap_or((skip, ""));
                skipped.insert(name.to_owned(), reason.to_owned());
            } else if let Some(failure) = line.strip_prefix("FAIL ") {
                let is_lost = losses.iter().any(|part| failure.contains(&**part));
                if is_lost {
                    // The address at its end differs from run to run.
                    let text = failure.rsplit_once(" (").map_or(failure, |(text, _)| text);
                    lost.push(text.to_owned());
                } else {
                    failed.push(failure.to_owned());
                }
            }
        }
        if failed.is_empty() && lost.is_empty() && (ok == 0 || status != 0) {
            return Self::failed(&format!("the live tests ended with status {status}"));
        }
        Self::Played { ok, skipped, lost, failed }
    }

    fn failed(why: &str) -> Self {
        let failed = vec![why.to_owned()];
        Self::Played { ok: 0, skipped: BTreeMap::new(), lost: Vec::new(), failed }
    }

    /// For a cell of the table.
    pub(super) fn short(&self) -> String {
        match self {
            Self::Played { ok, skipped, lost, failed } => {
                let counts = [
                    (*ok, "ok"),
                    (skipped.len(), "skip"),
                    (lost.len(), "lost"),
                    (failed.len(), "FAIL"),
                ];
                let counts = counts.iter().filter(|(count, _)| *count > 0);
                counts.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(" ")
            }
            Self::Refused { .. } => "n/a".to_owned(),
            Self::Lost => "LOST".to_owned(),
        }
    }
}

/// The agent's last word.
fn reason(lines: &[String]) -> String {
    let last = lines.iter().rev().find(|line| !line.trim().is_empty());
    let last = last.map_or("no reason given", |line| line.trim());
    last.strip_prefix("cannot run: ").unwrap_or(last).to_owned()
}

impl Report {
    /// The report on the boots of one kernel.
    pub(super) fn new<'a>(
        kernel: &Kernel,
        release: &str,
        tried: &[&Run],
        accounts: impl Iterator<Item = &'a Account>,
    ) -> Self {
        let mut runs = BTreeMap::new();
        let mut instructions = BTreeMap::new();
        let mut hangs = 0;
        for account in accounts {
            hangs += usize::from(account.is_second);
            for run in tried {
                let said = account.runs.get(&run.name);
                runs.extend(said.map(|said| (run.name.clone(), Outcome::of(said, run, kernel))));
            }
            instructions.extend(account.survey.iter().flat_map(programs));
        }
        Self { kernel: kernel.name(), release: release.to_owned(), runs, hangs, instructions }
    }

    /// What differs from what is allowed, one sentence each.
    pub(super) fn differences(&self, kernel: &Kernel, runs: &[&Run], spec: &Spec) -> Vec<String> {
        let mut differences = Vec::new();
        // None as long as nothing has been played.
        let mut all_skipped: Option<BTreeMap<&String, &String>> = None;
        for run in runs.iter().filter(|run| run.is_tried_on(kernel)) {
            let outcome = self.runs.get(&run.name).unwrap_or(&Outcome::Lost);
            let mut differ = |what: String| differences.push(format!("{}: {what}", run.name));
            match (outcome, run.absent_on(kernel), &run.refused) {
                (Outcome::Lost, ..) => differ("the guest has not come to its end".to_owned()),
                (Outcome::Refused { why }, None, Some(wanted)) => {
                    if !why.contains(wanted) {
                        differ(format!("refused with `{why}`, not with `{wanted}`"));
                    }
                }
                (Outcome::Refused { why }, None, None) => differ(format!("not to be had: {why}")),
                (Outcome::Refused { .. }, Some(_), _) => {}
                (Outcome::Played { .. }, None, Some(wanted)) => {
                    differ(format!("not refused with `{wanted}`"));
                }
                (Outcome::Played { .. }, Some(why), _) => {
                    differ(format!("stale entry: it can be had here, against `{why}`"));
                }
                (Outcome::Played { skipped, lost, failed, .. }, None, None) => {
                    all_skipped.get_or_insert_default().extend(skipped);
                    for part in run.losses_on(kernel).flat_map(|loss| &loss.failures) {
                        // What a kernel cannot play, it cannot fail.
                        let scenario = part.split(':').next().unwrap_or(part);
                        let is_skipped = skipped.keys().any(|name| name.contains(scenario));
                        if !is_skipped && !lost.iter().any(|text| text.contains(part)) {
                            differ(format!("stale entry: no failure says `{part}`"));
                        }
                    }
                    for failure in failed {
                        differ(format!("FAIL {failure}"));
                    }
                }
            }
        }
        if let Some(skipped) = all_skipped {
            for (scenario, why) in &skipped {
                if !kernel.skips.keys().any(|part| scenario.contains(part)) {
                    differences.push(format!("SKIP {scenario}: {why}"));
                }
            }
            for part in kernel.skips.keys() {
                if !skipped.keys().any(|scenario| scenario.contains(part)) {
                    differences.push(format!("stale entry: no {part} is skipped"));
                }
            }
        }
        if self.instructions.is_empty() {
            differences.push("the agent's survey of the kernel is missing".to_owned());
        }
        for (program, count) in &self.instructions {
            if *count > spec.instructions {
                differences.push(format!(
                    "{program}: {count} instructions to verify, over the limit of {}",
                    spec.instructions
                ));
            }
        }
        differences
    }
}

/// A row for each run, a column for each kernel.
pub(super) fn table_of_runs(runs: &[Run], reports: &[Report]) -> String {
    let rows = runs
        .iter()
        .map(|run| &*run.name)
        .filter(|name| reports.iter().any(|report| report.runs.contains_key(*name)));
    table("run", rows, reports, |report, name| report.runs.get(name).map(Outcome::short))
}

/// A row for each BPF program, a column for each kernel.
pub(super) fn table_of_instructions(reports: &[Report]) -> String {
    let programs: BTreeSet<_> =
        reports.iter().flat_map(|report| report.instructions.keys().map(String::as_str)).collect();
    table("instructions", programs, reports, |report, name| {
        report.instructions.get(name).map(u64::to_string)
    })
}

fn table<'a>(
    title: &str,
    rows: impl IntoIterator<Item = &'a str>,
    reports: &[Report],
    cell: impl Fn(&Report, &str) -> Option<String>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([title].into_iter().chain(reports.iter().map(|report| &*report.kernel)));
    for name in rows {
        let cells = reports.iter().map(|r| cell(r, name).unwrap_or_else(|| "-".to_owned()));
        table.add_row([name.to_owned()].into_iter().chain(cells));
    }
    table.to_string()
}

/// The programs of `finrace check --json` that were loaded, with their instruction counts.
fn programs(survey: &Value) -> BTreeMap<String, u64> {
    fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
        value.get(key).and_then(Value::as_array).into_iter().flatten()
    }
    items(survey, "jobs")
        .flat_map(|job| items(job, "choices"))
        .flat_map(|choice| items(choice, "verified"))
        .filter_map(|program| {
            let name = program.get("program")?.as_str()?.to_owned();
            Some((name, program.get("instructions")?.as_u64()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
        instructions = 1000
        [[kernel]]
        series = "5.10"
        suite = "bullseye"
        skips = { mptcp = "not built" }
        [[run]]
        name = "default"
        [[run]]
        name = "write=tp_btf"
        arguments = "--hook write=tp_btf"
        from = "6.16"
        why = "no tracepoint"
        [[run]]
        name = "no BTF"
        refused = "needs BTF"
        [[run]]
        name = "lockdown"
        lost = [{ until = "6.1", failures = ["late_request: 0 lines"], why = "no helper" }]
    "#;

    const SURVEY: &str = r#"@boot 5.10.0-46-cloud-amd64
@survey
{ "jobs": [{ "choices": [{ "verified": [{ "program": "fr_write", "instructions": 900 }] }] }] }
"#;

    /// What a kernel 5.10 says, after its survey, and the differences found in it.
    fn check(said: &str, expected: &[&str]) {
        let spec: Spec = toml::from_str(SPEC).expect("a spec");
        let kernel = spec.kernels.first().expect("a kernel");
        let runs: Vec<_> = spec.runs.iter().collect();
        let account = Account::read(&format!("{SURVEY}{said}"));
        let report = Report::new(kernel, "5.10.0", &runs, [&account].into_iter());
        assert_eq!(report.differences(kernel, &runs, &spec), expected);
    }

    #[test]
    fn what_is_allowed_is_no_difference() {
        check(
            "@run default\r\n@live\nok reuse\nSKIP mptcp: no MPTCP\n@status 0\n\
             @run write=tp_btf\n@check\ncannot run: no such tracepoint\n@status 1\n\
             @run no BTF\n@check\ncannot run: finrace needs BTF\n@status 1\n\
             @run lockdown\n@live\nFAIL late_request: 0 lines fit\n    {}\n\
             SKIP mptcp: no MPTCP\n@status 1\n@end\n",
            &[],
        );
    }

    #[test]
    fn what_is_skipped_need_not_fail() {
        check(
            "@run default\n@live\nok reuse\nSKIP mptcp: no MPTCP\n@status 0\n\
             @run write=tp_btf\n@check\ncannot run: no such tracepoint\n@status 1\n\
             @run no BTF\n@check\ncannot run: finrace needs BTF\n@status 1\n\
             @run lockdown\n@live\nok reuse\nSKIP late_request_by_mptcp: no MPTCP\n@status 0\n@end\n",
            &[],
        );
    }

    #[test]
    fn what_is_not_allowed_and_what_is_not_needed_are_differences() {
        check(
            "@run default\n@live\nFAIL reuse: 0 lines fit\nSKIP tls: no module\n@status 1\n\
             @run write=tp_btf\n@check\ncan run\n@status 0\n\
             @run no BTF\n@check\ncannot run: no BPF\n@status 1\n\
             @run lockdown\n@live\nok race\n@status 0\n",
            &[
                "default: FAIL reuse: 0 lines fit",
                "write=tp_btf: stale entry: it can be had here, against `no tracepoint`",
                "no BTF: refused with `no BPF`, not with `needs BTF`",
                "lockdown: stale entry: no failure says `late_request: 0 lines`",
                "SKIP tls: no module",
                "stale entry: no mptcp is skipped",
            ],
        );
    }

    #[test]
    fn a_guest_that_dies_is_a_difference() {
        check(
            "@run default\n@live\nok reuse\nSKIP mptcp: no MPTCP\n@status 0\n@run write=tp_btf\n\
             @check\n[ 9.1] Kernel panic\n",
            &[
                "write=tp_btf: the guest has not come to its end",
                "no BTF: the guest has not come to its end",
                "lockdown: the guest has not come to its end",
            ],
        );
    }
}
