//! What this agent is, and what it does not see.

use std::time::Duration;

use finrace_logic::table::Picture;
use maud::{Markup, html};

use super::View;
use crate::report::page::About;

impl View<'_> {
    pub(super) fn agent(&self) -> Markup {
        let About { status, host, kernel, clock, .. } = self.about;
        let Picture { threshold, rows_now, max_rows, evictions, .. } = self.picture;
        let revision = Some(status.revision).filter(|revision| !revision.is_empty());
        let records: u64 = status.events.iter().map(|(_, count)| count).sum();
        let lost: Vec<_> = status.lost.iter().filter(|(_, count)| **count > 0).collect();
        html! {
            section aria-labelledby="agent" {
                h2 id="agent" { "This agent" }
                dl {
                    dt { "Version" }
                    dd {
                        (status.version) @if let Some(revision) = revision { " (" (revision) ")" }
                    }
                    dt { "Host" } dd { bdi { (host) } ", Linux " (kernel) }
                    dt { "Watching since" } dd { (self.time(clock.started)) " UTC" }
                    dt { "Counts as a reuse" }
                    dd { "a write after more than " (milliseconds(*threshold)) }
                    dt { "Peers" }
                    dd {
                        (rows_now) " of at most " (max_rows) ", "
                        (evictions) " gave way"
                    }
                    dt { "Records" } dd { (records) " read" }
                    dt { "Lost" }
                    dd {
                        @if lost.is_empty() { "none" }
                        @for (number, (reason, count)) in lost.iter().enumerate() {
                            @if number > 0 { ", " } (reason) " " (count)
                        }
                    }
                    @if !status.missing_fields.is_empty() {
                        dt { "This kernel lacks" } dd { (status.missing_fields.join(", ")) }
                    }
                }
                div class="scroll" role="region" aria-label="Hooks" tabindex="0" {
                    table {
                        caption { "Hooks in the kernel" }
                        thead { tr {
                            th scope="col" { "For" } th scope="col" { "Hook" }
                            th scope="col" { "At" } th scope="col" { "Not seen" }
                        } }
                        tbody {
                            @for hook in &status.hooks {
                                tr {
                                    th scope="row" { (hook.job) } td { (hook.hook) }
                                    td class="address" { (hook.attached_to) }
                                    td { (hook.loses.unwrap_or("–")) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
