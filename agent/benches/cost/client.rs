//! A closed loop of requests: each connection sends its next one as soon as it has the answer.
//!
//! A single thread that waits only when no answer is ready, so that its cost stays the same from one
//! moment to the next, which a comparison of time slices needs. It runs until standard input ends, and
//! reports its progress for each line there: `count`, with the pids whose CPU time to report.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Beyond this many, it is not worth going on.
const MAX_ERRORS: u64 = 100;

/// Bytes of one write of `bulk`.
const BLOCK: usize = 64 * 1024;

/// Epoll's tag for standard input; connections use their index.
const STDIN: u64 = u64::MAX;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    kind: Kind,
    /// Address of the server; `bulk` is its own server
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    #[arg(long, default_value_t = 16)]
    connections: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// GET on keep-alive connections
    Http,
    /// A connection for each GET. The server closes first, so that TIME_WAIT is at its end: our port is
    /// free at once, and a SYN from it replaces the socket that waits there
    HttpClose,
    /// GET of the key `k`
    Redis,
    /// Writes of 64 KiB, which the same thread reads at the other end at once
    Bulk,
}

impl Kind {
    const fn request(self) -> &'static [u8] {
        match self {
            Self::Http => b"GET / HTTP/1.1\r\nHost: cost\r\n\r\n",
            Self::HttpClose => b"GET / HTTP/1.1\r\nHost: cost\r\nConnection: close\r\n\r\n",
            Self::Redis => b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            Self::Bulk => b"",
        }
    }

    /// How a good answer begins.
    const fn good(self) -> &'static [u8] {
        match self {
            Self::Http | Self::HttpClose => b"HTTP/1.1 200",
            Self::Redis => b"$",
            Self::Bulk => b"",
        }
    }

    /// The length of an answer, if its beginning tells.
    fn length(self, text: &str) -> Option<usize> {
        if self == Self::Redis {
            let (head, _) = text.split_once("\r\n")?;
            return Some(head.len() + head.strip_prefix('$')?.parse::<usize>().ok()? + 4);
        }
        let (head, _) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
        Some(head.len() + 4 + length.parse::<usize>().ok()?)
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.connections > 0, "no connections, no load");
    let tally = if args.kind == Kind::Bulk {
        bulk(args.connections)?
    } else {
        Client::new(&args)?.run()?
    };
    match tally.last_error {
        Some(error) => bail!("{} errors, the last: {error}", tally.errors),
        None => Ok(()),
    }
}

/// What has been done so far.
#[derive(Default)]
struct Tally {
    requests: u64,
    bytes: u64,
    errors: u64,
    last_error: Option<String>,
}

impl Tally {
    fn fail(&mut self, error: &anyhow::Error) -> Result<()> {
        self.errors += 1;
        self.last_error = Some(format!("{error:#}"));
        ensure!(self.errors < MAX_ERRORS, "{MAX_ERRORS} errors, the last: {error:#}");
        Ok(())
    }
}

/// The answer to `count`: all counts since the start.
#[derive(Serialize)]
struct Count {
    requests: u64,
    bytes: u64,
    errors: u64,
    /// Our own CPU time.
    cpu_ns: u64,
    /// Time of the monotonic clock.
    time_ns: u64,
    /// CPU time of the processes that were asked for.
    watched_ns: Vec<u64>,
}

/// Orders read from standard input.
#[derive(Default)]
struct Orders(Vec<u8>);

impl Orders {
    /// Reads the orders that are there and obeys them; false at the end of input.
    fn obey(&mut self, tally: &Tally) -> Result<bool> {
        let mut buffer = [0; 1024];
        let read = rustix::io::read(std::io::stdin(), &mut buffer).context("reading orders")?;
        self.0.extend(buffer.iter().take(read));
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let pids = line.trim().strip_prefix("count").with_context(|| format!("{line:?}"))?;
            let pids: Vec<libc::pid_t> =
                pids.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
            let count = Count {
                requests: tally.requests,
                bytes: tally.bytes,
                errors: tally.errors,
                time_ns: ns(clock_gettime(ClockId::Monotonic))?,
                cpu_ns: ns(clock_gettime(ClockId::ProcessCPUTime))?,
                watched_ns: pids.into_iter().map(cpu_ns).collect::<Result<_>>()?,
            };
            let mut text = serde_json::to_string(&count)?;
            text.push('\n');
            std::io::stdout().write_all(text.as_bytes()).context("writing a count")?;
        }
        Ok(read > 0)
    }
}

fn ns(time: Timespec) -> Result<u64> {
    let time = Duration::try_from(time).context("a clock before its start")?;
    Ok(u64::try_from(time.as_nanos())?)
}

/// CPU time of a process up to now. For a running process, /proc is a tick behind.
fn cpu_ns(pid: libc::pid_t) -> Result<u64> {
    let mut clock = 0;
    // SAFETY: it writes the one integer that it is given.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    ensure!(error == 0, "no clock of process {pid}: error {error}");
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes the one structure that it is given.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "reading the clock of process {pid}");
    ns(Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec })
}

/// A connection, and how much of an answer it has received.
struct Connection {
    socket: TcpStream,
    received: usize,
}

struct Client {
    kind: Kind,
    address: SocketAddr,
    /// Length of an answer: all are the same.
    length: usize,
    epoll: rustix::fd::OwnedFd,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    tally: Tally,
}

