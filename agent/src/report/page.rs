//! The status page of `finrace serve`, and its JSON forms: docs/status.md.
//!
//! What surprises: who is worst is found by the event loop, a row at a time between batches, and
//! the few rows that are shown are copied then. All the rest (documents, charts, HTML) is made on
//! another thread.

mod chart;
mod html;
mod incidents;
mod json;
mod peer;
#[cfg(test)]
mod tests;
mod text;

use std::time::SystemTime;

use crate::clock::Clock;
use crate::http::Reply;
use crate::logic::model::Nanos;
use crate::logic::peer::Peer;
use crate::logic::table::{Picture, Survey, Table};
use crate::metrics::Status;
use crate::report::document::Run;
use crate::scrape::Request;
use crate::who::Who;
pub use html::SECURITY_POLICY;
pub use incidents::Incidents;

/// Peers, or events, in an answer.
const LIMIT: u16 = 50;
const LIMIT_MAX: u16 = 500;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Page,
    Status,
    Peers,
    Events,
}

impl Form {
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Page),
            "/api/v1/status" => Some(Self::Status),
            "/api/v1/peers" => Some(Self::Peers),
            "/api/v1/events" => Some(Self::Events),
            _ => None,
        }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Page => "text/html; charset=utf-8",
            Self::Status | Self::Peers | Self::Events => "application/json",
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub form: Form,
    /// Peers, or events, at most.
    pub limit: u16,
    /// Of one peer alone, in one network namespace; there may be a row of it for each owner.
    pub only: Option<(u32, Peer)>,
}

impl Ask {
    /// From the query of a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(form: Form, query: &str) -> Result<Self, String> {
        let mut limit = LIMIT;
        let (mut peer, mut netns) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = text::decoded(value);
            match name {
                "limit" => {
                    let number = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                    limit = number.ok_or_else(|| {
                        format!("limit `{value}` is not a number from 1 to {LIMIT_MAX}")
                    })?;
                }
                "peer" => {
                    peer = Some(Peer::parse(&value).ok_or_else(|| {
                        format!(
                            "peer `{value}` is neither like 10.0.0.5:8080 nor like \
                             `:8080 from 10.0.0.9`"
                        )
                    })?);
                }
                "netns" => {
                    netns = Some(value.parse().map_err(|_not_a_number| {
                        format!("netns `{value}` is not the number of a network namespace")
                    })?);
                }
                _ => return Err(format!("`{name}` is not one of limit, peer, netns")),
            }
        }
        let only = match (peer, netns) {
            (Some(peer), Some(netns)) => Some((netns, peer)),
            (None, None) => None,
            (Some(_), None) => return Err("peer needs netns: peers are told apart by both".into()),
            (None, Some(_)) => return Err("netns needs peer: peers are told apart by both".into()),
        };
        Ok(Self { form, limit, only })
    }
}

/// What the agent knows of itself.
#[derive(Clone, Debug)]
pub struct About {
    pub status: Status,
    /// The name of the host, or of the pod.
    pub host: String,
    pub kernel: String,
    pub clock: Clock,
    /// What the wall clock says now. It may have been set since the start.
    pub wall: SystemTime,
    pub incidents: Incidents,
    pub who: Who,
}

impl About {
    fn run(&self, picture: &Picture) -> Run {
        let (clock, wall, who) = (self.clock, self.wall, self.who.clone());
        Run { clock, now: picture.now, wall, threshold: picture.threshold, who }
    }
}

/// An answer under way in the event loop.
#[derive(Debug)]
pub struct Visit {
    ask: Ask,
    about: About,
    /// None where no row is shown, nor counted.
    survey: Option<Survey>,
    request: Request,
}

impl Visit {
    pub fn begin(table: &Table, about: About, ask: Ask, now: Nanos, request: Request) -> Self {
        let limit = if ask.form == Form::Status { 0 } else { ask.limit.into() };
        let survey = || Survey::begin(table, limit, ask.only, now);
        let survey = (ask.form != Form::Events).then(survey);
        Self { ask, about, survey, request }
    }

    /// Does one row; false once all are done.
    pub fn step(&mut self, table: &mut Table) -> bool {
        self.survey.as_mut().is_some_and(|survey| survey.step(table))
    }

    /// Answers, by a thread of its own.
    pub fn answer(self, table: &mut Table) {
        let Self { ask, about, survey, mut request } = self;
        let picture = survey.map(|survey| survey.finish(table));
        let permit = request.take_permit();
        drop(tokio::task::spawn_blocking(move || {
            let body = match (ask.form, picture) {
                (Form::Page, Some(picture)) => html::page(&about, ask, &picture),
                (Form::Peers, Some(picture)) => json::peers(&about, ask, &picture),
                (Form::Status, Some(picture)) => Some(json::status(&about, &picture)),
                (Form::Events, _) | (_, None) => Some(json::events(&about, ask)),
            };
            request.answer(body.map_or(Reply::NoPeer, |body| Reply::Page(body.into())));
            drop(permit);
        }));
    }
}
