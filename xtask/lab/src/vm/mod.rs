//! `cargo xtask vm`: the live tests on every kernel that Debian's archive has.
//!
//! Each kernel boots under QEMU with nothing but the agent and its live tests. They are run once for
//! every hook that can be forced there, and under what makes life hard for BPF: few rights, lockdown,
//! no JIT, no BTF. `kernels.toml` says what is allowed to differ; any other difference fails.

mod archive;
mod boot;
mod initramfs;
mod record;
mod spec;
mod verdict;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use xtask::{report, setup};

use self::archive::Archive;
use self::boot::{Account, Machine};
use self::initramfs::Parts;
pub(crate) use self::record::Recorded;
use self::spec::{Kernel, Run, Spec};
use self::verdict::Report;
use crate::guest::{self, Arch};
use crate::live::Built;

#[derive(clap::Args)]
pub(crate) struct VmArgs {
    /// Series from xtask/lab/kernels.toml, such as 6.12 [default: those of the subset for CI]
    kernels: Vec<String>,
    /// Every series in xtask/lab/kernels.toml; fails if the archive has newer ones
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
    #[arg(long, value_enum, default_value = "x86_64")]
    arch: Arch,
    /// Only these runs, by name in xtask/lab/kernels.toml
    #[arg(long, value_name = "NAME")]
    run: Vec<String>,
    /// Keep the results of kernels where nothing differs in xtask/lab/matrix.json, for
    /// docs/kernels.md
    #[arg(long, conflicts_with = "run")]
    record: bool,
}

/// A kernel that is at hand.
struct Subject<'a> {
    kernel: &'a Kernel,
    release: String,
    parts: Parts,
    runs: Vec<&'a Run>,
}

pub(crate) fn run(args: VmArgs) -> Result<()> {
    let spec = Spec::read()?;
    let kernels = args.kernels(&spec)?;
    let runs = args.runs(&spec)?;
    setup::ensure(&[match args.arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    }])?;
    let mut archives = BTreeMap::new();
    let subjects = fetch(&kernels, &runs, &mut archives)?;
    if args.all {
        ensure_complete(&kernels, &archives)?;
    }
    let built = guest::build(args.arch)?;
    let mut reports = boot_all(&subjects, &built)?;
    let count = show_differences(&subjects, &mut reports, &spec)?;
    if args.record {
        Recorded::update(reports, &spec)?;
    }
    ensure!(count == 0, "{count} differences from xtask/lab/kernels.toml; logs in target/vm");
    Ok(())
}

impl VmArgs {
    fn kernels<'a>(&self, spec: &'a Spec) -> Result<Vec<&'a Kernel>> {
        let of_arch = spec.kernels.iter().filter(|kernel| kernel.arch == self.arch);
        let kernels: Vec<_> = if self.kernels.is_empty() {
            of_arch.filter(|kernel| kernel.ci || self.all).collect()
        } else {
            self.kernels.iter().map(|name| spec.find(name, self.arch)).collect::<Result<_>>()?
        };
        ensure!(!kernels.is_empty(), "xtask/lab/kernels.toml has none for {}", self.arch.name());
        Ok(kernels)
    }

    fn runs<'a>(&self, spec: &'a Spec) -> Result<Vec<&'a Run>> {
        for name in &self.run {
            let is_known = spec.runs.iter().any(|run| run.name == *name);
            ensure!(is_known, "xtask/lab/kernels.toml has no run `{name}`");
        }
        let is_wanted = |run: &&Run| self.run.is_empty() || self.run.contains(&run.name);
        Ok(spec.runs.iter().filter(is_wanted).collect())
    }
}

