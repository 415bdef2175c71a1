//! What a connection speaks, judged by what serves it: the process if it is known, else the port.
//!
//! It decides whose settings are named, and in which words. A proxy speaks whatever it forwards, and a
//! runtime whatever runs in it: for these, too, the port tells.

use super::knobs::{self, Side};
use super::model::{Role, words};

words! {
    Protocol {
        Http = "http",
        Postgres = "postgresql",
        MySql = "mysql",
        SqlServer = "sql_server",
        Oracle = "oracle",
        Redis = "redis",
        Memcached = "memcached",
        MongoDb = "mongodb",
        Kafka = "kafka",
        Amqp = "amqp",
        Mqtt = "mqtt",
        Ldap = "ldap",
        Smtp = "smtp",
        /// Neither process nor port tells. Most of these are HTTP, and are treated as such.
        Unknown = "unknown",
    }
}

impl Protocol {
    /// `port` is the server's; `server` is its process, where that is on this host.
    pub fn of(port: Option<u16>, server: Option<&str>) -> Self {
        let by_port = port.map_or(Self::Unknown, Self::of_port);
        let Some(name) = server else { return by_port };
        let mut spoken = knobs::all()
            .filter(|software| software.has_process(name) && software.has(Side::Server))
            .flat_map(|software| software.protocols)
            .copied();
        let first = spoken.clone().next();
        if spoken.any(|protocol| protocol == by_port) { by_port } else { first.unwrap_or(by_port) }
    }

    /// The port's own protocol: as IANA has it, or as its servers use it by default.
    const fn of_port(port: u16) -> Self {
        match port {
            80 | 443 | 591 | 8008 | 8080 | 8443 => Self::Http,
            5432 | 6432 => Self::Postgres,
            3306 | 6033 => Self::MySql,
            1433 => Self::SqlServer,
            1521 | 2483 | 2484 => Self::Oracle,
            6379 | 6380 => Self::Redis,
            11211 => Self::Memcached,
            27017..=27019 => Self::MongoDb,
            9092 => Self::Kafka,
            5671 | 5672 => Self::Amqp,
            1883 | 8883 => Self::Mqtt,
            389 | 636 | 3268 | 3269 => Self::Ldap,
            25 | 465 | 587 => Self::Smtp,
            _ => Self::Unknown,
        }
    }

    /// Whether proxies, which keep connections for a minute or so, stand in front of its servers. For the
    /// others the client is a pool, and most pools keep connections for as long as they can.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Unknown)
    }

    /// Whether an idle connection is kept by heartbeats, and closed for want of them.
    pub const fn has_heartbeats(self) -> bool {
        matches!(self, Self::Amqp | Self::Mqtt)
    }

    /// What its users call requests.
    pub const fn requests(self) -> &'static str {
        match self {
            Self::Http | Self::Kafka | Self::Unknown => "requests",
            Self::Postgres | Self::MySql | Self::SqlServer | Self::Oracle => "statements",
            Self::Redis | Self::Memcached | Self::Smtp => "commands",
            Self::MongoDb | Self::Ldap => "operations",
            Self::Amqp | Self::Mqtt => "messages",
        }
    }
}

/// What is known of the two ends, besides what was measured.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The processes of those ends that are on this host.
    client: Option<&'a str>,
    server: Option<&'a str>,
    pub protocol: Protocol,
}

impl<'a> Ends<'a> {
    /// For a row of this role, with the server's port. `other` is the process at the far end.
    pub fn new(
        role: Role,
        port: Option<u16>,
        process: Option<&'a str>,
        other: Option<&'a str>,
    ) -> Self {
        let [client, server] = match role {
            Role::Server => [other, process],
            Role::Client | Role::Unknown => [process, other],
        };
        Self { client, server, protocol: Protocol::of(port, server) }
    }

    pub const fn process(self, side: Side) -> Option<&'a str> {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
            Side::Middlebox => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_and_else_the_port() {
        let check = |port, server, expected| {
            assert_eq!(Protocol::of(port, server), expected, "{port:?} {server:?}");
        };
        check(Some(443), None, Protocol::Http);
        check(Some(5432), None, Protocol::Postgres);
        check(Some(25), None, Protocol::Smtp);
        check(Some(34567), None, Protocol::Unknown);
        check(None, None, Protocol::Unknown);
        // On any port.
        check(Some(34567), Some("postgres"), Protocol::Postgres);
        check(Some(8080), Some("redis-server"), Protocol::Redis);
        check(Some(5432), Some("gunicorn"), Protocol::Http);
        check(None, Some("mariadbd"), Protocol::MySql);
        // A name that says nothing.
        check(Some(27017), Some("conn17"), Protocol::MongoDb);
        check(Some(34567), Some("made-up"), Protocol::Unknown);
        // What only sends requests does not serve.
        check(Some(34567), Some("curl"), Protocol::Unknown);
    }

    #[test]
    fn of_proxies_and_runtimes_the_port_tells() {
        let check = |port, server, expected| {
            assert_eq!(Protocol::of(Some(port), Some(server)), expected, "{port} {server}");
        };
        check(3306, "haproxy", Protocol::MySql);
        check(6379, "envoy", Protocol::Redis);
        check(636, "nginx", Protocol::Ldap);
        check(34567, "nginx", Protocol::Http);
        check(9092, "java", Protocol::Kafka);
        check(8090, "java", Protocol::Http);
        check(5672, "beam.smp", Protocol::Amqp);
        check(1883, "beam.smp", Protocol::Mqtt);
        check(15672, "beam.smp", Protocol::Http);
        // It serves HTTP and nothing else.
        check(6379, "lighttpd", Protocol::Http);
    }
}
