//! Verdicts for people: one sentence each, with the numbers that it rests on.

use super::ends::Ends;
use super::estimate::{Estimate, Population};
use super::exposure::Exposure;
use super::knobs::{Side, lifetimes};
use super::numbers::{number, plural, short};
use super::verdict::{Facts, Races, State};

/// One sentence, with the numbers that it rests on. `client` and `server` are what to call the two
/// sides: "nginx", "the peer".
pub fn sentence(facts: &Facts, state: State, client: &str, server: &str) -> String {
    let between = format!("something between {client} and {server}");
    let who = if facts.is_by_middlebox() { &between } else { server };
    let closes_after = facts
        .server_timeout
        .as_ref()
        .map(|estimate| format!("{who} closes idle connections after {}", of_estimate(estimate)));
    let reuses = if facts.longest_gap.is_zero() {
        format!("{client} was not seen to reuse any after a gap recently")
    } else {
        format!("{client} reuses them after up to {}", short(facts.longest_gap))
    };
    let lost =
        |count: u32| format!("{count} request{} lost in {}", plural(count), short(facts.length));
    let text = match state {
        State::Racing => {
            let known = closes_after.map_or_else(
                || format!("{who} closes idle connections that {client} still uses"),
                |closes| format!("{closes}, {reuses}"),
            );
            format!("{known}: {}", lost(facts.idle_races()))
        }
        State::Dropping => {
            let limit = facts.drop_limit.map_or_else(String::new, |(passed, failed)| {
                format!(
                    " (they still worked after {}, but not after {})",
                    short(passed),
                    short(failed)
                )
            });
            format!("{between} silently forgets idle connections{limit}: {}", lost(facts.drops))
        }
        State::Losing => losing(facts, client, who),
        State::Leaking => format!(
            "{client} does not watch its idle connections: {} of {} late requests met a FIN over a second old",
            facts.old_fins, facts.stale
        ),
        State::Exposed => {
            let closes = closes_after
                .unwrap_or_else(|| format!("{who} closes first, after no fixed idle time"));
            let expected = facts.exposure.map_or_else(String::new, |exposure| {
                format!(": {} to be expected", per_hour(exposure))
            });
            let first = facts.too_close().map_or(reuses, |margin| {
                format!(
                    "{client} only {} before, less than the round trip of {}",
                    short(margin),
                    short(facts.rtt.unwrap_or_default())
                )
            });
            format!("{closes}, {first}{expected}")
        }
        State::Safe => safe(facts, client, who),
        State::Unknown => format!("too little was seen; still needed: {}", facts.missing()),
    };
    capital(&text)
}

/// Sentences on races whose cure is not a timeout.
pub fn notes(facts: &Facts, client: &str, server: &str, ends: Ends<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(dwell) = facts.long_dwell() {
        notes.push(capital(&format!(
            "{client} keeps connections that {server} has closed, for {} (median): it does not watch its \
             idle connections. That is harmless if it tests each one before use",
            short(dwell)
        )));
    }
    if facts.is_by_middlebox() {
        notes.push(format!(
            "The resets that end idle connections come from a device in between: they lack the TCP timestamp that \
             {server} would have sent. To each end it looks as if the other one had closed"
        ));
    }
    let Races { lifetime, rollout, unknown, .. } = facts.other_races();
    if lifetime > 0 {
        let which = match ends.process(Side::Server).and_then(lifetimes::of) {
            // All of them are limits of HTTP servers.
            _ if !ends.protocol.is_http() => String::new(),
            Some(settings) => format!(", of {}: {}", settings.software, settings.names),
            None => {
                let [one, other, third] = lifetimes::EXAMPLES;
                format!(", such as {one}, {other} or {third}")
            }
        };
        notes.push(capital(&format!(
            "{server} closed {lifetime} connection{} under a request, but not because they were idle: it has a limit on \
             requests or on a connection's age{which}. Raise it or turn it off, or set a lower \
             limit on the client",
            plural(lifetime)
        )));
    }
    if rollout > 0 {
        let when = facts.last_rollout.map_or_else(String::new, |ago| {
            format!(", {}{} ago", if rollout > 1 { "the last " } else { "" }, short(ago))
        });
        notes.push(capital(&format!(
            "{rollout} request{} met {server} while it closed all its connections{when}: a restart, reload or \
             rollout. Let it drain: take it out of rotation, wait for as long as clients keep connections \
             idle, then stop it",
            plural(rollout)
        )));
    }
    if unknown > 0 {
        let why = if facts.server_timeout.is_none() {
            "that agree on no idle timeout, at least not yet, so no value is proposed"
        } else {
            "that its idle timeout does not explain"
        };
        notes.push(format!("{unknown} request{} met closes by {server} {why}", plural(unknown)));
    }
    let forgotten = facts.forgotten();
    if forgotten > 0 {
        notes.push(format!(
            "{forgotten} request{} met connections that {server} no longer knew, while others were reused after \
             longer gaps: it lost them all at once, as in a crash or a failover. No timeout prevents that; \
             retries do, for requests that may be repeated",
            plural(forgotten)
        ));
    }
    notes
}

