//! Which setting of which software decides how long it keeps an idle connection: data, with the
//! source of each default.
//!
//! Defaults change between versions and are changed by people: they are only good for a guess at
//! what the other end may be. What is said about a timeout is always the measurement.

mod clients;
mod clouds;
pub mod lifetimes;
mod middleboxes;
mod pools;
mod proxies;
mod servers;
mod stores;
mod tcp;

use super::protocol::Protocol;
use crate::words;

/// Version of the table: the day it was last checked against its sources.
pub const CHECKED: &str = "2026-11-29";

const HTTP: &[Protocol] = &[Protocol::Http];

/// For software whose pool serves any of them behind one interface.
const SQL: &[Protocol] =
    &[Protocol::Postgres, Protocol::MySql, Protocol::SqlServer, Protocol::Oracle];

/// For proxies that forward bytes: all but HTTP, for which the same proxies have other settings.
const TCP: &[Protocol] = &[
    Protocol::Postgres,
    Protocol::MySql,
    Protocol::SqlServer,
    Protocol::Oracle,
    Protocol::Redis,
    Protocol::Memcached,
    Protocol::MongoDb,
    Protocol::Kafka,
    Protocol::Amqp,
    Protocol::Mqtt,
    Protocol::Ldap,
    Protocol::Smtp,
];

/// For what never looks into connections.
const ANY: &[Protocol] = Protocol::ALL;

/// Processes in which any program may run: their names tell a language, but no library.
const RUNTIMES: &[&str] = &["node", "MainThread", "node-MainThread", "java", "python*", "dotnet"];

/// A program, a library or a service, with all its settings of this kind.
#[derive(Debug)]
pub struct Software {
    /// As its users call it.
    pub name: &'static str,
    pub protocols: &'static [Protocol],
    /// Names of its processes (`comm`, at most 15 bytes). A `*` at either end stands for
    /// anything.
    /// For a library, those of the runtimes in which it may be at work, if any; also empty where it never
    /// runs on a host that we watch.
    pub processes: &'static [&'static str],
    pub knobs: &'static [Knob],
    /// What turns connection reuse towards servers off, ready to be pasted; empty if nothing does.
    pub no_reuse: &'static str,
    /// What makes it send a request again that met a closing connection; says so where this is
    /// for idempotent requests only. Empty if nothing does.
    pub retry: &'static str,
}

impl Software {
    /// Whether that is one of its processes.
    pub fn has_process(&self, name: &str) -> bool {
        is_one_of(name, self.processes)
    }

    /// Whether it speaks that protocol; an unknown one is taken for HTTP.
    pub fn speaks(&self, protocol: Protocol) -> bool {
        let protocol = if protocol == Protocol::Unknown { Protocol::Http } else { protocol };
        self.protocols.contains(&protocol)
    }

    /// Whether it is ever on that side, if only with a value that is fixed.
    pub fn has(&self, side: Side) -> bool {
        self.knobs.iter().any(|knob| knob.side == side)
    }

    /// What can be set on that side.
    pub fn knob(&self, side: Side) -> Option<&'static Knob> {
        self.knobs.iter().find(|knob| knob.side == side && !knob.name.is_empty())
    }
}

words! {
    /// Which connections a setting applies to.
    Side {
        /// Its own pool of connections to servers.
        Client = "client",
        /// Connections that its clients opened.
        Server = "server",
        /// Connections through it: it forgets them, or resets them, and sends no FIN.
        Middlebox = "middlebox",
    }
}

/// One setting.
#[derive(Debug)]
pub struct Knob {
    pub side: Side,
    /// As it is written in a configuration; empty where the value is fixed.
    pub name: &'static str,
    /// Where it is written: "`upstream` block", "command line".
    pub place: &'static str,
    /// Newest first.
    pub defaults: &'static [Default],
    pub unit: Unit,
    /// A line that can be pasted. `{}` is the value in [`Knob::unit`]. Empty where nothing can.
    pub line: &'static str,
    /// What it is easily confused with, or what else must hold; a sentence or empty.
    pub note: &'static str,
    /// File and line at a version, or the page, that the defaults are from.
    pub source: &'static str,
}

/// The default that holds if nobody sets it.
#[derive(Clone, Copy, Debug)]
pub struct Default {
    /// Seconds; none where idle connections are kept without a limit.
    pub seconds: Option<f64>,
    /// First version with this default; empty for the oldest known.
    pub since: &'static str,
}

/// What a value is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole seconds.
    Seconds,
    /// Seconds, with a fraction if need be.
    Fraction,
    Milliseconds,
    /// Milliseconds between rounds, each of which closes a part of what is idle: short enough that the last
    /// of [`ROUNDS`] is over in time.
    Rounds,
}

/// Rounds until the last idle connection is closed, where each closes about half of those not needed lately:
/// for a pool of some hundred connections.
pub const ROUNDS: f64 = 12.0;

