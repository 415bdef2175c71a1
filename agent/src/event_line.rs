//! An event on one line: as JSON, and as text.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finrace_logic::model::{Endpoint, Incident, Observation, Origin, Role};
use finrace_logic::owner::End;
use serde::Serialize;

use crate::clock::rfc3339;
use crate::output::seconds;
use crate::who::Who;

/// An [`End`] in JSON: the known names.
#[derive(Serialize)]
#[serde(remote = "End")]
pub(crate) struct EndNames {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Arc<str>>,
}

/// An event as `watch --json` prints it; unknown fields are left out. Durations are in seconds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct EventLine {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certainty: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<&'static str>,
    role: &'static str,
    local: String,
    peer: String,
    netns: u32,
    #[serde(with = "EndNames", skip_serializing_if = "End::is_empty")]
    client: End,
    #[serde(with = "EndNames", skip_serializing_if = "End::is_empty")]
    server: End,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closer: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fin_age_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dwell_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    /// For a reuse: whether TCP keep-alive probes run on this connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    keepalive_probes: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other_view: Option<Box<EventLine>>,
}

impl EventLine {
    pub(crate) fn of(observation: &Observation, wall: SystemTime, who: &Who) -> Self {
        let mut line = Self::about(observation.origin(), wall, who);
        let seconds = |duration: Duration| Some(duration.as_secs_f64());
        match observation {
            Observation::Incident(incident) => return Self::of_incident(incident, wall, who),
            Observation::Outcome(incident) => {
                return Self { event: "outcome", ..Self::of_incident(incident, wall, who) };
            }
            Observation::Close(close) => {
                line.event = "close";
                line.closer = Some(close.closer.as_str());
                line.how = Some(close.how.as_str());
                line.evidence = Some(close.evidence.as_str());
                line.idle_seconds = seconds(close.idle);
            }
            Observation::Reuse(reuse) => {
                line.event = "reuse";
                line.gap_seconds = seconds(reuse.gap);
                line.bytes = Some(reuse.bytes);
                line.keepalive_probes = reuse.is_probed.then_some(true);
            }
            Observation::Dwell(dwell) => {
                line.event = "dwell";
                line.dwell_seconds = seconds(dwell.dwell);
            }
        }
        line
    }

    pub(crate) fn of_incident(incident: &Incident, wall: SystemTime, who: &Who) -> Self {
        let seconds = |duration: Duration| duration.as_secs_f64();
        Self {
            event: if incident.class.is_race() { "race" } else { "incident" },
            class: Some(incident.class.as_str()),
            cause: incident.class.is_race().then_some(incident.cause.as_str()),
            outcome: Some(incident.outcome.as_str()),
            certainty: Some(incident.certainty.as_str()),
            read: incident.class.is_race().then_some(incident.read.as_str()),
            idle_seconds: incident.idle.map(seconds),
            gap_seconds: incident.gap.map(seconds),
            fin_age_seconds: incident.fin_age.map(seconds),
            bytes: incident.bytes,
            other_view: incident
                .other_view
                .as_deref()
                .map(|other| Box::new(Self::of_incident(other, wall, who))),
            ..Self::about(&incident.origin, wall, who)
        }
    }

    fn about(origin: &Origin, wall: SystemTime, who: &Who) -> Self {
        let [client, server] = ends(origin, who);
        Self {
            client,
            server,
            time: rfc3339(wall),
            role: origin.role.as_str(),
            local: origin.local.to_string(),
            peer: origin.remote.to_string(),
            netns: origin.netns,
            process: origin.process.as_ref().map(|process| process.name.to_string()),
            pid: origin.process.as_ref().map(|process| process.pid),
            rtt_seconds: origin.rtt.map(|rtt| rtt.as_secs_f64()),
            ..Self::default()
        }
    }
}

pub(crate) fn say(text: &mut String, label: &str, value: Option<String>) {
    if let Some(value) = value {
        // Writing to a String cannot fail.
        fmt::Write::write_fmt(text, format_args!(", {label} {value}")).unwrap_or_default();
    }
}

/// The names of the client and the server.
pub(crate) fn ends(origin: &Origin, who: &Who) -> [End; 2] {
    let of_process = origin.process.map(|process| process.owner).unwrap_or_default();
    let remote = match origin.role {
        Role::Server => Endpoint { port: 0, ..origin.remote },
        Role::Client | Role::Unknown => origin.remote,
    };
    who.ends(origin.role, origin.owner.or(of_process), Some(remote))
}

pub(crate) fn describe(incident: &Incident) -> String {
    let mut text = incident.outcome.to_string();
    let mut say = |label, value| say(&mut text, label, value);
    say("gap", incident.gap.map(seconds));
    say("FIN age", incident.fin_age.map(seconds));
    say("idle at close", incident.idle.map(seconds));
    say("bytes", incident.bytes.map(|bytes| bytes.to_string()));
    if incident.class.is_race() {
        say("cause", Some(incident.cause.to_string()));
        say("read", Some(incident.read.to_string()));
        say("class", Some(incident.certainty.to_string()));
    }
    if let Some(other) = &incident.other_view {
        say("also seen as", Some(format!("{} by the {}", other.class, other.origin.role)));
    }
    text
}
