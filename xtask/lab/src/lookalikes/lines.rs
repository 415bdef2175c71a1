//! The lines of `finrace watch --json`, and what is claimed about them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::setup::EPHEMERAL;

/// Lines shown of those that broke a claim.
const SHOWN: usize = 5;

/// Lines by the port that one of their ends listens on.
#[derive(Default)]
pub(super) struct Lines(HashMap<u16, Vec<Value>>);

impl Lines {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut lines = Self::default();
        for text in BufReader::new(file).lines() {
            let text = text.with_context(|| format!("reading {}", path.display()))?;
            lines.add(serde_json::from_str(&text).with_context(|| format!("in line `{text}`"))?);
        }
        Ok(lines)
    }

    fn add(&mut self, line: Value) {
        let ports = [port_of(&line, "local"), port_of(&line, "peer")];
        if let Some(port) = ports.into_iter().flatten().find(|port| *port < EPHEMERAL) {
            self.0.entry(port).or_default().push(line);
        }
    }

    pub(super) fn about(&self, port: u16) -> &[Value] {
        self.0.get(&port).map_or(&[], Vec::as_slice)
    }

    /// The lines that mistake the end that listens on this port for the client, or the other one
    /// for the server.
    pub(super) fn wrong_roles(&self, port: u16) -> Option<String> {
        let is_wrong = |line: &&Value| {
            let listens = port_of(line, "local") == Some(port);
            line.get("role").and_then(Value::as_str)
                == Some(if listens { "client" } else { "server" })
        };
        let wrong: Vec<_> = self.about(port).iter().filter(is_wrong).collect();
        (!wrong.is_empty()).then(|| {
            format!("port {port}: {} lines of the wrong role{}", wrong.len(), show(&wrong))
        })
    }
}

fn port_of(line: &Value, end: &str) -> Option<u16> {
    line.get(end)?.as_str()?.rsplit_once(':')?.1.parse().ok()
}

fn show(lines: &[&Value]) -> String {
    let shown: Vec<_> = lines.iter().take(SHOWN).map(ToString::to_string).collect();
    shown.iter().flat_map(|line| ["\n    ", line]).collect()
}

/// A number of lines about a port that fit a pattern (see [`fits`]).
pub(super) struct Claim {
    pub(super) port: u16,
    pub(super) count: RangeInclusive<usize>,
    pub(super) pattern: String,
}

impl Claim {
    pub(super) fn fault(&self, lines: &Lines) -> Option<String> {
        let Self { port, count, pattern } = self;
        let (fitting, others): (Vec<_>, Vec<_>) =
            lines.about(*port).iter().partition(|line| fits(line, pattern));
        if count.contains(&fitting.len()) {
            return None;
        }
        // The lines that should not be there, or those that are there instead.
        let shown = show(if fitting.len() > *count.end() { &fitting } else { &others });
        let most = if count.start() == count.end() { "exactly" } else { "at least" };
        let (found, wanted) = (fitting.len(), count.start());
        Some(format!("port {port}: {found} lines with `{pattern}`, not {most} {wanted}{shown}"))
    }
}

/// Whether a line fits a pattern: terms `key=wanted` or `key!=unwanted` with spaces between them.
/// Wanted is a range of numbers `0.9..1.3`, or texts of which one must match:
/// `idle|upper_bound`, `10.0.0.1:*`. A key `a.b` is `b` in the object `a`.
fn fits(line: &Value, pattern: &str) -> bool {
    pattern.split_whitespace().all(|term| match term.split_once("!=") {
        Some((key, unwanted)) => !has(line, key, unwanted),
        None => term.split_once('=').is_some_and(|(key, wanted)| has(line, key, wanted)),
    })
}

fn has(line: &Value, key: &str, wanted: &str) -> bool {
    let Some(found) = line.pointer(&format!("/{}", key.replace('.', "/"))) else { return false };
    if let Some((low, high)) = wanted.split_once("..") {
        let number = |text: &str| text.parse::<f64>().ok();
        return found.as_f64() >= number(low) && found.as_f64() <= number(high);
    }
    let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
    wanted.split('|').any(|text| match text.strip_suffix('*') {
        Some(start) => found.starts_with(start),
        None => found == text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let line = serde_json::json!({
            "event": "close", "role": "client", "idle_seconds": 1.004, "pid": 7,
            "local": "10.0.0.1:80", "peer": "10.0.0.2:40000", "other_view": {"local": "[::1]:90"}
        });
        let check = |pattern: &str, expected: bool| assert_eq!(fits(&line, pattern), expected);
        check("event=close", true);
        check("event!=close", false);
        check("evidence!=unused", true);
        check("event=race|close idle_seconds=0.9..1.1", true);
        check("idle_seconds=1.1..2", false);
        check("gap_seconds=0..9", false);
        check("pid=7 local=10.0.0.1:*", true);
        check("other_view.local=[::1]:90", true);
        check("other_view=*", true);
        check("dwell_seconds=*", false);
    }

    #[test]
    fn lines_by_port() {
        let mut lines = Lines::default();
        lines.add(
            serde_json::json!({"local": "[::1]:21000", "peer": "[::1]:40000", "role": "server"}),
        );
        assert_eq!(lines.about(21_000).len(), 1);
        assert_eq!(lines.about(40_000).len(), 0);
        assert_eq!(lines.wrong_roles(21_000), None);
        lines.add(
            serde_json::json!({"local": "[::1]:40000", "peer": "[::1]:21000", "role": "server"}),
        );
        assert!(lines.wrong_roles(21_000).is_some());
    }
}
