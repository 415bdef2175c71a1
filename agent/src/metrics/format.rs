//! The formats that Prometheus and its kin read, and the conversion of the newer text to the older.

use std::fmt::Write as _;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// The older text, all that some readers and `promtool` know. It has no exemplars.
    Text004,
    /// Before both texts, and the only one with native histograms.
    Protobuf,
}

impl Format {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text004 => "text/plain; version=0.0.4; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; \
                 encoding=delimited"
            }
        }
    }
}

/// Makes the older text from the newer one, a few lines at a time. Samples are the same in both;
/// only the name in HELP and TYPE differs.
#[derive(Debug, Default)]
pub(super) struct ToText004 {
    /// What HELP said: the name in it depends on the TYPE that follows.
    help: String,
}

impl ToText004 {
    /// Converts whole lines.
    pub(super) fn convert(&mut self, openmetrics: &str, out: &mut String) {
        for line in openmetrics.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                self.help.clear();
                self.help.push_str(help);
            } else if let Some((name, kind)) = type_of(line) {
                // OpenMetrics names the family, 0.0.4 the sample.
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                let text = self.help.split_once(' ').map_or("", |(_, text)| text);
                _ = writeln!(out, "# HELP {name}{suffix} {text}");
                _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            } else if !line.starts_with("# ") {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

fn type_of(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# TYPE ")?.split_once(' ')
}
