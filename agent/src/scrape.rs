//! The way of a scrape through the agent: collected by the event loop, a slice at a time between
//! batches, then written, compressed and sent by a thread of its own.
//!
//! What surprises: nothing is locked. The loop never waits for a scrape, it only does a slice of it;
//! and what the thread writes has been lent to it, see [`Collection`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::http::{Reply, Route};
use crate::logic::model::Nanos;
use crate::logic::table::{Collection, Table};
use crate::metrics::{self, Format, Status};
use crate::probe::source::monotonic;

/// Written at a time: each keeps what it was lent. The next ones wait.
const AT_A_TIME: usize = 2;

/// How long the event loop collects before it looks for a batch.
const SLICE: Duration = Duration::from_micros(250);

/// Chunks under way to the reader.
const CHUNKS: usize = 2;

/// A reader that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The HTTP side's end: asks the event loop.
#[derive(Clone, Debug)]
pub struct Asking {
    requests: mpsc::Sender<Request>,
    scrapes: Arc<Semaphore>,
}

/// A request on its way to the event loop, with the way back.
#[derive(Debug)]
pub struct Request {
    pub route: Route,
    reply: oneshot::Sender<Reply>,
    /// For a scrape, until it is written.
    permit: Option<OwnedSemaphorePermit>,
}

/// Both ends, with room for so many requests.
pub fn requests(max: usize) -> (Asking, mpsc::Receiver<Request>) {
    let (requests, receiver) = mpsc::channel(max);
    (Asking { requests, scrapes: Arc::new(Semaphore::new(AT_A_TIME)) }, receiver)
}

impl Asking {
    pub async fn ask(self, route: Route) -> Reply {
        let permit = match route {
            Route::Metrics { .. } => self.scrapes.acquire_owned().await.ok(),
            Route::Ready => None,
        };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request { route, reply, permit }).await.is_err() {
            return Reply::Gone;
        }
        answer.await.unwrap_or(Reply::Gone)
    }

    /// Waits until nothing is being written any more.
    pub async fn end(self) {
        // The semaphore is never closed.
        drop(self.scrapes.acquire_many(AT_A_TIME as u32).await);
    }
}

impl Request {
    pub fn answer(self, reply: Reply) {
        if self.reply.send(reply).is_err() {
            log::debug!("an HTTP client left before its answer");
        }
    }
}

/// A scrape under way in the event loop.
#[derive(Debug)]
pub struct Scrape {
    collection: Collection,
    status: Status,
    format: Format,
    is_gzip: bool,
    request: Request,
}

impl Scrape {
    /// `request` is for metrics, in that format.
    pub fn begin(
        table: &mut Table,
        status: Status,
        series_max: usize,
        (format, is_gzip): (Format, bool),
        now: Nanos,
        request: Request,
    ) -> Self {
        let collection = Collection::begin(table, status.room(series_max), Some(now));
        Self { collection, status, format, is_gzip, request }
    }

    /// Collects for a while; false once there is nothing left to collect.
    pub fn collect(&mut self, table: &mut Table) -> bool {
        let start = monotonic();
        while monotonic().since(start) < SLICE {
            if !self.collection.step(table) {
                return false;
            }
        }
        true
    }

    /// Answers, once all is collected.
    pub fn answer(self, table: &mut Table) {
        let Self { collection, status, format, is_gzip, mut request } = self;
        let export = collection.finish(table);
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let (runtime, permit) = (Handle::current(), request.permit.take());
        drop(tokio::task::spawn_blocking(move || {
            let mut send = |chunk| send(&runtime, &sender, chunk);
            let written = metrics::write(export, status, format, is_gzip, &mut send);
            if let Err(error) = written.and_then(|()| send(Bytes::new())) {
                log::debug!("a scrape was not read to its end: {error}");
            }
            drop(permit);
        }));
        request.answer(Reply::Metrics(chunks));
    }
}

/// From the thread to the HTTP side.
fn send(runtime: &Handle, sender: &mpsc::Sender<Bytes>, chunk: Bytes) -> io::Result<()> {
    let sent = runtime.block_on(async { tokio::time::timeout(PATIENCE, sender.send(chunk)).await });
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
