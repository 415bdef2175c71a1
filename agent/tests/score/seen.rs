//! What the agents on both hosts would observe, and what is true of it.

use std::net::Ipv4Addr;
use std::time::Duration;

use finrace_logic::model::{
    Certainty, Class, Close, Closer, Dwell, Endpoint, Evidence, How, Incident, Name, Nanos,
    Observation, Origin, Outcome, Process, Reuse, Role,
};
use finrace_logic::owner::Owner;

use crate::random::Random;
use crate::setting::Side;
use crate::world::THRESHOLD;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

/// What is known of an observation beyond what the agent sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Truth {
    /// An idle timer closed it, of this server or of the client, and the connection had been idle
    /// for exactly this long.
    Timer {
        side: Side,
        server: usize,
        idle: f64,
    },
    /// Something else closed an idle connection.
    Other {
        side: Side,
    },
    /// An idle timer closed it, but pings had broken the silence.
    Cut {
        side: Side,
    },
    /// It ended a long answer.
    Slow {
        side: Side,
    },
    /// A request was lost to an idle timer, or to another close.
    Race {
        by_timer: bool,
    },
    /// A request was lost to something in between.
    Drop,
    Nothing,
}

/// An observation on the host of this role.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) role: Role,
    pub(crate) observation: Observation,
    pub(crate) truth: Truth,
}

pub(crate) fn nanos(seconds: f64) -> Nanos {
    Nanos(0) + duration(seconds)
}

pub(crate) fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

/// One host's agent: its clock ticks, and it measures round trips.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) role: Role,
    pub(crate) hz: f64,
    pub(crate) rtt: f64,
    /// The server's address.
    pub(crate) server: Ipv4Addr,
    pub(crate) client: Ipv4Addr,
    /// The number of the pool whose connection it is about, where that is known.
    pub(crate) pool: Option<usize>,
}

/// The process that has this pool.
fn process(pool: usize) -> Process {
    let name = Name::from(format!("pool-{pool}").as_str());
    Process { name, pid: u32::try_from(pool).unwrap(), owner: Owner::UNKNOWN }
}

impl Host {
    /// Time between two instants as the kernel's stamps tell it.
    fn between(&self, from: f64, to: f64) -> Duration {
        duration(((to * self.hz).floor() - (from * self.hz).floor()) / self.hz)
    }

    fn origin(&self, random: &mut Random) -> Origin {
        let server = Endpoint { ip: self.server.into(), port: 8080 };
        let client = Endpoint { ip: self.client.into(), port: 40_000 };
        let (local, remote) = match self.role {
            Role::Server => (server, client),
            Role::Client | Role::Unknown => (client, server),
        };
        let rtt = Some(duration(self.rtt * random.between(1.0, 1.3)));
        Origin {
            netns: 1,
            owner: Owner::UNKNOWN,
            role: self.role,
            local,
            remote,
            process: self.pool.map(process),
            rtt,
        }
    }

    fn seen(&self, observation: Observation, truth: Truth) -> Seen {
        Seen { role: self.role, observation, truth }
    }

    /// The idle time began at `since` and `by` ended it at `time`; no silence before it is known.
    pub(crate) fn close(
        &self,
        times: (f64, f64),
        by: Side,
        how: (How, Evidence),
        truth: Truth,
        random: &mut Random,
    ) -> Seen {
        self.close_of(times, 0.0, by, how, truth, random)
    }

    /// The same for a connection that had outlived a silence of this length.
    pub(crate) fn close_of(
        &self,
        (since, time): (f64, f64),
        outlived: f64,
        by: Side,
        (how, evidence): (How, Evidence),
        truth: Truth,
        random: &mut Random,
    ) -> Seen {
        let closer = match (by, self.role) {
            (Side::Server, Role::Server) | (Side::Client, Role::Client) => Closer::Local,
            _ => Closer::Peer,
        };
        let idle = self.between(since, time);
        let is_short = idle <= duration(THRESHOLD) && evidence == Evidence::Idle;
        let evidence = if is_short { Evidence::AfterData } else { evidence };
        let origin = self.origin(random);
        let outlived = duration(outlived);
        let close = Close { time: nanos(time), origin, closer, how, evidence, idle, outlived };
        self.seen(Observation::Close(close), truth)
    }

    pub(crate) fn reuse(&self, since: f64, time: f64, random: &mut Random) -> Seen {
        let (origin, gap) = (self.origin(random), self.between(since, time));
        let reuse = Reuse::new(nanos(time), origin, gap, 500);
        self.seen(Observation::Reuse(reuse), Truth::Nothing)
    }

    pub(crate) fn dwell(&self, from: f64, time: f64, written: bool, random: &mut Random) -> Seen {
        let (origin, dwell) = (self.origin(random), duration(time - from));
        let dwell = Dwell { time: nanos(time), origin, dwell, written };
        self.seen(Observation::Dwell(dwell), Truth::Nothing)
    }

    /// A request at `asked`, after idle time since `since`; what ended that came at `ended`.
    pub(crate) fn incident(
        &self,
        class: Class,
        (since, asked, ended): (f64, f64, f64),
        truth: Truth,
        random: &mut Random,
    ) -> Seen {
        let outcome = match class {
            Class::ReadAndClosed | Class::PrematureClose => Outcome::Closed,
            _ => Outcome::Reset,
        };
        let origin = self.origin(random);
        let mut incident = Incident::new(nanos(asked.max(ended)), origin, class, outcome);
        incident.bytes = Some(500);
        let (gap, idle) = (self.between(since, asked), self.between(since, ended));
        match class {
            Class::LateRequest => incident.idle = Some(idle),
            Class::FinCrossed => (incident.gap, incident.idle) = (Some(gap), Some(gap)),
            Class::StaleWrite => {
                (incident.gap, incident.idle) = (Some(gap), Some(idle));
                incident.fin_age = Some(duration(asked - ended));
            }
            Class::ReadAndClosed => {
                (incident.gap, incident.doubt) = (Some(gap), Some(gap));
                incident.certainty = Certainty::Inferred;
            }
            _ => incident.gap = Some(gap),
        }
        self.seen(Observation::Incident(incident), truth)
    }
}
