//! Queries as somebody wrote them, run as they would be with some choice of variables.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Daemon;

/// A query, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// Where to find it.
    pub(super) place: String,
    pub(super) expr: String,
    /// Whether it is asked for one time, or for a range.
    pub(super) is_instant: bool,
}

/// What the variables of a dashboard stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    pub(super) job: &'a str,
    pub(super) client: &'a str,
    pub(super) peer: &'a str,
}

impl<'a> Choice<'a> {
    /// Everything of one job.
    pub(super) const fn all(job: &'a str) -> Self {
        Self { job, client: ".*", peer: ".*" }
    }

    /// The query as Grafana would send it.
    pub(super) fn apply(self, expr: &str) -> String {
        // The longer of two that begin alike comes first.
        let values = [
            ("$__rate_interval", "20s"),
            ("$__range", "1m"),
            ("$__interval", "5s"),
            ("$job", self.job),
            ("$peer", self.peer),
            ("$instance", ".*"),
            ("$role", ".*"),
            ("$client", self.client),
            ("$server", ".*"),
        ];
        values.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value))
    }
}

impl Query {
    /// The number of rows that have a value.
    pub(super) fn rows(&self, prometheus: &Daemon, choice: Choice<'_>) -> Result<usize> {
        let expr = choice.apply(&self.expr);
        let data = if self.is_instant {
            prometheus.api("query", &[("query", &expr)])
        } else {
            let now = prometheus.api("query", &[("query", "time()")])?;
            let now = now.pointer("/result/0").and_then(Value::as_f64).context("no time")?;
            let (start, end) = ((now - 20.0).to_string(), now.to_string());
            let range = [("query", &*expr), ("start", &start), ("end", &end), ("step", "5")];
            prometheus.api("query_range", &range)
        };
        let data = data.with_context(|| format!("{}: `{expr}`", self.place))?;
        let rows = data.get("result").and_then(Value::as_array).context("no result")?;
        Ok(rows.iter().filter(|row| has_value(row)).count())
    }

    /// Whether it asks for nothing but what rules have recorded.
    pub(super) fn is_recorded(&self) -> bool {
        let metrics = self.metrics();
        !metrics.is_empty() && metrics.iter().all(|name| name.contains(':'))
    }

    /// Names of metrics in it.
    pub(super) fn metrics(&self) -> BTreeSet<&str> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let words = self.expr.split(|c| !is_part(c));
        words.filter(|word| word.contains("finrace_") || word.starts_with("process_")).collect()
    }
}

/// Whether there is a number, or a native histogram with a count: quantiles of nothing do not count.
fn has_value(row: &Value) -> bool {
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
    let sample = |sample: &Value| match sample.get(1) {
        Some(Value::Object(histogram)) => {
            histogram.get("count").and_then(number).is_some_and(|count| count > 0.0)
        }
        value => value.and_then(number).is_some_and(f64::is_finite),
    };
    let samples = |name| row.get(name).and_then(Value::as_array).into_iter().flatten();
    let mut at_one_time = ["value", "histogram"].into_iter().filter_map(|name| row.get(name));
    at_one_time.any(sample) || samples("values").chain(samples("histograms")).any(sample)
}

/// The fenced blocks of a page that are marked `promql`: each is one query.
pub(super) fn of_page(name: &str, text: &str) -> Vec<Query> {
    let mut queries = Vec::new();
    let mut block: Option<String> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```promql" => block = Some(String::new()),
            Some(expr) if line.trim() == "```" => {
                let (place, expr) = (format!("{name}:{}", number + 1), std::mem::take(expr));
                queries.push(Query { place, expr, is_instant: true });
                block = None;
            }
            Some(expr) => expr.extend([line, "\n"]),
            None => {}
        }
    }
    queries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_page() {
        let text = "a\n```promql\ntopk(3,\n  x)\n```\n```yaml\ny: 1\n```\n```promql\nz\n```\n";
        let found: Vec<_> = of_page("p", text).into_iter().map(|q| (q.place, q.expr)).collect();
        let expected = [("p:5", "topk(3,\n  x)\n"), ("p:11", "z\n")];
        assert_eq!(found, expected.map(|(place, expr)| (place.to_owned(), expr.to_owned())));
    }

    #[test]
    fn names_and_variables() {
        let expr = r#"sum by (finrace_x) (rate(finrace_a_total{job=~"$job"}[$__rate_interval]))"#;
        let query = Query { place: String::new(), expr: expr.to_owned(), is_instant: true };
        assert_eq!(
            query.metrics().into_iter().collect::<Vec<_>>(),
            ["finrace_a_total", "finrace_x"]
        );
        let choice = Choice { client: "c", ..Choice::all("j") };
        assert_eq!(
            choice.apply(expr),
            r#"sum by (finrace_x) (rate(finrace_a_total{job=~"j"}[20s]))"#
        );
    }

    #[test]
    fn numbers() {
        let check = |text: &str, expected| {
            assert_eq!(has_value(&serde_json::from_str(text).unwrap()), expected, "{text}");
        };
        check(r#"{"value": [1, "0"]}"#, true);
        check(r#"{"value": [1, "NaN"]}"#, false);
        check(r#"{"values": [[1, "NaN"], [2, "1"]]}"#, true);
        check(r#"{"values": []}"#, false);
        check(r#"{"histogram": [1, {"count": "2", "sum": "1"}]}"#, true);
        check(r#"{"histograms": [[1, {"count": "0", "sum": "0"}]]}"#, false);
    }
}