/// Gets the newest release of each series.
fn fetch<'a>(
    kernels: &[&'a Kernel],
    runs: &[&'a Run],
    archives: &mut BTreeMap<&'a str, Archive>,
) -> Result<Vec<Subject<'a>>> {
    let mut subjects = Vec::new();
    for &kernel in kernels {
        let archive = match archives.entry(&kernel.suite) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Archive::open(&kernel.suite, kernel.arch)?),
        };
        let runs = runs.iter().copied().filter(|run| run.is_tried_on(kernel)).collect();
        let (release, parts) = newest(kernel, archive)?;
        subjects.push(Subject { kernel, release, parts, runs });
    }
    Ok(subjects)
}

/// Fails if the archive has a series that nobody has listed.
fn ensure_complete(kernels: &[&Kernel], archives: &BTreeMap<&str, Archive>) -> Result<()> {
    let oldest = kernels.iter().map(|kernel| kernel.series).min();
    for (suite, archive) in archives {
        for (series, release) in archive.releases() {
            let is_listed = kernels.iter().any(|kernel| kernel.series == series);
            ensure!(
                is_listed || Some(series) < oldest,
                "xtask/lab/kernels.toml does not list {series}, which {suite} has: {release}"
            );
        }
    }
    Ok(())
}

/// Boots every kernel once for each command line, as many at a time as there are processors.
fn boot_all(subjects: &[Subject<'_>], built: &Built) -> Result<Vec<Report>> {
    let directory = setup::target_dir().join("vm");
    archive::create(&directory)?;
    let mut boots: Vec<_> =
        subjects.iter().flat_map(|s| s.boots().into_iter().map(move |boot| (s, boot))).collect();
    // The longest first, so that no processor waits for one in the end.
    boots.sort_by_key(|(_, (_, runs))| Reverse(runs.len()));
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(String, Account)>> {
        let mut accounts = Vec::new();
        while let Some((subject, (cmdline, runs))) = boots.get(next.fetch_add(1, Relaxed)) {
            let account = subject.boot(cmdline, runs, built, &directory)?;
            accounts.push((subject.kernel.name(), account));
        }
        Ok(accounts)
    };
    let mut accounts = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let count = thread::available_parallelism().context("counting processors")?;
        let workers: Vec<_> = (0..count.get()).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            accounts.extend(worker.join().unwrap_or_else(|_| bail!("a worker has panicked"))?);
        }
        Ok(())
    })?;
    let of_kernel = |subject: &Subject<'_>| {
        let name = subject.kernel.name();
        let own = accounts.iter().filter(|(kernel, _)| *kernel == name);
        Report::new(
            subject.kernel,
            &subject.release,
            &subject.runs,
            own.map(|(_, account)| account),
        )
    };
    Ok(subjects.iter().map(of_kernel).collect())
}

impl<'a> Subject<'a> {
    /// Command lines, each with its runs.
    fn boots(&self) -> Vec<(&'a str, Vec<&'a Run>)> {
        let mut boots: Vec<(&str, Vec<&Run>)> = Vec::new();
        for &run in &self.runs {
            match boots.iter_mut().find(|(cmdline, _)| *cmdline == run.cmdline) {
                Some((_, runs)) => runs.push(run),
                None => boots.push((&run.cmdline, vec![run])),
            }
        }
        boots
    }

    fn boot(
        &self,
        cmdline: &str,
        runs: &[&Run],
        built: &Built,
        directory: &Path,
    ) -> Result<Account> {
        let kernel = self.kernel.name();
        let words = [&*kernel].into_iter().chain(cmdline.split_whitespace());
        let name = words.collect::<Vec<_>>().join("-");
        let files = [("finrace", &*built.finrace), ("live", &*built.live)];
        let script = boot::script(self.kernel, cmdline, runs);
        let initramfs = Initramfs::write(&self.parts, &name, directory, &files, &script)?;
        let machine = initramfs.machine(self.kernel.arch, cmdline, &name, directory);
        let start = setup::now();
        let account = machine.boot()?;
        let state = match (account.has_ended, account.has_hung) {
            (true, _) => "ended",
            (false, true) => "hung",
            (false, false) => "died",
        };
        let again = if account.is_second { ", after a first boot that hung" } else { "" };
        let took = start.elapsed().as_secs();
        report(&format!("{name}: {} runs, {state} after {took} s{again}", runs.len()));
        Ok(account)
    }
}

