//! One peer: what is wrong, what to change, and the evidence.

use std::fmt::Display;

use finrace_logic::estimate::Confidence;
use finrace_logic::numbers::number;
use finrace_logic::owner;
use finrace_logic::peer::Peer;
use maud::{Markup, html};

use super::chart::chart;
use super::text::with_code;
use crate::ask::encoded;
use crate::report::view::{PeerView, Quantiles, TimeoutView};

/// An end of a connection, as a heading names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EndName {
    /// Its owner, as far as known.
    pub(super) owner: Option<String>,
    /// How it is reached; for a client only the address is known.
    pub(super) address: Option<String>,
}

/// The client and the server.
pub(super) fn ends(peer: &PeerView) -> [EndName; 2] {
    let process = peer.process.as_deref();
    let end = |owner, process, address| EndName { owner: called(owner, process), address };
    match Peer::parse(&peer.peer) {
        Some(Peer::Server { port, ip }) => [
            end(&peer.client, None, Some(ip.to_string())),
            end(&peer.server, process, Some(format!(":{port}"))),
        ],
        Some(Peer::Client(_)) | None => {
            [end(&peer.client, process, None), end(&peer.server, None, Some(peer.peer.clone()))]
        }
    }
}

/// `shop/cart (nginx)`, `nginx.service`, `nginx`: the workload, and the process if that adds anything.
fn called(owner: &owner::End, process: Option<&str>) -> Option<String> {
    let name = [&owner.workload, &owner.pod, &owner.container].into_iter().flatten().next();
    let name = name.map(|name| match &owner.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_string(),
    });
    match (name, process) {
        (Some(name), Some(process)) if !name.contains(process) => {
            Some(format!("{name} ({process})"))
        }
        (name, process) => name.or_else(|| process.map(str::to_owned)),
    }
}

impl EndName {
    fn parts(&self, otherwise: &'static str) -> (&str, Option<&str>) {
        match (self.owner.as_deref(), self.address.as_deref()) {
            (Some(owner), address) => (owner, address),
            (None, Some(address)) => (address, None),
            (None, None) => (otherwise, None),
        }
    }
}

/// `nginx → 10.0.0.5:8080`, without markup.
pub(super) fn plain(peer: &PeerView) -> String {
    let [client, server] = ends(peer);
    let text = |end: &EndName, otherwise| match end.parts(otherwise) {
        (name, Some(address)) => format!("{name} {address}"),
        (name, None) => name.to_owned(),
    };
    format!("{} → {}", text(&client, "client"), text(&server, "server"))
}

pub(super) fn between(peer: &PeerView) -> Markup {
    let [client, server] = ends(peer);
    let end = |end: &EndName, otherwise| {
        let (name, address) = end.parts(otherwise);
        html! {
            bdi { (name) }
            @if let Some(address) = address { " " bdi class="address" { (address) } }
        }
    };
    html! {
        (end(&client, "client"))
        " " span aria-hidden="true" { "→" } span class="unseen" { "to" } " "
        (end(&server, "server"))
    }
}

/// Link to everything about a peer, together with other rows of the same peer.
pub(super) fn link(peer: &PeerView) -> String {
    let netns = peer.netns.map_or_else(String::new, |netns| format!("&netns={netns}"));
    format!("/?peer={}{netns}", encoded(&peer.peer))
}

pub(super) fn badge(peer: &PeerView) -> Markup {
    html! { strong class={ "verdict " (peer.verdict) } { (peer.verdict) } }
}

/// How much is said about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Fifty of these fit on a page.
    Short,
    /// With what else would help, and what is easily confused with the setting.
    Long,
    /// With everything there is to say about that.
    All,
}

/// What is wrong, and what to change, without the heading.
pub(super) fn body(peer: &PeerView, id: &str, detail: Detail) -> Markup {
    let sentence = [&*peer.sentence, "."].concat();
    let note = |note: &'static str| match detail {
        Detail::Short => None,
        Detail::Long => note.split_inclusive(". ").next().map(str::trim_end),
        Detail::All => Some(note),
    };
    html! {
        p class="sentence" { (sentence) }
        (guesses(peer))
        @for advice in &peer.advice {
            div class="change" {
                p { strong { "Change: " } (with_code(&advice.text)) "." }
                @if let Some(line) = &advice.line {
                    pre { code { (line) } }
                }
                @if let Some(text) = advice.note.and_then(note) { p class="note" { (with_code(text)) } }
            }
        }
        @if let Some(chart) = chart(peer, id, &plain(peer), detail == Detail::All) { (chart) }
        (facts(peer))
        @if detail != Detail::Short && !peer.alternatives.is_empty() {
            details {
                summary { "What else would help" }
                ul {
                    @for alternative in &peer.alternatives {
                        li {
                            (with_code(&alternative.text))
                            @if let Some(line) = &alternative.line
                                && !alternative.text.contains(line)
                            {
                                ": " (with_code(&quoted(line)))
                            }
                            "."
                        }
                    }
                }
            }
        }
    }
}

/// The setting as code, its remark in brackets as it is; unchanged if the line itself marks what is
/// code.
fn quoted(line: &str) -> String {
    match line.split_once(" (") {
        _ if line.contains('`') => line.to_owned(),
        Some((line, rest)) => format!("`{line}` ({rest}"),
        None => format!("`{line}`"),
    }
}

