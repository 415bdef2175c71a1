//! Sets up a run and drives it: one loop takes batches, requests, signals and the deadline.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use finrace_ebpf::abi::{MEASURES_BYTES, RACES_BYTES};
use finrace_logic::balance::{Balance, Stage};
use finrace_logic::engine::Engine;
use finrace_logic::event::{Kind, Ticks};
use finrace_logic::merge::RINGS;
use finrace_logic::model::{Nanos, Observation};
use finrace_logic::turn::RunSettings;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::ask::{Reply, Request, Route};
use crate::cli::KernelArgs;
use crate::clock::{Clock, monotonic, wall};
use crate::demo::Demo;
use crate::kube::{self, Account, Pace};
use crate::lost::{Lost, Reason};
use crate::metrics::{Fill, HookStatus, ProcessStatus, Status};
use crate::output::eprintln_quietly;
use crate::probe::attach::{Attached, Link, Serving, attach};
use crate::probe::btf::Btf;
use crate::probe::cgroups::Mount;
use crate::probe::features::{Features, Roots};
use crate::probe::layout::{Lacking, Resolved, resolve};
use crate::probe::listeners;
use crate::probe::losses::RingFlow;
use crate::probe::plan::{Choice, Job};
use crate::probe::rights;
use crate::probe::skips::Skips;
use crate::probe::source::{Batch, Source};
use crate::probe::trials::Trials;
use crate::report::page::{About, Incidents, Visit};
use crate::scrape::{Scrape, Shape, Work};
use crate::usage::Usage;
use crate::who::Who;

/// An attached agent, before and after its loop.
pub struct Session {
    pub engine: Engine,
    pub features: Features,
    pub serving: Vec<Serving>,
    /// Fields that this kernel lacks.
    pub missing_fields: Vec<Lacking>,
    pub counts: RecordCounts,
    /// The owners of the ends of connections.
    pub who: Who,
    has_cgroups: bool,
    pub clock: Clock,
    incidents: Incidents,
    skips: Skips,
    batches: mpsc::UnboundedReceiver<Batch>,
    /// Stops the reading thread when dropped; declared after `batches`, which that thread may wait for.
    source: Source,
    /// Attached as long as they are here.
    _links: Vec<Link>,
    _demo: Option<Demo>,
}

/// What came out of the rings.
#[derive(Debug, Default)]
pub struct RecordCounts {
    pub state: u64,
    pub write: u64,
    pub reset_received: u64,
    pub reset_sent: u64,
    pub destroy: u64,
    pub retransmit: u64,
    pub malformed: u64,
    /// What became of the records of each ring.
    pub flows: [RingFlow; RINGS],
    /// Records that waited for their neighbours at the last reading.
    pub pending: u64,
    /// Bytes waiting in each ring at the last reading.
    pub waited: [u64; RINGS],
}

