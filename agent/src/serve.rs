//! `finrace serve`: the daemon, which is a session that answers over HTTP.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::ask;
use crate::cli;
use crate::http;
use crate::http::security::Security;
use crate::memory;
use crate::metrics::Naming;
use crate::output::eprintln_quietly;
use crate::scrape::Shape;
use crate::session::{Requests, Session};
use crate::usage::Usage;

/// The daemon: binds first, so that a port in use is reported before anything is attached.
pub async fn run(args: &cli::Serve) -> Result<()> {
    let (listeners, security) = open(args).await?;
    let session = Session::start(&args.kernel)?;
    memory::give_back();
    log::info!("attached: {}", session.hooks());
    let scheme = security.scheme().await;
    let urls = args.listen.iter().map(|address| format!("{scheme}://{address}/"));
    let urls = urls.collect::<Vec<_>>().join(", ");
    eprintln_quietly(&format!("finrace: attached; status page and metrics on {urls}"));
    serve_over(session, listeners, security, args).await
}

/// The daemon's loop, until a signal.
pub async fn serve_over(
    mut session: Session,
    listeners: Vec<TcpListener>,
    security: Security,
    args: &cli::Serve,
) -> Result<()> {
    session.engine.table.keep(args.keeps());
    let (asking, receiver) = ask::requests(args.max_requests.into());
    session.engine.table.forget_after(args.stale_after);
    let naming = Naming::new(args.labels.clone(), session.who.clone());
    let shape = Shape { series_max: args.series_max, naming };
    let requests = Requests { receiver, shape };
    let (stop, stopped) = oneshot::channel::<()>();
    let handler = {
        let asking = asking.clone();
        move |route| asking.clone().ask(route)
    };
    let stopped = async { stopped.await.unwrap_or_default() };
    let security = Arc::new(security);
    let (max_requests, protobuf) = (args.max_requests, args.native_histograms);
    let server =
        tokio::spawn(http::serve(listeners, max_requests, protobuf, security, handler, stopped));
    session.run(None, Some(requests), |_, _| Ok(ControlFlow::Continue(()))).await?;
    drop(stop);
    drop(session);
    server.await.context("serving HTTP")?;
    asking.end().await;
    Ok(())
}

/// Opens the sockets, and loads the rules for access to them.
async fn open(args: &cli::Serve) -> Result<(Vec<TcpListener>, Security)> {
    let security = Security::load(args.web_config.as_deref())
        .map_err(|error| anyhow!(Usage(format!("--web.config.file {error:#}"))))?;
    let mut listeners = Vec::new();
    for address in &args.listen {
        listeners.push(
            address.bind().await.map_err(|error| {
                anyhow!(Usage(format!("--web.listen-address {address}: {error}")))
            })?,
        );
    }
    if args.listen.iter().any(|address| address.is_open()) && security.shows_passwords().await {
        log::warn!("passwords come in the clear: --web.config.file has no tls_server_config");
    }
    Ok((listeners, security))
}
