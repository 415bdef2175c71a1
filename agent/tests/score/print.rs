//! Scores as a table, and whether they are good enough.

use finrace_logic::model::Role;

use crate::judge::{Foresight, Guess, Score};
use crate::setting::Group;

/// Races that must have happened before their number says anything.
pub(crate) const MANY: u32 = 50;

/// The scores of one group, or of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    name: String,
    settings: usize,
    guesses: usize,
    within: usize,
    missed: usize,
    too_high: usize,
    errors: Vec<f64>,
    timerless: usize,
    invented: usize,
    words: usize,
    right: usize,
    /// Where the client looks for FINs: at its end the reaction is known.
    computed: usize,
    computed_well: usize,
    told: usize,
    told_well: usize,
    /// Computed, divided by true.
    ratios: Vec<f64>,
    changes: u32,
    days: f64,
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
fn percent(part: usize, of: usize) -> f64 {
    if of == 0 { 100.0 } else { part as f64 * 100.0 / of as f64 }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a few hundred")]
    let at = ((values.len().max(1) - 1) as f64 * q).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

fn is_close(ratio: f64) -> bool {
    (0.5..=2.0).contains(&ratio)
}

pub(crate) fn is_told_well(foresight: &Foresight) -> bool {
    is_close(foresight.told / foresight.truth)
}

pub(crate) fn is_computed_well(foresight: &Foresight) -> bool {
    is_close(foresight.computed / foresight.truth)
}

/// A server does not know how fast its clients see a FIN; neither end knows when one that never looks would.
pub(crate) fn is_computed(score: &Score, foresight: &Foresight) -> bool {
    let setting = &score.setting;
    foresight.role == Role::Client && (setting.reaction.is_some() || setting.is_lazy)
}

pub(crate) fn is_within(guess: &Guess) -> bool {
    guess.error().is_some_and(|error| error <= 1.0)
}

/// A chance find now and then does not count.
pub(crate) const INVENTED: f64 = 0.05;

/// How often a day a word may come back in worlds that stay the same.
const MOST_CHANGES: f64 = 0.3;

/// Fewer estimates, as some groups have in a part of the settings, say nothing about a share.
const FEW: usize = 4;

/// Groups where nearly every estimate is right.
const EXACT: [&str; 3] = ["Plain", "Late", "Steady"];

impl Row {
    fn of(name: &str, scores: &[&Score]) -> Self {
        let mut row = Self { name: name.to_owned(), settings: scores.len(), ..Self::default() };
        for score in scores {
            for guess in &score.guesses {
                row.guesses += 1;
                row.within += usize::from(is_within(guess));
                row.missed += usize::from(guess.error().is_none());
                row.too_high += usize::from(guess.too_high.is_some());
                row.errors.extend(guess.relative_error());
            }
            row.timerless += score.inventions.len();
            row.invented += score.inventions.iter().filter(|i| i.share > INVENTED).count();
            row.words += score.words.len();
            row.right += score.words.iter().filter(|word| word.is_right()).count();
            for word in &score.words {
                row.changes += word.changes;
                row.days += word.days;
            }
            for foresight in score.foresights.iter().filter(|f| f.races >= MANY) {
                row.told += 1;
                row.told_well += usize::from(is_told_well(foresight));
                if is_computed(score, foresight) {
                    row.computed += 1;
                    row.computed_well += usize::from(is_computed_well(foresight));
                    row.ratios.push(foresight.computed / foresight.truth);
                }
            }
        }
        row
    }

    fn print(&self) {
        let Self { name, settings, guesses, missed, too_high, errors, .. } = self;
        println!(
            "{name:<12}{settings:>5} |{guesses:>5}{:>7.1}{missed:>5}{too_high:>5}{:>9.4} \
             |{:>4}/{:<4}|{:>5}{:>7.1}{:>8.2} |{:>4}{:>7.1}  {:.2} {:.2} {:.2} |{:>4}{:>7.1}",
            percent(self.within, *guesses),
            quantile(errors, 0.5) * 100.0,
            self.invented,
            self.timerless,
            self.words,
            percent(self.right, self.words),
            f64::from(self.changes) / self.days,
            self.computed,
            percent(self.computed_well, self.computed),
            quantile(&self.ratios, 0.1),
            quantile(&self.ratios, 0.5),
            quantile(&self.ratios, 0.9),
            self.told,
            percent(self.told_well, self.told),
        );
    }
}

pub(crate) struct Summary {
    groups: Vec<Row>,
    all: Row,
    denials: Vec<String>,
}

impl Summary {
    pub(crate) fn of(scores: &[Score]) -> Self {
        let group = |group: &Group| {
            let of: Vec<_> = scores.iter().filter(|score| score.setting.group == *group).collect();
            Row::of(&group.to_string(), &of)
        };
        let all: Vec<_> = scores.iter().collect();
        let of = |score: &Score| {
            let setting = score.setting.to_string();
            score
                .denials
                .iter()
                .map(move |denial| format!("{setting}: {denial}"))
                .collect::<Vec<_>>()
        };
        Self {
            groups: Group::ALL.iter().map(group).collect(),
            all: Row::of("all", &all),
            denials: scores.iter().flat_map(of).collect(),
        }
    }

    pub(crate) fn print(&self) {
        println!(
            "                  | estimates                     | of no   | words              \
             | exposure computed           | told\n\
             group    settings |    n within% miss  high  error% | timeout |    n right% changes \
             |   n within%  computed/true  |   n within%\n\
             {:>75} a day {:>24}",
            "", "0.1  0.5  0.9"
        );
        self.groups.iter().chain([&self.all]).for_each(Row::print);
    }

    /// What falls short of what all settings have reached; a part of them may be worse by chance.
    pub(crate) fn failures(&self, is_whole: bool) -> Vec<String> {
        let all = &self.all;
        let slack = if is_whole { 1.0 } else { 2.0 };
        // Once a request was lost, the verdict must say so: no exceptions.
        let mut failures: Vec<String> =
            self.denials.iter().map(|denial| format!("a loss was denied: {denial}")).collect();
        let mut at_least = |name: &str, part: usize, of: usize, least: f64| {
            let (percent, least) = (percent(part, of), 100.0 - (100.0 - least) * slack);
            if percent < least {
                failures
                    .push(format!("{name}: {part} of {of}, {percent:.1} % and not {least:.1} %"));
            }
        };
        at_least("estimates within their tolerance", all.within, all.guesses, 93.0);
        at_least("estimates not missed", all.guesses - all.missed, all.guesses, 95.0);
        at_least("estimates not too high", all.guesses - all.too_high, all.guesses, 98.0);
        at_least("no timeouts invented", all.timerless - all.invented, all.timerless, 94.0);
        at_least("words right", all.right, all.words, 99.0);
        at_least("exposure within a factor of two", all.computed_well, all.computed, 90.0);
        at_least("exposure told within that", all.told_well, all.told, 97.0);
        for row in &self.groups {
            let name = format!("{}: estimates within their tolerance", row.name);
            let least = if EXACT.contains(&row.name.as_str()) { 98.0 } else { 65.0 };
            if row.guesses >= FEW {
                at_least(&name, row.within, row.guesses, least);
            }
            let name = format!("{}: words right", row.name);
            at_least(&name, row.right, row.words, 95.0);
        }
        let changes = f64::from(all.changes) / all.days;
        if changes > MOST_CHANGES * slack {
            failures.push(format!("words change {changes:.2} times a day"));
        }
        failures
    }
}
