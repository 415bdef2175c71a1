//! What std has no call for: socket options and kinds, network namespaces, interfaces.

use std::ffi::{c_char, c_int, c_short};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
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

/// Moves the calling thread into a new network namespace with a loopback of its own.
pub(crate) fn unshare_loopback() -> Result<()> {
    unshare_netns()?;
    set_interface_up("lo", true)
}

/// From now on, the calling thread's own namespace opens connections without timestamps.
pub(crate) fn disable_timestamps() -> Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_timestamps";
    fs::write(path, "0").with_context(|| format!("writing {path}"))
}

/// Closes the socket without FIN or RST: its kernel forgets the connection.
pub(crate) fn vanish(stream: TcpStream) -> Result<()> {
    set_option(&stream, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1).context("setting TCP_REPAIR")
}

/// Closes with RST.
pub(crate) fn abort(stream: TcpStream) -> Result<()> {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).context("setting SO_LINGER")
}

/// How long the socket stays in `FIN_WAIT2` after its close: a minisock up to 60 s, over that a full
/// socket.
pub(crate) fn set_linger2(stream: &TcpStream, secs: c_int) -> Result<()> {
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_LINGER2, &secs).context("setting TCP_LINGER2")
}

/// What is written from now on leaves as TLS records, made by the kernel.
pub(crate) fn send_tls(stream: &TcpStream) -> Result<()> {
    let absent = |what: &str, error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT) => anyhow::Error::new(Skip(format!("no kernel TLS: {what}: {error}"))),
        _ => anyhow::Error::new(error).context(format!("setting {what}")),
    };
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
        .map_err(|error| absent("TCP_ULP tls", error))?;
    let keys = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_2_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [1; 8],
        key: [2; 16],
        salt: [3; 4],
        rec_seq: [0; 8],
    };
    set_option(stream, libc::SOL_TLS, libc::TLS_TX, &keys)
        .map_err(|error| absent("TLS_TX AES-128-GCM", error))
}

/// `MSG_ZEROCOPY` is heeded from now on.
pub(crate) fn allow_zerocopy(stream: &TcpStream) -> Result<()> {
    let set = set_option(stream, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1);
    set.map_err(|error| Skip(format!("no SO_ZEROCOPY: {error}")).into())
}

fn set_option<T>(stream: &TcpStream, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(value)).unwrap_or_default();
    // SAFETY: the pointer is to `value`, which lives through the call and has this length.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A listener on loopback that accepts MPTCP as well as TCP.
pub(crate) fn listen_mptcp() -> Result<TcpListener> {
    let socket = mptcp_socket()?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).context("binding")?;
    rustix::net::listen(&socket, 8).context("listening with MPTCP")?;
    Ok(socket.into())
}

/// Asks for MPTCP; a server without it makes this a TCP connection in an MPTCP socket.
pub(crate) fn connect_mptcp(to: SocketAddr) -> Result<TcpStream> {
    let socket = mptcp_socket()?;
    rustix::net::connect(&socket, &to).with_context(|| format!("connecting to {to} by MPTCP"))?;
    Ok(socket.into())
}

fn mptcp_socket() -> Result<OwnedFd> {
    let made = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP));
    made.map_err(|error| match error {
        Errno::PROTONOSUPPORT | Errno::NOPROTOOPT => Skip(format!("no MPTCP: {error}")).into(),
        _ => anyhow::Error::new(error).context("making an MPTCP socket"),
    })
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