impl RecordCounts {
    pub fn events(&self) -> [(&'static str, u64); 6] {
        [
            ("state", self.state),
            ("write", self.write),
            ("reset_received", self.reset_received),
            ("reset_sent", self.reset_sent),
            ("destroy", self.destroy),
            ("retransmit", self.retransmit),
        ]
    }

    /// What became of all records up to here.
    fn balances(&self) -> [Balance; 3] {
        let [races, measures] = self.flows;
        let reader = Balance {
            taken: races.read + measures.read,
            passed: self.events().into_iter().map(|(_, count)| count).sum(),
            lost: self.malformed,
            pending: self.pending,
            ..Balance::of(Stage::Reader)
        };
        [races.balance(Stage::RacesRing), measures.balance(Stage::MeasuresRing), reader]
    }
}

/// Everything that the loop waits for.
enum Input {
    Batch(Option<Batch>),
    Request(Request),
    /// Time for a slice of the answer in progress.
    Collect,
    End,
}

/// Requests to the daemon, and what the answers look like.
pub struct Requests {
    pub receiver: mpsc::Receiver<Request>,
    pub shape: Shape,
}

/// Reads what the kernel offers, in the order that gives the most helpful error.
pub fn prepare(btf_file: Option<&Path>) -> Result<(Features, Resolved)> {
    rights::raise()?;
    let (mut features, btf) = Features::read(Roots::default(), btf_file)?;
    let resolved = usable(&mut features, btf)?;
    Ok((features, resolved))
}

/// Checks what every hook needs: rights, ring buffers and field offsets.
pub fn usable(features: &mut Features, btf: Option<Btf>) -> Result<Resolved> {
    if !rights::missing_to_load(features).is_empty() {
        let binary = std::env::current_exe().unwrap_or_else(|_| Path::new("finrace").to_owned());
        let missing = rights::missing(features).join(", ");
        bail!("missing {missing}: {}", rights::remedy(features, &binary));
    }
    features.trials = Trials::run();
    ensure!(
        features.trials.ring_buffer != Some(false),
        "kernel {} has no BPF ring buffers, which Linux has since 5.8 and RHEL since 8.4: \
         finrace cannot run on it",
        features.release
    );
    let Some(btf) = btf else {
        let problem = features.btf_problem.as_deref().unwrap_or("unknown");
        bail!(
            "no BTF ({problem}): finrace needs a kernel built with CONFIG_DEBUG_INFO_BTF, or the \
             BTF of exactly this kernel in a file: --btf FILE"
        );
    };
    resolve(&btf)
}

impl Session {
    /// Loads, attaches and starts to read.
    pub fn start(kernel: &KernelArgs) -> Result<Self> {
        let (mut features, resolved) = prepare(kernel.btf.as_deref())?;
        let (_, attached) =
            attach(&mut features, resolved.layout, kernel.reuse_threshold, &kernel.hooks)?;
        Self::over(attached, features, resolved.lost, kernel)
    }

    /// Gives up all rights of this thread, then starts to read.
    pub fn over(
        attached: Attached,
        features: Features,
        missing_fields: Vec<Lacking>,
        kernel: &KernelArgs,
    ) -> Result<Self> {
        let Attached { links, serving, records, skips } = attached;
        let clock = Clock { started: wall(), start: monotonic() };
        // After attaching: a port that starts listening in between is seen twice, never missed.
        let listeners = listeners::read(Path::new("/proc"));
        let is_served = |wanted| serving.iter().any(|job| job.job == wanted && job.by().is_some());
        let settings = RunSettings {
            ticks: Ticks { hz: features.hz },
            threshold: kernel.reuse_threshold,
            sees_writes: is_served(Job::Write),
            sees_ends: is_served(Job::Destroy),
            start: clock.start,
        };
        for job in &serving {
            let by = job.by().map_or_else(|| "no hook".to_owned(), ToString::to_string);
            match job.loses() {
                Some(loses) => log::warn!("{}: {by}; not seen: {loses}", job.job),
                None => log::info!("{}: {by}", job.job),
            }
        }
        for field in &missing_fields {
            log::warn!("this kernel has no {}; not seen: {}", field.field, field.loses);
        }
        // Before any thread is started, so that none has any rights.
        if let Err(error) = rights::drop_all() {
            log::warn!("running on with capabilities that are not needed any more: {error:#}");
        }
        let mount = cgroups(kernel.cgroup_path.as_deref())?;
        let names = kube::start(kube::KubeSetup {
            flags: kernel.kube.clone(),
            account: Account::detect(),
            pace: Pace::default(),
            wall_clock: wall,
        })?;
        let (who, has_cgroups) = (Who::with(names), mount.is_some());
        let (source, batches) = Source::start(records, mount, who.clone())?;
        let demo = kernel.demo.then(Demo::start).transpose()?;
        if let Some(demo) = &demo {
            eprintln_quietly(&format!("demo: a server on {} that closes after 1 s", demo.server()));
        }
        Ok(Self {
            engine: Engine::new(settings, listeners, kernel.peers_max),
            features,
            serving,
            missing_fields,
            counts: RecordCounts::default(),
            who,
            has_cgroups,
            clock,
            incidents: Incidents::default(),
            skips,
            batches,
            source,
            _links: links,
            _demo: demo,
        })
    }

