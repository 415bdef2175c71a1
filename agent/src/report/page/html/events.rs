//! The latest incidents, as tables.

use std::time::SystemTime;

use finrace_logic::model::{Incident, Role};
use maud::{Markup, html};

use super::View;
use crate::event_line::describe;
use crate::report::page::incidents::Which;

/// Number of events of each kind, on the page of all peers and on that of one.
const EVENTS: usize = 50;

impl View<'_> {
    pub(super) fn events(&self) -> Markup {
        let only = self.ask.only;
        let races = self.about.incidents.newest(Which::Races, only);
        let others = self.about.incidents.newest(Which::Others, only);
        html! {
            section aria-labelledby="events" {
                h2 id="events" { "Latest lost requests" }
                @if races.is_empty() { p { "None so far." } } @else {
                    (self.incidents("Requests that were lost, or probably lost, the newest first", &races))
                }
                @if !others.is_empty() {
                    details {
                        summary { "What looks alike and is no race: " (others.len()) }
                        (self.incidents("Other incidents, the newest first", &others))
                    }
                }
            }
        }
    }

    fn incidents(&self, caption: &str, incidents: &[&(SystemTime, Incident)]) -> Markup {
        html! {
            table class="events" {
                caption class="unseen" { (caption) }
                thead { tr {
                    th scope="col" { "UTC" } th scope="col" { "What" } th scope="col" { "Which" }
                } }
                tbody {
                    @for (time, incident) in incidents.iter().take(EVENTS) {
                        @let origin = &incident.origin;
                        @let ends = if origin.role == Role::Server {
                            [origin.remote, origin.local]
                        } else {
                            [origin.local, origin.remote]
                        };
                        tr {
                            td { (self.time(*time)) }
                            th scope="row" { (incident.class) }
                            td {
                                @if let Some(process) = origin.process {
                                    bdi { (process.name.as_str()) } "/" (process.pid) " "
                                }
                                span class="address" { (ends[0]) " → " (ends[1]) } ": "
                                (describe(incident))
                            }
                        }
                    }
                }
            }
        }
    }
}
