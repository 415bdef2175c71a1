//! Real sockets against the real agent: races it must report, and lookalikes it must not.
//!
//! Every scenario makes its traffic on ports of its own and says in text which JSON lines of those
//! ports it wants (see [`expect`]). All run at the same time, under two agents: one as it is, one
//! without its write hook. Needs root; runs as `live [--list] [NAME_PART...]`, also as the only program of
//! a bare virtual machine: no shell, no tools. From the environment:
//!
//! - `FINRACE_BIN` names the agent, `FINRACE_ARGS` adds arguments;
//! - `FINRACE_UID` and `FINRACE_CAPS` (`cap_bpf,cap_perfmon`) start it with no other rights;
//! - `FINRACE_SLACK` (default 1) stretches the tolerance of times on slow machines;
//! - `FINRACE_BLIND` lists parts of the names of scenarios whose writes this kernel's hook cannot
//!   see: what only the write hook can tell is not demanded of them;
//! - `FINRACE_CONNECTIONS` (default 6) is how many connections each story of `field` has, half of them
//!   over IPv6, or all over a wire between two namespaces of `FINRACE_DISTANCE_MS` one way. If it is
//!   given, a line `tally NAME ALL RIGHT MISSED WRONG_CLASS WRONG_CLOSER FALSE DOUBLED` counts them.
#![expect(clippy::print_stdout, reason = "a test program without the harness reports itself")]

mod agent;
mod balances;
mod expect;
mod field;
mod kernel;
mod link;
mod lookalikes;
mod owners;
mod paths;
mod races;
mod rights;
mod stage;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};

use agent::Agent;
use expect::Tally;
use stage::{Gate, Scenario, Skip, Stage, overslept, pause, slack, stretched};

/// Lines may come this long after what they report; after that, silence counts as silence.
const SETTLE_MS: u64 = 3_500;
/// Lines still missing then are waited for once more.
const GRACE_MS: u64 = 3_000;
/// If the machine delays the pauses of a scenario by more than this, its traffic is no longer the same.
const STALL: Duration = Duration::from_millis(50);
const ATTEMPTS: u32 = 4;
/// On a slow machine scenarios start one after another, this far apart for each step of slack: started
/// together, they would wait for each other.
const STAGGER: Duration = Duration::from_millis(10);

/// How the traffic of a scenario ended.
enum End {
    Done(Stage),
    Skipped(String),
    Failed(String),
}

struct Verdict {
    name: String,
    outcome: Outcome,
}

const WITHOUT_HOOK: &str = " without write hook";
const KEEPS_NOTHING: &str = "agent_keeps_no_capabilities";
const ACCOUNTED_FOR: &str = "everything_is_accounted_for";

enum Outcome {
    Good,
    Skipped(String),
    Failed { why: String, lines: Vec<String> },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAIL live: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing failed.
fn run() -> Result<bool> {
    // The agent names the thread that writes; the scenarios' threads inherit this name.
    rustix::thread::set_name(c"finrace-live")?;
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted =
        |s: &Scenario| wanted.is_empty() || wanted.iter().any(|part| s.name.contains(&**part));
    let all =
        [races::ALL, paths::ALL, owners::ALL, lookalikes::ALL, field::ALL].into_iter().flatten();
    let scenarios: Vec<&Scenario> = all.filter(|s| is_wanted(s)).collect();
    let checks_balances =
        wanted.is_empty() || wanted.iter().any(|part| ACCOUNTED_FOR.contains(&**part));
    ensure!(
        checks_balances || !scenarios.is_empty(),
        "no scenario has {} in its name",
        wanted.join(" or ")
    );

    if std::env::args().any(|argument| argument == "--list") {
        for scenario in &scenarios {
            println!("{}", scenario.name);
        }
        return Ok(true);
    }

    let gate = Arc::new(Gate::default());
    let threads = start(&scenarios, &gate);
    // For the connections that must be older than the agent.
    pause(100);
    let agent = Agent::start(&[])?;
    let hookless = Agent::start(&["--hook", "write=none"]);
    let mut verdicts = vec![Verdict::of(KEEPS_NOTHING, agent.check_rights())];
    if let Ok(hookless) = &hookless {
        let name = format!("{KEEPS_NOTHING}{WITHOUT_HOOK}");
        verdicts.push(Verdict::of(&name, hookless.check_rights()));
    }
    gate.open();
    // Kept to the end: their ports stay theirs, so that no line of theirs is mistaken for another attempt's.
    let ends = finish(threads);
    let mut judged = judge_patiently(&scenarios, &ends, &agent, &hookless);
    if std::env::var_os(field::CONNECTIONS).is_some() {
        for (scenario, end) in scenarios.iter().zip(&ends) {
            end.print_tally(scenario, &agent);
        }
    }
    let skipped = agent.skipped_runs() + hookless.as_ref().map_or(0, Agent::skipped_runs);
    let missed: Vec<&Scenario> =
        scenarios.into_iter().filter(|s| !s.early && judged.iter().any(|v| v.fails(s))).collect();
    if skipped > 0 && !missed.is_empty() {
        // What the kernel did not show, the agent cannot tell.
        for scenario in &missed {
            println!("again {}: the kernel skipped {skipped} runs of programs", scenario.name);
        }
        judged.retain(|verdict| !missed.iter().any(|scenario| verdict.is_of(scenario)));
        let again = finish(start(&missed, &gate));
        judged.extend(judge_patiently(&missed, &again, &agent, &hookless));
    }
    verdicts.extend(judged);
    verdicts.push(Verdict::of("agent_stops", agent.stop()));
    if let Ok(hookless) = hookless {
        verdicts.push(Verdict::of("agent_stops without write hook", hookless.stop()));
    }
    if checks_balances {
        verdicts.push(Verdict::of(ACCOUNTED_FOR, balances::check()));
    }
    for verdict in &verdicts {
        verdict.print();
    }
    Ok(!verdicts.iter().any(Verdict::is_failure))
}

/// Each in a thread of its own, which waits for the gate.
fn start(scenarios: &[&Scenario], gate: &Arc<Gate>) -> Vec<JoinHandle<End>> {
    let places = scenarios.iter().zip(0_u32..);
    let threads = places.map(|(scenario, place)| {
        let (scenario, stage) = (**scenario, Stage::new(Arc::clone(gate)));
        let delay = STAGGER.mul_f64(f64::from(place) * (slack() - 1.0));
        thread::spawn(move || act(&scenario, stage, delay))
    });
    threads.collect()
}

fn finish(threads: Vec<JoinHandle<End>>) -> Vec<End> {
    let ends = threads.into_iter().map(JoinHandle::join);
    ends.map(|end| end.unwrap_or_else(|_| End::Failed("panicked".to_owned()))).collect()
}

fn act(scenario: &Scenario, mut stage: Stage, delay: Duration) -> End {
    if !scenario.early {
        stage.wait_for_agent();
        thread::sleep(delay);
    }
    let mut attempts = 1;
    loop {
        let result = (scenario.run)(&mut stage);
        let stalled = overslept();
        if stalled > STALL && attempts < ATTEMPTS && !scenario.early {
            println!("again {}: stalled for {stalled:.0?}", scenario.name);
            attempts += 1;
            stage.clear();
            continue;
        }
        return match result {
            Ok(()) => End::Done(stage),
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(Skip(reason)) => End::Skipped(reason.clone()),
                None => End::Failed(format!("its traffic went wrong: {error:#}")),
            },
        };
    }
}

