//! Bytes from a ring to an [`Event`]; anything unknown is an error to be counted, never a panic.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use finrace_ebpf::abi::{RECORD_SIZE, Record, flag, kind, opener};
use finrace_ebpf::decide::{distance, state};
use finrace_ebpf::word;

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
    /// A socket that was reset, or closed with something unacknowledged, is let go of.
    Destroyed,
    /// A segment was sent for the fourth time.
    Retransmitted,
}

/// What the first bytes of a write are, where a protocol says so: see [`finrace_ebpf::word`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Word {
    #[default]
    Unknown,
    Request,
    Farewell,
    /// Keeps the connection and asks nothing.
    Control,
    /// A pool's test query.
    Probe,
    /// TLS: nobody can tell.
    Sealed,
}

impl Word {
    const fn decode(number: u8) -> Option<Self> {
        Some(match number {
            word::UNKNOWN => Self::Unknown,
            word::REQUEST => Self::Request,
            word::FAREWELL => Self::Farewell,
            word::CONTROL => Self::Control,
            word::PROBE => Self::Probe,
            word::SEALED => Self::Sealed,
            _ => return None,
        })
    }

    /// Whether it may ask for something that an application then misses.
    pub const fn may_ask(self) -> bool {
        matches!(self, Self::Unknown | Self::Request | Self::Sealed)
    }

    /// Whether it says nothing about itself.
    pub const fn is_doubtful(self) -> bool {
        matches!(self, Self::Unknown | Self::Sealed)
    }
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    Length(usize),
    Kind(u8),
    State(u8),
    Word(u8),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "record of {length} bytes, expected {RECORD_SIZE}"),
            Self::Kind(kind) => write!(f, "record of unknown kind {kind}"),
            Self::State(state) => write!(f, "record with unknown TCP state {state}"),
            Self::Word(word) => write!(f, "record with unknown first bytes {word}"),
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

/// Identifies a connection's end on this host, even when its socket is gone.
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
    /// What the socket belongs to; and its process, where the socket does not tell. Filled in after decoding,
    /// by code that knows the cgroups.
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
        kind::DESTROYED => Kind::Destroyed,
        kind::RETRANSMITTED => Kind::Retransmitted,
        other => return Err(DecodeError::Kind(other)),
    };
    for state in [raw.old_state, raw.new_state] {
        if state > state::NEW_SYN_RECV {
            return Err(DecodeError::State(state));
        }
    }
    if Word::decode(raw.word).is_none() {
        return Err(DecodeError::Word(raw.word));
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

    /// What the first bytes of a write are.
    pub fn word(&self) -> Word {
        Word::decode(self.raw.word).unwrap_or_default()
    }

    /// Bytes of the peer's latest segment; 0 where it had none, or nothing is known of it.
    pub fn last_heard(&self) -> u32 {
        let bytes = self.raw.rcv_nxt.wrapping_sub(self.raw.snd_wl1);
        if self.raw.snd_wl1 != 0 && u16::try_from(bytes).is_ok() { bytes } else { 0 }
    }

    /// Whether our last data was acknowledged in a later tick than the peer's last data came: these
    /// cannot have been its answer.
    pub fn acked_after_heard(&self, ticks: Ticks) -> bool {
        let ticks_ago = self.raw.jiffies.wrapping_sub(self.raw.lrcvtime);
        // The tick in which they came began at most this long ago, and ended that much later.
        let heard_by =
            self.time.since(Nanos(0)).saturating_sub(ticks.duration(ticks_ago)) + ticks.duration(1);
        self.raw.acked_us != 0 && Duration::from_micros(self.raw.acked_us) > heard_by
    }

    /// How long ago we had acknowledged all that had come before the peer's latest words, FIN included:
    /// `None` if our last segment had data, if those words are acknowledged too, or where it is not known.
    pub fn silence_since_ack(&self) -> Option<Duration> {
        let is_acked = self.raw.rcv_nxt.wrapping_sub(self.raw.rcv_wup) <= 1;
        self.spoke_ago().filter(|_| self.spoke_last_with_data() == Some(false) && !is_acked)
    }

    /// Whether the last segment that we sent had data: then nothing of the peer's has been acknowledged on
    /// its own since. `None` where it is not known.
    pub fn spoke_last_with_data(&self) -> Option<bool> {
        let (spoke_us, sent_us) = (self.raw.spoke_ns / 1_000, self.raw.sent_us);
        (spoke_us != 0 && sent_us != 0).then_some(spoke_us <= sent_us)
    }

    /// Whether the peer has acknowledged keep-alive probes of ours since the last data, either way: there is
    /// nothing else that it would acknowledge that long afterwards.
    pub fn is_probed(&self, ticks: Ticks) -> bool {
        /// No delayed acknowledgement waits for longer (RFC 9293, 3.8.6.3: less than half a second).
        const NO_DELAYED_ACK: Duration = Duration::from_secs(1);

        let Record { lsndtime, lrcvtime, rcv_tstamp, .. } = self.raw;
        let last = if distance(lsndtime, lrcvtime) > 0 { lsndtime } else { lrcvtime };
        rcv_tstamp != 0 && ticks.between(last, rcv_tstamp) > NO_DELAYED_ACK + 2 * self.rtt()
    }

    /// Whether the RST at hand carries no timestamp, though they were agreed on: no socket sent it.
    pub fn is_stateless(&self) -> bool {
        self.has(flag::TSTAMP_OK) && !self.has(flag::SAW_TSTAMP)
    }

    /// How long ago we last sent any segment, where that is known.
    pub fn spoke_ago(&self) -> Option<Duration> {
        (self.raw.spoke_ns != 0).then(|| self.time.since(Nanos(self.raw.spoke_ns)))
    }

    /// Past the peer's FIN: whether the application has read up to its end, and so knows of it.
    pub fn has_read_fin(&self) -> bool {
        self.raw.copied_seq == self.raw.rcv_nxt
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

    /// The duration of this many ticks.
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