/// A file that is there as long as it is needed, with the kernel it is for.
struct Initramfs {
    path: PathBuf,
    kernel: PathBuf,
}

impl Initramfs {
    fn write(
        parts: &Parts,
        name: &str,
        directory: &Path,
        files: &[(&str, &Path)],
        script: &str,
    ) -> Result<Self> {
        let path = directory.join(format!("{name}.cpio"));
        fs::write(&path, parts.initramfs(files, script)?)
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path, kernel: parts.kernel() })
    }

    fn machine<'a>(
        &'a self,
        arch: Arch,
        cmdline: &'a str,
        name: &'a str,
        log_dir: &'a Path,
    ) -> Machine<'a> {
        Machine { arch, kernel: &self.kernel, initramfs: &self.path, cmdline, name, log_dir }
    }
}

impl Drop for Initramfs {
    fn drop(&mut self) {
        // If left behind, it only takes up space, until the next run writes it again.
        fs::remove_file(&self.path).ok();
    }
}

/// Boots one kernel with `files`, does what `script` says there, and returns its release and all
/// that was said.
pub fn once(series: &str, files: &[(&str, &Path)], script: &str) -> Result<(String, String)> {
    let spec = Spec::read()?;
    setup::ensure(&["qemu-system-x86"])?;
    let kernel = spec.find(series, Arch::X86_64)?;
    let (release, parts) = newest(kernel, &Archive::open(&kernel.suite, kernel.arch)?)?;
    let directory = setup::target_dir().join("vm");
    archive::create(&directory)?;
    let name = format!("{}-once", kernel.name());
    let script = boot::script_of(script);
    let initramfs = Initramfs::write(&parts, &name, &directory, files, &script)?;
    let said = initramfs.machine(kernel.arch, "mitigations=off", &name, &directory).run()?;
    Ok((release, said))
}

/// The newest release of a series.
fn newest(kernel: &Kernel, archive: &Archive) -> Result<(String, Parts)> {
    let found = archive.releases().into_iter().find(|(series, _)| *series == kernel.series);
    let (_, release) =
        found.with_context(|| format!("{} has no kernel {}", kernel.suite, kernel.series))?;
    report(&format!("{}: {release} of {}", kernel.name(), kernel.suite));
    let parts = Parts::get(archive, &release)?;
    Ok((release, parts))
}

/// Prints the tables, and what differs from what is allowed; keeps the reports of kernels where
/// nothing does, and returns the number of differences.
fn show_differences(
    subjects: &[Subject<'_>],
    reports: &mut Vec<Report>,
    spec: &Spec,
) -> Result<usize> {
    let path = setup::target_dir().join("vm/results.json");
    let json = serde_json::to_vec_pretty(reports).context("encoding the results")?;
    fs::write(&path, json).with_context(|| format!("writing {}", path.display()))?;

    report(&verdict::table_of_runs(&spec.runs, reports));
    report(&verdict::table_of_instructions(reports));
    for Run { name, lost, .. } in &spec.runs {
        for loss in lost {
            report(&format!("lost with {name}: {}", loss.why));
        }
    }
    let mut count = 0;
    let mut subjects = subjects.iter();
    reports.retain(|result| {
        if result.hangs > 0 {
            let Report { kernel, hangs, .. } = result;
            report(&format!("{kernel}: QEMU hung in {hangs} boots, and was started again"));
        }
        let subject = subjects.next();
        let differences =
            subject.map(|subject| result.differences(subject.kernel, &subject.runs, spec));
        let differences = differences.unwrap_or_default();
        for difference in &differences {
            report(&format!("{}: {difference}", result.kernel));
        }
        count += differences.len();
        differences.is_empty()
    });
    Ok(count)
}
