//! What a row of the table is about: one peer of one owner, in one role and network namespace.
//!
//! A client's peer is the address and port it connects to. A server's peer has an ephemeral port,
//! which is never part of a key: there it is our listening port and the remote address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::model::{Endpoint, Origin, Role};
use super::owner::Owner;

/// The far end, as seen by the role that the variant names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// We are the client of this endpoint.
    Client(Endpoint),
    /// We listen on `port`, and `ip` connected.
    Server { port: u16, ip: IpAddr },
}

impl Peer {
    /// Parses the form that it displays as.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some((port, ip)) = text.strip_prefix(':').and_then(|text| text.split_once(" from "))
        {
            let (port, ip) = (port.parse().ok()?, ip.parse().ok()?);
            return Some(Self::Server { port, ip });
        }
        let address: SocketAddr = text.parse().ok()?;
        Some(Self::Client(Endpoint { ip: address.ip(), port: address.port() }))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(endpoint) => endpoint.fmt(f),
            Self::Server { port, ip } => write!(f, ":{port} from {ip}"),
        }
    }
}

/// The key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Which owner in that namespace.
    pub owner: Owner,
    pub peer: Peer,
}

impl RowKey {
    /// The row that an observation of this origin belongs to; none while the role is unknown.
    pub fn of(origin: &Origin) -> Option<Self> {
        let peer = match origin.role {
            Role::Client => Peer::Client(origin.remote),
            Role::Server => Peer::Server { port: origin.local.port, ip: origin.remote.ip },
            Role::Unknown => return None,
        };
        Some(Self { netns: origin.netns, owner: origin.owner, peer })
    }

    pub const fn role(&self) -> Role {
        match self.peer {
            Peer::Client(_) => Role::Client,
            Peer::Server { .. } => Role::Server,
        }
    }

    /// The other end; a client's port is ephemeral, and 0 here.
    pub const fn remote(&self) -> Endpoint {
        match self.peer {
            Peer::Client(server) => server,
            Peer::Server { ip, .. } => Endpoint { ip, port: 0 },
        }
    }

    /// The remote address.
    pub const fn ip(&self) -> IpAddr {
        match self.peer {
            Peer::Client(Endpoint { ip, .. }) | Peer::Server { ip, .. } => ip,
        }
    }

    /// The roll-up that this row feeds.
    pub const fn port(&self) -> PortKey {
        match self.peer {
            Peer::Client(Endpoint { port, .. }) | Peer::Server { port, .. } => {
                PortKey { netns: self.netns, owner: self.owner, role: self.role(), port }
            }
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

/// The key of a roll-up: every peer of one role that shares the serving port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    pub netns: u32,
    pub owner: Owner,
    pub role: Role,
    pub port: u16,
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Server => write!(f, ":{} from *", self.port),
            Role::Client | Role::Unknown => write!(f, "*:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(role: Role, local: &str, remote: &str, expected: Option<(&str, &str)>) {
        let end = |text: &str| {
            let address: SocketAddr = text.parse().unwrap();
            Endpoint { ip: address.ip(), port: address.port() }
        };
        let origin = Origin {
            netns: 1,
            owner: Owner(3),
            role,
            local: end(local),
            remote: end(remote),
            process: None,
            rtt: None,
        };
        let key = RowKey::of(&origin);
        let texts = key.map(|key| (key.to_string(), key.port().to_string()));
        assert_eq!(texts.as_ref().map(|(row, port)| (row.as_str(), port.as_str())), expected);
        assert!(key.is_none_or(|key| key.role() == role && key.ip() == origin.remote.ip));
        assert!(key.is_none_or(|key| (key.owner, key.port().owner) == (Owner(3), Owner(3))));
        assert!(key.is_none_or(|key| Peer::parse(&key.to_string()) == Some(key.peer)));
    }

    #[test]
    fn what_is_no_peer() {
        for text in ["", ":80", "10.0.0.5", "*:80", ":80 from *", "other", ":80 from 10.0.0.5:80"] {
            assert_eq!(Peer::parse(text), None, "{text}");
        }
    }

    #[test]
    fn texts() {
        let (local, remote) = ("10.0.0.9:41000", "10.0.0.5:8080");
        check(Role::Client, local, remote, Some(("10.0.0.5:8080", "*:8080")));
        check(Role::Server, remote, local, Some((":8080 from 10.0.0.9", ":8080 from *")));
        check(Role::Unknown, local, remote, None);
        let (local, remote) = ("[fd00::9]:41000", "[fd00::5]:8080");
        check(Role::Client, local, remote, Some(("[fd00::5]:8080", "*:8080")));
        check(Role::Server, remote, local, Some((":8080 from fd00::9", ":8080 from *")));
    }
}
