//! Before and after a change: did it work, and how sure is that?

use std::collections::BTreeMap;

use finrace_logic::verdict::{State, TURNED};
use serde::Deserialize;

use super::document::{Document, SCHEMA};
use super::view::{Against, PeerView, Status};

/// The parts of an earlier report that a later one is compared with.
#[derive(Debug, Deserialize)]
pub(super) struct Before {
    seconds: f64,
    peers: Vec<PeerBefore>,
    #[serde(default)]
    ports: Vec<PeerBefore>,
}

#[derive(Deserialize)]
struct Head {
    schema: String,
}

#[derive(Debug, Deserialize)]
struct PeerBefore {
    role: String,
    netns: Option<u32>,
    peer: String,
    verdict: String,
    exposure_per_hour: Option<f64>,
    order: OrderBefore,
    causes: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct OrderBefore {
    client_first: u32,
    server_first: u32,
}

impl Before {
    /// # Errors
    /// If it is not JSON, or not a report of a version that has verdicts.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let Head { schema } = serde_json::from_str(text)?;
        anyhow::ensure!(
            schema == SCHEMA,
            "it has schema `{schema}`, and `{SCHEMA}` is needed: save it with `finrace report --json`"
        );
        Ok(serde_json::from_str(text)?)
    }

    /// Says of each peer what has become of it.
    pub(super) fn compare(&self, now: &mut Document) {
        let seconds = now.seconds;
        for peer in now.peers.iter_mut().chain(&mut now.ports) {
            peer.against = self.of_peer(peer, seconds);
        }
    }

    /// None for a peer that was not in the earlier report.
    fn of_peer(&self, now: &PeerView, seconds: f64) -> Option<Against> {
        let fits = |b: &&PeerBefore| b.role == now.role.as_str() && b.peer == now.peer;
        let all = || self.peers.iter().chain(&self.ports).filter(fits);
        let before = all().find(|b| b.netns == now.netns).or_else(|| all().next())?;
        Some(judge(before, self.seconds, &Now::of(now, seconds)))
    }
}

/// The parts of the later report that the comparison uses.
struct Now<'a> {
    state: State,
    seconds: f64,
    client_first: u32,
    server_first: u32,
    races: u64,
    missing: &'a str,
}

impl<'a> Now<'a> {
    fn of(peer: &'a PeerView, seconds: f64) -> Self {
        Self {
            state: peer.verdict,
            seconds,
            client_first: peer.order.client_first,
            server_first: peer.order.server_first,
            races: peer.total_races() + peer.seen,
            missing: &peer.sentence,
        }
    }
}

fn judge(before: &PeerBefore, seconds_before: f64, now: &Now<'_>) -> Against {
    let was = State::ALL.iter().find(|state| state.as_str() == before.verdict);
    let was_bad = was.is_some_and(|state| state.is_bad());
    let (status, text) = match (was_bad, now.state.is_bad()) {
        (false, true) => (Status::Worse, format!("It was {} before", before.verdict)),
        (false, false) => (Status::Unchanged, format!("It was {} before, too", before.verdict)),
        (true, true) => (Status::NotFixed, still_bad(before, now)),
        (true, false) if now.state == State::Safe => turned(before, seconds_before, now),
        (true, false) => {
            (Status::NotProven, format!("It was {} before. {}", before.verdict, now.missing))
        }
    };
    Against { status, before: before.verdict.clone(), text }
}

fn still_bad(before: &PeerBefore, now: &Now<'_>) -> String {
    let order = format!(
        "The server still closes first: {} of {} idle connections",
        now.server_first,
        now.client_first + now.server_first
    );
    match now.state {
        State::Exposed | State::Racing => {
            let was = before.order.client_first + before.order.server_first;
            format!("{order}, {} of {was} before", before.order.server_first)
        }
        state @ (State::Dropping
        | State::Losing
        | State::Leaking
        | State::Unknown
        | State::Safe) => {
            format!("It was {} before, and is {state} now", before.verdict)
        }
    }
}

