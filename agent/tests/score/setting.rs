//! What a simulated world is made of. Times are seconds.

use std::fmt;

use crate::random::Random;

/// When requests come, or how long a worker waits before its next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Process {
    Exponential(f64),
    /// Every `every` seconds, give or take.
    Periodic {
        every: f64,
        jitter: f64,
    },
    Uniform(f64, f64),
    /// A heavy tail from `least` on.
    Pareto {
        least: f64,
        alpha: f64,
    },
}

impl Process {
    pub(crate) fn draw(self, random: &mut Random) -> f64 {
        match self {
            Self::Exponential(mean) => random.exponential(mean),
            Self::Periodic { every, jitter } => {
                (every + random.between(-jitter, jitter)).max(0.001)
            }
            Self::Uniform(low, high) => random.between(low, high),
            Self::Pareto { least, alpha } => {
                (least * (1.0 - random.unit()).powf(-1.0 / alpha)).min(100_000.0)
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Requests come, `burst` at a time, and take an idle connection or open one.
    Pool { arrivals: Process, burst: usize, is_lifo: bool },
    /// Each worker has a connection of its own, and waits between its requests.
    Workers { count: usize, gap: Process },
}

/// How late a timer fires.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Late {
    Exact,
    /// By up to this much.
    UpTo(f64),
    /// At the next multiple of this.
    Sweep(f64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timer {
    pub(crate) timeout: f64,
    pub(crate) late: Late,
    /// The event loop is busy for up to this long.
    pub(crate) jitter: f64,
}

impl Timer {
    /// When it fires, if it was set at `start`.
    pub(crate) fn fires(&self, start: f64, random: &mut Random) -> f64 {
        let due = start + self.timeout;
        let fires = match self.late {
            Late::Exact => due,
            Late::UpTo(most) => due + random.between(0.0, most),
            Late::Sweep(step) => (due / step).ceil() * step,
        };
        fires + random.between(0.0, self.jitter)
    }

    /// How late it may be.
    pub(crate) const fn scatter(&self) -> f64 {
        match self.late {
            Late::Exact => self.jitter,
            Late::UpTo(most) | Late::Sweep(most) => most + self.jitter,
        }
    }

    /// A timer with the same habits and another timeout.
    pub(crate) const fn with(self, timeout: f64) -> Self {
        Self { timeout, ..self }
    }
}

/// One of the servers behind the address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    pub(crate) timer: Option<Timer>,
    /// Connections go here in this proportion.
    pub(crate) weight: f64,
}

/// A pool of connections of one process on the client's host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) load: Load,
    pub(crate) timer: Option<Timer>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// Closes that no idle timer makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `Connection: close` and request limits: right after a response.
    AfterData,
    /// One connection after another, at any point of its idle time.
    Scattered,
    /// Each connection at this age: while it is idle, or after the answer under way then.
    Age(f64),
    /// Each connection after this many requests, this long after the answer.
    Requests(u32, f64),
    /// Answers that take long, after which the server closes at once.
    Slow(Process),
    /// All idle connections, at once.
    Reload,
    /// The same, by RST.
    Crash,
    /// All connections, even those with requests under way.
    Restart,
    /// Connections that nothing is sent on.
    Unused,
    /// Requests that the server drops unanswered after a while.
    Unanswered,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    pub(crate) kind: Kind,
    pub(crate) by: Side,
    /// Share of all closes, where timers make some.
    pub(crate) share: f64,
    /// Otherwise the seconds between two; with timers, the seconds after one of theirs.
    pub(crate) every: f64,
}

/// After this many closes, the server's timer is replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) after: u32,
    pub(crate) timeout: f64,
    /// Connections are closed at the change.
    pub(crate) is_restart: bool,
}

/// What a setting examines; rows of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Plain,
    Late,
    Sweep,
    AfterData,
    Scattered,
    Reload,
    Crash,
    TwoServers,
    Farewell,
    Change,
    ClientFirst,
    TwoPools,
    Steady,
    Racing,
    NoTimeout,
    Control,
    Leaking,
    Dropping,
    SlowClose,
    AgeLimit,
    Restart,
    Lazy,
    Pings,
    TwoProcesses,
}