    /// `write tp_btf, state tp_btf, ...`
    pub fn hooks(&self) -> String {
        let jobs = self.serving.iter().map(|job| {
            format!("{} {}", job.job, job.by().map_or("none", |choice| choice.hook.name()))
        });
        jobs.collect::<Vec<_>>().join(", ")
    }

    /// Records lost, by reason.
    pub fn lost(&self) -> Lost {
        let [races, measures] = self.counts.flows;
        let count = |reason| match reason {
            Reason::RacesRingFull => races.full,
            Reason::MeasuresRingFull => measures.full,
            Reason::Malformed => self.counts.malformed,
            Reason::TrackerFull => self.engine.refused(),
            Reason::GapsFull => self.engine.gaps_refused(),
            Reason::ClosedFull => self.engine.forgotten(),
            Reason::ViewsFull => self.engine.untold(),
        };
        Reason::ALL.iter().map(|reason| (*reason, count(*reason))).collect()
    }

    /// What became of all that each stage has taken in, from the rings to the table.
    pub fn balances(&self) -> Vec<Balance> {
        self.counts.balances().into_iter().chain(self.engine.balances()).collect()
    }

    /// Updates the verdicts, and returns the current time by both clocks.
    pub fn assess(&mut self) -> (Nanos, SystemTime) {
        let (now, wall) = (monotonic(), wall());
        self.engine.table.assess(now);
        (now, wall)
    }

    pub fn elapsed(&self) -> Duration {
        self.clock.since_start(monotonic())
    }

