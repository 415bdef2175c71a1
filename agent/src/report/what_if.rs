//! What other idle timeouts of the requesting side would result in: a curve for the page, a few lines
//! for the terminal, an array for JSON.

use std::time::Duration;

use finrace_logic::exposure::{Forecast, Grounds};
use finrace_logic::numbers::{number, short};
use serde::Serialize;

/// Values that a person would set, in seconds.
const USUAL: [f64; 25] = [
    0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 75.0, 90.0,
    120.0, 180.0, 240.0, 300.0, 600.0, 900.0, 1800.0, 3600.0,
];

/// Number of shorter timeouts among the lines of text, which lose nothing; excludes the advised one.
const SHORTER: usize = 3;

#[derive(Debug, Serialize)]
pub(super) struct WhatIf {
    pub(super) as_it_is: Given,
    /// By timeout.
    pub(super) timeouts: Vec<WhatIfRow>,
    /// The other side's earliest close.
    #[serde(skip)]
    first_step: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Given {
    pub(super) races_per_hour: f64,
    /// To replace idle connections that were closed.
    pub(super) connects_per_second: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct WhatIfRow {
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) given: Given,
    /// Whether this is the proposed value.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) advised: bool,
}

impl From<Forecast> for Given {
    fn from(Forecast { races, connects }: Forecast) -> Self {
        Self { races_per_hour: races, connects_per_second: connects }
    }
}

impl WhatIf {
    /// `steps` are where something changes: the timeouts of the other side, from the earliest to the latest
    /// close at each. `advised` is what is proposed for this side.
    pub(super) fn of(
        grounds: &Grounds,
        steps: impl Iterator<Item = f64>,
        advised: Option<f64>,
    ) -> Option<Self> {
        let rtt = grounds.rtt.as_secs_f64();
        let mut seconds: Vec<f64> = USUAL.to_vec();
        let steps: Vec<f64> = steps.collect();
        let first_step = steps.iter().copied().fold(f64::INFINITY, f64::min);
        seconds.extend(steps.iter().flat_map(|step| [step - rtt, *step]));
        seconds.extend(advised);
        seconds.retain(|value| *value > 0.0);
        seconds.sort_by(f64::total_cmp);
        seconds.dedup_by(|next, kept| *next - *kept < 1e-6);
        let row = |seconds: f64| {
            let given = grounds.forecast(Duration::try_from_secs_f64(seconds).ok())?.into();
            let advised = advised.is_some_and(|advised| (advised - seconds).abs() < 1e-6);
            Some(WhatIfRow { seconds, given, advised })
        };
        let timeouts: Vec<_> = seconds.into_iter().filter_map(row).collect();
        let as_it_is = grounds.forecast(None)?.into();
        (!timeouts.is_empty()).then_some(Self { as_it_is, timeouts, first_step })
    }

    /// A few of them: the proposed one, the next shorter ones that a person would set, and the current
    /// state.
    pub(super) fn to_lines(&self) -> Vec<String> {
        let proposed = self.timeouts.iter().find(|row| row.advised);
        // Just below the other side's timeout, a clock or a busy loop decides the outcome.
        let limit = proposed.map_or(0.9 * self.first_step, |row| row.seconds);
        let usual = self.timeouts.iter().filter(|row| USUAL.contains(&row.seconds));
        let shorter = usual.rev().filter(|row| row.seconds < limit).take(SHORTER);
        let mut rows: Vec<_> = proposed.into_iter().chain(shorter).collect();
        rows.reverse();
        let of = |row: &&WhatIfRow| {
            let sign = if row.advised { " (proposed)" } else { "" };
            let after = short(Duration::try_from_secs_f64(row.seconds).unwrap_or_default());
            format!("{after:<9} {}{sign}", row.given.to_text())
        };
        let mut lines: Vec<_> = rows.iter().map(of).collect();
        lines.push(format!("{:<9} {}", "as it is", self.as_it_is.to_text()));
        lines
    }
}

impl Given {
    fn to_text(&self) -> String {
        format!(
            "{:>6} lost an hour, {:>5} connects a second",
            number(self.races_per_hour),
            number(self.connects_per_second)
        )
    }
}
