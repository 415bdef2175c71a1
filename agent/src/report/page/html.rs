//! The page: is anything wrong, between whom, what to change; then the rest.

mod agent;
mod events;

use std::time::SystemTime;

use finrace_logic::table::Picture;
use finrace_logic::verdict::State;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::About;
use super::peer::{self, Detail, badge, between};
use super::text::{count, long};
use crate::ask::{Ask, LIMIT_MAX};
use crate::clock::rfc3339;
use crate::lost::missing;
use crate::output::visible;
use crate::report::view::PeerView;

const STYLE: &str = include_str!("style.css");

/// Nothing is loaded, nothing runs, and no site may frame it. The style is identified by its digest.
pub const SECURITY_POLICY: &str = "default-src 'none'; style-src \
    'sha256-ob/gM+OOQgUGujrsaaUGxRhT1Kr7SSFF0Utx4dCa2LE='; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// How many of the worst peers are shown in more detail.
const LONG: usize = 10;

/// What all parts of the page are made from.
struct View<'a> {
    about: &'a About,
    ask: Ask,
    picture: &'a Picture,
    now: SystemTime,
    peers: Vec<PeerView>,
}

/// None if a single peer was requested and does not exist.
pub(super) fn page(about: &About, ask: Ask, picture: &Picture) -> Option<String> {
    let run = about.run(picture);
    let peers: Vec<_> = picture.rows.iter().map(|row| run.of_row(row)).collect();
    let view = View { about, ask, picture, now: about.wall, peers };
    let (title, main) = match (ask.only, &*view.peers) {
        (None, _) => (view.title(), view.all()),
        (Some(_), []) => return None,
        (Some(_), [worst, rest @ ..]) => {
            let more = match rest.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (format!("{}: {}{more}", worst.verdict, peer::plain(worst)), view.one())
        }
    };
    let body = html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " – finrace on " (about.host) }
        }
        body {
            a class="skip" href="#main" { "To the content" }
            (view.header())
            main id="main" { (main) }
            (footer())
        }
    };
    let style = html! { style { (PreEscaped(STYLE)) } };
    let body = body.into_string();
    // Applied to the whole page, which has no such character of its own.
    let body = visible(&body);
    let (head, rest) = body.split_once("</head>").unwrap_or((&body, ""));
    let doctype = DOCTYPE.into_string();
    Some(format!("{doctype}<html lang=\"en\">{head}{}</head>{rest}</html>\n", style.into_string()))
}

fn footer() -> Markup {
    html! {
        footer {
            p {
                "The same as JSON: "
                a href="/api/v1/status" { "status" } ", "
                a href="/api/v1/peers" { "peers" } ", "
                a href="/api/v1/events" { "events" } ". "
                a href="/metrics" { "Metrics" } " for Prometheus."
            }
        }
    }
}

