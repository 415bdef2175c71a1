//! `finrace watch`: one line per event as it happens, for people or as JSON.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use finrace_logic::model::Observation;

use crate::cli::Watch;
use crate::clock::rfc3339;
use crate::event_line::{EventLine, describe, ends, say};
use crate::lost::missing;
use crate::output::{eprintln_quietly, json, ordinary, seconds, visible};
use crate::session::Session;
use crate::who::Who;

/// Lines that may wait for a reader; further ones are dropped, and counted.
const QUEUE: usize = 65_536;

/// How long waiting lines may take at the end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs until the time is up, a signal arrives, or nobody reads.
pub async fn run(args: &Watch) -> Result<()> {
    let mut session = Session::start(&args.kernel)?;
    eprintln_quietly(&format!("finrace: attached ({})", session.hooks()));
    let (mut seen, who) = (Seen::default(), session.who.clone());
    let mut out = Output::start()?;
    if !args.json && out.line(header())?.is_break() {
        return Ok(());
    }
    session
        .run(args.duration, None, |observation, wall| {
            if !args.filter.matches(observation) {
                return Ok(ControlFlow::Continue(()));
            }
            let line = if args.json {
                json(&EventLine::of(observation, wall, &who), false)?
            } else {
                text(observation, wall, &who)
            };
            seen.count(observation);
            out.line(line)
        })
        .await?;
    let unwritten = out.finish()?;
    let lost = missing(&session.lost());
    let seconds = session.elapsed().as_secs_f64();
    let Seen { races, incidents, closes, reuses } = seen;
    let unwritten = match unwritten {
        0 => String::new(),
        lines => format!(", {lines} lines not written"),
    };
    eprintln_quietly(&format!(
        "finrace: {races} races, {incidents} other incidents, {closes} closes, {reuses} reuses in \
         {seconds:.1} s; {lost} records lost{unwritten}"
    ));
    Ok(())
}

/// Standard output on a thread of its own, so that a reader that pauses stops neither the reading
/// of the rings nor the handling of signals.
struct Output {
    lines: mpsc::SyncSender<String>,
    result: mpsc::Receiver<io::Result<()>>,
    /// Number of lines so far.
    all: u64,
    written: Arc<AtomicU64>,
}

impl Output {
    fn start() -> Result<Self> {
        let (lines, queue) = mpsc::sync_channel::<String>(QUEUE);
        let (done, result) = mpsc::channel();
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        thread::Builder::new()
            .name("finrace-output".to_owned())
            .spawn(move || {
                let mut out = io::stdout().lock();
                let result = queue.iter().try_for_each(|line| {
                    writeln!(out, "{line}")?;
                    out.flush()?;
                    count.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                });
                drop(queue);
                // The receiver is gone once `finish` has run out of patience.
                done.send(result).unwrap_or_default();
            })
            .context("starting the thread that writes")?;
        Ok(Self { lines, result, all: 0, written })
    }

    /// Sends a line; breaks once nobody reads.
    fn line(&mut self, line: String) -> Result<ControlFlow<()>> {
        self.all += 1;
        if let Err(mpsc::TrySendError::Disconnected(_)) = self.lines.try_send(line) {
            self.result.recv_timeout(PATIENCE).map_or(Ok(()), ordinary)?;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Waits for the queued lines; returns how many were not written.
    fn finish(self) -> Result<u64> {
        let Self { lines, result, all, written } = self;
        drop(lines);
        result.recv_timeout(PATIENCE).map_or(Ok(()), ordinary)?;
        Ok(all - written.load(Ordering::Relaxed))
    }
}

/// Counts of what there was to show.
#[derive(Default)]
struct Seen {
    races: u64,
    incidents: u64,
    closes: u64,
    reuses: u64,
}

impl Seen {
    fn count(&mut self, observation: &Observation) {
        match observation {
            Observation::Incident(incident) if incident.class.is_race() => self.races += 1,
            Observation::Incident(_) => self.incidents += 1,
            Observation::Close(_) => self.closes += 1,
            Observation::Reuse(_) => self.reuses += 1,
            Observation::Dwell(_) | Observation::Outcome(_) => {}
        }
    }
}

fn header() -> String {
    columns("TIME", "EVENT", "ROLE", "LOCAL", "PEER", "PROCESS", "WHAT")
}

fn columns(
    time: &str,
    event: &str,
    role: &str,
    local: &str,
    peer: &str,
    process: &str,
    what: &str,
) -> String {
    format!("{time:<15} {event:<17} {role:<7} {local:<21} {peer:<21} {process:<21} {what}")
}

/// An event in human-readable form.
fn text(observation: &Observation, wall: SystemTime, who: &Who) -> String {
    let stamp = rfc3339(wall);
    // Only the time of day, in UTC: the date is that of the terminal session.
    let time = stamp.get(11..26).unwrap_or(&stamp).to_owned();
    let origin = observation.origin();
    let process = origin
        .process
        .as_ref()
        .map_or_else(|| "-".to_owned(), |process| format!("{}/{}", process.name, process.pid));
    let (event, mut what) = match observation {
        Observation::Incident(incident) => (incident.class.as_str(), describe(incident)),
        Observation::Outcome(incident) => ("outcome", describe(incident)),
        Observation::Close(close) => {
            let what = format!(
                "by {} ({}) after {} idle, {}",
                close.closer,
                close.how,
                seconds(close.idle),
                close.evidence
            );
            ("close", what)
        }
        Observation::Reuse(reuse) => {
            ("reuse", format!("after {}, {} bytes", seconds(reuse.gap), reuse.bytes))
        }
        Observation::Dwell(dwell) => ("close_wait", format!("left after {}", seconds(dwell.dwell))),
    };
    for (label, end) in ["client", "server"].into_iter().zip(ends(origin, who)) {
        say(&mut what, label, end.text());
    }
    let line = columns(
        &time,
        event,
        origin.role.as_str(),
        &origin.local.to_string(),
        &origin.remote.to_string(),
        &process,
        &what,
    );
    visible(&line).into_owned()
}
