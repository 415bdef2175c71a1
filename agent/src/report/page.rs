//! The status page of `finrace serve`, and its JSON forms: docs/status.md.
//!
//! Note that the event loop finds the worst peers, a row at a time between batches, and then copies
//! the few rows that are shown. Everything else (documents, charts, HTML) is made on another
//! thread.

mod chart;
mod html;
mod incidents;
mod json;
mod peer;
#[cfg(test)]
mod tests;
mod text;

use std::time::SystemTime;

use finrace_logic::model::Nanos;
use finrace_logic::table::{Picture, Survey, Table};

use crate::ask::{Ask, Form, Reply, Request};
use crate::clock::Clock;
use crate::metrics::Status;
use crate::report::view::Run;
use crate::who::Who;
pub use html::SECURITY_POLICY;
pub use incidents::Incidents;

/// What the agent knows about itself.
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

/// An answer in progress in the event loop.
#[derive(Debug)]
pub struct Visit {
    ask: Ask,
    about: About,
    /// None if rows are neither shown nor counted.
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

    /// Processes one row; false once all are done.
    pub fn step(&mut self, table: &mut Table) -> bool {
        self.survey.as_mut().is_some_and(|survey| survey.step(table))
    }

    /// Answers, on a thread of its own.
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
