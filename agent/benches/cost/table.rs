//! A table full of peers, scraped over HTTP while observations keep coming in.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use finrace::ask::{Reply, Request, Route, requests};
use finrace::clock::Clock;
use finrace::http::security::Security;
use finrace::http::{self, MAX_REQUESTS};
use finrace::metrics::{Format, Naming, SERIES_MAX, Status, encode};
use finrace::report::page::{About, Incidents, Visit};
use finrace::scrape::{Scrape, Shape, Work};
use finrace::who::Who;
use finrace_logic::model::{
    Cause, Class, Close, Closer, Dwell, Endpoint, Evidence, Incident, Nanos, Observation, Origin,
    Outcome, Process, Reuse, Role,
};
use finrace_logic::owner::Owner;
use finrace_logic::table::{Keeps, Table};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::say;

/// Observations of a peer: an hour of a busy pool, after which its rings are full.
const CLOSES: u32 = 150;
const REUSES_PER_CLOSE: u32 = 4;

/// Observations that come in meanwhile.
const PER_SECOND: u32 = 10_000;
const PER_EXCHANGE: u32 = REUSES_PER_CLOSE + 3;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Peers in the table, all of them full
    #[arg(long, default_value_t = 2_000)]
    peers: u32,
    /// Make all rows as large as they can be: both ends close, every peer races. Otherwise they are as
    /// most rows are: the server closes, and one peer in fifty races
    #[arg(long)]
    worst: bool,
    /// Keep native histograms and exemplars, and scrape protobuf: series are not counted then
    #[arg(long)]
    native: bool,
    /// Maximum number of series in an answer
    #[arg(long, default_value_t = SERIES_MAX)]
    series_max: usize,
    /// Scrapes of each kind
    #[arg(long, default_value_t = 20)]
    scrapes: usize,
    /// Ask for the status page instead of metrics
    #[arg(long)]
    page: bool,
    /// Instead of all that, encode the table this many times, without reading the clock: for a tool that
    /// counts instructions
    #[arg(long)]
    encode: Option<u32>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(times) = args.encode {
        let mut world = World::new(&args);
        world.fill();
        for _ in 0..times {
            let text = encode(&mut world.table, Status::default(), Format::OpenMetrics);
            ensure!(!text.is_empty(), "nothing is encoded");
        }
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    say(&runtime.block_on(measure(&args))?)
}

async fn measure(args: &Args) -> Result<serde_json::Value> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let idle = memory("VmRSS")?;
    let mut world = World::new(args);
    world.fill();
    let full = memory("VmRSS")?;
    // From here on the peak is that of the scrapes.
    std::fs::write("/proc/self/clear_refs", "5").context("forgetting the peak")?;

    let (asking, receiver) = requests(MAX_REQUESTS.into());
    let handler = move |route| asking.clone().ask(route);
    let (listeners, security) = (vec![listener], Arc::new(Security::load(None)?));
    let never = std::future::pending();
    let server =
        tokio::spawn(http::serve(listeners, MAX_REQUESTS, args.native, security, handler, never));
    let (done, mut is_done) = oneshot::channel();
    let (scrapes, native) = (args.scrapes, args.native);
    let path = if args.page { "/" } else { "/metrics" };
    thread::spawn(move || {
        let of = |encoding: &'static str| {
            (0..scrapes)
                .map(|_| scrape(address, path, encoding, native))
                .collect::<Result<Vec<_>>>()
        };
        // Nobody waits for it if the rest has failed.
        done.send(of("identity").and_then(|plain| Ok((plain, of("gzip")?)))).unwrap_or_default();
    });
    let shape = Shape { series_max: args.series_max, naming: Naming::default() };
    let waited = world.serve(receiver, &shape, &mut is_done).await;
    let (plain, gzip) = is_done.await.context("the client has ended")??;
    server.abort();
    let last = |scrapes: &[Scraped]| scrapes.last().map_or((0, 0), |s| (s.bytes, s.series));
    let (plain_bytes, series) = last(&plain);
    Ok(serde_json::json!({
        "peers": args.peers,
        "worst": args.worst,
        "series": series,
        "bytes": plain_bytes,
        "gzip_bytes": last(&gzip).0,
        "scrape_ms": times(plain),
        "gzip_scrape_ms": times(gzip),
        "rss_idle_kb": idle,
        "rss_full_kb": full,
        "rss_peak_kb": memory("VmHWM")?,
        "bytes_per_row": (full - idle) * 1024 / u64::from(args.peers.max(1)),
        "event_path_waited_us": waited.wall.as_micros() as u64,
        "event_path_waited_cpu_us": waited.cpu.as_micros() as u64,
    }))
}

