//! What a scenario wants to see, as text: one rule per line.
//!
//! ```text
//! race class=stale_write outcome=reset|acked gap~1.4 other_view.class=late_request
//! 3x reuse role=client gap~1.0
//! !reuse role=server
//! ```
//!
//! A rule is satisfied by at least one line (`3x`: three, `allx`: one for each of the connections of
//! a story of [`field`](crate::field)) of that event whose fields all fit;
//! `!`: by none. `gap~1.4` means `gap_seconds` is about that, `$server`, `$netns` and `$pid` are
//! the stage's. **Races are counted exactly**: one that no rule asks for fails the scenario.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::field::connections;
use crate::stage::{Stage, slack};

/// Clock ticks (10 ms at HZ 100) make a time look shorter, a busy machine makes it longer.
const EARLY_SECS: f64 = 0.015;
const LATE_SECS: f64 = 0.15;

struct Rule<'a> {
    /// None: no line may fit.
    at_least: Option<usize>,
    /// At least one for each connection.
    is_of_all: bool,
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

/// `hookless`: what only the write hook can tell is not demanded.
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

/// What was reported about the connections of a story, all of which did the same.
#[derive(Default)]
pub(crate) struct Tally {
    right: usize,
    missed: usize,
    wrong_class: usize,
    wrong_closer: usize,
    made_up: usize,
    doubled: usize,
}

impl Tally {
    /// None for a scenario without a rule about each connection.
    pub(crate) fn new(rules: &str, lines: &[Value], stage: &Stage) -> Option<Self> {
        let rules: Vec<Rule<'_>> = rules.lines().map(str::trim).filter_map(Rule::parse).collect();
        rules.iter().find(|rule| rule.is_of_all)?;
        let mut by_connection: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
        for line in lines {
            let ends = [text_of(line, "local")?, text_of(line, "peer")?];
            let [client, server] =
                if text_of(line, "role") == Some("server") { [ends[1], ends[0]] } else { ends };
            by_connection.entry((client, server)).or_default().push(line);
        }
        let mut tally = Self::default();
        for lines in by_connection.values() {
            *tally.column(&rules, lines, stage) += 1;
        }
        // Connections without any line at all.
        tally.missed += connections().saturating_sub(by_connection.len());
        Some(tally)
    }

    /// The column in which one connection counts.
    fn column(&mut self, rules: &[Rule<'_>], lines: &[&Value], stage: &Stage) -> &mut usize {
        let fits = |rule: &Rule<'_>| lines.iter().any(|line| rule.fits(line, stage));
        let of =
            |event: &str| lines.iter().filter(|line| text_of(line, "event") == Some(event)).count();
        let races = rules.iter().filter(|rule| rule.is_of_all && rule.event == "race").count();
        if rules.iter().any(|rule| rule.at_least.is_none() && fits(rule))
            || races < of("race").min(1)
        {
            return &mut self.made_up;
        }
        if of("race") > races {
            return &mut self.doubled;
        }
        match rules.iter().find(|rule| rule.is_of_all && !fits(rule)) {
            None => &mut self.right,
            Some(Rule { event: "race" | "incident", .. }) if of("race") + of("incident") > 0 => {
                &mut self.wrong_class
            }
            Some(Rule { event: "close", .. }) if of("close") > 0 => &mut self.wrong_closer,
            Some(_) => &mut self.missed,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { right, missed, wrong_class, wrong_closer, made_up, doubled } = self;
        let all = right + missed + wrong_class + wrong_closer + made_up + doubled;
        write!(f, "{all} {right} {missed} {wrong_class} {wrong_closer} {made_up} {doubled}")
    }
}

impl<'a> Rule<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split_whitespace().peekable();
        let at_least = words.next_if(|word| word.ends_with('x'));
        let is_of_all = at_least == Some("allx");
        let at_least = match at_least {
            Some("allx") => connections(),
            Some(word) => word.strip_suffix('x')?.parse().ok()?,
            None => 1,
        };
        let event = words.next()?;
        let fields = words.map(Field::parse).collect::<Option<_>>()?;
        Some(match event.strip_prefix('!') {
            Some(event) => Self { at_least: None, is_of_all: false, event, fields },
            None => Self { at_least: Some(at_least), is_of_all, event, fields },
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
