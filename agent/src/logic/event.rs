//! Bytes from a ring to an [`Event`]; anything unknown is an error to be counted, never a panic.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use finrace_ebpf::abi::{RECORD_SIZE, Record, flag, kind, opener};
use finrace_ebpf::decide::{distance, state};

use super::model::{Endpoint, Name, Nanos, Origin, Process, Role};
use super::owner::Owner;

/// What happened, as a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A state change from `old_state` to `new_state`.
    State,
    /// A write in `old_state`.
    Write,
    /// A reset received in `old_state`.
    ResetReceived,
    /// A reset sent for a segment.
    ResetSent,
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    Length(usize),
    Kind(u8),
    State(u8),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "record of {length} bytes, expected {RECORD_SIZE}"),
            Self::Kind(kind) => write!(f, "record of unknown kind {kind}"),
            Self::State(state) => write!(f, "record with unknown TCP state {state}"),
        }
    }
}

/// Identifies a socket until its `->CLOSE`: its memory is reused at once, so the addresses belong
/// to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SockKey {
    pub sk: u64,
    pub tuple: Tuple,
}

impl Hash for SockKey {
    /// Few sockets have the same memory and the same ports.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let ports = u64::from(self.tuple.local.port) << 16 | u64::from(self.tuple.remote.port);
        state.write_u64(self.sk ^ ports << 32);
    }
}

/// Identifies a connection's end on this host, also when its socket is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
}

/// A decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub time: Nanos,
    pub kind: Kind,
    pub key: SockKey,
    /// What the socket belongs to; and its process, where the socket does not tell. Found out after
    /// decoding, by who knows the cgroups.
    pub owner: Owner,
    pub task_owner: Owner,
    /// The other fields, as the kernel sent them.
    pub raw: Record,
}

/// Copies a record out of a ring.
///
/// # Errors
/// A length, kind or state that this version does not know.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.len() != RECORD_SIZE {
        return Err(DecodeError::Length(bytes.len()));
    }
    // SAFETY: the length was checked; `Record` is integers only, so every bit pattern is valid;
    // the ring aligns records to 8 bytes, but nothing relies on it.
    let raw: Record = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    let kind = match raw.kind {
        kind::STATE => Kind::State,
        kind::WRITE => Kind::Write,
        kind::RESET_RECEIVED => Kind::ResetReceived,
        kind::RESET_SENT => Kind::ResetSent,
        other => return Err(DecodeError::Kind(other)),
    };
    for state in [raw.old_state, raw.new_state] {
        if state > state::NEW_SYN_RECV {
            return Err(DecodeError::State(state));
        }
    }
    let tuple = Tuple {
        netns: raw.netns,
        local: Endpoint::from_bytes(raw.local, raw.local_port),
        remote: Endpoint::from_bytes(raw.remote, raw.remote_port),
    };
    let (owner, task_owner) = (Owner::UNKNOWN, Owner::UNKNOWN);
    let key = SockKey { sk: raw.sk, tuple };
    Ok(Event { time: Nanos(raw.time_ns), kind, key, owner, task_owner, raw })
}

impl Event {
    /// Whether the record carries this [`flag`].
    pub fn has(&self, flag: u8) -> bool {
        self.raw.flags & flag != 0
    }

    /// Which end this is, from this record alone: byte arithmetic while no FIN of ours is out,
    /// then the backlog that accepted sockets inherit (0 after `listen(fd, 0)` too).
    pub fn role(&self) -> Role {
        match self.raw.opener {
            opener::ACTIVE => Role::Client,
            opener::PASSIVE => Role::Server,
            _ if self.raw.max_ack_backlog != 0 => Role::Server,
            _ if self.has(flag::FIN_SENT) => Role::Client,
            _ => Role::Unknown,
        }
    }

    /// The task that wrote or closed, where it is known to own the socket.
    pub fn process(&self) -> Option<Process> {
        if !self.has(flag::TASK) {
            return None;
        }
        let (name, pid) = (Name::new(self.raw.comm), self.raw.tgid);
        Some(Process { name, pid, owner: self.task_owner })
    }

    pub fn origin(&self, role: Role, process: Option<Process>) -> Origin {
        let rtt = (self.raw.rtt_us != 0).then(|| self.rtt());
        let Tuple { netns, local, remote } = self.key.tuple;
        Origin { netns, owner: self.owner, role, local, remote, process, rtt }
    }

    /// Smoothed round-trip time, zero where unknown.
    pub fn rtt(&self) -> Duration {
        Duration::from_micros(self.raw.rtt_us.into())
    }

    /// Bytes (or FIN) queued and not acknowledged.
    pub fn unacked(&self) -> u32 {
        self.raw.write_seq.wrapping_sub(self.raw.snd_una)
    }

    /// Bytes received in order that the application has not read; `fin` if a FIN is among them.
    pub fn unread(&self, fin: bool) -> u32 {
        self.raw.rcv_nxt.wrapping_sub(self.raw.copied_seq).saturating_sub(fin.into())
    }
}

/// Turns jiffies into time.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    pub hz: u32,
}

impl Ticks {
    /// `later - earlier`, zero if negative. One tick is 1/HZ, 4 ms at HZ 250.
    pub fn between(self, earlier: u32, later: u32) -> Duration {
        self.duration(distance(later, earlier).max(0).unsigned_abs())
    }

    /// So many ticks.
    pub fn duration(self, ticks: u32) -> Duration {
        // At most 2^32 * 10^9, which is less than 2^62.
        Duration::from_nanos(u64::from(ticks) * 1_000_000_000 / u64::from(self.hz.max(1)))
    }

    /// The smallest number of jiffies that is at least `time`.
    pub fn from_duration(self, time: Duration) -> u32 {
        let ticks = time.as_nanos() * u128::from(self.hz);
        u32::try_from(ticks.div_ceil(1_000_000_000)).unwrap_or(u32::MAX / 4)
    }
}
