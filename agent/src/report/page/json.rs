//! The JSON forms. Peers are those of `finrace report --json`, events those of `finrace watch --json`.

use std::collections::BTreeMap;

use finrace_logic::table::Picture;
use finrace_logic::verdict::State;
use serde::Serialize;

use super::About;
use super::incidents::Which;
use crate::ask::Ask;
use crate::by_word;
use crate::clock::rfc3339;
use crate::event_line::EventLine;
use crate::lost::Lost;
use crate::output;
use crate::report::document::Document;

#[derive(Serialize)]
struct StatusReport<'a> {
    schema: &'static str,
    version: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    revision: &'static str,
    host: &'a str,
    kernel: &'a str,
    started: String,
    time: String,
    seconds: f64,
    hooks: Vec<HookReport<'a>>,
    missing_fields: &'a [String],
    /// Records read, by kind.
    records: BTreeMap<&'static str, u64>,
    #[serde(serialize_with = "by_word::keys")]
    lost: &'a Lost,
    reuse_threshold_seconds: f64,
    races: u64,
    /// Each problem counts once if both ends are on this host.
    verdicts: BTreeMap<&'static str, usize>,
    peers: usize,
    peers_max: usize,
    evictions: u64,
}

#[derive(Serialize)]
struct HookReport<'a> {
    purpose: &'static str,
    hook: &'static str,
    attached_to: &'a str,
    program: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_seen: Option<&'static str>,
}

pub(super) fn status(about: &About, picture: &Picture) -> String {
    let About { status, host, kernel, clock, wall, .. } = about;
    let hooks = status.hooks.iter().map(|hook| HookReport {
        purpose: hook.job,
        hook: hook.hook,
        attached_to: &hook.attached_to,
        program: &hook.program,
        not_seen: hook.loses,
    });
    let verdicts = State::ALL
        .iter()
        .map(|state| (state.as_str(), picture.states.get(state).copied().unwrap_or_default()));
    json(&StatusReport {
        schema: "finrace.status/1",
        version: status.version,
        revision: status.revision,
        host,
        kernel,
        started: rfc3339(clock.started),
        time: rfc3339(*wall),
        seconds: clock.since_start(picture.now).as_secs_f64(),
        hooks: hooks.collect(),
        missing_fields: &status.missing_fields,
        records: status.events.iter().copied().collect(),
        lost: &status.lost,
        reuse_threshold_seconds: picture.threshold.as_secs_f64(),
        races: about.incidents.total_races(),
        verdicts: verdicts.collect(),
        peers: picture.rows_now,
        peers_max: picture.max_rows,
        evictions: picture.evictions,
    })
}

/// None if a single peer was requested and does not exist.
pub(super) fn peers(about: &About, ask: Ask, picture: &Picture) -> Option<String> {
    let run = about.run(picture);
    let peers: Vec<_> = picture.rows.iter().map(|row| run.of_row(row)).collect();
    if ask.only.is_some() && peers.is_empty() {
        return None;
    }
    let hooks = about.status.hooks.iter().map(|hook| (hook.job, hook.hook)).collect();
    let lost = about.status.lost.clone();
    Some(json(&Document::of_peers(&run, about.kernel.clone(), hooks, lost, peers)))
}

#[derive(Serialize)]
struct EventsReport {
    schema: &'static str,
    events: Vec<EventLine>,
}

pub(super) fn events(about: &About, ask: Ask) -> String {
    let newest = about.incidents.newest(Which::Both, ask.only).into_iter().take(ask.limit.into());
    let events = newest
        .map(|(time, incident)| EventLine::of_incident(incident, *time, &about.who))
        .collect();
    json(&EventsReport { schema: "finrace.events/1", events })
}

/// Plain data with names as keys: nothing that JSON cannot represent.
fn json(value: &impl Serialize) -> String {
    output::json(value, true).unwrap_or_default() + "\n"
}
