//! Two hops, of which one is set up wrong: a load balancer that keeps idle connections for 60 s,
//! nginx behind it, gunicorn behind that. Only the wrong hop may be blamed.
//!
//! The times of balancer and nginx are a tenth of what they would be: 6 s for 60 s. gunicorn's are
//! real.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Bench;
use super::finrace::{Report, Reporting, Row};
use super::load::{Gaps, Load, during};
use super::table::Table;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Server};

/// The balancer's own idle timeout.
const BALANCER: Duration = Duration::from_secs(6);

const GUNICORN: Duration = Duration::from_secs(2);

/// Connections of the balancer.
const CLIENTS: usize = 24;

/// Gaps that reach each of the timeouts again and again.
const GAPS: Gaps = Gaps::Exponential(1.6);

const BLAMED: [&str; 4] = ["racing", "dropping", "leaking", "exposed"];

struct Variant {
    name: &'static str,
    /// nginx towards the balancer.
    front: Duration,
    /// nginx towards gunicorn: a line of its `upstream` block.
    back: &'static str,
    /// Which hop is wrong.
    wrong: Hop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    First,
    Second,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        name: "balancer 60 s, nginx 65 s and 60 s, gunicorn 2 s",
        front: Duration::from_millis(6500),
        back: "keepalive_timeout 6s;",
        wrong: Hop::Second,
    },
    Variant {
        name: "balancer 60 s, nginx 30 s and 1 s, gunicorn 2 s",
        front: Duration::from_secs(3),
        back: "keepalive_timeout 1s;",
        wrong: Hop::First,
    },
];

/// A variant at work.
struct Chain {
    variant: &'static Variant,
    proxy: Proxy,
    server: Server,
}

impl Chain {
    fn start(bench: &Bench, index: usize, variant: &'static Variant) -> Result<Self> {
        let directory = bench.directory(&format!("chain/{index}"))?;
        let place = Place {
            directory: &directory,
            client_ns: None,
            server_ns: None,
            server_ip: [127, 0, 0, 1].into(),
            tls: false,
        };
        let server = software::start(Kind::Gunicorn, GUNICORN, &bench.software, place)?;
        let pools = Pools { keep_alive: variant.front, ..Pools::new(server.address, CLIENTS) };
        let proxy = Proxy::start(&directory, None, pools.with_lines(variant.back))?;
        Ok(Self { variant, proxy, server })
    }

    fn load(&self) -> Load<'_> {
        Load {
            namespace: None,
            proxy: self.proxy.address,
            clients: 0..CLIENTS,
            gaps: GAPS,
            is_in_step: false,
            keep_alive: Some(BALANCER),
        }
    }

    /// Adds a row per hop; returns what is wrong.
    fn judge(&self, report: &Report, table: &mut Table) -> Vec<String> {
        let mut faults = Vec::new();
        for (hop, address) in [(Hop::First, self.proxy.address), (Hop::Second, self.server.address)]
        {
            let client = report.row("client", &address.to_string());
            let server = format!(":{} from {}", address.port(), address.ip());
            let server = report.row("server", &server);
            let is_wrong = hop == self.variant.wrong;
            let name = format!("{}, {hop:?} hop", self.variant.name);
            for (role, row) in [("client", client), ("server", server)] {
                faults.extend(fault(role, row, is_wrong).map(|fault| format!("{name}: {fault}")));
            }
            let verdict = |row: Option<&Row>| {
                row.and_then(|row| row.verdict.clone()).unwrap_or_else(|| "-".to_owned())
            };
            let races = client.map_or(0, |row| row.races.values().sum::<u64>());
            table.add([
                name,
                if is_wrong { "wrong" } else { "right" }.to_owned(),
                verdict(client),
                verdict(server),
                races.to_string(),
            ]);
        }
        faults
    }
}

/// The wrong hop must be found at the client's end, which is where its cure is; a right one must
/// not be blamed at either.
fn fault(role: &str, row: Option<&Row>, is_wrong: bool) -> Option<String> {
    let Some(row) = row else { return Some(format!("no row of role {role}")) };
    let Some(verdict) = row.verdict.as_deref() else {
        return Some(format!("no verdict in the {role}'s row"));
    };
    if is_wrong {
        let is_found = matches!(verdict, "exposed" | "racing");
        return (role == "client" && !is_found).then(|| format!("wrong, but {verdict}"));
    }
    BLAMED.contains(&verdict).then(|| format!("right, but {verdict} in the {role}'s row"))
}

/// All variants at the same time, with one finrace.
pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    let time = if bench.is_short { "30s" } else { "60s" };
    let directory = bench.directory("chain")?;
    let chains = VARIANTS
        .iter()
        .enumerate()
        .map(|(index, variant)| Chain::start(bench, index, variant).context(variant.name))
        .collect::<Result<Vec<_>>>()?;
    let reporting = Reporting::start(&bench.finrace, &["--for", time], "report", &directory)?;
    let loads: Vec<Load<'_>> = chains.iter().map(Chain::load).collect();
    let (report, tallies) = during(&loads, || reporting.wait(Duration::from_mins(2)))?;

    let mut table = Table::new(["hop", "set up", "client's row", "server's row", "races"]);
    let mut faults = Vec::new();
    for (chain, tally) in chains.iter().zip(tallies) {
        faults.extend(chain.judge(&report, &mut table));
        let name = chain.variant.name;
        println!(
            "{name}: {} requests, {} failed, {} lost",
            tally.requests, tally.failed, tally.lost
        );
    }
    println!("{table}");
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame() {
        let row = |verdict: &str| -> Row {
            let text = format!(
                r#"{{"role":"","peer":"","races":{{}},"causes":{{}},"idle_timeout":{{}},"verdict":"{verdict}"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let check = |role, verdict, is_wrong, expected: Option<&str>| {
            assert_eq!(fault(role, Some(&row(verdict)), is_wrong).as_deref(), expected);
        };
        check("client", "exposed", true, None);
        check("client", "unknown", true, Some("wrong, but unknown"));
        check("server", "unknown", true, None);
        check("client", "safe", false, None);
        check("server", "unknown", false, None);
        check("server", "exposed", false, Some("right, but exposed in the server's row"));
        assert!(fault("client", None, true).is_some());
    }
}
