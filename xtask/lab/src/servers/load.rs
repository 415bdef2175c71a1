//! Clients of a proxy, each of which makes one request after the other, with gaps of a given
//! distribution between them.

use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use xtask::setup::now;

use super::stall::with_end;
use crate::client::{Answer, Client, Random};
use crate::link::enter;
use crate::proxy::path;

/// Seconds between an answer and the next request.
#[derive(Clone, Debug)]
pub(crate) enum Gaps {
    Uniform(Range<f64>),
    /// With this mean: the requests of many users.
    Exponential(f64),
    /// Like a clock's, except for a normal deviation.
    Periodic {
        period: f64,
        deviation: f64,
    },
    /// Mostly from the first range, now and then (this share) from the second.
    Mixed(Range<f64>, Range<f64>, f64),
}

impl Gaps {
    fn next(&self, random: &mut Random) -> Duration {
        let seconds = match self {
            Self::Uniform(range) => random.between(range.start, range.end),
            Self::Exponential(mean) => random.exponential(*mean),
            Self::Periodic { period, deviation } => period + deviation * random.normal(),
            Self::Mixed(_, second, share) if random.unit() < *share => {
                random.between(second.start, second.end)
            }
            Self::Mixed(first, ..) => random.between(first.start, first.end),
        };
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }
}

/// How to load one proxy.
#[derive(Clone, Debug)]
pub(crate) struct Load<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) proxy: SocketAddr,
    /// Client `i` addresses pool `i`.
    pub(crate) clients: Range<usize>,
    pub(crate) gaps: Gaps,
    /// Whether all begin at once. Otherwise they begin within a second.
    pub(crate) is_in_step: bool,
    /// After how long a client closes an idle connection; it then also watches whether the proxy
    /// does. `None`: clients keep theirs, and find out at the next request.
    pub(crate) keep_alive: Option<Duration>,
}

/// What came of the requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    /// Answered with 502 or the like.
    pub(crate) failed: usize,
    /// Not answered: the connection to the proxy ended.
    pub(crate) lost: usize,
}

/// Keeps up the loads while `body` runs; returns its result, and a tally of each load.
pub(crate) fn during<T>(
    loads: &[Load<'_>],
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Tally>)> {
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let threads: Vec<_> = loads.iter().map(|load| scope.spawn(|| load.run(&stop))).collect();
        let result = with_end(&stop, body);
        let tallies: Result<Vec<Tally>> = threads
            .into_iter()
            .map(|t| t.join().map_err(|_panic| anyhow!("a load's thread panicked"))?)
            .collect();
        Ok((result?, tallies?))
    })
}

impl Load<'_> {
    fn run(&self, stop: &AtomicBool) -> Result<Tally> {
        let tallies = scope(|scope| {
            let start = |i| scope.spawn(move || self.client(i, stop));
            let threads: Vec<_> = self.clients.clone().map(start).collect();
            threads
                .into_iter()
                .map(|t| t.join().map_err(|_panic| anyhow!("a client's thread panicked"))?)
                .collect::<Result<Vec<Tally>>>()
        })?;
        Ok(tallies.into_iter().fold(Tally::default(), |a, b| Tally {
            requests: a.requests + b.requests,
            failed: a.failed + b.failed,
            lost: a.lost + b.lost,
        }))
    }

    fn client(&self, index: usize, stop: &AtomicBool) -> Result<Tally> {
        if let Some(namespace) = self.namespace {
            enter(namespace)?;
        }
        let mut random = Random(u64::from(self.proxy.port()) << 16 | index as u64);
        let path = path(index);
        let mut tally = Tally::default();
        let mut client: Option<Client<TcpStream>> = None;
        let mut due = now();
        if !self.is_in_step {
            due += Duration::from_secs_f64(random.unit());
        }
        loop {
            if !self.pause(due, &mut client, stop)? {
                return Ok(tally);
            }
            let mut connection = match client.take() {
                Some(connection) => connection,
                None => Client::connect(self.proxy, &path)?,
            };
            tally.requests += 1;
            match connection.request()? {
                Answer::Status(status) => {
                    tally.failed += usize::from(status != 200);
                    client = Some(connection);
                }
                Answer::Lost => tally.lost += 1,
            }
            due = now() + self.gaps.next(&mut random);
        }
    }

    /// Waits for the time of the next request; false if there will be none. Gives the connection
    /// up when it is time to.
    fn pause(
        &self,
        due: Instant,
        client: &mut Option<Client<TcpStream>>,
        stop: &AtomicBool,
    ) -> Result<bool> {
        /// How soon the end is seen.
        const SLICE: Duration = Duration::from_millis(250);
        let start = now();
        while !stop.load(Ordering::Relaxed) {
            let wait = due.saturating_duration_since(now());
            if wait.is_zero() {
                return Ok(true);
            }
            let (Some(keep_alive), Some(connection)) = (self.keep_alive, client.as_mut()) else {
                sleep(wait.min(SLICE));
                continue;
            };
            let kept = (start + keep_alive).saturating_duration_since(now());
            if kept.is_zero() || connection.closes_within(wait.min(SLICE).min(kept))? {
                *client = None;
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps() {
        let check = |gaps: Gaps, mean: f64, share_above_2: f64| {
            let mut random = Random(1);
            let all: Vec<f64> = (0..10_000).map(|_| gaps.next(&mut random).as_secs_f64()).collect();
            let got = all.iter().sum::<f64>() / 10_000.0;
            assert!((got - mean).abs() < 0.05, "{gaps:?}: mean {got}");
            let above = all.iter().filter(|gap| **gap > 2.0).map(|_| 1e-4).sum::<f64>();
            assert!((above - share_above_2).abs() < 0.02, "{gaps:?}: {above} above 2");
        };
        check(Gaps::Uniform(1.0..3.0), 2.0, 0.5);
        check(Gaps::Exponential(2.0), 2.0, 0.368);
        check(Gaps::Periodic { period: 1.9, deviation: 0.1 }, 1.9, 0.159);
        check(Gaps::Mixed(0.0..1.0, 3.0..5.0, 0.1), 0.85, 0.1);
    }
}