/// The order of closing has reversed: is that enough to call it fixed?
///
/// With n closes, all by the client, the server's share is under 1 - 0.05^(1/n), 19 times in 20.
/// With races at a rate of r, the probability of none in time t by chance is e^-rt.
fn turned(before: &PeerBefore, seconds_before: f64, now: &Now<'_>) -> (Status, String) {
    let races_before = before.causes.get("idle").copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a count of races")]
    let seen_per_hour = races_before as f64 * 3600.0 / seconds_before.max(1.0);
    let per_hour = seen_per_hour.max(before.exposure_per_hour.unwrap_or(0.0));
    let expected = per_hour * now.seconds / 3600.0;
    let closes = f64::from(now.client_first);
    let share = 100.0 * (1.0 - 0.05_f64.powf(1.0 / closes.max(1.0)));
    let was = before.order.client_first + before.order.server_first;
    let order = format!(
        "The client closes first now, {} of {} idle connections; before, the server did, {} of {was}",
        now.client_first,
        now.client_first + now.server_first,
        before.order.server_first
    );
    let races = format!("{} races where {expected:.1} were to be expected", now.races);
    let is_enough = now.client_first >= TURNED || expected >= 3.0;
    if is_enough && now.races == 0 {
        let sure = if now.server_first == 0 {
            format!(
                "The server closes first in less than {share:.0} % of cases, at 95 % confidence"
            )
        } else {
            format!("{} closes by the server are left", now.server_first)
        };
        (Status::Fixed, format!("{order}; {races}. {sure}"))
    } else if now.races > 0 {
        (Status::NotFixed, format!("{order}; but {races}"))
    } else {
        let more = TURNED.saturating_sub(now.client_first);
        (Status::NotProven, format!("{order}; {races}. {more} more idle closes would prove it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(verdict: &str, server_first: u32, races: u64) -> PeerBefore {
        PeerBefore {
            role: "client".to_owned(),
            netns: None,
            peer: "10.0.0.5:80".to_owned(),
            verdict: verdict.to_owned(),
            exposure_per_hour: Some(60.0),
            order: OrderBefore { client_first: 0, server_first },
            causes: [("idle".to_owned(), races)].into(),
        }
    }

    fn check(
        before: &PeerBefore,
        state: State,
        closes: (u32, u32),
        races: u64,
        status: Status,
        text: &str,
    ) {
        let now = Now {
            state,
            seconds: 60.0,
            client_first: closes.0,
            server_first: closes.1,
            races,
            missing: "3 more closes to go",
        };
        let against = judge(before, 60.0, &now);
        assert_eq!(against.status, status);
        assert!(against.text.contains(text), "{}", against.text);
    }

    #[test]
    fn what_became_of_it() {
        let racing = before("racing", 40, 6);
        check(
            &racing,
            State::Safe,
            (58, 0),
            0,
            Status::Fixed,
            "58 of 58 idle connections; before, the server did, 40 of 40; 0 races where 6.0 were to be expected. The server closes first in less than 5 % of cases",
        );
        check(&racing, State::Safe, (6, 0), 0, Status::Fixed, "less than 39 %");
        check(&racing, State::Safe, (58, 1), 1, Status::NotFixed, "but 1 races where 6.0");
        check(
            &racing,
            State::Exposed,
            (2, 30),
            0,
            Status::NotFixed,
            "30 of 32 idle connections, 40 of 40 before",
        );
        check(&racing, State::Unknown, (2, 0), 0, Status::NotProven, "3 more closes to go");
        let exposed = before("exposed", 40, 0);
        check(&exposed, State::Safe, (6, 0), 0, Status::NotProven, "14 more idle closes");
        check(&exposed, State::Safe, (20, 0), 0, Status::Fixed, "less than 14 %");
        check(&before("safe", 0, 0), State::Exposed, (0, 9), 0, Status::Worse, "safe before");
        check(&before("safe", 0, 0), State::Safe, (9, 0), 0, Status::Unchanged, "safe before");
    }

    #[test]
    fn other_files_are_refused() {
        let refuse = |text: &str, why: &str| {
            let error = Before::parse(text).expect_err(text);
            assert!(format!("{error:#}").contains(why), "{error:#}");
        };
        refuse("{", "EOF");
        refuse("{}", "schema");
        refuse(r#"{"schema":"finrace.report/1","seconds":1,"peers":[]}"#, "finrace.report/1");
    }
}
