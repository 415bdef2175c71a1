//! One boot of one kernel under QEMU, and what the guest says.
//!
//! The guest's time is counted in instructions, and idle time is skipped (`-icount`): a guest
//! cannot be starved by what else runs on the host, so tolerances of the live tests need no
//! stretching, and it waits for nothing. KVM would be faster, but is not available on every host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::setup::{Process, now};

use super::spec::{Kernel, Run};
use crate::guest::Arch;

/// A guest that is silent for this long has hung. Live tests say nothing before their end, which
/// comes after a few seconds on an idle host.
const SILENCE: Duration = Duration::from_mins(6);
/// Time limit for a boot with all its runs.
const LIMIT: &str = "40m";
const POLL: Duration = Duration::from_millis(200);

/// The last line that is printed.
const END: &str = "@end";

/// What the guest said about one run.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) check: Option<Part>,
    pub(super) live: Option<Part>,
    /// A command around the run has failed.
    pub(super) is_broken: bool,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) status: Option<u8>,
    pub(super) lines: Vec<String>,
}

/// All that a guest said.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) release: Option<String>,
    /// `finrace check --json`.
    pub(super) survey: Option<Value>,
    pub(super) runs: BTreeMap<String, Said>,
    pub(super) has_ended: bool,
    pub(super) has_hung: bool,
    /// The first boot has hung, this is the second.
    pub(super) is_second: bool,
}

pub(super) struct Machine<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) cmdline: &'a str,
    pub(super) name: &'a str,
    pub(super) log_dir: &'a Path,
}

impl Machine<'_> {
    /// Boots it and waits for its end; once more where it hangs or does not come to its first
    /// process, since that is QEMU's doing. A kernel that dies later is not one of QEMU's accidents.
    pub(super) fn boot(&self) -> Result<Account> {
        let first = self.try_boot()?;
        if first.has_hung || first.release.is_none() {
            let log = |suffix| self.log_dir.join(format!("{}{suffix}.log", self.name));
            fs::rename(log(""), log("-first")).context("keeping the log of the first boot")?;
            return Ok(Account { is_second: true, ..self.try_boot()? });
        }
        Ok(first)
    }

    fn try_boot(&self) -> Result<Account> {
        let (said, has_hung) = self.listen()?;
        Ok(Account { has_hung, ..Account::read(&said) })
    }

    /// Everything that a guest says, if it neither hangs nor dies.
    pub(super) fn run(&self) -> Result<String> {
        let (said, has_hung) = self.listen()?;
        let is_over = said.lines().any(|line| line.trim_end() == END);
        ensure!(is_over && !has_hung, "{} has not come to its end: {said}", self.name);
        Ok(said)
    }

    fn listen(&self) -> Result<(String, bool)> {
        let mut process = Process::spawn(self.name, self.command(), self.log_dir)?;
        let mut length = 0;
        let mut heard = now();
        let mut has_hung = false;
        while !has_hung && process.is_running()? {
            sleep(POLL);
            let said = fs::metadata(process.log()).context("reading the log's length")?.len();
            if said != length {
                (length, heard) = (said, now());
            }
            has_hung = heard.elapsed() > SILENCE;
        }
        Ok((process.stop()?, has_hung))
    }

    fn command(&self) -> Command {
        let (machine, console): (&[&str], _) = match self.arch {
            // Without cx16, guests with Debian's 6.12 sometimes hung or died in cmpxchg16b.
            Arch::X86_64 => (&["-cpu", "max,-cx16"], "ttyS0"),
            Arch::Aarch64 => (&["-machine", "virt", "-cpu", "cortex-a76"], "ttyAMA0"),
        };
        // Whatever becomes of this program, QEMU ends.
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", LIMIT])
            .arg(format!("qemu-system-{}", self.arch.name()))
            .args(machine)
            .args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"])
            .args(["-smp", "1", "-m", "1024", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(format!("console={console} quiet panic=-1 {}", self.cmdline));
        command
    }
}

/// The guest's first process. What is read back begins with `@`.
pub(super) fn script(kernel: &Kernel, cmdline: &str, runs: &[&Run]) -> String {
    let survey = if cmdline.is_empty() { "survey\n" } else { "" };
    let runs = runs.iter().map(|run| stanza(run, kernel));
    script_of(&std::iter::once(survey.to_owned()).chain(runs).collect::<String>())
}

/// The same with other things to do in the middle.
pub(super) fn script_of(task: &str) -> String {
    format!("{}{task}\necho '{END}'\npoweroff -f\n", include_str!("init.sh"))
}

/// A run, in a shell of its own: variables and `set -e` end with it. The agent is asked what it can
/// do only where it should refuse: `finrace check` tries every hook, and takes longer than the tests.
fn stanza(run: &Run, kernel: &Kernel) -> String {
    let Run { name, environment, arguments, before, after, .. } = run;
    let is_refused = run.refused.is_some() || run.absent_on(kernel).is_some();
    let task = if is_refused { "check" } else { "live" };
    let exports: Vec<_> =
        environment.iter().map(|(name, value)| format!("export {name}='{value}'")).collect();
    let exports = exports.join("\n");
    format!(
        "(\nset -e\necho '@run {name}'\n{before}\n{exports}\n{task} {arguments}\n{after}\n)\n\
         [ $? = 0 ] || echo '@broken'\n"
    )
}

impl Account {
    pub(super) fn read(log: &str) -> Self {
        let mut account = Self::default();
        let mut run: Option<(String, Said)> = None;
        let mut survey = None::<String>;
        for line in log.lines() {
            let line = line.trim_end_matches('\r');
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let part = run.as_mut().and_then(|(_, said)| said.last());
            match (word, part) {
                ("@boot", _) => account.release = Some(rest.to_owned()),
                ("@survey", _) => survey = Some(String::new()),
                ("@run", _) => {
                    account.runs.extend(run.replace((rest.to_owned(), Said::default())));
                }
                (END, _) => account.has_ended = true,
                ("@check" | "@live" | "@broken", _) => {
                    let Some((_, said)) = &mut run else { continue };
                    let part = Some(Part { status: None, lines: Vec::new() });
                    match word {
                        "@check" => said.check = part,
                        "@live" => said.live = part,
                        _ => said.is_broken = true,
                    }
                }
                ("@status", Some(part)) => part.status = rest.parse().ok(),
                (_, Some(part)) => part.lines.push(line.to_owned()),
                (_, None) => {
                    if let Some(survey) = &mut survey {
                        survey.push_str(line);
                    }
                }
            }
        }
        account.runs.extend(run);
        account.survey = survey.and_then(|text| serde_json::from_str(&text).ok());
        account
    }
}

impl Said {
    /// The part that is being said.
    fn last(&mut self) -> Option<&mut Part> {
        self.live.as_mut().or(self.check.as_mut())
    }
}
