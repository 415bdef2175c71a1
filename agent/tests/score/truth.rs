//! What is true of the last day, and which words are right then.

use std::collections::VecDeque;

use finrace_logic::model::{Class, Evidence, Observation};
use finrace_logic::verdict::{State, is_old};

use crate::seen::{Seen, Truth};
use crate::setting::Side;

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// Idle closes.
    Timer(Side),
    Other(Side),
    /// A request lost to an idle timer, maybe long after the FIN.
    Race {
        is_old: bool,
    },
    OtherRace,
    Drop,
    Reuse,
}

/// A lost request counts for half a day at least.
const DAY: f64 = 86_400.0;

/// Events of the last day.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<(f64, What)>);

impl Recent {
    pub(crate) fn add(&mut self, seen: &Seen) {
        let time = seen.observation.time().since(finrace_logic::model::Nanos(0)).as_secs_f64();
        let what = match (&seen.observation, seen.truth) {
            (
                Observation::Close(close),
                Truth::Timer { .. } | Truth::Cut { .. } | Truth::Other { .. },
            ) if !matches!(close.evidence, Evidence::Idle | Evidence::UpperBound) => {
                return;
            }
            (Observation::Close(_), Truth::Timer { side, .. } | Truth::Cut { side }) => {
                What::Timer(side)
            }
            (Observation::Close(_), Truth::Other { side }) => What::Other(side),
            (Observation::Incident(incident), Truth::Race { by_timer: true }) => {
                let rtt = incident.origin.rtt.unwrap_or_default();
                What::Race {
                    is_old: incident.class == Class::StaleWrite
                        && incident.fin_age.is_some_and(|age| is_old(age, rtt)),
                }
            }
            (Observation::Incident(_), Truth::Race { by_timer: false }) => What::OtherRace,
            (Observation::Incident(_), Truth::Drop) => What::Drop,
            (Observation::Reuse(_), _) => What::Reuse,
            _ => return,
        };
        self.0.push_back((time, what));
        while self.0.front().is_some_and(|(before, _)| *before < time - DAY) {
            self.0.pop_front();
        }
    }

    /// Whether a request has been lost since, in whatever way.
    pub(crate) fn has_loss(&self, since: f64) -> bool {
        let is_loss = |what| matches!(what, What::Race { .. } | What::OtherRace | What::Drop);
        self.count(since, is_loss) > 0.0
    }

    fn count(&self, since: f64, of: impl Fn(What) -> bool) -> f64 {
        let count = self.0.iter().filter(|(time, what)| *time >= since && of(*what)).count();
        f64::from(u32::try_from(count).unwrap())
    }

    /// The words that are right at `now`: more than one where an edge decides.
    pub(crate) fn right_words(&self, now: f64) -> Vec<State> {
        let (ever, surely) = (now - DAY, now - DAY / 2.0);
        let is_race = |what| matches!(what, What::Race { .. });
        let is_old_race = |what| what == What::Race { is_old: true };
        let mut words = Vec::new();
        let drops = self.count(surely, |what| what == What::Drop);
        let races = self.count(surely, is_race);
        if drops > 0.0 {
            words.push(State::Dropping);
            if races <= drops {
                return words;
            }
        }
        let old = self.count(surely, is_old_race);
        if old >= 2.0 {
            words.push(State::Leaking);
            if old * 2.0 > races {
                return words;
            }
        }
        let others = |since| self.count(since, |what| what == What::OtherRace);
        if races > 0.0 {
            words.push(State::Racing);
            // Until closes agree on the timeout, it cannot be known as the cause; nor if few of them do.
            let timer = self.count(ever, |what| what == What::Timer(Side::Server));
            let other = self.count(ever, |what| what == What::Other(Side::Server));
            if timer < 10.0 || timer < 0.15 * (timer + other) {
                words.push(State::Losing);
            }
            return words;
        }
        if others(surely) > 0.0 {
            words.push(State::Losing);
            // These losses may be over.
            if others(now - 3_600.0) > 0.0 {
                return words;
            }
        }
        // What happened near the edge may count or not.
        let mut maybe = |of: &dyn Fn(What) -> bool, word| {
            if self.count(ever, of) > 0.0 {
                words.push(word);
            }
        };
        maybe(&|what| what == What::Drop, State::Dropping);
        maybe(&is_old_race, State::Leaking);
        maybe(&is_race, State::Racing);
        maybe(&|what| what == What::OtherRace, State::Losing);
        words.extend(self.order(ever));
        words
    }

    /// Which side closes first.
    fn order(&self, since: f64) -> Vec<State> {
        let server = self.count(since, |what| what == What::Timer(Side::Server));
        let other = self.count(since, |what| what == What::Other(Side::Server));
        let client = self.count(since, |what| {
            matches!(what, What::Timer(Side::Client) | What::Other(Side::Client))
        });
        let is_reused = self.count(since, |what| what == What::Reuse) > 0.0;
        let all = server + other + client;
        let mut words = Vec::new();
        if all < 10.0 || (server < 6.0 && client < 6.0) {
            words.push(State::Unknown);
        }
        if server >= 0.12 * all {
            words.push(State::Exposed);
            if !is_reused {
                words.push(State::Unknown);
            }
        } else if server + other <= 0.02 * all {
            words.push(State::Safe);
        } else {
            words.extend([State::Safe, State::Unknown]);
            // The server closes first most of the time, if not by an idle timeout.
            if server > 0.0 || other > client {
                words.push(State::Exposed);
            }
        }
        words
    }
}
