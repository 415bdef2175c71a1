//! The words of finrace as types: who (`Origin`), and what was observed (`Observation`).
//!
//! Times are nanoseconds of `CLOCK_MONOTONIC`, as the kernel programs stamp them; only the shell
//! knows the wall clock.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::owner::Owner;
use crate::words;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The second that it falls into.
    pub fn second(self) -> u32 {
        u32::try_from(self.0 / 1_000_000_000).unwrap_or(u32::MAX)
    }
}

impl std::ops::Add<Duration> for Nanos {
    type Output = Self;
    fn add(self, other: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(other.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// An address and a port; IPv4-mapped IPv6 is held as IPv4. Displays as `10.0.0.5:80`, `[::1]:80`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
}

impl Endpoint {
    /// From the 16 bytes of the record: IPv4 is mapped there.
    pub fn from_bytes(bytes: [u8; 16], port: u16) -> Self {
        Self { ip: Ipv6Addr::from(bytes).to_canonical(), port }
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: 0 }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

words! {
    /// Which end of the connection this host's socket is.
    Role {
        /// We opened the connection (a proxy towards its upstream).
        Client = "client",
        /// We accepted it.
        Server = "server",
        /// It cannot be told; never part of a race.
        Unknown = "unknown",
    }
}

words! {
    /// What happened to bytes on a connection that was closing (or was reset).
    Class {
        /// Client: an exchange was begun in CLOSE_WAIT, after a gap.
        StaleWrite = "stale_write",
        /// Client: the peer's FIN did not acknowledge the request, no answer had begun.
        FinCrossed = "fin_crossed",
        /// Client: RST from a live socket after a reuse. Server: we closed an idle connection
        /// with an unread request in our queue.
        UnreadClose = "unread_close",
        /// Client: no socket, or nobody at all, answered a reuse.
        SilentDrop = "silent_drop",
        /// Client: `unread_close` or `silent_drop`; it cannot be told which (no timestamps).
        ResetAfterReuse = "reset_after_reuse",
        /// Client: request acknowledged and not answered. Certain where the server on this host, or an alert
        /// in TLS, shows that; else a FIN at once, at the peer's idle timeout.
        ReadAndClosed = "read_and_closed",
        /// Server: a request arrived after we had closed an idle connection.
        LateRequest = "late_request",
        /// Client: the socket had been reset while it was idle, and stayed in the pool; the next
        /// request failed before a byte of it was sent.
        WriteAfterReset = "write_after_reset",
        /// Client: a ping, pong, heartbeat or test query met a close: nobody misses it.
        StaleProbe = "stale_probe",
        /// A request in HTTP/2 over TLS that was written after the server's GOAWAY had come, and met its
        /// close. Client: told by the lengths of both records. Server: that was our own last word.
        AfterGoaway = "after_goaway",
        /// Client: the first request on a connection met the close of a server that had never sent
        /// anything on it.
        UnusedClose = "unused_close",
        /// Client: request acknowledged, then FIN without an answer, no timeout in sight.
        PrematureClose = "premature_close",
        /// Client: the answer had begun while we still sent.
        EarlyResponse = "early_response",
        /// Writes that continue an exchange under way at the peer's FIN.
        HalfClose = "half_close",
        /// RST while an exchange was under way.
        MidStreamReset = "mid_stream_reset",
        /// `close_notify`, GOAWAY, QUIT: a few last bytes before our own close.
        Farewell = "farewell",
        /// Server: we wrote to a client that had left.
        ClientGone = "client_gone",
        /// Not enough was seen to say (records lost, or the outcome never came).
        Unknown = "unknown",
    }
}

impl Class {
    /// Whether a request was, or probably was, lost to a connection that was closing.
    pub const fn is_race(self) -> bool {
        match self {
            Self::StaleWrite
            | Self::FinCrossed
            | Self::UnreadClose
            | Self::SilentDrop
            | Self::ResetAfterReuse
            | Self::ReadAndClosed
            | Self::LateRequest
            | Self::WriteAfterReset => true,
            Self::StaleProbe
            | Self::AfterGoaway
            | Self::UnusedClose
            | Self::PrematureClose
            | Self::EarlyResponse
            | Self::HalfClose
            | Self::MidStreamReset
            | Self::Farewell
            | Self::ClientGone
            | Self::Unknown => false,
        }
    }
}

words! {
    /// Why the connection was closing when the request came.
    Cause {
        /// An idle timeout: the gap reached what is known of it.
        Idle = "idle",
        /// Below the idle timeout: a limit on requests or on age.
        Lifetime = "lifetime",
        /// One of a burst of closes whose idle times scatter: reload, rollout.
        Rollout = "rollout",
        /// Nothing is known of the gap.
        Unknown = "unknown",
    }
}

words! {
    /// What came of the bytes.
    Outcome {
        /// The peer's kernel answered with RST.
        Reset = "reset",
        /// Acknowledged and lost (lingering close).
        Acked = "acked",
        /// We closed before anything came back.
        ClosedByUs = "closed_by_us",
        /// Nothing came back until we stopped watching.
        Unanswered = "unanswered",
        /// Sent four times, nothing came back, and it still waits.
        Pending = "pending",
        /// The call failed: no byte left the host.
        Failed = "failed",
        /// The peer's FIN came after the request and closed without an answer.
        Closed = "closed",
        /// Records of this connection were lost.
        Unknown = "unknown",
    }
}

words! {
    /// How sure a class is.
    Certainty {
        /// The order of what happened leaves no other.
        Certain = "certain",
        /// What is most likely: two stories look the same from here.
        Inferred = "inferred",
    }
}

words! {
    /// Whether an application can have read a lost request: what was not may be sent again, whatever
    /// its method.
    Read {
        /// It cannot: no socket was there to take it, or its socket was thrown away with it unread.
        Never = "never",
        /// It may have.
        Unknown = "unknown",
    }
}

words! {
    /// Whose bytes, FIN or RST ended the idle time first.
    Closer {
        Peer = "peer",
        Local = "local",
        /// Something between the two ends, which sent an RST: inferred, see
        /// [`reset`](super::turn::reset).
        Middlebox = "middlebox",
    }
}

impl Closer {
    /// The two that close on their own account.
    pub const ENDS: [Self; 2] = [Self::Peer, Self::Local];

    /// The end that it counts for, seen from an end of that role. A request has to come before a middlebox's
    /// close just as before the server's.
    #[must_use]
    pub const fn end(self, role: Role) -> Self {
        let [server, _] = role.sides();
        match self {
            Self::Middlebox => server,
            Self::Peer | Self::Local => self,
        }
    }
}

impl Role {
    /// The closers that stand for the side that answers requests, and for the one that sends them.
    pub const fn sides(self) -> [Closer; 2] {
        match self {
            Self::Server => [Closer::Local, Closer::Peer],
            Self::Client | Self::Unknown => [Closer::Peer, Closer::Local],
        }
    }
}

words! {
    /// What ended the idle time.
    How {
        Fin = "fin",
        Rst = "rst",
        /// We gave up on unacknowledged data (`ETIMEDOUT`).
        Timeout = "timeout",
    }
}

words! {
    /// What a close says about an idle timeout.
    Evidence {
        /// The connection was idle, and for exactly this long.
        Idle = "idle",
        /// A short farewell ended the idle time, so this is an upper bound (time since our last send).
        UpperBound = "upper_bound",
        /// Closed after data of ours that was acknowledged and not answered: a slow or crashed
        /// server, or an idle close after a control frame (`WINDOW_UPDATE`, pong).
        Unanswered = "unanswered",
        /// FIN with or right after data: `Connection: close`, max requests.
        AfterData = "after_data",
        /// No data either way: health check, port scan.
        Unused = "unused",
    }
}

/// A process that was seen in task context at a write or a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub name: Name,
    pub pid: u32,
    /// What it belongs to, where its sockets do not tell: with version 1 cgroups.
    pub owner: Owner,
}

/// What the kernel calls a task: a few bytes, so that they are copied and nothing is allocated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; 16]);

impl Name {
    /// Up to the first zero; bytes that are not UTF-8 become `?`.
    pub fn new(mut comm: [u8; 16]) -> Self {
        let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
        let (name, rest) = comm.split_at_mut(end);
        rest.fill(0);
        while let Err(error) = str::from_utf8(name)
            && let Some(byte) = name.get_mut(error.valid_up_to())
        {
            *byte = b'?';
        }
        Self(comm)
    }

    pub fn as_str(&self) -> &str {
        let name = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }
}

impl From<&str> for Name {
    /// As the kernel would: too long a name is cut.
    fn from(text: &str) -> Self {
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(text.bytes().take(15)) {
            *to = from;
        }
        Self::new(comm)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Whose connection an observation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// What the socket belongs to.
    pub owner: Owner,
    pub role: Role,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// Only where truly known: at a write, at a local close.
    pub process: Option<Process>,
    /// Smoothed round-trip time, where the kernel had one.
    pub rtt: Option<Duration>,
}

/// The end of a connection's idle time: a FIN or RST of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub time: Nanos,
    pub origin: Origin,
    pub closer: Closer,
    pub how: How,
    pub evidence: Evidence,
    /// Time from the last data, either way, to the close; see [`Evidence`] for what it is worth.
    pub idle: Duration,
    /// The latest silence that this connection had outlived by then, as far as is known; where a ping ended
    /// that, what followed counts as well.
    pub outlived: Duration,
}

impl Close {
    /// A FIN that ended an idle connection, which had never been used after a gap.
    pub const fn of_idle(time: Nanos, origin: Origin, closer: Closer, idle: Duration) -> Self {
        let (how, evidence, outlived) = (How::Fin, Evidence::Idle, Duration::ZERO);
        Self { time, origin, closer, how, evidence, idle, outlived }
    }

    /// See [`Closer::end`].
    pub const fn end(&self) -> Closer {
        self.closer.end(self.origin.role)
    }
}

/// A write that starts an exchange after a gap over the threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuse {
    pub time: Nanos,
    pub origin: Origin,
    pub gap: Duration,
    pub bytes: u32,
    /// In that gap the peer acknowledged keep-alive probes of ours.
    pub is_probed: bool,
}

impl Reuse {
    /// Without keep-alive probes.
    pub const fn new(time: Nanos, origin: Origin, gap: Duration, bytes: u32) -> Self {
        Self { time, origin, gap, bytes, is_probed: false }
    }
}

/// The time a socket stayed in CLOSE_WAIT until we closed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dwell {
    pub time: Nanos,
    pub origin: Origin,
    pub dwell: Duration,
    /// Whether anything was written in the meantime.
    pub written: bool,
}

