//! What std has no call for: socket options, network namespaces, interfaces.

use std::ffi::{c_char, c_int, c_short};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::stage::Skip;

const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// The number that the agent prints for the calling thread's network namespace.
pub(crate) fn netns_number() -> Result<u64> {
    Ok(fs::metadata(OWN_NETNS).with_context(|| format!("reading {OWN_NETNS}"))?.ino())
}

/// Moves the calling thread into a new network namespace, without interfaces that are up.
pub(crate) fn unshare_netns() -> Result<()> {
    // SAFETY: a network namespace changes which sockets can be made, not memory or descriptors.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    unshared.context("making a network namespace")
}

/// Closes the socket without FIN or RST: its kernel forgets the connection.
pub(crate) fn vanish(stream: TcpStream) -> Result<()> {
    set_option(&stream, libc::TCP_REPAIR, 1).context("setting TCP_REPAIR")
}

/// Closes with RST.
pub(crate) fn abort(stream: TcpStream) -> Result<()> {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).context("setting SO_LINGER")
}

/// How long the socket stays in `FIN_WAIT2` after its close: a minisock up to 60 s, over that a full
/// socket.
pub(crate) fn set_linger2(stream: &TcpStream, secs: c_int) -> Result<()> {
    set_option(stream, libc::TCP_LINGER2, secs).context("setting TCP_LINGER2")
}

fn set_option(stream: &TcpStream, name: c_int, value: c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the pointer is to `value`, which lives through the call and has this length.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            std::ptr::from_ref(&value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a writer block soon when nobody reads.
pub(crate) fn shrink_buffers(writer: &TcpStream, reader: &TcpStream) -> Result<()> {
    sockopt::set_socket_send_buffer_size(writer, 16 * 1024).context("setting SO_SNDBUF")?;
    sockopt::set_socket_recv_buffer_size(reader, 16 * 1024).context("setting SO_RCVBUF")
}

/// Switches an interface of the calling thread's namespace on or off.
pub(crate) fn set_interface_up(name: &str, is_up: bool) -> Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = if is_up { c_short::try_from(libc::IFF_UP)? } else { 0 };
    configure(libc::SIOCSIFFLAGS, &request).with_context(|| format!("switching {name}"))
}

/// Gives an interface an address, within a network of 256.
pub(crate) fn set_interface_address(name: &str, address: Ipv4Addr) -> Result<()> {
    for (call, address) in
        [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut request = interface_request(name);
        request.ifr_ifru.ifru_addr.sa_family = libc::sa_family_t::try_from(libc::AF_INET)?;
        // sockaddr_in: two bytes of port, then the address.
        let bytes = address.octets().map(|byte| c_char::from_ne_bytes([byte]));
        // SAFETY: any bytes are a valid `sockaddr`, which is what this union was set to above.
        let data = unsafe { &mut request.ifr_ifru.ifru_addr.sa_data };
        for (to, from) in data.iter_mut().skip(2).zip(bytes) {
            *to = from;
        }
        configure(call, &request).with_context(|| format!("giving {name} address {address}"))?;
    }
    Ok(())
}

/// A new TUN device in the calling thread's namespace: packets written here arrive there.
pub(crate) fn open_tun(name: &str) -> Result<File> {
    let path = "/dev/net/tun";
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| Skip(format!("no TUN device: {path}: {error}")))?;
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
    control(&file, libc::TUNSETIFF, &request).with_context(|| format!("making {name}"))?;
    Ok(file)
}

fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: zero bytes are a valid value of every member of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request
}

fn configure(call: libc::Ioctl, request: &libc::ifreq) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a socket")?;
    Ok(control(&socket, call, request)?)
}

fn control(file: &impl AsRawFd, call: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: all calls made here read an `ifreq`, which lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), call, std::ptr::from_ref(request)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