/// The whole table.
pub fn all() -> impl Iterator<Item = &'static Software> + Clone {
    let tables = [
        proxies::ALL,
        servers::ALL,
        clients::ALL,
        clouds::ALL,
        tcp::ALL,
        stores::ALL,
        pools::ALL,
        middleboxes::ALL,
    ];
    tables.into_iter().flatten()
}

/// Pools for databases, caches and brokers: libraries, which no process name gives away.
pub fn pools() -> impl Iterator<Item = &'static Software> {
    pools::ALL.iter()
}

pub use pools::test_of;

/// What ends idle web sockets and other upgraded connections in this software, towards either side, and its
/// default in seconds.
pub fn of_upgraded(name: &str) -> Option<(&'static str, f64)> {
    match name {
        // 3f6f7824d4e2 (1.31.5) src/http/modules/ngx_http_proxy_module.c:3735, and
        // `ngx_http_upstream_process_upgraded`, src/http/ngx_http_upstream.c:4072.
        "nginx" => Some(("proxy_read_timeout", 60.0)),
        _ => None,
    }
}

/// Whether a process of this name is a runtime, in which any library may be at work.
pub fn is_runtime(process: &str) -> bool {
    is_one_of(process, RUNTIMES)
}

fn is_one_of(name: &str, patterns: &[&str]) -> bool {
    let fits = |pattern: &&str| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end),
        (None, None) => name == *pattern,
    };
    patterns.iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_its_form() {
        let mut names = Vec::new();
        for software in all() {
            let name = software.name;
            assert!(!name.is_empty() && !software.knobs.is_empty(), "{name}");
            // Unknown is no software's own protocol.
            let is_any = software.protocols == ANY;
            let known = software.protocols.iter().filter(|one| **one != Protocol::Unknown);
            assert!(known.count() > 0, "{name}");
            assert!(is_any || !software.protocols.contains(&Protocol::Unknown), "{name}");
            assert_eq!(is_any, software.has(Side::Middlebox), "{name}");
            names.push(name);
            for process in software.processes {
                // What `comm` can hold, less a wildcard.
                assert!((1..=15).contains(&process.trim_matches('*').len()), "{name}: {process}");
            }
            for knob in software.knobs {
                let what = format!("{name}: {}", knob.name);
                assert!(!knob.source.is_empty(), "{what} has no source");
                assert!(!knob.defaults.is_empty(), "{what} has no default");
                assert!(knob.line.is_empty() || knob.line.matches("{}").count() == 1, "{what}");
                assert!(knob.note.is_empty() || knob.note.ends_with('.'), "{what}");
                // What cannot be set has no line.
                assert!(!knob.name.is_empty() || knob.line.is_empty(), "{what}");
                assert!(knob.side != Side::Middlebox || software.processes.is_empty(), "{what}");
                let seconds = knob.defaults.iter().filter_map(|default| default.seconds);
                assert!(seconds.into_iter().all(|value| value > 0.0), "{what}");
                assert!(knob.defaults.iter().rev().skip(1).all(|d| !d.since.is_empty()), "{what}");
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name is there twice");
        for pool in pools() {
            assert!(pool.knob(Side::Client).is_some(), "{}", pool.name);
        }
        assert_eq!(pools().filter(|pool| test_of(pool.name).is_some()).count(), 6);
        assert!(count > 50, "only {count}");
        assert_eq!(CHECKED.len(), "2026-11-25".len());
    }

    /// What people run most, and what can be pasted for it.
    #[test]
    fn lines_to_paste() {
        let check = |name: &str, side: Side, line: &str| {
            let software = all().find(|software| software.name == name).expect(name);
            assert_eq!(software.knob(side).map(|knob| knob.line), Some(line), "{name}");
        };
        check("nginx", Side::Client, "keepalive_timeout {}ms;");
        check("nginx", Side::Server, "keepalive_timeout {}ms;");
        check("gunicorn", Side::Server, "--keep-alive {}");
        check("uvicorn", Side::Server, "--timeout-keep-alive {}");
        check("PostgreSQL", Side::Server, "idle_session_timeout = {}ms");
        check("MySQL and MariaDB", Side::Server, "wait_timeout = {}");
        check("Redis and Valkey", Side::Server, "timeout {}");
        check("PgBouncer", Side::Client, "server_idle_timeout = {}");
        check("HikariCP", Side::Client, "maxLifetime={}");
        for (name, sides) in [
            ("HAProxy", [true, true]),
            ("Envoy", [true, true]),
            ("Traefik", [true, true]),
            ("Caddy", [true, true]),
            ("Apache httpd", [true, true]),
            ("h2o", [true, true]),
            ("Node.js", [true, true]),
            ("uWSGI", [false, true]),
            ("Puma", [false, true]),
            ("Tomcat", [false, true]),
            ("Jetty", [true, true]),
            ("Go net/http", [true, true]),
        ] {
            let software = all().find(|software| software.name == name).expect(name);
            for (side, expected) in [Side::Client, Side::Server].into_iter().zip(sides) {
                let has = software.knob(side).is_some_and(|knob| !knob.line.is_empty());
                assert_eq!(has, expected, "{name} {side:?}");
            }
        }
    }
}
