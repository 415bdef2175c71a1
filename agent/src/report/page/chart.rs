//! How long connections were idle before they were reused and before they were closed, with the idle
//! timeouts of both sides drawn in: the picture of the race.
//!
//! Bars stretch with the page, text does not: it is as large on a phone as on a desktop. So positions
//! are percentages, and bars are in boxes of their own.

use std::fmt::Write as _;
use std::time::Duration;

use finrace_logic::numbers::{number, short};
use maud::{Markup, html};

use super::text::count;
use crate::report::draw::Scale;
use crate::report::view::{Buckets, PeerView};
use crate::report::what_if::{Given, WhatIf};

/// Bars across a chart.
const COLUMNS: usize = 72;

/// Height of the bars, in pixels.
const HEIGHT: u32 = 40;

/// Height of a line of text.
const LINE: u32 = 16;

/// Marks of the axis, in seconds: earlier ones take precedence.
const TICKS: [(f64, &str); 36] = [
    (0.01, "10 ms"),
    (0.1, "100 ms"),
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3600.0, "1 h"),
    (36_000.0, "10 h"),
    (0.02, "20 ms"),
    (0.05, "50 ms"),
    (0.2, "200 ms"),
    (0.5, "500 ms"),
    (2.0, "2 s"),
    (5.0, "5 s"),
    (20.0, "20 s"),
    (30.0, "30 s"),
    (120.0, "2 min"),
    (300.0, "5 min"),
    (1800.0, "30 min"),
    (7200.0, "2 h"),
    (18_000.0, "5 h"),
    (0.3, "300 ms"),
    (0.7, "700 ms"),
    (0.85, "850 ms"),
    (1.2, "1.2 s"),
    (1.5, "1.5 s"),
    (1.8, "1.8 s"),
    (3.0, "3 s"),
    (4.0, "4 s"),
    (6.0, "6 s"),
    (7.0, "7 s"),
    (15.0, "15 s"),
    (40.0, "40 s"),
    (50.0, "50 s"),
    (75.0, "75 s"),
    (90.0, "90 s"),
];

/// Bars with their title.
struct Panel<'a> {
    title: String,
    class: &'static str,
    buckets: &'a Buckets,
}

/// What other timeouts of the client would result in: a line whose greatest value is as high as the box.
struct Curve {
    title: String,
    class: &'static str,
    /// By timeout.
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn of(
        what_if: &WhatIf,
        what: &str,
        class: &'static str,
        value: fn(&Given) -> f64,
    ) -> Option<Self> {
        let points: Vec<_> =
            what_if.timeouts.iter().map(|row| (row.seconds, value(&row.given))).collect();
        let ((_, first), (_, last)) = (*points.first()?, *points.last()?);
        let title =
            format!("{what}, if the client closed then: {} to {}", number(first), number(last));
        Some(Self { title, class, points })
    }
}

/// The idle timeout of a side.
struct Mark {
    class: &'static str,
    text: String,
    seconds: f64,
}