/// Bytes written into, or arriving on, a connection that was closing; a race if its class says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    pub time: Nanos,
    pub origin: Origin,
    pub class: Class,
    pub cause: Cause,
    pub outcome: Outcome,
    pub certainty: Certainty,
    pub read: Read,
    /// Idle time before the request.
    pub gap: Option<Duration>,
    /// Time from the peer's FIN to our write.
    pub fin_age: Option<Duration>,
    /// Idle time at the close that the request met.
    pub idle: Option<Duration>,
    /// Bytes at risk.
    pub bytes: Option<u32>,
    /// The peer's silence at its close, where only its timeout tells whether that was due.
    pub doubt: Option<Duration>,
    /// The other end's view, when that end is on this host too: the failure counts once, here.
    pub other_view: Option<Box<Incident>>,
}

impl Incident {
    /// With nothing known but what happened, to whom, and what came of it.
    pub fn new(time: Nanos, origin: Origin, class: Class, outcome: Outcome) -> Self {
        Self {
            time,
            origin,
            class,
            cause: Cause::Unknown,
            outcome,
            certainty: Certainty::Certain,
            read: Read::Unknown,
            gap: None,
            fin_age: None,
            idle: None,
            bytes: None,
            doubt: None,
            other_view: None,
        }
    }
}

