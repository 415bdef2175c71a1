//! `cargo xtask alerts`: from a race to a message and back. Real software races, Prometheus fires
//! the alerts that are shipped, Alertmanager sends them on; then nginx gets the line that finrace
//! advises, and the alert has to resolve.
//!
//! The rules are changed only in how long a condition must hold: a five-hundredth of what it
//! should.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use xtask::report;
use xtask::setup::{self, now};

use super::endpoint::Endpoint;
use super::stand::{self, PROXY, Pair};
use super::{Daemon, PrometheusArgs, prepare, rules};
use crate::link::Link;
use crate::servers::finrace::Reporting;
use crate::servers::load::during;
use crate::servers::metrics::Serving;

/// Delay of the link, each way: on loopback too few races would be expected for an alert, and over a
/// longer link the first would come before it.
const ONE_WAY: Duration = Duration::from_micros(250);

/// How long to wait for each thing that has to come.
const PATIENCE: Duration = Duration::from_mins(3);

/// By chance a race comes before the alert that predicts it, about once in twenty times.
const ATTEMPTS: usize = 3;

/// Milliseconds in the test per minute in the rules.
const MINUTE: u64 = 120;

/// How long to watch for the advice, while it races.
const WATCH: &str = "15s";

/// One alert of a message.
#[derive(Clone, Debug, Deserialize)]
struct Alert {
    status: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Alert {
    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", |value| value)
    }

    /// Whether it is this news about our proxy's row.
    fn is(&self, name: &str, status: &str, peer: &str) -> bool {
        self.label("alertname") == name
            && self.status == status
            && self.label("role") == "client"
            && self.label("peer") == peer
    }

    fn check(&self) -> Result<()> {
        let name = self.label("alertname");
        let expected = [("process", "nginx"), ("client_workload", PROXY), ("job", "finrace")];
        for (label, value) in expected {
            ensure!(self.label(label) == value, "{label} is not {value}: {self:?}");
        }
        let annotation = |name| self.annotations.get(name).map_or("", |value| value);
        let url = annotation("runbook_url");
        ensure!(url.ends_with(&format!("docs/runbooks/{name}.md")), "no runbook: {self:?}");
        let between = format!("between {PROXY} and {}", self.label("peer"));
        ensure!(annotation("summary").contains(&between), "another summary: {self:?}");
        let advice = "Set the client's idle timeout to ";
        ensure!(annotation("description").contains(advice), "no value to set: {self:?}");
        Ok(())
    }
}

/// What the webhook is told.
#[derive(Debug, Deserialize)]
struct Message {
    alerts: Vec<Alert>,
}

/// The receiving end of the webhook.
struct Inbox {
    messages: Receiver<String>,
    /// All alerts so far.
    alerts: Vec<Alert>,
    start: Instant,
}

impl Inbox {
    fn has(&self, name: &str, status: &str, peer: &str) -> bool {
        self.alerts.iter().any(|alert| alert.is(name, status, peer))
    }

    /// Whether this is the latest news: a scrape that comes too late ends an alert for a moment.
    fn is_news(&self, name: &str, status: &str, peer: &str) -> bool {
        let is_of_it = |alert: &&Alert| {
            ["firing", "resolved"].iter().any(|status| alert.is(name, status, peer))
        };
        self.alerts.iter().rfind(is_of_it).is_some_and(|alert| alert.is(name, status, peer))
    }

