//! The report for people: a block for each peer with something to report, a line for the others.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use finrace_logic::model::{Closer, Read, Role};
use finrace_logic::numbers::number;
use finrace_logic::verdict::State;

use super::document::Document;
use super::draw::{self, Mark};
use super::view::{ExposureView, PeerView};
use crate::lost::missing;
use crate::output::{seconds, visible};

/// Indentation of a block's text.
const INDENT: &str = "  ";

/// Width of the label column.
const LABEL: usize = 14;

/// How many peers of which too little was seen get a line.
const UNKNOWN_SHOWN: usize = 5;

/// Columns of a block; addresses and lines for pasting may exceed them.
const WIDTH: usize = 98;

impl Document {
    pub(super) fn to_text(&self) -> String {
        let lost = missing(&self.lost);
        let races: u64 = self.peers.iter().map(PeerView::total_races).sum();
        let mut by_state: BTreeMap<State, usize> = BTreeMap::new();
        for peer in self.peers.iter().filter(|peer| peer.other_end.is_none()) {
            *by_state.entry(peer.verdict).or_default() += 1;
        }
        let states: Vec<_> = by_state.iter().map(|(state, n)| format!("{n} {state}")).collect();
        let count = format!("{races} race{}", if races == 1 { "" } else { "s" });
        let mut blocks = vec![format!(
            "{count} in {:.1} s; peers: {}; Linux {}; {lost} records lost",
            self.seconds,
            if states.is_empty() { "none".to_owned() } else { states.join(", ") },
            self.kernel
        )];
        if races > 0 {
            blocks.push(
                "A race is one connection: at least one request, over HTTP/2 maybe several."
                    .to_owned(),
            );
        }
        if self.peers.is_empty() {
            blocks.push("No connection was closed, or reused after a gap.".to_owned());
        }
        let (told, quiet): (Vec<_>, Vec<_>) =
            self.peers.iter().partition(|peer| peer.deserves_block() && peer.other_end.is_none());
        blocks.extend(told.into_iter().map(PeerView::to_block));
        let (known, unknown): (Vec<_>, Vec<_>) =
            quiet.into_iter().partition(|peer| peer.deserves_block());
        let mut lines: Vec<_> = known.into_iter().map(PeerView::to_other_end).collect();
        lines.extend(unknown.iter().take(UNKNOWN_SHOWN).map(|peer| peer.to_line()));
        if unknown.len() > UNKNOWN_SHOWN {
            lines.push(format!(
                "and {} more of which too little was seen",
                unknown.len() - UNKNOWN_SHOWN
            ));
        }
        if !lines.is_empty() {
            blocks.push(lines.join("\n"));
        }
        blocks.join("\n\n")
    }
}

impl PeerView {
    fn deserves_block(&self) -> bool {
        self.verdict != State::Unknown
            || self.total_races() > 0
            || self.against.is_some()
            || !self.notes.is_empty()
    }

    /// `nginx -> 10.0.0.5:8080`, `gunicorn :8080 from 10.0.0.9`.
    fn title(&self) -> String {
        let process = self.process.as_deref();
        match self.role {
            Role::Server => [&visible(process.unwrap_or("server")), &*self.peer].join(" "),
            Role::Client | Role::Unknown => {
                format!("{} -> {}", visible(process.unwrap_or("client")), self.peer)
            }
        }
    }