/// Everything the classifier can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Close(Close),
    Reuse(Reuse),
    Dwell(Dwell),
    Incident(Incident),
    /// What came of an incident that was told while its outcome was pending; counts nowhere.
    Outcome(Incident),
}

impl Observation {
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Close(Close { origin, .. })
            | Self::Reuse(Reuse { origin, .. })
            | Self::Dwell(Dwell { origin, .. })
            | Self::Incident(Incident { origin, .. })
            | Self::Outcome(Incident { origin, .. }) => origin,
        }
    }

    pub fn time(&self) -> Nanos {
        match self {
            Self::Close(Close { time, .. })
            | Self::Reuse(Reuse { time, .. })
            | Self::Dwell(Dwell { time, .. })
            | Self::Incident(Incident { time, .. })
            | Self::Outcome(Incident { time, .. }) => *time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_keeps_of_them() {
        let check = |comm: &[u8], expected: &str| {
            let mut bytes = [0; 16];
            bytes[..comm.len()].copy_from_slice(comm);
            let name = Name::new(bytes);
            assert_eq!((name.as_str(), name), (expected, Name::new(bytes)));
        };
        check(b"nginx", "nginx");
        check(b"", "");
        check("größer".as_bytes(), "größer");
        check(b"sixteen bytes ok", "sixteen bytes ok");
        // Cut within a character, and not UTF-8 at all.
        check(b"fourteen is \xe2\x82", "fourteen is ??");
        check(b"\xffa\xfeb", "?a?b");
        // What is behind the end does not count.
        assert_eq!(Name::new(*b"a\0bcdefghijklmno"), Name::from("a"));
        assert_eq!(Name::from("http-nio-8080-exec-1").as_str(), "http-nio-8080-e");
    }
}
