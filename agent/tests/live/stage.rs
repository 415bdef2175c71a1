//! What a scenario works with: connections between two sockets that it holds both ends of.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::Value;

use crate::kernel;

pub(crate) const REQUEST: [u8; 200] = [b'q'; 200];
pub(crate) const ANSWER: [u8; 300] = [b'a'; 300];

/// Nothing here blocks for longer, unless the test itself is wrong.
const STUCK_MS: u64 = 10_000;

#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Stage) -> Result<()>,
    pub(crate) expect: &'static str,
    /// Starts before the agent does.
    pub(crate) early: bool,
    /// Must hold without a write hook, too.
    pub(crate) hookless: bool,
}

impl Scenario {
    pub(crate) const fn new(
        name: &'static str,
        run: fn(&mut Stage) -> Result<()>,
        expect: &'static str,
    ) -> Self {
        Self { name, run, expect, early: false, hookless: false }
    }

    pub(crate) const fn early(self) -> Self {
        Self { early: true, ..self }
    }

    pub(crate) const fn also_hookless(self) -> Self {
        Self { hookless: true, ..self }
    }
}

/// The error of a scenario that cannot run here.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Opens when the agent is attached.
#[derive(Default)]
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(is_open, |is_open| !*is_open));
    }
}

/// Remembers which addresses and namespaces are this scenario's.
pub(crate) struct Stage {
    gate: Arc<Gate>,
    /// As the agent prints them, the latest last.
    servers: Vec<SocketAddr>,
    netns: BTreeSet<u64>,
    /// Kept open to the end: no other scenario gets these addresses, and a reset without a socket still
    /// finds a listener on its port.
    listeners: Vec<TcpListener>,
}

/// Both ends of a connection.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

impl Stage {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self { gate, servers: Vec::new(), netns: BTreeSet::new(), listeners: Vec::new() }
    }

    pub(crate) fn wait_for_agent(&self) {
        self.gate.wait();
    }

    /// Listens in the namespace that the thread is in; port 0 for any.
    pub(crate) fn listen(&mut self, at: impl Into<SocketAddr>) -> Result<TcpListener> {
        let at = at.into();
        let listener = TcpListener::bind(at).with_context(|| format!("listening on {at}"))?;
        self.keep(&listener)?;
        Ok(listener)
    }

    /// Prepares another attempt: what there was until now belongs to no scenario.
    pub(crate) fn clear(&mut self) {
        self.servers.clear();
        self.netns.clear();
    }

    /// Makes a listener this scenario's.
    pub(crate) fn keep(&mut self, listener: &TcpListener) -> Result<()> {
        let address = listener.local_addr()?;
        // A listener on [::] is reached by the loopback address of IPv4.
        let ip = address.ip().to_canonical();
        let ip = if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
        self.servers.push(SocketAddr::new(ip, address.port()));
        self.belongs_here()?;
        self.listeners.push(listener.try_clone()?);
        Ok(())
    }

    /// Closes the port that was opened last; for scenarios in a namespace of their own, since elsewhere
    /// another scenario's client may get that port.
    pub(crate) fn stop_listening(&mut self) {
        self.listeners.pop();
    }

    /// Lines from the namespace that the thread is in belong to this scenario, if an address fits.
    pub(crate) fn belongs_here(&mut self) -> Result<()> {
        self.netns.insert(kernel::netns_number()?);
        Ok(())
    }

    pub(crate) fn pair(&mut self) -> Result<Pair> {
        let listener = self.listen((Ipv4Addr::LOCALHOST, 0))?;
        Pair::new(&listener, listener.local_addr()?)
    }

    /// A pair that has answered one request.
    pub(crate) fn used_pair(&mut self) -> Result<Pair> {
        let mut pair = self.pair()?;
        pair.exchange()?;
        Ok(pair)
    }

    pub(crate) fn used_pair_ipv6(&mut self) -> Result<Pair> {
        let listener = self
            .listen((Ipv6Addr::LOCALHOST, 0))
            .map_err(|error| Skip(format!("no IPv6 loopback: {error:#}")))?;
        let mut pair = Pair::new(&listener, listener.local_addr()?)?;
        pair.exchange()?;
        Ok(pair)
    }

    pub(crate) fn owns(&self, line: &Value) -> bool {
        let is_ours = |key: &str| {
            let address: Option<SocketAddr> = line.get(key)?.as_str()?.parse().ok();
            address.map(|address| self.servers.contains(&address))
        };
        let netns = line.get("netns").and_then(Value::as_u64);
        netns.is_some_and(|netns| self.netns.contains(&netns))
            && (is_ours("local") == Some(true) || is_ours("peer") == Some(true))
    }

    /// Expands `$server`, `$netns` and `$pid` in an expectation.
    pub(crate) fn expand(&self, word: &str) -> String {
        match word {
            "$server" => self.servers.last().map(ToString::to_string).unwrap_or_default(),
            "$netns" => self.netns.first().map(ToString::to_string).unwrap_or_default(),
            "$pid" => std::process::id().to_string(),
            _ => word.to_owned(),
        }
    }
}