/// Judges once all lines should be there, and once more if some are missing.
fn judge_patiently(
    scenarios: &[&Scenario],
    ends: &[End],
    agent: &Agent,
    hookless: &Result<Agent>,
) -> Vec<Verdict> {
    thread::sleep(stretched(SETTLE_MS));
    let judged = judge(scenarios, ends, agent, hookless);
    if !judged.iter().any(Verdict::is_failure) {
        return judged;
    }
    thread::sleep(stretched(GRACE_MS));
    judge(scenarios, ends, agent, hookless)
}

fn judge(
    scenarios: &[&Scenario],
    ends: &[End],
    agent: &Agent,
    hookless: &Result<Agent>,
) -> Vec<Verdict> {
    let blind = std::env::var("FINRACE_BLIND").unwrap_or_default();
    let blind: Vec<&str> = blind.split(',').filter(|part| !part.is_empty()).collect();
    let mut verdicts = Vec::new();
    for (scenario, end) in scenarios.iter().zip(ends) {
        let is_blind = blind.iter().any(|part| scenario.name.contains(part));
        let outcome = end.judge(agent, scenario.expect, is_blind);
        verdicts.push(Verdict { name: scenario.name.to_owned(), outcome });
        if scenario.hookless {
            let name = format!("{}{WITHOUT_HOOK}", scenario.name);
            let outcome = match hookless {
                Ok(agent) => end.judge(agent, scenario.expect, true),
                Err(error) => Outcome::failed(format!("{error:#}")),
            };
            verdicts.push(Verdict { name, outcome });
        }
    }
    verdicts
}

impl End {
    fn judge(&self, agent: &Agent, expected: &str, hookless: bool) -> Outcome {
        match self {
            Self::Done(stage) => {
                let lines = agent.lines(stage);
                match expect::check(expected, hookless, &lines, stage) {
                    Ok(()) => Outcome::Good,
                    Err(why) => {
                        let lines = lines.iter().map(ToString::to_string).collect();
                        Outcome::Failed {
                            why: format!("{why} ({})", stage.expand("$server")),
                            lines,
                        }
                    }
                }
            }
            Self::Skipped(reason) => Outcome::Skipped(reason.clone()),
            Self::Failed(why) => Outcome::failed(why.clone()),
        }
    }

    fn print_tally(&self, scenario: &Scenario, agent: &Agent) {
        if let Self::Done(stage) = self
            && let Some(tally) = Tally::new(scenario.expect, &agent.lines(stage), stage)
        {
            println!("tally {} {tally}", scenario.name);
        }
    }
}

impl Outcome {
    fn failed(why: String) -> Self {
        Self::Failed { why, lines: Vec::new() }
    }
}

impl Verdict {
    fn of(name: &str, result: Result<()>) -> Self {
        let outcome = result.map_or_else(|e| Outcome::failed(format!("{e:#}")), |()| Outcome::Good);
        Self { name: name.to_owned(), outcome }
    }

    fn is_of(&self, scenario: &Scenario) -> bool {
        self.name.strip_suffix(WITHOUT_HOOK).unwrap_or(&self.name) == scenario.name
    }

    fn fails(&self, scenario: &Scenario) -> bool {
        self.is_failure() && self.is_of(scenario)
    }

    fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }

    fn print(&self) {
        let name = &self.name;
        match &self.outcome {
            Outcome::Good => println!("ok {name}"),
            Outcome::Skipped(reason) => println!("SKIP {name}: {reason}"),
            Outcome::Failed { why, lines } => {
                println!("FAIL {name}: {why}");
                for line in lines {
                    println!("    {line}");
                }
            }
        }
    }
}
