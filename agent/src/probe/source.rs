//! Drains the rings into batches of events, in the order of their stamps.
//!
//! The kernel side does not wake us for each record, only when a ring is a quarter full; so a
//! thread also checks the rings every 100 ms. It does nothing but move records out of the rings: a
//! busy run loop must not keep it from that. A batch is complete up to its `until`: all records
//! stamped before are in it or in earlier ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use finrace_logic::event::{DecodeError, Event, decode};
use finrace_logic::merge::{Merge, RINGS};
use finrace_logic::model::Nanos;
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::OwnedFd;
use tokio::sync::mpsc;

use super::attach::Records;
use super::cgroups::{Cgroups, Mount};
use super::losses::RingFlow;
use super::names::ProcessNames;
use crate::clock::monotonic;
use crate::memory;
use crate::who::Who;

/// How long a record may wait for its reader.
pub const TICK: Duration = Duration::from_millis(100);

/// A record is stamped before its place in the ring is reserved; it is there by this much later.
const IN_FLIGHT: Duration = Duration::from_millis(1);

/// How long the rings are left alone when the backlog is full.
const PAUSE: Duration = Duration::from_millis(1);

/// Records taken from one ring before the other gets its turn; a third of what it holds.
const TURN: usize = 2_048;

/// Events that may wait for the run loop, at 248 bytes each: a tenth of a second at a million per
/// second. Beyond that, records wait in the rings, and are lost there, and counted, when these are full.
const BACKLOG: usize = 100_000;

/// A backlog of this many events has left memory behind that is worth giving back.
const BURST: usize = 10_000;

/// What one turn found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Sorted by time.
    pub events: Vec<Event>,
    /// Everything stamped before this has been delivered.
    pub until: Nanos,
    /// Records that could not be decoded, by reason.
    pub malformed: Vec<DecodeError>,
    /// What became of the records of each ring since the start.
    pub flows: [RingFlow; RINGS],
    /// Records that still wait for their neighbours.
    pub pending: u64,
    /// Bytes in each ring when last counted.
    pub waited: [u64; RINGS],
    _held: Held,
}

/// A batch's share of the waiting events, until it is dropped.
#[derive(Debug, Default)]
struct Held {
    events: usize,
    waiting: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.events, Ordering::Relaxed);
    }
}

/// The reading thread; stops when dropped.
pub struct Source {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts to read; batches arrive at the receiver at least every [`TICK`].
    ///
    /// `mount` is where cgroups are looked up, if anywhere; `who` keeps what is found.
    pub fn start(
        records: Records,
        mount: Option<Mount>,
        who: Who,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Batch>)> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("creating an eventfd")?;
        let wakeups = Wakeups::new([&records.races, &records.measures], &stop)
            .context("setting up epoll for the rings")?;
        let names = (Cgroups::new(mount, who.clone()), ProcessNames::new(who));
        let thread = std::thread::Builder::new()
            .name("finrace-rings".to_owned())
            .spawn(move || read(records, &wakeups, &sender, names))
            .context("starting the thread that reads the rings")?;
        Ok((Self { stop, thread: Some(thread) }, receiver))
    }

    /// Asks for the last batch, of what is in the rings now, and then the end of the channel.
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

/// What ends a wait.
struct Wakeups(OwnedFd);

impl Wakeups {
    const OF_RING: u64 = 0;
    const STOP: u64 = 1;

    fn new(rings: [&RingBuf<MapData>; RINGS], stop: &OwnedFd) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for ring in rings {
            // Edges only, which are the kernel side's wakeups: a ring that holds anything at all
            // is readable.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, ring, epoll::EventData::new_u64(Self::OF_RING), flags)?;
        }
        let data = epoll::EventData::new_u64(Self::STOP);
        epoll::add(&epoll, stop, data, epoll::EventFlags::IN)?;
        Ok(Self(epoll))
    }

    /// Returns whether the end was requested.
    fn wait(&self, most: Duration) -> bool {
        let most = Timespec { tv_sec: 0, tv_nsec: most.subsec_nanos().into() };
        let mut events = Vec::with_capacity(RINGS + 1);
        match epoll::wait(&self.0, spare_capacity(&mut events), Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => log::error!("waiting for the rings: {error}"),
        }
        // Copied first, since its struct is packed.
        events.iter().any(|event| { event.data }.u64() == Self::STOP)
    }
}

