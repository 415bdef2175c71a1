//! The dashboard as Grafana reads it, as far as a test can tell without one.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::queries::Query;

/// What every selector begins with: anything else may belong to another job.
const JOB: &str = r#"{job=~"$job""#;

#[derive(Debug, Deserialize)]
pub(super) struct Board {
    panels: Vec<Panel>,
    templating: Templating,
    /// Data sources of all queries, wherever they are.
    #[serde(skip)]
    sources: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    definition: Option<String>,
    #[serde(rename = "allValue")]
    all_value: Option<String>,
}

/// Collects the ids of data sources.
fn sources(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let source = fields.get("datasource").map(|source| source.get("uid"));
            into.extend(source.map(|uid| uid.and_then(Value::as_str).unwrap_or("none").to_owned()));
            fields.values().for_each(|field| sources(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| sources(item, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Variable {
    fn lookup(&self) -> Option<(&str, &str, &str)> {
        let inside = self.definition.as_deref()?.strip_prefix("label_values(")?;
        let (selector, label) = inside.strip_suffix(')')?.rsplit_once(", ")?;
        Some((&self.name, selector, label))
    }
}

#[derive(Debug, Deserialize)]
struct Panel {
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    title: String,
    #[serde(default)]
    description: String,
    #[serde(rename = "gridPos")]
    area: Area,
    #[serde(default)]
    targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Area {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

impl Area {
    fn overlaps(self, other: Self) -> bool {
        let apart = |a: u32, length: u32, b: u32| a + length <= b;
        !(apart(self.x, self.w, other.x)
            || apart(other.x, other.w, self.x)
            || apart(self.y, self.h, other.y)
            || apart(other.y, other.h, self.y))
    }
}

#[derive(Debug, Deserialize)]
struct Target {
    expr: String,
    #[serde(default)]
    instant: bool,
}

impl Board {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut board: Self = serde_json::from_str(text).context("the dashboard")?;
        sources(&serde_json::from_str(text)?, &mut board.sources);
        Ok(board)
    }

    pub(super) fn queries(&self) -> Vec<Query> {
        let of_panel = |panel: &Panel| {
            let place = panel.title.clone();
            panel
                .targets
                .iter()
                .map(move |target| Query {
                    place: place.clone(),
                    expr: target.expr.clone(),
                    is_instant: target.instant,
                })
                .collect::<Vec<_>>()
        };
        self.panels.iter().flat_map(of_panel).collect()
    }

    /// Variables whose values are asked for: name, selector, label.
    pub(super) fn lookups(&self) -> Vec<(&str, &str, &str)> {
        let variables = self.templating.list.iter();
        variables.filter_map(Variable::lookup).collect()
    }

    /// What is wrong with it, whatever there is to show.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut ids = BTreeSet::new();
        for (index, panel) in self.panels.iter().enumerate() {
            let name = &panel.title;
            if !ids.insert(panel.id) {
                faults.push(format!("{name}: id {} is another panel's, too", panel.id));
            }
            let before = self.panels.iter().take(index);
            faults.extend(
                before
                    .filter(|other| other.area.overlaps(panel.area))
                    .map(|other| format!("{name}: lies over {}", other.title)),
            );
            if panel.area.x + panel.area.w > 24 {
                faults.push(format!("{name}: wider than the page"));
            }
            if panel.kind != "row" && panel.description.is_empty() {
                faults.push(format!("{name}: does not say what to do"));
            }
            if panel.kind != "row" && panel.targets.is_empty() {
                faults.push(format!("{name}: asks nothing"));
            }
            faults.extend(
                panel.targets.iter().filter_map(Target::fault).map(|f| format!("{name}: {f}")),
            );
        }
        // Grafana's own, which keeps annotations, exists everywhere.
        let portable = ["${datasource}", "-- Grafana --"];
        let sources = self.sources.iter().filter(|uid| !portable.contains(&uid.as_str()));
        faults.extend(sources.map(|uid| format!("{uid}: a data source that others do not have")));
        let variables = self.templating.list.iter().filter(|v| v.definition.is_some());
        // Only this finds what has no such label, such as a workload that is not known.
        let partial = variables.filter(|v| v.all_value.as_deref() != Some(".*"));
        faults.extend(partial.map(|v| format!("${}: all of it is not everything", v.name)));
        faults
    }
}

impl Target {
    fn fault(&self) -> Option<String> {
        let selectors = self.expr.matches('{').count();
        let of_job = self.expr.matches(JOB).count();
        (selectors != of_job || selectors == 0)
            .then(|| format!("`{}` has a selector that does not begin with {JOB}", self.expr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOARD: &str = include_str!("../../../../deploy/grafana/finrace.json");

    #[test]
    fn as_shipped() {
        let board = Board::parse(BOARD).unwrap();
        assert_eq!(board.faults(), [""; 0]);
        assert!(board.queries().len() > 30);
        let names: Vec<_> = board.lookups().into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["job", "instance", "role", "client", "server", "peer"]);
    }

    #[test]
    fn faults_are_found() {
        let check = |from: &str, to: &str, expected: &str| {
            let text = BOARD.replacen(from, to, 1);
            assert_ne!(text, BOARD, "{from}");
            let faults = Board::parse(&text).unwrap().faults();
            assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected}: {faults:?}");
        };
        check(r#""id": 3,"#, r#""id": 2,"#, "another panel's");
        check(r#"{job=~\"$job\","#, "{", "does not begin with");
        check(r#""uid": "${datasource}""#, r#""uid": "abc""#, "abc: a data source");
        check(r#""allValue": ".*""#, r#""allValue": ".+""#, "not everything");
        check(r#""y": 1"#, r#""y": 0"#, "lies over");
    }
}