fn safe(facts: &Facts, client: &str, server: &str) -> String {
    let low = facts.server_low();
    let lazy = facts.unused_after.filter(|_| facts.server_first > facts.client_first);
    if let Some(((last, known), low)) = lazy.zip(facts.server_timeout.as_ref()).zip(low) {
        return format!(
            "{client} uses no connection that was idle for more than {}, although {server} is the one to \
             close it, after {}: margin {:.3} s",
            short(last),
            of_estimate(known),
            low - last.as_secs_f64()
        );
    }
    let order = format!(
        "{client} closes first: {} of {} idle connections",
        facts.client_first,
        facts.idle_closes()
    );
    let after = facts.client_timeout.as_ref().map(|e| format!(", after {}", of_estimate(e)));
    let margin = facts.client_timeout.as_ref().zip(low).map(|(own, low)| {
        let margin = low - own.main.high;
        if margin > 0.0 {
            format!("; {server} would after {low:.3} s: margin {margin:.3} s")
        } else {
            String::new()
        }
    });
    format!("{order}{}{}", after.unwrap_or_default(), margin.unwrap_or_default())
}

/// Requests lost to something other than an idle timeout.
fn losing(facts: &Facts, client: &str, server: &str) -> String {
    let Races { lifetime, rollout, unknown, .. } = facts.other_races();
    let forgotten = facts.forgotten();
    let all = lifetime + rollout + unknown + forgotten;
    let lost = format!("{all} request{} lost in {}", plural(all), short(facts.length));
    if all == unknown {
        let known = if facts.server_timeout.is_none() {
            format!("; whether to an idle timeout will show after {}", facts.missing())
        } else {
            String::new()
        };
        return format!("{server} closed connections that {client} still used: {lost}{known}");
    }
    let kinds = [
        (lifetime, "to a limit on requests or age"),
        (rollout, "to a restart, reload or rollout"),
        (forgotten, "to a crash or failover"),
        (unknown, "for an unknown reason"),
    ];
    let kinds = kinds.iter().filter(|(count, _)| *count > 0);
    let kinds: Vec<_> = kinds.map(|(count, kind)| format!("{count} {kind}")).collect();
    format!(
        "{server} closed connections that {client} still used, but not because they were idle: {lost}, {}",
        kinds.join(", ")
    )
}

/// `2.00 s (41 closes, 1.99 to 2.01 s)`, or two of them.
fn of_estimate(estimate: &Estimate) -> String {
    let one = |p: &Population| {
        let at_most = if estimate.is_upper_bound { "at most " } else { "" };
        let range = if p.high - p.low > (p.value / 50.0).max(0.05) {
            format!(", {:.3} to {:.3} s", p.low, p.high)
        } else {
            String::new()
        };
        format!("{at_most}{:.3} s ({} closes{range})", p.value, p.count)
    };
    let all: Vec<_> = estimate.populations().map(one).collect();
    if all.len() > 1 {
        format!("{} ({} timeouts)", all.join(" or "), all.len())
    } else {
        all.concat()
    }
}

/// `14 races an hour`, `fewer than 0.2 races an hour`.
fn per_hour(exposure: Exposure) -> String {
    if exposure.races >= 0.05 {
        format!("{} races an hour", number(exposure.races))
    } else {
        format!("fewer than {} races an hour", number(exposure.at_most.max(0.1)))
    }
}

/// A sentence begins with a capital, except where a name or an address comes first.
fn capital(text: &str) -> String {
    let is_word = ["the ", "something ", "too "].iter().any(|word| text.starts_with(word));
    let mut rest = text.chars();
    match rest.next() {
        Some(first) if is_word => first.to_uppercase().chain(rest).collect(),
        _ => text.to_owned(),
    }
}
