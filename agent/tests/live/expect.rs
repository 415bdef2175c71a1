//! What a scenario wants to see, as text: one rule a line.
//!
//! ```text
//! race class=stale_write outcome=reset|acked gap~1.4 other_view.class=late_request
//! 3x reuse role=client gap~1.0
//! !reuse role=server
//! ```
//!
//! A rule is satisfied by at least one line (`3x`: three) of that event whose fields all fit;
//! `!`: by none. `gap~1.4` means `gap_seconds` is about that, `$server`, `$netns` and `$pid` are
//! the stage's. **Races are counted exactly**: one that no rule asks for fails the scenario.

use serde_json::Value;

use crate::stage::{Stage, slack};

/// Clock ticks (10 ms at HZ 100) make a time look shorter, a busy machine makes it longer.
const EARLY_SECS: f64 = 0.015;
const LATE_SECS: f64 = 0.15;

struct Rule<'a> {
    /// None: no line may fit.
    at_least: Option<usize>,
    event: &'a str,
    fields: Vec<Field<'a>>,
}

struct Field<'a> {
    path: &'a str,
    wanted: Wanted<'a>,
}

enum Wanted<'a> {
    OneOf(&'a str),
    Seconds(f64),
}

/// `hookless`: what the write hook alone can tell is not asked for.
pub(crate) fn check(
    rules: &str,
    hookless: bool,
    lines: &[Value],
    stage: &Stage,
) -> Result<(), String> {
    let mut races_wanted = 0;
    for text in rules.lines().map(str::trim).filter(|text| !text.is_empty()) {
        let mut rule = Rule::parse(text).ok_or_else(|| format!("not a rule: {text}"))?;
        if hookless {
            if rule.event == "reuse" {
                continue;
            }
            rule.fields.retain(Field::is_known_without_write_hook);
        }
        let found = lines.iter().filter(|line| rule.fits(line, stage)).count();
        match rule.at_least {
            None if found > 0 => return Err(format!("{found} lines against: {text}")),
            Some(wanted) if found < wanted => return Err(format!("{found} lines fit: {text}")),
            _ => {}
        }
        if rule.event == "race" {
            races_wanted += rule.at_least.unwrap_or(0);
        }
    }
    let races = lines.iter().filter(|line| text_of(line, "event") == Some("race")).count();
    if races != races_wanted {
        return Err(format!("{races} races instead of {races_wanted}"));
    }
    if lines.iter().any(Value::is_string) {
        return Err("a line is not JSON".to_owned());
    }
    Ok(())
}

impl<'a> Rule<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split_whitespace().peekable();
        let at_least = words.next_if(|word| word.ends_with('x'));
        let at_least = at_least.map_or(Some(1), |word| word.strip_suffix('x')?.parse().ok())?;
        let event = words.next()?;
        let fields = words.map(Field::parse).collect::<Option<_>>()?;
        Some(match event.strip_prefix('!') {
            Some(event) => Self { at_least: None, event, fields },
            None => Self { at_least: Some(at_least), event, fields },
        })
    }

    fn fits(&self, line: &Value, stage: &Stage) -> bool {
        text_of(line, "event") == Some(self.event)
            && self.fields.iter().all(|field| field.fits(line, stage))
    }
}

impl<'a> Field<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if let Some((path, seconds)) = text.split_once('~') {
            return Some(Self { path, wanted: Wanted::Seconds(seconds.parse().ok()?) });
        }
        let (path, alternatives) = text.split_once('=')?;
        Some(Self { path, wanted: Wanted::OneOf(alternatives) })
    }

    fn is_known_without_write_hook(&self) -> bool {
        const KNOWN: [&str; 5] = ["class", "role", "closer", "idle", "other_view.class"];
        KNOWN.contains(&self.path) || self.path.ends_with(".workload")
    }

    fn fits(&self, line: &Value, stage: &Stage) -> bool {
        match self.wanted {
            Wanted::Seconds(wanted) => {
                let found = value_of(line, &format!("{}_seconds", self.path));
                let late = found.and_then(Value::as_f64).map(|found| found - wanted);
                late.is_some_and(|late| (-EARLY_SECS..LATE_SECS * slack()).contains(&late))
            }
            Wanted::OneOf(alternatives) => {
                let found = value_of(line, self.path)
                    .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                found.is_some_and(|found| {
                    alternatives.split('|').any(|wanted| stage.expand(wanted) == found)
                })
            }
        }
    }
}

fn value_of<'v>(line: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(line, |value, key| value.get(key))
}

fn text_of<'v>(line: &'v Value, key: &str) -> Option<&'v str> {
    line.get(key)?.as_str()
}