    /// Waits for this news.
    fn wait(&mut self, name: &str, status: &str, peer: &str) -> Result<()> {
        let end = now() + PATIENCE;
        while !self.is_news(name, status, peer) {
            let left = end.saturating_duration_since(now());
            match self.messages.recv_timeout(left) {
                Ok(text) => {
                    let message: Message =
                        serde_json::from_str(&text).with_context(|| format!("message `{text}`"))?;
                    self.alerts.extend(message.alerts);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let of_peer: Vec<_> =
                        self.alerts.iter().filter(|alert| alert.label("peer") == peer).collect();
                    bail!("no {name} {status} of {peer} after {PATIENCE:?}, but {of_peer:?}")
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the webhook ended"),
            }
        }
        let seconds = self.start.elapsed().as_secs_f64();
        report(&format!("{seconds:6.1} s  {name} {status}"));
        let mut news = self.alerts.iter().filter(|alert| alert.is(name, status, peer));
        news.try_for_each(Alert::check)
    }
}

pub(crate) fn run(args: PrometheusArgs) -> Result<()> {
    let finrace = args.finrace()?;
    let directory = prepare("alerts")?;
    let software = stand::software(&directory)?;
    let link = Link::new("fralert", ONE_WAY)?;
    for attempt in 1..=ATTEMPTS {
        let directory = setup::empty_directory(directory.join(attempt.to_string()))?;
        let pair = Pair::start(directory.join("pair"), &software, Some(&link), "")?;
        if perform(&pair, &finrace, &directory)? {
            return Ok(());
        }
        report("a race came before FinraceExposed: all of it anew");
    }
    bail!("FinraceExposed has not been seen in {ATTEMPTS} attempts")
}

/// One attempt, with an agent and a Prometheus of its own; false if a race came too early.
fn perform(pair: &Pair<'_>, finrace: &Path, directory: &Path) -> Result<bool> {
    let serving = Serving::start(finrace, directory)?;

    let (sender, messages) = channel();
    let webhook = Endpoint::start(move |body| {
        // The test may be over.
        sender.send(body.to_owned()).ok();
        String::new()
    })?;
    let conf = format!(
        "route: {{ receiver: webhook, group_by: ['...'], group_wait: 0s, group_interval: 1s }}\n\
         receivers: [{{ name: webhook, webhook_configs: [{{ url: 'http://{}/' }}] }}]\n",
        webhook.address
    );
    // Alone: otherwise it would look for others.
    let arguments = ["--storage.path=alerts", "--cluster.listen-address="];
    let alertmanager = Daemon::start("prometheus-alertmanager", &conf, &arguments, directory)?;
    let (jobs, rules) = ([("finrace", serving.address)], shortened(&rules()?)?);
    let _prometheus = Daemon::prometheus(&jobs, &rules, Some(alertmanager.address), directory)?;

    let mut inbox = Inbox { messages, alerts: Vec::new(), start: now() };
    story(pair, finrace, &serving, &mut inbox, directory)
}

/// What happens, in order; false if a race that came too early has ended it.
fn story(
    pair: &Pair<'_>,
    finrace: &Path,
    serving: &Serving,
    inbox: &mut Inbox,
    directory: &Path,
) -> Result<bool> {
    let address = pair.server.address;
    let peer = address.to_string();
    let (is_exposed, _) = during(&[pair.gentle()], || {
        let result = inbox.wait("FinraceExposed", "firing", &peer);
        let has_raced = serving.scrape()?.races(address) > 0.0;
        ensure!(
            has_raced || !inbox.has("FinraceRacing", "firing", &peer),
            "an alert without a race"
        );
        let is_missed = has_raced && !inbox.has("FinraceExposed", "firing", &peer);
        if is_missed { Ok(false) } else { result.map(|()| true) }
    })?;
    if !is_exposed {
        return Ok(false);
    }

    let (advice, _) = during(&pair.racing(), || {
        let reporting = Reporting::start(finrace, &["--for", WATCH], "report", directory)?;
        inbox.wait("FinraceRacing", "firing", &peer)?;
        let report = reporting.wait(PATIENCE)?;
        let advice = report.row("client", &peer).and_then(|row| row.advice.first());
        advice.and_then(|advice| advice.line.clone()).context("no advice")
    })?;

    report(&format!("{:6.1} s  nginx gets `{advice}`", inbox.start.elapsed().as_secs_f64()));
    pair.reload(&advice)?;
    during(&pair.racing(), || {
        let end = now() + PATIENCE;
        while !serving.scrape()?.has_verdict(address, "safe") {
            ensure!(now() < end, "the verdict is not safe after {PATIENCE:?}");
            sleep(Duration::from_millis(250));
        }
        inbox.wait("FinraceRacing", "resolved", &peer)
    })?;
    // finrace itself is healthy all the time.
    let of_itself = ["FinraceDown", "FinraceUnnamed"];
    let wrong = inbox.alerts.iter().find(|alert| of_itself.contains(&alert.label("alertname")));
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(true)
}

/// The rules, with other times after which they fire.
fn shortened(rules: &str) -> Result<String> {
    let shorter = |line: &str| {
        let Some(time) = line.trim_start().strip_prefix("for: ") else {
            return Ok(format!("{line}\n"));
        };
        let minutes: Option<u64> = time.strip_suffix('m').and_then(|m| m.parse().ok());
        let minutes = minutes.with_context(|| format!("`{time}` is not in minutes"))?;
        Ok(format!("        for: {}ms\n", minutes * MINUTE))
    };
    rules.lines().map(shorter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_change() {
        let rules = "      - alert: A\n        expr: rate(x[5m]) > 0\n        for: 5m\n        \
                     summary: \"for: x\"\n";
        let expected = rules.replace("for: 5m", "for: 600ms");
        assert_eq!(shortened(rules).unwrap(), expected);
        assert!(shortened("for: 1h").is_err());
    }
}
