//! What series are made of, in any format.

use std::time::Duration;

use finrace_logic::native::Native;
pub(super) use prometheus_client::metrics::MetricType;
pub(super) use prometheus_client::registry::Unit;

/// One of the events that a counter has counted.
#[derive(Clone, Debug)]
pub(super) struct Exemplar {
    pub(super) labels: Vec<(&'static str, String)>,
    /// Since the Unix epoch.
    pub(super) time: Duration,
}

/// A histogram's values: the buckets with their upper bounds, `+Inf` last, not cumulative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distribution<'a> {
    pub(super) sum: f64,
    pub(super) count: u64,
    pub(super) buckets: &'a [(f64, u64)],
    /// If the format has them.
    pub(super) native: Option<&'a Native>,
}
