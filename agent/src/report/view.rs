//! What is said of one peer: the text, the page and the JSON form show this. Durations are in seconds.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use finrace_logic::advice::{self, Advice, Alternative, Remedy, advise};
use finrace_logic::ends::Ends;
use finrace_logic::estimate::{Confidence, Estimate, Population};
use finrace_logic::explain::{notes, sentence};
use finrace_logic::gaps::Bucket;
use finrace_logic::knobs::Side;
use finrace_logic::latest::Latest;
use finrace_logic::model::{Cause, Class, Closer, Evidence, Nanos, Read, Role};
use finrace_logic::owner::End;
use finrace_logic::peer::{Peer, PortKey};
use finrace_logic::protocol::Protocol;
use finrace_logic::table::{Badness, Measure, Port, Row, Stats, Table, Told};
use finrace_logic::verdict::{Facts, State};
use finrace_logic::words;
use serde::Serialize;

use super::what_if::WhatIf;
use crate::by_word;
use crate::clock::{Clock, rfc3339};
use crate::event_line::EndNames;
use crate::who::Who;

#[derive(Debug, Serialize)]
pub(super) struct PeerView {
    #[serde(serialize_with = "by_word::one")]
    pub(super) role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) netns: Option<u32>,
    pub(super) peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<String>,
    /// Left out if neither process nor port reveals it.
    #[serde(serialize_with = "by_word::any", skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<Protocol>,
    /// The owners of the two ends, as far as known.
    #[serde(with = "EndNames", skip_serializing_if = "End::is_empty")]
    pub(super) client: End,
    #[serde(with = "EndNames", skip_serializing_if = "End::is_empty")]
    pub(super) server: End,
    /// For a server's row the client's, if that is on this host: it reports the same problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) other_end: Option<OtherEnd>,
    #[serde(serialize_with = "by_word::one")]
    pub(super) verdict: State,
    pub(super) sentence: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) missing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exposure_per_hour: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exposure: Option<ExposureView>,
    pub(super) order: OrderView,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) closes: BTreeMap<Closer, Closes>,
    pub(super) reuse: ReuseView,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) races: BTreeMap<Class, u64>,
    /// When each class was last seen, RFC 3339.
    #[serde(serialize_with = "by_word::keys")]
    pub(super) last_seen: BTreeMap<Class, String>,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) causes: BTreeMap<Cause, u64>,
    /// How long ago the peer's FIN had arrived, for requests written after one: `[low, high, count]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) fin_ages: Buckets,
    /// Whether an application can have read the lost requests: those with `never` may be sent again.
    #[serde(serialize_with = "by_word::keys")]
    pub(super) read: BTreeMap<Read, u64>,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) incidents: BTreeMap<Class, u64>,
    /// Races of this side that are counted in the client's row, whose end is also on this host.
    pub(super) seen: u64,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) idle_timeout: BTreeMap<Closer, TimeoutView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) drop_limit: Option<DropLimit>,
    pub(super) advice: Vec<AdviceView>,
    pub(super) alternatives: Vec<AlternativeView>,
    /// What other idle timeouts of the client would result in, if there is something to gain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) what_if: Option<WhatIf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) against: Option<Against>,
    #[serde(skip)]
    badness: Badness,
}