fn read(
    mut records: Records,
    wakeups: &Wakeups,
    sender: &mpsc::UnboundedSender<Batch>,
    (mut cgroups, mut names): (Cgroups, ProcessNames),
) {
    let mut reader = Reader::default();
    let mut wait = TICK;
    let mut asked_to_stop = None;
    loop {
        if wakeups.wait(wait) && asked_to_stop.is_none() {
            asked_to_stop = Some(monotonic());
        }
        while reader.is_full() {
            std::thread::sleep(PAUSE);
        }
        let now = monotonic();
        // We were woken by the tick, not by a ring.
        let is_calm = now.since(reader.reached) >= TICK;
        let is_all = reader.turn([&mut records.races, &mut records.measures], now);
        let is_last = asked_to_stop.is_some_and(|asked| reader.reached >= asked);
        let mut batch = reader.cut(is_last);
        cgroups.name(&mut batch.events, now);
        names.replace(&mut batch.events, now);
        batch.flows = records.losses.flows(reader.read);
        if let Some(log) = &mut records.log {
            log.flush();
        }
        // A closed channel is an ordinary end: the run loop has ended.
        if sender.send(batch).is_err() || is_last {
            return;
        }
        if is_calm && reader.is_after_burst() {
            memory::give_back();
        }
        wait = if is_all { TICK } else { Duration::ZERO };
    }
}

/// Where records come from.
trait RecordSource {
    fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T>;
}

impl RecordSource for RingBuf<MapData> {
    fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.next().map(|record| take(&record))
    }
}

/// What is in transit from the rings to the run loop.
#[derive(Default)]
struct Reader {
    merge: Merge,
    malformed: Vec<DecodeError>,
    /// Records taken from each ring since the start.
    read: [u64; RINGS],
    fills: [Fill; RINGS],
    /// All records that were stamped before this and are no longer in flight have been read.
    reached: Nanos,
    /// Events in batches that are not dropped yet.
    waiting: Arc<AtomicUsize>,
    /// Whether many events have waited since memory was last given back.
    had_burst: bool,
}

/// How full a ring was at a given time, which may take several turns to find out.
#[derive(Clone, Copy, Default)]
struct Fill {
    /// Including the ring's own 8 bytes per record.
    bytes: u64,
    /// That time; None if everything that was there then has been counted.
    at: Option<Nanos>,
}

impl Fill {
    fn count(&mut self, bytes: usize, time: Nanos) {
        if self.at >= Some(time) {
            self.bytes += bytes as u64 + 8;
        } else {
            self.at = None;
        }
    }
}

impl Reader {
    fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= BACKLOG
    }

    /// Whether many events have waited and no longer do; true once per burst.
    fn is_after_burst(&mut self) -> bool {
        self.waiting.load(Ordering::Relaxed) < TURN && std::mem::take(&mut self.had_burst)
    }

    /// Takes from each ring what is there at `now`, or what a turn allows; returns whether that is all.
    fn turn<R: RecordSource>(&mut self, rings: [&mut R; RINGS], now: Nanos) -> bool {
        let mut reached = now;
        let mut is_all = true;
        let of_rings = rings.into_iter().zip(&mut self.fills).zip(&mut self.read);
        for (index, ((ring, fill), read)) in of_rings.enumerate() {
            if fill.at.is_none() {
                *fill = Fill { bytes: 0, at: Some(now) };
            }
            let mut last = Nanos(0);
            let mut left = TURN;
            while left != 0
                && let Some((bytes, event)) = ring.next(|bytes| (bytes.len(), decode(bytes)))
            {
                left -= 1;
                *read += 1;
                match event {
                    Ok(event) => {
                        last = last.max(event.time);
                        fill.count(bytes, event.time);
                        self.merge.add(index, event);
                    }
                    Err(error) => {
                        fill.count(bytes, last);
                        self.malformed.push(error);
                    }
                }
            }
            if left == 0 {
                reached = reached.min(last);
                is_all = false;
            } else {
                fill.at = None;
            }
        }
        self.reached = self.reached.max(reached);
        is_all
    }

    /// A batch of the events that can no longer have older neighbours; of everything, if it is the last.
    fn cut(&mut self, is_last: bool) -> Batch {
        let until = before(self.reached, IN_FLIGHT);
        let events = self.merge.take(if is_last { Nanos(u64::MAX) } else { until });
        let malformed = std::mem::take(&mut self.malformed);
        let held =
            Held { events: events.len() + malformed.len(), waiting: Arc::clone(&self.waiting) };
        let before = self.waiting.fetch_add(held.events, Ordering::Relaxed);
        self.had_burst |= before + held.events >= BURST;
        let waited = self.fills.map(|fill| fill.bytes);
        let pending = self.merge.waiting() as u64;
        Batch { events, until, malformed, flows: Default::default(), pending, waited, _held: held }
    }
}

