//! One world, both agents: what they say, next to what is true.

use finrace_logic::model::{Nanos, Role};
use finrace_logic::verdict::State;

use crate::agent::Agent;
use crate::setting::{Group, Setting, Side};
use crate::world::World;

pub(crate) const DAY: f64 = 86_400.0;
pub(crate) const HOUR: f64 = 3600.0;

/// How long worlds run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) requests: u64,
    pub(crate) races: u32,
    /// Seconds between two looks at what the agents say.
    pub(crate) step: f64,
}

/// An estimate after 20 closes by the timer.
#[derive(Clone, Debug)]
pub(crate) struct Guess {
    pub(crate) role: Role,
    pub(crate) side: Side,
    /// The medians of the closes that the timers made, and what was found for each.
    pub(crate) values: Vec<(f64, Option<f64>)>,
    /// By how much the lowest estimate is above the lowest timeout, if by too much.
    pub(crate) too_high: Option<f64>,
    /// As text: what came out, and the closes it was made from.
    pub(crate) text: String,
}

impl Guess {
    /// The greatest error in tolerances; none for a miss.
    pub(crate) fn error(&self) -> Option<f64> {
        let errors = self
            .values
            .iter()
            .map(|(truth, found)| found.map(|found| (found - truth).abs() / tolerance(*truth)));
        errors.collect::<Option<Vec<_>>>().map(|errors| errors.into_iter().fold(0.0, f64::max))
    }

    pub(crate) fn relative_error(&self) -> Option<f64> {
        let (truth, found) = self.values.first()?;
        Some((found.as_ref()? - truth).abs() / truth)
    }
}

/// An estimate where there is no timer: the share of all looks that found one.
#[derive(Clone, Debug)]
pub(crate) struct Invention {
    pub(crate) share: f64,
    pub(crate) text: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) role: Role,
    pub(crate) found: Option<State>,
    pub(crate) right: Vec<State>,
    /// Changes back to a word that was said before.
    pub(crate) changes: u32,
    pub(crate) days: f64,
    pub(crate) text: String,
}

impl Word {
    pub(crate) fn is_right(&self) -> bool {
        self.found.is_some_and(|found| self.right.contains(&found))
    }
}

/// Races per hour: expected at the end, as computed before any is lost and as told in the light of those
/// that were, and those that happened.
#[derive(Clone, Debug)]
pub(crate) struct Foresight {
    pub(crate) role: Role,
    pub(crate) computed: f64,
    pub(crate) told: f64,
    pub(crate) truth: f64,
    pub(crate) races: u32,
    pub(crate) text: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Score {
    pub(crate) setting: Setting,
    pub(crate) guesses: Vec<Guess>,
    /// One for each side that has no timer but closed all the same.
    pub(crate) inventions: Vec<Invention>,
    pub(crate) words: Vec<Word>,
    pub(crate) foresights: Vec<Foresight>,
    /// Which agent denied a lost request, and when.
    pub(crate) denials: Vec<String>,
}

pub(crate) fn tolerance(truth: f64) -> f64 {
    (truth / 100.0).max(0.05)
}

/// Runs the world of this setting to its end.
pub(crate) fn judge(setting: &Setting, effort: Effort) -> Score {
    let mut world = World::new(setting);
    let mut agents = vec![Agent::new(Role::Client, setting)];
    if setting.backends.len() == 1 {
        agents.push(Agent::new(Role::Server, setting));
    }
    let is_steady = matches!(setting.group, Group::Steady | Group::TwoPools);
    let (mut step, least) =
        if is_steady { (effort.step / 4.0, 26.0 * HOUR) } else { (effort.step, 3.0 * HOUR) };
    let mut next = step;
    loop {
        let seen = world.next();
        let now = seen.observation.time().since(Nanos(0)).as_secs_f64();
        // A world that is silent for days need not be looked at every minute.
        if now - next > DAY {
            next = now - DAY;
        }
        while next <= now {
            for agent in &mut agents {
                agent.look(next);
            }
            next += step;
        }
        if now > 30.0 * HOUR {
            step = 600.0;
        }
        if let Some(agent) = agents.iter_mut().find(|agent| agent.role == seen.role) {
            agent.see(&seen);
        }
        let requests = world.requests;
        let is_known = agents[0].guesses.iter().any(Option::is_some);
        let races = agents[0].races;
        let is_enough = now >= least
            && (races >= effort.races || races < 8 && requests >= effort.requests / 4)
            && (is_known || requests >= effort.requests / 2);
        if is_enough || requests >= effort.requests || now > 60.0 * DAY {
            break;
        }
    }
    let mut score = Score {
        setting: setting.clone(),
        guesses: Vec::new(),
        inventions: Vec::new(),
        words: Vec::new(),
        foresights: Vec::new(),
        denials: Vec::new(),
    };
    for agent in agents {
        agent.finish(next, &mut score);
    }
    score
}