words! {
    /// What has become of a peer.
    Status {
        Fixed = "fixed",
        NotFixed = "not_fixed",
        NotProven = "not_proven",
        Unchanged = "unchanged",
        Worse = "worse",
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Against {
    #[serde(serialize_with = "by_word::one")]
    pub(super) status: Status,
    pub(super) before: String,
    pub(super) text: String,
}

/// Another row.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct OtherEnd {
    pub(super) netns: u32,
    pub(super) peer: String,
}

/// Which side recently closed idle connections. The client is the side that sends requests.
#[derive(Debug, Serialize)]
pub(super) struct OrderView {
    pub(super) client_first: u32,
    pub(super) server_first: u32,
    pub(super) client_in_a_row: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct ExposureView {
    pub(super) at_most_per_hour: f64,
    /// A request that begins within this time around the close is lost.
    pub(super) window_seconds: f64,
    pub(super) rtt_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reaction_seconds: Option<f64>,
    /// Gaps just before the close, on which the figure is based.
    gaps: f64,
    /// Share of all gaps in the last tenth before the timeout.
    pub(super) share_near: f64,
    /// Whether requests were lost after a FIN that our pool had not noticed, nor any other before.
    #[serde(skip)]
    pub(super) is_unwatched: bool,
}

/// Closes of one closer.
#[derive(Debug, Serialize)]
pub(super) struct Closes {
    pub(super) total: u64,
    /// Those made up by something between the two ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) by_middlebox: u64,
    #[serde(serialize_with = "by_word::keys")]
    pub(super) by_evidence: BTreeMap<Evidence, u64>,
    /// Idle time at those closes that ended an idle connection.
    pub(super) idle: Quantiles,
    /// Like those of reuses; includes closes announced by a farewell.
    pub(super) buckets: Buckets,
}

/// Lower and upper bound in seconds, count; over the last hour or two.
pub(super) type Buckets = Vec<(f64, f64, u32)>;

#[derive(Debug, Serialize)]
pub(super) struct Quantiles {
    pub(super) count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReuseView {
    #[serde(flatten)]
    pub(super) gaps: Quantiles,
    pub(super) buckets: Buckets,
    /// Gaps before requests that were lost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lost: Buckets,
}

#[derive(Debug, Serialize)]
pub(super) struct TimeoutView {
    pub(super) seconds: f64,
    pub(super) low_seconds: f64,
    pub(super) high_seconds: f64,
    pub(super) closes: u32,
    pub(super) share: f64,
    #[serde(serialize_with = "by_word::any", skip_serializing_if = "Option::is_none")]
    pub(super) confidence: Option<Confidence>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) upper_bound: bool,
    /// Software with such a default: guesses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) default_of: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) others: Vec<TimeoutView>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// After how long something silently forgets a connection.
#[derive(Debug, Serialize)]
pub(super) struct DropLimit {
    pub(super) passed_seconds: f64,
    pub(super) failed_seconds: f64,
    /// What has such a limit: guesses.
    pub(super) default_of: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct AdviceView {
    #[serde(serialize_with = "by_word::one")]
    pub(super) side: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) software: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knob: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<&'static str>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub(super) struct AlternativeView {
    #[serde(serialize_with = "by_word::one")]
    kind: Remedy,
    pub(super) text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) line: Option<String>,
}

/// What the reports of one session have in common.
pub(super) struct Run {
    pub(super) clock: Clock,
    pub(super) now: Nanos,
    /// What the wall clock says now, from which other times are reckoned, like those of events.
    pub(super) wall: SystemTime,
    /// The gap from which a write counts as a reuse.
    pub(super) threshold: Duration,
    pub(super) who: Who,
}

/// What a report is about.
struct Reported {
    role: Role,
    netns: Option<u32>,
    peer: String,
}

/// What to call the two sides in a sentence.
struct SideNames {
    client: String,
    server: String,
}

impl SideNames {
    fn of_peer(peer: Peer, process: Option<&str>) -> Self {
        match peer {
            Peer::Client(server) => Self {
                client: process.unwrap_or("the client").to_owned(),
                server: server.to_string(),
            },
            Peer::Server { port, ip } => Self {
                client: ip.to_string(),
                server: process.map_or_else(|| format!("port {port}"), str::to_owned),
            },
        }
    }

    fn of_many(role: Role, process: Option<&str>) -> Self {
        let own = |role_name: &str| process.unwrap_or(role_name).to_owned();
        match role {
            Role::Server => Self { client: "the client".to_owned(), server: own("the server") },
            Role::Client | Role::Unknown => {
                Self { client: own("the client"), server: "the server".to_owned() }
            }
        }
    }
}

impl Run {
    pub(super) fn of_row<R: Borrow<Row>>(&self, told: &Told<R>) -> PeerView {
        let (row, teller, ends) = (told.row.borrow(), told.teller(), told.ends());
        let key = row.key;
        let names = SideNames::of_peer(key.peer, row.stats.actor());
        let end = Reported { role: key.role(), netns: Some(key.netns), peer: key.to_string() };
        let report = self.report(end, &names, ends, &row.stats, (teller.key.role(), &teller.stats));
        let owner = key.owner.or(row.stats.process_owner());
        let [client, server] = self.who.ends(key.role(), owner, Some(key.remote()));
        let other_end = told.other_end;
        let other_end = other_end.map(|key| OtherEnd { netns: key.netns, peer: key.to_string() });
        PeerView { client, server, other_end, ..report }
    }

    /// The sums for what has no row of its own.
    pub(super) fn of_port(&self, key: &PortKey, port: &Port) -> PeerView {
        let (stats, process) = (&port.stats, port.stats.actor());
        let names = SideNames::of_many(key.role, process);
        let ends = Ends::new(key.role, Some(key.port), process, None);
        let [client, server] = self.who.ends(key.role, key.owner, None);
        let end = Reported { role: key.role, netns: Some(key.netns), peer: key.to_string() };
        let report = self.report(end, &names, ends, stats, (key.role, stats));
        PeerView { client, server, ..report }
    }

    pub(super) fn of_others(&self, table: &Table) -> impl Iterator<Item = PeerView> {
        let others = table.others().map(|(role, stats)| {
            let end = Reported { role, netns: None, peer: "other".to_owned() };
            let (names, ends) = (SideNames::of_many(role, None), Ends::new(role, None, None, None));
            let mut other = self.report(end, &names, ends, stats, (role, stats));
            other.assess_others();
            other
        });
        others.into_iter().filter(|other| !other.is_empty())
    }

    /// What was seen comes from `stats`, what is said about it from the teller.
    fn report(
        &self,
        end: Reported,
        names: &SideNames,
        ends: Ends<'_>,
        stats: &Stats,
        (told_as, teller): (Role, &Stats),
    ) -> PeerView {
        let Reported { role, netns, peer } = end;
        let facts = teller.facts(self.threshold, self.now);
        let verdict = stats.verdict().unwrap_or(State::Unknown);
        let advice = advise(&facts, verdict, ends);
        let mut report = PeerView {
            role,
            netns,
            peer,
            process: stats.process().map(str::to_owned),
            protocol: (ends.protocol != Protocol::Unknown).then_some(ends.protocol),
            client: End::default(),
            server: End::default(),
            other_end: None,
            verdict,
            sentence: sentence(&facts, verdict, &names.client, &names.server),
            notes: notes(&facts, &names.client, &names.server, ends),
            missing: (verdict == State::Unknown).then(|| facts.missing()),
            exposure_per_hour: facts.expected(),
            exposure: ExposureView::of(&facts),
            order: OrderView {
                client_first: facts.client_first,
                server_first: facts.server_first,
                client_in_a_row: facts.client_in_a_row,
            },
            closes: Closer::ENDS
                .into_iter()
                .map(|end| (end, Closes::of(stats, role, end)))
                .collect(),
            reuse: ReuseView::of(stats, &facts),
            races: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            causes: BTreeMap::new(),
            fin_ages: fin_ages(stats),
            read: BTreeMap::new(),
            incidents: BTreeMap::new(),
            seen: stats.counts.seen,
            idle_timeout: Closer::ENDS
                .into_iter()
                .filter_map(|end| {
                    let side = side_of(role, end);
                    let as_told =
                        Closer::ENDS.into_iter().find(|of| side_of(told_as, *of) == side)?;
                    let estimate = teller.timeout(as_told)?;
                    let whose = if side == Side::Server { facts.closed_by } else { side };
                    Some((end, TimeoutView::of(&estimate, whose, ends)))
                })
                .collect(),
            drop_limit: facts.drop_limit.map(DropLimit::of),
            advice: Vec::new(),
            alternatives: Vec::new(),
            what_if: None,
            against: None,
            badness: stats.badness(),
        };
        report.add_incidents(stats, |time| {
            let age = self.now.since(time);
            rfc3339(self.wall.checked_sub(age).unwrap_or(self.wall))
        });
        if matches!(verdict, State::Racing | State::Exposed | State::Leaking) {
            let change = advice.as_ref().map(|advice| &advice.change);
            let advised = change.filter(|change| change.side == Side::Client);
            let known = facts.server_timeout.iter().flat_map(Estimate::populations);
            report.what_if = WhatIf::of(
                &teller.grounds(&facts, self.now),
                known.flat_map(|population| [population.low, population.high]),
                advised.map(|change| change.seconds),
            );
        }
        if let Some((process, loser)) = stats.process().zip(stats.actor())
            && process != loser
        {
            report.notes.push(format!(
                "It is {loser} that loses requests; {process} has more connections to the same peer"
            ));
        }
        if let Some(Advice { change, alternatives }) = advice {
            report.advice.push(AdviceView::of(change));
            report.alternatives = alternatives.into_iter().map(AlternativeView::of).collect();
        }
        report
    }
}

/// Which side's idle timeout that end's is.
fn side_of(role: Role, end: Closer) -> Side {
    let [server, _] = role.sides();
    if end == server { Side::Server } else { Side::Client }
}

impl PeerView {
    fn add_incidents(&mut self, stats: &Stats, rfc3339: impl Fn(Nanos) -> String) {
        let mut last = BTreeMap::new();
        for ((class, cause, read), tally) in stats.counts.incidents.iter() {
            if class.is_race() {
                *self.read.entry(*read).or_insert(0) += tally.count;
                *self.races.entry(*class).or_insert(0) += tally.count;
                *self.causes.entry(*cause).or_insert(0) += tally.count;
                let seen: &mut Nanos = last.entry(*class).or_default();
                *seen = tally.last_seen.max(*seen);
            } else {
                *self.incidents.entry(*class).or_insert(0) += tally.count;
            }
        }
        self.last_seen = last.into_iter().map(|(class, time)| (class, rfc3339(time))).collect();
    }

    /// For peers without a row of their own, the cause of a loss is unknown.
    fn assess_others(&mut self) {
        let lost = self.total_races();
        if lost > 0 {
            (self.verdict, self.badness.0) = (State::Losing, State::Losing);
            self.missing = None;
            self.sentence = format!(
                "{lost} request{} lost by peers that found no row of their own, there being too many",
                if lost == 1 { "" } else { "s" }
            );
        }
    }

    /// Whose closes reveal the idle timeout of the side that answers.
    pub(super) const fn server_closer(&self) -> Closer {
        let [server, _] = self.role.sides();
        server
    }

    pub(super) const fn client_closer(&self) -> Closer {
        let [_, client] = self.role.sides();
        client
    }

    pub(super) fn total_races(&self) -> u64 {
        self.races.values().sum()
    }

    fn is_empty(&self) -> bool {
        self.closes.values().all(|closes| closes.total == 0)
            && self.reuse.gaps.count == 0
            && self.races.is_empty()
            && self.incidents.is_empty()
    }

    /// The worst first, then by name.
    pub(super) fn order(&self) -> (Badness, String) {
        (self.badness, self.peer.clone())
    }
}

impl ExposureView {
    fn of(facts: &Facts) -> Option<Self> {
        let exposure = facts.exposure?;
        Some(Self {
            at_most_per_hour: exposure.at_most.max(facts.expected().unwrap_or_default()),
            window_seconds: exposure.window.as_secs_f64(),
            rtt_seconds: facts.rtt.unwrap_or_default().as_secs_f64(),
            reaction_seconds: exposure.reaction.map(|reaction| reaction.as_secs_f64()),
            gaps: exposure.gaps,
            share_near: exposure.near,
            is_unwatched: exposure.reaction.is_none() && facts.stale > 0,
        })
    }
}

impl Closes {
    fn of(stats: &Stats, role: Role, end: Closer) -> Self {
        let mut by_evidence = BTreeMap::new();
        let mut by_middlebox = 0;
        for ((closer, _, evidence), count) in stats.counts.closes.iter() {
            if closer.end(role) == end {
                *by_evidence.entry(*evidence).or_insert(0) += count;
                by_middlebox += if *closer == Closer::Middlebox { *count } else { 0 };
            }
        }
        let idle = stats.idle(end);
        let total = by_evidence.values().sum();
        let count = stats.counts.histogram(Measure::of_idle(end)).count();
        let buckets = rounded(&stats.closed_after(end));
        let idle = Quantiles::of(count, &idle.exact);
        Self { total, by_middlebox, by_evidence, idle, buckets }
    }
}

impl Quantiles {
    fn of(count: u64, values: &Latest) -> Self {
        let at = |q| values.quantile(q).map(|value: Duration| value.as_secs_f64());
        Self { count, p50_seconds: at(0.5), p99_seconds: at(0.99), max_seconds: at(1.0) }
    }
}

impl ReuseView {
    fn of(stats: &Stats, facts: &Facts) -> Self {
        let buckets = stats.gaps();
        let all: u32 = buckets.iter().map(|bucket| bucket.count).sum();
        let at = |q: f64| {
            let mut below = 0;
            let rank = f64::from(all) * q;
            let found = buckets.iter().find(|bucket| {
                below += bucket.count;
                f64::from(below) >= rank
            });
            found.map(|bucket| bucket.high.min(facts.longest_gap.as_secs_f64()))
        };
        let longest = (all > 0).then_some(facts.longest_gap.as_secs_f64());
        let count = stats.counts.histogram(Measure::ReuseGap).count();
        let gaps =
            Quantiles { count, p50_seconds: at(0.5), p99_seconds: at(0.99), max_seconds: longest };
        Self { gaps, buckets: rounded(&buckets), lost: rounded(&stats.lost_gaps()) }
    }
}

fn fin_ages(stats: &Stats) -> Buckets {
    let buckets = stats.counts.histogram(Measure::FinAge).buckets(Measure::FinAge.bounds());
    let mut low = 0.0;
    let of = |(high, count): (f64, u64)| {
        let bucket = (low, high, u32::try_from(count).unwrap_or(u32::MAX));
        low = high;
        bucket
    };
    buckets.into_iter().map(of).filter(|(.., count)| *count > 0).collect()
}

/// Rounds to microseconds.
fn rounded(buckets: &[Bucket]) -> Buckets {
    let micros = |value: f64| (value * 1e6).round() / 1e6;
    buckets.iter().map(|b| (micros(b.low), micros(b.high), b.count)).collect()
}

impl TimeoutView {
    fn of(estimate: &Estimate, side: Side, ends: Ends<'_>) -> Self {
        let one = |p: &Population| Self {
            seconds: p.value,
            low_seconds: p.low,
            high_seconds: p.high,
            closes: p.count,
            share: p.share,
            confidence: None,
            upper_bound: estimate.is_upper_bound,
            default_of: advice::guesses(side, p.value, ends),
            others: Vec::new(),
        };
        Self {
            confidence: Some(estimate.confidence()),
            others: estimate.others.iter().map(one).collect(),
            ..one(&estimate.main)
        }
    }

    pub(super) fn guess(&self) -> Option<String> {
        let names = self.default_of.get(..3).unwrap_or(&self.default_of);
        let more = if names.len() < self.default_of.len() { " and others" } else { "" };
        (!names.is_empty()).then(|| names.join(", ") + more)
    }
}

impl DropLimit {
    fn of(limit: (Duration, Duration)) -> Self {
        Self {
            passed_seconds: limit.0.as_secs_f64(),
            failed_seconds: limit.1.as_secs_f64(),
            default_of: advice::middleboxes(limit),
        }
    }
}

impl AdviceView {
    fn of(change: advice::Change) -> Self {
        let advice::Change { side, software, knob, place, seconds, line, text, note } = change;
        Self { side, software, knob, place, seconds, line, text, note }
    }
}

impl AlternativeView {
    fn of(alternative: Alternative) -> Self {
        let Alternative { kind, text, line } = alternative;
        Self { kind, text, line }
    }
}
