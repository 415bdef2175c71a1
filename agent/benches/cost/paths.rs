//! The two paths that every program on a host takes: a write, and a connection from open to close.
//! Measured without any BPF program, with twins that do nothing, and with finrace.
//!
//! Under QEMU's `-icount shift=0` a nanosecond is an instruction of the guest, so the same loop
//! that measures time here counts instructions there.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::sys::{Stats, enable_stats};
use finrace::cli::forced;
use finrace::clock::monotonic;
use finrace::probe::attach::Forced;
use finrace::probe::plan::Job;
use rustix::net::sockopt::set_tcp_cork;
use serde::Serialize;

use crate::programs::{Count, Loose, Programs, Set};
use crate::say;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Object with the twins
    #[arg(long)]
    object: PathBuf,
    /// Same as the agent's own option
    #[arg(long = "hook", value_parser = forced)]
    hooks: Vec<Forced>,
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Writes per round
    #[arg(long, default_value_t = 2000)]
    writes: u32,
    /// Connections per round
    #[arg(long, default_value_t = 100)]
    connections: u32,
    /// Also ask the kernel how long the programs ran
    #[arg(long)]
    stats: bool,
}

/// The programs to be measured.
#[derive(Serialize)]
struct Loaded {
    loaded: Vec<Count>,
}

/// One measurement.
#[derive(Serialize)]
struct Sample {
    path: &'static str,
    hook: Option<&'static str>,
    set: Set,
    round: u32,
    /// For one write or one connection.
    ns: f64,
}

/// What the kernel counted in one round with statistics.
#[derive(Serialize)]
struct Counted {
    path: &'static str,
    set: Set,
    round: u32,
    /// Number of writes or connections.
    count: u32,
    programs: Vec<Count>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let (mut programs, mut loose) = Programs::load(&args.object, &args.hooks)?;
    say(&Loaded { loaded: programs.counts(Set::Finrace)? })?;
    let mut pair = Pair::new()?;
    let write = &mut |count| pair.write(count);
    Path { name: "write", job: Some(Job::Write), count: args.writes, measure: write }.run(
        &mut programs,
        &mut loose,
        &args,
    )?;
    let measure = &mut connections;
    Path { name: "connection", job: None, count: args.connections, measure }.run(
        &mut programs,
        &mut loose,
        &args,
    )
}

/// One of the two paths; `measure` takes it a number of times and returns nanoseconds.
struct Path<'a> {
    name: &'static str,
    /// The job whose programs are attached; all jobs if none is named.
    job: Option<Job>,
    count: u32,
    measure: &'a mut dyn FnMut(u32) -> Result<u64>,
}

impl Path<'_> {
    fn run(mut self, programs: &mut Programs, loose: &mut Loose, args: &Args) -> Result<()> {
        let hook = programs.hook(self.job.unwrap_or(Job::State));
        let Self { name: path, job, count, .. } = self;
        for round in 0..args.rounds {
            for set in shuffled(round) {
                programs.attach(set, job)?;
                let took = self.warm(loose)?;
                #[expect(clippy::cast_precision_loss, reason = "below 2^52 ns")]
                let ns = took as f64 / f64::from(count);
                say(&Sample { path, hook, set, round, ns })?;
            }
        }
        if args.stats {
            let _on = enable_stats(Stats::RunTime).context("asking for run-time statistics")?;
            for round in 0..args.rounds.min(30) {
                for set in shuffled(round) {
                    programs.attach(set, job)?;
                    self.warm(loose)?;
                    let before = programs.counts(set)?;
                    self.warm(loose)?;
                    let mut programs = programs.counts(set)?;
                    for (after, before) in programs.iter_mut().zip(before) {
                        after.runs -= before.runs;
                        after.run_ns -= before.run_ns;
                    }
                    say(&Counted { path, set, round, count: count + count / 10, programs })?;
                }
            }
        }
        programs.attach(Set::None, None)
    }

    /// Runs a tenth first, which does not count. Records written meanwhile are discarded.
    fn warm(&mut self, loose: &mut Loose) -> Result<u64> {
        (self.measure)(self.count / 10)?;
        loose.drain();
        let took = (self.measure)(self.count);
        loose.drain();
        took
    }
}

/// Every order comes equally often.
fn shuffled(round: u32) -> [Set; 3] {
    let [a, b, c] = Set::ALL;
    match round % 6 {
        0 => [a, b, c],
        1 => [c, b, a],
        2 => [b, c, a],
        3 => [a, c, b],
        4 => [c, a, b],
        _ => [b, a, c],
    }
}

/// A connection within this host.
struct Pair {
    near: TcpStream,
    far: TcpStream,
}

impl Pair {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
        let near = TcpStream::connect(listener.local_addr()?).context("connecting")?;
        near.set_nodelay(true)?;
        let (far, _) = listener.accept().context("accepting")?;
        Ok(Self { near, far })
    }

    /// Nanoseconds for `count` writes of a byte. They are corked, so that nothing but the write itself
    /// is measured; one byte is sent first, as on any connection in use.
    fn write(&mut self, count: u32) -> Result<u64> {
        self.near.write_all(b"x")?;
        set_tcp_cork(&self.near, true)?;
        let start = monotonic();
        for _ in 0..count {
            ensure!(self.near.write(b"x")? == 1, "a byte was not taken");
        }
        let took = monotonic().since(start);
        set_tcp_cork(&self.near, false)?;
        let mut rest = count as usize + 1;
        let mut buffer = [0; 4096];
        while rest > 0 {
            let read = self.far.read(&mut buffer)?;
            ensure!(read > 0, "the connection has ended");
            rest -= read;
        }
        Ok(u64::try_from(took.as_nanos())?)
    }
}

/// Nanoseconds for `count` connections, each with a request, an answer, and a close by the server
/// first; both ends are in this process.
fn connections(count: u32) -> Result<u64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    let address = listener.local_addr()?;
    let start = monotonic();
    for _ in 0..count {
        connection(&listener, address)?;
    }
    Ok(u64::try_from(monotonic().since(start).as_nanos())?)
}

fn connection(listener: &TcpListener, address: SocketAddr) -> Result<()> {
    let mut buffer = [0; 128];
    let mut client = TcpStream::connect(address).context("connecting")?;
    let (mut server, _) = listener.accept().context("accepting")?;
    client.write_all(&[b'q'; 100])?;
    server.read_exact(&mut [0; 100])?;
    server.write_all(&[b'a'; 100])?;
    drop(server);
    client.read_exact(&mut [0; 100])?;
    ensure!(client.read(&mut buffer)? == 0, "more than the answer came");
    Ok(())
}