fn guesses(peer: &PeerView) -> Markup {
    let timeout = peer.idle_timeout.get(&peer.server_closer());
    let guess = timeout.and_then(|timeout| Some((timeout.seconds, timeout.guess()?)));
    let limit = peer.drop_limit.as_ref().filter(|limit| !limit.default_of.is_empty());
    html! {
        @if let Some((seconds, software)) = guess {
            p class="note" { (format!("{seconds:.2} s is the default of {software} (a guess).")) }
        }
        @if let Some(limit) = limit {
            p class="note" { "Such a limit have " (limit.default_of.join(", ")) " (a guess)." }
        }
    }
}

/// What was counted, one line each.
fn facts(peer: &PeerView) -> Markup {
    let races = peer.races.iter().map(|(class, count)| {
        let last = peer.last_seen.get(class).and_then(|time| time.get(..19));
        let last =
            last.map_or_else(String::new, |time| format!(" (last {} UTC)", time.replace('T', " ")));
        format!("{class} {count}{last}")
    });
    let races = races.collect::<Vec<_>>().join(", ");
    html! {
        dl {
            @if !races.is_empty() { dt { "Requests lost" } dd { (races) } }
            @if peer.seen > 0 {
                dt { "Seen here" } dd { (peer.seen) " lost requests that count at the client’s end" }
            }
            @if let Some(exposure) = peer.exposure_per_hour {
                dt { "To be expected" } dd { (number(exposure)) " lost requests an hour" }
            }
            dt { "Closed first" }
            dd {
                "the server " (peer.order.server_first) ", the client " (peer.order.client_first)
            }
            @for note in &peer.notes { dt { "Also" } dd { (with_code(note)) "." } }
        }
    }
}

/// Everything the verdict is based on.
pub(super) fn evidence(peer: &PeerView) -> Markup {
    let sides = [("server", peer.server_closer()), ("client", peer.client_closer())];
    html! {
        h2 { "Evidence" }
        div class="scroll" role="region" aria-label="Closes" tabindex="0" {
            table {
                caption { "Closes of connections, by who closed first" }
                thead { tr { th scope="col" { "Closer" } th scope="col" { "Closes" }
                    th scope="col" { "of which" } th scope="col" { "Idle before: median" }
                    th scope="col" { "99 %" } th scope="col" { "longest" } } }
                tbody {
                    @for (side, closer) in sides {
                        @if let Some(closes) = peer.closes.get(&closer) {
                            tr {
                                th scope="row" { (side) } td { (closes.total) }
                                td { (list(closes.by_evidence.iter())) } (quantiles(&closes.idle))
                            }
                        }
                    }
                    tr {
                        th scope="row" { "none: reused" } td { (peer.reuse.gaps.count) } td {}
                        (quantiles(&peer.reuse.gaps))
                    }
                }
            }
        }
        div class="scroll" role="region" aria-label="Idle timeouts" tabindex="0" {
            table {
                caption { "Idle timeouts, as estimated from closes" }
                thead { tr { th scope="col" { "Side" } th scope="col" { "Timeout" }
                    th scope="col" { "from, to" } th scope="col" { "Closes that agree" }
                    th scope="col" { "Confidence" } } }
                tbody {
                    @for (side, closer) in sides {
                        @match peer.idle_timeout.get(&closer) {
                            Some(timeout) => {
                                (estimate(side, timeout))
                                @for other in &timeout.others { (estimate("as well", other)) }
                            }
                            None => tr { th scope="row" { (side) } td colspan="4" { "not known" } }
                        }
                    }
                }
            }
        }
        dl {
            @if let (Some(exposure), Some(expected)) = (&peer.exposure, peer.exposure_per_hour) {
                dt { "Exposure" }
                dd { (exposure.to_text(expected, peer.reuse.gaps.count)) "." }
            }
            @if let Some(limit) = &peer.drop_limit {
                dt { "Forgotten" }
                dd {
                    "after " (seconds(Some(limit.passed_seconds))) " connections still worked, after "
                    (seconds(Some(limit.failed_seconds))) " no more"
                }
            }
            @if !peer.causes.is_empty() { dt { "Causes" } dd { (list(peer.causes.iter())) } }
            @if !peer.fin_ages.is_empty() {
                dt { "FIN ages of late requests" } dd { (peer.fin_ages_text()) }
            }
            @if !peer.read.is_empty() {
                dt { "Read by the server" } dd { (list(peer.read.iter())) }
            }
            @if !peer.incidents.is_empty() {
                dt { "No races" } dd { (list(peer.incidents.iter())) }
            }
            @if let Some(missing) = &peer.missing { dt { "To go" } dd { (missing) } }
            dt { "Closed in a row by the client" } dd { (peer.order.client_in_a_row) }
            @if let Some(netns) = peer.netns { dt { "Network namespace" } dd { (netns) } }
            dt { "Seen from" } dd { "the " (peer.role) "’s end" }
        }
    }
}

fn list<'a, T: Display + 'a>(counts: impl Iterator<Item = (&'a T, &'a u64)>) -> String {
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn quantiles(quantiles: &Quantiles) -> Markup {
    html! {
        @for value in [quantiles.p50_seconds, quantiles.p99_seconds, quantiles.max_seconds] {
            td { (seconds(value)) }
        }
    }
}

fn estimate(side: &str, timeout: &TimeoutView) -> Markup {
    let at_most = if timeout.upper_bound { "at most " } else { "" };
    html! {
        tr {
            th scope="row" { (side) }
            td { (at_most) (seconds(Some(timeout.seconds))) }
            td { (seconds(Some(timeout.low_seconds))) ", " (seconds(Some(timeout.high_seconds))) }
            td { (timeout.closes) (format!(" ({:.0} % of all)", timeout.share * 100.0)) }
            td { (timeout.confidence.map_or("–", Confidence::as_str)) }
        }
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3} s"))
}