/// Smallest, median and largest.
fn times(scrapes: Vec<Scraped>) -> [f64; 3] {
    let mut times: Vec<_> =
        scrapes.iter().map(|scrape| (scrape.time.as_secs_f64() * 1e5).round() / 100.0).collect();
    times.sort_by(f64::total_cmp);
    [times.first(), times.get(times.len() / 2), times.last()].map(|time| *time.unwrap_or(&0.0))
}

/// Memory of this process, in KiB.
pub(crate) fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.with_context(|| format!("no {field}"))?.parse()?)
}

struct Scraped {
    time: Duration,
    bytes: usize,
    series: usize,
}

/// Reads the answer without keeping it: over HTTP/1.0, so that the body comes as it is.
#[expect(clippy::disallowed_methods, reason = "to measure is what it is for")]
fn scrape(address: SocketAddr, path: &str, encoding: &str, native: bool) -> Result<Scraped> {
    let accept = if native {
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
    } else {
        "*/*"
    };

    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: a\r\nAccept: {accept}\r\n")?;
    write!(stream, "Accept-Encoding: {encoding}\r\n\r\n")?;
    let mut scraped = Scraped { time: Duration::ZERO, bytes: 0, series: 0 };
    let mut buffer = vec![0; 65_536];
    let mut is_line_start = false;
    let mut is_head = true;
    loop {
        let count = stream.read(&mut buffer)?;
        let mut read = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            break;
        }
        if is_head {
            ensure!(read.starts_with(b"HTTP/1.0 200"), "{}", String::from_utf8_lossy(read));
            let end = read.windows(4).position(|four| four == b"\r\n\r\n").context("no head")?;
            read = read.get(end + 4..).unwrap_or_default();
            (is_head, is_line_start) = (false, true);
        }
        scraped.bytes += read.len();
        for byte in if native { &[] } else { read } {
            scraped.series += usize::from(is_line_start && *byte != b'#');
            is_line_start = *byte == b'\n';
        }
    }
    scraped.time = start.elapsed();
    Ok(scraped)
}

/// The longest that observations had to wait for a scrape: on a busy machine, for others as well.
#[derive(Default)]
struct Waited {
    wall: Duration,
    cpu: Duration,
}

/// CPU time that this thread has used.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

struct World {
    table: Table,
    peers: u32,
    worst: bool,
    process: Process,
    now: Nanos,
    random: u64,
}

impl World {
    fn new(args: &Args) -> Self {
        let Args { peers, worst, .. } = *args;
        let now = Nanos(0) + Duration::from_hours(24);
        let mut table = Table::new(peers as usize, Duration::from_millis(200), now);
        table.keep(Keeps { native: args.native, examples: args.native });
        let process = Process { name: "nginx".into(), pid: 1, owner: Owner::UNKNOWN };
        Self { table, peers, worst, process, now, random: 7 }
    }

    /// Peers arrive one after another over half an hour, and each stays for half an hour, so that what
    /// one of them allocates grows in between what others do.
    fn fill(&mut self) {
        for round in 0..2 * CLOSES {
            self.now = self.now + Duration::from_secs(12);
            for peer in 0..self.peers {
                if (peer % CLOSES..peer % CLOSES + CLOSES).contains(&round) {
                    self.exchange(peer);
                }
            }
        }
        for peer in (0..self.peers).step_by(if self.worst { 1 } else { 50 }) {
            self.add_race(peer);
        }
    }

    fn origin(&self, peer: u32) -> Origin {
        Origin {
            netns: 4_026_531_840,
            owner: Owner::UNKNOWN,
            role: Role::Client,
            local: Endpoint { ip: Ipv4Addr::new(10, 0, 0, 1).into(), port: 40_000 },
            remote: Endpoint { ip: Ipv4Addr::from_bits(0x0a01_0000 + peer).into(), port: 8080 },
            process: Some(self.process),
            rtt: Some(Duration::from_micros(300)),
        }
    }

