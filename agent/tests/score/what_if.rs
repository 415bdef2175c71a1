//! What another idle timeout of the client would give, against a world in which it has that timeout.

use std::time::Duration;

use finrace_logic::exposure::{Forecast, Grounds};
use finrace_logic::model::{Nanos, Role};

use crate::agent::Agent;
use crate::judge::HOUR;
use crate::setting::{Group, Late, Setting, Timer};
use crate::world::World;

/// Fractions of the server's timeout.
const PARTS: [f64; 2] = [0.5, 0.8];

/// Fewer closes and uses than this say too little about a rate.
const MANY: f64 = 100.0;

/// A comparison: the client's timeout, what was said it would give, and what it gives.
struct Trial {
    setting: String,
    timeout: f64,
    said: Forecast,
    given: Forecast,
}

impl Trial {
    /// Whether as many are lost, and about as many connects made.
    fn is_right(&self) -> bool {
        let ratio = self.said.connects / self.given.connects;
        (self.said.races - self.given.races).abs() < 0.01 && (0.75..1.33).contains(&ratio)
    }
}

/// What is wrong, if more than one in ten trials is.
pub(crate) fn run(settings: &[Setting], is_shown: bool) -> Vec<String> {
    let trials: Vec<_> = settings.iter().filter(|s| is_plain(s)).flat_map(try_out).collect();
    let wrong: Vec<_> = trials.iter().filter(|trial| !trial.is_right()).collect();
    if is_shown {
        println!("what if: {} of {} right", trials.len() - wrong.len(), trials.len());
    }
    if trials.len() >= 10 && wrong.len() * 10 <= trials.len() {
        return Vec::new();
    }
    let of = |trial: &&Trial| {
        let Trial { setting, timeout, said, given } = trial;
        format!("what if {timeout:.3} s: {said:?}, but it gives {given:?}; {setting}")
    };
    let few = format!("what if: {} of {} wrong", wrong.len(), trials.len());
    [few].into_iter().chain(wrong.iter().map(of)).collect()
}

/// One pool without a timeout, one server with one, and nothing else.
fn is_plain(setting: &Setting) -> bool {
    let is_of_timers = matches!(setting.group, Group::Plain | Group::Late | Group::Racing);
    is_of_timers && setting.pools.iter().all(|pool| pool.timer.is_none())
}

fn try_out(setting: &Setting) -> Vec<Trial> {
    let Some(server) = setting.backends[0].timer else { return Vec::new() };
    let Some(grounds) = watch(setting) else { return Vec::new() };
    let of = |part: f64| {
        let timeout = server.timeout * part;
        let is_known = timeout > 0.25 && server.timeout - timeout > 2.0 * setting.rtt;
        let said = grounds.forecast(Some(Duration::from_secs_f64(timeout))).filter(|_| is_known)?;
        let mut other = setting.clone();
        for pool in &mut other.pools {
            pool.timer = Some(Timer { timeout, late: Late::Exact, jitter: 0.0 });
        }
        let after = watch(&other)?;
        let given = after.forecast(None)?;
        let is_enough = given.connects * after.length.as_secs_f64() >= MANY;
        is_enough.then(|| Trial { setting: setting.to_string(), timeout, said, given })
    };
    PARTS.into_iter().filter_map(of).collect()
}

/// What the client's host knows after an hour and a half, or after enough requests.
fn watch(setting: &Setting) -> Option<Grounds> {
    let mut world = World::new(setting);
    let mut agent = Agent::new(Role::Client, setting);
    loop {
        let seen = world.next();
        let now = seen.observation.time().since(Nanos(0)).as_secs_f64();
        if now > 1.5 * HOUR || world.requests > 20_000 {
            return agent.grounds(now);
        }
        if seen.role == Role::Client {
            agent.see(&seen);
        }
    }
}