fn before(time: Nanos, span: Duration) -> Nanos {
    Nanos(time.0.saturating_sub(span.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use finrace_ebpf::abi::{RECORD_SIZE, Record, kind};

    /// Records by their stamps; zero is no record.
    #[derive(Default)]
    struct Queue(VecDeque<u64>);

    impl RecordSource for Queue {
        fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
            let mut bytes = [0; RECORD_SIZE];
            let time = self.0.pop_front()?;
            bytes[0..8].copy_from_slice(&time.to_ne_bytes());
            bytes[std::mem::offset_of!(Record, kind)] = if time == 0 { 0 } else { kind::STATE };
            Some(take(&bytes))
        }
    }

    const MILLI: u64 = 1_000_000;

    /// Bytes that a record takes in a ring.
    const IN_RING: u64 = RECORD_SIZE as u64 + 8;

    fn times(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|event| event.time.0).collect()
    }

    #[test]
    fn a_batch_is_complete_up_to_its_until() {
        let mut reader = Reader::default();
        let mut races = Queue([10 * MILLI, 30 * MILLI].into());
        let mut measures = Queue([20 * MILLI, 0, 29 * MILLI].into());
        assert!(reader.turn([&mut races, &mut measures], Nanos(30 * MILLI)));
        let batch = reader.cut(false);
        assert_eq!(times(&batch), [10, 20, 29].map(|milli| milli * MILLI));
        assert_eq!((batch.until, batch.malformed.len()), (Nanos(29 * MILLI), 1));
        // Of five records, one is not understood, and the youngest waits.
        assert_eq!((reader.read, batch.pending), ([2, 3], 1));
        assert_eq!(batch.waited, [2 * IN_RING, 3 * IN_RING]);
        // The youngest has waited for its neighbours; what has arrived since was not there before.
        measures.0.extend([30 * MILLI - 1, 41 * MILLI]);
        assert!(reader.turn([&mut races, &mut measures], Nanos(40 * MILLI)));
        let batch = reader.cut(false);
        assert_eq!(times(&batch), [30 * MILLI - 1, 30 * MILLI]);
        assert_eq!(batch.waited, [0, IN_RING]);
        // At the end nothing waits.
        races.0.push_back(50 * MILLI);
        assert!(reader.turn([&mut races, &mut measures], Nanos(50 * MILLI)));
        assert_eq!(times(&reader.cut(true)), [41 * MILLI, 50 * MILLI]);
    }

    #[test]
    fn a_ring_that_does_not_end_holds_back_what_may_be_missing() {
        let mut reader = Reader::default();
        let mut races = Queue([9_000 * MILLI].into());
        let mut measures = Queue((1..=10_000).map(|number| number * MILLI).collect());
        let now = Nanos(10_000 * MILLI);
        assert!(!reader.turn([&mut races, &mut measures], now));
        let first = reader.cut(false);
        assert_eq!(first.until, Nanos((TURN as u64 - 1) * MILLI));
        assert_eq!(first.events.len(), TURN - 1);
        let mut all = times(&first);
        while !reader.turn([&mut races, &mut measures], now) {
            all.extend(times(&reader.cut(false)));
        }
        let last = reader.cut(true);
        assert_eq!(last.waited, [0, 10_000 * IN_RING]);
        all.extend(times(&last));
        assert_eq!(all.len(), 10_001);
        assert!(all.is_sorted());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut reader = Reader::default();
        let mut batches = Vec::new();
        let mut measures = Queue((1..=3 * BACKLOG as u64).collect());
        while !reader.is_full() {
            reader.turn([&mut Queue::default(), &mut measures], Nanos(u64::MAX));
            batches.push(reader.cut(true));
        }
        let waiting: usize = batches.iter().map(|batch| batch.events.len()).sum();
        assert_eq!(waiting, reader.waiting.load(Ordering::Relaxed));
        assert!((BACKLOG..BACKLOG + TURN).contains(&waiting));
        batches.pop();
        assert!(!reader.is_full() && !reader.is_after_burst());
        drop(batches);
        assert_eq!(reader.waiting.load(Ordering::Relaxed), 0);
        assert!(reader.is_after_burst() && !reader.is_after_burst());
    }
}
