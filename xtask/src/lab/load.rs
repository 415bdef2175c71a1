//! The load: workers that each reuse a connection just when the backend may have closed it.
//!
//! Throughput does not matter, the gap does. Requests are POST, which nginx does not send again
//! once it has written them: a lost one is a 502.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::servers::path;
use crate::link::enter;
use crate::setup::now;

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
    /// Lets each worker's first connection idle out, then loads; returns the number of requests.
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
        let mut connection = Connection::open(self.proxy, index)?;
        let mut random = Random(index as u64);

        connection.request()?;
        // Idles out. All workers stay close together from here on: a server that looks for what
        // has expired once per turn of its loop (gunicorn) does so in the midst of their requests.
        sleep(self.idle.mul_f64(1.5));
        let end = now() + self.duration;
        let mut requests = 1;
        let mut last = connection.request()?;
        while now() < end {
            let offset =
                self.offset_ms.start + (self.offset_ms.end - self.offset_ms.start) * random.unit();
            let gap = Duration::try_from_secs_f64(self.idle.as_secs_f64() + offset / 1000.0)?;
            sleep((last + gap).saturating_duration_since(now()));
            last = connection.request()?;
            requests += 1;
        }
        Ok(requests + 1)
    }
}

/// A keep-alive connection to the proxy.
struct Connection {
    stream: BufReader<TcpStream>,
    request: String,
}

impl Connection {
    fn open(proxy: SocketAddr, worker: usize) -> Result<Self> {
        let stream =
            TcpStream::connect(proxy).with_context(|| format!("connecting to nginx at {proxy}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: lab\r\nContent-Length: 200\r\n\r\n{}",
            path(worker),
            "x".repeat(200)
        );
        Ok(Self { stream: BufReader::new(stream), request })
    }

    /// Sends the request and reads the response, whatever its status: nginx logs that. Returns
    /// when the response had come.
    fn request(&mut self) -> Result<Instant> {
        self.stream.get_mut().write_all(self.request.as_bytes()).context("writing to nginx")?;
        let mut length = 0;
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stream.read_line(&mut line).context("reading from nginx")?;
            ensure!(read > 0, "nginx closed the connection of the load");
            let Some((name, value)) = line.split_once(':') else {
                if line.trim().is_empty() {
                    break;
                }
                continue;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("content-length")?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("reading from nginx")?;
        Ok(now())
    }
}

/// `SplitMix64`: the same gaps in every run.
struct Random(u64);

impl Random {
    /// Evenly from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