impl View<'_> {
    fn header(&self) -> Markup {
        let since = self.about.clock.since_start(self.picture.now);
        html! {
            header {
                p { a href="/" { strong { "finrace" } } " on " bdi { (self.about.host) } }
                p { "as of " (self.time(self.now)) " UTC, after " (long(since)) " of watching" }
            }
        }
    }

    /// Peers by verdict, each counted once: those on this host have two rows, of which the client's counts.
    fn tally(&self) -> Vec<(State, u64)> {
        self.picture.states.iter().map(|(state, number)| (*state, *number as u64)).collect()
    }

    fn title(&self) -> String {
        let tally = self.tally();
        let number = |of: fn(State) -> bool| -> u64 {
            tally.iter().filter(|(state, _)| of(*state)).map(|(_, number)| number).sum()
        };
        let lost = number(State::is_loss);
        let at_risk = number(|state| state.is_bad() && !state.is_loss());
        let verb = if at_risk == 1 { "is" } else { "are" };
        match (lost, at_risk) {
            (0, 0) if number(|state| state == State::Safe) > 0 => "Nothing is wrong".to_owned(),
            (0, 0) => "Nothing to tell yet".to_owned(),
            (0, _) => format!("{} {verb} at risk", count(at_risk, "peer")),
            (_, 0) => format!("Requests are lost at {}", count(lost, "peer")),
            _ => {
                let at = count(lost, "peer");
                format!("Requests are lost at {at}, {at_risk} more {verb} at risk")
            }
        }
    }

    fn all(&self) -> Markup {
        let bad: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| peer.verdict.is_bad() && peer.other_end.is_none())
            .collect();
        let others: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| !peer.verdict.is_bad() || peer.other_end.is_some())
            .collect();
        let all = self.picture.rows_now;
        html! {
            section aria-labelledby="answer" {
                h1 id="answer" { (self.title()) }
                p class="lede" { (self.lede(&bad)) }
                ul class="tally" aria-label="Peers by verdict" {
                    @for (state, number) in self.tally() {
                        li { strong class={ "verdict " (state) } { (number) " " (state) } }
                    }
                }
                (self.blindness())
            }
            @if bad.len() > 1 { (overview(&bad)) }
            @if !bad.is_empty() {
                section aria-labelledby="problems" {
                    h2 id="problems" { @if bad.len() > 1 { "One by one" } @else { "What is wrong" } }
                    @for (number, peer) in (1..).zip(&bad) {
                        @let id = format!("p{number}");
                        article id=(id) aria-labelledby={ (id) "-h" } {
                            h3 id={ (id) "-h" } {
                                (badge(peer)) " " a href=(peer::link(peer)) { (between(peer)) }
                            }
                            (peer::body(peer, &id, if number <= LONG { Detail::Long } else { Detail::Short }))
                        }
                    }
                }
            }
            @if !others.is_empty() { (self.others(&others, !bad.is_empty())) }
            @if all > self.peers.len() {
                p {
                    "These are the worst " (self.peers.len()) " of " (all) " peers."
                    @if self.ask.limit < LIMIT_MAX {
                        " " a href={ "/?limit=" (LIMIT_MAX) } { "Show " (all.min(LIMIT_MAX.into())) }
                    }
                }
            }
            (self.events())
            (self.agent())
            (glossary())
        }
    }

    /// Units of a host, or containers of a pod, that use the same server are rows of one peer.
    fn one(&self) -> Markup {
        html! {
            nav aria-label="Up" { a href="/" { "← All peers" } }
            @for (number, peer) in (1..).zip(&self.peers) {
                @let id = format!("p{number}");
                article id=(id) aria-labelledby={ (id) "-h" } {
                    h1 id={ (id) "-h" } { (badge(peer)) " " (between(peer)) }
                    (peer::body(peer, &id, Detail::All))
                }
                section aria-label="Evidence" { (peer::evidence(peer)) }
            }
            (self.events())
            (glossary())
        }
    }

    fn lede(&self, bad: &[&PeerView]) -> Markup {
        let last = self.about.incidents.last_race();
        let ago = last.and_then(|last| self.now.duration_since(last).ok()).unwrap_or_default();
        let is_nothing_known = bad.is_empty() && !self.picture.states.contains_key(&State::Safe);
        html! {
            @if let [peer] = bad { (between(peer)) ". " }
            @if is_nothing_known {
                "A verdict takes five closes of idle connections, and reuses. "
            }
            @match last {
                Some(last) => {
                    (count(self.about.incidents.total_races(), "request")) " lost so far, the last "
                    (long(ago)) " ago, at " (self.time(last)) " UTC."
                }
                None => "No request was seen to be lost."
            }
        }
    }

    /// What this agent does not see: silence about it would be mistaken for health.
    fn blindness(&self) -> Markup {
        let status = &self.about.status;
        let blind = status.hooks.iter().filter(|hook| hook.loses.is_some()).count()
            + status.missing_fields.len();
        let lost = missing(&status.lost);
        let mut texts = Vec::new();
        texts.extend((blind > 0).then(|| count(blind as u64, "blind spot")));
        texts.extend((lost > 0).then(|| format!("{} lost", count(lost, "record"))));
        html! {
            @if !texts.is_empty() {
                p class="notice" {
                    "Not everything is seen: " a href="#agent" { (texts.join(", ")) } "."
                }
            }
        }
    }

    /// The client's row that belongs to a server's.
    fn other_end(&self, peer: &PeerView) -> Option<&PeerView> {
        let client = peer.other_end.as_ref()?;
        self.peers
            .iter()
            .find(|other| other.netns == Some(client.netns) && other.peer == client.peer)
    }

    /// Peers with a verdict, then those of which too little was seen.
    fn others(&self, peers: &[&PeerView], is_rest: bool) -> Markup {
        let (unknown, known): (Vec<&PeerView>, Vec<_>) =
            peers.iter().partition(|peer| peer.verdict == State::Unknown);
        html! {
            section aria-labelledby="others" {
                h2 id="others" { @if is_rest { "Other peers" } @else { "Peers" } }
                @if !known.is_empty() {
                    (self.lines("Peers of which nothing bad is known, or all is said", &known))
                }
                @if !unknown.is_empty() {
                    details {
                        summary { "Too little was seen of " (count(unknown.len() as u64, "peer")) }
                        (self.lines("Peers of which too little was seen", &unknown))
                    }
                }
            }
        }
    }

    fn lines(&self, caption: &str, peers: &[&PeerView]) -> Markup {
        html! {
            table {
                caption class="unseen" { (caption) }
                thead { tr {
                    th scope="col" { "Verdict" } th scope="col" { "Between" }
                    th scope="col" { "Why" }
                } }
                tbody {
                    @for peer in peers {
                        tr {
                            td { (badge(peer)) }
                            th scope="row" { a href=(peer::link(peer)) { (between(peer)) } }
                            td {
                                @match self.other_end(peer) {
                                    Some(client) => { "The other end of " (between(client)) "." }
                                    None => { (peer.sentence) "." }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The time of day, with the date if it is not today's.
    fn time(&self, time: SystemTime) -> Markup {
        let (stamp, now) = (rfc3339(time), rfc3339(self.now));
        let short =
            if stamp.get(..10) == now.get(..10) { stamp.get(11..19) } else { stamp.get(..19) };
        let short = short.unwrap_or(&stamp).replace('T', " ");
        html! { time datetime=(stamp) { (short) } }
    }
}

/// For when there are many: each on a line, with what to set.
fn overview(bad: &[&PeerView]) -> Markup {
    html! {
        section aria-labelledby="overview" {
            h2 id="overview" { "What to change" }
            table {
                caption class="unseen" { "Peers with a problem, the worst first" }
                thead { tr {
                    th scope="col" { "Verdict" } th scope="col" { "Between" }
                    th scope="col" { "Change" }
                } }
                tbody {
                    @for (number, peer) in (1..).zip(bad) {
                        tr {
                            td { (badge(peer)) }
                            th scope="row" { a href={ "#p" (number) } { (between(peer)) } }
                            td {
                                @for advice in &peer.advice {
                                    @match &advice.line {
                                        Some(line) => {
                                            code { (line) } " in "
                                            (advice.software.unwrap_or(advice.side.as_str()))
                                        }
                                        None => (advice.text)
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn glossary() -> Markup {
    html! {
        section aria-labelledby="words" {
            h2 id="words" { "How to read this" }
            details {
                summary { "Verdicts, charts and classes" }
                p {
                    "The side that sends requests must close idle connections before the side that "
                    "answers them. Where it does not, a request can cross the other side’s FIN, and is "
                    "lost: the race."
                }
                dl {
                    dt { "racing" } dd { "Requests are lost to an idle timeout." }
                    dt { "dropping" }
                    dd { "Requests are lost to something that forgot the connection without a word." }
                    dt { "losing" }
                    dd {
                        "Requests are lost to closes that are no idle timeout: a limit on requests or age, "
                        "a restart, or what is not known yet."
                    }
                    dt { "leaking" }
                    dd { "A pool does not notice that its connections were closed." }
                    dt { "exposed" }
                    dd { "The answering side closes first: requests will be lost." }
                    dt { "unknown" } dd { "Too little was seen." }
                    dt { "safe" } dd { "The requesting side closes first." }
                }
                p {
                    "A chart has one row of bars for each way in which an idle time ended, on one "
                    "logarithmic scale of the idle time, of the last hour or two. Heights are square "
                    "roots of counts. The shaded part is where the server has closed already: a reuse "
                    "that comes close to it is about to be lost."
                }
                dl {
                    dt { "stale_write" } dd { "A request was written after the peer’s FIN had come." }
                    dt { "fin_crossed" } dd { "A request and the peer’s FIN were under way at once." }
                    dt { "unread_close" } dd { "A connection was closed with the request unread." }
                    dt { "silent_drop" } dd { "Nobody answered: the connection was forgotten." }
                    dt { "reset_after_reuse" } dd { "One of the two above." }
                    dt { "read_and_closed" } dd { "Acknowledged, then closed: probably lost." }
                    dt { "write_after_reset" }
                    dd { "A request was written to a connection that had been reset." }
                    dt { "late_request" } dd { "A request came after the server had closed." }
                }
            }
        }
    }
}
