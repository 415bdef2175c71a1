//! Traffic that races: a keep-alive server with a short idle timeout, and a client pool whose
//! reuses come just before or just after it.
//!
//! Everything stays on 127.0.0.1. The clients make the mistake that real pools make: they write
//! without checking the socket first. About half of the reuses lose.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

/// The server closes a connection that is silent for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Gaps between requests are drawn from here: half of them on either side of [`IDLE_TIMEOUT`].
const GAP_MILLIS: std::ops::Range<u64> = 700..1300;
const CLIENTS: u64 = 8;
/// Any other client that finds the server cannot make it start more threads than this.
const MAX_CONNECTIONS: usize = 64;
const MAX_HEAD: usize = 8 * 1024;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: finrace-demo\r\nContent-Length: 0\r\n\r\n";

/// The server and its clients; they run until this is dropped, which takes about a second.
pub struct Demo {
    server: SocketAddr,
    shared: Arc<Progress>,
    clients: Vec<JoinHandle<()>>,
    accept: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    failures: AtomicU64,
    stopping: Mutex<bool>,
    changed: Condvar,
}

impl Progress {
    fn stop(&self) {
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for `time`; returns true at once when the demo ends.
    fn stops_within(&self, time: Duration) -> bool {
        let stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopping, _) = self
            .changed
            .wait_timeout_while(stopping, time, |stopping| !*stopping)
            .unwrap_or_else(PoisonError::into_inner);
        *stopping
    }
}

impl Demo {
    pub fn start() -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
        let server = listener.local_addr().context("reading the demo server's address")?;
        let shared = Arc::new(Progress::default());
        let mut demo = Self { server, shared, clients: Vec::new(), accept: None };
        let shared = Arc::clone(&demo.shared);
        demo.accept = Some(spawn("demo-server", move || accept(&listener, &shared))?);
        for seed in 0..CLIENTS {
            let shared = Arc::clone(&demo.shared);
            demo.clients
                .push(spawn("demo-client", move || request_for_ever(server, seed, &shared))?);
        }
        Ok(demo)
    }

    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Requests that got no answer.
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.shared.stop();
        for client in self.clients.drain(..) {
            drop(client.join());
        }
        // accept() has no timeout: one more connection makes the thread check the flag.
        drop(TcpStream::connect(self.server));
        if let Some(accept) = self.accept.take() {
            drop(accept.join());
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.with_context(|| format!("starting thread {name}"))
}

fn accept(listener: &TcpListener, shared: &Arc<Progress>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    for stream in listener.incoming() {
        // Without the pause, running out of descriptors would spin.
        let pause = if stream.is_ok() { Duration::ZERO } else { Duration::from_millis(50) };
        if shared.stops_within(pause) {
            break;
        }
        connections.retain(|connection| !connection.is_finished());
        let Ok(stream) = stream else { continue };
        if connections.len() < MAX_CONNECTIONS {
            let shared = Arc::clone(shared);
            connections.extend(spawn("demo-server", move || drop(serve(stream, &shared))));
        }
    }
    for connection in connections {
        drop(connection.join());
    }
}

/// Answers requests until the client leaves or is silent for [`IDLE_TIMEOUT`].
fn serve(mut stream: TcpStream, shared: &Progress) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    while read_head(&mut stream)? {
        stream.write_all(ANSWER)?;
        if shared.stops_within(Duration::ZERO) {
            break;
        }
    }
    Ok(())
}

/// One connection of the pool: used, left idle for a gap, used again; replaced after a failure.
fn request_for_ever(server: SocketAddr, seed: u64, shared: &Progress) {
    let mut dice = Dice(seed);
    let mut idle = None;
    loop {
        let answered = match idle.take() {
            Some(stream) => request(stream, &mut dice),
            None => connect(server).and_then(|stream| request(stream, &mut dice)),
        };
        let pause = if let Ok(stream) = answered {
            idle = Some(stream);
            Duration::from_millis(dice.within(GAP_MILLIS))
        } else {
            shared.failures.fetch_add(1, Ordering::Relaxed);
            Duration::from_millis(10)
        };
        if shared.stops_within(pause) {
            return;
        }
    }
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    Ok(stream)
}

/// The stream comes back only if the request was answered.
fn request(mut stream: TcpStream, dice: &mut Dice) -> io::Result<TcpStream> {
    let padding = usize::try_from(dice.within(100..200)).unwrap_or_default();
    let head =
        format!("GET / HTTP/1.1\r\nHost: demo\r\nX-Padding: {}\r\n\r\n", "x".repeat(padding));
    stream.write_all(head.as_bytes())?;
    if read_head(&mut stream)? { Ok(stream) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads up to the empty line that ends requests and answers here; false at the end of the stream.
fn read_head(stream: &mut TcpStream) -> io::Result<bool> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 || head.len() > MAX_HEAD {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `SplitMix64`: the same gaps in every run, without a crate for it.
struct Dice(u64);

impl Dice {
    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let span = range.end.saturating_sub(range.start).max(1);
        range.start + (mixed ^ (mixed >> 31)) % span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_fall_on_both_sides_of_the_timeout() {
        let mut dice = Dice(0);
        let late = (0..1000).filter(|_| dice.within(GAP_MILLIS) > 1000).count();
        assert!((400..600).contains(&late), "{late} of 1000 gaps are over the timeout");
    }
}
