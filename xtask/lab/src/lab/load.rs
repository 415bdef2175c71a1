//! The load: workers that each reuse a connection just when the backend may have closed it.
//!
//! Throughput does not matter, the gap does. Requests are POST, which nginx does not send again
//! once it has written them: a lost one is a 502.

use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use xtask::setup::now;

use crate::client::{Answer, Client, Random};
use crate::link::enter;
use crate::proxy::path;

/// How often connections idle out before the load begins: an estimate of the timeout needs closes
/// at this many moments, and without one no `read_and_closed` is reported.
const QUIET_ROUNDS: usize = 3;

/// How to load one proxy.
pub(super) struct Load<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) proxy: SocketAddr,
    pub(super) workers: usize,
    /// The backend's idle timeout, as measured.
    pub(super) idle: Duration,
    /// Milliseconds around it between a response and the next request, spread evenly.
    pub(super) offset_ms: Range<f64>,
    pub(super) duration: Duration,
}

impl Load<'_> {
    /// Lets each worker's first connections idle out, then loads; returns the number of requests.
    pub(super) fn run(&self) -> Result<usize> {
        scope(|scope| {
            let workers: Vec<_> =
                (0..self.workers).map(|i| scope.spawn(move || self.worker(i))).collect();
            workers
                .into_iter()
                .map(|w| w.join().map_err(|_panic| anyhow!("a load worker panicked"))?)
                .sum()
        })
    }

    fn worker(&self, index: usize) -> Result<usize> {
        if let Some(namespace) = self.namespace {
            enter(namespace)?;
        }
        let mut client = Client::connect(self.proxy, &path(index))?;
        let mut random = Random(index as u64);

        // All workers stay close together from here on: a server that looks for what has expired
        // once per turn of its loop (gunicorn) does so in the midst of their requests.
        for _ in 0..QUIET_ROUNDS {
            request(&mut client)?;
            sleep(self.idle.mul_f64(1.5));
        }
        let end = now() + self.duration;
        let mut requests = 1;
        let mut last = request(&mut client)?;
        while now() < end {
            let offset = random.between(self.offset_ms.start, self.offset_ms.end);
            let gap = Duration::try_from_secs_f64(self.idle.as_secs_f64() + offset / 1000.0)?;
            sleep((last + gap).saturating_duration_since(now()));
            last = request(&mut client)?;
            requests += 1;
        }
        Ok(requests + QUIET_ROUNDS)
    }
}

/// Returns when the response had come, whatever its status: nginx logs that.
fn request(client: &mut Client<TcpStream>) -> Result<Instant> {
    ensure!(client.request()? != Answer::Lost, "nginx closed the connection of the load");
    Ok(now())
}