    /// Runs until `deadline`, a signal, or until `show` has enough; `show` gets every observation
    /// with its wall time.
    pub async fn run(
        &mut self,
        duration: Option<Duration>,
        mut requests: Option<Requests>,
        mut show: impl FnMut(&Observation, SystemTime) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
        // As `nohup` asks. A daemon rereads its files by itself, and has no terminal to lose.
        let outlives_terminal = requests.is_some() || is_hangup_ignored();
        let mut hangup = signal(SignalKind::hangup()).context("handling SIGHUP")?;
        let end = async {
            match duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        let shape = requests.as_ref().map(|requests| requests.shape.clone());
        let mut work: Option<Work> = None;
        loop {
            let request = async {
                match &mut requests {
                    Some(requests) if work.is_none() => requests.receiver.recv().await,
                    _ => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                batch = self.batches.recv() => Input::Batch(batch),
                Some(request) = request => Input::Request(request),
                // After everything else that can be done now.
                () = tokio::task::yield_now(), if work.is_some() => Input::Collect,
                () = &mut end => Input::End,
                _ = interrupt.recv() => Input::End,
                _ = terminate.recv() => Input::End,
                _ = hangup.recv(), if !outlives_terminal => Input::End,
            };
            match input {
                Input::Batch(Some(batch)) => {
                    if self.take(&batch, &mut show)?.is_break() {
                        return Ok(());
                    }
                }
                Input::Batch(None) => bail!("the thread that reads the rings has ended"),
                Input::Request(request) => work = self.answer(request, shape.as_ref()),
                Input::Collect => {
                    let table = &mut self.engine.table;
                    if let Some(done) = work.take_if(|work| !work.collect(table)) {
                        done.answer(table);
                    }
                }
                Input::End => return self.finish(&mut show).await,
            }
        }
    }

    fn take(
        &mut self,
        batch: &Batch,
        show: &mut impl FnMut(&Observation, SystemTime) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        for event in &batch.events {
            log::trace!("{event:?}");
            match event.kind {
                Kind::State => self.counts.state += 1,
                Kind::Write => self.counts.write += 1,
                Kind::ResetReceived => self.counts.reset_received += 1,
                Kind::ResetSent => self.counts.reset_sent += 1,
                Kind::Destroyed => self.counts.destroy += 1,
                Kind::Retransmitted => self.counts.retransmit += 1,
            }
        }
        for error in &batch.malformed {
            log::debug!("{error}");
            self.counts.malformed += 1;
        }
        self.counts.waited = batch.waited;
        let before = self.counts.flows;
        (self.counts.flows, self.counts.pending) = (batch.flows, batch.pending);
        if before.map(|ring| ring.full) != batch.flows.map(|ring| ring.full) {
            self.engine.note_loss(batch.until);
        }
        let observations = self.engine.advance(&batch.events, batch.until);
        self.show_all(observations, show)
    }

    /// What is already in the rings still counts.
    async fn finish(
        &mut self,
        show: &mut impl FnMut(&Observation, SystemTime) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.source.stop();
        while let Some(batch) = self.batches.recv().await {
            if self.take(&batch, show)?.is_break() {
                return Ok(());
            }
        }
        let observations = self.engine.finish(monotonic());
        self.show_all(observations, show).map(drop)
    }

    /// Shows observations, each with its wall time, and keeps the latest incidents.
    fn show_all(
        &mut self,
        observations: Vec<Observation>,
        show: &mut impl FnMut(&Observation, SystemTime) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let (now, wall) = (monotonic(), wall());
        for observation in observations {
            let age = now.since(observation.time());
            let time = wall.checked_sub(age).unwrap_or(wall);
            if show(&observation, time)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.incidents.add(observation, time);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Answers, or begins to.
    fn answer(&mut self, request: Request, shape: Option<&Shape>) -> Option<Work> {
        match request.route {
            Route::Ready => {
                request.answer(Reply::Ready);
                None
            }
            Route::Metrics { format, is_gzip } => {
                let (status, table) = (self.status(), &mut self.engine.table);
                let form = (format, is_gzip);
                let begun = Scrape::begin(table, status, shape?, form, monotonic(), request);
                Some(Work::Scrape(Box::new(begun)))
            }
            Route::Page(ask) => {
                let (about, table) = (self.about(), &self.engine.table);
                let begun = Visit::begin(table, about, ask, monotonic(), request);
                Some(Work::Page(Box::new(begun)))
            }
        }
    }

    fn about(&self) -> About {
        About {
            status: self.status(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            kernel: self.features.release.clone(),
            clock: self.clock,
            wall: wall(),
            incidents: self.incidents.clone(),
            who: self.who.clone(),
        }
    }

    pub fn status(&self) -> Status {
        let hooks = self.serving.iter().map(|job| HookStatus {
            job: job.job.name(),
            hook: job.by().map_or("none", |choice| choice.hook.name()),
            attached_to: job.by().map_or_else(String::new, Choice::places),
            program: job.by().map_or_else(String::new, Choice::programs),
            loses: job.loses(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION"),
            revision: env!("FINRACE_REVISION"),
            rustc: env!("FINRACE_RUSTC"),
            hooks: hooks.collect(),
            missing_fields: self.missing_fields.iter().map(|lost| lost.field.clone()).collect(),
            events: self.counts.events().to_vec(),
            lost: self.lost(),
            stages: self.balances(),
            skipped: self.skips.read().into_iter().map(|(job, n)| (job.name(), n)).collect(),
            maps: self
                .engine
                .fill()
                .map(|(name, used, limit)| Fill { name, used: used as u64, capacity: limit as u64 })
                .to_vec(),
            rings: [("races", RACES_BYTES), ("measures", MEASURES_BYTES)]
                .into_iter()
                .zip(self.counts.waited)
                .map(|((name, size), used)| Fill { name, used, capacity: size.into() })
                .collect(),
            sources: self.who.sources(self.has_cgroups),
            process: ProcessStatus::read()
                .inspect_err(|error| log::debug!("no process metrics: {error:#}"))
                .ok(),
            epoch: self.clock.epoch(),
        }
    }
}

/// Where owners are looked up. Without it they have no names, which is fatal only if it was asked
/// for.
fn cgroups(given: Option<&Path>) -> Result<Option<Mount>> {
    match Mount::find(given) {
        Ok(mount) => Ok(Some(mount)),
        Err(error) if given.is_some() => Err(anyhow!(Usage(format!("--cgroup.path {error:#}")))),
        Err(error) => {
            log::warn!("no names of containers and units: {error:#}");
            Ok(None)
        }
    }
}

/// Whether we were started with SIGHUP ignored.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}