    /// `10 up to 1 ms, 3 up to 100 ms, 2 over 60 s`: for requests that met a FIN.
    pub(super) fn fin_ages_text(&self) -> String {
        let time = |bound: f64| seconds(Duration::try_from_secs_f64(bound).unwrap_or_default());
        let texts = self.fin_ages.iter().map(|(low, high, count)| {
            if high.is_finite() {
                format!("{count} up to {}", time(*high))
            } else {
                format!("{count} over {}", time(*low))
            }
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    fn to_other_end(&self) -> String {
        let client = self.other_end.as_ref().map_or("", |client| &client.peer);
        format!(
            "{:<9}{}: the other end of -> {client}",
            self.verdict.as_str().to_uppercase(),
            self.title()
        )
    }

    fn to_line(&self) -> String {
        let incidents =
            self.other_incidents().map_or_else(String::new, |text| format!("; incidents: {text}"));
        let (title, sentence) = (self.title(), visible(&self.sentence));
        format!("{:<9}{title}: {sentence}{incidents}", self.verdict.as_str().to_uppercase())
    }

    /// What is no race, the most frequent first.
    fn other_incidents(&self) -> Option<String> {
        let mut incidents: Vec<_> = self.incidents.iter().collect();
        incidents.sort_by_key(|(_, count)| Reverse(**count));
        let texts: Vec<_> =
            incidents.iter().map(|(class, count)| format!("{class} {count}")).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    fn to_block(&self) -> String {
        let mut lines =
            vec![format!("{:<9}{}", self.verdict.as_str().to_uppercase(), self.title())];
        let mut say = |label: &str, text: &str| lines.extend(wrapped(label, text));
        say("", &format!("{}.", self.sentence));
        for (label, end) in [("client", &self.client), ("server", &self.server)] {
            if let Some(name) = end.text() {
                say(label, &name);
            }
        }
        if let Some(timeout) = self.idle_timeout.get(&self.server_closer())
            && let Some(software) = timeout.guess()
        {
            say("", &format!("{:.2} s is the default of {software} (a guess).", timeout.seconds));
        }
        if let Some(limit) = self.drop_limit.as_ref().filter(|limit| !limit.default_of.is_empty()) {
            say("", &format!("Such a limit have {} (a guess).", limit.default_of.join(", ")));
        }
        if let Some(against) = &self.against {
            let status = against.status.as_str().replace('_', " ").to_uppercase();
            say("against", &format!("{status}. {}.", against.text));
        }
        let names = [self.server_closer(), self.client_closer()];
        let whose =
            names.map(|closer| if closer == Closer::Peer { "the peer" } else { "this side" });
        let marks: Vec<_> = ['S', 'C']
            .into_iter()
            .zip(names)
            .zip(whose)
            .filter_map(|((sign, closer), whose)| {
                let seconds = self.idle_timeout.get(&closer)?.seconds;
                Some(Mark { sign, seconds, whose })
            })
            .collect();
        let rows = [("reuse gaps", &self.reuse.buckets), ("lost", &self.reuse.lost)];
        for (label, line) in draw::gaps(&rows, &marks) {
            lines.push(format!("{INDENT}{label:<LABEL$}{line}").trim_end().to_owned());
        }
        let mut say = |label: &str, text: &str| lines.extend(wrapped(label, text));
        if !self.races.is_empty() {
            let classes = self.races.iter().map(|(class, count)| {
                let last = self.last_seen.get(class).and_then(|time| time.get(11..19));
                let last = last.map_or_else(String::new, |time| format!(" (last {time} UTC)"));
                format!("{class} {count}{last}")
            });
            say("races", &classes.collect::<Vec<_>>().join(", "));
            if let Some(never) = self.read.get(&Read::Never) {
                let all = self.total_races();
                let text = format!(
                    "{never} of {all} were never read: those may be sent again, whatever their method"
                );
                say("read", &text);
            }
        }
        if !self.fin_ages.is_empty() {
            say("FIN ages", &self.fin_ages_text());
        }
        if self.seen > 0 {
            say("races", &format!("saw {} that count at the client's end", self.seen));
        }
        if let Some(incidents) = self.other_incidents() {
            say("incidents", &format!("{incidents} (no races)"));
        }
        if let Some(exposure) = &self.exposure
            && let Some(expected) = self.exposure_per_hour
            && self.reuse.gaps.count > 0
        {
            say("exposure", &exposure.to_text(expected, self.reuse.gaps.count));
        }
        let (client, server) = (self.order.client_first, self.order.server_first);
        say("closed first", &format!("the server {server}, the client {client}"));
        for note in &self.notes {
            say("also", &format!("{note}."));
        }
        for advice in &self.advice {
            say("change", &format!("{}.", advice.text));
            // The rest of it is in the JSON form.
            if let Some(note) = advice.note.and_then(|note| note.split_inclusive(". ").next()) {
                say("", note.trim_end());
            }
        }
        if let Some(what_if) = &self.what_if {
            say("what if", "the client closed idle connections after");
            for line in what_if.to_lines() {
                lines.push(format!("{INDENT}{:<LABEL$}  {line}", ""));
            }
        }
        let mut say = |label: &str, text: &str| lines.extend(wrapped(label, text));
        for alternative in &self.alternatives {
            let line = alternative.line.as_ref().filter(|line| !alternative.text.contains(*line));
            let line = line.map_or_else(String::new, |line| format!(": {line}"));
            say("or", &format!("{}{line}.", alternative.text));
        }
        lines.join("\n")
    }
}

impl ExposureView {
    /// Details to go with the number of races expected per hour.
    pub(super) fn to_text(&self, per_hour: f64, gaps: u64) -> String {
        let window = seconds(Duration::try_from_secs_f64(self.window_seconds).unwrap_or_default());
        let lost = if self.is_unwatched {
            "the client was not seen to notice a close before it wrote".to_owned()
        } else {
            format!("a request that begins within {window} of the close is lost")
        };
        format!(
            "{} lost requests an hour to be expected, at most {}; {:.1} % of {gaps} gaps came in the last \
             tenth before the timeout; {lost}",
            number(per_hour),
            number(self.at_most_per_hour),
            100.0 * self.share_near
        )
    }
}

/// Lines of a block: the label precedes the first, words are not broken.
fn wrapped(label: &str, text: &str) -> Vec<String> {
    let mut lines = vec![format!("{INDENT}{label:<LABEL$}")];
    let mut is_first = true;
    for word in visible(text).split(' ') {
        let Some(line) = lines.last_mut() else { continue };
        if !is_first && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{INDENT}{:<LABEL$}{word}", ""));
        } else {
            let space = if is_first { "" } else { " " };
            *line = format!("{line}{space}{word}");
        }
        is_first = false;
    }
    lines
}