impl Client {
    fn new(args: &Args) -> Result<Self> {
        let (kind, address) = (args.kind, args.address);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stdin = epoll::EventData::new_u64(STDIN);
        epoll::add(&epoll, std::io::stdin(), stdin, epoll::EventFlags::IN)
            .context("standard input is to be a pipe")?;
        let length = answer_length(kind, address)?;
        let tally = Tally::default();
        let buffer = vec![0; BLOCK];
        let mut client =
            Self { kind, address, length, epoll, connections: Vec::new(), buffer, tally };
        for index in 0..args.connections {
            let connection = client.open(index)?;
            client.connections.push(connection);
        }
        Ok(client)
    }

    fn run(mut self) -> Result<Tally> {
        let mut orders = Orders::default();
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for answers"),
            }
            for event in events.drain(..) {
                let data = event.data.u64();
                if data == STDIN {
                    if !orders.obey(&self.tally)? {
                        return Ok(self.tally);
                    }
                } else if let Err(error) = self.receive(data as usize) {
                    self.tally.fail(&error)?;
                    self.reopen(data as usize)?;
                }
            }
        }
    }

    /// Opens a connection, with a request under way.
    fn open(&self, index: usize) -> Result<Connection> {
        // On loopback the handshake is complete when this returns, without waiting.
        let socket = TcpStream::connect(self.address)
            .with_context(|| format!("connecting to {}", self.address))?;
        self.ask(&socket)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        Ok(Connection { socket, received: 0 })
    }

    fn reopen(&mut self, index: usize) -> Result<()> {
        let connection = self.open(index)?;
        if let Some(place) = self.connections.get_mut(index) {
            *place = connection;
        }
        Ok(())
    }

    fn ask(&self, socket: &TcpStream) -> Result<()> {
        let request = self.kind.request();
        let sent = send(socket, request, SendFlags::NOSIGNAL).context("sending a request")?;
        ensure!(sent == request.len(), "{sent} bytes of a request sent");
        Ok(())
    }

    /// Takes what has arrived; once the answer is complete, asks again.
    fn receive(&mut self, index: usize) -> Result<()> {
        loop {
            let connection = self.connections.get_mut(index).context("unknown connection")?;
            let read = match recv(&connection.socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error).context("receiving an answer"),
            };
            let is_good = connection.received > 0 || self.buffer.starts_with(self.kind.good());
            ensure!(read == 0 || is_good, "a bad answer");
            connection.received += read;
            self.tally.bytes += read as u64;
            let received = connection.received;
            ensure!(received <= self.length, "an answer is too long");
            let is_whole = received == self.length;
            if read == 0 {
                ensure!(is_whole && self.kind == Kind::HttpClose, "closed after {received} bytes");
                self.tally.requests += 1;
                return self.reopen(index);
            }
            if is_whole && self.kind != Kind::HttpClose {
                connection.received = 0;
                self.tally.requests += 1;
                let connection = self.connections.get(index).context("unknown connection")?;
                return self.ask(&connection.socket);
            }
        }
    }
}

/// Makes one request, to learn how long an answer is.
fn answer_length(kind: Kind, address: SocketAddr) -> Result<usize> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(kind.request())?;
    let mut answer = Vec::new();
    let mut buffer = vec![0; BLOCK];
    loop {
        let read = stream.read(&mut buffer).context("waiting for the first answer")?;
        answer.extend(buffer.iter().take(read));
        let text = String::from_utf8_lossy(&answer);
        ensure!(read > 0, "the first answer ended early: {text}");
        if let Some(length) = kind.length(&text)
            && answer.len() >= length
        {
            ensure!(answer.starts_with(kind.good()), "the first answer: {text}");
            ensure!(answer.len() == length, "more than an answer: {text}");
            return Ok(length);
        }
    }
}

/// Both ends of a connection.
struct Pair {
    sender: TcpStream,
    receiver: TcpStream,
}

/// One block after another, each over the next connection.
fn bulk(connections: usize) -> Result<Tally> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let pair = |_| -> Result<Pair> {
        let sender = TcpStream::connect(address)?;
        let (receiver, _) = listener.accept()?;
        Ok(Pair { sender, receiver })
    };
    let pairs = (0..connections).map(pair).collect::<Result<Vec<_>>>()?;
    let block = vec![b'x'; BLOCK];
    let mut buffer = vec![0; BLOCK];
    let (mut tally, mut orders) = (Tally::default(), Orders::default());
    loop {
        for pair in &pairs {
            pair.pass(&block, &mut buffer)?;
            tally.requests += 1;
            tally.bytes += BLOCK as u64;
        }
        let stdin = std::io::stdin();
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        let ready = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if ready > 0 && !orders.obey(&tally)? {
            return Ok(tally);
        }
    }
}

impl Pair {
    /// Sends a block and receives it.
    fn pass(&self, block: &[u8], buffer: &mut [u8]) -> Result<()> {
        let mut rest = block;
        let mut awaited = block.len();
        while awaited > 0 {
            if !rest.is_empty() {
                match send(&self.sender, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                    Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                    Err(Errno::AGAIN) => {}
                    Err(error) => return Err(error).context("sending a block"),
                }
            }
            match recv(&self.receiver, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((read, _)) => awaited = awaited.saturating_sub(read),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error).context("receiving a block"),
            }
        }
        Ok(())
    }
}
