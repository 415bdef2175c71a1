//! What went wrong, the worst first, with all that is needed to see why.

use std::collections::HashSet;
use std::fmt::Write as _;

use crate::judge::{Guess, Score};
use crate::print::{INVENTED, MANY, is_computed, is_computed_well, is_told_well, is_within};

/// How bad, and the story.
type Fault = (f64, String);

/// Prints this many at most.
pub(crate) fn worst(scores: &[Score], most: usize) {
    let kinds = [guesses, inventions, words, foresights];
    let mut faults: Vec<Fault> =
        kinds.into_iter().flat_map(|kind| scores.iter().flat_map(kind)).collect();
    faults.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Both hosts mostly agree.
    let mut shown = HashSet::new();
    faults.retain(|(_, text)| shown.insert(text.lines().next().map(str::to_owned)));
    for (_, text) in faults.iter().take(most) {
        println!("\n{text}");
    }
}

fn guesses(score: &Score) -> Vec<Fault> {
    let mut faults = Vec::new();
    let setting = &score.setting;
    for guess in &score.guesses {
        let Guess { role, side, values, text, .. } = guess;
        let view = format!("{role}'s view of the {side:?}");
        if !is_within(guess) {
            let text =
                format!("ESTIMATE {setting}\n    {view}: true and found {values:.3?}, {text}");
            faults.push((guess.error().unwrap_or(20.0).min(50.0), text));
        }
        if let Some(above) = guess.too_high {
            let text =
                format!("TOO HIGH {setting}\n    {view}: by {above:.3} s, {values:.3?}, {text}");
            faults.push((above.min(30.0), text));
        }
    }
    faults
}

fn inventions(score: &Score) -> Vec<Fault> {
    let found = score.inventions.iter().filter(|invention| invention.share > INVENTED);
    let texts = found.map(|invention| {
        let text = format!(
            "INVENTED {}\n    {:.0} % of the time, {}",
            score.setting,
            invention.share * 100.0,
            invention.text
        );
        (10.0 * invention.share, text)
    });
    texts.collect()
}

fn words(score: &Score) -> Vec<Fault> {
    let mut faults = Vec::new();
    for word in &score.words {
        let (setting, role, text) = (&score.setting, word.role, &word.text);
        if !word.is_right() {
            let text = format!(
                "WORD {setting}\n    {role}: {:?} and not {:?}; {text}",
                word.found, word.right
            );
            faults.push((15.0, text));
        }
        if word.changes > 1 {
            let changes = f64::from(word.changes) / word.days.max(0.1);
            let text = format!("FLUTTER {setting}\n    {role}: {changes:.1} a day; {text}");
            faults.push((changes.min(50.0) / 2.0, text));
        }
    }
    faults
}

fn foresights(score: &Score) -> Vec<Fault> {
    let many = score.foresights.iter().filter(|foresight| foresight.races >= MANY);
    let wrong = many.filter(|foresight| {
        let is_wrong = is_computed(score, foresight) && !is_computed_well(foresight);
        is_wrong || !is_told_well(foresight)
    });
    let texts = wrong.map(|foresight| {
        let text = format!(
            "EXPOSURE {}\n    {}: computed {:.3}, told {:.3}, true {:.3} an hour; {} races; {}",
            score.setting,
            foresight.role,
            foresight.computed,
            foresight.told,
            foresight.truth,
            foresight.races,
            foresight.text
        );
        ((foresight.told / foresight.truth).ln().abs().min(5.0) * 5.0, text)
    });
    texts.collect()
}

/// Everything about one setting.
pub(crate) fn in_full(score: &Score) {
    let mut text = score.setting.to_string();
    for guess in &score.guesses {
        write!(text, "\n{guess:.3?}\n").unwrap();
    }
    for invention in &score.inventions {
        write!(text, "\n{invention:.3?}\n").unwrap();
    }
    for word in &score.words {
        write!(text, "\n{word:.3?}\n").unwrap();
    }
    for foresight in &score.foresights {
        write!(text, "\n{foresight:.3?}\n").unwrap();
    }
    println!("{text}");
}