    /// From 0 to 1.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f64::from((self.random >> 32) as u32) / f64::from(u32::MAX)
    }

    /// Uses after gaps of any size below the timeout, and a close by the server or by either side.
    fn exchange(&mut self, peer: u32) {
        let (time, origin) = (self.now, self.origin(peer));
        for _ in 0..REUSES_PER_CLOSE {
            let gap = Duration::from_secs_f64(0.2 * 25.0_f64.powf(self.random()));
            self.table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 300)));
        }
        let evidence = if self.random() < 0.1 { Evidence::AfterData } else { Evidence::Idle };
        let closers = [(Closer::Peer, 5.0), (Closer::Local, 4.0)];
        for (closer, timeout) in closers.into_iter().take(if self.worst { 2 } else { 1 }) {
            let idle = Duration::from_secs_f64(timeout + 0.02 * self.random());
            let close = Close { evidence, ..Close::of_idle(time, origin, closer, idle) };
            self.table.add(&Observation::Close(close));
        }
        let dwell = Duration::from_secs_f64(0.001 * self.random());
        self.table.add(&Observation::Dwell(Dwell { time, origin, dwell, written: false }));
    }

    fn add_race(&mut self, peer: u32) {
        let (time, origin) = (self.now, self.origin(peer));
        for (class, cause) in [
            (Class::StaleWrite, Cause::Idle),
            (Class::FinCrossed, Cause::Idle),
            (Class::Farewell, Cause::Unknown),
        ] {
            let race = Incident {
                cause,
                gap: Some(Duration::from_secs(5)),
                fin_age: Some(Duration::from_micros(300)),
                ..Incident::new(time, origin, class, Outcome::Reset)
            };
            self.table.add(&Observation::Incident(race));
        }
    }

    fn about() -> About {
        let clock = Clock { started: SystemTime::UNIX_EPOCH, start: Nanos(0) };
        About {
            status: Status::default(),
            host: String::new(),
            kernel: String::new(),
            clock,
            wall: SystemTime::UNIX_EPOCH,
            incidents: Incidents::default(),
            who: Who::default(),
        }
    }

    /// Answers as the daemon's event loop does, with observations in between; returns the longest that
    /// those had to wait for a scrape.
    #[expect(clippy::disallowed_methods, reason = "to measure is what it is for")]
    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        shape: &Shape,
        is_done: &mut oneshot::Receiver<Result<(Vec<Scraped>, Vec<Scraped>)>>,
    ) -> Waited {
        let mut longest = Waited::default();
        let mut work: Option<Work> = None;
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while is_done.is_empty() {
            let is_busy = work.is_some();
            let request = async {
                if is_busy { std::future::pending().await } else { requests.recv().await }
            };
            let (start, start_cpu);
            tokio::select! {
                _ = ticks.tick() => {
                    for _ in 0..PER_SECOND / PER_EXCHANGE / 100 {
                        self.random();
                        self.exchange((self.random >> 32) as u32 % self.peers.max(1));
                    }
                    (start, start_cpu) = (Instant::now(), cpu());
                }
                Some(request) = request => {
                    (start, start_cpu) = (Instant::now(), cpu());
                    match request.route {
                        Route::Ready => request.answer(Reply::Ready),
                        Route::Metrics { format, is_gzip } => {
                            let (table, form) = (&mut self.table, (format, is_gzip));
                            let status = Status::default();
                            let begun = Scrape::begin(table, status, shape, form, self.now, request);
                            work = Some(Work::Scrape(Box::new(begun)));
                        }
                        Route::Page(ask) => {
                            let (about, table) = (Self::about(), &self.table);
                            let visit = Visit::begin(table, about, ask, self.now, request);
                            work = Some(Work::Page(Box::new(visit)));
                        }
                    }
                }
                () = tokio::task::yield_now(), if is_busy => {
                    (start, start_cpu) = (Instant::now(), cpu());
                    let table = &mut self.table;
                    if let Some(done) = work.take_if(|work| !work.collect(table)) {
                        done.answer(table);
                    }
                }
            }
            longest.wall = longest.wall.max(start.elapsed());
            longest.cpu = longest.cpu.max(cpu().saturating_sub(start_cpu));
        }
        longest
    }
}
