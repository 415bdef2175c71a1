//! The path of a scrape, or of a page, through the agent: collected by the event loop, a slice at a time
//! between batches, then written, compressed and sent by a thread of its own.
//!
//! Note that nothing is locked. The loop never waits for a scrape, it only does a slice of it; and what
//! the thread writes has been lent to it, see [`Collection`].

use std::io;
use std::time::Duration;

use bytes::Bytes;
use finrace_logic::model::Nanos;
use finrace_logic::table::{Collection, Table};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ask::{Reply, Request};
use crate::clock::monotonic;
use crate::metrics::{self, Format, Naming, Status};
use crate::report::page::Visit;

/// How long the event loop collects before it checks for a batch.
const SLICE: Duration = Duration::from_micros(250);

/// Chunks in transit to the reader.
const CHUNKS: usize = 2;

/// How long to wait for a reader in total, and how much longer for each chunk: a slower one would hold others up,
/// and no Prometheus waits that long for a scrape.
const PATIENCE: Duration = Duration::from_secs(3);
const FOR_CHUNK: Duration = Duration::from_secs(1);

/// What scrapes look like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Maximum number of series in an answer.
    pub series_max: usize,
    pub naming: Naming,
}

/// What the event loop does for a request when it has time.
#[derive(Debug)]
pub enum Work {
    Scrape(Box<Scrape>),
    Page(Box<Visit>),
}

impl Work {
    /// Collects for a while; false once there is nothing left to collect.
    pub fn collect(&mut self, table: &mut Table) -> bool {
        let start = monotonic();
        while monotonic().since(start) < SLICE {
            let is_more = match self {
                Self::Scrape(scrape) => scrape.collection.step(table),
                Self::Page(visit) => visit.step(table),
            };
            if !is_more {
                return false;
            }
        }
        true
    }

    /// Answers, once everything is collected.
    pub fn answer(self, table: &mut Table) {
        match self {
            Self::Scrape(scrape) => scrape.answer(table),
            Self::Page(visit) => visit.answer(table),
        }
    }
}

/// A scrape in progress in the event loop.
#[derive(Debug)]
pub struct Scrape {
    collection: Collection,
    status: Status,
    naming: Naming,
    form: (Format, bool),
    request: Request,
}

impl Scrape {
    /// `request` is for metrics, in the format of `form`, with or without gzip.
    pub fn begin(
        table: &mut Table,
        status: Status,
        shape: &Shape,
        form: (Format, bool),
        now: Nanos,
        request: Request,
    ) -> Self {
        let collection = Collection::begin(table, status.room(shape.series_max), Some(now));
        Self { collection, status, naming: shape.naming.clone(), form, request }
    }

    fn answer(self, table: &mut Table) {
        let Self { collection, status, naming, form, mut request } = self;
        let export = collection.finish(table);
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let (runtime, permit) = (Handle::current(), request.take_permit());
        drop(tokio::task::spawn_blocking(move || {
            let mut patience = PATIENCE;
            let mut send = |chunk| runtime.block_on(hand_over(&sender, chunk, &mut patience));
            let written = metrics::write(export, status, naming, form, &mut send);
            if let Err(error) = written.and_then(|()| send(Bytes::new())) {
                log::debug!("a scrape was not read to its end: {error}");
            }
            drop(permit);
        }));
        request.answer(Reply::Metrics(chunks));
    }
}