impl Group {
    pub(crate) const ALL: [Self; 24] = [
        Self::Plain,
        Self::Late,
        Self::Sweep,
        Self::AfterData,
        Self::Scattered,
        Self::Reload,
        Self::Crash,
        Self::TwoServers,
        Self::Farewell,
        Self::Change,
        Self::ClientFirst,
        Self::TwoPools,
        Self::Steady,
        Self::Racing,
        Self::NoTimeout,
        Self::Control,
        Self::Leaking,
        Self::Dropping,
        Self::SlowClose,
        Self::AgeLimit,
        Self::Restart,
        Self::Lazy,
        Self::Pings,
        Self::TwoProcesses,
    ];
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// A small message from this side whenever there was none for this many seconds. Timers ignore it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ping {
    pub(crate) by: Side,
    pub(crate) every: f64,
    /// It is marked as asking nothing, or as the answer to such a message.
    pub(crate) is_named: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) number: usize,
    pub(crate) group: Group,
    pub(crate) seed: u64,
    pub(crate) pools: Vec<Pool>,
    pub(crate) backends: Vec<Backend>,
    pub(crate) noise: Option<Noise>,
    pub(crate) change: Option<Change>,
    pub(crate) rtt: f64,
    /// Mean time to an answer.
    pub(crate) response: f64,
    /// How soon the pool closes a connection that got a FIN; none if it does not watch.
    pub(crate) reaction: Option<f64>,
    /// The pool does not watch, but looks for a FIN before it uses a connection.
    pub(crate) is_lazy: bool,
    pub(crate) ping: Option<Ping>,
    /// Servers say goodbye before they close.
    pub(crate) farewell: bool,
    /// Something in between forgets connections after this long.
    pub(crate) limit: Option<f64>,
    pub(crate) client_hz: f64,
    pub(crate) server_hz: f64,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {}:", self.number, self.group)?;
        for backend in &self.backends {
            match backend.timer {
                Some(Timer { timeout, late, jitter }) => write!(
                    f,
                    " server {timeout:.3} s {late:.4?} jitter {jitter} weight {:.2}",
                    backend.weight
                )?,
                None => write!(f, " server without timeout")?,
            }
        }
        for Pool { load, timer } in &self.pools {
            write!(f, "; {load:.3?}")?;
            if let Some(Timer { timeout, late, jitter }) = timer {
                write!(f, " client {timeout:.3} s {late:.4?} jitter {jitter}")?;
            }
        }
        if let Some(noise) = self.noise {
            write!(f, "; {noise:.2?}")?;
        }
        if let Some(change) = self.change {
            write!(f, "; {change:?}")?;
        }
        write!(f, "; rtt {} response {}", self.rtt, self.response)?;
        match self.reaction {
            Some(reaction) => write!(f, " reaction {reaction}")?,
            None if self.is_lazy => write!(f, " looks before use")?,
            None => write!(f, " not watching")?,
        }
        if let Some(ping) = self.ping {
            write!(f, "; {ping:.3?}")?;
        }
        if let Some(limit) = self.limit {
            write!(f, "; dropped after {limit} s")?;
        }
        let farewell = if self.farewell { "; farewells" } else { "" };
        write!(f, "{farewell}; hz {} {}", self.client_hz, self.server_hz)
    }
}

impl Setting {
    /// Whether a pool's timer may fire when the server's does.
    pub(crate) fn is_close(&self) -> bool {
        let server = self.backends.iter().filter_map(|backend| backend.timer);
        let earliest = server.map(|timer| timer.timeout).fold(f64::INFINITY, f64::min);
        let mut timers = self.pools.iter().filter_map(|pool| pool.timer);
        timers.any(|timer| {
            timer.timeout < earliest && timer.timeout + timer.scatter() + self.rtt >= earliest
        })
    }

    /// Pools whose timers fire before the servers'; the first pool, if there is none.
    pub(crate) fn visible_pools(&self) -> Vec<usize> {
        let server = self.backends.iter().filter_map(|backend| backend.timer);
        let earliest = server.map(|timer| timer.timeout).fold(f64::INFINITY, f64::min);
        let is_visible = |pool: &Pool| pool.timer.is_some_and(|timer| timer.timeout < earliest);
        let visible: Vec<usize> =
            (0..self.pools.len()).filter(|pool| is_visible(&self.pools[*pool])).collect();
        if visible.is_empty() { vec![0] } else { visible }
    }
}
