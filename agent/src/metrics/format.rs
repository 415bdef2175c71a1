//! The two text formats, the older made from the newer.

use std::fmt::Write as _;

/// The two text formats that Prometheus and its kin read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// The older format, all that some readers and `promtool` know.
    Text004,
}

impl Format {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text004 => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Samples are written alike in both formats; what differs is the name in HELP and TYPE.
pub(super) fn to_text004(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    // OpenMetrics names the family, 0.0.4 the sample.
    let mut suffix = "";
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let kind = lines.peek().and_then(|next| next.rsplit_once(' ')).map(|(_, kind)| kind);
            suffix = match kind {
                Some("counter") => "_total",
                Some("info") => "_info",
                _ => "",
            };
            let (name, text) = help.split_once(' ').unwrap_or((help, ""));
            _ = writeln!(out, "# HELP {name}{suffix} {text}");
        } else if let Some((name, kind)) = type_of(line) {
            let kind = if kind == "info" { "gauge" } else { kind };
            _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            _ = writeln!(out, "{line}");
        }
    }
    out
}

fn type_of(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# TYPE ")?.split_once(' ')
}
