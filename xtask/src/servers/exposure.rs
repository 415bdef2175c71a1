//! The expected number of races against the races that happen.
//!
//! nginx keeps connections to a server over a link with a delay. Its clients' gaps reach the
//! server's timeout as often as their distribution says; what then is lost is counted on the wire.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::finrace::{Report, Reporting};
use super::load::{Gaps, Load, Tally, during};
use super::table::{Table, number};
use super::{Bench, SETTLE};
use crate::link::Link;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Server};
use crate::wire::Capture;

/// Expected races by those that happened.
const ALLOWED: RangeInclusive<f64> = 0.5..=2.0;

/// A server, the way to it, and how it is used.
struct Setting {
    name: &'static str,
    kind: Kind,
    keep_alive: Duration,
    one_way: Duration,
    clients: usize,
    gaps: Gaps,
}

/// Ordered so that the first two do for a short run. Each makes about a race per second.
fn settings(is_short: bool) -> Vec<Setting> {
    let ms = Duration::from_millis;
    let mut settings = vec![
        Setting {
            name: "uvicorn 1 s, 10 ms, uniform",
            kind: Kind::Uvicorn,
            keep_alive: ms(1000),
            one_way: ms(5),
            clients: 100,
            gaps: Gaps::Uniform(0.5..1.5),
        },
        Setting {
            name: "node 1.3 s, 40 ms, exponential",
            kind: Kind::Node,
            keep_alive: ms(300),
            one_way: ms(20),
            clients: 120,
            gaps: Gaps::Exponential(1.3),
        },
        Setting {
            name: "nginx 2 s, 10 ms, uniform",
            kind: Kind::Nginx,
            keep_alive: ms(2000),
            one_way: ms(5),
            clients: 100,
            gaps: Gaps::Uniform(1.8..2.2),
        },
        Setting {
            name: "apache 1 s, 10 ms, periodic",
            kind: Kind::Apache,
            keep_alive: ms(1000),
            one_way: ms(5),
            clients: 20,
            gaps: Gaps::Periodic { period: 0.96, deviation: 0.04 },
        },
        Setting {
            name: "gunicorn 2 s, 40 ms, exponential",
            kind: Kind::Gunicorn,
            keep_alive: ms(2000),
            one_way: ms(20),
            clients: 220,
            gaps: Gaps::Exponential(2.0),
        },
    ];
    if is_short {
        settings.truncate(2);
    }
    settings
}

/// A setting set up.
struct Stand {
    setting: Setting,
    directory: PathBuf,
    // Before the link, so that it ends first.
    proxy: Proxy,
    server: Server,
    link: Link,
}

impl Stand {
    fn new(bench: &Bench, index: usize, setting: Setting) -> Result<Self> {
        let directory = bench.directory(&format!("exposure/{index}-{}", setting.kind))?;
        let link = Link::new(&format!("frexp{index}"), setting.one_way)?;
        let place = Place {
            directory: &directory,
            client_ns: Some(link.client_ns()),
            server_ns: Some(link.server_ns()),
            server_ip: link.server_ip(),
            tls: false,
        };
        let server = software::start(setting.kind, setting.keep_alive, &bench.software, place)?;
        let pools = Pools::new(server.address, setting.clients);
        let proxy = Proxy::start(&directory, place.client_ns, pools)?;
        Ok(Self { setting, directory, proxy, server, link })
    }

    fn load(&self) -> Load<'_> {
        Load {
            namespace: Some(self.link.client_ns()),
            proxy: self.proxy.address,
            clients: 0..self.setting.clients,
            gaps: self.setting.gaps.clone(),
            is_in_step: false,
            keep_alive: None,
        }
    }

    fn capture(&self) -> Result<Capture> {
        let filter = format!("tcp port {}", self.server.address.port());
        Capture::start(&self.directory, Some(self.link.client_ns()), &filter)
    }
}

/// All settings at the same time, with one finrace.
pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    let (seconds, min_races) = if bench.is_short { (40, 20) } else { (90, 50) };
    let directory = bench.directory("exposure")?;
    let stands = settings(bench.is_short)
        .into_iter()
        .enumerate()
        .map(|(index, setting)| {
            let name = setting.name;
            Stand::new(bench, index, setting).context(name)
        })
        .collect::<Result<Vec<_>>>()?;

    let captures = stands.iter().map(Stand::capture).collect::<Result<Vec<_>>>()?;
    let reporting = Reporting::start(&bench.finrace, &["--for", "10m"], "report", &directory)?;
    let loads: Vec<Load<'_>> = stands.iter().map(Stand::load).collect();
    let ((), tallies) = during(&loads, || {
        sleep(Duration::from_secs(seconds));
        Ok(())
    })?;
    sleep(SETTLE);
    let report = reporting.stop()?;

    let mut table = Table::new([
        "setting",
        "requests",
        "failed",
        "races",
        "finrace",
        "races/h",
        "expected/h",
        "ratio",
    ]);
    let mut faults = Vec::new();
    for ((stand, capture), tally) in stands.iter().zip(captures).zip(tallies) {
        let races = capture.finish()?.iter().filter(|c| c.race.is_some()).count();
        let outcome = Outcome::new(&report, stand, tally, races);
        outcome.add_to(&mut table);
        let name = stand.setting.name;
        faults.extend(outcome.fault(min_races).map(|fault| format!("{name}: {fault}")));
    }
    println!("{table}");
    Ok(faults)
}

/// What became of one setting.
struct Outcome {
    name: &'static str,
    tally: Tally,
    /// On the wire.
    races: usize,
    /// Of cause `idle`, as finrace counts them.
    counted: u64,
    per_hour: f64,
    expected_per_hour: Option<f64>,
}

impl Outcome {
    fn new(report: &Report, stand: &Stand, tally: Tally, races: usize) -> Self {
        let row = report.row("client", &stand.server.address.to_string());
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let per_hour = races as f64 * 3600.0 / report.seconds;
        Self {
            name: stand.setting.name,
            tally,
            races,
            counted: row.and_then(|row| row.causes.get("idle").copied()).unwrap_or(0),
            per_hour,
            expected_per_hour: row.and_then(|row| Some(row.exposure.as_ref()?.per_hour)),
        }
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.expected_per_hour? / self.per_hour)
    }

    fn add_to(&self, table: &mut Table) {
        let per_hour = |value: f64| format!("{value:.0}");
        table.add([
            self.name.to_owned(),
            self.tally.requests.to_string(),
            self.tally.failed.to_string(),
            self.races.to_string(),
            self.counted.to_string(),
            per_hour(self.per_hour),
            self.expected_per_hour.map_or_else(|| "-".to_owned(), per_hour),
            number(self.ratio()),
        ]);
    }

    fn fault(&self, min_races: usize) -> Option<String> {
        if self.races < min_races {
            return Some(format!("{} races, {min_races} wanted", self.races));
        }
        match self.ratio() {
            None => Some("no exposure".to_owned()),
            Some(ratio) if !ALLOWED.contains(&ratio) => {
                Some(format!("{ratio:.2} of the races that happened were expected"))
            }
            Some(_) => None,
        }
    }
}
