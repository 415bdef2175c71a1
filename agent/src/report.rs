//! `finrace report`: watches for a while, then says for each peer what is wrong and what to change,
//! the worst first. The JSON form is documented in docs/report.md and versioned by its `schema`.

mod against;
mod document;
mod draw;
pub mod page;
mod text;
mod view;
mod what_if;

use std::fs;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use self::against::Before;
use self::document::Document;
use self::view::Run;
use crate::cli::Report;
use crate::output::{eprintln_quietly, json, print};
use crate::probe::attach::Serving;
use crate::session::Session;
use crate::usage::Usage;

const DEFAULT: Duration = Duration::from_mins(1);
const DEMO: Duration = Duration::from_secs(10);

/// Observes, then prints; false if a verdict is one of `--fail-on`.
pub async fn run(args: &Report) -> Result<bool> {
    // A file that cannot be read is reported before the wait, not after it.
    let before = args.against.as_ref().map(|path| -> Result<Before> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Before::parse(&text).with_context(|| format!("{} is no report", path.display()))
    });
    let before =
        before.transpose().map_err(|error| anyhow!(Usage(format!("--against: {error:#}"))))?;
    let duration = args.duration.unwrap_or(if args.kernel.demo { DEMO } else { DEFAULT });
    let mut session = Session::start(&args.kernel)?;
    eprintln_quietly(&format!(
        "finrace: attached ({}); watching for {}, Ctrl-C reports at once",
        session.hooks(),
        humantime::format_duration(duration)
    ));
    session.run(Some(duration), None, |_, _| Ok(ControlFlow::Continue(()))).await?;
    let mut document = document_of(&mut session);
    if let Some(before) = &before {
        before.compare(&mut document);
    }
    let text = if args.json { json(&document, true)? } else { document.to_text() };
    print(&text)?;
    Ok(!document.has_any(&args.fail_on))
}

fn document_of(session: &mut Session) -> Document {
    let (now, wall) = session.assess();
    let table = &session.engine.table;
    let (clock, who) = (session.clock, session.who.clone());
    let run = Run { clock, now, wall, threshold: table.threshold(), who };
    let hook =
        |job: &Serving| (job.job.name(), job.by().map_or("none", |choice| choice.hook.name()));
    let hooks = session.serving.iter().map(hook).collect();
    Document::of(&run, table, session.features.release.clone(), hooks, session.lost())
}
