//! A network link with a delay: two network namespaces, a TUN device in each, and a thread that
//! carries packets between them, each `one_way` later than it came.
//!
//! The kernels this runs on need not have `sch_netem`. A delay makes the races of production: at
//! loopback's round-trip time a request hardly ever crosses a FIN, over 10 ms it usually does.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use xtask::setup::{now, run};

/// Name of the device inside either namespace.
pub(crate) const DEVICE: &str = "tun0";

/// Packets under way per direction; beyond it they are dropped, as a router would. 10 ms of a
/// gigabit link are some 800 packets.
const QUEUE: usize = 10_000;

/// Two network namespaces joined by a delay. Dropping it removes both.
pub(crate) struct Link {
    client: Namespace,
    server: Namespace,
    subnet: u8,
    stop: Arc<AtomicBool>,
    forwarder: Option<JoinHandle<Result<()>>>,
}

impl Link {
    /// Makes the namespaces `name-c` and `name-s`, replacing those an interrupted run has left.
    pub(crate) fn new(name: &str, one_way: Duration) -> Result<Self> {
        // Each link has its own, only for readers of captures: namespaces do not see each other.
        static SUBNET: AtomicU8 = AtomicU8::new(70);
        let subnet = SUBNET.fetch_add(1, Ordering::Relaxed);

        let client = Namespace::new(format!("{name}-c"))?;
        let server = Namespace::new(format!("{name}-s"))?;
        let near = client.open_tun(Ipv4Addr::new(10, subnet, 0, 1))?;
        let far = server.open_tun(Ipv4Addr::new(10, subnet, 0, 2))?;
        let stop = Arc::new(AtomicBool::new(false));
        let forwarder = std::thread::Builder::new().name(format!("link {name}")).spawn({
            let stop = stop.clone();
            move || forward(&near, &far, one_way, &stop)
        })?;
        Ok(Self { client, server, subnet, stop, forwarder: Some(forwarder) })
    }

    /// The namespace of the clients, a name for `ip netns exec`.
    pub(crate) fn client_ns(&self) -> &str {
        &self.client.name
    }

    /// The namespace of the servers, a name for `ip netns exec`.
    pub(crate) fn server_ns(&self) -> &str {
        &self.server.name
    }

    pub(crate) fn server_ip(&self) -> IpAddr {
        Ipv4Addr::new(10, self.subnet, 0, 2).into()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its devices go with the thread, the namespaces with their own drop.
        self.forwarder.take().map(JoinHandle::join);
    }
}

/// A command to be run in a namespace, or here where there is none. The command replaces `ip`,
/// so that the pid is its own.
pub(crate) fn command_in(namespace: Option<&str>, program: &str) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

/// Moves the calling thread into a namespace, for good.
pub(crate) fn enter(namespace: &str) -> Result<()> {
    let path = format!("/run/netns/{namespace}");
    let file = File::open(&path).with_context(|| format!("opening {path}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering network namespace {namespace}"))
}

/// Runs `body` on a thread of its own in a namespace, or here where there is none.
pub(crate) fn within<T: Send>(
    namespace: Option<&str>,
    body: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(namespace) = namespace else { return body() };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter(namespace).and_then(|()| body()));
        thread.join().map_err(|_panic| anyhow!("a thread in {namespace} panicked"))?
    })
}

/// A named network namespace, removed on drop.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with its loopback up, replacing one that an interrupted run has left.
    pub(crate) fn new(name: String) -> Result<Self> {
        if fs::exists(format!("/run/netns/{name}"))? {
            run(Command::new("ip").args(["netns", "delete", &name]))?;
        }
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on this namespace.
    fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments.split(' ')))
    }

    /// Makes the TUN device, with `address` in a /24. It lives as long as the file returned.
    fn open_tun(&self, address: Ipv4Addr) -> Result<File> {
        let device = within(Some(&self.name), open_tun)?;
        self.ip(&format!("address add {address}/24 dev {DEVICE}"))?;
        self.ip(&format!("link set {DEVICE} up txqueuelen {QUEUE}"))?;
        Ok(device)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody to tell; the next link of this name removes it.
        run(Command::new("ip").args(["netns", "delete", &self.name])).ok();
    }
}

/// The head of `struct ifreq` as `TUNSETIFF` takes it, padded to the size of the whole.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// Opens a TUN device in the network namespace of the calling thread.
fn open_tun() -> Result<File> {
    /// `_IOW('T', 202, int)`, from `linux/if_tun.h`; the argument is an ifreq all the same.
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
    /// `IFF_TUN | IFF_NO_PI`: bare IP packets.
    const FLAGS: u16 = 0x0001 | 0x1000;
    /// `O_NONBLOCK` on x86-64 and arm64.
    const NONBLOCK: i32 = 0o4000;

    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(NONBLOCK)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from;
    }
    let request = InterfaceRequest { name, flags: FLAGS, padding: [0; 22] };
    // SAFETY: TUNSETIFF reads a struct ifreq, and `InterfaceRequest` has its size and layout.
    let setter = unsafe { Setter::<TUNSETIFF, InterfaceRequest>::new(request) };
    // SAFETY: the setter above carries the argument that TUNSETIFF expects.
    unsafe { ioctl(&device, setter) }.context("making a TUN device")?;
    Ok(device)
}

/// Packets of one direction, in order, each with the time at which it is due.
#[derive(Default)]
struct Queue(VecDeque<(Instant, Vec<u8>)>);

impl Queue {
    /// Takes everything that has come from `device`.
    fn fill(&mut self, mut device: &File, delay: Duration) -> Result<()> {
        let mut packet = [0; 2048]; // The MTU is 1500.
        loop {
            match device.read(&mut packet) {
                Ok(length) if self.0.len() < QUEUE => {
                    self.0
                        .push_back((now() + delay, packet.iter().copied().take(length).collect()));
                }
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e).context("reading from the TUN device"),
            }
        }
    }

    /// Hands what is due to `device`.
    fn drain(&mut self, mut device: &File) {
        while let Some((_, packet)) = self.0.pop_front_if(|(due, _)| *due <= now()) {
            // A packet that the device refuses is lost, as on any network.
            device.write_all(&packet).ok();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

/// Carries packets both ways until `stop` is set.
fn forward(near: &File, far: &File, delay: Duration, stop: &AtomicBool) -> Result<()> {
    /// How often `stop` is looked at while nothing moves.
    const IDLE: Duration = Duration::from_millis(50);

    let (mut out, mut back) = (Queue::default(), Queue::default());
    while !stop.load(Ordering::Relaxed) {
        out.drain(far);
        back.drain(near);
        let due = [&out, &back].into_iter().filter_map(Queue::next_due).min();
        let wait = due.map_or(IDLE, |due| due.saturating_duration_since(now()).min(IDLE));
        let mut files = [PollFd::new(near, PollFlags::IN), PollFd::new(far, PollFlags::IN)];
        match poll(&mut files, Some(&Timespec::try_from(wait)?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for packets"),
        }
        out.fill(near, delay)?;
        back.fill(far, delay)?;
    }
    Ok(())
}
