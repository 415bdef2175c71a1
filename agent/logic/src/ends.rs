//! What is known of the two ends of a connection, and what they speak: judged by what serves it, the process if
//! it is known, else the port.
//!
//! This decides whose settings are named, and in which words. A proxy speaks whatever it forwards, and a
//! runtime whatever runs in it: for these, too, the port tells.

use super::knobs::{self, Side};
use super::model::Role;
use super::protocol::Protocol;

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
        Self { client, server, protocol: spoken(port, server) }
    }

    pub const fn process(self, side: Side) -> Option<&'a str> {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
            Side::Middlebox => None,
        }
    }
}

/// `port` is the server's; `server` is its process, where that is on this host.
fn spoken(port: Option<u16>, server: Option<&str>) -> Protocol {
    let by_port = port.map_or(Protocol::Unknown, Protocol::of_port);
    let Some(name) = server else { return by_port };
    let mut spoken = knobs::all()
        .filter(|software| software.has_process(name) && software.has(Side::Server))
        .flat_map(|software| software.protocols)
        .copied();
    let first = spoken.clone().next();
    if spoken.any(|protocol| protocol == by_port) { by_port } else { first.unwrap_or(by_port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_and_else_the_port() {
        let check = |port, server, expected| {
            assert_eq!(spoken(port, server), expected, "{port:?} {server:?}");
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
            assert_eq!(spoken(Some(port), Some(server)), expected, "{port} {server}");
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