impl Pair {
    pub(crate) fn new(listener: &TcpListener, to: SocketAddr) -> Result<Self> {
        let client = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        let (server, _) = listener.accept().context("accepting")?;
        Self::of(client, server)
    }

    pub(crate) fn of(client: TcpStream, server: TcpStream) -> Result<Self> {
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(stretched(STUCK_MS)))?;
            stream.set_write_timeout(Some(stretched(STUCK_MS)))?;
        }
        Ok(Self { client, server })
    }

    pub(crate) fn exchange(&mut self) -> Result<()> {
        self.client.write_all(&REQUEST).context("sending a request")?;
        self.answer()
    }

    /// The server's half of an exchange whose request is on its way.
    pub(crate) fn answer(&mut self) -> Result<()> {
        receive(&mut self.server, REQUEST.len()).context("receiving a request")?;
        self.server.write_all(&ANSWER).context("sending an answer")?;
        receive(&mut self.client, ANSWER.len()).context("receiving an answer")
    }

    /// The client notices the server's close and closes, as it should.
    pub(crate) fn server_closes(self) -> Result<()> {
        drop(self.server);
        expect_end(self.client)
    }

    pub(crate) fn client_closes(self) -> Result<()> {
        drop(self.client);
        expect_end(self.server)
    }
}

pub(crate) fn receive(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    stream.read_exact(&mut vec![0; bytes])
}

/// Reads until the stream ends, by FIN or RST.
pub(crate) fn expect_end(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => bail!("waiting for the end of a stream: {error}"),
        }
    }
}

/// `FINRACE_SLACK`: how many times slower than usual this machine may be, at least 1.
pub(crate) fn slack() -> f64 {
    let slack = std::env::var("FINRACE_SLACK").ok().and_then(|text| text.parse().ok());
    slack.unwrap_or(1.0_f64).max(1.0)
}

/// A time limit, stretched for this machine.
pub(crate) fn stretched(millis: u64) -> Duration {
    Duration::from_millis(millis).mul_f64(slack())
}

thread_local! {
    static OVERSLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

pub(crate) fn pause(millis: u64) {
    let due = now() + Duration::from_millis(millis);
    thread::sleep(Duration::from_millis(millis));
    OVERSLEPT.set(OVERSLEPT.get() + now().saturating_sub(due));
}

/// How much longer than asked for this thread has paused since the last call.
pub(crate) fn overslept() -> Duration {
    OVERSLEPT.take()
}

/// Counts another thread's delay as this thread's own.
pub(crate) fn note_overslept(late: Duration) {
    OVERSLEPT.set(OVERSLEPT.get().max(late));
}

pub(crate) fn now() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    let secs = u64::try_from(tv_sec).unwrap_or_default();
    Duration::new(secs, u32::try_from(tv_nsec).unwrap_or_default())
}
