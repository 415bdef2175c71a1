//! A client that keeps its connection: one request after another, at chosen times.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Status(u16),
    /// The connection ended before the answer began.
    Lost,
}

/// A keep-alive connection, over TCP or something that carries it.
pub(crate) struct Client<S> {
    stream: BufReader<S>,
    request: String,
}

impl Client<TcpStream> {
    pub(crate) fn connect(address: SocketAddr, path: &str) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(stream, path))
    }

    /// Its own end.
    pub(crate) fn local_address(&self) -> Result<SocketAddr> {
        self.stream.get_ref().local_addr().context("reading a client's address")
    }

    /// Whether the other end closes within this time, a tick of the kernel more or less.
    pub(crate) fn closes_within(&mut self, wait: Duration) -> Result<bool> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let closes = match stream.peek(&mut [0]) {
            Ok(0) => true,
            Ok(_) => bail!("an answer to no request"),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => true,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(e) => return Err(e).context("watching for a close"),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(closes)
    }
}

impl Client<Tls> {
    pub(crate) fn connect_tls(address: SocketAddr, path: &str) -> Result<Self> {
        Ok(Self::over(Tls::connect(address)?, path))
    }
}

impl<S: Read + Write> Client<S> {
    /// Requests are POST: a proxy does not send one again once it has written it.
    fn over(stream: S, path: &str) -> Self {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: lab\r\nContent-Length: 200\r\n\r\n{}",
            "x".repeat(200)
        );
        Self { stream: BufReader::new(stream), request }
    }

    /// Sends a request and reads the whole answer, whatever its status.
    pub(crate) fn request(&mut self) -> Result<Answer> {
        let stream = self.stream.get_mut();
        if is_lost(stream.write_all(self.request.as_bytes()).and_then(|()| stream.flush()))? {
            return Ok(Answer::Lost);
        }
        let mut line = String::new();
        if is_lost(self.stream.read_line(&mut line))? || line.is_empty() {
            return Ok(Answer::Lost);
        }
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("status line `{}`", line.trim()))?;
        let length = self.read_header()?;
        io::copy(&mut (&mut self.stream).take(length), &mut io::sink())
            .context("reading an answer's body")?;
        Ok(Answer::Status(status))
    }

    /// The same, where only an answer will do.
    pub(crate) fn must(&mut self) -> Result<()> {
        let answer = self.request()?;
        ensure!(answer == Answer::Status(200), "{answer:?} instead of status 200");
        Ok(())
    }

    /// Reads up to the body and returns how long that is.
    fn read_header(&mut self) -> Result<u64> {
        let mut length = None;
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stream.read_line(&mut line).context("reading a header")?;
            ensure!(read > 0, "an answer ends in its header");
            let Some((name, value)) = line.split_once(':') else {
                return length.context("an answer without content-length");
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().context("content-length")?);
            }
        }
    }

    /// Waits until the other end has closed.
    pub(crate) fn wait_close(&mut self) -> Result<()> {
        match self.stream.fill_buf() {
            Ok([]) => Ok(()),
            Ok(_) => bail!("an answer to no request"),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(e) => Err(e).context("waiting for the close"),
        }
    }
}

/// Whether the other end was gone.
fn is_lost<T>(result: io::Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            Ok(true)
        }
        Err(e) => Err(e).context("sending a request"),
    }
}

/// A TLS connection that `openssl s_client` holds.
pub(crate) struct Tls {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Tls {
    fn connect(address: SocketAddr) -> Result<Self> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting openssl s_client")?;
        let input = child.stdin.take().context("no input of openssl s_client")?;
        let output = child.stdout.take().context("no output of openssl s_client")?;
        Ok(Self { child, input, output })
    }
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.output.read(buffer)
    }
}

impl Write for Tls {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.input.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `SplitMix64`: the same gaps in every run.
pub struct Random(pub u64);

impl Random {
    /// Evenly from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number below `end`, each as likely as the others.
    #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "small numbers")]
    pub fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// Shuffles the values: each order is as likely as the others.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for end in (2..=values.len()).rev() {
            values.swap(self.below(end), end - 1);
        }
    }

    /// Evenly between two values.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Normally, with a mean of 0 and a deviation of 1; nearly so, and never beyond 6.
    pub fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// Exponentially, like the gaps between independent requests.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}
