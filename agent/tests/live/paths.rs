//! Writes that do not come through send(2) or write(2): for each kind a race, which must yield one
//! race line like any other, and an ordinary reuse.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use rustix::fs::{MemfdFlags, memfd_create, sendfile};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use rustix::pipe::{IoSliceRaw, SpliceFlags, pipe, splice, vmsplice};

use crate::kernel;
use crate::stage::{REQUEST, Scenario, Skip, Stage, expect_end, note_overslept, now, pause};

const STALE_WRITE: &str = "
    race class=stale_write cause=unknown outcome=reset role=client gap~1.4 fin_age~0.2 bytes=200 \
        peer=$server process=finrace-live pid=$pid \
        other_view.class=late_request other_view.role=server other_view.idle~1.2
    close role=client closer=peer how=fin evidence=idle idle~1.2 peer=$server";

const REUSE: &str = "
    reuse role=client gap~1.0 bytes=200 peer=$server process=finrace-live pid=$pid
    close role=client closer=local how=fin evidence=idle idle~0.5";

pub(crate) const ALL: &[Scenario] = &[
    stale("stale_write_by_sendmmsg", |s| stale_write(s, &SENDMMSG)),
    reused("reuse_by_sendmmsg", |s| reuse(s, &SENDMMSG)),
    stale("stale_write_by_zerocopy", |s| stale_write(s, &ZEROCOPY)),
    reused("reuse_by_zerocopy", |s| reuse(s, &ZEROCOPY)),
    stale("stale_write_by_io_uring", |s| stale_write(s, &IO_URING)),
    reused("reuse_by_io_uring", |s| reuse(s, &IO_URING)),
    stale("stale_write_by_sendfile", |s| stale_write(s, &SENDFILE)),
    reused("reuse_by_sendfile", |s| reuse(s, &SENDFILE)),
    stale("stale_write_by_splice", |s| stale_write(s, &SPLICE)),
    reused("reuse_by_splice", |s| reuse(s, &SPLICE)),
    stale("stale_write_by_vmsplice", |s| stale_write(s, &VMSPLICE)),
    reused("reuse_by_vmsplice", |s| reuse(s, &VMSPLICE)),
    stale("stale_write_by_ktls", |s| stale_write(s, &KTLS)),
    reused("reuse_by_ktls", |s| reuse(s, &KTLS)),
    stale("stale_write_by_ktls_sendfile", |s| stale_write(s, &KTLS_SENDFILE)),
    reused("reuse_by_ktls_sendfile", |s| reuse(s, &KTLS_SENDFILE)),
];

const fn stale(name: &'static str, run: fn(&mut Stage) -> Result<()>) -> Scenario {
    Scenario::new(name, run, STALE_WRITE).also_hookless()
}

const fn reused(name: &'static str, run: fn(&mut Stage) -> Result<()>) -> Scenario {
    Scenario::new(name, run, REUSE)
}

/// A way for bytes to get into a socket.
struct Path {
    /// Called once the connection has answered one request.
    prepare: fn(&TcpStream) -> Result<()>,
    send: fn(&TcpStream, &'static [u8]) -> Result<usize>,
    payload: &'static [u8],
}

impl Path {
    const fn new(send: fn(&TcpStream, &'static [u8]) -> Result<usize>) -> Self {
        Self { prepare: |_| Ok(()), send, payload: &REQUEST }
    }
}

const SENDMMSG: Path = Path::new(send_mmsg);
const ZEROCOPY: Path = Path { prepare: kernel::allow_zerocopy, ..Path::new(send_zerocopy) };
const IO_URING: Path = Path::new(send_io_uring);
const SENDFILE: Path = Path::new(send_file);
const SPLICE: Path = Path::new(send_splice);
const VMSPLICE: Path = Path::new(send_vmsplice);
const KTLS: Path = Path {
    prepare: kernel::send_tls,
    send: |mut stream, bytes| Ok(stream.write(bytes)?),
    payload: &TLS_PAYLOAD,
};
const KTLS_SENDFILE: Path = Path { send: send_file, ..KTLS };

/// With header, explicit nonce and tag, the record is as long as a request.
const TLS_PAYLOAD: [u8; REQUEST.len() - 5 - 8 - 16] = [b't'; _];

fn stale_write(stage: &mut Stage, path: &Path) -> Result<()> {
    let pair = stage.used_pair()?;
    path.prepare(&pair.client)?;
    pause(1_200);
    drop(pair.server);
    pause(200);
    path.write(&pair.client)?;
    pause(200);
    expect_end(pair.client)
}

fn reuse(stage: &mut Stage, path: &Path) -> Result<()> {
    let mut pair = stage.used_pair()?;
    path.prepare(&pair.client)?;
    pause(1_000);
    path.write(&pair.client)?;
    pair.answer()?;
    pause(500);
    pair.client_closes()
}

impl Path {
    /// The first to want kernel TLS waits until its module is loaded, which is idle time too.
    fn prepare(&self, stream: &TcpStream) -> Result<()> {
        let begun = now();
        (self.prepare)(stream)?;
        note_overslept(now().saturating_sub(begun));
        Ok(())
    }

