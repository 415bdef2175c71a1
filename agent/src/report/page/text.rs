//! Text from outside, on the page.

use std::time::Duration;

use maud::{Markup, html};

/// Turns what is between backticks into code.
pub(super) fn with_code(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// `12 s`, `3 min 20 s`, `2 days 4 h`: how long ago, how long so far.
pub(super) fn long(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |units: [(u64, &str); 2]| {
        let texts = units.into_iter().filter(|(count, _)| *count > 0);
        texts.map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
    };
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => two([(seconds / 60, "min"), (seconds % 60, "s")]),
        3600..172_800 => two([(seconds / 3600, "h"), (seconds % 3600 / 60, "min")]),
        _ => two([(seconds / 86_400, "days"), (seconds % 86_400 / 3600, "h")]),
    }
}

/// `1 race`, `2 races`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (3600, "1 h"),
            (172_799, "47 h 59 min"),
            (1_000_000, "11 days 13 h"),
        ] {
            assert_eq!(long(Duration::from_secs(seconds)), expected);
        }
    }
}
