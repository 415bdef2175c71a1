//! The expected number of races against the races that happen.
//!
//! Clients' gaps reach the server's timeout as often as their distribution says. finrace watches for a while
//! and predicts how many requests are lost in an hour; how many are lost after that is counted on the wire.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup::epoch;

use super::finrace::{Report, Reporting};
use super::load::{Gaps, Load, Tally, during};
use super::table::{Table, number};
use super::{Bench, SETTLE};
use crate::link::Link;
use crate::proxy::{Pools, Proxy};
use crate::software::{self, Kind, Place, Server};
use crate::wire::Capture;
use crate::wire::truth::Connection;

/// Expected races, divided by those that happened.
const ALLOWED: RangeInclusive<f64> = 0.5..=2.0;

/// A server, the way to it, and how it is used.
struct Setting {
    name: &'static str,
    kind: Kind,
    keep_alive: Duration,
    way: Way,
    clients: usize,
    gaps: Gaps,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// nginx, over a link with this delay.
    Far(Duration),
    /// nginx, over loopback.
    Loopback,
    /// Clients over loopback that do not look whether the server has closed.
    Unwatched,
}

/// Ordered so that the first few suffice for a short run. Each makes about a race per second.
fn settings(is_short: bool) -> Vec<Setting> {
    let ms = Duration::from_millis;
    let of = |name, kind, keep_alive, way, clients, gaps| Setting {
        name,
        kind,
        keep_alive: ms(keep_alive),
        way,
        clients,
        gaps,
    };
    let (near, far) = (Way::Far(ms(5)), Way::Far(ms(20)));
    let mut settings = vec![
        of("uvicorn 1 s, 10 ms, uniform", Kind::Uvicorn, 1000, near, 100, Gaps::Uniform(0.5..1.5)),
        of(
            "apache 1 s, loopback, unwatched",
            Kind::Apache,
            1000,
            Way::Unwatched,
            10,
            Gaps::Uniform(0.7..1.05),
        ),
        of("node 1.3 s, 40 ms, exponential", Kind::Node, 300, far, 120, Gaps::Exponential(1.3)),
        of("nginx 2 s, 10 ms, uniform", Kind::Nginx, 2000, near, 100, Gaps::Uniform(1.8..2.2)),
        of(
            "apache 1 s, 10 ms, periodic",
            Kind::Apache,
            1000,
            near,
            20,
            Gaps::Periodic { period: 0.96, deviation: 0.04 },
        ),
        of(
            "gunicorn 2 s, 40 ms, exponential",
            Kind::Gunicorn,
            2000,
            far,
            220,
            Gaps::Exponential(2.0),
        ),
        of(
            "node 1.3 s, loopback, unwatched",
            Kind::Node,
            300,
            Way::Unwatched,
            20,
            Gaps::Exponential(0.5),
        ),
        of(
            "uvicorn 1 s, loopback, uniform",
            Kind::Uvicorn,
            1000,
            Way::Loopback,
            60,
            Gaps::Uniform(0.98..1.02),
        ),
        of(
            "node 1.3 s, loopback, uniform",
            Kind::Node,
            300,
            Way::Loopback,
            60,
            Gaps::Uniform(1.28..1.32),
        ),
        of(
            "apache 1 s, loopback, uniform",
            Kind::Apache,
            1000,
            Way::Loopback,
            60,
            Gaps::Uniform(0.98..1.02),
        ),
        of(
            "gunicorn 2 s, loopback, uniform",
            Kind::Gunicorn,
            2000,
            Way::Loopback,
            60,
            Gaps::Uniform(1.98..2.02),
        ),
    ];
    if is_short {
        settings.truncate(3);
    }
    settings
}

/// A setting that is set up.
struct Stand {
    setting: Setting,
    directory: PathBuf,
    // Before the link, so that it ends first.
    proxy: Option<Proxy>,
    server: Server,
    link: Option<Link>,
}

