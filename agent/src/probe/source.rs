//! Drains the rings into batches of events, in the order of their stamps.
//!
//! The kernel side does not wake us for each record, only when a ring is a quarter full; so a
//! thread polls with a tick of 100 ms. A batch is complete up to its `until`: all records stamped
//! before are in it or in earlier ones.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use finrace_ebpf::abi::loss;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::attach::Records;
use super::names::Names;
use crate::logic::event::{DecodeError, Event, decode};
use crate::logic::model::Nanos;

/// How long a record may wait for its reader.
pub const TICK: Duration = Duration::from_millis(100);

/// A record is stamped before its place in the ring is reserved; this much later it is there.
const IN_FLIGHT: Duration = Duration::from_millis(1);

/// Between two readings: bounds how often a steady stream of records has us wake.
const PAUSE: Duration = Duration::from_millis(1);

/// Batches that may wait for the run loop; the rings hold what comes after.
const QUEUE: usize = 16;

/// What one drain of both rings found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Sorted by time.
    pub events: Vec<Event>,
    /// Everything stamped before has been delivered.
    pub until: Nanos,
    /// Records that are none, by reason.
    pub malformed: Vec<DecodeError>,
    /// Records that found their ring full since the start, by [`loss`] index.
    pub lost: [u64; loss::COUNT as usize],
    /// Bytes that waited in each ring, by [`loss`] index too.
    pub waited: [u64; loss::COUNT as usize],
}

/// The reading thread; stops when dropped.
pub struct Source {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts to read; batches arrive at the receiver at least every [`TICK`].
    pub fn start(records: Records) -> Result<(Self, mpsc::Receiver<Batch>)> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("creating an eventfd")?;
        let stopped = stop.try_clone().context("duplicating an eventfd")?;
        let thread = std::thread::Builder::new()
            .name("finrace-rings".to_owned())
            .spawn(move || read(records, &stopped, &sender))
            .context("starting the thread that reads the rings")?;
        Ok((Self { stop, thread: Some(thread) }, receiver))
    }
}

impl Source {
    /// Asks for the last batch: what is in the rings now, and then the end of the channel.
    pub fn stop(&self) {
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            log::error!("writing to an eventfd: {error}");
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that reads the rings panicked");
        }
    }
}

fn read(mut records: Records, stop: &OwnedFd, sender: &mpsc::Sender<Batch>) {
    let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
    let mut waiting = Vec::new();
    let mut names = Names::new();
    loop {
        let stopping = {
            let mut fds = [
                PollFd::new(&records.races, PollFlags::IN),
                PollFd::new(&records.measures, PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            // A ring that holds anything at all is readable at once, so a pause comes first.
            std::thread::sleep(PAUSE);
            match poll(&mut fds, Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => log::error!("polling the rings: {error}"),
            }
            fds.last().is_some_and(|fd| !fd.revents().is_empty())
        };
        let mut batch = drain(&mut records, &mut waiting, stopping);
        names.replace(&mut batch.events, monotonic());
        if let Some(log) = &mut records.log {
            log.flush();
        }
        // A closed channel is an ordinary end: the run loop has left.
        if sender.blocking_send(batch).is_err() || stopping {
            return;
        }
    }
}

/// Empties both rings. What is too young for its neighbours to be there waits for the next turn.
fn drain(records: &mut Records, waiting: &mut Vec<Event>, is_last: bool) -> Batch {
    let mut batch = Batch { until: before(monotonic(), IN_FLIGHT), ..Batch::default() };
    for (ring, bytes) in
        [&mut records.races, &mut records.measures].into_iter().zip(&mut batch.waited)
    {
        *bytes = drain_one(ring, waiting, &mut batch.malformed);
    }
    waiting.sort_by_key(|event| event.time);
    let ready = waiting.partition_point(|event| is_last || event.time <= batch.until);
    batch.events.extend(waiting.drain(..ready));
    batch.lost = records.losses.read();
    batch
}

/// Returns the bytes that the ring held, with its own 8 for each record.
fn drain_one(
    ring: &mut RingBuf<MapData>,
    events: &mut Vec<Event>,
    bad: &mut Vec<DecodeError>,
) -> u64 {
    let mut bytes = 0;
    while let Some(record) = ring.next() {
        bytes += record.len() as u64 + 8;
        match decode(&record) {
            Ok(event) => events.push(event),
            Err(error) => bad.push(error),
        }
    }
    bytes
}

/// `CLOCK_MONOTONIC`, the clock that stamps the records.
pub fn monotonic() -> Nanos {
    let now = clock_gettime(ClockId::Monotonic);
    let (secs, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    Nanos(secs * 1_000_000_000 + nanos)
}

fn before(time: Nanos, span: Duration) -> Nanos {
    Nanos(time.0.saturating_sub(span.as_nanos() as u64))
}
