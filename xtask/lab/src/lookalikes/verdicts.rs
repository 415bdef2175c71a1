//! The verdicts of `finrace report --json`: for ordinary traffic, none may blame anyone.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Verdicts given only on a side that closes too early.
const BLAMING: [&str; 2] = ["racing", "exposed"];

#[derive(Deserialize)]
struct Report {
    peers: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    peer: String,
    verdict: String,
    sentence: String,
}

/// Rows by the port that is served.
#[derive(Default)]
pub(super) struct Verdicts(HashMap<u16, Vec<Row>>);

impl Verdicts {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let mut verdicts = Self::default();
        for row in report.peers {
            if let Some(port) = port_of(&row.peer) {
                verdicts.0.entry(port).or_default().push(row);
            }
        }
        Ok(verdicts)
    }

    /// What is said against the ends of this port.
    pub(super) fn blame(&self, port: u16) -> Option<String> {
        let rows = self.0.get(&port)?;
        let blamed = rows.iter().find(|row| BLAMING.contains(&&*row.verdict))?;
        let Row { peer, verdict, sentence } = blamed;
        Some(format!("{peer} is {verdict}: {sentence}"))
    }
}

/// The port in `10.0.0.5:80`, `[::1]:80` and `:80 from 10.0.0.5`.
fn port_of(peer: &str) -> Option<u16> {
    let end = peer.split_once(" from ").map_or(peer, |(end, _)| end);
    end.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let check = |peer, expected| assert_eq!(port_of(peer), expected, "{peer}");
        check("10.0.0.5:80", Some(80));
        check("[::1]:81", Some(81));
        check(":82 from fd00::9", Some(82));
        check("other", None);
    }
}