impl Stand {
    fn new(bench: &Bench, index: usize, setting: Setting) -> Result<Self> {
        let directory = bench.directory(&format!("exposure/{index}-{}", setting.kind))?;
        let link = match setting.way {
            Way::Far(one_way) => Some(Link::new(&format!("frexp{index}"), one_way)?),
            Way::Loopback | Way::Unwatched => None,
        };
        let place = Place {
            directory: &directory,
            client_ns: link.as_ref().map(Link::client_ns),
            server_ns: link.as_ref().map(Link::server_ns),
            server_ip: link.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Link::server_ip),
            tls: false,
        };
        let server = software::start(setting.kind, setting.keep_alive, &bench.software, place)?;
        let pools = Pools::new(server.address, setting.clients);
        let proxy = (setting.way != Way::Unwatched)
            .then(|| Proxy::start(&directory, place.client_ns, pools))
            .transpose()?;
        Ok(Self { setting, directory, proxy, server, link })
    }

    fn client_ns(&self) -> Option<&str> {
        self.link.as_ref().map(Link::client_ns)
    }

    fn load(&self) -> Load<'_> {
        Load {
            namespace: self.client_ns(),
            proxy: self.proxy.as_ref().map_or(self.server.address, |proxy| proxy.address),
            clients: 0..self.setting.clients,
            gaps: self.setting.gaps.clone(),
            is_in_step: false,
            keep_alive: None,
        }
    }

    fn capture(&self) -> Result<Capture> {
        let filter = format!("tcp port {}", self.server.address.port());
        Capture::start(&self.directory, self.client_ns(), &filter)
    }
}

/// All settings at the same time, with one finrace. It has said what it expects before the races that
/// count begin.
pub(super) fn run(bench: &Bench) -> Result<Vec<String>> {
    let (seconds, min_races) = if bench.is_short { (30, 20) } else { (200, 30) };
    let half = Duration::from_secs(seconds);
    let directory = bench.directory("exposure")?;
    let stands = settings(bench.is_short)
        .into_iter()
        .enumerate()
        .map(|(index, setting)| {
            let name = setting.name;
            Stand::new(bench, index, setting).context(name)
        })
        .collect::<Result<Vec<_>>>()?;

    let reporting = Reporting::start(&bench.finrace, &["--for", "10m"], "report", &directory)?;
    let captures = stands.iter().map(Stand::capture).collect::<Result<Vec<_>>>()?;
    let loads: Vec<Load<'_>> = stands.iter().map(Stand::load).collect();
    let ((report, said), tallies) = during(&loads, || {
        sleep(half);
        let report = reporting.stop()?;
        let said = epoch();
        sleep(half);
        Ok((report, said))
    })?;
    sleep(SETTLE);

    let mut table = Table::new([
        "setting",
        "requests",
        "failed",
        "before",
        "expected/h",
        "then",
        "races/h",
        "ratio",
    ]);
    let mut faults = Vec::new();
    for ((stand, capture), tally) in stands.iter().zip(captures).zip(tallies) {
        let is_counted = |c: &&Connection| c.race.is_some() && c.time >= said;
        let races = capture.finish()?.iter().filter(is_counted).count();
        let outcome = Outcome::new(&report, stand, tally, races, half);
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
    /// Races as finrace counted them while it watched.
    before: u64,
    /// Races on the wire, after that.
    races: usize,
    per_hour: f64,
    expected_per_hour: Option<f64>,
}

impl Outcome {
    fn new(report: &Report, stand: &Stand, tally: Tally, races: usize, length: Duration) -> Self {
        let row = report.row("client", &stand.server.address.to_string());
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let per_hour = races as f64 * 3600.0 / length.as_secs_f64();
        Self {
            name: stand.setting.name,
            tally,
            before: row.map_or(0, |row| row.races.values().sum()),
            races,
            per_hour,
            expected_per_hour: row.and_then(|row| row.exposure_per_hour),
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
            self.before.to_string(),
            self.expected_per_hour.map_or_else(|| "-".to_owned(), per_hour),
            self.races.to_string(),
            per_hour(self.per_hour),
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
