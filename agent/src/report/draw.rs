//! A histogram of reuse gaps with the two idle timeouts below it, as text.

use std::fmt::Write as _;
use std::time::Duration;

use finrace_logic::numbers::short;

use super::view::Buckets;

/// Columns.
const WIDTH: usize = 60;

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A timeout to mark: its sign, its seconds, and whose it is.
pub(super) struct Mark<'a> {
    pub(super) sign: char,
    pub(super) seconds: f64,
    pub(super) whose: &'a str,
}

/// A logarithmic scale of durations in seconds.
pub(super) struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// From the least to the greatest of these; None if they do not differ.
    pub(super) fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let all = values.filter(|value| *value > 0.0);
        let (least, most) = all.fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
        // A little room, so that a mark at the end is recognizable as one.
        (least < most).then_some(Self { least: least / 1.05, most: most * 1.05 })
    }

    /// Where a value is on the scale, from 0 to 1.
    pub(super) fn place(&self, value: f64) -> f64 {
        (value / self.least).ln() / (self.most / self.least).ln()
    }

    /// How many values fall into each of `N` columns.
    pub(super) fn columns<const N: usize>(&self, buckets: &[(f64, f64, u32)]) -> [f64; N] {
        let mut counts = [0.0_f64; N];
        #[expect(clippy::cast_precision_loss, reason = "a few dozens")]
        let column = |value| self.place(value) * N as f64;
        for (low, high, count) in buckets {
            let (from, to) = (column(*low).max(0.0), column(*high));
            // A bucket may span several columns, each of which gets its part.
            for (cell, left) in counts.iter_mut().zip((0_u32..).map(f64::from)) {
                let part = (to.min(left + 1.0) - from.max(left)).max(0.0) / (to - from);
                *cell += part * f64::from(*count);
            }
        }
        counts
    }
}

/// A line of bars for each of `rows` that has any, a scale with marks, and the meaning of the marks, each with the
/// label before it; empty if there is nothing to show.
///
/// Rows are a label, and lower and upper bounds in seconds with counts. The scale is logarithmic; the
/// height of bars is the square root of the count, so that a few gaps near a timeout remain visible.
pub(super) fn gaps<'a>(rows: &[(&'a str, &Buckets)], marks: &[Mark<'_>]) -> Vec<(&'a str, String)> {
    let buckets = rows.iter().flat_map(|(_, buckets)| *buckets);
    let bounds = buckets.flat_map(|(low, high, _)| [*low, *high]);
    let scale = Scale::over(bounds.chain(marks.iter().map(|mark| mark.seconds)));
    let Some(scale) = scale.filter(|_| rows.iter().any(|(_, buckets)| !buckets.is_empty())) else {
        return Vec::new();
    };
    let bars = |buckets: &Buckets| {
        let counts = scale.columns::<WIDTH>(buckets);
        let tallest = counts.iter().copied().fold(0.0, f64::max).sqrt();
        let bar = |count: f64| {
            #[expect(clippy::cast_sign_loss, reason = "0 to 7")]
            let height = (count.sqrt() / tallest * 7.0).round() as usize;
            if count > 0.0 { BARS.get(height).copied().unwrap_or('█') } else { ' ' }
        };
        counts.iter().map(|count| bar(*count)).collect::<String>().trim_end().to_owned()
    };
    let mut line = ['·'; WIDTH];
    for mark in marks {
        #[expect(
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "within the few dozens of the scale"
        )]
        let column = (scale.place(mark.seconds) * WIDTH as f64) as usize;
        if let Some(cell) = line.get_mut(column.min(WIDTH - 1)) {
            *cell = mark.sign;
        }
    }
    let mut legend = String::new();
    for Mark { sign, seconds, whose } in marks {
        let separator = if legend.is_empty() { "" } else { ", " };
        let time = short(Duration::try_from_secs_f64(*seconds).unwrap_or_default());
        // Writing to a String does not fail.
        write!(legend, "{separator}{sign} {whose} closes at {time}").ok();
    }
    let text = |time: f64| short(Duration::try_from_secs_f64(time).unwrap_or_default());
    let filled = rows.iter().filter(|(_, buckets)| !buckets.is_empty());
    let mut lines: Vec<_> = filled.map(|(label, buckets)| (*label, bars(buckets))).collect();
    let line = line.iter().collect::<String>();
    lines.push(("", format!("{line} {} to {}", text(scale.least), text(scale.most))));
    lines.extend((!legend.is_empty()).then_some(("", legend)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_timeouts() {
        let mark = |sign, seconds, whose| Mark { sign, seconds, whose };
        let buckets = vec![(0.2, 0.21, 100), (1.0, 1.02, 4), (1.9, 1.95, 1)];
        let marks = [mark('S', 2.0, "10.0.0.5:80"), mark('C', 60.0, "nginx")];
        let lost = vec![(2.15, 2.2, 3)];
        let lines =
            gaps(&[("reuse gaps", &buckets), ("lost", &lost), ("none", &Vec::new())], &marks);
        let expected = [
            ("reuse gaps", "█▂               ▂     ▂▁"),
            ("lost", "                         █"),
            ("", "························S··································C 190 ms to 63.00 s"),
            ("", "S 10.0.0.5:80 closes at 2.00 s, C nginx closes at 60.00 s"),
        ];
        assert_eq!(lines, expected.map(|(label, line)| (label, line.to_owned())));
        assert!(gaps(&[("reuse gaps", &Vec::new())], &marks).is_empty());
    }
}