/// Passes a chunk from the thread to the HTTP side, for as long as the patience with its reader lasts.
async fn hand_over(
    sender: &mpsc::Sender<Bytes>,
    chunk: Bytes,
    patience: &mut Duration,
) -> io::Result<()> {
    let start = Instant::now();
    *patience += FOR_CHUNK;
    let sent = tokio::time::timeout(*patience, sender.send(chunk)).await;
    *patience = patience.saturating_sub(start.elapsed());
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use finrace_logic::model::{Endpoint, Observation, Origin, Reuse, Role};
    use finrace_logic::owner::Owner;

    use super::*;
    use crate::ask::{Asking, Route, requests};

    fn reuse(peer: u32) -> Observation {
        let end = |ip: u32, port| Endpoint { ip: Ipv4Addr::from_bits(ip).into(), port };
        let origin = Origin {
            netns: 1,
            owner: Owner::UNKNOWN,
            role: Role::Client,
            local: end(0x0a00_0001, 40_000),
            remote: end(0x0a01_0000 + peer, 8080),
            process: None,
            rtt: None,
        };
        Observation::Reuse(Reuse::new(Nanos(1), origin, Duration::from_secs(1), 1))
    }

    /// Does what the daemon's event loop does, with an observation of a new peer at every turn.
    async fn run(mut receiver: mpsc::Receiver<Request>, mut table: Table) {
        let mut work: Option<Work> = None;
        for peer in 0.. {
            table.add(&reuse(peer));
            let is_busy = work.is_some();
            let request = async {
                if is_busy { std::future::pending().await } else { receiver.recv().await }
            };
            tokio::select! {
                request = request => {
                    let Some(request) = request else { return };
                    let Route::Metrics { format, is_gzip } = request.route else { return };
                    let (status, form) = (Status::default(), (format, is_gzip));
                    let shape = Shape { series_max: 10_000, naming: Naming::default() };
                    let begun =
                        Scrape::begin(&mut table, status, &shape, form, Nanos(1), request);
                    work = Some(Work::Scrape(Box::new(begun)));
                }
                () = tokio::task::yield_now(), if work.is_some() => {
                    if let Some(done) = work.take_if(|work| !work.collect(&mut table)) {
                        done.answer(&mut table);
                    }
                }
            }
        }
    }

    const ROUTE: Route = Route::Metrics { format: Format::OpenMetrics, is_gzip: false };

    async fn begin(asking: &Asking) -> mpsc::Receiver<Bytes> {
        let Reply::Metrics(chunks) = asking.clone().ask(ROUTE).await else { panic!("no metrics") };
        chunks
    }

    /// Reads everything, and whether the end has come.
    async fn read(mut chunks: mpsc::Receiver<Bytes>) -> (usize, bool) {
        let mut sum = 0;
        while let Some(chunk) = chunks.recv().await {
            if chunk.is_empty() {
                return (sum, true);
            }
            sum += chunk.len();
        }
        (sum, false)
    }

    /// A reader that takes a chunk only now and then is given up eventually: two such would hold up all others.
    #[tokio::test(start_paused = true)]
    async fn a_reader_has_to_keep_up() {
        for (pace, expected) in [(FOR_CHUNK, 1000..=1000), (2 * FOR_CHUNK, 4..=9)] {
            let (sender, mut chunks) = mpsc::channel(1);
            let mut patience = PATIENCE;
            let write = async {
                for number in 0..1000 {
                    if hand_over(&sender, Bytes::new(), &mut patience).await.is_err() {
                        return number;
                    }
                }
                1000
            };
            let read = async {
                while chunks.recv().await.is_some() {
                    tokio::time::sleep(pace).await;
                }
            };
            tokio::select! {
                written = write => assert!(expected.contains(&written), "{written} {pace:?}"),
                () = read => unreachable!("the writer is there"),
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_in_nobodys_way() {
        let mut table = Table::new(500, Duration::from_millis(200), Nanos(0));
        (0..500).for_each(|peer| table.add(&reuse(peer)));
        let (asking, receiver) = requests(4);
        let event_loop = tokio::spawn(run(receiver, table));
        let stalled = begin(&asking).await;
        for _ in 0..3 {
            let (bytes, is_whole) = read(begin(&asking).await).await;
            assert!(is_whole && bytes > 4 * metrics::CHUNK, "{bytes}");
        }
        // Two at a time: a third waits until one of the stalled ones is gone.
        let also_stalled = begin(&asking).await;
        assert_eq!(asking.scrapes.available_permits(), 0);
        let third = tokio::spawn({
            let asking = asking.clone();
            async move { read(begin(&asking).await).await.1 }
        });
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        drop(also_stalled);
        assert!(third.await.unwrap());
        // The stalled one gets what was collected for it, while the patience with it lasts.
        assert!(read(stalled).await.1);
        drop(asking);
        event_loop.await.unwrap();
    }
}
