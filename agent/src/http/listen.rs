//! `--web.listen-address`: an address, or `:9502` for all addresses.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// The same as the standard library uses for its listeners.
const BACKLOG: u32 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// All IPv6 and IPv4 addresses, or IPv4 alone on a host without IPv6.
    All(u16),
    At(SocketAddr),
}

impl Listen {
    pub async fn bind(self) -> io::Result<TcpListener> {
        match self {
            Self::At(address) => TcpListener::bind(address).await,
            Self::All(port) => match both(port) {
                Err(error) if lacks_ipv6(&error) => {
                    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
                }
                other => other,
            },
        }
    }

    /// Whether other hosts can connect.
    pub fn is_open(self) -> bool {
        match self {
            Self::All(_) => true,
            Self::At(address) => !address.ip().to_canonical().is_loopback(),
        }
    }
}

/// Whether IPv6 is left out of the kernel, or switched off.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn both(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = text.strip_prefix(':').and_then(|port| port.parse().ok()).map(Self::All);
        all.or_else(|| text.parse().ok().map(Self::At)).ok_or_else(|| {
            "not an address and a port (127.0.0.1:9502, [::1]:9502), nor a port of all addresses \
             (:9502)"
                .to_owned()
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(port) => write!(f, ":{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn texts() {
        for text in [":9502", "127.0.0.1:9502", "[::1]:0", "[::]:9502"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", ":", "9502", ":65536", ":-1", "::9502", "localhost:9502", "::1:9502x"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        for (text, expected) in [
            (":9502", true),
            ("0.0.0.0:9502", true),
            ("[fd00::1]:1", true),
            ("127.0.0.1:9502", false),
            ("[::1]:9502", false),
            ("[::ffff:127.0.0.1]:9502", false),
        ] {
            assert_eq!(text.parse::<Listen>().unwrap().is_open(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let listener = Listen::All(0).bind().await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut targets = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()))];
        // On a host without IPv6 that is all.
        if address.is_ipv6() {
            targets.push((Ipv6Addr::LOCALHOST, address.port()).into());
        }
        for target in targets {
            drop(TcpStream::connect(target).await.unwrap());
            let (_, from) = listener.accept().await.unwrap();
            assert_eq!(from.ip().to_canonical(), target.ip(), "{target}");
        }
    }
}
