//! The report in its JSON form: all peers, and what they have in common.

use std::collections::BTreeMap;

use finrace_logic::knobs;
use finrace_logic::table::Table;
use finrace_logic::verdict::State;
use serde::Serialize;

use super::view::{PeerView, Run};
use crate::by_word;
use crate::clock::rfc3339;
use crate::lost::Lost;

/// Version of the JSON form; a change that breaks readers raises it.
pub(super) const SCHEMA: &str = "finrace.report/3";

#[derive(Debug, Serialize)]
pub(super) struct Document {
    schema: &'static str,
    /// Version of the table of software and its settings.
    knobs: &'static str,
    started: String,
    pub(super) seconds: f64,
    pub(super) kernel: String,
    hooks: BTreeMap<&'static str, &'static str>,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) lost: Lost,
    pub(super) peers: Vec<PeerView>,
    /// The same events summed by port, for all peers: these sums outlive evicted peers.
    pub(super) ports: Vec<PeerView>,
}

impl Document {
    /// A report on all peers, with roll-ups by port.
    pub(super) fn of(
        run: &Run,
        table: &Table,
        kernel: String,
        hooks: BTreeMap<&'static str, &'static str>,
        lost: Lost,
    ) -> Self {
        let rows = table.rows().into_iter();
        let mut peers: Vec<_> = rows.map(|row| run.of_row(&table.told(row))).collect();
        peers.extend(run.of_others(table));
        peers.sort_by_cached_key(PeerView::order);
        let ports = table.ports().into_iter();
        let mut ports: Vec<_> = ports.map(|(key, port)| run.of_port(key, port)).collect();
        ports.sort_by_cached_key(PeerView::order);
        Self { ports, ..Self::of_peers(run, kernel, hooks, lost, peers) }
    }

    /// A report without roll-ups.
    pub(super) fn of_peers(
        run: &Run,
        kernel: String,
        hooks: BTreeMap<&'static str, &'static str>,
        lost: Lost,
        peers: Vec<PeerView>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            knobs: knobs::CHECKED,
            started: rfc3339(run.clock.started),
            seconds: run.clock.since_start(run.now).as_secs_f64(),
            kernel,
            hooks,
            lost,
            peers,
            ports: Vec::new(),
        }
    }

    pub(super) fn has_any(&self, states: &[State]) -> bool {
        self.peers.iter().chain(&self.ports).any(|peer| states.contains(&peer.verdict))
    }
}