/// None if nothing was seen. `id` is the peer's on the page. What other timeouts would result in is
/// drawn if `has_curves`.
pub(super) fn chart(peer: &PeerView, id: &str, name: &str, has_curves: bool) -> Option<Markup> {
    let sides = [("server", peer.server_closer()), ("client", peer.client_closer())];
    let mut marks: Vec<_> = sides
        .iter()
        .filter_map(|(side, closer)| {
            let seconds = peer.idle_timeout.get(closer)?.seconds;
            let text = format!("the {side} closes at {}", time(seconds));
            Some(Mark { class: side, text, seconds })
        })
        .collect();
    let proposed = peer.what_if.iter().flat_map(|what_if| &what_if.timeouts);
    if let Some(row) = proposed.into_iter().find(|row| row.advised) {
        let text = format!("proposed for the client: {}", time(row.seconds));
        marks.push(Mark { class: "proposed", text, seconds: row.seconds });
    }
    let number = |buckets: &Buckets| buckets.iter().map(|(.., count)| u64::from(*count)).sum();
    let mut panels = vec![Panel {
        title: count(number(&peer.reuse.buckets), "reuse"),
        class: "reuse",
        buckets: &peer.reuse.buckets,
    }];
    panels.push(Panel {
        title: format!("{} lost", count(number(&peer.reuse.lost), "request")),
        class: "lost",
        buckets: &peer.reuse.lost,
    });
    for (side, closer) in sides {
        if let Some(closes) = peer.closes.get(&closer) {
            let title = format!("{} by the {side}", count(number(&closes.buckets), "close"));
            panels.push(Panel { title, class: side, buckets: &closes.buckets });
        }
    }
    panels.retain(|panel| !panel.buckets.is_empty());
    let bounds = panels.iter().flat_map(|panel| panel.buckets).flat_map(|(a, b, _)| [*a, *b]);
    let scale = Scale::over(bounds.chain(marks.iter().map(|mark| mark.seconds)))?;

    let what_if = peer.what_if.iter().filter(|_| has_curves);
    let curves: Vec<_> = what_if
        .flat_map(|what_if| {
            let lost = Curve::of(what_if, "lost an hour", "lost", |given| given.races_per_hour);
            let connects =
                Curve::of(what_if, "connects a second", "reuse", |given| given.connects_per_second);
            [lost, connects].into_iter().flatten()
        })
        .collect();

    let top = LINE * u32::try_from(marks.len()).unwrap_or_default() + 4;
    let panel = LINE + HEIGHT + 6;
    let bottom = top + panel * u32::try_from(panels.len() + curves.len()).unwrap_or_default();
    let mut tops = (0..).map(|number| top + panel * number);
    let place = |seconds: f64| format!("{:.1}%", scale.place(seconds).clamp(0.0, 1.0) * 100.0);
    let late = marks.iter().find(|mark| mark.class == "server").map(|mark| mark.seconds);
    let (title, description) = (format!("{id}-t"), format!("{id}-d"));
    Some(html! {
        svg class="chart" role="img" aria-labelledby={ (title) " " (description) }
            width="100%" height=(bottom + LINE + 2) {
            title id=(title) { "Idle times of connections: " (name) }
            desc id=(description) { (describe(&panels, &curves, &marks)) }
            @if let Some(late) = late {
                rect class="late" x=(place(late)) y=(top) width={
                    (format!("{:.1}%", (1.0 - scale.place(late)).clamp(0.0, 1.0) * 100.0))
                } height=(bottom - top) {}
            }
            @for (panel, top) in panels.iter().zip(tops.by_ref()) {
                text x="0" y=(top + LINE - 4) { (panel.title) }
                svg y=(top + LINE) width="100%" height=(HEIGHT)
                    viewBox={ "0 0 " (COLUMNS) " 100" } preserveAspectRatio="none" {
                    path class=(panel.class) d=(outline(&scale, panel.buckets)) {}
                }
            }
            @for (curve, top) in curves.iter().zip(tops.by_ref()) {
                text x="0" y=(top + LINE - 4) { (curve.title) }
                svg y=(top + LINE) width="100%" height=(HEIGHT)
                    viewBox="0 0 1000 100" preserveAspectRatio="none" {
                    path class={ "curve " (curve.class) } d=(line(&scale, &curve.points)) {}
                }
            }
            @let ticks = ticks(&scale);
            svg y=(bottom) width="100%" height="4" viewBox="0 0 1000 4" preserveAspectRatio="none" {
                path class="axis" d={
                    "M0 0H1000"
                    @for (seconds, _) in &ticks {
                        (format!("M{:.0} 0v4", scale.place(*seconds) * 1000.0))
                    }
                } {}
            }
            @for (seconds, text) in ticks {
                text class="tick" x=(place(seconds)) y=(bottom + LINE) { (text) }
            }
            @for (mark, baseline) in marks.iter().zip((1..).map(|number| LINE * number - 3)) {
                @let is_left = scale.place(mark.seconds) < 0.5;
                line class={ "mark " (mark.class) } x1=(place(mark.seconds)) x2=(place(mark.seconds))
                    y1=(baseline - 9) y2=(bottom) {}
                text class={ @if is_left { "right" } @else { "left" } } x=(place(mark.seconds))
                    dx=(if is_left { "6" } else { "-6" }) y=(baseline) { (mark.text) }
            }
        }
    })
}

/// The same as text, for readers who cannot see the chart.
fn describe(panels: &[Panel<'_>], curves: &[Curve], marks: &[Mark]) -> String {
    let panels = panels.iter().map(|Panel { title, buckets, .. }| {
        let least = buckets.first().map_or(0.0, |(low, ..)| *low);
        let most = buckets.last().map_or(0.0, |(_, high, _)| *high);
        format!("{title}, after {} to {}", time(least), time(most))
    });
    let curves = curves.iter().map(|curve| curve.title.clone());
    let marks = marks.iter().map(|mark| mark.text.clone());
    panels.chain(curves).chain(marks).collect::<Vec<_>>().join("; ") + "."
}

/// The outline of all bars. Heights are square roots, so that a few gaps near a timeout are visible.
fn outline(scale: &Scale, buckets: &Buckets) -> String {
    let counts = scale.columns::<COLUMNS>(buckets);
    let tallest = counts.iter().copied().fold(0.0, f64::max).sqrt();
    let mut path = "M0 100".to_owned();
    let mut before = 0;
    for (count, column) in counts.into_iter().zip(0..) {
        #[expect(clippy::cast_sign_loss, reason = "0 to 100")]
        let height = if count > 0.0 { (count.sqrt() / tallest * 100.0).max(5.0) as u32 } else { 0 };
        if height != before {
            // Writing to a String does not fail.
            write!(path, "H{column}V{}", 100 - height.min(100)).unwrap_or_default();
            before = height;
        }
    }
    write!(path, "H{COLUMNS}V100Z").unwrap_or_default();
    path
}

/// A line through all points that are on the scale.
fn line(scale: &Scale, points: &[(f64, f64)]) -> String {
    let highest = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut path = String::new();
    for (seconds, value) in points {
        let place = scale.place(*seconds);
        if !(0.0..=1.0).contains(&place) {
            continue;
        }
        let sign = if path.is_empty() { 'M' } else { 'L' };
        let height = if highest > 0.0 { value / highest * 96.0 } else { 0.0 };
        // Writing to a String does not fail.
        write!(path, "{sign}{:.0} {:.0}", place * 1000.0, 98.0 - height).unwrap_or_default();
    }
    path
}

/// The marks that fit next to each other.
fn ticks(scale: &Scale) -> Vec<(f64, &'static str)> {
    let mut chosen: Vec<(f64, &str)> = Vec::new();
    for (seconds, text) in TICKS {
        let place = scale.place(seconds);
        let has_room = chosen.iter().all(|(other, _)| (scale.place(*other) - place).abs() >= 0.17);
        if (0.04..=0.95).contains(&place) && has_room {
            chosen.push((seconds, text));
        }
    }
    chosen
}

fn time(seconds: f64) -> String {
    short(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