    fn write(&self, stream: &TcpStream) -> Result<()> {
        let sent = (self.send)(stream, self.payload)?;
        ensure!(sent == self.payload.len(), "{sent} of {} bytes were sent", self.payload.len());
        Ok(())
    }
}

/// One message in two pieces.
fn send_mmsg(stream: &TcpStream, bytes: &[u8]) -> Result<usize> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let pieces = [IoSlice::new(first), IoSlice::new(second)];
    let mut control = SendAncillaryBuffer::default();
    let mut messages = [MMsgHdr::new(&pieces, &mut control)];
    sendmmsg(stream, &mut messages, SendFlags::empty()).context("sendmmsg")?;
    let [message] = &messages;
    Ok(message.bytes_sent())
}

/// Static bytes: the kernel may read them long after.
fn send_zerocopy(stream: &TcpStream, bytes: &'static [u8]) -> Result<usize> {
    let flags = SendFlags::from_bits_retain(u32::try_from(libc::MSG_ZEROCOPY)?);
    rustix::net::send(stream, bytes, flags).context("send with MSG_ZEROCOPY")
}

fn send_io_uring(stream: &TcpStream, bytes: &'static [u8]) -> Result<usize> {
    let mut ring = IoUring::new(2).map_err(|error| Skip(format!("no io_uring: {error}")))?;
    let length = u32::try_from(bytes.len())?;
    let send = opcode::Send::new(types::Fd(stream.as_raw_fd()), bytes.as_ptr(), length).build();
    // SAFETY: the bytes are static, and the socket is open until the completion below.
    unsafe { ring.submission().push(&send) }.context("queueing a send")?;
    ring.submit_and_wait(1).context("submitting to an io_uring")?;
    let completion = ring.completion().next().context("no completion")?;
    usize::try_from(completion.result())
        .with_context(|| format!("send by io_uring: error {}", completion.result()))
}

fn send_file(stream: &TcpStream, bytes: &[u8]) -> Result<usize> {
    let mut file = File::from(memfd_create("request", MemfdFlags::CLOEXEC).context("memfd")?);
    file.write_all(bytes).context("writing a file in memory")?;
    sendfile(stream, &file, Some(&mut 0), bytes.len()).context("sendfile")
}

fn send_splice(stream: &TcpStream, bytes: &[u8]) -> Result<usize> {
    let (from, to) = pipe().context("making a pipe")?;
    File::from(to).write_all(bytes).context("writing to a pipe")?;
    splice(from, None, stream, None, bytes.len(), SpliceFlags::empty()).context("splice")
}

/// Static bytes: it is their pages that go into the pipe.
fn send_vmsplice(stream: &TcpStream, bytes: &'static [u8]) -> Result<usize> {
    let (from, to) = pipe().context("making a pipe")?;
    // SAFETY: this is the pipe's write end, so the bytes are only read.
    unsafe { vmsplice(to, &[IoSliceRaw::from_slice(bytes)], SpliceFlags::empty()) }
        .context("vmsplice")?;
    splice(from, None, stream, None, bytes.len(), SpliceFlags::empty()).context("splice")
}
